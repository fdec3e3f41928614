/* kern/x86/peak_avxvnni.c - ceilings of AVX2 with VPDPBUSD in 256 bits. */
#define PEAK_DOT(acc, x) _mm256_dpbusd_avx_epi32(acc, x, x)
#include "kern/x86/peak_avx2.h"

const imp_peak imp_peak_avxvnni = {
    .isa = "avxvnni", .cpu = IMP_CPU_AVXVNNI, .read = read_all, .int8 = int8, .f32 = f32};
