/* plan/cells.c - a model's shapes beside the ops: looking them up, teaching them. */
#include "plan/cells.h"

#include <math.h>
#include <stdlib.h>

enum {
    FAR_RUN = 4,
    KNOWN = 3,
    STRETCH = 16 /* lessons */,
    APART = 3 /* lessons of others end a stretch */,
    SURE = 15,
    SETTLE = 32 /* lessons */
};

static const double NOISE_START = 0.0025, NOISE_MIN = 0.0004, NOISE_MAX = 0.02;
static const double MISFIT = 0.02;  /* variance of what ops do not say of a model */
static const double NOTHING = 0.3;  /* weight of knowing nothing, beside cells around */
static const double AROUND = 0.2;   /* of the cells around, beside lessons of the shape itself */
static const double TO_PACE = 0.03; /* share of a residual that is laid on the pace */
static const double FAR_TOK = 0.5, FAR_KEYS = 0.25,
                    FAR_KIND = 30; /* distance: a power of two squared; cold or behind a prompt */
static const double MAX_PACE = 5;

void imp_cells_init(imp_cells *s)
{
    memset(s, 0, sizeof *s);
    for (int i = 0; i < IMP_LEARN_PHASES; i++) s->noise[i] = NOISE_START;
}

uint32_t imp_cell_phase(const imp_cost *c, const imp_cost_shape *sh)
{
    if (c->kv_bytes_tok <= 0) return 2;
    return sh->n_tok < 2 * sh->n_seq || sh->n_out >= sh->n_tok ? 0 : 1;
}

static float log2_of(double x)
{
    return x > 1 ? log2f((float)x) : 0;
}

enum { PHASE_BITS = 3, AFTER_BIT = 4, COLD_BIT = 8, TOK_AT = 4, SEQ_AT = 12, KEYS_AT = 20 };

imp_cell_place imp_cells_place(const imp_cost *c, const imp_cost_shape *sh)
{
    imp_cell_place p = {
        .model = c->id,
        .phase = imp_cell_phase(c, sh),
        .at = {log2_of(sh->n_tok), log2_of(sh->n_seq), log2_of(sh->keys / IMP_MAX(sh->n_tok, 1))}};
    uint32_t tok = (uint32_t)(4 * p.at[0] + 0.5f), seq = (uint32_t)(4 * p.at[1] + 0.5f),
             keys = (uint32_t)(2 * p.at[2] + 0.5f);
    p.shape = p.phase | (sh->after ? AFTER_BIT : 0) | (sh->cold ? COLD_BIT : 0) |
              IMP_MIN(tok, 255u) << TOK_AT | IMP_MIN(seq, 255u) << SEQ_AT | IMP_MIN(keys, 255u) << KEYS_AT;
    return p;
}

imp_cell_view imp_cells_look(const imp_cells *s, const imp_cell_place *p, double ops)
{
    imp_cell_view v = {.own = UINT32_MAX};
    if (p->model == 0) return v;
    double sum = 0, mass = NOTHING;
    for (uint32_t i = 0; i < IMP_CELLS; i++) {
        const imp_cell *x = &s->at[i];
        uint32_t other = x->shape ^ p->shape;
        if (x->model != p->model || (other & PHASE_BITS) != 0) continue;
        if (other == 0) {
            v.own = i;
            continue;
        }
        double tok = x->at[0] - p->at[0], seq = x->at[1] - p->at[1], keys = x->at[2] - p->at[2];
        double far = FAR_TOK * (tok * tok + seq * seq) + FAR_KEYS * keys * keys;
        if ((other & (AFTER_BIT | COLD_BIT)) != 0) far += FAR_KIND;
        double w = x->n / ((x->n + 1) * (1 + far));
        sum += w * (x->y - x->ops);
        mass += w;
    }
    v.r = sum / mass;
    v.near = 1 - NOTHING / mass;
    if (v.own == UINT32_MAX) return v;
    const imp_cell *x = &s->at[v.own];
    double n = IMP_MIN(x->n, (uint32_t)SURE);
    v.r = (n * (x->y - ops) + AROUND * v.r) / (n + AROUND);
    return v;
}

double imp_cells_doubt(const imp_cells *s, const imp_cell_view *v, double ops_var)
{
    double not = 1 - v->near, open = not *not *(ops_var + MISFIT) + v->near * MISFIT / 4;
    if (v->own == UINT32_MAX) return open;
    double n = IMP_MIN(s->at[v->own].n, (uint32_t)SURE), f = AROUND / (n + AROUND);
    return f * f * open;
}

bool imp_cells_known(const imp_cells *s, const imp_cell_view *v)
{
    return v->own != UINT32_MAX && s->at[v->own].n >= KNOWN;
}

/* ---- teaching ------------------------------------------------------------------------------------------ */

/* A free cell, or the one that was taught longest ago. */
static uint32_t take(const imp_cells *s)
{
    uint32_t best = 0;
    for (uint32_t i = 0; i < IMP_CELLS; i++) {
        if (s->at[i].model == 0) return i;
        if (s->at[i].last < s->at[best].last) best = i;
    }
    return best;
}

static int by_size(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void remember(imp_cell *x, double y, uint64_t lesson)
{
    if (x->n_stretch == 0 || lesson - x->last > APART || x->in_stretch >= STRETCH) {
        memmove(x->stretch + 1, x->stretch, (IMP_CELL_STRETCHES - 1) * sizeof *x->stretch);
        x->n_stretch = IMP_MIN(x->n_stretch + 1, (uint32_t)IMP_CELL_STRETCHES);
        x->in_stretch = 0;
        x->stretch[0] = 0;
    }
    x->in_stretch++;
    x->stretch[0] += ((float)y - x->stretch[0]) / (float)x->in_stretch;
    x->last = lesson;
    float t[IMP_CELL_STRETCHES];
    uint32_t n = x->n_stretch;
    memcpy(t, x->stretch, sizeof t);
    qsort(t, n, sizeof *t, by_size);
    x->y = t[(n - 1) / 2]; /* of two in the middle the quicker: what else runs on a machine only adds */
}

/* A residual of a shape that is known: its part of the pace and of the noise. Far ones are clipped until they come in a
 * run: then the unit has changed (throttled, shared, or back), and all of it is the pace's. Returns what is the shape's. */
static double share(imp_cells *s, uint32_t phase, double e, double var)
{
    double limit = 3 * sqrt(var), near = IMP_MIN(IMP_MAX(e, -limit), limit);
    double *pace = &s->pace[phase], *noise = &s->noise[phase], to_pace = TO_PACE * near;
    int *run = &s->run[phase];
    if (near == e)
        *run = 0;
    else
        *run = e > 0 ? IMP_MAX(*run, 0) + 1 : IMP_MIN(*run, 0) - 1;
    if (*run >= FAR_RUN || *run <= -FAR_RUN) {
        *run = 0;
        to_pace = e;
    } else {
        /* about normal but for few: what they are clipped by, the factor makes up for */
        double e2 = IMP_MIN(e * e, 4 * *noise);
        *noise = IMP_MIN(IMP_MAX(*noise + 0.02 * (1.3 * e2 - *noise), NOISE_MIN), NOISE_MAX);
    }
    *pace = IMP_MIN(IMP_MAX(*pace + to_pace, -MAX_PACE), MAX_PACE);
    return e - to_pace;
}

/* A part of the pace laid on the cells of that phase. */
static void settle(imp_cells *s, uint32_t phase, double part)
{
    double d = part * s->pace[phase];
    s->pace[phase] -= d;
    for (uint32_t i = 0; i < IMP_CELLS; i++) {
        imp_cell *x = &s->at[i];
        if (x->model == 0 || (x->shape & PHASE_BITS) != phase) continue;
        x->y += d;
        for (uint32_t k = 0; k < x->n_stretch; k++) x->stretch[k] += (float)d;
    }
}

void imp_cells_settle(imp_cells *s)
{
    for (uint32_t phase = 0; phase < IMP_LEARN_PHASES; phase++) settle(s, phase, 1);
}

imp_cell *imp_cells_teach(imp_cells *s, const imp_cell_place *p, const imp_cost_shape *sh,
                          const imp_cell_view *v, double ops, double r)
{
    double e = r - s->pace[p->phase] - v->r;
    if (imp_cells_known(s, v)) e = share(s, p->phase, e, 2 * s->noise[p->phase]);
    uint32_t own = v->own != UINT32_MAX ? v->own : take(s);
    imp_cell *x = &s->at[own];
    if (v->own == UINT32_MAX) *x = (imp_cell){.model = p->model, .shape = p->shape};
    remember(x, ops + v->r + e, ++s->n_lesson);
    if (s->n_lesson % SETTLE == 0) settle(s, p->phase, 0.5);
    x->n += x->n < UINT32_MAX;
    x->ops = ops;
    x->sh = *sh;
    memcpy(x->at, p->at, sizeof x->at);
    return x;
}
