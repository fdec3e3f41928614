/* kern/x86/simd_avx512.h - sixteen f32 lanes; the names and rules of simd_avx2.h. */
#ifndef IMP_KERN_SIMD_AVX512_H
#define IMP_KERN_SIMD_AVX512_H

#include "kern/variant.h"

#include <immintrin.h>

typedef __m512 vf;
enum { W = 16 };

IMP_INLINE vf v_set1(float c)
{
    return _mm512_set1_ps(c);
}
IMP_INLINE vf v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
IMP_INLINE void v_store(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}
IMP_INLINE __mmask16 v_mask(size_t n)
{
    return (__mmask16)((1u << n) - 1);
}
IMP_INLINE vf v_loadn(const float *p, size_t n, float fill)
{
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), v_mask(n), p);
}
IMP_INLINE void v_storen(float *p, vf v, size_t n)
{
    _mm512_mask_storeu_ps(p, v_mask(n), v);
}
IMP_INLINE vf v_load_f16(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}
IMP_INLINE vf v_loadn_f16(const void *p, size_t n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(v_mask(n), p));
}
IMP_INLINE void v_store_f16(uint16_t *p, vf v)
{
    _mm256_storeu_si256((__m256i *)(void *)p,
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
IMP_INLINE void v_storen_f16(uint16_t *p, vf v, size_t n)
{
    __m256i h = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_mask_storeu_epi16(p, v_mask(n), h);
}
IMP_INLINE vf v_load_bf16(const void *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}
IMP_INLINE vf v_loadn_bf16(const void *p, size_t n)
{
    __m256i h = _mm256_maskz_loadu_epi16(v_mask(n), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

IMP_INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
IMP_INLINE vf v_fnma(vf a, vf b, vf c)
{
    return _mm512_fnmadd_ps(a, b, c);
}
IMP_INLINE vf v_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
IMP_INLINE vf v_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
IMP_INLINE vf v_sqrt(vf a)
{
    return _mm512_sqrt_ps(a);
}
IMP_INLINE vf v_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
IMP_INLINE vf v_abs(vf a)
{
    return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a);
}
IMP_INLINE vf v_copysign(vf mag, vf sign)
{
    vf m = _mm512_set1_ps(-0.0f);
    return _mm512_or_ps(_mm512_andnot_ps(m, mag), _mm512_and_ps(m, sign));
}
IMP_INLINE vf v_select_lt(vf a, vf b, vf x, vf y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
/* a * 2^n, rounded once */
#define V_LDEXP 1
IMP_INLINE vf v_ldexp(vf a, vf n)
{
    return _mm512_scalef_ps(a, n);
}
IMP_INLINE __m256 v_fold(vf a)
{
    return _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
}
IMP_INLINE __m128 v_hsum4(vf a, vf b, vf c, vf d)
{
    __m256 t = _mm256_hadd_ps(_mm256_hadd_ps(v_fold(a), v_fold(b)), _mm256_hadd_ps(v_fold(c), v_fold(d)));
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
    __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
IMP_INLINE void v_split(vf a, vf b, vf *x, vf *y)
{
    *x = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    *y = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
IMP_INLINE void v_join(vf x, vf y, vf *a, vf *b)
{
    *a = __builtin_shufflevector(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    *b = __builtin_shufflevector(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

IMP_INLINE uint32_t q8_max_bits(const float *x)
{
    __m512i abs = _mm512_set1_epi32(0x7fffffff);
    __m512i a = _mm512_and_si512(abs, _mm512_loadu_si512(x)),
            b = _mm512_and_si512(abs, _mm512_loadu_si512(x + 16));
    return _mm512_reduce_max_epu32(_mm512_max_epu32(a, b));
}
IMP_INLINE int32_t q8_round(int8_t *q, const float *x, float inv)
{
    __m512 s = _mm512_set1_ps(inv);
    __m512i i0 = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), s));
    __m512i i1 = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16), s));
    _mm_storeu_si128((__m128i *)(void *)q, _mm512_cvtepi32_epi8(i0));
    _mm_storeu_si128((__m128i *)(void *)(q + 16), _mm512_cvtepi32_epi8(i1));
    return _mm512_reduce_add_epi32(_mm512_add_epi32(i0, i1));
}

#endif
