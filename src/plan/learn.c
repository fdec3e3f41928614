/* plan/learn.c - recursive least squares over the corrections of one unit. */
#include "plan/learn.h"

#include <math.h>

enum { FAR_RUN = 3, ITEM_KEYS = 4, MAX_ACTIVE = ITEM_KEYS * IMP_COST_ITEMS + 3, SHAPE_OP = 0x7f };

/* What a correction is about. */
enum { WHAT_MEMORY, WHAT_COMPUTE, WHAT_ROWS, WHAT_SIZE, WHAT_UNIT, WHAT_SHAPE };

/* Variances before anything was seen: an op when bound by memory or arithmetic, at a number of rows or keys, at a size of
 * weights; the unit as a whole; steps of one model and shape. */
static const double VAR[] = {0.2, 0.2, 0.06, 0.01, 0.16, 0.02};
static const double VAR_MIN_NOISE = 0.0004, VAR_DRIFT = 1e-6;
static const double MAX_THETA = 5;

static uint32_t pack(uint32_t op, uint32_t dtype, uint32_t what, uint32_t place)
{
    return 1u << 31 | op << 24 | dtype << 16 | what << 8 | place;
}

static double rows_of(const imp_cost_item *it, const imp_cost_shape *sh)
{
    return it->rows == IMP_ROWS_TOK ? sh->n_tok : it->rows == IMP_ROWS_OUT ? sh->n_out : sh->n_seq;
}

/* Which corrections an item has: keys, their weights, and where they stand (UINT32_MAX: not yet). */
typedef struct item_keys {
    uint32_t n, key[ITEM_KEYS], at[ITEM_KEYS];
    double h[ITEM_KEYS];
} item_keys;

static void add_key(item_keys *w, uint32_t key, double h)
{
    if (h <= 0) return;
    w->key[w->n] = key;
    w->h[w->n++] = h;
}

/* A curve over log2(x) with a node every `step`: the two nodes around x share the correction. */
static void add_curve(item_keys *w, uint32_t op, uint32_t kind, double x, double step, uint32_t last)
{
    double at = IMP_MIN(log2(IMP_MAX(x, 1)) / step, last);
    uint32_t node = IMP_MIN((uint32_t)at, last - 1);
    add_key(w, pack(op, kind, WHAT_ROWS, node), 1 - (at - node));
    add_key(w, pack(op, kind, WHAT_ROWS, node + 1), at - node);
}

/* The kernels an item runs: weight type, and for attention whether one row or a tile of them meets the keys. */
static uint32_t kind_of(const imp_cost *c, const imp_cost_item *it, const imp_cost_shape *sh)
{
    if (it->op == IMP_OP_ATTN) return !it->cached ? 2 : sh->n_tok >= 4 * sh->n_seq ? 1 : 0;
    return (uint32_t)it->dtype | (c->vectors ? 0x80u : 0);
}

static uint32_t bound_key(const imp_cost_item *it, uint32_t kind, bool compute)
{
    return pack(it->op, kind, compute ? WHAT_COMPUTE : WHAT_MEMORY, 0);
}

static void curve_keys(const imp_cost *c, const imp_cost_item *it, uint32_t kind, const imp_cost_shape *sh,
                       item_keys *w)
{
    double rows = rows_of(it, sh);
    if (it->op == IMP_OP_ATTN) {
        add_curve(w, it->op, kind, sh->keys / IMP_MAX(sh->n_tok, 1), 2, 7); /* 1 to 16K keys */
    } else if (it->op == IMP_OP_LINEAR || it->op == IMP_OP_MOE) {
        add_curve(w, it->op, kind, rows, c->vectors ? 3 : 1.5, c->vectors ? 3 : 6); /* 1 to 512 rows */
        uint32_t size = (uint32_t)IMP_MIN(log2(IMP_MAX(it->weight_bytes, 1)) / 2, 31.0);
        add_key(w, pack(it->op, kind, WHAT_SIZE, size << 1 | (rows > 1)), 1);
    }
}

/* What steps of about this shape of this model have that no op's correction explains: threads that start late, caches. */
static uint32_t shape_key(const imp_cost *c, const imp_cost_shape *sh)
{
    double bytes = 0;
    for (uint32_t i = 0; i < c->n_item; i++) bytes += c->item[i].weight_bytes;
    uint32_t w[] = {c->n_item,
                    c->vectors,
                    (uint32_t)(bytes * 1e-4),
                    (uint32_t)(2 * log2(IMP_MAX(sh->n_tok, 1))),
                    (uint32_t)(2 * log2(IMP_MAX(sh->n_seq, 1))),
                    (uint32_t)log2(IMP_MAX(sh->keys / IMP_MAX(sh->n_tok, 1), 1))};
    return 1u << 31 | (uint32_t)SHAPE_OP << 24 | (uint32_t)(imp_hash(w, sizeof w, 0) & 0xffffff);
}

static double prior_var(uint32_t key)
{
    if ((key >> 24 & 0x7f) == SHAPE_OP) return VAR[WHAT_SHAPE];
    return VAR[key == 0 ? WHAT_UNIT : key >> 8 & 0xff];
}

static uint32_t find(const imp_learn *l, uint32_t key)
{
    for (uint32_t i = 0; i < l->n_key; i++)
        if (l->key[i].key == key) return i;
    return UINT32_MAX;
}

/* A place for a new correction: when all are taken, that of the one that was taught longest ago, but none of this step's
 * (taught at `now`) nor the first two. UINT32_MAX: there is none. */
static uint32_t place_for(imp_learn *l, uint64_t now)
{
    if (l->n_key < IMP_LEARN_KEYS) return l->n_key++;
    uint32_t best = UINT32_MAX;
    for (uint32_t i = 2; i < l->n_key; i++)
        if (l->key[i].last_ns < now && (best == UINT32_MAX || l->key[i].last_ns < l->key[best].last_ns))
            best = i;
    return best;
}

static uint32_t add(imp_learn *l, uint32_t key, uint64_t now)
{
    uint32_t i = place_for(l, now);
    if (i == UINT32_MAX) return i;
    l->key[i] = (imp_learn_key){.key = key, .last_ns = now};
    for (uint32_t k = 0; k < l->n_key; k++) l->p[i][k] = l->p[k][i] = 0;
    l->p[i][i] = prior_var(key);
    return i;
}

void imp_learn_init(imp_learn *l, const imp_machine *m)
{
    memset(l, 0, sizeof *l);
    l->machine = *m;
    l->noise = 0.0025;
    (void)add(l, 0, 0);
    (void)add(l, pack(IMP_N_OP, 0, WHAT_COMPUTE, 0), 0); /* launches and sync */
}

/* Which corrections a step touches and by how much. */
typedef struct gradient {
    uint32_t n, at[MAX_ACTIVE];
    double h[MAX_ACTIVE];
    double unseen; /* prior variance of corrections that do not exist yet, weighted */
} gradient;

static void touch(gradient *g, uint32_t i, double h)
{
    for (uint32_t k = 0; k < g->n; k++)
        if (g->at[k] == i) {
            g->h[k] += h;
            return;
        }
    g->at[g->n] = i;
    g->h[g->n++] = h;
}

/* Times with corrections: which bound holds is decided after them. */
static void price(const imp_learn *l, const imp_cost *c, const imp_cost_shape *sh, item_keys *where,
                  uint32_t *shape, imp_cost_time *out)
{
    *shape = find(l, shape_key(c, sh));
    imp_cost_pair item[IMP_COST_ITEMS];
    imp_cost_base(c, &l->machine, sh, item, out);
    double whole = l->key[0].theta + (*shape != UINT32_MAX ? l->key[*shape].theta : 0);
    double unit = exp(whole), sum = 0, part[2] = {0};
    for (uint32_t i = 0; i < c->n_item; i++) {
        const imp_cost_item *it = &c->item[i];
        item_keys *w = &where[i];
        uint32_t kind = kind_of(c, it, sh), key[2], at[2];
        double t_of[2] = {item[i].memory_s, item[i].compute_s};
        for (int k = 0; k < 2; k++) {
            key[k] = bound_key(it, kind, k);
            at[k] = find(l, key[k]);
            if (at[k] != UINT32_MAX) t_of[k] *= exp(l->key[at[k]].theta);
        }
        int compute = t_of[1] > t_of[0];
        *w = (item_keys){.n = 1, .key = {key[compute]}, .at = {at[compute]}, .h = {1}};
        curve_keys(c, it, kind, sh, w);
        double t = t_of[compute], more = 0;
        for (uint32_t k = 1; k < w->n; k++) {
            w->at[k] = find(l, w->key[k]);
            if (w->at[k] != UINT32_MAX) more += w->h[k] * l->key[w->at[k]].theta;
        }
        t *= exp(more);
        out->share[i] = t;
        part[compute] += t;
        sum += t;
    }
    double launch = out->launch_s * exp(l->key[1].theta);
    sum += launch;
    for (uint32_t i = 0; i < c->n_item; i++) out->share[i] /= sum;
    out->share[IMP_COST_ITEMS] = launch / sum;
    out->memory_s = part[0] * unit;
    out->compute_s = part[1] * unit;
    out->launch_s = launch * unit;
    out->s = sum * unit;
    out->bound = out->launch_s > out->memory_s && out->launch_s > out->compute_s ? IMP_BOUND_LAUNCH
                 : out->compute_s > out->memory_s                                ? IMP_BOUND_COMPUTE
                                                                                 : IMP_BOUND_MEMORY;
}

static void gradient_of(const imp_cost *c, const item_keys *where, uint32_t shape, const imp_cost_time *t,
                        gradient *g)
{
    g->n = 0;
    g->unseen = shape == UINT32_MAX ? VAR[WHAT_SHAPE] : 0;
    if (shape != UINT32_MAX) touch(g, shape, 1);
    touch(g, 0, 1);
    touch(g, 1, t->share[IMP_COST_ITEMS]);
    for (uint32_t i = 0; i < c->n_item; i++) {
        if (t->share[i] < 1e-3) continue;
        for (uint32_t k = 0; k < where[i].n; k++) {
            double h = t->share[i] * where[i].h[k];
            if (where[i].at[k] != UINT32_MAX)
                touch(g, where[i].at[k], h);
            else
                g->unseen += h * h * prior_var(where[i].key[k]);
        }
    }
}

static double variance(const imp_learn *l, const gradient *g)
{
    double v = g->unseen;
    for (uint32_t a = 0; a < g->n; a++)
        for (uint32_t b = 0; b < g->n; b++) v += g->h[a] * g->h[b] * l->p[g->at[a]][g->at[b]];
    return IMP_MAX(v, 0);
}

/* Lessons behind an item's correction: those of the nearer node of its curve, or of the op where it has none. */
static uint32_t samples(const imp_learn *l, const item_keys *w)
{
    uint32_t best = w->n > 1 && w->h[1] < 0.5 && w->n > 2 ? 2 : IMP_MIN(w->n - 1, 1u);
    return w->at[best] == UINT32_MAX ? 0 : l->key[w->at[best]].n;
}

void imp_learn_predict(const imp_learn *l, const imp_cost *c, const imp_cost_shape *sh, bool with_sd,
                       imp_cost_time *out)
{
    item_keys where[IMP_COST_ITEMS];
    uint32_t shape;
    price(l, c, sh, where, &shape, out);
    out->sd = 0;
    out->n_sample = UINT32_MAX;
    for (uint32_t i = 0; i < c->n_item; i++)
        if (out->share[i] > 0.1) out->n_sample = IMP_MIN(out->n_sample, samples(l, &where[i]));
    if (out->n_sample == UINT32_MAX) out->n_sample = (uint32_t)IMP_MIN(l->n_observed, (uint64_t)UINT32_MAX);
    if (!with_sd) return;
    gradient g;
    gradient_of(c, where, shape, out, &g);
    out->sd = sqrt(variance(l, &g) + l->noise);
}

/* The residual as it may count: far ones are clipped until they come in a run. */
static double admit(imp_learn *l, double r, double var)
{
    double limit = 3 * sqrt(var);
    if (fabs(r) <= limit) {
        l->run = 0;
        return r;
    }
    l->run = r > 0 ? IMP_MAX(l->run, 0) + 1 : IMP_MIN(l->run, 0) - 1;
    if (l->run < FAR_RUN && l->run > -FAR_RUN) return r > 0 ? limit : -limit;
    l->p[0][0] += r * r; /* the unit has changed: throttled, shared, or back */
    l->run = 0;
    return r;
}

static void update(imp_learn *l, const gradient *g, double r, double s)
{
    double ph[IMP_LEARN_KEYS];
    for (uint32_t i = 0; i < l->n_key; i++) {
        ph[i] = 0;
        for (uint32_t a = 0; a < g->n; a++) ph[i] += l->p[i][g->at[a]] * g->h[a];
    }
    double inv = 1 / s;
    for (uint32_t i = 0; i < l->n_key; i++) {
        double t = l->key[i].theta + ph[i] * inv * r;
        l->key[i].theta = IMP_MIN(IMP_MAX(t, -MAX_THETA), MAX_THETA);
        if (fabs(ph[i]) < 1e-7) continue; /* knows nothing of this step */
        for (uint32_t k = 0; k < l->n_key; k++) l->p[i][k] -= ph[i] * ph[k] * inv;
    }
    for (uint32_t i = 0; i < l->n_key; i++) /* slow forgetting, and the diagonal stays a variance */
        l->p[i][i] = IMP_MIN(IMP_MAX(l->p[i][i] + VAR_DRIFT, 1e-9), 4.0);
}

void imp_learn_observe(imp_learn *l, const imp_cost *c, const imp_cost_shape *sh, double actual)
{
    if (!(actual > 0) || !isfinite(actual) || c->n_item == 0) return;
    item_keys where[IMP_COST_ITEMS];
    imp_cost_time t;
    uint32_t shape;
    price(l, c, sh, where, &shape, &t);
    uint64_t now = imp_now_ns();
    if (shape != UINT32_MAX) l->key[shape].last_ns = now;
    for (uint32_t i = 0; i < c->n_item; i++)
        for (uint32_t k = 0; k < where[i].n; k++)
            if (where[i].at[k] != UINT32_MAX) l->key[where[i].at[k]].last_ns = now;
    for (uint32_t i = 0; i < c->n_item; i++) { /* corrections that this step can teach come into being */
        if (t.share[i] < 0.02) continue;
        item_keys *w = &where[i];
        for (uint32_t k = 0; k < w->n; k++)
            if (w->at[k] == UINT32_MAX && (w->at[k] = find(l, w->key[k])) == UINT32_MAX)
                w->at[k] = add(l, w->key[k], now);
    }
    if (shape == UINT32_MAX) shape = add(l, shape_key(c, sh), now);
    gradient g;
    gradient_of(c, where, shape, &t, &g);
    double r = log(actual / t.s), var = variance(l, &g);
    l->residual += 0.1 * (fabs(r) - l->residual);
    double used = admit(l, r, var + l->noise);
    var = variance(l, &g);
    update(l, &g, used, var + l->noise);
    l->n_observed++;
    for (uint32_t a = 0; a < g.n; a++) l->key[g.at[a]].n++;
    if (l->n_observed > 24) { /* what is left once the corrections had their chance */
        double e = IMP_MIN(used * used, 9 * l->noise);
        l->noise = IMP_MAX(l->noise + 0.02 * (e - l->noise), VAR_MIN_NOISE);
    }
}

void imp_learn_interval(const imp_cost_time *t, double *lo, double *hi)
{
    double f = exp(1.645 * t->sd);
    *lo = t->s / f;
    *hi = t->s * f;
}
