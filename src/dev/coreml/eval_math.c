/* dev/coreml/eval_math.c - ops of ML Programs that compute: elementwise, reductions, products.
 *
 * Idea:    products are gemm.c's; elementwise ops and reductions walk all elements with a stride of 0 in the dimensions
 *          that repeat, shared out over the pool where they are many. */
#include "dev/coreml/eval_int.h"

#include <math.h>

/* ---- products -------------------------------------------------------------------------------------------- */

static void conv(ml_ctx *c)
{
    const imp_mil_type *x = ml_type(c, "x");
    uint64_t n = x->dim[2] * x->dim[3], k = x->dim[1], m = c->to->dim[1];
    for (uint64_t b = 0; b < x->dim[0] && !c->failed; b++)
        c->failed = !ml_gemm(&c->e->gemm, c->e->pool, ml_in(c, "weight"), ml_in(c, "x") + b * k * n,
                             ml_in(c, "bias"), c->out + b * m * n, m, k, n);
}

static void linear(ml_ctx *c)
{
    const imp_mil_type *w = ml_type(c, "weight");
    uint64_t n = w->dim[0], k = w->dim[1], m = imp_mil_n_elem(ml_type(c, "x")) / k;
    const float *bias = ml_in(c, "bias");
    c->failed =
        !ml_gemm_nt(&c->e->gemm, c->e->pool, ml_in(c, "x"), ml_in(c, "weight"), NULL, c->out, n, m, k, n);
    for (uint64_t i = 0; bias != NULL && i < m * n; i++) c->out[i] += bias[i % n];
}

/* Which matrix of an operand belongs to matrix i of the result, its leading dimensions broadcast. */
static uint64_t matrix_of(uint64_t i, const imp_mil_type *out, const imp_mil_type *t)
{
    uint64_t at = 0, stride = 1;
    for (uint32_t k = out->rank - 2; k-- > 0;) {
        uint64_t d = i % out->dim[k];
        i /= out->dim[k];
        if (k + t->rank < out->rank) break; /* t has no such dimension, nor any before it */
        uint64_t size = t->dim[k + t->rank - out->rank];
        at += (size == 1 ? 0 : d) * stride;
        stride *= size;
    }
    return at;
}

static void matmul(ml_ctx *c)
{
    const imp_mil_type *x = ml_type(c, "x"), *y = ml_type(c, "y"), *o = c->to;
    bool tx = ml_number(c, "transpose_x", 0) != 0, ty = ml_number(c, "transpose_y", 0) != 0;
    uint64_t m = o->dim[o->rank - 2], n = o->dim[o->rank - 1], k = x->dim[x->rank - (tx ? 2 : 1)];
    uint64_t n_mat = imp_mil_n_elem(o) / (m * n);
    float *at = tx ? ml_spare(c, 0, m * k) : NULL;
    ml_gemm_buf *g = &c->e->gemm;
    for (uint64_t i = 0; i < n_mat && !c->failed; i++) {
        const float *a = ml_in(c, "x") + matrix_of(i, o, x) * m * k,
                    *b = ml_in(c, "y") + matrix_of(i, o, y) * k * n;
        if (tx) ml_flip(at, a, k, m), a = at;
        c->failed = ty ? !ml_gemm_nt(g, c->e->pool, a, b, NULL, c->out + i * m * n, n, m, k, n)
                       : !ml_gemm(g, c->e->pool, a, b, NULL, c->out + i * m * n, m, k, n);
    }
}

/* ---- elementwise --------------------------------------------------------------------------------------------- */

/* fn over the elements 0..n-1 of an op, in shares. */
typedef struct span_job {
    ml_ctx *c;
    const float *a, *b;
    float eps;
    uint64_t n;
    void (*fn)(const struct span_job *j, uint64_t from, uint64_t to);
} span_job;

static void span_part(void *ctx, uint32_t ith, uint32_t n_thread)
{
    const span_job *j = ctx;
    j->fn(j, j->n * ith / n_thread, j->n * (ith + 1) / n_thread);
}

static void spans(span_job *j)
{
    if (j->c->e->pool == NULL || j->n < 1 << 14)
        span_part(j, 0, 1);
    else
        imp_pool_run(j->c->e->pool, span_part, j);
}

/* eps: the op's own default of its parameter epsilon, 0 where it has none. */
#define UNARY_EPS(name, def, expr)                                                                           \
    static void name##_span(const span_job *j, uint64_t from, uint64_t to)                                   \
    {                                                                                                        \
        const float *in = j->a, eps = j->eps;                                                                \
        float *out = j->c->out;                                                                              \
        (void)eps;                                                                                           \
        for (uint64_t i = from; i < to; i++) {                                                               \
            float x = in[i];                                                                                 \
            out[i] = expr;                                                                                   \
        }                                                                                                    \
    }                                                                                                        \
    static void name(ml_ctx *c)                                                                              \
    {                                                                                                        \
        span_job j = {c,                                                                                     \
                      ml_in(c, "x"),                                                                         \
                      NULL,                                                                                  \
                      (float)ml_number(c, "epsilon", def),                                                   \
                      imp_mil_n_elem(c->to),                                                                 \
                      name##_span};                                                                          \
        spans(&j);                                                                                           \
    }
#define UNARY(name, expr) UNARY_EPS(name, 0, expr)
UNARY(op_abs, fabsf(x))
UNARY(op_silu, x / (1 + expf(-x)))
UNARY(op_sigmoid, 1 / (1 + expf(-x)))
UNARY(op_tanh, tanhf(x))
UNARY(op_relu, x > 0 ? x : 0)
UNARY(op_exp, expf(x))
UNARY(op_erf, erff(x))
UNARY(op_sqrt, sqrtf(x))
UNARY(op_square, x *x)
UNARY_EPS(op_rsqrt, 1e-12, 1 / sqrtf(x + eps))
UNARY_EPS(op_inverse, 1e-4, 1 / (x + eps))
UNARY(gelu_exact, 0.5f * x * (1 + erff(x * 0.70710678f)))
UNARY(gelu_tanh, 0.5f * x * (1 + tanhf(0.79788456f * (x + 0.044715f * x * x * x))))
UNARY(gelu_sigmoid, x / (1 + expf(-1.702f * x)))

static void gelu(ml_ctx *c)
{
    const char *mode = imp_mil_word(c->e->f, c->op, "mode", "EXACT");
    if (mode[0] == 'E')
        gelu_exact(c);
    else if (mode[0] == 'T')
        gelu_tanh(c);
    else
        gelu_sigmoid(c);
}

static void clip(ml_ctx *c)
{
    const float *x = ml_in(c, "x");
    float lo = (float)ml_number(c, "alpha", 0), hi = (float)ml_number(c, "beta", 0);
    for (uint64_t i = 0, n = imp_mil_n_elem(c->to); i < n; i++)
        c->out[i] = x[i] < lo ? lo : x[i] > hi ? hi : x[i];
}

static void cast(ml_ctx *c)
{
    const float *x = ml_in(c, "x");
    bool whole = c->to->dtype != IMP_MIL_F16 && c->to->dtype != IMP_MIL_F32;
    for (uint64_t i = 0, n = imp_mil_n_elem(c->to); i < n; i++)
        c->out[i] = c->to->dtype == IMP_MIL_BOOL ? (x[i] != 0) : whole ? truncf(x[i]) : x[i];
}

/* Strides of operand t walked in the shape of out: 0 where it repeats. */
static void repeat_strides(const imp_mil_type *out, const imp_mil_type *t, uint64_t *stride)
{
    uint64_t s = 1;
    for (uint32_t k = out->rank; k-- > 0;) {
        stride[k] = 0;
        if (k + t->rank < out->rank) continue;
        uint64_t size = t->dim[k + t->rank - out->rank];
        stride[k] = size == 1 ? 0 : s;
        s *= size;
    }
}

/* One row: n elements, operands da and db apart (0 or 1). */
typedef void (*pair_fn)(float *y, const float *a, const float *b, uint64_t n, uint64_t da, uint64_t db);

typedef struct pair_job {
    const ml_ctx *c;
    const float *a, *b;
    uint64_t sa[IMP_MIL_MAX_RANK], sb[IMP_MIL_MAX_RANK], n, rows;
    pair_fn fn;
} pair_job;

static void pair_part(void *ctx, uint32_t ith, uint32_t n_thread)
{
    const pair_job *j = ctx;
    const imp_mil_type *o = j->c->to;
    uint32_t last = o->rank > 0 ? o->rank - 1 : 0;
    for (uint64_t r = j->rows * ith / n_thread, to = j->rows * (ith + 1) / n_thread; r < to; r++) {
        uint64_t ia = 0, ib = 0, rest = r;
        for (uint32_t k = last; k-- > 0; rest /= o->dim[k]) {
            ia += rest % o->dim[k] * j->sa[k];
            ib += rest % o->dim[k] * j->sb[k];
        }
        j->fn(j->c->out + r * j->n, j->a + ia, j->b + ib, j->n, o->rank > 0 ? j->sa[last] : 0,
              o->rank > 0 ? j->sb[last] : 0);
    }
}

static void pairs(ml_ctx *c, pair_fn fn)
{
    const imp_mil_type *o = c->to;
    pair_job j = {.c = c, .a = ml_in(c, "x"), .b = ml_in(c, "y"), .fn = fn};
    j.n = o->rank > 0 ? o->dim[o->rank - 1] : 1;
    j.rows = imp_mil_n_elem(o) / j.n;
    repeat_strides(o, ml_type(c, "x"), j.sa);
    repeat_strides(o, ml_type(c, "y"), j.sb);
    if (c->e->pool == NULL || j.rows * j.n < 1 << 14)
        pair_part(&j, 0, 1);
    else
        imp_pool_run(c->e->pool, pair_part, &j);
}

#define PAIR(name, expr)                                                                                     \
    static void name##_row(float *restrict y, const float *pa, const float *pb, uint64_t n, uint64_t da,     \
                           uint64_t db)                                                                      \
    {                                                                                                        \
        if (da == 1 && db == 1)                                                                              \
            for (uint64_t i = 0; i < n; i++) {                                                               \
                float a = pa[i], b = pb[i];                                                                  \
                y[i] = expr;                                                                                 \
            }                                                                                                \
        else                                                                                                 \
            for (uint64_t i = 0; i < n; i++) {                                                               \
                float a = pa[i * da], b = pb[i * db];                                                        \
                y[i] = expr;                                                                                 \
            }                                                                                                \
    }                                                                                                        \
    static void name(ml_ctx *c)                                                                              \
    {                                                                                                        \
        pairs(c, name##_row);                                                                                \
    }
PAIR(op_add, a + b)
PAIR(op_sub, a - b)
PAIR(op_mul, a *b)
PAIR(op_div, a / b)
PAIR(op_max, a > b ? a : b)
PAIR(op_min, a < b ? a : b)
PAIR(op_pow, powf(a, b))

static void select_(ml_ctx *c)
{
    uint64_t sa[IMP_MIL_MAX_RANK], sb[IMP_MIL_MAX_RANK], at[IMP_MIL_MAX_RANK] = {0}, ia = 0, ib = 0;
    const float *cond = ml_in(c, "cond"), *a = ml_in(c, "a"), *b = ml_in(c, "b");
    bool one = ml_type(c, "cond")->rank == 0;
    repeat_strides(c->to, ml_type(c, "a"), sa);
    repeat_strides(c->to, ml_type(c, "b"), sb);
    for (uint64_t i = 0, n = imp_mil_n_elem(c->to); i < n; i++) {
        c->out[i] = cond[one ? 0 : i] != 0 ? a[ia] : b[ib];
        for (uint32_t k = c->to->rank; k-- > 0;) {
            ia += sa[k], ib += sb[k];
            if (++at[k] < c->to->dim[k]) break;
            ia -= sa[k] * c->to->dim[k], ib -= sb[k] * c->to->dim[k];
            at[k] = 0;
        }
    }
}

/* ---- reductions ------------------------------------------------------------------------------------------------- */

static uint32_t axes_mask(const imp_mil_func *f, const imp_mil_op *op, uint32_t rank)
{
    const imp_mil_value *v = imp_mil_const(f, op, "axes");
    uint32_t mask = v == NULL ? (1u << rank) - 1 : 0;
    for (uint64_t i = 0; v != NULL && i < imp_mil_n_elem(&v->type); i++) {
        double a = imp_mil_element(IMP_MIL_I32, v->data, i);
        mask |= 1u << (uint32_t)(a < 0 ? a + rank : a);
    }
    return mask;
}

static uint32_t axes_of(const ml_ctx *c, uint32_t rank)
{
    return axes_mask(c->e->f, c->op, rank);
}

/* x as [outer][n][inner] over neighbouring reduced dimensions; false: they are no neighbours. */
static bool as_axis(const imp_mil_type *x, uint32_t mask, uint64_t *outer, uint64_t *n, uint64_t *inner)
{
    uint32_t k = 0;
    *outer = *n = *inner = 1;
    for (; k < x->rank && !(mask >> k & 1); k++) *outer *= x->dim[k];
    for (; k < x->rank && mask >> k & 1; k++) *n *= x->dim[k];
    for (; k < x->rank; k++) {
        if (mask >> k & 1) return false;
        *inner *= x->dim[k];
    }
    return true;
}

bool ml_axes_are_neighbours(const imp_mil_func *f, const imp_mil_op *op)
{
    uint64_t outer, n, inner;
    if (strncmp(op->type, "reduce_", 7) != 0 && strcmp(op->type, "layer_norm") != 0) return true;
    const imp_mil_type *x = &f->var[imp_mil_arg_get(op, "x")->bind[0].var].type;
    return as_axis(x, axes_mask(f, op, x->rank), &outer, &n, &inner);
}

typedef enum reduction { SUM, MEAN, MAX } reduction;

/* acc[inner] over one outer block. */
static void reduce_block(double *acc, const float *x, uint64_t n, uint64_t inner, reduction r)
{
    for (uint64_t k = 0; k < inner; k++) acc[k] = r == MAX ? -INFINITY : 0;
    for (uint64_t i = 0; i < n; i++)
        for (uint64_t k = 0; k < inner; k++) {
            double v = (double)x[i * inner + k];
            acc[k] = r != MAX ? acc[k] + v : v > acc[k] ? v : acc[k];
        }
    for (uint64_t k = 0; k < inner && r == MEAN; k++) acc[k] /= (double)n;
}

static void reduce(ml_ctx *c, reduction r)
{
    const imp_mil_type *t = ml_type(c, "x");
    const float *x = ml_in(c, "x");
    uint64_t outer, n, inner;
    (void)as_axis(t, axes_of(c, t->rank), &outer, &n, &inner); /* neighbours: checked at the start */
    double *acc = (double *)ml_spare(c, 0, 2 * inner);
    if (acc == NULL) return;
    for (uint64_t o = 0; o < outer; o++) {
        reduce_block(acc, x + o * n * inner, n, inner, r);
        for (uint64_t k = 0; k < inner; k++) c->out[o * inner + k] = (float)acc[k];
    }
}
static void reduce_sum(ml_ctx *c)
{
    reduce(c, SUM);
}
static void reduce_mean(ml_ctx *c)
{
    reduce(c, MEAN);
}
static void reduce_max(ml_ctx *c)
{
    reduce(c, MAX);
}

static void softmax_axis(float *y, const float *x, uint64_t n, uint64_t inner)
{
    for (uint64_t k = 0; k < inner; k++) {
        float max = -INFINITY;
        double sum = 0;
        for (uint64_t i = 0; i < n; i++) max = x[i * inner + k] > max ? x[i * inner + k] : max;
        for (uint64_t i = 0; i < n; i++) sum += (double)(y[i * inner + k] = expf(x[i * inner + k] - max));
        for (uint64_t i = 0; i < n; i++) y[i * inner + k] = (float)((double)y[i * inner + k] / sum);
    }
}

static void softmax(ml_ctx *c)
{
    const float *x = ml_in(c, "x");
    double a = ml_number(c, "axis", -1);
    uint64_t outer, n, inner;
    (void)as_axis(c->to, 1u << (uint32_t)(a < 0 ? a + c->to->rank : a), &outer, &n, &inner);
    for (uint64_t o = 0; o < outer; o++) softmax_axis(c->out + o * n * inner, x + o * n * inner, n, inner);
}

static void layer_norm(ml_ctx *c)
{
    const float *x = ml_in(c, "x"), *g = ml_in(c, "gamma"), *b = ml_in(c, "beta");
    double eps = ml_number(c, "epsilon", 1e-5);
    uint64_t outer, n, inner;
    (void)as_axis(c->to, axes_of(c, c->to->rank), &outer, &n, &inner);
    for (uint64_t o = 0; o < outer; o++)
        for (uint64_t k = 0; k < inner; k++) {
            const float *from = x + o * n * inner + k;
            double mean = 0, var = 0;
            for (uint64_t i = 0; i < n; i++) mean += (double)from[i * inner];
            mean /= (double)n;
            for (uint64_t i = 0; i < n; i++)
                var += ((double)from[i * inner] - mean) * ((double)from[i * inner] - mean);
            double inv = 1 / sqrt(var / (double)n + eps);
            for (uint64_t i = 0; i < n; i++)
                c->out[o * n * inner + i * inner + k] =
                    (float)(((double)from[i * inner] - mean) * inv * (g != NULL ? (double)g[i] : 1) +
                            (b != NULL ? (double)b[i] : 0));
        }
}

static void attention(ml_ctx *c)
{
    const imp_mil_type *q = ml_type(c, "query"), *k = ml_type(c, "key"), *m = ml_type(c, "attn_mask");
    uint64_t s = q->dim[q->rank - 2], d = q->dim[q->rank - 1], t = k->dim[k->rank - 2],
             dv = c->to->dim[c->to->rank - 1];
    uint64_t n = imp_mil_n_elem(q) / (s * d), stride[IMP_MIL_MAX_RANK];
    float *score = ml_spare(c, 0, s * t), scale = (float)(1 / sqrt((double)d));
    ml_gemm_buf *g = &c->e->gemm;
    if (score == NULL) return;
    imp_mil_type scores = *q;
    scores.dim[q->rank - 1] = t;
    if (m != NULL) repeat_strides(&scores, m, stride);
    for (uint64_t i = 0; i < n && !c->failed; i++) {
        c->failed = !ml_gemm_nt(g, c->e->pool, ml_in(c, "query") + i * s * d, ml_in(c, "key") + i * t * d,
                                NULL, score, t, s, d, t);
        for (uint64_t j = 0; j < s * t; j++) {
            score[j] *= scale;
            if (m == NULL) continue;
            uint64_t at = j / t * stride[q->rank - 2] + j % t * stride[q->rank - 1], rest = i;
            for (uint32_t r = q->rank - 2; r-- > 0; rest /= q->dim[r]) at += rest % q->dim[r] * stride[r];
            float v = ml_in(c, "attn_mask")[at];
            score[j] = m->dtype == IMP_MIL_BOOL ? (v != 0 ? score[j] : -INFINITY) : score[j] + v;
        }
        for (uint64_t r = 0; r < s; r++) softmax_axis(score + r * t, score + r * t, t, 1);
        c->failed |= !ml_gemm(g, c->e->pool, score, ml_in(c, "value") + i * t * dv, NULL, c->out + i * s * dv,
                              s, t, dv);
    }
}

const struct ml_op_row ml_math_ops[] = {
    {"conv", conv},
    {"linear", linear},
    {"matmul", matmul},
    {"scaled_dot_product_attention", attention},
    {"add", op_add},
    {"sub", op_sub},
    {"mul", op_mul},
    {"real_div", op_div},
    {"maximum", op_max},
    {"minimum", op_min},
    {"pow", op_pow},
    {"abs", op_abs},
    {"silu", op_silu},
    {"sigmoid", op_sigmoid},
    {"tanh", op_tanh},
    {"relu", op_relu},
    {"exp", op_exp},
    {"erf", op_erf},
    {"sqrt", op_sqrt},
    {"square", op_square},
    {"rsqrt", op_rsqrt},
    {"inverse", op_inverse},
    {"gelu", gelu},
    {"clip", clip},
    {"cast", cast},
    {"select", select_},
    {"softmax", softmax},
    {"layer_norm", layer_norm},
    {"reduce_mean", reduce_mean},
    {"reduce_sum", reduce_sum},
    {"reduce_max", reduce_max},
};
const size_t ml_n_math_op = IMP_COUNT(ml_math_ops);
