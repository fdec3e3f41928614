/* dev/coreml/coreml.h - the Core ML device: encoders and the prefill of decoders as ML Programs, run in a worker process.
 *
 * Place:   layer 4; src/app configures it, dev.c opens it.
 * Claims:  that Core ML uses the Neural Engine is asked for, never assumed: what receipts say of it comes from Core ML's own
 *          plan (MLComputePlan), and every package's results are held against our evaluator's before a request gets there. */
#ifndef IMP_COREML_H
#define IMP_COREML_H

#include "dev/dev.h"

enum { IMP_COREML_MAX_BUCKET = 8 };

typedef enum imp_coreml_units {
    IMP_COREML_ANE, /* Neural Engine and CPU */
    IMP_COREML_ALL,
    IMP_COREML_CPU
} imp_coreml_units;

typedef struct imp_coreml_config {
    const char *cache_dir; /* for compiled packages; NULL: the device does not open */
    const char *runtime;   /* a library to use in place of the system's, for tests; NULL: the system's */
    const char *program;   /* what is started as worker; NULL: this program */
    imp_coreml_units units;
    uint32_t n_bucket, bucket[IMP_COREML_MAX_BUCKET]; /* lengths, ascending; 0: 64, 128, 256, 512 */
    uint64_t chunk_bytes;                             /* weights a program may hold; 0: 950 MB */
    uint32_t load_ms;                                 /* compiling and loading may take; 0: 15 minutes */
    uint32_t run_ms;                                  /* a step may take; 0: 30 s */
    uint32_t retry_ms; /* before the first restart of a worker, doubled each time; 0: 250 */
    uint32_t max_fail; /* failures in a row after which the model is given up here; 0: 5 */
} imp_coreml_config;

/* For devices that are opened afterwards; texts are copied. INVALID: lengths that do not ascend, a path too long. */
IMP_MUST_USE imp_status imp_coreml_configure(const imp_coreml_config *c, imp_error *err);
/* NOT_FOUND: this is no Mac. */
IMP_MUST_USE imp_status imp_dev_coreml_open(imp_device **out, imp_error *err);

/* What the worker that was started to look found. */
typedef struct imp_coreml_info {
    char os[128];
    bool functions, plans; /* multifunction packages; MLComputePlan */
    uint32_t ane_cores;    /* 0: none, or not known */
} imp_coreml_info;
void imp_dev_coreml_info(const imp_device *d, imp_coreml_info *out); /* d: of kind "coreml" */
/* The process id of an executable's worker, 0: none runs. For tests and reports. */
int imp_dev_coreml_pid(imp_exec *x);

#endif
