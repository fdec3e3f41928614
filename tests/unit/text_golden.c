/* tests/unit/text_golden.c - every kind of tokenizer.json against what the `tokenizers` library made of hard strings.
 *
 * Idea:   tests/data/tokenizer (tools/gen/tokenizer_golden.py) holds small trained tokenizers and cases: ids with and
 *         without special tokens, the decoded text of both. Streams are held to decode, and to whole characters. */
#include "test.h"

#include "text/tokenizer.h"

static json_t *load_json(const char *name, const char *suffix, char **text, size_t *n)
{
    char path[256];
    imp_sys_file f;
    imp_error err = {0};
    snprintf(path, sizeof path, "tests/data/tokenizer/%s%s", name, suffix);
    if (imp_sys_file_open(path, false, &f, &err) != IMP_OK) fail_msg("%s", err.text);
    json_t *j = json_loadb((const char *)f.data, f.n, JSON_ALLOW_NUL, NULL);
    if (text) {
        *text = malloc(f.n);
        memcpy(*text, f.data, f.n);
        *n = f.n;
    }
    imp_sys_file_close(&f);
    assert_non_null(j);
    return j;
}

static imp_tokenizer *load(const char *name)
{
    char *text;
    size_t n;
    imp_tokenizer *t;
    imp_error err = {0};
    json_decref(load_json(name, ".json", &text, &n));
    if (imp_tokenizer_from_json(text, n, NULL, &t, &err) != IMP_OK) fail_msg("%s: %s", name, err.text);
    free(text);
    return t;
}

static void print_ids(const char *title, const int32_t *id, size_t n)
{
    printf("# %s:", title);
    for (size_t i = 0; i < n; i++) printf(" %d", id[i]);
    printf("\n");
}

static void check_encode(const imp_tokenizer *t, const char *name, size_t k, const char *text, size_t n,
                         unsigned flags, const json_t *want)
{
    imp_ids ids = {0};
    imp_error err = {0};
    if (imp_tokenizer_encode(t, text, n, flags, &ids, &err) != IMP_OK)
        fail_msg("%s case %zu: %s", name, k, err.text);
    bool same = ids.n == json_array_size(want);
    for (size_t i = 0; same && i < ids.n; i++)
        same = ids.id[i] == json_integer_value(json_array_get(want, i));
    if (!same) {
        int32_t expected[4096];
        size_t m = json_array_size(want);
        for (size_t i = 0; i < m && i < 4096; i++)
            expected[i] = (int32_t)json_integer_value(json_array_get(want, i));
        print_ids("got ", ids.id, ids.n);
        print_ids("want", expected, m);
        fail_msg("%s case %zu: wrong ids for \"%s\"", name, k, text);
    }
    imp_ids_deinit(&ids);
}

/* decode, and the same as a stream whose every output is whole characters. */
static void check_decode(const imp_tokenizer *t, const char *name, size_t k, const json_t *list, bool special,
                         const char *want, size_t n_want)
{
    int32_t ids[4096];
    size_t n = json_array_size(list);
    assert_true(n <= 4096);
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    imp_buf all = {0}, stream = {0};
    imp_error err = {0};
    assert_int_equal(imp_tokenizer_decode(t, ids, n, special, &all, &err), IMP_OK);
    if (all.n != n_want || memcmp(all.data ? all.data : "", want, n_want) != 0)
        fail_msg("%s case %zu, special %d: decoded \"%s\", not \"%s\"", name, k, special, all.data, want);
    imp_detok d;
    imp_detok_init(&d, t, special);
    for (size_t i = 0; i < n; i++) {
        size_t before = stream.n;
        imp_detok_push(&d, ids[i], &stream);
        assert_true(stream.n == before || imp_utf8_valid(stream.data + before, stream.n - before));
    }
    imp_detok_flush(&d, &stream);
    assert_int_equal(stream.n, all.n);
    assert_true(all.n == 0 || memcmp(stream.data, all.data, all.n) == 0);
    imp_buf_deinit(&all);
    imp_buf_deinit(&stream);
}

static void check_text(const imp_tokenizer *t, const char *name, size_t k, const json_t *c, const json_t *ids,
                       const char *key, bool special)
{
    const json_t *text = json_object_get(c, key);
    if (!json_is_string(text)) text = json_object_get(c, "t");
    check_decode(t, name, k, ids, special, json_string_value(text), json_string_length(text));
}

static void check_golden(void **state)
{
    const char *name = *state;
    imp_tokenizer *t = load(name);
    json_t *root = load_json(name, ".cases.json", NULL, NULL), *c;
    const json_t *cases = json_object_get(root, "cases"), *lists = json_object_get(root, "lists");
    assert_true(json_array_size(cases) >= 20 && json_array_size(lists) >= 5);
    size_t k;
    json_array_foreach(cases, k, c)
    {
        const json_t *text = json_object_get(c, "t"), *ids = json_object_get(c, "ids"),
                     *raw = json_object_get(c, "raw");
        const char *p = json_string_value(text);
        size_t n = json_string_length(text);
        check_encode(t, name, k, p, n, IMP_TOK_ADD_SPECIAL | IMP_TOK_PARSE_SPECIAL, ids);
        check_encode(t, name, k, p, n, IMP_TOK_PARSE_SPECIAL, json_is_array(raw) ? raw : ids);
        check_text(t, name, k, c, ids, "d", false);
        check_text(t, name, k, c, ids, "ds", true);
    }
    json_array_foreach(lists, k, c)
    {
        check_text(t, name, k, c, json_object_get(c, "ids"), "d", false);
        check_text(t, name, k, c, json_object_get(c, "ids"), "ds", true);
    }
    json_decref(root);
    imp_tokenizer_free(t);
}

/* ---- the pre-tokenizers that GGUF names, on the same vocabularies ------------------------------------------- */

typedef struct gguf_form {
    imp_vocab v;
    imp_vocab_str *token, *merge;
    int32_t *kind;
    char *joined; /* merges that the file holds as pairs */
} gguf_form;

static void read_form(const json_t *root, const char *pre, gguf_form *f)
{
    json_t *model = json_object_get(root, "model"), *value;
    const json_t *added = json_object_get(root, "added_tokens"), *merges = json_object_get(model, "merges");
    json_t *vocab = json_object_get(model, "vocab");
    size_t n = json_object_size(vocab) + json_array_size(added), i, at = 0;
    const char *key;
    f->token = calloc(n, sizeof *f->token);
    f->kind = calloc(n, sizeof *f->kind);
    f->merge = calloc(json_array_size(merges), sizeof *f->merge);
    f->joined = calloc(json_array_size(merges), 64);
    f->v = (imp_vocab){.model = IMP_VOCAB_BPE,
                       .pre = pre,
                       .token = f->token,
                       .kind = f->kind,
                       .merge = f->merge,
                       .add_bos = 0};
    f->v.bos = f->v.eos = f->v.unk = f->v.sep = f->v.pad = f->v.cls = f->v.mask = -1;
    json_object_foreach(vocab, key, value)
    {
        f->token[json_integer_value(value)] = (imp_vocab_str){key, strlen(key)};
        f->kind[json_integer_value(value)] = IMP_TOKEN_NORMAL;
    }
    json_array_foreach(added, i, value)
    {
        const json_t *text = json_object_get(value, "content");
        json_int_t id = json_integer_value(json_object_get(value, "id"));
        f->token[id] = (imp_vocab_str){json_string_value(text), json_string_length(text)};
        f->kind[id] = json_is_true(json_object_get(value, "special")) ? IMP_TOKEN_CONTROL : IMP_TOKEN_USER;
    }
    while (f->v.n_token < n && f->token[f->v.n_token].p) f->v.n_token++;
    json_array_foreach(merges, i, value)
    {
        const char *x = json_string_value(json_array_get(value, 0)),
                   *y = json_string_value(json_array_get(value, 1));
        int len = snprintf(f->joined + at, 64, "%s %s", x, y);
        assert_true(len > 0 && len < 64);
        f->merge[i] = (imp_vocab_str){f->joined + at, (size_t)len};
        at += 64;
    }
    f->v.n_merge = json_array_size(merges);
}

static void check_gguf_form(void **state)
{
    (void)state;
    static const char *const names[][2] = {{"gpt2", "gpt-2"},
                                           {"llama3", "llama-bpe"},
                                           {"qwen2", "qwen2"},
                                           {"deepseek-llm", "deepseek-llm"},
                                           {"deepseek-coder", "deepseek-coder"},
                                           {"deepseek-v3", "deepseek-v3"},
                                           {"starcoder", "starcoder"},
                                           {"starcoder", "smollm"},
                                           {"falcon", "falcon"},
                                           {"gpt-4o", "gpt-4o"},
                                           {"tekken", "tekken"}};
    for (size_t k = 0; k < IMP_COUNT(names); k++) {
        json_t *root = load_json(names[k][0], ".json", NULL, NULL), *c;
        json_t *golden = load_json(names[k][0], ".cases.json", NULL, NULL);
        bool normalizes = !json_is_null(json_object_get(root, "normalizer")); /* which GGUF has no key for */
        gguf_form f;
        imp_tokenizer *t;
        imp_error err = {0};
        read_form(root, names[k][1], &f);
        if (imp_tokenizer_from_vocab(&f.v, &t, &err) != IMP_OK) fail_msg("%s: %s", names[k][1], err.text);
        size_t i;
        json_array_foreach(json_object_get(golden, "cases"), i, c)
        {
            const json_t *text = json_object_get(c, "t"), *raw = json_object_get(c, "raw");
            if (normalizes && i > 5) break; /* the others hold text that would change */
            check_encode(t, names[k][1], i, json_string_value(text), json_string_length(text),
                         IMP_TOK_PARSE_SPECIAL, json_is_array(raw) ? raw : json_object_get(c, "ids"));
        }
        imp_tokenizer_free(t);
        free(f.token);
        free(f.kind);
        free(f.merge);
        free(f.joined);
        json_decref(root);
        json_decref(golden);
    }
}

int main(void)
{
#define G(name)                                                                                              \
    {                                                                                                        \
        name, check_golden, NULL, NULL, (void *)name                                                         \
    }
    const struct CMUnitTest tests[] = {G("gpt2"),
                                       G("roberta"),
                                       G("llama3"),
                                       G("qwen2"),
                                       G("deepseek-llm"),
                                       G("deepseek-coder"),
                                       G("deepseek-v3"),
                                       G("starcoder"),
                                       G("falcon"),
                                       G("gpt-4o"),
                                       G("tekken"),
                                       G("neox"),
                                       G("llama2"),
                                       G("phi3"),
                                       G("gemma"),
                                       G("mistral"),
                                       G("t5"),
                                       G("xlm-roberta"),
                                       G("unigram-bytes"),
                                       G("bert"),
                                       G("bert-cased"),
                                       G("words"),
                                       cmocka_unit_test(check_gguf_form)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
