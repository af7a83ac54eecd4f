// What beam_step and greedy_step share on CUDA: rows of logits with their edits, and what one pass over them finds.
// Plain C++: no CUDA header is needed.
#pragma once
#include <cstdint>

namespace pegasus::cuda {

enum class LogitType { kFloat32, kBFloat16, kFloat16 };

constexpr int kChunk = 1024;  // logits that a warp summarises together

// The maximum of a chunk and its sum of e^(x - maximum): of all its logits, and without the tokens that edits touch.
// NaN counts as -inf; a sum beside an infinite maximum is 0.
struct alignas(16) ChunkStats {
  float max, sum, rest_max, rest_sum;
};

// One edit, beside the logit that it starts from.
struct alignas(16) Touch {
  int32_t token, kind;
  float value, logit;
};

// Every pointer is to device memory. R rows, V tokens, and so ceil(V / kChunk) chunks.
struct RowScan {
  const void* logits;  // [R, V]
  LogitType type;
  bool aligned;    // rows start at multiples of 16 bytes
  int64_t stride;  // elements between rows
  int64_t n_rows, vocabulary, n_chunks;
  const int32_t *edit_begin, *edit_end;   // [R]
  const int32_t *edit_token, *edit_kind;  // [n_edits]
  const float* edit_value;                // [n_edits]
  int64_t n_edits;
  const int32_t* forced;  // [R]
  bool wants_rest_sum;

  ChunkStats* stats;  // [R, chunks]; nothing is written for forced rows
  Touch* touches;     // [n_edits]: each row's edits by (token, position)
};

// Cuts memory aligned to 16 bytes (null: sizes alone) into the pass's arrays, and returns the bytes that they need.
inline int64_t row_scan_workspace(RowScan* task, void* memory) {
  const int64_t stats = task->n_rows * task->n_chunks * static_cast<int64_t>(sizeof(ChunkStats));
  if (memory) {
    task->stats = static_cast<ChunkStats*>(memory);
    task->touches = reinterpret_cast<Touch*>(static_cast<char*>(memory) + stats);
  }
  return stats + task->n_edits * static_cast<int64_t>(sizeof(Touch));
}

}  // namespace pegasus::cuda
