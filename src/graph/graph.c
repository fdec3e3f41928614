/* graph/graph.c - life of a graph, the checks over the whole, and what devices read.
 *
 * Place:   build.c appends nodes, print.c lists them; model/ and dev/ see graph.h only.
 * Always:  a node's inputs have smaller values than the node itself, so the list is in execution order.
 * Threads: building is one thread's; a finished graph is read-only and may be shared. */
#include "graph/graph_int.h"

#include <stdio.h>

imp_graph *imp_graph_new(void)
{
    imp_graph *g = imp_sys_calloc(1, sizeof *g);
    if (g == NULL) return NULL;
    g->arena = imp_arena_new(16384);
    if (g->arena == NULL) {
        imp_sys_free(g);
        return NULL;
    }
    g->scope = "";
    return g;
}

void imp_graph_free(imp_graph *g)
{
    if (g == NULL) return;
    imp_arena_free(g->arena);
    imp_sys_free(g->node);
    imp_sys_free(g);
}

void imp_graph_fail(imp_graph *g, imp_status status, const char *fmt, ...)
{
    if (g->err.status != IMP_OK) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(g->err.text, sizeof g->err.text, fmt, ap);
    va_end(ap);
    g->err.status = status;
}

void imp_graph_scope(imp_graph *g, const char *fmt, ...)
{
    char text[128];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    const char *copy = imp_arena_strndup(g->arena, text, strlen(text));
    if (copy == NULL) {
        imp_graph_fail(g, IMP_NOMEM, "out of memory while building the graph");
        return;
    }
    g->scope = copy;
}

/* Number the KV layers: each of 0..n-1 must be written by exactly one ATTN node. */
static void number_kv_layers(imp_graph *g)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < g->n; i++) {
        const imp_node *d = g->node[i];
        if (d->op == IMP_OP_ATTN && d->u.attn.kv_layer >= 0) n++;
    }
    g->n_kv_layer = n;
    if (n == 0) return;
    g->kv_layer = imp_arena_array(g->arena, n, sizeof *g->kv_layer);
    if (g->kv_layer == NULL) {
        imp_graph_fail(g, IMP_NOMEM, "out of memory while checking the graph");
        return;
    }
    for (uint32_t i = 0; i < g->n; i++) {
        const imp_node *d = g->node[i];
        if (d->op != IMP_OP_ATTN || d->u.attn.kv_layer < 0) continue;
        uint32_t layer = (uint32_t)d->u.attn.kv_layer;
        if (layer >= n) {
            imp_graph_fail(g, IMP_INVALID,
                           "%%%u attn \"%s\": KV layer %u, but the graph has %u attentions with a cache",
                           i + 1, d->name, layer, n);
        } else if (g->kv_layer[layer] != 0) {
            imp_graph_fail(g, IMP_INVALID, "%%%u attn \"%s\": KV layer %u is used by %%%u already", i + 1,
                           d->name, layer, g->kv_layer[layer]);
        } else {
            g->kv_layer[layer] = i + 1;
        }
    }
}

imp_status imp_graph_finish(imp_graph *g, imp_error *err)
{
    g->n_kv_layer = 0;
    if (g->err.status == IMP_OK && g->output == 0) imp_graph_fail(g, IMP_INVALID, "the graph has no output");
    if (g->err.status == IMP_OK) number_kv_layers(g);
    if (g->err.status != IMP_OK) return imp_fail(err, g->err.status, "%s", g->err.text);
    return IMP_OK;
}

uint64_t imp_graph_bytes(const imp_graph *g)
{
    return g == NULL ? 0 : sizeof *g + imp_arena_bytes(g->arena) + g->cap * sizeof *g->node;
}

uint32_t imp_graph_n(const imp_graph *g)
{
    return g->n;
}

const imp_node *imp_graph_node(const imp_graph *g, imp_val v)
{
    return v >= 1 && v <= g->n ? g->node[v - 1] : NULL;
}

imp_val imp_graph_output(const imp_graph *g)
{
    return g->output;
}

uint32_t imp_graph_n_kv_layer(const imp_graph *g)
{
    return g->n_kv_layer;
}

const imp_node *imp_graph_kv_layer(const imp_graph *g, uint32_t i)
{
    return i < g->n_kv_layer ? imp_graph_node(g, g->kv_layer[i]) : NULL;
}
