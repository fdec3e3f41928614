/* plan/meter_apple.h - the joules that an Apple chip counts for its CPU, GPU and neural engine, read through IOReport.
 *
 * Place:   layer 5; meter.c opens it. Not run here: no Mac has seen it, a stand-in of the tests has.
 * Threads: one user at a time. */
#ifndef IMP_METER_APPLE_H
#define IMP_METER_APPLE_H

#include "plan/machine.h"

typedef struct imp_ioreport imp_ioreport;

/* library "": the system's; else one that holds IOReport and CoreFoundation (tests). NOT_FOUND: this is no Mac, or nothing
 * is counted for such a unit; UNSUPPORTED: its IOReport is not the one we know; DEVICE: it gives no samples. */
IMP_MUST_USE imp_status imp_ioreport_open(const char *library, imp_unit_kind kind, imp_ioreport **out,
                                          imp_error *err);
void imp_ioreport_close(imp_ioreport *r); /* NULL is allowed */
/* Joules of the stretches since it was opened that could be read. false: the one since the last reading could not be. */
bool imp_ioreport_joules(imp_ioreport *r, double *out);

#endif
