/* kern/x86/attn_avx2.c - attention for AVX2. */
#include "kern/x86/simd_avx2.h"
#include "kern/body/attn_body.h"

const imp_attn imp_attn_avx2 = {.isa = "avx2", .cpu = IMP_CPU_AVX2, .row_step = 16, .run = attn_run};
