/* model/config.c - limits and relations of the neutral configuration, whatever file it came from. */
#include "model/model_int.h"

#include <inttypes.h>
#include <math.h>

imp_status imp_spec_u32(const char *key, uint64_t v, uint64_t lo, uint64_t hi, uint32_t *out, imp_error *err)
{
    if (v < lo || v > hi)
        return imp_fail_field(err, IMP_FORMAT, key,
                              "%s is %" PRIu64 "; this program takes %" PRIu64 " to %" PRIu64, key, v, lo,
                              hi);
    *out = (uint32_t)v;
    return IMP_OK;
}

imp_status imp_spec_set_local(imp_spec *s, uint32_t period, imp_error *err)
{
    if (s->window == 0) return IMP_OK;
    imp_window_rule rule = s->arch->window_rule;
    if (period == 0) {
        period = s->arch->window_period;
    } else if (rule != IMP_WINDOW_FIRST_FULL) {
        rule = IMP_WINDOW_PERIOD;
    }
    if (rule == IMP_WINDOW_UNKNOWN)
        return imp_fail(err, IMP_UNSUPPORTED,
                        "the model has a sliding window of %u tokens but does not say which layers use it",
                        s->window);
    for (uint32_t i = 0; i < s->n_layer; i++) {
        switch (rule) {
        case IMP_WINDOW_PERIOD: s->local[i] = (i + 1) % period != 0; break;
        case IMP_WINDOW_FIRST_FULL: s->local[i] = i % period != 0; break;
        case IMP_WINDOW_ALL: s->local[i] = true; break;
        case IMP_WINDOW_UNKNOWN: break;
        }
    }
    return IMP_OK;
}

static bool sane_factor(double x)
{
    return isfinite(x) && x >= 0;
}

static imp_status check_heads(const imp_spec *s, imp_error *err)
{
    if (s->n_head % s->n_kv_head != 0)
        return imp_fail(err, IMP_FORMAT, "%u attention heads cannot share %u key-value heads evenly",
                        s->n_head, s->n_kv_head);
    if (s->n_rot > s->head_dim || s->n_rot % 2 != 0)
        return imp_fail(err, IMP_FORMAT,
                        "RoPE rotates %u of %u dimensions of a head; it must be even and not more", s->n_rot,
                        s->head_dim);
    if (s->arch->family != IMP_FAMILY_DECODER) {
        if (s->n_kv_head != s->n_head)
            return imp_fail(err, IMP_UNSUPPORTED,
                            "%s models with fewer key-value heads (%u of %u) are not understood",
                            s->arch->name, s->n_kv_head, s->n_head);
        if ((uint64_t)s->n_head * s->head_dim != s->n_embd)
            return imp_fail(err, IMP_FORMAT, "%u heads of %u do not make the width %u", s->n_head,
                            s->head_dim, s->n_embd);
    }
    return IMP_OK;
}

imp_status imp_spec_check(imp_spec *s, imp_error *err)
{
    IMP_TRY(check_heads(s, err));
    if (!(isfinite(s->norm_eps) && s->norm_eps > 0 && s->norm_eps < 1))
        return imp_fail(err, IMP_FORMAT, "the norm's epsilon is %g; it must lie between 0 and 1",
                        s->norm_eps);
    if (!sane_factor(s->attn_scale) || !sane_factor(s->attn_softcap) || !sane_factor(s->final_softcap))
        return imp_fail(err, IMP_FORMAT,
                        "attention scale %g, soft caps %g and %g: they must be finite and not negative",
                        s->attn_scale, s->attn_softcap, s->final_softcap);
    if (s->n_expert > 0 && (s->n_expert_used == 0 || s->n_expert_used > s->n_expert))
        return imp_fail(err, IMP_FORMAT, "%u of %u experts are used; it must be 1 to %u", s->n_expert_used,
                        s->n_expert, s->n_expert);
    if (s->n_expert == 0) memset(s->sparse, 0, sizeof s->sparse);
    if (s->window == 0) memset(s->local, 0, sizeof s->local);
    return IMP_OK;
}
