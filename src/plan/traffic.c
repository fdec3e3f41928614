/* plan/traffic.c - weight bytes and multiply-adds of a graph per token.
 *
 * Idea:    a linear layer reads its whole weight once a step and does 2*n*k operations a row; a mixture of experts
 *          reads n_used of n_expert parts for one token; an embedding reads one row. */
#include "plan/traffic.h"

static void add_flop(const imp_node *n, double flop, imp_traffic *t)
{
    if (n->rows == IMP_ROWS_TOK)
        t->tok_flop += flop;
    else
        t->out_flop += flop;
}

static uint64_t parts_bytes(const imp_node *w)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < w->u.weight.n_part; i++) bytes += imp_tensor_bytes(&w->u.weight.part[i]);
    return bytes;
}

static double parts_elem(const imp_node *w)
{
    double n = 0;
    for (uint32_t i = 0; i < w->u.weight.n_part; i++) n += (double)imp_tensor_n_elem(&w->u.weight.part[i]);
    return n;
}

static void count_moe(const imp_graph *g, const imp_node *n, imp_traffic *t)
{
    for (uint32_t i = 2; i < 5; i++) {
        const imp_node *w = imp_graph_node(g, n->in[i]);
        double used = (double)n->u.moe.n_used / (double)n->u.moe.n_expert;
        t->weight_bytes += (uint64_t)((double)parts_bytes(w) * used);
        add_flop(n, 2 * parts_elem(w) * used, t);
    }
}

void imp_traffic_count(const imp_graph *g, imp_traffic *out)
{
    *out = (imp_traffic){0};
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        const imp_node *n = imp_graph_node(g, v);
        if (n->op == IMP_OP_LINEAR) {
            const imp_node *w = imp_graph_node(g, n->in[1]);
            out->weight_bytes += parts_bytes(w);
            add_flop(n, 2 * parts_elem(w), out);
        } else if (n->op == IMP_OP_EMBED) {
            const imp_node *w = imp_graph_node(g, n->in[0]);
            uint64_t rows = imp_tensor_n_row(&w->u.weight.part[0]);
            if (rows) out->weight_bytes += parts_bytes(w) / rows;
        } else if (n->op == IMP_OP_MOE) {
            count_moe(g, n, out);
        } else if (n->op == IMP_OP_ATTN && n->u.attn.kv_layer >= 0) {
            out->kv_bytes_tok += 4ull * n->u.attn.n_kv_head * n->u.attn.head_dim;
        }
    }
}
