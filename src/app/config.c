/* app/config.c - options from IMPETUS_* variables and from config.ini.
 *
 * Place:   called by main.c after the flags.
 * Idea:    a key is an option's name ('-' and '_' are the same). Keys before any section hold for every command that
 *          has the option; a section [COMMAND] holds for that command and wins over the general ones.
 * Layout:  ini of inih: `key = value`, comments with ';' or '#', one line of at most 198 characters a key; a key that
 *          may repeat (model, stop) is written several times.
 * Errors:  an unknown key or a wrong value is refused with its line. */
#include "app/options.h"

#include <ctype.h>
#include <ini.h>
#include <stdio.h>
#include <stdlib.h>

#include "app/app.h"

/* ---- environment ------------------------------------------------------------------------------------ */

static imp_status one_variable(app_options *o, const char *entry, imp_error *err)
{
    enum { PREFIX = 8 }; /* IMPETUS_ */
    const char *eq = strchr(entry, '=');
    char name[64], where[80];
    if (!eq || (size_t)(eq - entry) - PREFIX >= sizeof name) return IMP_OK;
    size_t n = 0;
    for (const char *p = entry + PREFIX; p < eq; p++) name[n++] = (char)tolower((unsigned char)*p);
    name[n] = 0;
    app_opt_id id = app_opt_find(o->cmd, name, n, 0);
    if (id == N_OPT) {
        if (app_opt_known(name, n)) return IMP_OK; /* another command's */
        imp_log(IMP_LOG_WARN, "the variable %.*s is no option and was ignored", (int)(eq - entry), entry);
        return IMP_OK;
    }
    if (o->v[id].set || !eq[1]) return IMP_OK;
    snprintf(where, sizeof where, "%.*s", (int)(eq - entry), entry);
    return app_opt_assign(o, id, where, eq + 1, err);
}

imp_status app_opt_parse_env(app_options *o, char **environ_, imp_error *err)
{
    for (char **e = environ_; e && *e; e++)
        if (!strncmp(*e, "IMPETUS_", 8)) IMP_TRY(one_variable(o, *e, err));
    return IMP_OK;
}

/* ---- file ------------------------------------------------------------------------------------------- */

typedef struct reader {
    app_options *o;
    const char *path, *p, *end;
    bool taken[N_OPT]; /* set by a flag or a variable: the file does not touch it */
    bool own[N_OPT];   /* set by this command's section */
    unsigned line;
    imp_status status;
    imp_error *err;
} reader;

static imp_status reader_fail(reader *r, const char *text)
{
    if (r->status == IMP_OK)
        r->status = imp_fail(r->err, IMP_INVALID, "%s line %u: %s", r->path, r->line, text);
    return r->status;
}

/* inih asks for the next line as fgets would give it. */
static char *next_line(char *out, int cap, void *stream)
{
    reader *r = stream;
    if (r->p >= r->end || r->status != IMP_OK) return NULL;
    const char *nl = memchr(r->p, '\n', (size_t)(r->end - r->p));
    size_t n = (size_t)((nl ? nl + 1 : r->end) - r->p);
    r->line++;
    if (n + 1 > (size_t)cap) {
        reader_fail(r, "the line is too long; 198 characters are allowed");
        return NULL;
    }
    memcpy(out, r->p, n);
    out[n] = 0;
    r->p += n;
    return out;
}

static void take_key(reader *r, const char *section, const char *name, const char *value)
{
    char where[400], text[200];
    bool own = !strcmp(section, app_cmd_name(r->o->cmd));
    if (*section && app_cmd_find(section) == N_CMD) {
        snprintf(text, sizeof text, "[%.40s] is no command", section);
        reader_fail(r, text);
        return;
    }
    app_opt_id id = app_opt_find(*section ? app_cmd_find(section) : r->o->cmd, name, strlen(name), 0);
    if (id == N_OPT && !*section && app_opt_known(name, strlen(name))) return; /* another command's */
    if (id == N_OPT || id == OPT_CONFIG) {
        const char *near = id == N_OPT ? app_nearest_opt(r->o->cmd, name) : NULL;
        snprintf(text, sizeof text, "unknown key '%.40s'%s%s%s", name, near ? "; did you mean '" : "",
                 near ? near : "", near ? "'?" : "");
        reader_fail(r, text);
        return;
    }
    if ((*section && !own) || r->taken[id] || (r->own[id] && !own)) return;
    if (own && !r->own[id]) { /* the section's values replace the general ones */
        r->o->v[id] = (app_value){0};
        r->own[id] = true;
    }
    snprintf(where, sizeof where, "%s line %u: %s", r->path, r->line, app_opt_at(id)->name);
    r->status = app_opt_assign(r->o, id, where, value, r->err);
}

static int on_key(void *user, const char *section, const char *name, const char *value)
{
    reader *r = user;
    if (r->status == IMP_OK) take_key(r, section, name, value ? value : "yes");
    return r->status == IMP_OK;
}

/* The usual file, NULL when the environment does not say where that is. */
static const char *usual_path(imp_arena *arena)
{
    char path[1024];
    const char *home = getenv("HOME");
#ifdef __APPLE__
    if (!home || !*home) return NULL;
    snprintf(path, sizeof path, "%s/Library/Application Support/Impetus/config.ini", home);
#else
    const char *xdg = getenv("XDG_CONFIG_HOME");
    if (xdg && *xdg)
        snprintf(path, sizeof path, "%s/impetus/config.ini", xdg);
    else if (home && *home)
        snprintf(path, sizeof path, "%s/.config/impetus/config.ini", home);
    else
        return NULL;
#endif
    return imp_arena_strndup(arena, path, strlen(path));
}

imp_status app_opt_parse_file(app_options *o, imp_error *err)
{
    const char *path = opt_str(o, OPT_CONFIG);
    bool asked = path != NULL;
    if (!asked) path = usual_path(o->arena);
    if (!path || (!asked && !imp_sys_is_file(path))) return IMP_OK;
    imp_sys_file f;
    imp_status s = imp_sys_file_open(path, false, &f, err);
    if (s != IMP_OK) return s;
    reader r = {.o = o, .path = path, .p = (const char *)f.data, .status = IMP_OK, .err = err};
    r.end = r.p ? r.p + f.n : r.p;
    for (int i = 0; i < N_OPT; i++) r.taken[i] = o->v[i].set;
    int bad = ini_parse_stream(next_line, &r, on_key, &r);
    imp_sys_file_close(&f);
    if (r.status == IMP_OK && bad)
        r.status =
            imp_fail(err, IMP_INVALID, "%s line %d: neither a section, a key nor a comment", path, bad);
    return r.status;
}
