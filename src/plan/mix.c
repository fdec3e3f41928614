/* plan/mix.c - sensitivities, prices, and the choice of a type for every group.
 *
 * Idea:    a group's divergence is measured at two types, one coarse and one fine. Rounding moves a layer's output by noise
 *          whose power is the weighted rounding error, and divergence is quadratic in a small movement, so that the others
 *          follow: kl(type) = floor + slope * error(type). The floor is what the device's rounding of activations costs as
 *          soon as weights are quantised at all.
 * Source:  multiple-choice knapsack by dynamic programming (Kellerer, Pferschy, Pisinger 2004, chapter 11). */
#include "plan/mix.h"

#include <math.h>

#include "plan/place.h"

enum { BINS = 16384, CHUNK = 512, ROUNDS = 8, STORED_VERSION = 3 };

static const imp_dtype TYPES[] = {IMP_Q2_K, IMP_Q3_K, IMP_Q4_0, IMP_Q4_K,
                                  IMP_Q5_K, IMP_Q6_K, IMP_Q8_0, IMP_F16};
static const imp_dtype COARSE = IMP_Q3_K, FINE = IMP_Q6_K, MIDDLE = IMP_Q4_K;

bool imp_mix_goal_from_name(const char *name, imp_mix_goal *out)
{
    static const char *const goal[] = {"balance", "time", "size"};
    for (size_t i = 0; i < IMP_COUNT(goal); i++)
        if (!strcmp(name, goal[i])) return *out = (imp_mix_goal)i, true;
    return false;
}

/* ---- the knapsack ------------------------------------------------------------------------------------------ */

static uint32_t bins_of(double kl, double max_kl)
{
    if (!(kl > 0)) return 0;
    if (!(kl <= max_kl)) return BINS + 1;
    return (uint32_t)ceil(kl / max_kl * BINS);
}

/* best[b]: the least cost of the groups so far with at most b bins used; pick[i][b]: group i's part in it. */
bool imp_mix_solve(uint32_t n, const uint32_t n_opt[], const double cost[][IMP_MIX_OPTIONS],
                   const double kl[][IMP_MIX_OPTIONS], double max_kl, uint32_t choice[])
{
    double *best = imp_sys_calloc(BINS + 1, sizeof *best), *next = imp_sys_calloc(BINS + 1, sizeof *next);
    uint8_t *pick = imp_sys_malloc((size_t)IMP_MAX(n, 1u) * (BINS + 1));
    bool ok = best != NULL && next != NULL && pick != NULL;
    for (uint32_t i = 0; ok && i < n; i++) {
        uint32_t need[IMP_MIX_OPTIONS];
        for (uint32_t k = 0; k < n_opt[i]; k++) need[k] = bins_of(kl[i][k], max_kl);
        for (uint32_t b = 0; b <= BINS; b++) {
            next[b] = INFINITY;
            for (uint32_t k = 0; k < n_opt[i]; k++) {
                if (need[k] > b || !(best[b - need[k]] + cost[i][k] < next[b])) continue;
                next[b] = best[b - need[k]] + cost[i][k];
                pick[(size_t)i * (BINS + 1) + b] = (uint8_t)k;
            }
        }
        memcpy(best, next, (BINS + 1) * sizeof *best);
    }
    ok = ok && isfinite(best[BINS]);
    uint32_t b = BINS;
    for (uint32_t i = n; ok && i > 0; i--) {
        choice[i - 1] = pick[(size_t)(i - 1) * (BINS + 1) + b];
        b -= bins_of(kl[i - 1][choice[i - 1]], max_kl);
    }
    imp_sys_free(best);
    imp_sys_free(next);
    imp_sys_free(pick);
    return ok;
}

/* ---- options ------------------------------------------------------------------------------------------------ */

typedef struct mixer {
    imp_sense *s;
    imp_net *net;
    const imp_mix_want *want;
    imp_mix *m;
    imp_error *err;
    const imp_sense_tensor *t;
    uint32_t n_t, done, total;
} mixer;

/* Two wishes that give all tensors of a group the same types are one option. */
static bool same_types(const mixer *x, int group, imp_dtype a, imp_dtype b)
{
    for (uint32_t i = 0; i < x->n_t; i++)
        if (x->t[i].group == group && imp_sense_type(&x->t[i], a) != imp_sense_type(&x->t[i], b))
            return false;
    return true;
}

/* The unit takes every type that the group's tensors would get. */
static bool unit_can(const mixer *x, int group, imp_dtype want)
{
    for (uint32_t i = 0; x->want->can != NULL && i < x->n_t; i++)
        if (x->t[i].group == group && !x->want->can[imp_sense_type(&x->t[i], want)]) return false;
    return true;
}

static uint64_t bytes_with(const mixer *x, int group, imp_dtype want)
{
    uint64_t sum = 0, bytes;
    for (uint32_t i = 0; i < x->n_t; i++) {
        imp_dtype to = imp_sense_type(&x->t[i], want);
        if (x->t[i].group != group) continue;
        sum += to == x->t[i].dtype || imp_dtype_bytes(to, x->t[i].n_elem, &bytes) != IMP_OK ? x->t[i].bytes
                                                                                            : bytes;
    }
    return sum;
}

/* The one type that all tensors of the group get when `want` is asked for; want itself when they differ. */
static imp_dtype type_of_group(const mixer *x, int group, imp_dtype want)
{
    imp_dtype one = IMP_DTYPE_NONE;
    for (uint32_t i = 0; i < x->n_t; i++) {
        imp_dtype to = imp_sense_type(&x->t[i], want);
        if (x->t[i].group != group) continue;
        if (one != IMP_DTYPE_NONE && one != to) return want;
        one = to;
    }
    return one;
}

/* row: of TYPES; SIZE_MAX: as it is. */
static void add_option(mixer *x, imp_mix_group *g, size_t row)
{
    imp_dtype type = row == SIZE_MAX ? IMP_DTYPE_NONE : TYPES[row];
    if (type != IMP_DTYPE_NONE && !unit_can(x, g->group, type)) return;
    for (uint32_t k = 0; k < g->n_opt; k++)
        if (same_types(x, g->group, g->opt[k].type, type)) return;
    uint64_t bytes = bytes_with(x, g->group, type);
    if (type != IMP_DTYPE_NONE) type = type_of_group(x, g->group, type);
    g->opt[g->n_opt++] = (imp_mix_option){.type = type, .row = (uint32_t)row, .bytes = bytes};
}

static void list_options(mixer *x)
{
    for (int group = 0; group < IMP_N_GROUP; group++) {
        bool there = false;
        for (uint32_t i = 0; i < x->n_t; i++) there = there || x->t[i].group == group;
        if (!there) continue;
        imp_mix_group *g = &x->m->group[x->m->n_group++];
        g->group = group;
        add_option(x, g, SIZE_MAX);
        for (size_t k = 0; k < IMP_COUNT(TYPES); k++) add_option(x, g, k);
    }
}

/* ---- divergence --------------------------------------------------------------------------------------------- */

typedef struct sensed { /* what is remembered of a group */
    double fine, coarse;
    double error[IMP_COUNT(TYPES)];
} sensed;

typedef struct stored {
    uint32_t version, n_group;
    sensed g[IMP_N_GROUP]; /* by group */
} stored;

static void step(mixer *x)
{
    x->done++;
    if (x->want->progress != NULL) x->want->progress(x->want->user, x->done, IMP_MAX(x->total, x->done));
}

static imp_status kl_of_one(mixer *x, int group, imp_dtype type, double *kl)
{
    imp_dtype all[IMP_N_GROUP] = {IMP_DTYPE_NONE};
    all[group] = type;
    step(x);
    *kl = 0;
    if (same_types(x, group, type, IMP_DTYPE_NONE)) return IMP_OK;
    x->m->n_measure++;
    return imp_sense_kl(x->s, all, kl, x->err);
}

static imp_status sense_group(mixer *x, int group, sensed *g)
{
    IMP_TRY(kl_of_one(x, group, FINE, &g->fine));
    IMP_TRY(kl_of_one(x, group, COARSE, &g->coarse));
    for (size_t k = 0; k < IMP_COUNT(TYPES); k++)
        IMP_TRY(imp_sense_error(x->s, group, TYPES[k], &g->error[k], x->err));
    return IMP_OK;
}

static imp_status sense_all(mixer *x, stored *st)
{
    const imp_mix_want *w = x->want;
    if (w->recall != NULL && w->recall(w->user, st, sizeof *st) && st->version == STORED_VERSION &&
        st->n_group == x->m->n_group)
        return IMP_OK;
    *st = (stored){.version = STORED_VERSION, .n_group = x->m->n_group};
    IMP_TRY(imp_sense_text(x->s, w->ids, w->n_window, x->err));
    for (uint32_t i = 0; i < x->m->n_group; i++)
        IMP_TRY(sense_group(x, x->m->group[i].group, &st->g[x->m->group[i].group]));
    if (w->remember != NULL) w->remember(w->user, st, sizeof *st);
    return IMP_OK;
}

static bool is_float(imp_dtype t)
{
    return t == IMP_F16 || t == IMP_BF16 || t == IMP_F32;
}

static size_t row_of(imp_dtype t)
{
    size_t i = 0;
    while (TYPES[i] != t) i++;
    return i;
}

static void fill_divergence(const mixer *x, imp_mix_group *g, const sensed *v)
{
    double coarse_error = v->error[row_of(COARSE)], slope = coarse_error > 0 ? v->coarse / coarse_error : 0;
    double level = fmax(0, v->fine - slope * v->error[row_of(FINE)]);
    for (uint32_t k = 0; k < g->n_opt; k++) {
        imp_mix_option *o = &g->opt[k];
        if (o->type == IMP_DTYPE_NONE) {
            o->measured = true;
            continue;
        }
        bool fine = same_types(x, g->group, o->type, FINE), coarse = same_types(x, g->group, o->type, COARSE);
        o->error = sqrt(v->error[o->row]);
        o->measured = fine || coarse;
        o->kl = fine     ? v->fine
                : coarse ? v->coarse
                         : slope * v->error[o->row] + (is_float(o->type) ? 0 : level);
    }
}

/* ---- price --------------------------------------------------------------------------------------------------- */

static imp_status price(mixer *x, const imp_dtype type[IMP_N_GROUP], double *ttft_s, double *tpot_s)
{
    imp_cost c;
    imp_cost_time t;
    const imp_mix_want *w = x->want;
    IMP_TRY(imp_sense_retype(x->s, type, x->err));
    imp_cost_build(x->net->generate, IMP_F16, &c);
    c.id = 0; /* what was learned of the model as it is says nothing of its other types */
    IMP_TRY(imp_sense_retype(x->s, NULL, x->err));
    *ttft_s = imp_place_prefill_s(w->learn, &c, w->n_prompt, CHUNK, false, &t);
    imp_cost_shape sh = imp_cost_shape_decode(1, w->n_prompt + w->n_gen / 2.0);
    imp_learn_predict(w->learn, &c, &sh, false, &t);
    *tpot_s = t.s;
    return IMP_OK;
}

static double request_s(const mixer *x, double ttft_s, double tpot_s)
{
    return ttft_s + x->want->n_gen * tpot_s;
}

/* Whole model: bytes and times; kl as the sum of the groups. */
static imp_status total_of(mixer *x, const imp_dtype type[IMP_N_GROUP], imp_mix_total *out)
{
    for (uint32_t i = 0; i < x->m->n_group; i++)
        out->bytes += bytes_with(x, x->m->group[i].group, type[x->m->group[i].group]);
    return price(x, type, &out->ttft_s, &out->tpot_s);
}

static imp_status fill_price(mixer *x)
{
    imp_dtype type[IMP_N_GROUP];
    for (int g = 0; g < IMP_N_GROUP; g++) type[g] = MIDDLE;
    for (uint32_t i = 0; i < x->m->n_group; i++) {
        imp_mix_group *g = &x->m->group[i];
        double first = 0, ttft, tpot;
        for (uint32_t k = 0; k < g->n_opt; k++) {
            type[g->group] = g->opt[k].type;
            IMP_TRY(price(x, type, &ttft, &tpot));
            if (k == 0) first = request_s(x, ttft, tpot);
            g->opt[k].seconds = request_s(x, ttft, tpot) - first;
        }
        type[g->group] = MIDDLE;
    }
    return IMP_OK;
}

/* Some tensor really gets this type when all are asked to. */
static bool is_met(const mixer *x, imp_dtype type)
{
    for (uint32_t i = 0; i < x->n_t; i++)
        if (imp_sense_type(&x->t[i], type) == type) return true;
    return false;
}

static imp_status fill_uniform(mixer *x)
{
    imp_mix *m = x->m;
    imp_dtype type[IMP_N_GROUP] = {IMP_DTYPE_NONE};
    IMP_TRY(total_of(x, type, &m->source));
    m->source.measured = true;
    for (size_t k = 0; k < IMP_COUNT(TYPES); k++) {
        imp_mix_total u = {.type = TYPES[k]};
        bool all = is_met(x, TYPES[k]);
        for (uint32_t i = 0; i < m->n_group; i++) {
            const imp_mix_group *g = &m->group[i];
            uint32_t o = 0;
            while (o < g->n_opt && !same_types(x, g->group, g->opt[o].type, TYPES[k])) o++;
            if (o == g->n_opt)
                all = false;
            else
                u.kl += g->opt[o].kl;
        }
        for (int g = 0; g < IMP_N_GROUP; g++) type[g] = TYPES[k];
        if (!all) continue; /* the unit does not take it */
        IMP_TRY(total_of(x, type, &u));
        m->uniform[m->n_uniform++] = u;
    }
    return IMP_OK;
}

/* ---- choosing -------------------------------------------------------------------------------------------------- */

typedef struct table {
    uint32_t n_opt[IMP_N_GROUP];
    double cost[IMP_N_GROUP][IMP_MIX_OPTIONS], kl[IMP_N_GROUP][IMP_MIX_OPTIONS];
} table;

static void fill_table(const mixer *x, table *t)
{
    static const double weight[][2] = {{1, 1}, {1, 0.02}, {0.02, 1}}; /* of time and of bytes, by goal */
    const imp_mix *m = x->m;
    double all_s = IMP_MAX(request_s(x, m->source.ttft_s, m->source.tpot_s), 1e-12);
    double all_bytes = IMP_MAX((double)m->source.bytes, 1);
    for (uint32_t i = 0; i < m->n_group; i++) {
        t->n_opt[i] = m->group[i].n_opt;
        for (uint32_t k = 0; k < m->group[i].n_opt; k++) {
            const imp_mix_option *o = &m->group[i].opt[k];
            t->kl[i][k] = o->kl;
            t->cost[i][k] =
                weight[m->goal][0] * o->seconds / all_s + weight[m->goal][1] * (double)o->bytes / all_bytes;
        }
    }
}

void imp_mix_types(const imp_mix *m, imp_dtype type[IMP_N_GROUP])
{
    for (int g = 0; g < IMP_N_GROUP; g++) type[g] = IMP_DTYPE_NONE;
    for (uint32_t i = 0; i < m->n_group; i++)
        type[m->group[i].group] = m->group[i].opt[m->group[i].chosen].type;
}

static void set_chosen(imp_mix *m, const uint32_t choice[])
{
    for (uint32_t i = 0; i < m->n_group; i++) m->group[i].chosen = choice[i];
}

/* Solve with budgets around max_kl until the measured divergence just keeps to it. */
static imp_status choose(mixer *x)
{
    imp_mix *m = x->m;
    table *t = imp_sys_calloc(1, sizeof *t);
    uint32_t now[IMP_N_GROUP] = {0}, last[IMP_N_GROUP] = {0}, best[IMP_N_GROUP] = {0};
    double budget = m->max_kl, best_kl = 0, best_cost = INFINITY, best_sum = 0;
    imp_status s = t != NULL ? IMP_OK : imp_fail(x->err, IMP_NOMEM, "not enough memory to choose types");
    if (s == IMP_OK) fill_table(x, t);
    for (int round = 0; s == IMP_OK && round < ROUNDS; round++) {
        imp_dtype type[IMP_N_GROUP];
        double kl, sum = 0, cost = 0;
        if (!imp_mix_solve(m->n_group, t->n_opt, t->cost, t->kl, budget, now)) break;
        if (round > 0 && memcmp(now, last, sizeof now) == 0) break;
        memcpy(last, now, sizeof now);
        set_chosen(m, now);
        imp_mix_types(m, type);
        for (uint32_t i = 0; i < m->n_group; i++) sum += t->kl[i][now[i]], cost += t->cost[i][now[i]];
        step(x);
        m->n_measure++;
        s = imp_sense_kl(x->s, type, &kl, x->err);
        if (s != IMP_OK) break;
        bool keeps = kl <= m->max_kl;
        if (keeps && cost < best_cost) {
            memcpy(best, now, sizeof best);
            best_cost = cost, best_kl = kl, best_sum = sum;
        }
        if (!(sum > 0) || (keeps && kl > 0.97 * m->max_kl)) break;
        double aim = sum * m->max_kl / IMP_MAX(kl, 1e-12); /* as much as the sum is off */
        budget = keeps ? IMP_MIN(aim, 2 * budget) : IMP_MIN(aim, 0.97 * sum);
    }
    imp_sys_free(t);
    if (s != IMP_OK) return s;
    m->kept = !isfinite(best_cost); /* best is then all 0: the source's own types */
    set_chosen(m, best);
    m->sum_kl = best_sum;
    m->mix.kl = best_kl;
    m->mix.measured = true;
    imp_dtype type[IMP_N_GROUP];
    imp_mix_types(m, type);
    return total_of(x, type, &m->mix);
}

imp_status imp_mix_make(imp_sense *s, imp_net *net, const imp_mix_want *want, imp_mix *out, imp_error *err)
{
    mixer x = {.s = s, .net = net, .want = want, .m = out, .err = err};
    *out = (imp_mix){.max_kl = want->max_kl, .goal = want->goal};
    x.t = imp_sense_tensors(s, &x.n_t);
    list_options(&x);
    x.total = 2 * out->n_group + ROUNDS / 2;
    stored *st = imp_sys_calloc(1, sizeof *st);
    imp_status r = st != NULL ? sense_all(&x, st) : imp_fail(err, IMP_NOMEM, "not enough memory to measure");
    for (uint32_t i = 0; r == IMP_OK && i < out->n_group; i++)
        fill_divergence(&x, &out->group[i], &st->g[out->group[i].group]);
    imp_sys_free(st);
    if (r == IMP_OK) r = fill_price(&x);
    if (r == IMP_OK) r = fill_uniform(&x);
    if (r == IMP_OK) r = imp_sense_text(s, want->held_out, want->n_held_out, err);
    return r == IMP_OK ? choose(&x) : r;
}
