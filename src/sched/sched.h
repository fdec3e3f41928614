/* sched/sched.h - the scheduler of one model: takes requests from any thread, computes them in steps.
 *
 * Place:   driven by engine's thread; drives dev/dev.h. Knows no HTTP.
 * Idea:    a step is one forward pass over a ragged batch: first one token for every sequence that generates, then
 *          prompt chunks of the others up to a token budget, which is so small that those who generate keep their pace.
 *          Embedding inputs are batched in steps of their own, between the others. Beginnings of prompts that were
 *          computed before are not computed again (prefix.h).
 * Threads: submit, cancel, stats from any thread; step and free from the one scheduler thread. */
#ifndef IMP_SCHED_H
#define IMP_SCHED_H

#include "dev/dev.h"
#include "model/net.h"
#include "plan/cost.h"
#include "sched/kv_store.h"

typedef struct imp_sched imp_sched;

enum { IMP_SPEC_MAX = 15 }; /* tokens guessed for a sequence in a step (spec.h) */

struct job; /* an accepted request; sched/job.h */

/* What a phase of a request took so far. */
typedef struct imp_sched_phase {
    uint32_t n_tok;
    double s;     /* of the steps it took part in, by the device's clock */
    double bytes; /* that those steps moved, as the cost model counts them */
    /* Its share of what an energy meter saw: of a step that several requests have part in, by their tokens. metered_s: of s,
     * the time the meter knew. */
    double joules, metered_s;
} imp_sched_phase;

/* A cache that moved from one device to another: what was copied while the prefill still ran, and what after it. */
typedef struct imp_sched_handover {
    uint32_t n_block, n_early; /* early: taken in by the second device before the first was done */
    double bytes, overlapped_s, exposed_s;
    bool direct; /* past the host's memory */
} imp_sched_handover;

typedef struct imp_sched_job_info {
    void *tag;
    imp_request_kind kind;
    bool adapters;
    uint32_t n_prompt, n_generated, cap; /* cap: tokens the sequence may reach */
    imp_sched_phase phase[2];            /* prefill (or embedding), decode */
    uint32_t n_cached;
    uint32_t n_restored; /* of n_cached: brought back from disk for this request, in restore_ms */
    double queue_ms, restore_ms;
    uint32_t n_drafted, n_accepted; /* guessed tokens that were computed, and were right */
    imp_sched_handover handover;
} imp_sched_job_info;
void imp_sched_job_get(const struct job *j, imp_sched_job_info *out);

/* What the engine wants to know or decide; any may be NULL. Called on the scheduler's thread without its lock. */
typedef struct imp_sched_hooks {
    void *user;
    /* A step of the batch took s seconds. Returns the bytes it moved; *joules: what it used, < 0: not metered. */
    double (*on_step)(void *user, const imp_batch *b, bool embed, double s, double *joules);
    /* A job with `split` has its first token (on a device that reads prompts only: all but its last prompt token is read),
     * its cache is exported: true when it was moved (imp_sched_move). */
    bool (*on_prefilled)(void *user, struct job *j);
    /* The device failed in a step; before the jobs that were on it are stranded. */
    void (*on_failed)(void *user, const imp_error *err);
    /* The device failed: true when the job was moved, false ends it with err. */
    bool (*on_stranded)(void *user, struct job *j, const imp_error *err);
    /* Who will take the cache of a job with `split`; NULL: not known. */
    imp_exec *(*receiver)(void *user, struct job *j);
    /* More of the cache of a job with `split` lies on the host: the unit that will decode may take it (imp_sched_land). */
    void (*on_pushed)(void *user, struct job *j);
    /* Seconds that a step of this shape is thought to take. */
    double (*predict)(void *user, const imp_cost_shape *sh, bool embed);
    /* There may be something to do (imp_sched_can_step). Any thread. */
    void (*wake)(void *user);
    /* Just before the final event; the job is still whole. */
    void (*on_end)(void *user, struct job *j, imp_finish finish);
} imp_sched_hooks;

typedef struct imp_sched_config {
    const imp_net *net;         /* borrowed, outlives the scheduler */
    imp_exec *generate, *embed; /* borrowed; NULL where the net has no such graph */
    imp_limits generate_limits, embed_limits;
    uint32_t n_ctx, n_batch, n_queue;
    bool want_load; /* keep imp_sched_get_load up to date */
    double pace;    /* prompts may make a step that also generates this much longer; 0: no limit */
    imp_kv_store *
        kv_store; /* where caches are saved and found again; NULL: nowhere. Borrowed, outlives the scheduler */
    const char *model_name; /* for people who look there */
    int speculate; /* compute guesses (spec.h): 0: where they change no bit, 1: also elsewhere, -1: never */
    imp_sched_hooks hooks;
} imp_sched_config;

/* Memory that imp_sched_new takes for these limits. Reads net, the limits and n_queue of *c only. */
uint64_t imp_sched_bytes(const imp_sched_config *c);
IMP_MUST_USE imp_status imp_sched_new(const imp_sched_config *c, imp_sched **out, imp_error *err);
/* Every request that is still there gets its final event (CANCELLED). */
void imp_sched_free(imp_sched *s);

/* As imp_submit in impetus.h; id is the caller's, unique. */
IMP_MUST_USE imp_status imp_sched_submit(imp_sched *s, const imp_request *r, uint64_t id, imp_error *err);
/* The same with the engine's record; split: the context of the unit where the decode will happen, 0: it happens here. A
 * device that reads prompts only (dev.h) takes nothing else. */
IMP_MUST_USE imp_status imp_sched_submit_tagged(imp_sched *s, const imp_request *r, uint64_t id, void *tag,
                                                uint32_t split, imp_error *err);
/* Take a job out of `from` (its thread calls) and give it to another scheduler of the same model: with its exported
 * cache, or to be computed again. NOMEM: it stays where it is. The caller wakes the other thread. */
IMP_MUST_USE imp_status imp_sched_move(imp_sched *from, imp_sched *to, struct job *j);
/* The cache of j, which prefills elsewhere, will be needed here: its blocks are taken in as they come. Engine's lock or
 * another way to know that both are there. */
void imp_sched_land(imp_sched *to, struct job *j);
/* true: the id is known here; its final event follows from a later step. */
bool imp_sched_cancel(imp_sched *s, uint64_t id);
/* What waits and runs here. */
typedef struct imp_sched_load {
    double queued_tok; /* prompt and embedding tokens not computed yet */
    uint32_t n_prefill, n_decode;
    uint32_t n_coming; /* of n_decode: their prompts are not computed yet */
} imp_sched_load;
void imp_sched_get_load(imp_sched *s, imp_sched_load *out);
bool imp_sched_has_work(imp_sched *s);
/* A step would do something: not all that is here waits for a cache that is read from disk. Its thread. */
bool imp_sched_can_step(imp_sched *s);
bool imp_sched_expects(
    imp_sched *s); /* a cache is on its way here, from another scheduler or from disk; its thread */
/* At most one generating and one embedding step; calls back. false: there was nothing to do. */
bool imp_sched_step(imp_sched *s);
/* Its two halves. *decode_s: what the step took if sequences generated in it, else 0. */
bool imp_sched_step_generate(imp_sched *s, double *decode_s);
/* As many inputs as are thought to take budget_s at most, by the `predict` hook; *used_s: what they took. *pending: there
 * are more. */
bool imp_sched_step_embed(imp_sched *s, double budget_s, double *used_s, bool *pending);
void imp_sched_drop_cache(imp_sched *s); /* what only the prefix cache holds; its thread */
/* Give what the prefix cache holds and the disk does not to be saved, as far as that takes budget_s; its thread. Returns
 * how many blocks. */
uint32_t imp_sched_save(imp_sched *s, double budget_s);
void imp_sched_want_save(imp_sched *s); /* the same bit by bit, between its steps; any thread */
void imp_sched_add_stats(imp_sched *s, imp_stats *out); /* adds to what is there */

#endif
