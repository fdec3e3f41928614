/* sched/push.h - a KV cache on its way from the unit that prefills to the one that will decode. */
#ifndef IMP_PUSH_H
#define IMP_PUSH_H

#include <stdatomic.h>

#include "base/base.h"

enum { IMP_PUSH_STEP_BLOCKS = 8 }; /* taken in between two steps of the receiver */

typedef struct imp_push {
    atomic_uint n_ref; /* the job, and the receiver while it is in its list */
    uint8_t *host;     /* [n_block][block_bytes] owned */
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

/* NULL: no memory. */
imp_push *imp_push_new(uint32_t n_block, uint64_t block_bytes);
void imp_push_unref(imp_push *p); /* NULL is allowed */

#endif
