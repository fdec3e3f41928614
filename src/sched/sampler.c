/* sched/sampler.c - from logits to the next token: penalties, truncations, temperature, one random draw.
 *
 * Place:   called by sched/step.c once a generated token. Knows no text.
 * Idea:    truncation needs the best candidates in order, almost never all of them: candidates are collected above a
 *          falling threshold (best logit - 8, - 16, ...) until they hold the mass that top-p asks for; the mass of all
 *          others is known from one pass of exponentials. So a 128k vocabulary is scanned, not sorted.
 * Always:  equal logits, request and seed give the same token: ties go to the lower id; arithmetic order is fixed.
 * Source:  Holtzman et al. 2020 (top-p), Nguyen et al. 2024 (min-p), Keskar et al. 2019 (repetition penalty). */
#include <math.h>
#include <stdlib.h>
#include <time.h>

#include "sched/sampler.h"

void imp_sampling_default(imp_sampling *s)
{
    *s = (imp_sampling){.temperature = 0.8f,
                        .top_k = 40,
                        .top_p = 0.95f,
                        .min_p = 0.05f,
                        .repeat_penalty = 1,
                        .repeat_last_n = 64,
                        .seed = UINT64_MAX};
}

imp_status imp_sampler_scratch_init(imp_sampler_scratch *s, uint32_t n_vocab)
{
    *s = (imp_sampler_scratch){.n_vocab = n_vocab};
    s->logit = imp_sys_calloc(n_vocab, sizeof *s->logit);
    s->cand = imp_sys_calloc(n_vocab, sizeof *s->cand);
    s->count = imp_sys_calloc(n_vocab, sizeof *s->count);
    s->mask = imp_sys_calloc((size_t)n_vocab / 32 + 1, sizeof *s->mask);
    if (s->logit != NULL && s->cand != NULL && s->count != NULL && s->mask != NULL) return IMP_OK;
    imp_sampler_scratch_deinit(s);
    return IMP_NOMEM;
}

void imp_sampler_scratch_deinit(imp_sampler_scratch *s)
{
    imp_sys_free(s->logit);
    imp_sys_free(s->cand);
    imp_sys_free(s->count);
    imp_sys_free(s->mask);
    *s = (imp_sampler_scratch){0};
}

static bool within(float v, float lo, float hi)
{
    return v >= lo && v <= hi;
} /* false for NaN */

imp_status imp_sampling_check(const imp_sampling *p, uint32_t n_vocab, imp_error *err)
{
    if (!within(p->temperature, 0, 100))
        return imp_fail_field(err, IMP_INVALID, "temperature", "temperature must be 0 to 100");
    if (p->top_k < 0) return imp_fail_field(err, IMP_INVALID, "top_k", "top_k must be 0 (off) or more");
    if (!within(p->top_p, 0, 1)) return imp_fail_field(err, IMP_INVALID, "top_p", "top_p must be 0 to 1");
    if (!within(p->min_p, 0, 1)) return imp_fail_field(err, IMP_INVALID, "min_p", "min_p must be 0 to 1");
    if (!within(p->repeat_penalty, 0.01f, 100))
        return imp_fail_field(err, IMP_INVALID, "repeat_penalty", "repeat_penalty must be 0.01 to 100");
    if (p->repeat_last_n < -1)
        return imp_fail_field(err, IMP_INVALID, "repeat_last_n",
                              "repeat_last_n must be -1 (whole sequence), 0 (off) or more");
    if (!within(p->presence_penalty, -2, 2))
        return imp_fail_field(err, IMP_INVALID, "presence_penalty", "presence_penalty must be -2 to 2");
    if (!within(p->frequency_penalty, -2, 2))
        return imp_fail_field(err, IMP_INVALID, "frequency_penalty", "frequency_penalty must be -2 to 2");
    for (size_t i = 0; i < p->n_bias; i++) {
        if (p->bias[i].id < 0 || (uint32_t)p->bias[i].id >= n_vocab)
            return imp_fail_field(err, IMP_INVALID, "logit_bias",
                                  "logit_bias names token %d, the vocabulary has 0 to %u", p->bias[i].id,
                                  n_vocab - 1);
        if (!within(p->bias[i].bias, -100, 100))
            return imp_fail_field(err, IMP_INVALID, "logit_bias", "logit_bias values must be -100 to 100");
    }
    return IMP_OK;
}

/* splitmix64 (Steele et al. 2014): any seed is good, 2^64 steps. */
static uint64_t rng_next(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

void imp_sampler_init(imp_sampler *s, const imp_sampling *p)
{
    static uint64_t n_random; /* only makes two requests of the same nanosecond differ */
    s->p = *p;
    s->rng = p->seed;
    if (p->seed == UINT64_MAX) {
        uint64_t mix[3] = {imp_now_ns(), (uint64_t)time(NULL),
                           __atomic_add_fetch(&n_random, 1, __ATOMIC_RELAXED)};
        s->rng = imp_hash(mix, sizeof mix, 0);
    }
}

/* Best first; equal values by id, so that the order is total. */
static int by_logit(const void *a, const void *b)
{
    const imp_token_prob *x = a, *y = b;
    if (x->logprob != y->logprob) return x->logprob < y->logprob ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static void penalise(const imp_sampling *p, imp_sampler_scratch *w, const int32_t *ids, size_t n_ids,
                     size_t n_prompt)
{
    size_t window = p->repeat_last_n < 0 ? n_ids : IMP_MIN(n_ids, (size_t)p->repeat_last_n);
    size_t first = n_ids - window;
    if (p->repeat_penalty != 1) {
        for (size_t i = first; i < n_ids; i++) {
            if (w->count[ids[i]] != 0) continue;
            w->count[ids[i]] = 1;
            float *l = &w->logit[ids[i]];
            *l = *l > 0 ? *l / p->repeat_penalty : *l * p->repeat_penalty;
        }
        for (size_t i = first; i < n_ids; i++) w->count[ids[i]] = 0;
    }
    if (p->presence_penalty != 0 || p->frequency_penalty != 0) {
        first = IMP_MAX(first, n_prompt);
        for (size_t i = first; i < n_ids; i++)
            if (w->count[ids[i]] < UINT16_MAX) w->count[ids[i]]++;
        for (size_t i = first; i < n_ids; i++) {
            uint16_t *c = &w->count[ids[i]];
            if (*c == 0) continue;
            w->logit[ids[i]] -= p->presence_penalty + p->frequency_penalty * (float)*c;
            *c = 0;
        }
    }
    for (size_t i = 0; i < p->n_bias; i++) {
        if (p->bias[i].bias <= -100)
            w->logit[p->bias[i].id] = -INFINITY;
        else
            w->logit[p->bias[i].id] += p->bias[i].bias;
    }
}

static int32_t argmax(const float *logit, uint32_t n)
{
    int32_t best = -1;
    for (uint32_t i = 0; i < n; i++)
        if (!isnan(logit[i]) && (best < 0 || logit[i] > logit[best])) best = (int32_t)i;
    return best;
}

/* The k best in order by a bounded heap: cand[0] is the worst one kept. */
static size_t best_k(const float *logit, uint32_t n, imp_token_prob *cand, size_t k)
{
    size_t m = 0;
    for (uint32_t i = 0; i < n; i++) {
        imp_token_prob t = {(int32_t)i, logit[i]};
        if (isnan(t.logprob)) continue;
        size_t at;
        if (m < k) { /* sift up: parents are worse than their children */
            for (at = m++; at > 0 && by_logit(&cand[(at - 1) / 2], &t) < 0; at = (at - 1) / 2)
                cand[at] = cand[(at - 1) / 2];
            cand[at] = t;
            continue;
        }
        if (by_logit(&t, &cand[0]) > 0) continue;
        for (at = 0;;) { /* replace the worst, sift down */
            size_t c = 2 * at + 1;
            if (c >= m) break;
            if (c + 1 < m && by_logit(&cand[c + 1], &cand[c]) > 0) c++;
            if (by_logit(&cand[c], &t) <= 0) break;
            cand[at] = cand[c];
            at = c;
        }
        cand[at] = t;
    }
    qsort(cand, m, sizeof *cand, by_logit);
    return m;
}

/* Candidates in order that together hold at least share top_p of the whole mass (total, over exp(max)). */
static size_t best_p(const float *logit, uint32_t n, imp_token_prob *cand, float top_p, float max,
                     double total)
{
    for (float below = 8;; below *= 2) {
        size_t m = 0;
        double held = 0;
        bool whole = below > 1e6f;
        for (uint32_t i = 0; i < n; i++) {
            if (isnan(logit[i]) || (!whole && logit[i] < max - below)) continue;
            cand[m++] = (imp_token_prob){(int32_t)i, logit[i]};
            held += exp((double)logit[i] - max);
        }
        if (!whole && held < (double)top_p * total) continue;
        qsort(cand, m, sizeof *cand, by_logit);
        return m;
    }
}

/* How many of the m ordered candidates top-p keeps. total: the mass that counts as 1, over exp(max). */
static size_t cut_p(const imp_token_prob *cand, size_t m, float top_p, float max, double total)
{
    double sum = 0;
    for (size_t i = 0; i < m; i++) {
        sum += exp((double)cand[i].logprob - max);
        if (sum >= (double)top_p * total) return i + 1;
    }
    return m;
}

int32_t imp_sampler_next(imp_sampler *s, imp_sampler_scratch *w, const float *logits, const int32_t *ids,
                         size_t n_ids, size_t n_prompt, const uint32_t *mask)
{
    const imp_sampling *p = &s->p;
    memcpy(w->logit, logits, w->n_vocab * sizeof *logits);
    for (uint32_t i = 0; mask != NULL && i < w->n_vocab; i++)
        if (!(mask[i / 32] >> (i % 32) & 1)) w->logit[i] = -INFINITY;
    penalise(p, w, ids, n_ids, n_prompt);
    int32_t best = argmax(w->logit, w->n_vocab);
    if (best < 0 || w->logit[best] == -INFINITY) return -1;
    float max = w->logit[best];
    if (p->temperature <= 0 || p->top_k == 1 || !isfinite(max)) return best;

    size_t m = 0;
    double total = 0;
    float floor = p->min_p > 0 ? max + logf(p->min_p) : -INFINITY;
    if (p->top_k > 0 && (uint32_t)p->top_k < w->n_vocab) {
        m = best_k(w->logit, w->n_vocab, w->cand, (size_t)p->top_k);
        for (size_t i = 0; i < m; i++) total += exp((double)w->cand[i].logprob - max);
    } else if (p->top_p < 1) {
        for (uint32_t i = 0; i < w->n_vocab; i++)
            if (!isnan(w->logit[i])) total += exp((double)w->logit[i] - max);
        m = best_p(w->logit, w->n_vocab, w->cand, p->top_p, max, total);
    } else { /* nothing needs an order */
        for (uint32_t i = 0; i < w->n_vocab; i++)
            if (w->logit[i] >= floor) w->cand[m++] = (imp_token_prob){(int32_t)i, w->logit[i]};
        floor = -INFINITY;
    }
    if (p->top_p < 1) m = cut_p(w->cand, m, p->top_p, max, total);
    while (m > 1 && w->cand[m - 1].logprob < floor) m--;
    double sum = 0;
    for (size_t i = 0; i < m; i++) sum += exp(((double)w->cand[i].logprob - max) / (double)p->temperature);
    double x = (double)(rng_next(&s->rng) >> 11) * 0x1p-53 * sum;
    for (size_t i = 0; i < m; i++) {
        x -= exp(((double)w->cand[i].logprob - max) / (double)p->temperature);
        if (x < 0) return w->cand[i].id;
    }
    return w->cand[m - 1].id;
}

float imp_logprobs(imp_sampler_scratch *w, const float *logits, int32_t id, imp_token_prob *top, size_t n)
{
    int32_t best = argmax(logits, w->n_vocab);
    float max = best < 0 ? 0 : logits[best];
    double sum = 0;
    for (uint32_t i = 0; i < w->n_vocab; i++)
        if (!isnan(logits[i])) sum += exp((double)logits[i] - max);
    double norm = max + log(sum);
    if (n > 0) {
        size_t m = best_k(logits, w->n_vocab, w->cand, IMP_MIN(n, w->n_vocab));
        for (size_t i = 0; i < n; i++) {
            top[i] = i < m ? w->cand[i] : (imp_token_prob){-1, -INFINITY};
            if (i < m) top[i].logprob = (float)((double)top[i].logprob - norm);
        }
    }
    return (float)((double)logits[id] - norm);
}
