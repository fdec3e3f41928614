/* text/jinja/parse.c - tokens to tree: expressions with Jinja's precedence, statements with their bodies.
 *
 * Idea:    recursive descent in the order of Jinja's own grammar, since templates rely on its corners: a test without
 *          brackets takes a following name or literal as its argument, an empty slice part is allowed, strings side by
 *          side are one string.
 * Always:  names are interned (one address a name); a tree is at most MAX_HEIGHT high, so walking it is bounded.
 * Source:  Jinja 3.1, template designer documentation. */
#include "text/jinja/jinja_int.h"

enum { MAX_HEIGHT = 400, MAX_NEST = 300 };

typedef struct parser {
    jj *j;
    jj_lex lex;
    jj_tok cur, look;
    bool has_look;
    jj_dict *names;                          /* text -> the interned string */
    uint32_t nest;                           /* of brackets and statements */
    uint32_t in_loop;                        /* loops around that break may leave */
    const jj_str *varargs, *kwargs, *caller; /* what the macro body being parsed speaks of */
} parser;

static bool expression(parser *p, jj_node **out);
static bool unary(parser *p, bool with_filter, jj_node **out);
static bool primary(parser *p, bool with_ns, jj_node **out);
static bool postfix(parser *p, jj_node **node);
static bool subparse(parser *p, const char *const *ends, jj_node **out);
typedef struct tuple_how {
    bool simple, with_ns, no_cond, parens;
} tuple_how;
static bool tuple(parser *p, tuple_how how, jj_node **out);

/* ---- tokens ------------------------------------------------------------------------------------------- */

static bool bad(parser *p, const char *what)
{
    p->j->line = p->cur.line;
    return jj_fail(p->j, IMP_FORMAT, "%s", what);
}

static bool advance(parser *p)
{
    if (p->has_look) {
        p->cur = p->look;
        p->has_look = false;
        return true;
    }
    return jj_lex_next(&p->lex, &p->cur);
}

static bool peek(parser *p, const jj_tok **out)
{
    if (!p->has_look) JJ_TRY(jj_lex_next(&p->lex, &p->look));
    p->has_look = true;
    *out = &p->look;
    return true;
}

static bool tok_is(const jj_tok *t, const char *word)
{
    return t->kind == JJ_T_NAME && t->n == strlen(word) && memcmp(t->p, word, t->n) == 0;
}

static bool is(const parser *p, const char *word)
{
    return tok_is(&p->cur, word);
}

static const char *kind_text(jj_tok_kind k)
{
    switch (k) {
    case JJ_T_BLOCK_END: return "'%}'";
    case JJ_T_VAR_END: return "'}}'";
    case JJ_T_NAME: return "a name";
    case JJ_T_ASSIGN: return "'='";
    case JJ_T_COMMA: return "','";
    case JJ_T_COLON: return "':'";
    case JJ_T_LPAREN: return "'('";
    case JJ_T_RPAREN: return "')'";
    case JJ_T_RBRACKET: return "']'";
    case JJ_T_RBRACE: return "'}'";
    default: return "something else";
    }
}

static bool expect(parser *p, jj_tok_kind k)
{
    if (p->cur.kind == k) return advance(p);
    p->j->line = p->cur.line;
    if (p->cur.kind == JJ_T_NAME)
        return jj_fail(p->j, IMP_FORMAT, "%s is missing in front of '%.*s'", kind_text(k),
                       (int)IMP_MIN(p->cur.n, 60u), p->cur.p);
    return jj_fail(p->j, IMP_FORMAT, "%s is missing", kind_text(k));
}

static bool expect_word(parser *p, const char *word)
{
    if (is(p, word)) return advance(p);
    p->j->line = p->cur.line;
    return jj_fail(p->j, IMP_FORMAT, "'%s' is missing", word);
}

/* *took: the word was there and is behind us. */
static bool take_word(parser *p, const char *word, bool *took)
{
    *took = is(p, word);
    return !*took || advance(p);
}

static bool enter(parser *p)
{
    if (p->nest >= MAX_NEST) {
        p->j->line = p->cur.line;
        return jj_fail(p->j, IMP_TOO_LARGE, "the template is nested too deeply");
    }
    p->nest++;
    return true;
}

/* ---- nodes --------------------------------------------------------------------------------------------- */

static jj_node *node_new(parser *p, jj_node_kind kind, uint32_t line)
{
    jj_node *n = jj_alloc(p->j, sizeof *n);
    if (n == NULL) return NULL;
    n->kind = kind;
    n->line = line;
    n->height = 1;
    return n;
}

/* child (may be NULL) hangs below n. */
static bool below(parser *p, jj_node *n, const jj_node *child)
{
    for (const jj_node *c = child; c != NULL; c = c->next)
        if (c->height >= n->height) n->height = (uint16_t)(c->height + 1);
    if (n->height <= MAX_HEIGHT) return true;
    p->j->line = n->line;
    return jj_fail(p->j, IMP_TOO_LARGE, "the template is nested too deeply");
}

static bool node_of(parser *p, jj_node_kind kind, uint32_t line, jj_node *a, jj_node *b, jj_node **out)
{
    jj_node *n = node_new(p, kind, line);
    if (n == NULL) return false;
    n->a = a;
    n->b = b;
    *out = n;
    return below(p, n, a) && below(p, n, b);
}

static bool intern(parser *p, const char *s, size_t n, const jj_str **out)
{
    jj_str key = {.p = s, .n = n};
    const jj_val *there = jj_dict_find_str(p->names, &key);
    jj_val v;
    if (there != NULL) {
        *out = there->s;
        return true;
    }
    JJ_TRY(jj_str_borrow(p->j, s, n, &v) && jj_dict_put(p->j, p->names, v, v));
    *out = v.s;
    return true;
}

static bool name_here(parser *p, const jj_str **out)
{
    if (p->cur.kind != JJ_T_NAME) return expect(p, JJ_T_NAME);
    return intern(p, p->cur.p, p->cur.n, out) && advance(p);
}

static bool const_node(parser *p, uint32_t line, jj_val v, jj_node **out)
{
    *out = node_new(p, JJ_N_CONST, line);
    if (*out == NULL) return false;
    (*out)->value = v;
    return true;
}

/* ---- calls ------------------------------------------------------------------------------------------------ */

static bool one_arg(parser *p, jj_node *call, jj_arg *arg)
{
    const jj_tok *next = NULL;
    if (p->cur.kind == JJ_T_MUL || p->cur.kind == JJ_T_POW) {
        arg->how = p->cur.kind == JJ_T_MUL ? JJ_ARG_STAR : JJ_ARG_STARSTAR;
        JJ_TRY(advance(p));
    } else if (p->cur.kind == JJ_T_NAME) {
        JJ_TRY(peek(p, &next));
        if (next->kind == JJ_T_ASSIGN) JJ_TRY(name_here(p, &arg->name) && advance(p));
    }
    return expression(p, &arg->value) && below(p, call, arg->value);
}

/* ( ... ) behind a call, filter or test. */
static bool call_args(parser *p, jj_node *call)
{
    jj_arg **tail = &call->args;
    bool star = false, starstar = false, keyword = false;
    JJ_TRY(enter(p) && expect(p, JJ_T_LPAREN));
    while (p->cur.kind != JJ_T_RPAREN) {
        if (call->n > 0) {
            JJ_TRY(expect(p, JJ_T_COMMA));
            if (p->cur.kind == JJ_T_RPAREN) break;
        }
        jj_arg *arg = jj_alloc(p->j, sizeof *arg);
        if (arg == NULL) return false;
        JJ_TRY(one_arg(p, call, arg));
        bool plain = arg->how == JJ_ARG_PLAIN && arg->name == NULL;
        if (starstar || (arg->how == JJ_ARG_STAR && star) || (plain && (star || keyword)))
            return bad(p, "arguments stand in an order that is not allowed");
        star = star || arg->how == JJ_ARG_STAR;
        starstar = arg->how == JJ_ARG_STARSTAR;
        keyword = keyword || arg->name != NULL;
        *tail = arg;
        tail = &arg->next;
        call->n++;
    }
    p->nest--;
    return expect(p, JJ_T_RPAREN);
}

/* Functions of jinja2 that are not here are refused when the template is compiled. */
static bool check_callee(parser *p, const jj_node *callee)
{
    const jj_func *f = callee->kind == JJ_N_NAME ? jj_func_find(callee->name) : NULL;
    if (f == NULL || f->run != NULL) return true;
    p->j->line = callee->line;
    return jj_fail(p->j, IMP_UNSUPPORTED, "the function '%s' is not supported", f->name);
}

static bool call(parser *p, jj_node **node)
{
    jj_node *n;
    JJ_TRY(check_callee(p, *node));
    JJ_TRY(node_of(p, JJ_N_CALL, p->cur.line, *node, NULL, &n) && call_args(p, n));
    *node = n;
    return true;
}

/* A name with dots, as filters and tests may have. */
static bool dotted(parser *p, char *out, size_t cap, size_t *n)
{
    *n = 0;
    for (;;) {
        if (p->cur.kind != JJ_T_NAME) return expect(p, JJ_T_NAME);
        if (p->cur.n + *n + 2 > cap) return bad(p, "a name of a filter or test is too long");
        memcpy(out + *n, p->cur.p, p->cur.n);
        *n += p->cur.n;
        JJ_TRY(advance(p));
        if (p->cur.kind != JJ_T_DOT) return true;
        out[(*n)++] = '.';
        JJ_TRY(advance(p));
    }
}

/* | name (args), again and again; *node may be NULL (filter blocks). first: the '|' is not there. */
static bool filters(parser *p, bool first, jj_node **node)
{
    while (first || p->cur.kind == JJ_T_PIPE) {
        char name[96];
        size_t n;
        jj_node *f;
        if (!first) JJ_TRY(advance(p));
        first = false;
        JJ_TRY(node_of(p, JJ_N_FILTER, p->cur.line, *node, NULL, &f) && dotted(p, name, sizeof name, &n));
        f->filter = jj_filter_find(name, n);
        if (f->filter == NULL) {
            p->j->line = f->line;
            return jj_fail(p->j, IMP_UNSUPPORTED, "the filter '%.*s' is not supported", (int)n, name);
        }
        if (p->cur.kind == JJ_T_LPAREN) JJ_TRY(call_args(p, f));
        *node = f;
    }
    return true;
}

static bool starts_test_arg(const parser *p)
{
    switch (p->cur.kind) {
    case JJ_T_STRING:
    case JJ_T_INT:
    case JJ_T_FLOAT:
    case JJ_T_LBRACKET:
    case JJ_T_LBRACE: return true;
    case JJ_T_NAME: return !is(p, "else") && !is(p, "or") && !is(p, "and");
    default: return false;
    }
}

static bool test(parser *p, jj_node **node)
{
    char name[96];
    size_t n;
    bool negated;
    jj_node *t;
    JJ_TRY(node_of(p, JJ_N_TEST, p->cur.line, *node, NULL, &t) && advance(p) &&
           take_word(p, "not", &negated));
    JJ_TRY(dotted(p, name, sizeof name, &n));
    t->test = jj_test_find(name, n);
    if (t->test == NULL) {
        p->j->line = t->line;
        return jj_fail(p->j, IMP_UNSUPPORTED, "the test '%.*s' is not supported", (int)n, name);
    }
    if (p->cur.kind == JJ_T_LPAREN) {
        JJ_TRY(call_args(p, t));
    } else if (starts_test_arg(p)) {
        if (is(p, "is")) return bad(p, "tests with 'is' cannot be chained");
        jj_arg *arg = jj_alloc(p->j, sizeof *arg);
        if (arg == NULL) return false;
        JJ_TRY(primary(p, false, &arg->value) && postfix(p, &arg->value) && below(p, t, arg->value));
        t->args = arg;
        t->n = 1;
    }
    *node = t;
    return !negated || node_of(p, JJ_N_NOT, t->line, t, NULL, node);
}

/* ---- expressions --------------------------------------------------------------------------------------------- */

static bool name_node(parser *p, bool with_ns, jj_node **out)
{
    uint32_t line = p->cur.line;
    if (is(p, "true") || is(p, "True")) return advance(p) && const_node(p, line, jj_bool(true), out);
    if (is(p, "false") || is(p, "False")) return advance(p) && const_node(p, line, jj_bool(false), out);
    if (is(p, "none") || is(p, "None")) return advance(p) && const_node(p, line, jj_none(), out);
    JJ_TRY(node_of(p, JJ_N_NAME, line, NULL, NULL, out) && name_here(p, &(*out)->name));
    const jj_str *name = (*out)->name;
    if (jj_str_is(name, "varargs")) p->varargs = name;
    if (jj_str_is(name, "kwargs")) p->kwargs = name;
    if (jj_str_is(name, "caller")) p->caller = name;
    if (!with_ns || p->cur.kind != JJ_T_DOT) return true;
    (*out)->kind = JJ_N_NSREF;
    return advance(p) && name_here(p, &(*out)->attr);
}

static bool string_node(parser *p, jj_node **out)
{
    uint32_t line = p->cur.line;
    jj_val v = p->cur.value;
    JJ_TRY(advance(p));
    while (p->cur.kind == JJ_T_STRING) JJ_TRY(jj_arith(p->j, JJ_ADD, v, p->cur.value, &v) && advance(p));
    return const_node(p, line, v, out);
}

/* [ a, b ] or { k: v }: items go to out->a as a list. */
static bool display(parser *p, jj_node **out)
{
    bool dict = p->cur.kind == JJ_T_LBRACE;
    jj_tok_kind close = dict ? JJ_T_RBRACE : JJ_T_RBRACKET;
    JJ_TRY(node_of(p, dict ? JJ_N_DICT : JJ_N_LIST, p->cur.line, NULL, NULL, out) && enter(p) && advance(p));
    jj_node **tail = &(*out)->a;
    while (p->cur.kind != close) {
        if ((*out)->n > 0) {
            JJ_TRY(expect(p, JJ_T_COMMA));
            if (p->cur.kind == close) break;
        }
        JJ_TRY(expression(p, tail) && below(p, *out, *tail));
        tail = &(*tail)->next;
        (*out)->n++;
        if (!dict) continue;
        JJ_TRY(expect(p, JJ_T_COLON) && expression(p, tail) && below(p, *out, *tail));
        tail = &(*tail)->next;
    }
    p->nest--;
    return expect(p, close);
}

static bool primary(parser *p, bool with_ns, jj_node **out)
{
    uint32_t line = p->cur.line;
    jj_val v = p->cur.value;
    switch (p->cur.kind) {
    case JJ_T_NAME: return name_node(p, with_ns, out);
    case JJ_T_STRING: return string_node(p, out);
    case JJ_T_INT:
    case JJ_T_FLOAT: return advance(p) && const_node(p, line, v, out);
    case JJ_T_LPAREN:
        JJ_TRY(enter(p) && advance(p) && tuple(p, (tuple_how){.parens = true}, out));
        p->nest--;
        return expect(p, JJ_T_RPAREN);
    case JJ_T_LBRACKET:
    case JJ_T_LBRACE: return display(p, out);
    default: return bad(p, "an expression is missing");
    }
}

static bool at_part_end(const parser *p)
{
    return p->cur.kind == JJ_T_COLON || p->cur.kind == JJ_T_RBRACKET || p->cur.kind == JJ_T_COMMA;
}

/* [ index ] or [ a : b : c ] behind *node. */
static bool subscript(parser *p, jj_node **node)
{
    jj_node *n, *part[3] = {NULL, NULL, NULL};
    uint32_t line = p->cur.line;
    bool slice = false;
    JJ_TRY(enter(p) && advance(p));
    if (p->cur.kind != JJ_T_COLON) JJ_TRY(expression(p, &part[0]));
    for (int i = 1; i < 3 && p->cur.kind == JJ_T_COLON; i++) {
        slice = true;
        JJ_TRY(advance(p));
        if (!at_part_end(p)) JJ_TRY(expression(p, &part[i]));
    }
    if (p->cur.kind == JJ_T_COMMA) {
        p->j->line = line;
        return jj_fail(p->j, IMP_UNSUPPORTED, "an index of several parts is not supported");
    }
    JJ_TRY(expect(p, JJ_T_RBRACKET) &&
           node_of(p, slice ? JJ_N_SLICE : JJ_N_GETITEM, line, *node, part[0], &n));
    n->c = part[1];
    n->d = part[2];
    p->nest--;
    *node = n;
    return below(p, n, part[1]) && below(p, n, part[2]);
}

static bool dot(parser *p, jj_node **node)
{
    jj_node *n, *index;
    uint32_t line = p->cur.line;
    JJ_TRY(advance(p));
    if (p->cur.kind == JJ_T_INT) {
        JJ_TRY(const_node(p, line, p->cur.value, &index) && advance(p));
        return node_of(p, JJ_N_GETITEM, line, *node, index, node);
    }
    JJ_TRY(node_of(p, JJ_N_GETATTR, line, *node, NULL, &n) && name_here(p, &n->name));
    *node = n;
    return true;
}

static bool postfix(parser *p, jj_node **node)
{
    for (;;) {
        if (p->cur.kind == JJ_T_DOT)
            JJ_TRY(dot(p, node));
        else if (p->cur.kind == JJ_T_LBRACKET)
            JJ_TRY(subscript(p, node));
        else if (p->cur.kind == JJ_T_LPAREN)
            JJ_TRY(call(p, node));
        else
            return true;
    }
}

static bool filters_and_tests(parser *p, jj_node **node)
{
    for (;;) {
        if (p->cur.kind == JJ_T_PIPE)
            JJ_TRY(filters(p, false, node));
        else if (is(p, "is"))
            JJ_TRY(test(p, node));
        else if (p->cur.kind == JJ_T_LPAREN)
            JJ_TRY(call(p, node));
        else
            return true;
    }
}

static bool unary(parser *p, bool with_filter, jj_node **out)
{
    if (p->cur.kind == JJ_T_SUB || p->cur.kind == JJ_T_ADD) {
        jj_node_kind kind = p->cur.kind == JJ_T_SUB ? JJ_N_NEG : JJ_N_POS;
        uint32_t line = p->cur.line;
        jj_node *a;
        JJ_TRY(enter(p) && advance(p) && unary(p, false, &a) && node_of(p, kind, line, a, NULL, out));
        p->nest--;
    } else {
        JJ_TRY(primary(p, false, out));
    }
    return postfix(p, out) && (!with_filter || filters_and_tests(p, out));
}

static bool power(parser *p, jj_node **out)
{
    JJ_TRY(unary(p, true, out));
    while (p->cur.kind == JJ_T_POW) {
        jj_node *b, *a = *out;
        uint32_t line = p->cur.line;
        JJ_TRY(advance(p) && unary(p, true, &b) && node_of(p, JJ_N_ARITH, line, a, b, out));
        (*out)->op = JJ_POW;
    }
    return true;
}

static bool product(parser *p, jj_node **out)
{
    JJ_TRY(power(p, out));
    while (p->cur.kind >= JJ_T_MUL && p->cur.kind <= JJ_T_MOD) {
        static const uint8_t op[] = {JJ_MUL, JJ_DIV, JJ_FLOORDIV, JJ_MOD};
        jj_node *b, *a = *out;
        uint32_t line = p->cur.line, which = p->cur.kind - JJ_T_MUL;
        JJ_TRY(advance(p) && power(p, &b) && node_of(p, JJ_N_ARITH, line, a, b, out));
        (*out)->op = op[which];
    }
    return true;
}

static bool concat(parser *p, jj_node **out)
{
    JJ_TRY(product(p, out));
    if (p->cur.kind != JJ_T_TILDE) return true;
    jj_node *n, **tail = &(*out)->next;
    JJ_TRY(node_of(p, JJ_N_CONCAT, p->cur.line, *out, NULL, &n));
    while (p->cur.kind == JJ_T_TILDE) {
        JJ_TRY(advance(p) && product(p, tail) && below(p, n, *tail));
        tail = &(*tail)->next;
    }
    *out = n;
    return true;
}

static bool sum(parser *p, jj_node **out)
{
    JJ_TRY(concat(p, out));
    while (p->cur.kind == JJ_T_ADD || p->cur.kind == JJ_T_SUB) {
        jj_node *b, *a = *out;
        uint32_t line = p->cur.line;
        jj_op op = p->cur.kind == JJ_T_ADD ? JJ_ADD : JJ_SUB;
        JJ_TRY(advance(p) && concat(p, &b) && node_of(p, JJ_N_ARITH, line, a, b, out));
        (*out)->op = (uint8_t)op;
    }
    return true;
}

/* The comparison operator here, with its tokens behind us; *there false: none. */
static bool compare_op(parser *p, uint8_t *op, bool *there)
{
    const jj_tok *next;
    *there = true;
    if (p->cur.kind >= JJ_T_EQ && p->cur.kind <= JJ_T_GE) {
        *op = (uint8_t)(JJ_EQ + (p->cur.kind - JJ_T_EQ));
        return advance(p);
    }
    if (is(p, "in")) {
        *op = JJ_IN;
        return advance(p);
    }
    *there = false;
    if (!is(p, "not")) return true;
    JJ_TRY(peek(p, &next));
    if (!tok_is(next, "in")) return true;
    *there = true;
    *op = JJ_NOT_IN;
    return advance(p) && advance(p);
}

static bool comparison(parser *p, jj_node **out)
{
    uint32_t line = p->cur.line;
    uint8_t op;
    bool there;
    JJ_TRY(sum(p, out) && compare_op(p, &op, &there));
    if (!there) return true;
    jj_node *n, **tail;
    JJ_TRY(node_of(p, JJ_N_COMPARE, line, *out, NULL, &n));
    for (tail = &n->b; there; tail = &(*tail)->next) {
        jj_node *operand; /* a node of its own, so that its op does not clash with the expression's */
        JJ_TRY(sum(p, &operand) && node_of(p, JJ_N_COMPARE, line, operand, NULL, tail) && below(p, n, *tail));
        (*tail)->op = op;
        JJ_TRY(compare_op(p, &op, &there));
    }
    *out = n;
    return true;
}

static bool negation(parser *p, jj_node **out)
{
    if (!is(p, "not")) return comparison(p, out);
    uint32_t line = p->cur.line;
    jj_node *a;
    JJ_TRY(enter(p) && advance(p) && negation(p, &a) && node_of(p, JJ_N_NOT, line, a, NULL, out));
    p->nest--;
    return true;
}

static bool conjunction(parser *p, jj_node **out)
{
    JJ_TRY(negation(p, out));
    while (is(p, "and")) {
        jj_node *b, *a = *out;
        uint32_t line = p->cur.line;
        JJ_TRY(advance(p) && negation(p, &b) && node_of(p, JJ_N_AND, line, a, b, out));
    }
    return true;
}

static bool disjunction(parser *p, jj_node **out)
{
    JJ_TRY(conjunction(p, out));
    while (is(p, "or")) {
        jj_node *b, *a = *out;
        uint32_t line = p->cur.line;
        JJ_TRY(advance(p) && conjunction(p, &b) && node_of(p, JJ_N_OR, line, a, b, out));
    }
    return true;
}

static bool expression(parser *p, jj_node **out)
{
    bool other;
    JJ_TRY(enter(p) && disjunction(p, out));
    while (is(p, "if")) {
        jj_node *n, *cond, *no = NULL;
        uint32_t line = p->cur.line;
        JJ_TRY(advance(p) && disjunction(p, &cond) && take_word(p, "else", &other));
        if (other) JJ_TRY(expression(p, &no));
        JJ_TRY(node_of(p, JJ_N_COND, line, cond, *out, &n));
        n->c = no;
        JJ_TRY(below(p, n, no));
        *out = n;
    }
    p->nest--;
    return true;
}

static bool tuple_end(const parser *p)
{
    return p->cur.kind == JJ_T_VAR_END || p->cur.kind == JJ_T_BLOCK_END || p->cur.kind == JJ_T_RPAREN;
}

static bool tuple_part(parser *p, tuple_how how, jj_node **out)
{
    if (how.simple) return primary(p, how.with_ns, out);
    return how.no_cond ? disjunction(p, out) : expression(p, out);
}

static bool tuple(parser *p, tuple_how how, jj_node **out)
{
    jj_node *first = NULL, **tail = &first;
    uint32_t line = p->cur.line, n = 0;
    bool is_tuple = false;
    for (;;) {
        if (n > 0) JJ_TRY(expect(p, JJ_T_COMMA));
        if (tuple_end(p)) break;
        JJ_TRY(tuple_part(p, how, tail));
        tail = &(*tail)->next;
        n++;
        if (p->cur.kind != JJ_T_COMMA) break;
        is_tuple = true;
    }
    if (!is_tuple && n > 0) {
        *out = first;
        return true;
    }
    if (!is_tuple && !how.parens) return bad(p, "an expression is missing");
    JJ_TRY(node_of(p, JJ_N_TUPLE, line, first, NULL, out));
    (*out)->n = n;
    return true;
}

/* ---- statements ------------------------------------------------------------------------------------------------ */

static bool can_assign(const jj_node *n)
{
    if (n->kind == JJ_N_NAME || n->kind == JJ_N_NSREF) return true;
    if (n->kind != JJ_N_TUPLE) return false;
    for (const jj_node *c = n->a; c != NULL; c = c->next)
        if (!can_assign(c)) return false;
    return true;
}

static bool target(parser *p, bool with_ns, jj_node **out)
{
    JJ_TRY(tuple(p, (tuple_how){.simple = true, .with_ns = with_ns}, out));
    return can_assign(*out) || bad(p, "this cannot be assigned to");
}

/* %} body, up to one of the ends, whose word is the current token then. */
static bool body_until(parser *p, jj_node *n, const char *const *ends, jj_node **out)
{
    if (p->cur.kind == JJ_T_COLON) JJ_TRY(advance(p));
    JJ_TRY(expect(p, JJ_T_BLOCK_END) && enter(p) && subparse(p, ends, out));
    p->nest--;
    if (p->cur.kind == JJ_T_EOF) {
        p->j->line = n->line;
        return jj_fail(p->j, IMP_FORMAT, "a tag has no '%s'", ends[0]);
    }
    return below(p, n, *out);
}

static bool body_to(parser *p, jj_node *n, const char *end)
{
    const char *const ends[] = {end, NULL};
    return body_until(p, n, ends, &n->body) && advance(p);
}

static bool for_stmt(parser *p, jj_node *n)
{
    static const char *const ends[] = {"endfor", "else", NULL}, *const last[] = {"endfor", NULL};
    bool cond;
    n->kind = JJ_N_FOR;
    JJ_TRY(intern(p, "loop", 4, &n->name));
    JJ_TRY(target(p, false, &n->target) && expect_word(p, "in") &&
           tuple(p, (tuple_how){.no_cond = true}, &n->a));
    JJ_TRY(below(p, n, n->a) && take_word(p, "if", &cond));
    if (cond) JJ_TRY(expression(p, &n->b) && below(p, n, n->b));
    if (is(p, "recursive")) return jj_fail(p->j, IMP_UNSUPPORTED, "recursive loops are not supported");
    p->in_loop++;
    JJ_TRY(body_until(p, n, ends, &n->body));
    p->in_loop--;
    bool other = is(p, "else");
    JJ_TRY(advance(p));
    return !other || (body_until(p, n, last, &n->other) && advance(p));
}

static bool if_stmt(parser *p, jj_node *n)
{
    static const char *const ends[] = {"endif", "elif", "else", NULL}, *const last[] = {"endif", NULL};
    jj_node *top = n;
    for (;;) {
        n->kind = JJ_N_IF;
        JJ_TRY(tuple(p, (tuple_how){.no_cond = true}, &n->a) && below(p, n, n->a) &&
               body_until(p, n, ends, &n->body));
        JJ_TRY(below(p, top, n->a) && below(p, top, n->body));
        bool elif = is(p, "elif"), other = is(p, "else");
        JJ_TRY(advance(p));
        if (other) return body_until(p, n, last, &n->other) && below(p, top, n->other) && advance(p);
        if (!elif) return true;
        /* a long chain of elif is walked in a loop, so it is not counted as depth */
        n->other = node_new(p, JJ_N_IF, p->cur.line);
        if (n->other == NULL) return false;
        n = n->other;
    }
}

static bool set_stmt(parser *p, jj_node *n)
{
    n->kind = JJ_N_SET;
    JJ_TRY(target(p, true, &n->target));
    if (p->cur.kind == JJ_T_ASSIGN) return advance(p) && tuple(p, (tuple_how){0}, &n->a) && below(p, n, n->a);
    n->kind = JJ_N_SET_BLOCK;
    return filters(p, false, &n->a) && (n->a == NULL || below(p, n, n->a)) && body_to(p, n, "endset");
}

static bool signature(parser *p, jj_node *n)
{
    jj_param **tail = &n->params;
    JJ_TRY(expect(p, JJ_T_LPAREN));
    bool fallback = false;
    while (p->cur.kind != JJ_T_RPAREN) {
        if (n->n > 0) JJ_TRY(expect(p, JJ_T_COMMA));
        jj_param *a = jj_alloc(p->j, sizeof *a);
        if (a == NULL) return false;
        JJ_TRY(name_here(p, &a->name));
        if (p->cur.kind == JJ_T_ASSIGN) {
            fallback = true;
            JJ_TRY(advance(p) && expression(p, &a->fallback) && below(p, n, a->fallback));
        } else if (fallback) {
            return bad(p, "a parameter without a default follows one with a default");
        }
        *tail = a;
        tail = &a->next;
        n->n++;
    }
    return expect(p, JJ_T_RPAREN);
}

/* The body of a macro or call block: what it speaks of decides which arguments it takes. */
static bool macro_body(parser *p, jj_node *n, const char *end)
{
    const jj_str *varargs = p->varargs, *kwargs = p->kwargs, *caller = p->caller;
    uint32_t in_loop = p->in_loop;
    p->varargs = p->kwargs = p->caller = NULL;
    p->in_loop = 0;
    JJ_TRY(body_to(p, n, end));
    n->varargs = p->varargs;
    n->kwargs = p->kwargs;
    n->caller = p->caller;
    for (const jj_param *a = n->params; a != NULL;
         a = a->next) { /* parameters of these names are like others */
        if (a->name == n->varargs) n->varargs = NULL;
        if (a->name == n->kwargs) n->kwargs = NULL;
        if (a->name == n->caller && a->fallback == NULL)
            return bad(p, "a parameter 'caller' wants a default");
    }
    if (p->varargs == NULL) p->varargs = varargs;
    if (p->kwargs == NULL) p->kwargs = kwargs;
    if (p->caller == NULL) p->caller = caller;
    p->in_loop = in_loop;
    return true;
}

static bool macro_stmt(parser *p, jj_node *n)
{
    n->kind = JJ_N_MACRO;
    return name_here(p, &n->name) && signature(p, n) && macro_body(p, n, "endmacro");
}

static bool call_stmt(parser *p, jj_node *n)
{
    n->kind = JJ_N_CALL_BLOCK;
    if (p->cur.kind == JJ_T_LPAREN) JJ_TRY(signature(p, n));
    JJ_TRY(expression(p, &n->a) && below(p, n, n->a));
    if (n->a->kind != JJ_N_CALL) return bad(p, "a call block wants a call");
    return macro_body(p, n, "endcall");
}

static bool filter_stmt(parser *p, jj_node *n)
{
    n->kind = JJ_N_FILTER_BLOCK;
    return filters(p, true, &n->a) && below(p, n, n->a) && body_to(p, n, "endfilter");
}

static bool with_stmt(parser *p, jj_node *n)
{
    n->kind = JJ_N_WITH;
    for (jj_node **t = &n->target, **v = &n->a; p->cur.kind != JJ_T_BLOCK_END;
         t = &(*t)->next, v = &(*v)->next) {
        if (n->target != NULL) JJ_TRY(expect(p, JJ_T_COMMA));
        JJ_TRY(target(p, false, t) && expect(p, JJ_T_ASSIGN) && expression(p, v) && below(p, n, *v));
    }
    return body_to(p, n, "endwith");
}

static bool generation_stmt(parser *p, jj_node *n)
{
    n->kind = JJ_N_SCOPE;
    uint32_t in_loop = p->in_loop;
    p->in_loop = 0;
    JJ_TRY(body_to(p, n, "endgeneration"));
    p->in_loop = in_loop;
    return true;
}

static bool print_stmt(parser *p, jj_node *n)
{
    n->kind = JJ_N_PRINT;
    for (jj_node **tail = &n->a; p->cur.kind != JJ_T_BLOCK_END; tail = &(*tail)->next) {
        if (n->a != NULL) JJ_TRY(expect(p, JJ_T_COMMA));
        JJ_TRY(expression(p, tail) && below(p, n, *tail));
    }
    return true;
}

static bool jump_stmt(parser *p, jj_node *n, jj_node_kind kind)
{
    n->kind = kind;
    return p->in_loop > 0 || bad(p, "break and continue belong into a loop");
}
static bool break_stmt(parser *p, jj_node *n)
{
    return jump_stmt(p, n, JJ_N_BREAK);
}
static bool continue_stmt(parser *p, jj_node *n)
{
    return jump_stmt(p, n, JJ_N_CONTINUE);
}

static const struct stmt {
    const char *word;
    bool (*parse)(parser *p, jj_node *n);
} stmts[] = {{"for", for_stmt},          {"if", if_stmt},
             {"set", set_stmt},          {"macro", macro_stmt},
             {"call", call_stmt},        {"filter", filter_stmt},
             {"with", with_stmt},        {"generation", generation_stmt},
             {"print", print_stmt},      {"break", break_stmt},
             {"continue", continue_stmt}};

static bool statement(parser *p, jj_node **out)
{
    if (p->cur.kind != JJ_T_NAME) return bad(p, "a tag has no name");
    for (size_t i = 0; i < IMP_COUNT(stmts); i++) {
        if (!is(p, stmts[i].word)) continue;
        *out = node_new(p, JJ_N_SCOPE, p->cur.line);
        return *out != NULL && advance(p) && stmts[i].parse(p, *out) && expect(p, JJ_T_BLOCK_END);
    }
    p->j->line = p->cur.line;
    bool end = p->cur.n > 3 && memcmp(p->cur.p, "end", 3) == 0;
    return jj_fail(p->j, end || is(p, "else") || is(p, "elif") ? IMP_FORMAT : IMP_UNSUPPORTED,
                   end ? "the tag '%.*s' closes nothing here" : "the tag '%.*s' is not supported here",
                   (int)IMP_MIN(p->cur.n, 60u), p->cur.p);
}

static bool is_end(const parser *p, const char *const *ends)
{
    for (; ends != NULL && *ends != NULL; ends++)
        if (is(p, *ends)) return true;
    return false;
}

static bool subparse(parser *p, const char *const *ends, jj_node **out)
{
    jj_node **tail = out;
    while (p->cur.kind != JJ_T_EOF) {
        uint32_t line = p->cur.line;
        if (p->cur.kind == JJ_T_DATA) {
            jj_val v;
            JJ_TRY(jj_str_borrow(p->j, p->cur.p, p->cur.n, &v) &&
                   node_of(p, JJ_N_DATA, line, NULL, NULL, tail));
            (*tail)->value = v;
            JJ_TRY(advance(p));
        } else if (p->cur.kind == JJ_T_VAR_BEGIN) {
            jj_node *e;
            JJ_TRY(advance(p) && tuple(p, (tuple_how){0}, &e) && node_of(p, JJ_N_PRINT, line, e, NULL, tail));
            JJ_TRY(expect(p, JJ_T_VAR_END));
        } else if (p->cur.kind == JJ_T_BLOCK_BEGIN) {
            JJ_TRY(advance(p));
            if (is_end(p, ends)) return true;
            JJ_TRY(statement(p, tail));
        } else {
            return bad(p, "the template ends within a tag");
        }
        tail = &(*tail)->next;
    }
    return true;
}

bool jj_parse(jj *j, char *src, size_t n, jj_node **body, jj_names **unset)
{
    parser p = {.j = j};
    *body = NULL;
    jj_lex_init(&p.lex, j, src, n);
    JJ_TRY(jj_dict_new(j, &p.names) && advance(&p) && subparse(&p, NULL, body));
    return jj_scopes(j, *body, unset);
}
