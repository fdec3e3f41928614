/* kern/arm/attn_dotprod.c - attention for NEON with SDOT. */
#include "kern/arm/attn_neon.h"

IMP_INLINE vi i_dot4(vi acc, vi k, vi q)
{
    return vdotq_s32(acc, vreinterpretq_s8_s32(k), vreinterpretq_s8_s32(q));
}
IMP_INLINE vi i_dot8(vi acc, key8 k, vi q)
{
    return i_dot4(acc, k, q);
}

#include "kern/body/attn_body.h"

ATTN_VARIANT(dotprod, "dotprod", IMP_CPU_DOTPROD)
