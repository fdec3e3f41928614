/* kern/x86/amx_int8.h - int8 matmul of packed weights by tiles, for more rows of x than one pass of vectors takes.
 *
 * Place:   included by matmul_q_amx.c. Few rows go the way of body/matmul_p_body.h, on the same packed weights.
 * Idea:    eight vectors of a unit (32 of k by 16 rows of w) are what a tile product wants as its second operand, and 16
 *          rows of x lie in memory as its first: nothing is rearranged. A strip of panels is decoded once to int8; then for
 *          16 rows of x and each panel the sums of 32 products leave the tiles as int32 and are scaled and added by vectors,
 *          while the tiles already work on the next units.
 * Layout:  decoded, for a unit: int8 [8 words of k][16 rows of w][4 bytes], f32 scale [16], f32 second scale or minimum [16].
 * Always:  an element's additions are those of p_step, in its order: the same bits as from a tile of few rows. The integer
 *          sums are exact: an offset is taken from the weights here, there from the sum, which is the same number.
 *          Q4_K has no variant: whole models are 1.2 times as fast by AVX-512 VNNI (docs/benchmarks.md).
 * Bound:   for 16 x 16 x 32 products the tile unit takes 16 cycles, storing the sums 16; converting, scaling and adding
 *          them is 48 instructions on two pipes. A load that lies a multiple of 4096 bytes from a store that waits has to
 *          wait too, so the sums are read from one half of 4 KB while the other half is stored. */
#ifndef IMP_KERN_AMX_INT8_H
#define IMP_KERN_AMX_INT8_H

#include "kern/x86/amx.h"
#include "kern/x86/packed_512.h"

#include "kern/body/matmul_p_body.h"

enum {
    T_ROW = 16,            /* rows of x a tile */
    T_UNIT = 512 + 2 * 64, /* bytes of a decoded unit */
    T_STRIP = 512 << 10,   /* bytes of decoded panels, less than the second-level cache */
    T_MAX_PANEL = 8,
    T_SUM = T_ROW * R, /* int32 of a tile of sums */
};

/* 16 rows of x, or fewer, against one decoded panel. */
struct t_job {
    const uint8_t *x; /* the first row */
    size_t x_stride;
    const uint8_t *w;
    const float *d;   /* [n_block][16] scales of x */
    const float *all; /* [n_block][16] sums of x, for types with minima */
    int32_t *sums;    /* four tiles: of even groups, of odd groups */
    uint32_t n_block;
};

static uint32_t t_panels(uint64_t k)
{
    uint64_t n = T_STRIP / (k / 32 * T_UNIT);
    return (uint32_t)(n < 1 ? 1 : n > T_MAX_PANEL ? T_MAX_PANEL : n);
}
static uint64_t t_scratch_bytes(uint64_t k)
{
    uint64_t tiles = k / 32 * (t_panels(k) * T_UNIT + 2 * 64) + 4 * T_SUM * sizeof(int32_t);
    return IMP_MAX(tiles, p_scratch_bytes(k));
}

static void t_configure(uint32_t rows, bool halves)
{
    struct amx_shape s = {.palette = 1};
    for (uint32_t i = 0; i < 4; i++) { /* sums 0..3; x 4 and 6; w 5 and 7 */
        s.rows[i] = (uint8_t)rows;
        s.row_bytes[i] = 64;
        s.rows[4 + i] = (uint8_t)(i % 2 == 0 ? rows : halves ? 4 : 8);
        s.row_bytes[4 + i] = i % 2 == 0 ? (halves ? 16 : 32) : 64;
    }
    amx_configure(&s);
}

/* The panel at w, unit by unit in the order in which p_tile adds them. */
IMP_INLINE void t_decode(const uint8_t *w, struct p_type t, p_unit_fn unit, uint32_t n_block, uint8_t *to)
{
    uint32_t n_unit = t.super_k / 32;
    for (uint32_t b = 0; b < n_block; b += n_unit, w += t.words * P_DW) {
        for (uint32_t c = 0; c < n_unit; c += 2) {
            IMP_UNROLL
            for (uint32_t h = 0; h < 2; h++) {
                struct p_unit o = {.min = v_set1(0)};
                uint32_t u = t.halves ? (c & 4) + (c >> 1 & 1) + 2 * h : c + h;
                if (n_unit == 2 && b + u >= n_block) break;
                unit(w, u, h == 1, &o);
                IMP_UNROLL
                for (int j = 0; j < 8; j++)
                    _mm512_store_si512(to + 64 * j,
                                       _mm512_sub_epi8(o.w[j], _mm512_set1_epi8((char)t.offset)));
                v_store((float *)(void *)(to + 512), o.s[0]);
                v_store((float *)(void *)(to + 576), t.halves ? o.s[1] : o.min);
                to += T_UNIT;
            }
        }
    }
}

/* The block of x that meets decoded unit e. */
IMP_INLINE uint32_t t_block(uint32_t e, bool halves)
{
    return halves && (e & 1) != (e >> 1 & 1) ? e ^ 3 : e;
}

/* Two tiles of sums: of units e and e + 1, or of the halves of unit e; odd groups have tiles 2 and 3. A unit past the end is
 * the last one again, and not used. */
IMP_INLINE void t_dots(const struct t_job *j, uint32_t e, bool halves, bool odd)
{
    uint32_t e1 = halves || e + 1 == j->n_block ? e : e + 1, half = halves ? 1 : 0;
    const uint8_t *x = j->x + offsetof(imp_q8_block, q);
    const uint8_t *x0 = x + t_block(e, halves) * sizeof(imp_q8_block);
    const uint8_t *x1 = x + t_block(e1, halves) * sizeof(imp_q8_block) + 16 * half;
    const uint8_t *w0 = j->w + (size_t)e * T_UNIT, *w1 = j->w + (size_t)e1 * T_UNIT + 256 * half;
    if (odd) {
        AMX_ZERO(2);
        AMX_LOAD(4, x0, j->x_stride);
        AMX_LOAD(5, w0, 64);
        AMX_DOT_I8(2, 4, 5);
        AMX_ZERO(3);
        AMX_LOAD(6, x1, j->x_stride);
        AMX_LOAD(7, w1, 64);
        AMX_DOT_I8(3, 6, 7);
    } else {
        AMX_ZERO(0);
        AMX_LOAD(4, x0, j->x_stride);
        AMX_LOAD(5, w0, 64);
        AMX_DOT_I8(0, 4, 5);
        AMX_ZERO(1);
        AMX_LOAD(6, x1, j->x_stride);
        AMX_LOAD(7, w1, 64);
        AMX_DOT_I8(1, 6, 7);
    }
}
IMP_INLINE void t_stores(const struct t_job *j, bool odd)
{
    if (odd) {
        AMX_STORE(2, j->sums + 2 * T_SUM, 64);
        AMX_STORE(3, j->sums + 3 * T_SUM, 64);
    } else {
        AMX_STORE(0, j->sums, 64);
        AMX_STORE(1, j->sums + T_SUM, 64);
    }
}

/* What p_step does with the sums of unit e. */
IMP_INLINE void t_add(const struct t_job *j, uint32_t e, struct p_type t, const int32_t *sums, vf acc[T_ROW])
{
    const float *s = (const float *)(const void *)(j->w + (size_t)e * T_UNIT + 512);
    vf s0 = v_load(s), s1 = v_load(s + R);
    size_t b = (size_t)t_block(e, t.halves) * T_ROW;
    IMP_UNROLL
    for (uint32_t i = 0; i < T_ROW; i++) {
        vf sum = p_to_f32(p_load(sums + i * R)), d = v_set1(j->d[b + i]);
        if (t.halves) {
            vf hi = p_to_f32(p_load(sums + T_SUM + i * R));
            acc[i] = v_fma(v_fma(hi, s1, sum * s0), d, acc[i]);
        } else if (t.has_min) {
            acc[i] = v_fma(v_fnma(s1, v_set1(j->all[b + i]), sum * s0), d, acc[i]);
        } else {
            acc[i] = v_fma(sum, s0 * d, acc[i]);
        }
    }
}

IMP_INLINE void t_adds(const struct t_job *j, uint32_t e, struct p_type t, bool odd, vf acc[T_ROW])
{
    const int32_t *sums = j->sums + (odd ? 2 * T_SUM : 0);
    t_add(j, e, t, sums, acc);
    if (!t.halves && e + 1 < j->n_block) t_add(j, e + 1, t, sums + T_SUM, acc);
}

/* y: [T_ROW][R]. A group's products begin, those of the group before are stored, those before that added. */
IMP_INLINE void t_tile(const struct t_job *job, struct p_type t, float *y)
{
    const struct t_job j = *job;
    const uint32_t per = t.halves ? 1 : 2, end = j.n_block;
    vf acc[T_ROW];
    IMP_UNROLL
    for (uint32_t i = 0; i < T_ROW; i++) acc[i] = v_set1(0);
    t_dots(&j, 0, t.halves, false);
    for (uint32_t e = 0; e < end; e += 2 * per) {
        bool odd = e + per < end, more = e + 2 * per < end;
        if (odd) t_dots(&j, e + per, t.halves, true);
        t_stores(&j, false);
        if (e > 0) t_adds(&j, e - per, t, true, acc);
        if (more) t_dots(&j, e + 2 * per, t.halves, false);
        if (odd) t_stores(&j, true);
        t_adds(&j, e, t, false, acc);
        if (odd && !more) t_adds(&j, e + per, t, true, acc);
    }
    IMP_UNROLL
    for (uint32_t i = 0; i < T_ROW; i++) v_store(y + i * R, acc[i]);
}

/* Scales and sums of the tile's rows, side by side; zeros for rows it does not have. */
static void t_gather(const struct t_job *j, uint32_t rows, bool has_min, float *d, float *all)
{
    if (rows < T_ROW) {
        memset(d, 0, j->n_block * T_ROW * sizeof *d);
        memset(all, 0, j->n_block * T_ROW * sizeof *all);
    }
    for (uint32_t i = 0; i < rows; i++) {
        const uint8_t *x = j->x + i * j->x_stride;
        for (uint32_t b = 0; b < j->n_block; b++) {
            d[b * T_ROW + i] = p_x_d(x + b * sizeof(imp_q8_block));
            if (has_min) all[b * T_ROW + i] = (float)p_x_sum(x + b * sizeof(imp_q8_block));
        }
    }
}

static void t_store(const imp_matmul_args *a, uint32_t i0, uint32_t rows, uint32_t j0, const float *sums)
{
    uint32_t from = IMP_MAX(j0, a->n0), to = IMP_MIN(j0 + R, a->n1);
    for (uint32_t i = 0; i < rows; i++, sums += R) {
        float *y = a->y + (i0 + i) * a->y_stride;
        if (to - from == R) {
            v_store(y + j0, v_load(sums) + (a->bias ? v_load(a->bias + j0) : v_set1(0)));
            continue;
        }
        for (uint32_t c = from; c < to; c++) y[c] = sums[c - j0] + (a->bias ? a->bias[c] : 0);
    }
}

typedef void (*t_decode_fn)(const uint8_t *w, uint32_t n_block, uint8_t *to);
typedef void (*t_tile_fn)(const struct t_job *j, float *y);

static void t_run(const imp_matmul_args *a, struct p_type t, const p_tile_fn fn[4], t_decode_fn decode,
                  t_tile_fn tile)
{
    if (a->m <= P_NX) {
        p_run(a, t, fn);
        return;
    }
    uint64_t k = imp_tensor_n_col(a->w), panel = p_panel_bytes(t, k);
    uint32_t n_block = (uint32_t)(k / 32), n_panel = t_panels(k), rows = 0;
    uint8_t *w = a->scratch;
    float *d = (float *)(void *)(w + (size_t)n_panel * n_block * T_UNIT), *all = d + (size_t)n_block * T_ROW;
    float y[T_SUM] __attribute__((aligned(64)));
    struct t_job j = {.x_stride = a->x_stride,
                      .d = d,
                      .all = all,
                      .sums = (int32_t *)(void *)(all + (size_t)n_block * T_ROW),
                      .n_block = n_block};
    for (uint32_t c0 = a->n0 / R * R; c0 < a->n1; c0 += n_panel * R) {
        uint32_t n = IMP_MIN(n_panel, (a->n1 - c0 + R - 1) / R);
        for (uint32_t p = 0; p < n; p++)
            decode((const uint8_t *)a->wp + (c0 / R + p) * panel, n_block, w + (size_t)p * n_block * T_UNIT);
        for (uint32_t i = 0; i < a->m; i += T_ROW) {
            uint32_t now = IMP_MIN(a->m - i, (uint32_t)T_ROW);
            if (now != rows) t_configure(rows = now, t.halves);
            j.x = (const uint8_t *)a->x + i * a->x_stride;
            t_gather(&j, rows, t.has_min, d, all);
            for (uint32_t p = 0; p < n; p++) {
                j.w = w + (size_t)p * n_block * T_UNIT;
                tile(&j, y);
                t_store(a, i, rows, c0 + p * R, y);
            }
        }
    }
    amx_release();
}

#define T_VARIANT(type, TYPE, isa_name, isa_id, bits, type_id, k_mult)                                       \
    P_TILES(type, TYPE)                                                                                      \
    static void decode_##type(const uint8_t *w, uint32_t n_block, uint8_t *to)                               \
    {                                                                                                        \
        t_decode(w, TYPE, p_unit_##type, n_block, to);                                                       \
    }                                                                                                        \
    static void tile_##type(const struct t_job *j, float *y)                                                 \
    {                                                                                                        \
        t_tile(j, TYPE, y);                                                                                  \
    }                                                                                                        \
    static void run_##type(const imp_matmul_args *a)                                                         \
    {                                                                                                        \
        static const p_tile_fn fn[4] = {type##_x1, type##_x2, type##_x4, type##_xn};                         \
        t_run(a, TYPE, fn, decode_##type, tile_##type);                                                      \
    }                                                                                                        \
    P_DESCRIPTOR(type, TYPE, isa_name, isa_id, bits, type_id, k_mult, t_scratch_bytes)
#define T_VARIANTS(isa_name, isa_id, bits)                                                                   \
    T_VARIANT(q4_0, P_Q4_0, isa_name, isa_id, bits, IMP_Q4_0, 32)                                            \
    T_VARIANT(q8_0, P_Q8_0, isa_name, isa_id, bits, IMP_Q8_0, 32)                                            \
    T_VARIANT(q5_k, P_Q5_K, isa_name, isa_id, bits, IMP_Q5_K, 256)                                           \
    T_VARIANT(q6_k, P_Q6_K, isa_name, isa_id, bits, IMP_Q6_K, 256)

#endif
