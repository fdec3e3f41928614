/* Palettes against an exhaustive search and a plain Lloyd iteration; packed weights unpack to what was reported; the
 * lint on packages of coremltools and on layouts that are bad on purpose. */
#include "fmt_test.h"

#include <math.h>

#include "dev/coreml/lint.h"
#include "dev/coreml/pack.h"

static double error_of(const float *x, uint32_t n, const float *c, uint32_t k)
{
    double e = 0;
    for (uint32_t i = 0; i < n; i++) {
        double best = INFINITY;
        for (uint32_t j = 0; j < k; j++)
            best = fmin(best, ((double)x[i] - (double)c[j]) * ((double)x[i] - (double)c[j]));
        e += best;
    }
    return e / n;
}

/* The best two-entry palette of sorted numbers: every cut tried. */
static double best_two(const float *x, uint32_t n)
{
    double best = INFINITY;
    for (uint32_t cut = 1; cut < n; cut++) {
        float c[2] = {0, 0};
        for (uint32_t i = 0; i < n; i++) c[i >= cut] += x[i] / (float)(i < cut ? cut : n - cut);
        best = fmin(best, error_of(x, n, c, 2));
    }
    return best;
}

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static void palettes(void **state)
{
    enum { N = 400 };
    float x[N], c[256];
    rng r = {17};
    imp_ml_kmeans *s = imp_ml_kmeans_new();
    (void)state;
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < N; i++) { /* near normal, some far out */
            x[i] = 0;
            for (int k = 0; k < 6; k++) x[i] += rng_f32(&r);
            if (i % 50 == 0) x[i] *= 4;
            x[i] = imp_f16_to_f32(imp_f32_to_f16(x[i]));
        }
        qsort(x, N, sizeof *x, ascending);
        imp_ml_kmeans_reset(s);
        imp_ml_kmeans_add(s, x, NULL, N);
        (void)imp_ml_kmeans_solve(s, 2, c);
        assert_true(error_of(x, N, c, 2) <= 1.02 * best_two(x, N));
        double last = INFINITY;
        for (uint32_t k = 2; k <= 64; k *= 2) {
            imp_ml_kmeans_reset(s);
            imp_ml_kmeans_add(s, x, NULL, N);
            (void)imp_ml_kmeans_solve(s, k, c);
            for (uint32_t i = 1; i < k; i++) assert_true(c[i] >= c[i - 1]);
            double e = error_of(x, N, c, k), near = 0;
            for (int i = 0; i < N; i++)
                near += pow((double)x[i] - (double)c[imp_ml_nearest(c, k, x[i])], 2) / N;
            assert_true(fabs(near - e) <= 1e-6 + 1e-4 * e); /* the border search finds the nearest entry */
            assert_true(e < 0.75 * last);
            last = e;
        }
    }
    imp_ml_kmeans_free(s);
}

/* With all weight on some columns their numbers are met exactly. */
static void palettes_by_importance(void **state)
{
    const float x[6] = {1, 2, 10, 11, 12, 13}, w[6] = {1, 1, 0, 0, 0, 0};
    float c[2];
    imp_ml_kmeans *s = imp_ml_kmeans_new();
    (void)state;
    imp_ml_kmeans_add(s, x, w, 6);
    assert_true(imp_ml_kmeans_solve(s, 2, c) == 0);
    assert_true(c[0] == 1 && c[1] == 2);
    imp_ml_kmeans_free(s);
}

static void forms_by_name(void **state)
{
    static const char *const good[] = {"fp16", "lut4g16", "lut6t", "lut1g8", "int8", "int4", "int4b32"};
    static const char *const bad[] = {"",       "fp8",    "lut5",  "lut",   "lut4x",
                                      "lut4g0", "int4b0", "int4c", "lut44", "int88"};
    imp_ml_packing p;
    char text[16];
    (void)state;
    for (size_t i = 0; i < IMP_COUNT(good); i++) {
        assert_true(imp_ml_packing_parse(good[i], &p));
        imp_ml_packing_text(&p, text);
        assert_string_equal(text, good[i]);
    }
    for (size_t i = 0; i < IMP_COUNT(bad); i++)
        if (imp_ml_packing_parse(bad[i], &p)) fail_msg("%s was taken", bad[i]);
}

static imp_mil_type shape(imp_mil_dtype t, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    return (imp_mil_type){.dtype = t, .rank = 4, .dim = {a, b, c, d}};
}

static void padding(void **state)
{
    imp_mil_type t = shape(IMP_MIL_F16, 1, 64, 128, 1), u = shape(IMP_MIL_I8, 1, 64, 128, 1),
                 v = shape(IMP_MIL_F16, 1, 64, 1, 128);
    imp_mil_type w = shape(IMP_MIL_F16, 1, 64, 1, 33);
    (void)state;
    assert_int_equal(imp_ml_padded_bytes(&t) / imp_mil_bytes(&t), 32);
    assert_int_equal(imp_ml_padded_bytes(&u) / imp_mil_bytes(&u), 64);
    assert_int_equal(imp_ml_padded_bytes(&v), imp_mil_bytes(&v));
    assert_int_equal(imp_ml_padded_bytes(&w), 64 * 128);
}

/* A package in memory: relu over a shape. */
static void lint_one(imp_mil_type t, const char *type, imp_ml_lint *l)
{
    imp_mil_out in = {.name = "x", .type = t}, out = {.name = "y", .type = t};
    imp_mil_bind bind = {.name = "x"}, ret = {.name = "y"};
    imp_mil_arg arg = {"x", 1, &bind};
    imp_mil_op op = {.type = type, .name = "y", .n_arg = 1, .n_out = 1, .arg = &arg, .out = &out};
    imp_mil_func f = {.name = "main",
                      .opset = "CoreML8",
                      .n_in = 1,
                      .n_op = 1,
                      .n_out = 1,
                      .in = &in,
                      .op = &op,
                      .out = &ret};
    imp_mlpackage p = {.spec = 9, .n_func = 1, .func = &f}, *q;
    imp_buf b = {0};
    imp_error err = {0};
    assert_int_equal(imp_mlpackage_encode(&p, &b, &err), IMP_OK);
    if (imp_mlpackage_parse(b.data, b.n, NULL, 0, &q, &err) != IMP_OK) fail_msg("%s", err.text);
    assert_int_equal(imp_ml_lint_run(q, l, &err), IMP_OK);
    imp_mlpackage_close(q);
    imp_buf_deinit(&b);
}

static void lint(void **state)
{
    imp_ml_lint l;
    (void)state;
    lint_one(shape(IMP_MIL_F16, 1, 384, 1, 128), "relu", &l);
    assert_int_equal(l.n_finding, 0);
    assert_int_equal(l.n_ane, 1);
    imp_ml_lint_deinit(&l);
    lint_one(shape(IMP_MIL_F16, 1, 384, 128, 1), "relu", &l); /* the sequence not last */
    assert_int_equal(l.n_finding, 1);
    assert_true(l.worst_factor == 32 && l.finding[0].factor == 32 && !l.finding[0].off_ane);
    imp_ml_lint_deinit(&l);
    lint_one(shape(IMP_MIL_F32, 1, 384, 1, 128), "relu", &l);
    assert_int_equal(l.n_ane, 0);
    assert_non_null(strstr(l.finding[0].why, "fp32"));
    imp_ml_lint_deinit(&l);
    lint_one(shape(IMP_MIL_F16, 1, 2, 1, 20000), "relu", &l);
    assert_true(l.finding[0].off_ane);
    imp_ml_lint_deinit(&l);
}

static void lint_of_another_writer(void **state)
{
    imp_mlpackage *p;
    imp_ml_lint l;
    imp_error err = {0};
    uint32_t n_gather = 0;
    (void)state;
    if (imp_mlpackage_open("tests/data/mlpackage/ios18.mlpackage", &p, &err) != IMP_OK)
        fail_msg("%s", err.text);
    assert_int_equal(imp_ml_lint_run(p, &l, &err), IMP_OK);
    for (uint32_t i = 0; i < l.n_finding; i++)
        n_gather += strcmp(l.finding[i].type, "gather") == 0 && l.finding[i].off_ane;
    assert_int_equal(n_gather, 1);
    assert_true(l.n_ane < l.n_op && l.n_switch > 0);
    imp_ml_lint_deinit(&l);
    imp_mlpackage_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(palettes),      cmocka_unit_test(palettes_by_importance),
        cmocka_unit_test(forms_by_name), cmocka_unit_test(padding),
        cmocka_unit_test(lint),          cmocka_unit_test(lint_of_another_writer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
