/* model/bind.c - weights into the graph, every shape compared with what the configuration implies.
 *
 * Place:   between the families' builders and source.c.
 * Idea:    a builder asks by neutral name and gives the shape it needs; a missing tensor, a wrong shape or a type that
 *          is no weight ends the build with a sentence that names the tensor, what it has and what is wanted. */
#include "model/model_int.h"

#include <inttypes.h>
#include <stdio.h>

static bool failed(const imp_binder *b)
{
    return b->status != IMP_OK;
}

static void shape_text(const imp_tensor *t, char *out, size_t n_out)
{
    size_t n = 0;
    for (uint32_t i = 0; i < t->n_dim && n < n_out; i++) {
        int k = snprintf(out + n, n_out - n, "%s%" PRIu64, i ? "x" : "", t->dim[i]);
        n += k > 0 ? (size_t)k : 0;
    }
    if (t->n_dim == 0) snprintf(out, n_out, "scalar");
}

static bool is_weight_type(imp_dtype t)
{
    return t == IMP_AFFINE || imp_dtype_get(t)->to_f32 != NULL;
}

/* Compare with the wanted shape and mark used; false: b->status says why not. */
static bool accept(imp_binder *b, imp_entry *e, uint32_t n_dim, const uint64_t *dim)
{
    const imp_tensor *t = e->t;
    bool same = t->n_dim == n_dim;
    for (uint32_t i = 0; same && i < n_dim; i++) same = t->dim[i] == dim[i];
    if (!same) {
        imp_tensor want = {.n_dim = n_dim};
        for (uint32_t i = 0; i < n_dim; i++) want.dim[i] = dim[i];
        char has_text[96], want_text[96];
        shape_text(t, has_text, sizeof has_text);
        shape_text(&want, want_text, sizeof want_text);
        b->status =
            imp_fail_field(b->err, IMP_FORMAT, "tensor", "tensor %s has shape %s, the configuration wants %s",
                           e->raw, has_text, want_text);
        return false;
    }
    if (!is_weight_type(t->dtype)) {
        b->status =
            imp_fail_field(b->err, IMP_UNSUPPORTED, "tensor", "tensor %s holds %s, which are no weights",
                           e->raw, imp_dtype_get(t->dtype)->name);
        return false;
    }
    e->used = true;
    return true;
}

static void missing(imp_binder *b, const char *key, int layer, int expert, const char *suffix)
{
    char name[192];
    imp_source_spell(b->src, b->s->arch, key, layer, expert, suffix, name, sizeof name);
    b->status =
        imp_fail_field(b->err, IMP_FORMAT, "tensor", "tensor %s is missing: the file is incomplete", name);
}

bool imp_bind_has(const imp_binder *b, const char *key, int layer, const char *suffix)
{
    return imp_source_find(b->src, b->s->arch, key, layer, -1, suffix) != NULL;
}

static imp_val bind(imp_binder *b, const char *key, int layer, const char *suffix, uint32_t n_dim,
                    const uint64_t *dim)
{
    if (failed(b)) return 0;
    imp_entry *e = imp_source_find(b->src, b->s->arch, key, layer, -1, suffix);
    if (!e) {
        missing(b, key, layer, -1, suffix);
        return 0;
    }
    return accept(b, e, n_dim, dim) ? imp_g_weight(b->g, e->raw, e->t) : 0;
}

imp_val imp_bind_matrix(imp_binder *b, const char *key, int layer, uint64_t n, uint64_t k)
{
    return bind(b, key, layer, ".weight", 2, (uint64_t[]){n, k});
}

imp_val imp_bind_vector(imp_binder *b, const char *key, int layer, uint64_t n)
{
    return bind(b, key, layer, ".weight", 1, &n);
}

imp_val imp_bind_bias(imp_binder *b, const char *key, int layer, uint64_t n, imp_presence want)
{
    if (failed(b) || want == IMP_ABSENT) return 0;
    if (want == IMP_IF_PRESENT && !imp_bind_has(b, key, layer, ".bias")) return 0;
    return bind(b, key, layer, ".bias", 1, &n);
}

static imp_val bind_stacked(imp_binder *b, imp_entry *e, imp_tensor *part, uint64_t n, uint64_t k)
{
    uint32_t n_expert = b->s->n_expert;
    if (!accept(b, e, 3, (uint64_t[]){n_expert, n, k})) return 0;
    for (uint32_t i = 0; i < n_expert; i++) part[i] = imp_tensor_index(e->t, i);
    return imp_g_weight_parts(b->g, e->raw, part, n_expert);
}

imp_val imp_bind_experts(imp_binder *b, const char *key, int layer, uint64_t n, uint64_t k)
{
    if (failed(b)) return 0;
    uint32_t n_expert = b->s->n_expert;
    imp_tensor *part = imp_arena_array(b->src->arena, n_expert, sizeof *part);
    if (!part) {
        b->status = imp_fail(b->err, IMP_NOMEM, "out of memory while binding experts");
        return 0;
    }
    char stacked[40];
    snprintf(stacked, sizeof stacked, "%ss", key);
    imp_entry *e = imp_source_find(b->src, b->s->arch, stacked, layer, -1, ".weight");
    if (e) return bind_stacked(b, e, part, n, k);
    const char *name = NULL;
    for (uint32_t i = 0; i < n_expert; i++) {
        e = imp_source_find(b->src, b->s->arch, key, layer, (int)i, ".weight");
        if (!e) {
            missing(b, i ? key : stacked, layer, i ? (int)i : -1, ".weight");
            return 0;
        }
        if (!accept(b, e, 2, (uint64_t[]){n, k})) return 0;
        if (i == 0) name = e->raw;
        if (i > 0 && e->t->dtype != part[0].dtype) {
            b->status =
                imp_fail_field(b->err, IMP_UNSUPPORTED, "tensor", "tensor %s is %s, its first expert is %s",
                               e->raw, imp_dtype_get(e->t->dtype)->name, imp_dtype_get(part[0].dtype)->name);
            return 0;
        }
        part[i] = *e->t;
    }
    return imp_g_weight_parts(b->g, name, part, n_expert);
}

imp_val imp_bind_linear(imp_binder *b, imp_val x, const char *key, int layer, uint64_t n, uint64_t k,
                        imp_presence bias)
{
    imp_val w = imp_bind_matrix(b, key, layer, n, k);
    imp_val c = imp_bind_bias(b, key, layer, n, bias);
    return failed(b) ? 0 : imp_g_linear(b->g, x, w, c);
}

imp_val imp_bind_rms_norm(imp_binder *b, imp_val x, const char *key, int layer, uint64_t width,
                          uint64_t group)
{
    imp_val w = imp_bind_vector(b, key, layer, group ? group : width);
    return failed(b) ? 0 : imp_g_rms_norm(b->g, x, w, (float)b->s->norm_eps, group, b->s->norm_offset);
}

imp_val imp_bind_layer_norm(imp_binder *b, imp_val x, const char *key, int layer, imp_presence bias)
{
    imp_val w = imp_bind_vector(b, key, layer, b->s->n_embd);
    imp_val c = imp_bind_bias(b, key, layer, b->s->n_embd, bias);
    return failed(b) ? 0 : imp_g_layer_norm(b->g, x, w, c, (float)b->s->norm_eps);
}

void imp_bind_qkv(imp_binder *b, imp_val x, int layer, imp_val out[3])
{
    const imp_spec *s = b->s;
    uint64_t n_q = (uint64_t)s->n_head * s->head_dim, n_kv = (uint64_t)s->n_kv_head * s->head_dim;
    memset(out, 0, 3 * sizeof *out);
    if (failed(b)) return;
    if (imp_bind_has(b, "attn_qkv", layer, ".weight")) {
        imp_val qkv = imp_bind_linear(b, x, "attn_qkv", layer, n_q + 2 * n_kv, s->n_embd, s->qkv_bias);
        if (failed(b)) return;
        out[0] = imp_g_slice(b->g, qkv, 0, n_q);
        out[1] = imp_g_slice(b->g, qkv, n_q, n_kv);
        out[2] = imp_g_slice(b->g, qkv, n_q + n_kv, n_kv);
        return;
    }
    out[0] = imp_bind_linear(b, x, "attn_q", layer, n_q, s->n_embd, s->qkv_bias);
    out[1] = imp_bind_linear(b, x, "attn_k", layer, n_kv, s->n_embd, s->qkv_bias);
    out[2] = imp_bind_linear(b, x, "attn_v", layer, n_kv, s->n_embd, s->qkv_bias);
}

void imp_bind_rope(imp_binder *b, int layer, imp_val qkv[3])
{
    if (failed(b)) return;
    const imp_rope_attr *a = b->s->local[layer] ? &b->rope_local : &b->rope;
    qkv[0] = imp_g_rope(b->g, qkv[0], a);
    qkv[1] = imp_g_rope(b->g, qkv[1], a);
}
