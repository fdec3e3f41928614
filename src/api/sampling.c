/* api/sampling.c - from request fields to how tokens are chosen. */
#include "api/internal.h"

#include <math.h>

imp_status imp_api_dry_breakers(imp_api_params *p, imp_error *err)
{
    static const char f[] = "dry_sequence_breakers";
    const json_t *list = p->dry_breakers;
    if (list == NULL) return IMP_OK;
    if (!json_is_array(list) || json_array_size(list) > IMP_API_MAX_STOP)
        return imp_fail_field(err, IMP_INVALID, f, "'%s' must be a list of at most %d strings", f,
                              IMP_API_MAX_STOP);
    p->dry_breaker = imp_arena_array(p->arena, json_array_size(list), sizeof *p->dry_breaker);
    if (p->dry_breaker == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    size_t i;
    json_t *v;
    json_array_foreach(list, i, v)
    {
        size_t n = json_string_length(v);
        if (!json_is_string(v) || n == 0 || n > 64)
            return imp_fail_field(err, IMP_INVALID, f, "'%s[%zu]' must be a string of 1 to 64 bytes", f, i);
        p->dry_breaker[p->n_dry_breaker++] = json_string_value(v);
    }
    return IMP_OK;
}

void imp_api_sampling(const imp_api_params *p, imp_sampling *s)
{
    imp_sampling_default(s);
    const struct {
        double from;
        float *to;
    } number[] = {{p->temperature, &s->temperature},
                  {p->top_p, &s->top_p},
                  {p->min_p, &s->min_p},
                  {p->repeat_penalty, &s->repeat_penalty},
                  {p->presence_penalty, &s->presence_penalty},
                  {p->frequency_penalty, &s->frequency_penalty},
                  {p->typical_p, &s->typical_p},
                  {p->dynatemp_range, &s->dynatemp_range},
                  {p->dynatemp_exponent, &s->dynatemp_exponent},
                  {p->xtc_probability, &s->xtc_probability},
                  {p->xtc_threshold, &s->xtc_threshold},
                  {p->dry_multiplier, &s->dry_multiplier},
                  {p->dry_base, &s->dry_base},
                  {p->mirostat_tau, &s->mirostat_tau},
                  {p->mirostat_eta, &s->mirostat_eta}};
    const struct {
        int64_t from;
        int32_t *to;
    } whole[] = {{p->repeat_last_n, &s->repeat_last_n},
                 {p->dry_allowed_length, &s->dry_allowed_length},
                 {p->dry_last_n, &s->dry_last_n},
                 {p->mirostat, &s->mirostat}};
    for (size_t i = 0; i < IMP_COUNT(number); i++)
        if (!isnan(number[i].from)) *number[i].to = (float)number[i].from;
    for (size_t i = 0; i < IMP_COUNT(whole); i++)
        if (whole[i].from != IMP_UNSET) *whole[i].to = (int32_t)whole[i].from;
    if (p->top_k != IMP_UNSET) s->top_k = (int32_t)IMP_MAX(p->top_k, 0); /* -1: off */
    if (p->dry_breakers == NULL) return;
    s->dry_breaker = p->dry_breaker;
    s->n_dry_breaker = p->n_dry_breaker;
}
