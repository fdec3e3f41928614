/* sched/sampler.h - from logits to the next token. */
#ifndef IMP_SAMPLER_H
#define IMP_SAMPLER_H

#include "base/base.h"

/* What a request wants (borrowed pointers: the job owns bias) and where its random numbers stand. */
typedef struct imp_sampler {
    imp_sampling p;
    uint64_t rng;
} imp_sampler;

/* Scratch of one scheduler, shared by all its sequences. */
typedef struct imp_sampler_scratch {
    uint32_t n_vocab;
    float *logit;         /* [n_vocab] */
    imp_token_prob *cand; /* [n_vocab] */
    uint16_t *count;      /* [n_vocab], all zero between calls */
    uint32_t *mask;       /* [n_vocab / 32 + 1] for the caller; words past the vocabulary's stay zero */
} imp_sampler_scratch;

IMP_MUST_USE imp_status imp_sampler_scratch_init(imp_sampler_scratch *s, uint32_t n_vocab);
void imp_sampler_scratch_deinit(imp_sampler_scratch *s);

/* Ranges of every value; INVALID names the field. */
IMP_MUST_USE imp_status imp_sampling_check(const imp_sampling *p, uint32_t n_vocab, imp_error *err);
void imp_sampler_init(imp_sampler *s, const imp_sampling *p);

/* The next token. logits: [n_vocab], read only. ids: the sequence so far, of which the first n_prompt came from the
 * request (the repetition penalty looks at all, presence and frequency at what was generated).
 * Order: penalties and bias, top-k, top-p, min-p, temperature, draw. temperature 0: the largest, lowest id on a tie.
 * mask: bit i % 32 of word i / 32 says that token i may be chosen; NULL: all may.
 * NaN logits are never chosen. -1: there is nothing to choose, every token is banned or NaN. */
int32_t imp_sampler_next(imp_sampler *s, imp_sampler_scratch *scratch, const float *logits,
                         const int32_t *ids, size_t n_ids, size_t n_prompt, const uint32_t *mask);

/* log softmax of the unmodified logits: of token id, and the n best (best first) into top. */
float imp_logprobs(imp_sampler_scratch *scratch, const float *logits, int32_t id, imp_token_prob *top,
                   size_t n);

#endif
