// Lays keys and values out in panels, compiled once per instruction set; PEGASUS_ISA names the namespace.
//
// Work item: a panel of keys with all heads, so that memory is read row by row. A head's rows alone lie thousands of
// bytes apart, most often a power of two: its lines would share a few sets of a cache and throw each other out.
#include "cpu/panels.h"
#include "cpu/quantize.h"

namespace pegasus::cpu::PEGASUS_ISA {
namespace {

// Elements of a panel's keys that lie together in a tile: a link.
template <typename T>
constexpr int64_t kLinkSize = kPanel * int64_t{sizeof(typename ScoreForm<T>::Packed)} / int64_t{sizeof(T)};

// n rows of one head, kPanel at most.
template <typename T>
struct HeadRows {
  const T* base;
  int64_t stride, n;
  const T* operator[](int64_t row) const { return base + row * stride; }
};

// out[link * stride + key] = link of the key; zeros for keys that are missing.
template <typename T>
void transpose_keys(const HeadRows<T>& keys, int64_t head_size, typename ScoreForm<T>::Packed* out, int64_t stride) {
  const int64_t links = padded_size(head_size) * kPanel / kLinkSize<T>;
  for (int64_t key = 0; key < kPanel; key += Vec::width) {
    for (int64_t link = 0; link < links; link += Vec::width) {
      Vec::R block[Vec::width];
      for (int i = 0; i < Vec::width; ++i) {
        const bool inside = key + i < keys.n && link < ScoreForm<T>::depth(head_size);
        block[i] = inside ? ScoreForm<T>::load(keys[key + i], link, head_size) : Vec::set1(0.0f);
      }
      Vec::transpose(block);
      for (int i = 0; i < minimum(Vec::width, links - link); ++i) store(out + (link + i) * stride + key, block[i]);
    }
  }
}

#if defined(__AVX512BF16__)
// out[link][d] = element d of values 2 * link and 2 * link + 1; zeros for what is missing.
void interleave_values(const HeadRows<Bf16>& values, int64_t head_size, float* out) {
  static const uint16_t kNothing[kMaxHeadSize] = {};
  const int64_t padded = padded_size(head_size);
  const auto row = [&](int64_t i) { return i < values.n ? reinterpret_cast<const uint16_t*>(values[i]) : kNothing; };
  for (int64_t key = 0; key < kPanel; key += 2, out += padded) {
    for (int64_t d = 0; d < padded; d += Vec::width) {
      Vec::store(out + d,
                 d < head_size ? Vec::interleave(row(key) + d, row(key + 1) + d, head_size - d) : Vec::set1(0.0f));
    }
  }
}
#endif

template <typename T>
void pack_head(const HeadRows<T>& keys, const HeadRows<T>& values, int64_t size, T* out_keys, int64_t stride,
               T* out_values) {
  transpose_keys(keys, size, reinterpret_cast<typename ScoreForm<T>::Packed*>(out_keys), stride);
#if defined(__AVX512BF16__)
  if constexpr (ValueForm<T>::kKeys == 2) return interleave_values(values, size, reinterpret_cast<float*>(out_values));
#endif
  const int64_t padded = padded_size(size);
  for (int64_t key = 0; key < kPanel; ++key, out_values += padded) {
    const int64_t filled = key < values.n ? size : 0;
    __builtin_memcpy(out_values, values[filled ? key : 0], filled * sizeof(T));
    __builtin_memset(out_values + filled, 0, (padded - filled) * sizeof(T));
  }
}

// Codes of n elements of a panel, and at its end, in the tile, their scale.
template <typename T>
void write_codes(const T* elements, int64_t n, int8_t* codes, int8_t* end) {
  float scale;
  int32_t start;
  quantize_row(PlainRow<T>{elements}, n, codes, &scale, &start);
  __builtin_memcpy(end, &scale, sizeof scale);
}

// A panel as codes, number `panel` of the `panels` of its tile; `keys` and `values` are where the tile begins.
template <typename T>
void pack_codes(const HeadRows<T>& key, const HeadRows<T>& value, int64_t size, int64_t panel, int64_t panels,
                int8_t* keys, int8_t* values) {
  constexpr int64_t kLink = kLinkSize<T>;
  alignas(64) T key_panel[kPanel * kMaxHeadSize], value_panel[kPanel * kMaxHeadSize];
  int8_t codes[kPanel * kMaxHeadSize];
  const int64_t n = panel_size(size), end = panels * n + panel * kPanel;
  pack_head<T>(key, value, size, key_panel, kPanel, value_panel);
  write_codes(key_panel, n, codes, keys + end);
  for (int64_t link = 0; link < n / kLink; ++link) {
    __builtin_memcpy(keys + (link * panels + panel) * kLink, codes + link * kLink, kLink);
  }
  write_codes(value_panel, n, values + panel * n, values + end);
}

template <typename T>
void pack(const PackTask& task, int64_t document, int64_t panel) {
  constexpr int64_t kPanels = kTile / kPanel;
  const int64_t size = task.head_size, n = task.n_keys[document], panels = round_up(n, kPanel) / kPanel;
  const int64_t tile = panel / kPanels * kPanels, in_tile = minimum(kPanels, panels - tile), one = panel_size(size);
  const int64_t first = panel * kPanel, here = minimum(kPanel, n - first), row = task.key_begin[document] + first;
  for (int64_t head = 0; head < task.n_heads; ++head) {
    const T* key = static_cast<const T*>(task.key) + row * task.key_stride + head * size;
    const T* value = static_cast<const T*>(task.value) + row * task.value_stride + head * size;
    const HeadRows<T> keys{key, task.key_stride, here}, values{value, task.value_stride, here};
    const int64_t step = task.codes ? code_panel_size(size) : one;
    const int64_t to = head_begin(task.panel_begin[document], panels, task.n_heads, head, step) + tile * step;
    if (task.codes) {
      pack_codes<T>(keys, values, size, panel - tile, in_tile, static_cast<int8_t*>(task.key_panels) + to,
                    static_cast<int8_t*>(task.value_panels) + to);
    } else {
      pack_head<T>(keys, values, size, static_cast<T*>(task.key_panels) + to + (panel - tile) * kLinkSize<T>,
                   in_tile * kPanel, static_cast<T*>(task.value_panels) + to + (panel - tile) * one);
    }
  }
}

}  // namespace

void pack_panels(const PackTask& task) {
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int64_t document = 0; document < task.n_documents; ++document) {
    for (int64_t panel = 0; panel < round_up(task.max_keys, kPanel) / kPanel; ++panel) {
      if (panel * kPanel >= task.n_keys[document]) continue;
      task.bf16 ? pack<Bf16>(task, document, panel) : pack<float>(task, document, panel);
    }
  }
}

}  // namespace pegasus::cpu::PEGASUS_ISA
