/* kern/kern.h - the CPU kernels: everything that touches elements on the CPU.
 *
 * Place:   layer 2; called by dev/cpu, measured by tools/checkkern. Knows tensors, no graphs.
 * Idea:    a kernel variant is one const descriptor in one file plus one line in a list (matmul_list.inc,
 *          vec_list.inc, attn_list.inc); baseline code selects by CPU feature bits. ref/ is plain C with
 *          f64 accumulation: the truth the others are held to.
 * Always:  batch invariance: the bits of a result depend on that row's inputs and on the variant, never on how
 *          many rows stand beside it, how columns are split over calls or threads, or where a buffer is aligned.
 *          Elementwise kernels give the same bits for any split of their range.
 * Errors:  kernels cannot fail: shapes are checked when a graph is compiled.
 * Threads: every function is reentrant; outputs of concurrent calls must be disjoint. */
#ifndef IMP_KERN_H
#define IMP_KERN_H

#include "tensor/tensor.h"

#if defined(__x86_64__)
#define IMP_KERN_X86 1
#elif defined(__aarch64__)
#define IMP_KERN_ARM 1
#endif

/* ---- CPU features: the CPU has it, the system saves its state, and no mask took it away ------ */
/* X(NAME, bit, text) */
#define IMP_CPU_LIST(X)                                                                                      \
    X(AVX2, 0, "avx2")             /* with FMA and F16C */                                                   \
    X(AVXVNNI, 1, "avxvnni")       /* 256-bit VPDPBUSD, VEX form; with AVX2 */                               \
    X(AVX512, 2, "avx512")         /* F, BW, VL, DQ; with AVX2 */                                            \
    X(AVX512VNNI, 3, "avx512vnni") /* with AVX512 */                                                         \
    X(AVX512BF16, 4, "avx512bf16") /* with AVX512 */                                                         \
    X(AMX_INT8, 5, "amx_int8")     /* tile state permitted by the system */                                  \
    X(AMX_BF16, 6, "amx_bf16")                                                                               \
    X(NEON, 16, "neon")                                                                                      \
    X(DOTPROD, 17, "dotprod")                                                                                \
    X(FP16, 18, "fp16")                                                                                      \
    X(I8MM, 19, "i8mm")                                                                                      \
    X(BF16, 20, "bf16")

#define IMP_X(name, bit, text) IMP_CPU_##name = 1u << (bit),
enum imp_cpu_bits { IMP_CPU_LIST(IMP_X) };
#undef IMP_X

uint64_t imp_cpu_features(void);          /* detected bits & mask */
void imp_cpu_set_mask(uint64_t mask);     /* keep only these bits; default all. Before any selection. */
const char *imp_cpu_bit_name(unsigned i); /* "avx2"; NULL: bit i has no name */
/* "avx2,neon" (keep these), "-avx512,-avx512vnni" (take these away) or a number such as 0x1; false: not
 * understood. The application gives it the IMPETUS_CPU_MASK variable. */
bool imp_cpu_mask_parse(const char *text, uint64_t *mask);

/* ---- activations as int8 -------------------------------------------------------------------- */
/* 32 consecutive elements of a row: x[i] ~ d * q[i], d = max|x| / 127, q in -127..127 (never -128),
 * rounded to nearest even. A NaN or infinity among the 32 makes d NaN and all q zero. */
typedef struct imp_q8_block {
    float d;
    int32_t sum; /* q[0] + ... + q[31] */
    int8_t q[32];
} imp_q8_block;

/* ---- matmul ------------------------------------------------------------------------------------ */
typedef enum imp_x_form {
    IMP_X_F32, /* float [m][k] */
    IMP_X_Q8   /* imp_q8_block [m][k/32], made by imp_vec.quant_q8 */
} imp_x_form;

typedef struct imp_matmul_args {
    const imp_tensor *w; /* [n][k] (leading dims flattened to n); borrowed */
    const void *wp;      /* from this variant's pack(); unused when pack is NULL: w->data is read in place */
    const void *x;       /* in the variant's x_form; no alignment needed */
    size_t x_stride;     /* bytes from row to row */
    float *y;            /* row i, column j at y[i * y_stride + j] */
    size_t y_stride;     /* floats */
    const float *bias;   /* [n] f32, added last; or NULL */
    uint32_t m;          /* rows of x and y, >= 1 */
    uint32_t n0, n1;     /* columns of y = rows of w: n0..n1-1, any split (n_step says which is fast) */
    void *scratch; /* this thread's own, scratch_bytes(k) bytes, 64-byte aligned; unused when that is 0 */
} imp_matmul_args;

typedef struct imp_matmul {
    const char *name; /* "q8_0_avx2" */
    const char *isa;  /* "avx2" */
    imp_dtype dtype;  /* weight type; IMP_DTYPE_NONE: any that imp_tensor_row_f32 decodes, affine too */
    imp_x_form x_form;
    uint64_t cpu; /* feature bits it needs */
    uint32_t
        x_bits; /* 16: f32 activations are rounded to 16 bits, of each or of the largest of 32 columns; 0: not */
    bool flushes;        /* weights, activations and sums below 2^-126 count as zero */
    uint32_t k_multiple; /* requires k % k_multiple == 0 */
    uint32_t
        n_step; /* split columns over threads in multiples of this for speed; results do not depend on it */
    /* Per output: |y - exact| <= (err_per_k * k + err_const) * FLT_EPSILON * sum |w||x| (+ the bias's rounding, and with
     * x_bits 16 for each x: |w| * (largest |x| of its 32) / 65534) */
    float err_per_k, err_const;
    /* NULL: runs on the file's own bytes. Panels of n_step rows follow each other: rows from a multiple r of it on may be
     * packed alone, to packed_bytes(r, k) (not those of IMP_AFFINE tensors). */
    uint64_t (*packed_bytes)(uint64_t n, uint64_t k);
    void (*pack)(const imp_tensor *w, void *out); /* NULL with packed_bytes */
    uint64_t (*scratch_bytes)(uint64_t k);        /* NULL: none */
    void (*run)(const imp_matmul_args *a);
} imp_matmul;

/* The best variant this CPU may run for weights of this type and inner size. Never NULL for a type that
 * imp_tensor_row_f32 decodes: the generic variant takes any k; NULL for types that are no weights. */
const imp_matmul *imp_matmul_select(imp_dtype t, uint64_t k);
/* The same among those that take x as f32: for results that int8 activations would round too much. */
const imp_matmul *imp_matmul_select_f32(imp_dtype t, uint64_t k);
/* All variants of this build in list order (the generic one first); NULL past the end. For tests and benchmarks. */
const imp_matmul *imp_matmul_at(size_t i);

/* ---- row kernels ------------------------------------------------------------------------------- */
typedef enum imp_kact { /* numbered as graph.h's imp_act */
                        IMP_KACT_SILU,
                        IMP_KACT_GELU /* erf */,
                        IMP_KACT_GELU_TANH,
                        IMP_KACT_RELU,
                        IMP_KACT_TANH,
                        IMP_KACT_SIGMOID,
                        IMP_N_KACT
} imp_kact;

/* All rows f32, any alignment; y may be x (the same pointer), else they are disjoint. n >= 1. */
typedef struct imp_vec {
    const char *isa;
    uint64_t cpu;
    /* y = x / sqrt(mean(x^2) + eps) * (w + w_offset) over one group of n; w NULL: times 1 */
    void (*rms_norm)(float *y, const float *x, const float *w, float w_offset, float eps, size_t n);
    /* y = (x - mean) / sqrt(var + eps) * w + b; w, b may be NULL */
    void (*layer_norm)(float *y, const float *x, const float *w, const float *b, float eps, size_t n);
    /* y = x / max(|x|, eps) */
    void (*l2_norm)(float *y, const float *x, float eps, size_t n);
    /* exp(x - max) / sum; entries of -inf give 0; all -inf gives NaN */
    void (*softmax)(float *y, const float *x, size_t n);
    void (*act)(float *y, const float *x, imp_kact act, size_t n);
    void (*glu)(float *y, const float *gate, const float *up, imp_kact act,
                size_t n);                                           /* act(gate) * up; y may be gate or up */
    void (*add)(float *y, const float *a, const float *b, size_t n); /* y may be a or b */
    void (*mul)(float *y, const float *a, const float *b, size_t n); /* y may be a or b */
    void (*scale)(float *y, const float *x, float c, size_t n);
    void (*axpy)(float *y, float c, const float *x, size_t n);    /* y += c * x, one rounding */
    void (*softcap)(float *y, const float *x, float c, size_t n); /* c * tanh(x / c) */
    /* n_head heads of head_dim columns; the first n_rot columns of each are rotated by cs/sn[n_rot/2] (mscale already
     * in them), the rest copied. interleaved: pairs (2i, 2i+1), else (i, i + n_rot/2). */
    void (*rope)(float *y, const float *x, const float *cs, const float *sn, uint32_t n_head,
                 uint32_t head_dim, uint32_t n_rot, bool interleaved);
    float (*dot)(const float *a, const float *b, size_t n);
    void (*f32_to_f16)(uint16_t *y, const float *x, size_t n); /* nearest even, overflow to infinity */
    void (*f16_to_f32)(float *y, const uint16_t *x, size_t n);
    void (*quant_q8)(imp_q8_block *y, const float *x, size_t k); /* k % 32 == 0 */
} imp_vec;

const imp_vec *imp_vec_get(void);    /* the best this CPU may run */
const imp_vec *imp_vec_at(size_t i); /* i = 0: ref; NULL past the end */

/* ---- attention --------------------------------------------------------------------------------- */
/* Query rows of one sequence against one KV head: for each row r and each query head h that shares the KV head,
 *   out = sum_j softmax_j(softcap(scale * q . k_j)) v_j
 * over the keys the row sees. Keys are worked through in tiles of IMP_ATTN_TILE positions counted from key 0, with an
 * online softmax, and in chunks of IMP_ATTN_CHUNK positions that stand alone and are joined in order, so that a result
 * depends on the row's position and keys alone, not on rows beside it nor on who computes which chunk.
 *
 * Keys and values are either a cache's tiles (kern/kv.h): tile i at k + block[i] * block_stride, likewise v; or plain f32
 * rows of this step: key j at k + j * row_stride. Strides in bytes. With q8_0 and q4_0 tiles the queries are rounded to int8
 * as imp_q8_block has it (the ref variant does not); with q4_0 they are rotated first. */
enum { IMP_ATTN_TILE = 64, IMP_ATTN_CHUNK = 512 };

typedef struct imp_attn_args {
    const float *q;              /* row r, head h at q + r * q_stride + h * head_dim */
    float *out;                  /* likewise with out_stride; must not overlap q */
    size_t q_stride, out_stride; /* floats */
    uint32_t n_row;              /* query rows, at consecutive positions pos0, pos0 + 1, ... */
    uint32_t n_group;            /* query heads that share this KV head */
    uint32_t head_dim;
    const void *k, *v;     /* this layer's and head's tile in block 0, or row 0 */
    size_t block_stride;   /* tiles: from block to block, the same for k and v */
    size_t row_stride;     /* rows: the same for k and v; 0: tiles */
    const uint32_t *block; /* tiles: block table */
    imp_dtype kv_dtype;    /* tiles: a type that imp_kv_fits */
    uint32_t n_key;        /* keys there are: positions 0..n_key-1 */
    uint32_t pos0;
    bool causal;          /* true: key j <= row's position i, and i - j < window; false: |i - j| <= window */
    uint32_t window;      /* 0: none */
    float scale, softcap; /* softcap 0: none */
    const float *sink;    /* [n_group] logit of a key without value, or NULL */
    void *scratch;        /* imp_attn_scratch_bytes, 64-byte aligned, this thread's own */
} imp_attn_args;

typedef struct imp_attn {
    const char *isa;
    uint64_t cpu;
    uint32_t row_step; /* query rows x heads a call should bring for speed when there are many */
    bool rounds_q;     /* queries become int8 when keys are quantised */
    /* A row that sees no key gives zeros. */
    void (*run)(const imp_attn_args *a);
    /* The same in pieces, for several threads: the keys of one chunk into part, imp_attn_part_floats long; then, when all
     * chunks 0 .. n_chunk - 1 that hold a key some row sees are there (one behind the other), the answer from them. */
    void (*run_chunk)(const imp_attn_args *a, uint32_t chunk, float *part);
    void (*join)(const imp_attn_args *a, const float *part);
} imp_attn;

uint64_t imp_attn_scratch_bytes(uint32_t n_row, uint32_t n_group, uint32_t head_dim);
/* Of one chunk: for each row and head head_dim sums, then the maximum and the sum of weights, padded. */
uint64_t imp_attn_part_floats(uint32_t n_row, uint32_t n_group, uint32_t head_dim);
const imp_attn *imp_attn_get(void);
const imp_attn *imp_attn_at(size_t i); /* i = 0: ref; NULL past the end */

/* ---- ceilings ------------------------------------------------------------------------------------ */
/* One thread's work at the best rate this CPU's instructions allow; the caller runs it on every thread and divides by
 * time. */
typedef struct imp_peak {
    const char *isa;
    uint64_t cpu;
    uint64_t (*read)(const void *p,
                     size_t n); /* loads n bytes (multiple of 1024); returns a value that depends on them */
    double (*int8)(
        uint64_t n_iter);           /* chains of the widest int8 multiply-add; operations done (a MAC is 2) */
    double (*f32)(uint64_t n_iter); /* chains of FMA; operations done */
    /* Everything a product of 4-bit weights cannot do without beside its multiply-adds, on registers; NULL: as int8. */
    double (*w4a8)(uint64_t n_iter);
} imp_peak;
const imp_peak *imp_peak_get(void);
const imp_peak *imp_peak_at(size_t i);

#endif
