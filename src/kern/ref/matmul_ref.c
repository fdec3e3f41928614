/* kern/ref/matmul_ref.c - matmul in plain C: every weight type, products summed in f64.
 *
 * Place:   runs where no faster variant does; a truth for the others. */
#include "kern/variant.h"

static uint64_t scratch_bytes(uint64_t k)
{
    return k * sizeof(float);
}

/* y[m][n] = x[m][k] . w[n][k]^T, one decoded row of w at a time. */
static void run(const imp_matmul_args *a)
{
    size_t k = imp_tensor_n_col(a->w);
    float *row = a->scratch;
    for (uint32_t j = a->n0; j < a->n1; j++) {
        imp_tensor_row_f32(a->w, j, row);
        for (uint32_t i = 0; i < a->m; i++) {
            const uint8_t *x = (const uint8_t *)a->x + i * a->x_stride;
            double sum = 0;
            for (size_t c = 0; c < k; c++) {
                float xv;
                memcpy(&xv, x + 4 * c, 4);
                sum += (double)row[c] * (double)xv;
            }
            a->y[i * a->y_stride + j] = (float)(sum + (a->bias ? (double)a->bias[j] : 0));
        }
    }
}

const imp_matmul imp_matmul_any_ref = {
    .name = "any_ref",
    .isa = "ref",
    .dtype = IMP_DTYPE_NONE,
    .x_form = IMP_X_F32,
    .k_multiple = 1,
    .n_step = 1,
    .err_const = 2,
    .scratch_bytes = scratch_bytes,
    .run = run,
};
