/* plan/meter.h - energy meters: what a unit has used, in joules, where the system lets it be read.
 *
 * Place:   layer 5; the engine reads one a unit between steps, calibration while it measures.
 * Idea:    a CPU's meter is RAPL's package counters in Linux's powercap tree, a GPU's the counter of NVIDIA's driver. Where
 *          there is none, or it may not be read, a sentence says why and nothing is guessed. A unit of an Apple chip has
 *          IOReport's counter (plan/meter_apple.h; undocumented by Apple, not run here).
 *          imp_power turns a counter into the joules of a step: the mean power since the last reading, taken only over
 *          stretches in which the unit was busy, times the step's time. Requests that share a step share its joules by the
 *          tokens they have in it. RAPL counts the whole package, so other programs' work is in it.
 * Threads: one user of a meter at a time. */
#ifndef IMP_METER_H
#define IMP_METER_H

#include "plan/machine.h"

typedef struct imp_meter imp_meter;

/* root NULL: /sys/class/powercap. NOT_FOUND: there is none; IO: it may not be read. */
IMP_MUST_USE imp_status imp_meter_open_rapl(const char *root, imp_meter **out, imp_error *err);
/* library NULL: the system's. gpu: its number in NVML. NOT_FOUND, DEVICE. */
IMP_MUST_USE imp_status imp_meter_open_nvml(const char *library, uint32_t gpu, imp_meter **out,
                                            imp_error *err);
/* library NULL: the system's. kind: the unit of an Apple chip. Errors: see imp_ioreport_open. Not run here. */
IMP_MUST_USE imp_status imp_meter_open_ioreport(const char *library, imp_unit_kind kind, imp_meter **out,
                                                imp_error *err);
/* From now on imp_meter_open looks for RAPL there; NULL: where the system has it. For tests; root must stay. */
void imp_meter_set_rapl_root(const char *root);
/* The meter of a unit: RAPL for a CPU, NVML for a GPU whose driver is "cuda", IOReport for "coreml", "mlx" and a Mac's CPU. */
IMP_MUST_USE imp_status imp_meter_open(imp_unit_kind kind, const char *driver, imp_meter **out,
                                       imp_error *err);
void imp_meter_close(imp_meter *m); /* NULL is allowed */
/* Joules since it was opened; false: not now (RAPL, NVML: nor later). A counter that wrapped around counts on. */
bool imp_meter_joules(imp_meter *m, double *out);
const char *imp_meter_name(const imp_meter *m); /* "RAPL" */

typedef struct imp_power {
    imp_meter *meter; /* borrowed; NULL: unmetered */
    uint64_t last_ns;
    double last_j, busy_s, watt; /* watt 0: not known yet */
} imp_power;

/* A step that ended now (imp_now_ns) took s seconds: its joules, < 0 while they are not known. */
double imp_power_step(imp_power *p, uint64_t now_ns, double s);

#endif
