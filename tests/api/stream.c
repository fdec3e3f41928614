/* tests/api/stream.c - streams over real sockets: framing, many at once, clients that leave or do not read, the end of
 * the server. */
#include "fake_engine.h"
#include "client.h"
#include "base/base.h"
#include "http/http.h"

#include <jansson.h>

static imp_engine *g_engine;
static imp_http *g_http;
static uint16_t g_port;

#define CHAT "/v1/chat/completions"
#define COMP "/v1/completions"

static int setup(void **state)
{
    (void)state;
    imp_log_set_level(IMP_LOG_ERROR);
    imp_error err;
    imp_http_config c = {.max_unsent_bytes = 1 << 20};
    if (imp_engine_new(NULL, &g_engine, &err) != IMP_OK) return -1;
    if (imp_http_start(g_engine, &c, &g_http, &err) != IMP_OK) return -1;
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

static int calm(void **state) /* before each test */
{
    (void)state;
    g_fake.step_us = g_fake.n_piece = g_fake.prefill_steps = g_fake.fail_after = 0;
    g_fake.submit_status = 0;
    return 0;
}

static bool wait_none_running(double seconds)
{
    double until = now_s() + seconds;
    while (g_fake.n_running > 0 && now_s() < until) usleep(500);
    return g_fake.n_running == 0;
}

/* The events of a stream's body as JSON; checks every byte of the framing. The last must be [DONE]. */
static json_t *events(const answer *a)
{
    json_t *list = json_array();
    const char *p = a->body;
    bool done = false;
    while (*p) {
        assert_false(done);
        assert_true(strncmp(p, "data: ", 6) == 0);
        const char *e = strstr(p, "\n\n");
        assert_non_null(e);
        assert_null(memchr(p, '\n', (size_t)(e - p)));
        if (strncmp(p + 6, "[DONE]", 6) == 0)
            done = true;
        else {
            json_t *o = json_loadb(p + 6, (size_t)(e - p) - 6, JSON_REJECT_DUPLICATES, NULL);
            assert_non_null(o);
            json_array_append_new(list, o);
        }
        p = e + 2;
    }
    assert_true(done);
    return list;
}

static const char *str(const json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

static json_t *choice0(const json_t *o)
{
    return json_array_get(json_object_get(o, "choices"), 0);
}

static json_t *json_post(const char *path, const char *body)
{
    answer a = post(g_port, path, body);
    if (a.status != 200) print_error("%s: %d %s\n", body, a.status, a.body);
    assert_int_equal(a.status, 200);
    json_t *o = json_loads(a.body, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(o);
    free(a.body);
    return o;
}

static void chat_stream(void **state)
{
    (void)state;
    json_t *whole =
        json_post(CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"max_tokens\":20}");
    assert_string_equal(str(whole, "object"), "chat.completion");
    assert_true(strncmp(str(whole, "id"), "chatcmpl-", 9) == 0);
    assert_string_equal(str(whole, "model"), "fake");
    json_t *message = json_object_get(choice0(whole), "message");
    assert_string_equal(str(message, "role"), "assistant");
    assert_string_equal(str(choice0(whole), "finish_reason"), "length");
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(whole, "usage"), "completion_tokens")), 20);
    /* "user: hi\n" is 9 bytes, 9 tokens of the fake */
    assert_int_equal(json_integer_value(json_object_get(json_object_get(whole, "usage"), "prompt_tokens")),
                     9);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(whole, "usage"), "total_tokens")),
                     29);

    answer a =
        post(g_port, CHAT,
             "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"max_tokens\":20,\"stream\":true,"
             "\"stream_options\":{\"include_usage\":true}}");
    assert_int_equal(a.status, 200);
    assert_true(a.whole);
    assert_string_equal(answer_header(&a, "Content-Type"), "text/event-stream");
    json_t *list = events(&a);
    size_t n = json_array_size(list);
    assert_int_equal(n, 1 + 20 + 1 + 1); /* role, tokens, end, usage */
    char text[64] = "";
    for (size_t i = 0; i < n; i++) {
        json_t *o = json_array_get(list, i), *delta = json_object_get(choice0(o), "delta");
        assert_string_equal(str(o, "object"), "chat.completion.chunk");
        assert_string_equal(str(o, "id"), str(json_array_get(list, 0), "id"));
        if (i == 0) assert_string_equal(str(delta, "role"), "assistant");
        if (i > 0 && i <= 20) strcat(text, str(delta, "content"));
        if (i + 1 < n) assert_true(json_is_null(json_object_get(o, "usage")));
        const char *finish = str(choice0(o), "finish_reason");
        if (i == 21)
            assert_string_equal(finish, "length");
        else
            assert_null(finish);
    }
    json_t *last = json_array_get(list, n - 1);
    assert_int_equal(json_array_size(json_object_get(last, "choices")), 0);
    assert_true(json_equal(json_object_get(last, "usage"), json_object_get(whole, "usage")));
    assert_string_equal(text, str(message, "content"));
    json_decref(list);
    json_decref(whole);
    free(a.body);
}

static void completion_choices(void **state)
{
    (void)state;
    const char *body = "{\"prompt\":[\"ab\",\"cd\"],\"n\":3,\"echo\":true,\"max_tokens\":4%s}";
    char text[128];
    snprintf(text, sizeof text, body, "");
    json_t *whole = json_post(COMP, text);
    json_t *list = json_object_get(whole, "choices");
    assert_int_equal(json_array_size(list), 6);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(whole, "usage"), "prompt_tokens")),
                     6);
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(whole, "usage"), "completion_tokens")), 24);
    for (size_t i = 0; i < 6; i++) {
        json_t *c = json_array_get(list, i);
        assert_int_equal(json_integer_value(json_object_get(c, "index")), i);
        assert_int_equal(strlen(str(c, "text")), 6);
        assert_true(strncmp(str(c, "text"), i < 3 ? "ab" : "cd", 2) == 0);
    }
    snprintf(text, sizeof text, body, ",\"stream\":true");
    answer a = post(g_port, COMP, text);
    json_t *ev = events(&a);
    char got[6][16] = {""};
    int ends[6] = {0};
    for (size_t i = 0; i < json_array_size(ev); i++) {
        json_t *o = json_array_get(ev, i), *c = choice0(o);
        assert_string_equal(str(o, "object"), "text_completion");
        assert_null(json_object_get(o, "usage"));
        size_t k = (size_t)json_integer_value(json_object_get(c, "index"));
        strcat(got[k], str(c, "text"));
        ends[k] += str(c, "finish_reason") != NULL;
    }
    for (size_t i = 0; i < 6; i++) {
        assert_string_equal(got[i], str(json_array_get(list, i), "text"));
        assert_int_equal(ends[i], 1);
    }
    json_decref(ev);
    json_decref(whole);
    free(a.body);
}

static void logprobs(void **state)
{
    (void)state;
    json_t *o = json_post(
        CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":3,\"logprobs\":true,"
              "\"top_logprobs\":2}");
    json_t *list = json_object_get(json_object_get(choice0(o), "logprobs"), "content");
    assert_int_equal(json_array_size(list), 3);
    const char *content = str(json_object_get(choice0(o), "message"), "content");
    for (size_t i = 0; i < 3; i++) {
        json_t *t = json_array_get(list, i), *top = json_object_get(t, "top_logprobs");
        assert_int_equal(str(t, "token")[0], content[i]);
        assert_true(json_real_value(json_object_get(t, "logprob")) == -0.5);
        assert_int_equal(json_integer_value(json_array_get(json_object_get(t, "bytes"), 0)), content[i]);
        assert_int_equal(json_array_size(top), 2);
        assert_string_equal(str(json_array_get(top, 1), "token"), "b");
    }
    json_decref(o);
    o = json_post(COMP, "{\"prompt\":\"x\",\"max_tokens\":3,\"logprobs\":2}");
    json_t *lp = json_object_get(choice0(o), "logprobs");
    static const char *const name[] = {"tokens", "token_logprobs", "top_logprobs", "text_offset"};
    for (size_t i = 0; i < 4; i++) assert_int_equal(json_array_size(json_object_get(lp, name[i])), 3);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(lp, "text_offset"), 2)), 2);
    assert_int_equal(json_object_size(json_array_get(json_object_get(lp, "top_logprobs"), 0)), 2);
    json_decref(o);
    answer a = post(g_port, COMP, "{\"prompt\":\"x\",\"max_tokens\":3,\"logprobs\":0,\"stream\":true}");
    json_t *ev = events(&a);
    assert_int_equal(json_array_size(ev), 4);
    lp = json_object_get(choice0(json_array_get(ev, 1)), "logprobs");
    assert_int_equal(json_array_size(json_object_get(lp, "tokens")), 1);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(lp, "text_offset"), 0)), 1);
    json_decref(ev);
    free(a.body);
}

/* The first token is on the wire long before the last is made. */
static void tokens_are_not_held_back(void **state)
{
    (void)state;
    g_fake.step_us = 20000;
    client c = client_open(g_port);
    const char *body = "{\"prompt\":\"x\",\"max_tokens\":50,\"stream\":true}";
    assert_true(client_post(&c, g_port, COMP, body, strlen(body)));
    answer a;
    uint64_t step = g_fake.n_step;
    assert_true(client_head(&c, &a));
    a.body = calloc(1, 1);
    assert_true(client_chunk(&c, &a));
    assert_true(g_fake.n_step - step < 25);
    assert_int_equal(g_fake.n_running, 1);
    free(a.body);
    client_close(&c);
    assert_true(wait_none_running(2));
}

static void client_leaves(void **state)
{
    (void)state;
    static const char *const body[] = {
        "{\"prompt\":\"x\",\"max_tokens\":100000,\"stream\":true}",
        "{\"prompt\":\"x\",\"max_tokens\":100000}",
        "{\"prompt\":[\"x\",\"y\"],\"n\":4,\"max_tokens\":100000,\"stream\":true}"};
    g_fake.step_us = 1000;
    for (unsigned prefill = 0; prefill < 2; prefill++) {
        g_fake.prefill_steps = prefill ? 1000000 : 0;
        for (int i = 0; i < 3; i++) {
            uint64_t cancelled = g_fake.n_cancel_call;
            client c = client_open(g_port);
            assert_true(client_post(&c, g_port, COMP, body[i], strlen(body[i])));
            while (g_fake.n_running < (i == 2 ? 8u : 1u)) usleep(200);
            if (!prefill && i != 1)
                for (int k = 0; k < 3; k++) assert_true(client_more(&c));
            uint64_t step = g_fake.n_step;
            client_close(&c);
            assert_true(wait_none_running(5));
            print_message("client left (%s, %d): noticed after %d steps of 1 ms\n",
                          prefill ? "prefill" : "decode", i, (int)(g_fake.n_step - step));
            assert_true(g_fake.n_step - step < 2000);
            assert_int_equal(g_fake.n_cancel_call - cancelled, i == 2 ? 8 : 1);
        }
    }
    g_fake.prefill_steps = 0;
    /* its neighbour is not disturbed */
    client a = client_open(g_port), b = client_open(g_port);
    const char *two = "{\"prompt\":\"x\",\"max_tokens\":60,\"stream\":true}";
    assert_true(client_post(&a, g_port, COMP, two, strlen(two)) &&
                client_post(&b, g_port, COMP, two, strlen(two)));
    assert_true(client_more(&a));
    client_close(&a);
    answer r = client_read(&b, false);
    assert_true(r.whole);
    json_t *ev = events(&r);
    assert_int_equal(json_array_size(ev), 61);
    json_decref(ev);
    free(r.body);
    client_close(&b);
}

/* ---- 64 at once -------------------------------------------------------------------------------------------- */

enum { N_MANY = 64 };

typedef struct many {
    pthread_t thread;
    int i;
    char text[300];
    bool ok;
} many;

static void many_body(int i, bool stream, char *out, size_t n)
{
    snprintf(out, n, "{\"prompt\":\"prompt %d\",\"max_tokens\":200%s}", i % 8,
             stream ? ",\"stream\":true" : "");
}

static void *many_run(void *arg) /* no asserts in here: cmocka's belong to the main thread */
{
    many *m = arg;
    char body[128];
    many_body(m->i, true, body, sizeof body);
    answer a = post(g_port, COMP, body);
    m->ok = a.status == 200 && a.whole && strstr(a.body, "data: [DONE]\n\n");
    for (const char *p = a.body; m->ok && (p = strstr(p, "\"text\":\"")) != NULL;) {
        p += 8;
        size_t n = strcspn(p, "\"");
        if (strlen(m->text) + n < sizeof m->text) strncat(m->text, p, n);
    }
    free(a.body);
    return NULL;
}

static void sixty_four_streams(void **state)
{
    (void)state;
    static many m[N_MANY];
    memset(m, 0, sizeof m);
    char want[8][300];
    for (int i = 0; i < 8; i++) {
        char body[128];
        many_body(i, false, body, sizeof body);
        json_t *o = json_post(COMP, body);
        snprintf(want[i], sizeof want[i], "%s", str(choice0(o), "text"));
        assert_int_equal(strlen(want[i]), 200);
        json_decref(o);
    }
    assert_string_not_equal(want[0], want[1]);
    g_fake.step_us = 2000;
    g_fake.peak_running = 0;
    for (int i = 0; i < N_MANY; i++) {
        m[i].i = i;
        assert_int_equal(pthread_create(&m[i].thread, NULL, many_run, &m[i]), 0);
    }
    for (int i = 0; i < N_MANY; i++) pthread_join(m[i].thread, NULL);
    for (int i = 0; i < N_MANY; i++) {
        assert_true(m[i].ok);
        assert_string_equal(m[i].text, want[i % 8]);
    }
    assert_true(g_fake.peak_running > N_MANY / 2); /* they did run side by side */
    assert_int_equal(g_fake.n_running, 0);
}

/* ---- readers ------------------------------------------------------------------------------------------------- */

static void reader_that_stops(void **state)
{
    (void)state;
    g_fake.step_us = 100;
    g_fake.n_piece = 50000;
    client c = client_open(g_port);
    const char *body = "{\"prompt\":\"x\",\"max_tokens\":100000,\"stream\":true}";
    assert_true(client_post(&c, g_port, COMP, body, strlen(body)));
    while (g_fake.n_running < 1) usleep(200);
    assert_true(wait_none_running(20)); /* without one byte being read: cancelled, memory bounded */
    answer a = client_read(&c, false);
    assert_false(a.whole && strstr(a.body, "[DONE]"));
    free(a.body);
    client_close(&c);
    g_fake.n_piece = 0;
    json_decref(json_post(COMP, "{\"prompt\":\"x\"}"));
}

static void reader_that_is_slow(void **state)
{
    (void)state;
    g_fake.n_piece = 1000;
    g_fake.step_us = 500;
    client c = client_open(g_port);
    int small = 4096;
    setsockopt(c.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    const char *body = "{\"prompt\":\"x\",\"max_tokens\":120,\"stream\":true}";
    assert_true(client_post(&c, g_port, COMP, body, strlen(body)));
    answer a;
    assert_true(client_head(&c, &a));
    a.body = calloc(1, 1);
    while (client_chunk(&c, &a)) usleep(300);
    assert_true(a.whole);
    json_t *ev = events(&a);
    size_t n = 0;
    for (size_t i = 0; i < json_array_size(ev); i++) n += strlen(str(choice0(json_array_get(ev, i)), "text"));
    assert_int_equal(n, 120000);
    json_decref(ev);
    free(a.body);
    client_close(&c);
}

static void http_1_0(void **state)
{
    (void)state;
    client c = client_open(g_port);
    char rq[256];
    const char *body = "{\"prompt\":\"x\",\"max_tokens\":5,\"stream\":true}";
    int n = snprintf(rq, sizeof rq,
                     "POST " COMP " HTTP/1.0\r\nHost: localhost:%u\r\nContent-Length: %zu\r\n\r\n%s", g_port,
                     strlen(body), body);
    assert_true(client_send(&c, rq, (size_t)n));
    while (client_more(&c)) {
    }
    char *at = find(c.buf, c.n, "\r\n\r\n");
    assert_non_null(at);
    answer a = {.body = at + 4};
    json_t *ev = events(&a); /* plain to the end of the connection, without chunks */
    assert_int_equal(json_array_size(ev), 6);
    json_decref(ev);
    client_close(&c);
}

static void error_in_a_stream(void **state)
{
    (void)state;
    g_fake.fail_after = 3;
    answer a = post(g_port, COMP, "{\"prompt\":\"x\",\"max_tokens\":9,\"stream\":true}");
    assert_int_equal(a.status, 200);
    json_t *ev = events(&a);
    assert_int_equal(json_array_size(ev), 4);
    json_t *e = json_object_get(json_array_get(ev, 3), "error");
    assert_string_equal(str(e, "type"), "server_error");
    assert_null(strstr(a.body, "secret"));
    assert_null(strstr(a.body, "\"finish_reason\":\"stop\""));
    json_decref(ev);
    free(a.body);
    g_fake.fail_after = 0;
    /* refused before the first byte: an ordinary status, no stream */
    g_fake.submit_status = IMP_BUSY;
    a = post(g_port, COMP, "{\"prompt\":\"x\",\"stream\":true,\"n\":2}");
    assert_int_equal(a.status, 429);
    assert_string_equal(answer_header(&a, "Content-Type"), "application/json");
    free(a.body);
}

/* ---- embeddings ------------------------------------------------------------------------------------------------ */

static uint32_t b64(char c)
{
    static const char d[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    return (uint32_t)(strchr(d, c) - d);
}

static void embeddings(void **state)
{
    (void)state;
    json_t *o = json_post("/v1/embeddings", "{\"model\":\"emb\",\"input\":[\"a\",\"bc\"]}");
    json_t *data = json_object_get(o, "data");
    assert_int_equal(json_array_size(data), 2);
    json_t *v = json_object_get(json_array_get(data, 1), "embedding");
    assert_int_equal(json_array_size(v), FAKE_DIM);
    /* three tokens and four: the text's and one at each end */
    assert_int_equal(json_integer_value(json_object_get(json_object_get(o, "usage"), "prompt_tokens")), 7);

    json_t *p = json_post("/v1/embeddings", "{\"input\":\"bc\",\"encoding_format\":\"base64\"}");
    const char *s = str(json_array_get(json_object_get(p, "data"), 0), "embedding");
    assert_int_equal(strlen(s), (FAKE_DIM * 4 + 2) / 3 * 4);
    uint8_t raw[FAKE_DIM * 4 + 3];
    for (size_t i = 0, k = 0; s[i]; i += 4) {
        uint32_t w = b64(s[i]) << 18 | b64(s[i + 1]) << 12 | (s[i + 2] == '=' ? 0 : b64(s[i + 2]) << 6) |
                     (s[i + 3] == '=' ? 0 : b64(s[i + 3]));
        for (int j = 16; j >= 0; j -= 8)
            if (k < sizeof raw) raw[k++] = (uint8_t)(w >> j);
    }
    float f[FAKE_DIM];
    memcpy(f, raw, sizeof f);
    for (size_t i = 0; i < FAKE_DIM; i++) assert_true((float)json_number_value(json_array_get(v, i)) == f[i]);

    json_t *q = json_post("/api/embed", "{\"model\":\"emb\",\"input\":[\"a\",\"bc\"],\"keep_alive\":\"5m\"}");
    assert_true(json_equal(json_array_get(json_object_get(q, "embeddings"), 1), v));
    assert_string_equal(str(q, "model"), "emb");
    assert_int_equal(json_integer_value(json_object_get(q, "prompt_eval_count")), 7);
    json_t *r = json_post("/api/embeddings", "{\"model\":\"emb\",\"prompt\":\"bc\"}");
    assert_true(json_equal(json_object_get(r, "embedding"), v));
    json_t *t = json_post("/api/embeddings", "{\"model\":\"emb\",\"input\":[\"a\",\"bc\"]}");
    assert_true(json_equal(json_object_get(t, "embeddings"), json_object_get(q, "embeddings")));
    json_decref(t);
    t = json_post("/api/embeddings", "{\"model\":\"emb\"}");
    assert_int_equal(json_array_size(json_object_get(t, "embedding")), 0);
    json_decref(t);
    t = json_post("/api/embed", "{\"input\":[]}");
    assert_int_equal(json_array_size(json_object_get(t, "embeddings")), 0);
    json_decref(t);
    t = json_post("/v1/embeddings", "{\"input\":\"bc\",\"dimensions\":3}");
    assert_int_equal(g_fake.last.dimensions, 3);
    assert_int_equal(
        json_array_size(json_object_get(json_array_get(json_object_get(t, "data"), 0), "embedding")), 3);
    json_decref(t);
    json_decref(o);
    json_decref(p);
    json_decref(q);
    json_decref(r);
}

/* 64 tokens are the fake's context: Ollama cuts a longer text but keeps its last special token, OpenAI refuses. */
static void long_inputs(void **state)
{
    (void)state;
    char body[400], text[201];
    memset(text, 'x', 200);
    text[200] = 0;
    snprintf(body, sizeof body, "{\"input\":\"%s\"}", text);
    answer a = post(g_port, "/v1/embeddings", body);
    assert_int_equal(a.status, 413);
    free(a.body);
    json_t *o = json_post("/api/embed", body), *p;
    assert_int_equal(json_integer_value(json_object_get(o, "prompt_eval_count")), 64);
    snprintf(body, sizeof body, "{\"input\":\"%.62s\"}",
             text); /* what must be left: 62 letters between two specials */
    p = json_post("/api/embed", body);
    assert_true(json_equal(json_object_get(o, "embeddings"), json_object_get(p, "embeddings")));
    json_decref(o);
    json_decref(p);
    snprintf(body, sizeof body, "{\"input\":\"%s\",\"options\":{\"num_ctx\":10}}", text);
    o = json_post("/api/embed", body);
    assert_int_equal(json_integer_value(json_object_get(o, "prompt_eval_count")), 10);
    json_decref(o);
    snprintf(body, sizeof body, "{\"input\":\"%s\",\"truncate\":false}", text);
    a = post(g_port, "/api/embed", body);
    assert_int_equal(a.status, 413);
    assert_non_null(strstr(a.body, "202"));
    assert_non_null(strstr(a.body, "64"));
    free(a.body);
}

/* ---- the end of the server --------------------------------------------------------------------------------------- */

static void drain(void **state)
{
    (void)state;
    imp_http *h;
    imp_error err;
    imp_http_config c = {0};
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_OK);
    uint16_t p = imp_http_port(h);
    g_fake.step_us = 5000;
    client brief = client_open(p), endless = client_open(p), waiting = client_open(p), idle = client_open(p);
    const char *b1 = "{\"prompt\":\"x\",\"max_tokens\":40,\"stream\":true}";
    const char *b2 = "{\"prompt\":\"x\",\"max_tokens\":1000000,\"stream\":true}";
    const char *b3 = "{\"prompt\":\"x\",\"max_tokens\":1000000}";
    assert_true(client_post(&brief, p, COMP, b1, strlen(b1)) &&
                client_post(&endless, p, COMP, b2, strlen(b2)) &&
                client_post(&waiting, p, COMP, b3, strlen(b3)));
    while (g_fake.n_running < 3) usleep(500);
    double t = now_s();
    imp_http_stop(h, 1000);
    print_message("drain of 1 s took %.2f s\n", now_s() - t);
    assert_int_equal(g_fake.n_running, 0);
    answer a = client_read(&brief, false); /* finished in time */
    json_t *ev = events(&a);
    assert_int_equal(json_array_size(ev), 41);
    json_decref(ev);
    free(a.body);
    a = client_read(&endless, false); /* cancelled, and told so */
    assert_true(a.whole);
    ev = events(&a);
    json_t *last = json_array_get(ev, json_array_size(ev) - 1);
    assert_string_equal(str(json_object_get(last, "error"), "code"), "cancelled");
    json_decref(ev);
    free(a.body);
    a = client_read(&waiting, false);
    assert_int_equal(a.status, 503);
    free(a.body);
    client after = client_open(p);
    assert_int_equal(after.fd, -1);
    client_close(&brief);
    client_close(&endless);
    client_close(&waiting);
    client_close(&idle);
}

static void stop_with_a_reader_that_stopped(void **state)
{
    (void)state;
    imp_http *h;
    imp_error err;
    imp_http_config c = {.max_unsent_bytes = 1ull << 30};
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_OK);
    g_fake.n_piece = 60000;
    g_fake.step_us = 1000;
    client s = client_open(imp_http_port(h));
    const char *body = "{\"prompt\":\"x\",\"max_tokens\":300,\"stream\":true}";
    assert_true(client_post(&s, imp_http_port(h), COMP, body, strlen(body)));
    while (g_fake.n_running < 1) usleep(500);
    assert_true(wait_none_running(20)); /* all is made, and most of it waits to be sent */
    double t = now_s();
    imp_http_stop(h, 0); /* ends although nobody takes the bytes */
    assert_true(now_s() - t < 20);
    client_close(&s);
}

#define TEST(f) cmocka_unit_test_setup(f, calm)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(chat_stream),
        TEST(completion_choices),
        TEST(logprobs),
        TEST(tokens_are_not_held_back),
        TEST(client_leaves),
        TEST(sixty_four_streams),
        TEST(reader_that_stops),
        TEST(reader_that_is_slow),
        TEST(http_1_0),
        TEST(error_in_a_stream),
        TEST(embeddings),
        TEST(long_inputs),
        TEST(drain),
        TEST(stop_with_a_reader_that_stopped),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
