/* kern/x86/simd_avx2.h - eight f32 lanes as the bodies in kern/body see them.
 *
 * Place:   included by one variant file before the bodies; simd_avx512.h and simd_neon.h have the same names.
 * Idea:    v_* are single operations; a partial load fills the missing lanes with a given value and touches no
 *          byte beyond, so that a tail runs the same instructions as the rest and gives the same bits. */
#ifndef IMP_KERN_SIMD_AVX2_H
#define IMP_KERN_SIMD_AVX2_H

#include "kern/variant.h"

#include <immintrin.h>

typedef __m256 vf;
enum { W = 8 };

IMP_INLINE vf v_set1(float c)
{
    return _mm256_set1_ps(c);
}
IMP_INLINE vf v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
IMP_INLINE void v_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v);
}
/* Lanes below n set. */
IMP_INLINE __m256i v_mask(size_t n)
{
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane);
}
IMP_INLINE vf v_loadn(const float *p, size_t n, float fill)
{
    __m256i m = v_mask(n);
    return _mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, m), _mm256_castsi256_ps(m));
}
IMP_INLINE void v_storen(float *p, vf v, size_t n)
{
    _mm256_maskstore_ps(p, v_mask(n), v);
}
IMP_INLINE vf v_load_f16(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128(p));
}
IMP_INLINE vf v_loadn_f16(const void *p, size_t n)
{
    uint16_t h[8] = {0};
    memcpy(h, p, 2 * n);
    return v_load_f16(h);
}
IMP_INLINE void v_store_f16(uint16_t *p, vf v)
{
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
IMP_INLINE void v_storen_f16(uint16_t *p, vf v, size_t n)
{
    uint16_t h[8];
    v_store_f16(h, v);
    memcpy(p, h, 2 * n);
}
IMP_INLINE vf v_load_bf16(const void *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}
IMP_INLINE vf v_loadn_bf16(const void *p, size_t n)
{
    uint16_t h[8] = {0};
    memcpy(h, p, 2 * n);
    return v_load_bf16(h);
}

IMP_INLINE vf v_fma(vf a, vf b, vf c) /* a * b + c */
{
    return _mm256_fmadd_ps(a, b, c);
}
IMP_INLINE vf v_fnma(vf a, vf b, vf c) /* c - a * b */
{
    return _mm256_fnmadd_ps(a, b, c);
}
/* The second operand when either is NaN. */
IMP_INLINE vf v_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
IMP_INLINE vf v_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
IMP_INLINE vf v_sqrt(vf a)
{
    return _mm256_sqrt_ps(a);
}
IMP_INLINE vf v_round(vf a) /* nearest even */
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
IMP_INLINE vf v_abs(vf a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
IMP_INLINE vf v_copysign(vf mag, vf sign)
{
    vf m = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(m, mag), _mm256_and_ps(m, sign));
}
/* a < b ? x : y; y when a or b is NaN */
IMP_INLINE vf v_select_lt(vf a, vf b, vf x, vf y)
{
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
/* 2^n for integral n in -126..127 */
IMP_INLINE vf v_pow2(vf n)
{
    __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_castsi256_ps(e);
}
/* Sums of the lanes of four vectors, each by the same tree. */
IMP_INLINE __m128 v_hsum4(vf a, vf b, vf c, vf d)
{
    vf t = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
}
IMP_INLINE void v_hsum4_store(float *p, vf a, vf b, vf c, vf d)
{
    _mm_storeu_ps(p, v_hsum4(a, b, c, d));
}
IMP_INLINE float v_hsum(vf a)
{
    return _mm_cvtss_f32(v_hsum4(a, a, a, a));
}
IMP_INLINE float v_hmax(vf a)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
/* a, b = x0 y0 x1 y1 ...: x and y apart, and together again */
IMP_INLINE void v_split(vf a, vf b, vf *x, vf *y)
{
    *x = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
    *y = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
}
IMP_INLINE void v_join(vf x, vf y, vf *a, vf *b)
{
    *a = __builtin_shufflevector(x, y, 0, 8, 1, 9, 2, 10, 3, 11);
    *b = __builtin_shufflevector(x, y, 4, 12, 5, 13, 6, 14, 7, 15);
}

/* max |x[0..31]| as its bit pattern: integer order is that of the magnitudes, NaN above infinity above the rest. */
IMP_INLINE uint32_t q8_max_bits(const float *x)
{
    __m256i abs = _mm256_set1_epi32(0x7fffffff), max = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++)
        max = _mm256_max_epi32(max, _mm256_and_si256(abs, _mm256_castps_si256(_mm256_loadu_ps(x + 8 * i))));
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(max), _mm256_extracti128_si256(max, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}
/* q = round(x * inv), and the sum of q. */
IMP_INLINE int32_t q8_round(int8_t *q, const float *x, float inv)
{
    __m256 s = _mm256_set1_ps(inv);
    __m256i i0 = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), s));
    __m256i i1 = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), s));
    __m256i i2 = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 16), s));
    __m256i i3 = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 24), s));
    __m256i sum = _mm256_add_epi32(_mm256_add_epi32(i0, i1), _mm256_add_epi32(i2, i3));
    /* packing works within 128-bit halves; the permutation puts the groups of four in order again */
    __m256i p = _mm256_packs_epi16(_mm256_packs_epi32(i0, i1), _mm256_packs_epi32(i2, i3));
    p = _mm256_permutevar8x32_epi32(p, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)(void *)q, p);
    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1));
    return _mm_cvtsi128_si32(t);
}

#endif
