/* tests/model/coreml_stories.c - a real decoder as a Core ML package: stories260K, run by the evaluator of ML Programs.
 *
 * Idea: the package's prefill and decode function (in half precision, as on the device) tell greedily the story that `ref` tells;
 *       and the CPU goes on from the package's keys and values as from its own. */
#include "run.h"

#include <string.h>
#include <unistd.h>

#include "dev/coreml/runner.h"

enum { PREFILL = 96, N_STATE = 512, N_STORY = 460 };

static const char *const package_files[] = {"Data/com.apple.CoreML/weights/weight.bin",
                                            "Data/com.apple.CoreML/weights",
                                            "Data/com.apple.CoreML/model.mlmodel",
                                            "Data/com.apple.CoreML",
                                            "Data",
                                            "Manifest.json",
                                            ""};

typedef struct told {
    imp_net *net;
    imp_ml_report report;
    imp_ml_runner *run;
    int32_t id[N_STORY + 1]; /* what ref says after the prompt is in it too */
    uint32_t n_prompt;
} told;

/* The prompt and ref's greedy continuation of it; the package in the given form. */
static void open_told(told *t, const char *form)
{
    char path[256];
    const char *dir = getenv("TMPDIR"), *prompt = "Once upon a time", *made;
    imp_error err = {0};
    imp_ids ids = {0};
    imp_ml_options o = {.n_bucket = 1, .bucket = {PREFILL}, .decode = N_STATE, .source = "stories260K"};
    run r;
    *t = (told){0};
    check_ok(imp_net_open("models/stories260K.gguf", 0, &t->net, &err), &err);
    check_ok(imp_tokenizer_encode(t->net->tok, prompt, strlen(prompt), IMP_TOK_ADD_SPECIAL, &ids, &err),
             &err);
    t->n_prompt = (uint32_t)ids.n;
    memcpy(t->id, ids.id, ids.n * sizeof *t->id);
    imp_ids_deinit(&ids);
    run_open(&r, "ref", t->net->generate);
    uint32_t n = t->n_prompt, row = n - 1;
    const float *logits = run_step(&r, t->id, n, &row, 1);
    for (row = 0; n < N_STORY; n++) {
        t->id[n] = (int32_t)arg_max(logits, r.width);
        logits = run_step(&r, t->id + n, 1, &row, 1);
    }
    t->id[n] = (int32_t)arg_max(logits, r.width);
    run_close(&r);
    snprintf(path, sizeof path, "%s/imp-coreml-stories-%d.mlpackage", dir != NULL ? dir : "/tmp",
             (int)getpid());
    assert_true(imp_ml_packing_parse(form, &o.pack));
    check_ok(imp_ml_convert(t->net->generate, path, &o, &t->report, &err), &err);
    made = t->report.path[0];
    check_ok(imp_ml_runner_new(t->net->generate, &made, 1, IMP_ML_F16, NULL, &t->run, &err), &err);
}

static void close_told(told *t)
{
    imp_ml_runner_free(t->run);
    for (size_t i = 0; i < IMP_COUNT(package_files); i++) {
        char p[800];
        snprintf(p, sizeof p, "%s/%s", t->report.path[0], package_files[i]);
        (void)(unlink(p) != 0 && rmdir(p));
    }
    imp_ml_report_deinit(&t->report);
    imp_net_close(t->net);
}

/* Every token of the story is the decode function's own first choice. */
static void decode_tells_the_story(void **state)
{
    told t;
    imp_error err = {0};
    (void)state;
    open_told(&t, "fp16");
    uint32_t n = t.n_prompt;
    check_ok(imp_ml_runner_run(t.run, t.id, NULL, n - 1, &err), &err);
    check_ok(imp_ml_runner_fill(t.run, n - 1, &err), &err);
    int32_t id = t.id[n - 1];
    for (; n <= N_STORY; n++) {
        const float *logits;
        check_ok(imp_ml_runner_decode(t.run, id, n - 1, &logits, &err), &err);
        id = (int32_t)arg_max(logits, t.net->cfg.n_vocab);
        if (id != t.id[n]) fail_msg("token %u is %d, ref's is %d", n, id, t.id[n]);
    }
    close_told(&t);
}

/* The runner's keys and values of block b, in the layout in which devices hand them over. */
static void block_of(const told *t, uint32_t b, uint32_t n_past, float *at)
{
    const imp_graph *g = t->net->generate;
    for (uint32_t i = 0; i < imp_graph_n_kv_layer(g); i++)
        for (int part = 0; part < 2; part++) {
            const imp_attn_attr *a = &imp_graph_kv_layer(g, i)->u.attn;
            uint64_t n;
            uint32_t s;
            char key[32];
            snprintf(key, sizeof key, "%c_%u", part == 0 ? 'k' : 'v', i);
            const float *kv = imp_ml_runner_out(t->run, key, &n, &s);
            assert_non_null(kv);
            for (uint32_t h = 0; h < a->n_kv_head; h++)
                for (uint32_t p = b * IMP_KV_BLOCK; p < (b + 1) * IMP_KV_BLOCK; p++)
                    for (uint32_t d = 0; d < a->head_dim; d++)
                        *at++ = p < n_past ? kv[(h * a->head_dim + d) * s + p] : 0;
        }
}

static double cosine(const float *a, const float *b, uint64_t n)
{
    double ab = 0, aa = 0, bb = 0;
    for (uint64_t i = 0; i < n; i++)
        ab += (double)a[i] * (double)b[i], aa += (double)a[i] * (double)a[i],
            bb += (double)b[i] * (double)b[i];
    return ab / sqrt(aa * bb);
}

/* The CPU goes on from the package's keys and values, and beside it from its own. */
static void go_on(const char *form, double bound)
{
    enum { PAST = PREFILL - 1, MORE = 200 };
    told t;
    run own, given;
    imp_error err = {0};
    open_told(&t, form);
    float *host = calloc(1, imp_dev_kv_block_bytes(t.net->generate, IMP_F32));
    float *want = malloc(t.net->cfg.n_vocab * sizeof *want);
    run_open(&own, "cpu", t.net->generate);
    run_open(&given, "cpu", t.net->generate);
    check_ok(imp_ml_runner_run(t.run, t.id, NULL, PAST, &err), &err);
    for (uint32_t b = 0; b * IMP_KV_BLOCK < PAST; b++) {
        block_of(&t, b, PAST, host);
        check_ok(given.dev->ops->kv_import(given.x, given.block[b], host, &err), &err);
    }
    given.n_past = PAST;
    uint32_t row = 0, last = PAST - 1;
    (void)run_step(&own, t.id, PAST, &last, 1);
    for (uint32_t n = PAST; n < PAST + MORE; n++) {
        memcpy(want, run_step(&own, t.id + n, 1, &row, 1), own.width * sizeof *want);
        const float *got = run_step(&given, t.id + n, 1, &row, 1);
        double c = cosine(got, want, own.width);
        if (!(c >= bound)) fail_msg("%s, token %u: cosine of logits %.7f, bound %.7f", form, n, c, bound);
        assert_int_equal(arg_max(got, own.width), arg_max(want, own.width));
    }
    run_close(&given);
    run_close(&own);
    free(want);
    free(host);
    close_told(&t);
}

static void cpu_goes_on(void **state)
{
    (void)state;
    go_on("fp16", 0.99999);
    go_on("lut8", 0.9999);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(decode_tells_the_story),
                                       cmocka_unit_test(cpu_goes_on)};
    return cmocka_run_group_tests_name("model coreml_stories", tests, NULL, NULL);
}
