// What the CUDA kernels of beam_step take, in plain C++: no CUDA header is needed to call them.
#pragma once
#include "cuda/row_scan.h"

namespace pegasus::cuda {

// More would not fit a block's shared memory.
constexpr int64_t kMaxCandidates = 1024, kMaxSharedKeys = 3072;

// Every pointer is to device memory. B documents of K beams each, E end-of-sequence ids.
struct BeamStepTask {
  RowScan scan;
  const float *scores, *pool_scores;  // [B, K]
  const bool *pool_finished, *open;   // [B, K], [B]
  const int32_t *n_new, *max_new;     // [B]
  const int32_t* eos_ids;             // [E]
  int64_t n_documents;
  int n_beams, n_eos, n_candidates;  // max(2, 1 + E) * K of these
  double length_penalty;
  int early_stopping;  // 0, 1 or 2 ("never")
  bool renormalize;

  float* out_scores;                           // [B, K]
  int32_t *out_parents, *out_tokens;           // [B, K]
  float* out_pool_scores;                      // [B, K]
  bool* out_pool_finished;                     // [B, K]
  int32_t *out_pool_source, *out_pool_tokens;  // [B, K]
  bool *out_open, *out_done;                   // [B]
  uint64_t* keys;                              // [R, chunks]; null where they fit shared memory
};

// As row_scan_workspace, for the whole step.
inline int64_t beam_step_workspace(BeamStepTask* task, void* memory) {
  const int64_t before = row_scan_workspace(&task->scan, memory), keys = task->n_beams * task->scan.n_chunks;
  if (keys <= kMaxSharedKeys) return before;
  if (memory) task->keys = reinterpret_cast<uint64_t*>(static_cast<char*>(memory) + before);
  return before + task->n_documents * keys * static_cast<int64_t>(sizeof(uint64_t));
}

// Launches on the caller's stream of that device; throws std::runtime_error if a launch fails. Reads no device memory
// from the host, so the caller answers for the ranges of edits and of token ids.
void beam_step(const BeamStepTask& task, int device, void* stream);

}  // namespace pegasus::cuda
