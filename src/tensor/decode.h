/* tensor/decode.h - the decoders that dtype_list.inc names; private to src/tensor.
 *
 * All have one shape: n elements (whole blocks) at src to dst, f32. src needs no alignment; src and dst are
 * disjoint. They cannot fail: any bit pattern is a value (perhaps NaN or infinity). */
#ifndef IMP_DECODE_H
#define IMP_DECODE_H

#include "tensor/tensor.h"

/* clang-format off */
#define IMP_DECODERS(X) \
    X(f32) X(f16) X(bf16) X(f64) X(i8) X(i16) X(i32) X(i64) X(u8) X(u16) X(u32) X(u64) X(bool) \
    X(q4_0) X(q4_1) X(q5_0) X(q5_1) X(q8_0) X(q2_k) X(q3_k) X(q4_k) X(q5_k) X(q6_k) X(iq4_nl) X(iq4_xs) X(mxfp4)
/* clang-format on */
#define IMP_X(name) void imp_decode_##name(const void *src, float *dst, uint64_t n);
IMP_DECODERS(IMP_X)
#undef IMP_X

/* One row of an MLX affine tensor: n elements of `bits` bits each, packed LSB first without gaps, n % group == 0;
 * scale and bias: [n / group] of dtype st (f16, bf16 or f32). value = scale * q + bias. */
void imp_decode_affine(const void *src, uint32_t bits, uint32_t group, const void *scale, const void *bias,
                       imp_dtype st, float *dst, uint64_t n);

#endif
