/* kern/x86/matmul_f_avx2.c - matmul with f32 activations for AVX2. */
#include "kern/x86/simd_avx2.h"
#include "kern/body/matmul_f_body.h"

const imp_matmul imp_matmul_any_avx2 = MATMUL_F_ANY("avx2", IMP_CPU_AVX2);
const imp_matmul imp_matmul_f32_avx2 = MATMUL_F_32("avx2", IMP_CPU_AVX2);
const imp_matmul imp_matmul_f16_avx2 = MATMUL_F_16("f16", "avx2", IMP_CPU_AVX2, IMP_F16, run_f16);
const imp_matmul imp_matmul_bf16_avx2 = MATMUL_F_16("bf16", "avx2", IMP_CPU_AVX2, IMP_BF16, run_bf16);
