/* kern/x86/vec_avx512.c - the row kernels for AVX512. */
#include "kern/x86/simd_avx512.h"
#include "kern/body/vec_body.h"

const imp_vec imp_vec_avx512 = {.isa = "avx512", .cpu = IMP_CPU_AVX512, VEC_FUNCTIONS};
