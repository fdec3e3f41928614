/* tensor/encode_fit.c - the search for the scale and the minimum of a short run of numbers.
 *
 * Place:   used by encode.c and encode_k.c.
 * Idea:    for a given rounding the best scale (and offset) is a least-squares solution in closed form; for a given scale
 *          the best rounding is the nearest number. Try roundings from a range of scales, keep the best, then alternate
 *          the two steps while the error falls.
 * Source:  least squares; alternating minimisation (Lloyd 1982). */
#include <float.h>
#include <math.h>

#include "tensor/encode.h"

typedef float v4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));

static v4 splat(float f)
{
    return (v4){f, f, f, f};
}

static v4 load(const float *p)
{
    v4 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static v4 pick(i4 mask, v4 a, v4 b)
{
    return (v4)(((i4)a & mask) | ((i4)b & ~mask));
}

/* The nearest whole number within lo..hi (below 2^22 in magnitude), ties to even. */
static v4 nearest(v4 x, v4 lo, v4 hi)
{
    const v4 magic = splat(12582912.0f); /* 1.5 * 2^23: adding it leaves no bits behind the point */
    x = pick(x < lo, lo, x);
    x = pick(x > hi, hi, x);
    return (x + magic) - magic;
}

static float sum(v4 v)
{
    return (v[0] + v[2]) + (v[1] + v[3]);
}

static v4 weight_at(const float *w, int j)
{
    return w != NULL ? load(w + j) : splat(1);
}

float imp_fit_round(const float *x, const float *w, int n, imp_fit_range r, float scale, float off, float *q)
{
    float inv = scale != 0 ? 1 / scale : 0;
    if (!isfinite(inv)) inv = 0;
    v4 err = splat(0);
    for (int j = 0; j < n; j += 4) {
        v4 xv = load(x + j), v = nearest((xv - off) * inv, splat(r.lo), splat(r.hi));
        v4 d = v * scale + off - xv;
        memcpy(q + j, &v, sizeof v);
        err += weight_at(w, j) * d * d;
    }
    return sum(err);
}

/* ---- scale alone ------------------------------------------------------------------------------ */

/* Rounding at 1 / inv: the best scale for that rounding, and by how much it lowers sum w x^2. */
static float gain_of(const float *x, const float *w, int n, imp_fit_range r, float inv, float *scale)
{
    v4 xq = splat(0), qq = splat(0), lo = splat(r.lo), hi = splat(r.hi);
    for (int j = 0; j < n; j += 4) {
        v4 xv = load(x + j), q = nearest(xv * inv, lo, hi), wq = weight_at(w, j) * q;
        xq += wq * xv;
        qq += wq * q;
    }
    float a = sum(xq), b = sum(qq);
    *scale = b > 0 ? a / b : 0;
    return b > 0 ? a * *scale : 0;
}

float imp_fit_scale(const float *x, const float *w, int n, imp_fit_range r)
{
    enum { BELOW = 12, ABOVE = 6, ROUNDS = 4 };
    float max = 0, best = 0, best_gain = 0;
    for (int j = 0; j < n; j++)
        if (fabsf(x[j]) > fabsf(max)) max = x[j];
    if (fabsf(max) < FLT_MIN * 256) return 0;
    float step = IMP_MAX(fabsf(r.lo) / 64, 0.125f);
    for (int k = -BELOW; k <= ABOVE; k++) {
        float end[2] = {r.lo + step * (float)k, r.hi - step * (float)k};
        for (int side = 0; side < 2; side++) {
            float scale, gain = gain_of(x, w, n, r, end[side] / max, &scale);
            if (gain > best_gain) best_gain = gain, best = scale;
        }
    }
    for (int k = 0; k < ROUNDS && best != 0; k++) {
        float scale, gain = gain_of(x, w, n, r, 1 / best, &scale);
        if (!(gain > best_gain)) break;
        best_gain = gain;
        best = scale;
    }
    return best;
}

float imp_fit_rescale(const float *x, const float *w, int n, imp_fit_range r, float scale, float off)
{
    v4 xq = splat(0), qq = splat(0), lo = splat(r.lo), hi = splat(r.hi);
    float inv = scale != 0 ? 1 / scale : 0;
    for (int j = 0; j < n; j += 4) {
        v4 xv = load(x + j) - off, q = nearest(xv * inv, lo, hi), wq = weight_at(w, j) * q;
        xq += wq * xv;
        qq += wq * q;
    }
    float b = sum(qq);
    return b > 0 ? sum(xq) / b : scale;
}

/* ---- scale and offset --------------------------------------------------------------------------- */

typedef struct moments { /* weighted sums over the run */
    float w, x, xx;
} moments;

/* Rounding (x - off) * inv: the best scale and offset for it; returns the error they leave. */
static float solve_affine(const float *x, const float *w, int n, float hi, float max_off, moments m,
                          float inv, float off, float *scale, float *new_off)
{
    v4 sq = splat(0), sqq = splat(0), sxq = splat(0);
    for (int j = 0; j < n; j += 4) {
        v4 xv = load(x + j), q = nearest((xv - off) * inv, splat(0), splat(hi)), wq = weight_at(w, j) * q;
        sq += wq;
        sqq += wq * q;
        sxq += wq * xv;
    }
    float q1 = sum(sq), qq = sum(sqq), xq = sum(sxq), det = m.w * qq - q1 * q1;
    *scale = det > 0 ? (m.w * xq - m.x * q1) / det : 0;
    *new_off = det > 0 ? (qq * m.x - q1 * xq) / det : m.w > 0 ? m.x / m.w : 0;
    if (*new_off > max_off) {
        *new_off = max_off;
        *scale = qq > 0 ? (xq - max_off * q1) / qq : 0;
    }
    float s = *scale, o = *new_off;
    return m.xx - 2 * (s * xq + o * m.x) + s * s * qq + 2 * s * o * q1 + o * o * m.w;
}

float imp_fit_affine(const float *x, const float *w, int n, float hi, float max_off, float *off)
{
    enum { STEPS = 28, ROUNDS = 4 };
    moments m = {0};
    float least = x[0], most = x[0];
    for (int j = 0; j < n; j++) {
        float wj = w != NULL ? w[j] : 1;
        least = IMP_MIN(least, x[j]);
        most = IMP_MAX(most, x[j]);
        m.w += wj;
        m.x += wj * x[j];
        m.xx += wj * x[j] * x[j];
    }
    least = IMP_MIN(least, max_off);
    *off = least;
    float range = most - least;
    if (!(range > FLT_MIN * 256) || !(m.w > 0)) return 0;
    float best = range / hi, best_off = least, best_err = INFINITY, scale, o;
    for (int k = 0; k <= STEPS; k++) { /* as if the range were hi - 1.8 .. hi + 1 steps wide */
        float inv = (hi - 1.8f + 0.1f * (float)k) / range;
        float err = solve_affine(x, w, n, hi, max_off, m, inv, least, &scale, &o);
        if (err < best_err && scale > 0) best_err = err, best = scale, best_off = o;
    }
    for (int k = 0; k < ROUNDS; k++) {
        float err = solve_affine(x, w, n, hi, max_off, m, 1 / best, best_off, &scale, &o);
        if (!(err < best_err) || !(scale > 0)) break;
        best_err = err, best = scale, best_off = o;
    }
    *off = best_off;
    return best;
}
