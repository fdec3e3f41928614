/* kern/body/matmul_a16_body.h - matmul of 8-bit weights in blocks of 32 with f32 activations rounded to 16 bits.
 *
 * Place:   included once by matmul_a16_<isa>.c after that instruction set's simd_*.h, which also gives vi (W int32), vi_zero,
 *          vi_to_f32, a16_load (2W int8 as int16), a16_dot (acc + pairs of int16 products) and a16_round.
 * Idea:    an int16 product of two pairs is one instruction where f32 takes two: twice the rate of f32 at an error that is
 *          none beside the weights' own. x becomes d * q, q int16, d for each row and 32 columns; sums over the 32 are
 *          exact (32 * 128 * 32767 < 2^31), then one multiply-add in f32 with both scales. panel_body.h says how the work
 *          is cut.
 * Layout:  packed: [ceil(n / PANEL)][k / 32] of { float d[PANEL]; int8 q[16 pairs of k][PANEL][2] }, zeros past n.
 * Accuracy: each x is off by at most 1/65534 of the largest |x| of its 32; then k/32 + 3 roundings. A NaN or infinity
 *          makes all results of its row NaN. */
#ifndef IMP_KERN_MATMUL_A16_BODY_H
#define IMP_KERN_MATMUL_A16_BODY_H

#include <math.h>

#include "kern/body/panel_body.h"

enum {
    KB = KC / 32,                                  /* blocks of 32 in a block of k */
    X16 = KC + 32,                                 /* from row to row of the rounded x */
    A16_BLOCK = PANEL * (32 + (int)sizeof(float)), /* bytes of 32 columns of k of a panel */
};

struct a16_tile {
    const int16_t *x; /* rows X16 apart */
    const float *d;   /* rows KB apart */
    const uint8_t *w;
    size_t n_block;
    struct panel_out out;
};

/* sum[i] += 32 products of row i, for the panel's columns. */
IMP_INLINE void a16_block(const int16_t *x, const float *d, const uint8_t *w, uint32_t nx,
                          float (*sum)[PANEL])
{
    vi acc[MR][2];
    IMP_UNROLL
    for (uint32_t i = 0; i < nx; i++) acc[i][0] = acc[i][1] = vi_zero();
    const float *scale = (const float *)(const void *)w;
    const uint8_t *q = w + PANEL * sizeof(float);
    for (const int16_t *end = x + 32; x < end; x += 2, q += 2 * PANEL) {
        vi w0 = a16_load(q), w1 = a16_load(q + PANEL);
        if (nx == 1) __builtin_prefetch(q + 4096);
        IMP_UNROLL
        for (uint32_t i = 0; i < nx; i++) {
            vi xv = vi_pair(x + i * X16);
            acc[i][0] = a16_dot(acc[i][0], w0, xv);
            acc[i][1] = a16_dot(acc[i][1], w1, xv);
        }
    }
    vf s0 = v_load(scale), s1 = v_load(scale + W);
    IMP_UNROLL
    for (uint32_t i = 0; i < nx; i++) {
        vf dv = v_set1(d[i * KB]);
        v_store(sum[i], v_fma(vi_to_f32(acc[i][0]) * dv, s0, v_load(sum[i])));
        v_store(sum[i] + W, v_fma(vi_to_f32(acc[i][1]) * dv, s1, v_load(sum[i] + W)));
    }
}

IMP_INLINE void a16_tile_of(const struct a16_tile *t, uint32_t nx)
{
    float sum[MR][PANEL] __attribute__((aligned(64)));
    memset(sum, 0, nx * sizeof sum[0]);
    for (size_t b = 0; b < t->n_block; b++) a16_block(t->x + b * 32, t->d + b, t->w + b * A16_BLOCK, nx, sum);
    for (uint32_t i = 0; i < nx; i++) panel_store(&t->out, i, v_load(sum[i]), v_load(sum[i] + W));
}

static __attribute__((noinline)) void a16_run_tile(const struct a16_tile *t, uint32_t nx)
{
    switch (nx) {
    case 12: a16_tile_of(t, MR == 12 ? 12 : 1); break;
    case 8: a16_tile_of(t, MR == 12 ? 8 : 1); break;
    case 6: a16_tile_of(t, 6); break;
    case 4: a16_tile_of(t, 4); break;
    case 2: a16_tile_of(t, 2); break;
    default: a16_tile_of(t, 1); break;
    }
}

/* 32 elements as d * q; those too small to divide by are zero. */
IMP_INLINE void a16_round32(int16_t *q, float *d, const float *x)
{
    uint32_t bits = q8_max_bits(x);
    float max;
    memcpy(&max, &bits, 4);
    if (bits >= 0x7f800000u || max < 0x1p-100f) {
        memset(q, 0, 32 * sizeof *q);
        *d = bits >= 0x7f800000u ? NAN : 0;
        return;
    }
    *d = max / 32767.0f;
    a16_round(q, x, 32767.0f / max);
    a16_round(q + 16, x + 16, 32767.0f / max);
}

static uint64_t a16_scratch_bytes(uint64_t k)
{
    (void)k;
    return XR * (X16 * sizeof(int16_t) + KB * sizeof(float));
}

static void run_a16(const imp_matmul_args *a)
{
    size_t n_block = imp_tensor_n_col(a->w) / 32;
    int16_t *x = a->scratch;
    float *d = (float *)(void *)(x + XR * X16);
    for (size_t b0 = 0; b0 < n_block; b0 += KB) {
        size_t nb = IMP_MIN(n_block - b0, (size_t)KB);
        for (uint32_t i0 = 0; i0 < a->m; i0 += XR) {
            uint32_t n_row = IMP_MIN(a->m - i0, (uint32_t)XR);
            for (uint32_t i = 0; i < n_row; i++) {
                const float *from =
                    (const float *)(const void *)((const uint8_t *)a->x + (i0 + i) * a->x_stride) + b0 * 32;
                for (size_t b = 0; b < nb; b++)
                    a16_round32(x + i * X16 + b * 32, d + i * KB + b, from + b * 32);
            }
            for (uint32_t j = a->n0 / PANEL * PANEL; j < a->n1; j += PANEL) {
                const uint8_t *w = (const uint8_t *)a->wp + ((size_t)(j / PANEL) * n_block + b0) * A16_BLOCK;
                for (uint32_t i = 0, nx; i < n_row; i += nx) {
                    nx = panel_rows(n_row - i);
                    struct a16_tile t = {x + i * X16,
                                         d + i * KB,
                                         w,
                                         nb,
                                         {.y = a->y + (i0 + i) * a->y_stride + j,
                                          .y_stride = a->y_stride,
                                          .bias = a->bias != NULL && b0 + nb == n_block ? a->bias + j : NULL,
                                          .c0 = a->n0 > j ? a->n0 - j : 0,
                                          .c1 = IMP_MIN(a->n1 - j, (uint32_t)PANEL),
                                          .first = b0 == 0}};
                    a16_run_tile(&t, nx);
                }
            }
        }
    }
}

static uint64_t a16_packed_bytes(uint64_t n, uint64_t k)
{
    return (n + PANEL - 1) / PANEL * (k / 32) * A16_BLOCK;
}

/* One block of 32 weights of the file as d * q. */
typedef float (*a16_decode_fn)(const uint8_t *block, int8_t q[32]);

IMP_INLINE float a16_decode_q8_0(const uint8_t *block, int8_t q[32])
{
    memcpy(q, block + 2, 32);
    return imp_f16_to_f32(load_u16(block));
}
IMP_INLINE float a16_decode_q4_0(const uint8_t *block, int8_t q[32])
{
    for (int i = 0; i < 16; i++) {
        q[i] = (int8_t)((block[2 + i] & 15) - 8);
        q[i + 16] = (int8_t)((block[2 + i] >> 4) - 8);
    }
    return imp_f16_to_f32(load_u16(block));
}

IMP_INLINE void a16_pack(const imp_tensor *w, uint8_t *out, size_t block_bytes, a16_decode_fn decode)
{
    size_t n_block = imp_tensor_n_col(w) / 32, n = imp_tensor_n_row(w);
    memset(out, 0, a16_packed_bytes(n, n_block * 32));
    for (size_t j = 0; j < n; j++) {
        const uint8_t *from = (const uint8_t *)w->data + j * n_block * block_bytes;
        for (size_t b = 0; b < n_block; b++) {
            uint8_t *to = out + (j / PANEL * n_block + b) * A16_BLOCK;
            int8_t q[32];
            float d = decode(from + b * block_bytes, q);
            memcpy(to + j % PANEL * sizeof d, &d, sizeof d);
            for (size_t p = 0; p < 16; p++)
                memcpy(to + PANEL * sizeof d + (p * PANEL + j % PANEL) * 2, q + 2 * p, 2);
        }
    }
}
static void pack_q8_0(const imp_tensor *w, void *out)
{
    a16_pack(w, out, 34, a16_decode_q8_0);
}
static void pack_q4_0(const imp_tensor *w, void *out)
{
    a16_pack(w, out, 18, a16_decode_q4_0);
}

#define MATMUL_A16(type_name, isa_name, bits, type_id, pack_fn)                                              \
    {                                                                                                        \
        .name = type_name "_" isa_name, .isa = isa_name, .dtype = type_id, .x_form = IMP_X_F32, .cpu = bits, \
        .x_bits = 16, .k_multiple = 32, .n_step = PANEL, .err_per_k = 1.0f / 32, .err_const = 8,             \
        .scratch_bytes = a16_scratch_bytes, .packed_bytes = a16_packed_bytes, .pack = pack_fn,               \
        .run = run_a16                                                                                       \
    }

#endif
