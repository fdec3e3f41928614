/* kern/x86/peak_avx512vnni.c - ceilings of AVX-512 with VPDPBUSD. */
#define PEAK_DOT(acc, x) _mm512_dpbusd_epi32(acc, x, x)
#include "kern/x86/peak_avx512.h"

const imp_peak imp_peak_avx512vnni = {
    .isa = "avx512vnni", .cpu = IMP_CPU_AVX512VNNI, .read = read_all, .int8 = int8, .f32 = f32};
