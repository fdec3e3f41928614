/* sched/admit.c - who joins the steps, with which memory: turns, slots, known beginnings, caches from elsewhere.
 *
 * Idea:    next is who ran before and had to make room, then the least priority number, then the client that was served
 *          least, then who came first. A request takes a slot (the room of its sequence) and blocks for its prompt; the
 *          blocks of a beginning that is known are shared, part of one more is copied. When another request is just
 *          computing a beginning that a waiting one shares, that one waits for it.
 *          When the KV pool runs out, first what nobody uses goes, then caches on their way here (they can come again),
 *          then the worst placed running sequence gives its blocks back and is computed again later; it continues with
 *          the very same bytes, because arithmetic does not depend on chunking or neighbours (design, decision 8).
 * Always:  a job in `running` has a slot; the best placed one can always get the blocks it needs. */
#include "sched/sched_int.h"

static uint32_t blocks_of(size_t n_pos)
{
    return (uint32_t)((n_pos + IMP_KV_BLOCK - 1) / IMP_KV_BLOCK);
}

/* ---- caches on their way here ------------------------------------------------------------------------- */

static void give_landing(imp_sched *s, imp_push *p)
{
    imp_kv_pool_give(&s->kv, p->block, &p->n_have);
    p->n_in = 0;
}

static void unlink_landing(imp_sched *s, imp_push *p)
{
    imp_mutex_lock(s->lock);
    for (imp_push **at = &s->landing; *at != NULL; at = &(*at)->next) {
        if (*at != p) continue;
        *at = p->next;
        break;
    }
    imp_mutex_unlock(s->lock);
}

/* Every one of them gives its blocks back; what was copied is copied again when the job comes. */
static bool drop_landings(imp_sched *s, const imp_push *except)
{
    bool any = false;
    imp_mutex_lock(s->lock);
    for (imp_push *p = s->landing; p != NULL; p = p->next) {
        if (p == except) continue;
        any = any || p->n_have > 0;
        give_landing(s, p);
        p->stalled = true;
    }
    imp_mutex_unlock(s->lock);
    return any;
}

/* Blocks n_in..n-1 from the host, in the time that `late` says. false: the device refused. */
static bool take_in(imp_sched *s, imp_push *p, uint32_t n, bool late)
{
    imp_error err;
    uint64_t t0 = imp_now_ns();
    bool ok = n <= p->n_in || imp_push_move(p, s->c.generate, p->block + p->n_in, p->n_in, n - p->n_in, false,
                                            &err) == IMP_OK;
    if (ok) p->n_in = IMP_MAX(p->n_in, n);
    if (!late) p->n_early = p->n_in;
    atomic_fetch_add(late ? &p->in_late_ns : &p->in_early_ns, imp_now_ns() - t0);
    return ok;
}

bool imp_sched_take_landings(imp_sched *s)
{
    bool any = false;
    imp_mutex_lock(s->lock);
    imp_push *p = s->landing;
    imp_mutex_unlock(s->lock);
    for (imp_push *next; p != NULL; p = next) {
        next = p->next; /* only this thread takes any out; new ones come at the head */
        if (atomic_load(&p->closed)) {
            unlink_landing(s, p);
            give_landing(s, p);
            imp_push_unref(p);
            any = true;
            continue;
        }
        uint32_t n = IMP_MIN(atomic_load(&p->n_out), p->n_in + IMP_PUSH_STEP_BLOCKS);
        if (p->stalled || n <= p->n_in) continue;
        while (p->n_have < n && s->kv.n_free == 0 && imp_prefix_evict(&s->prefix)) {
        }
        any = true;
        if (!imp_kv_pool_grow(&s->kv, p->block, &p->n_have, IMP_MIN(n, p->n_have + s->kv.n_free)) ||
            p->n_have < n || !take_in(s, p, n, atomic_load(&p->done)))
            p->stalled = true;
    }
    return any;
}

void imp_sched_land(imp_sched *to, job *j)
{
    imp_push *p = j->push;
    if (p == NULL || !imp_push_fits(p, to->c.generate, to->kv_block_bytes)) return;
    imp_mutex_lock(to->lock);
    if (p->to == NULL) {
        p->to = to;
        atomic_fetch_add(&p->n_ref, 1);
        p->next = to->landing;
        to->landing = p;
    }
    imp_mutex_unlock(to->lock);
}

/* ---- blocks --------------------------------------------------------------------------------------------- */

bool imp_sched_blocks(imp_sched *s, job *j, uint32_t n_pos)
{
    uint32_t n = blocks_of(n_pos);
    while (n > j->n_block && n - j->n_block > s->kv.n_free)
        if (!imp_prefix_evict(&s->prefix) && !drop_landings(s, j->push) && !imp_sched_drop_restores(s))
            return false;
    return imp_kv_pool_grow(&s->kv, j->block, &j->n_block, n);
}

void imp_sched_index(imp_sched *s, job *j, bool end)
{
    if (s->kv.n_block == 0 || s->prefill_only) return;
    uint32_t n = IMP_MIN(j->n_past / IMP_KV_BLOCK, j->n_block);
    for (; j->n_indexed <= n; j->n_indexed++) {
        uint32_t from = j->n_indexed * IMP_KV_BLOCK,
                 n_tok = IMP_MIN(j->n_past - from, (uint32_t)IMP_KV_BLOCK);
        if (n_tok < IMP_KV_BLOCK && (!end || n_tok < IMP_PREFIX_TAIL_MIN || j->n_indexed >= j->n_block))
            return;
        imp_cost_shape sh = imp_cost_shape_chunk(n_tok, from, 0);
        double cost = s->c.hooks.predict != NULL ? s->c.hooks.predict(s->c.hooks.user, &sh, false)
                                                 : n_tok * (1 + 1e-4 * from);
        imp_prefix_add(&s->prefix, j->r.cache_scope, j->block, j->n_indexed, j->ids + from, n_tok, cost);
    }
}

void imp_sched_give_cache(imp_sched *s, job *j)
{
    imp_kv_pool_give(&s->kv, j->block, &j->n_block);
    j->n_indexed = 0;
    j->n_past = 0;
}

void imp_sched_give_slot(imp_sched *s, job *j)
{
    if (j->slot == UINT32_MAX) return;
    s->free_slot[s->n_free_slot++] = j->slot;
    j->slot = UINT32_MAX;
    j->block = NULL;
}

void imp_sched_preempt(imp_sched *s, job *j)
{
    imp_log(IMP_LOG_DEBUG, "request %llu waits for KV memory", (unsigned long long)j->id);
    imp_sched_index(s, j, true);
    imp_sched_give_cache(s, j);
    imp_job_remove(&s->running, j);
    imp_job_push_front(&s->waiting, j);
    j->resumed = true;
    s->n_preempted++;
}

/* ---- who is next ---------------------------------------------------------------------------------------- */

static bool before(const imp_sched *s, const job *a, const job *b)
{
    if (a->r.priority != b->r.priority) return a->r.priority < b->r.priority;
    if (a->resumed != b->resumed) return a->resumed;
    return s->fair.c[a->fair].served < s->fair.c[b->fair].served;
}

/* A running request is computing more of j's beginning than is known: j waits for it. n: whole blocks that are known. */
static bool is_coming(const imp_sched *s, const job *j, uint32_t n)
{
    for (const job *k = s->running.first; k != NULL; k = k->next) {
        if (k->n_past >= k->n_prompt || k->r.cache_scope != j->r.cache_scope) continue;
        size_t most = IMP_MIN(IMP_MIN(k->n_prompt, j->n_ids - 1) / IMP_KV_BLOCK, (size_t)n + 1);
        if (most > n && memcmp(j->ids, k->ids, most * IMP_KV_BLOCK * sizeof *j->ids) == 0) return true;
    }
    return false;
}

static void take_slot(imp_sched *s, job *j)
{
    j->slot = s->free_slot[--s->n_free_slot];
    int32_t *ids = s->slot_ids + (size_t)j->slot * s->c.n_ctx;
    memcpy(ids, j->ids, j->n_ids * sizeof *ids);
    j->ids = ids;
    j->block = s->slot_block + (size_t)j->slot * s->n_block_ctx;
}

/* The cache that came with a job from another device: what did not come early is taken in now. */
static bool bring_cache(imp_sched *s, job *j)
{
    imp_push *p = j->push;
    uint32_t n = blocks_of(j->n_past);
    bool ok = imp_push_fits(p, s->c.generate, s->kv_block_bytes) && n <= atomic_load(&p->n_out);
    if (p->to == s) unlink_landing(s, p);
    if (p->to != s || !ok) p->n_in = p->n_have = 0;
    uint32_t kept = IMP_MIN(p->n_have, n);
    memcpy(j->block, p->block, kept * sizeof *j->block);
    j->n_block = kept;
    for (; p->n_have > kept; p->n_have--) imp_kv_pool_unref(&s->kv, p->block[p->n_have - 1]);
    bool room = imp_sched_blocks(s, j, (uint32_t)IMP_MIN(j->n_ids + 1, (size_t)s->c.n_ctx));
    if (p->to == s) imp_push_unref(p); /* the list's */
    p->to = NULL;
    p->n_have = 0;
    if (ok && room) {
        memcpy(p->block, j->block, n * sizeof *p->block);
        p->n_in = IMP_MIN(p->n_in, kept);
        ok = take_in(s, p, n, true);
    }
    p->n_in = 0;
    if (!room) { /* it waits for room; all is taken in when there is some */
        imp_kv_pool_give(&s->kv, j->block, &j->n_block);
        return false;
    }
    imp_sched_handover *h = &j->handover;
    *h = (imp_sched_handover){.n_block = n,
                              .n_early = IMP_MIN(p->n_early, n),
                              .bytes = (double)n * (double)p->block_bytes,
                              .direct = p->stage_of != NULL};
    h->overlapped_s = p->early_s + (double)atomic_load(&p->in_early_ns) * 1e-9;
    h->exposed_s = p->late_s + (double)atomic_load(&p->in_late_ns) * 1e-9;
    if (!ok) j->n_past = 0;
    imp_push_unref(p);
    j->push = NULL;
    return true;
}

/* What is known of j's beginning becomes its cache. The part of a block that fits is copied. */
static void use_prefix(imp_sched *s, job *j, const imp_prefix_hit *h)
{
    j->n_past = h->n_block * IMP_KV_BLOCK;
    if (h->tail == IMP_PREFIX_NONE) return;
    s->c.generate->dev->ops->kv_copy(s->c.generate, j->block[h->n_block], h->tail);
    j->n_past += h->n_tail;
}

static bool find_memory(imp_sched *s, job *j, bool *coming)
{
    *coming = false;
    if (j->push != NULL && !j->split) return bring_cache(s, j);
    imp_prefix_hit h = {.tail = IMP_PREFIX_NONE};
    if (j->r.kind == IMP_REQUEST_GENERATE)
        h = imp_prefix_match(&s->prefix, j->r.cache_scope, j->ids, (uint32_t)j->n_ids - 1, j->block);
    j->n_block = j->n_indexed = h.n_block;
    j->held = j->r.kind == IMP_REQUEST_GENERATE && imp_sched_restoring(s, j, j->block, h.n_block);
    *coming =
        j->held || (j->r.kind == IMP_REQUEST_GENERATE && !s->prefill_only && is_coming(s, j, h.n_block));
    bool room = !*coming && imp_sched_blocks(s, j, (uint32_t)IMP_MIN(j->n_ids + 1, (size_t)s->c.n_ctx));
    if (room) use_prefix(s, j, &h);
    if (h.tail != IMP_PREFIX_NONE) imp_kv_pool_unref(&s->kv, h.tail);
    if (!room) imp_sched_give_cache(s, j);
    return room;
}

/* Memory for j. false: it has to wait (*coming: for a beginning that is being computed). */
static bool admit(imp_sched *s, job *j, bool *coming)
{
    bool fresh = j->slot == UINT32_MAX;
    if (fresh) take_slot(s, j);
    bool ok = find_memory(s, j, coming);
    if (!ok && fresh) {
        j->ids = j->own_ids; /* it has generated nothing since */
        imp_sched_give_slot(s, j);
    }
    return ok;
}

static void note_start(imp_sched *s, job *j)
{
    j->n_fresh = (uint32_t)j->n_ids - j->n_past;
    if (j->t_start == 0) {
        j->t_start = imp_now_ns();
        j->n_cached = IMP_MIN(j->n_past, (uint32_t)j->n_prompt);
        if (j->r.kind == IMP_REQUEST_GENERATE) {
            s->n_query_tok += j->n_prompt;
            s->n_hit_tok += j->n_cached;
        }
    }
    imp_job_adapters_run(j);
    imp_fair_serve(&s->fair, j->fair, (double)(j->n_ids - j->n_past));
    if (j->split && j->push == NULL) {
        imp_exec *to = s->c.hooks.receiver != NULL ? s->c.hooks.receiver(s->c.hooks.user, j) : NULL;
        j->push = s->kv_block_bytes > 0
                      ? imp_push_new(blocks_of(j->n_prompt), s->kv_block_bytes, s->c.generate, to)
                      : NULL;
        j->split = j->push != NULL; /* without room on the host it stays here */
    }
}

job *imp_sched_admit(imp_sched *s)
{
    for (job *k = s->waiting.first; k != NULL; k = k->next) k->passed = false;
    for (;;) {
        job *best = NULL;
        for (job *k = s->waiting.first; k != NULL; k = k->next)
            if (!k->passed && (k->slot != UINT32_MAX || s->n_free_slot > 0) &&
                (best == NULL || before(s, k, best)))
                best = k;
        if (best == NULL) return NULL;
        bool coming;
        if (admit(s, best, &coming)) {
            imp_job_remove(&s->waiting, best);
            imp_job_push(&s->running, best);
            note_start(s, best);
            return best;
        }
        if (!coming) return NULL; /* nobody overtakes who waits for memory */
        best->passed = true;
    }
}
