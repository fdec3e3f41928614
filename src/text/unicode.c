/* text/unicode.c - character properties and normal forms, on utf8proc's tables.
 *
 * Place:   normaliser and pre-tokenizer steps.
 * Idea:    decompose character by character, order the marks of each cluster by a stable sort (utf8proc's own
 *          ordering is quadratic in a run of marks, which a prompt may be made of), compose. ASCII needs nothing.
 * Source:  Unicode Standard Annex 15; utf8proc 2.8. */
#include <stdlib.h>
#include <utf8proc.h>

#include "text/internal.h"

bool imp_uni_space(int32_t cp)
{
    if (cp < 0x80) return cp == ' ' || (cp >= '\t' && cp <= '\r');
    return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 ||
           cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

static utf8proc_category_t category(int32_t cp)
{
    return cp < 0 ? UTF8PROC_CATEGORY_CN : utf8proc_category(cp);
}

bool imp_uni_punct(int32_t cp)
{
    if (cp < 0x80)
        return (cp >= '!' && cp <= '/') || (cp >= ':' && cp <= '@') || (cp >= '[' && cp <= '`') ||
               (cp >= '{' && cp <= '~');
    utf8proc_category_t c = category(cp);
    return c >= UTF8PROC_CATEGORY_PC && c <= UTF8PROC_CATEGORY_PO;
}

bool imp_uni_number(int32_t cp)
{
    utf8proc_category_t c = category(cp);
    return c >= UTF8PROC_CATEGORY_ND && c <= UTF8PROC_CATEGORY_NO;
}

bool imp_uni_mark(int32_t cp)
{
    utf8proc_category_t c = category(cp);
    return c >= UTF8PROC_CATEGORY_MN && c <= UTF8PROC_CATEGORY_ME;
}

bool imp_uni_mark_nonspacing(int32_t cp)
{
    return category(cp) == UTF8PROC_CATEGORY_MN;
}

bool imp_uni_control(int32_t cp)
{
    if (cp < 0 || cp == '\t' || cp == '\n' || cp == '\r') return false;
    utf8proc_category_t c = category(cp);
    return c == UTF8PROC_CATEGORY_CC || c == UTF8PROC_CATEGORY_CF || c == UTF8PROC_CATEGORY_CS ||
           c == UTF8PROC_CATEGORY_CO;
}

bool imp_uni_cjk(int32_t cp)
{
    /* 0x2B920 where one would expect 0x2B820 is how every copy of BERT's list spells it */
    return (cp >= 0x4E00 && cp <= 0x9FFF) || (cp >= 0x3400 && cp <= 0x4DBF) ||
           (cp >= 0x20000 && cp <= 0x2A6DF) || (cp >= 0x2A700 && cp <= 0x2B73F) ||
           (cp >= 0x2B740 && cp <= 0x2B81F) || (cp >= 0x2B920 && cp <= 0x2CEAF) ||
           (cp >= 0xF900 && cp <= 0xFAFF) || (cp >= 0x2F800 && cp <= 0x2FA1F);
}

bool imp_uni_word(int32_t cp)
{
    if (cp < 0x80)
        return (cp >= '0' && cp <= '9') || (cp >= 'A' && cp <= 'Z') || cp == '_' || (cp >= 'a' && cp <= 'z');
    utf8proc_category_t c = category(cp);
    return (c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_ND) || c == UTF8PROC_CATEGORY_NL ||
           c == UTF8PROC_CATEGORY_PC || cp == 0x200C || cp == 0x200D || (cp >= 0x24B6 && cp <= 0x24E9) ||
           (cp >= 0x1F130 && cp <= 0x1F149) || (cp >= 0x1F150 && cp <= 0x1F169) ||
           (cp >= 0x1F170 && cp <= 0x1F189);
}

size_t imp_uni_lower(int32_t cp, char out[8])
{
    size_t n = imp_utf8_encode(cp == 0x130 ? 'i' : utf8proc_tolower(cp), out);
    if (cp == 0x130) n += imp_utf8_encode(0x307, out + n); /* the one character whose lower case is two */
    return n;
}

/* ---- normal forms --------------------------------------------------------------------------------------- */

typedef struct mark {
    int32_t cp;
    int32_t ccc;
    size_t at;
} mark;

static int by_class(const void *a, const void *b)
{
    const mark *x = a, *y = b;
    if (x->ccc != y->ccc) return x->ccc < y->ccc ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

static int32_t combining_class(int32_t cp)
{
    return cp < 0x300 ? 0 : utf8proc_get_property(cp)->combining_class;
}

/* Canonical ordering of cp[0..n-1]. false: out of memory. */
static bool order_marks(int32_t *cp, size_t n)
{
    for (size_t i = 0; i < n;) {
        if (combining_class(cp[i]) == 0) {
            i++;
            continue;
        }
        size_t end = i, sorted = 1;
        int32_t last = 0;
        for (; end < n; end++) {
            int32_t ccc = combining_class(cp[end]);
            if (ccc == 0) break;
            if (ccc < last) sorted = 0;
            last = ccc;
        }
        if (!sorted) {
            mark *m = imp_sys_malloc((end - i) * sizeof *m);
            if (!m) return false;
            for (size_t k = i; k < end; k++) m[k - i] = (mark){cp[k], combining_class(cp[k]), k};
            qsort(m, end - i, sizeof *m, by_class);
            for (size_t k = i; k < end; k++) cp[k] = m[k - i].cp;
            imp_sys_free(m);
        }
        i = end;
    }
    return true;
}

/* utf8proc takes U+11A7, which stands before the first trailing consonant, for one and drops it behind a syllable; it
 * composes with nothing, so what lies between is composed by itself. */
static bool compose(utf8proc_option_t opt, int32_t *cp, size_t *n)
{
    size_t to = 0;
    for (size_t i = 0; i < *n;) {
        size_t end = i;
        while (end < *n && cp[end] != 0x11A7) end++;
        if (end > i) {
            utf8proc_ssize_t got = utf8proc_normalize_utf32(cp + i, (utf8proc_ssize_t)(end - i), opt);
            if (got < 0) return false;
            memmove(cp + to, cp + i, (size_t)got * sizeof *cp);
            to += (size_t)got;
        }
        if (end < *n) cp[to++] = cp[end++];
        i = end;
    }
    *n = to;
    return true;
}

/* A run of valid UTF-8. */
static void normalize_valid(utf8proc_option_t opt, const char *s, size_t n, imp_buf *out)
{
    int32_t *cp = NULL;
    size_t n_cp = 0, cap = 0;
    if (!imp_tok_grow((void **)&cp, &cap, n + 16, sizeof *cp)) goto fail;
    for (size_t i = 0; i < n;) {
        int32_t c;
        i += imp_utf8_decode(s + i, n - i, &c);
        utf8proc_ssize_t got = 0;
        for (int attempt = 0; attempt < 2; attempt++) { /* a second time when the room was too small */
            int bound = 0;
            got = utf8proc_decompose_char(c, cp + n_cp, (utf8proc_ssize_t)(cap - n_cp), opt, &bound);
            if (got < 0 || n_cp + (size_t)got <= cap) break;
            if (!imp_tok_grow((void **)&cp, &cap, n_cp + (size_t)got + 64, sizeof *cp)) goto fail;
        }
        if (got < 0) goto fail;
        n_cp += (size_t)got;
    }
    if (!order_marks(cp, n_cp)) goto fail;
    if ((opt & UTF8PROC_COMPOSE) && !compose(opt, cp, &n_cp)) goto fail;
    for (size_t i = 0; i < n_cp; i++) {
        char u[4];
        imp_buf_add(out, u, imp_utf8_encode(cp[i], u));
    }
    imp_sys_free(cp);
    return;
fail:
    imp_sys_free(cp);
    out->failed = true;
}

void imp_uni_normalize(imp_norm_kind form, const char *s, size_t n, imp_buf *out)
{
    int opt = UTF8PROC_STABLE |
              (form == NORM_NFC || form == NORM_NFKC ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
              (form == NORM_NFKC || form == NORM_NFKD ? UTF8PROC_COMPAT : 0);
    size_t i = 0;
    while (i < n && (uint8_t)s[i] < 0x80) i++;
    if (i && i < n) i--; /* the last ASCII character may take a mark that follows */
    imp_buf_add(out, s, i);
    while (i < n) {
        size_t begin = i;
        int32_t cp = 0;
        while (i < n) {
            size_t len = imp_utf8_decode(s + i, n - i, &cp);
            if (cp < 0) break;
            i += len;
        }
        if (i > begin) normalize_valid((utf8proc_option_t)opt, s + begin, i - begin, out);
        if (i < n) imp_buf_add(out, s + i++, 1);
    }
}
