/* app/cmd_convert.c - `impetus convert MODEL OUT.mlpackage --to coreml`: a model as a Core ML package, and how far it is
 * from the source.
 *
 * Claims:  what would run on the ANE is predicted; no number here comes from one. */
#include <math.h>
#include <stdlib.h>

#include "app/convert.h"
#include "app/package.h"

enum { MOST_TOK = 24000, MOST_HELD_OUT = 200 };

static void progress(void *user, const char *weight, uint64_t done, uint64_t total)
{
    conversion *c = user;
    (void)total;
    app_bar_add(done - c->shown);
    app_bar_note(weight);
    c->shown = done;
}

/* ---- converting --------------------------------------------------------------------------------------------------------- */

/* The options' limits; else, of a compressed encoder, a cosine of 0.999 for about 6 bits and more, and half a percent of the
 * retrieval order for less. Without a calibration text, or with --pure, it is not held. */
static void set_bar(conversion *c)
{
    const app_options *o = &c->a->opt;
    bool loss = opt_set(o, OPT_MAX_LOSS), cosine = opt_set(o, OPT_MIN_COSINE);
    const imp_ml_packing *p = &c->opt.pack;
    c->bar = (conv_bar){.loss = loss ? o->v[OPT_MAX_LOSS].f : 1,
                        .cosine = cosine ? o->v[OPT_MIN_COSINE].f : 0,
                        .holds = loss || cosine};
    if (c->bar.holds || c->g != c->net->embed || p->kind == IMP_ML_HALF) return;
    bool fine = (p->kind == IMP_ML_LUT && p->bits >= 6) || (p->kind == IMP_ML_INT8 && !p->int8_inputs);
    c->bar = fine ? (conv_bar){1, 0.999, false} : (conv_bar){0.005, 0, false};
    c->bar.holds = opt_set(o, OPT_FIT_TEXT) && !opt_on(o, OPT_PURE);
}

static imp_status run(conversion *c)
{
    set_bar(c);
    bool search_ = c->bar.holds, check = opt_on(&c->a->opt, OPT_VERIFY) || search_;
    if (search_ && c->g != c->net->embed)
        return imp_fail(&c->a->err, IMP_UNSUPPORTED, "--max-loss and --min-cosine are for models that embed");
    const char *calibration = opt_str(&c->a->opt, OPT_FIT_TEXT);
    if (check) IMP_TRY(conv_prepare_verify(c));
    if (calibration != NULL) {
        IMP_TRY(conv_read_texts(c, calibration, MOST_TOK, &c->fit));
        c->n_held_out = IMP_MIN(c->fit.n / 8, (uint32_t)MOST_HELD_OUT);
    }
    if (search_) return conv_search(c);
    IMP_TRY(conv_convert(c));
    return check ? conv_verify(c) : IMP_OK;
}

/* ---- saying it ------------------------------------------------------------------------------------------------------------ */

static json_t *verify_json(const conversion *c)
{
    if (c->check.n == 0) return json_null();
    bool v = c->got != NULL;
    return json_pack("{s:s, s:i, s:o, s:o, s:o, s:f, s:I, s:s}", "by", "evaluator, fp16", "texts",
                     (int)c->check.n, "worst_cosine", v ? json_real(c->distance.worst_cosine) : json_null(),
                     "mean_cosine", v ? json_real(c->distance.mean_cosine) : json_null(), "loss",
                     v ? json_real(c->distance.loss) : json_null(), "max_abs", (double)c->over.max_abs,
                     "saturated", (json_int_t)c->over.n_saturated, "max_abs_op", c->over.op);
}

static bool below_bar(const conversion *c)
{
    return c->distance.loss > c->bar.loss || c->distance.worst_cosine < c->bar.cosine;
}

static bool has_bar(const conversion *c)
{
    return c->bar.loss < 1 || c->bar.cosine > 0;
}

static json_t *bar_json(const conversion *c)
{
    if (!has_bar(c)) return json_null();
    return json_pack("{s:o, s:o, s:o}", "max_loss", c->bar.loss < 1 ? json_real(c->bar.loss) : json_null(),
                     "min_cosine", c->bar.cosine > 0 ? json_real(c->bar.cosine) : json_null(), "held",
                     c->got != NULL ? json_boolean(!below_bar(c)) : json_null());
}

/* A form that was not searched for may lose more than it should: that is said, and what would help. */
static void say_bar(const conversion *c)
{
    bool looked = c->got != NULL;
    if (!has_bar(c) || c->bar.holds || (looked && !below_bar(c))) return;
    if (c->bar.cosine > 0)
        printf("bar        a cosine of %.4g: ", c->bar.cosine);
    else
        printf("bar        a loss of %.4g %%: ", 100 * c->bar.loss);
    printf("%s; %s\n", looked ? "missed" : "not looked at, --verify does",
           opt_on(&c->a->opt, OPT_PURE)
               ? "without --pure it is held, or convert fails"
               : "--calibration FILE holds it: matrices are fitted to its lines, those "
                 "that matter get better forms");
}

/* What the lines say that nothing was fitted to. */
static json_t *calibration_json(const conversion *c)
{
    if (c->tuned == NULL) return json_null();
    const imp_ml_distance *d = &c->tuned->held_out;
    return json_pack("{s:I, s:i, s:f, s:f, s:f, s:f, s:f, s:i}", "tokens", (json_int_t)c->tuned->n_tok,
                     "held_out_texts", (int)d->n_text, "worst_cosine", d->worst_cosine, "mean_cosine",
                     d->mean_cosine, "loss", d->loss, "kl", d->kl, "same_first_choice", d->top1,
                     "matrices_kept_better", (int)c->n_kept);
}

static void say_calibration(const conversion *c)
{
    if (c->tuned == NULL || c->tuned->held_out.n_text == 0) return;
    const imp_ml_distance *d = &c->tuned->held_out;
    printf("fitted     to %llu tokens, %u matrices in a better form; %u held-out lines: ",
           (unsigned long long)c->tuned->n_tok, c->n_kept, d->n_text);
    if (c->g == c->net->embed)
        printf("cosine at least %.6f, mean %.6f; retrieval order loses %.4f %%\n", d->worst_cosine,
               d->mean_cosine, 100 * d->loss);
    else
        printf("KL divergence %.6f, the same first choice in %.1f %%\n", d->kl, 100 * d->top1);
}

static app_result say_json(conversion *c)
{
    json_t *packages = json_array(), *weights = json_array();
    char how[16];
    imp_ml_packing_text(&c->opt.pack, how);
    for (uint32_t i = 0; i < c->report.n_chunk; i++) {
        json_t *l;
        if (app_lint_json(c->report.path[i], &l, &c->a->err) != IMP_OK) return APP_FAILED;
        json_array_append_new(packages, l);
    }
    for (uint32_t i = 0; i < c->report.n_weight; i++) {
        const imp_ml_weight_report *w = &c->report.weight[i];
        json_array_append_new(weights,
                              json_pack("{s:s, s:i, s:s, s:I, s:I, s:I, s:f, s:o, s:I}", "name", w->name,
                                        "part", (int)w->part, "form", w->how, "rows", (json_int_t)w->n,
                                        "columns", (json_int_t)w->k, "bytes", (json_int_t)w->bytes,
                                        "relative_error", w->error, "output_error",
                                        w->output_error >= 0 ? json_real(w->output_error) : json_null(),
                                        "clamped", (json_int_t)w->n_clamped));
    }
    return app_print_json(
        c->a, json_pack("{s:s, s:s, s:i, s:I, s:I, s:o, s:o, s:o, s:o, s:o}", "model", c->a->arg[0], "form",
                        how, "spec", (int)c->report.spec, "bytes", (json_int_t)c->report.bytes, "fp16_bytes",
                        (json_int_t)c->report.half_bytes, "calibration", calibration_json(c), "verify",
                        verify_json(c), "bar", bar_json(c), "packages", packages, "weights", weights));
}

static app_result say(conversion *c)
{
    char how[16], size[32], half[32];
    imp_ml_packing_text(&c->opt.pack, how);
    if (opt_on(&c->a->opt, OPT_VERBOSE))
        for (uint32_t i = 0; i < c->report.n_weight; i++) {
            const imp_ml_weight_report *w = &c->report.weight[i];
            printf("%-40s %-8s %6llu x %-6llu error %.5f\n", w->name, w->how, (unsigned long long)w->n,
                   (unsigned long long)w->k, w->error);
        }
    printf("weights    %s: %s (fp16: %s), largest relative error of a weight %.4f\n", how,
           app_size_text(c->report.bytes, size), app_size_text(c->report.half_bytes, half),
           c->report.worst_error);
    for (uint32_t i = 0; i < c->report.n_chunk; i++)
        if (app_lint_print(c->report.path[i], opt_on(&c->a->opt, OPT_VERBOSE), &c->a->err) != IMP_OK)
            return APP_FAILED;
    say_calibration(c);
    if (c->got != NULL)
        printf("verified   %u texts by the evaluator in fp16: cosine at least %.6f, mean %.6f; retrieval "
               "order loses %.4f %%\n",
               c->check.n, c->distance.worst_cosine, c->distance.mean_cosine, 100 * c->distance.loss);
    say_bar(c);
    if (c->check.n > 0)
        printf("range      largest magnitude %.4g of 65504 (%s), %llu values saturated\n",
               (double)c->over.max_abs, c->over.op, (unsigned long long)c->over.n_saturated);
    return APP_OK;
}

/* ---- the command ----------------------------------------------------------------------------------------------------------- */

static app_result read_options(conversion *c)
{
    app *a = c->a;
    const char *how = opt_str(&a->opt, OPT_COMPRESS);
    const app_value *b = &a->opt.v[OPT_BUCKETS];
    if (!opt_set(&a->opt, OPT_TO)) return app_usage(a, "--to is missing; say --to coreml");
    if (!app_has_suffix(a->arg[1], ".mlpackage"))
        return app_usage(a, "'%.200s' must end in .mlpackage", a->arg[1]);
    if (!imp_ml_packing_parse(how, &c->opt.pack))
        return app_usage(
            a, "--compress: '%.40s' is none of fp16, lut1|2|3|4|6|8[gROWS|t], int8, int4[bCOLUMNS], w8a8",
            how);
    if (b->n > IMP_ML_MAX_BUCKET) return app_usage(a, "--buckets: at most %d lengths", IMP_ML_MAX_BUCKET);
    uint32_t most = c->net->cfg.n_ctx_train;
    for (size_t i = 0; i < b->n; i++) {
        bool fits = most == 0 || b->uints[i] <= most;
        if (!fits && b->explicit_)
            return app_usage(a, "--buckets: %llu is more than the model's %u tokens",
                             (unsigned long long)b->uints[i], most);
        if (fits) c->opt.bucket[c->opt.n_bucket++] = (uint32_t)b->uints[i];
    }
    if (c->opt.n_bucket == 0) c->opt.bucket[c->opt.n_bucket++] = most;
    c->opt.spec = (int32_t)opt_u32(&a->opt, OPT_SPEC);
    c->opt.max_chunk = opt_set(&a->opt, OPT_CHUNK) ? a->opt.v[OPT_CHUNK].u : 0;
    c->opt.decode = opt_set(&a->opt, OPT_DECODE) ? opt_u32(&a->opt, OPT_DECODE) : 0;
    c->opt.source = c->net->cfg.name[0] ? c->net->cfg.name : a->arg[0];
    c->opt.progress = progress;
    c->opt.user = c;
    if (c->opt.pack.int8_inputs && !opt_set(&a->opt, OPT_FIT_TEXT))
        return app_usage(a, "w8a8 needs --calibration, which gives the scales of activations");
    return APP_OK;
}

static app_result convert(conversion *c)
{
    app *a = c->a;
    app_result r = read_options(c);
    if (r != APP_OK) return r;
    if (imp_pool_new(app_n_thread(a), &c->pool) != IMP_OK)
        return app_failed(a, "the threads could not be started");
    c->opt.pool = c->pool;
    if (run(c) != IMP_OK) return APP_FAILED;
    return opt_on(&a->opt, OPT_JSON) ? say_json(c) : say(c);
}

app_result cmd_convert(app *a)
{
    const char *path;
    conversion *c = imp_arena_alloc(a->arena, sizeof *c);
    if (c == NULL) return app_failed(a, "out of memory");
    c->a = a;
    c->out = a->arg[1];
    if (app_model_path(a, a->arg[0], &path, &a->err) != IMP_OK) return APP_FAILED;
    if (imp_net_open(path, 0, &c->net, &a->err) != IMP_OK) return APP_FAILED;
    c->g = c->net->cfg.can_embed && c->net->embed != NULL ? c->net->embed : c->net->generate;
    app_result r = convert(c);
    conv_texts_deinit(&c->check);
    conv_texts_deinit(&c->fit);
    imp_ml_tuned_free(c->tuned);
    imp_sys_free(c->form);
    imp_sys_free(c->want);
    imp_sys_free(c->got);
    if (c->pool != NULL) imp_pool_free(c->pool);
    imp_ml_report_deinit(&c->report);
    imp_net_close(c->net);
    return r;
}
