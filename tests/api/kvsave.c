/* Caches that were saved and read again give the very bytes that computing gives: every type of cache, after a restart, after
 * having been evicted, in company, in little memory, cancelled; and only to whom they belong. What they are compared with
 * comes from an engine that keeps nothing and serves one at a time. */
#include "test.h"

#include <fcntl.h>
#include <unistd.h>

#include "sched/sched_int.h"

enum { MAX_GEN = 24, N_CTX = 512, N_PROMPT = 16 };

#include "crowd.h"

static char dir[200], copy[220];

static imp_engine *open_engine(const char *path, const char *kv, bool keep, uint32_t n_parallel,
                               uint64_t mem_bytes, imp_model **m)
{
    imp_engine *e;
    imp_error err;
    imp_engine_config c = {.device = "cpu",
                           .n_thread = 2,
                           .n_ctx = N_CTX,
                           .n_parallel = n_parallel,
                           .mem_bytes = mem_bytes,
                           .kv_dtype = kv,
                           .kv_dir = keep ? dir : NULL,
                           .kv_disk_bytes = 1 << 30};
    if (imp_engine_new(&c, &e, &err) != IMP_OK || imp_engine_load(e, path, "m", m, &err) != IMP_OK)
        fail_msg("%s", err.text);
    for (bool ready = !keep; !ready; usleep(500)) /* so that the first request finds what there is */
        ready = imp_kv_book_is_ready((*m)->inst[0].sched->book);
    (*m)->inst[0].sched->c.hooks.predict = NULL; /* reading is always worth it, however small the model */
    return e;
}

/* Prompt i: prompts of one i / 4 have 200 to 260 tokens in common, then go on by themselves. */
static size_t prompt(uint32_t i, uint32_t n_vocab, int32_t *ids)
{
    rng a = {1000 + i / 4}, b = {7000 + i};
    size_t n_common = 200 + rng_below(&a, 60), n = n_common + rng_below(&b, 100);
    for (size_t k = 0; k < n; k++) ids[k] = (int32_t)rng_below(k < n_common ? &a : &b, n_vocab - 10) + 5;
    ids[0] = 1;
    return n;
}

static uint64_t submit(imp_model *m, uint32_t i, uint64_t scope, outcome *o)
{
    int32_t ids[N_CTX];
    size_t n = prompt(i, imp_model_get_info(m)->n_vocab, ids);
    imp_request q = {.kind = IMP_REQUEST_GENERATE,
                     .ids = ids,
                     .n_ids = &n,
                     .n_input = 1,
                     .max_tok = MAX_GEN,
                     .ignore_eos = true,
                     .want_logprobs = true,
                     .cache_scope = scope};
    imp_sampling_default(&q.sampling);
    q.sampling.seed = i;
    if (i % 2 == 0) q.sampling.temperature = 0;
    return crowd_add(m, &q, o);
}

static void ask(imp_model *m, uint32_t i, uint64_t scope, outcome *o)
{
    submit(m, i, scope, o);
    wait_until(0);
}

static void check_same(const outcome *a, const outcome *o)
{
    assert_int_equal(o->n_done, 1);
    if (o->finish == IMP_FINISH_CANCELLED) {
        assert_memory_equal(o->text, a->text, IMP_MIN(o->n_text, a->n_text));
        return;
    }
    assert_int_equal(o->n_tok, a->n_tok);
    assert_memory_equal(o->tok, a->tok,
                        a->n_tok * sizeof a->tok[0]); /* ids and the bits of their probabilities */
    assert_int_equal(o->n_text, a->n_text);
    assert_memory_equal(o->text, a->text, a->n_text);
}

static outcome alone[N_PROMPT];

static void answer_alone(const char *path, const char *kv)
{
    imp_model *m;
    imp_engine *e = open_engine(path, kv, false, 1, 0, &m);
    for (uint32_t i = 0; i < N_PROMPT; i++) ask(m, i, 0, &alone[i]);
    imp_engine_free(e);
}

static void with_cache(const char *path, const char *kv)
{
    imp_model *m;
    imp_stats st;
    outcome o, many[N_PROMPT];
    imp_sys_remove_tree(dir);
    answer_alone(path, kv);
    imp_engine *e = open_engine(path, kv, true, 4, 0, &m);
    for (uint32_t i = 0; i < N_PROMPT; i += 4) ask(m, i, 0, &o), check_same(&alone[i], &o);
    imp_memory mem;
    imp_model_get_memory(m, &mem);
    imp_engine_free(e);

    /* after a restart, one after the other: what they share comes from disk */
    e = open_engine(path, kv, true, 4, 0, &m);
    for (uint32_t i = 0; i < N_PROMPT; i++) {
        ask(m, i, 0, &o);
        check_same(&alone[i], &o);
        assert_true(o.usage.n_cached >= 192);
        char *receipt = imp_receipt_json(e, 0);
        const char *at = strstr(receipt, "\"restored\":{\"tokens\":");
        assert_int_equal(at != NULL, i % 4 == 0);
        if (at != NULL) assert_int_equal(atoi(at + 21), o.usage.n_cached);
        imp_free(receipt);
    }
    imp_engine_get_stats(e, &st);
    assert_true(st.n_restored_tok >= N_PROMPT / 4 * 192 && st.n_kv_loaded * 64 == st.n_restored_tok);
    imp_engine_free(e);

    /* all at once, some cancelled, in memory for two: blocks come and go, to and from disk */
    e = open_engine(path, kv, true, 4, mem.total - mem.kv / 2, &m);
    for (int round = 0; round < 3; round++) {
        uint64_t id[N_PROMPT];
        for (uint32_t i = 0; i < N_PROMPT; i++) id[i] = submit(m, i, 0, &many[i]);
        for (uint32_t i = 0; i < N_PROMPT; i += 5) imp_cancel(e, id[(i + (uint32_t)round) % N_PROMPT]);
        wait_until(0);
        for (uint32_t i = 0; i < N_PROMPT; i++) check_same(&alone[i], &many[i]);
    }
    imp_engine_get_stats(e, &st);
    assert_int_equal(st.n_kv_refused, 0);
    assert_int_equal(st.kv_block_used, 0);
    print_message("# %s: %u blocks in memory, %llu restored\n", kv, st.kv_block_total,
                  (unsigned long long)st.n_kv_loaded);
    assert_true(st.n_kv_loaded > 0 && st.n_done + st.n_cancelled == 3 * N_PROMPT);
    imp_engine_free(e);
}

static void restored_is_what_is_computed(void **state)
{
    (void)state;
    with_cache("models/stories260K.gguf", "f16");
    with_cache("models/stories260K.gguf", "f32");
    if (getenv("IMPETUS_KVSAVE_SMALL") != NULL) return; /* for builds that are slow */
    with_cache("models/impetus-nano.gguf", "q8_0");
    with_cache("models/impetus-nano.gguf", "q4");
}

/* The tokens that prompt 0 finds. */
static uint32_t found(const char *path, const char *kv, uint64_t scope)
{
    imp_model *m;
    outcome o;
    imp_engine *e = open_engine(path, kv, true, 2, 0, &m);
    ask(m, 0, scope, &o);
    assert_int_equal(o.finish, IMP_FINISH_LENGTH);
    imp_engine_free(e);
    return o.usage.n_cached;
}

static void each_finds_only_its_own(void **state)
{
    (void)state;
    static const char model[] = "models/stories260K.gguf";
    const uint64_t nameless =
        1ull << 63 | 5; /* an API key without a name: its number does not outlive the program */
    imp_sys_remove_tree(dir);
    assert_int_equal(found(model, "f16", 1), 0);
    assert_true(found(model, "f16", 1) >= 192);
    assert_int_equal(found(model, "f16", 2), 0);
    assert_int_equal(found(model, "f16", 0), 0);
    assert_int_equal(found(model, "f16", nameless), 0);
    assert_int_equal(found(model, "f16", nameless), 0);
    assert_true(found(model, "f16", 2) >= 192);
    assert_int_equal(found(model, "f32", 1), 0);
    assert_int_equal(found("models/impetus-nano.gguf", "f16", 1), 0);
    /* the same model elsewhere is the same; with one byte of one weight changed it is another */
    imp_sys_file f;
    imp_error err;
    assert_int_equal(imp_sys_file_open(model, false, &f, &err), IMP_OK);
    assert_int_equal(imp_sys_file_write(copy, f.data, f.n, &err), IMP_OK);
    assert_true(found(copy, "f16", 1) >= 192);
    uint8_t byte = f.data[f.n - 1000] ^ 1;
    assert_true(imp_sys_file_patch(copy, f.n - 1000, &byte, 1));
    assert_int_equal(found(copy, "f16", 1), 0);
    imp_sys_file_close(&f);
    (void)unlink(copy);
}

/* Another engine on the same folder finds what the first has saved on request and still uses. */
static void saved_on_request(void **state)
{
    (void)state;
    imp_model *m, *m2;
    imp_stats st;
    outcome o;
    imp_sys_remove_tree(dir);
    answer_alone("models/stories260K.gguf", "f16");
    imp_engine *e = open_engine("models/stories260K.gguf", "f16", true, 2, 0, &m);
    for (uint32_t i = 0; i < N_PROMPT; i++) ask(m, i, 0, &o);
    assert_true(imp_engine_save_caches(e));
    uint64_t n = 0, before;
    do { /* until nothing more comes */
        before = n;
        usleep(300000);
        imp_engine_get_stats(e, &st);
        n = st.n_kv_saved;
    } while (n != before || n == 0);
    imp_engine *e2 = open_engine("models/stories260K.gguf", "f16", true, 2, 0, &m2);
    for (uint32_t i = 0; i < N_PROMPT; i++) {
        ask(m2, i, 0, &o);
        check_same(&alone[i], &o);
        assert_true(o.usage.n_cached >= 192);
        ask(m, i, 0, &o);
        check_same(&alone[i], &o);
    }
    imp_engine_free(e2);
    imp_engine_free(e);
    e = open_engine("models/stories260K.gguf", "f16", false, 2, 0, &m);
    assert_false(imp_engine_save_caches(e));
    imp_engine_free(e);
}

/* A folder that is not to be trusted: the server works as if there were none, and leaves it alone. */
static void a_foreign_folder_is_left_alone(void **state)
{
    (void)state;
    imp_engine *e;
    imp_model *m;
    imp_error err;
    outcome o;
    imp_sys_remove_tree(dir);
    assert_int_equal(symlink("/tmp", dir), 0);
    imp_log_set_level(IMP_LOG_ERROR);
    imp_engine_config c = {.device = "cpu", .n_ctx = N_CTX, .kv_dir = dir, .kv_disk_bytes = 1 << 30};
    assert_int_equal(imp_engine_new(&c, &e, &err), IMP_OK);
    imp_log_set_level(IMP_LOG_WARN);
    assert_int_equal(imp_engine_load(e, "models/stories260K.gguf", "m", &m, &err), IMP_OK);
    ask(m, 0, 0, &o);
    assert_int_equal(o.finish, IMP_FINISH_LENGTH);
    imp_engine_free(e);
    assert_int_equal(unlink(dir), 0);
}

static int setup(void **state)
{
    (void)state;
    (void)snprintf(dir, sizeof dir, "build/tests/kvsave-%ld", (long)getpid());
    (void)snprintf(copy, sizeof copy, "%s.gguf", dir);
    return crowd_begin();
}

static int teardown(void **state)
{
    (void)state;
    imp_sys_remove_tree(dir);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(restored_is_what_is_computed),
        cmocka_unit_test(each_finds_only_its_own),
        cmocka_unit_test(saved_on_request),
        cmocka_unit_test(a_foreign_folder_is_left_alone),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
