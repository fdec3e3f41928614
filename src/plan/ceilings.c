/* plan/ceilings.c - measured ceilings of the CPU, over the peak loops of kern.
 *
 * Idea:    every pass is one imp_pool_run timed as a whole, and the best pass counts: noise can only make a pass
 *          slower. The read buffer is written once first, by the thread that will read it, so that its pages are real
 *          and lie near that thread.
 * Source:  McCalpin's STREAM (first touch, best of the passes). */
#include "plan/ceilings.h"

#include <stdatomic.h>
#include <time.h>

#include "kern/kern.h"

enum { SLICE_ALIGN = 4096, MIN_PASS_NS = 4000000, MIN_PASSES = 3, MAX_THREAD = 1024 };

typedef struct job {
    const imp_peak *peak;
    uint8_t *buf;
    uint64_t slice_bytes, n_iter;
    _Atomic uint64_t keep;      /* results land here, so that no loop is left out as useless */
    double done[MAX_THREAD];    /* operations of each thread */
    double (*loop)(uint64_t n); /* int8 or f32 */
    uint64_t until;             /* no pass begins after it but the first */
} job;

static bool is_late(const job *j)
{
    return imp_now_ns() >= j->until;
}

static void touch(void *ctx, uint32_t i, uint32_t n)
{
    job *j = ctx;
    (void)n;
    memset(j->buf + i * j->slice_bytes, (int)(i + 1), j->slice_bytes);
}

static void read_slice(void *ctx, uint32_t i, uint32_t n)
{
    job *j = ctx;
    (void)n;
    atomic_fetch_xor(&j->keep, j->peak->read(j->buf + i * j->slice_bytes, j->slice_bytes));
}

static void compute(void *ctx, uint32_t i, uint32_t n)
{
    job *j = ctx;
    (void)n;
    j->done[i] = j->loop(j->n_iter);
}

static uint64_t time_run(imp_pool *pool, imp_pool_fn fn, job *j)
{
    uint64_t t0 = imp_now_ns();
    imp_pool_run(pool, fn, j);
    return IMP_MAX(1, imp_now_ns() - t0);
}

/* The buffer size: big enough to be memory, small enough to be had. */
static uint64_t buffer_size(uint64_t llc_bytes, uint32_t n_thread)
{
    uint64_t total, available, want = IMP_MAX(256ull << 20, IMP_MIN(llc_bytes, 1ull << 32) * 4);
    imp_sys_memory(&total, &available);
    if (available) want = IMP_MIN(want, available / 4);
    return IMP_MAX(want / n_thread / SLICE_ALIGN, 1) * SLICE_ALIGN * n_thread;
}

/* Bytes a second of the best pass over a buffer; 0 when there is no memory for it. */
static double measure_read(imp_pool *pool, job *j, uint64_t bytes, uint32_t ms)
{
    j->slice_bytes = bytes / imp_pool_n_thread(pool);
    j->buf = imp_sys_pages(bytes);
    if (!j->buf) return 0;
    imp_pool_run(pool, touch, j);
    uint64_t end = imp_now_ns() + ms * 1000000ull, best = UINT64_MAX;
    for (int pass = 0; pass < 1 || (!is_late(j) && (pass < MIN_PASSES || imp_now_ns() < end)); pass++) {
        uint64_t ns = time_run(pool, read_slice, j);
        best = IMP_MIN(best, ns);
    }
    imp_sys_pages_free(j->buf, bytes);
    return (double)bytes / ((double)best * 1e-9);
}

/* Operations a second of the best pass; 0 when it is too late to begin. */
static double measure_loop(imp_pool *pool, job *j, double (*loop)(uint64_t n), uint32_t ms)
{
    if (is_late(j)) return 0;
    uint64_t end = imp_now_ns() + ms * 1000000ull;
    double best = 0;
    j->loop = loop;
    j->n_iter = 1000;
    while (time_run(pool, compute, j) < MIN_PASS_NS && j->n_iter < (1ull << 40) && !is_late(j))
        j->n_iter *= 2;
    for (int pass = 0; pass < 1 || (!is_late(j) && (pass < MIN_PASSES || imp_now_ns() < end)); pass++) {
        double ns = (double)time_run(pool, compute, j), ops = 0;
        for (uint32_t i = 0; i < imp_pool_n_thread(pool); i++) ops += j->done[i];
        best = IMP_MAX(best, ops / (ns * 1e-9));
    }
    return best;
}

imp_status imp_ceilings_measure(imp_pool *pool, uint64_t llc_bytes, uint32_t ms, uint64_t until_ns,
                                imp_ceilings *out, imp_error *err)
{
    *out = (imp_ceilings){.n_thread = imp_pool_n_thread(pool), .measured_at = (int64_t)time(NULL)};
    if (out->n_thread > MAX_THREAD)
        return imp_fail(err, IMP_TOO_LARGE, "ceilings are measured with at most %d threads; use --threads",
                        MAX_THREAD);
    job *j = imp_sys_calloc(1, sizeof *j);
    if (!j) return imp_fail(err, IMP_NOMEM, "no memory for the measurement");
    j->peak = imp_peak_get();
    j->until = until_ns;
    out->isa = j->peak->isa;
    uint64_t unit = (uint64_t)out->n_thread * SLICE_ALIGN, half = llc_bytes / 2 / unit * unit;
    imp_status s = IMP_OK;
    out->buffer_bytes = buffer_size(llc_bytes, out->n_thread);
    out->read_bytes_s = measure_read(pool, j, out->buffer_bytes, ms);
    if (out->read_bytes_s <= 0) s = imp_fail(err, IMP_NOMEM, "no memory for the bandwidth measurement");
    if (half > 0 && !is_late(j)) out->cache_bytes_s = measure_read(pool, j, half, ms / 4);
    if (s == IMP_OK) {
        out->int8_op_s = measure_loop(pool, j, j->peak->int8, ms);
        out->f32_flop_s = measure_loop(pool, j, j->peak->f32, ms);
    }
    imp_sys_free(j);
    return s;
}

struct imp_gauge {
    imp_pool *pool;
    job j;
    uint64_t bytes;
};

imp_status imp_gauge_new(uint32_t n_thread, uint64_t llc_bytes, imp_gauge **out, imp_error *err)
{
    *out = NULL;
    imp_gauge *g = n_thread > MAX_THREAD ? NULL : imp_sys_calloc(1, sizeof *g);
    if (!g || imp_pool_new(n_thread, &g->pool) != IMP_OK) goto fail;
    g->bytes = buffer_size(llc_bytes, n_thread);
    g->j = (job){.peak = imp_peak_get(), .until = UINT64_MAX, .slice_bytes = g->bytes / n_thread};
    g->j.buf = imp_sys_pages(g->bytes);
    if (!g->j.buf) goto fail;
    imp_pool_run(g->pool, touch, &g->j);
    for (g->j.loop = g->j.peak->int8, g->j.n_iter = 1000; g->j.n_iter < 1ull << 40; g->j.n_iter *= 2)
        if (time_run(g->pool, compute, &g->j) >= MIN_PASS_NS) break;
    *out = g;
    return IMP_OK;
fail:
    imp_gauge_free(g);
    return imp_fail(err, IMP_NOMEM, "the machine's ceilings cannot be measured: no memory or threads for it");
}

void imp_gauge_free(imp_gauge *g)
{
    if (!g) return;
    if (g->j.buf) imp_sys_pages_free(g->j.buf, g->bytes);
    if (g->pool) imp_pool_free(g->pool);
    imp_sys_free(g);
}

double imp_gauge_read(imp_gauge *g)
{
    uint64_t whole = g->j.slice_bytes;
    g->j.slice_bytes = whole / 8 / SLICE_ALIGN * SLICE_ALIGN;
    imp_pool_run(g->pool, read_slice, &g->j);
    g->j.slice_bytes = whole;
    return (double)g->bytes / ((double)time_run(g->pool, read_slice, &g->j) * 1e-9);
}

double imp_gauge_int8(imp_gauge *g)
{
    uint64_t whole = g->j.n_iter;
    double ops = 0;
    g->j.n_iter = whole / 8;
    imp_pool_run(g->pool, compute, &g->j);
    g->j.n_iter = whole;
    double s = (double)time_run(g->pool, compute, &g->j) * 1e-9;
    for (uint32_t i = 0; i < imp_pool_n_thread(g->pool); i++) ops += g->j.done[i];
    return ops / s;
}
