/* fmt/hf_quant.h - MLX-quantised layers of a model folder; private to src/fmt. */
#ifndef IMP_FMT_HF_QUANT_H
#define IMP_FMT_HF_QUANT_H

#include <jansson.h>

#include "tensor/tensor.h"

typedef struct imp_hf_entry {
    const char *name; /* borrowed from the shard */
    imp_tensor t;
} imp_hf_entry;

/* Join x.weight (u32) + x.scales + x.biases into one IMP_AFFINE entry named x.weight, as config.json's "quantization"
 * says; *n shrinks. map: name -> index of the entries as they are on entry. UNSUPPORTED names a quantisation that is
 * known but refused; FORMAT: the parts do not fit together. */
IMP_MUST_USE imp_status imp_hf_join_affine(const json_t *config, const imp_map *map, imp_hf_entry *e,
                                           uint64_t *n, imp_error *err);

#endif
