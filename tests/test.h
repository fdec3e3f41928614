/* tests/test.h - what every C test program includes: cmocka and a small deterministic random source. */
#ifndef IMP_TEST_H
#define IMP_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

typedef struct rng {
    uint64_t s;
} rng;

static inline uint64_t rng_u64(rng *r)
{
    r->s ^= r->s << 13;
    r->s ^= r->s >> 7;
    r->s ^= r->s << 17;
    return r->s;
}
static inline uint32_t rng_below(rng *r, uint32_t n)
{
    return (uint32_t)(rng_u64(r) >> 33) % n;
}
static inline double rng_unit(rng *r)
{
    return (double)(rng_u64(r) >> 11) * 0x1p-53;
}
static inline float rng_f32(rng *r)
{
    return (float)(rng_unit(r) * 2 - 1);
}

#endif
