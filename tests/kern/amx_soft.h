/* tests/kern/amx_soft.h - the tile unit in plain C, under the names of kern/x86/amx.h, for CPUs that have none.
 *
 * Idea:    written from the definitions of the instructions, so that the kernels' use of shapes, strides and operands is
 *          checked; shapes that the hardware would refuse end the program.
 * Source:  Intel SDM vol. 2: LDTILECFG, TILELOADD, TDPBSSD, TDPBF16PS. */
#ifndef AMX_SOFT_H
#define AMX_SOFT_H

#define IMP_KERN_AMX_H
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kern/variant.h"

struct amx_shape {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

static struct {
    struct amx_shape shape;
    uint8_t t[8][16][64];
} soft;

static void soft_need(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "tile unit: %s\n", what);
    abort();
}
static inline void amx_configure(const struct amx_shape *s)
{
    soft_need(s->palette == 1 && s->start_row == 0, "palette");
    for (int i = 0; i < 16; i++)
        soft_need(i < 8 ? s->rows[i] <= 16 && s->row_bytes[i] <= 64 && !s->rows[i] == !s->row_bytes[i]
                        : s->rows[i] == 0 && s->row_bytes[i] == 0,
                  "shape of a register");
    memset(&soft, 0, sizeof soft);
    soft.shape = *s;
}
static inline void amx_release(void)
{
    memset(&soft, 0, sizeof soft);
}
static inline void soft_zero(int t)
{
    soft_need(soft.shape.rows[t] != 0, "register without a shape");
    memset(soft.t[t], 0, sizeof soft.t[t]);
}
static inline void soft_load(int t, const void *p, size_t stride)
{
    soft_zero(t);
    for (size_t r = 0; r < soft.shape.rows[t]; r++)
        memcpy(soft.t[t][r], (const uint8_t *)p + r * stride, soft.shape.row_bytes[t]);
}
static inline void soft_store(int t, void *p, size_t stride)
{
    soft_need(soft.shape.rows[t] != 0, "register without a shape");
    for (size_t r = 0; r < soft.shape.rows[t]; r++)
        memcpy((uint8_t *)p + r * stride, soft.t[t][r], soft.shape.row_bytes[t]);
}
static inline void soft_need_product(int c, int a, int b)
{
    const struct amx_shape *s = &soft.shape;
    soft_need(c != a && c != b && a != b, "a register twice in a product");
    soft_need(s->rows[c] == s->rows[a] && s->row_bytes[c] == s->row_bytes[b] &&
                  s->row_bytes[a] == 4 * s->rows[b] && s->rows[a] != 0 && s->row_bytes[b] % 4 == 0,
              "shapes of a product");
}
static inline void soft_dot_i8(int c, int a, int b)
{
    soft_need_product(c, a, b);
    for (size_t m = 0; m < soft.shape.rows[c]; m++)
        for (size_t n = 0; n < soft.shape.row_bytes[c] / 4u; n++) {
            int32_t sum;
            memcpy(&sum, &soft.t[c][m][4 * n], 4);
            for (size_t k = 0; k < soft.shape.row_bytes[a]; k++)
                sum += (int8_t)soft.t[a][m][k] * (int8_t)soft.t[b][k / 4][4 * n + k % 4];
            memcpy(&soft.t[c][m][4 * n], &sum, 4);
        }
}
/* bf16 element e of a row, denormals as zero. */
static inline float soft_bf16(const uint8_t *row, size_t e)
{
    uint32_t bits = (uint32_t)(row[2 * e] | row[2 * e + 1] << 8) << 16;
    if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
static inline float soft_flush(float f)
{
    return fabsf(f) < 0x1p-126f ? copysignf(0, f) : f;
}
static inline void soft_dot_bf16(int c, int a, int b)
{
    soft_need_product(c, a, b);
    for (size_t m = 0; m < soft.shape.rows[c]; m++)
        for (size_t n = 0; n < soft.shape.row_bytes[c] / 4u; n++) {
            float sum, part[2] = {0, 0};
            memcpy(&sum, &soft.t[c][m][4 * n], 4);
            for (size_t k = 0; k < soft.shape.row_bytes[a] / 2u; k++)
                part[k % 2] = soft_flush(fmaf(soft_bf16(soft.t[a][m], k),
                                              soft_bf16(soft.t[b][k / 2], 2 * n + k % 2), part[k % 2]));
            sum = soft_flush(soft_flush(sum) + soft_flush(part[0] + part[1]));
            memcpy(&soft.t[c][m][4 * n], &sum, 4);
        }
}

#define AMX_ZERO(t)             soft_zero(t)
#define AMX_LOAD(t, p, stride)  soft_load(t, p, stride)
#define AMX_STORE(t, p, stride) soft_store(t, p, stride)
#define AMX_DOT_I8(c, a, b)     soft_dot_i8(c, a, b)
#define AMX_DOT_BF16(c, a, b)   soft_dot_bf16(c, a, b)

#endif
