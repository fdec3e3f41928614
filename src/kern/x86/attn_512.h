/* kern/x86/attn_512.h - the same as attn_256.h on sixteen keys. */
#include "kern/x86/simd_avx512.h"

typedef __m512i vi;

IMP_INLINE vi i_load(const void *p)
{
    return _mm512_loadu_si512(p);
}
IMP_INLINE vi i_set1(int32_t v)
{
    return _mm512_set1_epi32(v);
}
IMP_INLINE vi i_word(const int8_t *p)
{
    return _mm512_set1_epi32((int)load_u32(p));
}
IMP_INLINE vi i_low4(vi v)
{
    return _mm512_and_si512(v, _mm512_set1_epi8(15));
}
IMP_INLINE vi i_high4(vi v)
{
    return i_low4(_mm512_srli_epi16(v, 4));
}
IMP_INLINE vf i_to_f32(vi v)
{
    return _mm512_cvtepi32_ps(v);
}
IMP_INLINE vf v_load_i8(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
IMP_INLINE vf v_set1_f16(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)load_u16(p)));
}
