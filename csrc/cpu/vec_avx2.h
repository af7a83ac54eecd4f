// Vec for AVX2 with FMA. Included by cpu/vec.h only.
#pragma once
#include <immintrin.h>

namespace pegasus::cpu {
namespace {

struct Vec {
  static constexpr int width = 8;
  using R = __m256;

  static R load(const float* p) { return _mm256_loadu_ps(p); }
  static R load_bf16(const uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  // Signed bytes as floats.
  static R load_codes(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static void store(float* p, R a) { _mm256_storeu_ps(p, a); }
  // Rounded to nearest, ties to even, as from_float does.
  static void store_bf16(uint16_t* p, R a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i tie = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(tie, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    const __m256i out = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
    const __m128i both = _mm_packus_epi32(_mm256_castsi256_si128(out), _mm256_extracti128_si256(out, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), both);
  }
  static R set1(float a) { return _mm256_set1_ps(a); }
  static R add(R a, R b) { return _mm256_add_ps(a, b); }
  static R sub(R a, R b) { return _mm256_sub_ps(a, b); }
  static R mul(R a, R b) { return _mm256_mul_ps(a, b); }
  static R fma(R a, R b, R c) { return _mm256_fmadd_ps(a, b, c); }
  static R max(R a, R b) { return _mm256_max_ps(a, b); }
  // a - floor(a).
  static R fraction(R a) { return sub(a, _mm256_floor_ps(a)); }
  // a * 2^floor(n) for n < 128, 0 where n is below -126.
  static R scale(R a, R n) {
    const R lowest = set1(-126.0f);
    const __m256i exponent = _mm256_cvtps_epi32(_mm256_floor_ps(max(n, lowest)));
    const R power = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23));
    return _mm256_and_ps(_mm256_cmp_ps(n, lowest, _CMP_NLT_UQ), mul(a, power));
  }
  // Bit i is set where a >= b.
  static uint32_t at_least(R a, R b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
  }

  typedef int32_t I __attribute__((vector_size(32)));  // not __m256i: see vec_avx512.h
  static constexpr int kTileRows = 6;                  // of the largest product that fits into the registers
  static constexpr int kCodeTileRows = 4;              // of codes, which take some registers along
  static constexpr int kTileVectors = 2;
  static I set1_int(int32_t a) { return I(_mm256_set1_epi32(a)); }
  static R to_float(I a) { return _mm256_cvtepi32_ps(__m256i(a)); }
  static I round_int(R a) { return I(_mm256_cvtps_epi32(a)); }
  // Of lanes in -128..127.
  static void store_int8(int8_t* p, I a) {
    const __m128i low = _mm256_castsi256_si128(__m256i(a)), high = _mm256_extracti128_si256(__m256i(a), 1);
    const __m128i words = _mm_packs_epi32(low, high);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  // The larger of b and the bits of |a|, in which infinity exceeds all numbers and NaN infinity.
  static I max_magnitude(R a, I b) {
    return I(_mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7fffffff)), __m256i(b)));
  }
  // Lane by lane, the four products of the signed bytes of a and b are added to c; in b there is no -128. The processor
  // multiplies unsigned bytes by signed ones, and adds pairs in 16 bits, into which two products of signed bytes fit:
  // so a gives its signs to b.
  static I dot_quads(I a, I b, I c) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(__m256i(a)), _mm256_sign_epi8(__m256i(b), __m256i(a)));
    return c + I(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }

  static float reduce_add(R a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  static float reduce_max(R a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }

  // rows[i][j] becomes rows[j][i].
  static void transpose(R (&rows)[width]) {
    R t[width];
    for (int i = 0; i < 8; i += 2) {  // pairs of rows, 1x1 blocks
      t[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {  // 2x2 blocks
      rows[i] = _mm256_shuffle_ps(t[i], t[i + 2], _MM_SHUFFLE(1, 0, 1, 0));
      rows[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], _MM_SHUFFLE(3, 2, 3, 2));
      rows[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], _MM_SHUFFLE(1, 0, 1, 0));
      rows[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], _MM_SHUFFLE(3, 2, 3, 2));
    }
    for (int i = 0; i < 4; ++i) {  // 4x4 blocks: 128-bit lanes
      t[i] = _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x20);
      t[i + 4] = _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x31);
    }
    for (int i = 0; i < 8; ++i) rows[i] = t[i];
  }
};

}  // namespace
}  // namespace pegasus::cpu
