/* dev/coreml/tune.h - compressing a model by a calibration text: one matrix after the other, each made to repair what those
 * before it did.
 *
 * Place:   called before imp_ml_convert, which takes matrices, biases and scales from the result.
 * Idea:    the graph runs over all texts at once in two streams, as the model is and as it becomes. At each matrix W the input
 *          x of the first stream and x' of the second are known. W becomes the matrix that takes x' nearest to W x (by least
 *          squares, kept near W), for layers that add to a residual stream also by what that stream lacks; it is rounded with
 *          errors fed back over x' (feed.h), the bias takes up what remains on average, and the streams go on.
 * Memory:  two streams of activations: about 20 times the widest layer for each token, and 12 k^2 for the widest input.
 * Source:  Frantar et al. 2022 (GPTQ), Li et al. 2025 (GPTAQ) for fitting to the first stream's outputs. */
#ifndef IMP_ML_TUNE_H
#define IMP_ML_TUNE_H

#include "dev/coreml/batch.h"
#include "dev/coreml/pack.h"

typedef struct imp_ml_tuned_linear {
    imp_ml_coded *part; /* [n_part], the rows in order: one, or the parts of the head */
    uint32_t n_part;
    float *bias; /* [n] instead of the layer's; NULL: as it is */
    float scale; /* of the input as int8; 0: not rounded */
    float *
        smooth; /* [k] powers of two that the input is divided by before it is rounded, and the columns are multiplied
                   by; NULL: none. The same for all readers of a value. */
} imp_ml_tuned_linear;

typedef struct
    imp_ml_distance { /* of the second stream from the first, over texts that nothing was fitted to */
    uint32_t n_text;
    double worst_cosine, mean_cosine; /* of the output's rows */
    double loss;                      /* encoders: of the retrieval order; decoders: 0 */
    double kl, top1;                  /* decoders: KL divergence in nats, share of equal first choices */
} imp_ml_distance;

typedef struct imp_ml_tuned {
    imp_arena *arena;
    imp_ml_tuned_linear **linear; /* [n + 1] by the LINEAR node */
    imp_val n_val;
    uint64_t n_tok; /* that were fitted to */
    imp_ml_distance held_out;
} imp_ml_tuned;

typedef struct imp_ml_tuning {
    const imp_ml_text *text;
    uint32_t n_text, n_held_out; /* the last n_held_out texts are for the distance alone */
    const imp_ml_packing *form;  /* [n + 1] by the LINEAR node */
    bool repair; /* false: matrices are only rounded to the nearest, nothing is fitted or kept */
    imp_pool *pool;
    void (*progress)(void *user, const char *weight);
    void *user;
} imp_ml_tuning;

IMP_MUST_USE imp_status imp_ml_tune(const imp_graph *g, const imp_ml_tuning *o, imp_ml_tuned **out,
                                    imp_error *err);
void imp_ml_tuned_free(imp_ml_tuned *t);
const imp_ml_tuned_linear *imp_ml_tuned_get(const imp_ml_tuned *t,
                                            imp_val v); /* t may be NULL; NULL: not tuned */

/* 1 - the mean rank correlation of every row's similarities to all others: a, b [n][dim]. false: out of memory. */
bool imp_ml_order_loss(const float *a, const float *b, uint32_t n, uint64_t dim, double *loss);
double imp_ml_cosine(const float *a, const float *b, uint64_t n);

#endif
