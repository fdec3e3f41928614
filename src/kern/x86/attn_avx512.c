/* kern/x86/attn_avx512.c - attention for AVX-512 without VNNI: as attn_avx2.c, in twice as wide vectors. */
#include "kern/x86/attn_512.h"

enum { KEY_OFFSET = 0 };
typedef struct key8 {
    vi size;
    __mmask64 negative;
} key8;

IMP_INLINE key8 i_key8(vi raw)
{
    vi k = _mm512_xor_si512(raw, _mm512_set1_epi8(-128));
    return (key8){_mm512_abs_epi8(k), _mm512_movepi8_mask(k)};
}
IMP_INLINE vi i_dot4(vi acc, vi k, vi q)
{
    return _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(k, q), _mm512_set1_epi16(1)));
}
/* 2 * 127 * 127 fits int16. */
IMP_INLINE vi i_dot8(vi acc, key8 k, vi q)
{
    return i_dot4(acc, k.size, _mm512_mask_sub_epi8(q, k.negative, _mm512_setzero_si512(), q));
}

#include "kern/body/attn_body.h"

ATTN_VARIANT(avx512, "avx512", IMP_CPU_AVX512)
