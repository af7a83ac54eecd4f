// plan_edits: see pegasus_batch/kernels/reference_state.py for what it computes. CUDA only.
#pragma once
#include "tensor.h"

namespace pegasus {

// The edits of the coming step of every beam: from its history, and from the tables of what the length alone decides.
//
// Tokens and lengths are the caller's to answer for, and so is that a row's stretch of the N places holds its phase
// too.
struct PlanEditsParams {
  TensorView sequences;     // [S, K, L] int32
  TensorView lengths;       // [S] int32, 0 to L
  TensorView phase_begin;   // [L+2] int32
  TensorView phase_token;   // [P] int32
  TensorView phase_kind;    // [P] int32
  TensorView phase_value;   // [P] float32
  TensorView phase_forced;  // [L+1] int32, -1 for none
  double repetition_penalty;
  int64_t ngram_size;

  TensorView begin;   // [S*K] int32
  TensorView end;     // [S*K] int32
  TensorView token;   // [N] int32; row r may write N / (S*K) places from its own multiple of that on
  TensorView kind;    // [N] int32
  TensorView value;   // [N] float32
  TensorView forced;  // [S*K] int32
};

// Throws std::invalid_argument before touching memory. `stream` is the caller's CUDA stream.
void plan_edits(const PlanEditsParams& p, void* stream);

}  // namespace pegasus
