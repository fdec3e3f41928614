/* Many greedy requests of all lengths, with beginnings in common, arriving and cancelled at random, more than the KV memory
 * holds: every finished answer is the very tokens and bytes that the request gives alone, in an engine that has never seen
 * another one; and every block comes back. IMPETUS_STORM: how many (1000; a tenth under sanitizers would do). */
#include "test.h"

#include <unistd.h>

#define MODEL "models/stories260K.gguf"

enum { N_PROMPT = 48, MAX_GEN = 90, MAX_PROMPT = 380 };

#include "crowd.h"

static int32_t prompt[N_PROMPT][MAX_PROMPT];
static size_t n_prompt[N_PROMPT];

/* Four beginnings, each cut at random and prolonged at random. */
static void make_prompts(rng *r)
{
    for (int i = 0; i < N_PROMPT; i++) {
        rng begin = {(uint64_t)(i % 4) + 77};
        size_t n = i % 5 == 0 ? 1 + rng_below(r, 12) : 60 + rng_below(r, MAX_PROMPT - 60),
               cut = rng_below(r, 300);
        n_prompt[i] = n;
        for (size_t k = 0; k < n; k++) {
            uint32_t shared = rng_below(&begin, 500);
            prompt[i][k] = (int32_t)(k == 0 ? 1 : 3 + (k < cut ? shared : rng_below(r, 500)));
        }
    }
}

static uint64_t submit(imp_model *m, int i, uint32_t max_tok, uint64_t client, outcome *o)
{
    imp_request q = {.kind = IMP_REQUEST_GENERATE,
                     .ids = prompt[i],
                     .n_ids = &n_prompt[i],
                     .n_input = 1,
                     .max_tok = max_tok,
                     .want_logprobs = true,
                     .client = client,
                     .priority = (int32_t)(client % 3) - 1,
                     .ignore_eos = true};
    imp_sampling_default(&q.sampling);
    q.sampling.temperature = 0;
    return crowd_add(m, &q, o);
}

static imp_engine *open_engine(uint32_t n_parallel, uint64_t mem_bytes, imp_model **m)
{
    imp_engine *e;
    imp_error err;
    imp_engine_config c = {.device = "cpu",
                           .n_thread = 2,
                           .n_ctx = 512,
                           .n_parallel = n_parallel,
                           .n_batch = 100,
                           .mem_bytes = mem_bytes};
    if (imp_engine_new(&c, &e, &err) != IMP_OK || imp_engine_load(e, MODEL, "m", m, &err) != IMP_OK)
        fail_msg("%s", err.text);
    return e;
}

static outcome alone[N_PROMPT];

static void storm(void **state)
{
    (void)state;
    const char *want = getenv("IMPETUS_STORM");
    uint32_t n = want != NULL ? (uint32_t)atoi(want) : 1000, n_finished = 0, n_cancelled = 0;
    rng r = {2026};
    make_prompts(&r);
    imp_model *m;
    for (int i = 0; i < N_PROMPT; i++) {
        imp_engine *e = open_engine(1, 0, &m);
        submit(m, i, MAX_GEN, 0, &alone[i]);
        wait_until(0);
        assert_int_equal(alone[i].n_tok, MAX_GEN);
        imp_engine_free(e);
    }
    imp_engine *e = open_engine(12, 0, &m);
    imp_memory mem;
    imp_model_get_memory(m, &mem);
    imp_engine_free(e);
    e = open_engine(12, mem.total - mem.kv + mem.kv / 5, &m); /* a fifth of what all would like */
    imp_stats st;
    imp_engine_get_stats(e, &st);
    assert_true(st.kv_block_total >= 9 && st.kv_block_total < 24);
    outcome *o = calloc(n, sizeof *o);
    uint64_t *id = calloc(n, sizeof *id);
    uint32_t *len = calloc(n, sizeof *len), *which = calloc(n, sizeof *which);
    for (uint32_t k = 0; k < n; k++) {
        which[k] = rng_below(&r, N_PROMPT);
        len[k] = 1 + rng_below(&r, rng_below(&r, 3) == 0 ? MAX_GEN : 20);
        id[k] = submit(m, (int)which[k], len[k], rng_below(&r, 5), &o[k]);
        if (rng_below(&r, 4) == 0) imp_cancel(e, id[k - rng_below(&r, IMP_MIN(k + 1, 40u))]);
        if (rng_below(&r, 8) == 0) usleep(rng_below(&r, 3000));
        wait_until(40);
    }
    wait_until(0);
    for (uint32_t k = 0; k < n; k++) {
        const outcome *a = &alone[which[k]];
        assert_int_equal(o[k].n_done, 1);
        assert_true(o[k].finish == IMP_FINISH_LENGTH || o[k].finish == IMP_FINISH_CANCELLED);
        assert_memory_equal(o[k].tok, a->tok, o[k].n_tok * sizeof *a->tok);
        n_cancelled += o[k].finish == IMP_FINISH_CANCELLED;
        if (o[k].finish != IMP_FINISH_LENGTH) continue;
        n_finished++;
        assert_int_equal(o[k].n_tok, len[k]);
        assert_true(o[k].n_text <= a->n_text + 4);
        assert_memory_equal(o[k].text, a->text, IMP_MIN(o[k].n_text, a->n_text) - IMP_MIN(o[k].n_text, 4u));
    }
    imp_engine_get_stats(e, &st);
    assert_int_equal(st.kv_block_used, 0);
    assert_int_equal(st.n_waiting + st.n_running, 0);
    assert_true(n_finished > n / 2 && n_cancelled > 0 && st.n_cache_hit_tok > 0);
    print_message(
        "# %u finished, %u cancelled; %llu of %llu prompt tokens from the cache; %llu times one had to make "
        "room\n",
        n_finished, n_cancelled, (unsigned long long)st.n_cache_hit_tok,
        (unsigned long long)st.n_cache_query_tok, (unsigned long long)st.n_preempted);
    imp_engine_free(e);
    free(o), free(id), free(len), free(which);
}

int main(void)
{
    const struct CMUnitTest t[] = {cmocka_unit_test(storm)};
    if (crowd_begin()) return 1;
    imp_log_set_level((imp_log_level)-1);
    return cmocka_run_group_tests(t, NULL, NULL);
}
