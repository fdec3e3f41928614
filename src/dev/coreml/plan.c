/* dev/coreml/plan.c - where Core ML plans to run each op (MLComputePlan, macOS 14.4), so that receipts need not guess.
 *
 * Always:  what is not said stays unknown. It is Core ML's plan, not a measurement: receipts call it that.
 * Threads: the completion handler comes on a thread of Core ML's; the state that it fills outlives a wait that gave up. */
#include <stdatomic.h>

#include "base/thread.h"
#include "dev/coreml/runtime.h"

enum { WAIT_MS = 60000 };

typedef struct waiting {
    const ml_objc *o;
    imp_mutex *lock;
    imp_cond *done;
    bool came;
    ml_id plan;     /* retained */
    atomic_int ref; /* the waiter and the handler */
} waiting;

static void waiting_unref(waiting *w)
{
    if (atomic_fetch_sub(&w->ref, 1) != 1) return;
    ml_release(w->o, w->plan);
    imp_cond_free(w->done);
    imp_mutex_free(w->lock);
    imp_sys_free(w);
}

static void on_plan(ml_block *b, ml_id plan, ml_id error)
{
    waiting *w = b->ctx;
    (void)error;
    imp_mutex_lock(w->lock);
    w->plan = plan != NULL ? ml_retain(w->o, plan) : NULL;
    w->came = true;
    imp_cond_broadcast(w->done);
    imp_mutex_unlock(w->lock);
    waiting_unref(w);
}

/* The plan, autoreleased; NULL: none came. */
static ml_id ask(const ml_objc *o, const char *compiled, ml_id config)
{
    waiting *w = imp_sys_calloc(1, sizeof *w);
    if (w == NULL) return NULL;
    w->o = o;
    atomic_init(&w->ref, 2);
    if (imp_mutex_new(&w->lock) != IMP_OK || imp_cond_new(&w->done) != IMP_OK) {
        atomic_store(&w->ref, 1);
        waiting_unref(w);
        return NULL;
    }
    ml_block b = ml_block_of(o, (void (*)(void))on_plan, w);
    ML_SEND(o, void, (ml_id, ml_sel, ml_id, ml_id, ml_block *), o->get_class("MLComputePlan"),
            "loadContentsOfURL:configuration:completionHandler:", ml_url(o, compiled), config, &b);
    uint64_t until = imp_now_ns() + (uint64_t)WAIT_MS * 1000000u;
    imp_mutex_lock(w->lock);
    while (!w->came && imp_now_ns() < until) (void)imp_cond_wait_ms(w->done, w->lock, 1000);
    ml_id plan = w->plan != NULL ? ML_GET(o, ml_id, ml_retain(o, w->plan), "autorelease") : NULL;
    imp_mutex_unlock(w->lock);
    waiting_unref(w);
    return plan;
}

static int unit_of(const ml_objc *o, ml_id device)
{
    static const char *const name[] = {"MLNeuralEngineComputeDevice", "MLGPUComputeDevice",
                                       "MLCPUComputeDevice"};
    for (int k = 0; k < 3; k++)
        if (ml_is_kind(o, device, name[k])) return k;
    return -1;
}

static ml_id get(const ml_objc *o, ml_id x, const char *what)
{
    return ml_responds(o, x, what) ? ML_GET(o, ml_id, x, what) : NULL;
}

void ml_plan_read(const ml_runtime *r, const char *compiled, const char *function, ml_id config,
                  ml_where *out)
{
    const ml_objc *o = &r->objc;
    *out = (ml_where){0};
    if (!ml_responds(o, o->get_class("MLComputePlan"), "loadContentsOfURL:configuration:completionHandler:"))
        return;
    ml_id plan = ask(o, compiled, config);
    ml_id program = get(o, get(o, plan, "modelStructure"), "program");
    ml_id ops = get(o, get(o, ml_for_key(o, get(o, program, "functions"), function), "block"), "operations");
    bool costs = ml_responds(o, plan, "estimatedCostOfMLProgramOperation:");
    double sum = 0;
    for (uint64_t i = 0, n = ml_count(o, ops); i < n; i++) {
        ml_id op = ml_at(o, ops, i);
        ml_id use =
            ML_SEND(o, ml_id, (ml_id, ml_sel, ml_id), plan, "computeDeviceUsageForMLProgramOperation:", op);
        int unit = unit_of(o, get(o, use, "preferredComputeDevice")); /* constants have none */
        if (unit < 0) continue;
        out->n_op[unit]++;
        out->known = 1;
        ml_id cost =
            costs ? ML_SEND(o, ml_id, (ml_id, ml_sel, ml_id), plan, "estimatedCostOfMLProgramOperation:", op)
                  : NULL;
        double w = cost != NULL ? ML_GET(o, double, cost, "weight") : 0;
        if (!(w > 0 && w < 1e9)) continue;
        out->cost[unit] += w;
        sum += w;
    }
    for (int k = 0; k < 3; k++) out->cost[k] = sum > 0 ? out->cost[k] / sum : 0;
    if (out->known != 0 && sum > 0) out->known = 2;
}
