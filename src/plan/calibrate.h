/* plan/calibrate.h - measuring a unit: bandwidth, peaks, launches, hand-over, and the kernels at common sizes.
 *
 * Place:   layer 5; `impetus calibrate` stores the result, `plan` predicts from it.
 * Idea:    a chain of matrix products of each weight type and row count is compiled and run on the device like any model,
 *          and what it took is taught to the learner: the same code corrects predictions while serving. */
#ifndef IMP_CALIBRATE_H
#define IMP_CALIBRATE_H

#include "plan/store.h"

/* About 3 s (quick) to 15 s. *l is made anew; *out holds the measured machine. on_progress may be NULL. */
IMP_MUST_USE imp_status imp_calibrate(imp_device *d, imp_unit_kind kind, uint32_t n_thread, bool quick,
                                      void (*on_progress)(void *user, uint32_t done, uint32_t all),
                                      void *user, imp_learn *l, imp_calibration *out, imp_error *err);

/* The short form, about a second: bandwidth, peaks, launches and hand-over alone, no kernels. Corrections start anew. After
 * limit_ms what runs is finished and nothing more is begun: *cut is true when some numbers are the assumed ones therefore. */
IMP_MUST_USE imp_status imp_calibrate_short(imp_device *d, imp_unit_kind kind, uint32_t n_thread,
                                            uint32_t limit_ms, imp_calibration *out, bool *cut,
                                            imp_error *err);

#endif
