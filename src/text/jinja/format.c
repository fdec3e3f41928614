/* text/jinja/format.c - "..." % values and "...".format(...), for the conversions that templates use.
 *
 * Source:  the Python library reference, "printf-style String Formatting" and "Format String Syntax". */
#include <math.h>
#include <stdio.h>

#include "text/jinja/jinja_int.h"

enum { MAX_WIDTH = 4096, MAX_PRECISION = 200 };

typedef struct spec {
    jj_str fill;
    char align, sign, type; /* 0: not given; align < > ^ = */
    bool alternate, zero, comma;
    int width, precision; /* -1: not given */
} spec;

static bool bad(jj *j)
{
    return jj_fail(j, IMP_UNSUPPORTED, "a format is malformed or not supported");
}

/* The digits of a number without its sign. */
static bool number_text(jj *j, const spec *s, jj_val v, char *text, size_t cap, bool *negative)
{
    int64_t i = jj_is_int(v) ? jj_as_int(v) : 0;
    double f = jj_as_float(v);
    uint64_t u = i < 0 ? 0 - (uint64_t)i : (uint64_t)i;
    int precision = s->precision < 0 ? 6 : s->precision;
    *negative = jj_is_int(v) && strchr("dxXo", s->type) != NULL ? i < 0 : signbit(f) != 0;
    switch (s->type) {
    case 'd': (void)snprintf(text, cap, "%llu", (unsigned long long)u); return true;
    case 'x': (void)snprintf(text, cap, s->alternate ? "0x%llx" : "%llx", (unsigned long long)u); return true;
    case 'X': (void)snprintf(text, cap, s->alternate ? "0X%llX" : "%llX", (unsigned long long)u); return true;
    case 'o': (void)snprintf(text, cap, s->alternate ? "0o%llo" : "%llo", (unsigned long long)u); return true;
    case 'f':
    case 'F': (void)snprintf(text, cap, "%.*f", precision, fabs(f)); return true;
    case 'e': (void)snprintf(text, cap, "%.*e", precision, fabs(f)); return true;
    case 'E': (void)snprintf(text, cap, "%.*E", precision, fabs(f)); return true;
    case 'g': (void)snprintf(text, cap, "%.*g", precision, fabs(f)); return true;
    case 'G': (void)snprintf(text, cap, "%.*G", precision, fabs(f)); return true;
    case '%': (void)snprintf(text, cap, "%.*f%%", precision, fabs(f) * 100); return true;
    default: return bad(j);
    }
}

static void add_commas(char *text, size_t cap)
{
    size_t whole = strspn(text, "0123456789"), n = strlen(text);
    for (size_t at = whole; at > 3 && n + 1 < cap; n++) {
        at -= 3;
        memmove(text + at + 1, text + at, n - at + 1);
        text[at] = ',';
    }
}

static bool padded(jj *j, const spec *s, const char *sign, jj_val body, char align)
{
    jj_val out;
    int64_t n_sign = (int64_t)strlen(sign);
    if (align == '=') { /* between the sign and the digits */
        JJ_TRY(jj_put_z(j, sign) && jj_pad(j, body.s, s->width - n_sign, 1, &s->fill, &out));
        return jj_put_str(j, out);
    }
    if (n_sign > 0) {
        jj_val head;
        JJ_TRY(jj_str_z(j, sign, &head) && jj_arith(j, JJ_ADD, head, body, &body));
    }
    JJ_TRY(jj_pad(j, body.s, s->width, align == '<' ? -1 : align == '>' ? 1 : 0, &s->fill, &out));
    return jj_put_str(j, out);
}

static bool put_number(jj *j, const spec *s, jj_val v)
{
    char text[1024];
    bool negative;
    jj_val body;
    JJ_TRY(number_text(j, s, v, text, sizeof text, &negative));
    if (s->comma) add_commas(text, sizeof text);
    JJ_TRY(jj_str_copy(j, text, strlen(text), &body));
    const char *sign = negative ? "-" : s->sign == '+' ? "+" : s->sign == ' ' ? " " : "";
    return padded(j, s, sign, body, s->align != 0 ? s->align : '>');
}

static bool put_text(jj *j, const spec *s, jj_val v)
{
    if (s->precision >= 0) JJ_TRY(jj_substr(j, v.s, 0, IMP_MIN((size_t)s->precision, v.s->n_cp), &v));
    return padded(j, s, "", v, s->align != 0 ? s->align : '<');
}

static const jj_str space = {" ", 1, 1, false}, zero = {"0", 1, 1, false};

static bool digits(jj *j, const char **p, const char *end, int max, int *out)
{
    int v = 0;
    for (; *p < end && **p >= '0' && **p <= '9'; ++*p) {
        v = v * 10 + (**p - '0');
        if (v > max) return jj_fail(j, IMP_TOO_LARGE, "a format asks for more than %d characters", max);
    }
    *out = v;
    return true;
}

/* ---- fmt % args -------------------------------------------------------------------------------------------------- */

typedef struct percent {
    const jj_val *v; /* the values of a tuple, or the one value */
    size_t n, used;
    const jj_dict *by_name;
} percent;

static bool next_value(jj *j, percent *a, jj_val *out)
{
    if (a->used >= a->n) return jj_type_error(j, "a format has more places than there are values");
    *out = a->v[a->used++];
    return true;
}

static bool named_value(jj *j, const char **p, const char *end, percent *a, jj_val *out)
{
    const char *close = memchr(*p, ')', (size_t)(end - *p));
    if (close == NULL || a->by_name == NULL) return bad(j);
    jj_str key = {.p = *p, .n = (size_t)(close - *p)};
    const jj_val *v = jj_dict_find_str(a->by_name, &key);
    if (v == NULL) return jj_type_error(j, "a format names a value that is not there");
    *out = *v;
    *p = close + 1;
    return true;
}

static bool put_percent(jj *j, spec *s, jj_val v)
{
    jj_val text = {.kind = JJ_STR};
    if (s->type == 'i' || s->type == 'u') s->type = 'd';
    if (s->type == 's' || s->type == 'r') {
        size_t mark = jj_mark(j);
        JJ_TRY((s->type == 's' ? jj_put_str(j, v) : jj_put_repr(j, v)) && jj_take(j, mark, &text));
    } else if (s->type == 'c') {
        if (v.kind != JJ_STR || v.s->n_cp != 1) return bad(j);
        text = v;
    } else {
        if (v.kind == JJ_UNDEF) return jj_fail_undef(j, v);
        if (!jj_is_num(v)) return jj_type_error(j, "a format wants a number, not a %s", jj_type_name(v));
        if (strchr("dxXo", s->type) != NULL && v.kind == JJ_FLOAT) {
            if (s->type != 'd') return jj_type_error(j, "a format wants a whole number");
            if (!(fabs(v.f) < 9.2e18)) return bad(j);
            v = jj_int((int64_t)v.f);
        }
        if (strchr("dxXo", s->type) != NULL && s->precision >= 0) return bad(j);
        if (s->alternate && strchr("fFeEgG", s->type) != NULL) return bad(j);
        s->fill = s->zero && s->align == 0 ? zero : space;
        if (s->align == 0) s->align = s->zero ? '=' : '>';
        return put_number(j, s, v);
    }
    if (s->align == 0) s->align = '>';
    return put_text(j, s, text);
}

bool jj_format_percent(jj *j, const jj_str *fmt, jj_val args, jj_val *out)
{
    if (fmt->markup)
        return jj_fail(j, IMP_UNSUPPORTED,
                       "formatting text that went through 'safe' or 'escape' is not supported");
    percent a = {.v = &args, .n = 1, .by_name = args.kind == JJ_DICT ? args.d : NULL};
    if (args.kind == JJ_TUPLE) a.v = args.l->v, a.n = args.l->n;
    const char *p = fmt->p, *end = fmt->p + fmt->n;
    size_t mark = jj_mark(j);
    bool named = false;
    while (p < end) {
        const char *q = memchr(p, '%', (size_t)(end - p));
        JJ_TRY(jj_burn(j, 1) && jj_put(j, p, (size_t)((q != NULL ? q : end) - p)));
        if (q == NULL) break;
        p = q + 1;
        spec s = {.fill = space, .precision = -1};
        jj_val v = {0};
        if (p < end && *p == '(') {
            p++;
            JJ_TRY(named_value(j, &p, end, &a, &v));
            named = true;
        }
        for (; p < end && strchr("#0- +", *p) != NULL && *p != 0; p++) {
            if (*p == '#')
                s.alternate = true;
            else if (*p == '0')
                s.zero = true;
            else if (*p == '-')
                s.align = '<';
            else if (s.sign != '+')
                s.sign = *p;
        }
        if (p < end && *p == '*') return bad(j);
        JJ_TRY(digits(j, &p, end, MAX_WIDTH, &s.width));
        if (p < end && *p == '.') {
            p++;
            JJ_TRY(digits(j, &p, end, MAX_PRECISION, &s.precision));
        }
        if (p >= end) return jj_type_error(j, "a format ends within a place");
        s.type = *p++;
        if (s.type == '%') {
            JJ_TRY(jj_put(j, "%", 1));
            continue;
        }
        if (s.type == 0 || strchr("srcdiuxXofFeEgG", s.type) == NULL) return bad(j);
        if (v.kind == JJ_MISSING) JJ_TRY(next_value(j, &a, &v));
        JJ_TRY(put_percent(j, &s, v));
    }
    if (!named && a.used < a.n && args.kind != JJ_DICT && args.kind != JJ_LIST && args.kind != JJ_UNDEF &&
        args.kind != JJ_RANGE) /* Python asks no more of what has items */
        return jj_type_error(j, "a format has fewer places than there are values");
    return jj_take(j, mark, out);
}

/* ---- fmt.format(...) ------------------------------------------------------------------------------------------------- */

typedef struct braces {
    const jj_args *a;
    size_t next;
    bool automatic, manual;
} braces;

static bool field_value(jj *j, braces *b, const char *p, size_t n, jj_val *out)
{
    size_t k = 0;
    while (k < n && p[k] != '.' && p[k] != '[') k++;
    jj_str name = {.p = p, .n = k, .n_cp = jj_count_cp(p, k)};
    int64_t at = (int64_t)b->next;
    bool overflow, number = k > 0 && p[0] >= '0' && p[0] <= '9' && jj_parse_int(&name, 10, &at, &overflow);
    if (k == 0) b->next++, b->automatic = true;
    b->manual = b->manual || number;
    if (b->automatic && b->manual) return jj_type_error(j, "a format mixes numbered and unnumbered places");
    *out = (jj_val){.kind = JJ_MISSING};
    if ((k == 0 || number) && at >= 0 && (size_t)at < b->a->n) *out = b->a->v[at];
    for (size_t i = 0; i < b->a->n_kw && k > 0 && !number; i++)
        if (jj_str_eq(b->a->name[i], &name)) *out = b->a->kw[i];
    if (out->kind == JJ_MISSING) return jj_type_error(j, "a format has a place without a value");
    while (k < n) {
        bool index = p[k] == '[';
        size_t from = ++k;
        while (k < n && (index ? p[k] != ']' : p[k] != '.' && p[k] != '[')) k++;
        jj_val key;
        JJ_TRY(jj_str_borrow(j, p + from, k - from, &key));
        if (k == from || (index && k == n)) return bad(j);
        if (index && p[from] >= '0' && p[from] <= '9' && jj_parse_int(key.s, 10, &at, &overflow))
            key = jj_int(at);
        JJ_TRY(index ? jj_getitem(j, *out, key, out) : jj_getattr(j, *out, key.s, out));
        k += index;
    }
    return true;
}

static bool parse_spec(jj *j, const char *p, const char *end, spec *s)
{
    int32_t cp;
    size_t k = p < end ? imp_utf8_decode(p, (size_t)(end - p), &cp) : 0;
    if (k > 0 && p + k < end && strchr("<>^=", p[k]) != NULL) {
        s->fill = (jj_str){.p = p, .n = k, .n_cp = 1};
        s->align = p[k];
        p += k + 1;
    } else if (p < end && strchr("<>^=", *p) != NULL) {
        s->align = *p++;
    }
    if (p < end && strchr("+- ", *p) != NULL) s->sign = *p++;
    if (p < end && *p == '#') s->alternate = true, p++;
    if (p < end && *p == '0') {
        s->zero = true;
        if (s->align == 0) s->align = '=', s->fill = zero;
        p++;
    }
    JJ_TRY(digits(j, &p, end, MAX_WIDTH, &s->width));
    if (p < end && *p == ',') s->comma = true, p++;
    if (p < end && *p == '.') {
        p++;
        JJ_TRY(digits(j, &p, end, MAX_PRECISION, &s->precision));
    }
    if (p < end) s->type = *p++;
    return p == end || bad(j);
}

static bool put_field(jj *j, const char *p, const char *end, jj_val v, char conversion)
{
    spec s = {.fill = space, .precision = -1};
    JJ_TRY(parse_spec(j, p, end, &s));
    if (p == end && conversion == 0) return jj_put_str(j, v);
    if (conversion != 0) {
        size_t mark = jj_mark(j);
        if (conversion != 's' && conversion != 'r') return bad(j);
        JJ_TRY((conversion == 's' ? jj_put_str(j, v) : jj_put_repr(j, v)) && jj_take(j, mark, &v));
    }
    if (v.kind == JJ_STR && (s.type == 0 || s.type == 's') && s.align != '=' && s.sign == 0 && !s.comma)
        return put_text(j, &s, v);
    if (v.kind == JJ_BOOL || !jj_is_num(v) || s.type == 's') return bad(j);
    if (v.kind == JJ_INT && s.type == 0) s.type = 'd';
    if (v.kind == JJ_INT && s.type == 'd' && s.precision >= 0) return bad(j);
    if (v.kind == JJ_FLOAT && (s.type == 0 || strchr("dxXo", s.type) != NULL)) return bad(j);
    if (s.alternate && strchr("xXo", s.type) == NULL) return bad(j);
    if (s.comma && s.align == '=') return bad(j);
    return put_number(j, &s, v);
}

bool jj_format_braces(jj *j, const jj_str *fmt, const jj_args *a, jj_val *out)
{
    braces b = {.a = a};
    const char *p = fmt->p, *end = fmt->p + fmt->n;
    size_t mark = jj_mark(j);
    for (; p < end; p++) {
        JJ_TRY(jj_burn(j, 1));
        if (*p != '{' && *p != '}') {
            JJ_TRY(jj_put(j, p, 1));
            continue;
        }
        if (p + 1 < end && p[1] == *p) {
            JJ_TRY(jj_put(j, p++, 1));
            continue;
        }
        if (*p == '}') return jj_type_error(j, "a format has a '}' alone");
        const char *close = memchr(p, '}', (size_t)(end - p)), *name = ++p;
        if (close == NULL) return jj_type_error(j, "a format has a '{' alone");
        if (memchr(p, '{', (size_t)(close - p)) != NULL) return bad(j);
        while (p < close && *p != '!' && *p != ':') p++;
        jj_val v;
        char conversion = 0;
        JJ_TRY(field_value(j, &b, name, (size_t)(p - name), &v));
        if (p + 1 < close && *p == '!') conversion = p[1], p += 2;
        if (p < close && *p != ':') return bad(j);
        if (p < close) p++;
        JJ_TRY(put_field(j, p, close, v, conversion));
        p = close;
    }
    return jj_take(j, mark, out);
}
