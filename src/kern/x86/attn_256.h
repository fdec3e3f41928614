/* kern/x86/attn_256.h - integer operations of body/attn_body.h on eight keys; the includer defines how bytes are multiplied:
 * key8, i_key8, i_dot8, i_dot4 and KEY_OFFSET, what i_dot8 takes a stored key to be above its value. */
#include "kern/x86/simd_avx2.h"

typedef __m256i vi;

IMP_INLINE vi i_load(const void *p)
{
    return _mm256_loadu_si256(p);
}
IMP_INLINE vi i_set1(int32_t v)
{
    return _mm256_set1_epi32(v);
}
IMP_INLINE vi i_word(const int8_t *p)
{
    return _mm256_set1_epi32((int)load_u32(p));
}
IMP_INLINE vi i_low4(vi v)
{
    return _mm256_and_si256(v, _mm256_set1_epi8(15));
}
IMP_INLINE vi i_high4(vi v)
{
    return i_low4(_mm256_srli_epi16(v, 4));
}
IMP_INLINE vf i_to_f32(vi v)
{
    return _mm256_cvtepi32_ps(v);
}
IMP_INLINE vf v_load_i8(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
IMP_INLINE vf v_set1_f16(const uint8_t *p)
{
    return _mm256_cvtph_ps(_mm_set1_epi16((short)load_u16(p)));
}
