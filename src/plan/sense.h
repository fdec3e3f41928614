/* plan/sense.h - what it costs a model's predictions when parts of it get other types: KL divergence, measured.
 *
 * Place:   layer 5; mix.c chooses by what is measured here.
 * Idea:    the model computes its next-token distributions on windows of a text, once as it is; then with matrices of some
 *          groups re-encoded, on the same device. The mean divergence KL(source || changed) over the second half of each
 *          window is the price of the change. */
#ifndef IMP_SENSE_H
#define IMP_SENSE_H

#include "base/thread.h"
#include "plan/importance.h"
#include "plan/parts.h"

enum { IMP_SENSE_WINDOW = 256 };

typedef struct imp_sense imp_sense;

typedef struct imp_sense_tensor { /* a matrix that belongs to a group */
    imp_val v;
    int group;
    uint64_t n_elem, n_col, bytes; /* over all experts; bytes as in the source */
    imp_dtype dtype;
} imp_sense_tensor;

/* A net whose generate graph is used while the sense lives; it must not be compiled elsewhere meanwhile. Everything is
 * borrowed. importance may be NULL. UNSUPPORTED: the model generates no text, or its tensors have no GGUF names. */
IMP_MUST_USE imp_status imp_sense_open(imp_device *d, imp_net *net, imp_pool *pool,
                                       const imp_importance *importance, imp_sense **out, imp_error *err);
void imp_sense_close(imp_sense *s); /* the graph is as it was; NULL is allowed */

/* The text to measure on: n_window windows of IMP_SENSE_WINDOW ids (or the model's whole context when that is less). The
 * source's distributions are computed and kept: scored positions x vocabulary floats. */
IMP_MUST_USE imp_status imp_sense_text(imp_sense *s, const int32_t *ids, uint32_t n_window, imp_error *err);
uint32_t imp_sense_window(const imp_sense *s);
uint32_t imp_sense_n_layer(const imp_sense *s);

const imp_sense_tensor *imp_sense_tensors(const imp_sense *s, uint32_t *n);
/* The type a tensor gets when its group gets `want` (NONE: as it is). */
imp_dtype imp_sense_type(const imp_sense_tensor *t, imp_dtype want);

/* The graph as if its matrices had these types, to be priced only: they have no data. NULL: as it is again. */
IMP_MUST_USE imp_status imp_sense_retype(imp_sense *s, const imp_dtype type[IMP_N_GROUP], imp_error *err);
/* Mean KL of the source to the model with type[g] for each group (NONE: as it is). Memory: the re-encoded matrices. */
IMP_MUST_USE imp_status imp_sense_kl(imp_sense *s, const imp_dtype type[IMP_N_GROUP], double *kl,
                                     imp_error *err);
/* How much of the group's output the rounding to `want` takes on average: weighted squared error over weighted squares,
 * each tensor by its share of the group's elements. */
IMP_MUST_USE imp_status imp_sense_error(imp_sense *s, int group, imp_dtype want, double *out, imp_error *err);

/* The model's own words: n_window windows of ids sampled from it (temperature 1), all at once, the same for the same
 * seed. ids: [n_window][window]. */
IMP_MUST_USE imp_status imp_sense_own_text(imp_device *d, const imp_net *net, uint64_t seed,
                                           uint32_t n_window, uint32_t window, int32_t *ids, imp_error *err);

#endif
