/* dev/coreml/keeper.c - what happens in the background: the package is made, workers are started and replaced.
 *
 * Idea:    once: convert, keep what the package must give for a probe text (by our evaluator). For every worker: start it,
 *          let it compile (kept by the package's hash and the system's build) and load, and hold the probe text's vector (of
 *          decoders: the keys and the values of every layer), in every length, against the expected. Only then requests get
 *          there.
 *          A worker that dies is replaced after a pause that doubles; max_fail deaths in a row end it. An answer "no" from
 *          Core ML while loading, or vectors that differ, ends it at once: it would say the same again.
 * Threads: the keeper's own; the executable's lock is never held while it works. */
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#include "dev/coreml/convert.h"
#include "dev/coreml/device.h"
#include "dev/coreml/runner.h"

enum { IDLE_MS = 500 };
static const double LEAST_COSINE = 0.99; /* half precision keeps 0.9999; another model or layout does not */

static void say(ml_exec *x, const char *fmt, va_list ap)
{
    (void)vsnprintf(x->text, sizeof x->text, fmt, ap);
    x->since_ns = imp_now_ns();
}

void ml_say(ml_exec *x, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    imp_mutex_lock(x->lock);
    say(x, fmt, ap);
    imp_log(IMP_LOG_INFO, "%s: %s", x->base.dev->name, x->text);
    imp_mutex_unlock(x->lock);
    va_end(ap);
}

/* ---- the package ------------------------------------------------------------------------------------------------- */

/* What is known of the packages before any worker has them; freed when the first one has loaded. */
typedef struct making {
    char path[ML_WIRE_PACKAGES][ML_WIRE_PATH]; /* "": not there (any more) */
    uint64_t hash[ML_WIRE_PACKAGES];
} making;

static imp_status hash_file(const char *package, const char *name, uint64_t *h, imp_error *err)
{
    char path[ML_WIRE_PATH + 64];
    imp_sys_file f;
    (void)snprintf(path, sizeof path, "%s/Data/com.apple.CoreML/%s", package, name);
    IMP_TRY(imp_sys_file_open(path, true, &f, err));
    *h = imp_hash(f.data, (size_t)f.n, *h);
    imp_sys_file_close(&f);
    return IMP_OK;
}

/* Layers whose keys a function gives, and the first of them. */
static uint32_t layers_of(const imp_mil_func *f, uint32_t *first)
{
    uint32_t n = 0, i;
    *first = UINT32_MAX;
    for (uint32_t k = 0; k < f->n_out; k++)
        if (sscanf(f->out[k].name, "k_%u", &i) == 1) n++, *first = IMP_MIN(*first, i);
    return n;
}

static uint64_t n_elem_of(const imp_mil_func *f, const char *name)
{
    for (uint32_t k = 0; k < f->n_out; k++)
        if (strcmp(f->out[k].name, name) == 0) return imp_mil_n_elem(&f->var[f->out[k].var].type);
    return 0;
}

/* Whether function f is chunk c's in length l: it takes what is noted and gives what follows. */
static bool is_chunk(const ml_load *ld, const imp_mil_func *f, uint32_t c, uint32_t l, bool last)
{
    const ml_shape *sh = &ld->shape;
    char name[16];
    uint64_t s = sh->s[l];
    bool ok = f->n_in > 0;
    for (uint32_t i = 0; i < f->n_in; i++)
        ok = ok && (strcmp(f->in[i].name, "hidden") != 0 || imp_mil_n_elem(&f->in[i].type) == sh->width * s);
    for (uint32_t k = ld->first_kv[c]; ok && k < ld->first_kv[c + 1]; k++)
        for (int v = 0; v < 2; v++) {
            (void)snprintf(name, sizeof name, "%c_%u", v == 0 ? 'k' : 'v', k);
            ok = ok && n_elem_of(f, name) == sh->kv_width[k] * s;
        }
    if (!last) return ok && n_elem_of(f, "hidden_out") == sh->width * s;
    return ok && (sh->dim == 0 || n_elem_of(f, "embedding") == sh->dim);
}

/* Names, inputs and layers of chunk c in the lengths l..l + n - 1, by our own strict reader. */
static imp_status read_package(ml_load *ld, uint32_t c, uint32_t l, uint32_t n, const char *path,
                               imp_error *err)
{
    imp_mlpackage *p;
    IMP_TRY(imp_mlpackage_open(path, &p, err));
    imp_status s =
        p->n_func == n ? IMP_OK : imp_fail(err, IMP_INTERNAL, "the package has %u functions", p->n_func);
    for (uint32_t i = 0; i < n && s == IMP_OK; i++) {
        const imp_mil_func *f = &p->func[i];
        (void)snprintf(ld->name[l + i], sizeof ld->name[0], "%.31s", f->name);
        uint32_t first, n_kv = layers_of(f, &first);
        ld->takes[c] = 0;
        for (uint32_t j = 0; j < f->n_in; j++)
            ld->takes[c] |= strcmp(f->in[j].name, "mask") == 0   ? ML_TAKES_MASK
                            : strcmp(f->in[j].name, "pool") == 0 ? ML_TAKES_POOL
                                                                 : 0u;
        ld->first_kv[c + 1] = ld->first_kv[c] + n_kv;
        if ((n_kv > 0 && first != ld->first_kv[c]) || ld->first_kv[c + 1] > ld->shape.n_kv ||
            !is_chunk(ld, f, c, l + i, c + 1 == ld->n_chunk))
            s = imp_fail(err, IMP_INTERNAL, "function %s gives something else than the model", f->name);
    }
    imp_mlpackage_close(p);
    return s;
}

static bool stopped(const ml_exec *x)
{
    return __atomic_load_n(&x->stop, __ATOMIC_ACQUIRE);
}

/* Convert with n lengths from l on; its packages are noted in m and in what the worker is told. */
static imp_status convert_some(ml_exec *x, making *m, uint32_t l, uint32_t n, imp_error *err)
{
    const ml_device *d = (const ml_device *)x->base.dev;
    ml_load *ld = &x->load;
    imp_ml_report report = {0};
    imp_ml_options o = {.source = "impetus", .n_bucket = n, .max_chunk = d->cfg.chunk_bytes};
    char path[ML_WIRE_PATH];
    bool joint = n == ld->shape.n_len;
    for (uint32_t i = 0; i < n; i++) o.bucket[i] = ld->shape.s[l + i];
    (void)snprintf(path, sizeof path, "%.400s/new-%d-%p-%u.mlpackage", d->cache_dir, (int)getpid(), (void *)x,
                   l);
    imp_status s = imp_ml_convert(x->graph, path, &o, &report, err);
    for (uint32_t c = 0; c < report.n_chunk; c++) { /* noted first: what was made is removed again */
        uint32_t k = joint ? c : c * ld->shape.n_len + l;
        if (k < ML_WIRE_PACKAGES)
            (void)snprintf(m->path[k], ML_WIRE_PATH, "%.511s", report.path[c]);
        else
            imp_sys_remove_tree(report.path[c]);
    }
    ld->n_chunk = report.n_chunk;
    ld->n_package = joint ? ld->n_chunk : ld->n_chunk * ld->shape.n_len;
    if (s == IMP_OK && (ld->n_package > ML_WIRE_PACKAGES || ld->n_chunk * ld->shape.n_len > ML_WIRE_FUNCS))
        s = imp_fail(err, IMP_TOO_LARGE, "the model would be %u Core ML packages, more than %d",
                     ld->n_package, ML_WIRE_PACKAGES);
    for (uint32_t c = 0; c < ld->n_chunk && s == IMP_OK; c++) {
        uint32_t k = joint ? c : c * ld->shape.n_len + l;
        s = read_package(ld, c, l, n, m->path[k], err);
        if (s == IMP_OK) s = hash_file(m->path[k], "model.mlmodel", &m->hash[k], err);
        if (s == IMP_OK) s = hash_file(m->path[k], "weights/weight.bin", &m->hash[k], err);
    }
    if (s == IMP_OK && ld->first_kv[ld->n_chunk] != ld->shape.n_kv)
        s = imp_fail(err, IMP_INTERNAL, "the packages give keys of %u layers, not %u",
                     ld->first_kv[ld->n_chunk], ld->shape.n_kv);
    imp_ml_report_deinit(&report);
    return s;
}

static void remove_packages(making *m)
{
    for (uint32_t k = 0; k < ML_WIRE_PACKAGES; k++)
        if (m->path[k][0] != '\0') {
            imp_sys_remove_tree(m->path[k]);
            m->path[k][0] = '\0';
        }
}

static void probe_tokens(const ml_exec *x, int32_t token[ML_PROBE_TOK])
{
    uint64_t n_row = UINT64_MAX; /* ids that every table has */
    for (imp_val v = 1; v <= imp_graph_n(x->graph); v++) {
        const imp_node *n = imp_graph_node(x->graph, v);
        if (n->op == IMP_OP_EMBED && n->u.embed.by == IMP_BY_TOKEN)
            n_row = IMP_MIN(n_row, imp_graph_node(x->graph, n->in[0])->u.weight.part[0].dim[0]);
    }
    for (int i = 0; i < ML_PROBE_TOK; i++) token[i] = (int32_t)((uint64_t)(1 + 131 * i) % IMP_MAX(n_row, 1u));
}

/* The runner's results in the order of ml_prefill_read. */
static imp_status expect_layers(ml_exec *x, const imp_ml_runner *r, imp_error *err)
{
    float *to = x->expect;
    for (uint32_t k = 0; k < x->load.shape.n_kv; k++)
        for (int v = 0; v < 2; v++) {
            char name[16];
            uint64_t n, width = x->load.shape.kv_width[k];
            uint32_t s;
            (void)snprintf(name, sizeof name, "%c_%u", v == 0 ? 'k' : 'v', k);
            const float *y = imp_ml_runner_out(r, name, &n, &s);
            if (y == NULL || n != width * s)
                return imp_fail(err, IMP_INTERNAL, "the package gives no %s", name);
            for (uint64_t c = 0; c < width; c++, y += s, to += ML_PROBE_TOK)
                memcpy(to, y, ML_PROBE_TOK * sizeof *y);
        }
    return IMP_OK;
}

static imp_status expect_probe(ml_exec *x, const making *m, imp_error *err)
{
    const char *path[ML_WIRE_CHUNKS];
    int32_t token[ML_PROBE_TOK];
    imp_ml_runner *r;
    uint64_t n = 0;
    uint32_t s, n_len = x->load.n_package == x->load.n_chunk ? 1 : x->load.shape.n_len;
    probe_tokens(x, token);
    for (uint32_t c = 0; c < x->load.n_chunk; c++) path[c] = m->path[c * n_len];
    IMP_TRY(imp_ml_runner_new(x->graph, path, x->load.n_chunk, IMP_ML_F32, NULL, &r, err));
    imp_status st = imp_ml_runner_run(r, token, NULL, ML_PROBE_TOK, err);
    if (st == IMP_OK && x->load.shape.n_kv > 0) {
        st = expect_layers(x, r, err);
    } else if (st == IMP_OK) {
        const float *v = imp_ml_runner_out(r, "embedding", &n, &s);
        if (v == NULL || n != x->n_expect)
            st = imp_fail(err, IMP_INTERNAL, "the package gives no vector");
        else
            memcpy(x->expect, v, (size_t)n * sizeof *v);
    }
    imp_ml_runner_free(r);
    return st;
}

static imp_status make_packages(ml_exec *x, making *m, imp_error *err)
{
    const ml_device *d = (const ml_device *)x->base.dev;
    uint64_t t0 = imp_now_ns(), os = imp_hash(d->info.os, strlen(d->info.os), 1);
    uint32_t n_len = x->load.shape.n_len, step = d->info.functions ? n_len : 1;
    ml_say(x, "the model is being converted");
    for (uint32_t l = 0; l < n_len && !stopped(x); l += step) IMP_TRY(convert_some(x, m, l, step, err));
    if (stopped(x)) return imp_fail(err, IMP_CANCELLED, "the model is being unloaded");
    IMP_TRY(expect_probe(x, m, err));
    for (uint32_t k = 0; k < x->load.n_package; k++) {
        memcpy(x->load.package[k], m->path[k], ML_WIRE_PATH);
        (void)snprintf(x->load.compiled[k], ML_WIRE_PATH, "%.800s/%016llx-%016llx.mlmodelc", d->cache_dir,
                       (unsigned long long)m->hash[k], (unsigned long long)os);
    }
    imp_log(IMP_LOG_INFO, "%s: converted in %.2f s", d->base.name, (double)(imp_now_ns() - t0) * 1e-9);
    return IMP_OK;
}

/* ---- a worker ------------------------------------------------------------------------------------------------------ */

static double cosine(const float *a, const float *b, uint32_t n)
{
    double ab = 0, aa = 0, bb = 0;
    for (uint32_t i = 0; i < n; i++)
        ab += (double)a[i] * (double)b[i], aa += (double)a[i] * (double)a[i],
            bb += (double)b[i] * (double)b[i];
    return ab / sqrt(aa * bb);
}

/* The least cosine between what slot 0 holds and what is expected: of the vector, or of each layer's keys and values. */
static double least_cosine(ml_exec *x, imp_proc *p, uint32_t len, float *got)
{
    const ml_shape *sh = &x->load.shape;
    if (sh->n_kv == 0) return cosine(ml_slot_out(x, p, 0), x->expect, sh->dim);
    const float *want = x->expect;
    double least = 1;
    ml_prefill_read(x, p, len, 0, ML_PROBE_TOK, got);
    for (uint32_t k = 0; k < sh->n_kv; k++)
        for (int v = 0; v < 2;
             v++, got += sh->kv_width[k] * ML_PROBE_TOK, want += sh->kv_width[k] * ML_PROBE_TOK) {
            double c = cosine(got, want, sh->kv_width[k] * ML_PROBE_TOK);
            if (!(c >= least)) least = c; /* no number is no agreement */
        }
    return least;
}

static imp_status check_probe(ml_exec *x, imp_proc *p, ml_body *answer, imp_error *err)
{
    const ml_device *d = (const ml_device *)x->base.dev;
    const ml_shape *sh = &x->load.shape;
    int32_t token[ML_PROBE_TOK];
    float *got = imp_sys_malloc((size_t)x->n_expect * sizeof *got);
    if (got == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while starting a worker");
    imp_status s = IMP_OK;
    probe_tokens(x, token);
    for (uint32_t l = 0; l < sh->n_len && s == IMP_OK; l++) {
        ml_run run = {.len = l, .n = 1};
        s = ml_fill_slot(x, p, l, 0, token, NULL, ML_PROBE_TOK, err);
        if (s == IMP_OK) s = ml_ask(p, ML_RUN, &run, ML_RAN, answer, d->cfg.run_ms, &x->stop, err);
        if (s != IMP_OK) break;
        double c = least_cosine(x, p, l, got);
        if (!(c >= LEAST_COSINE))
            s = imp_fail(
                err, IMP_UNSUPPORTED,
                "Core ML gives other %s than the model (length %u: cosine %.4f with the package's own)",
                sh->n_kv > 0 ? "keys and values" : "vectors", sh->s[l], c);
    }
    imp_sys_free(got);
    return s;
}

static void where_text(const ml_where *w, char out[96])
{
    double n = (double)w->n_op[0] + w->n_op[1] + w->n_op[2];
    out[0] = '\0';
    if (w->known == 0 || n == 0) return;
    double share[3];
    for (int k = 0; k < 3; k++) share[k] = 100 * (w->known == 2 ? w->cost[k] : w->n_op[k] / n);
    (void)snprintf(out, 96, "planned by Core ML: ane %.1f %%, gpu %.1f %%, cpu %.1f %% of the %s", share[0],
                   share[1], share[2], w->known == 2 ? "cost" : "ops");
}

/* Over all chunks of a length: with more than one their costs have no common measure, so ops are counted. */
static ml_where where_of(const ml_load *ld, const ml_loaded *l, uint32_t len)
{
    ml_where w = l->where[len];
    for (uint32_t c = 1; c < ld->n_chunk; c++) {
        const ml_where *more = &l->where[c * ld->shape.n_len + len];
        w.known = w.known > 0 && more->known > 0;
        for (int k = 0; k < 3; k++) w.n_op[k] += more->n_op[k];
    }
    return w;
}

static imp_status load_worker(ml_exec *x, imp_proc **out, imp_error *err)
{
    const ml_device *d = (const ml_device *)x->base.dev;
    ml_welcome hello;
    *out = NULL;
    ml_body *answer = imp_sys_malloc(sizeof *answer);
    if (answer == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while starting a worker");
    imp_proc *p;
    imp_status s = ml_worker_start(d, (size_t)x->slots.total, &p, &hello, &x->stop, err);
    if (s != IMP_OK) {
        imp_sys_free(answer);
        return s;
    }
    ml_say(x, "Core ML compiles and loads the package");
    s = ml_ask(p, ML_LOAD, &x->load, ML_LOADED, answer, d->cfg.load_ms, &x->stop, err);
    if (s == IMP_DEVICE) s = IMP_UNSUPPORTED; /* Core ML said no */
    if (s == IMP_OK) {
        imp_log(IMP_LOG_INFO, "%s: compiled in %.2f s%s, loaded in %.2f s", d->base.name,
                (double)answer->loaded.compile_ns * 1e-9,
                answer->loaded.was_cached ? " (kept from before)" : "",
                (double)answer->loaded.load_ns * 1e-9);
        imp_mutex_lock(x->lock);
        for (uint32_t l = 0; l < x->load.shape.n_len; l++) {
            ml_where w = where_of(&x->load, &answer->loaded, l);
            where_text(&w, x->ran_on[l]);
        }
        imp_mutex_unlock(x->lock);
        s = check_probe(x, p, answer, err);
    }
    imp_sys_free(answer);
    if (s == IMP_OK) {
        *out = p;
        return IMP_OK;
    }
    char how[64];
    imp_proc_end(p, s == IMP_IO ? 2000 : 0, how, sizeof how);
    if (s == IMP_IO)
        s = imp_fail(err, IMP_DEVICE, "the Core ML worker %s while it loaded the model",
                     how[0] ? how : "left");
    else if (s == IMP_BUSY && !stopped(x))
        s = imp_fail(err, IMP_UNSUPPORTED, "Core ML did not load the model within %u s",
                     d->cfg.load_ms / 1000);
    return s;
}

/* ---- the thread ------------------------------------------------------------------------------------------------------ */

/* lock held: wait ms or until the executable goes. */
static void pause_ms(ml_exec *x, uint64_t ms)
{
    uint64_t until = imp_now_ns() + ms * 1000000u;
    for (uint64_t now; !x->stop && (now = imp_now_ns()) < until;)
        (void)imp_cond_wait_ms(x->changed, x->lock, (uint32_t)((until - now) / 1000000u + 1));
}

/* lock held, let go to bury it: an idle worker that closed its end, or speaks without being asked, is broken. */
static void watch_idle(ml_exec *x)
{
    (void)imp_cond_wait_ms(x->changed, x->lock, IDLE_MS);
    if (x->stop || x->state != ML_READY || x->running) return;
    struct pollfd f = {.fd = imp_proc_socket(x->proc), .events = POLLIN};
    if (poll(&f, 1, 0) <= 0) return;
    imp_proc *gone = x->proc;
    char how[64];
    x->proc = NULL;
    x->state = ML_BROKEN;
    x->n_fail++;
    (void)snprintf(x->text, sizeof x->text, "the Core ML worker died while it was idle");
    imp_mutex_unlock(x->lock);
    imp_proc_end(gone, 1000, how, sizeof how);
    imp_mutex_lock(x->lock);
    if (how[0] != '\0')
        (void)snprintf(x->text, sizeof x->text, "the Core ML worker %s while it was idle", how);
}

/* lock held; let go inside. Bring a worker up, or give up. */
static void bring_up(ml_exec *x, making *m, bool *made)
{
    const ml_device *d = (const ml_device *)x->base.dev;
    imp_error err = {0};
    imp_proc *old = x->proc, *p = NULL;
    x->proc = NULL;
    bool again = x->state == ML_BROKEN;
    if (again)
        imp_log(IMP_LOG_WARN, "%s: %s; failure %u of %u", d->base.name, x->text, x->n_fail, d->cfg.max_fail);
    if (again && x->n_fail < d->cfg.max_fail)
        pause_ms(x, (uint64_t)d->cfg.retry_ms << IMP_MIN(x->n_fail - 1, 8u));
    bool lost = again && x->n_fail >= d->cfg.max_fail;
    if (!lost) x->state = ML_PREPARING;
    imp_mutex_unlock(x->lock);
    imp_proc_end(old, 0, NULL, 0);
    imp_status s = IMP_OK;
    for (uint32_t k = 0; k < x->load.n_package && *made; k++) /* somebody may have cleared the cache */
        *made = m->path[k][0] != '\0' || imp_sys_is_dir(x->load.compiled[k]);
    if (!*made && !lost) {
        s = make_packages(x, m, &err);
        *made = s == IMP_OK;
        if (s != IMP_OK && s != IMP_CANCELLED) s = IMP_UNSUPPORTED;
    }
    if (s == IMP_OK && !lost && !stopped(x)) s = load_worker(x, &p, &err);
    if (s == IMP_OK && p != NULL && *made) remove_packages(m); /* what was compiled is kept */
    imp_mutex_lock(x->lock);
    x->since_ns = imp_now_ns();
    if (p != NULL) {
        x->proc = p;
        x->state = ML_READY;
        (void)snprintf(x->text, sizeof x->text, "ready");
        imp_log(IMP_LOG_INFO, "%s: the model is ready", d->base.name);
    } else if (lost || s == IMP_UNSUPPORTED || s == IMP_NOMEM) {
        x->state = ML_GIVEN_UP;
        if (lost) {
            char last[140];
            (void)snprintf(last, sizeof last, "%.139s", x->text);
            (void)snprintf(x->text, sizeof x->text, "given up after %u failures; the last: %s", x->n_fail,
                           last);
        } else {
            (void)snprintf(x->text, sizeof x->text, "%.199s", err.text);
        }
        imp_log(IMP_LOG_WARN, "%s: the model does not run here: %s", d->base.name, x->text);
    } else if (!x->stop) {
        x->state = ML_BROKEN;
        x->n_fail++;
        (void)snprintf(x->text, sizeof x->text, "%.199s", err.text);
    }
    imp_cond_broadcast(x->changed);
}

/* lock held, let go to bury a worker that nobody needs. */
static void rest(ml_exec *x)
{
    imp_proc *idle = x->proc;
    x->proc = NULL;
    if (idle == NULL) {
        imp_cond_wait(x->changed, x->lock);
        return;
    }
    imp_mutex_unlock(x->lock);
    imp_proc_end(idle, 0, NULL, 0);
    imp_mutex_lock(x->lock);
}

static void keeper_main(void *arg)
{
    ml_exec *x = arg;
    making *m = imp_sys_calloc(1, sizeof *m);
    bool made = false;
    imp_mutex_lock(x->lock);
    if (m == NULL) {
        x->state = ML_GIVEN_UP;
        (void)snprintf(x->text, sizeof x->text, "out of memory");
        imp_cond_broadcast(x->changed);
    }
    while (!x->stop) {
        if (x->state == ML_READY)
            watch_idle(x);
        else if (x->state == ML_GIVEN_UP)
            rest(x);
        else
            bring_up(x, m, &made);
    }
    imp_mutex_unlock(x->lock);
    if (m != NULL) remove_packages(m);
    imp_sys_free(m);
}

imp_status ml_keeper_start(ml_exec *x, imp_error *err)
{
    x->state = ML_PREPARING;
    x->since_ns = imp_now_ns();
    (void)snprintf(x->text, sizeof x->text, "the model is being converted");
    imp_status s = imp_thread_start(keeper_main, x, &x->keeper);
    return s == IMP_OK ? s : imp_fail(err, s, "cannot start the thread that prepares a model for Core ML");
}

void ml_keeper_stop(ml_exec *x)
{
    if (x->keeper != NULL) {
        imp_mutex_lock(x->lock);
        __atomic_store_n(&x->stop, true, __ATOMIC_RELEASE);
        imp_cond_broadcast(x->changed);
        imp_mutex_unlock(x->lock);
        imp_thread_join(x->keeper);
    }
    imp_proc_end(x->proc, 200, NULL, 0);
}
