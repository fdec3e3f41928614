/* text/jinja/value.c - values of the interpreter: making them, counting and walking them, writing them as Python does.
 *
 * Idea:    memory comes from one arena with a cap; text that is built up is written to the end of the output and cut
 *          off again (jj_mark, jj_take), so that a nested capture needs no buffer of its own.
 * Always:  bytes copied or walked cost fuel, 1 step for 32. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "text/jinja/jinja_int.h"

enum { SMALL_DICT = 8 };

/* ---- errors and memory ------------------------------------------------------------------------------- */

bool jj_fail(jj *j, imp_status status, const char *fmt, ...)
{
    if (j->status != IMP_OK) return false;
    j->status = status;
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    for (char *p = text; *p != 0; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = ' ';
    for (size_t n = strlen(text); n > 0 && !imp_utf8_valid(text, n);)
        text[--n] = 0; /* cut within a character */
    (void)imp_fail(j->err, status, "chat template, line %u: %s", j->line, text);
    return false;
}

bool jj_fail_undef(jj *j, jj_val v)
{
    const jj_undef *u = v.u;
    if (u == NULL) return jj_fail(j, IMP_INVALID, "an undefined value is used");
    if (u->hint != NULL) return jj_fail(j, IMP_INVALID, "%s", u->hint);
    int n = (int)IMP_MIN(u->name->n, 100u);
    if (u->owner == NULL) return jj_fail(j, IMP_INVALID, "'%.*s' is undefined", n, u->name->p);
    return jj_fail(j, IMP_INVALID, "'%s' has no attribute '%.*s'", u->owner, n, u->name->p);
}

bool jj_out_of_fuel(jj *j)
{
    j->fuel = 0;
    return jj_fail(j, IMP_TOO_LARGE, "the template takes too many steps");
}

bool jj_enter(jj *j)
{
    if (j->depth >= j->depth_cap) return jj_fail(j, IMP_TOO_LARGE, "the template is nested too deeply");
    j->depth++;
    return true;
}

void *jj_alloc(jj *j, size_t n)
{
    if (n > j->mem_cap - j->mem_used || j->mem_cap - j->mem_used - n < 16) {
        (void)jj_fail(j, IMP_TOO_LARGE, "the template needs more than %zu MB of memory", j->mem_cap >> 20);
        return NULL;
    }
    if (!jj_burn(j, 1 + n / 32)) return NULL;
    j->mem_used += (n + 15) & ~(size_t)15;
    void *p = imp_arena_alloc(j->arena, n);
    if (p == NULL) (void)jj_fail(j, IMP_NOMEM, "not enough memory for the template");
    return p;
}

void *jj_array(jj *j, size_t n, size_t size)
{
    if (n > j->mem_cap / size) {
        (void)jj_fail(j, IMP_TOO_LARGE, "the template needs more than %zu MB of memory", j->mem_cap >> 20);
        return NULL;
    }
    return jj_alloc(j, n * size);
}

/* ---- strings ----------------------------------------------------------------------------------------- */

size_t jj_count_cp(const char *p, size_t n)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) k += ((unsigned char)p[i] & 0xc0) != 0x80;
    return k;
}

bool jj_str_borrow(jj *j, const char *p, size_t n, jj_val *out)
{
    JJ_TRY(jj_burn(j, n / 32));
    jj_str *s = jj_alloc(j, sizeof *s);
    if (s == NULL) return false;
    *s = (jj_str){.p = p, .n = n, .n_cp = jj_count_cp(p, n)};
    *out = (jj_val){.kind = JJ_STR, .s = s};
    return true;
}

bool jj_str_copy(jj *j, const char *p, size_t n, jj_val *out)
{
    char *copy = jj_alloc(j, n + 1);
    if (copy == NULL) return false;
    memcpy(copy, p, n);
    return jj_str_borrow(j, copy, n, out);
}

bool jj_str_char(jj *j, const char *p, size_t n, jj_val *out)
{
    if (n != 1) return jj_str_borrow(j, p, n, out);
    if (j->ascii == NULL) {
        j->ascii = jj_array(j, 128, sizeof *j->ascii);
        char *text = jj_alloc(j, 128);
        if (j->ascii == NULL || text == NULL) return false;
        for (int i = 0; i < 128; i++) {
            text[i] = (char)i;
            j->ascii[i] = (jj_str){.p = &text[i], .n = 1, .n_cp = 1};
        }
    }
    *out = (jj_val){.kind = JJ_STR, .s = &j->ascii[(unsigned char)*p & 127]};
    return true;
}

bool jj_str_z(jj *j, const char *z, jj_val *out)
{
    return jj_str_borrow(j, z, strlen(z), out);
}

bool jj_str_eq(const jj_str *a, const jj_str *b)
{
    return a == b || (a->n == b->n && memcmp(a->p, b->p, a->n) == 0);
}

bool jj_str_is(const jj_str *a, const char *z)
{
    return a->n == strlen(z) && memcmp(a->p, z, a->n) == 0;
}

size_t jj_str_at(const jj_str *s, size_t cp)
{
    if (s->n == s->n_cp) return cp;
    if (cp >= s->n_cp) return s->n;
    size_t i = 0;
    for (;; i++) {
        if (((unsigned char)s->p[i] & 0xc0) == 0x80) continue;
        if (cp-- == 0) return i;
    }
}

/* ---- lists, dicts --------------------------------------------------------------------------------------- */

bool jj_list_new(jj *j, size_t cap, jj_list **out)
{
    jj_list *l = jj_alloc(j, sizeof *l);
    if (l == NULL) return false;
    if (cap > 0) {
        l->v = jj_array(j, cap, sizeof *l->v);
        if (l->v == NULL) return false;
    }
    l->cap = cap;
    *out = l;
    return true;
}

bool jj_list_add(jj *j, jj_list *l, jj_val v)
{
    if (l->n == l->cap) {
        size_t cap = l->cap < 4 ? 4 : l->cap * 2;
        jj_val *more = jj_array(j, cap, sizeof *more);
        if (more == NULL) return false;
        if (l->n > 0) memcpy(more, l->v, l->n * sizeof *more);
        l->v = more;
        l->cap = cap;
    }
    l->v[l->n++] = v;
    return true;
}

jj_val jj_list_val(jj_list *l, bool tuple)
{
    return (jj_val){.kind = tuple ? JJ_TUPLE : JJ_LIST, .l = l};
}

bool jj_pair(jj *j, jj_val a, jj_val b, jj_val *out)
{
    jj_list *l;
    JJ_TRY(jj_list_new(j, 2, &l));
    l->v[0] = a;
    l->v[1] = b;
    l->n = 2;
    *out = jj_list_val(l, true);
    return true;
}

bool jj_iter_new(jj *j, const jj_val *v, size_t n, jj_val *out)
{
    jj_iter *it = jj_alloc(j, sizeof *it);
    if (it == NULL) return false;
    *it = (jj_iter){.v = v, .n = n};
    *out = (jj_val){.kind = JJ_ITER, .iter = it};
    return true;
}

bool jj_dict_new(jj *j, jj_dict **out)
{
    return (*out = jj_alloc(j, sizeof **out)) != NULL;
}

bool jj_hashable(jj_val v)
{
    if (v.kind == JJ_LIST || v.kind == JJ_DICT || v.kind == JJ_VIEW) return false;
    if (v.kind != JJ_TUPLE) return true;
    for (size_t i = 0; i < v.l->n; i++)
        if (v.l->v[i].kind == JJ_TUPLE || !jj_hashable(v.l->v[i]))
            return false; /* tuples in tuples: not as keys here */
    return true;
}

/* Equality of keys: never recurses deeper than a tuple of plain values. */
static bool key_equal(jj_val a, jj_val b)
{
    if (a.kind == JJ_STR && b.kind == JJ_STR) return jj_str_eq(a.s, b.s);
    if (jj_is_num(a) && jj_is_num(b)) {
        if (jj_is_int(a) && jj_is_int(b)) return jj_as_int(a) == jj_as_int(b);
        return jj_as_float(a) == jj_as_float(b);
    }
    if (a.kind == JJ_TUPLE && b.kind == JJ_TUPLE) {
        if (a.l->n != b.l->n) return false;
        for (size_t i = 0; i < a.l->n; i++)
            if (a.l->v[i].kind == JJ_TUPLE || !key_equal(a.l->v[i], b.l->v[i])) return false;
        return true;
    }
    return jj_same(a, b);
}

static uint64_t key_hash(jj_val k)
{
    if (k.kind == JJ_STR) return imp_hash(k.s->p, k.s->n, 1);
    if (jj_is_num(k)) {
        double f = jj_as_float(k) + 0.0; /* 1, 1.0 and True are one key */
        return imp_hash(&f, sizeof f, 2);
    }
    if (k.kind == JJ_TUPLE) {
        uint64_t h = k.l->n;
        for (size_t i = 0; i < k.l->n; i++)
            if (k.l->v[i].kind != JJ_TUPLE) h = h * 31 + key_hash(k.l->v[i]);
        return h;
    }
    return (uint64_t)k.kind;
}

static bool dict_index(jj *j, jj_dict *d)
{
    size_t n_slot = 32;
    while (n_slot < d->cap * 2) n_slot *= 2;
    d->slot = jj_array(j, n_slot, sizeof *d->slot);
    if (d->slot == NULL) return false;
    d->n_slot = n_slot;
    for (size_t i = 0; i < d->n; i++) {
        size_t at = key_hash(d->key[i]) & (n_slot - 1);
        while (d->slot[at] != 0) at = (at + 1) & (n_slot - 1);
        d->slot[at] = (uint32_t)i + 1;
    }
    return true;
}

static size_t dict_place(const jj_dict *d, jj_val key)
{
    if (d->slot == NULL) {
        for (size_t i = 0; i < d->n; i++)
            if (key_equal(d->key[i], key)) return i;
        return SIZE_MAX;
    }
    for (size_t at = key_hash(key) & (d->n_slot - 1); d->slot[at] != 0; at = (at + 1) & (d->n_slot - 1))
        if (key_equal(d->key[d->slot[at] - 1], key)) return d->slot[at] - 1;
    return SIZE_MAX;
}

bool jj_dict_put(jj *j, jj_dict *d, jj_val key, jj_val value)
{
    if (!jj_hashable(key)) return jj_type_error(j, "a %s cannot be a key of a dict", jj_type_name(key));
    JJ_TRY(jj_burn(j, 3));
    size_t at = dict_place(d, key);
    if (at != SIZE_MAX) {
        d->value[at] = value;
        return true;
    }
    if (d->n == d->cap) {
        size_t cap = d->cap < 4 ? 4 : d->cap * 2;
        jj_val *more = jj_array(j, cap * 2, sizeof *more);
        if (more == NULL) return false;
        if (d->n > 0) {
            memcpy(more, d->key, d->n * sizeof *more);
            memcpy(more + cap, d->value, d->n * sizeof *more);
        }
        d->key = more;
        d->value = more + cap;
        d->cap = cap;
        if (cap > SMALL_DICT) JJ_TRY(dict_index(j, d));
    }
    if (d->slot != NULL) {
        size_t s = key_hash(key) & (d->n_slot - 1);
        while (d->slot[s] != 0) s = (s + 1) & (d->n_slot - 1);
        d->slot[s] = (uint32_t)d->n + 1;
    }
    d->key[d->n] = key;
    d->value[d->n++] = value;
    return true;
}

const jj_val *jj_dict_find(const jj_dict *d, jj_val key)
{
    size_t at = dict_place(d, key);
    return at == SIZE_MAX ? NULL : &d->value[at];
}

const jj_val *jj_dict_find_str(const jj_dict *d, const jj_str *key)
{
    return jj_dict_find(d, (jj_val){.kind = JJ_STR, .s = key});
}

/* ---- what every value can do -------------------------------------------------------------------------- */

const char *jj_type_name(jj_val v)
{
    static const char *const name[] = {"missing",  "Undefined", "NoneType",   "bool",      "int",
                                       "float",    "str",       "list",       "tuple",     "dict",
                                       NULL,       "range",     "generator",  "Namespace", "Macro",
                                       "function", "method",    "LoopContext"};
    static const char *const view[] = {"dict_keys", "dict_values", "dict_items"};
    return v.kind == JJ_VIEW ? view[v.view->kind] : name[v.kind];
}

bool jj_has_len(jj_val v)
{
    return v.kind == JJ_UNDEF || v.kind == JJ_STR || v.kind == JJ_LIST || v.kind == JJ_TUPLE ||
           v.kind == JJ_DICT || v.kind == JJ_VIEW || v.kind == JJ_RANGE || v.kind == JJ_LOOP;
}

static size_t length(jj_val v)
{
    switch (v.kind) {
    case JJ_STR: return v.s->n_cp;
    case JJ_LIST:
    case JJ_TUPLE: return v.l->n;
    case JJ_DICT: return v.d->n;
    case JJ_VIEW: return v.view->d->n;
    case JJ_RANGE: return (size_t)v.range->n;
    case JJ_LOOP: return v.loop->n;
    default: return 0;
    }
}

bool jj_truth(jj_val v)
{
    switch (v.kind) {
    case JJ_MISSING:
    case JJ_UNDEF:
    case JJ_NONE: return false;
    case JJ_BOOL: return v.b;
    case JJ_INT: return v.i != 0;
    case JJ_FLOAT: return v.f != 0;
    default: return !jj_has_len(v) || length(v) > 0;
    }
}

bool jj_len(jj *j, jj_val v, int64_t *out)
{
    if (!jj_has_len(v)) return jj_type_error(j, "a %s has no length", jj_type_name(v));
    *out = (int64_t)length(v);
    return true;
}

bool jj_iterable(jj_val v)
{
    return jj_has_len(v) || v.kind == JJ_ITER;
}

bool jj_view_at(jj *j, const jj_view *v, size_t i, jj_val *out)
{
    if (v->kind == JJ_ITEMS) return jj_pair(j, v->d->key[i], v->d->value[i], out);
    *out = v->kind == JJ_KEYS ? v->d->key[i] : v->d->value[i];
    return true;
}

/* A fresh array for n items; NULL after jj_fail. */
static jj_val *items_array(jj *j, size_t n)
{
    return jj_burn(j, n) ? jj_array(j, n + 1, sizeof(jj_val)) : NULL;
}

static bool string_items(jj *j, const jj_str *s, const jj_val **out)
{
    jj_val *v = items_array(j, s->n_cp);
    if (v == NULL) return false;
    for (size_t i = 0, k = 0; i < s->n; k++) {
        int32_t cp;
        size_t n = imp_utf8_decode(s->p + i, s->n - i, &cp);
        JJ_TRY(jj_str_char(j, s->p + i, n, &v[k]));
        i += n;
    }
    *out = v;
    return true;
}

bool jj_items(jj *j, jj_val v, const jj_val **out, size_t *n)
{
    jj_val *made;
    *n = length(v);
    *out = NULL;
    switch (v.kind) {
    case JJ_UNDEF: return true;
    case JJ_LIST:
    case JJ_TUPLE: *out = v.l->v; return true;
    case JJ_DICT: *out = v.d->key; return true;
    case JJ_STR: return string_items(j, v.s, out);
    case JJ_ITER:
        *n = v.iter->n - v.iter->pos;
        if (*n > 0) *out = v.iter->v + v.iter->pos;
        v.iter->pos = v.iter->n;
        return true;
    case JJ_VIEW:
        if ((made = items_array(j, *n)) == NULL) return false;
        for (size_t i = 0; i < *n; i++) JJ_TRY(jj_view_at(j, v.view, i, &made[i]));
        *out = made;
        return true;
    case JJ_RANGE:
        if ((made = items_array(j, *n)) == NULL) return false;
        for (size_t i = 0; i < *n; i++) made[i] = jj_int(v.range->start + (int64_t)i * v.range->step);
        *out = made;
        return true;
    default: return jj_type_error(j, "a %s cannot be iterated over", jj_type_name(v));
    }
}

/* ---- writing -------------------------------------------------------------------------------------------- */

bool jj_put(jj *j, const char *p, size_t n)
{
    if (n > j->out_cap - (j->out->n - j->out_start))
        return jj_fail(j, IMP_TOO_LARGE, "the template writes more than %zu bytes", j->out_cap);
    JJ_TRY(jj_burn(j, n / 32));
    imp_buf_add(j->out, p, n);
    return !j->out->failed || jj_fail(j, IMP_NOMEM, "not enough memory for the prompt");
}

bool jj_put_z(jj *j, const char *z)
{
    return jj_put(j, z, strlen(z));
}

bool jj_put_cp(jj *j, int32_t cp)
{
    char utf8[4];
    return jj_put(j, utf8, imp_utf8_encode(cp, utf8));
}

bool jj_take(jj *j, size_t mark, jj_val *out)
{
    JJ_TRY(jj_str_copy(j, j->out->data != NULL ? j->out->data + mark : "", j->out->n - mark, out));
    j->out->n = mark;
    return true;
}

bool jj_to_str(jj *j, jj_val v, const jj_str **out)
{
    jj_val s = v;
    if (v.kind != JJ_STR) {
        size_t mark = jj_mark(j);
        JJ_TRY(jj_put_str(j, v) && jj_take(j, mark, &s));
    }
    *out = s.s;
    return true;
}

/* The shortest decimal that reads back as f, in the form of Python's repr. */
size_t jj_float_repr(double f, char out[40])
{
    if (isnan(f) || isinf(f))
        return (size_t)snprintf(out, 40, "%s", isnan(f) ? "nan" : f < 0 ? "-inf" : "inf");
    char sci[40], digit[24];
    int precision = 0;
    do (void)snprintf(sci, sizeof sci, "%.*e", precision, f);
    while (strtod(sci, NULL) != f && ++precision < 17);
    char *e = strchr(sci, 'e');
    int exp = atoi(e + 1), n = 0;
    for (char *p = sci; p < e; p++)
        if (*p >= '0' && *p <= '9') digit[n++] = *p;
    while (n > 1 && digit[n - 1] == '0') n--;
    size_t w = 0;
    if (sci[0] == '-') out[w++] = '-';
    if (exp < -4 || exp >= 16) {
        out[w++] = digit[0];
        if (n > 1) out[w++] = '.';
        for (int i = 1; i < n; i++) out[w++] = digit[i];
        return w + (size_t)snprintf(out + w, 40 - w, "e%c%02d", exp < 0 ? '-' : '+', abs(exp));
    }
    if (exp < 0) {
        out[w++] = '0';
        out[w++] = '.';
        for (int i = -1; i > exp; i--) out[w++] = '0';
    }
    for (int i = 0; i < n || i <= exp; i++) {
        if (i == exp + 1 && exp >= 0) out[w++] = '.';
        out[w++] = i < n ? digit[i] : '0';
    }
    if (exp >= 0 && n <= exp + 1) {
        out[w++] = '.';
        out[w++] = '0';
    }
    out[w] = 0;
    return w;
}

static bool repr_str(jj *j, const jj_str *s)
{
    bool single = memchr(s->p, '\'', s->n) != NULL, twice = memchr(s->p, '"', s->n) != NULL;
    char quote = single && !twice ? '"' : '\'', text[16];
    JJ_TRY(jj_put(j, &quote, 1));
    for (size_t i = 0, k; i < s->n; i += k) {
        int32_t cp;
        k = imp_utf8_decode(s->p + i, s->n - i, &cp);
        if (cp == '\\' || cp == quote) {
            (void)snprintf(text, sizeof text, "\\%c", (int)cp);
        } else if (cp == '\n' || cp == '\r' || cp == '\t') {
            (void)snprintf(text, sizeof text, "\\%c", cp == '\n' ? 'n' : cp == '\r' ? 'r' : 't');
        } else if (jj_is_printable(cp)) {
            JJ_TRY(jj_put(j, s->p + i, k));
            continue;
        } else {
            (void)snprintf(text, sizeof text,
                           cp < 0x100     ? "\\x%02x"
                           : cp < 0x10000 ? "\\u%04x"
                                          : "\\U%08x",
                           (unsigned)cp);
        }
        JJ_TRY(jj_put_z(j, text));
    }
    return jj_put(j, &quote, 1);
}

static bool repr_items(jj *j, const jj_val *v, size_t n, const char *open, const char *close)
{
    JJ_TRY(jj_put_z(j, open));
    for (size_t i = 0; i < n; i++) JJ_TRY((i == 0 || jj_put_z(j, ", ")) && jj_put_repr(j, v[i]));
    return jj_put_z(j, close);
}

static bool repr_dict(jj *j, const jj_dict *d)
{
    JJ_TRY(jj_put_z(j, "{"));
    for (size_t i = 0; i < d->n; i++)
        JJ_TRY((i == 0 || jj_put_z(j, ", ")) && jj_put_repr(j, d->key[i]) && jj_put_z(j, ": ") &&
               jj_put_repr(j, d->value[i]));
    return jj_put_z(j, "}");
}

static bool repr_view(jj *j, jj_val v)
{
    const jj_val *item;
    size_t n;
    JJ_TRY(jj_items(j, v, &item, &n));
    return jj_put_z(j, jj_type_name(v)) && repr_items(j, item, n, "([", "])");
}

static bool repr_container(jj *j, jj_val v)
{
    switch (v.kind) {
    case JJ_LIST: return repr_items(j, v.l->v, v.l->n, "[", "]");
    case JJ_TUPLE: return repr_items(j, v.l->v, v.l->n, "(", v.l->n == 1 ? ",)" : ")");
    case JJ_DICT: return repr_dict(j, v.d);
    case JJ_VIEW: return repr_view(j, v);
    case JJ_NS: return jj_put_z(j, "<Namespace ") && repr_dict(j, v.d) && jj_put_z(j, ">");
    default:
        return jj_fail(j, IMP_UNSUPPORTED, "a %s is written out, which has no fixed text", jj_type_name(v));
    }
}

bool jj_put_repr(jj *j, jj_val v)
{
    char text[96];
    JJ_TRY(jj_burn(j, 1));
    switch (v.kind) {
    case JJ_UNDEF: return jj_put_z(j, "Undefined");
    case JJ_NONE: return jj_put_z(j, "None");
    case JJ_BOOL: return jj_put_z(j, v.b ? "True" : "False");
    case JJ_INT: return jj_put(j, text, (size_t)snprintf(text, sizeof text, "%lld", (long long)v.i));
    case JJ_FLOAT: return jj_put(j, text, jj_float_repr(v.f, text));
    case JJ_STR:
        if (!v.s->markup) return repr_str(j, v.s);
        return jj_put_z(j, "Markup(") && repr_str(j, v.s) && jj_put_z(j, ")");
    case JJ_RANGE:
        (void)snprintf(text, sizeof text,
                       v.range->step == 1 ? "range(%lld, %lld)" : "range(%lld, %lld, %lld)",
                       (long long)v.range->start, (long long)v.range->stop, (long long)v.range->step);
        return jj_put_z(j, text);
    case JJ_LOOP:
        (void)snprintf(text, sizeof text, "<LoopContext %zu/%zu>", v.loop->index0 + 1, v.loop->n);
        return jj_put_z(j, text);
    default: break;
    }
    JJ_TRY(jj_enter(j));
    bool good = repr_container(j, v);
    jj_leave(j);
    return good;
}

bool jj_put_str(jj *j, jj_val v)
{
    if (v.kind == JJ_STR) return jj_put(j, v.s->p, v.s->n);
    return v.kind == JJ_UNDEF || jj_put_repr(j, v);
}
