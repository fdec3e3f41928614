/* plan/mix.h - which type each part of a model gets: the cheapest choice whose divergence stays within a budget.
 *
 * Place:   layer 5; `plan --mixed` prints it, `quantize --type mixed` writes it.
 * Idea:    every group of matrices has a few types to choose from; each costs time on the unit (cost.h with what was learned
 *          about it), memory, and divergence (sense.h). Divergences of groups are taken to add up; the sum of costs is
 *          minimised under the budget (multiple-choice knapsack), then the chosen mix is measured as a whole, and chosen
 *          again with a stricter or looser budget until the measured divergence just keeps to what was asked for. */
#ifndef IMP_MIX_H
#define IMP_MIX_H

#include "plan/learn.h"
#include "plan/sense.h"

enum { IMP_MIX_OPTIONS = 10 };

typedef struct imp_mix_option {
    imp_dtype type; /* NONE: as it is in the source */
    uint32_t row;   /* mix.c's row of sensitivities */
    double kl;
    bool measured; /* kl was measured; else it follows from measured ones by the rounding error */
    uint64_t bytes;
    double
        seconds; /* what a request takes longer (or shorter) with this type in this group than with the first one */
    double error; /* as imp_sense_error */
} imp_mix_option;

typedef struct imp_mix_group {
    int group;
    imp_mix_option opt[IMP_MIX_OPTIONS];
    uint32_t n_opt;
    uint32_t chosen;
} imp_mix_group;

typedef enum imp_mix_goal { IMP_MIX_BALANCE, IMP_MIX_TIME, IMP_MIX_SIZE } imp_mix_goal;
bool imp_mix_goal_from_name(const char *name, imp_mix_goal *out);

/* What a whole model takes, in one type or in the mix. */
typedef struct imp_mix_total {
    imp_dtype type; /* NONE: the mix, or the source */
    uint64_t bytes; /* of all groups */
    double ttft_s, tpot_s;
    double kl;
    bool measured;
} imp_mix_total;

typedef struct imp_mix {
    imp_mix_group group[IMP_N_GROUP];
    uint32_t n_group;
    double max_kl;
    imp_mix_goal goal;
    imp_mix_total source, mix, uniform[IMP_MIX_OPTIONS];
    uint32_t n_uniform;
    double sum_kl;      /* what the sum of the groups said of the mix */
    uint32_t n_measure; /* runs of the model that were needed; 0: all was remembered */
    bool kept;          /* nothing but the source's own types keeps to the budget */
} imp_mix;

/* Minimise sum cost[i][k] over one k for each of n groups (n_opt[i] options, at most IMP_MIX_OPTIONS) with sum kl[i][k] <=
 * max_kl. Divergences are rounded up to max_kl / 16384, so the budget is kept and the result is the best up to that. false:
 * no choice keeps to it (or no memory). */
bool imp_mix_solve(uint32_t n, const uint32_t n_opt[], const double cost[][IMP_MIX_OPTIONS],
                   const double kl[][IMP_MIX_OPTIONS], double max_kl, uint32_t choice[]);

typedef struct imp_mix_want {
    double max_kl;
    imp_mix_goal goal;
    const imp_learn *learn;   /* the unit that will compute */
    const bool *can;          /* [IMP_N_DTYPE] types the unit takes; NULL: all */
    uint32_t n_prompt, n_gen; /* the request that is priced */
    /* Two stretches of text in windows of imp_sense_window: types are chosen by the first, the mix is measured on the second.
     */
    const int32_t *ids, *held_out;
    uint32_t n_window, n_held_out;
    /* Remembered sensitivities: fill *m as far as known, true when found. NULL: nothing is remembered. */
    bool (*recall)(void *user, void *data, size_t n);
    void (*remember)(void *user, const void *data, size_t n);
    void (*progress)(void *user, uint32_t done, uint32_t total);
    void *user;
} imp_mix_want;

/* Measure, choose, verify. */
IMP_MUST_USE imp_status imp_mix_make(imp_sense *s, imp_net *net, const imp_mix_want *want, imp_mix *out,
                                     imp_error *err);
/* type[g] of the mix; NONE where the source's stays. */
void imp_mix_types(const imp_mix *m, imp_dtype type[IMP_N_GROUP]);

#endif
