/* kern/x86/matmul_f_avx512.c - matmul with f32 activations for AVX512. */
#include "kern/x86/simd_avx512.h"
#include "kern/body/matmul_f_body.h"

const imp_matmul imp_matmul_any_avx512 = MATMUL_F_ANY("avx512", IMP_CPU_AVX512);
const imp_matmul imp_matmul_f32_avx512 = MATMUL_F_32("avx512", IMP_CPU_AVX512);
const imp_matmul imp_matmul_f16_avx512 = MATMUL_F_16("f16", "avx512", IMP_CPU_AVX512, IMP_F16, run_f16);
const imp_matmul imp_matmul_bf16_avx512 = MATMUL_F_16("bf16", "avx512", IMP_CPU_AVX512, IMP_BF16, run_bf16);
