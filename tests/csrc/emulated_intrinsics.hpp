// The device primitives of cuda/common.cuh, and its launch, under the block emulator. Included by block_emulator.hpp
// only.
#pragma once

template <typename T>
T atomicAdd(T* place, T x) {
  return std::exchange(*place, *place + x);  // fibers are never interrupted
}
template <typename T>
T atomicOr(T* place, T x) {
  return std::exchange(*place, *place | x);
}

inline uint32_t __ballot_sync(uint32_t mask, bool predicate) {
  uint32_t result = 0;
  emulator::exchange(mask, &predicate, sizeof predicate, [&] {
    for (int lane = 0; lane < 32; ++lane) {
      bool theirs;
      std::memcpy(&theirs, emulator::block()->slots[emulator::warp()][lane], sizeof theirs);
      result |= static_cast<uint32_t>(mask >> lane & 1 && theirs) << lane;
    }
  });
  return result;
}
inline bool __all_sync(uint32_t mask, bool predicate) {
  return __ballot_sync(mask, predicate) == mask;
}
inline bool __any_sync(uint32_t mask, bool predicate) {
  return __ballot_sync(mask, predicate) != 0;
}

template <typename To, typename From>
To emulated_bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &x, sizeof to);
  return to;
}
inline long long __double_as_longlong(double x) {
  return emulated_bit_cast<long long>(x);
}
inline double __longlong_as_double(long long x) {
  return emulated_bit_cast<double>(x);
}
inline float __uint_as_float(uint32_t x) {
  return emulated_bit_cast<float>(x);
}

inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline int __popc(uint32_t x) {
  return __builtin_popcount(x);
}

namespace emulator {

// Of launch, as run_block takes it. Threads descend: a missing barrier shows in that order more often than not.
inline unsigned thread_order = 1;

}  // namespace emulator

namespace pegasus::cuda {

inline float bf16_to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, sizeof x);
  return x;
}
inline uint16_t float_to_bf16(float x) {
  if (x != x) return 0x7fff;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float sign = bits >> 15 ? -1.f : 1.f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024.f + fraction, exponent - 25) : std::ldexp(1.f * fraction, -24));
}

// A copy lands only when it is waited for, so a missing wait reads the poison.
inline void copy_async16(void* to, const void* from) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) & 15) {
    throw emulator::Error("asynchronous copy of 16 bytes to or from an unaligned address");
  }
  emulator::fiber().open_group.push_back({to, from});
}
inline void copy_commit() {
  emulator::Fiber& f = emulator::fiber();
  f.groups.push_back(std::move(f.open_group));
  f.open_group.clear();
}
template <int kPending>
void copy_wait() {
  auto& groups = emulator::fiber().groups;
  while (static_cast<int>(groups.size()) > kPending) {
    for (const emulator::Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, 16);
    groups.erase(groups.begin());
  }
}

// Row `row` of matrix `m`, whose address lane 8 * m + row gave.
inline const uint16_t* matrix_row(int m, int row) {
  const uint16_t* p;
  std::memcpy(&p, emulator::block()->slots[emulator::warp()][m * 8 + row], sizeof p);
  return p;
}
template <typename Element>
void load_matrices_with(uint32_t r[4], const void* p, Element element) {
  if (reinterpret_cast<uintptr_t>(p) & 15) throw emulator::Error("matrix row at an unaligned address");
  emulator::exchange(~0u, &p, sizeof p, [&] {
    for (int m = 0; m < 4; ++m) r[m] = element(m, 0) | static_cast<uint32_t>(element(m, 1)) << 16;
  });
}
inline void load_matrices(uint32_t r[4], const void* p) {
  const int row = emulator::lane() / 4, column = emulator::lane() % 4 * 2;
  load_matrices_with(r, p, [=](int m, int j) { return matrix_row(m, row)[column + j]; });
}
inline void load_matrices_transposed(uint32_t r[4], const void* p) {
  const int column = emulator::lane() / 4, row = emulator::lane() % 4 * 2;
  load_matrices_with(r, p, [=](int m, int j) { return matrix_row(m, row + j)[column]; });
}

// Fragment layouts as the PTX manual gives them for mma.m16n8k16 with 16-bit elements.
inline void multiply_16x8x16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const auto word = [](int lane, int i) {
    uint32_t words[6];
    std::memcpy(words, emulator::block()->slots[emulator::warp()][lane], sizeof words);
    return words[i];
  };
  const auto half = [](uint32_t w, int i) { return bf16_to_float(static_cast<uint16_t>(i ? w >> 16 : w)); };
  emulator::exchange(~0u, mine, sizeof mine, [&] {
    for (int i = 0; i < 4; ++i) {
      const int row = emulator::lane() / 4 + (i >= 2 ? 8 : 0), column = emulator::lane() % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k) {
        const uint32_t left = word(row % 8 * 4 + k % 8 / 2, row / 8 + 2 * (k / 8));
        const uint32_t right = word(column * 4 + k % 8 / 2, 4 + k / 8);
        d[i] += half(left, k % 2) * half(right, k % 2);
      }
    }
  });
}

inline uint32_t pack_bf16(float low, float high) {
  return float_to_bf16(low) | static_cast<uint32_t>(float_to_bf16(high)) << 16;
}
inline float exp2_fast(float x) {
  return std::exp2(x);
}

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

template <typename... Parameters, typename... Arguments>
void launch(const char* what, void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, void*,
            Arguments... arguments) {
  try {
    emulator::launch(grid, dim3(static_cast<unsigned>(threads)), static_cast<size_t>(shared_bytes),
                     emulator::thread_order, [&] { kernel(arguments...); });
  } catch (const emulator::Error& error) {
    throw std::runtime_error(std::string(what) + ": " + error.what());
  }
}

}  // namespace pegasus::cuda
