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
#define SUITE_ATTN_F16 1.5e-3
#define SUITE_ATTN_Q8  1.5e-3
#define SUITE_KV_Q4    false /* refused: test_refused_cache */
#define main           suite_main
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
static void check_decode(tiny t, imp_dtype kv, double bound)
{
    rig *r = rig_new(4242);
    imp_graph *g = tiny_model(r, t, false);
    imp_limits lim = small_limits();
    lim.kv_dtype = kv;
    imp_exec *xc = compile(cpu, g, lim), *xr = compile(ref, g, lim);
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
    uint64_t bytes = imp_dev_kv_block_bytes(g, kv);
    uint16_t *a = rig_alloc(r, bytes), *b = rig_alloc(r, bytes);
    imp_error err = {0};
    assert_int_equal(cpu->ops->kv_export(xc, blocks[0], a, &err), IMP_OK);
    assert_int_equal(ref->ops->kv_export(xr, blocks[0], b, &err), IMP_OK);
    const imp_dtype_info *info = imp_dtype_get(kv);
    uint64_t n_elem = bytes / info->block_bytes * info->block_elem;
    float *fa = rig_alloc(r, n_elem * 4), *fb = rig_alloc(r, n_elem * 4);
    info->to_f32(a, fa, n_elem);
    info->to_f32(b, fb, n_elem);
    (expect_close)(fa, fb, n_elem, bound, "exported block");
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
    const tiny wide = {.head_dim = 128, .n_head = 8, .n_kv_head = 1, .window = 50, .softcap = 15};
    const tiny sinks = {.head_dim = 64, .n_head = 6, .n_kv_head = 2, .sinks = true, .dtype = IMP_Q8_0};
    check_decode((tiny){0}, IMP_F16, 2e-3);
    check_decode((tiny){.head_dim = 64, .dtype = IMP_BF16}, IMP_F16, 0.02);
    check_decode(wide, IMP_F16, 5e-3);
    check_decode(sinks, IMP_F16, 0.02);
    check_decode((tiny){0}, IMP_Q8_0, 0.02); /* what falls on the other side of a step of 8 bits */
    check_decode(wide, IMP_Q8_0, 0.02);
    check_decode(sinks, IMP_Q8_0, 0.03);
    check_decode((tiny){.n_expert = 4, .n_used = 2}, IMP_F16,
                 2e-3); /* 16-bit products would change who is routed where */
}

/* Decoding far into a text: several splits of the keys, those far back longer ones. */
static void test_far(void **state)
{
    (void)state;
    enum { LENGTH = 2700, PER_SEQ = 43 };
    static const tiny shapes[] = {{.head_dim = 64},
                                  {.head_dim = 128, .n_head = 9, .n_kv_head = 1, .window = 700}};
    for (size_t i = 0; i < 2 * IMP_COUNT(shapes); i++) {
        rig *r = rig_new(4300 + i);
        imp_graph *g = tiny_model(r, shapes[i / 2], false);
        imp_limits lim = small_limits();
        if (i % 2 == 1) lim.kv_dtype = IMP_Q8_0;
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
            if (n == 1) (expect_close)(yc, yr, N_VOCAB, i % 2 == 1 ? 0.02 : 5e-3, "far");
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
    check_decode((tiny){0}, IMP_F16, 2e-3);
    assert_true(cpu->ops->mem_free(cpu) > 0);
}

/* The type of cache that this device has no kernels for is refused by name, not computed in another one. */
static void test_refused_cache(void **state)
{
    (void)state;
    rig *r = rig_new(1);
    imp_graph *g = tiny_model(r, (tiny){0}, false);
    imp_limits lim = small_limits();
    lim.kv_dtype = IMP_Q4_0;
    imp_exec *x;
    imp_error err = {0};
    assert_int_equal(cpu->ops->compile(cpu, g, &lim, &x, &err), IMP_UNSUPPORTED);
    assert_non_null(strstr(err.text, "q8_0"));
    imp_graph_free(g);
    rig_free(r);
}

/* Every path that reads or writes a q8_0 cache: heads that the tensor cores take and others, all groupings of heads that
 * kernels are made for, windows, caps, sinks. */
static void test_quantised_cache(void **state)
{
    (void)state;
    static const attn_case cases[] = {
        {8, 8, 64, 0, 0, true, false, false},    {12, 2, 64, 0, 0, true, false, false},
        {32, 2, 64, 40, 0, true, false, false},  {8, 8, 128, 0, 0, true, false, false},
        {8, 2, 128, 0, 15, true, false, true},   {24, 2, 128, 65, 30, true, false, true},
        {4, 4, 32, 0, 0, true, false, false},    {12, 2, 96, 0, 0, true, false, true},
        {16, 1, 160, 50, 0, true, false, false}, {6, 1, 256, 0, 25, true, false, false},
        {4, 4, 512, 100, 0, true, false, false},
    };
    for (size_t i = 0; i < IMP_COUNT(cases); i++) check_attn(cases[i], IMP_Q8_0, 300 + i);
}

/* A block that the CPU wrote and one that the GPU wrote from the same values are the same bytes, and move both ways; what
 * is planned is less than with f16. */
static void test_quantised_block(void **state)
{
    (void)state;
    static const uint32_t dims[] = {32, 64, 128, 96};
    imp_error err = {0};
    imp_device *own; /* the CPU; `cpu` is the GPU here */
    assert_int_equal(imp_dev_open("cpu", 2, &own, &err), IMP_OK);
    for (size_t i = 0; i < IMP_COUNT(dims) * 2; i++) {
        rig *r = rig_new(500 + i);
        uint32_t hd = dims[i / 2];
        imp_graph *g = imp_graph_new();
        imp_tensor tq = random_weight(r, IMP_F32, N_VOCAB, 4 * hd, 2),
                   tk = random_weight(r, IMP_F32, N_VOCAB, 2 * hd, 2);
        imp_val q = imp_g_embed(g, imp_g_weight(g, "q", &tq), IMP_BY_TOKEN, 0);
        imp_val k = imp_g_embed(g, imp_g_weight(g, "k", &tk), IMP_BY_TOKEN, 0);
        imp_attn_attr a = {.n_head = 4, .n_kv_head = 2, .head_dim = hd, .scale = 0.1f};
        imp_g_output(g, imp_g_gather(g, imp_g_attn(g, q, k, k, 0, &a)));
        finish(g);
        imp_limits lim = test_limits(IMP_Q8_0), half = test_limits(IMP_F16);
        imp_exec *xg = compile(cpu, g, lim), *xc = compile(own, g, lim);
        uint64_t bytes = imp_dev_kv_block_bytes(g, IMP_Q8_0);
        uint8_t *bg = rig_alloc(r, bytes), *bc = rig_alloc(r, bytes);
        static const uint32_t block[] = {3, 1};
        int32_t *text = random_text(r, 65);
        for (uint32_t past = 0, n; past < 65; past += n) { /* even: in one piece, odd: token by token */
            steps s;
            batch_clear(&s);
            n = i % 2 == 0 ? 65 : 1;
            batch_add(&s, text, past, n, block);
            (void)run_step(r, xg, &s.b, s.b.n_out, 4 * hd);
            (void)run_step(r, xc, &s.b, s.b.n_out, 4 * hd);
        }
        assert_int_equal(cpu->ops->kv_export(xg, 3, bg, &err), IMP_OK);
        assert_int_equal(own->ops->kv_export(xc, 3, bc, &err), IMP_OK);
        assert_memory_equal(bg, bc, bytes);
        memset(bg, 0, bytes);
        assert_int_equal(cpu->ops->kv_import(xg, 5, bc, &err), IMP_OK);
        cpu->ops->kv_copy(xg, 6, 5);
        assert_int_equal(cpu->ops->kv_export(xg, 6, bg, &err), IMP_OK);
        assert_memory_equal(bg, bc, bytes);
        imp_dev_memory m8, m16;
        assert_int_equal(cpu->ops->plan(cpu, g, &lim, &m8, &err), IMP_OK);
        assert_int_equal(cpu->ops->plan(cpu, g, &half, &m16, &err), IMP_OK);
        assert_int_equal(m8.kv, bytes * lim.n_kv_block);
        assert_int_equal(m8.kv * 32, m16.kv * 17);
        cpu->ops->exec_free(xg);
        own->ops->exec_free(xc);
        imp_graph_free(g);
        rig_free(r);
    }
    own->ops->close(own);
}

/* ---- the best columns ------------------------------------------------------------------------------------- */

static int best_first(const void *a, const void *b)
{
    const imp_token_prob *x = a, *y = b;
    if (x->logprob != y->logprob) return x->logprob < y->logprob ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* ops.top of a row against a sort of all its columns. */
static void check_top(imp_exec *x, uint32_t row, const float *v, uint32_t n, const uint32_t *mask)
{
    imp_token_prob *all = malloc(n * sizeof *all);
    uint32_t m = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (isnan(v[i])) continue;
        bool out = mask != NULL && !(mask[i / 32] >> (i % 32) & 1);
        all[m++] = (imp_token_prob){(int32_t)i, out ? -INFINITY : v[i]};
    }
    qsort(all, m, sizeof *all, best_first);
    double sum = 0;
    for (uint32_t i = m; i-- > 0;) sum += exp((double)all[i].logprob - (double)all[0].logprob);
    imp_dev_top t;
    imp_error err = {0};
    assert_int_equal(cpu->ops->top(x, row, mask, &t, &err), IMP_OK);
    assert_int_equal(t.n, IMP_MIN(m, (uint32_t)IMP_DEV_TOP));
    for (uint32_t i = 0; i < t.n; i++) {
        if (t.best[i].id != all[i].id || t.best[i].logprob != all[i].logprob)
            fail_msg("%u columns, row %u: best %u is %d (%g), should be %d (%g)", n, row, i, t.best[i].id,
                     (double)t.best[i].logprob, all[i].id, (double)all[i].logprob);
    }
    if (m > 0 && isfinite(all[0].logprob)) assert_true(fabs(t.sum - sum) <= (n + 64) * 0x1p-52 * sum);
    free(all);
}

/* Rows of every kind: plain, equal values, few values, infinities, no numbers, zeros of both signs; widths around chunks. */
static void test_top(void **state)
{
    (void)state;
    static const uint32_t widths[] = {1, 31, 255, 256, 257, 1000, 8192, 8193, 50257, 128256, 262208};
    enum { ROWS = 9 };
    for (size_t w = 0; w < IMP_COUNT(widths); w++) {
        uint32_t n = widths[w];
        rig *r = rig_new(900 + w);
        imp_graph *g = imp_graph_new();
        imp_tensor table = {.dtype = IMP_F32, .n_dim = 2, .dim = {ROWS, n, 1, 1}};
        float *v = rig_alloc(r, (size_t)ROWS * n * sizeof *v);
        for (uint32_t i = 0; i < n; i++) {
            float x = 12 * rnd_f(r), *c = v + i;
            c[0] = x;
            c[n] = 0.5f;
            c[2 * (size_t)n] = (float)(rnd(r) % 3);
            c[3 * (size_t)n] = i % 7 == 3 ? -INFINITY : x * 1e-3f;
            c[4 * (size_t)n] = i % 5 == 1 ? NAN : x;
            c[5 * (size_t)n] = i % 2 == 0 ? 0.0f : -0.0f;
            c[6 * (size_t)n] = i == n / 2 ? INFINITY : x;
            c[7 * (size_t)n] = i % 300 == 299 ? x : -INFINITY;
            c[8 * (size_t)n] = i == n - 1 ? 1.0f : NAN;
        }
        table.data = v;
        imp_val x = imp_g_embed(g, imp_g_weight(g, "x", &table), IMP_BY_TOKEN, 0);
        imp_g_output(g, imp_g_gather(g, x));
        finish(g);
        imp_limits lim = test_limits(IMP_F32);
        lim.max_tok = lim.max_out = 80;
        imp_exec *e = compile(cpu, g, lim);
        steps s;
        batch_clear(&s);
        int32_t text[80];
        for (int i = 0; i < 80; i++) text[i] = i % ROWS;
        batch_add(&s, text, 0, 80, NULL);
        s.b.n_out = 80;
        for (uint32_t i = 0; i < 80; i++) s.out_row[i] = i;
        s.b.top = true;
        const float *out = NULL;
        imp_error err = {0};
        imp_dev_top t;
        assert_int_equal(cpu->ops->run(e, &s.b, &out, &err), IMP_OK);
        assert_null(out);
        assert_int_equal(cpu->ops->top(e, 80, NULL, &t, &err), IMP_INVALID);
        uint32_t *mask = rig_alloc(r, (n / 32 + 1) * sizeof *mask);
        for (uint32_t i = 0; i < n; i++)
            if (rnd(r) % 50 == 0) mask[i / 32] |= 1u << (i % 32);
        for (uint32_t i = 0; i < 80; i += i < ROWS ? 1 : 23) {
            const float *row = v + (size_t)(i % ROWS) * n;
            check_top(e, i, row, n, NULL);
            check_top(e, i, row, n, mask);
            assert_int_equal(cpu->ops->row(e, i, &out, &err), IMP_OK);
            for (uint32_t k = 0; k < n; k++)
                if (!(out[k] == row[k] || (isnan(out[k]) && isnan(row[k]))))
                    fail_msg("row %u column %u", i, k);
        }
        s.b.top = false;
        assert_int_equal(cpu->ops->run(e, &s.b, &out, &err), IMP_OK);
        assert_non_null(out);
        assert_int_equal(cpu->ops->top(e, 0, NULL, &t, &err), IMP_INVALID);
        cpu->ops->exec_free(e);
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
        cmocka_unit_test(test_quantised_block),
        cmocka_unit_test(test_refused_cache),
        cmocka_unit_test(test_top),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    int failed = suite_main();
    return failed + cmocka_run_group_tests(tests, open_devices, close_devices);
}
