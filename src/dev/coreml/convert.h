/* dev/coreml/convert.h - graphs to Core ML packages that are laid out for the Apple Neural Engine.
 *
 * Place:   layer 4; called by `impetus convert` and by the Core ML device.
 * Idea:    activations are (1, channels, 1, tokens); linear layers are 1x1 convolutions; heads are split and attend by
 *          matmul, softmax, matmul; norms divide by the largest magnitude first, so that squares never leave half
 *          precision; token lookup, and the sum of embeddings, stay on the host. One function a length, weights shared.
 * Inputs:  "hidden" [1][n_embd][1][S] (imp_ml_host fills it), "mask" [1][1][1][S] (0, or -1e4 for keys that are padding),
 *          "pool" [1][1][1][S] (weights of the mean, or 1 at the row that is taken).
 * Outputs: encoders: "embedding" [1][1][1][dim]. Decoders (prefill from position 0): "k_I", "v_I" [1][width][1][S] of every
 *          KV layer I, and "hidden_out" where a later chunk goes on.
 * Decode:  one token at position p < N. States "k_cache_I", "v_cache_I" [1][n_kv_head][head_dim][N] (what prefill gave goes
 *          there); inputs "hidden" [1][n_embd][1][1], "slot" [1][1][1][N] (1 at p), "mask" and "mask_W" for windows of W
 *          [1][1][1][N] (0 for keys that are seen), "cos_R", "sin_R" of each kind R of rotation; outputs "logits_J", the
 *          vocabulary in order, [1][rows][1][1].
 * Claims:  that an op runs on the ANE is predicted from published rules; nothing here has measured it. */
#ifndef IMP_ML_CONVERT_H
#define IMP_ML_CONVERT_H

#include "dev/coreml/tune.h"
#include "graph/graph.h"

enum { IMP_ML_MAX_BUCKET = 16, IMP_ML_MAX_CHUNK = 64, IMP_ML_MAX_ROPE = 8 };

typedef struct imp_ml_options {
    uint32_t n_bucket;
    uint32_t bucket[IMP_ML_MAX_BUCKET]; /* lengths, ascending, each 1..32768 */
    imp_ml_packing pack;
    const imp_ml_packing *form; /* [n + 1] by LINEAR node in place of pack; NULL: pack for all */
    const imp_ml_tuned *tuned;  /* matrices that are compressed already; NULL: none */
    uint32_t decode;    /* decoders: also a function for one token behind up to decode - 1 others; 0: none */
    imp_pool *pool;     /* NULL: the calling thread alone */
    int32_t spec;       /* specification version, 0: the lowest that can hold it */
    uint64_t max_chunk; /* bytes of weights a package may have, 0: 950 MB */
    const char *source; /* the model's name, for the package's metadata */
    void (*progress)(void *user, const char *weight, uint64_t done,
                     uint64_t total); /* bytes of source weights; may be NULL */
    void *user;
} imp_ml_options;

typedef struct imp_ml_weight_report {
    const char *name;
    uint32_t part; /* of the head */
    char how[16];
    uint64_t n, k, bytes;
    double error; /* |w - w'| / |w| */
    double
        output_error; /* of the layer's output over the calibration text, to its standard deviation; -1: not known */
    uint64_t n_clamped;
} imp_ml_weight_report;

typedef struct imp_ml_report {
    imp_arena *arena; /* owns what follows */
    int32_t spec;
    uint32_t n_chunk;
    char path[IMP_ML_MAX_CHUNK][512]; /* one package a chunk */
    uint64_t bytes, half_bytes;       /* of weights; the same at fp16 */
    uint32_t n_weight;
    imp_ml_weight_report *weight;
    double worst_error;
} imp_ml_report;

/* path: the folder to make, ending in .mlpackage. Chunks are called NAME_1of3.mlpackage. UNSUPPORTED names the op that has
 * no form here. The report is freed with imp_ml_report_deinit, also after a failure. */
IMP_MUST_USE imp_status imp_ml_convert(const imp_graph *g, const char *path, const imp_ml_options *opt,
                                       imp_ml_report *report, imp_error *err);
void imp_ml_report_deinit(imp_ml_report *r);

/* ---- the host's part of a run ---------------------------------------------------------------------------------- */

/* Whether the node is computed by the host: embeddings and sums and scalings of them. */
bool imp_ml_on_host(const imp_graph *g, imp_val v);
/* The first input: hidden[c * s + t] for the tokens of one sequence from position 0, the rest 0. type NULL: all 0.
 * INVALID: a token or position that is outside its table. */
IMP_MUST_USE imp_status imp_ml_host_hidden(const imp_graph *g, const int32_t *token, const int32_t *type,
                                           uint32_t n, uint32_t s, float *hidden, imp_error *err);
/* "mask" and "pool" for n tokens of s. */
void imp_ml_host_mask(uint32_t n, uint32_t s, float *mask);
void imp_ml_host_pool(imp_pool_kind kind, uint32_t n, uint32_t s, float *pool);
/* The token's "hidden" at a position: [n_embd]. */
IMP_MUST_USE imp_status imp_ml_host_token(const imp_graph *g, int32_t token, uint32_t pos, float *hidden,
                                          imp_error *err);
/* "mask" of decode (window 0) or "mask_W" at position pos of n. */
void imp_ml_host_causal(uint32_t pos, uint32_t window, uint32_t n, float *mask);
/* Which kind of rotation a is, counted over the graph; rotation number i; the cos and sin of a position, [n_rot / 2]. */
uint32_t imp_ml_rope_index(const imp_graph *g, const imp_rope_attr *a);
const imp_rope_attr *imp_ml_rope_at(const imp_graph *g, uint32_t i); /* NULL: no more */
void imp_ml_host_rope(const imp_rope_attr *a, uint32_t pos, float *cosine, float *sine);

#endif
