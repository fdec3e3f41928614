/* kern/arm/matmul_q_neon.h - matmul of int8 activations by quantised weights in 128-bit vectors, weights as in the file.
 *
 * Place:   included by matmul_q_neon.c and matmul_q_dotprod.c, which define Q_DOT(acc, a, b): int32 lanes plus sums of
 *          products of int8, and isa names.
 * Idea:    as x86/matmul_q_256.h, in half as wide vectors: a unit of 64 weights is four vectors of int8 and four
 *          scales (one for 16 weights). 32 products end in 4 int32 lanes (exact), scaled and added in f32.
 * Always:  the order of additions of one element is the same in every tile size.
 * Ranges:  |q| <= 128, |x| <= 127: a product is at most 16256, two in int16 fit.
 * Source:  the block layouts of src/tensor/dtype_list.inc; the formats are described in x86/matmul_q_256.h. */
#include "kern/arm/simd_neon.h"
#include "kern/body/q8_tile.h"

struct unit {
    int8x16_t q[4];
    float s[4]; /* a vector's scale; s[0] = s[1] and s[2] = s[3] unless the type scales by 16 */
};
struct prep {
    float s[16], min[8];
};
typedef void (*prep_fn)(const uint8_t *block, struct prep *p);
typedef void (*unit_fn)(const uint8_t *block, const struct prep *p, uint32_t u, bool half, struct unit *out);

IMP_INLINE float f16_of(const void *p)
{
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(load_u16(p)))), 0);
}
IMP_INLINE int8x16_t load_s8(const uint8_t *p)
{
    return vreinterpretq_s8_u8(vld1q_u8(p));
}
IMP_INLINE int8x16_t minus(uint8x16_t v, int8_t off)
{
    return vsubq_s8(vreinterpretq_s8_u8(v), vdupq_n_s8(off));
}

IMP_INLINE void prep_none(const uint8_t *block, struct prep *p)
{
    (void)block, (void)p;
}

IMP_INLINE void unit_q8_0(const uint8_t *b, const struct prep *p, uint32_t u, bool half, struct unit *o)
{
    (void)p, (void)u;
    IMP_UNROLL
    for (uint32_t i = 0; i < 2; i++) {
        if (i == 1 && half) continue;
        o->q[2 * i] = load_s8(b + 34 * i + 2);
        o->q[2 * i + 1] = load_s8(b + 34 * i + 18);
        o->s[2 * i] = o->s[2 * i + 1] = f16_of(b + 34 * i);
    }
}
IMP_INLINE void unit_q4_0(const uint8_t *b, const struct prep *p, uint32_t u, bool half, struct unit *o)
{
    (void)p, (void)u;
    IMP_UNROLL
    for (uint32_t i = 0; i < 2; i++) {
        if (i == 1 && half) continue;
        uint8x16_t v = vld1q_u8(b + 18 * i + 2);
        o->q[2 * i] = minus(vandq_u8(v, vdupq_n_u8(15)), 8);
        o->q[2 * i + 1] = minus(vshrq_n_u8(v, 4), 8);
        o->s[2 * i] = o->s[2 * i + 1] = f16_of(b + 18 * i);
    }
}

IMP_INLINE void prep_q4_k(const uint8_t *b, struct prep *p)
{
    uint32_t sc[2], mn[2];
    q4_k_scales(b + 4, sc, mn);
    float d = f16_of(b), dmin = f16_of(b + 2);
    for (uint32_t i = 0; i < 8; i++) {
        p->s[i] = d * (float)(sc[i / 4] >> 8 * (i % 4) & 0xff);
        p->min[i] = dmin * (float)(mn[i / 4] >> 8 * (i % 4) & 0xff);
    }
}
IMP_INLINE void unit_q4_k(const uint8_t *b, const struct prep *p, uint32_t u, bool half, struct unit *o)
{
    (void)half;
    uint8x16_t v0 = vld1q_u8(b + 16 + 32 * u), v1 = vld1q_u8(b + 32 + 32 * u);
    o->q[0] = vreinterpretq_s8_u8(vandq_u8(v0, vdupq_n_u8(15)));
    o->q[1] = vreinterpretq_s8_u8(vandq_u8(v1, vdupq_n_u8(15)));
    o->q[2] = vreinterpretq_s8_u8(vshrq_n_u8(v0, 4));
    o->q[3] = vreinterpretq_s8_u8(vshrq_n_u8(v1, 4));
    o->s[0] = o->s[1] = p->s[2 * u];
    o->s[2] = o->s[3] = p->s[2 * u + 1];
}

IMP_INLINE void unit_q5_k(const uint8_t *b, const struct prep *p, uint32_t u, bool half, struct unit *o)
{
    unit_q4_k(b + 32, p, u, half, o);
    IMP_UNROLL
    for (uint32_t i = 0; i < 4; i++) {
        uint8x16_t bit = vdupq_n_u8((uint8_t)(1u << (2 * u + i / 2)));
        uint8x16_t five = vandq_u8(vtstq_u8(vld1q_u8(b + 16 + 16 * (i & 1)), bit), vdupq_n_u8(16));
        o->q[i] = vorrq_s8(o->q[i], vreinterpretq_s8_u8(five));
    }
}

IMP_INLINE void prep_q6_k(const uint8_t *b, struct prep *p)
{
    float d = f16_of(b + 208);
    for (uint32_t i = 0; i < 16; i++) p->s[i] = d * (float)(int8_t)b[192 + i];
}
IMP_INLINE void unit_q6_k(const uint8_t *b, const struct prep *p, uint32_t u, bool half, struct unit *o)
{
    (void)half;
    const uint8_t *ql = b + 64 * (u >> 1), *qh = b + 128 + 32 * (u >> 1);
    IMP_UNROLL
    for (uint32_t i = 0; i < 4; i++) {
        uint8x16_t lo = vld1q_u8(ql + 16 * i), hi = vld1q_u8(qh + 16 * (i & 1));
        if (u & 1) lo = vshrq_n_u8(lo, 4);
        if (u & 1)
            hi = i < 2 ? hi : vshrq_n_u8(hi, 2);
        else
            hi = i < 2 ? vshlq_n_u8(hi, 4) : vshlq_n_u8(hi, 2);
        o->q[i] = minus(vorrq_u8(vandq_u8(lo, vdupq_n_u8(15)), vandq_u8(hi, vdupq_n_u8(0x30))), 32);
        o->s[i] = p->s[4 * u + i];
    }
}

/* Half h of unit u, a block of 32, for every row of the tile. */
IMP_INLINE void step_32(const struct q8_tile *x, size_t u, uint32_t nx, uint32_t nw, const struct unit *w,
                        uint32_t h, bool by_16, float32x4_t acc[4][4])
{
    IMP_UNROLL
    for (uint32_t i = 0; i < nx; i++) {
        const uint8_t *xq = x->q + (u * nx + i) * 64 + 32 * h;
        int8x16_t x0 = load_s8(xq), x1 = load_s8(xq + 16);
        float d = x->d[(u * nx + i) * 2 + h];
        IMP_UNROLL
        for (uint32_t j = 0; j < nw; j++) {
            int32x4_t s = Q_DOT(vdupq_n_s32(0), w[j].q[2 * h], x0);
            if (by_16) {
                acc[i][j] = vfmaq_n_f32(acc[i][j], vcvtq_f32_s32(s), w[j].s[2 * h] * d);
                s = vdupq_n_s32(0);
            }
            s = Q_DOT(s, w[j].q[2 * h + 1], x1);
            acc[i][j] = vfmaq_n_f32(acc[i][j], vcvtq_f32_s32(s), w[j].s[2 * h + 1] * d);
        }
    }
}

IMP_INLINE void q_tile(const struct q_job *job, uint32_t nx, uint32_t nw, struct q_type t, bool by_16,
                       prep_fn prep, unit_fn unit)
{
    const struct q8_tile *x = &job->x;
    float32x4_t acc[4][4];
    IMP_UNROLL
    for (uint32_t i = 0; i < nx; i++) {
        IMP_UNROLL
        for (uint32_t j = 0; j < nw; j++) acc[i][j] = vdupq_n_f32(0);
    }
    size_t n_block = job->k / 64 / t.unit_per_block;
    for (size_t b = 0; b < n_block; b++) {
        struct prep p[4];
        IMP_UNROLL
        for (uint32_t j = 0; j < nw; j++) prep(job->w + j * job->w_stride + b * t.block_bytes, &p[j]);
        IMP_UNROLL
        for (uint32_t u = 0; u < t.unit_per_block; u++) {
            struct unit w[4];
            if (nx == 1) q_prefetch(job, t, b, u, nw);
            IMP_UNROLL
            for (uint32_t j = 0; j < nw; j++)
                unit(job->w + j * job->w_stride + b * t.block_bytes, &p[j], u, false, &w[j]);
            size_t at = b * t.unit_per_block + u;
            step_32(x, at, nx, nw, w, 0, by_16, acc);
            step_32(x, at, nx, nw, w, 1, by_16, acc);
        }
        if (!t.has_min) continue;
        IMP_UNROLL
        for (uint32_t i = 0; i < nx; i++) {
            const float *ds = x->ds + (b * nx + i) * 8;
            IMP_UNROLL
            for (uint32_t j = 0; j < nw; j++) {
                acc[i][j] = vfmsq_f32(acc[i][j], vld1q_f32(p[j].min), vld1q_f32(ds));
                acc[i][j] = vfmsq_f32(acc[i][j], vld1q_f32(p[j].min + 4), vld1q_f32(ds + 4));
            }
        }
    }
    if (t.unit_per_block == 1 && job->k % 64 != 0) {
        struct unit w[4];
        struct prep none;
        IMP_UNROLL
        for (uint32_t j = 0; j < nw; j++)
            unit(job->w + j * job->w_stride + n_block * t.block_bytes, &none, 0, true, &w[j]);
        step_32(x, n_block, nx, nw, w, 0, by_16, acc);
    }
    IMP_UNROLL
    for (uint32_t i = 0; i < nx; i++) {
        IMP_UNROLL
        for (uint32_t j = 0; j < nw; j++)
            job->y[i * job->y_stride + j] = v_hsum(acc[i][j]) + (job->bias ? job->bias[j] : 0);
    }
}

#define TYPE_q8_0 ((struct q_type){68, 1, false, false}), false, prep_none, unit_q8_0
#define TYPE_q4_0 ((struct q_type){36, 1, false, false}), false, prep_none, unit_q4_0
#define TYPE_q4_k ((struct q_type){144, 4, true, true}), false, prep_q4_k, unit_q4_k
#define TYPE_q5_k ((struct q_type){176, 4, true, true}), false, prep_q4_k, unit_q5_k
#define TYPE_q6_k ((struct q_type){210, 4, false, false}), true, prep_q6_k, unit_q6_k

#define Q_TILE(type, nx, nw)                                                                                 \
    static void type##_x##nx##w##nw(const struct q_job *job)                                                 \
    {                                                                                                        \
        q_tile(job, nx, nw, TYPE_##type);                                                                    \
    }
#define Q_RUN(type)                                                                                          \
    Q_TILES_4(type)                                                                                          \
    static void run_##type(const imp_matmul_args *a)                                                         \
    {                                                                                                        \
        static const struct q_tiles tiles = {4, {Q_TABLE_4(type)}};                                          \
        q_run(a, 0, &tiles);                                                                                 \
    }

Q_RUN(q8_0)
Q_RUN(q4_0)
Q_RUN(q4_k)
Q_RUN(q5_k)
Q_RUN(q6_k)
