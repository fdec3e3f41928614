/* sched/sampler_int.h - what the files of the sampler share. Private to sched/sampler*.c. */
#ifndef IMP_SAMPLER_INT_H
#define IMP_SAMPLER_INT_H

#include "sched/sampler.h"

/* Candidates: ids and logits (in imp_token_prob.logprob), over a maximum whose exponential counts as 1. */

double imp_sampler_uniform(imp_sampler *s);             /* the next random number, 0 <= x < 1 */
int imp_sampler_by_logit(const void *a, const void *b); /* for qsort: best first, equal ones by id */
size_t imp_sampler_best_k(const float *logit, uint32_t n, imp_token_prob *cand, size_t k); /* in order */
/* One of the m candidates by the exponentials of (logit - max) / temperature. */
size_t imp_sampler_draw(imp_sampler *s, const imp_token_prob *cand, size_t m, double max, double temperature);

/* How many of the m ordered candidates top-p keeps. total: the mass that counts as 1, over exp(max). */
size_t imp_sampler_cut_p(const imp_token_prob *cand, size_t m, float top_p, float max, double total);
/* Typical, top-p and min-p of the m candidates in w->cand that top-k left, in order: how many are left. */
size_t imp_sampler_truncate(const imp_sampling *p, imp_sampler_scratch *w, size_t m, float max);
/* XTC, temperature and the draw: one of the m candidates that truncation left. */
int32_t imp_sampler_choose(imp_sampler *s, imp_sampler_scratch *w, size_t m, float max);

/* ---- sampler_dry.c ---- */
/* Take from each logit what the token would cost by making a sequence longer that was there before. */
void imp_sampler_dry(const imp_sampler *s, imp_sampler_scratch *w, const int32_t *ids, size_t n_ids);

/* ---- sampler_more.c ---- */
/* Locally typical: how many of the m candidates stay, those first, in no order. */
size_t imp_sampler_typical(imp_token_prob *cand, size_t m, float typical_p, double max);
/* XTC: how many stay, in the order they had. sorted: best first. */
size_t imp_sampler_xtc(imp_sampler *s, imp_token_prob *cand, size_t m, double max);
/* The temperature for these candidates. */
double imp_sampler_temperature(const imp_sampling *p, const imp_token_prob *cand, size_t m, double max);
/* The next token by mirostat from the scratch's logits. */
int32_t imp_sampler_mirostat(imp_sampler *s, imp_sampler_scratch *w, double max);

#endif
