/* sched/prefix.c - the prefix cache: which KV blocks hold which beginnings of sequences.
 *
 * Place:   sched/step.c asks when it admits a request and tells what steps have completed.
 * Idea:    a tree over block numbers. A whole block is found by a hash chained from the block before it, keyed at random
 *          so that no client can make collisions, and its tokens are compared all the same. Sequences' last, partly
 *          filled blocks hang in the tree too; what they share with a new prompt is copied.
 *          A scope's beginnings are found by its own requests only: how fast an answer comes tells nobody what others
 *          asked.
 *          Evicted is the leaf of least worth: worth is the seconds that computing it again takes, plus the level that
 *          eviction had reached when it was used last (so that what is old loses to what is new).
 * Always:  a node's parent is in the index; the index holds each of its blocks once; a sequence holds all blocks before
 *          its own in the chain, so only leaves that nobody holds can go.
 * Threads: scheduler thread only.
 * Source:  Kwon et al. 2023, Zheng et al. 2024 (RadixAttention); eviction: GreedyDual (Young 1994; Cao and Irani 1997). */
#include "sched/prefix.h"

static uint32_t table_size(uint32_t n_block)
{
    uint32_t n = 16;
    while (n < 2 * n_block) n *= 2;
    return n;
}

uint64_t imp_prefix_bytes(uint32_t n_block)
{
    return (uint64_t)n_block * sizeof(imp_prefix_node) + (uint64_t)table_size(n_block) * sizeof(uint32_t);
}

imp_status imp_prefix_init(imp_prefix *x, imp_kv_pool *pool)
{
    *x = (imp_prefix){.pool = pool, .root = IMP_PREFIX_NONE};
    uint32_t n = table_size(pool->n_block);
    x->mask = n - 1;
    x->node = imp_sys_calloc(pool->n_block, sizeof *x->node);
    x->slot = imp_sys_malloc(n * sizeof *x->slot);
    imp_status s = x->node == NULL || x->slot == NULL ? IMP_NOMEM : imp_sys_random(x->key, sizeof x->key);
    if (s != IMP_OK) {
        imp_prefix_deinit(x);
        return s;
    }
    for (uint32_t i = 0; i < n; i++) x->slot[i] = IMP_PREFIX_NONE;
    return IMP_OK;
}

void imp_prefix_deinit(imp_prefix *x)
{
    imp_sys_free(x->node);
    imp_sys_free(x->slot);
    *x = (imp_prefix){0};
}

/* ---- the hash table ---------------------------------------------------------------------------------- */

void imp_prefix_chain(const imp_prefix *x, uint64_t scope, const uint64_t before[2], const int32_t *token,
                      uint64_t hash[2])
{
    struct {
        uint64_t before[2];
        int32_t token[IMP_KV_BLOCK];
    } in = {{scope}, {0}};
    if (before != NULL) memcpy(in.before, before, sizeof in.before);
    memcpy(in.token, token, sizeof in.token);
    imp_siphash(x->key, &in, sizeof in, hash);
}

static void chain(const imp_prefix *x, uint64_t scope, uint32_t parent, const int32_t *token,
                  uint64_t hash[2])
{
    imp_prefix_chain(x, scope, parent != IMP_PREFIX_NONE ? x->node[parent].hash : NULL, token, hash);
}

static uint32_t find(const imp_prefix *x, uint64_t scope, uint32_t parent, const int32_t *token,
                     const uint64_t hash[2])
{
    for (uint32_t i = (uint32_t)hash[0] & x->mask; x->slot[i] != IMP_PREFIX_NONE; i = (i + 1) & x->mask) {
        const imp_prefix_node *n = &x->node[x->slot[i]];
        if (n->hash[0] == hash[0] && n->hash[1] == hash[1] && n->parent == parent && n->scope == scope &&
            memcmp(n->token, token, sizeof n->token) == 0)
            return x->slot[i];
    }
    return IMP_PREFIX_NONE;
}

static void put(imp_prefix *x, uint32_t block)
{
    uint32_t i = (uint32_t)x->node[block].hash[0] & x->mask;
    while (x->slot[i] != IMP_PREFIX_NONE) i = (i + 1) & x->mask;
    x->slot[i] = block;
}

/* Linear probing: those behind the gap move up when they are nearer to their place. */
static void take_out(imp_prefix *x, uint32_t block)
{
    uint32_t i = (uint32_t)x->node[block].hash[0] & x->mask;
    while (x->slot[i] != block) i = (i + 1) & x->mask;
    for (uint32_t k = (i + 1) & x->mask; x->slot[k] != IMP_PREFIX_NONE; k = (k + 1) & x->mask) {
        uint32_t home = (uint32_t)x->node[x->slot[k]].hash[0] & x->mask;
        if (((k - home) & x->mask) < ((k - i) & x->mask)) continue;
        x->slot[i] = x->slot[k];
        i = k;
    }
    x->slot[i] = IMP_PREFIX_NONE;
}

/* ---- the tree ---------------------------------------------------------------------------------------- */

static uint32_t *children(imp_prefix *x, uint32_t parent)
{
    return parent == IMP_PREFIX_NONE ? &x->root : &x->node[parent].child;
}

static void touch(imp_prefix *x, imp_prefix_node *n)
{
    n->worth = x->level + n->cost;
    n->used = ++x->clock;
}

static void drop(imp_prefix *x, uint32_t block)
{
    imp_prefix_node *n = &x->node[block];
    if (n->n_tok == IMP_KV_BLOCK) take_out(x, block);
    if (n->prev != IMP_PREFIX_NONE)
        x->node[n->prev].next = n->next;
    else
        *children(x, n->parent) = n->next;
    if (n->next != IMP_PREFIX_NONE) x->node[n->next].prev = n->prev;
    n->n_tok = 0;
    x->n_node--;
    imp_kv_pool_unshare(x->pool, block);
}

static uint32_t common(const int32_t *a, const int32_t *b, uint32_t n)
{
    uint32_t i = 0;
    while (i < n && a[i] == b[i]) i++;
    return i;
}

imp_prefix_hit imp_prefix_match(imp_prefix *x, uint64_t scope, const int32_t *ids, uint32_t n,
                                uint32_t *table)
{
    imp_prefix_hit h = {.tail = IMP_PREFIX_NONE};
    uint32_t at = IMP_PREFIX_NONE;
    while ((h.n_block + 1) * IMP_KV_BLOCK <= n) {
        uint64_t hash[2];
        chain(x, scope, at, ids + h.n_block * IMP_KV_BLOCK, hash);
        uint32_t b = find(x, scope, at, ids + h.n_block * IMP_KV_BLOCK, hash);
        if (b == IMP_PREFIX_NONE) break;
        touch(x, &x->node[b]);
        imp_kv_pool_ref(x->pool, b);
        table[h.n_block++] = at = b;
    }
    const int32_t *rest = ids + h.n_block * IMP_KV_BLOCK;
    uint32_t n_rest = IMP_MIN(n - h.n_block * IMP_KV_BLOCK, (uint32_t)IMP_KV_BLOCK);
    h.n_tail = IMP_PREFIX_TAIL_MIN - 1;
    for (uint32_t b = *children(x, at); b != IMP_PREFIX_NONE; b = x->node[b].next) {
        uint32_t same = common(x->node[b].token, rest, IMP_MIN(n_rest, x->node[b].n_tok));
        if (x->node[b].scope != scope || same <= h.n_tail) continue;
        h.n_tail = same;
        h.tail = b;
    }
    if (h.tail == IMP_PREFIX_NONE) {
        h.n_tail = 0;
    } else {
        touch(x, &x->node[h.tail]);
        imp_kv_pool_ref(x->pool, h.tail);
    }
    return h;
}

/* True when the tree holds as much already; sequences' ends that this prolongs go. */
static bool end_known(imp_prefix *x, uint64_t scope, uint32_t parent, const int32_t *token, uint32_t n_tok)
{
    for (uint32_t b = *children(x, parent), next; b != IMP_PREFIX_NONE; b = next) {
        const imp_prefix_node *n = &x->node[b];
        next = n->next;
        if (n->scope != scope) continue;
        uint32_t same = common(n->token, token, IMP_MIN(n_tok, n->n_tok));
        if (same == n_tok) return true;
        if (same == n->n_tok && x->pool->ref[b] == 1) drop(x, b);
    }
    return false;
}

void imp_prefix_add(imp_prefix *x, uint64_t scope, uint32_t *table, uint32_t i, const int32_t *token,
                    uint32_t n_tok, double cost)
{
    uint32_t parent = i == 0 ? IMP_PREFIX_NONE : table[i - 1], block = table[i];
    imp_prefix_node *n = &x->node[block];
    if (n_tok == 0 || n->n_tok > 0) return; /* there already: it came from here */
    uint64_t hash[2] = {0, 0};
    if (n_tok == IMP_KV_BLOCK) {
        chain(x, scope, parent, token, hash);
        uint32_t same = find(x, scope, parent, token, hash);
        if (same != IMP_PREFIX_NONE) {
            touch(x, &x->node[same]);
            imp_kv_pool_ref(x->pool, same);
            imp_kv_pool_unref(x->pool, block);
            table[i] = same;
            return;
        }
    }
    if (end_known(x, scope, parent, token, n_tok)) return;
    uint32_t *first = children(x, parent);
    *n = (imp_prefix_node){.hash = {hash[0], hash[1]},
                           .parent = parent,
                           .child = IMP_PREFIX_NONE,
                           .prev = IMP_PREFIX_NONE,
                           .next = *first,
                           .depth = i,
                           .n_tok = n_tok,
                           .scope = scope,
                           .cost = cost};
    memcpy(n->token, token, n_tok * sizeof *token);
    if (*first != IMP_PREFIX_NONE) x->node[*first].prev = block;
    *first = block;
    if (n_tok == IMP_KV_BLOCK) put(x, block);
    touch(x, n);
    x->n_node++;
    imp_kv_pool_share(x->pool, block);
}

bool imp_prefix_evict(imp_prefix *x)
{
    uint32_t least = IMP_PREFIX_NONE;
    for (uint32_t b = 0; b < x->pool->n_block && x->pool->n_idle > 0; b++) {
        const imp_prefix_node *n = &x->node[b];
        if (n->n_tok == 0 || n->child != IMP_PREFIX_NONE || x->pool->ref[b] != 1) continue;
        const imp_prefix_node *l = &x->node[least == IMP_PREFIX_NONE ? b : least];
        if (least == IMP_PREFIX_NONE || n->worth < l->worth || (n->worth == l->worth && n->used < l->used))
            least = b;
    }
    if (least == IMP_PREFIX_NONE) return false;
    x->level = IMP_MAX(x->level, x->node[least].worth);
    if (x->leaving != NULL && x->node[least].n_tok == IMP_KV_BLOCK) x->leaving(x->user, least);
    drop(x, least);
    return true;
}
