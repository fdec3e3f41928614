/* tests/kern/bench.h - speed of one kernel variant on one thread, beside the ceilings measured in the same run. */
#ifndef BENCH_H
#define BENCH_H

#include <time.h>

#include "check_matmul.h"

struct ceilings {
    double read_gb_s;
    size_t n_isa; /* the last one is the best */
    struct isa_ceilings {
        const char *isa;
        double int8_gop_s, w4a8_gop_s, f32_gop_s;
    } isa[8];
};

struct bench_result {
    char what[64];
    double ms, gb_s, gop_s, share; /* share: of the ceiling that binds */
    const char *bound;             /* which that is */
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* This thread's own time: on a machine with other work to do the clock on the wall measures that work. */
static uint64_t thread_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Median time of a call in ns: at least 5 runs, at least 0.2 s. */
static double median_ns(void (*fn)(void *), void *ctx)
{
    enum { MAX = 200 };
    double t[MAX];
    int n = 0;
    uint64_t begin = thread_ns();
    fn(ctx);
    do {
        uint64_t at = thread_ns();
        fn(ctx);
        t[n++] = (double)(thread_ns() - at);
    } while (n < MAX && (n < 5 || thread_ns() - begin < 200000000u));
    qsort(t, (size_t)n, sizeof t[0], by_value);
    return t[n / 2];
}

/* ---- ceilings --------------------------------------------------------------------------------------------------- */
struct peak_job {
    const imp_peak *p;
    void *buf;
    size_t n;
    volatile double sink;
};
static void peak_read(void *ctx)
{
    struct peak_job *j = ctx;
    j->sink = (double)j->p->read(j->buf, j->n);
}
static void peak_int8(void *ctx)
{
    struct peak_job *j = ctx;
    j->sink = j->p->int8(1000000);
}
static void peak_w4a8(void *ctx)
{
    struct peak_job *j = ctx;
    j->sink = j->p->w4a8(200000);
}
static void peak_f32(void *ctx)
{
    struct peak_job *j = ctx;
    j->sink = j->p->f32(1000000);
}

static double gop_s(void (*fn)(void *), struct peak_job *j)
{
    double ns = median_ns(fn, j);
    return j->sink / ns;
}

/* Of every instruction set that can run here; plain C's only where there is no other. */
static struct ceilings measure_ceilings(void)
{
    struct peak_job j = {.p = imp_peak_get(), .n = 128u << 20};
    struct ceilings c = {0};
    j.buf = imp_sys_pages(j.n);
    if (j.buf == NULL) return c;
    memset(j.buf, 1, j.n);
    c.read_gb_s = (double)j.n / median_ns(peak_read, &j);
    for (size_t i = imp_peak_get()->cpu == 0 ? 0 : 1; (j.p = imp_peak_at(i)) != NULL; i++) {
        if ((imp_cpu_features() & j.p->cpu) != j.p->cpu || c.n_isa == IMP_COUNT(c.isa)) continue;
        struct isa_ceilings *s = &c.isa[c.n_isa++];
        *s = (struct isa_ceilings){j.p->isa, gop_s(peak_int8, &j), 0, gop_s(peak_f32, &j)};
        s->w4a8_gop_s = j.p->w4a8 != NULL ? gop_s(peak_w4a8, &j) : s->int8_gop_s;
    }
    imp_sys_pages_free(j.buf, j.n);
    return c;
}

/* Of a variant's own instruction set; the best one's for those that have none of their own. */
static const struct isa_ceilings *ceilings_of(const struct ceilings *c, const char *isa)
{
    for (size_t i = 0; i < c->n_isa; i++)
        if (strcmp(c->isa[i].isa, isa) == 0) return &c->isa[i];
    return &c->isa[c->n_isa == 0 ? 0 : c->n_isa - 1];
}

/* ---- matmul ---------------------------------------------------------------------------------------------------- */
struct matmul_job {
    const imp_matmul *v;
    imp_matmul_args a;
};
static void run_matmul(void *ctx)
{
    struct matmul_job *j = ctx;
    j->v->run(&j->a);
}

/* m rows by weights [n][k] of type t; false: no memory. */
static bool bench_matmul_shape(const imp_matmul *v, imp_dtype type, uint32_t m, uint32_t n, uint32_t k,
                               const struct ceilings *c, struct bench_result *out)
{
    uint64_t bytes;
    if (imp_dtype_bytes(type, (uint64_t)n * k, &bytes) != IMP_OK) return false;
    bool q8 = v->x_form == IMP_X_Q8;
    size_t x_row = q8 ? k / 32 * sizeof(imp_q8_block) : k * sizeof(float), x_bytes = x_row * m,
           y_bytes = (size_t)m * n * sizeof(float), s_bytes = v->scratch_bytes ? v->scratch_bytes(k) : 64,
           p_bytes = v->packed_bytes ? v->packed_bytes(n, k) : 64;
    uint8_t *w = imp_sys_pages(bytes), *x = imp_sys_pages(x_bytes), *y = imp_sys_pages(y_bytes),
            *s = imp_sys_pages(s_bytes), *p = imp_sys_pages(p_bytes);
    bool ok = w && x && y && s && p;
    if (ok) {
        /* a block of any bytes with a scale of zero or small: no NaN, which would be slow on some CPUs */
        memset(w, 0x11, bytes);
        if (type == IMP_F32 || type == IMP_F16 || type == IMP_BF16) memset(w, 0x3c, bytes);
        imp_tensor t = {.dtype = type, .n_dim = 2, .dim = {n, k, 1, 1}, .data = w};
        if (v->pack) v->pack(&t, p);
        struct matmul_job j = {v,
                               {.w = &t,
                                .wp = p,
                                .x = x,
                                .x_stride = x_row,
                                .y = (float *)(void *)y,
                                .y_stride = n,
                                .m = m,
                                .n1 = n,
                                .scratch = s}};
        double ns = median_ns(run_matmul, &j), ops = 2.0 * m * n * k;
        *out = (struct bench_result){.ms = ns / 1e6, .gb_s = (double)bytes / ns, .gop_s = ops / ns};
        snprintf(out->what, sizeof out->what, "%s m=%u n=%u k=%u", imp_dtype_get(type)->name, m, n, k);
        const struct isa_ceilings *peak = ceilings_of(c, v->isa);
        bool w4 = q8 && (type == IMP_Q4_0 || type == IMP_Q4_K);
        double op = w4 ? peak->w4a8_gop_s : q8 ? peak->int8_gop_s : peak->f32_gop_s;
        double by_read = out->gb_s / c->read_gb_s, by_op = out->gop_s / op;
        out->share = by_read > by_op ? by_read : by_op;
        out->bound = by_read > by_op ? "read" : w4 ? "w4a8" : q8 ? "int8" : "f32";
    }
    if (w) imp_sys_pages_free(w, bytes);
    if (x) imp_sys_pages_free(x, x_bytes);
    if (y) imp_sys_pages_free(y, y_bytes);
    if (s) imp_sys_pages_free(s, s_bytes);
    if (p) imp_sys_pages_free(p, p_bytes);
    return ok;
}

/* Decode: one row of x, weights too large for any cache. Prefill: 128 rows. */
static size_t bench_matmul(const imp_matmul *v, const struct ceilings *c, struct bench_result *out,
                           size_t cap)
{
    imp_dtype t = v->dtype == IMP_DTYPE_NONE ? IMP_Q5_0 : v->dtype;
    const imp_dtype_info *info = imp_dtype_get(t);
    bool slow = v->cpu == 0;
    uint32_t k = 2048, row = k / info->block_elem * info->block_bytes;
    uint32_t n = slow ? 256 : (128u << 20) / row / 8 * 8;
    size_t got = 0;
    if (got < cap && bench_matmul_shape(v, t, 1, n, k, c, &out[got])) got++;
    if (got < cap && bench_matmul_shape(v, t, 4, slow ? 256 : 2048, k, c, &out[got])) got++;
    if (got < cap && bench_matmul_shape(v, t, slow ? 16 : 128, slow ? 256 : 2048, k, c, &out[got])) got++;
    return got;
}

/* ---- row kernels and attention --------------------------------------------------------------------------------- */
struct vec_job {
    const imp_vec *v;
    int which;
    float *x, *y;
    imp_q8_block *q;
    size_t n;
};
static const char *const vec_names[] = {"rms_norm", "layer_norm", "softmax",    "silu", "gelu",
                                        "glu silu", "quant_q8",   "f32_to_f16", "rope"};
static void run_vec(void *ctx)
{
    struct vec_job *j = ctx;
    for (int again = 0; again < 64; again++) {
        switch (j->which) {
        case 0: j->v->rms_norm(j->y, j->x, j->x, 0, 1e-5f, j->n); break;
        case 1: j->v->layer_norm(j->y, j->x, j->x, j->x, 1e-5f, j->n); break;
        case 2: j->v->softmax(j->y, j->x, j->n); break;
        case 3: j->v->act(j->y, j->x, IMP_KACT_SILU, j->n); break;
        case 4: j->v->act(j->y, j->x, IMP_KACT_GELU, j->n); break;
        case 5: j->v->glu(j->y, j->x, j->x, IMP_KACT_SILU, j->n); break;
        case 6: j->v->quant_q8(j->q, j->x, j->n); break;
        case 7: j->v->f32_to_f16((uint16_t *)(void *)j->y, j->x, j->n); break;
        default: j->v->rope(j->y, j->x, j->x, j->x, (uint32_t)j->n / 128, 128, 128, true);
        }
    }
}
static size_t bench_vec(const imp_vec *v, const struct ceilings *c, struct bench_result *out, size_t cap)
{
    (void)c;
    enum { N = 4096 };
    static float x[N], y[N];
    static imp_q8_block q[N / 32];
    for (int i = 0; i < N; i++) x[i] = (float)(i % 17) / 8 - 1;
    size_t got = 0;
    for (int w = 0; w < (int)IMP_COUNT(vec_names) && got < cap; w++) {
        struct vec_job j = {v, w, x, y, q, N};
        double ns = median_ns(run_vec, &j) / 64;
        out[got] = (struct bench_result){.ms = ns / 1e6, .gb_s = N * sizeof(float) / ns, .bound = "-"};
        snprintf(out[got++].what, sizeof out->what, "%s n=%d", vec_names[w], N);
    }
    return got;
}

struct attn_job {
    const imp_attn *v;
    imp_attn_args a;
    uint8_t *cache;
    size_t n_slice, slice, slice_bytes; /* each call reads the next slice, so that it comes from memory */
};
static void run_attn_job(void *ctx)
{
    struct attn_job *j = ctx;
    uint8_t *k = j->cache + j->slice++ % j->n_slice * j->slice_bytes;
    j->a.v = k + ((const uint8_t *)j->a.v - (const uint8_t *)j->a.k);
    j->a.k = k;
    j->v->run(&j->a);
}
/* One row is decode, its bound the bytes of the cache; many rows are prefill, bound by f32 products. */
static size_t bench_attn(const imp_attn *v, const struct ceilings *c, struct bench_result *out, size_t cap)
{
    enum { HD = 128, KEYS = 8192, GROUP = 4, ROWS = 32 };
    static const imp_dtype types[] = {IMP_F16, IMP_Q8_0, IMP_Q4_0};
    uint32_t keys = v->cpu == 0 ? 256 : KEYS, table[KEYS / 64];
    size_t got = 0, q = (size_t)ROWS * GROUP * HD * sizeof(float);
    size_t s_bytes = imp_attn_scratch_bytes(ROWS, GROUP, HD), kv = 128u << 20;
    uint8_t *k = imp_sys_pages(kv), *x = imp_sys_pages(2 * q), *s = imp_sys_pages(s_bytes);
    for (uint32_t i = 0; i < KEYS / 64; i++) table[i] = i;
    if (k) memset(k, 1, kv);
    for (size_t i = 0; k && x && s && got < cap && i < 2 * IMP_COUNT(types); i++) {
        imp_dtype t = types[i / 2];
        uint64_t kb = imp_kv_tile_bytes(t, IMP_KV_KEY, HD), vb = imp_kv_tile_bytes(t, IMP_KV_VALUE, HD);
        uint32_t rows = i % 2 == 0 ? 1 : ROWS;
        struct attn_job j = {v,
                             {.q = (float *)(void *)x,
                              .out = (float *)(void *)(x + q),
                              .q_stride = GROUP * HD,
                              .out_stride = GROUP * HD,
                              .n_row = rows,
                              .n_group = GROUP,
                              .head_dim = HD,
                              .k = k,
                              .v = k + kb,
                              .block = table,
                              .block_stride = kb + vb,
                              .kv_dtype = t,
                              .n_key = keys,
                              .pos0 = keys - rows,
                              .causal = true,
                              .scale = 0.1f,
                              .scratch = s},
                             .cache = k,
                             .slice_bytes = (kb + vb) * (keys / 64)};
        j.n_slice = kv / j.slice_bytes;
        double ns = median_ns(run_attn_job, &j), ops = 4.0 * rows * GROUP * HD * keys;
        out[got] = (struct bench_result){.ms = ns / 1e6,
                                         .gb_s = (double)(kb + vb) * keys / 64 / ns,
                                         .gop_s = ops / ns,
                                         .bound = rows == 1 ? "read" : "f32"};
        out[got].share =
            rows == 1 ? out[got].gb_s / c->read_gb_s : out[got].gop_s / ceilings_of(c, v->isa)->f32_gop_s;
        snprintf(out[got++].what, sizeof out->what, "%s rows=%u group=%d dim=%d keys=%u",
                 imp_dtype_get(t)->name, rows, GROUP, HD, keys);
    }
    if (k) imp_sys_pages_free(k, kv);
    if (x) imp_sys_pages_free(x, 2 * q);
    if (s) imp_sys_pages_free(s, s_bytes);
    return got;
}

#endif
