/* kern/kv.h - tiles of the KV cache: sizes, writing a row, rows in and out. The layouts are in kv.c.
 *
 * A cache type is f32, f16, q8_0 (keys and values) or q4_0 (rotated 4-bit keys, 8-bit values). */
#ifndef IMP_KERN_KV_H
#define IMP_KERN_KV_H

#include "kern/kern.h"

typedef enum imp_kv_part { IMP_KV_KEY, IMP_KV_VALUE } imp_kv_part;

/* "f32", "f16", "q8_0" or "q4"; false: none of them. */
bool imp_kv_type_from_name(const char *name, imp_dtype *kv);
/* The type of a cache's keys or values. */
imp_dtype imp_kv_part_type(imp_dtype kv, imp_kv_part part);
/* kv is a type of cache, and heads of head_dim can be kept in it. */
bool imp_kv_fits(imp_dtype kv, uint32_t head_dim);
/* Of IMP_ATTN_TILE positions of one KV head: a multiple of 64. */
uint64_t imp_kv_tile_bytes(imp_dtype kv, imp_kv_part part, uint32_t head_dim);
/* x: [head_dim], the key or value of position `slot` of the tile. */
void imp_kv_put(const imp_vec *vec, imp_dtype kv, imp_kv_part part, void *tile, uint32_t head_dim,
                uint32_t slot, const float *x);
/* Dimension d of that position, as it was kept. */
float imp_kv_element(imp_dtype kv, imp_kv_part part, uint32_t head_dim, const void *tile, uint32_t slot,
                     uint32_t d);
/* What 4-bit keys went through, for a query: y may be x. */
void imp_kv_rotate(float *y, const float *x, uint32_t head_dim);
/* Between a tile and [IMP_ATTN_TILE] rows of head_dim elements in the blocks of the part's type (4-bit keys rotated). */
void imp_kv_to_rows(imp_dtype kv, imp_kv_part part, uint32_t head_dim, const void *tile, void *rows);
void imp_kv_from_rows(imp_dtype kv, imp_kv_part part, uint32_t head_dim, void *tile, const void *rows);

#endif
