/* dev/coreml/kmeans.c - palettes: one-dimensional k-means over half-precision values.
 *
 * Idea:    weights become fp16 anyway, so there are at most 65536 different ones: they are counted by code, in order, and
 *          running sums turn every cluster's mean and error into two subtractions. Lloyd's steps from two starts
 *          (quantiles of the cube-root density, and an even grid); the better one is kept.
 * Source:  Lloyd 1982; Panter and Dite 1951 for the start. */
#include <math.h>

#include "dev/coreml/pack.h"

enum { N_CODE = 65536, STEPS = 200 };

struct imp_ml_kmeans {
    double count[N_CODE], sum[N_CODE]; /* by ordered code */
    uint32_t n;                        /* codes that occur, compacted below */
    double x[N_CODE], c1[N_CODE + 1], cx[N_CODE + 1], cxx[N_CODE + 1];
    uint32_t lo, hi; /* range of codes in use */
};

imp_ml_kmeans *imp_ml_kmeans_new(void)
{
    imp_ml_kmeans *s = imp_sys_calloc(1, sizeof *s);
    if (s != NULL) imp_ml_kmeans_reset(s);
    return s;
}

void imp_ml_kmeans_free(imp_ml_kmeans *s)
{
    imp_sys_free(s);
}

void imp_ml_kmeans_reset(imp_ml_kmeans *s)
{
    if (s->lo <= s->hi && s->hi < N_CODE) {
        memset(s->count + s->lo, 0, (s->hi - s->lo + 1) * sizeof *s->count);
        memset(s->sum + s->lo, 0, (s->hi - s->lo + 1) * sizeof *s->sum);
    }
    s->lo = N_CODE;
    s->hi = 0;
}

/* Codes in the order of the numbers: negative ones turned round, positive ones above them. */
static uint32_t ordered(uint16_t h)
{
    return h & 0x8000 ? 0xffffu ^ h : h | 0x8000u;
}

void imp_ml_kmeans_add(imp_ml_kmeans *s, const float *x, const float *weight, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        uint32_t c = ordered(imp_f32_to_f16(x[i]));
        double w = weight != NULL ? (double)weight[i] : 1;
        s->count[c] += w;
        s->sum[c] += w * (double)x[i];
        s->lo = IMP_MIN(s->lo, c);
        s->hi = IMP_MAX(s->hi, c);
    }
}

static void compact(imp_ml_kmeans *s)
{
    s->n = 0;
    for (uint32_t c = s->lo; c <= s->hi && c < N_CODE; c++) {
        if (s->count[c] <= 0) continue;
        double x = s->sum[c] / s->count[c];
        s->x[s->n] = x;
        s->c1[s->n + 1] = s->c1[s->n] + s->count[c];
        s->cx[s->n + 1] = s->cx[s->n] + s->sum[c];
        s->cxx[s->n + 1] = s->cxx[s->n] + s->sum[c] * x;
        s->n++;
    }
}

/* The first value not below `at`, searched from `from`. */
static uint32_t first_from(const imp_ml_kmeans *s, uint32_t from, double at)
{
    uint32_t lo = from, hi = s->n;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (s->x[mid] < at)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* One assignment and update; the error before it. */
static double step(const imp_ml_kmeans *s, double *center, uint32_t k)
{
    double error = 0;
    uint32_t from = 0;
    for (uint32_t i = 0; i < k; i++) {
        uint32_t to = i + 1 < k ? first_from(s, from, (center[i] + center[i + 1]) / 2) : s->n;
        double w = s->c1[to] - s->c1[from], m = s->cx[to] - s->cx[from], q = s->cxx[to] - s->cxx[from];
        if (w > 0) {
            error += q - 2 * center[i] * m + center[i] * center[i] * w;
            center[i] = m / w;
        }
        from = to;
    }
    return error;
}

static void start_even(const imp_ml_kmeans *s, double *center, uint32_t k)
{
    double lo = s->x[0], hi = s->x[s->n - 1];
    for (uint32_t i = 0; i < k; i++) center[i] = lo + (hi - lo) * (i + 0.5) / k;
}

/* Points of equal mass of density^(1/3), the density taken from cells of an even grid. */
static void start_density(const imp_ml_kmeans *s, double *center, uint32_t k)
{
    enum { CELL = 1024 };
    double mass[CELL] = {0}, lo = s->x[0], width = (s->x[s->n - 1] - lo) / CELL, total = 0, run = 0;
    if (!(width > 0)) {
        start_even(s, center, k);
        return;
    }
    for (uint32_t i = 0; i < s->n; i++) {
        uint32_t c = (uint32_t)((s->x[i] - lo) / width);
        mass[IMP_MIN(c, (uint32_t)CELL - 1)] += s->c1[i + 1] - s->c1[i];
    }
    for (uint32_t c = 0; c < CELL; c++) total += mass[c] = cbrt(mass[c]);
    uint32_t i = 0;
    for (uint32_t c = 0; c < CELL && i < k; run += mass[c++])
        while (i < k && (i + 0.5) / k * total <= run + mass[c] && mass[c] > 0) {
            center[i] = lo + width * (c + ((i + 0.5) / k * total - run) / mass[c]);
            i++;
        }
    for (; i < k; i++) center[i] = s->x[s->n - 1];
}

double imp_ml_kmeans_solve(imp_ml_kmeans *s, uint32_t k, float *center)
{
    double c[2][256], error[2] = {INFINITY, INFINITY};
    compact(s);
    if (s->n <= k) { /* every number has its own entry */
        for (uint32_t i = 0; i < k; i++) center[i] = s->n > 0 ? (float)s->x[IMP_MIN(i, s->n - 1)] : 0;
        return 0;
    }
    for (int t = 0; t < 2; t++) {
        if (t == 0)
            start_density(s, c[t], k);
        else
            start_even(s, c[t], k);
        for (int i = 0; i < STEPS; i++) {
            double e = step(s, c[t], k);
            bool still = error[t] - e <= 1e-5 * e;
            error[t] = e;
            if (still) break;
        }
    }
    int best = error[1] < error[0];
    for (uint32_t i = 0; i < k; i++) center[i] = imp_f16_to_f32(imp_f32_to_f16((float)c[best][i]));
    return s->c1[s->n] > 0 ? error[best] / s->c1[s->n] : 0;
}

uint32_t imp_ml_nearest(const float *center, uint32_t k, float x)
{
    uint32_t lo = 0, hi = k - 1;
    while (lo < hi) { /* the first entry whose border to the next lies above x */
        uint32_t mid = lo + (hi - lo) / 2;
        if (x > (center[mid] + center[mid + 1]) * 0.5f)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}
