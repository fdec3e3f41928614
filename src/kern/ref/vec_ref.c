/* kern/ref/vec_ref.c - row kernels in plain C with f64 inside: the truth for the SIMD ones.
 *
 * Idea:    the formulas as written in kern.h; quant_q8 and the f16 conversions are exact definitions that the
 *          others reproduce bit for bit, everything else within a few ulp. */
#include "kern/variant.h"

#include <float.h>
#include <math.h>

static void rms_norm(float *y, const float *x, const float *w, float w_offset, float eps, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    double r = 1 / sqrt(sum / (double)n + (double)eps);
    for (size_t i = 0; i < n; i++)
        y[i] = (float)((double)x[i] * r * (w ? (double)w[i] + (double)w_offset : 1));
}

static void layer_norm(float *y, const float *x, const float *w, const float *b, float eps, size_t n)
{
    double sum = 0, var = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i];
    double mean = sum / (double)n;
    for (size_t i = 0; i < n; i++) var += ((double)x[i] - mean) * ((double)x[i] - mean);
    double r = 1 / sqrt(var / (double)n + (double)eps);
    for (size_t i = 0; i < n; i++)
        y[i] = (float)(((double)x[i] - mean) * r * (w ? (double)w[i] : 1) + (b ? (double)b[i] : 0));
}

static void l2_norm(float *y, const float *x, float eps, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    double len = sqrt(sum);
    if (len < (double)eps) len = (double)eps;
    for (size_t i = 0; i < n; i++) y[i] = (float)((double)x[i] / len);
}

static void softmax(float *y, const float *x, size_t n)
{
    double max = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++)
        if ((double)x[i] > max) max = (double)x[i];
    for (size_t i = 0; i < n; i++) sum += exp((double)x[i] - max);
    for (size_t i = 0; i < n; i++) y[i] = (float)(exp((double)x[i] - max) / sum);
}

static double act_of(double x, imp_kact kind)
{
    switch (kind) {
    case IMP_KACT_SILU: return x / (1 + exp(-x));
    case IMP_KACT_GELU: return 0.5 * x * erfc(-x * M_SQRT1_2);
    case IMP_KACT_GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case IMP_KACT_RELU: return x > 0 || isnan(x) ? x : 0;
    case IMP_KACT_TANH: return tanh(x);
    case IMP_KACT_SIGMOID: return 1 / (1 + exp(-x));
    case IMP_N_KACT: break;
    }
    return x;
}

static void act(float *y, const float *x, imp_kact kind, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = (float)act_of((double)x[i], kind);
}

static void glu(float *y, const float *gate, const float *up, imp_kact kind, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = (float)(act_of((double)gate[i], kind) * (double)up[i]);
}

static void add(float *y, const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = a[i] + b[i];
}

static void mul(float *y, const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = a[i] * b[i];
}

static void scale(float *y, const float *x, float c, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = x[i] * c;
}

static void axpy(float *y, float c, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = fmaf(c, x[i], y[i]);
}

static void softcap(float *y, const float *x, float c, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = (float)((double)c * tanh((double)x[i] / (double)c));
}

static void rope(float *y, const float *x, const float *cs, const float *sn, uint32_t n_head,
                 uint32_t head_dim, uint32_t n_rot, bool interleaved)
{
    uint32_t half = n_rot / 2;
    for (uint32_t h = 0; h < n_head; h++, x += head_dim, y += head_dim) {
        for (uint32_t i = 0; i < half; i++) {
            uint32_t i0 = interleaved ? 2 * i : i, i1 = interleaved ? 2 * i + 1 : i + half;
            double a = (double)x[i0], b = (double)x[i1], c = (double)cs[i], s = (double)sn[i];
            y[i0] = (float)(a * c - b * s);
            y[i1] = (float)(a * s + b * c);
        }
        for (uint32_t i = n_rot; i < head_dim; i++) y[i] = x[i];
    }
}

static float dot(const float *a, const float *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
    return (float)sum;
}

static void f32_to_f16(uint16_t *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = imp_f32_to_f16(x[i]);
}

static void f16_to_f32(float *y, const uint16_t *x, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = imp_f16_to_f32(x[i]);
}

/* Rows whose largest element is below 2^-100 count as zero: 127 / max would overflow. */
static void quant_q8(imp_q8_block *y, const float *x, size_t k)
{
    for (size_t b = 0; b < k / 32; b++, x += 32) {
        float max = 0;
        bool finite = true;
        for (int i = 0; i < 32; i++) {
            float v = fabsf(x[i]);
            finite = finite && v <= FLT_MAX;
            if (v > max) max = v;
        }
        bool zero = !finite || max < 0x1p-100f;
        y[b].d = !finite ? NAN : zero ? 0 : max / 127.0f;
        float inv = zero ? 0 : 127.0f / max;
        y[b].sum = 0;
        for (int i = 0; i < 32; i++) {
            y[b].q[i] = zero ? 0 : (int8_t)rintf(x[i] * inv);
            y[b].sum += y[b].q[i];
        }
    }
}

const imp_vec imp_vec_ref = {
    .isa = "ref",
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .l2_norm = l2_norm,
    .softmax = softmax,
    .act = act,
    .glu = glu,
    .add = add,
    .mul = mul,
    .scale = scale,
    .axpy = axpy,
    .softcap = softcap,
    .rope = rope,
    .dot = dot,
    .f32_to_f16 = f32_to_f16,
    .f16_to_f32 = f16_to_f32,
    .quant_q8 = quant_q8,
};
