/* tests/dev/tensor.c - a model divided between devices layer by layer gives what ref gives, within the device suite's bounds;
 * its cache, its failures, and what is refused.
 *
 * Members sum in f32 in another order than one device, so that bits differ; they do not differ from run to run. */
#include "common.h"
#include "dev/group.h"
#include "dev/tensor/tensor.h"

/* Another kind of device (cuda_tensor.c) states its own and includes this file. */
#ifndef TENSOR_DEVICES
#define TENSOR_DEVICES  "ref/ref", "cpu/cpu", "cpu/cpu/cpu/cpu"
#define TENSOR_BOUND(m) ((m)->bound)
#define TENSOR_KV(m)    ((m)->kv)
#endif

typedef struct model {
    tiny t;
    imp_dtype kv;
    double bound; /* of the device suite (suite.c) */
    const char *what;
} model;

static const model models[] = {
    {{.n_layer = 3}, IMP_F32, 1e-5, "plain"},
    {{.bias = true, .qk_norm = true}, IMP_F32, 1e-5, "bias, norms of heads"},
    {{.fused = true, .interleaved = true, .n_rot = 16}, IMP_F32, 1e-5, "fused"},
    {{.window = 40, .sinks = true, .softcap = 20}, IMP_F32, 1e-5, "window, sinks"},
    {{.n_head = 6, .n_kv_head = 1}, IMP_F32, 1e-5, "one KV head for all"},
    {{.n_head = 8, .n_kv_head = 8, .head_dim = 16, .n_ff = 100},
     IMP_F32,
     1e-5,
     "as many KV heads, uneven width"},
    {{.n_head = 3, .n_kv_head = 3}, IMP_F32, 1e-5, "three heads"},
    {{.n_expert = 6, .n_used = 2}, IMP_F32, 1e-5, "experts"},
    {{.dtype = IMP_Q8_0, .n_ff = 160}, IMP_F32, 0.05, "q8_0"},
    {{.dtype = IMP_Q4_0, .bias = true}, IMP_F16, 0.05, "q4_0"},
    {{.dtype = IMP_Q4_K, .head_dim = 64, .n_head = 8, .n_kv_head = 4, .n_ff = 1024}, IMP_F32, 0.05, "q4_k"},
    {{.dtype = IMP_Q8_0, .n_expert = 4, .n_used = 2}, IMP_F32, 0.05, "experts, q8_0"},
};
static const char *const devices[] = {TENSOR_DEVICES};
enum { N_SEQ = 3, PER_SEQ = 3 };

/* Ragged pieces and single tokens of three sequences; all rows of all steps, *n of them. */
static float *whole_run(rig *r, imp_exec *x, int32_t *const *text, const uint32_t *blocks, uint32_t *n)
{
    static const uint32_t grow[4][N_SEQ] = {{5, 66, 1}, {1, 1, 1}, {60, 1, 90}, {1, 1, 1}};
    uint32_t past[N_SEQ] = {0};
    float *all = rig_alloc(r, 256 * N_VOCAB * sizeof *all);
    *n = 0;
    for (int step = 0; step < 4; step++) {
        steps s;
        batch_clear(&s);
        for (int i = 0; i < N_SEQ; i++) {
            batch_add(&s, text[i], past[i], grow[step][i], blocks + PER_SEQ * i);
            past[i] += grow[step][i];
        }
        memcpy(all + (size_t)*n * N_VOCAB, run_step(r, x, &s.b, s.b.n_out, N_VOCAB),
               s.b.n_out * N_VOCAB * sizeof *all);
        *n += s.b.n_out;
    }
    return all;
}

static void test_close_to_ref(void **state)
{
    (void)state;
    for (size_t m = 0; m < IMP_COUNT(models); m++) {
        rig *r = rig_new(300 + m);
        imp_graph *g = tiny_model(r, models[m].t, false);
        imp_limits lim = test_limits(TENSOR_KV(&models[m]));
        int32_t *text[N_SEQ] = {random_text(r, 200), random_text(r, 200), random_text(r, 200)};
        uint32_t *blocks = random_blocks(r, N_SEQ, PER_SEQ), n;
        imp_device *ref = open_dev("ref", 0);
        imp_exec *x = compile(ref, g, lim);
        float *want = whole_run(r, x, text, blocks, &n);
        for (size_t k = 0; k < IMP_COUNT(devices); k++) {
            char what[96];
            snprintf(what, sizeof what, "%s on %s", models[m].what, devices[k]);
            imp_device *d = open_dev(devices[k], 2);
            imp_exec *y = compile(d, g, lim);
            float *have = whole_run(r, y, text, blocks, &n);
            expect_close(have, want, n * N_VOCAB, TENSOR_BOUND(&models[m]), what);
            expect_same(whole_run(r, y, text, blocks, &n), have, n * N_VOCAB, what); /* the same, run again */
            d->ops->exec_free(y);
            d->ops->close(d);
        }
        ref->ops->exec_free(x);
        ref->ops->close(ref);
        imp_graph_free(g);
        rig_free(r);
    }
}

/* A whole device's cache goes to a divided one and comes back the same; a copied block serves as its original. */
static void test_cache(void **state)
{
    (void)state;
    for (size_t m = 0; m < IMP_COUNT(models); m++) {
        rig *r = rig_new(400 + m);
        imp_graph *g = tiny_model(r, models[m].t, false);
        imp_limits lim = test_limits(TENSOR_KV(&models[m]));
        int32_t *text[N_SEQ] = {random_text(r, 200), random_text(r, 200), random_text(r, 200)};
        uint32_t *blocks = random_blocks(r, N_SEQ, PER_SEQ), n;
        imp_device *one = open_dev("cpu", 2), *d = open_dev(devices[IMP_COUNT(devices) - 1], 2);
        imp_exec *x = compile(one, g, lim), *y = compile(d, g, lim);
        imp_error err = {0};
        whole_run(r, x, text, blocks, &n);
        uint64_t bytes = imp_dev_kv_block_bytes(g, lim.kv_dtype);
        uint8_t *host = rig_alloc(r, bytes), *back = rig_alloc(r, bytes);
        for (uint32_t b = 0; b < N_SEQ * PER_SEQ; b++) {
            assert_int_equal(one->ops->kv_export(x, blocks[b], host, &err), IMP_OK);
            assert_int_equal(d->ops->kv_import(y, blocks[b], host, &err), IMP_OK);
            assert_int_equal(d->ops->kv_export(y, blocks[b], back, &err), IMP_OK);
            assert_memory_equal(host, back, bytes);
        }
        steps s;
        batch_clear(&s);
        batch_add(&s, text[2], 93, 1, blocks + 2 * PER_SEQ);
        float *want = run_step(r, x, &s.b, 1, N_VOCAB), *have = run_step(r, y, &s.b, 1, N_VOCAB);
        expect_close(have, want, N_VOCAB, 2 * TENSOR_BOUND(&models[m]), models[m].what);
        uint32_t moved[PER_SEQ], other = 0;
        memcpy(moved, blocks + 2 * PER_SEQ, sizeof moved);
        for (uint32_t b = 0; b < N_SEQ * PER_SEQ; b++)
            if (blocks[b] == other) other++, b = UINT32_MAX;
        d->ops->kv_copy(y, other, moved[0]);
        moved[0] = other;
        s.seq[0].block = moved;
        expect_same(run_step(r, y, &s.b, 1, N_VOCAB), have, N_VOCAB, "after the copy");
        d->ops->exec_free(y), d->ops->close(d);
        one->ops->exec_free(x), one->ops->close(one);
        imp_graph_free(g);
        rig_free(r);
    }
}

/* What every member takes is its part: together not more than the whole and the tables that each has. */
static void test_plan(void **state)
{
    (void)state;
    rig *r = rig_new(5);
    imp_graph *g = tiny_model(r, (tiny){.n_layer = 4, .dtype = IMP_Q8_0, .n_ff = 512}, false);
    imp_limits lim = test_limits(IMP_F16);
    imp_dev_memory one, two;
    imp_error err = {0};
    imp_device *d = open_dev("cpu", 2), *pair = open_dev("cpu/cpu", 2);
    assert_int_equal(d->ops->plan(d, g, &lim, &one, &err), IMP_OK);
    assert_int_equal(pair->ops->plan(pair, g, &lim, &two, &err), IMP_OK);
    assert_int_equal(two.kv, one.kv);
    assert_string_equal(pair->name, "cpu0/cpu0");
    uint64_t table = N_VOCAB * 64 * sizeof(float);
    assert_true(two.weights + two.mapped <= one.weights + one.mapped + 2 * table + 64 * 1024);
    d->ops->close(d);
    pair->ops->close(pair);
    imp_graph_free(g);
    rig_free(r);
}

/* ---- a member that fails ---------------------------------------------------------------------------------- */

static int g_fail; /* runs of the failing member that still go well; -1: all */
static imp_device_ops g_ops;
static imp_status (*g_run)(imp_exec *, const imp_batch *, const float **, imp_error *);
static imp_status failing_run(imp_exec *x, const imp_batch *b, const float **out, imp_error *err)
{
    if (g_fail == 0) return imp_fail(err, IMP_DEVICE, "the second one failed");
    if (g_fail > 0) g_fail--;
    return g_run(x, b, out, err);
}

static void test_failure(void **state)
{
    (void)state;
    imp_error err = {0};
    imp_device *member[2] = {open_dev("cpu", 2), open_dev("cpu", 2)}, *d;
    g_ops = *member[1]->ops;
    g_run = g_ops.run;
    g_ops.run = failing_run;
    member[1]->ops = &g_ops;
    assert_int_equal(imp_dev_tensor_open(member, 2, true, &d, &err), IMP_OK);
    rig *r = rig_new(6);
    imp_graph *g = tiny_model(r, (tiny){0}, false);
    imp_exec *x = compile(d, g, test_limits(IMP_F32));
    int32_t *text[N_SEQ] = {random_text(r, 200), random_text(r, 200), random_text(r, 200)};
    uint32_t *blocks = random_blocks(r, N_SEQ, PER_SEQ), n;
    g_fail = -1;
    float *want = whole_run(r, x, text, blocks, &n);
    steps s;
    batch_clear(&s);
    batch_add(&s, text[0], 0, 9, blocks);
    for (g_fail = 2; g_fail > 0;) run_step(r, x, &s.b, 9, N_VOCAB);
    const float *out;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(d->ops->run(x, &s.b, &out, &err), IMP_DEVICE);
        assert_string_equal(err.text, "the second one failed");
        assert_null(out);
    }
    g_fail = -1; /* it is back: the sums start anew */
    expect_same(whole_run(r, x, text, blocks, &n), want, n * N_VOCAB, "after the failure");
    s.b.n_tok = 0;
    assert_int_equal(d->ops->run(x, &s.b, &out, &err), IMP_INVALID);
    d->ops->exec_free(x);
    d->ops->close(d);
    imp_graph_free(g);
    rig_free(r);
}

/* ---- refusals ------------------------------------------------------------------------------------------------ */

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *spec, *says;
    } bad[] = {
        {"cpu/ref", "not equal"},
        {"cpu/", "there is no device \"\""},
        {"/cpu", "there is no device \"\""},
        {"cpu/tpu", "there is no device \"tpu\""},
        {"cpu/cpu/cpu/cpu/cpu/cpu/cpu/cpu/cpu", "at most 8"},
        {"cpu/cpu:x+cpu", "a number of layers"},
    };
    for (size_t i = 0; i < IMP_COUNT(bad); i++) {
        imp_device *d;
        imp_error err = {0};
        assert_int_not_equal(imp_dev_open(bad[i].spec, 1, &d, &err), IMP_OK);
        if (strstr(err.text, bad[i].says) == NULL) fail_msg("%s: %s", bad[i].spec, err.text);
    }
    /* heads and blocks that do not divide: nothing is left to share */
    rig *r = rig_new(8);
    imp_graph *g = tiny_model(
        r, (tiny){.dtype = IMP_Q4_K, .n_head = 4, .n_kv_head = 1, .head_dim = 64, .n_ff = 256}, false);
    imp_device *d = open_dev("cpu/cpu", 1);
    imp_limits lim = test_limits(IMP_F32);
    imp_exec *x;
    imp_error err = {0};
    assert_int_equal(d->ops->compile(d, g, &lim, &x, &err), IMP_UNSUPPORTED);
    assert_non_null(strstr(err.text, "divides between 2 devices"));
    d->ops->close(d);
    imp_graph_free(g);
    rig_free(r);
}

/* Layers on a divided pair, the rest on one device; and graphs without a cache, whole on the first. */
static void test_beside_others(void **state)
{
    (void)state;
    rig *r = rig_new(9);
    imp_graph *g = tiny_model(r, (tiny){.n_layer = 4}, false),
              *v = tiny_model(r, (tiny){.n_layer = 2, .no_cache = true, .full = true}, true);
    imp_device *one = open_dev("cpu", 2), *d = open_dev("cpu/cpu:3+cpu", 2);
    imp_exec *x = compile(one, g, test_limits(IMP_F32)), *y = compile(d, g, test_limits(IMP_F32));
    int32_t *text[N_SEQ] = {random_text(r, 200), random_text(r, 200), random_text(r, 200)};
    uint32_t *blocks = random_blocks(r, N_SEQ, PER_SEQ), n;
    float *want = whole_run(r, x, text, blocks, &n);
    expect_close(whole_run(r, y, text, blocks, &n), want, n * N_VOCAB, 1e-5, "a pair and one");
    char says[96];
    d->ops->ran_on(y, says, sizeof says);
    assert_string_equal(says, "3 layers on cpu0/cpu0, 1 layer on cpu0");
    d->ops->exec_free(y), d->ops->close(d);
    one->ops->exec_free(x);
    imp_limits lim = test_limits(IMP_F32);
    lim.n_kv_block = 0;
    d = open_dev("cpu/cpu", 2);
    x = compile(one, v, lim), y = compile(d, v, lim);
    steps s;
    batch_clear(&s);
    batch_add(&s, text[0], 0, 40, NULL);
    expect_same(run_step(r, y, &s.b, 1, 64), run_step(r, x, &s.b, 1, 64), 64, "vectors");
    d->ops->exec_free(y), d->ops->close(d);
    one->ops->exec_free(x), one->ops->close(one);
    imp_graph_free(g);
    imp_graph_free(v);
    rig_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_close_to_ref), cmocka_unit_test(test_cache),
        cmocka_unit_test(test_plan),         cmocka_unit_test(test_failure),
        cmocka_unit_test(test_refused),      cmocka_unit_test(test_beside_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
