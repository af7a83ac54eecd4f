// add_norm: see pegasus_batch/kernels/reference.py for what it computes. CUDA only.
#pragma once
#include "tensor.h"

namespace pegasus {

// Adds a branch to the residual stream, which stays float32, and normalises the sum.
struct AddNormParams {
  TensorView stream;  // [N, D] float32, contiguous, changed in place
  TensorView branch;  // [N, D] in normed's dtype, contiguous; read only if has_branch
  TensorView weight;  // [D] float32
  TensorView bias;    // [D] float32
  TensorView normed;  // [N, D] float32 | bfloat16 | float16, contiguous, written in full
  double eps;
  bool has_branch;
  bool post_norm;  // the stream becomes the norm, else the sum
};

// Throws std::invalid_argument before touching memory. `stream` is the caller's CUDA stream.
void add_norm(const AddNormParams& p, void* stream);

}  // namespace pegasus
