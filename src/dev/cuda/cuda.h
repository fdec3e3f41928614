/* dev/cuda/cuda.h - the inside of the CUDA device.
 *
 * Place:   driver.c, lt.c (libraries found at run time), kernels.c (fatbins), lower.c (graph -> ops, sizes), weights.c
 *          (packing), run.c (ops -> launches), cuda.c (the vtable).
 * Idea:    compile turns the graph into a short list of ops whose fusions are fixed, over four regions of device memory:
 *          weights, KV, scratch (values by liveness), and what a step brings (meta). A step of few rows runs the memory-
 *          bound kernels, its launches captured once a shape as a CUDA graph; a step of many rows runs 16-bit products.
 * Always:  run allocates no device memory. */
#ifndef IMP_DEV_CUDA_H
#define IMP_DEV_CUDA_H

#include "base/thread.h"
#include "dev/cuda/args.h"
#include "dev/cuda/driver.h"
#include "dev/dev.h"

/* Rows up to which a step runs the kernels of few rows. */
enum { CUDA_FEW = 8, CUDA_MOE_ROWS = 256, CUDA_N_GRAPH = 48 };
#define CUDA_NONE UINT64_MAX

/* X(field, module, symbol) */
#define IMP_CUDA_KERNELS(X)                                                                                  \
    X(embed, 0, "embed")                                                                                     \
    X(rows, 0, "rows")                                                                                       \
    X(to16, 0, "to16")                                                                                       \
    X(glu16, 0, "glu16")                                                                                     \
    X(rms_norm, 0, "rms_norm")                                                                               \
    X(layer_norm, 0, "layer_norm")                                                                           \
    X(l2_norm, 0, "l2_norm")                                                                                 \
    X(rope_kv, 0, "rope_kv")                                                                                 \
    X(rope_kv_q8, 0, "rope_kv_q8")                                                                           \
    X(pool, 0, "pool")                                                                                       \
    X(moe_route, 0, "moe_route")                                                                             \
    X(moe_sum, 0, "moe_sum")                                                                                 \
    X(read_all, 0, "read_all")                                                                               \
    X(gemv_f32, 1, "gemv_f32")                                                                               \
    X(gemm_bf16, 2, "gemm_bf16")                                                                             \
    X(gemm_f16, 2, "gemm_f16")                                                                               \
    X(attn_f16_1, 3, "attn_f16_1")                                                                           \
    X(attn_f16_4, 3, "attn_f16_4")                                                                           \
    X(attn_f16_8, 3, "attn_f16_8")                                                                           \
    X(attn_f32_1, 3, "attn_f32_1")                                                                           \
    X(attn_f32_4, 3, "attn_f32_4")                                                                           \
    X(attn_f32_8, 3, "attn_f32_8")                                                                           \
    X(attn_q8_1, 3, "attn_q8_1")                                                                             \
    X(attn_q8_4, 3, "attn_q8_4")                                                                             \
    X(attn_q8_8, 3, "attn_q8_8")                                                                             \
    X(flash_64, 5, "flash_64")                                                                               \
    X(flash_128, 5, "flash_128")                                                                             \
    X(flash_q8_64, 5, "flash_q8_64")                                                                         \
    X(flash_q8_128, 5, "flash_q8_128")                                                                       \
    X(attn_step_64, 6, "attn_step_64")                                                                       \
    X(attn_step_128, 6, "attn_step_128")                                                                     \
    X(attn_step_q8_64, 6, "attn_step_q8_64")                                                                 \
    X(attn_step_q8_128, 6, "attn_step_q8_128")                                                               \
    X(kv_move, 4, "kv_move")                                                                                 \
    X(reduce_small, 8, "reduce_small")                                                                       \
    X(reduce_large, 8, "reduce_large")                                                                       \
    X(flash_wg_64, 10, "flash_wg_64")                                                                        \
    X(flash_wg_128, 10, "flash_wg_128")                                                                      \
    X(top, 9, "top")                                                                                         \
    X(pack, 4, "pack")                                                                                       \
    X(unpack, 4, "unpack")

typedef struct cuda_kernels {
#define IMP_X(field, module, symbol) cu_func field;
    IMP_CUDA_KERNELS(IMP_X)
#undef IMP_X
    cu_func gemv[CU_N_TYPE][2]; /* up to 4, 8 rows; F32 unused */
    cu_func mid[CU_N_TYPE][3];  /* up to 16, 32, 64 rows; quantised types */
} cuda_kernels;

typedef struct cuda_device {
    imp_device base;
    const cu_driver *cu;
    cu_devid id;
    cu_ctx ctx;
    cu_stream stream;
    cu_module module[IMP_CUDA_N_MODULE];
    cuda_kernels fn;
    uint32_t n_sm, smem; /* multiprocessors; shared memory a block may take */
    cu_lt *lt;           /* NULL: our own products */
    bool groups;         /* products of whole warp groups (compute capability 9.0, no other) */
    bool pdl;            /* launches may overlap (compute capability 9.0 and up) */
    bool after_copy;     /* the next launch follows a copy, which no launch may overlap */
    bool lost;           /* a kernel failed: nothing runs on this context any more */
    imp_mutex *lock;     /* compile and run in turn */
    char lost_why[120];
} cuda_device;

/* A matrix, or equal ones one after another (experts), in the weights region. */
typedef struct cuda_mat {
    uint32_t type, n, k, kpad, n_part;
    uint64_t q_at, q_part;
} cuda_mat;

/* Rows a file's tensor fills in a matrix. */
typedef struct cuda_fill {
    const imp_tensor *t;
    uint32_t mat, part, row;
} cuda_fill;

/* A vector in the weights region; several tensors may follow each other (biases of a group), NULL: zeros. */
typedef struct cuda_vec {
    const imp_tensor *t;
    const float *data; /* instead of t */
    uint64_t at;
    uint32_t n;
} cuda_vec;

typedef struct cuda_buf {
    uint64_t bytes, at;
    uint32_t first, last;
} cuda_buf;
/* Rows of floats in a buffer. */
typedef struct cuda_loc {
    uint32_t buf, ld;
    uint64_t off;
} cuda_loc;

typedef enum cuda_kind {
    CUDA_INPUT,
    CUDA_EMBED,
    CUDA_LINEAR,
    CUDA_RMS,
    CUDA_LAYER_NORM,
    CUDA_L2,
    CUDA_ROWS,
    CUDA_ROPE_KV,
    CUDA_ATTN,
    CUDA_MOE,
    CUDA_GATHER,
    CUDA_POOL,
    CUDA_REDUCE,
    CUDA_OUTSIDE
} cuda_kind;

typedef struct cuda_op {
    cuda_kind kind;
    imp_rows rows;
    const imp_node *node;
    cuda_loc a, b, c, out; /* inputs and result; ROPE_KV: q, k, v, q rotated; LINEAR: x, residual */
    uint32_t width;
    imp_val x_val,
        out_val; /* LINEAR: the value that is multiplied (behind the norm), the value that is made */
    uint32_t mat, mat2;
    bool glu, normed, has_res, only_next; /* only_next: the next op, a product, is the one reader */
    imp_act act;
    uint32_t row_op; /* CU_ROW_* */
    float eps, w_offset, c0;
    uint64_t vec[2]; /* norm weight and bias, sink, RoPE frequencies of q and k; CUDA_NONE */
    const imp_rope_attr *rope_q, *rope_k;
    uint64_t kc, vc; /* in the KV region, or in tmp */
    uint32_t tmp;    /* buffer of a cache that lives for this op alone; 0: the KV region */
    uint32_t moe_buf[4];
} cuda_op;

typedef struct cuda_captured {
    uint32_t n_tok, n_out, n_split;
    bool top;
    cu_gexec exec;
    uint64_t used;
} cuda_captured;

typedef struct cuda_exec {
    imp_exec base;
    const imp_graph *graph;
    imp_limits lim;
    imp_arena *arena;
    cuda_mat *mat;
    cuda_fill *fill;
    cuda_vec *vec;
    cuda_buf *buf;
    cuda_op *op;
    uint32_t n_mat, n_fill, n_vec, n_buf, n_op; /* mat 0 and buf 0 are unused */
    cuda_loc out;
    uint64_t *kv_at;  /* [kv layer] */
    uint32_t kv_kind; /* CU_KV_*: of the cache; what lives for one op alone is never Q8 */
    uint8_t *
        kv_host; /* a layer's keys or values of a block on their way to another layout; NULL: there is no other */
    bool has_cached, has_uncached;

    uint64_t weights_bytes, kv_bytes, values_bytes, scratch_bytes, meta_bytes, out_bytes, input_bytes;
    uint64_t h_at[2], h_bytes, t16_at, t16_bytes, w16_at, w16_bytes, part_at, part_bytes, count_at,
        count_bytes, lt_at, meta_at, x32_at, x32_bytes, mid_part_at, mid_part_bytes, mid_count_at,
        mid_count_bytes;
    /* ops.top: what cu_top works in, on the device; all 0: the graph's result has no rows of its own choosing */
    uint64_t top_part_at, top_part_bytes, top_stat_at, top_stat_bytes, top_count_at, top_count_bytes,
        top_out_at, top_out_bytes, top_mask_at, top_mask_bytes;
    uint32_t attn_rows, max_split; /* rows an attention launch takes; splits of the longest sequence */
    cu_mem weights, kv, scratch;
    int32_t *meta;      /* host, pinned */
    float *result;      /* host, pinned */
    cu_top_row *top;    /* host, pinned: of each row of the last run, then one for masks; NULL: none */
    uint32_t top_n_row; /* of the last run; 0: it gave its rows */
    float *input;       /* host, pinned: the batch's rows for INPUT; NULL: the graph has none */
    cu_event begin, end;
    uint64_t last_ns;
    cuda_captured captured[CUDA_N_GRAPH];
    uint64_t clock;
    /* OUTSIDE nodes: rows on their way to the host and back, pinned. */
    imp_outside outside;
    float *outside_rows;
    uint64_t outside_bytes;
    /* A member of a divided graph: n_member 0, none. */
    uint32_t n_member, rank, epoch;
    uint64_t piece_at, piece_bytes; /* scratch: cu_kv_piece of every layer's keys and values, for kv_move */
    bool has_pieces;
    uint64_t board_at, board_bytes, calls_at,
        calls_bytes;         /* scratch: what the members write, counts of calls */
    struct imp_group *group; /* borrowed */
    cu_mem board[CU_MEMBERS];
    uint32_t *stop; /* host, pinned: not 0, no kernel waits for a member any more */
} cuda_exec;

/* Ops, matrices and all sizes; no device memory. Serves plan and compile. */
IMP_MUST_USE imp_status imp_cuda_lower(cuda_exec *x, imp_error *err);
/* NULL, or why this type cannot be packed. */
const char *imp_cuda_weight_refusal(const imp_tensor *t);
uint32_t imp_cuda_type(const imp_tensor *t);
/* A new matrix in the weights region. */
uint32_t imp_cuda_add_mat(cuda_exec *x, uint32_t type, uint64_t n, uint64_t k, uint32_t n_part);
IMP_MUST_USE imp_status imp_cuda_fill_weights(cuda_device *d, cuda_exec *x, imp_error *err);
IMP_MUST_USE imp_status imp_cuda_step(cuda_device *d, cuda_exec *x, const imp_batch *b, imp_error *err);

/* Keys (part 0) or values of a block in a layer: *bytes in one piece. */
cu_mem imp_cuda_kv_at(const cuda_exec *x, uint32_t layer, uint32_t part, uint32_t block, uint64_t *bytes);
imp_status imp_cuda_usable(cuda_device *d, imp_error *err); /* and its context is the thread's */
/* ops.kv_stage and what goes with it (stage.c). */
void *imp_cuda_kv_stage(imp_exec *x, imp_exec *to, uint64_t bytes);
void imp_cuda_kv_stage_free(imp_device *d, void *stage);
IMP_MUST_USE imp_status imp_cuda_kv_staged(imp_exec *x, const uint32_t *block, uint32_t n, void *stage,
                                           bool out, imp_error *err);
/* d's kernels may read and write the memory of `other` from now on. UNSUPPORTED: the machine has no way. */
IMP_MUST_USE imp_status imp_cuda_reach(cuda_device *d, cuda_device *other, imp_error *err);
/* ops.join, and what a member does around its steps (join.c). */
IMP_MUST_USE imp_status imp_cuda_join(imp_exec *const *member, uint32_t n, uint32_t rank, struct imp_group *g,
                                      imp_error *err);
/* Before a step's first launch: all have come. CANCELLED: the step is given up. */
IMP_MUST_USE imp_status imp_cuda_member_begin(cuda_device *d, cuda_exec *x, imp_error *err);
/* Behind a launch that waits for the other members: nobody prepares kernels before all have launched theirs, because loading
 * one may wait for the GPU. false: the step is given up. */
bool imp_cuda_member_sent(cuda_exec *x);
IMP_MUST_USE imp_status imp_cuda_member_end(cuda_device *d, cuda_exec *x, imp_error *err);
/* The best columns of a row of the last step with this mask, into x->top's last place. */
IMP_MUST_USE cu_result imp_cuda_top_masked(cuda_device *d, cuda_exec *x, uint32_t row, const uint32_t *mask);
/* A row of the last step's result, into its place in x->result. */
IMP_MUST_USE cu_result imp_cuda_row(cuda_device *d, cuda_exec *x, uint32_t row);

/* Turn a driver's error into ours; the device is lost unless it was about memory. */
imp_status imp_cuda_fail(cuda_device *d, cu_result r, const char *doing, imp_error *err);
/* Launch with the arguments struct `args`. */
cu_result imp_cuda_launch(cuda_device *d, cu_func f, uint64_t gx, uint64_t gy, uint64_t gz, uint32_t threads,
                          uint32_t smem, const void *args);

/* Keys and values of an op with a cache of its own (tmp), or in the cache. */
static inline uint32_t imp_cuda_kv_kind(const cuda_exec *x, bool own)
{
    return own && x->kv_kind == CU_KV_Q8 ? CU_KV_F16 : x->kv_kind;
}

/* Splits of n keys (args.h). */
static inline uint32_t imp_cuda_n_split(uint32_t n)
{
    return n <= CU_FAR ? (n + CU_SPLIT - 1) / CU_SPLIT
                       : CU_FAR / CU_SPLIT + (n - CU_FAR + CU_SPLIT_FAR - 1) / CU_SPLIT_FAR;
}
static inline uint32_t imp_cuda_split_begin(uint32_t s)
{
    const uint32_t near = CU_FAR / CU_SPLIT;
    return s < near ? s * CU_SPLIT : CU_FAR + (s - near) * CU_SPLIT_FAR;
}
static inline uint64_t imp_cuda_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}
/* The row of a matrix of two halves (gate, up) of n rows at which the second begins. */
static inline uint32_t imp_cuda_half(uint64_t n)
{
    return (uint32_t)imp_cuda_up(n, 16);
}

#endif
