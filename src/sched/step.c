/* sched/step.c - one step: choose what it computes, run it, hand the results out.
 *
 * Idea:    a sequence is its ids; n_past of them are in the cache, the rest are to be computed. A decode step has one
 *          such id, a prompt many, and the same code serves both. Order within the token budget: sequences that
 *          generate, then running prompts, then new ones, oldest first.
 *          When the KV pool runs out, the youngest running sequence gives its blocks back and waits at the head of
 *          the queue; computed again, it continues with the very same bytes, because arithmetic does not depend on
 *          chunking or neighbours (design, decision 8).
 * Always:  every sequence of a step has the blocks for the positions it writes. */
#include <math.h>

#include "sched/sched_int.h"

typedef struct step {
    uint32_t n_tok, n_seq, n_out;
    uint32_t n_decode; /* sequences that compute one token */
    uint32_t n_generated;
} step;

static bool ensure_blocks(imp_sched *s, job *j, uint32_t n_pos)
{
    return imp_kv_pool_grow(&s->kv, j->block, &j->n_block, (n_pos + IMP_KV_BLOCK - 1) / IMP_KV_BLOCK);
}

/* Back to the head of the queue, its cache forgotten. */
static void preempt(imp_sched *s, job *j)
{
    imp_log(IMP_LOG_DEBUG, "request %llu waits for KV memory", (unsigned long long)j->id);
    imp_kv_pool_give(&s->kv, j->block, &j->n_block);
    j->n_past = 0;
    imp_job_remove(&s->running, j);
    imp_job_push_front(&s->waiting, j);
}

/* Blocks for the first n_pos positions of j, taken from the youngest sequence if need be. Sequences join a step oldest
 * first, and prompts got all their blocks when they were admitted: so whoever is younger is not in the step yet. */
static bool claim_blocks(imp_sched *s, job *j, uint32_t n_pos)
{
    while (!ensure_blocks(s, j, n_pos)) {
        if (s->running.last == j) return false;
        preempt(s, s->running.last);
    }
    return true;
}

/* Add the next n tokens of j to the step. */
static void add_seq(imp_sched *s, step *t, job *j, uint32_t n)
{
    s->seq[t->n_seq] =
        (imp_batch_seq){.first_tok = t->n_tok, .n_tok = n, .n_past = j->n_past, .block = j->block};
    s->seq_job[t->n_seq] = j;
    s->seq_out[t->n_seq] = UINT32_MAX;
    for (uint32_t i = 0; i < n; i++) {
        s->token[t->n_tok + i] = j->ids[j->n_past + i];
        s->pos[t->n_tok + i] = (int32_t)(j->n_past + i);
    }
    bool all = j->r.kind == IMP_REQUEST_SCORE, last = j->n_past + n == j->n_ids;
    if (all || last) {
        s->seq_out[t->n_seq] = t->n_out;
        for (uint32_t i = all ? 0 : n - 1; i < n; i++) s->out_row[t->n_out++] = t->n_tok + i;
    }
    t->n_tok += n;
    t->n_seq++;
}

/* How many of j's tokens this step can take. */
static uint32_t chunk(const imp_sched *s, const step *t, const job *j)
{
    const imp_limits *lim = &s->c.generate_limits;
    uint32_t left = (uint32_t)(j->n_ids - j->n_past);
    uint32_t n = IMP_MIN(left, lim->max_tok - t->n_tok);
    uint32_t out_left = lim->max_out - t->n_out;
    if (j->r.kind == IMP_REQUEST_SCORE) return IMP_MIN(n, out_left);
    return n == left && out_left == 0 ? n - 1 : n;
}

/* Running sequences that generate (decode) or still read their prompt. false: one has to wait for memory. */
static bool choose_running(imp_sched *s, step *t, bool decode)
{
    for (job *j = s->running.first; j != NULL; j = j->next) {
        if ((j->n_ids - j->n_past == 1) != decode) continue;
        uint32_t n = chunk(s, t, j);
        if (n == 0) continue;
        if (!claim_blocks(s, j, j->n_past + n))
            return false; /* those in the step go first and free theirs in time */
        if (decode) t->n_decode++;
        add_seq(s, t, j, n);
    }
    return true;
}

/* The cache that came with a job from another device goes into its blocks; failing that it is computed again. */
static void import_cache(imp_sched *s, job *j)
{
    const imp_device_ops *ops = s->c.generate->dev->ops;
    imp_error err;
    uint32_t n = (j->n_past + IMP_KV_BLOCK - 1) / IMP_KV_BLOCK;
    bool ok = ops->kv_import != NULL && s->kv_block_bytes > 0 && n <= j->n_pushed && n <= j->n_block;
    for (uint32_t i = 0; ok && i < n; i++)
        ok = ops->kv_import(s->c.generate, j->block[i], j->kv_host + i * s->kv_block_bytes, &err) == IMP_OK;
    if (!ok) j->n_past = 0;
    imp_sys_free(j->kv_host);
    j->kv_host = NULL;
}

/* Push what the step completed of a cache that will be needed elsewhere: whole blocks, at the end also the last. */
static void export_cache(imp_sched *s, job *j)
{
    const imp_device_ops *ops = s->c.generate->dev->ops;
    imp_error err;
    uint32_t n =
        j->n_past >= j->n_prompt ? (j->n_past + IMP_KV_BLOCK - 1) / IMP_KV_BLOCK : j->n_past / IMP_KV_BLOCK;
    for (; j->n_pushed < n && j->split; j->n_pushed++) {
        uint8_t *to = j->kv_host + j->n_pushed * s->kv_block_bytes;
        j->split = ops->kv_export(s->c.generate, j->block[j->n_pushed], to, &err) == IMP_OK;
    }
    if (j->split) return;
    imp_sys_free(j->kv_host);
    j->kv_host = NULL;
}

static void admit_waiting(imp_sched *s, step *t)
{
    const imp_limits *lim = &s->c.generate_limits;
    while (s->waiting.first != NULL && s->running.n < lim->max_seq && t->n_tok < lim->max_tok &&
           t->n_seq < lim->max_seq) {
        job *j = s->waiting.first;
        uint32_t n = chunk(s, t, j);
        bool brings = j->kv_host != NULL && !j->split;
        /* A prompt starts only when all of it finds room, or it would be the first to be thrown out again. */
        if (n == 0 || !ensure_blocks(s, j, (uint32_t)IMP_MIN(j->n_ids + 1, (size_t)s->c.n_ctx))) return;
        imp_job_remove(&s->waiting, j);
        imp_job_push(&s->running, j);
        if (brings) {
            import_cache(s, j);
            n = chunk(s, t, j);
        }
        if (j->t_start == 0) j->t_start = imp_now_ns();
        add_seq(s, t, j, n);
    }
}

static bool is_end(const imp_net_config *cfg, const job *j, int32_t id)
{
    if (j->r.ignore_eos) return false;
    for (uint32_t i = 0; i < cfg->n_eos; i++)
        if (cfg->eos[i] == id) return true;
    return false;
}

static void take_logits(imp_sched *s, step *t, job *j, const float *logits)
{
    int32_t id = imp_sampler_next(&j->sampler, &s->scratch, logits, j->ids, j->n_ids, j->n_prompt);
    if (id < 0) {
        imp_error err;
        (void)imp_fail(&err, j->r.sampling.n_bias > 0 ? IMP_INVALID : IMP_DEVICE,
                       j->r.sampling.n_bias > 0 ? "logit_bias leaves no token to choose"
                                                : "the model's outputs are no numbers");
        imp_sched_end(s, &s->running, j, IMP_FINISH_ERROR, &err);
        return;
    }
    t->n_generated++;
    if (j->t_first == 0) j->t_first = imp_now_ns();
    bool end = is_end(&s->c.net->cfg, j, id);
    bool stopped = imp_job_token(j, id, &s->scratch, logits, end);
    if (end || stopped) {
        imp_sched_end(s, &s->running, j, IMP_FINISH_STOP, NULL);
    } else if (j->n_ids == j->cap_ids) {
        imp_sched_end(s, &s->running, j, IMP_FINISH_LENGTH, NULL);
    } else if (j->split) {
        j->split = false;
        if (s->c.hooks.on_prefilled != NULL && s->c.hooks.on_prefilled(s->c.hooks.user, j)) return;
        imp_sys_free(j->kv_host); /* it stays here */
        j->kv_host = NULL;
    }
}

static void hand_out(imp_sched *s, step *t, const float *out)
{
    size_t n_vocab = s->c.net->cfg.n_vocab;
    for (uint32_t i = 0; i < t->n_seq; i++) {
        job *j = s->seq_job[i];
        uint32_t first = j->n_past, n = s->seq[i].n_tok;
        j->n_past += n;
        if (j->split) export_cache(s, j);
        if (s->seq_out[i] == UINT32_MAX) continue;
        const float *logits = out + (size_t)s->seq_out[i] * n_vocab;
        if (j->r.kind == IMP_REQUEST_GENERATE) {
            take_logits(s, t, j, logits);
            continue;
        }
        for (uint32_t k = 0; k < n; k++) {
            imp_event ev = {.kind = IMP_EVENT_LOGITS,
                            .index = first + k,
                            .vector = logits + k * n_vocab,
                            .n_vector = n_vocab};
            j->r.on_event(j->r.user, j->id, &ev);
        }
        if (j->n_past == j->n_ids) imp_sched_end(s, &s->running, j, IMP_FINISH_STOP, NULL);
    }
}

static void count(imp_sched *s, const step *t, uint64_t t0, bool embed)
{
    double sec = (double)(imp_now_ns() - t0) * 1e-9;
    imp_mutex_lock(s->lock);
    imp_stats *a = &s->stats;
    a->n_step++;
    a->step_s += sec;
    if (embed) {
        a->n_embedded_tok += t->n_tok;
    } else {
        double share = (double)t->n_decode / (double)t->n_tok;
        a->decode_s += sec * share;
        a->prefill_s += sec * (1 - share);
        a->n_generated_tok += t->n_generated;
        a->n_prompt_tok += t->n_tok - t->n_decode;
    }
    imp_mutex_unlock(s->lock);
    imp_sched_publish(s);
}

/* The device refused a step: every sequence in it goes elsewhere or ends with that error. When the device itself has
 * failed, so does everything else that is here; else the others go on. */
static void fail_step(imp_sched *s, const step *t, job_list *list, const imp_error *err)
{
    imp_log(IMP_LOG_ERROR, "a step failed: %s", err->text);
    const imp_sched_hooks *h = &s->c.hooks;
    bool lost = err->status == IMP_DEVICE && h->on_stranded != NULL;
    for (uint32_t i = 0; i < t->n_seq; i++) {
        job *j = s->seq_job[i];
        bool again = false; /* an embedding job may stand in the step with several inputs */
        for (uint32_t k = 0; k < i; k++) again = again || s->seq_job[k] == j;
        if (again) continue;
        if (lost && h->on_stranded(h->user, j, err)) continue;
        imp_sched_end(s, list, j, IMP_FINISH_ERROR, err);
    }
    job_list *const lists[] = {&s->running, &s->waiting, &s->embedding};
    for (size_t l = 0; lost && l < IMP_COUNT(lists); l++)
        for (job *j = lists[l]->first, *next; j != NULL; j = next) {
            next = j->next;
            (void)h->on_stranded(h->user, j, err);
        }
}

/* Seconds the step took, told to the engine and to every job in it. */
static void account(imp_sched *s, const step *t, const imp_exec *x, const imp_batch *b, bool embed,
                    uint64_t t0)
{
    uint64_t ns = x->dev->ops->last_ns != NULL ? x->dev->ops->last_ns(x) : imp_now_ns() - t0;
    double sec = (double)ns * 1e-9, bytes = 0;
    if (s->c.hooks.on_step != NULL) bytes = s->c.hooks.on_step(s->c.hooks.user, b, embed, sec);
    for (uint32_t i = 0; i < t->n_seq; i++) {
        job *j = s->seq_job[i];
        bool decode = !embed && j->n_ids > j->n_prompt && j->n_ids - j->n_past == 1;
        imp_sched_phase *p = &j->phase[decode ? 1 : 0];
        p->n_tok += s->seq[i].n_tok;
        if (i > 0 && s->seq_job[i - 1] == j) continue;
        p->s += sec;
        p->bytes += bytes;
    }
}

bool imp_step_generate(imp_sched *s)
{
    if (s->c.generate == NULL || (s->running.first == NULL && s->waiting.first == NULL)) return false;
    step t = {0};
    bool room = choose_running(s, &t, true);
    room = choose_running(s, &t, false) && room;
    if (room) admit_waiting(s, &t);
    if (t.n_seq == 0) return false;
    imp_batch b = {.n_tok = t.n_tok,
                   .n_seq = t.n_seq,
                   .n_out = t.n_out,
                   .token = s->token,
                   .pos = s->pos,
                   .seq = s->seq,
                   .out_row = s->out_row};
    const float *out = NULL;
    imp_error err;
    uint64_t t0 = imp_now_ns();
    if (s->c.generate->dev->ops->run(s->c.generate, &b, &out, &err) != IMP_OK) {
        fail_step(s, &t, &s->running, &err);
    } else {
        account(s, &t, s->c.generate, &b, false, t0);
        hand_out(s, &t, out);
    }
    count(s, &t, t0, false);
    return true;
}

/* ---- embeddings ------------------------------------------------------------------------------- */

static void choose_inputs(imp_sched *s, step *t)
{
    const imp_limits *lim = &s->c.embed_limits;
    for (job *j = s->embedding.first; j != NULL; j = j->next) {
        if (j->t_start == 0) j->t_start = imp_now_ns();
        for (; j->next_input < j->r.n_input; j->next_input++) {
            uint32_t n = (uint32_t)j->r.n_ids[j->next_input];
            if (t->n_seq == lim->max_seq || n > lim->max_tok - t->n_tok) return;
            s->seq[t->n_seq] = (imp_batch_seq){.first_tok = t->n_tok, .n_tok = n};
            s->seq_job[t->n_seq] = j;
            s->seq_input[t->n_seq] = j->next_input;
            memcpy(s->token + t->n_tok, j->ids + j->input_first[j->next_input], n * sizeof *s->token);
            for (uint32_t i = 0; i < n; i++) s->pos[t->n_tok + i] = (int32_t)i;
            t->n_tok += n;
            t->n_seq++;
        }
    }
}

/* The vector as the request wants it: cut, then normalised. */
static const float *shape_vector(imp_sched *s, const job *j, const float *v, size_t *n)
{
    const imp_net_config *cfg = &s->c.net->cfg;
    bool cut = j->r.dimensions != 0 && j->r.dimensions < cfg->embed_dim;
    *n = cut ? j->r.dimensions : cfg->embed_dim;
    if (j->r.raw_embedding || !(cfg->normalize || cut)) return v;
    double sum = 0;
    for (size_t i = 0; i < *n; i++) sum += (double)v[i] * (double)v[i];
    double inv = sum > 0 ? 1 / sqrt(sum) : 0;
    for (size_t i = 0; i < *n; i++) s->vector[i] = (float)((double)v[i] * inv);
    return s->vector;
}

bool imp_step_embed(imp_sched *s)
{
    if (s->c.embed == NULL || s->embedding.first == NULL) return false;
    step t = {0};
    choose_inputs(s, &t);
    if (t.n_seq == 0) return false;
    imp_batch b = {.n_tok = t.n_tok, .n_seq = t.n_seq, .token = s->token, .pos = s->pos, .seq = s->seq};
    const float *out = NULL;
    imp_error err;
    uint64_t t0 = imp_now_ns();
    if (s->c.embed->dev->ops->run(s->c.embed, &b, &out, &err) != IMP_OK) {
        fail_step(s, &t, &s->embedding, &err);
        count(s, &t, t0, true);
        return true;
    }
    account(s, &t, s->c.embed, &b, true, t0);
    for (uint32_t i = 0; i < t.n_seq; i++) {
        job *j = s->seq_job[i];
        imp_event ev = {.kind = IMP_EVENT_EMBEDDING, .index = s->seq_input[i]};
        ev.vector = shape_vector(s, j, out + (size_t)i * s->c.net->cfg.embed_dim, &ev.n_vector);
        j->r.on_event(j->r.user, j->id, &ev);
        if (++j->n_input_done == j->r.n_input) imp_sched_end(s, &s->embedding, j, IMP_FINISH_STOP, NULL);
    }
    count(s, &t, t0, true);
    return true;
}
