/* api/lora.c - adapters (LoRA): which of them a request means, the list of them, and loading one while the server runs.
 *
 * Idea:    an adapter's name stands where a model's name may ("model": "NAME"), as vLLM has it; or the field "lora" lists
 *          numbers and scales, as llama.cpp has it. Without either a request gets the model alone.
 *          POST /v1/load_lora_adapter and /v1/unload_lora_adapter work where the server was given a folder for that: what a
 *          client names is looked for below it, nowhere else. Reading a file takes time, so it is done on another thread.
 * Always:  a name or number that cannot be had is refused, never left out. */
#include "api/internal.h"

enum { MAX_PATH_BYTES = 1024 };

/* ---- what a request means ------------------------------------------------------------------------------- */

static imp_status take(imp_api_lora *out, imp_model *m, const char *name, uint32_t id, imp_error *err)
{
    imp_status s = imp_model_adapter(m, name, id, &out->use[out->n]);
    if (s == IMP_OK) out->n++;
    if (s == IMP_NOT_READY)
        return imp_fail(err, s, "the adapter is not loaded for this model yet; try again in a moment");
    return s;
}

/* The name when it is an adapter's; NULL: it is the model's own, or another name for it. */
static imp_status by_name(imp_api_lora *out, imp_model *m, const char *name, const char **used,
                          imp_error *err)
{
    char cut[257];
    size_t n = strlen(name), tail = sizeof ":latest" - 1;
    *used = NULL;
    imp_status s = take(out, m, name, 0, err);
    if (s == IMP_OK) *used = name;
    if (s != IMP_NOT_FOUND || n <= tail || n >= sizeof cut || strcmp(name + n - tail, ":latest") != 0)
        return s == IMP_NOT_FOUND ? IMP_OK : s;
    memcpy(cut, name, n - tail); /* as Ollama's clients write it */
    cut[n - tail] = '\0';
    s = take(out, m, cut, 0, err);
    if (s == IMP_OK) *used = name;
    return s == IMP_NOT_FOUND ? IMP_OK : s;
}

static imp_status by_list(imp_api_lora *out, imp_model *m, const json_t *list, imp_error *err)
{
    if (!json_is_array(list) || json_array_size(list) > IMP_API_MAX_LORA)
        return imp_fail_field(err, IMP_INVALID, "lora", "'lora' must be a list of at most %d adapters",
                              IMP_API_MAX_LORA);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i), *id = json_object_get(v, "id"),
                     *scale = json_object_get(v, "scale");
        bool ok = json_is_integer(id) && json_integer_value(id) >= 0 && json_integer_value(id) < 1 << 20 &&
                  (scale == NULL || json_is_number(scale)) &&
                  json_object_size(v) == (scale != NULL ? 2u : 1u);
        double s = scale != NULL ? json_number_value(scale) : 0;
        if (!ok || s > 1e3 || s < -1e3)
            return imp_fail_field(
                err, IMP_INVALID, "lora",
                "entry %zu of 'lora' must be {\"id\": NUMBER, \"scale\": NUMBER from -1000 to 1000}", i);
        for (size_t k = 0; k < i; k++)
            if (json_integer_value(json_object_get(json_array_get(list, k), "id")) == json_integer_value(id))
                return imp_fail_field(err, IMP_INVALID, "lora", "'lora' names adapter %lld twice",
                                      (long long)json_integer_value(id));
        imp_status st = take(out, m, NULL, (uint32_t)json_integer_value(id), err);
        if (st == IMP_NOT_FOUND)
            return imp_fail_field(err, IMP_INVALID, "lora", "there is no adapter number %lld here",
                                  (long long)json_integer_value(id));
        IMP_TRY(st);
        if (scale != NULL) out->use[out->n - 1].scale = (float)s;
    }
    return IMP_OK;
}

imp_status imp_api_adapters(const char *model, const json_t *list, imp_model *m, imp_api_lora *out,
                            imp_error *err)
{
    *out = (imp_api_lora){0};
    imp_status s = IMP_OK;
    if (model != NULL && strcmp(model, imp_model_get_info(m)->id) != 0)
        s = by_name(out, m, model, &out->name, err);
    if (s == IMP_OK && list != NULL && out->n > 0)
        s = imp_fail_field(err, IMP_INVALID, "lora",
                           "'model' names an adapter, and 'lora' too: leave one of them out");
    if (s == IMP_OK && list != NULL) s = by_list(out, m, list, err);
    if (s != IMP_OK) imp_api_adapters_release(out);
    return s;
}

void imp_api_adapters_release(imp_api_lora *l)
{
    for (size_t i = 0; i < l->n; i++) imp_adapter_unref(l->use[i].adapter);
    l->n = 0;
}

/* ---- lists ------------------------------------------------------------------------------------------------ */

static void write_model(imp_buf *b, const imp_adapter_info *k)
{
    imp_buf_str(b, "{\"id\":");
    imp_json_cstr(b, k->name);
    imp_buf_fmt(b, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"impetus\",\"root\":",
                (long long)k->created);
    imp_json_cstr(b, k->name);
    imp_buf_str(b, ",\"parent\":");
    imp_json_cstr(b, k->base);
    imp_buf_fmt(b, ",\"meta\":{\"adapter\":%u,\"scale\":", k->id);
    imp_json_f32(b, k->scale);
    imp_buf_fmt(b, ",\"rank\":%u,\"bytes\":%llu}}", k->rank, (unsigned long long)k->bytes);
}

void imp_api_adapter_models(imp_api *a, bool first, imp_buf *b)
{
    imp_adapter_info *list;
    size_t n;
    b->failed |= imp_engine_adapters(a->config.engine, &list, &n) != IMP_OK;
    for (size_t i = 0; i < n; i++) {
        if (!first || i > 0) imp_buf_str(b, ",");
        write_model(b, &list[i]);
    }
    imp_free(list);
}

bool imp_api_adapter_one(imp_api *a, const char *name, imp_buf *b)
{
    imp_adapter_info *list;
    size_t n;
    bool found = false;
    b->failed |= imp_engine_adapters(a->config.engine, &list, &n) != IMP_OK;
    for (size_t i = 0; i < n && !found; i++) {
        found = strcmp(list[i].name, name) == 0;
        if (found) write_model(b, &list[i]);
    }
    imp_free(list);
    return found;
}

void imp_api_adapter_list(imp_api *a, const imp_api_sink *s)
{
    imp_adapter_info *list;
    size_t n;
    imp_buf b = {0};
    b.failed = imp_engine_adapters(a->config.engine, &list, &n) != IMP_OK;
    imp_buf_str(&b, "[");
    for (size_t i = 0; i < n; i++) {
        imp_buf_fmt(&b, "%s{\"id\":%u,\"path\":", i ? "," : "", list[i].id);
        imp_json_cstr(&b, list[i].name);                      /* clients learn no paths */
        imp_buf_str(&b, ",\"scale\":0.0,\"default_scale\":"); /* a request that names none gets none */
        imp_json_f32(&b, list[i].scale);
        imp_buf_str(&b, "}");
    }
    imp_buf_str(&b, "]");
    imp_free(list);
    imp_api_answer(s, 200, &b);
}

void imp_api_adapter_metrics(imp_api *a, imp_buf *b)
{
    imp_adapter_info *list;
    size_t n;
    b->failed |= imp_engine_adapters(a->config.engine, &list, &n) != IMP_OK;
    imp_buf_fmt(
        b,
        "# HELP vllm:lora_requests_info Adapters that requests use; the value is the time in seconds.\n"
        "# TYPE vllm:lora_requests_info gauge\nvllm:lora_requests_info{max_lora=\"%zu\"",
        n);
    for (int running = 1; running >= 0; running--) {
        imp_buf_str(b, running ? ",running_lora_adapters=\"" : "\",waiting_lora_adapters=\"");
        for (size_t i = 0, k = 0; i < n; i++) {
            if ((running ? list[i].n_running : list[i].n_waiting) == 0) continue;
            if (k++ > 0) imp_buf_str(b, ",");
            imp_api_label(b, list[i].name);
        }
    }
    imp_buf_fmt(b, "\"} %.3f\n", (double)imp_sys_clock_ns() * 1e-9);
    imp_free(list);
}

/* ---- while the server runs ------------------------------------------------------------------------------------ */

typedef struct change_call {
    imp_api_call base; /* first */
    char name[128], parent[256], path[4096];
    float scale;
    bool load;
} change_call;

/* A path below the folder, in no way out of it. */
static bool is_inside(const char *p)
{
    size_t n = strlen(p);
    if (n == 0 || n > MAX_PATH_BYTES || p[0] == '/' || strchr(p, '\\') != NULL) return false;
    for (const char *s = p; s != NULL; s = strchr(s, '/')) {
        s += *s == '/';
        size_t k = strcspn(s, "/");
        if (k == 0 || (k == 1 && s[0] == '.') || (k == 2 && s[0] == '.' && s[1] == '.')) return false;
    }
    return true;
}

static imp_status wrong(const char *key, const char *what, imp_error *err)
{
    return imp_fail_field(err, IMP_INVALID, key, "'%.60s' must be %s", key, what);
}

/* The only model that there is, when none is named. */
static imp_status only_model(imp_api *a, change_call *c, imp_error *err)
{
    imp_known_model *list;
    size_t n;
    if (imp_engine_known(a->config.engine, &list, &n) != IMP_OK)
        return imp_fail(err, IMP_NOMEM, "out of memory");
    if (n == 1) (void)snprintf(c->parent, sizeof c->parent, "%s", list[0].id);
    imp_free(list);
    if (n == 1) return IMP_OK;
    return imp_fail_field(err, IMP_INVALID, "base_model_name",
                          "'base_model_name' is missing, and there are %zu models: name one", n);
}

static imp_status read_change(imp_api *a, const json_t *root, change_call *c, imp_error *err)
{
    const char *key;
    json_t *v;
    const char *file = NULL;
    json_object_foreach((json_t *)(uintptr_t)root, key, v)
    {
        if (strcmp(key, "lora_name") == 0 && json_is_string(v) && json_string_length(v) < sizeof c->name)
            (void)snprintf(c->name, sizeof c->name, "%s", json_string_value(v));
        else if (strcmp(key, "lora_path") == 0 && json_is_string(v) && c->load)
            file = json_string_value(v);
        else if (strcmp(key, "base_model_name") == 0 && json_is_string(v) && c->load &&
                 json_string_length(v) < sizeof c->parent)
            (void)snprintf(c->parent, sizeof c->parent, "%s", json_string_value(v));
        else if (strcmp(key, "scale") == 0 && json_is_number(v) && c->load)
            c->scale = (float)json_number_value(v);
        else if (!json_is_null(v))
            return wrong(
                key,
                "one of: lora_name; and for loading lora_path, base_model_name (strings), scale (a number)",
                err);
    }
    if (c->name[0] == '\0') return wrong("lora_name", "a name of 1 to 127 bytes", err);
    if (!c->load) return IMP_OK;
    if (file == NULL || !is_inside(file))
        return wrong("lora_path", "a path below the server's folder for adapters (--lora-dir)", err);
    (void)snprintf(c->path, sizeof c->path, "%s/%s", a->config.lora_dir, file);
    return c->parent[0] != '\0' ? IMP_OK : only_model(a, c, err);
}

/* What went wrong, without paths. */
static void say_failed(const change_call *c, imp_error *err)
{
    const char *dir = c->base.api->config.lora_dir, *at;
    size_t n = strlen(dir);
    while ((at = strstr(err->text, dir)) != NULL) {
        char *to = err->text + (at - err->text);
        memmove(to, to + n, strlen(to + n) + 1);
    }
    imp_api_fail(&c->base.sink, c->base.dialect, err);
}

static void change(void *arg)
{
    change_call *c = arg;
    imp_engine *e = c->base.api->config.engine;
    imp_error err = {0};
    imp_adapter_source s = {.name = c->name, .path = c->path, .base = c->parent, .scale = c->scale};
    imp_status st =
        c->load ? imp_engine_add_adapter(e, &s, &err) : imp_engine_remove_adapter(e, c->name, &err);
    if (st == IMP_OK) {
        imp_buf b = {0};
        imp_buf_fmt(&b, "{\"status\":\"%s\",\"lora_name\":", c->load ? "loaded" : "unloaded");
        imp_json_cstr(&b, c->name);
        imp_buf_str(&b, "}");
        imp_api_answer(&c->base.sink, 200, &b);
    } else {
        say_failed(c, &err);
    }
    imp_call_unref(&c->base);
}

imp_api_call *imp_api_adapter_change(imp_api *a, const imp_api_request *rq, bool load, const imp_api_sink *s)
{
    imp_error err = {0};
    json_t *root = NULL;
    if (a->config.lora_dir == NULL || rq->who.limited) {
        imp_api_error(s, IMP_OPENAI, 403, NULL, "not_allowed", NULL, 0,
                      rq->who.limited ? "this key may not change the server's adapters"
                                      : "this server takes no adapters while it runs (--lora-dir)");
        return NULL;
    }
    change_call *c = imp_sys_calloc(1, sizeof *c);
    imp_status st = c != NULL ? imp_api_json(rq->body, rq->n_body, &root, &err)
                              : imp_fail(&err, IMP_NOMEM, "out of memory");
    if (st == IMP_OK) {
        c->load = load;
        c->scale = 1;
        st = read_change(a, root, c, &err);
    }
    imp_api_json_release(&root);
    if (st == IMP_OK && imp_call_init(&c->base, a, s, IMP_OPENAI, 1) != IMP_OK)
        st = imp_fail(&err, IMP_NOMEM, "out of memory");
    if (st != IMP_OK) {
        imp_sys_free(c);
        imp_api_fail(s, IMP_OPENAI, &err);
        return NULL;
    }
    if (s->later == NULL || !s->later(s->user, change, c)) change(c);
    return &c->base;
}
