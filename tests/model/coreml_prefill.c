/* tests/model/coreml_prefill.c - prompts read by the Core ML device, over the stand-in of tests/fake: keys and values go through
 * export and import to the CPU, which computes the last token; its logits against `ref`, which reads the prompt alone.
 *
 * Bound: the stand-in computes the package in half precision, so the logits agree as docs/coreml.md says of fp16: a cosine of
 *        0.9998, for a cache of f32 and f16; a rounded cache (q8_0, q4_0) is compared with the CPU's own of that kind. */
#include "run.h"

#include <string.h>
#include <unistd.h>

#include "dev/coreml/coreml.h"
#include "dev/coreml/worker.h"

enum { N_SEQ = 5, CTX = 128, N_BLOCK = N_SEQ * CTX / IMP_KV_BLOCK };

static char g_fake[4200];

typedef struct rig {
    char dir[64], ctl[80];
    imp_net *net;
    imp_device *dev, *cpu;
    imp_exec *x, *on_cpu;
    imp_limits lim;
    int32_t token[N_SEQ * CTX], pos[N_SEQ * CTX];
    uint32_t n_tok[N_SEQ]; /* whole prompts; Core ML reads all but the last token */
    uint32_t block[N_SEQ][CTX / IMP_KV_BLOCK];
} rig;

static void control(const rig *r, const char *words)
{
    FILE *f = fopen(r->ctl, "w");
    fputs(words, f);
    fclose(f);
}

static int logged(const rig *r, const char *what)
{
    char path[100], line[300];
    int n = 0;
    snprintf(path, sizeof path, "%s.log", r->ctl);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) n += !strncmp(line, what, strlen(what));
    if (f) fclose(f);
    return n;
}

static void make_prompts(rig *r)
{
    static const uint32_t LENGTH[N_SEQ] = {2, 17, 18, 65,
                                           128}; /* both sides of a length's and of a block's end */
    uint32_t seed = 12345;
    for (uint32_t i = 0; i < N_SEQ; i++) {
        r->n_tok[i] = LENGTH[i];
        for (uint32_t k = 0; k < LENGTH[i]; k++) {
            seed = seed * 1664525u + 1013904223u;
            r->token[i * CTX + k] = (int32_t)((seed >> 8) % r->net->cfg.n_vocab);
        }
        for (uint32_t b = 0; b < CTX / IMP_KV_BLOCK; b++)
            r->block[i][b] = ((i * (CTX / IMP_KV_BLOCK) + b) * 7 + 3) % N_BLOCK; /* scattered */
    }
}

static void rig_open(rig *r, const char *model, const char *words, imp_dtype kv, uint64_t chunk_bytes)
{
    char path[200];
    imp_error err = {0};
    memset(r, 0, sizeof *r);
    strcpy(r->dir, "/tmp/imp-coreml-XXXXXX");
    assert_non_null(mkdtemp(r->dir));
    snprintf(r->ctl, sizeof r->ctl, "%s/control", r->dir);
    setenv("FAKE_COREML", r->ctl, 1);
    control(r, words);
    snprintf(path, sizeof path, strstr(model, "gguf") ? "%s" : "tests/data/models/%s", model);
    check_ok(imp_net_open(path, 0, &r->net, &err), &err);
    make_prompts(r);
    imp_coreml_config c = {.cache_dir = r->dir,
                           .runtime = g_fake,
                           .n_bucket = 3,
                           .bucket = {16, 64, CTX},
                           .chunk_bytes = chunk_bytes,
                           .load_ms = 60000,
                           .run_ms = 20000,
                           .retry_ms = 10,
                           .max_fail = 3};
    check_ok(imp_coreml_configure(&c, &err), &err);
    r->lim = (imp_limits){.max_tok = N_SEQ * CTX,
                          .max_seq = N_SEQ,
                          .max_out = N_SEQ,
                          .max_ctx = CTX,
                          .n_kv_block = N_BLOCK,
                          .kv_dtype = kv};
    check_ok(imp_dev_open("coreml", 0, &r->dev, &err), &err);
    check_ok(imp_dev_open("cpu", 1, &r->cpu, &err), &err);
    const imp_graph *g = r->net->generate;
    for (imp_val v = 1; v <= imp_graph_n(g); v++)
        if (r->dev->ops->refuses(r->dev, g, v) != NULL)
            fail_msg("%s: %s", model, r->dev->ops->refuses(r->dev, g, v));
    check_ok(r->dev->ops->compile(r->dev, g, &r->lim, &r->x, &err), &err);
    check_ok(r->cpu->ops->compile(r->cpu, g, &r->lim, &r->on_cpu, &err), &err);
}

static void rig_close(rig *r)
{
    r->dev->ops->exec_free(r->x);
    r->cpu->ops->exec_free(r->on_cpu);
    r->dev->ops->close(r->dev);
    r->cpu->ops->close(r->cpu);
    imp_net_close(r->net);
    imp_sys_remove_tree(r->dir);
}

static void expect_ready(rig *r)
{
    char text[300];
    if (r->dev->ops->state(r->x, true, text, sizeof text) != IMP_OK) fail_msg("%s", text);
}

/* All prompts but their last tokens in one step. */
static imp_status read_prompts(rig *r, imp_error *err)
{
    imp_batch_seq seq[N_SEQ];
    int32_t token[N_SEQ * CTX];
    uint32_t at = 0;
    const float *out = (const float *)r;
    for (uint32_t i = 0; i < N_SEQ; i++) {
        uint32_t n = r->n_tok[i] - 1;
        seq[i] = (imp_batch_seq){.first_tok = at, .n_tok = n, .block = r->block[i]};
        for (uint32_t k = 0; k < n; k++, at++) token[at] = r->token[i * CTX + k], r->pos[at] = (int32_t)k;
    }
    imp_batch b = {.n_tok = at, .n_seq = N_SEQ, .token = token, .pos = r->pos, .seq = seq};
    imp_status s = r->dev->ops->run(r->x, &b, &out, err);
    assert_null(out); /* no logits in any case */
    return s;
}

/* The last token of prompt i on the CPU behind what its cache holds: [n_vocab], the CPU's. */
static const float *last_token(rig *r, uint32_t i)
{
    imp_error err = {0};
    uint32_t row = 0, n = r->n_tok[i] - 1;
    int32_t pos = (int32_t)n;
    const float *out = NULL;
    imp_batch_seq seq = {.n_tok = 1, .n_past = n, .block = r->block[i]};
    imp_batch b = {.n_tok = 1,
                   .n_seq = 1,
                   .n_out = 1,
                   .token = r->token + i * CTX + n,
                   .pos = &pos,
                   .seq = &seq,
                   .out_row = &row};
    check_ok(r->cpu->ops->run(r->on_cpu, &b, &out, &err), &err);
    return out;
}

static void hand_over(rig *r)
{
    imp_error err = {0};
    uint8_t *host = malloc(imp_dev_kv_block_bytes(r->net->generate, r->lim.kv_dtype));
    for (uint32_t i = 0; i < N_SEQ; i++)
        for (uint32_t b = 0; b * IMP_KV_BLOCK < r->n_tok[i] - 1; b++) {
            check_ok(r->dev->ops->kv_export(r->x, r->block[i][b], host, &err), &err);
            check_ok(r->cpu->ops->kv_import(r->on_cpu, r->block[i][b], host, &err), &err);
        }
    assert_int_equal(r->dev->ops->kv_export(r->x, N_BLOCK, host, &err), IMP_INVALID);
    free(host);
}

static double cosine(const float *a, const float *b, uint64_t n)
{
    double ab = 0, aa = 0, bb = 0;
    for (uint64_t i = 0; i < n; i++)
        ab += (double)a[i] * (double)b[i], aa += (double)a[i] * (double)a[i],
            bb += (double)b[i] * (double)b[i];
    return ab / sqrt(aa * bb);
}

/* The logits of a device that reads prompt i alone: [n_vocab], the caller's. */
static float *alone(const rig *r, const char *kind, imp_dtype kv, uint32_t i)
{
    imp_error err = {0};
    imp_device *d;
    imp_exec *x;
    imp_limits lim = r->lim;
    lim.kv_dtype = kv;
    const float *out;
    size_t bytes = r->net->cfg.n_vocab * sizeof(float);
    float *copy = malloc(bytes);
    int32_t pos[CTX];
    uint32_t row = r->n_tok[i] - 1;
    for (int32_t k = 0; k < CTX; k++) pos[k] = k;
    imp_batch_seq seq = {.n_tok = r->n_tok[i], .block = r->block[i]};
    imp_batch b = {.n_tok = r->n_tok[i],
                   .n_seq = 1,
                   .n_out = 1,
                   .token = r->token + i * CTX,
                   .pos = pos,
                   .seq = &seq,
                   .out_row = &row};
    check_ok(imp_dev_open(kind, 1, &d, &err), &err);
    check_ok(d->ops->compile(d, r->net->generate, &lim, &x, &err), &err);
    check_ok(d->ops->run(x, &b, &out, &err), &err);
    memcpy(copy, out, bytes);
    d->ops->exec_free(x);
    d->ops->close(d);
    return copy;
}

static void check_prompts(rig *r, const char *what, const char *truth, double bound)
{
    imp_error err = {0};
    check_ok(read_prompts(r, &err), &err);
    hand_over(r);
    for (uint32_t i = 0; i < N_SEQ; i++) {
        float *want = alone(r, truth, strcmp(truth, "ref") == 0 ? IMP_F32 : r->lim.kv_dtype, i);
        double c = cosine(last_token(r, i), want, r->net->cfg.n_vocab);
        if (!(c >= bound)) fail_msg("%s, prompt of %u: cosine of logits %.6f", what, r->n_tok[i], c);
        free(want);
    }
}

/* ---- tests ----------------------------------------------------------------------------------------------------------- */

static void logits_as_ref(void **state)
{
    (void)state;
    static const char *const model[] = {
        "llama", "llama-yarn", "llama3-rope", "mistral", "qwen2",
        "qwen3", "gemma2",     "gemma3",      "phi3",    "models/stories260K.gguf"};
    for (size_t i = 0; i < IMP_COUNT(model); i++) {
        rig r;
        char text[200];
        rig_open(&r, model[i], "", i % 2 == 0 ? IMP_F16 : IMP_F32, 0);
        expect_ready(&r);
        check_prompts(&r, model[i], "ref", 0.9998);
        r.dev->ops->ran_on(r.x, text, sizeof text);
        assert_non_null(strstr(text, "of the cost"));
        assert_int_equal(logged(&r, "compile"), 1);
        assert_int_equal(logged(&r, "load units=3 function=prefill_64"), 1);
        rig_close(&r);
    }
}

/* A model of several programs, with functions and without; padded rows, results in f32. */
static void chunks_and_layouts(void **state)
{
    (void)state;
    static const struct {
        const char *words;
        bool joint;
    } sys[] = {{"", true}, {"pad", true}, {"f32 pad", true}, {"old", false}, {"old pad", false}};
    for (size_t i = 0; i < IMP_COUNT(sys); i++) {
        rig r;
        char text[200];
        rig_open(&r, "llama", sys[i].words, IMP_F16, 60000);
        expect_ready(&r);
        check_prompts(&r, sys[i].words, "ref", 0.9998);
        int n = logged(&r, "compile");
        if (n < (sys[i].joint ? 2 : 6) || (!sys[i].joint && n % 3 != 0))
            fail_msg("%s: %d packages", sys[i].words, n);
        r.dev->ops->ran_on(r.x, text, sizeof text);
        if (sys[i].joint ? !strstr(text, "of the ops") : text[0]) /* old systems do not say */
            fail_msg("%s, %d packages: \"%s\"", sys[i].words, n, text);
        rig_close(&r);
    }
}

/* Every kind of cache gets what the CPU would have put there, but for half precision. */
static void kinds_of_cache(void **state)
{
    (void)state;
    static const imp_dtype kv[] = {IMP_F32, IMP_F16, IMP_Q8_0, IMP_Q4_0};
    for (size_t i = 0; i < IMP_COUNT(kv); i++) {
        rig r;
        char what[32];
        rig_open(&r, "qwen3", "", kv[i], 0);
        expect_ready(&r);
        snprintf(what, sizeof what, "cache %zu", i);
        check_prompts(&r, what, "cpu", kv[i] == IMP_Q4_0 ? 0.998 : 0.9998);
        rig_close(&r);
    }
}

static void expect_failure(rig *r, const char *part)
{
    imp_error err = {0};
    assert_int_equal(read_prompts(r, &err), IMP_DEVICE);
    if (!strstr(err.text, part)) fail_msg("\"%s\" does not say \"%s\"", err.text, part);
}

static void failures(void **state)
{
    (void)state;
    static const struct {
        const char *words, *why;
    } bad[] = {{"load_fail", "does not load the package"},
               {"wrong_values", "gives other keys and values than the model"},
               {"nan", "gives other keys and values than the model"},
               {"wrong_shape", "numbers, not"},
               {"short", "shorter than its strides"},
               {"predict_die", "given up after 3 failures"}};
    for (size_t i = 0; i < IMP_COUNT(bad); i++) {
        rig r;
        char text[300];
        rig_open(&r, "llama", bad[i].words, IMP_F16, 0);
        assert_int_equal(r.dev->ops->state(r.x, true, text, sizeof text), IMP_DEVICE);
        if (!strstr(text, bad[i].why)) fail_msg("%s: \"%s\"", bad[i].words, text);
        expect_failure(&r, "is not ready");
        rig_close(&r);
    }
    rig r;
    char text[300];
    rig_open(&r, "llama", "", IMP_F16, 0);
    expect_ready(&r);
    control(&r, "die_once");
    expect_failure(&r, "the Core ML worker was killed by signal 6");
    expect_ready(&r);
    check_prompts(&r, "after a death", "ref", 0.9998);
    control(
        &r,
        "nan"); /* the worker lives; a prompt whose keys overflow is another device's, and too many end it */
    expect_failure(&r, "half precision is too narrow");
    assert_int_equal(r.dev->ops->state(r.x, false, text, sizeof text), IMP_OK);
    control(&r, "");
    check_prompts(&r, "after an overflow", "ref", 0.9998);
    control(&r, "nan");
    for (int k = 0; k < 3; k++) {
        imp_error err = {0};
        assert_int_equal(read_prompts(&r, &err), IMP_DEVICE);
    }
    assert_int_equal(r.dev->ops->state(r.x, true, text, sizeof text), IMP_DEVICE);
    assert_non_null(strstr(text, "half precision is too narrow"));
    rig_close(&r);
}

/* What it does not do is refused, and what it would take is said. */
static void limits_and_plans(void **state)
{
    (void)state;
    rig r;
    imp_error err = {0};
    imp_dev_memory m;
    rig_open(&r, "llama", "", IMP_F16, 0);
    expect_ready(&r);
    int32_t pos[2] = {64, 65};
    uint32_t row = 0;
    const float *out;
    imp_batch_seq seq = {.n_tok = 2, .n_past = 64, .block = r.block[4]};
    imp_batch b = {.n_tok = 2, .n_seq = 1, .token = r.token, .pos = pos, .seq = &seq};
    assert_int_equal(r.dev->ops->run(r.x, &b, &out, &err), IMP_INVALID);
    seq.n_past = 0, pos[0] = 0, pos[1] = 1, b.n_out = 1, b.out_row = &row;
    assert_int_equal(r.dev->ops->run(r.x, &b, &out, &err), IMP_INVALID);
    assert_non_null(strstr(err.text, "generates nothing"));
    check_prompts(&r, "after refusals", "ref", 0.9998);
    check_ok(r.dev->ops->plan(r.dev, r.net->generate, &r.lim, &m, &err), &err);
    assert_int_equal(m.kv, N_BLOCK * imp_dev_kv_block_bytes(r.net->generate, IMP_F16));
    assert_true(m.weights > 0 && m.mapped > 0);
    r.lim.max_ctx = CTX + 1;
    assert_int_equal(r.dev->ops->plan(r.dev, r.net->generate, &r.lim, &m, &err), IMP_TOO_LARGE);
    assert_non_null(strstr(err.text, "up to 128 tokens"));
    imp_net *moe;
    const char *why = NULL;
    check_ok(imp_net_open("tests/data/models/mixtral", 0, &moe, &err), &err);
    for (imp_val v = 1; v <= imp_graph_n(moe->generate) && !why; v++)
        why = r.dev->ops->refuses(r.dev, moe->generate, v);
    assert_non_null(why);
    assert_non_null(strstr(why, "no form for the ANE"));
    imp_net_close(moe);
    rig_close(&r);
}

/* The nth system call fails on the way to a prompt that is read. */
static void faults(void **state)
{
    (void)state;
    rig r;
    rig_open(&r, "llama", "", IMP_F16, 60000);
    expect_ready(&r);
    int n_ok = 0, n_failed = 0;
    for (uint64_t n = 1; n < 1500; n = n < 30 ? n + 1 : n + n / 5) {
        imp_error err = {0};
        char text[300];
        imp_exec *x = NULL, *keep = r.x;
        imp_sys_fail_at(n);
        imp_status s = r.dev->ops->compile(r.dev, r.net->generate, &r.lim, &x, &err);
        if (s == IMP_OK) s = r.dev->ops->state(x, true, text, sizeof text);
        r.x = x;
        if (s == IMP_OK) s = read_prompts(&r, &err);
        imp_sys_fail_at(0);
        r.x = keep;
        n_ok += s == IMP_OK;
        n_failed += s != IMP_OK;
        if (x) r.dev->ops->exec_free(x);
    }
    assert_true(n_failed > 15 && n_ok > 0);
    check_prompts(&r, "beside failing ones", "ref", 0.9998);
    rig_close(&r);
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], IMP_COREML_WORKER_ARG)) return imp_coreml_worker_main();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_as_ref),    cmocka_unit_test(chunks_and_layouts),
        cmocka_unit_test(kinds_of_cache),   cmocka_unit_test(failures),
        cmocka_unit_test(limits_and_plans), cmocka_unit_test(faults)};
    char dir[4096];
    if (!imp_sys_program_dir(dir, sizeof dir)) return 1;
    snprintf(g_fake, sizeof g_fake, "%s/../fake/objc_coreml.so", dir);
    if (access(g_fake, R_OK) != 0) {
        puts("1..1\nok 1 - coreml_prefill # SKIP the stand-in for Core ML is built on x86-64 only");
        return 0;
    }
    imp_log_set_level((imp_log_level)-1);
    return cmocka_run_group_tests_name("model coreml_prefill", tests, NULL, NULL);
}
