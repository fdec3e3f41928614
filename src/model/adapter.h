/* model/adapter.h - a low-rank adapter (LoRA) from its file, for the graphs of one net. */
#ifndef IMP_MODEL_ADAPTER_H
#define IMP_MODEL_ADAPTER_H

#include "graph/adapter.h"
#include "model/net.h"

/* path: a GGUF file as llama.cpp has it, or what PEFT wrote (fmt/peft.h), whichever form the model has. Checked completely:
 * every tensor belongs to a weight of the net that adapters can change, comes in two halves of the weight's shape and one
 * rank, and holds finite numbers. FORMAT, UNSUPPORTED name the tensor. The net must outlive the adapter. */
IMP_MUST_USE imp_status imp_adapter_open(const imp_net *net, const char *path, imp_adapter **out,
                                         imp_error *err);
/* The same from the bytes of a GGUF file, or of PEFT's two files, that stay the caller's. */
IMP_MUST_USE imp_status imp_adapter_from_gguf(const imp_net *net, const uint8_t *p, uint64_t n,
                                              imp_adapter **out, imp_error *err);
IMP_MUST_USE imp_status imp_adapter_from_peft(const imp_net *net, const char *config, size_t n_config,
                                              const uint8_t *tensors, uint64_t n, imp_adapter **out,
                                              imp_error *err);

#endif
