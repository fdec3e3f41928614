/* dev/coreml/compile_attn.c - rotary positions, masks and attention of a function.
 *
 * Idea:    with many tokens from position 0 rotations and masks are constants. With one token (decode) they are inputs, and
 *          keys and values are states: new = old * (1 - slot) + this token's * slot, where slot is 1 at its place and 0
 *          elsewhere. That is exact, and takes no op that is known to leave the ANE. */
#include <math.h>
#include <stdio.h>

#include "dev/coreml/compile_int.h"

/* ---- rotary positions ---------------------------------------------------------------------------------------------- */

/* cos (0) or sin (1) of position * inv_freq[i], as [n_rot/2][S]. */
static ml_val rotation(compiler *c, const imp_rope_attr *a, int which, imp_mil_type t)
{
    if (c->decode) {
        uint32_t i = imp_ml_rope_index(c->g, a);
        char name[32];
        snprintf(name, sizeof name, which == 0 ? "cos_%u" : "sin_%u", i);
        if (i >= IMP_ML_MAX_ROPE)
            return ml_stop(c, IMP_UNSUPPORTED, "too many kinds of rotary positions", "rope");
        if (c->turn[i][which] == 0) c->turn[i][which] = ml_input(&c->b, name, t);
        return c->turn[i][which];
    }
    uint64_t half = a->n_rot / 2;
    uint16_t *h = imp_sys_malloc((size_t)(half * c->s) * sizeof *h);
    if (h == NULL) return ml_stop(c, IMP_NOMEM, "out of memory", "rope");
    for (uint64_t i = 0; i < half; i++)
        for (uint64_t p = 0; p < c->s; p++) {
            double angle = (double)((float)p * a->inv_freq[i]);
            h[i * c->s + p] =
                imp_f32_to_f16((float)((which == 0 ? cos(angle) : sin(angle)) * (double)a->mscale));
        }
    ml_val v = ml_table(c, which == 0 ? "rope_cos" : "rope_sin", &t, h);
    imp_sys_free(h);
    return v;
}

/* The pairs a, b turned: a cos - b sin, a sin + b cos. */
static void turn(compiler *c, const char *name, ml_val cosine, ml_val sine, ml_val *a, ml_val *b)
{
    ml_val p = ml_two(c, "sub", name, ml_two(c, "mul", name, *a, cosine), ml_two(c, "mul", name, *b, sine));
    ml_val q = ml_two(c, "add", name, ml_two(c, "mul", name, *a, sine), ml_two(c, "mul", name, *b, cosine));
    *a = p, *b = q;
}

/* Pairs (i, i + n_rot/2): heads (1, H, D, S), cut along D. */
static ml_val rope_halves(compiler *c, const imp_node *n, ml_val x)
{
    const imp_rope_attr *a = &n->u.rope;
    uint64_t half = a->n_rot / 2;
    imp_mil_type t = ml_shape4(IMP_MIL_F16, 1, 1, half, c->s);
    ml_val part[3] = {ml_cut(c, n->name, x, 2, 0, half), ml_cut(c, n->name, x, 2, half, a->n_rot), 0};
    turn(c, n->name, rotation(c, a, 0, t), rotation(c, a, 1, t), &part[0], &part[1]);
    if (a->n_rot < a->head_dim) part[2] = ml_cut(c, n->name, x, 2, a->n_rot, a->head_dim);
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
        rest = ml_cut(c, n->name, x, 2, a->n_rot, a->head_dim);
        x = ml_cut(c, n->name, x, 2, 0, a->n_rot);
    }
    x = ml_reshape(&c->b, n->name, x, heads, half, 2, c->s);
    ml_val part[2] = {ml_cut(c, n->name, x, 2, 0, 1), ml_cut(c, n->name, x, 2, 1, 2)};
    turn(c, n->name, rotation(c, a, 0, t), rotation(c, a, 1, t), &part[0], &part[1]);
    x = ml_concat(&c->b, n->name, part, 2, 2);
    x = ml_reshape(&c->b, n->name, x, 1, heads, a->n_rot, c->s);
    ml_val both[2] = {x, rest};
    return rest != 0 ? ml_concat(&c->b, n->name, both, 2, 2) : x;
}

ml_val ml_rope(compiler *c, const imp_node *n)
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

static ml_val mask_table(compiler *c, const imp_attn_attr *a, bool full)
{
    uint16_t *h = imp_sys_malloc((size_t)(c->s * c->s) * sizeof *h);
    if (h == NULL) return ml_stop(c, IMP_NOMEM, "out of memory", "mask");
    for (uint64_t i = 0; i < c->s; i++)
        for (uint64_t j = 0; j < c->s; j++) h[i * c->s + j] = imp_f32_to_f16(sees(a, i, j) ? 0 : ML_MASKED);
    imp_mil_type t = ml_shape4(IMP_MIL_F16, 1, 1, c->s, c->s);
    ml_val m = ml_table(c, full ? "window_mask" : "causal_mask", &t, h);
    imp_sys_free(h);
    return full ? ml_two(c, "add", "window_mask", m, c->pad_mask) : m;
}

static ml_val mask_input(compiler *c, uint32_t window)
{
    char name[32] = "mask";
    if (window > 0) snprintf(name, sizeof name, "mask_%u", window);
    return ml_input(&c->b, name, ml_shape4(IMP_MIL_F16, 1, 1, 1, c->n_key));
}

/* What is added to the scores [1][1][S query][n_key]: a table for causal masks and windows, an input for padding and for
 * decode. */
static ml_val scores_mask(compiler *c, const imp_attn_attr *a)
{
    bool full = a->mask == IMP_MASK_FULL;
    uint32_t window = a->window < c->n_key ? a->window : 0;
    if (full && window == 0 && !c->decode) return c->pad_mask;
    uint32_t key = (window & 0x7fffffff) | (full ? 0x80000000 : 0);
    for (uint32_t i = 0; i < c->n_mask; i++)
        if (c->mask[i].key == key) return c->mask[i].v;
    if (c->n_mask == ML_MAX_MASK)
        return ml_stop(c, IMP_UNSUPPORTED, "too many kinds of attention windows", "mask");
    ml_val m = c->decode ? mask_input(c, window) : mask_table(c, a, full);
    c->mask[c->n_mask++] = (struct ml_mask){key, m};
    return m;
}

/* This token's keys or values x [1][width][1][1] put among the others: [1][n_kv_head][head_dim][n_key]. */
static ml_val cached(compiler *c, const imp_node *n, ml_val x, char kind)
{
    const imp_attn_attr *a = &n->u.attn;
    ml_build *b = &c->b;
    char name[32];
    imp_mil_type t = ml_shape4(IMP_MIL_F16, 1, a->n_kv_head, a->head_dim, c->n_key);
    t.state = true;
    snprintf(name, sizeof name, "%c_cache_%d", kind, a->kv_layer);
    if (c->slot == 0) {
        c->slot = ml_input(b, "slot", ml_shape4(IMP_MIL_F16, 1, 1, 1, c->n_key));
        c->keep = ml_two(c, "sub", "keep", ml_f16(b, 1), c->slot);
    }
    ml_val state = ml_input(b, name, t), old = ml_op(b, "read_state", name, "input", state, NULL);
    x = ml_reshape(b, n->name, x, 1, a->n_kv_head, a->head_dim, 1);
    x = ml_two(c, "add", name, ml_two(c, "mul", name, old, c->keep), ml_two(c, "mul", name, x, c->slot));
    (void)ml_op(b, "write_state", name, "input", state, "data", x, NULL);
    return x;
}

static ml_val one_head(compiler *c, const imp_node *n, ml_val q, ml_val k, ml_val v, ml_val mask)
{
    ml_build *b = &c->b;
    ml_val yes = ml_flag(b, true), no = ml_flag(b, false);
    ml_val s = ml_op(b, "matmul", n->name, "x", q, "y", k, "transpose_x", yes, "transpose_y", no, NULL);
    if (n->u.attn.softcap > 0) s = ml_softcap(c, n->name, s, n->u.attn.softcap);
    s = ml_two(c, "add", n->name, s, mask);
    s = ml_op(b, "softmax", n->name, "x", s, "axis", ml_i32(b, -1), NULL);
    return ml_op(b, "matmul", n->name, "x", v, "y", s, "transpose_x", no, "transpose_y", yes, NULL);
}

/* x [1][n * dim][1][S], or already [1][n][dim][S], in single heads. */
static void heads_of(compiler *c, const char *name, ml_val x, uint32_t n, uint32_t dim, ml_val *out)
{
    if (c->b.status == IMP_OK && ml_type_of(&c->b, x)->dim[1] != n)
        x = ml_reshape(&c->b, name, x, 1, n, dim, c->s);
    if (n == 1)
        out[0] = x;
    else
        ml_split(&c->b, name, x, n, 1, out);
}

ml_val ml_attention(compiler *c, const imp_node *n)
{
    const imp_attn_attr *a = &n->u.attn;
    ml_val q[IMP_MIL_MAX_OUT], k[IMP_MIL_MAX_OUT], v[IMP_MIL_MAX_OUT], mask = scores_mask(c, a);
    ml_val scaled = ml_two(c, "mul", n->name, c->val[n->in[0]], ml_f16(&c->b, a->scale));
    ml_val keys = c->val[n->in[1]], values = c->val[n->in[2]];
    if (c->decode) keys = cached(c, n, keys, 'k'), values = cached(c, n, values, 'v');
    heads_of(c, n->name, scaled, a->n_head, a->head_dim, q);
    heads_of(c, n->name, keys, a->n_kv_head, a->head_dim, k);
    heads_of(c, n->name, values, a->n_kv_head, a->head_dim, v);
    for (uint32_t h = 0; h < a->n_head && c->b.status == IMP_OK; h++) {
        uint32_t g = h / (a->n_head / a->n_kv_head);
        q[h] = one_head(c, n, q[h], k[g], v[g], mask);
    }
    ml_val y = a->n_head == 1 ? q[0] : ml_concat(&c->b, n->name, q, a->n_head, 1);
    return ml_reshape(&c->b, n->name, y, 1, (uint64_t)a->n_head * a->head_dim, 1, c->s);
}
