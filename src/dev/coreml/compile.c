/* dev/coreml/compile.c - IR nodes to ops of an ML Program in the form that suits the ANE.
 *
 * Place:   convert.c calls it, once a length and chunk.
 * Shapes:  a value of the IR [tok][width] is a tensor (1, width, 1, S), fp16; what a head sees is (1, 1, head_dim, S).
 * Always:  no op has a last dimension of 1 but the weights of norms; no transpose but the flags of matmul. */
#include "dev/coreml/compile.h"

#include <math.h>
#include <stdio.h>

#include "tensor/tensor.h"

enum { CLAMP = 30000, MASKED = -10000 };

typedef struct compiler {
    ml_shared *sh;
    const imp_graph *g;
    ml_build b;
    const ml_part *part;
    uint64_t s;
    ml_val *val;      /* [n + 1] of nodes */
    ml_val *weight;   /* [n + 1] of weight nodes that are in this function */
    ml_val mask_in;   /* the input "mask" */
    ml_val causal[2]; /* mask tables of this function by index below */
    uint32_t window[2];
    int n_mask;
} compiler;

static const imp_node *node(const compiler *c, imp_val v)
{
    return imp_graph_node(c->g, v);
}

static ml_val stop(compiler *c, imp_status s, const char *what, const char *name)
{
    if (c->b.status == IMP_OK) c->b.status = imp_fail(c->b.err, s, "%s: %s", name, what);
    return 0;
}

/* ---- weights -------------------------------------------------------------------------------------------------- */

/* An fp16 table in weight.bin; equal tables share one. */
static ml_val table(compiler *c, const char *name, const imp_mil_type *t, const uint16_t *data)
{
    ml_shared *sh = c->sh;
    uint64_t n = imp_mil_n_elem(t), hash = imp_hash(data, (size_t)n * 2, n);
    imp_mil_value v = {.type = *t, .blob = true};
    if (c->b.status != IMP_OK) return 0;
    for (uint32_t i = 0; i < sh->n_blob; i++)
        if (sh->blob[i].hash == hash && sh->blob[i].n == n) {
            v.offset = sh->blob[i].offset;
            return ml_const(&c->b, name, &v);
        }
    if (sh->n_blob == sh->cap_blob) {
        uint32_t cap = sh->cap_blob > 0 ? 2 * sh->cap_blob : 64;
        void *p = imp_arena_array(sh->arena, cap, sizeof *sh->blob);
        if (p == NULL) return stop(c, IMP_NOMEM, "out of memory", name);
        if (sh->n_blob > 0) memcpy(p, sh->blob, sh->n_blob * sizeof *sh->blob);
        sh->blob = p;
        sh->cap_blob = cap;
    }
    c->b.status = imp_mlwriter_blob(sh->w, IMP_MIL_F16, n, &v.offset, c->b.err);
    if (c->b.status == IMP_OK) c->b.status = imp_mlwriter_data(sh->w, data, n * 2, c->b.err);
    if (c->b.status != IMP_OK) return 0;
    sh->blob[sh->n_blob++] = (struct ml_blob){hash, n, v.offset};
    sh->report->bytes += n * 2;
    return ml_const(&c->b, name, &v);
}

/* A weight vector (+ add) as a table of the given shape. */
static ml_val vector(compiler *c, imp_val w, float add, imp_mil_type t)
{
    const imp_node *n = node(c, w);
    uint64_t k = imp_mil_n_elem(&t);
    float *x = imp_sys_malloc((size_t)k * sizeof *x);
    uint16_t *h = imp_sys_malloc((size_t)k * sizeof *h);
    ml_val v = 0;
    if (x == NULL || h == NULL) {
        stop(c, IMP_NOMEM, "out of memory", n->name);
    } else {
        imp_tensor_row_f32(&n->u.weight.part[0], 0, x);
        for (uint64_t i = 0; i < k; i++) h[i] = imp_f32_to_f16(fmaxf(-65504, fminf(65504, x[i] + add)));
        v = table(c, n->name, &t, h);
    }
    imp_sys_free(x);
    imp_sys_free(h);
    return v;
}

static imp_status report(ml_shared *sh, const imp_node *n, const imp_ml_packed *p)
{
    imp_ml_report *r = sh->report;
    imp_ml_weight_report *w = &r->weight[r->n_weight++];
    *w = (imp_ml_weight_report){.name = imp_arena_strndup(r->arena, n->name, strlen(n->name)),
                                .n = p->n,
                                .k = p->k,
                                .bytes = p->bytes,
                                .error = p->sum2 > 0 ? sqrt(p->err2 / p->sum2) : 0,
                                .n_clamped = p->n_clamped};
    if (w->name == NULL) return IMP_NOMEM;
    imp_ml_packing_text(&p->how, w->how);
    r->bytes += p->bytes;
    r->half_bytes += p->n * p->k * 2;
    r->worst_error = fmax(r->worst_error, w->error);
    return IMP_OK;
}

static imp_ml_packed *packed(compiler *c, imp_val w)
{
    ml_shared *sh = c->sh;
    const imp_node *n = node(c, w);
    if (sh->packed[w] != NULL || c->b.status != IMP_OK) return sh->packed[w];
    const imp_tensor *t = &n->u.weight.part[0];
    imp_ml_packed *p = imp_arena_alloc(sh->arena, sizeof *p);
    if (p == NULL) return stop(c, IMP_NOMEM, "out of memory", n->name), NULL;
    if (sh->opt->progress != NULL) sh->opt->progress(sh->opt->user, n->name, sh->done, sh->total);
    c->b.status = imp_ml_pack(sh->w, t, &sh->opt->pack, sh->spec, NULL, p, c->b.err);
    if (c->b.status == IMP_OK) c->b.status = report(sh, n, p);
    if (c->b.status != IMP_OK) return NULL;
    sh->done += imp_tensor_bytes(t);
    sh->packed[w] = p;
    return p;
}

/* The weight of a linear layer, (n, k, 1, 1), unpacked by Core ML. */
static ml_val conv_weight(compiler *c, imp_val w)
{
    if (c->weight[w] != 0) return c->weight[w];
    const imp_ml_packed *p = packed(c, w);
    if (p == NULL) return 0;
    const char *name = node(c, w)->name;
    static const int8_t zero = 0;
    static const int32_t axis = 0;
    imp_mil_type t = ml_shape4(IMP_MIL_F16, p->n, p->k, 1, 1);
    if (p->how.kind == IMP_ML_HALF) return c->weight[w] = ml_const(&c->b, name, &p->part[0]);
    if (p->how.kind == IMP_ML_INT8) {
        imp_mil_attr a[4] = {{"quantized_data", p->part[0]},
                             {"zero_point", {.type = {.dtype = IMP_MIL_I8}, .data = &zero}},
                             {"scale", p->part[1]},
                             {"axis", {.type = {.dtype = IMP_MIL_I32}, .data = &axis}}};
        return c->weight[w] = c->sh->spec < 9
                                  ? ml_op_attr(&c->b, "constexpr_affine_dequantize", name, a, 4, &t)
                                  : ml_op_inline(&c->b, "constexpr_affine_dequantize", name, a, 4);
    }
    if (p->how.kind == IMP_ML_INT4) {
        imp_mil_attr a[2] = {{"data", p->part[0]}, {"scale", p->part[1]}};
        return c->weight[w] = ml_op_inline(&c->b, "constexpr_blockwise_shift_scale", name, a, 2);
    }
    imp_mil_attr a[3] = {{"indices", p->part[0]}, {"lut", p->part[1]}};
    if (c->sh->spec >= 9) return c->weight[w] = ml_op_inline(&c->b, "constexpr_lut_to_dense", name, a, 2);
    uint32_t *shape = imp_arena_array(c->sh->arena, 4, sizeof *shape);
    if (shape == NULL) return stop(c, IMP_NOMEM, "out of memory", name);
    shape[0] = (uint32_t)p->n, shape[1] = (uint32_t)p->k, shape[2] = shape[3] = 1;
    a[2] = (imp_mil_attr){"shape", {.type = {.dtype = IMP_MIL_U32, .rank = 1, .dim = {4}}, .data = shape}};
    return c->weight[w] = ml_op_attr(&c->b, "constexpr_lut_to_dense", name, a, 3, &t);
}

/* ---- simple ops -------------------------------------------------------------------------------------------------- */

static ml_val two(compiler *c, const char *type, const char *name, ml_val x, ml_val y)
{
    return ml_op(&c->b, type, name, "x", x, "y", y, NULL);
}

static ml_val one(compiler *c, const char *type, const char *name, ml_val x)
{
    return ml_op(&c->b, type, name, "x", x, NULL);
}

static ml_val linear(compiler *c, const imp_node *n)
{
    static const int32_t ones[2] = {1, 1}, zeros[4] = {0};
    ml_build *b = &c->b;
    ml_val w = conv_weight(c, n->in[1]), bias = 0;
    if (n->n_in > 2 && n->in[2] != 0)
        bias = vector(c, n->in[2], 0, (imp_mil_type){.dtype = IMP_MIL_F16, .rank = 1, .dim = {n->width}});
    return ml_op(b, "conv", n->name, "x", c->val[n->in[0]], "weight", w, "bias", bias, "strides",
                 ml_i32s(b, ones, 2), "pad_type", ml_text(b, "valid"), "pad", ml_i32s(b, zeros, 4),
                 "dilations", ml_i32s(b, ones, 2), "groups", ml_i32(b, 1), NULL);
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

static ml_val softcap(compiler *c, const char *name, ml_val x, float cap)
{
    x = one(c, "tanh", name, two(c, "mul", name, x, ml_f16(&c->b, 1 / cap)));
    return two(c, "mul", name, x, ml_f16(&c->b, cap));
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
    x = ml_op(b, "clip", name, "x", x, "alpha", ml_f16(b, -CLAMP), "beta", ml_f16(b, CLAMP), NULL);
    if (center) x = two(c, "sub", name, x, reduce(c, "reduce_mean", name, x, axis));
    ml_val m = reduce(c, "reduce_max", name, one(c, "abs", name, x), axis);
    ml_val inv = two(c, "real_div", name, ml_f16(b, 1), two(c, "maximum", name, m, ml_f16(b, 1e-4f)));
    ml_val z = two(c, "mul", name, x, inv), e = two(c, "mul", name, inv, ml_f16(b, sqrtf(eps)));
    ml_val v = reduce(c, "reduce_mean", name, two(c, "mul", name, z, z), axis);
    v = two(c, "add", name, v, two(c, "mul", name, e, e));
    return two(c, "mul", name, z, ml_op(b, "rsqrt", name, "x", v, "epsilon", ml_f16(b, 1e-7f), NULL));
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
        x = two(c, "mul", n->name, x, vector(c, n->in[1], center ? 0 : n->u.norm.w_offset, t));
    if (n->n_in > 2 && n->in[2] != 0) x = two(c, "add", n->name, x, vector(c, n->in[2], 0, t));
    if (heads > 1) x = ml_reshape(&c->b, n->name, x, 1, n->width, 1, c->s);
    return x;
}

static ml_val cut(compiler *c, const char *name, ml_val x, int axis, uint64_t from, uint64_t to)
{
    const imp_mil_type *t = ml_type_of(&c->b, x);
    int32_t begin[4] = {0}, end[4];
    for (int i = 0; i < 4; i++) end[i] = (int32_t)t->dim[i];
    begin[axis] = (int32_t)from;
    end[axis] = (int32_t)to;
    return ml_op(&c->b, "slice_by_index", name, "x", x, "begin", ml_i32s(&c->b, begin, 4), "end",
                 ml_i32s(&c->b, end, 4), NULL);
}

/* ---- rotary positions ---------------------------------------------------------------------------------------------- */

/* cos (0) or sin (1) of position * inv_freq[i], as [n_rot/2][S]. */
static ml_val rotation(compiler *c, const imp_rope_attr *a, int which, imp_mil_type t)
{
    uint64_t half = a->n_rot / 2;
    uint16_t *h = imp_sys_malloc((size_t)(half * c->s) * sizeof *h);
    if (h == NULL) return stop(c, IMP_NOMEM, "out of memory", "rope");
    for (uint64_t i = 0; i < half; i++)
        for (uint64_t p = 0; p < c->s; p++) {
            double angle = (double)((float)p * a->inv_freq[i]);
            h[i * c->s + p] =
                imp_f32_to_f16((float)((which == 0 ? cos(angle) : sin(angle)) * (double)a->mscale));
        }
    ml_val v = table(c, which == 0 ? "rope_cos" : "rope_sin", &t, h);
    imp_sys_free(h);
    return v;
}

/* The pairs a, b turned: a cos - b sin, a sin + b cos. */
static void turn(compiler *c, const char *name, ml_val cosine, ml_val sine, ml_val *a, ml_val *b)
{
    ml_val p = two(c, "sub", name, two(c, "mul", name, *a, cosine), two(c, "mul", name, *b, sine));
    ml_val q = two(c, "add", name, two(c, "mul", name, *a, sine), two(c, "mul", name, *b, cosine));
    *a = p, *b = q;
}

/* Pairs (i, i + n_rot/2): heads (1, H, D, S), cut along D. */
static ml_val rope_halves(compiler *c, const imp_node *n, ml_val x)
{
    const imp_rope_attr *a = &n->u.rope;
    uint64_t half = a->n_rot / 2;
    imp_mil_type t = ml_shape4(IMP_MIL_F16, 1, 1, half, c->s);
    ml_val part[3] = {cut(c, n->name, x, 2, 0, half), cut(c, n->name, x, 2, half, a->n_rot), 0};
    turn(c, n->name, rotation(c, a, 0, t), rotation(c, a, 1, t), &part[0], &part[1]);
    if (a->n_rot < a->head_dim) part[2] = cut(c, n->name, x, 2, a->n_rot, a->head_dim);
    return ml_concat(&c->b, n->name, part, part[2] != 0 ? 3 : 2, 2);
}

/* Pairs (0, 1), (2, 3), ...: heads (H, D/2, 2, S), cut along the pair. */
static ml_val rope_pairs(compiler *c, const imp_node *n, ml_val x)
{
    const imp_rope_attr *a = &n->u.rope;
    uint64_t half = a->n_rot / 2, heads = n->width / a->head_dim;
    imp_mil_type t = ml_shape4(IMP_MIL_F16, 1, half, 1, c->s);
    ml_val rest = 0;
    if (a->n_rot < a->head_dim) {
        rest = cut(c, n->name, x, 2, a->n_rot, a->head_dim);
        x = cut(c, n->name, x, 2, 0, a->n_rot);
    }
    x = ml_reshape(&c->b, n->name, x, heads, half, 2, c->s);
    ml_val part[2] = {cut(c, n->name, x, 2, 0, 1), cut(c, n->name, x, 2, 1, 2)};
    turn(c, n->name, rotation(c, a, 0, t), rotation(c, a, 1, t), &part[0], &part[1]);
    x = ml_concat(&c->b, n->name, part, 2, 2);
    x = ml_reshape(&c->b, n->name, x, 1, heads, a->n_rot, c->s);
    ml_val both[2] = {x, rest};
    return rest != 0 ? ml_concat(&c->b, n->name, both, 2, 2) : x;
}

static ml_val rope(compiler *c, const imp_node *n)
{
    const imp_rope_attr *a = &n->u.rope;
    ml_val x = ml_reshape(&c->b, n->name, c->val[n->in[0]], 1, n->width / a->head_dim, a->head_dim, c->s);
    if (c->b.status != IMP_OK) return 0;
    x = a->interleaved ? rope_pairs(c, n, x) : rope_halves(c, n, x);
    return ml_reshape(&c->b, n->name, x, 1, n->width, 1, c->s);
}

/* ---- attention -------------------------------------------------------------------------------------------------------- */

static bool sees(const imp_attn_attr *a, uint64_t i, uint64_t j)
{
    uint64_t distance = i > j ? i - j : j - i;
    if (a->mask == IMP_MASK_CAUSAL) return j <= i && (a->window == 0 || distance < a->window);
    return a->window == 0 || distance <= a->window;
}

/* What is added to the scores [1][1][S query][S key]: a table for causal masks and windows, the input for padding. */
static ml_val scores_mask(compiler *c, const imp_attn_attr *a)
{
    bool full = a->mask == IMP_MASK_FULL, windowed = a->window > 0 && a->window < c->s;
    if (full && !windowed) return c->mask_in;
    uint32_t key = (a->window & 0x7fffffff) | (full ? 0x80000000 : 0);
    for (int i = 0; i < c->n_mask; i++)
        if (c->window[i] == key) return c->causal[i];
    uint16_t *h = imp_sys_malloc((size_t)(c->s * c->s) * sizeof *h);
    if (h == NULL) return stop(c, IMP_NOMEM, "out of memory", "mask");
    for (uint64_t i = 0; i < c->s; i++)
        for (uint64_t j = 0; j < c->s; j++) h[i * c->s + j] = imp_f32_to_f16(sees(a, i, j) ? 0 : MASKED);
    imp_mil_type t = ml_shape4(IMP_MIL_F16, 1, 1, c->s, c->s);
    ml_val m = table(c, full ? "window_mask" : "causal_mask", &t, h);
    imp_sys_free(h);
    if (full) m = two(c, "add", "window_mask", m, c->mask_in);
    if (c->n_mask < 2) {
        c->window[c->n_mask] = key;
        c->causal[c->n_mask++] = m;
    }
    return m;
}

static ml_val one_head(compiler *c, const imp_node *n, ml_val q, ml_val k, ml_val v, ml_val mask)
{
    ml_build *b = &c->b;
    ml_val yes = ml_flag(b, true), no = ml_flag(b, false);
    ml_val s = ml_op(b, "matmul", n->name, "x", q, "y", k, "transpose_x", yes, "transpose_y", no, NULL);
    if (n->u.attn.softcap > 0) s = softcap(c, n->name, s, n->u.attn.softcap);
    s = two(c, "add", n->name, s, mask);
    s = ml_op(b, "softmax", n->name, "x", s, "axis", ml_i32(b, -1), NULL);
    return ml_op(b, "matmul", n->name, "x", v, "y", s, "transpose_x", no, "transpose_y", yes, NULL);
}

static void heads_of(compiler *c, const char *name, ml_val x, uint32_t n, uint32_t dim, ml_val *out)
{
    x = ml_reshape(&c->b, name, x, 1, n, dim, c->s);
    if (n == 1)
        out[0] = x;
    else
        ml_split(&c->b, name, x, n, 1, out);
}

static ml_val attention(compiler *c, const imp_node *n)
{
    const imp_attn_attr *a = &n->u.attn;
    ml_val q[IMP_MIL_MAX_OUT], k[IMP_MIL_MAX_OUT], v[IMP_MIL_MAX_OUT], mask = scores_mask(c, a);
    ml_val scaled = two(c, "mul", n->name, c->val[n->in[0]], ml_f16(&c->b, a->scale));
    heads_of(c, n->name, scaled, a->n_head, a->head_dim, q);
    heads_of(c, n->name, c->val[n->in[1]], a->n_kv_head, a->head_dim, k);
    heads_of(c, n->name, c->val[n->in[2]], a->n_kv_head, a->head_dim, v);
    for (uint32_t h = 0; h < a->n_head && c->b.status == IMP_OK; h++) {
        uint32_t g = h / (a->n_head / a->n_kv_head);
        q[h] = one_head(c, n, q[h], k[g], v[g], mask);
    }
    ml_val y = a->n_head == 1 ? q[0] : ml_concat(&c->b, n->name, q, a->n_head, 1);
    return ml_reshape(&c->b, n->name, y, 1, (uint64_t)a->n_head * a->head_dim, 1, c->s);
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

const char *ml_refuses(const imp_graph *g, imp_val v)
{
    const imp_node *n = imp_graph_node(g, v);
    switch (n->op) {
    case IMP_OP_MOE: return "mixtures of experts have no form for the ANE yet";
    case IMP_OP_L2_NORM: return "normalisation of vectors is the host's";
    case IMP_OP_GATHER: return "picking rows is the host's";
    case IMP_OP_ATTN:
        if (n->n_in > 3 && n->in[3] != 0) return "attention sinks have no form for the ANE yet";
        return n->u.attn.n_head > IMP_MIL_MAX_OUT ? "too many heads" : NULL;
    case IMP_OP_WEIGHT:
        return n->u.weight.n_part != 1 ? "weights in parts have no form for the ANE yet" : NULL;
    case IMP_OP_EMBED: return NULL;
    default:
        return n->rows == IMP_ROWS_TOK || n->op == IMP_OP_POOL ? NULL
                                                               : "it works on rows that the host picks";
    }
}

static ml_val emit(compiler *c, imp_val v)
{
    const imp_node *n = node(c, v);
    const char *why = ml_refuses(c->g, v), *name = n->name[0] ? n->name : imp_op_name(n->op);
    if (why != NULL) return stop(c, IMP_UNSUPPORTED, why, name);
    switch (n->op) {
    case IMP_OP_LINEAR: return linear(c, n);
    case IMP_OP_RMS_NORM:
    case IMP_OP_LAYER_NORM: return norm(c, n);
    case IMP_OP_ADD: return two(c, "add", name, c->val[n->in[0]], c->val[n->in[1]]);
    case IMP_OP_MUL: return two(c, "mul", name, c->val[n->in[0]], c->val[n->in[1]]);
    case IMP_OP_SCALE: return two(c, "mul", name, c->val[n->in[0]], ml_f16(&c->b, n->u.scale.c));
    case IMP_OP_SOFTCAP: return softcap(c, name, c->val[n->in[0]], n->u.scale.c);
    case IMP_OP_ACT: return activate(c, n->u.act.act, name, c->val[n->in[0]]);
    case IMP_OP_GLU:
        return two(c, "mul", name, activate(c, n->u.act.act, name, c->val[n->in[0]]), c->val[n->in[1]]);
    case IMP_OP_SLICE:
        return c->b.status == IMP_OK
                   ? cut(c, name, c->val[n->in[0]], 1, n->u.slice.begin, n->u.slice.begin + n->width)
                   : 0;
    case IMP_OP_ROPE: return rope(c, n);
    case IMP_OP_ATTN: return attention(c, n);
    case IMP_OP_POOL: return pool(c, n);
    default: return stop(c, IMP_UNSUPPORTED, "it has no form for the ANE", name);
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

void ml_needed(const imp_graph *g, const ml_part *part, bool *need)
{
    memset(need, 0, imp_graph_n(g) + 1);
    if (part->pools) want(g, imp_graph_output(g), part->from, need);
    want(g, part->to, part->from, need);
    for (uint32_t i = part->first_kv; i < part->first_kv + part->n_kv; i++) {
        want(g, imp_graph_kv_layer(g, i)->in[1], part->from, need);
        want(g, imp_graph_kv_layer(g, i)->in[2], part->from, need);
    }
}

static bool needs_padding_mask(const compiler *c, const bool *need)
{
    for (imp_val v = 1; v <= imp_graph_n(c->g); v++)
        if (need[v] && node(c, v)->op == IMP_OP_ATTN && node(c, v)->u.attn.mask == IMP_MASK_FULL) return true;
    return false;
}

static imp_status walk(compiler *c, const bool *need)
{
    imp_val in = c->part->from;
    for (imp_val v = 1; v <= imp_graph_n(c->g) && in == 0; v++)
        if (need[v] && imp_ml_on_host(c->g, v)) in = v;
    if (in == 0) return imp_fail(c->b.err, IMP_UNSUPPORTED, "the graph looks no token up");
    c->val[in] = ml_input(&c->b, "hidden", ml_shape4(IMP_MIL_F16, 1, node(c, in)->width, 1, c->s));
    if (needs_padding_mask(c, need))
        c->mask_in = ml_input(&c->b, "mask", ml_shape4(IMP_MIL_F16, 1, 1, 1, c->s));
    for (imp_val v = 1; v <= imp_graph_n(c->g) && c->b.status == IMP_OK; v++) {
        if (!need[v] || v == in || node(c, v)->op == IMP_OP_WEIGHT) continue;
        if (imp_ml_on_host(c->g, v))
            return imp_fail(c->b.err, IMP_UNSUPPORTED,
                            "%s: the graph takes more than one thing from the host", node(c, v)->name);
        c->val[v] = emit(c, v);
    }
    return c->b.status;
}

static imp_status outputs(compiler *c)
{
    char name[32];
    const ml_part *p = c->part;
    if (p->pools) ml_output(&c->b, c->val[imp_graph_output(c->g)], "embedding");
    for (uint32_t i = p->first_kv; i < p->first_kv + p->n_kv; i++) {
        const imp_node *n = imp_graph_kv_layer(c->g, i);
        snprintf(name, sizeof name, "k_%u", i);
        ml_output(&c->b, c->val[n->in[1]], name);
        snprintf(name, sizeof name, "v_%u", i);
        ml_output(&c->b, c->val[n->in[2]], name);
    }
    if (p->to != 0) ml_output(&c->b, c->val[p->to], "hidden_out");
    return c->b.status;
}

imp_status ml_compile(ml_shared *sh, const ml_part *part, uint32_t s, const char *name, imp_mil_func *f,
                      imp_error *err)
{
    uint32_t n = imp_graph_n(sh->g) + 1;
    compiler c = {.sh = sh, .g = sh->g, .part = part, .s = s};
    bool *need = imp_arena_alloc(sh->arena, n);
    c.val = imp_arena_array(sh->arena, n, sizeof *c.val);
    c.weight = imp_arena_array(sh->arena, n, sizeof *c.weight);
    if (need == NULL || c.val == NULL || c.weight == NULL)
        return imp_fail(err, IMP_NOMEM, "out of memory while compiling for Core ML");
    ml_build_init(&c.b, sh->arena, f, name, sh->spec, err);
    ml_needed(sh->g, part, need);
    IMP_TRY(walk(&c, need));
    return outputs(&c);
}
