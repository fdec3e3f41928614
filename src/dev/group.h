/* dev/group.h - executables that compute one divided graph together: how their threads meet, and their sums in host memory.
 *
 * Place:   made by dev/tensor, one for each compiled model; devices get it with ops.join.
 * Idea:    every member runs the same list of sums in the same order. What a member adds lies in one of two slots in turn: who
 *          has come to sum i + 1 has read sum i, so that nobody waits twice.
 * Always:  sums are made in the members' order, by every member for itself: all get the same bits.
 * Threads: one thread a member, between imp_group_new and imp_group_free; imp_group_give_up from any. */
#ifndef IMP_DEV_GROUP_H
#define IMP_DEV_GROUP_H

#include "dev/dev.h"

typedef struct imp_group imp_group;

IMP_MUST_USE imp_status imp_group_new(uint32_t n_member, imp_group **out);
void imp_group_free(imp_group *g);
uint32_t imp_group_n(const imp_group *g);
/* Room for every ALLREDUCE of a member's graph; before anybody runs. */
IMP_MUST_USE imp_status imp_group_reserve(imp_group *g, const imp_graph *graph, const imp_limits *lim,
                                          imp_error *err);
/* Until all members have come; false: one gave up, and none will come. */
bool imp_group_meet(imp_group *g);
/* y[i] = the sum of all members' x[i], i < n; y may be x. false: a member gave up, y is not written. */
bool imp_group_sum(imp_group *g, uint32_t rank, const float *x, float *y, uint64_t n);
/* This step will not be finished: all who wait, or will, go on at once. */
void imp_group_give_up(imp_group *g);
bool imp_group_gave_up(const imp_group *g);
/* OK, or what a member answers that was released: CANCELLED. */
IMP_MUST_USE imp_status imp_group_state(const imp_group *g, imp_error *err);
/* *flag becomes 1 when a member gives up, 0 by imp_group_start: for what waits elsewhere. */
void imp_group_watch(imp_group *g, uint32_t rank, volatile uint32_t *flag);
/* Before a step, when no member runs. Returns how many steps were given up so far: who sees it change starts afresh. */
uint32_t imp_group_start(imp_group *g);
uint32_t imp_group_epoch(const imp_group *g);

#endif
