/* sched/row.h - one row of a step's result: all of it, or on the device, from which comes what choosing a token takes. */
#ifndef IMP_ROW_H
#define IMP_ROW_H

#include "sched/sampler.h"

typedef struct imp_row {
    imp_exec *x;         /* whose last run made it */
    uint32_t row;        /* of that run */
    const float *logits; /* NULL: it is on the device still */
    imp_status status;   /* what bringing something of it failed with */
    imp_error err;
} imp_row;

/* imp_sampler_next of the row. -1 with status not OK: the device failed. */
int32_t imp_row_next(imp_row *r, imp_sampler *s, imp_sampler_scratch *w, const int32_t *ids, size_t n_ids,
                     size_t n_prompt, const uint32_t *mask);
/* false: the device failed, status says how; else imp_row_logprobs(id, n) works from now on. */
bool imp_row_can_logprobs(imp_row *r, const imp_sampler_scratch *w, int32_t id, size_t n);
/* imp_logprobs of the row. */
float imp_row_logprobs(imp_row *r, imp_sampler_scratch *w, int32_t id, imp_token_prob *top, size_t n);

#endif
