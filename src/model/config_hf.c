/* model/config_hf.c - config.json of a Hugging Face or MLX folder into the neutral configuration.
 *
 * Place:   called by net.c; reads parsed JSON through fmt/hf.h.
 * Idea:    one reader with alternatives for a key ("hidden_size|n_embd|dim"); what only some architectures have stands
 *          behind a test of the architecture's data. A key that would change the result and is not understood is refused.
 * Layout:  RoPE stands in rope_parameters (flat, or one object a layer type) in newer files, in rope_theta, rope_scaling
 *          and, for a second base, rope_local_base_freq or local_rope_theta in older ones.
 * Source:  transformers' configuration classes (defaults of keys that may be missing). */
#include "model/model_int.h"

#include <math.h>
#include <stdio.h>

typedef struct reader {
    const json_t *c; /* config.json, or its text_config */
    imp_net_source *src;
    imp_spec *s;
    imp_error *err;
} reader;

/* The first alternative of keys "a|b|c" that is there and not null. */
static const json_t *get(const json_t *o, const char *keys)
{
    char key[64];
    while (*keys) {
        size_t n = strcspn(keys, "|");
        if (n < sizeof key) {
            memcpy(key, keys, n);
            key[n] = 0;
            const json_t *v = json_object_get(o, key);
            if (v && !json_is_null(v)) return v;
        }
        keys += n + (keys[n] == '|');
    }
    return NULL;
}

static imp_status wrong_type(imp_error *err, const char *keys, const char *want)
{
    char key[64];
    snprintf(key, sizeof key, "%.*s", (int)IMP_MIN(strcspn(keys, "|"), sizeof key - 1), keys);
    return imp_fail_field(err, IMP_FORMAT, key, "config.json: %s must be %s", key, want);
}

/* Missing: *out stays, an error when fallback < 0, else fallback. */
static imp_status get_u32(const reader *r, const char *keys, int64_t fallback, uint64_t lo, uint64_t hi,
                          uint32_t *out)
{
    const json_t *v = get(r->c, keys);
    char key[64];
    snprintf(key, sizeof key, "%.*s", (int)IMP_MIN(strcspn(keys, "|"), sizeof key - 1), keys);
    if (!v) {
        if (fallback < 0) return imp_fail_field(r->err, IMP_FORMAT, key, "config.json lacks %s", key);
        return imp_spec_u32(key, (uint64_t)fallback, lo, hi, out, r->err);
    }
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return wrong_type(r->err, keys, "a whole number, 0 or more");
    return imp_spec_u32(key, (uint64_t)json_integer_value(v), lo, hi, out, r->err);
}

static imp_status get_number(const json_t *o, const char *keys, double fallback, double *out, imp_error *err)
{
    const json_t *v = get(o, keys);
    *out = fallback;
    if (!v) return IMP_OK;
    if (!json_is_number(v) || !isfinite(json_number_value(v))) return wrong_type(err, keys, "a number");
    *out = json_number_value(v);
    return IMP_OK;
}

static imp_status get_bool(const json_t *o, const char *keys, bool fallback, bool *out, imp_error *err)
{
    const json_t *v = get(o, keys);
    *out = fallback;
    if (!v) return IMP_OK;
    if (!json_is_boolean(v)) return wrong_type(err, keys, "true or false");
    *out = json_is_true(v);
    return IMP_OK;
}

/* ---- what is refused ------------------------------------------------------------------------- */

/* Keys of relatives of our architectures that change the result; absent, null, false, 0 or the given value pass. */
static imp_status refuse_unknown(const reader *r)
{
    static const struct {
        const char *key, *harmless;
    } keys[] = {
        {"use_bidirectional_attention", NULL},
        {"is_decoder", NULL},
        {"add_cross_attention", NULL},
        {"position_embedding_type", "absolute"},
        {"attention_multiplier", NULL},
        {"residual_multiplier", NULL},
        {"embedding_multiplier", NULL},
        {"logits_scaling", NULL},
        {"moe_every_n_layers", NULL},
        {"prenorm", NULL},
        {"parallel_block", NULL},
        {"rotary_emb_interleaved", NULL},
        {"rotary_emb_scale_base", NULL},
        {"rotary_scaling_factor", NULL},
        {"use_rms_norm", NULL},
        {"num_shared_experts", NULL},
        {"n_shared_experts", NULL},
        {"use_mrope", NULL},
        {"causal", NULL},
        {"altup_num_inputs", NULL},
        {"no_rope_layers", NULL},
        {"use_qk_norm", NULL},
        {"clip_qkv", NULL},
        {"cross_attention_layers", NULL},
    };
    for (size_t i = 0; i < IMP_COUNT(keys); i++) {
        const json_t *v = json_object_get(r->c, keys[i].key);
        if (!v || json_is_null(v) || json_is_false(v)) continue;
        if (json_is_number(v) && json_number_value(v) == 0) continue;
        if (json_is_array(v) && json_array_size(v) == 0) continue;
        const char *text = json_string_value(v);
        if (text && keys[i].harmless && strcmp(text, keys[i].harmless) == 0) continue;
        return imp_fail_field(
            r->err, IMP_UNSUPPORTED, keys[i].key,
            "config.json sets %s%s%s, which changes the model in a way this program does not understand",
            keys[i].key, text ? " to " : "", text ? text : "");
    }
    return IMP_OK;
}

static imp_status refuse_quantization(const reader *r, const json_t *root)
{
    const json_t *q = get(root, "quantization_config|quantization");
    const json_t *method = get(q, "quant_method");
    if (method && (!json_is_string(method) || strcmp(json_string_value(method), "none") != 0))
        return imp_fail_field(
            r->err, IMP_UNSUPPORTED, "quantization_config",
            "the weights are quantised with %s, which is not understood; use a GGUF or MLX file",
            json_is_string(method) ? json_string_value(method) : "an unnamed method");
    const json_t *mode = get(q, "mode");
    if (mode && (!json_is_string(mode) || strcmp(json_string_value(mode), "affine") != 0))
        return imp_fail_field(r->err, IMP_UNSUPPORTED, "quantization",
                              "MLX quantisation mode %s is not understood",
                              json_is_string(mode) ? json_string_value(mode) : "?");
    return IMP_OK;
}

/* ---- parts ----------------------------------------------------------------------------------- */

static imp_status read_act(const reader *r)
{
    static const struct {
        const char *name;
        imp_act act;
    } acts[] = {
        {"silu", IMP_ACT_SILU},           {"swish", IMP_ACT_SILU},
        {"swiglu", IMP_ACT_SILU},         {"gelu", IMP_ACT_GELU},
        {"gelu_python", IMP_ACT_GELU},    {"gelu_new", IMP_ACT_GELU_TANH},
        {"gelu_fast", IMP_ACT_GELU_TANH}, {"gelu_pytorch_tanh", IMP_ACT_GELU_TANH},
        {"relu", IMP_ACT_RELU},           {"tanh", IMP_ACT_TANH},
        {"sigmoid", IMP_ACT_SIGMOID},
    };
    /* Gemma's hidden_activation goes before a hidden_act that older files carry beside it. */
    const json_t *v = get(r->c, "hidden_activation|hidden_act|activation_function|activation");
    r->s->act = r->s->arch->act;
    if (!v) return IMP_OK;
    const char *name = json_string_value(v);
    if (!name) return wrong_type(r->err, "hidden_act", "a string");
    for (size_t i = 0; i < IMP_COUNT(acts); i++) {
        if (strcmp(acts[i].name, name) != 0) continue;
        r->s->act = acts[i].act;
        return IMP_OK;
    }
    return imp_fail_field(r->err, IMP_UNSUPPORTED, "hidden_act", "activation %s is not understood", name);
}

static imp_status read_sizes(const reader *r)
{
    imp_spec *s = r->s;
    IMP_TRY(get_u32(r, "num_hidden_layers|n_layers|n_layer", -1, 1, IMP_MAX_LAYER, &s->n_layer));
    IMP_TRY(get_u32(r, "hidden_size|n_embd|dim", -1, 1, IMP_MAX_EMBD, &s->n_embd));
    bool gemma3 = strcmp(s->arch->name, "gemma3") == 0;
    IMP_TRY(get_u32(r, "num_attention_heads|n_heads|n_head", gemma3 ? 8 : -1, 1, IMP_MAX_HEAD, &s->n_head));
    IMP_TRY(get_u32(r, "num_key_value_heads", gemma3 ? 4 : s->n_head, 1, IMP_MAX_HEAD, &s->n_kv_head));
    const json_t *v = get(r->c, "head_dim");
    if (!v && !gemma3 && s->n_embd % s->n_head != 0)
        return imp_fail_field(
            r->err, IMP_FORMAT, "num_attention_heads",
            "config.json: a width of %u is not divisible by %u heads, and head_dim is missing", s->n_embd,
            s->n_head);
    IMP_TRY(get_u32(r, "head_dim", gemma3 ? 256 : s->n_embd / s->n_head, 1, IMP_MAX_HEAD_DIM, &s->head_dim));
    IMP_TRY(get_u32(r, "intermediate_size|hidden_dim|n_inner", -1, 1, IMP_MAX_FF, &s->n_ff));
    IMP_TRY(get_u32(r, "vocab_size", gemma3 ? 262208 : -1, 1, IMP_MAX_VOCAB, &s->n_vocab));
    IMP_TRY(get_u32(r, "max_position_embeddings|n_positions", gemma3 ? 131072 : -1, 1, IMP_MAX_CTX,
                    &s->n_ctx_train));
    uint32_t trained;
    IMP_TRY(get_u32(r, "max_trained_positions", s->n_ctx_train, 1, IMP_MAX_CTX, &trained));
    s->n_ctx_train = IMP_MIN(s->n_ctx_train, trained);
    /* DistilBERT's epsilon is fixed in its code; the others always write theirs (Gemma 3's nested form may not). */
    IMP_TRY(get_number(r->c, "rms_norm_eps|layer_norm_eps|layer_norm_epsilon|norm_eps",
                       s->arch->family == IMP_FAMILY_BERT         ? 1e-12
                       : s->arch->family == IMP_FAMILY_MODERNBERT ? 1e-5
                                                                  : 1e-6,
                       &s->norm_eps, r->err));
    s->norm_offset = s->arch->norm_plus_one ? 1 : 0;
    return IMP_OK;
}

static imp_status read_experts(const reader *r)
{
    imp_spec *s = r->s;
    IMP_TRY(get_u32(r, "num_local_experts|num_experts", 0, 0, IMP_MAX_EXPERT, &s->n_expert));
    if (s->n_expert == 0) return IMP_OK;
    bool mixtral = strcmp(s->arch->name, "mixtral") == 0;
    if (!mixtral && strcmp(s->arch->name, "qwen3moe") != 0)
        return imp_fail_field(r->err, IMP_UNSUPPORTED, "num_experts",
                              "%s models with experts are not understood", s->arch->name);
    IMP_TRY(get_u32(r, "num_experts_per_tok", -1, 1, IMP_MAX_EXPERT, &s->n_expert_used));
    IMP_TRY(get_u32(r, "moe_intermediate_size", s->n_ff, 1, IMP_MAX_FF, &s->n_ff_exp));
    /* Mixtral: a softmax over the chosen experts, which is the same as dividing by their sum. */
    IMP_TRY(get_bool(r->c, "norm_topk_prob", mixtral, &s->norm_topk, r->err));
    uint32_t step;
    IMP_TRY(get_u32(r, "decoder_sparse_step", 1, 1, IMP_MAX_LAYER, &step));
    for (uint32_t i = 0; i < s->n_layer; i++) s->sparse[i] = (i + 1) % step == 0;
    const json_t *dense = get(r->c, "mlp_only_layers");
    size_t n = json_array_size(dense);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(dense, i);
        json_int_t layer = json_is_integer(v) ? json_integer_value(v) : -1;
        if (layer < 0 || layer >= (json_int_t)s->n_layer)
            return wrong_type(r->err, "mlp_only_layers", "a list of layer numbers");
        s->sparse[layer] = false;
    }
    return IMP_OK;
}

static imp_presence presence(bool b)
{
    return b ? IMP_PRESENT : IMP_ABSENT;
}

static imp_status read_biases(const reader *r)
{
    imp_spec *s = r->s;
    bool attn, mlp, norm, nomic_qkv, nomic_fc;
    IMP_TRY(get_bool(r->c, "attention_bias", false, &attn, r->err));
    IMP_TRY(get_bool(r->c, "mlp_bias", false, &mlp, r->err));
    IMP_TRY(get_bool(r->c, "norm_bias", false, &norm, r->err));
    IMP_TRY(get_bool(r->c, "qkv_proj_bias", false, &nomic_qkv, r->err));
    IMP_TRY(get_bool(r->c, "mlp_fc1_bias|mlp_fc2_bias", false, &nomic_fc, r->err));
    bool encoder = s->arch->family == IMP_FAMILY_BERT, plain_bert = encoder && s->arch->positions;
    s->qkv_bias = presence(s->arch->qkv_bias || attn || nomic_qkv);
    s->out_bias = presence(plain_bert || attn || nomic_qkv);
    s->ffn_bias = presence(plain_bert || mlp || nomic_fc);
    s->norm_bias = presence(encoder || norm);
    return IMP_OK;
}

/* ---- attention windows ------------------------------------------------------------------------ */

static imp_status read_layer_types(const reader *r, const json_t *types)
{
    imp_spec *s = r->s;
    if (!json_is_array(types) || json_array_size(types) != s->n_layer)
        return wrong_type(r->err, "layer_types", "a list with one entry a layer");
    for (uint32_t i = 0; i < s->n_layer; i++) {
        const char *t = json_string_value(json_array_get(types, i));
        bool local = t && strcmp(t, "sliding_attention") == 0;
        if (!local && (!t || strcmp(t, "full_attention") != 0))
            return imp_fail_field(r->err, IMP_UNSUPPORTED, "layer_types", "layer type %s is not understood",
                                  t ? t : "?");
        if (local && s->window == 0)
            return imp_fail_field(r->err, IMP_FORMAT, "layer_types",
                                  "layer %u has a sliding window, but config.json gives no window", i);
        s->local[i] = local;
    }
    return IMP_OK;
}

static imp_status read_window(const reader *r)
{
    imp_spec *s = r->s;
    if (s->arch->family == IMP_FAMILY_MODERNBERT) {
        IMP_TRY(get_u32(r, "local_attention", 128, 0, IMP_MAX_CTX, &s->window));
        s->window /= 2;
    } else if (s->arch->family == IMP_FAMILY_DECODER && strcmp(s->arch->name, "llama") != 0) {
        bool gemma = s->arch->post_norm, use;
        bool mistral = strcmp(s->arch->name, "mistral") == 0;
        bool absent = json_object_get(r->c, "sliding_window") == NULL;
        IMP_TRY(get_u32(r, "sliding_window", absent && (gemma || mistral) ? 4096 : 0, 0, IMP_MAX_CTX,
                        &s->window));
        bool qwen = strncmp(s->arch->name, "qwen", 4) == 0;
        IMP_TRY(get_bool(r->c, "use_sliding_window", !qwen, &use, r->err));
        if (!use) s->window = 0;
    }
    const json_t *types = get(r->c, "layer_types");
    if (types) return read_layer_types(r, types);
    const json_t *max_window = get(r->c, "max_window_layers");
    if (s->window > 0 && max_window && s->arch->window_rule == IMP_WINDOW_UNKNOWN) {
        uint32_t first;
        IMP_TRY(get_u32(r, "max_window_layers", 0, 0, IMP_MAX_LAYER, &first));
        for (uint32_t i = 0; i < s->n_layer; i++) s->local[i] = i >= first;
        return IMP_OK;
    }
    uint32_t period;
    IMP_TRY(get_u32(r, "sliding_window_pattern|_sliding_window_pattern|global_attn_every_n_layers", 0, 0,
                    IMP_MAX_LAYER, &period));
    return imp_spec_set_local(s, period, r->err);
}

/* ---- RoPE --------------------------------------------------------------------------------------- */

static imp_status read_factors(const reader *r, const json_t *rope, const char *key, const float **out)
{
    const json_t *a = get(rope, key);
    if (!a) return IMP_OK;
    size_t n = json_array_size(a);
    if (!json_is_array(a) || n == 0 || n > IMP_MAX_HEAD_DIM ||
        (r->s->rope.n_factor && r->s->rope.n_factor != n))
        return wrong_type(r->err, key, "a list with one factor for each pair of rotated dimensions");
    float *f = imp_arena_array(r->src->arena, n, sizeof *f);
    if (!f) return imp_fail(r->err, IMP_NOMEM, "out of memory while reading config.json");
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(a, i);
        if (!json_is_number(v)) return wrong_type(r->err, key, "a list of numbers");
        f[i] = (float)json_number_value(v);
    }
    r->s->rope.n_factor = (uint32_t)n;
    *out = f;
    return IMP_OK;
}

static imp_status refuse_rope_keys(const reader *r, const json_t *rope)
{
    static const char *const known[] = {
        "rope_type",
        "type",
        "rope_theta",
        "factor",
        "partial_rotary_factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "long_factor",
        "short_factor",
        "finetuned",
    };
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)rope, key, v)
    {
        bool ok = json_is_null(v);
        for (size_t i = 0; i < IMP_COUNT(known) && !ok; i++) ok = strcmp(key, known[i]) == 0;
        if (!ok)
            return imp_fail_field(r->err, IMP_UNSUPPORTED, "rope_parameters",
                                  "RoPE parameter %s is not understood", key);
    }
    return IMP_OK;
}

/* One RoPE object (NULL: none given) into *out, and how much of a head is rotated. */
static imp_status read_rope(const reader *r, const json_t *rope, double theta, imp_rope_spec *out,
                            double *partial)
{
    imp_rope_default(out, theta);
    if (!rope) return IMP_OK;
    if (!json_is_object(rope)) return wrong_type(r->err, "rope_scaling", "an object");
    const json_t *type = get(rope, "rope_type|type");
    const char *name = type ? json_string_value(type) : "default";
    if (!name || !imp_rope_kind_from_name(name, strlen(name), &out->kind))
        return imp_fail_field(r->err, IMP_UNSUPPORTED, "rope_type", "RoPE type %s is not understood",
                              name ? name : "?");
    IMP_TRY(refuse_rope_keys(r, rope));
    IMP_TRY(get_number(rope, "rope_theta", theta, &out->theta, r->err));
    IMP_TRY(get_number(rope, "partial_rotary_factor", *partial, partial, r->err));
    IMP_TRY(get_number(rope, "factor", 0, &out->factor, r->err));
    IMP_TRY(get_number(rope, "low_freq_factor", 0, &out->low_freq_factor, r->err));
    IMP_TRY(get_number(rope, "high_freq_factor", 0, &out->high_freq_factor, r->err));
    IMP_TRY(get_number(rope, "attention_factor", 0, &out->attention_factor, r->err));
    IMP_TRY(get_number(rope, "beta_fast", 32, &out->beta_fast, r->err));
    IMP_TRY(get_number(rope, "beta_slow", 1, &out->beta_slow, r->err));
    IMP_TRY(get_number(rope, "mscale", 0, &out->mscale, r->err));
    IMP_TRY(get_number(rope, "mscale_all_dim", 0, &out->mscale_all_dim, r->err));
    IMP_TRY(get_bool(rope, "truncate", true, &out->truncate, r->err));
    double max_pos = r->s->n_ctx_train, inner;
    IMP_TRY(get_number(rope, "original_max_position_embeddings", max_pos, &inner, r->err));
    IMP_TRY(get_number(r->c, "original_max_position_embeddings", inner, &out->orig_ctx, r->err));
    if (out->factor == 0 && out->orig_ctx > 0 && (out->kind == IMP_ROPE_LONG || out->kind == IMP_ROPE_YARN))
        out->factor = max_pos / out->orig_ctx;
    if (out->kind == IMP_ROPE_LONG) {
        IMP_TRY(read_factors(r, rope, "long_factor", &out->long_factor));
        IMP_TRY(read_factors(r, rope, "short_factor", &out->short_factor));
        out->n_factor = r->s->rope.n_factor;
    }
    return IMP_OK;
}

static imp_status read_ropes(const reader *r)
{
    imp_spec *s = r->s;
    const imp_arch *a = s->arch;
    const json_t *rope = get(r->c, "rope_parameters|rope_scaling");
    const json_t *full = rope ? get(rope, "full_attention") : NULL,
                 *local = rope ? get(rope, "sliding_attention") : NULL;
    bool nested = full || local;
    double theta, theta_local, partial, partial_local;
    /* Learned positions: nothing rotates, the base only has to be valid. */
    double fallback = a->theta > 0 ? a->theta : 10000;
    IMP_TRY(get_number(r->c, "rope_theta|global_rope_theta|rotary_emb_base", fallback, &theta, r->err));
    IMP_TRY(get_number(r->c, "rope_local_base_freq|local_rope_theta",
                       a->theta_local > 0 ? a->theta_local : theta, &theta_local, r->err));
    if (a->theta_local > 0 && strcmp(a->name, "gemma2") == 0) theta_local = theta;
    IMP_TRY(get_number(r->c, "partial_rotary_factor|rotary_emb_fraction", 1, &partial, r->err));
    partial_local = partial;
    imp_rope_spec out;
    IMP_TRY(read_rope(r, nested ? full : rope, theta, &out, &partial));
    s->rope = out;
    /* Scaling of a flat object belongs to the layers that see everything where there are two bases. */
    bool two_bases = a->theta_local > 0 && strcmp(a->name, "gemma2") != 0;
    if (nested || two_bases) {
        IMP_TRY(read_rope(r, local, theta_local, &s->rope_local, &partial_local));
        if (local && partial_local != partial)
            return imp_fail_field(r->err, IMP_UNSUPPORTED, "partial_rotary_factor",
                                  "layer types that rotate different parts of a head are not understood");
    } else {
        s->rope_local = s->rope;
    }
    if (!(partial > 0 && partial <= 1))
        return imp_fail_field(r->err, IMP_FORMAT, "partial_rotary_factor",
                              "%g of a head is rotated; it must be 0 to 1", partial);
    s->n_rot = (uint32_t)(s->head_dim * partial);
    if (s->rope.kind == IMP_ROPE_YARN && s->rope.factor > 0 && s->rope.orig_ctx > 0) {
        double reach = s->rope.factor * s->rope.orig_ctx;
        if (reach > s->n_ctx_train && reach <= IMP_MAX_CTX) s->n_ctx_train = (uint32_t)reach;
    }
    return IMP_OK;
}

/* ---- pooling -------------------------------------------------------------------------------------- */

static imp_status read_pooling(const reader *r)
{
    static const struct {
        const char *key, *mode;
        int kind; /* -1: not understood */
    } modes[] = {
        {"pooling_mode_mean_tokens", "mean", IMP_POOL_MEAN},
        {"pooling_mode_cls_token", "cls", IMP_POOL_CLS},
        {"pooling_mode_lasttoken", "lasttoken", IMP_POOL_LAST},
        {"pooling_mode_max_tokens", "max", -1},
        {"pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", -1},
        {"pooling_mode_weightedmean_tokens", "weightedmean", -1},
    };
    imp_spec *s = r->s;
    const json_t *p = imp_hf_pooling(r->src->hf);
    if (!p) {
        if (s->arch->family == IMP_FAMILY_DECODER) return IMP_OK;
        s->pool = IMP_POOL_MEAN;
        s->has_pool = s->normalize = true;
        imp_log(IMP_LOG_INFO, "the folder names no pooling: mean of all tokens, normalised");
        return IMP_OK;
    }
    const char *mode = json_string_value(get(p, "pooling_mode"));
    int n = 0, found = -1;
    for (size_t i = 0; i < IMP_COUNT(modes); i++) {
        bool on =
            json_is_true(json_object_get(p, modes[i].key)) || (mode && strcmp(mode, modes[i].mode) == 0);
        if (!on) continue;
        if (modes[i].kind < 0)
            return imp_fail_field(r->err, IMP_UNSUPPORTED, "pooling", "pooling %s is not understood",
                                  modes[i].mode);
        n++;
        found = modes[i].kind;
    }
    if (n != 1)
        return imp_fail_field(
            r->err, IMP_UNSUPPORTED, "pooling",
            "1_Pooling/config.json switches on %d ways of pooling; exactly one is understood", n);
    s->pool = (imp_pool_kind)found;
    s->has_pool = true;
    s->normalize = imp_hf_has_normalize(r->src->hf);
    return IMP_OK;
}

/* ---- the whole ------------------------------------------------------------------------------------- */

static imp_status read_rest(const reader *r)
{
    imp_spec *s = r->s;
    bool tied;
    IMP_TRY(get_bool(r->c, "tie_word_embeddings", s->arch->tied, &tied, r->err));
    s->tied = presence(tied);
    double qk;
    IMP_TRY(get_number(r->c, "query_pre_attn_scalar", s->arch->post_norm ? 256 : 0, &qk, r->err));
    if (qk < 0) return wrong_type(r->err, "query_pre_attn_scalar", "positive");
    if (s->arch->post_norm && qk > 0) s->attn_scale = 1 / sqrt(qk);
    bool gemma2 = strcmp(s->arch->name, "gemma2") == 0;
    bool attn_null = json_object_get(r->c, "attn_logit_softcapping") != NULL;
    bool final_null = json_object_get(r->c, "final_logit_softcapping") != NULL;
    IMP_TRY(
        get_number(r->c, "attn_logit_softcapping", gemma2 && !attn_null ? 50 : 0, &s->attn_softcap, r->err));
    IMP_TRY(get_number(r->c, "final_logit_softcapping", gemma2 && !final_null ? 30 : 0, &s->final_softcap,
                       r->err));
    if (s->arch->family == IMP_FAMILY_BERT && strcmp(s->arch->name, "distilbert") != 0)
        IMP_TRY(get_u32(r, "type_vocab_size", 0, 0, 1024, &s->n_type));
    if (s->arch->position_offset) {
        uint32_t pad;
        IMP_TRY(get_u32(r, "pad_token_id", 1, 0, 1024, &pad));
        s->position_offset = (int32_t)pad + 1;
        if (s->n_ctx_train <= pad + 1)
            return imp_fail_field(r->err, IMP_FORMAT, "max_position_embeddings",
                                  "config.json: %u positions leave none behind the padding token's",
                                  s->n_ctx_train);
        s->n_ctx_train -= pad + 1;
    }
    const json_t *m = get(r->c, "matryoshka_dimensions|matryoshka_dims");
    s->matryoshka = json_is_array(m) ? json_array_size(m) > 0 : json_is_true(m);
    return IMP_OK;
}

imp_status imp_spec_from_hf(imp_net_source *src, imp_spec *s, imp_error *err)
{
    const json_t *root = imp_hf_config(src->hf), *c = root;
    const char *type = json_string_value(json_object_get(root, "model_type"));
    if (!json_is_object(root) || !type)
        return imp_fail_field(err, IMP_FORMAT, "model_type",
                              "config.json lacks model_type: it does not say what the model is");
    if (strcmp(type, "gemma3") == 0 && json_is_object(json_object_get(root, "text_config"))) {
        c = json_object_get(root, "text_config");
        type = "gemma3_text";
    }
    const imp_arch *a = imp_arch_from_hf(type);
    if (!a) {
        imp_buf list = {0};
        imp_arch_list(false, &list);
        imp_status st = imp_fail_field(err, IMP_UNSUPPORTED, "model_type",
                                       "architecture %.64s is not understood; known ones: %s", type,
                                       list.data ? list.data : "?");
        imp_buf_deinit(&list);
        return st;
    }
    memset(s, 0, sizeof *s);
    s->arch = a;
    reader r = {.c = c, .src = src, .s = s, .err = err};
    IMP_TRY(refuse_quantization(&r, root));
    IMP_TRY(refuse_unknown(&r));
    IMP_TRY(read_sizes(&r));
    IMP_TRY(read_act(&r));
    IMP_TRY(read_experts(&r));
    IMP_TRY(read_biases(&r));
    IMP_TRY(read_window(&r));
    IMP_TRY(read_ropes(&r));
    IMP_TRY(read_pooling(&r));
    IMP_TRY(read_rest(&r));
    IMP_TRY(imp_spec_check(s, err));
    return imp_source_index(src, a, err);
}
