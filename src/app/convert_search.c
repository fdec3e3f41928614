/* app/convert_search.c - compressing by a calibration text, and the smallest form that loses no more than is allowed. */
#include <math.h>
#include <stdlib.h>

#include "app/convert.h"

static void tuning(void *user, const char *weight)
{
    (void)user;
    app_bar_note(weight);
    app_bar_add(1);
}

static uint64_t n_linear(const imp_graph *g)
{
    uint64_t n = 0;
    for (imp_val v = 1; v <= imp_graph_n(g); v++) n += imp_graph_node(g, v)->op == IMP_OP_LINEAR;
    return n;
}

static imp_status make_forms(conversion *c)
{
    imp_val n = imp_graph_n(c->g);
    if (c->form == NULL) c->form = imp_sys_malloc((n + 1) * sizeof *c->form);
    if (c->form == NULL) return imp_fail(&c->a->err, IMP_NOMEM, "out of memory");
    for (imp_val v = 0; v <= n; v++) c->form[v] = c->opt.pack;
    return IMP_OK;
}

/* Compress with c->form by the calibration text. */
static imp_status tune(conversion *c)
{
    imp_ml_tuning t = {.text = c->fit.text,
                       .n_text = c->fit.n,
                       .n_held_out = c->n_held_out,
                       .form = c->form,
                       .repair = true,
                       .pool = c->pool,
                       .progress = tuning,
                       .user = c};
    imp_ml_tuned_free(c->tuned);
    c->tuned = NULL;
    app_bar_begin("compressing", n_linear(c->g), "matrices");
    imp_status s = imp_ml_tune(c->g, &t, &c->tuned, &c->a->err);
    app_bar_end();
    c->opt.tuned = c->tuned;
    c->opt.form = c->form;
    return s;
}

static imp_status write_package(conversion *c)
{
    uint64_t total = 0;
    for (imp_val v = 1; v <= imp_graph_n(c->g); v++) {
        const imp_node *n = imp_graph_node(c->g, v);
        if (n->op == IMP_OP_LINEAR)
            total += imp_tensor_bytes(&imp_graph_node(c->g, n->in[1])->u.weight.part[0]);
    }
    c->shown = 0;
    imp_ml_report_deinit(&c->report);
    app_bar_begin("converting", total, "bytes");
    imp_status s = imp_ml_convert(c->g, c->out, &c->opt, &c->report, &c->a->err);
    app_bar_end();
    return s;
}

imp_status conv_convert(conversion *c)
{
    if (c->fit.n > 0 && c->opt.pack.kind != IMP_ML_HALF) {
        IMP_TRY(make_forms(c));
        IMP_TRY(tune(c));
    }
    return write_package(c);
}

/* ---- the smallest form that holds ---------------------------------------------------------------------------------- */

static bool holds(const imp_ml_distance *d, const conv_bar *l)
{
    return d->loss <= l->loss && d->worst_cosine >= l->cosine;
}

/* How many times too far, by whichever limit is missed most. */
static double excess(const imp_ml_distance *d, const conv_bar *l)
{
    double by_loss = l->loss > 0 ? d->loss / l->loss : d->loss > 0 ? 1e9 : 0;
    double by_cosine = l->cosine < 1 ? (1 - d->worst_cosine) / (1 - l->cosine) : 0;
    return by_loss > by_cosine ? by_loss : by_cosine;
}

/* The next better form. */
static imp_ml_packing better(imp_ml_packing p)
{
    static const uint8_t next[9] = {[1] = 2, [2] = 4, [3] = 4, [4] = 6, [6] = 8};
    if (p.int8_inputs) {
        p.int8_inputs = false;
    } else if (p.kind == IMP_ML_INT4) {
        p.kind = IMP_ML_INT8;
        p.block = 0;
    } else if (p.kind == IMP_ML_LUT && next[p.bits] != 0) {
        p.bits = next[p.bits];
    } else {
        p = (imp_ml_packing){.kind = IMP_ML_HALF};
    }
    return p;
}

typedef struct layer {
    imp_val v;
    uint64_t n;    /* numbers */
    double damage; /* 1 - mean cosine when it alone is rounded */
} layer;

static int by_damage(const void *a, const void *b)
{
    const layer *x = a, *y = b;
    double p = x->damage / (double)x->n, q = y->damage / (double)y->n;
    return p < q ? 1 : p > q ? -1 : x->v < y->v ? -1 : 1;
}

/* What each matrix does to the vectors when it alone is rounded, on a few texts; the worst for its size first. */
static imp_status rank_layers(conversion *c, layer *l, uint32_t *n_layer)
{
    enum { TEXTS = 24 };
    imp_val n = imp_graph_n(c->g);
    uint32_t few = IMP_MIN(c->fit.n - 1, (uint32_t)TEXTS);
    imp_ml_packing *form = imp_sys_malloc((n + 1) * sizeof *form);
    if (form == NULL) return imp_fail(&c->a->err, IMP_NOMEM, "out of memory");
    for (imp_val v = 0; v <= n; v++) form[v] = (imp_ml_packing){.kind = IMP_ML_HALF};
    imp_ml_tuning t = {.text = c->fit.text + (c->fit.n - few - 1),
                       .n_text = few + 1,
                       .n_held_out = few,
                       .form = form,
                       .pool = c->pool};
    imp_status s = IMP_OK;
    *n_layer = 0;
    app_bar_begin("ranking", n_linear(c->g), "matrices");
    for (imp_val v = 1; v <= n && s == IMP_OK; v++) {
        const imp_node *x = imp_graph_node(c->g, v);
        imp_ml_tuned *one = NULL;
        if (x->op != IMP_OP_LINEAR) continue;
        form[v] = c->opt.pack;
        s = imp_ml_tune(c->g, &t, &one, &c->a->err);
        form[v] = (imp_ml_packing){.kind = IMP_ML_HALF};
        if (s == IMP_OK)
            l[(*n_layer)++] = (layer){v, imp_tensor_n_elem(&imp_graph_node(c->g, x->in[1])->u.weight.part[0]),
                                      fmax(1 - one->held_out.mean_cosine, 0)};
        imp_ml_tuned_free(one);
        app_bar_add(1);
    }
    app_bar_end();
    imp_sys_free(form);
    if (s == IMP_OK) qsort(l, *n_layer, sizeof *l, by_damage);
    return s;
}

/* The first layers that must get a better form so that `excess` should go away, at least `least` of them. */
static uint32_t how_many(const layer *l, uint32_t n, double excess, uint32_t least)
{
    double all = 0, done = 0;
    uint32_t i = 0;
    for (uint32_t k = 0; k < n; k++) all += l[k].damage;
    /* two bits more leave about a tenth of the damage */
    while (i < n && (i < least || (all - 0.9 * done) / all * excess > 0.9)) done += l[i++].damage;
    return i;
}

static void say_step(const conversion *c, const char *where, const imp_ml_distance *d)
{
    char how[16];
    imp_ml_packing_text(&c->opt.pack, how);
    fprintf(stderr, "%-8s %u matrices better, %s: loss %.4f %%, smallest cosine %.6f\n", how, c->n_kept,
            where, 100 * d->loss, d->worst_cosine);
}

/* Write the package as it is compressed now and look at it. */
static imp_status try_package(conversion *c, const conv_bar *lim, bool *ok)
{
    IMP_TRY(write_package(c));
    IMP_TRY(conv_verify(c));
    say_step(c, "package", &c->distance);
    *ok = holds(&c->distance, lim);
    return IMP_OK;
}

/* One base form with a calibration text: the matrices that do most damage get better forms, until the limits hold. */
static imp_status search_mix(conversion *c, const conv_bar *lim, layer *l, bool *ok)
{
    enum { TRIES = 6 };
    uint32_t n = 0;
    double base = 1;
    c->n_kept = 0;
    *ok = false;
    for (int t = 0; t < TRIES && !*ok; t++) {
        IMP_TRY(make_forms(c));
        imp_ml_packing up = better(c->opt.pack);
        for (uint32_t i = 0; i < c->n_kept; i++) c->form[l[i].v] = up;
        IMP_TRY(tune(c));
        const imp_ml_distance *d = &c->tuned->held_out;
        say_step(c, "held-out lines", d);
        if (holds(d, lim)) {
            IMP_TRY(try_package(c, lim, ok));
            if (*ok) break;
            d = &c->distance;
        }
        if (t == 0) {
            IMP_TRY(rank_layers(c, l, &n));
            base = excess(d, lim);
        } else {
            base *= fmax(1.1, excess(d, lim)); /* more is needed than was predicted */
        }
        if (c->n_kept == n) break; /* all of them: the next form's turn */
        c->n_kept = how_many(l, n, base, c->n_kept + 1 + n / 20);
    }
    return IMP_OK;
}

static imp_status search_form(conversion *c, const conv_bar *lim, layer *l, bool *ok)
{
    if (c->fit.n > 0 && c->opt.pack.kind != IMP_ML_HALF) return search_mix(c, lim, l, ok);
    c->opt.tuned = NULL;
    c->opt.form = NULL;
    c->n_kept = 0;
    return try_package(c, lim, ok);
}

imp_status conv_search(conversion *c)
{
    static const char *const all[] = {"lut2", "lut3", "lut4", "lut6", "int8", "fp16"};
    bool asked = opt_set(&c->a->opt, OPT_COMPRESS), ok = false;
    layer *l = imp_sys_malloc((imp_graph_n(c->g) + 1) * sizeof *l);
    imp_status s = l != NULL ? IMP_OK : imp_fail(&c->a->err, IMP_NOMEM, "out of memory");
    for (size_t i = 0; i < (asked ? 1 : IMP_COUNT(all)) && s == IMP_OK && !ok; i++) {
        if (!asked && !imp_ml_packing_parse(all[i], &c->opt.pack)) continue;
        s = search_form(c, &c->bar, l, &ok);
    }
    imp_sys_free(l);
    if (s != IMP_OK || ok) return s;
    return imp_fail(&c->a->err, IMP_UNSUPPORTED,
                    "no form holds the limits; the last one loses %.4g %% with a smallest cosine of %.6f%s",
                    100 * c->distance.loss, c->distance.worst_cosine,
                    asked ? "; --pure writes the form as it is" : "");
}
