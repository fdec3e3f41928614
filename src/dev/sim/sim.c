/* dev/sim/sim.c - the simulated device: passes every call to the inner device and keeps the virtual clock.
 *
 * Threads: run as for any device; slow, kill and busy_ns from any thread. */
#include "dev/sim/sim.h"

#include <stdatomic.h>
#include <stdio.h>

typedef struct sim_device {
    imp_device base;
    imp_device *inner; /* owned */
    imp_sim_clock clock;
    _Atomic uint64_t slow_milli; /* factor * 1000 */
    atomic_bool dead;
    _Atomic uint64_t busy_ns;
} sim_device;

typedef struct sim_exec {
    imp_exec base;
    imp_exec *inner; /* owned */
    const imp_graph *graph;
    uint64_t last_ns;
} sim_exec;

static const char *sim_refuses(const imp_device *base, const imp_graph *g, imp_val v)
{
    const sim_device *d = (const sim_device *)base;
    const char *why = d->clock.refuses != NULL ? d->clock.refuses(d->clock.ctx, g, v) : NULL;
    return why != NULL ? why : d->inner->ops->refuses(d->inner, g, v);
}

static imp_status sim_plan(imp_device *base, const imp_graph *g, const imp_limits *lim, imp_dev_memory *out,
                           imp_error *err)
{
    sim_device *d = (sim_device *)base;
    IMP_TRY(d->inner->ops->plan(d->inner, g, lim, out, err));
    out->other += sizeof(sim_exec);
    return IMP_OK;
}

static imp_status sim_compile(imp_device *base, const imp_graph *g, const imp_limits *lim, imp_exec **out,
                              imp_error *err)
{
    sim_device *d = (sim_device *)base;
    *out = NULL;
    sim_exec *x = imp_sys_calloc(1, sizeof *x);
    if (x == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while compiling for %s", base->name);
    x->base.dev = base;
    x->graph = g;
    imp_status s = d->inner->ops->compile(d->inner, g, lim, &x->inner, err);
    if (s != IMP_OK) {
        imp_sys_free(x);
        return s;
    }
    *out = &x->base;
    return IMP_OK;
}

static imp_status sim_run(imp_exec *base, const imp_batch *b, const float **out, imp_error *err)
{
    sim_exec *x = (sim_exec *)base;
    sim_device *d = (sim_device *)base->dev;
    *out = NULL;
    if (atomic_load(&d->dead)) return imp_fail(err, IMP_DEVICE, "%s does not answer", base->dev->name);
    IMP_TRY(x->inner->dev->ops->run(x->inner, b, out, err));
    double ns = (double)d->clock.step_ns(d->clock.ctx, x->graph, b);
    x->last_ns = (uint64_t)(ns * (double)atomic_load(&d->slow_milli) * 1e-3);
    atomic_fetch_add(&d->busy_ns, x->last_ns);
    return IMP_OK;
}

static uint64_t sim_last_ns(const imp_exec *x)
{
    return ((const sim_exec *)x)->last_ns;
}

static void sim_kv_copy(imp_exec *base, uint32_t dst, uint32_t src)
{
    sim_exec *x = (sim_exec *)base;
    x->inner->dev->ops->kv_copy(x->inner, dst, src);
}

static imp_status sim_kv_export(imp_exec *base, uint32_t block, void *host, imp_error *err)
{
    sim_exec *x = (sim_exec *)base;
    if (x->inner->dev->ops->kv_export == NULL)
        return imp_fail(err, IMP_UNSUPPORTED, "%s cannot hand its cache over", base->dev->name);
    return x->inner->dev->ops->kv_export(x->inner, block, host, err);
}

static imp_status sim_kv_import(imp_exec *base, uint32_t block, const void *host, imp_error *err)
{
    sim_exec *x = (sim_exec *)base;
    if (x->inner->dev->ops->kv_import == NULL)
        return imp_fail(err, IMP_UNSUPPORTED, "%s cannot take over a cache", base->dev->name);
    return x->inner->dev->ops->kv_import(x->inner, block, host, err);
}

static void sim_exec_free(imp_exec *base)
{
    sim_exec *x = (sim_exec *)base;
    if (x == NULL) return;
    x->inner->dev->ops->exec_free(x->inner);
    imp_sys_free(x);
}

static void sim_close(imp_device *base)
{
    sim_device *d = (sim_device *)base;
    if (d == NULL) return;
    d->inner->ops->close(d->inner);
    if (d->clock.free_ctx != NULL) d->clock.free_ctx(d->clock.ctx);
    imp_sys_free(d);
}

static const imp_device_ops SIM_OPS = {
    .kind = "sim",
    .adapters = true, /* what it wraps is a CPU device */
    .refuses = sim_refuses,
    .plan = sim_plan,
    .compile = sim_compile,
    .run = sim_run,
    .kv_copy = sim_kv_copy,
    .exec_free = sim_exec_free,
    .close = sim_close,
    .kv_export = sim_kv_export,
    .kv_import = sim_kv_import,
    .last_ns = sim_last_ns,
};

imp_status imp_dev_sim_open(imp_device *inner, const char *name, const imp_sim_clock *clock, imp_device **out,
                            imp_error *err)
{
    *out = NULL;
    sim_device *d = imp_sys_calloc(1, sizeof *d);
    if (d == NULL) {
        inner->ops->close(inner);
        if (clock->free_ctx != NULL) clock->free_ctx(clock->ctx);
        return imp_fail(err, IMP_NOMEM, "out of memory while opening %s", name);
    }
    d->base.ops = &SIM_OPS;
    (void)snprintf(d->base.name, sizeof d->base.name, "%s", name);
    d->inner = inner;
    d->clock = *clock;
    atomic_init(&d->slow_milli, 1000);
    *out = &d->base;
    return IMP_OK;
}

bool imp_dev_is_sim(const imp_device *d)
{
    return d->ops == &SIM_OPS;
}

void imp_dev_sim_slow(imp_device *base, double factor)
{
    atomic_store(&((sim_device *)base)->slow_milli, (uint64_t)(factor * 1000));
}

void imp_dev_sim_kill(imp_device *base, bool dead)
{
    atomic_store(&((sim_device *)base)->dead, dead);
}

uint64_t imp_dev_sim_busy_ns(const imp_device *base)
{
    return atomic_load(&((const sim_device *)(uintptr_t)base)->busy_ns);
}
