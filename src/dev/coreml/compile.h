/* dev/coreml/compile.h - one range of a graph to one function; private to dev/coreml. */
#ifndef IMP_ML_COMPILE_H
#define IMP_ML_COMPILE_H

#include "dev/coreml/build.h"
#include "dev/coreml/convert.h"

/* A package being made: what its functions share. */
typedef struct ml_shared {
    const imp_graph *g;
    const imp_ml_options *opt;
    int32_t spec;
    imp_arena *arena;
    imp_mlwriter *w;
    imp_ml_report *report;
    imp_ml_packed **packed; /* [n + 1] matrices of linear layers that are in weight.bin already */
    imp_ml_packed **head;   /* [ml_head_parts] the same for parts of the head */
    struct ml_blob {
        uint64_t hash, n, offset;
    } * blob; /* plain fp16 tables (norms, masks, rotations) by contents */
    uint32_t n_blob, cap_blob;
    uint64_t done, total; /* source bytes, for progress */
} ml_shared;

/* A part of the graph with one value coming in and results going out. */
typedef struct ml_part {
    imp_val from;            /* the value that comes in as "hidden"; 0: the host's */
    imp_val to;              /* the value that goes on as "hidden_out"; 0: none */
    bool goes_on;            /* whether prefill has something to do behind it, too */
    uint32_t first_kv, n_kv; /* KV layers: given out by prefill, kept as states by decode */
    bool pools;              /* ends in "embedding" */
    bool head;               /* decode ends in logits */
} ml_part;

/* Add function `name`: for s tokens from position 0, or (decode) for one token behind up to s - 1 others. */
imp_status ml_compile(ml_shared *sh, const ml_part *part, bool decode, uint32_t s, const char *name,
                      imp_mil_func *f, imp_error *err);

/* The nodes that a part needs: need[v], v 1..n. */
void ml_needed(const imp_graph *g, const ml_part *part, bool decode, bool *need);
/* Why a node has no form here; NULL: it has one. */
const char *ml_refuses(const imp_graph *g, imp_val v, bool decode);
/* The linear node below the output's scalings; 0: the graph ends otherwise. */
imp_val ml_head_linear(const imp_graph *g);
/* In how many parts a head of so many rows is cut. */
uint64_t ml_head_parts(uint64_t rows);
/* Rows of each part but the last. */
uint64_t ml_head_rows(uint64_t rows);

#endif
