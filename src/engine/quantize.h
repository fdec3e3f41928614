/* engine/quantize.h - a model file with its matrices in other types. */
#ifndef IMP_QUANTIZE_H
#define IMP_QUANTIZE_H

#include "base/thread.h"
#include "plan/importance.h"
#include "plan/parts.h"

typedef struct imp_quant_tensor {
    const char *name; /* arena of the report */
    imp_dtype from, to;
    const char *why; /* NULL: `to` is what was asked for; else why not */
    uint64_t from_bytes, to_bytes;
    bool weighted;         /* columns had an importance */
    double error;          /* |x - x'| / |x| over all values */
    double weighted_error; /* the same with the columns' importance */
} imp_quant_tensor;

typedef struct imp_quant_report {
    imp_arena *arena;         /* owned */
    imp_quant_tensor *tensor; /* [n_tensor], in file order */
    uint64_t n_tensor, n_changed, n_fallback;
    uint64_t from_bytes, to_bytes; /* whole files */
} imp_quant_report;

typedef struct imp_quant_options {
    imp_dtype type[IMP_N_GROUP];      /* NONE: as it is */
    const imp_importance *importance; /* borrowed; NULL: all columns count the same */
    imp_pool *pool;
    void (*progress)(void *user, const char *tensor, uint64_t done,
                     uint64_t total); /* bytes of the source; or NULL */
    void *user;
} imp_quant_options;

/* Read the GGUF file `in` and write it as `out`, matrices as opt says, all else unchanged. Memory: a few MB, whatever the
 * model. INVALID: in and out are one file; FORMAT: a tensor holds values that are no numbers; IO, NOMEM. The report is
 * filled as far as it came. */
IMP_MUST_USE imp_status imp_quantize(const char *in, const char *out, const imp_quant_options *opt,
                                     imp_quant_report *report, imp_error *err);
void imp_quant_report_deinit(imp_quant_report *r);

#endif
