/* plan_nets.h - graphs of published model shapes without any weights, for tests that only price them. */
#ifndef IMP_TEST_PLAN_NETS_H
#define IMP_TEST_PLAN_NETS_H

#include "graph/graph.h"

typedef struct shape_of {
    uint32_t n_layer, n_embd, n_head, n_kv_head, head_dim, n_ff, n_vocab;
    imp_dtype type;
} shape_of;

static imp_val w2(imp_graph *g, imp_dtype t, uint64_t n, uint64_t k)
{
    imp_tensor w = {.dtype = t, .n_dim = 2, .dim = {n, k, 1, 1}};
    return imp_g_weight(g, "w", &w);
}
static imp_val w1(imp_graph *g, uint64_t n)
{
    imp_tensor w = {.dtype = IMP_F32, .n_dim = 1, .dim = {n, 1, 1, 1}};
    return imp_g_weight(g, "v", &w);
}

/* A Llama-like decoder: tokens -> logits. */
static inline imp_graph *decoder(const shape_of *s)
{
    static const float freq[256];
    imp_graph *g = imp_graph_new();
    uint64_t q = (uint64_t)s->n_head * s->head_dim, kv = (uint64_t)s->n_kv_head * s->head_dim;
    imp_val x = imp_g_embed(g, w2(g, s->type, s->n_vocab, s->n_embd), IMP_BY_TOKEN, 0);
    imp_rope_attr r = {.head_dim = s->head_dim, .n_rot = s->head_dim, .mscale = 1, .inv_freq = freq};
    for (uint32_t l = 0; l < s->n_layer; l++) {
        imp_attn_attr a = {.n_head = s->n_head,
                           .n_kv_head = s->n_kv_head,
                           .head_dim = s->head_dim,
                           .kv_layer = (int32_t)l,
                           .mask = IMP_MASK_CAUSAL,
                           .scale = 1};
        imp_val h = imp_g_rms_norm(g, x, w1(g, s->n_embd), 1e-6f, 0, 0);
        imp_val qv = imp_g_rope(g, imp_g_linear(g, h, w2(g, s->type, q, s->n_embd), 0), &r);
        imp_val kk = imp_g_rope(g, imp_g_linear(g, h, w2(g, s->type, kv, s->n_embd), 0), &r);
        imp_val vv = imp_g_linear(g, h, w2(g, s->type, kv, s->n_embd), 0);
        imp_val o = imp_g_attn(g, qv, kk, vv, 0, &a);
        x = imp_g_add(g, x, imp_g_linear(g, o, w2(g, s->type, s->n_embd, q), 0));
        h = imp_g_rms_norm(g, x, w1(g, s->n_embd), 1e-6f, 0, 0);
        imp_val gate = imp_g_linear(g, h, w2(g, s->type, s->n_ff, s->n_embd), 0);
        imp_val up = imp_g_linear(g, h, w2(g, s->type, s->n_ff, s->n_embd), 0);
        imp_val f = imp_g_glu(g, gate, up, IMP_ACT_SILU);
        x = imp_g_add(g, x, imp_g_linear(g, f, w2(g, s->type, s->n_embd, s->n_ff), 0));
    }
    x = imp_g_gather(g, imp_g_rms_norm(g, x, w1(g, s->n_embd), 1e-6f, 0, 0));
    imp_g_output(g, imp_g_linear(g, x, w2(g, s->type, s->n_vocab, s->n_embd), 0));
    imp_error e;
    assert_int_equal(imp_graph_finish(g, &e), IMP_OK);
    return g;
}

/* A BERT-like encoder: tokens -> one vector a sequence. */
static inline imp_graph *encoder(const shape_of *s)
{
    imp_graph *g = imp_graph_new();
    uint64_t d = s->n_embd;
    imp_val x = imp_g_embed(g, w2(g, s->type, s->n_vocab, d), IMP_BY_TOKEN, 0);
    for (uint32_t l = 0; l < s->n_layer; l++) {
        imp_attn_attr a = {.n_head = s->n_head,
                           .n_kv_head = s->n_head,
                           .head_dim = s->head_dim,
                           .kv_layer = -1,
                           .mask = IMP_MASK_FULL,
                           .scale = 1};
        imp_val q = imp_g_linear(g, x, w2(g, s->type, d, d), w1(g, d));
        imp_val k = imp_g_linear(g, x, w2(g, s->type, d, d), w1(g, d));
        imp_val v = imp_g_linear(g, x, w2(g, s->type, d, d), w1(g, d));
        imp_val o = imp_g_linear(g, imp_g_attn(g, q, k, v, 0, &a), w2(g, s->type, d, d), w1(g, d));
        x = imp_g_layer_norm(g, imp_g_add(g, x, o), w1(g, d), w1(g, d), 1e-5f);
        imp_val f =
            imp_g_act(g, imp_g_linear(g, x, w2(g, s->type, s->n_ff, d), w1(g, s->n_ff)), IMP_ACT_GELU);
        x = imp_g_layer_norm(g, imp_g_add(g, x, imp_g_linear(g, f, w2(g, s->type, d, s->n_ff), w1(g, d))),
                             w1(g, d), w1(g, d), 1e-5f);
    }
    imp_g_output(g, imp_g_pool(g, x, IMP_POOL_MEAN));
    imp_error e;
    assert_int_equal(imp_graph_finish(g, &e), IMP_OK);
    return g;
}

__attribute__((unused)) static const shape_of QWEN3_06B = {28, 1024, 16, 8, 128, 3072, 151936, IMP_F16};
__attribute__((unused)) static const shape_of QWEN2_15B = {28, 1536, 12, 2, 128, 8960, 151936, IMP_Q4_0};
__attribute__((unused)) static const shape_of LLAMA3_8B = {32, 4096, 32, 8, 128, 14336, 128256, IMP_Q4_0};
__attribute__((unused)) static const shape_of MINILM = {6, 384, 12, 12, 32, 1536, 30522, IMP_F16};
__attribute__((unused)) static const shape_of WHISPER_TINY = {4, 384, 6, 6, 64, 1536, 32, IMP_F16};

#endif
