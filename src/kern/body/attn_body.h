/* kern/body/attn_body.h - attention over paged keys and values, for any width of vector.
 *
 * Place:   included once by attn_<isa>.c after that instruction set's attn_*.h; defines attn_run and its pieces.
 * Idea:    keys in tiles of 64 positions counted from 0. In a cache's tile a key is a lane (kern/kv.c), so that scores need
 *          no sums across lanes; rows of the step are transposed first. For some query rows at a time: scores, running
 *          maximum m and sum l, and out = out * e^(m_old - m) + sum p_j v_j. A few rows (decode) read the tile as it is,
 *          many have what must be widened widened once. Chunks of 512 keys start anew; join_part adds them up in order;
 *          dividing by l comes last.
 * Layout:  scratch: keys [head_dim][64], values [64][head_dim], part [n][part stride] (see attn_keys.h), m and l of what was
 *          joined [n][2], queries as int8 [n][head_dim/32], a rotated query; n = n_row * n_group.
 * Always:  a row's numbers depend on its own keys and position: a score is one chain over head_dim, values are added in
 *          order of position; a key that a row does not see does not touch its numbers. Whether tiles were widened and who
 *          computed a chunk changes no bit.
 * Source:  Milakov & Gimelshein 2018 (online softmax); Dao et al. 2022 (FlashAttention), 2023 (Flash-Decoding: the parts). */
#ifndef IMP_KERN_ATTN_BODY_H
#define IMP_KERN_ATTN_BODY_H

#include <math.h>

#include "kern/attn_keys.h"
#include "kern/body/math_body.h"
#include "kern/body/quant_body.h"
#include "kern/kv.h"

enum { TILE = IMP_ATTN_TILE };

/* Rows and heads at a time, as many as registers hold beside four vectors of keys. */
enum { RT = W == 8 ? 2 : 4 };

struct tile {
    const uint8_t *k, *v;
    imp_dtype k_type, v_type; /* f32, f16, q8_0, q4_0 (keys): how k and v lie, kv.c */
    size_t v_stride;          /* bytes from value to value; their scales follow at v_scale */
    const uint8_t *v_scale;
    uint32_t head_dim;
};

/* One query row and head against the tile. */
struct row {
    const float *q;
    const imp_q8_block *q8; /* the same, for quantised keys */
    float *out, *m, *l;
    uint32_t lo, hi; /* keys of the tile it sees, lo < hi */
    float p[TILE];   /* scores of all keys, then weights; 0 outside lo..hi-1 */
};

/* ---- scores ------------------------------------------------------------------------------------- */

/* p = q . k for 4W keys from key j on, one multiply-add a dimension in order. */
IMP_INLINE void scores_f(struct row *r, uint32_t n_r, const struct tile *t, uint32_t j, bool half)
{
    vf s[RT][4];
    IMP_UNROLL
    for (uint32_t x = 0; x < n_r; x++) {
        IMP_UNROLL
        for (int i = 0; i < 4; i++) s[x][i] = v_set1(0);
    }
    const size_t elem = half ? 2 : 4;
    const uint8_t *k = t->k + j * elem;
    for (size_t d = 0; d < t->head_dim; d++, k += TILE * elem) {
        vf kv[4];
        IMP_UNROLL
        for (size_t i = 0; i < 4; i++) {
            const void *at = k + i * W * elem;
            kv[i] = half ? v_load_f16(at) : v_load(at);
        }
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

/* The same for 2W keys of bytes or nibbles: 32 dimensions are summed in integers, then scaled. */
IMP_INLINE void scores_q(struct row *r, uint32_t n_r, const struct tile *t, uint32_t j, bool four)
{
    const uint32_t word = four ? 4 : 8; /* words of a key in 32 dimensions */
    const uint8_t *scale = t->k + (size_t)TILE * t->head_dim / (four ? 2 : 1) + 2 * j;
    const uint8_t *k = t->k + 4 * j;
    vf s[RT][2];
    IMP_UNROLL
    for (uint32_t x = 0; x < n_r; x++) s[x][0] = s[x][1] = v_set1(0);
    for (uint32_t b = 0; b < t->head_dim / 32; b++, scale += 2 * TILE) {
        vi acc[RT][2];
        IMP_UNROLL
        for (uint32_t x = 0; x < n_r; x++)
            acc[x][0] = acc[x][1] = i_set1(-(four ? 8 : KEY_OFFSET) * r[x].q8[b].sum);
        IMP_UNROLL
        for (uint32_t g = 0; g < word; g++, k += 4 * TILE) {
            vi raw[2] = {i_load(k), i_load(k + 4 * W)};
            if (four) {
                vi low[2] = {i_low4(raw[0]), i_low4(raw[1])}, high[2] = {i_high4(raw[0]), i_high4(raw[1])};
                IMP_UNROLL
                for (uint32_t x = 0; x < n_r; x++) {
                    vi q0 = i_word(r[x].q8[b].q + 8 * g), q1 = i_word(r[x].q8[b].q + 8 * g + 4);
                    IMP_UNROLL
                    for (int i = 0; i < 2; i++)
                        acc[x][i] = i_dot4(i_dot4(acc[x][i], low[i], q0), high[i], q1);
                }
            } else {
                key8 kk[2] = {i_key8(raw[0]), i_key8(raw[1])};
                IMP_UNROLL
                for (uint32_t x = 0; x < n_r; x++) {
                    vi q = i_word(r[x].q8[b].q + 4 * g);
                    IMP_UNROLL
                    for (int i = 0; i < 2; i++) acc[x][i] = i_dot8(acc[x][i], kk[i], q);
                }
            }
        }
        vf d[2] = {v_load_f16(scale), v_load_f16(scale + 2 * W)};
        IMP_UNROLL
        for (uint32_t x = 0; x < n_r; x++) {
            IMP_UNROLL
            for (int i = 0; i < 2; i++)
                s[x][i] = v_fma(i_to_f32(acc[x][i]) * d[i], v_set1(r[x].q8[b].d), s[x][i]);
        }
    }
    IMP_UNROLL
    for (uint32_t x = 0; x < n_r; x++) {
        v_store(r[x].p + j, s[x][0]);
        v_store(r[x].p + j + W, s[x][1]);
    }
}

IMP_INLINE void scores(struct row *r, uint32_t n_r, const struct tile *t)
{
    switch (t->k_type) {
    case IMP_Q8_0:
        for (uint32_t j = 0; j < TILE; j += 2 * W) scores_q(r, n_r, t, j, false);
        break;
    case IMP_Q4_0:
        for (uint32_t j = 0; j < TILE; j += 2 * W) scores_q(r, n_r, t, j, true);
        break;
    case IMP_F16:
        for (uint32_t j = 0; j < TILE; j += 4 * W) scores_f(r, n_r, t, j, true);
        break;
    default:
        for (uint32_t j = 0; j < TILE; j += 4 * W) scores_f(r, n_r, t, j, false);
    }
}

/* ---- values -------------------------------------------------------------------------------------- */

/* Columns d .. d + W - 1 of value j. A scale (11 bits) times an int8 is exact in f32. */
IMP_INLINE vf value_at(const struct tile *t, uint32_t j, size_t d, imp_dtype type)
{
    const uint8_t *v = t->v + j * t->v_stride;
    if (type == IMP_F16) return v_load_f16(v + 2 * d);
    if (type != IMP_Q8_0) return v_load((const float *)(const void *)v + d);
    return v_load_i8(v + d) * v_set1_f16(t->v_scale + (j * (t->head_dim / 32) + d / 32) * 2);
}
/* The first n of them. */
IMP_INLINE vf value_tail(const struct tile *t, uint32_t j, size_t d, size_t n, imp_dtype type)
{
    const uint8_t *v = t->v + j * t->v_stride;
    return type == IMP_F16 ? v_loadn_f16(v + 2 * d, n) : v_loadn((const float *)(const void *)v + d, n, 0);
}

/* out[r] += sum over keys j0..j1-1 of p[r][j] v_j for columns d .. d + n_v*W - 1, in order of j. */
IMP_INLINE void add_values(struct row *r, uint32_t n_r, const struct tile *t, uint32_t j0, uint32_t j1,
                           size_t d, uint32_t n_v, imp_dtype type)
{
    vf acc[RT][4];
    IMP_UNROLL
    for (uint32_t x = 0; x < n_r; x++) {
        IMP_UNROLL
        for (uint32_t i = 0; i < n_v; i++) acc[x][i] = v_load(r[x].out + d + i * W);
    }
    for (uint32_t j = j0; j < j1; j++) {
        vf vv[4];
        IMP_UNROLL
        for (uint32_t i = 0; i < n_v; i++) vv[i] = value_at(t, j, d + i * W, type);
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

/* The last n < W columns; heads of quantised values have none. */
IMP_INLINE void add_values_tail(struct row *r, const struct tile *t, uint32_t j0, uint32_t j1, size_t d,
                                size_t n, imp_dtype type)
{
    vf acc = v_loadn(r->out + d, n, 0);
    for (uint32_t j = j0; j < j1; j++) acc = v_fma(v_set1(r->p[j]), value_tail(t, j, d, n, type), acc);
    v_storen(r->out + d, acc, n);
}

IMP_INLINE void add_typed(struct row *r, uint32_t n_r, const struct tile *t, uint32_t j0, uint32_t j1,
                          imp_dtype type)
{
    size_t d = 0, hd = t->head_dim;
    for (; d + 4 * W <= hd; d += 4 * W) add_values(r, n_r, t, j0, j1, d, 4, type);
    for (; d + 2 * W <= hd; d += 2 * W) add_values(r, n_r, t, j0, j1, d, 2, type);
    for (; d + W <= hd; d += W) add_values(r, n_r, t, j0, j1, d, 1, type);
    for (uint32_t x = 0; d < hd && x < n_r; x++) add_values_tail(&r[x], t, j0, j1, d, hd - d, type);
}

/* All columns of keys j0..j1-1, which all n_r rows see. */
IMP_INLINE void add_keys(struct row *r, uint32_t n_r, const struct tile *t, uint32_t j0, uint32_t j1)
{
    if (j0 >= j1) return;
    if (t->v_type == IMP_Q8_0)
        add_typed(r, n_r, t, j0, j1, IMP_Q8_0);
    else if (t->v_type == IMP_F16)
        add_typed(r, n_r, t, j0, j1, IMP_F16);
    else
        add_typed(r, n_r, t, j0, j1, IMP_F32);
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
    float before = *r->m;
    *r->m = m;
    if (before == m || before == -INFINITY) { /* e^0 = 1; or nothing was there, and out and l are 0 */
        *r->l += v_hsum(sum);
        return;
    }
    float c[W];
    vf shrink = v_exp(v_set1(before - m));
    v_store(c, shrink);
    *r->l = fmaf(*r->l, c[0], v_hsum(sum));
    size_t d = 0;
    for (; d + W <= a->head_dim; d += W) v_store(r->out + d, v_load(r->out + d) * shrink);
    if (d < a->head_dim)
        v_storen(r->out + d, v_loadn(r->out + d, a->head_dim - d, 0) * shrink, a->head_dim - d);
}

/* One row, not inlined: a copy serves all that is left over. */
static __attribute__((noinline)) void add_alone(struct row *r, const struct tile *t, uint32_t j0, uint32_t j1)
{
    add_keys(r, 1, t, j0, j1);
}

/* n_r rows: keys that all see together, before and behind these each row's own. */
IMP_INLINE void rows_tile(struct row *r, uint32_t n_r, const struct tile *t, const imp_attn_args *a)
{
    uint32_t lo = 0, hi = TILE;
    scores(r, n_r, t);
    for (uint32_t x = 0; x < n_r; x++) {
        weigh(&r[x], a);
        lo = IMP_MAX(lo, r[x].lo);
        hi = IMP_MIN(hi, r[x].hi);
    }
    hi = IMP_MAX(lo, hi);
    for (uint32_t x = 0; x < n_r; x++) add_alone(&r[x], t, r[x].lo, IMP_MIN(lo, r[x].hi));
    add_keys(r, n_r, t, lo, hi);
    for (uint32_t x = 0; x < n_r; x++) add_alone(&r[x], t, IMP_MAX(hi, r[x].lo), r[x].hi);
}

static __attribute__((noinline)) void one_row(struct row *r, const struct tile *t, const imp_attn_args *a)
{
    rows_tile(r, 1, t, a);
}
static __attribute__((noinline)) void full_rows(struct row *r, const struct tile *t, const imp_attn_args *a)
{
    rows_tile(r, RT, t, a);
}

/* ---- tiles --------------------------------------------------------------------------------------- */

/* W keys of the step's rows by W dimensions from dimension d on; keys outside lo..hi-1 are zeros and not read. log2(W)
 * rounds of zipping the upper with the lower half of the vectors transpose them. */
IMP_INLINE void transpose_keys(const imp_attn_args *a, const uint8_t *k, uint32_t j, uint32_t lo, uint32_t hi,
                               size_t d, float *to)
{
    vf x[W], y[W];
    size_t n = a->head_dim - d;
    IMP_UNROLL
    for (uint32_t i = 0; i < W; i++) {
        const float *row = (const float *)(const void *)(k + (j + i) * a->row_stride) + d;
        x[i] = j + i < lo || j + i >= hi ? v_set1(0) : n >= W ? v_load(row) : v_loadn(row, n, 0);
    }
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

/* Keys lo..hi-1 of the step's rows from key `first` on, transposed into scratch; values stay where they are. */
static __attribute__((noinline)) void load_rows(const imp_attn_args *a, uint64_t first, uint32_t lo,
                                                uint32_t hi, struct tile *t)
{
    size_t at = attn_tile_offset(a, first), hd = a->head_dim;
    const uint8_t *k = (const uint8_t *)a->k + at;
    for (uint32_t j = 0; j < TILE; j += W)
        for (size_t d = 0; d < hd; d += W) transpose_keys(a, k, j, lo, hi, d, a->scratch);
    *t = (struct tile){.k = a->scratch,
                       .v = (const uint8_t *)a->v + at,
                       .k_type = IMP_F32,
                       .v_type = IMP_F32,
                       .v_stride = a->row_stride,
                       .head_dim = a->head_dim};
}

/* Keys in f16 and values lo..hi-1 of the tile as f32 in scratch. */
static __attribute__((noinline)) void widen(const imp_attn_args *a, uint32_t lo, uint32_t hi, struct tile *t)
{
    size_t hd = a->head_dim;
    float *kt = a->scratch, *wide = kt + TILE * hd;
    if (t->k_type == IMP_F16) {
        for (size_t i = 0; i < TILE * hd; i += W) v_store(kt + i, v_load_f16(t->k + 2 * i));
        t->k = (const uint8_t *)kt;
        t->k_type = IMP_F32;
    }
    if (t->v_type == IMP_F32) return;
    for (uint32_t i = lo; i < hi; i++) {
        size_t d = 0;
        for (; d + W <= hd; d += W) {
            v_store(wide + i * hd + d,
                    t->v_type == IMP_F16 ? value_at(t, i, d, IMP_F16) : value_at(t, i, d, IMP_Q8_0));
        }
        if (d < hd) v_storen(wide + i * hd + d, value_tail(t, i, d, hd - d, IMP_F16), hd - d);
    }
    t->v = (const uint8_t *)wide;
    t->v_type = IMP_F32;
    t->v_stride = hd * sizeof(float);
}

/* Some bytes from p on will soon be read. */
IMP_INLINE void soon(const uint8_t *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

/* The cache's tile that starts at key `first`, and the next one on its way. */
static void find_tile(const imp_attn_args *a, uint64_t first, uint64_t end, struct tile *t)
{
    imp_dtype vt = imp_kv_part_type(a->kv_dtype, IMP_KV_VALUE);
    size_t at = attn_tile_offset(a, first), hd = a->head_dim;
    *t = (struct tile){.k = (const uint8_t *)a->k + at,
                       .v = (const uint8_t *)a->v + at,
                       .k_type = a->kv_dtype,
                       .v_type = vt,
                       .v_stride = hd * (vt == IMP_F32   ? 4
                                         : vt == IMP_F16 ? 2
                                                         : 1),
                       .head_dim = a->head_dim};
    t->v_scale = t->v + TILE * hd;
    if (first + TILE >= end) return;
    size_t next = attn_tile_offset(a, first + TILE);
    soon((const uint8_t *)a->k + next, imp_kv_tile_bytes(a->kv_dtype, IMP_KV_KEY, a->head_dim));
    soon((const uint8_t *)a->v + next, imp_kv_tile_bytes(a->kv_dtype, IMP_KV_VALUE, a->head_dim));
}

/* ---- a chunk --------------------------------------------------------------------------------------- */

/* What a call holds in scratch. */
struct state {
    float *part;      /* [n][part stride] the chunk's sums, maximum, sum of weights */
    float *ml;        /* [n][2] maximum and sum of what was joined */
    imp_q8_block *q8; /* [n][head_dim / 32] */
    size_t stride;
    bool apart; /* every row's sums go to part, even those that need no other chunk */
};

static struct state state_of(const imp_attn_args *a)
{
    size_t n = (size_t)a->n_row * a->n_group;
    struct state s = {.stride = attn_part_stride(a->head_dim)};
    s.part = (float *)a->scratch + 2 * (size_t)TILE * a->head_dim;
    s.ml = s.part + n * s.stride;
    s.q8 = (imp_q8_block *)(void *)(s.ml + 2 * n);
    return s;
}

/* Queries as int8, rotated first where keys are. */
static void round_queries(const imp_attn_args *a, const struct state *s)
{
    if (a->row_stride != 0 || (a->kv_dtype != IMP_Q8_0 && a->kv_dtype != IMP_Q4_0)) return;
    uint32_t n = a->n_row * a->n_group, n_block = a->head_dim / 32;
    float *turned = (float *)(void *)(s->q8 + (size_t)n * n_block);
    for (uint32_t i = 0; i < n; i++) {
        const float *q = a->q + i / a->n_group * a->q_stride + (size_t)(i % a->n_group) * a->head_dim;
        if (a->kv_dtype == IMP_Q4_0) {
            imp_kv_rotate(turned, q, a->head_dim);
            q = turned;
        }
        quant_q8(s->q8 + (size_t)i * n_block, q, a->head_dim);
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

/* Row r's keys lie in one chunk: nothing is to be joined. */
IMP_INLINE bool in_one_chunk(const imp_attn_args *a, uint32_t r)
{
    uint64_t lo, hi;
    attn_range(a, r, &lo, &hi);
    return lo >= hi || lo / IMP_ATTN_CHUNK == (hi - 1) / IMP_ATTN_CHUNK;
}

/* Where row and head i put a chunk's sums. */
IMP_INLINE void aim(const imp_attn_args *a, const struct state *s, uint32_t i, struct row *x)
{
    uint32_t r = i / a->n_group, h = i % a->n_group;
    float *part = s->part + i * s->stride;
    x->q = a->q + r * a->q_stride + (size_t)h * a->head_dim;
    x->q8 = s->q8 + (size_t)i * (a->head_dim / 32);
    if (s->apart || !in_one_chunk(a, r)) {
        x->out = part;
        x->m = part + a->head_dim;
        x->l = part + a->head_dim + 1;
    } else {
        x->out = a->out + r * a->out_stride + (size_t)h * a->head_dim;
        x->m = s->ml + 2 * (size_t)i;
        x->l = x->m + 1;
    }
}

static void tile_step(const imp_attn_args *a, const struct state *s, uint64_t first, uint64_t end)
{
    uint32_t n = a->n_row * a->n_group, lo = TILE, hi = 0, rl, rh;
    for (uint32_t r = 0; r < a->n_row; r++) {
        if (!row_in_tile(a, r, first, &rl, &rh)) continue;
        lo = IMP_MIN(lo, rl);
        hi = IMP_MAX(hi, rh);
    }
    if (lo >= hi) return;
    struct tile t;
    if (a->row_stride != 0) {
        load_rows(a, first, lo, hi, &t);
    } else {
        find_tile(a, first, end, &t);
        if (n > 2 * RT) widen(a, lo, hi, &t);
    }
    struct row some[RT];
    uint32_t held = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (!row_in_tile(a, i / a->n_group, first, &rl, &rh)) continue;
        struct row *x = &some[held++];
        aim(a, s, i, x);
        x->lo = rl;
        x->hi = rh;
        if (held == RT) {
            full_rows(some, &t, a);
            held = 0;
        }
    }
    for (uint32_t i = 0; i < held; i++) one_row(&some[i], &t, a);
}

/* All tiles of the chunk that hold a key some row sees. */
static void chunk_step(const imp_attn_args *a, const struct state *s, uint64_t chunk)
{
    for (uint32_t i = 0; i < a->n_row * a->n_group; i++) {
        struct row x;
        aim(a, s, i, &x);
        if (x.out != s->part + i * s->stride) continue; /* was cleared when the call began */
        memset(x.out, 0, a->head_dim * sizeof(float));
        *x.m = -INFINITY;
        *x.l = 0;
    }
    uint64_t begin, end, unused;
    attn_range(a, 0, &begin, &unused);
    attn_range(a, a->n_row - 1, &unused, &end);
    begin = IMP_MAX(begin / TILE * TILE, chunk * IMP_ATTN_CHUNK);
    end = IMP_MIN(end, (chunk + 1) * IMP_ATTN_CHUNK);
    for (uint64_t first = begin; first < end; first += TILE) tile_step(a, s, first, end);
}

/* ---- the end ---------------------------------------------------------------------------------------- */

/* y = y * c + x * e over a head. */
IMP_INLINE void blend(float *y, float c, const float *x, float e, size_t n)
{
    size_t d = 0;
    vf cv = v_set1(c), ev = v_set1(e);
    for (; d + W <= n; d += W) v_store(y + d, v_fma(v_load(x + d), ev, v_load(y + d) * cv));
    if (d < n) v_storen(y + d, v_fma(v_loadn(x + d, n - d, 0), ev, v_loadn(y + d, n - d, 0) * cv), n - d);
}

/* A chunk's part of row and head i joins what came before, when the row sees keys of the chunk. */
static void join_part(const imp_attn_args *a, uint32_t i, uint64_t chunk, const float *part, float *ml)
{
    uint64_t lo, hi;
    attn_range(a, i / a->n_group, &lo, &hi);
    if (lo >= hi || hi <= chunk * IMP_ATTN_CHUNK || lo >= (chunk + 1) * IMP_ATTN_CHUNK) return;
    float *out = a->out + i / a->n_group * a->out_stride + (size_t)(i % a->n_group) * a->head_dim;
    float m = part[a->head_dim], l = part[a->head_dim + 1], top = m > ml[0] ? m : ml[0], c[W], e[W];
    if (ml[1] == 0) { /* the first */
        memcpy(out, part, a->head_dim * sizeof *out);
        ml[0] = m;
        ml[1] = l;
        return;
    }
    v_store(c, v_exp(v_set1(ml[0] - top)));
    v_store(e, v_exp(v_set1(m - top)));
    blend(out, c[0], part, e[0], a->head_dim);
    ml[0] = top;
    ml[1] = fmaf(ml[1], c[0], l * e[0]);
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

/* Rows that see no key give zeros. */
static void finish_all(const imp_attn_args *a, const struct state *s)
{
    for (uint32_t i = 0; i < a->n_row * a->n_group; i++) {
        uint32_t r = i / a->n_group, h = i % a->n_group;
        uint64_t lo, hi;
        attn_range(a, r, &lo, &hi);
        if (lo >= hi) continue;
        finish(a, a->out + r * a->out_stride + (size_t)h * a->head_dim, s->ml[2 * i], s->ml[2 * i + 1],
               a->sink ? a->sink + h : NULL);
    }
}

static void clear_all(const imp_attn_args *a, const struct state *s)
{
    for (uint32_t i = 0; i < a->n_row * a->n_group; i++) {
        memset(a->out + i / a->n_group * a->out_stride + (size_t)(i % a->n_group) * a->head_dim, 0,
               a->head_dim * sizeof(float));
        s->ml[2 * i] = -INFINITY;
        s->ml[2 * i + 1] = 0;
    }
}

/* First and last + 1 chunk with a key that some row sees. */
static void chunks_of(const imp_attn_args *a, uint64_t *from, uint64_t *to)
{
    uint64_t begin, end, unused;
    attn_range(a, 0, &begin, &unused);
    attn_range(a, a->n_row - 1, &unused, &end);
    *from = begin / IMP_ATTN_CHUNK;
    *to = (end + IMP_ATTN_CHUNK - 1) / IMP_ATTN_CHUNK;
}

static void attn_run(const imp_attn_args *a)
{
    struct state s = state_of(a);
    uint64_t from, to;
    chunks_of(a, &from, &to);
    clear_all(a, &s);
    round_queries(a, &s);
    for (uint64_t c = from; c < to; c++) {
        chunk_step(a, &s, c);
        for (uint32_t i = 0; i < a->n_row * a->n_group; i++) {
            if (!in_one_chunk(a, i / a->n_group))
                join_part(a, i, c, s.part + i * s.stride, s.ml + 2 * (size_t)i);
        }
    }
    finish_all(a, &s);
}

static void attn_run_chunk(const imp_attn_args *a, uint32_t chunk, float *part)
{
    struct state s = state_of(a);
    s.part = part;
    s.apart = true;
    round_queries(a, &s);
    chunk_step(a, &s, chunk);
}

static void attn_join(const imp_attn_args *a, const float *part)
{
    struct state s = state_of(a);
    uint64_t from, to;
    chunks_of(a, &from, &to);
    clear_all(a, &s);
    for (uint64_t c = from; c < to; c++) {
        const float *p = part + c * a->n_row * a->n_group * s.stride;
        for (uint32_t i = 0; i < a->n_row * a->n_group; i++)
            join_part(a, i, c, p + i * s.stride, s.ml + 2 * (size_t)i);
    }
    finish_all(a, &s);
}

#define ATTN_VARIANT(id, name, bits)                                                                         \
    const imp_attn imp_attn_##id = {.isa = name,                                                             \
                                    .cpu = bits,                                                             \
                                    .row_step = 16,                                                          \
                                    .rounds_q = true,                                                        \
                                    .run = attn_run,                                                         \
                                    .run_chunk = attn_run_chunk,                                             \
                                    .join = attn_join};

#endif
