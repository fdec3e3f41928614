/* app/package.c - `impetus check PACKAGE`: the format's rules and what speaks for or against the Neural Engine. */
#include "app/package.h"

#include "dev/coreml/lint.h"

bool app_is_package(const char *path)
{
    char name[4096];
    int n = snprintf(name, sizeof name, "%s/Manifest.json", path);
    return n > 0 && (size_t)n < sizeof name && imp_sys_is_file(name);
}

static imp_status lint(const char *path, imp_mlpackage **p, imp_ml_lint *l, imp_error *err)
{
    *l = (imp_ml_lint){0};
    IMP_TRY(imp_mlpackage_open(path, p, err));
    imp_status s = imp_ml_lint_run(*p, l, err);
    if (s != IMP_OK) {
        imp_ml_lint_deinit(l);
        imp_mlpackage_close(*p);
    }
    return s;
}

imp_status app_lint_json(const char *path, json_t **out, imp_error *err)
{
    imp_mlpackage *p;
    imp_ml_lint l;
    IMP_TRY(lint(path, &p, &l, err));
    json_t *funcs = json_array(), *found = json_array();
    for (uint32_t i = 0; i < p->n_func; i++) json_array_append_new(funcs, json_string(p->func[i].name));
    for (uint32_t i = 0; i < l.n_finding; i++) {
        const imp_ml_finding *f = &l.finding[i];
        json_array_append_new(found, json_pack("{s:s, s:s, s:s, s:s, s:b, s:o}", "function", f->func, "op",
                                               f->op, "type", f->type, "why", f->why, "predicted_off_ane",
                                               f->off_ane, "padding_factor",
                                               f->factor > 0 ? app_json_round(f->factor, 4) : json_null()));
    }
    *out =
        json_pack("{s:s, s:i, s:o, s:b, s:i, s:i, s:i, s:I, s:o, s:o}", "package", path, "spec", (int)p->spec,
                  "functions", funcs, "predicted", 1, "ops", (int)l.n_op, "ops_predicted_ane", (int)l.n_ane,
                  "device_switches", (int)l.n_switch, "weight_bytes", (json_int_t)l.weight_bytes,
                  "worst_padding_factor", app_json_round(l.worst_factor, 4), "findings", found);
    imp_ml_lint_deinit(&l);
    imp_mlpackage_close(p);
    return *out != NULL ? IMP_OK : imp_fail(err, IMP_NOMEM, "out of memory");
}

imp_status app_lint_print(const char *path, bool every, imp_error *err)
{
    enum { FIRST = 12 };
    imp_mlpackage *p;
    imp_ml_lint l;
    char size[32];
    IMP_TRY(lint(path, &p, &l, err));
    printf("package    %s: version %d, %u function%s, %s of weights\n", path, p->spec, p->n_func,
           p->n_func == 1 ? "" : "s", app_size_text(l.weight_bytes, size));
    printf("predicted  %u of %u ops on the ANE, %u device switches, padding up to %.3gx (not measured)\n",
           l.n_ane, l.n_op, l.n_switch, l.worst_factor);
    for (uint32_t i = 0; i < l.n_finding && (every || i < FIRST); i++) {
        const imp_ml_finding *f = &l.finding[i];
        printf("  %-9s %s %s (%s): %s", f->off_ane ? "not ANE" : "costly", f->func, f->op, f->type, f->why);
        if (f->factor > 0) printf(" (%.3gx, %s)", f->factor, app_size_text(f->padded_bytes, size));
        putchar('\n');
    }
    if (!every && l.n_finding > FIRST) printf("  and %u more; -v lists them\n", l.n_finding - FIRST);
    imp_ml_lint_deinit(&l);
    imp_mlpackage_close(p);
    return IMP_OK;
}

app_result app_check_package(app *a, const char *path)
{
    if (opt_on(&a->opt, OPT_JSON)) {
        json_t *doc = NULL;
        imp_status s = app_lint_json(path, &doc, &a->err);
        if (s == IMP_OK) {
            json_object_set_new(doc, "ok", json_true());
            return app_print_json(a, doc);
        }
        if (s == IMP_NOMEM) return APP_FAILED;
        app_result r = app_print_json(
            a, json_pack("{s:s, s:b, s:[s]}", "package", path, "ok", 0, "problems", a->err.text));
        return r == APP_OK ? APP_FAILED : r;
    }
    if (app_lint_print(path, opt_on(&a->opt, OPT_VERBOSE), &a->err) != IMP_OK) return APP_FAILED;
    puts("ok");
    return APP_OK;
}
