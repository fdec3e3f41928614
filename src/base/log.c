/* base/log.c - one line a message on stderr, written with one call so that threads do not mix. */
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

#include "base/base.h"

static _Atomic int log_level = IMP_LOG_WARN;

void imp_log_set_level(imp_log_level level)
{
    atomic_store(&log_level, (int)level);
}

void imp_log(imp_log_level level, const char *fmt, ...)
{
    static const char *const name[] = {"error", "warning", "info", "debug"};
    if ((int)level > atomic_load(&log_level)) return;
    char line[1024];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    fprintf(stderr, "impetus: %s: %s\n", name[level], line);
}

uint64_t imp_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
