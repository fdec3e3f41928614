/* fmt/mlpackage.h - Core ML packages that hold an ML Program: what they mean, reading with every rule checked, writing.
 *
 * Place:   layer 2. dev/coreml compiles graphs to imp_mil_func and writes them; its evaluator, the lint and `impetus
 *          check` read packages through here.
 * Idea:    one plain description of a program serves both ways. The reader is the only gate: after it every name is
 *          resolved, every shape inferred and compared, every blob inside its file, so that later code cannot fail on
 *          what a file says. The writer streams weights to disk as they come.
 * Layout:  X.mlpackage/Manifest.json, Data/com.apple.CoreML/model.mlmodel (protobuf), .../weights/weight.bin.
 *          weight.bin: 64-byte header, then per blob 64 bytes of metadata and its data, padded to 64; little-endian.
 * Source:  the public .proto files and blob format of coremltools. */
#ifndef IMP_MLPACKAGE_H
#define IMP_MLPACKAGE_H

#include "base/base.h"

enum {
    IMP_MIL_MAX_RANK = 6,
    IMP_MIL_MAX_OUT = 256, /* results of one op (split) */
    IMP_MIL_SPEC_MIN = 6,
    IMP_MIL_SPEC_MAX = 10
};

/* X(NAME, id in the program, bits an element, id in weight.bin (0: never there), "spelling") */
#define IMP_MIL_DTYPE_LIST(X)                                                                                \
    X(BOOL, 1, 8, 0, "bool")                                                                                 \
    X(STRING, 2, 0, 0, "string")                                                                             \
    X(F16, 10, 16, 1, "fp16")                                                                                \
    X(F32, 11, 32, 2, "fp32")                                                                                \
    X(I8, 21, 8, 4, "int8")                                                                                  \
    X(I16, 22, 16, 6, "int16")                                                                               \
    X(I32, 23, 32, 14, "int32")                                                                              \
    X(I4, 25, 4, 8, "int4")                                                                                  \
    X(U8, 31, 8, 3, "uint8")                                                                                 \
    X(U16, 32, 16, 7, "uint16")                                                                              \
    X(U32, 33, 32, 15, "uint32")                                                                             \
    X(U4, 35, 4, 11, "uint4")                                                                                \
    X(U2, 36, 2, 10, "uint2")                                                                                \
    X(U1, 37, 1, 9, "uint1")                                                                                 \
    X(U6, 38, 6, 13, "uint6")                                                                                \
    X(U3, 39, 3, 12, "uint3")

typedef enum imp_mil_dtype {
    IMP_MIL_NONE,
#define IMP_X(name, id, bits, blob, text) IMP_MIL_##name = id,
    IMP_MIL_DTYPE_LIST(IMP_X)
#undef IMP_X
} imp_mil_dtype;

const char *imp_mil_dtype_name(imp_mil_dtype t); /* NULL: none of ours */
uint32_t imp_mil_dtype_bits(imp_mil_dtype t);    /* 0: not numeric */
/* The element at index i of packed data as a number (sub-byte elements LSB first). */
double imp_mil_element(imp_mil_dtype t, const void *data, uint64_t i);

typedef struct imp_mil_type {
    imp_mil_dtype dtype;
    bool state; /* the tensor is a state */
    uint32_t rank;
    uint64_t dim[IMP_MIL_MAX_RANK];
} imp_mil_type;

bool imp_mil_type_equal(const imp_mil_type *a, const imp_mil_type *b);
uint64_t imp_mil_n_elem(const imp_mil_type *t);
uint64_t imp_mil_bytes(const imp_mil_type *t);                      /* packed, the last byte filled up */
const char *imp_mil_type_text(const imp_mil_type *t, char out[96]); /* "fp16[1, 384, 1, 64]" */

typedef struct imp_mil_value {
    imp_mil_type type;
    const void *
        data; /* packed elements; STRING: one NUL-terminated text. A value to be written from weight.bin: NULL */
    bool blob; /* lies in weight.bin, its metadata at `offset` */
    uint64_t offset;
} imp_mil_value;

typedef struct imp_mil_bind { /* a name, or an inline value */
    const char *name;
    const imp_mil_value *value;
    uint32_t var; /* filled by the reader: index in func->var, when a name */
} imp_mil_bind;

typedef struct imp_mil_arg {
    const char *param;
    uint32_t n;
    imp_mil_bind *bind; /* more than one for lists (concat's values) */
} imp_mil_arg;

typedef struct imp_mil_out {
    const char *name;
    imp_mil_type type;
    uint32_t var;
} imp_mil_out;

typedef struct imp_mil_attr {
    const char *name;
    imp_mil_value value;
} imp_mil_attr;

typedef struct imp_mil_op {
    const char *type, *name;
    uint32_t n_arg, n_out, n_attr;
    imp_mil_arg *arg;
    imp_mil_out *out;
    imp_mil_attr *attr; /* beside "name": a const's "val"; parameters of constexpr ops up to CoreML7 */
} imp_mil_op;

typedef struct imp_mil_var { /* every value of a function by number: inputs first, then results in order */
    const char *name;
    imp_mil_type type;
    const imp_mil_value *value; /* of a const, else NULL */
    uint32_t op;                /* the op that makes it; UINT32_MAX: an input */
} imp_mil_var;

typedef struct imp_mil_func {
    const char *name, *opset; /* "CoreML8" */
    uint32_t n_in, n_op, n_out, n_var;
    imp_mil_out *in;
    imp_mil_op *op;
    imp_mil_bind *out; /* names */
    imp_mil_var *var;  /* filled by the reader */
} imp_mil_func;

typedef struct imp_mlpackage {
    int32_t spec; /* specification version */
    uint32_t n_func;
    imp_mil_func *func;
    const char *default_func;   /* with several functions */
    const char *author, *brief; /* NULL: none */
    uint32_t n_meta;            /* further texts */
    const char *(*meta)[2];
    /* private to the reader */
    imp_arena *arena;
    imp_sys_file model_file, weight_file;
    const uint8_t *weights;
    uint64_t n_weights;
} imp_mlpackage;

/* Read the folder and check everything. FORMAT and UNSUPPORTED say what is wrong in which op. */
IMP_MUST_USE imp_status imp_mlpackage_open(const char *path, imp_mlpackage **out, imp_error *err);
/* The same from bytes, which stay borrowed. */
IMP_MUST_USE imp_status imp_mlpackage_parse(const void *model, size_t n_model, const void *weights,
                                            size_t n_weights, imp_mlpackage **out, imp_error *err);
void imp_mlpackage_close(imp_mlpackage *p);
const imp_mil_func *imp_mlpackage_func(const imp_mlpackage *p, const char *name); /* NULL: none */
/* The bindings of a parameter, NULL when absent; one binding's constant value, NULL when it is computed. */
const imp_mil_arg *imp_mil_arg_get(const imp_mil_op *op, const char *param);
const imp_mil_value *imp_mil_const(const imp_mil_func *f, const imp_mil_op *op, const char *param);
/* A constant number, flag or word with the op's default. */
double imp_mil_number(const imp_mil_func *f, const imp_mil_op *op, const char *param, double def);
const char *imp_mil_word(const imp_mil_func *f, const imp_mil_op *op, const char *param, const char *def);

/* ---- what ops mean for shapes (mil_ops.c) ---------------------------------------------------------------- */

/* Lowest spec version that has the op in this form; 0: unknown op. */
int32_t imp_mil_op_spec(const imp_mil_func *f, const imp_mil_op *op);
/* Check parameters and compute the results' types from resolved bindings: out[0..*n_out-1]. */
IMP_MUST_USE imp_status imp_mil_infer(const imp_mil_func *f, const imp_mil_op *op, int32_t opset,
                                      imp_mil_type *out, uint32_t *n_out, imp_error *err);
/* Begin and count of every axis of slice_by_index and slice_update; stride in step. */
IMP_MUST_USE imp_status imp_mil_slice_range(const imp_mil_func *f, const imp_mil_op *op,
                                            const imp_mil_type *x, int64_t *begin, int64_t *step,
                                            uint64_t *count, imp_error *err);

/* ---- writing ------------------------------------------------------------------------------------------------ */

typedef struct imp_mlwriter imp_mlwriter;
/* Make the folders and begin weight.bin beside its final place. */
IMP_MUST_USE imp_status imp_mlwriter_open(const char *path, imp_mlwriter **out, imp_error *err);
/* One blob: begin, its n_bytes in pieces; *offset is what a value's `offset` wants. */
IMP_MUST_USE imp_status imp_mlwriter_blob(imp_mlwriter *w, imp_mil_dtype t, uint64_t n_elem, uint64_t *offset,
                                          imp_error *err);
IMP_MUST_USE imp_status imp_mlwriter_data(imp_mlwriter *w, const void *p, uint64_t n, imp_error *err);
/* Write the program and the manifest and put everything in place; frees w, also on failure. */
IMP_MUST_USE imp_status imp_mlwriter_finish(imp_mlwriter *w, const imp_mlpackage *p, imp_error *err);
void imp_mlwriter_abandon(imp_mlwriter *w);
/* The program as model.mlmodel's bytes. */
IMP_MUST_USE imp_status imp_mlpackage_encode(const imp_mlpackage *p, imp_buf *out, imp_error *err);

#endif
