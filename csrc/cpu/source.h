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

// As what products read keys and values: as what they are packed, but codes in lanes of 32 bits.
template <typename T, bool kCodes>
struct LaneOf {
  using Type = typename ScoreForm<T>::Packed;
};
template <typename T>
struct LaneOf<T, true> {
  using Type = float;
};
template <typename T, bool kCodes>
using Lane = typename LaneOf<T, kCodes>::Type;

// A tile of n keys; without scales if it holds no codes.
template <typename Lane>
struct Tile {
  Right<Lane> keys, values;
  int64_t n;
  const TileScales* scales;
};

// A tile of codes as numbers.
template <typename T>
struct TileMemory {
  static constexpr int64_t kLanes = kTile * kMaxHeadSize / ValueForm<T>::kKeys;
  alignas(64) float keys[kLanes], values[kLanes];
  TileScales scales;
};

// n codes as numbers, which bfloat16 holds exactly; n is a multiple of kPanel. What lies `ahead` is asked for.
template <typename T>
inline void unpack_codes(const char* from, int64_t n, int64_t ahead, float* out) {
  const auto* codes = reinterpret_cast<const int8_t*>(from);
  constexpr int64_t kStep = Vec::width * ValueForm<T>::kKeys;
  for (int64_t j = 0; j < n; j += kStep, out += Vec::width) {
    __builtin_prefetch(codes + j + ahead);
    Vec::R numbers = Vec::load_codes(codes + j);
#if defined(__AVX512BF16__)
    if (ValueForm<T>::kKeys == 2) numbers = Vec::round_pairs(numbers, Vec::load_codes(codes + j + Vec::width));
#endif
    Vec::store(out, numbers);
  }
}

// One head of a document.
template <typename T, bool kCodes>
class Source {
 public:
  Source(const AttentionTask& task, int64_t document, int64_t head)
      : n_(task.n_keys[document]), panel_(panel_size(task.head_size)) {
    const int64_t panels = round_up(n_, kPanel) / kPanel;
    step_ = kCodes ? code_panel_size(task.head_size) : panel_ * int64_t{sizeof(T)};
    const int64_t at = head_begin(task.panel_begin[document], panels, task.n_heads, head, step_);
    keys_ = static_cast<const char*>(task.key_panels) + at;
    values_ = static_cast<const char*>(task.value_panels) + at;
  }

  // The tile that begins with a key; codes are unpacked to `memory`. The next tile is what is wanted next.
  Tile<Lane<T, kCodes>> tile(int64_t first, TileMemory<T>* memory) const {
    const int64_t panels = minimum(kTile / kPanel, round_up(n_ - first, kPanel) / kPanel);
    const int64_t at = first / kPanel * step_, n = panels * panel_;
    const char *keys = keys_ + at, *values = values_ + at;
    if constexpr (kCodes) {
      unpack_codes<T>(keys, n, panels * step_, memory->keys);
      unpack_codes<T>(values, n, panels * step_, memory->values);
      for (int64_t i = 0; i < panels; ++i) {
        __builtin_memcpy(memory->scales.keys + i, keys + n + i * kPanel, sizeof(float));
        __builtin_memcpy(memory->scales.values + i, values + n + i * kPanel, sizeof(float));
      }
      return make_tile(memory->keys, memory->values, first, panels, 0, &memory->scales);  // asked for already
    } else {
      using Packed = Lane<T, kCodes>;
      const int64_t ahead = kTile / kPanel * panel_ * int64_t{sizeof(T)} / int64_t{sizeof(Packed)};
      return make_tile(reinterpret_cast<const Packed*>(keys), reinterpret_cast<const Packed*>(values), first, panels,
                       ahead, nullptr);
    }
  }

 private:
  template <typename Lane>
  Tile<Lane> make_tile(const Lane* keys, const Lane* values, int64_t first, int64_t panels, int64_t ahead,
                       const TileScales* scales) const {
    return {{keys, panels * kPanel, ahead}, {values, panel_ / kPanel, ahead}, minimum(kTile, n_ - first), scales};
  }

  const char *keys_, *values_;
  int64_t n_, panel_, step_;  // keys; elements of a panel, and bytes from one to the next
};

}  // namespace
}  // namespace pegasus::cpu::PEGASUS_ISA
