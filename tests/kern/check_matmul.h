/* tests/kern/check_matmul.h - every matmul variant against decoded weights multiplied in f64.
 *
 * Idea:    the truth is src/tensor's decoder and the products as doubles, nothing of src/kern. Checked: values within
 *          the variant's stated bound; NaN and infinity; nothing written outside the asked columns; and that the bits of
 *          a row do not depend on the rows beside it nor on how the columns are split over calls. */
#ifndef CHECK_MATMUL_H
#define CHECK_MATMUL_H

#include "check.h"

/* ---- weights ------------------------------------------------------------------------------------------- */
enum weight_kind { W_RANDOM, W_LOW, W_HIGH, W_DENORMAL, N_WEIGHT };

/* Where a block's f16 scales stand; the rest of a block is any bytes. */
static const struct scale_at {
    imp_dtype type;
    int at[2]; /* -1: none */
} scale_table[] = {
    {IMP_Q4_0, {0, -1}},   {IMP_Q4_1, {0, 2}},    {IMP_Q5_0, {0, -1}},   {IMP_Q5_1, {0, 2}},
    {IMP_Q8_0, {0, -1}},   {IMP_Q2_K, {80, 82}},  {IMP_Q3_K, {108, -1}}, {IMP_Q4_K, {0, 2}},
    {IMP_Q5_K, {0, 2}},    {IMP_Q6_K, {208, -1}}, {IMP_IQ4_NL, {0, -1}}, {IMP_IQ4_XS, {0, -1}},
    {IMP_MXFP4, {-1, -1}},
};

static void put_u16(uint8_t *p, uint16_t v)
{
    memcpy(p, &v, 2);
}

static float weight_scale(struct check *c, enum weight_kind kind)
{
    return kind == W_DENORMAL ? rnd_unit(c) * 1e-6f : rnd_unit(c) * 0.5f;
}

static void fill_plain(struct check *c, uint8_t *p, imp_dtype t, size_t n, enum weight_kind kind)
{
    for (size_t i = 0; i < n; i++) {
        float v = kind == W_DENORMAL ? rnd_unit(c) * 1e-40f : rnd_unit(c) * (kind == W_HIGH ? 1000.0f : 1.0f);
        if (t == IMP_F32)
            memcpy(p + 4 * i, &v, 4);
        else
            put_u16(p + 2 * i,
                    t == IMP_F16 ? imp_f32_to_f16(kind == W_DENORMAL ? v * 1e33f : v) : imp_f32_to_bf16(v));
    }
}

static void fill_blocks(struct check *c, uint8_t *p, imp_dtype t, size_t n_elem, enum weight_kind kind)
{
    const imp_dtype_info *info = imp_dtype_get(t);
    size_t n_block = n_elem / info->block_elem;
    for (size_t i = 0; i < n_block * info->block_bytes; i++)
        p[i] = kind == W_LOW ? 0x80 : kind == W_HIGH ? 0x7f : (uint8_t)rnd(c);
    if (kind == W_HIGH && (rnd(c) & 1)) memset(p, 0xff, n_block * info->block_bytes);
    for (size_t b = 0; b < n_block; b++, p += info->block_bytes) {
        if (t == IMP_MXFP4) p[0] = (uint8_t)(118 + rnd_below(c, 12));
        for (size_t s = 0; s < IMP_COUNT(scale_table); s++) {
            if (scale_table[s].type != t) continue;
            for (int j = 0; j < 2; j++)
                if (scale_table[s].at[j] >= 0)
                    put_u16(p + scale_table[s].at[j], imp_f32_to_f16(weight_scale(c, kind)));
        }
    }
}

/* [n][k] weights of one type in a guarded buffer. */
static imp_tensor make_weights(struct check *c, imp_dtype t, uint32_t bits, uint32_t n, uint32_t k,
                               enum weight_kind kind)
{
    imp_tensor w = {.dtype = t, .n_dim = 2, .dim = {n, k, 1, 1}};
    if (t == IMP_AFFINE) {
        w.bits = bits;
        w.group = k % 128 == 0 && bits == 4 ? 128 : k % 64 == 0 ? 64 : 32;
        w.scale_dtype = bits == 8 ? IMP_F32 : bits == 4 ? IMP_BF16 : IMP_F16;
        size_t n_group = (size_t)n * k / w.group, elem = w.scale_dtype == IMP_F32 ? 4 : 2;
        uint8_t *s = guard_bytes(c, n_group * elem, false), *b = guard_bytes(c, n_group * elem, false);
        fill_plain(c, s, w.scale_dtype, n_group, W_RANDOM);
        fill_plain(c, b, w.scale_dtype, n_group, W_RANDOM);
        w.scales = s;
        w.biases = b;
        size_t bytes = (size_t)n * k * bits / 8;
        uint8_t *p = guard_bytes(c, bytes, false);
        for (size_t i = 0; i < bytes; i++) p[i] = (uint8_t)rnd(c);
        w.data = p;
        return w;
    }
    uint64_t bytes;
    if (imp_dtype_bytes(t, (uint64_t)n * k, &bytes) != IMP_OK) exit(3);
    uint8_t *p = guard_bytes(c, bytes, (rnd(c) & 3) == 0);
    if (imp_dtype_get(t)->block_elem == 1)
        fill_plain(c, p, t, (size_t)n * k, kind);
    else
        fill_blocks(c, p, t, (size_t)n * k, kind);
    w.data = p;
    return w;
}

/* ---- activations ------------------------------------------------------------------------------------------ */
struct acts {
    void *x;
    size_t stride; /* bytes */
    double *value; /* [m][k], exactly what x stands for */
};

static void fill_q8(struct check *c, imp_q8_block *b, enum data_kind kind)
{
    b->sum = 0;
    b->d = rnd_unit(c) * (kind == DATA_TINY ? 1e-30f : 0.1f);
    for (int i = 0; i < 32; i++) {
        int q = (int)rnd_below(c, 255) - 127;
        if (kind == DATA_WIDE) q = 127;
        if (kind == DATA_SPIKE) q = rnd(c) & 1 ? 127 : -127;
        b->q[i] = (int8_t)q;
        b->sum += q;
    }
}

/* poison: -1, or the row that gets a NaN or an infinity */
static struct acts make_acts(struct check *c, const imp_matmul *v, uint32_t m, uint32_t k,
                             enum data_kind kind, int poison)
{
    struct acts a = {.value = guard_bytes(c, (size_t)m * k * sizeof(double), false)};
    if (v->x_form == IMP_X_Q8) {
        a.stride = k / 32 * sizeof(imp_q8_block);
        imp_q8_block *x = a.x = guard_bytes(c, m * a.stride, (rnd(c) & 3) == 0);
        for (size_t b = 0; b < (size_t)m * (k / 32); b++) {
            fill_q8(c, &x[b], kind);
            if (poison >= 0 && b == (size_t)poison * (k / 32)) x[b].d = NAN;
            for (size_t i = 0; i < 32; i++) a.value[b * 32 + i] = (double)x[b].d * x[b].q[i];
        }
        return a;
    }
    a.stride = k * sizeof(float);
    float *x = a.x = guard_floats(c, (size_t)m * k);
    fill_floats(c, x, (size_t)m * k, kind);
    if (poison >= 0) x[(size_t)poison * k + rnd_below(c, k)] = v->x_bits == 0 && rnd(c) & 1 ? INFINITY : NAN;
    for (size_t i = 0; i < (size_t)m * k; i++) a.value[i] = (double)x[i];
    return a;
}

/* ---- one shape -------------------------------------------------------------------------------------------- */
struct matmul_case {
    const imp_matmul *v;
    imp_tensor w;
    const void *wp;
    struct acts x;
    const float *bias;
    uint32_t m, n, k;
};

static void run_part(struct check *c, const struct matmul_case *t, uint32_t row, uint32_t m, uint32_t n0,
                     uint32_t n1, float *y)
{
    size_t mark = c->n_guard;
    void *scratch = NULL;
    if (t->v->scratch_bytes) {
        size_t bytes = (t->v->scratch_bytes(t->k) + 63) & ~(size_t)63;
        scratch = guard_bytes(c, bytes, false);
        memset(scratch, 0xff, bytes);
    }
    imp_matmul_args a = {.w = &t->w,
                         .wp = t->wp,
                         .x = (const uint8_t *)t->x.x + row * t->x.stride,
                         .x_stride = t->x.stride,
                         .y = y,
                         .y_stride = t->n,
                         .bias = t->bias,
                         .m = m,
                         .n0 = n0,
                         .n1 = n1,
                         .scratch = scratch};
    t->v->run(&a);
    guard_release(c, mark);
}

/* Q4_K and Q5_K add scale * q and -min, which may cancel: the larger of three times the block's largest weight (what the two
 * can be when some q is near 0) and, for blocks of one repeated byte, the largest terms that the scales allow. */
static double term_weight(const struct matmul_case *t, const float *w, uint32_t row, uint32_t i)
{
    if (t->w.dtype != IMP_Q4_K && t->w.dtype != IMP_Q5_K) return fabs((double)w[i]);
    uint32_t bytes = imp_dtype_get(t->w.dtype)->block_bytes;
    const uint8_t *b = (const uint8_t *)t->w.data + ((size_t)row * t->k + i) / 256 * bytes;
    if (b[16] == b[17] && b[17] == b[bytes - 1]) {
        uint16_t d[2];
        memcpy(d, b, 4);
        return 63 * 31 * fabs((double)imp_f16_to_f32(d[0])) + 63 * fabs((double)imp_f16_to_f32(d[1]));
    }
    double max = 0;
    for (uint32_t j = i & ~31u; j < (i & ~31u) + 32; j++) max = fmax(max, fabs((double)w[j]));
    return 3 * max;
}

/* What x[i] may be off by when it is rounded to 16 bits with the scale of its 32. */
static double x_rounding(const struct matmul_case *t, const double *x, uint32_t i)
{
    if (t->v->x_bits == 0) return 0;
    double max = 0;
    for (uint32_t j = i & ~31u; j < t->k && j < (i & ~31u) + 32; j++) max = fmax(max, fabs(x[j]));
    return fmin(max, fmax(max / 65534, 0x1p-100));
}

/* What a product may lose where denormals count as zero: all of it, or a sum. */
static double flushed(const struct matmul_case *t, float w, double x)
{
    if (!t->v->flushes) return 0;
    return 0x1p-125 + (fabsf(w) < FLT_MIN ? fabs((double)w * x) : 0);
}

static void check_values(struct check *c, const struct matmul_case *t, const float *y)
{
    float *w = guard_floats(c, t->k);
    for (uint32_t j = 0; j < t->n; j++) {
        imp_tensor_row_f32(&t->w, j, w);
        for (uint32_t i = 0; i < t->m; i++) {
            double sum = t->bias ? (double)t->bias[j] : 0, terms = 0, rounding = 0;
            const double *x = t->x.value + (size_t)i * t->k;
            for (uint32_t e = 0; e < t->k; e++) {
                sum += (double)w[e] * x[e];
                terms += term_weight(t, w, j, e) * fabs(x[e]);
                rounding += fabs((double)w[e]) * x_rounding(t, x, e) + flushed(t, w[e], x[e]);
            }
            double bound = ((double)t->v->err_per_k * t->k + (double)t->v->err_const) * FLT_EPSILON * terms +
                           FLT_EPSILON * fabs(sum) + t->k * (double)FLT_TRUE_MIN + rounding;
            expect_near(c, (size_t)i * t->n + j, y[(size_t)i * t->n + j], sum, bound);
        }
    }
}

static void check_invariance(struct check *c, const struct matmul_case *t, const float *y)
{
    size_t total = (size_t)t->m * t->n;
    float *z = guard_floats(c, total);
    uint32_t row = rnd_below(c, t->m);
    run_part(c, t, row, 1, 0, t->n, z);
    expect_same(c, "a row alone differs from the same row in a batch", z, y + (size_t)row * t->n, t->n);
    uint32_t some = 1 + rnd_below(c, t->m), first = rnd_below(c, t->m - some + 1);
    run_part(c, t, first, some, 0, t->n, z);
    expect_same(c, "rows in a smaller batch differ", z, y + (size_t)first * t->n, (size_t)some * t->n);
    memset(z, 0x5a, total * sizeof(float));
    float canary = z[0];
    uint32_t cut = rnd_below(c, t->n + 1);
    run_part(c, t, 0, t->m, 0, cut, z);
    for (uint32_t i = 0; i < t->m; i++)
        for (uint32_t j = cut; j < t->n; j++)
            if (!same_bits(&z[(size_t)i * t->n + j], &canary, 4))
                fail(c, "written outside n0..n1", j, 0, 0, 0);
    run_part(c, t, 0, t->m, cut, t->n, z);
    expect_same(c, "columns split over two calls differ", z, y, total);
}

static void check_shape(struct check *c, const imp_matmul *v, imp_dtype type, uint32_t bits, uint32_t m,
                        uint32_t n, uint32_t k)
{
    size_t mark = c->n_guard;
    enum weight_kind wk = (enum weight_kind)rnd_below(c, N_WEIGHT);
    enum data_kind xk = (enum data_kind)rnd_below(c, N_DATA);
    int poison = rnd_below(c, 6) == 0 ? (int)rnd_below(c, m) : -1;
    snprintf(c->where, sizeof c->where, "%s, weights %s, m=%u n=%u k=%u, data %d/%d", v->name,
             imp_dtype_get(type)->name, m, n, k, (int)wk, (int)xk);
    struct matmul_case t = {.v = v, .w = make_weights(c, type, bits, n, k, wk), .m = m, .n = n, .k = k};
    t.x = make_acts(c, v, m, k, xk, poison);
    if (v->pack) {
        void *wp = guard_bytes(c, v->packed_bytes(n, k), false);
        v->pack(&t.w, wp);
        t.wp = wp;
    }
    if (rnd(c) & 1) {
        float *bias = guard_floats(c, n);
        fill_floats(c, bias, n, DATA_UNIT);
        t.bias = bias;
    }
    float *y = guard_floats(c, (size_t)m * n);
    run_part(c, &t, 0, m, 0, n, y);
    check_values(c, &t, y);
    check_invariance(c, &t, y);
    guard_release(c, mark);
}

/* ---- all shapes of a variant ------------------------------------------------------------------------------ */
static void check_type(struct check *c, const imp_matmul *v, imp_dtype type, uint32_t bits, uint32_t k_step,
                       bool few)
{
    static const uint32_t ks[] = {1, 2, 3, 5, 7, 9, 11, 15, 17, 33},
                          ms[] = {1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 33},
                          ns[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 17, 31};
    static const uint32_t plain_k[] = {1,  2,  3,  4,  5,  7,  8,   9,   15,  16,
                                       17, 31, 33, 61, 64, 67, 127, 193, 257, 1057};
    size_t n_k = k_step == 1 ? IMP_COUNT(plain_k) : k_step == 256 ? 4 : IMP_COUNT(ks);
    for (size_t i = 0; i < n_k && !c->failed; i++) {
        uint32_t k = k_step == 1 ? plain_k[i] : ks[i] * k_step;
        for (int j = 0; j < (few ? 2 : 10) && !c->failed; j++)
            check_shape(c, v, type, bits, ms[rnd_below(c, IMP_COUNT(ms))], ns[rnd_below(c, IMP_COUNT(ns))],
                        k);
    }
    if (!few && !c->failed)
        check_shape(c, v, type, bits, 9, 301, k_step == 1 ? 37 : k_step); /* more than a chunk */
}

static void check_matmul(struct check *c, const imp_matmul *v)
{
    if (v->dtype != IMP_DTYPE_NONE) {
        check_type(c, v, v->dtype, 0, v->k_multiple, false);
        return;
    }
    static const imp_dtype plain[] = {IMP_F32, IMP_F16, IMP_BF16};
    for (size_t i = 0; i < IMP_COUNT(plain); i++) check_type(c, v, plain[i], 0, 1, true);
    for (size_t i = 0; i < IMP_COUNT(scale_table); i++) {
        imp_dtype t = scale_table[i].type;
        check_type(c, v, t, 0, imp_dtype_get(t)->block_elem, true);
    }
    static const uint32_t bits[] = {2, 3, 4, 5, 6, 8};
    for (size_t i = 0; i < IMP_COUNT(bits); i++) check_type(c, v, IMP_AFFINE, bits[i], 32, true);
}

#endif
