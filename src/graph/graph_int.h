/* graph/graph_int.h - the inside of a graph, shared by the files of this folder. */
#ifndef IMP_GRAPH_INT_H
#define IMP_GRAPH_INT_H

#include "graph/graph.h"

struct imp_graph {
    imp_arena *arena; /* nodes, names, weight views, rope tables */
    imp_node **node;  /* [cap], owned array of arena pointers; value v is node[v - 1] */
    uint32_t n, cap;
    const char *scope; /* arena */
    imp_val output;    /* 0: not set yet */
    imp_val *kv_layer; /* [n_kv_layer], arena; made by imp_graph_finish */
    uint32_t n_kv_layer;
    imp_error err; /* the first bad call; status IMP_OK: none */
};

/* "[tok x 64]" into buf (at least 48 bytes); returns buf. A weight prints its own dimensions. */
const char *imp_graph_shape(const imp_node *n, char *buf, size_t cap);
/* A new node, all else zero; NULL, and the error noted, when out of memory. */
imp_node *imp_graph_append(imp_graph *g, imp_op op, const char *name);
/* Value v of g in a graph made from it: at[v], or the weight, copied when it is not there yet; 0, and the error noted: none. */
imp_val imp_graph_value_in(imp_graph *to, const imp_graph *g, imp_val v, imp_val *at);
/* Node v of g at the end of another graph, its inputs by at[]; NULL, and the error noted: it cannot be. */
imp_node *imp_graph_copy_node(imp_graph *to, const imp_graph *g, imp_val v, imp_val *at);
/* Remember the first error. */
void imp_graph_fail(imp_graph *g, imp_status status, const char *fmt, ...) IMP_PRINTF(3, 4);

#endif
