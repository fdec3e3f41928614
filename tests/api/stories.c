/* The main job on a real model: a story told alone, through HTTP, streamed, by 64 clients at once, in any company:
 * always the same bytes. Nothing is faked here. */
#include "client.h"

#include <jansson.h>

#include "base/thread.h"
#include "http/http.h"

/* How llama2.c's author's model continues "Once upon a time" (the 60 tokens of issue A). */
static const char *const story =
    ", there was a little girl named Lily. She loved to play outside in the park. One day, "
    "she saw a big, red ball. She wanted to play with it, but it was too high.";

static const char *const prompt[] = {
    "Once upon a time",
    "Tom and Sam",
    "The dog",
    "One day, a little girl named Anna went to the",
    "\xe2\x82\xac \xf0\x9f\x98\x80",
    "There was a big, red",
    "Lily",
    "It was a sunny day and the little boy",
};

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
    imp_engine_config c = {.n_parallel = 7,
                           .n_batch = 96}; /* odd sizes: chunks and slots are shared in odd ways */
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

static void request_body(char *out, size_t cap, size_t which, bool stream, uint32_t n_tok)
{
    json_t *o = json_pack("{s:s, s:i, s:f, s:b}", "prompt", prompt[which % IMP_COUNT(prompt)], "max_tokens",
                          (int)n_tok, "temperature", which < IMP_COUNT(prompt) ? 0.0 : 0.9, "stream", stream);
    if (which >= IMP_COUNT(prompt)) json_object_set_new(o, "seed", json_integer((int)which));
    char *s = json_dumps(o, 0);
    snprintf(out, cap, "%s", s);
    free(s);
    json_decref(o);
}

/* The text of an answer, streamed or not; malloc'd. */
static char *text_of(const answer *a, bool stream)
{
    imp_buf out = {0};
    const char *p = a->body;
    imp_buf_str(&out, "");
    while (p != NULL && (!stream || (p = strstr(p, "data: {")) != NULL)) {
        json_error_t je;
        json_t *o =
            json_loadb(p + (stream ? 6 : 0), strlen(p) - (stream ? 6 : 0), JSON_DISABLE_EOF_CHECK, &je);
        const char *t =
            json_string_value(json_object_get(json_array_get(json_object_get(o, "choices"), 0), "text"));
        if (t != NULL) imp_buf_str(&out, t);
        json_decref(o);
        if (!stream) break;
        p += 6;
    }
    if (stream && strstr(a->body, "data: [DONE]") == NULL) fail_msg("a stream without its end: %s", a->body);
    return imp_buf_take(&out);
}

static char *tell(uint16_t port, size_t which, bool stream, uint32_t n_tok)
{
    char body[1024];
    request_body(body, sizeof body, which, stream, n_tok);
    answer a = post(port, "/v1/completions", body);
    if (a.status != 200 || !a.whole) fail_msg("status %d: %s", a.status, a.body);
    char *t = text_of(&a, stream);
    free(a.body);
    return t;
}

static void the_story_through_http(void **state)
{
    (void)state;
    rig r = start();
    char *plain = tell(r.port, 0, false, 60), *streamed = tell(r.port, 0, true, 60);
    assert_memory_equal(plain, story, strlen(story));
    assert_string_equal(streamed, plain);
    free(plain);
    free(streamed);
    stop(&r);
}

typedef struct visitor {
    uint16_t port;
    size_t which;
    bool stream;
    uint32_t n_tok;
    char *text;
    imp_thread *thread;
} visitor;

static void visit(void *arg)
{
    visitor *v = arg;
    v->text = tell(v->port, v->which, v->stream, v->n_tok);
}

static void sixty_four_clients_get_the_bytes_they_get_alone(void **state)
{
    (void)state;
    enum { N = 64, KINDS = 2 * IMP_COUNT(prompt) }; /* greedy, and drawn with a seed */
    rig r = start();
    char *alone[KINDS];
    for (size_t k = 0; k < KINDS; k++) alone[k] = tell(r.port, k, false, 40 + (uint32_t)k);
    for (int round = 0; round < 2; round++) {
        visitor v[N];
        for (size_t i = 0; i < N; i++) {
            v[i] = (visitor){.port = r.port, .which = (i * 7) % KINDS, .stream = i % 3 != 0};
            v[i].n_tok = 40 + (uint32_t)v[i].which;
            assert_int_equal(imp_thread_start(visit, &v[i], &v[i].thread), IMP_OK);
        }
        for (size_t i = 0; i < N; i++) {
            imp_thread_join(v[i].thread);
            assert_string_equal(v[i].text, alone[v[i].which]);
            free(v[i].text);
        }
    }
    imp_stats st;
    imp_engine_get_stats(r.e, &st);
    assert_int_equal(st.n_done, KINDS + 2 * N);
    assert_int_equal(st.kv_block_used, 0);
    for (size_t k = 0; k < KINDS; k++) free(alone[k]);
    stop(&r);
}

static void clients_that_leave_free_their_slots(void **state)
{
    (void)state;
    rig r = start();
    char *alone = tell(r.port, 0, false, 60), body[1024];
    for (int round = 0; round < 20; round++) {
        client c[6];
        for (size_t i = 0; i < 6; i++) {
            request_body(body, sizeof body, i, true, 400);
            c[i] = client_open(r.port);
            assert_true(client_post(&c[i], r.port, "/v1/completions", body, strlen(body)));
        }
        for (size_t i = 0; i < 6; i++) {
            if (i % 2 == 0) assert_true(client_more(&c[i])); /* some leave in the middle, some at once */
            client_close(&c[i]);
        }
    }
    char *again = tell(r.port, 0, true, 60);
    assert_string_equal(again, alone);
    imp_stats st;
    for (int wait = 0; wait < 500; wait++) {
        imp_engine_get_stats(r.e, &st);
        if (st.n_running + st.n_waiting == 0) break;
        poll(NULL, 0, 10);
    }
    assert_int_equal(st.n_running + st.n_waiting, 0);
    assert_int_equal(st.kv_block_used, 0);
    assert_true(st.n_cancelled > 20);
    free(alone);
    free(again);
    stop(&r);
}

static void stop_strings_end_inside_tokens(void **state)
{
    (void)state;
    rig r = start();
    for (size_t at = 1; at < 60; at++) { /* every three letters of the story as a stop string */
        char stop_text[4], body[512];
        memcpy(stop_text, story + at, 3);
        stop_text[3] = '\0';
        const char *first = strstr(story, stop_text);
        json_t *o = json_pack("{s:s, s:i, s:i, s:[s], s:b}", "prompt", prompt[0], "max_tokens", 60,
                              "temperature", 0, "stop", stop_text, "stream", (int)(at % 2));
        char *s = json_dumps(o, 0);
        snprintf(body, sizeof body, "%s", s);
        free(s);
        json_decref(o);
        answer a = post(r.port, "/v1/completions", body);
        assert_int_equal(a.status, 200);
        char *t = text_of(&a, at % 2);
        assert_int_equal(strlen(t), first - story);
        assert_memory_equal(t, story, strlen(t));
        assert_non_null(strstr(a.body, "\"finish_reason\":\"stop\""));
        free(t);
        free(a.body);
    }
    stop(&r);
}

/* Text that a stop string cuts inside a token still comes with that token's probability. */
static void logprobs_cover_the_text(void **state)
{
    (void)state;
    rig r = start();
    for (size_t at = 1; at < 40; at++) {
        char stop_text[2] = {story[at], '\0'};
        json_t *q = json_pack("{s:s, s:i, s:i, s:[s], s:i}", "prompt", prompt[0], "max_tokens", 60,
                              "temperature", 0, "stop", stop_text, "logprobs", 0);
        char *body = json_dumps(q, 0);
        answer a = post(r.port, "/v1/completions", body);
        free(body);
        json_decref(q);
        assert_int_equal(a.status, 200);
        json_t *o = json_loads(a.body, 0, NULL);
        json_t *c = json_array_get(json_object_get(o, "choices"), 0);
        const char *text = json_string_value(json_object_get(c, "text"));
        json_t *tokens = json_object_get(json_object_get(c, "logprobs"), "tokens"), *t;
        imp_buf all = {0};
        size_t i;
        imp_buf_str(&all, "");
        json_array_foreach(tokens, i, t) imp_buf_str(&all, json_string_value(t));
        assert_true(all.n >= strlen(text));
        assert_memory_equal(all.data, text, strlen(text));
        imp_buf_deinit(&all);
        json_decref(o);
        free(a.body);
    }
    stop(&r);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(the_story_through_http),
        cmocka_unit_test(sixty_four_clients_get_the_bytes_they_get_alone),
        cmocka_unit_test(clients_that_leave_free_their_slots),
        cmocka_unit_test(stop_strings_end_inside_tokens),
        cmocka_unit_test(logprobs_cover_the_text),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
