/* kern/x86/attn_avx2.c - attention for AVX2: bytes by VPMADDUBSW, keys as |k| and queries with k's sign. */
#include "kern/x86/attn_256.h"

enum { KEY_OFFSET = 0 };
typedef struct key8 {
    vi k, size;
} key8;

IMP_INLINE key8 i_key8(vi raw)
{
    vi k = _mm256_xor_si256(raw, _mm256_set1_epi8(-128));
    return (key8){k, _mm256_abs_epi8(k)};
}
IMP_INLINE vi i_dot4(vi acc, vi k, vi q)
{
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(k, q), _mm256_set1_epi16(1)));
}
/* 2 * 127 * 127 fits int16. */
IMP_INLINE vi i_dot8(vi acc, key8 k, vi q)
{
    return i_dot4(acc, k.size, _mm256_sign_epi8(q, k.k));
}

#include "kern/body/attn_body.h"

ATTN_VARIANT(avx2, "avx2", IMP_CPU_AVX2)
