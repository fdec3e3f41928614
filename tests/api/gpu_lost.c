/* The engine with a GPU that is lost under its requests (tests/fake_cuda.h): beside a CPU they are computed again there,
 * alone they end with one sentence; the engine lives, and says which device it is and why. No GPU is needed. */
#include "fake_cuda.h"

#include "test.h"

#include "base/thread.h"
#include "engine/engine_int.h"

typedef struct answer {
    imp_mutex *mu;
    imp_cond *cv;
    int n_done;
    imp_finish finish;
    imp_usage usage;
    char why[500];
} answer;

static void on_event(void *user, uint64_t id, const imp_event *ev)
{
    (void)id;
    answer *a = user;
    if (ev->kind != IMP_EVENT_DONE) return;
    imp_mutex_lock(a->mu);
    a->n_done++;
    a->finish = ev->finish;
    a->usage = ev->usage;
    if (ev->error) snprintf(a->why, sizeof a->why, "%s", ev->error->text);
    imp_cond_broadcast(a->cv);
    imp_mutex_unlock(a->mu);
}

static void ask(imp_model *m, answer *a, const char *require)
{
    static const int32_t ids[] = {1, 403, 407, 261, 378};
    static const size_t n_ids = 5;
    imp_error err = {0};
    imp_request q = {.kind = IMP_REQUEST_GENERATE,
                     .ids = ids,
                     .n_ids = &n_ids,
                     .n_input = 1,
                     .max_tok = 60,
                     .ignore_eos = true,
                     .on_event = on_event,
                     .user = a,
                     .require = require};
    imp_sampling_default(&q.sampling);
    memset(a, 0, sizeof *a);
    assert_int_equal(imp_mutex_new(&a->mu), IMP_OK);
    assert_int_equal(imp_cond_new(&a->cv), IMP_OK);
    uint64_t id;
    if (imp_submit(m, &q, &id, &err) != IMP_OK) fail_msg("submit: %s", err.text);
}

static void await(answer *a)
{
    imp_mutex_lock(a->mu);
    while (a->n_done == 0) imp_cond_wait(a->cv, a->mu);
    imp_mutex_unlock(a->mu);
    imp_mutex_free(a->mu);
    imp_cond_free(a->cv);
}

static imp_engine *start(const char *device, imp_model **m)
{
    imp_error err = {0};
    imp_engine *e;
    imp_engine_config c = {.device = device, .n_thread = 1, .n_ctx = 256, .n_parallel = 8, .n_batch = 64};
    fake_reset();
    if (imp_engine_new(&c, &e, &err) != IMP_OK) fail_msg("%s", err.text);
    if (imp_engine_load(e, "models/stories260K.gguf", "m", m, &err) != IMP_OK) fail_msg("%s", err.text);
    for (uint32_t i = 0; i < e->n_unit; i++)
        if ((*m)->inst[i].sched == NULL) assert_int_equal(imp_instance_open(*m, e->unit[i], &err), IMP_OK);
    return e;
}

static void lose(long calls)
{
    atomic_store(&g_fake.fail_with, FAKE_ILLEGAL_ADDRESS);
    atomic_store(&g_fake.fail_at, atomic_load(&g_fake.n_call) + calls);
}

static void expect_lost(imp_engine *e)
{
    char *failed = imp_failed_units_json(e), *units = imp_units_json(e);
    assert_non_null(strstr(failed, "\"device\":\"cuda0\",\"state\":\"lost\""));
    assert_non_null(strstr(failed, "an illegal memory access"));
    assert_non_null(strstr(units, "\"state\":\"lost\",\"reason\":"));
    imp_free(failed);
    imp_free(units);
}

static void beside_a_cpu(void **state)
{
    (void)state;
    enum { N = 6 };
    imp_model *m;
    imp_engine *e = start("cuda,cpu", &m);
    char *failed = imp_failed_units_json(e);
    assert_string_equal(failed, "[]");
    imp_free(failed);
    answer a[N];
    lose(100); /* in the middle of the first one */
    for (int i = 0; i < N; i++) ask(m, &a[i], i == 0 ? "cuda0" : NULL);
    for (int i = 0; i < N; i++) {
        await(&a[i]);
        assert_string_equal(a[i].why, "");
        assert_int_equal(a[i].finish, IMP_FINISH_LENGTH);
        assert_int_equal(a[i].usage.n_generated, 60);
    }
    expect_lost(e);
    ask(m, &a[0], NULL);
    await(&a[0]);
    assert_int_equal(a[0].finish, IMP_FINISH_LENGTH);
    imp_engine_free(e);
    assert_int_equal(atomic_load(&g_fake.n_alloc), 0);
}

static void alone(void **state)
{
    (void)state;
    imp_model *m;
    imp_engine *e = start("cuda", &m);
    answer a;
    ask(m, &a, NULL);
    await(&a);
    assert_int_equal(a.finish, IMP_FINISH_LENGTH);
    lose(100);
    for (int i = 0; i < 2; i++) { /* the one under which it happens, and a later one */
        ask(m, &a, NULL);
        await(&a);
        assert_int_equal(a.finish, IMP_FINISH_ERROR);
        assert_non_null(strstr(a.why, "cuda0"));
        assert_non_null(strstr(a.why, "restart to use it again"));
    }
    expect_lost(e);
    imp_engine_free(e);
    assert_int_equal(atomic_load(&g_fake.n_alloc), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(beside_a_cpu),
        cmocka_unit_test(alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
