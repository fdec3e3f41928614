/* dev/cpu/weights.c - which kernel multiplies each weight, and where it lies in the weights region.
 *
 * Idea:    a matrix whose kernel has no pack() stays in the model's file; the others are packed into one region (pack.c).
 *          Vectors (norms, biases, sinks) are read as f32: in place when they are, else decoded into the region.
 * Layout:  region: packed matrices and decoded vectors in node order, each at a multiple of 64 bytes. */
#include "dev/cpu/cpu.h"

static imp_status too_large(imp_error *err)
{
    return imp_fail(err, IMP_TOO_LARGE, "the sizes of the model's weights overflow");
}

/* n bytes more in the region, at *at. */
static bool reserve(cpu_exec *x, uint64_t n, uint64_t *at)
{
    *at = x->weights_bytes;
    return imp_align_u64(n, 64, &n) && imp_add_u64(x->weights_bytes, n, &x->weights_bytes);
}

/* Products of which attention's values are made, by the node of the product: an embedding is used as it is, not drawn from,
 * and rounding x to int8 hurts it most there. (All-MiniLM-L6-v2 in q8_0, 200 sentences, smallest cosine with the original:
 * 16 bits for values alone 0.9992, for queries and keys alone 0.9988, for all three 0.9993, everywhere 0.9995.) */
static void find_sharp(const imp_graph *g, bool *sharp)
{
    bool vectors = imp_graph_node(g, imp_graph_output(g))->rows == IMP_ROWS_SEQ;
    for (imp_val v = imp_graph_n(g); v >= 1 && vectors; v--) {
        const imp_node *n = imp_graph_node(g, v);
        bool passes = n->op == IMP_OP_SLICE || n->op == IMP_OP_ROPE || n->op == IMP_OP_RMS_NORM;
        if (n->op == IMP_OP_ATTN)
            sharp[n->in[2]] = true;
        else if (sharp[v] && passes)
            sharp[n->in[0]] = true;
    }
}

/* sharp: x is not to be rounded to int8. */
static imp_status choose_matrix(cpu_exec *x, imp_val v, bool sharp, imp_error *err)
{
    cpu_weight *w = &x->weight[v];
    if (w->mm != NULL) return IMP_OK;
    const imp_node *n = imp_graph_node(x->graph, v);
    w->part = n->u.weight.part;
    w->n_part = n->u.weight.n_part;
    w->mm = (sharp ? imp_matmul_select_f32 : imp_matmul_select)(w->part->dtype, n->width);
    if (w->mm == NULL) {
        return imp_fail(err, IMP_UNSUPPORTED, "no CPU kernel multiplies weights of the type of %s", n->name);
    }
    if (w->mm->packed_bytes == NULL) return IMP_OK;
    w->part_bytes = w->mm->packed_bytes(w->part->dim[0], w->part->dim[1]);
    uint64_t bytes;
    if (!imp_align_u64(w->part_bytes, 64, &w->part_bytes) || !imp_mul_u64(w->part_bytes, w->n_part, &bytes) ||
        !reserve(x, bytes, &w->at)) {
        return too_large(err);
    }
    return IMP_OK;
}

static bool is_plain_f32(const imp_tensor *t)
{
    return t->dtype == IMP_F32 && (uintptr_t)t->data % sizeof(float) == 0;
}

static imp_status choose_vector(cpu_exec *x, imp_val v, imp_error *err)
{
    const imp_node *n = imp_graph_node(x->graph, v);
    if (x->vector_at[v] != UINT64_MAX || x->vector[v] != NULL) return IMP_OK;
    if (is_plain_f32(n->u.weight.part)) {
        x->vector[v] = n->u.weight.part->data;
        return IMP_OK;
    }
    return reserve(x, n->width * sizeof(float), &x->vector_at[v]) ? IMP_OK : too_large(err);
}

/* Bytes of the model's own that are read while running, each tensor once. */
static uint64_t mapped_bytes(const cpu_exec *x, const bool *in_place)
{
    uint64_t sum = 0;
    for (imp_val v = 1; v <= imp_graph_n(x->graph); v++) {
        if (!in_place[v]) continue;
        const imp_node *n = imp_graph_node(x->graph, v);
        bool seen = false;
        for (imp_val o = 1; o < v && !seen; o++) {
            seen = in_place[o] && imp_graph_node(x->graph, o)->u.weight.part->data == n->u.weight.part->data;
        }
        for (uint32_t i = 0; i < n->u.weight.n_part && !seen; i++)
            sum += imp_tensor_bytes(&n->u.weight.part[i]);
    }
    return sum;
}

static bool is_matrix_input(const imp_node *n, uint32_t i)
{
    return (n->op == IMP_OP_LINEAR && i == 1) || n->op == IMP_OP_MOE;
}

imp_status imp_cpu_choose_weights(const cpu_device *d, cpu_exec *x, imp_error *err)
{
    (void)d;
    uint32_t n_node = imp_graph_n(x->graph);
    x->weight = imp_arena_array(x->arena, n_node + 1, sizeof *x->weight);
    x->vector = imp_arena_array(x->arena, n_node + 1, sizeof *x->vector);
    x->vector_at = imp_arena_array(x->arena, n_node + 1, sizeof *x->vector_at);
    bool *in_place = imp_arena_array(x->arena, n_node + 1, sizeof *in_place);
    bool *sharp = imp_arena_array(x->arena, n_node + 1, sizeof *sharp);
    if (x->weight == NULL || x->vector == NULL || x->vector_at == NULL || in_place == NULL || sharp == NULL) {
        return imp_fail(err, IMP_NOMEM, "out of memory while compiling for the CPU");
    }
    for (imp_val v = 0; v <= n_node; v++) x->vector_at[v] = UINT64_MAX;
    find_sharp(x->graph, sharp);
    for (imp_val v = 1; v <= n_node; v++) {
        const imp_node *n = imp_graph_node(x->graph, v);
        for (uint32_t i = 0; i < n->n_in; i++) {
            imp_val w = n->in[i];
            if (imp_graph_node(x->graph, w)->op != IMP_OP_WEIGHT) continue;
            if (is_matrix_input(n, i)) {
                IMP_TRY(choose_matrix(x, w, sharp[v], err));
                if (x->weight[w].part_bytes == 0) in_place[w] = true;
            } else if (n->op == IMP_OP_EMBED) {
                in_place[w] = true;
            } else {
                IMP_TRY(choose_vector(x, w, err));
                if (x->vector[w] != NULL) in_place[w] = true;
            }
        }
    }
    x->mapped_bytes = mapped_bytes(x, in_place);
    return IMP_OK;
}
