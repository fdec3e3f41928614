/* graph/adapter.c - references to adapters, and what is found in them. */
#include "graph/adapter.h"

imp_adapter *imp_adapter_ref(imp_adapter *a)
{
    if (a != NULL) atomic_fetch_add(&a->n_ref, 1);
    return a;
}

void imp_adapter_unref(imp_adapter *a)
{
    if (a != NULL && atomic_fetch_sub(&a->n_ref, 1) == 1) a->free(a);
}

const imp_adapter_part *imp_adapter_at(const imp_adapter *a, const imp_graph *g, imp_val v)
{
    for (int i = 0; i < 2; i++)
        if (a->graph[i] == g) return a->part[i][v];
    return NULL;
}

bool imp_adapter_is_for(const imp_adapter *a, const imp_graph *g)
{
    return a->graph[0] == g || a->graph[1] == g;
}

uint64_t imp_adapter_ranks(const imp_adapter_use *use, size_t n_use)
{
    uint64_t n = 0;
    for (size_t i = 0; i < n_use; i++) n += use[i].adapter->rank;
    return n;
}

bool imp_adapter_same_uses(const imp_adapter_use *a, size_t n_a, const imp_adapter_use *b, size_t n_b)
{
    if (n_a != n_b) return false;
    for (size_t i = 0; i < n_a && a != b; i++)
        if (a[i].adapter != b[i].adapter || a[i].scale < b[i].scale || a[i].scale > b[i].scale) return false;
    return true;
}
