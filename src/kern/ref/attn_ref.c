/* kern/ref/attn_ref.c - attention in plain C, f64 inside, one pass for the maximum and one for the sums.
 *
 * Idea:    scores are computed twice, so that no memory is needed for them. Tiles are read through the row form that all
 *          devices share. In pieces it does nothing until join(), which computes all. */
#include "kern/attn_keys.h"
#include "kern/kv.h"

#include <math.h>

/* Element d of the row of position `slot` in a tile. */
static double element(const imp_attn_args *a, imp_kv_part part, uint64_t j, uint32_t d)
{
    const uint8_t *tile = (const uint8_t *)(part == IMP_KV_KEY ? a->k : a->v);
    tile += attn_tile_offset(a, j / IMP_ATTN_TILE * IMP_ATTN_TILE);
    uint32_t slot = j % IMP_ATTN_TILE;
    if (a->row_stride != 0) {
        float f;
        memcpy(&f, tile + slot * a->row_stride + 4 * (size_t)d, 4);
        return (double)f;
    }
    return (double)imp_kv_element(a->kv_dtype, part, a->head_dim, tile, slot, d);
}

static double score(const imp_attn_args *a, const float *q, uint64_t j)
{
    double s = 0;
    for (uint32_t d = 0; d < a->head_dim; d++) s += (double)q[d] * element(a, IMP_KV_KEY, j, d);
    s *= (double)a->scale;
    return a->softcap != 0 ? (double)a->softcap * tanh(s / (double)a->softcap) : s;
}

/* One row and head; sums in chunks of head_dim that fit the stack. */
static void one(const imp_attn_args *a, const float *q, float *out, uint64_t lo, uint64_t hi,
                const float *sink)
{
    enum { CHUNK = 64 };
    double max = sink ? (double)*sink : -INFINITY;
    for (uint64_t j = lo; j < hi; j++) {
        double s = score(a, q, j);
        if (s > max) max = s;
    }
    for (uint32_t d0 = 0; d0 < a->head_dim; d0 += CHUNK) {
        double acc[CHUNK] = {0}, sum = sink ? exp((double)*sink - max) : 0;
        uint32_t n = a->head_dim - d0 < CHUNK ? a->head_dim - d0 : CHUNK;
        for (uint64_t j = lo; j < hi; j++) {
            double p = exp(score(a, q, j) - max);
            sum += p;
            for (uint32_t d = 0; d < n; d++) acc[d] += p * element(a, IMP_KV_VALUE, j, d0 + d);
        }
        for (uint32_t d = 0; d < n; d++) out[d0 + d] = (float)(acc[d] / sum);
    }
}

static void run(const imp_attn_args *a)
{
    float *turned = a->scratch;
    for (uint32_t r = 0; r < a->n_row; r++) {
        uint64_t lo, hi;
        attn_range(a, r, &lo, &hi);
        for (uint32_t h = 0; h < a->n_group; h++) {
            float *out = a->out + r * a->out_stride + (size_t)h * a->head_dim;
            const float *q = a->q + r * a->q_stride + (size_t)h * a->head_dim;
            if (a->row_stride == 0 && a->kv_dtype == IMP_Q4_0) {
                imp_kv_rotate(turned, q, a->head_dim);
                q = turned;
            }
            if (lo >= hi)
                memset(out, 0, a->head_dim * sizeof(float));
            else
                one(a, q, out, lo, hi, a->sink ? a->sink + h : NULL);
        }
    }
}

static void run_chunk(const imp_attn_args *a, uint32_t chunk, float *part)
{
    (void)a, (void)chunk, (void)part;
}
static void join(const imp_attn_args *a, const float *part)
{
    (void)part;
    run(a);
}

const imp_attn imp_attn_ref = {.isa = "ref", .row_step = 1, .run = run, .run_chunk = run_chunk, .join = join};
