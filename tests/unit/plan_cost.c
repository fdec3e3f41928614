/* The cost model against arithmetic done by hand, the learner against machines whose true numbers are known, and the
 * profiles against published who-wins results. */
#include "test.h"

#include <math.h>

#include "plan/learn.h"
#include "plan/place.h"
#include "plan_nets.h"

/* ---- counting ------------------------------------------------------------------------------------- */

static void counts(void **state)
{
    (void)state;
    imp_graph *g = decoder(&LLAMA3_8B);
    imp_cost c;
    imp_cost_build(g, IMP_F16, &c);
    /* Llama-3 8B: 32 layers of (2*4096*4096 + 2*1024*4096 + 3*4096*14336) and the output matrix. */
    double layer = 2.0 * 4096 * 4096 + 2.0 * 1024 * 4096 + 3.0 * 4096 * 14336;
    double elem = 32 * layer + 128256.0 * 4096;
    assert_true(fabs(c.weight_bytes - elem * 18 / 32) < 1);
    assert_true(c.kv_bytes_tok == 32 * 2 * 8 * 128 * 2);
    imp_machine m;
    assert_int_equal(imp_profile_machines("apple-m3-max/gpu", &m, 1), 1);
    imp_cost_shape sh = imp_cost_shape_decode(1, 0);
    imp_cost_time t;
    imp_cost_predict(&c, &m, &sh, &t);
    assert_true(t.bytes > elem * 18 / 32 && t.bytes < elem * 18 / 32 * 1.02);
    assert_true(t.flop > 2 * elem && t.flop < 2 * elem * 1.02);
    assert_int_equal(t.bound, IMP_BOUND_MEMORY);
    assert_true(c.n_item < 24 && c.n_launch > 32 * 12); /* folded */
    /* attention of one chunk: 4 * keys * width, keys = n * past + n (n + 1) / 2 */
    sh = imp_cost_shape_chunk(512, 1024, 1);
    assert_true(sh.keys == 512.0 * 1024 + 512 * 513 / 2.0);
    imp_graph_free(g);
}

/* ---- learning ------------------------------------------------------------------------------------- */

/* A machine that the learner does not know: other bandwidth, other peaks. */
static imp_machine truth(double bw, double mm, double launch)
{
    imp_machine m;
    imp_machine_default(IMP_UNIT_CPU, "true", &m);
    m.f[IMP_F_BW].v *= bw;
    m.f[IMP_F_E_MM].v *= mm;
    m.f[IMP_F_LAUNCH].v *= launch;
    return m;
}

static double noise(uint64_t *seed) /* about normal, sd 1 */
{
    double s = 0;
    for (int i = 0; i < 12; i++) {
        *seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
        s += (double)(*seed >> 11) / 9007199254740992.0;
    }
    return s - 6;
}

static double error_of(const imp_learn *l, const imp_cost *c, const imp_machine *m, imp_cost_shape sh)
{
    imp_cost_time a, p;
    imp_cost_predict(c, m, &sh, &a);
    imp_learn_predict(l, c, &sh, true, &p);
    return fabs(log(p.s / a.s));
}

static void learns_unknown_machine(void **state)
{
    (void)state;
    imp_graph *g = decoder(&QWEN2_15B);
    imp_cost c;
    imp_cost_build(g, IMP_F16, &c);
    imp_machine start, m = truth(1.8, 0.55, 3);
    imp_machine_default(IMP_UNIT_CPU, "cpu0", &start);
    imp_learn *l = malloc(sizeof *l);
    imp_learn_init(l, &start);
    uint64_t seed = 1;
    assert_true(error_of(l, &c, &m, imp_cost_shape_decode(1, 200)) > 0.3);
    for (uint32_t i = 0; i < 120; i++) {
        static const uint32_t chunk[] = {16, 64, 128, 512};
        imp_cost_shape sh = i % 3 ? imp_cost_shape_decode(1 + i % 2 * 3, 64 + 8 * i)
                                  : imp_cost_shape_chunk(chunk[i / 3 % 4], 0, 1);
        imp_cost_time a;
        imp_cost_predict(&c, &m, &sh, &a);
        imp_learn_observe(l, &c, &sh, a.s * exp(0.02 * noise(&seed)));
    }
    assert_true(error_of(l, &c, &m, imp_cost_shape_decode(1, 300)) < 0.03);
    assert_true(error_of(l, &c, &m, imp_cost_shape_chunk(512, 0, 1)) < 0.03);
    /* shapes it never saw */
    assert_true(error_of(l, &c, &m, imp_cost_shape_decode(2, 100)) < 0.10);
    assert_true(error_of(l, &c, &m, imp_cost_shape_chunk(256, 0, 1)) < 0.12);
    assert_true(error_of(l, &c, &m, imp_cost_shape_chunk(32, 0, 1)) < 0.15);
    /* and another model of the same types */
    imp_graph *g8 = decoder(&LLAMA3_8B);
    imp_cost c8;
    imp_cost_build(g8, IMP_F16, &c8);
    assert_true(error_of(l, &c8, &m, imp_cost_shape_decode(1, 100)) < 0.15);
    imp_graph_free(g8);
    imp_graph_free(g);
    free(l);
}

static void intervals_cover(void **state)
{
    (void)state;
    imp_graph *g = decoder(&QWEN2_15B);
    imp_cost c;
    imp_cost_build(g, IMP_F16, &c);
    imp_machine start, m = truth(1.3, 0.8, 1);
    imp_machine_default(IMP_UNIT_CPU, "cpu0", &start);
    imp_learn *l = malloc(sizeof *l);
    imp_learn_init(l, &start);
    uint64_t seed = 7;
    int in = 0, n = 0;
    for (uint32_t i = 0; i < 400; i++) {
        imp_cost_shape sh = imp_cost_shape_decode(1 + i % 4, 64 + i);
        imp_cost_time a, p;
        imp_cost_predict(&c, &m, &sh, &a);
        double actual = a.s * exp(0.04 * noise(&seed)), lo, hi;
        imp_learn_predict(l, &c, &sh, true, &p);
        imp_learn_interval(&p, &lo, &hi);
        if (i >= 40) n++, in += actual >= lo && actual <= hi;
        imp_learn_observe(l, &c, &sh, actual);
    }
    double share = (double)in / n; /* 90 % intervals */
    assert_true(share > 0.82 && share < 0.98);
    imp_graph_free(g);
    free(l);
}

/* One wild step changes little; a unit that is three times slower from now on is noticed in a few steps. */
static void outliers_and_drift(void **state)
{
    (void)state;
    imp_graph *g = decoder(&QWEN2_15B);
    imp_cost c;
    imp_cost_build(g, IMP_F16, &c);
    imp_machine m;
    imp_machine_default(IMP_UNIT_CPU, "cpu0", &m);
    imp_learn *l = malloc(sizeof *l);
    imp_learn_init(l, &m);
    imp_cost_shape sh = imp_cost_shape_decode(1, 100);
    imp_cost_time a, p;
    imp_cost_predict(&c, &m, &sh, &a);
    for (int i = 0; i < 50; i++) imp_learn_observe(l, &c, &sh, a.s);
    imp_learn_observe(l, &c, &sh, a.s * 20);
    imp_learn_predict(l, &c, &sh, true, &p);
    assert_true(p.s < a.s * 1.15);
    for (int i = 0; i < 20; i++) imp_learn_observe(l, &c, &sh, a.s);
    for (int i = 0; i < 8; i++) imp_learn_observe(l, &c, &sh, a.s * 3);
    imp_learn_predict(l, &c, &sh, true, &p);
    assert_true(p.s > a.s * 2.6 && p.s < a.s * 3.4);
    /* nonsense is ignored */
    imp_learn_observe(l, &c, &sh, 0);
    imp_learn_observe(l, &c, &sh, -1);
    imp_learn_observe(l, &c, &sh, NAN);
    imp_learn_observe(l, &c, &sh, INFINITY);
    for (int i = 0; i < 50; i++) imp_learn_observe(l, &c, &sh, i % 2 ? 1e-12 : 1e9);
    imp_learn_predict(l, &c, &sh, true, &p);
    assert_true(isfinite(p.s) && p.s > 0 && isfinite(p.sd));
    imp_graph_free(g);
    free(l);
}

/* ---- who wins, from specifications alone ------------------------------------------------------------ */

static double ms(const char *unit, const imp_cost *c, imp_cost_shape sh)
{
    imp_machine m;
    imp_cost_time t;
    assert_int_equal(imp_profile_machines(unit, &m, 1), 1);
    imp_cost_predict(c, &m, &sh, &t);
    return t.s * 1e3;
}

static void who_wins(void **state)
{
    (void)state;
    imp_cost c;
    imp_graph *g = decoder(&QWEN3_06B);
    imp_cost_build(g, IMP_F16, &c);
    imp_cost_shape sh = imp_cost_shape_chunk(128, 0, 1);
    double ane = ms("apple-m5-pro/ane", &c, sh), gpu = ms("apple-m5-pro/gpu", &c, sh),
           cpu = ms("apple-m5-pro/cpu", &c, sh);
    print_message("# Qwen3-0.6B, 128 tokens, M5 Pro (published 12.5 9.3 46): ANE %.1f GPU %.1f CPU %.1f ms\n",
                  ane, gpu, cpu);
    assert_true(gpu < ane && ane < cpu);
    assert_true(fabs(log(ane / 12.5)) < log(2) && fabs(log(gpu / 9.3)) < log(2) &&
                fabs(log(cpu / 46)) < log(2));
    sh = imp_cost_shape_decode(1, 100);
    assert_true(ms("apple-m5-pro/gpu", &c, sh) < ms("apple-m5-pro/ane", &c, sh)); /* 289 against 112 GB/s */
    imp_graph_free(g);

    g = encoder(&MINILM);
    imp_cost_build(g, IMP_F16, &c);
    sh = imp_cost_shape_chunk(128, 0, 0);
    sh.keys = 128.0 * 128;
    ane = ms("apple-m4/ane", &c, sh), gpu = ms("apple-m4/gpu", &c, sh);
    print_message("# text encoder, M4 (published 0.5-0.6 2.3-2.5): ANE %.2f GPU %.2f ms\n", ane, gpu);
    assert_true(ane < gpu);
    imp_graph_free(g);

    g = encoder(&WHISPER_TINY);
    imp_cost_build(g, IMP_F16, &c);
    sh = imp_cost_shape_chunk(1500, 0, 0);
    sh.keys = 1500.0 * 1500;
    ane = ms("apple-m1-max/ane", &c, sh), gpu = ms("apple-m1-max/gpu", &c, sh);
    print_message(
        "# Whisper-tiny encoder, M1 Max (published, machine not named: 11.2 7.3): ANE %.1f GPU %.1f ms\n",
        ane, gpu);
    assert_true(gpu < ane);
    imp_machine a, b;
    assert_int_equal(imp_profile_machines("apple-m1-max/ane", &a, 1), 1);
    assert_int_equal(imp_profile_machines("apple-m1-max/gpu", &b, 1), 1);
    assert_true(ane * a.f[IMP_F_WATT].v < gpu * b.f[IMP_F_WATT].v); /* energy */
    imp_graph_free(g);
}

/* Time of a long prompt with GPU decode: is prefill on the ANE and handing over faster than all on the GPU? */
static double gain(const char *system, const imp_cost *c, uint32_t n_prompt)
{
    char name[64];
    imp_machine m;
    imp_learn *l = malloc(2 * sizeof *l);
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "%s/%s", system, i ? "ane" : "gpu");
        assert_int_equal(imp_profile_machines(name, &m, 1), 1);
        imp_learn_init(&l[i], &m);
    }
    imp_place_unit u[2] = {{.name = "gpu",
                            .learn = &l[0],
                            .n_ctx = 65536,
                            .can_export = true,
                            .can_import = true,
                            .loaded = true},
                           {.name = "ane",
                            .learn = &l[1],
                            .n_ctx = 65536,
                            .can_export = true,
                            .can_import = true,
                            .loaded = true}};
    imp_placer p;
    imp_placer_init(&p);
    imp_place_request r = {
        .cost = c, .n_prompt = n_prompt, .n_gen = 128, .n_need = n_prompt + 128, .chunk = 512};
    imp_choice ch;
    imp_place(&p, &r, u, 2, &ch);
    double gpu = 0, split = 0;
    for (uint32_t i = 0; i < ch.n_cand; i++) {
        assert_null(ch.cand[i].excluded);
        double t = ch.cand[i].ttft_s + ch.cand[i].exposed_s;
        if (ch.cand[i].prefill == 0 && ch.cand[i].decode == 0) gpu = t;
        if (ch.cand[i].prefill == 1 && ch.cand[i].decode == 0) split = t;
    }
    const imp_candidate *best = &ch.cand[ch.chosen];
    assert_int_equal(best->decode, 0);
    assert_int_equal(best->prefill, split < gpu ? 1 : 0);
    free(l);
    print_message("# ANE prefill + GPU decode, %s, %u tokens: %+.0f %%\n", system, n_prompt,
                  100 * (gpu / split - 1));
    return gpu / split - 1;
}

static void split_on_apple(void **state)
{
    (void)state;
    imp_cost c;
    imp_graph *g = decoder(&LLAMA3_8B);
    imp_cost_build(g, IMP_F16, &c);
    assert_true(gain("apple-m3-max", &c, 32768) > 0.1); /* measured by others: +57 % */
    assert_true(gain("apple-m3-max", &c, 16384) > 0);   /* +13 % */
    assert_true(gain("apple-m3-max", &c, 1024) < 0);
    assert_true(gain("apple-m5", &c, 16384) < 0); /* -33 % */
    assert_true(gain("apple-m5", &c, 32768) < 0);
    assert_true(gain("apple-m2-ultra", &c, 16384) < 0.2); /* +3 % */
    imp_graph_free(g);
}

/* Every profile is whole: the fields that prices need, ranges around the values, a source. */
static void profiles_are_sound(void **state)
{
    (void)state;
    assert_true(imp_profile_count() > 70);
    for (size_t i = 0; i < imp_profile_count(); i++) {
        const imp_profile *p = imp_profile_at(i);
        static const imp_field need[] = {IMP_F_BW,     IMP_F_E_BW,  IMP_F_E_MM, IMP_F_K_HALF,
                                         IMP_F_E_ATTN, IMP_F_E_FAR, IMP_F_SYNC, IMP_F_LINK};
        for (size_t k = 0; k < IMP_COUNT(need); k++) assert_true(p->f[need[k]].v > 0);
        assert_true(p->f[IMP_F_F32].v > 0 || p->f[IMP_F_F16].v > 0);
        for (int f = 0; f < IMP_N_FIELD; f++) {
            const imp_value *v = &p->f[f];
            if (v->mark == IMP_MARK_NONE) continue;
            assert_non_null(v->source);
            assert_true(v->lo <= v->v + 1e-9 && v->v <= v->hi + 1e-9);
        }
        for (size_t k = 0; k < i; k++)
            assert_false(strcmp(p->system, imp_profile_at(k)->system) == 0 &&
                         strcmp(p->unit, imp_profile_at(k)->unit) == 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts),
        cmocka_unit_test(learns_unknown_machine),
        cmocka_unit_test(intervals_cover),
        cmocka_unit_test(outliers_and_drift),
        cmocka_unit_test(who_wins),
        cmocka_unit_test(split_on_apple),
        cmocka_unit_test(profiles_are_sound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
