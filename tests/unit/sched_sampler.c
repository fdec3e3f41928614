/* The sampler against a slow, obvious computation of the same distribution, written here. */
#include "test.h"

#include <math.h>

#include "sched/sampler.h"

enum { V = 64 };

typedef struct item {
    int id;
    double logit, p;
} item;

static int best_first(const void *a, const void *b)
{
    const item *x = a, *y = b;
    return x->logit != y->logit ? (x->logit < y->logit ? 1 : -1) : x->id - y->id;
}

/* p[id] that a request's settings give, step by step as impetus.h words them. */
static void expected(const imp_sampling *s, const float *logit, double *p)
{
    item it[V];
    int m = V;
    for (int i = 0; i < V; i++) it[i] = (item){i, logit[i], 0}, p[i] = 0;
    qsort(it, V, sizeof *it, best_first);
    if (s->top_k > 0 && s->top_k < m) m = s->top_k;
    double total = 0, sum = 0;
    for (int i = 0; i < m; i++) total += exp(it[i].logit - it[0].logit);
    int keep = 0;
    for (; keep < m; keep++) {
        if (s->top_p < 1 && sum >= (double)s->top_p * total) break;
        sum += exp(it[keep].logit - it[0].logit);
    }
    m = keep;
    while (m > 1 && exp(it[m - 1].logit - it[0].logit) < (double)s->min_p * (1 - 1e-9)) m--;
    double z = 0;
    for (int i = 0; i < m; i++) z += exp((it[i].logit - it[0].logit) / (double)s->temperature);
    for (int i = 0; i < m; i++) p[it[i].id] = exp((it[i].logit - it[0].logit) / (double)s->temperature) / z;
}

static void draws_follow_the_distribution(void **state)
{
    (void)state;
    imp_sampler_scratch w;
    assert_int_equal(imp_sampler_scratch_init(&w, V), IMP_OK);
    static const struct {
        float t, top_p, min_p;
        int k;
    } c[] = {
        {1, 1, 0, 0},    {0.5f, 1, 0, 0}, {2, 0.9f, 0, 0},  {1, 0.5f, 0, 10}, {0.8f, 0.95f, 0.05f, 40},
        {1, 1, 0.2f, 0}, {3, 1, 0, 3},    {1, 0.01f, 0, 0},
    };
    rng r = {3};
    for (size_t i = 0; i < IMP_COUNT(c); i++) {
        float logit[V];
        double p[V];
        for (int k = 0; k < V; k++) logit[k] = rng_f32(&r) * 4;
        imp_sampling s = {.temperature = c[i].t,
                          .top_k = c[i].k,
                          .top_p = c[i].top_p,
                          .min_p = c[i].min_p,
                          .repeat_penalty = 1,
                          .seed = 1 + i};
        expected(&s, logit, p);
        enum { N = 100000 };
        int count[V] = {0}, ids[1] = {0};
        imp_sampler sm;
        imp_sampler_init(&sm, &s);
        for (int k = 0; k < N; k++) count[imp_sampler_next(&sm, &w, logit, ids, 0, 0, NULL)]++;
        double chi2 = 0;
        int df = -1;
        for (int k = 0; k < V; k++) {
            if (p[k] == 0) assert_int_equal(count[k], 0);
            if (p[k] * N < 5) continue;
            chi2 += (count[k] - p[k] * N) * (count[k] - p[k] * N) / (p[k] * N);
            df++;
        }
        if (df > 0) assert_true(chi2 < df + 5 * sqrt(2.0 * df) + 10); /* far beyond the 99.99th percentile */
    }
    imp_sampler_scratch_deinit(&w);
}

static void greedy_ties_nan_and_bias(void **state)
{
    (void)state;
    imp_sampler_scratch w;
    assert_int_equal(imp_sampler_scratch_init(&w, 5), IMP_OK);
    imp_sampling s = {.top_p = 1, .repeat_penalty = 1};
    imp_sampler sm;
    imp_sampler_init(&sm, &s);
    assert_int_equal(imp_sampler_next(&sm, &w, (float[]){1, 3, 3, 2, NAN}, NULL, 0, 0, NULL), 1);
    assert_int_equal(imp_sampler_next(&sm, &w, (float[]){NAN, NAN, NAN, NAN, NAN}, NULL, 0, 0, NULL), -1);
    imp_logit_bias bias[] = {{1, -100}, {3, 1.5f}};
    s.bias = bias;
    s.n_bias = 2;
    imp_sampler_init(&sm, &s);
    assert_int_equal(imp_sampler_next(&sm, &w, (float[]){1, 3, 3, 2, 0}, NULL, 0, 0, NULL), 3);
    imp_sampler_scratch_deinit(&w);
}

static void penalties(void **state)
{
    (void)state;
    imp_sampler_scratch w;
    assert_int_equal(imp_sampler_scratch_init(&w, 4), IMP_OK);
    const float logit[] = {2, -1, 1.9f, 1.8f};
    const int32_t ids[] = {0, 0, 2, 2, 2}; /* prompt 0 0, generated 2 2 2 */
    imp_sampling s = {.top_p = 1, .repeat_penalty = 1, .repeat_last_n = -1};
    imp_sampler sm;
    s.repeat_penalty = 2; /* 0: 1.0, 2: 0.95 */
    imp_sampler_init(&sm, &s);
    assert_int_equal(imp_sampler_next(&sm, &w, logit, ids, 5, 2, NULL), 3);
    s.repeat_last_n = 3; /* sees only the 2s */
    imp_sampler_init(&sm, &s);
    assert_int_equal(imp_sampler_next(&sm, &w, logit, ids, 5, 2, NULL), 0);
    s = (imp_sampling){.top_p = 1, .repeat_penalty = 1, .repeat_last_n = -1, .frequency_penalty = -0.05f};
    imp_sampler_init(&sm, &s); /* 2: 1.9 + 3 * 0.05 = 2.05; the prompt's 0 is not counted */
    assert_int_equal(imp_sampler_next(&sm, &w, logit, ids, 5, 2, NULL), 2);
    s.frequency_penalty = 0;
    s.presence_penalty = -0.09f; /* 2: 1.99, once however often */
    imp_sampler_init(&sm, &s);
    assert_int_equal(imp_sampler_next(&sm, &w, logit, ids, 5, 2, NULL), 0);
    for (int i = 0; i < 4; i++) assert_int_equal(w.count[i], 0);
    imp_sampler_scratch_deinit(&w);
}

static void same_seed_same_tokens(void **state)
{
    (void)state;
    imp_sampler_scratch w;
    assert_int_equal(imp_sampler_scratch_init(&w, V), IMP_OK);
    float logit[V];
    rng r = {5};
    for (int i = 0; i < V; i++) logit[i] = rng_f32(&r);
    imp_sampling s;
    imp_sampling_default(&s);
    s.seed = 99;
    imp_sampler a, b;
    imp_sampler_init(&a, &s);
    imp_sampler_init(&b, &s);
    int differs = 0;
    s.seed = 100;
    imp_sampler c;
    imp_sampler_init(&c, &s);
    for (int i = 0; i < 100; i++) {
        int32_t x = imp_sampler_next(&a, &w, logit, NULL, 0, 0, NULL);
        assert_int_equal(x, imp_sampler_next(&b, &w, logit, NULL, 0, 0, NULL));
        differs += x != imp_sampler_next(&c, &w, logit, NULL, 0, 0, NULL);
    }
    assert_true(differs > 10);
    imp_sampler_scratch_deinit(&w);
}

static void logprobs_are_log_softmax(void **state)
{
    (void)state;
    imp_sampler_scratch w;
    assert_int_equal(imp_sampler_scratch_init(&w, V), IMP_OK);
    float logit[V];
    rng r = {11};
    for (int i = 0; i < V; i++) logit[i] = rng_f32(&r) * 30;
    double z = 0;
    for (int i = 0; i < V; i++) z += exp(logit[i]);
    imp_token_prob top[10];
    float lp = imp_logprobs(&w, logit, 17, top, 10);
    assert_true(fabs(lp - (logit[17] - log(z))) < 1e-4);
    for (int i = 0; i < 10; i++) {
        int better = 0;
        for (int k = 0; k < V; k++) better += logit[k] > logit[top[i].id];
        assert_int_equal(better, i);
        assert_true(fabs(top[i].logprob - (logit[top[i].id] - log(z))) < 1e-4);
    }
    imp_sampler_scratch_deinit(&w);
}

static void settings_out_of_range_are_named(void **state)
{
    (void)state;
    imp_error e;
    imp_sampling ok, s;
    imp_sampling_default(&ok);
    assert_int_equal(imp_sampling_check(&ok, 10, &e), IMP_OK);
#define BAD(name, value)                                                                                     \
    s = ok, s.name = value;                                                                                  \
    assert_int_equal(imp_sampling_check(&s, 10, &e), IMP_INVALID);                                           \
    assert_string_equal(e.field, #name)
    BAD(temperature, -0.1f);
    BAD(temperature, NAN);
    BAD(top_k, -1);
    BAD(top_p, 1.1f);
    BAD(min_p, -1);
    BAD(repeat_penalty, 0);
    BAD(repeat_last_n, -2);
    BAD(presence_penalty, 2.5f);
    BAD(frequency_penalty, INFINITY);
    imp_logit_bias bias = {10, 0};
    s = ok, s.bias = &bias, s.n_bias = 1;
    assert_int_equal(imp_sampling_check(&s, 10, &e), IMP_INVALID);
    assert_string_equal(e.field, "logit_bias");
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(greedy_ties_nan_and_bias),
        cmocka_unit_test(penalties),
        cmocka_unit_test(same_seed_same_tokens),
        cmocka_unit_test(logprobs_are_log_softmax),
        cmocka_unit_test(settings_out_of_range_are_named),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
