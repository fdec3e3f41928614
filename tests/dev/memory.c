/* tests/dev/memory.c - plan tells what compile takes, a step takes nothing, every failed allocation is a clean NOMEM,
 * and batches or limits that do not fit are refused. */
#include "common.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

static const char *const kinds[] = {"cpu", "ref"};

/* What the process takes can be measured with glibc's own heap only. */
#if !defined(__GLIBC__) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CANNOT_MEASURE 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define CANNOT_MEASURE 1
#endif
#endif
#ifdef CANNOT_MEASURE
static uint64_t heap_now(void)
{
    return 0;
}
static bool fix_heap(void)
{
    return false;
}
#else
static uint64_t heap_now(void)
{
    return mallinfo2().uordblks;
}
/* From now on the heap's size in pages stays the same: it is large enough, and nothing is mapped beside it. */
static bool fix_heap(void)
{
    if (!mallopt(M_MMAP_THRESHOLD, 1 << 30) || !mallopt(M_TRIM_THRESHOLD, 1 << 30)) return false;
    if (!mallopt(M_ARENA_MAX, 1)) return false; /* a pool thread's first malloc would map one of its own */
    void *p = malloc(64 << 20);
    free(p);
    return p != NULL;
}
#endif

/* Bytes of address space this process has, in pages. */
static uint64_t mapped_now(void)
{
    unsigned long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f == NULL) return 0;
    int n = fscanf(f, "%llu", &pages);
    fclose(f);
    return n == 1 ? pages * 4096 : 0;
}

/* Sums of the plan against what the process really grew by: heap blocks in use and mapped pages. */
static void test_plan_is_what_is_taken(void **state)
{
    (void)state;
    if (!fix_heap() || mapped_now() == 0) skip();
    for (int k = 0; k < 2; k++) {
        rig *r = rig_new(1);
        imp_graph *g =
            tiny_model(r, (tiny){.dtype = IMP_Q4_0, .n_layer = 3, .n_expert = 8, .n_used = 2}, false);
        imp_limits lim = test_limits(IMP_F16);
        imp_device *d = open_dev(kinds[k], 2);
        imp_dev_memory plan;
        assert_int_equal(d->ops->plan(d, g, &lim, &plan, NULL), IMP_OK);
        uint64_t heap = heap_now(), mapped = mapped_now();
        imp_exec *x = compile(d, g, lim);
        uint64_t heap_took = heap_now() - heap, mapped_took = mapped_now() - mapped;
        uint64_t planned = plan.weights + plan.kv + plan.scratch + plan.other, took = heap_took + mapped_took;
        /* the system rounds regions up to pages and heap blocks by a few bytes */
        if (took + 64 < planned || took > planned + 4 * 4096 + 64 * 256) {
            fail_msg("%s: planned %llu bytes, took %llu", kinds[k], (unsigned long long)planned,
                     (unsigned long long)took);
        }
        assert_true(plan.kv > 0 && plan.scratch > 0 && plan.mapped > 0);
        d->ops->exec_free(x);
        d->ops->close(d);
        imp_graph_free(g);
        rig_free(r);
    }
}

/* The executable's own regions are the plan's numbers, for weights that are packed, mapped and decoded. */
static void test_plan_is_exact(void **state)
{
    (void)state;
    for (imp_dtype t = IMP_F32; t < IMP_AFFINE; t++) {
        const imp_dtype_info *info = imp_dtype_get(t);
        if (info->to_f32 == NULL || (info->block_elem == 1 && t != IMP_F32 && t != IMP_F16 && t != IMP_BF16))
            continue;
        rig *r = rig_new(t);
        imp_graph *g = tiny_model(r, (tiny){.dtype = t, .head_dim = 64, .bias = true}, false);
        imp_limits lim = test_limits(IMP_F32);
        imp_device *d = open_dev("cpu", 3);
        imp_dev_memory plan;
        assert_int_equal(d->ops->plan(d, g, &lim, &plan, NULL), IMP_OK);
        imp_exec *base = compile(d, g, lim);
        const cpu_exec *x = (const cpu_exec *)base;
        assert_int_equal(plan.weights, x->weights_bytes);
        assert_int_equal(plan.kv, x->kv_bytes);
        assert_int_equal(plan.scratch, x->scratch_bytes);
        assert_int_equal(plan.other, sizeof *x + imp_arena_bytes(x->arena));
        assert_int_equal(plan.kv,
                         2ull * 2 * 64 * 128 * 4 * N_BLOCK); /* layers, k and v, columns, tokens, f32 */
        d->ops->exec_free(base);
        d->ops->close(d);
        imp_graph_free(g);
        rig_free(r);
    }
}

/* Two devices, one graph: its weights are packed once, the second plan counts none, and the pack lives as long as one of
 * them needs it. */
static void test_weights_are_shared(void **state)
{
    (void)state;
    rig *r = rig_new(9);
    imp_graph *g = tiny_model(r, (tiny){.dtype = IMP_Q4_0, .bias = true}, false);
    imp_limits lim = test_limits(IMP_F16);
    imp_device *d[2] = {open_dev("cpu", 1), open_dev("cpu", 2)};
    imp_dev_memory one, two, after;
    assert_int_equal(d[0]->ops->plan(d[0], g, &lim, &one, NULL), IMP_OK);
    imp_exec *a = compile(d[0], g, lim);
    assert_int_equal(d[1]->ops->plan(d[1], g, &lim, &two, NULL), IMP_OK);
    imp_exec *b = compile(d[1], g, lim);
    assert_true(one.weights > 0 && one.mapped > 0);
    assert_int_equal(two.weights + two.mapped, 0);
    assert_true(two.kv == one.kv && two.other == one.other);
    assert_ptr_equal(((cpu_exec *)a)->weights, ((cpu_exec *)b)->weights);
    int32_t *text = random_text(r, 20);
    uint32_t blocks[1] = {0};
    steps s;
    batch_clear(&s);
    batch_add(&s, text, 0, 20, blocks);
    const float *out;
    assert_int_equal(d[0]->ops->run(a, &s.b, &out, NULL), IMP_OK);
    size_t n = (size_t)s.b.n_out * imp_graph_node(g, imp_graph_output(g))->width;
    float *want = rig_alloc(r, n * sizeof *want);
    memcpy(want, out, n * sizeof *want);
    d[0]->ops->exec_free(a);
    d[0]->ops->close(d[0]);
    assert_int_equal(d[1]->ops->run(b, &s.b, &out, NULL), IMP_OK);
    expect_same(out, want, n, "after the first has gone");
    d[1]->ops->exec_free(b);
    assert_int_equal(d[1]->ops->plan(d[1], g, &lim, &after, NULL), IMP_OK);
    assert_int_equal(after.weights, one.weights);
    d[1]->ops->close(d[1]);
    imp_graph_free(g);
    rig_free(r);
}

/* Scratch is reused: 40 layers need hardly more than 2. */
static void test_scratch_is_reused(void **state)
{
    (void)state;
    imp_dev_memory few, many;
    imp_limits lim = test_limits(IMP_F16);
    imp_device *d = open_dev("cpu", 2);
    for (int i = 0; i < 2; i++) {
        rig *r = rig_new(3);
        imp_graph *g = tiny_model(r, (tiny){.dtype = IMP_Q8_0, .n_layer = i == 0 ? 2 : 40}, false);
        assert_int_equal(d->ops->plan(d, g, &lim, i == 0 ? &few : &many, NULL), IMP_OK);
        imp_graph_free(g);
        rig_free(r);
    }
    assert_true(many.scratch <= few.scratch + few.scratch / 4);
    assert_int_equal(many.kv, 20 * few.kv);
    d->ops->close(d);
}

static void test_step_takes_no_memory(void **state)
{
    (void)state;
    static const tiny models[] = {{.dtype = IMP_Q8_0},
                                  {.dtype = IMP_Q4_K, .head_dim = 64, .n_expert = 4, .n_used = 2},
                                  {.fused = true}};
    for (size_t m = 0; m < IMP_COUNT(models); m++) {
        rig *r = rig_new(4);
        imp_graph *g = tiny_model(r, models[m], false);
        imp_device *d = open_dev("cpu", 2);
        imp_exec *x = compile(d, g, test_limits(IMP_F16));
        int32_t *text = random_text(r, 200);
        uint32_t *blocks = random_blocks(r, 1, 4);
        const float *out;
        uint64_t heap = heap_now(), before = imp_sys_n_alloc();
        for (uint32_t past = 0; past < 200;) {
            steps s;
            uint32_t n = past == 0 ? 100 : 1;
            batch_clear(&s);
            batch_add(&s, text, past, n, blocks);
            assert_int_equal(d->ops->run(x, &s.b, &out, NULL), IMP_OK);
            past += n;
        }
        assert_int_equal(imp_sys_n_alloc(), before);
        assert_int_equal(heap_now(), heap);
        d->ops->exec_free(x);
        d->ops->close(d);
        imp_graph_free(g);
        rig_free(r);
    }
}

/* Fail the nth call of open + plan + compile + one step, for every n until nothing fails. */
static void test_every_allocation_fails(void **state)
{
    (void)state;
    rig *r = rig_new(6);
    imp_graph *g = tiny_model(
        r, (tiny){.dtype = IMP_Q8_0, .n_layer = 1, .bias = true, .n_expert = 3, .n_used = 2}, false);
    imp_limits lim = test_limits(IMP_F16);
    int32_t *text = random_text(r, 4);
    uint32_t blocks[1] = {0};
    steps s;
    batch_clear(&s);
    batch_add(&s, text, 0, 4, blocks);
    for (int k = 0; k < 2; k++) {
        bool done = false;
        for (uint64_t n = 1; !done; n++) {
            imp_device *d;
            imp_exec *x = NULL;
            imp_error err = {0};
            imp_dev_memory plan;
            const float *out;
            imp_sys_fail_at(n);
            imp_status st = imp_dev_open(kinds[k], 2, &d, &err);
            if (st == IMP_OK) st = d->ops->plan(d, g, &lim, &plan, &err);
            if (st == IMP_OK) st = d->ops->compile(d, g, &lim, &x, &err);
            if (st == IMP_OK) st = d->ops->run(x, &s.b, &out, &err);
            imp_sys_fail_at(0);
            if (st == IMP_OK) {
                done = true;
                assert_true(n > 5);
            } else {
                assert_int_equal(st, IMP_NOMEM);
                assert_int_equal(err.status, IMP_NOMEM);
                assert_true(err.text[0] != '\0');
                assert_null(x);
            }
            if (x != NULL) d->ops->exec_free(x);
            if (d != NULL) d->ops->close(d);
            assert_true(n < 1000);
        }
    }
    imp_graph_free(g);
    rig_free(r);
}

/* ---- refusals ------------------------------------------------------------------------------------------- */

static void test_unknown_kind(void **state)
{
    (void)state;
    imp_device *d;
    imp_error err = {0};
    assert_int_equal(imp_dev_open("npu9", 1, &d, &err), IMP_NOT_FOUND);
    assert_null(d);
    assert_non_null(strstr(err.text, "cpu"));
    assert_non_null(strstr(err.text, "npu9"));
}

static void expect_limits_refused(const imp_graph *g, imp_limits lim, const char *word)
{
    for (int k = 0; k < 2; k++) {
        imp_device *d = open_dev(kinds[k], 1);
        imp_exec *x;
        imp_dev_memory plan;
        imp_error err = {0};
        imp_status s = d->ops->compile(d, g, &lim, &x, &err);
        assert_true(s == IMP_INVALID || s == IMP_TOO_LARGE);
        assert_null(x);
        if (strstr(err.text, word) == NULL) fail_msg("\"%s\" is not in \"%s\"", word, err.text);
        assert_int_equal(d->ops->plan(d, g, &lim, &plan, NULL), s);
        d->ops->close(d);
    }
}

static void test_bad_limits(void **state)
{
    (void)state;
    rig *r = rig_new(7);
    imp_graph *g = tiny_model(r, (tiny){0}, false);
    imp_limits lim = test_limits(IMP_F16), bad = lim;
    bad.max_tok = 0;
    expect_limits_refused(g, bad, "max_tok");
    bad = lim, bad.max_out = 0;
    expect_limits_refused(g, bad, "max_out");
    bad = lim, bad.n_kv_block = 0;
    expect_limits_refused(g, bad, "n_kv_block");
    bad = lim, bad.kv_dtype = IMP_Q5_0;
    expect_limits_refused(g, bad, "the KV cache holds f32 or f16");
    imp_graph_free(g);
    g = tiny_model(r, (tiny){.head_dim = 40}, false);
    bad = lim, bad.kv_dtype = IMP_Q8_0;
    expect_limits_refused(g, bad, "heads of 40");
    bad = lim, bad.kv_dtype = IMP_Q4_0;
    expect_limits_refused(g, bad, "heads of 40");
    imp_graph_free(g);
    rig_free(r);
}

static void expect_batch_refused(imp_exec *x, const imp_batch *b, const char *word)
{
    const float *out;
    imp_error err = {0};
    assert_int_equal(x->dev->ops->run(x, b, &out, &err), IMP_INVALID);
    assert_null(out);
    if (strstr(err.text, word) == NULL) fail_msg("\"%s\" is not in \"%s\"", word, err.text);
}

static void test_bad_batches(void **state)
{
    (void)state;
    rig *r = rig_new(8);
    imp_graph *g = tiny_model(r, (tiny){0}, false);
    imp_limits lim = {
        .max_tok = 8, .max_seq = 2, .max_out = 4, .max_ctx = 100, .n_kv_block = 3, .kv_dtype = IMP_F32};
    int32_t *text = random_text(r, 200);
    static const uint32_t good[2] = {0, 2}, wrong[2] = {0, 3};
    for (int k = 0; k < 2; k++) {
        imp_device *d = open_dev(kinds[k], 1);
        imp_exec *x = compile(d, g, lim);
        steps s;
#define BATCH(n_past, n, blocks) (batch_clear(&s), batch_add(&s, text, n_past, n, blocks), s.b.n_out = 1)
        BATCH(64, 2, wrong);
        expect_batch_refused(x, &s.b, "KV block 3");
        BATCH(0, 2, NULL);
        expect_batch_refused(x, &s.b, "block table");
        BATCH(95, 6, good);
        expect_batch_refused(x, &s.b, "the limit is 100");
        BATCH(0, 9, good);
        expect_batch_refused(x, &s.b, "1 to 8");
        BATCH(0, 4, good);
        s.seq[0].n_tok = 3;
        expect_batch_refused(x, &s.b, "cover");
        s.seq[0].n_tok = 5;
        expect_batch_refused(x, &s.b, "cover");
        BATCH(0, 4, good);
        s.b.n_seq = 3;
        expect_batch_refused(x, &s.b, "1 to 2");
        s.b.n_seq = 1;
        s.b.n_out = 5;
        expect_batch_refused(x, &s.b, "output rows");
        s.b.n_out = 1;
        s.out_row[0] = 4;
        expect_batch_refused(x, &s.b, "output row");
        s.out_row[0] = 3;
        s.token[2] = N_VOCAB;
        expect_batch_refused(x, &s.b, "row 61");
        s.token[2] = -1;
        expect_batch_refused(x, &s.b, "row -1");
        s.token[2] = 0;
        s.b.n_tok = 0;
        expect_batch_refused(x, &s.b, "0 tokens");
        s.b.n_tok = 4;
        s.b.n_out = 0; /* a prefill chunk whose logits nobody wants */
        const float *out;
        assert_int_equal(d->ops->run(x, &s.b, &out, NULL), IMP_OK);
        d->ops->exec_free(x);
        d->ops->close(d);
    }
    imp_graph_free(g);
    rig_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_is_what_is_taken), cmocka_unit_test(test_plan_is_exact),
        cmocka_unit_test(test_weights_are_shared),    cmocka_unit_test(test_scratch_is_reused),
        cmocka_unit_test(test_step_takes_no_memory),  cmocka_unit_test(test_every_allocation_fails),
        cmocka_unit_test(test_unknown_kind),          cmocka_unit_test(test_bad_limits),
        cmocka_unit_test(test_bad_batches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
