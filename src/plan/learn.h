/* plan/learn.h - efficiencies learned from steps that really ran: start from a machine's numbers, correct them with every
 * step, predict with intervals.
 *
 * Place:   layer 5; the engine keeps one a unit: teach after real steps, predict for choices.
 * Idea:    log(actual) = log(sum of the cost model's times, each times exp(correction)). Corrections stand on two levels.
 *          Of the unit (here): the unit as a whole; starting ops; getting going after a pause; for each op and dtype its
 *          memory time (from memory proper over few rows a curve), its compute time as a curve over the rows it computes
 *          (kernels change their form with them; attention: over the keys a row sees), and what it does once a row.
 *          Recursive least squares on the log residual, each correction weighted by its share of the step. Calibration
 *          teaches them; a model's steps do while their shape is new, seldom afterwards: what is seen for the hundredth
 *          time says nothing new of the ops, and the covariances are large.
 *          Of one model's shapes: cells.h, taught with every lesson.
 * Always:  predictions are finite and positive whatever was observed.
 * Threads: none of its own; the caller locks.
 * Source:  recursive least squares / extended Kalman filter, any textbook; Huber 1964 for the clipping. */
#ifndef IMP_LEARN_H
#define IMP_LEARN_H

#include "plan/cells.h"

enum { IMP_LEARN_KEYS = 256, IMP_LEARN_SLOTS = 512 };

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
    uint16_t slot[IMP_LEARN_SLOTS];           /* where a key is, plus 1: open addressing */
    double p[IMP_LEARN_KEYS][IMP_LEARN_KEYS]; /* covariance */
    imp_cells cells;
    double untaught_s; /* time observed since the ops were taught */
    uint64_t n_observed;
    int run;         /* of the ops' far residuals, by calibration */
    int64_t at;      /* Unix seconds of the last lesson; 0: never */
    double residual; /* smoothed |log(actual / predicted)| of the last observations */
} imp_learn;

void imp_learn_init(imp_learn *l, const imp_machine *m);
/* After key[] was filled from outside. */
void imp_learn_reindex(imp_learn *l);
/* with_sd false leaves out->sd 0 and is faster. */
void imp_learn_predict(const imp_learn *l, const imp_cost *c, const imp_cost_shape *sh, bool with_sd,
                       imp_cost_time *out);
/* A step of this shape took `actual` seconds; or the mean of several steps and of their shapes. */
void imp_learn_observe(imp_learn *l, const imp_cost *c, const imp_cost_shape *sh, double actual);
/* Steps on their way to becoming lessons: those of one kind that follow each other are averaged until they make up
 * LESSON_S of computing, so that a short step's chances weigh little, every step counts and learning costs next to nothing.
 * Zeros to begin with. */
typedef struct imp_lesson {
    const imp_cost *cost; /* NULL: nothing waits */
    imp_cost_shape shape;
    double s;
} imp_lesson;

typedef struct imp_lessons {
    imp_lesson waiting; /* sums */
    double n, credit_s; /* steps in it; time computed and not yet spent on lessons */
} imp_lessons;

/* After a step. Returns how many lessons are due now (0 to 2), filled into due. */
int imp_lessons_add(imp_lessons *q, const imp_cost *c, const imp_cost_shape *sh, double s, imp_lesson due[2]);

/* predicted * exp(+-1.645 sd) */
void imp_learn_interval(const imp_cost_time *t, double *lo, double *hi);

#endif
