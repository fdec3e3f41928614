/* sched/sched_int.h - the scheduler's inside, shared by sched.c (queue) and step.c (steps). Private to sched. */
#ifndef IMP_SCHED_INT_H
#define IMP_SCHED_INT_H

#include "base/thread.h"
#include "sched/job.h"
#include "sched/kv_pool.h"
#include "sched/sched.h"

struct imp_sched {
    imp_sched_config c;
    imp_mutex *lock; /* guards incoming, known, stats; never held while calling back */
    job_list incoming;
    job **known; /* [n_known] accepted and not finished, for cancel */
    size_t n_known, cap_known;
    imp_stats stats;
    imp_sched_load load; /* as of the last step */

    /* scheduler thread only */
    job_list waiting, running, embedding;
    imp_kv_pool kv;
    imp_sampler_scratch scratch;
    float *vector;           /* [embed_dim] a finished embedding */
    uint64_t kv_block_bytes; /* of a block on its way to another device; 0: this one cannot */

    /* batch under construction, sized by the limits */
    int32_t *token, *pos;
    uint32_t *out_row;
    imp_batch_seq *seq;
    job **seq_job;     /* whose sequence it is */
    uint32_t *seq_out; /* GENERATE, SCORE: its first output row; UINT32_MAX: none */
    size_t *seq_input; /* EMBED: which input */
};

/* The job is over: out of every list, blocks back, final event, freed. */
void imp_sched_end(imp_sched *s, job_list *from, job *j, imp_finish finish, const imp_error *err);
/* From the list to which a job belongs now. */
job_list *imp_sched_list_of(imp_sched *s, const job *j);
void imp_sched_publish(imp_sched *s); /* the scheduler thread's own counts, for stats */
bool imp_step_generate(imp_sched *s);
bool imp_step_embed(imp_sched *s);

#endif
