/* dev/coreml/batch.h - a graph on the CPU in f32, node by node over many texts at once, in two streams; private to
 * dev/coreml.
 *
 * Idea:    calibration wants the input of one matrix over the whole text before it goes on: as the model has it (stream 0),
 *          and as it comes out of matrices that are rounded already (stream 1). Matrices are the caller's.
 * Memory:  a value lives until its last reader: some ten rows of the model's widths for each token and stream. */
#ifndef IMP_ML_BATCH_H
#define IMP_ML_BATCH_H

#include "base/thread.h"
#include "dev/coreml/gemm.h"
#include "graph/graph.h"

typedef struct imp_ml_text {
    const int32_t *id;
    uint32_t n;
} imp_ml_text;

typedef struct ml_batch {
    const imp_graph *g;
    imp_pool *pool;
    uint32_t n_text;
    uint32_t *first; /* [n_text + 1] rows of the texts */
    int32_t *token;  /* [n_tok] */
    uint64_t n_tok;
    float **val[2]; /* [n + 1] */
    imp_val *last;  /* [n + 1] the last reader */
    bool *need;     /* [n + 1] the output depends on it */
    bool failed;    /* out of memory */
} ml_batch;

/* texts stay borrowed until this returns. */
IMP_MUST_USE imp_status ml_batch_init(ml_batch *b, const imp_graph *g, const imp_ml_text *text, uint32_t n,
                                      imp_pool *pool, imp_error *err);
void ml_batch_deinit(ml_batch *b);
/* Rows that value v has. */
uint64_t ml_batch_rows(const ml_batch *b, imp_val v);
/* Room for value v in a stream; NULL: out of memory. */
float *ml_batch_make(ml_batch *b, int stream, imp_val v);
/* Compute a node that is no LINEAR in both streams. UNSUPPORTED: it has no form here. */
IMP_MUST_USE imp_status ml_batch_step(ml_batch *b, imp_val v, imp_error *err);
/* Free what nothing behind v reads. */
void ml_batch_drop(ml_batch *b, imp_val v);

#endif
