/* base/duration.c - how long, as people write it. */
#include <ctype.h>

#include "base/base.h"

static const struct {
    const char *name;
    double s;
} g_unit[] = {{"ns", 1e-9}, {"us", 1e-6}, {"ms", 1e-3}, {"s", 1}, {"m", 60}, {"h", 3600}};

/* Digits with at most one point; false: there are none. */
static bool parse_number(const char **s, double *out)
{
    double v = 0, place = 1;
    const char *p = *s;
    for (; isdigit((unsigned char)*p); p++) v = v * 10 + (*p - '0');
    if (*p == '.')
        for (p++; isdigit((unsigned char)*p); p++) v += (*p - '0') * (place /= 10);
    bool any = p > *s && !(p == *s + 1 && **s == '.');
    *s = p;
    *out = v;
    return any;
}

bool imp_duration_parse(const char *s, double *out)
{
    double sign = *s == '-' ? -1 : 1, sum = 0, v;
    s += *s == '-' || *s == '+';
    if (*s == '\0') return false;
    for (bool first = true; *s != '\0'; first = false) {
        if (!parse_number(&s, &v)) return false;
        size_t n = 0, k = 0;
        while (isalpha((unsigned char)s[n])) n++;
        while (k < IMP_COUNT(g_unit) && (strlen(g_unit[k].name) != n || strncmp(g_unit[k].name, s, n) != 0))
            k++;
        bool bare = n == 0 && *s == '\0' && first; /* seconds */
        if (k == IMP_COUNT(g_unit) && !bare) return false;
        sum += v * (bare ? 1 : g_unit[k].s);
        s += n;
    }
    *out = sign * sum;
    return true;
}
