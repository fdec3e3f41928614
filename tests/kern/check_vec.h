/* tests/kern/check_vec.h - every row kernel against the definition written out in f64 here, not against kern/ref, which is
 * itself one of the checked variants.
 *
 * Checked: values within the bounds below; exact results where the definition is exact; the bits of elementwise kernels
 * for a range cut in two, and in place. */
#ifndef CHECK_VEC_H
#define CHECK_VEC_H

#include "check.h"

#define EPS ((double)FLT_EPSILON)

static double act_truth(double x, imp_kact kind)
{
    switch (kind) {
    case IMP_KACT_SILU: return x / (1 + exp(-x));
    case IMP_KACT_GELU: return 0.5 * x * (1 + erf(x / sqrt(2)));
    case IMP_KACT_GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * pow(x, 3))));
    case IMP_KACT_RELU: return isnan(x) ? x : fmax(x, 0);
    case IMP_KACT_TANH: return tanh(x);
    case IMP_KACT_SIGMOID: return 1 / (1 + exp(-x));
    case IMP_N_KACT: break;
    }
    return NAN;
}

/* silu, tanh, sigmoid: relative, but e^89 overflows f32 where the result is below 1e-36; gelu: relative to x, because
 * 1 + erf(x) cancels for x < 0. */
static double act_bound(double x, imp_kact kind)
{
    double y = fabs(act_truth(x, kind));
    switch (kind) {
    case IMP_KACT_SILU:
    case IMP_KACT_SIGMOID: return 4 * EPS * y + 1e-36;
    case IMP_KACT_TANH: return 3 * EPS * y + (double)FLT_TRUE_MIN;
    case IMP_KACT_GELU:
    case IMP_KACT_GELU_TANH: return 4 * EPS * fabs(x) + (double)FLT_TRUE_MIN;
    default: return 0;
    }
}

static const float special[] = {0.0f,  -0.0f,  1e-45f, -1e-40f, INFINITY, -INFINITY, NAN,
                                88.7f, -88.7f, 104.0f, -104.0f, 1e30f,    -1e30f,    0.625f,
                                1.0f,  -1.0f,  5.8f,   -5.8f,   3e38f,    -3e38f};

/* A row for elementwise kernels: random with special values strewn in. */
static void fill_special(struct check *c, float *x, size_t n)
{
    fill_floats(c, x, n, (enum data_kind)rnd_below(c, N_DATA));
    for (size_t i = 0; i < n; i++) {
        if (rnd_below(c, 4) == 0) x[i] *= 10;
        if (rnd_below(c, 8) == 0) x[i] = special[rnd_below(c, IMP_COUNT(special))];
    }
}

/* ---- elementwise ---------------------------------------------------------------------------------------------- */
struct elem_op {
    const char *name;
    int which; /* 0 act, 1 glu, 2 add, 3 mul, 4 scale, 5 axpy, 6 softcap */
    imp_kact act;
    float c;
};

static void elem_run(const imp_vec *v, const struct elem_op *op, float *y, const float *a, const float *b,
                     size_t n)
{
    switch (op->which) {
    case 0: v->act(y, a, op->act, n); break;
    case 1: v->glu(y, a, b, op->act, n); break;
    case 2: v->add(y, a, b, n); break;
    case 3: v->mul(y, a, b, n); break;
    case 4: v->scale(y, a, op->c, n); break;
    case 5:
        if (y != b) memcpy(y, b, n * sizeof(float));
        v->axpy(y, op->c, a, n);
        break;
    default: v->softcap(y, a, op->c, n);
    }
}

static double elem_truth(const struct elem_op *op, double a, double b, double *bound)
{
    double k = (double)op->c;
    *bound = 0;
    switch (op->which) {
    case 0: *bound = act_bound(a, op->act); return act_truth(a, op->act);
    case 1:
        *bound = (act_bound(a, op->act) + EPS * fabs(act_truth(a, op->act))) * fabs(b) + (double)FLT_TRUE_MIN;
        return act_truth(a, op->act) * b;
    case 2: return (double)((float)a + (float)b);
    case 3: return (double)((float)a * (float)b);
    case 4: return (double)((float)a * op->c);
    case 5: return (double)fmaf(op->c, (float)a, (float)b);
    default: *bound = 4 * EPS * fabs(k * tanh(a / k)) + 64 * (double)FLT_TRUE_MIN; return k * tanh(a / k);
    }
}

static void check_elementwise(struct check *c, const imp_vec *v, const struct elem_op *op, size_t n)
{
    size_t mark = c->n_guard;
    float *a = guard_floats(c, n), *b = guard_floats(c, n), *y = guard_floats(c, n), *z = guard_floats(c, n);
    snprintf(c->where, sizeof c->where, "%s_%s act %d, n=%zu", op->name, v->isa, (int)op->act, n);
    fill_special(c, a, n);
    fill_special(c, b, n);
    elem_run(v, op, y, a, b, n);
    for (size_t i = 0; i < n; i++) {
        double bound, want = elem_truth(op, (double)a[i], (double)b[i], &bound);
        /* a product whose factor overflowed in f32 only: either is right near the border */
        if (op->which == 1 && isfinite(want) && fabs(want) > 1e37) continue;
        if (op->which == 1 && !isfinite(b[i]) && fabs(act_truth((double)a[i], op->act)) < 1e-6) continue;
        expect_near(c, i, y[i], want, bound);
    }
    size_t cut = rnd_below(c, (uint32_t)n + 1);
    if (cut > 0) elem_run(v, op, z, a, b, cut);
    if (cut < n) elem_run(v, op, z + cut, a + cut, b + cut, n - cut);
    expect_same(c, "a range cut in two differs", z, y, n);
    float *in_place = op->which == 5 ? b : a;
    elem_run(v, op, in_place, a, b, n);
    expect_same(c, "in place differs", in_place, y, n);
    guard_release(c, mark);
}

/* ---- norms, softmax, dot ------------------------------------------------------------------------------------------ */
static double sum_eps(size_t n) /* roundings of a sum over n in at least 16 lanes or 4 accumulators */
{
    return ((double)n / 16 + 12) * EPS;
}

static void check_norms(struct check *c, const imp_vec *v, size_t n)
{
    size_t mark = c->n_guard;
    float *x = guard_floats(c, n), *w = guard_floats(c, n), *b = guard_floats(c, n), *y = guard_floats(c, n);
    static const enum data_kind kinds[] = {DATA_UNIT, DATA_WIDE, DATA_SPIKE};
    fill_floats(c, x, n, kinds[rnd_below(c, 3)]);
    fill_floats(c, w, n, DATA_UNIT);
    fill_floats(c, b, n, DATA_UNIT);
    bool has_w = (rnd(c) & 3) != 0, has_b = rnd(c) & 1;
    float off = rnd(c) & 1 ? 1 : 0, eps = rnd(c) & 1 ? 1e-5f : 1e-6f;
    double sq = 0, sum = 0, var = 0, big = 0;
    for (size_t i = 0; i < n; i++) {
        sq += (double)x[i] * (double)x[i];
        sum += (double)x[i];
        big = fmax(big, fabs((double)x[i]));
    }
    double mean = sum / (double)n, rms = 1 / sqrt(sq / (double)n + (double)eps);
    for (size_t i = 0; i < n; i++) var += pow((double)x[i] - mean, 2);
    double r = 1 / sqrt(var / (double)n + (double)eps);

    snprintf(c->where, sizeof c->where, "rms_norm_%s, n=%zu", v->isa, n);
    v->rms_norm(y, x, has_w ? w : NULL, off, eps, n);
    for (size_t i = 0; i < n; i++) {
        double want = (double)x[i] * rms * (has_w ? (double)w[i] + (double)off : 1);
        expect_near(c, i, y[i], want, sum_eps(n) * fabs((double)x[i] * rms) * 2);
    }
    snprintf(c->where, sizeof c->where, "layer_norm_%s, n=%zu", v->isa, n);
    v->layer_norm(y, x, has_w ? w : NULL, has_b ? b : NULL, eps, n);
    for (size_t i = 0; i < n; i++) {
        double wi = has_w ? (double)w[i] : 1, t = ((double)x[i] - mean) * r,
               want = t * wi + (has_b ? (double)b[i] : 0);
        /* an error of the mean moves everything by it: matters when all x are nearly equal */
        double shift = sum_eps(n) * big * r;
        expect_near(c, i, y[i], want,
                    sum_eps(n) * (fabs(t * wi) + 1) + shift * (fabs(wi) + fabs(t * wi) * shift));
    }
    snprintf(c->where, sizeof c->where, "l2_norm_%s, n=%zu", v->isa, n);
    v->l2_norm(y, x, 1e-12f, n);
    for (size_t i = 0; i < n; i++) {
        double want = (double)x[i] / fmax(sqrt(sq), 1e-12);
        expect_near(c, i, y[i], want, sum_eps(n) * fabs(want) + (double)FLT_TRUE_MIN);
    }
    memset(b, 0, n * sizeof(float));
    v->l2_norm(y, b, 1e-12f, n);
    for (size_t i = 0; i < n; i++) expect_near(c, i, y[i], 0, 0);
    snprintf(c->where, sizeof c->where, "dot_%s, n=%zu", v->isa, n);
    double dot = 0, terms = 0;
    for (size_t i = 0; i < n; i++) {
        dot += (double)x[i] * (double)w[i];
        terms += fabs((double)x[i] * (double)w[i]);
    }
    expect_near(c, 0, v->dot(x, w, n), dot, sum_eps(n) * terms);
    guard_release(c, mark);
}

static void check_softmax(struct check *c, const imp_vec *v, size_t n)
{
    size_t mark = c->n_guard;
    float *x = guard_floats(c, n), *y = guard_floats(c, n);
    snprintf(c->where, sizeof c->where, "softmax_%s, n=%zu", v->isa, n);
    fill_floats(c, x, n, rnd(c) & 1 ? DATA_WIDE : DATA_UNIT);
    for (size_t i = 0; i < n; i++)
        if (rnd_below(c, 5) == 0) x[i] = -INFINITY;
    if (rnd_below(c, 8) == 0) x[rnd_below(c, (uint32_t)n)] = NAN;
    double max = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++) max = fmax(max, (double)x[i]);
    for (size_t i = 0; i < n; i++) sum += exp((double)x[i] - max);
    v->softmax(y, x, n);
    for (size_t i = 0; i < n; i++) {
        double want = exp((double)x[i] - max) / sum, away = isfinite(x[i]) ? max - (double)x[i] : 0;
        expect_near(c, i, y[i], want, (sum_eps(n) + EPS * away) * want + 4 * (double)FLT_TRUE_MIN);
        if (x[i] == -INFINITY && isfinite(sum) && y[i] != 0)
            fail(c, "-inf must give 0", i, (double)y[i], 0, 0);
    }
    guard_release(c, mark);
}

/* ---- rope, conversions, quantising --------------------------------------------------------------------------------- */
static void check_rope(struct check *c, const imp_vec *v, uint32_t head_dim, uint32_t n_rot, bool interleaved)
{
    size_t mark = c->n_guard;
    uint32_t n_head = 1 + rnd_below(c, 4), half = n_rot / 2;
    size_t n = (size_t)n_head * head_dim;
    float *x = guard_floats(c, n), *y = guard_floats(c, n), *cs = guard_floats(c, half),
          *sn = guard_floats(c, half);
    snprintf(c->where, sizeof c->where, "rope_%s, head_dim=%u n_rot=%u %s", v->isa, head_dim, n_rot,
             interleaved ? "pairs" : "halves");
    fill_floats(c, x, n, DATA_UNIT);
    for (uint32_t i = 0; i < half; i++) {
        float angle = rnd_unit(c) * 100;
        cs[i] = cosf(angle);
        sn[i] = sinf(angle);
    }
    v->rope(y, x, cs, sn, n_head, head_dim, n_rot, interleaved);
    for (uint32_t h = 0; h < n_head; h++) {
        const float *xh = x + (size_t)h * head_dim;
        for (uint32_t e = 0; e < head_dim; e++) {
            double want = (double)xh[e], bound = 0;
            if (e < n_rot) {
                uint32_t i = interleaved ? e / 2 : e % half;
                bool second = interleaved ? e & 1 : e >= half;
                uint32_t other = interleaved ? e ^ 1 : second ? e - half : e + half;
                double s = (double)xh[other] * (double)sn[i], k = (double)xh[e] * (double)cs[i];
                want = second ? k + s : k - s;
                bound = 2 * EPS * (fabs(k) + fabs(s));
            }
            expect_near(c, (size_t)h * head_dim + e, y[(size_t)h * head_dim + e], want, bound);
        }
    }
    v->rope(x, x, cs, sn, n_head, head_dim, n_rot, interleaved);
    expect_same(c, "in place differs", x, y, n);
    guard_release(c, mark);
}

static void check_f16(struct check *c, const imp_vec *v)
{
    enum { N = 65536 };
    size_t mark = c->n_guard;
    uint16_t *h = guard_bytes(c, N * 2, false), *back = guard_bytes(c, N * 2, false);
    float *f = guard_floats(c, N);
    snprintf(c->where, sizeof c->where, "f16_%s", v->isa);
    for (uint32_t i = 0; i < N; i++) h[i] = (uint16_t)i;
    v->f16_to_f32(f, h, N);
    v->f32_to_f16(back, f, N);
    for (uint32_t i = 0; i < N; i++) {
        int e = (int)(i >> 10 & 31), m = (int)(i & 1023); /* the definition of binary16 */
        double want = e == 31 ? (m ? NAN : INFINITY) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
        if (i >> 15) want = -want;
        expect_near(c, i, f[i], want, 0);
        if (e == 31 && m ? (back[i] & 0x7c00) != 0x7c00 || !(back[i] & 1023) : back[i] != i)
            fail(c, "f16 -> f32 -> f16", i, back[i], i, 0);
    }
    for (uint32_t i = 0; i < N; i++) { /* f32 in between: the nearest of two neighbours, ties to even */
        uint32_t at = rnd_below(c, 0x7bff);
        double lo = (double)imp_f16_to_f32((uint16_t)at), hi = (double)imp_f16_to_f32((uint16_t)(at + 1));
        double t = i & 1 ? 0.5 : (double)rnd_below(c, 1000) / 1000;
        f[i] = (float)(lo + (hi - lo) * t);
        double mid = (lo + hi) / 2;
        h[i] = (uint16_t)((double)f[i] < mid ? at : (double)f[i] > mid ? at + 1 : at + (at & 1));
    }
    for (uint32_t i = 0; i < N;) {
        uint32_t n = 1 + rnd_below(c, 60);
        if (n > N - i) n = N - i;
        v->f32_to_f16(back + i, f + i, n);
        i += n;
    }
    for (uint32_t i = 0; i < N; i++)
        if (back[i] != h[i]) fail(c, "f32 to f16", i, back[i], h[i], 0);
    float big[] = {65519.9f, 65520.0f, 1e30f, -1e30f};
    uint16_t out[4];
    v->f32_to_f16(out, big, 4);
    if (out[0] != 0x7bff || out[1] != 0x7c00 || out[2] != 0x7c00 || out[3] != 0xfc00)
        fail(c, "f16 overflow", 0, out[0], 0x7bff, 0);
    guard_release(c, mark);
}

static void check_quant(struct check *c, const imp_vec *v, size_t n_block)
{
    size_t mark = c->n_guard;
    float *x = guard_floats(c, n_block * 32);
    imp_q8_block *q = guard_bytes(c, n_block * sizeof *q, false);
    snprintf(c->where, sizeof c->where, "quant_q8_%s, %zu blocks", v->isa, n_block);
    fill_floats(c, x, n_block * 32, (enum data_kind)rnd_below(c, N_DATA));
    size_t bad = rnd_below(c, 3) ? n_block : rnd_below(c, (uint32_t)n_block);
    if (bad < n_block) x[bad * 32 + rnd_below(c, 32)] = rnd(c) & 1 ? NAN : -INFINITY;
    if (rnd(c) & 1) x[rnd_below(c, (uint32_t)n_block * 32)] *= 1e4f;
    if (rnd_below(c, 4) == 0) memset(x, 0, 32 * sizeof(float));
    v->quant_q8(q, x, n_block * 32);
    for (size_t b = 0; b < n_block; b++) {
        float max = 0;
        bool finite = true;
        for (size_t i = 0; i < 32; i++) {
            finite = finite && isfinite(x[b * 32 + i]);
            max = fmaxf(max, fabsf(x[b * 32 + i]));
        }
        bool zero = !finite || max < 0x1p-100f;
        float d = zero ? 0 : max / 127.0f, inv = zero ? 0 : 127.0f / max;
        if (finite ? !same_bits(&q[b].d, &d, 4) : !isnan(q[b].d))
            fail(c, "d", b, (double)q[b].d, (double)d, 0);
        int32_t sum = 0;
        for (size_t i = 0; i < 32; i++) {
            int want = zero ? 0 : (int)nearbyintf(x[b * 32 + i] * inv);
            sum += want;
            if (q[b].q[i] != want) fail(c, "q", b * 32 + i, q[b].q[i], want, 0);
            if (!zero &&
                fabs((double)q[b].d * q[b].q[i] - (double)x[b * 32 + i]) > (double)max / 127 * 0.50001)
                fail(c, "more than half a step from x", b * 32 + i, (double)q[b].d * q[b].q[i],
                     (double)x[b * 32 + i], 0);
        }
        if (q[b].sum != sum) fail(c, "sum", b, q[b].sum, sum, 0);
    }
    guard_release(c, mark);
}

/* tanh and sigmoid on a fine grid: the whole domain where they are not constant. */
static void check_math(struct check *c, const imp_vec *v)
{
    enum { N = 4096 };
    float x[N], y[N];
    for (int block = 0; block < 128 && !c->failed; block++) {
        for (int i = 0; i < N; i++)
            x[i] = (float)(block * N + i - 64 * N) * (100.0f / (64 * N)) + rnd_unit(c) * 1e-4f;
        for (int a = 0; a < IMP_N_KACT; a++) {
            snprintf(c->where, sizeof c->where, "act %d_%s", a, v->isa);
            v->act(y, x, (imp_kact)a, N);
            for (int i = 0; i < N; i++)
                expect_near(c, (size_t)i, y[i], act_truth((double)x[i], (imp_kact)a),
                            act_bound((double)x[i], (imp_kact)a));
        }
    }
}

static void check_vec(struct check *c, const imp_vec *v)
{
    static const struct elem_op ops[] = {{"add", 2, 0, 0},      {"mul", 3, 0, 0},      {"scale", 4, 0, 0.37f},
                                         {"axpy", 5, 0, -1.7f}, {"softcap", 6, 0, 30}, {"softcap", 6, 0, 50}};
    static const size_t sizes[] = {1,  2,  3,  4,  5,  7,  8,   9,   15,  16,  17,  31,  32,
                                   33, 61, 63, 64, 65, 67, 127, 128, 131, 255, 257, 576, 1031};
    for (size_t s = 0; s < IMP_COUNT(sizes) && !c->failed; s++) {
        size_t n = sizes[s];
        for (int again = 0; again < 3; again++) {
            for (size_t i = 0; i < IMP_COUNT(ops); i++) check_elementwise(c, v, &ops[i], n);
            for (int a = 0; a < IMP_N_KACT; a++) {
                check_elementwise(c, v, &(struct elem_op){"act", 0, (imp_kact)a, 0}, n);
                check_elementwise(c, v, &(struct elem_op){"glu", 1, (imp_kact)a, 0}, n);
            }
            check_norms(c, v, n);
            check_softmax(c, v, n);
            check_quant(c, v, 1 + n / 32);
        }
    }
    static const uint32_t dims[][2] = {{2, 2},   {6, 4},   {10, 10}, {16, 16},   {32, 32}, {48, 40},
                                       {64, 64}, {80, 20}, {96, 96}, {128, 128}, {256, 64}};
    for (size_t i = 0; i < IMP_COUNT(dims); i++)
        for (int interleaved = 0; interleaved < 2; interleaved++)
            check_rope(c, v, dims[i][0], dims[i][1], interleaved);
    check_f16(c, v);
    check_math(c, v);
}

#endif
