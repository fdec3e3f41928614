/* tests/dev/split.c - a model on several devices gives what one device gives, bit for bit; and what is refused. */
#include "common.h"
#include "dev/experts/experts.h"
#include "dev/split/split.h"
#include "kern/kv.h"

static const tiny models[] = {
    {.n_layer = 5},
    {.n_layer = 3, .dtype = IMP_Q8_0, .bias = true, .qk_norm = true},
    {.n_layer = 4, .dtype = IMP_Q4_0, .fused = true, .interleaved = true, .n_rot = 16},
    {.n_layer = 2, .dtype = IMP_Q4_K, .head_dim = 64, .window = 40, .softcap = 20},
    {.n_layer = 3, .dtype = IMP_F16, .n_expert = 6, .n_used = 2},
};
static const imp_dtype kv_of[IMP_COUNT(models)] = {IMP_F16, IMP_Q8_0, IMP_F32, IMP_Q4_0, IMP_F16};
static const char *const splits[] = {"cpu:1+cpu", "cpu0:2+cpu0", "cpu:1+cpu:1+cpu", "cpu:99+cpu",
                                     "cpu+cpu:experts"};
enum { N_SEQ = 3, LEN = 100, BLOCKS = 2 };

typedef struct fixture {
    rig *r;
    imp_graph *g;
    imp_dtype kv;
    int32_t *text[N_SEQ];
    uint32_t *blocks;
} fixture;

static fixture setup(size_t m)
{
    fixture f = {.r = rig_new(900 + m), .kv = kv_of[m]};
    f.g = tiny_model(f.r, models[m], false);
    for (int i = 0; i < N_SEQ; i++) f.text[i] = random_text(f.r, LEN);
    f.blocks = random_blocks(f.r, N_SEQ, BLOCKS);
    return f;
}
static void teardown(fixture *f)
{
    imp_graph_free(f->g);
    rig_free(f->r);
}

/* All sequences together: a piece of 70 tokens each, then one token at a time, from `from` on. */
static float *whole_run(fixture *f, imp_exec *x, uint32_t from)
{
    float *all = rig_alloc(f->r, (size_t)LEN * N_SEQ * N_VOCAB * sizeof *all), *at = all;
    for (uint32_t past = from; past < LEN;) {
        uint32_t n = past == 0 ? 70 : 1;
        steps s;
        batch_clear(&s);
        for (int i = 0; i < N_SEQ; i++) batch_add(&s, f->text[i], past, n, f->blocks + i * BLOCKS);
        float *y = run_step(f->r, x, &s.b, s.b.n_out, N_VOCAB);
        memcpy(at, y, s.b.n_out * N_VOCAB * sizeof *y);
        at += s.b.n_out * N_VOCAB;
        past += n;
    }
    return all;
}

static void test_same_bits(void **state)
{
    (void)state;
    for (size_t m = 0; m < IMP_COUNT(models); m++) {
        fixture f = setup(m);
        imp_device *one = open_dev("cpu", 2);
        imp_exec *x = compile(one, f.g, test_limits(f.kv));
        float *want = whole_run(&f, x, 0);
        for (size_t k = 0; k < IMP_COUNT(splits); k++) {
            imp_device *d = open_dev(splits[k], 2);
            imp_exec *y = compile(d, f.g, test_limits(f.kv));
            expect_same(whole_run(&f, y, 0), want, LEN * N_SEQ * N_VOCAB, splits[k]);
            d->ops->exec_free(y);
            d->ops->close(d);
        }
        one->ops->exec_free(x);
        one->ops->close(one);
        teardown(&f);
    }
}

static uint32_t free_block(const fixture *f)
{
    for (uint32_t free = 0;; free++) {
        bool taken = false;
        for (uint32_t b = 0; b < N_SEQ * BLOCKS; b++) taken = taken || f->blocks[b] == free;
        if (!taken) return free;
    }
}

/* The cache of a whole model goes over to a split one and back: both go on alike. */
static void test_hand_over(void **state)
{
    (void)state;
    for (size_t m = 0; m < IMP_COUNT(models); m++) {
        fixture f = setup(m);
        imp_error err = {0};
        imp_device *one = open_dev("cpu", 2), *d = open_dev("cpu:1+cpu", 2);
        imp_exec *x = compile(one, f.g, test_limits(f.kv)), *y = compile(d, f.g, test_limits(f.kv));
        whole_run(&f, x, 0);
        uint64_t bytes = imp_dev_kv_block_bytes(f.g, f.kv);
        uint8_t *host = rig_alloc(f.r, bytes), *back = rig_alloc(f.r, bytes);
        for (uint32_t b = 0; b < N_SEQ * BLOCKS; b++) {
            assert_int_equal(one->ops->kv_export(x, f.blocks[b], host, &err), IMP_OK);
            assert_int_equal(d->ops->kv_import(y, f.blocks[b], host, &err), IMP_OK);
            assert_int_equal(d->ops->kv_export(y, f.blocks[b], back, &err), IMP_OK);
            assert_memory_equal(host, back, bytes);
        }
        uint32_t n = (LEN - 90) * N_SEQ * N_VOCAB;
        expect_same(whole_run(&f, y, 90), whole_run(&f, x, 90), n, "after the hand-over");
        /* a copied block serves as well as its original */
        float *want = whole_run(&f, y, 90);
        uint32_t other = free_block(&f);
        d->ops->kv_copy(y, other, f.blocks[0]);
        f.blocks[0] = other;
        expect_same(whole_run(&f, y, 90), want, n, "after the copy");
        d->ops->exec_free(y), d->ops->close(d);
        one->ops->exec_free(x), one->ops->close(one);
        teardown(&f);
    }
}

/* ---- filling a device's own memory ---------------------------------------------------------------- */

static uint64_t g_room;
static uint64_t room(const imp_device *d)
{
    (void)d;
    return g_room;
}

/* A CPU that has memory of its own, as a GPU does. */
static imp_device *own_memory(imp_device_ops *ops)
{
    imp_device *d = open_dev("cpu", 2);
    *ops = *d->ops;
    ops->mem_free = room;
    d->ops = ops;
    return d;
}

static void test_fill(void **state)
{
    (void)state;
    enum { SPARE = 256 << 20 };
    fixture f = setup(0);
    imp_error err = {0};
    imp_device_ops ops;
    imp_limits lim = test_limits(f.kv);
    imp_split_part part[2] = {{.device = own_memory(&ops), .owned = true},
                              {.device = open_dev("cpu", 2), .owned = true}};
    imp_device *d, *cpu = part[1].device;
    assert_int_equal(imp_dev_split_open(part, 2, &d, &err), IMP_OK);
    assert_string_equal(d->name, "cpu0+cpu0");
    assert_null(d->ops->mem_free); /* the rest goes into the machine's memory */
    imp_dev_memory whole, m;
    g_room = 0;
    assert_int_equal(cpu->ops->plan(cpu, f.g, &lim, &whole, &err), IMP_OK);
    assert_int_equal(d->ops->plan(d, f.g, &lim, &m, &err), IMP_OK);
    assert_int_equal(m.kv, whole.kv); /* nothing fits: all on the last */
    uint64_t kv = whole.kv;
    uint32_t n_taken = 0;
    for (g_room = SPARE; n_taken < 5; g_room += whole.kv / 40) {
        assert_int_equal(d->ops->plan(d, f.g, &lim, &m, &err), IMP_OK);
        assert_true(m.kv <= kv); /* more room there, no more here */
        n_taken = (uint32_t)((whole.kv - m.kv) / (whole.kv / 5));
        assert_int_equal(m.kv, whole.kv - n_taken * (whole.kv / 5)); /* whole layers */
        assert_true(n_taken * (whole.kv / 5) <= g_room - SPARE);
        kv = m.kv;
    }
    /* compiled as planned, though less is free by then */
    g_room = 0;
    imp_exec *x = compile(d, f.g, lim);
    char text[96];
    d->ops->ran_on(x, text, sizeof text);
    assert_string_equal(text, "5 layers on cpu0, 0 layers on cpu0");
    d->ops->exec_free(x);
    d->ops->close(d);
    teardown(&f);
}

/* ---- refusals ----------------------------------------------------------------------------------------- */

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *spec, *says;
    } bad[] = {
        {"cpu+cpu", "say how many layers cpu0 takes"},
        {"cpu:0+cpu", "a number of layers"},
        {"cpu:x+cpu", "a number of layers"},
        {"cpu:1+", "there is no device \"\""},
        {"+cpu", "there is no device \"\""},
        {"cpu:1+tpu", "there is no device \"tpu\""},
        {"cpu:experts", "there is no device"},
        {"cpu+cpu+cpu:experts", "on the second of two devices"},
        {"cpu+tpu:experts", "there is no device \"tpu\""},
        {"cpu1", "there is no device \"cpu1\""},
        {"cpu0x", "there is no device \"cpu0x\""},
        {"cpu:1+cpu:1+cpu:1+cpu:1+cpu:1+cpu:1+cpu:1+cpu:1+cpu", "at most 8"},
    };
    for (size_t i = 0; i < IMP_COUNT(bad); i++) {
        imp_device *d;
        imp_error err = {0};
        assert_int_not_equal(imp_dev_open(bad[i].spec, 1, &d, &err), IMP_OK);
        if (strstr(err.text, bad[i].says) == NULL) fail_msg("%s: %s", bad[i].spec, err.text);
    }
}

/* The device with the experts fails: the step fails with its reason, the next one goes well. */
static int g_fail;
static imp_status (*g_run)(imp_exec *, const imp_batch *, const float **, imp_error *);
static imp_status failing_run(imp_exec *x, const imp_batch *b, const float **out, imp_error *err)
{
    if (g_fail-- == 0) return imp_fail(err, IMP_DEVICE, "the experts failed");
    return g_run(x, b, out, err);
}

static void test_experts_fail(void **state)
{
    (void)state;
    fixture f = setup(4);
    imp_error err = {0};
    imp_device_ops ops;
    imp_device *first = open_dev("cpu", 2), *second = open_dev("cpu", 2), *d;
    ops = *second->ops;
    g_run = ops.run;
    ops.run = failing_run;
    second->ops = &ops;
    assert_int_equal(imp_dev_experts_open(first, second, &d, &err), IMP_OK);
    assert_string_equal(d->name, "cpu0+cpu0:experts");
    imp_exec *x = compile(d, f.g, test_limits(f.kv));
    char text[96];
    d->ops->ran_on(x, text, sizeof text);
    assert_string_equal(text, "experts of 3 layers on cpu0, the rest on cpu0");
    g_fail = 1000000;
    float *want = whole_run(&f, x, 0);
    steps s;
    batch_clear(&s);
    batch_add(&s, f.text[0], 0, 70, f.blocks);
    const float *out;
    g_fail = 3;
    assert_int_equal(d->ops->run(x, &s.b, &out, &err), IMP_DEVICE);
    assert_string_equal(err.text, "the experts failed");
    g_fail = 1000000;
    expect_same(whole_run(&f, x, 0), want, LEN * N_SEQ * N_VOCAB, "after the failure");
    d->ops->exec_free(x);
    d->ops->close(d);
    teardown(&f);
}

/* Graphs without a cache run whole on the last device. */
static void test_vectors(void **state)
{
    (void)state;
    rig *r = rig_new(77);
    imp_graph *g = tiny_model(r, (tiny){.n_layer = 3, .no_cache = true, .full = true}, true);
    imp_limits lim = test_limits(IMP_F16);
    lim.n_kv_block = 0;
    steps s;
    batch_clear(&s);
    batch_add(&s, random_text(r, 40), 0, 40, NULL);
    imp_device *one = open_dev("cpu", 2), *d = open_dev("cpu:1+cpu", 2);
    imp_exec *x = compile(one, g, lim), *y = compile(d, g, lim);
    expect_same(run_step(r, y, &s.b, 1, 64), run_step(r, x, &s.b, 1, 64), 64, "vectors");
    one->ops->exec_free(x), one->ops->close(one);
    d->ops->exec_free(y), d->ops->close(d);
    imp_graph_free(g);
    rig_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits), cmocka_unit_test(test_hand_over),
        cmocka_unit_test(test_fill),      cmocka_unit_test(test_refused),
        cmocka_unit_test(test_vectors),   cmocka_unit_test(test_experts_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
