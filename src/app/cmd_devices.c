/* app/cmd_devices.c - `impetus devices`: what there is, and what was measured just now. */
#include <time.h>

#include "app/app.h"
#include "dev/cpu/pack_cache.h"
#include "plan/ceilings.h"
#include "plan/host.h"
#include "plan/store.h"

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

static void print_use(const app_unit *u)
{
    char types[300];
    if (!u->usable) {
        printf("  %-12s%s\n", "cannot run", u->why);
        return;
    }
    app_types_text(u->runs, types, sizeof types);
    printf("  %-12sgeneration and embeddings; weights in %s\n", "runs", types);
    app_types_text(u->refused, types, sizeof types);
    if (types[0]) printf("  %-12sweights in %s: it has no kernel for them\n", "not", types);
}

static void print_nvidia(const imp_host *h, uint32_t i)
{
    const imp_nvidia_gpu *g = &h->nvidia[i];
    char total[32], available[32], id[24];
    app_unit u;
    snprintf(id, sizeof id, "cuda%u", i);
    app_unit_open(&u, id, 1);
    printf("%s  %s (%s)\n", id, g->name, g->pci);
    printf("  %-12s%s, compute capability %d.%d%s\n", "driver", h->nvidia_driver, g->major, g->minor,
           g->mig ? ", cut into instances (MIG)" : "");
    printf("  %-12s%s, %s available\n", "memory", app_size_text(g->mem_total, total),
           app_size_text(g->mem_free, available));
    printf("  %-12sgeneration %u x%u of %u x%u", "PCIe", g->pcie_gen, g->pcie_width, g->pcie_gen_max,
           g->width_max);
    if (g->watt_limit > 0) printf("; power limit %.0f W", g->watt_limit);
    putchar('\n');
    print_use(&u);
}

static void print_apple(const imp_apple *a)
{
    app_unit u;
    if (!a->chip[0]) return;
    printf("mlx0  %s GPU, %u cores, macOS %s\n", a->chip, a->n_gpu_core, a->os);
    app_unit_open(&u, "mlx", 1);
    print_use(&u);
    if (!a->ane) return;
    puts("coreml0  Apple Neural Engine");
    app_unit_open(&u, "coreml", 1);
    print_use(&u);
}

static void print_human(const imp_host *h, const imp_ceilings *c)
{
    char total[32], available[32], isa[200];
    app_unit cpu;
    app_unit_open(&cpu, "cpu", 1);
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
    print_use(&cpu);
    for (uint32_t i = 0; i < h->n_nvidia; i++) print_nvidia(h, i);
    print_apple(&h->apple);
    for (uint32_t i = 0; i < h->n_other; i++)
        printf("--   %s (%s): not used, %s\n", h->other[i].name, h->other[i].where, h->other[i].reason);
}

static app_result print_profiles(app *a)
{
    json_t *list = json_array();
    bool json = opt_on(&a->opt, OPT_JSON);
    if (!json) puts("published profiles; all that is computed from them is SIMULATED");
    for (size_t i = 0; i < imp_profile_count(); i++) {
        const imp_profile *p = imp_profile_at(i);
        const imp_value *bw = &p->f[IMP_F_BW],
                        *f16 = p->f[IMP_F_F16].v > p->f[IMP_F_F32].v ? &p->f[IMP_F_F16] : &p->f[IMP_F_F32];
        if (!json) {
            printf("  %s/%-6s %-28s %7.0f GB/s (%s) %8.1f TFLOP/s (%s)\n", p->system, p->unit, p->title,
                   bw->v, imp_mark_name(bw->mark), f16->v, imp_mark_name(f16->mark));
            continue;
        }
        json_t *fields = json_object();
        for (int f = 0; f < IMP_N_FIELD; f++) {
            const imp_value *v = &p->f[f];
            if (v->mark == IMP_MARK_NONE) continue;
            json_object_set_new(fields, imp_field_key((imp_field)f),
                                json_pack("{s:f, s:[f, f], s:s, s:s, s:s}", "value", v->v, "range", v->lo,
                                          v->hi, "unit", imp_field_unit((imp_field)f), "from",
                                          imp_mark_name(v->mark), "source", v->source));
        }
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s, s:s, s:o}", "system", p->system, "unit",
                                              p->unit, "title", p->title, "kind", imp_unit_kind_name(p->kind),
                                              "simulated", "SIMULATED", "numbers", fields));
    }
    if (json) return app_print_json(a, json_pack("{s:o}", "profiles", list));
    json_decref(list);
    return APP_OK;
}

/* The devices that were calibrated on this machine as it is, and how long ago. */
static size_t calibrated(app *a, imp_machine m[APP_DEVICES], int64_t age_s[APP_DEVICES])
{
    const char *name;
    imp_store *s;
    imp_error ignored;
    size_t n = 0;
    const char *path = app_db_path(a);
    if (!path || !imp_sys_is_file(path) || imp_store_open(path, &s, &ignored) != IMP_OK) return 0;
    for (size_t i = 0; (name = app_device_name(i)) != NULL; i++) {
        imp_calibration c;
        char print[128];
        imp_store_fingerprint(name, print);
        if (imp_store_get_calibration(s, name, print, &c, &ignored) != IMP_OK) continue;
        age_s[n] = (int64_t)time(NULL) - c.at;
        m[n++] = c.machine;
    }
    imp_store_close(s);
    return n;
}

/* What was measured of a device; the rest is learned from what it runs, or assumed. */
static void print_measured(const imp_machine *m, int64_t age_s)
{
    static const imp_field shown[] = {IMP_F_BW, IMP_F_INT8, IMP_F_F16, IMP_F_F32, IMP_F_LAUNCH};
    printf("  calibration %.1f hours old: %s", (double)age_s / 3600, m->name);
    for (size_t i = 0, n = 0; i < IMP_COUNT(shown); i++)
        if (m->f[shown[i]].mark == IMP_MARK_MEASURED)
            printf("%s %s %.4g %s", n++ ? "," : "", imp_field_key(shown[i]), m->f[shown[i]].v,
                   imp_field_unit(shown[i]));
    putchar('\n');
}

/* What plans start from. */
static void print_known(app *a)
{
    imp_machine m[APP_DEVICES];
    int64_t age_s[APP_DEVICES];
    size_t n = calibrated(a, m, age_s);
    if (n == 0)
        puts("  calibration none of this machine as it is now: 'impetus calibrate' makes predictions good "
             "from the start");
    for (size_t i = 0; i < n; i++) print_measured(&m[i], age_s[i]);
    app_transfers_print(m, n);
    app_rules_print(a);
}

/* Packed weights on disk; json NULL: as text. */
static void print_packs(json_t *json)
{
    imp_pack_cache_info i;
    char held[32], most[32];
    imp_pack_cache_look(&i);
    if (json) {
        json_object_set_new(json, "pack_cache",
                            json_pack("{s:s?, s:I, s:I, s:I}", "dir", i.dir[0] ? i.dir : NULL, "files",
                                      (json_int_t)i.n_file, "bytes", (json_int_t)i.bytes, "max_bytes",
                                      (json_int_t)i.max_bytes));
    } else if (i.dir[0]) {
        printf("  packs       %u file%s of packed weights, %s of %s at most, in %s\n", i.n_file,
               i.n_file == 1 ? "" : "s", app_size_text(i.bytes, held), app_size_text(i.max_bytes, most),
               i.dir);
    } else {
        puts("  packs       packed weights are not kept on disk");
    }
}

static app_result print_json(app *a, const imp_host *h, const imp_ceilings *c)
{
    imp_machine m[APP_DEVICES];
    int64_t age_s[APP_DEVICES];
    size_t n = calibrated(a, m, age_s);
    json_t *doc = app_host_json(h, c);
    if (doc) {
        json_object_set_new(doc, "calibration_age_s",
                            n > 0 ? json_integer((json_int_t)age_s[0]) : json_null());
        json_t *list = json_array();
        for (size_t i = 0; i < n; i++)
            json_array_append_new(
                list, json_pack("{s:s, s:I}", "device", m[i].name, "age_s", (json_int_t)age_s[i]));
        json_object_set_new(doc, "calibrations", list);
        json_object_set_new(doc, "transfers", app_transfers_json(m, n));
        json_object_set_new(doc, "settings", app_rules_json(a));
        print_packs(doc);
    }
    return app_print_json(a, doc);
}

app_result cmd_devices(app *a)
{
    if (opt_on(&a->opt, OPT_PROFILES)) return print_profiles(a);
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
    if (opt_on(&a->opt, OPT_JSON)) return print_json(a, &h, measure ? &c : NULL);
    print_human(&h, measure ? &c : NULL);
    print_known(a);
    print_packs(NULL);
    return APP_OK;
}
