/* kern/body/q8_tile.h - a few rows of int8 activations, regrouped in scratch for the inner loops.
 *
 * Idea:    blocks interleave scale, sum and bytes; the loops want bytes in a row, and scales side by side.
 * Layout:  scratch: per row q[k_pad], then d[k_pad/32], then ds[k_pad/32] = d * sum; k_pad = k rounded up to 64, the pad
 *          is zero. */
#ifndef IMP_KERN_Q8_TILE_H
#define IMP_KERN_Q8_TILE_H

#include "kern/variant.h"

enum { Q_NX = 8 }; /* rows a tile */

struct q8_tile {
    const uint8_t *q;
    const float *d, *ds;
    size_t q_stride, d_stride; /* bytes; floats */
};

IMP_INLINE size_t q8_pad(size_t k)
{
    return (k + 63) & ~(size_t)63;
}

static uint64_t q_scratch_bytes(uint64_t k)
{
    uint64_t pad = (k + 63) & ~63ull;
    return Q_NX * (pad + 2 * pad / 32 * sizeof(float));
}

/* nx rows from row i0 on; every byte of q is xored with `flip` (0x80: int8 to uint8 with an offset of 128). */
static struct q8_tile q8_regroup(const imp_matmul_args *a, uint32_t i0, uint32_t nx, size_t k, uint32_t flip)
{
    size_t pad = q8_pad(k), nb = pad / 32;
    uint8_t *q = a->scratch;
    float *d = (float *)(void *)(q + Q_NX * pad), *ds = d + Q_NX * nb;
    uint64_t mask = flip * 0x0101010101010101ull;
    for (uint32_t i = 0; i < nx; i++) {
        const uint8_t *src = (const uint8_t *)a->x + (i0 + i) * a->x_stride;
        for (size_t b = 0; b < nb; b++) {
            imp_q8_block blk = {0};
            if (b < k / 32) memcpy(&blk, src + b * sizeof blk, sizeof blk);
            uint64_t v[4];
            memcpy(v, blk.q, 32);
            for (int j = 0; j < 4; j++) v[j] ^= mask;
            memcpy(q + i * pad + 32 * b, v, 32);
            d[i * nb + b] = blk.d;
            ds[i * nb + b] = blk.d * (float)blk.sum;
        }
    }
    return (struct q8_tile){q, d, ds, pad, nb};
}

/* One weight type: how `unit`s of 64 elements are made from a row. */
struct q_type {
    size_t block_bytes; /* of `unit_per_block` units */
    uint32_t unit_per_block;
    bool has_min;  /* weights are scale * q - min */
    bool positive; /* q >= 0 */
};

/* A kernel's inner piece: nw rows of w from w on against nx rows of the tile from row i0 on. */
struct q_job {
    const uint8_t *w;
    size_t w_stride;
    struct q8_tile x;
    size_t k;
    const float *bias;
    float *y; /* the tile's first row and w's first row */
    size_t y_stride;
};

typedef void (*q_tile_fn)(const struct q_job *job, uint32_t i0);

/* The tile sizes of one weight type: [nx][nw] as the walker below takes them. */
struct q_tiles {
    uint32_t nx_max;
    q_tile_fn x1w4, x1w1, x2w2, x2w1, x4w2, x4w1, x8w2, x8w1; /* x8: NULL unless nx_max is 8 */
};

IMP_INLINE void q_rows(struct q_job *b, uint32_t i0, uint32_t j0, uint32_t j1, const imp_matmul_args *a, uint32_t row0,
                       uint32_t step, q_tile_fn wide, q_tile_fn one)
{
    size_t bytes = b->w_stride;
    for (uint32_t j = j0; j < j1;) {
        bool full = j1 - j >= step;
        b->w = (const uint8_t *)a->w->data + j * bytes;
        b->bias = a->bias ? a->bias + j : NULL;
        b->y = a->y + row0 * a->y_stride + j;
        if (full) wide(b, i0);
        else one(b, i0);
        j += full ? step : 1;
    }
}

/* All of a call: chunks of w that stay in the second-level cache, tiles of x, then tiles of both. */
static void q_run(const imp_matmul_args *a, uint32_t flip, const struct q_tiles *t)
{
    size_t k = imp_tensor_n_col(a->w);
    struct q_job b = {.w_stride = imp_tensor_row_bytes(a->w), .k = k, .y_stride = a->y_stride};
    uint32_t chunk = n_chunk(b.w_stride);
    for (uint32_t j0 = a->n0; j0 < a->n1; j0 += chunk) {
        uint32_t j1 = a->n1 - j0 < chunk ? a->n1 : j0 + chunk;
        for (uint32_t row0 = 0; row0 < a->m; row0 += t->nx_max) {
            uint32_t nx = IMP_MIN(a->m - row0, t->nx_max), i = 0;
            if (j0 == a->n0 || a->m > t->nx_max) b.x = q8_regroup(a, row0, nx, k, flip);
            if (nx == 8) {
                q_rows(&b, 0, j0, j1, a, row0, 2, t->x8w2, t->x8w1);
                continue;
            }
            for (; i + 4 <= nx; i += 4) q_rows(&b, i, j0, j1, a, row0, 2, t->x4w2, t->x4w1);
            if (i + 2 <= nx) {
                q_rows(&b, i, j0, j1, a, row0, 2, t->x2w2, t->x2w1);
                i += 2;
            }
            if (i < nx) q_rows(&b, i, j0, j1, a, row0, 4, t->x1w4, t->x1w1);
        }
    }
}

/* Instantiates TILE(nx, nw) of a type as functions and the table of them. */
#define Q_TILES_4(type)                                                                                      \
    Q_TILE(type, 1, 4)                                                                                       \
    Q_TILE(type, 1, 1)                                                                                       \
    Q_TILE(type, 2, 2)                                                                                       \
    Q_TILE(type, 2, 1)                                                                                       \
    Q_TILE(type, 4, 2)                                                                                       \
    Q_TILE(type, 4, 1)
#define Q_TABLE_4(type)                                                                                      \
    .x1w4 = type##_x1w4, .x1w1 = type##_x1w1, .x2w2 = type##_x2w2, .x2w1 = type##_x2w1, .x4w2 = type##_x4w2, \
    .x4w1 = type##_x4w1

#define MATMUL_Q(type_name, isa_name, bits, type_id, k_mult, run_fn)                                         \
    {                                                                                                        \
        .name = type_name "_" isa_name, .isa = isa_name, .dtype = type_id, .x_form = IMP_X_Q8, .cpu = bits,  \
        .k_multiple = k_mult, .n_step = 4, .err_per_k = 1.0f / 32, .err_const = 12,                          \
        .scratch_bytes = q_scratch_bytes, .run = run_fn                                                      \
    }

#endif
