/* tests/model/nano.c - the bundled models compute what their trainers computed, and answer as models should.
 *
 * Idea: tests/data/nano_golden.h holds PyTorch's log probabilities after held-out tokens and its vector of a passage,
 *       both of the unquantised exports; the shipped files hold the decoder's very values as Q4_K, with embeddings and
 *       the whole encoder as Q8_0, so what is left is the rounding of those and of the activations. */
#include "run.h"

#include <string.h>

#include "data/nano_golden.h"

static imp_net *open_net(const char *path)
{
    imp_net *net;
    imp_error err = {0};
    check_ok(imp_net_open(path, 0, &net, &err), &err);
    return net;
}

static double log_sum(const float *v, uint64_t n)
{
    double top = v[arg_max(v, n)], sum = 0;
    for (uint64_t i = 0; i < n; i++) sum += exp(v[i] - top);
    return top + log(sum);
}

static void decoder(const char *device)
{
    imp_net *net = open_net("models/impetus-nano.gguf");
    assert_int_equal(net->cfg.n_ctx_train, 1024);
    run r;
    run_open(&r, device, net->generate);
    uint32_t rows[N_NANO];
    for (uint32_t i = 0; i < N_NANO; i++) rows[i] = i;
    const float *logits = run_step(&r, nano_ids, N_NANO, rows, N_NANO);
    uint32_t same = 0;
    double worst = 0;
    for (uint32_t i = 0; i < N_NANO; i++) {
        const float *v = logits + i * r.width;
        double all = log_sum(v, r.width);
        same += (int32_t)arg_max(v, r.width) == nano_best[i * N_NANO_TOP];
        for (uint32_t k = 0; k < N_NANO_TOP; k++) {
            double d = fabs(v[nano_best[i * N_NANO_TOP + k]] - all - nano_log_p[i * N_NANO_TOP + k]);
            worst = d > worst ? d : worst;
        }
    }
    assert_true(worst < 0.25);
    assert_true(same >= N_NANO - 2);
    run_close(&r);
    imp_net_close(net);
}

static void test_decoder_ref(void **state)
{
    (void)state;
    decoder("ref");
}

static void test_decoder_cpu(void **state)
{
    (void)state;
    decoder("cpu");
}

static void test_encoder(void **state)
{
    (void)state;
    imp_net *net = open_net("models/impetus-nano-embed.gguf");
    assert_int_equal(net->cfg.embed_dim, N_NANO_DIM);
    run r;
    run_open(&r, "cpu", net->embed);
    const uint32_t row = 0;
    const float *v = run_step(&r, nano_words, N_NANO_WORD, &row, 1);
    double dot = 0, a = 0, b = 0;
    for (uint32_t i = 0; i < N_NANO_DIM; i++) {
        dot += (double)v[i] * nano_vector[i];
        a += (double)v[i] * v[i];
        b += (double)nano_vector[i] * nano_vector[i];
    }
    assert_true(dot / sqrt(a * b) > 0.9995);
    run_close(&r);
    imp_net_close(net);
}

/* A question in the model's own chat format gets an answer of some words, and the answer ends by itself. */
static void test_answer_ends(void **state)
{
    (void)state;
    static const char *const asked[] = {"Hello, how are you?", "What is your name?", "Thank you!"};
    imp_net *net = open_net("models/impetus-nano.gguf");
    for (size_t q = 0; q < IMP_COUNT(asked); q++) {
        imp_error err = {0};
        imp_buf prompt = {0}, text = {0};
        imp_buf_str(&prompt, "<|im_start|>user\n");
        imp_buf_str(&prompt, asked[q]);
        imp_buf_str(&prompt, "<|im_end|>\n<|im_start|>assistant\n");
        imp_ids ids = {0};
        check_ok(imp_tokenizer_encode(net->tok, prompt.data, prompt.n,
                                      IMP_TOK_ADD_SPECIAL | IMP_TOK_PARSE_SPECIAL, &ids, &err),
                 &err);
        int32_t end = imp_tokenizer_find(net->tok, "<|im_end|>", 10);
        run r;
        run_open(&r, "cpu", net->generate);
        uint32_t last = (uint32_t)ids.n - 1;
        int32_t id = (int32_t)arg_max(run_step(&r, ids.id, (uint32_t)ids.n, &last, 1), r.width);
        imp_detok d;
        imp_detok_init(&d, net->tok, false);
        for (last = 0; id != end && r.n_past < 80;
             id = (int32_t)arg_max(run_step(&r, &id, 1, &last, 1), r.width))
            imp_detok_push(&d, id, &text);
        assert_int_equal(id, end);
        assert_true(text.n > 3);
        imp_buf_deinit(&text);
        imp_buf_deinit(&prompt);
        imp_ids_deinit(&ids);
        run_close(&r);
    }
    imp_net_close(net);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decoder_ref),
        cmocka_unit_test(test_decoder_cpu),
        cmocka_unit_test(test_encoder),
        cmocka_unit_test(test_answer_ends),
    };
    return cmocka_run_group_tests_name("model nano", tests, NULL, NULL);
}
