/* tests/api/server.c - the HTTP server over real sockets: who may ask, framing, limits, abuse; the next request works.
 */
#include "fake_engine.h"
#include "client.h"
#include "api/api.h"
#include "base/base.h"
#include "http/http.h"

#include <jansson.h>

static imp_engine *g_engine;
static imp_http *g_http;
static uint16_t g_port;

#define CHAT "/v1/chat/completions"
#define COMP "/v1/completions"

static char *hardware(void *user)
{
    return imp_sys_strdup(user);
}

static int setup(void **state)
{
    (void)state;
    imp_log_set_level(IMP_LOG_ERROR);
    imp_error err;
    static const char *const origin[] = {"https://app.example"};
    imp_http_config c = {.origins = origin,
                         .n_origin = 1,
                         .hardware = hardware,
                         .user = "{\"cores\":2}",
                         .max_connections = 128};
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

/* After every abuse: an ordinary request gets its ordinary answer. */
static void next_works(void)
{
    answer a = post(g_port, COMP, "{\"prompt\":\"hello\",\"max_tokens\":2}");
    assert_int_equal(a.status, 200);
    assert_true(a.whole);
    free(a.body);
}

static const struct {
    const char *method, *path, *body;
    int status;
} g_endpoint[] = {
    {"GET", "/", NULL, 200},
    {"GET", "/health", NULL, 200},
    {"GET", "/ready", NULL, 200},
    {"GET", "/metrics", NULL, 200},
    {"GET", "/v1/models", NULL, 200},
    {"GET", "/v1/models/fake", NULL, 200},
    {"GET", "/v1/models/none", NULL, 404},
    {"GET", "/api/version", NULL, 200},
    {"GET", "/api/tags", NULL, 200},
    {"GET", "/api/ps", NULL, 200},
    {"POST", "/api/show", "{\"model\":\"fake:latest\"}", 200},
    {"POST", "/api/show", "{\"name\":\"none\"}", 404},
    {"POST", "/api/show", "{}", 400},
    {"GET", "/api/hardware", NULL, 200},
    {"GET", "/api/receipts/last", NULL, 200},
    {"GET", "/api/receipts/17", NULL, 200},
    {"GET", "/api/receipts/999999", NULL, 404},
    {"GET", "/api/receipts/-1", NULL, 404},
    {"GET", "/api/receipts/99999999999999999999999", NULL, 404},
    {"GET", "/api/explain/last", NULL, 200},
    {"GET", "/api/explain/x", NULL, 404},
    {"POST", "/api/plan", "{\"model\":\"fake\",\"prompt\":100,\"gen\":10}", 200},
    {"POST", "/api/plan", "{\"model\":\"fake\",\"prompt\":100000}", 507},
    {"POST", "/api/plan", "{\"model\":\"fake\",\"ctx\":64}", 200},
    {"POST", "/api/plan", "{\"model\":\"fake\",\"ctx\":65}", 507},
    {"POST", "/api/plan", "{\"model\":\"fake\",\"ctx\":0}", 400},
    {"POST", "/api/plan", "{\"model\":\"none\"}", 404},
    {"POST", "/api/plan", "{\"prompt\":0}", 400},
    {"POST", "/api/plan", "[]", 400},
    {"POST", COMP, "{\"prompt\":\"x\",\"max_tokens\":2,\"impetus\":{\"receipt\":1}}", 400},
    {"POST", COMP, "{\"prompt\":\"x\",\"max_tokens\":2,\"impetus\":{\"require\":\"\"}}", 400},
    {"POST", COMP, "{\"prompt\":\"x\",\"max_tokens\":2,\"impetus\":{\"wish\":true}}", 400},
    {"POST", CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":2}", 200},
    {"POST", COMP, "{\"prompt\":\"x\",\"max_tokens\":2}", 200},
    {"POST", "/v1/embeddings", "{\"input\":\"x\"}", 200},
    {"POST", "/api/embed", "{\"input\":\"x\"}", 200},
    {"POST", "/api/embeddings", "{\"prompt\":\"x\"}", 200},
    {"GET", "/nothing/here", NULL, 404},
    {"GET", "/v1/models/", NULL, 404},
    {"GET", "/../../etc/passwd", NULL, 404},
};
#define N_ENDPOINT (sizeof g_endpoint / sizeof g_endpoint[0])

static void endpoints_answer(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ENDPOINT; i++) {
        answer a = ask(g_port, g_endpoint[i].method, g_endpoint[i].path, NULL, NULL, g_endpoint[i].body);
        if (a.status != g_endpoint[i].status)
            print_error("%s: %d %s\n", g_endpoint[i].path, a.status, a.body);
        assert_int_equal(a.status, g_endpoint[i].status);
        assert_true(a.whole && a.n_body > 0);
        assert_string_equal(answer_header(&a, "X-Content-Type-Options"), "nosniff");
        assert_null(strstr(a.body, "/secret"));
        if (strncmp(answer_header(&a, "Content-Type"), "application/json", 16) == 0) {
            json_t *o = json_loads(a.body, JSON_REJECT_DUPLICATES, NULL);
            assert_non_null(o);
            json_decref(o);
        }
        free(a.body);
    }
}

/* The answer carries what the engine says of that very request, streamed or not. */
static void receipts(void **state)
{
    (void)state;
    static const char *const body[] = {
        "{\"prompt\":\"x\",\"max_tokens\":2,\"impetus\":{\"receipt\":true}}",
        "{\"prompt\":\"x\",\"max_tokens\":2,\"stream\":true,\"impetus\":{\"receipt\":true}}",
        "{\"prompt\":\"x\",\"max_tokens\":2,\"n\":2,\"impetus\":{\"receipt\":true}}"};
    static const char *const need[] = {
        "\"impetus\":{\"receipt\":{\"id\":", "\"impetus\":{\"receipt\":{\"id\":",
        "\"impetus\":{\"receipt\":[{\"id\":"};
    for (size_t i = 0; i < IMP_COUNT(body); i++) {
        answer a = post(g_port, COMP, body[i]);
        assert_int_equal(a.status, 200);
        assert_non_null(strstr(a.body, need[i]));
        assert_null(strstr(a.body, "\"id\":0"));
        free(a.body);
    }
    answer a = post(g_port, COMP, "{\"prompt\":\"x\",\"max_tokens\":2}");
    assert_null(strstr(a.body, "impetus\":{"));
    free(a.body);
}

static void foreign_host_is_refused(void **state)
{
    (void)state;
    char own[64], bad_port[64];
    snprintf(bad_port, sizeof bad_port, "127.0.0.1:%u", g_port == 1 ? 2 : g_port - 1);
    const char *bad[] = {"127.0.0.1.evil.com",
                         "evil.com",
                         "localhost.evil.com",
                         "127.0.0.1",
                         "localhost",
                         bad_port,
                         "127.0.0.1:",
                         "127.0.0.1:80x",
                         "0.0.0.0",
                         "127.0.0.2",
                         "",
                         "[::1",
                         "::1",
                         "127.1",
                         "localhost.",
                         "user@127.0.0.1",
                         "0x7f000001"};
    for (size_t i = 0; i < N_ENDPOINT; i++) {
        for (size_t k = 0; k < sizeof bad / sizeof bad[0]; k++) {
            char host[128];
            bool plain =
                !strchr(bad[k], ':') && strcmp(bad[k], "127.0.0.1") != 0 && strcmp(bad[k], "localhost") != 0;
            snprintf(host, sizeof host, plain && bad[k][0] ? "%s:%u" : "%s", bad[k], g_port);
            answer a = ask(g_port, g_endpoint[i].method, g_endpoint[i].path, host, NULL, g_endpoint[i].body);
            if (a.status != 403) print_error("%s Host %s: %d\n", g_endpoint[i].path, host, a.status);
            assert_int_equal(a.status, 403);
            free(a.body);
        }
    }
    const char *good[] = {"127.0.0.1", "localhost", "LocalHost", "[::1]"};
    for (size_t k = 0; k < 4; k++) {
        snprintf(own, sizeof own, "%s:%u", good[k], g_port);
        answer a = ask(g_port, "GET", "/health", own, NULL, NULL);
        assert_int_equal(a.status, 200);
        free(a.body);
    }
    answer a = ask(g_port, "GET", "/health", NULL, "Host: evil.com\r\n", NULL); /* two of them */
    assert_true(a.status == 403 || a.status == 400);
    free(a.body);
    next_works();
}

static void foreign_origin_is_refused(void **state)
{
    (void)state;
    char same[64], other_port[80];
    snprintf(same, sizeof same, "Origin: http://127.0.0.1:%u\r\n", g_port);
    snprintf(other_port, sizeof other_port, "Origin: http://127.0.0.1:%u\r\n", g_port - 1);
    const char *bad[] = {
        "Origin: http://evil.com\r\n",    "Origin: null\r\n", "Origin: https://app.example.evil.com\r\n",
        "Origin: http://app.example\r\n", other_port,         "Origin: \r\n"};
    for (size_t i = 0; i < N_ENDPOINT; i++) {
        for (size_t k = 0; k < sizeof bad / sizeof bad[0]; k++) {
            answer a =
                ask(g_port, g_endpoint[i].method, g_endpoint[i].path, NULL, bad[k], g_endpoint[i].body);
            assert_int_equal(a.status, 403);
            assert_null(answer_header(&a, "Access-Control-Allow-Origin"));
            free(a.body);
        }
        answer a = ask(g_port, g_endpoint[i].method, g_endpoint[i].path, NULL, same, g_endpoint[i].body);
        assert_int_equal(a.status, g_endpoint[i].status);
        assert_null(answer_header(&a, "Access-Control-Allow-Origin"));
        free(a.body);
        a = ask(g_port, g_endpoint[i].method, g_endpoint[i].path, NULL, "Origin: https://app.example\r\n",
                g_endpoint[i].body);
        assert_int_equal(a.status, g_endpoint[i].status);
        assert_string_equal(answer_header(&a, "Access-Control-Allow-Origin"), "https://app.example");
        free(a.body);
    }
    answer a = ask(g_port, "OPTIONS", CHAT, NULL,
                   "Origin: https://app.example\r\nAccess-Control-Request-Method: POST\r\n", NULL);
    assert_int_equal(a.status, 204);
    assert_string_equal(answer_header(&a, "Access-Control-Allow-Methods"), "POST, OPTIONS");
    free(a.body);
    a = ask(g_port, "OPTIONS", CHAT, NULL,
            "Origin: http://evil.com\r\nAccess-Control-Request-Method: POST\r\n", NULL);
    assert_int_equal(a.status, 403);
    free(a.body);
}

static void methods(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ENDPOINT; i++) {
        static const char *const may_refuse[] = {"/v1/models/none", "/api/receipts/", "/api/explain/",
                                                 "/api/plan",       "/api/show",      COMP};
        bool known = g_endpoint[i].status == 200;
        for (size_t k = 0; k < IMP_COUNT(may_refuse); k++)
            known = known || strncmp(g_endpoint[i].path, may_refuse[k], strlen(may_refuse[k])) == 0;
        bool is_post = strcmp(g_endpoint[i].method, "POST") == 0;
        static const char *const method[] = {"GET",    "HEAD",  "POST",    "PUT",
                                             "DELETE", "PATCH", "OPTIONS", "BREW"};
        for (size_t k = 0; k < 8; k++) {
            bool get = k < 2, want = is_post ? k == 2 : get;
            answer a = ask(g_port, method[k], g_endpoint[i].path, NULL, NULL, k == 2 || k == 3 ? "{}" : NULL);
            if (!known)
                assert_int_equal(a.status, 404);
            else if (k == 6)
                assert_int_equal(a.status, 204);
            else if (!want)
                assert_int_equal(a.status, 405);
            if (known && (k == 6 || !want)) {
                const char *allow = answer_header(&a, "Allow");
                assert_non_null(allow);
                assert_non_null(strstr(allow, is_post ? "POST" : "GET"));
            }
            if (k == 1) assert_int_equal(a.n_body, 0);
            free(a.body);
        }
    }
    answer a = ask(g_port, "HEAD", "/v1/models", NULL, NULL, NULL), b = get(g_port, "/v1/models");
    assert_int_equal(strtoul(answer_header(&a, "Content-Length"), NULL, 10), b.n_body);
    free(a.body);
    free(b.body);
}

static void error_shapes(void **state)
{
    (void)state;
    answer a = post(g_port, "/api/embed", "{\"model\":\"none\",\"input\":\"x\"}");
    assert_int_equal(a.status, 404);
    json_t *o = json_loads(a.body, 0, NULL);
    assert_true(json_is_string(json_object_get(o, "error")));
    json_decref(o);
    free(a.body);
    a = post(g_port, COMP, "{\"model\":\"no\\\"ne\\u001f\",\"prompt\":\"x\"}");
    assert_int_equal(a.status, 404);
    o = json_loads(a.body, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(json_object_get(o, "error"), "code")),
                        "model_not_found");
    json_decref(o);
    free(a.body);
}

static void keep_alive_and_pipelining(void **state)
{
    (void)state;
    client c = client_open(g_port);
    for (int i = 0; i < 200; i++) {
        const char *body = "{\"prompt\":\"x\",\"max_tokens\":2}";
        assert_true(client_post(&c, g_port, COMP, body, strlen(body)));
        answer a = client_read(&c, false);
        assert_int_equal(a.status, 200);
        free(a.body);
    }
    /* 20 requests in one write: 20 answers in order */
    char all[8192];
    size_t n = 0;
    for (int i = 0; i < 20; i++) {
        char body[64];
        int k = snprintf(body, sizeof body, "{\"prompt\":\"x\",\"max_tokens\":%d}", i + 1);
        n += (size_t)snprintf(all + n, sizeof all - n,
                              "POST " COMP " HTTP/1.1\r\nHost: localhost:%u\r\nContent-Length: %d\r\n\r\n%s",
                              g_port, k, body);
    }
    assert_true(client_send(&c, all, n));
    for (int i = 0; i < 20; i++) {
        answer a = client_read(&c, false);
        assert_int_equal(a.status, 200);
        char want[64];
        snprintf(want, sizeof want, "\"completion_tokens\":%d,", i + 1);
        assert_non_null(strstr(a.body, want));
        free(a.body);
    }
    client_close(&c);
}

static void body_in_single_bytes(void **state)
{
    (void)state;
    /* 10 MB as chunks of one byte: a prompt that is too long for the model, so 413 with the engine's counts */
    size_t n = 10 << 20, at = 0, cap = n * 6 + 1024;
    char *wire = malloc(cap);
    at += (size_t)sprintf(
        wire, "POST " COMP " HTTP/1.1\r\nHost: localhost:%u\r\nTransfer-Encoding: chunked\r\n\r\n", g_port);
    const char *start = "{\"prompt\":\"", *end = "\"}";
    for (size_t i = 0; i < n; i++) {
        size_t tail = n - i;
        char c = i < strlen(start) ? start[i] : tail <= 2 ? end[2 - tail] : 'x';
        memcpy(wire + at, "1\r\n", 3);
        wire[at + 3] = c;
        memcpy(wire + at + 4, "\r\n", 2);
        at += 6;
    }
    at += (size_t)sprintf(wire + at, "0\r\n\r\n");
    client c = client_open(g_port);
    double t = now_s();
    assert_true(client_send(&c, wire, at));
    answer a = client_read(&c, false);
    assert_int_equal(a.status, 413);
    assert_non_null(strstr(a.body, "context_length_exceeded"));
    print_message("10 MB in 1-byte chunks: %.2f s\n", now_s() - t);
    free(a.body);
    /* the same connection serves on */
    assert_true(client_post(&c, g_port, COMP, "{\"prompt\":\"x\"}", 14));
    a = client_read(&c, false);
    assert_int_equal(a.status, 200);
    free(a.body);
    client_close(&c);
    free(wire);
}

static void too_large_bodies(void **state)
{
    (void)state;
    /* announced: 413 with both counts, although the whole body is sent first */
    size_t n = (32 << 20) + 1;
    char *body = malloc(n);
    memset(body, ' ', n);
    client c = client_open(g_port);
    assert_true(client_post(&c, g_port, COMP, body, n));
    answer a = client_read(&c, false);
    assert_int_equal(a.status, 413);
    assert_non_null(strstr(a.body, "33554433"));
    assert_non_null(strstr(a.body, "33554432"));
    free(a.body);
    client_close(&c);
    /* exactly the limit is read (and is no JSON object) */
    c = client_open(g_port);
    assert_true(client_post(&c, g_port, COMP, body, n - 1));
    a = client_read(&c, false);
    assert_int_equal(a.status, 400);
    free(a.body);
    client_close(&c);
    /* chunked, so the size shows only as it arrives */
    c = client_open(g_port);
    char head[256];
    int k = snprintf(
        head, sizeof head,
        "POST /api/embed HTTP/1.1\r\nHost: localhost:%u\r\nTransfer-Encoding: chunked\r\n\r\n%zx\r\n", g_port,
        n);
    assert_true(client_send(&c, head, (size_t)k) && client_send(&c, body, n) &&
                client_send(&c, "\r\n0\r\n\r\n", 7));
    a = client_read(&c, false);
    assert_int_equal(a.status, 413);
    json_t *o = json_loads(a.body, 0, NULL);
    assert_true(json_is_string(json_object_get(o, "error"))); /* in Ollama's shape */
    json_decref(o);
    free(a.body);
    client_close(&c);
    /* a client that asks first is told before it sends; so is one that announces terabytes */
    static const char *const extra[] = {"Content-Length: 40000000\r\nExpect: 100-continue\r\n",
                                        "Content-Length: 4000000000000\r\n",
                                        "Content-Length: 18446744073709551615\r\n"};
    for (int i = 0; i < 3; i++) {
        a = ask(g_port, "POST", COMP, NULL, extra[i], NULL);
        assert_true(a.status == 413 || a.status == 400);
        free(a.body);
    }
    free(body);
    next_works();
}

static void huge_header(void **state)
{
    (void)state;
    /* up to 1 GB of header: the server must cut it off early, having read little */
    client c = client_open(g_port);
    char line[4096];
    int k = snprintf(line, sizeof line, "GET /health HTTP/1.1\r\nHost: localhost:%u\r\nX-Big: ", g_port);
    assert_true(client_send(&c, line, (size_t)k));
    memset(line, 'a', sizeof line);
    size_t sent = 0;
    while (sent < (1u << 30) && client_send(&c, line, sizeof line)) sent += sizeof line;
    assert_true(sent < 64u << 20);
    client_close(&c);
    /* many small ones */
    c = client_open(g_port);
    k = snprintf(line, sizeof line, "GET /health HTTP/1.1\r\nHost: localhost:%u\r\n", g_port);
    assert_true(client_send(&c, line, (size_t)k));
    sent = 0;
    while (sent < (1u << 30) && client_send(&c, "X-Many: 1\r\n", 11)) sent += 11;
    assert_true(sent < 64u << 20);
    client_close(&c);
    /* 13 KiB is refused with a status, 10 KiB is fine */
    for (int size = 10; size <= 13; size += 3) {
        char *h = malloc(20000);
        size_t n = (size_t)sprintf(h, "X-Big: ");
        memset(h + n, 'a', (size_t)size * 1024);
        strcpy(h + n + size * 1024, "\r\n");
        c = client_open(g_port);
        k = snprintf(line, sizeof line, "GET /health HTTP/1.1\r\nHost: localhost:%u\r\n", g_port);
        client_send(&c, line, (size_t)k);
        client_send(&c, h, strlen(h));
        client_send(&c, "\r\n", 2);
        answer a = client_read(&c, false);
        assert_int_equal(a.status, size == 10 ? 200 : 431);
        free(a.body);
        client_close(&c);
        free(h);
    }
    next_works();
}

static void garbage_on_the_wire(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "\r\n\r\n\r\n",
        "GET /v1/mod",
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
        "GET\r\n\r\n",
        "\0\0\0\0",
        "GET / HTTP/9.9\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: "
        "chunked\r\n\r\nffffffffffffffffff\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        client c = client_open(g_port);
        client_send(&c, bad[i], strlen(bad[i]) ? strlen(bad[i]) : 4);
        shutdown(c.fd, SHUT_WR);
        double t = now_s();
        answer a = client_read(&c, false);
        assert_true(now_s() - t < 5); /* a client that has left is noticed, not waited for */
        assert_true(a.status == 0 || a.status >= 400);
        free(a.body);
        client_close(&c);
    }
    rng r = {7};
    for (int i = 0; i < 300; i++) {
        char junk[512];
        size_t n = 1 + rng_below(&r, sizeof junk);
        for (size_t k = 0; k < n; k++) junk[k] = (char)rng_u64(&r);
        if (i & 1) memcpy(junk, "POST /v1/chat/completions HTTP/1.1\r\n", n < 36 ? n : 36);
        client c = client_open(g_port);
        client_send(&c, junk, n);
        client_close(&c);
    }
    answer a = ask(g_port, "POST", COMP, NULL, "Transfer-Encoding: chunked\r\n",
                   "5\r\nabcde\r\n0\r\n\r\n"); /* and a length */
    assert_true(a.status == 400);
    free(a.body);
    a = ask(g_port, "POST", COMP, NULL, "Content-Encoding: gzip\r\n", "{\"prompt\":\"x\"}");
    assert_int_equal(a.status, 415);
    free(a.body);
    next_works();
}

static void connections_to_the_limit(void **state)
{
    (void)state;
    enum { N = 200 };
    client c[N];
    for (int i = 0; i < N; i++) c[i] = client_open(g_port); /* more than the server takes; the rest wait */
    for (int i = 0; i < N; i++) client_close(&c[i]);
    next_works();
}

static void metrics_count(void **state)
{
    (void)state;
    next_works();
    answer a = get(g_port, "/metrics");
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(answer_header(&a, "Content-Type"), "version=0.0.4"));
    assert_non_null(strstr(a.body, "impetus_http_requests_total{path=\"/v1/completions\",code=\"2xx\"} "));
    assert_non_null(
        strstr(a.body, "impetus_http_request_seconds_bucket{path=\"/v1/completions\",le=\"+Inf\"} "));
    assert_non_null(strstr(a.body, "impetus_time_to_first_token_seconds_count "));
    assert_null(strstr(a.body, "impetus_http_refused_host_total 0\n"));
    /* every line is a comment or "name value" with a number */
    for (char *p = a.body; *p; p = strchr(p, '\n') + 1) {
        assert_non_null(strchr(p, '\n'));
        if (*p == '#') continue;
        assert_true(strncmp(p, "impetus_", 8) == 0 || strncmp(p, "vllm:", 5) == 0);
        char *v = p + strcspn(p, "\n");
        while (v > p && v[-1] != ' ') v--;
        char *e;
        (void)strtod(v, &e);
        assert_true(e > v && *e == '\n');
    }
    free(a.body);
}

/* ---- starting: keys, addresses, ports ------------------------------------------------------------------ */

static void api_key(void **state)
{
    (void)state;
    imp_http *h;
    imp_error err;
    imp_http_config c = {.api_key = "correct-key-1", .hardware = hardware, .user = "{}"};
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_OK);
    uint16_t p = imp_http_port(h);
    static const char *const bad[] = {NULL,
                                      "Authorization: Bearer \r\n",
                                      "Authorization: Bearer correct-key-2\r\n",
                                      "Authorization: Bearer correct-key-11\r\n",
                                      "Authorization: Bearer correct-key-\r\n",
                                      "Authorization: correct-key-1\r\n",
                                      "Authorization: Basic correct-key-1\r\n",
                                      "x-api-key: wrong\r\n",
                                      "x-api-key: \r\n"};
    static const char *const good[] = {"Authorization: Bearer correct-key-1\r\n",
                                       "authorization: bearer correct-key-1\r\n",
                                       "x-api-key: correct-key-1\r\n"};
    for (size_t i = 0; i < N_ENDPOINT; i++) {
        const char *path = g_endpoint[i].path;
        bool open = strcmp(path, "/") == 0 || strcmp(path, "/health") == 0 || strcmp(path, "/ready") == 0;
        for (size_t k = 0; k < sizeof bad / sizeof bad[0]; k++) {
            answer a = ask(p, g_endpoint[i].method, path, NULL, bad[k], g_endpoint[i].body);
            assert_int_equal(a.status, open ? 200 : 401);
            if (!open) assert_string_equal(answer_header(&a, "WWW-Authenticate"), "Bearer");
            free(a.body);
        }
        for (size_t k = 0; k < 3; k++) {
            answer a = ask(p, g_endpoint[i].method, path, NULL, good[k], g_endpoint[i].body);
            assert_int_equal(a.status, g_endpoint[i].status);
            free(a.body);
        }
    }
    imp_http_stop(h, 0);
}

static void start_refusals(void **state)
{
    (void)state;
    imp_http *h;
    imp_error err;
    imp_http_config c = {.port = g_port};
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_IO);
    assert_null(h);
    assert_non_null(strstr(err.text, "in use"));
    assert_non_null(strstr(err.text, "--port"));
    c = (imp_http_config){.host = "0.0.0.0"};
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_INVALID);
    assert_non_null(strstr(err.text, "API key"));
    c = (imp_http_config){.host = "no such host"};
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_INVALID);
    c = (imp_http_config){.host = "192.0.2.1", .api_key = "long-enough"};
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_IO);
    c = (imp_http_config){.api_key = "short"};
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_INVALID);
    static const char *const origins[] = {"*", "https://", "example.com", "https://a/b", "https://*.a"};
    for (size_t i = 0; i < 5; i++) {
        c = (imp_http_config){.origins = &origins[i], .n_origin = 1};
        assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_INVALID);
    }
}

static void wildcard_bind(void **state)
{
    (void)state;
    imp_http *h;
    imp_error err;
    static const char *const name[] = {"My-Box.lan"};
    imp_http_config c = {.host = "0.0.0.0", .api_key = "long-enough", .hosts = name, .n_host = 1};
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_OK);
    uint16_t p = imp_http_port(h);
    static const struct {
        const char *host;
        int status;
    } t[] = {{"127.0.0.1", 200},          {"localhost", 200}, {"my-box.lan", 200}, {"evil.com", 403},
             {"127.0.0.1.evil.com", 403}, {"0.0.0.0", 403},   {"192.0.2.1", 403}};
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
        char host[80];
        snprintf(host, sizeof host, "%s:%u", t[i].host, p);
        answer a = ask(p, "GET", "/v1/models", host, "x-api-key: long-enough\r\n", NULL);
        assert_int_equal(a.status, t[i].status);
        free(a.body);
    }
    imp_http_stop(h, 0);
}

/* Every call of start that can fail does so once: an error, no leak, no crash. */
static void start_under_failures(void **state)
{
    (void)state;
    uint64_t k;
    for (k = 1; k < 200; k++) {
        imp_http *h = NULL;
        imp_error err = {0};
        imp_http_config c = {.api_key = "long-enough"};
        imp_sys_fail_at(k);
        imp_status st = imp_http_start(g_engine, &c, &h, &err);
        imp_sys_fail_at(0);
        if (st == IMP_OK) {
            imp_http_stop(h, 0);
            break;
        }
        assert_null(h);
        assert_true(err.text[0] != 0);
    }
    assert_in_range(k, 5, 199);
}

/* Every allocation of a request fails once: an error answer or a closed connection, and the next request works. */
static void requests_under_failures(void **state)
{
    (void)state;
    static const char *const rq[][2] = {
        {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"x\"}]}],\"max_"
               "tokens\":3,"
               "\"stop\":[\"q\"],\"logit_bias\":{\"1\":1}}"},
        {CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":3,\"stream\":true,"
               "\"logprobs\":true}"},
        {COMP, "{\"prompt\":[\"x\",\"y\"],\"n\":2,\"max_tokens\":3,\"echo\":true,\"stream\":true,"
               "\"stream_options\":{\"include_usage\":true}}"},
        {COMP, "{\"prompt\":[[1,2]],\"max_tokens\":3,\"logprobs\":2}"},
        {"/v1/embeddings", "{\"input\":[\"a\",\"b\"],\"encoding_format\":\"base64\"}"},
        {"/api/embed", "{\"input\":[\"a\",\"b\"]}"},
    };
    for (size_t i = 0; i < sizeof rq / sizeof rq[0]; i++) {
        uint64_t k;
        bool refused = false;
        for (k = 1; k < 500; k++) {
            uint64_t before = imp_sys_n_call();
            imp_sys_fail_at(k);
            answer a = post(g_port, rq[i][0], rq[i][1]);
            imp_sys_fail_at(0);
            bool all = imp_sys_n_call() - before < k; /* it ended before the kth call: nothing failed */
            if (a.status && a.status != 200 && a.status != 503) print_error("%d: %s\n", (int)k, a.body);
            if (a.status != 0 && a.status != 200) assert_int_equal(a.status, 503);
            refused |= a.status == 503;
            if (a.status == 200 && !all) /* the answer may have lost nothing, or says that it did */
                assert_true(!a.whole || strstr(a.body, "\"usage\"") || strstr(a.body, "error") ||
                            strstr(a.body, "[DONE]") || strstr(a.body, "embeddings"));
            free(a.body);
            if (all) break;
        }
        assert_in_range(k, 10, 499);
        assert_true(refused);
        next_works();
    }
    double until = now_s() + 5;
    while (g_fake.n_running > 0 && now_s() < until) usleep(1000);
    assert_int_equal(g_fake.n_running, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(endpoints_answer),
        cmocka_unit_test(receipts),
        cmocka_unit_test(foreign_host_is_refused),
        cmocka_unit_test(foreign_origin_is_refused),
        cmocka_unit_test(methods),
        cmocka_unit_test(error_shapes),
        cmocka_unit_test(keep_alive_and_pipelining),
        cmocka_unit_test(body_in_single_bytes),
        cmocka_unit_test(too_large_bodies),
        cmocka_unit_test(huge_header),
        cmocka_unit_test(garbage_on_the_wire),
        cmocka_unit_test(connections_to_the_limit),
        cmocka_unit_test(metrics_count),
        cmocka_unit_test(api_key),
        cmocka_unit_test(start_refusals),
        cmocka_unit_test(wildcard_bind),
        cmocka_unit_test(start_under_failures),
        cmocka_unit_test(requests_under_failures),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
