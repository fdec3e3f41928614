/* fmt/quote.c - names from files made fit for an error message.
 *
 * Idea:    a hostile file chooses its names; they must not put control characters or a screenful into a log line. */
#include "fmt/quote.h"

imp_quoted imp_quote(const char *p, size_t n)
{
    enum { SHOWN = 80 };
    imp_quoted q;
    size_t k = 0;
    q.s[k++] = '\'';
    for (size_t i = 0; i < n && i < SHOWN; i++) q.s[k++] = p[i] >= 0x20 && p[i] < 0x7f ? p[i] : '?';
    for (int i = 0; n > SHOWN && i < 3; i++) q.s[k++] = '.';
    q.s[k++] = '\'';
    q.s[k] = 0;
    return q;
}

imp_quoted imp_quote_z(const char *s)
{
    return imp_quote(s, strlen(s));
}

imp_status imp_fail_in(imp_error *err, imp_status status, const char *path)
{
    enum { KEEP = 240 }; /* a long path gives way to the reason, not the other way round */
    if (err == NULL) return status;
    imp_error old = *err;
    size_t n = strlen(path);
    (void)imp_fail(err, status, "%s%s: %s", n > KEEP ? "..." : "", n > KEEP ? path + n - KEEP : path,
                   old.text);
    memcpy(err->field, old.field, sizeof err->field);
    err->position = old.position;
    return status;
}
