/* dev/check.h - what every device checks the same way: limits at compile time, the batch of a step. */
#ifndef IMP_DEV_CHECK_H
#define IMP_DEV_CHECK_H

#include "dev/dev.h"

/* The graph is finished, the limits are not 0 where they must not be, the KV type is one there is. INVALID. */
IMP_MUST_USE imp_status imp_dev_check_limits(const imp_graph *g, const imp_limits *lim, imp_error *err);

/* The batch is within the limits and reads nothing outside its tables: sequences cover the tokens in order, blocks
 * and output rows exist, rows of embedding tables exist. INVALID says what is wrong. */
IMP_MUST_USE imp_status imp_dev_check_batch(const imp_graph *g, const imp_limits *lim, const imp_batch *b,
                                            imp_error *err);

/* The most rows a step can have of this kind. */
uint32_t imp_dev_max_rows(const imp_limits *lim, imp_rows rows);
/* The sequence to which row r of this kind belongs; of a checked batch. */
uint32_t imp_dev_seq_of_row(const imp_batch *b, imp_rows rows, uint32_t r);
/* The row of an embedding table that token t of the batch reads; negative or too large when the batch is bad. */
int64_t imp_dev_embed_row(const imp_node *n, const imp_batch *b, uint32_t t);

#endif
