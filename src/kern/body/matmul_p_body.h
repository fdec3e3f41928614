/* kern/body/matmul_p_body.h - int8 activations by quantised weights packed so that a lane is a row of w.
 *
 * Place:   included by matmul_q_<isa>.c after x86/packed_256.h or x86/packed_512.h, which give R lanes and p_* operations.
 * Idea:    R rows of w stand side by side. A vector holds four weights of each row; they meet four bytes of x, the same for
 *          all lanes, so that nothing is shuffled and no sums cross lanes. Weights are unpacked once into eight vectors (32
 *          of k) for all rows of x in a tile. Unsigned weights (nibbles, or int8 + 128) times signed x; what the offset
 *          adds is known from the sum of x in each block.
 * Layout:  [ceil(n / R)] panels of [ceil(k / super)] blocks: the file's block of each row, cut in words of 4 bytes (f16
 *          scales: 2), word 0 of all R rows, then word 1, ... in the order of `piece`. Exact, and the file's size (Q6_K's d
 *          is widened to f32, which keeps vectors aligned). Zeros past n and past k.
 * Always:  an element's additions have one order whatever the tile. x counts in units of 32 with their own scale.
 * Ranges:  sums of 32 products are exact in int32; p_dot says how AVX2 keeps int16 sums exact.
 * Source:  the block layouts of src/tensor/dtype_list.inc. */
#ifndef IMP_KERN_MATMUL_P_BODY_H
#define IMP_KERN_MATMUL_P_BODY_H

#include "kern/variant.h"

enum { P_NX = R == 8 ? 4 : 8, P_DW = 4 * R }; /* rows of x a tile; bytes of a word of all rows */

struct p_piece {
    uint16_t at, size, n; /* in the file's block; size 2 or 4 bytes, or 0: an f16 that becomes f32 */
};
struct p_type {
    uint32_t super_k, file_bytes; /* of a block: 256, or two of 32 */
    uint32_t words;               /* words of 4 bytes of a row and block as packed */
    int offset;                   /* of the weights as packed, or for Q6_K taken by half sums */
    uint32_t max;                 /* largest unsigned weight; 0: weights are signed */
    bool has_min, halves;         /* halves: a scale for 16 */
    struct p_piece piece[5];
};

struct p_job {
    const uint8_t *w; /* the panel */
    const uint8_t *x[8];
    const int32_t *half; /* [k / 32][2][P_NX] -32 * sums of 16 of x */
    uint32_t n_block;    /* of 32 */
    bool from_memory;    /* the first tile of x that meets these panels: their bytes are asked for ahead */
    vf acc[8];
};
typedef void (*p_tile_fn)(struct p_job *job);

IMP_INLINE float p_x_d(const uint8_t *x)
{
    float d;
    memcpy(&d, x, 4);
    return d;
}
IMP_INLINE int32_t p_x_sum(const uint8_t *x)
{
    int32_t s;
    memcpy(&s, x + 4, 4);
    return s;
}

/* 32 weights of each row: vectors of four, and their scales. */
struct p_unit {
    vi w[8];
    vf s[2], min;
};

/* What the sums of row i and block b begin with: of both halves, or all of it in start[0]. */
IMP_INLINE void p_start(const struct p_job *j, struct p_type t, uint32_t b, uint32_t i, vi start[2])
{
    if (t.halves) {
        const int32_t *h = j->half + (size_t)b * 2 * P_NX + i;
        start[0] = p_set1(h[0]);
        start[1] = p_set1(h[P_NX]);
    } else {
        bool offset = !t.has_min && t.offset != 0;
        start[0] = p_set1(offset ? -t.offset * p_x_sum(j->x[i] + b * sizeof(imp_q8_block)) : 0);
    }
}
/* The sums, scaled, to the row's. */
IMP_INLINE vf p_add(const uint8_t *x, struct p_type t, const struct p_unit *u, vi sum, vi high, vf acc)
{
    vf d = v_set1(p_x_d(x));
    if (t.halves) return v_fma(v_fma(p_to_f32(high), u->s[1], p_to_f32(sum) * u->s[0]), d, acc);
    if (!t.has_min) return v_fma(p_to_f32(sum), u->s[0] * d, acc);
    vf all = p_to_f32(p_set1(p_x_sum(x)));
    return v_fma(v_fnma(u->min, all, p_to_f32(sum) * u->s[0]), d, acc);
}

/* Block b of x for every row of the tile. */
IMP_INLINE void p_step(const struct p_job *j, uint32_t nx, struct p_type t, uint32_t b,
                       const struct p_unit *u, vf *acc)
{
    const int n_word = t.halves ? 4 : 8;
    uint32_t i = 0;
#if defined(P_PAIRS)
    IMP_UNROLL
    for (; i + 2 <= nx; i += 2) {
        const uint8_t *xa = j->x[i] + b * sizeof(imp_q8_block), *xb = j->x[i + 1] + b * sizeof(imp_q8_block);
        vi sa[2], sb[2];
        p_start(j, t, b, i, sa);
        p_start(j, t, b, i + 1, sb);
        p_dot2(&sa[0], &sb[0], u->w, xa + 8, xb + 8, n_word);
        if (t.halves) p_dot2(&sa[1], &sb[1], u->w + 4, xa + 24, xb + 24, n_word);
        acc[i] = p_add(xa, t, u, sa[0], sa[1], acc[i]);
        acc[i + 1] = p_add(xb, t, u, sb[0], sb[1], acc[i + 1]);
    }
#endif
    IMP_UNROLL
    for (; i < nx; i++) {
        const uint8_t *x = j->x[i] + b * sizeof(imp_q8_block);
        vi sum[2];
        p_start(j, t, b, i, sum);
        sum[0] = p_dot(sum[0], u->w, x + 8, n_word, t.max);
        if (t.halves) sum[1] = p_dot(sum[1], u->w + 4, x + 24, n_word, t.max);
        acc[i] = p_add(x, t, u, sum[0], sum[1], acc[i]);
    }
}

/* ---- the types ---------------------------------------------------------------------------------------- */
#define P_Q4_0                                                                                               \
    ((struct p_type){64, 36, 9, 8, 15, false, false, {{0, 2, 1}, {18, 2, 1}, {2, 4, 4}, {20, 4, 4}}})
#define P_Q8_0                                                                                               \
    ((struct p_type){64,                                                                                     \
                     68,                                                                                     \
                     17,                                                                                     \
                     P_Q8_OFFSET,                                                                            \
                     P_Q8_OFFSET == 0 ? 0 : 255,                                                             \
                     false,                                                                                  \
                     false,                                                                                  \
                     {{0, 2, 1}, {34, 2, 1}, {2, 4, 8}, {36, 4, 8}}})
#define P_Q4_K ((struct p_type){256, 144, 36, 0, 15, true, false, {{0, 2, 2}, {4, 4, 3}, {16, 4, 32}}})
#define P_Q5_K ((struct p_type){256, 176, 44, 0, 31, true, false, {{0, 2, 2}, {4, 4, 3}, {16, 4, 40}}})
#define P_Q6_K ((struct p_type){256, 210, 53, 32, 63, false, true, {{208, 0, 1}, {192, 4, 4}, {0, 4, 48}}})

/* Unit u of a block; hi, known when compiled, is u's lowest bit, or for Q6_K whether it is in the high nibbles. */
typedef void (*p_unit_fn)(const uint8_t *w, uint32_t u, bool hi, struct p_unit *o);

IMP_INLINE void p_unit_q4_0(const uint8_t *w, uint32_t u, bool hi, struct p_unit *o)
{
    (void)hi;
    const uint8_t *q = w + P_DW + u * 4 * P_DW;
    o->s[0] = v_load_f16(w + u * 2 * R);
    IMP_UNROLL
    for (int j = 0; j < 4; j++) {
        vi v = p_load(q + j * P_DW);
        o->w[j] = p_and(v, 15);
        o->w[4 + j] = p_and(p_shr4(v), 15);
    }
}
IMP_INLINE void p_unit_q8_0(const uint8_t *w, uint32_t u, bool hi, struct p_unit *o)
{
    (void)hi;
    const uint8_t *q = w + P_DW + u * 8 * P_DW;
    o->s[0] = v_load_f16(w + u * 2 * R);
    IMP_UNROLL
    for (int j = 0; j < 8; j++) o->w[j] = p_load(q + j * P_DW);
}

/* d * scale and dmin * minimum of unit u of Q4_K or Q5_K; the six bits lie as q4_k_scales (kern/variant.h) says. */
IMP_INLINE void p_scales_k(const uint8_t *w, uint32_t u, struct p_unit *o)
{
    vi a = p_load(w + P_DW), b = p_load(w + 2 * P_DW), c = p_load(w + 3 * P_DW), s, m;
    if (u < 4) {
        s = p_and32(p_shr32(a, 8 * u), 63);
        m = p_and32(p_shr32(b, 8 * u), 63);
    } else {
        vi lo = p_shr32(c, 8 * (u - 4));
        s = p_or(p_and32(lo, 15), p_and32(p_shr32(a, 8 * (u - 4) + 2), 0x30));
        m = p_or(p_and32(p_shr32(lo, 4), 15), p_and32(p_shr32(b, 8 * (u - 4) + 2), 0x30));
    }
    o->s[0] = v_load_f16(w) * p_to_f32(s);
    o->min = v_load_f16(w + 2 * R) * p_to_f32(m);
}
IMP_INLINE void p_unit_q4_k(const uint8_t *w, uint32_t u, bool hi, struct p_unit *o)
{
    const uint8_t *q = w + (4 + (u >> 1) * 8) * P_DW;
    p_scales_k(w, u, o);
    IMP_UNROLL
    for (int j = 0; j < 8; j++) {
        vi v = p_load(q + j * P_DW);
        o->w[j] = p_and(hi ? p_shr4(v) : v, 15);
    }
}
IMP_INLINE void p_unit_q5_k(const uint8_t *w, uint32_t u, bool hi, struct p_unit *o)
{
    p_unit_q4_k(w + 8 * P_DW, u, hi, o);
    p_scales_k(w, u, o);
    IMP_UNROLL
    for (int j = 0; j < 8; j++) {
        vi bit = p_and(p_shr16(p_load(w + (4 + j) * P_DW), u), 1);
        o->w[j] = p_or(o->w[j], p_shl4(bit));
    }
}
/* Units in the order of the file: u = 4 * half + 2 * hi + column. */
IMP_INLINE void p_unit_q6_k(const uint8_t *w, uint32_t u, bool hi, struct p_unit *o)
{
    const uint8_t *lo = w + (5 + (u >> 2) * 16 + (u & 1) * 8) * P_DW, *top = w + (37 + (u >> 2) * 8) * P_DW;
    vf d = v_load((const float *)(const void *)w);
    vi sc = p_load(w + (1 + (u >> 1)) * P_DW);
    for (uint32_t g = 0; g < 2; g++) o->s[g] = d * p_to_f32(p_byte(sc, 2 * (u & 1) + g));
    IMP_UNROLL
    for (int j = 0; j < 8; j++) {
        vi v = p_load(lo + j * P_DW), t = p_and(p_shr16(p_load(top + j * P_DW), 2 * (u & 3)), 3);
        o->w[j] = p_or(p_and(hi ? p_shr4(v) : v, 15), p_shl4(t));
    }
}

/* ---- tiles ---------------------------------------------------------------------------------------------- */
IMP_INLINE void p_tile(struct p_job *job, uint32_t nx, struct p_type t, p_unit_fn unit)
{
    struct p_job j = *job; /* in registers */
    uint32_t n_unit = t.super_k / 32, b = 0;
    vf acc[8];
    IMP_UNROLL
    for (uint32_t i = 0; i < nx; i++) acc[i] = v_set1(0);
    for (const uint8_t *w = j.w; b < j.n_block; w += t.words * P_DW, b += n_unit) {
        for (uint32_t c = 0; c < n_unit; c += 2) {
            IMP_UNROLL
            for (uint32_t h = 0; h < 2; h++) {
                struct p_unit o;
                uint32_t u = t.halves ? (c & 4) + (c >> 1 & 1) + 2 * h : c + h;
                if (n_unit == 2 && b + u >= j.n_block) break;
                if (nx == 1 || j.from_memory) {
                    for (uint32_t l = 0; l < t.words * P_DW / n_unit; l += 64)
                        __builtin_prefetch(w + (c + h) * (t.words * P_DW / n_unit) + 4096 + l);
                }
                unit(w, u, h == 1, &o);
                p_step(&j, nx, t, b + u, &o, acc);
            }
        }
    }
    IMP_UNROLL
    for (uint32_t i = 0; i < nx; i++) job->acc[i] = acc[i];
}

#define P_TILES(type, TYPE)                                                                                  \
    static void type##_x1(struct p_job *j)                                                                   \
    {                                                                                                        \
        p_tile(j, 1, TYPE, p_unit_##type);                                                                   \
    }                                                                                                        \
    static void type##_x2(struct p_job *j)                                                                   \
    {                                                                                                        \
        p_tile(j, 2, TYPE, p_unit_##type);                                                                   \
    }                                                                                                        \
    static void type##_x4(struct p_job *j)                                                                   \
    {                                                                                                        \
        p_tile(j, 4, TYPE, p_unit_##type);                                                                   \
    }                                                                                                        \
    static void type##_xn(struct p_job *j)                                                                   \
    {                                                                                                        \
        p_tile(j, P_NX, TYPE, p_unit_##type);                                                                \
    }

static uint64_t p_panel_bytes(struct p_type t, uint64_t k)
{
    return (k + t.super_k - 1) / t.super_k * t.words * P_DW;
}

static void p_store(const imp_matmul_args *a, const struct p_job *j, uint32_t i0, uint32_t nx, uint32_t j0)
{
    uint32_t from = IMP_MAX(j0, a->n0), to = IMP_MIN(j0 + R, a->n1);
    for (uint32_t i = 0; i < nx; i++) {
        float out[R], *y = a->y + (i0 + i) * a->y_stride;
        if (to - from == R) {
            v_store(y + j0, j->acc[i] + (a->bias ? v_load(a->bias + j0) : v_set1(0)));
            continue;
        }
        v_store(out, j->acc[i]);
        for (uint32_t c = from; c < to; c++) y[c] = out[c - j0] + (a->bias ? a->bias[c] : 0);
    }
}

#if defined(P_GRID)
/* ---- many rows of x ------------------------------------------------------------------------------------- */

/* Two panels' weights are unpacked for G_K columns of k into the first-level cache and met there by up to G_ROWS rows of x,
 * four at a time, so that a word of x is loaded once for both; sums wait in scratch between blocks of k. The additions are
 * those of p_step in the same order. */
enum { G_UNITS = 16, G_K = 32 * G_UNITS, G_ROWS = 256, G_NX = 4, G_FROM = 9 };

struct g_unit {
    vi w[2][8];
    vf s[2], min[2];
};
struct g_scratch {
    struct g_unit unit[G_UNITS];
    float sum[G_ROWS][2 * R];
};

IMP_INLINE void g_unpack(const uint8_t *w, uint32_t n, uint32_t p, struct p_type t, p_unit_fn unit,
                         struct g_unit *to)
{
    const uint32_t n_unit = t.super_k / 32;
    for (uint32_t b = 0; b < n; b += n_unit, w += t.words * P_DW) {
        for (uint32_t c = 0; c < n_unit; c += 2) {
            IMP_UNROLL
            for (uint32_t h = 0; h < 2; h++) {
                struct p_unit o = {.min = v_set1(0)};
                if (b + c + h >= n) break;
                for (uint32_t l = 0; l < t.words * P_DW / n_unit; l += 64)
                    __builtin_prefetch(w + (c + h) * (t.words * P_DW / n_unit) + 4096 + l);
                unit(w, c + h, h == 1, &o);
                struct g_unit *g = &to[b + c + h];
                IMP_UNROLL
                for (int j = 0; j < 8; j++) g->w[p][j] = o.w[j];
                g->s[p] = o.s[0];
                g->min[p] = o.min;
            }
        }
    }
}

/* nx rows of x, the first one's blocks at x, by n units. */
IMP_INLINE void g_tile(const struct g_unit *g, uint32_t n, const uint8_t *x, size_t x_stride, uint32_t nx,
                       struct p_type t, bool first, float (*y)[2 * R])
{
    vf acc[G_NX][2];
    IMP_UNROLL
    for (uint32_t i = 0; i < nx; i++) {
        acc[i][0] = first ? v_set1(0) : v_load(y[i]);
        acc[i][1] = first ? v_set1(0) : v_load(y[i] + R);
    }
    for (const struct g_unit *end = g + n; g < end; g++, x += sizeof(imp_q8_block)) {
        vi sum[G_NX][2];
        IMP_UNROLL
        for (uint32_t i = 0; i < nx; i++) {
            const uint8_t *all = x + i * x_stride + 4;
            sum[i][0] = sum[i][1] = !t.has_min && t.offset != 0 ? p_offset(all, t.offset) : p_set1(0);
        }
        IMP_UNROLL
        for (int j = 0; j < 8; j++) {
            vi w0 = g->w[0][j], w1 = g->w[1][j];
            IMP_UNROLL
            for (uint32_t i = 0; i < nx; i++) p_dot_both(sum[i], w0, w1, x + i * x_stride + 8 + 4 * j);
        }
        const struct p_unit left = {.s = {g->s[0]}, .min = g->min[0]},
                            right = {.s = {g->s[1]}, .min = g->min[1]};
        IMP_UNROLL
        for (uint32_t i = 0; i < nx; i++) {
            acc[i][0] = p_add(x + i * x_stride, t, &left, sum[i][0], sum[i][0], acc[i][0]);
            acc[i][1] = p_add(x + i * x_stride, t, &right, sum[i][1], sum[i][1], acc[i][1]);
        }
    }
    IMP_UNROLL
    for (uint32_t i = 0; i < nx; i++) {
        v_store(y[i], acc[i][0]);
        v_store(y[i] + R, acc[i][1]);
    }
}

/* Rows i0.. of x, at most G_ROWS, and the panels at column j0. */
IMP_INLINE void g_block(const imp_matmul_args *a, uint32_t i0, uint32_t n_row, uint32_t j0, struct p_type t,
                        p_unit_fn unit)
{
    struct g_scratch *s = a->scratch;
    uint32_t n_block = (uint32_t)(imp_tensor_n_col(a->w) / 32);
    uint64_t panel = p_panel_bytes(t, (uint64_t)n_block * 32);
    const uint8_t *w = (const uint8_t *)a->wp + j0 / R * panel;
    bool both = j0 + R < a->n1;
    for (uint32_t b = 0; b < n_block; b += G_UNITS) {
        uint32_t n = IMP_MIN(n_block - b, (uint32_t)G_UNITS);
        const uint8_t *at = w + b / (t.super_k / 32) * t.words * P_DW;
        g_unpack(at, n, 0, t, unit, s->unit);
        g_unpack(both ? at + panel : at, n, 1, t, unit, s->unit);
        const uint8_t *x = (const uint8_t *)a->x + i0 * a->x_stride + b * sizeof(imp_q8_block);
        uint32_t i = 0;
        for (; i + G_NX <= n_row; i += G_NX)
            g_tile(s->unit, n, x + i * a->x_stride, a->x_stride, G_NX, t, b == 0, s->sum + i);
        for (; i < n_row; i++) g_tile(s->unit, n, x + i * a->x_stride, a->x_stride, 1, t, b == 0, s->sum + i);
    }
    for (uint32_t i = 0; i < n_row; i++) {
        struct p_job j = {.acc = {v_load(s->sum[i])}};
        p_store(a, &j, i0 + i, 1, j0);
        j.acc[0] = v_load(s->sum[i] + R);
        if (both) p_store(a, &j, i0 + i, 1, j0 + R);
    }
}

IMP_INLINE void g_run(const imp_matmul_args *a, struct p_type t, p_unit_fn unit)
{
    for (uint32_t i = 0; i < a->m; i += G_ROWS)
        for (uint32_t j0 = a->n0 / R * R; j0 < a->n1; j0 += 2 * R)
            g_block(a, i, IMP_MIN(a->m - i, (uint32_t)G_ROWS), j0, t, unit);
}
#endif

/* ---- a call ---------------------------------------------------------------------------------------------- */
static uint64_t p_scratch_bytes(uint64_t k)
{
    uint64_t half_sums = k / 32 * 2 * P_NX * sizeof(int32_t);
#if defined(P_GRID)
    return IMP_MAX(half_sums, sizeof(struct g_scratch));
#else
    return half_sums;
#endif
}

/* -offset * the sums of 16 of each row of the tile. */
static void p_half_sums(const struct p_job *j, uint32_t nx, int offset, int32_t *to)
{
    for (uint32_t b = 0; b < j->n_block; b++, to += 2 * P_NX) {
        for (uint32_t i = 0; i < nx; i++) {
            const int8_t *q = (const int8_t *)j->x[i] + b * sizeof(imp_q8_block) + 8;
            int32_t lo = 0;
            for (int e = 0; e < 16; e++) lo += q[e];
            to[i] = -offset * lo;
            to[P_NX + i] = -offset * (p_x_sum((const uint8_t *)q - 8) - lo);
        }
    }
}

/* Which of the tiles of 1, 2, 4 and P_NX rows takes that many, or as many as it can. */
static uint32_t p_tile_for(uint32_t n_row)
{
    if (n_row > 4) return 3;
    return n_row > 2 ? 2 : n_row - 1;
}

/* Panels that stay in the second-level cache, tiles of x, panels. fn: tiles of 1, 2, 4 and P_NX rows of x; a call of P_NX
 * rows or less is one tile. */
static void p_run(const imp_matmul_args *a, struct p_type t, const p_tile_fn fn[4])
{
    uint64_t k = imp_tensor_n_col(a->w), panel = p_panel_bytes(t, k);
    uint32_t chunk = (uint32_t)IMP_MAX(1u, (384u << 10) / panel) * R;
    struct p_job j = {.n_block = (uint32_t)(k / 32), .half = a->scratch};
    if (a->m <= P_NX) chunk = UINT32_MAX / 2;
    for (uint32_t c0 = a->n0 / R * R; c0 < a->n1; c0 += chunk) {
        uint32_t c1 = IMP_MIN(a->n1, c0 + chunk);
        for (uint32_t i = 0, nx; i < a->m; i += nx) {
            /* A tile that is not full repeats its last row: a second pass over the panels would cost more. */
            uint32_t left = a->m - i, f = p_tile_for(left), tile = f == 3 ? P_NX : 1u << f;
            nx = IMP_MIN(left, tile);
            j.from_memory = i == 0;
            for (uint32_t e = 0; e < tile; e++)
                j.x[e] = (const uint8_t *)a->x + (i + IMP_MIN(e, nx - 1)) * a->x_stride;
            if (t.halves) p_half_sums(&j, tile, t.offset, a->scratch);
            for (uint32_t j0 = c0; j0 < c1; j0 += R) {
                j.w = (const uint8_t *)a->wp + j0 / R * panel;
                fn[f](&j);
                p_store(a, &j, i, nx, j0);
            }
        }
    }
}

/* One block of one row, or zeros, as words at a distance of R. */
static void p_pack_row(const struct p_type *t, const uint8_t *from, uint32_t n_byte, uint8_t *to, uint32_t r)
{
    uint8_t block[256] = {0};
    memcpy(block, from, n_byte);
    for (uint32_t p = 0; p < IMP_COUNT(t->piece); p++) {
        struct p_piece e = t->piece[p];
        uint32_t size = e.size == 2 ? 2 : 4;
        const uint8_t *src = block + e.at;
        for (uint32_t c = 0; c < e.n; c++, to += size * R) {
            uint32_t v = e.size == 4 ? load_u32(src + 4 * c) : load_u16(src + 2 * c);
            float wide = imp_f16_to_f32((uint16_t)v);
            if (e.size == 4 && t->max == 255) v ^= 0x80808080u;
            if (e.size == 0) memcpy(&v, &wide, 4);
            memcpy(to + size * r, &v, size);
        }
    }
}

static void p_pack(const imp_tensor *w, struct p_type t, uint8_t *out)
{
    uint64_t n = imp_tensor_n_row(w), k = imp_tensor_n_col(w), row = imp_tensor_row_bytes(w);
    uint64_t n_super = (k + t.super_k - 1) / t.super_k;
    for (uint64_t j0 = 0; j0 < n; j0 += R) {
        for (uint64_t b = 0; b < n_super; b++, out += t.words * P_DW) {
            uint32_t n_byte = (uint32_t)IMP_MIN(row - b * t.file_bytes, (uint64_t)t.file_bytes);
            for (uint32_t r = 0; r < R; r++) {
                const uint8_t *from = (const uint8_t *)w->data + (j0 + r) * row + b * t.file_bytes;
                p_pack_row(&t, j0 + r < n ? from : (const uint8_t *)w->data, j0 + r < n ? n_byte : 0, out, r);
            }
        }
    }
}

#if defined(P_GRID)
#define P_MANY(a, TYPE, unit)                                                                                \
    if (!(TYPE).halves && (a)->m >= G_FROM) {                                                                \
        g_run(a, TYPE, unit);                                                                                \
        return;                                                                                              \
    }
#else
#define P_MANY(a, TYPE, unit)
#endif

/* pack(), packed_bytes() and the descriptor of a variant whose run_##type is there. */
#define P_DESCRIPTOR(type, TYPE, isa_name, isa_id, bits, type_id, k_mult, scratch_fn)                        \
    static void pack_##type(const imp_tensor *w, void *out)                                                  \
    {                                                                                                        \
        p_pack(w, TYPE, out);                                                                                \
    }                                                                                                        \
    static uint64_t packed_##type(uint64_t n, uint64_t k)                                                    \
    {                                                                                                        \
        return (n + R - 1) / R * p_panel_bytes(TYPE, k);                                                     \
    }                                                                                                        \
    const imp_matmul imp_matmul_##type##_##isa_id = {                                                        \
        .name = #type "_" isa_name,                                                                          \
        .isa = isa_name,                                                                                     \
        .dtype = type_id,                                                                                    \
        .x_form = IMP_X_Q8,                                                                                  \
        .cpu = bits,                                                                                         \
        .k_multiple = k_mult,                                                                                \
        .n_step = R,                                                                                         \
        .err_per_k = 1.0f / 16,                                                                              \
        .err_const = 12,                                                                                     \
        .packed_bytes = packed_##type,                                                                       \
        .pack = pack_##type,                                                                                 \
        .scratch_bytes = scratch_fn,                                                                         \
        .run = run_##type,                                                                                   \
    };
#define P_VARIANT(type, TYPE, isa_name, isa_id, bits, type_id, k_mult)                                       \
    P_TILES(type, TYPE)                                                                                      \
    static void run_##type(const imp_matmul_args *a)                                                         \
    {                                                                                                        \
        static const p_tile_fn fn[4] = {type##_x1, type##_x2, type##_x4, type##_xn};                         \
        P_MANY(a, TYPE, p_unit_##type)                                                                       \
        p_run(a, TYPE, fn);                                                                                  \
    }                                                                                                        \
    P_DESCRIPTOR(type, TYPE, isa_name, isa_id, bits, type_id, k_mult, p_scratch_bytes)
#define P_VARIANTS(isa_name, isa_id, bits)                                                                   \
    P_VARIANT(q4_0, P_Q4_0, isa_name, isa_id, bits, IMP_Q4_0, 32)                                            \
    P_VARIANT(q8_0, P_Q8_0, isa_name, isa_id, bits, IMP_Q8_0, 32)                                            \
    P_VARIANT(q4_k, P_Q4_K, isa_name, isa_id, bits, IMP_Q4_K, 256)                                           \
    P_VARIANT(q5_k, P_Q5_K, isa_name, isa_id, bits, IMP_Q5_K, 256)                                           \
    P_VARIANT(q6_k, P_Q6_K, isa_name, isa_id, bits, IMP_Q6_K, 256)

#endif
