/* kern/x86/peak_amx.c - ceilings of AVX-512 with the tile unit: whole int8 tiles. */
#include "kern/x86/amx.h"

#include "kern/x86/peak_avx512.h"

/* 16 rows by 16 columns by 64 of k, into four sums in turn. */
static double int8_tiles(uint64_t n_iter)
{
    static const uint8_t zeros[1024];
    struct amx_shape shape = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        shape.rows[t] = 16;
        shape.row_bytes[t] = 64;
    }
    amx_configure(&shape);
    AMX_LOAD(4, zeros, 64);
    AMX_LOAD(5, zeros, 64);
    for (uint64_t i = 0; i < n_iter; i++) {
        AMX_DOT_I8(0, 4, 5);
        AMX_DOT_I8(1, 4, 5);
        AMX_DOT_I8(2, 4, 5);
        AMX_DOT_I8(3, 4, 5);
    }
    amx_release();
    return (double)n_iter * 4 * 2 * 16 * 16 * 64;
}

/* A tile of sums converted, scaled and added. */
IMP_INLINE void take_sums(__m512 *s, __m512i sum, __m512 d)
{
    IMP_UNROLL
    for (int j = 0; j < CHAIN; j++) {
        __asm__ volatile("" : "+v"(sum), "+v"(d)); /* others, as far as the compiler knows */
        s[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(d, d), s[j]);
    }
}

/* 16 by 16 by 32, four times, and what vectors have to do for it. */
static double w4a8_tiles(uint64_t n_iter)
{
    static const uint8_t zeros[1024];
    struct amx_shape shape = {.palette = 1};
    for (int t = 0; t < 6; t++) {
        shape.rows[t] = t == 5 ? 8 : 16;
        shape.row_bytes[t] = t == 4 ? 32 : 64;
    }
    __m512 s[CHAIN], d = _mm512_set1_ps(0.5f);
    __m512i sum = _mm512_set1_epi32((int)(n_iter & 1));
    IMP_UNROLL
    for (int j = 0; j < CHAIN; j++) s[j] = _mm512_set1_ps((float)j);
    amx_configure(&shape);
    AMX_LOAD(4, zeros, 32);
    AMX_LOAD(5, zeros, 64);
    for (uint64_t i = 0; i < n_iter; i++) {
        AMX_DOT_I8(0, 4, 5);
        take_sums(s, sum, d);
        AMX_DOT_I8(1, 4, 5);
        take_sums(s, sum, d);
        AMX_DOT_I8(2, 4, 5);
        take_sums(s, sum, d);
        AMX_DOT_I8(3, 4, 5);
        take_sums(s, sum, d);
    }
    amx_release();
    IMP_UNROLL
    for (int j = 0; j < CHAIN; j++) __asm__ volatile("" : : "v"(s[j]));
    return (double)n_iter * 4 * 2 * 16 * 16 * 32;
}

const imp_peak imp_peak_amx = {.isa = "amx",
                               .cpu = IMP_CPU_AVX512VNNI | IMP_CPU_AMX_INT8,
                               .read = read_all,
                               .int8 = int8_tiles,
                               .f32 = f32,
                               .w4a8 = w4a8_tiles};
