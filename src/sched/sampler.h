/* sched/sampler.h - from logits to the next token. */
#ifndef IMP_SAMPLER_H
#define IMP_SAMPLER_H

#include "dev/dev.h"

/* What a request wants (borrowed pointers: the job owns bias) and where its random numbers stand. */
typedef struct imp_sampler {
    imp_sampling p;
    uint64_t rng;
    double mu;               /* mirostat: the most surprise allowed now, in bits */
    const uint8_t *is_break; /* DRY: for each id of the sequence, 1: part of a breaker; NULL: none is */
} imp_sampler;

/* DRY: the end of the sequence's text, in which breakers are looked for. {0} to begin. */
enum { IMP_DRY_BACK = 64 };
typedef struct imp_dry_marks {
    imp_buf text, piece;          /* owned; piece: for the caller, a token's text */
    uint64_t dropped;             /* bytes of the whole text before text.data */
    uint64_t begin[IMP_DRY_BACK]; /* where the last tokens begin in the whole text, by index */
} imp_dry_marks;
/* Token i of a sequence has this text (tokens come in order): set is_break[i], and those of tokens before it that turn out
 * to be part of a breaker. */
void imp_dry_mark(imp_dry_marks *d, const imp_sampling *p, uint8_t *is_break, size_t i, const char *text,
                  size_t n);
void imp_dry_marks_deinit(imp_dry_marks *d);

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
 * Order: penalties and bias, DRY, top-k, typical, top-p, min-p, XTC, temperature (dynamic or not), draw; with mirostat:
 * penalties and bias, DRY, temperature, mirostat, draw. temperature 0: the largest after DRY, lowest id on a tie.
 * mask: bit i % 32 of word i / 32 says that token i may be chosen; NULL: all may.
 * NaN logits are never chosen. -1: there is nothing to choose, every token is banned or NaN. */
int32_t imp_sampler_next(imp_sampler *s, imp_sampler_scratch *scratch, const float *logits,
                         const int32_t *ids, size_t n_ids, size_t n_prompt, const uint32_t *mask);

/* Whether these settings can be decided by the best columns of a row: no penalties, biases, DRY or mirostat (temperature 0
 * is), top-k up to IMP_DEV_TOP, or top-p or min-p without typical sampling. */
bool imp_sampler_takes_top(const imp_sampling *p);
/* imp_sampler_next from the best of the row (with the mask already); *id may be -1. false: they do not decide it, nothing
 * has changed: imp_sampler_next with the whole row does. */
bool imp_sampler_from_top(imp_sampler *s, imp_sampler_scratch *scratch, const imp_dev_top *best, int32_t *id);

/* log softmax of the unmodified logits: of token id, and the n best (best first) into top. */
float imp_logprobs(imp_sampler_scratch *scratch, const float *logits, int32_t id, imp_token_prob *top,
                   size_t n);
/* The same from the best of the row, without a mask. top NULL: only whether. false: they do not say. */
bool imp_logprobs_from_top(const imp_dev_top *best, uint32_t n_vocab, int32_t id, float *logprob,
                           imp_token_prob *top, size_t n);

#endif
