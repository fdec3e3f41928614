/* model/arch.c - the architectures we know: what each is made of and how folders spell its tensors.
 *
 * Place:   read by every file of this folder. Builders look at these flags alone; only the two readers of configurations
 *          compare names, for defaults that a single model has.
 * Idea:    one row an architecture. Decoders share one builder, so a new one is mostly a row.
 * Source:  the models' own configuration and modelling code (Hugging Face); GGUF's architecture names and RoPE
 *          layouts as llama.cpp writes them: its converter permutes Q and K of "llama" files only. */
#include "model/model_int.h"

static const imp_name names_decoder[] = {
    {"token_embd", "embed_tokens"},
    {"output_norm", "norm"},
    {"output", "lm_head"},
    {"attn_norm", "layers.#.input_layernorm"},
    {"attn_q", "layers.#.self_attn.q_proj"},
    {"attn_k", "layers.#.self_attn.k_proj"},
    {"attn_v", "layers.#.self_attn.v_proj"},
    {"attn_qkv", "layers.#.self_attn.qkv_proj"},
    {"attn_output", "layers.#.self_attn.o_proj"},
    {"attn_q_norm", "layers.#.self_attn.q_norm"},
    {"attn_k_norm", "layers.#.self_attn.k_norm"},
    {"ffn_gate", "layers.#.mlp.gate_proj"},
    {"ffn_up", "layers.#.mlp.up_proj"},
    {"ffn_down", "layers.#.mlp.down_proj"},
    {0},
};
static const imp_name names_two_norms[] = {
    {"ffn_norm", "layers.#.post_attention_layernorm"},
    {0},
};
static const imp_name names_four_norms[] = {
    {"post_attention_norm", "layers.#.post_attention_layernorm"},
    {"ffn_norm", "layers.#.pre_feedforward_layernorm"},
    {"post_ffw_norm", "layers.#.post_feedforward_layernorm"},
    {0},
};
static const imp_name names_phi3[] = {
    {"ffn_up", "layers.#.mlp.gate_up_proj"},
    {0},
};
/* One tensor an expert as transformers writes them, or stacked (switch_mlp) as MLX does. */
static const imp_name names_mixtral[] = {
    {"ffn_gate_inp", "layers.#.block_sparse_moe.gate"},
    {"ffn_gate_exp", "layers.#.block_sparse_moe.experts.#.w1"},
    {"ffn_up_exp", "layers.#.block_sparse_moe.experts.#.w3"},
    {"ffn_down_exp", "layers.#.block_sparse_moe.experts.#.w2"},
    {"ffn_gate_exps", "layers.#.block_sparse_moe.switch_mlp.gate_proj"},
    {"ffn_up_exps", "layers.#.block_sparse_moe.switch_mlp.up_proj"},
    {"ffn_down_exps", "layers.#.block_sparse_moe.switch_mlp.down_proj"},
    {0},
};
static const imp_name names_qwen_moe[] = {
    {"ffn_gate_inp", "layers.#.mlp.gate"},
    {"ffn_gate_exp", "layers.#.mlp.experts.#.gate_proj"},
    {"ffn_up_exp", "layers.#.mlp.experts.#.up_proj"},
    {"ffn_down_exp", "layers.#.mlp.experts.#.down_proj"},
    {"ffn_gate_exps", "layers.#.mlp.switch_mlp.gate_proj"},
    {"ffn_up_exps", "layers.#.mlp.switch_mlp.up_proj"},
    {"ffn_down_exps", "layers.#.mlp.switch_mlp.down_proj"},
    {0},
};
static const imp_name names_bert[] = {
    {"token_embd", "embeddings.word_embeddings"},
    {"position_embd", "embeddings.position_embeddings"},
    {"token_types", "embeddings.token_type_embeddings"},
    {"token_embd_norm", "embeddings.LayerNorm"},
    {"attn_q", "encoder.layer.#.attention.self.query"},
    {"attn_k", "encoder.layer.#.attention.self.key"},
    {"attn_v", "encoder.layer.#.attention.self.value"},
    {"attn_output", "encoder.layer.#.attention.output.dense"},
    {"attn_output_norm", "encoder.layer.#.attention.output.LayerNorm"},
    {"ffn_up", "encoder.layer.#.intermediate.dense"},
    {"ffn_down", "encoder.layer.#.output.dense"},
    {"layer_output_norm", "encoder.layer.#.output.LayerNorm"},
    {0},
};
static const imp_name names_distilbert[] = {
    {"token_embd", "embeddings.word_embeddings"},
    {"position_embd", "embeddings.position_embeddings"},
    {"token_embd_norm", "embeddings.LayerNorm"},
    {"attn_q", "transformer.layer.#.attention.q_lin"},
    {"attn_k", "transformer.layer.#.attention.k_lin"},
    {"attn_v", "transformer.layer.#.attention.v_lin"},
    {"attn_output", "transformer.layer.#.attention.out_lin"},
    {"attn_output_norm", "transformer.layer.#.sa_layer_norm"},
    {"ffn_up", "transformer.layer.#.ffn.lin1"},
    {"ffn_down", "transformer.layer.#.ffn.lin2"},
    {"layer_output_norm", "transformer.layer.#.output_layer_norm"},
    {0},
};
/* nomic's own code, whose second projection (fc12) is the gate; below it transformers' port of the same model. */
static const imp_name names_nomic[] = {
    {"token_embd", "embeddings.word_embeddings"},
    {"token_types", "embeddings.token_type_embeddings"},
    {"token_embd_norm", "emb_ln"},
    {"attn_qkv", "encoder.layers.#.attn.Wqkv"},
    {"attn_output", "encoder.layers.#.attn.out_proj"},
    {"attn_output_norm", "encoder.layers.#.norm1"},
    {"ffn_up", "encoder.layers.#.mlp.fc11"},
    {"ffn_gate", "encoder.layers.#.mlp.fc12"},
    {"ffn_down", "encoder.layers.#.mlp.fc2"},
    {"layer_output_norm", "encoder.layers.#.norm2"},
    {0},
};
static const imp_name names_nomic_port[] = {
    {"token_embd_norm", "embeddings.LayerNorm"},
    {"attn_q", "layers.#.self_attn.q_proj"},
    {"attn_k", "layers.#.self_attn.k_proj"},
    {"attn_v", "layers.#.self_attn.v_proj"},
    {"attn_output", "layers.#.self_attn.o_proj"},
    {"attn_output_norm", "layers.#.post_attention_layernorm"},
    {"ffn_gate", "layers.#.mlp.gate_proj"},
    {"ffn_up", "layers.#.mlp.up_proj"},
    {"ffn_down", "layers.#.mlp.down_proj"},
    {"layer_output_norm", "layers.#.post_mlp_layernorm"},
    {0},
};
static const imp_name names_modernbert[] = {
    {"token_embd", "embeddings.tok_embeddings"},
    {"token_embd_norm", "embeddings.norm"},
    {"output_norm", "final_norm"},
    {"attn_norm", "layers.#.attn_norm"},
    {"attn_qkv", "layers.#.attn.Wqkv"},
    {"attn_output", "layers.#.attn.Wo"},
    {"ffn_norm", "layers.#.mlp_norm"},
    {"ffn_up", "layers.#.mlp.Wi"},
    {"ffn_down", "layers.#.mlp.Wo"},
    {0},
};

#define LLAMA_LIKE .family = IMP_FAMILY_DECODER, .gated_ffn = true, .act = IMP_ACT_SILU
#define GEMMA_LIKE                                                                                           \
    .family = IMP_FAMILY_DECODER, .gated_ffn = true, .act = IMP_ACT_GELU_TANH, .post_norm = true,            \
    .norm_plus_one = true, .scale_embed = true, .tied = true, .names = {names_decoder, names_four_norms}
#define BERT_LIKE .family = IMP_FAMILY_BERT, .act = IMP_ACT_GELU, .qkv_bias = true, .positions = true

static const imp_arch arches[] = {
    {.name = "llama",
     .gguf = "llama",
     .hf = "llama",
     LLAMA_LIKE,
     .theta = 10000,
     .gguf_interleaved = true,
     .window_rule = IMP_WINDOW_ALL,
     .names = {names_decoder, names_two_norms}},
    {.name = "mistral",
     .hf = "mistral",
     LLAMA_LIKE,
     .theta = 10000,
     .window_rule = IMP_WINDOW_ALL,
     .names = {names_decoder, names_two_norms}},
    {.name = "mixtral",
     .hf = "mixtral",
     LLAMA_LIKE,
     .theta = 1e6,
     .window_rule = IMP_WINDOW_ALL,
     .names = {names_decoder, names_two_norms, names_mixtral}},
    {.name = "qwen2",
     .gguf = "qwen2",
     .hf = "qwen2",
     LLAMA_LIKE,
     .theta = 10000,
     .qkv_bias = true,
     .names = {names_decoder, names_two_norms}},
    {.name = "qwen3",
     .gguf = "qwen3",
     .hf = "qwen3",
     LLAMA_LIKE,
     .theta = 10000,
     .qk_norm = true,
     .names = {names_decoder, names_two_norms}},
    {.name = "qwen3moe",
     .gguf = "qwen3moe",
     .hf = "qwen3_moe",
     LLAMA_LIKE,
     .theta = 10000,
     .qk_norm = true,
     .names = {names_decoder, names_two_norms, names_qwen_moe}},
    {.name = "gemma2",
     .gguf = "gemma2",
     .hf = "gemma2",
     GEMMA_LIKE,
     .theta = 10000,
     .theta_local = 10000,
     .window_rule = IMP_WINDOW_PERIOD,
     .window_period = 2},
    {.name = "gemma3",
     .gguf = "gemma3",
     .hf = "gemma3_text",
     GEMMA_LIKE,
     .qk_norm = true,
     .theta = 1e6,
     .theta_local = 10000,
     .window_rule = IMP_WINDOW_PERIOD,
     .window_period = 6},
    {.name = "phi3",
     .gguf = "phi3",
     .hf = "phi3",
     LLAMA_LIKE,
     .theta = 10000,
     .fused_ffn = true,
     .window_rule = IMP_WINDOW_ALL,
     .names = {names_phi3, names_decoder, names_two_norms}},
    {.name = "bert", .gguf = "bert", .hf = "bert", BERT_LIKE, .names = {names_bert}},
    {.name = "distilbert", .hf = "distilbert", BERT_LIKE, .names = {names_distilbert}},
    {.name = "roberta", .hf = "roberta", BERT_LIKE, .position_offset = true, .names = {names_bert}},
    {.name = "xlm-roberta", .hf = "xlm-roberta", BERT_LIKE, .position_offset = true, .names = {names_bert}},
    {.name = "nomic-bert",
     .gguf = "nomic-bert",
     .hf = "nomic_bert",
     .family = IMP_FAMILY_BERT,
     .act = IMP_ACT_SILU,
     .gated_ffn = true,
     .theta = 1000,
     .names = {names_nomic, names_nomic_port}},
    {.name = "modernbert",
     .gguf = "modern-bert",
     .hf = "modernbert",
     .family = IMP_FAMILY_MODERNBERT,
     .act = IMP_ACT_GELU,
     .gated_ffn = true,
     .fused_ffn = true,
     .theta = 160000,
     .theta_local = 10000,
     .window_rule = IMP_WINDOW_FIRST_FULL,
     .window_period = 3,
     .names = {names_modernbert}},
};

const imp_arch *imp_arch_from_gguf(const char *name, size_t n)
{
    for (size_t i = 0; i < IMP_COUNT(arches); i++) {
        const char *g = arches[i].gguf;
        if (g && strlen(g) == n && memcmp(g, name, n) == 0) return &arches[i];
    }
    return NULL;
}

const imp_arch *imp_arch_from_hf(const char *model_type)
{
    for (size_t i = 0; i < IMP_COUNT(arches); i++)
        if (arches[i].hf && strcmp(arches[i].hf, model_type) == 0) return &arches[i];
    return NULL;
}

void imp_arch_list(bool gguf, imp_buf *out)
{
    for (size_t i = 0; i < IMP_COUNT(arches); i++) {
        const char *name = gguf ? arches[i].gguf : arches[i].hf;
        if (name) imp_buf_fmt(out, "%s%s", out->n ? ", " : "", name);
    }
}
