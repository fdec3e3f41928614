/* kern/arm/matmul_q_dotprod.c - int8 matmul for NEON with SDOT. */
#define Q_DOT vdotq_s32
#include "kern/arm/matmul_q_neon.h"

#define VARIANT(type, id, k_multiple)                                                                        \
    const imp_matmul imp_matmul_##type##_dotprod =                                                           \
        MATMUL_Q(#type, "dotprod", IMP_CPU_DOTPROD, id, k_multiple, run_##type);
VARIANT(q8_0, IMP_Q8_0, 32)
VARIANT(q4_0, IMP_Q4_0, 32)
VARIANT(q4_k, IMP_Q4_K, 256)
VARIANT(q5_k, IMP_Q5_K, 256)
VARIANT(q6_k, IMP_Q6_K, 256)
