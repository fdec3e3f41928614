/* text/jinja/lex.c - template source to tokens, with Jinja's rules for white space around tags.
 *
 * Idea:    between tags the text is data; its end is cut by '-' (all white space), or before a block or comment that
 *          stands alone at a line's start (lstrip_blocks); behind a block or comment one newline goes (trim_blocks).
 *          Tokens are made one at a time, so that a hostile source costs no memory before the parser refuses it.
 * Always:  line_starting is true when the last thing matched ended with a newline.
 * Source:  Jinja 3.1, "Whitespace Control" and "Escaping". */
#include <stdio.h>
#include <stdlib.h>

#include "text/jinja/jinja_int.h"

void jj_lex_init(jj_lex *x, jj *j, char *src, size_t n)
{
    size_t w = 0;
    for (size_t r = 0; r < n; r++) {
        if (src[r] == '\r') {
            if (r + 1 < n && src[r + 1] == '\n') r++;
            src[w++] = '\n';
        } else {
            src[w++] = src[r];
        }
    }
    if (w > 0 && src[w - 1] == '\n') w--;
    *x = (jj_lex){.j = j, .src = src, .n = w, .line = 1, .line_starting = true};
}

static bool fail(jj_lex *x, const char *what)
{
    x->j->line = x->line;
    return jj_fail(x->j, IMP_FORMAT, "%s", what);
}

/* Go on to byte `to`, counting lines. */
static void advance(jj_lex *x, size_t to)
{
    for (size_t i = x->pos; i < to; i++) x->line += x->src[i] == '\n';
    if (to > x->pos) x->line_starting = x->src[to - 1] == '\n';
    x->pos = to;
}

static size_t skip_space(const jj_lex *x, size_t i)
{
    while (i < x->n) {
        int32_t cp;
        size_t k = imp_utf8_decode(x->src + i, x->n - i, &cp);
        if (!jj_is_space(cp)) break;
        i += k;
    }
    return i;
}

static bool at(const jj_lex *x, size_t i, const char *z)
{
    size_t k = strlen(z);
    return i <= x->n && x->n - i >= k && memcmp(x->src + i, z, k) == 0;
}

/* The end of a tag at i: "%}" as '-' + white space, '+', or plain with one newline (trim). 0: no end here. */
static size_t tag_end(const jj_lex *x, size_t i, const char *close, bool plus, bool trim)
{
    if (i < x->n && x->src[i] == '-' && at(x, i + 1, close)) return skip_space(x, i + 3);
    if (plus && i < x->n && x->src[i] == '+' && at(x, i + 1, close)) return i + 3;
    if (!at(x, i, close)) return 0;
    return i + 2 + (trim && i + 2 < x->n && x->src[i + 2] == '\n');
}

/* The bytes of data [from, to) that are left in front of a tag with this sign. */
static size_t data_end(const jj_lex *x, size_t from, size_t to, char sign, bool variable)
{
    if (sign == '-') {
        while (to > from) {
            size_t k = to - 1;
            while (k > from && ((unsigned char)x->src[k] & 0xc0) == 0x80) k--;
            int32_t cp;
            (void)imp_utf8_decode(x->src + k, to - k, &cp);
            if (!jj_is_space(cp)) break;
            to = k;
        }
        return to;
    }
    if (sign == '+' || variable) return to;
    size_t line = to;
    while (line > from && x->src[line - 1] != '\n') line--;
    if (line == from && !x->line_starting) return to;
    for (size_t i = line; i < to;) {
        int32_t cp;
        size_t k = imp_utf8_decode(x->src + i, to - i, &cp);
        if (!jj_is_space(cp)) return to;
        i += k;
    }
    return line;
}

static char sign_at(const jj_lex *x, size_t i)
{
    return i < x->n && (x->src[i] == '-' || x->src[i] == '+') ? x->src[i] : 0;
}

/* The word of a raw tag behind `i`, and its end; 0: something else. */
static size_t raw_tag(const jj_lex *x, size_t i, const char *word, bool end)
{
    size_t k = i + 2;
    if (sign_at(x, k)) k++;
    k = skip_space(x, k);
    if (!at(x, k, word)) return 0;
    k = skip_space(x, k + strlen(word));
    return tag_end(x, k, "%}", end, end);
}

static bool data_token(jj_lex *x, size_t from, size_t to, jj_tok *out)
{
    *out = (jj_tok){.kind = JJ_T_DATA, .line = x->line, .p = x->src + from, .n = to - from};
    return true;
}

/* {% raw %} at `tag`, which ends at `body`: data in front of it was given already. */
static bool raw_body(jj_lex *x, size_t body, jj_tok *out)
{
    advance(x, body);
    for (size_t i = body; i + 1 < x->n; i++) {
        if (!at(x, i, "{%")) continue;
        size_t end = raw_tag(x, i, "endraw", true);
        if (end == 0) continue;
        size_t stop = data_end(x, body, i, sign_at(x, i + 2), false);
        (void)data_token(x, body, stop, out);
        advance(x, end);
        return true;
    }
    return fail(x, "{% raw %} has no {% endraw %}");
}

static bool skip_comment(jj_lex *x, size_t i)
{
    for (; i < x->n; i++) {
        size_t end = tag_end(x, i, "#}", true, true);
        if (end == 0) continue;
        advance(x, end);
        return true;
    }
    return fail(x, "a comment has no end");
}

/* Root: data up to the next tag, then (at the next call) what the tag begins. */
static bool next_root(jj_lex *x, jj_tok *out)
{
    size_t i = x->pos;
    while (i + 1 < x->n && !(x->src[i] == '{' && strchr("{%#", x->src[i + 1]) != NULL && x->src[i + 1] != 0))
        i++;
    if (i + 1 >= x->n) {
        (void)data_token(x, x->pos, x->n, out);
        advance(x, x->n);
        return true;
    }
    char what = x->src[i + 1], sign = sign_at(x, i + 2);
    size_t stop = data_end(x, x->pos, i, sign, what == '{');
    (void)data_token(x, x->pos, stop, out);
    size_t raw = what == '%' ? raw_tag(x, i, "raw", false) : 0;
    advance(x, i);
    if (raw != 0) {
        if (out->n == 0) return raw_body(x, raw, out);
        x->pending = JJ_T_DATA;
        x->pending_end = raw;
        return true;
    }
    if (what == '#') {
        x->line_starting = false;
        return skip_comment(x, i + 2 + (sign != 0));
    }
    x->pending = what == '%' ? JJ_T_BLOCK_BEGIN : JJ_T_VAR_BEGIN;
    x->pending_end = i + 2 + (sign != 0);
    return true;
}

/* ---- inside a tag ---------------------------------------------------------------------------------- */

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* One escape behind a backslash at s[*i]; what it means goes to b. */
static bool escape_one(jj_lex *x, const char *s, size_t n, size_t *i, imp_buf *b)
{
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    char c = s[*i], utf8[4];
    const char *simple = c != 0 ? strchr(from, c) : NULL;
    int32_t cp = 0;
    if (simple != NULL) {
        imp_buf_add(b, &to[simple - from], 1);
        ++*i;
        return true;
    }
    if (c == '\n') { /* the line goes on */
        ++*i;
        return true;
    }
    if (c >= '0' && c <= '7') {
        for (int k = 0; k < 3 && *i < n && s[*i] >= '0' && s[*i] <= '7'; k++) cp = cp * 8 + (s[(*i)++] - '0');
    } else if (c == 'x' || c == 'u' || c == 'U') {
        size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        if (n - *i - 1 < digits) return fail(x, "a string has an escape that is cut short");
        uint32_t v = 0;
        for (size_t k = 1; k <= digits; k++) {
            int h = hex_digit(s[*i + k]);
            if (h < 0) return fail(x, "a string has a malformed escape");
            v = v * 16 + (uint32_t)h;
        }
        if (v > 0x10ffff || (v >= 0xd800 && v < 0xe000))
            return fail(x, "a string has an escape that is no character");
        cp = (int32_t)v;
        *i += digits + 1;
    } else if (c == 'N') {
        return fail(x, "\\N{...} in a string is not supported");
    } else {
        /* an unknown escape stays; a character beyond ASCII is seen there in its escaped form, as jinja2 does it */
        imp_buf_add(b, "\\", 1);
        if ((unsigned char)c < 0x80) return true;
        *i += imp_utf8_decode(s + *i, n - *i, &cp);
        imp_buf_fmt(b, cp < 0x100 ? "x%02x" : cp < 0x10000 ? "u%04x" : "U%08x", (unsigned)cp);
        return true;
    }
    imp_buf_add(b, utf8, imp_utf8_encode(cp, utf8));
    return true;
}

static bool string_token(jj_lex *x, jj_tok *out)
{
    char quote = x->src[x->pos];
    size_t i = x->pos + 1, from = i;
    bool plain = true;
    for (; i < x->n && x->src[i] != quote; i++)
        if (x->src[i] == '\\') plain = false, i++;
    if (i >= x->n) return fail(x, "a string has no end");
    out->kind = JJ_T_STRING;
    if (plain) {
        JJ_TRY(jj_str_borrow(x->j, x->src + from, i - from, &out->value));
    } else {
        imp_buf b = {0};
        bool good = true;
        for (size_t k = from; k < i && good;) {
            if (x->src[k] == '\\') {
                k++;
                good = escape_one(x, x->src, i, &k, &b);
            } else {
                imp_buf_add(&b, x->src + k++, 1);
            }
        }
        if (good && b.failed) good = jj_fail(x->j, IMP_NOMEM, "not enough memory for the template");
        if (good) good = jj_str_copy(x->j, b.data != NULL ? b.data : "", b.n, &out->value);
        imp_buf_deinit(&b);
        JJ_TRY(good);
    }
    advance(x, i + 1);
    return true;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* digits with single underscores between them; 0: none */
static size_t digits(const jj_lex *x, size_t i)
{
    size_t k = i;
    while (k < x->n &&
           (is_digit(x->src[k]) || (x->src[k] == '_' && k > i && k + 1 < x->n && is_digit(x->src[k + 1]))))
        k++;
    return k;
}

/* The end of a float at the position; 0: none there. */
static size_t float_end(const jj_lex *x)
{
    if (x->pos > 0 && x->src[x->pos - 1] == '.') return 0;
    size_t k = digits(x, x->pos), end = 0;
    if (k == x->pos) return 0;
    if (k + 1 < x->n && x->src[k] == '.' && is_digit(x->src[k + 1])) end = k = digits(x, k + 1);
    if (k < x->n && (x->src[k] == 'e' || x->src[k] == 'E')) {
        size_t e = k + 1;
        if (e < x->n && (x->src[e] == '+' || x->src[e] == '-')) e++;
        if (e < x->n && is_digit(x->src[e])) end = digits(x, e);
    }
    return end;
}

static bool number_token(jj_lex *x, jj_tok *out)
{
    char text[512];
    size_t end = float_end(x), n = 0;
    int base = 10;
    bool is_float = end != 0;
    if (!is_float) {
        const char *prefix = "bBoOxX", *p = x->pos + 2 < x->n && x->src[x->pos] == '0'
                                                ? strchr(prefix, x->src[x->pos + 1])
                                                : NULL;
        if (p != NULL && *p != 0) {
            int b = p - prefix < 2 ? 2 : p - prefix < 4 ? 8 : 16;
            size_t k = x->pos + 2;
            for (;;) {
                size_t d = k + (k < x->n && x->src[k] == '_');
                if (d >= x->n || hex_digit(x->src[d]) < 0 || hex_digit(x->src[d]) >= b) break;
                k = d + 1;
            }
            if (k > x->pos + 2) end = k, base = b;
        }
        if (base == 10) {
            end = digits(x, x->pos);
            if (x->src[x->pos] == '0') { /* 0, 00, 0_0: a further digit is the next token */
                end = x->pos + 1;
                while (end < x->n && (x->src[end] == '0' ||
                                      (x->src[end] == '_' && end + 1 < x->n && x->src[end + 1] == '0')))
                    end++;
            }
        }
    }
    for (size_t i = x->pos; i < end && n + 1 < sizeof text; i++)
        if (x->src[i] != '_') text[n++] = x->src[i];
    text[n] = 0;
    if (n + 1 == sizeof text) return fail(x, "a number has too many digits");
    if (is_float) {
        out->kind = JJ_T_FLOAT;
        out->value = jj_float(strtod(text, NULL));
    } else {
        jj_str s = {.p = text, .n = n, .n_cp = n};
        int64_t v;
        bool overflow;
        if (!jj_parse_int(&s, base, &v, &overflow)) return fail(x, "a whole number does not fit 64 bits");
        out->kind = JJ_T_INT;
        out->value = jj_int(v);
    }
    advance(x, end);
    return true;
}

static size_t name_end(const jj_lex *x, size_t i)
{
    while (i < x->n) {
        int32_t cp;
        size_t k = imp_utf8_decode(x->src + i, x->n - i, &cp);
        if (cp != '_' && !jj_is_class(cp, JJ_IS_WORD)) break;
        i += k;
    }
    return i;
}

static const struct op {
    char text[3];
    jj_tok_kind kind;
} ops[] = {{"//", JJ_T_FLOORDIV}, {"**", JJ_T_POW},     {"==", JJ_T_EQ},    {"!=", JJ_T_NE},
           {">=", JJ_T_GE},       {"<=", JJ_T_LE},      {"+", JJ_T_ADD},    {"-", JJ_T_SUB},
           {"/", JJ_T_DIV},       {"*", JJ_T_MUL},      {"%", JJ_T_MOD},    {"~", JJ_T_TILDE},
           {"[", JJ_T_LBRACKET},  {"]", JJ_T_RBRACKET}, {"(", JJ_T_LPAREN}, {")", JJ_T_RPAREN},
           {"{", JJ_T_LBRACE},    {"}", JJ_T_RBRACE},   {">", JJ_T_GT},     {"<", JJ_T_LT},
           {"=", JJ_T_ASSIGN},    {".", JJ_T_DOT},      {":", JJ_T_COLON},  {"|", JJ_T_PIPE},
           {",", JJ_T_COMMA},     {";", JJ_T_SEMICOLON}};

static bool balance(jj_lex *x, jj_tok_kind k)
{
    char close = k == JJ_T_LPAREN ? ')' : k == JJ_T_LBRACKET ? ']' : k == JJ_T_LBRACE ? '}' : 0;
    if (close != 0) {
        if (x->n_bracket == JJ_MAX_BRACKET) {
            x->j->line = x->line;
            return jj_fail(x->j, IMP_TOO_LARGE, "brackets are nested too deeply");
        }
        x->bracket[x->n_bracket++] = close;
    } else if (k == JJ_T_RPAREN || k == JJ_T_RBRACKET || k == JJ_T_RBRACE) {
        char c = k == JJ_T_RPAREN ? ')' : k == JJ_T_RBRACKET ? ']' : '}';
        if (x->n_bracket == 0 || x->bracket[x->n_bracket - 1] != c) return fail(x, "brackets do not match");
        x->n_bracket--;
    }
    return true;
}

static bool next_in_tag(jj_lex *x, jj_tok *out)
{
    bool block = x->state == JJ_LEX_BLOCK;
    for (;;) {
        size_t end = x->n_bracket > 0 ? 0 : tag_end(x, x->pos, block ? "%}" : "}}", block, block);
        *out = (jj_tok){.kind = block ? JJ_T_BLOCK_END : JJ_T_VAR_END, .line = x->line};
        if (end != 0) {
            advance(x, end);
            x->state = JJ_LEX_ROOT;
            return true;
        }
        size_t space = skip_space(x, x->pos);
        if (space == x->pos) break;
        advance(x, space);
    }
    if (x->pos >= x->n) {
        out->kind = JJ_T_EOF;
        return true;
    }
    char c = x->src[x->pos];
    if (is_digit(c)) return number_token(x, out);
    if (c == '\'' || c == '"') return string_token(x, out);
    size_t end = name_end(x, x->pos);
    if (end > x->pos) {
        out->kind = JJ_T_NAME;
        out->p = x->src + x->pos;
        out->n = end - x->pos;
        advance(x, end);
        return true;
    }
    for (size_t i = 0; i < IMP_COUNT(ops); i++) {
        if (!at(x, x->pos, ops[i].text)) continue;
        out->kind = ops[i].kind;
        JJ_TRY(balance(x, out->kind));
        advance(x, x->pos + strlen(ops[i].text));
        return true;
    }
    return fail(x, "a tag holds a character that means nothing there");
}

bool jj_lex_next(jj_lex *x, jj_tok *out)
{
    JJ_TRY(jj_burn(x->j, 1));
    while (x->state == JJ_LEX_ROOT) {
        jj_tok_kind pending = x->pending;
        x->pending = JJ_T_EOF;
        if (pending == JJ_T_BLOCK_BEGIN || pending == JJ_T_VAR_BEGIN) {
            *out = (jj_tok){.kind = pending, .line = x->line};
            advance(x, x->pending_end);
            x->state = pending == JJ_T_BLOCK_BEGIN ? JJ_LEX_BLOCK : JJ_LEX_VAR;
            x->n_bracket = 0;
            return true;
        }
        *out = (jj_tok){.kind = JJ_T_EOF, .line = x->line};
        if (pending == JJ_T_DATA) {
            JJ_TRY(raw_body(x, x->pending_end, out));
        } else {
            if (x->pos >= x->n) return true;
            JJ_TRY(next_root(x, out));
        }
        if (out->n > 0) return true;
    }
    return next_in_tag(x, out);
}
