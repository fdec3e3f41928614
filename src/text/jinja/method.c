/* text/jinja/method.c - the methods of str, list, tuple, dict and loops that templates may call.
 *
 * Idea:    one table a type, with every name that Python has there: what is not written here is refused by name, and
 *          what would change a list or dict is hidden, as jinja2's immutable sandbox hides it. */
#include "text/jinja/jinja_int.h"

static bool given(jj_val v)
{
    return v.kind != JJ_MISSING && v.kind != JJ_NONE;
}

static bool want_str(jj *j, const char *who, jj_val v, const jj_str **out)
{
    if (v.kind == JJ_UNDEF) return jj_type_error(j, "'%s' wants a string, not something undefined", who);
    if (v.kind != JJ_STR) return jj_type_error(j, "'%s' wants a string, not a %s", who, jj_type_name(v));
    *out = v.s;
    return true;
}

static bool want_int(jj *j, const char *who, jj_val v, int64_t fallback, int64_t *out)
{
    *out = fallback;
    if (v.kind == JJ_MISSING) return true;
    if (!jj_is_int(v)) return jj_type_error(j, "'%s' wants a whole number, not a %s", who, jj_type_name(v));
    *out = jj_as_int(v);
    return true;
}

/* Methods of Markup escape what they are given; those that would have to are left out. */
static bool not_markup(jj *j, const jj_val *self)
{
    return !self->s->markup ||
           jj_fail(j, IMP_UNSUPPORTED,
                   "this method of text that went through 'safe' or 'escape' is not supported");
}

/* ---- str ------------------------------------------------------------------------------------------------------ */

#define CASE(name, how)                                                                                      \
    static bool str_##name(jj *j, const jj_val *self, const jj_args *a, jj_val *out)                         \
    {                                                                                                        \
        return jj_bind(j, #name, "", a, NULL, 0) && jj_change_case(j, self->s, how, out);                    \
    }
CASE(upper, JJ_UPPER)
CASE(lower, JJ_LOWER)
CASE(title, JJ_TITLE)
CASE(capitalize, JJ_CAPITAL)
CASE(swapcase, JJ_SWAP)
CASE(casefold, JJ_FOLD)

static bool strip(jj *j, const char *who, const jj_val *self, const jj_args *a, int side, jj_val *out)
{
    jj_val chars;
    const jj_str *set = NULL;
    if (a->n_kw > 0) return jj_type_error(j, "'%s' takes no argument by name", who);
    JJ_TRY(jj_bind(j, who, "|chars", a, &chars, 1));
    if (given(chars)) JJ_TRY(want_str(j, who, chars, &set));
    return jj_strip(j, self->s, set, side, out);
}
static bool str_strip(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return strip(j, "strip", self, a, 0, out);
}
static bool str_lstrip(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return strip(j, "lstrip", self, a, -1, out);
}
static bool str_rstrip(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return strip(j, "rstrip", self, a, 1, out);
}

/* start and end as Python's str methods take them, in bytes; *none: start lies behind the end of the text. */
static bool bounds(jj *j, const char *who, const jj_str *s, const jj_val *v, size_t *from, size_t *to,
                   bool *none)
{
    int64_t n = (int64_t)s->n_cp, b[2] = {0, n};
    for (int i = 0; i < 2; i++) {
        if (!given(v[i])) continue;
        JJ_TRY(want_int(j, who, v[i], 0, &b[i]));
        if (b[i] < 0) b[i] = b[i] < -n ? 0 : b[i] + n;
    }
    *none = b[0] > n;
    if (b[1] > n) b[1] = n;
    *from = jj_str_at(s, (size_t)IMP_MIN(b[0], n));
    *to = jj_str_at(s, (size_t)b[1]);
    if (*from > *to) *none = true;
    return jj_burn(j, s->n / 32);
}

static bool has_end(const jj_str *s, size_t from, size_t to, const jj_str *part, bool start)
{
    return part->n <= to - from && memcmp(s->p + (start ? from : to - part->n), part->p, part->n) == 0;
}

static bool with_end(jj *j, const char *who, const jj_val *self, const jj_args *a, bool start, jj_val *out)
{
    jj_val arg[3];
    const jj_str *part = NULL;
    size_t from, to, n = 1;
    bool none;
    if (a->n_kw > 0) return jj_type_error(j, "'%s' takes no argument by name", who);
    JJ_TRY(jj_bind(j, who, "prefix|start,end", a, arg, 3) &&
           bounds(j, who, self->s, &arg[1], &from, &to, &none));
    const jj_val *v = &arg[0];
    if (arg[0].kind == JJ_TUPLE) v = arg[0].l->v, n = arg[0].l->n;
    *out = jj_bool(false);
    for (size_t i = 0; i < n; i++) {
        JJ_TRY(want_str(j, who, v[i], &part));
        if (!none && has_end(self->s, from, to, part, start)) *out = jj_bool(true);
    }
    return true;
}
static bool str_startswith(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return with_end(j, "startswith", self, a, true, out);
}
static bool str_endswith(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return with_end(j, "endswith", self, a, false, out);
}

static bool search(jj *j, const char *who, const jj_val *self, const jj_args *a, bool last, bool must,
                   jj_val *out)
{
    jj_val arg[3];
    const jj_str *part;
    size_t from, to, at = 0;
    bool none;
    JJ_TRY(jj_bind(j, who, "sub|start,end", a, arg, 3) && want_str(j, who, arg[0], &part));
    JJ_TRY(bounds(j, who, self->s, &arg[1], &from, &to, &none));
    bool found = !none && jj_find(j, self->s, part, from, to, last, &at);
    if (!found && must) return jj_type_error(j, "'%s' does not find its text", who);
    *out = jj_int(found ? (int64_t)jj_count_cp(self->s->p, at) : -1);
    return true;
}
static bool str_find(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return search(j, "find", self, a, false, false, out);
}
static bool str_rfind(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return search(j, "rfind", self, a, true, false, out);
}
static bool str_index(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return search(j, "index", self, a, false, true, out);
}
static bool str_rindex(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return search(j, "rindex", self, a, true, true, out);
}

static bool str_count(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    jj_val arg[3];
    const jj_str *part;
    size_t from, to, at;
    bool none;
    int64_t n = 0;
    JJ_TRY(jj_bind(j, "count", "sub|start,end", a, arg, 3) && want_str(j, "count", arg[0], &part));
    JJ_TRY(bounds(j, "count", self->s, &arg[1], &from, &to, &none));
    if (!none && part->n == 0) n = (int64_t)jj_count_cp(self->s->p + from, to - from) + 1;
    for (; !none && part->n > 0 && jj_find(j, self->s, part, from, to, false, &at); from = at + part->n) n++;
    *out = jj_int(n);
    return true;
}

static bool str_replace(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    jj_val arg[3];
    const jj_str *old, *with;
    int64_t count;
    if (a->n_kw > 0) return jj_type_error(j, "'replace' takes no argument by name");
    JJ_TRY(not_markup(j, self) && jj_bind(j, "replace", "old,new|count", a, arg, 3));
    JJ_TRY(want_str(j, "replace", arg[0], &old) && want_str(j, "replace", arg[1], &with) &&
           want_int(j, "replace", arg[2], -1, &count));
    return jj_replace(j, self->s, old, with, count, out);
}

static bool part_of(jj *j, const jj_str *s, size_t from, size_t to, jj_list *l)
{
    jj_val v;
    JJ_TRY(jj_str_borrow(j, s->p + from, to - from, &v));
    if (s->markup) ((jj_str *)v.s)->markup = true;
    return jj_list_add(j, l, v);
}

static void reverse(jj_list *l)
{
    for (size_t i = 0, k = l->n; i + 1 < k; i++) {
        jj_val t = l->v[i];
        l->v[i] = l->v[--k];
        l->v[k] = t;
    }
}

/* By white space: runs of it separate, and none at the ends counts. */
static bool split_space(jj *j, const jj_str *s, int64_t max, jj_list *l)
{
    for (size_t i = 0; i < s->n;) {
        int32_t cp;
        size_t k = imp_utf8_decode(s->p + i, s->n - i, &cp), end;
        if (jj_is_space(cp)) {
            i += k;
            continue;
        }
        if (max >= 0 && (int64_t)l->n == max) return part_of(j, s, i, s->n, l);
        for (end = i + k; end < s->n; end += k) {
            k = imp_utf8_decode(s->p + end, s->n - end, &cp);
            if (jj_is_space(cp)) break;
        }
        JJ_TRY(part_of(j, s, i, end, l));
        i = end;
    }
    return true;
}

static size_t before(const jj_str *s, size_t i) /* where the character in front of byte i begins */
{
    do i--;
    while (i > 0 && ((unsigned char)s->p[i] & 0xc0) == 0x80);
    return i;
}

static bool space_before(const jj_str *s, size_t i)
{
    int32_t cp;
    size_t k = before(s, i);
    (void)imp_utf8_decode(s->p + k, i - k, &cp);
    return jj_is_space(cp);
}

static bool rsplit_space(jj *j, const jj_str *s, int64_t max, jj_list *l)
{
    for (size_t end = s->n; end > 0;) {
        if (space_before(s, end)) {
            end = before(s, end);
            continue;
        }
        size_t from = end;
        if (max >= 0 && (int64_t)l->n == max) return part_of(j, s, 0, end, l);
        while (from > 0 && !space_before(s, from)) from = before(s, from);
        JJ_TRY(part_of(j, s, from, end, l));
        end = from;
    }
    return true;
}

static bool split(jj *j, const char *who, const jj_val *self, const jj_args *a, bool right, jj_val *out)
{
    jj_val arg[2];
    const jj_str *sep, *s = self->s;
    int64_t max;
    jj_list *l;
    JJ_TRY(jj_bind(j, who, "|sep,maxsplit", a, arg, 2) && want_int(j, who, arg[1], -1, &max));
    JJ_TRY(jj_burn(j, s->n / 32) && jj_list_new(j, 4, &l));
    *out = jj_list_val(l, false);
    if (!given(arg[0])) {
        JJ_TRY(right ? rsplit_space(j, s, max, l) : split_space(j, s, max, l));
        if (right) reverse(l);
        return true;
    }
    JJ_TRY(want_str(j, who, arg[0], &sep));
    if (sep->n == 0) return jj_type_error(j, "'%s' wants a separator that is not empty", who);
    size_t from = 0, to = s->n, at;
    for (; max != 0 && jj_find(j, s, sep, from, to, right, &at); max--) {
        JJ_TRY(right ? part_of(j, s, at + sep->n, to, l) : part_of(j, s, from, at, l));
        if (right)
            to = at;
        else
            from = at + sep->n;
    }
    JJ_TRY(part_of(j, s, from, to, l));
    if (right) reverse(l);
    return true;
}
static bool str_split(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return split(j, "split", self, a, false, out);
}
static bool str_rsplit(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return split(j, "rsplit", self, a, true, out);
}

static bool str_splitlines(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    jj_val keep;
    jj_list *l;
    JJ_TRY(jj_bind(j, "splitlines", "|keepends", a, &keep, 1) &&
           jj_splitlines(j, self->s, jj_truth(keep), &l));
    *out = jj_list_val(l, false);
    return true;
}

static bool partition(jj *j, const char *who, const jj_val *self, const jj_args *a, bool right, jj_val *out)
{
    jj_val arg;
    const jj_str *sep, *s = self->s;
    size_t at, len;
    jj_list *l;
    JJ_TRY(jj_bind(j, who, "sep", a, &arg, 1) && want_str(j, who, arg, &sep) && jj_list_new(j, 3, &l));
    if (sep->n == 0) return jj_type_error(j, "'%s' wants a separator that is not empty", who);
    bool found = jj_find(j, s, sep, 0, s->n, right, &at);
    if (!found) at = right ? 0 : s->n;
    len = found ? sep->n : 0;
    JJ_TRY(part_of(j, s, 0, at, l) && part_of(j, s, at, at + len, l) && part_of(j, s, at + len, s->n, l));
    *out = jj_list_val(l, true);
    return true;
}
static bool str_partition(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return partition(j, "partition", self, a, false, out);
}
static bool str_rpartition(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return partition(j, "rpartition", self, a, true, out);
}

static bool str_join(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    jj_val list;
    const jj_val *v;
    const jj_str *s;
    size_t n;
    JJ_TRY(not_markup(j, self) && jj_bind(j, "join", "iterable", a, &list, 1) && jj_items(j, list, &v, &n));
    size_t mark = jj_mark(j);
    for (size_t i = 0; i < n; i++)
        JJ_TRY(jj_burn(j, 1) && want_str(j, "join", v[i], &s) &&
               (i == 0 || jj_put(j, self->s->p, self->s->n)) && jj_put(j, s->p, s->n));
    return jj_take(j, mark, out);
}

static bool remove_end(jj *j, const char *who, const jj_val *self, const jj_args *a, bool start, jj_val *out)
{
    jj_val arg;
    const jj_str *part, *s = self->s;
    JJ_TRY(jj_bind(j, who, "part", a, &arg, 1) && want_str(j, who, arg, &part));
    *out = *self;
    if (part->n == 0 || !has_end(s, 0, s->n, part, start)) return true;
    return jj_str_borrow(j, s->p + (start ? part->n : 0), s->n - part->n, out);
}
static bool str_removeprefix(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return remove_end(j, "removeprefix", self, a, true, out);
}
static bool str_removesuffix(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return remove_end(j, "removesuffix", self, a, false, out);
}

static bool adjust(jj *j, const char *who, const jj_val *self, const jj_args *a, int align, jj_val *out)
{
    static const jj_str space = {" ", 1, 1, false};
    jj_val arg[2];
    const jj_str *fill = &space;
    int64_t width;
    JJ_TRY(jj_bind(j, who, "width|fillchar", a, arg, 2) && want_int(j, who, arg[0], 0, &width));
    if (arg[1].kind != JJ_MISSING) JJ_TRY(want_str(j, who, arg[1], &fill));
    if (fill->n_cp != 1) return jj_type_error(j, "'%s' fills with one character", who);
    return jj_pad(j, self->s, width, align, fill, out);
}
static bool str_ljust(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return adjust(j, "ljust", self, a, -1, out);
}
static bool str_rjust(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return adjust(j, "rjust", self, a, 1, out);
}
static bool str_center(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return adjust(j, "center", self, a, 0, out);
}

static bool str_zfill(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    static const jj_str zero = {"0", 1, 1, false};
    const jj_str *s = self->s;
    jj_val arg, sign, rest;
    int64_t width;
    JJ_TRY(jj_bind(j, "zfill", "width", a, &arg, 1) && want_int(j, "zfill", arg, 0, &width));
    if (s->n == 0 || (s->p[0] != '+' && s->p[0] != '-')) return jj_pad(j, s, width, 1, &zero, out);
    JJ_TRY(jj_substr(j, s, 0, 1, &sign) && jj_substr(j, s, 1, s->n_cp, &rest));
    return jj_pad(j, rest.s, width - 1, 1, &zero, &rest) && jj_arith(j, JJ_ADD, sign, rest, out);
}

/* All characters of one class, and at least one. */
static bool all_are(jj *j, const char *who, const jj_val *self, const jj_args *a, const int *class,
                    size_t n_class, jj_val *out)
{
    const jj_str *s = self->s;
    bool yes = s->n > 0;
    JJ_TRY(jj_bind(j, who, "", a, NULL, 0) && jj_burn(j, s->n / 4));
    for (size_t i = 0; i < s->n && yes;) {
        int32_t cp;
        i += imp_utf8_decode(s->p + i, s->n - i, &cp);
        yes = n_class == 0 && jj_is_space(cp);
        for (size_t k = 0; k < n_class && !yes; k++) yes = jj_is_class(cp, class[k]);
    }
    *out = jj_bool(yes);
    return true;
}
#define CLASS(name, ...)                                                                                     \
    static bool str_##name(jj *j, const jj_val *self, const jj_args *a, jj_val *out)                         \
    {                                                                                                        \
        static const int class[] = {__VA_ARGS__};                                                            \
        return all_are(j, #name, self, a, class, IMP_COUNT(class), out);                                     \
    }
CLASS(isalpha, JJ_IS_ALPHA)
CLASS(isdecimal, JJ_IS_DECIMAL)
CLASS(isdigit, JJ_IS_DIGIT)
CLASS(isnumeric, JJ_IS_NUMERIC)
CLASS(isalnum, JJ_IS_ALPHA, JJ_IS_NUMERIC)

static bool str_isspace(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return all_are(j, "isspace", self, a, NULL, 0, out);
}

static bool by_test(jj *j, const char *test, const jj_val *self, const jj_args *a, jj_val *out)
{
    bool yes;
    JJ_TRY(jj_test_find(test, strlen(test))->run(j, *self, a, &yes));
    *out = jj_bool(yes);
    return true;
}
static bool str_islower(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return by_test(j, "lower", self, a, out);
}
static bool str_isupper(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return by_test(j, "upper", self, a, out);
}

static bool str_isascii(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    *out = jj_bool(self->s->n == self->s->n_cp);
    return jj_bind(j, "isascii", "", a, NULL, 0);
}

static bool str_format(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return not_markup(j, self) && jj_format_braces(j, self->s, a, out);
}

const jj_method_def jj_str_methods[] = {{"upper", str_upper, false},
                                        {"lower", str_lower, false},
                                        {"title", str_title, false},
                                        {"capitalize", str_capitalize, false},
                                        {"swapcase", str_swapcase, false},
                                        {"casefold", str_casefold, false},
                                        {"strip", str_strip, false},
                                        {"lstrip", str_lstrip, false},
                                        {"rstrip", str_rstrip, false},
                                        {"startswith", str_startswith, false},
                                        {"endswith", str_endswith, false},
                                        {"find", str_find, false},
                                        {"rfind", str_rfind, false},
                                        {"index", str_index, false},
                                        {"rindex", str_rindex, false},
                                        {"count", str_count, false},
                                        {"replace", str_replace, false},
                                        {"split", str_split, false},
                                        {"rsplit", str_rsplit, false},
                                        {"splitlines", str_splitlines, false},
                                        {"partition", str_partition, false},
                                        {"rpartition", str_rpartition, false},
                                        {"join", str_join, false},
                                        {"removeprefix", str_removeprefix, false},
                                        {"removesuffix", str_removesuffix, false},
                                        {"ljust", str_ljust, false},
                                        {"rjust", str_rjust, false},
                                        {"center", str_center, false},
                                        {"zfill", str_zfill, false},
                                        {"isalpha", str_isalpha, false},
                                        {"isdecimal", str_isdecimal, false},
                                        {"isdigit", str_isdigit, false},
                                        {"isnumeric", str_isnumeric, false},
                                        {"isalnum", str_isalnum, false},
                                        {"isspace", str_isspace, false},
                                        {"islower", str_islower, false},
                                        {"isupper", str_isupper, false},
                                        {"isascii", str_isascii, false},
                                        {"format", str_format, false},
                                        {"encode", NULL, false},
                                        {"expandtabs", NULL, false},
                                        {"format_map", NULL, false},
                                        {"isidentifier", NULL, false},
                                        {"isprintable", NULL, false},
                                        {"istitle", NULL, false},
                                        {"maketrans", NULL, false},
                                        {"translate", NULL, false},
                                        {NULL, NULL, false}};

/* ---- list, tuple, dict, loop ---------------------------------------------------------------------------------- */

static bool list_count(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    jj_val v;
    int64_t n = 0;
    JJ_TRY(jj_bind(j, "count", "value", a, &v, 1));
    for (size_t i = 0; i < self->l->n; i++) {
        bool same;
        JJ_TRY(jj_equal(j, self->l->v[i], v, &same));
        n += same;
    }
    *out = jj_int(n);
    return true;
}

static bool list_index(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    jj_val v;
    JJ_TRY(jj_bind(j, "index", "value", a, &v, 1));
    for (size_t i = 0; i < self->l->n; i++) {
        bool same;
        JJ_TRY(jj_equal(j, self->l->v[i], v, &same));
        *out = jj_int((int64_t)i);
        if (same) return true;
    }
    return jj_type_error(j, "'index' does not find its value");
}

static bool copy_self(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    *out = *self; /* nothing changes a list or dict here, so one is as good as two */
    return jj_bind(j, "copy", "", a, NULL, 0);
}

static const jj_method_def list_methods[] = {
    {"count", list_count, false}, {"index", list_index, false}, {"copy", copy_self, false},
    {"append", NULL, true},       {"clear", NULL, true},        {"pop", NULL, true},
    {"reverse", NULL, true},      {"insert", NULL, true},       {"sort", NULL, true},
    {"extend", NULL, true},       {"remove", NULL, true},       {NULL, NULL, false}};
static const jj_method_def tuple_methods[] = {
    {"count", list_count, false}, {"index", list_index, false}, {NULL, NULL, false}};

static bool dict_get(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    jj_val arg[2];
    if (a->n_kw > 0) return jj_type_error(j, "'get' takes no argument by name");
    JJ_TRY(jj_bind(j, "get", "key|default", a, arg, 2));
    if (!jj_hashable(arg[0])) return jj_type_error(j, "a %s cannot be a key of a dict", jj_type_name(arg[0]));
    const jj_val *v = jj_dict_find(self->d, arg[0]);
    *out = v != NULL ? *v : arg[1].kind != JJ_MISSING ? arg[1] : jj_none();
    return true;
}

static bool view(jj *j, const char *who, jj_view_kind kind, const jj_val *self, const jj_args *a, jj_val *out)
{
    JJ_TRY(jj_bind(j, who, "", a, NULL, 0));
    jj_view *v = jj_alloc(j, sizeof *v);
    if (v == NULL) return false;
    *v = (jj_view){self->d, kind};
    *out = (jj_val){.kind = JJ_VIEW, .view = v};
    return true;
}
static bool dict_items(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return view(j, "items", JJ_ITEMS, self, a, out);
}
static bool dict_keys(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return view(j, "keys", JJ_KEYS, self, a, out);
}
static bool dict_values(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    return view(j, "values", JJ_VALUES, self, a, out);
}

static const jj_method_def dict_methods[] = {
    {"get", dict_get, false},       {"items", dict_items, false}, {"keys", dict_keys, false},
    {"values", dict_values, false}, {"copy", copy_self, false},   {"fromkeys", NULL, false},
    {"clear", NULL, true},          {"pop", NULL, true},          {"popitem", NULL, true},
    {"setdefault", NULL, true},     {"update", NULL, true},       {NULL, NULL, false}};

static bool loop_cycle(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    if (a->n == 0 || a->n_kw > 0) return jj_type_error(j, "'cycle' wants values to take in turn");
    *out = a->v[self->loop->index0 % a->n];
    return true;
}

static bool loop_changed(jj *j, const jj_val *self, const jj_args *a, jj_val *out)
{
    jj_list *l;
    bool same = false;
    JJ_TRY(jj_list_new(j, a->n, &l));
    for (size_t i = 0; i < a->n; i++) l->v[l->n++] = a->v[i];
    jj_val now = jj_list_val(l, true);
    if (self->loop->changed.kind != JJ_MISSING) JJ_TRY(jj_equal(j, self->loop->changed, now, &same));
    if (!same) self->loop->changed = now;
    *out = jj_bool(!same);
    return true;
}

static const jj_method_def loop_methods[] = {
    {"cycle", loop_cycle, false}, {"changed", loop_changed, false}, {NULL, NULL, false}};

/* Attributes that Python's numbers have; none is of use to a template. */
static const jj_method_def number_methods[] = {
    {"real", NULL, false},        {"imag", NULL, false},
    {"conjugate", NULL, false},   {"numerator", NULL, false},
    {"denominator", NULL, false}, {"bit_length", NULL, false},
    {"is_integer", NULL, false},  {"as_integer_ratio", NULL, false},
    {NULL, NULL, false}};

const jj_method_def *jj_method_find(jj_val self, const jj_str *name)
{
    const jj_method_def *m = self.kind == JJ_STR     ? jj_str_methods
                             : self.kind == JJ_LIST  ? list_methods
                             : self.kind == JJ_TUPLE ? tuple_methods
                             : self.kind == JJ_DICT  ? dict_methods
                             : self.kind == JJ_LOOP  ? loop_methods
                             : jj_is_num(self)       ? number_methods
                                                     : NULL;
    for (; m != NULL && m->name != NULL; m++)
        if (jj_str_is(name, m->name)) return m;
    return NULL;
}
