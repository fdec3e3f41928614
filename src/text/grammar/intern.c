/* text/grammar/intern.c - lists of words, each kept once and known by a number. */
#include "text/grammar/grammar_int.h"

void gr_intern_deinit(gr_intern *t)
{
    imp_sys_free(t->word);
    imp_sys_free(t->at);
    imp_sys_free(t->slot);
    *t = (gr_intern){0};
}

void gr_intern_clear(gr_intern *t)
{
    t->n = 0;
    t->n_word = 0;
    if (t->slot != NULL) memset(t->slot, 0, t->n_slot * sizeof *t->slot);
}

size_t gr_intern_bytes(const gr_intern *t)
{
    return t->cap_word * sizeof *t->word + t->cap * sizeof *t->at + t->n_slot * sizeof *t->slot;
}

static uint32_t *find(const gr_intern *t, const uint32_t *w, size_t n)
{
    uint64_t h = imp_hash(w, n * sizeof *w, 0);
    for (uint32_t i = (uint32_t)h & (t->n_slot - 1);; i = (i + 1) & (t->n_slot - 1)) {
        if (t->slot[i] == 0) return &t->slot[i];
        size_t m;
        const uint32_t *have = gr_intern_get(t, t->slot[i] - 1, &m);
        if (m == n && memcmp(have, w, n * sizeof *w) == 0) return &t->slot[i];
    }
}

static bool grow(gr_intern *t, size_t n)
{
    if (t->n + 2 > t->cap) {
        uint32_t cap = t->cap ? 2 * t->cap : 64;
        size_t *at = imp_sys_realloc(t->at, cap * sizeof *at);
        if (at == NULL) return false;
        t->at = at;
        t->cap = cap;
        t->at[0] = 0;
    }
    if (t->n_word + n > t->cap_word) {
        size_t cap = IMP_MAX(2 * t->cap_word, t->n_word + n + 256);
        uint32_t *word = imp_sys_realloc(t->word, cap * sizeof *word);
        if (word == NULL) return false;
        t->word = word;
        t->cap_word = cap;
    }
    if (2 * (t->n + 1) <= t->n_slot) return true;
    uint32_t n_slot = t->n_slot ? 2 * t->n_slot : 128;
    uint32_t *slot = imp_sys_calloc(n_slot, sizeof *slot);
    if (slot == NULL) return false;
    imp_sys_free(t->slot);
    t->slot = slot;
    t->n_slot = n_slot;
    for (uint32_t i = 0; i < t->n; i++) {
        size_t m;
        const uint32_t *w = gr_intern_get(t, i, &m);
        *find(t, w, m) = i + 1;
    }
    return true;
}

bool gr_intern_add(gr_intern *t, const uint32_t *w, size_t n, uint32_t *id)
{
    if (!grow(t, n)) return false;
    uint32_t *slot = find(t, w, n);
    if (*slot == 0) {
        memcpy(t->word + t->n_word, w, n * sizeof *w);
        t->n_word += n;
        t->at[t->n + 1] = t->n_word;
        *slot = ++t->n;
    }
    *id = *slot - 1;
    return true;
}
