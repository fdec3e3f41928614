/* kern/ref/attn_ref.c - attention in plain C, f64 inside, one pass for the maximum and one for the sums.
 *
 * Idea:    scores are computed twice, so that no memory is needed for them. */
#include "kern/attn_keys.h"

#include <math.h>

static double element(const imp_attn_args *a, const void *base, size_t offset, uint32_t d)
{
    if (a->kv_dtype == IMP_F16)
        return (double)imp_f16_to_f32(load_u16((const uint8_t *)base + offset + 2 * d));
    float f;
    memcpy(&f, (const uint8_t *)base + offset + 4 * d, 4);
    return (double)f;
}

static double score(const imp_attn_args *a, const float *q, uint64_t j)
{
    size_t offset = attn_key_offset(a, j);
    double s = 0;
    for (uint32_t d = 0; d < a->head_dim; d++) s += (double)q[d] * element(a, a->k, offset, d);
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
            size_t offset = attn_key_offset(a, j);
            sum += p;
            for (uint32_t d = 0; d < n; d++) acc[d] += p * element(a, a->v, offset, d0 + d);
        }
        for (uint32_t d = 0; d < n; d++) out[d0 + d] = (float)(acc[d] / sum);
    }
}

static void run(const imp_attn_args *a)
{
    for (uint32_t r = 0; r < a->n_row; r++) {
        uint64_t lo, hi;
        attn_range(a, r, &lo, &hi);
        for (uint32_t h = 0; h < a->n_group; h++) {
            float *out = a->out + r * a->out_stride + (size_t)h * a->head_dim;
            if (lo >= hi)
                memset(out, 0, a->head_dim * sizeof(float));
            else
                one(a, a->q + r * a->q_stride + (size_t)h * a->head_dim, out, lo, hi,
                    a->sink ? a->sink + h : NULL);
        }
    }
}

const imp_attn imp_attn_ref = {.isa = "ref", .row_step = 1, .run = run};
