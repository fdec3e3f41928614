/* kern/x86/attn_avx512.c - attention for AVX512. */
#include "kern/x86/simd_avx512.h"
#include "kern/body/attn_body.h"

const imp_attn imp_attn_avx512 = {.isa = "avx512", .cpu = IMP_CPU_AVX512, .row_step = 16, .run = attn_run};
