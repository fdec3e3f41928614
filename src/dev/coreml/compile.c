/* dev/coreml/compile.c - IR nodes to ops of an ML Program in the form that suits the ANE.
 *
 * Place:   convert.c calls it, once a length and chunk. compile_weight.c and compile_attn.c belong to it.
 * Shapes:  a value of the IR [tok][width] is a tensor (1, width, 1, S), fp16; what a head sees is (1, 1, head_dim, S).
 * Always:  no op of an encoder or a prefill has a last dimension of 1 but the weights of norms; no transpose but the flags of
 *          matmul. */
#include <math.h>
#include <stdio.h>

#include "dev/coreml/compile_int.h"

ml_val ml_stop(compiler *c, imp_status s, const char *what, const char *name)
{
    if (c->b.status == IMP_OK) c->b.status = imp_fail(c->b.err, s, "%s: %s", name, what);
    return 0;
}

/* ---- simple ops -------------------------------------------------------------------------------------------------- */

ml_val ml_two(compiler *c, const char *type, const char *name, ml_val x, ml_val y)
{
    return ml_op(&c->b, type, name, "x", x, "y", y, NULL);
}

static ml_val one(compiler *c, const char *type, const char *name, ml_val x)
{
    return ml_op(&c->b, type, name, "x", x, NULL);
}

static ml_val activate(compiler *c, imp_act act, const char *name, ml_val x)
{
    switch (act) {
    case IMP_ACT_SILU: return one(c, "silu", name, x);
    case IMP_ACT_GELU: return ml_op(&c->b, "gelu", name, "x", x, "mode", ml_text(&c->b, "EXACT"), NULL);
    case IMP_ACT_GELU_TANH:
        return ml_op(&c->b, "gelu", name, "x", x, "mode", ml_text(&c->b, "TANH_APPROXIMATION"), NULL);
    case IMP_ACT_RELU: return one(c, "relu", name, x);
    case IMP_ACT_TANH: return one(c, "tanh", name, x);
    case IMP_ACT_SIGMOID: return one(c, "sigmoid", name, x);
    }
    return 0;
}

ml_val ml_softcap(compiler *c, const char *name, ml_val x, float cap)
{
    x = one(c, "tanh", name, ml_two(c, "mul", name, x, ml_f16(&c->b, 1 / cap)));
    return ml_two(c, "mul", name, x, ml_f16(&c->b, cap));
}

static ml_val reduce(compiler *c, const char *type, const char *name, ml_val x, int32_t axis)
{
    return ml_op(&c->b, type, name, "x", x, "axes", ml_i32s(&c->b, &axis, 1), "keep_dims",
                 ml_flag(&c->b, true), NULL);
}

/* x / sqrt(mean(x^2) + eps) over the axis, with the mean subtracted first or not. Everything is divided by the largest
 * magnitude m, so that squares lie in 0..1: z = x / m, then z / sqrt(mean(z^2) + (sqrt(eps) / m)^2). */
static ml_val normalise(compiler *c, const char *name, ml_val x, int32_t axis, float eps, bool center)
{
    ml_build *b = &c->b;
    x = ml_op(b, "clip", name, "x", x, "alpha", ml_f16(b, -ML_CLAMP), "beta", ml_f16(b, ML_CLAMP), NULL);
    if (center) x = ml_two(c, "sub", name, x, reduce(c, "reduce_mean", name, x, axis));
    ml_val m = reduce(c, "reduce_max", name, one(c, "abs", name, x), axis);
    ml_val inv = ml_two(c, "real_div", name, ml_f16(b, 1), ml_two(c, "maximum", name, m, ml_f16(b, 1e-4f)));
    ml_val z = ml_two(c, "mul", name, x, inv), e = ml_two(c, "mul", name, inv, ml_f16(b, sqrtf(eps)));
    ml_val v = reduce(c, "reduce_mean", name, ml_two(c, "mul", name, z, z), axis);
    v = ml_two(c, "add", name, v, ml_two(c, "mul", name, e, e));
    return ml_two(c, "mul", name, z, ml_op(b, "rsqrt", name, "x", v, "epsilon", ml_f16(b, 1e-7f), NULL));
}

static ml_val norm(compiler *c, const imp_node *n)
{
    bool center = n->op == IMP_OP_LAYER_NORM;
    uint64_t group = center ? n->width : n->u.norm.group, heads = n->width / group;
    ml_val x = c->val[n->in[0]];
    if (heads > 1) x = ml_reshape(&c->b, n->name, x, 1, heads, group, c->s);
    x = normalise(c, n->name, x, heads > 1 ? 2 : 1, n->u.norm.eps, center);
    imp_mil_type t =
        heads > 1 ? ml_shape4(IMP_MIL_F16, 1, 1, group, 1) : ml_shape4(IMP_MIL_F16, 1, group, 1, 1);
    if (n->n_in > 1 && n->in[1] != 0)
        x = ml_two(c, "mul", n->name, x, ml_vector(c, n->in[1], 0, center ? 0 : n->u.norm.w_offset, t));
    if (n->n_in > 2 && n->in[2] != 0) x = ml_two(c, "add", n->name, x, ml_vector(c, n->in[2], 0, 0, t));
    if (heads > 1) x = ml_reshape(&c->b, n->name, x, 1, n->width, 1, c->s);
    return x;
}

ml_val ml_cut(compiler *c, const char *name, ml_val x, int axis, uint64_t from, uint64_t to)
{
    const imp_mil_type *t = ml_type_of(&c->b, x);
    int32_t begin[4] = {0}, end[4];
    for (int i = 0; i < 4; i++) end[i] = (int32_t)t->dim[i];
    begin[axis] = (int32_t)from;
    end[axis] = (int32_t)to;
    return ml_op(&c->b, "slice_by_index", name, "x", x, "begin", ml_i32s(&c->b, begin, 4), "end",
                 ml_i32s(&c->b, end, 4), NULL);
}

static ml_val pool(compiler *c, const imp_node *n)
{
    ml_build *b = &c->b;
    ml_val w = ml_input(b, "pool", ml_shape4(IMP_MIL_F16, 1, 1, 1, c->s));
    ml_val x = ml_reshape(b, n->name, c->val[n->in[0]], 1, 1, n->width, c->s);
    return ml_op(b, "matmul", n->name, "x", w, "y", x, "transpose_x", ml_flag(b, false), "transpose_y",
                 ml_flag(b, true), NULL);
}

/* ---- the walk -------------------------------------------------------------------------------------------------------- */

const char *ml_refuses(const imp_graph *g, imp_val v, bool decode)
{
    const imp_node *n = imp_graph_node(g, v);
    switch (n->op) {
    case IMP_OP_MOE: return "mixtures of experts have no form for the ANE yet";
    case IMP_OP_L2_NORM: return "normalisation of vectors is the host's";
    case IMP_OP_GATHER: return decode ? NULL : "picking rows is the host's";
    case IMP_OP_ATTN:
        if (n->n_in > 3 && n->in[3] != 0) return "attention sinks have no form for the ANE yet";
        return n->u.attn.n_head > IMP_MIL_MAX_OUT ? "too many heads" : NULL;
    case IMP_OP_WEIGHT:
        return n->u.weight.n_part != 1 ? "weights in parts have no form for the ANE yet" : NULL;
    case IMP_OP_EMBED: return NULL;
    default:
        return n->rows == IMP_ROWS_TOK || n->op == IMP_OP_POOL || decode
                   ? NULL
                   : "it works on rows that the host picks";
    }
}

static ml_val emit(compiler *c, imp_val v)
{
    const imp_node *n = ml_node(c, v);
    const char *why = ml_refuses(c->g, v, c->decode), *name = n->name[0] ? n->name : imp_op_name(n->op);
    if (why != NULL) return ml_stop(c, IMP_UNSUPPORTED, why, name);
    switch (n->op) {
    case IMP_OP_LINEAR: return ml_linear(c, v);
    case IMP_OP_RMS_NORM:
    case IMP_OP_LAYER_NORM: return norm(c, n);
    case IMP_OP_ADD: return ml_two(c, "add", name, c->val[n->in[0]], c->val[n->in[1]]);
    case IMP_OP_MUL: return ml_two(c, "mul", name, c->val[n->in[0]], c->val[n->in[1]]);
    case IMP_OP_SCALE: return ml_two(c, "mul", name, c->val[n->in[0]], ml_f16(&c->b, n->u.scale.c));
    case IMP_OP_SOFTCAP: return ml_softcap(c, name, c->val[n->in[0]], n->u.scale.c);
    case IMP_OP_ACT: return activate(c, n->u.act.act, name, c->val[n->in[0]]);
    case IMP_OP_GLU:
        return ml_two(c, "mul", name, activate(c, n->u.act.act, name, c->val[n->in[0]]), c->val[n->in[1]]);
    case IMP_OP_SLICE:
        return c->b.status == IMP_OK
                   ? ml_cut(c, name, c->val[n->in[0]], 1, n->u.slice.begin, n->u.slice.begin + n->width)
                   : 0;
    case IMP_OP_ROPE: return ml_rope(c, n);
    case IMP_OP_ATTN: return ml_attention(c, n);
    case IMP_OP_GATHER: return c->val[n->in[0]]; /* of one token */
    case IMP_OP_POOL: return pool(c, n);
    default: return ml_stop(c, IMP_UNSUPPORTED, "it has no form for the ANE", name);
    }
}

static void want(const imp_graph *g, imp_val v, imp_val from, bool *need)
{
    if (v == 0 || need[v]) return;
    need[v] = true;
    if (v == from || imp_ml_on_host(g, v)) return;
    const imp_node *n = imp_graph_node(g, v);
    for (uint32_t i = 0; i < n->n_in; i++) want(g, n->in[i], from, need);
}

imp_val ml_head_linear(const imp_graph *g)
{
    imp_val v = imp_graph_output(g);
    while (imp_graph_node(g, v)->op == IMP_OP_SCALE || imp_graph_node(g, v)->op == IMP_OP_SOFTCAP)
        v = imp_graph_node(g, v)->in[0];
    return imp_graph_node(g, v)->op == IMP_OP_LINEAR ? v : 0;
}

void ml_needed(const imp_graph *g, const ml_part *part, bool decode, bool *need)
{
    memset(need, 0, imp_graph_n(g) + 1);
    if (part->pools) want(g, imp_graph_output(g), part->from, need);
    if (part->head && decode) want(g, imp_graph_node(g, ml_head_linear(g))->in[0], part->from, need);
    if (decode || part->goes_on) want(g, part->to, part->from, need);
    for (uint32_t i = part->first_kv; i < part->first_kv + part->n_kv; i++) {
        want(g, imp_graph_kv_layer(g, i)->in[1], part->from, need);
        want(g, imp_graph_kv_layer(g, i)->in[2], part->from, need);
    }
}

static bool needs_padding_mask(const compiler *c, const bool *need)
{
    for (imp_val v = 1; v <= imp_graph_n(c->g); v++)
        if (need[v] && ml_node(c, v)->op == IMP_OP_ATTN && ml_node(c, v)->u.attn.mask == IMP_MASK_FULL)
            return true;
    return false;
}

static imp_status walk(compiler *c, const bool *need)
{
    imp_val in = c->part->from;
    for (imp_val v = 1; v <= imp_graph_n(c->g) && in == 0; v++)
        if (need[v] && imp_ml_on_host(c->g, v)) in = v;
    if (in == 0) return imp_fail(c->b.err, IMP_UNSUPPORTED, "the graph looks no token up");
    c->val[in] = ml_input(&c->b, "hidden", ml_shape4(IMP_MIL_F16, 1, ml_node(c, in)->width, 1, c->s));
    if (!c->decode && needs_padding_mask(c, need))
        c->pad_mask = ml_input(&c->b, "mask", ml_shape4(IMP_MIL_F16, 1, 1, 1, c->s));
    for (imp_val v = 1; v <= imp_graph_n(c->g) && c->b.status == IMP_OK; v++) {
        if (!need[v] || v == in || ml_node(c, v)->op == IMP_OP_WEIGHT) continue;
        if (imp_ml_on_host(c->g, v))
            return imp_fail(c->b.err, IMP_UNSUPPORTED,
                            "%s: the graph takes more than one thing from the host", ml_node(c, v)->name);
        c->val[v] = emit(c, v);
    }
    return c->b.status;
}

static imp_status outputs(compiler *c)
{
    char name[32];
    const ml_part *p = c->part;
    if (p->pools) ml_output(&c->b, c->val[imp_graph_output(c->g)], "embedding");
    for (uint32_t i = p->first_kv; i < p->first_kv + p->n_kv && !c->decode; i++) {
        const imp_node *n = imp_graph_kv_layer(c->g, i);
        snprintf(name, sizeof name, "k_%u", i);
        ml_output(&c->b, c->val[n->in[1]], name);
        snprintf(name, sizeof name, "v_%u", i);
        ml_output(&c->b, c->val[n->in[2]], name);
    }
    if (p->to != 0 && (c->decode || p->goes_on)) ml_output(&c->b, c->val[p->to], "hidden_out");
    if (p->head && c->decode) return ml_head(c);
    return c->b.status;
}

imp_status ml_compile(ml_shared *sh, const ml_part *part, bool decode, uint32_t s, const char *name,
                      imp_mil_func *f, imp_error *err)
{
    uint32_t n = imp_graph_n(sh->g) + 1;
    compiler c = {.sh = sh, .g = sh->g, .part = part, .decode = decode, .s = decode ? 1 : s, .n_key = s};
    bool *need = imp_arena_alloc(sh->arena, n);
    c.val = imp_arena_array(sh->arena, n, sizeof *c.val);
    c.weight = imp_arena_array(sh->arena, n, sizeof *c.weight);
    c.rounded = imp_arena_array(sh->arena, n, sizeof *c.rounded);
    if (need == NULL || c.val == NULL || c.weight == NULL || c.rounded == NULL)
        return imp_fail(err, IMP_NOMEM, "out of memory while compiling for Core ML");
    ml_build_init(&c.b, sh->arena, f, name, sh->spec, err);
    ml_needed(sh->g, part, decode, need);
    IMP_TRY(walk(&c, need));
    return outputs(&c);
}
