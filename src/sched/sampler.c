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

#include "sched/sampler_int.h"

static const char *const g_breaker[] = {"\n", ":", "\"", "*"};

void imp_sampling_default(imp_sampling *s)
{
    *s = (imp_sampling){.typical_p = 1,
                        .dynatemp_exponent = 1,
                        .xtc_threshold = 0.1f,
                        .dry_base = 1.75f,
                        .dry_allowed_length = 2,
                        .dry_last_n = -1,
                        .dry_breaker = g_breaker,
                        .n_dry_breaker = IMP_COUNT(g_breaker),
                        .mirostat_tau = 5,
                        .mirostat_eta = 0.1f,
                        .temperature = 0.8f,
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

imp_status imp_sampling_check(const imp_sampling *p, uint32_t n_vocab, imp_error *err)
{
    const struct {
        const char *name;
        double v, lo, hi;
    } range[] = {
        {"temperature", (double)p->temperature, 0, 100},
        {"top_k", p->top_k, 0, INT32_MAX},
        {"top_p", (double)p->top_p, 0, 1},
        {"min_p", (double)p->min_p, 0, 1},
        {"repeat_penalty", (double)p->repeat_penalty, 0.01, 100},
        {"repeat_last_n", p->repeat_last_n, -1, INT32_MAX},
        {"presence_penalty", (double)p->presence_penalty, -2, 2},
        {"frequency_penalty", (double)p->frequency_penalty, -2, 2},
        {"typical_p", (double)p->typical_p, 0, 1},
        {"dynatemp_range", (double)p->dynatemp_range, 0, 100},
        {"dynatemp_exponent", (double)p->dynatemp_exponent, 0, 100},
        {"xtc_probability", (double)p->xtc_probability, 0, 1},
        {"xtc_threshold", (double)p->xtc_threshold, 0, 1},
        {"dry_multiplier", (double)p->dry_multiplier, 0, 100},
        {"dry_base", (double)p->dry_base, p->dry_multiplier > 0 ? 1 : 0, 10},
        {"dry_allowed_length", p->dry_allowed_length, 0, INT32_MAX},
        {"dry_penalty_last_n", p->dry_last_n, -1, INT32_MAX},
        {"mirostat", p->mirostat, 0, 2},
        {"mirostat_tau", (double)p->mirostat_tau, 0, 100},
        {"mirostat_eta", (double)p->mirostat_eta, 0, 1},
    };
    for (size_t i = 0; i < IMP_COUNT(range); i++)
        if (!(range[i].v >= range[i].lo - 1e-7 && range[i].v <= range[i].hi)) /* false for NaN */
            return imp_fail_field(err, IMP_INVALID, range[i].name, "%s must be %.10g to %.10g", range[i].name,
                                  range[i].lo, range[i].hi);
    for (size_t i = 0; i < p->n_bias; i++) {
        if (p->bias[i].id < 0 || (uint32_t)p->bias[i].id >= n_vocab)
            return imp_fail_field(err, IMP_INVALID, "logit_bias",
                                  "logit_bias names token %d, the vocabulary has 0 to %u", p->bias[i].id,
                                  n_vocab - 1);
        if (!(p->bias[i].bias >= -100 && p->bias[i].bias <= 100))
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
    *s = (imp_sampler){.p = *p, .rng = p->seed, .mu = 2 * (double)p->mirostat_tau};
    if (p->seed == UINT64_MAX) {
        uint64_t mix[3] = {imp_now_ns(), (uint64_t)time(NULL),
                           __atomic_add_fetch(&n_random, 1, __ATOMIC_RELAXED)};
        s->rng = imp_hash(mix, sizeof mix, 0);
    }
}

double imp_sampler_uniform(imp_sampler *s)
{
    return (double)(rng_next(&s->rng) >> 11) * 0x1p-53;
}

/* Best first; equal values by id, so that the order is total. */
int imp_sampler_by_logit(const void *a, const void *b)
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
size_t imp_sampler_best_k(const float *logit, uint32_t n, imp_token_prob *cand, size_t k)
{
    size_t m = 0;
    for (uint32_t i = 0; i < n; i++) {
        imp_token_prob t = {(int32_t)i, logit[i]};
        if (isnan(t.logprob)) continue;
        size_t at;
        if (m < k) { /* sift up: parents are worse than their children */
            for (at = m++; at > 0 && imp_sampler_by_logit(&cand[(at - 1) / 2], &t) < 0; at = (at - 1) / 2)
                cand[at] = cand[(at - 1) / 2];
            cand[at] = t;
            continue;
        }
        if (imp_sampler_by_logit(&t, &cand[0]) > 0) continue;
        for (at = 0;;) { /* replace the worst, sift down */
            size_t c = 2 * at + 1;
            if (c >= m) break;
            if (c + 1 < m && imp_sampler_by_logit(&cand[c + 1], &cand[c]) > 0) c++;
            if (imp_sampler_by_logit(&cand[c], &t) <= 0) break;
            cand[at] = cand[c];
            at = c;
        }
        cand[at] = t;
    }
    qsort(cand, m, sizeof *cand, imp_sampler_by_logit);
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
        qsort(cand, m, sizeof *cand, imp_sampler_by_logit);
        return m;
    }
}

size_t imp_sampler_cut_p(const imp_token_prob *cand, size_t m, float top_p, float max, double total)
{
    double sum = 0;
    for (size_t i = 0; i < m; i++) {
        sum += exp((double)cand[i].logprob - max);
        if (sum >= (double)top_p * total) return i + 1;
    }
    return m;
}

size_t imp_sampler_draw(imp_sampler *s, const imp_token_prob *cand, size_t m, double max, double temperature)
{
    double sum = 0;
    for (size_t i = 0; i < m; i++) sum += exp(((double)cand[i].logprob - max) / temperature);
    double x = imp_sampler_uniform(s) * sum;
    for (size_t i = 0; i < m; i++) {
        x -= exp(((double)cand[i].logprob - max) / temperature);
        if (x < 0) return i;
    }
    return m - 1;
}

/* Every candidate that is at least `floor`, by id. */
static size_t all_from(const imp_sampler_scratch *w, float floor)
{
    size_t m = 0;
    for (uint32_t i = 0; i < w->n_vocab; i++)
        if (w->logit[i] >= floor) w->cand[m++] = (imp_token_prob){(int32_t)i, w->logit[i]};
    return m;
}

static bool is_typical(const imp_sampling *p)
{
    return p->typical_p > 0 && p->typical_p < 1;
}

/* Min-p of the m ordered candidates. */
static size_t cut_min_p(const imp_sampling *p, const imp_token_prob *cand, size_t m, float max)
{
    float floor = p->min_p > 0 ? max + logf(p->min_p) : -INFINITY;
    if (is_typical(p) && m > 0 && cand[0].logprob < max && p->min_p > 0) /* the likeliest may be gone */
        floor = cand[0].logprob + logf(p->min_p);
    while (m > 1 && cand[m - 1].logprob < floor) m--;
    return m;
}

size_t imp_sampler_truncate(const imp_sampling *p, imp_sampler_scratch *w, size_t m, float max)
{
    double total = 0;
    if (is_typical(p)) {
        m = imp_sampler_typical(w->cand, m, p->typical_p, (double)max);
        qsort(w->cand, m, sizeof *w->cand, imp_sampler_by_logit);
    }
    for (size_t i = 0; i < m; i++) total += exp((double)w->cand[i].logprob - max);
    if (p->top_p < 1) m = imp_sampler_cut_p(w->cand, m, p->top_p, max, total);
    return cut_min_p(p, w->cand, m, max);
}

/* Top-k, typical, top-p and min-p: how many candidates are left in w->cand. */
static size_t truncate(const imp_sampling *p, imp_sampler_scratch *w, float max)
{
    bool top_k = p->top_k > 0 && (uint32_t)p->top_k < w->n_vocab, top_p = p->top_p < 1;
    if (top_k)
        return imp_sampler_truncate(p, w, imp_sampler_best_k(w->logit, w->n_vocab, w->cand, (size_t)p->top_k),
                                    max);
    if (is_typical(p)) return imp_sampler_truncate(p, w, all_from(w, -INFINITY), max);
    if (!top_p) return all_from(w, p->min_p > 0 ? max + logf(p->min_p) : -INFINITY); /* in no order */
    double total = 0;
    for (uint32_t i = 0; i < w->n_vocab; i++)
        if (!isnan(w->logit[i])) total += exp((double)w->logit[i] - max);
    size_t m = best_p(w->logit, w->n_vocab, w->cand, p->top_p, max, total);
    return cut_min_p(p, w->cand, imp_sampler_cut_p(w->cand, m, p->top_p, max, total), max);
}

int32_t imp_sampler_choose(imp_sampler *s, imp_sampler_scratch *w, size_t m, float max)
{
    m = imp_sampler_xtc(s, w->cand, m, (double)max);
    double t = imp_sampler_temperature(&s->p, w->cand, m, (double)max);
    if (t < 1e-6) t = 1e-6; /* the likeliest of what is left */
    double top = -INFINITY;
    for (size_t i = 0; i < m; i++) top = IMP_MAX(top, (double)w->cand[i].logprob);
    return w->cand[imp_sampler_draw(s, w->cand, m, top, t)].id;
}

int32_t imp_sampler_next(imp_sampler *s, imp_sampler_scratch *w, const float *logits, const int32_t *ids,
                         size_t n_ids, size_t n_prompt, const uint32_t *mask)
{
    const imp_sampling *p = &s->p;
    memcpy(w->logit, logits, w->n_vocab * sizeof *logits);
    for (uint32_t i = 0; mask != NULL && i < w->n_vocab; i++)
        if (!(mask[i / 32] >> (i % 32) & 1)) w->logit[i] = -INFINITY;
    penalise(p, w, ids, n_ids, n_prompt);
    imp_sampler_dry(s, w, ids, n_ids);
    int32_t best = argmax(w->logit, w->n_vocab);
    if (best < 0 || w->logit[best] == -INFINITY) return -1;
    float max = w->logit[best];
    bool greedy = p->temperature <= 0 && (p->dynatemp_range <= 0 || p->mirostat != 0);
    if (greedy || !isfinite(max) || (p->top_k == 1 && p->mirostat == 0)) return best;
    if (p->mirostat != 0) return imp_sampler_mirostat(s, w, (double)max);
    return imp_sampler_choose(s, w, truncate(p, w, max), max);
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
        size_t m = imp_sampler_best_k(logits, w->n_vocab, w->cand, IMP_MIN(n, w->n_vocab));
        for (size_t i = 0; i < n; i++) {
            top[i] = i < m ? w->cand[i] : (imp_token_prob){-1, -INFINITY};
            if (i < m) top[i].logprob = (float)((double)top[i].logprob - norm);
        }
    }
    return (float)((double)logits[id] - norm);
}
