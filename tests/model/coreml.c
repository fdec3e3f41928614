/* Conversion to Core ML packages: every encoder and decoder family of tests/data/models, converted, read back by the strict
 * reader, run by the evaluator of ML Programs and compared with the reference device on the source graph. */
#include "test.h"

#include <math.h>
#include <unistd.h>

#include "dev/coreml/runner.h"
#include "dev/ref/ref.h"
#include "model/net.h"

enum { N_TOK = 13 };

static void scratch(char out[256], const char *name)
{
    const char *dir = getenv("TMPDIR");
    snprintf(out, 256, "%s/imp-coreml-%d-%s.mlpackage", dir != NULL ? dir : "/tmp", (int)getpid(), name);
}

static void remove_package(const char *path)
{
    static const char *const files[] = {"Data/com.apple.CoreML/weights/weight.bin",
                                        "Data/com.apple.CoreML/weights",
                                        "Data/com.apple.CoreML/model.mlmodel",
                                        "Data/com.apple.CoreML",
                                        "Data",
                                        "Manifest.json",
                                        ""};
    for (size_t i = 0; i < IMP_COUNT(files); i++) {
        char p[800];
        snprintf(p, sizeof p, "%s/%s", path, files[i]);
        (void)(unlink(p) != 0 && rmdir(p));
    }
}

static imp_net *open_net(const char *name)
{
    char path[256];
    imp_net *net;
    imp_error err = {0};
    snprintf(path, sizeof path, "tests/data/models/%s", name);
    if (imp_net_open(path, 0, &net, &err) != IMP_OK) fail_msg("%s: %s", name, err.text);
    return net;
}

static void tokens(const imp_net *net, int32_t *tok, int32_t *pos, uint32_t n)
{
    rng r = {5};
    for (uint32_t i = 0; i < n; i++) tok[i] = (int32_t)rng_below(&r, net->cfg.n_vocab), pos[i] = (int32_t)i;
}

/* The graph on ref: output row for the tokens, n_past of them already in the cache (kv given). */
static imp_exec *ref_exec_of(const imp_graph *g, imp_device **dev)
{
    imp_exec *x;
    imp_error err = {0};
    imp_limits lim = {.max_tok = 32,
                      .max_seq = 1,
                      .max_out = 32,
                      .max_ctx = 64,
                      .n_kv_block = imp_graph_n_kv_layer(g) > 0,
                      .kv_dtype = IMP_F32};
    assert_int_equal(imp_dev_ref_open(dev, &err), IMP_OK);
    if ((*dev)->ops->compile(*dev, g, &lim, &x, &err) != IMP_OK) fail_msg("%s", err.text);
    return x;
}

static const float *ref_run(imp_exec *x, const int32_t *tok, const int32_t *pos, uint32_t n_past, uint32_t n)
{
    static const uint32_t block[1] = {0};
    uint32_t last = n - 1;
    imp_batch_seq seq = {.n_tok = n, .n_past = n_past, .block = block};
    imp_batch b = {
        .n_tok = n, .n_seq = 1, .n_out = 1, .token = tok, .pos = pos, .seq = &seq, .out_row = &last};
    const float *y;
    imp_error err = {0};
    if (x->dev->ops->run(x, &b, &y, &err) != IMP_OK) fail_msg("%s", err.text);
    return y;
}

static double cosine(const float *a, const float *b, uint64_t n)
{
    double ab = 0, aa = 0, bb = 0;
    for (uint64_t i = 0; i < n; i++)
        ab += (double)a[i] * (double)b[i], aa += (double)a[i] * (double)a[i],
            bb += (double)b[i] * (double)b[i];
    return ab / sqrt(aa * bb);
}

static void convert(const imp_graph *g, const char *name, const char *pack, int32_t spec, bool several,
                    uint64_t chunk, imp_ml_report *r)
{
    char path[256];
    imp_error err = {0};
    imp_ml_options o = {
        .n_bucket = several ? 2 : 1, .bucket = {16, 32}, .spec = spec, .max_chunk = chunk, .source = name};
    assert_true(imp_ml_packing_parse(pack, &o.pack));
    scratch(path, name);
    if (imp_ml_convert(g, path, &o, r, &err) != IMP_OK) fail_msg("%s %s: %s", name, pack, err.text);
}

static imp_ml_runner *runner(const imp_graph *g, const imp_ml_report *r, imp_ml_mode mode)
{
    const char *path[IMP_ML_MAX_CHUNK];
    imp_ml_runner *out;
    imp_error err = {0};
    for (uint32_t i = 0; i < r->n_chunk; i++) path[i] = r->path[i];
    if (imp_ml_runner_new(g, path, r->n_chunk, mode, NULL, &out, &err) != IMP_OK) fail_msg("%s", err.text);
    return out;
}

static void clean(imp_ml_report *r)
{
    for (uint32_t i = 0; i < r->n_chunk; i++) remove_package(r->path[i]);
    imp_ml_report_deinit(r);
}

/* The embedding of n tokens by the package against ref: smallest cosine over lengths 1..N_TOK. */
static void check_encoder(const char *name, const char *pack, int32_t spec, bool several, imp_ml_mode mode,
                          double bound)
{
    int32_t tok[N_TOK], pos[N_TOK];
    imp_net *net = open_net(name);
    imp_ml_report r;
    imp_device *dev;
    imp_error err = {0};
    tokens(net, tok, pos, N_TOK);
    convert(net->embed, name, pack, spec, several, 0, &r);
    imp_exec *x = ref_exec_of(net->embed, &dev);
    imp_ml_runner *run = runner(net->embed, &r, mode);
    for (uint32_t n = 1; n <= N_TOK; n += 4) {
        const float *want = ref_run(x, tok, pos, 0, n);
        uint64_t n_out;
        uint32_t s;
        if (imp_ml_runner_run(run, tok, NULL, n, &err) != IMP_OK) fail_msg("%s", err.text);
        const float *got = imp_ml_runner_out(run, "embedding", &n_out, &s);
        assert_int_equal(n_out, net->cfg.embed_dim);
        assert_int_equal(s, 16);
        double c = cosine(got, want, n_out);
        if (!(c >= bound)) fail_msg("%s %s, %u tokens: cosine %.7f, bound %.7f", name, pack, n, c, bound);
    }
    imp_ml_overflow o;
    imp_ml_runner_overflow(run, &o);
    assert_int_equal(o.n_nan, 0);
    assert_true(o.max_abs > 0.5F && o.max_abs < 500); /* no mask of -1e4, no norm's 1 / 1e-4 in padding */
    imp_ml_runner_free(run);
    dev->ops->exec_free(x);
    dev->ops->close(dev);
    clean(&r);
    imp_net_close(net);
}

static const char *const encoders[] = {"bert",        "minilm",     "distilbert", "roberta",
                                       "xlm-roberta", "nomic-bert", "modernbert", "qwen3-embedding"};

static void encoders_fp16(void **state)
{
    (void)state;
    for (size_t i = 0; i < IMP_COUNT(encoders); i++) {
        check_encoder(encoders[i], "fp16", 0, true, IMP_ML_F32, 0.999999);
        check_encoder(encoders[i], "fp16", 0, false, IMP_ML_F16, 0.9999);
    }
}

static void encoders_compressed(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        check_encoder(encoders[i], "lut8", 0, false, IMP_ML_F32, 0.999);
        check_encoder(encoders[i], "lut6g8", 0, true, IMP_ML_F32, 0.995);
        check_encoder(encoders[i], "lut6t", 7, false, IMP_ML_F32, 0.99);
        check_encoder(encoders[i], "int8", 7, false, IMP_ML_F32, 0.999);
        check_encoder(encoders[i], "int8", 0, true, IMP_ML_F32, 0.999);
        check_encoder(encoders[i], "int4b32", 0, false, IMP_ML_F32, 0.9);
        check_encoder(encoders[i], "lut4", 0, false, IMP_ML_F32, 0.9);
    }
}

/* Prefill of all tokens but the last by the packages; their keys and values go into ref's cache; the last token's
 * logits there against ref's own. */
static void check_decoder(const char *name, uint64_t chunk, uint32_t min_chunks, imp_ml_mode mode,
                          double bound)
{
    int32_t tok[N_TOK], pos[N_TOK];
    imp_net *net = open_net(name);
    imp_graph *g = net->generate;
    imp_ml_report r;
    imp_device *dev;
    imp_error err = {0};
    tokens(net, tok, pos, N_TOK);
    convert(g, name, "fp16", 0, false, chunk, &r);
    assert_true(r.n_chunk >= min_chunks);
    imp_exec *x = ref_exec_of(g, &dev);
    const float *y = ref_run(x, tok, pos, 0, N_TOK);
    uint32_t n_vocab = net->cfg.n_vocab, s;
    float *want = malloc(n_vocab * sizeof *want);
    memcpy(want, y, n_vocab * sizeof *want);
    imp_ml_runner *run = runner(g, &r, mode);
    if (imp_ml_runner_run(run, tok, NULL, N_TOK - 1, &err) != IMP_OK) fail_msg("%s: %s", name, err.text);
    static const uint32_t block[1] = {0};
    for (uint32_t i = 0; i < imp_graph_n_kv_layer(g); i++)
        for (int part = 0; part < 2; part++) {
            const imp_attn_attr *a = &imp_graph_kv_layer(g, i)->u.attn;
            uint64_t width = (uint64_t)a->n_kv_head * a->head_dim, n;
            char key[32];
            snprintf(key, sizeof key, "%c_%u", part == 0 ? 'k' : 'v', i);
            const float *kv = imp_ml_runner_out(run, key, &n, &s);
            if (kv == NULL) fail_msg("%s: there is no %s", name, key);
            assert_int_equal(n, width * s);
            for (uint32_t t = 0; t < N_TOK - 1; t++)
                for (uint64_t c = 0; c < width; c++)
                    imp_ref_kv_at((ref_exec *)x, a, part, block, t)[c] = kv[c * s + t];
        }
    const float *got = ref_run(x, tok + N_TOK - 1, pos + N_TOK - 1, N_TOK - 1, 1);
    double c = cosine(got, want, n_vocab);
    if (!(c >= bound)) fail_msg("%s: cosine of logits %.7f, bound %.7f", name, c, bound);
    imp_ml_runner_free(run);
    free(want);
    dev->ops->exec_free(x);
    dev->ops->close(dev);
    clean(&r);
    imp_net_close(net);
}

static void decoders_prefill(void **state)
{
    static const char *const names[] = {"llama", "llama.gguf", "llama3-rope", "mistral",
                                        "qwen2", "qwen3",      "gemma2",      "gemma3",
                                        "phi3",  "smollm",     "llama-mlx4"};
    (void)state;
    for (size_t i = 0; i < IMP_COUNT(names); i++) {
        check_decoder(names[i], 0, 1, IMP_ML_F32, 0.999999);
        check_decoder(names[i], 0, 1, IMP_ML_F16, 0.9998);
    }
    check_decoder("llama", 60000, 2, IMP_ML_F32, 0.999999);
}

/* Prefill by the packages, its keys and values into the CPU device's cache by the way any unit hands them over; the last token
 * there against the CPU alone. */
static void check_hand_over(const char *name, const char *pack, double bound)
{
    int32_t tok[N_TOK], pos[N_TOK];
    imp_net *net = open_net(name);
    imp_graph *g = net->generate;
    imp_ml_report r;
    imp_device *dev;
    imp_exec *x;
    imp_error err = {0};
    imp_limits lim = {
        .max_tok = 32, .max_seq = 1, .max_out = 1, .max_ctx = 64, .n_kv_block = 2, .kv_dtype = IMP_F32};
    uint32_t n_vocab = net->cfg.n_vocab, s;
    float *want = malloc(n_vocab * sizeof *want), *host = calloc(1, imp_dev_kv_block_bytes(g, IMP_F32)),
          *at = host;
    tokens(net, tok, pos, N_TOK);
    convert(g, name, pack, 0, false, 0, &r);
    assert_int_equal(imp_dev_cpu_open(2, &dev, &err), IMP_OK);
    if (dev->ops->compile(dev, g, &lim, &x, &err) != IMP_OK) fail_msg("%s", err.text);
    memcpy(want, ref_run(x, tok, pos, 0, N_TOK), n_vocab * sizeof *want);
    imp_ml_runner *run = runner(g, &r, IMP_ML_F16);
    if (imp_ml_runner_run(run, tok, NULL, N_TOK - 1, &err) != IMP_OK) fail_msg("%s: %s", name, err.text);
    for (uint32_t i = 0; i < imp_graph_n_kv_layer(g); i++)
        for (int part = 0; part < 2; part++) {
            const imp_attn_attr *a = &imp_graph_kv_layer(g, i)->u.attn;
            uint64_t n;
            char key[32];
            snprintf(key, sizeof key, "%c_%u", part == 0 ? 'k' : 'v', i);
            const float *kv = imp_ml_runner_out(run, key, &n, &s);
            assert_non_null(kv);
            for (uint32_t h = 0; h < a->n_kv_head; h++)
                for (uint32_t t = 0; t < IMP_KV_BLOCK; t++)
                    for (uint32_t d = 0; d < a->head_dim; d++)
                        *at++ = t < N_TOK - 1 ? kv[(h * a->head_dim + d) * s + t] : 0;
        }
    if (dev->ops->kv_import(x, 0, host, &err) != IMP_OK) fail_msg("%s", err.text);
    const float *got = ref_run(x, tok + N_TOK - 1, pos + N_TOK - 1, N_TOK - 1, 1);
    double c = cosine(got, want, n_vocab);
    if (!(c >= bound)) fail_msg("%s %s: cosine of logits %.7f, bound %.7f", name, pack, c, bound);
    imp_ml_runner_free(run);
    free(want);
    free(host);
    dev->ops->exec_free(x);
    dev->ops->close(dev);
    clean(&r);
    imp_net_close(net);
}

static void decoders_go_on_elsewhere(void **state)
{
    static const char *const names[] = {"llama", "llama.gguf", "qwen3", "gemma3", "smollm"};
    (void)state;
    for (size_t i = 0; i < IMP_COUNT(names); i++) {
        check_hand_over(names[i], "fp16", 0.9998);
        check_hand_over(names[i], "lut8", 0.999);
    }
}

/* What the tuner computes as its second stream is what the package computes. */
static void check_tuned(const char *name, const char *form, double least, double agree)
{
    enum { N = 40 };
    static int32_t id[N][N_TOK];
    imp_ml_text text[N];
    imp_net *net = open_net(name);
    const imp_graph *g = net->embed;
    imp_ml_packing *p = malloc((imp_graph_n(g) + 1) * sizeof *p);
    imp_ml_tuned *t;
    imp_ml_report r;
    imp_device *dev;
    imp_error err = {0};
    int32_t pos[N_TOK];
    char path[256];
    double worst = 1;
    rng rnd = {21};
    for (uint32_t i = 0; i < N_TOK; i++) pos[i] = (int32_t)i;
    for (uint32_t i = 0; i < N; i++) {
        for (uint32_t k = 0; k < N_TOK; k++) id[i][k] = (int32_t)rng_below(&rnd, net->cfg.n_vocab);
        text[i] = (imp_ml_text){id[i], 5 + i % (N_TOK - 5)};
    }
    for (imp_val v = 0; v <= imp_graph_n(g); v++) assert_true(imp_ml_packing_parse(form, &p[v]));
    imp_ml_tuning o = {.text = text, .n_text = N, .n_held_out = 8, .form = p, .repair = true};
    if (imp_ml_tune(g, &o, &t, &err) != IMP_OK) fail_msg("%s", err.text);
    imp_ml_options opt = {.n_bucket = 1, .bucket = {16}, .pack = p[0], .tuned = t};
    scratch(path, name);
    if (imp_ml_convert(g, path, &opt, &r, &err) != IMP_OK) fail_msg("%s", err.text);
    imp_exec *x = ref_exec_of(g, &dev);
    imp_ml_runner *run = runner(g, &r, IMP_ML_F32);
    for (uint32_t i = N - 8; i < N; i++) {
        uint64_t n;
        uint32_t s;
        const float *want = ref_run(x, id[i], pos, 0, text[i].n);
        if (imp_ml_runner_run(run, id[i], NULL, text[i].n, &err) != IMP_OK) fail_msg("%s", err.text);
        worst = fmin(worst, cosine(imp_ml_runner_out(run, "embedding", &n, &s), want, net->cfg.embed_dim));
    }
    if (!(worst >= least) || !(fabs(worst - t->held_out.worst_cosine) <= agree))
        fail_msg("%s %s: smallest cosine %.6f by the package, %.6f by the tuner", name, form, worst,
                 t->held_out.worst_cosine);
    imp_ml_runner_free(run);
    dev->ops->exec_free(x);
    dev->ops->close(dev);
    clean(&r);
    imp_ml_tuned_free(t);
    free(p);
    imp_net_close(net);
}

static void encoders_tuned(void **state)
{
    (void)state;
    check_tuned("minilm", "int8", 0.999, 2e-4);
    check_tuned("minilm", "w8a8", 0.99, 2e-3);
    check_tuned("distilbert", "lut6", 0.99, 2e-3);
    check_tuned("nomic-bert", "int4b32", 0.8, 5e-3);
    check_tuned("modernbert", "w8a8", 0.9, 5e-3);
}

/* Prefill of the first tokens by the packages, their keys and values into the states, then token after token by the decode
 * function: logits against ref's, and the same first choice wherever ref's lead is clear. */
static void check_decode(const char *name, const char *pack, uint64_t chunk, uint32_t min_chunks,
                         imp_ml_mode mode, double bound)
{
    enum { PROMPT = 6 };
    int32_t tok[N_TOK], pos[N_TOK];
    imp_net *net = open_net(name);
    imp_graph *g = net->generate;
    imp_ml_report r;
    imp_device *dev;
    imp_error err = {0};
    char path[256];
    imp_ml_options o = {.n_bucket = 1, .bucket = {16}, .decode = 24, .max_chunk = chunk};
    tokens(net, tok, pos, N_TOK);
    assert_true(imp_ml_packing_parse(pack, &o.pack));
    scratch(path, name);
    if (imp_ml_convert(g, path, &o, &r, &err) != IMP_OK) fail_msg("%s: %s", name, err.text);
    assert_true(r.n_chunk >= min_chunks && r.spec == 9);
    imp_exec *x = ref_exec_of(g, &dev);
    (void)ref_run(x, tok, pos, 0, PROMPT);
    imp_ml_runner *run = runner(g, &r, mode);
    if (imp_ml_runner_run(run, tok, NULL, PROMPT, &err) != IMP_OK) fail_msg("%s: %s", name, err.text);
    if (imp_ml_runner_fill(run, PROMPT, &err) != IMP_OK) fail_msg("%s: %s", name, err.text);
    for (uint32_t p = PROMPT; p < N_TOK; p++) {
        const float *got, *want = ref_run(x, tok + p, pos + p, p, 1);
        if (imp_ml_runner_decode(run, tok[p], p, &got, &err) != IMP_OK) fail_msg("%s: %s", name, err.text);
        double c = cosine(got, want, net->cfg.n_vocab);
        if (!(c >= bound))
            fail_msg("%s %s, position %u: cosine of logits %.7f, bound %.7f", name, pack, p, c, bound);
    }
    const float *none;
    assert_int_equal(imp_ml_runner_decode(run, tok[0], 24, &none, &err), IMP_TOO_LARGE);
    imp_ml_runner_free(run);
    dev->ops->exec_free(x);
    dev->ops->close(dev);
    clean(&r);
    imp_net_close(net);
}

static void decoders_decode(void **state)
{
    static const char *const names[] = {"llama", "llama.gguf", "llama3-rope", "mistral",
                                        "qwen2", "qwen3",      "gemma2",      "gemma3",
                                        "phi3",  "smollm",     "llama-mlx4"};
    (void)state;
    for (size_t i = 0; i < IMP_COUNT(names); i++) {
        check_decode(names[i], "fp16", 0, 1, IMP_ML_F32, 0.999999);
        check_decode(names[i], "fp16", 0, 1, IMP_ML_F16, 0.9998);
    }
    check_decode("llama", "fp16", 60000, 2, IMP_ML_F32, 0.999999);
    check_decode("gemma2", "lut8", 0, 1, IMP_ML_F32, 0.999);
}

static void refuses_what_it_cannot(void **state)
{
    imp_net *net = open_net("mixtral");
    imp_ml_report r;
    imp_error err = {0};
    char path[256];
    imp_ml_options o = {.n_bucket = 1, .bucket = {16}};
    (void)state;
    scratch(path, "no");
    assert_int_equal(imp_ml_convert(net->generate, path, &o, &r, &err), IMP_UNSUPPORTED);
    assert_non_null(strstr(err.text, "experts"));
    assert_int_not_equal(access(path, F_OK), 0); /* nothing was begun */
    imp_ml_report_deinit(&r);
    imp_net_close(net);
    net = open_net("minilm");
    o.n_bucket = 2, o.bucket[1] = 16;
    assert_int_equal(imp_ml_convert(net->embed, path, &o, &r, &err), IMP_INVALID);
    imp_ml_report_deinit(&r);
    o.bucket[1] = 32, o.spec = 8;
    assert_int_equal(imp_ml_convert(net->embed, path, &o, &r, &err), IMP_INVALID);
    assert_non_null(strstr(err.text, "version"));
    imp_ml_report_deinit(&r);
    imp_net_close(net);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(encoders_fp16),
                                       cmocka_unit_test(encoders_compressed),
                                       cmocka_unit_test(decoders_prefill),
                                       cmocka_unit_test(decoders_decode),
                                       cmocka_unit_test(decoders_go_on_elsewhere),
                                       cmocka_unit_test(encoders_tuned),
                                       cmocka_unit_test(refuses_what_it_cannot)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
