/* engine/room.c - memory for one model among several.
 *
 * Place:   model.c asks before a model is placed; catalog.c owns the list of those that may go.
 * Idea:    what a model takes is known before it is loaded (plan/fit), and what the others hold is what was planned for
 *          them, whether they have touched it yet or not. Idle models go in order of last use until the new one fits. When
 *          only models with requests are left, the least recently used one gets no new ones, and the load waits.
 *          A model without a fixed context takes at first half of what is free, as long as that gives it ENOUGH_CTX
 *          tokens: the next one shall find room, too.
 * Threads: the catalog's thread. */
#include <stdio.h>

#include "engine/engine_int.h"

enum { ENOUGH_CTX = 4096 };

/* engine.lock held. Planned memory of everything but m itself on devices that share u's. */
static uint64_t held_by_others(const imp_model *m, const imp_unit *u, bool only_movable)
{
    const imp_engine *e = u->engine;
    bool own = u->device->ops->mem_free != NULL;
    uint64_t n = 0;
    for (size_t i = 0; i < e->n_model; i++) {
        const imp_model *o = e->model[i];
        if (only_movable && (o == m || o->pinned || o->known == NULL)) continue;
        for (uint32_t k = 0; k < e->n_unit; k++) {
            if (o->inst[k].sched == NULL || (o == m && k == u->index)) continue;
            if (own ? k == u->index : e->unit[k]->device->ops->mem_free == NULL)
                n += o->inst[k].fit.memory.total;
        }
    }
    return n;
}

/* m's own instances elsewhere, while it is not registered yet. */
static uint64_t held_by_itself(const imp_model *m, const imp_unit *u)
{
    const imp_engine *e = u->engine;
    uint64_t n = 0;
    for (size_t i = 0; i < e->n_model; i++)
        if (e->model[i] == m) return 0; /* counted with the others */
    for (uint32_t k = 0; k < e->n_unit && u->device->ops->mem_free == NULL; k++)
        if (m->inst[k].sched != NULL && k != u->index && e->unit[k]->device->ops->mem_free == NULL)
            n += m->inst[k].fit.memory.total;
    return n;
}

static uint64_t minus(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

static uint64_t room(const imp_model *m, const imp_unit *u, bool if_others_go)
{
    imp_engine *e = u->engine;
    uint64_t limit = e->config.mem_bytes, total, available;
    imp_mutex_lock(e->lock);
    uint64_t held = held_by_others(m, u, false) + held_by_itself(m, u);
    uint64_t back = if_others_go ? held_by_others(m, u, true) : 0;
    imp_mutex_unlock(e->lock);
    if (limit != 0) return minus(limit, held) + back;
    if (u->device->ops->mem_free != NULL) return u->device->ops->mem_free(u->device) + back;
    imp_sys_memory(&total, &available);
    if (held == 0) return available;
    return IMP_MIN(available + back, minus(IMP_MAX(e->mem_at_start, available), held) + back);
}

uint64_t imp_room(const imp_model *m, const imp_unit *u)
{
    return room(m, u, false);
}

/* The context that m would get on u with this much memory, 0: none; err then says why. */
static uint32_t context_with(const imp_model *m, const imp_unit *u, uint64_t bytes, imp_error *err)
{
    imp_fit_want want = imp_model_want(m);
    imp_fit fit;
    want.mem_bytes = bytes;
    imp_status s = imp_fit_compute(u->device, m->net, &want, &fit, err);
    if (s == IMP_OK) return fit.n_ctx;
    return s == IMP_NO_FIT ? 0 : UINT32_MAX; /* anything else is for the one who loads it to say */
}

/* Where the model belongs: the first unit that is worth it. */
static imp_unit *best_unit(imp_model *m)
{
    imp_engine *e = m->engine;
    uint32_t worth = e->n_unit > 1 ? imp_route_worth(m) : 1;
    for (uint32_t i = 0; i < e->n_unit; i++)
        if ((worth >> i & 1) && !e->unit[i]->device->ops->slow_compile) return e->unit[i];
    return e->unit[0];
}

/* Unload the least recently used model that is idle, or wait for one to become so. false: there is none. */
static bool shrink(imp_model *m, const imp_unit *u)
{
    imp_engine *e = m->engine;
    imp_mutex_lock(e->lock);
    imp_model *idle = imp_catalog_victim(e, u, true), *any = imp_catalog_victim(e, u, false);
    bool wanted = imp_catalog_is_wanted(m->known) && !e->quit;
    if (idle != NULL && wanted) {
        imp_catalog_evict(idle, "another model needs the room");
    } else if (any != NULL && wanted) {
        imp_catalog_retire(any);
        imp_catalog_wait(e, 1000);
    }
    imp_mutex_unlock(e->lock);
    return any != NULL && wanted;
}

imp_status imp_room_make(imp_model *m, imp_error *err)
{
    imp_engine *e = m->engine;
    imp_unit *u = best_unit(m);
    bool fixed = e->config.n_ctx != 0;
    uint32_t enough = fixed ? 1 : IMP_MIN((uint32_t)ENOUGH_CTX, m->net->cfg.n_ctx_train);
    imp_error why = {0};
    uint32_t best = context_with(m, u, room(m, u, true), &why);
    if (best == 0 && e->n_unit == 1) { /* not even alone */
        if (err != NULL) *err = why;
        return IMP_NO_FIT;
    }
    enough = IMP_MIN(enough, best);
    imp_mutex_lock(e->lock);
    bool share = !fixed && !m->pinned && imp_catalog_n(e) > 1;
    imp_mutex_unlock(e->lock);
    while (best != 0 && context_with(m, u, room(m, u, false), &why) < enough)
        if (!shrink(m, u)) break;
    imp_mutex_lock(e->lock);
    bool wanted = imp_catalog_is_wanted(m->known) && !e->quit;
    imp_mutex_unlock(e->lock);
    if (!wanted) return imp_fail(err, IMP_CANCELLED, "nobody waits for the model any more");
    uint64_t half = room(m, u, false) / 2;
    if (share && context_with(m, u, half, &why) >= enough) m->mem_cap = half;
    return IMP_OK;
}
