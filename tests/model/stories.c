/* tests/model/stories.c - a real model from end to end: stories260K tells the story it is known for.
 *
 * Idea: models/stories260K.gguf is a real 260,000-parameter model that others trained and converted; llama.cpp continues
 *       "Once upon a time" greedily with the text below. Tokens go in and come out through the model's own tokenizer. */
#include "run.h"

#include <string.h>

static const char *const story =
    ", there was a little girl named Lily. She loved to play outside in the park. One day, she "
    "saw a big, red ball. She wanted to play with it, but it was too high.";

static void tell(const char *device, uint32_t piece)
{
    imp_net *net;
    imp_error err = {0};
    check_ok(imp_net_open("models/stories260K.gguf", 0, &net, &err), &err);
    assert_non_null(net->tok);
    assert_true(net->cfg.can_generate && !net->cfg.can_embed);
    assert_int_equal(net->cfg.n_ctx_train, 512);
    imp_ids ids = {0};
    const char *prompt = "Once upon a time";
    check_ok(imp_tokenizer_encode(net->tok, prompt, strlen(prompt), IMP_TOK_ADD_SPECIAL, &ids, &err), &err);
    run r;
    run_open(&r, device, net->generate);
    const float *logits = NULL;
    for (uint32_t first = 0; first < ids.n; first += piece) {
        uint32_t n = IMP_MIN(piece, (uint32_t)ids.n - first), last = n - 1;
        logits = run_step(&r, ids.id + first, n, &last, 1);
    }
    imp_buf text = {0};
    imp_detok d;
    imp_detok_init(&d, net->tok, false);
    for (size_t i = 0; i < ids.n; i++) imp_detok_push(&d, ids.id[i], &text);
    size_t n_prompt = text.n;
    for (int i = 0; i < 120 && text.n < n_prompt + strlen(story); i++) {
        int32_t id = (int32_t)arg_max(logits, r.width);
        imp_detok_push(&d, id, &text);
        uint32_t row = 0;
        logits = run_step(&r, &id, 1, &row, 1);
    }
    assert_true(text.n >= n_prompt + strlen(story));
    assert_memory_equal(text.data + n_prompt, story, strlen(story));
    imp_buf_deinit(&text);
    imp_ids_deinit(&ids);
    run_close(&r);
    imp_net_close(net);
}

static void test_ref(void **state)
{
    (void)state;
    tell("ref", 64);
}

static void test_cpu(void **state)
{
    (void)state;
    tell("cpu", 64);
}

static void test_cpu_token_by_token(void **state)
{
    (void)state;
    tell("cpu", 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ref),
        cmocka_unit_test(test_cpu),
        cmocka_unit_test(test_cpu_token_by_token),
    };
    return cmocka_run_group_tests_name("model stories", tests, NULL, NULL);
}
