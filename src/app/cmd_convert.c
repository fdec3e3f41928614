/* app/cmd_convert.c - `impetus convert MODEL OUT.mlpackage --to coreml`: a model as a Core ML package, and how far it is
 * from the source.
 *
 * Idea:    --verify runs the package by the evaluator of ML Programs in half precision and the source on the CPU, on the
 *          same texts. The loss is 1 - the mean rank correlation of every text's similarities to the others. Of decoders,
 *          which give keys and values, only the range of numbers is looked at.
 * Claims:  what would run on the ANE is predicted; no number here comes from one. */
#include <math.h>
#include <stdlib.h>

#include "app/app.h"
#include "app/package.h"
#include "base/thread.h"
#include "dev/coreml/runner.h"
#include "dev/dev.h"
#include "model/net.h"

enum { MAX_TEXT = 1000 };

static const char *const own_texts[] = {
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset the password of my account?",
    "I forgot my login and need a new password.",
    "The train to the coast leaves at seven in the morning.",
    "Morning trains to the sea depart hourly.",
    "A recipe for bread needs flour, water, salt and yeast.",
    "Sourdough takes a day to rise.",
    "The court ruled that the contract was void.",
    "Interest rates rose by a quarter of a point.",
    "The central bank raised its key rate.",
    "Photosynthesis turns light into chemical energy.",
    "Plants make sugar from sunlight.",
    "She plays the violin in the city's orchestra.",
    "The orchestra is looking for a new violinist.",
    "Version 2.0 fixes a crash when the file is empty.",
    "An empty file no longer makes the program crash.",
};

typedef struct conversion {
    app *a;
    imp_net *net;
    const imp_graph *g;
    imp_ml_options opt;
    imp_ml_report report;
    const char *out;
    uint64_t shown; /* progress that the bar has seen */
    imp_pool *pool;
    /* verification */
    imp_ids text[MAX_TEXT];
    uint32_t n_text;
    float *want, *got; /* [n_text][dim], owned */
    double worst, mean, loss;
    imp_ml_overflow over;
} conversion;

static void progress(void *user, const char *weight, uint64_t done, uint64_t total)
{
    conversion *c = user;
    (void)total;
    app_bar_add(done - c->shown);
    app_bar_note(weight);
    c->shown = done;
}

/* ---- texts --------------------------------------------------------------------------------------------------- */

static imp_status add_text(conversion *c, const char *p, size_t n)
{
    imp_ids ids = {0};
    uint32_t longest = c->opt.bucket[c->opt.n_bucket - 1];
    if (c->n_text == MAX_TEXT || n == 0) return IMP_OK;
    imp_status s = imp_tokenizer_encode(c->net->tok, p, n, IMP_TOK_ADD_SPECIAL, &ids, &c->a->err);
    if (s != IMP_OK || ids.n == 0 || ids.n > longest) {
        imp_ids_deinit(&ids);
        return s;
    }
    c->text[c->n_text++] = ids;
    return IMP_OK;
}

static imp_status read_texts(conversion *c)
{
    const char *path = opt_str(&c->a->opt, OPT_TEXT);
    if (c->net->tok == NULL)
        return imp_fail(&c->a->err, IMP_UNSUPPORTED, "--verify needs a tokenizer, the model has none");
    if (path == NULL) {
        for (size_t i = 0; i < IMP_COUNT(own_texts); i++)
            IMP_TRY(add_text(c, own_texts[i], strlen(own_texts[i])));
        return IMP_OK;
    }
    imp_sys_file f;
    IMP_TRY(imp_sys_file_open(path, false, &f, &c->a->err));
    imp_status s = IMP_OK;
    const char *p = (const char *)f.data, *end = p + f.n;
    while (s == IMP_OK && p < end) {
        const char *nl = memchr(p, '\n', (size_t)(end - p));
        size_t n = (size_t)((nl != NULL ? nl : end) - p);
        s = add_text(c, p, n);
        p += n + 1;
    }
    imp_sys_file_close(&f);
    if (s == IMP_OK && c->n_text < 3)
        return imp_fail(&c->a->err, IMP_INVALID, "'%.200s' has fewer than 3 lines that fit the lengths",
                        path);
    return s;
}

/* ---- the source on the CPU -------------------------------------------------------------------------------------- */

static imp_status source_vectors(conversion *c)
{
    uint32_t longest = 0, dim = c->net->cfg.embed_dim;
    imp_device *dev;
    imp_exec *x = NULL;
    for (uint32_t i = 0; i < c->n_text; i++) longest = IMP_MAX(longest, (uint32_t)c->text[i].n);
    imp_limits lim = {.max_tok = longest, .max_seq = 1, .max_out = 1, .max_ctx = longest};
    IMP_TRY(imp_dev_open("cpu", opt_u32(&c->a->opt, OPT_THREADS), &dev, &c->a->err));
    imp_status s = dev->ops->compile(dev, c->g, &lim, &x, &c->a->err);
    int32_t *pos = imp_sys_malloc(longest * sizeof *pos);
    if (s == IMP_OK && pos == NULL) s = imp_fail(&c->a->err, IMP_NOMEM, "out of memory");
    for (uint32_t i = 0; i < longest && s == IMP_OK; i++) pos[i] = (int32_t)i;
    for (uint32_t i = 0; i < c->n_text && s == IMP_OK; i++) {
        imp_batch_seq seq = {.n_tok = (uint32_t)c->text[i].n};
        imp_batch b = {.n_tok = seq.n_tok, .n_seq = 1, .token = c->text[i].id, .pos = pos, .seq = &seq};
        const float *v;
        s = dev->ops->run(x, &b, &v, &c->a->err);
        if (s == IMP_OK) memcpy(c->want + (size_t)i * dim, v, dim * sizeof *v);
    }
    imp_sys_free(pos);
    if (x != NULL) dev->ops->exec_free(x);
    dev->ops->close(dev);
    return s;
}

/* ---- the package by the evaluator ----------------------------------------------------------------------------------- */

static imp_status open_runner(conversion *c, imp_ml_runner **out)
{
    const char *path[IMP_ML_MAX_CHUNK];
    for (uint32_t i = 0; i < c->report.n_chunk; i++) path[i] = c->report.path[i];
    return imp_ml_runner_new(c->g, path, c->report.n_chunk, IMP_ML_F16, c->pool, out, &c->a->err);
}

static imp_status package_vectors(conversion *c)
{
    imp_ml_runner *r;
    uint32_t dim = c->net->cfg.embed_dim, s_len;
    uint64_t n;
    IMP_TRY(open_runner(c, &r));
    imp_status s = IMP_OK;
    app_bar_begin("verifying", c->n_text, "texts");
    for (uint32_t i = 0; i < c->n_text && s == IMP_OK; i++) {
        s = imp_ml_runner_run(r, c->text[i].id, NULL, (uint32_t)c->text[i].n, &c->a->err);
        if (s != IMP_OK || c->got == NULL) continue;
        const float *v = imp_ml_runner_out(r, "embedding", &n, &s_len);
        if (v == NULL || n != dim)
            s = imp_fail(&c->a->err, IMP_INTERNAL, "the package's vectors have the wrong size");
        else
            memcpy(c->got + (size_t)i * dim, v, dim * sizeof *v);
        app_bar_add(1);
    }
    app_bar_end();
    imp_ml_runner_overflow(r, &c->over);
    imp_ml_runner_free(r);
    return s;
}

/* ---- how far apart ----------------------------------------------------------------------------------------------------- */

static double cosine(const float *a, const float *b, uint32_t n)
{
    double ab = 0, aa = 0, bb = 0;
    for (uint32_t i = 0; i < n; i++) {
        ab += (double)a[i] * (double)b[i];
        aa += (double)a[i] * (double)a[i];
        bb += (double)b[i] * (double)b[i];
    }
    return aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : 0;
}

typedef struct ranked {
    double similarity;
    uint32_t text;
} ranked;

static int by_similarity(const void *a, const void *b)
{
    double x = ((const ranked *)a)->similarity, y = ((const ranked *)b)->similarity;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Every text's place when all are ordered by similarity to text q. */
static void places(const float *v, uint32_t n, uint32_t dim, uint32_t q, ranked *tmp, double *place)
{
    for (uint32_t i = 0; i < n; i++)
        tmp[i] = (ranked){cosine(v + (size_t)q * dim, v + (size_t)i * dim, dim), i};
    qsort(tmp, n, sizeof *tmp, by_similarity);
    for (uint32_t i = 0; i < n; i++) place[tmp[i].text] = i;
}

static imp_status compare(conversion *c)
{
    uint32_t n = c->n_text, dim = c->net->cfg.embed_dim;
    ranked *tmp = imp_sys_malloc(n * sizeof *tmp);
    double *p = imp_sys_malloc(2 * (size_t)n * sizeof *p), sum = 0;
    c->worst = 1, c->mean = 0;
    if (tmp != NULL && p != NULL) {
        for (uint32_t q = 0; q < n; q++) {
            double d2 = 0, cos = cosine(c->want + (size_t)q * dim, c->got + (size_t)q * dim, dim);
            c->worst = fmin(c->worst, cos);
            c->mean += cos / n;
            places(c->want, n, dim, q, tmp, p);
            places(c->got, n, dim, q, tmp, p + n);
            for (uint32_t i = 0; i < n; i++) d2 += (p[i] - p[n + i]) * (p[i] - p[n + i]);
            sum += 1 - 6 * d2 / ((double)n * ((double)n * n - 1)); /* Spearman */
        }
        c->loss = 1 - sum / n;
    }
    bool ok = tmp != NULL && p != NULL;
    imp_sys_free(tmp);
    imp_sys_free(p);
    return ok ? IMP_OK : imp_fail(&c->a->err, IMP_NOMEM, "out of memory");
}

static imp_status prepare_verify(conversion *c)
{
    IMP_TRY(read_texts(c));
    if (c->n_text < 3)
        return imp_fail(&c->a->err, IMP_INVALID, "--verify needs 3 texts that fit the lengths");
    if (c->g != c->net->embed) return IMP_OK;
    size_t n = (size_t)c->n_text * c->net->cfg.embed_dim;
    c->want = imp_sys_malloc(n * sizeof(float));
    c->got = imp_sys_malloc(n * sizeof(float));
    if (c->want == NULL || c->got == NULL) return imp_fail(&c->a->err, IMP_NOMEM, "out of memory");
    return source_vectors(c);
}

/* ---- converting --------------------------------------------------------------------------------------------------------- */

static imp_status convert_once(conversion *c)
{
    uint64_t total = 0;
    for (imp_val v = 1; v <= imp_graph_n(c->g); v++) {
        const imp_node *n = imp_graph_node(c->g, v);
        if (n->op == IMP_OP_LINEAR)
            total += imp_tensor_bytes(&imp_graph_node(c->g, n->in[1])->u.weight.part[0]);
    }
    c->shown = 0;
    app_bar_begin("converting", total, "bytes");
    imp_status s = imp_ml_convert(c->g, c->out, &c->opt, &c->report, &c->a->err);
    app_bar_end();
    return s;
}

static imp_status verify(conversion *c)
{
    IMP_TRY(package_vectors(c));
    if (c->over.n_nan > 0)
        return imp_fail(&c->a->err, IMP_INTERNAL, "the package computes %llu values that are no numbers",
                        (unsigned long long)c->over.n_nan);
    return c->got != NULL ? compare(c) : IMP_OK;
}

/* The smallest form whose loss is allowed. */
static imp_status search(conversion *c, double max_loss)
{
    static const char *const ladder[] = {"lut2g8", "lut3g8", "lut4g8", "lut6g16", "int8", "fp16"};
    for (size_t i = 0; i < IMP_COUNT(ladder); i++) {
        if (!imp_ml_packing_parse(ladder[i], &c->opt.pack)) continue;
        imp_ml_report_deinit(&c->report);
        IMP_TRY(convert_once(c));
        IMP_TRY(verify(c));
        fprintf(stderr, "%-8s loss %.4f %%\n", ladder[i], 100 * c->loss);
        if (c->loss <= max_loss) return IMP_OK;
    }
    return imp_fail(&c->a->err, IMP_UNSUPPORTED,
                    "no form keeps the loss below %.4g %%; the best one loses %.4g %%", 100 * max_loss,
                    100 * c->loss);
}

static imp_status run(conversion *c)
{
    bool search_ = opt_set(&c->a->opt, OPT_MAX_LOSS), check = opt_on(&c->a->opt, OPT_VERIFY) || search_;
    if (search_ && c->g != c->net->embed)
        return imp_fail(&c->a->err, IMP_UNSUPPORTED, "--max-loss is for models that embed");
    if (check) IMP_TRY(prepare_verify(c));
    if (search_) return search(c, c->a->opt.v[OPT_MAX_LOSS].f);
    IMP_TRY(convert_once(c));
    return check ? verify(c) : IMP_OK;
}

/* ---- saying it ------------------------------------------------------------------------------------------------------------ */

static json_t *verify_json(const conversion *c)
{
    if (c->n_text == 0) return json_null();
    bool v = c->got != NULL;
    return json_pack("{s:s, s:i, s:o, s:o, s:o, s:f, s:I, s:s}", "by", "evaluator, fp16", "texts",
                     (int)c->n_text, "worst_cosine", v ? json_real(c->worst) : json_null(), "mean_cosine",
                     v ? json_real(c->mean) : json_null(), "loss", v ? json_real(c->loss) : json_null(),
                     "max_abs", (double)c->over.max_abs, "saturated", (json_int_t)c->over.n_saturated,
                     "max_abs_op", c->over.op);
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
        json_array_append_new(
            weights, json_pack("{s:s, s:s, s:I, s:I, s:I, s:f, s:I}", "name", w->name, "form", w->how, "rows",
                               (json_int_t)w->n, "columns", (json_int_t)w->k, "bytes", (json_int_t)w->bytes,
                               "relative_error", w->error, "clamped", (json_int_t)w->n_clamped));
    }
    return app_print_json(c->a,
                          json_pack("{s:s, s:s, s:i, s:I, s:I, s:o, s:o, s:o}", "model", c->a->arg[0], "form",
                                    how, "spec", (int)c->report.spec, "bytes", (json_int_t)c->report.bytes,
                                    "fp16_bytes", (json_int_t)c->report.half_bytes, "verify", verify_json(c),
                                    "packages", packages, "weights", weights));
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
    if (c->got != NULL)
        printf("verified   %u texts by the evaluator in fp16: cosine at least %.6f, mean %.6f; retrieval "
               "order loses %.4f %%\n",
               c->n_text, c->worst, c->mean, 100 * c->loss);
    if (c->n_text > 0)
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
            a, "--compress: '%.40s' is none of fp16, lut1|2|3|4|6|8[gROWS|t], int8, int4[bCOLUMNS]", how);
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
    c->opt.source = c->net->cfg.name[0] ? c->net->cfg.name : a->arg[0];
    c->opt.progress = progress;
    c->opt.user = c;
    return APP_OK;
}

static app_result convert(conversion *c)
{
    app *a = c->a;
    app_result r = read_options(c);
    if (r != APP_OK) return r;
    if (imp_pool_new(app_n_thread(a), &c->pool) != IMP_OK)
        return app_failed(a, "the threads could not be started");
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
    for (uint32_t i = 0; i < c->n_text; i++) imp_ids_deinit(&c->text[i]);
    imp_sys_free(c->want);
    imp_sys_free(c->got);
    if (c->pool != NULL) imp_pool_free(c->pool);
    imp_ml_report_deinit(&c->report);
    imp_net_close(c->net);
    return r;
}
