/* kern/x86/matmul_q_avx512vnni.c - int8 matmul for AVX-512 VNNI, weights as in the file.
 *
 * Idea:    a unit is 64 weights decoded to one vector of int8 q and one of f32 scales. VPDPBUSD takes unsigned by signed:
 *          x goes in as x + 128 and the accumulator starts at -128 * (sums of four q), so that its 16 int32 lanes are
 *          the exact signed sums; then acc += (scale_w * d_x) * isum in f32. Lanes 0-7 belong to the unit's first 32
 *          weights, 8-15 to the second. Tiles of 8 rows of x by 2 of w: weights decoded once serve 8 rows.
 * Always:  the order of additions of one element is the same in every tile size.
 * Source:  the block layouts of src/tensor/dtype_list.inc; the formats are described in matmul_q_256.h. */
#include "kern/body/q8_tile.h"
#include "kern/x86/simd_avx512.h"

struct unit {
    __m512i q, start; /* start: -128 * sums of four q */
    __m512 s;
};
struct prep {
    __m512 s;   /* scales of the block's 8 x 32 or 16 x 16 weights */
    __m256 min; /* of the 8 blocks of 32 */
};
typedef void (*prep_fn)(const uint8_t *block, struct prep *p);
typedef void (*unit_fn)(const uint8_t *block, const struct prep *p, uint32_t u, bool half, struct unit *out);

IMP_INLINE float f16_of(const void *p)
{
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(load_u16(p))));
}
IMP_INLINE __m256i load_256(const void *p)
{
    return _mm256_loadu_si256(p);
}
IMP_INLINE __m512i join_256(__m256i lo, __m256i hi)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1);
}
IMP_INLINE __m512i and_512(__m512i a, int b)
{
    return _mm512_and_si512(a, _mm512_set1_epi8((char)b));
}
/* lanes 0-7 = element 0 of v, lanes 8-15 = element 1 */
IMP_INLINE __m512 halves(__m512 v, int first)
{
    __m512i idx = _mm512_add_epi32(_mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0),
                                   _mm512_set1_epi32(first));
    return _mm512_permutexvar_ps(idx, v);
}

IMP_INLINE void prep_none(const uint8_t *block, struct prep *p)
{
    (void)block, (void)p;
}

/* Two f16 scales, the second zero at a lone last block. */
IMP_INLINE __m512 two_scales(const uint8_t *b, size_t next, bool half)
{
    uint32_t d = load_u16(b) | (half ? 0 : (uint32_t)load_u16(b + next) << 16);
    return halves(_mm512_castps128_ps512(_mm_cvtph_ps(_mm_cvtsi32_si128((int)d))), 0);
}
IMP_INLINE void unit_q8_0(const uint8_t *b, const struct prep *p, uint32_t u, bool half, struct unit *o)
{
    (void)p, (void)u;
    o->q = join_256(load_256(b + 2), half ? _mm256_setzero_si256() : load_256(b + 36));
    o->s = two_scales(b, 34, half);
}
IMP_INLINE void unit_q4_0(const uint8_t *b, const struct prep *p, uint32_t u, bool half, struct unit *o)
{
    (void)p, (void)u;
    __m128i a = _mm_loadu_si128((const __m128i *)(const void *)(b + 2)), c = _mm_setzero_si128();
    if (!half) c = _mm_loadu_si128((const __m128i *)(const void *)(b + 20));
    __m512i v =
        join_256(_mm256_set_m128i(_mm_srli_epi16(a, 4), a), _mm256_set_m128i(_mm_srli_epi16(c, 4), c));
    o->q = _mm512_sub_epi8(and_512(v, 15), _mm512_set1_epi8(8));
    o->s = two_scales(b, 18, half);
}

IMP_INLINE void prep_q4_k(const uint8_t *b, struct prep *p)
{
    uint32_t sc[2], mn[2];
    q4_k_scales(b + 4, sc, mn);
    __m256 s = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_set_epi32(0, 0, (int)sc[1], (int)sc[0])));
    __m256 m = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_set_epi32(0, 0, (int)mn[1], (int)mn[0])));
    p->s = _mm512_castps256_ps512(_mm256_mul_ps(_mm256_set1_ps(f16_of(b)), s));
    p->min = _mm256_mul_ps(_mm256_set1_ps(f16_of(b + 2)), m);
}
IMP_INLINE void unit_q4_k(const uint8_t *b, const struct prep *p, uint32_t u, bool half, struct unit *o)
{
    (void)half;
    __m256i v = load_256(b + 16 + 32 * u);
    o->q = and_512(join_256(v, _mm256_srli_epi16(v, 4)), 15);
    o->s = halves(p->s, (int)(2 * u));
}

IMP_INLINE void unit_q5_k(const uint8_t *b, const struct prep *p, uint32_t u, bool half, struct unit *o)
{
    unit_q4_k(b + 32, p, u, half, o);
    __m256i bits = load_256(b + 16);
    __m512i both = join_256(_mm256_set1_epi8((char)(1u << 2 * u)), _mm256_set1_epi8((char)(2u << 2 * u)));
    __mmask64 set = _mm512_test_epi8_mask(_mm512_broadcast_i64x4(bits), both);
    o->q = _mm512_or_si512(o->q, _mm512_maskz_set1_epi8(set, 16));
}

IMP_INLINE void prep_q6_k(const uint8_t *b, struct prep *p)
{
    __m512i sc = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(b + 192)));
    p->s = _mm512_mul_ps(_mm512_set1_ps(f16_of(b + 208)), _mm512_cvtepi32_ps(sc));
}
IMP_INLINE void unit_q6_k(const uint8_t *b, const struct prep *p, uint32_t u, bool half, struct unit *o)
{
    (void)half;
    __m512i lo = _mm512_loadu_si512(b + 64 * (u >> 1));
    __m512i hi = _mm512_broadcast_i64x4(load_256(b + 128 + 32 * (u >> 1)));
    if (u & 1) {
        lo = _mm512_srli_epi16(lo, 4);
        hi = _mm512_srlv_epi64(hi, _mm512_set_epi64(2, 2, 2, 2, 0, 0, 0, 0));
    } else {
        hi = _mm512_sllv_epi64(hi, _mm512_set_epi64(2, 2, 2, 2, 4, 4, 4, 4));
    }
    o->q = _mm512_sub_epi8(_mm512_or_si512(and_512(lo, 15), and_512(hi, 0x30)), _mm512_set1_epi8(32));
    __m512i idx = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    o->s = _mm512_permutexvar_ps(_mm512_add_epi32(idx, _mm512_set1_epi32((int)(4 * u))), p->s);
}

/* The scales of two blocks of x: lanes 0-7 the first, 8-15 the second. */
IMP_INLINE __m512 x_scales(const float *d)
{
    double both;
    memcpy(&both, d, 8);
    return halves(_mm512_castpd_ps(_mm512_set1_pd(both)), 0);
}

IMP_INLINE void step_64(const struct q8_tile *x, size_t b, uint32_t nx, uint32_t nw, struct unit *w,
                        __m512 acc[8][4])
{
    IMP_UNROLL
    for (uint32_t j = 0; j < nw; j++) {
        __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8((char)0x80), w[j].q);
        w[j].start = _mm512_sub_epi32(_mm512_setzero_si512(), sum);
    }
    IMP_UNROLL
    for (uint32_t i = 0; i < nx; i++) {
        __m512i xv = _mm512_loadu_si512(x->q + (b * nx + i) * 64);
        __m512 d = x_scales(x->d + (b * nx + i) * 2);
        IMP_UNROLL
        for (uint32_t j = 0; j < nw; j++) {
            __m512 isum = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(w[j].start, xv, w[j].q));
            acc[i][j] = _mm512_fmadd_ps(isum, _mm512_mul_ps(w[j].s, d), acc[i][j]);
        }
    }
}

IMP_INLINE void q_tile(const struct q_job *job, uint32_t nx, uint32_t nw, struct q_type t, prep_fn prep,
                       unit_fn unit)
{
    const struct q8_tile *x = &job->x;
    __m512 acc[8][4];
    IMP_UNROLL
    for (uint32_t i = 0; i < nx; i++) {
        IMP_UNROLL
        for (uint32_t j = 0; j < nw; j++) acc[i][j] = _mm512_setzero_ps();
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
            step_64(x, b * t.unit_per_block + u, nx, nw, w, acc);
        }
        if (!t.has_min) continue;
        IMP_UNROLL
        for (uint32_t i = 0; i < nx; i++) {
            __m512 ds = _mm512_maskz_loadu_ps(0xff, x->ds + (b * nx + i) * 8);
            IMP_UNROLL
            for (uint32_t j = 0; j < nw; j++)
                acc[i][j] = _mm512_fnmadd_ps(_mm512_zextps256_ps512(p[j].min), ds, acc[i][j]);
        }
    }
    if (t.unit_per_block == 1 && job->k % 64 != 0) {
        struct unit w[4];
        struct prep none;
        IMP_UNROLL
        for (uint32_t j = 0; j < nw; j++)
            unit(job->w + j * job->w_stride + n_block * t.block_bytes, &none, 0, true, &w[j]);
        step_64(x, n_block, nx, nw, w, acc);
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
    Q_TILE(type, 8, 2)                                                                                       \
    Q_TILE(type, 8, 1)                                                                                       \
    static void run_##type(const imp_matmul_args *a)                                                         \
    {                                                                                                        \
        static const struct q_tiles tiles = {8, {Q_TABLE_4(type), {type##_x8w2, type##_x8w1}}};              \
        q_run(a, 0x80, &tiles);                                                                              \
    }

Q_RUN(q8_0)
Q_RUN(q4_0)
Q_RUN(q4_k)
Q_RUN(q5_k)
Q_RUN(q6_k)

#define VARIANT(type, id, k_multiple)                                                                        \
    const imp_matmul imp_matmul_##type##_avx512vnni =                                                        \
        MATMUL_Q(#type, "avx512vnni", IMP_CPU_AVX512VNNI, id, k_multiple, run_##type);
VARIANT(q8_0, IMP_Q8_0, 32)
VARIANT(q4_0, IMP_Q4_0, 32)
VARIANT(q4_k, IMP_Q4_K, 256)
VARIANT(q5_k, IMP_Q5_K, 256)
VARIANT(q6_k, IMP_Q6_K, 256)
