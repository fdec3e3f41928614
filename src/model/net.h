/* model/net.h - a loaded model: configuration, tokenizer, and graphs with weights bound.
 *
 * Place:   layer 4. engine opens it; one file a family beside this one turns configuration into a graph.
 * Idea:    a source (GGUF file or HF/MLX folder) is read into one neutral imp_net_config and a weight lookup by
 *          neutral names; the family's build function emits the graph. What is not understood is refused by name. */
#ifndef IMP_NET_H
#define IMP_NET_H

#include "graph/graph.h"
#include "text/tokenizer.h"

enum { IMP_MAX_EOS = 16 };

typedef struct imp_net_config {
    char arch[32];  /* our family name: "llama", "qwen3", "bert" */
    char name[128]; /* general.name or the folder's */
    char type[24];  /* dtype of most weight bytes: "q4_0"; MLX: "affine4g64" */
    uint32_t n_layer, n_embd, n_head, n_kv_head, head_dim, n_ff, n_vocab, n_ctx_train;
    uint64_t n_param, file_bytes;
    int32_t eos[IMP_MAX_EOS];
    uint32_t n_eos;
    bool can_generate, can_embed;
    imp_pool_kind pool;
    bool normalize; /* the model ends with L2 normalisation */
    bool matryoshka;
    uint32_t embed_dim;
    bool has_types; /* token types are embedded (BERT) */
} imp_net_config;

typedef struct imp_net {
    imp_net_config cfg;
    imp_tokenizer *tok;        /* NULL when the files hold none */
    imp_graph *generate;       /* tokens -> logits [out][n_vocab]; NULL for encoders */
    imp_graph *embed;          /* tokens -> vectors [seq][embed_dim], not normalised; NULL: cannot embed */
    const char *chat_template; /* Jinja text or NULL; owned */
    struct imp_net_source *source; /* the open files; private */
} imp_net;

/* n_ctx: context that will be served (longrope picks its table by it), 0: n_ctx_train. Weights are checked: present,
 * of the shape the configuration implies; unknown tensors and unknown RoPE types are refused. */
IMP_MUST_USE imp_status imp_net_open(const char *path, uint32_t n_ctx, imp_net **out, imp_error *err);
void imp_net_close(imp_net *n);
/* Only what the file says of the model: no tokenizer, no weights. n_param and type count every tensor. */
IMP_MUST_USE imp_status imp_net_peek(const char *path, imp_net_config *out, imp_error *err);
/* Memory that vocabulary, tensor directory and graphs take beside the weights. */
uint64_t imp_net_bytes(const imp_net *n);

#endif
