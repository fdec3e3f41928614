/* kern/cpu.c - which instructions kernels may use: what was detected, less what a mask takes away.
 *
 * Place:   baseline code; detection itself is x86/cpu_x86.c and arm/cpu_arm.c.
 * Threads: detection is idempotent; imp_cpu_set_mask belongs before the first selection. */
#include "kern/variant.h"

#include <stdatomic.h>
#include <stdlib.h>

static _Atomic uint64_t detected;
static _Atomic uint64_t mask = UINT64_MAX;

enum { IMP_CPU_DONE_BIT = 63 }; /* in `detected`: detection has run */

uint64_t imp_cpu_features(void)
{
    uint64_t f = atomic_load_explicit(&detected, memory_order_relaxed);
    if (f == 0) {
        f = imp_cpu_detect() | 1ull << IMP_CPU_DONE_BIT;
        atomic_store_explicit(&detected, f, memory_order_relaxed);
    }
    return f & atomic_load_explicit(&mask, memory_order_relaxed) & ~(1ull << IMP_CPU_DONE_BIT);
}

void imp_cpu_set_mask(uint64_t keep)
{
    atomic_store_explicit(&mask, keep, memory_order_relaxed);
}

static const struct {
    unsigned bit;
    const char *name;
} bit_names[] = {
#define IMP_X(name, bit, text) {bit, text},
    IMP_CPU_LIST(IMP_X)
#undef IMP_X
};

const char *imp_cpu_bit_name(unsigned i)
{
    for (size_t j = 0; j < IMP_COUNT(bit_names); j++)
        if (bit_names[j].bit == i) return bit_names[j].name;
    return NULL;
}

static bool bit_of(const char *s, size_t n, uint64_t *out)
{
    for (size_t j = 0; j < IMP_COUNT(bit_names); j++) {
        if (strlen(bit_names[j].name) != n || memcmp(bit_names[j].name, s, n) != 0) continue;
        *out = 1ull << bit_names[j].bit;
        return true;
    }
    return false;
}

bool imp_cpu_mask_parse(const char *text, uint64_t *out)
{
    if (text[0] >= '0' && text[0] <= '9') {
        char *end;
        *out = strtoull(text, &end, 0);
        return *end == 0;
    }
    uint64_t keep = 0, drop = 0;
    bool any_keep = false;
    while (*text) {
        size_t n = strcspn(text, ",");
        bool minus = text[0] == '-';
        uint64_t bit;
        if (!bit_of(text + minus, n - minus, &bit)) return false;
        if (minus)
            drop |= bit;
        else {
            keep |= bit;
            any_keep = true;
        }
        text += n + (text[n] == ',');
    }
    *out = (any_keep ? keep : UINT64_MAX) & ~drop;
    return true;
}
