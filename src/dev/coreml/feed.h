/* dev/coreml/feed.h - rounding a matrix column by column, each taking up the errors of those before it; private to
 * dev/coreml.
 *
 * Idea:    with the layer's input moments H = R R^T, R upper triangular in the order of the columns, the output's squared
 *          error of one row is sum_j R_jj^2 (q_j - t_j)^2, where t_j = w_j + sum_{i<j} (w_i - q_i) R_ij / R_jj: each q_j is
 *          the number nearest to t_j.
 * Source:  Chee et al. 2023, "QuIP", section 3 (LDLQ); the same as GPTQ's (Frantar et al. 2022). */
#ifndef IMP_ML_FEED_H
#define IMP_ML_FEED_H

#include "dev/coreml/gemm.h"
#include "dev/coreml/pack.h"

typedef struct ml_feed {
    uint64_t k;
    uint32_t *order; /* [k] columns, the ones with the largest moments first */
    float *back;     /* [k][k] row j (in order): R_ij / R_jj for i < j */
    float *weight;   /* [k] by column: R_jj^2, what an error there costs */
} ml_feed;

/* false: out of memory. damp: of the mean moment, added to every column's. */
bool ml_feed_new(const imp_ml_input *in, float damp, ml_feed *out);
void ml_feed_deinit(ml_feed *f);

/* Round w[n][k] in place: nearest(user, row, column, t) gives q for t. scratch is made inside. */
typedef float (*ml_nearest_fn)(void *user, uint64_t row, uint64_t col, float t);
bool ml_feed_round(const ml_feed *f, ml_gemm_buf *g, imp_pool *pool, float *w, uint64_t n, ml_nearest_fn fn,
                   void *user);

/* The mean over tokens of the squared length of d[n][k] x, the inputs' mean left out when `centred`. */
bool ml_output_energy(const imp_ml_input *in, ml_gemm_buf *g, imp_pool *pool, const float *d, uint64_t n,
                      bool centred, double *out);

#endif
