/* sched/kv_index.c - which blocks a folder of saved caches holds. See kv_index.h.
 *
 * Always:  at most half of the table is taken; names are hashes already, so their bits are the place. */
#include "sched/kv_index.h"

void imp_kv_index_deinit(imp_kv_index *x)
{
    imp_sys_free(x->e);
    *x = (imp_kv_index){0};
}

static uint64_t place_of(const imp_kv_index *x, const uint64_t name[2])
{
    uint64_t i = name[0] & x->mask;
    while (x->e[i].bytes != 0 && (x->e[i].name[0] != name[0] || x->e[i].name[1] != name[1]))
        i = (i + 1) & x->mask;
    return i;
}

imp_kv_entry *imp_kv_index_find(const imp_kv_index *x, const uint64_t name[2])
{
    if (x->e == NULL) return NULL;
    imp_kv_entry *e = &x->e[place_of(x, name)];
    return e->bytes != 0 ? e : NULL;
}

static bool grow(imp_kv_index *x)
{
    imp_kv_index more = {.mask = x->e == NULL ? 63 : 2 * x->mask + 1, .n = x->n, .bytes = x->bytes};
    more.e = imp_sys_calloc(more.mask + 1, sizeof *more.e);
    if (more.e == NULL) return false;
    for (uint64_t i = 0; x->e != NULL && i <= x->mask; i++)
        if (x->e[i].bytes != 0) more.e[place_of(&more, x->e[i].name)] = x->e[i];
    imp_sys_free(x->e);
    *x = more;
    return true;
}

bool imp_kv_index_put(imp_kv_index *x, const uint64_t name[2], uint64_t bytes, int64_t used_ns)
{
    if ((x->e == NULL || 2 * x->n >= x->mask) && !grow(x)) return false;
    imp_kv_entry *e = &x->e[place_of(x, name)];
    x->n += e->bytes == 0;
    x->bytes += bytes - e->bytes;
    *e = (imp_kv_entry){.name = {name[0], name[1]}, .bytes = bytes, .used_ns = used_ns};
    return true;
}

void imp_kv_index_remove(imp_kv_index *x, const uint64_t name[2])
{
    imp_kv_entry *e = imp_kv_index_find(x, name);
    if (e == NULL) return;
    x->n--;
    x->bytes -= e->bytes;
    uint64_t gap = (uint64_t)(e - x->e);
    for (uint64_t k = (gap + 1) & x->mask; x->e[k].bytes != 0; k = (k + 1) & x->mask) {
        uint64_t home =
            x->e[k].name[0] & x->mask; /* those behind the gap move up when they are nearer to their place */
        if (((k - home) & x->mask) < ((k - gap) & x->mask)) continue;
        x->e[gap] = x->e[k];
        gap = k;
    }
    x->e[gap] = (imp_kv_entry){0};
}

const imp_kv_entry *imp_kv_index_oldest(const imp_kv_index *x)
{
    const imp_kv_entry *old = NULL;
    for (uint64_t i = 0; x->e != NULL && i <= x->mask; i++)
        if (x->e[i].bytes != 0 && (old == NULL || x->e[i].used_ns < old->used_ns)) old = &x->e[i];
    return old;
}
