/* tensor/convert.c - rows decoded, encoded and decoded again, row by row on all threads.
 *
 * Idea:    threads take rows in pieces; each has room for two rows as f32. What comes back from the new type is compared
 *          with what went in, so that the error that is reported is the one the decoder sees.
 * Threads: the caller's and the pool's; one call at a time for a pool. */
#include "tensor/convert.h"

#include <math.h>
#include <stdatomic.h>

enum { ROWS_A_TURN = 8 };

typedef struct job {
    const imp_tensor *t;
    uint64_t row, n_row, n_col;
    const imp_dtype_info *to; /* NULL: only look */
    uint64_t out_row_bytes;
    const float *weight;
    uint8_t *out;
    float *room; /* [n_thread][2][n_col] */
    _Atomic uint64_t next;
    imp_convert_error *e;    /* [n_thread] */
    imp_tensor_range *range; /* [n_thread] */
} job;

static void look(const float *x, uint64_t n, imp_tensor_range *r)
{
    for (uint64_t i = 0; i < n; i++) {
        if (!isfinite(x[i]))
            r->n_odd++;
        else
            r->max_abs = fmaxf(r->max_abs, fabsf(x[i]));
    }
}

static void compare(const float *x, const float *y, const float *w, uint64_t n, imp_convert_error *e)
{
    for (uint64_t i = 0; i < n; i++) {
        double d = (double)x[i] - (double)y[i], v = (double)x[i], wi = w != NULL ? (double)w[i] : 1;
        e->err += d * d;
        e->sum += v * v;
        e->weighted_err += wi * d * d;
        e->weighted_sum += wi * v * v;
    }
}

static void take_rows(void *ctx, uint32_t ith, uint32_t n_thread)
{
    job *j = ctx;
    (void)n_thread;
    float *x = j->room + 2 * j->n_col * ith, *y = x + j->n_col;
    for (;;) {
        uint64_t from = atomic_fetch_add(&j->next, ROWS_A_TURN), to = IMP_MIN(from + ROWS_A_TURN, j->n_row);
        if (from >= j->n_row) return;
        for (uint64_t r = from; r < to; r++) {
            imp_tensor_row_f32(j->t, j->row + r, x);
            if (j->to == NULL) {
                look(x, j->n_col, &j->range[ith]);
                continue;
            }
            uint8_t *out = j->out + r * j->out_row_bytes;
            j->to->from_f32(x, j->weight, out, j->n_col);
            j->to->to_f32(out, y, j->n_col);
            compare(x, y, j->weight, j->n_col, &j->e[ith]);
        }
    }
}

static imp_status run(job *j, imp_pool *pool)
{
    uint32_t n = imp_pool_n_thread(pool);
    j->room = imp_sys_malloc(2 * j->n_col * n * sizeof *j->room);
    j->e = imp_sys_calloc(n, sizeof *j->e);
    j->range = imp_sys_calloc(n, sizeof *j->range);
    if (j->room == NULL || j->e == NULL || j->range == NULL) return IMP_NOMEM;
    imp_pool_run_open(pool, take_rows, j);
    return IMP_OK;
}

static void finish(job *j)
{
    imp_sys_free(j->room);
    imp_sys_free(j->e);
    imp_sys_free(j->range);
}

imp_status imp_tensor_scan(const imp_tensor *t, imp_pool *pool, imp_tensor_range *out)
{
    job j = {.t = t, .n_row = imp_tensor_n_row(t), .n_col = imp_tensor_n_col(t)};
    *out = (imp_tensor_range){0};
    imp_status s = run(&j, pool);
    for (uint32_t i = 0; s == IMP_OK && i < imp_pool_n_thread(pool); i++) {
        out->max_abs = fmaxf(out->max_abs, j.range[i].max_abs);
        out->n_odd += j.range[i].n_odd;
    }
    finish(&j);
    return s;
}

imp_status imp_tensor_convert(const imp_tensor *t, uint64_t row, uint64_t n_row, imp_dtype to,
                              const float *weight, imp_pool *pool, void *out, imp_convert_error *e)
{
    job j = {.t = t,
             .row = row,
             .n_row = n_row,
             .n_col = imp_tensor_n_col(t),
             .to = imp_dtype_get(to),
             .weight = weight,
             .out = out};
    IMP_TRY(imp_dtype_bytes(to, j.n_col, &j.out_row_bytes));
    imp_status s = run(&j, pool);
    for (uint32_t i = 0; s == IMP_OK && i < imp_pool_n_thread(pool); i++) {
        e->err += j.e[i].err;
        e->sum += j.e[i].sum;
        e->weighted_err += j.e[i].weighted_err;
        e->weighted_sum += j.e[i].weighted_sum;
    }
    finish(&j);
    return s;
}
