/* text/jinja/json.c - JSON into values, and values into JSON as Python's json.dumps writes it. */
#include <math.h>
#include <stdio.h>

#include "text/jinja/jinja_int.h"

static bool object_in(jj *j, const json_t *v, jj_val *out, uint64_t *n_value)
{
    jj_dict *d;
    const char *key;
    json_t *item;
    size_t n;
    JJ_TRY(jj_dict_new(j, &d));
    json_object_keylen_foreach((json_t *)v, key, n, item)
    {
        jj_val k, x;
        JJ_TRY(jj_str_borrow(j, key, n, &k) && jj_from_json(j, item, &x, n_value) && jj_dict_put(j, d, k, x));
    }
    *out = (jj_val){.kind = JJ_DICT, .d = d};
    return true;
}

static bool array_in(jj *j, const json_t *v, jj_val *out, uint64_t *n_value)
{
    jj_list *l;
    JJ_TRY(jj_list_new(j, json_array_size(v), &l));
    for (size_t i = 0; i < l->cap; i++) JJ_TRY(jj_from_json(j, json_array_get(v, i), &l->v[l->n++], n_value));
    *out = jj_list_val(l, false);
    return true;
}

bool jj_from_json(jj *j, const json_t *v, jj_val *out, uint64_t *n_value)
{
    ++*n_value;
    *out = jj_none();
    switch (v != NULL ? json_typeof(v) : JSON_NULL) {
    case JSON_NULL: return true;
    case JSON_TRUE:
    case JSON_FALSE: *out = jj_bool(json_is_true(v)); return true;
    case JSON_INTEGER: *out = jj_int(json_integer_value(v)); return true;
    case JSON_REAL: *out = jj_float(json_real_value(v)); return true;
    case JSON_STRING: return jj_str_borrow(j, json_string_value(v), json_string_length(v), out);
    default: break;
    }
    JJ_TRY(jj_enter(j));
    bool good = json_is_object(v) ? object_in(j, v, out, n_value) : array_in(j, v, out, n_value);
    jj_leave(j);
    return good;
}

/* ---- json.dumps ------------------------------------------------------------------------------------------ */

typedef struct style {
    bool ascii, sort, pretty;
    const jj_str *indent; /* of one level */
    const jj_str *comma, *colon;
    uint32_t level;
} style;

static bool dump(jj *j, style *s, jj_val v);

static bool dump_string(jj *j, const style *s, const jj_str *text)
{
    char buf[24];
    size_t plain = 0;
    JJ_TRY(jj_put(j, "\"", 1));
    for (size_t i = 0, k; i < text->n; i += k) {
        int32_t cp;
        k = imp_utf8_decode(text->p + i, text->n - i, &cp);
        if (cp >= 0x20 && cp != '"' && cp != '\\' && (!s->ascii || cp < 0x7f)) continue;
        JJ_TRY(jj_put(j, text->p + plain, i - plain));
        plain = i + k;
        static const char from[] = "\"\\\n\r\t\f\b", to[] = "\"\\nrtfb";
        const char *simple = cp > 0 && cp < 0x80 ? strchr(from, (char)cp) : NULL;
        if (simple != NULL)
            (void)snprintf(buf, sizeof buf, "\\%c", to[simple - from]);
        else if (cp < 0x10000)
            (void)snprintf(buf, sizeof buf, "\\u%04x", (unsigned)cp);
        else
            (void)snprintf(buf, sizeof buf, "\\u%04x\\u%04x", 0xd800u + (((unsigned)cp - 0x10000u) >> 10),
                           0xdc00u + ((unsigned)cp & 0x3ffu));
        JJ_TRY(jj_put_z(j, buf));
    }
    return jj_put(j, text->p + plain, text->n - plain) && jj_put(j, "\"", 1);
}

static bool dump_float(jj *j, double f)
{
    char buf[40];
    if (isnan(f) || isinf(f)) return jj_put_z(j, isnan(f) ? "NaN" : f < 0 ? "-Infinity" : "Infinity");
    return jj_put(j, buf, jj_float_repr(f, buf));
}

static bool dump_key(jj *j, const style *s, jj_val k)
{
    if (k.kind == JJ_STR) return dump_string(j, s, k.s);
    if (k.kind != JJ_NONE && !jj_is_num(k))
        return jj_type_error(j, "a key of JSON cannot be a %s", jj_type_name(k));
    style plain = {0};
    return jj_put(j, "\"", 1) && dump(j, &plain, k) && jj_put(j, "\"", 1);
}

static bool new_line(jj *j, const style *s)
{
    if (!s->pretty) return true;
    JJ_TRY(jj_put(j, "\n", 1));
    for (uint32_t i = 0; i < s->level; i++) JJ_TRY(jj_put(j, s->indent->p, s->indent->n));
    return true;
}

static bool dump_dict(jj *j, style *s, const jj_dict *d)
{
    const jj_val *key = d->key, *value = d->value;
    if (d->n == 0) return jj_put(j, "{}", 2);
    if (s->sort) {
        jj_val *k2 = jj_array(j, d->n, sizeof *k2), *v2 = jj_array(j, d->n, sizeof *v2);
        if (k2 == NULL || v2 == NULL) return false;
        memcpy(k2, key, d->n * sizeof *key);
        memcpy(v2, value, d->n * sizeof *value);
        JJ_TRY(jj_sort(j, v2, k2, d->n, false));
        key = k2;
        value = v2;
    }
    JJ_TRY(jj_put(j, "{", 1));
    s->level++;
    for (size_t i = 0; i < d->n; i++)
        JJ_TRY((i == 0 || jj_put(j, s->comma->p, s->comma->n)) && new_line(j, s) && dump_key(j, s, key[i]) &&
               jj_put(j, s->colon->p, s->colon->n) && dump(j, s, value[i]));
    s->level--;
    return new_line(j, s) && jj_put(j, "}", 1);
}

static bool dump_list(jj *j, style *s, const jj_list *l)
{
    if (l->n == 0) return jj_put(j, "[]", 2);
    JJ_TRY(jj_put(j, "[", 1));
    s->level++;
    for (size_t i = 0; i < l->n; i++)
        JJ_TRY((i == 0 || jj_put(j, s->comma->p, s->comma->n)) && new_line(j, s) && dump(j, s, l->v[i]));
    s->level--;
    return new_line(j, s) && jj_put(j, "]", 1);
}

static bool dump(jj *j, style *s, jj_val v)
{
    JJ_TRY(jj_burn(j, 3));
    switch (v.kind) {
    case JJ_NONE: return jj_put_z(j, "null");
    case JJ_BOOL: return jj_put_z(j, v.b ? "true" : "false");
    case JJ_INT: return jj_put_repr(j, v);
    case JJ_FLOAT: return dump_float(j, v.f);
    case JJ_STR: return dump_string(j, s, v.s);
    case JJ_LIST:
    case JJ_TUPLE:
    case JJ_DICT: break;
    default: return jj_type_error(j, "a %s cannot be written as JSON", jj_type_name(v));
    }
    JJ_TRY(jj_enter(j));
    bool good = v.kind == JJ_DICT ? dump_dict(j, s, v.d) : dump_list(j, s, v.l);
    jj_leave(j);
    return good;
}

static bool separators(jj *j, style *s, jj_val pair)
{
    const jj_val *v;
    size_t n;
    if (pair.kind == JJ_MISSING || pair.kind == JJ_NONE) return true;
    JJ_TRY(jj_items(j, pair, &v, &n));
    if (n != 2 || v[0].kind != JJ_STR || v[1].kind != JJ_STR)
        return jj_type_error(j, "separators of tojson are two strings");
    s->comma = v[0].s;
    s->colon = v[1].s;
    return true;
}

bool jj_tojson(jj *j, jj_val in, const jj_args *a, jj_val *out)
{
    static const jj_str wide = {", ", 2, 2, false}, narrow = {",", 1, 1, false}, colon = {": ", 2, 2, false};
    jj_val arg[4];
    style s = {.colon = &colon};
    JJ_TRY(jj_bind(j, "tojson", "|ensure_ascii,indent,separators,sort_keys", a, arg, 4));
    s.ascii = jj_truth(arg[0]);
    s.sort = jj_truth(arg[3]);
    s.pretty = arg[1].kind != JJ_MISSING && arg[1].kind != JJ_NONE;
    s.comma = s.pretty ? &narrow : &wide;
    if (s.pretty && arg[1].kind == JJ_STR) {
        s.indent = arg[1].s;
    } else if (s.pretty) {
        static const char spaces[] = "                                                                ";
        if (!jj_is_int(arg[1])) return jj_type_error(j, "indent of tojson is a number or a string");
        int64_t n = IMP_MAX(jj_as_int(arg[1]), 0);
        if (n > (int64_t)sizeof spaces - 1)
            return jj_fail(j, IMP_UNSUPPORTED, "tojson indents by at most %zu", sizeof spaces - 1);
        jj_val v;
        JJ_TRY(jj_str_borrow(j, spaces, (size_t)n, &v));
        s.indent = v.s;
    }
    JJ_TRY(separators(j, &s, arg[2]));
    size_t mark = jj_mark(j);
    return dump(j, &s, in) && jj_take(j, mark, out);
}
