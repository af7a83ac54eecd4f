// Keys and values in the form in which attention multiplies them, compiled once per instruction set: keys transposed,
// [D][keys] of a tile at a time, and values as rows [D]. Where the processor multiplies pairs of bfloat16, both lie in
// lanes of 32 bits: two elements of a key, or the same element of two values.
#pragma once
#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace pegasus::cpu::PEGASUS_ISA {
namespace {

inline int64_t minimum(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t round_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

// One link of the chain that an element of a product is.
struct MultiplyAdd {
  static Vec::R step(Vec::R a, Vec::R b, Vec::R c) { return Vec::fma(a, b, c); }
};

// How the scores' product takes its operands: a chain of depth(D) links, each from one element of query and key. Packed
// is what keys are packed as: what they are, or lanes of 32 bits, which a product takes as they are.
template <typename T>
struct ScoreForm {
  using Chain = MultiplyAdd;
  using Packed = T;
  static int64_t depth(int64_t head_size) { return head_size; }
  // A register of links from the given one on; zeros after the last.
  static Vec::R load(const T* row, int64_t link, int64_t head_size) {
    return load_partial(row + link, head_size - link, 0.0f);
  }
};

// How the second product takes its operands: kKeys weights, and values, a link.
template <typename T>
struct ValueForm {
  using Chain = MultiplyAdd;
  using Packed = T;
  static constexpr int kKeys = 1;
};

#if defined(__AVX512BF16__)
// The products of bfloat16 are exact in float32, so scores need no conversion and take two products a link. So does the
// second product, whose weights, at most 1, are rounded to bfloat16 as the result will be.
struct PairMultiplyAdd {
  static Vec::R step(Vec::R a, Vec::R b, Vec::R c) { return Vec::dot_pairs(a, b, c); }
};

template <>
struct ScoreForm<Bf16> {
  using Chain = PairMultiplyAdd;
  using Packed = float;  // two bfloat16
  static int64_t depth(int64_t head_size) { return (head_size + 1) / 2; }
  static Vec::R load(const Bf16* row, int64_t link, int64_t head_size) {
    return Vec::load_pairs(reinterpret_cast<const uint16_t*>(row + 2 * link), head_size - 2 * link);
  }
};

template <>
struct ValueForm<Bf16> {
  using Chain = PairMultiplyAdd;
  using Packed = float;  // of two keys
  static constexpr int kKeys = 2;
};
#endif

// Keys that are transposed together, and that attention goes through at a time: one stretch of memory. The last tile of
// a document has as many panels as are left.
constexpr int kTile = 4 * kPanel;

// Elements of a packed key or value, and of the panel of kPanel of them.
inline int64_t padded_size(int64_t head_size) {
  return round_up(head_size, kPanel);
}
inline int64_t panel_size(int64_t head_size) {
  return padded_size(head_size) * kPanel;
}
// As codes, a tile has the bytes of all its panels first, in the order of the elements, and then each panel's end.
inline int64_t code_panel_size(int64_t head_size) {
  return panel_size(head_size) + kPanel;
}
// Where a head of a document begins: its panels, so large each, lie one after the other, and so do the heads.
inline int64_t head_begin(int64_t first_panel, int64_t panels, int64_t n_heads, int64_t head, int64_t size) {
  return (first_panel * n_heads + head * panels) * size;
}

}  // namespace
}  // namespace pegasus::cpu::PEGASUS_ISA
