// What the per-ISA sources export. Plain structs and pointers only: these files see no standard library.
#pragma once
#include <cstdint>

namespace pegasus::cpu {

constexpr int kMaxHeadSize = 256;  // a head's tiles live on the stack
constexpr int kPanel = 16;         // keys that are packed together
constexpr int kChunk = 1024;       // logits per chunk of beam_step: 4 KiB of floats, at home in L1

// Rows of a document attend to its keys, which lie as pack_panels writes them.
struct AttentionTask {
  bool bf16;                      // else float32; query, keys, values and out alike
  bool codes;                     // with bf16: keys and values are codes
  const void* query;              // [rows, H, D]
  const void* key_panels;         // [panels, H, kPanel * D']
  const void* value_panels;       // [panels, H, kPanel * D']
  void* out;                      // [rows, H, D], contiguous
  int64_t query_stride;           // elements between rows
  const int32_t* query_begin;     // [B+1]
  const int32_t* panel_begin;     // [B]
  const int32_t* n_keys;          // [B]
  int64_t n_documents, max_rows;  // max_rows: the most query rows of any document
  int64_t n_heads, head_size;
  float scale;
};

// Every row writes its newest key and value to the cache, at its time n_keys - 1; then every row attends to its own
// past: its key of time t lies in slot ancestry[row, t].
struct CachedAttentionTask {
  bool bf16;                                       // else float32; all tensors alike
  const void *query, *key, *value;                 // [rows, H, D]
  void *key_cache, *value_cache;                   // [slots, T, H, D]
  void* out;                                       // [rows, H, D], contiguous
  int64_t query_stride, key_stride, value_stride;  // elements between rows
  int64_t key_slot_stride, value_slot_stride, key_time_stride, value_time_stride;
  const int32_t* ancestry;  // [rows, T]
  int64_t ancestry_stride;
  const int32_t* n_keys;  // [rows]
  int64_t n_rows, n_heads, head_size;
  float scale;
};

// Lays the keys and values of documents out for reading many times. A document takes ceil(n_keys / kPanel) panels of
// every head, all of one head together; a panel of keys is transposed [D'][kPanel], one of values [kPanel][D'], D' = D
// rounded up to kPanel; both may pair elements as this instruction set likes. What is padding is zero. As codes,
// elements are bytes, and a panel has kPanel of them more, for the scale that its elements share.
struct PackTask {
  bool bf16;                         // else float32
  bool codes;                        // with bf16: what is written
  const void* key;                   // [keys, H, D]
  const void* value;                 // [keys, H, D]
  int64_t key_stride, value_stride;  // elements between rows
  void* key_panels;                  // [panels, H, kPanel * D']
  void* value_panels;                // [panels, H, kPanel * D']
  const int32_t* key_begin;          // [B]
  const int32_t* n_keys;             // [B]
  const int32_t* panel_begin;        // [B]
  int64_t n_documents, max_keys;     // max_keys: the most of any document
  int64_t n_heads, head_size;
};

// Codes of a row: round(x * 127 / largest), so -127..127; 0 throughout where nothing is worth a code.
constexpr float kLargestCode = 127.0f;
constexpr float kSmallestScaled = 0x1p-100f;  // 127 over less might overflow

// Weights as reference.pack_weights lays them out: [panels][words][kOutputPanel], a word of 4 bytes the weights of one
// output for one input in float32, two in bfloat16, four as codes, kCodeOffset more than they are.
constexpr int kOutputPanel = 64;
constexpr int kCodesPerWord = 4;
constexpr int kCodeOffset = 128;
constexpr int64_t kMostCodes = 65536;  // of a row: 255 * 127 * inputs must stay below 2^31

enum class WeightType { kFloat32, kBFloat16, kCodes };

struct LinearTask {
  WeightType type;
  bool bf16_states;    // else float32; of the weights' type unless these are codes
  const void* states;  // [rows, inputs]
  int64_t row_stride;
  const float *norm_weight, *norm_bias;  // [inputs] of a layer norm before the layer, or null
  float norm_eps;
  const void* weights;
  const float* weight_scales;  // [outputs], of codes
  const float* bias;           // [outputs]
  const void* residual;        // [rows, outputs] or null
  void* out;                   // [rows, outputs]
  bool bf16_out;               // residual and out; else float32
  bool relu;                   // before the residual
  int64_t rows, inputs, outputs;
  void* normed;  // [rows, inputs] scratch of the weights' type, for rows that are normalised, unless weights are codes
  // Scratch, if weights are codes: the rows' codes, their scale (NaN for a row that is not finite), and what sums of
  // products start from.
  int8_t* codes;    // [rows, words * kCodesPerWord]
  float* scales;    // [rows]
  int32_t* starts;  // [rows]
};

struct ChunkStats {
  float max;      // -inf if nothing is left
  float sum_exp;  // sum of e^(x - max)
};

// Function table of one instruction set.
struct Kernels {
  void (*attention)(const AttentionTask& task);
  void (*cached_attention)(const CachedAttentionTask& task);
  void (*pack_panels)(const PackTask& task);
  // Statistics of n <= kChunk logits without those at the positions in skip. NaN counts as -inf.
  ChunkStats (*scan_chunk)(const void* logits, bool bf16, int64_t n, const int32_t* skip, int64_t n_skip);
  // Writes the positions of the logits >= bound, ascending, and returns their number. NaN counts as -inf.
  int (*find_at_least)(const void* logits, bool bf16, int64_t n, float bound, int16_t* positions);
  void (*linear)(const LinearTask& task);
};

#define PEGASUS_DECLARE_ISA(isa)                                                                        \
  namespace isa {                                                                                       \
  void attention(const AttentionTask& task);                                                            \
  void cached_attention(const CachedAttentionTask& task);                                               \
  void pack_panels(const PackTask& task);                                                               \
  ChunkStats scan_chunk(const void* logits, bool bf16, int64_t n, const int32_t* skip, int64_t n_skip); \
  int find_at_least(const void* logits, bool bf16, int64_t n, float bound, int16_t* positions);         \
  void linear(const LinearTask& task);                                                                  \
  }
PEGASUS_DECLARE_ISA(baseline)
PEGASUS_DECLARE_ISA(avx2)
PEGASUS_DECLARE_ISA(avx512)
PEGASUS_DECLARE_ISA(avx512vnni)
PEGASUS_DECLARE_ISA(avx512bf16)
#undef PEGASUS_DECLARE_ISA

}  // namespace pegasus::cpu
