/* The mixed-precision plan: the knapsack against all combinations, collected importance against the reference device,
 * measured divergence against its definition, and mixes that keep to their budget and to what their unit is good at. */
#include "test.h"

#include <math.h>

#include "plan/mix.h"
#include "plan/place.h"

static const char *const STORIES = "models/stories260K.gguf";

/* ---- the knapsack ------------------------------------------------------------------------------------------ */

/* Least cost over all combinations; INFINITY: none keeps to the budget. */
static double brute(uint32_t n, const uint32_t n_opt[], const double cost[][IMP_MIX_OPTIONS],
                    const double kl[][IMP_MIX_OPTIONS], double left)
{
    double best = INFINITY;
    if (n == 0) return 0;
    for (uint32_t k = 0; k < n_opt[n - 1]; k++)
        if (kl[n - 1][k] <= left) {
            double c = cost[n - 1][k] + brute(n - 1, n_opt, cost, kl, left - kl[n - 1][k]);
            best = fmin(best, c);
        }
    return best;
}

static void knapsack_is_exact(void **state)
{
    (void)state;
    rng r = {99};
    uint32_t n_none = 0;
    for (int round = 0; round < 60; round++) {
        uint32_t n = 1 + rng_below(&r, 7), n_opt[8], choice[8];
        double cost[8][IMP_MIX_OPTIONS], kl[8][IMP_MIX_OPTIONS], max_kl = 0.02 + rng_unit(&r) * 0.2;
        for (uint32_t i = 0; i < n; i++) {
            n_opt[i] = 1 + rng_below(&r, 5);
            for (uint32_t k = 0; k < n_opt[i]; k++) {
                cost[i][k] = rng_unit(&r);
                kl[i][k] = pow(10, -5 * rng_unit(&r));
            }
        }
        bool ok = imp_mix_solve(n, n_opt, cost, kl, max_kl, choice);
        /* Rounding a divergence up by a bin takes at most n bins of the budget. */
        double want = brute(n, n_opt, cost, kl, max_kl),
               tight = brute(n, n_opt, cost, kl, max_kl * (1 - n / 16384.0));
        n_none += !ok;
        if (!ok) {
            assert_true(!isfinite(tight));
            continue;
        }
        double c = 0, k = 0;
        for (uint32_t i = 0; i < n; i++) c += cost[i][choice[i]], k += kl[i][choice[i]];
        assert_true(k <= max_kl);
        assert_true(c >= want - 1e-12 && c <= tight + 1e-12);
    }
    assert_true(n_none > 0 && n_none < 40);
}

/* ---- parts --------------------------------------------------------------------------------------------------- */

static void names_and_groups(void **state)
{
    (void)state;
    char text[64];
    assert_int_equal(imp_group_of("token_embd.weight", 12), 0);
    assert_int_equal(imp_group_of("output.weight", 12), 1);
    static const char *const none[] = {
        "output_norm.weight",        "blk.0.attn_norm.weight", "blk.3.attn_q.bias",
        "blk.3.ffn_gate_inp.weight", "rope_freqs.weight",      "blk.12.attn_q.weight",
        "blk.x.attn_q.weight",       "position_embd.weight",   "blk.1.attn_q_norm.weight"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) assert_int_equal(imp_group_of(none[i], 12), -1);
    int g = imp_group_of("blk.11.ffn_down_exps.weight", 12);
    assert_int_equal(imp_group_part(g), IMP_PART_DOWN);
    assert_int_equal(imp_group_of("blk.11.ffn_down.7.weight", 12), g);
    assert_string_equal(imp_group_text(g, 12, text, sizeof text), "ffn down, layers 8-11");
    for (uint32_t n_layer = 1; n_layer < 40; n_layer++) /* the text names the layers that are in the group */
        for (uint32_t l = 0; l < n_layer; l++) {
            char name[40];
            unsigned from, to;
            snprintf(name, sizeof name, "blk.%u.attn_v.weight", l);
            g = imp_group_of(name, n_layer);
            imp_group_text(g, n_layer, text, sizeof text);
            if (sscanf(text, "attention v, layer %u", &from) == 1)
                to = from;
            else
                assert_int_equal(sscanf(text, "attention v, layers %u-%u", &from, &to), 2);
            assert_true(from <= l && l <= to);
        }
    assert_int_equal(imp_type_for_row(IMP_Q4_K, 512), IMP_Q4_K);
    assert_int_equal(imp_type_for_row(IMP_Q4_K, 160), IMP_Q4_1);
    assert_int_equal(imp_type_for_row(IMP_Q4_K, 172), IMP_F16);
}

/* ---- the story model -------------------------------------------------------------------------------------------- */

typedef struct rig {
    imp_device *d;
    imp_pool *pool;
    imp_net *net;
    imp_importance *importance;
    imp_sense *s;
    int32_t *ids;
    uint32_t window, n_window;
} rig;

static rig *rig_new(uint32_t n_window)
{
    rig *r = calloc(1, sizeof *r);
    imp_error err = {0};
    assert_int_equal(imp_dev_cpu_open(2, &r->d, &err), IMP_OK);
    assert_int_equal(imp_pool_new(2, &r->pool), IMP_OK);
    assert_int_equal(imp_net_open(STORIES, 0, &r->net, &err), IMP_OK);
    assert_int_equal(imp_sense_open(r->d, r->net, r->pool, NULL, &r->s, &err), IMP_OK);
    r->window = imp_sense_window(r->s);
    r->n_window = n_window;
    r->ids = malloc((size_t)n_window * r->window * sizeof *r->ids);
    assert_int_equal(imp_sense_own_text(r->d, r->net, 5, n_window, r->window, r->ids, &err), IMP_OK);
    return r;
}

static void rig_free(rig *r)
{
    imp_sense_close(r->s);
    imp_importance_free(r->importance);
    imp_net_close(r->net);
    imp_pool_free(r->pool);
    r->d->ops->close(r->d);
    free(r->ids);
    free(r);
}

static void own_text_is_the_models(void **state)
{
    (void)state;
    rig *r = rig_new(4), *again = rig_new(4);
    size_t n = (size_t)4 * r->window;
    assert_memory_equal(r->ids, again->ids, n * sizeof *r->ids);
    assert_memory_not_equal(r->ids, r->ids + r->window, r->window * sizeof *r->ids); /* windows differ */
    for (size_t i = 0; i < n; i++) assert_true(r->ids[i] >= 0 && (uint32_t)r->ids[i] < r->net->cfg.n_vocab);
    rig_free(r);
    rig_free(again);
}

static void importance_equals_the_references(void **state)
{
    (void)state;
    rig *r = rig_new(1);
    imp_error err = {0};
    imp_device *ref;
    imp_importance *a, *b;
    assert_int_equal(imp_dev_ref_open(&ref, &err), IMP_OK);
    assert_int_equal(imp_importance_collect(r->d, r->net, r->ids, 100, 80, NULL, NULL, &a, &err), IMP_OK);
    assert_int_equal(imp_importance_collect(ref, r->net, r->ids, 100, 80, NULL, NULL, &b, &err), IMP_OK);
    uint32_t n, n_seen = 0;
    const imp_sense_tensor *t = imp_sense_tensors(r->s, &n);
    for (uint32_t i = 0; i < n; i++) {
        const char *name = imp_graph_node(r->net->generate, t[i].v)->name;
        const float *x = imp_importance_of(a, name, t[i].n_col), *y = imp_importance_of(b, name, t[i].n_col);
        assert_non_null(x);
        assert_non_null(y);
        assert_null(imp_importance_of(a, name, t[i].n_col + 1));
        for (uint64_t c = 0; c < t[i].n_col; c++)
            if (!(fabsf(x[c] - y[c]) <= 2e-3f * y[c]))
                fail_msg("%s column %d: %g, reference %g", name, (int)c, x[c], y[c]);
        n_seen++;
    }
    assert_int_equal(n_seen, 1 + 5 * 7); /* tied embeddings, 5 layers of 7 matrices */
    assert_null(imp_importance_of(a, "blk.0.attn_norm.weight", 64));
    imp_importance_free(a);
    imp_importance_free(b);
    ref->ops->close(ref);
    rig_free(r);
}

static double kl_of(rig *r, int group, imp_dtype t)
{
    imp_error err = {0};
    imp_dtype type[IMP_N_GROUP] = {IMP_DTYPE_NONE};
    double kl;
    for (int g = 0; g < IMP_N_GROUP; g++)
        if (group < 0 || g == group) type[g] = t;
    assert_int_equal(imp_sense_kl(r->s, type, &kl, &err), IMP_OK);
    return kl;
}

static void divergence_behaves(void **state)
{
    (void)state;
    rig *r = rig_new(2);
    imp_error err = {0};
    assert_int_equal(imp_sense_text(r->s, r->ids, 2, &err), IMP_OK);
    assert_true(kl_of(r, -1, IMP_DTYPE_NONE) < 1e-6);
    double half = kl_of(r, -1, IMP_F16), eight = kl_of(r, -1, IMP_Q8_0), four = kl_of(r, -1, IMP_Q4_1);
    assert_true(half < 1e-4 && half < eight && eight < 0.02 && eight < four && four < 1);
    double one = kl_of(r, IMP_PART_EMBED, IMP_Q4_1);
    assert_true(one > 0 && one < four);
    assert_true(kl_of(r, -1, IMP_DTYPE_NONE) < 1e-6); /* the graph has its own weights again */
    double e8, e4;
    assert_int_equal(imp_sense_error(r->s, IMP_PART_EMBED, IMP_Q8_0, &e8, &err), IMP_OK);
    assert_int_equal(imp_sense_error(r->s, IMP_PART_EMBED, IMP_Q4_1, &e4, &err), IMP_OK);
    assert_true(e8 > 0 && 50 * e8 < e4 && e4 < 0.02);
    rig_free(r);
}

/* ---- mixes -------------------------------------------------------------------------------------------------------- */

/* A unit without launch costs, so that the story model's matrices matter; `poor` type takes `times` as long. */
static imp_learn *unit(rig *r, imp_dtype poor, double times)
{
    imp_machine m;
    imp_error err = {0};
    imp_learn *l = malloc(sizeof *l);
    imp_machine_default(IMP_UNIT_CPU, "unit", &m);
    m.f[IMP_F_LAUNCH].v = m.f[IMP_F_SYNC].v = 0;
    m.f[IMP_F_CACHE].v = 0;
    imp_learn_init(l, &m);
    if (poor == IMP_DTYPE_NONE) return l;
    for (int i = 0; i < 200; i++) {
        static const imp_dtype other[] = {IMP_Q8_0, IMP_Q5_1, IMP_F16};
        imp_dtype t = i % 2 ? poor : other[i / 2 % 3], type[IMP_N_GROUP];
        imp_cost c;
        imp_cost_time p;
        for (int g = 0; g < IMP_N_GROUP; g++) type[g] = t;
        assert_int_equal(imp_sense_retype(r->s, type, &err), IMP_OK);
        imp_cost_build(r->net->generate, IMP_F16, &c);
        assert_int_equal(imp_sense_retype(r->s, NULL, &err), IMP_OK);
        imp_cost_shape sh = i % 4 < 2 ? imp_cost_shape_decode(1, 100) : imp_cost_shape_chunk(128, 0, 1);
        imp_cost_predict(&c, &m, &sh, &p);
        imp_learn_observe(l, &c, &sh, p.s * (t == poor ? times : 1));
    }
    return l;
}

typedef struct memory {
    uint8_t data[1 << 14];
    size_t n;
} memory;
static bool recall(void *user, void *data, size_t n)
{
    memory *m = user;
    if (m->n != n) return false;
    memcpy(data, m->data, n);
    return true;
}
static void remember(void *user, const void *data, size_t n)
{
    memory *m = user;
    assert_true(n <= sizeof m->data);
    memcpy(m->data, data, n);
    m->n = n;
}

static imp_mix *make(rig *r, const imp_learn *l, imp_mix_goal goal, double max_kl, memory *mem)
{
    imp_error err = {0};
    imp_mix *m = malloc(sizeof *m);
    imp_mix_want w = {.max_kl = max_kl,
                      .goal = goal,
                      .learn = l,
                      .n_prompt = 128,
                      .n_gen = 64,
                      .ids = r->ids,
                      .held_out = r->ids + r->window,
                      .n_window = 1,
                      .n_held_out = r->n_window - 1,
                      .recall = mem ? recall : NULL,
                      .remember = mem ? remember : NULL,
                      .user = mem};
    if (imp_mix_make(r->s, r->net, &w, m, &err) != IMP_OK) fail_msg("%s", err.text);
    return m;
}

static uint64_t bytes_of_type(const imp_mix *m, imp_dtype t)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < m->n_group; i++) {
        const imp_mix_option *o = &m->group[i].opt[m->group[i].chosen];
        if (o->type == t) n += o->bytes;
    }
    return n;
}

/* Measured by a sense of its own, on the held-out text. */
static double measured_again(rig *r, const imp_mix *m)
{
    imp_error err = {0};
    imp_dtype type[IMP_N_GROUP];
    double kl;
    imp_mix_types(m, type);
    assert_int_equal(imp_sense_text(r->s, r->ids + r->window, r->n_window - 1, &err), IMP_OK);
    assert_int_equal(imp_sense_kl(r->s, type, &kl, &err), IMP_OK);
    return kl;
}

static void budget_is_kept_and_used(void **state)
{
    (void)state;
    rig *r = rig_new(3);
    imp_learn *l = unit(r, IMP_DTYPE_NONE, 1);
    memory *mem = calloc(1, sizeof *mem);
    static const double budget[] = {0.05, 0.01, 0.002};
    uint64_t last = 0;
    for (int i = 0; i < 3; i++) {
        imp_mix *m = make(r, l, IMP_MIX_SIZE, budget[i], mem);
        assert_false(m->kept);
        assert_true(m->mix.kl <= budget[i] && m->mix.kl > budget[i] / 4);
        assert_true(fabs(measured_again(r, m) - m->mix.kl) < 1e-9);
        assert_true(m->mix.bytes > last && m->mix.bytes < m->source.bytes); /* the stricter, the larger */
        if (i == 0) assert_true(m->n_measure > 2 * m->n_group - 2);
        if (i > 0) assert_true(m->n_measure < 10); /* sensitivities were remembered */
        /* No uniform type is smaller at an equal or lower divergence (as far as the sum of the parts tells). */
        for (uint32_t k = 0; k < m->n_uniform; k++)
            if (m->uniform[k].kl <= m->mix.kl * 0.9) assert_true(m->uniform[k].bytes >= m->mix.bytes);
        last = m->mix.bytes;
        free(m);
    }
    imp_mix *m = make(r, l, IMP_MIX_SIZE, 1e-12, mem); /* nothing but the source keeps to that */
    assert_true(m->mix.kl <= 1e-12);
    free(m);
    free(mem);
    free(l);
    rig_free(r);
}

static void units_get_what_they_are_good_at(void **state)
{
    (void)state;
    rig *r = rig_new(2);
    memory *mem = calloc(1, sizeof *mem);
    imp_learn *plain = unit(r, IMP_DTYPE_NONE, 1), *poor = unit(r, IMP_Q4_0, 8);
    imp_mix *a = make(r, plain, IMP_MIX_TIME, 0.05, mem), *b = make(r, poor, IMP_MIX_TIME, 0.05, mem);
    print_message("q4_0 bytes: %llu of %llu, where it is slow: %llu\n",
                  (unsigned long long)bytes_of_type(a, IMP_Q4_0), (unsigned long long)a->mix.bytes,
                  (unsigned long long)bytes_of_type(b, IMP_Q4_0));
    assert_true(bytes_of_type(a, IMP_Q4_0) > a->mix.bytes / 4);
    assert_true(bytes_of_type(b, IMP_Q4_0) == 0);
    assert_true(b->mix.kl <= 0.05);
    /* A unit that takes only some types. */
    bool can[IMP_N_DTYPE] = {[IMP_F16] = true, [IMP_Q8_0] = true};
    imp_mix *c = malloc(sizeof *c);
    imp_error err = {0};
    imp_mix_want w = {.max_kl = 0.05,
                      .learn = plain,
                      .can = can,
                      .n_prompt = 64,
                      .n_gen = 8,
                      .ids = r->ids,
                      .held_out = r->ids + r->window,
                      .n_window = 1,
                      .n_held_out = 1};
    assert_int_equal(imp_mix_make(r->s, r->net, &w, c, &err), IMP_OK);
    for (uint32_t i = 0; i < c->n_group; i++)
        for (uint32_t k = 0; k < c->group[i].n_opt; k++) {
            imp_dtype t = c->group[i].opt[k].type;
            assert_true(t == IMP_DTYPE_NONE || t == IMP_F16 || t == IMP_Q8_0);
        }
    free(a), free(b), free(c), free(mem), free(plain), free(poor);
    rig_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(knapsack_is_exact),
        cmocka_unit_test(names_and_groups),
        cmocka_unit_test(own_text_is_the_models),
        cmocka_unit_test(importance_equals_the_references),
        cmocka_unit_test(divergence_behaves),
        cmocka_unit_test(budget_is_kept_and_used),
        cmocka_unit_test(units_get_what_they_are_good_at),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
