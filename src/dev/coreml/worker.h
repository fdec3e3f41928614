/* dev/coreml/worker.h - the process in which Core ML runs, because Core ML may take its process with it.
 *
 * Place:   src/app calls imp_coreml_worker_main when the program was started as a worker; device.c starts it so. */
#ifndef IMP_ML_WORKER_H
#define IMP_ML_WORKER_H

#include "dev/coreml/wire.h"

/* The argument that makes the program a worker; it must be the only one. */
#define IMP_COREML_WORKER_ARG "coreml-worker"

/* Serve the socket that was inherited until the other side goes. Returns the process's exit code. */
int imp_coreml_worker_main(void);

/* What a worker can do; runtime.c does it through Core ML. */
typedef struct ml_backend {
    imp_status (*hello)(void *ctx, const ml_hello *h, ml_welcome *out, imp_error *err);
    /* shared: of n_shared bytes, which hold the slots. Once. */
    imp_status (*load)(void *ctx, const ml_load *l, void *shared, ml_loaded *out, imp_error *err);
    imp_status (*run)(void *ctx, const ml_run *r, ml_ran *out, imp_error *err);
    void *ctx;
} ml_backend;
/* Answer requests until the port ends (OK) or breaks a rule. */
IMP_MUST_USE imp_status ml_worker_serve(const ml_port *p, const ml_backend *be, void *shared, size_t n_shared,
                                        imp_error *err);

typedef struct ml_runtime ml_runtime;
/* NULL: out of memory. */
ml_runtime *ml_runtime_new(void);
void ml_runtime_free(ml_runtime *r);
ml_backend ml_runtime_backend(ml_runtime *r);

#endif
