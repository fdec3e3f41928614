/* tests/kern/check_attn.h - every attention variant against the definition in f64; kern/ref is one of the checked.
 *
 * Checked: values in every type of cache; masks, windows, sinks; that keys outside n_key (filled with NaN, behind their tile
 * an unmapped page) do not matter; and that a row's bits do not depend on the rows and heads it is computed with, nor on
 * whether chunks of keys are computed apart. */
#ifndef CHECK_ATTN_H
#define CHECK_ATTN_H

#include "check.h"

struct attn_case {
    imp_attn_args a;
    float *k, *v; /* [n_key][head_dim] as the kernel sees them; 4-bit keys are in the rotated basis */
    float *q;     /* [n_row][n_group][head_dim] likewise */
};

/* ---- tiles, written down here from the description in kern/kv.c ------------------------------------------- */

static size_t elem_bytes(imp_dtype t)
{
    return t == IMP_F32 ? 4 : t == IMP_F16 ? 2 : 1;
}
static uint64_t part_bytes(imp_dtype kv, bool key, size_t hd)
{
    if (kv == IMP_Q4_0 && key) return 64 * hd / 2 + 4 * hd;
    return kv == IMP_Q8_0 || kv == IMP_Q4_0 ? 64 * hd + 4 * hd : 64 * hd * elem_bytes(kv);
}

/* Element d of position j; quantised: q and its block's scale. */
static void set_element(uint8_t *tile, imp_dtype kv, bool key, size_t hd, size_t j, size_t d, float x, int q,
                        uint16_t scale)
{
    size_t at = key ? d * 64 + j : j * hd + d, block = key ? d / 32 * 64 + j : j * (hd / 32) + d / 32;
    uint16_t h = imp_f32_to_f16(x);
    if (kv == IMP_F32) memcpy(tile + 4 * at, &x, 4);
    if (kv == IMP_F16) memcpy(tile + 2 * at, &h, 2);
    if (kv != IMP_Q8_0 && kv != IMP_Q4_0) return;
    if (key && kv == IMP_Q4_0) {
        uint8_t *to = tile + (d / 8 * 64 + j) * 4 + d % 4;
        *to = (uint8_t)(d % 8 < 4 ? (*to & 0xf0) | (q + 8) : (*to & 0x0f) | (q + 8) << 4);
        memcpy(tile + 32 * hd + 2 * block, &scale, 2);
        return;
    }
    if (key)
        tile[(d / 4 * 64 + j) * 4 + d % 4] = (uint8_t)(q + 128);
    else
        tile[at] = (uint8_t)q;
    memcpy(tile + 64 * hd + 2 * block, &scale, 2);
}

/* Random rows on the grid of the type; their tiles go to place i of `tiles`, at a->block[i] * block_stride. */
static void fill_part(struct check *c, const imp_attn_args *a, bool key, float *rows, uint8_t *tiles)
{
    size_t hd = a->head_dim;
    int top = a->kv_dtype == IMP_Q4_0 && key ? 7 : 127;
    for (size_t j = 0; j < a->n_key; j++) {
        uint16_t scale = 0;
        for (size_t d = 0; d < hd; d++) {
            float *x = &rows[j * hd + d];
            int q = 0;
            if (a->kv_dtype == IMP_F16) *x = imp_f16_to_f32(imp_f32_to_f16(*x));
            if (a->kv_dtype == IMP_Q8_0 || a->kv_dtype == IMP_Q4_0) {
                if (d % 32 == 0) scale = imp_f32_to_f16((1 + (float)rnd_below(c, 100) / 100) / (float)top);
                q = (int)rnd_below(c, (uint32_t)(2 * top + 1)) - top;
                *x = (float)q * imp_f16_to_f32(scale);
            }
            if (tiles == NULL) continue;
            set_element(tiles + a->block[j / 64] * a->block_stride, a->kv_dtype, key, hd, j % 64, d, *x, q,
                        scale);
        }
    }
}

/* y = H x / sqrt(n) over the largest power of two that divides n, in f64: the definition. */
static void rotate(float *y, const float *x, size_t hd)
{
    size_t n = hd & ~(hd - 1);
    for (size_t i = 0; i < hd; i++) {
        double sum = 0;
        for (size_t k = 0; k < n; k++)
            sum += (double)x[i / n * n + k] * (__builtin_popcountll((i % n) & k) % 2 ? -1 : 1);
        y[i] = (float)(sum / sqrt((double)n));
    }
}

/* What int8 makes of a query (kern.h, imp_q8_block). */
static void round_q8(float *x, size_t n)
{
    for (size_t b = 0; b < n; b += 32) {
        float max = 0;
        for (size_t i = b; i < b + 32; i++) max = fmaxf(max, fabsf(x[i]));
        for (size_t i = b; i < b + 32; i++)
            x[i] = max == 0 ? 0 : rintf(x[i] * (127.0f / max)) * (max / 127.0f);
    }
}

static void make_queries(struct check *c, struct attn_case *t, bool rounds_q)
{
    imp_attn_args *a = &t->a;
    size_t hd = a->head_dim, n = (size_t)a->n_row * a->n_group;
    float *q = guard_floats(c, a->n_row * a->q_stride);
    fill_floats(c, q, a->n_row * a->q_stride, DATA_UNIT);
    for (size_t i = 0; i < a->n_row * a->q_stride; i++) q[i] *= 8;
    a->q = q;
    t->q = guard_floats(c, n * hd);
    for (size_t i = 0; i < n; i++) {
        const float *from = q + i / a->n_group * a->q_stride + i % a->n_group * hd;
        bool quantised = a->row_stride == 0 && (a->kv_dtype == IMP_Q8_0 || a->kv_dtype == IMP_Q4_0);
        if (quantised && a->kv_dtype == IMP_Q4_0)
            rotate(t->q + i * hd, from, hd);
        else
            memcpy(t->q + i * hd, from, hd * sizeof *from);
        if (quantised && rounds_q) round_q8(t->q + i * hd, hd);
    }
}

/* Keys and values: plain rows, or tiles in shuffled blocks. What holds no key is NaN, behind it is an unmapped page. */
static void make_keys(struct check *c, struct attn_case *t)
{
    imp_attn_args *a = &t->a;
    size_t hd = a->head_dim;
    uint32_t n_block = (a->n_key + 63) / 64;
    t->k = guard_floats(c, a->n_key * hd);
    t->v = guard_floats(c, a->n_key * hd);
    fill_floats(c, t->k, a->n_key * hd, DATA_UNIT);
    fill_floats(c, t->v, a->n_key * hd, rnd(c) & 1 ? DATA_UNIT : DATA_SPIKE);
    if (a->row_stride != 0) {
        a->kv_dtype = IMP_F32;
        a->k = t->k;
        a->v = t->v;
        return;
    }
    uint64_t bytes[2] = {part_bytes(a->kv_dtype, true, hd), part_bytes(a->kv_dtype, false, hd)};
    a->block_stride = IMP_MAX(bytes[0], bytes[1]) + rnd_below(c, 2) * 64;
    uint32_t *table = guard_bytes(c, n_block * sizeof *table, false);
    for (uint32_t i = 0; i < n_block; i++) table[i] = n_block - 1 - i;
    a->block = table;
    for (int part = 0; part < 2; part++) {
        size_t n = (n_block - 1) * a->block_stride + bytes[part];
        uint8_t *tiles = guard_bytes(c, n, false);
        memset(tiles, 0xff, n);
        fill_part(c, a, part == 0, part == 0 ? t->k : t->v, tiles);
        *(part == 0 ? &a->k : &a->v) = tiles;
    }
}

static struct attn_case make_attn(struct check *c, bool rounds_q)
{
    static const uint32_t dims[] = {1, 4, 8, 20, 32, 48, 64, 72, 80, 96, 128, 256};
    static const imp_dtype types[] = {IMP_F32, IMP_F16, IMP_Q8_0, IMP_Q4_0};
    struct attn_case t;
    memset(&t, 0, sizeof t);
    imp_attn_args *a = &t.a;
    a->kv_dtype = types[rnd_below(c, 4)];
    do {
        a->head_dim = dims[rnd_below(c, IMP_COUNT(dims))];
    } while (a->head_dim % 32 != 0 && (a->kv_dtype == IMP_Q8_0 || a->kv_dtype == IMP_Q4_0));
    a->n_group = 1 + rnd_below(c, 5);
    a->n_row = 1 + rnd_below(c, rnd(c) & 1 ? 3 : 20);
    a->causal = (rnd(c) & 3) != 0;
    a->n_key = 1 + rnd_below(c, rnd(c) & 1 ? 40 : rnd(c) & 1 ? 300 : 1300);
    if (a->n_key < a->n_row) a->n_key = a->n_row;
    a->pos0 = a->causal ? a->n_key - a->n_row : rnd_below(c, a->n_key - a->n_row + 1);
    a->window = rnd_below(c, 3) ? 0 : 1 + rnd_below(c, rnd(c) & 1 ? 100 : 700);
    a->scale = 1 / sqrtf((float)a->head_dim);
    a->softcap = rnd_below(c, 3) ? 0 : 20;
    a->row_stride = rnd_below(c, 4) == 0 ? a->head_dim * sizeof(float) : 0;
    make_keys(c, &t);
    a->q_stride = a->n_group * a->head_dim + rnd_below(c, 2) * 4;
    a->out_stride = a->n_group * a->head_dim;
    make_queries(c, &t, rounds_q);
    if (rnd_below(c, 3) == 0) {
        float *sink = guard_floats(c, a->n_group);
        fill_floats(c, sink, a->n_group, DATA_UNIT);
        a->sink = sink;
    }
    return t;
}

static bool sees(const imp_attn_args *a, uint32_t row, uint32_t key)
{
    int64_t i = (int64_t)a->pos0 + row, j = key;
    if (a->causal) return j <= i && (a->window == 0 || i - j < (int64_t)a->window);
    return a->window == 0 || llabs(i - j) <= (int64_t)a->window;
}

static void check_head(struct check *c, const struct attn_case *t, const float *out, uint32_t r, uint32_t h)
{
    const imp_attn_args *a = &t->a;
    size_t hd = a->head_dim;
    const float *q = t->q + (r * a->n_group + h) * hd;
    double *p = guard_bytes(c, a->n_key * sizeof *p, false), max = a->sink ? (double)a->sink[h] : -INFINITY,
           size = 0;
    for (uint32_t j = 0; j < a->n_key; j++) {
        double s = 0, terms = 0;
        for (size_t d = 0; d < hd; d++) {
            s += (double)q[d] * (double)t->k[j * hd + d];
            terms += fabs((double)q[d] * (double)t->k[j * hd + d]);
        }
        s *= (double)a->scale;
        size = fmax(size, terms * (double)a->scale);
        if (a->softcap != 0) s = (double)a->softcap * tanh(s / (double)a->softcap);
        p[j] = sees(a, r, j) ? s : -INFINITY;
        max = fmax(max, p[j]);
    }
    double sum = a->sink ? exp((double)a->sink[h] - max) : 0;
    bool any = false;
    for (uint32_t j = 0; j < a->n_key; j++) {
        any = any || p[j] > -INFINITY;
        p[j] = exp(p[j] - max);
        sum += p[j];
    }
    for (size_t d = 0; d < hd; d++) {
        double want = 0, terms = 0;
        for (uint32_t j = 0; any && j < a->n_key; j++) {
            want += p[j] / sum * (double)t->v[j * hd + d];
            terms += p[j] / sum * fabs((double)t->v[j * hd + d]);
        }
        double bound = (double)FLT_EPSILON * terms * (8 + a->n_key / 8.0 + size * (2 + (double)hd / 16));
        /* a rotated query may fall on the other side of a step of int8 than the definition's, in a few dimensions */
        if (a->row_stride == 0 && a->kv_dtype == IMP_Q4_0) bound += terms * size * 2e-3;
        expect_near(c, (r * a->n_group + h) * hd + d, out[r * a->out_stride + h * hd + d], want, bound);
    }
}

static void run_attn(struct check *c, const imp_attn *v, imp_attn_args a, float *out)
{
    size_t mark = c->n_guard, bytes = imp_attn_scratch_bytes(a.n_row, a.n_group, a.head_dim);
    a.scratch = guard_bytes(c, bytes, false);
    memset(a.scratch, 0xff, bytes);
    a.out = out;
    v->run(&a);
    guard_release(c, mark);
}

/* One row and head alone. */
static void check_alone(struct check *c, const imp_attn *v, const struct attn_case *t, const float *out)
{
    imp_attn_args a = t->a;
    uint32_t r = rnd_below(c, a.n_row), h = rnd_below(c, a.n_group);
    float *one = guard_floats(c, a.head_dim);
    a.q += r * a.q_stride + (size_t)h * a.head_dim;
    a.pos0 += r;
    a.n_row = a.n_group = 1;
    if (a.sink) a.sink += h;
    if (a.causal) a.n_key = a.pos0 + 1 + rnd_below(c, a.n_key - a.pos0); /* later keys are no matter */
    run_attn(c, v, a, one);
    expect_same(c, "a row and head alone differs", one, out + r * a.out_stride + (size_t)h * a.head_dim,
                a.head_dim);
}

/* Chunk by chunk, the last one first, then joined. */
static void check_pieces(struct check *c, const imp_attn *v, const struct attn_case *t, const float *out)
{
    imp_attn_args a = t->a;
    uint32_t n_chunk = (a.n_key + IMP_ATTN_CHUNK - 1) / IMP_ATTN_CHUNK;
    size_t floats = imp_attn_part_floats(a.n_row, a.n_group, a.head_dim);
    size_t bytes = imp_attn_scratch_bytes(a.n_row, a.n_group, a.head_dim);
    float *part = guard_floats(c, floats * n_chunk), *y = guard_floats(c, a.n_row * a.out_stride);
    memset(part, 0xff, floats * n_chunk * sizeof *part);
    for (uint32_t i = n_chunk; i > 0; i--) {
        size_t mark = c->n_guard;
        a.scratch = guard_bytes(c, bytes, false);
        memset(a.scratch, 0xff, bytes);
        v->run_chunk(&a, i - 1, part + (i - 1) * floats);
        guard_release(c, mark);
    }
    a.scratch = guard_bytes(c, bytes, false);
    a.out = y;
    v->join(&a, part);
    expect_same(c, "in pieces it differs", y, out, a.n_row * a.out_stride);
}

static void check_attn(struct check *c, const imp_attn *v)
{
    for (int i = 0; i < (v->cpu == 0 ? 100 : 300) && !c->failed; i++) {
        size_t mark = c->n_guard;
        struct attn_case t = make_attn(c, v->rounds_q);
        const imp_attn_args *a = &t.a;
        snprintf(c->where, sizeof c->where,
                 "attn_%s, row %u group %u dim %u keys %u pos %u %s window %u %s cap %g%s", v->isa, a->n_row,
                 a->n_group, a->head_dim, a->n_key, a->pos0, a->causal ? "causal" : "full", a->window,
                 a->row_stride != 0 ? "rows" : imp_dtype_get(a->kv_dtype)->name, (double)a->softcap,
                 a->sink ? " sink" : "");
        float *out = guard_floats(c, a->n_row * a->out_stride);
        run_attn(c, v, *a, out);
        for (uint32_t r = 0; r < a->n_row; r++) {
            for (uint32_t h = 0; h < a->n_group; h++) {
                size_t inner = c->n_guard;
                check_head(c, &t, out, r, h);
                guard_release(c, inner);
            }
        }
        check_alone(c, v, &t, out);
        check_pieces(c, v, &t, out);
        guard_release(c, mark);
    }
}

#endif
