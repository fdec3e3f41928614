/* model/model_int.h - what the files of this folder share: the neutral configuration, the open source, the binder.
 *
 * Place:   private to src/model.
 * Idea:    config_gguf.c and config_hf.c fill one imp_spec; arch.c says what each architecture is made of and how its
 *          tensors are called; source.c finds tensors by neutral name; bind.c turns them into graph weights with their
 *          shapes checked; decoder.c, bert.c and modernbert.c emit the graph.
 * Names:   a neutral tensor name is GGUF's without "blk.N." and without the suffix: "attn_q", "ffn_down". */
#ifndef IMP_MODEL_INT_H
#define IMP_MODEL_INT_H

#include <jansson.h>

#include "fmt/gguf.h"
#include "fmt/hf.h"
#include "graph/graph.h"
#include "model/net.h"

enum {
    IMP_MAX_LAYER = 1024,
    IMP_MAX_EMBD = 65536,
    IMP_MAX_HEAD = 1024,
    IMP_MAX_HEAD_DIM = 1024,
    IMP_MAX_FF = 1 << 20,
    IMP_MAX_VOCAB = 1 << 24,
    IMP_MAX_CTX = 1 << 28,
    IMP_MAX_EXPERT = 1024
};

/* ---- architectures (arch.c) --------------------------------------------------------------- */

typedef enum imp_family { IMP_FAMILY_DECODER, IMP_FAMILY_BERT, IMP_FAMILY_MODERNBERT } imp_family;

/* Which layers have the sliding window when the file gives a window but no list of layers. */
typedef enum imp_window_rule {
    IMP_WINDOW_UNKNOWN, /* a window without a list is refused */
    IMP_WINDOW_ALL,
    IMP_WINDOW_PERIOD, /* the last layer of every group of `window_period` sees everything, the others do not */
    IMP_WINDOW_FIRST_FULL /* the first of every group does */
} imp_window_rule;

typedef struct imp_name { /* '#' stands for the layer's number, a second one for the expert's */
    const char *key, *name;
} imp_name;

typedef struct imp_arch {
    const char *name; /* ours; also config.json's model_type unless hf says otherwise */
    const char *gguf; /* general.architecture, NULL: this row is not for GGUF */
    const char *hf;   /* model_type, NULL: this row is not for folders */
    imp_family family;
    bool gguf_interleaved; /* the converter to GGUF permuted Q and K for pairs (0,1), (2,3), ... */
    bool qk_norm;          /* RMS norm of every head of Q and K */
    bool post_norm;        /* Gemma: also a norm behind attention and behind the feed-forward part */
    bool norm_plus_one;    /* Gemma: folders hold w of (1 + w); GGUF files hold 1 + w */
    bool scale_embed;      /* Gemma: embeddings are multiplied by sqrt(n_embd) */
    bool fused_ffn;        /* Phi-3, ModernBERT: ffn_up holds gate and up, gate first */
    bool gated_ffn;        /* act(gate) * up; else act(up) */
    bool qkv_bias;         /* always there (Qwen2, BERT); otherwise the configuration decides */
    bool positions;        /* learned position embeddings */
    bool position_offset;  /* RoBERTa: the first position's row is pad_token_id + 1 (folders) */
    bool tied;             /* the default of tie_word_embeddings */
    imp_act act;           /* what GGUF does not say; for folders the default */
    double theta, theta_local;
    imp_window_rule window_rule;
    uint32_t window_period;
    const imp_name *names[3]; /* tables of folder names, searched in order */
} imp_arch;

const imp_arch *imp_arch_from_gguf(const char *name, size_t n);
const imp_arch *imp_arch_from_hf(const char *model_type);
void imp_arch_list(bool gguf, imp_buf *out); /* "llama, mistral, ..." for refusals */

/* ---- RoPE (rope.c) ------------------------------------------------------------------------ */

typedef enum imp_rope_kind {
    IMP_ROPE_PLAIN,
    IMP_ROPE_LINEAR,
    IMP_ROPE_LLAMA3,
    IMP_ROPE_YARN,
    IMP_ROPE_LONG /* also called su */
} imp_rope_kind;

typedef struct imp_rope_spec {
    imp_rope_kind kind;
    double theta;
    double factor;                            /* 0: not given */
    double orig_ctx;                          /* context before scaling; 0: not given */
    double low_freq_factor, high_freq_factor; /* llama3 */
    double beta_fast, beta_slow;              /* yarn */
    double mscale, mscale_all_dim;            /* yarn; 0: not given */
    double attention_factor;                  /* yarn, long; 0: computed */
    double attention_mul;                     /* multiplies the computed one */
    bool truncate;                            /* yarn: whole dimensions bound the ramp */
    const float *long_factor, *short_factor;  /* [n_factor] */
    const float *divisor;                     /* [n_factor]: GGUF's rope_freqs, or NULL */
    uint32_t n_factor;
} imp_rope_spec;

void imp_rope_default(imp_rope_spec *r, double theta);
/* The kind by its name in config.json or GGUF ("default", "none", "linear", "su", ...); false: not understood. */
bool imp_rope_kind_from_name(const char *name, size_t n, imp_rope_kind *out);
/* inv_freq[n_rot/2] and the factor of cos and sin. n_ctx: what will be served. FORMAT: missing or senseless values. */
IMP_MUST_USE imp_status imp_rope_table(const imp_rope_spec *r, uint32_t n_rot, uint32_t n_ctx,
                                       float *inv_freq, float *mscale, imp_error *err);

/* ---- neutral configuration (config.c, config_gguf.c, config_hf.c) -------------------------- */

typedef enum imp_presence { IMP_ABSENT, IMP_PRESENT, IMP_IF_PRESENT } imp_presence;

typedef struct imp_spec {
    const imp_arch *arch;
    uint32_t n_layer, n_embd, n_head, n_kv_head, head_dim, n_rot, n_ff, n_vocab, n_ctx_train;
    uint32_t n_expert, n_expert_used, n_ff_exp; /* n_expert 0: none */
    bool norm_topk;
    bool sparse[IMP_MAX_LAYER]; /* which layers are mixtures */
    double norm_eps;
    float norm_offset;
    imp_act act;
    double attn_scale; /* 0: 1/sqrt(head_dim) */
    double attn_softcap, final_softcap;
    imp_presence qkv_bias, out_bias, ffn_bias, norm_bias;
    imp_presence tied; /* IF_PRESENT: tied when there is no output tensor */
    uint32_t window;   /* 0: none; causal: tokens seen; ModernBERT: tokens each side */
    bool local[IMP_MAX_LAYER];
    bool interleaved;
    imp_rope_spec rope, rope_local; /* rope_local: layers with a window */
    uint32_t n_type;                /* rows of the token type embedding */
    int32_t position_offset;
    bool has_pool; /* the files name a pooling */
    imp_pool_kind pool;
    bool normalize, matryoshka;
} imp_spec;

typedef struct imp_net_source imp_net_source;

/* Fill *s from the open source. FORMAT: missing or out of range, names the key; UNSUPPORTED: not understood. */
IMP_MUST_USE imp_status imp_spec_from_gguf(imp_net_source *src, imp_spec *s, imp_error *err);
IMP_MUST_USE imp_status imp_spec_from_hf(imp_net_source *src, imp_spec *s, imp_error *err);
/* A number of the file as u32 within lo..hi. */
IMP_MUST_USE imp_status imp_spec_u32(const char *key, uint64_t v, uint64_t lo, uint64_t hi, uint32_t *out,
                                     imp_error *err);
/* Relations between the numbers, whatever they were read from. */
IMP_MUST_USE imp_status imp_spec_check(imp_spec *s, imp_error *err);
/* Mark s->local by the architecture's rule; period 0: the rule's own. */
IMP_MUST_USE imp_status imp_spec_set_local(imp_spec *s, uint32_t period, imp_error *err);

/* ---- the open files (source.c) ------------------------------------------------------------- */

typedef struct imp_entry {
    const char *name; /* canonical: known prefixes cut, gamma and beta renamed */
    const char *raw;  /* as in the file */
    const imp_tensor *t;
    bool used;
} imp_entry;

struct imp_net_source {
    imp_gguf *gguf; /* one of the two */
    imp_hf *hf;
    imp_arena *arena;
    imp_map *map; /* canonical name -> index of entry */
    imp_entry *entry;
    uint32_t n_entry;
    const imp_arch *arch; /* once it is indexed */
};

IMP_MUST_USE imp_status imp_source_open(const char *path, imp_net_source **out, imp_error *err);
void imp_source_close(imp_net_source *src);
/* Canonical names need the architecture's family: call once it is known. */
IMP_MUST_USE imp_status imp_source_index(imp_net_source *src, const imp_arch *a, imp_error *err);
/* The entry called key + suffix (".weight") in this architecture; layer and expert -1: none. NULL: absent. */
imp_entry *imp_source_find(imp_net_source *src, const imp_arch *a, const char *key, int layer, int expert,
                           const char *suffix);
/* How the file would spell it (for messages). */
void imp_source_spell(const imp_net_source *src, const imp_arch *a, const char *key, int layer, int expert,
                      const char *suffix, char *out, size_t n_out);
/* The way back: which neutral name and layer (-1: none) a weight's name without its suffix means, in GGUF's spelling or a
 * folder's. false: none of this architecture's, or one of several experts'. */
bool imp_source_name(const imp_arch *a, bool gguf, const char *name, const char **key, int *layer);
/* Every tensor was used or is on the short list of those that change no result; else UNSUPPORTED names one. */
IMP_MUST_USE imp_status imp_source_check_all_used(const imp_net_source *src, const imp_spec *s,
                                                  imp_error *err);

/* ---- binding (bind.c) ---------------------------------------------------------------------- */

/* Sticky, like the graph: after the first error every call returns 0 and does nothing. */
typedef struct imp_binder {
    const imp_spec *s;
    imp_net_source *src;
    imp_graph *g;
    imp_status status;
    imp_error *err;
    imp_rope_attr rope, rope_local;
} imp_binder;

bool imp_bind_has(const imp_binder *b, const char *key, int layer, const char *suffix);
imp_val imp_bind_matrix(imp_binder *b, const char *key, int layer, uint64_t n,
                        uint64_t k);                                            /* .weight [n][k] */
imp_val imp_bind_vector(imp_binder *b, const char *key, int layer, uint64_t n); /* .weight [n] */
/* .bias [n]; 0 when absent (an error when PRESENT was asked for). */
imp_val imp_bind_bias(imp_binder *b, const char *key, int layer, uint64_t n, imp_presence want);
/* n_expert matrices [n][k], stacked in one tensor or one tensor each: stacked key "<key>s", single key "<key>". */
imp_val imp_bind_experts(imp_binder *b, const char *key, int layer, uint64_t n, uint64_t k);
imp_val imp_bind_linear(imp_binder *b, imp_val x, const char *key, int layer, uint64_t n, uint64_t k,
                        imp_presence bias);
imp_val imp_bind_rms_norm(imp_binder *b, imp_val x, const char *key, int layer, uint64_t width,
                          uint64_t group);
imp_val imp_bind_layer_norm(imp_binder *b, imp_val x, const char *key, int layer, imp_presence bias);
/* Projections to q, k and v from one fused tensor or three. */
void imp_bind_qkv(imp_binder *b, imp_val x, int layer, imp_val out[3]);
/* Rotate q and k as layer `layer` does. */
void imp_bind_rope(imp_binder *b, int layer, imp_val qkv[3]);

/* ---- families ------------------------------------------------------------------------------ */

/* pool: emit vectors instead of logits. Errors stay in b and in the graph. */
void imp_build_decoder(imp_binder *b, bool pool);
void imp_build_bert(imp_binder *b);
void imp_build_modernbert(imp_binder *b);

#endif
