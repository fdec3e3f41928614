/* kern/x86/packed_256.h - the operations of body/matmul_p_body.h on eight rows; the includer defines p_dot. */
#include "kern/x86/simd_avx2.h"

typedef __m256i vi;
enum { R = 8 };

IMP_INLINE vi p_load(const void *p)
{
    return _mm256_loadu_si256(p);
}
IMP_INLINE vi p_set1(int32_t v)
{
    return _mm256_set1_epi32(v);
}
IMP_INLINE vi p_and(vi v, int byte)
{
    return _mm256_and_si256(v, _mm256_set1_epi8((char)byte));
}
IMP_INLINE vi p_and32(vi v, int word)
{
    return _mm256_and_si256(v, _mm256_set1_epi32(word));
}
IMP_INLINE vi p_or(vi a, vi b)
{
    return _mm256_or_si256(a, b);
}
IMP_INLINE vi p_shr4(vi v)
{
    return _mm256_srli_epi16(v, 4);
}
IMP_INLINE vi p_shl4(vi v)
{
    return _mm256_slli_epi16(v, 4);
}
IMP_INLINE vi p_shr16(vi v, uint32_t n)
{
    return _mm256_srl_epi16(v, _mm_cvtsi32_si128((int)n));
}
IMP_INLINE vi p_shr32(vi v, uint32_t n)
{
    return _mm256_srl_epi32(v, _mm_cvtsi32_si128((int)n));
}
/* Byte i of each word, signed. */
IMP_INLINE vi p_byte(vi v, uint32_t i)
{
    return _mm256_srai_epi32(_mm256_sll_epi32(v, _mm_cvtsi32_si128((int)(24 - 8 * i))), 24);
}
IMP_INLINE vf p_to_f32(vi v)
{
    return _mm256_cvtepi32_ps(v);
}
IMP_INLINE vi p_words(const uint8_t *x, int j)
{
    return _mm256_set1_epi32((int)load_u32(x + 4 * j));
}
