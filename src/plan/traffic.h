/* plan/traffic.h - what one token costs a graph: weight bytes read and multiply-adds, counted from its nodes.
 *
 * Place:   layer 5; bench divides measured speed by it to get the share of a ceiling. */
#ifndef IMP_TRAFFIC_H
#define IMP_TRAFFIC_H

#include "graph/graph.h"

typedef struct imp_traffic {
    uint64_t weight_bytes; /* file bytes of the weights that a step with one token reads */
    double tok_flop; /* per token: matrix products before the output rows are picked; a multiply-add is two */
    double out_flop; /* per output row (the vocabulary projection, after GATHER or POOL) */
    uint64_t kv_bytes_tok; /* cache bytes a token adds, all layers, at 2 bytes an element */
} imp_traffic;

/* Attention's own products, which grow with the context, are not counted. */
void imp_traffic_count(const imp_graph *g, imp_traffic *out);

#endif
