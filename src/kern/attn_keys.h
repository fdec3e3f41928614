/* kern/attn_keys.h - which keys a query row sees, and where a tile of keys lies. */
#ifndef IMP_KERN_ATTN_KEYS_H
#define IMP_KERN_ATTN_KEYS_H

#include "kern/variant.h"

/* Keys *lo .. *hi - 1 for query row r; empty when *lo >= *hi. u64 throughout: positions near 2^32 must not wrap. */
IMP_INLINE void attn_range(const imp_attn_args *a, uint32_t r, uint64_t *lo, uint64_t *hi)
{
    uint64_t pos = (uint64_t)a->pos0 + r, back = a->window;
    if (a->causal) {
        *lo = back != 0 && pos + 1 > back ? pos + 1 - back : 0;
        *hi = pos + 1;
    } else {
        *lo = back != 0 && pos > back ? pos - back : 0;
        *hi = back != 0 ? pos + back + 1 : UINT64_MAX;
    }
    if (*hi > a->n_key) *hi = a->n_key;
}

/* Byte offset of the tile of keys that starts at key `first` (a multiple of IMP_ATTN_TILE), from a->k or a->v. */
IMP_INLINE size_t attn_tile_offset(const imp_attn_args *a, uint64_t first)
{
    if (a->row_stride != 0) return (size_t)(first * a->row_stride);
    return (size_t)(a->block[first / IMP_ATTN_TILE] * (uint64_t)a->block_stride);
}

/* Floats from one row's and head's part to the next: sums, maximum, sum of weights, padding. */
IMP_INLINE size_t attn_part_stride(uint32_t head_dim)
{
    return (head_dim + 2 + 15) / 16 * 16;
}

#endif
