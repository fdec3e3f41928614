/* plan/ceilings.h - what the CPU reaches at best: read bandwidth, int8 and f32 arithmetic, measured.
 *
 * Place:   layer 5; devices prints it, bench divides by it.
 * Idea:    the best pass of a short loop that does nothing else: a bound for what a kernel can reach, not a promise. */
#ifndef IMP_CEILINGS_H
#define IMP_CEILINGS_H

#include "base/thread.h"

typedef struct imp_ceilings {
    double read_bytes_s; /* all threads reading a buffer far larger than the caches */
    double
        cache_bytes_s; /* the same of a buffer that fills half the last-level caches; 0: they are not known */
    double int8_op_s;  /* a multiply-add is two */
    double f32_flop_s;
    uint32_t n_thread;
    uint64_t buffer_bytes; /* what was read */
    const char *isa;       /* of the loops, static text */
    int64_t measured_at;   /* Unix seconds */
} imp_ceilings;

/* Measure with all threads of pool, about ms milliseconds for each of the three. llc_bytes: size of the last-level
 * caches (imp_host), 0: unknown; the buffer is four times that and at least 256 MiB, less when memory is short.
 * until_ns (imp_now_ns): from then on only the pass that runs is finished, and what has not begun, other than reading, is 0;
 * UINT64_MAX: no such end. NOMEM; the pool must be idle. */
IMP_MUST_USE imp_status imp_ceilings_measure(imp_pool *pool, uint64_t llc_bytes, uint32_t ms,
                                             uint64_t until_ns, imp_ceilings *out, imp_error *err);

/* What the machine gives just now: single passes between pieces of other work, because memory that other programs use may
 * be twice as fast a second later. A pass takes some milliseconds, after a shorter one that is not timed, so that threads
 * that slept are awake. */
typedef struct imp_gauge imp_gauge;
IMP_MUST_USE imp_status imp_gauge_new(uint32_t n_thread, uint64_t llc_bytes, imp_gauge **out, imp_error *err);
void imp_gauge_free(imp_gauge *g);   /* NULL is fine */
double imp_gauge_read(imp_gauge *g); /* bytes a second */
double imp_gauge_int8(imp_gauge *g); /* operations a second */

#endif
