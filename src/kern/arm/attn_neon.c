/* kern/arm/attn_neon.c - attention for NEON. */
#include "kern/arm/attn_neon.h"

/* Products of signed bytes: two in int16 fit (127 * 127 * 2). */
IMP_INLINE vi i_dot4(vi acc, vi k, vi q)
{
    int8x16_t a = vreinterpretq_s8_s32(k), b = vreinterpretq_s8_s32(q);
    int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
    return vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
}
IMP_INLINE vi i_dot8(vi acc, key8 k, vi q)
{
    return i_dot4(acc, k, q);
}

#include "kern/body/attn_body.h"

ATTN_VARIANT(neon, "neon", IMP_CPU_NEON)
