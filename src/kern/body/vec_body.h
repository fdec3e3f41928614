/* kern/body/vec_body.h - the row kernels, for any width of vector.
 *
 * Place:   included once by vec_<isa>.c after that instruction set's simd_*.h; defines VEC_FUNCTIONS.
 * Idea:    whole vectors, then one partial vector through the same instructions: an element's bits do not depend on
 *          where a range begins. Sums run in four accumulators in an order fixed by n alone.
 * Accuracy: checkkern holds each function to its bound against kern/ref. */
#ifndef IMP_KERN_VEC_BODY_H
#define IMP_KERN_VEC_BODY_H

#include <float.h>
#include <math.h>

#include "kern/body/math_body.h"
#include "kern/body/quant_body.h"

typedef vf (*unary_fn)(vf x, vf c);
typedef vf (*binary_fn)(vf a, vf b, vf c);
typedef vf (*fold_fn)(vf acc, vf a, vf b, vf c);

IMP_INLINE void map1(float *y, const float *x, float c, size_t n, unary_fn f)
{
    vf cv = v_set1(c);
    size_t i = 0;
    for (; i + W <= n; i += W) v_store(y + i, f(v_load(x + i), cv));
    if (i < n) v_storen(y + i, f(v_loadn(x + i, n - i, 0), cv), n - i);
}

IMP_INLINE void map2(float *y, const float *a, const float *b, float c, size_t n, binary_fn f)
{
    vf cv = v_set1(c);
    size_t i = 0;
    for (; i + W <= n; i += W) v_store(y + i, f(v_load(a + i), v_load(b + i), cv));
    if (i < n) v_storen(y + i, f(v_loadn(a + i, n - i, 0), v_loadn(b + i, n - i, 0), cv), n - i);
}

/* f folded over all (a[i], b[i]) from zero; the lanes past n hold `fill`, which f must leave without effect. */
IMP_INLINE float fold(const float *a, const float *b, float c, float fill, size_t n, fold_fn f)
{
    vf cv = v_set1(c), s[4] = {v_set1(0), v_set1(0), v_set1(0), v_set1(0)};
    size_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
        IMP_UNROLL
        for (size_t j = 0; j < 4; j++) s[j] = f(s[j], v_load(a + i + j * W), v_load(b + i + j * W), cv);
    }
    for (; i + W <= n; i += W) s[0] = f(s[0], v_load(a + i), v_load(b + i), cv);
    if (i < n) s[1] = f(s[1], v_loadn(a + i, n - i, fill), v_loadn(b + i, n - i, fill), cv);
    return v_hsum((s[0] + s[1]) + (s[2] + s[3]));
}

IMP_INLINE vf fold_mul(vf acc, vf a, vf b, vf c)
{
    (void)c;
    return v_fma(a, b, acc);
}
IMP_INLINE vf fold_sum(vf acc, vf a, vf b, vf c)
{
    (void)b, (void)c;
    return acc + a;
}
IMP_INLINE vf fold_var(vf acc, vf a, vf b, vf c)
{
    (void)b;
    vf d = a - c;
    return v_fma(d, d, acc);
}

static float dot(const float *a, const float *b, size_t n)
{
    return fold(a, b, 0, 0, n, fold_mul);
}

IMP_INLINE vf un_scale(vf x, vf c)
{
    return x * c;
}
static void scale(float *y, const float *x, float c, size_t n)
{
    map1(y, x, c, n, un_scale);
}

IMP_INLINE vf bi_norm(vf x, vf w, vf r)
{
    return x * r * w;
}
static void rms_norm(float *y, const float *x, const float *w, float w_offset, float eps, size_t n)
{
    float r = 1.0f / sqrtf(fold(x, x, 0, 0, n, fold_mul) / (float)n + eps);
    if (w == NULL) {
        scale(y, x, r, n);
        return;
    }
    vf rv = v_set1(r), off = v_set1(w_offset);
    size_t i = 0;
    for (; i + W <= n; i += W) v_store(y + i, bi_norm(v_load(x + i), v_load(w + i) + off, rv));
    if (i < n) v_storen(y + i, bi_norm(v_loadn(x + i, n - i, 0), v_loadn(w + i, n - i, 0) + off, rv), n - i);
}

static void layer_norm(float *y, const float *x, const float *w, const float *b, float eps, size_t n)
{
    float mean = fold(x, x, 0, 0, n, fold_sum) / (float)n;
    float r = 1.0f / sqrtf(fold(x, x, mean, mean, n, fold_var) / (float)n + eps);
    vf rv = v_set1(r), mv = v_set1(mean), one = v_set1(1), zero = v_set1(0);
    size_t i = 0;
    for (; i + W <= n; i += W) {
        vf t = (v_load(x + i) - mv) * rv;
        v_store(y + i, v_fma(t, w ? v_load(w + i) : one, b ? v_load(b + i) : zero));
    }
    if (i < n) {
        size_t left = n - i;
        vf t = (v_loadn(x + i, left, 0) - mv) * rv;
        t = v_fma(t, w ? v_loadn(w + i, left, 0) : one, b ? v_loadn(b + i, left, 0) : zero);
        v_storen(y + i, t, left);
    }
}

static void l2_norm(float *y, const float *x, float eps, size_t n)
{
    float len = sqrtf(fold(x, x, 0, 0, n, fold_mul));
    scale(y, x, 1.0f / (len < eps ? eps : len), n);
}

static void softmax(float *y, const float *x, size_t n)
{
    vf m = v_set1(-INFINITY), sum = v_set1(0);
    size_t i = 0;
    for (; i + W <= n; i += W) m = v_max(m, v_load(x + i));
    if (i < n) m = v_max(m, v_loadn(x + i, n - i, -INFINITY));
    vf max = v_set1(v_hmax(m));
    for (i = 0; i + W <= n; i += W) {
        vf e = v_exp(v_load(x + i) - max);
        sum = sum + e;
        v_store(y + i, e);
    }
    if (i < n) {
        vf e = v_exp(v_loadn(x + i, n - i, -INFINITY) - max);
        sum = sum + e;
        v_storen(y + i, e, n - i);
    }
    scale(y, y, 1.0f / v_hsum(sum), n);
}

IMP_INLINE vf un_silu(vf x, vf c)
{
    (void)c;
    return x / (v_set1(1) + v_exp(-x));
}
IMP_INLINE vf un_sigmoid(vf x, vf c)
{
    (void)c;
    return v_set1(1) / (v_set1(1) + v_exp(-x));
}
IMP_INLINE vf un_gelu(vf x, vf c)
{
    (void)c;
    return v_set1(0.5f) * x * (v_set1(1) + v_erf(x * v_set1((float)M_SQRT1_2)));
}
IMP_INLINE vf un_gelu_tanh(vf x, vf c)
{
    (void)c;
    vf inner = x * v_fma(x * x, v_set1(0.044715f), v_set1(1)) * v_set1(0.79788456f); /* sqrt(2 / pi) */
    return v_set1(0.5f) * x * (v_set1(1) + v_tanh(inner));
}
IMP_INLINE vf un_relu(vf x, vf c)
{
    (void)c;
    return v_max(v_set1(0), x);
}
IMP_INLINE vf un_tanh(vf x, vf c)
{
    (void)c;
    return v_tanh(x);
}
IMP_INLINE vf un_softcap(vf x, vf c)
{
    return c * v_tanh(x / c);
}

static void act(float *y, const float *x, imp_kact kind, size_t n)
{
    switch (kind) {
    case IMP_KACT_SILU: map1(y, x, 0, n, un_silu); break;
    case IMP_KACT_GELU: map1(y, x, 0, n, un_gelu); break;
    case IMP_KACT_GELU_TANH: map1(y, x, 0, n, un_gelu_tanh); break;
    case IMP_KACT_RELU: map1(y, x, 0, n, un_relu); break;
    case IMP_KACT_TANH: map1(y, x, 0, n, un_tanh); break;
    case IMP_KACT_SIGMOID: map1(y, x, 0, n, un_sigmoid); break;
    case IMP_N_KACT: break;
    }
}

#define GLU_OF(name)                                                                                         \
    IMP_INLINE vf bi_##name(vf a, vf b, vf c)                                                                \
    {                                                                                                        \
        return un_##name(a, c) * b;                                                                          \
    }
GLU_OF(silu)
GLU_OF(gelu)
GLU_OF(gelu_tanh)
GLU_OF(relu)
GLU_OF(tanh)
GLU_OF(sigmoid)

static void glu(float *y, const float *gate, const float *up, imp_kact kind, size_t n)
{
    switch (kind) {
    case IMP_KACT_SILU: map2(y, gate, up, 0, n, bi_silu); break;
    case IMP_KACT_GELU: map2(y, gate, up, 0, n, bi_gelu); break;
    case IMP_KACT_GELU_TANH: map2(y, gate, up, 0, n, bi_gelu_tanh); break;
    case IMP_KACT_RELU: map2(y, gate, up, 0, n, bi_relu); break;
    case IMP_KACT_TANH: map2(y, gate, up, 0, n, bi_tanh); break;
    case IMP_KACT_SIGMOID: map2(y, gate, up, 0, n, bi_sigmoid); break;
    case IMP_N_KACT: break;
    }
}

IMP_INLINE vf bi_add(vf a, vf b, vf c)
{
    (void)c;
    return a + b;
}
IMP_INLINE vf bi_mul(vf a, vf b, vf c)
{
    (void)c;
    return a * b;
}
IMP_INLINE vf bi_axpy(vf y, vf x, vf c)
{
    return v_fma(c, x, y);
}
static void add(float *y, const float *a, const float *b, size_t n)
{
    map2(y, a, b, 0, n, bi_add);
}
static void mul(float *y, const float *a, const float *b, size_t n)
{
    map2(y, a, b, 0, n, bi_mul);
}
static void axpy(float *y, float c, const float *x, size_t n)
{
    map2(y, y, x, c, n, bi_axpy);
}
static void softcap(float *y, const float *x, float c, size_t n)
{
    map1(y, x, c, n, un_softcap);
}

IMP_INLINE void rotate(vf a, vf b, vf c, vf s, vf *x, vf *y)
{
    *x = v_fnma(b, s, a * c);
    *y = v_fma(b, c, a * s);
}

/* One head, pairs (i, i + half). */
IMP_INLINE void rope_halves(float *y, const float *x, const float *cs, const float *sn, size_t half)
{
    size_t i = 0;
    vf p, q;
    for (; i + W <= half; i += W) {
        rotate(v_load(x + i), v_load(x + half + i), v_load(cs + i), v_load(sn + i), &p, &q);
        v_store(y + i, p);
        v_store(y + half + i, q);
    }
    if (i < half) {
        size_t n = half - i;
        rotate(v_loadn(x + i, n, 0), v_loadn(x + half + i, n, 0), v_loadn(cs + i, n, 0),
               v_loadn(sn + i, n, 0), &p, &q);
        v_storen(y + i, p, n);
        v_storen(y + half + i, q, n);
    }
}

/* One head, pairs (2i, 2i + 1). */
IMP_INLINE void rope_pairs(float *y, const float *x, const float *cs, const float *sn, size_t half)
{
    vf a, b, p, q;
    size_t i = 0;
    for (; i + W <= half; i += W) {
        v_split(v_load(x + 2 * i), v_load(x + 2 * i + W), &a, &b);
        rotate(a, b, v_load(cs + i), v_load(sn + i), &p, &q);
        v_join(p, q, &a, &b);
        v_store(y + 2 * i, a);
        v_store(y + 2 * i + W, b);
    }
    if (i < half) {
        size_t n = half - i;
        float t[2 * W] = {0};
        memcpy(t, x + 2 * i, 2 * n * sizeof(float));
        v_split(v_load(t), v_load(t + W), &a, &b);
        rotate(a, b, v_loadn(cs + i, n, 0), v_loadn(sn + i, n, 0), &p, &q);
        v_join(p, q, &a, &b);
        v_store(t, a);
        v_store(t + W, b);
        memcpy(y + 2 * i, t, 2 * n * sizeof(float));
    }
}

static void rope(float *y, const float *x, const float *cs, const float *sn, uint32_t n_head,
                 uint32_t head_dim, uint32_t n_rot, bool interleaved)
{
    for (uint32_t h = 0; h < n_head; h++, x += head_dim, y += head_dim) {
        if (interleaved)
            rope_pairs(y, x, cs, sn, n_rot / 2);
        else
            rope_halves(y, x, cs, sn, n_rot / 2);
        if (y != x) memcpy(y + n_rot, x + n_rot, (head_dim - n_rot) * sizeof(float));
    }
}

static void f32_to_f16(uint16_t *y, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + W <= n; i += W) v_store_f16(y + i, v_load(x + i));
    if (i < n) v_storen_f16(y + i, v_loadn(x + i, n - i, 0), n - i);
}

static void f16_to_f32(float *y, const uint16_t *x, size_t n)
{
    size_t i = 0;
    for (; i + W <= n; i += W) v_store(y + i, v_load_f16(x + i));
    if (i < n) v_storen(y + i, v_loadn_f16(x + i, n - i), n - i);
}

#define VEC_FUNCTIONS                                                                                        \
    .rms_norm = rms_norm, .layer_norm = layer_norm, .l2_norm = l2_norm, .softmax = softmax, .act = act,      \
    .glu = glu, .add = add, .mul = mul, .scale = scale, .axpy = axpy, .softcap = softcap, .rope = rope,      \
    .dot = dot, .f32_to_f16 = f32_to_f16, .f16_to_f32 = f16_to_f32, .quant_q8 = quant_q8

#endif
