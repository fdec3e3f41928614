/* kern/x86/a16_256.h - what matmul_a16_body.h needs of 256-bit integers; the variant's file gives a16_dot. */
#ifndef IMP_KERN_A16_256_H
#define IMP_KERN_A16_256_H

#include "kern/x86/simd_avx2.h"

typedef int32_t vi __attribute__((vector_size(32)));

IMP_INLINE vi vi_zero(void)
{
    return (vi){0};
}
IMP_INLINE vf vi_to_f32(vi a)
{
    return _mm256_cvtepi32_ps((__m256i)a);
}
IMP_INLINE vi vi_pair(const int16_t *p)
{
    int32_t both;
    memcpy(&both, p, 4);
    return (vi)_mm256_set1_epi32(both);
}
IMP_INLINE vi a16_load(const uint8_t *p)
{
    return (vi)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)p));
}
/* 16 elements */
IMP_INLINE void a16_round(int16_t *q, const float *x, float inv)
{
    __m256 s = _mm256_set1_ps(inv);
    __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), s));
    __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), s));
    __m256i p = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
    _mm256_storeu_si256((__m256i *)(void *)q, p);
}

#endif
