/* plan/sim_unit.c - the clock of simulated devices: what the cost model says of each step.
 *
 * Threads: step_ns by the one caller of the device's run. */
#include "plan/sim_unit.h"

#include "plan/cost.h"

enum { MAX_GRAPH = 32 };

typedef struct sim_clock {
    imp_machine machine;
    const imp_graph *graph[MAX_GRAPH]; /* whose cost is known; the oldest gives way */
    imp_cost cost[MAX_GRAPH];
    uint32_t n;
} sim_clock;

static uint64_t step_ns(void *ctx, const imp_graph *g, const imp_batch *b)
{
    sim_clock *c = ctx;
    uint32_t i = 0, have = IMP_MIN(c->n, (uint32_t)MAX_GRAPH);
    while (i < have && c->graph[i] != g) i++;
    if (i == have) {
        i = c->n++ % MAX_GRAPH;
        c->graph[i] = g;
        imp_cost_build(g, IMP_F16, &c->cost[i]);
    }
    imp_cost_shape sh = imp_cost_shape_of(b, imp_graph_n_kv_layer(g) > 0);
    imp_cost_time t;
    imp_cost_predict(&c->cost[i], &c->machine, &sh, &t);
    return (uint64_t)(t.s * 1e9) + 1;
}

imp_status imp_sim_unit_open(const imp_machine *m, uint32_t n_thread, imp_device **out, imp_error *err)
{
    *out = NULL;
    sim_clock *c = imp_sys_calloc(1, sizeof *c);
    if (c == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while opening %s", m->name);
    c->machine = *m;
    imp_device *inner;
    imp_status s = imp_dev_cpu_open(n_thread, &inner, err);
    if (s != IMP_OK) {
        imp_sys_free(c);
        return s;
    }
    imp_sim_clock clock = {.step_ns = step_ns, .free_ctx = imp_sys_free, .ctx = c};
    return imp_dev_sim_open(inner, m->name, &clock, out, err);
}
