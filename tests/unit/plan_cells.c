/* What a model's shapes teach beside the ops: machines whose every step is known, with a part that no op's price says. */
#include "test.h"

#include <math.h>

#include "plan/learn.h"
#include "plan/place.h"
#include "plan_nets.h"

typedef struct world {
    imp_graph *g;
    imp_cost c;
    imp_machine m;
    imp_learn *l;
} world;

static void world_init(world *w)
{
    w->g = decoder(&QWEN2_15B);
    imp_cost_build(w->g, IMP_F16, &w->c);
    imp_machine_default(IMP_UNIT_CPU, "cpu0", &w->m);
    w->l = malloc(sizeof *w->l);
    imp_learn_init(w->l, &w->m);
}

static void world_deinit(world *w)
{
    free(w->l);
    imp_graph_free(w->g);
}

/* The machine's own price times a factor. */
static double priced(const world *w, imp_cost_shape sh, double times)
{
    imp_cost_time t;
    imp_cost_predict(&w->c, &w->m, &sh, &t);
    return t.s * times;
}

static double predicted(const world *w, imp_cost_shape sh)
{
    imp_cost_time t;
    imp_learn_predict(w->l, &w->c, &sh, true, &t);
    assert_true(isfinite(t.sd) && t.sd > 0);
    return t.s;
}

static void teach(world *w, imp_cost_shape sh, double s, int n)
{
    for (int i = 0; i < n; i++) imp_learn_observe(w->l, &w->c, &sh, s);
}

static double off(double a, double b)
{
    return fabs(log(a / b));
}

/* Six sequences at once are 1.4 times dearer than any op explains: learned exactly, and no other shape suffers. */
static void a_shapes_own_part(void **state)
{
    (void)state;
    world w;
    world_init(&w);
    imp_cost_shape one = imp_cost_shape_decode(1, 200), six = imp_cost_shape_decode(6, 200),
                   prompt = imp_cost_shape_chunk(256, 0, 1);
    for (int round = 0; round < 8; round++) {
        teach(&w, one, priced(&w, one, 1), 6);
        teach(&w, prompt, priced(&w, prompt, 0.8), 1);
        teach(&w, six, priced(&w, six, 1.4), 6);
    }
    assert_true(off(predicted(&w, six), priced(&w, six, 1.4)) < 0.02);
    assert_true(off(predicted(&w, one), priced(&w, one, 1)) < 0.02);
    assert_true(off(predicted(&w, prompt), priced(&w, prompt, 0.8)) < 0.03);
    world_deinit(&w);
}

/* All of a model's steps are 1.5 times dearer than its ops: so are shapes that were never seen, nearer ones more surely. */
static void carries_to_shapes_around(void **state)
{
    (void)state;
    world w;
    world_init(&w);
    for (int round = 0; round < 4; round++)
        for (uint32_t past = 32; past <= 512; past *= 4)
            teach(&w, imp_cost_shape_decode(1, past), priced(&w, imp_cost_shape_decode(1, past), 1.5), 4);
    imp_cost_shape near = imp_cost_shape_decode(1, 250), far = imp_cost_shape_decode(16, 4000);
    assert_true(off(predicted(&w, near), priced(&w, near, 1.5)) < 0.03);
    assert_true(off(predicted(&w, far), priced(&w, far, 1.5)) < 0.25);
    imp_cost_time a, b;
    imp_learn_predict(w.l, &w.c, &near, true, &a);
    imp_learn_predict(w.l, &w.c, &far, true, &b);
    assert_true(a.sd <= b.sd + 1e-9);
    world_deinit(&w);
}

/* Two bad minutes at the start, three times as slow: forgotten after three good ones. */
static void bad_minutes_are_forgotten(void **state)
{
    (void)state;
    world w;
    world_init(&w);
    imp_cost_shape sh = imp_cost_shape_chunk(128, 0, 1), other = imp_cost_shape_chunk(512, 0, 1);
    for (int round = 0; round < 7; round++) {
        teach(&w, sh, priced(&w, sh, round < 2 ? 1.8 : 1), 1);
        for (int k = 0; k < 5; k++) teach(&w, other, priced(&w, other, 1), 1);
    }
    assert_true(off(predicted(&w, sh), priced(&w, sh, 1)) < 0.04);
    world_deinit(&w);
}

/* The machine becomes 1.2 times as slow for all prompts alike: those of which nothing was seen since follow, generation,
 * which did not change, stays. */
static void pace_is_common(void **state)
{
    (void)state;
    world w;
    world_init(&w);
    static const uint32_t n[] = {32, 64, 128, 256, 512};
    imp_cost_shape gen = imp_cost_shape_decode(1, 100);
    for (int round = 0; round < 6; round++) {
        for (size_t i = 0; i < IMP_COUNT(n); i++)
            teach(&w, imp_cost_shape_chunk(n[i], 0, 1), priced(&w, imp_cost_shape_chunk(n[i], 0, 1), 1), 1);
        teach(&w, gen, priced(&w, gen, 1), 4);
    }
    imp_cost_shape left = imp_cost_shape_chunk(32, 0, 1);
    double before = predicted(&w, left);
    for (int round = 0; round < 8; round++)
        for (size_t i = 1; i < IMP_COUNT(n); i++)
            teach(&w, imp_cost_shape_chunk(n[i], 0, 1), priced(&w, imp_cost_shape_chunk(n[i], 0, 1), 1.2), 1);
    assert_true(predicted(&w, left) > before * 1.05);
    assert_true(off(predicted(&w, imp_cost_shape_chunk(256, 0, 1)),
                    priced(&w, imp_cost_shape_chunk(256, 0, 1), 1.2)) < 0.05);
    assert_true(off(predicted(&w, gen), priced(&w, gen, 1)) < 0.03);
    world_deinit(&w);
}

/* A unit that becomes twice as slow while one model runs: its shapes follow at once. Settled, they stay, and a model that
 * was never seen is priced as before. */
static void pace_settles(void **state)
{
    (void)state;
    world w;
    world_init(&w);
    imp_cost_shape sh = imp_cost_shape_decode(1, 100);
    teach(&w, sh, priced(&w, sh, 1), 10);
    imp_cost c = w.c, other = w.c;
    other.id ^= 0x5a5a0;
    w.c = other;
    double fresh = predicted(&w, sh);
    w.c = c;
    teach(&w, sh, priced(&w, sh, 2), 8);
    assert_true(off(predicted(&w, sh), priced(&w, sh, 2)) < 0.1);
    assert_true(w.l->cells.pace[0] > 0.3);
    double before = predicted(&w, sh);
    imp_cells_settle(&w.l->cells);
    assert_true(w.l->cells.pace[0] == 0);
    assert_true(off(predicted(&w, sh), before) < 0.02);
    w.c = other;
    assert_true(off(predicted(&w, sh), fresh) < 0.25);
    world_deinit(&w);
}

/* Steps close behind a prompt take 1.7 times as long: a short answer's time a token has all of it, a long one's hardly any. */
static void steps_behind_a_prompt(void **state)
{
    (void)state;
    world w;
    world_init(&w);
    for (int round = 0; round < 6; round++) {
        imp_cost_shape prompt = imp_cost_shape_chunk(300, 0, 1), after = imp_cost_shape_decode(1, 300),
                       later = imp_cost_shape_decode(1, 306);
        after.after = true;
        teach(&w, prompt, priced(&w, prompt, 1), 1);
        teach(&w, after, priced(&w, imp_cost_shape_decode(1, 300), 1.7), 1);
        teach(&w, later, priced(&w, later, 1), 4);
    }
    static const uint32_t gen[] = {1 + IMP_COST_AFTER, 1 + 10 * IMP_COST_AFTER};
    static const double times[] = {1.7, 1.07};
    for (int k = 0; k < 2; k++) {
        imp_place_unit u = {.name = "cpu0", .learn = w.l, .n_ctx = 4096, .loaded = true};
        imp_place_request r = {.cost = &w.c, .n_prompt = 300, .n_gen = gen[k], .n_need = 400, .chunk = 512};
        imp_placer p;
        imp_choice ch;
        imp_placer_init(&p);
        imp_place(&p, &r, &u, 1, &ch);
        double want = priced(&w, imp_cost_shape_decode(1, 306), times[k]);
        assert_true(off(ch.cand[0].tpot_s, want) < 0.05);
        assert_true(ch.cand[0].joules > 0 &&
                    !ch.cand[0].metered); /* a power that is only assumed is not told */
        w.l->machine.f[IMP_F_WATT].mark = IMP_MARK_MEASURED;
        imp_place(&p, &r, &u, 1, &ch);
        assert_true(ch.cand[0].metered);
        w.l->machine.f[IMP_F_WATT].mark = IMP_MARK_ASSUMED;
    }
    world_deinit(&w);
}

/* More shapes than there are cells, and another model's: the least recent go, nothing else does. */
static void cells_run_out(void **state)
{
    (void)state;
    world w;
    world_init(&w);
    for (uint32_t i = 1; i < 3000; i += 3) {
        imp_cost_shape sh = imp_cost_shape_chunk(1 + i % 600, i, 1);
        teach(&w, sh, priced(&w, sh, 1.3), 1);
    }
    imp_cost_shape last = imp_cost_shape_chunk(1 + 2998 % 600, 2998, 1);
    assert_true(off(predicted(&w, last), priced(&w, last, 1.3)) < 0.05);
    world_deinit(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_shapes_own_part),
        cmocka_unit_test(carries_to_shapes_around),
        cmocka_unit_test(bad_minutes_are_forgotten),
        cmocka_unit_test(pace_is_common),
        cmocka_unit_test(steps_behind_a_prompt),
        cmocka_unit_test(cells_run_out),
        cmocka_unit_test(pace_settles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
