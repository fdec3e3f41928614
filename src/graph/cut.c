/* graph/cut.c - a graph in pieces, for devices that share a model by layers.
 *
 * Place:   dev/split asks where a graph can be cut and takes the pieces.
 * Idea:    between two layers of a decoder one value alone, the residual stream, is read further on. Nodes are in execution
 *          order, so a piece is a run of nodes; it copies them with new numbers and leaves what they point to in place. */
#include "graph/graph_int.h"

static bool is_kv_layer(const imp_node *n)
{
    return n->op == IMP_OP_ATTN && n->u.attn.kv_layer >= 0;
}

/* Where each value is read last; the output: behind all. NULL: no memory. */
static uint32_t *last_uses(const imp_graph *g)
{
    uint32_t *last = imp_sys_calloc(g->n + 1, sizeof *last);
    if (last == NULL) return NULL;
    for (uint32_t v = 1; v <= g->n; v++)
        for (uint32_t i = 0; i < g->node[v - 1]->n_in; i++) last[g->node[v - 1]->in[i]] = v;
    last[g->output] = g->n + 1;
    return last;
}

imp_val imp_graph_cut(const imp_graph *g, uint32_t n_layer)
{
    uint32_t *last = last_uses(g), done = 0, open_until = 0;
    imp_val best = 0;
    for (uint32_t v = 1; last != NULL && v < g->n; v++) {
        const imp_node *n = g->node[v - 1];
        if (n->op == IMP_OP_WEIGHT) continue;
        done += is_kv_layer(n);
        if (done > n_layer) break;
        /* open_until: the furthest reader of the values in front of this one */
        if (done == n_layer && n->rows == IMP_ROWS_TOK && open_until <= v && last[v] > v) best = v;
        open_until = IMP_MAX(open_until, last[v]);
    }
    imp_sys_free(last);
    return best;
}

imp_val imp_graph_value_in(imp_graph *to, const imp_graph *g, imp_val v, imp_val *at)
{
    const imp_node *n = g->node[v - 1];
    if (at[v] == 0 && n->op == IMP_OP_WEIGHT) {
        imp_node *w = imp_graph_append(to, n->op, n->name);
        if (w == NULL) return 0;
        *w = *n;
        at[v] = to->n;
    }
    if (at[v] == 0) imp_graph_fail(to, IMP_INVALID, "the graph cannot be cut in front of \"%s\"", n->name);
    return at[v];
}

imp_node *imp_graph_copy_node(imp_graph *to, const imp_graph *g, imp_val v, imp_val *at)
{
    imp_node copy = *g->node[v - 1];
    for (uint32_t i = 0; i < copy.n_in && to->err.status == IMP_OK; i++)
        copy.in[i] = imp_graph_value_in(to, g, copy.in[i], at);
    imp_node *n = to->err.status == IMP_OK ? imp_graph_append(to, copy.op, copy.name) : NULL;
    if (n == NULL) return NULL;
    *n = copy;
    at[v] = to->n;
    return n;
}

imp_status imp_graph_piece(const imp_graph *g, imp_val from, imp_val to, imp_graph **out, imp_error *err)
{
    *out = NULL;
    imp_graph *piece = imp_graph_new();
    imp_val *at = imp_sys_calloc(g->n + 1, sizeof *at);
    if (piece == NULL || at == NULL) {
        imp_graph_free(piece);
        imp_sys_free(at);
        return imp_fail(err, IMP_NOMEM, "out of memory while cutting the graph");
    }
    if (from != 0) at[from] = imp_g_input(piece, g->node[from - 1]->width);
    int32_t kv_first = 0;
    for (imp_val v = 1; v <= from; v++) kv_first += is_kv_layer(g->node[v - 1]);
    for (imp_val v = from + 1; v <= (to != 0 ? to : g->n); v++)
        if (g->node[v - 1]->op != IMP_OP_WEIGHT) {
            imp_node *n = imp_graph_copy_node(piece, g, v, at);
            if (n != NULL && is_kv_layer(n)) n->u.attn.kv_layer -= kv_first;
        }
    if (piece->err.status == IMP_OK)
        imp_g_output(piece, to != 0 ? imp_g_gather(piece, at[to]) : at[g->output]);
    imp_sys_free(at);
    imp_status s = imp_graph_finish(piece, err);
    if (s == IMP_OK)
        *out = piece;
    else
        imp_graph_free(piece);
    return s;
}
