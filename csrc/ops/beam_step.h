// beam_step: see pegasus_batch/kernels/reference.py for what it computes.
#pragma once
#include "ops/edited_logits.h"

namespace pegasus {

// One step of beam search for every document on its own. R = B * K rows; E end-of-sequence ids.
struct BeamStepParams {
  EditedLogits rows;         // row b * K + k is beam k of document b
  TensorView scores;         // [B, K] float32
  TensorView pool_scores;    // [B, K] float32
  TensorView pool_finished;  // [B, K] bool
  TensorView open;           // [B] bool
  TensorView n_new;          // [B] int32, at least 1
  TensorView max_new;        // [B] int32
  TensorView eos_ids;        // [E] int32
  double length_penalty;
  int early_stopping;
  bool renormalize;

  TensorView out_scores;         // [B, K] float32
  TensorView out_parents;        // [B, K] int32
  TensorView out_tokens;         // [B, K] int32
  TensorView out_pool_scores;    // [B, K] float32
  TensorView out_pool_finished;  // [B, K] bool
  TensorView out_pool_source;    // [B, K] int32
  TensorView out_pool_tokens;    // [B, K] int32
  TensorView out_open;           // [B] bool
  TensorView out_done;           // [B] bool
  TensorView workspace;          // [beam_step_workspace(...)] uint8
};

// Bytes of workspace for a call with these logits and so many beams, edits and end-of-sequence ids.
int64_t beam_step_workspace(const TensorView& logits, int64_t beams, int64_t edits, int64_t eos_ids);

// Throws std::invalid_argument before touching memory. `stream` is the caller's CUDA stream, null on the CPU.
void beam_step(const BeamStepParams& p, void* stream);

}  // namespace pegasus
