/* kern/x86/vec_avx2.c - the row kernels for AVX2. */
#include "kern/x86/simd_avx2.h"
#include "kern/body/vec_body.h"

const imp_vec imp_vec_avx2 = {.isa = "avx2", .cpu = IMP_CPU_AVX2, VEC_FUNCTIONS};
