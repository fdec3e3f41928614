/* text/strset.c - a sorted set of strings that is walked byte by byte, a trie without nodes.
 *
 * Place:   added tokens (longest match) and unigram pieces (every prefix match).
 * Idea:    after k bytes the items that share them are a range of the sorted array; the next byte narrows it by two
 *          binary searches. Building costs a sort and no memory beyond the array.
 * Always:  inside a range, the item that ends at the current depth, if any, is the first. */
#include <stdlib.h>

#include "text/internal.h"

static int by_bytes(const void *a, const void *b)
{
    const imp_strset_item *x = a, *y = b;
    int c = memcmp(x->p, y->p, IMP_MIN(x->n, y->n));
    if (c) return c;
    if (x->n != y->n) return x->n < y->n ? -1 : 1;
    return x->value < y->value ? -1 : x->value > y->value;
}

void imp_strset_build(imp_strset *s, imp_strset_item *item, size_t n)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++)
        if (item[i].n) item[k++] = item[i];
    if (k) qsort(item, k, sizeof *item, by_bytes);
    size_t m = 0;
    for (size_t i = 0; i < k; i++)
        if (m == 0 || item[m - 1].n != item[i].n || memcmp(item[m - 1].p, item[i].p, item[i].n) != 0)
            item[m++] = item[i];
    s->item = item;
    s->n = m;
    size_t at = 0;
    for (size_t b = 0; b < 256; b++) {
        s->first[b] = at;
        while (at < m && (uint8_t)item[at].p[0] == b) at++;
    }
    s->first[256] = m;
}

void imp_strset_begin(const imp_strset *s, imp_strset_walk *w)
{
    w->lo = 0;
    w->hi = s->n;
    w->depth = 0;
}

/* First item of lo..hi-1 whose byte at depth is >= byte. */
static size_t lower_bound(const imp_strset *s, size_t lo, size_t hi, size_t depth, unsigned byte)
{
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if ((uint8_t)s->item[mid].p[depth] < byte)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

bool imp_strset_next(const imp_strset *s, imp_strset_walk *w, char byte, uint32_t *value)
{
    unsigned b = (uint8_t)byte;
    if (w->depth == 0) {
        w->lo = s->first[b];
        w->hi = s->first[b + 1];
    } else {
        if (w->lo < w->hi && s->item[w->lo].n == w->depth) w->lo++;
        w->lo = lower_bound(s, w->lo, w->hi, w->depth, b);
        w->hi = lower_bound(s, w->lo, w->hi, w->depth, b + 1);
    }
    w->depth++;
    *value = TOK_NONE;
    if (w->lo == w->hi) return false;
    if (s->item[w->lo].n == w->depth) *value = s->item[w->lo].value;
    return true;
}
