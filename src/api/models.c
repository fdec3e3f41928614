/* api/models.c - what there is: /v1/models, /v1/models/ID; Ollama's /api/tags, /api/ps, /api/show.
 *
 * Idea:    every model that a request may name is listed, with what its file says; what only a loaded one has (device,
 *          context, memory) is added for those. */
#include "api/internal.h"

#include <ctype.h>
#include <time.h>

size_t imp_api_list(imp_api *a, imp_model ***out)
{
    *out = NULL;
    size_t cap = 16;
    for (;;) {
        imp_model **list = imp_sys_calloc(cap, sizeof(imp_model *));
        if (!list) return 0;
        size_t n = imp_engine_models(a->config.engine, list, cap);
        if (n <= cap) {
            *out = list;
            return n;
        }
        for (size_t i = 0; i < cap; i++) imp_model_release(list[i]);
        imp_sys_free(list); /* more were loaded meanwhile */
        cap = n;
    }
}

void imp_api_list_free(imp_model **list, size_t n)
{
    for (size_t i = 0; list && i < n; i++) imp_model_release(list[i]);
    imp_sys_free(list);
}

static const char *bool_text(bool b)
{
    return b ? "true" : "false";
}

/* m: when it is loaded, else NULL. */
static void write_model(imp_buf *b, const imp_known_model *k, const imp_model *m)
{
    static const char *const state[] = {"unloaded", "loading", "loaded"};
    const imp_model_info *i = m != NULL ? imp_model_get_info(m) : NULL;
    imp_buf_str(b, "{\"id\":");
    imp_json_cstr(b, k->id);
    imp_buf_fmt(
        b, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"impetus\",\"status\":{\"value\":\"%s\"}",
        (long long)(i != NULL ? i->created : k->modified), state[k->state]);
    imp_buf_str(b, ",\"meta\":{\"arch\":");
    imp_json_cstr(b, k->arch);
    imp_buf_str(b, ",\"type\":");
    imp_json_cstr(b, k->type);
    if (i != NULL) {
        imp_buf_str(b, ",\"device\":");
        imp_json_cstr(b, i->device);
        imp_buf_str(b, ",\"template\":");
        imp_json_cstr(b, i->template_id);
        imp_buf_fmt(b, ",\"n_ctx\":%u,\"embed_dim\":%u", i->n_ctx, i->embed_dim);
    }
    imp_buf_fmt(b,
                ",\"n_param\":%llu,\"file_bytes\":%llu,\"n_vocab\":%u,\"n_layer\":%u,\"n_embd\":%u,"
                "\"n_ctx_train\":%u,\"can_generate\":%s,\"can_embed\":%s,\"pinned\":%s}}",
                (unsigned long long)k->n_param, (unsigned long long)k->file_bytes, k->n_vocab, k->n_layer,
                k->n_embd, k->n_ctx_train, bool_text(k->can_generate), bool_text(k->can_embed),
                bool_text(k->pinned));
}

/* A reference to what the list says is loaded; NULL: it is not, or not any more. */
static imp_model *loaded(imp_api *a, const imp_known_model *k)
{
    return k->state == IMP_MODEL_LOADED ? imp_engine_find(a->config.engine, k->id) : NULL;
}

void imp_api_models(imp_api *a, const imp_api_sink *s)
{
    imp_known_model *list;
    size_t n;
    imp_buf b = {0};
    b.failed = imp_engine_known(a->config.engine, &list, &n) != IMP_OK;
    imp_buf_str(&b, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < n; i++) {
        imp_model *m = loaded(a, &list[i]);
        if (i) imp_buf_str(&b, ",");
        write_model(&b, &list[i], m);
        imp_model_release(m);
    }
    imp_api_adapter_models(a, n == 0, &b);
    imp_buf_str(&b, "]}");
    imp_free(list);
    imp_api_answer(s, 200, &b);
}

/* The line of one model, by any name that a request may use. NOT_FOUND, NOMEM. */
static imp_status find_known(imp_api *a, const char *id, imp_dialect dialect, imp_known_model *out,
                             imp_error *err)
{
    imp_known_model *list;
    size_t n, found;
    imp_model *m = imp_api_model_named(a, id, dialect, NULL);
    char name[256];
    snprintf(name, sizeof name, "%s", m != NULL ? imp_model_get_info(m)->id : id);
    imp_model_release(m);
    size_t k = strlen(name), tail = sizeof ":latest" - 1;
    if (imp_engine_known(a->config.engine, &list, &n) != IMP_OK)
        return imp_fail(err, IMP_NOMEM, "out of memory");
    for (found = 0; found < n && strcmp(list[found].id, name) != 0; found++) {
    }
    if (found == n && dialect == IMP_OLLAMA && k > tail && strcmp(name + k - tail, ":latest") == 0) {
        name[k - tail] = '\0';
        for (found = 0; found < n && strcmp(list[found].id, name) != 0; found++) {
        }
    }
    if (found < n) *out = list[found];
    imp_free(list);
    if (found < n) return IMP_OK;
    return imp_fail_field(err, IMP_NOT_FOUND, "model",
                          "the model '%.200s' is not known here; the list of models says which are", id);
}

void imp_api_model_one(imp_api *a, const char *id, const imp_api_sink *s)
{
    imp_error err = {0};
    imp_known_model k;
    imp_buf b = {0};
    if (imp_api_adapter_one(a, id, &b)) {
        imp_api_answer(s, 200, &b);
        return;
    }
    if (find_known(a, id, IMP_OPENAI, &k, &err) != IMP_OK) {
        imp_buf_deinit(&b);
        imp_api_fail(s, IMP_OPENAI, &err);
        return;
    }
    imp_model *m = loaded(a, &k);
    write_model(&b, &k, m);
    imp_model_release(m);
    imp_api_answer(s, 200, &b);
}

static bool is_gguf(const imp_known_model *m)
{
    size_t n = strlen(m->path);
    return n >= 5 && strcmp(m->path + n - 5, ".gguf") == 0;
}

/* "details" as Ollama has it, with the braces. */
static void write_details(imp_buf *b, const imp_known_model *m)
{
    char size[32], quant[32];
    if (m->n_param >= 1000000000u)
        snprintf(size, sizeof size, "%.1fB", (double)m->n_param * 1e-9);
    else if (m->n_param >= 1000000u)
        snprintf(size, sizeof size, "%.1fM", (double)m->n_param * 1e-6);
    else
        snprintf(size, sizeof size, "%.0fK", (double)m->n_param * 1e-3);
    snprintf(quant, sizeof quant, "%s", m->type[0] ? m->type : "unknown");
    for (char *q = quant; *q; q++) *q = (char)toupper((unsigned char)*q);
    imp_buf_fmt(b,
                "{\"parent_model\":\"\",\"format\":\"%s\",\"family\":", is_gguf(m) ? "gguf" : "safetensors");
    imp_json_cstr(b, m->arch);
    imp_buf_str(b, ",\"families\":[");
    imp_json_cstr(b, m->arch);
    imp_buf_fmt(b, "],\"parameter_size\":\"%s\",\"quantization_level\":", size);
    imp_json_cstr(b, quant);
    imp_buf_str(b, "}");
}

void imp_api_time(char out[32], int64_t at)
{
    time_t t = (time_t)at;
    struct tm tm;
    snprintf(out, 32, "1970-01-01T00:00:00Z");
    if (gmtime_r(&t, &tm)) strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

/* A line of /api/tags; with a loaded model, of /api/ps. What stays loaded expires in the far future. */
static void write_tag(imp_buf *b, const imp_known_model *k, const imp_model *model)
{
    static const int64_t far = 253402300799; /* the end of the year 9999 */
    imp_memory mem = {0};
    char when[32];
    int64_t end = k->expires_s < 0 ? far : (int64_t)time(NULL) + (int64_t)k->expires_s;
    if (model != NULL) imp_model_get_memory(model, &mem);
    imp_api_time(when, model != NULL ? end : k->modified);
    imp_buf_str(b, "{\"name\":");
    imp_json_cstr(b, k->id);
    imp_buf_str(b, ",\"model\":");
    imp_json_cstr(b, k->id);
    imp_buf_fmt(b, ",\"%s\":\"%s\",\"size\":%llu,\"digest\":\"\",",
                model != NULL ? "expires_at" : "modified_at", when,
                (unsigned long long)(model != NULL ? mem.total : k->file_bytes));
    if (model != NULL) {
        const imp_model_info *m = imp_model_get_info(model);
        bool own = strncmp(m->device, "cpu", 3) != 0 && strncmp(m->device, "ref", 3) != 0;
        imp_buf_fmt(b, "\"size_vram\":%llu,\"context_length\":%u,\"device\":",
                    own ? (unsigned long long)mem.total : 0ull, m->n_ctx);
        imp_json_cstr(b, m->device);
        imp_buf_fmt(b, ",\"pinned\":%s,", bool_text(k->pinned));
    }
    imp_buf_str(b, "\"details\":");
    write_details(b, k);
    imp_buf_str(b, "}");
}

void imp_api_tags(imp_api *a, bool running, const imp_api_sink *s)
{
    imp_known_model *list;
    size_t n, n_line = 0;
    imp_buf b = {0};
    b.failed = imp_engine_known(a->config.engine, &list, &n) != IMP_OK;
    imp_buf_str(&b, "{\"models\":[");
    for (size_t i = 0; i < n; i++) {
        imp_model *m = running ? loaded(a, &list[i]) : NULL;
        if (running && m == NULL) continue;
        if (n_line++ > 0) imp_buf_str(&b, ",");
        write_tag(&b, &list[i], m);
        imp_model_release(m);
    }
    imp_buf_str(&b, "]}");
    imp_free(list);
    imp_api_answer(s, 200, &b);
}

/* model: when it is loaded, else NULL: how it calls tools is found out by loading it. */
static void write_show(imp_buf *b, const imp_known_model *m, const imp_model *model)
{
    const imp_toolfmt *f = model != NULL ? imp_model_toolfmt(model) : NULL;
    char when[32];
    imp_api_time(when, m->modified);
    imp_buf_fmt(b, "{\"modified_at\":\"%s\",\"details\":", when);
    write_details(b, m);
    imp_buf_str(b, ",\"model_info\":{\"general.architecture\":");
    imp_json_cstr(b, m->arch);
    imp_buf_fmt(b, ",\"general.parameter_count\":%llu", (unsigned long long)m->n_param);
    const struct {
        const char *key;
        uint32_t value;
    } number[] = {{"context_length", m->n_ctx_train},
                  {"embedding_length", m->n_embd},
                  {"block_count", m->n_layer},
                  {"attention.head_count", m->n_head},
                  {"attention.head_count_kv", m->n_kv_head},
                  {"vocab_size", m->n_vocab}};
    for (size_t i = 0; i < IMP_COUNT(number); i++)
        imp_buf_fmt(b, ",\"%s.%s\":%u", m->arch, number[i].key, number[i].value);
    const struct {
        const char *name;
        bool has;
    } can[] = {{"completion", m->can_generate},
               {"embedding", m->can_embed},
               {"tools", imp_toolfmt_name(f) != NULL},
               {"thinking", imp_toolfmt_thinks(f)}};
    imp_buf_str(b, "},\"capabilities\":[");
    for (size_t i = 0, n = 0; i < IMP_COUNT(can); i++)
        if (can[i].has) imp_buf_fmt(b, "%s\"%s\"", n++ ? "," : "", can[i].name);
    imp_buf_str(b, "],\"tool_format\":"); /* ours: how calls are written, or null */
    imp_json_cstr(b, imp_toolfmt_name(f));
    imp_buf_str(b, "}");
}

void imp_api_show(imp_api *a, const imp_api_request *rq, const imp_api_sink *s)
{
    imp_api_params p;
    imp_error err = {0};
    imp_known_model k;
    imp_status st = imp_api_parse(EP_SHOW, rq->body, rq->n_body, &p, &err);
    if (st == IMP_OK) st = find_known(a, p.model ? p.model : "", IMP_OLLAMA, &k, &err);
    imp_api_params_deinit(&p);
    if (st != IMP_OK) {
        imp_api_fail(s, IMP_OLLAMA, &err);
        return;
    }
    imp_buf b = {0};
    imp_model *m = loaded(a, &k);
    write_show(&b, &k, m);
    imp_model_release(m);
    imp_api_answer(s, 200, &b);
}
