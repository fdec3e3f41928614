/* kern/body/attn_body.h - attention over paged keys and values, for any width of vector.
 *
 * Place:   included once by attn_<isa>.c after that instruction set's simd_*.h; defines attn_run.
 * Idea:    keys in tiles of 64 positions counted from 0. A tile's keys are transposed (a key is a lane: no sums across
 *          lanes) and its values widened, once for all query rows that the call brings; then for some rows at a time:
 *          scores, running maximum m and sum l, and out = out * e^(m_old - m) + sum p_j v_j. Dividing by l comes last.
 * Layout:  scratch: [head_dim][64] keys, [64][head_dim] values, m[n_row * n_group], l[...].
 * Always:  a row's numbers depend on its own keys and position: a score is one chain over head_dim, values are added in
 *          order of position; a key that a row does not see does not touch its numbers, one that no row of the call sees
 *          is not read.
 * Source:  Milakov & Gimelshein 2018 (online softmax); Dao et al. 2022 (FlashAttention). */
#ifndef IMP_KERN_ATTN_BODY_H
#define IMP_KERN_ATTN_BODY_H

#include <math.h>

#include "kern/attn_keys.h"
#include "kern/body/math_body.h"

enum { TILE = IMP_ATTN_TILE };

/* Rows and heads at a time, as many as registers hold beside four vectors of keys. */
enum { RT = W == 8 ? 2 : 4 };

struct tile {
    const float *kt,
        *v; /* keys [head_dim][TILE], zeros where nobody looks; value i of the tile at v + i * v_stride */
    size_t v_stride; /* floats */
};

/* One query row and head against the tile. */
struct row {
    const float *q;
    float *out, *m, *l;
    uint32_t lo, hi; /* keys of the tile it sees, lo < hi */
    float p[TILE];   /* scores of all keys, then weights; 0 outside lo..hi-1 */
};

/* p = q . k for 4W keys from key j on, one multiply-add a dimension in order. */
IMP_INLINE void scores(struct row *r, uint32_t n_r, const struct tile *t, uint32_t j, size_t head_dim)
{
    vf s[RT][4];
    IMP_UNROLL
    for (uint32_t x = 0; x < n_r; x++) {
        IMP_UNROLL
        for (int i = 0; i < 4; i++) s[x][i] = v_set1(0);
    }
    const float *k = t->kt + j;
    for (size_t d = 0; d < head_dim; d++, k += TILE) {
        vf kv[4];
        IMP_UNROLL
        for (int i = 0; i < 4; i++) kv[i] = v_load(k + i * W);
        IMP_UNROLL
        for (uint32_t x = 0; x < n_r; x++) {
            vf q = v_set1(r[x].q[d]);
            IMP_UNROLL
            for (int i = 0; i < 4; i++) s[x][i] = v_fma(q, kv[i], s[x][i]);
        }
    }
    IMP_UNROLL
    for (uint32_t x = 0; x < n_r; x++) {
        IMP_UNROLL
        for (int i = 0; i < 4; i++) v_store(r[x].p + j + i * W, s[x][i]);
    }
}

/* out[r] += sum over keys j0..j1-1 of p[r][j] v_j for columns d .. d + n_v*W - 1, in order of j. */
IMP_INLINE void add_values(struct row *r, uint32_t n_r, const struct tile *t, uint32_t j0, uint32_t j1,
                           size_t d, uint32_t n_v)
{
    vf acc[RT][4];
    IMP_UNROLL
    for (uint32_t x = 0; x < n_r; x++) {
        IMP_UNROLL
        for (uint32_t i = 0; i < n_v; i++) acc[x][i] = v_load(r[x].out + d + i * W);
    }
    for (uint32_t j = j0; j < j1; j++) {
        const float *v = t->v + j * t->v_stride + d;
        vf vv[4];
        IMP_UNROLL
        for (uint32_t i = 0; i < n_v; i++) vv[i] = v_load(v + i * W);
        IMP_UNROLL
        for (uint32_t x = 0; x < n_r; x++) {
            vf p = v_set1(r[x].p[j]);
            IMP_UNROLL
            for (uint32_t i = 0; i < n_v; i++) acc[x][i] = v_fma(p, vv[i], acc[x][i]);
        }
    }
    IMP_UNROLL
    for (uint32_t x = 0; x < n_r; x++) {
        IMP_UNROLL
        for (uint32_t i = 0; i < n_v; i++) v_store(r[x].out + d + i * W, acc[x][i]);
    }
}

IMP_INLINE void add_values_tail(struct row *r, const struct tile *t, uint32_t j0, uint32_t j1, size_t d,
                                size_t n)
{
    vf acc = v_loadn(r->out + d, n, 0);
    for (uint32_t j = j0; j < j1; j++)
        acc = v_fma(v_set1(r->p[j]), v_loadn(t->v + j * t->v_stride + d, n, 0), acc);
    v_storen(r->out + d, acc, n);
}

/* All columns of keys j0..j1-1, which all n_r rows see. */
IMP_INLINE void add_keys(struct row *r, uint32_t n_r, const struct tile *t, uint32_t j0, uint32_t j1,
                         size_t head_dim)
{
    if (j0 >= j1) return;
    size_t d = 0;
    for (; d + 4 * W <= head_dim; d += 4 * W) add_values(r, n_r, t, j0, j1, d, 4);
    for (; d + 2 * W <= head_dim; d += 2 * W) add_values(r, n_r, t, j0, j1, d, 2);
    for (; d + W <= head_dim; d += W) add_values(r, n_r, t, j0, j1, d, 1);
    for (uint32_t x = 0; d < head_dim && x < n_r; x++) add_values_tail(&r[x], t, j0, j1, d, head_dim - d);
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

/* One row, not inlined: a copy serves all that is left over. */
static __attribute__((noinline)) void add_alone(struct row *r, const struct tile *t, uint32_t j0, uint32_t j1,
                                                size_t head_dim)
{
    add_keys(r, 1, t, j0, j1, head_dim);
}

/* n_r rows: keys that all see together, before and behind these each row's own. */
IMP_INLINE void rows_tile(struct row *r, uint32_t n_r, const struct tile *t, const imp_attn_args *a)
{
    uint32_t lo = 0, hi = TILE;
    for (uint32_t j = 0; j < TILE; j += 4 * W) scores(r, n_r, t, j, a->head_dim);
    for (uint32_t x = 0; x < n_r; x++) {
        weigh(&r[x], a);
        lo = IMP_MAX(lo, r[x].lo);
        hi = IMP_MIN(hi, r[x].hi);
    }
    hi = IMP_MAX(lo, hi);
    for (uint32_t x = 0; x < n_r; x++) add_alone(&r[x], t, r[x].lo, IMP_MIN(lo, r[x].hi), a->head_dim);
    add_keys(r, n_r, t, lo, hi, a->head_dim);
    for (uint32_t x = 0; x < n_r; x++) add_alone(&r[x], t, IMP_MAX(hi, r[x].lo), r[x].hi, a->head_dim);
}

static __attribute__((noinline)) void one_row(struct row *r, const struct tile *t, const imp_attn_args *a)
{
    rows_tile(r, 1, t, a);
}
static __attribute__((noinline)) void full_rows(struct row *r, const struct tile *t, const imp_attn_args *a)
{
    rows_tile(r, RT, t, a);
}

IMP_INLINE vf load_kv(const uint8_t *p, size_t d, size_t n, bool half)
{
    if (half) return n >= W ? v_load_f16(p + 2 * d) : v_loadn_f16(p + 2 * d, n);
    const float *f = (const float *)(const void *)p + d;
    return n >= W ? v_load(f) : v_loadn(f, n, 0);
}

/* W keys by W dimensions from dimension d on; keys outside lo..hi-1 are zeros and not read. log2(W) rounds of zipping the
 * upper with the lower half of the vectors transpose them. */
IMP_INLINE void transpose_keys(const imp_attn_args *a, const uint8_t *k, uint32_t j, uint32_t lo, uint32_t hi,
                               size_t d, float *to, bool half)
{
    vf x[W], y[W];
    size_t n = a->head_dim - d;
    IMP_UNROLL
    for (uint32_t i = 0; i < W; i++)
        x[i] = j + i >= lo && j + i < hi ? load_kv(k + (j + i) * a->row_stride, d, n, half) : v_set1(0);
    IMP_UNROLL
    for (uint32_t step = 1; step < W; step *= 2) {
        IMP_UNROLL
        for (uint32_t i = 0; i < W / 2; i++) v_join(x[i], x[i + W / 2], &y[2 * i], &y[2 * i + 1]);
        IMP_UNROLL
        for (uint32_t i = 0; i < W; i++) x[i] = y[i];
    }
    IMP_UNROLL
    for (uint32_t i = 0; i < W; i++)
        if (i < n) v_store(to + (d + i) * TILE + j, x[i]);
}

/* Keys lo..hi-1 of the tile that starts at key `first`, transposed, and their values as f32. */
IMP_INLINE void load_tile_of(const imp_attn_args *a, uint64_t first, uint32_t lo, uint32_t hi, struct tile *t,
                             bool half)
{
    size_t at = attn_key_offset(a, first), hd = a->head_dim;
    const uint8_t *k = (const uint8_t *)a->k + at, *v = (const uint8_t *)a->v + at;
    float *kt = a->scratch, *wide = kt + TILE * hd;
    for (uint32_t j = 0; j < TILE; j += W)
        for (size_t d = 0; d < hd; d += W) transpose_keys(a, k, j, lo, hi, d, kt, half);
    *t = (struct tile){kt, (const float *)(const void *)v, a->row_stride / 4};
    if (!half) return;
    *t = (struct tile){kt, wide, hd};
    for (uint32_t i = lo; i < hi; i++) {
        const uint8_t *vr = v + i * a->row_stride;
        float *vo = wide + i * hd;
        size_t d = 0;
        for (; d + W <= hd; d += W) v_store(vo + d, v_load_f16(vr + 2 * d));
        if (d < hd) v_storen(vo + d, v_loadn_f16(vr + 2 * d, hd - d), hd - d);
    }
}
static __attribute__((noinline)) void load_tile_f16(const imp_attn_args *a, uint64_t first, uint32_t lo,
                                                    uint32_t hi, struct tile *t)
{
    load_tile_of(a, first, lo, hi, t, true);
}
static __attribute__((noinline)) void load_tile_f32(const imp_attn_args *a, uint64_t first, uint32_t lo,
                                                    uint32_t hi, struct tile *t)
{
    load_tile_of(a, first, lo, hi, t, false);
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
    (a->kv_dtype == IMP_F16 ? load_tile_f16 : load_tile_f32)(a, first, lo, hi, &t);
    struct row some[RT];
    uint32_t held = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t r = i / a->n_group, h = i % a->n_group;
        if (!row_in_tile(a, r, first, &rl, &rh)) continue;
        struct row *x = &some[held++];
        x->q = a->q + r * a->q_stride + (size_t)h * a->head_dim;
        x->out = a->out + r * a->out_stride + (size_t)h * a->head_dim;
        x->m = m + i;
        x->l = l + i;
        x->lo = rl;
        x->hi = rh;
        if (held == RT) {
            full_rows(some, &t, a);
            held = 0;
        }
    }
    for (uint32_t i = 0; i < held; i++) one_row(&some[i], &t, a);
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
