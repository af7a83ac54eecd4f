// extend_beams: see pegasus_batch/kernels/reference_state.py for what it computes. CUDA only.
#pragma once
#include "tensor.h"

namespace pegasus {

// Carries the choice of a beam step into the state of the documents that are active.
//
// Indices of active documents are the caller's to answer for; those of others are never used.
struct ExtendBeamsParams {
  TensorView scores;         // [S, K] float32; the outputs of beam_step
  TensorView parents;        // [S, K] int32
  TensorView tokens;         // [S, K] int32
  TensorView pool_scores;    // [S, K] float32
  TensorView pool_finished;  // [S, K] bool
  TensorView pool_source;    // [S, K] int32
  TensorView pool_tokens;    // [S, K] int32
  TensorView open;           // [S] bool
  TensorView done;           // [S] bool

  TensorView active;              // [S] bool; from here on changed in place
  TensorView lengths;             // [S] int32
  TensorView kept_scores;         // [S, K] float32
  TensorView kept_pool_scores;    // [S, K] float32
  TensorView kept_pool_finished;  // [S, K] bool
  TensorView kept_open;           // [S] bool
  TensorView sequences;           // [S, K, L] int32
  TensorView pool_sequences;      // [S, K, L] int32, other memory than sequences
  TensorView pool_lengths;        // [S, K] int32
  TensorView next_tokens;         // [S*K] int32
  TensorView ancestry;            // [S*K, T] int32
  TensorView n_keys;              // [S*K] int32, the same for all beams of a document
  TensorView source_length;       // [S] int32
};

// Throws std::invalid_argument before touching memory. `stream` is the caller's CUDA stream.
void extend_beams(const ExtendBeamsParams& p, void* stream);

}  // namespace pegasus
