/* plan/calibrate.c - the micro-benchmark of a unit.
 *
 * Idea:    peaks first (for a CPU plan/ceilings, else what the widest product reaches), then lessons: for each weight
 *          type a graph of a few matrices, more bytes than the caches hold, at 1 to 512 rows. Of several runs the median
 *          counts. A type the device has no kernel for is left out.
 * Threads: the caller's; the device must be idle. */
#include "plan/calibrate.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "plan/ceilings.h"
#include "plan/host.h"

enum { WIDTH = 2048, MAX_LAYER = 64, MAX_ROWS = 512, RUNS = 5, TINY_OPS = 64 };

static const imp_dtype TYPES[] = {IMP_Q4_0, IMP_Q8_0, IMP_F16, IMP_Q4_K, IMP_Q6_K, IMP_F32};
static const uint32_t ROWS[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512};

typedef struct rig {
    imp_device *dev;
    imp_graph *g;
    imp_exec *x;
    uint8_t *data; /* weights of one type, owned pages */
    size_t n_data;
    int32_t *token, *pos; /* [MAX_ROWS] */
} rig;

static void rig_close(rig *r)
{
    if (r->x != NULL) r->dev->ops->exec_free(r->x);
    imp_graph_free(r->g);
    imp_sys_pages_free(r->data, r->n_data);
    r->x = NULL;
    r->g = NULL;
    r->data = NULL;
}

/* n_layer products of WIDTH x WIDTH; the bytes are small numbers in every format. */
static imp_status rig_products(rig *r, imp_dtype type, uint32_t n_layer, imp_error *err)
{
    uint64_t bytes, table = 32 * WIDTH * sizeof(float);
    IMP_TRY(imp_dtype_bytes(type, (uint64_t)WIDTH * WIDTH, &bytes));
    r->n_data = bytes * n_layer + table;
    r->data = imp_sys_pages(r->n_data);
    if (r->data == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory to calibrate");
    memset(r->data, 0x11, r->n_data);
    r->g = imp_graph_new();
    if (r->g == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory to calibrate");
    imp_tensor t = {
        .dtype = IMP_F32, .n_dim = 2, .dim = {32, WIDTH, 1, 1}, .data = r->data + bytes * n_layer};
    imp_val x = imp_g_embed(r->g, imp_g_weight(r->g, "table", &t), IMP_BY_TOKEN, 0);
    for (uint32_t i = 0; i < n_layer; i++) {
        imp_tensor w = {.dtype = type, .n_dim = 2, .dim = {WIDTH, WIDTH, 1, 1}, .data = r->data + bytes * i};
        x = imp_g_linear(r->g, x, imp_g_weight(r->g, "w", &w), 0);
    }
    imp_g_output(r->g, imp_g_gather(r->g, x)); /* as when text is generated: vectors take other kernels */
    return imp_graph_finish(r->g, err);
}

/* Many ops that compute next to nothing: the price of an op. */
static imp_status rig_launches(rig *r, imp_error *err)
{
    r->n_data = 32 * 32 * sizeof(float);
    r->data = imp_sys_pages(r->n_data);
    r->g = imp_graph_new();
    if (r->data == NULL || r->g == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory to calibrate");
    imp_tensor t = {.dtype = IMP_F32, .n_dim = 2, .dim = {32, 32, 1, 1}, .data = r->data};
    imp_val x = imp_g_embed(r->g, imp_g_weight(r->g, "table", &t), IMP_BY_TOKEN, 0);
    for (uint32_t i = 0; i < TINY_OPS; i++) x = imp_g_l2_norm(r->g, x);
    imp_g_output(r->g, imp_g_gather(r->g, x)); /* as when text is generated: vectors take other kernels */
    return imp_graph_finish(r->g, err);
}

static imp_status rig_compile(rig *r, imp_error *err)
{
    for (imp_val v = 1; v <= imp_graph_n(r->g); v++) {
        const char *why = r->dev->ops->refuses(r->dev, r->g, v);
        if (why != NULL) return imp_fail(err, IMP_UNSUPPORTED, "%s", why);
    }
    imp_limits lim = {
        .max_tok = MAX_ROWS, .max_seq = 1, .max_out = 1, .max_ctx = MAX_ROWS, .kv_dtype = IMP_F16};
    return r->dev->ops->compile(r->dev, r->g, &lim, &r->x, err);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median seconds of a step with n rows. Long steps are not repeated as often: about ENOUGH_S in all. */
static imp_status time_step(rig *r, uint32_t n, imp_cost_shape *sh, double *s, imp_error *err)
{
    static const double ENOUGH_S = 0.3;
    double t[RUNS], sum = 0;
    int n_run = 0;
    uint32_t last = n - 1;
    imp_batch_seq q = {.n_tok = n};
    imp_batch b = {
        .n_tok = n, .n_seq = 1, .n_out = 1, .token = r->token, .pos = r->pos, .seq = &q, .out_row = &last};
    for (int i = -1; i < RUNS && (n_run == 0 || sum < ENOUGH_S); i++) { /* the first warms up */
        const float *out;
        uint64_t t0 = imp_now_ns();
        IMP_TRY(r->dev->ops->run(r->x, &b, &out, err));
        uint64_t ns = r->dev->ops->last_ns != NULL ? r->dev->ops->last_ns(r->x) : imp_now_ns() - t0;
        sum += (double)ns * 1e-9;
        if (i >= 0) t[n_run++] = (double)ns * 1e-9;
    }
    qsort(t, (size_t)n_run, sizeof *t, by_value);
    *s = t[n_run / 2];
    *sh = imp_cost_shape_of(&b, false);
    return IMP_OK;
}

static void measured(imp_machine *m, imp_field f, double v)
{
    m->f[f] = (imp_value){v, 0.9 * v, 1.1 * v, IMP_MARK_MEASURED, "measured on this machine"};
}

static imp_status measure_launch(rig *r, imp_machine *m, imp_error *err)
{
    imp_cost_shape sh;
    double s;
    IMP_TRY(rig_launches(r, err));
    IMP_TRY(rig_compile(r, err));
    IMP_TRY(time_step(r, 1, &sh, &s, err));
    rig_close(r);
    /* A step's own cost cannot be told from its ops' here: an eighth is taken to be the step's. */
    measured(m, IMP_F_LAUNCH, s * 1e6 * 0.875 / TINY_OPS);
    measured(m, IMP_F_SYNC, s * 1e6 * 0.125);
    return IMP_OK;
}

static imp_status measure_cpu(imp_machine *m, uint32_t n_thread, bool quick, imp_error *err)
{
    imp_host host;
    imp_ceilings c;
    imp_pool *pool;
    IMP_TRY(imp_host_read(&host, err));
    imp_status s = imp_pool_new(n_thread != 0 ? n_thread : imp_sys_n_core(), &pool);
    if (s != IMP_OK) return imp_fail(err, s, "the measuring threads could not be started");
    s = imp_ceilings_measure(pool, host.llc_bytes, quick ? 150 : 500, &c, err);
    imp_pool_free(pool);
    IMP_TRY(s);
    measured(m, IMP_F_BW, c.read_bytes_s * 1e-9);
    measured(m, IMP_F_F32, c.f32_flop_s * 1e-12);
    measured(m, IMP_F_INT8, c.int8_op_s * 1e-12);
    measured(m, IMP_F_CACHE, (double)host.llc_bytes * 1e-6);
    measured(m, IMP_F_E_BW, 0.9);
    measured(m, IMP_F_E_MM, 0.6);
    return IMP_OK;
}

/* Copying a block out and in again, at memory speed for devices that share it. */
static void measure_link(imp_machine *m)
{
    enum { BYTES = 32 << 20 };
    char *a = imp_sys_pages(BYTES), *b = imp_sys_pages(BYTES);
    if (a != NULL && b != NULL) {
        memset(a, 1, BYTES);
        memset(b, 2, BYTES);
        uint64_t t0 = imp_now_ns();
        memcpy(b, a, BYTES);
        memcpy(a, b, BYTES);
        measured(m, IMP_F_LINK, BYTES / ((double)(imp_now_ns() - t0) * 1e-9) * 1e-9);
    }
    imp_sys_pages_free(a, BYTES);
    imp_sys_pages_free(b, BYTES);
}

static imp_status teach(rig *r, imp_dtype type, bool quick, imp_learn *l, imp_error *err)
{
    uint64_t bytes;
    IMP_TRY(imp_dtype_bytes(type, (uint64_t)WIDTH * WIDTH, &bytes));
    uint64_t want = IMP_MAX((uint64_t)(l->machine.f[IMP_F_CACHE].v * 1e6) * 2, 64ull << 20);
    want = IMP_MIN(want, quick ? 128ull << 20 : 512ull << 20);
    uint32_t n_layer = (uint32_t)IMP_MIN(IMP_MAX(want / bytes, 2u), (uint64_t)MAX_LAYER);
    IMP_TRY(rig_products(r, type, n_layer, err));
    IMP_TRY(rig_compile(r, err));
    imp_cost c;
    imp_cost_build(r->g, IMP_F16, &c);
    for (size_t i = 0; i < IMP_COUNT(ROWS); i++) {
        if (quick && i % 2 == 1 && ROWS[i] != 512) continue;
        imp_cost_shape sh;
        double s;
        IMP_TRY(time_step(r, ROWS[i], &sh, &s, err));
        for (int k = 0; k < 4; k++) imp_learn_observe(l, &c, &sh, s); /* a median weighs more than one step */
    }
    return IMP_OK;
}

imp_status imp_calibrate(imp_device *d, imp_unit_kind kind, uint32_t n_thread, bool quick,
                         void (*on_progress)(void *user, uint32_t done, uint32_t all), void *user,
                         imp_learn *l, imp_calibration *out, imp_error *err)
{
    enum { PARTS = 2 + IMP_COUNT(TYPES) };
    *out = (imp_calibration){.at = (int64_t)time(NULL)};
    imp_store_fingerprint(d->name, out->fingerprint);
    imp_machine *m = &out->machine;
    imp_machine_default(kind, d->name, m);
    rig r = {.dev = d};
    r.token = imp_sys_calloc(MAX_ROWS, sizeof *r.token);
    r.pos = imp_sys_calloc(MAX_ROWS, sizeof *r.pos);
    imp_status s = r.token == NULL || r.pos == NULL
                       ? imp_fail(err, IMP_NOMEM, "not enough memory to calibrate")
                       : IMP_OK;
    for (int i = 0; s == IMP_OK && i < MAX_ROWS; i++) r.token[i] = i % 32, r.pos[i] = i;
    if (s == IMP_OK && kind == IMP_UNIT_CPU) s = measure_cpu(m, n_thread, quick, err);
    if (on_progress != NULL) on_progress(user, 1, PARTS);
    if (s == IMP_OK) s = measure_launch(&r, m, err);
    if (on_progress != NULL) on_progress(user, 2, PARTS);
    measure_link(m);
    imp_learn_init(l, m);
    for (size_t i = 0; s == IMP_OK && i < IMP_COUNT(TYPES); i++) {
        imp_status one = teach(&r, TYPES[i], quick, l, err);
        rig_close(&r);
        if (one != IMP_OK && one != IMP_UNSUPPORTED) s = one;
        if (on_progress != NULL) on_progress(user, (uint32_t)(3 + i), PARTS);
    }
    rig_close(&r);
    imp_sys_free(r.token);
    imp_sys_free(r.pos);
    return s;
}
