/* plan/parts.h - the parts of a model that may have a type each: which tensor belongs to which.
 *
 * Place:   layer 5; mix.c chooses types for groups, engine/quantize.c writes them.
 * Idea:    a group is a part (embeddings, output, each projection) in a third of the layers: early, middle and late layers
 *          differ in what rounding costs. Tensors outside all groups (norms, biases, routers, tables) stay as they are. */
#ifndef IMP_PARTS_H
#define IMP_PARTS_H

#include "tensor/tensor.h"

/* X(NAME, "name") */
#define IMP_PART_LIST(X)                                                                                     \
    X(EMBED, "embeddings")                                                                                   \
    X(OUTPUT, "output")                                                                                      \
    X(Q, "attention q") /* and fused q, k, v */                                                              \
    X(K, "attention k")                                                                                      \
    X(V, "attention v")                                                                                      \
    X(O, "attention out")                                                                                    \
    X(GATE_UP, "ffn gate, up")                                                                               \
    X(DOWN, "ffn down")

typedef enum imp_part {
#define IMP_X(name, text) IMP_PART_##name,
    IMP_PART_LIST(IMP_X)
#undef IMP_X
        IMP_N_PART
} imp_part;

enum { IMP_THIRDS = 3, IMP_N_GROUP = 2 + (IMP_N_PART - 2) * IMP_THIRDS };

/* The group of the tensor with this GGUF name in a model of n_layer layers; -1: none. */
int imp_group_of(const char *name, uint32_t n_layer);
imp_part imp_group_part(int group);
/* "attention v, layers 3-5" into buf (at least 64 bytes); returns buf. */
const char *imp_group_text(int group, uint32_t n_layer, char *buf, size_t cap);

/* The type a tensor with rows of n_col numbers really gets when `want` is asked for: want itself when the rows are whole
 * blocks of it, else the next type with smaller blocks and no fewer bits, at last f16. */
imp_dtype imp_type_for_row(imp_dtype want, uint64_t n_col);

#endif
