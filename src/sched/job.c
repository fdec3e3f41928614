/* sched/job.c - one accepted request: its memory, its text on the way out, its final event.
 *
 * Idea:    what a job needs is allocated when it is accepted, but for the room of its sequence, which is a slot of the
 *          scheduler's while it runs; afterwards only its text buffers may grow, to the length of the longest token plus
 *          stop string.
 *          Text leaves in three stages: token bytes -> detokenizer (whole characters) -> stop scan (held back while it
 *          may become a stop string) -> callback. Tokens with probabilities leave with the text they end in. */
#include "sched/job.h"

static void *copy(imp_arena *a, const void *p, size_t n, size_t size)
{
    void *q = imp_arena_array(a, n, size);
    if (q != NULL && n > 0) memcpy(q, p, n * size);
    return q;
}

static imp_status copy_request(job *j, const imp_request *r)
{
    imp_arena *a = j->memory;
    size_t *n_ids = copy(a, r->n_ids, r->n_input, sizeof *n_ids);
    imp_logit_bias *bias = copy(a, r->sampling.bias, r->sampling.n_bias, sizeof *bias);
    const char **stop = imp_arena_array(a, r->n_stop, sizeof *stop);
    if (n_ids == NULL || bias == NULL || stop == NULL) return IMP_NOMEM;
    for (size_t i = 0; i < r->n_stop; i++) {
        stop[i] = imp_arena_strndup(a, r->stop[i], strlen(r->stop[i]));
        if (stop[i] == NULL) return IMP_NOMEM;
    }
    const char **breaker = imp_arena_array(a, r->sampling.n_dry_breaker, sizeof *breaker);
    if (breaker == NULL) return IMP_NOMEM;
    for (size_t i = 0; i < r->sampling.n_dry_breaker; i++) {
        breaker[i] = imp_arena_strndup(a, r->sampling.dry_breaker[i], strlen(r->sampling.dry_breaker[i]));
        if (breaker[i] == NULL) return IMP_NOMEM;
    }
    j->r = *r;
    j->r.sampling.dry_breaker = breaker;
    j->r.n_ids = n_ids;
    j->r.sampling.bias = bias;
    j->r.stop = stop;
    j->r.require = NULL; /* the engine's, decided */
    j->r.n_lora = 0;     /* taken below */
    j->r.ids = NULL;     /* in j->ids */
    return IMP_OK;
}

/* The adapters stay as long as the job. What they compute is another model's: beginnings are found among jobs with the same
 * ones only, which are told by their contents, so that a kept cache stays good. */
static imp_status take_adapters(job *j, const imp_request *r)
{
    static const uint8_t key[16] = "impetus adapters";
    imp_adapter_use *use = imp_arena_array(j->memory, r->n_lora, sizeof *use);
    if (use == NULL) return IMP_NOMEM;
    j->r.lora = use;
    j->r.n_lora = 0;
    for (size_t i = 0; i < r->n_lora; i++) {
        if (!(r->lora[i].scale < 0) && !(r->lora[i].scale > 0)) continue;
        imp_adapter_use *u = &use[j->r.n_lora++];
        *u = r->lora[i];
        imp_adapter_ref(u->adapter);
        atomic_fetch_add(&u->adapter->n_waiting, 1);
        struct {
            uint64_t scope, id[2];
            float scale, zero;
        } in = {j->r.cache_scope, {u->adapter->id[0], u->adapter->id[1]}, u->scale, 0};
        uint64_t hash[2];
        imp_siphash(key, &in, sizeof in, hash);
        const uint64_t passing = 1ull << 63; /* stays what it says: not to be kept on disk (restore.c) */
        j->r.cache_scope = (hash[0] & ~passing) | (j->r.cache_scope & passing);
    }
    return IMP_OK;
}

void imp_job_adapters_run(job *j)
{
    for (size_t i = 0; i < j->r.n_lora && !j->adapters_run; i++) {
        atomic_fetch_sub(&j->r.lora[i].adapter->n_waiting, 1);
        atomic_fetch_add(&j->r.lora[i].adapter->n_running, 1);
    }
    j->adapters_run = true;
}

static void give_adapters(job *j)
{
    for (size_t i = 0; i < j->r.n_lora; i++) {
        imp_adapter *a = j->r.lora[i].adapter;
        atomic_fetch_sub(j->adapters_run ? &a->n_running : &a->n_waiting, 1);
        imp_adapter_unref(a);
    }
    j->r.n_lora = 0;
}

static imp_status alloc_sequence(job *j, uint32_t n_ctx)
{
    imp_arena *a = j->memory;
    j->cap_ids = j->n_prompt;
    if (j->r.kind == IMP_REQUEST_GENERATE) {
        size_t room = n_ctx - j->n_prompt;
        if (j->r.max_tok == 0 || j->r.max_tok > room) j->r.max_tok = (uint32_t)room;
        j->cap_ids += j->r.max_tok;
    }
    j->ids = imp_arena_array(a, j->n_prompt, sizeof *j->ids);
    if (j->r.want_logprobs) {
        /* A held-back stretch is at most the longest stop string plus an unfinished character: a token has at least
         * one byte, except those without text, so the bound is generous. */
        j->cap_token = 64;
        for (size_t i = 0; i < j->r.n_stop; i++)
            j->cap_token = IMP_MAX(j->cap_token, strlen(j->r.stop[i]) + 64);
        j->token = imp_arena_array(a, j->cap_token, sizeof *j->token);
        j->token_at = imp_arena_array(a, j->cap_token, sizeof *j->token_at);
        j->top = imp_arena_array(a, j->cap_token * IMP_MAX(1u, j->r.n_logprobs), sizeof *j->top);
        if (j->token == NULL || j->token_at == NULL || j->top == NULL) return IMP_NOMEM;
    }
    return j->ids == NULL ? IMP_NOMEM : IMP_OK;
}

/* Id i of the sequence is part of a breaker, or not. */
static void mark_break(job *j, size_t i)
{
    imp_dry_marks *d = j->dry;
    d->piece.n = 0;
    imp_detok_push(&j->dry_detok, j->ids[i], &d->piece);
    imp_dry_mark(d, &j->r.sampling, j->is_break, i, d->piece.data, d->piece.n);
}

/* DRY with breakers looks at text: the prompt's now, what is generated as it comes. */
static imp_status start_dry(job *j, const imp_tokenizer *tok)
{
    enum { ROOM = 8192 }; /* so that generating takes no memory */
    const imp_sampling *p = &j->r.sampling;
    if (j->r.kind != IMP_REQUEST_GENERATE || p->dry_multiplier <= 0 || p->n_dry_breaker == 0 || tok == NULL)
        return IMP_OK;
    j->dry = imp_arena_alloc(j->memory, sizeof *j->dry);
    j->is_break = imp_arena_array(j->memory, j->cap_ids, 1);
    if (j->dry == NULL || j->is_break == NULL) return IMP_NOMEM;
    imp_detok_init(&j->dry_detok, tok, true);
    imp_detok_continue(&j->dry_detok);
    bool room = imp_buf_reserve(&j->dry->text, ROOM) && imp_buf_reserve(&j->dry->piece, ROOM);
    for (size_t i = 0; i < j->n_prompt && room; i++) mark_break(j, i);
    j->sampler.is_break = j->is_break;
    return room ? IMP_OK : IMP_NOMEM;
}

imp_status imp_job_new(const imp_request *r, uint64_t id, const imp_tokenizer *tok, uint32_t n_ctx, job **out)
{
    *out = NULL;
    job *j = imp_sys_calloc(1, sizeof *j);
    if (j == NULL) return IMP_NOMEM;
    j->memory = imp_arena_new(1024);
    j->id = id;
    j->slot = UINT32_MAX;
    j->t_submit = imp_now_ns();
    imp_status s = j->memory == NULL ? IMP_NOMEM : copy_request(j, r);
    if (s == IMP_OK) {
        for (size_t i = 0; i < r->n_input; i++) j->n_prompt += r->n_ids[i];
        if (r->kind == IMP_REQUEST_EMBED) {
            j->ids = imp_arena_array(j->memory, j->n_prompt, sizeof *j->ids);
            j->input_first = imp_arena_array(j->memory, r->n_input, sizeof *j->input_first);
            if (j->ids == NULL || j->input_first == NULL) s = IMP_NOMEM;
            for (size_t i = 1; s == IMP_OK && i < r->n_input; i++)
                j->input_first[i] = j->input_first[i - 1] + r->n_ids[i - 1];
        } else {
            s = alloc_sequence(j, n_ctx);
        }
    }
    if (s == IMP_OK) s = take_adapters(j, r);
    if (s == IMP_OK && r->constraint != NULL) s = imp_matcher_new(r->constraint, &j->matcher);
    if (s != IMP_OK) {
        imp_job_free(j);
        return s;
    }
    memcpy(j->ids, r->ids, j->n_prompt * sizeof *j->ids);
    j->own_ids = j->ids;
    j->n_ids = j->n_prompt;
    imp_sampler_init(&j->sampler, &j->r.sampling);
    if (start_dry(j, tok) != IMP_OK) {
        imp_job_free(j);
        return IMP_NOMEM;
    }
    imp_stop_init(&j->stop, j->r.stop, j->r.n_stop);
    if (tok != NULL) imp_detok_init(&j->detok, tok, false);
    if (tok != NULL && !r->fresh_text) imp_detok_continue(&j->detok);
    *out = j;
    return IMP_OK;
}

void imp_job_free(job *j)
{
    if (j == NULL) return;
    imp_stop_deinit(&j->stop);
    if (j->push != NULL) atomic_store(&j->push->closed, true);
    imp_push_unref(j->push);
    imp_matcher_free(j->matcher);
    give_adapters(j);
    if (j->dry != NULL) imp_dry_marks_deinit(j->dry);
    imp_arena_free(j->memory);
    imp_sys_free(j);
}

/* Hand out the first n held bytes, with the tokens that have a part in them or need no more (all tokens when last). */
static void release(job *j, size_t n, bool last)
{
    uint64_t end = j->n_released + n;
    size_t n_token = 0;
    while (n_token < j->n_token &&
           (last || j->token_at[n_token].from < end || j->token_at[n_token].to <= end))
        n_token++;
    if (n == 0 && n_token == 0) return;
    imp_event ev = {.kind = IMP_EVENT_TEXT,
                    .text = j->stop.held.data != NULL ? j->stop.held.data : "",
                    .n_text = n,
                    .tokens = j->token,
                    .n_tokens = n_token,
                    .top = j->top,
                    .n_top = j->r.n_logprobs};
    j->r.on_event(j->r.user, j->id, &ev);
    j->n_released = end;
    if (n > 0) imp_stop_drop(&j->stop, n);
    if (n_token > 0) {
        j->n_token -= n_token;
        memmove(j->token, j->token + n_token, j->n_token * sizeof *j->token);
        memmove(j->token_at, j->token_at + n_token, j->n_token * sizeof *j->token_at);
        memmove(j->top, j->top + n_token * j->r.n_logprobs, j->n_token * j->r.n_logprobs * sizeof *j->top);
    }
}

bool imp_job_token(job *j, int32_t id, imp_sampler_scratch *scratch, imp_row *row, bool is_end)
{
    j->ids[j->n_ids++] = id;
    if (j->dry != NULL) mark_break(j, j->n_ids - 1);
    if (is_end) return false; /* the end token has no text */
    uint64_t from = j->n_released + j->stop.held.n;
    if (j->detok.t != NULL) imp_detok_push(&j->detok, id, &j->stop.held); /* no tokenizer: no text */
    if (j->r.want_logprobs && j->n_token < j->cap_token) {
        size_t i = j->n_token++;
        j->token[i].id = id;
        j->token[i].logprob =
            imp_row_logprobs(row, scratch, id, j->top + i * j->r.n_logprobs, j->r.n_logprobs);
        j->token_at[i].from = from;
        j->token_at[i].to = j->n_released + j->stop.held.n;
    }
    size_t n;
    bool stopped = imp_stop_scan(&j->stop, &n);
    release(j, n, false);
    if (stopped) {
        imp_stop_drop(&j->stop, j->stop.held.n); /* the stop string and what followed it */
        j->n_token = 0;
        j->detok.n_hold = 0;
    }
    return stopped;
}

void imp_job_finish(job *j, imp_finish finish, const imp_error *err)
{
    if (j->r.kind == IMP_REQUEST_GENERATE && (finish == IMP_FINISH_STOP || finish == IMP_FINISH_LENGTH)) {
        if (j->detok.t != NULL) imp_detok_flush(&j->detok, &j->stop.held);
        release(j, j->stop.held.n, true);
    }
    j->t_end = imp_now_ns();
    uint64_t start = j->t_start != 0 ? j->t_start : j->t_end, first = j->t_first != 0 ? j->t_first : j->t_end;
    imp_event ev = {.kind = IMP_EVENT_DONE, .finish = finish, .error = err, .stop = j->stop.hit};
    ev.usage = (imp_usage){.n_prompt = (uint32_t)j->n_prompt,
                           .n_cached = j->n_cached,
                           .n_generated = (uint32_t)(j->n_ids - j->n_prompt),
                           .queue_ms = (double)(start - j->t_submit) * 1e-6,
                           .prefill_ms = (double)(first - start) * 1e-6,
                           .decode_ms = (double)(j->t_end - first) * 1e-6};
    j->r.on_event(j->r.user, j->id, &ev);
}

void imp_sched_job_get(const job *j, imp_sched_job_info *out)
{
    uint64_t start = j->t_start != 0 ? j->t_start : imp_now_ns();
    *out = (imp_sched_job_info){.tag = j->tag,
                                .kind = j->r.kind,
                                .n_prompt = (uint32_t)j->n_prompt,
                                .adapters = j->r.n_lora > 0,
                                .n_generated = (uint32_t)(j->n_ids - j->n_prompt),
                                .cap = (uint32_t)j->cap_ids,
                                .phase = {j->phase[0], j->phase[1]},
                                .n_cached = j->n_cached,
                                .n_restored = IMP_MIN(j->n_restored, j->n_cached),
                                .restore_ms = (double)j->restore_ns * 1e-6,
                                .n_drafted = j->spec.n_drafted,
                                .n_accepted = j->spec.n_accepted,
                                .queue_ms = (double)(start - j->t_submit) * 1e-6,
                                .handover = j->handover};
}

void imp_job_push(job_list *l, job *j)
{
    j->next = NULL;
    if (l->last != NULL)
        l->last->next = j;
    else
        l->first = j;
    l->last = j;
    l->n++;
}

void imp_job_push_front(job_list *l, job *j)
{
    j->next = l->first;
    l->first = j;
    if (l->last == NULL) l->last = j;
    l->n++;
}

void imp_job_remove(job_list *l, job *j)
{
    job *prev = NULL;
    for (job *k = l->first; k != NULL; prev = k, k = k->next) {
        if (k != j) continue;
        if (prev != NULL)
            prev->next = j->next;
        else
            l->first = j->next;
        if (l->last == j) l->last = prev;
        l->n--;
        j->next = NULL;
        return;
    }
}
