/* sched/sampler_top.c - the next token from the best columns of a row (dev.h), when they decide it.
 *
 * Idea:    a device hands over the 256 best logits in order and the sum of all exponentials instead of 128k logits. What
 *          truncation keeps is nearly always among them; whether it is can be told: by top-k at once, by min-p when the last
 *          of them is below the bar, by top-p when the place of the cut is the same at both ends of what the sum may be.
 * Always:  the token, the state of the random numbers and log probabilities are, to the bit, those of sampler.c with the
 *          whole row; where that cannot be told, the answer is "ask for the row", and nothing has changed. */
#include <math.h>
#include <stdlib.h>

#include "sched/sampler_int.h"

/* What changes logits one by one may bring up columns that are not among the best. */
static bool changes_logits(const imp_sampling *p)
{
    return p->repeat_penalty != 1 || p->presence_penalty != 0 || p->frequency_penalty != 0 || p->n_bias > 0 ||
           p->dry_multiplier > 0;
}

static bool is_greedy(const imp_sampling *p)
{
    return (p->temperature <= 0 && (p->dynatemp_range <= 0 || p->mirostat != 0)) ||
           (p->top_k == 1 && p->mirostat == 0);
}

bool imp_sampler_takes_top(const imp_sampling *p)
{
    if (changes_logits(p)) return false;
    if (is_greedy(p)) return true;
    if (p->mirostat != 0) return false;
    if (p->top_k > 0) return p->top_k <= IMP_DEV_TOP;
    return !(p->typical_p > 0 && p->typical_p < 1) && (p->top_p < 1 || p->min_p > 0);
}

static int by_id(const void *a, const void *b)
{
    const imp_token_prob *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* What the sum may be by the rounding of whoever makes it. */
static double error_of(uint32_t n_vocab)
{
    return ((double)n_vocab + 64) * 0x1p-51;
}

/* Without top-k: how many of the best stay. SIZE_MAX: they do not say. */
static size_t cut(const imp_sampling *p, imp_sampler_scratch *w, const imp_dev_top *t, float max)
{
    size_t n = t->n, m = 0, least = n, most = n;
    float floor = p->min_p > 0 ? max + logf(p->min_p) : -INFINITY;
    while (m < n && w->cand[m].logprob >= floor) m++;
    if (m < 1) m = 1;
    if (p->top_p < 1) {
        double e = error_of(w->n_vocab);
        least = imp_sampler_cut_p(w->cand, n, p->top_p, max, t->sum * (1 - e));
        most = imp_sampler_cut_p(w->cand, n, p->top_p, max, t->sum * (1 + e));
    }
    size_t lo = IMP_MIN(least, m), hi = IMP_MIN(most, m);
    if (lo != hi || hi == n) return SIZE_MAX; /* all of them: the cut may lie behind */
    if (!(p->top_p < 1))
        qsort(w->cand, lo, sizeof *w->cand, by_id); /* the order in which a scan finds them */
    return lo;
}

bool imp_sampler_from_top(imp_sampler *s, imp_sampler_scratch *w, const imp_dev_top *t, int32_t *id)
{
    const imp_sampling *p = &s->p;
    if (!imp_sampler_takes_top(p)) return false;
    *id = -1;
    if (t->n == 0 || t->best[0].logprob == -INFINITY) return true;
    float max = t->best[0].logprob;
    *id = t->best[0].id;
    if (is_greedy(p) || !isfinite(max)) return true;
    memcpy(w->cand, t->best, t->n * sizeof *w->cand);
    size_t m;
    if (p->top_k > 0 && (uint32_t)p->top_k < w->n_vocab)
        m = imp_sampler_truncate(p, w, IMP_MIN((size_t)p->top_k, t->n), max);
    else if (p->typical_p > 0 && p->typical_p < 1)
        return false;
    else
        m = cut(p, w, t, max);
    if (m == SIZE_MAX) return false;
    *id = imp_sampler_choose(s, w, m, max);
    return true;
}

bool imp_logprobs_from_top(const imp_dev_top *t, uint32_t n_vocab, int32_t id, float *logprob,
                           imp_token_prob *top, size_t n)
{
    if (t->n == 0 || !isfinite(t->best[0].logprob) || (n > t->n && t->n == IMP_DEV_TOP)) return false;
    double max = (double)t->best[0].logprob, e = error_of(n_vocab);
    double lo = max + log(t->sum * (1 - e)), hi = max + log(t->sum * (1 + e));
    bool found = false;
    for (size_t i = 0; i < t->n; i++) {
        bool own = t->best[i].id == id;
        if (!own && i >= n) continue;
        float l = (float)((double)t->best[i].logprob - lo);
        if (l != (float)((double)t->best[i].logprob - hi)) return false;
        if (own) *logprob = l, found = true;
        if (i < n && top != NULL) top[i] = (imp_token_prob){t->best[i].id, l};
    }
    for (size_t i = t->n; i < n && top != NULL; i++) top[i] = (imp_token_prob){-1, -INFINITY};
    return found;
}
