/* kern/x86/amx.h - the tile unit: eight registers of up to 16 rows by 64 bytes, and products of whole tiles.
 *
 * Idea:    c += a . b, where c is [rows of a][16] int32 or f32 and b holds its k in groups: row g of b is, for each of 16
 *          columns, the 4 bytes (or 2 bf16) of k that stand in group g of a's rows. Plain assembly, because gcc 12's tile
 *          load does not say that it reads memory.
 * Always:  a thread configures the shapes it wants before, and releases the tiles after, so that nothing of them is saved
 *          when it waits. An int8 sum is exact; a bf16 product reads denormals as zero and gives none.
 * Source:  Intel SDM vol. 1 chapter 18, vol. 2 (LDTILECFG, TDPBSSD, TDPBF16PS). */
#ifndef IMP_KERN_AMX_H
#define IMP_KERN_AMX_H

#include "kern/variant.h"

struct amx_shape {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
_Static_assert(sizeof(struct amx_shape) == 64, "as LDTILECFG reads it");

IMP_INLINE void amx_configure(const struct amx_shape *s)
{
    __asm__ volatile("ldtilecfg %0" : : "m"(*s));
}
IMP_INLINE void amx_release(void)
{
    __asm__ volatile("tilerelease");
}

/* t, c, a, b: numbers 0..7 as they are written. */
#define AMX_ZERO(t) __asm__ volatile("tilezero %%tmm" #t ::)
#define AMX_LOAD(t, p, stride)                                                                               \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(p), "r"((size_t)(stride)) : "memory")
#define AMX_STORE(t, p, stride)                                                                              \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"(p), "r"((size_t)(stride)) : "memory")
#define AMX_DOT_I8(c, a, b)   __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)
#define AMX_DOT_BF16(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

#endif
