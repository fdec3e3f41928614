/* tests/api/constraints.c - constrained answers of a real model over HTTP: they keep to the constraint, whatever else runs.
 *
 * Idea:   stories260K knows no JSON, so what comes out is the constraint's doing; what the answer must be is checked by
 *         jansson and by hand, not by the grammar. Free neighbours must tell the same story as alone. */
#include "client.h"

#include <jansson.h>

#include "base/thread.h"
#include "http/http.h"

typedef struct rig {
    imp_engine *e;
    imp_http *http;
    uint16_t port;
} rig;

static rig start(void)
{
    rig r = {0};
    imp_error err;
    imp_model *m;
    imp_engine_config c = {.n_parallel = 5, .n_batch = 64};
    imp_http_config h = {.port = 0};
    if (imp_engine_new(&c, &r.e, &err) != IMP_OK ||
        imp_engine_load(r.e, "models/stories260K.gguf", NULL, &m, &err) != IMP_OK ||
        imp_http_start(r.e, &h, &r.http, &err) != IMP_OK)
        fail_msg("%s", err.text);
    r.port = imp_http_port(r.http);
    return r;
}

static void stop(rig *r)
{
    imp_http_stop(r->http, 1000);
    imp_engine_free(r->e);
}

/* The text of a completion with these fields added; malloc'd. */
static char *complete(uint16_t port, const char *fields, char finish[16])
{
    char body[2048];
    snprintf(body, sizeof body, "{\"prompt\":\"Once upon a time\",\"max_tokens\":120%s%s}",
             fields[0] ? "," : "", fields);
    answer a = post(port, "/v1/completions", body);
    if (a.status != 200) fail_msg("%s: %d %s", fields, a.status, a.body);
    json_t *o = json_loads(a.body, 0, NULL), *c = json_array_get(json_object_get(o, "choices"), 0);
    char *text = strdup(json_string_value(json_object_get(c, "text")));
    if (finish != NULL) snprintf(finish, 16, "%s", json_string_value(json_object_get(c, "finish_reason")));
    json_decref(o);
    free(a.body);
    return text;
}

#define SCHEMA                                                                                               \
    "\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"cat\",\"schema\":{\"type\":"  \
    "\"object\","                                                                                            \
    "\"properties\":{\"name\":{\"type\":\"string\",\"maxLength\":12},\"age\":{\"type\":\"integer\","         \
    "\"minimum\":3,"                                                                                         \
    "\"maximum\":20},\"friends\":{\"type\":\"array\",\"items\":{\"enum\":[\"Tom\",\"Lily\"]},\"maxItems\":"  \
    "3}},"                                                                                                   \
    "\"required\":[\"name\",\"age\",\"friends\"],\"additionalProperties\":false}}}"

static void check_cat(const char *text)
{
    json_t *o = json_loads(text, 0, NULL), *friends = json_object_get(o, "friends"), *v;
    if (o == NULL || json_object_size(o) != 3) fail_msg("%s", text);
    json_int_t age = json_integer_value(json_object_get(o, "age"));
    assert_true(json_is_string(json_object_get(o, "name")) && age >= 3 && age <= 20 &&
                json_is_array(friends));
    assert_true(json_array_size(friends) <= 3);
    size_t i;
    json_array_foreach(friends, i, v)
    {
        const char *s = json_string_value(v);
        assert_true(s != NULL && (strcmp(s, "Tom") == 0 || strcmp(s, "Lily") == 0));
    }
    json_decref(o);
}

static void answers_keep_to_it(void **state)
{
    (void)state;
    rig r = start();
    for (int seed = 0; seed < 12; seed++) {
        char fields[1024], finish[16];
        snprintf(fields, sizeof fields, SCHEMA ",\"seed\":%d,\"temperature\":%s%s", seed,
                 seed % 3 ? "1.5" : "0", seed % 2 ? ",\"logprobs\":1" : "");
        char *t = complete(r.port, fields, finish);
        assert_string_equal(finish, "stop");
        check_cat(t);
        free(t);
        snprintf(fields, sizeof fields, "\"guided_regex\":\"(\\\\d{2}|[A-F]x)-z+\",\"seed\":%d", seed);
        t = complete(r.port, fields, NULL);
        bool digits = t[0] >= '0' && t[0] <= '9' && t[1] >= '0' && t[1] <= '9',
             letters = t[0] >= 'A' && t[0] <= 'F' && t[1] == 'x';
        assert_true((digits || letters) && t[2] == '-' && t[3] == 'z' && strspn(t + 3, "z") == strlen(t + 3));
        free(t);
    }
    static const char *const same[][2] = {
        {"\"guided_choice\":[\"blue\",\"blue and green\"],\"temperature\":0", "blue"},
        {"\"grammar\":\"root ::= [a-c]{3} \\\" \\\" (\\\"x\\\" | \\\"yy\\\")\",\"temperature\":0", NULL},
        {"\"json_schema\":{\"const\":{\"a\":[1,null]}}", "{\"a\":[1,null]}"},
        {"\"structured_outputs\":{\"choice\":[\"only this\"]}", "only this"},
    };
    for (size_t i = 0; i < IMP_COUNT(same); i++) {
        char *t = complete(r.port, same[i][0], NULL);
        if (same[i][1] != NULL && strncmp(t, same[i][1], strlen(same[i][1])) != 0)
            fail_msg("%s gave %s", same[i][0], t);
        if (same[i][1] == NULL &&
            (strspn(t, "abc") != 3 || (strcmp(t + 3, " x") != 0 && strcmp(t + 3, " yy") != 0)))
            fail_msg("%s", t);
        free(t);
    }
    stop(&r);
}

typedef struct visitor {
    uint16_t port;
    const char *fields;
    char *text;
    imp_thread *thread;
} visitor;

static void visit(void *arg)
{
    visitor *v = arg;
    v->text = complete(v->port, v->fields, NULL);
}

/* In one batch with constrained answers a free one tells what it tells alone, and the constrained ones, too. */
static void neighbours_are_not_disturbed(void **state)
{
    (void)state;
    static const char *const fields[] = {"\"temperature\":0", SCHEMA ",\"temperature\":0",
                                         "\"temperature\":0.9,\"seed\":5",
                                         "\"response_format\":{\"type\":\"json_object\"},\"temperature\":0"};
    rig r = start();
    char *alone[IMP_COUNT(fields)];
    for (size_t i = 0; i < IMP_COUNT(fields); i++) alone[i] = complete(r.port, fields[i], NULL);
    visitor v[12];
    for (size_t i = 0; i < IMP_COUNT(v); i++) {
        v[i] = (visitor){.port = r.port, .fields = fields[i % IMP_COUNT(fields)]};
        assert_int_equal(imp_thread_start(visit, &v[i], &v[i].thread), IMP_OK);
    }
    for (size_t i = 0; i < IMP_COUNT(v); i++) {
        imp_thread_join(v[i].thread);
        assert_string_equal(v[i].text, alone[i % IMP_COUNT(fields)]);
        free(v[i].text);
    }
    for (size_t i = 0; i < IMP_COUNT(fields); i++) free(alone[i]);
    stop(&r);
}

static void refusals(void **state)
{
    (void)state;
    static const char *const bad[][3] = {
        {"\"response_format\":{\"type\":\"json_schema\"}", "response_format", "schema"},
        {"\"response_format\":{\"type\":\"xml\"}", "response_format", "json_schema"},
        {"\"response_format\":{\"type\":\"json_object\",\"x\":1}", "response_format", "'response_format.x'"},
        {"\"json_schema\":{\"not\":{}}", "json_schema", "\\\"not\\\""},
        {"\"grammar\":\"root ::= (\"", "grammar", "line 1"},
        {"\"grammar\":7", "grammar", "must be a string"},
        {"\"guided_regex\":\"(a\"", "guided_regex", "not closed"},
        {"\"guided_choice\":[]", "guided_choice", "list of strings"},
        {"\"guided_choice\":[\"a\"],\"grammar\":\"root ::= \\\"a\\\"\"", "guided_choice", "more than one"},
        {"\"structured_outputs\":{}", "structured_outputs", "one of json"},
    };
    rig r = start();
    for (size_t i = 0; i < IMP_COUNT(bad); i++) {
        char body[512], param[64];
        snprintf(body, sizeof body, "{\"prompt\":\"x\",%s}", bad[i][0]);
        answer a = post(r.port, "/v1/completions", body);
        snprintf(param, sizeof param, "\"param\":\"%s\"", bad[i][1]);
        if (a.status != 400 || strstr(a.body, param) == NULL || strstr(a.body, bad[i][2]) == NULL)
            fail_msg("%s: %d %s", bad[i][0], a.status, a.body);
        free(a.body);
    }
    stop(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(answers_keep_to_it),
                                       cmocka_unit_test(neighbours_are_not_disturbed),
                                       cmocka_unit_test(refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
