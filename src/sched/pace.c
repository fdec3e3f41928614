/* sched/pace.c - how much of a step prompts may take from the sequences that generate beside them.
 *
 * Place:   step.c asks for every prompt; times are those that the engine predicts (hooks).
 * Idea:    a long prompt is read in pieces: each makes its step about `pace` times what it would be without it; more when
 *          many prompts wait for few that generate, for then waiting costs more than pace.
 *          Short prompts are read whole. In pieces each would take many steps, which cost more than the tokens are worth,
 *          and its sequence would join late: all would generate in small batches. What they take is borrowed, in units of
 *          a step of those that generate: at most HOLD at once, given back at the rate that `pace` would have allowed.
 * Always:  a prompt that is first in line gets at least one token a step. */
#include "sched/sched_int.h"

#define FILL 1.07 /* a piece may be so much longer to make the rows of a step full */
enum {
    HOLD =
        64, /* steps that short prompts may take at once; divided among the prompts that wait for one stream */
    SHORT_STEPS = 16, /* a short prompt takes no more than that, */
    SHORT_TOK = 256,  /* and has no more tokens to read */
    ROWS = 4          /* kernels take rows in fours: a step of five costs as much as one of eight */
};

static imp_cost_shape join(imp_cost_shape a, imp_cost_shape b)
{
    return (imp_cost_shape){.n_tok = a.n_tok + b.n_tok,
                            .n_out = a.n_out + b.n_out,
                            .n_seq = a.n_seq + b.n_seq,
                            .keys = a.keys + b.keys,
                            .kv_tok = a.kv_tok + b.kv_tok};
}

static double predict(const imp_sched *s, const imp_cost_shape *sh)
{
    return s->c.hooks.predict(s->c.hooks.user, sh, false);
}

/* Prompts that are read or could be. */
static uint32_t n_prompts(const imp_sched *s)
{
    uint32_t n = IMP_MIN(s->waiting.n, s->n_free_slot);
    for (const job *j = s->running.first; j != NULL; j = j->next) n += j->n_ids - j->n_past > 1;
    return n;
}

void imp_pace_begin(imp_sched *s, step *t)
{
    t->budget = UINT32_MAX;
    t->paced = t->n_decode > 0 && s->c.pace > 1 && s->c.hooks.predict != NULL;
    if (t->n_decode == 0) s->hold = HOLD;
    uint32_t n = t->paced ? n_prompts(s) : 0;
    if (n == 0) return;
    imp_batch b = {.n_tok = t->n_tok, .n_seq = t->n_seq, .n_out = t->n_out, .seq = s->seq};
    t->alone = imp_cost_shape_of(&b, true);
    t->alone_s = predict(s, &t->alone);
    t->whole = t->alone;
    t->crowd = IMP_MAX((double)n / t->n_decode, 1.0);
}

/* Steps of those that generate that the next n tokens of j take. */
static double price(const imp_sched *s, const step *t, const job *j, uint32_t n)
{
    imp_cost_shape with = join(t->whole, imp_cost_shape_chunk(n, j->n_past, 1));
    return (predict(s, &with) - predict(s, &t->whole)) / t->alone_s;
}

/* Is a step with n more prompt tokens behind n_past thought to take no more than that? */
static bool fits(const imp_sched *s, const step *t, uint32_t n, uint32_t n_past, double limit_s)
{
    imp_cost_shape both = join(t->alone, imp_cost_shape_chunk(n, n_past, 1));
    return predict(s, &both) <= limit_s;
}

/* Prompt tokens behind n_past that make the step not too long. */
static uint32_t piece(const imp_sched *s, const step *t, uint32_t n_past)
{
    uint32_t most = s->c.generate_limits.max_tok - t->n_tok, lo = 1, up;
    double limit = t->alone_s * (1 + (s->c.pace - 1) * t->crowd);
    while (lo < most) {
        uint32_t mid = lo + (most - lo + 1) / 2;
        if (fits(s, t, mid, n_past, limit))
            lo = mid;
        else
            most = mid - 1;
    }
    up = (t->n_decode + lo + ROWS - 1) / ROWS * ROWS - t->n_decode;
    bool fill = t->n_tok + up <= s->c.generate_limits.max_tok && fits(s, t, up, n_past, limit * FILL);
    return fill ? up : IMP_MIN(lo, most);
}

uint32_t imp_pace_most(imp_sched *s, step *t, const job *j, bool *borrows)
{
    *borrows = false;
    if (!t->paced) return UINT32_MAX;
    if (j->n_fresh <= SHORT_TOK) {
        double p = price(s, t, j, (uint32_t)j->n_ids - j->n_past);
        *borrows = p <= SHORT_STEPS && p / t->crowd <= s->hold;
    }
    if (*borrows) return UINT32_MAX;
    if (t->budget == UINT32_MAX) t->budget = piece(s, t, j->n_past);
    return t->budget;
}

void imp_pace_take(imp_sched *s, step *t, const job *j, uint32_t n, bool borrows)
{
    if (!t->paced) return;
    if (borrows) {
        s->hold -= price(s, t, j, n) / t->crowd;
        t->whole = join(t->whole, imp_cost_shape_chunk(n, j->n_past, 1));
    } else {
        t->budget -= n;
        t->pieces = true;
    }
}

bool imp_pace_open(const imp_sched *s, const step *t)
{
    enum { PASSED = 4 }; /* so many may hold a place without getting a token */
    return !t->paced || t->budget > 0 || (s->hold >= 1 && t->n_passed < PASSED);
}

void imp_pace_end(imp_sched *s, const step *t)
{
    if (t->paced && !t->pieces) s->hold = IMP_MIN(s->hold + s->c.pace - 1, (double)HOLD);
}
