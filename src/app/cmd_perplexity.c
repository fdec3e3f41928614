/* app/cmd_perplexity.c - `impetus perplexity`: how well a model predicts a text, alone or beside a second model.
 *
 * Idea:    windows of n tokens without overlap; the first token of each becomes BOS when the model adds one; positions
 *          n/2 .. n-2 are scored, each predicting its next token. exp(mean negative log-likelihood). For --against the
 *          reference's log-probabilities of a window are kept, then the model's are compared position by position.
 * Threads: scores are computed on the scheduler's thread, in the callback; the main thread reads them after the end.
 * Source:  the method of llama.cpp's perplexity tool, so that numbers compare. */
#include <math.h>

#include "app/app.h"

enum { DEFAULT_WINDOW = 512 };

typedef struct moments { /* mean and its standard error */
    double sum, sum2;
    uint64_t n;
} moments;

typedef struct ppl {
    app *a;
    imp_model *m, *ref; /* ref NULL without --against */
    int32_t *ids, *win; /* owned: all tokens; the window */
    size_t n_ids, n_ctx, first, n_vocab;
    int32_t bos;     /* -1: none */
    float *ref_logp; /* [n_ctx - 1 - first][n_vocab], owned */
    bool scoring_ref;
    size_t n_come;
    moments nll, ref_nll, kl;
    double kl_max;
    uint64_t n_same;
} ppl;

static void add(moments *m, double x)
{
    m->sum += x;
    m->sum2 += x * x;
    m->n++;
}

static double mean(const moments *m)
{
    return m->n ? m->sum / (double)m->n : NAN;
}

static double std_error(const moments *m)
{
    if (m->n < 2) return NAN;
    double n = (double)m->n, var = m->sum2 / n - mean(m) * mean(m);
    return sqrt(fmax(var, 0) / (n - 1));
}

static double log_sum_exp(const float *v, size_t n)
{
    float max = v[0];
    double sum = 0;
    for (size_t i = 1; i < n; i++) max = v[i] > max ? v[i] : max;
    for (size_t i = 0; i < n; i++) sum += (double)expf(v[i] - max);
    return (double)max + log(sum);
}

static void compare(ppl *p, const float *logp, const float *v, double lse)
{
    double kl = 0;
    size_t best = 0, ref_best = 0;
    for (size_t i = 0; i < p->n_vocab; i++) {
        if (v[i] > v[best]) best = i;
        if (logp[i] > logp[ref_best]) ref_best = i;
        float prob = expf(logp[i]);
        if (prob > 0) kl += (double)prob * ((double)logp[i] - ((double)v[i] - lse));
    }
    kl = fmax(kl, 0);
    add(&p->kl, kl);
    p->kl_max = fmax(p->kl_max, kl);
    p->n_same += best == ref_best;
}

static void take_logits(void *user, size_t index, const float *v, size_t n)
{
    ppl *p = user;
    if (index < p->first || index + 1 >= p->n_ctx || n != p->n_vocab) return;
    double lse = log_sum_exp(v, n), nll = lse - (double)v[p->win[index + 1]];
    float *logp = p->ref_logp ? p->ref_logp + (index - p->first) * n : NULL;
    p->n_come++;
    add(p->scoring_ref ? &p->ref_nll : &p->nll, nll);
    if (p->scoring_ref)
        for (size_t i = 0; i < n; i++) logp[i] = (float)((double)v[i] - lse);
    else if (logp)
        compare(p, logp, v, lse);
}

static imp_status score(ppl *p, imp_model *m)
{
    imp_request q = {.kind = IMP_REQUEST_SCORE, .ids = p->win, .n_ids = &p->n_ctx, .n_input = 1};
    app_sink sink = {.vector = take_logits, .user = p};
    app_outcome end;
    p->scoring_ref = m == p->ref;
    p->n_come = 0;
    IMP_TRY(app_request_run(p->a->engine, m, &q, &sink, &end, &p->a->err));
    if (p->n_come == p->n_ctx - 1 - p->first) return IMP_OK;
    return imp_fail(&p->a->err, IMP_INTERNAL, "%zu of %zu positions came back", p->n_come,
                    p->n_ctx - 1 - p->first);
}

/* The token that the model puts before a text, seen by tokenising one both ways. */
static imp_status find_bos(ppl *p)
{
    int32_t *with = NULL, *without = NULL;
    size_t n_with = 0, n_without = 0;
    p->bos = -1;
    imp_status s = imp_tokenize(p->m, "a", 1, IMP_TOK_ADD_SPECIAL, &with, &n_with, &p->a->err);
    if (s == IMP_OK) s = imp_tokenize(p->m, "a", 1, 0, &without, &n_without, &p->a->err);
    if (s == IMP_OK && n_with > n_without && n_without > 0 && with[0] != without[0]) p->bos = with[0];
    imp_free(with);
    imp_free(without);
    return s;
}

static imp_status read_tokens(ppl *p, const char *path)
{
    imp_sys_file f;
    IMP_TRY(imp_sys_file_open(path, true, &f, &p->a->err));
    const char *text = f.data ? (const char *)f.data : "";
    imp_status s = imp_tokenize(p->m, text, f.n, IMP_TOK_ADD_SPECIAL, &p->ids, &p->n_ids, &p->a->err);
    if (s == IMP_OK && p->ref) {
        int32_t *other = NULL;
        size_t n = 0;
        s = imp_tokenize(p->ref, text, f.n, IMP_TOK_ADD_SPECIAL, &other, &n, &p->a->err);
        if (s == IMP_OK && (n != p->n_ids || memcmp(other, p->ids, n * sizeof *other)))
            s = imp_fail(&p->a->err, IMP_INVALID,
                         "the two models cut the text into different tokens; they cannot be compared");
        imp_free(other);
    }
    imp_sys_file_close(&f);
    if (s == IMP_OK && p->n_ids < p->n_ctx)
        s = imp_fail(
            &p->a->err, IMP_INVALID,
            "the text has %zu tokens, less than one window of %zu; use a longer text or a smaller --ctx",
            p->n_ids, p->n_ctx);
    return s;
}

static imp_status check_model(ppl *p, imp_model *m, const char *name)
{
    const imp_model_info *i = imp_model_get_info(m);
    if (!i->can_generate)
        return imp_fail(&p->a->err, IMP_UNSUPPORTED, "'%.200s' makes embeddings; it predicts no text", name);
    if (i->n_ctx < p->n_ctx)
        return imp_fail(&p->a->err, IMP_TOO_LARGE, "'%.200s' holds %u tokens, --ctx asks for windows of %zu",
                        name, i->n_ctx, p->n_ctx);
    if (p->n_vocab && i->n_vocab != p->n_vocab)
        return imp_fail(&p->a->err, IMP_INVALID,
                        "the models have vocabularies of %zu and %u tokens; they cannot be compared",
                        p->n_vocab, i->n_vocab);
    p->n_vocab = i->n_vocab;
    return IMP_OK;
}

static imp_status setup(ppl *p)
{
    app *a = p->a;
    const char *against = opt_str(&a->opt, OPT_AGAINST);
    p->n_ctx = opt_u32(&a->opt, OPT_CTX);
    p->first = p->n_ctx / 2;
    IMP_TRY(app_load(a, a->arg[0], NULL, &p->m));
    IMP_TRY(check_model(p, p->m, a->arg[0]));
    if (against) {
        IMP_TRY(app_load(a, against, "against", &p->ref));
        IMP_TRY(check_model(p, p->ref, against));
    }
    IMP_TRY(find_bos(p));
    IMP_TRY(read_tokens(p, a->arg[1]));
    uint64_t bytes;
    p->win = imp_sys_malloc(p->n_ctx * sizeof *p->win);
    if (!p->win) return imp_fail(&a->err, IMP_NOMEM, "no memory for a window");
    if (!against) return IMP_OK;
    if (imp_mul_u64((uint64_t)(p->n_ctx - 1 - p->first), p->n_vocab * sizeof(float), &bytes))
        p->ref_logp = imp_sys_malloc(bytes);
    return p->ref_logp
               ? IMP_OK
               : imp_fail(&a->err, IMP_NOMEM, "no memory for the reference's logits; use a smaller --ctx");
}

static imp_status score_windows(ppl *p, uint64_t n_win)
{
    imp_status s = IMP_OK;
    app_bar_begin("perplexity", n_win, "windows");
    for (uint64_t w = 0; w < n_win && s == IMP_OK; w++) {
        char note[48];
        memcpy(p->win, p->ids + w * p->n_ctx, p->n_ctx * sizeof *p->win);
        if (p->bos >= 0) p->win[0] = p->bos;
        if (p->ref) s = score(p, p->ref);
        if (s == IMP_OK) s = score(p, p->m);
        snprintf(note, sizeof note, "ppl %.4f", exp(mean(&p->nll)));
        app_bar_note(note);
        app_bar_add(1);
    }
    app_bar_end();
    return s;
}

static app_result print_json(ppl *p, uint64_t n_win)
{
    double v = exp(mean(&p->nll)), r = exp(mean(&p->ref_nll));
    json_t *against = json_null();
    if (p->ref)
        against =
            json_pack("{s:s, s:o, s:o, s:o, s:o, s:o}", "model", opt_str(&p->a->opt, OPT_AGAINST), "ppl",
                      app_json_round(r, 8), "kl_mean", app_json_round(mean(&p->kl), 8), "kl_std_error",
                      app_json_round(std_error(&p->kl), 4), "kl_max", app_json_round(p->kl_max, 8),
                      "top1_agreement", app_json_round((double)p->n_same / (double)p->kl.n, 8));
    return app_print_json(
        p->a, json_pack("{s:s, s:s, s:I, s:I, s:I, s:o, s:o, s:s, s:o}", "model", p->a->arg[0], "file",
                        p->a->arg[1], "ctx", (json_int_t)p->n_ctx, "windows", (json_int_t)n_win,
                        "tokens_scored", (json_int_t)p->nll.n, "ppl", app_json_round(v, 8), "ppl_std_error",
                        app_json_round(v * std_error(&p->nll), 4), "method",
                        "non-overlapping windows, BOS first when the model adds it, second half scored",
                        "against", against));
}

static void print_human(const ppl *p, uint64_t n_win)
{
    double v = exp(mean(&p->nll));
    printf("perplexity %.4f +/- %.4f (%llu tokens scored in %llu windows of %zu)\n", v,
           v * std_error(&p->nll), (unsigned long long)p->nll.n, (unsigned long long)n_win, p->n_ctx);
    if (!p->ref) return;
    printf("against    %.4f  %s\n", exp(mean(&p->ref_nll)), opt_str(&p->a->opt, OPT_AGAINST));
    printf("KL         %.6f +/- %.6f, max %.4f\n", mean(&p->kl), std_error(&p->kl), p->kl_max);
    printf("same top 1 %.3f %%\n", 100 * (double)p->n_same / (double)p->kl.n);
}

app_result cmd_perplexity(app *a)
{
    ppl p = {.a = a};
    app_value *ctx = &a->opt.v[OPT_CTX];
    if (!ctx->set) *ctx = (app_value){.set = true, .u = DEFAULT_WINDOW};
    imp_status s = setup(&p);
    uint64_t n_win = 0;
    if (s == IMP_OK) {
        n_win = p.n_ids / p.n_ctx;
        if (opt_set(&a->opt, OPT_PPL_WINDOWS)) n_win = IMP_MIN(n_win, a->opt.v[OPT_PPL_WINDOWS].u);
        s = score_windows(&p, n_win);
    }
    app_result r = APP_FAILED;
    if (s == IMP_OK && opt_on(&a->opt, OPT_JSON))
        r = print_json(&p, n_win);
    else if (s == IMP_OK)
        print_human(&p, n_win), r = APP_OK;
    imp_sys_free(p.ref_logp);
    imp_sys_free(p.win);
    imp_free(p.ids);
    return r;
}
