/* dev/coreml/runtime.h - the inside of the worker's backend: what is loaded; private to dev/coreml. */
#ifndef IMP_ML_RUNTIME_H
#define IMP_ML_RUNTIME_H

#include "dev/coreml/objc.h"
#include "dev/coreml/worker.h"

struct ml_runtime {
    ml_objc objc;
    bool functions, plans; /* what this Core ML knows */
    ml_load load;
    ml_slots slots;
    void *shared;               /* borrowed */
    ml_id model[ML_WIRE_FUNCS]; /* retained */
    struct ml_arrays {
        ml_id shape[2], step[2]; /* retained; [0] hidden, [1] mask and pool */
    } len[ML_WIRE_LENS];
};

IMP_MUST_USE imp_status ml_runtime_run(void *ctx, const ml_run *run, ml_ran *out, imp_error *err);
/* Where Core ML plans to run the function's ops (plan.c); *out says known 0 when it does not tell. */
void ml_plan_read(const ml_runtime *r, const char *compiled, const char *function, ml_id config,
                  ml_where *out);

#endif
