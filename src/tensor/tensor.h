/* tensor/tensor.h - dtypes, quantised block layouts, tensor views, decoding to f32 and encoding.
 *
 * Place:   layer 1; used by fmt (what a file holds), kern (what is multiplied), graph (weights).
 * Idea:    one table row a dtype (dtype_list.inc): name, ids in files, elements and bytes a block, decoder,
 *          encoder.
 * Shapes:  row-major, dim[n_dim-1] contiguous: a linear layer's weight is [n_out][n_in], as in safetensors;
 *          GGUF lists the same sizes in reverse. */
#ifndef IMP_TENSOR_H
#define IMP_TENSOR_H

#include "base/base.h"

enum { IMP_MAX_DIM = 4 };

/* clang-format off */
typedef enum imp_dtype {
    IMP_DTYPE_NONE,
    IMP_F32, IMP_F16, IMP_BF16, IMP_F64, IMP_I8, IMP_I16, IMP_I32, IMP_I64, IMP_U8, IMP_U16, IMP_U32, IMP_U64, IMP_BOOL,
    IMP_Q4_0, IMP_Q4_1, IMP_Q5_0, IMP_Q5_1, IMP_Q8_0,
    IMP_Q2_K, IMP_Q3_K, IMP_Q4_K, IMP_Q5_K, IMP_Q6_K,
    IMP_IQ4_NL, IMP_IQ4_XS, IMP_MXFP4,
    IMP_AFFINE, /* MLX: bits, group, scales and biases stand in the tensor view */
    IMP_N_DTYPE
} imp_dtype;
/* clang-format on */

typedef struct imp_dtype_info {
    const char *name;    /* "q4_k" */
    uint32_t block_elem; /* elements a block; 1 for plain types; 0 for affine (depends on the view) */
    uint32_t block_bytes;
    int32_t gguf_id;     /* type id in GGUF, -1: none */
    const char *st_name; /* safetensors spelling ("BF16"), NULL: none */
    /* n elements (whole blocks) at src to f32; NULL for types that are no weights */
    void (*to_f32)(const void *src, float *dst, uint64_t n);
    /* n finite elements (whole blocks, magnitudes up to 65504) from f32; NULL: this type is only read. weight: how much
     * the squared error of each element counts, [n], >= 0; NULL: all alike, and then types of 32 a block equal the
     * format's reference byte for byte. */
    void (*from_f32)(const float *src, const float *weight, void *dst, uint64_t n);
} imp_dtype_info;

const imp_dtype_info *imp_dtype_get(imp_dtype t);
imp_dtype imp_dtype_from_gguf(uint32_t id); /* IMP_DTYPE_NONE: unknown or refused */
/* The name even of refused types ("iq2_xxs"); NULL: no such id. */
const char *imp_dtype_gguf_name(uint32_t id);
imp_dtype imp_dtype_from_st(const char *name, size_t n);
imp_dtype imp_dtype_from_name(const char *name);

typedef struct imp_tensor {
    imp_dtype dtype;
    uint32_t n_dim;
    uint64_t dim[IMP_MAX_DIM]; /* logical sizes (an affine tensor's unpacked ones); unused ones are 1 */
    const void *data;          /* borrowed; [rows][row_bytes] */
    /* IMP_AFFINE only: data is u32 words, packed LSB first; [rows][cols/group] scales and biases */
    uint32_t bits, group;
    imp_dtype scale_dtype; /* f16, bf16 or f32 */
    const void *scales, *biases;
} imp_tensor;

/* Bytes of n elements: the one place where a size is computed. FORMAT: n is no multiple of the block;
 * TOO_LARGE: overflow. */
IMP_MUST_USE imp_status imp_dtype_bytes(imp_dtype t, uint64_t n, uint64_t *out);
uint64_t imp_tensor_n_elem(const imp_tensor *t);
uint64_t imp_tensor_n_row(const imp_tensor *t);     /* product of all dims but the last */
uint64_t imp_tensor_n_col(const imp_tensor *t);     /* last dim */
uint64_t imp_tensor_row_bytes(const imp_tensor *t); /* of data; without scales and biases */
uint64_t imp_tensor_bytes(const imp_tensor *t);     /* with scales and biases */
/* Row `row` (flattened over the leading dims) as f32; out: n_col floats. */
void imp_tensor_row_f32(const imp_tensor *t, uint64_t row, float *out);
/* A view of sub-tensor i of dim 0 (experts of a stacked weight). */
imp_tensor imp_tensor_index(const imp_tensor *t, uint64_t i);

float imp_f16_to_f32(uint16_t h);
uint16_t imp_f32_to_f16(float f); /* round to nearest even, overflow to infinity */
static inline float imp_bf16_to_f32(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
uint16_t imp_f32_to_bf16(float f); /* round to nearest even */

#endif
