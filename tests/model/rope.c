/* tests/model/rope.c - RoPE tables with the parameters of published models, against mlx-lm (tools/gen/rope_tables.py).
 *
 * Bound: 1e-5 relative: f32 powers of two libraries; a wrong band or factor is off by percents. */
#include "run.h"

#include <jansson.h>
#include <string.h>

#include "model/model_int.h"

static double number(const json_t *o, const char *key, double fallback)
{
    const json_t *v = json_object_get(o, key);
    return v ? json_number_value(v) : fallback;
}

static uint32_t numbers(const json_t *a, float out[256])
{
    size_t n = json_array_size(a);
    assert_true(n <= 256);
    for (size_t i = 0; i < n; i++) out[i] = (float)json_number_value(json_array_get(a, i));
    return (uint32_t)n;
}

static void check_case(const json_t *c)
{
    static float long_factor[256], short_factor[256], want[256], have[256];
    const json_t *p = json_object_get(c, "parameters");
    const char *name = json_string_value(json_object_get(c, "name")),
               *type = json_string_value(json_object_get(c, "type"));
    imp_rope_spec r;
    imp_rope_default(&r, number(c, "theta", 0));
    assert_true(imp_rope_kind_from_name(type, strlen(type), &r.kind));
    r.orig_ctx = number(p, "original_max_position_embeddings", 0);
    r.factor =
        number(p, "factor", number(p, "max_position_embeddings", 0) / (r.orig_ctx > 0 ? r.orig_ctx : 1));
    r.low_freq_factor = number(p, "low_freq_factor", 0);
    r.high_freq_factor = number(p, "high_freq_factor", 0);
    r.beta_fast = number(p, "beta_fast", r.beta_fast);
    r.beta_slow = number(p, "beta_slow", r.beta_slow);
    r.mscale = number(p, "mscale", 0);
    r.mscale_all_dim = number(p, "mscale_all_dim", 0);
    r.n_factor = numbers(json_object_get(p, "long_factor"), long_factor);
    numbers(json_object_get(p, "short_factor"), short_factor);
    if (r.n_factor) {
        r.long_factor = long_factor;
        r.short_factor = short_factor;
    }
    uint32_t n_rot = (uint32_t)number(c, "n_rot", 0), n = numbers(json_object_get(c, "inv_freq"), want);
    assert_int_equal(n, n_rot / 2);
    imp_error err = {0};
    float mscale;
    check_ok(imp_rope_table(&r, n_rot, 131072, have, &mscale, &err), &err);
    for (uint32_t i = 0; i < n; i++)
        if (fabsf(have[i] - want[i]) > 1e-5f * want[i])
            fail_msg("%s: frequency %u is %g, mlx-lm %g", name, i, (double)have[i], (double)want[i]);
    if (fabs(mscale - number(c, "mscale", 0)) > 1e-5)
        fail_msg("%s: factor of cos and sin is %g", name, (double)mscale);
    if (!r.n_factor) return;
    /* Within the original context longrope divides by the other list. */
    check_ok(imp_rope_table(&r, n_rot, (uint32_t)r.orig_ctx, have, &mscale, &err), &err);
    for (uint32_t i = 0; i < n; i++)
        assert_true(fabsf(have[i] * short_factor[i] - want[i] * long_factor[i]) <=
                    1e-5f * want[i] * long_factor[i]);
}

static void test_tables(void **state)
{
    (void)state;
    json_t *all = json_load_file("tests/data/rope/tables.json", 0, NULL);
    assert_true(json_array_size(all) >= 8);
    for (size_t i = 0; i < json_array_size(all); i++) check_case(json_array_get(all, i));
    json_decref(all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tables)};
    return cmocka_run_group_tests_name("model rope", tests, NULL, NULL);
}
