/* sched/spec.c - speculation: which tokens are guessed, and how many of them a step computes.
 *
 * Place:   step.c widens a step of sequences that generate by guesses and compares them with what is then chosen.
 * Idea:    text repeats itself: the longest end of the sequence that stood in it before (the last such place) says what
 *          comes next. How often such a guess is right depends on how long the match is; that is counted for every
 *          token that is generated, whether the guess was computed or not, so a sequence that repeats nothing costs a
 *          search and no more. Guesses are added, likeliest first, as long as the step is thought to give more tokens a
 *          second with them than without, by the measured times of steps of so many rows.
 * Always:  a guess changes no answer: each token is chosen from the logits that a step without guesses gives (the device
 *          promises the same bits, imp_device_ops.same_rows), with the same random draw, and what follows a wrong guess
 *          is thrown away. Guesses take no memory from others.
 * Source:  Saxena 2023 (prompt lookup); Leviathan et al. 2023 (speculative decoding); Oliaro et al. 2024 (suffixes). */
#include "sched/spec.h"

#include <math.h>

#include "sched/sched_int.h"

enum { MATCH_MAX = 32, TRY_EVERY = 64, TIMES_KEEP = 8 };

/* Weight of what all sequences saw in the judgement of one, and tries after which old ones fade. */
static const float PRIOR = 6, FADE = 64;
/* A step must be thought to give this much more a second, for it may be thought wrong. */
static const double GAIN_MIN = 1.03;

/* ---- guesses -------------------------------------------------------------------------------------------- */

static uint32_t class_of(uint32_t len)
{
    static const uint32_t up_to[IMP_SPEC_CLASSES - 1] = {1, 2, 3, 4, 6, 9, 15};
    uint32_t c = 0;
    while (c < IMP_SPEC_CLASSES - 1 && len > up_to[c]) c++;
    return c;
}

void imp_spec_rates_init(imp_spec_rates *r)
{
    static const float right[IMP_SPEC_CLASSES] = {0.1f, 0.2f, 0.35f, 0.45f, 0.6f, 0.7f, 0.8f, 0.9f};
    for (int i = 0; i < IMP_SPEC_CLASSES; i++) {
        r->tried[i] = 16;
        r->right[i] = 16 * right[i];
    }
}

static void count(imp_spec_rates *r, uint32_t class, bool right)
{
    r->tried[class] += 1;
    r->right[class] += right;
    if (r->tried[class] < FADE) return;
    r->tried[class] /= 2;
    r->right[class] /= 2;
}

static float chance_of(const imp_spec *p, const imp_spec_rates *all, uint32_t len)
{
    uint32_t c = class_of(len);
    return (p->rates.right[c] + PRIOR * all->right[c] / all->tried[c]) / (p->rates.tried[c] + PRIOR);
}

/* The last place where the longest end of ids[0..n-1] stood before. */
static void find(imp_spec *p, const int32_t *ids, uint32_t n)
{
    p->len = 0;
    for (uint32_t at = n - 1; at > 0 && p->len < MATCH_MAX; at--) {
        if (ids[at - 1] != ids[n - 1]) continue;
        uint32_t len = 1, most = IMP_MIN(at, (uint32_t)MATCH_MAX);
        while (len < most && ids[at - 1 - len] == ids[n - 1 - len]) len++;
        if (len <= p->len) continue;
        p->len = len;
        p->at = at;
    }
}

void imp_spec_follow(imp_spec *p, imp_spec_rates *all, const int32_t *ids, size_t n_ids, size_t n_prompt)
{
    uint32_t n = (uint32_t)n_ids;
    if (p->seen < n_prompt) {
        p->seen = (uint32_t)n_prompt;
        p->len = 0;
        find(p, ids, p->seen);
    }
    for (; p->seen < n; p->seen++) {
        bool right = p->len > 0 && ids[p->at] == ids[p->seen];
        if (p->len > 0) {
            count(&p->rates, class_of(p->len), right);
            count(all, class_of(p->len), right);
        }
        if (right) { /* nothing longer can have appeared elsewhere */
            p->at++;
            p->len = IMP_MIN(p->len + 1, (uint32_t)MATCH_MAX);
        } else {
            find(p, ids, p->seen + 1);
        }
    }
}

uint32_t imp_spec_guess(const imp_spec *p, const imp_spec_rates *all, const int32_t *ids, uint32_t most,
                        int32_t *token, float *chance)
{
    if (p->len == 0) return 0;
    for (uint32_t i = 0; i < most; i++) { /* behind its end the sequence goes on as guessed */
        token[i] = p->at + i < p->seen ? ids[p->at + i] : token[p->at + i - p->seen];
        chance[i] = chance_of(p, all, p->len + i);
    }
    return most;
}

/* ---- how many ------------------------------------------------------------------------------------------- */

/* Rows of a step: the log of its time is measured at these, and a straight line over log2(rows) between them. */
static const uint32_t NODE[IMP_SPEC_NODES] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128};

/* The node at or below `rows`, and how far the next one is. */
static size_t node_below(uint32_t rows, double *way)
{
    size_t i = 0;
    while (i + 2 < IMP_SPEC_NODES && NODE[i + 1] <= rows) i++;
    *way = log2((double)rows / NODE[i]) / log2((double)NODE[i + 1] / NODE[i]);
    return i;
}

/* What node i is thought to be: without a measurement the line goes on as between the two below it, though not as if rows
 * gained nothing while those are hardly known; at first as if twice the rows took sqrt(2) as long, so that they are tried. */
static double node_at(const imp_spec_times *w, size_t i)
{
    size_t k = i, before;
    while (k > 0 && w->seen[k] == 0) k--;
    if (k == i) return w->log_s[k];
    for (before = k; before > 0 && w->seen[before - 1] == 0; before--) {
    }
    double slope = 0.5;
    if (before > 0) slope = (w->log_s[k] - w->log_s[before - 1]) / log((double)NODE[k] / NODE[before - 1]);
    if (w->seen[k] < TIMES_KEEP) slope = IMP_MIN(slope, 0.85);
    return w->log_s[k] + IMP_MAX(slope, 0) * log((double)NODE[i] / NODE[k]);
}

/* Log of the seconds of a step of so many rows, but for a constant. */
static double log_time(const imp_spec_times *w, uint32_t rows)
{
    double way;
    size_t i = node_below(rows, &way);
    double lo = node_at(w, i);
    return way == 0 ? lo : lo + way * (node_at(w, i + 1) - lo);
}

static void correct(imp_spec_times *w, size_t i, double err, double share)
{
    if (share <= 0) return;
    if (w->seen[i] == 0) w->log_s[i] = node_at(w, i);
    w->log_s[i] += share * err / IMP_MIN(1 + w->seen[i], TIMES_KEEP);
    w->seen[i]++;
}

void imp_spec_learn(imp_spec_times *w, uint32_t rows, double s)
{
    if (rows == 0 || rows > NODE[IMP_SPEC_NODES - 1] || !(s > 0)) return;
    double way, err = log(s) - w->level - log_time(w, rows);
    size_t i = node_below(rows, &way);
    if (w->n++ == 0) {
        w->level = log(s) - log_time(w, rows);
        err = 0;
    }
    bool known = w->seen[i] > 0 && (way == 0 || w->seen[i + 1] > 0);
    err = IMP_MAX(-1, IMP_MIN(err, 1)); /* somebody else's time slice */
    correct(w, i, err, 1 - way);
    correct(w, i + 1, err, way);
    if (known) w->level += 0.3 * err; /* longer pasts, other programs: all rows alike */
}

/* Guesses for every sequence of the step: draft_n, of which none is taken yet. Returns how many there are. */
static uint32_t guess_all(imp_sched *s, const step *t)
{
    uint32_t n_all = 0;
    for (uint32_t i = 0; i < t->n_seq; i++) {
        job *j = s->seq_job[i];
        s->draft_n[i] = s->draft_take[i] = 0;
        if (j->r.kind != IMP_REQUEST_GENERATE || j->split || j->n_ids <= j->n_prompt) continue;
        imp_spec_follow(&j->spec, &s->rates, j->ids, j->n_ids, j->n_prompt);
        uint32_t most = (uint32_t)IMP_MIN(j->cap_ids - j->n_ids - 1, (size_t)IMP_SPEC_MAX);
        s->draft_n[i] = imp_spec_guess(&j->spec, &s->rates, j->ids, most, s->draft + i * IMP_SPEC_MAX,
                                       s->draft_chance + i * IMP_SPEC_MAX);
        /* Tokens that a constraint forces come without guesses, too: only the others are gained. */
        float own = 1 - (float)j->spec.n_forced / (float)(j->n_ids - j->n_prompt);
        if (s->draft_n[i] > 0) s->draft_chance[i * IMP_SPEC_MAX] *= own;
        for (uint32_t k = 1; k < s->draft_n[i]; k++) /* of all up to it being right */
            s->draft_chance[i * IMP_SPEC_MAX + k] *= s->draft_chance[i * IMP_SPEC_MAX + k - 1];
        n_all += s->draft_n[i];
    }
    return n_all;
}

/* The sequence whose next guess is likeliest to count. UINT32_MAX: no guess is left. */
static uint32_t likeliest(const imp_sched *s, const step *t, float *chance)
{
    uint32_t best = UINT32_MAX;
    *chance = 0;
    for (uint32_t i = 0; i < t->n_seq; i++) {
        if (s->draft_take[i] == s->draft_n[i]) continue;
        float c = s->draft_chance[i * IMP_SPEC_MAX + s->draft_take[i]];
        if (c <= *chance) continue;
        *chance = c;
        best = i;
    }
    return best;
}

/* How many more rows the step could have: not many more than any step that was timed. */
static uint32_t rows_left(const imp_sched *s, const step *t)
{
    const imp_limits *lim = &s->c.generate_limits;
    uint32_t most = IMP_MIN(lim->max_tok, lim->max_out);
    if (s->c.speculate == 0) most = IMP_MIN(most, s->c.generate->dev->ops->same_rows);
    size_t last = IMP_SPEC_NODES - 1;
    while (last > 0 && s->times.seen[last - 1] == 0) last--;
    most = IMP_MIN(most, NODE[last]);
    return most > t->n_tok ? most - t->n_tok : 0;
}

/* How many guesses make the step give most tokens a second: draft_take of each sequence. Returns their sum. Now and then
 * a few more or none at all, so that a measurement that has become wrong is found out. */
static uint32_t choose(imp_sched *s, const step *t)
{
    uint32_t room = rows_left(s, t), best = 0, n = 0;
    if (room == 0 || guess_all(s, t) == 0) return 0;
    float chance;
    double tokens = t->n_seq, most = 0, alone = log_time(&s->times, t->n_tok);
    for (uint32_t i; n < room && (i = likeliest(s, t, &chance)) != UINT32_MAX; n++) {
        if (n == 0) {
            if (tokens + chance < GAIN_MIN * tokens) return 0; /* however little it takes */
            most = GAIN_MIN * tokens;
        }
        tokens += chance;
        s->draft_take[i]++;
        double rate = tokens / exp(log_time(&s->times, t->n_tok + n + 1) - alone);
        if (rate <= most) continue;
        most = rate;
        best = n + 1;
    }
    if (n > 0 && tokens - t->n_seq > 0.5 * n && ++s->times.n_choice % TRY_EVERY == 0)
        best = best > 0 && s->times.n_choice % (2 * TRY_EVERY) == 0 ? 0 : IMP_MIN(n, best + best / 2 + 1);
    for (uint32_t i = 0; i < t->n_seq; i++) s->draft_take[i] = 0;
    for (uint32_t k = 0; k < best; k++) s->draft_take[likeliest(s, t, &chance)]++;
    return best;
}

/* Blocks for j's next 1 + n tokens, of those that are free. Returns how many of the n have a place. */
static uint32_t take_room(imp_sched *s, job *j, uint32_t n)
{
    uint32_t last = j->n_past + n, want = last / IMP_KV_BLOCK + 1;
    if (want <= j->n_block || imp_kv_pool_grow(&s->kv, j->block, &j->n_block, want)) return n;
    return j->n_block * IMP_KV_BLOCK - j->n_past - 1;
}

void imp_spec_widen(imp_sched *s, step *t)
{
    if (s->c.speculate < 0 || t->n_decode == 0 || t->n_tok != t->n_decode || t->n_out != t->n_seq) return;
    if (choose(s, t) == 0) return;
    t->n_tok = t->n_out = 0;
    for (uint32_t i = 0; i < t->n_seq; i++) {
        job *j = s->seq_job[i];
        uint32_t n = s->draft_take[i] > 0 ? take_room(s, j, s->draft_take[i]) : 0;
        s->seq[i].first_tok = t->n_tok;
        s->seq[i].n_tok = 1 + n;
        s->seq_out[i] = t->n_out;
        for (uint32_t k = 0; k <= n; k++, t->n_tok++) {
            s->token[t->n_tok] = k == 0 ? j->ids[j->n_past] : s->draft[i * IMP_SPEC_MAX + k - 1];
            s->pos[t->n_tok] = (int32_t)(j->n_past + k);
            s->out_row[t->n_out++] = t->n_tok;
        }
        j->spec.n_drafted += n;
        t->n_draft += n;
    }
    s->n_drafted += t->n_draft;
}

void imp_spec_give_room(imp_sched *s, job *j)
{
    uint32_t keep = (uint32_t)((j->n_ids + IMP_KV_BLOCK - 1) / IMP_KV_BLOCK);
    while (j->n_block > keep) imp_kv_pool_unref(&s->kv, j->block[--j->n_block]);
}
