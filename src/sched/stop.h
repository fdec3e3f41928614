/* sched/stop.h - stop strings, found across token borders; text that may be part of one is held back. */
#ifndef IMP_STOP_H
#define IMP_STOP_H

#include "base/base.h"

typedef struct imp_stop {
    const char *const *text; /* [n] borrowed, none empty */
    size_t n;
    const char *hit; /* the one that was found; NULL: none yet */
    imp_buf held;    /* owned: text that came and has not been released */
} imp_stop;

void imp_stop_init(imp_stop *s, const char *const *text, size_t n);
void imp_stop_deinit(imp_stop *s);
/* Append s->held with what came before calling. Returns true when a stop string is complete; *n_release is how many
 * bytes of s->held may go out (before the stop string, or up to what may become one). */
bool imp_stop_scan(imp_stop *s, size_t *n_release);
void imp_stop_drop(imp_stop *s, size_t n); /* forget the first n held bytes, which went out */

#endif
