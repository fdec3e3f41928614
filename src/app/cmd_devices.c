/* app/cmd_devices.c - `impetus devices`: what there is, and what was measured just now. */
#include "app/app.h"
#include "plan/ceilings.h"
#include "plan/host.h"

enum { MEASURE_MS = 300 };

static void print_caches(const imp_host *h)
{
    for (uint32_t i = 0; i < h->n_cache; i++) {
        const imp_host_cache *c = &h->cache[i];
        char left[24];
        snprintf(left, sizeof left, "L%u%s", c->level,
                 c->kind == 'i'   ? " instr."
                 : c->kind == 'd' ? " data"
                                  : "");
        printf("  %-12s%u x %.0f KiB", left, c->n, (double)c->bytes / 1024);
        if (c->n_pu > 1) printf(", shared by %u hardware threads", c->n_pu);
        putchar('\n');
    }
}

static void print_human(const imp_host *h, const imp_ceilings *c)
{
    char total[32], available[32], isa[200];
    app_isa_text(h->isa, " ", isa, sizeof isa);
    printf("cpu  %s\n", h->cpu);
    printf("  %-12s%s, %s\n", "system", h->os, h->arch);
    printf("  %-12s%u core%s (%u hardware thread%s), %u package%s, %u NUMA node%s\n", "cores", h->n_core,
           h->n_core == 1 ? "" : "s", h->n_pu, h->n_pu == 1 ? "" : "s", h->n_package,
           h->n_package == 1 ? "" : "s", h->n_numa, h->n_numa == 1 ? "" : "s");
    for (uint32_t i = 0; h->n_kind > 1 && i < h->n_kind; i++)
        printf("  %-12s%u x %s, efficiency %d\n", "kind", h->kind[i].n_core,
               h->kind[i].name[0] ? h->kind[i].name : "core", h->kind[i].efficiency);
    print_caches(h);
    printf("  %-12s%s, %s available\n", "memory", app_size_text(h->mem_total, total),
           app_size_text(h->mem_available, available));
    printf("  %-12s%s\n", "isa", isa[0] ? isa : "baseline only");
    if (c) {
        printf("  measured now with %u thread%s (%s):\n", c->n_thread, c->n_thread == 1 ? "" : "s", c->isa);
        printf("  %-12s%.1f GB/s\n", "read", c->read_bytes_s * 1e-9);
        printf("  %-12s%.0f GOP/s\n", "int8", c->int8_op_s * 1e-9);
        printf("  %-12s%.0f GFLOP/s\n", "f32", c->f32_flop_s * 1e-9);
    }
    for (uint32_t i = 0; i < h->n_other; i++)
        printf("--   %s (%s): not used, %s\n", h->other[i].name, h->other[i].where, h->other[i].reason);
}

app_result cmd_devices(app *a)
{
    imp_host h;
    imp_ceilings c;
    bool measure = !opt_on(&a->opt, OPT_NO_MEASURE);
    if (imp_host_read(&h, &a->err) != IMP_OK) return APP_FAILED;
    if (measure) {
        if (app_term_shows_progress()) fputs("measuring...", stderr);
        imp_status s = app_measure(a, &h, MEASURE_MS, &c);
        if (app_term_shows_progress()) fputs("\r\033[K", stderr);
        if (s != IMP_OK) return APP_FAILED;
    }
    if (opt_on(&a->opt, OPT_JSON)) return app_print_json(a, app_host_json(&h, measure ? &c : NULL));
    print_human(&h, measure ? &c : NULL);
    return APP_OK;
}
