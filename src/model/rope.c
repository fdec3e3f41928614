/* model/rope.c - RoPE frequencies: plain, linear, llama3, yarn, longrope.
 *
 * Place:   called by net.c once a model; the table goes into the graph's ROPE nodes.
 * Idea:    f_i = theta^(-2i/d) for i < d/2, then what the scaling does to each f_i. Powers and quotients are rounded
 *          to f32 where PyTorch rounds them, so that angles far out agree with the model as it was trained.
 * Source:  Su et al. 2021 (RoPE); Chen et al. 2023 (linear); Peng et al. 2023 (YaRN), section 3; Ding et al. 2024
 *          (LongRoPE); the llama3 rule from Meta's release of Llama 3.1. Defaults as in transformers'
 *          modeling_rope_utils. */
#include "model/model_int.h"

#include <math.h>

static const double two_pi = 6.283185307179586476925286766559;

void imp_rope_default(imp_rope_spec *r, double theta)
{
    *r = (imp_rope_spec){.kind = IMP_ROPE_PLAIN,
                         .theta = theta,
                         .beta_fast = 32,
                         .beta_slow = 1,
                         .truncate = true,
                         .attention_mul = 1};
}

bool imp_rope_kind_from_name(const char *name, size_t n, imp_rope_kind *out)
{
    static const struct {
        const char *name;
        imp_rope_kind kind;
    } kinds[] = {
        {"default", IMP_ROPE_PLAIN}, {"none", IMP_ROPE_PLAIN}, {"linear", IMP_ROPE_LINEAR},
        {"llama3", IMP_ROPE_LLAMA3}, {"yarn", IMP_ROPE_YARN},  {"longrope", IMP_ROPE_LONG},
        {"su", IMP_ROPE_LONG},
    };
    for (size_t i = 0; i < IMP_COUNT(kinds); i++) {
        if (strlen(kinds[i].name) != n || memcmp(kinds[i].name, name, n) != 0) continue;
        *out = kinds[i].kind;
        return true;
    }
    return false;
}

static bool positive(double x)
{
    return isfinite(x) && x > 0;
}

/* Low frequencies (wavelength beyond orig/low) are divided by factor, high ones kept, a ramp between. */
static void scale_llama3(const imp_rope_spec *r, float *inv_freq, uint32_t n)
{
    double low_wavelen = r->orig_ctx / r->low_freq_factor, high_wavelen = r->orig_ctx / r->high_freq_factor;
    for (uint32_t i = 0; i < n; i++) {
        double f = inv_freq[i], wavelen = two_pi / f;
        if (wavelen < high_wavelen) continue;
        double scaled = f / r->factor;
        if (wavelen <= low_wavelen) {
            double smooth =
                (r->orig_ctx / wavelen - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);
            scaled = (1 - smooth) * scaled + smooth * f;
        }
        inv_freq[i] = (float)scaled;
    }
}

/* The dimension that turns `rotations` times over the original context. */
static double yarn_dim(const imp_rope_spec *r, double rotations, uint32_t n_rot)
{
    return n_rot * log(r->orig_ctx / (rotations * two_pi)) / (2 * log(r->theta));
}

static void scale_yarn(const imp_rope_spec *r, float *inv_freq, uint32_t n_rot)
{
    double low = yarn_dim(r, r->beta_fast, n_rot), high = yarn_dim(r, r->beta_slow, n_rot);
    if (r->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, (double)n_rot - 1);
    if (low == high) high += 0.001;
    for (uint32_t i = 0; i < n_rot / 2; i++) {
        double ramp = fmin(fmax((i - low) / (high - low), 0), 1);
        inv_freq[i] = (float)(inv_freq[i] / r->factor * ramp + inv_freq[i] * (1 - ramp));
    }
}

static double yarn_mscale(double scale, double mscale)
{
    return scale <= 1 ? 1 : 0.1 * mscale * log(scale) + 1;
}

static double attention_factor(const imp_rope_spec *r)
{
    if (r->attention_factor > 0) return r->attention_factor;
    double f = 1;
    if (r->kind == IMP_ROPE_YARN) {
        if (r->mscale != 0 && r->mscale_all_dim != 0)
            f = yarn_mscale(r->factor, r->mscale) / yarn_mscale(r->factor, r->mscale_all_dim);
        else
            f = yarn_mscale(r->factor, 1);
    } else if (r->kind == IMP_ROPE_LONG && r->factor > 1) {
        f = sqrt(1 + log(r->factor) / log(r->orig_ctx));
    }
    return f * r->attention_mul;
}

static imp_status check(const imp_rope_spec *r, uint32_t n_half, imp_error *err)
{
    if (!positive(r->theta) || r->theta <= 1)
        return imp_fail(err, IMP_FORMAT, "the RoPE base is %g; it must be above 1", r->theta);
    if (r->kind != IMP_ROPE_PLAIN && r->kind != IMP_ROPE_LONG && (!positive(r->factor)))
        return imp_fail(err, IMP_FORMAT, "RoPE scaling needs a positive factor, the file says %g", r->factor);
    bool needs_orig = r->kind == IMP_ROPE_LLAMA3 || r->kind == IMP_ROPE_YARN || r->kind == IMP_ROPE_LONG;
    if (needs_orig && !(r->orig_ctx > 1 && r->orig_ctx <= IMP_MAX_CTX))
        return imp_fail(err, IMP_FORMAT, "RoPE scaling needs the original context length, the file says %g",
                        r->orig_ctx);
    if (r->kind == IMP_ROPE_LLAMA3 && !(positive(r->low_freq_factor) && isfinite(r->high_freq_factor) &&
                                        r->high_freq_factor > r->low_freq_factor))
        return imp_fail(err, IMP_FORMAT,
                        "llama3 RoPE scaling needs 0 < low_freq_factor < high_freq_factor, got %g, %g",
                        r->low_freq_factor, r->high_freq_factor);
    if (r->kind == IMP_ROPE_YARN &&
        !(positive(r->beta_slow) && isfinite(r->beta_fast) && r->beta_fast >= r->beta_slow))
        return imp_fail(err, IMP_FORMAT, "yarn RoPE scaling needs 0 < beta_slow <= beta_fast, got %g, %g",
                        r->beta_slow, r->beta_fast);
    if (r->kind == IMP_ROPE_LONG && (!r->long_factor || !r->short_factor))
        return imp_fail(err, IMP_FORMAT, "longrope needs both lists of factors (long and short)");
    if ((r->kind == IMP_ROPE_LONG || r->divisor) && r->n_factor != n_half)
        return imp_fail(err, IMP_FORMAT, "RoPE factors: the model needs %u, the file has %u", n_half,
                        r->n_factor);
    return IMP_OK;
}

imp_status imp_rope_table(const imp_rope_spec *r, uint32_t n_rot, uint32_t n_ctx, float *inv_freq,
                          float *mscale, imp_error *err)
{
    uint32_t n = n_rot / 2;
    IMP_TRY(check(r, n, err));
    const float *divisor = r->divisor;
    if (r->kind == IMP_ROPE_LONG) divisor = n_ctx > r->orig_ctx ? r->long_factor : r->short_factor;
    for (uint32_t i = 0; i < n; i++) {
        float exponent = (float)(2 * i) / (float)n_rot;
        float p = (float)pow(r->theta, exponent);
        if (divisor) {
            if (!positive(divisor[i]))
                return imp_fail(err, IMP_FORMAT, "RoPE factor %u is %g; it must be positive", i,
                                (double)divisor[i]);
            p *= divisor[i];
        }
        inv_freq[i] = 1.0f / p;
        if (r->kind == IMP_ROPE_LINEAR) inv_freq[i] /= (float)r->factor;
    }
    if (r->kind == IMP_ROPE_LLAMA3) scale_llama3(r, inv_freq, n);
    if (r->kind == IMP_ROPE_YARN) scale_yarn(r, inv_freq, n_rot);
    *mscale = (float)attention_factor(r);
    for (uint32_t i = 0; i < n; i++)
        if (!isfinite(inv_freq[i])) return imp_fail(err, IMP_FORMAT, "RoPE frequency %u is not finite", i);
    if (!positive(*mscale))
        return imp_fail(err, IMP_FORMAT, "the RoPE attention factor is %g", (double)*mscale);
    return IMP_OK;
}
