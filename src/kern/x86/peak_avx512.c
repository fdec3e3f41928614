/* kern/x86/peak_avx512.c - ceilings of AVX-512 without VNNI. */
#define PEAK_DOT(acc, x) _mm512_maddubs_epi16(acc, x)
#include "kern/x86/peak_avx512.h"

const imp_peak imp_peak_avx512 = {
    .isa = "avx512", .cpu = IMP_CPU_AVX512, .read = read_all, .int8 = int8, .f32 = f32};
