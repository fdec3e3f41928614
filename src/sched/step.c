/* sched/step.c - one step: choose what it computes, run it, hand the results out.
 *
 * Idea:    a sequence is its ids; n_past of them are in the cache, the rest are to be computed. A decode step has one
 *          such id, a prompt many, and the same code serves both. Order within the token budget: sequences that
 *          generate, then running prompts, then new ones (admit.c).
 *          When some generate, what prompts may take is limited (pace.c).
 *          A step without prompts may compute guesses of what comes next (spec.c): their keys and values stand behind
 *          n_past, and count once the guesses have proved right.
 * Always:  every sequence of a step has the blocks for the positions it writes. */
#include "sched/sched_int.h"

/* The running job that has to make room for j: not in the step, placed worse than j, the worst of those. */
static job *victim(const imp_sched *s, const job *j)
{
    job *worst = NULL;
    bool behind = false; /* running is in order of admission: what follows j came later */
    for (job *k = s->running.first; k != NULL; k = k->next) {
        bool worse = k->r.priority > j->r.priority || (k->r.priority == j->r.priority && behind);
        if (k == j) behind = true;
        if (k == j || !worse || k->in_step == s->step_no) continue;
        if (worst == NULL || k->r.priority >= worst->r.priority) worst = k;
    }
    return worst;
}

/* Blocks for the first n_pos positions of j, taken from others if need be. */
static bool claim_blocks(imp_sched *s, job *j, uint32_t n_pos)
{
    while (!imp_sched_blocks(s, j, n_pos)) {
        job *k = victim(s, j);
        if (k == NULL) return false;
        imp_sched_preempt(s, k);
    }
    return true;
}

/* Add the next n tokens of j to the step. */
static void add_seq(imp_sched *s, step *t, job *j, uint32_t n)
{
    s->seq[t->n_seq] = (imp_batch_seq){.first_tok = t->n_tok,
                                       .n_tok = n,
                                       .n_past = j->n_past,
                                       .block = j->block,
                                       .use = j->r.lora,
                                       .n_use = (uint32_t)j->r.n_lora};
    s->seq_job[t->n_seq] = j;
    j->in_step = s->step_no;
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

/* How many of j's tokens this step can take, of at most `most`. */
static uint32_t chunk(const imp_sched *s, const step *t, const job *j, uint32_t most)
{
    const imp_limits *lim = &s->c.generate_limits;
    uint32_t left = (uint32_t)(j->n_ids - j->n_past);
    uint32_t n = IMP_MIN(left, IMP_MIN(lim->max_tok - t->n_tok, most));
    if (s->prefill_only) return left - 1 <= n ? left - 1 : 0; /* in one piece; the last token is not for it */
    uint32_t out_left = lim->max_out - t->n_out;
    if (j->r.kind == IMP_REQUEST_SCORE) return IMP_MIN(n, out_left);
    return n == left && out_left == 0 ? n - 1 : n;
}

/* Running sequences that generate. false: one has to wait for memory. */
static bool choose_decode(imp_sched *s, step *t)
{
    bool room = true;
    for (job *j = s->running.first; j != NULL; j = j->next) {
        if (j->n_ids - j->n_past != 1 || chunk(s, t, j, 1) == 0) continue;
        if (!claim_blocks(s, j, j->n_past + 1)) {
            room = false; /* those in the step go first and free theirs in time */
            continue;
        }
        t->n_decode++;
        add_seq(s, t, j, 1);
    }
    return room;
}

/* The next tokens of a prompt, as many as may go in. false: none; *room: whether there was memory. */
static bool read_prompt(imp_sched *s, step *t, job *j, bool *room)
{
    bool borrows;
    uint32_t n = chunk(s, t, j, imp_pace_most(s, t, j, &borrows));
    bool ok = n > 0;
    if (ok && !claim_blocks(s, j, j->n_past + n)) ok = *room = false;
    t->n_passed += !ok;
    if (!ok) return false;
    imp_pace_take(s, t, j, n, borrows);
    add_seq(s, t, j, n);
    return true;
}

/* Prompts that are being read, then new ones, as far as room and pace go. */
static void choose_prompts(imp_sched *s, step *t, bool room)
{
    const imp_limits *lim = &s->c.generate_limits;
    imp_pace_begin(s, t);
    for (job *j = s->running.first; j != NULL; j = j->next) {
        if (j->in_step == s->step_no || j->n_ids - j->n_past <= 1) continue;
        (void)read_prompt(s, t, j, &room);
    }
    while (room && imp_pace_open(s, t) && s->waiting.first != NULL && s->running.n < lim->max_seq &&
           t->n_tok < lim->max_tok && t->n_seq < lim->max_seq && t->n_out < lim->max_out) {
        job *j = imp_sched_admit(s);
        if (j == NULL || (!read_prompt(s, t, j, &room) && !t->paced)) break;
    }
    imp_pace_end(s, t);
}

/* Push what the step completed of a cache that will be needed elsewhere: whole blocks, at the end also the last. */
static void export_cache(imp_sched *s, job *j)
{
    imp_push *p = j->push;
    imp_error err;
    bool over = j->n_past + s->prefill_only >= j->n_prompt, good;
    uint32_t n = over ? (j->n_past + IMP_KV_BLOCK - 1) / IMP_KV_BLOCK : j->n_past / IMP_KV_BLOCK;
    uint32_t out = atomic_load(&p->n_out), before = out;
    if (over) atomic_store(&p->done, true);
    uint64_t t0 = imp_now_ns();
    good = imp_push_move(p, s->c.generate, j->block + out, out, n - out, true, &err) == IMP_OK;
    if (good) out = n;
    *(over ? &p->late_s : &p->early_s) += (double)(imp_now_ns() - t0) * 1e-9;
    atomic_store(&p->n_out, out);
    if (!good) {
        j->split = false;
        atomic_store(&p->closed, true);
        imp_push_unref(p);
        j->push = NULL;
    } else if (out > before && s->c.hooks.on_pushed != NULL) {
        s->c.hooks.on_pushed(s->c.hooks.user, j);
    }
}

static bool is_end(const imp_net_config *cfg, const job *j, int32_t id)
{
    if (j->r.ignore_eos) return false;
    for (uint32_t i = 0; i < cfg->n_eos; i++)
        if (cfg->eos[i] == id) return true;
    return false;
}

/* The device failed when the step was over: another one takes j, or j ends. */
static bool strand(imp_sched *s, job *j, const imp_error *err)
{
    const imp_sched_hooks *h = &s->c.hooks;
    if (h->on_failed != NULL) h->on_failed(h->user, err);
    if (h->on_stranded == NULL || !h->on_stranded(h->user, j, err))
        imp_sched_end(s, &s->running, j, IMP_FINISH_ERROR, err);
    return false;
}

/* One more token of j, chosen from this row of the result. false: j is not here any more. */
static bool take_row(imp_sched *s, step *t, job *j, uint32_t row)
{
    imp_error err;
    const uint32_t *mask;
    if (imp_constrain_mask(s, j, &mask, &err) != IMP_OK) {
        imp_sched_end(s, &s->running, j, IMP_FINISH_ERROR, &err);
        return false;
    }
    imp_row r = {.x = s->c.generate, .row = row};
    if (t->out != NULL) r.logits = t->out + (size_t)row * s->c.net->cfg.n_vocab;
    int32_t id = imp_row_next(&r, &j->sampler, &s->scratch, j->ids, j->n_ids, j->n_prompt, mask);
    if (id >= 0 && j->r.want_logprobs && !imp_row_can_logprobs(&r, &s->scratch, id, j->r.n_logprobs)) id = -1;
    if (r.status != IMP_OK) return strand(s, j, &r.err);
    if (id < 0) {
        (void)imp_fail(&err, j->r.sampling.n_bias > 0 ? IMP_INVALID : IMP_DEVICE,
                       j->r.sampling.n_bias > 0 ? "logit_bias leaves no token to choose"
                                                : "the model's outputs are no numbers");
        imp_sched_end(s, &s->running, j, IMP_FINISH_ERROR, &err);
        return false;
    }
    t->n_generated++;
    if (j->t_first == 0) j->t_first = imp_now_ns();
    imp_fair_serve(&s->fair, j->fair, IMP_FAIR_GENERATED);
    bool end = is_end(&s->c.net->cfg, j, id);
    bool stopped = imp_job_token(j, id, &s->scratch, &r, end);
    size_t n_chosen = j->n_ids;
    stopped = stopped || (!end && imp_constrain_follow(s, j, id));
    j->spec.n_forced += (uint32_t)(j->n_ids - n_chosen);
    if (end || stopped) {
        imp_sched_end(s, &s->running, j, IMP_FINISH_STOP, NULL);
        return false;
    }
    if (j->n_ids == j->cap_ids) {
        imp_sched_end(s, &s->running, j, IMP_FINISH_LENGTH, NULL);
        return false;
    }
    if (j->split) {
        j->split = false;
        if (s->c.hooks.on_prefilled != NULL && s->c.hooks.on_prefilled(s->c.hooks.user, j)) return false;
        atomic_store(&j->push->closed, true); /* it stays here */
        imp_push_unref(j->push);
        j->push = NULL;
    }
    return true;
}

/* The step computed guesses behind j's last token: choose a token from the first row, then from each further one as long
 * as what was chosen (or had to follow) is what had been guessed. first: the first of all q->n_tok rows of the result. */
static void check_guesses(imp_sched *s, step *t, job *j, const imp_batch_seq *q, uint32_t first)
{
    const int32_t *token = s->token + q->first_tok;
    uint32_t past = j->n_past, row = 0;
    for (bool same = true; same;) {
        j->n_past = past + row + 1;
        if (!take_row(s, t, j, first + row)) return;
        uint32_t last = (uint32_t)j->n_ids - 1 - past, from = row;
        while (row < last && row + 1 < q->n_tok && token[row + 1] == j->ids[past + row + 1]) row++;
        same = row == last;
        j->n_past = past + row + 1;
        j->phase[1].n_tok += same; /* one more token will be chosen */
        j->spec.n_accepted += row - from;
        s->n_accepted += row - from;
    }
    imp_spec_give_room(s, j);
    imp_sched_index(s, j, false);
}

/* What a device that only reads prompts leaves behind goes to the one that generates. */
static void hand_on(imp_sched *s, job *j)
{
    const imp_sched_hooks *h = &s->c.hooks;
    imp_error err;
    bool exported = j->split;
    j->split = false;
    j->read_ahead = true; /* before it goes */
    if (exported && h->on_prefilled != NULL && h->on_prefilled(h->user, j)) return;
    j->read_ahead = false;
    (void)imp_fail(&err, IMP_DEVICE, "its part of the cache could not be taken over");
    if (h->on_stranded != NULL && h->on_stranded(h->user, j, &err)) return;
    imp_sched_end(s, &s->running, j, IMP_FINISH_ERROR, &err);
}

static void hand_out(imp_sched *s, step *t)
{
    size_t n_vocab = s->c.net->cfg.n_vocab;
    for (uint32_t i = 0; i < t->n_seq; i++) {
        job *j = s->seq_job[i];
        uint32_t first = j->n_past, n = s->seq[i].n_tok;
        if (t->n_draft > 0 && n > 1) {
            check_guesses(s, t, j, &s->seq[i], s->seq_out[i]);
            continue;
        }
        j->n_past += n;
        imp_sched_index(s, j, false);
        if (j->split) export_cache(s, j);
        if (s->prefill_only) hand_on(s, j);
        if (s->seq_out[i] == UINT32_MAX) continue;
        if (j->r.kind == IMP_REQUEST_GENERATE) {
            (void)take_row(s, t, j, s->seq_out[i]);
            continue;
        }
        const float *logits = t->out + (size_t)s->seq_out[i] * n_vocab;
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

/* Whether the rows may stay on the device: at least half of the requests need only the best of theirs. */
static bool best_will_do(const imp_sched *s, const step *t)
{
    uint32_t n = 0;
    if (s->c.generate->dev->ops->top == NULL || t->n_out == 0) return false;
    for (uint32_t i = 0; i < t->n_seq; i++) {
        const job *j = s->seq_job[i];
        if (j->r.kind != IMP_REQUEST_GENERATE) return false;
        if (s->seq_out[i] != UINT32_MAX && imp_sampler_takes_top(&j->sampler.p))
            n += t->n_draft > 0 ? s->seq[i].n_tok : 1;
    }
    return 2 * n >= t->n_out;
}

bool imp_step_generate(imp_sched *s, double *decode_s)
{
    *decode_s = 0;
    if (s->c.generate == NULL || (s->running.first == NULL && s->waiting.first == NULL)) return false;
    step t = {0};
    s->step_no++;
    bool room = choose_decode(s, &t);
    choose_prompts(s, &t, room);
    if (t.n_seq == 0) return false;
    imp_spec_widen(s, &t);
    imp_batch b = {.n_tok = t.n_tok,
                   .n_seq = t.n_seq,
                   .n_out = t.n_out,
                   .token = s->token,
                   .pos = s->pos,
                   .seq = s->seq,
                   .out_row = s->out_row};
    b.top = best_will_do(s, &t);
    imp_error err;
    uint64_t t0 = imp_now_ns();
    if (s->c.generate->dev->ops->run(s->c.generate, &b, &t.out, &err) != IMP_OK) {
        imp_step_fail(s, &t, &s->running, &err);
    } else {
        imp_step_account(s, &t, s->c.generate, &b, false, t0);
        if (t.n_tok == t.n_decode + t.n_draft) imp_spec_learn(&s->times, t.n_tok, t.s);
        hand_out(s, &t);
    }
    if (t.n_decode > 0) *decode_s = t.s;
    imp_step_count(s, &t, t0, false);
    return true;
}
