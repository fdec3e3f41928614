/* text/jinja/func.c - calling: arguments in order, global functions, methods and macros. */
#include <stdio.h>
#include <time.h>

#include "text/jinja/jinja_int.h"

enum { MAX_RANGE = 100000 }; /* as jinja2's sandbox has it */

/* The next name of the list at *p; its length; 0 at the end. '|' in front is skipped. */
static size_t next_name(const char **p, bool *optional)
{
    if (**p == '|') *optional = true, ++*p;
    size_t n = strcspn(*p, ",|");
    return n;
}

bool jj_bind(jj *j, const char *who, const char *names, const jj_args *a, jj_val *out, size_t n_out)
{
    bool optional = false;
    size_t n_used = 0;
    const char *p = names;
    if (a->n > n_out) return jj_type_error(j, "'%s' takes at most %zu arguments, not %zu", who, n_out, a->n);
    for (size_t i = 0; i < n_out; i++) {
        size_t n = next_name(&p, &optional);
        out[i] = i < a->n ? a->v[i] : (jj_val){.kind = JJ_MISSING};
        for (size_t k = 0; k < a->n_kw; k++) {
            if (a->name[k]->n != n || memcmp(a->name[k]->p, p, n) != 0) continue;
            if (i < a->n) return jj_type_error(j, "'%s' got its argument '%.*s' twice", who, (int)n, p);
            out[i] = a->kw[k];
            n_used++;
        }
        if (out[i].kind == JJ_MISSING && !optional)
            return jj_type_error(j, "'%s' wants the argument '%.*s'", who, (int)n, p);
        p += n;
        if (*p == ',') p++;
    }
    return n_used == a->n_kw || jj_type_error(j, "'%s' got an argument by a name that it does not have", who);
}

/* ---- global functions ------------------------------------------------------------------------------------ */

static bool run_range(jj *j, const jj_args *a, jj_val *out)
{
    int64_t v[3] = {0, 0, 1};
    if (a->n < 1 || a->n > 3 || a->n_kw > 0) return jj_type_error(j, "'range' takes 1 to 3 numbers");
    for (size_t i = 0; i < a->n; i++) {
        if (a->v[i].kind == JJ_UNDEF) return jj_fail_undef(j, a->v[i]);
        if (!jj_is_int(a->v[i]))
            return jj_type_error(j, "'range' takes whole numbers, not a %s", jj_type_name(a->v[i]));
        v[a->n == 1 ? 1 : i] = jj_as_int(a->v[i]);
    }
    if (v[2] == 0) return jj_type_error(j, "the step of 'range' is zero");
    __int128 span = v[2] > 0 ? (__int128)v[1] - v[0] : (__int128)v[0] - v[1];
    __int128 step = v[2] > 0 ? (__int128)v[2] : -(__int128)v[2], n = span <= 0 ? 0 : (span - 1) / step + 1;
    if (n > MAX_RANGE) return jj_fail(j, IMP_TOO_LARGE, "'range' has more than %d numbers", MAX_RANGE);
    jj_range *r = jj_alloc(j, sizeof *r);
    if (r == NULL) return false;
    *r = (jj_range){v[0], v[1], v[2], (int64_t)n};
    *out = (jj_val){.kind = JJ_RANGE, .range = r};
    return true;
}

/* dict(pairs or dict, name=value, ...), also what namespace() takes. */
static bool make_dict(jj *j, const char *who, const jj_args *a, jj_dict **out)
{
    JJ_TRY(jj_dict_new(j, out));
    if (a->n > 1) return jj_type_error(j, "'%s' takes one argument without a name", who);
    if (a->n == 1 && a->v[0].kind == JJ_DICT) {
        for (size_t i = 0; i < a->v[0].d->n; i++)
            JJ_TRY(jj_dict_put(j, *out, a->v[0].d->key[i], a->v[0].d->value[i]));
    } else if (a->n == 1) {
        const jj_val *pair, *v;
        size_t n, two;
        JJ_TRY(jj_items(j, a->v[0], &pair, &n));
        for (size_t i = 0; i < n; i++) {
            JJ_TRY(jj_items(j, pair[i], &v, &two));
            if (two != 2) return jj_type_error(j, "'%s' takes pairs", who);
            JJ_TRY(jj_dict_put(j, *out, v[0], v[1]));
        }
    }
    for (size_t i = 0; i < a->n_kw; i++)
        JJ_TRY(jj_dict_put(j, *out, (jj_val){.kind = JJ_STR, .s = a->name[i]}, a->kw[i]));
    return true;
}

static bool run_dict(jj *j, const jj_args *a, jj_val *out)
{
    out->kind = JJ_DICT;
    return make_dict(j, "dict", a, &out->d);
}

static bool run_namespace(jj *j, const jj_args *a, jj_val *out)
{
    jj_dict *d;
    JJ_TRY(make_dict(j, "namespace", a, &d));
    for (size_t i = 0; i < d->n; i++)
        if (d->key[i].kind == JJ_STR && d->key[i].s->n > 0 && d->key[i].s->p[0] == '_')
            return jj_type_error(j, "attributes of a namespace may not begin with '_'");
    *out = (jj_val){.kind = JJ_NS, .d = d};
    return true;
}

static bool run_raise(jj *j, const jj_args *a, jj_val *out)
{
    const jj_str *s;
    jj_val message;
    (void)out;
    JJ_TRY(jj_bind(j, "raise_exception", "message", a, &message, 1) && jj_to_str(j, message, &s));
    return jj_fail(j, IMP_INVALID, "%.*s", (int)IMP_MIN(s->n, 350u), s->p);
}

static bool run_strftime(jj *j, const jj_args *a, jj_val *out)
{
    jj_val format;
    JJ_TRY(jj_bind(j, "strftime_now", "format", a, &format, 1));
    if (format.kind != JJ_STR) return jj_type_error(j, "'strftime_now' wants a string");
    char fmt[128], text[512];
    if (format.s->n >= sizeof fmt || memchr(format.s->p, 0, format.s->n) != NULL)
        return jj_fail(j, IMP_UNSUPPORTED, "the format of 'strftime_now' is too long");
    memcpy(fmt, format.s->p, format.s->n);
    fmt[format.s->n] = 0;
    for (const char *p = strchr(fmt, '%'); p != NULL; p = strchr(p + 2, '%')) {
        if (p[1] == 0 || strchr("aAbBcdHIjmMpSUwWxXyYZzGVueDFTRnthCgGlkPre%-", p[1]) == NULL)
            return jj_fail(j, IMP_UNSUPPORTED, "'strftime_now' does not know %%%c", p[1]);
        if (p[1] == '-' && (p[2] == 0 || strchr("dHIjmMSUWyl", p[2]) == NULL))
            return jj_fail(j, IMP_UNSUPPORTED, "'strftime_now' does not know %%-%c", p[2]);
        if (p[1] == 'z' || p[1] == 'Z')
            return jj_fail(j, IMP_UNSUPPORTED, "'strftime_now' does not tell the time zone");
    }
    time_t now = (time_t)j->now;
    struct tm tm;
    if (localtime_r(&now, &tm) == NULL) return jj_fail(j, IMP_INVALID, "the time cannot be told");
    size_t n = strftime(text, sizeof text, fmt, &tm);
    return jj_str_copy(j, text, n, out);
}

static const jj_func functions[] = {{"range", run_range},
                                    {"dict", run_dict},
                                    {"namespace", run_namespace},
                                    {"raise_exception", run_raise},
                                    {"strftime_now", run_strftime},
                                    {"lipsum", NULL},
                                    {"cycler", NULL},
                                    {"joiner", NULL},
                                    {"self", NULL}};

const jj_func *jj_func_find(const jj_str *name)
{
    for (size_t i = 0; i < IMP_COUNT(functions); i++)
        if (jj_str_is(name, functions[i].name)) return &functions[i];
    return NULL;
}

bool jj_call(jj *j, jj_val f, const jj_args *a, jj_val *out)
{
    switch (f.kind) {
    case JJ_UNDEF: return jj_fail_undef(j, f);
    case JJ_FUNC:
        if (f.func->run == NULL)
            return jj_fail(j, IMP_UNSUPPORTED, "the function '%s' is not supported", f.func->name);
        return f.func->run(j, a, out);
    case JJ_METHOD:
        if (f.method->def->run == NULL)
            return jj_fail(j, IMP_UNSUPPORTED, "the method '%s' of %s is not supported", f.method->def->name,
                           jj_type_name(f.method->self));
        return f.method->def->run(j, &f.method->self, a, out);
    case JJ_MACRO: {
        JJ_TRY(jj_enter(j));
        bool good = jj_call_macro(j, f.macro, a, out);
        jj_leave(j);
        return good;
    }
    default: return jj_type_error(j, "a %s cannot be called", jj_type_name(f));
    }
}
