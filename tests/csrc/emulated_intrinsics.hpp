// The device primitives of cuda/common.cuh, and its launch, under the block emulator. Included by block_emulator.hpp
// only.
#pragma once

// ---- CUDA's own

inline int atomicCAS(int* at, int wanted, int replacement) {
  const int held = *at;
  if (held == wanted) *at = replacement;
  return held;
}
inline uint32_t __ballot_sync(uint32_t mask, int holds) {
  const uint64_t mine = holds != 0;
  uint32_t lanes = 0;
  emulator::exchange(mask, &mine, sizeof mine, [&] {
    for (int l = 0; l < 32; ++l) {
      if (mask >> l & 1 && emulator::block()->slots[emulator::warp()][l][0]) lanes |= 1u << l;
    }
  });
  return lanes;
}
template <typename T>
uint32_t __match_any_sync(uint32_t mask, T value) {
  uint32_t lanes = 0;
  emulator::exchange(mask, &value, sizeof value, [&] {
    for (int l = 0; l < 32; ++l) {
      if (mask >> l & 1 && !std::memcmp(emulator::block()->slots[emulator::warp()][l], &value, sizeof value)) {
        lanes |= 1u << l;
      }
    }
  });
  return lanes;
}
template <typename T>
T atomicAdd(T* place, T x) {
  return std::exchange(*place, *place + x);  // fibers are never interrupted
}
template <typename T>
T atomicOr(T* place, T x) {
  return std::exchange(*place, *place | x);
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
[[noreturn]] inline void __trap() {
  throw emulator::Error("the kernel has trapped");
}

// ---- ours

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
// Half precision, by bits: subnormals and halfway cases as the hardware has them.
inline float fp16_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                     : exponent     ? std::ldexp(1024.f + fraction, exponent - 25)
                                    : std::ldexp(static_cast<float>(fraction), -24);
  return bits >> 15 ? -size : size;
}
inline uint16_t float_to_fp16(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::fabs(x);
  if (x != x) return 0x7fff;
  if (size >= 65520.f) return sign | 0x7c00;  // what rounds to more than the largest
  if (size == 0.f) return sign;
  int exponent;
  std::frexp(size, &exponent);
  exponent = std::max(exponent, -13);  // of the smallest normal number; below it the step stays the same
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 11 - exponent)));
  // A fraction that rounds up to 2048 carries into the exponent, which is right.
  return static_cast<uint16_t>(sign | (((exponent + 13) << 10) + steps));
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
inline void multiply_16x8x16(float d[4], const uint32_t a[4], const uint32_t b[2], float (*to_float)(uint16_t)) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const auto word = [](int lane, int i) {
    uint32_t words[6];
    std::memcpy(words, emulator::block()->slots[emulator::warp()][lane], sizeof words);
    return words[i];
  };
  const auto half = [=](uint32_t w, int i) { return to_float(static_cast<uint16_t>(i ? w >> 16 : w)); };
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
inline void multiply_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  multiply_16x8x16(d, a, b, bf16_to_float);
}
inline void multiply_fp16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  multiply_16x8x16(d, a, b, fp16_to_float);
}

inline uint32_t pack_bf16(float low, float high) {
  return float_to_bf16(low) | static_cast<uint32_t>(float_to_bf16(high)) << 16;
}
inline uint32_t pack_fp16(float low, float high) {
  return float_to_fp16(low) | static_cast<uint32_t>(float_to_fp16(high)) << 16;
}
inline void unpack_bf16(uint32_t pair, float* low, float* high) {
  *low = bf16_to_float(static_cast<uint16_t>(pair));
  *high = bf16_to_float(static_cast<uint16_t>(pair >> 16));
}
inline void unpack_fp16(uint32_t pair, float* low, float* high) {
  *low = fp16_to_float(static_cast<uint16_t>(pair));
  *high = fp16_to_float(static_cast<uint16_t>(pair >> 16));
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
