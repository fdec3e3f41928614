/* kern/x86/peak_avx512vnni.c - ceilings of AVX-512 with VPDPBUSD. */
#define PEAK_DOT(acc, x) _mm512_dpbusd_epi32(acc, x, x)
#include "kern/x86/peak_avx512.h"

/* Of 32 columns: eight products, then the sums converted, both scales multiplied, and added to the row's. */
static double w4a8(uint64_t n_iter)
{
    enum { N = 8 };
    __m512i w[8], x = _mm512_set1_epi8((char)(n_iter & 1));
    __m512 acc[N], d = _mm512_set1_ps(0.5f);
    IMP_UNROLL
    for (int j = 0; j < N; j++) acc[j] = _mm512_set1_ps((float)j);
    IMP_UNROLL
    for (int j = 0; j < 8; j++) {
        w[j] = _mm512_set1_epi8((char)j);
        __asm__ volatile("" : "+v"(w[j]));
    }
    for (uint64_t i = 0; i < n_iter; i++) {
        IMP_UNROLL
        for (int j = 0; j < N; j++) {
            __m512i s = _mm512_setzero_si512();
            __asm__ volatile("" : "+v"(x), "+v"(d)); /* others, as far as the compiler knows */
            IMP_UNROLL
            for (int k = 0; k < 8; k++) s = _mm512_dpbusd_epi32(s, w[k], x);
            acc[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s), _mm512_mul_ps(d, d), acc[j]);
        }
    }
    IMP_UNROLL
    for (int j = 0; j < N; j++) __asm__ volatile("" : : "v"(acc[j]));
    return (double)n_iter * N * 8 * 128;
}

const imp_peak imp_peak_avx512vnni = {
    .isa = "avx512vnni", .cpu = IMP_CPU_AVX512VNNI, .read = read_all, .int8 = int8, .f32 = f32, .w4a8 = w4a8};
