/* text/grammar/schema_number.c - numbers within bounds, digit by digit.
 *
 * Idea:    a bound becomes its decimal digits; a number is compared with both bounds from the left while it is written:
 *          "still equal to the lower bound so far", "still equal to the upper one", or free. Numbers with bounds are
 *          written without exponent and with at most 15 digits, so that reading them back never rounds across a bound.
 * Source:  JSON (RFC 8259) section 6. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "text/grammar/schema_int.h"

enum { MAX_DIGIT = 15 };

typedef struct bound {
    bool is, open; /* open: the bound itself is not allowed */
    double v;
} bound;

/* The digits of a bound >= 0: "12" "5" for 12.5; trailing zeros of the fraction cut. */
typedef struct digits {
    char whole[32], part[32];
    bool open;
} digits;

typedef struct span { /* while writing one number: against lo when `low`, against hi when `high` */
    gr *g;
    const digits *lo, *hi;
    uint32_t n_whole;
    bool integer;
} span;

static gr_expr digit(gr *g, int lo, int hi)
{
    if (lo > hi) return gr_never(g);
    return gr_class(g, &(gr_range){'0' + lo, '0' + hi}, 1, false);
}

static gr_expr digits_free(gr *g, uint32_t min, uint32_t max)
{
    return gr_repeat(g, digit(g, 0, 9), min, max);
}

static bool split(double v, bool open, digits *out)
{
    char text[400];
    int k;
    for (k = 15; k < 18; k++) { /* the shortest that reads back as v */
        (void)snprintf(text, sizeof text, "%.*g", k, v);
        if (strtod(text, NULL) == v) break;
    }
    int exponent = v > 0 ? (int)floor(log10(v)) : 0;
    int places = IMP_MAX(0, k - 1 - exponent);
    (void)snprintf(text, sizeof text, "%.*f", IMP_MIN(places, 30), v);
    char *dot = strchr(text, '.');
    if (dot != NULL) {
        *dot++ = '\0';
        for (size_t n = strlen(dot); n > 0 && dot[n - 1] == '0';) dot[--n] = '\0';
    }
    if (strlen(text) >= sizeof out->whole || (dot != NULL && strlen(dot) >= sizeof out->part)) return false;
    memset(out, 0, sizeof *out);
    memcpy(out->whole, text, strlen(text));
    if (dot != NULL) memcpy(out->part, dot, strlen(dot));
    out->open = open;
    return true;
}

/* May the number end where it is equal to the bounds (as the flags say) up to `i` digits of their fractions? */
static bool may_end(const span *s, size_t i, bool low, bool high)
{
    if (low && (s->lo->part[i] != '\0' || s->lo->open)) return false;
    return !high || s->hi->part[i] != '\0' || !s->hi->open;
}

/* Fraction digits from the i-th on, at least `min` of them. */
static gr_expr fraction(const span *s, size_t i, size_t max, bool low, bool high, uint32_t min)
{
    gr *g = s->g;
    if (!low && !high) return digits_free(g, min, (uint32_t)(max - i));
    gr_list l = {0};
    if (min == 0 && may_end(s, i, low, high)) gr_push(g, &l, 0);
    if (i < max) {
        int a = low && s->lo->part[i] != '\0' ? s->lo->part[i] - '0' : 0;
        bool high_done = high && s->hi->part[i] == '\0';
        int b = high ? (high_done ? 0 : s->hi->part[i] - '0') : 9;
        for (int d = a; d <= b; d++) {
            bool tight_low = low && d == a, tight_high = high && d == b;
            if (!tight_low && !tight_high) { /* all digits in between at once */
                int last = high ? b - 1 : b;
                gr_push(g, &l, gr_seq2(g, digit(g, d, last), fraction(s, i + 1, max, false, false, 0)));
                d = last;
                continue;
            }
            /* past the end of a bound's digits it goes on as zeros */
            size_t next = i + 1;
            gr_push(g, &l, gr_seq2(g, digit(g, d, d), fraction(s, next, max, tight_low, tight_high, 0)));
        }
    }
    return gr_take_alt(g, &l);
}

/* What follows the whole part. */
static gr_expr after_whole(const span *s, bool low, bool high)
{
    gr *g = s->g;
    gr_expr none = may_end(s, 0, low, high) ? 0 : gr_never(g);
    if (s->integer || s->n_whole >= MAX_DIGIT) return none;
    gr_expr part = gr_seq2(g, gr_str(g, "."), fraction(s, 0, MAX_DIGIT - s->n_whole, low, high, 1));
    return gr_alt2(g, none, part);
}

/* Digits of the whole part from the i-th on. */
static gr_expr whole(const span *s, uint32_t i, bool low, bool high)
{
    gr *g = s->g;
    if (i == s->n_whole) return after_whole(s, low, high);
    if (!low && !high)
        return gr_seq2(g, digits_free(g, s->n_whole - i, s->n_whole - i), after_whole(s, false, false));
    int least = i == 0 && s->n_whole > 1 ? 1 : 0;
    int a = low ? s->lo->whole[i] - '0' : least, b = high ? s->hi->whole[i] - '0' : 9;
    gr_list l = {0};
    for (int d = IMP_MAX(a, least); d <= b; d++) {
        bool tight_low = low && d == a, tight_high = high && d == b;
        int last = d;
        if (!tight_low && !tight_high) last = high ? b - 1 : b;
        gr_push(g, &l, gr_seq2(g, digit(g, d, last), whole(s, i + 1, tight_low, tight_high)));
        d = last;
    }
    return gr_take_alt(g, &l);
}

/* Numbers >= 0 between the bounds; hi NULL: as large as MAX_DIGIT digits. */
static gr_expr between(gr *g, const digits *lo, const digits *hi, bool integer)
{
    gr_list l = {0};
    uint32_t from = (uint32_t)strlen(lo->whole), to = hi != NULL ? (uint32_t)strlen(hi->whole) : MAX_DIGIT;
    for (uint32_t n = from; n <= IMP_MIN(to, (uint32_t)MAX_DIGIT); n++) {
        span s = {.g = g, .lo = lo, .hi = hi, .n_whole = n, .integer = integer};
        gr_expr e;
        if (n != from && !(hi != NULL && n == to)) /* no bound has this many digits */
            e = gr_seq2(g, digit(g, 1, 9),
                        gr_seq2(g, digits_free(g, n - 1, n - 1), after_whole(&s, false, false)));
        else
            e = whole(&s, 0, n == from, hi != NULL && n == to);
        gr_push(g, &l, e);
    }
    return gr_take_alt(g, &l);
}

/* Numbers x >= 0 with lo <= x <= hi (or < where open). */
static gr_expr positive(schema *s, bound lo, bound hi, bool integer)
{
    if (!lo.is || lo.v < 0) lo = (bound){true, false, 0};
    if (hi.is && (hi.v < lo.v || (hi.v == lo.v && (hi.open || lo.open)))) return gr_never(&s->g);
    digits a, b;
    if (!split(lo.v, lo.open, &a) || (hi.is && !split(hi.v, hi.open, &b)))
        return gr_fail(&s->g, IMP_UNSUPPORTED, "JSON schema: a bound of a number has too many digits");
    return between(&s->g, &a, hi.is ? &b : NULL, integer);
}

static bool read_bound(schema *s, const json_t *x, const char *closed, const char *open, bool lower,
                       bound *out)
{
    *out = (bound){0};
    for (int k = 0; k < 2; k++) {
        const json_t *v = json_object_get(x, k == 0 ? closed : open);
        if (v == NULL) continue;
        if (!json_is_number(v)) {
            (void)schema_refuse(s, IMP_INVALID, k == 0 ? closed : open, "must be a number");
            return false;
        }
        double d = json_number_value(v);
        bool tighter = !out->is || (lower ? d >= out->v : d <= out->v);
        if (tighter) *out = (bound){true, k == 1 || (out->is && out->open && d == out->v), d};
    }
    return true;
}

/* Whole numbers divisible by m: a rule for each remainder. */
static gr_expr multiples(schema *s, uint32_t m)
{
    gr *g = &s->g;
    if (m == 1)
        return gr_alt2(g, gr_str(g, "0"), gr_seq2(g, digit(g, 1, 9), digits_free(g, 0, MAX_DIGIT - 1)));
    uint32_t first = 0;
    for (uint32_t r = 0; r < m; r++) {
        uint32_t rule = gr_rule_new(g, "multiple", 8);
        if (r == 0) first = rule;
    }
    gr_list start = {0};
    for (uint32_t r = 0; r <= m && g->status == IMP_OK; r++) {
        gr_list l = {0}, *to = r == m ? &start : &l;
        if (r == 0) gr_push(g, to, 0);
        for (int d = r == m ? 1 : 0; d <= 9; d++) {
            uint32_t next = ((r == m ? 0 : r) * 10 + (uint32_t)d) % m;
            gr_push(g, to, gr_seq2(g, digit(g, d, d), gr_call(g, first + next)));
        }
        if (r < m) gr_rule_set(g, first + r, gr_take_alt(g, &l));
    }
    return gr_alt2(g, gr_str(g, "0"), gr_take_alt(g, &start));
}

static gr_expr unbounded(gr *g, bool integer)
{
    static const char whole_re[] = "-?(0|[1-9][0-9]{0,17})";
    static const char real_re[] = "-?(0|[1-9][0-9]{0,15})(\\.[0-9]{1,16})?([eE][-+]?[0-9]{1,2})?";
    const char *re = integer ? whole_re : real_re;
    return gr_regex(g, re, strlen(re), true, NULL);
}

gr_expr schema_number(schema *s, const json_t *x, bool integer)
{
    gr *g = &s->g;
    bound lo, hi;
    if (!read_bound(s, x, "minimum", "exclusiveMinimum", true, &lo) ||
        !read_bound(s, x, "maximum", "exclusiveMaximum", false, &hi))
        return 0;
    const json_t *multiple = json_object_get(x, "multipleOf");
    if (multiple != NULL) {
        double m = json_number_value(multiple);
        if (!json_is_number(multiple) || m <= 0)
            return schema_refuse(s, IMP_INVALID, "multipleOf", "must be above 0");
        if (m != floor(m) || m > 1000 || lo.is || hi.is)
            return schema_refuse(s, IMP_UNSUPPORTED, "multipleOf",
                                 "only whole numbers up to 1000, without bounds beside it, are supported");
        return gr_seq2(g, gr_opt(g, gr_str(g, "-")), multiples(s, (uint32_t)m));
    }
    if (!lo.is && !hi.is) return unbounded(g, integer);
    /* x < 0 is -y with y > 0, the bounds swapped */
    gr_expr negative = gr_never(g);
    if (!lo.is || lo.v < 0) {
        bound least = {hi.is && hi.v < 0, hi.open, -hi.v}, most = {lo.is, lo.open, -lo.v};
        if (!least.is) least = (bound){true, true, 0};
        negative = gr_seq2(g, gr_str(g, "-"), positive(s, least, most, integer));
    }
    gr_expr rest = hi.is && (hi.v < 0 || (hi.v == 0 && hi.open)) ? gr_never(g) : positive(s, lo, hi, integer);
    return gr_alt2(g, negative, rest);
}
