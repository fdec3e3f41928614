/* text/json_bulk.c - the vocabulary and the merges of a tokenizer.json, straight from its text.
 *
 * Place:   from_json.c, before the rest of the file goes to jansson.
 * Idea:    a vocabulary of 128,000 pieces and as many merges make a JSON tree of half a million nodes, most of the time
 *          a load takes. The two tables have one plain form each, so they are scanned here, and the parser gets the
 *          text with empty ones in their place. Strings without escapes are borrowed from the text.
 * Always:  no recursion but the one into "model"; every index is checked against the end of the text; strings are valid UTF-8.
 * Source:  RFC 8259. */
#include "text/json_bulk.h"
#include "text/internal.h"

typedef struct scan {
    const char *p;
    size_t n, i;
    imp_json_bulk *b;
    imp_error *err;
} scan;

static imp_status bad(const scan *s, const char *what)
{
    return imp_fail_at(s->err, IMP_FORMAT, s->i, "tokenizer.json: %s at byte %zu", what, s->i);
}

static void skip_space(scan *s)
{
    while (s->i < s->n &&
           (s->p[s->i] == ' ' || s->p[s->i] == '\n' || s->p[s->i] == '\r' || s->p[s->i] == '\t'))
        s->i++;
}

/* The next character that is no space, taken when it is c. */
static bool take(scan *s, char c)
{
    skip_space(s);
    if (s->i >= s->n || s->p[s->i] != c) return false;
    s->i++;
    return true;
}

/* s->i is behind the opening quote; afterwards behind the closing one. *raw: between them; *plain: nothing to decode. */
static bool string_end(scan *s, imp_vocab_str *raw, bool *plain)
{
    size_t begin = s->i;
    *plain = true;
    for (; s->i < s->n && s->p[s->i] != '"'; s->i++) {
        if ((uint8_t)s->p[s->i] < 0x20) return false;
        if (s->p[s->i] != '\\') continue;
        *plain = false;
        if (++s->i >= s->n) return false;
    }
    if (s->i >= s->n) return false;
    *raw = (imp_vocab_str){s->p + begin, s->i - begin};
    s->i++;
    return true;
}

static bool hex4(const char *p, size_t n, int32_t *out)
{
    *out = 0;
    if (n < 4) return false;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
        if (d < 0) return false;
        *out = *out << 4 | d;
    }
    return true;
}

/* What follows a backslash at p: the bytes it stands for to out, and how many characters it took; 0: no escape. */
static size_t unescape(const char *p, size_t n, char out[4], size_t *n_out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *hit = n && p[0] ? strchr(from, p[0]) : NULL;
    int32_t cp, low;
    if (hit) {
        out[0] = to[hit - from];
        *n_out = 1;
        return 1;
    }
    if (n < 5 || p[0] != 'u' || !hex4(p + 1, n - 1, &cp) || (cp >= 0xDC00 && cp <= 0xDFFF)) return 0;
    size_t used = 5;
    if (cp >= 0xD800 && cp <= 0xDBFF) {
        if (n < 11 || p[5] != '\\' || p[6] != 'u' || !hex4(p + 7, n - 7, &low) || low < 0xDC00 ||
            low > 0xDFFF)
            return 0;
        cp = 0x10000 + ((cp - 0xD800) << 10) + (low - 0xDC00);
        used = 11;
    }
    *n_out = imp_utf8_encode(cp, out);
    return used;
}

static imp_status string(scan *s, imp_vocab_str *out)
{
    imp_vocab_str raw;
    bool plain;
    if (!take(s, '"')) return bad(s, "a string is missing");
    if (!string_end(s, &raw, &plain)) return bad(s, "an unfinished string");
    if (!imp_utf8_valid(raw.p, raw.n)) return bad(s, "a string that is not UTF-8");
    *out = raw;
    if (plain) return IMP_OK;
    char *copy = imp_arena_alloc(s->b->arena, raw.n + 4);
    if (!copy) return imp_tok_nomem(s->err);
    size_t to = 0;
    for (size_t i = 0; i < raw.n;) {
        char u[4];
        size_t n_u = 1, used = 1;
        u[0] = raw.p[i];
        if (raw.p[i] == '\\') {
            used = 1 + unescape(raw.p + i + 1, raw.n - i - 1, u, &n_u);
            if (used == 1) return bad(s, "an invalid escape");
        }
        memcpy(copy + to, u, n_u);
        to += n_u;
        i += used;
    }
    *out = (imp_vocab_str){copy, to};
    return IMP_OK;
}

static imp_status token_id(scan *s, uint32_t *out)
{
    uint64_t v = 0;
    size_t begin;
    skip_space(s);
    begin = s->i;
    for (; s->i < s->n && s->p[s->i] >= '0' && s->p[s->i] <= '9' && s->i - begin < 12; s->i++)
        v = v * 10 + (uint64_t)(s->p[s->i] - '0');
    if (s->i == begin || v >= INT32_MAX || (s->p[begin] == '0' && s->i > begin + 1))
        return imp_fail_at(s->err, IMP_INVALID, begin,
                           "a token of the tokenizer's vocab has an id that is no token id");
    *out = (uint32_t)v;
    return IMP_OK;
}

/* {"piece": id, ...}, s->i behind the brace */
static imp_status vocab(scan *s)
{
    imp_json_bulk *b = s->b;
    b->has_vocab = true;
    if (take(s, '}')) return IMP_OK;
    do {
        if (!imp_tok_grow((void **)&b->piece, &b->piece_cap, b->n + 1, sizeof *b->piece) ||
            !imp_tok_grow((void **)&b->id, &b->id_cap, b->n + 1, sizeof *b->id))
            return imp_tok_nomem(s->err);
        IMP_TRY(string(s, &b->piece[b->n]));
        if (!take(s, ':')) return bad(s, "a colon is missing");
        IMP_TRY(token_id(s, &b->id[b->n++]));
    } while (take(s, ','));
    return take(s, '}') ? IMP_OK : bad(s, "the vocabulary does not go on as one");
}

/* "a b" or ["a", "b"] */
static imp_status merge(scan *s, imp_vocab_str out[2])
{
    imp_vocab_str both;
    if (take(s, '[')) {
        IMP_TRY(string(s, &out[0]));
        if (!take(s, ',')) return bad(s, "a merge that is not a pair");
        IMP_TRY(string(s, &out[1]));
        return take(s, ']') ? IMP_OK : bad(s, "a merge that is not a pair");
    }
    IMP_TRY(string(s, &both));
    const char *gap = memchr(both.p, ' ', both.n);
    size_t left = gap ? (size_t)(gap - both.p) : 0;
    if (!gap || memchr(gap + 1, ' ', both.n - left - 1)) return bad(s, "a merge that is not a pair");
    out[0] = (imp_vocab_str){both.p, left};
    out[1] = (imp_vocab_str){gap + 1, both.n - left - 1};
    return IMP_OK;
}

/* [merge, ...], s->i behind the bracket */
static imp_status merges(scan *s)
{
    imp_json_bulk *b = s->b;
    b->has_merges = true;
    if (take(s, ']')) return IMP_OK;
    do {
        if (!imp_tok_grow((void **)&b->merge, &b->merge_cap, 2 * b->n_merge + 2, sizeof *b->merge))
            return imp_tok_nomem(s->err);
        IMP_TRY(merge(s, &b->merge[2 * b->n_merge]));
        b->n_merge++;
    } while (take(s, ','));
    return take(s, ']') ? IMP_OK : bad(s, "the merges do not go on as a list");
}

/* Over one value of any kind. false: the text ends inside it. */
static bool skip_value(scan *s)
{
    size_t depth = 0;
    imp_vocab_str raw;
    bool plain;
    skip_space(s);
    while (s->i < s->n) {
        char c = s->p[s->i];
        if (depth == 0 && (c == ',' || c == '}' || c == ']')) return true;
        s->i++;
        if (c == '"' && !string_end(s, &raw, &plain)) return false;
        if (c == '{' || c == '[') depth++;
        if ((c == '}' || c == ']') && --depth == 0) return true;
    }
    return depth == 0;
}

/* Walk the members of the object that begins here. In the outer one only "model" is entered; in that, the tables are
 * read and left out of rest, which has the text up to *copied. What is odd is left to the parser. */
static imp_status members(scan *s, bool inner, size_t *copied)
{
    imp_vocab_str key;
    bool plain;
    if (!take(s, '{')) return IMP_OK;
    do {
        if (!take(s, '"') || !string_end(s, &key, &plain) || !take(s, ':')) return IMP_OK;
        skip_space(s);
        size_t at = s->i;
        if (at == s->n) return IMP_OK;
        bool is_vocab =
            inner && key.n == 5 && memcmp(key.p, "vocab", 5) == 0 && !s->b->has_vocab && s->p[at] == '{';
        bool is_merges =
            inner && key.n == 6 && memcmp(key.p, "merges", 6) == 0 && !s->b->has_merges && s->p[at] == '[';
        if (is_vocab || is_merges) {
            s->i++;
            imp_buf_add(&s->b->rest, s->p + *copied, at - *copied);
            imp_buf_str(&s->b->rest, is_vocab ? "{}" : "[]");
            IMP_TRY(is_vocab ? vocab(s) : merges(s));
            *copied = s->i;
        } else if (!inner && key.n == 5 && memcmp(key.p, "model", 5) == 0) {
            if (s->p[at] != '{') return IMP_OK;
            IMP_TRY(members(s, true, copied));
            if (!take(s, '}')) return IMP_OK;
        } else if (!skip_value(s)) {
            return IMP_OK;
        }
    } while (take(s, ','));
    return IMP_OK;
}

imp_status imp_json_bulk_read(imp_json_bulk *b, const char *json, size_t n, imp_error *err)
{
    memset(b, 0, sizeof *b);
    b->arena = imp_arena_new(65536);
    if (!b->arena) return imp_tok_nomem(err);
    scan s = {.p = json, .n = n, .b = b, .err = err};
    size_t copied = 0;
    IMP_TRY(members(&s, false, &copied));
    imp_buf_add(&b->rest, json + copied, n - copied);
    return b->rest.failed ? imp_tok_nomem(err) : IMP_OK;
}

void imp_json_bulk_deinit(imp_json_bulk *b)
{
    imp_sys_free(b->piece);
    imp_sys_free(b->id);
    imp_sys_free(b->merge);
    imp_arena_free(b->arena);
    imp_buf_deinit(&b->rest);
}
