/* text/grammar/regex.c - regular expressions as grammar expressions.
 *
 * Place:   the `regex` constraint, `pattern` of JSON schemas, GBNF's character classes.
 * Idea:    a recursive reader with a depth limit; what is not regular (look-around, back references) or changes meaning
 *          (flags, possessive quantifiers) is refused by name. Lazy quantifiers mean the same set of texts.
 *          Dialects differ over which characters \d \w \s stand for beyond ASCII: a text that we allow matches under the
 *          narrow reading (ASCII) and under the wide one (Unicode), so any checker agrees.
 * Source:  ECMA-262 section 22.2 (the dialect JSON schema names). */
#include <utf8proc.h>

#include "text/grammar/grammar_int.h"

typedef struct reader {
    gr_reader at;
    gr_spell_fn spell;
} reader;

enum { DIGIT, WORD, SPACE };

static const gr_range narrow_digit[] = {{'0', '9'}};
static const gr_range narrow_word[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
static const gr_range narrow_space[] = {{'\t', '\r'}, {' ', ' '}};
static const struct {
    const gr_range *r;
    size_t n;
} narrow[] = {{narrow_digit, 1}, {narrow_word, 4}, {narrow_space, 2}};

static gr_expr spelled(reader *r, const gr_range *x, size_t n, bool negated)
{
    gr *g = r->at.g;
    if (r->spell == NULL) return gr_class(g, x, n, negated);
    gr_expr c = gr_class(g, x, n, negated);
    if (g->status != IMP_OK || g->node[c].kind == GR_NEVER) return c;
    uint32_t n_range = g->node[c].b;
    gr_range *copy = imp_arena_array(g->memory, n_range, sizeof *copy);
    if (copy == NULL) return gr_fail(g, IMP_NOMEM, "out of memory");
    memcpy(copy, (const gr_range *)(const void *)g->range.data + g->node[c].a, n_range * sizeof *copy);
    return r->spell(g, copy, n_range);
}

static bool is_wide(int kind, int32_t cp)
{
    utf8proc_category_t c = utf8proc_category(cp);
    if (kind == DIGIT) return c == UTF8PROC_CATEGORY_ND;
    if (kind == SPACE)
        return (cp >= 9 && cp <= 13) || (cp >= 0x1c && cp <= 0x20) || cp == 0x85 || cp == 0xfeff ||
               (c >= UTF8PROC_CATEGORY_ZS && c <= UTF8PROC_CATEGORY_ZP);
    return cp == '_' || (c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_NO) || c == UTF8PROC_CATEGORY_PC;
}

/* The ranges a shorthand stands for at most. */
static const gr_range *wide(reader *r, int kind, size_t *n)
{
    imp_buf *b = &r->at.g->wide[kind];
    if (b->n == 0) {
        gr_range run = {0, -1};
        for (int32_t cp = 0; cp <= 0x110000; cp++) {
            bool in = cp < 0x110000 && is_wide(kind, cp);
            if (in && run.hi < run.lo) run.lo = cp;
            if (in) run.hi = cp;
            if (in || run.hi < run.lo) continue;
            imp_buf_add(b, &run, sizeof run);
            run = (gr_range){0, -1};
        }
        if (b->failed) (void)gr_fail(r->at.g, IMP_NOMEM, "out of memory");
    }
    *n = b->failed ? 0 : b->n / sizeof(gr_range);
    return (const gr_range *)(const void *)b->data;
}

/* Append \d \w \s (or \D \W \S) to a list of ranges. inside_not: the list will be negated. */
static void shorthand(reader *r, char c, bool inside_not, imp_buf *to)
{
    bool upper = c < 'a';
    int kind = c == 'd' || c == 'D' ? DIGIT : c == 'w' || c == 'W' ? WORD : SPACE;
    size_t n = narrow[kind].n;
    const gr_range *x = narrow[kind].r;
    if (upper != inside_not) x = wide(r, kind, &n); /* what is left after taking it away must be sure */
    if (!upper) {
        imp_buf_add(to, x, n * sizeof *x);
        return;
    }
    int32_t next = 0;
    for (size_t i = 0; i < n; i++) {
        if (x[i].lo > next) imp_buf_add(to, &(gr_range){next, x[i].lo - 1}, sizeof *x);
        next = x[i].hi + 1;
    }
    imp_buf_add(to, &(gr_range){next, 0x10ffff}, sizeof *x);
}

static int32_t unicode_escape(reader *r)
{
    int32_t v;
    if (gr_take(&r->at, '{')) {
        uint32_t k = 0;
        while (r->at.i + k < r->at.n && r->at.s[r->at.i + k] != '}' && k < 7) k++;
        v = gr_hex(&r->at, k);
        if (!gr_take(&r->at, '}') || k == 0 || k > 6)
            (void)gr_bad(&r->at, IMP_INVALID, "\\u{...} takes 1 to 6 digits");
    } else {
        v = gr_hex(&r->at, 4);
        if (v >= 0xd800 && v < 0xdc00 && r->at.i + 1 < r->at.n && r->at.s[r->at.i] == '\\' &&
            r->at.s[r->at.i + 1] == 'u') {
            r->at.i += 2;
            int32_t low = gr_hex(&r->at, 4);
            if (low < 0xdc00 || low > 0xdfff)
                return (int32_t)gr_bad(&r->at, IMP_INVALID, "half a surrogate pair");
            v = 0x10000 + ((v - 0xd800) << 10) + (low - 0xdc00);
        }
    }
    return gr_valid(&r->at, v);
}

/* After the backslash: the character it means. */
static int32_t escape(reader *r)
{
    char c = r->at.s[r->at.i++];
    switch (c) {
    case 'n': return '\n';
    case 't': return '\t';
    case 'r': return '\r';
    case 'f': return '\f';
    case 'v': return '\v';
    case 'x': return gr_hex(&r->at, 2);
    case 'u': return unicode_escape(r);
    case '0':
        if (!gr_more(&r->at) || r->at.s[r->at.i] < '0' || r->at.s[r->at.i] > '9') return 0;
        break;
    default: break;
    }
    bool punctuation = (unsigned char)c < 0x80 &&
                       !((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'));
    if (punctuation) return c;
    r->at.i--;
    if (c >= '0' && c <= '9')
        (void)gr_bad(&r->at, IMP_UNSUPPORTED, "back references are not supported");
    else if (c == 'b' || c == 'B')
        (void)gr_bad(&r->at, IMP_UNSUPPORTED, "word boundaries are not supported");
    else if (c == 'p' || c == 'P')
        (void)gr_bad(&r->at, IMP_UNSUPPORTED, "\\p is not supported; list the characters in [ ]");
    else
        (void)gr_bad(&r->at, IMP_UNSUPPORTED, "this escape is not supported");
    return 0;
}

static bool is_shorthand(char c)
{
    return c != '\0' && strchr("dDwWsS", c) != NULL;
}

/* One end of a range inside [ ]; a shorthand is appended and gives false. */
static bool class_char(reader *r, bool negated, imp_buf *to, int32_t *cp)
{
    if (!gr_take(&r->at, '\\')) {
        *cp = gr_character(&r->at);
        return true;
    }
    if (!gr_more(&r->at)) return (bool)gr_bad(&r->at, IMP_INVALID, "it ends in a backslash");
    char c = r->at.s[r->at.i];
    if (is_shorthand(c)) {
        r->at.i++;
        shorthand(r, c, negated, to);
        return false;
    }
    if (c == 'b') {
        r->at.i++;
        *cp = '\b';
        return true;
    }
    *cp = escape(r);
    return true;
}

/* After the "[". */
static gr_expr char_class(reader *r)
{
    imp_buf x = {0};
    bool negated = gr_take(&r->at, '^');
    while (gr_more(&r->at) && r->at.s[r->at.i] != ']') {
        int32_t lo, hi;
        if (!class_char(r, negated, &x, &lo)) continue;
        hi = lo;
        if (r->at.i + 1 < r->at.n && r->at.s[r->at.i] == '-' && r->at.s[r->at.i + 1] != ']') {
            r->at.i++;
            if (!class_char(r, negated, &x, &hi)) {
                (void)gr_bad(&r->at, IMP_INVALID, "a range in [ ] ends in a class");
                break;
            }
            if (hi < lo) (void)gr_bad(&r->at, IMP_INVALID, "a range in [ ] is the wrong way round");
        }
        imp_buf_add(&x, &(gr_range){lo, hi}, sizeof(gr_range));
    }
    if (!gr_take(&r->at, ']')) (void)gr_bad(&r->at, IMP_INVALID, "[ is not closed");
    if (x.failed) (void)gr_fail(r->at.g, IMP_NOMEM, "out of memory");
    gr_expr e =
        spelled(r, (const gr_range *)(const void *)x.data, x.failed ? 0 : x.n / sizeof(gr_range), negated);
    imp_buf_deinit(&x);
    return e;
}

static gr_expr alternatives(reader *r);

/* After the "(". */
static gr_expr group(reader *r)
{
    if (gr_take(&r->at, '?')) {
        bool named = r->at.i + 1 < r->at.n && r->at.s[r->at.i] == '<' && r->at.s[r->at.i + 1] != '=' &&
                     r->at.s[r->at.i + 1] != '!';
        if (named) {
            while (gr_more(&r->at) && r->at.s[r->at.i] != '>') r->at.i++;
            r->at.i++;
        } else if (!gr_take(&r->at, ':')) {
            return gr_bad(&r->at, IMP_UNSUPPORTED, "look-around and flags are not supported");
        }
    }
    if (++r->at.depth > GR_MAX_DEPTH) return gr_bad(&r->at, IMP_TOO_LARGE, "groups are nested too deeply");
    gr_expr x = alternatives(r);
    r->at.depth--;
    if (!gr_take(&r->at, ')')) (void)gr_bad(&r->at, IMP_INVALID, "( is not closed");
    return x;
}

static gr_expr one(reader *r, int32_t cp)
{
    return spelled(r, &(gr_range){cp, cp}, 1, false);
}

static gr_expr atom(reader *r)
{
    static const gr_range line_ends[] = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};
    switch (r->at.s[r->at.i]) {
    case '(': r->at.i++; return group(r);
    case '[': r->at.i++; return char_class(r);
    case '.': r->at.i++; return spelled(r, line_ends, 3, true);
    case '*':
    case '+':
    case '?': return gr_bad(&r->at, IMP_INVALID, "nothing to repeat");
    case '^':
    case '$':
        return gr_bad(&r->at, IMP_UNSUPPORTED,
                      "^ and $ are supported only at the ends of the whole expression");
    case '\\': {
        r->at.i++;
        if (!gr_more(&r->at)) return gr_bad(&r->at, IMP_INVALID, "it ends in a backslash");
        char c = r->at.s[r->at.i];
        if (!is_shorthand(c)) return one(r, escape(r));
        r->at.i++;
        imp_buf x = {0};
        shorthand(r, c, false, &x);
        gr_expr e = spelled(r, (const gr_range *)(const void *)x.data, x.n / sizeof(gr_range), false);
        imp_buf_deinit(&x);
        return e;
    }
    default: return one(r, gr_character(&r->at));
    }
}

/* At "{": true and the bounds when it is a quantifier, else it is a plain character. */
static bool bounds(reader *r, uint32_t *min, uint32_t *max)
{
    size_t at = r->at.i++;
    bool is = gr_number(&r->at, min);
    *max = *min;
    if (is && gr_take(&r->at, ',') && !gr_number(&r->at, max)) *max = GR_UNLIMITED;
    if (is && gr_take(&r->at, '}')) return true;
    r->at.i = at;
    return false;
}

static gr_expr repeated(reader *r)
{
    gr_expr x = r->at.s[r->at.i] == '{' ? one(r, (r->at.i++, '{')) : atom(r);
    uint32_t min, max;
    while (gr_more(&r->at)) {
        if (gr_take(&r->at, '*'))
            min = 0, max = GR_UNLIMITED;
        else if (gr_take(&r->at, '+'))
            min = 1, max = GR_UNLIMITED;
        else if (gr_take(&r->at, '?'))
            min = 0, max = 1;
        else if (r->at.s[r->at.i] != '{' || !bounds(r, &min, &max))
            break;
        if (max < min) return gr_bad(&r->at, IMP_INVALID, "{m,n} with m above n");
        if (gr_take(&r->at, '+'))
            return gr_bad(&r->at, IMP_UNSUPPORTED, "possessive quantifiers are not supported");
        (void)gr_take(&r->at, '?');
        x = gr_repeat(r->at.g, x, min, max);
    }
    return x;
}

static bool at_end(const reader *r)
{
    return !gr_more(&r->at) || r->at.s[r->at.i] == '|' || r->at.s[r->at.i] == ')';
}

static gr_expr sequence(reader *r)
{
    gr_list l = {0};
    while (!at_end(r) && !(r->at.depth == 0 && r->at.s[r->at.i] == '$' &&
                           (r->at.i + 1 == r->at.n || r->at.s[r->at.i + 1] == '|')))
        gr_push(r->at.g, &l, repeated(r));
    return gr_take_seq(r->at.g, &l);
}

static gr_expr alternatives(reader *r)
{
    gr_list l = {0};
    do gr_push(r->at.g, &l, sequence(r));
    while (gr_take(&r->at, '|'));
    return gr_take_alt(r->at.g, &l);
}

gr_expr gr_regex(gr *g, const char *re, size_t n, bool anchored, gr_spell_fn spell)
{
    reader r = {.at = {.g = g, .s = re, .n = n, .what = "regular expression"}, .spell = spell};
    if (!imp_utf8_valid(re, n)) return gr_bad(&r.at, IMP_INVALID, "not valid UTF-8");
    gr_expr any = anchored ? 0 : gr_repeat(g, spelled(&r, NULL, 0, true), 0, GR_UNLIMITED);
    gr_list l = {0};
    do {
        gr_expr before = gr_take(&r.at, '^') ? 0 : any, x = sequence(&r);
        gr_expr behind = gr_take(&r.at, '$') ? 0 : any;
        gr_push(g, &l, gr_seq2(g, before, gr_seq2(g, x, behind)));
    } while (gr_take(&r.at, '|'));
    if (gr_more(&r.at)) (void)gr_bad(&r.at, IMP_INVALID, ") without (");
    return gr_take_alt(g, &l);
}

/* ---- what needs no reader of its own ----------------------------------------------------------------- */

static imp_status finish(gr *g, gr_expr x, imp_grammar **out)
{
    imp_status s = gr_compile(g, x, out);
    gr_deinit(g);
    return s;
}

imp_status imp_grammar_from_regex(const char *re, size_t n, imp_grammar **out, imp_error *err)
{
    gr g;
    *out = NULL;
    IMP_TRY(gr_init(&g, err));
    return finish(&g, gr_regex(&g, re, n, true, NULL), out);
}

imp_status imp_grammar_from_choice(const char *const *choice, size_t n, imp_grammar **out, imp_error *err)
{
    gr g;
    *out = NULL;
    IMP_TRY(gr_init(&g, err));
    gr_list l = {0};
    for (size_t i = 0; i < n; i++) {
        if (choice[i][0] == '\0') (void)gr_fail(&g, IMP_INVALID, "choice %zu is empty", i + 1);
        gr_push(&g, &l, gr_str(&g, choice[i]));
    }
    return finish(&g, gr_take_alt(&g, &l), out);
}
