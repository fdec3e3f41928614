/* kern/body/q8_tile.h - a few rows of int8 activations, regrouped in scratch for the inner loops.
 *
 * Idea:    blocks interleave scale, sum and bytes; the loops want bytes in a row, and scales side by side.
 * Layout:  scratch, for the nx rows of a tile: q[k/64][nx][64], d[k/64][nx][2] scales, ds[k/256][nx][8] = d * sum, each
 *          padded with zeros to whole blocks: a row's piece is at a constant distance from its neighbour's. */
#ifndef IMP_KERN_Q8_TILE_H
#define IMP_KERN_Q8_TILE_H

#include "kern/variant.h"

enum { Q_NX = 8 }; /* rows a tile */

struct q8_tile {
    const uint8_t *q;
    const float *d, *ds;
};

IMP_INLINE uint64_t round_up(uint64_t k, uint64_t to)
{
    return (k + to - 1) / to * to;
}

static uint64_t q_scratch_bytes(uint64_t k)
{
    return Q_NX * (round_up(k, 64) + (round_up(k, 64) + round_up(k, 256)) / 32 * sizeof(float));
}

/* nx rows from row i0 on; every byte of q is xored with `flip` (0x80: int8 to uint8 with an offset of 128). */
static struct q8_tile q8_regroup(const imp_matmul_args *a, uint32_t i0, uint32_t nx, size_t k, uint32_t flip)
{
    size_t n_pair = round_up(k, 64) / 64;
    uint8_t *q = a->scratch;
    float *d = (float *)(void *)(q + nx * n_pair * 64), *ds = d + nx * n_pair * 2;
    uint64_t mask = flip * 0x0101010101010101ull;
    for (uint32_t i = 0; i < nx; i++) {
        const uint8_t *src = (const uint8_t *)a->x + (i0 + i) * a->x_stride;
        for (size_t b = 0; b < 2 * n_pair; b++) {
            imp_q8_block blk = {0};
            if (b < k / 32) memcpy(&blk, src + b * sizeof blk, sizeof blk);
            uint64_t v[4];
            memcpy(v, blk.q, 32);
            for (int j = 0; j < 4; j++) v[j] ^= mask;
            memcpy(q + (b / 2 * nx + i) * 64 + 32 * (b % 2), v, 32);
            d[(b / 2 * nx + i) * 2 + b % 2] = blk.d;
            ds[(b / 8 * nx + i) * 8 + b % 8] = blk.d * (float)blk.sum;
        }
    }
    return (struct q8_tile){q, d, ds};
}

/* One weight type: how `unit`s of 64 elements are made from a row. */
struct q_type {
    size_t block_bytes; /* of `unit_per_block` units */
    uint32_t unit_per_block;
    bool has_min;  /* weights are scale * q - min */
    bool positive; /* q >= 0 */
};

/* A kernel's inner piece: nw rows of w against the nx rows of the tile. */
struct q_job {
    const uint8_t *w;
    size_t w_stride;
    struct q8_tile x;
    size_t k;
    const float *bias; /* of w's first row; or NULL */
    float *y;          /* the tile's first row, w's first row's column */
    size_t y_stride;
};
typedef void (*q_tile_fn)(const struct q_job *job);

/* With one row of x the weights come from memory: ask for unit u of block b of the nw rows that follow these. Rows are
 * too short, and too many side by side, for the CPU's own prefetching. */
IMP_INLINE void q_prefetch(const struct q_job *job, struct q_type t, size_t b, uint32_t u, uint32_t nw)
{
    const uint8_t *p =
        job->w + nw * job->w_stride + b * t.block_bytes + u * (t.block_bytes / t.unit_per_block);
    IMP_UNROLL
    for (uint32_t j = 0; j < nw; j++) __builtin_prefetch(p + j * job->w_stride);
}

/* One type's tiles by the log2 of their rows of x; `wide` takes n_wide rows of w, `one` a single row. */
struct q_tiles {
    uint32_t nx_max;
    struct q_pair {
        q_tile_fn wide, one;
    } by_log2[4];
};
enum { Q_NW_VEC = 4, Q_NW = 2 }; /* rows of w for a single row of x, and for more */

/* nx rows of x from row i0 on against columns j0..j1-1. */
static void q_rows(struct q_job *b, const imp_matmul_args *a, uint32_t i0, uint32_t nx, uint32_t j0,
                   uint32_t j1, struct q_pair f)
{
    uint32_t step = nx == 1 ? Q_NW_VEC : Q_NW;
    for (uint32_t j = j0; j < j1;) {
        bool full = j1 - j >= step;
        b->w = (const uint8_t *)a->w->data + j * b->w_stride;
        b->bias = a->bias ? a->bias + j : NULL;
        b->y = a->y + i0 * a->y_stride + j;
        if (full)
            f.wide(b);
        else
            f.one(b);
        j += full ? step : 1;
    }
}

/* All of a call: chunks of w that stay in the second-level cache, tiles of x, then tiles of both. */
static void q_run(const imp_matmul_args *a, uint32_t flip, const struct q_tiles *t)
{
    size_t k = imp_tensor_n_col(a->w);
    struct q_job b = {.w_stride = imp_tensor_row_bytes(a->w), .k = k, .y_stride = a->y_stride};
    uint32_t chunk = n_chunk(b.w_stride);
    for (uint32_t j0 = a->n0; j0 < a->n1;) {
        uint32_t j1 = a->n1 - j0 < chunk ? a->n1 : j0 + chunk;
        for (uint32_t i = 0; i < a->m;) {
            uint32_t log2 = 3;
            while (1u << log2 > IMP_MIN(a->m - i, t->nx_max)) log2--;
            uint32_t nx = 1u << log2;
            if (nx != a->m || j0 == a->n0) b.x = q8_regroup(a, i, nx, k, flip);
            q_rows(&b, a, i, nx, j0, j1, t->by_log2[log2]);
            i += nx;
        }
        j0 = j1;
    }
}

/* Q_TILE(type, nx, nw), which the includer defines, for each size of tile, and their table. */
#define Q_TILES_4(type)                                                                                      \
    Q_TILE(type, 1, 4)                                                                                       \
    Q_TILE(type, 1, 1)                                                                                       \
    Q_TILE(type, 2, 2)                                                                                       \
    Q_TILE(type, 2, 1)                                                                                       \
    Q_TILE(type, 4, 2)                                                                                       \
    Q_TILE(type, 4, 1)
#define Q_TABLE_4(type)                                                                                      \
    {type##_x1w4, type##_x1w1}, {type##_x2w2, type##_x2w1},                                                  \
    {                                                                                                        \
        type##_x4w2, type##_x4w1                                                                             \
    }

#define MATMUL_Q(type_name, isa_name, bits, type_id, k_mult, run_fn)                                         \
    {                                                                                                        \
        .name = type_name "_" isa_name, .isa = isa_name, .dtype = type_id, .x_form = IMP_X_Q8, .cpu = bits,  \
        .k_multiple = k_mult, .n_step = 4, .err_per_k = 1.0f / 32, .err_const = 12,                          \
        .scratch_bytes = q_scratch_bytes, .run = run_fn                                                      \
    }

#endif
