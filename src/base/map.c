/* base/map.c - bytes -> u32, open addressing with linear probing, at most 2/3 full.
 *
 * Idea:    the hash starts from a number drawn once a process, so that a file cannot bring names that all fall together. */
#include <stdatomic.h>
#include <unistd.h>
#ifdef __APPLE__
#include <sys/random.h>
#endif

#include "base/base.h"

typedef struct entry {
    const void *key; /* NULL: free */
    size_t n_key;
    uint64_t hash;
    uint32_t value;
} entry;

struct imp_map {
    entry *slot;
    size_t n, cap; /* cap is a power of two */
    uint64_t seed;
};

static uint64_t mix(uint64_t h)
{
    h ^= h >> 33;
    h *= 0xff51afd7ed558ccdULL;
    h ^= h >> 33;
    h *= 0xc4ceb9fe1a85ec53ULL;
    return h ^ (h >> 33);
}

uint64_t imp_hash(const void *p, size_t n, uint64_t seed)
{
    const unsigned char *s = p;
    uint64_t h = 0xcbf29ce484222325ULL ^ mix(seed);
    for (size_t i = 0; i < n; i++) h = (h ^ s[i]) * 0x100000001b3ULL;
    return mix(h);
}

static uint64_t process_seed(void)
{
    static _Atomic uint64_t seed;
    uint64_t s = atomic_load(&seed), none = 0;
    if (s != 0) return s;
    if (getentropy(&s, sizeof s) != 0) s = imp_now_ns();
    s |= 1;
    return atomic_compare_exchange_strong(&seed, &none, s) ? s : none;
}

imp_map *imp_map_new(size_t expected)
{
    if (expected > SIZE_MAX / (4 * sizeof(entry))) return NULL;
    imp_map *m = imp_sys_calloc(1, sizeof *m);
    if (m == NULL) return NULL;
    m->seed = process_seed();
    m->cap = 16;
    while (m->cap < expected + expected / 2) m->cap *= 2;
    m->slot = imp_sys_calloc(m->cap, sizeof *m->slot);
    if (m->slot == NULL) {
        imp_sys_free(m);
        return NULL;
    }
    return m;
}

void imp_map_free(imp_map *m)
{
    if (m == NULL) return;
    imp_sys_free(m->slot);
    imp_sys_free(m);
}

/* The slot that holds the key, or the free one where it belongs. */
static entry *find(const imp_map *m, const void *key, size_t n_key, uint64_t hash)
{
    size_t i = (size_t)hash & (m->cap - 1);
    while (m->slot[i].key != NULL) {
        const entry *e = &m->slot[i];
        if (e->hash == hash && e->n_key == n_key && (n_key == 0 || memcmp(e->key, key, n_key) == 0)) break;
        i = (i + 1) & (m->cap - 1);
    }
    return &m->slot[i];
}

static imp_status grow(imp_map *m)
{
    imp_map big = {.n = m->n, .cap = m->cap * 2, .seed = m->seed};
    big.slot = imp_sys_calloc(big.cap, sizeof *big.slot);
    if (big.slot == NULL) return IMP_NOMEM;
    for (size_t i = 0; i < m->cap; i++)
        if (m->slot[i].key != NULL)
            *find(&big, m->slot[i].key, m->slot[i].n_key, m->slot[i].hash) = m->slot[i];
    imp_sys_free(m->slot);
    *m = big;
    return IMP_OK;
}

imp_status imp_map_put(imp_map *m, const void *key, size_t n_key, uint32_t value)
{
    if ((m->n + 1) * 3 > m->cap * 2) IMP_TRY(grow(m));
    uint64_t hash = imp_hash(key, n_key, m->seed);
    entry *e = find(m, key, n_key, hash);
    if (e->key != NULL) return IMP_INVALID;
    *e = (entry){.key = key != NULL ? key : "", .n_key = n_key, .hash = hash, .value = value};
    m->n++;
    return IMP_OK;
}

bool imp_map_get(const imp_map *m, const void *key, size_t n_key, uint32_t *out)
{
    const entry *e = find(m, key, n_key, imp_hash(key, n_key, m->seed));
    if (e->key == NULL) return false;
    *out = e->value;
    return true;
}

size_t imp_map_bytes(const imp_map *m)
{
    return m == NULL ? 0 : sizeof *m + m->cap * sizeof *m->slot;
}
