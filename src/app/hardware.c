/* app/hardware.c - the machine's description as JSON and as one line; the ceilings measurement of the commands. */
#include <time.h>

#include "app/app.h"
#include "kern/kern.h"
#include "plan/ceilings.h"
#include "plan/host.h"

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

json_t *app_host_json(const imp_host *h, const imp_ceilings *c)
{
    json_t *list = json_array();
    json_array_append_new(
        list, json_pack("{s:s, s:s, s:o, s:i, s:i, s:i, s:i, s:o, s:o, s:o, s:{s:I, s:I}, s:o, s:b, s:n}",
                        "id", "cpu", "kind", "cpu", "name", app_json_text(h->cpu, strlen(h->cpu)), "packages",
                        (int)h->n_package, "numa_nodes", (int)h->n_numa, "cores", (int)h->n_core, "threads",
                        (int)h->n_pu, "core_kinds", kinds_json(h), "caches", caches_json(h), "isa",
                        isa_json(h->isa), "memory", "total", (json_int_t)h->mem_total, "available",
                        (json_int_t)h->mem_available, "ceilings", ceilings_json(c), "usable", 1, "reason"));
    for (uint32_t i = 0; i < h->n_other; i++) {
        const imp_host_other *o = &h->other[i];
        char id[40];
        snprintf(id, sizeof id, "other%u", i);
        json_array_append_new(list, json_pack("{s:s, s:s, s:o, s:o, s:n, s:b, s:s}", "id", id, "kind",
                                              "other", "name", app_json_text(o->name, strlen(o->name)),
                                              "where", app_json_text(o->where, strlen(o->where)), "ceilings",
                                              "usable", 0, "reason", o->reason));
    }
    return json_pack("{s:s, s:s, s:o}", "os", h->os, "arch", h->arch, "devices", list);
}

imp_status app_measure(app *a, const imp_host *h, uint32_t ms, imp_ceilings *out)
{
    imp_pool *pool = NULL;
    imp_status s = imp_pool_new(app_n_thread(a), &pool);
    if (s != IMP_OK) return imp_fail(&a->err, s, "the measuring threads could not be started");
    s = imp_ceilings_measure(pool, h->llc_bytes, ms, out, &a->err);
    imp_pool_free(pool);
    return s;
}
