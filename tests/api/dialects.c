/* tests/api/dialects.c - Ollama's and Anthropic's ways to ask for text, on a real model.
 *
 * Idea:   the same greedy question through all APIs must give the same text; shapes are those of the two APIs' references
 *         (tests/reference/other_clients.py asks with their own clients); refusals have the shape of the API asked. */
#include "client.h"

#include <jansson.h>

#include "base/base.h"
#include "http/http.h"

typedef struct rig {
    imp_engine *e;
    imp_http *http;
    uint16_t port;
} rig;

static int start(void **state)
{
    static rig r;
    imp_error err;
    imp_model *m;
    imp_engine_config c = {.n_parallel = 4, .n_ctx = 512};
    imp_http_config h = {.port = 0};
    if (imp_engine_new(&c, &r.e, &err) != IMP_OK ||
        imp_engine_load(r.e, "models/impetus-nano.gguf", NULL, &m, &err) != IMP_OK ||
        imp_http_start(r.e, &h, &r.http, &err) != IMP_OK)
        fail_msg("%s", err.text);
    r.port = imp_http_port(r.http);
    *state = &r;
    return 0;
}

static int stop(void **state)
{
    rig *r = *state;
    imp_http_stop(r->http, 1000);
    imp_engine_free(r->e);
    return 0;
}

static json_t *fetch(const rig *r, const char *path, const char *body)
{
    answer a = post(r->port, path, body);
    if (a.status != 200) fail_msg("%s: %d %s", path, a.status, a.body);
    json_t *o = json_loads(a.body, 0, NULL);
    if (o == NULL) fail_msg("%s: %s", path, a.body);
    free(a.body);
    return o;
}

static const char *str(const json_t *o, const char *a, const char *b)
{
    const json_t *v = json_object_get(o, a);
    if (json_is_array(v)) v = json_array_get(v, 0);
    return json_string_value(b != NULL ? json_object_get(v, b) : v);
}

#define HELLO                                                                                                \
    "\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},{\"role\":\"user\",\"content\":\"Tell "   \
    "me a story.\"}]"

static void same_text_everywhere(void **state)
{
    const rig *r = *state;
    json_t *openai = fetch(r, "/v1/chat/completions", "{\"temperature\":0,\"max_tokens\":24," HELLO "}");
    const char *want = str(json_object_get(json_array_get(json_object_get(openai, "choices"), 0), "message"),
                           "content", NULL);
    assert_non_null(want);
    json_t *chat = fetch(r, "/api/chat",
                         "{\"model\":\"impetus-nano:latest\",\"stream\":false,\"options\":{\"temperature\":0,"
                         "\"num_predict\":24}," HELLO "}");
    assert_string_equal(str(chat, "message", "content"), want);
    assert_string_equal(str(chat, "message", "role"), "assistant");
    assert_true(json_is_true(json_object_get(chat, "done")));
    assert_int_equal(json_integer_value(json_object_get(chat, "eval_count")), 24);
    assert_string_equal(str(chat, "done_reason", NULL), "length");
    json_t *gen = fetch(r, "/api/generate",
                        "{\"model\":\"impetus-nano\",\"stream\":false,\"system\":\"Be "
                        "brief.\",\"prompt\":\"Tell me a story.\",\"options\":"
                        "{\"temperature\":0,\"num_predict\":24,\"num_ctx\":512}}");
    assert_string_equal(str(gen, "response", NULL), want);
    json_t *msg =
        fetch(r, "/v1/messages",
              "{\"model\":\"impetus-nano\",\"max_tokens\":24,\"temperature\":0,\"system\":[{\"type\":"
              "\"text\",\"text\":\"Be brief.\","
              "\"cache_control\":{\"type\":\"ephemeral\"}}],\"messages\":[{\"role\":\"user\","
              "\"content\":[{\"type\":\"text\","
              "\"text\":\"Tell me a story.\"}]}]}");
    assert_string_equal(str(msg, "content", "text"), want);
    assert_string_equal(str(msg, "stop_reason", NULL), "max_tokens");
    json_t *raw =
        fetch(r, "/api/generate",
              "{\"prompt\":\"Once upon a "
              "time\",\"raw\":true,\"stream\":false,\"options\":{\"temperature\":0,\"num_predict\":9}}");
    json_t *plain =
        fetch(r, "/v1/completions", "{\"prompt\":\"Once upon a time\",\"temperature\":0,\"max_tokens\":9}");
    assert_string_equal(str(raw, "response", NULL), str(plain, "choices", "text"));
    json_t *count = fetch(
        r, "/v1/messages/count_tokens",
        "{\"system\":\"Be brief.\",\"messages\":[{\"role\":\"user\",\"content\":\"Tell me a story.\"}]}");
    assert_int_equal(json_integer_value(json_object_get(count, "input_tokens")),
                     json_integer_value(json_object_get(json_object_get(openai, "usage"), "prompt_tokens")));
    json_t *all[] = {openai, chat, gen, msg, raw, plain, count};
    for (size_t i = 0; i < IMP_COUNT(all); i++) json_decref(all[i]);
}

/* Streams: pieces joined are the whole answer, in the order that each API prescribes. */
static void streams(void **state)
{
    const rig *r = *state;
    json_t *whole = fetch(r, "/api/chat",
                          "{\"stream\":false,\"options\":{\"temperature\":0,\"num_predict\":24}," HELLO "}");
    answer a = post(r->port, "/api/chat", "{\"options\":{\"temperature\":0,\"num_predict\":24}," HELLO "}");
    assert_int_equal(a.status, 200);
    assert_string_equal(answer_header(&a, "Content-Type"), "application/x-ndjson");
    imp_buf text = {0};
    bool done = false;
    for (char *p = a.body, *end; *p; p = end + 1) {
        end = strchr(p, '\n');
        assert_non_null(end);
        assert_false(done);
        json_t *o = json_loadb(p, (size_t)(end - p), 0, NULL);
        imp_buf_str(&text, str(o, "message", "content"));
        done = json_is_true(json_object_get(o, "done"));
        json_decref(o);
    }
    assert_true(done);
    assert_string_equal(text.data, str(whole, "message", "content"));
    free(a.body);
    text.n = 0;
    a = post(r->port, "/v1/messages",
             "{\"max_tokens\":24,\"stream\":true,\"temperature\":0,\"system\":\"Be "
             "brief.\",\"messages\":[{\"role\":\"user\",\"content\":\"Tell "
             "me a story.\"}]}");
    assert_int_equal(a.status, 200);
    static const char *const order[] = {"message_start",      "content_block_start", "content_block_delta",
                                        "content_block_stop", "message_delta",       "message_stop"};
    size_t at = 0;
    for (char *p = a.body; (p = strstr(p, "event: ")) != NULL;) {
        char name[40];
        assert_int_equal(sscanf(p, "event: %39s", name), 1);
        if (strcmp(name, order[at]) != 0) at++;
        assert_true(at < IMP_COUNT(order));
        assert_string_equal(name, order[at]);
        p = strstr(p, "data: ") + 6;
        json_t *o = json_loadb(p, strcspn(p, "\n"), 0, NULL);
        assert_string_equal(str(o, "type", NULL), name);
        if (at == 2) imp_buf_str(&text, str(o, "delta", "text"));
        json_decref(o);
    }
    assert_int_equal(at, IMP_COUNT(order) - 1);
    assert_string_equal(text.data, str(whole, "message", "content"));
    free(a.body);
    imp_buf_deinit(&text);
    json_decref(whole);
}

static void constraints_and_stops(void **state)
{
    const rig *r = *state;
    json_t *o = fetch(r, "/api/generate",
                      "{\"prompt\":\"x\",\"stream\":false,\"format\":{\"type\":\"object\",\"properties\":{"
                      "\"n\":{\"const\":7}},\"required\":[\"n\"]}}");
    json_t *v = json_loads(str(o, "response", NULL), 0, NULL);
    assert_int_equal(json_integer_value(json_object_get(v, "n")), 7);
    json_decref(v);
    json_decref(o);
    o = fetch(r, "/v1/messages",
              "{\"max_tokens\":40,\"temperature\":0,\"stop_sequences\":[\"zzzz\",\" "
              "\"],\"messages\":[{\"role\":\"user\",\"content\":\"Tell me a story.\"}]}");
    assert_string_equal(str(o, "stop_reason", NULL), "stop_sequence");
    assert_string_equal(str(o, "stop_sequence", NULL), " ");
    assert_null(strchr(str(o, "content", "text"), ' '));
    json_decref(o);
}

static void refusals(void **state)
{
    const rig *r = *state;
    static const struct {
        const char *path, *body;
        int status;
        const char *says;
    } bad[] = {
        {"/v1/chat/completions", "{\"impetus\":{\"require\":\"gpu7\"}," HELLO "}", 503, "no such device"},
        {"/v1/messages", "{" HELLO "}", 400,
         "\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\",\"message\":\"'max_tokens'"},
        {"/v1/messages", "{\"model\":\"nobody\",\"max_tokens\":1," HELLO "}", 404, "not_found_error"},
        {"/v1/messages",
         "{\"max_tokens\":1,\"tools\":[{\"name\":\"f()\"}],\"messages\":[{\"role\":\"user\",\"content\":"
         "\"x\"}]"
         "}",
         400, "'tools[0]'"},
        {"/v1/messages",
         "{\"max_tokens\":1,\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image\"}]}]}", 400,
         "text only"},
        {"/v1/messages",
         "{\"max_tokens\":1,\"system\":5,\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", 400,
         "'system'"},
        {"/v1/messages/count_tokens", "{\"max_tokens\":1," HELLO "}", 400, "'max_tokens'"},
        {"/api/chat", "{\"model\":\"nobody\"," HELLO "}", 404, "{\"error\":\"the model 'nobody'"},
        {"/api/chat", "{\"options\":{\"mirostat\":3}," HELLO "}", 400, "options.mirostat"},
        {"/api/chat", "{\"options\":{\"temperature\":3}," HELLO "}", 400, "options.temperature"},
        {"/api/chat", "{\"options\":{\"top_k\":1.5}," HELLO "}", 400, "an integer"},
        {"/api/chat", "{\"options\":{\"stop\":5}," HELLO "}", 400, "'stop'"},
        {"/api/chat", "{\"think\":true," HELLO "}", 400, "does not think"},
        {"/api/chat", "{\"think\":7," HELLO "}", 400, "'think'"},
        {"/api/chat", "{\"max_tokens\":3," HELLO "}", 400, "'max_tokens'"},
        {"/api/generate", "{\"prompt\":5}", 400, "'prompt' must be a string"},
        {"/api/generate", "{\"prompt\":\"x\",\"format\":\"xml\"}", 400, "'format'"},
        {"/api/generate", "{\"prompt\":\"x\",\"raw\":true,\"system\":\"y\"}", 400, "'system'"},
        {"/api/generate", "{\"prompt\":\"x\",\"images\":[\"a\"]}", 400, "'images'"},
    };
    for (size_t i = 0; i < IMP_COUNT(bad); i++) {
        answer a = post(r->port, bad[i].path, bad[i].body);
        if (a.status != bad[i].status || strstr(a.body, bad[i].says) == NULL)
            fail_msg("%s %s: %d %s", bad[i].path, bad[i].body, a.status, a.body);
        free(a.body);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_text_everywhere), cmocka_unit_test(streams),
                                       cmocka_unit_test(constraints_and_stops), cmocka_unit_test(refusals)};
    return cmocka_run_group_tests(tests, start, stop);
}
