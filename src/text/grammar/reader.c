/* text/grammar/reader.c - what the readers of GBNF and regular expressions share: position, digits, characters. */
#include "text/grammar/grammar_int.h"

gr_expr gr_bad(gr_reader *r, imp_status s, const char *what)
{
    if (r->g->status != IMP_OK) return 0;
    size_t at = r->i + 1;
    if (r->by_line) {
        at = 1;
        for (size_t k = 0; k < r->i && k < r->n; k++) at += r->s[k] == '\n';
    }
    (void)gr_fail(r->g, s, "%s, %s %zu: %s", r->what, r->by_line ? "line" : "character", at, what);
    if (r->g->err != NULL) r->g->err->position = r->i;
    return 0;
}

bool gr_more(const gr_reader *r)
{
    return r->i < r->n && r->g->status == IMP_OK;
}

bool gr_take(gr_reader *r, char c)
{
    if (!gr_more(r) || r->s[r->i] != c) return false;
    r->i++;
    return true;
}

bool gr_number(gr_reader *r, uint32_t *out)
{
    uint64_t v = 0;
    size_t from = r->i;
    for (; gr_more(r) && r->s[r->i] >= '0' && r->s[r->i] <= '9'; r->i++)
        v = IMP_MIN(v * 10 + (uint64_t)(r->s[r->i] - '0'), (uint64_t)GR_MAX_EXPR);
    *out = (uint32_t)v;
    return r->i > from;
}

int32_t gr_hex(gr_reader *r, uint32_t n_digit)
{
    uint32_t v = 0;
    for (uint32_t k = 0; k < n_digit; k++) {
        char c = gr_more(r) ? r->s[r->i] : '\0';
        int d = c >= '0' && c <= '9'                 ? c - '0'
                : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                     : -1;
        if (d < 0 || v > 0x10ffff)
            return (int32_t)gr_bad(r, IMP_INVALID, "hexadecimal digits of a character are expected");
        v = v << 4 | (uint32_t)d;
        r->i++;
    }
    return (int32_t)v;
}

int32_t gr_character(gr_reader *r)
{
    int32_t cp;
    size_t len = imp_utf8_decode(r->s + r->i, r->n - r->i, &cp);
    if (cp < 0) return (int32_t)gr_bad(r, IMP_INVALID, "not valid UTF-8");
    r->i += len;
    return cp;
}

int32_t gr_valid(gr_reader *r, int32_t cp)
{
    if (cp >= 0 && cp <= 0x10ffff && !(cp >= 0xd800 && cp <= 0xdfff)) return cp;
    return (int32_t)gr_bad(r, IMP_INVALID, "no such character");
}
