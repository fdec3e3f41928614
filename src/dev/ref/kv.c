/* dev/ref/kv.c - what the KV cache's types do to a key or value: rows to the bytes of a file's blocks and back.
 *
 * Place:   ops.c keeps what a row has become; ref.c moves blocks in and out.
 * Idea:    f32 and f16 element by element; q8_0 and q4_0 in blocks of 32 with an f16 scale, as in GGUF. With q4_0 keys are
 *          first rotated by a normalised Hadamard matrix over the largest power of two that divides the head (at most 256),
 *          values are q8_0. Written for reading, in f64; nothing shared with src/kern. */
#include "dev/ref/ref.h"

#include <math.h>

imp_dtype imp_ref_kv_type(imp_dtype kv, int part)
{
    return kv == IMP_Q4_0 && part == 1 ? IMP_Q8_0 : kv;
}

void imp_ref_kv_rotate(float *x, uint32_t head_dim)
{
    uint32_t n = 1;
    double y[256];
    while (n < 256 && head_dim % (2 * n) == 0) n *= 2;
    for (float *p = x; p < x + head_dim; p += n) {
        for (uint32_t i = 0; i < n; i++) {
            y[i] = 0;
            for (uint32_t k = 0; k < n; k++)
                y[i] += __builtin_popcount(i & k) % 2 == 0 ? (double)p[k] : -(double)p[k];
        }
        for (uint32_t i = 0; i < n; i++) p[i] = (float)(y[i] / sqrt((double)n));
    }
}

/* d = largest / 127 (q8_0: |largest|) or largest / -8 (q4_0) as f16; steps of d to the nearest, ties to even. */
static void encode_block(imp_dtype t, const float *x, uint8_t *to)
{
    double largest = 0, lo = t == IMP_Q8_0 ? -127 : -8, hi = t == IMP_Q8_0 ? 127 : 7;
    for (int i = 31; i >= 0; i--) {
        if (isnan(x[i])) largest = NAN;
        if (fabs((double)x[i]) >= fabs(largest)) largest = (double)x[i];
    }
    uint16_t h = imp_f32_to_f16((float)(t == IMP_Q8_0 ? fabs(largest) / 127 : largest / -8));
    double d = (double)imp_f16_to_f32(h);
    int q[32];
    for (int i = 0; i < 32; i++)
        q[i] = d == 0 || !isfinite(d) ? 0 : (int)fmin(fmax(rint((double)x[i] / d), lo), hi);
    memcpy(to, &h, 2);
    for (int i = 0; i < 32 && t == IMP_Q8_0; i++) to[2 + i] = (uint8_t)q[i];
    for (int i = 0; i < 16 && t == IMP_Q4_0; i++) to[2 + i] = (uint8_t)((q[i] + 8) | (q[i + 16] + 8) << 4);
}

void imp_ref_kv_encode(imp_dtype t, const float *x, uint32_t n, uint8_t *to)
{
    for (uint32_t i = 0; i < n && t == IMP_F16; i++, to += 2) {
        uint16_t h = imp_f32_to_f16(x[i]);
        memcpy(to, &h, 2);
    }
    if (t == IMP_F32) memcpy(to, x, n * sizeof *x);
    if (t != IMP_Q8_0 && t != IMP_Q4_0) return;
    for (uint32_t i = 0; i < n; i += 32, to += imp_dtype_get(t)->block_bytes) encode_block(t, x + i, to);
}
