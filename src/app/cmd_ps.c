/* app/cmd_ps.c - `impetus ps` and `impetus stop`: what a running server has loaded. */
#include <time.h>
#include <unistd.h>

#include "app/app.h"

/* "2026-01-31T12:00:00Z" as what is left of the time till then. */
static void until(const char *expires, bool pinned, char out[40])
{
    struct tm tm = {0};
    time_t now = time(NULL), at = 0;
    if (expires && sscanf(expires, "%d-%d-%dT%d:%d:%d", &tm.tm_year, &tm.tm_mon, &tm.tm_mday, &tm.tm_hour,
                          &tm.tm_min, &tm.tm_sec) == 6) {
        tm.tm_year -= 1900;
        tm.tm_mon -= 1;
        at = timegm(&tm);
    }
    long left = at > now ? (long)(at - now) : 0;
    if (pinned)
        snprintf(out, 40, "pinned");
    else if (left > 100L * 365 * 86400)
        snprintf(out, 40, "until room is needed");
    else if (left >= 3600)
        snprintf(out, 40, "in %ld h %02ld min", left / 3600, left / 60 % 60);
    else
        snprintf(out, 40, "in %ld min %02ld s", left / 60, left % 60);
}

static const char *text_of(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

app_result cmd_ps(app *a)
{
    json_t *doc, *m;
    size_t i;
    if (app_ask(a, "/api/ps", NULL, &doc, &a->err) != IMP_OK) return APP_FAILED;
    if (opt_on(&a->opt, OPT_JSON)) return app_print_json(a, doc);
    const json_t *list = json_object_get(doc, "models");
    if (json_array_size(list) == 0) fputs("no model is loaded\n", stderr);
    json_array_foreach(list, i, m)
    {
        char size[32], when[40];
        until(text_of(m, "expires_at"), json_is_true(json_object_get(m, "pinned")), when);
        printf("%-32s %10s  %-8s  context %-8lld  %s\n", text_of(m, "name"),
               app_size_text((uint64_t)json_integer_value(json_object_get(m, "size")), size),
               text_of(m, "device"), (long long)json_integer_value(json_object_get(m, "context_length")),
               when);
    }
    json_decref(doc);
    return APP_OK;
}

/* true: the server has it loaded (or cannot be asked any more: *err). */
static imp_status is_loaded(app *a, const char *name, bool *there)
{
    json_t *doc, *m;
    size_t i;
    *there = false;
    IMP_TRY(app_ask(a, "/api/ps", NULL, &doc, &a->err));
    json_array_foreach(json_object_get(doc, "models"), i, m) *there =
        *there || !strcmp(text_of(m, "name"), name);
    json_decref(doc);
    return IMP_OK;
}

app_result cmd_stop(app *a)
{
    enum { TRIES = 50 };
    const char *name = a->arg[0];
    bool there = true;
    json_t *body = json_pack("{s:s, s:i}", "model", name, "keep_alive", 0), *doc = NULL;
    imp_status s = body ? app_ask(a, "/api/generate", body, &doc, &a->err)
                        : imp_fail(&a->err, IMP_NOMEM, "out of memory");
    json_decref(body);
    json_decref(doc);
    for (int i = 0; i < TRIES && s == IMP_OK && there; i++) {
        if (i > 0) usleep(100000);
        s = is_loaded(a, name, &there);
    }
    if (s != IMP_OK) return APP_FAILED;
    if (opt_on(&a->opt, OPT_JSON))
        return app_print_json(a, json_pack("{s:s, s:b}", "model", name, "unloaded", !there));
    printf(there ? "%s is unloaded when its running requests are done\n" : "%s is not loaded any more\n",
           name);
    return APP_OK;
}
