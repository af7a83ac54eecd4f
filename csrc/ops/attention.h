// attention, cached_attention, pack_source and source_attention: see pegasus_batch/kernels/reference.py for what they
// compute.
#pragma once
#include "tensor.h"

namespace pegasus {

// Attends the query rows of each document to that document's keys: the encoder's packed rows, or the K beams of a
// document to one copy of its encoder states.
//
// Keeps a running maximum and denominator per row, so no [rows, keys] matrix exists. A document without keys yields
// zeros, not NaN. Rows of query, key and value may be strided; heads and D are dense.
struct AttentionParams {
  TensorView query;        // [Nq, H, D] float32 | bfloat16
  TensorView key;          // [Nk, H, D]
  TensorView value;        // [Nk, H, D]
  TensorView query_begin;  // [B+1] int32: document b owns query rows query_begin[b] : query_begin[b+1]
  TensorView key_begin;    // [B] int32
  TensorView n_keys;       // [B] int32: its keys are rows key_begin[b] : key_begin[b] + n_keys[b]
  TensorView out;          // [Nq, H, D], contiguous, written in full
  double scale;
};

// Attends each decoder row to its own past: its key at time t is key_cache[ancestry[r, t], t].
struct CachedAttentionParams {
  TensorView query;        // [R, H, D] float32 | bfloat16
  TensorView key_cache;    // [slots, T, H, D]
  TensorView value_cache;  // [slots, T, H, D]
  TensorView ancestry;     // [R, T'] int32, read at t < n_keys[r] only
  TensorView n_keys;       // [R] int32
  TensorView out;          // [R, H, D], contiguous, written in full
  double scale;
};

// Lays the keys and values of documents out in panels of cpu::kPanel, for source_attention. On the CPU only.
struct PackSourceParams {
  TensorView key;           // [Nk, H, D] float32 | bfloat16
  TensorView value;         // [Nk, H, D]
  TensorView key_begin;     // [B] int32
  TensorView n_keys;        // [B] int32: document b's keys are rows key_begin[b] : key_begin[b] + n_keys[b]
  TensorView panel_begin;   // [B] int32: and go to the ceil(n_keys[b] / kPanel) panels from here on
  TensorView key_panels;    // [P, H, kPanel * D'], D' = D rounded up to kPanel
  TensorView value_panels;  // [P, H, kPanel * D']
};

// As attention, with keys and values that lie in panels. On the CPU only.
struct SourceAttentionParams {
  TensorView query;         // [Nq, H, D] float32 | bfloat16
  TensorView key_panels;    // [P, H, kPanel * D']
  TensorView value_panels;  // [P, H, kPanel * D']
  TensorView query_begin;   // [B+1] int32
  TensorView panel_begin;   // [B] int32
  TensorView n_keys;        // [B] int32
  TensorView out;           // [Nq, H, D], contiguous, written in full
  double scale;
};

// All throw std::invalid_argument before touching memory. `stream` is the caller's CUDA stream, null on the CPU.
void attention(const AttentionParams& p, void* stream);
void cached_attention(const CachedAttentionParams& p, void* stream);
void pack_source(const PackSourceParams& p);
void source_attention(const SourceAttentionParams& p);

}  // namespace pegasus
