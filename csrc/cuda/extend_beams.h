// What the CUDA kernel of extend_beams takes, in plain C++: no CUDA header is needed to call it.
#pragma once
#include <cstdint>

namespace pegasus::cuda {

// A thread holds one column of all beams in registers.
constexpr int64_t kMaxExtendedBeams = 32;

// Every pointer is to device memory.
struct ExtendBeamsTask {
  const float *scores, *pool_scores;                            // [S, K]
  const int32_t *parents, *tokens, *pool_source, *pool_tokens;  // [S, K]
  const bool *pool_finished, *open, *done;                      // [S, K], [S], [S]
  bool *active, *kept_pool_finished, *kept_open;                // [S], [S, K], [S]
  float *kept_scores, *kept_pool_scores;                        // [S, K]
  int32_t *lengths, *source_length;                             // [S]
  int32_t *sequences, *pool_sequences;                          // [S, K, L]
  int32_t *pool_lengths, *next_tokens, *n_keys;                 // [S, K]
  int32_t* ancestry;                                            // [S, K, T]
  int64_t n_documents, n_beams, columns, times;                 // S, K, L, T
};

// Launches on the caller's stream of that device; throws std::runtime_error if the launch fails. Reads no device memory
// from the host.
void extend_beams(const ExtendBeamsTask& task, int device, void* stream);

}  // namespace pegasus::cuda
