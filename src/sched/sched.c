/* sched/sched.c - the queue side of the scheduler: accept, cancel, end, move, count. admit.c lets in, step.c computes.
 *
 * Always:  an accepted request is in exactly one list and in `known` until imp_sched_end.
 * Threads: see sched.h; callbacks run without the lock. */
#include <math.h>

#include "sched/sched_int.h"

/* How many of what a batch under construction and the queue hold, for these limits. */
typedef struct room {
    size_t n_tok, n_seq, n_out, n_vector, n_known;
} room;

static room room_of(const imp_sched_config *c)
{
    const imp_limits *g = &c->generate_limits, *e = &c->embed_limits;
    return (room){.n_tok = IMP_MAX(g->max_tok, e->max_tok),
                  .n_seq = IMP_MAX(g->max_seq, e->max_seq),
                  .n_out = g->max_out,
                  .n_vector = c->net->cfg.embed_dim,
                  .n_known = (size_t)c->n_queue + g->max_seq};
}

static uint32_t blocks_of_context(uint32_t n_ctx)
{
    return n_ctx / IMP_KV_BLOCK + 2;
}

uint64_t imp_sched_bytes(const imp_sched_config *c)
{
    const imp_sched *s = NULL; /* for sizes only */
    const imp_limits *g = &c->generate_limits;
    room r = room_of(c);
    uint64_t seq = sizeof *s->seq + sizeof *s->seq_job + sizeof *s->seq_out + sizeof *s->seq_input;
    uint64_t n = sizeof *s + r.n_tok * (sizeof *s->token + sizeof *s->pos) + r.n_out * sizeof *s->out_row +
                 r.n_seq * seq + r.n_vector * sizeof *s->vector + r.n_known * sizeof *s->known +
                 g->n_kv_block * (sizeof *s->kv.free_block + sizeof *s->kv.ref + sizeof *s->kv.shared) +
                 imp_prefix_bytes(g->n_kv_block);
    n += g->max_seq * ((uint64_t)g->max_ctx * sizeof *s->slot_ids +
                       blocks_of_context(g->max_ctx) * sizeof *s->slot_block + sizeof *s->free_slot);
    n += g->max_seq * (IMP_SPEC_MAX * (sizeof *s->draft + sizeof *s->draft_chance) + sizeof *s->draft_n +
                       sizeof *s->draft_take);
    uint64_t token = sizeof *s->scratch.logit + sizeof *s->scratch.cand + sizeof *s->scratch.count;
    return n + (c->net->generate != NULL ? c->net->cfg.n_vocab * token : 0);
}

static imp_status alloc_batch(imp_sched *s)
{
    room r = room_of(&s->c);
    const imp_limits *g = &s->c.generate_limits;
    s->token = imp_sys_calloc(r.n_tok, sizeof *s->token);
    s->pos = imp_sys_calloc(r.n_tok, sizeof *s->pos);
    s->out_row = imp_sys_calloc(r.n_out, sizeof *s->out_row);
    s->seq = imp_sys_calloc(r.n_seq, sizeof *s->seq);
    s->seq_job = imp_sys_calloc(r.n_seq, sizeof(job *));
    s->seq_out = imp_sys_calloc(r.n_seq, sizeof *s->seq_out);
    s->seq_input = imp_sys_calloc(r.n_seq, sizeof *s->seq_input);
    s->vector = imp_sys_calloc(r.n_vector, sizeof *s->vector);
    s->cap_known = r.n_known;
    s->known = imp_sys_calloc(s->cap_known, sizeof(job *));
    s->n_block_ctx = blocks_of_context(s->c.n_ctx);
    s->n_free_slot = g->max_seq;
    s->slot_ids = imp_sys_calloc((size_t)g->max_seq * s->c.n_ctx, sizeof *s->slot_ids);
    s->slot_block = imp_sys_calloc((size_t)g->max_seq * s->n_block_ctx, sizeof *s->slot_block);
    s->free_slot = imp_sys_calloc(g->max_seq, sizeof *s->free_slot);
    for (uint32_t i = 0; s->free_slot != NULL && i < g->max_seq; i++) s->free_slot[i] = g->max_seq - 1 - i;
    s->draft = imp_sys_calloc((size_t)g->max_seq * IMP_SPEC_MAX, sizeof *s->draft);
    s->draft_chance = imp_sys_calloc((size_t)g->max_seq * IMP_SPEC_MAX, sizeof *s->draft_chance);
    s->draft_n = imp_sys_calloc(g->max_seq, sizeof *s->draft_n);
    s->draft_take = imp_sys_calloc(g->max_seq, sizeof *s->draft_take);
    imp_spec_rates_init(&s->rates);
    bool ok = s->draft != NULL && s->draft_chance != NULL && s->draft_n != NULL && s->draft_take != NULL &&
              s->slot_ids != NULL && s->slot_block != NULL && s->free_slot != NULL && s->token != NULL &&
              s->pos != NULL && s->out_row != NULL && s->seq != NULL && s->seq_job != NULL &&
              s->seq_out != NULL && s->seq_input != NULL && s->vector != NULL && s->known != NULL;
    return ok ? IMP_OK : IMP_NOMEM;
}

static void wake(void *user)
{
    const imp_sched *s = user;
    if (s->c.hooks.wake != NULL) s->c.hooks.wake(s->c.hooks.user);
}

/* Where a cache can be moved in and out whole it can be saved. */
static imp_status open_book(imp_sched *s)
{
    const imp_sched_config *c = &s->c;
    s->save_next = UINT32_MAX;
    if (c->kv_store == NULL || s->kv_block_bytes == 0 || s->prefill_only ||
        c->generate->dev->ops->kv_import == NULL)
        return IMP_OK;
    imp_kv_book_config b = {.store = c->kv_store,
                            .graph = c->net->generate,
                            .device = c->generate->dev->name,
                            .model_name = c->model_name != NULL ? c->model_name : "",
                            .kv_dtype = c->generate_limits.kv_dtype,
                            .wake = wake,
                            .user = s};
    memcpy(s->prefix.key, imp_kv_store_key(c->kv_store), sizeof s->prefix.key);
    s->prefix.leaving = imp_sched_spill;
    s->prefix.user = s;
    return imp_kv_book_open(&b, &s->book);
}

imp_status imp_sched_new(const imp_sched_config *c, imp_sched **out, imp_error *err)
{
    *out = NULL;
    imp_sched *s = imp_sys_calloc(1, sizeof *s);
    imp_status st = IMP_NOMEM;
    if (s == NULL) goto fail;
    s->c = *c;
    if (c->generate != NULL && c->generate->dev->ops->kv_export != NULL && c->net->generate != NULL)
        s->kv_block_bytes = imp_dev_kv_block_bytes(c->net->generate, c->generate_limits.kv_dtype);
    s->prefill_only = c->generate != NULL && c->generate->dev->ops->prefill_only;
    if ((st = imp_mutex_new(&s->lock)) != IMP_OK) goto fail;
    if ((st = alloc_batch(s)) != IMP_OK) goto fail;
    if ((st = imp_kv_pool_init(&s->kv, c->generate_limits.n_kv_block)) != IMP_OK) goto fail;
    if ((st = imp_prefix_init(&s->prefix, &s->kv)) != IMP_OK) goto fail;
    if ((st = open_book(s)) != IMP_OK) goto fail;
    if (c->generate != NULL && (st = imp_sampler_scratch_init(&s->scratch, c->net->cfg.n_vocab)) != IMP_OK)
        goto fail;
    *out = s;
    return IMP_OK;
fail:
    if (s != NULL) imp_sched_free(s);
    return imp_fail(err, st,
                    st == IMP_NOMEM ? "not enough memory for the request queue"
                                    : "the system gives no random numbers");
}

static void cancel_all(imp_sched *s, job_list *l)
{
    imp_error e;
    (void)imp_fail(&e, IMP_CANCELLED, "the model was unloaded before the request was done");
    while (l->first != NULL) imp_sched_end(s, l, l->first, IMP_FINISH_CANCELLED, &e);
}

void imp_sched_free(imp_sched *s)
{
    cancel_all(s, &s->incoming);
    cancel_all(s, &s->waiting);
    cancel_all(s, &s->running);
    cancel_all(s, &s->embedding);
    while (s->landing != NULL) {
        imp_push *p = s->landing;
        s->landing = p->next;
        imp_push_unref(p);
    }
    imp_kv_book_close(s->book);
    imp_prefix_deinit(&s->prefix);
    imp_kv_pool_deinit(&s->kv);
    imp_sys_free(s->slot_ids);
    imp_sys_free(s->slot_block);
    imp_sys_free(s->free_slot);
    imp_sampler_scratch_deinit(&s->scratch);
    imp_sys_free(s->token);
    imp_sys_free(s->pos);
    imp_sys_free(s->out_row);
    imp_sys_free(s->seq);
    imp_sys_free(s->seq_job);
    imp_sys_free(s->seq_out);
    imp_sys_free(s->seq_input);
    imp_sys_free(s->draft);
    imp_sys_free(s->draft_chance);
    imp_sys_free(s->draft_n);
    imp_sys_free(s->draft_take);
    imp_sys_free(s->vector);
    imp_sys_free(s->known);
    imp_mutex_free(s->lock);
    imp_sys_free(s);
}

static imp_status check_inputs(const imp_sched *s, const imp_request *r, imp_error *err)
{
    const imp_net_config *cfg = &s->c.net->cfg;
    bool embed = r->kind == IMP_REQUEST_EMBED;
    size_t at = 0;
    if (r->n_input == 0) return imp_fail_field(err, IMP_INVALID, "input", "there is no input");
    for (size_t i = 0; i < r->n_input; i++) {
        size_t n = r->n_ids[i];
        size_t most = r->kind == IMP_REQUEST_GENERATE ? s->c.n_ctx - 1 : s->c.n_ctx;
        if (n == 0)
            return imp_fail_field(err, IMP_INVALID, embed ? "input" : "prompt", "the %s has no tokens",
                                  embed ? "input" : "prompt");
        if (n > most)
            return imp_fail_field(
                err, IMP_TOO_LARGE, embed ? "input" : "prompt",
                "the %s has %zu tokens, the context holds %u%s", embed ? "input" : "prompt", n, s->c.n_ctx,
                r->kind == IMP_REQUEST_GENERATE ? " including at least one that is generated" : "");
        for (size_t k = 0; k < n; k++)
            if (r->ids[at + k] < 0 || (uint32_t)r->ids[at + k] >= cfg->n_vocab)
                return imp_fail_field(err, IMP_INVALID, embed ? "input" : "prompt",
                                      "token %d is not in the vocabulary (0 to %u)", r->ids[at + k],
                                      cfg->n_vocab - 1);
        at += n;
    }
    return IMP_OK;
}

static imp_status check_adapters(const imp_sched *s, const imp_request *r, imp_error *err)
{
    const imp_exec *x = r->kind == IMP_REQUEST_EMBED ? s->c.embed : s->c.generate;
    const imp_limits *lim = r->kind == IMP_REQUEST_EMBED ? &s->c.embed_limits : &s->c.generate_limits;
    if (r->n_lora == 0) return IMP_OK;
    if (lim->lora_rank == 0)
        return imp_fail_field(err, IMP_UNSUPPORTED, "lora", "%s: adapters are not run there", x->dev->name);
    uint64_t rank = imp_adapter_ranks(r->lora, r->n_lora);
    if (rank > lim->lora_rank)
        return imp_fail_field(err, IMP_TOO_LARGE, "lora",
                              "the request's adapters have rank %llu together, there is room for %u",
                              (unsigned long long)rank, lim->lora_rank);
    for (size_t i = 0; i < r->n_lora; i++)
        if (!isfinite(r->lora[i].scale))
            return imp_fail_field(err, IMP_INVALID, "lora", "an adapter's scale is no number");
    return IMP_OK;
}

static imp_status check_request(const imp_sched *s, const imp_request *r, imp_error *err)
{
    const imp_net_config *cfg = &s->c.net->cfg;
    bool embed = r->kind == IMP_REQUEST_EMBED;
    if (embed ? s->c.embed == NULL : s->c.generate == NULL)
        return imp_fail_field(err, IMP_UNSUPPORTED, "model",
                              embed ? "this model gives no embeddings"
                                    : "this model does not generate text, it only embeds");
    if (!embed && r->n_input > 1) return imp_fail_field(err, IMP_INVALID, "prompt", "one prompt a request");
    IMP_TRY(check_inputs(s, r, err));
    IMP_TRY(check_adapters(s, r, err));
    if (r->kind == IMP_REQUEST_GENERATE) {
        IMP_TRY(imp_sampling_check(&r->sampling, cfg->n_vocab, err));
        if (r->n_logprobs > 64)
            return imp_fail_field(err, IMP_INVALID, "logprobs", "at most 64 alternatives a token");
        for (size_t i = 0; i < r->n_stop; i++)
            if (r->stop[i][0] == '\0' || strlen(r->stop[i]) > 4096)
                return imp_fail_field(err, IMP_INVALID, "stop", "a stop string must have 1 to 4096 bytes");
    }
    if (embed && r->dimensions > cfg->embed_dim)
        return imp_fail_field(err, IMP_INVALID, "dimensions", "dimensions must be 1 to %u for this model",
                              cfg->embed_dim);
    return IMP_OK;
}

imp_status imp_sched_submit(imp_sched *s, const imp_request *r, uint64_t id, imp_error *err)
{
    return imp_sched_submit_tagged(s, r, id, NULL, 0, err);
}

imp_status imp_sched_submit_tagged(imp_sched *s, const imp_request *r, uint64_t id, void *tag, uint32_t split,
                                   imp_error *err)
{
    job *j = NULL;
    imp_status st = check_request(s, r, err);
    bool ahead = s->prefill_only && r->kind != IMP_REQUEST_EMBED; /* read here for another unit */
    if (st == IMP_OK && ahead && (split == 0 || r->n_ids[0] < 2))
        st = imp_fail(err, IMP_UNSUPPORTED, "%s reads prompts of two tokens and more, for another device",
                      s->c.generate->dev->name);
    if (st == IMP_OK) {
        st = imp_job_new(r, id, s->c.net->tok, ahead ? split : s->c.n_ctx, &j);
        if (st != IMP_OK) (void)imp_fail(err, st, "not enough memory for the request");
    }
    if (st == IMP_OK) {
        j->tag = tag;
        j->split = split != 0 && r->kind == IMP_REQUEST_GENERATE;
    }
    imp_mutex_lock(s->lock);
    if (st == IMP_OK && s->n_known == s->cap_known) {
        st = imp_fail(err, IMP_BUSY, "the queue is full (%zu requests); try again later", s->n_known);
    }
    if (st == IMP_OK) {
        imp_job_push(&s->incoming, j);
        s->known[s->n_known++] = j;
        s->stats.n_request++;
    } else {
        s->stats.n_refused++;
    }
    imp_mutex_unlock(s->lock);
    if (st != IMP_OK) imp_job_free(j);
    return st;
}

bool imp_sched_cancel(imp_sched *s, uint64_t id)
{
    bool found = false;
    imp_mutex_lock(s->lock);
    for (size_t i = 0; i < s->n_known && !found; i++) {
        if (s->known[i]->id != id) continue;
        atomic_store(&s->known[i]->cancelled, true);
        found = true;
    }
    imp_mutex_unlock(s->lock);
    return found;
}

static void add_load(imp_sched_load *l, const job *j)
{
    size_t n =
        j->r.kind == IMP_REQUEST_EMBED ? j->n_prompt : j->n_prompt - IMP_MIN((size_t)j->n_past, j->n_prompt);
    if (n > 0) l->n_prefill++;
    l->queued_tok += (double)n;
    if (j->r.kind != IMP_REQUEST_GENERATE || j->split) return; /* split: it will generate elsewhere */
    l->n_decode++;
    l->n_coming += n > 0;
}

/* Locked. What only the scheduler thread may look at, copied for everybody. */
static void publish(imp_sched *s)
{
    if (s->c.want_load) {
        imp_sched_load l = {0};
        for (const job *j = s->running.first; j != NULL; j = j->next) add_load(&l, j);
        for (const job *j = s->waiting.first; j != NULL; j = j->next) add_load(&l, j);
        for (const job *j = s->embedding.first; j != NULL; j = j->next) add_load(&l, j);
        s->load = l;
    }
    s->stats.n_running = s->running.n + s->embedding.n;
    s->stats.kv_block_cached = s->kv.n_idle;
    s->stats.kv_block_used = s->kv.n_block - s->kv.n_free - s->kv.n_idle;
    s->stats.n_cache_query_tok = s->n_query_tok;
    s->stats.n_cache_hit_tok = s->n_hit_tok;
    s->stats.n_preempted = s->n_preempted;
    s->stats.n_drafted_tok = s->n_drafted;
    s->stats.n_accepted_tok = s->n_accepted;
    s->stats.n_restored_tok = s->n_restored_tok;
}

void imp_sched_end(imp_sched *s, job_list *from, job *j, imp_finish finish, const imp_error *err)
{
    if (finish != IMP_FINISH_ERROR && j->slot != UINT32_MAX) imp_sched_index(s, j, true);
    imp_sched_end_restore(s, j);
    imp_mutex_lock(s->lock);
    for (size_t i = 0; i < s->n_known; i++) {
        if (s->known[i] != j) continue;
        s->known[i] = s->known[--s->n_known];
        break;
    }
    imp_job_remove(from, j);
    if (from != &s->incoming) imp_fair_leave(&s->fair, j->fair);
    imp_sched_give_cache(s, j);
    imp_sched_give_slot(s, j);
    if (finish == IMP_FINISH_CANCELLED)
        s->stats.n_cancelled++;
    else if (finish == IMP_FINISH_ERROR)
        s->stats.n_failed++;
    else
        s->stats.n_done++;
    publish(s);
    imp_mutex_unlock(s->lock);
    if (s->c.hooks.on_end != NULL) s->c.hooks.on_end(s->c.hooks.user, j, finish);
    imp_job_finish(j, finish, err);
    imp_job_free(j);
}

static bool holds(const job_list *l, const job *j)
{
    const job *k = l->first;
    while (k != NULL && k != j) k = k->next;
    return k != NULL;
}

job_list *imp_sched_list_of(imp_sched *s, const job *j)
{
    return holds(&s->running, j) ? &s->running : holds(&s->waiting, j) ? &s->waiting : &s->embedding;
}

/* Locked. Room for one more in `known`. */
static bool make_room(imp_sched *s)
{
    if (s->n_known < s->cap_known) return true;
    job **more = imp_sys_realloc(s->known, (s->cap_known + 16) * sizeof(job *));
    if (more == NULL) return false;
    s->known = more;
    s->cap_known += 16;
    return true;
}

/* What was copied out of j's cache goes with it, all of it or what there is so far. */
static void take_cache_along(const imp_sched *to, job *j, uint32_t n_past)
{
    imp_push *p = j->push;
    if (p != NULL && p->to != NULL &&
        p->to != to) { /* another unit has begun to take it in: not the two of them */
        atomic_store(&p->closed, true);
        imp_push_unref(p);
        j->push = p = NULL;
    }
    uint32_t n_out = p != NULL ? atomic_load(&p->n_out) * IMP_KV_BLOCK : 0;
    if (p != NULL) j->n_past = j->split ? n_out : IMP_MIN(n_past, n_out);
    j->split = false;
}

imp_status imp_sched_move(imp_sched *from, imp_sched *to, job *j)
{
    int32_t *ids = j->ids;
    if (j->slot != UINT32_MAX) { /* its room stays here: it takes along what it has */
        ids = imp_arena_array(j->memory, j->n_ids, sizeof *ids);
        if (ids == NULL) return IMP_NOMEM;
        memcpy(ids, j->ids, j->n_ids * sizeof *ids);
    }
    imp_mutex_lock(to->lock);
    bool room = make_room(to);
    if (room) to->known[to->n_known++] = j;
    imp_mutex_unlock(to->lock);
    if (!room) return IMP_NOMEM;
    uint32_t n_past = j->n_past;
    if (j->slot != UINT32_MAX) imp_sched_index(from, j, true);
    imp_sched_end_restore(from, j);
    j->asked_disk = j->on_disk = j->held = false;
    imp_mutex_lock(from->lock);
    for (size_t i = 0; i < from->n_known; i++) {
        if (from->known[i] != j) continue;
        from->known[i] = from->known[--from->n_known];
        break;
    }
    imp_job_remove(imp_sched_list_of(from, j), j);
    imp_fair_leave(&from->fair, j->fair);
    imp_sched_give_cache(from, j);
    imp_sched_give_slot(from, j);
    j->ids = j->own_ids = ids;
    take_cache_along(to, j, n_past);
    j->resumed = j->t_start != 0;
    j->next_input = j->n_input_done;
    publish(from);
    imp_mutex_unlock(from->lock);
    imp_mutex_lock(to->lock);
    imp_job_push(&to->incoming, j);
    imp_mutex_unlock(to->lock);
    return IMP_OK;
}

void imp_sched_get_load(imp_sched *s, imp_sched_load *out)
{
    imp_mutex_lock(s->lock);
    *out = s->load;
    for (const job *j = s->incoming.first; j != NULL; j = j->next) add_load(out, j);
    imp_mutex_unlock(s->lock);
}

bool imp_sched_has_work(imp_sched *s)
{
    imp_mutex_lock(s->lock);
    bool work = s->n_known > 0;
    for (const imp_push *p = s->landing; p != NULL && !work; p = p->next)
        work = atomic_load(&p->closed) || (!p->stalled && atomic_load(&p->n_out) > p->n_in);
    imp_mutex_unlock(s->lock);
    return work;
}

bool imp_sched_can_step(imp_sched *s)
{
    if (imp_sched_can_save(s) || imp_sched_restore_has_news(s)) return true;
    if (s->restores == NULL) return imp_sched_has_work(s);
    uint32_t n_held = 0;
    for (const job *j = s->waiting.first; j != NULL; j = j->next) n_held += j->held;
    imp_mutex_lock(s->lock);
    bool more = s->n_known > n_held;
    imp_mutex_unlock(s->lock);
    return more;
}

bool imp_sched_expects(imp_sched *s)
{
    imp_mutex_lock(s->lock);
    bool any = s->landing != NULL || s->restores != NULL || s->save_next != UINT32_MAX;
    imp_mutex_unlock(s->lock);
    return any;
}

/* Take in what was submitted, end what was cancelled. */
static void take_in(imp_sched *s)
{
    imp_mutex_lock(s->lock);
    job_list in = s->incoming;
    s->incoming = (job_list){0};
    imp_mutex_unlock(s->lock);
    while (in.first != NULL) {
        job *j = in.first;
        imp_job_remove(&in, j);
        j->fair = imp_fair_enter(&s->fair, j->r.client);
        imp_job_push(j->r.kind == IMP_REQUEST_EMBED ? &s->embedding : &s->waiting, j);
    }
    job_list *const lists[] = {&s->waiting, &s->running, &s->embedding};
    imp_error e;
    (void)imp_fail(&e, IMP_CANCELLED, "cancelled by the client");
    for (size_t i = 0; i < IMP_COUNT(lists); i++)
        for (job *j = lists[i]->first, *next; j != NULL; j = next) {
            next = j->next;
            if (atomic_load(&j->cancelled)) imp_sched_end(s, lists[i], j, IMP_FINISH_CANCELLED, &e);
        }
}

void imp_sched_publish(imp_sched *s)
{
    imp_mutex_lock(s->lock);
    publish(s);
    imp_mutex_unlock(s->lock);
}

bool imp_sched_step_generate(imp_sched *s, double *decode_s)
{
    *decode_s = 0;
    take_in(s);
    bool did = s->c.generate != NULL && imp_sched_take_landings(s);
    did = imp_sched_take_restored(s) || did;
    did = imp_sched_save_some(s) || did;
    imp_sched_publish(s);
    return imp_step_generate(s, decode_s) || did;
}

bool imp_sched_step_embed(imp_sched *s, double budget_s, double *used_s, bool *pending)
{
    *used_s = 0;
    bool did = imp_step_embed(s, budget_s, used_s);
    *pending = s->embedding.first != NULL;
    return did;
}

bool imp_sched_step(imp_sched *s)
{
    double t;
    bool more, did = imp_sched_step_generate(s, &t);
    return imp_sched_step_embed(s, INFINITY, &t, &more) || did;
}

void imp_sched_drop_cache(imp_sched *s)
{
    void (*leaving)(void *, uint32_t) = s->prefix.leaving;
    s->prefix.leaving = NULL; /* and is not to be kept anywhere */
    while (imp_prefix_evict(&s->prefix)) {
    }
    s->prefix.leaving = leaving;
    imp_sched_publish(s);
}

void imp_sched_add_stats(imp_sched *s, imp_stats *out)
{
    imp_mutex_lock(s->lock);
    const imp_stats *a = &s->stats;
    out->n_request += a->n_request;
    out->n_done += a->n_done;
    out->n_cancelled += a->n_cancelled;
    out->n_failed += a->n_failed;
    out->n_refused += a->n_refused;
    out->n_prompt_tok += a->n_prompt_tok;
    out->n_generated_tok += a->n_generated_tok;
    out->n_embedded_tok += a->n_embedded_tok;
    out->n_step += a->n_step;
    out->step_s += a->step_s;
    out->prefill_s += a->prefill_s;
    out->decode_s += a->decode_s;
    out->n_running += a->n_running;
    out->n_waiting += (uint32_t)s->n_known - a->n_running;
    out->kv_block_used += a->kv_block_used;
    out->kv_block_total += s->kv.n_block;
    out->kv_block_cached += a->kv_block_cached;
    out->n_cache_query_tok += a->n_cache_query_tok;
    out->n_cache_hit_tok += a->n_cache_hit_tok;
    out->n_preempted += a->n_preempted;
    out->n_drafted_tok += a->n_drafted_tok;
    out->n_accepted_tok += a->n_accepted_tok;
    out->n_restored_tok += a->n_restored_tok;
    imp_mutex_unlock(s->lock);
}
