/* tests/model/refuse.c - what is not understood is refused, and the sentence names it.
 *
 * Idea: altered copies of the tiny models, one fault each. The same copies without the fault load (variants.c), so a
 *       refusal here comes from the fault. */
#include "patch.h"

typedef struct folder_case {
    const char *title, *model;
    folder_patch patch;
    imp_status want;
    const char *says; /* part of the sentence */
} folder_case;

static const folder_case folders[] = {
    {"architecture", "llama", {.config = "{\"model_type\":\"mamba\"}"}, IMP_UNSUPPORTED, "mamba"},
    {"no architecture", "llama", {.remove = "model_type"}, IMP_FORMAT, "model_type"},
    {"RoPE type",
     "llama",
     {.config = "{\"rope_scaling\":{\"rope_type\":\"spiral\",\"factor\":2}}"},
     IMP_UNSUPPORTED,
     "spiral"},
    {"dynamic RoPE",
     "llama",
     {.config = "{\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}"},
     IMP_UNSUPPORTED,
     "dynamic"},
    {"RoPE parameter",
     "llama",
     {.config = "{\"rope_scaling\":{\"type\":\"linear\",\"factor\":2,\"mrope_section\":[1]}}"},
     IMP_UNSUPPORTED,
     "mrope_section"},
    {"RoPE factor missing",
     "llama",
     {.config = "{\"rope_scaling\":{\"type\":\"linear\"}}"},
     IMP_FORMAT,
     "factor"},
    {"RoPE factor 0",
     "llama",
     {.config = "{\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}}"},
     IMP_FORMAT,
     "factor"},
    {"RoPE base 0", "llama", {.config = "{\"rope_theta\":0}"}, IMP_FORMAT, "base"},
    {"llama3 factors",
     "llama3-rope",
     {.config = "{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,"
                "\"low_freq_factor\":4,\"high_freq_factor\":1,\"original_max_position_embeddings\":64}}"},
     IMP_FORMAT,
     "low_freq_factor"},
    {"longrope list",
     "phi3-longrope",
     {.config = "{\"rope_scaling\":{\"type\":\"longrope\",\"long_factor\":[1,2],"
                "\"short_factor\":[1,2]}}"},
     IMP_FORMAT,
     "factors"},
    {"longrope uneven lists",
     "phi3-longrope",
     {.config = "{\"rope_scaling\":{\"type\":\"longrope\","
                "\"long_factor\":[1,2],\"short_factor\":[1]}}"},
     IMP_FORMAT,
     "short_factor"},
    {"activation", "llama", {.config = "{\"hidden_act\":\"xielu\"}"}, IMP_UNSUPPORTED, "xielu"},
    {"quantisation",
     "llama",
     {.config = "{\"quantization_config\":{\"quant_method\":\"gptq\"}}"},
     IMP_UNSUPPORTED,
     "gptq"},
    {"layer type",
     "qwen3",
     {.config = "{\"layer_types\":[\"full_attention\",\"linear_attention\"]}"},
     IMP_UNSUPPORTED,
     "linear_attention"},
    {"layer types too few",
     "qwen3",
     {.config = "{\"layer_types\":[\"full_attention\"]}"},
     IMP_FORMAT,
     "layer_types"},
    {"window without size",
     "qwen3",
     {.config = "{\"layer_types\":[\"full_attention\",\"sliding_attention\"]}"},
     IMP_FORMAT,
     "window"},
    {"heads 0", "llama", {.config = "{\"num_attention_heads\":0}"}, IMP_FORMAT, "num_attention_heads"},
    {"heads negative",
     "llama",
     {.config = "{\"num_attention_heads\":-4}"},
     IMP_FORMAT,
     "num_attention_heads"},
    {"heads text", "llama", {.config = "{\"num_attention_heads\":\"4\"}"}, IMP_FORMAT, "num_attention_heads"},
    {"kv heads uneven", "llama", {.config = "{\"num_key_value_heads\":3}"}, IMP_FORMAT, "key-value heads"},
    {"layers 2^31",
     "llama",
     {.config = "{\"num_hidden_layers\":2147483648}"},
     IMP_FORMAT,
     "num_hidden_layers"},
    {"layers 2^63-1",
     "llama",
     {.config = "{\"num_hidden_layers\":9223372036854775807}"},
     IMP_FORMAT,
     "num_hidden_layers"},
    {"layers missing", "llama", {.remove = "num_hidden_layers"}, IMP_FORMAT, "num_hidden_layers"},
    {"more layers than tensors", "llama", {.config = "{\"num_hidden_layers\":3}"}, IMP_FORMAT, "layers.2."},
    {"fewer layers than tensors",
     "llama",
     {.config = "{\"num_hidden_layers\":1}"},
     IMP_UNSUPPORTED,
     "layers.1."},
    {"width", "llama", {.config = "{\"hidden_size\":128}"}, IMP_FORMAT, "embed_tokens"},
    {"head_dim 2^31", "llama", {.config = "{\"head_dim\":2147483648}"}, IMP_FORMAT, "head_dim"},
    {"odd head_dim", "llama", {.config = "{\"head_dim\":15}"}, IMP_FORMAT, "RoPE"},
    {"epsilon 0", "llama", {.config = "{\"rms_norm_eps\":0}"}, IMP_FORMAT, "epsilon"},
    {"partial rotation", "phi3", {.config = "{\"partial_rotary_factor\":7}"}, IMP_FORMAT, "rotated"},
    {"missing tensor",
     "llama",
     {.from = "model.norm.weight", .to = "model.nurm.weight"},
     IMP_FORMAT,
     "norm.weight is missing"},
    {"missing expert",
     "mixtral",
     {.from = "layers.1.block_sparse_moe.experts.2.w3", .to = "x"},
     IMP_FORMAT,
     "layers.1.block_sparse_moe.experts.2.w3.weight is missing"},
    {"extra tensor",
     "llama",
     {.extra = "model.layers.0.self_attn.sinks"},
     IMP_UNSUPPORTED,
     "model.layers.0.self_attn.sinks"},
    {"bias that the configuration denies",
     "llama",
     {.extra = "model.layers.0.self_attn.q_proj.bias"},
     IMP_UNSUPPORTED,
     "q_proj.bias"},
    {"bias that is missing",
     "llama",
     {.config = "{\"attention_bias\":true}"},
     IMP_FORMAT,
     "q_proj.bias is missing"},
    {"wrong shape",
     "llama",
     {.reshape = "model.norm.weight"},
     IMP_FORMAT,
     "tensor model.norm.weight has shape 1x64, the configuration wants 64"},
    {"experts used 0",
     "mixtral",
     {.config = "{\"num_experts_per_tok\":0}"},
     IMP_FORMAT,
     "num_experts_per_tok"},
    {"experts used 5 of 4", "mixtral", {.config = "{\"num_experts_per_tok\":5}"}, IMP_FORMAT, "experts"},
    {"experts in Llama", "llama", {.config = "{\"num_local_experts\":4}"}, IMP_UNSUPPORTED, "experts"},
    {"bidirectional Gemma",
     "gemma3",
     {.config = "{\"use_bidirectional_attention\":true}"},
     IMP_UNSUPPORTED,
     "use_bidirectional_attention"},
    {"relative positions",
     "bert",
     {.config = "{\"position_embedding_type\":\"relative_key\"}"},
     IMP_UNSUPPORTED,
     "relative_key"},
    {"BERT decoder", "bert", {.config = "{\"is_decoder\":true}"}, IMP_UNSUPPORTED, "is_decoder"},
    {"nomic mixture",
     "nomic-bert",
     {.config = "{\"moe_every_n_layers\":2}"},
     IMP_UNSUPPORTED,
     "moe_every_n_layers"},
    {"positions", "roberta", {.config = "{\"max_position_embeddings\":2}"}, IMP_FORMAT, "2 positions"},
};

static void test_folder(void **state)
{
    const folder_case *c = *state;
    char path[256];
    make_folder(c->model, &c->patch, path, sizeof path);
    imp_net *net = (imp_net *)1;
    imp_error err = {0};
    imp_status st = imp_net_open(path, 0, &net, &err);
    assert_null(net);
    if (st != c->want || err.status != c->want || !strstr(err.text, c->says))
        fail_msg("wanted %s with \"%s\", got %s: %s", imp_status_name(c->want), c->says, imp_status_name(st),
                 err.text);
}

/* GGUF: overwrite, behind the bytes `key`, a u32 or a text of the same length. */
typedef struct gguf_case {
    const char *title, *model, *key;
    uint32_t skip; /* bytes between key and value */
    uint32_t number;
    const char *text;
    imp_status want;
    const char *says;
} gguf_case;

static const gguf_case ggufs[] = {
    {"gguf architecture", "llama", "general.architecture", 12, 0, "lamma", IMP_UNSUPPORTED, "lamma"},
    {"gguf adapter", "llama", "general.type", 12, 0, "lorax", IMP_UNSUPPORTED, "type lorax, not a model"},
    {"gguf heads 0", "llama", "llama.attention.head_count", 4, 0, NULL, IMP_FORMAT, "head_count is 0"},
    {"gguf layers 0", "llama", "llama.block_count", 4, 0, NULL, IMP_FORMAT, "block_count is 0"},
    {"gguf layers 2^31", "llama", "llama.block_count", 4, 1u << 31, NULL, IMP_FORMAT,
     "block_count is 2147483648"},
    {"gguf layers 2^32-1", "llama", "llama.block_count", 4, UINT32_MAX, NULL, IMP_FORMAT, "block_count"},
    {"gguf width", "llama", "llama.embedding_length", 4, 32, NULL, IMP_FORMAT,
     "token_embd.weight has shape 288x64"},
    {"gguf width 2^31", "llama", "llama.embedding_length", 4, 1u << 31, NULL, IMP_FORMAT, "embedding_length"},
    {"gguf feed-forward", "llama", "llama.feed_forward_length", 4, 95, NULL, IMP_FORMAT, "wants 95x64"},
    {"gguf rotation odd", "llama", "llama.rope.dimension_count", 4, 15, NULL, IMP_FORMAT, "RoPE"},
    {"gguf RoPE type", "llama-yarn", "rope.scaling.type", 12, 0, "yurn", IMP_UNSUPPORTED, "yurn"},
    {"gguf missing tensor", "llama", "output_norm.weigh", 0, 0, "s", IMP_FORMAT,
     "output_norm.weight is missing"},
    {"gguf extra tensor", "llama3-rope", "rope_freq", 0, 0, "z", IMP_UNSUPPORTED, "rope_freqz"},
    {"gguf experts used", "mixtral", "llama.expert_used_count", 4, 9, NULL, IMP_FORMAT, "experts"},
    {"gguf pooling", "bert", "bert.pooling_type", 4, 4, NULL, IMP_UNSUPPORTED, "rank"},
    {"gguf pooling 77", "bert", "bert.pooling_type", 4, 77, NULL, IMP_FORMAT, "pooling_type"},
};

static void test_gguf(void **state)
{
    const gguf_case *c = *state;
    char path[256];
    size_t n = 0;
    snprintf(path, sizeof path, "tests/data/models/%s.gguf", c->model);
    uint8_t *file = read_all(path, &n);
    assert_non_null(file);
    uint8_t *at = find_bytes(file, n, c->key) + strlen(c->key) + c->skip;
    if (c->text)
        memcpy(at, c->text, strlen(c->text));
    else
        memcpy(at, &c->number, 4);
    snprintf(path, sizeof path, "%s/patched.gguf", patch_dir);
    write_all(path, file, n);
    free(file);
    imp_net *net = (imp_net *)1;
    imp_error err = {0};
    imp_status st = imp_net_open(path, 0, &net, &err);
    assert_null(net);
    if (st != c->want || !strstr(err.text, c->says))
        fail_msg("wanted %s with \"%s\", got %s: %s", imp_status_name(c->want), c->says, imp_status_name(st),
                 err.text);
}

static void test_vocabulary_alone(void **state)
{
    (void)state;
    imp_net *net;
    imp_error err = {0};
    assert_int_not_equal(imp_net_open("tests/data/vocab/llama-spm.gguf", 0, &net, &err), IMP_OK);
    assert_null(net);
    assert_true(err.text[0] != 0);
}

static void test_no_such_path(void **state)
{
    (void)state;
    imp_net *net;
    imp_error err = {0};
    assert_int_equal(imp_net_open("/nonexistent/model.gguf", 0, &net, &err), IMP_NOT_FOUND);
    assert_int_equal(imp_net_open("tests/data", 0, &net, &err), IMP_NOT_FOUND);
    assert_non_null(strstr(err.text, "config.json"));
}

/* Every allocation and file call fails in turn: an error or a model (where there is another way), nothing leaked. */
static void test_faults(void **state)
{
    static const char *const paths[] = {"tests/data/models/mixtral.gguf", "tests/data/models/minilm",
                                        "tests/data/models/qwen3-embedding.gguf"};
    (void)state;
    for (size_t i = 0; i < IMP_COUNT(paths); i++) {
        uint64_t n = 1, n_fail = 0;
        for (bool reached = true; reached; n++) {
            imp_net *net = NULL;
            imp_error err = {0};
            uint64_t before = imp_sys_n_call();
            imp_sys_fail_at(n);
            imp_status st = imp_net_open(paths[i], 0, &net, &err);
            imp_sys_fail_at(0);
            reached = imp_sys_n_call() - before >= n;
            if (st != IMP_OK && (net || err.status != st || !err.text[0]))
                fail_msg("%s, call %llu: status %s, error %s", paths[i], (unsigned long long)n,
                         imp_status_name(st), err.text);
            n_fail += st != IMP_OK;
            if (!reached) check_ok(st, &err);
            imp_net_close(net);
        }
        assert_true(n_fail > 10);
    }
}

/* Bytes of the metadata and the directory at random: an error or a model, never a fault (sanitizers watch). */
static void test_mutations(void **state)
{
    static const char *const names[] = {"mixtral", "phi3-longrope", "gemma3", "xlm-roberta"};
    (void)state;
    uint32_t seed = 20240607, n_ok = 0, n_bad = 0;
    char path[256];
    for (size_t m = 0; m < IMP_COUNT(names); m++) {
        size_t n = 0;
        snprintf(path, sizeof path, "tests/data/models/%s.gguf", names[m]);
        uint8_t *file = read_all(path, &n);
        assert_non_null(file);
        size_t n_header = (size_t)(find_bytes(file, n, "blk.0.attn_output") - file);
        snprintf(path, sizeof path, "%s/mutated.gguf", patch_dir);
        for (int i = 0; i < 150; i++) {
            uint8_t keep[4];
            size_t at[4];
            for (int k = 0; k < 4; k++) {
                seed = seed * 1664525u + 1013904223u;
                at[k] = (seed >> 4) % n_header;
                keep[k] = file[at[k]];
                file[at[k]] = (uint8_t)((k & 1) ? seed >> 24 : file[at[k]] ^ (1u << (seed >> 29)));
            }
            write_all(path, file, n);
            for (int k = 3; k >= 0; k--) file[at[k]] = keep[k];
            imp_net *net = NULL;
            imp_error err = {0};
            imp_status st = imp_net_open(path, 0, &net, &err);
            assert_true((st == IMP_OK) == (net != NULL) && (st == IMP_OK || err.text[0] != 0));
            st == IMP_OK ? n_ok++ : n_bad++;
            imp_net_close(net);
        }
        free(file);
    }
    assert_true(n_bad > 100);
    (void)n_ok;
}

int main(void)
{
    static struct CMUnitTest tests[IMP_COUNT(folders) + IMP_COUNT(ggufs) + 4];
    size_t n = 0;
    for (size_t i = 0; i < IMP_COUNT(folders); i++)
        tests[n++] = (struct CMUnitTest){
            .name = folders[i].title, .test_func = test_folder, .initial_state = (void *)&folders[i]};
    for (size_t i = 0; i < IMP_COUNT(ggufs); i++)
        tests[n++] = (struct CMUnitTest){
            .name = ggufs[i].title, .test_func = test_gguf, .initial_state = (void *)&ggufs[i]};
    tests[n++] = (struct CMUnitTest){.name = "a vocabulary alone", .test_func = test_vocabulary_alone};
    tests[n++] = (struct CMUnitTest){.name = "no such path", .test_func = test_no_such_path};
    tests[n++] = (struct CMUnitTest){.name = "mutated metadata", .test_func = test_mutations};
    tests[n++] = (struct CMUnitTest){.name = "every call fails in turn", .test_func = test_faults};
    return _cmocka_run_group_tests("model refusals", tests, n, patch_begin, patch_end);
}
