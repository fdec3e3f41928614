/* dev/coreml/gemm.h - the f32 product of the evaluator and of the packer; private to dev/coreml.
 *
 * Idea:    the CPU device's own kernel for f32 weights, its panels laid out anew for every product.
 * Threads: one caller at a time for a buffer; the pool's threads share the rows. */
#ifndef IMP_ML_GEMM_H
#define IMP_ML_GEMM_H

#include "base/thread.h"

/* Memory that products need, kept between them. All zero at first. */
typedef struct ml_gemm_buf {
    uint8_t *panel, *scratch; /* owned */
    float *flip;              /* owned */
    uint64_t n_panel, n_scratch, n_flip;
} ml_gemm_buf;
void ml_gemm_buf_deinit(ml_gemm_buf *g);

/* c[m][n] = a[m][k] . bt[n][k]^T + bias[m] (NULL: none), rows of c ldc apart. false: out of memory. pool NULL: the caller
 * alone. */
bool ml_gemm_nt(ml_gemm_buf *g, imp_pool *pool, const float *a, const float *bt, const float *bias, float *c,
                uint64_t ldc, uint64_t m, uint64_t k, uint64_t n);
/* The same with b[k][n]. */
bool ml_gemm(ml_gemm_buf *g, imp_pool *pool, const float *a, const float *b, const float *bias, float *c,
             uint64_t m, uint64_t k, uint64_t n);
/* to[c][r] = from[r][c] */
void ml_flip(float *to, const float *from, uint64_t rows, uint64_t cols);

#endif
