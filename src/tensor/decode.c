/* tensor/decode.c - every stored number format to f32, one block at a time.
 *
 * Place:   reached through imp_dtype_info.to_f32 and imp_tensor_row_f32; the truth that packed kernels are held to.
 * Idea:    plain loops over bytes. Each value is computed as one f32 product (and one f32 sum where the format has
 *          a minimum), in the order d*scale first, so that results equal those of other implementations bit for bit.
 * Layout:  stated above each decoder. "lo-hi nibbles": the low halves of the bytes are the first half of the
 *          elements, the high halves the second half.
 * Always:  reads exactly n / block_elem * block_bytes bytes, writes exactly n floats.
 * Threads: pure functions.
 * Source:  the GGUF block formats of ggml; MX formats: OCP Microscaling specification 1.0. */
#include "tensor/decode.h"

static uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static float load_f16(const uint8_t *p)
{
    return imp_f16_to_f32(load_u16(p));
}

/* ---- plain types ------------------------------------------------------------------------------ */
#define PLAIN(name, type)                                                                                    \
    void imp_decode_##name(const void *src, float *dst, uint64_t n)                                          \
    {                                                                                                        \
        const uint8_t *p = src;                                                                              \
        for (uint64_t i = 0; i < n; i++, p += sizeof(type)) {                                                \
            type v;                                                                                          \
            memcpy(&v, p, sizeof v);                                                                         \
            dst[i] = (float)v;                                                                               \
        }                                                                                                    \
    }
PLAIN(f64, double)
PLAIN(i8, int8_t)
PLAIN(i16, int16_t)
PLAIN(i32, int32_t)
PLAIN(i64, int64_t)
PLAIN(u8, uint8_t)
PLAIN(u16, uint16_t)
PLAIN(u32, uint32_t)
PLAIN(u64, uint64_t)

void imp_decode_f32(const void *src, float *dst, uint64_t n)
{
    if (n > 0) memcpy(dst, src, n * sizeof *dst);
}

void imp_decode_bool(const void *src, float *dst, uint64_t n)
{
    const uint8_t *p = src;
    for (uint64_t i = 0; i < n; i++) dst[i] = p[i] != 0 ? 1.0f : 0.0f;
}

void imp_decode_f16(const void *src, float *dst, uint64_t n)
{
    const uint8_t *p = src;
    for (uint64_t i = 0; i < n; i++) dst[i] = load_f16(p + 2 * i);
}

void imp_decode_bf16(const void *src, float *dst, uint64_t n)
{
    const uint8_t *p = src;
    for (uint64_t i = 0; i < n; i++) dst[i] = imp_bf16_to_f32(load_u16(p + 2 * i));
}

/* ---- blocks of 32 ----------------------------------------------------------------------------- */

/* d f16 | 16 bytes lo-hi nibbles; (q - 8) * d */
void imp_decode_q4_0(const void *src, float *dst, uint64_t n)
{
    const uint8_t *b = src;
    for (uint64_t i = 0; i < n; i += 32, b += 18, dst += 32) {
        float d = load_f16(b);
        for (int j = 0; j < 16; j++) {
            dst[j] = d * (float)((b[2 + j] & 15) - 8);
            dst[j + 16] = d * (float)((b[2 + j] >> 4) - 8);
        }
    }
}

/* d f16 | m f16 | 16 bytes lo-hi nibbles; q * d + m */
void imp_decode_q4_1(const void *src, float *dst, uint64_t n)
{
    const uint8_t *b = src;
    for (uint64_t i = 0; i < n; i += 32, b += 20, dst += 32) {
        float d = load_f16(b), m = load_f16(b + 2);
        for (int j = 0; j < 16; j++) {
            dst[j] = d * (float)(b[4 + j] & 15) + m;
            dst[j + 16] = d * (float)(b[4 + j] >> 4) + m;
        }
    }
}

/* Fifth bits: bit j of the 32-bit word at p belongs to element j. */
static int fifth_bit(const uint8_t *p, int j)
{
    return (p[j >> 3] >> (j & 7) & 1) << 4;
}

/* d f16 | 32 fifth bits | 16 bytes lo-hi nibbles; (q - 16) * d */
void imp_decode_q5_0(const void *src, float *dst, uint64_t n)
{
    const uint8_t *b = src;
    for (uint64_t i = 0; i < n; i += 32, b += 22, dst += 32) {
        float d = load_f16(b);
        for (int j = 0; j < 16; j++) {
            dst[j] = d * (float)(((b[6 + j] & 15) | fifth_bit(b + 2, j)) - 16);
            dst[j + 16] = d * (float)(((b[6 + j] >> 4) | fifth_bit(b + 2, j + 16)) - 16);
        }
    }
}

/* d f16 | m f16 | 32 fifth bits | 16 bytes lo-hi nibbles; q * d + m */
void imp_decode_q5_1(const void *src, float *dst, uint64_t n)
{
    const uint8_t *b = src;
    for (uint64_t i = 0; i < n; i += 32, b += 24, dst += 32) {
        float d = load_f16(b), m = load_f16(b + 2);
        for (int j = 0; j < 16; j++) {
            dst[j] = d * (float)((b[8 + j] & 15) | fifth_bit(b + 4, j)) + m;
            dst[j + 16] = d * (float)((b[8 + j] >> 4) | fifth_bit(b + 4, j + 16)) + m;
        }
    }
}

/* d f16 | 32 i8; q * d */
void imp_decode_q8_0(const void *src, float *dst, uint64_t n)
{
    const uint8_t *b = src;
    for (uint64_t i = 0; i < n; i += 32, b += 34, dst += 32) {
        float d = load_f16(b);
        for (int j = 0; j < 32; j++) dst[j] = d * (float)(int8_t)b[2 + j];
    }
}

static const int8_t iq4_value[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                     1,    13,   25,  38,  53,  69,  89,  113};

/* d f16 | 16 bytes lo-hi nibbles, indices into iq4_value */
void imp_decode_iq4_nl(const void *src, float *dst, uint64_t n)
{
    const uint8_t *b = src;
    for (uint64_t i = 0; i < n; i += 32, b += 18, dst += 32) {
        float d = load_f16(b);
        for (int j = 0; j < 16; j++) {
            dst[j] = d * (float)iq4_value[b[2 + j] & 15];
            dst[j + 16] = d * (float)iq4_value[b[2 + j] >> 4];
        }
    }
}

/* E8M0 exponent byte | 16 bytes lo-hi nibbles of E2M1. The table holds twice the E2M1 values, so the scale is
 * 2^(e - 128); e = 0 and 1 give f32 subnormals. */
void imp_decode_mxfp4(const void *src, float *dst, uint64_t n)
{
    static const int8_t twice_e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    const uint8_t *b = src;
    for (uint64_t i = 0; i < n; i += 32, b += 17, dst += 32) {
        uint32_t u = b[0] < 2 ? 0x00200000u << b[0] : (uint32_t)(b[0] - 1) << 23;
        float d;
        memcpy(&d, &u, 4);
        for (int j = 0; j < 16; j++) {
            dst[j] = d * (float)twice_e2m1[b[1 + j] & 15];
            dst[j + 16] = d * (float)twice_e2m1[b[1 + j] >> 4];
        }
    }
}

/* ---- super-blocks of 256 ---------------------------------------------------------------------- */

/* 16 bytes scale(low nibble) and minimum(high) of 16 elements each | 64 bytes 2-bit q | d f16 | dmin f16.
 * Each half of 128 elements has 32 bytes of q; its four runs of 32 elements are bits 0-1, 2-3, 4-5, 6-7. */
void imp_decode_q2_k(const void *src, float *dst, uint64_t n)
{
    const uint8_t *b = src;
    for (uint64_t i = 0; i < n; i += 256, b += 84, dst += 256) {
        float d = load_f16(b + 80), dmin = load_f16(b + 82);
        for (int j = 0; j < 256; j++) {
            uint8_t s = b[j >> 4];
            int q = b[16 + (j >> 7) * 32 + (j & 31)] >> ((j >> 5 & 3) * 2) & 3;
            dst[j] = d * (float)(s & 15) * (float)q - dmin * (float)(s >> 4);
        }
    }
}

/* 32 bytes third bits | 64 bytes 2-bit q (order as q2_k) | 12 bytes 6-bit scales | d f16.
 * Third bit of element j: bit j/32 of byte j%32; the value is q - 4 where it is clear.
 * Scale s: low 4 bits in byte s%8 (low nibble for s < 8), upper 2 bits in byte 8 + s%4 at bits 2*(s/4); minus 32. */
void imp_decode_q3_k(const void *src, float *dst, uint64_t n)
{
    const uint8_t *b = src;
    for (uint64_t i = 0; i < n; i += 256, b += 110, dst += 256) {
        const uint8_t *sc = b + 96;
        float d = load_f16(b + 108), scale[16];
        for (int s = 0; s < 16; s++) {
            int low = s < 8 ? sc[s] & 15 : sc[s - 8] >> 4;
            int high = sc[8 + (s & 3)] >> (2 * (s >> 2)) & 3;
            scale[s] = d * (float)((low | high << 4) - 32);
        }
        for (int j = 0; j < 256; j++) {
            int q = b[32 + (j >> 7) * 32 + (j & 31)] >> ((j >> 5 & 3) * 2) & 3;
            int third = b[j & 31] >> (j >> 5) & 1;
            dst[j] = scale[j >> 4] * (float)(q - (third ? 0 : 4));
        }
    }
}

/* The 6-bit scale and minimum number s (0..7) of q4_k and q5_k from their 12 bytes: for s < 4 the low 6 bits of
 * bytes s and s + 4; for s >= 4 a nibble of byte s + 4 and the top 2 bits of bytes s - 4 and s. */
static void k_scale_min(const uint8_t *p, int s, int *scale, int *min)
{
    if (s < 4) {
        *scale = p[s] & 63;
        *min = p[s + 4] & 63;
    } else {
        *scale = (p[s + 4] & 15) | (p[s - 4] >> 6) << 4;
        *min = (p[s + 4] >> 4) | (p[s] >> 6) << 4;
    }
}

/* d f16 | dmin f16 | 12 bytes scales and minima | 128 bytes: each 32 bytes are 64 elements in lo-hi nibbles */
void imp_decode_q4_k(const void *src, float *dst, uint64_t n)
{
    const uint8_t *b = src;
    for (uint64_t i = 0; i < n; i += 256, b += 144, dst += 256) {
        float d = load_f16(b), dmin = load_f16(b + 2);
        for (int s = 0; s < 8; s++) {
            int scale, min;
            k_scale_min(b + 4, s, &scale, &min);
            float ds = d * (float)scale, dm = dmin * (float)min;
            const uint8_t *q = b + 16 + (s >> 1) * 32;
            for (int j = 0; j < 32; j++) dst[s * 32 + j] = ds * (float)(q[j] >> ((s & 1) * 4) & 15) - dm;
        }
    }
}

/* d f16 | dmin f16 | 12 bytes scales and minima | 32 bytes fifth bits (run s: bit s of byte j) | 128 bytes as q4_k */
void imp_decode_q5_k(const void *src, float *dst, uint64_t n)
{
    const uint8_t *b = src;
    for (uint64_t i = 0; i < n; i += 256, b += 176, dst += 256) {
        float d = load_f16(b), dmin = load_f16(b + 2);
        for (int s = 0; s < 8; s++) {
            int scale, min;
            k_scale_min(b + 4, s, &scale, &min);
            float ds = d * (float)scale, dm = dmin * (float)min;
            const uint8_t *high = b + 16, *q = b + 48 + (s >> 1) * 32;
            for (int j = 0; j < 32; j++) {
                int v = (q[j] >> ((s & 1) * 4) & 15) | (high[j] >> s & 1) << 4;
                dst[s * 32 + j] = ds * (float)v - dm;
            }
        }
    }
}

/* 128 bytes low nibbles | 64 bytes upper 2 bits | 16 i8 scales | d f16. Each half of 128 elements has 64 + 32 bytes;
 * its four runs of 32: nibbles lo of bytes 0-31, lo of 32-63, hi of 0-31, hi of 32-63; upper bits 0-1, 2-3, 4-5, 6-7. */
void imp_decode_q6_k(const void *src, float *dst, uint64_t n)
{
    const uint8_t *b = src;
    for (uint64_t i = 0; i < n; i += 256, b += 210, dst += 256) {
        float d = load_f16(b + 208);
        for (int j = 0; j < 256; j++) {
            int half = j >> 7, run = j >> 5 & 3, e = j & 31;
            int low = b[half * 64 + (run & 1) * 32 + e] >> ((run >> 1) * 4) & 15;
            int high = b[128 + half * 32 + e] >> (run * 2) & 3;
            float ds = d * (float)(int8_t)b[192 + (j >> 4)];
            dst[j] = ds * (float)((low | high << 4) - 32);
        }
    }
}

/* d f16 | u16: upper 2 bits of 8 scales | 4 bytes: lower nibbles of 8 scales | 8 runs of 16 bytes lo-hi nibbles,
 * indices into iq4_value; scale - 32 */
void imp_decode_iq4_xs(const void *src, float *dst, uint64_t n)
{
    const uint8_t *b = src;
    for (uint64_t i = 0; i < n; i += 256, b += 136, dst += 256) {
        float d = load_f16(b);
        uint16_t high = load_u16(b + 2);
        for (int s = 0; s < 8; s++) {
            int scale = (b[4 + (s >> 1)] >> ((s & 1) * 4) & 15) | (high >> (2 * s) & 3) << 4;
            float ds = d * (float)(scale - 32);
            const uint8_t *q = b + 8 + s * 16;
            for (int j = 0; j < 16; j++) {
                dst[s * 32 + j] = ds * (float)iq4_value[q[j] & 15];
                dst[s * 32 + j + 16] = ds * (float)iq4_value[q[j] >> 4];
            }
        }
    }
}

/* ---- MLX affine ------------------------------------------------------------------------------- */

static float load_scale(const uint8_t *p, imp_dtype t, uint64_t i)
{
    float f;
    if (t == IMP_F16) return load_f16(p + 2 * i);
    if (t == IMP_BF16) return imp_bf16_to_f32(load_u16(p + 2 * i));
    memcpy(&f, p + 4 * i, 4);
    return f;
}

void imp_decode_affine(const void *src, uint32_t bits, uint32_t group, const void *scale, const void *bias,
                       imp_dtype st, float *dst, uint64_t n)
{
    const uint8_t *p = src;
    uint32_t mask = (1u << bits) - 1, word = 0, n_bit = 0; /* word: n_bit bits not yet used */
    for (uint64_t g = 0; g < n / group; g++) {
        float d = load_scale(scale, st, g), m = load_scale(bias, st, g);
        for (uint32_t j = 0; j < group; j++) {
            while (n_bit < bits) {
                word |= (uint32_t)*p++ << n_bit;
                n_bit += 8;
            }
            *dst++ = d * (float)(word & mask) + m;
            word >>= bits;
            n_bit -= bits;
        }
    }
}
