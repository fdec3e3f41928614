/* sched/sampler_dry.c - DRY: what would repeat a sequence costs more the longer the sequence is.
 *
 * Idea:    the last token is looked for earlier in the window; where it was, the match is followed backwards, and the token
 *          that came next there gets the length of its longest match. Breakers (line ends, quotes, ...) end matches, so
 *          that forms such as lists and dialogue are not repetitions. They are strings: a token is one when part of its
 *          text is part of a breaker, wherever tokens begin and end.
 * Always:  a match counts 50 tokens at most.
 * Source:  p-e-w, "DRY: a modern repetition penalty", text-generation-webui pull request 5677. */
#include <math.h>

#include "sched/sampler_int.h"

enum { MATCH_MAX = 50 };

void imp_sampler_dry(const imp_sampler *s, imp_sampler_scratch *w, const int32_t *ids, size_t n_ids)
{
    const imp_sampling *p = &s->p;
    size_t window = p->dry_last_n < 0 ? n_ids : IMP_MIN(n_ids, (size_t)p->dry_last_n);
    if (p->dry_multiplier <= 0 || window < 2) return;
    const int32_t *seq = ids + n_ids - window;
    const uint8_t *brk = s->is_break != NULL ? s->is_break + (n_ids - window) : NULL;
    size_t last = window - 1;
    if (brk != NULL && brk[last]) return;
    for (size_t i = 0; i < last; i++) {
        if (seq[i] != seq[last] || (brk != NULL && brk[i + 1])) continue;
        uint16_t n = 1;
        while (n < MATCH_MAX && n <= i && seq[i - n] == seq[last - n] && !(brk != NULL && brk[last - n])) n++;
        uint16_t *longest = &w->count[seq[i + 1]];
        *longest = IMP_MAX(*longest, n);
    }
    for (size_t i = 0; i < last; i++) {
        uint16_t *n = &w->count[seq[i + 1]];
        if (*n >= IMP_MAX(p->dry_allowed_length, 1))
            w->logit[seq[i + 1]] -=
                (float)((double)p->dry_multiplier * pow((double)p->dry_base, *n - p->dry_allowed_length));
        *n = 0;
    }
}

/* ---- which tokens are breakers ------------------------------------------------------------------------- */

/* What begins in the held text at `at` is the breaker: every token with a part in it is marked. */
static void mark_back(const imp_dry_marks *d, uint8_t *is_break, size_t i, uint64_t at)
{
    is_break[i] = 1;
    for (size_t j = i; j > 0 && i - j + 1 < IMP_DRY_BACK && d->begin[j % IMP_DRY_BACK] > at; j--)
        is_break[j - 1] = 1;
}

void imp_dry_mark(imp_dry_marks *d, const imp_sampling *p, uint8_t *is_break, size_t i, const char *text,
                  size_t n)
{
    enum { HELD_MAX = 4096 };
    size_t from = d->text.n, longest = 1;
    is_break[i] = 0;
    d->begin[i % IMP_DRY_BACK] = d->dropped + from;
    imp_buf_add(&d->text, text, n);
    if (d->text.failed) return; /* what follows counts as plain text */
    for (size_t k = 0; k < p->n_dry_breaker; k++) {
        size_t m = strlen(p->dry_breaker[k]);
        longest = IMP_MAX(longest, m);
        for (size_t at = from >= m ? from - m + 1 : 0; at + m <= d->text.n; at++)
            if (memcmp(d->text.data + at, p->dry_breaker[k], m) == 0)
                mark_back(d, is_break, i, d->dropped + at);
    }
    if (d->text.n < HELD_MAX) return;
    size_t drop = d->text.n - longest; /* a breaker can begin only in what stays */
    memmove(d->text.data, d->text.data + drop, longest);
    d->text.n = longest;
    d->dropped += drop;
}

void imp_dry_marks_deinit(imp_dry_marks *d)
{
    imp_buf_deinit(&d->text);
    imp_buf_deinit(&d->piece);
}
