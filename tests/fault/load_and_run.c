/* The Nth call to the system fails, for every N: loading a real model and generating with it ends in a clean error or
 * in the right answer, never in a crash, a leak or a hang; and the next attempt works. */
#include "test.h"

#include "base/thread.h"

static const char *const path = "models/stories260K.gguf";
static const char *const want = ", there was a little girl";

typedef struct answer {
    imp_mutex *lock;
    imp_cond *cond;
    imp_buf text;
    int n_done;
    imp_finish finish;
} answer;

static void on_event(void *user, uint64_t id, const imp_event *ev)
{
    (void)id;
    answer *a = user;
    imp_mutex_lock(a->lock);
    if (ev->kind == IMP_EVENT_TEXT) imp_buf_add(&a->text, ev->text, ev->n_text);
    if (ev->kind == IMP_EVENT_DONE) {
        a->n_done++;
        a->finish = ev->finish;
        imp_cond_broadcast(a->cond);
    }
    imp_mutex_unlock(a->lock);
}

/* The model as a server on demand finds it: in a folder, by another name. */
static imp_status open_by_name(imp_engine *e, imp_model **m, imp_error *err)
{
    imp_model_source pinned = {.path = "models/impetus-nano.gguf", .id = "other", .pinned = true};
    imp_status s = imp_engine_add(e, &pinned, err);
    if (s == IMP_OK) s = imp_engine_add_folder(e, "models", -1, err);
    if (s == IMP_OK) s = imp_engine_add_alias(e, "tale", "stories260K", err);
    return s == IMP_OK ? imp_engine_open(e, "tale", m, err) : s;
}

/* One whole life of an engine. OK: the answer came (complete or ended with an error event). */
static imp_status live(answer *a, bool by_name, imp_error *err)
{
    imp_engine *e = NULL;
    imp_model *m = NULL;
    int32_t *ids = NULL;
    size_t n_ids = 0;
    uint64_t id;
    imp_engine_config c = {.n_thread = 2, .n_ctx = 128, .n_parallel = 2};
    imp_status s = imp_engine_new(&c, &e, err);
    if (s == IMP_OK) s = by_name ? open_by_name(e, &m, err) : imp_engine_load(e, path, NULL, &m, err);
    if (s == IMP_OK) s = imp_tokenize(m, "Once upon a time", 16, IMP_TOK_ADD_SPECIAL, &ids, &n_ids, err);
    if (s == IMP_OK) {
        imp_request r = {.kind = IMP_REQUEST_GENERATE,
                         .ids = ids,
                         .n_ids = &n_ids,
                         .n_input = 1,
                         .max_tok = 8,
                         .on_event = on_event,
                         .user = a};
        imp_sampling_default(&r.sampling);
        r.sampling.temperature = 0;
        s = imp_submit(m, &r, &id, err);
    }
    if (s == IMP_OK) {
        imp_mutex_lock(a->lock);
        while (a->n_done == 0) imp_cond_wait(a->cond, a->lock);
        imp_mutex_unlock(a->lock);
    }
    imp_free(ids);
    if (by_name) imp_model_release(m);
    imp_engine_free(e);
    return s;
}

static void walk(bool by_name)
{
    answer a = {0};
    imp_error err;
    assert_int_equal(imp_mutex_new(&a.lock), IMP_OK);
    assert_int_equal(imp_cond_new(&a.cond), IMP_OK);
    uint64_t before = imp_sys_n_call();
    assert_int_equal(live(&a, by_name, &err), IMP_OK);
    uint64_t n_call = imp_sys_n_call() - before;
    assert_string_equal(a.text.data, want);
    int n_failed = 0, n_unharmed = 0;
    uint64_t dense = 400, stride = n_call > 900 ? (n_call - dense) / 300 + 1 : 1;
    for (uint64_t n = 1; n <= n_call; n += n <= dense || n > n_call - 100 ? 1 : stride) {
        a.text.n = 0;
        a.text.failed = false;
        a.n_done = 0;
        memset(&err, 0, sizeof err);
        imp_sys_fail_at(n);
        imp_status s = live(&a, by_name, &err);
        imp_sys_fail_at(0);
        if (s != IMP_OK) {
            n_failed++;
            if (err.text[0] == '\0' || err.status != s)
                fail_msg("call %llu of %llu failed without a text (status %d)", (unsigned long long)n,
                         (unsigned long long)n_call, s);
            assert_int_equal(a.n_done, 0);
        } else {
            n_unharmed++;
            assert_int_equal(a.n_done, 1);
            if (a.finish == IMP_FINISH_LENGTH && !a.text.failed) assert_string_equal(a.text.data, want);
        }
    }
    assert_true(n_failed > 50); /* the walk did reach the calls that matter */
    print_message("# %llu calls: %d failures reported, %d without effect\n", (unsigned long long)n_call,
                  n_failed, n_unharmed);
    imp_buf_deinit(&a.text);
    imp_mutex_free(a.lock);
    imp_cond_free(a.cond);
}

static void every_call_may_fail(void **state)
{
    (void)state;
    walk(false);
}

static void also_on_demand(void **state)
{
    (void)state;
    imp_log_set_level(IMP_LOG_ERROR);
    walk(true);
}

int main(void)
{
    const struct CMUnitTest t[] = {cmocka_unit_test(every_call_may_fail), cmocka_unit_test(also_on_demand)};
    return cmocka_run_group_tests(t, NULL, NULL);
}
