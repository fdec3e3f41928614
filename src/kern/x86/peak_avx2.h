/* kern/x86/peak_avx2.h - ceilings of 256-bit vectors; the includer defines PEAK_DOT(acc, x), 32 int8 multiply-adds. */
#include "kern/variant.h"

#include <immintrin.h>

enum { CHAIN = 12 }; /* more than latency times units */

static uint64_t read_all(const void *p, size_t n)
{
    const __m256i *v = p;
    __m256i s[8];
    IMP_UNROLL
    for (int j = 0; j < 8; j++) s[j] = _mm256_setzero_si256();
    for (size_t i = 0; i + 8 <= n / 32; i += 8) {
        IMP_UNROLL
        for (int j = 0; j < 8; j++) s[j] = _mm256_add_epi64(s[j], _mm256_loadu_si256(v + i + (size_t)j));
    }
    IMP_UNROLL
    for (int j = 1; j < 8; j++) s[0] = _mm256_add_epi64(s[0], s[j]);
    uint64_t out[4];
    _mm256_storeu_si256((__m256i *)(void *)out, s[0]);
    return out[0] + out[1] + out[2] + out[3];
}

static double int8(uint64_t n_iter)
{
    __m256i s[CHAIN], x = _mm256_set1_epi8((char)(n_iter & 1));
    IMP_UNROLL
    for (int j = 0; j < CHAIN; j++) s[j] = _mm256_set1_epi8((char)j);
    for (uint64_t i = 0; i < n_iter; i++) {
        IMP_UNROLL
        for (int j = 0; j < CHAIN; j++) s[j] = PEAK_DOT(s[j], x);
    }
    IMP_UNROLL
    for (int j = 0; j < CHAIN; j++) __asm__ volatile("" : : "x"(s[j]));
    return (double)n_iter * CHAIN * 64;
}

static double f32(uint64_t n_iter)
{
    __m256 s[CHAIN], x = _mm256_set1_ps(0.5f), y = _mm256_set1_ps((float)(n_iter & 1));
    IMP_UNROLL
    for (int j = 0; j < CHAIN; j++) s[j] = _mm256_set1_ps((float)j);
    for (uint64_t i = 0; i < n_iter; i++) {
        IMP_UNROLL
        for (int j = 0; j < CHAIN; j++) s[j] = _mm256_fmadd_ps(s[j], x, y);
    }
    IMP_UNROLL
    for (int j = 0; j < CHAIN; j++) __asm__ volatile("" : : "x"(s[j]));
    return (double)n_iter * CHAIN * 16;
}
