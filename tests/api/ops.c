/* tests/api/ops.c - running the server: API keys and whose requests they make, key files that change, the access log, the
 * metrics that routers read. */
#include "fake_engine.h"
#include "client.h"
#include "base/base.h"
#include "http/http.h"

#include <jansson.h>
#include <sys/stat.h>

#define COMP "/v1/completions"
#define BODY "{\"prompt\":\"hello\",\"max_tokens\":3}"

static imp_engine *g_engine;
static char g_dir[64], g_keys[96], g_log[96], g_moved[104];

static int setup(void **state)
{
    (void)state;
    imp_log_set_level(IMP_LOG_ERROR);
    imp_error err;
    strcpy(g_dir, "/tmp/impetus-ops-XXXXXX");
    if (!mkdtemp(g_dir)) return -1;
    snprintf(g_keys, sizeof g_keys, "%s/keys", g_dir);
    snprintf(g_log, sizeof g_log, "%s/access.log", g_dir);
    snprintf(g_moved, sizeof g_moved, "%s.1", g_log);
    return imp_engine_new(NULL, &g_engine, &err) == IMP_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    imp_engine_free(g_engine);
    imp_sys_remove_tree(g_dir);
    return 0;
}

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fputs(text, f) < 0, 0);
    fclose(f);
    chmod(path, 0600);
}

static char *read_file(const char *path)
{
    imp_sys_file f;
    imp_error err;
    assert_int_equal(imp_sys_file_open(path, false, &f, &err), IMP_OK);
    char *text = calloc(1, (size_t)f.n + 1);
    if (f.n) memcpy(text, f.data, (size_t)f.n);
    imp_sys_file_close(&f);
    return text;
}

/* The status for a key; 0: no key is sent. */
static int status_of(uint16_t port, const char *key)
{
    char header[700];
    snprintf(header, sizeof header, "Authorization: Bearer %s\r\n", key ? key : "");
    answer a = ask(port, "POST", COMP, NULL, key ? header : NULL, BODY);
    free(a.body);
    return a.status;
}

static imp_request last_request(void)
{
    pthread_mutex_lock(&g_fake.mu);
    imp_request r = g_fake.last;
    pthread_mutex_unlock(&g_fake.mu);
    return r;
}

/* ---- keys ------------------------------------------------------------------------------------------------ */

static const char g_file[] = "# who may ask\n"
                             "\n"
                             "alice-key-1 alice\n"
                             "alice-key-2\talice   # once more\r\n";

static void broken_key_files(void **state)
{
    (void)state;
    static const struct {
        const char *text, *say;
    } bad[] = {
        {"", "holds no key"},
        {"# nothing\n\n   \n", "holds no key"},
        {"short\n", "line 1"},
        {"good-key-1\nwith\x01"
         "control\n",
         "line 2"},
        {"good-key-1\n\n# x\ngood-key-1 other\n", "line 4"},
        {"good-key-1 name other\n", "'other' is not understood"},
        {"good-key-1 n\xc3\xa4me\n", "is not understood"},
        {"good-key-1 name priority=9999\n", "no number from -1000 to 1000"},
        {"good-key-1 name priority=\n", "priority="},
        {"good-key-1 name priority=1x\n", "priority=1x"},
        {"good-key-1 name cache=\n", "'cache='"},
        {"good-key-1 name prio=3\n", "'prio=3'"},
        {g_file, "'#' is not understood"},
    };
    imp_http *h;
    imp_error err;
    imp_http_config c = {.key_file = g_keys};
    for (size_t i = 0; i < IMP_COUNT(bad); i++) {
        write_file(g_keys, bad[i].text);
        assert_int_equal(imp_http_check(&c, &err), IMP_INVALID);
        assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_INVALID);
        if (!strstr(err.text, bad[i].say)) print_error("%zu: %s\n", i, err.text);
        assert_non_null(strstr(err.text, bad[i].say));
        assert_null(strstr(err.text, "good-key-1")); /* no message holds a key */
    }
    char *big = malloc((1 << 20) + 2);
    memset(big, '\n', (1 << 20) + 1);
    big[(1 << 20) + 1] = 0;
    write_file(g_keys, big);
    free(big);
    assert_int_equal(imp_http_check(&c, &err), IMP_TOO_LARGE);
    unlink(g_keys);
    assert_int_equal(imp_http_check(&c, &err), IMP_NOT_FOUND);
    c.key_file = g_dir;
    assert_int_equal(imp_http_check(&c, &err), IMP_IO);
}

/* A key is a client of the scheduler; keys of one name are one; prompts are shared within a name or a group. */
static void keys_are_clients(void **state)
{
    (void)state;
    imp_http *h;
    imp_error err;
    write_file(g_keys, "# who may ask\n\nalice-key-1 alice\n alice-key-2\talice \r\nbob-key-1 bob priority=5 "
                       "cache=team\ncarol-key-1 cache=team carol\nnameless-1\nnameless-2 priority=-3");
    imp_http_config c = {.key_file = g_keys};
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_OK);
    uint16_t p = imp_http_port(h);
    static const char *const key[] = {"alice-key-1", "alice-key-2", "bob-key-1",
                                      "carol-key-1", "nameless-1",  "nameless-2"};
    imp_request r[6];
    for (int i = 0; i < 6; i++) {
        assert_int_equal(status_of(p, key[i]), 200);
        r[i] = last_request();
        assert_true(r[i].client != 0 && r[i].cache_scope != 0);
    }
    for (int i = 0; i < 6; i++)
        for (int k = i + 1; k < 6; k++) {
            assert_int_equal(r[i].client == r[k].client, k == 1); /* alice's two */
            assert_int_equal(r[i].cache_scope == r[k].cache_scope, k == 1 || (i == 2 && k == 3));
        }
    assert_int_equal(r[0].priority, 0);
    assert_int_equal(r[2].priority, 5);
    assert_int_equal(r[5].priority, -3);
    /* a request may ask for less than its key has, not for more */
    static const struct {
        const char *key;
        int ask, get;
    } t[] = {{"alice-key-1", -10, 0},
             {"alice-key-1", 7, 7},
             {"bob-key-1", 2, 7},
             {"nameless-2", -9, -3},
             {"nameless-2", 3, 0}};
    for (size_t i = 0; i < IMP_COUNT(t); i++) {
        char header[100], body[100];
        snprintf(header, sizeof header, "x-api-key: %s\r\n", t[i].key);
        snprintf(body, sizeof body, "{\"prompt\":\"x\",\"max_tokens\":1,\"priority\":%d}", t[i].ask);
        answer a = ask(p, "POST", COMP, NULL, header, body);
        assert_int_equal(a.status, 200);
        free(a.body);
        assert_int_equal(last_request().priority, t[i].get);
    }
    /* embeddings, too */
    answer a = ask(p, "POST", "/v1/embeddings", NULL, "x-api-key: bob-key-1\r\n", "{\"input\":\"x\"}");
    assert_int_equal(a.status, 200);
    free(a.body);
    assert_true(last_request().client == r[2].client && last_request().priority == 5);
    static const char *const wrong[] = {"alice-key-3", "alice-key-",    "alice-key-11",     "alice",
                                        "team",        "# who may ask", "alice-key-1 alice"};
    for (size_t i = 0; i < IMP_COUNT(wrong); i++) assert_int_equal(status_of(p, wrong[i]), 401);
    assert_int_equal(status_of(p, NULL), 401);
    imp_http_stop(h, 0);
    /* without keys nobody is anybody, and a request's priority is its own */
    c = (imp_http_config){0};
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_OK);
    a = post(imp_http_port(h), COMP, "{\"prompt\":\"x\",\"max_tokens\":1,\"priority\":-10}");
    assert_int_equal(a.status, 200);
    free(a.body);
    imp_request q = last_request();
    assert_true(q.client == 0 && q.cache_scope == 0 && q.priority == -10);
    imp_http_stop(h, 0);
}

static bool becomes(uint16_t port, const char *key, int status)
{
    double until = now_s() + 10;
    while (now_s() < until) {
        if (status_of(port, key) == status) return true;
        usleep(50000);
    }
    return false;
}

static void keys_change_while_it_runs(void **state)
{
    (void)state;
    imp_http *h;
    imp_error err;
    imp_http_config c = {.key_file = g_keys};
    imp_log_set_level(IMP_LOG_ERROR);
    write_file(g_keys, "first-key-1 one\n");
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_OK);
    uint16_t p = imp_http_port(h);
    assert_int_equal(status_of(p, "first-key-1"), 200);
    uint64_t one = last_request().client;
    /* told to look: at once */
    write_file(g_keys, "second-key-1 one\nother-key-1 two\n");
    imp_http_reload(h);
    assert_int_equal(status_of(p, "first-key-1"), 401);
    assert_int_equal(status_of(p, "other-key-1"), 200);
    assert_int_equal(status_of(p, "second-key-1"), 200);
    assert_true(last_request().client == one); /* the same client with a new key */
    /* broken: all stays */
    write_file(g_keys, "second-key-1 one\nbad\n");
    imp_http_reload(h);
    assert_int_equal(status_of(p, "second-key-1"), 200);
    assert_int_equal(status_of(p, "other-key-1"), 200);
    unlink(g_keys);
    imp_http_reload(h);
    assert_int_equal(status_of(p, "second-key-1"), 200);
    /* not told: within a few seconds, and a stream goes on meanwhile */
    write_file(g_keys, "third-key-1 one\n");
    assert_true(becomes(p, "third-key-1", 200));
    assert_int_equal(status_of(p, "second-key-1"), 401);
    write_file(g_keys, "");
    usleep(2500000);
    assert_int_equal(status_of(p, "third-key-1"), 200);
    imp_http_stop(h, 0);
}

/* ---- access log ------------------------------------------------------------------------------------------- */

static json_t *log_line(const char *text, size_t i)
{
    for (; i > 0 && text; i--) text = strchr(text, '\n') ? strchr(text, '\n') + 1 : NULL;
    if (!text || !*text) return NULL;
    json_t *o = json_loadb(text, strcspn(text, "\n"), JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(o);
    return o;
}

static const char *text_at(json_t *o, const char *name)
{
    json_t *v = json_object_get(o, name);
    assert_non_null(v);
    return json_is_null(v) ? NULL : json_string_value(v);
}

static json_int_t int_at(json_t *o, const char *name)
{
    assert_true(json_is_integer(json_object_get(o, name)));
    return json_integer_value(json_object_get(o, name));
}

static void access_log(void **state)
{
    (void)state;
    imp_http *h;
    imp_error err;
    write_file(g_keys, "secret-key-1 alice\n");
    imp_http_config c = {.key_file = g_keys, .access_log = "/nowhere/access.log"};
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_IO);
    c.access_log = g_log;
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_OK);
    uint16_t p = imp_http_port(h);
    static const char auth[] = "Authorization: Bearer secret-key-1\r\n";
    answer a = ask(p, "POST", "/v1/completions?api_key=hidden", NULL, auth,
                   "{\"prompt\":\"marmalade\",\"max_tokens\":5}");
    assert_int_equal(a.status, 200);
    char id[40];
    snprintf(id, sizeof id, "%.39s", answer_header(&a, "X-Request-Id"));
    size_t n_out = a.n_body;
    free(a.body);
    a = ask(p, "POST", COMP, NULL, auth, "{\"prompt\":\"marmalade\",\"max_tokens\":4,\"stream\":true}");
    assert_int_equal(a.status, 200);
    free(a.body);
    a = ask(p, "POST", "/v1/embeddings", NULL, auth, "{\"input\":[\"marmalade\",\"x\"]}");
    assert_int_equal(a.status, 200);
    free(a.body);
    a = ask(p, "POST", COMP, NULL, "Authorization: Bearer marmalade-key\r\n", BODY);
    assert_int_equal(a.status, 401);
    free(a.body);
    a = ask(p, "GET", "/v1/models/%22%0a%ff<x>", NULL, auth, NULL);
    assert_int_equal(a.status, 404);
    free(a.body);
    /* moved away and opened anew */
    double until = now_s() + 5;
    char *text = read_file(g_log);
    while (now_s() < until && !strstr(text, "/v1/models/")) {
        usleep(10000);
        free(text);
        text = read_file(g_log);
    }
    assert_int_equal(rename(g_log, g_moved), 0);
    imp_http_reload(h);
    a = get(p, "/health");
    assert_int_equal(a.status, 200);
    free(a.body);
    imp_http_stop(h, 0); /* writes what is left */
    json_t *o = log_line(text, 0);
    assert_string_equal(text_at(o, "id"), id);
    assert_string_equal(text_at(o, "client"), "alice");
    assert_string_equal(text_at(o, "remote"), "127.0.0.1");
    assert_string_equal(text_at(o, "method"), "POST");
    assert_string_equal(text_at(o, "path"), COMP);
    assert_string_equal(text_at(o, "model"), "fake");
    assert_string_equal(text_at(o, "device"), "fake0");
    assert_string_equal(text_at(o, "finish"), "length");
    assert_int_equal(int_at(o, "status"), 200);
    assert_int_equal(int_at(o, "prompt_tokens"), 10);
    assert_int_equal(int_at(o, "completion_tokens"), 5);
    assert_int_equal(int_at(o, "bytes_out"), n_out);
    assert_true(int_at(o, "bytes_in") > 20 && int_at(o, "receipt") > 0);
    double ttft = json_real_value(json_object_get(o, "ttft_ms")),
           all = json_real_value(json_object_get(o, "total_ms"));
    assert_true(ttft > 0 && ttft <= all && all < 60000);
    const char *when = text_at(o, "time");
    assert_true(strlen(when) == 24 && when[10] == 'T' && when[23] == 'Z');
    json_decref(o);
    o = log_line(text, 1);
    assert_int_equal(int_at(o, "completion_tokens"), 4);
    json_decref(o);
    o = log_line(text, 2);
    assert_string_equal(text_at(o, "model"), "emb");
    assert_true(json_is_null(json_object_get(o, "ttft_ms")));
    json_decref(o);
    o = log_line(text, 3);
    assert_int_equal(int_at(o, "status"), 401);
    assert_null(text_at(o, "client"));
    assert_null(text_at(o, "model"));
    json_decref(o);
    o = log_line(text, 4);
    assert_non_null(strstr(text_at(o, "path"), "<x>"));
    json_decref(o);
    assert_null(log_line(text, 5));
    assert_null(strstr(text, "marmalade")); /* neither prompts nor keys nor queries */
    assert_null(strstr(text, "secret-key"));
    assert_null(strstr(text, "hidden"));
    free(text);
    text = read_file(g_log);
    o = log_line(text, 0);
    assert_string_equal(text_at(o, "path"), "/health");
    json_decref(o);
    assert_null(log_line(text, 1));
    free(text);
    /* a disk that is full loses lines, nothing else */
    c = (imp_http_config){.access_log = "/dev/full"};
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_OK);
    for (int i = 0; i < 3; i++) assert_int_equal(status_of(imp_http_port(h), NULL), 200);
    imp_http_stop(h, 0);
}

/* ---- metrics ---------------------------------------------------------------------------------------------- */

/* The value of a sample; the labels must be these. */
static double sample(const char *text, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = text; p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL)
        if (strncmp(p, name, n) == 0 && p[n] == ' ') return strtod(p + n, NULL);
    print_error("no %s\n", name);
    fail();
    return -1;
}

#define LABEL "model_name=\"fake,emb\""

static void metrics_of_routers(void **state)
{
    (void)state;
    imp_http *h;
    imp_error err;
    imp_http_config c = {0};
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_OK);
    uint16_t p = imp_http_port(h);
    for (int i = 0; i < 3; i++) {
        answer a = post(p, COMP, "{\"prompt\":\"hello\",\"max_tokens\":5}");
        assert_int_equal(a.status, 200);
        free(a.body);
    }
    answer a = get(p, "/metrics");
    assert_int_equal(a.status, 200);
    static const char *const gauge[] = {
        "num_requests_running",  "num_requests_waiting",       "kv_cache_usage_perc",
        "gpu_cache_usage_perc",  "prefix_cache_queries_total", "prefix_cache_hits_total",
        "num_preemptions_total", "prompt_tokens_total",        "generation_tokens_total"};
    char name[200];
    for (size_t i = 0; i < IMP_COUNT(gauge); i++) {
        snprintf(name, sizeof name, "vllm:%s{" LABEL "}", gauge[i]);
        assert_true(sample(a.body, name) >= 0);
    }
    static const struct {
        const char *name;
        int count;
    } hist[] = {{"time_to_first_token_seconds", 3},
                {"inter_token_latency_seconds", 12},
                {"time_per_output_token_seconds", 12},
                {"request_time_per_output_token_seconds", 3},
                {"e2e_request_latency_seconds", 3}};
    for (size_t i = 0; i < IMP_COUNT(hist); i++) {
        snprintf(name, sizeof name, "vllm:%s_count{" LABEL "}", hist[i].name);
        assert_true(sample(a.body, name) == hist[i].count);
        snprintf(name, sizeof name, "vllm:%s_bucket{" LABEL ",le=\"+Inf\"}", hist[i].name);
        assert_true(sample(a.body, name) == hist[i].count);
    }
    assert_true(sample(a.body, "vllm:request_success_total{" LABEL ",finished_reason=\"length\"}") == 3);
    free(a.body);
    imp_http_stop(h, 0);
}

/* ---- limits and the end ------------------------------------------------------------------------------------ */

static void odd_requests(void **state)
{
    (void)state;
    imp_http *h;
    imp_error err;
    imp_http_config c = {0};
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_OK);
    uint16_t p = imp_http_port(h);
    static const struct {
        const char *path;
        int status;
    } t[] = {{"/health", 200},
             {"/%68ealth", 200},
             {"/health%00x", 404},
             {"/health%00", 404},
             {"/%00", 404},
             {"/health%0", 404},
             {"/health%", 404},
             {"/health%zz", 404},
             {"/health?x=%00", 200},
             {"/v1/models/fake", 200},
             {"/v1/models/f%61ke", 200},
             {"/v1/models/fake%00/../emb", 404}};
    for (size_t i = 0; i < IMP_COUNT(t); i++) {
        answer a = get(p, t[i].path);
        if (a.status != t[i].status) print_error("%s: %d\n", t[i].path, a.status);
        assert_int_equal(a.status, t[i].status);
        free(a.body);
    }
    static const char *const coding[] = {"gzip",     "gzip, chunked",    "chunked, gzip",
                                         "identity", "chunked, chunked", ""};
    for (size_t i = 0; i < IMP_COUNT(coding); i++) {
        char header[100];
        snprintf(header, sizeof header, "Transfer-Encoding: %s\r\n", coding[i]);
        double t0 = now_s();
        answer a = ask(p, "POST", COMP, NULL, header, NULL);
        assert_true(now_s() - t0 < 5);
        if (a.status < 400) print_error("%s: %d\n", coding[i], a.status);
        assert_true(a.status == 501 || a.status == 400);
        free(a.body);
    }
    imp_http_stop(h, 0);
}

/* Who sends a byte now and then and never comes to an end is cut when the time for a header is over; others are served. */
static void dribbled_headers_are_cut(void **state)
{
    (void)state;
    enum { N = 40 };
    imp_http *h;
    imp_error err;
    imp_http_config c = {.idle_s = 1};
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_OK);
    uint16_t p = imp_http_port(h);
    client slow[N];
    for (int i = 0; i < N; i++) {
        slow[i] = client_open(p);
        client_send(&slow[i], "GET /health HT", 14);
    }
    double t0 = now_s();
    int left = N;
    while (left > 0 && now_s() - t0 < 8) {
        answer a = get(p, "/health");
        assert_int_equal(a.status, 200);
        free(a.body);
        for (int i = 0; i < N; i++) {
            char byte;
            if (slow[i].fd < 0) continue;
            ssize_t n = recv(slow[i].fd, &byte, 1, MSG_DONTWAIT);
            if (n == 0 || (n < 0 && errno != EAGAIN) || !client_send(&slow[i], "T", 1))
                client_close(&slow[i]), left--;
        }
        usleep(100000);
    }
    assert_int_equal(left, 0);
    assert_true(now_s() - t0 > 0.8);
    imp_http_stop(h, 0);
}

static void *stop_slowly(void *arg)
{
    imp_http_stop(arg, 3000);
    return NULL;
}

/* While the last streams run to their end, newcomers are told to come back elsewhere. */
static void newcomers_while_draining(void **state)
{
    (void)state;
    imp_http *h;
    imp_error err;
    imp_http_config c = {0};
    assert_int_equal(imp_http_start(g_engine, &c, &h, &err), IMP_OK);
    uint16_t p = imp_http_port(h);
    g_fake.step_us = 20000;
    client last = client_open(p);
    const char *body = "{\"prompt\":\"x\",\"max_tokens\":60,\"stream\":true}";
    assert_true(client_post(&last, p, COMP, body, strlen(body)));
    while (g_fake.n_running < 1) usleep(500);
    pthread_t t;
    pthread_create(&t, NULL, stop_slowly, h);
    usleep(200000);
    answer a = post(p, COMP, BODY);
    assert_int_equal(a.status, 503);
    assert_non_null(answer_header(&a, "Retry-After"));
    assert_string_equal(answer_header(&a, "Connection"), "close");
    free(a.body);
    a = get(p, "/ready");
    assert_int_equal(a.status, 503);
    free(a.body);
    a = get(p, "/health");
    assert_int_equal(a.status, 200);
    free(a.body);
    a = client_read(&last, false);
    assert_true(a.whole && strstr(a.body, "[DONE]") && strstr(a.body, "\"length\""));
    free(a.body);
    client_close(&last);
    pthread_join(t, NULL);
    g_fake.step_us = 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_key_files),          cmocka_unit_test(keys_are_clients),
        cmocka_unit_test(keys_change_while_it_runs), cmocka_unit_test(access_log),
        cmocka_unit_test(metrics_of_routers),        cmocka_unit_test(odd_requests),
        cmocka_unit_test(dribbled_headers_are_cut),  cmocka_unit_test(newcomers_while_draining),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
