/* kern/body/quant_body.h - rows of f32 to blocks of int8 (imp_q8_block), for any width of vector.
 *
 * Place:   included after one of the simd_*.h headers, which have q8_max_bits and q8_round. */
#ifndef IMP_KERN_QUANT_BODY_H
#define IMP_KERN_QUANT_BODY_H

#include <math.h>

static void quant_q8(imp_q8_block *y, const float *x, size_t k)
{
    for (size_t b = 0; b < k / 32; b++, x += 32) {
        uint32_t bits = q8_max_bits(x);
        float max;
        memcpy(&max, &bits, 4);
        if (bits >= 0x7f800000u || max < 0x1p-100f) { /* infinity or NaN; too small to divide by */
            memset(&y[b], 0, sizeof y[b]);
            if (bits >= 0x7f800000u) y[b].d = NAN;
            continue;
        }
        y[b].d = max / 127.0f;
        y[b].sum = q8_round(y[b].q, x, 127.0f / max);
    }
}

#endif
