/* text/jinja/filter_text.c - filters on text and numbers. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "text/jinja/jinja_int.h"

static bool text_of(jj *j, jj_val in, const jj_str **out)
{
    return jj_to_str(j, in, out);
}

static bool change(jj *j, const char *who, jj_case how, jj_val in, const jj_args *a, jj_val *out)
{
    const jj_str *s;
    return jj_bind(j, who, "", a, NULL, 0) && text_of(j, in, &s) && jj_change_case(j, s, how, out);
}
static bool run_upper(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    return change(j, "upper", JJ_UPPER, in, a, out);
}
static bool run_lower(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    return change(j, "lower", JJ_LOWER, in, a, out);
}
static bool run_capitalize(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    return change(j, "capitalize", JJ_CAPITAL, in, a, out);
}
static bool run_title(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    return change(j, "title", JJ_WORDS, in, a, out);
}

static bool run_trim(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    jj_val chars;
    const jj_str *s;
    JJ_TRY(jj_bind(j, "trim", "|chars", a, &chars, 1) && text_of(j, in, &s));
    if (chars.kind != JJ_MISSING && chars.kind != JJ_NONE && chars.kind != JJ_STR)
        return jj_type_error(j, "'trim' wants a string of characters");
    return jj_strip(j, s, chars.kind == JJ_STR ? chars.s : NULL, 0, out);
}

static bool run_string(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    JJ_TRY(jj_bind(j, "string", "", a, NULL, 0));
    out->kind = JJ_STR;
    return text_of(j, in, &out->s);
}

static bool run_replace(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    jj_val arg[3];
    const jj_str *s, *old, *with;
    JJ_TRY(jj_bind(j, "replace", "old,new|count", a, arg, 3));
    JJ_TRY(text_of(j, in, &s) && text_of(j, arg[0], &old) && text_of(j, arg[1], &with));
    int64_t count = -1;
    if (arg[2].kind != JJ_MISSING && arg[2].kind != JJ_NONE) {
        if (!jj_is_int(arg[2])) return jj_type_error(j, "the count of 'replace' is a whole number");
        count = jj_as_int(arg[2]);
    }
    return jj_replace(j, s, old, with, count, out);
}

static bool plain_copy(jj *j, const jj_str *s, bool markup, jj_val *out)
{
    jj_str *r = jj_alloc(j, sizeof *r);
    if (r == NULL) return false;
    *r = *s;
    r->markup = markup;
    *out = (jj_val){.kind = JJ_STR, .s = r};
    return true;
}

static bool run_safe(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    const jj_str *s;
    return jj_bind(j, "safe", "", a, NULL, 0) && text_of(j, in, &s) && plain_copy(j, s, true, out);
}

static bool run_escape(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    return jj_bind(j, "escape", "", a, NULL, 0) && jj_escape(j, in, out);
}

static bool run_forceescape(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    const jj_str *s;
    jj_val plain;
    JJ_TRY(jj_bind(j, "forceescape", "", a, NULL, 0) && text_of(j, in, &s) &&
           plain_copy(j, s, false, &plain));
    return jj_escape(j, plain, out);
}

static bool run_indent(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    jj_val arg[3], unit, ended;
    jj_list *line;
    JJ_TRY(jj_bind(j, "indent", "|width,first,blank", a, arg, 3));
    if (in.kind == JJ_UNDEF) return jj_fail_undef(j, in);
    if (in.kind != JJ_STR) return jj_type_error(j, "'indent' wants a string, not a %s", jj_type_name(in));
    JJ_TRY(jj_str_z(j, " ", &unit));
    if (arg[0].kind == JJ_STR)
        unit = arg[0];
    else if (arg[0].kind != JJ_MISSING && !jj_is_int(arg[0]))
        return jj_type_error(j, "'indent' wants a number or a string");
    else
        JJ_TRY(jj_arith(j, JJ_MUL, unit, arg[0].kind == JJ_MISSING ? jj_int(4) : arg[0], &unit));
    bool first = jj_truth(arg[1]), blank = jj_truth(arg[2]);
    JJ_TRY(jj_str_z(j, "\n", &ended) && jj_arith(j, JJ_ADD, in, ended, &ended) &&
           jj_splitlines(j, ended.s, false, &line));
    size_t mark = jj_mark(j);
    for (size_t i = 0; i < line->n; i++) {
        bool deep = i == 0 ? first : blank || line->v[i].s->n > 0;
        if (i > 0) JJ_TRY(jj_put(j, "\n", 1));
        if (deep) JJ_TRY(jj_put(j, unit.s->p, unit.s->n));
        JJ_TRY(jj_put_str(j, line->v[i]));
    }
    return jj_take(j, mark, out);
}

static bool run_center(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    static const jj_str space = {" ", 1, 1, false};
    jj_val width;
    const jj_str *s;
    JJ_TRY(jj_bind(j, "center", "|width", a, &width, 1) && text_of(j, in, &s));
    if (width.kind != JJ_MISSING && !jj_is_int(width))
        return jj_type_error(j, "'center' wants a whole number");
    return jj_pad(j, s, width.kind == JJ_MISSING ? 80 : jj_as_int(width), 0, &space, out);
}

static bool run_truncate(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    static const jj_str dots = {"...", 3, 3, false};
    jj_val arg[4], cut, tail;
    size_t at;
    JJ_TRY(jj_bind(j, "truncate", "|length,killwords,end,leeway", a, arg, 4));
    if (arg[2].kind != JJ_MISSING && arg[2].kind != JJ_STR)
        return jj_type_error(j, "'truncate' wants a string as its end");
    tail = arg[2].kind == JJ_STR ? arg[2] : (jj_val){.kind = JJ_STR, .s = &dots};
    if ((arg[0].kind != JJ_MISSING && !jj_is_int(arg[0])) || (arg[3].kind > JJ_NONE && !jj_is_int(arg[3])))
        return jj_type_error(j, "'truncate' wants whole numbers");
    int64_t length = arg[0].kind == JJ_MISSING ? 255 : jj_as_int(arg[0]),
            leeway = arg[3].kind > JJ_NONE ? jj_as_int(arg[3]) : 5;
    if (length < (int64_t)tail.s->n_cp || leeway < 0)
        return jj_type_error(j, "'truncate' got a length that is too short");
    int64_t n;
    *out = in;
    JJ_TRY(jj_len(j, in, &n));
    if (n - leeway <= length) return true;
    if (in.kind != JJ_STR) return jj_type_error(j, "'truncate' wants a string, not a %s", jj_type_name(in));
    JJ_TRY(jj_substr(j, in.s, 0, (size_t)length - tail.s->n_cp, &cut));
    if (!jj_truth(arg[1])) {
        static const jj_str space = {" ", 1, 1, false};
        if (jj_find(j, cut.s, &space, 0, cut.s->n, true, &at)) JJ_TRY(jj_str_borrow(j, cut.s->p, at, &cut));
    }
    return jj_arith(j, JJ_ADD, cut, tail, out);
}

static bool run_wordcount(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    const jj_str *s;
    int64_t n = 0;
    bool within = false;
    JJ_TRY(jj_bind(j, "wordcount", "", a, NULL, 0) && text_of(j, in, &s) && jj_burn(j, s->n / 4));
    for (size_t i = 0; i < s->n;) {
        int32_t cp;
        i += imp_utf8_decode(s->p + i, s->n - i, &cp);
        bool word = cp == '_' || jj_is_class(cp, JJ_IS_ALPHA) || jj_is_class(cp, JJ_IS_NUMERIC);
        n += word && !within;
        within = word;
    }
    *out = jj_int(n);
    return true;
}

/* ---- numbers -------------------------------------------------------------------------------------------------- */

static bool float_to_int(jj *j, double f, jj_val *out)
{
    if (!(fabs(f) < 9.2e18)) return jj_fail(j, IMP_UNSUPPORTED, "a whole number does not fit 64 bits");
    *out = jj_int((int64_t)f);
    return true;
}

static bool run_int(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    jj_val arg[2];
    int64_t v;
    double f;
    bool overflow = false;
    JJ_TRY(jj_bind(j, "int", "|default,base", a, arg, 2));
    if (in.kind == JJ_UNDEF) return jj_fail_undef(j, in);
    if (arg[1].kind != JJ_MISSING && (!jj_is_int(arg[1]) || jj_as_int(arg[1]) < 2 || jj_as_int(arg[1]) > 36))
        return jj_fail(j, IMP_UNSUPPORTED, "'int' knows the bases 2 to 36");
    int base = arg[1].kind == JJ_MISSING ? 10 : (int)jj_as_int(arg[1]);
    *out = arg[0].kind == JJ_MISSING ? jj_int(0) : arg[0];
    if (jj_is_int(in)) {
        *out = jj_int(jj_as_int(in));
    } else if (in.kind == JJ_FLOAT) {
        if (isinf(in.f)) return jj_type_error(j, "infinity is no whole number");
        return isnan(in.f) || float_to_int(j, in.f, out);
    } else if (in.kind == JJ_STR) {
        if (jj_parse_int(in.s, base, &v, &overflow))
            *out = jj_int(v);
        else if (overflow)
            return jj_fail(j, IMP_UNSUPPORTED, "a whole number does not fit 64 bits");
        else if (jj_parse_float(in.s, &f) && isfinite(f))
            return float_to_int(j, f, out);
    }
    return true;
}

static bool run_float(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    jj_val fallback;
    double f;
    JJ_TRY(jj_bind(j, "float", "|default", a, &fallback, 1));
    if (in.kind == JJ_UNDEF) return jj_fail_undef(j, in);
    *out = fallback.kind == JJ_MISSING ? jj_float(0) : fallback;
    if (jj_is_num(in))
        *out = jj_float(jj_as_float(in));
    else if (in.kind == JJ_STR && jj_parse_float(in.s, &f))
        *out = jj_float(f);
    return true;
}

static bool run_abs(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    JJ_TRY(jj_bind(j, "abs", "", a, NULL, 0));
    if (!jj_is_num(in)) return jj_type_error(j, "'abs' wants a number, not a %s", jj_type_name(in));
    if (in.kind == JJ_FLOAT) {
        *out = jj_float(fabs(in.f));
        return true;
    }
    *out = jj_int(jj_as_int(in));
    return out->i >= 0 || jj_negate(j, in, out);
}

/* Rounding to even at `digits` decimals, by way of the exact decimal text, as Python rounds. */
static double round_digits(double f, int64_t digits)
{
    char text[420];
    if (digits > 300) return f;
    if (digits >= 0) {
        (void)snprintf(text, sizeof text, "%.*f", (int)digits, f);
        return strtod(text, NULL);
    }
    if (digits < -308) return copysign(0, f);
    double scale = pow(10, (double)-digits), q = f / scale, r = nearbyint(q);
    return r * scale;
}

static bool run_round(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    jj_val arg[2];
    JJ_TRY(jj_bind(j, "round", "|precision,method", a, arg, 2));
    if (arg[0].kind != JJ_MISSING && !jj_is_int(arg[0]))
        return jj_type_error(j, "the precision of 'round' is a whole number");
    int64_t digits = arg[0].kind == JJ_MISSING ? 0 : jj_as_int(arg[0]);
    bool common = arg[1].kind == JJ_MISSING || (arg[1].kind == JJ_STR && jj_str_is(arg[1].s, "common"));
    bool ceiling = arg[1].kind == JJ_STR && jj_str_is(arg[1].s, "ceil");
    if (!common && !ceiling && !(arg[1].kind == JJ_STR && jj_str_is(arg[1].s, "floor")))
        return jj_type_error(j, "'round' knows common, ceil and floor");
    if (in.kind == JJ_UNDEF) return jj_fail_undef(j, in);
    if (!jj_is_num(in)) return jj_type_error(j, "'round' wants a number, not a %s", jj_type_name(in));
    if (common && jj_is_int(in)) {
        if (digits < 0)
            return jj_fail(j, IMP_UNSUPPORTED, "'round' of whole numbers to tens is not supported");
        *out = jj_int(jj_as_int(in));
        return true;
    }
    if (common) {
        *out = jj_float(isfinite(in.f) ? round_digits(in.f, digits) : in.f);
        return true;
    }
    if (digits > 300 || digits < -300)
        return jj_fail(j, IMP_UNSUPPORTED, "'round' to %lld digits", (long long)digits);
    double scale = pow(10, (double)digits), f = jj_as_float(in) * scale;
    *out = jj_float((ceiling ? ceil(f) : floor(f)) / scale);
    return true;
}

static bool run_format(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    const jj_str *s;
    jj_val args;
    if (a->n > 0 && a->n_kw > 0)
        return jj_type_error(j, "'format' takes arguments by place or by name, not both");
    JJ_TRY(text_of(j, in, &s));
    if (a->n_kw > 0) {
        jj_dict *d;
        JJ_TRY(jj_dict_new(j, &d));
        for (size_t i = 0; i < a->n_kw; i++)
            JJ_TRY(jj_dict_put(j, d, (jj_val){.kind = JJ_STR, .s = a->name[i]}, a->kw[i]));
        args = (jj_val){.kind = JJ_DICT, .d = d};
    } else {
        jj_list *l;
        JJ_TRY(jj_list_new(j, a->n, &l));
        for (size_t i = 0; i < a->n; i++) l->v[l->n++] = a->v[i];
        args = jj_list_val(l, true);
    }
    return jj_format_percent(j, s, args, out);
}

const jj_filter_def jj_text_filters[] = {{"upper", run_upper},
                                         {"lower", run_lower},
                                         {"capitalize", run_capitalize},
                                         {"title", run_title},
                                         {"trim", run_trim},
                                         {"string", run_string},
                                         {"replace", run_replace},
                                         {"safe", run_safe},
                                         {"escape", run_escape},
                                         {"e", run_escape},
                                         {"forceescape", run_forceescape},
                                         {"indent", run_indent},
                                         {"center", run_center},
                                         {"truncate", run_truncate},
                                         {"wordcount", run_wordcount},
                                         {"int", run_int},
                                         {"float", run_float},
                                         {"abs", run_abs},
                                         {"round", run_round},
                                         {"format", run_format},
                                         {"tojson", jj_tojson},
                                         {NULL, NULL}};

const jj_filter_def *jj_filter_find(const char *name, size_t n)
{
    const jj_filter_def *const tables[] = {jj_text_filters, jj_seq_filters};
    for (size_t t = 0; t < IMP_COUNT(tables); t++)
        for (const jj_filter_def *f = tables[t]; f->name != NULL; f++)
            if (strlen(f->name) == n && memcmp(f->name, name, n) == 0) return f;
    return NULL;
}
