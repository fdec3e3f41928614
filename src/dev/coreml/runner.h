/* dev/coreml/runner.h - a converted model run by the evaluator: lengths chosen, chunks chained, the host's part done.
 *
 * Place:   layer 4; convert --verify and the tests compare it with the source model. */
#ifndef IMP_ML_RUNNER_H
#define IMP_ML_RUNNER_H

#include "dev/coreml/convert.h"
#include "dev/coreml/eval.h"

typedef struct imp_ml_runner imp_ml_runner;

/* The packages of one conversion, in order. g: the graph they were made from, borrowed like the pool. */
IMP_MUST_USE imp_status imp_ml_runner_new(const imp_graph *g, const char *const *path, uint32_t n_path,
                                          imp_ml_mode mode, imp_pool *pool, imp_ml_runner **out,
                                          imp_error *err);
void imp_ml_runner_free(imp_ml_runner *r);
/* One sequence from position 0 through all chunks, in the shortest length that holds it. TOO_LARGE: none does. */
IMP_MUST_USE imp_status imp_ml_runner_run(imp_ml_runner *r, const int32_t *token, const int32_t *type,
                                          uint32_t n, imp_error *err);
/* Decode (packages converted with it): the keys and values of the last run become the states' first n positions. */
IMP_MUST_USE imp_status imp_ml_runner_fill(imp_ml_runner *r, uint32_t n, imp_error *err);
/* One token at a position behind those that are in the states. *logits: [n_vocab], the runner's until its next run. */
IMP_MUST_USE imp_status imp_ml_runner_decode(imp_ml_runner *r, int32_t token, uint32_t pos,
                                             const float **logits, imp_error *err);

/* The last run's result called `name`: its elements and their number; *s: the length it ran with. NULL: none of that name. */
const float *imp_ml_runner_out(const imp_ml_runner *r, const char *name, uint64_t *n, uint32_t *s);

typedef struct imp_ml_overflow {
    uint64_t n_saturated, n_nan;
    float max_abs; /* masks, masked scores and what a norm divides by aside */
    char op[96];   /* where the largest magnitude was made */
} imp_ml_overflow;
/* Over everything that ran so far. */
void imp_ml_runner_overflow(const imp_ml_runner *r, imp_ml_overflow *out);

#endif
