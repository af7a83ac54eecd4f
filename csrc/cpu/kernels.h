// What the per-ISA sources export. Plain structs and pointers only: these files see no standard library.
#pragma once
#include <cstdint>

namespace pegasus::cpu {

constexpr int kMaxHeadSize = 256;  // a head's tiles live on the stack
constexpr int kChunk = 1024;       // logits per chunk of beam_step: 4 KiB of floats, at home in L1

// One call of attention or cached_attention. Rows of one document attend to that document's keys.
struct AttentionTask {
  bool bf16;                                       // else float32; query, key, value and out alike
  const void* query;                               // [rows, H, D]
  const void* key;                                 // [keys, H, D], or [slots, T, H, D] with an ancestry
  const void* value;                               // as key
  void* out;                                       // [rows, H, D], contiguous
  int64_t query_stride, key_stride, value_stride;  // elements between rows (between times, with an ancestry)
  const int32_t* query_begin;                      // [B+1]; null: document b is row b alone
  const int32_t* key_begin;                        // [B]; null with an ancestry
  const int32_t* n_keys;                           // [B]
  const int32_t* ancestry;                         // [B, T] or null
  int64_t ancestry_stride, key_slot_stride, value_slot_stride;
  int64_t n_documents, max_rows;  // max_rows: the most query rows of any document
  int64_t n_heads, head_size;
  float scale;
};

struct ChunkStats {
  float max;      // -inf if nothing is left
  float sum_exp;  // sum of e^(x - max)
};

// Function table of one instruction set.
struct Kernels {
  void (*attention)(const AttentionTask& task);
  // Statistics of n <= kChunk logits without those at the positions in skip. NaN counts as -inf.
  ChunkStats (*scan_chunk)(const void* logits, bool bf16, int64_t n, const int32_t* skip, int64_t n_skip);
  // Writes the positions of the logits >= bound, ascending, and returns their number. NaN counts as -inf.
  int (*find_at_least)(const void* logits, bool bf16, int64_t n, float bound, int16_t* positions);
};

#define PEGASUS_DECLARE_ISA(isa)                                                                        \
  namespace isa {                                                                                       \
  void attention(const AttentionTask& task);                                                            \
  ChunkStats scan_chunk(const void* logits, bool bf16, int64_t n, const int32_t* skip, int64_t n_skip); \
  int find_at_least(const void* logits, bool bf16, int64_t n, float bound, int16_t* positions);         \
  }
PEGASUS_DECLARE_ISA(baseline)
PEGASUS_DECLARE_ISA(avx2)
PEGASUS_DECLARE_ISA(avx512)
PEGASUS_DECLARE_ISA(avx512bf16)
#undef PEGASUS_DECLARE_ISA

}  // namespace pegasus::cpu
