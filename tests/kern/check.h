/* tests/kern/check.h - what the parts of tools/checkkern.c share: random data, guarded buffers, the verdict.
 *
 * Idea:    a check runs in a forked child and works on buffers that end (or begin) at an unmapped page, so that one
 *          byte too many is a crash; it reports the first difference on stderr and the worst error as a share of
 *          the bound. */
#ifndef CHECK_H
#define CHECK_H

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kern/kern.h"
#include "kern/kv.h"

enum { MAX_GUARD = 64 };

struct check {
    uint64_t rng;
    double worst; /* largest error / bound so far */
    bool failed;
    char where[160]; /* what is being checked, for the message */
    struct guard {
        void *map;
        size_t n;
    } guard[MAX_GUARD];
    size_t n_guard;
};

/* ---- random numbers (splitmix64) ---------------------------------------------------------------- */
static inline uint64_t rnd(struct check *c)
{
    uint64_t z = c->rng += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}
static inline uint32_t rnd_below(struct check *c, uint32_t n)
{
    return (uint32_t)(rnd(c) % n);
}
static inline float rnd_unit(struct check *c) /* -1 .. 1 */
{
    return (float)((double)(rnd(c) >> 11) * 0x1p-52 - 1);
}

/* ---- buffers beside unmapped pages ---------------------------------------------------------------- */
/* n bytes that end at an unmapped page; at_start: that begin after one instead. Filled with 0xa5. */
static inline void *guard_bytes(struct check *c, size_t n, bool at_start)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (n + page - 1) / page * page;
    if (body == 0) body = page;
    uint8_t *map = mmap(NULL, body + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || c->n_guard == MAX_GUARD || mprotect(map, page, PROT_NONE) != 0 ||
        mprotect(map + page + body, page, PROT_NONE) != 0) {
        fprintf(stderr, "checkkern: no memory for a guarded buffer\n");
        exit(3);
    }
    c->guard[c->n_guard++] = (struct guard){map, body + 2 * page};
    uint8_t *p = at_start ? map + page : map + page + body - n;
    memset(p, 0xa5, n);
    return p;
}
static inline float *guard_floats(struct check *c, size_t n)
{
    return guard_bytes(c, n * sizeof(float), (rnd(c) & 3) == 0);
}
/* Gives back every buffer taken since `mark`. */
static inline void guard_release(struct check *c, size_t mark)
{
    while (c->n_guard > mark) {
        c->n_guard--;
        munmap(c->guard[c->n_guard].map, c->guard[c->n_guard].n);
    }
}

/* ---- comparing ---------------------------------------------------------------------------------------- */
static inline bool same_bits(const void *a, const void *b, size_t n)
{
    return memcmp(a, b, n) == 0;
}
/* 0 finite, 1 NaN, 2 +inf, 3 -inf */
static inline int class_of(double v)
{
    return isnan(v) ? 1 : isinf(v) ? (v > 0 ? 2 : 3) : 0;
}
static inline void fail(struct check *c, const char *what, size_t i, double got, double want, double bound)
{
    if (!c->failed)
        fprintf(stderr, "checkkern: %s: %s at %zu: got %.9g, want %.9g, allowed difference %.3g\n", c->where,
                what, i, got, want, bound);
    c->failed = true;
}
/* |got - want| <= bound, the same class of NaN and infinity. `want` may be beyond f32: then infinity is right. */
static inline void expect_near(struct check *c, size_t i, float got, double want, double bound)
{
    if (class_of(want) != 0 || class_of((double)(float)want) != 0) {
        if (class_of((double)got) != class_of((double)(float)want)) fail(c, "class", i, (double)got, want, 0);
        return;
    }
    double err = fabs((double)got - want);
    if (!(err <= bound))
        fail(c, "value", i, (double)got, want, bound);
    else if (bound > 0 && err / bound > c->worst)
        c->worst = err / bound;
}
static inline void expect_same(struct check *c, const char *what, const float *got, const float *want,
                               size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!same_bits(got + i, want + i, sizeof(float))) {
            fail(c, what, i, (double)got[i], (double)want[i], 0);
            return;
        }
}

/* Values of a row by kind of data. */
enum data_kind { DATA_UNIT, DATA_WIDE, DATA_TINY, DATA_DENORMAL, DATA_SPIKE, N_DATA };
static inline void fill_floats(struct check *c, float *x, size_t n, enum data_kind kind)
{
    for (size_t i = 0; i < n; i++) {
        float u = rnd_unit(c);
        switch (kind) {
        case DATA_UNIT: x[i] = u; break;
        case DATA_WIDE: x[i] = u * 100; break;
        case DATA_TINY: x[i] = u * 1e-30f; break;
        case DATA_DENORMAL: x[i] = u * 1e-40f; break;
        case DATA_SPIKE: x[i] = rnd_below(c, 16) == 0 ? u * 1000 : u * 0.01f; break;
        case N_DATA: break;
        }
    }
}

#endif
