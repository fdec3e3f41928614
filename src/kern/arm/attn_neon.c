/* kern/arm/attn_neon.c - attention for NEON. */
#include "kern/arm/simd_neon.h"
#include "kern/body/attn_body.h"

const imp_attn imp_attn_neon = {.isa = "neon", .cpu = IMP_CPU_NEON, .row_step = 16, .run = attn_run};
