/* dev/coreml/eval_math.c - ops of ML Programs that compute: elementwise, reductions, products.
 *
 * Idea:    products are one row-major f32 product with a 4 x 64 tile of accumulators, spread over the pool; elementwise
 *          ops and reductions walk all elements with a stride of 0 in the dimensions that repeat. */
#include "dev/coreml/eval_int.h"

#include <math.h>

/* ---- the product -------------------------------------------------------------------------------------------- */

enum { TM = 4, TN = 64 };

typedef struct gemm {
    const float *a, *b, *bias;
    float *c;
    uint64_t m, k, n;
} gemm;

/* Rows i..i+rows-1, columns j..j+cols-1. */
static void tile(const gemm *g, uint64_t i, uint64_t j)
{
    float acc[TM][TN], row[TN];
    uint64_t rows = IMP_MIN(g->m - i, (uint64_t)TM), cols = IMP_MIN(g->n - j, (uint64_t)TN);
    memset(acc, 0, sizeof acc);
    memset(row, 0, sizeof row);
    for (uint64_t k = 0; k < g->k; k++) {
        const float *b = g->b + k * g->n + j;
        if (cols < TN) {
            memcpy(row, b, (size_t)cols * sizeof *row);
            b = row;
        }
        for (uint64_t r = 0; r < rows; r++) {
            float w = g->a[(i + r) * g->k + k];
            for (int x = 0; x < TN; x++) acc[r][x] += w * b[x];
        }
    }
    for (uint64_t r = 0; r < rows; r++)
        for (uint64_t x = 0; x < cols; x++)
            g->c[(i + r) * g->n + j + x] = acc[r][x] + (g->bias != NULL ? g->bias[i + r] : 0);
}

static void gemm_part(void *ctx, uint32_t ith, uint32_t n_thread)
{
    const gemm *g = ctx;
    uint64_t across = (g->n + TN - 1) / TN, n_tile = (g->m + TM - 1) / TM * across;
    for (uint64_t t = ith; t < n_tile; t += n_thread) tile(g, t / across * TM, t % across * TN);
}

void ml_gemm(imp_pool *pool, const float *a, const float *b, const float *bias, float *c, uint64_t m,
             uint64_t k, uint64_t n)
{
    gemm g = {a, b, bias, c, m, k, n};
    if (pool == NULL || m * k * n < 1 << 16)
        gemm_part(&g, 0, 1);
    else
        imp_pool_run(pool, gemm_part, &g);
}

/* to[c][r] = from[r][c] */
static void flip(float *to, const float *from, uint64_t rows, uint64_t cols)
{
    for (uint64_t r = 0; r < rows; r++)
        for (uint64_t c = 0; c < cols; c++) to[c * rows + r] = from[r * cols + c];
}

static void conv(ml_ctx *c)
{
    const imp_mil_type *x = ml_type(c, "x");
    uint64_t n = x->dim[2] * x->dim[3], k = x->dim[1], m = c->to->dim[1];
    for (uint64_t b = 0; b < x->dim[0]; b++)
        ml_gemm(c->e->pool, ml_in(c, "weight"), ml_in(c, "x") + b * k * n, ml_in(c, "bias"),
                c->out + b * m * n, m, k, n);
}

static void linear(ml_ctx *c)
{
    const imp_mil_type *w = ml_type(c, "weight");
    uint64_t n = w->dim[0], k = w->dim[1], m = imp_mil_n_elem(ml_type(c, "x")) / k;
    const float *bias = ml_in(c, "bias");
    float *wt = ml_spare(c, 0, n * k);
    if (wt == NULL) return;
    flip(wt, ml_in(c, "weight"), n, k);
    ml_gemm(c->e->pool, ml_in(c, "x"), wt, NULL, c->out, m, k, n);
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
    float *at = tx ? ml_spare(c, 0, m * k) : NULL, *bt = ty ? ml_spare(c, 1, k * n) : NULL;
    if (c->failed) return;
    for (uint64_t i = 0; i < n_mat; i++) {
        const float *a = ml_in(c, "x") + matrix_of(i, o, x) * m * k,
                    *b = ml_in(c, "y") + matrix_of(i, o, y) * k * n;
        if (tx) flip(at, a, k, m), a = at;
        if (ty) flip(bt, b, n, k), b = bt;
        ml_gemm(c->e->pool, a, b, NULL, c->out + i * m * n, m, k, n);
    }
}

/* ---- elementwise --------------------------------------------------------------------------------------------- */

/* eps: the op's own default of its parameter epsilon, 0 where it has none. */
#define UNARY_EPS(name, def, expr)                                                                           \
    static void name(ml_ctx *c)                                                                              \
    {                                                                                                        \
        const float *in = ml_in(c, "x");                                                                     \
        double eps = ml_number(c, "epsilon", def);                                                           \
        (void)eps;                                                                                           \
        for (uint64_t i = 0, n = imp_mil_n_elem(c->to); i < n; i++) {                                        \
            double x = (double)in[i];                                                                        \
            c->out[i] = (float)(expr);                                                                       \
        }                                                                                                    \
    }
#define UNARY(name, expr) UNARY_EPS(name, 0, expr)
UNARY(op_abs, fabs(x))
UNARY(op_silu, x / (1 + exp(-x)))
UNARY(op_sigmoid, 1 / (1 + exp(-x)))
UNARY(op_tanh, tanh(x))
UNARY(op_relu, x > 0 ? x : 0)
UNARY(op_exp, exp(x))
UNARY(op_erf, erf(x))
UNARY(op_sqrt, sqrt(x))
UNARY(op_square, x *x)
UNARY_EPS(op_rsqrt, 1e-12, 1 / sqrt(x + eps))
UNARY_EPS(op_inverse, 1e-4, 1 / (x + eps))
UNARY(gelu_exact, 0.5 * x * (1 + erf(x / sqrt(2.0))))
UNARY(gelu_tanh, 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x))))
UNARY(gelu_sigmoid, x / (1 + exp(-1.702 * x)))

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

typedef float (*pair_fn)(float a, float b);

static void pairs(ml_ctx *c, pair_fn fn)
{
    uint64_t sa[IMP_MIL_MAX_RANK], sb[IMP_MIL_MAX_RANK], at[IMP_MIL_MAX_RANK] = {0};
    const imp_mil_type *o = c->to;
    const float *a = ml_in(c, "x"), *b = ml_in(c, "y");
    uint64_t n = o->rank > 0 ? o->dim[o->rank - 1] : 1, rows = imp_mil_n_elem(o) / n, ia = 0, ib = 0;
    repeat_strides(o, ml_type(c, "x"), sa);
    repeat_strides(o, ml_type(c, "y"), sb);
    uint64_t da = o->rank > 0 ? sa[o->rank - 1] : 0, db = o->rank > 0 ? sb[o->rank - 1] : 0;
    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t i = 0; i < n; i++) c->out[r * n + i] = fn(a[ia + i * da], b[ib + i * db]);
        for (uint32_t k = o->rank > 0 ? o->rank - 1 : 0; k-- > 0;) {
            ia += sa[k], ib += sb[k];
            if (++at[k] < o->dim[k]) break;
            ia -= sa[k] * o->dim[k], ib -= sb[k] * o->dim[k];
            at[k] = 0;
        }
    }
}

#define PAIR(name, expr)                                                                                     \
    static float name##_1(float a, float b)                                                                  \
    {                                                                                                        \
        return expr;                                                                                         \
    }                                                                                                        \
    static void name(ml_ctx *c)                                                                              \
    {                                                                                                        \
        pairs(c, name##_1);                                                                                  \
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
        double max = -INFINITY, sum = 0;
        for (uint64_t i = 0; i < n; i++) max = fmax(max, (double)x[i * inner + k]);
        for (uint64_t i = 0; i < n; i++)
            sum += (double)(y[i * inner + k] = expf((float)((double)x[i * inner + k] - max)));
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
    float *kt = ml_spare(c, 0, d * t + s * t), scale = (float)(1 / sqrt((double)d));
    if (kt == NULL) return;
    float *score = kt + d * t;
    imp_mil_type scores = *q;
    scores.dim[q->rank - 1] = t;
    if (m != NULL) repeat_strides(&scores, m, stride);
    for (uint64_t i = 0; i < n; i++) {
        flip(kt, ml_in(c, "key") + i * t * d, t, d);
        ml_gemm(c->e->pool, ml_in(c, "query") + i * s * d, kt, NULL, score, s, d, t);
        for (uint64_t j = 0; j < s * t; j++) {
            score[j] *= scale;
            if (m == NULL) continue;
            uint64_t at = j / t * stride[q->rank - 2] + j % t * stride[q->rank - 1], rest = i;
            for (uint32_t r = q->rank - 2; r-- > 0; rest /= q->dim[r]) at += rest % q->dim[r] * stride[r];
            float v = ml_in(c, "attn_mask")[at];
            score[j] = m->dtype == IMP_MIL_BOOL ? (v != 0 ? score[j] : -INFINITY) : score[j] + v;
        }
        for (uint64_t r = 0; r < s; r++) softmax_axis(score + r * t, score + r * t, t, 1);
        ml_gemm(c->e->pool, score, ml_in(c, "value") + i * t * dv, NULL, c->out + i * s * dv, s, t, dv);
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
