/* dev/sim/sim.h - a unit we do not have: another device's arithmetic on a virtual clock.
 *
 * Place:   opened by plan (which knows profiles and step times); the engine and the tests drive it like any device.
 * Idea:    compute for real on the inner device, so that answers are right; tell a time that the profile predicts, so
 *          that plans, receipts and experiments can be tried on any machine. Nothing waits.
 * Always:  what is printed about such a device is stamped SIMULATED by whoever prints it. */
#ifndef IMP_DEV_SIM_H
#define IMP_DEV_SIM_H

#include "dev/dev.h"

typedef struct imp_sim_clock {
    /* Nanoseconds the unit would take for the batch. */
    uint64_t (*step_ns)(void *ctx, const imp_graph *g, const imp_batch *b);
    /* NULL: it can run the node. */
    const char *(*refuses)(void *ctx, const imp_graph *g, imp_val v);
    void (*free_ctx)(void *ctx);
    void *ctx;
} imp_sim_clock;

/* Takes inner and clock.ctx, also when it fails. */
IMP_MUST_USE imp_status imp_dev_sim_open(imp_device *inner, const char *name, const imp_sim_clock *clock,
                                         imp_device **out, imp_error *err);
bool imp_dev_is_sim(const imp_device *d);
/* From now on every step takes `factor` times as long (1: as the profile says). */
void imp_dev_sim_slow(imp_device *d, double factor);
/* true: every run fails with DEVICE, as if the unit had gone. */
void imp_dev_sim_kill(imp_device *d, bool dead);
/* Virtual time the unit has computed so far. */
uint64_t imp_dev_sim_busy_ns(const imp_device *d);

#endif
