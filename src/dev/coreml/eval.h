/* dev/coreml/eval.h - runs ML Programs without Core ML: what a package computes, on any machine.
 *
 * Place:   layer 4; used by convert --verify, the lint's overflow check and the tests. Slow on purpose, parallel enough
 *          for a sentence model.
 * Idea:    IMP_ML_F32 computes every op exactly as it is written, in f32. IMP_ML_F16 rounds the result of every fp16 op to
 *          half precision and saturates at 65504, sums inside an op staying f32: a model of the ANE, no measurement.
 * Threads: one caller at a time for an evaluation. */
#ifndef IMP_ML_EVAL_H
#define IMP_ML_EVAL_H

#include "base/thread.h"
#include "fmt/mlpackage.h"

typedef enum imp_ml_mode { IMP_ML_F32, IMP_ML_F16 } imp_ml_mode;

typedef struct imp_ml_eval imp_ml_eval;

/* The package stays borrowed, and so does the pool (NULL: the calling thread alone). */
IMP_MUST_USE imp_status imp_ml_eval_new(const imp_mil_func *f, imp_ml_mode mode, imp_pool *pool,
                                        imp_ml_eval **out, imp_error *err);
void imp_ml_eval_free(imp_ml_eval *e);
/* in: one array a function input, in order, of its elements as f32 (states: NULL, they are kept between runs). */
IMP_MUST_USE imp_status imp_ml_eval_run(imp_ml_eval *e, const float *const *in, imp_error *err);
/* Result i of the last run, its elements in order. */
const float *imp_ml_eval_out(const imp_ml_eval *e, uint32_t i);

/* Input i, which is a state: its elements, zeros at first, to be read and written between runs. NULL: out of memory. */
float *imp_ml_eval_state(imp_ml_eval *e, uint32_t i);

typedef struct imp_ml_peak {
    float max_abs;        /* largest magnitude seen over all runs, before saturation */
    uint64_t n_saturated; /* elements beyond 65504 */
    uint64_t n_nan;
} imp_ml_peak;
/* What variable var of the function has shown so far. */
const imp_ml_peak *imp_ml_eval_peak(const imp_ml_eval *e, uint32_t var);

/* A constant or compressed weight as f32: out holds imp_mil_n_elem numbers. */
void imp_ml_decode(const imp_mil_value *v, float *out);

#endif
