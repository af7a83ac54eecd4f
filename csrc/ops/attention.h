// attention, cached_attention, pack_source and source_attention: see pegasus_batch/kernels/reference.py for what they
// compute.
#pragma once
#include "tensor.h"

namespace pegasus {

// Attends the query rows of each document to that document's keys: the encoder's packed rows, or the K beams of a
// document to one copy of its encoder states.
//
// Keeps a running reference and denominator per row, so no [rows, keys] matrix exists. A document without keys yields
// zeros, not NaN. Rows of query, key and value may be strided; heads and D are dense.
struct AttentionParams {
  TensorView query;        // [Nq, H, D] float32 | bfloat16, and on CUDA float16
  TensorView key;          // [Nk, H, D]
  TensorView value;        // [Nk, H, D]
  TensorView query_begin;  // [B+1] int32: document b owns query rows query_begin[b] : query_begin[b+1]
  TensorView key_begin;    // [B] int32
  TensorView n_keys;       // [B] int32: its keys are rows key_begin[b] : key_begin[b] + n_keys[b]
  TensorView out;          // [Nq, H, D], contiguous, written in full
  double scale;
};

// Writes every decoder row's newest key and value to the cache, at time t = n_keys[r] - 1 of slot ancestry[r, t], then
// attends the row to its own past: its key at time t is key_cache[ancestry[r, t], t]. With T = 1 a slot holds one
// token, of any time: the key is key_cache[ancestry[r, t], 0].
struct CachedAttentionParams {
  TensorView query;        // [R, H, D] float32 | bfloat16, and on CUDA float16
  TensorView key;          // [R, H, D]
  TensorView value;        // [R, H, D]
  TensorView key_cache;    // [slots, T, H, D]
  TensorView value_cache;  // [slots, T, H, D]
  TensorView query_begin;  // [B+1] int32: the rows of a document, whose ancestries name slots that are its alone
  TensorView ancestry;     // [R, T'] int32, read at t < n_keys[r] only
  TensorView n_keys;       // [R] int32
  TensorView out;          // [R, H, D], contiguous, written in full
  double scale;
};

// Lays the keys and values of documents out in panels of cpu::kPanel, for source_attention.
struct PackSourceParams {
  TensorView key;           // [Nk, H, D] float32 | bfloat16, and on CUDA float16
  TensorView value;         // [Nk, H, D]
  TensorView key_begin;     // [B] int32
  TensorView n_keys;        // [B] int32: document b's keys are rows key_begin[b] : key_begin[b] + n_keys[b]
  TensorView panel_begin;   // [B] int32: and go to the ceil(n_keys[b] / kPanel) panels from here on
  TensorView key_panels;    // [P, H, kPanel * D'], D' = D rounded up to kPanel; or, on the CPU for bfloat16, uint8
  TensorView value_panels;  // [P, H, kPanel * (D' + 1)]: codes of 8 bits, of which a panel shares a scale
};

// As attention, with keys and values that lie in panels.
struct SourceAttentionParams {
  TensorView query;       // [Nq, H, D] float32 | bfloat16, and on CUDA float16
  TensorView key_panels;  // as in PackSourceParams
  TensorView value_panels;
  TensorView query_begin;  // [B+1] int32
  TensorView panel_begin;  // [B] int32
  TensorView n_keys;       // [B] int32
  TensorView out;          // [Nq, H, D], contiguous, written in full
  TensorView workspace;    // [source_workspace(query, key_panels, n_keys)] uint8; unread if that is 0
  double scale;
};

// All throw std::invalid_argument before touching memory. `stream` is the caller's CUDA stream, null on the CPU.
void attention(const AttentionParams& p, void* stream);
void cached_attention(const CachedAttentionParams& p, void* stream);
void pack_source(const PackSourceParams& p, void* stream);
void source_attention(const SourceAttentionParams& p, void* stream);

// Bytes of workspace that source_attention needs for such tensors: on CUDA, where few long documents are shared out.
int64_t source_workspace(const TensorView& query, const TensorView& key_panels, const TensorView& n_keys);

}  // namespace pegasus
