/* tests/model/tokenizer_load.c - tokenizers as model files hold them.
 *
 * Idea:   tests/data/models/NAME (tokenizer.json) and NAME.gguf (written by another program's converter) are the same
 *         model: both give the same ids. Then GGUF headers written here, with one key wrong in each. */
#include "test.h"

#include <unistd.h>

#include "model/tokenizer_load.h"

static const char *const texts[] = {
    "",
    " ",
    "Hello, world!",
    "  two  spaces ",
    "The quick brown fox jumps over 12345 lazy dogs.",
    "don't WE'LL it's\n\n\tx",
    "F\xC3\xBChrer \xD0\x9F\xD1\x80\xD0\xB8\xD0\xB2\xD0\xB5\xD1\x82 \xE4\xBD\xA0\xE5\xA5\xBD",
    "\xF0\x9F\x91\x8D\xF0\x9F\x8F\xBD emoji",
    "<s>[CLS]<|endoftext|>",
    "ab\r\ncd"};

static imp_tokenizer *from_gguf(const char *path)
{
    imp_gguf *g;
    imp_tokenizer *t;
    imp_error err = {0};
    if (imp_gguf_open(path, &g, &err) != IMP_OK || imp_tokenizer_from_gguf(g, &t, &err) != IMP_OK)
        fail_msg("%s: %s", path, err.text);
    imp_gguf_close(g);
    return t;
}

static imp_tokenizer *from_folder(const char *path)
{
    imp_hf *h;
    imp_tokenizer *t;
    imp_error err = {0};
    if (imp_hf_open(path, &h, &err) != IMP_OK || imp_tokenizer_from_hf(h, &t, &err) != IMP_OK)
        fail_msg("%s: %s", path, err.text);
    imp_hf_close(h);
    return t;
}

static void same_ids(const imp_tokenizer *a, const imp_tokenizer *b, const char *name)
{
    for (size_t i = 0; i < IMP_COUNT(texts); i++)
        for (unsigned flags = 0; flags < 4; flags++) {
            imp_ids x = {0}, y = {0};
            imp_error err = {0};
            assert_int_equal(imp_tokenizer_encode(a, texts[i], strlen(texts[i]), flags, &x, &err), IMP_OK);
            assert_int_equal(imp_tokenizer_encode(b, texts[i], strlen(texts[i]), flags, &y, &err), IMP_OK);
            if (x.n != y.n || (x.n && memcmp(x.id, y.id, x.n * sizeof *x.id) != 0)) {
                fail_msg("%s: the two forms differ on \"%s\", flags %u", name, texts[i], flags);
            }
            imp_ids_deinit(&x);
            imp_ids_deinit(&y);
        }
}

static void test_two_forms(void **state)
{
    (void)state;
    static const char *const names[] = {"bert",   "distilbert", "gemma2",  "gemma3",     "llama",
                                        "minilm", "mistral",    "mixtral", "modernbert", "nomic-bert",
                                        "phi3",   "qwen2",      "qwen3",   "qwen3-moe"};
    for (size_t i = 0; i < IMP_COUNT(names); i++) {
        char path[256];
        snprintf(path, sizeof path, "tests/data/models/%s", names[i]);
        imp_tokenizer *a = from_folder(path);
        snprintf(path, sizeof path, "tests/data/models/%s.gguf", names[i]);
        imp_tokenizer *b = from_gguf(path);
        same_ids(a, b, names[i]);
        imp_tokenizer_free(a);
        imp_tokenizer_free(b);
    }
}

/* BERT's vocab.txt alone gives what the tokenizer.json beside it gives. */
static void test_vocab_txt(void **state)
{
    (void)state;
    static const char *const files[] = {"config.json", "model.safetensors", "vocab.txt"};
    char dir[] = "/tmp/impetus-vocab-XXXXXX", from[512], to[512], cwd[256];
    assert_non_null(mkdtemp(dir));
    assert_non_null(getcwd(cwd, sizeof cwd));
    for (size_t i = 0; i < IMP_COUNT(files); i++) {
        snprintf(from, sizeof from, "%s/tests/data/models/bert/%s", cwd, files[i]);
        snprintf(to, sizeof to, "%s/%s", dir, files[i]);
        assert_int_equal(symlink(from, to), 0);
    }
    imp_tokenizer *a = from_folder("tests/data/models/bert"), *b = from_folder(dir);
    same_ids(a, b, "bert");
    imp_tokenizer_free(a);
    imp_tokenizer_free(b);
    for (size_t i = 0; i < IMP_COUNT(files); i++) {
        snprintf(to, sizeof to, "%s/%s", dir, files[i]);
        unlink(to);
    }
    rmdir(dir);
}

/* ---- GGUF headers with one key wrong ------------------------------------------------------------------------- */

typedef struct header {
    imp_buf b;
    uint64_t n_kv;
} header;

static void put_u32(header *h, uint32_t v)
{
    imp_buf_add(&h->b, &v, sizeof v);
}
static void put_u64(header *h, uint64_t v)
{
    imp_buf_add(&h->b, &v, sizeof v);
}

static void put_str(header *h, const char *s)
{
    put_u64(h, strlen(s));
    imp_buf_str(&h->b, s);
}

static void key(header *h, const char *name, imp_gguf_type type)
{
    h->n_kv++;
    put_str(h, name);
    put_u32(h, type);
}

static void key_str(header *h, const char *name, const char *value)
{
    key(h, name, IMP_GGUF_STRING);
    put_str(h, value);
}

static void key_u32(header *h, const char *name, uint32_t value)
{
    key(h, name, IMP_GGUF_U32);
    put_u32(h, value);
}

static void key_strs(header *h, const char *name, const char *const *s, size_t n)
{
    key(h, name, IMP_GGUF_ARRAY);
    put_u32(h, IMP_GGUF_STRING);
    put_u64(h, n);
    for (size_t i = 0; i < n; i++) put_str(h, s[i]);
}

static void key_u32s(header *h, const char *name, imp_gguf_type type, uint32_t value, size_t n)
{
    key(h, name, IMP_GGUF_ARRAY);
    put_u32(h, type);
    put_u64(h, n);
    for (size_t i = 0; i < n; i++) put_u32(h, value);
}

static imp_status load(header *h, imp_error *err)
{
    imp_buf file = {0};
    imp_gguf *g = NULL;
    imp_tokenizer *t = NULL;
    imp_buf_add(&file, "GGUF\3\0\0\0\0\0\0\0\0\0\0\0", 16);
    imp_buf_add(&file, &h->n_kv, 8);
    imp_buf_add(&file, h->b.data, h->b.n);
    if (imp_gguf_parse((const uint8_t *)file.data, file.n, &g, err) != IMP_OK) fail_msg("%s", err->text);
    imp_status s = imp_tokenizer_from_gguf(g, &t, err);
    assert_int_equal(t != NULL, s == IMP_OK);
    imp_tokenizer_free(t);
    imp_gguf_close(g);
    imp_buf_deinit(&file);
    imp_buf_deinit(&h->b);
    *h = (header){0};
    return s;
}

typedef enum part { MODEL = 1, PRE = 2, TOKENS = 4, MERGES = 8, ALL = 15 } part;

/* A small byte-level BPE, with only the parts asked for. */
static header start(unsigned parts)
{
    static const char *const tokens[] = {"a", "b", "ab", "<s>"}, *const merges[] = {"a b"};
    header h = {0};
    if (parts & MODEL) key_str(&h, "tokenizer.ggml.model", "gpt2");
    if (parts & PRE) key_str(&h, "tokenizer.ggml.pre", "gpt-2");
    if (parts & TOKENS) key_strs(&h, "tokenizer.ggml.tokens", tokens, 4);
    if (parts & MERGES) key_strs(&h, "tokenizer.ggml.merges", merges, 1);
    return h;
}

static void expect(header h, const char *title, imp_status want, const char *says)
{
    imp_error err = {0};
    imp_status s = load(&h, &err);
    if (s != want || !strstr(err.text, says)) fail_msg("%s: %s, \"%s\"", title, imp_status_name(s), err.text);
}

static void test_bad_keys(void **state)
{
    (void)state;
    static const char *const ids[] = {"bos", "eos",  "unknown",   "padding",
                                      "cls", "mask", "seperator", "separator"};
    header h;
    expect(start(ALL), "as it is", IMP_OK, "");
    expect(start(ALL & ~MODEL), "no model", IMP_NOT_FOUND, "tokenizer.ggml.model");
    expect(start(ALL & ~PRE), "no pre-tokenizer", IMP_UNSUPPORTED, "pre-tokenizer");
    expect(start(ALL & ~TOKENS), "no tokens", IMP_INVALID, "tokenizer.ggml.tokens");
    expect(start(ALL & ~MERGES), "no merges", IMP_INVALID, "tokenizer.ggml.merges");
    h = start(PRE | TOKENS | MERGES);
    key_str(&h, "tokenizer.ggml.model", "rwkv");
    expect(h, "model", IMP_UNSUPPORTED, "rwkv");
    h = start(MODEL | TOKENS | MERGES);
    key_str(&h, "tokenizer.ggml.pre", "somebody-else");
    expect(h, "pre-tokenizer", IMP_UNSUPPORTED, "somebody-else");
    h = start(PRE | TOKENS | MERGES);
    key_u32(&h, "tokenizer.ggml.model", 7);
    expect(h, "model type", IMP_FORMAT, "wrong type");
    h = start(MODEL | PRE | MERGES);
    key_u32s(&h, "tokenizer.ggml.tokens", IMP_GGUF_U32, 1, 4);
    expect(h, "tokens type", IMP_FORMAT, "wrong type");
    for (uint32_t n = 0; n < 6; n++) {
        if (n == 4) continue;
        h = start(ALL);
        key_u32s(&h, "tokenizer.ggml.token_type", IMP_GGUF_I32, 1, n);
        expect(h, "kinds too few or many", IMP_INVALID, "token_type");
        h = start(ALL);
        key_u32s(&h, "tokenizer.ggml.scores", IMP_GGUF_F32, 0, n);
        expect(h, "scores too few or many", IMP_INVALID, "scores");
    }
    static const uint32_t kinds[] = {7, 0x80000000, UINT32_MAX};
    for (size_t i = 0; i < IMP_COUNT(kinds); i++) {
        h = start(ALL);
        key_u32s(&h, "tokenizer.ggml.token_type", IMP_GGUF_I32, kinds[i], 4);
        expect(h, "kind", IMP_INVALID, "unknown type");
    }
    static const uint32_t far[] = {4, 5, INT32_MAX, 0x80000000, UINT32_MAX - 1};
    for (size_t i = 0; i < IMP_COUNT(ids); i++) {
        char name[64];
        snprintf(name, sizeof name, "tokenizer.ggml.%s_token_id", ids[i]);
        for (size_t k = 0; k < IMP_COUNT(far); k++) {
            h = start(ALL);
            key_u32(&h, name, far[k]);
            expect(h, name, IMP_INVALID, "token id");
        }
        h = start(ALL);
        key_u32(&h, name, UINT32_MAX); /* how some writers say "none" */
        expect(h, name, IMP_OK, "");
        h = start(ALL);
        key_str(&h, name, "0");
        expect(h, name, IMP_FORMAT, "wrong type");
    }
    h = start(ALL);
    key_str(&h, "tokenizer.ggml.add_bos_token", "yes");
    expect(h, "add_bos_token", IMP_FORMAT, "wrong type");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_two_forms), cmocka_unit_test(test_vocab_txt),
                                       cmocka_unit_test(test_bad_keys)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
