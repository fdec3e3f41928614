/* kern/arm/matmul_f_neon.c - matmul with f32 activations for NEON. */
#include "kern/arm/simd_neon.h"
#include "kern/body/matmul_f_body.h"

const imp_matmul imp_matmul_any_neon = MATMUL_F_ANY("neon", IMP_CPU_NEON);
const imp_matmul imp_matmul_f32_neon = MATMUL_F_32("neon", IMP_CPU_NEON);
const imp_matmul imp_matmul_f16_neon = MATMUL_F_16("f16", "neon", IMP_CPU_NEON, IMP_F16, run_f16);
const imp_matmul imp_matmul_bf16_neon = MATMUL_F_16("bf16", "neon", IMP_CPU_NEON, IMP_BF16, run_bf16);
