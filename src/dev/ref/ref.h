/* dev/ref/ref.h - the inside of the reference device. */
#ifndef IMP_DEV_REF_H
#define IMP_DEV_REF_H

#include "dev/dev.h"

typedef struct ref_exec {
    imp_exec base;
    const imp_graph *graph; /* borrowed */
    imp_limits lim;
    struct imp_group *group; /* borrowed; of a divided graph; NULL: alone */
    uint32_t rank;
    imp_outside outside;
    imp_status outside_status; /* of this run */
    imp_error outside_err;
    float **value; /* [n + 1]: the rows of node v, [max rows][width], owned; NULL for weights */
    float *
        kv; /* owned: [layer][k|v][block][IMP_KV_BLOCK][width of the layer], what the cache's type makes of it */
    uint8_t *kv_row;       /* owned: a head's bytes in that type */
    uint64_t *kv_layer_at; /* [n_kv_layer] element where a layer starts */
    float *row[3];         /* owned: decoded weight rows, [widest] each */
    double *score;         /* owned: attention weights of one row, or expert weights and sums of one row */
    float *hidden;         /* owned: [widest expert], act(gate) * up of one row */
} ref_exec;

/* One step's view: what an op function may read. */
typedef struct ref_step {
    ref_exec *x;
    const imp_batch *b;
} ref_step;

uint32_t imp_ref_n_row(const ref_step *s, imp_rows rows);
/* Compute node v from its inputs' values. */
void imp_ref_node(const ref_step *s, imp_val v);
/* Where key (part 0) or value (part 1) of position pos lies for a layer. */
float *imp_ref_kv_at(const ref_exec *x, const imp_attn_attr *a, int part, const uint32_t *block,
                     uint32_t pos);

/* The cache's types (kv.c). Of keys (part 0) or values (part 1): */
imp_dtype imp_ref_kv_type(imp_dtype kv, int part);
/* In place: what is done to keys and queries before keys are kept in 4 bits. */
void imp_ref_kv_rotate(float *x, uint32_t head_dim);
/* n elements (whole blocks) to the bytes of type t. */
void imp_ref_kv_encode(imp_dtype t, const float *x, uint32_t n, uint8_t *to);

#endif
