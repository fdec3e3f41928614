/* dev/cpu/cpu.c - the CPU device: open, plan, compile, run.
 *
 * Place:   behind dev.h; drives src/kern through the op list that lower.c makes.
 * Idea:    compile takes four pieces of memory: weights (packed or decoded), KV blocks, scratch, and an arena with the
 *          op list. plan makes the same list, reads the same sizes and throws it away.
 * Threads: run and compile of one device may be called from several threads; a lock gives them the pool in turn. */
#include "dev/cpu/cpu.h"
#include "dev/check.h"
#include "dev/group.h"

#include <stdio.h>

/* Multiply-adds below which a step runs on the caller alone: it ends before other threads would have woken up. */
enum { ALONE_WORK = 1 << 21 };
/* Above this many a thread, phases are long: each thread's part is cut into SHARES_LARGE shares, so that one that lost its
 * core for a while is helped out. */
enum { LARGE_WORK = 1 << 27, SHARES_LARGE = 4 };

static const char *cpu_refuses(const imp_device *d, const imp_graph *g, imp_val v)
{
    (void)d;
    const imp_node *n = imp_graph_node(g, v);
    if (n->width > INT32_MAX) return "rows are wider than 2^31 columns";
    if (n->op == IMP_OP_WEIGHT && imp_matmul_select(n->u.weight.part->dtype, n->width) == NULL) {
        return "no CPU kernel multiplies weights of this type";
    }
    return NULL;
}

static void free_exec(cpu_exec *x)
{
    if (x == NULL) return;
    imp_phases_free(x->phases);
    imp_phases_free(x->plain);
    imp_cpu_pack_release(x);
    imp_sys_pages_free(x->kv, x->kv_bytes);
    imp_sys_pages_free(x->scratch, x->scratch_bytes);
    imp_arena_free(x->arena);
    imp_sys_free(x);
}

/* The op list and all sizes; no region yet. */
static imp_status lower(cpu_device *d, const imp_graph *g, const imp_limits *lim, cpu_exec **out,
                        imp_error *err)
{
    *out = NULL;
    IMP_TRY(imp_dev_check_limits(g, lim, err));
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        const char *why = cpu_refuses(&d->base, g, v);
        if (why != NULL) return imp_fail(err, IMP_UNSUPPORTED, "%s: %s", imp_graph_node(g, v)->name, why);
    }
    cpu_exec *x = imp_sys_calloc(1, sizeof *x);
    if (x == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while compiling for the CPU");
    x->base.dev = &d->base;
    x->graph = g;
    x->lim = *lim;
    x->arena = imp_arena_new(1 << 16);
    imp_status s = x->arena == NULL ? imp_fail(err, IMP_NOMEM, "out of memory while compiling for the CPU")
                                    : imp_cpu_lower(d, x, err);
    if (s != IMP_OK) {
        free_exec(x);
        return s;
    }
    *out = x;
    return IMP_OK;
}

static imp_status cpu_plan(imp_device *d, const imp_graph *g, const imp_limits *lim, imp_dev_memory *out,
                           imp_error *err)
{
    cpu_exec *x;
    *out = (imp_dev_memory){0};
    IMP_TRY(lower((cpu_device *)d, g, lim, &x, err));
    bool shared = imp_cpu_pack_exists(g); /* another unit computes on this kind of device: once is enough */
    out->weights = shared ? 0 : x->weights_bytes;
    out->mapped = shared ? 0 : x->mapped_bytes;
    out->kv = x->kv_bytes;
    out->scratch = x->scratch_bytes;
    out->other = sizeof *x + imp_arena_bytes(x->arena);
    free_exec(x);
    return IMP_OK;
}

static void bind_view(const cpu_exec *x, cpu_view *v)
{
    if (v->buf != 0) v->p = x->scratch + x->buf[v->buf].at + v->off;
}

static imp_status cpu_compile(imp_device *base, const imp_graph *g, const imp_limits *lim, imp_exec **out,
                              imp_error *err)
{
    cpu_device *d = (cpu_device *)base;
    cpu_exec *x;
    *out = NULL;
    IMP_TRY(lower(d, g, lim, &x, err));
    if (x->kv_bytes > 0) x->kv = imp_sys_pages(x->kv_bytes);
    x->scratch = imp_sys_pages(x->scratch_bytes);
    uint32_t max_share = CPU_MAX_SHARES * d->n_thread;
    if (imp_phases_new(x->n_phase, max_share, &x->phases) != IMP_OK ||
        (x->n_plain > 0 && imp_phases_new(x->n_plain, max_share, &x->plain) != IMP_OK)) {
        free_exec(x);
        return imp_fail(err, IMP_NOMEM, "out of memory while compiling for the CPU");
    }
    if (x->scratch == NULL || (x->kv == NULL && x->kv_bytes > 0) || imp_cpu_pack_weights(d, x) != IMP_OK) {
        uint64_t mib = (x->weights_bytes + x->kv_bytes + x->scratch_bytes) >> 20;
        free_exec(x);
        return imp_fail(err, IMP_NOMEM, "no memory for weights, KV cache and scratch (%llu MiB together)",
                        (unsigned long long)mib);
    }
    for (uint32_t i = 0; i < x->n_op; i++) {
        cpu_op *op = &x->op[i];
        for (uint32_t k = 0; k < op->n_in; k++) bind_view(x, &op->in[k]);
        bind_view(x, &op->out);
        bind_view(x, &op->q8);
    }
    bind_view(x, &x->out);
    for (imp_val v = 1; x->value != NULL && v <= imp_graph_n(g); v++) bind_view(x, &x->value[v]);
    *out = &x->base;
    return IMP_OK;
}

static void run_share(void *ctx, uint32_t phase, uint32_t share, uint32_t ith)
{
    const cpu_step *s = ctx;
    if (s->x->plain != NULL && !s->lora) phase = s->x->plain_phase[phase];
    for (uint32_t i = s->x->phase_op[phase]; i < s->x->phase_op[phase + 1]; i++) {
        const cpu_op *op = &s->x->op[i];
        if (s->n_row[op->rows] > 0) op->run(s, op, imp_cpu_part(s, op, share), ith);
    }
}

/* Of an encoder's step: as many as have CPU_WIDE_ROWS rows each, a multiple of the threads. */
static uint32_t wide_shares(const cpu_device *d, uint32_t n_row, uint32_t n_share)
{
    uint32_t a_thread = n_row / CPU_WIDE_ROWS / d->n_thread;
    if (a_thread == 0) return n_share;
    return d->n_thread * IMP_MIN(a_thread, (uint32_t)CPU_MAX_SHARES);
}

static imp_status cpu_run(imp_exec *base, const imp_batch *b, const float **out, imp_error *err)
{
    cpu_exec *x = (cpu_exec *)base;
    cpu_device *d = (cpu_device *)base->dev;
    *out = NULL;
    IMP_TRY(imp_dev_check_batch(x->graph, &x->lim, b, err));
    cpu_step s = {.x = x, .b = b, .vec = d->vec, .n_row = {b->n_tok, b->n_out, b->n_seq}, .n_share = 1};
    uint64_t work = 0;
    x->outside_status = IMP_OK;
    if (x->lim.lora_rank > 0) imp_cpu_lora_runs(x, &s);
    bool plain = x->plain != NULL && !s.lora;
    for (int i = 0; i < 3; i++) work += s.n_row[i] * x->row_work[i];
    if (work < d->alone_work || d->n_thread == 1) {
        for (uint32_t i = 0; i < (plain ? x->n_plain : x->n_phase); i++) run_share(&s, i, 0, 0);
    } else {
        s.n_share = d->n_thread * (work / d->n_thread > LARGE_WORK ? SHARES_LARGE : 1);
        if (imp_graph_n_kv_layer(x->graph) == 0) s.n_share = wide_shares(d, b->n_tok, s.n_share);
        imp_mutex_lock(d->lock);
        imp_phases_run(plain ? x->plain : x->phases, d->pool, s.n_share, run_share, &s);
        imp_mutex_unlock(d->lock);
    }
    if (x->group != NULL) IMP_TRY(imp_group_state(x->group, err));
    if (x->outside_status != IMP_OK) {
        *err = x->outside_err;
        return x->outside_status;
    }
    *out = imp_cpu_row(x->out, 0);
    return IMP_OK;
}

static void cpu_kv_copy(imp_exec *base, uint32_t dst, uint32_t src)
{
    cpu_exec *x = (cpu_exec *)base;
    if (x->kv == NULL || dst == src) return;
    memcpy(x->kv + dst * x->kv_block_bytes, x->kv + src * x->kv_block_bytes, x->kv_block_bytes);
}

/* Tile by tile between a block and the host layout; both have the same sizes and order. */
static void move_block(const cpu_exec *x, uint8_t *tile, uint8_t *host, bool out)
{
    imp_dtype t = x->lim.kv_dtype;
    for (uint32_t i = 0; i < imp_graph_n_kv_layer(x->graph); i++) {
        const imp_attn_attr *a = &imp_graph_kv_layer(x->graph, i)->u.attn;
        for (int part = 0; part < 2; part++) {
            uint64_t bytes = imp_kv_tile_bytes(t, (imp_kv_part)part, a->head_dim);
            for (uint32_t h = 0; h < a->n_kv_head; h++, tile += bytes, host += bytes) {
                if (out)
                    imp_kv_to_rows(t, (imp_kv_part)part, a->head_dim, tile, host);
                else
                    imp_kv_from_rows(t, (imp_kv_part)part, a->head_dim, tile, host);
            }
        }
    }
}

static imp_status cpu_kv_export(imp_exec *base, uint32_t block, void *host, imp_error *err)
{
    const cpu_exec *x = (const cpu_exec *)base;
    if (block >= x->lim.n_kv_block) return imp_fail(err, IMP_INVALID, "there is no KV block %u", block);
    move_block(x, x->kv + block * x->kv_block_bytes, host, true);
    return IMP_OK;
}

static imp_status cpu_kv_import(imp_exec *base, uint32_t block, const void *host, imp_error *err)
{
    cpu_exec *x = (cpu_exec *)base;
    if (block >= x->lim.n_kv_block) return imp_fail(err, IMP_INVALID, "there is no KV block %u", block);
    move_block(x, x->kv + block * x->kv_block_bytes, (uint8_t *)(uintptr_t)host, false);
    return IMP_OK;
}

static const float *cpu_value(const imp_exec *base, imp_val v, uint64_t *stride)
{
    const cpu_exec *x = (const cpu_exec *)base;
    if (x->value == NULL || x->value[v].buf == 0) return NULL;
    *stride = x->value[v].stride / sizeof(float);
    return imp_cpu_row(x->value[v], 0);
}

static void cpu_exec_free(imp_exec *x)
{
    free_exec((cpu_exec *)x);
}

static void cpu_close(imp_device *base)
{
    cpu_device *d = (cpu_device *)base;
    if (d == NULL) return;
    imp_pool_free(d->pool);
    imp_mutex_free(d->lock);
    imp_sys_free(d);
}

static imp_status cpu_join(imp_exec *const *member, uint32_t n, uint32_t rank, imp_group *g, imp_error *err)
{
    (void)n;
    cpu_exec *x = (cpu_exec *)member[rank];
    x->group = g;
    x->rank = rank;
    return imp_group_reserve(g, x->graph, &x->lim, err);
}

static void cpu_outside(imp_exec *x, const imp_outside *o)
{
    ((cpu_exec *)x)->outside = *o;
}

static const imp_device_ops CPU_OPS = {
    .kind = "cpu",
    .adapters = true,
    .refuses = cpu_refuses,
    .plan = cpu_plan,
    .compile = cpu_compile,
    .run = cpu_run,
    .kv_copy = cpu_kv_copy,
    .exec_free = cpu_exec_free,
    .close = cpu_close,
    .kv_export = cpu_kv_export,
    .kv_import = cpu_kv_import,
    .value = cpu_value,
    .join = cpu_join,
    .outside = cpu_outside,
    .same_rows = UINT32_MAX,
};

imp_status imp_dev_cpu_open(uint32_t n_thread, imp_device **out, imp_error *err)
{
    *out = NULL;
    cpu_device *d = imp_sys_calloc(1, sizeof *d);
    if (d == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while opening the CPU");
    d->base.ops = &CPU_OPS;
    memcpy(d->base.name, "cpu0", 5);
    d->n_thread = n_thread == 0 ? imp_sys_n_core() : n_thread;
    d->alone_work = ALONE_WORK;
    d->vec = imp_vec_get();
    d->attn = imp_attn_get();
    if (imp_mutex_new(&d->lock) != IMP_OK || imp_pool_new(d->n_thread, &d->pool) != IMP_OK) {
        if (d->lock != NULL) imp_mutex_free(d->lock);
        imp_sys_free(d);
        return imp_fail(err, IMP_NOMEM, "cannot start %u threads; ask for fewer", n_thread);
    }
    *out = &d->base;
    return IMP_OK;
}
