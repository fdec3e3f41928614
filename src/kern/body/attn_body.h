/* kern/body/attn_body.h - attention over paged keys and values, for any width of vector.
 *
 * Place:   included once by attn_<isa>.c after that instruction set's simd_*.h; defines attn_run.
 * Idea:    keys in tiles of 64 positions counted from 0. A tile's f16 keys and values are widened once for all query
 *          rows that the call brings; then for each row: scores, running maximum m and sum l, and
 *          out = out * e^(m_old - m) + sum p_j v_j. Dividing by l comes last.
 * Layout:  scratch: [64][head_dim] keys, the same of values, m[n_row * n_group], l[...].
 * Always:  a row's numbers depend on its own keys and position: a score is summed over head_dim in W lanes and one
 *          tree, values are added in order of position, keys a row does not see are never read for it.
 * Source:  Milakov & Gimelshein 2018 (online softmax); Dao et al. 2022 (FlashAttention). */
#ifndef IMP_KERN_ATTN_BODY_H
#define IMP_KERN_ATTN_BODY_H

#include <math.h>

#include "kern/attn_keys.h"
#include "kern/body/math_body.h"

enum { TILE = IMP_ATTN_TILE };

struct tile {
    const float *k, *v;        /* key i of the tile at k + i * stride */
    size_t k_stride, v_stride; /* floats */
};

/* One query row and head against the tile. */
struct row {
    const float *q;
    float *out, *m, *l;
    uint32_t lo, hi; /* keys of the tile it sees, lo < hi */
    float p[TILE];   /* scores, then weights; 0 outside lo..hi-1 */
};

/* s[r][0..3] = q_r . k_(j+0..3); keys at or past hi repeat the last one, their scores are not used. */
IMP_INLINE void scores4(struct row *r, uint32_t n_r, const struct tile *t, uint32_t j, size_t head_dim)
{
    const float *k[4];
    for (uint32_t i = 0; i < 4; i++) k[i] = t->k + IMP_MIN(j + i, r->hi - 1) * t->k_stride;
    vf s[2][4];
    IMP_UNROLL
    for (uint32_t x = 0; x < n_r; x++) {
        IMP_UNROLL
        for (int i = 0; i < 4; i++) s[x][i] = v_set1(0);
    }
    size_t d = 0;
    for (; d + W <= head_dim; d += W) {
        IMP_UNROLL
        for (int i = 0; i < 4; i++) {
            vf kv = v_load(k[i] + d);
            IMP_UNROLL
            for (uint32_t x = 0; x < n_r; x++) s[x][i] = v_fma(v_load(r[x].q + d), kv, s[x][i]);
        }
    }
    if (d < head_dim) {
        for (int i = 0; i < 4; i++) {
            vf kv = v_loadn(k[i] + d, head_dim - d, 0);
            for (uint32_t x = 0; x < n_r; x++)
                s[x][i] = v_fma(v_loadn(r[x].q + d, head_dim - d, 0), kv, s[x][i]);
        }
    }
    IMP_UNROLL
    for (uint32_t x = 0; x < n_r; x++) {
        float f[4];
        v_hsum4_store(f, s[x][0], s[x][1], s[x][2], s[x][3]);
        memcpy(r[x].p + j, f, sizeof(float) * IMP_MIN(4u, r->hi - j));
    }
}

/* out[r] += sum_j p[r][j] v_j over columns d .. d + n_v*W - 1, in order of j. */
IMP_INLINE void add_values(struct row *r, uint32_t n_r, const struct tile *t, size_t d, uint32_t n_v)
{
    vf acc[2][4];
    IMP_UNROLL
    for (uint32_t x = 0; x < n_r; x++) {
        IMP_UNROLL
        for (uint32_t i = 0; i < n_v; i++) acc[x][i] = v_load(r[x].out + d + i * W);
    }
    for (uint32_t j = r->lo; j < r->hi; j++) {
        const float *v = t->v + j * t->v_stride + d;
        IMP_UNROLL
        for (uint32_t x = 0; x < n_r; x++) {
            vf p = v_set1(r[x].p[j]);
            IMP_UNROLL
            for (uint32_t i = 0; i < n_v; i++) acc[x][i] = v_fma(p, v_load(v + i * W), acc[x][i]);
        }
    }
    IMP_UNROLL
    for (uint32_t x = 0; x < n_r; x++) {
        IMP_UNROLL
        for (uint32_t i = 0; i < n_v; i++) v_store(r[x].out + d + i * W, acc[x][i]);
    }
}

IMP_INLINE void add_values_tail(struct row *r, const struct tile *t, size_t d, size_t n)
{
    vf acc = v_loadn(r->out + d, n, 0);
    for (uint32_t j = r->lo; j < r->hi; j++)
        acc = v_fma(v_set1(r->p[j]), v_loadn(t->v + j * t->v_stride + d, n, 0), acc);
    v_storen(r->out + d, acc, n);
}

/* Scores in r->p to weights: updates m and l, rescales out. */
IMP_INLINE void weigh(struct row *r, const imp_attn_args *a)
{
    float *p = r->p;
    for (uint32_t j = 0; j < TILE; j += W) {
        vf s = v_load(p + j) * v_set1(a->scale);
        if (a->softcap != 0) s = v_set1(a->softcap) * v_tanh(s / v_set1(a->softcap));
        v_store(p + j, s);
    }
    for (uint32_t j = 0; j < r->lo; j++) p[j] = -INFINITY;
    for (uint32_t j = r->hi; j < TILE; j++) p[j] = -INFINITY;
    vf mv = v_set1(*r->m);
    for (uint32_t j = 0; j < TILE; j += W) mv = v_max(mv, v_load(p + j));
    float m = v_hmax(mv);
    vf sum = v_set1(0);
    for (uint32_t j = 0; j < TILE; j += W) {
        vf e = v_exp(v_load(p + j) - v_set1(m));
        sum = sum + e;
        v_store(p + j, e);
    }
    vf shrink = v_exp(v_set1(*r->m - m));
    float c[W];
    v_store(c, shrink);
    *r->l = fmaf(*r->l, c[0], v_hsum(sum));
    *r->m = m;
    if (c[0] == 1.0f) return;
    size_t d = 0;
    for (; d + W <= a->head_dim; d += W) v_store(r->out + d, v_load(r->out + d) * shrink);
    if (d < a->head_dim)
        v_storen(r->out + d, v_loadn(r->out + d, a->head_dim - d, 0) * shrink, a->head_dim - d);
}

/* n_r rows (1, or 2 that see the same keys of the tile). */
IMP_INLINE void rows_tile(struct row *r, uint32_t n_r, const struct tile *t, const imp_attn_args *a)
{
    for (uint32_t x = 0; x < n_r; x++) memset(r[x].p, 0, sizeof r[x].p);
    for (uint32_t j = r->lo; j < r->hi; j += 4) scores4(r, n_r, t, j, a->head_dim);
    for (uint32_t x = 0; x < n_r; x++) weigh(&r[x], a);
    size_t d = 0;
    for (; d + 4 * W <= a->head_dim; d += 4 * W) add_values(r, n_r, t, d, 4);
    for (; d + W <= a->head_dim; d += W) add_values(r, n_r, t, d, 1);
    for (uint32_t x = 0; d < a->head_dim && x < n_r; x++) add_values_tail(&r[x], t, d, a->head_dim - d);
}

/* Not inlined: one copy each serves every call below. */
static __attribute__((noinline)) void one_row(struct row *r, const struct tile *t, const imp_attn_args *a)
{
    rows_tile(r, 1, t, a);
}
static __attribute__((noinline)) void two_rows(struct row *r, const struct tile *t, const imp_attn_args *a)
{
    rows_tile(r, 2, t, a);
}

/* Rows lo..hi-1 of the tile that starts at key `first`, as f32. */
static void load_tile(const imp_attn_args *a, uint64_t first, uint32_t lo, uint32_t hi, struct tile *t)
{
    size_t at = attn_key_offset(a, first), hd = a->head_dim;
    const uint8_t *k = (const uint8_t *)a->k + at, *v = (const uint8_t *)a->v + at;
    float *wide = a->scratch;
    if (a->kv_dtype == IMP_F32) {
        *t = (struct tile){(const float *)(const void *)k, (const float *)(const void *)v, a->row_stride / 4,
                           a->row_stride / 4};
        return;
    }
    *t = (struct tile){wide, wide + TILE * hd, hd, hd};
    for (uint32_t i = lo; i < hi; i++) {
        const uint8_t *kr = k + i * a->row_stride, *vr = v + i * a->row_stride;
        float *ko = wide + i * hd, *vo = wide + (TILE + i) * hd;
        size_t d = 0;
        for (; d + W <= hd; d += W) {
            v_store(ko + d, v_load_f16(kr + 2 * d));
            v_store(vo + d, v_load_f16(vr + 2 * d));
        }
        if (d < hd) {
            v_storen(ko + d, v_loadn_f16(kr + 2 * d, hd - d), hd - d);
            v_storen(vo + d, v_loadn_f16(vr + 2 * d, hd - d), hd - d);
        }
    }
}

/* Keys of the tile at `first` that query row r sees. */
IMP_INLINE bool row_in_tile(const imp_attn_args *a, uint32_t r, uint64_t first, uint32_t *lo, uint32_t *hi)
{
    uint64_t from, to;
    attn_range(a, r, &from, &to);
    from = IMP_MAX(from, first) - first;
    to = IMP_MIN(to, first + TILE);
    if (to <= first + from) return false;
    *lo = (uint32_t)from;
    *hi = (uint32_t)(to - first);
    return true;
}

static void tile_step(const imp_attn_args *a, uint64_t first, float *m, float *l)
{
    uint32_t n = a->n_row * a->n_group, lo = TILE, hi = 0, rl, rh;
    for (uint32_t r = 0; r < a->n_row; r++) {
        if (!row_in_tile(a, r, first, &rl, &rh)) continue;
        lo = IMP_MIN(lo, rl);
        hi = IMP_MAX(hi, rh);
    }
    if (lo >= hi) return;
    struct tile t;
    load_tile(a, first, lo, hi, &t);
    struct row pair[2];
    uint32_t held = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t r = i / a->n_group, h = i % a->n_group;
        if (!row_in_tile(a, r, first, &rl, &rh)) continue;
        if (held == 1 && (pair[0].lo != rl || pair[0].hi != rh)) {
            one_row(pair, &t, a);
            held = 0;
        }
        struct row *x = &pair[held++];
        x->q = a->q + r * a->q_stride + (size_t)h * a->head_dim;
        x->out = a->out + r * a->out_stride + (size_t)h * a->head_dim;
        x->m = m + i;
        x->l = l + i;
        x->lo = rl;
        x->hi = rh;
        if (held == 2) {
            two_rows(pair, &t, a);
            held = 0;
        }
    }
    if (held == 1) one_row(pair, &t, a);
}

/* The sink joins the softmax as a key without value; then out / l. */
static void finish(const imp_attn_args *a, float *out, float m, float l, const float *sink)
{
    float shrink = 1;
    if (sink != NULL) {
        float c[W], top = *sink > m ? *sink : m;
        v_store(c, v_exp(v_set1(m - top)));
        shrink = c[0];
        v_store(c, v_exp(v_set1(*sink - top)));
        l = fmaf(l, shrink, c[0]);
    }
    size_t d = 0;
    vf inv = v_set1(shrink / l);
    for (; d + W <= a->head_dim; d += W) v_store(out + d, v_load(out + d) * inv);
    if (d < a->head_dim) v_storen(out + d, v_loadn(out + d, a->head_dim - d, 0) * inv, a->head_dim - d);
}

static void attn_run(const imp_attn_args *a)
{
    uint32_t n = a->n_row * a->n_group;
    float *m = (float *)a->scratch + 2 * (size_t)TILE * a->head_dim, *l = m + n;
    for (uint32_t i = 0; i < n; i++) {
        m[i] = -INFINITY;
        l[i] = 0;
        memset(a->out + i / a->n_group * a->out_stride + (size_t)(i % a->n_group) * a->head_dim, 0,
               a->head_dim * sizeof(float));
    }
    uint64_t begin, end, unused;
    attn_range(a, 0, &begin, &unused);
    attn_range(a, a->n_row - 1, &unused, &end);
    for (uint64_t first = begin / TILE * TILE; first < end; first += TILE) tile_step(a, first, m, l);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t r = i / a->n_group, h = i % a->n_group;
        uint64_t lo, hi;
        attn_range(a, r, &lo, &hi);
        if (lo >= hi) continue;
        finish(a, a->out + r * a->out_stride + (size_t)h * a->head_dim, m[i], l[i],
               a->sink ? a->sink + h : NULL);
    }
}

#endif
