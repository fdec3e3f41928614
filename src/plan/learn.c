/* plan/learn.c - recursive least squares over the corrections of one unit. */
#include "plan/learn.h"

#include <math.h>
#include <time.h>

enum {
    FAR_RUN = 4,
    NEW = 4 /* lessons of a shape */,
    SELDOM = 8,
    ITEM_KEYS = 5,
    MAX_ACTIVE = ITEM_KEYS * IMP_COST_ITEMS + 12
};

/* Places of the corrections that every unit has. */
enum { AT_UNIT, AT_LAUNCH, AT_WAKE, N_FIXED };

/* What a correction is about. */
enum {
    WHAT_MEMORY,
    WHAT_COMPUTE,
    WHAT_CURVE, /* compute time at a number of rows or keys */
    WHAT_READ,  /* memory time at 1 to 16 rows: some kernels' forms read slower than others */
    WHAT_ROW,   /* what is done once a row */
    WHAT_UNIT,
    WHAT_WAKE,
    N_WHAT
};

/* Variances before anything was seen, and how much is forgotten with every lesson. */
static const double VAR[N_WHAT] = {0.2, 0.2, 0.02, 0.06, 0.2, 0.16, 0.3};
static const double DRIFT_UNIT = 2e-5, DRIFT_OP = 1e-6;
static const double CHANCE = 0.0025; /* variance of one step's log residual */
static const double MISFIT = 0.02;   /* of what is a model's own and no op's, in the same */
static const double OPS_S =
    0.02; /* what a model computes before it may teach the ops again, which takes longer */
static const double MAX_THETA = 5;
static uint32_t pack(uint32_t op, uint32_t dtype, uint32_t what, uint32_t place)
{
    return 1u << 31 | op << 24 | dtype << 16 | what << 8 | place;
}

static double prior_var(uint32_t key)
{
    return VAR[key == 0 ? WHAT_UNIT : key >> 8 & 0xff];
}

/* ---- where keys are ---------------------------------------------------------------------------------- */

static uint32_t first_slot(uint32_t key)
{
    return key * 2654435761u >> 23 & (IMP_LEARN_SLOTS - 1);
}

static uint32_t find(const imp_learn *l, uint32_t key)
{
    for (uint32_t s = first_slot(key); l->slot[s] != 0; s = (s + 1) & (IMP_LEARN_SLOTS - 1))
        if (l->key[l->slot[s] - 1].key == key) return l->slot[s] - 1;
    return UINT32_MAX;
}

static void index_key(imp_learn *l, uint32_t i)
{
    uint32_t s = first_slot(l->key[i].key);
    while (l->slot[s] != 0) s = (s + 1) & (IMP_LEARN_SLOTS - 1);
    l->slot[s] = (uint16_t)(i + 1);
}

void imp_learn_reindex(imp_learn *l)
{
    memset(l->slot, 0, sizeof l->slot);
    for (uint32_t i = 0; i < l->n_key; i++) index_key(l, i);
}

/* A place for a new correction: when all are taken, that of the one that was taught longest ago, but
 * none of this step's (taught at `now`) nor the fixed ones. UINT32_MAX: there is none. */
static uint32_t place_for(imp_learn *l, uint64_t now)
{
    if (l->n_key < IMP_LEARN_KEYS) return l->n_key++;
    uint32_t best = UINT32_MAX;
    for (uint32_t i = N_FIXED; i < l->n_key; i++) {
        if (l->key[i].last_ns >= now) continue;
        if (best == UINT32_MAX || l->key[i].last_ns < l->key[best].last_ns) best = i;
    }
    return best;
}

static uint32_t add(imp_learn *l, uint32_t key, uint64_t now)
{
    uint32_t old = l->n_key, i = place_for(l, now);
    if (i == UINT32_MAX) return i;
    l->key[i] = (imp_learn_key){.key = key, .last_ns = now};
    for (uint32_t k = 0; k < l->n_key; k++) l->p[i][k] = l->p[k][i] = 0;
    l->p[i][i] = prior_var(key);
    if (i == old)
        index_key(l, i);
    else
        imp_learn_reindex(l);
    return i;
}

void imp_learn_init(imp_learn *l, const imp_machine *m)
{
    memset(l, 0, sizeof *l);
    l->machine = *m;
    imp_cells_init(&l->cells);
    (void)add(l, 0, 0);
    (void)add(l, pack(IMP_N_OP, 0, WHAT_COMPUTE, 0), 0);
    (void)add(l, pack(IMP_N_OP, 0, WHAT_WAKE, 0), 0);
}

/* ---- the price with corrections ------------------------------------------------------------------------ */

/* Which corrections a step has, where they stand (UINT32_MAX: not yet), and their shares of the step. */
typedef struct active {
    uint32_t n, key[MAX_ACTIVE], at[MAX_ACTIVE];
    double h[MAX_ACTIVE];
} active;

/* One more; returns what it says now. */
static double take(const imp_learn *l, active *a, uint32_t key, double h)
{
    if (h <= 0) return 0;
    uint32_t at = find(l, key);
    a->key[a->n] = key;
    a->at[a->n] = at;
    a->h[a->n++] = h;
    return at != UINT32_MAX ? h * l->key[at].theta : 0;
}

/* A curve with nodes 0..last: the two around x share the correction. */
static double take_curve(const imp_learn *l, active *a, uint32_t base, double x, uint32_t last)
{
    double at = IMP_MIN(x, last);
    uint32_t node = IMP_MIN((uint32_t)at, last - 1);
    double near = take(l, a, base + node, 1 - (at - node));
    return near + take(l, a, base + node + 1, at - node);
}

static void scale(active *a, uint32_t from, double s)
{
    for (uint32_t i = from; i < a->n; i++) a->h[i] *= s;
}

/* log2 of what corrections are curves over. */
typedef struct sizes {
    double rows[3]; /* by imp_rows */
    double keys;    /* that a token sees */
} sizes;

static double log2_of(double x)
{
    return x > 1 ? log2(x) : 0;
}

static sizes sizes_of(const imp_cost_shape *sh)
{
    sizes z = {.keys = log2_of(sh->keys / IMP_MAX(sh->n_tok, 1))};
    z.rows[IMP_ROWS_TOK] = log2_of(sh->n_tok);
    z.rows[IMP_ROWS_OUT] = log2_of(sh->n_out);
    z.rows[IMP_ROWS_SEQ] = log2_of(sh->n_seq);
    return z;
}

/* The kernels an item runs: weight type, and for attention whether one row or a tile of them meets the keys. */
static uint32_t kind_of(const imp_cost *c, const imp_cost_item *it, const imp_cost_shape *sh)
{
    if (it->op == IMP_OP_ATTN) return !it->cached ? 2 : sh->n_tok >= 4 * sh->n_seq ? 1 : 0;
    return (uint32_t)it->dtype | (c->vectors ? 0x80u : 0);
}

/* Seconds of one item; its corrections join the list with their seconds. */
static double price_item(const imp_learn *l, const imp_cost *c, const imp_cost_item *it,
                         const imp_cost_terms *t, const imp_cost_shape *sh, const sizes *z, active *a,
                         imp_cost_time *out)
{
    uint32_t kind = kind_of(c, it, sh), from = a->n, compute_from;
    bool near = out->in_cache > 0.5, product = it->op == IMP_OP_LINEAR || it->op == IMP_OP_MOE;
    double slow = take(l, a, pack(it->op, kind, WHAT_MEMORY, near), 1);
    if (product && !near) slow += take_curve(l, a, pack(it->op, kind, WHAT_READ, 0), z->rows[it->rows], 4);
    double memory = t->memory_s * exp(slow);
    compute_from = a->n;
    double more = take(l, a, pack(it->op, kind, WHAT_COMPUTE, 0), 1);
    uint32_t curve = pack(it->op, kind, WHAT_CURVE, 0);
    if (it->op == IMP_OP_ATTN)
        more += take_curve(l, a, curve, z->keys / 2, 7); /* 1 to 16K keys */
    else if (product)
        more += take_curve(l, a, curve, z->rows[it->rows], 9); /* 1 to 512 rows */
    double compute = t->compute_s * exp(more), s = imp_cost_together(&l->machine, compute, memory);
    double lesser = l->machine.f[IMP_F_WAITS].v; /* what of it counts */
    double memory_s = memory * (memory >= compute ? 1 : lesser);
    double compute_s = compute * (memory < compute ? 1 : lesser);
    for (uint32_t i = from; i < compute_from; i++) a->h[i] *= memory_s;
    scale(a, compute_from, compute_s);
    uint32_t row_from = a->n;
    double row = t->row_s > 0 ? t->row_s * exp(take(l, a, pack(it->op, kind, WHAT_ROW, 0), 1)) : 0;
    scale(a, row_from, row);
    out->memory_s += memory_s;
    out->compute_s += compute_s + row;
    return s + row;
}

static void scale_time(imp_cost_time *t, double f)
{
    t->memory_s *= f;
    t->compute_s *= f;
    t->launch_s *= f;
    t->wake_s *= f;
    t->bound = imp_cost_bound(t);
}

/* By the ops' corrections. Returns the log of what they make of the machine's own price. */
static double price(const imp_learn *l, const imp_cost *c, const imp_cost_shape *sh, active *a,
                    imp_cost_time *out)
{
    imp_cost_terms item[IMP_COST_ITEMS];
    a->n = 0;
    imp_cost_base(c, &l->machine, sh, item, out);
    const sizes z = sizes_of(sh);
    out->memory_s = out->compute_s = 0;
    double sum = 0, plain = out->launch_s + out->wake_s;
    for (uint32_t i = 0; i < c->n_item; i++) {
        plain += imp_cost_together(&l->machine, item[i].compute_s, item[i].memory_s) + item[i].row_s;
        sum += price_item(l, c, &c->item[i], &item[i], sh, &z, a, out);
    }
    out->wake_s *= exp(l->key[AT_WAKE].theta);
    out->launch_s *= exp(l->key[AT_LAUNCH].theta);
    (void)take(l, a, l->key[AT_LAUNCH].key, out->launch_s);
    (void)take(l, a, l->key[AT_WAKE].key, out->wake_s);
    out->launch_s += out->wake_s;
    sum += out->launch_s;
    scale(a, 0, sum > 0 ? 1 / sum : 0);
    double f = exp(take(l, a, 0, 1));
    out->s = sum * f;
    scale_time(out, f);
    return log(IMP_MAX(out->s, 1e-12) / IMP_MAX(plain, 1e-12));
}

/* ---- predicting ---------------------------------------------------------------------------------------- */

/* The same with every correction once. */
typedef struct gradient {
    uint32_t n, at[MAX_ACTIVE];
    double h[MAX_ACTIVE];
    double unseen; /* prior variance of corrections that do not exist yet, weighted */
} gradient;

static void gradient_of(const active *a, gradient *g)
{
    uint16_t where[IMP_LEARN_KEYS] = {0};
    g->n = 0;
    g->unseen = 0;
    for (uint32_t i = 0; i < a->n; i++) {
        double h = a->h[i];
        if (h < 1e-3) continue;
        if (a->at[i] == UINT32_MAX) {
            g->unseen += h * h * prior_var(a->key[i]);
        } else if (where[a->at[i]] != 0) {
            g->h[where[a->at[i]] - 1] += h;
        } else {
            g->at[g->n] = a->at[i];
            g->h[g->n++] = h;
            where[a->at[i]] = (uint16_t)g->n;
        }
    }
}

static double variance(const imp_learn *l, const gradient *g)
{
    double v = g->unseen;
    for (uint32_t i = 0; i < g->n; i++) {
        const double *p = l->p[g->at[i]];
        double sum = 0;
        for (uint32_t k = 0; k < g->n; k++) sum += g->h[k] * p[g->at[k]];
        v += g->h[i] * sum;
    }
    return IMP_MAX(v, 0);
}

/* Least number of lessons behind the corrections that carry much of the step. */
static uint32_t samples(const imp_learn *l, const active *a)
{
    uint64_t n = l->n_observed;
    for (uint32_t i = 0; i < a->n; i++)
        if (a->h[i] > 0.1) n = IMP_MIN(n, a->at[i] == UINT32_MAX ? 0 : (uint64_t)l->key[a->at[i]].n);
    return (uint32_t)IMP_MIN(n, (uint64_t)UINT32_MAX);
}

void imp_learn_predict(const imp_learn *l, const imp_cost *c, const imp_cost_shape *sh, bool with_sd,
                       imp_cost_time *out)
{
    active a;
    double ops = price(l, c, sh, &a, out);
    imp_cell_place p = imp_cells_place(c, sh);
    imp_cell_view v = imp_cells_look(&l->cells, &p, ops);
    double f = exp(v.r + (c->id != 0 ? l->cells.pace[p.phase] : 0));
    out->s *= f;
    scale_time(out, f);
    out->sd = 0;
    out->n_sample = v.own != UINT32_MAX ? l->cells.at[v.own].n : samples(l, &a);
    if (!with_sd) return;
    gradient g;
    gradient_of(&a, &g);
    double noise = l->cells.noise[p.phase];
    out->sd = sqrt(imp_cells_doubt(&l->cells, &v, variance(l, &g)) +
                   noise * (1 + 1 / IMP_MAX((double)out->n_sample, 1)));
}

/* ---- learning ------------------------------------------------------------------------------------------ */

static void update(imp_learn *l, const gradient *g, double r, double s)
{
    uint16_t list[IMP_LEARN_KEYS];
    double ph[IMP_LEARN_KEYS], inv = 1 / s;
    uint32_t n = 0;
    for (uint32_t i = 0; i < l->n_key; i++) {
        double sum = 0;
        for (uint32_t a = 0; a < g->n; a++) sum += l->p[i][g->at[a]] * g->h[a];
        if (fabs(sum) < 1e-6) continue; /* knows nothing of this step */
        ph[n] = sum;
        list[n++] = (uint16_t)i;
    }
    for (uint32_t i = 0; i < n; i++) {
        imp_learn_key *key = &l->key[list[i]];
        double *row = l->p[list[i]], f = ph[i] * inv;
        key->theta = IMP_MIN(IMP_MAX(key->theta + f * r, -MAX_THETA), MAX_THETA);
        for (uint32_t k = 0; k < n; k++) row[list[k]] -= f * ph[k];
    }
    for (uint32_t i = 0; i < l->n_key; i++) { /* slow forgetting, and the diagonal stays a variance */
        double drift = i == AT_UNIT ? DRIFT_UNIT : DRIFT_OP;
        l->p[i][i] = IMP_MIN(IMP_MAX(l->p[i][i] + drift, 1e-9), 4.0);
    }
}

/* The residual as the ops may learn from it: far ones are clipped. When they come in a run while the unit is calibrated,
 * all of it differs from what was thought, and the unit's own correction opens up. */
static double admit(imp_learn *l, double r, double var, bool model)
{
    double limit = 3 * sqrt(var), used = IMP_MIN(IMP_MAX(r, -limit), limit);
    if (model || used == r) {
        if (!model) l->run = 0;
        return used;
    }
    l->run = r > 0 ? IMP_MAX(l->run, 0) + 1 : IMP_MIN(l->run, 0) - 1;
    if (l->run < FAR_RUN && l->run > -FAR_RUN) return used;
    l->p[AT_UNIT][AT_UNIT] += r * r;
    l->run = 0;
    return r;
}

/* r: log(actual / the ops' price). */
static void teach_ops(imp_learn *l, active *a, double r, bool model)
{
    uint64_t now = imp_now_ns();
    for (uint32_t i = 0; i < a->n; i++)
        if (a->at[i] != UINT32_MAX) l->key[a->at[i]].last_ns = now;
    for (uint32_t i = 0; i < a->n; i++) /* corrections that this step can teach come into being */
        if (a->at[i] == UINT32_MAX && a->h[i] >= 0.02 && (a->at[i] = find(l, a->key[i])) == UINT32_MAX)
            a->at[i] = add(l, a->key[i], now);
    gradient g;
    gradient_of(a, &g);
    double chance = CHANCE + (model ? MISFIT : 0), used = admit(l, r, variance(l, &g) + chance, model);
    update(l, &g, used, variance(l, &g) + chance);
    for (uint32_t i = 0; i < g.n; i++) l->key[g.at[i]].n++;
}

/* The ops have learned: what they say of this model's shapes now. */
static void refresh(imp_learn *l, const imp_cost *c)
{
    active a;
    imp_cost_time t;
    for (uint32_t i = 0; i < IMP_CELLS; i++) {
        imp_cell *x = &l->cells.at[i];
        if (x->model == c->id) x->ops = price(l, c, &x->sh, &a, &t);
    }
}

void imp_learn_observe(imp_learn *l, const imp_cost *c, const imp_cost_shape *sh, double actual)
{
    if (!(actual > 0) || !isfinite(actual) || c->n_item == 0) return;
    active a;
    imp_cost_time t;
    double ops = price(l, c, sh, &a, &t), r = log(actual / t.s);
    l->n_observed++;
    l->at = (int64_t)time(NULL);
    if (c->id == 0) {
        teach_ops(l, &a, r, false);
        return;
    }
    imp_cell_place p = imp_cells_place(c, sh);
    imp_cell_view v = imp_cells_look(&l->cells, &p, ops);
    l->residual += 0.1 * (fabs(r - l->cells.pace[p.phase] - v.r) - l->residual);
    imp_cell *x = imp_cells_teach(&l->cells, &p, sh, &v, ops, r);
    l->untaught_s += actual;
    if (l->untaught_s < OPS_S || (x->n > NEW && x->n % SELDOM != 0)) return;
    l->untaught_s = 0;
    teach_ops(l, &a, r - l->cells.pace[p.phase], true);
    refresh(l, c);
}

/* ---- lessons ------------------------------------------------------------------------------------------- */

static const double LESSON_S = 0.002, MOST_CREDIT_S = 0.02;

static bool alike(const imp_cost_shape *a, const imp_cost_shape *sum, double n)
{
    return a->n_tok * n == sum->n_tok && a->n_seq * n == sum->n_seq && a->n_out * n == sum->n_out &&
           a->cold == sum->cold && a->after == sum->after;
}

static int give(imp_lessons *q, imp_lesson *due)
{
    imp_lesson *w = &q->waiting;
    if (w->cost == NULL || q->credit_s < LESSON_S) return 0;
    const imp_cost_shape *h = &w->shape;
    double f = 1 / q->n;
    *due = (imp_lesson){
        w->cost,
        {h->n_tok * f, h->n_out * f, h->n_seq * f, h->keys * f, h->kv_tok * f, h->cold, h->after},
        w->s * f};
    w->cost = NULL;
    q->credit_s -= LESSON_S;
    return 1;
}

int imp_lessons_add(imp_lessons *q, const imp_cost *c, const imp_cost_shape *sh, double s, imp_lesson due[2])
{
    imp_lesson *w = &q->waiting;
    int n = 0;
    q->credit_s = IMP_MIN(q->credit_s + s, MOST_CREDIT_S);
    if (w->cost != c || !alike(sh, &w->shape, q->n)) {
        n = give(q, &due[0]);
        *w = (imp_lesson){.cost = c, .shape.cold = sh->cold, .shape.after = sh->after};
        q->n = 0;
    }
    w->shape.n_tok += sh->n_tok, w->shape.n_out += sh->n_out, w->shape.n_seq += sh->n_seq;
    w->shape.keys += sh->keys, w->shape.kv_tok += sh->kv_tok;
    w->s += s;
    q->n++;
    return w->s >= LESSON_S ? n + give(q, &due[n]) : n;
}

void imp_learn_interval(const imp_cost_time *t, double *lo, double *hi)
{
    double f = exp(1.645 * t->sd);
    *lo = t->s / f;
    *hi = t->s * f;
}
