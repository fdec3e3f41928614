/* kern/arm/packed_neon.h - the operations of body/matmul_p_body.h on four rows: SDOT, and SMMLA for two rows of x at a time. */
#include "kern/arm/simd_neon.h"

typedef int32x4_t vi;
enum { R = 4, P_Q8_OFFSET = 0 };
#define P_PAIRS

IMP_INLINE vi p_load(const void *p)
{
    return vreinterpretq_s32_u8(vld1q_u8(p));
}
IMP_INLINE vi p_set1(int32_t v)
{
    return vdupq_n_s32(v);
}
IMP_INLINE vi p_and(vi v, int byte)
{
    return vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(v), vdupq_n_u8((uint8_t)byte)));
}
IMP_INLINE vi p_and32(vi v, int word)
{
    return vandq_s32(v, vdupq_n_s32(word));
}
IMP_INLINE vi p_or(vi a, vi b)
{
    return vorrq_s32(a, b);
}
IMP_INLINE vi p_shr4(vi v)
{
    return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(v), 4));
}
IMP_INLINE vi p_shl4(vi v)
{
    return vreinterpretq_s32_u8(vshlq_n_u8(vreinterpretq_u8_s32(v), 4));
}
IMP_INLINE vi p_shr16(vi v, uint32_t n)
{
    return vreinterpretq_s32_u16(vshlq_u16(vreinterpretq_u16_s32(v), vdupq_n_s16((int16_t) - (int32_t)n)));
}
IMP_INLINE vi p_shr32(vi v, uint32_t n)
{
    return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(v), vdupq_n_s32(-(int32_t)n)));
}
/* Byte i of each word, signed. */
IMP_INLINE vi p_byte(vi v, uint32_t i)
{
    return vshrq_n_s32(vshlq_s32(v, vdupq_n_s32((int32_t)(24 - 8 * i))), 24);
}
IMP_INLINE vf p_to_f32(vi v)
{
    return vcvtq_f32_s32(v);
}

/* start + n words of x (4 or 8) by n vectors of weights. */
IMP_INLINE vi p_dot(vi start, const vi *w, const uint8_t *x, int n, uint32_t max)
{
    (void)max;
    IMP_UNROLL
    for (int j = 0; j < n; j += 4) {
        int8x16_t xv = vreinterpretq_s8_u8(vld1q_u8(x + 4 * j));
        start = vdotq_laneq_s32(start, vreinterpretq_s8_s32(w[j]), xv, 0);
        start = vdotq_laneq_s32(start, vreinterpretq_s8_s32(w[j + 1]), xv, 1);
        start = vdotq_laneq_s32(start, vreinterpretq_s8_s32(w[j + 2]), xv, 2);
        start = vdotq_laneq_s32(start, vreinterpretq_s8_s32(w[j + 3]), xv, 3);
    }
    return start;
}

/* The same of two rows of x: two words of two rows of w side by side meet two words of both. */
IMP_INLINE void p_dot2(vi *a, vi *b, const vi *w, const uint8_t *xa, const uint8_t *xb, int n)
{
    int32x4_t rows01 = vdupq_n_s32(0), rows23 = vdupq_n_s32(0); /* a by w, a by w, b by w, b by w */
    IMP_UNROLL
    for (int j = 0; j < n; j += 2) {
        int8x16_t x = vreinterpretq_s8_u8(vcombine_u8(vld1_u8(xa + 4 * j), vld1_u8(xb + 4 * j)));
        rows01 = vmmlaq_s32(rows01, x, vreinterpretq_s8_s32(vzip1q_s32(w[j], w[j + 1])));
        rows23 = vmmlaq_s32(rows23, x, vreinterpretq_s8_s32(vzip2q_s32(w[j], w[j + 1])));
    }
    int64x2_t p = vreinterpretq_s64_s32(rows01), q = vreinterpretq_s64_s32(rows23);
    *a = vaddq_s32(*a, vreinterpretq_s32_s64(vzip1q_s64(p, q)));
    *b = vaddq_s32(*b, vreinterpretq_s32_s64(vzip2q_s64(p, q)));
}
