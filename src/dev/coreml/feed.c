/* dev/coreml/feed.c - rounding a matrix with error feedback along its columns. */
#include "dev/coreml/feed.h"

#include <math.h>
#include <stdlib.h>

#include "dev/coreml/solve.h"
#include "kern/kern.h"

enum { BLOCK = 64 };

typedef struct by_size {
    float moment;
    uint32_t col;
} by_size;

static int falling(const void *a, const void *b)
{
    const by_size *x = a, *y = b;
    return x->moment < y->moment ? 1 : x->moment > y->moment ? -1 : x->col < y->col ? -1 : 1;
}

/* a = moments in reversed order with something added to the diagonal. */
static void reversed(const imp_ml_input *in, const uint32_t *order, float add, float *a)
{
    uint64_t k = in->k;
    for (uint64_t i = 0; i < k; i++) {
        const float *from = in->moment + (uint64_t)order[k - 1 - i] * k;
        for (uint64_t j = 0; j <= i; j++) a[i * k + j] = from[order[k - 1 - j]];
        a[i * k + i] += add;
    }
}

bool ml_feed_new(const imp_ml_input *in, float damp, ml_feed *f)
{
    uint64_t k = in->k;
    double mean = 0;
    *f = (ml_feed){.k = k};
    by_size *s = imp_sys_malloc((size_t)k * sizeof *s);
    float *a = imp_sys_malloc((size_t)(k * k) * sizeof *a);
    f->order = imp_sys_malloc((size_t)k * sizeof *f->order);
    f->back = imp_sys_calloc((size_t)k, (size_t)k * sizeof *f->back);
    f->weight = imp_sys_malloc((size_t)k * sizeof *f->weight);
    bool ok = s != NULL && a != NULL && f->order != NULL && f->back != NULL && f->weight != NULL;
    for (uint64_t i = 0; ok && i < k; i++) {
        s[i] = (by_size){in->moment[i * k + i], (uint32_t)i};
        mean += (double)s[i].moment / (double)k;
    }
    if (ok) {
        qsort(s, (size_t)k, sizeof *s, falling);
        for (uint64_t i = 0; i < k; i++) f->order[i] = s[i].col;
        float add = damp * (float)mean + 1e-20f;
        for (int tries = 0; tries < 40; tries++, add *= 4) {
            reversed(in, f->order, add, a);
            if (ml_cholesky(a, k)) break;
        }
        for (uint64_t j = 0; j < k; j++) {
            uint64_t b = k - 1 - j;
            f->weight[f->order[j]] = a[b * k + b] * a[b * k + b];
            for (uint64_t i = 0; i < j; i++) f->back[j * k + i] = a[(k - 1 - i) * k + b] / a[b * k + b];
        }
    }
    imp_sys_free(s);
    imp_sys_free(a);
    if (!ok) ml_feed_deinit(f);
    return ok;
}

void ml_feed_deinit(ml_feed *f)
{
    imp_sys_free(f->order);
    imp_sys_free(f->back);
    imp_sys_free(f->weight);
    *f = (ml_feed){0};
}

typedef struct rounding {
    const ml_feed *f;
    float *w;          /* [n][k], columns as they are in the matrix */
    float *error;      /* [n][k], columns in order */
    const float *base; /* [n][BLOCK]: what blocks before this one feed back */
    uint64_t n, from, to;
    ml_nearest_fn fn;
    void *user;
} rounding;

static void round_rows(void *ctx, uint32_t ith, uint32_t n_thread)
{
    const rounding *r = ctx;
    uint64_t k = r->f->k;
    for (uint64_t i = r->n * ith / n_thread, to = r->n * (ith + 1) / n_thread; i < to; i++) {
        float *w = r->w + i * k, *e = r->error + i * k;
        for (uint64_t j = r->from; j < r->to; j++) {
            const float *back = r->f->back + j * k;
            uint32_t col = r->f->order[j];
            float t = w[col] + (r->from > 0 ? r->base[i * BLOCK + j - r->from] : 0);
            for (uint64_t b = r->from; b < j; b++) t += e[b] * back[b];
            float q = r->fn(r->user, i, col, t);
            e[j] = w[col] - q;
            w[col] = q;
        }
    }
}

bool ml_feed_round(const ml_feed *f, ml_gemm_buf *g, imp_pool *pool, float *w, uint64_t n, ml_nearest_fn fn,
                   void *user)
{
    uint64_t k = f->k;
    float *error = imp_sys_malloc((size_t)(n * k) * sizeof *error);
    float *base = imp_sys_malloc((size_t)(n * BLOCK) * sizeof *base);
    float *done =
        imp_sys_malloc((size_t)(n * k) * sizeof *done); /* errors of finished blocks, side by side */
    float *back = imp_sys_malloc((size_t)(BLOCK * k) * sizeof *back);
    bool ok = error != NULL && base != NULL && done != NULL && back != NULL;
    rounding r = {.f = f, .w = w, .error = error, .base = base, .n = n, .fn = fn, .user = user};
    for (r.from = 0; ok && r.from < k; r.from = r.to) {
        r.to = IMP_MIN(r.from + BLOCK, k);
        uint64_t m = r.to - r.from;
        if (r.from > 0) {
            for (uint64_t i = 0; i < n; i++)
                memcpy(done + i * r.from, error + i * k, (size_t)r.from * sizeof *done);
            for (uint64_t j = 0; j < m; j++)
                memcpy(back + j * r.from, f->back + (r.from + j) * k, (size_t)r.from * sizeof *back);
            ok = ml_gemm_nt(g, pool, done, back, NULL, base, BLOCK, n, r.from, m);
        }
        if (pool != NULL)
            imp_pool_run(pool, round_rows, &r);
        else
            round_rows(&r, 0, 1);
    }
    imp_sys_free(error);
    imp_sys_free(base);
    imp_sys_free(done);
    imp_sys_free(back);
    return ok;
}

bool ml_output_energy(const imp_ml_input *in, ml_gemm_buf *g, imp_pool *pool, const float *d, uint64_t n,
                      bool centred, double *out)
{
    uint64_t k = in->k;
    const imp_vec *v = imp_vec_get();
    float *y = imp_sys_malloc((size_t)(n * k) * sizeof *y);
    *out = 0;
    if (y == NULL || !ml_gemm_nt(g, pool, d, in->moment, NULL, y, k, n, k, k)) {
        imp_sys_free(y);
        return false;
    }
    for (uint64_t i = 0; i < n; i++) {
        double m = centred ? (double)v->dot(d + i * k, in->mean, k) : 0;
        *out += fmax((double)v->dot(d + i * k, y + i * k, k) - m * m, 0);
    }
    imp_sys_free(y);
    return true;
}
