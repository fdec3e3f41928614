/* plan/learn.h - what a unit's real steps taught: corrections to the cost model, with their uncertainty.
 *
 * Place:   layer 5; one a unit. observe after real steps, predict for choices.
 * Idea:    log(actual) = log(sum of item times * exp(correction)). A correction is a sum: the unit as a whole; the op and
 *          dtype when bound by memory or by arithmetic (the efficiencies e_b and e_c); how many rows it computes (for
 *          attention: how many keys), interpolated between powers; the size of its weights; and steps of one model and
 *          shape. So a new shape starts from what its relatives taught. Recursive least squares on the log residual, each
 *          correction weighted by its share of the step. An observation far off is clipped; several in the same direction
 *          mean that the unit itself has changed, and the unit's correction opens up.
 * Always:  predictions are finite and positive whatever was observed.
 * Threads: none of its own; the caller locks.
 * Source:  recursive least squares / extended Kalman filter, any textbook. */
#ifndef IMP_LEARN_H
#define IMP_LEARN_H

#include "plan/cost.h"

enum { IMP_LEARN_KEYS = 160 };

typedef struct imp_learn_key {
    uint32_t key; /* packed op, dtype, which correction, its place; 0: the unit as a whole */
    uint32_t n;
    uint64_t last_ns; /* when it was last taught */
    double theta;     /* log of the factor on time */
} imp_learn_key;

typedef struct imp_learn {
    imp_machine machine;
    imp_learn_key key[IMP_LEARN_KEYS];
    uint32_t n_key;
    double p[IMP_LEARN_KEYS][IMP_LEARN_KEYS]; /* covariance */
    double noise;                             /* variance of one observation's log residual */
    uint64_t n_observed;
    int run;         /* length of the current run of far residuals, negative: below */
    double residual; /* smoothed |log(actual / predicted)| of the last observations */
} imp_learn;

void imp_learn_init(imp_learn *l, const imp_machine *m);
/* with_sd false leaves out->sd 0 and is faster. */
void imp_learn_predict(const imp_learn *l, const imp_cost *c, const imp_cost_shape *sh, bool with_sd,
                       imp_cost_time *out);
/* A step of this shape took `actual` seconds. */
void imp_learn_observe(imp_learn *l, const imp_cost *c, const imp_cost_shape *sh, double actual);
/* predicted * exp(+-1.645 sd) */
void imp_learn_interval(const imp_cost_time *t, double *lo, double *hi);

#endif
