/* dev/coreml/device.c - Core ML behind the vtable: encoders, and the prefill of decoders, batched by length.
 *
 * Place:   opened by dev.c. Conversion and workers are the keeper's (keeper.c); here are plan, compile and run. Keys and values
 *          are prefill.c's.
 * Idea:    compile takes its memory and returns; the package is made and loaded in the background, and state() says when.
 *          A step's texts are sorted by the length they are padded to, and go to the worker in groups of up to n_slot of
 *          one length; token lookup and the sum of embeddings are done here, for a gather would leave the Neural Engine.
 *          A decoder's prompt is read from its first token, in one piece; another device computes its last token and goes on.
 * Threads: as dev.h says; the state behind a lock. */
#include "dev/coreml/device.h"

#include <stdio.h>

#include "dev/check.h"
#include "dev/coreml/compile.h"

enum { MAX_CTX = 512, N_SLOT = 16, N_SLOT_KV = 4 };

#define MOST_WEIGHTS (7ull << 30) /* bytes at fp16, in programs of 950 MB: what Core ML is asked to hold */

static imp_coreml_config g_config; /* imp_coreml_configure's */
static char g_text[3][ML_WIRE_PATH];

static const char *copy_path(char to[ML_WIRE_PATH], const char *from)
{
    (void)snprintf(to, ML_WIRE_PATH, "%s", from == NULL ? "" : from);
    return from == NULL ? NULL : to;
}

imp_status imp_coreml_configure(const imp_coreml_config *c, imp_error *err)
{
    const char *const path[] = {c->cache_dir, c->runtime, c->program};
    for (size_t i = 0; i < IMP_COUNT(path); i++)
        if (path[i] != NULL && strlen(path[i]) > ML_WIRE_PATH - 128)
            return imp_fail(err, IMP_INVALID, "the path is too long: %.100s", path[i]);
    if (c->n_bucket > IMP_COREML_MAX_BUCKET)
        return imp_fail(err, IMP_INVALID, "at most %d lengths can be compiled", IMP_COREML_MAX_BUCKET);
    for (uint32_t i = 0; i < c->n_bucket; i++)
        if (c->bucket[i] < 8 || c->bucket[i] > MAX_CTX || (i > 0 && c->bucket[i] <= c->bucket[i - 1]))
            return imp_fail(err, IMP_INVALID, "lengths must ascend and lie in 8..%d", MAX_CTX);
    g_config = *c;
    g_config.cache_dir = copy_path(g_text[0], c->cache_dir);
    g_config.runtime = copy_path(g_text[1], c->runtime);
    g_config.program = copy_path(g_text[2], c->program);
    return IMP_OK;
}

static void set_defaults(imp_coreml_config *c)
{
    static const uint32_t LENGTH[] = {64, 128, 256, 512};
    if (c->n_bucket == 0) {
        c->n_bucket = IMP_COUNT(LENGTH);
        memcpy(c->bucket, LENGTH, sizeof LENGTH);
    }
    if (c->load_ms == 0) c->load_ms = 15 * 60 * 1000; /* 440 s have been reported for a first load */
    if (c->run_ms == 0) c->run_ms = 30000;
    if (c->retry_ms == 0) c->retry_ms = 250;
    if (c->max_fail == 0) c->max_fail = 5;
}

/* ---- what fits ------------------------------------------------------------------------------------------------------ */

/* The value that the host computes, 0: none. */
static imp_val host_value(const imp_graph *g)
{
    imp_val last = 0;
    for (imp_val v = 1; v <= imp_graph_n(g); v++)
        if (imp_ml_on_host(g, v)) last = v;
    return last;
}

static const char *ml_dev_refuses(const imp_device *d, const imp_graph *g, imp_val v)
{
    (void)d;
    if (host_value(g) == 0) return "the graph looks no token up";
    if (imp_graph_n_kv_layer(g) == 0)
        return imp_graph_node(g, imp_graph_output(g))->op != IMP_OP_POOL && v == imp_graph_output(g)
                   ? "the vector must be the graph's last step"
                   : ml_refuses(g, v, false);
    if (imp_graph_n_kv_layer(g) > ML_WIRE_KV) return "too many layers";
    bool *need;
    if (ml_prefill_needs(g, &need, NULL) != IMP_OK) return "out of memory";
    const char *why = need[v] ? ml_refuses(g, v, false) : NULL;
    imp_sys_free(need);
    return why;
}

/* Everything that compile takes, and what the packages are predicted to weigh. */
typedef struct sizes {
    ml_shape shape;
    ml_slots slots;
    uint64_t out, hidden, order, expect, kv_block, kv; /* bytes */
    uint64_t weights, mapped;
} sizes;

/* Weights that the packages hold, and those that the host reads. */
static imp_status weigh(const ml_device *d, const imp_graph *g, sizes *z, imp_error *err)
{
    bool *need = NULL;
    if (z->shape.n_kv > 0) IMP_TRY(ml_prefill_needs(g, &need, err));
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        const imp_node *n = imp_graph_node(g, v);
        if (n->op == IMP_OP_WEIGHT || (need != NULL && !need[v])) continue;
        for (uint32_t i = 0; i < n->n_in; i++) {
            const imp_node *w = n->in[i] == 0 ? n : imp_graph_node(g, n->in[i]);
            if (w->op != IMP_OP_WEIGHT) continue;
            if (imp_ml_on_host(g, v))
                z->mapped += imp_tensor_bytes(&w->u.weight.part[0]);
            else
                z->weights += 2 * imp_tensor_n_elem(&w->u.weight.part[0]);
        }
    }
    imp_sys_free(need);
    uint64_t most = d->info.functions ? MOST_WEIGHTS : MOST_WEIGHTS / 2; /* else a package for every length */
    if (z->weights > most)
        return imp_fail(err, IMP_TOO_LARGE, "%s would hold %.1f GB of weights at fp16; %.1f GB are served",
                        d->base.name, (double)z->weights * 1e-9, (double)most * 1e-9);
    if (!d->info.functions) z->weights *= z->shape.n_len;
    return IMP_OK;
}

static imp_status kv_sizes(const imp_graph *g, const imp_limits *lim, sizes *z, imp_error *err)
{
    uint64_t width = 0, head_dim = 0;
    ml_prefill_shape(g, &z->shape);
    for (uint32_t i = 0; i < z->shape.n_kv; i++) {
        width += 2 * z->shape.kv_width[i];
        head_dim = IMP_MAX(head_dim, imp_graph_kv_layer(g, i)->u.attn.head_dim);
    }
    z->out = ML_ROWS * head_dim * sizeof(float);
    z->expect = ML_PROBE_TOK * width * sizeof(float);
    z->kv_block = imp_dev_kv_block_bytes(g, lim->kv_dtype);
    return imp_mul_u64(z->kv_block, lim->n_kv_block, &z->kv)
               ? IMP_OK
               : imp_fail(err, IMP_TOO_LARGE, "so many KV blocks are beyond any memory");
}

static imp_status sizes_of(const ml_device *d, const imp_graph *g, const imp_limits *lim, sizes *z,
                           imp_error *err)
{
    *z = (sizes){0};
    ml_shape *sh = &z->shape;
    bool decoder = imp_graph_n_kv_layer(g) > 0;
    uint32_t s_max = 0;
    IMP_TRY(imp_dev_check_limits(g, lim, err));
    if (host_value(g) == 0) return imp_fail(err, IMP_UNSUPPORTED, "the graph looks no token up");
    if (imp_graph_n_kv_layer(g) > ML_WIRE_KV)
        return imp_fail(err, IMP_UNSUPPORTED, "%s takes models of at most %d layers", d->base.name,
                        ML_WIRE_KV);
    while (sh->n_len < d->cfg.n_bucket && s_max < lim->max_ctx)
        s_max = sh->s[sh->n_len] = d->cfg.bucket[sh->n_len], sh->n_len++;
    if (s_max < lim->max_ctx)
        return imp_fail(err, IMP_TOO_LARGE, "%s takes texts of up to %u tokens, not %u", d->base.name, s_max,
                        lim->max_ctx);
    sh->width = (uint32_t)imp_graph_node(g, host_value(g))->width;
    sh->n_slot = IMP_MIN(lim->max_seq, (uint32_t)(decoder ? N_SLOT_KV : N_SLOT));
    if (decoder) {
        IMP_TRY(kv_sizes(g, lim, z, err));
    } else {
        sh->dim = (uint32_t)imp_graph_node(g, imp_graph_output(g))->width;
        z->out = (uint64_t)lim->max_seq * sh->dim * sizeof(float);
        z->expect = sh->dim * sizeof(float);
    }
    if (!ml_slots_of(sh, &z->slots))
        return imp_fail(err, IMP_TOO_LARGE, "the texts' memory would be beyond 4 GB; lower the limits");
    z->hidden = (uint64_t)sh->width * s_max * sizeof(float);
    z->order = (uint64_t)lim->max_seq * sizeof(uint32_t);
    return weigh(d, g, z, err);
}

static imp_status ml_dev_plan(imp_device *d, const imp_graph *g, const imp_limits *lim, imp_dev_memory *out,
                              imp_error *err)
{
    sizes z;
    *out = (imp_dev_memory){0};
    IMP_TRY(sizes_of((const ml_device *)d, g, lim, &z, err));
    out->weights = z.weights;
    out->mapped = z.mapped;
    out->kv = z.kv;
    out->scratch = z.slots.total + z.out + z.hidden + z.order;
    out->other = sizeof(ml_exec) + sizeof(ml_body) + z.expect;
    return IMP_OK;
}

static void ml_dev_exec_free(imp_exec *base)
{
    ml_exec *x = (ml_exec *)base;
    if (x == NULL) return;
    ml_keeper_stop(x);
    imp_cond_free(x->changed);
    imp_mutex_free(x->lock);
    imp_sys_free(x->out);
    imp_sys_free(x->kv);
    imp_sys_free(x->hidden);
    imp_sys_free(x->order);
    imp_sys_free(x->expect);
    imp_sys_free(x->answer);
    imp_sys_free(x);
}

static imp_status ml_dev_compile(imp_device *base, const imp_graph *g, const imp_limits *lim, imp_exec **out,
                                 imp_error *err)
{
    static const uint32_t UNITS[] = {ML_CPU_ANE, ML_ALL, ML_CPU_ONLY};
    const ml_device *d = (const ml_device *)base;
    sizes z;
    *out = NULL;
    IMP_TRY(sizes_of(d, g, lim, &z, err));
    ml_exec *x = imp_sys_calloc(1, sizeof *x);
    if (x == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while compiling for %s", base->name);
    x->base.dev = base;
    x->graph = g;
    x->lim = *lim;
    x->slots = z.slots;
    x->load.shape = z.shape;
    x->load.units = UNITS[d->cfg.units];
    x->n_expect = z.expect / sizeof(float);
    x->kv_block_bytes = z.kv_block;
    x->out = imp_sys_malloc((size_t)z.out);
    x->hidden = imp_sys_malloc((size_t)z.hidden);
    x->order = imp_sys_malloc((size_t)z.order);
    x->expect = imp_sys_malloc((size_t)z.expect);
    x->answer = imp_sys_malloc(sizeof *x->answer);
    bool ok = x->out && x->hidden && x->order && x->expect && x->answer;
    if (ok && z.kv > 0) ok = (x->kv = imp_sys_calloc(lim->n_kv_block, (size_t)z.kv_block)) != NULL;
    imp_status s = ok ? IMP_OK : IMP_NOMEM;
    if (s == IMP_OK) s = imp_mutex_new(&x->lock);
    if (s == IMP_OK) s = imp_cond_new(&x->changed);
    if (s != IMP_OK)
        s = imp_fail(err, IMP_NOMEM, "out of memory while compiling for %s", base->name);
    else
        s = ml_keeper_start(x, err);
    if (s != IMP_OK) {
        ml_dev_exec_free(&x->base);
        return s;
    }
    *out = &x->base;
    return IMP_OK;
}

/* ---- running ----------------------------------------------------------------------------------------------------------- */

static imp_pool_kind pool_kind(const imp_graph *g)
{
    return imp_graph_node(g, imp_graph_output(g))->u.pool.kind;
}

static void to_half(const float *x, uint64_t n, uint16_t *out)
{
    for (uint64_t i = 0; i < n; i++) out[i] = imp_f32_to_f16(x[i]);
}

imp_status ml_fill_slot(ml_exec *x, imp_proc *p, uint32_t len, uint32_t i, const int32_t *token,
                        const int32_t *type, uint32_t n, imp_error *err)
{
    uint32_t s = x->load.shape.s[len];
    uint8_t *slot = (uint8_t *)imp_proc_shared(p) + i * x->slots.stride;
    IMP_TRY(imp_ml_host_hidden(x->graph, token, type, n, s, x->hidden, err));
    to_half(x->hidden, (uint64_t)x->load.shape.width * s, (uint16_t *)(void *)slot);
    if (x->load.shape.n_kv > 0) return IMP_OK;
    imp_ml_host_mask(n, s, x->hidden);
    to_half(x->hidden, s, (uint16_t *)(void *)(slot + x->slots.mask));
    imp_ml_host_pool(pool_kind(x->graph), n, s, x->hidden);
    to_half(x->hidden, s, (uint16_t *)(void *)(slot + x->slots.pool));
    return IMP_OK;
}

const float *ml_slot_out(const ml_exec *x, const imp_proc *p, uint32_t i)
{
    return (const float *)(const void *)((const uint8_t *)imp_proc_shared(p) + i * x->slots.stride +
                                         x->slots.out);
}

static uint32_t len_for(const ml_exec *x, uint32_t n)
{
    uint32_t i = 0;
    while (i + 1 < x->load.shape.n_len && x->load.shape.s[i] < n) i++;
    return i;
}

/* The n sequences of x->order that share a length, from `at` on. *lost: the worker is no good any more. */
static imp_status run_group(ml_exec *x, const imp_batch *b, uint32_t len, uint32_t at, uint32_t n, bool *lost,
                            imp_error *err)
{
    const ml_device *d = (const ml_device *)x->base.dev;
    uint32_t dim = x->load.shape.dim;
    ml_run run = {.len = len, .n = n};
    for (uint32_t i = 0; i < n; i++) {
        const imp_batch_seq *q = &b->seq[x->order[at + i]];
        const int32_t *type = b->type == NULL ? NULL : b->type + q->first_tok;
        IMP_TRY(ml_fill_slot(x, x->proc, len, i, b->token + q->first_tok, type, q->n_tok, err));
    }
    imp_status s = ml_ask(x->proc, ML_RUN, &run, ML_RAN, x->answer, d->cfg.run_ms, NULL, err);
    *lost = s != IMP_OK;
    for (uint32_t i = 0; i < n && s == IMP_OK; i++) {
        if (dim == 0)
            s = ml_prefill_keep(x, x->proc, len, i, &b->seq[x->order[at + i]], err);
        else
            memcpy(x->out + (size_t)x->order[at + i] * dim, ml_slot_out(x, x->proc, i), dim * sizeof(float));
    }
    return s;
}

static imp_status run_all(ml_exec *x, const imp_batch *b, bool *lost, imp_error *err)
{
    uint32_t at = 0;
    for (uint32_t len = 0; len < x->load.shape.n_len; len++)
        for (uint32_t i = 0; i < b->n_seq; i++)
            if (len_for(x, b->seq[i].n_tok) == len) x->order[at++] = i;
    for (uint32_t done = 0; done < b->n_seq;) {
        uint32_t len = len_for(x, b->seq[x->order[done]].n_tok), n = 1;
        while (n < x->load.shape.n_slot && done + n < b->n_seq &&
               len_for(x, b->seq[x->order[done + n]].n_tok) == len)
            n++;
        IMP_TRY(run_group(x, b, len, done, n, lost, err));
        x->last_len = len;
        done += n;
    }
    return IMP_OK;
}

/* The worker failed under a step: the keeper gets it, the caller a reason. */
static imp_status hand_over(ml_exec *x, imp_status s, imp_error *err)
{
    char why[160];
    (void)snprintf(why, sizeof why, "%.150s", err->text);
    if (s == IMP_IO) { /* it is gone: how? */
        char how[64];
        imp_mutex_lock(x->lock);
        imp_proc *gone = x->proc;
        x->proc = NULL;
        imp_mutex_unlock(x->lock);
        imp_proc_end(gone, 2000, how, sizeof how);
        (void)snprintf(why, sizeof why, "the Core ML worker %s", how[0] != '\0' ? how : "left");
    } else if (s == IMP_BUSY) {
        (void)snprintf(why, sizeof why, "the Core ML worker did not answer within %u ms",
                       ((const ml_device *)x->base.dev)->cfg.run_ms);
    }
    imp_mutex_lock(x->lock);
    x->running = false;
    x->n_fail++;
    x->n_good = 0;
    x->state = ML_BROKEN;
    (void)snprintf(x->text, sizeof x->text, "%s", why);
    imp_cond_broadcast(x->changed);
    imp_mutex_unlock(x->lock);
    return imp_fail(err, IMP_DEVICE, "%s", why);
}

/* The worker lives, but what it computes cannot be used: too often in a row, and the model is given up here. */
static imp_status count_failure(ml_exec *x, imp_status s, const imp_error *err)
{
    uint32_t most = ((const ml_device *)x->base.dev)->cfg.max_fail;
    imp_mutex_lock(x->lock);
    x->running = false;
    x->n_good = 0;
    if (s == IMP_DEVICE && ++x->n_fail >= most) {
        x->state = ML_GIVEN_UP;
        (void)snprintf(x->text, sizeof x->text, "given up after %u failures; the last: %.140s", x->n_fail,
                       err->text);
    }
    imp_cond_broadcast(x->changed);
    imp_mutex_unlock(x->lock);
    return s;
}

static imp_status check_prompts(const ml_exec *x, const imp_batch *b, imp_error *err)
{
    if (x->kv == NULL) return IMP_OK;
    for (uint32_t i = 0; i < b->n_seq; i++)
        if (b->seq[i].n_past > 0 || b->n_out > 0)
            return imp_fail(err, IMP_INVALID, "%s reads prompts in one piece and generates nothing",
                            x->base.dev->name);
    return IMP_OK;
}

static imp_status ml_dev_run(imp_exec *base, const imp_batch *b, const float **out, imp_error *err)
{
    ml_exec *x = (ml_exec *)base;
    imp_error own = {0};
    bool lost = false;
    *out = NULL;
    IMP_TRY(imp_dev_check_batch(x->graph, &x->lim, b, err));
    IMP_TRY(check_prompts(x, b, err));
    imp_mutex_lock(x->lock);
    bool ready = x->state == ML_READY;
    x->running = ready;
    if (!ready) (void)imp_fail(err, IMP_DEVICE, "%s is not ready: %s", base->dev->name, x->text);
    imp_mutex_unlock(x->lock);
    if (!ready) return IMP_DEVICE;
    uint64_t t0 = imp_now_ns();
    imp_status s = run_all(x, b, &lost, &own);
    x->last_ns = imp_now_ns() - t0;
    if (s != IMP_OK) {
        s = lost ? hand_over(x, s, &own) : count_failure(x, s, &own);
        if (err != NULL) *err = own;
        return s;
    }
    imp_mutex_lock(x->lock);
    x->running = false;
    if (++x->n_good >= 100) x->n_fail = 0;
    imp_mutex_unlock(x->lock);
    *out = x->kv == NULL ? x->out : NULL;
    return IMP_OK;
}

static imp_status ml_dev_state(imp_exec *base, bool wait, char *text, size_t cap)
{
    ml_exec *x = (ml_exec *)base;
    imp_mutex_lock(x->lock);
    while (wait && (x->state == ML_PREPARING || x->state == ML_BROKEN)) imp_cond_wait(x->changed, x->lock);
    ml_state st = x->state;
    if (st == ML_PREPARING)
        (void)snprintf(text, cap, "%s (for %.1f s)", x->text, (double)(imp_now_ns() - x->since_ns) * 1e-9);
    else if (st == ML_BROKEN)
        (void)snprintf(text, cap, "%s; another one is started", x->text);
    else
        (void)snprintf(text, cap, "%s", x->text);
    imp_mutex_unlock(x->lock);
    return st == ML_READY ? IMP_OK : st == ML_GIVEN_UP ? IMP_DEVICE : IMP_NOT_READY;
}

static void ml_dev_ran_on(const imp_exec *base, char *text, size_t cap)
{
    const ml_exec *x = (const ml_exec *)base;
    imp_mutex_lock(x->lock);
    (void)snprintf(text, cap, "%s", x->ran_on[x->last_len]);
    imp_mutex_unlock(x->lock);
}

static uint32_t ml_dev_padded(const imp_device *base, uint32_t n)
{
    const ml_device *d = (const ml_device *)base;
    for (uint32_t i = 0; i < d->cfg.n_bucket; i++)
        if (d->cfg.bucket[i] >= n) return d->cfg.bucket[i];
    return n;
}

static uint32_t ml_dev_max_ctx(const imp_device *base)
{
    const ml_device *d = (const ml_device *)base;
    return d->cfg.bucket[d->cfg.n_bucket - 1];
}

static uint64_t ml_dev_last_ns(const imp_exec *base)
{
    return ((const ml_exec *)base)->last_ns;
}

/* ---- life ------------------------------------------------------------------------------------------------------------------ */

static void ml_dev_close(imp_device *d)
{
    imp_sys_free(d);
}

static const imp_device_ops COREML_OPS = {
    .kind = "coreml",
    .slow_compile = true,
    .prefill_only = true,
    .refuses = ml_dev_refuses,
    .plan = ml_dev_plan,
    .compile = ml_dev_compile,
    .run = ml_dev_run,
    .kv_copy = ml_prefill_copy,
    .kv_export = ml_prefill_export,
    .exec_free = ml_dev_exec_free,
    .close = ml_dev_close,
    .last_ns = ml_dev_last_ns,
    .state = ml_dev_state,
    .ran_on = ml_dev_ran_on,
    .padded = ml_dev_padded,
    .max_ctx = ml_dev_max_ctx,
};

static imp_status look(ml_device *d, imp_error *err)
{
    imp_proc *p;
    IMP_TRY(imp_sys_make_dirs(d->cache_dir, err));
    IMP_TRY(ml_worker_start(d, 1, &p, &d->info, NULL, err));
    imp_proc_end(p, 1000, NULL, 0);
    imp_log(IMP_LOG_INFO, "%s: Core ML of macOS %s, %u Neural Engine cores%s", d->base.name, d->info.os,
            d->info.ane_cores, d->info.plans ? "" : ", it does not say where it runs what");
    return IMP_OK;
}

imp_status imp_dev_coreml_open(imp_device **out, imp_error *err)
{
    *out = NULL;
#ifndef __APPLE__
    if (g_config.runtime == NULL)
        return imp_fail(err, IMP_NOT_FOUND, "Core ML is a part of macOS, and this is another system");
#endif
    if (g_config.cache_dir == NULL)
        return imp_fail(err, IMP_NOT_FOUND, "no folder is set for the packages that Core ML compiles");
    ml_device *d = imp_sys_calloc(1, sizeof *d);
    if (d == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while opening Core ML");
    d->base.ops = &COREML_OPS;
    memcpy(d->base.name, "coreml0", 8);
    d->cfg = g_config;
    set_defaults(&d->cfg);
    (void)copy_path(d->cache_dir, g_config.cache_dir);
    (void)copy_path(d->runtime, g_config.runtime);
    imp_status s = IMP_OK;
    if (g_config.program != NULL)
        (void)copy_path(d->program, g_config.program);
    else if (!imp_sys_program_path(d->program, sizeof d->program))
        s = imp_fail(err, IMP_NOT_FOUND, "this program's own file is not known, so no worker can be started");
    if (s == IMP_OK) s = look(d, err);
    if (s != IMP_OK) {
        ml_dev_close(&d->base);
        return s;
    }
    *out = &d->base;
    return IMP_OK;
}

void imp_dev_coreml_info(const imp_device *base, imp_coreml_info *out)
{
    const ml_device *d = (const ml_device *)base;
    *out = (imp_coreml_info){
        .functions = d->info.functions, .plans = d->info.plans, .ane_cores = d->info.ane_cores};
    memcpy(out->os, d->info.os, sizeof out->os);
}

int imp_dev_coreml_pid(imp_exec *base)
{
    ml_exec *x = (ml_exec *)base;
    imp_mutex_lock(x->lock);
    int pid = x->state == ML_READY && x->proc != NULL ? imp_proc_pid(x->proc) : 0;
    imp_mutex_unlock(x->lock);
    return pid;
}
