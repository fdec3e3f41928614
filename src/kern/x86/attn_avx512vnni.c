/* kern/x86/attn_avx512vnni.c - attention for AVX-512 VNNI. */
#include "kern/x86/attn_512.h"

enum { KEY_OFFSET = 128 };
typedef vi key8;

IMP_INLINE key8 i_key8(vi raw)
{
    return raw;
}
IMP_INLINE vi i_dot4(vi acc, vi k, vi q)
{
    return _mm512_dpbusd_epi32(acc, k, q);
}
IMP_INLINE vi i_dot8(vi acc, key8 k, vi q)
{
    return i_dot4(acc, k, q);
}

#include "kern/body/attn_body.h"

ATTN_VARIANT(avx512vnni, "avx512vnni", IMP_CPU_AVX512VNNI)
