/* fmt/peft.h - a low-rank adapter as PEFT writes it: adapter_config.json and adapter_model.safetensors. */
#ifndef IMP_PEFT_H
#define IMP_PEFT_H

#include "fmt/safetensors.h"

typedef struct imp_peft imp_peft;

/* path: the folder, or the .safetensors file in it. Everything in the config that changes results and is not understood is
 * refused by name (UNSUPPORTED): other kinds than LoRA, DoRA, biases, whole modules, initialisations that change the base. */
IMP_MUST_USE imp_status imp_peft_open(const char *path, imp_peft **out, imp_error *err);
/* The same from bytes that stay the caller's. */
IMP_MUST_USE imp_status imp_peft_parse(const char *config, size_t n_config, const uint8_t *tensors,
                                       uint64_t n, imp_peft **out, imp_error *err);
void imp_peft_close(imp_peft *p); /* NULL is allowed */
const imp_safetensors *imp_peft_tensors(const imp_peft *p);
/* alpha / rank (or / sqrt(rank)) of the module of that name, whose matrices have this rank. FORMAT: the config says another
 * rank. */
IMP_MUST_USE imp_status imp_peft_scale(const imp_peft *p, const char *module, uint64_t rank, float *out,
                                       imp_error *err);

#endif
