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
  // Signed bytes as floats.
  static R load_codes(const int8_t* p) { return __builtin_convertvector((I{p[0], p[1], p[2], p[3]}), R); }
  static void store(float* p, R a) { __builtin_memcpy(p, &a, sizeof a); }
  // Rounded to nearest, ties to even, as from_float does.
  static void store_bf16(uint16_t* p, R a) {
    const I bits = reinterpret_cast<I>(a), nan = a != a;
    const I out = (~nan & (bits + 0x7fff + (bits >> 16 & 1)) >> 16) | (nan & 0x7fc0);
    for (int i = 0; i < width; ++i) p[i] = static_cast<uint16_t>(out[i]);
  }
  static R set1(float a) { return R{a, a, a, a}; }
  static R add(R a, R b) { return a + b; }
  static R sub(R a, R b) { return a - b; }
  static R mul(R a, R b) { return a * b; }
  static R fma(R a, R b, R c) { return a * b + c; }
  static R max(R a, R b) { return select(a > b, a, b); }
  // a - floor(a), but for a rounding error before and after.
  static R fraction(R a) { return a - floor(a); }
  // a * 2^floor(n) for n < 128, 0 where n is below -126.
  static R scale(R a, R n) {
    const R lowest = set1(-126.0f);
    const I exponent = __builtin_convertvector(floor(max(n, lowest)), I) + 127;
    return reinterpret_cast<R>(~(n < lowest) & reinterpret_cast<I>(a * reinterpret_cast<R>(exponent << 23)));
  }
  // Bit i is set where a >= b.
  static uint32_t at_least(R a, R b) {
    const I m = a >= b;
    return (m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8);
  }
  static constexpr int kTileRows = 4;  // of the largest product that fits into the registers
  static constexpr int kCodeTileRows = kTileRows;
  static constexpr int kTileVectors = 2;
  static I set1_int(int32_t a) { return I{a, a, a, a}; }
  static R to_float(I a) { return __builtin_convertvector(a, R); }
  static I round_int(R a) { return __builtin_convertvector(round(a), I); }
  // Of lanes in -128..127.
  static void store_int8(int8_t* p, I a) {
    for (int i = 0; i < width; ++i) p[i] = static_cast<int8_t>(a[i]);
  }
  // The larger of b and the bits of |a|, in which infinity exceeds all numbers and NaN infinity.
  static I max_magnitude(R a, I b) {
    const I bits = reinterpret_cast<I>(a) & 0x7fffffff, larger = bits > b;
    return (larger & bits) | (~larger & b);
  }
  // Lane by lane, the four products of the signed bytes of a and b are added to c; in b there is no -128. One fits into
  // 16 bits, two do not.
  static I dot_quads(I a, I b, I c) {
    typedef int16_t H __attribute__((vector_size(16)));
    const H left = reinterpret_cast<H>(a), right = reinterpret_cast<H>(b);
    const I even = reinterpret_cast<I>((left << 8 >> 8) * (right << 8 >> 8));
    const I odd = reinterpret_cast<I>((left >> 8) * (right >> 8));
    return c + (even << 16 >> 16) + (even >> 16) + (odd << 16 >> 16) + (odd >> 16);
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
  // Adding 1.5 * 2^23 leaves no fraction bits; exact for |a| < 2^22.
  static R round(R a) { return (a + set1(12582912.0f)) - set1(12582912.0f); }
  static R floor(R a) { return round(a - set1(0.5f)); }
  static R select(I mask, R a, R b) {
    return reinterpret_cast<R>((mask & reinterpret_cast<I>(a)) | (~mask & reinterpret_cast<I>(b)));
  }
};

}  // namespace
}  // namespace pegasus::cpu
