/* kern/arm/matmul_q_neon.c - int8 matmul for NEON without SDOT: SMULL, SMLAL2, SADALP. */
#include "kern/variant.h"

#include <arm_neon.h>

IMP_INLINE int32x4_t dot_s8(int32x4_t acc, int8x16_t a, int8x16_t b)
{
    int16x8_t p = vmull_s8(vget_low_s8(a), vget_low_s8(b));
    return vpadalq_s16(acc, vmlal_high_s8(p, a, b));
}
#define Q_DOT dot_s8
#include "kern/arm/matmul_q_neon.h"

#define VARIANT(type, id, k_multiple)                                                                        \
    const imp_matmul imp_matmul_##type##_neon =                                                              \
        MATMUL_Q(#type, "neon", IMP_CPU_NEON, id, k_multiple, run_##type);
VARIANT(q8_0, IMP_Q8_0, 32)
VARIANT(q4_0, IMP_Q4_0, 32)
VARIANT(q4_k, IMP_Q4_K, 256)
VARIANT(q5_k, IMP_Q5_K, 256)
VARIANT(q6_k, IMP_Q6_K, 256)
