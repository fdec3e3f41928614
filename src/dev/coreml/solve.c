/* dev/coreml/solve.c - Cholesky factors and inverses. */
#include "dev/coreml/solve.h"

#include <math.h>

#include "kern/kern.h"

bool ml_cholesky(float *a, uint64_t k)
{
    const imp_vec *v = imp_vec_get();
    for (uint64_t i = 0; i < k; i++) {
        float *row = a + i * k;
        for (uint64_t j = 0; j < i; j++)
            row[j] = (row[j] - (j > 0 ? v->dot(row, a + j * k, (size_t)j) : 0)) / a[j * k + j];
        float d = row[i] - (i > 0 ? v->dot(row, row, (size_t)i) : 0);
        if (!(d > 0)) return false;
        row[i] = sqrtf(d);
    }
    return true;
}

/* inv = L^-1, lower, zeros above. */
static void invert_lower(const float *l, uint64_t k, float *inv)
{
    const imp_vec *v = imp_vec_get();
    memset(inv, 0, (size_t)(k * k) * sizeof *inv);
    for (uint64_t i = 0; i < k; i++) {
        float *row = inv + i * k, d = 1 / l[i * k + i];
        for (uint64_t m = 0; m < i; m++) v->axpy(row, -l[i * k + m] * d, inv + m * k, (size_t)m + 1);
        row[i] = d;
    }
}

bool ml_inverse(ml_gemm_buf *g, imp_pool *pool, const float *a, uint64_t k, float add, float *inv)
{
    float *l = imp_sys_malloc((size_t)(k * k) * sizeof *l),
          *flipped = imp_sys_malloc((size_t)(k * k) * sizeof *flipped);
    bool ok = l != NULL && flipped != NULL;
    for (int tries = 0; ok && tries < 40; tries++, add = add * 4 + 1e-20f) {
        memcpy(l, a, (size_t)(k * k) * sizeof *l);
        for (uint64_t i = 0; i < k; i++) l[i * k + i] += add;
        if (ml_cholesky(l, k)) break;
    }
    if (ok) {
        invert_lower(l, k, inv);
        ml_flip(flipped, inv, k, k); /* (L L^T)^-1 = L^-T L^-1 */
        ok = ml_gemm_nt(g, pool, flipped, flipped, NULL, inv, k, k, k, k);
    }
    imp_sys_free(l);
    imp_sys_free(flipped);
    return ok;
}
