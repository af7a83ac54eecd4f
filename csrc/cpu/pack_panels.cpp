// Lays keys and values out in panels, compiled once per instruction set; PEGASUS_ISA names the namespace.
//
// Work item: a panel of keys with all heads, so that memory is read row by row. A head's rows alone lie thousands of
// bytes apart, most often a power of two: its lines would share a few sets of a cache and throw each other out.
#include "cpu/panels.h"

namespace pegasus::cpu::PEGASUS_ISA {
namespace {

// n rows of one head, kPanel at most.
template <typename T>
struct HeadRows {
  const T* base;
  int64_t stride, n;
  const T* operator[](int64_t row) const { return base + row * stride; }
};

// out[link * stride + key] = link of the key; zeros for keys that are missing.
template <typename T>
void transpose_keys(const HeadRows<T>& keys, int64_t head_size, float* out, int64_t stride) {
  const int64_t links = padded_size(head_size) * int64_t{sizeof(T)} / int64_t{sizeof(float)};
  for (int64_t key = 0; key < kPanel; key += Vec::width) {
    for (int64_t link = 0; link < links; link += Vec::width) {
      Vec::R block[Vec::width];
      for (int i = 0; i < Vec::width; ++i) {
        const bool inside = key + i < keys.n && link < ScoreForm<T>::depth(head_size);
        block[i] = inside ? ScoreForm<T>::load(keys[key + i], link, head_size) : Vec::set1(0.0f);
      }
      Vec::transpose(block);
      for (int i = 0; i < minimum(Vec::width, links - link); ++i) Vec::store(out + (link + i) * stride + key, block[i]);
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
  const int64_t padded = padded_size(size);
  if constexpr (__is_same(typename ScoreForm<T>::Lane, float)) {
    transpose_keys(keys, size, reinterpret_cast<float*>(out_keys), stride);
  } else {
    for (int64_t d = 0; d < padded; ++d) {
      for (int64_t key = 0; key < kPanel; ++key)
        out_keys[d * stride + key] = d < size && key < keys.n ? keys[key][d] : T{};
    }
  }
#if defined(__AVX512BF16__)
  if constexpr (ValueForm<T>::kKeys == 2) return interleave_values(values, size, reinterpret_cast<float*>(out_values));
#endif
  for (int64_t key = 0; key < kPanel; ++key, out_values += padded) {
    const int64_t filled = key < values.n ? size : 0;
    __builtin_memcpy(out_values, values[filled ? key : 0], filled * sizeof(T));
    __builtin_memset(out_values + filled, 0, (padded - filled) * sizeof(T));
  }
}

template <typename T>
void pack(const PackTask& task, int64_t document, int64_t panel) {
  using Lane = typename ScoreForm<T>::Lane;
  constexpr int64_t kLane = sizeof(Lane) / sizeof(T), kPanels = kTile / kPanel;
  const int64_t size = task.head_size, n = task.n_keys[document], panels = round_up(n, kPanel) / kPanel;
  const int64_t tile = panel / kPanels * kPanels, width = minimum(kPanels, panels - tile) * kPanel;
  const int64_t first = panel * kPanel, here = minimum(kPanel, n - first), row = task.key_begin[document] + first;
  for (int64_t head = 0; head < task.n_heads; ++head) {
    const T* key = static_cast<const T*>(task.key) + row * task.key_stride + head * size;
    const T* value = static_cast<const T*>(task.value) + row * task.value_stride + head * size;
    const int64_t to = head_begin(task.panel_begin[document], panels, task.n_heads, head, size);
    pack_head<T>({key, task.key_stride, here}, {value, task.value_stride, here}, size,
                 static_cast<T*>(task.key_panels) + to + tile * panel_size(size) + (panel - tile) * kPanel * kLane,
                 width, static_cast<T*>(task.value_panels) + to + panel * panel_size(size));
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
