/* sched/job.h - one accepted request and how far it is. Private to sched. */
#ifndef IMP_JOB_H
#define IMP_JOB_H

#include <stdatomic.h>

#include "sched/push.h"
#include "sched/row.h"
#include "sched/sampler.h"
#include "sched/sched.h"
#include "sched/spec.h"
#include "sched/stop.h"
#include "text/grammar.h"
#include "text/tokenizer.h"

typedef struct job {
    struct job *next; /* in the list that holds it */
    uint64_t id;
    imp_request r; /* copies of everything it points to live in `memory` */
    imp_arena *memory;
    _Atomic bool cancelled;

    /* sequence (GENERATE, SCORE) */
    int32_t
        *ids; /* prompt, then what was generated; room for cap_ids while it has a slot, else only for n_ids */
    size_t n_prompt, n_ids, cap_ids;
    uint32_t n_past; /* ids whose keys and values are in the cache */
    uint32_t *block; /* block table, room for a full context; the slot's */
    uint32_t n_block;
    int32_t *own_ids;        /* as it came, in `memory` */
    uint32_t slot;           /* of the scheduler, from its admission; UINT32_MAX: none */
    uint32_t n_indexed;      /* blocks known to the prefix cache */
    uint32_t n_cached;       /* prompt tokens that were there when it was first admitted */
    uint32_t n_fresh;        /* tokens to be read when it was last admitted */
    uint32_t n_restored;     /* of n_cached: read from disk for it */
    struct restore *restore; /* what is being read; NULL: nothing */
    bool asked_disk;         /* once is enough */
    bool on_disk;            /* it was seen that there is something; it has still to ask */
    bool held;               /* it waits for what is read, for it or for another */
    uint64_t restore_ns;     /* how long it waited for that */
    uint32_t fair;           /* its client's place in the turns */
    uint64_t in_step;        /* the last step it takes part in */
    bool resumed;            /* it ran before: first in line */
    bool passed;             /* in this round of admission others go first */
    imp_sampler sampler;
    imp_spec spec;
    imp_dry_marks *dry;   /* in `memory`; NULL: no DRY */
    imp_detok dry_detok;  /* spells special tokens too */
    uint8_t *is_break;    /* [cap_ids] for the sampler */
    imp_matcher *matcher; /* where the answer is in its constraint, owned; NULL: none */

    /* text of a GENERATE */
    imp_detok detok;
    imp_stop stop;
    uint64_t n_released;   /* bytes handed out so far */
    imp_token_prob *token; /* [cap_token] tokens not handed out yet, when logprobs are wanted */
    imp_token_prob *top;   /* [cap_token * n_logprobs] */
    struct {
        uint64_t from, to;
    } * token_at; /* [cap_token] bytes of the whole text that are the token's */
    size_t n_token, cap_token;

    /* EMBED */
    size_t *input_first; /* [n_input] offset of each input in ids */
    size_t next_input;   /* first one not yet in a step */
    size_t n_input_done;

    uint64_t t_submit, t_start, t_first, t_end; /* ns; 0: not yet */

    /* Several devices: what ran where, and the cache on its way to another one */
    imp_sched_phase phase[2]; /* prefill (or embedding), decode */
    void *tag;                /* the engine's record of the request */
    bool split;               /* decode happens elsewhere: the cache is exported as it fills */
    bool adapters_run;        /* they are counted as running, no longer as waiting */
    bool read_ahead; /* all of the prompt but its last token came from a device that does only that */
    imp_push *push;  /* the exported cache; NULL: none */
    imp_sched_handover handover;
} job;

void imp_job_adapters_run(job *j); /* it has left the queue */
/* A checked request becomes a job. NOMEM only. */
IMP_MUST_USE imp_status imp_job_new(const imp_request *r, uint64_t id, const imp_tokenizer *tok,
                                    uint32_t n_ctx, job **out);
void imp_job_free(job *j);

/* One more token was chosen, from this row when log probabilities are wanted: text goes out through the callback. true: a stop string ended it. */
bool imp_job_token(job *j, int32_t id, imp_sampler_scratch *scratch, imp_row *row, bool is_end);
/* The final event, after held-back text (unless a stop string ended it). The job is freed by the caller. */
void imp_job_finish(job *j, imp_finish finish, const imp_error *err);

/* FIFO list */
typedef struct job_list {
    job *first, *last;
    uint32_t n;
} job_list;
void imp_job_push(job_list *l, job *j);
void imp_job_push_front(job_list *l, job *j);
void imp_job_remove(job_list *l, job *j);

#endif
