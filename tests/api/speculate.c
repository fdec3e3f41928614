/* Requests of all kinds, with guesses and without: the very same tokens, probabilities, texts and ends. Greedy and with
 * seeds, penalties, stop strings, constraints, limits; in company, in too little KV memory, cancelled; every type of cache.
 * What they are compared with comes from an engine that guesses nothing and serves one at a time. IMPETUS_SPECULATE: how
 * many requests an engine gets at most. */
#include "test.h"

#include <unistd.h>

enum { N_KIND = 64, MAX_GEN = 160 };

#include "crowd.h"

static const char *const beginning[] = {
    "Once upon a time",
    "The cat sat on the mat. The dog sat on the mat. The cat sat on the mat. The dog sat on the mat. The",
    "Lily and Tom like to play. They play in the park. They play in the park with a ball. Lily and Tom",
    "One day, a little girl named Anna went to the park. She saw a big dog. One day, a little girl named",
    "a b c d e f g a b c d e f g a b c d",
    "There was a big, red",
};

static const char *const constraint_text[] = {
    "{\"type\":\"object\",\"properties\":{\"first_name\":{\"type\":\"string\",\"maxLength\":9},\"first_"
    "years\":"
    "{\"type\":\"integer\",\"minimum\":3,\"maximum\":12},\"second_name\":{\"type\":\"string\",\"maxLength\":"
    "9},"
    "\"second_years\":{\"type\":\"integer\",\"minimum\":3,\"maximum\":12}},\"required\":[\"first_name\","
    "\"first_years\",\"second_name\",\"second_years\"],\"additionalProperties\":false}",
    "(the cat and the dog, ){2,6}(the end)?",
};
static const imp_constraint_kind constraint_kind[] = {IMP_CONSTRAINT_SCHEMA, IMP_CONSTRAINT_REGEX};

static int32_t *prompt[IMP_COUNT(beginning)];
static size_t n_prompt[IMP_COUNT(beginning)];

/* Request number i of N_KIND, the same in every engine. */
static uint64_t submit(imp_model *m, imp_constraint *const *constraint, uint32_t i, outcome *o)
{
    static const char *const stop[] = {" park", "day, "};
    rng r = {i * 7919 + 13};
    uint32_t b = rng_below(&r, IMP_COUNT(beginning));
    imp_logit_bias bias[] = {{400, 3}, {420, -100}};
    imp_request q = {.kind = IMP_REQUEST_GENERATE,
                     .ids = prompt[b],
                     .n_ids = &n_prompt[b],
                     .n_input = 1,
                     .max_tok = rng_below(&r, 4) == 0 ? 1 + rng_below(&r, 12) : MAX_GEN - rng_below(&r, 60),
                     .ignore_eos = rng_below(&r, 2) == 0};
    imp_sampling_default(&q.sampling);
    q.sampling.seed = i;
    if (i % 2 == 0) q.sampling.temperature = 0;
    if (i % 8 == 1) q.sampling.temperature = 0.3f;
    if (i % 8 == 3) q.sampling.top_p = 0.7f, q.sampling.top_k = 0;
    if (i % 7 == 3) q.sampling.repeat_penalty = 1.2f;
    if (i % 11 == 5) q.sampling.presence_penalty = 0.4f, q.sampling.frequency_penalty = 0.1f;
    if (i % 13 == 7) q.sampling.bias = bias, q.sampling.n_bias = 2;
    if (i % 3 == 0) q.want_logprobs = true, q.n_logprobs = i % 4;
    if (i % 5 == 2) q.stop = stop, q.n_stop = 2;
    if (i % 4 == 1) q.constraint = constraint[i / 4 % 2];
    return crowd_add(m, &q, o);
}

static const char *model_file;

static imp_engine *open_engine(int speculate, uint32_t n_parallel, uint64_t mem_bytes, const char *kv,
                               imp_model **m, imp_constraint **constraint)
{
    imp_engine *e;
    imp_error err;
    imp_engine_config c = {.device = "cpu",
                           .n_thread = 2,
                           .n_ctx = 512,
                           .n_parallel = n_parallel,
                           .n_batch = 90,
                           .mem_bytes = mem_bytes,
                           .kv_dtype = kv,
                           .speculate = speculate};
    if (imp_engine_new(&c, &e, &err) != IMP_OK || imp_engine_load(e, model_file, "m", m, &err) != IMP_OK)
        fail_msg("%s", err.text);
    for (size_t i = 0; i < IMP_COUNT(beginning); i++) {
        imp_free(prompt[i]);
        if (imp_tokenize(*m, beginning[i], strlen(beginning[i]), IMP_TOK_ADD_SPECIAL, &prompt[i],
                         &n_prompt[i], &err) != IMP_OK)
            fail_msg("%s", err.text);
    }
    for (size_t i = 0; i < IMP_COUNT(constraint_text); i++)
        if (imp_constraint_new(*m, constraint_kind[i], constraint_text[i], strlen(constraint_text[i]),
                               &constraint[i], &err) != IMP_OK)
            fail_msg("%s", err.text);
    return e;
}

static void close_engine(imp_engine *e, imp_constraint **constraint)
{
    for (size_t i = 0; i < IMP_COUNT(constraint_text); i++) imp_constraint_free(constraint[i]);
    imp_engine_free(e);
}

static void check_same(uint32_t kind, const outcome *a, const outcome *o)
{
    assert_int_equal(o->n_done, 1);
    if (o->finish == IMP_FINISH_CANCELLED) {
        assert_true(o->n_text <= a->n_text + 4);
        assert_memory_equal(o->text, a->text, IMP_MIN(o->n_text, a->n_text));
        return;
    }
    if (o->n_text != a->n_text || memcmp(o->text, a->text, a->n_text) != 0)
        fail_msg("request %u: \"%.*s\", without guesses \"%.*s\"", kind, (int)o->n_text, o->text,
                 (int)a->n_text, a->text);
    assert_int_equal(o->finish, a->finish);
    assert_int_equal(o->usage.n_generated, a->usage.n_generated);
    assert_int_equal(o->n_tok, a->n_tok);
    assert_memory_equal(o->tok, a->tok,
                        a->n_tok * sizeof a->tok[0]); /* ids and the bits of their probabilities */
}

static outcome alone[N_KIND];

static void with_cache(const char *model, const char *kv, uint32_t n_kind, uint32_t n)
{
    const char *want = getenv("IMPETUS_SPECULATE");
    uint32_t n_cancelled = 0;
    if (want != NULL) n = IMP_MIN(n, (uint32_t)atoi(want));
    model_file = model;
    imp_model *m;
    imp_constraint *constraint[IMP_COUNT(constraint_text)];
    imp_engine *e = open_engine(-1, 1, 0, kv, &m, constraint);
    for (uint32_t i = 0; i < n_kind; i++) {
        submit(m, constraint, i, &alone[i]);
        wait_until(0);
    }
    imp_stats st;
    imp_engine_get_stats(e, &st);
    assert_int_equal(st.n_drafted_tok, 0);
    imp_memory mem;
    imp_model_get_memory(m, &mem);
    close_engine(e, constraint);

    /* one at a time: most is guessed, and receipts say what; then many at once in little memory */
    unsigned in_receipts[2] = {0, 0};
    e = open_engine(0, 1, 0, kv, &m, constraint);
    for (uint32_t i = 0; i < n_kind; i++) {
        outcome o;
        submit(m, constraint, i, &o);
        wait_until(0);
        check_same(i, &alone[i], &o);
        char *receipt = imp_receipt_json(e, 0);
        const char *at = strstr(receipt, "\"speculation\":");
        unsigned n_drafted, n_accepted;
        if (at != NULL &&
            sscanf(at, "\"speculation\":{\"drafted\":%u,\"accepted\":%u}", &n_drafted, &n_accepted) == 2)
            in_receipts[0] += n_drafted, in_receipts[1] += n_accepted;
        imp_free(receipt);
    }
    imp_engine_get_stats(e, &st);
    uint64_t drafted = st.n_drafted_tok, accepted = st.n_accepted_tok;
    assert_true(accepted > 0 && accepted <= drafted);
    assert_true(in_receipts[0] == drafted && in_receipts[1] == accepted);
    close_engine(e, constraint);

    e = open_engine(0, 9, 0, kv, &m, constraint);
    imp_model_get_memory(m, &mem);
    close_engine(e, constraint);
    e = open_engine(0, 9, mem.total - mem.kv + mem.kv / 4, kv, &m, constraint);
    outcome *o = calloc(n, sizeof *o);
    uint32_t *kind = calloc(n, sizeof *kind);
    uint64_t *id = calloc(n, sizeof *id);
    rng r = {99};
    for (uint32_t k = 0; k < n; k++) {
        kind[k] = rng_below(&r, n_kind);
        id[k] = submit(m, constraint, kind[k], &o[k]);
        if (rng_below(&r, 6) == 0) imp_cancel(e, id[k - rng_below(&r, IMP_MIN(k + 1, 12u))]);
        if (rng_below(&r, 8) == 0) usleep(rng_below(&r, 3000));
        wait_until(rng_below(&r, 3) == 0 ? 1 : 14);
    }
    wait_until(0);
    for (uint32_t k = 0; k < n; k++) {
        check_same(kind[k], &alone[kind[k]], &o[k]);
        n_cancelled += o[k].finish == IMP_FINISH_CANCELLED;
    }
    imp_engine_get_stats(e, &st);
    assert_int_equal(st.kv_block_used, 0);
    print_message(
        "# %s: alone %llu of %llu guesses right; %u requests in company, %u cancelled: %llu of %llu\n", kv,
        (unsigned long long)accepted, (unsigned long long)drafted, n, n_cancelled,
        (unsigned long long)st.n_accepted_tok, (unsigned long long)st.n_drafted_tok);
    close_engine(e, constraint);
    free(o), free(kind), free(id);
}

#define STORIES "models/stories260K.gguf"
#define NANO    "models/impetus-nano.gguf"

static void answers_are_the_same_f32(void **state)
{
    (void)state;
    with_cache(STORIES, "f32", N_KIND, 240);
}
static void answers_are_the_same_f16(void **state)
{
    (void)state;
    with_cache(STORIES, "f16", N_KIND, 240);
}
static void answers_are_the_same_q8_0(void **state)
{
    (void)state;
    with_cache(NANO, "q8_0", 20, 30);
}
static void answers_are_the_same_q4(void **state)
{
    (void)state;
    with_cache(NANO, "q4", 20, 30);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(answers_are_the_same_f32), cmocka_unit_test(answers_are_the_same_f16),
        cmocka_unit_test(answers_are_the_same_q8_0), cmocka_unit_test(answers_are_the_same_q4)};
    if (crowd_begin()) return 1;
    imp_log_set_level((imp_log_level)-1);
    return cmocka_run_group_tests(t, NULL, NULL);
}
