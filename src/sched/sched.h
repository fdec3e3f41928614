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

struct job; /* an accepted request; sched/job.h */

/* What a phase of a request took so far. */
typedef struct imp_sched_phase {
    uint32_t n_tok;
    double s;     /* of the steps it took part in, by the device's clock */
    double bytes; /* that those steps moved, as the cost model counts them */
} imp_sched_phase;

typedef struct imp_sched_job_info {
    void *tag;
    imp_request_kind kind;
    uint32_t n_prompt, n_generated, cap; /* cap: tokens the sequence may reach */
    imp_sched_phase phase[2];            /* prefill (or embedding), decode */
    double queue_ms;
} imp_sched_job_info;
void imp_sched_job_get(const struct job *j, imp_sched_job_info *out);

/* What the engine wants to know or decide; any may be NULL. Called on the scheduler's thread without its lock. */
typedef struct imp_sched_hooks {
    void *user;
    /* A step of the batch took s seconds. Returns the bytes it moved. */
    double (*on_step)(void *user, const imp_batch *b, bool embed, double s);
    /* A job with `split` has its first token, its cache is exported: true when it was moved (imp_sched_move). */
    bool (*on_prefilled)(void *user, struct job *j);
    /* The device failed: true when the job was moved, false ends it with err. */
    bool (*on_stranded)(void *user, struct job *j, const imp_error *err);
    /* Just before the final event; the job is still whole. */
    void (*on_end)(void *user, struct job *j, imp_finish finish);
} imp_sched_hooks;

typedef struct imp_sched_config {
    const imp_net *net;         /* borrowed, outlives the scheduler */
    imp_exec *generate, *embed; /* borrowed; NULL where the net has no such graph */
    imp_limits generate_limits, embed_limits;
    uint32_t n_ctx, n_batch, n_queue;
    bool want_load; /* keep imp_sched_get_load up to date */
    imp_sched_hooks hooks;
} imp_sched_config;

/* Memory that imp_sched_new takes for these limits. Reads net, the limits and n_queue of *c only. */
uint64_t imp_sched_bytes(const imp_sched_config *c);
IMP_MUST_USE imp_status imp_sched_new(const imp_sched_config *c, imp_sched **out, imp_error *err);
/* Every request that is still there gets its final event (CANCELLED). */
void imp_sched_free(imp_sched *s);

/* As imp_submit in impetus.h; id is the caller's, unique. */
IMP_MUST_USE imp_status imp_sched_submit(imp_sched *s, const imp_request *r, uint64_t id, imp_error *err);
/* The same with the engine's record, and whether the decode will happen elsewhere. */
IMP_MUST_USE imp_status imp_sched_submit_tagged(imp_sched *s, const imp_request *r, uint64_t id, void *tag,
                                                bool split, imp_error *err);
/* Take a job out of `from` (its thread calls) and give it to another scheduler of the same model: with its exported
 * cache, or to be computed again. NOMEM: it stays where it is. The caller wakes the other thread. */
IMP_MUST_USE imp_status imp_sched_move(imp_sched *from, imp_sched *to, struct job *j);
/* true: the id is known here; its final event follows from a later step. */
bool imp_sched_cancel(imp_sched *s, uint64_t id);
/* What waits and runs here. */
typedef struct imp_sched_load {
    double queued_tok; /* prompt and embedding tokens not computed yet */
    uint32_t n_prefill, n_decode;
} imp_sched_load;
void imp_sched_get_load(imp_sched *s, imp_sched_load *out);
bool imp_sched_has_work(imp_sched *s);
/* At most one generating and one embedding step; calls back. false: there was nothing to do. */
bool imp_sched_step(imp_sched *s);
void imp_sched_add_stats(imp_sched *s, imp_stats *out); /* adds to what is there */

#endif
