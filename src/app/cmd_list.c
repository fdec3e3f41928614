/* app/cmd_list.c - `impetus list` and `impetus rm`: the models of the store. */
#include <time.h>

#include "app/app.h"
#include "model/net.h"

static const char *origin_text(unsigned origin)
{
    return origin == 0 ? "store" : origin <= 2 ? "bundled" : "models-dir";
}

static json_t *line_json(const app_stored *m, const imp_sys_stamp *st, const imp_net_config *c)
{
    return json_pack("{s:s, s:s, s:I, s:I, s:s, s:o, s:o, s:I, s:b, s:b}", "name", m->id, "path", m->path,
                     "bytes", (json_int_t)st->n, "modified", (json_int_t)(st->mtime_ns / 1000000000), "from",
                     origin_text(m->origin), "arch", c ? json_string(c->arch) : json_null(), "type",
                     c ? json_string(c->type) : json_null(), "parameters", (json_int_t)(c ? c->n_param : 0),
                     "can_generate", c && c->can_generate, "can_embed", c && c->can_embed);
}

static void line_human(const app_stored *m, const imp_sys_stamp *st, const imp_net_config *c, const char *why)
{
    char size[32], param[32], when[32] = "";
    time_t t = (time_t)(st->mtime_ns / 1000000000);
    struct tm tm;
    if (localtime_r(&t, &tm)) strftime(when, sizeof when, "%Y-%m-%d %H:%M", &tm);
    printf("%-32s %10s  %-16s  ", m->id, app_size_text(st->n, size), when);
    if (c)
        printf("%s, %s, %s parameters, %s", c->arch, c->type, app_count_text(c->n_param, param),
               c->can_generate ? "text" : "embeddings");
    else
        printf("cannot be served: %s", why);
    printf("%s\n", m->origin == 0 ? "" : m->origin <= 2 ? " (bundled)" : " (--models-dir)");
}

app_result cmd_list(app *a)
{
    app_stored *list;
    size_t n;
    bool json = opt_on(&a->opt, OPT_JSON);
    if (app_store_list(a, &list, &n) != IMP_OK) return APP_FAILED;
    json_t *lines = json ? json_array() : NULL;
    for (size_t i = 0; i < n; i++) {
        imp_sys_stamp st;
        imp_net_config c;
        imp_error why;
        (void)imp_sys_stamp_of(list[i].path, &st);
        bool good = imp_net_peek(list[i].path, &c, &why) == IMP_OK;
        if (json)
            json_array_append_new(lines, line_json(&list[i], &st, good ? &c : NULL));
        else
            line_human(&list[i], &st, good ? &c : NULL, why.text);
    }
    if (json) return app_print_json(a, json_pack("{s:o}", "models", lines));
    if (n == 0) fputs("the store is empty\n", stderr);
    return APP_OK;
}

app_result cmd_rm(app *a)
{
    char dir[3200];
    const char *name = a->arg[0], *path = app_store_find(a, name);
    if (!path)
        return app_failed(a, "there is no model '%.200s' in the store; 'impetus list' shows what there is",
                          name);
    size_t n = app_store_dir(0, dir, sizeof dir) ? strlen(dir) : 0;
    if (n == 0 || strncmp(path, dir, n) != 0 || path[n] != '/')
        return app_failed(a, "'%.200s' came with the program and is not removed", name);
    imp_sys_stamp st = {0};
    (void)imp_sys_stamp_of(path, &st);
    if (imp_sys_is_dir(path))
        imp_sys_remove_tree(path);
    else if (imp_sys_remove_file(path, &a->err) != IMP_OK)
        return APP_FAILED;
    if (imp_sys_is_dir(path)) return app_failed(a, "%.300s could not be removed completely", path);
    char size[32];
    if (opt_on(&a->opt, OPT_JSON))
        return app_print_json(
            a, json_pack("{s:s, s:s, s:I}", "removed", name, "path", path, "bytes", (json_int_t)st.n));
    printf("removed %s (%s)\n", name, app_size_text(st.n, size));
    return APP_OK;
}
