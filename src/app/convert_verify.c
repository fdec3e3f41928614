/* app/convert_verify.c - a converted package against its source: run by the evaluator of ML Programs in half precision, the
 * source on the CPU, on the same texts.
 *
 * Idea:    encoders: cosine of the vectors, and the loss: 1 - the mean rank correlation of every text's similarities to the
 *          others. Decoders: the package's keys and values go into the CPU's cache, the last token of each text is run
 *          there, and its logits are compared with those that the CPU reaches alone. */
#include <math.h>

#include "app/convert.h"
#include "dev/dev.h"

/* ---- the source on the CPU -------------------------------------------------------------------------------------- */

static imp_status source_vectors(conversion *c)
{
    uint32_t longest = 0, dim = c->net->cfg.embed_dim;
    imp_device *dev;
    imp_exec *x = NULL;
    for (uint32_t i = 0; i < c->check.n; i++) longest = IMP_MAX(longest, (uint32_t)c->check.text[i].n);
    imp_limits lim = {.max_tok = longest, .max_seq = 1, .max_out = 1, .max_ctx = longest};
    IMP_TRY(imp_dev_open("cpu", opt_u32(&c->a->opt, OPT_THREADS), &dev, &c->a->err));
    imp_status s = dev->ops->compile(dev, c->g, &lim, &x, &c->a->err);
    int32_t *pos = imp_sys_malloc(longest * sizeof *pos);
    if (s == IMP_OK && pos == NULL) s = imp_fail(&c->a->err, IMP_NOMEM, "out of memory");
    for (uint32_t i = 0; i < longest && s == IMP_OK; i++) pos[i] = (int32_t)i;
    for (uint32_t i = 0; i < c->check.n && s == IMP_OK; i++) {
        imp_batch_seq seq = {.n_tok = (uint32_t)c->check.text[i].n};
        imp_batch b = {.n_tok = seq.n_tok, .n_seq = 1, .token = c->check.text[i].id, .pos = pos, .seq = &seq};
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
    app_bar_begin("verifying", c->check.n, "texts");
    for (uint32_t i = 0; i < c->check.n && s == IMP_OK; i++) {
        s = imp_ml_runner_run(r, c->check.text[i].id, NULL, (uint32_t)c->check.text[i].n, &c->a->err);
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

/* ---- comparing --------------------------------------------------------------------------------------------------------- */

static imp_status compare(conversion *c)
{
    uint32_t n = c->check.n, dim = c->net->cfg.embed_dim;
    imp_ml_distance *d = &c->distance;
    *d = (imp_ml_distance){.n_text = n, .worst_cosine = 1};
    for (uint32_t q = 0; q < n; q++) {
        double cos = imp_ml_cosine(c->want + (size_t)q * dim, c->got + (size_t)q * dim, dim);
        d->worst_cosine = fmin(d->worst_cosine, cos);
        d->mean_cosine += cos / n;
    }
    return imp_ml_order_loss(c->want, c->got, n, dim, &d->loss)
               ? IMP_OK
               : imp_fail(&c->a->err, IMP_NOMEM, "out of memory");
}

imp_status conv_prepare_verify(conversion *c)
{
    IMP_TRY(conv_read_texts(c, opt_str(&c->a->opt, OPT_TEXT), UINT64_MAX, &c->check));
    if (c->g != c->net->embed) return IMP_OK;
    size_t n = (size_t)c->check.n * c->net->cfg.embed_dim;
    c->want = imp_sys_malloc(n * sizeof(float));
    c->got = imp_sys_malloc(n * sizeof(float));
    if (c->want == NULL || c->got == NULL) return imp_fail(&c->a->err, IMP_NOMEM, "out of memory");
    return source_vectors(c);
}

imp_status conv_verify(conversion *c)
{
    IMP_TRY(package_vectors(c));
    if (c->over.n_nan > 0)
        return imp_fail(&c->a->err, IMP_INTERNAL, "the package computes %llu values that are no numbers",
                        (unsigned long long)c->over.n_nan);
    return c->got != NULL ? compare(c) : IMP_OK;
}
