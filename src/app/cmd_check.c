/* app/cmd_check.c - `impetus check`: is a model's file whole, are its numbers sane, does its tokenizer hold together.
 *
 * Idea:    three parts, each reported even when another fails: structure (everything imp_net_open demands), values
 *          (every tensor decoded and looked at, all cores), tokenizer (round trips, special tokens).
 * Always:  a problem is one sentence in the list; the exit code is 1 when the list is not empty. */
#include <math.h>

#include "app/app.h"
#include "app/check.h"
#include "app/package.h"
#include "base/thread.h"
#include "fmt/gguf.h"
#include "fmt/hf.h"
#include "model/net.h"

void app_problem(app_report *r, const char *fmt, ...)
{
    char text[600];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    r->n_problem++;
    if (!opt_on(&r->a->opt, OPT_JSON)) printf("PROBLEM  %s\n", text);
    json_array_append_new(r->problems, app_json_text(text, strlen(text)));
}

/* ---- values ------------------------------------------------------------------------------------------- */

typedef struct stats {
    float min, max;
    double abs_sum;
    uint64_t n, n_nan, n_inf;
} stats;

typedef struct scan {
    const imp_tensor *t;
    float *row;  /* [n_thread][n_col], owned */
    stats *part; /* [n_thread], owned */
    uint64_t n_row, n_col;
} scan;

static void scan_rows(void *ctx, uint32_t ith, uint32_t n_thread)
{
    scan *s = ctx;
    stats st = {.min = INFINITY, .max = -INFINITY};
    float *row = s->row + ith * s->n_col;
    uint64_t row_bytes = imp_tensor_bytes(s->t) / s->n_row, unseen = 0;
    for (uint64_t r = ith; r < s->n_row; r += n_thread) {
        imp_tensor_row_f32(s->t, r, row);
        for (uint64_t i = 0; i < s->n_col; i++) {
            float v = row[i];
            if (isnan(v)) {
                st.n_nan++;
            } else if (isinf(v)) {
                st.n_inf++;
            } else {
                st.min = v < st.min ? v : st.min;
                st.max = v > st.max ? v : st.max;
                st.abs_sum += fabs((double)v);
                st.n++;
            }
        }
        unseen += row_bytes;
        if (unseen > 1 << 20) app_bar_add(unseen), unseen = 0;
    }
    app_bar_add(unseen);
    s->part[ith] = st;
}

static imp_status scan_tensor(app *a, imp_pool *pool, const imp_tensor *t, stats *out)
{
    uint32_t n = imp_pool_n_thread(pool);
    scan s = {.t = t, .n_row = imp_tensor_n_row(t), .n_col = imp_tensor_n_col(t)};
    uint64_t bytes;
    *out = (stats){.min = INFINITY, .max = -INFINITY};
    if (s.n_row == 0 || s.n_col == 0) return IMP_OK;
    if (!imp_mul_u64(s.n_col, n * sizeof(float), &bytes))
        return imp_fail(&a->err, IMP_TOO_LARGE, "a tensor's row is too long");
    s.row = imp_sys_malloc(bytes);
    s.part = imp_sys_calloc(n, sizeof *s.part);
    if (s.row && s.part) imp_pool_run(pool, scan_rows, &s);
    for (uint32_t i = 0; s.row && s.part && i < n; i++) {
        out->min = fminf(out->min, s.part[i].min);
        out->max = fmaxf(out->max, s.part[i].max);
        out->abs_sum += s.part[i].abs_sum;
        out->n += s.part[i].n;
        out->n_nan += s.part[i].n_nan;
        out->n_inf += s.part[i].n_inf;
    }
    bool ok = s.row && s.part;
    imp_sys_free(s.row);
    imp_sys_free(s.part);
    return ok ? IMP_OK : imp_fail(&a->err, IMP_NOMEM, "no memory to decode a tensor");
}

static const char *shape_text(const imp_tensor *t, char out[96])
{
    size_t n = 0;
    out[0] = 0;
    for (uint32_t i = 0; i < t->n_dim && i < IMP_MAX_DIM; i++)
        n += (size_t)snprintf(out + n, 96 - n, "%s%llu", i ? "x" : "", (unsigned long long)t->dim[i]);
    return out;
}

static const char *type_text(const imp_tensor *t, char out[32])
{
    if (t->dtype == IMP_AFFINE)
        snprintf(out, 32, "affine%ug%u", t->bits, t->group);
    else
        snprintf(out, 32, "%s", imp_dtype_get(t->dtype)->name);
    return out;
}

static void report_tensor(app_report *r, const char *name, const imp_tensor *t, const stats *st)
{
    char type[32], shape[96];
    double absmean = st->n ? st->abs_sum / (double)st->n : NAN;
    type_text(t, type);
    shape_text(t, shape);
    json_array_append_new(r->tensors,
                          json_pack("{s:o, s:s, s:s, s:o, s:o, s:o, s:I, s:I}", "name",
                                    app_json_text(name, strlen(name)), "type", type, "shape", shape, "min",
                                    app_json_round((double)st->min, 7), "max",
                                    app_json_round((double)st->max, 7), "absmean", app_json_round(absmean, 7),
                                    "nan", (json_int_t)st->n_nan, "inf", (json_int_t)st->n_inf));
    if (opt_on(&r->a->opt, OPT_VERBOSE) && !opt_on(&r->a->opt, OPT_JSON))
        printf("%-40s %-8s %-16s min %-12.5g max %-12.5g absmean %-12.5g\n", name, type, shape,
               (double)st->min, (double)st->max, absmean);
    if (st->n_nan || st->n_inf)
        app_problem(r, "tensor '%s' (%s, %s) has %llu NaN and %llu infinite values of %llu", name, type,
                    shape, (unsigned long long)st->n_nan, (unsigned long long)st->n_inf,
                    (unsigned long long)imp_tensor_n_elem(t));
}

/* One directory of tensors, whichever format it came from. */
typedef struct directory {
    imp_gguf *gguf;
    imp_hf *hf;
} directory;

static uint64_t dir_n(const directory *d)
{
    return d->gguf ? imp_gguf_n_tensor(d->gguf) : imp_hf_n_tensor(d->hf);
}

static const imp_tensor *dir_at(app *a, const directory *d, uint64_t i, const char **name)
{
    imp_str s;
    if (d->hf) return imp_hf_tensor_at(d->hf, i, name);
    const imp_tensor *t = imp_gguf_tensor_at(d->gguf, i, &s);
    *name = imp_arena_strndup(a->arena, s.p, s.n);
    return *name ? t : NULL;
}

static imp_status check_values(app_report *r, const directory *d)
{
    imp_pool *pool;
    imp_status s = imp_pool_new(app_n_thread(r->a), &pool);
    if (s != IMP_OK) return imp_fail(&r->a->err, s, "the checking threads could not be started");
    uint64_t total = 0;
    const char *name;
    for (uint64_t i = 0; i < dir_n(d); i++) {
        const imp_tensor *t = dir_at(r->a, d, i, &name);
        if (t) total += imp_tensor_bytes(t);
    }
    app_bar_begin("checking", total, "bytes");
    for (uint64_t i = 0; i < dir_n(d) && s == IMP_OK; i++) {
        stats st;
        const imp_tensor *t = dir_at(r->a, d, i, &name);
        if (!t) {
            s = imp_fail(&r->a->err, IMP_NOMEM, "out of memory");
            break;
        }
        if (t->dtype != IMP_AFFINE && !imp_dtype_get(t->dtype)->to_f32)
            continue; /* whole numbers: nothing to be NaN */
        app_bar_note(name);
        s = scan_tensor(r->a, pool, t, &st);
        if (s == IMP_OK) {
            report_tensor(r, name, t, &st);
            r->n_tensor++;
        }
    }
    app_bar_end();
    imp_pool_free(pool);
    return s;
}

static imp_status open_directory(app *a, const char *path, directory *d)
{
    if (imp_sys_is_dir(path) || app_has_suffix(path, ".safetensors"))
        return imp_hf_open(path, &d->hf, &a->err);
    return imp_gguf_open(path, &d->gguf, &a->err);
}

/* ---- the whole ------------------------------------------------------------------------------------------ */

static imp_status check_all(app_report *r, const char *path)
{
    app *a = r->a;
    directory d = {0};
    imp_net *net;
    imp_status s = open_directory(a, path, &d);
    if (s == IMP_NOMEM || s == IMP_IO) return s;
    if (s != IMP_OK) {
        app_problem(r, "%s", a->err.text);
        return IMP_OK;
    }
    s = check_values(r, &d);
    if (d.gguf) imp_gguf_close(d.gguf);
    if (d.hf) imp_hf_close(d.hf);
    IMP_TRY(s);
    s = imp_net_open(path, 0, &net, &a->err);
    if (s == IMP_NOMEM || s == IMP_IO) return s;
    if (s != IMP_OK) {
        app_problem(r, "%s", a->err.text);
        return IMP_OK;
    }
    r->structure = true;
    snprintf(r->arch, sizeof r->arch, "%s", net->cfg.arch);
    if (net->tok)
        s = app_check_tokenizer(r, net);
    else
        app_problem(r, "there is no tokenizer in the model's files");
    imp_net_close(net);
    return s;
}

app_result cmd_check(app *a)
{
    const char *path;
    if (app_is_package(a->arg[0])) return app_check_package(a, a->arg[0]);
    app_report r = {.a = a, .problems = json_array(), .tensors = json_array(), .tokenizer = json_object()};
    if (app_model_path(a, a->arg[0], &path, &a->err) != IMP_OK) return APP_FAILED;
    imp_status s = check_all(&r, path);
    if (s != IMP_OK) {
        json_decref(r.problems);
        json_decref(r.tensors);
        json_decref(r.tokenizer);
        return APP_FAILED;
    }
    if (opt_on(&a->opt, OPT_JSON)) {
        app_result p =
            app_print_json(a, json_pack("{s:s, s:b, s:b, s:o, s:o, s:o}", "model", path, "ok",
                                        r.n_problem == 0, "structure", r.structure, "tensors", r.tensors,
                                        "tokenizer", r.tokenizer, "problems", r.problems));
        if (p != APP_OK) return p;
    } else {
        if (r.structure) printf("structure  ok (%s)\n", r.arch);
        printf("values     %zu tensors read\n", r.n_tensor);
        if (r.n_round_trip)
            printf("tokenizer  %zu texts there and back, %zu of them normalised\n", r.n_round_trip,
                   r.n_normalised);
        json_decref(r.problems);
        json_decref(r.tensors);
        json_decref(r.tokenizer);
    }
    if (r.n_problem == 0) {
        if (!opt_on(&a->opt, OPT_JSON)) puts("ok");
        return APP_OK;
    }
    if (app_out_flush(&a->err) != IMP_OK) return APP_FAILED;
    return app_failed(a, "%zu problem%s found in '%.200s'", r.n_problem, r.n_problem == 1 ? "" : "s", path);
}
