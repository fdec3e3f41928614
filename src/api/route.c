/* api/route.c - the table of endpoints, and the API object.
 *
 * Place:   what src/http calls; hands a request to its handler.
 * Idea:    a path is a line of the table. A path that no line has is 404, a method that the line has not is 405. */
#include "api/responses.h"

#include <unistd.h>

typedef enum route_kind {
    R_GENERATE,
    R_VECTOR,
    R_COUNT,
    R_MODELS,
    R_MODEL,
    R_HEALTH,
    R_READY,
    R_METRICS,
    R_VERSION,
    R_TAGS,
    R_PS,
    R_SHOW,
    R_HARDWARE,
    R_PLAN,
    R_RECEIPT,
    R_EXPLAIN,
    R_RESPONSE,
    R_RERANK,
    R_TOKENIZE,
    R_DETOKENIZE,
    R_CACHE_SAVE,
    R_LORA,
    R_LORA_LOAD,
    R_LORA_UNLOAD
} route_kind;

typedef struct route {
    const char *path;
    route_kind kind;
    imp_endpoint ep; /* POST with a JSON body; 0: GET */
} route;

static const route g_route[] = {
    {"/v1/chat/completions", R_GENERATE, EP_CHAT},
    {"/v1/completions", R_GENERATE, EP_COMPLETION},
    {"/v1/embeddings", R_VECTOR, EP_EMBED},
    {"/api/embed", R_VECTOR, EP_OLLAMA_EMBED},
    {"/api/embeddings", R_VECTOR, EP_OLLAMA_EMBEDDINGS},
    {"/v1/messages", R_GENERATE, EP_MESSAGES},
    {"/v1/messages/count_tokens", R_COUNT, EP_COUNT},
    {"/api/chat", R_GENERATE, EP_OLLAMA_CHAT},
    {"/api/generate", R_GENERATE, EP_OLLAMA_GENERATE},
    {"/v1/responses", R_GENERATE, EP_RESPONSES},
    {"/v1/responses/", R_RESPONSE, 0}, /* and its id; DELETE, too */
    {"/v1/rerank", R_RERANK, EP_PLAN},
    {"/rerank", R_RERANK, EP_PLAN},
    {"/tokenize", R_TOKENIZE, EP_PLAN},
    {"/detokenize", R_DETOKENIZE, EP_PLAN},
    {"/lora-adapters", R_LORA, 0},
    {"/v1/load_lora_adapter", R_LORA_LOAD, EP_PLAN},
    {"/v1/unload_lora_adapter", R_LORA_UNLOAD, EP_PLAN},
    {"/v1/models", R_MODELS, 0},
    {"/v1/models/", R_MODEL, 0}, /* and what follows: the model's id, which may hold slashes */
    {"/health", R_HEALTH, 0},
    {"/ready", R_READY, 0},
    {"/metrics", R_METRICS, 0},
    {"/api/version", R_VERSION, 0},
    {"/api/tags", R_TAGS, 0},
    {"/api/ps", R_PS, 0},
    {"/api/show", R_SHOW, EP_SHOW},
    {"/api/hardware", R_HARDWARE, 0},
    {"/api/plan", R_PLAN, EP_PLAN},
    {"/api/cache/save", R_CACHE_SAVE, EP_PLAN},
    {"/api/receipts/", R_RECEIPT, 0}, /* and the id that a receipt names */
    {"/api/explain/", R_EXPLAIN, 0},
};
_Static_assert(IMP_COUNT(g_route) <= IMP_N_ROUTE, "IMP_N_ROUTE counts the routes");

/* The path goes on with an id. */
static bool has_id(route_kind k)
{
    return k == R_MODEL || k == R_RECEIPT || k == R_EXPLAIN || k == R_RESPONSE;
}

size_t imp_api_route_index(const char *path)
{
    for (size_t i = 0; i < IMP_COUNT(g_route); i++) {
        size_t n = strlen(g_route[i].path);
        bool prefix = has_id(g_route[i].kind);
        if (prefix ? strncmp(path, g_route[i].path, n) == 0 && path[n] : strcmp(path, g_route[i].path) == 0)
            return i;
    }
    return IMP_N_ROUTE;
}

const char *imp_api_route_name(size_t i)
{
    if (i >= IMP_COUNT(g_route)) return NULL;
    switch (g_route[i].kind) {
    case R_MODEL: return "/v1/models/ID";
    case R_RESPONSE: return "/v1/responses/ID";
    case R_RECEIPT: return "/api/receipts/ID";
    case R_EXPLAIN: return "/api/explain/ID";
    default: return g_route[i].path;
    }
}

const char *imp_api_allow(const char *path)
{
    size_t i = imp_api_route_index(path);
    if (i == IMP_N_ROUTE) return NULL;
    if (g_route[i].kind == R_RESPONSE) return "GET, HEAD, DELETE, OPTIONS";
    return g_route[i].ep ? "POST, OPTIONS" : "GET, HEAD, OPTIONS";
}

/* Ready: a request that names a model can be answered, if need be after loading it. */
static void ready(imp_api *a, const imp_api_sink *s)
{
    imp_known_model *list;
    size_t n = 0, n_known = 0;
    if (imp_engine_known(a->config.engine, &list, &n_known) == IMP_OK)
        for (size_t i = 0; i < n_known; i++) n += list[i].state == IMP_MODEL_LOADED;
    imp_free(list);
    bool draining = atomic_load(&a->draining), ok = n_known > 0 && !draining;
    imp_buf b = {0};
    imp_buf_fmt(&b, "{\"status\":\"%s\",\"models\":%zu}",
                ok         ? "ready"
                : draining ? "stopping"
                           : "there is no model",
                n);
    imp_api_answer(s, ok ? 200 : 503, &b);
}

static void hardware(imp_api *a, const imp_api_sink *s)
{
    char *text = a->config.hardware ? a->config.hardware(a->config.user) : NULL;
    if (!text) {
        imp_api_error(s, IMP_OLLAMA, 404, NULL, NULL, NULL, 0,
                      "this server has no description of its hardware");
        return;
    }
    s->begin(s->user, 200, "application/json", NULL, 0, false);
    s->write(s->user, text, strlen(text));
    s->end(s->user);
    imp_sys_free(text);
}

/* Answered at once: how far it is, the metrics say. */
static void save_caches(imp_api *a, const imp_api_request *rq, const imp_api_sink *s)
{
    imp_buf b = {0};
    if (rq->n_body > 0 && (rq->n_body != 2 || memcmp(rq->body, "{}", 2) != 0)) {
        imp_api_error(s, IMP_OLLAMA, 400, NULL, NULL, NULL, 0, "this endpoint takes no fields");
    } else if (!imp_engine_save_caches(a->config.engine)) {
        imp_api_error(s, IMP_OLLAMA, 400, NULL, NULL, NULL, 0,
                      "this server keeps no caches on disk; start it with --kv-cache-max SIZE");
    } else {
        imp_buf_str(&b, "{\"status\":\"saving\"}");
        imp_api_answer(s, 202, &b);
    }
}

static void text_answer(const imp_api_sink *s, const char *json)
{
    imp_buf b = {0};
    imp_buf_str(&b, json);
    imp_api_answer(s, 200, &b);
}

/* 200 as long as the server answers; which devices do not work is said beside it. */
static void health(imp_api *a, const imp_api_sink *s)
{
    imp_buf b = {0};
    char *failed = imp_failed_units_json(a->config.engine);
    imp_buf_str(&b, "{\"status\":\"ok\"");
    if (failed != NULL && strcmp(failed, "[]") != 0) imp_buf_fmt(&b, ",\"devices\":%s", failed);
    imp_buf_str(&b, "}");
    imp_free(failed);
    imp_api_answer(s, 200, &b);
}

static imp_api_call *count_tokens(imp_api *a, const imp_api_request *rq, imp_endpoint ep,
                                  const imp_api_sink *s)
{
    (void)ep;
    imp_api_count_tokens(a, rq, s);
    return NULL;
}

static imp_api_call *rerank(imp_api *a, const imp_api_request *rq, imp_endpoint ep, const imp_api_sink *s)
{
    (void)ep;
    return imp_api_rerank(a, rq, s);
}

static imp_api_call *tokenize(imp_api *a, const imp_api_request *rq, imp_endpoint ep, const imp_api_sink *s)
{
    (void)ep;
    imp_api_tokens(a, rq, false, s);
    return NULL;
}

static imp_api_call *detokenize(imp_api *a, const imp_api_request *rq, imp_endpoint ep, const imp_api_sink *s)
{
    (void)ep;
    imp_api_tokens(a, rq, true, s);
    return NULL;
}

imp_api_call *imp_api_start(imp_api *a, const imp_api_request *rq, const imp_api_sink *s)
{
    imp_dialect dialect = imp_api_dialect(rq->path);
    size_t i = imp_api_route_index(rq->path);
    if (i == IMP_N_ROUTE) {
        imp_api_error(s, dialect, 404, NULL, "not_found", NULL, 0, "there is no such endpoint");
        return NULL;
    }
    const route *r = &g_route[i];
    bool get = strcmp(rq->method, "GET") == 0 || strcmp(rq->method, "HEAD") == 0;
    get = get || (r->kind == R_RESPONSE && strcmp(rq->method, "DELETE") == 0);
    if (r->ep ? strcmp(rq->method, "POST") != 0 : !get) {
        imp_api_header h = {"Allow", imp_api_allow(rq->path)};
        imp_api_error(s, dialect, 405, NULL, "method_not_allowed", &h, 1,
                      "this endpoint does not take this method");
        return NULL;
    }
    if (r->ep && atomic_load(&a->draining)) {
        imp_api_header h = {"Retry-After", "5"};
        imp_api_error(s, dialect, 503, NULL, "not_ready", &h, 1, "the server is shutting down");
        return NULL;
    }
    switch (r->kind) {
    case R_GENERATE: return imp_api_with_model(a, rq, r->ep, imp_api_generate, s);
    case R_VECTOR: return imp_api_with_model(a, rq, r->ep, imp_api_embed, s);
    case R_COUNT: return imp_api_with_model(a, rq, r->ep, count_tokens, s);
    case R_RERANK: return imp_api_with_model(a, rq, r->ep, rerank, s);
    case R_TOKENIZE: return imp_api_with_model(a, rq, r->ep, tokenize, s);
    case R_DETOKENIZE: return imp_api_with_model(a, rq, r->ep, detokenize, s);
    case R_LORA: imp_api_adapter_list(a, s); break;
    case R_LORA_LOAD: return imp_api_adapter_change(a, rq, true, s);
    case R_LORA_UNLOAD: return imp_api_adapter_change(a, rq, false, s);
    case R_RESPONSE: imp_api_response_one(a, rq, rq->path + strlen(r->path), s); break;
    case R_MODELS: imp_api_models(a, s); break;
    case R_MODEL: imp_api_model_one(a, rq->path + strlen(r->path), s); break;
    case R_HEALTH: health(a, s); break;
    case R_READY: ready(a, s); break;
    case R_METRICS: imp_api_metrics(a, s); break;
    case R_VERSION: text_answer(s, "{\"version\":\"" IMPETUS_VERSION "\"}"); break;
    case R_TAGS: imp_api_tags(a, false, s); break;
    case R_PS: imp_api_tags(a, true, s); break;
    case R_SHOW: imp_api_show(a, rq, s); break;
    case R_HARDWARE: hardware(a, s); break;
    case R_PLAN: imp_api_plan(a, rq, s); break;
    case R_RECEIPT: imp_api_receipt(a, rq->path + strlen(r->path), s); break;
    case R_CACHE_SAVE: save_caches(a, rq, s); break;
    case R_EXPLAIN: imp_api_explain(a, rq->path + strlen(r->path), s); break;
    }
    return NULL;
}

imp_status imp_api_check(const char *path, const char *body, size_t n_body, imp_error *err)
{
    size_t i = imp_api_route_index(path);
    if (i == IMP_N_ROUTE || !g_route[i].ep || g_route[i].ep == EP_PLAN)
        return imp_fail(err, IMP_NOT_FOUND, "no endpoint with a body that the table of fields describes");
    imp_api_params p;
    imp_status st = imp_api_parse(g_route[i].ep, body, n_body, &p, err);
    imp_api_params_deinit(&p);
    return st;
}

/* ---- the object ------------------------------------------------------------------------------------ */

imp_status imp_api_new(const imp_api_config *config, imp_api **out, imp_error *err)
{
    *out = NULL;
    json_set_alloc_funcs(imp_api_json_alloc, imp_api_json_free);
    imp_api *a = imp_sys_calloc(1, sizeof *a);
    char *dir = config->lora_dir != NULL ? imp_sys_strdup(config->lora_dir) : NULL;
    if (!a || (dir == NULL && config->lora_dir != NULL) || imp_responses_new(&a->responses) != IMP_OK) {
        imp_sys_free(dir);
        imp_sys_free(a);
        return imp_fail(err, IMP_NOMEM, "out of memory");
    }
    a->config = *config;
    a->config.lora_dir = a->lora_dir = dir;
    a->start_ns = imp_now_ns();
    a->id_seed = imp_hash(&a->start_ns, sizeof a->start_ns, (uint64_t)getpid());
    atomic_init(&a->refs, 1);
    *out = a;
    return IMP_OK;
}

void imp_api_unref(imp_api *a)
{
    if (!a || atomic_fetch_sub(&a->refs, 1) != 1) return;
    imp_responses_free(a->responses);
    imp_sys_free(a->lora_dir);
    imp_sys_free(a);
}

void imp_api_set_draining(imp_api *a)
{
    atomic_store(&a->draining, true);
}

void imp_api_set_http_stats(imp_api *a, void (*get)(void *user, imp_api_http_stats *out), void *user)
{
    a->http_user = user;
    a->http_stats = get;
}

void imp_api_make_id(imp_api *a, const char *prefix, char out[48])
{
    uint64_t k = atomic_fetch_add(&a->next_id, 1);
    snprintf(out, 48, "%s%016llx%08llx", prefix, (unsigned long long)imp_hash(&k, sizeof k, a->id_seed),
             (unsigned long long)(k & 0xffffffffu));
}
