/* tests/unit/text_grammar.c - constraints: what is accepted, what is refused, and that a mask is what it says.
 *
 * Idea:    languages are told by examples inside and outside of them (the outside ones from the specifications, not from
 *          our code); a mask is compared with feeding every token's bytes by themselves; random answers must always come to an
 *          end. Random schemas against another validator: tests/reference/schema.py. */
#include "test.h"

#include "base/base.h"
#include "text/grammar.h"

static imp_tokenizer *load(const char *name)
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

typedef struct fixture {
    imp_tokenizer *t;
    imp_vocab_tree *v;
    uint32_t n_word;
    int32_t end;
} fixture;

static fixture open_vocab(const char *name)
{
    fixture f = {.t = load(name)};
    imp_error err = {0};
    f.end = 0;
    assert_int_equal(imp_vocab_tree_new(f.t, &f.end, 1, &f.v, &err), IMP_OK);
    f.n_word = ((uint32_t)imp_tokenizer_n(f.t) + 31) / 32;
    return f;
}

static void close_vocab(fixture *f)
{
    imp_vocab_tree_free(f->v);
    imp_tokenizer_free(f->t);
}

static imp_matcher *matcher(const fixture *f, imp_grammar *g, size_t max_bytes)
{
    imp_masker *m;
    imp_matcher *x;
    assert_int_equal(imp_masker_new(g, f->v, max_bytes, &m), IMP_OK);
    assert_int_equal(imp_matcher_new(m, &x), IMP_OK);
    imp_masker_unref(m);
    return x;
}

typedef enum kind { SCHEMA, GBNF, REGEX } kind;

static imp_status compile(kind k, const char *text, imp_grammar **g, imp_error *err)
{
    *err = (imp_error){0};
    if (k == GBNF) return imp_grammar_from_gbnf(text, strlen(text), g, err);
    if (k == REGEX) return imp_grammar_from_regex(text, strlen(text), g, err);
    json_error_t je;
    json_t *s = json_loads(text, JSON_DECODE_ANY, &je);
    if (s == NULL) fail_msg("%s: %s", text, je.text);
    imp_status st = imp_grammar_from_schema(s, g, err);
    json_decref(s);
    return st;
}

/* Does the grammar take all of `text`, and may it end there? Token by token is the same as byte by byte. */
static bool takes(const fixture *f, imp_grammar *g, const char *text)
{
    imp_matcher *x = matcher(f, g, 1 << 22);
    bool all = imp_matcher_prefix(x, text, strlen(text)) == strlen(text);
    if (all) {
        imp_ids ids = {0};
        imp_error err;
        assert_int_equal(imp_tokenizer_encode(f->t, text, strlen(text), 0, &ids, &err), IMP_OK);
        for (size_t i = 0; i < ids.n; i++) assert_true(imp_matcher_accept(x, ids.id[i]));
        all = imp_matcher_can_end(x);
        imp_ids_deinit(&ids);
    }
    imp_matcher_free(x);
    return all;
}

/* ---- languages ------------------------------------------------------------------------------------------------- */

static const struct {
    kind kind;
    const char *text;
    const char *in[6], *out[8];
} language[] = {
    {REGEX, "a|b+c?", {"a", "b", "bbb", "bc"}, {"", "ab", "c", "acc"}},
    {REGEX, "[^a-c\\d]x{2,3}", {"zxx", "\xc3\xa9xxx", "-xx"}, {"axx", "5xx", "zx", "zxxxx"}},
    {REGEX,
     "(\\w+@)?\\u00e9{2}|\\x41\\.",
     {"a_1@\xc3\xa9\xc3\xa9", "\xc3\xa9\xc3\xa9", "A."},
     {"@\xc3\xa9\xc3\xa9", "AB"}},
    {REGEX, "(?:a*)*b", {"b", "aaab"}, {"a", "ba"}},
    {REGEX, "\\S\\D\\W", {"xx-", "-- "}, {"x1-", " x-", "xxx", "xx\xc3\xa9"}},
    {GBNF,
     "root ::= \"yes\" | \"no\" ws item+ # comment\nws ::= [ \\t]*\nitem ::= \"(\" root \")\"\n  | [0-9]{2}",
     {"yes", "no 12", "no(yes)", "no(no34)(yes)"},
     {"no", "no 1", "no(yes", "yes "}},
    {GBNF,
     "root ::= list\nlist ::= \"a\" list | \"b\"",
     {"b", "ab", "aaaaaaaaaaaaaaaaaaaaaaab"},
     {"a", "ba"}},
    {SCHEMA,
     "{\"type\":\"integer\",\"minimum\":-3,\"maximum\":120}",
     {"0", "-3", "120", "99", "7"},
     {"-4", "121", "1.0", "01", "-0", "999"}},
    {SCHEMA,
     "{\"type\":\"number\",\"exclusiveMinimum\":0.25,\"maximum\":12.5}",
     {"0.26", "12.5", "0.2500001", "3", "12.50"},
     {"0.25", "0.250", "12.51", "0", "13", "-1", "0.2"}},
    {SCHEMA, "{\"type\":\"integer\",\"multipleOf\":7}", {"0", "7", "-14", "700"}, {"1", "8", "07", ""}},
    {SCHEMA,
     "{\"type\":\"string\",\"minLength\":2,\"maxLength\":3}",
     {"\"ab\"", "\"\xc3\xa9\\n\\u00e9\"", "\"abc\""},
     {"\"a\"", "\"abcd\"", "\"a\nb\"", "ab"}},
    {SCHEMA,
     "{\"type\":\"string\",\"pattern\":\"^[a-z\\\"]+$\"}",
     {"\"a\\\"b\""},
     {"\"\"", "\"A\"", "\"a\"b\""}},
    {SCHEMA, "{\"type\":\"string\",\"pattern\":\"b.\"}", {"\"xxb1yy\"", "\"bb\""}, {"\"b\"", "\"xx\""}},
    {SCHEMA,
     "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"boolean\"},\"b\":{\"const\":1},\"c\":{\"enum\":["
     "\"x\",null]}},"
     "\"required\":[\"b\"]}",
     {"{\"b\":1}", "{ \"a\": true, \"b\": 1, \"c\": null }", "{\"b\":1,\"c\":\"x\"}", "{\n  \"b\": 1\n}"},
     {"{}", "{\"a\":true}", "{\"b\":1,}", "{\"b\":1,\"a\":true}", "{\"b\":1,\"d\":2}", "{\"b\":2}"}},
    {SCHEMA,
     "{\"type\":\"object\",\"properties\":{\"ab\":{\"const\":1}},\"additionalProperties\":{\"type\":"
     "\"integer\"}}",
     {"{}", "{\"ab\":1}", "{\"a\":5}", "{\"ab\":1,\"abc\":5,\"\":6}"},
     {"{\"ab\":5}", "{\"a\":\"x\"}"}},
    {SCHEMA,
     "{\"type\":\"object\",\"additionalProperties\":true,\"minProperties\":1,\"maxProperties\":2}",
     {"{\"a\":[]}", "{\"a\":1,\"b\":{}}"},
     {"{}", "{\"a\":1,\"b\":2,\"c\":3}"}},
    {SCHEMA,
     "{\"type\":\"array\",\"prefixItems\":[{\"const\":1},{\"const\":2}],\"items\":{\"const\":3},\"minItems\":"
     "1,"
     "\"maxItems\":3}",
     {"[1]", "[1,2]", "[ 1, 2, 3 ]"},
     {"[]", "[2]", "[1,3]", "[1,2,3,3]", "[1,2,]"}},
    {SCHEMA,
     "{\"$ref\":\"#/$defs/"
     "n\",\"$defs\":{\"n\":{\"type\":\"object\",\"properties\":{\"v\":{\"type\":\"integer\"},"
     "\"next\":{\"anyOf\":[{\"$ref\":\"#/$defs/n\"},{\"type\":\"null\"}]}},\"required\":[\"v\",\"next\"]}}}",
     {"{\"v\":1,\"next\":null}", "{\"v\":1,\"next\":{\"v\":2,\"next\":{\"v\":3,\"next\":null}}}"},
     {"{\"v\":1}", "{\"v\":1,\"next\":{}}", "{\"v\":1,\"next\":null}}"}},
    {SCHEMA,
     "{\"allOf\":[{\"type\":\"integer\",\"minimum\":3},{\"maximum\":5}]}",
     {"3", "5"},
     {"2", "6", "x"}},
    {SCHEMA, "{\"oneOf\":[{\"type\":\"string\"},{\"type\":\"integer\"}]}", {"\"\"", "4"}, {"null", "4.5"}},
    {SCHEMA,
     "{\"type\":\"string\",\"format\":\"date-time\"}",
     {"\"2026-11-22T10:00:00Z\""},
     {"\"2026-02-30T10:00:00Z\"", "\"\""}},
    {SCHEMA, "{}", {"null", "[1,{\"a\":\"b\"}]", "-1.5e3", "\"\""}, {"", "{a:1}", "[1", "tru"}},
    {SCHEMA, "{\"type\":[\"null\",\"boolean\"]}", {"null", "false"}, {"0", "\"null\""}},
};

static void languages(void **state)
{
    (void)state;
    fixture f = open_vocab("gpt2");
    for (size_t i = 0; i < IMP_COUNT(language); i++) {
        imp_grammar *g;
        imp_error err;
        if (compile(language[i].kind, language[i].text, &g, &err) != IMP_OK)
            fail_msg("%s: %s", language[i].text, err.text);
        for (size_t k = 0; k < IMP_COUNT(language[i].in) && language[i].in[k] != NULL; k++)
            if (!takes(&f, g, language[i].in[k]))
                fail_msg("%s refuses %s", language[i].text, language[i].in[k]);
        for (size_t k = 0; k < IMP_COUNT(language[i].out) && language[i].out[k] != NULL; k++)
            if (takes(&f, g, language[i].out[k]))
                fail_msg("%s takes %s", language[i].text, language[i].out[k]);
        imp_grammar_unref(g);
    }
    close_vocab(&f);
}

/* ---- refusals: by name, and quickly ---------------------------------------------------------------------------------- */

static const struct {
    kind kind;
    const char *text, *says;
} refused[] = {
    {SCHEMA, "{\"not\":{}}", "not"},
    {SCHEMA, "{\"type\":\"string\",\"frmat\":\"date\"}", "frmat"},
    {SCHEMA, "{\"type\":\"string\",\"format\":\"color\"}", "format"},
    {SCHEMA, "{\"type\":\"strin\"}", "type"},
    {SCHEMA, "{\"type\":\"array\",\"uniqueItems\":true}", "uniqueItems"},
    {SCHEMA, "{\"$ref\":\"http://a/b\"}", "$ref"},
    {SCHEMA, "{\"$ref\":\"#/nothing\"}", "nothing"},
    {SCHEMA, "{\"$ref\":\"#\"}", "satisfy"},
    {SCHEMA, "{\"allOf\":[{\"$ref\":\"#\"}]}", "circle"},
    {SCHEMA, "{\"oneOf\":[{\"type\":\"integer\"},{\"minimum\":3}]}", "oneOf"},
    {SCHEMA, "{\"type\":\"integer\",\"minimum\":3,\"maximum\":2}", "satisfy"},
    {SCHEMA, "{\"type\":\"object\",\"required\":[\"a\"],\"properties\":{\"a\":false}}", "satisfy"},
    {SCHEMA, "{\"type\":\"string\",\"pattern\":\"(?=a)b\"}", "look-around"},
    {SCHEMA, "{\"type\":\"string\",\"pattern\":\"a\\\\1\"}", "back ref"},
    {SCHEMA, "5", "must be an object"},
    {REGEX, "(a", "not closed"},
    {REGEX, "a)", ") without ("},
    {REGEX, "[z-a]", "wrong way"},
    {REGEX, "a{3,2}", "m above n"},
    {REGEX, "*a", "nothing to repeat"},
    {REGEX, "a\\", "backslash"},
    {REGEX, "\xff", "UTF-8"},
    {REGEX, "(((a{1000}){1000}){1000}){1000}", "too large"},
    {GBNF, "root ::= a", "\"a\" is used but not defined"},
    {GBNF, "a ::= \"x\"", "root"},
    {GBNF, "root ::= root \"a\" | \"b\"", "begin with itself"},
    {GBNF, "root ::= a root | \"b\"\na ::= \"c\"?", "begin with itself"},
    {GBNF, "root ::= \"a\" root", "satisfy"},
    {GBNF, "root ::= \"a\"\nroot ::= \"b\"", "twice"},
    {GBNF, "root ::= [a", "not closed"},
    {GBNF, "root = a", "::="},
};

static void refusals(void **state)
{
    (void)state;
    for (size_t i = 0; i < IMP_COUNT(refused); i++) {
        imp_grammar *g;
        imp_error err;
        if (compile(refused[i].kind, refused[i].text, &g, &err) == IMP_OK)
            fail_msg("%s is taken", refused[i].text);
        assert_null(g);
        if (strstr(err.text, refused[i].says) == NULL) fail_msg("%s: %s", refused[i].text, err.text);
    }
}

/* Deep, long and exponential inputs end quickly; speed itself is only printed. */
static void bombs(void **state)
{
    (void)state;
    imp_grammar *g;
    imp_error err;
    imp_buf b = {0};
    uint64_t worst = 0;
    for (int k = 0; k < 5; k++) {
        b.n = 0;
        if (k == 0)
            for (int i = 0; i < 60000; i++) imp_buf_str(&b, "(");
        if (k == 1) {
            imp_buf_str(&b, "root ::= r0\n");
            for (int i = 0; i < 64; i++) imp_buf_fmt(&b, "r%d ::= r%d r%d\n", i, i + 1, i + 1);
            imp_buf_str(&b, "r64 ::= \"a\"\n");
        }
        if (k == 2) {
            imp_buf_str(&b, "root ::= r0\n");
            for (int i = 0; i < 20000; i++) imp_buf_fmt(&b, "r%d ::= r%d? [a-z]\n", i, i + 1);
            imp_buf_str(&b, "r20000 ::= \"a\"\n");
        }
        if (k == 3)
            for (int i = 0; i < 30000; i++) imp_buf_str(&b, "(a|b)?");
        if (k == 4) {
            imp_buf_str(&b, "root ::= ");
            for (int i = 0; i < 60000; i++) imp_buf_str(&b, "(");
        }
        uint64_t t0 = imp_now_ns();
        imp_status s = k == 1 || k == 2 || k == 4 ? imp_grammar_from_gbnf(b.data, b.n, &g, &err)
                                                  : imp_grammar_from_regex(b.data, b.n, &g, &err);
        uint64_t t = imp_now_ns() - t0;
        worst = IMP_MAX(worst, t);
        if (k == 0 || k == 4) assert_int_not_equal(s, IMP_OK);
        if (s == IMP_OK) imp_grammar_unref(g);
        print_message("# bomb %d: %s in %.1f ms\n", k, imp_status_name(s), (double)t * 1e-6);
    }
    imp_buf_deinit(&b);
    json_t *deep = json_pack("{s:s}", "type", "null");
    for (int i = 0; i < 2000; i++) deep = json_pack("{s:s,s:o}", "type", "array", "items", deep);
    assert_int_equal(imp_grammar_from_schema(deep, &g, &err), IMP_TOO_LARGE);
    json_decref(deep);
}

/* ---- masks ------------------------------------------------------------------------------------------------------------- */

/* The mask, and what feeding every token by itself says. */
static void check_mask(const fixture *f, imp_matcher *x, uint32_t *mask)
{
    imp_error err;
    if (imp_matcher_mask(x, mask, &err) != IMP_OK) fail_msg("%s", err.text);
    imp_buf b = {0};
    for (int32_t id = 0; id < (int32_t)imp_tokenizer_n(f->t); id++) {
        b.n = 0;
        imp_token_spell(f->t, id, &b);
        bool want =
            id == f->end ? imp_matcher_can_end(x) : b.n > 0 && imp_matcher_prefix(x, b.data, b.n) == b.n;
        if (want != (mask[id / 32] >> (id % 32) & 1))
            fail_msg("token %d (%.*s): %d", id, (int)b.n, b.data, want);
    }
    imp_buf_deinit(&b);
}

static int32_t draw(const uint32_t *mask, uint32_t n_word, rng *r)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_word; i++) n += (uint32_t)__builtin_popcount(mask[i]);
    uint32_t pick = rng_below(r, n);
    for (uint32_t i = 0; i < n_word; i++)
        for (uint32_t w = mask[i]; w != 0; w &= w - 1)
            if (pick-- == 0) return (int32_t)(i * 32 + (uint32_t)__builtin_ctz(w));
    return -1;
}

static const char *const walked[] = {
    "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\",\"maxLength\":9},\"n\":{\"type\":"
    "\"integer\"},"
    "\"tags\":{\"type\":\"array\",\"items\":{\"enum\":[\"red\",\"green\",\"grey\"]},\"maxItems\":4}},"
    "\"required\":[\"name\","
    "\"tags\"]}",
    "{\"type\":\"array\",\"items\":{\"type\":\"number\",\"minimum\":-2.5,\"maximum\":3},\"maxItems\":5}",
    "{}",
    "{\"type\":\"string\",\"pattern\":\"^([a-f]{2}-)*[0-9]+$\"}",
};

/* Random answers: every mask is right, every chosen token is accepted, with a masker that forgets all the time too. */
static void masks_are_exact(void **state)
{
    (void)state;
    static const char *const vocab[] = {"gpt2", "llama2"};
    for (size_t v = 0; v < IMP_COUNT(vocab); v++) {
        fixture f = open_vocab(vocab[v]);
        uint32_t *mask = calloc(f.n_word, sizeof *mask);
        for (size_t i = 0; i < IMP_COUNT(walked); i++)
            for (uint32_t seed = 1; seed < 4; seed++) {
                imp_grammar *g;
                imp_error err;
                rng r = {seed};
                assert_int_equal(compile(SCHEMA, walked[i], &g, &err), IMP_OK);
                imp_matcher *x = matcher(&f, g, seed == 1 ? 1 : 1 << 22);
                for (int step = 0; step < 24; step++) {
                    check_mask(&f, x, mask);
                    int32_t id = draw(mask, f.n_word, &r);
                    if (id == f.end) break;
                    assert_true(imp_matcher_accept(x, id));
                    assert_false(imp_matcher_accept(x, -1));
                }
                imp_matcher_free(x);
                imp_grammar_unref(g);
            }
        free(mask);
        close_vocab(&f);
    }
}

/* What must follow is told without asking a model: keys whose value has begun, closing quotes of constants. */
static void forced_text(void **state)
{
    (void)state;
    fixture f = open_vocab("gpt2");
    imp_grammar *g;
    imp_error err;
    imp_buf b = {0};
    assert_int_equal(compile(REGEX, "\"name\":(true|null)", &g, &err), IMP_OK);
    imp_matcher *x = matcher(&f, g, 1 << 20);
    imp_matcher_forced(x, &b);
    assert_string_equal(b.data, "\"name\":");
    imp_ids ids = {0};
    assert_int_equal(imp_tokenizer_encode(f.t, "\"name\":t", 8, 0, &ids, &err), IMP_OK);
    for (size_t i = 0; i < ids.n; i++) assert_true(imp_matcher_accept(x, ids.id[i]));
    b.n = 0;
    imp_matcher_forced(x, &b);
    assert_string_equal(b.data, "rue");
    assert_false(imp_matcher_must_end(x));
    ids.n = 0;
    assert_int_equal(imp_tokenizer_encode(f.t, "rue", 3, 0, &ids, &err), IMP_OK);
    for (size_t i = 0; i < ids.n; i++) assert_true(imp_matcher_accept(x, ids.id[i]));
    assert_true(imp_matcher_must_end(x));
    imp_ids_deinit(&ids);
    imp_buf_deinit(&b);
    imp_matcher_free(x);
    imp_grammar_unref(g);
    close_vocab(&f);
}

/* The nth allocation fails, for every n: a status and no leak. */
static void every_allocation_fails(void **state)
{
    (void)state;
    fixture f = open_vocab("gpt2");
    uint32_t *mask = calloc(f.n_word, sizeof *mask);
    bool done = false;
    for (uint64_t n = 1; !done; n++) {
        imp_grammar *g = NULL;
        imp_masker *m = NULL;
        imp_matcher *x = NULL;
        imp_error err;
        json_t *s = json_loads(walked[0], 0, NULL);
        imp_sys_fail_at(n);
        imp_status st = imp_grammar_from_schema(s, &g, &err);
        if (st == IMP_OK) st = imp_masker_new(g, f.v, 1 << 20, &m);
        if (st == IMP_OK) st = imp_matcher_new(m, &x);
        for (int i = 0; i < 4 && st == IMP_OK; i++) {
            st = imp_matcher_mask(x, mask, &err);
            if (st == IMP_OK && !imp_matcher_accept(x, draw(mask, f.n_word, &(rng){n}))) st = IMP_NOMEM;
        }
        imp_sys_fail_at(0);
        done = st == IMP_OK;
        if (!done) assert_int_equal(st, IMP_NOMEM);
        imp_matcher_free(x);
        imp_masker_unref(m);
        imp_grammar_unref(g);
        json_decref(s);
    }
    free(mask);
    close_vocab(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(languages),   cmocka_unit_test(refusals),
        cmocka_unit_test(bombs),       cmocka_unit_test(masks_are_exact),
        cmocka_unit_test(forced_text), cmocka_unit_test(every_allocation_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
