/* model/config_gguf.c - GGUF metadata into the neutral configuration.
 *
 * Place:   called by net.c; reads keys "<architecture>.<name>" through fmt/gguf.h.
 * Idea:    what GGUF leaves out (activation, biases, which layers have a window) comes from the architecture's row or
 *          from which tensors are there. A key that would change the result and is not understood is refused.
 * Source:  the key names and defaults of GGUF files as llama.cpp writes and reads them. */
#include "model/model_int.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

typedef struct reader {
    const imp_gguf *g;
    const char *prefix;
    imp_net_source *src;
    imp_spec *s;
    imp_error *err;
} reader;

static const char *full_key(const reader *r, const char *key, char buf[128])
{
    snprintf(buf, 128, "%s.%s", r->prefix, key);
    return buf;
}

static imp_status wrong_type(const reader *r, const char *key, const char *want)
{
    return imp_fail_field(r->err, IMP_FORMAT, key, "GGUF key %s must be %s", key, want);
}

/* A list with one value a layer counts as a number when all are equal. */
static imp_status equal_array(const reader *r, const char *key, uint64_t *out)
{
    imp_gguf_type type;
    uint64_t n;
    if (!imp_gguf_array(r->g, key, &type, &n) || n == 0 || n > IMP_MAX_LAYER)
        return wrong_type(r, key, "a whole number, 0 or more");
    int64_t v[IMP_MAX_LAYER];
    if (!imp_gguf_array_i64(r->g, key, v, n)) return wrong_type(r, key, "a list of whole numbers");
    for (uint64_t i = 1; i < n; i++)
        if (v[i] != v[0])
            return imp_fail_field(r->err, IMP_UNSUPPORTED, key,
                                  "GGUF key %s differs between layers, which is not understood", key);
    if (v[0] < 0) return wrong_type(r, key, "0 or more");
    *out = (uint64_t)v[0];
    return IMP_OK;
}

/* Missing: an error when fallback < 0, else fallback. */
static imp_status get_u32(const reader *r, const char *name, int64_t fallback, uint64_t lo, uint64_t hi,
                          uint32_t *out)
{
    char key[128];
    uint64_t v;
    full_key(r, name, key);
    if (!imp_gguf_has(r->g, key)) {
        if (fallback < 0) return imp_fail_field(r->err, IMP_FORMAT, key, "GGUF key %s is missing", key);
        v = (uint64_t)fallback;
    } else if (!imp_gguf_u64(r->g, key, &v)) {
        IMP_TRY(equal_array(r, key, &v));
    }
    return imp_spec_u32(key, v, lo, hi, out, r->err);
}

static imp_status get_number(const reader *r, const char *name, double fallback, double *out)
{
    char key[128];
    full_key(r, name, key);
    *out = fallback;
    if (!imp_gguf_has(r->g, key)) return IMP_OK;
    if (!imp_gguf_f64(r->g, key, out) || !isfinite(*out)) return wrong_type(r, key, "a number");
    return IMP_OK;
}

static imp_status get_bool(const reader *r, const char *name, bool fallback, bool *out)
{
    char key[128];
    full_key(r, name, key);
    *out = fallback;
    if (imp_gguf_has(r->g, key) && !imp_gguf_bool(r->g, key, out)) return wrong_type(r, key, "true or false");
    return IMP_OK;
}

/* Keys that relatives of our architectures have and that change the result: only the value given passes. */
static imp_status refuse_unknown(const reader *r)
{
    const struct {
        const char *name;
        double a, b; /* either is harmless */
    } keys[] = {
        {"expert_shared_count", 0, 0},
        {"expert_shared_feed_forward_length", 0, 0},
        {"expert_weights_scale", 0, 1},
        {"expert_gating_func", 0, 1},
        {"expert_group_count", 0, 1},
        {"leading_dense_block_count", 0, 0},
        {"logit_scale", 0, 1},
        {"residual_scale", 0, 1},
        {"embedding_scale", 0, 1},
        {"attention.clamp_kqv", 0, 0},
        {"attention.max_alibi_bias", 0, 0},
        {"attention.output_scale", 0, 1},
        {"attention.value_scale", 0, 1},
        {"moe_every_n_layers", 0, 0},
        {"nextn_predict_layers", 0, 0},
        {"router_logit_softcapping", 0, 0},
        {"rope.scaling.alpha", 0, 0},
        {"rope.scaling.yarn_log_multiplier", 0, 0},
        {"attention.temperature_scale", 0, 0},
        {"embedding_length_out", 0, r->s->n_embd},
    };
    char key[128];
    for (size_t i = 0; i < IMP_COUNT(keys); i++) {
        double v;
        if (!imp_gguf_has(r->g, full_key(r, keys[i].name, key))) continue;
        if (imp_gguf_f64(r->g, key, &v) && (v == keys[i].a || v == keys[i].b)) continue;
        return imp_fail_field(r->err, IMP_UNSUPPORTED, key,
                              "GGUF key %s changes the model in a way this program does not understand", key);
    }
    static const char *const lists[] = {"rope.dimension_sections", "dense_2_feat_out", "dense_3_feat_in"};
    for (size_t i = 0; i < IMP_COUNT(lists); i++)
        if (imp_gguf_has(r->g, full_key(r, lists[i], key)))
            return imp_fail_field(r->err, IMP_UNSUPPORTED, key,
                                  "GGUF key %s changes the model in a way this program does not understand",
                                  key);
    bool encoder = r->s->arch->family != IMP_FAMILY_DECODER, causal;
    IMP_TRY(get_bool(r, "attention.causal", !encoder, &causal));
    if (causal == encoder)
        return imp_fail(r->err, IMP_UNSUPPORTED, "a %s model with%s causal attention is not understood",
                        r->s->arch->name, causal ? "" : "out");
    return IMP_OK;
}

static imp_status read_sizes(const reader *r)
{
    imp_spec *s = r->s;
    uint32_t value_dim;
    IMP_TRY(get_u32(r, "block_count", -1, 1, IMP_MAX_LAYER, &s->n_layer));
    IMP_TRY(get_u32(r, "embedding_length", -1, 1, IMP_MAX_EMBD, &s->n_embd));
    IMP_TRY(get_u32(r, "attention.head_count", -1, 1, IMP_MAX_HEAD, &s->n_head));
    IMP_TRY(get_u32(r, "attention.head_count_kv", s->n_head, 1, IMP_MAX_HEAD, &s->n_kv_head));
    char key[128];
    if (s->n_embd % s->n_head != 0 && !imp_gguf_has(r->g, full_key(r, "attention.key_length", key)))
        return imp_fail_field(r->err, IMP_FORMAT, key,
                              "a width of %u is not divisible by %u heads, and %s is missing", s->n_embd,
                              s->n_head, key);
    IMP_TRY(get_u32(r, "attention.key_length", s->n_embd / s->n_head, 1, IMP_MAX_HEAD_DIM, &s->head_dim));
    IMP_TRY(get_u32(r, "attention.value_length", s->head_dim, 1, IMP_MAX_HEAD_DIM, &value_dim));
    if (value_dim != s->head_dim)
        return imp_fail(r->err, IMP_UNSUPPORTED, "keys of %u and values of %u dimensions are not understood",
                        s->head_dim, value_dim);
    IMP_TRY(get_u32(r, "rope.dimension_count", s->head_dim, 2, IMP_MAX_HEAD_DIM, &s->n_rot));
    IMP_TRY(get_u32(r, "feed_forward_length", -1, 1, IMP_MAX_FF, &s->n_ff));
    IMP_TRY(get_u32(r, "context_length", -1, 1, IMP_MAX_CTX, &s->n_ctx_train));
    bool rms = s->arch->family == IMP_FAMILY_DECODER;
    full_key(r, rms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon", key);
    if (!imp_gguf_f64(r->g, key, &s->norm_eps))
        return imp_fail_field(r->err, IMP_FORMAT, key, "GGUF key %s is missing or no number", key);
    return IMP_OK;
}

static imp_status read_experts(const reader *r)
{
    imp_spec *s = r->s;
    IMP_TRY(get_u32(r, "expert_count", 0, 0, IMP_MAX_EXPERT, &s->n_expert));
    if (s->n_expert == 0) return IMP_OK;
    bool mixtral = strcmp(s->arch->name, "llama") == 0;
    if (!mixtral && strcmp(s->arch->name, "qwen3moe") != 0)
        return imp_fail(r->err, IMP_UNSUPPORTED, "%s models with experts are not understood", s->arch->name);
    IMP_TRY(get_u32(r, "expert_used_count", -1, 1, IMP_MAX_EXPERT, &s->n_expert_used));
    IMP_TRY(get_u32(r, "expert_feed_forward_length", s->n_ff, 1, IMP_MAX_FF, &s->n_ff_exp));
    IMP_TRY(get_bool(r, "expert_weights_norm", true, &s->norm_topk));
    for (uint32_t i = 0; i < s->n_layer; i++)
        s->sparse[i] = imp_source_find(r->src, s->arch, "ffn_gate_inp", (int)i, -1, ".weight") != NULL;
    return IMP_OK;
}

static imp_status read_window(const reader *r)
{
    imp_spec *s = r->s;
    char key[128];
    bool gemma2 = strcmp(s->arch->name, "gemma2") == 0;
    IMP_TRY(get_u32(r, "attention.sliding_window", gemma2 ? 4096 : 0, 0, IMP_MAX_CTX, &s->window));
    if (s->arch->family == IMP_FAMILY_MODERNBERT) s->window /= 2;
    if (s->window == 0) return IMP_OK;
    full_key(r, "attention.sliding_window_pattern", key);
    imp_gguf_type type;
    uint64_t n;
    if (imp_gguf_array(r->g, key, &type, &n)) {
        int64_t v[IMP_MAX_LAYER];
        if (n != s->n_layer || !imp_gguf_array_i64(r->g, key, v, n))
            return wrong_type(r, key, "a list with one entry a layer");
        for (uint32_t i = 0; i < s->n_layer; i++) s->local[i] = v[i] != 0;
        return IMP_OK;
    }
    uint32_t period;
    IMP_TRY(get_u32(r, "attention.sliding_window_pattern", 0, 0, IMP_MAX_LAYER, &period));
    return imp_spec_set_local(s, period, r->err);
}

/* A tensor of factors, one for each pair of rotated dimensions; NULL when absent. */
static imp_status read_factors(const reader *r, const char *name, const float **out)
{
    imp_entry *e = imp_source_find(r->src, r->s->arch, name, -1, -1, ".weight");
    *out = NULL;
    if (!e) return IMP_OK;
    uint32_t n = r->s->n_rot / 2;
    if (e->t->n_dim != 1 || e->t->dim[0] != n || !imp_dtype_get(e->t->dtype)->to_f32)
        return imp_fail_field(r->err, IMP_FORMAT, "tensor", "tensor %s must hold %u factors", e->raw, n);
    float *f = imp_arena_array(r->src->arena, n, sizeof *f);
    if (!f) return imp_fail(r->err, IMP_NOMEM, "out of memory while reading RoPE factors");
    imp_tensor_row_f32(e->t, 0, f);
    e->used = true;
    r->s->rope.n_factor = n;
    *out = f;
    return IMP_OK;
}

static imp_status read_rope(const reader *r)
{
    imp_spec *s = r->s;
    imp_rope_spec *p = &s->rope;
    char key[128];
    imp_str type;
    double theta, scale, attn, yarn_attn, old_linear;
    IMP_TRY(get_number(r, "rope.freq_base", s->arch->theta > 0 ? s->arch->theta : 10000, &theta));
    imp_rope_default(p, theta);
    full_key(r, "rope.scaling.type", key);
    bool has_type = imp_gguf_str(r->g, key, &type);
    if (imp_gguf_has(r->g, key) && !has_type) return wrong_type(r, key, "a string");
    if (has_type && !imp_rope_kind_from_name(type.p, type.n, &p->kind))
        return imp_fail_field(r->err, IMP_UNSUPPORTED, key, "RoPE type %.*s is not understood",
                              (int)IMP_MIN(type.n, (size_t)40), type.p);
    IMP_TRY(get_number(r, "rope.scale_linear", 0, &old_linear));
    IMP_TRY(get_number(r, "rope.scaling.factor", old_linear, &scale));
    /* A factor without a type is linear. */
    if (!has_type && scale != 0 && scale != 1) p->kind = IMP_ROPE_LINEAR;
    if (p->kind == IMP_ROPE_LINEAR && scale == 0) scale = 1;
    p->factor = scale;
    IMP_TRY(get_number(r, "rope.scaling.original_context_length", s->n_ctx_train, &p->orig_ctx));
    IMP_TRY(get_number(r, "rope.scaling.attn_factor", 1, &attn));
    IMP_TRY(get_number(r, "rope.scaling.yarn_attn_factor", 0, &yarn_attn));
    IMP_TRY(get_number(r, "rope.scaling.yarn_beta_fast", 32, &p->beta_fast));
    IMP_TRY(get_number(r, "rope.scaling.yarn_beta_slow", 1, &p->beta_slow));
    IMP_TRY(read_factors(r, "rope_freqs", &p->divisor));
    IMP_TRY(read_factors(r, "rope_factors_long", &p->long_factor));
    IMP_TRY(read_factors(r, "rope_factors_short", &p->short_factor));
    /* Phi-3 files carry the factors, but older ones no type. */
    if (!has_type && p->long_factor && p->short_factor) p->kind = IMP_ROPE_LONG;
    if (p->kind == IMP_ROPE_LONG) {
        if (p->factor == 0 && p->orig_ctx > 0) p->factor = s->n_ctx_train / p->orig_ctx;
        full_key(r, "rope.scaling.attn_factor", key);
        if (imp_gguf_has(r->g, key)) p->attention_factor = attn;
    } else if (p->kind == IMP_ROPE_YARN) {
        p->attention_factor = yarn_attn;
        p->attention_mul = attn;
        double reach = p->factor * p->orig_ctx;
        if (reach > s->n_ctx_train && reach <= IMP_MAX_CTX) s->n_ctx_train = (uint32_t)reach;
    }
    s->rope_local = *p;
    if (s->arch->theta_local > 0) {
        bool gemma2 = strcmp(s->arch->name, "gemma2") == 0;
        double local;
        IMP_TRY(get_number(r, "rope.freq_base_swa", gemma2 ? theta : s->arch->theta_local, &local));
        if (!gemma2) imp_rope_default(&s->rope_local, local);
        s->rope_local.theta = local;
    }
    return IMP_OK;
}

/* Gemma's 27B models divide by the width of an even share of n_embd, not by head_dim; GGUF does not say so. */
static bool gemma_27b(const imp_spec *s)
{
    return (strcmp(s->arch->name, "gemma2") == 0 && s->n_layer == 46) ||
           (strcmp(s->arch->name, "gemma3") == 0 && s->n_layer == 62);
}

static imp_status read_attention(const reader *r)
{
    imp_spec *s = r->s;
    bool gemma2 = strcmp(s->arch->name, "gemma2") == 0;
    IMP_TRY(get_number(r, "attention.scale", 0, &s->attn_scale));
    if (s->attn_scale == 0 && gemma_27b(s)) s->attn_scale = 1 / sqrt((double)s->n_embd / s->n_head);
    IMP_TRY(get_number(r, "attn_logit_softcapping", gemma2 ? 50 : 0, &s->attn_softcap));
    IMP_TRY(get_number(r, "final_logit_softcapping", gemma2 ? 30 : 0, &s->final_softcap));
    s->interleaved = s->arch->gguf_interleaved;
    return IMP_OK;
}

/* What only the tensors tell: rows of the vocabulary and of token types, biases. */
static imp_status read_tensors(const reader *r)
{
    imp_spec *s = r->s;
    const imp_entry *e = imp_source_find(r->src, s->arch, "token_embd", -1, -1, ".weight");
    if (!e || e->t->n_dim != 2)
        return imp_fail_field(r->err, IMP_FORMAT, "tensor",
                              "tensor token_embd.weight is missing or no matrix");
    IMP_TRY(imp_spec_u32("rows of token_embd.weight", e->t->dim[0], 1, IMP_MAX_VOCAB, &s->n_vocab, r->err));
    e = imp_source_find(r->src, s->arch, "token_types", -1, -1, ".weight");
    if (e) IMP_TRY(imp_spec_u32("rows of token_types.weight", e->t->dim[0], 1, 1024, &s->n_type, r->err));
    bool bert = s->arch->family == IMP_FAMILY_BERT, plain_bert = bert && s->arch->positions;
    s->qkv_bias = s->arch->qkv_bias ? IMP_PRESENT : IMP_IF_PRESENT;
    s->out_bias = s->ffn_bias = plain_bert ? IMP_PRESENT : IMP_IF_PRESENT;
    s->norm_bias = bert ? IMP_PRESENT : IMP_IF_PRESENT;
    s->tied = IMP_IF_PRESENT;
    return IMP_OK;
}

static imp_status read_act(const reader *r)
{
    imp_str act;
    char key[128];
    r->s->act = r->s->arch->act;
    if (!imp_gguf_str(r->g, full_key(r, "hidden_activation", key), &act)) return IMP_OK;
    if (act.n == 4 && memcmp(act.p, "silu", 4) == 0)
        r->s->act = IMP_ACT_SILU;
    else if (act.n == 4 && memcmp(act.p, "gelu", 4) == 0)
        r->s->act = IMP_ACT_GELU;
    else if (act.n == 17 && memcmp(act.p, "gelu_pytorch_tanh", 17) == 0)
        r->s->act = IMP_ACT_GELU_TANH;
    else
        return imp_fail_field(r->err, IMP_UNSUPPORTED, key, "activation %.*s is not understood",
                              (int)IMP_MIN(act.n, (size_t)40), act.p);
    return IMP_OK;
}

static imp_status read_pooling(const reader *r)
{
    imp_spec *s = r->s;
    bool encoder = s->arch->family != IMP_FAMILY_DECODER;
    uint32_t type;
    IMP_TRY(get_u32(r, "pooling_type", 0, 0, 4, &type));
    switch (type) {
    case 1: s->pool = IMP_POOL_MEAN; break;
    case 2: s->pool = IMP_POOL_CLS; break;
    case 3: s->pool = IMP_POOL_LAST; break;
    case 4:
        return imp_fail_field(r->err, IMP_UNSUPPORTED, "pooling_type",
                              "the model scores pairs (pooling type rank), which is not understood");
    default: s->pool = IMP_POOL_MEAN; break;
    }
    s->has_pool = type != 0 || encoder;
    s->normalize = s->has_pool;
    if (type == 0 && encoder)
        imp_log(IMP_LOG_INFO, "the file names no pooling: mean of all tokens, normalised");
    return IMP_OK;
}

/* Adapters and one part of several are GGUF files too, but no model by themselves. */
static imp_status refuse_partial(const imp_gguf *g, imp_error *err)
{
    imp_str type;
    uint64_t n_part;
    if (imp_gguf_u64(g, "split.count", &n_part) && n_part > 1)
        return imp_fail_field(
            err, IMP_UNSUPPORTED, "split.count",
            "the file is one of %" PRIu64 " parts of a model; join them into one file first", n_part);
    if (imp_gguf_str(g, "general.type", &type) && !(type.n == 5 && memcmp(type.p, "model", 5) == 0))
        return imp_fail_field(err, IMP_UNSUPPORTED, "general.type", "the file is of type %.*s, not a model",
                              (int)IMP_MIN(type.n, (size_t)40), type.p);
    return IMP_OK;
}

imp_status imp_spec_from_gguf(imp_net_source *src, imp_spec *s, imp_error *err)
{
    imp_str name;
    IMP_TRY(refuse_partial(src->gguf, err));
    if (!imp_gguf_str(src->gguf, "general.architecture", &name))
        return imp_fail_field(
            err, IMP_FORMAT, "general.architecture",
            "GGUF key general.architecture is missing: the file does not say what the model is");
    const imp_arch *a = imp_arch_from_gguf(name.p, name.n);
    if (!a) {
        imp_buf list = {0};
        imp_arch_list(true, &list);
        imp_status st = imp_fail_field(err, IMP_UNSUPPORTED, "general.architecture",
                                       "architecture %.*s is not understood; known ones: %s",
                                       (int)IMP_MIN(name.n, (size_t)64), name.p, list.data ? list.data : "?");
        imp_buf_deinit(&list);
        return st;
    }
    memset(s, 0, sizeof *s);
    s->arch = a;
    reader r = {.g = src->gguf, .prefix = a->gguf, .src = src, .s = s, .err = err};
    IMP_TRY(read_sizes(&r));
    IMP_TRY(refuse_unknown(&r));
    IMP_TRY(imp_source_index(src, a, err));
    IMP_TRY(read_act(&r));
    IMP_TRY(read_experts(&r));
    IMP_TRY(read_window(&r));
    IMP_TRY(read_rope(&r));
    IMP_TRY(read_attention(&r));
    IMP_TRY(read_tensors(&r));
    IMP_TRY(read_pooling(&r));
    return imp_spec_check(s, err);
}
