/* tests/model/lora.c - adapters: added to a running model they give what a model with merged weights gives.
 *
 * Idea:   for every architecture and both file forms of base and adapter: every linear layer and the embedding get a random
 *         pair; ref and cpu with the adapter are held to ref on weights into which the pair was merged by plain loops. The same
 *         PEFT adapter must also mean the same on a folder and on the GGUF file made of it, whose Q and K are permuted.
 *         What mlx-lm's own LoRA layers say is in tests/data/lora (tools/gen/lora_golden.py).
 * Bound:  as golden.c. */
#include "lora_file.h"

#include <dirent.h>

#include "fmt/safetensors.h"
#include "tensor/encode.h"

enum { N_TOKEN = 40 };
static const char *const root = "tests/data/models";

static const imp_graph *graph_of(const imp_net *net)
{
    return net->generate != NULL ? net->generate : net->embed;
}

static void make_ids(int32_t *ids, uint32_t n, uint32_t n_vocab, uint64_t seed)
{
    for (uint32_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        ids[i] = (int32_t)((seed >> 33) % n_vocab);
    }
}

/* The output of all tokens in steps of `piece`, of an encoder in one; [n_out][width], malloc'd. */
static float *outputs(const imp_graph *g, const char *device, const int32_t *ids, uint32_t n, uint32_t piece,
                      uint32_t rank, const imp_adapter_use *use, uint32_t n_use, uint64_t *n_float)
{
    run r;
    run_open_lora(&r, device, g, rank);
    r.use = use;
    r.n_use = n_use;
    bool decoder = imp_graph_n_kv_layer(g) > 0;
    uint64_t n_row = decoder ? n : 1;
    float *out = malloc(n_row * r.width * sizeof *out);
    assert_non_null(out);
    for (uint32_t first = 0; first < n; first += piece) {
        uint32_t k = decoder ? IMP_MIN(piece, n - first) : n, rows[N_TOKEN];
        for (uint32_t i = 0; i < k; i++) rows[i] = i;
        memcpy(out + first * r.width, run_step(&r, ids + first, k, rows, decoder ? k : 0),
               (decoder ? k : 1) * r.width * sizeof *out);
        if (!decoder) break;
    }
    *n_float = n_row * r.width;
    run_close(&r);
    return out;
}

/* Largest difference as a share of the largest wanted value. */
static double off(const float *have, const float *want, uint64_t n)
{
    double worst = 0, most = 0;
    for (uint64_t i = 0; i < n; i++) {
        if (!isfinite(have[i])) return INFINITY;
        worst = fmax(worst, fabs((double)have[i] - want[i]));
        most = fmax(most, fabs((double)want[i]));
    }
    return worst / most;
}

static void check_off(const char *what, const char *path, const float *have, const float *want, uint64_t n,
                      double bound)
{
    double d = off(have, want, n);
    if (!(d <= bound)) fail_msg("%s, %s: off by %g of the largest value, allowed %g", path, what, d, bound);
}

static const char *gguf_arch(const imp_net *net)
{
    return strcmp(net->cfg.arch, "modernbert") == 0 ? "modern-bert" : net->cfg.arch;
}

static void check_model(const char *path, bool gguf)
{
    imp_error err = {0};
    imp_net *net, *merged;
    lf_adapter f;
    imp_buf hold[2];
    check_ok(imp_net_open(path, 0, &net, &err), &err);
    check_ok(imp_net_open(path, 0, &merged, &err), &err);
    const imp_graph *g = graph_of(net);
    lf_make(&f, g, 6, 7);
    f.rslora = !gguf && strstr(path, "llama") != NULL;
    if (f.rslora) f.alpha = 4;
    imp_adapter *a = lf_open(&f, net, gguf, gguf_arch(net), hold);
    assert_int_equal(a->rank, 6);
    float scale = 0.75f;
    lf_merge(&f, (imp_graph *)(uintptr_t)graph_of(merged), scale);
    int32_t ids[N_TOKEN];
    make_ids(ids, N_TOKEN, net->cfg.n_vocab, 3);
    imp_adapter_use use = {a, scale};
    uint64_t n;
    double bound = strstr(path, "mlx4") ? 1e-2 : 2e-4;
    float *want = outputs(graph_of(merged), "ref", ids, N_TOKEN, N_TOKEN, 0, NULL, 0, &n);
    float *plain = outputs(g, "cpu", ids, N_TOKEN, N_TOKEN, 0, NULL, 0, &n);
    float *none = outputs(g, "cpu", ids, N_TOKEN, 13, 16, NULL, 0, &n);
    float *ref = outputs(g, "ref", ids, N_TOKEN, N_TOKEN, 16, &use, 1, &n);
    float *cpu = outputs(g, "cpu", ids, N_TOKEN, N_TOKEN, 16, &use, 1, &n);
    float *parts = outputs(g, "cpu", ids, N_TOKEN, 7, 6, &use, 1, &n);
    assert_true(off(plain, want, n) > 0.05); /* it changes something */
    assert_memory_equal(plain, none, n * sizeof *plain);
    check_off("ref", path, ref, want, n, 2e-4);
    check_off("cpu", path, cpu, want, n, bound);
    assert_memory_equal(cpu, parts, n * sizeof *cpu);
    free(want), free(plain), free(none), free(ref), free(cpu), free(parts);
    lf_close(a, hold);
    lf_free(&f);
    imp_net_close(net);
    imp_net_close(merged);
}

static void test_all_models(void **state)
{
    (void)state;
    DIR *d = opendir(root);
    assert_non_null(d);
    uint32_t n = 0;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        char path[400];
        snprintf(path, sizeof path, "%s/%s", root, e->d_name);
        size_t k = strlen(e->d_name);
        if (e->d_name[0] == '.') continue;
        check_model(path, k > 5 && strcmp(e->d_name + k - 5, ".gguf") == 0);
        n++;
    }
    closedir(d);
    assert_true(n >= 40);
}

/* ---- what another implementation says ------------------------------------------------------------------- */

static const imp_tensor *golden(const imp_safetensors *s, const char *key)
{
    const imp_tensor *t = imp_safetensors_get(s, key);
    if (t == NULL) fail_msg("golden.safetensors lacks %s", key);
    return t;
}

/* The folder's adapter on this base against its golden logits. */
static void check_golden(const char *folder, const char *base, const char *device)
{
    char path[200];
    imp_error err = {0};
    imp_safetensors *s;
    imp_net *net;
    imp_adapter *a;
    snprintf(path, sizeof path, "%s/golden.safetensors", folder);
    check_ok(imp_safetensors_open(path, &s, &err), &err);
    check_ok(imp_net_open(base, 0, &net, &err), &err);
    check_ok(imp_adapter_open(net, folder, &a, &err), &err);
    const imp_tensor *ids = golden(s, "ids"), *at = golden(s, "positions"), *want = golden(s, "logits");
    uint64_t n, n_at = at->dim[0], width = want->dim[1];
    float *have = outputs(net->generate, device, ids->data, (uint32_t)ids->dim[0], 13, 8,
                          &(imp_adapter_use){a, 0.75f}, 1, &n);
    assert_int_equal(n, ids->dim[0] * width);
    for (uint64_t i = 0; i < n_at; i++)
        check_off(device, base, have + (uint64_t)((const int32_t *)at->data)[i] * width,
                  (const float *)want->data + i * width, width, 2e-4);
    free(have);
    imp_adapter_unref(a);
    imp_net_close(net);
    imp_safetensors_close(s);
}

static void test_golden(void **state)
{
    (void)state;
    static const char *const name[] = {"llama", "qwen2", "qwen3", "phi3"};
    for (size_t i = 0; i < IMP_COUNT(name); i++) {
        char folder[200], base[200], file[208];
        snprintf(folder, sizeof folder, "tests/data/lora/%s", name[i]);
        snprintf(base, sizeof base, "%s/%s", root, name[i]);
        snprintf(file, sizeof file, "%s.gguf", base);
        check_golden(folder, base, "ref");
        check_golden(folder, base, "cpu");
        check_golden(folder, file, "ref");
        check_golden(folder, file, "cpu");
    }
}

/* ---- one adapter, two bases -------------------------------------------------------------------------------- */

static void check_across(const char *name)
{
    char folder[200], file[200];
    imp_error err = {0};
    imp_net *hf, *gg;
    lf_adapter f;
    imp_buf h1[2], h2[2], h3[2], h4[2];
    snprintf(folder, sizeof folder, "%s/%s", root, name);
    snprintf(file, sizeof file, "%s/%s.gguf", root, name);
    check_ok(imp_net_open(folder, 0, &hf, &err), &err);
    check_ok(imp_net_open(file, 0, &gg, &err), &err);
    int32_t ids[N_TOKEN];
    make_ids(ids, N_TOKEN, hf->cfg.n_vocab, 5);
    uint64_t n;
    lf_make(&f, graph_of(hf), 4, 11); /* PEFT */
    imp_adapter *a = lf_open(&f, hf, false, "", h1), *b = lf_open(&f, gg, false, "", h2);
    float *x = outputs(graph_of(hf), "cpu", ids, N_TOKEN, N_TOKEN, 8, &(imp_adapter_use){a, 1}, 1, &n);
    float *y = outputs(graph_of(gg), "cpu", ids, N_TOKEN, N_TOKEN, 8, &(imp_adapter_use){b, 1}, 1, &n);
    check_off("PEFT on GGUF", file, y, x, n, 2e-4);
    lf_free(&f);
    free(x), free(y);
    lf_make(&f, graph_of(gg), 4, 12); /* GGUF */
    imp_adapter *c = lf_open(&f, gg, true, gguf_arch(gg), h3), *e = lf_open(&f, hf, true, gguf_arch(gg), h4);
    x = outputs(graph_of(gg), "cpu", ids, N_TOKEN, N_TOKEN, 8, &(imp_adapter_use){c, 1}, 1, &n);
    y = outputs(graph_of(hf), "cpu", ids, N_TOKEN, N_TOKEN, 8, &(imp_adapter_use){e, 1}, 1, &n);
    check_off("GGUF on a folder", folder, y, x, n, 2e-4);
    free(x), free(y);
    lf_free(&f);
    lf_close(a, h1), lf_close(b, h2), lf_close(c, h3), lf_close(e, h4);
    imp_net_close(hf);
    imp_net_close(gg);
}

static void test_across(void **state)
{
    (void)state;
    static const char *const name[] = {"llama",  "llama3-rope", "smollm", "qwen2",      "qwen3",
                                       "gemma3", "phi3",        "bert",   "nomic-bert", "modernbert"};
    for (size_t i = 0; i < IMP_COUNT(name); i++) check_across(name[i]);
}

/* ---- batches ------------------------------------------------------------------------------------------------ */

/* Every matrix becomes blocks of this type, where its rows are whole blocks. Their memory is added to held. */
static void quantise(imp_graph *g, imp_dtype t, void *held[LF_MAX], uint32_t *n_held)
{
    imp_error err = {0};
    const imp_dtype_info *d = imp_dtype_get(t);
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        const imp_node *w = imp_graph_node(g, v);
        if (w->op != IMP_OP_WEIGHT || w->u.weight.n_part != 1) continue;
        const imp_tensor *from = w->u.weight.part;
        if (from->n_dim != 2 || from->dim[1] % d->block_elem != 0) continue;
        uint64_t n = from->dim[0], k = from->dim[1];
        imp_tensor to = {.dtype = t, .n_dim = 2, .dim = {n, k, 1, 1}};
        uint64_t row = imp_tensor_row_bytes(&to);
        uint8_t *data = malloc(n * row);
        float *x = malloc(k * sizeof *x);
        assert_true(data != NULL && x != NULL && *n_held < LF_MAX);
        held[(*n_held)++] = data;
        for (uint64_t r = 0; r < n; r++) {
            imp_tensor_row_f32(from, r, x);
            d->from_f32(x, NULL, data + r * row, k);
        }
        free(x);
        to.data = data;
        check_ok(imp_graph_rebind(g, v, &to, &err), &err);
    }
}

enum { N_SEQ = 6, N_PROMPT = 9, MAX_TOK = N_SEQ * N_PROMPT };

typedef struct mix {
    imp_adapter_use use[2];
    uint32_t n_use;
} mix;

/* Logits after each sequence's prompt and two more steps of one token, all together or each alone: [seq][3][width]. */
static float *mixed(const imp_graph *g, const char *device, const mix *m, bool together, uint64_t *width)
{
    imp_error err = {0};
    imp_device *dev;
    imp_exec *x;
    check_ok(imp_dev_open(device, 2, &dev, &err), &err);
    imp_limits lim = {.max_tok = MAX_TOK,
                      .max_seq = N_SEQ,
                      .max_out = N_SEQ,
                      .max_ctx = 64,
                      .n_kv_block = N_SEQ,
                      .kv_dtype = IMP_F16,
                      .lora_rank = 24};
    check_ok(dev->ops->compile(dev, g, &lim, &x, &err), &err);
    uint64_t w = *width = imp_graph_node(g, imp_graph_output(g))->width;
    float *out = malloc(N_SEQ * 3 * w * sizeof *out);
    assert_non_null(out);
    uint32_t per = together ? N_SEQ : 1;
    for (uint32_t first = 0; first < N_SEQ; first += per)
        for (uint32_t step = 0; step < 3; step++) {
            int32_t token[MAX_TOK], pos[MAX_TOK];
            imp_batch_seq seq[N_SEQ];
            uint32_t rows[N_SEQ], block[N_SEQ];
            imp_batch b = {
                .token = token, .pos = pos, .seq = seq, .out_row = rows, .n_seq = per, .n_out = per};
            for (uint32_t i = 0; i < per; i++) {
                uint32_t s = first + i, past = step == 0 ? 0 : N_PROMPT + step - 1,
                         n = step == 0 ? N_PROMPT : 1;
                block[i] = s;
                seq[i] = (imp_batch_seq){.first_tok = b.n_tok,
                                         .n_tok = n,
                                         .n_past = past,
                                         .block = &block[i],
                                         .use = m[s].use,
                                         .n_use = m[s].n_use};
                for (uint32_t t = 0; t < n; t++, b.n_tok++) {
                    token[b.n_tok] = (int32_t)((s * 31 + (past + t) * 17) % 280);
                    pos[b.n_tok] = (int32_t)(past + t);
                }
                rows[i] = b.n_tok - 1;
            }
            const float *y;
            check_ok(dev->ops->run(x, &b, &y, &err), &err);
            for (uint32_t i = 0; i < per; i++)
                memcpy(out + ((first + i) * 3 + step) * w, y + i * w, w * sizeof *out);
        }
    dev->ops->exec_free(x);
    dev->ops->close(dev);
    return out;
}

static void check_mixed(imp_dtype type)
{
    imp_error err = {0};
    imp_net *net;
    lf_adapter f[3];
    imp_buf hold[3][2];
    imp_adapter *a[3];
    void *held[LF_MAX];
    uint32_t n_held = 0;
    check_ok(imp_net_open("tests/data/models/llama.gguf", 0, &net, &err), &err);
    if (type != IMP_F32) quantise(net->generate, type, held, &n_held);
    for (uint32_t i = 0; i < 3; i++) {
        lf_make(&f[i], net->generate, 3 + 5 * i, 100 + i);
        a[i] = lf_open(&f[i], net, true, "llama", hold[i]);
    }
    mix m[N_SEQ] = {{{{a[0], 1}}, 1},
                    {{{0}}, 0},
                    {{{a[1], 0.5f}}, 1},
                    {{{a[1], 0.5f}}, 1},
                    {{{a[2], 1}, {a[0], -0.25f}}, 2},
                    {{{a[1], 2}}, 1}};
    uint64_t w;
    float *ref = mixed(net->generate, "ref", m, true, &w);
    float *all = mixed(net->generate, "cpu", m, true, &w), *alone = mixed(net->generate, "cpu", m, false, &w);
    float *one = mixed(net->generate, "cpu", m, true, &w);
    assert_memory_equal(all, alone, N_SEQ * 3 * w * sizeof *all);
    assert_memory_equal(all, one, N_SEQ * 3 * w * sizeof *all);
    check_off("mixed", imp_dtype_get(type)->name, all, ref, N_SEQ * 3 * w, type == IMP_F32 ? 2e-3 : 8e-2);
    free(ref), free(all), free(alone), free(one);
    for (uint32_t i = 0; i < 3; i++) {
        lf_close(a[i], hold[i]);
        lf_free(&f[i]);
    }
    imp_net_close(net);
    for (uint32_t i = 0; i < n_held; i++) free(held[i]);
}

/* Rows of several adapters, of two at once, and of none, in one step: each has the bits that it has alone. */
static void test_mixed(void **state)
{
    (void)state;
    check_mixed(IMP_F32);
    check_mixed(IMP_Q8_0);
    check_mixed(IMP_Q4_0);
}

/* ---- refusals ------------------------------------------------------------------------------------------------- */

static imp_net *g_net;

static void refused(imp_buf b, const char *words)
{
    imp_error err = {0};
    imp_adapter *a = NULL;
    imp_status s = imp_adapter_from_gguf(g_net, (const uint8_t *)b.data, b.n, &a, &err);
    if (s == IMP_OK || a != NULL) fail_msg("taken, though %s", words);
    if (strstr(err.text, words) == NULL) fail_msg("\"%s\" does not say \"%s\"", err.text, words);
    imp_buf_deinit(&b);
}

static void refused_peft(const char *config, imp_buf tensors, const char *words)
{
    imp_error err = {0};
    imp_adapter *a = NULL;
    imp_status s = imp_adapter_from_peft(g_net, config, strlen(config), (const uint8_t *)tensors.data,
                                         tensors.n, &a, &err);
    if (s == IMP_OK || a != NULL) fail_msg("taken, though %s", words);
    if (strstr(err.text, words) == NULL) fail_msg("\"%s\" does not say \"%s\"", err.text, words);
    imp_buf_deinit(&tensors);
}

/* The bytes `from` become `to`, of one length. */
static imp_buf changed(imp_buf b, const char *from, const char *to)
{
    char *at = memmem(b.data, b.n, from, strlen(from));
    assert_non_null(at);
    assert_int_equal(strlen(from), strlen(to));
    memcpy(at, to, strlen(to));
    return b;
}

static void test_refuses(void **state)
{
    (void)state;
    imp_error err = {0};
    lf_adapter f;
    check_ok(imp_net_open("tests/data/models/llama.gguf", 0, &g_net, &err), &err);
    lf_make(&f, g_net->generate, 4, 9);
    refused(changed(lf_gguf(&f, "llama"), "adapter.type", "adapter.typo"), "only \"lora\"");
    refused(changed(lf_gguf(&f, "llama"), "\7\0\0\0\0\0\0\0adapter" + 8, "adopter"), "no adapter");
    refused(lf_gguf(&f, "qwen3"), "made for a qwen3 model");
    refused(lf_gguf(&f, "gpt2"), "made for a gpt2 model");
    refused(changed(lf_gguf(&f, "llama"), "blk.1.attn_k.weight.lora_b", "blk.1.attn_k.weight.lora_c"),
            "no half");
    refused(changed(lf_gguf(&f, "llama"), "blk.1.attn_k.weight.lora_b", "blk.7.attn_k.weight.lora_b"),
            "belongs to nothing");
    refused(changed(lf_gguf(&f, "llama"), "blk.1.attn_k.weight.lora_b", "blk.1.attn_m.weight.lora_b"),
            "belongs to nothing");
    lf_adapter half = f;
    half.alpha = INFINITY;
    refused(lf_gguf(&half, "llama"), "adapter.lora.alpha");
    half = f;
    half.pair[2].b[1] = NAN;
    refused(lf_gguf(&half, "llama"), "not all finite");
    half.pair[2].b[1] = 0;
    half.pair[2].a[0] = INFINITY;
    refused(lf_gguf(&half, "llama"), "not all finite");
    half.pair[2].a[0] = 0;
    half.pair[3].k -= 1; /* another base */
    refused(lf_gguf(&half, "llama"), "does not belong to this model");
    half = f;
    half.n = 0;
    refused(lf_gguf(&half, "llama"), "no tensors");
    imp_buf b = lf_gguf(&f, "llama");
    b.n -= 100;
    refused(b, "");
    lf_free(&f);
    imp_net_close(g_net);
}

static void test_refuses_peft(void **state)
{
    (void)state;
    imp_error err = {0};
    lf_adapter f;
    check_ok(imp_net_open("tests/data/models/llama", 0, &g_net, &err), &err);
    lf_make(&f, g_net->generate, 4, 9);
#define BASE "\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8"
    static const struct {
        const char *config, *words;
    } bad[] = {
        {"{}", "no peft_type"},
        {"{\"peft_type\":\"IA3\"}", "'IA3'"},
        {"{\"peft_type\":\"LORA\",\"r\":0,\"lora_alpha\":8}", "'r' is no rank"},
        {"{\"peft_type\":\"LORA\",\"r\":4}", "lora_alpha"},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":1e300}", "too large for a scale"},
        {"{" BASE ",\"use_dora\":true}", "DoRA"},
        {"{" BASE ",\"bias\":\"all\"}", "biases"},
        {"{" BASE ",\"modules_to_save\":[\"lm_head\"]}", "'modules_to_save' is set"},
        {"{" BASE ",\"init_lora_weights\":\"pissa\"}", "changes the base"},
        {"{" BASE ",\"a_new_thing\":1}", "'a_new_thing' is set"},
        {"{" BASE ",\"rank_pattern\":{\"q_.*\":8}}", "regular expression"},
        {"{" BASE ",\"rank_pattern\":{\"q_proj\":8}}", "says rank 8"},
        {"{\"peft_type\":\"LORA\",\"r\":5,\"lora_alpha\":8}", "says rank 5"},
        {"[]", "JSON object"},
        {"{", ""},
    };
    for (size_t i = 0; i < IMP_COUNT(bad); i++)
        refused_peft(bad[i].config, lf_peft_tensors(&f), bad[i].words);
    refused_peft("{" BASE "}", changed(lf_peft_tensors(&f), "q_proj.lora_A.weight", "q_proj.lora_M.weight"),
                 "no half");
    refused_peft("{" BASE "}", changed(lf_peft_tensors(&f), "q_proj.lora_A.weight", "z_proj.lora_A.weight"),
                 "belongs to nothing");
    lf_free(&f);
    imp_net_close(g_net);
}

/* alpha_pattern and rank_pattern by the end of a module's name. */
static void test_patterns(void **state)
{
    (void)state;
    imp_error err = {0};
    imp_net *net;
    lf_adapter f;
    imp_adapter *a;
    static const char config[] =
        "{" BASE ",\"alpha_pattern\":{\"q_proj\":16,\"layers.1.mlp.up_proj\":2,\"proj\":99}}";
    check_ok(imp_net_open("tests/data/models/llama", 0, &net, &err), &err);
    lf_make(&f, net->generate, 4, 9);
    imp_buf t = lf_peft_tensors(&f);
    check_ok(imp_adapter_from_peft(net, config, strlen(config), (const uint8_t *)t.data, t.n, &a, &err),
             &err);
    for (imp_val v = 1; v <= imp_graph_n(net->generate); v++) {
        const imp_adapter_part *p = imp_adapter_at(a, net->generate, v);
        const imp_node *n = imp_graph_node(net->generate, v);
        if (p == NULL) continue;
        const char *name = imp_graph_node(net->generate, n->in[n->op == IMP_OP_EMBED ? 0 : 1])->name;
        float want = strstr(name, "q_proj") ? 4.0f : strstr(name, "layers.1.mlp.up_proj") ? 0.5f : 2.0f;
        assert_true(p->scale > want - 1e-6f && p->scale < want + 1e-6f);
    }
    imp_adapter_unref(a);
    imp_buf_deinit(&t);
    lf_free(&f);
    imp_net_close(net);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_models), cmocka_unit_test(test_golden),
        cmocka_unit_test(test_across),     cmocka_unit_test(test_mixed),
        cmocka_unit_test(test_refuses),    cmocka_unit_test(test_refuses_peft),
        cmocka_unit_test(test_patterns),
    };
    return cmocka_run_group_tests_name("model/lora", tests, NULL, NULL);
}
