/* base/thread.h - a pool of pinned threads that run one function together, with a cheap barrier. */
#ifndef IMP_THREAD_H
#define IMP_THREAD_H

#include "base/base.h"

typedef struct imp_pool imp_pool;
typedef void (*imp_pool_fn)(void *ctx, uint32_t ith, uint32_t n_thread);

/* n_thread >= 1, the caller is thread 0; workers are pinned to cores where the system allows it. */
IMP_MUST_USE imp_status imp_pool_new(uint32_t n_thread, imp_pool **out);
void imp_pool_free(imp_pool *p);
uint32_t imp_pool_n_thread(const imp_pool *p);
/* fn(ctx, i, n) on every thread at once; returns when all are done. One caller at a time. */
void imp_pool_run(imp_pool *p, imp_pool_fn fn, void *ctx);
/* Inside fn: nobody passes before all n have come. Spins briefly, then sleeps. */
void imp_pool_barrier(imp_pool *p);
/* fn on the caller and on every worker that comes before the caller's own call has returned; returns when those who came
 * are back. For work that is dealt out by claims: nobody waits for a thread that the system does not let run. */
void imp_pool_run_open(imp_pool *p, imp_pool_fn fn, void *ctx);

/* A list of phases, each cut into shares that are claimed one by one; a phase is complete when its shares are done,
 * whoever did them. What was written in a phase is visible to all who are past it. */
typedef struct imp_phases imp_phases;
/* share: which part of the phase; ith: the thread that does it. */
typedef void (*imp_share_fn)(void *ctx, uint32_t phase, uint32_t share, uint32_t ith);
IMP_MUST_USE imp_status imp_phases_new(uint32_t n_phase, uint32_t max_share, imp_phases **out);
void imp_phases_free(imp_phases *f);
/* All shares of all phases, by the pool's threads: shares ith * n_share / n_thread onwards are thread ith's first choice,
 * others' are taken when their thread has not come. n_share: 1..max_share. One caller at a time. */
void imp_phases_run(imp_phases *f, imp_pool *p, uint32_t n_share, imp_share_fn fn, void *ctx);

/* A plain thread, mutex and condition through the seam. */
typedef struct imp_thread imp_thread;
IMP_MUST_USE imp_status imp_thread_start(void (*fn)(void *), void *arg, imp_thread **out);
void imp_thread_join(imp_thread *t); /* and frees it */

typedef struct imp_mutex imp_mutex;
IMP_MUST_USE imp_status imp_mutex_new(imp_mutex **out);
void imp_mutex_free(imp_mutex *m);
void imp_mutex_lock(imp_mutex *m);
void imp_mutex_unlock(imp_mutex *m);

/* The one lock of the process's own tables; held briefly. */
void imp_global_lock(void);
void imp_global_unlock(void);

typedef struct imp_cond imp_cond;
IMP_MUST_USE imp_status imp_cond_new(imp_cond **out);
void imp_cond_free(imp_cond *c);
void imp_cond_wait(imp_cond *c, imp_mutex *m);
bool imp_cond_wait_ms(imp_cond *c, imp_mutex *m, uint32_t ms); /* false: timed out */
void imp_cond_broadcast(imp_cond *c);

#endif
