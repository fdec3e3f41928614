/* tests/model/cuda_golden.c - the golden models and stories260K on an NVIDIA GPU; skipped where there is none.
 *
 * Bound:  as golden.c for f32 weights; 2e-2 of the largest value where the file's weights have 16 bits or fewer (large
 *         steps multiply in bf16). stories260K: the CPU's tokens, greedily, 200 of them. */
#ifndef CUDA_DEVICE /* another number of GPUs: cuda_pair.c */
#define CUDA_DEVICE    "cuda"
#define GOLDEN_DEVICES "cuda", "cuda0+cpu0:experts"
#endif
#define GOLDEN_BOUND(path, exact) cuda_bound(path, exact)
#define main                      golden_main
static float cuda_bound(const char *path, int exact);
int golden_main(void);
#include "golden.c"
#undef main

static float cuda_bound(const char *path, int exact)
{
    return !exact || strstr(path, "bf16") != NULL ? 2e-2f : 5e-4f;
}

static void tokens_of(const char *device, int32_t *out, uint32_t n)
{
    imp_net *net;
    imp_error err = {0};
    check_ok(imp_net_open("models/stories260K.gguf", 0, &net, &err), &err);
    imp_ids ids = {0};
    const char *prompt = "Once upon a time";
    check_ok(imp_tokenizer_encode(net->tok, prompt, strlen(prompt), IMP_TOK_ADD_SPECIAL, &ids, &err), &err);
    run r;
    run_open(&r, device, net->generate);
    uint32_t row = (uint32_t)ids.n - 1;
    const float *logits = run_step(&r, ids.id, (uint32_t)ids.n, &row, 1);
    for (uint32_t i = 0; i < n; i++) {
        out[i] = (int32_t)arg_max(logits, r.width);
        row = 0;
        logits = run_step(&r, &out[i], 1, &row, 1);
    }
    imp_ids_deinit(&ids);
    run_close(&r);
    imp_net_close(net);
}

static void test_stories(void **state)
{
    (void)state;
    int32_t cpu[200], gpu[200];
    tokens_of("cpu", cpu, 200);
    tokens_of(CUDA_DEVICE, gpu, 200);
    assert_memory_equal(cpu, gpu, sizeof cpu);
}

int main(void)
{
    imp_device *d;
    imp_error err = {0};
    if (imp_dev_open(CUDA_DEVICE, 0, &d, &err) != IMP_OK) {
        printf("1..1\nok 1 - " CUDA_DEVICE " # SKIP %s\n", err.text);
        return 0;
    }
    d->ops->close(d);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stories)};
    return golden_main() + cmocka_run_group_tests(tests, NULL, NULL);
}
