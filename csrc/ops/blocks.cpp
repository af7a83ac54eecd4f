#include "ops/blocks.h"

#include <memory>

namespace pegasus {
namespace {

constexpr int64_t kLine = 64;  // bytes

// A tensor of our own, as long as the call.
class Scratch {
 public:
  Scratch(const char* name, const TensorView& like, DType dtype, int64_t rows, int64_t columns) {
    const int bits = dtype == DType::kUInt8 ? 8 : dtype == DType::kBFloat16 ? 16 : 32;
    memory_.reset(new char[rows * columns * bits / 8 + kLine]);
    char* begin = memory_.get() + kLine - reinterpret_cast<uintptr_t>(memory_.get()) % kLine;
    view = {name, begin, dtype, bits, like.device, like.device_id, 2, {rows, columns}, {columns, 1}};
  }
  TensorView view;

 private:
  std::unique_ptr<char[]> memory_;
};

DType inner_type(const Layer& layer) {
  return layer.weights.dtype == DType::kUInt8 ? DType::kBFloat16 : layer.weights.dtype;
}

// Part `part` of `parts` of the columns of x [N, parts * H * D], as [N, H, D].
TensorView heads_of(const char* name, const TensorView& x, int64_t part, int64_t parts, int64_t heads) {
  const int64_t width = x.shape[1] / parts;
  TensorView view = x;
  view.name = name;
  view.data = static_cast<char*>(x.data) + part * width * x.bits / 8;
  view.ndim = 3;
  view.shape[1] = heads;
  view.shape[2] = width / heads;
  view.strides[1] = width / heads;
  view.strides[2] = 1;
  return view;
}

void project(LinearParams p, const Layer& layer) {
  p.weights = layer.weights;
  p.weight_scales = layer.weight_scales;
  p.has_scales = layer.has_scales;
  p.bias = layer.bias;
  const int64_t bytes = linear_workspace(p.states, p.weights, p.has_norm);
  const Scratch workspace("workspace", p.states, DType::kUInt8, 1, bytes);
  p.workspace = workspace.view;
  p.workspace.ndim = 1;
  p.workspace.shape[0] = bytes;
  p.workspace.strides[0] = 1;
  linear(p);
}

// What the first layer makes of the states.
Scratch enter(const Block& block, bool relu = false) {
  const char* op = "block";
  expect(op, block.states, {DType::kFloat32, DType::kBFloat16}, {kAny, kAny});
  expect_contiguous(op, block.enter.bias, {DType::kFloat32}, {kAny});
  Scratch result("inner", block.states, inner_type(block.enter), block.states.shape[0], block.enter.bias.shape[0]);
  LinearParams p{};
  p.states = block.states;
  p.norm_weight = block.norm_weight;
  p.norm_bias = block.norm_bias;
  p.norm_eps = block.norm_eps;
  p.has_norm = block.has_norm;
  p.relu = relu;
  p.out = result.view;
  project(p, block.enter);
  return result;
}

void leave(const Block& block, const TensorView& inner) {
  LinearParams p{};
  p.states = inner;
  p.residual = block.states;
  p.has_residual = true;
  p.out = block.out;
  project(p, block.leave);
}

// Runs attend(query, key, value, out) between the two layers; the first one makes `parts` of these.
template <typename Attend>
void attend_between(const Block& block, int64_t parts, int64_t heads, Attend attend) {
  const char* op = "block";
  const Scratch fused = enter(block);
  const int64_t width = fused.view.shape[1];
  if (heads < 1 || width % (parts * heads) != 0) {
    fail(op, "the first layer's " + std::to_string(width) + " outputs are not " + std::to_string(parts) +
                 " times as many heads as " + std::to_string(heads));
  }
  const Scratch attended("attended", fused.view, fused.view.dtype, fused.view.shape[0], width / parts);
  const TensorView out = heads_of("out", attended.view, 0, 1, heads);
  attend([&](const char* name, int64_t part) { return heads_of(name, fused.view, part, parts, heads); }, out);
  leave(block, attended.view);
}

// Attention of rows to keys and values that the first layer makes, too.
template <typename Params>
void attend_own(const Block& block, Params& params, int64_t heads, void (*op)(const Params&, void*)) {
  attend_between(block, 3, heads, [&](auto part, const TensorView& out) {
    params.query = part("query", 0);
    params.key = part("key", 1);
    params.value = part("value", 2);
    params.out = out;
    op(params, nullptr);
  });
}

}  // namespace

void attention_block(const Block& block, AttentionParams attention, int64_t heads) {
  attend_own(block, attention, heads, &pegasus::attention);
}

void cached_attention_block(const Block& block, CachedAttentionParams attention, int64_t heads) {
  attend_own(block, attention, heads, &cached_attention);
}

void source_attention_block(const Block& block, SourceAttentionParams attention, int64_t heads) {
  attend_between(block, 1, heads, [&](auto part, const TensorView& out) {
    attention.query = part("query", 0);
    attention.out = out;
    source_attention(attention, nullptr);
  });
}

void feed_forward_block(const Block& block) {
  const Scratch inner = enter(block, true);
  leave(block, inner.view);
}

}  // namespace pegasus
