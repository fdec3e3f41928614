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

/* Byte offset of key j's row from a->k or a->v. */
IMP_INLINE size_t attn_key_offset(const imp_attn_args *a, uint64_t j)
{
    uint64_t b = j / a->block_tok;
    if (a->block) b = a->block[b];
    return (size_t)(b * a->block_stride + j % a->block_tok * a->row_stride);
}

#endif
