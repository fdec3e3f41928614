/* text/grammar/vocab_tree.c - a vocabulary as a tree of bytes, laid out in the order a walk visits it.
 *
 * Idea:    tokens sorted by their bytes; the tree's nodes are the prefixes in that order, so that skipping a subtree is one
 *          assignment. Tokens with the same bytes share a node.
 * Always:  control tokens and tokens without bytes are in no node: a constrained answer never contains them. */
#include <stdlib.h>

#include "text/grammar/grammar_int.h"
#include "text/internal.h"

typedef struct spelled {
    const char *p;
    uint32_t n;
    int32_t id;
} spelled;

static int by_bytes(const void *a, const void *b)
{
    const spelled *x = a, *y = b;
    int c = memcmp(x->p, y->p, IMP_MIN(x->n, y->n));
    if (c != 0) return c;
    if (x->n != y->n) return x->n < y->n ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static uint32_t common(const spelled *a, const spelled *b)
{
    uint32_t i = 0, n = IMP_MIN(a->n, b->n);
    while (i < n && a->p[i] == b->p[i]) i++;
    return i;
}

static bool alloc_nodes(imp_vocab_tree *v, uint64_t n_node)
{
    v->byte = imp_sys_malloc(n_node);
    v->depth = imp_sys_malloc(n_node * sizeof *v->depth);
    v->skip = imp_sys_malloc(n_node * sizeof *v->skip);
    v->parent = imp_sys_malloc(n_node * sizeof *v->parent);
    v->token_first = imp_sys_malloc((n_node + 1) * sizeof *v->token_first);
    v->token = imp_sys_malloc(((size_t)v->n_token + 1) * sizeof *v->token);
    v->node_of = imp_sys_calloc((size_t)v->n_vocab + 1, sizeof *v->node_of);
    return v->byte != NULL && v->depth != NULL && v->skip != NULL && v->parent != NULL &&
           v->token_first != NULL && v->token != NULL && v->node_of != NULL;
}

/* path: [max_depth + 1] the open node of each depth. */
static void fill(imp_vocab_tree *v, const spelled *s, uint32_t *path)
{
    uint32_t n = 1, depth = 0;
    v->byte[0] = 0;
    v->depth[0] = 0;
    v->parent[0] = 0;
    v->token_first[0] = 0;
    path[0] = 0;
    for (uint32_t i = 0; i < v->n_token; i++) {
        uint32_t same = i > 0 ? common(&s[i - 1], &s[i]) : 0;
        for (; depth > same; depth--) v->skip[path[depth]] = n;
        for (; depth < s[i].n; n++) {
            v->byte[n] = (uint8_t)s[i].p[depth];
            v->parent[n] = path[depth];
            v->depth[n] = (uint16_t)++depth;
            v->token_first[n] =
                i; /* the first token at or below it; those that are spelled by it come first */
            path[depth] = n;
        }
        v->token[i] = s[i].id;
        v->node_of[s[i].id] = path[depth];
    }
    for (; depth > 0; depth--) v->skip[path[depth]] = n;
    v->skip[0] = n;
    v->n_node = n;
    v->token_first[n] = v->n_token;
}

static imp_status build(imp_vocab_tree *v, spelled *s, imp_error *err)
{
    qsort(s, v->n_token, sizeof *s, by_bytes);
    uint64_t n_node = 1;
    for (uint32_t i = 0; i < v->n_token; i++) {
        n_node += s[i].n - (i > 0 ? common(&s[i - 1], &s[i]) : 0);
        v->max_depth = IMP_MAX(v->max_depth, s[i].n);
    }
    if (n_node > UINT32_MAX / 2)
        return imp_fail(err, IMP_TOO_LARGE, "the vocabulary is too large for constraints");
    uint32_t *path = imp_sys_malloc(((size_t)v->max_depth + 1) * sizeof *path);
    bool all = path != NULL && alloc_nodes(v, n_node);
    if (all) fill(v, s, path);
    imp_sys_free(path);
    return all ? IMP_OK : imp_fail(err, IMP_NOMEM, "out of memory");
}

/* Bytes of every token into text; where they begin into at [n_vocab + 1]. */
static void spell_all(const imp_tokenizer *t, uint32_t n_vocab, imp_buf *text, size_t *at)
{
    for (uint32_t id = 0; id < n_vocab; id++) {
        at[id] = text->n;
        imp_token_spell(t, (int32_t)id, text);
        if (text->n - at[id] > UINT16_MAX) text->n = at[id];
    }
    at[n_vocab] = text->n;
}

imp_status imp_vocab_tree_new(const imp_tokenizer *t, const int32_t *end, size_t n_end, imp_vocab_tree **out,
                              imp_error *err)
{
    *out = NULL;
    uint32_t n_vocab = (uint32_t)imp_tokenizer_n(t);
    imp_vocab_tree *v = imp_sys_calloc(1, sizeof *v);
    size_t *at = imp_sys_malloc(((size_t)n_vocab + 1) * sizeof *at);
    spelled *s = imp_sys_malloc(((size_t)n_vocab + 1) * sizeof *s);
    imp_buf text = {0};
    imp_status st = IMP_NOMEM;
    if (v != NULL) v->end = imp_sys_malloc((n_end + 1) * sizeof *v->end);
    if (v != NULL && v->end != NULL && at != NULL && s != NULL) {
        v->n_vocab = n_vocab;
        v->n_end = n_end;
        if (n_end > 0) memcpy(v->end, end, n_end * sizeof *end);
        spell_all(t, n_vocab, &text, at);
        for (uint32_t id = 0; id < n_vocab && !text.failed; id++) {
            bool ends = false;
            for (size_t i = 0; i < n_end; i++) ends = ends || end[i] == (int32_t)id;
            if (ends || at[id + 1] == at[id]) continue;
            s[v->n_token++] = (spelled){text.data + at[id], (uint32_t)(at[id + 1] - at[id]), (int32_t)id};
        }
        st = text.failed ? IMP_NOMEM : build(v, s, err);
    }
    imp_buf_deinit(&text);
    imp_sys_free(at);
    imp_sys_free(s);
    if (st == IMP_OK) {
        *out = v;
        return IMP_OK;
    }
    imp_vocab_tree_free(v);
    return st == IMP_NOMEM ? imp_fail(err, IMP_NOMEM, "out of memory") : st;
}

void imp_vocab_tree_free(imp_vocab_tree *v)
{
    if (v == NULL) return;
    imp_sys_free(v->byte);
    imp_sys_free(v->depth);
    imp_sys_free(v->skip);
    imp_sys_free(v->parent);
    imp_sys_free(v->token_first);
    imp_sys_free(v->token);
    imp_sys_free(v->node_of);
    imp_sys_free(v->end);
    imp_sys_free(v);
}

size_t imp_vocab_tree_bytes(const imp_vocab_tree *v)
{
    return (size_t)v->n_node * 15 + (size_t)v->n_token * 4 + (size_t)v->n_vocab * 4;
}
