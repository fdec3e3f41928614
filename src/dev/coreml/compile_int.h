/* dev/coreml/compile_int.h - what the files of the compiler share; private to dev/coreml. */
#ifndef IMP_ML_COMPILE_INT_H
#define IMP_ML_COMPILE_INT_H

#include "dev/coreml/compile.h"

enum { ML_CLAMP = 30000, ML_MASKED = -10000, ML_MAX_MASK = 8 };

typedef struct compiler {
    ml_shared *sh;
    const imp_graph *g;
    ml_build b;
    const ml_part *part;
    bool decode;
    uint64_t s, n_key; /* tokens that come in; keys that they may see */
    ml_val *val;       /* [n + 1] of nodes */
    ml_val *weight;    /* [n + 1] unpacked matrices of linear layers */
    ml_val *rounded;   /* [n + 1] values as int8 and back, for W8A8 */
    struct ml_mask {
        uint32_t key; /* window, and a bit for full masks */
        ml_val v;
    } mask[ML_MAX_MASK]; /* what is added to scores: tables of this function, or inputs */
    uint32_t n_mask;
    ml_val pad_mask;                 /* encoders: the input "mask" */
    ml_val slot, keep;               /* decode: where this token goes [1, 1, 1, n_key], and one minus it */
    ml_val turn[IMP_ML_MAX_ROPE][2]; /* decode: cos and sin by rotation index */
} compiler;

static inline const imp_node *ml_node(const compiler *c, imp_val v)
{
    return imp_graph_node(c->g, v);
}

ml_val ml_stop(compiler *c, imp_status s, const char *what, const char *name);

/* compile_weight.c */
/* An fp16 table in weight.bin; equal tables share one. */
ml_val ml_table(compiler *c, const char *name, const imp_mil_type *t, const uint16_t *data);
/* A weight vector (+ add) as a table of the given shape; elements from `first` on. */
ml_val ml_vector(compiler *c, imp_val w, uint64_t first, float add, imp_mil_type t);
ml_val ml_linear(compiler *c, imp_val v);
/* The rows of the language model's head in parts that the ANE takes, each its own output "logits_I". */
imp_status ml_head(compiler *c);

/* compile_attn.c */
ml_val ml_rope(compiler *c, const imp_node *n);
ml_val ml_attention(compiler *c, const imp_node *n);

/* compile.c */
ml_val ml_two(compiler *c, const char *type, const char *name, ml_val x, ml_val y);
ml_val ml_cut(compiler *c, const char *name, ml_val x, int axis, uint64_t from, uint64_t to);
ml_val ml_softcap(compiler *c, const char *name, ml_val x, float cap);

#endif
