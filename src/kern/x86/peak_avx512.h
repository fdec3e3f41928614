/* kern/x86/peak_avx512.h - ceilings of 512-bit vectors; the includer may define PEAK_DOT(acc, x), an int8 multiply-add. */
#include "kern/variant.h"

#include <immintrin.h>

enum { CHAIN = 16 }; /* more than latency times units */

static uint64_t read_all(const void *p, size_t n)
{
    const uint8_t *v = p;
    __m512i s[8];
    IMP_UNROLL
    for (int j = 0; j < 8; j++) s[j] = _mm512_setzero_si512();
    for (size_t i = 0; i + 512 <= n; i += 512) {
        IMP_UNROLL
        for (int j = 0; j < 8; j++) s[j] = _mm512_add_epi64(s[j], _mm512_loadu_si512(v + i + 64 * (size_t)j));
    }
    IMP_UNROLL
    for (int j = 1; j < 8; j++) s[0] = _mm512_add_epi64(s[0], s[j]);
    uint64_t lane[8], sum = 0; /* the reduce intrinsic adds signed numbers, which must not overflow */
    _mm512_storeu_si512(lane, s[0]);
    for (int j = 0; j < 8; j++) sum += lane[j];
    return sum;
}

#if defined(PEAK_DOT)
static double int8(uint64_t n_iter)
{
    __m512i s[CHAIN], x = _mm512_set1_epi8((char)(n_iter & 1));
    IMP_UNROLL
    for (int j = 0; j < CHAIN; j++) s[j] = _mm512_set1_epi8((char)j);
    for (uint64_t i = 0; i < n_iter; i++) {
        IMP_UNROLL
        for (int j = 0; j < CHAIN; j++) s[j] = PEAK_DOT(s[j], x);
    }
    IMP_UNROLL
    for (int j = 0; j < CHAIN; j++) __asm__ volatile("" : : "v"(s[j]));
    return (double)n_iter * CHAIN * 128;
}
#endif

static double f32(uint64_t n_iter)
{
    __m512 s[CHAIN], x = _mm512_set1_ps(0.5f), y = _mm512_set1_ps((float)(n_iter & 1));
    IMP_UNROLL
    for (int j = 0; j < CHAIN; j++) s[j] = _mm512_set1_ps((float)j);
    for (uint64_t i = 0; i < n_iter; i++) {
        IMP_UNROLL
        for (int j = 0; j < CHAIN; j++) s[j] = _mm512_fmadd_ps(s[j], x, y);
    }
    IMP_UNROLL
    for (int j = 0; j < CHAIN; j++) __asm__ volatile("" : : "v"(s[j]));
    return (double)n_iter * CHAIN * 32;
}
