/* kern/x86/packed_512.h - the operations of body/matmul_p_body.h on sixteen rows, products by VPDPBUSD. */
#include "kern/x86/simd_avx512.h"

typedef __m512i vi;
enum { R = 16, P_Q8_OFFSET = 128 };

IMP_INLINE vi p_load(const void *p)
{
    return _mm512_loadu_si512(p);
}
IMP_INLINE vi p_set1(int32_t v)
{
    return _mm512_set1_epi32(v);
}
IMP_INLINE vi p_and(vi v, int byte)
{
    return _mm512_and_si512(v, _mm512_set1_epi8((char)byte));
}
IMP_INLINE vi p_and32(vi v, int word)
{
    return _mm512_and_si512(v, _mm512_set1_epi32(word));
}
IMP_INLINE vi p_or(vi a, vi b)
{
    return _mm512_or_si512(a, b);
}
IMP_INLINE vi p_shr4(vi v)
{
    return _mm512_srli_epi16(v, 4);
}
IMP_INLINE vi p_shl4(vi v)
{
    return _mm512_slli_epi16(v, 4);
}
IMP_INLINE vi p_shr16(vi v, uint32_t n)
{
    return _mm512_srl_epi16(v, _mm_cvtsi32_si128((int)n));
}
IMP_INLINE vi p_shr32(vi v, uint32_t n)
{
    return _mm512_srl_epi32(v, _mm_cvtsi32_si128((int)n));
}
/* Byte i of each word, signed. */
IMP_INLINE vi p_byte(vi v, uint32_t i)
{
    return _mm512_srai_epi32(_mm512_sll_epi32(v, _mm_cvtsi32_si128((int)(24 - 8 * i))), 24);
}
IMP_INLINE vf p_to_f32(vi v)
{
    return _mm512_cvtepi32_ps(v);
}
/* start + n words of x by n vectors of weights. */
IMP_INLINE vi p_dot(vi start, const vi *w, const uint8_t *x, int n, uint32_t max)
{
    (void)max;
    IMP_UNROLL
    for (int j = 0; j < n; j++)
        start = _mm512_dpbusd_epi32(start, w[j], _mm512_set1_epi32((int)load_u32(x + 4 * j)));
    return start;
}
#define P_GRID 1
/* A word of x by a vector of weights of sixteen rows, and of the sixteen that follow. */
IMP_INLINE void p_dot_both(vi sum[2], vi w0, vi w1, const uint8_t *x)
{
    vi xv = _mm512_set1_epi32((int)load_u32(x));
    sum[0] = _mm512_dpbusd_epi32(sum[0], w0, xv);
    sum[1] = _mm512_dpbusd_epi32(sum[1], w1, xv);
}
/* -offset, a power of two, times the word at p, in all lanes. */
IMP_INLINE vi p_offset(const void *p, int offset)
{
    vi sum = _mm512_set1_epi32((int)load_u32(p));
    return _mm512_sub_epi32(_mm512_setzero_si512(),
                            _mm512_slli_epi32(sum, (unsigned)__builtin_ctz((unsigned)offset)));
}
