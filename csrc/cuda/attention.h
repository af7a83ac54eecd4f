// What the CUDA attention kernels take, in plain C++: no CUDA header is needed to call them.
//
// Every pointer is to device memory, which the host never reads: the caller answers for index ranges, and for every
// query row belonging to a document.
#pragma once
#include <cstdint>

namespace pegasus::cuda {

constexpr int kMaxHeadSize = 256;   // a row's share of a lane lies in registers
constexpr int kTileHeadSize = 64;   // of the 16-bit types on the tensor cores
constexpr int kPanelKeys = 16;      // keys that pack_source lays out together
constexpr int kChunkKeys = 512;     // keys whose partial result is merged into the document's, in order
constexpr int kMostChunks = 8;      // that blocks of their own may take
constexpr int kPartialRows = 16;    // of a partial result: of more rows, one block takes all chunks
constexpr int kPartialFloats = 72;  // of a row of a partial result: 64 sums, the maximum, the denominator, padding

enum class Element { kFloat32, kBFloat16, kFloat16 };

// One call of attention, source_attention (packed) or cached_attention (with an ancestry).
struct AttentionTask {
  Element element;                                 // of query, keys, values and out
  const void* query;                               // [rows, H, D]
  void* key;                                       // [keys, H, D], [panels, H, kPanelKeys * D'] or [slots, T, H, D]
  void* value;                                     // as key
  void* out;                                       // [rows, H, D], contiguous
  int64_t query_stride, key_stride, value_stride;  // elements between rows (between times, with an ancestry)
  const int32_t* query_begin;                      // [B+1]
  const int32_t* key_begin;                        // [B], rows or panels; null with an ancestry
  const int32_t* n_keys;                           // [B]; [rows] with an ancestry
  bool packed;
  float* partials;  // [B, n_chunks, H, kPartialRows, kPartialFloats], or null: then every document is one block's
  int64_t n_chunks;

  const int32_t* ancestry;   // [rows, T], or null
  const void* newest_key;    // [rows, H, D], written to the cache first
  const void* newest_value;  // as newest_key
  int64_t ancestry_stride, key_slot_stride, value_slot_stride, newest_key_stride, newest_value_stride;

  int64_t n_documents, n_rows, n_heads, head_size;
  float scale;
};

// One call of pack_source. Panels are rows of D' as they are, those of one head together.
struct PackTask {
  const void* key;                                               // [keys, H, D]
  const void* value;                                             // as key
  void* key_panels;                                              // [panels, H, kPanelKeys * D']
  void* value_panels;                                            // as key_panels
  int64_t key_stride, value_stride;                              // elements between rows
  const int32_t* key_begin;                                      // [B]
  const int32_t* n_keys;                                         // [B]
  const int32_t* panel_begin;                                    // [B]
  int64_t n_documents, n_rows, n_heads, head_size, padded_size;  // D and D'
  int element_size;                                              // in bytes
};

// Whether the tensor cores compute a task; its tensors must then begin and step at multiples of 16 bytes.
inline bool takes_tiles(Element element, int64_t head_size) {
  return element != Element::kFloat32 && head_size == kTileHeadSize;
}

// How many chunks of kChunkKeys go to blocks of their own; 1: none. Depends on sizes alone, and changes no bit of a
// result: long documents, too few to fill the device.
inline int64_t source_chunks(int64_t n_documents, int64_t n_heads, int64_t n_panels) {
  constexpr int64_t kBlocksThatFill = 264, kChunkPanels = kChunkKeys / kPanelKeys;
  if (n_documents * n_heads >= kBlocksThatFill || n_panels <= n_documents * kChunkPanels) return 1;
  const int64_t most = (n_panels + kChunkPanels - 1) / kChunkPanels;  // of any document
  return most < kMostChunks ? most : kMostChunks;
}

// All launch on the caller's stream of that device; they throw std::runtime_error if a launch fails.
void attention(const AttentionTask& task, int device, void* stream);
void cached_attention(const AttentionTask& task, int device, void* stream);
void pack_source(const PackTask& task, int device, void* stream);

}  // namespace pegasus::cuda
