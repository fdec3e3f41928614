/* sched/spec.h - speculation: tokens that are guessed, computed together with the next one and kept when they were right. */
#ifndef IMP_SPEC_H
#define IMP_SPEC_H

#include "sched/sched.h"

enum {
    IMP_SPEC_CLASSES = 8,
    IMP_SPEC_NODES = 14
}; /* classes of a match's length; numbers of rows that are timed */

/* How often a guess was right, by how many tokens before it matched. Old guesses count less and less. */
typedef struct imp_spec_rates {
    float tried[IMP_SPEC_CLASSES], right[IMP_SPEC_CLASSES];
} imp_spec_rates;
void imp_spec_rates_init(imp_spec_rates *r); /* what is thought before anything was seen */

/* Of one sequence: where its end stood before. All 0: nothing is known yet. */
typedef struct imp_spec {
    imp_spec_rates rates;
    uint32_t seen; /* ids that were looked at */
    uint32_t at,
        len; /* ids[at-len..at-1] are the last len of the seen ones, so ids[at] is guessed; len 0: no guess */
    uint32_t n_forced;              /* tokens of the answer that a constraint left no choice about */
    uint32_t n_drafted, n_accepted; /* tokens computed as guesses, and those of them that were right */
} imp_spec;

/* The sequence has n_ids tokens now, of which n_prompt came with the request: note which guesses were right, find its end
 * among what went before. */
void imp_spec_follow(imp_spec *p, imp_spec_rates *all, const int32_t *ids, size_t n_ids, size_t n_prompt);
/* What may come next: up to `most` tokens into token, and how likely each is if all before it were right into chance.
 * Returns how many. */
uint32_t imp_spec_guess(const imp_spec *p, const imp_spec_rates *all, const int32_t *ids, uint32_t most,
                        int32_t *token, float *chance);

/* How long steps of so many rows take beside each other. All 0: nothing was measured. */
typedef struct imp_spec_times {
    double log_s[IMP_SPEC_NODES]; /* but for `level`, which all have in common */
    double level;
    uint32_t seen[IMP_SPEC_NODES];
    uint64_t n, n_choice;
} imp_spec_times;
void imp_spec_learn(imp_spec_times *w, uint32_t rows,
                    double s); /* a step in which all generate took s seconds */

#endif
