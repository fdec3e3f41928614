/* app/cmd_calibrate.c - `impetus calibrate` and `impetus explain`: what is kept in the database. */
#include <stdlib.h>
#include <time.h>

#include "app/app.h"
#include "dev/dev.h"
#include "plan/calibrate.h"

static imp_status open_store(app *a, imp_store **s)
{
    const char *path = app_db_path(a);
    *s = NULL;
    if (!path)
        return imp_fail(&a->err, IMP_NOT_FOUND,
                        "there is no place for the database: set HOME, or give --database FILE");
    return imp_store_open(path, s, &a->err);
}

static void progress(void *user, uint32_t done, uint32_t all)
{
    (void)user, (void)done, (void)all;
    app_bar_add(1);
}

static imp_status calibrate_one(app *a, imp_store *store, const char *name, imp_calibration *c, imp_learn *l)
{
    imp_device *d;
    IMP_TRY(imp_dev_open(name, opt_u32(&a->opt, OPT_THREADS), &d, &a->err));
    bool gpu = !strcmp(d->ops->kind, "cuda") || !strcmp(d->ops->kind, "mlx");
    app_bar_begin(d->name, 8, "parts");
    imp_status s = imp_calibrate(d, gpu ? IMP_UNIT_GPU : IMP_UNIT_CPU, opt_u32(&a->opt, OPT_THREADS),
                                 opt_on(&a->opt, OPT_QUICK), progress, NULL, l, c, &a->err);
    app_bar_end();
    if (s == IMP_OK) s = imp_store_put_calibration(store, d->name, c, &a->err);
    if (s == IMP_OK) s = imp_store_put_learned(store, d->name, c->fingerprint, l, &a->err);
    d->ops->close(d);
    return s;
}

static json_t *calibration_json(const imp_calibration *c)
{
    json_t *o = json_object();
    for (int f = 0; f < IMP_N_FIELD; f++) {
        const imp_value *v = &c->machine.f[f];
        if (v->mark == IMP_MARK_MEASURED)
            json_object_set_new(o, imp_field_key((imp_field)f),
                                json_pack("{s:o, s:s}", "value", app_json_round(v->v, 5), "unit",
                                          imp_field_unit((imp_field)f)));
    }
    return json_pack("{s:s, s:I, s:s, s:o}", "device", c->machine.name, "measured_at", (json_int_t)c->at,
                     "machine", c->fingerprint, "measured", o);
}

static void calibration_human(const imp_calibration *c)
{
    printf("%s\n", c->machine.name);
    for (int f = 0; f < IMP_N_FIELD; f++)
        if (c->machine.f[f].mark == IMP_MARK_MEASURED)
            printf("  %-18s%12.4g %s\n", imp_field_key((imp_field)f), c->machine.f[f].v,
                   imp_field_unit((imp_field)f));
}

/* Every device of --device that is here, or all; one that is not here is left out unless it was asked for. */
static imp_status calibrate_all(app *a, imp_store *store, json_t *list, imp_machine m[APP_DEVICES], size_t *n)
{
    const char *asked = opt_str(&a->opt, OPT_DEVICE), *name;
    bool all = !asked || !strcmp(asked, "auto");
    imp_calibration c;
    *n = 0;
    imp_learn *l = imp_arena_alloc(a->arena, sizeof *l);
    if (!l) return imp_fail(&a->err, IMP_NOMEM, "out of memory");
    for (size_t i = 0; (name = app_device_name(i)) != NULL; i++) {
        if (!app_device_asked(asked, name)) continue;
        imp_status s = calibrate_one(a, store, name, &c, l);
        if (s != IMP_OK && all && i > 0) { /* not here, or it cannot compute */
            if (s != IMP_NOT_FOUND && s != IMP_UNSUPPORTED)
                imp_log(IMP_LOG_WARN, "%s was not calibrated: %s", name, a->err.text);
            a->err = (imp_error){0};
            continue;
        }
        IMP_TRY(s);
        m[(*n)++] = c.machine;
        json_array_append_new(list, calibration_json(&c));
        if (!opt_on(&a->opt, OPT_JSON)) calibration_human(&c);
    }
    if (*n > 0) return IMP_OK;
    return imp_fail(&a->err, IMP_INVALID,
                    "'%.60s' is no device that can be calibrated; there are: cpu, cuda, mlx",
                    asked ? asked : "auto");
}

app_result cmd_calibrate(app *a)
{
    imp_store *store;
    imp_machine m[APP_DEVICES];
    size_t n = 0;
    json_t *list = json_array();
    imp_status s = open_store(a, &store);
    if (s == IMP_OK) s = calibrate_all(a, store, list, m, &n);
    imp_store_close(store);
    if (s == IMP_OK && opt_on(&a->opt, OPT_JSON))
        return app_print_json(
            a, json_pack("{s:o, s:o}", "devices", list, "transfers", app_transfers_json(m, n)));
    if (s == IMP_OK) app_transfers_print(m, n);
    json_decref(list);
    return s == IMP_OK ? APP_OK : APP_FAILED;
}

/* ---- explain ------------------------------------------------------------------------------------------ */

static double num(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}
static const char *str(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static void work_human(const json_t *c)
{
    printf("  %39s %.2f MB, %.2f Gflop; %.0f %% / %.0f %% of the best rate of what binds, last taught ", "",
           num(c, "bytes") * 1e-6, num(c, "flop") * 1e-9, 100 * num(c, "efficiency"),
           100 * num(c, "decode_efficiency"));
    if (json_is_number(json_object_get(c, "age_s")))
        printf("%.0f s before; %.2f ms of waiting\n", num(c, "age_s"), num(c, "wait_ms"));
    else
        printf("never; %.2f ms of waiting\n", num(c, "wait_ms"));
}

static void candidate_human(const json_t *c, const char *note)
{
    printf("  %-18s > %-18s", str(c, "prefill"), str(c, "decode"));
    if (json_is_string(json_object_get(c, "excluded"))) {
        printf("excluded: %s\n", str(c, "excluded"));
        return;
    }
    const json_t *iv = json_object_get(c, "interval"), *kv = json_object_get(c, "kv_moved");
    printf("ttft %.2f ms, tpot %.3f ms, whole %.1f to %.1f ms, %s/%s bound, %.0f samples%s%s\n",
           num(c, "ttft_ms"), num(c, "tpot_ms"), json_number_value(json_array_get(iv, 0)),
           json_number_value(json_array_get(iv, 1)), str(c, "bound"), str(c, "decode_bound"),
           num(c, "samples"), json_object_get(c, "simulated") ? ", SIMULATED" : "", note);
    if (json_object_get(c, "efficiency")) work_human(c);
    if (kv)
        printf("  %39s moves %.2f MB of cache in %.2f ms, %.2f ms of it exposed\n", "",
               num(kv, "bytes") * 1e-6, num(kv, "ms"), num(kv, "exposed_ms"));
}

static void phase_human(const char *name, const json_t *p)
{
    if (!p) return;
    const char *ran_on = str(p, "ran_on");
    printf("  %-9s%s: %.0f tokens in %.3f ms, predicted %.3f ms, %.2f MB moved%s%s%s%s%s\n", name,
           str(p, "device"), num(p, "tokens"), num(p, "ms"), num(p, "predicted_ms"), num(p, "bytes") * 1e-6,
           json_object_get(p, "simulated") ? ", SIMULATED" : "", *ran_on ? "; " : "", ran_on,
           json_is_string(json_object_get(p, "fallback")) ? "; fallback: " : "", str(p, "fallback"));
}

static void explain_human(const json_t *d)
{
    const json_t *list = json_object_get(d, "candidates"), *receipt = json_object_get(d, "receipt"), *c;
    size_t i;
    int chosen = (int)num(d, "chosen"), second = (int)num(d, "runner_up");
    printf("request %.0f to %s: %.0f prompt tokens, decided in %.1f us, waited %.2f ms, ended: %s\n",
           num(d, "id"), str(receipt, "model"), num(d, "prompt_tokens"), num(d, "decided_in_us"),
           num(receipt, "queue_ms"), str(receipt, "finish"));
    json_array_foreach(list, i, c)
    {
        char note[80] = "";
        if ((int)i == chosen)
            snprintf(note, sizeof note, "  <- chosen%s",
                     json_is_true(json_object_get(d, "kept")) ? " (kept)" : "");
        if ((int)i == second)
            snprintf(note, sizeof note, "  <- runner-up, %.1f %% dearer", 100 * num(d, "margin"));
        candidate_human(c, note);
    }
    phase_human("prefill", json_object_get(receipt, "prefill"));
    phase_human("embed", json_object_get(receipt, "embed"));
    phase_human("decode", json_object_get(receipt, "decode"));
}

app_result cmd_explain(app *a)
{
    imp_store *s;
    char *text = NULL, *end;
    uint64_t id = 0;
    if (strcmp(a->arg[0], "last")) {
        id = strtoull(a->arg[0], &end, 10);
        if (*end || id == 0 || a->arg[0][0] == '-')
            return app_usage(a, "'%.60s' is neither a request's number nor 'last'", a->arg[0]);
    }
    if (open_store(a, &s) != IMP_OK) return APP_FAILED;
    imp_status st = imp_store_get_explanation(s, id, &text, &a->err);
    imp_store_close(s);
    if (st != IMP_OK) return APP_FAILED;
    json_t *doc = json_loads(text, 0, NULL);
    imp_sys_free(text);
    if (!doc) return app_failed(a, "that explanation is damaged");
    if (opt_on(&a->opt, OPT_JSON)) return app_print_json(a, doc);
    explain_human(doc);
    json_decref(doc);
    return APP_OK;
}
