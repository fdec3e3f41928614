/* The CUDA device on a driver of which the Nth call fails, for every N: a status with a sentence, nothing leaked; out of
 * memory leaves a device that works, anything else one that says at every call that it is lost. No GPU is needed. */
#include "fake_cuda.h"

#include "common.h"

#include "dev/cuda/open.h"

static const imp_limits LIMITS = {
    .max_tok = 64, .max_seq = 4, .max_out = 64, .max_ctx = 256, .n_kv_block = 8, .kv_dtype = IMP_Q8_0};

/* Everything the vtable has, in order. */
static imp_status work(imp_device *d, const imp_graph *g, rig *r, imp_error *err)
{
    imp_exec *x = NULL;
    uint32_t block[] = {2, 5};
    const float *out;
    imp_dev_top t;
    imp_status s = d->ops->compile(d, g, &LIMITS, &x, err);
    if (s != IMP_OK) {
        assert_null(x);
        return s;
    }
    int32_t *text = random_text(r, 80);
    uint8_t *host = rig_alloc(r, imp_dev_kv_block_bytes(g, IMP_Q8_0));
    for (uint32_t past = 0, n, step = 0; s == IMP_OK && step < 6; past += n, step++) {
        steps b;
        batch_clear(&b);
        n = step == 0 ? 40 : 1;
        batch_add(&b, text, past, n, block);
        b.b.top = step % 2 == 0; /* one-token steps are captured the second time they are seen */
        s = d->ops->run(x, &b.b, &out, err);
        if (s == IMP_OK && b.b.top) s = d->ops->top(x, 0, NULL, &t, err);
        uint32_t mask[64] = {1};
        if (s == IMP_OK && b.b.top) s = d->ops->top(x, 0, mask, &t, err);
        if (s == IMP_OK && b.b.top) s = d->ops->row(x, 0, &out, err);
    }
    if (s == IMP_OK) s = d->ops->kv_export(x, 2, host, err);
    if (s == IMP_OK) s = d->ops->kv_import(x, 3, host, err);
    if (s == IMP_OK) d->ops->kv_copy(x, 4, 3);
    if (s == IMP_OK) { /* what kv_copy met shows here */
        steps b;
        batch_clear(&b);
        batch_add(&b, text, 0, 1, block);
        s = d->ops->run(x, &b.b, &out, err);
    }
    d->ops->exec_free(x);
    return s;
}

/* true: the Nth call was not reached any more. */
static bool with_failure(const imp_graph *g, long n, int with)
{
    rig *r = rig_new(3);
    imp_device *d = NULL;
    imp_error err = {0}, again = {0};
    char why[160] = "";
    fake_reset();
    atomic_store(&g_fake.fail_with, with);
    atomic_store(&g_fake.fail_at, n);
    imp_status s = imp_dev_cuda_open(0, &d, &err);
    bool opened = s == IMP_OK;
    if (opened) s = work(d, g, r, &err);
    bool done = atomic_load(&g_fake.n_call) < n;
    atomic_store(&g_fake.fail_at, 0);
    if (s != IMP_OK) {
        assert_true(err.text[0] != '\0');
        assert_true(s == (with == CU_OUT_OF_MEMORY ? IMP_NOMEM : IMP_DEVICE) || !opened);
    } else if (!done) {
        assert_true(with == CU_OUT_OF_MEMORY); /* a graph that could not be made is not needed */
    }
    if (opened && with == CU_OUT_OF_MEMORY) {
        assert_false(d->ops->lost(d, why, sizeof why));
        if (work(d, g, r, &again) != IMP_OK) fail_msg("after call %ld: %s", n, again.text);
    } else if (opened && !done) {
        assert_true(d->ops->lost(d, why, sizeof why));
        assert_non_null(strstr(why, "an illegal memory access"));
        assert_int_equal(work(d, g, r, &again), IMP_DEVICE);
        assert_non_null(strstr(again.text, "restart"));
        assert_int_equal(d->ops->mem_free(d), 0);
    }
    if (opened) d->ops->close(d);
    assert_int_equal(atomic_load(&g_fake.n_alloc), 0);
    rig_free(r);
    return done;
}

static void every_call_fails(void **state)
{
    (void)state;
    static const int with[] = {CU_OUT_OF_MEMORY, FAKE_ILLEGAL_ADDRESS};
    for (size_t i = 0; i < IMP_COUNT(with); i++) {
        rig *r = rig_new(2);
        imp_graph *g = tiny_model(r, (tiny){.head_dim = 64, .dtype = IMP_Q8_0}, false);
        long n = 1;
        while (!with_failure(g, n, with[i])) n++;
        assert_true(n > 200);
        imp_graph_free(g);
        rig_free(r);
    }
}

/* Less memory than the model wants: refused with what it needs, and a smaller one still fits. */
static void too_little_memory(void **state)
{
    (void)state;
    rig *r = rig_new(2);
    imp_graph *g = tiny_model(r, (tiny){.head_dim = 64}, false);
    imp_device *d;
    imp_exec *x;
    imp_error err = {0};
    imp_limits lim = LIMITS;
    fake_reset();
    assert_int_equal(imp_dev_cuda_open(0, &d, &err), IMP_OK);
    atomic_store(&g_fake.memory, 100l << 20);
    lim.n_kv_block = 1 << 20;
    assert_int_equal(d->ops->compile(d, g, &lim, &x, &err), IMP_NOMEM);
    assert_non_null(strstr(err.text, "MiB"));
    lim.n_kv_block = 1;
    assert_int_equal(d->ops->compile(d, g, &lim, &x, &err), IMP_OK);
    d->ops->exec_free(x);
    d->ops->close(d);
    assert_int_equal(atomic_load(&g_fake.n_alloc), 0);
    imp_graph_free(g);
    rig_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_call_fails),
        cmocka_unit_test(too_little_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
