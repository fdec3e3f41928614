/* sched/kv_model.h - what the bytes of a model's cache depend on, as numbers that survive a restart. */
#ifndef IMP_KV_MODEL_H
#define IMP_KV_MODEL_H

#include "base/vault.h"
#include "sched/kv_file.h"

/* Finding a model out, piece by piece: its weights may have many gigabytes. */
typedef struct imp_kv_finder { /* {0} but for the first two */
    const imp_graph *graph;    /* borrowed */
    const char *device;        /* borrowed */
    imp_kv_model model;        /* complete when step has returned true */
    bool begun;
    imp_val v;     /* the weight that is read */
    uint32_t part; /* of it */
    uint64_t at;   /* bytes of the part that are read */
    char memo[64]; /* file in the vault that remembers the sums; "": none may */
} imp_kv_finder;

/* Read some more. v: where sums of unchanged files are remembered. true: the model is known. */
bool imp_kv_finder_step(imp_kv_finder *f, const imp_vault *v);

#endif
