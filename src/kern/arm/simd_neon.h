/* kern/arm/simd_neon.h - four f32 lanes; the names and rules of kern/x86/simd_avx2.h. */
#ifndef IMP_KERN_SIMD_NEON_H
#define IMP_KERN_SIMD_NEON_H

#include "kern/variant.h"

#include <arm_neon.h>

typedef float32x4_t vf;
enum { W = 4 };

IMP_INLINE vf v_set1(float c)
{
    return vdupq_n_f32(c);
}
IMP_INLINE vf v_load(const float *p)
{
    return vld1q_f32(p);
}
IMP_INLINE void v_store(float *p, vf v)
{
    vst1q_f32(p, v);
}
IMP_INLINE vf v_loadn(const float *p, size_t n, float fill)
{
    float t[4] = {fill, fill, fill, fill};
    memcpy(t, p, 4 * n);
    return vld1q_f32(t);
}
IMP_INLINE void v_storen(float *p, vf v, size_t n)
{
    float t[4];
    vst1q_f32(t, v);
    memcpy(p, t, 4 * n);
}
IMP_INLINE vf v_load_f16(const void *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}
IMP_INLINE vf v_loadn_f16(const void *p, size_t n)
{
    uint16_t h[4] = {0};
    memcpy(h, p, 2 * n);
    return v_load_f16(h);
}
IMP_INLINE void v_store_f16(uint16_t *p, vf v)
{
    vst1_u8((uint8_t *)p, vreinterpret_u8_f16(vcvt_f16_f32(v)));
}
IMP_INLINE void v_storen_f16(uint16_t *p, vf v, size_t n)
{
    uint16_t h[4];
    v_store_f16(h, v);
    memcpy(p, h, 2 * n);
}
IMP_INLINE vf v_load_bf16(const void *p)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}
IMP_INLINE vf v_loadn_bf16(const void *p, size_t n)
{
    uint16_t h[4] = {0};
    memcpy(h, p, 2 * n);
    return v_load_bf16(h);
}

IMP_INLINE vf v_fma(vf a, vf b, vf c)
{
    return vfmaq_f32(c, a, b);
}
IMP_INLINE vf v_fnma(vf a, vf b, vf c)
{
    return vfmsq_f32(c, a, b);
}
/* NaN when either is NaN. */
IMP_INLINE vf v_max(vf a, vf b)
{
    return vmaxq_f32(a, b);
}
IMP_INLINE vf v_min(vf a, vf b)
{
    return vminq_f32(a, b);
}
IMP_INLINE vf v_sqrt(vf a)
{
    return vsqrtq_f32(a);
}
IMP_INLINE vf v_round(vf a)
{
    return vrndnq_f32(a);
}
IMP_INLINE vf v_abs(vf a)
{
    return vabsq_f32(a);
}
IMP_INLINE vf v_copysign(vf mag, vf sign)
{
    return vbslq_f32(vdupq_n_u32(0x80000000u), sign, mag);
}
IMP_INLINE vf v_select_lt(vf a, vf b, vf x, vf y)
{
    return vbslq_f32(vcltq_f32(a, b), x, y);
}
IMP_INLINE vf v_pow2(vf n)
{
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}
IMP_INLINE vf v_hsum4(vf a, vf b, vf c, vf d)
{
    return vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d));
}
IMP_INLINE void v_hsum4_store(float *p, vf a, vf b, vf c, vf d)
{
    vst1q_f32(p, v_hsum4(a, b, c, d));
}
IMP_INLINE float v_hsum(vf a)
{
    return vgetq_lane_f32(v_hsum4(a, a, a, a), 0);
}
IMP_INLINE float v_hmax(vf a)
{
    return vmaxvq_f32(a);
}
IMP_INLINE void v_split(vf a, vf b, vf *x, vf *y)
{
    *x = vuzp1q_f32(a, b);
    *y = vuzp2q_f32(a, b);
}
IMP_INLINE void v_join(vf x, vf y, vf *a, vf *b)
{
    *a = vzip1q_f32(x, y);
    *b = vzip2q_f32(x, y);
}

IMP_INLINE uint32_t q8_max_bits(const float *x)
{
    uint32x4_t max = vdupq_n_u32(0), abs = vdupq_n_u32(0x7fffffff);
    for (int i = 0; i < 8; i++)
        max = vmaxq_u32(max, vandq_u32(abs, vreinterpretq_u32_f32(vld1q_f32(x + 4 * i))));
    return vmaxvq_u32(max);
}
IMP_INLINE int32_t q8_round(int8_t *q, const float *x, float inv)
{
    int32x4_t sum = vdupq_n_s32(0);
    for (int i = 0; i < 4; i++) {
        int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 8 * i), inv));
        int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 8 * i + 4), inv));
        sum = vaddq_s32(sum, vaddq_s32(a, b));
        vst1_s8(q + 8 * i, vmovn_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b))));
    }
    return vaddvq_s32(sum);
}

#endif
