/* sched/sched.h - the scheduler of one model: takes requests from any thread, computes them in steps.
 *
 * Place:   driven by engine's thread; drives dev/dev.h. Knows no HTTP.
 * Idea:    a step is one forward pass over a ragged batch: first one token for every sequence that generates, then
 *          prompt chunks of the others up to a token budget. Embedding inputs are batched in steps of their own.
 * Threads: submit, cancel, stats from any thread; step and free from the one scheduler thread. */
#ifndef IMP_SCHED_H
#define IMP_SCHED_H

#include "dev/dev.h"
#include "model/net.h"

typedef struct imp_sched imp_sched;

typedef struct imp_sched_config {
    const imp_net *net;         /* borrowed, outlives the scheduler */
    imp_exec *generate, *embed; /* borrowed; NULL where the net has no such graph */
    imp_limits generate_limits, embed_limits;
    uint32_t n_ctx, n_batch, n_queue;
} imp_sched_config;

IMP_MUST_USE imp_status imp_sched_new(const imp_sched_config *c, imp_sched **out, imp_error *err);
/* Every request that is still there gets its final event (CANCELLED). */
void imp_sched_free(imp_sched *s);

/* As imp_submit in impetus.h; id is the caller's, unique. */
IMP_MUST_USE imp_status imp_sched_submit(imp_sched *s, const imp_request *r, uint64_t id, imp_error *err);
/* true: the id is known here; its final event follows from a later step. */
bool imp_sched_cancel(imp_sched *s, uint64_t id);
bool imp_sched_has_work(imp_sched *s);
/* At most one generating and one embedding step; calls back. false: there was nothing to do. */
bool imp_sched_step(imp_sched *s);
void imp_sched_add_stats(imp_sched *s, imp_stats *out); /* adds to what is there */

#endif
