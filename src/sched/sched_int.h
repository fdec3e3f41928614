/* sched/sched_int.h - the scheduler's inside, shared by sched.c (queue) and step.c (steps). Private to sched. */
#ifndef IMP_SCHED_INT_H
#define IMP_SCHED_INT_H

#include "base/thread.h"
#include "sched/fair.h"
#include "sched/job.h"
#include "sched/prefix.h"
#include "sched/sched.h"

struct imp_sched {
    imp_sched_config c;
    imp_mutex *lock; /* guards incoming, known, stats; never held while calling back */
    job_list incoming;
    job **known; /* [n_known] accepted and not finished, for cancel */
    size_t n_known, cap_known;
    imp_stats stats;
    imp_sched_load load; /* as of the last step */
    imp_push *landing;   /* caches on their way here; changed by the scheduler thread and imp_sched_land */

    /* scheduler thread only */
    job_list waiting, running, embedding;
    imp_kv_pool kv;
    imp_prefix prefix;
    imp_kv_book *book;        /* where caches are saved; NULL: nowhere */
    struct restore *restores; /* what is being read from there */
    uint32_t save_next; /* depth from which imp_sched_want_save goes on; UINT32_MAX: nothing is wanted */
    _Atomic bool save_wanted;
    double export_s; /* to copy a block out, smoothed */
    uint64_t n_restored_tok;
    imp_fair fair;
    double hold;          /* what short prompts may still take (pace.c) */
    int32_t *slot_ids;    /* [max_seq][n_ctx] sequences that run, or ran and wait for memory */
    uint32_t *slot_block; /* [max_seq][n_block_ctx] their block tables */
    uint32_t *free_slot;  /* [n_free_slot] */
    uint32_t n_free_slot, n_block_ctx;
    uint64_t step_no, n_query_tok, n_hit_tok, n_preempted, n_drafted, n_accepted;
    imp_sampler_scratch scratch;
    float *vector;           /* [embed_dim] a finished embedding */
    uint64_t kv_block_bytes; /* of a block on its way to another device; 0: this one cannot */
    bool prefill_only;       /* the device reads prompts for others (dev.h) */

    /* batch under construction, sized by the limits */
    int32_t *token, *pos;
    uint32_t *out_row;
    imp_batch_seq *seq;
    job **seq_job;     /* whose sequence it is */
    uint32_t *seq_out; /* GENERATE, SCORE: its first output row; UINT32_MAX: none */
    size_t *seq_input; /* EMBED: which input */

    /* guesses for the sequences of a step */
    imp_spec_rates rates;
    imp_spec_times times;
    int32_t *draft;                 /* [max_seq][IMP_SPEC_MAX] */
    float *draft_chance;            /* [max_seq][IMP_SPEC_MAX] that it and all before it are right */
    uint32_t *draft_n, *draft_take; /* [max_seq] how many there are, and are computed */
};

/* The job is over: out of every list, blocks back, final event, freed. */
void imp_sched_end(imp_sched *s, job_list *from, job *j, imp_finish finish, const imp_error *err);
/* ---- admit.c ---- */
/* Blocks for j's first n_pos positions; what is only kept in case goes first. */
bool imp_sched_blocks(imp_sched *s, job *j, uint32_t n_pos);
/* j waits (again), without a cache; what it has computed is kept as long as there is room. */
void imp_sched_preempt(imp_sched *s, job *j);
/* The next job that may join the step with `room` tokens left: it is in `running` then. NULL: none can. */
job *imp_sched_admit(imp_sched *s);
/* Whole blocks that j has computed are known to the prefix cache from now on; at its end also the last one. */
void imp_sched_index(imp_sched *s, job *j, bool end);
void imp_sched_give_slot(imp_sched *s, job *j);
void imp_sched_give_cache(imp_sched *s, job *j); /* blocks back */
bool imp_sched_take_landings(imp_sched *s);      /* blocks that came; true: something was done */

/* ---- restore.c ---- */
/* Is j's beginning, of which n blocks (in table) are in memory, to be had from disk? Then it is being read from now on, for
 * j or already for another, and j waits. */
bool imp_sched_restoring(imp_sched *s, job *j, const uint32_t *table, uint32_t n);
bool imp_sched_take_restored(imp_sched *s);       /* blocks that were read; true: something was done */
bool imp_sched_drop_restores(imp_sched *s);       /* their blocks can be evicted; true: there were any */
void imp_sched_end_restore(imp_sched *s, job *j); /* nobody waits for it any more */
bool imp_sched_restore_has_news(const imp_sched *s);
void imp_sched_spill(void *sched, uint32_t block); /* a block leaves the prefix cache */
bool imp_sched_save_some(imp_sched *s); /* what imp_sched_want_save asked for; true: something was done */
bool imp_sched_can_save(const imp_sched *s);

/* From the list to which a job belongs now. */
job_list *imp_sched_list_of(imp_sched *s, const job *j);
void imp_sched_publish(imp_sched *s); /* the scheduler thread's own counts, for stats */

/* ---- step.c, embed.c ---- */
/* A step under construction. */
typedef struct step {
    uint32_t n_tok, n_seq, n_out;
    uint32_t n_decode; /* sequences that generate */
    uint32_t n_draft;  /* guesses: then nothing but sequences that generate is in the step */
    uint32_t n_generated;
    double s;         /* what it took by the device's clock */
    const float *out; /* the device's result; NULL: it stays there (row.h) */
    /* pace.c */
    bool paced, pieces; /* prompts are limited; some were read in pieces */
    uint32_t budget;    /* tokens left for pieces; UINT32_MAX: not asked for yet */
    uint32_t n_passed;  /* prompts that may run but got no token */
    double crowd, alone_s;
    imp_cost_shape alone, whole; /* those that generate; and with short prompts */
} step;
bool imp_step_generate(imp_sched *s, double *decode_s);
bool imp_step_embed(imp_sched *s, double budget_s, double *used_s);
/* What both have in common: a device that failed, counts. */
void imp_step_fail(imp_sched *s, const step *t, job_list *list, const imp_error *err);
void imp_step_account(imp_sched *s, step *t, const imp_exec *x, const imp_batch *b, bool embed, uint64_t t0);
void imp_step_count(imp_sched *s, const step *t, uint64_t t0, bool embed);

/* ---- pace.c ---- */
void imp_pace_begin(imp_sched *s, step *t); /* those that generate are in the step */
/* How many of j's next tokens may go in; UINT32_MAX: all. *borrows: for imp_pace_take, which says how many did. */
uint32_t imp_pace_most(imp_sched *s, step *t, const job *j, bool *borrows);
void imp_pace_take(imp_sched *s, step *t, const job *j, uint32_t n, bool borrows);
bool imp_pace_open(const imp_sched *s, const step *t); /* may further prompts be admitted? */
void imp_pace_end(imp_sched *s, const step *t);        /* the step is chosen */

/* ---- spec.c ---- */
/* Add guesses to a step in which every sequence generates, when that is thought to pay. */
void imp_spec_widen(imp_sched *s, step *t);
void imp_spec_give_room(imp_sched *s, job *j); /* blocks that only wrong guesses needed */

/* ---- constrain.c ---- */
/* What may come next in a constrained answer: *mask NULL: anything. */
IMP_MUST_USE imp_status imp_constrain_mask(imp_sched *s, job *j, const uint32_t **mask, imp_error *err);
/* The token was chosen and handed out. true: the answer is complete. */
bool imp_constrain_follow(imp_sched *s, job *j, int32_t id);

#endif
