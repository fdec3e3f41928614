/* text/grammar/gbnf.c - llama.cpp's grammar notation.
 *
 * Layout:  name ::= alternatives; "literal", [class], (group), . , * + ? {m,n}, # comment. A rule goes on over line ends
 *          inside parentheses and after ::= and |, and up to the next "name ::=".
 * Source:  the notation's description in llama.cpp, grammars/README.md. */
#include "text/grammar/grammar_int.h"

typedef struct reader {
    gr_reader at;
    imp_map *names; /* keys in the text; values are rules */
} reader;

static void space(reader *r, bool lines)
{
    while (gr_more(&r->at)) {
        char c = r->at.s[r->at.i];
        if (c == '#') {
            while (gr_more(&r->at) && r->at.s[r->at.i] != '\n') r->at.i++;
        } else if (c == ' ' || c == '\t' || (lines && (c == '\n' || c == '\r'))) {
            r->at.i++;
        } else {
            return;
        }
    }
}

static bool is_name(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

static size_t name_len(const reader *r)
{
    size_t k = 0;
    while (r->at.i + k < r->at.n && is_name(r->at.s[r->at.i + k])) k++;
    return k;
}

static uint32_t rule_named(reader *r, const char *s, size_t n)
{
    uint32_t id = 0;
    if (imp_map_get(r->names, s, n, &id)) return id;
    id = gr_rule_new(r->at.g, s, n);
    if (r->at.g->status == IMP_OK && imp_map_put(r->names, s, n, id) != IMP_OK)
        (void)gr_fail(r->at.g, IMP_NOMEM, "out of memory");
    return id;
}

/* Does a new rule begin here? */
static bool at_rule(const reader *r)
{
    size_t k = r->at.i + name_len(r);
    if (k == r->at.i) return false;
    while (k < r->at.n && (r->at.s[k] == ' ' || r->at.s[k] == '\t')) k++;
    return k + 3 <= r->at.n && memcmp(r->at.s + k, "::=", 3) == 0;
}

static int32_t character(reader *r)
{
    if (gr_take(&r->at, '\\')) {
        char c = gr_more(&r->at) ? r->at.s[r->at.i++] : '\0';
        switch (c) {
        case 'n': return '\n';
        case 't': return '\t';
        case 'r': return '\r';
        case 'x': return gr_valid(&r->at, gr_hex(&r->at, 2));
        case 'u': return gr_valid(&r->at, gr_hex(&r->at, 4));
        case 'U': return gr_valid(&r->at, gr_hex(&r->at, 8));
        case '"':
        case '\\':
        case '[':
        case ']':
        case '-':
        case '^': return c;
        default: return (int32_t)gr_bad(&r->at, IMP_INVALID, "this escape is not known");
        }
    }
    return gr_character(&r->at);
}

static gr_expr literal(reader *r)
{
    imp_buf b = {0};
    while (gr_more(&r->at) && r->at.s[r->at.i] != '"') {
        if (r->at.s[r->at.i] == '\n') break;
        char c[4];
        size_t n = imp_utf8_encode(character(r), c);
        imp_buf_add(&b, c, n);
    }
    if (!gr_take(&r->at, '"')) (void)gr_bad(&r->at, IMP_INVALID, "\" is not closed");
    gr_expr x = gr_text(r->at.g, b.data, b.n);
    imp_buf_deinit(&b);
    return x;
}

static gr_expr char_class(reader *r)
{
    imp_buf b = {0};
    bool negated = gr_take(&r->at, '^');
    while (gr_more(&r->at) && r->at.s[r->at.i] != ']') {
        gr_range x;
        x.lo = x.hi = character(r);
        if (r->at.i + 1 < r->at.n && r->at.s[r->at.i] == '-' && r->at.s[r->at.i + 1] != ']') {
            r->at.i++;
            x.hi = character(r);
            if (x.hi < x.lo) (void)gr_bad(&r->at, IMP_INVALID, "a range in [ ] is the wrong way round");
        }
        imp_buf_add(&b, &x, sizeof x);
    }
    if (!gr_take(&r->at, ']')) (void)gr_bad(&r->at, IMP_INVALID, "[ is not closed");
    gr_expr e = gr_class(r->at.g, (const gr_range *)(const void *)b.data, b.n / sizeof(gr_range), negated);
    imp_buf_deinit(&b);
    return e;
}

static gr_expr alternatives(reader *r, bool lines);

static gr_expr atom(reader *r)
{
    if (gr_take(&r->at, '"')) return literal(r);
    if (gr_take(&r->at, '[')) return char_class(r);
    if (gr_take(&r->at, '.')) return gr_class(r->at.g, NULL, 0, true);
    if (gr_take(&r->at, '(')) {
        if (++r->at.depth > GR_MAX_DEPTH)
            return gr_fail(r->at.g, IMP_TOO_LARGE, "grammar: groups are nested too deeply");
        gr_expr x = alternatives(r, true);
        r->at.depth--;
        if (!gr_take(&r->at, ')')) (void)gr_bad(&r->at, IMP_INVALID, "( is not closed");
        return x;
    }
    size_t n = name_len(r);
    if (n == 0)
        return gr_bad(&r->at, IMP_INVALID, "a rule name, \"text\", [class] or (group) is expected here");
    uint32_t id = rule_named(r, r->at.s + r->at.i, n);
    r->at.i += n;
    return gr_call(r->at.g, id);
}

static gr_expr repeated(reader *r)
{
    gr_expr x = atom(r);
    for (;;) {
        uint32_t min = 0, max = GR_UNLIMITED;
        space(r, r->at.depth > 0);
        if (gr_take(&r->at, '*')) {
        } else if (gr_take(&r->at, '+')) {
            min = 1;
        } else if (gr_take(&r->at, '?')) {
            max = 1;
        } else if (gr_take(&r->at, '{')) {
            bool from = gr_number(&r->at, &min);
            max = min;
            if (gr_take(&r->at, ',') && !gr_number(&r->at, &max)) max = GR_UNLIMITED;
            if (!gr_take(&r->at, '}') || (!from && max == 0) || max < min)
                return gr_bad(&r->at, IMP_INVALID, "{m,n} is malformed");
        } else {
            return x;
        }
        x = gr_repeat(r->at.g, x, min, max);
    }
}

/* lines: inside parentheses, where line ends mean nothing. */
static gr_expr alternatives(reader *r, bool lines)
{
    gr_list all = {0}, one = {0};
    for (;;) {
        space(r, lines);
        if (gr_take(&r->at, '|')) {
            gr_push(r->at.g, &all, gr_take_seq(r->at.g, &one));
            space(r, true);
            continue;
        }
        if (!gr_more(&r->at) || r->at.s[r->at.i] == ')' || r->at.s[r->at.i] == '\n' ||
            r->at.s[r->at.i] == '\r')
            break;
        gr_push(r->at.g, &one, repeated(r));
    }
    gr_push(r->at.g, &all, gr_take_seq(r->at.g, &one));
    return gr_take_alt(r->at.g, &all);
}

/* "name ::= alternatives", which may go on in lines that begin no new rule. */
static void rule(reader *r)
{
    size_t n = name_len(r);
    if (n == 0 || !at_rule(r)) {
        (void)gr_bad(&r->at, IMP_INVALID, "\"name ::=\" is expected here");
        return;
    }
    uint32_t id = rule_named(r, r->at.s + r->at.i, n);
    if (r->at.g->status == IMP_OK && r->at.g->rule[id].defined)
        (void)gr_bad(&r->at, IMP_INVALID, "this rule is defined twice");
    r->at.i += n;
    space(r, false);
    r->at.i += 3;
    space(r, true);
    gr_list l = {0};
    gr_push(r->at.g, &l, alternatives(r, false));
    for (space(r, true); gr_more(&r->at) && !at_rule(r); space(r, true)) {
        if (r->at.s[r->at.i] == ')')
            (void)gr_bad(&r->at, IMP_INVALID, ") without (");
        else if (r->at.s[r->at.i] == '|')
            r->at.i++, gr_push(r->at.g, &l, alternatives(r, false));
        else
            (void)gr_bad(&r->at, IMP_INVALID, "a line must begin with a rule or with |");
    }
    gr_rule_set(r->at.g, id, gr_take_alt(r->at.g, &l));
}

imp_status imp_grammar_from_gbnf(const char *text, size_t n, imp_grammar **out, imp_error *err)
{
    gr g;
    *out = NULL;
    IMP_TRY(gr_init(&g, err));
    reader r = {.at = {.g = &g, .s = text, .n = n, .what = "grammar", .by_line = true},
                .names = imp_map_new(64)};
    if (r.names == NULL) (void)gr_fail(&g, IMP_NOMEM, "out of memory");
    for (space(&r, true); gr_more(&r.at); space(&r, true)) rule(&r);
    uint32_t root = 0;
    if (g.status == IMP_OK && !imp_map_get(r.names, "root", 4, &root))
        (void)gr_fail(&g, IMP_INVALID, "the grammar has no rule named root");
    imp_status s = gr_compile(&g, gr_call(&g, root), out);
    imp_map_free(r.names);
    gr_deinit(&g);
    return s;
}
