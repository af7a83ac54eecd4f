// quantize_rows and dequantize_rows: see pegasus_batch/kernels/reference.py for what they compute. CPU only.
#pragma once
#include "tensor.h"

namespace pegasus {

// Gives every row its own scale, so that a row's codes do not depend on the rows beside it.
struct QuantizeRowsParams {
  TensorView states;  // [N, K] float32 | bfloat16; rows may be strided
  TensorView codes;   // [N, K] uint8, contiguous, written in full
  TensorView scales;  // [N] float32
};

// Turns the products of codes into what the products of the rows would have been, and finishes the layer.
struct DequantizeRowsParams {
  TensorView products;  // [N, M] float32, contiguous: sums of (code - 128) * weight
  TensorView scales;    // [N] float32
  TensorView bias;      // [M] float32
  TensorView residual;  // [N, M] in out's dtype, contiguous; read only if has_residual
  TensorView out;       // [N, M] float32 | bfloat16, contiguous, written in full
  bool has_residual;
  bool relu;
};

// Both throw std::invalid_argument before touching memory.
void quantize_rows(const QuantizeRowsParams& p);
void dequantize_rows(const DequantizeRowsParams& p);

}  // namespace pegasus
