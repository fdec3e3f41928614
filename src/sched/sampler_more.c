/* sched/sampler_more.c - locally typical sampling, XTC, dynamic temperature, mirostat.
 *
 * Idea:    all work on a list of candidates without ordering it: what stays is decided by a threshold that is found in a
 *          part of the list, so that a vocabulary of 128k tokens is scanned a few times, never sorted.
 * Source:  Meister et al. 2022 (locally typical sampling), p-e-w 2024 (XTC, text-generation-webui pull request 6335), Basu
 *          et al. 2021 (mirostat); dynamic temperature by entropy as llama.cpp's server has it. */
#include <math.h>
#include <stdlib.h>

#include "sched/sampler_int.h"

/* ---- locally typical ---------------------------------------------------------------------------------------- */

typedef struct odd {
    imp_token_prob t;
    double by; /* how far its surprise is from the expected one */
} odd;

/* The least odd first; equal ones by id. */
static int by_oddness(const void *a, const void *b)
{
    const odd *x = a, *y = b;
    if (x->by != y->by) return x->by < y->by ? -1 : 1;
    return x->t.id < y->t.id ? -1 : x->t.id > y->t.id;
}

static double oddness(double logit, double norm, double entropy)
{
    return fabs(norm - logit - entropy);
}

/* The candidates whose oddness is at most `within` to the front; *mass: what they hold. */
static size_t gather(imp_token_prob *cand, size_t m, double norm, double entropy, double within, double *mass)
{
    size_t n = 0;
    *mass = 0;
    for (size_t i = 0; i < m; i++) {
        if (!(oddness((double)cand[i].logprob, norm, entropy) <= within)) continue;
        *mass += exp((double)cand[i].logprob - norm);
        imp_token_prob t = cand[n];
        cand[n++] = cand[i];
        cand[i] = t;
    }
    return n;
}

size_t imp_sampler_typical(imp_token_prob *cand, size_t m, float typical_p, double max)
{
    enum { CHUNK = 64 };
    double sum = 0, entropy = 0, mass = 0, lo = 0, hi = 1;
    for (size_t i = 0; i < m; i++) sum += exp((double)cand[i].logprob - max);
    double norm = max + log(sum);
    for (size_t i = 0; i < m; i++) {
        double l = (double)cand[i].logprob - norm, p = exp(l);
        if (p > 0) entropy -= p * l;
    }
    size_t n = gather(cand, m, norm, entropy, hi, &mass);
    while (mass < (double)typical_p && n < m) {
        lo = hi;
        hi *= 2;
        n = gather(cand, m, norm, entropy, hi < 1e6 ? hi : INFINITY, &mass);
    }
    /* The threshold lies between lo and hi: halve that until few candidates are in it, then take those one by one. */
    for (int step = 0; step < 60; step++) {
        double mid = lo + (hi - lo) / 2, held;
        size_t k = gather(cand, n, norm, entropy, mid, &held);
        if (held >= (double)typical_p) {
            hi = mid;
            n = k;
        } else {
            lo = mid;
            if (n - k <= CHUNK) break;
        }
    }
    double held;
    size_t k = gather(cand, n, norm, entropy, lo, &held);
    if (n - k > CHUNK) return n; /* so many of one oddness: all of them */
    odd rest[CHUNK];
    size_t n_rest = n - k;
    for (size_t i = 0; i < n_rest; i++)
        rest[i] = (odd){cand[k + i], oddness((double)cand[k + i].logprob, norm, entropy)};
    qsort(rest, n_rest, sizeof *rest, by_oddness);
    for (size_t i = 0; i < n_rest; i++) {
        if (held >= (double)typical_p && k > 0) break;
        cand[k++] = rest[i].t;
        held += exp((double)rest[i].t.logprob - norm);
    }
    return k;
}

/* ---- XTC ------------------------------------------------------------------------------------------------------ */

size_t imp_sampler_xtc(imp_sampler *s, imp_token_prob *cand, size_t m, double max)
{
    const imp_sampling *p = &s->p;
    if (p->xtc_probability <= 0 || p->xtc_threshold > 0.5f || m < 2) return m;
    if (imp_sampler_uniform(s) >= (double)p->xtc_probability) return m;
    double sum = 0;
    for (size_t i = 0; i < m; i++) sum += exp((double)cand[i].logprob - max);
    size_t n_top = 0,
           last = 0; /* the least likely of those above the threshold; of equal ones the highest id */
    for (size_t i = 0; i < m; i++) {
        if (exp((double)cand[i].logprob - max) < (double)p->xtc_threshold * sum) continue;
        if (n_top++ == 0 || imp_sampler_by_logit(&cand[i], &cand[last]) > 0) last = i;
    }
    if (n_top < 2) return m;
    imp_token_prob keep = cand[last];
    size_t n = 0;
    for (size_t i = 0; i < m; i++)
        if (imp_sampler_by_logit(&cand[i], &keep) >= 0) cand[n++] = cand[i];
    return n;
}

/* ---- dynamic temperature --------------------------------------------------------------------------------------- */

double imp_sampler_temperature(const imp_sampling *p, const imp_token_prob *cand, size_t m, double max)
{
    double t = (double)p->temperature, range = (double)p->dynatemp_range;
    if (range <= 0) return t;
    double lo = t > range ? t - range : 0, hi = t + range, sum = 0, entropy = 0;
    if (m < 2) return t;
    for (size_t i = 0; i < m; i++) sum += exp((double)cand[i].logprob - max);
    for (size_t i = 0; i < m; i++) {
        double l = (double)cand[i].logprob - max - log(sum), x = exp(l);
        if (x > 0) entropy -= x * l;
    }
    double share = entropy / log((double)m);
    return lo + (hi - lo) * pow(share < 0 ? 0 : share, (double)p->dynatemp_exponent);
}

/* ---- mirostat ---------------------------------------------------------------------------------------------------- */

/* The exponent of Zipf's law that the likeliest tokens follow (best first). */
static double zipf(const imp_token_prob *best, size_t n)
{
    double num = 0, den = 0;
    for (size_t i = 0; i + 1 < n; i++) {
        double t = log((double)(i + 2) / (double)(i + 1)),
               b = (double)best[i].logprob - (double)best[i + 1].logprob;
        num += t * b;
        den += t * t;
    }
    return den > 0 ? num / den : 1;
}

/* Version 1: as many of the likeliest as have the surprise wanted. */
static size_t choose_v1(imp_sampler *s, imp_sampler_scratch *w, double temperature)
{
    enum { ESTIMATE = 100 };
    uint32_t n = w->n_vocab;
    size_t m = imp_sampler_best_k(w->logit, n, w->cand, ESTIMATE);
    while (m > 1 && w->cand[m - 1].logprob == -INFINITY) m--; /* banned */
    double sh = zipf(w->cand, m) / temperature, eps = sh - 1;
    double k = pow(eps * pow(2, s->mu) / (1 - pow(n, -eps)), 1 / sh);
    if (!(k >= 1)) k = 1;
    if (k > (double)m) m = imp_sampler_best_k(w->logit, n, w->cand, k < n ? (size_t)k : n);
    return IMP_MIN(m, (size_t)IMP_MIN(k, (double)n));
}

/* Version 2: those whose own surprise is not above mu, and in any case the likeliest. */
static size_t choose_v2(const imp_sampler *s, imp_sampler_scratch *w, double max, double temperature)
{
    double sum = 0;
    for (uint32_t i = 0; i < w->n_vocab; i++)
        if (!isnan(w->logit[i])) sum += exp(((double)w->logit[i] - max) / temperature);
    double least = max - temperature * (s->mu * log(2) - log(sum)); /* the logit whose surprise is mu */
    if (least > max) least = max;
    size_t m = 0;
    for (uint32_t i = 0; i < w->n_vocab; i++)
        if ((double)w->logit[i] >= least) w->cand[m++] = (imp_token_prob){(int32_t)i, w->logit[i]};
    return m;
}

int32_t imp_sampler_mirostat(imp_sampler *s, imp_sampler_scratch *w, double max)
{
    double t = (double)s->p.temperature, sum = 0;
    size_t m = s->p.mirostat == 1 ? choose_v1(s, w, t) : choose_v2(s, w, max, t);
    size_t at = imp_sampler_draw(s, w->cand, m, max, t);
    for (size_t i = 0; i < m; i++) sum += exp(((double)w->cand[i].logprob - max) / t);
    double surprise = log2(sum) - ((double)w->cand[at].logprob - max) / t / log(2);
    s->mu -= (double)s->p.mirostat_eta * (surprise - (double)s->p.mirostat_tau);
    return w->cand[at].id;
}
