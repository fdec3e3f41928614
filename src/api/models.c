/* api/models.c - what is loaded: /v1/models, /v1/models/ID; Ollama's /api/tags, /api/ps, /api/show. */
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

static void write_model(imp_buf *b, const imp_model_info *m)
{
    imp_buf_str(b, "{\"id\":");
    imp_json_cstr(b, m->id);
    imp_buf_fmt(b, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"impetus\",\"meta\":{\"arch\":",
                (long long)m->created);
    imp_json_cstr(b, m->arch);
    imp_buf_str(b, ",\"type\":");
    imp_json_cstr(b, m->type);
    imp_buf_str(b, ",\"device\":");
    imp_json_cstr(b, m->device);
    imp_buf_str(b, ",\"template\":");
    imp_json_cstr(b, m->template_id);
    imp_buf_fmt(b,
                ",\"n_param\":%llu,\"file_bytes\":%llu,\"n_vocab\":%u,\"n_layer\":%u,\"n_embd\":%u,\"n_ctx_"
                "train\":%u,"
                "\"n_ctx\":%u,\"can_generate\":%s,\"can_embed\":%s,\"embed_dim\":%u}}",
                (unsigned long long)m->n_param, (unsigned long long)m->file_bytes, m->n_vocab, m->n_layer,
                m->n_embd, m->n_ctx_train, m->n_ctx, m->can_generate ? "true" : "false",
                m->can_embed ? "true" : "false", m->embed_dim);
}

void imp_api_models(imp_api *a, const imp_api_sink *s)
{
    imp_model **list;
    size_t n = imp_api_list(a, &list);
    imp_buf b = {0};
    imp_buf_str(&b, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < n; i++) {
        if (i) imp_buf_str(&b, ",");
        write_model(&b, imp_model_get_info(list[i]));
    }
    imp_buf_str(&b, "]}");
    b.failed |= list == NULL;
    imp_api_list_free(list, n);
    imp_api_answer(s, 200, &b);
}

void imp_api_model_one(imp_api *a, const char *id, const imp_api_sink *s)
{
    imp_model *m = imp_engine_find(a->config.engine, id);
    if (!m) {
        imp_error err = {0};
        imp_fail_field(&err, IMP_NOT_FOUND, "model", "the model '%.200s' is not loaded here", id);
        imp_api_fail(s, IMP_OPENAI, &err);
        return;
    }
    imp_buf b = {0};
    write_model(&b, imp_model_get_info(m));
    imp_model_release(m);
    imp_api_answer(s, 200, &b);
}

static bool is_gguf(const imp_model_info *m)
{
    size_t n = strlen(m->path);
    return n >= 5 && strcmp(m->path + n - 5, ".gguf") == 0;
}

/* "details" as Ollama has it, with the braces. */
static void write_details(imp_buf *b, const imp_model_info *m)
{
    char size[32], quant[32];
    if (m->n_param >= 1000000000u)
        snprintf(size, sizeof size, "%.1fB", (double)m->n_param * 1e-9);
    else if (m->n_param >= 1000000u)
        snprintf(size, sizeof size, "%.1fM", (double)m->n_param * 1e-6);
    else
        snprintf(size, sizeof size, "%.0fK", (double)m->n_param * 1e-3);
    snprintf(quant, sizeof quant, "%s", m->type ? m->type : "unknown");
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

static void write_time(char out[32], int64_t at)
{
    time_t t = (time_t)at;
    struct tm tm;
    snprintf(out, 32, "1970-01-01T00:00:00Z");
    if (gmtime_r(&t, &tm)) strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

/* A line of /api/tags; of /api/ps when running: what stays loaded until the server ends expires in the far future. */
static void write_tag(imp_buf *b, const imp_model *model, bool running)
{
    const imp_model_info *m = imp_model_get_info(model);
    imp_memory mem;
    char when[32];
    imp_model_get_memory(model, &mem);
    write_time(when, running ? 253402300799 : m->created);
    imp_buf_str(b, "{\"name\":");
    imp_json_cstr(b, m->id);
    imp_buf_str(b, ",\"model\":");
    imp_json_cstr(b, m->id);
    imp_buf_fmt(b, ",\"%s\":\"%s\",\"size\":%llu,\"digest\":\"\",", running ? "expires_at" : "modified_at",
                when, (unsigned long long)(running ? mem.total : m->file_bytes));
    if (running) {
        bool own = strncmp(m->device, "cpu", 3) != 0 && strncmp(m->device, "ref", 3) != 0;
        imp_buf_fmt(b, "\"size_vram\":%llu,\"context_length\":%u,",
                    own ? (unsigned long long)mem.total : 0ull, m->n_ctx);
    }
    imp_buf_str(b, "\"details\":");
    write_details(b, m);
    imp_buf_str(b, "}");
}

void imp_api_tags(imp_api *a, bool running, const imp_api_sink *s)
{
    imp_model **list;
    size_t n = imp_api_list(a, &list);
    imp_buf b = {0};
    imp_buf_str(&b, "{\"models\":[");
    for (size_t i = 0; i < n; i++) {
        if (i) imp_buf_str(&b, ",");
        write_tag(&b, list[i], running);
    }
    imp_buf_str(&b, "]}");
    b.failed |= list == NULL;
    imp_api_list_free(list, n);
    imp_api_answer(s, 200, &b);
}

static void write_show(imp_buf *b, const imp_model *model)
{
    const imp_model_info *m = imp_model_get_info(model);
    const imp_toolfmt *f = imp_model_toolfmt(model);
    char when[32];
    write_time(when, m->created);
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
    imp_model *m = NULL;
    if (imp_api_parse(EP_SHOW, rq->body, rq->n_body, &p, &err) == IMP_OK)
        m = imp_api_model_named(a, p.model, IMP_OLLAMA, &err);
    imp_api_params_deinit(&p);
    if (m == NULL) {
        imp_api_fail(s, IMP_OLLAMA, &err);
        return;
    }
    imp_buf b = {0};
    write_show(&b, m);
    imp_model_release(m);
    imp_api_answer(s, 200, &b);
}
