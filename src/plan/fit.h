/* plan/fit.h - how much memory a model takes on a device, and what context fits. */
#ifndef IMP_FIT_H
#define IMP_FIT_H

#include "dev/dev.h"
#include "model/net.h"

typedef struct imp_fit_want {
    uint32_t n_ctx;      /* 0: as much as the model and memory allow */
    uint32_t n_parallel; /* sequences at once, >= 1 */
    uint32_t n_batch;    /* tokens a step, >= 1 */
    imp_dtype kv_dtype;
    uint32_t lora_rank;     /* room for adapters (dev.h), where the device runs them; 0: none */
    uint64_t lora_bytes;    /* what those that are there hold */
    uint64_t mem_bytes;     /* limit */
    uint64_t process_bytes; /* what the program holds without any model; handed on */
    /* What serving takes beside the device, for these limits (all zero: no such graph); NULL: nothing. Counted only for
     * a device that shares the machine's memory. */
    uint64_t (*more)(const imp_net *net, const imp_limits *generate, const imp_limits *embed, void *user);
    void *user;
} imp_fit_want;

typedef struct imp_fit {
    uint32_t n_ctx;             /* what a sequence may reach */
    imp_limits generate, embed; /* all zero when the net has no such graph */
    imp_memory memory;
} imp_fit;

/* Choose limits and compute their memory by the device's own plan (the code that later allocates). NO_FIT when
 * want->n_ctx (or the least context) does not fit: *out is filled all the same, with fits = false and the largest
 * context that does. */
IMP_MUST_USE imp_status imp_fit_compute(imp_device *dev, const imp_net *net, const imp_fit_want *want,
                                        imp_fit *out, imp_error *err);

#endif
