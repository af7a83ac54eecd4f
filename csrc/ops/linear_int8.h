// linear_int8: see pegasus_batch/kernels/reference.py for what it computes. CPU only.
#pragma once
#include <cstdint>

#include "tensor.h"

namespace pegasus {

// A linear layer with 8-bit weights. Every row of the states is quantized at a scale of its own, so that its result
// does not depend on the rows beside it.
struct LinearInt8Params {
  TensorView states;         // [N, I] float32 | bfloat16; rows may be strided
  TensorView weights;        // [ceil(O / 64), ceil(I / 4), 256] uint8, contiguous, as reference.pack_int8 lays them out
  TensorView weight_scales;  // [O] float32
  TensorView bias;           // [O] float32
  TensorView residual;       // [N, O] in out's dtype, contiguous; read only if has_residual
  TensorView out;            // [N, O] float32 | bfloat16, contiguous, written in full
  TensorView workspace;      // uint8, linear_int8_workspace bytes
  bool has_residual;
  bool relu;
};

int64_t linear_int8_workspace(int64_t rows, int64_t inputs);

// Throws std::invalid_argument before touching memory.
void linear_int8(const LinearInt8Params& p);

}  // namespace pegasus
