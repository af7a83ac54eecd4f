// Keys and values in the form in which attention multiplies them, compiled once per instruction set: panels of kPanel
// keys, transposed to [D][kPanel], and values as rows [D]. Where the processor multiplies pairs of bfloat16, both lie
// in lanes of 32 bits: two elements of a key, or the same element of two values.
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

// How the scores' product takes its operands: a chain of depth(D) links, each from one element of query and key. Lane
// is how packed keys are read: as what they are, or in a form of 32 bits.
template <typename T>
struct ScoreForm {
  using Chain = MultiplyAdd;
  using Lane = T;
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
  using Lane = T;
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
  using Lane = float;  // two bfloat16
  static int64_t depth(int64_t head_size) { return (head_size + 1) / 2; }
  static Vec::R load(const Bf16* row, int64_t link, int64_t head_size) {
    return Vec::load_pairs(reinterpret_cast<const uint16_t*>(row + 2 * link), head_size - 2 * link);
  }
};

template <>
struct ValueForm<Bf16> {
  using Chain = PairMultiplyAdd;
  using Lane = float;  // of two keys
  static constexpr int kKeys = 2;
};
#endif

// The right side of a product: [depth][columns] of which kPanel columns lie together, at `stride` from one row to the
// next, and the next kPanel columns `panel_stride` after them.
template <typename B>
struct Right {
  const B* base;
  int64_t stride, panel_stride;
  const B* column(int64_t j) const { return base + j / kPanel * panel_stride + j % kPanel; }
};

// One key, or one value, of the task: [D] elements of one head.
template <typename T>
struct KeyRows {
  const T* base;  // of the head; of the document's first key unless there is an ancestry
  int64_t stride, slot_stride;
  const int32_t* slots;  // null, or the cache slot of each time
  const T* operator[](int64_t t) const { return base + (slots ? slots[t] * slot_stride : 0) + t * stride; }
};

// Elements of a packed key or value, and of the panel of kPanel of them.
inline int64_t padded_size(int64_t head_size) {
  return round_up(head_size, kPanel);
}
inline int64_t panel_size(int64_t head_size) {
  return padded_size(head_size) * kPanel;
}
// The same of keys, in lanes of 32 bits.
template <typename T>
inline int64_t lanes_of_panel(int64_t head_size) {
  constexpr bool kPairs = !__is_same(typename ScoreForm<T>::Lane, T);
  return panel_size(head_size) / (kPairs ? 2 : 1);
}

// out[panel][link][key % kPanel] = link of keys[first + key], n keys; the padding up to a panel is zero.
template <typename T>
void transpose_keys(const KeyRows<T>& keys, int64_t first, int64_t n, int64_t head_size, float* out) {
  const int64_t lanes = lanes_of_panel<T>(head_size), links = lanes / kPanel;
  for (int64_t key = 0; key < round_up(n, kPanel); key += Vec::width) {
    float* panel = out + key / kPanel * lanes + key % kPanel;
    for (int64_t link = 0; link < links; link += Vec::width) {
      Vec::R block[Vec::width];
      for (int i = 0; i < Vec::width; ++i) {
        const bool inside = key + i < n && link < ScoreForm<T>::depth(head_size);
        block[i] = inside ? ScoreForm<T>::load(keys[first + key + i], link, head_size) : Vec::set1(0.0f);
      }
      Vec::transpose(block);
      for (int i = 0; i < minimum(Vec::width, links - link); ++i) Vec::store(panel + (link + i) * kPanel, block[i]);
    }
  }
}

// out[link][d] = the values of keys kKeys * link and on from the given one, n keys; zeros up to `padded`, and for the
// key that is missing from the last link.
template <typename T>
void copy_values(const KeyRows<T>& values, int64_t first, int64_t n, int64_t head_size, float* out) {
  const int64_t padded = padded_size(head_size);
  for (int64_t key = 0; key < n; key += ValueForm<T>::kKeys, out += padded) {
    const T* row = values[first + key];
    for (int64_t d = 0; d < padded; d += Vec::width) {
      Vec::R lanes = Vec::set1(0.0f);
      if (d < head_size) {
#if defined(__AVX512BF16__)
        if constexpr (ValueForm<T>::kKeys == 2) {
          static const uint16_t kNothing[kMaxHeadSize] = {};
          const auto* low = reinterpret_cast<const uint16_t*>(row);
          const auto* high = key + 1 < n ? reinterpret_cast<const uint16_t*>(values[first + key + 1]) : kNothing;
          lanes = Vec::interleave(low + d, high + d, head_size - d);
        } else
#endif
        {
          lanes = load_partial(row + d, head_size - d, 0.0f);
        }
      }
      Vec::store(out + d, lanes);
    }
  }
}

// One head of one document. Keys in lanes of 32 bits are stored as they are; others, and values, keep their type.
template <typename T>
void pack(const PackTask& task, int64_t document, int64_t head) {
  const int64_t size = task.head_size, padded = padded_size(size), n = task.n_keys[document];
  const int64_t panels = (n + kPanel - 1) / kPanel,
                at = (task.panel_begin[document] * task.n_heads + head * panels) * panel_size(size);
  const int64_t begin = task.key_begin[document];
  const KeyRows<T> keys{static_cast<const T*>(task.key) + begin * task.key_stride + head * size, task.key_stride, 0,
                        nullptr};
  const KeyRows<T> values{static_cast<const T*>(task.value) + begin * task.value_stride + head * size,
                          task.value_stride, 0, nullptr};
  T *out_keys = static_cast<T*>(task.key_panels) + at, *out_values = static_cast<T*>(task.value_panels) + at;
  for (int64_t panel = 0; panel < panels; ++panel, out_keys += panel_size(size)) {
    const int64_t first = panel * kPanel, here = minimum(kPanel, n - first);
    if constexpr (__is_same(typename ScoreForm<T>::Lane, float)) {
      transpose_keys(keys, first, here, size, reinterpret_cast<float*>(out_keys));
    } else {
      for (int64_t d = 0; d < padded; ++d) {
        for (int64_t key = 0; key < kPanel; ++key) {
          out_keys[d * kPanel + key] = d < size && key < here ? keys[first + key][d] : T{};
        }
      }
    }
  }
  if constexpr (ValueForm<T>::kKeys == 2) {
    const int64_t end = panels * kPanel * padded, used = (n + 1) / 2 * 2 * padded;
    copy_values(values, 0, n, size, reinterpret_cast<float*>(out_values));
    for (int64_t i = used; i < end; ++i) out_values[i] = T{};
  } else {
    for (int64_t i = 0; i < panels * kPanel; ++i) {
      for (int64_t d = 0; d < padded; ++d) out_values[i * padded + d] = i < n && d < size ? values[i][d] : T{};
    }
  }
}

}  // namespace
}  // namespace pegasus::cpu::PEGASUS_ISA
