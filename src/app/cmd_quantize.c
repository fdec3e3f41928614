/* app/cmd_quantize.c - `impetus quantize`: a model file with its matrices in other types.
 *
 * Idea:    the engine's quantiser does the work; here the calibration text is read, and what became of every tensor is
 *          said - on standard output, and in full in --report. */
#include <math.h>

#include "app/app.h"
#include "app/mixed.h"
#include "engine/quantize.h"

enum { WINDOW = 512, MAX_WINDOWS = 16 };

typedef struct quantization {
    app *a;
    const char *in, *out;
    imp_dtype type;
    imp_quant_options opt;
    imp_quant_report report;
    imp_importance *importance;
    bool is_mixed;
    app_mixed mixed;
    uint64_t shown;
} quantization;

static void progress(void *user, const char *tensor, uint64_t done, uint64_t total)
{
    quantization *q = user;
    if (q->shown == 0) app_bar_begin("quantising", total, "bytes");
    app_bar_add(done - q->shown);
    app_bar_note(tensor);
    q->shown = done;
}

static void on_window(void *user)
{
    (void)user;
    app_bar_add(1);
}

/* ---- the calibration text ------------------------------------------------------------------------------ */

static imp_status collect(quantization *q, const imp_net *net, const char *path)
{
    app *a = q->a;
    imp_sys_file f;
    imp_ids ids = {0};
    imp_device *d;
    IMP_TRY(imp_sys_file_open(path, true, &f, &a->err));
    imp_status s = imp_tokenizer_encode(net->tok, f.data != NULL ? (const char *)f.data : "", f.n,
                                        IMP_TOK_ADD_SPECIAL, &ids, &a->err);
    imp_sys_file_close(&f);
    if (s == IMP_OK && ids.n < 16)
        s = imp_fail(&a->err, IMP_INVALID, "'%.200s' has %zu tokens; a calibration text needs some thousands",
                     path, (size_t)ids.n);
    uint32_t window = IMP_MIN((uint32_t)WINDOW, net->cfg.n_ctx_train);
    size_t n = IMP_MIN((size_t)ids.n, (size_t)window * MAX_WINDOWS);
    if (s == IMP_OK) s = imp_dev_cpu_open(opt_u32(&a->opt, OPT_THREADS), &d, &a->err);
    if (s == IMP_OK) {
        app_bar_begin("calibrating", (n + window - 1) / window, "windows");
        s = imp_importance_collect(d, net, ids.id, n, window, on_window, q, &q->importance, &a->err);
        app_bar_end();
        d->ops->close(d);
    }
    imp_ids_deinit(&ids);
    return s;
}

static imp_status calibrate(quantization *q)
{
    const char *path = opt_str(&q->a->opt, OPT_CALIBRATION);
    imp_net *net;
    if (path == NULL) return IMP_OK;
    IMP_TRY(imp_net_open(q->in, 0, &net, &q->a->err));
    imp_status s = net->tok != NULL ? collect(q, net, path)
                                    : imp_fail(&q->a->err, IMP_UNSUPPORTED,
                                               "--calibration needs a tokenizer, the model has none");
    imp_net_close(net);
    q->opt.importance = q->importance;
    return s;
}

/* Types by the mixed plan for the device that was asked for. */
static imp_status mix(quantization *q)
{
    app *a = q->a;
    app_mix_unit unit;
    imp_net *net;
    IMP_TRY(imp_net_open(q->in, 0, &net, &a->err));
    imp_status s = net->generate != NULL
                       ? app_plan_unit(a, q->in, net, &unit)
                       : imp_fail(&a->err, IMP_UNSUPPORTED,
                                  "'%.200s' makes embeddings; a mix is chosen by the divergence of "
                                  "next-token distributions",
                                  q->in);
    if (s == IMP_OK) s = app_mixed_make(a, q->in, net, &unit, &q->mixed);
    imp_net_close(net);
    if (s != IMP_OK) return s;
    imp_mix_types(&q->mixed.mix, q->opt.type);
    q->opt.importance = q->mixed.importance;
    return IMP_OK;
}

/* ---- saying it ------------------------------------------------------------------------------------------ */

static json_t *tensor_json(const imp_quant_tensor *t)
{
    json_t *o = json_pack("{s:o, s:s, s:s, s:I, s:I, s:o}", "name", app_json_text(t->name, strlen(t->name)),
                          "from", imp_dtype_get(t->from)->name, "to", imp_dtype_get(t->to)->name,
                          "from_bytes", (json_int_t)t->from_bytes, "to_bytes", (json_int_t)t->to_bytes,
                          "error", app_json_round(t->error, 6));
    json_object_set_new(o, "weighted_error",
                        t->weighted ? app_json_round(t->weighted_error, 6) : json_null());
    json_object_set_new(o, "fallback", t->why != NULL ? json_string(t->why) : json_null());
    return o;
}

static json_t *report_json(const quantization *q)
{
    const imp_quant_report *r = &q->report;
    json_t *list = json_array();
    for (uint64_t i = 0; i < r->n_tensor; i++) json_array_append_new(list, tensor_json(&r->tensor[i]));
    const char *text = opt_str(&q->a->opt, OPT_CALIBRATION);
    json_t *doc = json_pack(
        "{s:s, s:s, s:s, s:o, s:I, s:I, s:I, s:I, s:o}", "in", q->in, "out", q->out, "type",
        opt_str(&q->a->opt, OPT_TYPE), "calibration", text != NULL ? json_string(text) : json_null(),
        "from_bytes", (json_int_t)r->from_bytes, "to_bytes", (json_int_t)r->to_bytes, "changed",
        (json_int_t)r->n_changed, "fallbacks", (json_int_t)r->n_fallback, "tensors", list);
    if (doc != NULL && q->is_mixed) json_object_set_new(doc, "mixed", app_mixed_json(&q->mixed));
    return doc;
}

static imp_status write_report(const quantization *q, json_t *doc)
{
    const char *path = opt_str(&q->a->opt, OPT_REPORT);
    if (path == NULL) return IMP_OK;
    char *text = json_dumps(doc, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    imp_status s = text != NULL ? imp_sys_file_write(path, text, strlen(text), &q->a->err)
                                : imp_fail(&q->a->err, IMP_NOMEM, "no memory for the report");
    free(text);
    return s;
}

static void print_human(const quantization *q)
{
    const imp_quant_report *r = &q->report;
    char from[32], to[32];
    double worst = 0;
    const char *name = "";
    for (uint64_t i = 0; i < r->n_tensor; i++)
        if (r->tensor[i].error > worst) worst = r->tensor[i].error, name = r->tensor[i].name;
    printf("%s: %s, was %s; %llu of %llu tensors changed\n", q->out, app_size_text(r->to_bytes, to),
           app_size_text(r->from_bytes, from), (unsigned long long)r->n_changed,
           (unsigned long long)r->n_tensor);
    if (r->n_changed > 0) printf("largest relative error of a tensor: %.5f (%s)\n", worst, name);
    if (q->is_mixed) app_mixed_print(&q->mixed);
    for (uint64_t i = 0; i < r->n_tensor; i++)
        if (r->tensor[i].why != NULL)
            printf("%s is %s: %s\n", r->tensor[i].name, imp_dtype_get(r->tensor[i].to)->name,
                   r->tensor[i].why);
}

/* ---- the command ------------------------------------------------------------------------------------------ */

static app_result read_options(quantization *q)
{
    app *a = q->a;
    const char *type = opt_str(&a->opt, OPT_TYPE);
    q->is_mixed = type != NULL && !strcmp(type, "mixed");
    if (q->is_mixed) return APP_OK;
    if (type == NULL) return app_usage(a, "--type is missing; say for example --type q4_k");
    q->type = imp_dtype_from_name(type);
    if (imp_dtype_get(q->type)->from_f32 == NULL)
        return app_usage(
            a,
            "--type: '%.40s' is none of mixed, f32, f16, bf16, q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, "
            "q4_1, q4_0, q3_k, q2_k",
            type);
    for (int g = 0; g < IMP_N_GROUP; g++) q->opt.type[g] = q->type;
    return APP_OK;
}

static imp_status quantize(quantization *q)
{
    imp_error *err = &q->a->err;
    if (imp_sys_is_dir(q->in))
        return imp_fail(err, IMP_UNSUPPORTED, "'%.200s' is a folder; quantize reads GGUF files", q->in);
    imp_status s = imp_pool_new(app_n_thread(q->a), &q->opt.pool);
    if (s != IMP_OK) return imp_fail(err, s, "the threads could not be started");
    s = q->is_mixed ? mix(q) : calibrate(q);
    if (s != IMP_OK) return s;
    q->opt.progress = progress;
    q->opt.user = q;
    s = imp_quantize(q->in, q->out, &q->opt, &q->report, err);
    app_bar_end();
    return s;
}

app_result cmd_quantize(app *a)
{
    quantization q = {.a = a, .out = a->arg[1]};
    app_result r = read_options(&q);
    if (r != APP_OK) return r;
    if (app_model_path(a, a->arg[0], &q.in, &a->err) != IMP_OK) return APP_FAILED;
    r = APP_FAILED;
    if (quantize(&q) == IMP_OK) {
        json_t *doc = report_json(&q);
        if (doc == NULL)
            (void)app_failed(a, "out of memory");
        else if (write_report(&q, doc) == IMP_OK)
            r = APP_OK;
        if (r == APP_OK && opt_on(&a->opt, OPT_JSON))
            r = app_print_json(a, json_incref(doc));
        else if (r == APP_OK)
            print_human(&q);
        json_decref(doc);
    }
    imp_importance_free(q.importance);
    app_mixed_deinit(&q.mixed);
    imp_quant_report_deinit(&q.report);
    if (q.opt.pool != NULL) imp_pool_free(q.opt.pool);
    return r;
}
