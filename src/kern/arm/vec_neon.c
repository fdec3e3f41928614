/* kern/arm/vec_neon.c - the row kernels for NEON. */
#include "kern/arm/simd_neon.h"
#include "kern/body/vec_body.h"

const imp_vec imp_vec_neon = {.isa = "neon", .cpu = IMP_CPU_NEON, VEC_FUNCTIONS};
