/* sched/stop.c - stop strings across token borders.
 *
 * Idea:    the held text is short (a token plus at most the longest stop string), so the earliest match is found by
 *          trying each position; the longest tail that begins a stop string stays held. */
#include "sched/stop.h"

void imp_stop_init(imp_stop *s, const char *const *text, size_t n)
{
    *s = (imp_stop){.text = text, .n = n};
}
void imp_stop_deinit(imp_stop *s)
{
    imp_buf_deinit(&s->held);
}

/* The stop string that stands at `at`, whole (complete) or as far as the text goes. */
static const char *stands_at(const imp_stop *s, size_t at, bool complete)
{
    size_t left = s->held.n - at;
    for (size_t i = 0; i < s->n; i++) {
        size_t len = strlen(s->text[i]);
        if ((len <= left) == complete && memcmp(s->held.data + at, s->text[i], IMP_MIN(len, left)) == 0)
            return s->text[i];
    }
    return NULL;
}

bool imp_stop_scan(imp_stop *s, size_t *n_release)
{
    for (size_t at = 0; at < s->held.n; at++) {
        *n_release = at;
        if ((s->hit = stands_at(s, at, true)) != NULL) return true;
    }
    for (size_t at = 0; at < s->held.n; at++) {
        *n_release = at;
        if (stands_at(s, at, false) != NULL) return false;
    }
    *n_release = s->held.n;
    return false;
}

void imp_stop_drop(imp_stop *s, size_t n)
{
    memmove(s->held.data, s->held.data + n, s->held.n - n);
    s->held.n -= n;
    if (s->held.data != NULL) s->held.data[s->held.n] = '\0';
}
