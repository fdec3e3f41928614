/* model/bert.c - graphs of post-norm encoders: BERT, MiniLM, DistilBERT, RoBERTa, XLM-R, nomic-bert.
 *
 * Place:   called by net.c with a binder.
 * Idea:    embeddings (token + position + type) are normalised; a block is x = norm(x + attn(x)); x = norm(x + ffn(x)).
 *          nomic-bert has rotary positions and a gated feed-forward part instead of learned ones and a plain one.
 * Shapes:  x [tok][n_embd]; result [seq][n_embd].
 * Source:  Devlin et al. 2018; Nussbaum et al. 2024 (nomic-embed). */
#include "model/model_int.h"

#include <math.h>

static imp_val embeddings(imp_binder *b)
{
    const imp_spec *s = b->s;
    imp_graph_scope(b->g, "embed");
    imp_val w = imp_bind_matrix(b, "token_embd", -1, s->n_vocab, s->n_embd);
    if (b->status != IMP_OK) return 0;
    imp_val x = imp_g_embed(b->g, w, IMP_BY_TOKEN, 0);
    if (s->n_type > 0) {
        w = imp_bind_matrix(b, "token_types", -1, s->n_type, s->n_embd);
        if (b->status != IMP_OK) return 0;
        x = imp_g_add(b->g, x, imp_g_embed(b->g, w, IMP_BY_TYPE, 0));
    }
    if (s->arch->positions) {
        uint64_t n_row = (uint64_t)s->n_ctx_train + (uint64_t)s->position_offset;
        w = imp_bind_matrix(b, "position_embd", -1, n_row, s->n_embd);
        if (b->status != IMP_OK) return 0;
        x = imp_g_add(b->g, x, imp_g_embed(b->g, w, IMP_BY_POSITION, s->position_offset));
    }
    return imp_bind_layer_norm(b, x, "token_embd_norm", -1, s->norm_bias);
}

static imp_val attention(imp_binder *b, imp_val x, int layer)
{
    const imp_spec *s = b->s;
    imp_val qkv[3];
    imp_graph_scope(b->g, "blk.%d.attn", layer);
    imp_bind_qkv(b, x, layer, qkv);
    if (!s->arch->positions) imp_bind_rope(b, layer, qkv);
    if (b->status != IMP_OK) return 0;
    imp_attn_attr a = {
        .n_head = s->n_head,
        .n_kv_head = s->n_kv_head,
        .head_dim = s->head_dim,
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
    imp_val up = imp_bind_linear(b, x, "ffn_up", layer, s->n_ff, s->n_embd, s->ffn_bias);
    imp_val gate = 0;
    if (s->arch->gated_ffn) gate = imp_bind_linear(b, x, "ffn_gate", layer, s->n_ff, s->n_embd, s->ffn_bias);
    if (b->status != IMP_OK) return 0;
    imp_val y = gate ? imp_g_glu(b->g, gate, up, s->act) : imp_g_act(b->g, up, s->act);
    return imp_bind_linear(b, y, "ffn_down", layer, s->n_embd, s->n_ff, s->ffn_bias);
}

void imp_build_bert(imp_binder *b)
{
    const imp_spec *s = b->s;
    imp_val x = embeddings(b);
    for (uint32_t i = 0; i < s->n_layer && b->status == IMP_OK; i++) {
        imp_val y = attention(b, x, (int)i);
        if (b->status != IMP_OK) return;
        x = imp_bind_layer_norm(b, imp_g_add(b->g, x, y), "attn_output_norm", (int)i, s->norm_bias);
        y = feed_forward(b, x, (int)i);
        if (b->status != IMP_OK) return;
        x = imp_bind_layer_norm(b, imp_g_add(b->g, x, y), "layer_output_norm", (int)i, s->norm_bias);
    }
    if (b->status != IMP_OK) return;
    imp_graph_scope(b->g, "pool");
    imp_g_output(b->g, imp_g_pool(b->g, x, s->pool));
}
