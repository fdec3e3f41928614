/* app/term.h - the terminal: progress bars on stderr, signals, a clean line when the program ends.
 *
 * Threads: app_bar_add from any thread of one command, the rest from the main thread. */
#ifndef IMP_APP_TERM_H
#define IMP_APP_TERM_H

#include "base/base.h"

/* Progress on stderr; nothing when it is no terminal or app_term_init was told to be quiet. One at a time. */
void app_term_init(bool quiet);
bool app_term_shows_progress(void);
void app_bar_begin(const char *label, uint64_t total, const char *unit);
void app_bar_add(uint64_t n);
void app_bar_note(const char *note); /* shown behind the bar, e.g. "ppl 7.31"; copied */
void app_bar_end(void);              /* clears the line */

/* Ctrl-C and SIGTERM. Off (the start): the line is cleared and the program ends as the signal says. On: the signal is
 * counted, and app_signal_fd becomes readable. */
void app_signals_init(void);
void app_signals_catch(bool on);
int app_signals_count(void);      /* since catch was switched on */
bool app_signals_terminate(void); /* the last one asked for the program's end, not just for an interruption */
void app_signals_clear(void);
bool app_signals_wait(void); /* sleeps until a signal has been counted; false: a SIGHUP came instead */
void app_signals_catch_hangup(void); /* from now on SIGHUP only wakes app_signals_wait */
void app_signals_raise(void);        /* end as the caught signal would have ended the program */

#endif
