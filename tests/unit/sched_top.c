/* The next token from a row's best columns against the next token from the whole row: the same, and the same random numbers
 * behind it, or "ask for the row". The best columns are found here by a sort, the sum is off by as much as it may be. */
#include "test.h"

#include <math.h>

#include "sched/row.h"

enum { V = 3001 };

static int best_first(const void *a, const void *b)
{
    const imp_token_prob *x = a, *y = b;
    if (x->logprob != y->logprob) return x->logprob < y->logprob ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

typedef struct best {
    imp_token_prob all[V];
    imp_dev_top t;
} best;

/* off: of what the sum may be wrong by, -1..1 */
static void find_best(best *b, const float *logit, const uint32_t *mask, double off)
{
    uint32_t n = 0;
    for (int i = 0; i < V; i++) {
        if (isnan(logit[i])) continue;
        bool out = mask != NULL && !(mask[i / 32] >> (i % 32) & 1);
        b->all[n++] = (imp_token_prob){i, out ? -INFINITY : logit[i]};
    }
    qsort(b->all, n, sizeof *b->all, best_first);
    double sum = 0;
    for (uint32_t i = n; i-- > 0;) sum += exp((double)b->all[i].logprob - (double)b->all[0].logprob);
    sum *= 1 + off * (V + 64) * 0x1p-52;
    b->t = (imp_dev_top){IMP_MIN(n, (uint32_t)IMP_DEV_TOP), sum, b->all};
}

/* Rows as models make them and as they do not: a few likely ones, flat ones, many equal values, infinities, no numbers. */
static void random_row(rng *r, int kind, float *logit)
{
    float size = kind == 1 ? 0.05f : kind == 2 ? 30 : 6;
    for (int i = 0; i < V; i++) {
        float x = rng_f32(r) + rng_f32(r) + rng_f32(r);
        logit[i] = kind == 3 ? roundf(x * 3) : size * x;
        if (kind == 4 && i % 3 == 0) logit[i] = NAN;
        if (kind == 5 && i % 11 != 0) logit[i] = -INFINITY;
        if (kind == 6) logit[i] = i % 2 == 0 ? 0.0f : -0.0f;
    }
    if (kind == 7) logit[rng_below(r, V)] = INFINITY;
}

static imp_sampling random_settings(rng *r)
{
    static const float temperature[] = {0, 0.3f, 0.8f, 1, 2}, top_p[] = {1, 0.95f, 0.5f, 0.999f, 0.01f, 0},
                       min_p[] = {0, 0.05f, 0.3f, 0.001f}, typical[] = {1, 1, 1, 0.7f};
    static const int top_k[] = {0, 1, 40, 256, 257, 5, 100000};
    imp_sampling s;
    imp_sampling_default(&s);
    s.temperature = temperature[rng_below(r, 5)];
    s.top_p = top_p[rng_below(r, 6)];
    s.min_p = min_p[rng_below(r, 4)];
    s.top_k = top_k[rng_below(r, 7)];
    s.typical_p = typical[rng_below(r, 4)];
    if (rng_below(r, 6) == 0) s.dynatemp_range = 0.5f;
    if (rng_below(r, 6) == 0) s.xtc_probability = 0.5f;
    if (rng_below(r, 12) == 0) s.mirostat = 1 + (int)(rng_below(r, 2));
    if (rng_below(r, 12) == 0) s.repeat_penalty = 1.1f;
    s.seed = (uint32_t)(rng_u64(r) >> 32);
    return s;
}

static void same_token(void **state)
{
    (void)state;
    static float logit[V];
    static best b;
    static uint32_t mask[V / 32 + 1];
    int32_t ids[8] = {1, 5, 9, 700, 3, 5, 5, 2};
    imp_sampler_scratch w;
    assert_int_equal(imp_sampler_scratch_init(&w, V), IMP_OK);
    rng r = {77};
    uint32_t decided[2] = {0, 0}, taken = 0;
    for (int n = 0; n < 12000; n++) {
        if (n % 8 == 0) random_row(&r, n / 8 % 8, logit);
        bool masked = rng_below(&r, 3) == 0;
        uint32_t one_in = rng_below(&r, 2) == 0 ? 2 : 200;
        memset(mask, 0, sizeof mask);
        for (uint32_t i = 0; i < V; i++)
            if (rng_below(&r, one_in) == 0) mask[i / 32] |= 1u << (i % 32);
        find_best(&b, logit, masked ? mask : NULL, n % 3 - 1);
        imp_sampling p = random_settings(&r);
        imp_sampler a, c;
        imp_sampler_init(&a, &p);
        imp_sampler_init(&c, &p);
        int32_t want = imp_sampler_next(&a, &w, logit, ids, 8, 4, masked ? mask : NULL), got = -7;
        if (!imp_sampler_from_top(&c, &w, &b.t, &got)) {
            imp_sampler fresh;
            imp_sampler_init(&fresh, &p);
            assert_true(c.rng == fresh.rng); /* nothing was drawn */
            decided[0]++;
            continue;
        }
        decided[1]++;
        taken += want >= 0;
        if (got != want || a.rng != c.rng)
            fail_msg("row %d: %d, should be %d (T %g k %d p %g min %g typical %g)", n, got, want,
                     (double)p.temperature, p.top_k, (double)p.top_p, (double)p.min_p, (double)p.typical_p);
    }
    assert_true(decided[1] > 4000 && decided[0] > 1000 && taken > 4000); /* both ways were walked */
    imp_sampler_scratch_deinit(&w);
}

/* Rows of real width and shape with usual settings: nearly all are decided, or there is no point in it. */
static void usual_settings_are_decided(void **state)
{
    (void)state;
    static float logit[V];
    static best b;
    imp_sampler_scratch w;
    assert_int_equal(imp_sampler_scratch_init(&w, V), IMP_OK);
    imp_sampling p;
    imp_sampling_default(&p);
    assert_true(imp_sampler_takes_top(&p));
    rng r = {5};
    for (int n = 0; n < 200; n++) {
        random_row(&r, 0, logit);
        for (int i = 0; i < V; i++) logit[i] *= 2;
        find_best(&b, logit, NULL, 1);
        for (int top_k = 0; top_k < 2; top_k++) {
            int32_t id;
            p.top_k = top_k == 1 ? 40 : 0;
            p.top_p = 0.9f;
            imp_sampler s;
            imp_sampler_init(&s, &p);
            assert_true(imp_sampler_from_top(&s, &w, &b.t, &id));
        }
    }
    imp_sampler_scratch_deinit(&w);
}

static void same_logprobs(void **state)
{
    (void)state;
    static float logit[V];
    static best b;
    imp_sampler_scratch w;
    assert_int_equal(imp_sampler_scratch_init(&w, V), IMP_OK);
    rng r = {9};
    uint32_t told = 0, not_told = 0;
    for (int n = 0; n < 2000; n++) {
        random_row(&r, n % 8, logit);
        find_best(&b, logit, NULL, n % 3 - 1);
        imp_token_prob want[20], got[20];
        size_t n_top = rng_below(&r, 21);
        int32_t id = rng_below(&r, 4) == 0 ? (int32_t)(rng_below(&r, V)) : b.all[rng_below(&r, 30)].id;
        float l;
        if (!imp_logprobs_from_top(&b.t, V, id, &l, got, n_top)) {
            not_told++;
            continue;
        }
        told++;
        float full = imp_logprobs(&w, logit, id, want, n_top);
        assert_memory_equal(&l, &full, sizeof l);
        for (size_t i = 0; i < n_top; i++) {
            assert_int_equal(got[i].id, want[i].id);
            assert_memory_equal(&got[i].logprob, &want[i].logprob, sizeof(float));
        }
    }
    assert_true(told > 1000 && not_told > 100);
    imp_sampler_scratch_deinit(&w);
}

/* ---- rows that stay on a device ---------------------------------------------------------------------------- */

typedef struct fake {
    imp_exec base;
    imp_device dev;
    imp_device_ops ops;
    const float *logit;
    best b;
    uint32_t n_top, n_row;
    bool broken;
} fake;

static imp_status fake_top(imp_exec *x, uint32_t row, const uint32_t *mask, imp_dev_top *out, imp_error *err)
{
    fake *f = (fake *)x;
    assert_int_equal(row, 3);
    f->n_top++;
    if (f->broken) return imp_fail(err, IMP_DEVICE, "gone");
    find_best(&f->b, f->logit, mask, 0.5);
    *out = f->b.t;
    return IMP_OK;
}
static imp_status fake_row(imp_exec *x, uint32_t row, const float **out, imp_error *err)
{
    fake *f = (fake *)x;
    assert_int_equal(row, 3);
    f->n_row++;
    *out = f->logit;
    return f->broken ? imp_fail(err, IMP_DEVICE, "gone") : IMP_OK;
}

static void rows_on_a_device(void **state)
{
    (void)state;
    static float logit[V];
    static fake f = {.ops = {.top = fake_top, .row = fake_row}};
    f.dev.ops = &f.ops;
    f.base.dev = &f.dev;
    f.logit = logit;
    imp_sampler_scratch w;
    assert_int_equal(imp_sampler_scratch_init(&w, V), IMP_OK);
    rng r = {31};
    random_row(&r, 0, logit);
    imp_sampling p;
    imp_sampling_default(&p);
    p.seed = 4;
    for (int i = 0; i < 3; i++) { /* decided by the best; by the row at once; by the row behind the best */
        f.n_top = f.n_row = 0;
        p.top_k = i == 0 ? 40 : i == 1 ? 1000 : 0;
        p.top_p = i == 2 ? 0.99999f : 0.95f;
        p.min_p = 0;
        imp_sampler a, b;
        imp_sampler_init(&a, &p);
        imp_sampler_init(&b, &p);
        imp_row row = {.x = &f.base, .row = 3}, whole = {.logits = logit};
        int32_t id = imp_row_next(&row, &a, &w, NULL, 0, 0, NULL);
        assert_int_equal(id, imp_row_next(&whole, &b, &w, NULL, 0, 0, NULL));
        assert_int_equal(f.n_top, i != 1);
        assert_int_equal(f.n_row, i != 0);
        imp_token_prob x[5], y[5];
        assert_true(imp_row_can_logprobs(&row, &w, id, 5));
        float l = imp_row_logprobs(&row, &w, id, x, 5), m = imp_row_logprobs(&whole, &w, id, y, 5);
        assert_true(l == m);
        assert_memory_equal(x, y, sizeof x);
    }
    f.broken = true;
    imp_sampler a;
    imp_sampler_init(&a, &p);
    imp_row row = {.x = &f.base, .row = 3};
    assert_int_equal(imp_row_next(&row, &a, &w, NULL, 0, 0, NULL), -1);
    assert_int_equal(row.status, IMP_DEVICE);
    row = (imp_row){.x = &f.base, .row = 3};
    assert_false(imp_row_can_logprobs(&row, &w, 1, 5));
    imp_sampler_scratch_deinit(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_token),
        cmocka_unit_test(usual_settings_are_decided),
        cmocka_unit_test(same_logprobs),
        cmocka_unit_test(rows_on_a_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
