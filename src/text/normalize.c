/* text/normalize.c - the steps that change text before it is cut into tokens.
 *
 * Place:   encode.c runs them, one after the other, on each piece between added tokens.
 * Idea:    every step reads s[0..n-1] and writes a new buffer. Malformed bytes pass through all of them.
 * Source:  the normalizers of Hugging Face tokenizers 0.2x; SentencePiece for SPACES. */
#include "text/internal.h"

#define META "\xE2\x96\x81" /* U+2581, SentencePiece's visible space */

static void bert(const imp_norm_step *st, const char *s, size_t n, imp_buf *out, imp_buf *tmp)
{
    for (size_t i = 0; i < n;) {
        int32_t cp;
        size_t len = imp_utf8_decode(s + i, n - i, &cp);
        bool drop = st->clean && (cp == 0 || cp == 0xFFFD || imp_uni_control(cp));
        bool space = st->clean && !drop && imp_uni_space(cp);
        bool cjk = st->cjk && imp_uni_cjk(cp);
        if (cjk || space) imp_buf_add(tmp, " ", 1);
        if (!drop && !space) imp_buf_add(tmp, s + i, len);
        if (cjk) imp_buf_add(tmp, " ", 1);
        i += len;
    }
    imp_buf decomposed = {0};
    const imp_buf *in = tmp;
    if (st->accents) {
        imp_uni_normalize(NORM_NFD, tmp->data ? tmp->data : "", tmp->n, &decomposed);
        in = &decomposed;
    }
    for (size_t i = 0; i < in->n;) {
        int32_t cp;
        char low[8];
        size_t len = imp_utf8_decode(in->data + i, in->n - i, &cp);
        if (st->accents && imp_uni_mark_nonspacing(cp)) {
        } else if (st->lower && cp >= 0) {
            imp_buf_add(out, low, imp_uni_lower(cp, low));
        } else {
            imp_buf_add(out, in->data + i, len);
        }
        i += len;
    }
    out->failed |= tmp->failed | decomposed.failed;
    imp_buf_deinit(&decomposed);
}

static void lower(const char *s, size_t n, imp_buf *out)
{
    for (size_t i = 0; i < n;) {
        int32_t cp;
        char low[8];
        size_t len = imp_utf8_decode(s + i, n - i, &cp);
        if (cp < 0)
            imp_buf_add(out, s + i, len);
        else
            imp_buf_add(out, low, imp_uni_lower(cp, low));
        i += len;
    }
}

static void strip_marks(const char *s, size_t n, imp_buf *out)
{
    for (size_t i = 0; i < n;) {
        int32_t cp;
        size_t len = imp_utf8_decode(s + i, n - i, &cp);
        if (!imp_uni_mark(cp)) imp_buf_add(out, s + i, len);
        i += len;
    }
}

static void strip_ends(const imp_norm_step *st, const char *s, size_t n, imp_buf *out)
{
    size_t begin = 0, end = 0;
    bool leading = st->left;
    for (size_t i = 0; i < n;) {
        int32_t cp;
        i += imp_utf8_decode(s + i, n - i, &cp);
        bool space = imp_uni_space(cp);
        if (!space) leading = false;
        if (leading) begin = i;
        if (!space || !st->right) end = i;
    }
    if (end > begin) imp_buf_add(out, s + begin, end - begin);
}

static imp_status replace_regex(imp_tok_work *w, const imp_norm_step *st, const char *s, size_t n,
                                imp_buf *out)
{
    size_t done = 0, from = 0;
    while (from <= n) {
        bool found;
        size_t begin, end;
        IMP_TRY(imp_regex_find(st->re, w->match, s, n, from, &found, &begin, &end, w->err));
        if (!found) break;
        imp_buf_add(out, s + done, begin - done);
        imp_buf_add(out, st->to.p, st->to.n);
        done = end;
        from = end;
        if (end == begin) { /* an empty match: go on behind the next character */
            int32_t cp;
            from += end < n ? imp_utf8_decode(s + end, n - end, &cp) : 1;
        }
    }
    imp_buf_add(out, s + done, n - done);
    return IMP_OK;
}

/* The regular expression sees each run of valid UTF-8 by itself. */
static imp_status replace_valid_runs(imp_tok_work *w, const imp_norm_step *st, const char *s, size_t n,
                                     imp_buf *out)
{
    for (size_t i = 0; i < n;) {
        size_t begin = i;
        int32_t cp = 0;
        while (i < n) {
            size_t len = imp_utf8_decode(s + i, n - i, &cp);
            if (cp < 0) break;
            i += len;
        }
        if (i > begin) IMP_TRY(replace_regex(w, st, s + begin, i - begin, out));
        if (i < n) imp_buf_add(out, s + i++, 1);
    }
    return IMP_OK;
}

static void replace_string(const imp_norm_step *st, const char *s, size_t n, imp_buf *out)
{
    size_t i = 0, done = 0;
    while (st->from.n && i + st->from.n <= n) {
        const char *hit = memchr(s + i, st->from.p[0], n - i - st->from.n + 1);
        if (!hit) break;
        i = (size_t)(hit - s);
        if (memcmp(hit, st->from.p, st->from.n) != 0) {
            i++;
            continue;
        }
        imp_buf_add(out, s + done, i - done);
        imp_buf_add(out, st->to.p, st->to.n);
        i += st->from.n;
        done = i;
    }
    imp_buf_add(out, s + done, n - done);
}

/* SentencePiece's handling of spaces; after it, U+2581 stands for a space. One that was in the text already is kept, but
 * for the end of it. */
static void spaces(const imp_norm_step *st, const char *s, size_t n, imp_buf *out)
{
    bool after_space = st->collapse, any = false;
    for (size_t i = 0; i < n; i++) {
        bool space = s[i] == ' ';
        if (space && after_space) continue;
        if (!any && st->prefix) imp_buf_str(out, META);
        any = true;
        if (space)
            imp_buf_str(out, META);
        else
            imp_buf_add(out, s + i, 1);
        after_space = space && st->collapse;
    }
    if (st->collapse)
        while (out->n >= 3 && memcmp(out->data + out->n - 3, META, 3) == 0) out->n -= 3;
}

imp_status imp_norm_run(imp_tok_work *w, const imp_norm_step *st, const char *s, size_t n, imp_buf *out)
{
    out->n = 0;
    imp_status status = IMP_OK;
    switch (st->kind) {
    case NORM_NFC:
    case NORM_NFD:
    case NORM_NFKC:
    case NORM_NFKD: imp_uni_normalize(st->kind, s, n, out); break;
    case NORM_LOWER: lower(s, n, out); break;
    case NORM_STRIP_ACCENTS: strip_marks(s, n, out); break;
    case NORM_BERT: {
        imp_buf tmp = {0};
        bert(st, s, n, out, &tmp);
        imp_buf_deinit(&tmp);
        break;
    }
    case NORM_REPLACE:
        if (st->re)
            status = replace_valid_runs(w, st, s, n, out);
        else
            replace_string(st, s, n, out);
        break;
    case NORM_PREPEND:
        if (n) imp_buf_add(out, st->to.p, st->to.n);
        imp_buf_add(out, s, n);
        break;
    case NORM_STRIP: strip_ends(st, s, n, out); break;
    case NORM_CHARSMAP: imp_charsmap_graphemes(&st->map, s, n, out); break;
    case NORM_CHARSMAP_LONGEST: imp_charsmap_longest(&st->map, s, n, out); break;
    case NORM_SPACES: spaces(st, s, n, out); break;
    }
    return status == IMP_OK && out->failed ? imp_tok_nomem(w->err) : status;
}
