/* sched/push.h - a KV cache on its way from the unit that prefills to the one that will decode. */
#ifndef IMP_PUSH_H
#define IMP_PUSH_H

#include <stdatomic.h>

#include "dev/dev.h"

enum { IMP_PUSH_STEP_BLOCKS = 8 }; /* taken in between two steps of the receiver */

typedef struct imp_push {
    atomic_uint n_ref; /* the job, and the receiver while it is in its list */
    uint8_t
        *host; /* [n_block][block_bytes] owned: the host's memory, or a stage that stage_to alone can read */
    imp_device *stage_of; /* whose memory it is; NULL: the host's */
    const imp_exec *stage_to;
    uint64_t block_bytes;
    uint32_t n_block;
    atomic_uint n_out;  /* blocks that lie in host; written by the sender, which fills them first */
    atomic_bool done;   /* the prefill is over: what is copied from now on is waited for */
    atomic_bool closed; /* the job has ended or gone elsewhere: the receiver gives its blocks back */

    /* sender's thread, then whoever has the job */
    double early_s, late_s; /* copying out, before and after the end of the prefill */

    /* receiver's thread */
    void *to;              /* the scheduler */
    uint32_t *block;       /* [n_block] where they lie there; owned */
    uint32_t n_in, n_have; /* taken in; blocks held */
    uint32_t n_early;      /* taken in before the end of the prefill */
    bool stalled;          /* no room, or the device failed: not tried again before the job comes */
    _Atomic uint64_t in_early_ns, in_late_ns;
    struct imp_push *next;
} imp_push;

/* From one executable to another, where that is known, past the host if they can. NULL: no memory. */
imp_push *imp_push_new(uint32_t n_block, uint64_t block_bytes, imp_exec *from, imp_exec *to /* or NULL */);
/* n blocks, from the first on, between where they lie and x's cache. */
IMP_MUST_USE imp_status imp_push_move(const imp_push *p, imp_exec *x, const uint32_t *block, uint32_t first,
                                      uint32_t n, bool out, imp_error *err);
/* Whether x can take in what was pushed. */
bool imp_push_fits(const imp_push *p, const imp_exec *x, uint64_t block_bytes);
void imp_push_unref(imp_push *p); /* NULL is allowed */

#endif
