/* tests/model/variants.c - other spellings of the same model give the same result; and what the configuration reports.
 *
 * Idea: altered copies of the tiny models that must compute what their golden says: names with and without prefixes, old
 *       BERT names, newer forms of RoPE and layer lists, buffers that are left out, one tensor an expert in GGUF. */
#include "patch.h"

#include "fmt/safetensors.h"

typedef struct variant {
    const char *title, *model;
    folder_patch patch;
} variant;

static const variant variants[] = {
    {"unchanged", "llama", {0}},
    {"without the prefix model.", "llama", {.from = "model.", .to = ""}},
    {"with language_model. before it", "llama", {.from = "model.", .to = "language_model.model."}},
    {"rotary buffer", "llama", {.extra = "model.layers.1.self_attn.rotary_emb.inv_freq"}},
    {"tied output that is there all the same", "smollm", {.extra = "lm_head.weight"}},
    {"RoPE as rope_parameters",
     "llama3-rope",
     {.config = "{\"rope_scaling\":null,\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":10000.0,"
                "\"factor\":8.0,"
                "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":64}}",
      .remove = "rope_theta"}},
    {"RoPE by layer type",
     "gemma3",
     {.config = "{\"rope_scaling\":null,\"rope_theta\":7,\"rope_local_base_freq\":7,\"rope_parameters\":{"
                "\"full_attention\":{\"rope_type\":\"linear\",\"factor\":4.0,\"rope_theta\":1000000.0},"
                "\"sliding_attention\":{\"rope_type\":\"default\",\"rope_theta\":10000.0}}}"}},
    {"layers by name",
     "gemma2",
     {.config = "{\"layer_types\":[\"sliding_attention\",\"full_attention\",\"sliding_attention\",\"full_"
                "attention\"]}"}},
    {"layers by name over the pattern",
     "gemma3",
     {.config = "{\"sliding_window_pattern\":2,\"layer_types\":[\"sliding_attention\",\"sliding_attention\","
                "\"sliding_attention\",\"sliding_attention\",\"sliding_attention\",\"full_attention\","
                "\"sliding_attention\"]}"}},
    {"default base", "llama", {.remove = "rope_theta"}},
    {"default base of Mixtral", "mixtral", {.remove = "rope_theta"}},
    {"Gemma 3's default global base", "gemma3", {.remove = "rope_theta"}},
    {"Gemma 3's default local base", "gemma3", {.remove = "rope_local_base_freq"}},
    {"Gemma 3's default pattern", "gemma3", {.remove = "sliding_window_pattern"}},
    {"Gemma's default tying", "gemma2", {.remove = "tie_word_embeddings"}},
    {"ModernBERT's default pattern", "modernbert", {.remove = "global_attn_every_n_layers"}},
    {"ModernBERT's default global base", "modernbert", {.remove = "global_rope_theta"}},
    {"ModernBERT's default local base", "modernbert", {.remove = "local_rope_theta"}},
    {"nomic-bert's default base", "nomic-bert", {.remove = "rotary_emb_base"}},
    {"a window that is switched off",
     "qwen3",
     {.config = "{\"sliding_window\":4,\"use_sliding_window\":false,\"max_window_layers\":0}"}},
    {"yarn with its defaults spelled out",
     "llama-yarn",
     {.config =
          "{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"original_max_position_embeddings\":64,"
          "\"beta_fast\":32,"
          "\"beta_slow\":1,\"attention_factor\":1.1386294361119891,\"truncate\":true,\"mscale\":null}}"}},
    {"yarn with mscale",
     "llama-yarn",
     {.config = "{\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"original_max_position_embeddings\":64,"
                "\"mscale\":1.0,\"mscale_all_dim\":1e-30}}"}},
    {"BERT with a prefix", "bert", {.from = "embeddings", .to = "bert.embeddings"}},
    {"BERT with gamma", "bert", {.from = "LayerNorm.weight", .to = "LayerNorm.gamma"}},
    {"BERT with beta", "minilm", {.from = "LayerNorm.bias", .to = "LayerNorm.beta"}},
    {"BERT with a head", "bert", {.extra = "cls.predictions.bias"}},
    {"BERT with position_ids", "bert", {.extra = "embeddings.position_ids"}},
};

/* Row `row` of the golden against what the opened net computes for its ids. */
static void check_same(const imp_net *net, const char *model)
{
    char path[256];
    imp_safetensors *s;
    imp_error err = {0};
    snprintf(path, sizeof path, "tests/data/models/%s/golden.safetensors", model);
    check_ok(imp_safetensors_open(path, &s, &err), &err);
    const imp_tensor *ids = imp_safetensors_get(s, "ids"), *want = imp_safetensors_get(s, "embedding");
    const int32_t *id = ids->data;
    uint32_t n = (uint32_t)ids->dim[0], last = n - 1;
    if (want) { /* the longest input is the last row */
        id += (ids->dim[0] - 1) * ids->dim[1];
        n = (uint32_t)ids->dim[1];
    }
    run r;
    run_open(&r, "ref", want ? net->embed : net->generate);
    const float *have = run_step(&r, id, n, &last, want ? 0 : 1);
    if (!want) want = imp_safetensors_get(s, "logits");
    const float *w = (const float *)want->data + (want->dim[0] - 1) * r.width;
    float top = 0, worst = 0;
    double norm = 0, want_norm = 0;
    for (uint64_t i = 0; i < r.width; i++)
        norm += (double)have[i] * have[i], want_norm += (double)w[i] * w[i];
    float c = net->embed && fabs(want_norm - 1) < 1e-4 ? (float)(1 / sqrt(norm)) : 1;
    for (uint64_t i = 0; i < r.width; i++) {
        top = fmaxf(top, fabsf(w[i]));
        worst = fmaxf(worst, fabsf(have[i] * c - w[i]));
    }
    if (!(worst <= 2e-4f * top)) fail_msg("off by %g of %g", (double)worst, (double)top);
    run_close(&r);
    imp_safetensors_close(s);
}

static void test_variant(void **state)
{
    const variant *v = *state;
    char path[256];
    make_folder(v->model, &v->patch, path, sizeof path);
    imp_net *net;
    imp_error err = {0};
    check_ok(imp_net_open(path, 0, &net, &err), &err);
    check_same(net, v->model);
    imp_net_close(net);
}

/* ---- experts one by one in GGUF ------------------------------------------------------------------- */

typedef struct cursor {
    const uint8_t *p;
    size_t at;
} cursor;

static uint64_t take(cursor *c, size_t n)
{
    uint64_t v = 0;
    memcpy(&v, c->p + c->at, n);
    c->at += n;
    return v;
}

static void skip_value(cursor *c, uint32_t type)
{
    static const uint8_t size[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type == 8) {
        uint64_t n = take(c, 8);
        c->at += n;
    } else if (type == 9) {
        uint32_t elem = (uint32_t)take(c, 4);
        for (uint64_t n = take(c, 8); n > 0; n--) skip_value(c, elem);
    } else {
        c->at += size[type];
    }
}

static void put(imp_buf *b, uint64_t v, size_t n)
{
    imp_buf_add(b, &v, n);
}

/* One tensor's entry of the directory. */
static void put_info(imp_buf *b, const char *name, uint32_t n_dim, const uint64_t *dim, uint32_t type,
                     uint64_t offset)
{
    put(b, strlen(name), 8);
    imp_buf_str(b, name);
    put(b, n_dim, 4);
    for (uint32_t i = 0; i < n_dim; i++) put(b, dim[i], 8);
    put(b, type, 4);
    put(b, offset, 8);
}

/* The same file with blk.N.ffn_X_exps.weight [e][n][k] (f32) listed as blk.N.ffn_X.E.weight [n][k]. */
static void split_experts(const char *from, const char *to)
{
    size_t n = 0;
    uint8_t *file = read_all(from, &n);
    assert_non_null(file);
    cursor c = {.p = file, .at = 8};
    uint64_t n_tensor = take(&c, 8), n_kv = take(&c, 8), n_out = 0;
    for (uint64_t i = 0; i < n_kv; i++) {
        uint64_t n_key = take(&c, 8);
        c.at += n_key;
        skip_value(&c, (uint32_t)take(&c, 4));
    }
    imp_buf head = {0}, infos = {0};
    imp_buf_add(&head, file, c.at);
    for (uint64_t i = 0; i < n_tensor; i++) {
        char name[80], part[120];
        uint64_t n_name = take(&c, 8), dim[4] = {0};
        snprintf(name, sizeof name, "%.*s", (int)n_name, (const char *)file + c.at);
        c.at += n_name;
        uint32_t n_dim = (uint32_t)take(&c, 4);
        for (uint32_t d = 0; d < n_dim; d++) dim[d] = take(&c, 8);
        uint32_t type = (uint32_t)take(&c, 4);
        uint64_t offset = take(&c, 8);
        const char *hit = strstr(name, "_exps.weight");
        uint64_t n_part = hit ? dim[2] : 1;
        for (uint64_t e = 0; e < n_part; e++, n_out++) {
            snprintf(part, sizeof part, "%.*s.%u.weight", (int)(hit ? hit - name : 0), name, (unsigned)e);
            put_info(&infos, hit ? part : name, hit ? 2 : n_dim, dim, type, offset + e * dim[0] * dim[1] * 4);
        }
    }
    imp_buf_add(&head, infos.data, infos.n);
    memcpy(head.data + 8, &n_out, 8);
    while (head.n % 32) put(&head, 0, 1);
    size_t data = (c.at + 31) / 32 * 32;
    imp_buf_add(&head, file + data, n - data);
    write_all(to, head.data, head.n);
    imp_buf_deinit(&head);
    imp_buf_deinit(&infos);
    free(file);
}

static void test_split_experts(void **state)
{
    (void)state;
    char path[256];
    snprintf(path, sizeof path, "%s/split.gguf", patch_dir);
    split_experts("tests/data/models/mixtral.gguf", path);
    imp_net *net;
    imp_error err = {0};
    check_ok(imp_net_open(path, 0, &net, &err), &err);
    check_same(net, "mixtral");
    imp_net_close(net);
}

/* ---- what is reported -------------------------------------------------------------------------------- */

static imp_net *open_net(const char *path)
{
    imp_net *net;
    imp_error err = {0};
    check_ok(imp_net_open(path, 0, &net, &err), &err);
    return net;
}

static void test_report_decoder(void **state)
{
    (void)state;
    imp_net *net = open_net("tests/data/models/qwen3-moe.gguf");
    const imp_net_config *c = &net->cfg;
    assert_string_equal(c->arch, "qwen3moe");
    assert_string_equal(c->type, "f32");
    assert_int_equal(c->n_layer, 2);
    assert_int_equal(c->n_embd, 64);
    assert_int_equal(c->n_head, 4);
    assert_int_equal(c->n_kv_head, 2);
    assert_int_equal(c->head_dim, 16);
    assert_int_equal(c->n_ff, 32);
    assert_int_equal(c->n_vocab, 288);
    assert_int_equal(c->n_ctx_train, 512);
    assert_true(c->can_generate && !c->can_embed && c->embed_dim == 0);
    assert_null(net->embed);
    assert_int_equal(imp_graph_n_kv_layer(net->generate), 2);
    imp_net_close(net);

    net = open_net("tests/data/models/qwen3-moe-mlx4");
    assert_string_equal(net->cfg.type, "affine4g32");
    assert_string_equal(net->cfg.name, "qwen3-moe-mlx4");
    imp_net_close(net);
}

/* 2 layers of q 64x64, k, v 32x64, o 64x64, gate, up, down 96x64, two norms of 64; embedding and output 288x64, norm. */
static void test_report_params(void **state)
{
    (void)state;
    const uint64_t want = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64 + 2 * 64) + 2 * 288 * 64 + 64;
    static const char *const forms[] = {"tests/data/models/llama", "tests/data/models/llama.gguf",
                                        "tests/data/models/llama-mlx4"};
    for (size_t i = 0; i < IMP_COUNT(forms); i++) {
        imp_net *net = open_net(forms[i]);
        assert_int_equal(net->cfg.n_param, want);
        assert_true(net->cfg.file_bytes > 1000);
        imp_net_close(net);
    }
}

static void test_report_embedding(void **state)
{
    (void)state;
    static const struct {
        const char *path;
        imp_pool_kind pool;
        bool normalize, types, generates;
        uint32_t n_ctx;
    } cases[] = {
        {"tests/data/models/bert", IMP_POOL_MEAN, false, true, false, 128},
        {"tests/data/models/minilm", IMP_POOL_MEAN, true, true, false, 128},
        {"tests/data/models/minilm.gguf", IMP_POOL_MEAN, true, true, false, 128},
        {"tests/data/models/distilbert", IMP_POOL_MEAN, false, false, false, 128},
        {"tests/data/models/xlm-roberta", IMP_POOL_CLS, true, true, false, 128},
        {"tests/data/models/xlm-roberta.gguf", IMP_POOL_CLS, true, true, false, 128},
        {"tests/data/models/nomic-bert", IMP_POOL_MEAN, false, true, false, 2048},
        {"tests/data/models/modernbert.gguf", IMP_POOL_CLS, true, false, false, 512},
        {"tests/data/models/qwen3-embedding", IMP_POOL_LAST, true, false, true, 512},
        {"tests/data/models/qwen3-embedding.gguf", IMP_POOL_LAST, true, false, true, 512},
    };
    for (size_t i = 0; i < IMP_COUNT(cases); i++) {
        imp_net *net = open_net(cases[i].path);
        const imp_net_config *c = &net->cfg;
        if (c->pool != cases[i].pool || c->normalize != cases[i].normalize ||
            c->has_types != cases[i].types || c->can_generate != cases[i].generates ||
            c->n_ctx_train != cases[i].n_ctx || !c->can_embed || c->embed_dim != c->n_embd)
            fail_msg("%s: pool %d normalize %d types %d generates %d context %u", cases[i].path, c->pool,
                     c->normalize, c->has_types, c->can_generate, c->n_ctx_train);
        imp_net_close(net);
    }
}

static void test_no_pooling_files(void **state)
{
    (void)state;
    char path[256];
    make_folder("bert", &(folder_patch){.no_pooling = true}, path, sizeof path);
    imp_net *net = open_net(path);
    assert_int_equal(net->cfg.pool, IMP_POOL_MEAN);
    assert_true(net->cfg.normalize && !net->cfg.matryoshka);
    imp_net_close(net);
    make_folder("bert", &(folder_patch){.config = "{\"matryoshka_dimensions\":[32,64]}"}, path, sizeof path);
    net = open_net(path);
    assert_true(net->cfg.matryoshka);
    imp_net_close(net);
}

static bool has_eos(const imp_net *net, int32_t id)
{
    for (uint32_t i = 0; i < net->cfg.n_eos; i++)
        if (net->cfg.eos[i] == id) return true;
    return false;
}

static void test_eos(void **state)
{
    (void)state;
    /* llama3: <|end_of_text|> and <|eot_id|>, both in generation_config; gemma's <end_of_turn> is known by its spelling */
    imp_net *net = open_net("tests/data/models/llama3-rope");
    assert_true(has_eos(net, 281) && has_eos(net, 284) && net->cfg.n_eos == 2);
    imp_net_close(net);
    net = open_net("tests/data/models/llama3-rope.gguf");
    assert_true(has_eos(net, 281) && has_eos(net, 284) && net->cfg.n_eos == 2);
    imp_net_close(net);
    net = open_net("tests/data/models/gemma3.gguf");
    assert_true(has_eos(net, 281) && has_eos(net, 285) && net->cfg.n_eos == 2);
    imp_net_close(net);
    net = open_net("tests/data/models/qwen3.gguf");
    assert_true(has_eos(net, 280) && has_eos(net, 282) && net->cfg.n_eos == 2);
    imp_net_close(net);
}

int main(void)
{
    static const struct CMUnitTest fixed[] = {
        cmocka_unit_test(test_split_experts),    cmocka_unit_test(test_report_decoder),
        cmocka_unit_test(test_report_params),    cmocka_unit_test(test_report_embedding),
        cmocka_unit_test(test_no_pooling_files), cmocka_unit_test(test_eos),
    };
    static struct CMUnitTest tests[IMP_COUNT(variants) + IMP_COUNT(fixed)];
    size_t n = 0;
    for (size_t i = 0; i < IMP_COUNT(variants); i++)
        tests[n++] = (struct CMUnitTest){
            .name = variants[i].title, .test_func = test_variant, .initial_state = (void *)&variants[i]};
    for (size_t i = 0; i < IMP_COUNT(fixed); i++) tests[n++] = fixed[i];
    return _cmocka_run_group_tests("model variants", tests, n, patch_begin, patch_end);
}
