/* dev/experts/experts.c - a mixture of experts on two devices; see experts.h.
 *
 * Place:   behind dev.h; drives two devices through theirs.
 * Idea:    the graph without its mixtures runs on the first; where one stood it calls back (ops.outside), and the second runs
 *          that mixture alone, EXPERT_ROWS rows at a time, because every mixture has scratch of its own.
 * Memory:  what the experts take is counted as mapped when the first device has memory of its own: it fills that, and they
 *          lie in the machine's.
 * Threads: as any device; the second is called by the thread that runs the first's node. */
#include "dev/experts/experts.h"
#include "dev/check.h"

#include <stdio.h>

enum { EXPERT_ROWS = 64 };

typedef struct experts_device {
    imp_device base;
    imp_device_ops ops; /* what the first offers */
    imp_device *first, *experts;
} experts_device;

typedef struct experts_exec {
    imp_exec base;
    imp_graph *graph; /* without mixtures; owned; NULL: there were none */
    imp_exec *first;
    uint32_t n_moe;
    imp_graph **moe_graph; /* [n_moe] owned */
    imp_exec **moe;        /* [n_moe] */
    float *rows;           /* [EXPERT_ROWS][widest input] */
    int32_t zero[EXPERT_ROWS], pos[EXPERT_ROWS];
    uint32_t row[EXPERT_ROWS]; /* 0, 1, .. */
} experts_exec;

static experts_device *device_of(const imp_exec *x)
{
    return (experts_device *)x->dev;
}

static imp_limits moe_limits(void)
{
    return (imp_limits){.max_tok = EXPERT_ROWS,
                        .max_seq = 1,
                        .max_out = EXPERT_ROWS,
                        .max_ctx = EXPERT_ROWS,
                        .kv_dtype = IMP_F16};
}

/* ---- plan and compile ------------------------------------------------------------------------------------ */

static const char *experts_refuses(const imp_device *base, const imp_graph *g, imp_val v)
{
    const experts_device *d = (const experts_device *)base;
    const imp_device *by = imp_graph_node(g, v)->op == IMP_OP_MOE ? d->experts : d->first;
    return by->ops->refuses(by, g, v);
}

static imp_status plan_moe(experts_device *d, const imp_graph *g, uint32_t i, imp_dev_memory *out,
                           imp_error *err)
{
    imp_graph *moe;
    imp_dev_memory m;
    imp_limits lim = moe_limits();
    IMP_TRY(imp_graph_experts(g, i, &moe, err));
    imp_status s = d->experts->ops->plan(d->experts, moe, &lim, &m, err);
    if (d->ops.mem_free != NULL) {
        out->mapped += m.weights + m.mapped + m.scratch + m.other + imp_graph_bytes(moe);
    } else {
        out->weights += m.weights;
        out->mapped += m.mapped;
        out->scratch += m.scratch;
        out->other += m.other + imp_graph_bytes(moe);
    }
    imp_graph_free(moe);
    return s;
}

static imp_status experts_plan(imp_device *base, const imp_graph *g, const imp_limits *lim,
                               imp_dev_memory *out, imp_error *err)
{
    experts_device *d = (experts_device *)base;
    uint32_t n = imp_graph_n_experts(g);
    imp_graph *rest;
    if (n == 0) return d->first->ops->plan(d->first, g, lim, out, err);
    *out = (imp_dev_memory){0};
    IMP_TRY(imp_graph_without_experts(g, &rest, err));
    imp_status s = d->first->ops->plan(d->first, rest, lim, out, err);
    out->other += imp_graph_bytes(rest) + sizeof(experts_exec);
    imp_graph_free(rest);
    for (uint32_t i = 0; i < n && s == IMP_OK; i++) s = plan_moe(d, g, i, out, err);
    return s;
}

static void experts_exec_free(imp_exec *base)
{
    experts_exec *x = (experts_exec *)base;
    if (x == NULL) return;
    if (x->first != NULL) x->first->dev->ops->exec_free(x->first);
    for (uint32_t i = 0; i < x->n_moe; i++) {
        if (x->moe[i] != NULL) x->moe[i]->dev->ops->exec_free(x->moe[i]);
        imp_graph_free(x->moe_graph[i]);
    }
    imp_graph_free(x->graph);
    imp_sys_free(x->moe);
    imp_sys_free(x->moe_graph);
    imp_sys_free(x->rows);
    imp_sys_free(x);
}

/* Rows a, b side by side to the second device, what it makes of them to out. */
static imp_status run_moe(void *ctx, uint32_t index, uint32_t n_row, const float *a, uint64_t lda,
                          const float *b, uint64_t ldb, float *out, uint64_t ldo, imp_error *err)
{
    experts_exec *x = ctx;
    const imp_graph *g = x->moe_graph[index];
    const imp_node *moe = imp_graph_node(g, imp_graph_node(g, imp_graph_output(g))->in[0]);
    uint64_t n_b = moe->u.moe.n_expert, n_a = imp_graph_node(g, moe->in[0])->width;
    for (uint32_t r0 = 0; r0 < n_row; r0 += EXPERT_ROWS) {
        uint32_t m = IMP_MIN(n_row - r0, (uint32_t)EXPERT_ROWS);
        for (uint32_t r = 0; r < m; r++) {
            memcpy(x->rows + r * (n_a + n_b), a + (r0 + r) * lda, n_a * sizeof *a);
            memcpy(x->rows + r * (n_a + n_b) + n_a, b + (r0 + r) * ldb, n_b * sizeof *b);
        }
        imp_batch_seq seq = {.n_tok = m};
        imp_batch batch = {.n_tok = m,
                           .n_seq = 1,
                           .n_out = m,
                           .token = x->zero,
                           .pos = x->pos,
                           .seq = &seq,
                           .out_row = x->row,
                           .input = x->rows};
        const float *y;
        IMP_TRY(x->moe[index]->dev->ops->run(x->moe[index], &batch, &y, err));
        for (uint32_t r = 0; r < m; r++)
            memcpy(out + (r0 + r) * ldo, y + r * moe->width, moe->width * sizeof *y);
    }
    return IMP_OK;
}

static imp_status compile_parts(experts_exec *x, const imp_graph *g, const imp_limits *lim, imp_error *err)
{
    experts_device *d = device_of(&x->base);
    imp_limits moe_lim = moe_limits();
    uint64_t widest = 0;
    IMP_TRY(imp_graph_without_experts(g, &x->graph, err));
    IMP_TRY(d->first->ops->compile(d->first, x->graph, lim, &x->first, err));
    x->moe = imp_sys_calloc(x->n_moe, sizeof *x->moe);
    x->moe_graph = imp_sys_calloc(x->n_moe, sizeof(imp_graph *));
    if (x->moe == NULL || x->moe_graph == NULL) {
        x->n_moe = 0;
        return imp_fail(err, IMP_NOMEM, "out of memory while compiling for %s", x->base.dev->name);
    }
    for (uint32_t i = 0; i < x->n_moe; i++) {
        IMP_TRY(imp_graph_experts(g, i, &x->moe_graph[i], err));
        widest = IMP_MAX(widest, imp_graph_node(x->moe_graph[i], 1)->width);
        IMP_TRY(d->experts->ops->compile(d->experts, x->moe_graph[i], &moe_lim, &x->moe[i], err));
    }
    x->rows = imp_sys_malloc(EXPERT_ROWS * widest * sizeof *x->rows);
    if (x->rows == NULL)
        return imp_fail(err, IMP_NOMEM, "out of memory while compiling for %s", x->base.dev->name);
    d->first->ops->outside(x->first, &(imp_outside){run_moe, x});
    return IMP_OK;
}

static imp_status experts_compile(imp_device *base, const imp_graph *g, const imp_limits *lim, imp_exec **out,
                                  imp_error *err)
{
    experts_device *d = (experts_device *)base;
    *out = NULL;
    experts_exec *x = imp_sys_calloc(1, sizeof *x);
    if (x == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while compiling for %s", base->name);
    x->base.dev = base;
    for (uint32_t i = 0; i < EXPERT_ROWS; i++) {
        x->row[i] = i;
        x->pos[i] = (int32_t)i;
    }
    uint32_t n = imp_graph_n_experts(g);
    imp_status s;
    if (n == 0) {
        s = d->first->ops->compile(d->first, g, lim, &x->first, err);
    } else {
        x->n_moe = n;
        s = compile_parts(x, g, lim, err);
    }
    if (s != IMP_OK) {
        if (x->moe == NULL || x->moe_graph == NULL) x->n_moe = 0;
        experts_exec_free(&x->base);
        return s;
    }
    *out = &x->base;
    return IMP_OK;
}

/* ---- the first device's ------------------------------------------------------------------------------------ */

static imp_status experts_run(imp_exec *base, const imp_batch *b, const float **out, imp_error *err)
{
    imp_exec *x = ((experts_exec *)base)->first;
    return x->dev->ops->run(x, b, out, err);
}
static void experts_kv_copy(imp_exec *base, uint32_t dst, uint32_t src)
{
    imp_exec *x = ((experts_exec *)base)->first;
    x->dev->ops->kv_copy(x, dst, src);
}
static imp_status experts_kv_export(imp_exec *base, uint32_t block, void *host, imp_error *err)
{
    imp_exec *x = ((experts_exec *)base)->first;
    return x->dev->ops->kv_export(x, block, host, err);
}
static imp_status experts_kv_import(imp_exec *base, uint32_t block, const void *host, imp_error *err)
{
    imp_exec *x = ((experts_exec *)base)->first;
    return x->dev->ops->kv_import(x, block, host, err);
}
static uint64_t experts_mem_free(const imp_device *base)
{
    const imp_device *first = ((const experts_device *)base)->first;
    return first->ops->mem_free(first);
}

static void experts_ran_on(const imp_exec *base, char *text, size_t cap)
{
    const experts_exec *x = (const experts_exec *)base;
    const experts_device *d = device_of(base);
    if (x->n_moe == 0)
        (void)snprintf(text, cap, "whole on %s", d->first->name);
    else
        (void)snprintf(text, cap, "experts of %u layers on %s, the rest on %s", x->n_moe, d->experts->name,
                       d->first->name);
}

/* ---- open and close ------------------------------------------------------------------------------------------- */

static void experts_close(imp_device *base)
{
    experts_device *d = (experts_device *)base;
    if (d == NULL) return;
    d->first->ops->close(d->first);
    d->experts->ops->close(d->experts);
    imp_sys_free(d);
}

imp_status imp_dev_experts_open(imp_device *first, imp_device *experts, imp_device **out, imp_error *err)
{
    *out = NULL;
    const imp_device_ops *f = first->ops;
    imp_status s = IMP_OK;
    if (f->outside == NULL || f->kv_export == NULL || f->kv_import == NULL)
        s = imp_fail(err, IMP_INVALID, "%s cannot leave a model's experts to another device", first->name);
    else if (experts->ops->state != NULL)
        s = imp_fail(err, IMP_INVALID, "%s cannot take the experts of a model", experts->name);
    experts_device *d = s == IMP_OK ? imp_sys_calloc(1, sizeof *d) : NULL;
    if (s == IMP_OK && d == NULL) s = imp_fail(err, IMP_NOMEM, "out of memory while opening a device");
    if (s != IMP_OK) {
        first->ops->close(first);
        experts->ops->close(experts);
        return s;
    }
    d->first = first;
    d->experts = experts;
    d->ops = (imp_device_ops){.kind = "experts",
                              .refuses = experts_refuses,
                              .plan = experts_plan,
                              .compile = experts_compile,
                              .run = experts_run,
                              .kv_copy = experts_kv_copy,
                              .exec_free = experts_exec_free,
                              .close = experts_close,
                              .kv_export = experts_kv_export,
                              .kv_import = experts_kv_import,
                              .ran_on = experts_ran_on,
                              .mem_free = f->mem_free != NULL ? experts_mem_free : NULL,
                              .same_rows = IMP_MIN(f->same_rows, experts->ops->same_rows)};
    d->base.ops = &d->ops;
    (void)snprintf(d->base.name, sizeof d->base.name, "%.24s+%.24s:experts", first->name, experts->name);
    *out = &d->base;
    return IMP_OK;
}
