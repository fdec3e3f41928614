/* tests/dev/common.h - random weights, batches and tiny models for the device tests. Seeds are fixed. */
#ifndef TESTS_DEV_COMMON_H
#define TESTS_DEV_COMMON_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "dev/cpu/cpu.h"
#include "dev/dev.h"

/* ---- random numbers and memory of a test --------------------------------------------------------- */

typedef struct rig {
    uint64_t state;
    void *mem[4096];
    uint32_t n_mem;
} rig;

static inline rig *rig_new(uint64_t seed)
{
    rig *r = calloc(1, sizeof *r);
    r->state = seed * 0x9e3779b97f4a7c15ull + 1;
    return r;
}
static inline void rig_free(rig *r)
{
    for (uint32_t i = 0; i < r->n_mem; i++) free(r->mem[i]);
    free(r);
}
static inline void *rig_alloc(rig *r, size_t n)
{
    assert_true(r->n_mem < 4096);
    return r->mem[r->n_mem++] = calloc(1, n == 0 ? 1 : n);
}
static inline uint32_t rnd(rig *r) /* splitmix64 */
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return (uint32_t)(z >> 32);
}
static inline float rnd_f(rig *r)
{
    return (float)rnd(r) / 2147483648.0f - 1;
} /* -1..1 */

/* ---- weights -------------------------------------------------------------------------------------- */

/* Where a block keeps its f16 scales, so that random bytes stay finite numbers. */
static inline void tame_block(rig *r, imp_dtype t, uint8_t *b)
{
    static const struct {
        imp_dtype t;
        int16_t at[2];
        float size;
    } scales[] = {
        {IMP_Q4_0, {0, -1}, 0.02f},     {IMP_Q4_1, {0, 2}, 0.02f},     {IMP_Q5_0, {0, -1}, 0.01f},
        {IMP_Q5_1, {0, 2}, 0.01f},      {IMP_Q8_0, {0, -1}, 0.001f},   {IMP_Q2_K, {80, 82}, 0.01f},
        {IMP_Q3_K, {108, -1}, 0.004f},  {IMP_Q4_K, {0, 2}, 0.0004f},   {IMP_Q5_K, {0, 2}, 0.0002f},
        {IMP_Q6_K, {208, -1}, 0.0001f}, {IMP_IQ4_NL, {0, -1}, 0.001f}, {IMP_IQ4_XS, {0, -1}, 0.0001f},
    };
    if (t == IMP_MXFP4) {
        b[0] = (uint8_t)(118 + rnd(r) % 6);
        return;
    }
    for (size_t i = 0; i < IMP_COUNT(scales); i++) {
        if (scales[i].t != t) continue;
        for (int k = 0; k < 2; k++) {
            uint16_t h = imp_f32_to_f16(scales[i].size * (1 + 0.5f * rnd_f(r)));
            if (scales[i].at[k] >= 0) memcpy(b + scales[i].at[k], &h, 2);
        }
        return;
    }
    fail_msg("no recipe for random %s", imp_dtype_get(t)->name);
}

/* Random [n][k] (n 0: a vector of k), values around size. */
static inline imp_tensor random_weight(rig *r, imp_dtype t, uint64_t n, uint64_t k, float size)
{
    imp_tensor w = {.dtype = t, .n_dim = n == 0 ? 1 : 2, .dim = {n == 0 ? k : n, n == 0 ? 1 : k, 1, 1}};
    uint64_t n_elem = (n == 0 ? 1 : n) * k, bytes;
    assert_int_equal(imp_dtype_bytes(t, n_elem, &bytes), IMP_OK);
    uint8_t *p = rig_alloc(r, bytes);
    const imp_dtype_info *info = imp_dtype_get(t);
    if (info->block_elem == 1) {
        for (uint64_t i = 0; i < n_elem; i++) {
            float f = size * rnd_f(r);
            uint16_t h = t == IMP_F16 ? imp_f32_to_f16(f) : imp_f32_to_bf16(f);
            memcpy(p + i * info->block_bytes, t == IMP_F32 ? (void *)&f : (void *)&h, info->block_bytes);
        }
    } else {
        for (uint64_t i = 0; i < bytes; i++) p[i] = (uint8_t)rnd(r);
        for (uint64_t i = 0; i < bytes; i += info->block_bytes) tame_block(r, t, p + i);
    }
    w.data = p;
    return w;
}

static inline imp_tensor random_affine(rig *r, uint32_t bits, uint32_t group, imp_dtype scale_dtype,
                                       uint64_t n, uint64_t k)
{
    imp_tensor w = {.dtype = IMP_AFFINE, .n_dim = 2, .dim = {n, k, 1, 1}, .bits = bits, .group = group};
    uint64_t words = n * k * bits / 32, n_scale = n * (k / group);
    uint32_t *p = rig_alloc(r, words * 4);
    for (uint64_t i = 0; i < words; i++) p[i] = rnd(r);
    imp_tensor s = random_weight(r, scale_dtype, 1, n_scale, 0.2f / (float)(1 << bits));
    imp_tensor b = random_weight(r, scale_dtype, 1, n_scale, 0.1f);
    w.data = p;
    w.scale_dtype = scale_dtype;
    w.scales = s.data;
    w.biases = b.data;
    return w;
}

static inline imp_val weight(rig *r, imp_graph *g, imp_dtype t, uint64_t n, uint64_t k, float size)
{
    imp_tensor w = random_weight(r, t, n, k, size);
    return imp_g_weight(g, "w", &w);
}

/* ---- batches -------------------------------------------------------------------------------------- */

enum { MAX_TOK = 512, MAX_SEQ = 16, N_VOCAB = 61, N_BLOCK = 96 };

/* A batch with its arrays; sequences are added one by one. */
typedef struct steps {
    imp_batch b;
    int32_t token[MAX_TOK], pos[MAX_TOK], type[MAX_TOK];
    uint32_t out_row[MAX_TOK];
    imp_batch_seq seq[MAX_SEQ];
} steps;

static inline void batch_clear(steps *s)
{
    s->b =
        (imp_batch){.token = s->token, .pos = s->pos, .type = s->type, .seq = s->seq, .out_row = s->out_row};
}
/* n tokens of text (position i of the sequence is text[i]); every row is an output row. */
static inline void batch_add(steps *s, const int32_t *text, uint32_t n_past, uint32_t n,
                             const uint32_t *block)
{
    s->seq[s->b.n_seq++] =
        (imp_batch_seq){.first_tok = s->b.n_tok, .n_tok = n, .n_past = n_past, .block = block};
    for (uint32_t i = 0; i < n; i++) {
        s->token[s->b.n_tok] = text[n_past + i];
        s->pos[s->b.n_tok] = (int32_t)(n_past + i);
        s->type[s->b.n_tok] = 0;
        s->out_row[s->b.n_out++] = s->b.n_tok++;
    }
}
static inline int32_t *random_text(rig *r, uint32_t n)
{
    int32_t *t = rig_alloc(r, n * sizeof *t);
    for (uint32_t i = 0; i < n; i++) t[i] = (int32_t)(rnd(r) % N_VOCAB);
    return t;
}
/* n_seq tables of per_seq blocks each, all different, in random order. */
static inline uint32_t *random_blocks(rig *r, uint32_t n_seq, uint32_t per_seq)
{
    uint32_t *t = rig_alloc(r, N_BLOCK * sizeof *t);
    assert_true(n_seq * per_seq <= N_BLOCK);
    for (uint32_t i = 0; i < N_BLOCK; i++) t[i] = i;
    for (uint32_t i = N_BLOCK - 1; i > 0; i--) {
        uint32_t k = rnd(r) % (i + 1), x = t[i];
        t[i] = t[k];
        t[k] = x;
    }
    return t;
}
static inline imp_limits test_limits(imp_dtype kv)
{
    return (imp_limits){.max_tok = MAX_TOK,
                        .max_seq = MAX_SEQ,
                        .max_out = MAX_TOK,
                        .max_ctx = 4096,
                        .n_kv_block = N_BLOCK,
                        .kv_dtype = kv};
}

/* ---- devices -------------------------------------------------------------------------------------- */

static inline imp_device *open_dev(const char *kind, uint32_t n_thread)
{
    imp_device *d;
    imp_error err = {0};
    if (imp_dev_open(kind, n_thread, &d, &err) != IMP_OK) fail_msg("%s", err.text);
    if (strcmp(kind, "cpu") == 0) ((cpu_device *)d)->alone_work = 0; /* small steps on all threads, too */
    return d;
}
static inline imp_exec *compile(imp_device *d, const imp_graph *g, imp_limits lim)
{
    imp_exec *x;
    imp_error err = {0};
    if (d->ops->compile(d, g, &lim, &x, &err) != IMP_OK) fail_msg("%s", err.text);
    return x;
}
/* One step; the result is copied to memory of the rig. */
static inline float *run_step(rig *r, imp_exec *x, const imp_batch *b, uint64_t n_row, uint64_t width)
{
    const float *out;
    imp_error err = {0};
    if (x->dev->ops->run(x, b, &out, &err) != IMP_OK) fail_msg("%s", err.text);
    float *copy = rig_alloc(r, n_row * width * sizeof(float));
    memcpy(copy, out, n_row * width * sizeof(float));
    return copy;
}

static inline void finish(imp_graph *g)
{
    imp_error err = {0};
    if (imp_graph_finish(g, &err) != IMP_OK) fail_msg("%s", err.text);
}

/* |a - b| <= abs + rel * |b| everywhere; NaN never passes. */
static inline void expect_near(const float *a, const float *b, uint64_t n, double abs, double rel,
                               const char *what)
{
    for (uint64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= abs + rel * fabs((double)b[i]))) {
            fail_msg("%s: element %llu is %.9g, should be %.9g", what, (unsigned long long)i, (double)a[i],
                     (double)b[i]);
        }
    }
}
/* |a - b| / |b| over the whole. */
static inline void expect_close(const float *a, const float *b, uint64_t n, double bound, const char *what)
{
    double d = 0, s = 0;
    for (uint64_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        s += (double)b[i] * (double)b[i];
    }
    if (!(sqrt(d) <= bound * sqrt(s)))
        fail_msg("%s: relative distance %g, bound %g", what, sqrt(d / s), bound);
}
static inline void expect_same(const float *a, const float *b, uint64_t n, const char *what)
{
    for (uint64_t i = 0; i < n; i++) {
        if (memcmp(&a[i], &b[i], sizeof(float)) != 0) {
            fail_msg("%s: element %llu is %.9g and %.9g, the bits must be equal", what, (unsigned long long)i,
                     (double)a[i], (double)b[i]);
        }
    }
}

/* ---- a tiny decoder -------------------------------------------------------------------------------- */

typedef struct tiny {
    imp_dtype dtype;                                     /* of the matrices; 0: f32 */
    uint32_t n_layer, n_head, n_kv_head, head_dim, n_ff; /* 0: 2, 4, 2, 32, 96 */
    uint32_t window, n_rot;                              /* n_rot 0: head_dim */
    float softcap;
    bool interleaved, sinks, qk_norm, bias, fused, no_cache, full;
    uint32_t n_expert, n_used; /* 0: no experts */
} tiny;

static inline imp_val tiny_ffn(rig *r, imp_graph *g, const tiny *t, imp_val h, uint32_t n_embd)
{
    float s = 1.2f / sqrtf((float)n_embd), s2 = 1.2f / sqrtf((float)t->n_ff);
    if (t->n_expert > 0) {
        imp_tensor part[3][64];
        for (uint32_t e = 0; e < t->n_expert; e++) {
            part[0][e] = random_weight(r, t->dtype, t->n_ff, n_embd, s);
            part[1][e] = random_weight(r, t->dtype, t->n_ff, n_embd, s);
            part[2][e] = random_weight(r, t->dtype, n_embd, t->n_ff, s2);
        }
        imp_moe_attr a = {
            .n_expert = t->n_expert, .n_used = t->n_used, .act = IMP_ACT_SILU, .norm_topk = true};
        imp_val logits = imp_g_linear(g, h, weight(r, g, IMP_F32, t->n_expert, n_embd, 2 * s), 0);
        imp_val gate = imp_g_weight_parts(g, "gate", part[0], t->n_expert);
        imp_val up = imp_g_weight_parts(g, "up", part[1], t->n_expert);
        return imp_g_moe(g, h, logits, gate, up, imp_g_weight_parts(g, "down", part[2], t->n_expert), &a);
    }
    imp_val gate, up;
    if (t->fused) {
        imp_val both = imp_g_linear(g, h, weight(r, g, t->dtype, 2 * t->n_ff, n_embd, s), 0);
        gate = imp_g_slice(g, both, 0, t->n_ff);
        up = imp_g_slice(g, both, t->n_ff, t->n_ff);
    } else {
        gate = imp_g_linear(g, h, weight(r, g, t->dtype, t->n_ff, n_embd, s), 0);
        up = imp_g_linear(g, h, weight(r, g, t->dtype, t->n_ff, n_embd, s), 0);
    }
    imp_val y = imp_g_glu(g, gate, up, t->bias ? IMP_ACT_GELU_TANH : IMP_ACT_SILU);
    return imp_g_linear(g, y, weight(r, g, t->dtype, n_embd, t->n_ff, s2), 0);
}

static inline imp_val tiny_attn(rig *r, imp_graph *g, const tiny *t, imp_val h, uint32_t n_embd,
                                uint32_t layer)
{
    float s = 1.2f / sqrtf((float)n_embd), freq[128];
    uint32_t n_q = t->n_head * t->head_dim, n_kv = t->n_kv_head * t->head_dim;
    imp_val q, k, v;
    if (t->fused) {
        imp_val all = imp_g_linear(g, h, weight(r, g, t->dtype, n_q + 2 * n_kv, n_embd, s), 0);
        q = imp_g_slice(g, all, 0, n_q);
        k = imp_g_slice(g, all, n_q, n_kv);
        v = imp_g_slice(g, all, n_q + n_kv, n_kv);
    } else {
        q = imp_g_linear(g, h, weight(r, g, t->dtype, n_q, n_embd, s),
                         t->bias ? weight(r, g, IMP_F32, 0, n_q, s) : 0);
        k = imp_g_linear(g, h, weight(r, g, t->dtype, n_kv, n_embd, s),
                         t->bias ? weight(r, g, IMP_F16, 0, n_kv, s) : 0);
        v = imp_g_linear(g, h, weight(r, g, t->dtype, n_kv, n_embd, s), 0);
    }
    if (t->qk_norm) {
        q = imp_g_rms_norm(g, q, weight(r, g, IMP_F32, 0, t->head_dim, 1), 1e-6f, t->head_dim, 1);
        k = imp_g_rms_norm(g, k, weight(r, g, IMP_F32, 0, t->head_dim, 1), 1e-6f, t->head_dim, 1);
    }
    uint32_t n_rot = t->n_rot != 0 ? t->n_rot : t->head_dim;
    for (uint32_t i = 0; i < n_rot / 2; i++) freq[i] = powf(10000.0f, -2.0f * (float)i / (float)n_rot);
    imp_rope_attr rope = {.head_dim = t->head_dim,
                          .n_rot = n_rot,
                          .interleaved = t->interleaved,
                          .mscale = 1,
                          .inv_freq = freq};
    imp_attn_attr a = {.n_head = t->n_head,
                       .n_kv_head = t->n_kv_head,
                       .head_dim = t->head_dim,
                       .window = t->window,
                       .kv_layer = t->no_cache ? -1 : (int32_t)layer,
                       .mask = t->full ? IMP_MASK_FULL : IMP_MASK_CAUSAL,
                       .scale = 1.0f / sqrtf((float)t->head_dim),
                       .softcap = t->softcap};
    imp_val sink = t->sinks ? weight(r, g, IMP_F32, 0, t->n_head, 2) : 0;
    imp_val y = imp_g_attn(g, imp_g_rope(g, q, &rope), imp_g_rope(g, k, &rope), v, sink, &a);
    imp_val out = weight(r, g, t->dtype, n_embd, n_q, 1.2f / sqrtf((float)n_q));
    return imp_g_linear(g, y, out, t->bias ? weight(r, g, IMP_F32, 0, n_embd, s) : 0);
}

/* Logits [out][N_VOCAB]; with `pool` (mean) vectors [seq][n_embd] instead. */
static inline imp_graph *tiny_model(rig *r, tiny t, bool pool)
{
    if (t.dtype == 0) t.dtype = IMP_F32;
    if (t.n_layer == 0) t.n_layer = 2;
    if (t.n_head == 0) t.n_head = 4, t.n_kv_head = 2;
    if (t.head_dim == 0) t.head_dim = 32;
    if (t.n_ff == 0) t.n_ff = imp_dtype_get(t.dtype)->block_elem == 256 ? 256 : 96;
    uint32_t n_embd = imp_dtype_get(t.dtype)->block_elem == 256 ? 256 : 64;
    imp_graph *g = imp_graph_new();
    imp_val table = weight(r, g, IMP_F32, N_VOCAB, n_embd, 1);
    imp_val x = imp_g_embed(g, table, IMP_BY_TOKEN, 0);
    for (uint32_t i = 0; i < t.n_layer; i++) {
        imp_graph_scope(g, "blk.%u", i);
        imp_val h = imp_g_rms_norm(g, x, weight(r, g, IMP_F32, 0, n_embd, 1), 1e-5f, 0, 1);
        x = imp_g_add(g, x, tiny_attn(r, g, &t, h, n_embd, i));
        h = imp_g_rms_norm(g, x, weight(r, g, IMP_F32, 0, n_embd, 1), 1e-5f, 0, 1);
        x = imp_g_add(g, x, tiny_ffn(r, g, &t, h, n_embd));
    }
    if (pool) {
        imp_g_output(g, imp_g_l2_norm(g, imp_g_pool(g, x, IMP_POOL_MEAN)));
    } else {
        x = imp_g_rms_norm(g, imp_g_gather(g, x), weight(r, g, IMP_F32, 0, n_embd, 1), 1e-5f, 0, 1);
        imp_g_output(g, imp_g_softcap(g, imp_g_linear(g, x, table, 0), 30));
    }
    finish(g);
    return g;
}

#endif
