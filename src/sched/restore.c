/* sched/restore.c - caches on their way to disk and back: the scheduler's side of kv_store.h.
 *
 * Idea:    what is known of a prompt's beginning in memory may go on in the store. Then the request steps aside while the
 *          store's thread reads and checks the blocks; they are taken into the prefix cache between steps, and when all
 *          are there the request is admitted as if they had never gone. It waits no longer than computing them would take.
 *          A block that leaves the prefix cache is given to be written, if computing it again costs clearly more than
 *          copying it out; at the end, and when asked for, all of them are.
 * Always:  blocks that were restored are held by their restore until it ends, so that none goes before the request comes;
 *          what a scope that does not outlive the program computed (the top bit, http/keys.c) is not written; all that a
 *          chain's hash is made of means the same in the next run.
 * Threads: scheduler thread only, but for imp_sched_want_save. */
#include "sched/sched_int.h"

enum {
    STEP_BLOCKS = 8, /* taken in between two steps of those who generate */
    WORTH =
        4, /* a block is spilled when computing it again takes that many times as long as copying it out */
    SAVE_BLOCKS = 16, /* a step, when saving was asked for */
    SAVE_WAIT_MS = 100,
};
static const uint64_t MIN_WAIT_NS = 50000000;

typedef struct restore {
    struct restore *next;
    job *j; /* who waits; NULL: it is over */
    imp_kv_load *load;
    uint64_t t0, deadline_ns;
    uint32_t first, n, n_have; /* blocks: in memory before, in all, and in the table */
    uint32_t *table;           /* [n] each held once; owned */
    imp_kv_link link[];        /* [n - first] */
} restore;

static bool may_keep(uint64_t scope)
{
    return scope >> 63 == 0;
}

static double cost_of(const imp_sched *s, uint32_t depth)
{
    imp_cost_shape sh = imp_cost_shape_chunk(IMP_KV_BLOCK, depth * IMP_KV_BLOCK, 0);
    return s->c.hooks.predict != NULL ? s->c.hooks.predict(s->c.hooks.user, &sh, false) : 1;
}

/* ---- from disk --------------------------------------------------------------------------------------------- */

/* Whole blocks of j's beginning behind the n that are in memory, as far as the disk has them; at most `most`. link NULL:
 * they are only counted. */
static uint32_t find_links(imp_sched *s, const job *j, const uint32_t *table, uint32_t n, uint32_t most,
                           imp_kv_link *link)
{
    uint64_t before[2], hash[2];
    if (n > 0) memcpy(before, s->prefix.node[table[n - 1]].hash, sizeof before);
    uint32_t k = 0;
    for (; k < most && (size_t)(n + k + 1) * IMP_KV_BLOCK <= j->n_ids - 1; k++) {
        const int32_t *token = j->ids + (size_t)(n + k) * IMP_KV_BLOCK;
        imp_prefix_chain(&s->prefix, j->r.cache_scope, n + k > 0 ? before : NULL, token, hash);
        if (!imp_kv_book_has(s->book, hash)) break;
        if (link != NULL) {
            link[k] = (imp_kv_link){.scope = j->r.cache_scope, .depth = n + k};
            if (n + k > 0) memcpy(link[k].parent, before, sizeof before);
            memcpy(link[k].hash, hash, sizeof hash);
            memcpy(link[k].token, token, sizeof link[k].token);
        }
        memcpy(before, hash, sizeof before);
    }
    return k;
}

/* The block that j needs next is being read for another. */
static bool read_for_another(const imp_sched *s, const job *j, const uint32_t *table, uint32_t n)
{
    uint64_t hash[2];
    if ((size_t)(n + 1) * IMP_KV_BLOCK > j->n_ids - 1) return false;
    imp_prefix_chain(&s->prefix, j->r.cache_scope, n > 0 ? s->prefix.node[table[n - 1]].hash : NULL,
                     j->ids + (size_t)n * IMP_KV_BLOCK, hash);
    for (const restore *r = s->restores; r != NULL; r = r->next)
        if (n >= r->first && n < r->n && memcmp(r->link[n - r->first].hash, hash, sizeof hash) == 0)
            return true;
    return false;
}

static uint32_t n_restores(const imp_sched *s)
{
    uint32_t n = 0;
    for (const restore *r = s->restores; r != NULL; r = r->next) n++;
    return n;
}

bool imp_sched_restoring(imp_sched *s, job *j, const uint32_t *table, uint32_t n)
{
    if (s->book == NULL) return false;
    if (j->restore != NULL) return true;
    if (s->restores != NULL && read_for_another(s, j, table, n)) return true;
    if (j->asked_disk || !may_keep(j->r.cache_scope) || !imp_kv_book_is_ready(s->book)) return false;
    bool busy = n_restores(s) >= IMP_MAX(s->n_free_slot, 1u);
    if (busy && j->on_disk) return true;
    uint32_t more = find_links(s, j, table, n, s->kv.n_free + s->kv.n_idle, NULL);
    double compute_s = 0;
    for (uint32_t k = 0; k < more; k++) compute_s += cost_of(s, n + k);
    j->on_disk = more > 0 && compute_s >= more * imp_kv_book_block_s(s->book);
    if (busy && j->on_disk) return true; /* those who cannot run yet would only take the others' memory */
    j->asked_disk = true;
    if (!j->on_disk) return false;
    restore *r = imp_sys_calloc(1, sizeof *r + more * sizeof r->link[0]);
    if (r == NULL) return false;
    *r = (restore){.j = j, .t0 = imp_now_ns(), .first = n, .n = n + more};
    r->deadline_ns = r->t0 + IMP_MAX((uint64_t)(compute_s * 1e9), MIN_WAIT_NS);
    r->table = imp_sys_calloc(r->n, sizeof *r->table);
    (void)find_links(s, j, table, n, more, r->link);
    if (r->table != NULL) r->load = imp_kv_load_new(s->book, r->link, more);
    if (r->load == NULL) { /* no memory: it is computed */
        imp_sys_free(r->table);
        imp_sys_free(r);
        return false;
    }
    for (; r->n_have < n; r->n_have++) {
        r->table[r->n_have] = table[r->n_have];
        imp_kv_pool_ref(&s->kv, table[r->n_have]);
    }
    j->restore = r;
    r->next = s->restores;
    s->restores = r;
    return true;
}

/* Its blocks stay in the prefix cache as long as there is room. */
static void end(imp_sched *s, restore *r)
{
    for (restore **at = &s->restores; *at != NULL; at = &(*at)->next) {
        if (*at != r) continue;
        *at = r->next;
        break;
    }
    r->j->restore_ns += imp_now_ns() - r->t0;
    r->j->n_restored += (r->n_have - r->first) * IMP_KV_BLOCK;
    s->n_restored_tok += (r->n_have - r->first) * IMP_KV_BLOCK;
    r->j->restore = NULL;
    for (job *j = s->waiting.first; j != NULL; j = j->next) j->held = false; /* they look again */
    imp_kv_load_close(r->load);
    imp_kv_pool_give(&s->kv, r->table, &r->n_have);
    imp_sys_free(r->table);
    imp_sys_free(r);
}

/* A block that was read becomes one of the prefix cache. false: there is no room, or the device refuses it. */
static bool take_in(imp_sched *s, restore *r, const void *data)
{
    imp_error err;
    uint32_t i = r->n_have;
    const imp_kv_link *l = &r->link[i - r->first];
    if (s->kv.n_free == 0 && !imp_prefix_evict(&s->prefix)) return false;
    if (!imp_kv_pool_grow(&s->kv, r->table, &r->n_have, i + 1)) return false;
    if (s->c.generate->dev->ops->kv_import(s->c.generate, r->table[i], data, &err) != IMP_OK) {
        imp_kv_pool_unref(&s->kv, r->table[--r->n_have]);
        return false;
    }
    imp_prefix_add(&s->prefix, l->scope, r->table, i, l->token, IMP_KV_BLOCK, cost_of(s, i));
    return true;
}

bool imp_sched_take_restored(imp_sched *s)
{
    bool any = false;
    for (restore *r = s->restores, *next; r != NULL; r = next) {
        next = r->next;
        bool over = false;
        void *data = NULL;
        uint32_t most = s->running.first != NULL ? STEP_BLOCKS : UINT32_MAX;
        for (; most > 0 && !over && (data = imp_kv_load_take(r->load, &over)) != NULL; most--) {
            over = !take_in(s, r, data);
            imp_sys_free(data);
            any = true;
        }
        if (!over && imp_now_ns() < r->deadline_ns) continue;
        end(s, r);
        any = true;
    }
    return any;
}

bool imp_sched_drop_restores(imp_sched *s)
{
    bool any = s->restores != NULL;
    while (s->restores != NULL) end(s, s->restores);
    return any;
}

void imp_sched_end_restore(imp_sched *s, job *j)
{
    if (j->restore != NULL) end(s, j->restore);
}

bool imp_sched_restore_has_news(const imp_sched *s)
{
    for (const restore *r = s->restores; r != NULL; r = r->next)
        if (imp_kv_load_has_news(r->load) || imp_now_ns() >= r->deadline_ns) return true;
    return false;
}

/* ---- to disk ------------------------------------------------------------------------------------------------- */

/* Block is a whole one of the prefix cache that the disk lacks. */
static bool is_unsaved(imp_sched *s, uint32_t block)
{
    const imp_prefix_node *n = &s->prefix.node[block];
    return n->n_tok == IMP_KV_BLOCK && !n->saved && may_keep(n->scope) && !imp_kv_book_has(s->book, n->hash);
}

/* false: there is no room for it now. What the device refuses is not tried again. */
static bool save(imp_sched *s, uint32_t block, uint32_t wait_ms)
{
    imp_prefix_node *n = &s->prefix.node[block];
    void *p = imp_kv_book_buffer(s->book, wait_ms);
    if (p == NULL) return false;
    imp_error err;
    uint64_t t0 = imp_now_ns();
    bool ok = s->c.generate->dev->ops->kv_export(s->c.generate, block, p, &err) == IMP_OK;
    s->export_s += 0.2 * ((double)(imp_now_ns() - t0) * 1e-9 - s->export_s);
    imp_kv_link l = {.hash = {n->hash[0], n->hash[1]}, .scope = n->scope, .depth = n->depth};
    if (n->parent != IMP_PREFIX_NONE) memcpy(l.parent, s->prefix.node[n->parent].hash, sizeof l.parent);
    memcpy(l.token, n->token, sizeof l.token);
    imp_kv_book_save(s->book, ok ? &l : NULL, p);
    n->saved = true;
    return true;
}

void imp_sched_spill(void *sched, uint32_t block)
{
    imp_sched *s = sched;
    if (s->prefix.node[block].cost < WORTH * s->export_s || !is_unsaved(s, block)) return;
    (void)save(s, block, 0);
}

/* Blocks from depth *depth on, beginnings first: what follows is of no use without them. At most `most`; *depth UINT32_MAX:
 * there are no more. */
static uint32_t save_blocks(imp_sched *s, uint32_t *depth, uint32_t most, uint32_t wait_ms)
{
    uint32_t n = 0;
    for (bool deeper = true; deeper; (*depth)++) {
        deeper = false;
        for (uint32_t b = 0; b < s->kv.n_block; b++) {
            const imp_prefix_node *x = &s->prefix.node[b];
            deeper = deeper || (x->n_tok > 0 && x->depth > *depth);
            if (x->n_tok == 0 || x->depth != *depth || !is_unsaved(s, b)) continue;
            if (n == most) return n;
            if (!save(s, b, wait_ms)) return n;
            n++;
        }
    }
    *depth = UINT32_MAX;
    return n;
}

uint32_t imp_sched_save(imp_sched *s, double budget_s)
{
    if (s->book == NULL) return 0;
    uint64_t until = imp_now_ns() + (uint64_t)(budget_s * 1e9);
    uint32_t depth = 0, n = 0, one;
    while (depth != UINT32_MAX && imp_now_ns() < until) {
        n += one = save_blocks(s, &depth, SAVE_BLOCKS, SAVE_WAIT_MS);
        if (one == 0 && !imp_kv_book_is_ready(s->book)) break;
    }
    return n;
}

void imp_sched_want_save(imp_sched *s)
{
    if (s->book == NULL) return;
    atomic_store(&s->save_wanted, true);
    if (s->c.hooks.wake != NULL) s->c.hooks.wake(s->c.hooks.user);
}

bool imp_sched_can_save(const imp_sched *s)
{
    return (atomic_load(&s->save_wanted) || s->save_next != UINT32_MAX) && imp_kv_book_has_room(s->book);
}

bool imp_sched_save_some(imp_sched *s)
{
    if (atomic_exchange(&s->save_wanted, false)) s->save_next = 0;
    if (s->save_next == UINT32_MAX || !imp_kv_book_has_room(s->book)) return false;
    return save_blocks(s, &s->save_next, SAVE_BLOCKS, 0) > 0;
}
