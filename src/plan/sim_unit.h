/* plan/sim_unit.h - a simulated device whose clock is the cost model of a profile. */
#ifndef IMP_SIM_UNIT_H
#define IMP_SIM_UNIT_H

#include "dev/sim/sim.h"
#include "plan/machine.h"

/* Computes on a CPU device with n_thread threads (0: one a core) of its own. */
IMP_MUST_USE imp_status imp_sim_unit_open(const imp_machine *m, uint32_t n_thread, imp_device **out,
                                          imp_error *err);

#endif
