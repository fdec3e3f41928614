/* dev/group.c - members of a divided graph meet and add up; see group.h. */
#include "dev/group.h"
#include "base/thread.h"
#include "dev/check.h"

#include <stdatomic.h>

enum { SPIN = 2000 }; /* looks before sleeping */

struct imp_group {
    uint32_t n;
    atomic_uint here, turn; /* members that have come; how often all have */
    atomic_bool gave_up;
    uint32_t epoch;
    imp_mutex *lock;
    imp_cond *moved;
    volatile uint32_t *flag[IMP_SHARD_MAX];
    uint32_t sums[IMP_SHARD_MAX]; /* sums that a member has begun */
    float *slot;                  /* [2][n][cap] */
    uint64_t cap;
};

imp_status imp_group_new(uint32_t n_member, imp_group **out)
{
    *out = NULL;
    imp_group *g = imp_sys_calloc(1, sizeof *g);
    if (g == NULL) return IMP_NOMEM;
    g->n = n_member;
    if (imp_mutex_new(&g->lock) != IMP_OK || imp_cond_new(&g->moved) != IMP_OK) {
        imp_group_free(g);
        return IMP_NOMEM;
    }
    *out = g;
    return IMP_OK;
}

void imp_group_free(imp_group *g)
{
    if (g == NULL) return;
    if (g->moved != NULL) imp_cond_free(g->moved);
    if (g->lock != NULL) imp_mutex_free(g->lock);
    imp_sys_free(g->slot);
    imp_sys_free(g);
}

uint32_t imp_group_n(const imp_group *g)
{
    return g->n;
}

imp_status imp_group_reserve(imp_group *g, const imp_graph *graph, const imp_limits *lim, imp_error *err)
{
    uint64_t most = 0, bytes;
    for (imp_val v = 1; v <= imp_graph_n(graph); v++) {
        const imp_node *n = imp_graph_node(graph, v);
        if (n->op == IMP_OP_ALLREDUCE) most = IMP_MAX(most, imp_dev_max_rows(lim, n->rows) * n->width);
    }
    if (most <= g->cap) return IMP_OK;
    if (!imp_mul_u64(most, 2 * sizeof(float) * g->n, &bytes))
        return imp_fail(err, IMP_TOO_LARGE, "the sizes of the graph overflow; lower the limits");
    float *grown = imp_sys_realloc(g->slot, bytes);
    if (grown == NULL) return imp_fail(err, IMP_NOMEM, "out of memory for the sums of a divided model");
    g->slot = grown;
    g->cap = most;
    return IMP_OK;
}

bool imp_group_meet(imp_group *g)
{
    uint32_t turn = atomic_load(&g->turn);
    if (atomic_fetch_add(&g->here, 1) + 1 == g->n) {
        atomic_store(&g->here, 0);
        imp_mutex_lock(g->lock);
        atomic_fetch_add(&g->turn, 1);
        imp_cond_broadcast(g->moved);
        imp_mutex_unlock(g->lock);
    }
    for (int i = 0; i < SPIN && atomic_load(&g->turn) == turn && !atomic_load(&g->gave_up); i++) continue;
    if (atomic_load(&g->turn) != turn) return !atomic_load(&g->gave_up);
    imp_mutex_lock(g->lock);
    while (atomic_load(&g->turn) == turn && !atomic_load(&g->gave_up)) imp_cond_wait(g->moved, g->lock);
    imp_mutex_unlock(g->lock);
    return !atomic_load(&g->gave_up);
}

bool imp_group_sum(imp_group *g, uint32_t rank, const float *x, float *y, uint64_t n)
{
    float *slots = g->slot + (g->sums[rank]++ & 1) * g->n * g->cap;
    memcpy(slots + rank * g->cap, x, n * sizeof *x);
    if (!imp_group_meet(g)) return false;
    memcpy(y, slots, n * sizeof *y);
    for (uint32_t m = 1; m < g->n; m++)
        for (uint64_t i = 0; i < n; i++) y[i] += slots[m * g->cap + i];
    return true;
}

void imp_group_give_up(imp_group *g)
{
    imp_mutex_lock(g->lock);
    atomic_store(&g->gave_up, true);
    for (uint32_t i = 0; i < g->n; i++)
        if (g->flag[i] != NULL) *g->flag[i] = 1;
    imp_cond_broadcast(g->moved);
    imp_mutex_unlock(g->lock);
}

bool imp_group_gave_up(const imp_group *g)
{
    return atomic_load(&g->gave_up);
}

imp_status imp_group_state(const imp_group *g, imp_error *err)
{
    return atomic_load(&g->gave_up) ? imp_fail(err, IMP_CANCELLED, "another device of this model failed")
                                    : IMP_OK;
}

void imp_group_watch(imp_group *g, uint32_t rank, volatile uint32_t *flag)
{
    g->flag[rank] = flag;
}

uint32_t imp_group_start(imp_group *g)
{
    if (atomic_load(&g->gave_up)) {
        g->epoch++;
        atomic_store(&g->here, 0);
        memset(g->sums, 0, sizeof g->sums);
        for (uint32_t i = 0; i < g->n; i++)
            if (g->flag[i] != NULL) *g->flag[i] = 0;
        atomic_store(&g->gave_up, false);
    }
    return g->epoch;
}

uint32_t imp_group_epoch(const imp_group *g)
{
    return g->epoch;
}
