/* tests/unit/text_tokenizer.c - what tokenizers refuse, and what must hold for all of them.
 *
 * Idea:   small tokenizers written out here for the refusals and special cases; the trained ones of
 *         tests/data/tokenizer for properties over random ids and random bytes: a stream equals decode and never cuts a
 *         character, no control token comes from text unless asked for, a failed allocation leaves nothing behind. */
#include "test.h"

#include "text/internal.h"

static const char *const trained[] = {"gpt2",        "roberta",       "llama3", "qwen2",      "falcon",
                                      "neox",        "llama2",        "gemma",  "mistral",    "t5",
                                      "xlm-roberta", "unigram-bytes", "bert",   "bert-cased", "words"};

static imp_tokenizer *load_trained(const char *name)
{
    char path[256];
    imp_sys_file f;
    imp_tokenizer *t;
    imp_error err = {0};
    snprintf(path, sizeof path, "tests/data/tokenizer/%s.json", name);
    if (imp_sys_file_open(path, false, &f, &err) != IMP_OK) fail_msg("%s", err.text);
    if (imp_tokenizer_from_json((const char *)f.data, f.n, NULL, &t, &err) != IMP_OK)
        fail_msg("%s: %s", name, err.text);
    imp_sys_file_close(&f);
    return t;
}

/* ---- refusals: a small tokenizer.json, one part of it replaced --------------------------------------------------- */

typedef struct parts {
    const char *normalizer, *pre, *post, *decoder, *model, *added, *more;
} parts;

#define MODEL                                                                                                \
    "{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"vocab\":{\"<unk>\":0,\"<s>\":1,\"a\":2,\"b\":3,\"ab\":4},"  \
    "\"merges\":[\"a b\"]}"

static void compose(const parts *p, char *out, size_t n)
{
#define OR(x, y) ((x) ? (x) : (y))
    snprintf(out, n,
             "{\"version\":\"1.0\",\"added_tokens\":%s,\"normalizer\":%s,\"pre_tokenizer\":%s,\"post_"
             "processor\":%s,"
             "\"decoder\":%s,\"model\":%s%s}",
             OR(p->added, "[{\"id\":1,\"content\":\"<s>\",\"special\":true}]"), OR(p->normalizer, "null"),
             OR(p->pre, "null"), OR(p->post, "null"), OR(p->decoder, "null"), OR(p->model, MODEL),
             OR(p->more, ""));
}

static const struct {
    const char *title;
    parts parts;
    imp_status want;
    const char *says;
} refused[] = {
    {"normalizer", {.normalizer = "{\"type\":\"Nmt\"}"}, IMP_UNSUPPORTED, "Nmt"},
    {"normalizer field", {.normalizer = "{\"type\":\"NFC\",\"speed\":1}"}, IMP_UNSUPPORTED, "speed"},
    {"normalizer in a sequence",
     {.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Odd\"}]}"},
     IMP_UNSUPPORTED,
     "Odd"},
    {"charsmap too short",
     {.normalizer = "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAA=\"}"},
     IMP_FORMAT,
     "too short"},
    {"charsmap size",
     {.normalizer = "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"/////wAA\"}"},
     IMP_FORMAT,
     "trie"},
    {"charsmap not base64",
     {.normalizer = "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"!!!!\"}"},
     IMP_FORMAT,
     "precompiled_charsmap"},
    {"pre_tokenizer", {.pre = "{\"type\":\"UnicodeScripts\"}"}, IMP_UNSUPPORTED, "UnicodeScripts"},
    {"behavior",
     {.pre = "{\"type\":\"Punctuation\",\"behavior\":\"Mirrored\"}"},
     IMP_UNSUPPORTED,
     "Mirrored"},
    {"prepend_scheme",
     {.pre = "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"last\"}"},
     IMP_UNSUPPORTED,
     "last"},
    {"regex",
     {.pre = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a\"},\"behavior\":\"Isolated\"}"},
     IMP_FORMAT,
     "parenthesis"},
    {"regex escape",
     {.pre = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\Ka\"},\"behavior\":\"Isolated\"}"},
     IMP_UNSUPPORTED,
     "\\K"},
    {"regex set operation",
     {.pre = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a-z&&b]\"},\"behavior\":\"Isolated\"}"},
     IMP_UNSUPPORTED,
     "intersection"},
    {"regex nested set",
     {.pre = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a[b]]\"},\"behavior\":\"Isolated\"}"},
     IMP_UNSUPPORTED,
     "set inside"},
    {"regex verb",
     {.pre = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(*LIMIT_MATCH=9)a\"},\"behavior\":\"Isolated\"}"},
     IMP_UNSUPPORTED,
     "verb"},
    {"regex recursion",
     {.pre = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a(?R)?)\"},\"behavior\":\"Isolated\"}"},
     IMP_UNSUPPORTED,
     "group"},
    {"post_processor", {.post = "{\"type\":\"Magic\"}"}, IMP_UNSUPPORTED, "Magic"},
    {"post_processor id",
     {.post = "{\"type\":\"BertProcessing\",\"sep\":[\"x\",9],\"cls\":[\"y\",1]}"},
     IMP_INVALID,
     "outside"},
    {"post_processor id -1",
     {.post = "{\"type\":\"BertProcessing\",\"sep\":[\"x\",-1],\"cls\":[\"y\",1]}"},
     IMP_INVALID,
     "outside"},
    {"decoder", {.decoder = "{\"type\":\"CTC\"}"}, IMP_UNSUPPORTED, "CTC"},
    {"decoder order",
     {.decoder = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"ByteLevel\"}]}"},
     IMP_UNSUPPORTED,
     "after Fuse"},
    {"model", {.model = "{\"type\":\"WordLevel\",\"vocab\":{\"a\":0}}"}, IMP_UNSUPPORTED, "WordLevel"},
    {"model field",
     {.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[],\"magic\":1}"},
     IMP_UNSUPPORTED,
     "magic"},
    {"dropout",
     {.model = "{\"type\":\"BPE\",\"dropout\":0.1,\"vocab\":{\"a\":0},\"merges\":[]}"},
     IMP_UNSUPPORTED,
     "dropout"},
    {"suffix",
     {.model = "{\"type\":\"BPE\",\"end_of_word_suffix\":\"</w>\",\"vocab\":{\"a\":0},\"merges\":[]}"},
     IMP_UNSUPPORTED,
     "end_of_word_suffix"},
    {"merge of unknown pieces",
     {.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}"},
     IMP_INVALID,
     "merge 0"},
    {"merge of three",
     {.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a a a\"]}"},
     IMP_FORMAT,
     "not a pair"},
    {"unknown token missing",
     {.model = "{\"type\":\"BPE\",\"unk_token\":\"?\",\"vocab\":{\"a\":0},\"merges\":[]}"},
     IMP_INVALID,
     "unknown token"},
    {"two tokens, one id",
     {.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0,\"<s>\":1},\"merges\":[]}"},
     IMP_INVALID,
     "id 0"},
    {"id 2^31",
     {.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":2147483648},\"merges\":[]}"},
     IMP_INVALID,
     "no token id"},
    {"id far away",
     {.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":900000000},\"merges\":[]}"},
     IMP_INVALID,
     "900000000"},
    {"negative id",
     {.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}"},
     IMP_INVALID,
     "no token id"},
    {"unk_id",
     {.model = "{\"type\":\"Unigram\",\"unk_id\":7,\"vocab\":[[\"a\",0.0],[\"<s>\",0.0]]}"},
     IMP_INVALID,
     "unk_id"},
    {"unigram duplicate",
     {.model = "{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[[\"a\",0.0],[\"<s>\",0.0],[\"a\",0.0]]}"},
     IMP_INVALID,
     "same spelling"},
    {"added token, other id",
     {.added = "[{\"id\":7,\"content\":\"a\",\"special\":true}]"},
     IMP_INVALID,
     "same spelling"},
    {"added token field",
     {.added = "[{\"id\":1,\"content\":\"<s>\",\"colour\":1}]"},
     IMP_UNSUPPORTED,
     "colour"},
    {"top level", {.more = ",\"surprise\":1"}, IMP_UNSUPPORTED, "surprise"},
    {"escape",
     {.model = "{\"type\":\"BPE\",\"vocab\":{\"\\q\":0,\"<s>\":1},\"merges\":[]}"},
     IMP_FORMAT,
     "escape"},
    {"lone surrogate",
     {.model = "{\"type\":\"BPE\",\"vocab\":{\"\\udc00\":0,\"<s>\":1},\"merges\":[]}"},
     IMP_FORMAT,
     "escape"},
    {"unfinished vocabulary",
     {.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"<s>\":1"},
     IMP_FORMAT,
     "not valid JSON"},
    {"vocabulary twice",
     {.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"vocab\":{},\"merges\":[]}"},
     IMP_FORMAT,
     "duplicate"},
    {"a piece twice",
     {.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"<s>\":1,\"a\":2},\"merges\":[]}"},
     IMP_INVALID,
     "same spelling"},
    {"id with a fraction",
     {.model = "{\"type\":\"BPE\",\"vocab\":{\"a\":0.5},\"merges\":[]}"},
     IMP_FORMAT,
     "vocabulary"},
    {"not JSON", {.more = ",,"}, IMP_FORMAT, "not valid JSON"},
};

static void test_refused(void **state)
{
    (void)state;
    char json[4096];
    imp_tokenizer *t;
    imp_error err;
    compose(&(parts){0}, json, sizeof json);
    assert_int_equal(imp_tokenizer_from_json(json, strlen(json), NULL, &t, &err),
                     IMP_OK); /* the faults are in the changes */
    imp_tokenizer_free(t);
    for (size_t i = 0; i < IMP_COUNT(refused); i++) {
        memset(&err, 0, sizeof err);
        compose(&refused[i].parts, json, sizeof json);
        imp_status s = imp_tokenizer_from_json(json, strlen(json), NULL, &t, &err);
        if (s != refused[i].want || !strstr(err.text, refused[i].says) || t)
            fail_msg("%s: status %s, \"%s\"", refused[i].title, imp_status_name(s), err.text);
    }
}

/* Escapes of the vocabulary's strings, white space between its parts. */
static void test_json_escapes(void **state)
{
    (void)state;
    static const char json[] = "{ \"added_tokens\" : [ ] ,\n \"model\" : { \"merges\" : [ [ \"a\" , "
                               "\"\\u00e9\" ] , \"\\ud83d\\udc4d \\\"\" ] ,\r\n"
                               "\"type\":\"BPE\", \"vocab\" : { \"a\" : 0 , \"\\u00e9\" : "
                               "1,\t\"\\ud83d\\udc4d\":2, \"\\\"\":3, \"\\\\\\/\\n\":4, "
                               "\"a\\u00E9\":5, \"\xF0\x9F\x91\x8D\\\"\":6, \"\\u0000\":7 } } }";
    static const struct {
        const char *piece;
        size_t n;
    } want[] = {{"a", 1},     {"\xC3\xA9", 2},  {"\xF0\x9F\x91\x8D", 4},   {"\"", 1},
                {"\\/\n", 3}, {"a\xC3\xA9", 3}, {"\xF0\x9F\x91\x8D\"", 5}, {"\0", 1}};
    imp_tokenizer *t;
    imp_error err = {0};
    if (imp_tokenizer_from_json(json, sizeof json - 1, NULL, &t, &err) != IMP_OK) fail_msg("%s", err.text);
    for (size_t i = 0; i < IMP_COUNT(want); i++) {
        size_t n;
        const char *p = imp_tokenizer_piece(t, (int32_t)i, &n);
        assert_int_equal(n, want[i].n);
        assert_memory_equal(p, want[i].piece, n);
    }
    imp_ids ids = {0};
    assert_int_equal(imp_tokenizer_encode(t, "a\xC3\xA9\xF0\x9F\x91\x8D\"", 8, 0, &ids, &err), IMP_OK);
    assert_int_equal(ids.n, 2);
    assert_int_equal(ids.id[0], 5);
    assert_int_equal(ids.id[1], 6);
    imp_ids_deinit(&ids);
    imp_tokenizer_free(t);
}

/* Cut at every byte, a tokenizer.json is refused with a reason. */
static void test_json_truncated(void **state)
{
    (void)state;
    char json[4096];
    compose(&(parts){0}, json, sizeof json);
    for (size_t n = 0; n < strlen(json); n++) {
        imp_tokenizer *t;
        imp_error err = {0};
        char *exact = malloc(n + 1);
        memcpy(exact, json, n);
        assert_int_not_equal(imp_tokenizer_from_json(exact, n, NULL, &t, &err), IMP_OK);
        assert_null(t);
        assert_true(err.text[0]);
        free(exact);
    }
}

/* ---- vocabularies as GGUF has them -------------------------------------------------------------------------------- */

enum { N_BYTES = 259 };

typedef struct vocab_case {
    imp_vocab v;
    imp_vocab_str token[N_BYTES + 16], merge[8];
    int32_t kind[N_BYTES + 16];
    float score[N_BYTES + 16];
    char text[N_BYTES][8];
} vocab_case;

static void add(vocab_case *c, const char *s, imp_token_kind kind, float score)
{
    size_t i = c->v.n_token++;
    c->token[i] = (imp_vocab_str){s, strlen(s)};
    c->kind[i] = kind;
    c->score[i] = score;
}

/* <unk> <s> </s>, 256 byte tokens, and a few pieces. */
static vocab_case *spm(void)
{
    vocab_case *c = calloc(1, sizeof *c);
    c->v = (imp_vocab){.model = IMP_VOCAB_SPM_BPE,
                       .token = c->token,
                       .kind = c->kind,
                       .score = c->score,
                       .bos = 1,
                       .eos = 2,
                       .sep = -1,
                       .pad = -1,
                       .cls = -1,
                       .mask = -1,
                       .add_bos = -1,
                       .add_eos = -1,
                       .add_space_prefix = -1};
    add(c, "<unk>", IMP_TOKEN_UNKNOWN, 0);
    add(c, "<s>", IMP_TOKEN_CONTROL, 0);
    add(c, "</s>", IMP_TOKEN_CONTROL, 0);
    for (int b = 0; b < 256; b++) {
        snprintf(c->text[b], 8, "<0x%02X>", b);
        add(c, c->text[b], IMP_TOKEN_BYTE, 0);
    }
    add(c, "\xE2\x96\x81", IMP_TOKEN_NORMAL, -9);
    add(c, "a", IMP_TOKEN_NORMAL, -10);
    add(c, "b", IMP_TOKEN_NORMAL, -11);
    add(c, "ab", IMP_TOKEN_NORMAL, -3);
    add(c,
        "\xE2\x96\x81"
        "ab",
        IMP_TOKEN_NORMAL, -2);
    add(c, "", IMP_TOKEN_UNUSED, 0);
    add(c, "", IMP_TOKEN_UNUSED, 0);
    add(c, "<|u|>", IMP_TOKEN_USER, 0);
    add(c, "<s", IMP_TOKEN_NORMAL, -4); /* a way to "<s>", which must not be taken */
    add(c, ">", IMP_TOKEN_NORMAL, -5);
    return c;
}

static vocab_case *bpe(void)
{
    vocab_case *c = spm();
    c->v.model = IMP_VOCAB_BPE;
    c->v.pre = "gpt-2";
    c->v.merge = c->merge;
    c->merge[c->v.n_merge++] = (imp_vocab_str){"a b", 3};
    return c;
}

static void expect(vocab_case *c, const char *title, imp_status want, const char *says)
{
    imp_tokenizer *t;
    imp_error err = {0};
    imp_status s = imp_tokenizer_from_vocab(&c->v, &t, &err);
    if (s != want || !strstr(err.text, says) || (t != NULL) != (want == IMP_OK))
        fail_msg("%s: status %s, \"%s\"", title, imp_status_name(s), err.text);
    imp_tokenizer_free(t);
    free(c);
}

static void test_vocab_refused(void **state)
{
    (void)state;
    static const int64_t bad_ids[] = {N_BYTES + 10,     -2,        INT32_MAX, (int64_t)1 << 31,
                                      (int64_t)1 << 32, INT64_MAX, INT64_MIN};
    expect(spm(), "as it is", IMP_OK, "");
    expect(bpe(), "as it is", IMP_OK, "");
    for (size_t i = 0; i < IMP_COUNT(bad_ids); i++) {

        for (int k = 0; k < 7; k++) {
            vocab_case *c = spm();
            int64_t *id[] = {&c->v.bos, &c->v.eos, &c->v.unk, &c->v.sep, &c->v.pad, &c->v.cls, &c->v.mask};
            *id[k] = bad_ids[i];
            expect(c, "special id", IMP_INVALID, "outside the vocabulary");
        }
    }
    vocab_case *c = spm();
    c->v.n_token = 0;
    expect(c, "no tokens", IMP_INVALID, "empty");
    c = spm();
    add(c, "ab", IMP_TOKEN_NORMAL, 0);
    expect(c, "duplicate", IMP_INVALID, "same spelling");
    c = spm();
    c->kind[5] = 7;
    expect(c, "kind", IMP_INVALID, "kind 7");
    c = spm();
    c->v.score = NULL;
    expect(c, "no scores", IMP_INVALID, "no scores");
    c = spm();
    c->score[260] = (float)(1e30 * 1e30);
    expect(c, "infinite score", IMP_INVALID, "token 260");
    c = spm();
    c->token[3 + 0x41] = (imp_vocab_str){"other", 5};
    c->v.unk = -1;
    expect(c, "no byte, no unknown", IMP_INVALID, "0x41");
    c = spm();
    c->v.charsmap = "\x10\0\0\0\0";
    c->v.n_charsmap = 5;
    expect(c, "charsmap", IMP_FORMAT, "character map");
    c = bpe();
    c->v.pre = "no-such-pre";
    expect(c, "pre-tokenizer", IMP_UNSUPPORTED, "no-such-pre");
    c = bpe();
    c->v.pre = NULL;
    expect(c, "no pre-tokenizer", IMP_UNSUPPORTED, "none named");
    static const char *const merges[] = {"", " ", "a", "a ", " b", "ab"};
    for (size_t i = 0; i < IMP_COUNT(merges); i++) {
        c = bpe();
        c->merge[0] = (imp_vocab_str){merges[i], strlen(merges[i])};
        expect(c, merges[i], IMP_INVALID, "merge 0");
    }
    c = bpe();
    c->merge[0] = (imp_vocab_str){"a q", 3}; /* of a vocabulary that was cut down: it can never apply */
    expect(c, "merge of a missing piece", IMP_OK, "");
}

static void ids_are(const imp_tokenizer *t, const char *text, size_t n, unsigned flags, const int32_t *want,
                    size_t n_want)
{
    imp_ids ids = {0};
    imp_error err = {0};
    assert_int_equal(imp_tokenizer_encode(t, text, n, flags, &ids, &err), IMP_OK);
    if (ids.n != n_want || (n_want && memcmp(ids.id, want, n_want * sizeof *want) != 0)) {
        for (size_t i = 0; i < ids.n; i++) printf("# %zu: %d\n", i, ids.id[i]);
        fail_msg("wrong ids for \"%s\", flags %u", text, flags);
    }
    imp_ids_deinit(&ids);
}
#define IDS_ARE(t, text, flags, ...)                                                                         \
    ids_are(t, text, sizeof(text) - 1, flags, (const int32_t[]){__VA_ARGS__},                                \
            sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

/* Ids worked out by hand: 259 is the space, 263 " ab", 266 the user token; byte b is 3 + b. */
static void test_spm_by_hand(void **state)
{
    (void)state;
    vocab_case *c = spm();
    imp_tokenizer *t;
    imp_error err = {0};
    assert_int_equal(imp_tokenizer_from_vocab(&c->v, &t, &err), IMP_OK);
    IDS_ARE(t, "ab", 0, 263);
    IDS_ARE(t, "ab", IMP_TOK_ADD_SPECIAL, 1, 263);
    IDS_ARE(t, "aab ab", 0, 259, 260, 262, 263);
    IDS_ARE(t, "\xC3\xA4", 0, 259, 3 + 0xC3, 3 + 0xA4);
    IDS_ARE(t, "\xFF\xE2\x96", 0, 259, 3 + 0xFF, 3 + 0xE2, 3 + 0x96);
    IDS_ARE(t, "a<|u|>b", 0, 259, 260, 266, 259, 261);
    IDS_ARE(t, "<s>", IMP_TOK_PARSE_SPECIAL, 1);
    IDS_ARE(t, "<s>", 0, 259, 267, 268);
    IDS_ARE(t, "<0x41>", IMP_TOK_PARSE_SPECIAL, 259, 3 + '<', 3 + '0', 3 + 'x', 3 + '4', 3 + '1', 268);
    ids_are(t, "", 0, 0, NULL, 0);
    assert_int_equal(imp_tokenizer_find(t, "ab", 2), 262);
    assert_int_equal(imp_tokenizer_find(t, "zz", 2), -1);
    assert_null(imp_tokenizer_piece(t, (int32_t)imp_tokenizer_n(t), NULL));
    assert_null(imp_tokenizer_piece(t, -1, NULL));
    assert_int_equal(imp_tokenizer_kind(t, 1), IMP_TOKEN_CONTROL);
    assert_int_equal(imp_tokenizer_bos(t), 1);
    assert_int_equal(imp_tokenizer_pad(t), -1);
    imp_tokenizer_free(t);
    free(c);
}

static void decodes_to(const imp_tokenizer *t, const int32_t *ids, size_t n, bool continues, const char *want)
{
    imp_buf out = {0};
    imp_detok d;
    imp_detok_init(&d, t, false);
    if (continues) imp_detok_continue(&d);
    for (size_t i = 0; i < n; i++) imp_detok_push(&d, ids[i], &out);
    imp_detok_flush(&d, &out);
    assert_string_equal(out.data ? out.data : "", want);
    imp_buf_deinit(&out);
}

static void test_decode_by_hand(void **state)
{
    (void)state;
    vocab_case *c = spm();
    imp_tokenizer *t;
    imp_error err = {0};
    assert_int_equal(imp_tokenizer_from_vocab(&c->v, &t, &err), IMP_OK);
    decodes_to(t, (int32_t[]){1, 263, 263, 2}, 4, false, "ab ab");
    decodes_to(t, (int32_t[]){263, 263}, 2, true, " ab ab");
    decodes_to(t, (int32_t[]){260, 3 + 0xE4, 3 + 0xBD, 3 + 0xA0, 261}, 5, false,
               "a\xE4\xBD\xA0"
               "b");
    decodes_to(t, (int32_t[]){260, 3 + 0xE4, 3 + 0xBD, 261}, 4, false,
               "a\xEF\xBF\xBD\xEF\xBF\xBD"
               "b");
    decodes_to(t, (int32_t[]){260, 3 + 0xE4, 3 + 0xBD}, 3, false, "a\xEF\xBF\xBD\xEF\xBF\xBD");
    decodes_to(t, (int32_t[]){-1, 260, 5000, INT32_MAX, INT32_MIN, 264}, 6, false, "a");
    imp_tokenizer_free(t);
    free(c);
}

/* ---- regular expressions ------------------------------------------------------------------------------------- */

/* The first match in text, -1: none. */
static int first_match(const char *pattern, const char *text, size_t *begin)
{
    imp_regex *re;
    imp_match *m = imp_match_new();
    imp_error err = {0};
    bool found;
    size_t end = 0;
    if (imp_regex_new(pattern, strlen(pattern), &re, &err) != IMP_OK) fail_msg("%s: %s", pattern, err.text);
    assert_int_equal(imp_regex_find(re, m, text, strlen(text), 0, &found, begin, &end, &err), IMP_OK);
    imp_regex_free(re);
    imp_match_free(m);
    return found ? (int)(end - *begin) : -1;
}

static void test_regex(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *text;
        int length; /* of the first match */
    } cases[] = {
        {"\\s+", "\xE1\xA0\x8E", -1}, /* U+180E is no space since Unicode 6.3 */
        {"\\S+", "\xE1\xA0\x8E", 3},
        {"[\\s]", "\xC2\x85", 2},
        {"\\w+", "e\xCC\x81_\xD9\xA3!", 6}, /* marks and digits are of words */
        {"\\h+", "xyBEEFg", 4},             /* a hexadecimal digit, not a space */
        {"\\d+", "\xD9\xA3\xC2\xB2", 2},
        {"a$", "a\nb", 1}, /* the end of a line */
        {"\\u0041\\x42\\x{43}", "ABC", 3},
        {"(?i:'s)", "'\xC5\xBF", 3}, /* the long s folds to s */
    };
    for (size_t i = 0; i < IMP_COUNT(cases); i++) {
        size_t begin;
        assert_int_equal(first_match(cases[i].pattern, cases[i].text, &begin), cases[i].length);
    }
}

/* The first word of a text, as the models' own descriptions have it. */
static void test_named_patterns(void **state)
{
    (void)state;
    static const struct {
        const char *pre, *text;
        int length;
    } cases[] = {
        {"gpt-2", "12345", 5},       {"llama-bpe", "12345", 3},   {"qwen2", "12345", 1},
        {"tekken", "12345", 1},      {"gpt-4o", "12345", 3},      {"dbrx", "12345", 3},
        {"gpt-2", "'LL be", 1},      {"llama-bpe", "'LL be", 3},  {"llama-bpe", "HelloWorld", 10},
        {"gpt-4o", "HelloWorld", 5}, {"tekken", "HelloWorld", 5}, {"gpt-4o", "it's", 4},
        {"tekken", "it's", 2},       {"gpt-2", "!\n\n", 1},       {"llama-bpe", "!\n\n", 3},
        {"gpt-4o", "!/\n", 3},       {"llama-bpe", "\n \n x", 3}, {"qwen2", "   x", 2},
    };
    for (size_t i = 0; i < IMP_COUNT(cases); i++) {
        size_t begin;
        int n = first_match(imp_pre_find(cases[i].pre)->pattern[0], cases[i].text, &begin);
        if (begin != 0 || n != cases[i].length) fail_msg("%s on \"%s\": %d", cases[i].pre, cases[i].text, n);
    }
}

/* ---- properties ---------------------------------------------------------------------------------------------------- */

static void check_stream(const imp_tokenizer *t, const int32_t *ids, size_t n, bool special)
{
    imp_buf all = {0}, stream = {0};
    imp_error err = {0};
    imp_detok d;
    assert_int_equal(imp_tokenizer_decode(t, ids, n, special, &all, &err), IMP_OK);
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

static void test_streams(void **state)
{
    (void)state;
    rng r = {77};
    for (size_t k = 0; k < IMP_COUNT(trained); k++) {
        imp_tokenizer *t = load_trained(trained[k]);
        for (int round = 0; round < 200; round++) {
            int32_t ids[40];
            size_t n = rng_below(&r, 40);
            for (size_t i = 0; i < n; i++)
                ids[i] = (int32_t)rng_below(&r, (uint32_t)imp_tokenizer_n(t) + 2) - 1;
            check_stream(t, ids, n, round & 1);
        }
        imp_tokenizer_free(t);
    }
}

/* Bytes of all kinds: they encode, no control token comes of it, and what comes decodes to valid UTF-8. */
static void test_random_bytes(void **state)
{
    (void)state;
    static const char *const bits[] = {
        "<s>", "</s>", "<|endoftext|>", "[CLS]", "<|im_start|>", "<|begin_of_text|>", " ", "\xE2\x96\x81"};
    rng r = {99};
    for (size_t k = 0; k < IMP_COUNT(trained); k++) {
        imp_tokenizer *t = load_trained(trained[k]);
        for (int round = 0; round < 100; round++) {
            imp_buf text = {0};
            imp_ids ids = {0};
            imp_error err = {0};
            for (uint32_t i = rng_below(&r, 12); i > 0; i--) {
                uint64_t noise = rng_u64(&r);
                if (rng_below(&r, 2))
                    imp_buf_add(&text, &noise, rng_below(&r, 9));
                else
                    imp_buf_str(&text, bits[rng_below(&r, IMP_COUNT(bits))]);
            }
            assert_int_equal(imp_tokenizer_encode(t, text.data ? text.data : "", text.n, 0, &ids, &err),
                             IMP_OK);
            for (size_t i = 0; i < ids.n; i++)
                if (imp_tokenizer_kind(t, ids.id[i]) == IMP_TOKEN_CONTROL && (uint32_t)ids.id[i] != t->unk)
                    fail_msg("%s: control token %d out of plain text", trained[k], ids.id[i]);
            check_stream(t, ids.id, ids.n, true);
            imp_buf_deinit(&text);
            imp_ids_deinit(&ids);
        }
        imp_tokenizer_free(t);
    }
}

/* The nth allocation fails, for every n: the status says so, *out keeps its length, nothing leaks. */
static void test_allocation_failures(void **state)
{
    (void)state;
    static const char *const names[] = {"qwen2", "llama2", "t5", "bert"};
    static const char text[] = "Hello w\xC3\xB6rld e\xCC\x81 123 <|im_end|> \xF0\x9F\x91\x8D\xF0\x9F\x8F\xBD";
    for (size_t k = 0; k < IMP_COUNT(names); k++) {
        char path[256];
        imp_sys_file f;
        imp_error err = {0};
        snprintf(path, sizeof path, "tests/data/tokenizer/%s.json", names[k]);
        assert_int_equal(imp_sys_file_open(path, false, &f, &err), IMP_OK);
        bool done = false;
        for (uint64_t n = 1; !done; n++) {
            imp_tokenizer *t = NULL;
            imp_ids ids = {0};
            imp_buf out = {0};
            imp_sys_fail_at(n);
            imp_status s = imp_tokenizer_from_json((const char *)f.data, f.n, NULL, &t, &err);
            if (s == IMP_OK) s = imp_tokenizer_encode(t, text, sizeof text - 1, 3, &ids, &err);
            if (s == IMP_OK) s = imp_tokenizer_decode(t, ids.id, ids.n, true, &out, &err);
            imp_sys_fail_at(0);
            if (s != IMP_OK && s != IMP_NOMEM)
                fail_msg("%s, call %llu: %s", names[k], (unsigned long long)n, err.text);
            done = s == IMP_OK;
            imp_tokenizer_free(t);
            imp_ids_deinit(&ids);
            imp_buf_deinit(&out);
            assert_true(n < 2000);
        }
        imp_sys_file_close(&f);
    }
}

/* ---- configuration ---------------------------------------------------------------------------------------------------- */

static void test_config(void **state)
{
    (void)state;
    static const struct {
        const char *config;
        size_t n_prefix, n_suffix;
        int32_t bos, eos;
    } cases[] = {
        {"{}", 1, 0, -1, -1},
        {"{\"bos_token\":\"<s>\",\"eos_token\":{\"content\":\"</s>\"}}", 1, 0, 1, 2},
        {"{\"bos_token\":\"<s>\",\"eos_token\":\"not there\",\"add_bos_token\":false}", 1, 0, 1, -1},
        {"{\"bos_token\":\"<s>\",\"add_bos_token\":false,\"tokenizer_class\":\"LlamaTokenizer\"}", 0, 0, 1,
         -1},
        {"{\"bos_token\":\"<s>\",\"eos_token\":\"</"
         "s>\",\"add_eos_token\":true,\"tokenizer_class\":\"GemmaTokenizerFast\"}",
         1, 1, 1, 2},
    };
    imp_sys_file f;
    imp_error err = {0};
    assert_int_equal(imp_sys_file_open("tests/data/tokenizer/llama2.json", false, &f, &err), IMP_OK);
    for (size_t i = 0; i < IMP_COUNT(cases); i++) {
        imp_tokenizer *t;
        json_t *config = json_loads(cases[i].config, 0, NULL);
        assert_int_equal(imp_tokenizer_from_json((const char *)f.data, f.n, config, &t, &err), IMP_OK);
        assert_int_equal(t->n_prefix, cases[i].n_prefix);
        assert_int_equal(t->n_suffix, cases[i].n_suffix);
        assert_int_equal(imp_tokenizer_bos(t), cases[i].bos);
        assert_int_equal(imp_tokenizer_eos(t), cases[i].eos);
        assert_int_equal(imp_tokenizer_adds_bos(t), cases[i].n_prefix > 0);
        imp_tokenizer_free(t);
        json_decref(config);
    }
    imp_sys_file_close(&f);
}

/* Words of 40,000 bytes of one kind: a quadratic step would run into the time limit of the sanitiser runs. */
static void test_hostile_length(void **state)
{
    (void)state;
    static const char *const units[] = {
        "a", " ", "\n", "1", "!", "<", "\xCC\x81\xCC\xA3", "\xE2\x96\x81", "\xFF", "ab", "\xE4\xBD\xA0"};
    for (size_t k = 0; k < IMP_COUNT(trained); k++) {
        imp_tokenizer *t = load_trained(trained[k]);
        for (size_t u = 0; u < IMP_COUNT(units); u++) {
            imp_buf text = {0};
            imp_ids ids = {0};
            imp_error err = {0};
            while (text.n < 40000) imp_buf_str(&text, units[u]);
            assert_int_equal(imp_tokenizer_encode(t, text.data, text.n, 3, &ids, &err), IMP_OK);
            imp_ids_deinit(&ids);
            imp_buf_deinit(&text);
        }
        imp_tokenizer_free(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_vocab_refused),
        cmocka_unit_test(test_json_escapes),
        cmocka_unit_test(test_json_truncated),
        cmocka_unit_test(test_spm_by_hand),
        cmocka_unit_test(test_decode_by_hand),
        cmocka_unit_test(test_regex),
        cmocka_unit_test(test_named_patterns),
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_random_bytes),
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_hostile_length),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
