// The vector interface of the CPU kernels: one struct Vec per instruction set, chosen by the compiler's flags.
//
// R is a register of `width` floats. Everything sits in an anonymous namespace: a function with external linkage
// compiled for AVX-512 here could be the copy that the linker keeps for every caller. max(a, b) is `a > b ? a : b`, so
// max(x, -inf) turns NaN into -inf and max(-inf, x) keeps it.
#pragma once
#include <cstdint>

#if defined(__AVX512F__)
#include "cpu/vec_avx512.h"
#elif defined(__AVX2__)
#include "cpu/vec_avx2.h"
#else
#include "cpu/vec_baseline.h"
#endif

namespace pegasus::cpu {
namespace {

// Elements as they lie in memory. Bf16 is the upper half of a float.
struct Bf16 {
  uint16_t bits;
};

constexpr float kInfinity = __builtin_inff();

inline Vec::R load(const float* p) {
  return Vec::load(p);
}
inline Vec::R load(const Bf16* p) {
  return Vec::load_bf16(reinterpret_cast<const uint16_t*>(p));
}

inline float to_float(float x) {
  return x;
}
inline float to_float(Bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  __builtin_memcpy(&f, &bits, sizeof f);
  return f;
}

inline void from_float(float x, float* out) {
  *out = x;
}
inline void from_float(float x, Bf16* out) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  // Round to nearest, ties to even; the carry may reach infinity, as it should. NaN must not round to infinity.
  out->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The first n of a register, 0 < n <= width; the others are `fill`.
template <typename T>
inline Vec::R load_partial(const T* p, int64_t n, float fill) {
  if (n >= Vec::width) return load(p);
  alignas(64) float lanes[Vec::width];
  for (int i = 0; i < Vec::width; ++i) lanes[i] = i < n ? to_float(p[i]) : fill;
  return Vec::load(lanes);
}

inline void store(float* p, Vec::R x) {
  Vec::store(p, x);
}
inline void store(Bf16* p, Vec::R x) {
  Vec::store_bf16(reinterpret_cast<uint16_t*>(p), x);
}

// The first n of a register, 0 < n.
template <typename T>
inline void store_partial(T* p, int64_t n, Vec::R x) {
  if (n >= Vec::width) return store(p, x);
  T lanes[Vec::width];
  store(lanes, x);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// The bfloat16 of which each lane has two, as floats.
inline Vec::R first_of_pairs(Vec::I a) {
  return (Vec::R)(a << 16);
}
inline Vec::R second_of_pairs(Vec::I a) {
  return (Vec::R)(a & Vec::set1_int(static_cast<int32_t>(0xffff0000)));
}

// Each lane of a and b is two bfloat16: both products are added to the float in c.
inline Vec::R dot_pairs(Vec::R a, Vec::R b, Vec::R c) {
#if defined(__AVX512BF16__)
  return Vec::dot_pairs(a, b, c);
#else
  const Vec::R first = Vec::fma(first_of_pairs((Vec::I)a), first_of_pairs((Vec::I)b), c);
  return Vec::fma(second_of_pairs((Vec::I)a), second_of_pairs((Vec::I)b), first);
#endif
}

inline int32_t reduce_max(Vec::I a) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32(__m512i(a));
#else
  int32_t most = a[0];
  for (int i = 1; i < Vec::width; ++i) most = a[i] > most ? a[i] : most;
  return most;
#endif
}
inline int32_t reduce_add(Vec::I a) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32(__m512i(a));
#else
  int32_t sum = 0;
  for (int i = 0; i < Vec::width; ++i) sum += a[i];
  return sum;
#endif
}

constexpr float kLog2E = 1.44269504f;

// 2^t for t < 128, relative error below 1.5e-7, as 2^floor(t) times 2 to the rest, which is a polynomial. 1 for 0; what
// is far below the smallest normal float is 0; NaN stays NaN.
inline Vec::R exp2(Vec::R t) {
  const Vec::R rest = Vec::fraction(t);
  Vec::R p = Vec::set1(1.867130515e-3f);
  p = Vec::fma(p, rest, Vec::set1(9.01702978e-3f));
  p = Vec::fma(p, rest, Vec::set1(5.579991266e-2f));
  p = Vec::fma(p, rest, Vec::set1(2.401644439e-1f));
  p = Vec::fma(p, rest, Vec::set1(6.931512952e-1f));
  return Vec::scale(Vec::fma(p, rest, Vec::set1(1.0f)), t);
}

// e^x for x <= 88; another 8e-8 |x| of relative error.
inline Vec::R exp(Vec::R x) {
  return exp2(Vec::mul(x, Vec::set1(kLog2E)));
}

}  // namespace
}  // namespace pegasus::cpu
