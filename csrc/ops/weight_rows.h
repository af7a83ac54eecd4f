// weight_rows: see pegasus_batch/kernels/reference.py for what it computes. CPU only.
#pragma once
#include "tensor.h"

namespace pegasus {

// Rows of weights that reference.pack_weights has laid out, as they were before.
struct WeightRowsParams {
  TensorView weights;  // [panels, ceil(I / n), 64 * n], contiguous: float32 (n = 1), bfloat16 (2), or uint8 (4)
  TensorView rows;     // [N] int32 in [0, 64 * panels)
  TensorView out;      // [N, I] in the weights' dtype, contiguous, written in full; of uint8 these are the int8 codes
};

// Throws std::invalid_argument before touching memory.
void weight_rows(const WeightRowsParams& p);

}  // namespace pegasus
