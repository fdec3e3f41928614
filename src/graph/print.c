/* graph/print.c - a graph as text, one node a line, for people and for `show`. */
#include "graph/graph_int.h"

#include <inttypes.h>
#include <stdio.h>

static const char *const OP_NAME[IMP_N_OP] = {
    [IMP_OP_WEIGHT] = "weight",     [IMP_OP_INPUT] = "input",
    [IMP_OP_EMBED] = "embed",       [IMP_OP_LINEAR] = "linear",
    [IMP_OP_RMS_NORM] = "rms_norm", [IMP_OP_LAYER_NORM] = "layer_norm",
    [IMP_OP_ADD] = "add",           [IMP_OP_MUL] = "mul",
    [IMP_OP_SCALE] = "scale",       [IMP_OP_SOFTCAP] = "softcap",
    [IMP_OP_ACT] = "act",           [IMP_OP_GLU] = "glu",
    [IMP_OP_SLICE] = "slice",       [IMP_OP_ROPE] = "rope",
    [IMP_OP_ATTN] = "attn",         [IMP_OP_MOE] = "moe",
    [IMP_OP_GATHER] = "gather",     [IMP_OP_POOL] = "pool",
    [IMP_OP_L2_NORM] = "l2_norm",   [IMP_OP_ALLREDUCE] = "allreduce",
    [IMP_OP_OUTSIDE] = "outside",
};
static const char *const ACT_NAME[] = {"silu", "gelu", "gelu_tanh", "relu", "tanh", "sigmoid"};
static const char *const BY_NAME[] = {"token", "position", "type"};
static const char *const POOL_NAME[] = {"mean", "cls", "last"};
static const char *const ROWS_NAME[] = {"tok", "out", "seq", ""};

const char *imp_op_name(imp_op op)
{
    return op < IMP_N_OP ? OP_NAME[op] : "?";
}

const char *imp_graph_shape(const imp_node *n, char *buf, size_t cap)
{
    if (n->op != IMP_OP_WEIGHT) {
        snprintf(buf, cap, "[%s x %" PRIu64 "]", ROWS_NAME[n->rows], n->width);
        return buf;
    }
    const imp_tensor *t = n->u.weight.part;
    char parts[16] = "";
    if (n->u.weight.n_part > 1) snprintf(parts, sizeof parts, "%ux", n->u.weight.n_part);
    if (t->n_dim == 2) {
        snprintf(buf, cap, "%s[%" PRIu64 "x%" PRIu64 "]", parts, t->dim[0], t->dim[1]);
    } else {
        snprintf(buf, cap, "%s[%" PRIu64 "]", parts, t->dim[0]);
    }
    return buf;
}

static void print_attr(const imp_node *n, imp_buf *out)
{
    switch (n->op) {
    case IMP_OP_EMBED:
        imp_buf_fmt(out, " by %s", BY_NAME[n->u.embed.by]);
        if (n->u.embed.offset != 0) imp_buf_fmt(out, "+%d", n->u.embed.offset);
        break;
    case IMP_OP_RMS_NORM:
        imp_buf_fmt(out, " eps %g", (double)n->u.norm.eps);
        if (n->u.norm.group != n->width) imp_buf_fmt(out, " group %" PRIu64, n->u.norm.group);
        if (n->u.norm.w_offset != 0) imp_buf_fmt(out, " w+%g", (double)n->u.norm.w_offset);
        break;
    case IMP_OP_LAYER_NORM: imp_buf_fmt(out, " eps %g", (double)n->u.norm.eps); break;
    case IMP_OP_SCALE:
    case IMP_OP_SOFTCAP: imp_buf_fmt(out, " by %g", (double)n->u.scale.c); break;
    case IMP_OP_ACT:
    case IMP_OP_GLU: imp_buf_fmt(out, " %s", ACT_NAME[n->u.act.act]); break;
    case IMP_OP_SLICE: imp_buf_fmt(out, " from %" PRIu64, n->u.slice.begin); break;
    case IMP_OP_ROPE:
        imp_buf_fmt(out, " %u of %u %s", n->u.rope.n_rot, n->u.rope.head_dim,
                    n->u.rope.interleaved ? "interleaved" : "halves");
        break;
    case IMP_OP_ATTN: {
        const imp_attn_attr *a = &n->u.attn;
        imp_buf_fmt(out, " heads %u/%u x %u scale %g %s", a->n_head, a->n_kv_head, a->head_dim,
                    (double)a->scale, a->mask == IMP_MASK_CAUSAL ? "causal" : "full");
        if (a->window != 0) imp_buf_fmt(out, " window %u", a->window);
        if (a->softcap != 0) imp_buf_fmt(out, " softcap %g", (double)a->softcap);
        if (a->kv_layer >= 0) imp_buf_fmt(out, " kv %d", a->kv_layer);
        break;
    }
    case IMP_OP_MOE:
        imp_buf_fmt(out, " %u of %u %s%s", n->u.moe.n_used, n->u.moe.n_expert, ACT_NAME[n->u.moe.act],
                    n->u.moe.norm_topk ? " normalised" : "");
        break;
    case IMP_OP_ALLREDUCE: imp_buf_fmt(out, " of %u", n->u.reduce.n); break;
    case IMP_OP_OUTSIDE: imp_buf_fmt(out, " number %u", n->u.outside.index); break;
    case IMP_OP_POOL: imp_buf_fmt(out, " %s", POOL_NAME[n->u.pool.kind]); break;
    default: break;
    }
}

void imp_graph_print(const imp_graph *g, imp_buf *out)
{
    char shape[64];
    for (uint32_t i = 0; i < g->n; i++) {
        const imp_node *n = g->node[i];
        if (n->op == IMP_OP_WEIGHT) continue; /* shown where it is used */
        imp_buf_fmt(out, "%%%u = %s", i + 1, imp_op_name(n->op));
        for (uint32_t k = 0; k < n->n_in; k++) {
            const imp_node *in = g->node[n->in[k] - 1];
            if (in->op == IMP_OP_WEIGHT) {
                imp_buf_fmt(out, " %s:%s%s", in->name, imp_dtype_get(in->u.weight.part->dtype)->name,
                            imp_graph_shape(in, shape, sizeof shape));
            } else {
                imp_buf_fmt(out, " %%%u", n->in[k]);
            }
        }
        print_attr(n, out);
        imp_buf_fmt(out, " -> %s", imp_graph_shape(n, shape, sizeof shape));
        if (n->name[0] != '\0') imp_buf_fmt(out, "  # %s", n->name);
        imp_buf_str(out, i + 1 == g->output ? "  (output)\n" : "\n");
    }
}
