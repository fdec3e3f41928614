/* tests/dev/cuda_suite.c - the device suite on an NVIDIA GPU, and what only that device has; skipped where there is none.
 *
 * Bounds: linear: steps of up to 8 rows: 2^-16 of the sum of |x w| (x as two bf16 or 16-bit integers), 2^-10 more where scales are rounded to f16 (K types) or the type is kept as f16; larger steps: x and w as bf16,
 *         2^-7. Attention with an f16 cache: q and the probabilities are f16, too. Elementwise: four times the CPU's. */
#include "common.h"

#include "kern/kern.h"

static imp_device *gpu_open(const char *kind, uint32_t n_thread)
{
    return open_dev(strcmp(kind, "cpu") == 0 ? "cuda" : kind, n_thread);
}
static double gpu_linear_bound(imp_dtype t, uint32_t m, const float *x, const float *w, uint64_t k,
                               double bias)
{
    double terms = fabs(bias);
    for (uint64_t i = 0; i < k; i++) terms += fabs((double)x[i] * (double)w[i]);
    if (t == IMP_F32) return (double)(k + 16) * 1.2e-7 * terms;
    double own =
        t == IMP_BF16 || t == IMP_F16 || t == IMP_Q8_0 || t == IMP_Q4_0 ? 0x1p-16 : 0x1p-16 + 0x1p-10;
    return (m > 8 ? own + 0x1p-7 : own) * terms + (double)k * 2.4e-7 * terms;
}
static void gpu_near(const float *a, const float *b, uint64_t n, double abs, double rel, const char *what)
{
    if (strcmp(what, "embed") == 0) abs = 1e-3; /* Q6_K: scales rounded to f16 */
    if (strcmp(what, "slice") != 0) abs = 4 * abs + 1e-6, rel = 4 * rel + 1e-6;
    expect_near(a, b, n, abs, rel, what);
}
static void gpu_close(const float *a, const float *b, uint64_t n, double bound, const char *what)
{
    bool half = strcmp(what, "f16") == 0 || strcmp(what, "bf16") == 0;
    expect_close(a, b, n, half ? 0.02 : 4 * bound, what);
}
#define open_dev     gpu_open
#define expect_near  gpu_near
#define expect_close gpu_close
#define SUITE_LINEAR_BOUND(type, m, mm, x, w, k, bias)                                                       \
    (linear_bound(mm, x, w, k, bias) * 0 + gpu_linear_bound(type, m, x, w, k, bias))
#define SUITE_ATTN_F16     1.5e-3
#define SUITE_KV_QUANTISED false /* refused: test_quantised_cache */
#define main               suite_main
int suite_main(void);
#include "suite.c"
#undef main
#undef open_dev

/* ---- what the suite does not reach ------------------------------------------------------------------------ */

/* Matrices of every kind, wide enough for all paths, at row counts on both sides of every border. */
static void test_linear_rows(void **state)
{
    (void)state;
    static const imp_dtype types[] = {IMP_F32,  IMP_F16,  IMP_BF16, IMP_Q8_0, IMP_Q4_0,
                                      IMP_Q4_1, IMP_Q4_K, IMP_Q6_K, IMP_Q5_0};
    static const uint32_t ms[] = {1, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 130, 192, 193, 300};
    for (size_t t = 0; t < IMP_COUNT(types); t++) {
        for (size_t i = 0; i < IMP_COUNT(ms); i++) {
            rig *r = rig_new(7000 + t * 100 + i);
            check_linear(random_weight(r, types[t], 200 + 8 * i, 1280, 0.3f), ms[i], i % 2 == 0, r);
            rig_free(r);
        }
    }
}

/* Rows so long that they are multiplied in pieces, matrices so high that a block has several strips. */
static void test_linear_large(void **state)
{
    (void)state;
    static const imp_dtype types[] = {IMP_BF16, IMP_Q8_0, IMP_Q4_0, IMP_Q4_K, IMP_Q6_K};
    static const uint32_t ms[] = {1, 4, 8, 9, 32, 64};
    for (size_t t = 0; t < IMP_COUNT(types); t++) {
        for (size_t i = 0; i < IMP_COUNT(ms); i++) {
            rig *r = rig_new(7900 + t * 10 + i);
            check_linear(random_weight(r, types[t], 24, 28672, 0.3f), ms[i], false, r);
            check_linear(random_weight(r, types[t], 9001, 256, 0.3f), ms[i], true, r);
            rig_free(r);
        }
    }
}

/* The blocks of a product that leave their sums to the last one: every run the same bits, whoever is last. */
static void test_linear_repeats(void **state)
{
    (void)state;
    static const imp_dtype types[] = {IMP_Q8_0, IMP_Q4_0, IMP_Q4_K, IMP_Q6_K};
    static const uint64_t shape[][2] = {{24, 28672}, {1000, 4096}, {9001, 512}};
    for (size_t t = 0; t < IMP_COUNT(types); t++)
        for (size_t i = 0; i < IMP_COUNT(shape); i++) {
            rig *r = rig_new(8100 + t * 10 + i);
            imp_tensor table, w = random_weight(r, types[t], shape[i][0], shape[i][1], 0.3f);
            imp_graph *g = imp_graph_new();
            imp_val x = imp_g_linear(g, input(r, g, shape[i][1], 1, &table), imp_g_weight(g, "w", &w), 0);
            imp_g_output(g, imp_g_gather(g, x));
            finish(g);
            steps *s = one_sequence(r, 40);
            imp_exec *e = compile(cpu, g, test_limits(IMP_F32));
            float *first = run_step(r, e, &s->b, 40, shape[i][0]);
            for (int k = 0; k < 20; k++)
                expect_same(run_step(r, e, &s->b, 40, shape[i][0]), first, 40 * shape[i][0], "again");
            cpu->ops->exec_free(e);
            imp_graph_free(g);
            rig_free(r);
        }
}

static imp_limits small_limits(void)
{
    imp_limits l = test_limits(IMP_F16);
    l.n_kv_block = 24;
    return l;
}

/* Many decode steps, so that steps run as captured graphs; a shape with wide heads, so that prefill runs on flash. */
static void check_decode(tiny t, double bound)
{
    rig *r = rig_new(4242);
    imp_graph *g = tiny_model(r, t, false);
    imp_exec *xc = compile(cpu, g, small_limits()), *xr = compile(ref, g, small_limits());
    uint32_t *blocks = random_blocks(r, 3, 4), past[3] = {0};
    for (int i = 0; i < 12; i++) blocks[i] %= 24;
    for (uint32_t i = 0; i < 12; i++) blocks[i] = i * 2 % 23;
    int32_t *text[3] = {random_text(r, 250), random_text(r, 250), random_text(r, 250)};
    for (int step = 0; step < 30; step++) {
        steps s;
        batch_clear(&s);
        for (int i = 0; i < 3; i++) {
            uint32_t n = step == 0 ? 60u + 30u * (uint32_t)i : 1;
            batch_add(&s, text[i], past[i], n, blocks + 4 * i);
            past[i] += n;
        }
        float *yc = run_step(r, xc, &s.b, s.b.n_out, N_VOCAB),
              *yr = run_step(r, xr, &s.b, s.b.n_out, N_VOCAB);
        (expect_close)(yc, yr, s.b.n_out * N_VOCAB, bound, "decode");
        assert_true(cpu->ops->last_ns(xc) > 0);
    }
    /* KV blocks in the common layout */
    uint64_t bytes = imp_dev_kv_block_bytes(g, IMP_F16);
    uint16_t *a = rig_alloc(r, bytes), *b = rig_alloc(r, bytes);
    imp_error err = {0};
    assert_int_equal(cpu->ops->kv_export(xc, blocks[0], a, &err), IMP_OK);
    assert_int_equal(ref->ops->kv_export(xr, blocks[0], b, &err), IMP_OK);
    float *fa = rig_alloc(r, bytes * 2), *fb = rig_alloc(r, bytes * 2);
    for (uint64_t i = 0; i < bytes / 2; i++) fa[i] = imp_f16_to_f32(a[i]), fb[i] = imp_f16_to_f32(b[i]);
    (expect_close)(fa, fb, bytes / 2, bound, "exported block");
    assert_int_equal(cpu->ops->kv_import(xc, 23, a, &err), IMP_OK);
    cpu->ops->kv_copy(xc, 22, 23);
    memset(b, 0, bytes);
    assert_int_equal(cpu->ops->kv_export(xc, 22, b, &err), IMP_OK);
    assert_memory_equal(a, b, bytes);
    assert_int_equal(cpu->ops->kv_export(xc, 24, b, &err), IMP_INVALID);
    cpu->ops->exec_free(xc);
    ref->ops->exec_free(xr);
    imp_graph_free(g);
    rig_free(r);
}

static void test_decode(void **state)
{
    (void)state;
    check_decode((tiny){0}, 2e-3);
    check_decode((tiny){.head_dim = 64, .dtype = IMP_BF16}, 0.02);
    check_decode((tiny){.head_dim = 128, .n_head = 8, .n_kv_head = 1, .window = 50, .softcap = 15}, 5e-3);
    check_decode((tiny){.head_dim = 64, .n_head = 6, .n_kv_head = 2, .sinks = true, .dtype = IMP_Q8_0}, 0.02);
    check_decode((tiny){.n_expert = 4, .n_used = 2},
                 2e-3); /* 16-bit products would change who is routed where */
}

/* Decoding far into a text: several splits of the keys, those far back longer ones. */
static void test_far(void **state)
{
    (void)state;
    enum { LENGTH = 2700, PER_SEQ = 43 };
    static const tiny shapes[] = {{.head_dim = 64},
                                  {.head_dim = 128, .n_head = 9, .n_kv_head = 1, .window = 700}};
    for (size_t i = 0; i < IMP_COUNT(shapes); i++) {
        rig *r = rig_new(4300 + i);
        imp_graph *g = tiny_model(r, shapes[i], false);
        imp_limits lim = small_limits();
        lim.n_kv_block = PER_SEQ;
        imp_exec *xc = compile(cpu, g, lim), *xr = compile(ref, g, lim);
        uint32_t blocks[PER_SEQ];
        for (uint32_t b = 0; b < PER_SEQ; b++) blocks[b] = b * 7 % PER_SEQ;
        int32_t *text = random_text(r, LENGTH);
        for (uint32_t past = 0, n; past < LENGTH; past += n) {
            steps s;
            batch_clear(&s);
            n = past < LENGTH - 3 ? IMP_MIN(LENGTH - 3 - past, (uint32_t)MAX_TOK) : 1;
            batch_add(&s, text, past, n, blocks);
            float *yc = run_step(r, xc, &s.b, s.b.n_out, N_VOCAB),
                  *yr = run_step(r, xr, &s.b, s.b.n_out, N_VOCAB);
            if (n == 1) (expect_close)(yc, yr, N_VOCAB, 5e-3, "far");
        }
        cpu->ops->exec_free(xc);
        ref->ops->exec_free(xr);
        imp_graph_free(g);
        rig_free(r);
    }
}

/* More memory than there is: a status with numbers, and the device goes on. */
static void test_out_of_memory(void **state)
{
    (void)state;
    rig *r = rig_new(1);
    imp_graph *g = tiny_model(r, (tiny){0}, false);
    imp_limits lim = small_limits();
    lim.n_kv_block = 1u << 31;
    imp_exec *x;
    imp_error err = {0};
    assert_int_equal(cpu->ops->compile(cpu, g, &lim, &x, &err), IMP_NOMEM);
    assert_non_null(strstr(err.text, "MiB are free"));
    imp_graph_free(g);
    rig_free(r);
    check_decode((tiny){0}, 2e-3);
    assert_true(cpu->ops->mem_free(cpu) > 0);
}

/* The types of cache that this device has no kernels for are refused by name, not computed in another one. */
static void test_quantised_cache(void **state)
{
    (void)state;
    static const imp_dtype types[] = {IMP_Q8_0, IMP_Q4_0};
    for (size_t i = 0; i < IMP_COUNT(types); i++) {
        rig *r = rig_new(1);
        imp_graph *g = tiny_model(r, (tiny){0}, false);
        imp_limits lim = small_limits();
        lim.kv_dtype = types[i];
        imp_exec *x;
        imp_error err = {0};
        assert_int_equal(cpu->ops->compile(cpu, g, &lim, &x, &err), IMP_UNSUPPORTED);
        assert_non_null(strstr(err.text, "f16"));
        imp_graph_free(g);
        rig_free(r);
    }
}

int main(int argc, char **argv) /* argument: which of the tests at the end */
{
    imp_device *d;
    imp_error err = {0};
    if (imp_dev_open("cuda", 0, &d, &err) != IMP_OK) {
        printf("1..1\nok 1 - cuda # SKIP %s\n", err.text);
        return 0;
    }
    d->ops->close(d);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear_rows),
        cmocka_unit_test(test_linear_large),
        cmocka_unit_test(test_linear_repeats),
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_far),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_quantised_cache),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    int failed = suite_main();
    return failed + cmocka_run_group_tests(tests, open_devices, close_devices);
}
