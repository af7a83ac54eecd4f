// What the CUDA attention kernel takes, in plain C++: no CUDA header is needed to call it.
#pragma once
#include <cstdint>

namespace pegasus::cuda {

constexpr int kHeadSize = 64;

// bfloat16 throughout, as raw bits; every pointer is to device memory.
struct AttentionTask {
  const uint16_t* query;                           // [rows, H, 64]
  const uint16_t* key;                             // [keys, H, 64], or [slots, T, H, 64] with an ancestry
  const uint16_t* value;                           // as key
  uint16_t* out;                                   // [rows, H, 64], contiguous
  int64_t query_stride, key_stride, value_stride;  // elements between rows (between times, with an ancestry)
  const int32_t* query_begin;                      // [B+1]; null: document b is row b alone
  const int32_t* key_begin;                        // [B]; null with an ancestry
  const int32_t* n_keys;                           // [B]
  const int32_t* ancestry;                         // [B, T] or null
  int64_t ancestry_stride, key_slot_stride, value_slot_stride;
  int64_t n_documents, n_heads;
  float scale;
};

// Launches on the caller's stream of that device; throws std::runtime_error if the launch fails. Reads no device memory
// from the host, so the caller answers for index ranges and for every row belonging to a document.
void attention(const AttentionTask& task, int device, void* stream);

}  // namespace pegasus::cuda
