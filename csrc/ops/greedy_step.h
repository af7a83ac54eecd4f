// greedy_step: see pegasus_batch/kernels/reference.py for what it computes. On CUDA only.
#pragma once
#include "ops/edited_logits.h"

namespace pegasus {

struct GreedyStepParams {
  EditedLogits rows;
  bool renormalize;
  TensorView tokens;     // [R] int32
  TensorView gains;      // [R] float64
  TensorView broken;     // [R] bool
  TensorView workspace;  // [greedy_step_workspace(...)] uint8
};

// Bytes of workspace for a call with these logits and so many edits.
int64_t greedy_step_workspace(const TensorView& logits, int64_t n_edits);

// Throws std::invalid_argument before touching memory. `stream` is the caller's CUDA stream.
void greedy_step(const GreedyStepParams& p, void* stream);

}  // namespace pegasus
