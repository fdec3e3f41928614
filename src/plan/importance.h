/* plan/importance.h - how strongly each input column of a model's matrices is used: measured on a text.
 *
 * Place:   layer 5; the quantiser weighs rounding errors by it.
 * Idea:    the output's expected squared error is the sum over columns of error^2 * mean(x^2); the mean square of every
 *          matrix's input is collected while the model reads the text on a device that keeps its values. */
#ifndef IMP_IMPORTANCE_H
#define IMP_IMPORTANCE_H

#include "dev/dev.h"
#include "model/net.h"

typedef struct imp_importance imp_importance;

/* Run the first n ids of a text (windows of `window` tokens) through net's graph on d and collect. UNSUPPORTED: d keeps no
 * values; NOMEM; what the device says. on_window may be NULL. */
IMP_MUST_USE imp_status imp_importance_collect(imp_device *d, const imp_net *net, const int32_t *ids,
                                               size_t n, uint32_t window, void (*on_window)(void *user),
                                               void *user, imp_importance **out, imp_error *err);
void imp_importance_free(imp_importance *m); /* NULL is allowed */
/* Mean square of the input columns of the matrix of this name, [n_col], none below a thousandth of their mean; NULL: it was
 * not met as a matrix (an embedding table that is only looked up, experts' inner products). */
const float *imp_importance_of(const imp_importance *m, const char *name, uint64_t n_col);

#endif
