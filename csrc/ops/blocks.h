// Blocks of the network in one call: a linear layer, attention and a linear layer that adds to the residual stream, or
// the feed-forward pair. Every result is that of the single ops, bit for bit; between two calls, Python finds its own
// code pushed out of the caches by the weights that went through, and takes as long as a small product. CPU only.
#pragma once
#include "ops/attention.h"
#include "ops/linear.h"
#include "tensor.h"

namespace pegasus {

// A linear layer; see LinearParams.
struct Layer {
  TensorView weights;
  TensorView weight_scales;  // present if has_scales
  TensorView bias;
  bool has_scales;
};

// Reads `states` [N, I], through a layer norm if has_norm, and writes `out` [N, I]: states plus what the block makes of
// them. What passes between its layers has the first one's type: that of its weights, bfloat16 if these are codes.
struct Block {
  TensorView states;
  TensorView norm_weight, norm_bias;
  double norm_eps;
  bool has_norm;
  Layer enter, leave;
  TensorView out;
};

// The ops' other arguments as they take them; query, key, value and out are the block's.
void attention_block(const Block& block, AttentionParams attention, int64_t heads);
void cached_attention_block(const Block& block, CachedAttentionParams attention, int64_t heads);
void source_attention_block(const Block& block, SourceAttentionParams attention, int64_t heads);
void feed_forward_block(const Block& block);  // ReLU in between

}  // namespace pegasus
