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
  static R max(R a, R b) { return _mm512_max_ps(a, b); }
  static R round(R a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // 2^n for integral n.
  static R pow2(R n) { return _mm512_scalef_ps(_mm512_set1_ps(1.0f), n); }
  static R zero_where_less(R x, R limit, R a) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), a);
  }
  // Bit i is set where a >= b.
  static uint32_t at_least(R a, R b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }

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
