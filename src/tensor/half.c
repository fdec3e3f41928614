/* tensor/half.c - f16 and bf16 conversions in integer arithmetic.
 *
 * Place:   used by the decoders and by everything that stores half precision.
 * Idea:    no CPU feature is needed, the results are those of IEEE 754 round-to-nearest-even on every machine.
 * Threads: pure functions.
 * Source:  IEEE 754-2008, binary16; bfloat16 is the upper half of binary32. */
#include "tensor/tensor.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "file layouts are read in place: little-endian only");

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

float imp_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t body = (uint32_t)(h & 0x7fff) << 13;
    if (body >= 0x0f800000) return float_of(sign | 0x7f800000 | (body & 0x007fe000)); /* infinity or NaN */
    if (body >= 0x00800000) return float_of(sign | (body + 0x38000000)); /* normal: bias 15 -> 127 */
    /* Subnormal or zero: mantissa * 2^-24, exact in f32. Plain multiplication would lose the sign of zero's bits. */
    return float_of(sign | bits_of((float)(h & 0x7fff) * 0x1p-24f));
}

uint16_t imp_f32_to_f16(float f)
{
    uint32_t u = bits_of(f), a = u & 0x7fffffff;
    uint16_t sign = (uint16_t)((u >> 16) & 0x8000);
    if (a > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | ((a >> 13) & 0x03ff)); /* NaN stays NaN, made quiet */
    if (a >= 0x477ff000) return sign | 0x7c00;                   /* >= 65520 rounds to infinity */
    if (a >= 0x38800000) {
        uint32_t odd = (a >> 13) & 1;
        return (uint16_t)(sign | ((a - 0x38000000 + 0x0fff + odd) >> 13));
    }
    if (a <= 0x33000000) return sign; /* <= 2^-25: half of the smallest subnormal ties to even zero */
    /* Subnormal: shift the 24-bit mantissa so that one unit is 2^-24. */
    uint32_t shift = 126 - (a >> 23), mant = (a & 0x007fffff) | 0x00800000;
    uint32_t half = mant >> shift, rest = mant & ((1u << shift) - 1), tie = 1u << (shift - 1);
    if (rest > tie || (rest == tie && (half & 1))) half++;
    return (uint16_t)(sign | half);
}

uint16_t imp_f32_to_bf16(float f)
{
    uint32_t u = bits_of(f);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)((u >> 16) | 0x0040);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
