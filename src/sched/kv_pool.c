/* sched/kv_pool.c - paged KV memory: which blocks are free, and how many hold each of the others.
 *
 * Place:   called by sched/step.c and prefix.c; the memory itself is the device's (dev/dev.h), only numbers live here.
 * Idea:    a stack of free block numbers and a count for each block; a sequence's table grows a block at a time as its
 *          tokens come, and sequences that begin alike hold the same blocks.
 * Always:  a block is on the stack exactly when its count is 0; a block with a count above 1 is never written.
 * Threads: scheduler thread only.
 * Source:  Kwon et al. 2023 (PagedAttention), section 4. */
#include "sched/kv_pool.h"

imp_status imp_kv_pool_init(imp_kv_pool *p, uint32_t n_block)
{
    *p = (imp_kv_pool){0};
    p->free_block = imp_sys_calloc(n_block, sizeof *p->free_block);
    p->ref = imp_sys_calloc(n_block, sizeof *p->ref);
    p->shared = imp_sys_calloc(n_block, sizeof *p->shared);
    if (p->free_block == NULL || p->ref == NULL || p->shared == NULL) {
        imp_kv_pool_deinit(p);
        return IMP_NOMEM;
    }
    p->n_block = p->n_free = n_block;
    for (uint32_t i = 0; i < n_block; i++) p->free_block[i] = n_block - 1 - i;
    return IMP_OK;
}

void imp_kv_pool_deinit(imp_kv_pool *p)
{
    imp_sys_free(p->free_block);
    imp_sys_free(p->ref);
    imp_sys_free(p->shared);
    *p = (imp_kv_pool){0};
}

bool imp_kv_pool_grow(imp_kv_pool *p, uint32_t *table, uint32_t *n_have, uint32_t n_want)
{
    if (n_want <= *n_have) return true;
    if (n_want - *n_have > p->n_free) return false;
    while (*n_have < n_want) {
        uint32_t b = p->free_block[--p->n_free];
        p->ref[b] = 1;
        table[(*n_have)++] = b;
    }
    return true;
}

void imp_kv_pool_give(imp_kv_pool *p, const uint32_t *table, uint32_t *n_have)
{
    while (*n_have > 0) imp_kv_pool_unref(p, table[--*n_have]);
}

void imp_kv_pool_ref(imp_kv_pool *p, uint32_t block)
{
    if (p->shared[block] && p->ref[block] == 1) p->n_idle--;
    p->ref[block]++;
}

void imp_kv_pool_unref(imp_kv_pool *p, uint32_t block)
{
    if (--p->ref[block] == 0)
        p->free_block[p->n_free++] = block;
    else if (p->shared[block] && p->ref[block] == 1)
        p->n_idle++;
}

void imp_kv_pool_share(imp_kv_pool *p, uint32_t block)
{
    p->ref[block]++;
    p->shared[block] = true;
}

void imp_kv_pool_unshare(imp_kv_pool *p, uint32_t block)
{
    p->n_idle--;
    p->shared[block] = false;
    imp_kv_pool_unref(p, block);
}
