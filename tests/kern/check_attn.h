/* tests/kern/check_attn.h - every attention variant against the definition in f64; kern/ref is one of the checked.
 *
 * Checked: values; masks, windows, sinks; that keys outside n_key (filled with NaN, behind them an unmapped page) are not
 * touched; and that a row's bits do not depend on the rows, heads or blocks it is computed with. */
#ifndef CHECK_ATTN_H
#define CHECK_ATTN_H

#include "check.h"

struct attn_case {
    imp_attn_args a;
    float *k, *v; /* [n_key][head_dim] as the kernel sees them */
};

/* Pages in shuffled order; rows that hold no key are NaN. */
static void put_page_rows(struct check *c, uint8_t *page, const imp_attn_args *a, const float *rows)
{
    size_t elem = a->kv_dtype == IMP_F16 ? 2 : 4, hd = a->head_dim;
    uint32_t n_block = (a->n_key + a->block_tok - 1) / a->block_tok;
    (void)c;
    memset(page, 0xff, (size_t)n_block * a->block_stride - (a->row_stride - hd * elem));
    for (uint32_t j = 0; j < a->n_key; j++) {
        uint32_t b = a->block ? a->block[j / a->block_tok] : j / a->block_tok;
        uint8_t *to = page + (size_t)b * a->block_stride + (size_t)(j % a->block_tok) * a->row_stride;
        for (size_t d = 0; d < hd; d++) {
            uint16_t h = imp_f32_to_f16(rows[j * hd + d]);
            if (elem == 2)
                memcpy(to + 2 * d, &h, 2);
            else
                memcpy(to + 4 * d, &rows[j * hd + d], 4);
        }
    }
}

static uint8_t *make_pages(struct check *c, const imp_attn_args *a, const float *rows)
{
    size_t elem = a->kv_dtype == IMP_F16 ? 2 : 4;
    uint32_t n_block = (a->n_key + a->block_tok - 1) / a->block_tok;
    uint8_t *page =
        guard_bytes(c, (size_t)n_block * a->block_stride - (a->row_stride - a->head_dim * elem), false);
    put_page_rows(c, page, a, rows);
    return page;
}

static struct attn_case make_attn(struct check *c)
{
    static const uint32_t dims[] = {1, 4, 8, 20, 32, 48, 64, 72, 80, 96, 128, 256};
    struct attn_case t;
    memset(&t, 0, sizeof t);
    imp_attn_args *a = &t.a;
    a->head_dim = dims[rnd_below(c, IMP_COUNT(dims))];
    a->n_group = 1 + rnd_below(c, 5);
    a->n_row = 1 + rnd_below(c, rnd(c) & 1 ? 3 : 20);
    a->causal = (rnd(c) & 3) != 0;
    a->n_key = 1 + rnd_below(c, rnd(c) & 1 ? 40 : 300);
    if (a->n_key < a->n_row) a->n_key = a->n_row;
    a->pos0 = a->causal ? a->n_key - a->n_row : rnd_below(c, a->n_key - a->n_row + 1);
    a->window = rnd_below(c, 3) ? 0 : 1 + rnd_below(c, 100);
    a->kv_dtype = rnd(c) & 1 ? IMP_F16 : IMP_F32;
    a->block_tok = rnd(c) & 1 ? 64 : 128;
    a->scale = 1 / sqrtf((float)a->head_dim);
    a->softcap = rnd_below(c, 3) ? 0 : 20;
    size_t elem = a->kv_dtype == IMP_F16 ? 2 : 4, hd = a->head_dim;
    a->row_stride = (hd + rnd_below(c, 2) * 8) * elem;
    a->block_stride = a->block_tok * a->row_stride + rnd_below(c, 2) * 32;
    uint32_t n_block = (a->n_key + a->block_tok - 1) / a->block_tok;
    if (rnd(c) & 1) {
        uint32_t *table = guard_bytes(c, n_block * sizeof *table, false);
        for (uint32_t i = 0; i < n_block; i++) table[i] = n_block - 1 - i;
        a->block = table;
    }
    t.k = guard_floats(c, a->n_key * hd);
    t.v = guard_floats(c, a->n_key * hd);
    fill_floats(c, t.k, a->n_key * hd, DATA_UNIT);
    fill_floats(c, t.v, a->n_key * hd, rnd(c) & 1 ? DATA_UNIT : DATA_SPIKE);
    for (size_t i = 0; i < a->n_key * hd; i++) {
        t.k[i] = imp_f16_to_f32(imp_f32_to_f16(t.k[i]));
        t.v[i] = imp_f16_to_f32(imp_f32_to_f16(t.v[i]));
    }
    a->k = make_pages(c, a, t.k);
    a->v = make_pages(c, a, t.v);
    a->q_stride = a->n_group * hd + rnd_below(c, 2) * 4;
    a->out_stride = a->n_group * hd;
    float *q = guard_floats(c, a->n_row * a->q_stride);
    fill_floats(c, q, a->n_row * a->q_stride, DATA_UNIT);
    for (size_t i = 0; i < a->n_row * a->q_stride; i++) q[i] *= 8;
    a->q = q;
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
    const float *q = a->q + r * a->q_stride + h * hd;
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

/* One row and head alone, in place of `block` a plain order of pages. */
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
    a.block = NULL;
    a.block_tok = 64;
    a.row_stride = a.head_dim * (a.kv_dtype == IMP_F16 ? 2 : 4);
    a.block_stride = 64 * a.row_stride;
    a.k = make_pages(c, &a, t->k);
    a.v = make_pages(c, &a, t->v);
    run_attn(c, v, a, one);
    expect_same(c, "a row and head alone differs", one, out + r * a.out_stride + (size_t)h * a.head_dim,
                a.head_dim);
}

static void check_attn(struct check *c, const imp_attn *v)
{
    for (int i = 0; i < 300 && !c->failed; i++) {
        size_t mark = c->n_guard;
        struct attn_case t = make_attn(c);
        const imp_attn_args *a = &t.a;
        snprintf(c->where, sizeof c->where,
                 "attn_%s, row %u group %u dim %u keys %u pos %u %s window %u %s cap %g%s", v->isa, a->n_row,
                 a->n_group, a->head_dim, a->n_key, a->pos0, a->causal ? "causal" : "full", a->window,
                 a->kv_dtype == IMP_F16 ? "f16" : "f32", (double)a->softcap, a->sink ? " sink" : "");
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
        guard_release(c, mark);
    }
}

#endif
