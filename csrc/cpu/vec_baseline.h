// Vec by the compiler's own four-float vectors: SSE2 on x86-64, NEON on Arm. Included by cpu/vec.h only.
#pragma once

namespace pegasus::cpu {
namespace {

struct Vec {
  static constexpr int width = 4;
  typedef float R __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));

  static R load(const float* p) {
    R a;
    __builtin_memcpy(&a, p, sizeof a);
    return a;
  }
  static R load_bf16(const uint16_t* p) {
    const I bits = {p[0] << 16, p[1] << 16, p[2] << 16, p[3] << 16};
    return reinterpret_cast<R>(bits);
  }
  static void store(float* p, R a) { __builtin_memcpy(p, &a, sizeof a); }
  static R set1(float a) { return R{a, a, a, a}; }
  static R add(R a, R b) { return a + b; }
  static R sub(R a, R b) { return a - b; }
  static R mul(R a, R b) { return a * b; }
  static R fma(R a, R b, R c) { return a * b + c; }
  static R max(R a, R b) { return select(a > b, a, b); }
  // Adding 1.5 * 2^23 leaves no fraction bits; exact for |a| < 2^22.
  static R round(R a) { return (a + set1(12582912.0f)) - set1(12582912.0f); }
  // 2^n for integral n in -126..127.
  static R pow2(R n) { return reinterpret_cast<R>((__builtin_convertvector(n, I) + 127) << 23); }
  static R zero_where_less(R x, R limit, R a) { return reinterpret_cast<R>(~(x < limit) & reinterpret_cast<I>(a)); }
  // Bit i is set where a >= b.
  static uint32_t at_least(R a, R b) {
    const I m = a >= b;
    return (m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8);
  }
  static float reduce_add(R a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  static float reduce_max(R a) {
    const float x = a[0] > a[2] ? a[0] : a[2], y = a[1] > a[3] ? a[1] : a[3];
    return x > y ? x : y;
  }

  // rows[i][j] becomes rows[j][i].
  static void transpose(R (&rows)[width]) {
    const R a = __builtin_shuffle(rows[0], rows[1], I{0, 4, 1, 5}),
            b = __builtin_shuffle(rows[0], rows[1], I{2, 6, 3, 7});
    const R c = __builtin_shuffle(rows[2], rows[3], I{0, 4, 1, 5}),
            d = __builtin_shuffle(rows[2], rows[3], I{2, 6, 3, 7});
    rows[0] = __builtin_shuffle(a, c, I{0, 1, 4, 5});
    rows[1] = __builtin_shuffle(a, c, I{2, 3, 6, 7});
    rows[2] = __builtin_shuffle(b, d, I{0, 1, 4, 5});
    rows[3] = __builtin_shuffle(b, d, I{2, 3, 6, 7});
  }

 private:
  static R select(I mask, R a, R b) {
    return reinterpret_cast<R>((mask & reinterpret_cast<I>(a)) | (~mask & reinterpret_cast<I>(b)));
  }
};

}  // namespace
}  // namespace pegasus::cpu
