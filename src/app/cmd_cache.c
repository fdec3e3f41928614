/* app/cmd_cache.c - `impetus cache`: what is kept of prompts on disk, by model; and its removal. */
#include "app/app.h"
#include "base/vault.h"
#include "sched/kv_file.h"

enum { MAX_MODELS = 64 };

typedef struct kept_model {
    char name[64];
    uint64_t n, bytes;
} kept_model;

typedef struct kept {
    const imp_vault *v;
    bool clear;
    kept_model model[MAX_MODELS]; /* the last one: all further ones, and what is damaged */
    size_t n_model;
    uint64_t n, bytes;
} kept;

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n > k && !strcmp(s + n - k, end);
}

static kept_model *model_of(kept *k, const char *name)
{
    size_t i = 0;
    while (i < k->n_model && strcmp(k->model[i].name, name)) i++;
    if (i == MAX_MODELS) return &k->model[MAX_MODELS - 1];
    if (i == k->n_model) snprintf(k->model[k->n_model++].name, sizeof k->model[0].name, "%s", name);
    return &k->model[i];
}

static void see(void *ctx, const char *name, uint64_t bytes, int64_t used_ns)
{
    kept *k = ctx;
    imp_kv_header h, raw;
    uint64_t hash[2], got;
    imp_error err;
    (void)used_ns;
    if (k->clear) {
        bool ours = imp_kv_file_name_read(name, hash) ||
                    ends_with(name, ".sum"); /* the key stays: a server may use it */
        if (!ours || !imp_vault_remove(k->v, name)) return;
        k->n++;
        k->bytes += bytes;
        return;
    }
    if (!imp_kv_file_name_read(name, hash)) return;
    bool good = imp_vault_peek(k->v, name, &raw, sizeof raw, &got, &err) == IMP_OK &&
                imp_kv_file_peek((const uint8_t *)&raw, got, &h, &err) == IMP_OK;
    kept_model *m = model_of(k, good ? h.model_name : "(damaged)");
    m->n++;
    m->bytes += bytes;
    k->n++;
    k->bytes += bytes;
}

app_result cmd_cache(app *a)
{
    const char *what = a->n_arg > 0 ? a->arg[0] : "list";
    bool json = opt_on(&a->opt, OPT_JSON), clear = !strcmp(what, "clear");
    char dir[1024], size[32];
    imp_vault *v;
    if (!clear && strcmp(what, "list")) return app_usage(a, "'list' or 'clear', not '%.40s'", what);
    if (!app_kv_cache_dir(a, dir, sizeof dir))
        return app_failed(a, "there is no folder; name one with --kv-cache DIR");
    kept k = {.clear = clear};
    if (imp_sys_is_dir(dir)) {
        if (imp_vault_open(dir, &v, &a->err) != IMP_OK) return APP_FAILED;
        k.v = v;
        imp_vault_list(v, see, &k);
        imp_vault_close(v);
    }
    if (clear && !json) printf("removed %s from %s\n", app_size_text(k.bytes, size), dir);
    if (clear && json)
        return app_print_json(a, json_pack("{s:s, s:I, s:I}", "folder", dir, "removed_files", (json_int_t)k.n,
                                           "removed_bytes", (json_int_t)k.bytes));
    if (clear) return APP_OK;
    json_t *list = json ? json_array() : NULL;
    for (size_t i = 0; i < k.n_model; i++) {
        const kept_model *m = &k.model[i];
        if (json)
            json_array_append_new(
                list, json_pack("{s:s, s:I, s:I, s:I}", "model", m->name, "blocks", (json_int_t)m->n,
                                "tokens", (json_int_t)(m->n * IMP_KV_BLOCK), "bytes", (json_int_t)m->bytes));
        else
            printf("%-32s %10s  %llu tokens\n", m->name, app_size_text(m->bytes, size),
                   (unsigned long long)(m->n * IMP_KV_BLOCK));
    }
    if (json)
        return app_print_json(a, json_pack("{s:s, s:I, s:I, s:o}", "folder", dir, "blocks", (json_int_t)k.n,
                                           "bytes", (json_int_t)k.bytes, "models", list));
    if (k.n == 0) fprintf(stderr, "nothing is kept in %s\n", dir);
    return APP_OK;
}
