/* dev/tensor/tensor.c - every layer of a model on several equal devices at once; see tensor.h.
 *
 * Place:   behind dev.h; drives other devices through theirs, a thread for each of them.
 * Idea:    compile gives every member its part of the graph and then joins the parts. run gives all of them the same batch;
 *          each leaves its columns of the result in one buffer. A member that fails releases the others, and the step fails
 *          with its reason.
 * KV:      a block holds all members' heads of its tokens; the host layout goes by heads, so that it is put together and taken
 *          apart here. Heads that several members have come from the first and go to all.
 * Threads: plan and compile from any; runs and moves of blocks one at a time. */
#include "dev/tensor/tensor.h"
#include "base/thread.h"
#include "dev/check.h"
#include "dev/group.h"
#include "kern/kv.h"

#include <stdio.h>

typedef struct tensor_device {
    imp_device base;
    imp_device_ops ops; /* what the members offer */
    imp_device *member[IMP_SHARD_MAX];
    uint32_t n;
    bool owned;     /* the members are closed with it */
    imp_pool *pool; /* a thread for each member */
    imp_mutex *lock;
} tensor_device;

typedef struct tensor_part {
    imp_shard shard; /* no graph: the model runs whole on the first member */
    imp_exec *exec;
    uint64_t width;
    imp_status status; /* of the last run */
    imp_error err;
} tensor_part;

typedef struct tensor_exec {
    imp_exec base;
    const imp_graph *graph; /* borrowed */
    imp_limits lim;
    uint32_t n_part;
    tensor_part part[IMP_SHARD_MAX];
    imp_group *group;
    imp_rows rows;
    uint64_t width;
    float *result;  /* [rows][width]; NULL: every member has the whole */
    uint8_t *heads; /* a member's block */
} tensor_exec;

typedef struct tensor_step {
    tensor_exec *x;
    const imp_batch *b;
    const float *whole;
} tensor_step;

static tensor_device *device_of(const imp_exec *x)
{
    return (tensor_device *)x->dev;
}

/* ---- plan and compile ------------------------------------------------------------------------------------ */

static const char *tensor_refuses(const imp_device *base, const imp_graph *g, imp_val v)
{
    const tensor_device *d = (const tensor_device *)base;
    return d->member[0]->ops->refuses(d->member[0], g, v);
}

static bool is_divided(const imp_graph *g)
{
    return imp_graph_n_kv_layer(g) > 0;
}

/* The largest part of a block in the host layout. */
static uint64_t heads_bytes(const imp_graph *g, const imp_limits *lim)
{
    return imp_dev_kv_block_bytes(g, lim->kv_dtype);
}

static uint64_t result_bytes(const imp_graph *g, const imp_limits *lim)
{
    const imp_node *out = imp_graph_node(g, imp_graph_output(g));
    return imp_dev_max_rows(lim, out->rows) * out->width * sizeof(float);
}

static imp_status plan_part(tensor_device *d, const imp_graph *g, const imp_limits *lim, uint32_t i,
                            imp_dev_memory *out, imp_error *err)
{
    imp_shard s;
    imp_dev_memory m;
    IMP_TRY(imp_graph_shard(g, d->n, i, false, &s, err));
    imp_status st = d->member[i]->ops->plan(d->member[i], s.graph, lim, &m, err);
    out->weights += m.weights;
    out->mapped += m.mapped;
    out->kv += m.kv;
    out->scratch += m.scratch;
    out->other += m.other + imp_graph_bytes(s.graph);
    imp_shard_deinit(&s);
    return st;
}

static imp_status tensor_plan(imp_device *base, const imp_graph *g, const imp_limits *lim,
                              imp_dev_memory *out, imp_error *err)
{
    tensor_device *d = (tensor_device *)base;
    *out = (imp_dev_memory){0};
    if (!is_divided(g)) return d->member[0]->ops->plan(d->member[0], g, lim, out, err);
    out->other = sizeof(tensor_exec) + heads_bytes(g, lim) + result_bytes(g, lim);
    imp_status s = IMP_OK;
    for (uint32_t i = 0; i < d->n && s == IMP_OK; i++) s = plan_part(d, g, lim, i, out, err);
    return s;
}

static void tensor_exec_free(imp_exec *base)
{
    tensor_exec *x = (tensor_exec *)base;
    if (x == NULL) return;
    for (uint32_t i = 0; i < x->n_part; i++) {
        if (x->part[i].exec != NULL) x->part[i].exec->dev->ops->exec_free(x->part[i].exec);
        imp_shard_deinit(&x->part[i].shard);
    }
    imp_group_free(x->group);
    imp_sys_free(x->result);
    imp_sys_free(x->heads);
    imp_sys_free(x);
}

static imp_status compile_part(tensor_exec *x, uint32_t i, imp_error *err)
{
    tensor_device *d = device_of(&x->base);
    tensor_part *p = &x->part[x->n_part++];
    IMP_TRY(imp_graph_shard(x->graph, d->n, i, true, &p->shard, err));
    p->width = imp_graph_node(p->shard.graph, imp_graph_output(p->shard.graph))->width;
    IMP_TRY(d->member[i]->ops->compile(d->member[i], p->shard.graph, &x->lim, &p->exec, err));
    if (d->ops.mem_free != NULL)
        imp_shard_drop_slices(&p->shard); /* the weights are in the device's memory */
    return IMP_OK;
}

static imp_status compile_parts(tensor_exec *x, imp_error *err)
{
    tensor_device *d = device_of(&x->base);
    imp_exec *member[IMP_SHARD_MAX];
    x->heads = imp_sys_malloc(heads_bytes(x->graph, &x->lim));
    if (x->heads == NULL || imp_group_new(d->n, &x->group) != IMP_OK)
        return imp_fail(err, IMP_NOMEM, "out of memory while compiling for %s", x->base.dev->name);
    for (uint32_t i = 0; i < d->n; i++) {
        IMP_TRY(compile_part(x, i, err));
        member[i] = x->part[i].exec;
    }
    for (uint32_t i = 0; i < d->n; i++) IMP_TRY(d->member[i]->ops->join(member, d->n, i, x->group, err));
    if (x->part[0].width == x->width) return IMP_OK;
    x->result = imp_sys_malloc(result_bytes(x->graph, &x->lim));
    return x->result != NULL
               ? IMP_OK
               : imp_fail(err, IMP_NOMEM, "out of memory while compiling for %s", x->base.dev->name);
}

static void tensor_ran_on(const imp_exec *base, char *text, size_t cap)
{
    const tensor_exec *x = (const tensor_exec *)base;
    const imp_shard *s = &x->part[0].shard;
    if (x->group == NULL)
        (void)snprintf(text, cap, "whole on %s", x->part[0].exec->dev->name);
    else if (s->n_whole == 0)
        (void)snprintf(text, cap, "each layer divided between %s", base->dev->name);
    else
        (void)snprintf(text, cap, "%u of %u layer parts divided between %s, the others on each", s->n_cut,
                       s->n_cut + s->n_whole, base->dev->name);
}

static imp_status tensor_compile(imp_device *base, const imp_graph *g, const imp_limits *lim, imp_exec **out,
                                 imp_error *err)
{
    tensor_device *d = (tensor_device *)base;
    *out = NULL;
    tensor_exec *x = imp_sys_calloc(1, sizeof *x);
    if (x == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while compiling for %s", base->name);
    const imp_node *result = imp_graph_node(g, imp_graph_output(g));
    x->base.dev = base;
    x->graph = g;
    x->lim = *lim;
    x->rows = result->rows;
    x->width = result->width;
    imp_status s;
    if (is_divided(g)) {
        s = compile_parts(x, err);
    } else {
        x->n_part = 1;
        s = d->member[0]->ops->compile(d->member[0], g, lim, &x->part[0].exec, err);
    }
    if (s != IMP_OK) {
        tensor_exec_free(&x->base);
        return s;
    }
    char text[160];
    tensor_ran_on(&x->base, text, sizeof text);
    if (x->group != NULL) imp_log(IMP_LOG_INFO, "%s: %s", base->name, text);
    *out = &x->base;
    return IMP_OK;
}

/* ---- run ---------------------------------------------------------------------------------------------------- */

static void run_member(void *ctx, uint32_t i, uint32_t n)
{
    (void)n;
    tensor_step *s = ctx;
    tensor_exec *x = s->x;
    tensor_part *p = &x->part[i];
    const float *y;
    p->status = p->exec->dev->ops->run(p->exec, s->b, &y, &p->err);
    if (p->status != IMP_OK) {
        imp_group_give_up(x->group);
        return;
    }
    if (x->result == NULL) {
        if (i == 0) s->whole = y;
        return;
    }
    uint32_t n_row = x->rows == IMP_ROWS_OUT ? s->b->n_out : s->b->n_seq;
    for (uint32_t r = 0; r < n_row; r++)
        memcpy(x->result + r * x->width + p->shard.out_from, y + r * p->width, p->width * sizeof *y);
}

/* The reason of the member that failed by itself; the others were only released. */
static imp_status failure(const tensor_exec *x, imp_error *err)
{
    const tensor_part *first = NULL;
    for (uint32_t i = 0; i < x->n_part; i++) {
        const tensor_part *p = &x->part[i];
        if (p->status != IMP_OK && (first == NULL || first->status == IMP_CANCELLED)) first = p;
    }
    if (first == NULL) return IMP_OK;
    *err = first->err;
    return first->status;
}

static imp_status tensor_run(imp_exec *base, const imp_batch *b, const float **out, imp_error *err)
{
    tensor_exec *x = (tensor_exec *)base;
    tensor_device *d = device_of(base);
    *out = NULL;
    if (x->group == NULL) return x->part[0].exec->dev->ops->run(x->part[0].exec, b, out, err);
    IMP_TRY(imp_dev_check_batch(x->graph, &x->lim, b, err));
    tensor_step s = {.x = x, .b = b, .whole = x->result};
    imp_mutex_lock(d->lock);
    (void)imp_group_start(x->group);
    imp_pool_run(d->pool, run_member, &s);
    imp_mutex_unlock(d->lock);
    IMP_TRY(failure(x, err));
    *out = s.whole;
    return IMP_OK;
}

static uint64_t tensor_last_ns(const imp_exec *base)
{
    const tensor_exec *x = (const tensor_exec *)base;
    uint64_t ns = 0;
    for (uint32_t i = 0; i < x->n_part; i++)
        ns = IMP_MAX(ns, x->part[i].exec->dev->ops->last_ns(x->part[i].exec));
    return ns;
}

/* ---- the cache ------------------------------------------------------------------------------------------------ */

static void tensor_kv_copy(imp_exec *base, uint32_t dst, uint32_t src)
{
    tensor_exec *x = (tensor_exec *)base;
    for (uint32_t i = 0; i < x->n_part; i++) x->part[i].exec->dev->ops->kv_copy(x->part[i].exec, dst, src);
}

/* Between a whole block and member i's heads of it, in the host layout. */
static void move_heads(const tensor_exec *x, uint32_t i, uint8_t *whole, bool out)
{
    uint8_t *mine = x->heads;
    for (uint32_t l = 0; l < imp_graph_n_kv_layer(x->graph); l++) {
        const imp_attn_attr *a = &imp_graph_kv_layer(x->graph, l)->u.attn;
        imp_shard_heads h = x->part[i].shard.heads[l];
        for (int part = 0; part < 2; part++) {
            uint64_t head = imp_kv_tile_bytes(x->lim.kv_dtype, (imp_kv_part)part, a->head_dim);
            uint64_t n = (h.to - h.from) * head;
            if (out)
                memcpy(whole + h.from * head, mine, n);
            else
                memcpy(mine, whole + h.from * head, n);
            mine += n;
            whole += a->n_kv_head * head;
        }
    }
}

static imp_status tensor_kv_export(imp_exec *base, uint32_t block, void *host, imp_error *err)
{
    tensor_exec *x = (tensor_exec *)base;
    for (uint32_t i = x->n_part; i-- > 0;) { /* the first of those that have a head comes last */
        IMP_TRY(x->part[i].exec->dev->ops->kv_export(x->part[i].exec, block, x->heads, err));
        move_heads(x, i, host, true);
    }
    return IMP_OK;
}

static imp_status tensor_kv_import(imp_exec *base, uint32_t block, const void *host, imp_error *err)
{
    tensor_exec *x = (tensor_exec *)base;
    for (uint32_t i = 0; i < x->n_part; i++) {
        move_heads(x, i, (uint8_t *)(uintptr_t)host, false);
        IMP_TRY(x->part[i].exec->dev->ops->kv_import(x->part[i].exec, block, x->heads, err));
    }
    return IMP_OK;
}

/* As much as every member has: they take equal parts. */
static uint64_t tensor_mem_free(const imp_device *base)
{
    const tensor_device *d = (const tensor_device *)base;
    uint64_t least = UINT64_MAX;
    for (uint32_t i = 0; i < d->n; i++) least = IMP_MIN(least, d->member[i]->ops->mem_free(d->member[i]));
    return least * d->n;
}

/* ---- open and close ------------------------------------------------------------------------------------------- */

static void tensor_close(imp_device *base)
{
    tensor_device *d = (tensor_device *)base;
    if (d == NULL) return;
    for (uint32_t i = 0; i < d->n && d->owned; i++) d->member[i]->ops->close(d->member[i]);
    imp_pool_free(d->pool);
    imp_mutex_free(d->lock);
    imp_sys_free(d);
}

static imp_status check_members(imp_device *const *member, uint32_t n, imp_error *err)
{
    if (n < 2 || n > IMP_SHARD_MAX)
        return imp_fail(err, IMP_INVALID, "a model is divided between 2 to %d devices", IMP_SHARD_MAX);
    for (uint32_t i = 0; i < n; i++) {
        if (strcmp(member[i]->ops->kind, member[0]->ops->kind) != 0)
            return imp_fail(
                err, IMP_INVALID,
                "%s and %s are not equal: layers are divided between devices of one kind; %s+%s gives "
                "each whole layers",
                member[0]->name, member[i]->name, member[0]->name, member[i]->name);
        for (uint32_t k = 0; k < i; k++)
            if (member[i]->ops->mem_free != NULL && strcmp(member[i]->name, member[k]->name) == 0)
                return imp_fail(err, IMP_INVALID, "%s stands there twice", member[i]->name);
    }
    if (member[0]->ops->join == NULL)
        return imp_fail(err, IMP_INVALID, "%s cannot share the layers of a model", member[0]->name);
    return IMP_OK;
}

static imp_device_ops ops_of(const imp_device_ops *m)
{
    return (imp_device_ops){.kind = "tensor",
                            .refuses = tensor_refuses,
                            .plan = tensor_plan,
                            .compile = tensor_compile,
                            .run = tensor_run,
                            .kv_copy = tensor_kv_copy,
                            .exec_free = tensor_exec_free,
                            .close = tensor_close,
                            .kv_export = tensor_kv_export,
                            .kv_import = tensor_kv_import,
                            .ran_on = tensor_ran_on,
                            .last_ns = m->last_ns != NULL ? tensor_last_ns : NULL,
                            .mem_free = m->mem_free != NULL ? tensor_mem_free : NULL,
                            .same_rows = m->same_rows};
}

imp_status imp_dev_tensor_open(imp_device *const *member, uint32_t n, bool owned, imp_device **out,
                               imp_error *err)
{
    *out = NULL;
    imp_status s = check_members(member, n, err);
    tensor_device *d = s == IMP_OK ? imp_sys_calloc(1, sizeof *d) : NULL;
    if (s == IMP_OK &&
        (d == NULL || imp_mutex_new(&d->lock) != IMP_OK || imp_pool_new(n, &d->pool) != IMP_OK))
        s = imp_fail(err, IMP_NOMEM, "out of memory while opening a divided device");
    if (s != IMP_OK) {
        for (uint32_t i = 0; i < n && owned; i++) member[i]->ops->close(member[i]);
        if (d != NULL && d->lock != NULL) imp_mutex_free(d->lock);
        imp_sys_free(d);
        return s;
    }
    memcpy(d->member, member, n * sizeof(imp_device *));
    d->n = n;
    d->owned = owned;
    d->ops = ops_of(member[0]->ops);
    d->base.ops = &d->ops;
    for (uint32_t i = 0, at = 0; i < n && at < sizeof d->base.name; i++)
        at += (uint32_t)snprintf(d->base.name + at, sizeof d->base.name - at, "%s%s", i > 0 ? "/" : "",
                                 member[i]->name);
    *out = &d->base;
    return IMP_OK;
}

imp_device *const *imp_dev_tensor_members(const imp_device *base, uint32_t *n)
{
    const tensor_device *d = (const tensor_device *)base;
    *n = 0;
    if (base->ops->run != tensor_run) return NULL;
    *n = d->n;
    return d->member;
}
