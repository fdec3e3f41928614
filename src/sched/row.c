/* sched/row.c - one row of a step's result; see row.h.
 *
 * Place:   step.c chooses tokens with it, job.c tells their log probabilities.
 * Idea:    a device that finds the best columns itself is asked for those; for the whole row only when they do not decide.
 * Always:  what is chosen and told is the same either way. */
#include "sched/row.h"

static bool bring(imp_row *r)
{
    if (r->logits == NULL) r->status = r->x->dev->ops->row(r->x, r->row, &r->logits, &r->err);
    return r->status == IMP_OK;
}

static bool best(imp_row *r, const uint32_t *mask, imp_dev_top *out)
{
    r->status = r->x->dev->ops->top(r->x, r->row, mask, out, &r->err);
    return r->status == IMP_OK;
}

int32_t imp_row_next(imp_row *r, imp_sampler *s, imp_sampler_scratch *w, const int32_t *ids, size_t n_ids,
                     size_t n_prompt, const uint32_t *mask)
{
    if (r->logits == NULL && imp_sampler_takes_top(&s->p)) {
        imp_dev_top t;
        int32_t id;
        if (!best(r, mask, &t)) return -1;
        if (imp_sampler_from_top(s, w, &t, &id)) return id;
    }
    return bring(r) ? imp_sampler_next(s, w, r->logits, ids, n_ids, n_prompt, mask) : -1;
}

bool imp_row_can_logprobs(imp_row *r, const imp_sampler_scratch *w, int32_t id, size_t n)
{
    imp_dev_top t;
    float l;
    if (r->logits != NULL) return true;
    if (!best(r, NULL, &t)) return false;
    return imp_logprobs_from_top(&t, w->n_vocab, id, &l, NULL, n) || bring(r);
}

float imp_row_logprobs(imp_row *r, imp_sampler_scratch *w, int32_t id, imp_token_prob *top, size_t n)
{
    imp_dev_top t;
    float l;
    if (r->logits == NULL && best(r, NULL, &t) && imp_logprobs_from_top(&t, w->n_vocab, id, &l, top, n))
        return l;
    return imp_logprobs(w, r->logits, id, top, n);
}
