/* tests/dev/invariance.c - what must hold bit for bit on the CPU: a request's numbers depend on nothing beside it.
 *
 * Batched == alone, chunked prefill == one prefill, any number of threads, any block numbers; and full causal attention
 * against a textbook computation written here, which shares nothing with any device. */
#include "common.h"

static const tiny models[] = {
    {0},
    {.dtype = IMP_Q8_0, .bias = true, .qk_norm = true},
    {.dtype = IMP_Q4_0, .fused = true, .interleaved = true, .n_rot = 16},
    {.dtype = IMP_Q4_K, .head_dim = 64, .window = 40, .softcap = 20},
    {.dtype = IMP_Q6_K, .n_head = 32, .n_kv_head = 1, .head_dim = 40, .sinks = true},
    {.dtype = IMP_F16, .n_expert = 6, .n_used = 2},
    {.dtype = IMP_Q8_0, .n_expert = 9, .n_used = 3},
    {.dtype = IMP_Q5_0, .n_head = 8, .n_kv_head = 8, .head_dim = 16},
};
static const imp_dtype kv_of[IMP_COUNT(models)] = {IMP_F16, IMP_Q8_0, IMP_Q4_0, IMP_F32,
                                                   IMP_F16, IMP_Q4_0, IMP_Q8_0, IMP_F16};
enum { N_SEQ = 5, LEN = 150 };

typedef struct fixture {
    rig *r;
    imp_graph *g;
    imp_dtype kv;
    int32_t *text[N_SEQ];
    uint32_t *blocks; /* [N_SEQ][3] */
} fixture;

static fixture setup(size_t model)
{
    fixture f = {.r = rig_new(500 + model), .kv = kv_of[model]};
    f.g = tiny_model(f.r, models[model], false);
    for (int i = 0; i < N_SEQ; i++) f.text[i] = random_text(f.r, LEN);
    f.blocks = random_blocks(f.r, N_SEQ, 3);
    return f;
}
static void teardown(fixture *f)
{
    imp_graph_free(f->g);
    rig_free(f->r);
}

/* Logits of all LEN positions of text[seq], computed alone in chunks of `chunk` tokens. */
static float *alone(fixture *f, uint32_t n_thread, int seq, uint32_t chunk, const uint32_t *blocks)
{
    imp_device *d = open_dev("cpu", n_thread);
    imp_exec *x = compile(d, f->g, test_limits(f->kv));
    float *all = rig_alloc(f->r, LEN * N_VOCAB * sizeof *all);
    for (uint32_t past = 0; past < LEN; past += chunk) {
        steps s;
        uint32_t n = IMP_MIN(chunk, LEN - past);
        batch_clear(&s);
        batch_add(&s, f->text[seq], past, n, blocks);
        float *y = run_step(f->r, x, &s.b, n, N_VOCAB);
        memcpy(all + past * N_VOCAB, y, n * N_VOCAB * sizeof *y);
    }
    d->ops->exec_free(x);
    d->ops->close(d);
    return all;
}

static void test_threads(void **state)
{
    (void)state;
    for (size_t m = 0; m < IMP_COUNT(models); m++) {
        fixture f = setup(m);
        float *one = alone(&f, 1, 0, LEN, f.blocks);
        for (uint32_t t = 2; t <= 5; t++) {
            expect_same(alone(&f, t, 0, LEN, f.blocks), one, LEN * N_VOCAB, "threads, prefill");
            if (t == 3) expect_same(alone(&f, t, 0, 1, f.blocks), one, LEN * N_VOCAB, "threads, decode");
        }
        teardown(&f);
    }
}

static void test_chunks(void **state)
{
    (void)state;
    static const uint32_t chunk[] = {1, 2, 7, 13, 64, 65, 149};
    for (size_t m = 0; m < IMP_COUNT(models); m++) {
        fixture f = setup(m);
        float *whole = alone(&f, 2, 1, LEN, f.blocks + 3);
        for (size_t i = 0; i < IMP_COUNT(chunk); i++) {
            expect_same(alone(&f, 2, 1, chunk[i], f.blocks + 3), whole, LEN * N_VOCAB, "chunked prefill");
        }
        expect_same(alone(&f, 2, 1, LEN, (const uint32_t[]){0, 1, 2}), whole, LEN * N_VOCAB, "block numbers");
        teardown(&f);
    }
}

/* ---- long pasts ---------------------------------------------------------------------------------------- */

enum { LONG = 1150, N_LONG = 3, LONG_BLOCKS = (LONG + IMP_KV_BLOCK - 1) / IMP_KV_BLOCK };

/* Logits of the last `tail` positions, one by one; what is before them in chunks. With `others` two more sequences of other
 * lengths generate beside this one. */
static float *long_tail(rig *r, const imp_graph *g, imp_dtype kv, uint32_t n_thread, uint32_t chunk,
                        uint32_t tail, int32_t **text, const uint32_t *blocks, bool others)
{
    static const uint32_t length[N_LONG] = {LONG, 530, 40};
    imp_device *d = open_dev("cpu", n_thread);
    imp_exec *x = compile(d, g, test_limits(kv));
    float *all = rig_alloc(r, tail * N_VOCAB * sizeof *all);
    steps s;
    for (uint32_t i = 0; i < (others ? N_LONG : 1); i++) {
        for (uint32_t past = 0; past < length[i] - tail; past += chunk) {
            batch_clear(&s);
            batch_add(&s, text[i], past, IMP_MIN(chunk, length[i] - tail - past), blocks + i * LONG_BLOCKS);
            s.b.n_out = 0;
            run_step(r, x, &s.b, 0, N_VOCAB);
        }
    }
    for (uint32_t t = 0; t < tail; t++) {
        batch_clear(&s);
        for (uint32_t i = 0; i < (others ? N_LONG : 1); i++)
            batch_add(&s, text[i], length[i] - tail + t, 1, blocks + i * LONG_BLOCKS);
        memcpy(all + t * N_VOCAB, run_step(r, x, &s.b, s.b.n_out, N_VOCAB), N_VOCAB * sizeof *all);
    }
    d->ops->exec_free(x);
    d->ops->close(d);
    return all;
}

/* Keys beyond one chunk: whole in one step, grown in pieces, alone, beside others, by any number of threads (which cut the
 * work by chunks when there are too few heads), with a window, in every type of cache. */
static void test_long(void **state)
{
    (void)state;
    static const imp_dtype kv[] = {IMP_F32, IMP_F16, IMP_Q8_0, IMP_Q4_0};
    for (size_t m = 0; m < 2 * IMP_COUNT(kv); m++) {
        rig *r = rig_new(700 + m);
        tiny t = {
            .n_head = 3, .n_kv_head = 1, .n_layer = 2, .window = m % 2 == 0 ? 0 : 600, .sinks = m % 2 == 1};
        imp_graph *g = tiny_model(r, t, false);
        int32_t *text[N_LONG];
        for (int i = 0; i < N_LONG; i++) text[i] = random_text(r, LONG);
        uint32_t *blocks = random_blocks(r, N_LONG, LONG_BLOCKS);
        imp_dtype type = kv[m / 2];
        enum { TAIL = 5 };
        float *one = long_tail(r, g, type, 1, 512, TAIL, text, blocks, false);
        expect_same(long_tail(r, g, type, 2, 512, TAIL, text, blocks, false), one, TAIL * N_VOCAB,
                    "2 threads");
        expect_same(long_tail(r, g, type, 5, 77, TAIL, text, blocks, false), one, TAIL * N_VOCAB,
                    "5 threads");
        expect_same(long_tail(r, g, type, 3, 512, TAIL, text, blocks, true), one, TAIL * N_VOCAB,
                    "with others");
        imp_device *d = open_dev("cpu", 2); /* the same positions as rows of a prompt */
        imp_exec *x = compile(d, g, test_limits(type));
        steps s;
        float *y = NULL;
        for (uint32_t past = 0; past < LONG; past += 230) {
            batch_clear(&s);
            batch_add(&s, text[0], past, 230, blocks);
            y = run_step(r, x, &s.b, 230, N_VOCAB);
        }
        expect_same(y + (230 - TAIL) * N_VOCAB, one, TAIL * N_VOCAB, "as a prompt");
        d->ops->exec_free(x);
        d->ops->close(d);
        imp_graph_free(g);
        rig_free(r);
    }
}

/* A block that went through the host layout serves as well, also between the CPU and ref: the bytes are the same. */
static void test_host_blocks(void **state)
{
    (void)state;
    static const imp_dtype kv[] = {IMP_F32, IMP_F16, IMP_Q8_0, IMP_Q4_0};
    static const char *const kinds[] = {"cpu", "ref"};
    for (size_t m = 0; m < IMP_COUNT(kv); m++) {
        fixture f = setup(1);
        uint64_t bytes = imp_dev_kv_block_bytes(f.g, kv[m]);
        uint8_t *host = rig_alloc(f.r, bytes), *again = rig_alloc(f.r, bytes);
        for (int k = 0; k < 2; k++) {
            imp_device *d = open_dev(kinds[k], 2), *o = open_dev(kinds[1 - k], 2);
            imp_exec *x = compile(d, f.g, test_limits(kv[m])), *y = compile(o, f.g, test_limits(kv[m]));
            steps s;
            batch_clear(&s);
            batch_add(&s, f.text[0], 0, 64, (const uint32_t[]){7});
            run_step(f.r, x, &s.b, 64, N_VOCAB);
            assert_int_equal(d->ops->kv_export(x, 7, host, NULL), IMP_OK);
            assert_int_equal(o->ops->kv_import(y, 3, host, NULL), IMP_OK);
            assert_int_equal(o->ops->kv_export(y, 3, again, NULL), IMP_OK);
            assert_memory_equal(host, again, bytes);
            assert_int_equal(d->ops->kv_import(x, 9, again, NULL), IMP_OK);
            batch_clear(&s);
            batch_add(&s, f.text[0], 64, 1, (const uint32_t[]){7, 8});
            float *first = run_step(f.r, x, &s.b, 1, N_VOCAB);
            batch_clear(&s);
            batch_add(&s, f.text[0], 64, 1, (const uint32_t[]){9, 10});
            expect_same(run_step(f.r, x, &s.b, 1, N_VOCAB), first, N_VOCAB, "a block that was away");
            d->ops->exec_free(x);
            o->ops->exec_free(y);
            d->ops->close(d);
            o->ops->close(o);
        }
        teardown(&f);
    }
}

/* A step so small that the caller does it alone gives what the pool gives. */
static void test_alone(void **state)
{
    (void)state;
    fixture f = setup(1);
    imp_device *d = open_dev("cpu", 3);
    steps s;
    batch_clear(&s);
    batch_add(&s, f.text[0], 0, 9, f.blocks);
    imp_exec *x = compile(d, f.g, test_limits(f.kv));
    float *pool = run_step(f.r, x, &s.b, 9, N_VOCAB);
    ((cpu_device *)d)->alone_work = UINT64_MAX;
    expect_same(run_step(f.r, x, &s.b, 9, N_VOCAB), pool, 9 * N_VOCAB, "alone");
    d->ops->exec_free(x);
    d->ops->close(d);
    teardown(&f);
}

/* All sequences in one batch, each growing by its own random chunk a step; some steps leave sequences out. */
static void test_batched(void **state)
{
    (void)state;
    for (size_t m = 0; m < IMP_COUNT(models); m++) {
        fixture f = setup(m);
        float *single[N_SEQ];
        for (int i = 0; i < N_SEQ; i++) single[i] = alone(&f, 2, i, LEN, f.blocks + 3 * i);
        imp_device *d = open_dev("cpu", 2);
        imp_exec *x = compile(d, f.g, test_limits(f.kv));
        uint32_t past[N_SEQ] = {0};
        for (bool more = true; more;) {
            steps s;
            uint32_t row[N_SEQ], n[N_SEQ];
            more = false;
            batch_clear(&s);
            for (int i = 0; i < N_SEQ; i++) {
                uint32_t wish = rnd(f.r) % 3 == 0 ? 1 + rnd(f.r) % 70 : rnd(f.r) % 2;
                n[i] = IMP_MIN(wish, LEN - past[i]);
                row[i] = s.b.n_tok;
                if (n[i] > 0) batch_add(&s, f.text[i], past[i], n[i], f.blocks + 3 * i);
                more = more || past[i] + n[i] < LEN;
            }
            if (s.b.n_tok == 0) continue;
            float *y = run_step(f.r, x, &s.b, s.b.n_tok, N_VOCAB);
            for (int i = 0; i < N_SEQ; i++) {
                expect_same(y + row[i] * N_VOCAB, single[i] + past[i] * N_VOCAB, n[i] * N_VOCAB, "batched");
                past[i] += n[i];
            }
        }
        d->ops->exec_free(x);
        d->ops->close(d);
        teardown(&f);
    }
}

/* An encoder's vector of a text does not depend on the texts beside it. */
static void test_encoder_batched(void **state)
{
    (void)state;
    static const uint32_t len[N_SEQ] = {1, 31, 64, 65, 128};
    rig *r = rig_new(900);
    imp_graph *g =
        tiny_model(r, (tiny){.dtype = IMP_Q8_0, .no_cache = true, .full = true, .bias = true}, true);
    imp_device *d = open_dev("cpu", 2);
    imp_exec *x = compile(d, g, test_limits(IMP_F32));
    int32_t *text[N_SEQ];
    steps all, one;
    batch_clear(&all);
    for (int i = 0; i < N_SEQ; i++) {
        text[i] = random_text(r, len[i]);
        batch_add(&all, text[i], 0, len[i], NULL);
    }
    uint64_t width = imp_graph_node(g, imp_graph_output(g))->width;
    float *together = run_step(r, x, &all.b, N_SEQ, width);
    for (int i = 0; i < N_SEQ; i++) {
        batch_clear(&one);
        batch_add(&one, text[i], 0, len[i], NULL);
        expect_same(run_step(r, x, &one.b, 1, width), together + (uint64_t)i * width, width,
                    "encoder batched");
    }
    d->ops->exec_free(x);
    d->ops->close(d);
    imp_graph_free(g);
    rig_free(r);
}

/* A copied block serves as well as the one it came from. */
static void test_kv_copy(void **state)
{
    (void)state;
    static const char *const kinds[] = {"cpu", "ref"};
    for (int k = 0; k < 2; k++) {
        fixture f = setup(0);
        imp_device *d = open_dev(kinds[k], 2);
        imp_exec *x = compile(d, f.g, test_limits(f.kv));
        steps s;
        uint32_t table[3] = {7, 8, 9};
        batch_clear(&s);
        batch_add(&s, f.text[0], 0, 70, table);
        run_step(f.r, x, &s.b, 70, N_VOCAB);
        d->ops->kv_copy(x, 20, 7);
        d->ops->kv_copy(x, 21, 8);
        batch_clear(&s);
        batch_add(&s, f.text[0], 70, 1, table);
        float *first = run_step(f.r, x, &s.b, 1, N_VOCAB);
        batch_clear(&s);
        batch_add(&s, f.text[0], 70, 1, (const uint32_t[]){20, 21});
        expect_same(run_step(f.r, x, &s.b, 1, N_VOCAB), first, N_VOCAB, "copied blocks");
        d->ops->exec_free(x);
        d->ops->close(d);
        teardown(&f);
    }
}

/* ---- phases ------------------------------------------------------------------------------------------- */

/* Whether each share of a and b is the same, whatever the rows and shares of a step. */
static bool same_share(const cpu_op *a, const cpu_op *b)
{
    for (uint32_t n_share = 2; n_share <= 9; n_share++) {
        for (uint32_t n_row = 1; n_row <= 9; n_row += 2) {
            cpu_step s = {.n_row = {n_row + 2, n_row, n_row + 1}, .n_share = n_share};
            for (uint32_t t = 0; t < n_share; t++) {
                cpu_part p = imp_cpu_part(&s, a, t), q = imp_cpu_part(&s, b, t);
                bool all_rows = p.r1 - p.r0 == s.n_row[a->rows] * a->row_mul &&
                                q.r1 - q.r0 == s.n_row[b->rows] * b->row_mul;
                bool all_cols = p.c1 - p.c0 == a->n && q.c1 - q.c0 == b->n;
                bool rows = p.r0 == q.r0 && p.r1 == q.r1;
                bool cols = a->n == b->n && p.c0 == q.c0 && p.c1 == q.c1;
                if (!(rows && cols) && !(rows && all_cols) && !(cols && all_rows)) return false;
            }
        }
    }
    return a->split != CPU_OWN && b->split != CPU_OWN;
}

static bool overlap(const cpu_exec *x, uint32_t a, uint32_t b)
{
    const cpu_buf *p = &x->buf[a], *q = &x->buf[b];
    return a != 0 && b != 0 && p->at < q->at + q->bytes && q->at < p->at + p->bytes;
}

/* `w` writes memory that `o` (of the same phase) reads or writes: it must be the same buffer and the same share. */
static void check_pair(const cpu_exec *x, const cpu_op *w, const cpu_op *o)
{
    const uint32_t wrote[2] = {w->out.buf, w->q8.buf};
    for (int k = 0; k < 2; k++) {
        for (uint32_t i = 0; i < o->n_in + 2; i++) {
            uint32_t other = i < o->n_in ? o->in[i].buf : i == o->n_in ? o->out.buf : o->q8.buf;
            if (!overlap(x, wrote[k], other)) continue;
            assert_int_equal(wrote[k], other);
            assert_true(same_share(w, o));
            assert_false(i < o->n_in && o->reads_all);
        }
    }
}

static void check_phases(const imp_graph *g)
{
    imp_device *d = open_dev("cpu", 2);
    imp_exec *base = compile(d, g, test_limits(IMP_F32));
    const cpu_exec *x = (const cpu_exec *)base;
    for (uint32_t i = 0; i < x->n_op; i++) {
        for (uint32_t j = i + 1; j < x->n_op && !x->op[j].barrier; j++) {
            check_pair(x, &x->op[i], &x->op[j]);
            check_pair(x, &x->op[j], &x->op[i]);
        }
    }
    d->ops->exec_free(base);
    d->ops->close(d);
}

/* Between two barriers no thread touches what another one writes, in all models and where a layer's own input dies. */
static void test_phases(void **state)
{
    (void)state;
    for (size_t m = 0; m < IMP_COUNT(models); m++) {
        fixture f = setup(m);
        check_phases(f.g);
        teardown(&f);
    }
    rig *r = rig_new(44);
    imp_graph *encoder = tiny_model(r, (tiny){.no_cache = true, .full = true}, true), *g = imp_graph_new();
    check_phases(encoder);
    imp_val x = imp_g_embed(g, weight(r, g, IMP_F32, N_VOCAB, 64, 1), IMP_BY_TOKEN, 0);
    for (int i = 0; i < 3; i++)
        x = imp_g_add(g, x, imp_g_linear(g, x, weight(r, g, IMP_F32, 64, 64, 0.1f), 0));
    x = imp_g_linear(g, imp_g_linear(g, x, weight(r, g, IMP_F32, 64, 64, 0.1f), 0),
                     weight(r, g, IMP_F32, 64, 64, 1), 0);
    imp_g_output(
        g, imp_g_gather(g, imp_g_glu(g, imp_g_slice(g, x, 32, 32), imp_g_slice(g, x, 0, 32), IMP_ACT_RELU)));
    finish(g);
    check_phases(g);
    imp_graph_free(encoder);
    imp_graph_free(g);
    rig_free(r);
}

/* ---- textbook attention ------------------------------------------------------------------------------- */

/* y = softmax(q K^T / sqrt(d)) V for one row and head, keys 0..n-1; everything in double. */
static void textbook(double *y, const float *q, const float *k, const float *v, uint32_t n, uint32_t stride,
                     uint32_t dim)
{
    double weight[256], sum = 0;
    for (uint32_t j = 0; j < n; j++) {
        double score = 0;
        for (uint32_t c = 0; c < dim; c++) score += (double)q[c] * (double)k[j * stride + c];
        weight[j] = exp(score / sqrt((double)dim));
        sum += weight[j];
    }
    for (uint32_t c = 0; c < dim; c++) {
        y[c] = 0;
        for (uint32_t j = 0; j < n; j++) y[c] += weight[j] / sum * (double)v[j * stride + c];
    }
}

static void test_textbook_attention(void **state)
{
    (void)state;
    enum { HEAD = 3, DIM = 32, W = HEAD * DIM, N = 133 };
    rig *r = rig_new(333);
    imp_graph *g = imp_graph_new();
    imp_tensor t[3];
    imp_val in[3];
    for (int i = 0; i < 3; i++) {
        t[i] = random_weight(r, IMP_F32, N, W, 1.5f);
        in[i] = imp_g_embed(g, imp_g_weight(g, "t", &t[i]), IMP_BY_POSITION, 0); /* row i is token i's */
    }
    imp_attn_attr a = {
        .n_head = HEAD, .n_kv_head = HEAD, .head_dim = DIM, .kv_layer = 0, .scale = 1.0f / sqrtf((float)DIM)};
    imp_g_output(g, imp_g_gather(g, imp_g_attn(g, in[0], in[1], in[2], 0, &a)));
    finish(g);
    static const char *const kinds[] = {"cpu", "ref"};
    for (int k = 0; k < 2; k++) {
        imp_device *d = open_dev(kinds[k], 2);
        imp_exec *x = compile(d, g, test_limits(IMP_F32));
        steps s;
        batch_clear(&s);
        batch_add(&s, random_text(r, N), 0, N, random_blocks(r, 1, 3));
        float *y = run_step(r, x, &s.b, N, W);
        for (uint32_t i = 0; i < N; i++) {
            for (uint32_t h = 0; h < HEAD; h++) {
                double want[DIM];
                const float *q = (const float *)t[0].data + i * W + h * DIM;
                textbook(want, q, (const float *)t[1].data + h * DIM, (const float *)t[2].data + h * DIM,
                         i + 1, W, DIM);
                for (uint32_t c = 0; c < DIM; c++) {
                    if (!(fabs((double)y[i * W + h * DIM + c] - want[c]) < 4e-6)) {
                        fail_msg("%s row %u head %u column %u: %.9g, should be %.9g", kinds[k], i, h, c,
                                 (double)y[i * W + h * DIM + c], want[c]);
                    }
                }
            }
        }
        d->ops->exec_free(x);
        d->ops->close(d);
    }
    imp_graph_free(g);
    rig_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_long),
        cmocka_unit_test(test_host_blocks),
        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_batched),
        cmocka_unit_test(test_encoder_batched),
        cmocka_unit_test(test_kv_copy),
        cmocka_unit_test(test_textbook_attention),
        cmocka_unit_test(test_phases),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
