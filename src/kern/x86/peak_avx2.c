/* kern/x86/peak_avx2.c - ceilings of AVX2: loads, multiply-add of int8 pairs (VPMADDUBSW), FMA, and what nibbles take. */
#define PEAK_DOT(acc, x) _mm256_maddubs_epi16(acc, x)
#include "kern/x86/peak_avx2.h"

/* Of 32 columns of nibbles, half: four products, summed in 16 bits, widened, summed. */
static double w4a8(uint64_t n_iter)
{
    __m256i s[CHAIN], w[4], x = _mm256_set1_epi8((char)(n_iter & 1)), one = _mm256_set1_epi16(1);
    IMP_UNROLL
    for (int j = 0; j < CHAIN; j++) s[j] = _mm256_set1_epi32(j);
    IMP_UNROLL
    for (int j = 0; j < 4; j++) {
        w[j] = _mm256_set1_epi8((char)j);
        __asm__ volatile("" : "+x"(w[j]));
    }
    for (uint64_t i = 0; i < n_iter; i++) {
        IMP_UNROLL
        for (int j = 0; j < CHAIN; j++) {
            __asm__ volatile("" : "+x"(x)); /* another x, as far as the compiler knows */
            __m256i p = _mm256_maddubs_epi16(w[0], x);
            IMP_UNROLL
            for (int v = 1; v < 4; v++) p = _mm256_add_epi16(p, _mm256_maddubs_epi16(w[v], x));
            s[j] = _mm256_add_epi32(s[j], _mm256_madd_epi16(p, one));
        }
    }
    IMP_UNROLL
    for (int j = 0; j < CHAIN; j++) __asm__ volatile("" : : "x"(s[j]));
    return (double)n_iter * CHAIN * 4 * 64;
}

const imp_peak imp_peak_avx2 = {
    .isa = "avx2", .cpu = IMP_CPU_AVX2, .read = read_all, .int8 = int8, .f32 = f32, .w4a8 = w4a8};
