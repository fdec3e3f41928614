/* app/store.c - the models of the store: where they lie, and what a server knows of them.
 *
 * Idea:    a name is looked up in the user's store, then among the models that came with the program. A server gets the
 *          models of -m, pinned unless --pin=no, and with --on-demand those of all folders. */
#include <limits.h>
#include <stdlib.h>

#include "app/app.h"
#include "engine/folder.h"

bool app_store_dir(unsigned i, char *out, size_t cap)
{
    const char *xdg = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    char exe[3000];
#ifdef __APPLE__
    xdg = NULL;
    const char *below = "Library/Application Support/Impetus/models";
#else
    const char *below = ".local/share/impetus/models";
#endif
    if (i == 0 && xdg && *xdg) return snprintf(out, cap, "%s/impetus/models", xdg) > 0;
    if (i == 0) return snprintf(out, cap, "%s/%s", home ? home : "", below) > 0;
    if (i > 2 || !imp_sys_program_dir(exe, sizeof exe)) return false;
    return snprintf(out, cap, "%s/%s", exe, i == 1 ? "../models" : "../share/impetus/models") > 0;
}

const char *app_store_find(app *a, const char *name)
{
    static const char *const ending[] = {".gguf", "/config.json"};
    char dir[3200], path[4096];
    if (strchr(name, '/') || name[0] == '.') return NULL;
    for (unsigned i = 0; app_store_dir(i, dir, sizeof dir); i++)
        for (size_t k = 0; k < IMP_COUNT(ending); k++) {
            int n = snprintf(path, sizeof path, "%s/%s%s", dir, name, ending[k]);
            if (n < 0 || (size_t)n >= sizeof path || !imp_sys_is_file(path)) continue;
            return imp_arena_strndup(a->arena, path, (size_t)n - (k == 1 ? strlen(ending[1]) : 0));
        }
    return NULL;
}

/* ---- list --------------------------------------------------------------------------------------------- */

typedef struct collect {
    app *a;
    unsigned origin;
    app_stored *list;
    size_t n, cap;
    bool failed;
} collect;

static void on_found(void *user, const char *id, const char *path)
{
    collect *c = user;
    for (size_t i = 0; i < c->n; i++)
        if (!strcmp(c->list[i].id, id)) return; /* the first folder's counts */
    if (c->n == c->cap) {
        size_t cap = c->cap * 2 + 16;
        app_stored *more = imp_arena_array(c->a->arena, cap, sizeof *more);
        if (!more) {
            c->failed = true;
            return;
        }
        if (c->n) memcpy(more, c->list, c->n * sizeof *more);
        c->list = more;
        c->cap = cap;
    }
    app_stored s = {imp_arena_strndup(c->a->arena, id, strlen(id)),
                    imp_arena_strndup(c->a->arena, path, strlen(path)), c->origin};
    if (!s.id || !s.path)
        c->failed = true;
    else
        c->list[c->n++] = s;
}

static int by_id(const void *x, const void *y)
{
    return strcmp(((const app_stored *)x)->id, ((const app_stored *)y)->id);
}

static imp_status look_in(collect *c, const char *dir, unsigned origin, bool must_be)
{
    imp_error err = {0};
    c->origin = origin;
    imp_status s = imp_folder_models(dir, on_found, c, &err);
    if (s == IMP_NOT_FOUND && !must_be) s = IMP_OK;
    if (s != IMP_OK) c->a->err = err;
    return s;
}

imp_status app_store_list(app *a, app_stored **out, size_t *n)
{
    collect c = {.a = a};
    char dir[3200];
    const app_value *more = &a->opt.v[OPT_MODELS_DIR];
    for (unsigned i = 0; app_store_dir(i, dir, sizeof dir); i++) IMP_TRY(look_in(&c, dir, i, false));
    for (size_t i = 0; i < more->n; i++) IMP_TRY(look_in(&c, more->strs[i], UINT_MAX, true));
    if (c.failed) return imp_fail(&a->err, IMP_NOMEM, "out of memory");
    if (c.n) qsort(c.list, c.n, sizeof *c.list, by_id);
    *out = c.list;
    *n = c.n;
    return IMP_OK;
}

/* ---- serve ---------------------------------------------------------------------------------------------- */

/* "NAME=PATH" or "PATH"; a path that exists as it stands is a path, whatever it is spelled like. */
static const char *split_name(app *a, const char *arg, const char **name)
{
    const char *eq = strchr(arg, '=');
    *name = NULL;
    if (!eq || eq == arg || imp_sys_is_file(arg) || imp_sys_is_dir(arg) ||
        memchr(arg, '/', (size_t)(eq - arg)))
        return arg;
    *name = imp_arena_strndup(a->arena, arg, (size_t)(eq - arg));
    return eq + 1;
}

static imp_status keep_alive(app *a, double *s)
{
    const char *text = opt_str(&a->opt, OPT_KEEP_ALIVE);
    if (imp_duration_parse(text, s)) return IMP_OK;
    return imp_fail(&a->err, IMP_INVALID, "--keep-alive: '%.40s' is no time; write 90s, 5m, 1h30m, 0 or -1",
                    text);
}

imp_status app_models_check(app *a)
{
    const app_value *v = &a->opt.v[OPT_MODELS], *dirs = &a->opt.v[OPT_MODELS_DIR],
                    *alias = &a->opt.v[OPT_ALIAS];
    double s;
    IMP_TRY(keep_alive(a, &s));
    if (a->opt.v[OPT_LORA].n > 0 && v->n != 1)
        return imp_fail(&a->err, IMP_INVALID, "--lora belongs to the model of -m: give exactly one");
    for (size_t i = 0; i < v->n; i++) {
        const char *name, *path = split_name(a, v->strs[i], &name);
        IMP_TRY(app_model_path(a, path, &path, &a->err));
    }
    for (size_t i = 0; i < dirs->n; i++)
        if (!imp_sys_is_dir(dirs->strs[i]))
            return imp_fail(&a->err, IMP_NOT_FOUND, "--models-dir: there is no folder '%.200s'",
                            dirs->strs[i]);
    for (size_t i = 0; i < alias->n; i++)
        if (!strchr(alias->strs[i], '=') || alias->strs[i][0] == '=')
            return imp_fail(&a->err, IMP_INVALID, "--alias: '%.100s' is not NAME=MODEL", alias->strs[i]);
    return IMP_OK;
}

static imp_status add_named(app *a, const char *arg, double keep_s, const char **id)
{
    const char *name, *path = split_name(a, arg, &name);
    IMP_TRY(app_model_path(a, path, &path, &a->err));
    char *own = name ? NULL : imp_model_default_id(path);
    *id = name ? name : own ? imp_arena_strndup(a->arena, own, strlen(own)) : NULL;
    imp_sys_free(own);
    if (!*id) return imp_fail(&a->err, IMP_NOMEM, "out of memory");
    imp_model_source s = {.path = path, .id = *id, .pinned = opt_on(&a->opt, OPT_PIN), .keep_s = keep_s};
    return imp_engine_add(a->engine, &s, &a->err);
}

static imp_status load_pinned(app *a, const char *id, void (*on_loaded)(void *user, const imp_model *m),
                              void *user)
{
    imp_model *m;
    if (app_term_shows_progress()) fprintf(stderr, "loading %s...", id);
    imp_status s = imp_engine_open(a->engine, id, &m, &a->err);
    if (app_term_shows_progress()) fputs("\r\033[K", stderr);
    IMP_TRY(s);
    app_warn_ctx(m);
    on_loaded(user, m);
    imp_model_release(m);
    return IMP_OK;
}

static imp_status add_folders(app *a, double keep_s)
{
    char dir[3200];
    const app_value *v = &a->opt.v[OPT_MODELS_DIR];
    for (size_t i = 0; i < v->n; i++) IMP_TRY(imp_engine_add_folder(a->engine, v->strs[i], keep_s, &a->err));
    for (unsigned i = 0; opt_on(&a->opt, OPT_ON_DEMAND) && app_store_dir(i, dir, sizeof dir); i++)
        IMP_TRY(imp_engine_add_folder(a->engine, dir, keep_s, &a->err));
    return IMP_OK;
}

imp_status app_models_add(app *a, void (*on_loaded)(void *user, const imp_model *m), void *user)
{
    const app_value *v = &a->opt.v[OPT_MODELS], *alias = &a->opt.v[OPT_ALIAS];
    double keep_s;
    IMP_TRY(keep_alive(a, &keep_s));
    for (size_t i = 0; i < v->n; i++) {
        const char *id;
        IMP_TRY(add_named(a, v->strs[i], keep_s, &id));
        if (a->opt.v[OPT_LORA].n > 0) IMP_TRY(app_adapters_add(a, id));
        if (opt_on(&a->opt, OPT_PIN)) IMP_TRY(load_pinned(a, id, on_loaded, user));
    }
    IMP_TRY(add_folders(a, keep_s));
    for (size_t i = 0; i < alias->n; i++) {
        const char *eq = strchr(alias->strs[i], '=');
        const char *name = imp_arena_strndup(a->arena, alias->strs[i], (size_t)(eq - alias->strs[i]));
        if (!name) return imp_fail(&a->err, IMP_NOMEM, "out of memory");
        IMP_TRY(imp_engine_add_alias(a->engine, name, eq + 1, &a->err));
    }
    return IMP_OK;
}
