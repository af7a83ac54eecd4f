// The packed keys and values of a document as attention multiplies them, a tile at a time. Compiled once per
// instruction set.
#pragma once
#include "cpu/panels.h"

namespace pegasus::cpu::PEGASUS_ISA {
namespace {

// The right side of a product: [depth][columns], `stride` from one row to the next. `ahead` of it lies what is wanted
// next.
template <typename B>
struct Right {
  const B* base;
  int64_t stride, ahead;
};

// What the codes of a tile count, panel by panel.
struct TileScales {
  float keys[kTile / kPanel], values[kTile / kPanel];
};

// A tile of n keys; without scales if it holds no codes.
template <typename T>
struct Tile {
  Right<typename ScoreForm<T>::Lane> keys;
  Right<typename ValueForm<T>::Lane> values;
  int64_t n;
  const TileScales* scales;
};

// A tile of codes as numbers.
template <typename T>
struct TileMemory {
  alignas(64) T keys[kTile * kMaxHeadSize], values[kTile * kMaxHeadSize];
  TileScales scales;
};

// n codes as numbers, which bfloat16 holds exactly; n is a multiple of kPanel. What lies `ahead` is asked for.
template <typename T>
inline void unpack_codes(const char* from, int64_t n, int64_t ahead, T* out) {
  const auto* codes = reinterpret_cast<const int8_t*>(from);
  int64_t j = 0;
#if defined(__AVX512BF16__)
  if constexpr (ValueForm<T>::kKeys == 2) {
    for (; j < n; j += 2 * Vec::width) {
      __builtin_prefetch(codes + j + ahead);
      const Vec::R both = Vec::round_pairs(Vec::load_codes(codes + j), Vec::load_codes(codes + j + Vec::width));
      Vec::store(reinterpret_cast<float*>(out + j), both);
    }
  }
#endif
  for (; j < n; j += Vec::width) {
    __builtin_prefetch(codes + j + ahead);
    store(out + j, Vec::load_codes(codes + j));
  }
}

// One head of a document.
template <typename T>
class Source {
 public:
  Source(const AttentionTask& task, int64_t document, int64_t head)
      : codes_(task.codes), n_(task.n_keys[document]), panel_(panel_size(task.head_size)) {
    const int64_t panels = round_up(n_, kPanel) / kPanel;
    step_ = codes_ ? code_panel_size(task.head_size) : panel_ * int64_t{sizeof(T)};
    const int64_t at = head_begin(task.panel_begin[document], panels, task.n_heads, head, step_);
    keys_ = static_cast<const char*>(task.key_panels) + at;
    values_ = static_cast<const char*>(task.value_panels) + at;
  }

  // The tile that begins with a key; codes are unpacked to `memory`. The next tile is what is wanted next.
  Tile<T> tile(int64_t first, TileMemory<T>* memory) const {
    const int64_t panels = minimum(kTile / kPanel, round_up(n_ - first, kPanel) / kPanel);
    const int64_t at = first / kPanel * step_, n = panels * panel_;
    const char *keys = keys_ + at, *values = values_ + at;
    int64_t ahead = kTile * panel_ / kPanel;  // elements
    if (codes_) {
      unpack_codes(keys, n, panels * step_, memory->keys);
      unpack_codes(values, n, panels * step_, memory->values);
      for (int64_t i = 0; i < panels; ++i) {
        __builtin_memcpy(memory->scales.keys + i, keys + n + i * kPanel, sizeof(float));
        __builtin_memcpy(memory->scales.values + i, values + n + i * kPanel, sizeof(float));
      }
      keys = reinterpret_cast<const char*>(memory->keys);
      values = reinterpret_cast<const char*>(memory->values);
      ahead = 0;  // asked for already
    }
    using Key = typename ScoreForm<T>::Lane;
    using Value = typename ValueForm<T>::Lane;
    constexpr int64_t kInKey = sizeof(Key) / sizeof(T), kInValue = sizeof(Value) / sizeof(T);
    return {{reinterpret_cast<const Key*>(keys), panels * kPanel, ahead / kInKey},
            {reinterpret_cast<const Value*>(values), panel_ / kPanel, ahead / kInValue},
            minimum(kTile, n_ - first),
            codes_ ? &memory->scales : nullptr};
  }

 private:
  const char *keys_, *values_;
  bool codes_;
  int64_t n_, panel_, step_;  // keys; elements of a panel, and bytes from one to the next
};

}  // namespace
}  // namespace pegasus::cpu::PEGASUS_ISA
