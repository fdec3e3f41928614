/* Several models in one server: loaded when a request names one, unloaded by least use within the memory limit, by
 * keep_alive, and when their file has changed; and a storm of requests over four models with room for two, in which every
 * answer is what the model gives alone and none is lost. IMPETUS_MODELS_STORM: how many requests (400). */
#include "client.h"

#include <jansson.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include <pthread.h>

#include "engine/engine_int.h"
#include "engine/quantize.h"
#include "http/http.h"

#define STORY "models/stories260K.gguf"

enum { N_MODEL = 4, N_TOK = 12, N_THREAD = 6 };

typedef struct rig {
    imp_engine *e;
    imp_http *http;
    uint16_t port;
} rig;

static char g_other[300];
static char g_dir[] = "/tmp/imp_models_XXXXXX";

static void copy_file(const char *from, const char *to)
{
    char cmd[700];
    snprintf(cmd, sizeof cmd, "cat %s > %s", from, to);
    if (system(cmd) != 0) fail_msg("%s", cmd);
}

static void in_dir(const char *name, char out[300])
{
    snprintf(out, 300, "%s/%s", g_dir, name);
}

/* A model with answers of its own. */
static void make_other(const char *to)
{
    imp_error err;
    imp_quant_report report;
    imp_quant_options o = {0};
    if (imp_pool_new(1, &o.pool) != IMP_OK) fail();
    for (size_t i = 0; i < IMP_N_GROUP; i++) o.type[i] = IMP_Q4_0;
    if (imp_quantize(STORY, to, &o, &report, &err) != IMP_OK) fail_msg("%s", err.text);
    imp_quant_report_deinit(&report);
    imp_pool_free(o.pool);
}

static int begin(void **state)
{
    (void)state;
    char path[300];
    imp_log_set_level(getenv("IMPETUS_TEST_LOG") != NULL ? IMP_LOG_DEBUG : IMP_LOG_ERROR);
    if (mkdtemp(g_dir) == NULL) return 1;
    for (int i = 0; i < N_MODEL; i++) {
        char name[32];
        snprintf(name, sizeof name, "m%d.gguf", i);
        in_dir(name, path);
        if (i % 2 == 0)
            copy_file(STORY, path);
        else
            make_other(path);
    }
    in_dir("m1.gguf", g_other);
    in_dir("notes.txt", path);
    copy_file("README.md", path);
    in_dir("broken.gguf", path);
    copy_file("README.md", path);
    return 0;
}

static int end(void **state)
{
    (void)state;
    imp_sys_remove_tree(g_dir);
    return 0;
}

static rig start(uint64_t mem_bytes, uint32_t n_ctx, double keep_s)
{
    rig r = {0};
    imp_error err;
    imp_engine_config c = {.device = "cpu",
                           .n_thread = 2,
                           .n_ctx = n_ctx,
                           .n_parallel = 4,
                           .n_batch = 64,
                           .mem_bytes = mem_bytes};
    imp_http_config h = {.port = 0};
    if (imp_engine_new(&c, &r.e, &err) != IMP_OK ||
        imp_engine_add_folder(r.e, g_dir, keep_s, &err) != IMP_OK ||
        imp_engine_add_alias(r.e, "fable", "m0", &err) != IMP_OK ||
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

/* The JSON answer to a request; its status in *status. body NULL: GET. */
static json_t *talk(uint16_t port, const char *path, const char *body, int *status)
{
    answer a = body != NULL ? post(port, path, body) : get(port, path);
    *status = a.status;
    json_t *doc = json_loads(a.body, 0, NULL);
    if (doc == NULL) fail_msg("%s: %d %s", path, a.status, a.body);
    free(a.body);
    return doc;
}

static json_t *complete(uint16_t port, const char *model, int prompt, int *status)
{
    char body[400];
    snprintf(
        body, sizeof body,
        "{\"model\":\"%s\",\"prompt\":[1,%d,%d],\"max_tokens\":%d,\"temperature\":0,\"ignore_eos\":true}",
        model, 3 + prompt, 40 + prompt, N_TOK);
    return talk(port, "/v1/completions", body, status);
}

static const char *text_of(const json_t *doc)
{
    return json_string_value(json_object_get(json_array_get(json_object_get(doc, "choices"), 0), "text"));
}

/* The line of a model in a list; NULL: it is not there. */
static json_t *line_of(json_t *list, const char *key, const char *id)
{
    size_t i;
    json_t *m;
    json_array_foreach(list, i, m) if (strcmp(json_string_value(json_object_get(m, key)), id) == 0) return m;
    return NULL;
}

static void assert_state(rig *r, const char *id, const char *want)
{
    int status;
    json_t *doc = talk(r->port, "/v1/models", NULL, &status);
    json_t *m = line_of(json_object_get(doc, "data"), "id", id);
    assert_non_null(m);
    const char *got = json_string_value(json_object_get(json_object_get(m, "status"), "value"));
    if (strcmp(got, want) != 0) fail_msg("%s is %s, not %s", id, got, want);
    json_decref(doc);
}

static void wait_state(rig *r, const char *id, imp_model_state want)
{
    for (int i = 0; i < 1000; i++) {
        imp_known_model *list;
        size_t n;
        bool is = false;
        assert_int_equal(imp_engine_known(r->e, &list, &n), IMP_OK);
        for (size_t k = 0; k < n; k++) is = is || (strcmp(list[k].id, id) == 0 && list[k].state == want);
        imp_free(list);
        if (is) return;
        usleep(10000);
    }
    fail_msg("%s does not come to state %d", id, (int)want);
}

/* What a model takes in a server of this kind, with so much of its KV cache. */
static uint64_t size_with(const char *path, uint32_t n_ctx, double kv)
{
    imp_engine *e;
    imp_error err;
    imp_memory mem;
    imp_engine_config c = {.device = "cpu", .n_thread = 2, .n_ctx = n_ctx, .n_parallel = 4, .n_batch = 64};
    if (imp_engine_new(&c, &e, &err) != IMP_OK || imp_engine_plan(e, path, &mem, &err) != IMP_OK)
        fail_msg("%s", err.text);
    imp_engine_free(e);
    return mem.total - mem.kv + (uint64_t)((double)mem.kv * kv);
}

static uint64_t size_of(const char *path, uint32_t n_ctx)
{
    return size_with(path, n_ctx, 1);
}

/* ---- one after the other ------------------------------------------------------------------------------------ */

static void lists_and_loads(void **state)
{
    (void)state;
    int status;
    rig r = start(0, 128, -1);
    json_t *doc = talk(r.port, "/v1/models", NULL, &status);
    assert_int_equal(json_array_size(json_object_get(doc, "data")), N_MODEL + 1);
    json_decref(doc);
    doc = talk(r.port, "/ready", NULL, &status);
    assert_int_equal(status, 200);
    json_decref(doc);
    assert_state(&r, "m1", "unloaded");
    doc = complete(r.port, "m1", 0, &status);
    assert_int_equal(status, 200);
    assert_non_null(text_of(doc));
    json_decref(doc);
    assert_state(&r, "m1", "loaded");
    assert_state(&r, "m0", "unloaded");
    doc = complete(r.port, "fable", 0, &status); /* an alias */
    assert_int_equal(status, 200);
    json_decref(doc);
    assert_state(&r, "m0", "loaded");
    doc = complete(r.port, "nobody", 0, &status);
    assert_int_equal(status, 404);
    json_decref(doc);
    /* a request that is refused anyway loads nothing */
    doc = talk(r.port, "/v1/completions", "{\"model\":\"m2\",\"prompt\":\"a\",\"temperature\":9}", &status);
    assert_int_equal(status, 400);
    json_decref(doc);
    assert_state(&r, "m2", "unloaded");
    /* one whose file is no model: an error of the API's form, and the next request works */
    doc = complete(r.port, "broken", 0, &status);
    assert_int_equal(status, 500);
    assert_non_null(json_object_get(json_object_get(doc, "error"), "message"));
    assert_null(strstr(json_string_value(json_object_get(json_object_get(doc, "error"), "message")), g_dir));
    json_decref(doc);
    doc = complete(r.port, "m2", 1, &status);
    assert_int_equal(status, 200);
    json_decref(doc);
    stop(&r);
}

static void makes_room_by_least_use(void **state)
{
    (void)state;
    int status;
    uint64_t a = size_of(STORY, 128), b = size_of(g_other, 128);
    rig r = start(a + b + a / 2, 128, -1); /* two, and half of one more */
    const char *const order[] = {"m0", "m1", "m0", "m2"};
    for (size_t i = 0; i < IMP_COUNT(order); i++) {
        json_t *doc = complete(r.port, order[i], 0, &status);
        assert_int_equal(status, 200);
        json_decref(doc);
    }
    assert_state(&r, "m1", "unloaded"); /* used longest ago */
    assert_state(&r, "m2", "loaded");
    imp_stats st;
    imp_engine_get_stats(r.e, &st);
    assert_int_equal(st.n_done, IMP_COUNT(order)); /* what a model that is gone has done stays counted */
    stop(&r);
    /* not even alone: 507, the largest context that fits, and the next request works */
    imp_error err;
    imp_model_source nano = {.path = "models/impetus-nano.gguf", .id = "nano", .keep_s = -1};
    r = start(size_with(nano.path, 512, 0.35), 1024, -1); /* for one sequence of about 700 */
    assert_int_equal(imp_engine_add(r.e, &nano, &err), IMP_OK);
    json_t *doc = complete(r.port, "nano", 0, &status);
    assert_int_equal(status, 507);
    const char *text = json_string_value(json_object_get(json_object_get(doc, "error"), "message"));
    if (strstr(text, "the largest context that fits is") == NULL) fail_msg("%s", text);
    json_decref(doc);
    doc = complete(r.port, "m0", 0, &status);
    assert_int_equal(status, 200);
    json_decref(doc);
    stop(&r);
}

static void keeps_alive(void **state)
{
    (void)state;
    int status;
    rig r = start(0, 128, 300);
    /* Ollama's way to load: no prompt */
    json_t *doc = talk(r.port, "/api/generate", "{\"model\":\"m0\",\"keep_alive\":-1}", &status);
    assert_int_equal(status, 200);
    assert_string_equal(json_string_value(json_object_get(doc, "done_reason")), "load");
    json_decref(doc);
    doc = talk(r.port, "/api/ps", NULL, &status);
    json_t *m = line_of(json_object_get(doc, "models"), "name", "m0");
    assert_non_null(m);
    assert_non_null(strstr(json_string_value(json_object_get(m, "expires_at")), "9999-"));
    assert_int_equal(json_array_size(json_object_get(doc, "models")), 1);
    json_decref(doc);
    /* 0: it goes after this request */
    doc = talk(r.port, "/api/generate",
               "{\"model\":\"m0\",\"prompt\":\"Once\",\"keep_alive\":0,\"stream\":false,\"options\":{\"num_"
               "predict\":4}}",
               &status);
    assert_int_equal(status, 200);
    json_decref(doc);
    wait_state(&r, "m0", IMP_MODEL_ABSENT);
    /* a duration */
    doc = talk(r.port, "/api/chat", "{\"model\":\"m1:latest\",\"messages\":[],\"keep_alive\":\"200ms\"}",
               &status);
    assert_int_equal(status, 200);
    assert_string_equal(json_string_value(json_object_get(doc, "done_reason")), "load");
    json_decref(doc);
    wait_state(&r, "m1", IMP_MODEL_ABSENT);
    /* unloading what is not loaded loads nothing */
    doc = talk(r.port, "/api/generate", "{\"model\":\"m1\",\"keep_alive\":0}", &status);
    assert_string_equal(json_string_value(json_object_get(doc, "done_reason")), "unload");
    json_decref(doc);
    assert_state(&r, "m1", "unloaded");
    doc = talk(r.port, "/api/generate", "{\"model\":\"m1\",\"keep_alive\":\"soon\"}", &status);
    assert_int_equal(status, 400);
    json_decref(doc);
    stop(&r);
}

static void pinned_ones_stay(void **state)
{
    (void)state;
    int status;
    imp_error err;
    imp_model *m;
    rig r = start(0, 128, 0); /* others go at once */
    imp_model_source s = {.path = STORY, .id = "mine", .pinned = true};
    assert_int_equal(imp_engine_add(r.e, &s, &err), IMP_OK);
    assert_int_equal(imp_engine_add(r.e, &s, &err), IMP_INVALID); /* the name is taken */
    assert_int_equal(imp_engine_open(r.e, "mine", &m, &err), IMP_OK);
    imp_model_release(m);
    json_t *doc = complete(r.port, "m1", 0, &status);
    assert_int_equal(status, 200);
    json_decref(doc);
    wait_state(&r, "m1", IMP_MODEL_ABSENT);
    assert_state(&r, "mine", "loaded");
    doc = talk(r.port, "/api/generate", "{\"model\":\"mine\",\"keep_alive\":0}", &status);
    assert_int_equal(status, 400);
    json_decref(doc);
    assert_state(&r, "mine", "loaded");
    stop(&r);
}

static void notices_a_changed_file(void **state)
{
    (void)state;
    int status;
    char path[300], moved[300];
    in_dir("m0.gguf", path);
    in_dir("m0.kept", moved);
    rig r = start(0, 128, -1);
    json_t *before = complete(r.port, "m0", 0, &status), *other = complete(r.port, "m1", 0, &status);
    copy_file(g_other, moved); /* another model in its place */
    assert_int_equal(rename(moved, path), 0);
    usleep(300000); /* looked at four times a second */
    json_t *after = complete(r.port, "m0", 0, &status);
    assert_int_equal(status, 200);
    assert_string_equal(text_of(after), text_of(other));
    assert_string_not_equal(text_of(after), text_of(before));
    json_decref(after);
    assert_int_equal(remove(path), 0);
    usleep(300000);
    after = complete(r.port, "m0", 0, &status);
    assert_int_equal(status, 500);
    json_decref(after);
    copy_file(STORY, path);
    after = complete(r.port, "m0", 0, &status);
    assert_int_equal(status, 200);
    assert_string_equal(text_of(after), text_of(before));
    json_decref(after);
    json_decref(before);
    json_decref(other);
    stop(&r);
}

/* ---- memory -------------------------------------------------------------------------------------------------- */

static void memory_goes_back(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip();
#else
    int status;
    rig r = {0};
    imp_error err;
    imp_engine_config c = {.device = "cpu", .n_thread = 2, .n_parallel = 2};
    assert_int_equal(imp_engine_new(&c, &r.e, &err), IMP_OK);
    assert_int_equal(imp_engine_add_folder(r.e, "models", -1, &err), IMP_OK);
    imp_http_config h = {.port = 0};
    assert_int_equal(imp_http_start(r.e, &h, &r.http, &err), IMP_OK);
    r.port = imp_http_port(r.http);
    uint64_t before = 0, loaded = 0, after = 0;
    for (int round = 0; round < 3; round++) {
        json_t *doc = complete(r.port, "impetus-nano", round, &status);
        assert_int_equal(status, 200);
        json_decref(doc);
        loaded = imp_sys_resident();
        doc = talk(r.port, "/api/generate", "{\"model\":\"impetus-nano\",\"keep_alive\":0}", &status);
        json_decref(doc);
        wait_state(&r, "impetus-nano", IMP_MODEL_ABSENT);
        for (int i = 0; i < 200 && (after = imp_sys_resident()) > loaded - (10 << 20); i++) usleep(10000);
        if (round == 0) before = after; /* code pages and the like are there from now on */
    }
    /* the model is about 20 MB; what stays is less than a tenth of it, and does not grow */
    if (loaded < before + (10 << 20) || after > before + (2 << 20))
        fail_msg("resident: %.1f MB after the first, %.1f MB loaded, %.1f MB after the third",
                 (double)before / 1e6, (double)loaded / 1e6, (double)after / 1e6);
    stop(&r);
#endif
}

/* ---- the storm ------------------------------------------------------------------------------------------------ */

enum { N_PROMPT = 5 };
static char g_alone[N_MODEL][N_PROMPT][256];
static atomic_int g_left, g_wrong, g_cut;

typedef struct worker {
    uint16_t port;
    uint64_t seed;
} worker;

static void *work(void *arg)
{
    worker *w = arg;
    rng r = {w->seed * 7919 + 1};
    while (atomic_fetch_sub(&g_left, 1) > 0) {
        char name[16];
        int status, m = (int)rng_below(&r, N_MODEL), p = (int)rng_below(&r, N_PROMPT);
        snprintf(name, sizeof name, "m%d", m);
        if (rng_below(&r, 12) == 0) { /* sent, and gone before the answer */
            client c = client_open(w->port);
            char body[200];
            snprintf(body, sizeof body,
                     "{\"model\":\"%s\",\"prompt\":[1,5],\"max_tokens\":40,\"stream\":true}", name);
            (void)client_post(&c, w->port, "/v1/completions", body, strlen(body));
            usleep(rng_below(&r, 20000));
            client_close(&c);
            atomic_fetch_add(&g_cut, 1);
            continue;
        }
        json_t *doc = complete(w->port, name, p, &status);
        if (status != 200 || strcmp(text_of(doc), g_alone[m][p]) != 0) {
            char *text = json_dumps(doc, JSON_COMPACT);
            print_message("%s, prompt %d: %d %s\n", name, p, status, text);
            free(text);
            atomic_fetch_add(&g_wrong, 1);
        }
        json_decref(doc);
    }
    return NULL;
}

static void storm(void **state)
{
    (void)state;
    int status;
    const char *want = getenv("IMPETUS_MODELS_STORM");
    rig r = start(0, 128, -1);
    for (int m = 0; m < N_MODEL; m++)
        for (int p = 0; p < N_PROMPT; p++) {
            char name[16];
            snprintf(name, sizeof name, "m%d", m);
            json_t *doc = complete(r.port, name, p, &status);
            assert_int_equal(status, 200);
            snprintf(g_alone[m][p], sizeof g_alone[m][p], "%s", text_of(doc));
            json_decref(doc);
        }
    stop(&r);
    uint64_t a = size_of(STORY, 128), b = size_of(g_other, 128);
    r = start(a + IMP_MAX(a, b) + b / 4, 128, 0.05); /* any two of them, and they also expire */
    atomic_store(&g_left, want != NULL ? atoi(want) : 400);
    pthread_t thread[N_THREAD];
    worker w[N_THREAD];
    for (int i = 0; i < N_THREAD; i++) {
        w[i] = (worker){r.port, (uint64_t)i + 1};
        assert_int_equal(pthread_create(&thread[i], NULL, work, &w[i]), 0);
    }
    for (int i = 0; i < N_THREAD; i++) pthread_join(thread[i], NULL);
    assert_int_equal(atomic_load(&g_wrong), 0);
    for (int m = 0; m < N_MODEL; m++) {
        char name[16];
        snprintf(name, sizeof name, "m%d", m);
        wait_state(&r, name, IMP_MODEL_ABSENT); /* nothing holds one for ever */
    }
    stop(&r);
}

/* The server ends while models are being loaded and waited for. */
static void ends_in_the_middle(void **state)
{
    (void)state;
    for (int i = 0; i < 6; i++) {
        rig r = start(0, 128, -1);
        client c[N_MODEL];
        for (int m = 0; m < N_MODEL; m++) {
            char body[100];
            c[m] = client_open(r.port);
            snprintf(body, sizeof body, "{\"model\":\"m%d\",\"prompt\":[1,5],\"max_tokens\":30}", m);
            assert_true(client_post(&c[m], r.port, "/v1/completions", body, strlen(body)));
        }
        usleep((useconds_t)i * 4000);
        imp_http_stop(r.http, 0);
        imp_engine_free(r.e);
        for (int m = 0; m < N_MODEL; m++) client_close(&c[m]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists_and_loads),
        cmocka_unit_test(makes_room_by_least_use),
        cmocka_unit_test(keeps_alive),
        cmocka_unit_test(pinned_ones_stay),
        cmocka_unit_test(memory_goes_back),
        cmocka_unit_test(notices_a_changed_file),
        cmocka_unit_test(storm),
        cmocka_unit_test(ends_in_the_middle),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
