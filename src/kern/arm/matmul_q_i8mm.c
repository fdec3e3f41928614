/* kern/arm/matmul_q_i8mm.c - int8 matmul for Arm with SMMLA, weights packed. */
#include "kern/arm/packed_neon.h"

#include "kern/body/matmul_p_body.h"

P_VARIANTS("i8mm", i8mm, IMP_CPU_DOTPROD | IMP_CPU_I8MM)
