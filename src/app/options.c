/* app/options.c - parsing of values and flags over the table in options.h.
 *
 * Place:   main.c calls app_opt_parse_argv, then _env, _file and _defaults (config.c); commands read app_options.
 * Idea:    one function a type turns text into a value and knows the row's limits, so that every source of a value
 *          gives the same message.
 * Threads: main thread, before anything else runs. */
#include "app/options.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const app_opt table[N_OPT] = {
#define APP_X(id, name, letter, type, min, max, def, meta, cmds, help)                                       \
    {name, letter, type, min, max, def, meta, cmds, help},
    APP_OPT_LIST(APP_X)
#undef APP_X
};

const app_opt *app_opt_at(app_opt_id id)
{
    return &table[id];
}

static bool same_name(const char *a, const char *b, size_t n_b)
{
    size_t i = 0;
    for (; i < n_b && a[i]; i++) {
        char c = b[i] == '_' ? '-' : b[i];
        if (a[i] != c) return false;
    }
    return i == n_b && a[i] == 0;
}

app_opt_id app_opt_find(app_cmd_id cmd, const char *name, size_t n_name, char letter)
{
    for (int i = 0; i < N_OPT; i++) {
        if (!(table[i].cmds & (1u << cmd))) continue;
        if (name ? same_name(table[i].name, name, n_name) : (letter && table[i].letter == letter))
            return (app_opt_id)i;
    }
    return N_OPT;
}

bool app_opt_known(const char *name, size_t n_name)
{
    for (int i = 0; i < N_OPT; i++)
        if (same_name(table[i].name, name, n_name)) return true;
    return false;
}

bool app_opt_takes_value(const app_opt *o)
{
    return o->type != TYPE_BOOL;
}

/* ---- one value ---------------------------------------------------------------------------------- */

static imp_status parse_bool(const char *where, const char *text, app_value *v, imp_error *err)
{
    static const char *const yes[] = {"1", "true", "yes", "on"}, *const no[] = {"0", "false", "no", "off"};
    for (size_t i = 0; i < IMP_COUNT(yes); i++) {
        if (!strcmp(text, yes[i])) return v->on = true, IMP_OK;
        if (!strcmp(text, no[i])) return v->on = false, IMP_OK;
    }
    return imp_fail(err, IMP_INVALID, "%s: '%s' is neither yes nor no", where, text);
}

/* A whole number at *s, moved behind it. */
static bool scan_uint(const char **s, uint64_t *out)
{
    uint64_t v = 0;
    const char *p = *s;
    if (*p < '0' || *p > '9') return false;
    for (; *p >= '0' && *p <= '9'; p++)
        if (!imp_mul_u64(v, 10, &v) || !imp_add_u64(v, (uint64_t)(*p - '0'), &v)) return false;
    *s = p;
    *out = v;
    return true;
}

static imp_status bad_uint(const app_opt *o, const char *where, const char *text, imp_error *err)
{
    if (o->max > 0)
        return imp_fail(err, IMP_INVALID, "%s: '%s' is not a whole number from %.0f to %.0f", where, text,
                        o->min, o->max);
    return imp_fail(err, IMP_INVALID, "%s: '%s' is not a whole number", where, text);
}

static bool in_range(const app_opt *o, double x)
{
    return x >= o->min && (o->max <= 0 || x <= o->max);
}

static imp_status parse_uint(const app_opt *o, const char *where, const char *text, app_value *v,
                             imp_error *err)
{
    const char *p = text;
    if (!scan_uint(&p, &v->u) || *p || !in_range(o, (double)v->u)) return bad_uint(o, where, text, err);
    return IMP_OK;
}

static imp_status parse_seed(const char *where, const char *text, app_value *v, imp_error *err)
{
    const char *p = text;
    v->u = UINT64_MAX;
    if (!strcmp(text, "random") || !strcmp(text, "-1")) return IMP_OK;
    if (!scan_uint(&p, &v->u) || *p)
        return imp_fail(err, IMP_INVALID, "%s: '%s' is neither a whole number nor 'random'", where, text);
    return IMP_OK;
}

static imp_status parse_float(const app_opt *o, const char *where, const char *text, app_value *v,
                              imp_error *err)
{
    char *end = NULL;
    errno = 0;
    v->f = strtod(text, &end);
    if (end == text || *end || !isfinite(v->f) || v->f < o->min || v->f > o->max)
        return imp_fail(err, IMP_INVALID, "%s: '%s' is not a number from %g to %g", where, text, o->min,
                        o->max);
    return IMP_OK;
}

static imp_status parse_bytes(const app_opt *o, const char *where, const char *text, app_value *v,
                              imp_error *err)
{
    const char *p = text;
    unsigned shift = 0;
    bool ok = scan_uint(&p, &v->u);
    if (ok && *p) {
        switch (*p) {
        case 'k':
        case 'K': shift = 10; break;
        case 'm':
        case 'M': shift = 20; break;
        case 'g':
        case 'G': shift = 30; break;
        case 't':
        case 'T': shift = 40; break;
        default: ok = false;
        }
        p++;
        if (ok && (*p == 'b' || *p == 'B')) p++;
    }
    if (!ok || *p || !imp_mul_u64(v->u, 1ull << shift, &v->u) || !in_range(o, (double)v->u))
        return imp_fail(err, IMP_INVALID, "%s: '%s' is not a size of at least %.0f bytes, such as 800M or 8G",
                        where, text, o->min);
    return IMP_OK;
}

static imp_status parse_choice(const app_opt *o, const char *where, const char *text, app_value *v,
                               imp_error *err)
{
    size_t n = strlen(text);
    for (const char *p = o->meta; n; p++) {
        size_t len = strcspn(p, "|");
        if (len == n && !memcmp(p, text, n)) return v->str = text, IMP_OK;
        p += len;
        if (!*p) break;
    }
    return imp_fail(err, IMP_INVALID, "%s: '%s' is none of %s", where, text, o->meta);
}

static imp_status add_str(imp_arena *a, app_value *v, const char *text)
{
    const char **grown = imp_arena_array(a, v->n + 1, sizeof *grown);
    if (!grown) return IMP_NOMEM;
    if (v->n) memcpy(grown, v->strs, v->n * sizeof *grown);
    grown[v->n] = text;
    v->strs = grown;
    v->n++;
    return IMP_OK;
}

static imp_status parse_uints(imp_arena *a, const app_opt *o, const char *where, const char *text,
                              app_value *v, imp_error *err)
{
    size_t n = 1;
    for (const char *p = text; *p; p++) n += *p == ',';
    v->uints = imp_arena_array(a, n, sizeof *v->uints);
    if (!v->uints) return imp_fail(err, IMP_NOMEM, "%s: out of memory", where);
    v->n = 0;
    for (const char *p = text;; p++) {
        while (*p == ' ') p++;
        uint64_t u;
        if (!scan_uint(&p, &u) || !in_range(o, (double)u) || (*p && *p != ','))
            return imp_fail(err, IMP_INVALID,
                            "%s: '%s' is not a list of whole numbers from %.0f to %.0f, such as 16,128",
                            where, text, o->min, o->max);
        v->uints[v->n++] = u;
        if (!*p) return IMP_OK;
    }
}

imp_status app_opt_assign(app_options *o, app_opt_id id, const char *where, const char *text, imp_error *err)
{
    const app_opt *row = &table[id];
    app_value *v = &o->v[id];
    char *copy = imp_arena_strndup(o->arena, text, strlen(text));
    if (!copy) return imp_fail(err, IMP_NOMEM, "out of memory");
    imp_status s = IMP_OK;
    switch (row->type) {
    case TYPE_BOOL: s = parse_bool(where, copy, v, err); break;
    case TYPE_UINT: s = parse_uint(row, where, copy, v, err); break;
    case TYPE_SEED: s = parse_seed(where, copy, v, err); break;
    case TYPE_FLOAT: s = parse_float(row, where, copy, v, err); break;
    case TYPE_BYTES: s = parse_bytes(row, where, copy, v, err); break;
    case TYPE_CHOICE: s = parse_choice(row, where, copy, v, err); break;
    case TYPE_UINTS: s = parse_uints(o->arena, row, where, copy, v, err); break;
    case TYPE_STR: v->str = copy; break;
    case TYPE_STRS: s = add_str(o->arena, v, copy); break;
    }
    IMP_TRY(s);
    v->set = v->explicit_ = true;
    return IMP_OK;
}

imp_status app_opt_defaults(app_options *o, imp_error *err)
{
    for (int i = 0; i < N_OPT; i++) {
        if (o->v[i].set || !table[i].def) continue;
        IMP_TRY(app_opt_assign(o, (app_opt_id)i, table[i].name, table[i].def, err));
        o->v[i].explicit_ = false;
    }
    return IMP_OK;
}

/* ---- flags -------------------------------------------------------------------------------------- */

static imp_status unknown_flag(const app_options *o, const char *flag, const char *cmd_name, imp_error *err)
{
    const char *near = !strncmp(flag, "--", 2) ? app_nearest_opt(o->cmd, flag + 2) : NULL;
    if (near) return imp_fail(err, IMP_INVALID, "unknown flag '%.64s'; did you mean '--%s'?", flag, near);
    return imp_fail(err, IMP_INVALID, "unknown flag '%.64s'; 'impetus help %s' lists what there is", flag,
                    cmd_name);
}

static bool looks_like_value(const char *s)
{
    return s[0] != '-' || s[1] == 0 || (s[1] >= '0' && s[1] <= '9') || s[1] == '.';
}

/* The flag argv[*i], moved behind its value. */
static imp_status parse_flag(app_options *o, int argc, char **argv, int *i, const char *cmd_name,
                             imp_error *err)
{
    const char *arg = argv[*i], *value = NULL;
    bool is_long = arg[1] == '-';
    app_opt_id id;
    char shown[80];
    if (is_long) {
        const char *eq = strchr(arg, '=');
        size_t n = eq ? (size_t)(eq - arg) - 2 : strlen(arg) - 2;
        id = app_opt_find(o->cmd, arg + 2, n, 0);
        if (id == N_OPT) {
            char *bare = imp_arena_strndup(o->arena, arg, n + 2);
            return unknown_flag(o, bare ? bare : arg, cmd_name, err);
        }
        if (eq) value = eq + 1;
        snprintf(shown, sizeof shown, "--%s", table[id].name);
    } else {
        id = app_opt_find(o->cmd, NULL, 0, arg[1]);
        if (id == N_OPT) return unknown_flag(o, arg, cmd_name, err);
        if (arg[2]) value = arg[2] == '=' ? arg + 3 : arg + 2;
        snprintf(shown, sizeof shown, "-%c", table[id].letter);
        if (value && table[id].type == TYPE_BOOL)
            return imp_fail(err, IMP_INVALID, "'%.64s' is more than one flag; write them apart", arg);
    }
    if (!value && table[id].type == TYPE_BOOL) value = "yes";
    if (!value) {
        if (*i + 1 >= argc || !looks_like_value(argv[*i + 1]))
            return imp_fail(err, IMP_INVALID,
                            "%s needs a value (%s); one that begins with '-' is written --%s=VALUE", shown,
                            table[id].meta, table[id].name);
        value = argv[++*i];
    }
    if (!*value && table[id].type != TYPE_STR && table[id].type != TYPE_STRS)
        return imp_fail(err, IMP_INVALID, "%s needs a value (%s)", shown, table[id].meta);
    return app_opt_assign(o, id, shown, value, err);
}

imp_status app_opt_parse_argv(app_options *o, int argc, char **argv, const char ***args, size_t *n_args,
                              bool *want_help, imp_error *err)
{
    bool flags_end = false;
    *want_help = false;
    *n_args = 0;
    *args = imp_arena_array(o->arena, (size_t)argc + 1, sizeof **args);
    if (!*args) return imp_fail(err, IMP_NOMEM, "out of memory");
    for (int i = 0; i < argc; i++) {
        const char *a = argv[i];
        if (flags_end || a[0] != '-' || a[1] == 0) {
            (*args)[(*n_args)++] = a;
        } else if (!strcmp(a, "--")) {
            flags_end = true;
        } else if (!strcmp(a, "--help") || !strcmp(a, "-h")) {
            *want_help = true;
        } else {
            IMP_TRY(parse_flag(o, argc, argv, &i, app_cmd_name(o->cmd), err));
        }
    }
    return IMP_OK;
}
