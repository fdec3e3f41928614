/* tests/api/rerank.c - /v1/rerank against the vectors that /v1/embeddings gives; /tokenize and /detokenize against the fake
 * engine's bytes, in both forms; what is refused. */
#include "fake_engine.h"
#include "client.h"
#include "base/base.h"
#include "http/http.h"

#include <jansson.h>
#include <math.h>

static imp_engine *g_engine;
static imp_http *g_http;
static uint16_t g_port;

static int setup(void **state)
{
    (void)state;
    imp_error err;
    imp_http_config c = {0};
    imp_log_set_level(IMP_LOG_ERROR);
    if (imp_engine_new(NULL, &g_engine, &err) != IMP_OK ||
        imp_http_start(g_engine, &c, &g_http, &err) != IMP_OK)
        return -1;
    g_port = imp_http_port(g_http);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    imp_http_stop(g_http, 1000);
    imp_engine_free(g_engine);
    return 0;
}

static json_t *ask_json(const char *path, const char *body, int status)
{
    answer a = post(g_port, path, body);
    if (a.status != status) print_error("%s %s: %d %s\n", path, body, a.status, a.body);
    assert_int_equal(a.status, status);
    json_t *o = json_loads(a.body, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(o);
    free(a.body);
    return o;
}

static double cosine(json_t *list, size_t a, size_t b)
{
    json_t *x = json_object_get(json_array_get(list, a), "embedding"),
           *y = json_object_get(json_array_get(list, b), "embedding");
    double dot = 0, xx = 0, yy = 0;
    for (size_t i = 0; i < json_array_size(x); i++) {
        double p = json_number_value(json_array_get(x, i)), q = json_number_value(json_array_get(y, i));
        dot += p * q, xx += p * p, yy += q * q;
    }
    return dot / sqrt(xx * yy);
}

#define DOCS "\"one\",\"two\",\"three\",\"query\",\"five\",\"two\""

static void order_is_that_of_the_cosines(void **state)
{
    (void)state;
    json_t *e = ask_json("/v1/embeddings", "{\"input\":[\"query\"," DOCS "]}", 200),
           *list = json_object_get(e, "data");
    json_t *r = ask_json(
        "/v1/rerank",
        "{\"model\":\"emb\",\"query\":\"query\",\"documents\":[" DOCS "],\"return_documents\":true}", 200);
    json_t *res = json_object_get(r, "results");
    assert_int_equal(json_array_size(res), 6);
    double last = 2;
    bool seen[6] = {false};
    for (size_t i = 0; i < 6; i++) {
        json_t *one = json_array_get(res, i);
        size_t index = (size_t)json_integer_value(json_object_get(one, "index"));
        double score = json_number_value(json_object_get(one, "relevance_score"));
        assert_true(index < 6 && !seen[index] && score <= last);
        assert_true(fabs(score - cosine(list, 0, index + 1)) < 1e-6);
        seen[index] = true;
        last = score;
        static const char *const text[] = {"one", "two", "three", "query", "five", "two"};
        assert_string_equal(json_string_value(json_object_get(json_object_get(one, "document"), "text")),
                            text[index]);
    }
    assert_int_equal(json_integer_value(json_object_get(json_array_get(res, 0), "index")), 3); /* itself */
    assert_int_equal(json_integer_value(json_object_get(json_object_get(r, "usage"), "prompt_tokens")),
                     5 + 23 + 2 * 7);
    json_decref(r);
    r = ask_json("/rerank", "{\"query\":\"query\",\"documents\":[{\"text\":\"one\"},\"query\"],\"top_n\":1}",
                 200);
    res = json_object_get(r, "results");
    assert_int_equal(json_array_size(res), 1);
    assert_int_equal(json_integer_value(json_object_get(json_array_get(res, 0), "index")), 1);
    assert_null(json_object_get(json_array_get(res, 0), "document"));
    json_decref(r);
    json_decref(e);
}

static void tokens_and_back(void **state)
{
    (void)state;
    static const struct {
        const char *path, *body, *want;
    } t[] = {
        {"/tokenize", "{\"model\":\"fake\",\"content\":\"ab\"}", "{\"tokens\":[97,98]}"},
        {"/tokenize", "{\"model\":\"fake\",\"content\":\"ab\",\"add_special\":true}",
         "{\"tokens\":[256,97,98]}"},
        {"/tokenize", "{\"model\":\"fake\",\"content\":\"a\",\"with_pieces\":true}",
         "{\"tokens\":[{\"id\":97,\"piece\":\"x\"}]}"},
        {"/tokenize", "{\"model\":\"fake\",\"content\":\"\"}", "{\"tokens\":[]}"},
        {"/tokenize", "{\"model\":\"fake\",\"prompt\":\"ab\"}",
         "{\"count\":3,\"max_model_len\":4096,\"tokens\":[256,97,98]}"},
        {"/tokenize",
         "{\"model\":\"fake\",\"prompt\":\"a\",\"add_special_tokens\":false,\"return_token_strs\":true}",
         "{\"count\":1,\"max_model_len\":4096,\"tokens\":[97],\"token_strs\":[\"x\"]}"},
        {"/detokenize", "{\"model\":\"fake\",\"tokens\":[97,98,34]}",
         "{\"content\":\"ab\\\"\",\"prompt\":\"ab\\\"\"}"},
        {"/detokenize", "{\"model\":\"fake\",\"tokens\":[]}", "{\"content\":\"\",\"prompt\":\"\"}"},
    };
    for (size_t i = 0; i < IMP_COUNT(t); i++) {
        json_t *o = ask_json(t[i].path, t[i].body, 200), *w = json_loads(t[i].want, 0, NULL);
        assert_true(json_equal(o, w));
        json_decref(o);
        json_decref(w);
    }
}

static void what_is_refused(void **state)
{
    (void)state;
    char many[40000] = "{\"query\":\"q\",\"documents\":[\"a\"",
         longer[400] = "{\"query\":\"q\",\"documents\":[\"";
    for (int i = 1; i < 2048; i++) strcat(many, ",\"a\"");
    strcat(many, "]}");
    memset(longer + strlen(longer), 'x', 100);
    strcat(longer, "\"]}");
    const struct {
        const char *path, *body;
        int status;
        const char *param;
    } t[] = {
        {"/v1/rerank", "{}", 400, "documents"},
        {"/v1/rerank", "{\"query\":\"q\"}", 400, "documents"},
        {"/v1/rerank", "{\"query\":\"q\",\"documents\":[]}", 400, "documents"},
        {"/v1/rerank", "{\"query\":\"q\",\"documents\":\"x\"}", 400, "documents"},
        {"/v1/rerank", "{\"query\":\"q\",\"documents\":[1]}", 400, "documents"},
        {"/v1/rerank", "{\"query\":\"q\",\"documents\":[\"\"]}", 400, "documents"},
        {"/v1/rerank", "{\"query\":{\"text\":\"q\"},\"documents\":[\"x\"]}", 400, "query"},
        {"/v1/rerank", "{\"documents\":[\"x\"]}", 400, "query"},
        {"/v1/rerank", "{\"query\":\"q\",\"documents\":[\"x\"],\"top_n\":0}", 400, "top_n"},
        {"/v1/rerank", "{\"query\":\"q\",\"documents\":[\"x\"],\"rank_fields\":[]}", 400, "rank_fields"},
        {"/v1/rerank", "{\"model\":\"fake\",\"query\":\"q\",\"documents\":[\"x\"]}", 400, "model"},
        {"/v1/rerank", "{\"model\":\"none\",\"query\":\"q\",\"documents\":[\"x\"]}", 404, "model"},
        {"/v1/rerank", many, 400, "documents"},
        {"/v1/rerank", longer, 413, "documents"},
        {"/tokenize", "{\"content\":\"x\"}", 400, "model"}, /* two are loaded */
        {"/tokenize", "{\"model\":\"fake\"}", 400, "content"},
        {"/tokenize", "{\"model\":\"fake\",\"content\":[1]}", 400, "content"},
        {"/tokenize", "{\"model\":\"fake\",\"content\":\"x\",\"prompt\":\"x\"}", 400, "prompt"},
        {"/tokenize", "{\"model\":\"fake\",\"messages\":[]}", 400, "content"},
        {"/tokenize", "{\"model\":\"fake\",\"content\":\"x\",\"messages\":[]}", 400, "messages"},
        {"/tokenize", "{\"model\":\"fake\",\"content\":\"x\",\"add_special\":1}", 400, "add_special"},
        {"/detokenize", "{\"model\":\"fake\"}", 400, "tokens"},
        {"/detokenize", "{\"model\":\"fake\",\"tokens\":[-1]}", 400, "tokens"},
        {"/detokenize", "{\"model\":\"fake\",\"tokens\":[258]}", 400, "tokens"},
        {"/detokenize", "{\"model\":\"fake\",\"tokens\":[1e3]}", 400, "tokens"},
        {"/detokenize", "{\"model\":\"fake\",\"tokens\":[4294967297]}", 400, "tokens"},
    };
    for (size_t i = 0; i < IMP_COUNT(t); i++) {
        json_t *o = ask_json(t[i].path, t[i].body, t[i].status), *e = json_object_get(o, "error");
        assert_string_equal(json_string_value(json_object_get(e, "param")), t[i].param);
        json_decref(o);
    }
}

/* Every allocation fails once: an error, no crash, no leak. */
static void under_failures(void **state)
{
    (void)state;
    static const char *const rq[][2] = {
        {"/v1/rerank", "{\"query\":\"q\",\"documents\":[\"a\",\"b\"],\"return_documents\":true}"},
        {"/tokenize", "{\"model\":\"fake\",\"content\":\"ab\",\"with_pieces\":true}"},
        {"/detokenize", "{\"model\":\"fake\",\"tokens\":[97]}"}};
    for (size_t i = 0; i < IMP_COUNT(rq); i++)
        for (uint64_t k = 1; k < 300; k++) {
            uint64_t before = imp_sys_n_call();
            imp_sys_fail_at(k);
            answer a = post(g_port, rq[i][0], rq[i][1]);
            imp_sys_fail_at(0);
            assert_true(a.status == 0 || a.status == 200 || a.status == 503);
            free(a.body);
            if (imp_sys_n_call() - before < k) break;
            assert_true(k < 299);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_is_that_of_the_cosines),
        cmocka_unit_test(tokens_and_back),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(under_failures),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
