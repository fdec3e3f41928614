/* graph/graph.h - the IR: what a model computes, written once, compiled by every device.
 *
 * Place:   layer 3. model/ builds graphs, dev/ compiles them; nothing here touches elements.
 * Idea:    a graph is an append-only list of nodes in execution order; a value is the index of the node that makes it.
 *          Every activation is f32 [rows][width]; rows is symbolic (tokens of the step, output rows or sequences), so
 *          one graph serves every batch. Heads are blocks of columns: [rows][n_head * head_dim].
 * Errors:  the builder is sticky: the first bad call is remembered, later ones return 0, imp_graph_finish reports it.
 * Memory:  nodes live in the graph; imp_tensor weights are copied as views, their data stays the model's. */
#ifndef IMP_GRAPH_H
#define IMP_GRAPH_H

#include "tensor/tensor.h"

typedef uint32_t imp_val; /* 0: none */

typedef enum imp_rows { IMP_ROWS_TOK, IMP_ROWS_OUT, IMP_ROWS_SEQ, IMP_ROWS_NONE /* weights */ } imp_rows;

/* X(NAME, inputs at least, inputs at most) */
#define IMP_OP_LIST(X)                                                                                       \
    X(WEIGHT, 0, 0)     /* leaf: parts[n_part], each [n][k] or [k] */                                        \
    X(INPUT, 0, 0)      /* leaf: the rows that the batch brings -> [tok][width] */                           \
    X(EMBED, 1, 1)      /* w[n_row][k]: row by token, position or type -> [tok][k] */                        \
    X(LINEAR, 2, 3)     /* x[r][k], w[n][k], bias[n]? -> [r][n] */                                           \
    X(RMS_NORM, 1, 2)   /* x, w[group]?: per group of columns x/sqrt(mean(x^2)+eps) * (w + w_offset) */      \
    X(LAYER_NORM, 1, 3) /* x, w?, b?: (x-mean)/sqrt(var+eps) * w + b over the width */                       \
    X(ADD, 2, 2)        /* same shape */                                                                     \
    X(MUL, 2, 2)        /* same shape */                                                                     \
    X(SCALE, 1, 1)      /* x * c */                                                                          \
    X(SOFTCAP, 1, 1)    /* c * tanh(x / c) */                                                                \
    X(ACT, 1, 1)        /* elementwise activation */                                                         \
    X(GLU, 2, 2)        /* act(gate) * up */                                                                 \
    X(SLICE, 1, 1)      /* columns begin .. begin+width-1 */                                                 \
    X(ROPE, 1, 1)       /* rotary position on the first n_rot columns of every head */                       \
    X(ATTN, 3, 4)    /* q, k, v, sink[n_head]?: k, v go to the cache, then softmax(scale q k^T + mask) v */  \
    X(MOE, 5, 5)     /* x, router logits[r][n_expert], gate, up, down (n_expert parts each) */               \
    X(GATHER, 1, 1)  /* rows batch->out_row -> [out][width] */                                               \
    X(POOL, 1, 1)    /* per sequence -> [seq][width] */                                                      \
    X(L2_NORM, 1, 1) /* x / max(|x|, eps) */                                                                 \
    X(ALLREDUCE, 1, 1) /* the sum of x over the members of a divided graph, in their order; alone: x */      \
    X(OUTSIDE, 2, 2)   /* a, b -> [rows of a][width]: what another executable makes of their rows */

typedef enum imp_op {
#define IMP_X(name, lo, hi) IMP_OP_##name,
    IMP_OP_LIST(IMP_X)
#undef IMP_X
        IMP_N_OP
} imp_op;

typedef enum imp_act {
    IMP_ACT_SILU,
    IMP_ACT_GELU /* erf */,
    IMP_ACT_GELU_TANH,
    IMP_ACT_RELU,
    IMP_ACT_TANH,
    IMP_ACT_SIGMOID
} imp_act;
typedef enum imp_embed_by { IMP_BY_TOKEN, IMP_BY_POSITION, IMP_BY_TYPE } imp_embed_by;
typedef enum imp_pool_kind { IMP_POOL_MEAN, IMP_POOL_CLS, IMP_POOL_LAST } imp_pool_kind;
typedef enum imp_mask {
    IMP_MASK_CAUSAL, /* key j is seen by query i when j <= i, and i - j < window when window > 0 */
    IMP_MASK_FULL    /* the whole sequence; |i - j| <= window when window > 0 (symmetric, ModernBERT) */
} imp_mask;

typedef struct imp_attn_attr {
    uint32_t n_head, n_kv_head, head_dim; /* q: [r][n_head*head_dim]; k, v: [r][n_kv_head*head_dim] */
    uint32_t window;                      /* 0: none */
    int32_t kv_layer; /* which layer of the KV cache; -1: none, keys are this step's own */
    imp_mask mask;
    float scale, softcap; /* softcap 0: none; applied to scale*q.k before the mask */
} imp_attn_attr;

typedef struct imp_rope_attr {
    uint32_t head_dim, n_rot; /* n_rot <= head_dim, even: the rest passes through */
    bool interleaved;         /* pairs (0,1),(2,3).. instead of (i, i + n_rot/2) */
    float mscale;             /* cos and sin are multiplied by it (yarn, longrope); 1: off */
    const float *inv_freq;    /* [n_rot/2]; the angle is the f32 product position * inv_freq[i] */
} imp_rope_attr;

typedef struct imp_moe_attr {
    uint32_t n_expert, n_used;
    imp_act act;
    bool norm_topk; /* weights = softmax over all experts, top n_used kept; true: divided by their sum */
} imp_moe_attr;     /* (softmax over the chosen ones alone equals norm_topk) */

typedef struct imp_node {
    imp_op op;
    uint32_t n_in;
    imp_val in[5];
    imp_rows rows;
    uint64_t width;   /* columns; a weight's last dimension */
    const char *name; /* "blk.3.attn_q", owned by the graph; "" when unnamed */
    union {
        struct {
            const imp_tensor *part;
            uint32_t n_part;
        } weight; /* part[] owned by the graph */
        struct {
            imp_embed_by by;
            int32_t offset;
        } embed; /* row = position + offset */
        struct {
            float eps;
            uint64_t group;
            float w_offset;
        } norm; /* group == width unless per head */
        struct {
            float c;
        } scale; /* SCALE and SOFTCAP */
        struct {
            imp_act act;
        } act; /* ACT and GLU */
        struct {
            uint64_t begin;
        } slice;
        imp_rope_attr rope; /* inv_freq copied into the graph */
        imp_attn_attr attn;
        imp_moe_attr moe;
        struct {
            imp_pool_kind kind;
        } pool;
        struct {
            uint32_t n;
        } reduce; /* members */
        struct {
            uint32_t index;
        } outside; /* which of the graph's */
    } u;
} imp_node;

typedef struct imp_graph imp_graph;

imp_graph *imp_graph_new(void); /* NULL when out of memory */
void imp_graph_free(imp_graph *g);

/* Name of the nodes added from now on ("blk.%u.ffn"): for the printer, profiles and plans. */
void imp_graph_scope(imp_graph *g, const char *fmt, ...) IMP_PRINTF(2, 3);

imp_val imp_g_weight(imp_graph *g, const char *name, const imp_tensor *t);
imp_val imp_g_weight_parts(imp_graph *g, const char *name, const imp_tensor *t,
                           uint32_t n_part); /* equal shapes */
/* Weight v of a finished graph reads other tensors of the same shape and number, perhaps of another type: to try or to price
 * a model in other types. data may be NULL when the graph is only priced. No executable of g may be alive, unless it was
 * compiled from these very tensors. INVALID: another shape, or rows that are no whole blocks. */
IMP_MUST_USE imp_status imp_graph_rebind(imp_graph *g, imp_val v, const imp_tensor *t, imp_error *err);
imp_val imp_g_input(imp_graph *g, uint64_t width); /* at most one */
imp_val imp_g_embed(imp_graph *g, imp_val w, imp_embed_by by, int32_t offset);
imp_val imp_g_linear(imp_graph *g, imp_val x, imp_val w, imp_val bias /* or 0 */);
imp_val imp_g_rms_norm(imp_graph *g, imp_val x, imp_val w /* or 0 */, float eps,
                       uint64_t group /* 0: width */, float w_offset);
imp_val imp_g_layer_norm(imp_graph *g, imp_val x, imp_val w, imp_val b, float eps);
imp_val imp_g_add(imp_graph *g, imp_val a, imp_val b);
imp_val imp_g_mul(imp_graph *g, imp_val a, imp_val b);
imp_val imp_g_scale(imp_graph *g, imp_val x, float c);
imp_val imp_g_softcap(imp_graph *g, imp_val x, float c);
imp_val imp_g_act(imp_graph *g, imp_val x, imp_act act);
imp_val imp_g_glu(imp_graph *g, imp_val gate, imp_val up, imp_act act);
imp_val imp_g_slice(imp_graph *g, imp_val x, uint64_t begin, uint64_t width);
imp_val imp_g_rope(imp_graph *g, imp_val x, const imp_rope_attr *a);
imp_val imp_g_attn(imp_graph *g, imp_val q, imp_val k, imp_val v, imp_val sink /* or 0 */,
                   const imp_attn_attr *a);
imp_val imp_g_moe(imp_graph *g, imp_val x, imp_val logits, imp_val gate, imp_val up, imp_val down,
                  const imp_moe_attr *a);
imp_val imp_g_gather(imp_graph *g, imp_val x);
imp_val imp_g_pool(imp_graph *g, imp_val x, imp_pool_kind kind);
imp_val imp_g_l2_norm(imp_graph *g, imp_val x);
imp_val imp_g_allreduce(imp_graph *g, imp_val x, uint32_t n_member);
imp_val imp_g_outside(imp_graph *g, imp_val a, imp_val b, uint64_t width, uint32_t index);
/* The graph's result: exactly one (logits [out][vocab], or vectors [seq][dim]). */
void imp_g_output(imp_graph *g, imp_val x);

/* Check the whole: an output, shapes, KV layers 0..n-1 used once each with stated widths. INVALID names the node. */
IMP_MUST_USE imp_status imp_graph_finish(imp_graph *g, imp_error *err);

uint64_t imp_graph_bytes(const imp_graph *g); /* memory it holds, without the weights; NULL: 0 */
uint32_t imp_graph_n(const imp_graph *g);     /* nodes; values are 1..n */
const imp_node *imp_graph_node(const imp_graph *g, imp_val v); /* v in 1..n */
imp_val imp_graph_output(const imp_graph *g);
uint32_t imp_graph_n_kv_layer(const imp_graph *g);
const imp_node *imp_graph_kv_layer(const imp_graph *g, uint32_t i); /* its ATTN node */
/* ---- in pieces, for devices that share a model by layers (cut.c) ---- */
/* The value that alone is still read behind the first n_layer of the KV layers (weights apart), so that the graph can be cut
 * there; 0: there is none. */
imp_val imp_graph_cut(const imp_graph *g, uint32_t n_layer);
/* The nodes behind value `from` (0: from the start) up to value `to` (0: to the end) as a graph of its own, whose KV layers
 * count from 0. Both are such values: `from` becomes an INPUT, and all rows of `to` the output (GATHER; the batch's out_row
 * names them). It borrows names, weights and tables from g, which must outlive it. */
IMP_MUST_USE imp_status imp_graph_piece(const imp_graph *g, imp_val from, imp_val to, imp_graph **out,
                                        imp_error *err);
/* ---- without its experts, which another device computes (experts.c) ---- */
uint32_t imp_graph_n_experts(const imp_graph *g); /* MOE nodes */
/* g with an OUTSIDE in place of every MOE, numbered from 0. Borrows as imp_graph_piece. */
IMP_MUST_USE imp_status imp_graph_without_experts(const imp_graph *g, imp_graph **out, imp_error *err);
/* MOE number i alone: INPUT rows are its input and then its router's logits; all rows are the output. Borrows, too. */
IMP_MUST_USE imp_status imp_graph_experts(const imp_graph *g, uint32_t i, imp_graph **out, imp_error *err);
/* ---- divided, for equal devices that compute every layer together (shard.c) ---- */
enum { IMP_SHARD_MAX = 8 };
typedef struct imp_shard_heads {
    uint32_t from, to; /* KV heads a member has of a layer */
} imp_shard_heads;
typedef struct imp_shard {
    imp_graph *graph;       /* one member's; owned */
    uint64_t out_from;      /* column of the whole's result at which the member's begin */
    imp_shard_heads *heads; /* [kv layers]; owned */
    void **slice;           /* [n_slice] copied columns of weights; owned */
    uint32_t n_slice, cap_slice;
    uint64_t slice_bytes;
    uint32_t n_cut,
        n_whole; /* attentions and feed-forwards that are divided, that every member computes whole */
} imp_shard;
/* Member `rank` of n, 2..IMP_SHARD_MAX, of a graph: attention by heads, feed-forwards and experts by their width, the output
 * by its columns, sums by ALLREDUCE; what does not divide stays whole in every member. Rows of weights are views of g's,
 * columns are copied (copy false: views that must not be read, to plan with). It borrows names, weights and tables from g,
 * which must outlive it. UNSUPPORTED: nothing of g divides. */
IMP_MUST_USE imp_status imp_graph_shard(const imp_graph *g, uint32_t n, uint32_t rank, bool copy,
                                        imp_shard *out, imp_error *err);
/* Frees the copied columns; the graph's weights must not be read any more. */
void imp_shard_drop_slices(imp_shard *s);
void imp_shard_deinit(imp_shard *s);
const char *imp_op_name(imp_op op);
/* A text listing, one node a line: "%12 = linear %11 blk.0.attn_q.weight:q4_k[2048x2048] -> [tok x 2048]". */
void imp_graph_print(const imp_graph *g, imp_buf *out);

#endif
