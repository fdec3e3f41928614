/* graph/experts.c - a graph without its mixtures of experts, and each of them by itself: attention, router and everything
 * shared on one device, the experts, which are most of such a model, on another.
 *
 * Place:   dev/experts takes both. */
#include "graph/graph_int.h"

uint32_t imp_graph_n_experts(const imp_graph *g)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < g->n; i++) n += g->node[i]->op == IMP_OP_MOE;
    return n;
}

static imp_status finish(imp_graph *made, imp_val *at, imp_graph **out, imp_error *err)
{
    imp_sys_free(at);
    imp_status s = imp_graph_finish(made, err);
    if (s == IMP_OK)
        *out = made;
    else
        imp_graph_free(made);
    return s;
}

static imp_status start(const imp_graph *g, imp_graph **made, imp_val **at, imp_error *err)
{
    *made = imp_graph_new();
    *at = imp_sys_calloc(g->n + 1, sizeof **at);
    if (*made != NULL && *at != NULL) return IMP_OK;
    imp_graph_free(*made);
    imp_sys_free(*at);
    return imp_fail(err, IMP_NOMEM, "out of memory while taking the experts out of the graph");
}

imp_status imp_graph_without_experts(const imp_graph *g, imp_graph **out, imp_error *err)
{
    imp_graph *made;
    imp_val *at;
    uint32_t index = 0;
    *out = NULL;
    IMP_TRY(start(g, &made, &at, err));
    for (imp_val v = 1; v <= g->n && made->err.status == IMP_OK; v++) {
        const imp_node *n = g->node[v - 1];
        if (n->op == IMP_OP_WEIGHT) continue;
        if (n->op == IMP_OP_MOE) {
            imp_graph_scope(made, "%s", n->name);
            at[v] = imp_g_outside(made, at[n->in[0]], at[n->in[1]], n->width, index++);
        } else {
            (void)imp_graph_copy_node(made, g, v, at);
        }
    }
    if (made->err.status == IMP_OK) imp_g_output(made, at[g->output]);
    return finish(made, at, out, err);
}

imp_status imp_graph_experts(const imp_graph *g, uint32_t i, imp_graph **out, imp_error *err)
{
    imp_graph *made;
    imp_val *at, v = 0;
    *out = NULL;
    for (uint32_t k = 0; v < g->n; v++)
        if (g->node[v]->op == IMP_OP_MOE && k++ == i) break;
    if (v == g->n) return imp_fail(err, IMP_INVALID, "the graph has no experts number %u", i);
    IMP_TRY(start(g, &made, &at, err));
    const imp_node *n = g->node[v];
    uint64_t width = g->node[n->in[0] - 1]->width;
    imp_graph_scope(made, "%s", n->name);
    imp_val rows = imp_g_input(made, width + n->u.moe.n_expert);
    at[n->in[0]] = imp_g_slice(made, rows, 0, width);
    at[n->in[1]] = imp_g_slice(made, rows, width, n->u.moe.n_expert);
    imp_node *moe = made->err.status == IMP_OK ? imp_graph_copy_node(made, g, v + 1, at) : NULL;
    if (moe != NULL)
        moe->rows = IMP_ROWS_TOK; /* in the whole it may stand behind the choice of output rows */
    if (made->err.status == IMP_OK) imp_g_output(made, imp_g_gather(made, at[v + 1]));
    return finish(made, at, out, err);
}
