/* kern/arm/attn_neon.h - integer operations of body/attn_body.h on four keys; the includer defines i_dot4. */
#include "kern/arm/simd_neon.h"

typedef int32x4_t vi;
typedef int32x4_t key8;
enum { KEY_OFFSET = 0 };

IMP_INLINE vi i_load(const void *p)
{
    return vreinterpretq_s32_u8(vld1q_u8(p));
}
IMP_INLINE vi i_set1(int32_t v)
{
    return vdupq_n_s32(v);
}
IMP_INLINE vi i_word(const int8_t *p)
{
    return vdupq_n_s32((int32_t)load_u32(p));
}
IMP_INLINE vi i_low4(vi v)
{
    return vandq_s32(v, vdupq_n_s32(0x0f0f0f0f));
}
IMP_INLINE vi i_high4(vi v)
{
    return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(v), 4));
}
IMP_INLINE vf i_to_f32(vi v)
{
    return vcvtq_f32_s32(v);
}
IMP_INLINE key8 i_key8(vi raw)
{
    return vreinterpretq_s32_u8(veorq_u8(vreinterpretq_u8_s32(raw), vdupq_n_u8(0x80)));
}
IMP_INLINE vf v_load_i8(const uint8_t *p)
{
    int32_t four;
    memcpy(&four, p, 4);
    int8x8_t b = vreinterpret_s8_s32(vdup_n_s32(four));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(b))));
}
IMP_INLINE vf v_set1_f16(const uint8_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(load_u16(p))));
}
