/* sched/prefix.h - the prefix cache: which KV blocks hold which beginnings of sequences. */
#ifndef IMP_PREFIX_H
#define IMP_PREFIX_H

#include "dev/dev.h"
#include "sched/kv_pool.h"

enum { IMP_PREFIX_NONE = UINT32_MAX, IMP_PREFIX_TAIL_MIN = 4 };

/* One block of the index, under its number. */
typedef struct imp_prefix_node {
    uint64_t hash[2];           /* of the whole chain up to and with this block */
    uint32_t parent;            /* block before it; NONE: a first block */
    uint32_t child, prev, next; /* its first child; neighbours among its parent's children */
    uint32_t depth;             /* blocks before it */
    bool saved;                 /* given to be written to disk */
    uint32_t n_tok;             /* 0: not in the index; below IMP_KV_BLOCK: the end of a sequence */
    double worth;               /* what is evicted first has the least */
    double cost;                /* seconds to compute it again */
    uint64_t used;
    uint64_t scope; /* whose requests may find it; the same along a chain */
    int32_t token[IMP_KV_BLOCK];
} imp_prefix_node;

typedef struct imp_prefix { /* init/deinit; scheduler thread only */
    imp_kv_pool *pool;      /* borrowed */
    imp_prefix_node *node;  /* [n_block] owned */
    uint32_t *slot;         /* [mask + 1] hash table of full blocks; owned */
    uint32_t mask;
    uint32_t root;   /* first of the first blocks */
    uint32_t n_node; /* in the index */
    double level;    /* worth of what was evicted last: what is used now is worth that much more */
    uint64_t clock;
    uint8_t key[16];                             /* random; set it to find chains of an earlier run */
    void (*leaving)(void *user, uint32_t block); /* a whole block is about to go; NULL */
    void *user;
} imp_prefix;

IMP_MUST_USE imp_status imp_prefix_init(imp_prefix *x, imp_kv_pool *pool);
void imp_prefix_deinit(imp_prefix *x);
uint64_t imp_prefix_bytes(uint32_t n_block); /* what init takes */

/* The hash of a chain that goes on with a whole block behind `before` (NULL: it begins in this scope). */
void imp_prefix_chain(const imp_prefix *x, uint64_t scope, const uint64_t before[2], const int32_t *token,
                      uint64_t hash[2]);

typedef struct imp_prefix_hit {
    uint32_t n_block; /* whole blocks, written to the table, each held once more */
    uint32_t tail;    /* a block of which n_tail tokens fit, held once more, to be copied; NONE */
    uint32_t n_tail;
} imp_prefix_hit;
/* The longest beginning of ids[0..n-1] that is known in the scope. table: room for n / IMP_KV_BLOCK entries. */
imp_prefix_hit imp_prefix_match(imp_prefix *x, uint64_t scope, const int32_t *ids, uint32_t n,
                                uint32_t *table);

/* Block i of a sequence (table[0..i-1] are in the index) holds n_tok tokens, computed. Taken into the index, or when one
 * with the same beginning is there already, that one takes its place in the table (whole blocks), the other is given
 * back. cost: seconds to compute it. */
void imp_prefix_add(imp_prefix *x, uint64_t scope, uint32_t *table, uint32_t i, const int32_t *token,
                    uint32_t n_tok, double cost);
/* Give back the block that is worth least of those that only the index holds. false: there is none. */
bool imp_prefix_evict(imp_prefix *x);

#endif
