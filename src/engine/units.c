/* engine/units.c - the devices an engine works with: opening what was asked for, and what is known of each.
 *
 * Idea:    a list of names, with commas: "cpu", "ref", "sim:PROFILE" (all units of a published profile, on a virtual
 *          clock) or any name dev.c knows; nothing or "auto" opens every real device there is, and where some have memory of
 *          their own, also all of them together with the CPU, for models that none of them holds alone. */
#include <stdio.h>

#include "dev/coreml/coreml.h"
#include "dev/cuda/open.h"
#include "dev/split/split.h"
#include "dev/tensor/tensor.h"
#include "engine/engine_int.h"
#include "plan/calibrate.h"
#include "plan/sim_unit.h"

enum { MEASURE_MS = 2000 }; /* of each unit at start, when the machine has changed */

enum { AUTO_GPUS = IMP_SPLIT_PARTS - 3 }; /* as many as units and parts leave room for */

static imp_unit_kind kind_of(const imp_device *d)
{
    uint32_t n;
    imp_device *const *member = imp_dev_tensor_members(d, &n);
    if (member != NULL) d = member[0];
    if (strcmp(d->ops->kind, "cuda") == 0 || strcmp(d->ops->kind, "mlx") == 0) return IMP_UNIT_GPU;
    return strcmp(d->ops->kind, "coreml") == 0 ? IMP_UNIT_NPU : IMP_UNIT_CPU;
}

imp_place_rules imp_unit_rules(const imp_engine *e)
{
    return (imp_place_rules){.embeddings_on_npu = e->config.embeddings_on_npu,
                             .gpu_matrix_units = e->config.gpu_matrix_units,
                             .max_npu_model_mb = e->config.max_npu_model_mb};
}

/* When the machine is no longer the one that was calibrated: the short measurement, once, and saying so. */
static bool measure_anew(imp_engine *e, imp_device *d, imp_unit_kind kind, const char *print,
                         imp_calibration *c)
{
    const char *why = imp_store_changed(e->store, d->name, print);
    imp_error err;
    bool cut = false;
    if (why == NULL) return false;
    imp_status s = imp_calibrate_short(d, kind, e->config.n_thread, MEASURE_MS, c, &cut, &err);
    if (s == IMP_OK) s = imp_store_put_calibration(e->store, d->name, c, &err);
    if (s == IMP_OK)
        imp_log(IMP_LOG_WARN,
                "%s: %s since it was calibrated; measured anew in short%s, 'impetus calibrate' does it "
                "thoroughly",
                d->name, why, cut ? " and stopped after 2 s, the rest is assumed" : "");
    else
        imp_log(IMP_LOG_WARN, "%s: %s since it was calibrated, and measuring it failed: %s", d->name, why,
                err.text);
    return s == IMP_OK;
}

/* What is known of a device: measured, joined from its parts, or assumed. */
static void describe(imp_engine *e, imp_device *d, imp_machine *out)
{
    imp_machine known[IMP_SPLIT_PARTS];
    char print[128];
    imp_calibration c;
    imp_error ignored;
    uint32_t n_part, n_member;
    imp_device *const *member = imp_dev_tensor_members(d, &n_member);
    if (member != NULL) {
        describe(e, member[0], &known[0]);
        imp_machine_divide(&known[0], n_member, d->name, out);
        return;
    }
    const imp_split_part *part = imp_dev_split_parts(d, &n_part);
    for (uint32_t i = 0; i < n_part; i++) describe(e, part[i].device, &known[i]);
    if (n_part > 0) {
        imp_machine_join(known, n_part, d->name, out);
        return;
    }
    imp_machine_default(kind_of(d), d->name, out);
    imp_store_fingerprint(d->name, print);
    if (e->store != NULL && (imp_store_get_calibration(e->store, d->name, print, &c, &ignored) == IMP_OK ||
                             measure_anew(e, d, out->kind, print, &c)))
        *out = c.machine;
}

/* Takes the device. Two of a kind are told apart by a number behind the name. */
static imp_status add_unit(imp_engine *e, imp_device *d, const imp_machine *m, imp_error *err)
{
    imp_unit *u = e->n_unit < MAX_UNIT ? imp_sys_calloc(1, sizeof *u) : NULL;
    if (u == NULL) {
        d->ops->close(d);
        return e->n_unit == MAX_UNIT ? imp_fail(err, IMP_INVALID, "at most %d devices at once", MAX_UNIT)
                                     : imp_fail(err, IMP_NOMEM, "not enough memory to start");
    }
    u->engine = e;
    u->index = e->n_unit;
    u->device = d;
    for (uint32_t i = 1; m == NULL && imp_unit_find(e, d->name) != NULL; i++)
        (void)snprintf(d->name, sizeof d->name, "%.40s%u", d->ops->kind, i);
    u->only_forced = strcmp(d->ops->kind, "ref") == 0;
    e->unit[e->n_unit++] = u;
    imp_machine base;
    char print[128];
    imp_error ignored;
    imp_store_fingerprint(d->name, print);
    if (m != NULL)
        base = *m;
    else
        describe(e, d, &base);
    imp_place_rules rules = imp_unit_rules(e);
    imp_place_rule_machine(&rules, &base);
    imp_learn_init(&u->learn, &base);
    if (m == NULL && e->store != NULL)
        (void)!imp_store_get_learned(e->store, d->name, print, &u->learn, &ignored);
    if (m == NULL && imp_meter_open(base.kind, d->ops->kind, &u->meter, &ignored) != IMP_OK)
        (void)snprintf(u->why_unmetered, sizeof u->why_unmetered, "%.127s", ignored.text);
    else if (m != NULL)
        (void)snprintf(u->why_unmetered, sizeof u->why_unmetered, "a simulated unit has no meter");
    u->power.meter = u->meter;
    imp_status s = imp_mutex_new(&u->device_lock);
    if (s == IMP_OK) s = imp_cond_new(&u->work);
    return s == IMP_OK ? s : imp_fail(err, s, "not enough memory to start");
}

static imp_status open_sim(imp_engine *e, const char *profile, imp_error *err)
{
    imp_machine m[MAX_UNIT];
    size_t n = imp_profile_machines(profile, m, MAX_UNIT);
    if (n == 0)
        return imp_fail_field(err, IMP_NOT_FOUND, "device",
                              "there is no profile \"%.60s\"; 'impetus devices --profiles' lists them",
                              profile);
    for (size_t i = 0; i < IMP_MIN(n, (size_t)MAX_UNIT); i++) {
        imp_device *d;
        IMP_TRY(imp_sim_unit_open(&m[i], e->config.n_thread, &d, err));
        IMP_TRY(add_unit(e, d, &m[i], err));
    }
    return IMP_OK;
}

/* All GPUs with every layer divided between them, for what none of them holds alone; in front of the unit that gives them
 * whole layers, which is slower. The members stay theirs. */
static imp_status add_divided(imp_engine *e, imp_error *err)
{
    imp_device *member[AUTO_GPUS], *d;
    uint32_t n = 0;
    for (uint32_t i = 0; i < e->n_unit; i++)
        if (strcmp(e->unit[i]->device->ops->kind, "cuda") == 0) member[n++] = e->unit[i]->device;
    if (n < 2) return IMP_OK;
    IMP_TRY(imp_dev_tensor_open(member, n, false, &d, err));
    IMP_TRY(add_unit(e, d, NULL, err));
    e->unit[e->n_unit - 1]->only_large = true;
    return IMP_OK;
}

/* All devices with memory of their own and then the CPU, for what none of them holds alone. The parts stay theirs; this unit
 * comes in front of the CPU's, so that it is closed first and, when both would run, gets memory first. */
static imp_status add_all_together(imp_engine *e, imp_device *cpu, imp_error *err)
{
    imp_split_part part[IMP_SPLIT_PARTS];
    uint32_t n = 0;
    for (uint32_t i = 0; i < e->n_unit; i++)
        if (e->unit[i]->device->ops->mem_free != NULL && !e->unit[i]->only_large && n + 1 < IMP_SPLIT_PARTS)
            part[n++] = (imp_split_part){.device = e->unit[i]->device};
    if (n == 0) return IMP_OK;
    part[n++] = (imp_split_part){.device = cpu};
    imp_device *d;
    IMP_TRY(imp_dev_split_open(part, n, &d, err));
    IMP_TRY(add_unit(e, d, NULL, err));
    e->unit[e->n_unit - 1]->only_large = true;
    return IMP_OK;
}

static imp_status open_auto(imp_engine *e, imp_error *err)
{
    imp_device *d;
    imp_error ignored;
    for (uint32_t i = 0; i < AUTO_GPUS; i++) {
        if (imp_dev_cuda_open(i, &d, &ignored) != IMP_OK) break;
        IMP_TRY(add_unit(e, d, NULL, err));
    }
    if (imp_dev_coreml_open(&d, &ignored) == IMP_OK) IMP_TRY(add_unit(e, d, NULL, err));
    IMP_TRY(add_divided(e, err));
    IMP_TRY(imp_dev_open("cpu", e->config.n_thread, &d, err));
    imp_status s = add_all_together(e, d, err);
    if (s != IMP_OK) {
        d->ops->close(d);
        return s;
    }
    return add_unit(e, d, NULL, err);
}

static imp_status open_named(imp_engine *e, const char *name, imp_error *err)
{
    imp_device *d;
    if (strcmp(name, "auto") == 0) return open_auto(e, err);
    if (strncmp(name, "sim:", 4) == 0) return open_sim(e, name + 4, err);
    IMP_TRY(imp_dev_open(name, e->config.n_thread, &d, err));
    return add_unit(e, d, NULL, err);
}

imp_status imp_units_open(imp_engine *e, const char *spec, imp_error *err)
{
    if (spec == NULL || spec[0] == '\0') spec = "auto";
    while (*spec != '\0') {
        char name[96];
        size_t n = strcspn(spec, ",");
        if (n == 0 || n >= sizeof name)
            return imp_fail_field(err, IMP_INVALID, "device", "\"%.60s\" names no device", spec);
        memcpy(name, spec, n);
        name[n] = '\0';
        IMP_TRY(open_named(e, name, err));
        spec += n + (spec[n] == ',');
    }
    return IMP_OK;
}

static void keep_learned(imp_engine *e, imp_unit *u)
{
    char print[128];
    imp_error ignored;
    if (e->store == NULL || u->n_learned == 0 || imp_dev_is_sim(u->device)) return;
    imp_store_fingerprint(u->device->name, print);
    (void)!imp_store_put_learned(e->store, u->device->name, print, &u->learn, &ignored);
}

void imp_units_close(imp_engine *e)
{
    for (uint32_t i = 0; i < e->n_unit; i++) {
        imp_unit *u = e->unit[i];
        keep_learned(e, u);
        u->device->ops->close(u->device);
        imp_meter_close(u->meter);
        imp_cond_free(u->work);
        imp_mutex_free(u->device_lock);
        imp_sys_free(u);
    }
    e->n_unit = 0;
}

imp_unit *imp_unit_find(const imp_engine *e, const char *name)
{
    for (uint32_t i = 0; i < e->n_unit; i++)
        if (strcmp(e->unit[i]->device->name, name) == 0) return e->unit[i];
    return NULL;
}

/* What a device that prepares models in the background has come to; engine.lock and place_lock held. */
static void write_states(imp_buf *b, const imp_engine *e, const imp_unit *u)
{
    imp_buf_str(b, ",\"models\":[");
    for (size_t i = 0, n = 0; i < e->n_model; i++) {
        const imp_instance *x = &e->model[i]->inst[u->index];
        imp_exec *run = x->embed != NULL ? x->embed : x->generate;
        char text[160] = "";
        if (run == NULL) continue;
        imp_status s = u->device->ops->state(run, false, text, sizeof text);
        imp_buf_fmt(b, "%s{\"model\":", n++ > 0 ? "," : "");
        imp_text_write(b, e->model[i]->id);
        imp_buf_fmt(b, ",\"state\":\"%s\",\"doing\":",
                    s == IMP_OK          ? "ready"
                    : s == IMP_NOT_READY ? "preparing"
                                         : "given up");
        imp_text_write(b, text);
        imp_buf_str(b, "}");
    }
    imp_buf_str(b, "]");
}

/* place_lock held. */
static const char *state_of(const imp_unit *u)
{
    return u->failed_ns == 0 ? "ready" : imp_unit_lost(u) ? "lost" : "failed";
}

char *imp_failed_units_json(imp_engine *e)
{
    imp_buf b = {0};
    uint32_t n = 0;
    imp_buf_str(&b, "[");
    imp_mutex_lock(e->place_lock);
    for (uint32_t i = 0; i < e->n_unit; i++) {
        const imp_unit *u = e->unit[i];
        if (u->failed_ns == 0) continue;
        imp_buf_fmt(&b, "%s{\"device\":\"%s\",\"state\":\"%s\",\"reason\":", n++ > 0 ? "," : "",
                    u->device->name, state_of(u));
        imp_text_write(&b, u->why_failed);
        imp_buf_str(&b, "}");
    }
    imp_mutex_unlock(e->place_lock);
    imp_buf_str(&b, "]");
    char *text = imp_buf_take(&b);
    imp_buf_deinit(&b);
    return text;
}

char *imp_units_json(imp_engine *e)
{
    imp_buf b = {0};
    imp_buf_str(&b, "[");
    imp_mutex_lock(e->lock);
    imp_mutex_lock(e->place_lock);
    for (uint32_t i = 0; i < e->n_unit; i++) {
        const imp_unit *u = e->unit[i];
        const imp_machine *m = &u->learn.machine;
        imp_buf_fmt(
            &b, "%s{\"device\":\"%s\",\"kind\":\"%s\",\"driver\":\"%s\",\"simulated\":%s,\"state\":\"%s\"",
            i ? "," : "", u->device->name, imp_unit_kind_name(m->kind), u->device->ops->kind,
            imp_dev_is_sim(u->device) ? "true" : "false", state_of(u));
        if (u->failed_ns != 0) {
            imp_buf_str(&b, ",\"reason\":");
            imp_text_write(&b, u->why_failed);
        }
        if (u->device->ops->state != NULL) write_states(&b, e, u);
        if (m->kind != IMP_UNIT_CPU) {
            imp_buf_str(&b, ",\"settings\":");
            imp_settings_write(&b, e);
        }
        imp_buf_str(&b, ",\"meter\":");
        imp_text_write(&b, u->meter != NULL ? imp_meter_name(u->meter) : u->why_unmetered);
        imp_buf_fmt(&b, ",\"metered\":%s", u->meter != NULL ? "true" : "false");
        imp_buf_fmt(&b, ",\"observed\":%llu,\"residual\":%.4f,\"numbers\":{",
                    (unsigned long long)u->learn.n_observed, u->learn.residual);
        for (int f = 0, first = 1; f < IMP_N_FIELD; f++) {
            if (m->f[f].mark == IMP_MARK_NONE) continue;
            imp_buf_fmt(&b,
                        "%s\"%s\":{\"value\":%.6g,\"range\":[%.6g,%.6g],\"unit\":\"%s\",\"from\":\"%s\","
                        "\"source\":\"%s\"}",
                        first ? "" : ",", imp_field_key((imp_field)f), m->f[f].v, m->f[f].lo, m->f[f].hi,
                        imp_field_unit((imp_field)f), imp_mark_name(m->f[f].mark), m->f[f].source);
            first = 0;
        }
        imp_buf_str(&b, "}}");
    }
    imp_mutex_unlock(e->place_lock);
    imp_mutex_unlock(e->lock);
    imp_buf_str(&b, "]");
    char *text = imp_buf_take(&b);
    imp_buf_deinit(&b);
    return text;
}
