/* plan/calibrate.c - the micro-benchmark of a unit.
 *
 * Idea:    peaks first (for a CPU plan/ceilings, else what the widest product reaches), then lessons: for each weight
 *          type a chain of matrices, more bytes than the caches hold, at 1 to 512 rows, and a chain of small ones; the
 *          same with the kernels that embeddings take; attention over caches of several lengths; what stands between the
 *          products. Everything is run in two rounds and the quicker one counts, for what else runs on the machine only
 *          adds. All lessons together are taught several times over, so that none depends on those that came before.
 *          What the device does not run is left out.
 * Threads: the caller's; the device must be idle. */
#include "plan/calibrate.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/thread.h"
#include "plan/ceilings.h"
#include "plan/host.h"

enum {
    WIDTH = 2048,
    NARROW = 512, /* of weights that stay in caches */
    MAX_LAYER = 64,
    MAX_ROWS = 512,
    MAX_PAST = 4096,
    RUNS = 5,
    ROUNDS = 2,
    PASSES = 4, /* of teaching */
    TINY_OPS = 64,
    TINY_WIDTH = 192, /* of the CPU's: small, but together enough for all threads */
    PLAIN_OPS = 16,   /* of one kind between products */
    PLAIN_WIDTH = 1024,
    CROWD = 3, /* products of that width that bring all threads in: a CPU computes next to nothing alone */
    ATTN_LAYERS = 4,
    HAND_LAYERS = 16,
    MAX_RIG = 32,
    MAX_LESSON = 320
};

static const imp_dtype TYPES[] = {IMP_Q4_0, IMP_Q8_0, IMP_F16, IMP_Q4_K, IMP_Q6_K, IMP_F32};
static const imp_dtype VECTOR_TYPES[] = {IMP_Q8_0, IMP_F16, IMP_F32};

/* A step to time: n_seq sequences of n rows each behind `past`. */
typedef struct step {
    uint32_t n, past, n_seq;
} step;
static const step ROWS[] = {{1, 0, 1},  {2, 0, 1},  {4, 0, 1},   {8, 0, 1},   {16, 0, 1},
                            {32, 0, 1}, {64, 0, 1}, {128, 0, 1}, {256, 0, 1}, {512, 0, 1}};
static const step FEW[] = {{1, 0, 1}, {4, 0, 1}, {16, 0, 1}, {64, 0, 1}, {256, 0, 1}};
static const step CACHED[] = {{1, 15, 1},   {1, 63, 1},     {1, 255, 1},   {1, 511, 1}, {1, 1023, 1},
                              {1, 4000, 1}, {1, 63, 4},     {1, 500, 4},   {1, 60, 8},  {1, 500, 8},
                              {16, 0, 1},   {64, 0, 1},     {256, 0, 1},   {512, 0, 1}, {256, 512, 1},
                              {48, 0, 4},   {512, 1024, 1}, {512, 3500, 1}};
static const step ENCODER[] = {{8, 0, 1},   {16, 0, 1},  {32, 0, 1}, {64, 0, 1}, {128, 0, 1},
                               {256, 0, 1}, {512, 0, 1}, {32, 0, 8}, {128, 0, 4}};
static const step PLAIN[] = {{1, 0, 1}, {16, 0, 1}, {256, 0, 1}};

/* What was measured: a step of the graph cost[rig]. */
typedef struct lesson {
    uint32_t rig;
    imp_cost_shape shape;
    double s;
} lesson;

typedef struct lessons {
    uint32_t n_rig, n;
    imp_cost cost[MAX_RIG];
    lesson at[MAX_LESSON];
} lessons;

typedef struct rig {
    imp_device *dev;
    lessons *lessons; /* NULL: nothing is to be taught */
    imp_graph *g;
    imp_exec *x;
    uint8_t *data; /* weights of one type, owned pages */
    size_t n_data;
    int32_t *token, *pos; /* [MAX_ROWS] */
    uint32_t
        *block; /* [MAX_PAST + MAX_ROWS over a block's tokens]: sequences share them, for nobody reads on */
    bool cached;
} rig;

static void rig_close(rig *r)
{
    if (r->x != NULL) r->dev->ops->exec_free(r->x);
    imp_graph_free(r->g);
    imp_sys_pages_free(r->data, r->n_data);
    r->x = NULL;
    r->g = NULL;
    r->data = NULL;
    r->cached = false;
}

/* A graph that begins with rows of a table of `width` columns; the table stands behind n_data bytes of weights, which are
 * small numbers in every format. *x: its value. */
static imp_status rig_begin(rig *r, uint64_t n_data, uint32_t width, imp_val *x, imp_error *err)
{
    r->n_data = n_data + 32ull * width * sizeof(float);
    r->data = imp_sys_pages(r->n_data);
    r->g = imp_graph_new();
    if (r->data == NULL || r->g == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory to calibrate");
    memset(r->data, 0x11, r->n_data);
    imp_tensor t = {.dtype = IMP_F32, .n_dim = 2, .dim = {32, width, 1, 1}, .data = r->data + n_data};
    *x = imp_g_embed(r->g, imp_g_weight(r->g, "table", &t), IMP_BY_TOKEN, 0);
    return IMP_OK;
}

/* As when text is generated, or as when vectors are made, for which a CPU takes other kernels. */
static imp_status rig_end(rig *r, imp_val x, bool vectors, imp_error *err)
{
    imp_g_output(r->g, vectors ? imp_g_pool(r->g, x, IMP_POOL_MEAN) : imp_g_gather(r->g, x));
    return imp_graph_finish(r->g, err);
}

static imp_val product(rig *r, imp_val x, imp_dtype type, uint32_t width, uint8_t *data)
{
    imp_tensor w = {.dtype = type, .n_dim = 2, .dim = {width, width, 1, 1}, .data = data};
    return imp_g_linear(r->g, x, imp_g_weight(r->g, "w", &w), 0);
}

/* n_layer products of width x width. */
static imp_status rig_products(rig *r, imp_dtype type, uint32_t width, uint32_t n_layer, bool vectors,
                               imp_error *err)
{
    uint64_t bytes;
    imp_val x;
    IMP_TRY(imp_dtype_bytes(type, (uint64_t)width * width, &bytes));
    IMP_TRY(rig_begin(r, bytes * n_layer, width, &x, err));
    for (uint32_t i = 0; i < n_layer; i++) x = product(r, x, type, width, r->data + bytes * i);
    return rig_end(r, x, vectors, err);
}

/* Before ops without weights: a few products, so that they run as they would inside a model. */
static imp_status rig_crowd(rig *r, imp_val *x, imp_error *err)
{
    uint64_t bytes;
    IMP_TRY(imp_dtype_bytes(IMP_Q8_0, PLAIN_WIDTH * PLAIN_WIDTH, &bytes));
    IMP_TRY(rig_begin(r, bytes * CROWD, PLAIN_WIDTH, x, err));
    for (uint32_t i = 0; i < CROWD; i++) *x = product(r, *x, IMP_Q8_0, PLAIN_WIDTH, r->data + bytes * i);
    return IMP_OK;
}

/* Many ops that compute next to nothing: the price of an op. A CPU's threads join in only where there is some work. */
static imp_status rig_launches(rig *r, imp_unit_kind kind, imp_error *err)
{
    if (kind == IMP_UNIT_CPU) return rig_products(r, IMP_Q8_0, TINY_WIDTH, TINY_OPS, false, err);
    imp_val x;
    IMP_TRY(rig_begin(r, 0, 32, &x, err));
    for (uint32_t i = 0; i < TINY_OPS; i++) x = imp_g_l2_norm(r->g, x);
    return rig_end(r, x, false, err);
}

/* What stands between products: many ops of one kind. */
static imp_status rig_plain(rig *r, imp_op op, imp_error *err)
{
    static const float inv_freq[32];
    const imp_rope_attr rope = {.head_dim = 64, .n_rot = 64, .mscale = 1, .inv_freq = inv_freq};
    imp_val x;
    IMP_TRY(rig_crowd(r, &x, err));
    imp_val first = x;
    for (uint32_t i = 0; i < PLAIN_OPS; i++) {
        switch (op) {
        case IMP_OP_RMS_NORM: x = imp_g_rms_norm(r->g, x, 0, 1e-5f, PLAIN_WIDTH, 0); break;
        case IMP_OP_GLU: x = imp_g_glu(r->g, x, first, IMP_ACT_SILU); break;
        case IMP_OP_ACT: x = imp_g_act(r->g, x, IMP_ACT_GELU); break;
        case IMP_OP_ROPE: x = imp_g_rope(r->g, x, &rope); break;
        default: x = imp_g_add(r->g, x, first);
        }
    }
    return rig_end(r, x, false, err);
}

/* Attention of 8 heads over 4 of the cache, 64 wide; or an encoder's, which sees its own step alone. */
static imp_status rig_attention(rig *r, bool cached, uint32_t n_layer, imp_error *err)
{
    enum { KV = 4 * 64, Q = PLAIN_WIDTH - 2 * KV };
    imp_val x, sum = 0;
    IMP_TRY(rig_crowd(r, &x, err));
    imp_val q = imp_g_slice(r->g, x, 0, Q), k = imp_g_slice(r->g, x, Q, KV),
            v = imp_g_slice(r->g, x, Q + KV, KV);
    for (int32_t i = 0; i < (int32_t)n_layer; i++) {
        imp_attn_attr a = {.n_head = Q / 64,
                           .n_kv_head = KV / 64,
                           .head_dim = 64,
                           .kv_layer = cached ? i : -1,
                           .mask = cached ? IMP_MASK_CAUSAL : IMP_MASK_FULL,
                           .scale = 0.125f};
        imp_val y = imp_g_attn(r->g, q, k, v, 0, &a);
        sum = i == 0 ? y : imp_g_add(r->g, sum, y);
    }
    r->cached = cached;
    return rig_end(r, sum, !cached, err);
}

static imp_status rig_compile(rig *r, imp_error *err)
{
    for (imp_val v = 1; v <= imp_graph_n(r->g); v++) {
        const char *why = r->dev->ops->refuses(r->dev, r->g, v);
        if (why != NULL) return imp_fail(err, IMP_UNSUPPORTED, "%s", why);
    }
    uint32_t ctx = r->cached ? MAX_PAST + MAX_ROWS : MAX_ROWS;
    imp_limits lim = {.max_tok = MAX_ROWS,
                      .max_seq = 8,
                      .max_out = 8,
                      .max_ctx = ctx,
                      .n_kv_block = r->cached ? ctx / IMP_KV_BLOCK : 0,
                      .kv_dtype = IMP_F16};
    return r->dev->ops->compile(r->dev, r->g, &lim, &r->x, err);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Seconds of a step. */
static imp_status run_once(rig *r, const step *st, imp_cost_shape *sh, double *s, imp_error *err)
{
    uint32_t out_row[8];
    imp_batch_seq q[8];
    for (uint32_t i = 0; i < st->n_seq; i++) {
        q[i] = (imp_batch_seq){.first_tok = i * st->n, .n_tok = st->n, .n_past = st->past};
        q[i].block = r->cached ? r->block : NULL;
        out_row[i] = (i + 1) * st->n - 1;
        for (uint32_t k = 0; k < st->n; k++) r->pos[i * st->n + k] = (int32_t)(st->past + k);
    }
    bool pools = imp_graph_node(r->g, imp_graph_output(r->g))->rows == IMP_ROWS_SEQ;
    imp_batch b = {.n_tok = st->n * st->n_seq,
                   .n_seq = st->n_seq,
                   .n_out = pools ? 0 : st->n_seq,
                   .token = r->token,
                   .pos = r->pos,
                   .seq = q,
                   .out_row = out_row};
    const float *out;
    uint64_t t0 = imp_now_ns();
    IMP_TRY(r->dev->ops->run(r->x, &b, &out, err));
    uint64_t ns = r->dev->ops->last_ns != NULL ? r->dev->ops->last_ns(r->x) : imp_now_ns() - t0;
    *s = (double)ns * 1e-9;
    *sh = imp_cost_shape_of(&b, r->cached);
    return IMP_OK;
}

/* The same, of the quicker runs. Long steps are not repeated as often: about ENOUGH_S in all. */
static imp_status time_step(rig *r, const step *st, imp_cost_shape *sh, double *s, imp_error *err)
{
    static const double ENOUGH_S = 0.2;
    double t[RUNS], sum = 0;
    int n_run = 0;
    for (int i = -1; i < RUNS && (n_run == 0 || sum < ENOUGH_S); i++) { /* the first warms up */
        IMP_TRY(run_once(r, st, sh, s, err));
        sum += *s;
        if (i >= 0) t[n_run++] = *s;
    }
    qsort(t, (size_t)n_run, sizeof *t, by_value);
    *s = t[n_run / 4]; /* the quicker quarter */
    return IMP_OK;
}

static void measured(imp_machine *m, imp_field f, double v)
{
    m->f[f] = (imp_value){v, 0.9 * v, 1.1 * v, IMP_MARK_MEASURED, "measured on this machine"};
}

/* The same step right after another and after a pause. */
static imp_status time_pauses(rig *r, double *hot, double *cold, imp_error *err)
{
    enum { N = 9, PAUSE_MS = 3 };
    imp_mutex *mu = NULL;
    imp_cond *never = NULL;
    imp_cost_shape sh;
    double t[N] = {0};
    imp_status s = imp_mutex_new(&mu);
    if (s == IMP_OK) s = imp_cond_new(&never);
    if (s != IMP_OK) s = imp_fail(err, s, "not enough memory to calibrate");
    if (s == IMP_OK) s = time_step(r, &ROWS[0], &sh, hot, err);
    for (int i = 0; s == IMP_OK && i < N; i++) {
        imp_mutex_lock(mu);
        (void)imp_cond_wait_ms(never, mu, PAUSE_MS);
        imp_mutex_unlock(mu);
        s = run_once(r, &ROWS[0], &sh, &t[i], err);
    }
    qsort(t, N, sizeof *t, by_value);
    *cold = t[N / 2];
    if (never != NULL) imp_cond_free(never);
    if (mu != NULL) imp_mutex_free(mu);
    return s;
}

static imp_status measure_launch(rig *r, imp_machine *m, imp_error *err)
{
    double s = 0, cold = 0;
    IMP_TRY(rig_launches(r, m->kind, err));
    IMP_TRY(rig_compile(r, err));
    IMP_TRY(time_pauses(r, &s, &cold, err));
    imp_cost c;
    imp_cost_terms item[IMP_COST_ITEMS];
    imp_cost_time t;
    imp_cost_shape one = imp_cost_shape_chunk(1, 0, 1);
    imp_cost_build(r->g, IMP_F16, &c);
    rig_close(r);
    imp_cost_base(&c, m, &one, item, &t);
    double work = 0;
    for (uint32_t i = 0; i < c.n_item; i++)
        work += imp_cost_together(m, item[i].compute_s, item[i].memory_s) + item[i].row_s;
    /* A step's own cost cannot be told from its ops' here: an eighth is taken to be the step's. */
    double rest = IMP_MAX(s - work, s / 4) * 1e6;
    measured(m, IMP_F_LAUNCH, rest * 0.875 / c.n_launch);
    measured(m, IMP_F_SYNC, rest * 0.125);
    measured(m, IMP_F_WAKE, IMP_MAX(cold - s, 1e-6) * 1e6);
    return IMP_OK;
}

static imp_status measure_cpu(imp_machine *m, uint32_t n_thread, bool quick, uint64_t until_ns,
                              imp_error *err)
{
    imp_host host;
    imp_ceilings c;
    imp_pool *pool;
    IMP_TRY(imp_host_read(&host, err));
    imp_status s = imp_pool_new(n_thread != 0 ? n_thread : imp_sys_n_core(), &pool);
    if (s != IMP_OK) return imp_fail(err, s, "the measuring threads could not be started");
    s = imp_ceilings_measure(pool, host.llc_bytes, quick ? 150 : 500, until_ns, &c, err);
    imp_pool_free(pool);
    IMP_TRY(s);
    measured(m, IMP_F_BW, c.read_bytes_s * 1e-9);
    if (c.f32_flop_s > 0) measured(m, IMP_F_F32, c.f32_flop_s * 1e-12);
    if (c.int8_op_s > 0) measured(m, IMP_F_INT8, c.int8_op_s * 1e-12);
    measured(m, IMP_F_CACHE, (double)host.llc_bytes * 1e-6);
    if (c.cache_bytes_s > 0) measured(m, IMP_F_CACHE_BW, c.cache_bytes_s * 1e-9);
    measured(m, IMP_F_WAITS, 1); /* as all its kernels were found to do: docs/benchmarks.md */
    measured(m, IMP_F_E_BW, 0.9);
    measured(m, IMP_F_E_MM, 0.6);
    return IMP_OK;
}

/* What the widest products of another device reach: reading at one row, multiplying at MAX_ROWS. Without f16 products both
 * stay assumed. */
static imp_status measure_products(rig *r, imp_machine *m, bool quick, imp_error *err)
{
    enum { WIDE = 2 * WIDTH };
    static const step one = {1, 0, 1}, many = {MAX_ROWS, 0, 1};
    const uint32_t n_layer = quick ? 6 : 12; /* 200 or 400 MB: more than caches hold */
    imp_cost_shape sh;
    double read = 0, multiply = 0;
    imp_status s = rig_products(r, IMP_F16, WIDE, n_layer, false, err);
    if (s == IMP_OK) s = rig_compile(r, err);
    if (s == IMP_OK) s = time_step(r, &one, &sh, &read, err);
    if (s == IMP_OK) s = time_step(r, &many, &sh, &multiply, err);
    rig_close(r);
    if (s == IMP_UNSUPPORTED) return IMP_OK;
    IMP_TRY(s);
    const double n = (double)WIDE * WIDE * n_layer;
    measured(m, IMP_F_BW, 2 * n / read * 1e-9);
    measured(m, IMP_F_F16, 2 * n * MAX_ROWS / multiply * 1e-12);
    measured(m, IMP_F_E_BW, 1); /* both are what products reached, no ceilings */
    measured(m, IMP_F_E_MM, 1);
    return IMP_OK;
}

/* ---- hand-over ------------------------------------------------------------------------------------------- */

/* Seconds of one block of a cache of n_layer layers, out and in; *bytes: of a block. */
static imp_status time_block(rig *r, uint32_t n_layer, double *out_s, double *in_s, double *bytes,
                             imp_error *err)
{
    enum { N = 15 };
    const imp_device_ops *ops = r->dev->ops;
    double t[2][N];
    IMP_TRY(rig_attention(r, true, n_layer, err));
    IMP_TRY(rig_compile(r, err));
    uint64_t n = imp_dev_kv_block_bytes(r->g, IMP_F16);
    void *host = imp_sys_pages(n);
    imp_status s = host != NULL ? IMP_OK : imp_fail(err, IMP_NOMEM, "not enough memory to calibrate");
    for (uint32_t i = 0; s == IMP_OK && i < N; i++) {
        uint64_t t0 = imp_now_ns();
        s = ops->kv_export(r->x, 0, host, err);
        uint64_t t1 = imp_now_ns();
        if (s == IMP_OK) s = ops->kv_import(r->x, 1, host, err);
        t[0][i] = (double)(t1 - t0) * 1e-9;
        t[1][i] = (double)(imp_now_ns() - t1) * 1e-9;
    }
    imp_sys_pages_free(host, n);
    rig_close(r);
    IMP_TRY(s);
    for (int k = 0; k < 2; k++) qsort(t[k], N, sizeof t[k][0], by_value);
    *out_s = t[0][N / 4];
    *in_s = t[1][N / 4];
    *bytes = (double)n;
    return IMP_OK;
}

/* A hand-over is one unit's export and another's import, each a rate and so much for a block: small and large blocks tell
 * them apart. So every ordered pair of devices is known once each of them is. */
static imp_status measure_hand_over(rig *r, imp_machine *m, imp_error *err)
{
    const imp_device_ops *ops = r->dev->ops;
    double out[2], in[2], bytes[2];
    if (ops->kv_export == NULL || ops->kv_import == NULL) return IMP_OK;
    for (int k = 0; k < 2; k++) {
        imp_status s = time_block(r, k == 0 ? 1 : HAND_LAYERS, &out[k], &in[k], &bytes[k], err);
        rig_close(r);
        if (s != IMP_OK) return s == IMP_UNSUPPORTED ? IMP_OK : s;
    }
    double more = bytes[1] - bytes[0];
    double rate_out = more / IMP_MAX(out[1] - out[0], out[1] / 4), /* noise may put them too close */
        rate_in = more / IMP_MAX(in[1] - in[0], in[1] / 4);
    double each = (out[0] - bytes[0] / rate_out + in[0] - bytes[0] / rate_in) / 2;
    measured(m, IMP_F_HAND_OUT, rate_out * 1e-9);
    measured(m, IMP_F_HAND_IN, rate_in * 1e-9);
    measured(m, IMP_F_HAND_US, IMP_MAX(each, 1e-8) * 1e6);
    return IMP_OK;
}

/* Compile what stands in the rig and time the steps. A device that does not run it gives no lessons: OK. */
static imp_status take_lessons(rig *r, imp_status built, const step *st, size_t n_step, bool quick,
                               imp_error *err)
{
    lessons *q = r->lessons;
    uint32_t first = q->n, n = 0;
    if (built == IMP_OK) built = rig_compile(r, err);
    if (built == IMP_OK && (q->n_rig == MAX_RIG || q->n + n_step > MAX_LESSON))
        built = imp_fail(err, IMP_INTERNAL, "more is measured than there is room for");
    if (built == IMP_OK) {
        imp_cost_build(r->g, IMP_F16, &q->cost[q->n_rig]);
        q->cost[q->n_rig].id = 0; /* no model: all it teaches is about the unit */
    }
    for (int round = 0; built == IMP_OK && round < (quick ? 1 : ROUNDS); round++) {
        n = 0;
        for (size_t i = 0; built == IMP_OK && i < n_step; i++) {
            if (quick && i % 2 == 1 && i + 1 != n_step) continue;
            lesson *at = &q->at[first + n++];
            double s;
            built = time_step(r, &st[i], &at->shape, &s, err);
            at->s = round == 0 ? s : IMP_MIN(s, at->s);
            at->rig = q->n_rig;
        }
    }
    if (built == IMP_OK) {
        q->n += n;
        q->n_rig++;
    }
    rig_close(r);
    return built == IMP_UNSUPPORTED ? IMP_OK : built;
}

static void teach(const lessons *q, imp_learn *l)
{
    for (int pass = 0; pass < PASSES; pass++)
        for (uint32_t i = 0; i < q->n; i++) {
            const lesson *at = &q->at[pass % 2 ? q->n - 1 - i : i];
            imp_learn_observe(l, &q->cost[at->rig], &at->shape, at->s);
        }
}

/* As many layers as fill memory well beyond the caches. */
static uint32_t layers_of(imp_dtype type, const imp_machine *m, bool quick)
{
    uint64_t bytes = 1;
    (void)!imp_dtype_bytes(type, (uint64_t)WIDTH * WIDTH, &bytes);
    uint64_t want = IMP_MAX((uint64_t)(m->f[IMP_F_CACHE].v * 1e6) * 2, 64ull << 20);
    want = IMP_MIN(want, quick ? 128ull << 20 : 512ull << 20);
    return (uint32_t)IMP_MIN(IMP_MAX(want / IMP_MAX(bytes, 1u), 2u), (uint64_t)MAX_LAYER);
}

static imp_status measure_type(rig *r, imp_dtype t, bool quick, const imp_machine *m, imp_error *err)
{
    imp_status s = rig_products(r, t, WIDTH, layers_of(t, m, quick), false, err);
    IMP_TRY(take_lessons(r, s, ROWS, IMP_COUNT(ROWS), quick, err));
    s = rig_products(r, t, NARROW, 16, false, err);
    IMP_TRY(take_lessons(r, s, FEW, IMP_COUNT(FEW), false, err));
    bool vectors = false;
    for (size_t i = 0; i < IMP_COUNT(VECTOR_TYPES); i++) vectors = vectors || VECTOR_TYPES[i] == t;
    if (!vectors || m->kind != IMP_UNIT_CPU) return IMP_OK;
    s = rig_products(r, t, NARROW, 16, true, err);
    return take_lessons(r, s, ROWS, IMP_COUNT(ROWS), quick, err);
}

static imp_status measure_rest(rig *r, bool quick, imp_error *err)
{
    static const imp_op op[] = {IMP_OP_RMS_NORM, IMP_OP_GLU, IMP_OP_ACT, IMP_OP_ROPE, IMP_OP_ADD};
    imp_status s = rig_attention(r, true, ATTN_LAYERS, err);
    IMP_TRY(take_lessons(r, s, CACHED, IMP_COUNT(CACHED), quick, err));
    s = rig_attention(r, false, ATTN_LAYERS, err);
    IMP_TRY(take_lessons(r, s, ENCODER, IMP_COUNT(ENCODER), quick, err));
    for (size_t i = 0; i < IMP_COUNT(op); i++) {
        s = rig_plain(r, op[i], err);
        IMP_TRY(take_lessons(r, s, PLAIN, IMP_COUNT(PLAIN), false, err));
    }
    return IMP_OK;
}

imp_status imp_calibrate(imp_device *d, imp_unit_kind kind, uint32_t n_thread, bool quick,
                         void (*on_progress)(void *user, uint32_t done, uint32_t all), void *user,
                         imp_learn *l, imp_calibration *out, imp_error *err)
{
    enum { PARTS = 3 + IMP_COUNT(TYPES), BLOCKS = (MAX_PAST + MAX_ROWS) / IMP_KV_BLOCK };
    *out = (imp_calibration){.at = (int64_t)time(NULL)};
    imp_store_fingerprint(d->name, out->fingerprint);
    imp_machine *m = &out->machine;
    imp_machine_default(kind, d->name, m);
    rig r = {.dev = d};
    r.token = imp_sys_calloc(MAX_ROWS, sizeof *r.token);
    r.pos = imp_sys_calloc(MAX_ROWS, sizeof *r.pos);
    r.block = imp_sys_calloc(BLOCKS, sizeof *r.block);
    r.lessons = imp_sys_calloc(1, sizeof *r.lessons);
    imp_status s = r.token == NULL || r.pos == NULL || r.block == NULL || r.lessons == NULL
                       ? imp_fail(err, IMP_NOMEM, "not enough memory to calibrate")
                       : IMP_OK;
    for (int i = 0; s == IMP_OK && i < MAX_ROWS; i++) r.token[i] = i % 32;
    for (uint32_t i = 0; s == IMP_OK && i < BLOCKS; i++) r.block[i] = i;
    if (s == IMP_OK)
        s = kind == IMP_UNIT_CPU ? measure_cpu(m, n_thread, quick, UINT64_MAX, err)
                                 : measure_products(&r, m, quick, err);
    if (on_progress != NULL) on_progress(user, 1, PARTS);
    if (s == IMP_OK) s = measure_launch(&r, m, err);
    if (on_progress != NULL) on_progress(user, 2, PARTS);
    if (s == IMP_OK) s = measure_hand_over(&r, m, err);
    for (size_t i = 0; s == IMP_OK && i < IMP_COUNT(TYPES); i++) {
        s = measure_type(&r, TYPES[i], quick, m, err);
        if (on_progress != NULL) on_progress(user, (uint32_t)(3 + i), PARTS);
    }
    if (s == IMP_OK) s = measure_rest(&r, quick, err);
    imp_learn_init(l, m);
    if (s == IMP_OK) teach(r.lessons, l);
    if (on_progress != NULL) on_progress(user, PARTS, PARTS);
    rig_close(&r);
    imp_sys_free(r.token);
    imp_sys_free(r.pos);
    imp_sys_free(r.block);
    imp_sys_free(r.lessons);
    return s;
}

imp_status imp_calibrate_short(imp_device *d, imp_unit_kind kind, uint32_t n_thread, uint32_t limit_ms,
                               imp_calibration *out, bool *cut, imp_error *err)
{
    uint64_t until = imp_now_ns() + limit_ms * 1000000ull;
    int32_t token = 0, pos = 0;
    rig r = {.dev = d, .token = &token, .pos = &pos};
    *out = (imp_calibration){.at = (int64_t)time(NULL)};
    imp_store_fingerprint(d->name, out->fingerprint);
    imp_machine_default(kind, d->name, &out->machine);
    imp_status s = kind == IMP_UNIT_CPU ? measure_cpu(&out->machine, n_thread, true, until, err) : IMP_OK;
    if (s == IMP_OK && imp_now_ns() < until) s = measure_launch(&r, &out->machine, err);
    rig_close(&r);
    *cut = imp_now_ns() >= until; /* hand-over is the last */
    if (s == IMP_OK && !*cut) s = measure_hand_over(&r, &out->machine, err);
    rig_close(&r);
    return s;
}
