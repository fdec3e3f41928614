/* fmt/gguf.h - GGUF v2 and v3 files: bytes to key-values and a tensor directory. */
#ifndef IMP_GGUF_H
#define IMP_GGUF_H

#include "tensor/tensor.h"

typedef struct imp_gguf imp_gguf;

typedef enum imp_gguf_type {
    IMP_GGUF_U8,
    IMP_GGUF_I8,
    IMP_GGUF_U16,
    IMP_GGUF_I16,
    IMP_GGUF_U32,
    IMP_GGUF_I32,
    IMP_GGUF_F32,
    IMP_GGUF_BOOL,
    IMP_GGUF_STRING,
    IMP_GGUF_ARRAY,
    IMP_GGUF_U64,
    IMP_GGUF_I64,
    IMP_GGUF_F64
} imp_gguf_type;

typedef struct imp_str { /* borrowed bytes, not NUL-terminated */
    const char *p;
    size_t n;
} imp_str;

/* Everything is checked here, once: magic, version, counts, string and array lengths, alignment, unique keys and
 * names, known dtypes, ranges inside the file, aligned and disjoint. FORMAT with byte position; UNSUPPORTED names
 * a type of tensor that is known but refused. */
IMP_MUST_USE imp_status imp_gguf_open(const char *path, imp_gguf **out, imp_error *err);
/* The same over bytes that stay the caller's (tests, fuzzing); p should be 8-byte aligned, as tensors are relative to it. */
IMP_MUST_USE imp_status imp_gguf_parse(const uint8_t *p, uint64_t n, imp_gguf **out, imp_error *err);
void imp_gguf_close(imp_gguf *g);

uint64_t imp_gguf_n_kv(const imp_gguf *g);
imp_str imp_gguf_key(const imp_gguf *g, uint64_t i, imp_gguf_type *type);
/* Key-value i as it stands in the file (key, type, value), to be copied into another file. */
imp_str imp_gguf_kv_bytes(const imp_gguf *g, uint64_t i);
/* Typed lookups; integers of every width are widened with sign and range check. false: absent or of another type
 * (imp_gguf_has tells which). */
bool imp_gguf_has(const imp_gguf *g, const char *key);
bool imp_gguf_u64(const imp_gguf *g, const char *key, uint64_t *out);
bool imp_gguf_i64(const imp_gguf *g, const char *key, int64_t *out);
bool imp_gguf_f64(const imp_gguf *g, const char *key, double *out); /* f32, f64 or any integer */
bool imp_gguf_bool(const imp_gguf *g, const char *key, bool *out);
bool imp_gguf_str(const imp_gguf *g, const char *key, imp_str *out);
/* Arrays. Element i is read with the typed getters below; 0 elements is valid. */
bool imp_gguf_array(const imp_gguf *g, const char *key, imp_gguf_type *elem, uint64_t *n);
imp_str imp_gguf_array_str(const imp_gguf *g, const char *key, uint64_t i);
/* All elements at once into malloc-free caller storage; false when the element type does not fit or n
 * is not the array's length. Booleans count as the integers 0 and 1; integers as floats in _f32. */
bool imp_gguf_array_strs(const imp_gguf *g, const char *key, imp_str *out, uint64_t n);
bool imp_gguf_array_i64(const imp_gguf *g, const char *key, int64_t *out, uint64_t n);
bool imp_gguf_array_f32(const imp_gguf *g, const char *key, float *out, uint64_t n);

uint64_t imp_gguf_n_tensor(const imp_gguf *g);
const imp_tensor *imp_gguf_tensor_at(const imp_gguf *g, uint64_t i, imp_str *name);
const imp_tensor *imp_gguf_tensor(const imp_gguf *g, const char *name); /* NULL: absent */
uint64_t imp_gguf_bytes(const imp_gguf *g); /* memory of the directory, without the file itself */
uint64_t imp_gguf_file_bytes(const imp_gguf *g);

/* ---- writing (gguf_write.c): version 3, alignment 32 ------------------------------------------- */
typedef struct imp_gguf_writer imp_gguf_writer;
/* First all keys and all tensors are announced, then the tensors' bytes follow in that order. NULL: no memory. A call that
 * runs out of memory is remembered until imp_gguf_write_begin. */
imp_gguf_writer *imp_gguf_writer_new(void);
void imp_gguf_write_kv(imp_gguf_writer *w, imp_str kv_bytes); /* of imp_gguf_kv_bytes */
void imp_gguf_write_u32(imp_gguf_writer *w, const char *key, uint32_t value);
void imp_gguf_write_tensor(imp_gguf_writer *w, const char *name, imp_dtype type, uint32_t n_dim,
                           const uint64_t *dim, uint64_t bytes);
/* Open path (.tmp until closed) and write all but the tensors' bytes. */
IMP_MUST_USE imp_status imp_gguf_write_begin(imp_gguf_writer *w, const char *path, imp_error *err);
/* The next n bytes of the tensors; padding between them is added here. */
IMP_MUST_USE imp_status imp_gguf_write_data(imp_gguf_writer *w, const void *p, uint64_t n, imp_error *err);
/* Frees w in any case. keep: put the file in its place; INTERNAL when bytes are missing. NULL is allowed. */
IMP_MUST_USE imp_status imp_gguf_writer_close(imp_gguf_writer *w, bool keep, uint64_t *file_bytes,
                                              imp_error *err);

#endif
