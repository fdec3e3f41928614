/* dev/coreml/solve.h - dense symmetric systems in f32; private to dev/coreml. */
#ifndef IMP_ML_SOLVE_H
#define IMP_ML_SOLVE_H

#include "dev/coreml/gemm.h"

/* Lower Cholesky factor of a[k][k] in place; what lies above the diagonal stays. false: not positive. */
bool ml_cholesky(float *a, uint64_t k);
/* inv[k][k] = (a + add I)^-1; add grows until that is positive. false: out of memory. */
bool ml_inverse(ml_gemm_buf *g, imp_pool *pool, const float *a, uint64_t k, float add, float *inv);

#endif
