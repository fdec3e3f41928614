/* text/jinja/strings.c - what Python's str does: case, white space, search, lines, numbers; characters are code points.
 *
 * Source:  the Python library reference, "Text Sequence Type"; utf8proc's tables and, for case mappings of more than one
 *          character, case_table.inc. */
#include <errno.h>
#include <stdlib.h>
#include <utf8proc.h>

#include "text/jinja/jinja_int.h"

static const struct wide_case {
    int32_t cp;
    const char *upper, *lower, *title, *fold;
} wide_case[] = {
#include "text/jinja/case_table.inc"
};

static utf8proc_category_t category(int32_t cp)
{
    return cp < 0 ? UTF8PROC_CATEGORY_CN : utf8proc_category(cp);
}

bool jj_is_space(int32_t cp)
{
    if (cp < 0x80) return (cp >= 9 && cp <= 13) || (cp >= 0x1c && cp <= 0x20);
    return cp == 0x85 || cp == 0xa0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 ||
           cp == 0x2029 || cp == 0x202f || cp == 0x205f || cp == 0x3000;
}

bool jj_is_printable(int32_t cp)
{
    if (cp < 0x7f) return cp >= 0x20;
    switch (category(cp)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: return false;
    default: return true;
    }
}

static bool is_letter(utf8proc_category_t c)
{
    return c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
}

bool jj_is_class(int32_t cp, int which)
{
    utf8proc_category_t c = category(cp);
    switch (which) {
    case JJ_IS_ALPHA: return is_letter(c);
    case JJ_IS_DECIMAL: return c == UTF8PROC_CATEGORY_ND;
    case JJ_IS_DIGIT:
        return c == UTF8PROC_CATEGORY_ND || cp == 0xb2 || cp == 0xb3 || cp == 0xb9 || cp == 0x2070 ||
               (cp >= 0x2074 && cp <= 0x2079) || (cp >= 0x2080 && cp <= 0x2089) ||
               (cp >= 0x2460 && cp <= 0x2468);
    case JJ_IS_NUMERIC: return c >= UTF8PROC_CATEGORY_ND && c <= UTF8PROC_CATEGORY_NO;
    case JJ_IS_LOWER: return utf8proc_islower(cp) != 0 || cp == 0xaa || cp == 0xba;
    case JJ_IS_UPPER: return utf8proc_isupper(cp) != 0;
    case JJ_IS_TITLE: return c == UTF8PROC_CATEGORY_LT;
    default:
        return is_letter(c) || (c >= UTF8PROC_CATEGORY_MN && c <= UTF8PROC_CATEGORY_NO) ||
               c == UTF8PROC_CATEGORY_PC;
    }
}

/* ---- case ------------------------------------------------------------------------------------------------- */

static const struct wide_case *find_wide(int32_t cp)
{
    size_t lo = 0, hi = IMP_COUNT(wide_case);
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (wide_case[mid].cp < cp)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < IMP_COUNT(wide_case) && wide_case[lo].cp == cp ? &wide_case[lo] : NULL;
}

static bool is_cased(int32_t cp)
{
    return jj_is_class(cp, JJ_IS_LOWER) || jj_is_class(cp, JJ_IS_UPPER) || jj_is_class(cp, JJ_IS_TITLE);
}

static bool is_ignorable(int32_t cp) /* between cased letters, as the rule for the final sigma sees it */
{
    utf8proc_category_t c = category(cp);
    return c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_ME || c == UTF8PROC_CATEGORY_CF ||
           c == UTF8PROC_CATEGORY_LM || c == UTF8PROC_CATEGORY_SK || cp == '\'' || cp == '.' || cp == ':' ||
           cp == 0xb7 || cp == 0x2019 || cp == 0x2024 || cp == 0x2027;
}

/* A capital sigma at byte i of s is a final one: a cased letter in front of it and none behind. */
static bool final_sigma(const jj_str *s, size_t i)
{
    int32_t cp;
    bool before = false;
    for (size_t k = i; k > 0;) {
        k--;
        while (k > 0 && ((unsigned char)s->p[k] & 0xc0) == 0x80) k--;
        (void)imp_utf8_decode(s->p + k, s->n - k, &cp);
        if (is_ignorable(cp)) continue;
        before = is_cased(cp);
        break;
    }
    for (size_t k = i + 2; before && k < s->n;) {
        k += imp_utf8_decode(s->p + k, s->n - k, &cp);
        if (!is_ignorable(cp)) return !is_cased(cp);
    }
    return before;
}

static bool put_case(jj *j, const jj_str *s, size_t i, int32_t cp, jj_case how)
{
    if (cp < 0x80 && how != JJ_TITLE) {
        bool lower = cp >= 'a' && cp <= 'z', upper = cp >= 'A' && cp <= 'Z';
        return jj_put_cp(j, how == JJ_UPPER && lower ? cp - 32 : how != JJ_UPPER && upper ? cp + 32 : cp);
    }
    if (cp == 0x3a3 && how == JJ_LOWER) return jj_put_cp(j, final_sigma(s, i) ? 0x3c2 : 0x3c3);
    const struct wide_case *w = find_wide(cp);
    if (w != NULL)
        return jj_put_z(j, how == JJ_UPPER   ? w->upper
                           : how == JJ_LOWER ? w->lower
                           : how == JJ_TITLE ? w->title
                                             : w->fold);
    if (how == JJ_UPPER) return jj_put_cp(j, utf8proc_toupper(cp));
    if (how == JJ_TITLE) return jj_put_cp(j, utf8proc_totitle(cp));
    if (how == JJ_LOWER) return jj_put_cp(j, utf8proc_tolower(cp));
    const utf8proc_property_t *prop = utf8proc_get_property(cp);
    if (prop->casefold_seqindex == UINT16_MAX) return jj_put_cp(j, cp);
    utf8proc_int32_t folded[4];
    int boundary = 0;
    utf8proc_ssize_t n = utf8proc_decompose_char(cp, folded, 4, UTF8PROC_CASEFOLD, &boundary);
    for (utf8proc_ssize_t k = 0; k < n && k < 4; k++) JJ_TRY(jj_put_cp(j, folded[k]));
    return true;
}

/* JJ_WORDS is the filter title: words begin behind white space and - ( { [ <. */
bool jj_change_case(jj *j, const jj_str *s, jj_case how, jj_val *out)
{
    size_t mark = jj_mark(j);
    bool start = true;
    JJ_TRY(jj_burn(j, s->n + (s->n == s->n_cp ? 0 : s->n)));
    for (size_t i = 0, k; i < s->n; i += k) {
        int32_t cp;
        k = imp_utf8_decode(s->p + i, s->n - i, &cp);
        jj_case now = how;
        if (how == JJ_TITLE || how == JJ_CAPITAL) now = start ? JJ_TITLE : JJ_LOWER;
        if (how == JJ_WORDS) now = start ? JJ_UPPER : JJ_LOWER;
        if (how == JJ_SWAP)
            now = jj_is_class(cp, JJ_IS_UPPER) ? JJ_LOWER : jj_is_class(cp, JJ_IS_LOWER) ? JJ_UPPER : JJ_FOLD;
        if (how == JJ_SWAP && now == JJ_FOLD)
            JJ_TRY(jj_put(j, s->p + i, k));
        else
            JJ_TRY(put_case(j, s, i, cp, now));
        start = how == JJ_TITLE ? !is_cased(cp)
                : how == JJ_WORDS
                    ? jj_is_space(cp) || cp == '-' || cp == '(' || cp == '{' || cp == '[' || cp == '<'
                    : false;
    }
    JJ_TRY(jj_take(j, mark, out));
    if (s->markup) ((jj_str *)out->s)->markup = true;
    return true;
}

/* ---- parts ---------------------------------------------------------------------------------------------------- */

static bool part(jj *j, const jj_str *s, size_t from, size_t to, jj_val *out)
{
    if (from == 0 && to == s->n) {
        *out = (jj_val){.kind = JJ_STR, .s = s};
        return true;
    }
    jj_str *r = jj_alloc(j, sizeof *r);
    if (r == NULL || !jj_burn(j, (to - from) / 32)) return false;
    *r = (jj_str){s->p + from, to - from, s->n == s->n_cp ? to - from : jj_count_cp(s->p + from, to - from),
                  s->markup};
    *out = (jj_val){.kind = JJ_STR, .s = r};
    return true;
}

bool jj_substr(jj *j, const jj_str *s, size_t cp_from, size_t cp_to, jj_val *out)
{
    if (cp_from >= cp_to) return part(j, s, 0, 0, out);
    JJ_TRY(jj_burn(j, s->n == s->n_cp ? 0 : s->n / 16));
    return part(j, s, jj_str_at(s, cp_from), jj_str_at(s, cp_to), out);
}

static bool strips(const jj_str *chars, int32_t cp)
{
    if (chars == NULL) return jj_is_space(cp);
    for (size_t i = 0; i < chars->n;) {
        int32_t c;
        i += imp_utf8_decode(chars->p + i, chars->n - i, &c);
        if (c == cp) return true;
    }
    return false;
}

bool jj_strip(jj *j, const jj_str *s, const jj_str *chars, int side, jj_val *out)
{
    size_t from = 0, to = s->n;
    uint64_t cost = 1 + (chars != NULL ? chars->n / 2 : 0); /* of one character */
    int32_t cp;
    while (side <= 0 && from < to) {
        size_t k = imp_utf8_decode(s->p + from, to - from, &cp);
        JJ_TRY(jj_burn(j, cost));
        if (!strips(chars, cp)) break;
        from += k;
    }
    while (side >= 0 && to > from) {
        size_t k = to - 1;
        while (k > from && ((unsigned char)s->p[k] & 0xc0) == 0x80) k--;
        (void)imp_utf8_decode(s->p + k, to - k, &cp);
        JJ_TRY(jj_burn(j, cost));
        if (!strips(chars, cp)) break;
        to = k;
    }
    return part(j, s, from, to, out);
}

static bool find_bytes(const jj_str *s, const jj_str *what, size_t from, size_t to, bool last, size_t *at)
{
    if (from > to || what->n > to - from) return false;
    if (what->n == 0) {
        *at = last ? to : from;
        return true;
    }
    if (!last) {
        const char *p = memmem(s->p + from, to - from, what->p, what->n);
        if (p != NULL) *at = (size_t)(p - s->p);
        return p != NULL;
    }
    for (size_t i = to - what->n + 1; i-- > from;)
        if (s->p[i] == what->p[0] && memcmp(s->p + i, what->p, what->n) == 0) {
            *at = i;
            return true;
        }
    return false;
}

/* Where `what` lies within bytes [from, to) of s: the first, or the last. The bytes walked are paid for; when that is more
 * than is left, the next step fails. A search from the end may look at `what` again at every byte. */
bool jj_find(jj *j, const jj_str *s, const jj_str *what, size_t from, size_t to, bool last, size_t *at)
{
    uint64_t worst = last && to > from ? (to - from) / 64 * (what->n / 64) : 0;
    if (worst > j->fuel) j->fuel = 0;
    bool found = worst <= j->fuel && find_bytes(s, what, from, to, last, at);
    uint64_t walked = to < from ? 0 : !found ? to - from : last ? to - *at : *at - from;
    uint64_t cost = 1 + (walked + what->n) / 8;
    cost += worst;
    j->fuel -= IMP_MIN(cost, j->fuel);
    return found;
}

bool jj_replace(jj *j, const jj_str *s, const jj_str *old, const jj_str *with, int64_t count, jj_val *out)
{
    size_t i = 0, at, mark = jj_mark(j);
    uint64_t left = count < 0 ? UINT64_MAX : (uint64_t)count;
    for (; left > 0; left--) {
        JJ_TRY(jj_burn(j, 1));
        if (!jj_find(j, s, old, i, s->n, false, &at)) break;
        if (old->n == 0) { /* between all characters, and at both ends */
            int32_t cp;
            JJ_TRY(jj_put(j, with->p, with->n));
            if (i == s->n) {
                i = s->n + 1;
                break;
            }
            size_t k = imp_utf8_decode(s->p + i, s->n - i, &cp);
            JJ_TRY(jj_put(j, s->p + i, k));
            i += k;
            continue;
        }
        JJ_TRY(jj_put(j, s->p + i, at - i) && jj_put(j, with->p, with->n));
        i = at + old->n;
    }
    if (i < s->n) JJ_TRY(jj_put(j, s->p + i, s->n - i));
    return jj_take(j, mark, out);
}

static bool is_line_end(int32_t cp)
{
    return (cp >= 0x0a && cp <= 0x0d) || (cp >= 0x1c && cp <= 0x1e) || cp == 0x85 || cp == 0x2028 ||
           cp == 0x2029;
}

bool jj_splitlines(jj *j, const jj_str *s, bool keep, jj_list **out)
{
    JJ_TRY(jj_list_new(j, 4, out));
    for (size_t from = 0, i = 0; i < s->n;) {
        int32_t cp;
        size_t k = imp_utf8_decode(s->p + i, s->n - i, &cp), end = i;
        i += k;
        if (!is_line_end(cp) && i < s->n) continue;
        if (!is_line_end(cp)) end = i;
        if (cp == '\r' && i < s->n && s->p[i] == '\n') i++;
        jj_val line;
        JJ_TRY(part(j, s, from, keep ? i : end, &line) && jj_list_add(j, *out, line));
        from = i;
    }
    return true;
}

bool jj_pad(jj *j, const jj_str *s, int64_t width, int align, const jj_str *fill, jj_val *out)
{
    int64_t n = width - (int64_t)s->n_cp, left = 0;
    *out = (jj_val){.kind = JJ_STR, .s = s};
    if (n <= 0) return true;
    if (align > 0) left = n;
    if (align == 0) left = n / 2 + (n & width & 1); /* as Python's center does it */
    if (n > (int64_t)j->out_cap)
        return jj_fail(j, IMP_TOO_LARGE, "a text is padded to %lld characters", (long long)width);
    size_t mark = jj_mark(j);
    JJ_TRY(jj_burn(j, (uint64_t)n));
    for (int64_t i = 0; i < left; i++) JJ_TRY(jj_put(j, fill->p, fill->n));
    JJ_TRY(jj_put(j, s->p, s->n));
    for (int64_t i = left; i < n; i++) JJ_TRY(jj_put(j, fill->p, fill->n));
    return jj_take(j, mark, out);
}

bool jj_escape(jj *j, jj_val v, jj_val *out)
{
    const jj_str *s;
    *out = v;
    if (v.kind == JJ_STR && v.s->markup) return true;
    JJ_TRY(jj_to_str(j, v, &s) && jj_burn(j, s->n / 8));
    size_t mark = jj_mark(j), plain = 0;
    for (size_t i = 0; i < s->n; i++) {
        const char *to = s->p[i] == '&'    ? "&amp;"
                         : s->p[i] == '<'  ? "&lt;"
                         : s->p[i] == '>'  ? "&gt;"
                         : s->p[i] == '\'' ? "&#39;"
                         : s->p[i] == '"'  ? "&#34;"
                                           : NULL;
        if (to == NULL) continue;
        JJ_TRY(jj_put(j, s->p + plain, i - plain) && jj_put_z(j, to));
        plain = i + 1;
    }
    JJ_TRY(jj_put(j, s->p + plain, s->n - plain) && jj_take(j, mark, out));
    ((jj_str *)out->s)->markup = true; /* just made, nobody else has it */
    return true;
}

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

/* Python's int(text, base). base 0 is not used here. *overflow: a number, but not one of 64 bits. */
bool jj_parse_int(const jj_str *s, int base, int64_t *out, bool *overflow)
{
    size_t i = 0, n = s->n;
    bool negative = false, digit = false;
    int64_t v = 0;
    *overflow = false;
    while (i < n && jj_is_space((unsigned char)s->p[i])) i++;
    while (n > i && jj_is_space((unsigned char)s->p[n - 1])) n--;
    if (i < n && (s->p[i] == '+' || s->p[i] == '-')) negative = s->p[i++] == '-';
    char mark = base == 2 ? 'b' : base == 8 ? 'o' : base == 16 ? 'x' : 0;
    if (mark != 0 && n - i > 2 && s->p[i] == '0' && (s->p[i + 1] | 32) == mark) i += 2 + (s->p[i + 2] == '_');
    for (; i < n; i++) {
        char c = s->p[i];
        if (c == '_' && digit && i + 1 < n && s->p[i + 1] != '_') continue;
        int d = c >= '0' && c <= '9'                 ? c - '0'
                : (c | 32) >= 'a' && (c | 32) <= 'z' ? (c | 32) - 'a' + 10
                                                     : 99;
        if (d >= base) return false;
        digit = true;
        if (__builtin_mul_overflow(v, base, &v) || __builtin_sub_overflow(v, d, &v)) *overflow = true;
    }
    if (!digit || s->p[n - 1] == '_') return false;
    if (!negative && v == INT64_MIN) *overflow = true;
    *out = negative || *overflow ? v : -v;
    return !*overflow;
}

/* Python's float(text). */
bool jj_parse_float(const jj_str *s, double *out)
{
    char text[400];
    size_t i = 0, n = s->n, w = 0;
    while (i < n && jj_is_space((unsigned char)s->p[i])) i++;
    while (n > i && jj_is_space((unsigned char)s->p[n - 1])) n--;
    if (n - i >= sizeof text || n == i) return false;
    for (; i < n; i++) {
        char c = s->p[i];
        bool between = i > 0 && i + 1 < n && s->p[i - 1] >= '0' && s->p[i - 1] <= '9' && s->p[i + 1] >= '0' &&
                       s->p[i + 1] <= '9';
        if (c == '_' && between) continue;
        if (c == 0 || c == '(' || (c | 32) == 'x') return false; /* what strtod takes and Python does not */
        text[w++] = c;
    }
    text[w] = 0;
    if (jj_is_space((unsigned char)text[0])) return false;
    char *end;
    *out = strtod(text, &end);
    return end == text + w && w > 0;
}
