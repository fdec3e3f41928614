/* sched/embed.c - steps of embedding inputs, and what every step has in common.
 *
 * Idea:    inputs are computed whole, many to a step. Beside sequences that generate on the same unit a step takes only as
 *          many as are thought to fit the time it was given, so that those keep their pace. */
#include <math.h>

#include "sched/sched_int.h"

void imp_step_count(imp_sched *s, const step *t, uint64_t t0, bool embed)
{
    double sec = (double)(imp_now_ns() - t0) * 1e-9;
    imp_mutex_lock(s->lock);
    imp_stats *a = &s->stats;
    a->n_step++;
    a->step_s += sec;
    if (embed) {
        a->n_embedded_tok += t->n_tok;
    } else {
        uint32_t n_decode = t->n_decode + t->n_draft;
        double share = (double)n_decode / (double)t->n_tok;
        a->decode_s += sec * share;
        a->prefill_s += sec * (1 - share);
        a->n_generated_tok += t->n_generated;
        a->n_prompt_tok += t->n_tok - n_decode;
    }
    imp_mutex_unlock(s->lock);
    imp_sched_publish(s);
}

/* The device refused a step: every sequence in it goes elsewhere or ends with that error. When the device itself has
 * failed, so does everything else that is here; else the others go on. */
void imp_step_fail(imp_sched *s, const step *t, job_list *list, const imp_error *err)
{
    imp_log(IMP_LOG_ERROR, "a step failed: %s", err->text);
    const imp_sched_hooks *h = &s->c.hooks;
    if (err->status == IMP_DEVICE && h->on_failed != NULL) h->on_failed(h->user, err);
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
    if (err->status == IMP_DEVICE) imp_sched_drop_cache(s); /* who knows what it holds now */
}

/* Seconds the step took, told to the engine and to every job in it. */
void imp_step_account(imp_sched *s, step *t, const imp_exec *x, const imp_batch *b, bool embed, uint64_t t0)
{
    uint64_t ns = x->dev->ops->last_ns != NULL ? x->dev->ops->last_ns(x) : imp_now_ns() - t0;
    double sec = (double)ns * 1e-9, bytes = 0, joules = -1;
    t->s = sec;
    if (s->c.hooks.on_step != NULL) bytes = s->c.hooks.on_step(s->c.hooks.user, b, embed, sec, &joules);
    for (uint32_t i = 0; i < t->n_seq; i++) {
        job *j = s->seq_job[i];
        bool decode = !embed && (j->n_ids > j->n_prompt || j->read_ahead) && j->n_ids - j->n_past == 1;
        imp_sched_phase *p = &j->phase[decode ? 1 : 0];
        p->n_tok += decode ? 1 : s->seq[i].n_tok; /* of guesses those count that prove right */
        if (joules >= 0) p->joules += joules * s->seq[i].n_tok / t->n_tok;
        if (i > 0 && s->seq_job[i - 1] == j) continue;
        p->s += sec;
        if (joules >= 0) p->metered_s += sec;
        p->bytes += bytes;
    }
}

/* What the step is thought to take with one more input of n tokens. */
static double with(const imp_sched *s, imp_cost_shape *sh, uint32_t n)
{
    sh->n_tok += n, sh->n_out += 1, sh->n_seq += 1;
    sh->keys += (double)n * n, sh->kv_tok += n;
    return s->c.hooks.predict != NULL ? s->c.hooks.predict(s->c.hooks.user, sh, true) : 0;
}

static void choose_inputs(imp_sched *s, step *t, double budget_s)
{
    const imp_limits *lim = &s->c.embed_limits;
    imp_cost_shape sh = {0};
    for (job *j = s->embedding.first; j != NULL; j = j->next) {
        if (j->t_start == 0) j->t_start = imp_now_ns();
        imp_job_adapters_run(j);
        for (; j->next_input < j->r.n_input; j->next_input++) {
            uint32_t n = (uint32_t)j->r.n_ids[j->next_input];
            if (t->n_seq == lim->max_seq || n > lim->max_tok - t->n_tok) return;
            if (isfinite(budget_s) && with(s, &sh, n) > budget_s) return;
            s->seq[t->n_seq] = (imp_batch_seq){
                .first_tok = t->n_tok, .n_tok = n, .use = j->r.lora, .n_use = (uint32_t)j->r.n_lora};
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

bool imp_step_embed(imp_sched *s, double budget_s, double *used_s)
{
    if (s->c.embed == NULL || s->embedding.first == NULL) return false;
    step t = {0};
    choose_inputs(s, &t, budget_s);
    if (t.n_seq == 0) return false;
    imp_batch b = {.n_tok = t.n_tok, .n_seq = t.n_seq, .token = s->token, .pos = s->pos, .seq = s->seq};
    const float *out = NULL;
    imp_error err;
    uint64_t t0 = imp_now_ns();
    if (s->c.embed->dev->ops->run(s->c.embed, &b, &out, &err) != IMP_OK) {
        imp_step_fail(s, &t, &s->embedding, &err);
        imp_step_count(s, &t, t0, true);
        return true;
    }
    imp_step_account(s, &t, s->c.embed, &b, true, t0);
    for (uint32_t i = 0; i < t.n_seq; i++) {
        job *j = s->seq_job[i];
        imp_event ev = {.kind = IMP_EVENT_EMBEDDING, .index = s->seq_input[i]};
        ev.vector = shape_vector(s, j, out + (size_t)i * s->c.net->cfg.embed_dim, &ev.n_vector);
        j->r.on_event(j->r.user, j->id, &ev);
        if (++j->n_input_done == j->r.n_input) imp_sched_end(s, &s->embedding, j, IMP_FINISH_STOP, NULL);
    }
    *used_s = t.s;
    imp_step_count(s, &t, t0, true);
    return true;
}
