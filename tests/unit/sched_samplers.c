/* DRY, XTC, typical, dynamic temperature and mirostat against golden distributions (tools/gen/sampler_golden.py), their
 * ranges, their seeds, and DRY's breakers as text. */
#include "test.h"

#include <math.h>

#include "sched/sampler.h"

enum { V = 32, N = 60000, MAX_IDS = 64 };

typedef struct golden_case {
    imp_sampling s;
    float logit[V];
    size_t n_ids;
    int32_t ids[MAX_IDS];
    uint8_t is_break[MAX_IDS];
    double p[V];
} golden_case;

typedef struct golden_mirostat {
    int version;
    double mu;
    float tau, eta, temperature;
    float logit[V];
    double after[V]; /* NAN: the token may not come */
} golden_mirostat;

#include "data/sampler_golden.inc"

static void draws_follow_the_golden_distributions(void **state)
{
    (void)state;
    imp_sampler_scratch w;
    assert_int_equal(imp_sampler_scratch_init(&w, V), IMP_OK);
    for (size_t c = 0; c < IMP_COUNT(g_case); c++) {
        const golden_case *g = &g_case[c];
        imp_sampling s = g->s;
        imp_error err;
        s.seed = 100 + c;
        if (imp_sampling_check(&s, V, &err) != IMP_OK) fail_msg("%zu: %s", c, err.text);
        imp_sampler sm;
        imp_sampler_init(&sm, &s);
        sm.is_break = g->is_break;
        int count[V] = {0};
        for (int k = 0; k < N; k++) {
            int32_t id = imp_sampler_next(&sm, &w, g->logit, g->ids, g->n_ids, 3, NULL);
            assert_in_range(id, 0, V - 1);
            count[id]++;
        }
        double chi2 = 0;
        int df = -1;
        for (int i = 0; i < V; i++) {
            if (g->p[i] == 0 && count[i] != 0) fail_msg("case %zu: token %d came, and may not", c, i);
            if (g->p[i] * N < 5) continue;
            chi2 += (count[i] - g->p[i] * N) * (count[i] - g->p[i] * N) / (g->p[i] * N);
            df++;
        }
        if (chi2 > df + 5 * sqrt(2.0 * IMP_MAX(df, 0)) + 10)
            fail_msg("case %zu: chi2 %.1f for %d", c, chi2, df);
    }
    for (uint32_t i = 0; i < V; i++) assert_int_equal(w.count[i], 0);
    imp_sampler_scratch_deinit(&w);
}

static void mirostat_moves_as_published(void **state)
{
    (void)state;
    imp_sampler_scratch w;
    assert_int_equal(imp_sampler_scratch_init(&w, V), IMP_OK);
    for (size_t c = 0; c < IMP_COUNT(g_mirostat); c++) {
        const golden_mirostat *g = &g_mirostat[c];
        imp_sampling s = {.mirostat = g->version,
                          .mirostat_tau = g->tau,
                          .mirostat_eta = g->eta,
                          .temperature = g->temperature,
                          .top_p = 1,
                          .repeat_penalty = 1,
                          .seed = c};
        imp_sampler sm;
        imp_sampler_init(&sm, &s);
        assert_float_equal(sm.mu, 2 * g->tau, 1e-6); /* where it begins */
        int seen = 0, allowed = 0;
        bool came[V] = {false};
        for (int i = 0; i < V; i++) allowed += !isnan(g->after[i]);
        for (int k = 0; k < 20000; k++) {
            sm.mu = g->mu;
            int32_t id = imp_sampler_next(&sm, &w, g->logit, NULL, 0, 0, NULL);
            if (isnan(g->after[id])) fail_msg("case %zu: token %d came, and may not", c, id);
            if (fabs(sm.mu - g->after[id]) > 1e-5)
                fail_msg("case %zu: mu %.9g, not %.9g", c, sm.mu, g->after[id]);
            seen += !came[id];
            came[id] = true;
        }
        /* all but the very unlikely have come */
        if (seen < (allowed + 1) / 2) fail_msg("case %zu: %d of %d tokens came", c, seen, allowed);
    }
    imp_sampler_scratch_deinit(&w);
}

/* Over many tokens the average surprise comes to tau, whatever the temperature would give. */
static void mirostat_reaches_its_target(void **state)
{
    (void)state;
    enum { BIG = 4096 };
    imp_sampler_scratch w;
    static float logit[BIG];
    rng r = {5};
    assert_int_equal(imp_sampler_scratch_init(&w, BIG), IMP_OK);
    double z = 0;
    for (int i = 0; i < BIG; i++) {
        logit[i] = -1.1f * logf((float)(1 + rng_below(&r, BIG)));
        z += exp((double)logit[i]);
    }
    for (int version = 1; version <= 2; version++) {
        imp_sampling s = {.mirostat = version,
                          .mirostat_tau = 4,
                          .mirostat_eta = 0.1f,
                          .temperature = 1,
                          .repeat_penalty = 1};
        imp_sampler sm;
        imp_sampler_init(&sm, &s);
        double mean = 0, before, tau = (double)s.mirostat_tau, eta = (double)s.mirostat_eta;
        for (int k = 0; k < 4000; k++) {
            before = sm.mu;
            (void)imp_sampler_next(&sm, &w, logit, NULL, 0, 0, NULL);
            mean += (before - sm.mu) / eta + tau; /* the surprise that it saw */
        }
        mean /= 4000;
        if (fabs(mean - tau) > 0.15)
            fail_msg("version %d: surprise %.3f on average, not %.1f", version, mean, tau);
    }
    imp_sampler_scratch_deinit(&w);
}

static void seeds_repeat(void **state)
{
    (void)state;
    imp_sampler_scratch w;
    assert_int_equal(imp_sampler_scratch_init(&w, V), IMP_OK);
    for (int with = 0; with < 3; with++) {
        imp_sampling s;
        imp_sampling_default(&s);
        s.seed = 42;
        s.top_k = 0;
        s.typical_p = 0.9f;
        s.xtc_probability = 0.5f;
        s.dynatemp_range = 0.4f;
        s.dry_multiplier = 0.8f;
        s.mirostat = with;
        int32_t first[50], ids[60];
        for (int round = 0; round < 2; round++) {
            imp_sampler sm;
            size_t n = 0;
            imp_sampler_init(&sm, &s);
            for (int k = 0; k < 50; k++) {
                int32_t id =
                    imp_sampler_next(&sm, &w, g_case[(size_t)k % IMP_COUNT(g_case)].logit, ids, n, 0, NULL);
                if (round == 1) assert_int_equal(id, first[k]);
                first[k] = ids[n++] = id;
            }
        }
    }
    imp_sampler_scratch_deinit(&w);
}

static void ranges(void **state)
{
    (void)state;
    static const struct {
        const char *field;
        size_t at;
        bool whole;
        double bad;
    } c[] = {{"typical_p", offsetof(imp_sampling, typical_p), false, 1.5},
             {"dynatemp_range", offsetof(imp_sampling, dynatemp_range), false, -0.1},
             {"dynatemp_exponent", offsetof(imp_sampling, dynatemp_exponent), false, NAN},
             {"xtc_probability", offsetof(imp_sampling, xtc_probability), false, 1.01},
             {"xtc_threshold", offsetof(imp_sampling, xtc_threshold), false, -1},
             {"dry_multiplier", offsetof(imp_sampling, dry_multiplier), false, 101},
             {"dry_base", offsetof(imp_sampling, dry_base), false, 11},
             {"dry_allowed_length", offsetof(imp_sampling, dry_allowed_length), true, -1},
             {"dry_penalty_last_n", offsetof(imp_sampling, dry_last_n), true, -2},
             {"mirostat", offsetof(imp_sampling, mirostat), true, 3},
             {"mirostat_tau", offsetof(imp_sampling, mirostat_tau), false, -1},
             {"mirostat_eta", offsetof(imp_sampling, mirostat_eta), false, 2},
             {"repeat_penalty", offsetof(imp_sampling, repeat_penalty), false, 0.001},
             {"frequency_penalty", offsetof(imp_sampling, frequency_penalty), false, -2.1}};
    for (size_t i = 0; i < IMP_COUNT(c); i++) {
        imp_sampling s;
        imp_error err;
        imp_sampling_default(&s);
        assert_int_equal(imp_sampling_check(&s, V, &err), IMP_OK);
        if (c[i].whole)
            *(int32_t *)(void *)((char *)&s + c[i].at) = (int32_t)c[i].bad;
        else
            *(float *)(void *)((char *)&s + c[i].at) = (float)c[i].bad;
        assert_int_equal(imp_sampling_check(&s, V, &err), IMP_INVALID);
        assert_string_equal(err.field, c[i].field);
    }
}

/* Breakers lie in the text, wherever tokens begin and end. */
static void breakers_are_text(void **state)
{
    (void)state;
    static const char *const breaker[] = {"\n", "User:", "--"};
    static const char *const token[] = {"a", " b", "x\ny", "Us",   "er", ":", " is", "-",  "-",
                                        "-", "",   "q",    "User", " :", "U", "s",   "er:"};
    static const uint8_t want[] = {0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1};
    imp_sampling s = {.dry_breaker = breaker, .n_dry_breaker = IMP_COUNT(breaker)};
    imp_dry_marks d = {0};
    uint8_t got[IMP_COUNT(token)];
    for (size_t i = 0; i < IMP_COUNT(token); i++) imp_dry_mark(&d, &s, got, i, token[i], strlen(token[i]));
    for (size_t i = 0; i < IMP_COUNT(token); i++)
        if (got[i] != want[i]) fail_msg("token %zu \"%s\": %d", i, token[i], got[i]);
    imp_dry_marks_deinit(&d);
    /* the same when the text is long: what is held of it is cut */
    static uint8_t many[20000];
    imp_dry_marks e = {0};
    for (size_t i = 0; i < IMP_COUNT(many); i++) {
        const char *t = i % 100 == 98 ? "Use" : i % 100 == 99 ? "r: " : "word ";
        imp_dry_mark(&e, &s, many, i, t, strlen(t));
    }
    for (size_t i = 0; i < IMP_COUNT(many); i++) assert_int_equal(many[i], i % 100 >= 98);
    assert_true(e.text.cap <= 16384);
    imp_dry_marks_deinit(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_follow_the_golden_distributions),
        cmocka_unit_test(mirostat_moves_as_published),
        cmocka_unit_test(mirostat_reaches_its_target),
        cmocka_unit_test(seeds_repeat),
        cmocka_unit_test(ranges),
        cmocka_unit_test(breakers_are_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
