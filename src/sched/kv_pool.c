/* sched/kv_pool.c - paged KV memory: which blocks are free.
 *
 * Place:   called by sched/step.c; the memory itself is the device's (dev/dev.h), only numbers live here.
 * Idea:    a stack of free block numbers; a sequence's table grows a block at a time as its tokens come.
 * Always:  every number is either on the stack or in exactly one table.
 * Threads: scheduler thread only.
 * Source:  Kwon et al. 2023 (PagedAttention), section 4. */
#include "sched/kv_pool.h"

imp_status imp_kv_pool_init(imp_kv_pool *p, uint32_t n_block)
{
    *p = (imp_kv_pool){0};
    p->free_block = imp_sys_calloc(n_block, sizeof *p->free_block);
    if (p->free_block == NULL) return IMP_NOMEM;
    p->n_block = p->n_free = n_block;
    for (uint32_t i = 0; i < n_block; i++) p->free_block[i] = n_block - 1 - i;
    return IMP_OK;
}

void imp_kv_pool_deinit(imp_kv_pool *p)
{
    imp_sys_free(p->free_block);
    *p = (imp_kv_pool){0};
}

bool imp_kv_pool_grow(imp_kv_pool *p, uint32_t *table, uint32_t *n_have, uint32_t n_want)
{
    if (n_want <= *n_have) return true;
    if (n_want - *n_have > p->n_free) return false;
    while (*n_have < n_want) table[(*n_have)++] = p->free_block[--p->n_free];
    return true;
}

void imp_kv_pool_give(imp_kv_pool *p, const uint32_t *table, uint32_t *n_have)
{
    while (*n_have > 0) p->free_block[p->n_free++] = table[--*n_have];
}
