/* model/decoder.c - graphs of decoder-only transformers: Llama, Mistral, Mixtral, Qwen, Gemma, Phi-3.
 *
 * Place:   called by net.c with a binder.
 * Idea:    all of them are pre-norm blocks x += attn(norm(x)); x += ffn(norm(x)). What differs is data of imp_arch and
 *          imp_spec: norms of Q and K, norms behind the parts (Gemma), a window in some layers, fused projections,
 *          mixtures of experts, soft caps.
 * Shapes:  x [tok][n_embd]; q [tok][n_head*head_dim]; k, v [tok][n_kv_head*head_dim]; logits [out][n_vocab]. In the last
 *          layer only the rows that are asked for go on after attention. */
#include "model/model_int.h"

#include <math.h>

static imp_val attention(imp_binder *b, imp_val x, int layer, bool cache, bool gather)
{
    const imp_spec *s = b->s;
    imp_val qkv[3];
    imp_graph_scope(b->g, "blk.%d.attn", layer);
    imp_bind_qkv(b, x, layer, qkv);
    if (s->arch->qk_norm) {
        uint64_t n_q = (uint64_t)s->n_head * s->head_dim, n_kv = (uint64_t)s->n_kv_head * s->head_dim;
        qkv[0] = imp_bind_rms_norm(b, qkv[0], "attn_q_norm", layer, n_q, s->head_dim);
        qkv[1] = imp_bind_rms_norm(b, qkv[1], "attn_k_norm", layer, n_kv, s->head_dim);
    }
    imp_bind_rope(b, layer, qkv);
    if (b->status != IMP_OK) return 0;
    imp_attn_attr a = {
        .n_head = s->n_head,
        .n_kv_head = s->n_kv_head,
        .head_dim = s->head_dim,
        .window = s->local[layer] ? s->window : 0,
        .kv_layer = cache ? layer : -1,
        .mask = IMP_MASK_CAUSAL,
        .scale = (float)(s->attn_scale > 0 ? s->attn_scale : 1 / sqrt(s->head_dim)),
        .softcap = (float)s->attn_softcap,
    };
    imp_val y = imp_g_attn(b->g, qkv[0], qkv[1], qkv[2], 0, &a);
    if (gather) y = imp_g_gather(b->g, y);
    return imp_bind_linear(b, y, "attn_output", layer, s->n_embd, (uint64_t)s->n_head * s->head_dim,
                           s->out_bias);
}

static imp_val mixture(imp_binder *b, imp_val x, int layer)
{
    const imp_spec *s = b->s;
    imp_val logits = imp_bind_linear(b, x, "ffn_gate_inp", layer, s->n_expert, s->n_embd, IMP_ABSENT);
    imp_val gate = imp_bind_experts(b, "ffn_gate_exp", layer, s->n_ff_exp, s->n_embd);
    imp_val up = imp_bind_experts(b, "ffn_up_exp", layer, s->n_ff_exp, s->n_embd);
    imp_val down = imp_bind_experts(b, "ffn_down_exp", layer, s->n_embd, s->n_ff_exp);
    if (b->status != IMP_OK) return 0;
    imp_moe_attr a = {
        .n_expert = s->n_expert, .n_used = s->n_expert_used, .act = s->act, .norm_topk = s->norm_topk};
    return imp_g_moe(b->g, x, logits, gate, up, down, &a);
}

static imp_val feed_forward(imp_binder *b, imp_val x, int layer)
{
    const imp_spec *s = b->s;
    imp_graph_scope(b->g, "blk.%d.ffn", layer);
    if (s->sparse[layer]) return mixture(b, x, layer);
    imp_val gate, up;
    if (s->arch->fused_ffn && !imp_bind_has(b, "ffn_gate", layer, ".weight")) {
        imp_val both = imp_bind_linear(b, x, "ffn_up", layer, 2 * (uint64_t)s->n_ff, s->n_embd, s->ffn_bias);
        if (b->status != IMP_OK) return 0;
        gate = imp_g_slice(b->g, both, 0, s->n_ff);
        up = imp_g_slice(b->g, both, s->n_ff, s->n_ff);
    } else {
        gate = imp_bind_linear(b, x, "ffn_gate", layer, s->n_ff, s->n_embd, s->ffn_bias);
        up = imp_bind_linear(b, x, "ffn_up", layer, s->n_ff, s->n_embd, s->ffn_bias);
    }
    if (b->status != IMP_OK) return 0;
    return imp_bind_linear(b, imp_g_glu(b->g, gate, up, s->act), "ffn_down", layer, s->n_embd, s->n_ff,
                           s->ffn_bias);
}

static imp_val block(imp_binder *b, imp_val x, int layer, bool cache, bool gather)
{
    const imp_spec *s = b->s;
    imp_graph_scope(b->g, "blk.%d.attn_norm", layer);
    imp_val y = imp_bind_rms_norm(b, x, "attn_norm", layer, s->n_embd, 0);
    y = attention(b, y, layer, cache, gather);
    if (s->arch->post_norm) y = imp_bind_rms_norm(b, y, "post_attention_norm", layer, s->n_embd, 0);
    if (b->status != IMP_OK) return 0;
    if (gather) x = imp_g_gather(b->g, x);
    x = imp_g_add(b->g, x, y);
    imp_graph_scope(b->g, "blk.%d.ffn_norm", layer);
    y = imp_bind_rms_norm(b, x, "ffn_norm", layer, s->n_embd, 0);
    y = feed_forward(b, y, layer);
    if (s->arch->post_norm) y = imp_bind_rms_norm(b, y, "post_ffw_norm", layer, s->n_embd, 0);
    return b->status != IMP_OK ? 0 : imp_g_add(b->g, x, y);
}

void imp_build_decoder(imp_binder *b, bool pool)
{
    const imp_spec *s = b->s;
    imp_graph_scope(b->g, "embed");
    imp_val embd = imp_bind_matrix(b, "token_embd", -1, s->n_vocab, s->n_embd);
    if (b->status != IMP_OK) return;
    imp_val x = imp_g_embed(b->g, embd, IMP_BY_TOKEN, 0);
    if (s->arch->scale_embed) x = imp_g_scale(b->g, x, (float)sqrt(s->n_embd));
    for (uint32_t i = 0; i < s->n_layer && b->status == IMP_OK; i++)
        x = block(b, x, (int)i, !pool, !pool && i + 1 == s->n_layer);
    imp_graph_scope(b->g, "output");
    x = imp_bind_rms_norm(b, x, "output_norm", -1, s->n_embd, 0);
    if (b->status != IMP_OK) return;
    if (pool) {
        imp_g_output(b->g, imp_g_pool(b->g, x, s->pool));
        return;
    }
    bool own =
        s->tied == IMP_ABSENT || (s->tied == IMP_IF_PRESENT && imp_bind_has(b, "output", -1, ".weight"));
    imp_val w = own ? imp_bind_matrix(b, "output", -1, s->n_vocab, s->n_embd) : embd;
    if (b->status != IMP_OK) return;
    x = imp_g_linear(b->g, x, w, 0);
    if (s->final_softcap > 0) x = imp_g_softcap(b->g, x, (float)s->final_softcap);
    imp_g_output(b->g, x);
}
