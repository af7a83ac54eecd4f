// What the CUDA kernel of plan_edits takes, in plain C++: no CUDA header is needed to call it.
#pragma once
#include <cstdint>

namespace pegasus::cuda {

// Every pointer is to device memory.
struct PlanEditsTask {
  const int32_t* sequences;                               // [R, L]
  const int32_t* lengths;                                 // [S]
  const int32_t *phase_begin, *phase_token, *phase_kind;  // [L+2], [P], [P]
  const float* phase_value;                               // [P]
  const int32_t* phase_forced;                            // [L+1]
  int32_t *begin, *end, *forced;                          // [R]
  int32_t *token, *kind;                                  // [R, stretch]
  float* value;                                           // [R, stretch]
  int n_rows, n_beams;                                    // R = S * K, K
  int64_t columns;                                        // L
  int stretch, ngram_size;                                // ngram_size 0: none is banned
  bool penalizes;
  float repetition_penalty;
};

// The longest history that a row's share of shared memory holds.
constexpr int64_t kMaxPlannedColumns = 8192;

// Launches on the caller's stream of that device; throws std::runtime_error if the launch fails. Reads no device memory
// from the host.
void plan_edits(const PlanEditsTask& task, int device, void* stream);

}  // namespace pegasus::cuda
