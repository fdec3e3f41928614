/* kern/x86/a16_512.h - what matmul_a16_body.h needs of 512-bit integers; the variant's file gives a16_dot. */
#ifndef IMP_KERN_A16_512_H
#define IMP_KERN_A16_512_H

#include "kern/x86/simd_avx512.h"

typedef int32_t vi __attribute__((vector_size(64)));

IMP_INLINE vi vi_zero(void)
{
    return (vi){0};
}
IMP_INLINE vf vi_to_f32(vi a)
{
    return _mm512_cvtepi32_ps((__m512i)a);
}
IMP_INLINE vi vi_pair(const int16_t *p)
{
    int32_t both;
    memcpy(&both, p, 4);
    return (vi)_mm512_set1_epi32(both);
}
IMP_INLINE vi a16_load(const uint8_t *p)
{
    return (vi)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
/* 16 elements */
IMP_INLINE void a16_round(int16_t *q, const float *x, float inv)
{
    __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(inv)));
    _mm256_storeu_si256((__m256i *)(void *)q, _mm512_cvtsepi32_epi16(a));
}

#endif
