/* kern/x86/matmul_q_avx2.c - int8 matmul for AVX2: VPMADDUBSW, then VPMADDWD by ones. */
#define Q_DOT(u, s) _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1))
#include "kern/x86/matmul_q_256.h"

#define VARIANT(type, id, k_multiple)                                                                        \
    const imp_matmul imp_matmul_##type##_avx2 =                                                              \
        MATMUL_Q(#type, "avx2", IMP_CPU_AVX2, id, k_multiple, run_##type);
VARIANT(q8_0, IMP_Q8_0, 32)
VARIANT(q4_0, IMP_Q4_0, 32)
VARIANT(q4_k, IMP_Q4_K, 256)
VARIANT(q5_k, IMP_Q5_K, 256)
VARIANT(q6_k, IMP_Q6_K, 256)
