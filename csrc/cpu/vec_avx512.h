// Vec for AVX-512 (F, BW, VL, DQ). Included by cpu/vec.h only.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace pegasus::cpu {
namespace {

struct Vec {
  static constexpr int width = 16;
  using R = __m512;

  static R load(const float* p) { return _mm512_loadu_ps(p); }
  static R load_bf16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  // Signed bytes as floats.
  static R load_codes(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static void store(float* p, R a) { _mm512_storeu_ps(p, a); }
  static R set1(float a) { return _mm512_set1_ps(a); }
  static R add(R a, R b) { return _mm512_add_ps(a, b); }
  static R sub(R a, R b) { return _mm512_sub_ps(a, b); }
  static R mul(R a, R b) { return _mm512_mul_ps(a, b); }
  static R fma(R a, R b, R c) { return _mm512_fmadd_ps(a, b, c); }
#if defined(__AVX512BF16__)
  // Each lane of a and b is two bfloat16: both products are added to the float in c.
  static R dot_pairs(R a, R b, R c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
  // n bfloat16 as they are, two to a lane, zeros after them.
  static R load_pairs(const uint16_t* p, int64_t n) {
    const __mmask32 mask = n >= 32 ? ~__mmask32{0} : (__mmask32{1} << n) - 1;
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, p));
  }
  // Lane i is p[i] and q[i], 0 < n of them, zeros after them.
  static R interleave(const uint16_t* p, const uint16_t* q, int64_t n) {
    const __mmask16 mask = static_cast<__mmask16>(n >= 16 ? 0xffff : (1 << n) - 1);
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, q));
    return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
  // The 32 floats of a and then b, rounded to bfloat16, two neighbours to a lane.
  static R round_pairs(R a, R b) { return (R)_mm512_cvtne2ps_pbh(b, a); }
#endif
  // Rounded to nearest, ties to even, as from_float does; but for the processor's own rounding, which this is with
  // AVX512_BF16, what is below the smallest normal number is 0.
  static void store_bf16(uint16_t* p, R a) {
#if defined(__AVX512BF16__)
    const __m256bh out = _mm512_cvtneps_pbh(a);
    __builtin_memcpy(p, &out, sizeof out);
#else
    const __m512i bits = _mm512_castps_si512(a), one = _mm512_set1_epi32(1);
    const __m512i tie = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(tie, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    const __m512i out = _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(out));
#endif
  }
  static R max(R a, R b) { return _mm512_max_ps(a, b); }
  // a - floor(a); 0 for infinity.
  static R fraction(R a) { return _mm512_reduce_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
  // a * 2^floor(n).
  static R scale(R a, R n) { return _mm512_scalef_ps(a, n); }
  // Bit i is set where a >= b.
  static uint32_t at_least(R a, R b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }

  // Not __m512i, whose lanes have 64 bits: the compiler keeps what it sees as two types in memory, not in registers.
  typedef int32_t I __attribute__((vector_size(64)));  // lanes of 32 bits
  static constexpr int kTileRows = 6;                  // of the largest product that fits into the registers
  static constexpr int kCodeTileRows = kTileRows;
  static constexpr int kTileVectors = 4;
  static I set1_int(int32_t a) { return I(_mm512_set1_epi32(a)); }
  static R to_float(I a) { return _mm512_cvtepi32_ps(__m512i(a)); }
  static I round_int(R a) { return I(_mm512_cvtps_epi32(a)); }
  // Of lanes in -128..127.
  static void store_int8(int8_t* p, I a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(__m512i(a)));
  }
  // The larger of b and the bits of |a|, in which infinity exceeds all numbers and NaN infinity.
  static I max_magnitude(R a, I b) {
    return I(_mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff)), __m512i(b)));
  }
  // Lane by lane, the four products of the unsigned bytes of a and the signed ones of b are added to c.
#if defined(__AVX512VNNI__)
  static I dot_quads(I a, I b, I c) { return I(_mm512_dpbusd_epi32(__m512i(c), __m512i(a), __m512i(b))); }
#else
  static I dot_quads(I a, I b, I c) {
    const __m512i even = _mm512_and_si512(__m512i(a), _mm512_set1_epi16(0xff)), odd = _mm512_srli_epi16(__m512i(a), 8);
    const __m512i even_b = _mm512_srai_epi16(_mm512_slli_epi16(__m512i(b), 8), 8),
                  odd_b = _mm512_srai_epi16(__m512i(b), 8);
    return c + I(_mm512_madd_epi16(even, even_b)) + I(_mm512_madd_epi16(odd, odd_b));
  }
#endif

  static float reduce_add(R a) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  static float reduce_max(R a) {
    const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }

  // rows[i][j] becomes rows[j][i].
  static void transpose(R (&rows)[width]) {
    R t[width];
    for (int i = 0; i < 16; i += 2) {  // pairs of rows, 1x1 blocks
      t[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {  // 2x2 blocks
      rows[i] = _mm512_shuffle_ps(t[i], t[i + 2], _MM_SHUFFLE(1, 0, 1, 0));
      rows[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], _MM_SHUFFLE(3, 2, 3, 2));
      rows[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], _MM_SHUFFLE(1, 0, 1, 0));
      rows[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], _MM_SHUFFLE(3, 2, 3, 2));
    }
    for (int i = 0; i < 4; ++i) {  // 4x4 blocks: 128-bit lanes
      t[i] = _mm512_shuffle_f32x4(rows[i], rows[i + 4], _MM_SHUFFLE(2, 0, 2, 0));
      t[i + 4] = _mm512_shuffle_f32x4(rows[i], rows[i + 4], _MM_SHUFFLE(3, 1, 3, 1));
      t[i + 8] = _mm512_shuffle_f32x4(rows[i + 8], rows[i + 12], _MM_SHUFFLE(2, 0, 2, 0));
      t[i + 12] = _mm512_shuffle_f32x4(rows[i + 8], rows[i + 12], _MM_SHUFFLE(3, 1, 3, 1));
    }
    for (int i = 0; i < 4; ++i) {
      rows[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], _MM_SHUFFLE(2, 0, 2, 0));
      rows[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], _MM_SHUFFLE(3, 1, 3, 1));
      rows[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], _MM_SHUFFLE(2, 0, 2, 0));
      rows[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], _MM_SHUFFLE(3, 1, 3, 1));
    }
  }
};

}  // namespace
}  // namespace pegasus::cpu
