/* text/grammar/expr.c - expressions: small trees over texts, character classes, sequences, choices, repeats, rule calls.
 *
 * Idea:    the readers build bottom-up; a failure is remembered and makes every later call do nothing, so that readers
 *          check once. Lists lean to the right, so that what follows them later recurses only over real nesting.
 * Always:  node 0 is the empty text. */
#include <stdio.h>
#include <stdlib.h>

#include "text/grammar/grammar_int.h"

imp_status gr_init(gr *g, imp_error *err)
{
    *g = (gr){.err = err, .memory = imp_arena_new(1 << 14)};
    if (g->memory == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    g->cap_node = 256;
    g->node = imp_sys_malloc(g->cap_node * sizeof *g->node);
    if (g->node == NULL) {
        imp_arena_free(g->memory);
        return imp_fail(err, IMP_NOMEM, "out of memory");
    }
    g->node[0] = (gr_node){.kind = GR_EMPTY};
    g->n_node = 1;
    return IMP_OK;
}

void gr_deinit(gr *g)
{
    imp_arena_free(g->memory);
    imp_sys_free(g->node);
    imp_sys_free(g->rule);
    imp_buf_deinit(&g->text);
    imp_buf_deinit(&g->range);
    for (size_t i = 0; i < IMP_COUNT(g->wide); i++) imp_buf_deinit(&g->wide[i]);
}

gr_expr gr_fail(gr *g, imp_status s, const char *fmt, ...)
{
    if (g->status != IMP_OK) return 0;
    char text[sizeof g->err->text];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    g->status = imp_fail(g->err, s, "%s", text);
    return 0;
}

static gr_expr add(gr *g, gr_node x)
{
    if (g->status != IMP_OK) return 0;
    if (g->n_node == GR_MAX_EXPR)
        return gr_fail(g, IMP_TOO_LARGE, "the grammar is too large: make it or its repeat counts smaller");
    if (x.depth > 4 * GR_MAX_DEPTH) return gr_fail(g, IMP_TOO_LARGE, "the grammar is nested too deeply");
    if (g->n_node == g->cap_node) {
        gr_node *p = imp_sys_realloc(g->node, 2 * (size_t)g->cap_node * sizeof *p);
        if (p == NULL) return gr_fail(g, IMP_NOMEM, "out of memory");
        g->node = p;
        g->cap_node *= 2;
    }
    g->node[g->n_node] = x;
    return g->n_node++;
}

gr_expr gr_never(gr *g)
{
    return add(g, (gr_node){.kind = GR_NEVER});
}

gr_expr gr_text(gr *g, const char *s, size_t n)
{
    if (n == 0) return 0;
    size_t at = g->text.n;
    imp_buf_add(&g->text, s, n);
    if (g->text.failed) return gr_fail(g, IMP_NOMEM, "out of memory");
    if (g->text.n > UINT32_MAX) return gr_fail(g, IMP_TOO_LARGE, "the grammar is too large");
    return add(g, (gr_node){.kind = GR_TEXT, .a = (uint32_t)at, .b = (uint32_t)n});
}

gr_expr gr_str(gr *g, const char *s)
{
    return gr_text(g, s, strlen(s));
}

static int by_lo(const void *a, const void *b)
{
    const gr_range *x = a, *y = b;
    return (x->lo > y->lo) - (x->lo < y->lo);
}

gr_expr gr_class(gr *g, const gr_range *r, size_t n, bool negated)
{
    if (g->status != IMP_OK) return 0;
    gr_range *s = imp_sys_malloc((n + 1) * sizeof *s);
    if (s == NULL) return gr_fail(g, IMP_NOMEM, "out of memory");
    if (n > 0) memcpy(s, r, n * sizeof *s);
    qsort(s, n, sizeof *s, by_lo);
    size_t at = g->range.n / sizeof *s, m = 0;
    int32_t next = 0; /* the first code point not dealt with */
    gr_range run = {-1, -2};
    for (size_t i = 0; i <= n; i++) {
        gr_range x = i < n ? s[i] : (gr_range){0x110000, 0x110000};
        if (i < n && x.hi < x.lo) continue;
        if (negated) {
            if (x.lo > next) imp_buf_add(&g->range, &(gr_range){next, x.lo - 1}, sizeof x), m++;
            next = IMP_MAX(next, x.hi + 1);
        } else if (run.hi >= run.lo && x.lo <= run.hi + 1 && i < n) {
            run.hi = IMP_MAX(run.hi, x.hi);
        } else {
            if (run.hi >= run.lo) imp_buf_add(&g->range, &run, sizeof run), m++;
            run = x;
        }
    }
    imp_sys_free(s);
    if (g->range.failed) return gr_fail(g, IMP_NOMEM, "out of memory");
    if (m == 0) return gr_never(g);
    return add(g, (gr_node){.kind = GR_CLASS, .a = (uint32_t)at, .b = (uint32_t)m});
}

static gr_expr pair(gr *g, gr_kind kind, gr_expr a, gr_expr b)
{
    if (g->status != IMP_OK) return 0;
    uint32_t da = g->node[a].depth + 1, db = g->node[b].depth;
    return add(g, (gr_node){.kind = kind, .a = a, .b = b, .depth = IMP_MAX(da, db)});
}

gr_expr gr_seq2(gr *g, gr_expr a, gr_expr b)
{
    if (g->status != IMP_OK) return 0;
    if (a == 0 || g->node[b].kind == GR_NEVER) return b;
    if (b == 0 || g->node[a].kind == GR_NEVER) return a;
    return pair(g, GR_SEQ, a, b);
}

gr_expr gr_alt2(gr *g, gr_expr a, gr_expr b)
{
    if (g->status != IMP_OK) return 0;
    if (g->node[a].kind == GR_NEVER) return b;
    if (g->node[b].kind == GR_NEVER) return a;
    return pair(g, GR_ALT, a, b);
}

gr_expr gr_seq(gr *g, const gr_expr *x, size_t n)
{
    gr_expr all = 0;
    while (n-- > 0) all = gr_seq2(g, x[n], all);
    return all;
}

gr_expr gr_alt(gr *g, const gr_expr *x, size_t n)
{
    if (n == 0) return gr_never(g);
    gr_expr all = x[--n];
    while (n-- > 0) all = gr_alt2(g, x[n], all);
    return all;
}

gr_expr gr_repeat(gr *g, gr_expr a, uint32_t min, uint32_t max)
{
    if (g->status != IMP_OK) return 0;
    if (max == 0 || a == 0) return 0;
    if (min == 1 && max == 1) return a;
    if (g->node[a].kind == GR_NEVER) return min == 0 ? 0 : a;
    return add(g,
               (gr_node){.kind = GR_REPEAT, .a = a, .min = min, .max = max, .depth = g->node[a].depth + 1});
}

gr_expr gr_opt(gr *g, gr_expr a)
{
    return gr_repeat(g, a, 0, 1);
}

gr_expr gr_call(gr *g, uint32_t rule)
{
    return add(g, (gr_node){.kind = GR_CALL, .a = rule});
}

uint32_t gr_rule_new(gr *g, const char *name, size_t n)
{
    if (g->status != IMP_OK) return 0;
    if (g->n_rule == g->cap_rule) {
        uint32_t cap = g->cap_rule ? 2 * g->cap_rule : 32;
        gr_rule *p = imp_sys_realloc(g->rule, cap * sizeof *p);
        if (p == NULL) return gr_fail(g, IMP_NOMEM, "out of memory");
        g->rule = p;
        g->cap_rule = cap;
    }
    char *copy = imp_arena_strndup(g->memory, name, n);
    if (copy == NULL) return gr_fail(g, IMP_NOMEM, "out of memory");
    g->rule[g->n_rule] = (gr_rule){.name = copy};
    return g->n_rule++;
}

void gr_rule_set(gr *g, uint32_t rule, gr_expr body)
{
    if (g->status != IMP_OK) return;
    g->rule[rule].body = body;
    g->rule[rule].defined = true;
}

void gr_push(gr *g, gr_list *l, gr_expr x)
{
    imp_buf_add(&l->b, &x, sizeof x);
    if (l->b.failed) (void)gr_fail(g, IMP_NOMEM, "out of memory");
}

size_t gr_count(const gr_list *l)
{
    return l->b.n / sizeof(gr_expr);
}

gr_expr gr_take_seq(gr *g, gr_list *l)
{
    gr_expr x = gr_seq(g, (const gr_expr *)(const void *)l->b.data, l->b.failed ? 0 : gr_count(l));
    imp_buf_deinit(&l->b);
    return x;
}

gr_expr gr_take_alt(gr *g, gr_list *l)
{
    gr_expr x = gr_alt(g, (const gr_expr *)(const void *)l->b.data, l->b.failed ? 0 : gr_count(l));
    imp_buf_deinit(&l->b);
    return x;
}
