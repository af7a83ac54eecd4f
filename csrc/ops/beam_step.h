// beam_step: see pegasus_batch/kernels/reference.py for what it computes.
#pragma once
#include "tensor.h"

namespace pegasus {

// One step of beam search for every document on its own. R = B * K rows; E end-of-sequence ids.
struct BeamStepParams {
  TensorView logits;         // [R, V] float32 | bfloat16, rows may be strided
  TensorView scores;         // [B, K] float32
  TensorView pool_scores;    // [B, K] float32
  TensorView pool_finished;  // [B, K] bool
  TensorView open;           // [B] bool
  TensorView edit_begin;     // [R] int32
  TensorView edit_end;  // [R] int32: row r owns edits edit_begin[r] : edit_end[r]; ranges ascend, gaps may lie between
  TensorView edit_token;  // [n_edits] int32
  TensorView edit_kind;   // [n_edits] int32
  TensorView edit_value;  // [n_edits] float32
  TensorView forced;      // [R] int32, -1 for none
  TensorView n_new;       // [B] int32, at least 1
  TensorView max_new;     // [B] int32
  TensorView eos_ids;     // [E] int32
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

// Bytes of workspace for a call of these sizes.
int64_t beam_step_workspace(int64_t documents, int64_t beams, int64_t vocabulary, int64_t edits, int64_t eos_ids);

// Throws std::invalid_argument before touching memory.
void beam_step(const BeamStepParams& p);

}  // namespace pegasus
