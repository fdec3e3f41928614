/* graph/adapter.h - a low-rank adapter (LoRA) of a model: small matrices that rows of a step may bring along.
 *
 * Place:   made by model/adapter.c for a net's graphs; named by the sequences of a batch (dev.h); computed by devices that
 *          say so.
 * Idea:    the graph stays as it is. Where an adapter has a part for a LINEAR node, the rows that use it get
 *              y += scale * B (A x)
 *          and where it has one for an EMBED by token
 *              y += scale * B A[token]
 *          with scale = what the use says * alpha / rank. Several adapters of a row are added in the order of its uses.
 * Memory:  counted references; what the parts point to is the adapter's.
 * Source:  Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". */
#ifndef IMP_ADAPTER_H
#define IMP_ADAPTER_H

#include <stdatomic.h>

#include "graph/graph.h"
#include "kern/kern.h"

enum { IMP_MAX_LORA_RANK = 4096 };

typedef struct imp_adapter_part {
    imp_tensor a,
        b; /* LINEAR: a [rank][k], b [n][rank]; EMBED: a [n_row][rank], b [width][rank]; f32, f16 or bf16 */
    float scale;                   /* alpha / rank */
    const imp_matmul *mm_a, *mm_b; /* CPU kernels for both, x as f32; mm_a NULL for an EMBED */
    const void *wp_a, *wp_b;       /* packed for them; NULL: used in place */
} imp_adapter_part;

struct imp_adapter {
    _Atomic uint32_t n_ref;
    uint64_t id[2];             /* of its contents: the same file has the same after a restart */
    uint32_t rank;              /* of the widest part: the columns that a row needs for A x */
    uint64_t bytes;             /* of memory it holds */
    const imp_graph *graph[2];  /* borrowed; NULL: the net has no such graph */
    imp_adapter_part **part[2]; /* [n node + 1] by the LINEAR's or EMBED's value; NULL: none there */
    _Atomic uint32_t n_waiting, n_running; /* requests with it */
    void (*free)(imp_adapter *a);
};

imp_adapter *imp_adapter_ref(imp_adapter *a);
void imp_adapter_unref(imp_adapter *a); /* NULL is allowed */
/* Its part for node v of this graph; NULL: none. */
const imp_adapter_part *imp_adapter_at(const imp_adapter *a, const imp_graph *g, imp_val v);
bool imp_adapter_is_for(const imp_adapter *a, const imp_graph *g);
/* Columns that these uses need together. */
uint64_t imp_adapter_ranks(const imp_adapter_use *use, size_t n_use);
bool imp_adapter_same_uses(const imp_adapter_use *a, size_t n_a, const imp_adapter_use *b, size_t n_b);

#endif
