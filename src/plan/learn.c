/* plan/learn.c - recursive least squares over the corrections of one unit. */
#include "plan/learn.h"

#include <math.h>

enum { FAR_RUN = 3, MAX_ACTIVE = 2 * IMP_COST_ITEMS + 3 };

/* Variances before anything was seen: of the unit as a whole, of an op in general, of an op at a size. */
static const double VAR_UNIT = 0.16, VAR_OP = 0.2, VAR_SIZE = 0.02;
static const double VAR_MIN_NOISE = 0.0004, VAR_DRIFT = 1e-6;
static const double MAX_THETA = 5;

static uint32_t ilog2(double x)
{
    return x < 2 ? 0 : (uint32_t)IMP_MIN(log2(x), 31.0);
}

static uint32_t pack(uint32_t op, uint32_t dtype, uint32_t rows, uint32_t bytes, bool size)
{
    return 1u << 31 | op << 24 | dtype << 16 | rows << 8 | bytes << 1 | (size ? 1u : 0u);
}

static double rows_of(const imp_cost_item *it, const imp_cost_shape *sh)
{
    return it->rows == IMP_ROWS_TOK ? sh->n_tok : it->rows == IMP_ROWS_OUT ? sh->n_out : sh->n_seq;
}

/* The key of an item bound by memory or by arithmetic, and the key of its size. */
static uint32_t bound_key(const imp_cost_item *it, bool compute)
{
    return pack(it->op, it->dtype, compute ? 1 : 0, 0, false);
}
static uint32_t size_key(const imp_cost_item *it, const imp_cost_shape *sh)
{
    uint32_t size =
        it->op == IMP_OP_ATTN ? ilog2(sh->keys / IMP_MAX(sh->n_tok, 1)) / 2 : ilog2(it->weight_bytes) / 2;
    return pack(it->op, it->dtype, IMP_MIN(ilog2(rows_of(it, sh)), 8u), size, true);
}

static double prior_var(uint32_t key)
{
    if (key == 0) return VAR_UNIT;
    return key & 1u ? VAR_SIZE : VAR_OP;
}

static uint32_t find(const imp_learn *l, uint32_t key)
{
    for (uint32_t i = 0; i < l->n_key; i++)
        if (l->key[i].key == key) return i;
    return UINT32_MAX;
}

static uint32_t add(imp_learn *l, uint32_t key)
{
    if (l->n_key == IMP_LEARN_KEYS) return UINT32_MAX;
    uint32_t i = l->n_key++;
    l->key[i] = (imp_learn_key){.key = key};
    for (uint32_t k = 0; k <= i; k++) l->p[i][k] = l->p[k][i] = 0;
    l->p[i][i] = prior_var(key);
    return i;
}

void imp_learn_init(imp_learn *l, const imp_machine *m)
{
    memset(l, 0, sizeof *l);
    l->machine = *m;
    l->noise = 0.0025;
    (void)add(l, 0);
    (void)add(l, pack(IMP_N_OP, 0, 0, 0, false)); /* launches and sync */
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

/* Which corrections an item has: keys, and where they stand (UINT32_MAX: not yet). */
typedef struct item_keys {
    uint32_t key[2], at[2];
} item_keys;

/* Times with corrections: which bound holds is decided after them. */
static void price(const imp_learn *l, const imp_cost *c, const imp_cost_shape *sh, item_keys *where,
                  imp_cost_time *out)
{
    imp_cost_pair item[IMP_COST_ITEMS];
    imp_cost_base(c, &l->machine, sh, item, out);
    double unit = exp(l->key[0].theta), sum = 0, part[2] = {0};
    for (uint32_t i = 0; i < c->n_item; i++) {
        item_keys *w = &where[i];
        uint32_t key[2] = {bound_key(&c->item[i], false), bound_key(&c->item[i], true)};
        uint32_t at[2] = {find(l, key[0]), find(l, key[1])};
        double t_m = item[i].memory_s, t_c = item[i].compute_s;
        if (at[0] != UINT32_MAX) t_m *= exp(l->key[at[0]].theta);
        if (at[1] != UINT32_MAX) t_c *= exp(l->key[at[1]].theta);
        int compute = t_c > t_m;
        w->key[0] = key[compute];
        w->at[0] = at[compute];
        w->key[1] = size_key(&c->item[i], sh);
        w->at[1] = find(l, w->key[1]);
        double t = compute ? t_c : t_m;
        if (w->at[1] != UINT32_MAX) t *= exp(l->key[w->at[1]].theta);
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

static void gradient_of(const imp_cost *c, const item_keys *where, const imp_cost_time *t, gradient *g)
{
    g->n = 0;
    g->unseen = 0;
    touch(g, 0, 1);
    touch(g, 1, t->share[IMP_COST_ITEMS]);
    for (uint32_t i = 0; i < c->n_item; i++) {
        if (t->share[i] < 1e-3) continue;
        for (int k = 0; k < 2; k++) {
            if (where[i].at[k] != UINT32_MAX)
                touch(g, where[i].at[k], t->share[i]);
            else
                g->unseen += t->share[i] * t->share[i] * (k == 0 ? VAR_OP : VAR_SIZE);
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

void imp_learn_predict(const imp_learn *l, const imp_cost *c, const imp_cost_shape *sh, bool with_sd,
                       imp_cost_time *out)
{
    item_keys where[IMP_COST_ITEMS];
    price(l, c, sh, where, out);
    out->sd = 0;
    out->n_sample = UINT32_MAX;
    for (uint32_t i = 0; i < c->n_item; i++)
        if (out->share[i] > 0.1)
            out->n_sample =
                IMP_MIN(out->n_sample, where[i].at[1] == UINT32_MAX ? 0 : l->key[where[i].at[1]].n);
    if (out->n_sample == UINT32_MAX) out->n_sample = (uint32_t)IMP_MIN(l->n_observed, (uint64_t)UINT32_MAX);
    if (!with_sd) return;
    gradient g;
    gradient_of(c, where, out, &g);
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
    price(l, c, sh, where, &t);
    for (uint32_t i = 0; i < c->n_item; i++) { /* corrections that this step can teach come into being */
        if (t.share[i] < 0.02) continue;
        for (int k = 0; k < 2; k++) {
            item_keys *w = &where[i];
            if (w->at[k] == UINT32_MAX && (w->at[k] = find(l, w->key[k])) == UINT32_MAX)
                w->at[k] = add(l, w->key[k]);
        }
    }
    gradient g;
    gradient_of(c, where, &t, &g);
    double r = log(actual / t.s), var = variance(l, &g);
    l->residual += 0.1 * (fabs(r) - l->residual);
    double used = admit(l, r, var + l->noise);
    var = variance(l, &g);
    update(l, &g, used, var + l->noise);
    l->n_observed++;
    uint64_t now = imp_now_ns();
    for (uint32_t a = 0; a < g.n; a++) {
        l->key[g.at[a]].n++;
        l->key[g.at[a]].last_ns = now;
    }
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
