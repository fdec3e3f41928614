/* dev/coreml/device.h - the inside of the Core ML device; private to dev/coreml. */
#ifndef IMP_ML_DEVICE_H
#define IMP_ML_DEVICE_H

#include "base/proc.h"
#include "base/thread.h"
#include "dev/coreml/coreml.h"
#include "dev/coreml/wire.h"

typedef struct ml_device {
    imp_device base;
    imp_coreml_config cfg; /* strings: those below */
    char cache_dir[ML_WIRE_PATH], runtime[ML_WIRE_PATH], program[ML_WIRE_PATH];
    ml_welcome info;
} ml_device;

typedef enum ml_state {
    ML_PREPARING, /* the keeper has it */
    ML_READY,     /* run has it */
    ML_BROKEN,    /* the keeper is to start another worker */
    ML_GIVEN_UP
} ml_state;

typedef struct ml_exec {
    imp_exec base;
    const imp_graph *graph; /* borrowed */
    imp_limits lim;
    ml_load load; /* what every worker is told; paths are the keeper's */
    ml_slots slots;
    float *out;    /* [max_seq][dim]; decoders: [ML_ROWS][head_dim], for keys on their way */
    uint8_t *kv;   /* [n_kv_block][kv_block_bytes] decoders: what prompts left behind, in tiles (kern/kv.h) */
    float *hidden; /* [width][longest length] */
    uint32_t *order; /* [max_seq] sequences, by length */
    float *expect;   /* [n_expect] what the package gives for the probe text; keeper */
    ml_body *answer; /* a worker's, while a step runs */
    uint64_t n_expect, kv_block_bytes;
    uint64_t last_ns;
    uint32_t last_len;

    imp_mutex *lock; /* guards what follows */
    imp_cond *changed;
    ml_state state;
    bool stop, running;
    char text[200];    /* what is being done, or why not */
    uint64_t since_ns; /* when that began */
    uint32_t n_fail, n_good;
    imp_proc *proc; /* the keeper's while PREPARING or BROKEN, run's while READY and running */
    char ran_on[ML_WIRE_LENS][96];
    imp_thread *keeper;
} ml_exec;

enum { ML_PROBE_TOK = 7, ML_ROWS = 16 };

/* keeper.c: the background thread that converts, starts workers and replaces those that die. */
IMP_MUST_USE imp_status ml_keeper_start(ml_exec *x, imp_error *err);
void ml_keeper_stop(ml_exec *x);
/* Set what is being done; lock not held. */
void ml_say(ml_exec *x, const char *fmt, ...) IMP_PRINTF(2, 3);

/* client.c: one question to a worker. On DEVICE the worker said no; IO and BUSY: it is gone or hangs; FORMAT: it talks
 * nonsense. stop may be NULL. */
IMP_MUST_USE imp_status ml_ask(imp_proc *p, ml_kind kind, const void *body, ml_kind want, ml_body *out,
                               uint32_t ms, const bool *stop, imp_error *err);
/* A worker that said hello. */
IMP_MUST_USE imp_status ml_worker_start(const ml_device *d, size_t n_shared, imp_proc **out, ml_welcome *info,
                                        const bool *stop, imp_error *err);

/* device.c: the text of n tokens into slot i of p. */
IMP_MUST_USE imp_status ml_fill_slot(ml_exec *x, imp_proc *p, uint32_t len, uint32_t i, const int32_t *token,
                                     const int32_t *type, uint32_t n, imp_error *err);
const float *ml_slot_out(const ml_exec *x, const imp_proc *p, uint32_t i);

/* prefill.c: keys and values of decoders. What the graph's prefill needs of node v: false for what only generating takes. */
IMP_MUST_USE imp_status ml_prefill_needs(const imp_graph *g, bool **need,
                                         imp_error *err); /* [n + 1], the caller's */
void ml_prefill_shape(const imp_graph *g, ml_shape *sh);  /* n_kv and kv_width */
/* What slot i holds for n tokens in length `len` goes into the sequence's blocks. DEVICE: it is not finite. */
IMP_MUST_USE imp_status ml_prefill_keep(ml_exec *x, imp_proc *p, uint32_t len, uint32_t i,
                                        const imp_batch_seq *q, imp_error *err);
/* The first n tokens of keys and values in slot i: [layer][k|v][kv_width][n]. */
void ml_prefill_read(const ml_exec *x, const imp_proc *p, uint32_t len, uint32_t i, uint32_t n, float *out);
void ml_prefill_copy(imp_exec *x, uint32_t dst, uint32_t src);
IMP_MUST_USE imp_status ml_prefill_export(imp_exec *x, uint32_t block, void *host, imp_error *err);

#endif
