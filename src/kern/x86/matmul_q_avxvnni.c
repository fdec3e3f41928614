/* kern/x86/matmul_q_avxvnni.c - int8 matmul for AVX-VNNI: VPDPBUSD in its 256-bit VEX form. */
#define Q_DOT(u, s) _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), u, s)
#include "kern/x86/matmul_q_256.h"

#define VARIANT(type, id, k_multiple)                                                                        \
    const imp_matmul imp_matmul_##type##_avxvnni =                                                           \
        MATMUL_Q(#type, "avxvnni", IMP_CPU_AVXVNNI, id, k_multiple, run_##type);
VARIANT(q8_0, IMP_Q8_0, 32)
VARIANT(q4_0, IMP_Q4_0, 32)
VARIANT(q4_k, IMP_Q4_K, 256)
VARIANT(q5_k, IMP_Q5_K, 256)
VARIANT(q6_k, IMP_Q6_K, 256)
