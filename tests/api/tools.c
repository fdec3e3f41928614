/* tests/api/tools.c - calls of tools and thoughts over HTTP, in the words of the three APIs.
 *
 * Idea:   an engine without a model answers a script; how the script's family writes calls is probed from its published
 *         template. A stream's pieces must join to what the whole answer says. What a conversation with calls becomes for the
 *         model is looked at where the template would get it. */
#include "fake_engine.h"

#include "client.h"
#include "http/http.h"
#include "text/toolcall.h"

typedef struct rig {
    imp_engine *engine;
    imp_http *http;
    uint16_t port;
} rig;

static rig g_rig;

static int start(void **state)
{
    (void)state;
    imp_error err = {0};
    imp_engine_config ec = {0};
    if (imp_engine_new(&ec, &g_rig.engine, &err) != IMP_OK) return -1;
    imp_http_config hc = {.max_unsent_bytes = 1 << 20};
    if (imp_http_start(g_rig.engine, &hc, &g_rig.http, &err) != IMP_OK) return -1;
    g_rig.port = imp_http_port(g_rig.http);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    imp_http_stop(g_rig.http, 1000);
    imp_engine_free(g_rig.engine);
    return 0;
}

/* The model writes calls as this template does, and answers this. */
static void play(const char *template, const char *script)
{
    char path[256];
    imp_sys_file f;
    imp_jinja *t;
    imp_error err = {0};
    static imp_toolfmt *fmt;
    imp_toolfmt_free(fmt);
    snprintf(path, sizeof path, "tests/data/templates/%s.jinja", template);
    if (imp_sys_file_open(path, false, &f, &err) != IMP_OK) fail_msg("%s", err.text);
    char *src = calloc(1, f.n + 1);
    memcpy(src, f.data, f.n);
    if (imp_jinja_compile(src, f.n, &t, &err) != IMP_OK) fail_msg("%s", err.text);
    assert_int_equal(imp_toolfmt_probe(t, src, "<s>", "</s>", &fmt), IMP_OK);
    imp_jinja_free(t);
    free(src);
    imp_sys_file_close(&f);
    g_fake.toolfmt = fmt;
    g_fake.script = script;
}

#define QWEN3   "Qwen-Qwen3-0.6B"
#define QWEN25  "Qwen-Qwen2.5-7B-Instruct"
#define MISTRAL "Mistral-Small-3.2-24B-Instruct-2506"
#define V31     "deepseek-ai-DeepSeek-V3.1"
#define GLM     "GLM-4.6"
#define GRANITE "ibm-granite-granite-3.3-2B-Instruct"
#define LLAMA   "meta-llama-Llama-3.1-8B-Instruct"
#define GEMMA   "google-gemma-2-2b-it"

#define PARAMS                                                                                               \
    "{\"type\":\"object\",\"properties\":{\"city\":{\"type\":\"string\"},\"n\":{\"type\":\"integer\"}}}"
#define OPENAI_TOOLS                                                                                         \
    "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"get\",\"description\":\"d\","                \
    "\"parameters\":" PARAMS "}},{\"type\":\"function\",\"function\":{\"name\":\"now\"}}]"
#define CLAUDE_TOOLS                                                                                         \
    "\"tools\":[{\"name\":\"get\",\"description\":\"d\",\"input_schema\":" PARAMS                            \
    "},{\"name\":\"now\",\"input_schema\":{\"type\":\"object\"}}]"
#define ASK "\"max_tokens\":2000,\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]"

static const struct {
    const char *template, *script;
    const char *thought, *text;    /* "" none */
    const char *name[2], *args[2]; /* JSON */
} g_play[] = {
    {QWEN3,
     "<think>\nHm.\n\nSo.\n</think>\n\nOne moment.\n<tool_call>\n{\"name\": \"get\", \"arguments\": "
     "{\"city\": \"Z\xc3\xbcrich \\\"x\\\"\", \"n\": 2}}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", "
     "\"arguments\": {}}\n</tool_call>",
     "Hm.\n\nSo.",
     "One moment.",
     {"get", "now"},
     {"{\"city\":\"Z\xc3\xbcrich \\\"x\\\"\",\"n\":2}", "{}"}},
    {QWEN25, "Just text, <tool no call.", "", "Just text, <tool no call.", {NULL}, {NULL}},
    {MISTRAL,
     "[TOOL_CALLS]get[CALL_ID]abcdefghi[ARGS]{\"city\": \"a\"}[TOOL_CALLS]now[CALL_ID]abcdefghj[ARGS]{}",
     "",
     "",
     {"get", "now"},
     {"{\"city\":\"a\"}", "{}"}},
    {V31,
     "Let me look.<\xef\xbd\x9ctool\xe2\x96\x81"
     "calls\xe2\x96\x81"
     "begin\xef\xbd\x9c><\xef\xbd\x9ctool\xe2\x96\x81"
     "call\xe2\x96\x81"
     "begin\xef\xbd\x9c>get<\xef\xbd\x9ctool\xe2\x96\x81sep\xef\xbd\x9c>{\"n\": "
     "1}<\xef\xbd\x9ctool\xe2\x96\x81"
     "call\xe2\x96\x81"
     "end\xef\xbd\x9c><\xef\xbd\x9ctool\xe2\x96\x81"
     "calls\xe2\x96\x81"
     "end\xef\xbd\x9c>",
     "",
     "Let me look.",
     {"get"},
     {"{\"n\":1}"}},
    {GLM,
     "<think>t</think>\n<tool_call>get\n<arg_key>city</arg_key>\n<arg_value>5\n\"</arg_value>\n<arg_key>n</"
     "arg_key>\n<arg_value>7</arg_value>\n</tool_call>",
     "t",
     "",
     {"get"},
     {"{\"city\":\"5\\n\\\"\",\"n\":7}"}},
    {GRANITE,
     "<|tool_call|>[{\"name\": \"get\", \"arguments\": {\"n\": 1}}, {\"name\": \"now\", \"arguments\": {}}]",
     "",
     "",
     {"get", "now"},
     {"{\"n\":1}", "{}"}},
    {LLAMA, "{\"name\": \"get\", \"parameters\": {\"city\": \"b\"}}", "", "", {"get"}, {"{\"city\":\"b\"}"}},
    {GEMMA, "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>", "", "", {"now"}, {"{}"}},
};

/* What came, whatever the API. */
typedef struct got {
    imp_buf thought, text, name[4], args[4];
    size_t n;
    char finish[32];
} got;

static void add(imp_buf *b, const json_t *s)
{
    if (json_is_string(s)) imp_buf_add(b, json_string_value(s), json_string_length(s));
}

static void add_json(imp_buf *b, const json_t *v)
{
    char *s = json_dumps(v, JSON_COMPACT);
    imp_buf_str(b, s);
    free(s);
}

static void take_finish(got *g, const json_t *v)
{
    if (json_is_string(v)) snprintf(g->finish, sizeof g->finish, "%s", json_string_value(v));
}

/* OpenAI: a message or a delta. */
static void take_openai(got *g, const json_t *choice)
{
    const json_t *m = json_object_get(choice, "message"), *v;
    size_t i;
    if (m == NULL) m = json_object_get(choice, "delta");
    add(&g->thought, json_object_get(m, "reasoning_content"));
    add(&g->text, json_object_get(m, "content"));
    json_array_foreach(json_object_get(m, "tool_calls"), i, v)
    {
        const json_t *at = json_object_get(v, "index"), *f = json_object_get(v, "function");
        size_t k = at != NULL ? (size_t)json_integer_value(at) : i;
        if (json_object_get(v, "id") != NULL) {
            assert_int_equal(k, g->n++);
            assert_string_equal(json_string_value(json_object_get(v, "type")), "function");
            add(&g->name[k], json_object_get(f, "name"));
        }
        add(&g->args[k], json_object_get(f, "arguments"));
    }
    take_finish(g, json_object_get(choice, "finish_reason"));
}

static void take_ollama(got *g, const json_t *o)
{
    const json_t *m = json_object_get(o, "message"), *v;
    size_t i;
    add(&g->thought, json_object_get(m, "thinking"));
    add(&g->text, json_object_get(m, "content"));
    json_array_foreach(json_object_get(m, "tool_calls"), i, v)
    {
        const json_t *f = json_object_get(v, "function");
        add(&g->name[g->n], json_object_get(f, "name"));
        assert_true(json_is_object(json_object_get(f, "arguments")));
        add_json(&g->args[g->n++], json_object_get(f, "arguments"));
    }
    take_finish(g, json_object_get(o, "done_reason"));
}

/* Anthropic: a block of a whole answer, or an event. */
static void take_claude(got *g, const json_t *o)
{
    static int open = -1, next;
    const char *type = json_string_value(json_object_get(o, "type"));
    const json_t *b = json_object_get(o, "content_block"), *d = json_object_get(o, "delta");
    if (strcmp(type, "message_start") == 0) open = -1, next = 0;
    if (strcmp(type, "content_block_start") == 0) {
        assert_int_equal(open, -1);
        open = (int)json_integer_value(json_object_get(o, "index"));
        assert_int_equal(open, next++);
        if (strcmp(json_string_value(json_object_get(b, "type")), "tool_use") == 0)
            add(&g->name[g->n++], json_object_get(b, "name"));
    }
    if (strcmp(type, "content_block_delta") == 0) {
        assert_int_equal(open, json_integer_value(json_object_get(o, "index")));
        add(&g->text, json_object_get(d, "text"));
        add(&g->thought, json_object_get(d, "thinking"));
        if (g->n > 0) add(&g->args[g->n - 1], json_object_get(d, "partial_json"));
    }
    if (strcmp(type, "content_block_stop") == 0) open = -1;
    if (strcmp(type, "message_delta") == 0) take_finish(g, json_object_get(d, "stop_reason"));
    if (strcmp(type, "text") == 0) add(&g->text, json_object_get(o, "text"));
    if (strcmp(type, "thinking") == 0) add(&g->thought, json_object_get(o, "thinking"));
    if (strcmp(type, "tool_use") == 0) {
        assert_non_null(json_object_get(o, "id"));
        add(&g->name[g->n], json_object_get(o, "name"));
        add_json(&g->args[g->n++], json_object_get(o, "input"));
    }
}

/* Every JSON line of an answer, with or without "data: ". */
static void take(const answer *a, const char *path, got *g)
{
    *g = (got){0};
    assert_int_equal(a->status, 200);
    for (const char *p = a->body, *end; *p; p = *end ? end + 1 : end) {
        end = p + strcspn(p, "\n");
        if (strncmp(p, "data: ", 6) == 0) p += 6;
        json_t *o = *p == '{' ? json_loadb(p, (size_t)(end - p), 0, NULL) : NULL, *v;
        size_t i;
        if (o == NULL) continue;
        if (strcmp(path, "/api/chat") == 0) take_ollama(g, o);
        if (strcmp(path, "/v1/chat/completions") == 0)
            json_array_foreach(json_object_get(o, "choices"), i, v) take_openai(g, v);
        if (strcmp(path, "/v1/messages") == 0) {
            json_array_foreach(json_object_get(o, "content"), i, v) take_claude(g, v);
            if (json_object_get(o, "content") != NULL)
                take_finish(g, json_object_get(o, "stop_reason"));
            else
                take_claude(g, o);
        }
        json_decref(o);
    }
}

static void drop(got *g)
{
    imp_buf_deinit(&g->thought);
    imp_buf_deinit(&g->text);
    for (size_t i = 0; i < 4; i++) {
        imp_buf_deinit(&g->name[i]);
        imp_buf_deinit(&g->args[i]);
    }
}

static void same(size_t i, const char *what, const imp_buf *b, const char *want)
{
    const char *s = b->data ? b->data : "";
    if (strcmp(s, want) != 0) fail_msg("play %zu: %s is \"%s\", not \"%s\"", i, what, s, want);
}

static void every_family(void **state)
{
    (void)state;
    static const struct {
        const char *path, *body, *called, *ended;
    } api[] = {{"/v1/chat/completions", "{\"model\":\"fake\"," OPENAI_TOOLS "," ASK ",\"stream\":%s}",
                "tool_calls", "stop"},
               {"/api/chat",
                "{\"model\":\"fake\"," OPENAI_TOOLS ",\"options\":{\"num_predict\":2000},\"messages\":[{"
                "\"role\":\"user\",\"content\":\"x\"}],\"stream\":%s}",
                "stop", "stop"},
               {"/v1/messages", "{\"model\":\"fake\"," CLAUDE_TOOLS "," ASK ",\"stream\":%s}", "tool_use",
                "end_turn"}};
    for (size_t i = 0; i < IMP_COUNT(g_play); i++) {
        play(g_play[i].template, g_play[i].script);
        size_t n = (g_play[i].name[0] != NULL) + (g_play[i].name[1] != NULL);
        for (size_t k = 0; k < IMP_COUNT(api) * 2; k++) {
            char body[2048];
            got g;
            snprintf(body, sizeof body, api[k / 2].body, k % 2 ? "true" : "false");
            answer a = post(g_rig.port, api[k / 2].path, body);
            if (a.status != 200) fail_msg("%s", a.body);
            take(&a, api[k / 2].path, &g);
            same(i, "the thought", &g.thought, g_play[i].thought);
            same(i, "the text", &g.text, g_play[i].text);
            assert_int_equal(g.n, n);
            for (size_t j = 0; j < n; j++) {
                json_t *x = json_loadb(g.args[j].data, g.args[j].n, JSON_REJECT_DUPLICATES, NULL);
                json_t *y = json_loads(g_play[i].args[j], 0, NULL);
                same(i, "the name", &g.name[j], g_play[i].name[j]);
                if (!json_equal(x, y)) fail_msg("play %zu %s: %s", i, api[k / 2].path, g.args[j].data);
                json_decref(x);
                json_decref(y);
            }
            assert_string_equal(g.finish, n > 0 ? api[k / 2].called : api[k / 2].ended);
            drop(&g);
            free(a.body);
        }
    }
}

/* What is asked for reaches the constraint, what was said reaches the prompt. */
static void asked(void **state)
{
    (void)state;
    static const struct {
        const char *path, *body, *constraint, *prompt; /* parts of them */
    } one[] = {
        {"/v1/chat/completions", OPENAI_TOOLS "," ASK, "\"choice\":\"auto\",\"one\":false",
         "tools: [{\"type\":\"function\",\"function\":{\"name\":\"get\""},
        {"/v1/chat/completions",
         OPENAI_TOOLS ",\"tool_choice\":\"required\",\"parallel_tool_calls\":false," ASK,
         "\"choice\":\"required\",\"one\":true", "user: x"},
        {"/v1/chat/completions",
         OPENAI_TOOLS ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"now\"}}," ASK,
         "\"choice\":{\"name\":\"now\"}", "tools:"},
        {"/v1/chat/completions", OPENAI_TOOLS ",\"tool_choice\":\"none\"," ASK, "\"choice\":\"none\"",
         "tools:"},
        {"/v1/messages",
         CLAUDE_TOOLS ",\"tool_choice\":{\"type\":\"any\",\"disable_parallel_tool_use\":true}," ASK,
         "\"choice\":\"required\",\"one\":true",
         "\"parameters\":{\"type\":\"object\",\"properties\":{\"city\""},
        {"/v1/messages", CLAUDE_TOOLS ",\"tool_choice\":{\"type\":\"tool\",\"name\":\"get\"}," ASK,
         "\"choice\":{\"name\":\"get\"}", ""},
        {"/v1/chat/completions",
         OPENAI_TOOLS ",\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\","
                      "\"content\":null,\"reasoning_content\":\"hm\",\"tool_calls\":[{\"id\":\"c1\",\"type\":"
                      "\"function\",\"function\":{\"name\":\"get\",\"arguments\":\"{\\\"n\\\": "
                      "1}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"c1\",\"content\":\"nine\"}]",
         "auto", "user: q\nassistant: \nthought: hm\ncall c1: get {\"n\": 1}\ntool: nine\nto c1\n"},
        {"/api/chat",
         OPENAI_TOOLS
         ",\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"\","
         "\"thinking\":\"hm\",\"tool_calls\":[{\"function\":{\"name\":\"get\",\"arguments\":{\"n\":1}}}]},{"
         "\"role\":\"tool\",\"tool_name\":\"get\",\"content\":\"nine\"}]",
         "auto", "thought: hm\ncall : get {\"n\": 1}\ntool: nine\n"},
        {"/v1/messages",
         CLAUDE_TOOLS
         ",\"max_tokens\":9,\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\","
         "\"content\":[{\"type\":\"thinking\",\"thinking\":\"hm\",\"signature\":\"\"},{\"type\":\"text\","
         "\"text\":\"So\"},{\"type\":\"tool_use\",\"id\":\"t1\",\"name\":\"get\",\"input\":{\"n\":1}}]},{"
         "\"role\":\"user\",\"content\":[{\"type\":\"tool_result\",\"tool_use_id\":\"t1\",\"content\":[{"
         "\"type\":\"text\",\"text\":\"nine\"}]},{\"type\":\"text\",\"text\":\"and?\"}]}]",
         "auto",
         "user: q\nassistant: So\nthought: hm\ncall t1: get {\"n\": 1}\ntool: nine\nto t1\nuser: and?\n"},
    };
    play(QWEN25, "ok");
    for (size_t i = 0; i < IMP_COUNT(one); i++) {
        char body[4096];
        snprintf(body, sizeof body, "{\"model\":\"fake\",%s}", one[i].body);
        answer a = post(g_rig.port, one[i].path, body);
        if (a.status != 200) fail_msg("%zu: %s", i, a.body);
        if (strstr(g_fake.constraint, one[i].constraint) == NULL) fail_msg("%zu: %s", i, g_fake.constraint);
        if (strstr(g_fake.prompt, one[i].prompt) == NULL) fail_msg("%zu: %s", i, g_fake.prompt);
        assert_int_equal(g_fake.constraint_kind, IMP_CONSTRAINT_TOOLS);
        free(a.body);
    }
}

static void refused(void **state)
{
    (void)state;
    static const struct {
        const char *path, *body;
        int status;
        const char *says;
    } bad[] = {
        {"/v1/chat/completions", "\"tool_choice\":\"required\"," ASK, 400, "needs 'tools'"},
        {"/v1/chat/completions", OPENAI_TOOLS ",\"tool_choice\":\"any\"," ASK, 400, "'tool_choice'"},
        {"/v1/chat/completions",
         OPENAI_TOOLS ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"no\"}}," ASK, 400,
         "not declared"},
        {"/v1/chat/completions",
         "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a\"}},{\"type\":\"function\","
         "\"function\":{\"name\":\"a\"}}]," ASK,
         400, "another tool"},
        {"/v1/chat/completions", "\"tools\":[{\"type\":\"web_search\"}]," ASK, 400, "tools[0]"},
        {"/v1/messages", "\"tools\":[{\"type\":\"web_search_20250305\",\"name\":\"web_search\"}]," ASK, 400,
         "Anthropic's servers"},
        {"/v1/chat/completions",
         "\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"a\",\"arguments\":"
         "\"{\"}}]}]",
         400, "no JSON object"},
        {"/v1/chat/completions", "\"reasoning_effort\":\"high\"," ASK, 400, "does not think"},
        {"/api/chat", "\"think\":true,\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]", 400,
         "does not think"},
        {"/v1/messages", "\"thinking\":{\"type\":\"enabled\",\"budget_tokens\":1024}," ASK, 400,
         "does not think"},
    };
    play(QWEN25, "ok");
    for (size_t i = 0; i < IMP_COUNT(bad); i++) {
        char body[4096];
        snprintf(body, sizeof body, "{\"model\":\"fake\",%s}", bad[i].body);
        answer a = post(g_rig.port, bad[i].path, body);
        if (a.status != bad[i].status || strstr(a.body, bad[i].says) == NULL)
            fail_msg("%zu: %d %s", i, a.status, a.body);
        free(a.body);
    }
}

/* Calls that break off: at the limit of tokens there is none, by themselves the request fails. */
static void broken_calls(void **state)
{
    (void)state;
    got g;
    play(QWEN25, "<tool_call>\n{\"name\": \"get\", \"arguments\": {\"city\": \"abc\"}}\n</tool_call>");
    answer a = post(g_rig.port, "/v1/chat/completions",
                    "{\"model\":\"fake\"," OPENAI_TOOLS
                    ",\"max_tokens\":50,\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}");
    take(&a, "/v1/chat/completions", &g);
    assert_int_equal(g.n, 0);
    assert_string_equal(g.finish, "length");
    drop(&g);
    free(a.body);
    static const char *const script[] = {"<tool_call>\n{\"name\": \"get\", \"arguments\": {\"city\": ",
                                         "<tool_call>\nget()"};
    for (size_t i = 0; i < IMP_COUNT(script); i++) {
        play(QWEN25, script[i]);
        a = post(g_rig.port, "/v1/chat/completions", "{\"model\":\"fake\"," OPENAI_TOOLS "," ASK "}");
        assert_int_equal(a.status, 500);
        free(a.body);
        a = post(g_rig.port, "/v1/chat/completions",
                 "{\"model\":\"fake\",\"stream\":true," OPENAI_TOOLS "," ASK "}");
        assert_non_null(strstr(a.body, "\"error\""));
        free(a.body);
    }
}

static void other_requests(void **state)
{
    (void)state;
    static const struct {
        const char *path, *body;
        int status;
        const char *says;
    } one[] = {
        {"/api/show", "{\"model\":\"fake\"}", 200,
         "\"capabilities\":[\"completion\",\"tools\",\"thinking\"],\"tool_format\":\"hermes\""},
        {"/api/generate", "{\"model\":\"fake\"}", 200, "\"done\":true,\"done_reason\":\"load\""},
        {"/api/generate", "{\"model\":\"fake\",\"prompt\":\"\",\"keep_alive\":0}", 400, "is pinned"},
        {"/api/chat", "{\"model\":\"fake\",\"messages\":[]}", 200,
         "\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"done_reason\":\"load\""},
        {"/v1/chat/completions",
         "{\"model\":\"fake\",\"max_tokens\":-1,\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", 200,
         "choices"},
        {"/api/generate",
         "{\"model\":\"fake\",\"prompt\":\"x\",\"stream\":false,\"options\":{\"num_predict\":-1}}", 200,
         "\"response\""},
    };
    play(QWEN3, "ok");
    for (size_t i = 0; i < IMP_COUNT(one); i++) {
        answer a = post(g_rig.port, one[i].path, one[i].body);
        if (a.status != one[i].status || strstr(a.body, one[i].says) == NULL)
            fail_msg("%zu: %d %s", i, a.status, a.body);
        free(a.body);
    }
    imp_buf b = {0};
    imp_buf_str(&b, "{\"model\":\"emb\",\"input\":[\"a\"");
    for (int i = 0; i < 2048; i++) imp_buf_str(&b, ",\"a\"");
    imp_buf_str(&b, "]}");
    answer a = post(g_rig.port, "/v1/embeddings", b.data);
    assert_int_equal(a.status, 413);
    assert_non_null(strstr(a.body, "\"code\":\"too_large\""));
    free(a.body);
    imp_buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_family), cmocka_unit_test(asked),
                                       cmocka_unit_test(refused), cmocka_unit_test(broken_calls),
                                       cmocka_unit_test(other_requests)};
    return cmocka_run_group_tests(tests, start, stop);
}
