/* api/receipts.c - what ran where: the "impetus" object of requests and answers, /api/receipts, /api/explain, /api/plan.
 *
 * Idea:    the engine writes its records as JSON itself; here they are put where a client asks for them. */
#include <stdio.h>
#include <stdlib.h>

#include "api/internal.h"

imp_status imp_api_impetus(imp_api_params *p, imp_error *err)
{
    if (!p->impetus) return IMP_OK;
    if (!json_is_object(p->impetus))
        return imp_fail_field(err, IMP_INVALID, "impetus", "'impetus' must be an object");
    const char *key;
    json_t *v;
    json_object_foreach(p->impetus, key, v)
    {
        if (json_is_null(v)) continue;
        if (strcmp(key, "receipt") == 0) {
            if (!json_is_boolean(v))
                return imp_fail_field(err, IMP_INVALID, "impetus.receipt",
                                      "'impetus.receipt' must be a boolean");
            p->want_receipt = json_is_true(v);
        } else if (strcmp(key, "require") == 0) {
            size_t n = json_is_string(v) ? json_string_length(v) : 0;
            if (n == 0 || n > 63)
                return imp_fail_field(err, IMP_INVALID, "impetus.require",
                                      "'impetus.require' must be the name of a device, such as \"cpu0\"");
            p->require = json_string_value(v);
        } else {
            return imp_fail_field(err, IMP_INVALID, "impetus",
                                  "'impetus.%.60s' is not a field that this server understands", key);
        }
    }
    return IMP_OK;
}

void imp_api_write_receipts(const imp_api_call *c, imp_buf *b)
{
    imp_buf_str(b, ",\"impetus\":{\"receipt\":");
    if (c->n_slot != 1) imp_buf_str(b, "[");
    for (size_t i = 0; i < c->n_slot; i++) {
        char *text = imp_receipt_json(c->api->config.engine, c->slot[i].id);
        imp_buf_fmt(b, "%s%s", i ? "," : "", text ? text : "null");
        imp_free(text);
    }
    if (c->n_slot != 1) imp_buf_str(b, "]");
    imp_buf_str(b, "}");
}

static void send(const imp_api_sink *s, char *text)
{
    if (!text) {
        imp_api_error(s, IMP_OLLAMA, 404, NULL, "not_found", NULL, 0,
                      "that request is not known (any more); the last 256 that ended are, and 'last'");
        return;
    }
    imp_buf b = {0};
    imp_buf_str(&b, text);
    imp_free(text);
    imp_api_answer(s, 200, &b);
}

/* 0: the last; UINT64_MAX: not an id. */
static uint64_t parse_id(const char *text)
{
    if (strcmp(text, "last") == 0) return 0;
    uint64_t id = 0;
    for (const char *p = text; *p; p++) {
        if (*p < '0' || *p > '9' || id > UINT64_MAX / 100) return UINT64_MAX;
        id = id * 10 + (uint64_t)(*p - '0');
    }
    return *text && id ? id : UINT64_MAX;
}

void imp_api_receipt(imp_api *a, const char *id, const imp_api_sink *s)
{
    send(s, imp_receipt_json(a->config.engine, parse_id(id)));
}

void imp_api_explain(imp_api *a, const char *id, const imp_api_sink *s)
{
    send(s, imp_explain_json(a->config.engine, parse_id(id)));
}

/* ---- /api/plan --------------------------------------------------------------------------------------- */

typedef struct plan_request {
    const char *model;
    int64_t prompt, gen, batch, ctx; /* ctx 0: the one that is served */
} plan_request;

static imp_status plan_fields(json_t *root, plan_request *out, imp_error *err)
{
    *out = (plan_request){.prompt = 512, .gen = 128, .batch = 1};
    const char *key;
    json_t *v;
    json_object_foreach(root, key, v)
    {
        int64_t *n = strcmp(key, "prompt") == 0  ? &out->prompt
                     : strcmp(key, "gen") == 0   ? &out->gen
                     : strcmp(key, "batch") == 0 ? &out->batch
                     : strcmp(key, "ctx") == 0   ? &out->ctx
                                                 : NULL;
        if (json_is_null(v)) continue;
        if (strcmp(key, "model") == 0 && json_is_string(v)) {
            out->model = json_string_value(v);
        } else if (n && json_is_integer(v) && json_integer_value(v) >= 1 &&
                   json_integer_value(v) <= 16777216) {
            *n = json_integer_value(v);
        } else {
            return imp_fail_field(
                err, IMP_INVALID, key,
                "'%.60s' must be one of: model (a string), prompt, gen, batch, ctx (1 to 16777216)", key);
        }
    }
    return IMP_OK;
}

static void write_memory(const imp_memory *m, imp_buf *b)
{
    imp_buf_fmt(b, "\"memory\":{\"weights\":%llu,\"kv\":%llu,\"scratch\":%llu,\"other\":%llu,\"total\":%llu}",
                (unsigned long long)m->weights, (unsigned long long)m->kv, (unsigned long long)m->scratch,
                (unsigned long long)m->other, (unsigned long long)m->total);
    imp_buf_fmt(b, ",\"fits\":%s,\"largest_ctx\":%u", m->fits ? "true" : "false", m->largest_ctx);
}

static imp_status write_plan(imp_api *a, imp_model *m, const plan_request *r, imp_buf *b, imp_error *err)
{
    imp_memory mem;
    imp_model_get_memory(m, &mem);
    if (r->ctx) IMP_TRY(imp_model_plan(m, (uint32_t)r->ctx, &mem, err));
    if (!r->ctx && (uint64_t)(r->prompt + r->gen) > imp_model_get_info(m)->n_ctx)
        return imp_fail_field(
            err, IMP_NO_FIT, "prompt",
            "%lld prompt and %lld generated tokens do not fit the context of %u that is served",
            (long long)r->prompt, (long long)r->gen, imp_model_get_info(m)->n_ctx);
    char *text =
        imp_candidates_json(a->config.engine, m, (uint32_t)r->prompt, (uint32_t)r->gen, (uint32_t)r->batch);
    if (!text) return imp_fail(err, IMP_NOMEM, "out of memory");
    imp_buf_str(b, "{\"model\":");
    imp_json_cstr(b, imp_model_get_info(m)->id);
    imp_buf_str(b, ",");
    write_memory(&mem, b);
    imp_buf_fmt(b, ",%s", text + 1); /* goes on with "candidates" and ends the object */
    imp_free(text);
    return IMP_OK;
}

static imp_status plan_answer(imp_api *a, json_t *root, imp_buf *b, imp_error *err)
{
    plan_request r;
    IMP_TRY(plan_fields(root, &r, err));
    imp_model *m = r.model ? imp_engine_find(a->config.engine, r.model) : NULL;
    if (!m && !r.model) (void)imp_engine_models(a->config.engine, &m, 1);
    if (!m)
        return imp_fail_field(err, IMP_NOT_FOUND, "model",
                              "the model '%.200s' is not loaded here; a request that names it loads it, and "
                              "the list of models says which there are",
                              r.model ? r.model : "");
    imp_status st = write_plan(a, m, &r, b, err);
    imp_model_release(m);
    return st;
}

void imp_api_plan(imp_api *a, const imp_api_request *rq, const imp_api_sink *s)
{
    imp_error err = {0};
    imp_buf b = {0};
    json_t *root = NULL;
    imp_status st = imp_api_json(rq->body, rq->n_body, &root, &err);
    if (st == IMP_OK) st = plan_answer(a, root, &b, &err);
    if (st == IMP_OK) {
        imp_api_answer(s, 200, &b);
    } else {
        imp_buf_deinit(&b);
        imp_api_fail(s, IMP_OLLAMA, &err);
    }
    imp_api_json_release(&root);
}
