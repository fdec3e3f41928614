/* text/pretok.c - cut normalised text into the words the model sees.
 *
 * Place:   encode.c runs all steps on each piece between added tokens; the model encodes each resulting word.
 * Idea:    a list of spans into one text; every step maps each span to new spans, and steps that change bytes
 *          (byte alphabet, metaspace) write a new text as they go.
 * Always:  a regular expression sees valid UTF-8 only: malformed bytes are cut out and stand as words of their own.
 * Source:  the pre_tokenizers of Hugging Face tokenizers 0.2x; GPT-2's byte alphabet. */
#include "text/internal.h"

/* ---- the byte alphabet: visible Latin-1 stays, the rest follows from U+0100 ------------------------------ */

static bool is_visible(unsigned b)
{
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
}

uint16_t imp_byte_to_cp(uint8_t byte)
{
    if (is_visible(byte)) return byte;
    if (byte <= 0x20) return (uint16_t)(0x100 + byte);
    return byte == 0xAD ? 0x143 : (uint16_t)(0x121 + (byte - 0x7F));
}

int imp_cp_to_byte(int32_t cp)
{
    if (cp < 0 || cp > 0x143) return -1;
    if (cp < 0x100) return is_visible((unsigned)cp) ? cp : -1;
    if (cp <= 0x120) return cp - 0x100;
    return cp == 0x143 ? 0xAD : cp - 0x121 + 0x7F;
}

/* ---- cutting by matches ------------------------------------------------------------------------------------ */

typedef struct cutter { /* receives matches and gaps in order, adds spans by behaviour */
    imp_tok_work *w;
    imp_spans *out;
    imp_behavior behavior;
    bool invert;
    bool open; /* a span is being extended */
    bool last_match;
    size_t begin, end; /* that span */
} cutter;

static imp_status cut_flush(cutter *c)
{
    if (!c->open) return IMP_OK;
    c->open = false;
    return imp_spans_add(c->w, c->out, c->begin, c->end - c->begin);
}

static imp_status cut(cutter *c, size_t begin, size_t end, bool match)
{
    match ^= c->invert;
    bool join = false;
    switch (c->behavior) {
    case SPLIT_REMOVED:
        if (match) return IMP_OK;
        break;
    case SPLIT_ISOLATED: break;
    case SPLIT_CONTIGUOUS: join = c->open && match == c->last_match; break;
    case SPLIT_PREVIOUS: join = c->open && match && !c->last_match; break;
    case SPLIT_NEXT: join = c->open && c->last_match && !match; break;
    }
    c->last_match = match;
    if (join) {
        c->end = end;
        return IMP_OK;
    }
    IMP_TRY(cut_flush(c));
    c->open = true;
    c->begin = begin;
    c->end = end;
    return IMP_OK;
}

/* text[off..off+n-1] is valid UTF-8. */
static imp_status cut_regex(cutter *c, const imp_regex *re, const char *text, size_t off, size_t n)
{
    size_t from = 0, done = 0;
    bool matched = false;
    while (from <= n) {
        bool found;
        size_t b, e;
        IMP_TRY(imp_regex_find(re, c->w->match, text + off, n, from, &found, &b, &e, c->w->err));
        if (!found) break;
        if (b == e) {
            if (!(matched && e == done)) { /* empty matches directly behind a match do not count */
                if (b > done) IMP_TRY(cut(c, off + done, off + b, false));
                IMP_TRY(cut(c, off + b, off + e, true));
                done = e;
            }
            int32_t cp;
            from = e + (e < n ? imp_utf8_decode(text + off + e, n - e, &cp) : 1);
            continue;
        }
        if (b > done) IMP_TRY(cut(c, off + done, off + b, false));
        IMP_TRY(cut(c, off + b, off + e, true));
        done = from = e;
        matched = true;
    }
    return done < n ? cut(c, off + done, off + n, false) : IMP_OK;
}

static imp_status cut_string(cutter *c, imp_vocab_str pat, const char *text, size_t off, size_t n)
{
    size_t i = 0, done = 0;
    while (pat.n && i + pat.n <= n) {
        if (memcmp(text + off + i, pat.p, pat.n) != 0) {
            i++;
            continue;
        }
        if (i > done) IMP_TRY(cut(c, off + done, off + i, false));
        IMP_TRY(cut(c, off + i, off + i + pat.n, true));
        i += pat.n;
        done = i;
    }
    return done < n ? cut(c, off + done, off + n, false) : IMP_OK;
}

static imp_status cut_chars(cutter *c, bool (*is)(int32_t), const char *text, size_t off, size_t n)
{
    size_t i = 0, done = 0;
    while (i < n) {
        int32_t cp;
        size_t len = imp_utf8_decode(text + off + i, n - i, &cp);
        if (is(cp)) {
            if (i > done) IMP_TRY(cut(c, off + done, off + i, false));
            IMP_TRY(cut(c, off + i, off + i + len, true));
            done = i + len;
        }
        i += len;
    }
    return done < n ? cut(c, off + done, off + n, false) : IMP_OK;
}

static imp_status cut_valid_runs(cutter *c, const imp_regex *re, const char *text, imp_span s)
{
    size_t i = 0;
    while (i < s.n) {
        size_t begin = i;
        int32_t cp = 0;
        while (i < s.n) {
            size_t len = imp_utf8_decode(text + s.off + i, s.n - i, &cp);
            if (cp < 0) break;
            i += len;
        }
        if (i > begin) {
            IMP_TRY(cut_regex(c, re, text, s.off + begin, i - begin));
            IMP_TRY(cut_flush(c));
        }
        begin = i;
        while (i < s.n) {
            size_t len = imp_utf8_decode(text + s.off + i, s.n - i, &cp);
            if (cp >= 0) break;
            i += len;
        }
        IMP_TRY(imp_spans_add(c->w, c->out, s.off + begin, i - begin));
    }
    return IMP_OK;
}

/* ---- steps --------------------------------------------------------------------------------------------------- */

static imp_status split_span(imp_tok_work *w, const imp_pre_step *st, const char *text, imp_span s,
                             imp_spans *out)
{
    cutter c = {.w = w, .out = out, .behavior = st->behavior, .invert = st->invert};
    if (st->kind == PRE_DIGITS)
        IMP_TRY(cut_chars(&c, imp_uni_number, text, s.off, s.n));
    else if (st->kind == PRE_PUNCT)
        IMP_TRY(cut_chars(&c, imp_uni_punct, text, s.off, s.n));
    else if (st->kind == PRE_SPACE_SPLIT)
        IMP_TRY(cut_chars(&c, imp_uni_space, text, s.off, s.n));
    else if (st->re)
        return cut_valid_runs(&c, st->re, text, s);
    else
        IMP_TRY(cut_string(&c, st->text, text, s.off, s.n));
    return cut_flush(&c);
}

static imp_status bert_span(imp_tok_work *w, const char *text, imp_span s, imp_spans *out)
{
    size_t done = 0;
    for (size_t i = 0; i < s.n;) {
        int32_t cp;
        size_t len = imp_utf8_decode(text + s.off + i, s.n - i, &cp);
        bool space = imp_uni_space(cp), punct = !space && imp_uni_punct(cp);
        if (space || punct) {
            IMP_TRY(imp_spans_add(w, out, s.off + done, i - done));
            if (punct) IMP_TRY(imp_spans_add(w, out, s.off + i, len));
            done = i + len;
        }
        i += len;
    }
    return imp_spans_add(w, out, s.off + done, s.n - done);
}

/* Replace ' ' by the metaspace, prepend one where asked, cut before each. */
static imp_status metaspace_span(imp_tok_work *w, const imp_pre_step *st, const char *text, imp_span s,
                                 bool first, imp_buf *to, imp_spans *out)
{
    const char *p = text + s.off;
    size_t begin = to->n, m = st->text.n;
    bool has = s.n && (p[0] == ' ' || (s.n >= m && memcmp(p, st->text.p, m) == 0));
    if (!has && (st->prepend == PREPEND_ALWAYS || (st->prepend == PREPEND_FIRST && first)))
        imp_buf_add(to, st->text.p, m);
    for (size_t i = 0; i < s.n; i++) {
        if (p[i] == ' ')
            imp_buf_add(to, st->text.p, m);
        else
            imp_buf_add(to, p + i, 1);
    }
    if (to->failed) return imp_tok_nomem(w->err);
    if (!st->split) return imp_spans_add(w, out, begin, to->n - begin);
    cutter c = {.w = w, .out = out, .behavior = SPLIT_NEXT};
    IMP_TRY(cut_string(&c, st->text, to->data, begin, to->n - begin));
    return cut_flush(&c);
}

static void add_bytes_mapped(imp_buf *to, const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned cp = imp_byte_to_cp((uint8_t)p[i]);
        char u[2] = {(char)cp};
        if (cp >= 0x80) {
            u[0] = (char)(0xC0 | cp >> 6);
            u[1] = (char)(0x80 | (cp & 0x3F));
        }
        imp_buf_add(to, u, cp < 0x80 ? 1 : 2);
    }
}

static imp_status byte_level_span(imp_tok_work *w, const imp_pre_step *st, const char *text, imp_span s,
                                  imp_buf *to, imp_spans *out)
{
    imp_spans *words = &w->words;
    words->n = 0;
    if (st->add_space && s.n && text[s.off] != ' ') {
        w->spaced.n = 0;
        imp_buf_add(&w->spaced, " ", 1);
        imp_buf_add(&w->spaced, text + s.off, s.n);
        if (w->spaced.failed) return imp_tok_nomem(w->err);
        text = w->spaced.data;
        s = (imp_span){0, w->spaced.n};
    }
    if (st->re) {
        cutter c = {.w = w, .out = words, .behavior = SPLIT_ISOLATED};
        IMP_TRY(cut_valid_runs(&c, st->re, text, s));
    } else {
        IMP_TRY(imp_spans_add(w, words, s.off, s.n));
    }
    for (size_t i = 0; i < words->n; i++) {
        size_t begin = to->n;
        add_bytes_mapped(to, text + words->v[i].off, words->v[i].n);
        if (to->failed) return imp_tok_nomem(w->err);
        IMP_TRY(imp_spans_add(w, out, begin, to->n - begin));
    }
    return IMP_OK;
}

imp_status imp_pre_run(imp_tok_work *w, const char *s, size_t n, bool first, const char **text,
                       const imp_spans **spans)
{
    imp_spans *cur = &w->span[0], *next = &w->span[1];
    imp_buf *to = &w->text[0], *other = &w->text[1];
    const char *now = s;
    cur->n = 0;
    IMP_TRY(imp_spans_add(w, cur, 0, n));
    for (size_t k = 0; k < w->t->n_pre; k++) {
        const imp_pre_step *st = &w->t->pre[k];
        bool rewrites = st->kind == PRE_BYTE_LEVEL || st->kind == PRE_METASPACE;
        next->n = 0;
        if (rewrites) to->n = 0;
        for (size_t i = 0; i < cur->n; i++) {
            imp_span sp = cur->v[i];
            if (st->kind == PRE_BYTE_LEVEL)
                IMP_TRY(byte_level_span(w, st, now, sp, to, next));
            else if (st->kind == PRE_METASPACE)
                IMP_TRY(metaspace_span(w, st, now, sp, first && i == 0, to, next));
            else if (st->kind == PRE_BERT)
                IMP_TRY(bert_span(w, now, sp, next));
            else
                IMP_TRY(split_span(w, st, now, sp, next));
        }
        if (rewrites) {
            now = to->data ? to->data : "";
            imp_buf *t = to;
            to = other;
            other = t;
        }
        imp_spans *t = cur;
        cur = next;
        next = t;
    }
    *text = now;
    *spans = cur;
    return IMP_OK;
}
