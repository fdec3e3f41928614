/* kern/ref/peak_ref.c - ceilings of plain C, where no SIMD variant runs. */
#include "kern/variant.h"

static uint64_t read_all(const void *p, size_t n)
{
    uint64_t a = 0, b = 0, v[2];
    for (size_t i = 0; i + 16 <= n; i += 16) {
        memcpy(v, (const uint8_t *)p + i, 16);
        a += v[0];
        b += v[1];
    }
    return a + b;
}

static double int8(uint64_t n_iter)
{
    volatile uint32_t seed = 3;
    uint32_t a = seed, b = a + 1, c = a + 2, d = a + 3;
    for (uint64_t i = 0; i < n_iter; i++) {
        a = a * 5 + 1;
        b = b * 7 + 1;
        c = c * 9 + 1;
        d = d * 11 + 1;
    }
    seed = a + b + c + d;
    return (double)n_iter * 8;
}

static double f32(uint64_t n_iter)
{
    volatile float seed = 0.5f;
    float a = seed, b = a, c = a, d = a;
    for (uint64_t i = 0; i < n_iter; i++) {
        a = a * 0.5f + 1;
        b = b * 0.4f + 1;
        c = c * 0.3f + 1;
        d = d * 0.2f + 1;
    }
    seed = a + b + c + d;
    return (double)n_iter * 8;
}

const imp_peak imp_peak_ref = {.isa = "ref", .read = read_all, .int8 = int8, .f32 = f32};
