/* fmt/safetensors.h - one safetensors file: header JSON to a tensor directory (plain types only). */
#ifndef IMP_SAFETENSORS_H
#define IMP_SAFETENSORS_H

#include "tensor/tensor.h"

typedef struct imp_safetensors imp_safetensors;

/* Header <= 100 MB, no duplicate names, no holes or overlaps, shape x dtype = range. Tensors come in file order, their
 * data aligned to the element (copied once where the file's is not). UNSUPPORTED names a dtype that is known elsewhere. */
IMP_MUST_USE imp_status imp_safetensors_open(const char *path, imp_safetensors **out, imp_error *err);
IMP_MUST_USE imp_status imp_safetensors_parse(const uint8_t *p, uint64_t n, imp_safetensors **out,
                                              imp_error *err);
void imp_safetensors_close(imp_safetensors *s);
uint64_t imp_safetensors_n(const imp_safetensors *s);
const imp_tensor *imp_safetensors_at(const imp_safetensors *s, uint64_t i, const char **name);
const imp_tensor *imp_safetensors_get(const imp_safetensors *s, const char *name);
const char *imp_safetensors_metadata(const imp_safetensors *s, const char *key); /* NULL: absent */
uint64_t imp_safetensors_file_bytes(const imp_safetensors *s);

#endif
