/* graph/build.c - the builder: one function an op, shapes inferred and checked as nodes are added.
 *
 * Place:   called by model/ while it turns a configuration into a graph.
 * Idea:    an op checks its inputs and attributes, then appends a node whose rows and width follow from them. A bad
 *          call leaves a sentence that names the node and both shapes, and returns 0; a 0 passed on is silent, because
 *          the cause has been noted already.
 * Threads: one builder a graph. */
#include "graph/graph_int.h"

#include <math.h>
#include <stdio.h>

/* ---- appending ------------------------------------------------------------------------------- */

imp_node *imp_graph_append(imp_graph *g, imp_op op, const char *name)
{
    if (g->n == g->cap) {
        uint32_t cap = g->cap == 0 ? 64 : g->cap * 2;
        imp_node **grown = imp_sys_realloc(g->node, cap * sizeof *grown);
        if (grown == NULL) goto nomem;
        g->node = grown;
        g->cap = cap;
    }
    imp_node *n = imp_arena_alloc(g->arena, sizeof *n);
    if (n == NULL) goto nomem;
    n->op = op;
    n->name = name;
    g->node[g->n++] = n;
    return n;
nomem:
    imp_graph_fail(g, IMP_NOMEM, "out of memory while building the graph");
    return NULL;
}

static imp_node *append_op(imp_graph *g, imp_op op, uint32_t n_in, const imp_val *in, imp_rows rows,
                           uint64_t width)
{
    imp_node *n = imp_graph_append(g, op, g->scope);
    if (n == NULL) return NULL;
    n->n_in = n_in;
    for (uint32_t i = 0; i < n_in; i++) n->in[i] = in[i];
    n->rows = rows;
    n->width = width;
    return n;
}

/* ---- checks ------------------------------------------------------------------------------------ */

static const imp_node *at(const imp_graph *g, imp_val v)
{
    return g->node[v - 1];
}

/* "%12 linear "blk.0"": how an error calls the node that would be added next. */
static const char *next_name(const imp_graph *g, imp_op op, char buf[192])
{
    snprintf(buf, 192, "%%%u %s \"%s\"", g->n + 1, imp_op_name(op), g->scope);
    return buf;
}

static imp_val bad(imp_graph *g, imp_op op, const char *why)
{
    char name[192];
    imp_graph_fail(g, IMP_INVALID, "%s: %s", next_name(g, op, name), why);
    return 0;
}

/* A complaint about two values whose shapes do not go together. */
static imp_val bad_pair(imp_graph *g, imp_op op, imp_val a, imp_val b, const char *why)
{
    char name[192], sa[64], sb[64];
    imp_graph_fail(g, IMP_INVALID, "%s: %s: %%%u %s is %s and %%%u %s is %s", next_name(g, op, name), why, a,
                   at(g, a)->name, imp_graph_shape(at(g, a), sa, sizeof sa), b, at(g, b)->name,
                   imp_graph_shape(at(g, b), sb, sizeof sb));
    return 0;
}

static imp_val bad_one(imp_graph *g, imp_op op, imp_val a, const char *why)
{
    char name[192], sa[64];
    imp_graph_fail(g, IMP_INVALID, "%s: %s: %%%u %s is %s", next_name(g, op, name), why, a, at(g, a)->name,
                   imp_graph_shape(at(g, a), sa, sizeof sa));
    return 0;
}

/* Every required input exists, is an activation (or a weight where the mask says so), and nothing failed before. */
static bool inputs_ok(imp_graph *g, imp_op op, uint32_t n, const imp_val *in, uint32_t weight_mask,
                      uint32_t optional)
{
    if (g->err.status != IMP_OK) return false;
    for (uint32_t i = 0; i < n; i++) {
        if (in[i] == 0 && (optional >> i & 1)) continue;
        if (in[i] == 0 || in[i] > g->n) {
            bad(g, op, "an input is missing");
            return false;
        }
        bool is_weight = at(g, in[i])->op == IMP_OP_WEIGHT;
        if (is_weight != (weight_mask >> i & 1)) {
            bad_one(g, op, in[i],
                    is_weight ? "a weight stands where an activation belongs"
                              : "an activation stands where a weight belongs");
            return false;
        }
    }
    return true;
}

static const imp_tensor *part0(const imp_graph *g, imp_val w)
{
    return &at(g, w)->u.weight.part[0];
}

/* A single-part weight of n elements in one row. */
static bool is_vector(const imp_graph *g, imp_val w, uint64_t n)
{
    const imp_node *d = at(g, w);
    return d->u.weight.n_part == 1 && imp_tensor_n_row(part0(g, w)) == 1 && d->width == n;
}

static bool is_matrix(const imp_graph *g, imp_val w)
{
    return at(g, w)->u.weight.n_part == 1 && part0(g, w)->n_dim == 2;
}

static bool same_shape(const imp_graph *g, imp_val a, imp_val b)
{
    return at(g, a)->rows == at(g, b)->rows && at(g, a)->width == at(g, b)->width;
}

/* ---- leaves ------------------------------------------------------------------------------------ */

imp_val imp_g_weight(imp_graph *g, const char *name, const imp_tensor *t)
{
    return imp_g_weight_parts(g, name, t, 1);
}

imp_val imp_g_weight_parts(imp_graph *g, const char *name, const imp_tensor *t, uint32_t n_part)
{
    if (g->err.status != IMP_OK) return 0;
    if (t == NULL || n_part == 0) {
        imp_graph_fail(g, IMP_INVALID, "weight \"%s\" has no tensor", name);
        return 0;
    }
    for (uint32_t i = 0; i < n_part; i++) {
        const imp_tensor *p = &t[i];
        if (p->n_dim < 1 || p->n_dim > 2 || p->dim[0] == 0 || (p->n_dim == 2 && p->dim[1] == 0)) {
            imp_graph_fail(g, IMP_INVALID, "weight \"%s\" must have one or two dimensions, none of them 0",
                           name);
            return 0;
        }
        bool same = p->dtype == t->dtype && p->n_dim == t->n_dim && p->dim[0] == t->dim[0] &&
                    (p->n_dim == 1 || p->dim[1] == t->dim[1]) && p->bits == t->bits && p->group == t->group;
        if (!same) {
            imp_graph_fail(g, IMP_INVALID, "weight \"%s\": part %u differs in type or shape from part 0",
                           name, i);
            return 0;
        }
        const imp_dtype_info *info = imp_dtype_get(p->dtype);
        if (info == NULL || (p->dtype != IMP_AFFINE && info->to_f32 == NULL)) {
            imp_graph_fail(g, IMP_UNSUPPORTED, "weight \"%s\" has a type that no weight can have", name);
            return 0;
        }
        if (p->dtype != IMP_AFFINE && imp_tensor_n_col(p) % info->block_elem != 0) {
            imp_graph_fail(g, IMP_INVALID, "weight \"%s\": rows of %llu elements are no whole blocks of %s",
                           name, (unsigned long long)imp_tensor_n_col(p), info->name);
            return 0;
        }
    }
    imp_tensor *part = imp_arena_array(g->arena, n_part, sizeof *part);
    const char *copy = imp_arena_strndup(g->arena, name, strlen(name));
    if (part == NULL || copy == NULL) {
        imp_graph_fail(g, IMP_NOMEM, "out of memory while building the graph");
        return 0;
    }
    memcpy(part, t, n_part * sizeof *part);
    imp_node *n = imp_graph_append(g, IMP_OP_WEIGHT, copy);
    if (n == NULL) return 0;
    n->rows = IMP_ROWS_NONE;
    n->width = t->dim[t->n_dim - 1];
    n->u.weight.part = part;
    n->u.weight.n_part = n_part;
    return g->n;
}

imp_status imp_graph_rebind(imp_graph *g, imp_val v, const imp_tensor *t, imp_error *err)
{
    imp_node *n = v >= 1 && v <= g->n ? g->node[v - 1] : NULL;
    if (n == NULL || n->op != IMP_OP_WEIGHT) return imp_fail(err, IMP_INVALID, "value %u is no weight", v);
    imp_tensor *part = (imp_tensor *)(uintptr_t)n->u.weight.part; /* the graph's own copy */
    for (uint32_t i = 0; i < n->u.weight.n_part; i++) {
        const imp_dtype_info *d = imp_dtype_get(t[i].dtype);
        bool same = t[i].n_dim == part[i].n_dim && t[i].dim[0] == part[i].dim[0] &&
                    (t[i].n_dim < 2 || t[i].dim[1] == part[i].dim[1]) && t[i].dtype == t[0].dtype;
        if (!same ||
            (t[i].dtype != IMP_AFFINE && (d->to_f32 == NULL || imp_tensor_n_col(&t[i]) % d->block_elem != 0)))
            return imp_fail(err, IMP_INVALID, "weight \"%s\" cannot become %s of this shape", n->name,
                            d->name);
    }
    memcpy(part, t, n->u.weight.n_part * sizeof *t);
    return IMP_OK;
}

imp_val imp_g_input(imp_graph *g, uint64_t width)
{
    if (g->err.status != IMP_OK) return 0;
    if (width == 0) return bad(g, IMP_OP_INPUT, "rows without columns");
    for (uint32_t i = 0; i < g->n; i++)
        if (g->node[i]->op == IMP_OP_INPUT) return bad(g, IMP_OP_INPUT, "the batch brings rows for one only");
    return append_op(g, IMP_OP_INPUT, 0, NULL, IMP_ROWS_TOK, width) != NULL ? g->n : 0;
}

imp_val imp_g_embed(imp_graph *g, imp_val w, imp_embed_by by, int32_t offset)
{
    if (!inputs_ok(g, IMP_OP_EMBED, 1, &w, 1, 0)) return 0;
    if (!is_matrix(g, w)) return bad_one(g, IMP_OP_EMBED, w, "the table must be one matrix");
    if (offset != 0 && by != IMP_BY_POSITION) return bad(g, IMP_OP_EMBED, "only positions have an offset");
    if (offset < 0) return bad(g, IMP_OP_EMBED, "the offset is negative");
    imp_node *n = append_op(g, IMP_OP_EMBED, 1, &w, IMP_ROWS_TOK, at(g, w)->width);
    if (n == NULL) return 0;
    n->u.embed.by = by;
    n->u.embed.offset = offset;
    return g->n;
}

/* ---- linear and norms -------------------------------------------------------------------------- */

imp_val imp_g_linear(imp_graph *g, imp_val x, imp_val w, imp_val bias)
{
    imp_val in[3] = {x, w, bias};
    if (!inputs_ok(g, IMP_OP_LINEAR, 3, in, 6, 4)) return 0;
    if (!is_matrix(g, w)) return bad_one(g, IMP_OP_LINEAR, w, "the weight must be one matrix");
    if (at(g, x)->width != at(g, w)->width)
        return bad_pair(g, IMP_OP_LINEAR, x, w, "input width and weight differ");
    uint64_t n_out = part0(g, w)->dim[0];
    if (bias != 0 && !is_vector(g, bias, n_out))
        return bad_pair(g, IMP_OP_LINEAR, w, bias, "weight and bias differ");
    return append_op(g, IMP_OP_LINEAR, bias != 0 ? 3 : 2, in, at(g, x)->rows, n_out) != NULL ? g->n : 0;
}

imp_val imp_g_rms_norm(imp_graph *g, imp_val x, imp_val w, float eps, uint64_t group, float w_offset)
{
    imp_val in[2] = {x, w};
    if (!inputs_ok(g, IMP_OP_RMS_NORM, 2, in, 2, 2)) return 0;
    uint64_t width = at(g, x)->width;
    if (group == 0) group = width;
    if (group > width || width % group != 0) {
        return bad_one(g, IMP_OP_RMS_NORM, x, "the width is no multiple of the group");
    }
    if (w != 0 && !is_vector(g, w, group))
        return bad_pair(g, IMP_OP_RMS_NORM, x, w, "group and weight differ");
    if (!(eps >= 0)) return bad(g, IMP_OP_RMS_NORM, "eps is negative or not a number");
    imp_node *n = append_op(g, IMP_OP_RMS_NORM, w != 0 ? 2 : 1, in, at(g, x)->rows, width);
    if (n == NULL) return 0;
    n->u.norm.eps = eps;
    n->u.norm.group = group;
    n->u.norm.w_offset = w_offset;
    return g->n;
}

imp_val imp_g_layer_norm(imp_graph *g, imp_val x, imp_val w, imp_val b, float eps)
{
    imp_val in[3] = {x, w, b};
    if (!inputs_ok(g, IMP_OP_LAYER_NORM, 3, in, 6, 6)) return 0;
    uint64_t width = at(g, x)->width;
    if (b != 0 && w == 0) return bad(g, IMP_OP_LAYER_NORM, "there is a bias but no weight");
    if (w != 0 && !is_vector(g, w, width))
        return bad_pair(g, IMP_OP_LAYER_NORM, x, w, "width and weight differ");
    if (b != 0 && !is_vector(g, b, width))
        return bad_pair(g, IMP_OP_LAYER_NORM, x, b, "width and bias differ");
    if (!(eps >= 0)) return bad(g, IMP_OP_LAYER_NORM, "eps is negative or not a number");
    imp_node *n = append_op(g, IMP_OP_LAYER_NORM, w == 0 ? 1 : b == 0 ? 2 : 3, in, at(g, x)->rows, width);
    if (n == NULL) return 0;
    n->u.norm.eps = eps;
    n->u.norm.group = width;
    return g->n;
}

imp_val imp_g_l2_norm(imp_graph *g, imp_val x)
{
    if (!inputs_ok(g, IMP_OP_L2_NORM, 1, &x, 0, 0)) return 0;
    imp_node *n = append_op(g, IMP_OP_L2_NORM, 1, &x, at(g, x)->rows, at(g, x)->width);
    if (n == NULL) return 0;
    n->u.norm.eps = 1e-12f;
    n->u.norm.group = n->width;
    return g->n;
}

/* ---- elementwise ------------------------------------------------------------------------------- */

static imp_node *binary(imp_graph *g, imp_op op, imp_val a, imp_val b)
{
    imp_val in[2] = {a, b};
    if (!inputs_ok(g, op, 2, in, 0, 0)) return NULL;
    if (!same_shape(g, a, b)) {
        bad_pair(g, op, a, b, "the shapes differ");
        return NULL;
    }
    return append_op(g, op, 2, in, at(g, a)->rows, at(g, a)->width);
}

static imp_node *unary(imp_graph *g, imp_op op, imp_val x)
{
    if (!inputs_ok(g, op, 1, &x, 0, 0)) return NULL;
    return append_op(g, op, 1, &x, at(g, x)->rows, at(g, x)->width);
}

imp_val imp_g_add(imp_graph *g, imp_val a, imp_val b)
{
    return binary(g, IMP_OP_ADD, a, b) != NULL ? g->n : 0;
}

imp_val imp_g_mul(imp_graph *g, imp_val a, imp_val b)
{
    return binary(g, IMP_OP_MUL, a, b) != NULL ? g->n : 0;
}

imp_val imp_g_scale(imp_graph *g, imp_val x, float c)
{
    imp_node *n = unary(g, IMP_OP_SCALE, x);
    if (n == NULL) return 0;
    n->u.scale.c = c;
    return g->n;
}

imp_val imp_g_softcap(imp_graph *g, imp_val x, float c)
{
    if (g->err.status == IMP_OK && !(c > 0)) return bad(g, IMP_OP_SOFTCAP, "the cap must be positive");
    imp_node *n = unary(g, IMP_OP_SOFTCAP, x);
    if (n == NULL) return 0;
    n->u.scale.c = c;
    return g->n;
}

imp_val imp_g_act(imp_graph *g, imp_val x, imp_act act)
{
    imp_node *n = unary(g, IMP_OP_ACT, x);
    if (n == NULL) return 0;
    n->u.act.act = act;
    return g->n;
}

imp_val imp_g_glu(imp_graph *g, imp_val gate, imp_val up, imp_act act)
{
    imp_node *n = binary(g, IMP_OP_GLU, gate, up);
    if (n == NULL) return 0;
    n->u.act.act = act;
    return g->n;
}

imp_val imp_g_slice(imp_graph *g, imp_val x, uint64_t begin, uint64_t width)
{
    if (!inputs_ok(g, IMP_OP_SLICE, 1, &x, 0, 0)) return 0;
    uint64_t end;
    if (width == 0 || !imp_add_u64(begin, width, &end) || end > at(g, x)->width) {
        return bad_one(g, IMP_OP_SLICE, x, "the columns asked for lie outside");
    }
    imp_node *n = append_op(g, IMP_OP_SLICE, 1, &x, at(g, x)->rows, width);
    if (n == NULL) return 0;
    n->u.slice.begin = begin;
    return g->n;
}

/* ---- attention --------------------------------------------------------------------------------- */

imp_val imp_g_rope(imp_graph *g, imp_val x, const imp_rope_attr *a)
{
    if (!inputs_ok(g, IMP_OP_ROPE, 1, &x, 0, 0)) return 0;
    if (at(g, x)->rows != IMP_ROWS_TOK) return bad_one(g, IMP_OP_ROPE, x, "only token rows have positions");
    if (a->head_dim == 0 || at(g, x)->width % a->head_dim != 0) {
        return bad_one(g, IMP_OP_ROPE, x, "the width is no multiple of the head");
    }
    if (a->n_rot == 0 || a->n_rot % 2 != 0 || a->n_rot > a->head_dim) {
        return bad(g, IMP_OP_ROPE, "the rotated columns must be even in number and fit the head");
    }
    if (a->inv_freq == NULL) return bad(g, IMP_OP_ROPE, "there are no frequencies");
    for (uint32_t i = 0; i < a->n_rot / 2; i++) {
        if (!isfinite(a->inv_freq[i])) return bad(g, IMP_OP_ROPE, "a frequency is not finite");
    }
    if (!isfinite(a->mscale)) return bad(g, IMP_OP_ROPE, "mscale is not finite");
    float *freq = imp_arena_array(g->arena, a->n_rot / 2, sizeof *freq);
    if (freq == NULL) {
        imp_graph_fail(g, IMP_NOMEM, "out of memory while building the graph");
        return 0;
    }
    memcpy(freq, a->inv_freq, a->n_rot / 2 * sizeof *freq);
    imp_node *n = append_op(g, IMP_OP_ROPE, 1, &x, IMP_ROWS_TOK, at(g, x)->width);
    if (n == NULL) return 0;
    n->u.rope = *a;
    n->u.rope.inv_freq = freq;
    return g->n;
}

static bool attn_attr_ok(imp_graph *g, const imp_attn_attr *a)
{
    if (a->n_head == 0 || a->n_kv_head == 0 || a->head_dim == 0) {
        return bad(g, IMP_OP_ATTN, "heads and their width must not be 0");
    }
    if (a->n_head % a->n_kv_head != 0) return bad(g, IMP_OP_ATTN, "n_head is no multiple of n_kv_head");
    if (a->kv_layer < -1) return bad(g, IMP_OP_ATTN, "the KV layer is below -1");
    if (a->kv_layer >= 0 && a->mask != IMP_MASK_CAUSAL) {
        return bad(g, IMP_OP_ATTN, "attention over the whole sequence cannot use a cache");
    }
    if (!isfinite(a->scale)) return bad(g, IMP_OP_ATTN, "the scale is not finite");
    if (!(a->softcap >= 0)) return bad(g, IMP_OP_ATTN, "the cap is negative or not a number");
    return true;
}

imp_val imp_g_attn(imp_graph *g, imp_val q, imp_val k, imp_val v, imp_val sink, const imp_attn_attr *a)
{
    imp_val in[4] = {q, k, v, sink};
    if (!inputs_ok(g, IMP_OP_ATTN, 4, in, 8, 8) || !attn_attr_ok(g, a)) return 0;
    if (at(g, q)->rows != IMP_ROWS_TOK) return bad_one(g, IMP_OP_ATTN, q, "queries must be token rows");
    if (!same_shape(g, k, v)) return bad_pair(g, IMP_OP_ATTN, k, v, "keys and values differ");
    if (at(g, k)->rows != IMP_ROWS_TOK) return bad_one(g, IMP_OP_ATTN, k, "keys must be token rows");
    if (at(g, q)->width != (uint64_t)a->n_head * a->head_dim) {
        return bad_one(g, IMP_OP_ATTN, q, "the width is not n_head * head_dim");
    }
    if (at(g, k)->width != (uint64_t)a->n_kv_head * a->head_dim) {
        return bad_one(g, IMP_OP_ATTN, k, "the width is not n_kv_head * head_dim");
    }
    if (sink != 0 && !is_vector(g, sink, a->n_head))
        return bad_one(g, IMP_OP_ATTN, sink, "not one sink a head");
    imp_node *n = append_op(g, IMP_OP_ATTN, sink != 0 ? 4 : 3, in, IMP_ROWS_TOK, at(g, q)->width);
    if (n == NULL) return 0;
    n->u.attn = *a;
    return g->n;
}

/* ---- experts ----------------------------------------------------------------------------------- */

imp_val imp_g_moe(imp_graph *g, imp_val x, imp_val logits, imp_val gate, imp_val up, imp_val down,
                  const imp_moe_attr *a)
{
    imp_val in[5] = {x, logits, gate, up, down};
    if (!inputs_ok(g, IMP_OP_MOE, 5, in, 28, 0)) return 0;
    if (a->n_expert == 0 || a->n_used == 0 || a->n_used > a->n_expert) {
        return bad(g, IMP_OP_MOE, "n_used must lie in 1..n_expert");
    }
    if (at(g, logits)->rows != at(g, x)->rows) return bad_pair(g, IMP_OP_MOE, x, logits, "rows differ");
    if (at(g, logits)->width != a->n_expert) return bad_one(g, IMP_OP_MOE, logits, "not one logit an expert");
    for (uint32_t i = 2; i < 5; i++) {
        if (at(g, in[i])->u.weight.n_part != a->n_expert || part0(g, in[i])->n_dim != 2) {
            return bad_one(g, IMP_OP_MOE, in[i], "not one matrix an expert");
        }
    }
    if (part0(g, gate)->dim[0] != part0(g, up)->dim[0] || at(g, gate)->width != at(g, up)->width) {
        return bad_pair(g, IMP_OP_MOE, gate, up, "gate and up differ");
    }
    if (at(g, x)->width != at(g, gate)->width)
        return bad_pair(g, IMP_OP_MOE, x, gate, "input width and gate differ");
    if (at(g, down)->width != part0(g, up)->dim[0])
        return bad_pair(g, IMP_OP_MOE, up, down, "up and down differ");
    imp_node *n = append_op(g, IMP_OP_MOE, 5, in, at(g, x)->rows, part0(g, down)->dim[0]);
    if (n == NULL) return 0;
    n->u.moe = *a;
    return g->n;
}

imp_val imp_g_allreduce(imp_graph *g, imp_val x, uint32_t n_member)
{
    if (g->err.status == IMP_OK && n_member < 2) return bad(g, IMP_OP_ALLREDUCE, "a sum over fewer than 2");
    imp_node *n = unary(g, IMP_OP_ALLREDUCE, x);
    if (n == NULL) return 0;
    n->u.reduce.n = n_member;
    return g->n;
}

imp_val imp_g_outside(imp_graph *g, imp_val a, imp_val b, uint64_t width, uint32_t index)
{
    imp_val in[2] = {a, b};
    if (!inputs_ok(g, IMP_OP_OUTSIDE, 2, in, 0, 0)) return 0;
    if (at(g, a)->rows != at(g, b)->rows) return bad_pair(g, IMP_OP_OUTSIDE, a, b, "rows differ");
    if (width == 0) return bad(g, IMP_OP_OUTSIDE, "rows without columns");
    imp_node *n = append_op(g, IMP_OP_OUTSIDE, 2, in, at(g, a)->rows, width);
    if (n == NULL) return 0;
    n->u.outside.index = index;
    return g->n;
}

/* ---- rows -------------------------------------------------------------------------------------- */

imp_val imp_g_gather(imp_graph *g, imp_val x)
{
    if (!inputs_ok(g, IMP_OP_GATHER, 1, &x, 0, 0)) return 0;
    if (at(g, x)->rows != IMP_ROWS_TOK)
        return bad_one(g, IMP_OP_GATHER, x, "only token rows can be gathered");
    return append_op(g, IMP_OP_GATHER, 1, &x, IMP_ROWS_OUT, at(g, x)->width) != NULL ? g->n : 0;
}

imp_val imp_g_pool(imp_graph *g, imp_val x, imp_pool_kind kind)
{
    if (!inputs_ok(g, IMP_OP_POOL, 1, &x, 0, 0)) return 0;
    if (at(g, x)->rows != IMP_ROWS_TOK) return bad_one(g, IMP_OP_POOL, x, "only token rows can be pooled");
    imp_node *n = append_op(g, IMP_OP_POOL, 1, &x, IMP_ROWS_SEQ, at(g, x)->width);
    if (n == NULL) return 0;
    n->u.pool.kind = kind;
    return g->n;
}

void imp_g_output(imp_graph *g, imp_val x)
{
    if (g->err.status != IMP_OK) return;
    if (x == 0 || x > g->n || at(g, x)->op == IMP_OP_WEIGHT) {
        imp_graph_fail(g, IMP_INVALID, "the output is no activation of this graph");
    } else if (g->output != 0) {
        imp_graph_fail(g, IMP_INVALID, "the graph has two outputs, %%%u and %%%u", g->output, x);
    } else if (at(g, x)->rows == IMP_ROWS_TOK) {
        char shape[64];
        imp_graph_fail(g, IMP_INVALID, "the output %%%u is %s: gather or pool its rows first", x,
                       imp_graph_shape(at(g, x), shape, sizeof shape));
    } else {
        g->output = x;
    }
}
