/* sched/kv_pool.h - paged KV memory: which blocks are free, and how many hold each of the others. */
#ifndef IMP_KV_POOL_H
#define IMP_KV_POOL_H

#include "base/base.h"

typedef struct imp_kv_pool { /* init/deinit; scheduler thread only */
    uint32_t *free_block;    /* [n_block] stack of free numbers; owned */
    uint32_t *ref;           /* [n_block] tables that hold the block, and the prefix index; owned */
    bool *shared;            /* [n_block] the index holds it too; owned */
    uint32_t n_free, n_block;
    uint32_t n_idle; /* that only the index holds */
} imp_kv_pool;

IMP_MUST_USE imp_status imp_kv_pool_init(imp_kv_pool *p, uint32_t n_block);
void imp_kv_pool_deinit(imp_kv_pool *p);
/* Lengthen table[0..*n_have-1] to n_want blocks. All or nothing: false when there are not enough. */
bool imp_kv_pool_grow(imp_kv_pool *p, uint32_t *table, uint32_t *n_have, uint32_t n_want);
/* All of a table, each block free when nobody else holds it; *n_have = 0. */
void imp_kv_pool_give(imp_kv_pool *p, const uint32_t *table, uint32_t *n_have);
void imp_kv_pool_ref(imp_kv_pool *p, uint32_t block);
void imp_kv_pool_unref(imp_kv_pool *p, uint32_t block);
/* The index takes a block that somebody holds; and gives back one that nobody else holds. */
void imp_kv_pool_share(imp_kv_pool *p, uint32_t block);
void imp_kv_pool_unshare(imp_kv_pool *p, uint32_t block);

#endif
