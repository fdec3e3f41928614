/* plan/fit.c - how much memory a model takes on a device, and what context fits.
 *
 * Place:   called by engine before it compiles; asks dev->plan, which is the allocator's own arithmetic.
 * Idea:    memory grows with the context, so the largest context that fits is found by bisection over whole KV blocks.
 *          The KV pool holds n_parallel full sequences when that fits and is not absurd (POOL_TOK), else less: at
 *          least one full sequence always, and the scheduler shares the rest. */
#include <stdio.h>

#include "plan/fit.h"

enum {
    POOL_TOK = 32768, /* tokens the pool holds without being asked for more */
    LEAST_CTX = 512,
    OUT_ROWS = 64 /* positions a scoring step may give logits of */
};

static imp_limits generate_limits(const imp_device *d, const imp_fit_want *w, uint32_t n_ctx,
                                  uint64_t pool_tok)
{
    uint64_t n_block = (pool_tok + IMP_KV_BLOCK - 1) / IMP_KV_BLOCK;
    /* A partly filled last block a sequence: those must not eat into the promise. */
    n_block += w->n_parallel - 1;
    return (imp_limits){.max_tok = IMP_MAX(w->n_batch, w->n_parallel),
                        .max_seq = w->n_parallel,
                        .max_out = IMP_MAX(w->n_parallel, (uint32_t)OUT_ROWS),
                        .max_ctx = n_ctx,
                        .n_kv_block = (uint32_t)IMP_MIN(n_block, (uint64_t)UINT32_MAX),
                        .lora_rank = d->ops->adapters ? w->lora_rank : 0,
                        .kv_dtype = w->kv_dtype};
}

static imp_limits embed_limits(const imp_device *d, const imp_fit_want *w, uint32_t n_ctx)
{
    uint32_t max_tok = IMP_MAX(w->n_batch, n_ctx); /* an input is computed in one step */
    return (imp_limits){.max_tok = max_tok,
                        .max_seq = IMP_MIN(max_tok, 256u),
                        .max_out = 1,
                        .max_ctx = n_ctx,
                        .lora_rank = d->ops->adapters ? w->lora_rank : 0,
                        .kv_dtype = w->kv_dtype};
}

/* Each graph packs weights for itself; what is read in place is the same file, so the graph that reads more counts. */
static imp_status add_plan(imp_device *dev, const imp_graph *g, const imp_limits *lim, imp_memory *m,
                           uint64_t *mapped, imp_error *err)
{
    imp_dev_memory d = {0};
    IMP_TRY(dev->ops->plan(dev, g, lim, &d, err));
    m->weights += d.weights + (d.mapped > *mapped ? d.mapped - *mapped : 0);
    *mapped = IMP_MAX(*mapped, d.mapped);
    m->kv += d.kv;
    m->scratch += d.scratch;
    m->other += d.other;
    return IMP_OK;
}

/* Limits and memory for one context size and pool size. */
static imp_status try_ctx(imp_device *dev, const imp_net *net, const imp_fit_want *w, uint32_t n_ctx,
                          uint64_t pool_tok, imp_fit *out, imp_error *err)
{
    imp_memory *m = &out->memory;
    uint64_t mapped = 0;
    *out = (imp_fit){.n_ctx = n_ctx};
    m->available = w->mem_bytes;
    m->process = w->process_bytes;
    if (net->generate != NULL) {
        out->generate = generate_limits(dev, w, n_ctx, pool_tok);
        if (dev->ops->prefill_only) /* a prompt is read in one step */
            out->generate.max_tok = IMP_MAX(out->generate.max_tok, n_ctx);
        IMP_TRY(add_plan(dev, net->generate, &out->generate, m, &mapped, err));
    }
    if (net->embed != NULL) {
        out->embed = embed_limits(dev, w, n_ctx);
        IMP_TRY(add_plan(dev, net->embed, &out->embed, m, &mapped, err));
    }
    if (w->more != NULL && dev->ops->mem_free == NULL)
        m->other += w->more(net, &out->generate, &out->embed, w->user);
    if (dev->ops->adapters) m->weights += w->lora_bytes;
    m->total = m->weights + m->kv + m->scratch + m->other;
    m->fits = m->total <= w->mem_bytes;
    return IMP_OK;
}

/* Largest value in lo..hi (multiples of KV blocks; lo itself fits already) for which the memory fits, with ctx == pool
 * (find_ctx) or the context fixed and only the pool growing. */
static imp_status grow(imp_device *dev, const imp_net *net, const imp_fit_want *w, uint32_t fixed_ctx,
                       uint64_t lo, uint64_t hi, uint64_t *best, imp_error *err)
{
    *best = lo;
    while (lo < hi) {
        uint64_t mid = lo + (hi - lo + 1) / 2;
        imp_fit f;
        IMP_TRY(try_ctx(dev, net, w, fixed_ctx != 0 ? fixed_ctx : (uint32_t)mid, mid, &f, err));
        if (f.memory.fits)
            *best = lo = mid;
        else
            hi = mid - 1;
        if (hi - lo < IMP_KV_BLOCK) break;
    }
    return IMP_OK;
}

static imp_status does_not_fit(const imp_fit_want *w, uint32_t n_ctx, uint64_t need, uint32_t largest,
                               imp_error *err)
{
    char advice[96] = "this model does not fit on this machine";
    if (largest > 0) (void)snprintf(advice, sizeof advice, "the largest context that fits is %u", largest);
    return imp_fail_field(err, IMP_NO_FIT, "ctx", "a context of %u needs %.2f MB, %.2f MB are available; %s",
                          n_ctx, (double)need / 1e6, (double)w->mem_bytes / 1e6, advice);
}

imp_status imp_fit_compute(imp_device *dev, const imp_net *net, const imp_fit_want *w, imp_fit *out,
                           imp_error *err)
{
    uint32_t limit = net->cfg.n_ctx_train;
    if (dev->ops->max_ctx != NULL) limit = IMP_MIN(limit, dev->ops->max_ctx(dev));
    uint32_t least = IMP_MIN((uint32_t)LEAST_CTX, limit);
    if (w->n_ctx > limit && net->generate == NULL) /* positions beyond the table do not exist */
        return imp_fail_field(err, IMP_INVALID, "ctx",
                              "the model takes at most %u tokens, a context of %u was asked for", limit,
                              w->n_ctx);
    uint32_t want_ctx = w->n_ctx != 0 ? w->n_ctx : limit;

    IMP_TRY(try_ctx(dev, net, w, want_ctx, want_ctx, out, err));
    uint32_t largest = want_ctx;
    if (!out->memory.fits) {
        imp_fit f;
        uint64_t best = 0;
        IMP_TRY(try_ctx(dev, net, w, least, least, &f, err));
        if (f.memory.fits) IMP_TRY(grow(dev, net, w, 0, least, want_ctx, &best, err));
        largest = (uint32_t)best;
        if (w->n_ctx != 0 || largest == 0) {
            out->memory.largest_ctx = largest;
            return does_not_fit(w, largest == 0 ? least : want_ctx,
                                largest == 0 ? f.memory.total : out->memory.total, largest, err);
        }
    }
    uint64_t pool = (uint64_t)largest * w->n_parallel;
    if (w->n_ctx == 0) pool = IMP_MIN(pool, IMP_MAX((uint64_t)largest, (uint64_t)POOL_TOK));
    if (net->generate != NULL && pool > largest)
        IMP_TRY(grow(dev, net, w, largest, largest, pool, &pool, err));
    IMP_TRY(try_ctx(dev, net, w, largest, pool, out, err));
    uint64_t most = largest;
    if (most < limit) IMP_TRY(grow(dev, net, w, 0, most, limit, &most, err));
    out->memory.largest_ctx = (uint32_t)most;
    return IMP_OK;
}
