/* kern/x86/matmul_q_256.h - matmul of int8 activations by quantised weights in 256-bit vectors, weights as in the file.
 *
 * Place:   included by matmul_q_avx2.c and matmul_q_avxvnni.c, which define Q_DOT(acc0, u8, s8): int32 lanes of sums of
 *          four products, and isa names.
 * Idea:    a unit is 64 weights decoded to two vectors of int8 q and two of f32 scales. Products are made of |q| and
 *          x * sign(q), because the instructions take unsigned by signed. 32 products end in 8 int32 lanes (exact), which
 *          are scaled and added in f32: acc += (scale_w * d_x) * isum. Weights decoded once serve all rows of the tile.
 * Always:  the order of additions of one element is the same in every tile size.
 * Ranges:  |q| <= 128, |x| <= 127: a pair is at most 2 * 128 * 127 = 32512, no int16 saturation.
 * Source:  the block layouts of src/tensor/dtype_list.inc. */
#include "kern/body/q8_tile.h"
#include "kern/x86/simd_avx2.h"

/* 64 weights */
struct unit {
    __m256i q[2];
    __m256 s[2];
};
/* What a block of 256 weights needs once. */
struct prep {
    float s[16];
    __m256 min; /* of the 8 blocks of 32 */
};
typedef void (*prep_fn)(const uint8_t *block, struct prep *p);
typedef void (*unit_fn)(const uint8_t *block, const struct prep *p, uint32_t u, bool half, struct unit *out);

IMP_INLINE __m256 f16_scale(const void *p)
{
    return _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(load_u16(p))));
}
IMP_INLINE __m256i load_256(const void *p)
{
    return _mm256_loadu_si256(p);
}
IMP_INLINE __m256i and_256(__m256i a, int b)
{
    return _mm256_and_si256(a, _mm256_set1_epi8((char)b));
}

IMP_INLINE void prep_none(const uint8_t *block, struct prep *p)
{
    (void)block, (void)p;
}

/* Q8_0: f16 d, int8 q[32]; a unit is two blocks, or one at the end of a row (`half`). */
IMP_INLINE void unit_q8_0(const uint8_t *b, const struct prep *p, uint32_t u, bool half, struct unit *o)
{
    (void)p, (void)u;
    o->q[0] = load_256(b + 2);
    o->s[0] = f16_scale(b);
    if (half) return;
    o->q[1] = load_256(b + 36);
    o->s[1] = f16_scale(b + 34);
}

/* Q4_0: f16 d, 16 bytes: low nibbles are elements 0-15, high ones 16-31; weight = d * (nibble - 8). */
IMP_INLINE __m256i nibbles_q4_0(const uint8_t *b)
{
    __m128i v = _mm_loadu_si128((const __m128i *)(const void *)(b + 2));
    __m256i w = _mm256_set_m128i(_mm_srli_epi16(v, 4), v);
    return _mm256_sub_epi8(and_256(w, 15), _mm256_set1_epi8(8));
}
IMP_INLINE void unit_q4_0(const uint8_t *b, const struct prep *p, uint32_t u, bool half, struct unit *o)
{
    (void)p, (void)u;
    o->q[0] = nibbles_q4_0(b);
    o->s[0] = f16_scale(b);
    if (half) return;
    o->q[1] = nibbles_q4_0(b + 18);
    o->s[1] = f16_scale(b + 18);
}

/* Q4_K: f16 d, f16 dmin, 12 bytes of 6-bit scales and minima, 4 x 32 bytes: low nibbles, then high nibbles. */
IMP_INLINE void prep_q4_k(const uint8_t *b, struct prep *p)
{
    uint32_t sc[2], mn[2];
    q4_k_scales(b + 4, sc, mn);
    __m256 s = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_set_epi32(0, 0, (int)sc[1], (int)sc[0])));
    __m256 m = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_set_epi32(0, 0, (int)mn[1], (int)mn[0])));
    _mm256_storeu_ps(p->s, _mm256_mul_ps(f16_scale(b), s));
    p->min = _mm256_mul_ps(f16_scale(b + 2), m);
}
IMP_INLINE void unit_q4_k(const uint8_t *b, const struct prep *p, uint32_t u, bool half, struct unit *o)
{
    (void)half;
    __m256i v = load_256(b + 16 + 32 * u);
    o->q[0] = and_256(v, 15);
    o->q[1] = and_256(_mm256_srli_epi16(v, 4), 15);
    o->s[0] = _mm256_set1_ps(p->s[2 * u]);
    o->s[1] = _mm256_set1_ps(p->s[2 * u + 1]);
}

/* Q5_K: as Q4_K with 32 bytes of fifth bits before the nibbles: bit i of byte j belongs to element 32 i + j. */
IMP_INLINE __m256i fifth_256(__m256i bits, uint32_t i)
{
    __m256i bit = _mm256_set1_epi8((char)(1u << i));
    return and_256(_mm256_cmpeq_epi8(_mm256_and_si256(bits, bit), bit), 16);
}
IMP_INLINE void unit_q5_k(const uint8_t *b, const struct prep *p, uint32_t u, bool half, struct unit *o)
{
    __m256i bits = load_256(b + 16);
    unit_q4_k(b + 32, p, u, half, o);
    o->q[0] = _mm256_or_si256(o->q[0], fifth_256(bits, 2 * u));
    o->q[1] = _mm256_or_si256(o->q[1], fifth_256(bits, 2 * u + 1));
}

/* Q6_K: ql[128], qh[64], int8 scales[16] (one for 16 weights), f16 d; weight = d * scale * (q - 32). Per half of 128:
 * elements 0-31 and 32-63 take the low nibbles of ql[0..31] and ql[32..63], 64-127 the high ones; qh[0..31] brings two
 * more bits for each of the four groups, from the lowest bits up. */
IMP_INLINE void prep_q6_k(const uint8_t *b, struct prep *p)
{
    __m128i sc = _mm_loadu_si128((const __m128i *)(const void *)(b + 192));
    __m256 d = f16_scale(b + 208);
    _mm256_storeu_ps(p->s, _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(sc))));
    _mm256_storeu_ps(p->s + 8,
                     _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(sc, 8)))));
}
IMP_INLINE void unit_q6_k(const uint8_t *b, const struct prep *p, uint32_t u, bool half, struct unit *o)
{
    (void)half;
    const uint8_t *ql = b + 64 * (u >> 1);
    __m256i hi = load_256(b + 128 + 32 * (u >> 1)), l0 = load_256(ql), l1 = load_256(ql + 32), h0, h1;
    if (u & 1) {
        l0 = _mm256_srli_epi16(l0, 4);
        l1 = _mm256_srli_epi16(l1, 4);
        h0 = hi;
        h1 = _mm256_srli_epi16(hi, 2);
    } else {
        h0 = _mm256_slli_epi16(hi, 4);
        h1 = _mm256_slli_epi16(hi, 2);
    }
    __m256i off = _mm256_set1_epi8(32);
    o->q[0] = _mm256_sub_epi8(_mm256_or_si256(and_256(l0, 15), and_256(h0, 0x30)), off);
    o->q[1] = _mm256_sub_epi8(_mm256_or_si256(and_256(l1, 15), and_256(h1, 0x30)), off);
    const float *s = p->s + 4 * u;
    o->s[0] = _mm256_set_m128(_mm_set1_ps(s[1]), _mm_set1_ps(s[0]));
    o->s[1] = _mm256_set_m128(_mm_set1_ps(s[3]), _mm_set1_ps(s[2]));
}

/* Half h of unit u, a block of 32, for every row of the tile. */
IMP_INLINE void step_32(const struct q8_tile *x, size_t u, uint32_t nx, uint32_t nw, const struct unit *w,
                        uint32_t h, bool positive, __m256 acc[4][4])
{
    IMP_UNROLL
    for (uint32_t j = 0; j < nw; j++) {
        __m256i q = w[j].q[h], mag = positive ? q : _mm256_abs_epi8(q);
        IMP_UNROLL
        for (uint32_t i = 0; i < nx; i++) {
            __m256i xv = load_256(x->q + (u * nx + i) * 64 + 32 * h);
            if (!positive) xv = _mm256_sign_epi8(xv, q);
            __m256 s = _mm256_mul_ps(w[j].s[h], _mm256_set1_ps(x->d[(u * nx + i) * 2 + h]));
            acc[i][j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(Q_DOT(mag, xv)), s, acc[i][j]);
        }
    }
}

IMP_INLINE void q_tile(const struct q_job *job, uint32_t nx, uint32_t nw, struct q_type t, prep_fn prep,
                       unit_fn unit)
{
    const struct q8_tile *x = &job->x;
    __m256 acc[4][4];
    IMP_UNROLL
    for (uint32_t i = 0; i < nx; i++) {
        IMP_UNROLL
        for (uint32_t j = 0; j < nw; j++) acc[i][j] = _mm256_setzero_ps();
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
            step_32(x, at, nx, nw, w, 0, t.positive, acc);
            step_32(x, at, nx, nw, w, 1, t.positive, acc);
        }
        if (!t.has_min) continue;
        IMP_UNROLL
        for (uint32_t i = 0; i < nx; i++) {
            __m256 ds = _mm256_loadu_ps(x->ds + (b * nx + i) * 8);
            IMP_UNROLL
            for (uint32_t j = 0; j < nw; j++) acc[i][j] = _mm256_fnmadd_ps(p[j].min, ds, acc[i][j]);
        }
    }
    if (t.unit_per_block == 1 && job->k % 64 != 0) {
        struct unit w[4];
        struct prep none;
        IMP_UNROLL
        for (uint32_t j = 0; j < nw; j++)
            unit(job->w + j * job->w_stride + n_block * t.block_bytes, &none, 0, true, &w[j]);
        step_32(x, n_block, nx, nw, w, 0, t.positive, acc);
    }
    IMP_UNROLL
    for (uint32_t i = 0; i < nx; i++) {
        IMP_UNROLL
        for (uint32_t j = 0; j < nw; j++)
            job->y[i * job->y_stride + j] = v_hsum(acc[i][j]) + (job->bias ? job->bias[j] : 0);
    }
}

#define TYPE_q8_0 ((struct q_type){68, 1, false, false}), prep_none, unit_q8_0
#define TYPE_q4_0 ((struct q_type){36, 1, false, false}), prep_none, unit_q4_0
#define TYPE_q4_k ((struct q_type){144, 4, true, true}), prep_q4_k, unit_q4_k
#define TYPE_q5_k ((struct q_type){176, 4, true, true}), prep_q4_k, unit_q5_k
#define TYPE_q6_k ((struct q_type){210, 4, false, false}), prep_q6_k, unit_q6_k

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
