/* tests/api/responses.c - the Responses API: items in, items out, the events of a stream, and what is kept of it.
 *
 * Idea:   an engine without a model answers a script. The order of events is the API's published one; a stream's pieces must
 *         join to what its last event says, and that must be what GET shows. */
#include "fake_engine.h"

#include "api/responses.h"
#include "client.h"
#include "http/http.h"

static imp_engine *engine;
static imp_http *http;
static uint16_t port;
static imp_toolfmt *fmt;

static int start(void **state)
{
    (void)state;
    imp_error err = {0};
    imp_engine_config ec = {0};
    imp_http_config hc = {.max_unsent_bytes = 1 << 20};
    imp_sys_file f;
    imp_jinja *t;
    if (imp_engine_new(&ec, &engine, &err) != IMP_OK || imp_http_start(engine, &hc, &http, &err) != IMP_OK)
        return -1;
    port = imp_http_port(http);
    if (imp_sys_file_open("tests/data/templates/Qwen-Qwen3-0.6B.jinja", false, &f, &err) != IMP_OK) return -1;
    char *src = calloc(1, f.n + 1);
    memcpy(src, f.data, f.n);
    imp_sys_file_close(&f);
    if (imp_jinja_compile(src, strlen(src), &t, &err) != IMP_OK) return -1;
    if (imp_toolfmt_probe(t, src, NULL, NULL, &fmt) != IMP_OK) return -1;
    imp_jinja_free(t);
    free(src);
    g_fake.toolfmt = fmt;
    return 0;
}

static int stop(void **state)
{
    (void)state;
    imp_http_stop(http, 1000);
    imp_engine_free(engine);
    imp_toolfmt_free(fmt);
    return 0;
}

#define TOOLS                                                                                                \
    "\"tools\":[{\"type\":\"function\",\"name\":\"get\",\"parameters\":{\"type\":\"object\",\"properties\":" \
    "{\"n\":{\"type\":\"integer\"}}}}]"

static json_t *create(const char *body, int status)
{
    char text[4096];
    snprintf(text, sizeof text, "{\"model\":\"fake\",\"max_output_tokens\":2000,%s}", body);
    answer a = post(port, "/v1/responses", text);
    if (a.status != status) fail_msg("%d: %s", a.status, a.body);
    json_t *o = json_loads(a.body, 0, NULL);
    assert_non_null(o);
    free(a.body);
    return o;
}

static const char *at(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static json_t *item(const json_t *o, size_t i)
{
    return json_array_get(json_object_get(o, "output"), i);
}

static answer fetch(const char *method, const char *id)
{
    char path[128];
    snprintf(path, sizeof path, "/v1/responses/%s", id);
    return ask(port, method, path, NULL, NULL, NULL);
}

static void items(void **state)
{
    (void)state;
    g_fake.script =
        "<think>hm</think>\nYes.\n<tool_call>\n{\"name\": \"get\", \"arguments\": {\"n\": 1}}\n</tool_call>";
    json_t *o = create(TOOLS ",\"instructions\":\"Be.\",\"metadata\":{\"k\":\"v\"},\"input\":\"q\"", 200);
    assert_string_equal(at(o, "object"), "response");
    assert_string_equal(at(o, "status"), "completed");
    assert_string_equal(at(o, "instructions"), "Be.");
    assert_string_equal(at(json_object_get(o, "metadata"), "k"), "v");
    assert_int_equal(json_array_size(json_object_get(o, "output")), 3);
    assert_string_equal(at(item(o, 0), "type"), "reasoning");
    assert_string_equal(at(json_array_get(json_object_get(item(o, 0), "content"), 0), "text"), "hm");
    assert_string_equal(at(json_array_get(json_object_get(item(o, 1), "content"), 0), "text"), "Yes.");
    assert_string_equal(at(item(o, 2), "type"), "function_call");
    assert_string_equal(at(item(o, 2), "name"), "get");
    assert_string_equal(at(item(o, 2), "arguments"), "{\"n\": 1}");
    assert_string_equal(g_fake.prompt + strlen(g_fake.prompt) - 20, "system: Be.\nuser: q\n");
    /* the answer's items come back in front of the next input; instructions do not */
    char body[512], want[512];
    g_fake.script = "Ok.";
    snprintf(
        body, sizeof body,
        "\"previous_response_id\":\"%s\",\"input\":[{\"type\":\"function_call_output\",\"call_id\":\"%s\","
        "\"output\":\"nine\"},{\"role\":\"user\",\"content\":[{\"type\":\"input_text\",\"text\":\"and?\"}]}]",
        at(o, "id"), at(item(o, 2), "call_id"));
    json_t *p = create(body, 200);
    snprintf(
        want, sizeof want,
        "user: q\nassistant: Yes.\nthought: hm\ncall %s: get {\"n\": 1}\ntool: nine\nto %s\nuser: and?\n",
        at(item(o, 2), "call_id"), at(item(o, 2), "call_id"));
    assert_string_equal(g_fake.prompt, want);
    assert_string_equal(at(p, "previous_response_id"), at(o, "id"));
    /* GET, DELETE */
    answer a = fetch("GET", at(o, "id"));
    json_t *g = json_loads(a.body, 0, NULL);
    assert_int_equal(a.status, 200);
    assert_true(json_equal(g, o));
    free(a.body);
    a = fetch("DELETE", at(o, "id"));
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.body, "\"deleted\":true"));
    free(a.body);
    a = fetch("GET", at(o, "id"));
    assert_int_equal(a.status, 404);
    free(a.body);
    json_decref(create(body, 404));
    json_t *unkept = create("\"store\":false,\"input\":\"q\"", 200);
    a = fetch("GET", at(unkept, "id"));
    assert_int_equal(a.status, 404);
    free(a.body);
    json_decref(unkept);
    json_decref(g);
    json_decref(p);
    json_decref(o);
}

static void events(void **state)
{
    (void)state;
    static const char *const order[] = {"response.created",
                                        "response.in_progress",
                                        "response.output_item.added",
                                        "response.content_part.added",
                                        "response.reasoning_text.delta",
                                        "response.reasoning_text.done",
                                        "response.content_part.done",
                                        "response.output_item.done",
                                        "response.output_item.added",
                                        "response.content_part.added",
                                        "response.output_text.delta",
                                        "response.output_text.done",
                                        "response.content_part.done",
                                        "response.output_item.done",
                                        "response.output_item.added",
                                        "response.function_call_arguments.delta",
                                        "response.function_call_arguments.done",
                                        "response.output_item.done",
                                        "response.completed"};
    g_fake.script = "<think>hm\nhm</think>\nYes, yes.\n<tool_call>\n{\"name\": \"get\", \"arguments\": "
                    "{\"n\": 1}}\n</tool_call>";
    answer a =
        post(port, "/v1/responses",
             "{\"model\":\"fake\",\"max_output_tokens\":2000,\"stream\":true," TOOLS ",\"input\":\"q\"}");
    assert_int_equal(a.status, 200);
    size_t k = 0;
    int n = 0, index = -1;
    imp_buf joined = {0};
    json_t *last = NULL;
    for (char *p = a.body; (p = strstr(p, "event: ")) != NULL;) {
        char name[80];
        assert_int_equal(sscanf(p, "event: %79s", name), 1);
        p = strstr(p, "data: ") + 6;
        json_t *o = json_loadb(p, strcspn(p, "\n"), 0, NULL);
        assert_string_equal(at(o, "type"), name);
        assert_int_equal(json_integer_value(json_object_get(o, "sequence_number")), n++);
        bool repeat = k > 0 && strcmp(name, order[k - 1]) == 0 && strstr(name, ".delta") != NULL;
        if (!repeat) {
            if (k == IMP_COUNT(order) || strcmp(name, order[k]) != 0)
                fail_msg("event %d is %s, not %s", n, name, order[k]);
            k++;
        }
        if (strcmp(name, "response.output_item.added") == 0) index++, joined.n = 0;
        if (strstr(name, "output_item") || strstr(name, "delta") || strstr(name, "part"))
            assert_int_equal(json_integer_value(json_object_get(o, "output_index")), index);
        if (strstr(name, ".delta")) imp_buf_str(&joined, at(o, "delta"));
        if (strstr(name, "text.done")) assert_string_equal(at(o, "text"), joined.data);
        if (strstr(name, "arguments.done")) assert_string_equal(at(o, "arguments"), joined.data);
        if (strcmp(name, "response.completed") == 0) last = json_incref(json_object_get(o, "response"));
        json_decref(o);
    }
    assert_int_equal(k, IMP_COUNT(order));
    free(a.body);
    assert_string_equal(at(json_array_get(json_object_get(item(last, 1), "content"), 0), "text"),
                        "Yes, yes.");
    a = fetch("GET", at(last, "id"));
    json_t *kept = json_loads(a.body, 0, NULL);
    assert_true(json_equal(kept, last));
    json_decref(kept);
    json_decref(last);
    free(a.body);
    imp_buf_deinit(&joined);
    a = post(port, "/v1/responses",
             "{\"model\":\"fake\",\"max_output_tokens\":25,\"stream\":true,\"input\":\"q\"}");
    assert_non_null(strstr(a.body, "event: response.incomplete"));
    assert_non_null(strstr(a.body, "max_output_tokens"));
    free(a.body);
}

static void refused(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"\"x\":1", "input"},
        {"\"input\":5", "input"},
        {"\"input\":[]", "input"},
        {"\"input\":[{\"type\":\"item_reference\",\"id\":\"x\"}]", "input[0]"},
        {"\"input\":[{\"role\":\"user\",\"content\":[{\"type\":\"input_image\"}]}]", "input[0]"},
        {"\"input\":\"x\",\"background\":true", "background"},
        {"\"input\":\"x\",\"tools\":[{\"type\":\"web_search\"}]", "tools"},
        {"\"input\":\"x\",\"text\":{\"format\":{\"type\":\"xml\"}}", "text.format"},
        {"\"input\":\"x\",\"truncation\":\"auto\"", "truncation"},
        {"\"input\":[{\"type\":\"function_call\",\"call_id\":\"a\",\"name\":\"f\",\"arguments\":\"[\"}]",
         "input[0]"}};
    g_fake.script = "ok";
    for (size_t i = 0; i < IMP_COUNT(bad); i++) {
        json_t *o = create(bad[i][0], 400);
        if (i > 0) assert_string_equal(at(json_object_get(o, "error"), "param"), bad[i][1]);
        json_decref(o);
    }
}

/* ---- the store -------------------------------------------------------------------------------------------------- */

static int g_status;

static void begin(void *user, int status, const char *type, const imp_api_header *h, size_t n, bool stream)
{
    (void)user, (void)type, (void)h, (void)n, (void)stream;
    g_status = status;
}

static void nothing(void *user, const char *p, size_t n)
{
    (void)user, (void)p, (void)n;
}

static void end(void *user)
{
    (void)user;
}

static int status_of(imp_api *a, const char *id, uint64_t client)
{
    imp_api_sink s = {.begin = begin, .write = nothing, .end = end};
    imp_api_request rq = {.method = "GET", .path = "/v1/responses/x", .who = {.client = client}};
    imp_api_response_one(a, &rq, id, &s);
    return g_status;
}

static void bounds(void **state)
{
    (void)state;
    imp_api_config config = {.engine = engine};
    imp_api *a;
    imp_error err = {0};
    imp_buf items = {0}, text = {0};
    assert_int_equal(imp_api_new(&config, &a, &err), IMP_OK);
    imp_buf_str(&items, "[]");
    imp_buf_str(&text, "{}");
    imp_responses_keep(a->responses, "resp_0", 7, &items, &text);
    assert_int_equal(status_of(a, "resp_0", 7), 200);
    assert_int_equal(status_of(a, "resp_0", 8), 404);
    for (int i = 1; i <= 1100; i++) {
        char id[32];
        snprintf(id, sizeof id, "resp_%d", i);
        imp_responses_keep(a->responses, id, 7, &items, &text);
        if (i % 100 == 0) assert_int_equal(status_of(a, "resp_0", 7), 200); /* used, so it stays */
    }
    assert_int_equal(status_of(a, "resp_1", 7), 404);
    assert_int_equal(status_of(a, "resp_1100", 7), 200);
    while (text.n < 8 << 20)
        imp_buf_str(&text, "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef");
    for (int i = 0; i < 20; i++) {
        char id[32];
        snprintf(id, sizeof id, "big_%d", i);
        imp_responses_keep(a->responses, id, 7, &items, &text);
    }
    int n = 0;
    for (int i = 0; i < 20; i++) {
        char id[32];
        snprintf(id, sizeof id, "big_%d", i);
        n += status_of(a, id, 7) == 200;
    }
    assert_int_equal(n, 7); /* of 64 MiB */
    imp_buf_deinit(&items);
    imp_buf_deinit(&text);
    imp_api_unref(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(items), cmocka_unit_test(events),
                                       cmocka_unit_test(refused), cmocka_unit_test(bounds)};
    return cmocka_run_group_tests(tests, start, stop);
}
