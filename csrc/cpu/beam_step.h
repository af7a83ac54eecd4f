// beam_step on the CPU: candidates of a document and its pool of finished hypotheses. Compiled once; the two loops that
// touch every logit are in beam_chunks.cpp.
#pragma once
#include <cstddef>
#include <cstdint>

#include "edit_kind.h"

namespace pegasus::cpu {

// Everything that one step reads and writes. R = B * K rows.
struct BeamTask {
  const void* logits;  // [R, V]
  bool bf16;           // else float32
  int64_t logits_stride;
  const float *scores, *pool_scores;      // [B, K]
  const bool *pool_finished, *open;       // [B, K], [B]
  const int32_t *edit_begin, *edit_end;   // [R]
  const int32_t *edit_token, *edit_kind;  // [n_edits]
  const float* edit_value;                // [n_edits]
  const int32_t* forced;                  // [R]
  const int32_t *n_new, *max_new;         // [B]
  const int32_t* eos_ids;                 // [E]
  int64_t n_documents, n_beams, vocabulary, n_edits, n_eos;
  double length_penalty;
  int early_stopping;  // 0, 1 or 2 ("never")
  bool renormalize;

  float* out_scores;                           // [B, K]
  int32_t *out_parents, *out_tokens;           // [B, K]
  float* out_pool_scores;                      // [B, K]
  bool* out_pool_finished;                     // [B, K]
  int32_t *out_pool_source, *out_pool_tokens;  // [B, K]
  bool *out_open, *out_done;                   // [B]
  void* workspace;

  int64_t rows() const { return n_documents * n_beams; }
  int64_t candidates() const { return (n_eos < 1 ? 2 : 1 + n_eos) * n_beams; }
};

// Bytes that beam_step needs at task.workspace, aligned to 64; sizes alone decide.
size_t beam_step_workspace(const BeamTask& task);
void beam_step(const BeamTask& task);

}  // namespace pegasus::cpu
