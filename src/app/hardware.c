/* app/hardware.c - the machine's description as JSON and as one line; the ceilings measurement of the commands. */
#include <time.h>

#include "app/app.h"
#include "dev/dev.h"
#include "kern/kern.h"
#include "plan/ceilings.h"
#include "plan/host.h"
#include "plan/place.h"

void app_isa_text(uint64_t isa, const char *sep, char *out, size_t cap)
{
    size_t n = 0;
    out[0] = 0;
    for (unsigned i = 0; i < 64; i++) {
        const char *name = (isa >> i) & 1 ? imp_cpu_bit_name(i) : NULL;
        if (!name || n + strlen(name) + strlen(sep) + 1 > cap) continue;
        n += (size_t)snprintf(out + n, cap - n, "%s%s", n ? sep : "", name);
    }
}

void app_host_line(const imp_host *h, char *out, size_t cap)
{
    char mem[32], isa[200];
    app_isa_text(h->isa, " ", isa, sizeof isa);
    snprintf(out, cap, "%s, %u core%s, %s memory (%s)", h->cpu, h->n_core, h->n_core == 1 ? "" : "s",
             app_size_text(h->mem_total, mem), isa[0] ? isa : "baseline instructions");
}

static json_t *isa_json(uint64_t isa)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < 64; i++)
        if (((isa >> i) & 1) && imp_cpu_bit_name(i))
            json_array_append_new(list, json_string(imp_cpu_bit_name(i)));
    return list;
}

static json_t *caches_json(const imp_host *h)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < h->n_cache; i++) {
        const imp_host_cache *c = &h->cache[i];
        const char *kind = c->kind == 'd' ? "data" : c->kind == 'i' ? "instructions" : "unified";
        json_array_append_new(list,
                              json_pack("{s:i, s:s, s:i, s:I, s:i, s:i}", "level", (int)c->level, "kind",
                                        kind, "count", (int)c->n, "bytes", (json_int_t)c->bytes,
                                        "threads_sharing", (int)c->n_pu, "line_bytes", (int)c->line_bytes));
    }
    return list;
}

static json_t *kinds_json(const imp_host *h)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < h->n_kind; i++) {
        const imp_host_kind *k = &h->kind[i];
        json_array_append_new(list,
                              json_pack("{s:o, s:i, s:o}", "name",
                                        k->name[0] ? app_json_text(k->name, strlen(k->name)) : json_null(),
                                        "cores", (int)k->n_core, "efficiency",
                                        k->efficiency >= 0 ? json_integer(k->efficiency) : json_null()));
    }
    return list;
}

static json_t *ceilings_json(const imp_ceilings *c)
{
    if (!c) return json_null();
    return json_pack("{s:o, s:o, s:o, s:i, s:s, s:I, s:I, s:I}", "read_gb_s",
                     app_json_round(c->read_bytes_s * 1e-9, 4), "int8_gop_s",
                     app_json_round(c->int8_op_s * 1e-9, 4), "f32_gflop_s",
                     app_json_round(c->f32_flop_s * 1e-9, 4), "threads", (int)c->n_thread, "isa", c->isa,
                     "buffer_bytes", (json_int_t)c->buffer_bytes, "measured_at", (json_int_t)c->measured_at,
                     "age_s", (json_int_t)IMP_MAX(0, (int64_t)time(NULL) - c->measured_at));
}

/* ---- what a unit runs ------------------------------------------------------------------------------- */

/* Does the device multiply weights of this type? NULL: yes; else why not. */
static const char *refuses_type(const imp_device *d, imp_dtype t)
{
    enum { N = 256 };
    static const uint8_t none[1];
    imp_tensor w = {.dtype = t, .n_dim = 2, .dim = {N, N, 1, 1}, .data = none};
    imp_graph *g = imp_graph_new();
    const char *why = g ? NULL : "out of memory";
    imp_error err;
    if (g) {
        imp_val m = imp_g_weight(g, "w", &w);
        imp_g_output(g, imp_g_gather(g, imp_g_linear(g, imp_g_embed(g, m, IMP_BY_TOKEN, 0), m, 0)));
        if (imp_graph_finish(g, &err) != IMP_OK) why = "it is no weight type";
        for (imp_val v = 1; !why && v <= imp_graph_n(g); v++) why = d->ops->refuses(d, g, v);
    }
    imp_graph_free(g);
    return why;
}

void app_unit_open(app_unit *u, const char *kind, uint32_t n_thread)
{
    *u = (app_unit){0};
    imp_error err = {0};
    imp_device *d;
    if (imp_dev_open(kind, n_thread, &d, &err) != IMP_OK) {
        snprintf(u->why, sizeof u->why, "%.*s", (int)sizeof u->why - 1, err.text);
        return;
    }
    u->usable = true;
    for (imp_dtype t = 0; t < IMP_AFFINE; t++) {
        const imp_dtype_info *i = imp_dtype_get(t);
        if (!i->to_f32 || (i->block_elem == 1 && t != IMP_F32 && t != IMP_F16 && t != IMP_BF16)) continue;
        uint64_t *set = refuses_type(d, t) ? &u->refused : &u->runs;
        *set |= 1ull << t;
    }
    d->ops->close(d);
}

void app_types_text(uint64_t types, char *out, size_t cap)
{
    size_t n = 0;
    out[0] = 0;
    for (imp_dtype t = 0; t < IMP_AFFINE; t++) {
        const char *name = (types >> t & 1) ? imp_dtype_get(t)->name : NULL;
        if (name && n + strlen(name) + 2 < cap)
            n += (size_t)snprintf(out + n, cap - n, "%s%s", n ? " " : "", name);
    }
}

static json_t *types_json(uint64_t types)
{
    json_t *list = json_array();
    for (imp_dtype t = 0; t < IMP_AFFINE; t++)
        if (types >> t & 1) json_array_append_new(list, json_string(imp_dtype_get(t)->name));
    return list;
}

/* "usable", "reason", "runs" and "refuses" of a unit that a driver of ours was tried on. */
static void add_use(json_t *o, const app_unit *u)
{
    json_object_set_new(o, "usable", json_boolean(u->usable));
    json_object_set_new(o, "reason", u->usable ? json_null() : app_json_text(u->why, strlen(u->why)));
    json_object_set_new(o, "runs", types_json(u->runs));
    json_object_set_new(o, "refuses", types_json(u->refused));
}

const char *app_device_name(size_t i)
{
    static const char *const name[APP_DEVICES] = {"cpu0",  "cuda0", "cuda1", "cuda2", "cuda3",
                                                  "cuda4", "cuda5", "cuda6", "cuda7", "mlx0"};
    return i < APP_DEVICES ? name[i] : NULL;
}

bool app_device_asked(const char *asked, const char *name)
{
    if (!asked || !strcmp(asked, "auto")) return true;
    size_t kind = strcspn(name, "0123456789");
    for (const char *p = asked; *p;) {
        size_t n = strcspn(p, ",");
        if (!strncmp(p, name, n) && (name[n] == '\0' || (n == kind && !strcmp(name + n, "0")))) return true;
        p += n + (p[n] == ',');
    }
    return false;
}

static json_t *nvidia_json(const imp_host *h, uint32_t i)
{
    const imp_nvidia_gpu *g = &h->nvidia[i];
    char id[24], capability[24];
    app_unit u;
    snprintf(id, sizeof id, "cuda%u", i);
    app_unit_open(&u, id, 1);
    snprintf(capability, sizeof capability, "%d.%d", g->major, g->minor);
    json_t *o = json_pack(
        "{s:s, s:s, s:o, s:s, s:o, s:s, s:{s:I, s:I}, s:{s:i, s:i, s:i, s:i}, s:o, s:b, s:n}", "id", id,
        "kind", "gpu", "name", app_json_text(g->name, strlen(g->name)), "where", g->pci, "driver",
        app_json_text(h->nvidia_driver, strlen(h->nvidia_driver)), "compute_capability", capability, "memory",
        "total", (json_int_t)g->mem_total, "available", (json_int_t)g->mem_free, "pcie", "generation",
        (int)g->pcie_gen, "width", (int)g->pcie_width, "generation_max", (int)g->pcie_gen_max, "width_max",
        (int)g->width_max, "power_limit_w", g->watt_limit > 0 ? json_real(g->watt_limit) : json_null(), "mig",
        (int)g->mig, "ceilings");
    if (o) add_use(o, &u);
    return o;
}

static void apple_json(json_t *list, const imp_host *h)
{
    const imp_apple *a = &h->apple;
    if (!a->chip[0]) return;
    app_unit u;
    app_unit_open(&u, "mlx", 0);
    json_t *gpu = json_pack("{s:s, s:s, s:s, s:i, s:s, s:n}", "id", "mlx0", "kind", "gpu", "name", a->chip,
                            "cores", (int)a->n_gpu_core, "os", a->os, "ceilings");
    if (gpu) add_use(gpu, &u);
    json_array_append_new(list, gpu);
    if (!a->ane) return;
    app_unit_open(&u, "coreml", 0);
    json_t *ane = json_pack("{s:s, s:s, s:s, s:n}", "id", "coreml0", "kind", "npu", "name",
                            "Apple Neural Engine", "ceilings");
    if (ane) add_use(ane, &u);
    json_array_append_new(list, ane);
}

/* ---- settings, transfers ------------------------------------------------------------------------------ */

int app_choice(const app *a, app_opt_id id)
{
    const char *s = opt_str(&a->opt, id);
    return !s || !strcmp(s, "auto") ? 0 : !strcmp(s, "on") ? 1 : -1;
}

imp_place_rules app_rules(const app *a)
{
    return (imp_place_rules){.embeddings_on_npu = app_choice(a, OPT_NPU_EMBED),
                             .gpu_matrix_units = app_choice(a, OPT_MATRIX_UNITS),
                             .max_npu_model_mb = opt_u32(&a->opt, OPT_NPU_MAX_MB)};
}

static const char *ruled(int v)
{
    return v > 0 ? "on" : v < 0 ? "off" : "as measured";
}

json_t *app_rules_json(const app *a)
{
    imp_place_rules r = app_rules(a);
    return json_pack("{s:s, s:o, s:s}", "embeddings_on_npu", ruled(r.embeddings_on_npu), "max_npu_model_mb",
                     r.max_npu_model_mb ? json_integer(r.max_npu_model_mb) : json_string("as measured"),
                     "gpu_matrix_units", ruled(r.gpu_matrix_units));
}

void app_rules_print(const app *a)
{
    imp_place_rules r = app_rules(a);
    char mb[32] = "as measured";
    if (r.max_npu_model_mb) snprintf(mb, sizeof mb, "%u", r.max_npu_model_mb);
    printf("  settings    embeddings_on_npu: %s, max_npu_model_mb: %s, gpu_matrix_units: %s\n",
           ruled(r.embeddings_on_npu), mb, ruled(r.gpu_matrix_units));
}

/* GB/s of large blocks and microseconds that each block costs beside; false: not measured on both. */
static bool transfer(const imp_machine *from, const imp_machine *to, double *gb_s, double *block_us)
{
    bool measured;
    double all = imp_machine_transfer_s(from, to, 1e9, 0, &measured);
    *gb_s = 1 / all;
    *block_us = imp_machine_transfer_s(from, to, 0, 1, &measured) * 1e6;
    return measured && strcmp(from->name, to->name) != 0;
}

json_t *app_transfers_json(const imp_machine *m, size_t n)
{
    json_t *list = json_array();
    double gb_s, us;
    for (size_t i = 0; i < n * n; i++)
        if (transfer(&m[i / n], &m[i % n], &gb_s, &us))
            json_array_append_new(list, json_pack("{s:s, s:s, s:o, s:o}", "from", m[i / n].name, "to",
                                                  m[i % n].name, "gb_s", app_json_round(gb_s, 4), "block_us",
                                                  app_json_round(us, 4)));
    return list;
}

void app_transfers_print(const imp_machine *m, size_t n)
{
    double gb_s, us;
    for (size_t i = 0; i < n * n; i++)
        if (transfer(&m[i / n], &m[i % n], &gb_s, &us))
            printf("  hand-over   %s > %s: %.2f GB/s and %.1f us a block\n", m[i / n].name, m[i % n].name,
                   gb_s, us);
}

json_t *app_host_json(const imp_host *h, const imp_ceilings *c)
{
    json_t *list = json_array();
    app_unit cpu;
    app_unit_open(&cpu, "cpu", 1);
    json_t *o = json_pack("{s:s, s:s, s:o, s:i, s:i, s:i, s:i, s:o, s:o, s:o, s:{s:I, s:I}, s:o}", "id",
                          "cpu", "kind", "cpu", "name", app_json_text(h->cpu, strlen(h->cpu)), "packages",
                          (int)h->n_package, "numa_nodes", (int)h->n_numa, "cores", (int)h->n_core, "threads",
                          (int)h->n_pu, "core_kinds", kinds_json(h), "caches", caches_json(h), "isa",
                          isa_json(h->isa), "memory", "total", (json_int_t)h->mem_total, "available",
                          (json_int_t)h->mem_available, "ceilings", ceilings_json(c));
    if (o) add_use(o, &cpu);
    json_array_append_new(list, o);
    for (uint32_t i = 0; i < h->n_nvidia; i++) json_array_append_new(list, nvidia_json(h, i));
    apple_json(list, h);
    for (uint32_t i = 0; i < h->n_other; i++) {
        const imp_pci_unit *x = &h->other[i];
        char id[40];
        snprintf(id, sizeof id, "other%u", i);
        json_array_append_new(list, json_pack("{s:s, s:s, s:o, s:o, s:n, s:b, s:s}", "id", id, "kind",
                                              x->kind, "name", app_json_text(x->name, strlen(x->name)),
                                              "where", app_json_text(x->where, strlen(x->where)), "ceilings",
                                              "usable", 0, "reason", x->reason));
    }
    return json_pack("{s:s, s:s, s:o}", "os", h->os, "arch", h->arch, "devices", list);
}

imp_status app_measure(app *a, const imp_host *h, uint32_t ms, imp_ceilings *out)
{
    imp_pool *pool = NULL;
    imp_status s = imp_pool_new(app_n_thread(a), &pool);
    if (s != IMP_OK) return imp_fail(&a->err, s, "the measuring threads could not be started");
    s = imp_ceilings_measure(pool, h->llc_bytes, ms, UINT64_MAX, out, &a->err);
    imp_pool_free(pool);
    return s;
}
