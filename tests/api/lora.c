/* tests/api/lora.c - adapters in a whole server: chosen by name or number, mixed in a batch, loaded and taken away under load.
 *
 * Idea:    every answer under load must be the tokens that the request gives alone, in an engine that knows no other adapter;
 *          what an adapter computes is held to merged weights in tests/model/lora.c. */
#include "client.h"

#include <jansson.h>

#include "engine/engine_int.h"
#include "http/http.h"
#include "model/lora_file.h"

#define MODEL "models/stories260K.gguf"

enum { N_ADAPTER = 4, N_PROMPT = 20, MAX_GEN = 40, MAX_PROMPT = 260, N_USE = 6 };

static char g_dir[] = "/tmp/imp_lora_XXXXXX";

static void adapter_path(int i, char out[300])
{
    snprintf(out, 300, "%s/a%d.gguf", g_dir, i);
}

static void write_file(const char *path, const imp_buf *b)
{
    imp_error err;
    if (imp_sys_file_write(path, b->data, b->n, &err) != IMP_OK) fail_msg("%s", err.text);
}

static int begin(void **state)
{
    (void)state;
    imp_error err;
    imp_net *net;
    imp_log_set_level((imp_log_level)-1);
    if (mkdtemp(g_dir) == NULL || imp_net_open(MODEL, 0, &net, &err) != IMP_OK) return 1;
    for (int i = 0; i < N_ADAPTER; i++) {
        lf_adapter f;
        char path[300];
        lf_make(&f, net->generate, 2 + 3 * (uint64_t)i, 50 + (uint64_t)i);
        imp_buf b = lf_gguf(&f, "llama");
        adapter_path(i, path);
        write_file(path, &b);
        imp_buf_deinit(&b);
        lf_free(&f);
    }
    imp_net_close(net);
    imp_buf junk = {0};
    imp_buf_str(&junk, "GGUFjunk");
    char path[300];
    snprintf(path, sizeof path, "%s/junk.gguf", g_dir);
    write_file(path, &junk);
    imp_buf_deinit(&junk);
    return 0;
}

static int end(void **state)
{
    (void)state;
    imp_sys_remove_tree(g_dir);
    return 0;
}

/* ---- under load ------------------------------------------------------------------------------------------ */

#include "crowd.h"

static int32_t prompt[N_PROMPT][MAX_PROMPT];
static size_t n_prompt[N_PROMPT];

/* Few beginnings, so that the cache is asked for the same tokens under other adapters; some repeat themselves, so that
 * guesses are computed. */
static void make_prompts(rng *r)
{
    for (int i = 0; i < N_PROMPT; i++) {
        rng start = {(uint64_t)(i % 3) + 7};
        size_t n = 20 + rng_below(r, MAX_PROMPT - 20), cut = rng_below(r, 200);
        n_prompt[i] = n;
        for (size_t k = 0; k < n; k++) {
            uint32_t shared = rng_below(&start, 500);
            prompt[i][k] = (int32_t)(k == 0 ? 1 : 3 + (k < cut ? shared : rng_below(r, i % 2 ? 6 : 500)));
        }
    }
}

/* What requests use: none, one, one at another scale, two. */
typedef struct use {
    int n, adapter[2];
    float scale[2];
} use;
static const use uses[N_USE] = {{0, {0}, {0}},     {1, {0}, {1}},          {1, {1}, {1}},
                                {1, {1}, {-0.5f}}, {2, {2, 0}, {0.7f, 1}}, {1, {2}, {1}}};

static imp_engine *open_engine(uint32_t n_parallel, uint64_t mem_bytes, uint32_t mask, imp_model **m)
{
    imp_engine *e;
    imp_error err;
    imp_engine_config c = {.device = "cpu",
                           .n_thread = 2,
                           .n_ctx = 384,
                           .n_parallel = n_parallel,
                           .n_batch = 90,
                           .mem_bytes = mem_bytes,
                           .max_lora_rank = 32};
    if (imp_engine_new(&c, &e, &err) != IMP_OK) fail_msg("%s", err.text);
    for (int i = 0; i < N_ADAPTER; i++) {
        char path[300], name[16];
        adapter_path(i, path);
        snprintf(name, sizeof name, "a%d", i);
        imp_adapter_source s = {.name = name, .path = path, .base = "m", .scale = 1};
        if ((mask >> i & 1) && imp_engine_add_adapter(e, &s, &err) != IMP_OK) fail_msg("%s", err.text);
    }
    if (imp_engine_load(e, MODEL, "m", m, &err) != IMP_OK) fail_msg("%s", err.text);
    return e;
}

static uint64_t submit(imp_model *m, int i, const use *u, uint32_t max_tok, imp_constraint *c, outcome *o)
{
    imp_adapter_use with[2];
    imp_request q = {.kind = IMP_REQUEST_GENERATE,
                     .ids = prompt[i],
                     .n_ids = &n_prompt[i],
                     .n_input = 1,
                     .max_tok = max_tok,
                     .want_logprobs = true,
                     .ignore_eos = c == NULL,
                     .lora = with,
                     .n_lora = (size_t)u->n,
                     .constraint = c};
    imp_sampling_default(&q.sampling);
    q.sampling.temperature = 0;
    for (int k = 0; k < u->n; k++) {
        char name[16];
        snprintf(name, sizeof name, "a%d", u->adapter[k]);
        assert_int_equal(imp_model_adapter(m, name, 0, &with[k]), IMP_OK);
        with[k].scale = u->scale[k];
    }
    uint64_t id = crowd_add(m, &q, o);
    for (int k = 0; k < u->n; k++) imp_adapter_unref(with[k].adapter);
    return id;
}

/* One more adapter comes and goes. */
static void come_and_go(imp_engine *e, bool *there)
{
    imp_error err;
    char path[300];
    adapter_path(3, path);
    imp_adapter_source s = {.name = "a3", .path = path, .base = "m", .scale = 1};
    imp_status st = *there ? imp_engine_remove_adapter(e, "a3", &err) : imp_engine_add_adapter(e, &s, &err);
    if (st != IMP_OK) fail_msg("%s", err.text);
    *there = !*there;
}

static outcome alone[N_PROMPT][N_USE], other;

static bool same_tokens(const outcome *a, const outcome *b)
{
    for (size_t k = 0; k < a->n_tok; k++)
        if (a->tok[k].id != b->tok[k].id) return false;
    return a->n_tok == b->n_tok;
}

/* n requests at random; changes: an adapter comes, is used and goes meanwhile. */
static void run_storm(imp_engine *e, imp_model *m, rng *r, uint32_t n, bool changes)
{
    outcome *o = calloc(n, sizeof *o);
    uint64_t *id = calloc(n, sizeof *id);
    uint32_t *len = calloc(n, sizeof *len), *which = calloc(n, sizeof *which), *how = calloc(n, sizeof *how);
    uint32_t n_finished = 0, n_hit = 0;
    bool there = false;
    for (uint32_t k = 0; k < n; k++) {
        which[k] = rng_below(r, N_PROMPT);
        how[k] = rng_below(r, N_USE);
        len[k] = 1 + rng_below(r, MAX_GEN);
        if (changes && k % 12 == 0) {
            use last = {1, {3}, {1}};
            come_and_go(e, &there);
            submit(m, (int)rng_below(r, N_PROMPT), &last, 5, NULL, &other);
            come_and_go(e, &there); /* the request goes on */
        }
        id[k] = submit(m, (int)which[k], &uses[how[k]], len[k], NULL, &o[k]);
        if (rng_below(r, 6) == 0) imp_cancel(e, id[k - rng_below(r, IMP_MIN(k + 1, 20u))]);
        wait_until(changes && k % 12 == 11 ? 0 : 24);
        if (changes && k % 12 == 11) assert_int_equal(other.finish, IMP_FINISH_LENGTH);
    }
    wait_until(0);
    for (uint32_t k = 0; k < n; k++) {
        assert_int_equal(o[k].n_done, 1);
        assert_true(o[k].finish == IMP_FINISH_LENGTH || o[k].finish == IMP_FINISH_CANCELLED);
        assert_memory_equal(o[k].tok, alone[which[k]][how[k]].tok, o[k].n_tok * sizeof *o[k].tok);
        n_finished += o[k].finish == IMP_FINISH_LENGTH;
        n_hit += o[k].usage.n_cached > 0;
    }
    imp_stats st;
    imp_engine_get_stats(e, &st);
    assert_int_equal(st.kv_block_used, 0);
    assert_true(n_finished > n / 2 && n_hit > n / 20);
    print_message("# %u finished; %u began from the cache; %llu guessed tokens were right; %llu made room\n",
                  n_finished, n_hit, (unsigned long long)st.n_accepted_tok,
                  (unsigned long long)st.n_preempted);
    free(o), free(id), free(len), free(which), free(how);
}

static void storm(void **state)
{
    (void)state;
    const char *want = getenv("IMPETUS_STORM");
    uint32_t n = want != NULL ? (uint32_t)atoi(want) : 400, n_changed = 0;
    rng r = {2027};
    imp_model *m;
    make_prompts(&r);
    for (int i = 0; i < N_PROMPT; i++)
        for (int u = 0; u < N_USE; u++) {
            uint32_t mask = 0;
            for (int k = 0; k < uses[u].n; k++) mask |= 1u << uses[u].adapter[k];
            imp_engine *e = open_engine(1, 0, mask, &m);
            submit(m, i, &uses[u], MAX_GEN, NULL, &alone[i][u]);
            wait_until(0);
            n_changed += !same_tokens(&alone[i][u], &alone[i][0]);
            imp_engine_free(e);
        }
    assert_true(n_changed > N_PROMPT * (N_USE - 1) / 2);
    imp_engine *e = open_engine(8, 0, 7, &m);
    imp_memory mem;
    imp_model_get_memory(m, &mem);
    run_storm(e, m, &r, n / 2, true);
    imp_engine_free(e);
    e = open_engine(8, mem.total - mem.kv + mem.kv / 4, 7, &m); /* they have to make room */
    run_storm(e, m, &r, n, false);
    imp_engine_free(e);
}

/* An answer that must be JSON is JSON with every adapter. */
static void constrained(void **state)
{
    (void)state;
    imp_model *m;
    imp_error err;
    imp_engine *e = open_engine(6, 0, 7, &m);
    static const char schema[] =
        "{\"type\":\"array\",\"items\":{\"type\":\"boolean\"},\"minItems\":2,\"maxItems\":4}";
    imp_constraint *c;
    if (imp_constraint_new(m, IMP_CONSTRAINT_SCHEMA, schema, sizeof schema - 1, &c, &err) != IMP_OK)
        fail_msg("%s", err.text);
    outcome o[N_USE];
    for (int u = 0; u < N_USE; u++) submit(m, u, &uses[u], MAX_GEN, c, &o[u]);
    wait_until(0);
    for (int u = 0; u < N_USE; u++) {
        assert_int_equal(o[u].finish, IMP_FINISH_STOP);
        json_t *doc = json_loads(o[u].text, JSON_DECODE_ANY, NULL);
        if (!json_is_array(doc) || json_array_size(doc) < 2) fail_msg("\"%s\" is no such list", o[u].text);
        json_decref(doc);
    }
    imp_constraint_free(c);
    imp_engine_free(e);
}

/* ---- over HTTP -------------------------------------------------------------------------------------------- */

typedef struct rig {
    imp_engine *e;
    imp_http *http;
    uint16_t port;
} rig;

static rig start(uint32_t mask, bool dir, const char *key)
{
    rig r = {0};
    imp_model *m;
    imp_error err;
    imp_http_config h = {.port = 0, .lora_dir = dir ? g_dir : NULL, .api_key = key};
    r.e = open_engine(4, 0, mask, &m);
    if (imp_http_start(r.e, &h, &r.http, &err) != IMP_OK) fail_msg("%s", err.text);
    r.port = imp_http_port(r.http);
    return r;
}

static void stop(rig *r)
{
    imp_http_stop(r->http, 1000);
    imp_engine_free(r->e);
}

static json_t *talk(uint16_t port, const char *path, const char *body, int want)
{
    answer a = body != NULL ? post(port, path, body) : get(port, path);
    json_t *doc = json_loads(a.body, 0, NULL);
    if (doc == NULL || a.status != want) fail_msg("%s %s: %d %s", path, body ? body : "", a.status, a.body);
    free(a.body);
    return doc;
}

/* The text of an answer to 40 tokens, with these fields; *cached: prompt tokens from the cache; *model: its name. */
static char *complete(uint16_t port, const char *fields, int64_t *cached, char model[64])
{
    char body[900];
    int n = snprintf(body, sizeof body,
                     "{%s,\"max_tokens\":24,\"temperature\":0,\"ignore_eos\":true,\"prompt\":[1", fields);
    for (int i = 0; i < 140; i++) n += snprintf(body + n, sizeof body - (size_t)n, ",%d", 20 + i * 3);
    snprintf(body + n, sizeof body - (size_t)n, "]}");
    json_t *doc = talk(port, "/v1/completions", body, 200);
    char *text = strdup(
        json_string_value(json_object_get(json_array_get(json_object_get(doc, "choices"), 0), "text")));
    const json_t *u = json_object_get(json_object_get(doc, "usage"), "prompt_tokens_details");
    if (cached != NULL) *cached = json_integer_value(json_object_get(u, "cached_tokens"));
    if (model != NULL) snprintf(model, 64, "%s", json_string_value(json_object_get(doc, "model")));
    json_decref(doc);
    return text;
}

static void chosen_by_request(void **state)
{
    (void)state;
    rig r = start(7, false, NULL);
    char name[64];
    int64_t cached;
    char *base = complete(r.port, "\"model\":\"m\"", &cached, name);
    assert_string_equal(name, "m");
    char *a0 = complete(r.port, "\"model\":\"a0\"", &cached, name);
    assert_string_equal(name, "a0");
    assert_int_equal(cached, 0); /* the same tokens, another model */
    char *a1 = complete(r.port, "\"model\":\"a1\"", NULL, NULL);
    char *again = complete(r.port, "\"model\":\"a0\"", &cached, NULL);
    assert_true(cached >= 128);
    char *number = complete(r.port, "\"model\":\"m\",\"lora\":[{\"id\":0,\"scale\":1}]", &cached, NULL);
    assert_true(cached >= 128); /* the same adapter by another name */
    char *half = complete(r.port, "\"model\":\"m\",\"lora\":[{\"id\":0,\"scale\":0.5}]", &cached, NULL);
    assert_int_equal(cached, 0);
    char *zero = complete(r.port, "\"model\":\"m\",\"lora\":[{\"id\":0,\"scale\":0}]", &cached, NULL);
    assert_true(cached >= 128); /* as without */
    char *none = complete(r.port, "\"model\":\"m\",\"lora\":[]", NULL, NULL);
    assert_string_not_equal(base, a0);
    assert_string_not_equal(a0, a1);
    assert_string_not_equal(a0, half);
    assert_string_equal(a0, again);
    assert_string_equal(a0, number);
    assert_string_equal(base, zero);
    assert_string_equal(base, none);
    free(base), free(a0), free(a1), free(again), free(number), free(half), free(zero), free(none);
    static const char *const bad[] = {"\"lora\":[{\"id\":7}]",         "\"lora\":[{\"id\":-1}]",
                                      "\"lora\":[{\"scale\":1}]",      "\"lora\":{\"id\":0}",
                                      "\"lora\":[{\"id\":0,\"x\":1}]", "\"lora\":[{\"id\":0},{\"id\":0}]",
                                      "\"lora\":[{\"id\":\"a0\"}]",    "\"lora\":[{\"id\":0,\"scale\":1e9}]"};
    for (size_t i = 0; i < IMP_COUNT(bad); i++) {
        char body[200];
        snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":\"x\",%s}", bad[i]);
        json_t *doc = talk(r.port, "/v1/completions", body, 400);
        assert_string_equal(json_string_value(json_object_get(json_object_get(doc, "error"), "param")),
                            "lora");
        json_decref(doc);
    }
    json_decref(
        talk(r.port, "/v1/completions", "{\"model\":\"a0\",\"prompt\":\"x\",\"lora\":[{\"id\":1}]}", 400));
    json_decref(talk(r.port, "/v1/completions", "{\"model\":\"a9\",\"prompt\":\"x\"}", 404));
    json_decref(talk(r.port, "/api/generate",
                     "{\"model\":\"a1:latest\",\"prompt\":\"x\",\"stream\":false,\"raw\":true}", 200));
    json_t *doc = talk(r.port, "/v1/models", NULL, 200);
    const json_t *list = json_object_get(doc, "data");
    assert_int_equal(json_array_size(list), 4);
    assert_string_equal(json_string_value(json_object_get(json_array_get(list, 2), "id")), "a1");
    assert_string_equal(json_string_value(json_object_get(json_array_get(list, 2), "parent")), "m");
    json_decref(doc);
    doc = talk(r.port, "/v1/models/a2", NULL, 200);
    assert_string_equal(json_string_value(json_object_get(doc, "parent")), "m");
    json_decref(doc);
    doc = talk(r.port, "/lora-adapters", NULL, 200);
    assert_int_equal(json_array_size(doc), 3);
    json_decref(doc);
    static const char idle[] =
        "vllm:lora_requests_info{max_lora=\"3\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"} 1";
    bool seen = false;
    for (int i = 0; i < 200 && !seen; i++) { /* the last answer comes a moment before its request is over */
        answer a = get(r.port, "/metrics");
        seen = strstr(a.body, idle) != NULL;
        free(a.body);
        usleep(10000);
    }
    assert_true(seen);
    json_decref(
        talk(r.port, "/v1/load_lora_adapter", "{\"lora_name\":\"x\",\"lora_path\":\"a3.gguf\"}", 403));
    stop(&r);
}

static uint64_t weights_of(imp_engine *e)
{
    imp_memory mem;
    imp_model *m = imp_engine_find(e, "m");
    imp_model_get_memory(m, &mem);
    imp_model_release(m);
    return mem.weights;
}

static void loaded_by_request(void **state)
{
    (void)state;
    static const struct {
        int status;
        const char *body;
    } bad[] = {{400, "{\"lora_name\":\"x\",\"lora_path\":\"/etc/passwd\"}"},
               {400, "{\"lora_name\":\"x\",\"lora_path\":\"../a3.gguf\"}"},
               {400, "{\"lora_name\":\"x\",\"lora_path\":\"b/../../a3.gguf\"}"},
               {400, "{\"lora_name\":\"x\",\"lora_path\":\"\"}"},
               {400, "{\"lora_path\":\"a3.gguf\"}"},
               {400, "{\"lora_name\":\"x\"}"},
               {400, "{\"lora_name\":\"m\",\"lora_path\":\"a3.gguf\"}"},
               {400, "{\"lora_name\":\"a0\",\"lora_path\":\"a3.gguf\"}"},
               {400, "{\"lora_name\":\"x\",\"lora_path\":\"junk.gguf\"}"},
               {400, "{\"lora_name\":\"x\",\"lora_path\":\"a3.gguf\",\"surprise\":1}"},
               {404, "{\"lora_name\":\"x\",\"lora_path\":\"none.gguf\"}"}};
    rig r = start(1, true, NULL);
    uint64_t before = weights_of(r.e);
    for (size_t i = 0; i < IMP_COUNT(bad); i++) {
        json_t *doc = talk(r.port, "/v1/load_lora_adapter", bad[i].body, bad[i].status);
        const char *text = json_string_value(json_object_get(json_object_get(doc, "error"), "message"));
        assert_null(strstr(text, g_dir)); /* no paths of the server */
        json_decref(doc);
    }
    json_decref(talk(r.port, "/v1/completions", "{\"model\":\"x\",\"prompt\":\"x\"}", 404));
    json_decref(
        talk(r.port, "/v1/load_lora_adapter", "{\"lora_name\":\"x\",\"lora_path\":\"a3.gguf\"}", 200));
    assert_true(weights_of(r.e) > before);
    char *x = complete(r.port, "\"model\":\"x\"", NULL, NULL),
         *base = complete(r.port, "\"model\":\"m\"", NULL, NULL);
    assert_string_not_equal(x, base);
    free(x), free(base);
    json_decref(talk(r.port, "/v1/unload_lora_adapter", "{\"lora_name\":\"x\"}", 200));
    assert_int_equal(weights_of(r.e), before);
    json_decref(talk(r.port, "/v1/unload_lora_adapter", "{\"lora_name\":\"x\"}", 404));
    json_decref(talk(r.port, "/v1/completions", "{\"model\":\"x\",\"prompt\":\"x\"}", 404));
    stop(&r);
}

/* A broken adapter stops the load with its name and reason; a device without adapters says so. */
static void refused_at_load(void **state)
{
    (void)state;
    imp_engine *e;
    imp_error err;
    imp_model *m;
    char path[300];
    snprintf(path, sizeof path, "%s/junk.gguf", g_dir);
    imp_engine_config c = {.device = "cpu", .n_thread = 2, .n_ctx = 128};
    imp_adapter_source s = {.name = "bad", .path = path, .base = "m", .scale = 1};
    assert_int_equal(imp_engine_new(&c, &e, &err), IMP_OK);
    assert_int_equal(imp_engine_add_adapter(e, &s, &err), IMP_OK);
    assert_int_not_equal(imp_engine_load(e, MODEL, "m", &m, &err), IMP_OK);
    assert_non_null(strstr(err.text, "adapter bad"));
    imp_engine_free(e);
    c.device = "cpu:1+cpu"; /* shares of layers */
    adapter_path(0, path);
    assert_int_equal(imp_engine_new(&c, &e, &err), IMP_OK);
    assert_int_equal(imp_engine_add_adapter(e, &s, &err), IMP_OK);
    assert_int_equal(imp_engine_load(e, MODEL, "m", &m, &err), IMP_UNSUPPORTED);
    assert_non_null(strstr(err.text, "adapters are not run there"));
    imp_engine_free(e);
}

int main(void)
{
    const struct CMUnitTest t[] = {cmocka_unit_test(storm), cmocka_unit_test(constrained),
                                   cmocka_unit_test(chosen_by_request), cmocka_unit_test(loaded_by_request),
                                   cmocka_unit_test(refused_at_load)};
    if (crowd_begin()) return 1;
    return cmocka_run_group_tests_name("api/lora", t, begin, end);
}
