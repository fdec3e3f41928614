/* dev/coreml/lint.h - which ops of an ML Program the Neural Engine is predicted to take, and what speaks against it.
 *
 * Place:   layer 4; `impetus check PACKAGE` and `impetus convert` print it.
 * Claims:  everything here is predicted from published rules and reports, from the program alone; nothing is measured. */
#ifndef IMP_ML_LINT_H
#define IMP_ML_LINT_H

#include "fmt/mlpackage.h"

typedef struct imp_ml_finding {
    const char *func, *op, *type; /* op "": the whole function */
    const char *why;              /* a fixed sentence */
    bool off_ane;                 /* predicted not to run on the ANE; else it is only costly */
    double factor;                /* padded bytes over plain bytes, 0: not about padding */
    uint64_t padded_bytes;
} imp_ml_finding;

typedef struct imp_ml_lint {
    imp_arena *arena;     /* owns what follows */
    uint32_t n_op, n_ane; /* computing ops, and those predicted on the ANE, over all functions */
    uint32_t n_switch;    /* changes of unit in the order of ops */
    uint64_t weight_bytes;
    double worst_factor; /* of padding, over activations of 16 KiB and more */
    imp_ml_finding *finding;
    uint32_t n_finding, cap;
} imp_ml_lint;

IMP_MUST_USE imp_status imp_ml_lint_run(const imp_mlpackage *p, imp_ml_lint *out, imp_error *err);
void imp_ml_lint_deinit(imp_ml_lint *l);
/* Bytes of a tensor when its last dimension is padded to 64 bytes. */
uint64_t imp_ml_padded_bytes(const imp_mil_type *t);

#endif
