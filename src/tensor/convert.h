/* tensor/convert.h - whole tensors from one type to another, by the threads of a pool. */
#ifndef IMP_CONVERT_H
#define IMP_CONVERT_H

#include "base/thread.h"
#include "tensor/tensor.h"

/* What a tensor's values are like. */
typedef struct imp_tensor_range {
    float max_abs;  /* of the finite ones */
    uint64_t n_odd; /* NaN and infinities */
} imp_tensor_range;

/* Look at every value of t. NOMEM. */
IMP_MUST_USE imp_status imp_tensor_scan(const imp_tensor *t, imp_pool *pool, imp_tensor_range *out);

/* Squared error and squared values, summed over elements; plain and with the weights (equal without). */
typedef struct imp_convert_error {
    double err, sum, weighted_err, weighted_sum;
} imp_convert_error;

/* Rows row .. row + n_row - 1 of t as type `to` (with an encoder, n_col whole blocks, values finite and in range) at out,
 * whole rows one after another. weight: importance of the columns, [n_col], or NULL. *e is added to. NOMEM. */
IMP_MUST_USE imp_status imp_tensor_convert(const imp_tensor *t, uint64_t row, uint64_t n_row, imp_dtype to,
                                           const float *weight, imp_pool *pool, void *out,
                                           imp_convert_error *e);

#endif
