/* text/decode.c - ids to text, whole lists and streams.
 *
 * Place:   engine pushes every generated id through an imp_detok; imp_tokenizer_decode is the same over a list.
 * Idea:    the decoder steps turn one piece into bytes, in place at the end of the output buffer; then only whole
 *          UTF-8 characters are kept there, an unfinished one waits in hold. Bytes that can be part of no character
 *          become U+FFFD: one for each maximal part of a character, or, where single byte tokens make up characters
 *          (byte fallback), one for each byte.
 * Always:  concatenated output is valid UTF-8 and equals decode of the whole list.
 * Source:  the decoders of Hugging Face tokenizers 0.2x (there a run of byte tokens with one bad byte is lost as a
 *          whole; here its good characters stay, because a stream cannot take them back). */
#include "text/internal.h"

#define REPLACEMENT "\xEF\xBF\xBD"

/* out->data[base..] is replaced by what follows mid, which is moved down. */
static void move_down(imp_buf *out, size_t base, size_t mid)
{
    memmove(out->data + base, out->data + mid, out->n - mid);
    out->n -= mid - base;
    out->data[out->n] = '\0';
}

static void replace_all(imp_buf *out, size_t base, imp_vocab_str from, imp_vocab_str to)
{
    size_t end = out->n;
    if (from.n == 0 || !imp_buf_reserve(out, end - base)) return;
    bool any = false;
    for (size_t i = base; i + from.n <= end && !any; i++) any = memcmp(out->data + i, from.p, from.n) == 0;
    if (!any) return;
    for (size_t i = base; i < end;) {
        if (i + from.n <= end && memcmp(out->data + i, from.p, from.n) == 0) {
            imp_buf_add(out, to.p, to.n);
            i += from.n;
        } else {
            char c = out->data[i++];
            imp_buf_add(out, &c, 1);
        }
        if (out->failed) return;
    }
    move_down(out, base, end);
}

/* All characters must be of the byte alphabet, else the piece is left as it is. */
static void byte_level(imp_buf *out, size_t base)
{
    size_t to = base;
    for (size_t i = base; i < out->n;) {
        int32_t cp;
        i += imp_utf8_decode(out->data + i, out->n - i, &cp);
        if (imp_cp_to_byte(cp) < 0) return;
    }
    for (size_t i = base; i < out->n;) {
        int32_t cp;
        i += imp_utf8_decode(out->data + i, out->n - i, &cp);
        out->data[to++] = (char)imp_cp_to_byte(cp);
    }
    out->n = to;
    if (out->data) out->data[to] = '\0';
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "<0xNN>" becomes that byte; true when it did. */
static bool byte_token(imp_buf *out, size_t base)
{
    const char *p = out->data + base;
    if (out->n - base != 6 || memcmp(p, "<0x", 3) != 0 || p[5] != '>') return false;
    int hi = hex_digit(p[3]), lo = hex_digit(p[4]);
    if (hi < 0 || lo < 0) return false;
    out->data[base] = (char)(hi << 4 | lo);
    out->n = base + 1;
    out->data[out->n] = '\0';
    return true;
}

static void strip(imp_buf *out, size_t base, const imp_dec_step *st)
{
    size_t begin = base, end = out->n, m = st->from.n;
    if (m == 0) return;
    for (size_t k = 0; k < st->start && end - begin >= m && memcmp(out->data + begin, st->from.p, m) == 0;
         k++)
        begin += m;
    for (size_t k = 0; k < st->stop && end - begin >= m && memcmp(out->data + end - m, st->from.p, m) == 0;
         k++)
        end -= m;
    out->n = end;
    if (begin > base) move_down(out, base, begin);
}

static void metaspace(imp_buf *out, size_t base, const imp_dec_step *st, bool first)
{
    static const imp_vocab_str space = {" ", 1}, nothing = {"", 0};
    replace_all(out, base, st->from, first && st->flag ? nothing : space);
}

static void wordpiece(imp_buf *out, size_t base, const imp_dec_step *st, bool first, bool is_word)
{
    static const struct {
        imp_vocab_str from, to;
    } tidy[] = {{{" .", 2}, {".", 1}},     {{" ?", 2}, {"?", 1}},           {{" !", 2}, {"!", 1}},
                {{" ,", 2}, {",", 1}},     {{" ' ", 3}, {"'", 1}},          {{" n't", 4}, {"n't", 3}},
                {{" 'm", 3}, {"'m", 2}},   {{" do not", 7}, {" don't", 6}}, {{" 's", 3}, {"'s", 2}},
                {{" 've", 4}, {"'ve", 3}}, {{" 're", 4}, {"'re", 3}}};
    size_t n = out->n - base, mid = out->n;
    const char *p = out->data + base;
    bool starts = n >= st->to.n && memcmp(p, st->to.p, st->to.n) == 0;
    bool continues = n >= st->from.n && memcmp(p, st->from.p, st->from.n) == 0;
    bool word = is_word || (st->from.n ? !continues : starts); /* the role with a prefix is told by it */
    size_t cut = is_word ? 0 : word ? (starts ? st->to.n : 0) : first && st->from.n ? 0 : st->from.n;
    if (!imp_buf_reserve(out, n + 1)) return;
    if (word && !first) imp_buf_add(out, " ", 1);
    imp_buf_add(out, out->data + base + cut, n - cut);
    move_down(out, base, mid);
    for (size_t i = 0; st->flag && i < IMP_COUNT(tidy); i++) replace_all(out, base, tidy[i].from, tidy[i].to);
}

/* Append the bytes of one piece. */
static void piece_bytes(const imp_tokenizer *t, int32_t id, bool first, imp_buf *out)
{
    size_t base = out->n;
    if (t->dec_join && !first) imp_buf_add(out, " ", 1);
    imp_buf_add(out, t->piece[id].p, t->piece[id].n);
    if (out->failed || !out->data || (t->flag[id] & TOK_F_RAW)) return;
    for (size_t i = 0; i < t->n_dec && !out->failed; i++) {
        const imp_dec_step *st = &t->dec[i];
        switch (st->kind) {
        case DEC_BYTE_LEVEL: byte_level(out, base); break;
        case DEC_REPLACE: replace_all(out, base, st->from, st->to); break;
        case DEC_BYTE_FALLBACK:
            if (byte_token(out, base)) return;
            break;
        case DEC_STRIP: strip(out, base, st); break;
        case DEC_METASPACE: metaspace(out, base, st, first); break;
        case DEC_WORDPIECE: wordpiece(out, base, st, first, t->flag[id] & TOK_F_WORD); break;
        }
    }
}

/* Bytes at s that are the longest beginning of a character, at least 1: one U+FFFD stands for all of them. */
static size_t bad_part(const char *s, size_t n)
{
    for (size_t k = IMP_MIN(n, (size_t)3); k > 1; k--)
        if (imp_utf8_incomplete_tail(s, k) == k) return k;
    return 1;
}

/* Keep whole characters of out->data[base..], whose first bytes are what was held; the rest goes to hold. */
static void settle(imp_detok *d, imp_buf *out, size_t base, bool final)
{
    bool each = d->t->byte_fallback;
    size_t end = out->n, i = base;
    size_t tail = final ? 0 : imp_utf8_incomplete_tail(out->data + base, end - base);
    d->n_hold = (uint8_t)tail;
    memcpy(d->hold, out->data + end - tail, tail);
    end -= tail;
    if (imp_utf8_valid(out->data + base, end - base)) {
        out->n = end;
        out->data[end] = '\0';
        return;
    }
    size_t mid = out->n;
    if (!imp_buf_reserve(out, 3 * (end - base) + 1)) return;
    while (i < end) {
        int32_t cp;
        size_t len = imp_utf8_decode(out->data + i, end - i, &cp);
        if (cp >= 0) {
            imp_buf_add(out, out->data + i, len);
        } else {
            imp_buf_str(out, REPLACEMENT);
            if (!each) len = bad_part(out->data + i, end - i);
        }
        i += len;
    }
    move_down(out, base, mid);
}

void imp_tokenizer_show(imp_tokenizer *t, int32_t id)
{
    t->flag[id] &= (uint8_t)~TOK_F_SKIP;
}

void imp_token_spell(const imp_tokenizer *t, int32_t id, imp_buf *out)
{
    if (id < 0 || (size_t)id >= t->n || !t->piece[id].p || (t->flag[id] & TOK_F_SKIP)) return;
    piece_bytes(t, id, false, out);
}

void imp_detok_init(imp_detok *d, const imp_tokenizer *t, bool special)
{
    memset(d, 0, sizeof *d);
    d->t = t;
    d->special = special;
}

void imp_detok_continue(imp_detok *d)
{
    d->started = d->stripped = true;
}

/* Take the decoder's one leading space (or what it strips) off the start of the text. */
static void strip_start(imp_detok *d, imp_buf *out, size_t base)
{
    const imp_tokenizer *t = d->t;
    size_t m = t->dec_strip.n;
    while (!d->stripped && out->n > base) {
        if (d->n_strip == t->dec_strip_max || out->n - base < m ||
            memcmp(out->data + base, t->dec_strip.p, m) != 0) {
            d->stripped = true;
            break;
        }
        move_down(out, base, base + m);
        d->n_strip++;
    }
}

void imp_detok_push(imp_detok *d, int32_t id, imp_buf *out)
{
    const imp_tokenizer *t = d->t;
    if (id < 0 || (size_t)id >= t->n || !t->piece[id].p) return;
    if (!d->special && (t->flag[id] & TOK_F_SKIP)) return;
    size_t base = out->n;
    imp_buf_add(out, d->hold, d->n_hold);
    piece_bytes(t, id, !d->started, out);
    d->started = true;
    if (out->failed || !out->data) return;
    settle(d, out, base, false);
    if (t->dec_strip_max && !out->failed) strip_start(d, out, base);
}

void imp_detok_flush(imp_detok *d, imp_buf *out)
{
    if (d->n_hold == 0) return;
    size_t base = out->n;
    imp_buf_add(out, d->hold, d->n_hold);
    d->n_hold = 0;
    if (!out->failed) settle(d, out, base, true);
}

imp_status imp_tokenizer_decode(const imp_tokenizer *t, const int32_t *ids, size_t n, bool special,
                                imp_buf *out, imp_error *err)
{
    imp_detok d;
    imp_detok_init(&d, t, special);
    for (size_t i = 0; i < n; i++) imp_detok_push(&d, ids[i], out);
    imp_detok_flush(&d, out);
    return out->failed ? imp_tok_nomem(err) : IMP_OK;
}
