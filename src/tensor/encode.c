/* tensor/encode.c - f32 to plain types and to blocks of 32.
 *
 * Place:   reached through imp_dtype_info.from_f32; super-blocks of 256 are in encode_k.c.
 * Idea:    without weights the extremes of a block give its scale and every number is rounded to the nearest step, byte
 *          for byte as the format's reference does it; with weights the scale is searched for (encode_fit.c).
 * Layout:  stated in decode.c.
 * Always:  writes exactly n / block_elem * block_bytes bytes.
 * Threads: pure functions.
 * Source:  the GGUF block formats of ggml. */
#include <math.h>

#include "tensor/encode.h"

static void store_u16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

/* ---- plain types ------------------------------------------------------------------------------ */

void imp_encode_f32(const float *src, const float *weight, void *dst, uint64_t n)
{
    (void)weight;
    if (n > 0) memcpy(dst, src, n * sizeof *src);
}

void imp_encode_f16(const float *src, const float *weight, void *dst, uint64_t n)
{
    (void)weight;
    for (uint64_t i = 0; i < n; i++) store_u16((uint8_t *)dst + 2 * i, imp_f32_to_f16(src[i]));
}

void imp_encode_bf16(const float *src, const float *weight, void *dst, uint64_t n)
{
    (void)weight;
    for (uint64_t i = 0; i < n; i++) store_u16((uint8_t *)dst + 2 * i, imp_f32_to_bf16(src[i]));
}

/* ---- blocks of 32 ----------------------------------------------------------------------------- */

static float inverse(float d)
{
    return d != 0 ? 1 / d : 0;
}

/* The number of largest magnitude, the first of equals. */
static float extreme(const float *x)
{
    float max = x[0];
    for (int j = 1; j < 32; j++)
        if (fabsf(x[j]) > fabsf(max)) max = x[j];
    return max;
}

/* Whole numbers in lo..hi for d * q, with d as it is stored; returns d's half. */
static uint16_t weighted_scale(const float *x, const float *w, imp_fit_range r, float *q)
{
    uint16_t half = imp_f32_to_f16(imp_fit_scale(x, w, 32, r));
    imp_fit_round(x, w, 32, r, imp_f16_to_f32(half), 0, q);
    return half;
}

/* The same with a minimum: d * q + m. */
static uint16_t weighted_affine(const float *x, const float *w, float hi, float *q, uint16_t *min)
{
    float off;
    uint16_t half = imp_f32_to_f16(imp_fit_affine(x, w, 32, hi, INFINITY, &off));
    *min = imp_f32_to_f16(off);
    imp_fit_round(x, w, 32, (imp_fit_range){0, hi}, imp_f16_to_f32(half), imp_f16_to_f32(*min), q);
    return half;
}

/* q4_0 and q5_0: 0..2*half-1 in q, meaning (q - half) * d. */
static uint16_t symmetric(const float *x, const float *w, int half, int *q)
{
    float v[32], end = (float)half;
    if (w != NULL) {
        uint16_t d = weighted_scale(x, w, (imp_fit_range){-end, end - 1}, v);
        for (int j = 0; j < 32; j++) q[j] = (int)v[j] + half;
        return d;
    }
    float d = extreme(x) / -end, inv = inverse(d);
    for (int j = 0; j < 32; j++) q[j] = IMP_MIN((int)(x[j] * inv + (end + 0.5f)), 2 * half - 1);
    return imp_f32_to_f16(d);
}

/* q4_1 and q5_1: 0..top in q, meaning q * d + m. */
static uint16_t from_minimum(const float *x, const float *w, int top, int *q, uint16_t *min)
{
    float v[32], least = x[0], most = x[0];
    if (w != NULL) {
        uint16_t d = weighted_affine(x, w, (float)top, v, min);
        for (int j = 0; j < 32; j++) q[j] = (int)v[j];
        return d;
    }
    for (int j = 1; j < 32; j++) {
        least = IMP_MIN(least, x[j]);
        most = IMP_MAX(most, x[j]);
    }
    float d = (most - least) / (float)top, inv = inverse(d);
    for (int j = 0; j < 32; j++) q[j] = IMP_MIN((int)((x[j] - least) * inv + 0.5f), top);
    *min = imp_f32_to_f16(least);
    return imp_f32_to_f16(d);
}

/* 16 bytes: the low nibbles are elements 0..15, the high ones 16..31. */
static void store_nibbles(uint8_t *p, const int *q)
{
    for (int j = 0; j < 16; j++) p[j] = (uint8_t)((q[j] & 15) | (q[j + 16] & 15) << 4);
}

static void store_fifth_bits(uint8_t *p, const int *q)
{
    memset(p, 0, 4);
    for (int j = 0; j < 32; j++) p[j >> 3] = (uint8_t)(p[j >> 3] | (q[j] >> 4) << (j & 7));
}

void imp_encode_q4_0(const float *src, const float *weight, void *dst, uint64_t n)
{
    uint8_t *b = dst;
    int q[32];
    for (uint64_t i = 0; i < n; i += 32, b += 18) {
        store_u16(b, symmetric(src + i, weight != NULL ? weight + i : NULL, 8, q));
        store_nibbles(b + 2, q);
    }
}

void imp_encode_q4_1(const float *src, const float *weight, void *dst, uint64_t n)
{
    uint8_t *b = dst;
    uint16_t min;
    int q[32];
    for (uint64_t i = 0; i < n; i += 32, b += 20) {
        store_u16(b, from_minimum(src + i, weight != NULL ? weight + i : NULL, 15, q, &min));
        store_u16(b + 2, min);
        store_nibbles(b + 4, q);
    }
}

void imp_encode_q5_0(const float *src, const float *weight, void *dst, uint64_t n)
{
    uint8_t *b = dst;
    int q[32];
    for (uint64_t i = 0; i < n; i += 32, b += 22) {
        store_u16(b, symmetric(src + i, weight != NULL ? weight + i : NULL, 16, q));
        store_fifth_bits(b + 2, q);
        store_nibbles(b + 6, q);
    }
}

void imp_encode_q5_1(const float *src, const float *weight, void *dst, uint64_t n)
{
    uint8_t *b = dst;
    uint16_t min;
    int q[32];
    for (uint64_t i = 0; i < n; i += 32, b += 24) {
        store_u16(b, from_minimum(src + i, weight != NULL ? weight + i : NULL, 31, q, &min));
        store_u16(b + 2, min);
        store_fifth_bits(b + 4, q);
        store_nibbles(b + 8, q);
    }
}

void imp_encode_q8_0(const float *src, const float *weight, void *dst, uint64_t n)
{
    uint8_t *b = dst;
    float q[32];
    for (uint64_t i = 0; i < n; i += 32, b += 34) {
        const float *x = src + i;
        if (weight != NULL) {
            store_u16(b, weighted_scale(x, weight + i, (imp_fit_range){-127, 127}, q));
        } else {
            float d = fabsf(extreme(x)) / 127, inv = inverse(d);
            for (int j = 0; j < 32; j++) q[j] = roundf(x[j] * inv);
            store_u16(b, imp_f32_to_f16(d));
        }
        for (int j = 0; j < 32; j++) b[2 + j] = (uint8_t)(int8_t)q[j];
    }
}
