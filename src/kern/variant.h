/* kern/variant.h - what variant files share: the declarations the lists expand to, and small helpers.
 *
 * Place:   included by the files of kern/ only. */
#ifndef IMP_KERN_VARIANT_H
#define IMP_KERN_VARIANT_H

#include "kern/kern.h"

uint64_t imp_cpu_detect(void); /* one file an architecture */

#define X(wtype, isa, bits) extern const imp_matmul imp_matmul_##wtype##_##isa;
#include "kern/matmul_list.inc"
#undef X
#define X(isa, bits) extern const imp_vec imp_vec_##isa;
#include "kern/vec_list.inc"
#undef X
#define X(isa, bits) extern const imp_attn imp_attn_##isa;
#include "kern/attn_list.inc"
#undef X
#define X(isa, bits) extern const imp_peak imp_peak_##isa;
#include "kern/peak_list.inc"
#undef X

#define IMP_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define IMP_UNROLL _Pragma("unroll")
#else
#define IMP_UNROLL _Pragma("GCC unroll 16")
#endif

/* File bytes have no alignment. */
IMP_INLINE uint16_t load_u16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
}
IMP_INLINE uint32_t load_u32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

/* The 8 scales and 8 minima (6 bits each) of a Q4_K block from its 12 packed bytes. Bytes 0-3 and 4-7 hold the low
 * six bits of scales 0-3 and minima 0-3, and in their top two bits the top bits of 4-7; bytes 8-11 hold the low four. */
IMP_INLINE void q4_k_scales(const uint8_t *p, uint32_t sc[2], uint32_t mn[2])
{
    uint32_t a = load_u32(p), b = load_u32(p + 4), c = load_u32(p + 8);
    sc[0] = a & 0x3f3f3f3fu;
    mn[0] = b & 0x3f3f3f3fu;
    sc[1] = (c & 0x0f0f0f0fu) | ((a >> 2) & 0x30303030u);
    mn[1] = ((c >> 4) & 0x0f0f0f0fu) | ((b >> 2) & 0x30303030u);
}

/* Rows of w to work on before the next rows of x: as many as stay in a core's second-level cache. */
IMP_INLINE uint32_t n_chunk(uint64_t row_bytes)
{
    uint64_t n = (256u << 10) / (row_bytes + 1);
    return (uint32_t)(n < 16 ? 16 : n > 256 ? 256 : n & ~7ull);
}

#endif
