/* Model folders: an MLX-quantised one against mlx's own dequantisation (tools/gen/fmt_golden.py), and folders built
 * here for every rule of hf.h: shards, names, quantisation settings, configs, sentence-transformers modules. */
#include "fmt_test.h"

#include <sys/stat.h>
#include <unistd.h>

#include "fmt/hf.h"
#include "fmt/safetensors.h"

static void mlx_folder_equals_mlx(void **state)
{
    (void)state;
    imp_hf *h;
    imp_safetensors *want;
    imp_error err = {0};
    if (imp_hf_open("tests/data/fmt/mlx", &h, &err) != IMP_OK) fail_msg("%s", err.text);
    if (imp_safetensors_open("tests/data/fmt/mlx.expected", &want, &err) != IMP_OK) fail_msg("%s", err.text);
    assert_int_equal(imp_hf_n_tensor(h), imp_safetensors_n(want)); /* scales and biases are gone */
    uint32_t n_affine = 0;
    for (uint64_t i = 0; i < imp_hf_n_tensor(h); i++) {
        const char *name;
        const imp_tensor *t = imp_hf_tensor_at(h, i, &name), *w = imp_safetensors_get(want, name);
        assert_non_null(w);
        assert_ptr_equal(imp_hf_tensor(h, name), t);
        assert_int_equal(t->n_dim, w->n_dim);
        for (uint32_t d = 0; d < t->n_dim; d++) assert_int_equal(t->dim[d], w->dim[d]);
        n_affine += t->dtype == IMP_AFFINE;
        /* Equal but for one rounding that mlx may fuse away: scale * q + bias in f32, |q * scale| < 16 here. */
        float a[256], b[256];
        for (uint64_t r = 0; r < imp_tensor_n_row(t); r++) {
            imp_tensor_row_f32(t, r, a);
            imp_tensor_row_f32(w, r, b);
            for (uint64_t c = 0; c < imp_tensor_n_col(t); c++)
                if (!(a[c] - b[c] <= 1e-6f && b[c] - a[c] <= 1e-6f))
                    fail_msg("%s[%llu][%llu]: %g, expected %g", name, (unsigned long long)r,
                             (unsigned long long)c, (double)a[c], (double)b[c]);
        }
    }
    assert_int_equal(n_affine, 4);
    assert_null(imp_hf_tensor(h, "model.embed_tokens.scales"));
    assert_int_equal(imp_hf_tensor(h, "model.layers.0.down.weight")->bits, 3);
    assert_int_equal(imp_hf_tensor(h, "model.layers.0.down.weight")->group, 128);
    assert_int_equal(imp_hf_tensor(h, "model.layers.0.experts.weight")->n_dim, 3);
    imp_safetensors_close(want);
    imp_hf_close(h);
}

/* ---- folders made here ------------------------------------------------------------------------ */
static char dir[100];

static int make_dir(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/imp-fmt-hf-XXXXXX");
    return mkdtemp(dir) == NULL;
}

static int remove_dir(void **state)
{
    (void)state;
    char cmd[200];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", dir);
    return system(cmd);
}

static void put_bytes(const char *name, const void *p, size_t n)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    fclose(f);
}

static void put(const char *name, const char *text)
{
    put_bytes(name, text, strlen(text));
}

/* A safetensors file with n_data bytes 0, 1, 2, ... */
static void put_tensors(const char *name, const char *header, size_t n_data)
{
    imp_buf b = {0};
    uint64_t n = strlen(header);
    imp_buf_add(&b, &n, 8);
    imp_buf_str(&b, header);
    for (size_t i = 0; i < n_data; i++) imp_buf_add(&b, &(uint8_t){(uint8_t)i}, 1);
    put_bytes(name, b.data, b.n);
    imp_buf_deinit(&b);
}

static imp_hf *opened(const char *path)
{
    imp_hf *h;
    imp_error err = {0};
    if (imp_hf_open(path, &h, &err) != IMP_OK) fail_msg("%s", err.text);
    return h;
}

static void refused_at(const char *path, imp_status want, const char *why)
{
    imp_hf *h;
    imp_error err = {0};
    imp_status s = imp_hf_open(path, &h, &err);
    if (s != want) fail_msg("%s: status %d (%s), expected %d (%s)", path, s, err.text, want, why);
    assert_null(h);
    if (strstr(err.text, why) == NULL) fail_msg("'%s' does not say '%s'", err.text, why);
}

static void refused(imp_status want, const char *why)
{
    refused_at(dir, want, why);
}

#define T(name, dtype, shape, from, to)                                                                      \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}"
#define ONE "{" T("a", "F32", "[2]", 0, 8) "}"

static void small_model(void)
{
    put("config.json", "{\"model_type\":\"x\"}");
    put_tensors("model.safetensors", ONE, 8);
}

static void what_a_folder_needs(void **state)
{
    (void)state;
    refused_at("/tmp/imp-none-there", IMP_NOT_FOUND, "/tmp/imp-none-there");
    refused(IMP_NOT_FOUND, "config.json");
    put("config.json", "{}");
    refused(IMP_NOT_FOUND, "model.safetensors");
    put("config.json", "[]");
    refused(IMP_FORMAT, "config.json");
    put("config.json", "{\"a\":1,\"a\":2}");
    refused(IMP_FORMAT, "duplicate");
    put("config.json", "");
    refused(IMP_FORMAT, "config.json");
    small_model();
    imp_hf *h = opened(dir);
    assert_int_equal(imp_hf_n_tensor(h), 1);
    assert_non_null(imp_hf_config(h));
    assert_null(imp_hf_generation_config(h));
    assert_null(imp_hf_pooling(h));
    const char *p;
    size_t n;
    assert_false(imp_hf_tokenizer_json(h, &p, &n));
    assert_false(imp_hf_chat_template(h, &p, &n));
    assert_false(imp_hf_has_normalize(h));
    assert_true(imp_hf_file_bytes(h) > 8);
    imp_hf_close(h);
    char path[300];
    snprintf(path, sizeof path, "%s/", dir);
    imp_hf_close(opened(path));
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    imp_hf_close(opened(path));
    snprintf(path, sizeof path, "%s/config.json", dir);
    refused_at(path, IMP_INVALID, "safetensors");
    put_tensors("model.safetensors", ONE, 9);
    refused(IMP_FORMAT, "model.safetensors");
    put_tensors("other.safetensors", ONE, 8);
    snprintf(path, sizeof path, "%s/other.safetensors", dir);
    imp_hf_close(opened(path));
}

static void texts_and_configs(void **state)
{
    (void)state;
    small_model();
    put("tokenizer.json", "{\"version\":\"1.0\"}");
    put("vocab.txt", "");
    put("generation_config.json", "{\"eos_token_id\":[1,2]}");
    put("special_tokens_map.json", "{\"pad_token\":\"<pad>\"}");
    put("sentence_bert_config.json", "{\"max_seq_length\":128}");
    /* As transformers writes "no limit": beyond int64, a real for us. */
    put("tokenizer_config.json",
        "{\"model_max_length\":1000000000000000019884624838656,\"n\":[9223372036854775807,"
        "-9223372036854775809],\"s\":\"99999999999999999999\",\"chat_template\":\"plain\"}");
    imp_hf *h = opened(dir);
    const char *p;
    size_t n;
    assert_true(imp_hf_tokenizer_json(h, &p, &n) && n == 17 && memcmp(p, "{\"version", 9) == 0);
    assert_true(imp_hf_vocab_txt(h, &p, &n) && n == 0 && p != NULL);
    assert_int_equal(json_array_size(json_object_get(imp_hf_generation_config(h), "eos_token_id")), 2);
    assert_non_null(json_object_get(imp_hf_special_tokens_map(h), "pad_token"));
    assert_int_equal(json_integer_value(json_object_get(imp_hf_sbert(h), "max_seq_length")), 128);
    const json_t *c = imp_hf_tokenizer_config(h), *list = json_object_get(c, "n");
    assert_true(json_real_value(json_object_get(c, "model_max_length")) == 1e30);
    assert_true(json_integer_value(json_array_get(list, 0)) == INT64_MAX);
    assert_true(json_is_real(json_array_get(list, 1)));
    assert_string_equal(json_string_value(json_object_get(c, "s")), "99999999999999999999");
    assert_true(imp_hf_chat_template(h, &p, &n) && n == 5 && memcmp(p, "plain", 5) == 0);
    imp_hf_close(h);
    put("tokenizer_config.json",
        "{\"chat_template\":[{\"name\":\"rag\",\"template\":\"r\"},{\"name\":\"default\","
        "\"template\":\"dd\"}]}");
    h = opened(dir);
    assert_true(imp_hf_chat_template(h, &p, &n) && n == 2);
    imp_hf_close(h);
    put("chat_template.jinja", "file");
    h = opened(dir);
    assert_true(imp_hf_chat_template(h, &p, &n) && n == 4 && memcmp(p, "file", 4) == 0);
    imp_hf_close(h);
    put("generation_config.json", "{");
    refused(IMP_FORMAT, "generation_config.json");
    put("generation_config.json", "7");
    refused(IMP_FORMAT, "generation_config.json");
}

static void sentence_transformers(void **state)
{
    (void)state;
    char path[300];
    small_model();
    snprintf(path, sizeof path, "%s/1_Pooling", dir);
    assert_int_equal(mkdir(path, 0700), 0);
    put("1_Pooling/config.json", "{\"pooling_mode_cls_token\":true}");
    imp_hf *h = opened(dir); /* no modules.json */
    assert_non_null(imp_hf_pooling(h));
    imp_hf_close(h);
#define M(type, path)                                                                                        \
    "{\"idx\":0,\"name\":\"0\",\"path\":\"" path "\",\"type\":\"sentence_transformers.models." type "\"}"
    put("modules.json",
        "[" M("Transformer", "") "," M("Pooling", "1_Pooling") "," M("Normalize", "2_Normalize") "]");
    h = opened(dir);
    assert_true(imp_hf_has_normalize(h));
    assert_true(json_is_true(json_object_get(imp_hf_pooling(h), "pooling_mode_cls_token")));
    imp_hf_close(h);
    put("modules.json", "[" M("Transformer", "") "," M("Pooling", "1_Pooling") "," M("Dense", "2_Dense") "]");
    refused(IMP_UNSUPPORTED, "Dense");
    put("modules.json", "[" M("Pooling", "../x") "]");
    refused(IMP_FORMAT, "../x");
    put("modules.json", "[" M("Pooling", "9_Pooling") "]");
    refused(IMP_NOT_FOUND, "9_Pooling");
    put("modules.json", "[" M("Pooling", "1_Pooling") "," M("Pooling", "1_Pooling") "]");
    refused(IMP_UNSUPPORTED, "two");
    put("modules.json", "{}");
    refused(IMP_FORMAT, "modules.json");
    put("modules.json", "[1]");
    refused(IMP_FORMAT, "modules.json");
}

static void index_of(const char *weight_map)
{
    char text[2000];
    snprintf(text, sizeof text, "{\"metadata\":{},\"weight_map\":%s}", weight_map);
    put("model.safetensors.index.json", text);
}

static void shards(void **state)
{
    (void)state;
    put("config.json", "{}");
    put_tensors("s1.safetensors", ONE, 8);
    put_tensors("s2.safetensors", "{" T("b", "U8", "[3]", 0, 3) "," T("c", "U8", "[1]", 3, 4) "}", 4);
    index_of("{\"a\":\"s1.safetensors\",\"b\":\"s2.safetensors\",\"c\":\"s2.safetensors\"}");
    imp_hf *h = opened(dir);
    assert_int_equal(imp_hf_n_tensor(h), 3);
    assert_non_null(imp_hf_tensor(h, "c"));
    imp_hf_close(h);
    char path[300];
    snprintf(path, sizeof path, "%s/s2.safetensors", dir); /* one of the shards: the whole model */
    h = opened(path);
    assert_int_equal(imp_hf_n_tensor(h), 3);
    imp_hf_close(h);

    index_of("{\"a\":\"s1.safetensors\",\"b\":\"s3.safetensors\"}");
    refused(IMP_NOT_FOUND, "s3.safetensors");
    static const char *const bad[] = {"../s1.safetensors",
                                      "/etc/s1.safetensors",
                                      "x/s1.safetensors",
                                      "x\\\\s1.safetensors",
                                      "..",
                                      ".hidden.safetensors",
                                      "",
                                      "s1.bin",
                                      "s1.safetensors/..",
                                      "C:s1.safetensors"};
    for (size_t i = 0; i < IMP_COUNT(bad); i++) {
        char map[200];
        snprintf(map, sizeof map, "{\"a\":\"%s\"}", bad[i]);
        index_of(map);
        refused(IMP_FORMAT, "plain name");
    }
    index_of("{\"a\":7}");
    refused(IMP_FORMAT, "plain name");
    index_of("{\"a\":\"s1.safetensors\",\"b\":\"s1.safetensors\"}");
    refused(IMP_FORMAT, "'b' is not in s1.safetensors");
    index_of("{\"a\":\"s1.safetensors\",\"a\":\"s2.safetensors\"}");
    refused(IMP_FORMAT, "duplicate");
    index_of("{}");
    refused(IMP_FORMAT, "weight_map");
    index_of("[]");
    refused(IMP_FORMAT, "weight_map");
    put_tensors("s4.safetensors", "{" T("d", "U8", "[1]", 0, 1) "," T("a", "U8", "[1]", 1, 2) "}", 2);
    index_of("{\"a\":\"s1.safetensors\",\"d\":\"s4.safetensors\"}");
    refused(IMP_FORMAT, "'a' stands in two shards");
    put_tensors("s4.safetensors", "{" T("d", "U8", "[1]", 0, 1) "," T("e", "U8", "[1]", 0, 1) "}", 1);
    refused(IMP_FORMAT, "overlap");
    put_tensors("s4.safetensors", "{" T("d", "U8", "[1]", 1, 2) "}", 2);
    refused(IMP_FORMAT, "hole");
    uint8_t huge[16] = {1, 0xe1, 0xf5, 5, 0, 0, 0, 0, '{', '}'}; /* 100,000,001 bytes of header */
    put_bytes("s4.safetensors", huge, sizeof huge);
    refused(IMP_TOO_LARGE, "100000001");
    put("model.safetensors.index.json", "{\"weight_map\":{},\"weight_map\":{}}");
    refused(IMP_FORMAT, "duplicate");
}

/* x: 2 rows of 64 columns at 4 bits in groups of 32; y: a plain tensor. */
#define X_WEIGHT T("x.weight", "U32", "[2,8]", 0, 64)
#define X_SCALES T("x.scales", "F16", "[2,2]", 64, 72)
#define X_BIASES T("x.biases", "F16", "[2,2]", 72, 80)

static void quantised(const char *config, const char *header, size_t n_data)
{
    put("config.json", config);
    put_tensors("model.safetensors", header, n_data);
}

static void quantisation_settings(void **state)
{
    (void)state;
    static const char good[] = "{" X_WEIGHT "," X_SCALES "," X_BIASES "}";
    static const char q32[] = "{\"quantization\":{\"group_size\":32,\"bits\":4}}";
    quantised(q32, good, 80);
    imp_hf *h = opened(dir);
    const imp_tensor *t = imp_hf_tensor(h, "x.weight");
    assert_int_equal(imp_hf_n_tensor(h), 1);
    assert_int_equal(t->dtype, IMP_AFFINE);
    assert_int_equal(t->dim[1], 64);
    imp_hf_close(h);
    quantised("{\"quantization_config\":{\"group_size\":32,\"bits\":4,\"mode\":\"affine\"}}", good, 80);
    imp_hf_close(opened(dir));
    quantised("{\"quantization\":{\"group_size\":64,\"bits\":8,\"x\":{\"group_size\":32,\"bits\":4}},"
              "\"quantization_config\":null}",
              good, 80);
    imp_hf_close(opened(dir));

    quantised("{}", good, 80);
    refused(IMP_FORMAT, "no \"quantization\"");
    quantised("{\"quantization\":{\"group_size\":32,\"bits\":4,\"x\":false}}", good, 80);
    refused(IMP_FORMAT, "not quantised");
    quantised("{\"quantization\":{\"group_size\":64,\"bits\":4}}", good, 80);
    refused(IMP_FORMAT, "groups of 64");
    quantised("{\"quantization\":{\"group_size\":32,\"bits\":3}}", good, 80);
    refused(IMP_FORMAT, "3 bits");
    quantised("{\"quantization\":{\"group_size\":32,\"bits\":7}}", good, 80);
    refused(IMP_UNSUPPORTED, "7 bits");
    quantised("{\"quantization\":{\"group_size\":0,\"bits\":4}}", good, 80);
    refused(IMP_UNSUPPORTED, "groups of 0");
    quantised("{\"quantization\":{\"group_size\":16,\"bits\":4}}", good, 80);
    refused(IMP_UNSUPPORTED, "groups of 16");
    quantised("{\"quantization\":{\"bits\":4}}", good, 80);
    refused(IMP_FORMAT, "group_size");
    quantised("{\"quantization\":{\"group_size\":32,\"bits\":4,\"secret\":1}}", good, 80);
    refused(IMP_UNSUPPORTED, "secret");
    quantised("{\"quantization\":4}", good, 80);
    refused(IMP_FORMAT, "not an object");
    static const char *const mode[] = {"mxfp4", "nvfp4", "mxfp8"};
    for (size_t i = 0; i < IMP_COUNT(mode); i++) {
        char c[200];
        snprintf(c, sizeof c, "{\"quantization\":{\"group_size\":32,\"bits\":4,\"mode\":\"%s\"}}", mode[i]);
        quantised(c, good, 80);
        refused(IMP_UNSUPPORTED, mode[i]);
        snprintf(c, sizeof c,
                 "{\"quantization\":{\"group_size\":32,\"bits\":4,\"x\":{\"group_size\":32,\"bits\":4,"
                 "\"mode\":\"%s\"}}}",
                 mode[i]);
        quantised(c, good, 80);
        refused(IMP_UNSUPPORTED, mode[i]);
    }
    static const char *const method[] = {"awq", "gptq", "compressed-tensors", "mxfp4", "fp8", "bitsandbytes"};
    for (size_t i = 0; i < IMP_COUNT(method); i++) {
        char c[200];
        snprintf(c, sizeof c, "{\"quantization_config\":{\"quant_method\":\"%s\",\"bits\":4}}", method[i]);
        quantised(c, ONE, 8);
        refused(IMP_UNSUPPORTED, method[i]);
    }
}

static void quantised_parts_that_do_not_fit(void **state)
{
    (void)state;
    static const char q[] = "{\"quantization\":{\"group_size\":32,\"bits\":4}}";
    quantised(q, "{" X_WEIGHT "," X_SCALES "}", 72);
    refused(IMP_FORMAT, "no biases");
    quantised(q, "{" T("x.weight", "F32", "[2,8]", 0, 64) "," X_SCALES "," X_BIASES "}", 80);
    refused(IMP_FORMAT, "f32 instead of u32");
    quantised(q, "{" X_WEIGHT "," X_SCALES "," T("x.biases", "BF16", "[2,2]", 72, 80) "}", 80);
    refused(IMP_FORMAT, "bf16");
    quantised(q,
              "{" X_WEIGHT
              "," T("x.scales", "U16", "[2,2]", 64, 72) "," T("x.biases", "U16", "[2,2]", 72, 80) "}",
              80);
    refused(IMP_FORMAT, "u16");
    quantised(q, "{" X_WEIGHT "," T("x.scales", "F16", "[4,1]", 64, 72) "," X_BIASES "}", 80);
    refused(IMP_FORMAT, "shape");
    quantised(
        q, "{" X_WEIGHT "," T("x.scales", "F16", "[4]", 64, 72) "," T("x.biases", "F16", "[4]", 72, 80) "}",
        80);
    refused(IMP_FORMAT, "shape");
    quantised(q,
              "{" X_WEIGHT
              "," T("x.scales", "F16", "[2,4]", 64, 80) "," T("x.biases", "F16", "[2,4]", 80, 96) "}",
              96);
    refused(IMP_FORMAT, "scales");
    quantised("{\"quantization\":{\"group_size\":32,\"bits\":4,\"x\":{\"group_size\":32,\"bits\":4}}}",
              "{" X_WEIGHT "}", 64);
    refused(IMP_FORMAT, "no scales");
}

/* Every counted call fails in turn: an error, never a crash; leaks are seen by the sanitiser. */
static void every_failure(void **state)
{
    (void)state;
    imp_hf *h = NULL;
    for (uint64_t n = 1; n < 1000; n++) {
        imp_error err = {0};
        imp_sys_fail_at(n);
        imp_status s = imp_hf_open("tests/data/fmt/mlx", &h, &err);
        bool reached = s != IMP_OK;
        imp_sys_fail_at(0);
        if (reached) {
            assert_null(h);
            assert_true(err.text[0] != 0);
        } else {
            imp_hf_close(h);
            if (n > 60) return; /* some calls may fail without harm (mapping falls back to reading) */
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mlx_folder_equals_mlx),
        cmocka_unit_test_setup_teardown(what_a_folder_needs, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(texts_and_configs, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(sentence_transformers, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(shards, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(quantisation_settings, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(quantised_parts_that_do_not_fit, make_dir, remove_dir),
        cmocka_unit_test(every_failure),
    };
    return cmocka_run_group_tests_name("fmt_hf", tests, NULL, NULL);
}
