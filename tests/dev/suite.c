/* tests/dev/suite.c - every op and weight type on the CPU device against the reference device, at stated bounds.
 *
 * Bounds:  linear: the kernel's own bound (kern.h) plus, where activations become int8, half a step of every block
 *          times the weights beside it; other ops: a few units of f32 rounding of the terms. */
#include "common.h"

#include "kern/kern.h"

/* Another device's suite (cuda_suite.c) states its own bounds and includes this file. */
#ifndef SUITE_LINEAR_BOUND
#define SUITE_LINEAR_BOUND(type, m, mm, x, w, k, bias) linear_bound(mm, x, w, k, bias)
#define SUITE_ATTN_F16                                 0
#define SUITE_ATTN_Q8                                  0.02
#define SUITE_KV_Q4                                    true
#endif

static imp_device *cpu, *ref;

static int open_devices(void **state)
{
    (void)state;
    cpu = open_dev("cpu", 3);
    ref = open_dev("ref", 0);
    return 0;
}
static int close_devices(void **state)
{
    (void)state;
    cpu->ops->close(cpu);
    ref->ops->close(ref);
    return 0;
}

/* Run one step on both; out[0] cpu, out[1] ref. */
static void run_both(rig *r, imp_graph *g, imp_limits lim, const imp_batch *b, uint64_t n_row, float *out[2])
{
    finish(g);
    uint64_t width = imp_graph_node(g, imp_graph_output(g))->width;
    for (int i = 0; i < 2; i++) {
        imp_exec *x = compile(i == 0 ? cpu : ref, g, lim);
        out[i] = run_step(r, x, b, n_row, width);
        x->dev->ops->exec_free(x);
    }
}

/* The input of op tests: m tokens in one sequence, rows of a random table [N_VOCAB][k]. */
static imp_val input(rig *r, imp_graph *g, uint64_t k, float size, imp_tensor *table)
{
    *table = random_weight(r, IMP_F32, N_VOCAB, k, size);
    return imp_g_embed(g, imp_g_weight(g, "x", table), IMP_BY_TOKEN, 0);
}
static steps *one_sequence(rig *r, uint32_t m)
{
    steps *s = rig_alloc(r, sizeof *s);
    batch_clear(s);
    batch_add(s, random_text(r, m), 0, m, NULL);
    return s;
}

/* ---- linear ---------------------------------------------------------------------------------------- */

/* What y[j] may differ by: see the head of this file. */
static double linear_bound(const imp_matmul *mm, const float *x, const float *w, uint64_t k, double bias)
{
    double terms = fabs(bias), quant = 0;
    for (uint64_t b = 0; b < k; b += 32) {
        double max = 0, sum = 0;
        for (uint64_t i = b; i < k && i < b + 32; i++) {
            max = fmax(max, fabs((double)x[i]));
            sum += fabs((double)w[i]);
            terms += fabs((double)x[i] * (double)w[i]);
        }
        quant += max / 127 * 0.5 * sum;
    }
    double rounding = ((double)mm->err_per_k * (double)k + (double)mm->err_const + 4) * 1.2e-7 * terms;
    return (mm->x_form == IMP_X_Q8 ? quant * 1.001 : 0) + rounding;
}

static void check_linear(imp_tensor w, uint32_t m, bool with_bias, rig *r)
{
    imp_graph *g = imp_graph_new();
    uint64_t n = w.dim[0], k = w.dim[1];
    imp_tensor table, bias = random_weight(r, IMP_F32, 0, n, 1);
    imp_val x = input(r, g, k, 1, &table);
    x = imp_g_linear(g, x, imp_g_weight(g, "w", &w), with_bias ? imp_g_weight(g, "b", &bias) : 0);
    imp_g_output(g, imp_g_gather(g, x));
    steps *s = one_sequence(r, m);
    float *out[2];
    run_both(r, g, test_limits(IMP_F32), &s->b, m, out);
    const imp_matmul *mm = imp_matmul_select(w.dtype, k);
    float *row = rig_alloc(r, k * sizeof *row);
    for (uint64_t j = 0; j < n; j++) {
        imp_tensor_row_f32(&w, j, row);
        for (uint32_t i = 0; i < m; i++) {
            const float *xi = (const float *)table.data + (uint64_t)s->token[i] * k;
            double b = with_bias ? (double)((const float *)bias.data)[j] : 0;
            double bound = SUITE_LINEAR_BOUND(w.dtype, m, mm, xi, row, k, b);
            double d = fabs((double)out[0][i * n + j] - (double)out[1][i * n + j]);
            if (!(d <= bound)) {
                fail_msg("linear %s %s m=%u n=%llu k=%llu at [%u][%llu]: %.9g, should be %.9g +- %g",
                         imp_dtype_get(w.dtype)->name, mm->name, m, (unsigned long long)n,
                         (unsigned long long)k, i, (unsigned long long)j, (double)out[0][i * n + j],
                         (double)out[1][i * n + j], bound);
            }
        }
    }
    imp_graph_free(g);
}

static void test_linear_types(void **state)
{
    (void)state;
    static const uint32_t ms[] = {1, 2, 3, 5, 16, 17, 33}, ns[] = {1, 7, 32, 65, 131},
                          blocks[] = {1, 2, 3, 7};
    for (imp_dtype t = IMP_F32; t < IMP_AFFINE; t++) {
        const imp_dtype_info *info = imp_dtype_get(t);
        if (info->to_f32 == NULL || t == IMP_F64) continue;
        if (info->block_elem == 1 && t != IMP_F32 && t != IMP_F16 && t != IMP_BF16) continue;
        for (size_t i = 0; i < IMP_COUNT(ms); i++) {
            rig *r = rig_new(t * 100 + i);
            uint64_t n = ns[i % IMP_COUNT(ns)];
            uint64_t k = info->block_elem == 256 ? 256 * (1 + i % 2) : 32 * blocks[i % IMP_COUNT(blocks)];
            if (info->block_elem == 1 && i % 2 == 1) k += 1 + 2 * i; /* no multiple of anything */
            check_linear(random_weight(r, t, n, k, 0.3f), ms[i], i % 3 == 0, r);
            rig_free(r);
        }
    }
}

static void test_linear_affine(void **state)
{
    (void)state;
    for (uint32_t bits = 2; bits <= 8; bits++) {
        if (bits == 7) continue;
        for (uint32_t group = 32; group <= 128; group *= 2) {
            rig *r = rig_new(bits * 1000 + group);
            imp_dtype scale = group == 32 ? IMP_F16 : group == 64 ? IMP_BF16 : IMP_F32;
            check_linear(random_affine(r, bits, group, scale, 13 + bits, 128 * (1 + bits % 2)), bits, false,
                         r);
            rig_free(r);
        }
    }
}

/* ---- rows and elements ------------------------------------------------------------------------------- */

typedef imp_val (*make_fn)(rig *r, imp_graph *g, imp_val x, uint64_t width, int variant);

static void check_op(const char *what, make_fn make, int variant, uint64_t width, uint32_t m, float size,
                     double abs, double rel)
{
    rig *r = rig_new(width * 31 + (uint64_t)variant);
    imp_graph *g = imp_graph_new();
    imp_tensor table;
    imp_val y = make(r, g, input(r, g, width, size, &table), width, variant);
    imp_g_output(g, imp_g_gather(g, y));
    uint64_t n = imp_graph_node(g, y)->width;
    steps *s = one_sequence(r, m);
    float *out[2];
    run_both(r, g, test_limits(IMP_F32), &s->b, m, out);
    expect_near(out[0], out[1], m * n, abs, rel, what);
    imp_graph_free(g);
    rig_free(r);
}

static const uint64_t widths[] = {1, 3, 7, 16, 31, 64, 100, 257, 1024};

static imp_val make_rms(rig *r, imp_graph *g, imp_val x, uint64_t width, int variant)
{
    imp_val w = variant % 2 == 0 ? weight(r, g, variant == 2 ? IMP_BF16 : IMP_F32, 0, width, 1) : 0;
    return imp_g_rms_norm(g, x, w, 1e-5f, 0, variant == 2 ? 1 : 0);
}
static imp_val make_group_rms(rig *r, imp_graph *g, imp_val x, uint64_t width, int variant)
{
    (void)width;
    uint64_t group = variant == 0 ? 32 : 8;
    return imp_g_rms_norm(g, x, weight(r, g, IMP_F32, 0, group, 1), 1e-6f, group, 1);
}
static imp_val make_layer_norm(rig *r, imp_graph *g, imp_val x, uint64_t width, int variant)
{
    imp_val w = variant > 0 ? weight(r, g, IMP_F32, 0, width, 1) : 0;
    return imp_g_layer_norm(g, x, w, variant > 1 ? weight(r, g, IMP_F16, 0, width, 1) : 0, 1e-12f);
}
static imp_val make_l2(rig *r, imp_graph *g, imp_val x, uint64_t width, int variant)
{
    (void)r, (void)width, (void)variant;
    return imp_g_l2_norm(g, x);
}

static void test_norms(void **state)
{
    (void)state;
    for (size_t i = 0; i < IMP_COUNT(widths); i++) {
        for (int v = 0; v < 3; v++) {
            check_op("rms_norm", make_rms, v, widths[i], 5, 3, 1e-6, 4e-6);
            if (widths[i] > 1) check_op("layer_norm", make_layer_norm, v, widths[i], 4, 3, 3e-5, 4e-6);
        }
        check_op("l2_norm", make_l2, 0, widths[i], 7, 3, 1e-7, 4e-6);
    }
    check_op("rms_norm groups of 32", make_group_rms, 0, 160, 9, 1, 1e-6, 4e-6);
    check_op("rms_norm groups of 8", make_group_rms, 1, 104, 1, 1, 1e-6, 4e-6);
}

static imp_val make_act(rig *r, imp_graph *g, imp_val x, uint64_t width, int variant)
{
    (void)r, (void)width;
    return imp_g_act(g, x, (imp_act)variant);
}
static imp_val make_glu(rig *r, imp_graph *g, imp_val x, uint64_t width, int variant)
{
    (void)r;
    return imp_g_glu(g, imp_g_slice(g, x, 0, width / 2), imp_g_slice(g, x, width / 2, width / 2),
                     (imp_act)variant);
}
/* Values read again after an op could have written over them. */
static imp_val make_sums(rig *r, imp_graph *g, imp_val x, uint64_t width, int variant)
{
    (void)width, (void)variant;
    imp_val a = imp_g_add(g, x, x), b = imp_g_mul(g, a, x), c = imp_g_scale(g, b, -0.37f);
    imp_val d = imp_g_add(g, imp_g_add(g, a, c), imp_g_softcap(g, imp_g_mul(g, c, b), 2.5f));
    imp_val s = imp_g_slice(g, d, width / 3, width - width / 3);
    return imp_g_add(g, imp_g_scale(g, s, 2),
                     imp_g_rms_norm(g, s, weight(r, g, IMP_F32, 0, width - width / 3, 1), 1e-5f, 0, 0));
}
static imp_val make_slice(rig *r, imp_graph *g, imp_val x, uint64_t width, int variant)
{
    (void)r, (void)variant;
    return imp_g_slice(g, x, width / 2, width - width / 2);
}

static void test_elementwise(void **state)
{
    (void)state;
    for (size_t i = 0; i < IMP_COUNT(widths); i++) {
        for (int act = IMP_ACT_SILU; act <= IMP_ACT_SIGMOID; act++) {
            check_op("act", make_act, act, widths[i], 4, 12, 1e-6, 2e-6);
            check_op("glu", make_glu, act, 2 * widths[i], 2, 5, 4e-6, 2e-6);
        }
        check_op("sums", make_sums, 0, widths[i], 1, 1.5f, 1e-5, 1e-5);
        check_op("sums", make_sums, 0, widths[i], 11, 1.5f, 1e-5, 1e-5);
        check_op("slice", make_slice, 0, widths[i], 3, 1, 0, 0);
    }
}

static imp_val make_rope(rig *r, imp_graph *g, imp_val x, uint64_t width, int variant)
{
    (void)width;
    static const uint32_t dims[][2] = {{64, 64}, {64, 32}, {32, 2}, {16, 16}, {80, 40}, {6, 4}};
    uint32_t head_dim = dims[variant / 2][0], n_rot = dims[variant / 2][1];
    float freq[64];
    for (uint32_t i = 0; i < n_rot / 2; i++)
        freq[i] = expf(-9.2f * (float)i / (float)n_rot) * (1 + 0.1f * rnd_f(r));
    imp_rope_attr a = {.head_dim = head_dim,
                       .n_rot = n_rot,
                       .interleaved = variant % 2 == 1,
                       .mscale = variant % 3 == 0 ? 1 : 1.19f,
                       .inv_freq = freq};
    return imp_g_rope(g, x, &a);
}

static void test_rope(void **state)
{
    (void)state;
    static const uint64_t width[] = {192, 128, 96, 16, 240, 18};
    for (int v = 0; v < 12; v++) check_op("rope", make_rope, v, width[v / 2], 67, 1, 1e-6, 1e-6);
}

/* Positions of later steps: the same row at a position of 100,000. */
static void test_rope_far(void **state)
{
    (void)state;
    rig *r = rig_new(5);
    imp_graph *g = imp_graph_new();
    imp_tensor table;
    imp_g_output(g, imp_g_gather(g, make_rope(r, g, input(r, g, 128, 1, &table), 128, 0)));
    steps *s = one_sequence(r, 4);
    for (int i = 0; i < 4; i++) s->pos[i] = 100000 + 7 * i;
    float *out[2];
    run_both(r, g, test_limits(IMP_F32), &s->b, 4, out);
    expect_near(out[0], out[1], 4 * 128, 1e-6, 1e-6, "rope at 100000");
    imp_graph_free(g);
    rig_free(r);
}

/* ---- embedding, gather, pool --------------------------------------------------------------------------- */

static void test_embed(void **state)
{
    (void)state;
    rig *r = rig_new(8);
    imp_graph *g = imp_graph_new();
    imp_val x = imp_g_embed(g, weight(r, g, IMP_Q6_K, N_VOCAB, 256, 1), IMP_BY_TOKEN, 0);
    x = imp_g_add(g, x, imp_g_embed(g, weight(r, g, IMP_F16, 40, 256, 1), IMP_BY_POSITION, 2));
    x = imp_g_add(g, x, imp_g_embed(g, weight(r, g, IMP_F32, 2, 256, 1), IMP_BY_TYPE, 0));
    imp_g_output(g, imp_g_gather(g, x));
    steps *s = one_sequence(r, 38);
    for (int i = 0; i < 38; i++) s->type[i] = i % 2;
    s->b.n_out = 20; /* a row may be asked for twice, in any order */
    for (uint32_t i = 0; i < 20; i++) s->out_row[i] = (i * 23 + 5) % 38;
    float *out[2];
    run_both(r, g, test_limits(IMP_F32), &s->b, 20, out);
    expect_near(out[0], out[1], 20 * 256, 1e-7, 1e-6, "embed");
    imp_graph_free(g);
    rig_free(r);
}

static void test_pool(void **state)
{
    (void)state;
    for (int kind = IMP_POOL_MEAN; kind <= IMP_POOL_LAST; kind++) {
        rig *r = rig_new(9 + (uint64_t)kind);
        imp_graph *g = imp_graph_new();
        imp_tensor table;
        imp_g_output(g, imp_g_pool(g, input(r, g, 70, 1, &table), (imp_pool_kind)kind));
        steps s;
        batch_clear(&s);
        static const uint32_t n[] = {1, 7, 64, 2, 130};
        for (int i = 0; i < 5; i++) batch_add(&s, random_text(r, n[i]), 0, n[i], NULL);
        float *out[2];
        run_both(r, g, test_limits(IMP_F32), &s.b, 5, out);
        expect_near(out[0], out[1], 5 * 70, 1e-6, 1e-6, "pool");
        imp_graph_free(g);
        rig_free(r);
    }
}

/* ---- attention ------------------------------------------------------------------------------------------- */

typedef struct attn_case {
    uint32_t n_head, n_kv_head, head_dim, window;
    float softcap;
    bool cache, full, sink;
} attn_case;

/* Random q, k, v straight from tables; with a cache three steps of ragged sequences over shuffled blocks. */
static void check_attn(attn_case c, imp_dtype kv, uint64_t seed)
{
    rig *r = rig_new(seed);
    imp_graph *g = imp_graph_new();
    imp_tensor tq = random_weight(r, IMP_F32, N_VOCAB, c.n_head * c.head_dim, 2);
    imp_tensor tk = random_weight(r, IMP_F32, N_VOCAB, c.n_kv_head * c.head_dim, 2);
    imp_tensor tv = random_weight(r, IMP_F32, N_VOCAB, c.n_kv_head * c.head_dim, 1);
    imp_val q = imp_g_embed(g, imp_g_weight(g, "q", &tq), IMP_BY_TOKEN, 0);
    imp_val k = imp_g_embed(g, imp_g_weight(g, "k", &tk), IMP_BY_TOKEN, 0);
    imp_val v = imp_g_embed(g, imp_g_weight(g, "v", &tv), IMP_BY_TOKEN, 0);
    imp_attn_attr a = {.n_head = c.n_head,
                       .n_kv_head = c.n_kv_head,
                       .head_dim = c.head_dim,
                       .window = c.window,
                       .kv_layer = c.cache ? 0 : -1,
                       .mask = c.full ? IMP_MASK_FULL : IMP_MASK_CAUSAL,
                       .scale = 1.0f / sqrtf((float)c.head_dim),
                       .softcap = c.softcap};
    imp_val sink = c.sink ? weight(r, g, IMP_F32, 0, c.n_head, 3) : 0;
    imp_g_output(g, imp_g_gather(g, imp_g_attn(g, q, k, v, sink, &a)));
    finish(g);
    imp_exec *xc = compile(cpu, g, test_limits(kv)), *xr = compile(ref, g, test_limits(kv));

    static const uint32_t grow[3][4] = {{1, 63, 64, 130}, {1, 1, 1, 1}, {70, 2, 65, 1}};
    uint32_t *blocks = random_blocks(r, 4, 5), past[4] = {0};
    int32_t *text[4];
    for (int i = 0; i < 4; i++) text[i] = random_text(r, 400);
    for (int step = 0; step < (c.cache ? 3 : 1); step++) {
        steps s;
        batch_clear(&s);
        for (int i = 0; i < 4; i++) {
            batch_add(&s, text[i], past[i], grow[step][i], c.cache ? blocks + 5 * i : NULL);
            past[i] += grow[step][i];
        }
        uint64_t n = (uint64_t)s.b.n_out * c.n_head * c.head_dim;
        float *yc = run_step(r, xc, &s.b, s.b.n_out, c.n_head * c.head_dim);
        float *yr = run_step(r, xr, &s.b, s.b.n_out, c.n_head * c.head_dim);
        char what[128];
        snprintf(what, sizeof what, "attention %u/%u x %u window %u softcap %g step %d", c.n_head,
                 c.n_kv_head, c.head_dim, c.window, (double)c.softcap, step);
        /* queries become int8 beside quantised keys, and a rotated key may fall on the other side of a step of 4 bits */
        double quantised = kv == IMP_Q8_0 ? SUITE_ATTN_Q8 : kv == IMP_Q4_0 ? 0.06 : 0;
        expect_near(yc, yr, n, 6e-6 + quantised + (kv == IMP_F16 ? SUITE_ATTN_F16 : 0), 6e-6, what);
    }
    cpu->ops->exec_free(xc);
    ref->ops->exec_free(xr);
    imp_graph_free(g);
    rig_free(r);
}

static void test_attention_cached(void **state)
{
    (void)state;
    static const attn_case cases[] = {
        {4, 4, 64, 0, 0, true, false, false},  {4, 2, 32, 0, 0, true, false, false},
        {8, 1, 128, 0, 0, true, false, false}, {7, 1, 80, 0, 0, true, false, false},
        {2, 1, 8, 33, 0, true, false, false},  {4, 2, 64, 64, 20, true, false, false},
        {6, 2, 24, 1, 0, true, false, true},   {8, 2, 64, 0, 30, true, false, true},
        {3, 3, 5, 100, 0, true, false, false},
    };
    for (size_t i = 0; i < IMP_COUNT(cases); i++) {
        check_attn(cases[i], IMP_F32, 40 + i);
        check_attn(cases[i], IMP_F16, 60 + i);
        if (cases[i].head_dim % 32 != 0) continue;
        check_attn(cases[i], IMP_Q8_0, 90 + i);
        if (SUITE_KV_Q4) check_attn(cases[i], IMP_Q4_0, 110 + i);
    }
}

static void test_attention_uncached(void **state)
{
    (void)state;
    static const attn_case cases[] = {
        {4, 4, 32, 0, 0, false, true, false},  {12, 12, 64, 0, 0, false, true, false},
        {4, 2, 16, 16, 0, false, true, false}, {4, 1, 40, 0, 10, false, true, true},
        {2, 2, 64, 0, 0, false, false, false}, {4, 2, 64, 20, 0, false, false, false},
    };
    for (size_t i = 0; i < IMP_COUNT(cases); i++) check_attn(cases[i], IMP_F32, 80 + i);
}

/* ---- experts ------------------------------------------------------------------------------------------------ */

static void check_moe(imp_dtype t, uint32_t n_expert, uint32_t n_used, bool norm, imp_act act, uint32_t m)
{
    rig *r = rig_new(n_expert * 100 + n_used * 10 + m);
    imp_graph *g = imp_graph_new();
    imp_tensor table, logits, part[3][32];
    bool k256 = imp_dtype_get(t)->block_elem == 256;
    uint64_t k = k256 ? 256 : 64, n_ff = k256 ? 512 : 96, n_out = 80;
    imp_val x = input(r, g, k, 1, &table);
    for (uint32_t e = 0; e < n_expert; e++) {
        part[0][e] = random_weight(r, t, n_ff, k, 0.2f);
        part[1][e] = random_weight(r, t, n_ff, k, 0.2f);
        part[2][e] = random_weight(r, t, n_out, n_ff, 0.2f);
    }
    logits = random_weight(r, IMP_F32, N_VOCAB, n_expert, 3);
    imp_val gate = imp_g_weight_parts(g, "gate", part[0], n_expert);
    imp_val up = imp_g_weight_parts(g, "up", part[1], n_expert);
    imp_val down = imp_g_weight_parts(g, "down", part[2], n_expert);
    imp_moe_attr a = {.n_expert = n_expert, .n_used = n_used, .act = act, .norm_topk = norm};
    imp_val route = imp_g_embed(g, imp_g_weight(g, "route", &logits), IMP_BY_TOKEN, 0);
    imp_g_output(g, imp_g_gather(g, imp_g_moe(g, x, route, gate, up, down, &a)));
    steps *s = one_sequence(r, m);
    float *out[2];
    run_both(r, g, test_limits(IMP_F32), &s->b, m, out);
    if (t == IMP_F32) {
        expect_near(out[0], out[1], m * n_out, 5e-6, 5e-6, "moe");
    } else {
        expect_close(out[0], out[1], m * n_out, 0.02, "moe with int8 activations");
    }
    imp_graph_free(g);
    rig_free(r);
}

static void test_moe(void **state)
{
    (void)state;
    check_moe(IMP_F32, 8, 2, true, IMP_ACT_SILU, 1);
    check_moe(IMP_F32, 8, 2, false, IMP_ACT_SILU, 37);
    check_moe(IMP_F32, 5, 5, true, IMP_ACT_GELU_TANH, 9);
    check_moe(IMP_F32, 32, 1, false, IMP_ACT_RELU, 64);
    check_moe(IMP_F32, 1, 1, true, IMP_ACT_SILU, 3);
    check_moe(IMP_Q8_0, 16, 4, true, IMP_ACT_SILU, 50);
    check_moe(IMP_Q4_0, 16, 4, true, IMP_ACT_SILU, 2);
    check_moe(IMP_Q4_K, 8, 3, true, IMP_ACT_SILU, 19);
}

/* ---- whole models -------------------------------------------------------------------------------------------- */

static void check_model(const char *what, tiny t, imp_dtype kv, bool pool, double bound)
{
    rig *r = rig_new(77);
    imp_graph *g = tiny_model(r, t, pool);
    uint64_t width = imp_graph_node(g, imp_graph_output(g))->width;
    imp_exec *xc = compile(cpu, g, test_limits(kv)), *xr = compile(ref, g, test_limits(kv));
    uint32_t *blocks = random_blocks(r, 3, 3), past[3] = {0};
    static const uint32_t grow[4][3] = {{5, 66, 1}, {1, 1, 1}, {60, 1, 90}, {1, 1, 1}};
    int32_t *text[3] = {random_text(r, 200), random_text(r, 200), random_text(r, 200)};
    for (int step = 0; step < (t.no_cache ? 1 : 4); step++) {
        steps s;
        batch_clear(&s);
        for (int i = 0; i < 3; i++) {
            batch_add(&s, text[i], past[i], grow[step][i], t.no_cache ? NULL : blocks + 3 * i);
            past[i] += grow[step][i];
        }
        uint64_t n_row = pool ? s.b.n_seq : s.b.n_out;
        float *yc = run_step(r, xc, &s.b, n_row, width), *yr = run_step(r, xr, &s.b, n_row, width);
        expect_close(yc, yr, n_row * width, bound, what);
    }
    cpu->ops->exec_free(xc);
    ref->ops->exec_free(xr);
    imp_graph_free(g);
    rig_free(r);
}

static void test_models(void **state)
{
    (void)state;
    check_model("plain", (tiny){0}, IMP_F32, false, 1e-5);
    check_model("plain f16 cache", (tiny){0}, IMP_F16, false, 1e-3);
    check_model("bias, norms of heads", (tiny){.bias = true, .qk_norm = true}, IMP_F32, false, 1e-5);
    check_model("fused", (tiny){.fused = true, .interleaved = true, .n_rot = 16}, IMP_F32, false, 1e-5);
    check_model("window, sinks", (tiny){.window = 40, .sinks = true, .softcap = 20}, IMP_F32, false, 1e-5);
    check_model("experts", (tiny){.n_expert = 6, .n_used = 2}, IMP_F32, false, 1e-5);
    check_model("encoder", (tiny){.no_cache = true, .full = true, .bias = true}, IMP_F32, true, 1e-5);
    check_model("f16", (tiny){.dtype = IMP_F16}, IMP_F32, false, 1e-5);
    check_model("bf16", (tiny){.dtype = IMP_BF16}, IMP_F32, false, 1e-5);
    check_model("q8_0", (tiny){.dtype = IMP_Q8_0}, IMP_F16, false, 0.05);
    check_model("q4_0", (tiny){.dtype = IMP_Q4_0, .fused = true}, IMP_F16, false, 0.05);
    check_model("q4_k", (tiny){.dtype = IMP_Q4_K, .head_dim = 64}, IMP_F16, false, 0.05);
    check_model("q6_k", (tiny){.dtype = IMP_Q6_K, .head_dim = 64, .qk_norm = true}, IMP_F16, false, 0.05);
    check_model("q5_1", (tiny){.dtype = IMP_Q5_1}, IMP_F16, false, 0.05);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear_types),
        cmocka_unit_test(test_linear_affine),
        cmocka_unit_test(test_norms),
        cmocka_unit_test(test_elementwise),
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_rope_far),
        cmocka_unit_test(test_embed),
        cmocka_unit_test(test_pool),
        cmocka_unit_test(test_attention_cached),
        cmocka_unit_test(test_attention_uncached),
        cmocka_unit_test(test_moe),
        cmocka_unit_test(test_models),
    };
    return cmocka_run_group_tests(tests, open_devices, close_devices);
}
