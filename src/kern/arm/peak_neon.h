/* kern/arm/peak_neon.h - ceilings of 128-bit vectors; the includer defines PEAK_DOT(acc, x) and PEAK_OPS per vector. */
#include "kern/variant.h"

#include <arm_neon.h>

enum { CHAIN = 16 };

static uint64_t read_all(const void *p, size_t n)
{
    const uint8_t *v = p;
    uint8x16_t s[8];
    IMP_UNROLL
    for (int j = 0; j < 8; j++) s[j] = vdupq_n_u8(0);
    for (size_t i = 0; i + 128 <= n; i += 128) {
        IMP_UNROLL
        for (int j = 0; j < 8; j++) s[j] = veorq_u8(s[j], vld1q_u8(v + i + 16 * (size_t)j));
    }
    uint64_t out = 0;
    IMP_UNROLL
    for (int j = 0; j < 8; j++) out += vaddvq_u8(s[j]);
    return out;
}

static double int8(uint64_t n_iter)
{
    int32x4_t s[CHAIN];
    int8x16_t x = vdupq_n_s8((int8_t)(n_iter & 1));
    IMP_UNROLL
    for (int j = 0; j < CHAIN; j++) s[j] = vdupq_n_s32(j);
    for (uint64_t i = 0; i < n_iter; i++) {
        IMP_UNROLL
        for (int j = 0; j < CHAIN; j++) s[j] = PEAK_DOT(s[j], x);
    }
    IMP_UNROLL
    for (int j = 0; j < CHAIN; j++) __asm__ volatile("" : : "w"(s[j]));
    return (double)n_iter * CHAIN * PEAK_OPS;
}

static double f32(uint64_t n_iter)
{
    float32x4_t s[CHAIN], x = vdupq_n_f32(0.5f), y = vdupq_n_f32((float)(n_iter & 1));
    IMP_UNROLL
    for (int j = 0; j < CHAIN; j++) s[j] = vdupq_n_f32((float)j);
    for (uint64_t i = 0; i < n_iter; i++) {
        IMP_UNROLL
        for (int j = 0; j < CHAIN; j++) s[j] = vfmaq_f32(y, s[j], x);
    }
    IMP_UNROLL
    for (int j = 0; j < CHAIN; j++) __asm__ volatile("" : : "w"(s[j]));
    return (double)n_iter * CHAIN * 8;
}
