// linear: see pegasus_batch/kernels/reference.py for what it computes. CPU only.
#pragma once
#include <cstdint>

#include "tensor.h"

namespace pegasus {

// A linear layer. A row's result does not depend on the rows beside it: its sums run over the inputs in their order,
// and for weights of 8 bits it is quantized at a scale of its own.
struct LinearParams {
  TensorView states;   // [N, I] float32 | bfloat16; rows may be strided; of the weights' type unless that is uint8
  TensorView weights;  // [ceil(O / 64), ceil(I / n), 64 * n], contiguous, as reference.pack_weights lays them out:
                       // float32 (n = 1), bfloat16 (2), or uint8 (4)
  TensorView norm_weight, norm_bias;  // [I] float32, of a layer norm before the layer; read only if has_norm
  TensorView weight_scales;           // [O] float32; present if, and only if, the weights are uint8
  TensorView bias;                    // [O] float32
  TensorView residual;                // [N, O] in out's dtype, contiguous; read only if has_residual
  TensorView out;                     // [N, O] float32 | bfloat16, contiguous, written in full
  TensorView workspace;               // uint8, linear_workspace bytes
  double norm_eps;
  bool has_norm;
  bool has_scales;
  bool has_residual;
  bool relu;
};

// Throws std::invalid_argument for states that no weights take.
int64_t linear_workspace(const TensorView& states, const TensorView& weights, bool has_norm);

// Throws std::invalid_argument before touching memory.
void linear(const LinearParams& p);

}  // namespace pegasus
