/* app/model.c - MODEL arguments and the engine that the options ask for. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "app/app.h"
#include "plan/place.h"
#include "dev/coreml/coreml.h"
#include "dev/cpu/pack_cache.h"

static imp_status not_a_path(const char *model, imp_error *err)
{
    if (!strncmp(model, "hf:", 3))
        return imp_fail(
            err, IMP_UNSUPPORTED,
            "'%.200s': fetching from Hugging Face is not built yet; download the model and give its path",
            model);
    return imp_fail(
        err, IMP_NOT_FOUND,
        "there is no file or folder '%.200s' and no model of that name; give the path of a GGUF file "
        "or of a folder with config.json and safetensors",
        model);
}

imp_status app_model_path(app *a, const char *model, const char **path, imp_error *err)
{
    *path = model;
    if (!*model) return imp_fail(err, IMP_INVALID, "the model's path is empty");
    if (imp_sys_is_dir(model)) {
        char config[4096];
        snprintf(config, sizeof config, "%s/config.json", model);
        if (imp_sys_is_file(config)) return IMP_OK;
        return imp_fail(err, IMP_FORMAT,
                        "the folder '%.200s' has no config.json, so it holds no model; give a GGUF file or a "
                        "model's folder",
                        model);
    }
    if (imp_sys_is_file(model)) return IMP_OK;
    if (access(model, F_OK) == 0)
        return imp_fail(err, IMP_FORMAT, "'%.200s' is neither a file nor a folder", model);
    if (errno == EACCES) return imp_fail(err, IMP_IO, "'%.200s' may not be read by this user", model);
    const char *found = app_store_find(a, model);
    if (!found) return not_a_path(model, err);
    *path = found;
    return IMP_OK;
}

uint32_t app_n_thread(const app *a)
{
    uint32_t n = opt_u32(&a->opt, OPT_THREADS);
    return n ? n : imp_sys_n_core();
}

const char *app_db_path(app *a)
{
    char path[1024];
    if (opt_str(&a->opt, OPT_DATABASE)) return opt_str(&a->opt, OPT_DATABASE);
    const char *home = getenv("HOME");
#ifdef __APPLE__
    if (!home || !*home) return NULL;
    snprintf(path, sizeof path, "%s/Library/Application Support/Impetus/impetus.db", home);
#else
    const char *xdg = getenv("XDG_DATA_HOME");
    if (xdg && *xdg)
        snprintf(path, sizeof path, "%s/impetus/impetus.db", xdg);
    else if (home && *home)
        snprintf(path, sizeof path, "%s/.local/share/impetus/impetus.db", home);
    else
        return NULL;
#endif
    return imp_arena_strndup(a->arena, path, strlen(path));
}

/* A folder of the user's cache; false: the user has no home. */
static bool cache_dir(const char *name, char *out, size_t cap)
{
    const char *home = getenv("HOME"), *xdg = getenv("XDG_CACHE_HOME");
#ifdef __APPLE__
    xdg = NULL;
    const char *below = "Library/Caches/Impetus";
#else
    const char *below = ".cache/impetus";
#endif
    int n = -1;
    if (xdg && *xdg)
        n = snprintf(out, cap, "%s/impetus/%s", xdg, name);
    else if (home && *home)
        n = snprintf(out, cap, "%s/%s/%s", home, below, name);
    return n > 0 && (size_t)n < cap;
}

imp_status app_configure_pack_cache(app *a)
{
    enum { WORTH_KEEPING = 16 << 20 }; /* less is packed in milliseconds */
    char dir[1024];
    const char *wish = opt_str(&a->opt, OPT_PACK_CACHE);
    bool off = !opt_set(&a->opt, OPT_PACK_CACHE_MAX) || (wish && !strcmp(wish, "off"));
    if (a->opt.cmd == CMD_BENCH && !wish) off = true; /* writing it would disturb what is measured */
    imp_pack_cache_config c = {.min_bytes = WORTH_KEEPING};
    if (!off) {
        c.max_bytes = a->opt.v[OPT_PACK_CACHE_MAX].u;
        c.dir = wish ? wish : cache_dir("packs", dir, sizeof dir) ? dir : NULL;
    }
    return imp_pack_cache_configure(&c, &a->err);
}

bool app_kv_cache_dir(app *a, char *out, size_t cap)
{
    const char *wish = opt_str(&a->opt, OPT_KV_CACHE);
    if (!wish) return cache_dir("kv", out, cap);
    int n = snprintf(out, cap, "%s", wish);
    return n > 0 && (size_t)n < cap;
}

imp_status app_configure_coreml(app *a)
{
    char dir[1024];
    const char *units = opt_str(&a->opt, OPT_COREML_UNITS);
    imp_coreml_config c = {.cache_dir = cache_dir("coreml", dir, sizeof dir) ? dir : NULL,
                           .runtime = opt_str(&a->opt, OPT_COREML_RUNTIME),
                           .units = !units || !strcmp(units, "ane") ? IMP_COREML_ANE
                                    : !strcmp(units, "all")         ? IMP_COREML_ALL
                                                                    : IMP_COREML_CPU};
    return imp_coreml_configure(&c, &a->err);
}

/* "[NAME=]FILE[:SCALE]": a file that exists as it stands is one, whatever it is spelled like. */
static imp_status split_adapter(app *a, const char *arg, imp_adapter_source *s)
{
    const char *eq = strchr(arg, '='), *file = arg;
    *s = (imp_adapter_source){.scale = 1};
    if (!imp_sys_is_file(arg) && !imp_sys_is_dir(arg) && eq && eq > arg &&
        !memchr(arg, '/', (size_t)(eq - arg))) {
        s->name = imp_arena_strndup(a->arena, arg, (size_t)(eq - arg));
        file = eq + 1;
    }
    size_t n = strlen(file);
    const char *colon = strrchr(file, ':');
    if (!imp_sys_is_file(file) && !imp_sys_is_dir(file) && colon != NULL) {
        char *end;
        s->scale = strtof(colon + 1, &end);
        if (end == colon + 1 || *end != '\0')
            return imp_fail(&a->err, IMP_INVALID, "--lora: '%.200s' ends in no scale", arg);
        n = (size_t)(colon - file);
    }
    s->path = imp_arena_strndup(a->arena, file, n);
    if (s->path == NULL) return imp_fail(&a->err, IMP_NOMEM, "out of memory");
    if (!imp_sys_is_file(s->path) && !imp_sys_is_dir(s->path))
        return imp_fail(&a->err, IMP_NOT_FOUND, "--lora: there is no file or folder '%.300s'", s->path);
    return IMP_OK;
}

/* An adapter without a name has its file's or folder's, with its number behind it when an earlier one has that already. */
static imp_status name_by_file(app *a, size_t number, const char *path, char *out, size_t cap)
{
    imp_adapter_info *known;
    size_t n_known, end = strlen(path), at;
    while (end > 1 && path[end - 1] == '/') end--;
    for (at = end; at > 0 && path[at - 1] != '/'; at--) {
    }
    size_t n = IMP_MIN(end - at, cap - 24);
    n -= imp_utf8_incomplete_tail(path + at, n);
    (void)snprintf(out, cap, "%.*s", (int)n, path + at);
    if (imp_engine_adapters(a->engine, &known, &n_known) != IMP_OK)
        return imp_fail(&a->err, IMP_NOMEM, "out of memory");
    for (size_t i = 0; i < n_known; i++)
        if (strcmp(known[i].name, out) == 0) {
            (void)snprintf(out, cap, "%.*s #%zu", (int)n, path + at, number);
            break;
        }
    imp_free(known);
    return IMP_OK;
}

imp_status app_adapters_add(app *a, const char *base)
{
    const app_value *v = &a->opt.v[OPT_LORA];
    for (size_t i = 0; i < v->n; i++) {
        imp_adapter_source s;
        char own[128];
        IMP_TRY(split_adapter(a, v->strs[i], &s));
        if (s.name == NULL && base != NULL)
            return imp_fail(&a->err, IMP_INVALID, "--lora: '%.200s' has no name; write NAME=FILE",
                            v->strs[i]);
        if (s.name == NULL) {
            IMP_TRY(name_by_file(a, i + 1, s.path, own, sizeof own));
            s.name = own;
        }
        s.base = base;
        s.always = base == NULL;
        IMP_TRY(imp_engine_add_adapter(a->engine, &s, &a->err));
    }
    return IMP_OK;
}

imp_status app_engine(app *a)
{
    if (a->engine) return IMP_OK;
    char kv_dir[1024];
    imp_place_rules rules = app_rules(a);
    imp_engine_config c = {.device = opt_str(&a->opt, OPT_DEVICE),
                           .n_thread = opt_u32(&a->opt, OPT_THREADS),
                           .n_ctx = opt_u32(&a->opt, OPT_CTX),
                           .n_parallel = opt_u32(&a->opt, OPT_PARALLEL),
                           .n_queue = opt_u32(&a->opt, OPT_QUEUE),
                           .n_batch = opt_u32(&a->opt, OPT_STEP_TOK),
                           .mem_bytes = opt_set(&a->opt, OPT_MEMORY) ? a->opt.v[OPT_MEMORY].u : 0,
                           .kv_dtype = opt_str(&a->opt, OPT_KV_TYPE),
                           .quiet = !app_term_shows_progress(),
                           .policy = opt_str(&a->opt, OPT_POLICY),
                           .watt_cap = opt_set(&a->opt, OPT_WATT_CAP) ? a->opt.v[OPT_WATT_CAP].f : 0,
                           .joule_cap = opt_set(&a->opt, OPT_JOULE_CAP) ? a->opt.v[OPT_JOULE_CAP].f : 0,
                           .embeddings_on_npu = rules.embeddings_on_npu,
                           .max_npu_model_mb = rules.max_npu_model_mb,
                           .gpu_matrix_units = rules.gpu_matrix_units,
                           .max_lora_rank = opt_set(&a->opt, OPT_LORA_RANK)  ? opt_u32(&a->opt, OPT_LORA_RANK)
                                            : opt_set(&a->opt, OPT_LORA_DIR) ? 64u
                                                                             : 0u,
                           .speculate = app_choice(a, OPT_SPECULATE)};
    if (a->opt.cmd == CMD_SERVE || a->opt.cmd == CMD_RUN || a->opt.cmd == CMD_EMBED)
        c.db_path = app_db_path(a);
    if (a->opt.cmd == CMD_SERVE && a->opt.v[OPT_KV_CACHE_MAX].u > 0 &&
        app_kv_cache_dir(a, kv_dir, sizeof kv_dir)) {
        c.kv_dir = kv_dir;
        c.kv_disk_bytes = a->opt.v[OPT_KV_CACHE_MAX].u;
    }
    /* A single answer needs one sequence's memory, not a server's. */
    if (a->opt.cmd != CMD_SERVE && a->opt.cmd != CMD_PLAN) c.n_parallel = 1;
    IMP_TRY(imp_engine_new(&c, &a->engine, &a->err));
    return a->opt.cmd == CMD_SERVE ? IMP_OK : app_adapters_add(a, NULL);
}

imp_status app_load(app *a, const char *model, const char *id, imp_model **out)
{
    const char *path;
    IMP_TRY(app_model_path(a, model, &path, &a->err));
    IMP_TRY(app_engine(a));
    IMP_TRY(imp_engine_load(a->engine, path, id, out, &a->err));
    app_warn_ctx(*out);
    return IMP_OK;
}

void app_warn_ctx(const imp_model *m)
{
    const imp_model_info *i = imp_model_get_info(m);
    if (i->n_ctx_train && i->n_ctx > i->n_ctx_train)
        imp_log(IMP_LOG_WARN, "%s: a context of %u is beyond the %u tokens the model was made for", i->id,
                i->n_ctx, i->n_ctx_train);
}

bool app_has_suffix(const char *s, const char *suffix)
{
    size_t n = strlen(s), k = strlen(suffix);
    return n > k && !memcmp(s + n - k, suffix, k);
}
