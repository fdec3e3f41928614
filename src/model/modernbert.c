/* model/modernbert.c - graphs of ModernBERT: a pre-norm encoder with rotary positions and a window in most layers.
 *
 * Place:   called by net.c with a binder.
 * Idea:    embeddings are normalised, so the first layer has no norm before its attention; every third layer sees the
 *          whole sequence (RoPE base 160000), the others `window` tokens to each side (base 10000).
 * Shapes:  x [tok][n_embd]; ffn_up makes [tok][2*n_ff], the first half goes through the activation; result [seq][n_embd].
 * Source:  Warner et al. 2024 (ModernBERT). */
#include "model/model_int.h"

#include <math.h>

static imp_val attention(imp_binder *b, imp_val x, int layer)
{
    const imp_spec *s = b->s;
    imp_val qkv[3];
    imp_graph_scope(b->g, "blk.%d.attn", layer);
    if (layer > 0) x = imp_bind_layer_norm(b, x, "attn_norm", layer, s->norm_bias);
    imp_bind_qkv(b, x, layer, qkv);
    imp_bind_rope(b, layer, qkv);
    if (b->status != IMP_OK) return 0;
    imp_attn_attr a = {
        .n_head = s->n_head,
        .n_kv_head = s->n_kv_head,
        .head_dim = s->head_dim,
        .window = s->local[layer] ? s->window : 0,
        .kv_layer = -1,
        .mask = IMP_MASK_FULL,
        .scale = (float)(1 / sqrt(s->head_dim)),
    };
    imp_val y = imp_g_attn(b->g, qkv[0], qkv[1], qkv[2], 0, &a);
    return imp_bind_linear(b, y, "attn_output", layer, s->n_embd, s->n_embd, s->out_bias);
}

static imp_val feed_forward(imp_binder *b, imp_val x, int layer)
{
    const imp_spec *s = b->s;
    imp_graph_scope(b->g, "blk.%d.ffn", layer);
    x = imp_bind_layer_norm(b, x, "ffn_norm", layer, s->norm_bias);
    x = imp_bind_linear(b, x, "ffn_up", layer, 2 * (uint64_t)s->n_ff, s->n_embd, s->ffn_bias);
    if (b->status != IMP_OK) return 0;
    imp_val act = imp_g_slice(b->g, x, 0, s->n_ff), rest = imp_g_slice(b->g, x, s->n_ff, s->n_ff);
    return imp_bind_linear(b, imp_g_glu(b->g, act, rest, s->act), "ffn_down", layer, s->n_embd, s->n_ff,
                           s->ffn_bias);
}

void imp_build_modernbert(imp_binder *b)
{
    const imp_spec *s = b->s;
    imp_graph_scope(b->g, "embed");
    imp_val w = imp_bind_matrix(b, "token_embd", -1, s->n_vocab, s->n_embd);
    if (b->status != IMP_OK) return;
    imp_val x =
        imp_bind_layer_norm(b, imp_g_embed(b->g, w, IMP_BY_TOKEN, 0), "token_embd_norm", -1, s->norm_bias);
    for (uint32_t i = 0; i < s->n_layer && b->status == IMP_OK; i++) {
        imp_val y = attention(b, x, (int)i);
        if (b->status != IMP_OK) return;
        x = imp_g_add(b->g, x, y);
        y = feed_forward(b, x, (int)i);
        if (b->status != IMP_OK) return;
        x = imp_g_add(b->g, x, y);
    }
    imp_graph_scope(b->g, "pool");
    x = imp_bind_layer_norm(b, x, "output_norm", -1, s->norm_bias);
    if (b->status != IMP_OK) return;
    imp_g_output(b->g, imp_g_pool(b->g, x, s->pool));
}
