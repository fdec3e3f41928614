/* tests/api/fields.c - every request field over a real socket: at its borders, beyond them, of the wrong type, null.
 *
 * The ranges are written here again on purpose: they are the contract, the server's table is what is tested. */
#include "fake_engine.h"
#include "client.h"
#include "base/base.h"
#include "http/http.h"

#include <jansson.h>

static imp_engine *g_engine;
static imp_http *g_http;
static uint16_t g_port;
static client g_client = {.fd = -1};

static int setup(void **state)
{
    (void)state;
    imp_log_set_level(IMP_LOG_ERROR);
    imp_error err;
    imp_http_config c = {.port = 0};
    if (imp_engine_new(NULL, &g_engine, &err) != IMP_OK) return -1;
    if (imp_http_start(g_engine, &c, &g_http, &err) != IMP_OK) return -1;
    g_port = imp_http_port(g_http);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    client_close(&g_client);
    imp_http_stop(g_http, 1000);
    imp_engine_free(g_engine);
    return 0;
}

/* All on one keep-alive connection, so that a refusal must not disturb the next request. */
static answer send_body(const char *path, const char *body, size_t n)
{
    if (g_client.fd < 0) g_client = client_open(g_port);
    assert_true(client_post(&g_client, g_port, path, body, n));
    answer a = client_read(&g_client, false);
    assert_true(a.whole);
    return a;
}

#define CHAT  "/v1/chat/completions"
#define COMP  "/v1/completions"
#define EMBED "/v1/embeddings"
#define OEMB  "/api/embed"
#define OLD   "/api/embeddings"

static const char *base_of(const char *path)
{
    if (strcmp(path, CHAT) == 0) return "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]";
    if (strcmp(path, COMP) == 0) return "\"prompt\":\"hi\",\"max_tokens\":3";
    if (strcmp(path, OLD) == 0) return "\"prompt\":\"hi\"";
    return "\"input\":\"hi\"";
}

/* The request with one field replaced or added. */
static char *body_with(const char *path, const char *field, const char *value)
{
    char text[512];
    snprintf(text, sizeof text, "{%s}", base_of(path));
    json_t *o = json_loads(text, 0, NULL);
    assert_non_null(o);
    json_object_del(o, field);
    char *rest = json_dumps(o, JSON_COMPACT);
    char *out = malloc(strlen(rest) + strlen(field) + strlen(value) + 16);
    sprintf(out, "{\"%s\":%s%s%s", field, value, rest[1] == '}' ? "" : ",", rest + 1);
    free(rest);
    json_decref(o);
    return out;
}

static void expect_ok(const char *path, const char *field, const char *value)
{
    char *body = body_with(path, field, value);
    answer a = send_body(path, body, strlen(body));
    if (a.status != 200) print_error("%s %s: %d %s\n", path, body, a.status, a.body);
    assert_int_equal(a.status, 200);
    free(a.body);
    free(body);
}

static void expect_bad(const char *path, const char *field, const char *value, const char *param, int status)
{
    char *body = body_with(path, field, value);
    answer a = send_body(path, body, strlen(body));
    if (a.status != status) print_error("%s %s: %d %s\n", path, body, a.status, a.body);
    assert_int_equal(a.status, status);
    json_t *o = json_loads(a.body, 0, NULL);
    assert_non_null(o);
    if (strncmp(path, "/api/", 5) == 0) {
        const char *text = json_string_value(json_object_get(o, "error"));
        assert_non_null(text);
        if (param) assert_non_null(strstr(text, param));
    } else {
        json_t *e = json_object_get(o, "error");
        assert_true(json_is_string(json_object_get(e, "message")));
        assert_true(json_is_string(json_object_get(e, "type")));
        assert_non_null(json_object_get(e, "code"));
        const char *p = json_string_value(json_object_get(e, "param"));
        if (param && (!p || strcmp(p, param) != 0)) print_error("%s: param %s\n", body, p ? p : "null");
        if (param) assert_string_equal(p, param);
    }
    json_decref(o);
    free(a.body);
    free(body);
}

typedef struct range {
    const char *path, *field;
    const char *good[4], *bad[8];
} range;

#define BOTH_NUM(f, lo, hi, below, above)                                                                    \
    {CHAT, f, {lo, hi, "1"}, {below, above, "\"1\"", "true", "[]", "{}"}},                                   \
    {                                                                                                        \
        COMP, f, {lo, hi, "1"},                                                                              \
        {                                                                                                    \
            below, above, "\"1\"", "false", "[]", "{}"                                                       \
        }                                                                                                    \
    }

static const range g_range[] = {
    BOTH_NUM("temperature", "0", "2", "-0.001", "2.001"),
    BOTH_NUM("top_p", "0", "1", "-0.001", "1.001"),
    BOTH_NUM("min_p", "0.0", "1.0", "-1e-9", "1.5"),
    BOTH_NUM("presence_penalty", "-2", "2", "-2.01", "2.01"),
    BOTH_NUM("frequency_penalty", "-2", "2", "-2.01", "2.01"),
    BOTH_NUM("repeat_penalty", "0.01", "10", "0", "10.1"),
    BOTH_NUM("top_k", "-1", "2147483647", "-2", "2147483648"),
    BOTH_NUM("repeat_last_n", "-1", "2147483647", "-2", "2147483648"),
    BOTH_NUM("n", "1", "128", "0", "129"),
    BOTH_NUM("typical_p", "0", "1", "-0.1", "1.1"),
    BOTH_NUM("dynatemp_range", "0", "100", "-0.1", "100.5"),
    BOTH_NUM("dynatemp_exponent", "0", "100", "-1", "101"),
    BOTH_NUM("xtc_probability", "0", "1", "-0.1", "1.1"),
    BOTH_NUM("xtc_threshold", "0", "1", "-0.1", "1.1"),
    BOTH_NUM("dry_multiplier", "0", "100", "-0.1", "101"),
    BOTH_NUM("dry_base", "1", "10", "0.9", "11"),
    BOTH_NUM("dry_allowed_length", "0", "2147483647", "-1", "2147483648"),
    BOTH_NUM("dry_penalty_last_n", "-1", "2147483647", "-2", "2147483648"),
    BOTH_NUM("mirostat", "0", "2", "-1", "3"),
    BOTH_NUM("mirostat_tau", "0", "100", "-1", "101"),
    BOTH_NUM("mirostat_eta", "0", "1", "-0.1", "1.1"),
    {CHAT, "dry_sequence_breakers", {"[]", "[\"\\n\",\"User:\"]"}, {"1", "\"x\"", "[\"\"]", "[1]", "{}"}},
    {CHAT, "n", {"1"}, {"-1", "1.5", "1000000", "1e3"}},
    {CHAT, "max_tokens", {"1", "30", "-1"}, {"0", "-2", "2147483648", "1.5", "\"5\"", "true", "[1]"}},
    {COMP, "max_tokens", {"1", "30", "-1"}, {"0", "-2", "2147483648", "1.5", "\"5\"", "true", "[1]"}},
    {CHAT, "max_completion_tokens", {"1", "30"}, {"0", "2147483648", "2.5", "\"5\""}},
    {COMP, "best_of", {"1"}, {"0", "2", "129", "\"1\"", "1.0"}},
    {CHAT,
     "seed",
     {"0", "-1", "9223372036854775807", "-9223372036854775808"},
     {"1.5", "\"1\"", "true", "[]"}},
    {COMP,
     "seed",
     {"0", "-1", "9223372036854775807", "-9223372036854775808"},
     {"1.5", "\"1\"", "true", "[]"}},
    {CHAT, "logprobs", {"true", "false"}, {"1", "\"true\"", "[]"}},
    {COMP, "logprobs", {"0", "20"}, {"-1", "21", "true", "\"1\"", "1.5"}},
    {CHAT, "top_logprobs", {"null"}, {"-1", "21", "5", "\"1\""}}, /* 5: not without logprobs */
    {CHAT, "ignore_eos", {"true", "false"}, {"1", "\"x\"", "{}"}},
    {CHAT, "stream", {"false"}, {"1", "\"true\"", "[]"}},
    {CHAT,
     "stream_options",
     {"{}", "{\"include_usage\":true}"},
     {"1", "{\"x\":1}", "{\"include_usage\":1}", "[]"}},
    {COMP, "echo", {"true", "false"}, {"0", "\"\""}},
    {COMP, "suffix", {"\"\""}, {"\"x\"", "1"}},
    {CHAT, "stop", {"\"x\"", "[]", "[\"a\",\"b\"]"}, {"\"\"", "[\"\"]", "1", "[1]", "{}", "true"}},
    {CHAT,
     "logit_bias",
     {"{}", "{\"0\":-100,\"257\":100}", "{\"5\":0.5}"},
     {"[]", "{\"258\":1}", "{\"-1\":1}", "{\"x\":1}", "{\"1\":101}", "{\"1\":\"1\"}", "{\"01\":1}",
      "{\"\":1}"}},
    {CHAT, "user", {"\"me\""}, {"1", "[]"}},
    {CHAT, "metadata", {"{\"a\":\"b\"}"}, {"1", "\"x\""}},
    {CHAT, "store", {"false"}, {"true", "0"}},
    {CHAT, "service_tier", {"\"auto\"", "\"default\""}, {"\"flex\"", "1"}},
    {CHAT, "modalities", {"[\"text\"]"}, {"[\"audio\"]", "[\"text\",\"audio\"]"}},
    {CHAT,
     "tools",
     {"[]", "[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]"},
     {"[{\"type\":\"function\"}]", "[{\"type\":\"custom\",\"name\":\"f\"}]", "{}", "1", "[1]",
      "[{\"type\":\"function\",\"function\":{\"name\":\"f g\"}}]"}},
    {CHAT, "tool_choice", {"\"none\"", "\"auto\""}, {"\"required\"", "{}"}},
    {CHAT, "parallel_tool_calls", {"true", "false"}, {"1"}},
    {CHAT, "nonsense", {NULL}, {"1", "null", "\"x\""}},
    {CHAT, "prompt", {NULL}, {"\"x\"", "1"}},
    {COMP, "messages", {NULL}, {"[]", "1"}},
    {COMP, "tools", {NULL}, {"[]"}},
    {COMP,
     "prompt",
     {"\"x\"", "[\"a\",\"b\"]", "[1,2,257]", "[[1],[2,3]]"},
     {"1", "[]", "[[]]", "[1,\"a\"]", "[258]", "[-1]", "[[1],\"a\"]", "{}"}},
    {EMBED,
     "input",
     {"\"x\"", "[\"a\",\"b\"]", "[1,2]", "[[1],[2,3]]"},
     {"1", "[]", "[[]]", "[1,\"a\"]", "[258]", "[-1]", "null", "{}"}},
    {EMBED, "encoding_format", {"\"float\"", "\"base64\"", "null"}, {"\"hex\"", "1", "\"\""}},
    {EMBED, "dimensions", {"1", "8", "null"}, {"0", "9", "1.5", "\"8\"", "-1"}},
    {EMBED, "user", {"\"me\""}, {"1"}},
    {EMBED, "truncate", {NULL}, {"true"}},
    {OEMB, "input", {"\"x\"", "[\"a\",\"b\"]", "[]", "null"}, {"1", "[1]", "[[1]]", "{}"}},
    {OEMB, "truncate", {"true", "false"}, {"1", "\"x\""}},
    {OEMB,
     "keep_alive",
     {"\"5m\"", "-1", "0", "\"1h30m\""},
     {"[]", "true", "\"soon\"", "\"\"", "\"5 m\"", "\"1.m2\""}},
    {OEMB,
     "options",
     {"{}", "{\"num_ctx\":1}", "{\"num_thread\":4,\"seed\":1}"},
     {"[]", "{\"num_ctx\":0}", "{\"num_ctx\":\"8\"}", "{\"mirostat\":1}"}},
    {OEMB, "dimensions", {"1", "8"}, {"0", "9", "\"8\""}},
    {OEMB, "prompt", {NULL}, {"\"x\""}},
    {OLD, "prompt", {"\"x\"", "\"\""}, {"1", "[\"x\"]", "{}"}},
    {OLD, "encoding_format", {NULL}, {"\"float\""}},
};

static void every_field(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof g_range / sizeof g_range[0]; i++) {
        const range *r = &g_range[i];
        for (size_t k = 0; k < 4 && r->good[k]; k++) expect_ok(r->path, r->field, r->good[k]);
        for (size_t k = 0; k < 8 && r->bad[k]; k++) expect_bad(r->path, r->field, r->bad[k], r->field, 400);
        bool required = strcmp(r->field, "prompt") == 0 || strcmp(r->field, "input") == 0;
        if (r->good[0] && !required) expect_ok(r->path, r->field, "null");
    }
    expect_bad(CHAT, "messages", "null", "messages", 400);
    expect_bad(COMP, "prompt", "null", "prompt", 400);
}

static void models(void **state)
{
    (void)state;
    expect_ok(CHAT, "model", "\"fake\"");
    expect_ok(CHAT, "model", "null"); /* one model generates */
    expect_ok(EMBED, "model", "\"emb\"");
    expect_ok(OEMB, "model", "\"emb:latest\"");
    expect_bad(CHAT, "model", "\"none\"", "model", 404);
    expect_bad(CHAT, "model", "\"emb\"", "model", 400);
    expect_bad(EMBED, "model", "\"fake\"", "model", 400);
    expect_bad(OEMB, "model", "\"fake:latest\"", NULL, 400);
    expect_bad(CHAT, "model", "1", "model", 400);
    expect_bad(CHAT, "model", "\"\"", "model", 400);
    char name[300];
    memset(name, 'x', sizeof name);
    name[0] = name[257] = '"';
    name[258] = 0;
    expect_bad(CHAT, "model", name, "model", 404); /* 256 bytes: allowed, unknown */
    name[257] = 'x';
    name[258] = '"';
    name[259] = 0;
    expect_bad(CHAT, "model", name, "model", 400);
}

static void message_shapes(void **state)
{
    (void)state;
    static const char *const good[] = {
        "[{\"role\":\"system\",\"content\":\"a\"},{\"role\":\"user\",\"content\":\"b\"}]",
        "[{\"role\":\"developer\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"\"}]",
        "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":"
        "\"b\"}]}]",
        "[{\"role\":\"assistant\",\"content\":\"a\",\"refusal\":null,\"tool_calls\":null,\"annotations\":[]}"
        "]",
        "[{\"role\":\"user\",\"content\":[]}]",
    };
    static const char *const bad[][2] = {
        {"[]", "messages"},
        {"{}", "messages"},
        {"\"x\"", "messages"},
        {"[1]", "messages[0]"},
        {"[null]", "messages[0]"},
        {"[{}]", "messages[0].role"},
        {"[{\"role\":\"user\"}]", "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":null}]", "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":1}]", "messages[0].content"},
        {"[{\"role\":\"function\",\"content\":\"x\"}]", "messages[0].role"},
        {"[{\"role\":\"User\",\"content\":\"x\"}]", "messages[0].role"},
        {"[{\"role\":1,\"content\":\"x\"}]", "messages[0].role"},
        {"[{\"role\":\"user\",\"content\":\"x\",\"name\":\"bob\"}]", "messages[0]"},
        {"[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":\"x\",\"tool_calls\":[{}"
         "]}]",
         "messages[1].tool_calls"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"x\"}}]}]",
         "messages[0].content[0]"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", "messages[0].content[0]"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"x\",\"y\":1}]}]",
         "messages[0].content[0]"},
        {"[{\"role\":\"user\",\"content\":[\"x\"]}]", "messages[0].content[0]"},
    };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) expect_ok(CHAT, "messages", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect_bad(CHAT, "messages", bad[i][0], bad[i][1], 400);
}

static void list_lengths(void **state)
{
    (void)state;
    char *s = malloc(1 << 20);
    for (int n = 16; n <= 17; n++) { /* stop strings */
        char *w = s + sprintf(s, "[");
        for (int i = 0; i < n; i++) w += sprintf(w, "%s\"s%d\"", i ? "," : "", i);
        sprintf(w, "]");
        if (n == 16)
            expect_ok(CHAT, "stop", s);
        else
            expect_bad(CHAT, "stop", s, "stop", 400);
    }
    for (int n = 1024; n <= 1025; n++) { /* bytes of one */
        s[0] = '"';
        memset(s + 1, 'x', (size_t)n);
        strcpy(s + 1 + n, "\"");
        if (n == 1024)
            expect_ok(CHAT, "stop", s);
        else
            expect_bad(CHAT, "stop", s, "stop", 400);
    }
    for (int n = 2048; n <= 2049; n++) { /* texts of an embedding request */
        char *w = s + sprintf(s, "[");
        for (int i = 0; i < n; i++) w += sprintf(w, "%s\"t\"", i ? "," : "");
        sprintf(w, "]");
        if (n == 2048)
            expect_ok(EMBED, "input", s);
        else
            expect_bad(EMBED, "input", s, "input", 413);
    }
    for (int n = 1024; n <= 1025; n++) { /* prompts times n */
        char *w = s + sprintf(s, "[");
        for (int i = 0; i < n; i++) w += sprintf(w, "%s\"t\"", i ? "," : "");
        sprintf(w, "]");
        if (n == 1024)
            expect_ok(COMP, "prompt", s);
        else
            expect_bad(COMP, "prompt", s, "n", 400);
    }
    for (int n = 4096; n <= 4097; n++) { /* messages */
        char *w = s + sprintf(s, "[");
        for (int i = 0; i < n; i++) w += sprintf(w, "%s{\"role\":\"user\",\"content\":\"\"}", i ? "," : "");
        sprintf(w, "]");
        /* 4096 messages make a prompt beyond the context: accepted here, refused by the engine with the counts */
        expect_bad(CHAT, "messages", s, n == 4096 ? NULL : "messages", n == 4096 ? 413 : 400);
    }
    free(s);
}

static void broken_json(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        " ",
        "{",
        "}",
        "[]",
        "1",
        "null",
        "\"x\"",
        "{\"a\":1",
        "{\"a\":1}}",
        "{\"a\" 1}",
        "{a:1}",
        "{'a':1}",
        "{\"prompt\":\"a\",\"prompt\":\"b\"}",                 /* duplicate key */
        "{\"prompt\":\"a\",\"logit_bias\":{\"1\":1,\"1\":2}}", /* and deeper */
        "{\"prompt\":\"a\",\"temperature\":NaN}",
        "{\"prompt\":\"a\",\"temperature\":Infinity}",
        "{\"prompt\":\"a\",\"temperature\":1e400}",
        "{\"prompt\":\"a\",\"temperature\":-1e400}",
        "{\"prompt\":\"a\",\"seed\":9223372036854775808}",
        "{\"prompt\":\"a\",\"seed\":-9223372036854775809}",
        "{\"prompt\":\"a\",\"max_tokens\":01}",
        "{\"prompt\":\"\\ud800\"}", /* lone surrogates */
        "{\"prompt\":\"\\udc00\\ud800\"}",
        "{\"prompt\":\"\\u0000\"}",
        "{\"prompt\":\"a\\u0000b\"}",
        "{\"prompt\":\"\xff\"}", /* not UTF-8 */
        "{\"prompt\":\"\xed\xa0\x80\"}",
        "{\"prompt\":\"\xc0\x80\"}",
        "{\"prompt\":\"a\nb\"}",
        "{\"prompt\":\"a\\x\"}",
        "{\"prompt\":\"a\"} x",
        "\xef\xbb\xbf{\"prompt\":\"a\"}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        answer a = send_body(COMP, bad[i], strlen(bad[i]));
        if (a.status != 400) print_error("%zu %s: %d %s\n", i, bad[i], a.status, a.body);
        assert_int_equal(a.status, 400);
        assert_non_null(strstr(a.body, "invalid_request_error"));
        free(a.body);
    }
    answer a = send_body(COMP, "{\"prompt\":\"a\0b\"}", 16);
    assert_int_equal(a.status, 400);
    free(a.body);
    expect_ok(COMP, "prompt", "\"\\ud83d\\ude00 \\u00e9\\n\"");
}

static void deep_and_wide_json(void **state)
{
    (void)state;
    size_t n = 60000;
    char *s = malloc(8 << 20);
    for (int kind = 0; kind < 2; kind++) {
        char *w = s + sprintf(s, "{\"prompt\":");
        for (size_t i = 0; i < n; i++) w += sprintf(w, "%s", kind ? "[" : "{\"a\":");
        double t = now_s();
        answer a = send_body(COMP, s, (size_t)(w - s));
        assert_int_equal(a.status, 400);
        assert_non_null(strstr(a.body, "nested"));
        assert_true(now_s() - t < 2);
        free(a.body);
    }
    char *w = s + sprintf(s, "{\"prompt\":[");
    for (size_t i = 0; i < 1200000; i++) w += sprintf(w, "%s[]", i ? "," : "");
    w += sprintf(w, "]}");
    answer a = send_body(COMP, s, (size_t)(w - s));
    assert_int_equal(a.status, 413);
    free(a.body);
    free(s);
    expect_ok(COMP, "prompt", "\"next\"");
}

/* What arrives at the engine is what was asked. */
static void values_arrive(void **state)
{
    (void)state;
    static const char body[] =
        "{\"model\":\"fake\",\"prompt\":\"abc\",\"max_tokens\":7,\"temperature\":0.25,\"top_p\":0.5,"
        "\"top_k\":3,\"min_p\":0.125,\"repeat_penalty\":1.5,\"repeat_last_n\":9,\"seed\":42,"
        "\"presence_penalty\":-1,\"frequency_penalty\":0.75,\"logit_bias\":{\"7\":-100},"
        "\"stop\":[\"x\",\"END\"],\"ignore_eos\":true,\"logprobs\":4}";
    answer a = send_body(COMP, body, strlen(body));
    assert_int_equal(a.status, 200);
    free(a.body);
    const imp_request *r = &g_fake.last;
    assert_int_equal(r->max_tok, 7);
    assert_true(r->sampling.temperature == 0.25f && r->sampling.top_p == 0.5f && r->sampling.min_p == 0.125f);
    assert_true(r->sampling.top_k == 3 && r->sampling.repeat_penalty == 1.5f &&
                r->sampling.repeat_last_n == 9);
    assert_true(r->sampling.presence_penalty == -1 && r->sampling.frequency_penalty == 0.75f);
    assert_true(r->sampling.seed == 42 && r->sampling.n_bias == 1 && g_fake.last_bias == -100);
    assert_true(r->n_stop == 2 && strcmp(g_fake.last_stop, "END") == 0);
    assert_true(r->ignore_eos && r->want_logprobs && r->n_logprobs == 4);
    assert_int_equal(g_fake.last_n_ids, 4); /* the token before the text, a, b, c */

    expect_ok(COMP, "prompt", "[5,6]");
    assert_int_equal(g_fake.last_n_ids, 2); /* tokens are taken as they are */
    answer d = send_body(COMP, "{\"prompt\":\"a\"}", 14);
    free(d.body);
    assert_int_equal(g_fake.last.max_tok, 16); /* OpenAI's default */
    assert_true(g_fake.last.sampling.seed == UINT64_MAX && g_fake.last.sampling.top_k == 40);
    expect_ok(COMP, "seed", "-1");
    assert_true(g_fake.last.sampling.seed == UINT64_MAX); /* random */
    static const char row[] = "{\"prompt\":\"a\",\"n\":2,\"seed\":-2}";
    answer e = send_body(COMP, row, sizeof row - 1);
    free(e.body);
    assert_true(g_fake.last.sampling.seed == 0); /* the second of a row does not become random */
    expect_ok(CHAT, "top_k", "-1");
    assert_int_equal(g_fake.last.sampling.top_k, 0);
    assert_int_equal(g_fake.last.max_tok, 0); /* a chat goes on to the end */
    expect_ok(CHAT, "max_completion_tokens", "5");
    assert_int_equal(g_fake.last.max_tok, 5);
    const char *both =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":5,\"max_completion_tokens\":6}";
    d = send_body(CHAT, both, strlen(both));
    assert_int_equal(d.status, 400);
    free(d.body);
    const char *lp = "{\"prompt\":\"x\",\"echo\":true,\"logprobs\":1}";
    d = send_body(COMP, lp, strlen(lp));
    assert_int_equal(d.status, 400);
    free(d.body);
}

/* Refusals of the engine, and its failures, as HTTP statuses; none may show a path or an address. */
static void engine_errors(void **state)
{
    (void)state;
    static const int map[][2] = {{IMP_INVALID, 400}, {IMP_UNSUPPORTED, 400}, {IMP_TOO_LARGE, 413},
                                 {IMP_BUSY, 429},    {IMP_NOT_READY, 503},   {IMP_NOMEM, 503},
                                 {IMP_NO_FIT, 507},  {IMP_IO, 500},          {IMP_FORMAT, 500},
                                 {IMP_DEVICE, 500},  {IMP_INTERNAL, 500}};
    static const char *const path[] = {CHAT, COMP, EMBED, OEMB, OLD};
    for (size_t i = 0; i < sizeof map / sizeof map[0]; i++) {
        g_fake.submit_status = map[i][0];
        for (size_t k = 0; k < 5; k++) {
            char body[256];
            snprintf(body, sizeof body, "{%s}", base_of(path[k]));
            answer a = send_body(path[k], body, strlen(body));
            assert_int_equal(a.status, map[i][1]);
            bool shown =
                map[i][1] < 500 && map[i][0] != IMP_BUSY; /* the engine's own sentence about the request */
            if (!shown && map[i][0] != IMP_NO_FIT) {
                assert_null(strstr(a.body, "/secret"));
                assert_null(strstr(a.body, "0x"));
            }
            if (a.status == 413) assert_non_null(strstr(a.body, "5000"));
            if (a.status == 429) assert_string_equal(answer_header(&a, "Retry-After"), "1");
            free(a.body);
        }
    }
    g_fake.submit_status = IMP_OK;
    g_fake.fail_after = 2;
    answer a = send_body(COMP, "{\"prompt\":\"a\"}", 14);
    assert_int_equal(a.status, 500);
    assert_null(strstr(a.body, "secret"));
    assert_null(strstr(a.body, "0x"));
    assert_null(strstr(a.body, "kv_pool"));
    free(a.body);
    g_fake.fail_after = 0;
    expect_ok(COMP, "prompt", "\"next\"");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_field),    cmocka_unit_test(models),
        cmocka_unit_test(message_shapes), cmocka_unit_test(list_lengths),
        cmocka_unit_test(broken_json),    cmocka_unit_test(deep_and_wide_json),
        cmocka_unit_test(values_arrive),  cmocka_unit_test(engine_errors),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
