/* bench/gpu_bench.c - decode and prefill of Llama shapes with random weights on the GPU, as shares of measured ceilings.
 *
 * usage: gpu_bench handover | [device=D] [layers=N] [member=N] [depth=N] [batch=N] [kv=f16|q8_0] [sampling=1] [shape:type ...]
 *        shape 1b | 8b | 70b, type bf16 | q8_0 | q4_0 | q4_k; default: all. sampling=1: what choosing tokens takes, in place
 *        of the rest
 * Idea:  the graph of a Llama is built here; layers share their random bytes in host memory, on the GPU each has its own.
 *        The read ceiling is measured in the same run. Speed does not depend on the values. */
#include <stdio.h>
#include <stdlib.h>

#include "dev/cuda/cuda.h"
#include "sched/row.h"

typedef struct shape {
    const char *name;
    uint32_t dim, n_layer, n_head, n_kv_head, n_ff, n_vocab;
} shape;
static const shape SHAPES[] = {{"1b", 2048, 16, 32, 8, 8192, 128256},
                               {"8b", 4096, 32, 32, 8, 14336, 128256},
                               {"70b", 8192, 80, 64, 8, 28672, 128256}};
static uint64_t read_bytes; /* of weights, a decode step */
static uint32_t member =
    1; /* the shape is that of one of so many members: what a step costs without their sums */
static uint32_t n_layer = 0, depth = 64, one_batch = 0; /* n_layer 0: the shape's own; one_batch 0: 1 to 64 */
static imp_dtype kv_type = IMP_F16;
static bool sampling = false;

static void die(const char *what, const imp_error *err)
{
    fprintf(stderr, "gpu_bench: %s: %s\n", what, err->text);
    exit(1);
}

/* [n][k] of plausible values: one megabyte of them, again and again. */
static imp_tensor random_matrix(imp_dtype t, uint64_t n, uint64_t k)
{
    imp_tensor w = {.dtype = t, .n_dim = 2, .dim = {n, k, 1, 1}};
    uint64_t bytes, size = imp_dtype_get(t)->block_bytes, part = size * (1 << 16);
    if (imp_dtype_bytes(t, n * k, &bytes) != IMP_OK) exit(1);
    uint8_t *p = malloc(bytes + part);
    uint64_t x = 88172645463325252ull;
    for (uint64_t i = 0; i < part; i += size) {
        for (uint64_t b = 0; b < size; b++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            p[i + b] = (uint8_t)(x >> 24);
        }
        float f = 0.02f * ((float)(x >> 40) / 8388608.0f - 1);
        uint16_t h = t == IMP_BF16 ? imp_f32_to_bf16(f)
                                   : imp_f32_to_f16(t == IMP_Q8_0   ? 0.0003f
                                                    : t == IMP_Q4_0 ? 0.004f
                                                                    : 0.0001f);
        memcpy(p + i, &h, 2);
        uint16_t m = imp_f32_to_f16(0.0008f);
        if (t == IMP_Q4_K) memcpy(p + i + 2, &m, 2);
    }
    for (uint64_t i = part; i < bytes; i += part) memcpy(p + i, p, part);
    w.data = p;
    return w;
}

static imp_val linear(imp_graph *g, imp_val x, const imp_tensor *w)
{
    uint64_t bytes = imp_tensor_bytes(w);
    read_bytes += bytes;
    return imp_g_linear(g, x, imp_g_weight(g, "w", w), 0);
}

static imp_graph *llama(const shape *s, imp_dtype t)
{
    uint32_t hd = s->dim / s->n_head, n_head = s->n_head / member, n_kv_head = s->n_kv_head / member;
    uint32_t n_q = hd * n_head, n_kv = hd * n_kv_head, n_ff = s->n_ff / member;
    float *ones = malloc(s->dim * sizeof *ones), freq[64];
    for (uint32_t i = 0; i < s->dim; i++) ones[i] = 1;
    for (uint32_t i = 0; i < hd / 2; i++) freq[i] = 1.0f / (float)(1 + 100 * i);
    imp_tensor norm = {.dtype = IMP_F32, .n_dim = 1, .dim = {s->dim, 1, 1, 1}, .data = ones};
    imp_tensor wq = random_matrix(t, n_q, s->dim), wk = random_matrix(t, n_kv, s->dim),
               wp = random_matrix(t, s->dim, n_q), wg = random_matrix(t, n_ff, s->dim),
               wd = random_matrix(t, s->dim, n_ff), wo = random_matrix(t, s->n_vocab, s->dim), head = wo;
    head.dim[0] /= member;
    imp_rope_attr rope = {.head_dim = hd, .n_rot = hd, .mscale = 1, .inv_freq = freq};
    imp_graph *g = imp_graph_new();
    imp_val x = imp_g_embed(g, imp_g_weight(g, "embd", &wo), IMP_BY_TOKEN, 0);
    read_bytes = 0;
    for (uint32_t i = 0; i < s->n_layer; i++) {
        imp_attn_attr a = {.n_head = n_head,
                           .n_kv_head = n_kv_head,
                           .head_dim = hd,
                           .kv_layer = (int32_t)i,
                           .scale = 0.088f};
        imp_val h = imp_g_rms_norm(g, x, imp_g_weight(g, "n", &norm), 1e-5f, 0, 0);
        imp_val q = linear(g, h, &wq), k = linear(g, h, &wk), v = linear(g, h, &wk);
        imp_val y = imp_g_attn(g, imp_g_rope(g, q, &rope), imp_g_rope(g, k, &rope), v, 0, &a);
        x = imp_g_add(g, x, linear(g, y, &wp));
        h = imp_g_rms_norm(g, x, imp_g_weight(g, "n", &norm), 1e-5f, 0, 0);
        imp_val gate = linear(g, h, &wg), up = linear(g, h, &wg);
        x = imp_g_add(g, x, linear(g, imp_g_glu(g, gate, up, IMP_ACT_SILU), &wd));
    }
    x = imp_g_rms_norm(g, imp_g_gather(g, x), imp_g_weight(g, "n", &norm), 1e-5f, 0, 0);
    imp_g_output(g, linear(g, x, &head));
    imp_error err = {0};
    if (imp_graph_finish(g, &err) != IMP_OK) die("graph", &err);
    return g;
}

static const float *run(imp_exec *x, uint32_t n_seq, uint32_t n_tok, uint32_t n_past, uint32_t per_seq,
                        bool top)
{
    static int32_t token[8192], pos[8192];
    static imp_batch_seq seq[256];
    static uint32_t out_row[256], block[8192];
    for (uint32_t i = 0; i < 8192; i++) block[i] = i;
    for (uint32_t s = 0; s < n_seq; s++) {
        seq[s] = (imp_batch_seq){
            .first_tok = s * n_tok, .n_tok = n_tok, .n_past = n_past, .block = block + s * per_seq};
        out_row[s] = (s + 1) * n_tok - 1;
        for (uint32_t i = 0; i < n_tok; i++) {
            token[s * n_tok + i] = (int32_t)((s * 7919u + i * 104729u + n_past) % 128000u);
            pos[s * n_tok + i] = (int32_t)(n_past + i);
        }
    }
    imp_batch b = {.n_tok = n_seq * n_tok,
                   .n_seq = n_seq,
                   .n_out = n_seq,
                   .token = token,
                   .pos = pos,
                   .seq = seq,
                   .out_row = out_row,
                   .top = top};
    const float *out;
    imp_error err = {0};
    if (x->dev->ops->run(x, &b, &out, &err) != IMP_OK) die("run", &err);
    return out;
}

static double seconds(uint64_t t0)
{
    return (double)(imp_now_ns() - t0) * 1e-9;
}

static double read_ceiling(cuda_device *d)
{
    const cu_driver *cu = d->cu;
    uint64_t n = 4ull << 30, n_vec = n / 16;
    cu_mem p, out;
    if (cu->ctx_set(d->ctx) != CU_OK || cu->alloc(&p, n) != CU_OK || cu->alloc(&out, 16) != CU_OK) return 0;
    (void)cu->set8(p, 1, n, d->stream);
    double best = 0;
    for (int i = 0; i < 6; i++) {
        void *params[] = {&p, &n_vec, &out};
        cu_launch_config c = {
            .gx = 132 * 8, .gy = 1, .gz = 1, .bx = 512, .by = 1, .bz = 1, .stream = d->stream};
        (void)cu->stream_sync(d->stream);
        uint64_t t0 = imp_now_ns();
        if (cu->launch(&c, d->fn.read_all, params, NULL) != CU_OK) break;
        (void)cu->stream_sync(d->stream);
        best = IMP_MAX(best, (double)n / seconds(t0));
    }
    (void)cu->release(p);
    (void)cu->release(out);
    return best;
}

/* A step with its tokens chosen: from rows that come to the host, and from their best columns. */
static void bench_sampling(imp_exec *x, const char *spec, uint32_t n_vocab)
{
    static const char *const how[] = {"greedy", "top-k 40, top-p, min-p", "top-p 0.9"};
    enum { STEPS = 8, MODES = 3 };
    imp_sampler_scratch w;
    if (imp_sampler_scratch_init(&w, n_vocab) != IMP_OK) exit(1);
    for (uint32_t batch = 1; batch <= 32; batch *= 32) {
        uint32_t per_seq = (depth + 64) / IMP_KV_BLOCK + 1, n_row = 0;
        for (int mode = 0; mode < MODES; mode++) {
            imp_sampling p;
            imp_sampling_default(&p);
            if (mode == 0) p.temperature = 0;
            if (mode == 2) p.top_k = 0, p.min_p = 0, p.top_p = 0.9f;
            p.seed = 1;
            double run_s[2] = {0}, choose_s[2] = {0};
            int32_t chosen[2][STEPS * 32];
            for (int top = 0; top < 2; top++) {
                imp_sampler s;
                imp_sampler_init(&s, &p);
                for (int i = -3; i < STEPS; i++) {
                    uint64_t t0 = imp_now_ns();
                    const float *out = run(x, batch, 1, depth + (uint32_t)IMP_MAX(i, 0), per_seq, top == 1);
                    double ran = seconds(t0);
                    t0 = imp_now_ns();
                    for (uint32_t r = 0; i >= 0 && r < batch; r++) {
                        imp_row row = {
                            .x = x, .row = r, .logits = out == NULL ? NULL : out + (size_t)r * n_vocab};
                        chosen[top][(uint32_t)i * batch + r] = imp_row_next(&row, &s, &w, NULL, 0, 0, NULL);
                        n_row += out == NULL && row.logits != NULL;
                    }
                    if (i >= 0) run_s[top] += ran, choose_s[top] += seconds(t0);
                }
            }
            printf("%s: x%-2u %-22s  rows to the host: step %.3f ms + choosing %.3f ms; best columns: %.3f + "
                   "%.3f "
                   "ms; %s tokens, %u rows asked for\n",
                   spec, batch, how[mode], run_s[0] / STEPS * 1e3, choose_s[0] / STEPS * 1e3,
                   run_s[1] / STEPS * 1e3, choose_s[1] / STEPS * 1e3,
                   memcmp(chosen[0], chosen[1], STEPS * batch * 4) == 0 ? "the same" : "OTHER", n_row);
            fflush(stdout);
        }
    }
    imp_sampler_scratch_deinit(&w);
}

static void bench(imp_device *d, const char *spec, double ceiling)
{
    const char *colon = strchr(spec, ':');
    shape own = SHAPES[1], *s = &own;
    for (size_t i = 0; i < IMP_COUNT(SHAPES); i++)
        if (colon != NULL && strncmp(spec, SHAPES[i].name, (size_t)(colon - spec)) == 0) own = SHAPES[i];
    if (colon == NULL) colon = spec - 1;
    if (n_layer != 0) own.n_layer = n_layer;
    imp_dtype t = imp_dtype_from_name(colon + 1);
    imp_graph *g = llama(s, t);
    imp_limits lim = {.max_tok = 4096,
                      .max_seq = 64,
                      .max_out = 64,
                      .max_ctx = 8192,
                      .n_kv_block = s->n_layer > 40 ? 1024 : 4096, /* they would fill a GPU */
                      .kv_dtype = kv_type};
    imp_exec *x;
    imp_error err = {0};
    uint64_t t0 = imp_now_ns();
    if (d->ops->compile(d, g, &lim, &x, &err) != IMP_OK) die("compile", &err);
    printf("%s: loaded in %.1f s, %s cache\n", spec, seconds(t0), imp_dtype_get(kv_type)->name);
    if (sampling) {
        bench_sampling(x, spec, s->n_vocab);
        d->ops->exec_free(x);
        imp_graph_free(g);
        return;
    }
    for (uint32_t n = 512; n <= 4096; n *= 8) {
        double best = 0;
        for (int i = 0; i < 4; i++) {
            t0 = imp_now_ns();
            (void)run(x, 1, n, 0, 0, false);
            best = IMP_MAX(best, n / seconds(t0));
        }
        double flop =
            2.0 * ((double)s->n_layer *
                   (2.0 * s->dim * s->dim * (1 + (double)s->n_kv_head / s->n_head) + 3.0 * s->dim * s->n_ff));
        printf("%s: prefill %4u  %8.0f tok/s  %5.0f TFLOP/s in products\n", spec, n, best,
               best * flop * 1e-12);
    }
    for (uint32_t batch = 1; batch <= 64; batch *= batch == 1 ? 4 : 2) {
        if (one_batch != 0 && batch != one_batch) continue;
        uint32_t per_seq = (depth + 64) / IMP_KV_BLOCK + 1;
        for (int i = 0; i < 4; i++) (void)run(x, batch, 1, depth, per_seq, false);
        t0 = imp_now_ns();
        uint64_t gpu = 0;
        for (uint32_t i = 0; i < 64; i++) {
            (void)run(x, batch, 1, depth + i, per_seq, false);
            gpu += d->ops->last_ns(x);
        }
        double each = seconds(t0) / 64;
        printf("%s: decode x%-2u   %8.1f tok/s  step %.3f ms (GPU %.3f)  %5.0f GB/s of weights = %.1f %% of "
               "read\n",
               spec, batch, batch / each, each * 1e3, (double)gpu / 64e6, (double)read_bytes / each * 1e-9,
               100 * (double)read_bytes / each / ceiling);
    }
    fflush(stdout);
    d->ops->exec_free(x);
    imp_graph_free(g);
}

/* Blocks of the 8B shape's cache from cuda0 to cuda1, beside one large copy over the same link. */
static void hand_over(uint32_t n)
{
    imp_device *d[2];
    imp_exec *x[2];
    imp_error err = {0};
    shape own = SHAPES[1];
    own.n_vocab = 1024, own.n_ff = 1024;
    imp_graph *g = llama(&own, IMP_Q8_0);
    imp_limits lim = {
        .max_tok = 512, .max_seq = 8, .max_out = 8, .max_ctx = 64 * n, .n_kv_block = n, .kv_dtype = IMP_F16};
    for (int i = 0; i < 2; i++) {
        if (imp_dev_open(i == 0 ? "cuda0" : "cuda1", 0, &d[i], &err) != IMP_OK) die("open", &err);
        if (d[i]->ops->compile(d[i], g, &lim, &x[i], &err) != IMP_OK) die("compile", &err);
    }
    uint64_t bytes = imp_dev_kv_block_bytes(g, IMP_F16);
    uint32_t *block = malloc(n * sizeof *block);
    for (uint32_t i = 0; i < n; i++) block[i] = (i * 7 + 3) % n;
    void *stage = d[0]->ops->kv_stage(x[0], x[1], n * bytes);
    if (stage == NULL) {
        printf("hand-over: cuda0 and cuda1 are out of each other's reach\n");
        return;
    }
    const cuda_device *to = (const cuda_device *)d[1];
    cu_mem big = 0;
    double link = 0, out = 0, in = 0, host = 0;
    if (to->cu->ctx_set(to->ctx) != CU_OK || to->cu->alloc(&big, n * bytes) != CU_OK) exit(1);
    for (int i = 0; i < 5; i++) {
        uint64_t t0 = imp_now_ns();
        (void)to->cu->ctx_set(to->ctx);
        (void)to->cu->copy(big, (cu_mem)(uintptr_t)stage, n * bytes, to->stream);
        (void)to->cu->stream_sync(to->stream);
        link = IMP_MAX(link, (double)(n * bytes) / seconds(t0));
        t0 = imp_now_ns();
        if (d[0]->ops->kv_staged(x[0], block, n, stage, true, &err) != IMP_OK) die("out", &err);
        out = IMP_MAX(out, (double)(n * bytes) / seconds(t0));
        t0 = imp_now_ns();
        if (d[1]->ops->kv_staged(x[1], block, n, stage, false, &err) != IMP_OK) die("in", &err);
        in = IMP_MAX(in, (double)(n * bytes) / seconds(t0));
    }
    void *h = malloc(bytes);
    uint64_t t0 = imp_now_ns();
    for (uint32_t i = 0; i < 16; i++) {
        if (d[0]->ops->kv_export(x[0], i, h, &err) != IMP_OK) die("export", &err);
        if (d[1]->ops->kv_import(x[1], i, h, &err) != IMP_OK) die("import", &err);
    }
    host = 16.0 * (double)bytes / seconds(t0);
    printf("hand-over of %u blocks, %.0f MB: copy over the link %.0f GB/s; out %.0f GB/s, in %.0f GB/s = "
           "%.0f %% of the "
           "link; by the host %.1f GB/s\n",
           n, (double)(n * bytes) * 1e-6, link * 1e-9, out * 1e-9, in * 1e-9, 100 * in / link, host * 1e-9);
    d[0]->ops->kv_stage_free(d[0], stage);
    for (int i = 0; i < 2; i++) d[i]->ops->exec_free(x[i]), d[i]->ops->close(d[i]);
    imp_graph_free(g);
}

int main(int argc, char **argv)
{
    static const char *const all[] = {"1b:bf16", "1b:q4_0", "8b:bf16", "8b:q8_0", "8b:q4_0", "8b:q4_k"};
    imp_device *d;
    imp_error err = {0};
    imp_log_set_level(IMP_LOG_INFO);
    if (argc > 1 && strcmp(argv[1], "handover") == 0) {
        for (uint32_t n = 16; n <= 256; n *= 4) hand_over(n);
        return 0;
    }
    if (imp_dev_open("cuda", 0, &d, &err) != IMP_OK) die("open", &err);
    double ceiling = read_ceiling((cuda_device *)d);
    printf("read ceiling %.0f GB/s\n", ceiling * 1e-9);
    if (argc > 1 && strncmp(argv[1], "device=", 7) == 0) {
        d->ops->close(d);
        if (imp_dev_open(argv[1] + 7, 0, &d, &err) != IMP_OK) die("open", &err);
        argv++, argc--;
    }
    int n_bench = 0;
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "layers=", 7) == 0) {
            n_layer = (uint32_t)atoi(argv[i] + 7);
        } else if (strncmp(argv[i], "member=", 7) == 0) {
            member = (uint32_t)IMP_MAX(1, atoi(argv[i] + 7));
        } else if (strncmp(argv[i], "depth=", 6) == 0) {
            depth = (uint32_t)atoi(argv[i] + 6);
        } else if (strncmp(argv[i], "kv=", 3) == 0) {
            kv_type = imp_dtype_from_name(argv[i] + 3);
        } else if (strcmp(argv[i], "sampling=1") == 0) {
            sampling = true;
        } else if (strncmp(argv[i], "batch=", 6) == 0) {
            one_batch = (uint32_t)atoi(argv[i] + 6);
        } else {
            bench(d, argv[i], ceiling);
            n_bench++;
        }
    }
    for (size_t i = 0; n_bench == 0 && i < IMP_COUNT(all); i++) bench(d, all[i], ceiling);
    d->ops->close(d);
    return 0;
}
