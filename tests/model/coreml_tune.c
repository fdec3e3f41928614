/* Compressing by a calibration text: factors and inverses against their definition; error feedback against rounding to the
 * nearest, and against the sum that it is meant to make small; a tuned model in a package against the tuner's own streams. */
#include "test.h"

#include <math.h>

#include "dev/coreml/feed.h"
#include "dev/coreml/solve.h"
#include "dev/coreml/tune.h"
#include "model/net.h"

enum { K = 48, N = 20, T = 400 };

/* Correlated inputs x[T][K] and their moments. */
static void inputs(rng *r, float *x, imp_ml_input *in)
{
    for (int t = 0; t < T; t++) {
        float common = rng_f32(r);
        for (int i = 0; i < K; i++)
            x[t * K + i] = rng_f32(r) * 0.3f + common * (i % 3 == 0 ? 2 : 0.5f) + 0.1f;
    }
    *in = (imp_ml_input){.k = K,
                         .moment = calloc(K * K, sizeof(float)),
                         .mean2 = calloc(K, sizeof(float)),
                         .mean = calloc(K, sizeof(float))};
    for (int t = 0; t < T; t++)
        for (int i = 0; i < K; i++) {
            in->mean[i] += x[t * K + i] / T;
            for (int j = 0; j < K; j++) in->moment[i * K + j] += x[t * K + i] * x[t * K + j] / T;
        }
    for (int i = 0; i < K; i++) in->mean2[i] = in->moment[i * K + i];
}

static void free_inputs(imp_ml_input *in)
{
    free(in->moment);
    free(in->mean2);
    free(in->mean);
}

/* The mean over x of |(a - b) x|^2, row by row in doubles. */
static double output_error(const float *a, const float *b, const float *x)
{
    double all = 0;
    for (int t = 0; t < T; t++)
        for (int n = 0; n < N; n++) {
            double y = 0;
            for (int i = 0; i < K; i++)
                y += ((double)a[n * K + i] - (double)b[n * K + i]) * (double)x[t * K + i];
            all += y * y / T;
        }
    return all;
}

static float to_quarters(void *user, uint64_t row, uint64_t col, float t)
{
    (void)user, (void)row, (void)col;
    return nearbyintf(t * 4) / 4;
}

static void inverts(void **state)
{
    float x[T * K], inv[K * K];
    rng r = {3};
    imp_ml_input in;
    ml_gemm_buf g = {0};
    (void)state;
    inputs(&r, x, &in);
    assert_true(ml_inverse(&g, NULL, in.moment, K, 0.01f, inv));
    for (int i = 0; i < K; i++)
        for (int j = 0; j < K; j++) {
            double s = 0;
            for (int m = 0; m < K; m++)
                s += ((double)in.moment[i * K + m] + (i == m ? 0.01 : 0)) * (double)inv[m * K + j];
            assert_true(fabs(s - (i == j)) < 2e-3);
        }
    ml_gemm_buf_deinit(&g);
    free_inputs(&in);
}

static void feeds_errors_back(void **state)
{
    float x[T * K], w[N * K], near[N * K], fed[N * K];
    rng r = {11};
    imp_ml_input in;
    ml_feed f;
    ml_gemm_buf g = {0};
    imp_pool *pool;
    (void)state;
    assert_int_equal(imp_pool_new(2, &pool), IMP_OK);
    inputs(&r, x, &in);
    for (int i = 0; i < N * K; i++) w[i] = fed[i] = rng_f32(&r), near[i] = to_quarters(NULL, 0, 0, w[i]);
    assert_true(ml_feed_new(&in, 0, &f));
    assert_true(ml_feed_round(&f, &g, pool, fed, N, to_quarters, NULL));
    for (int i = 0; i < N * K; i++) assert_true(fed[i] == to_quarters(NULL, 0, 0, fed[i]));
    double plain = output_error(w, near, x), with = output_error(w, fed, x), said;
    if (!(with < 0.6 * plain)) fail_msg("output error %g with feedback, %g without", with, plain);
    for (int i = 0; i < N * K; i++) near[i] = w[i] - fed[i];
    assert_true(ml_output_energy(&in, &g, pool, near, N, false, &said));
    assert_true(fabs(said - with) < 1e-3 * with);
    /* the first column in order is rounded as it is; without correlation all are */
    uint32_t first = f.order[0];
    for (int n = 0; n < N; n++) assert_true(fed[n * K + first] == to_quarters(NULL, 0, 0, w[n * K + first]));
    ml_feed_deinit(&f);
    for (int i = 0; i < K * K; i++)
        if (i / K != i % K) in.moment[i] = 0;
    memcpy(fed, w, sizeof fed);
    assert_true(ml_feed_new(&in, 0, &f));
    assert_true(ml_feed_round(&f, &g, NULL, fed, N, to_quarters, NULL));
    for (int i = 0; i < N * K; i++) assert_true(fed[i] == to_quarters(NULL, 0, 0, w[i]));
    ml_feed_deinit(&f);
    ml_gemm_buf_deinit(&g);
    imp_pool_free(pool);
    free_inputs(&in);
}

/* Codes mean the numbers that are given back; more bits, less error; an input that is never seen costs nothing. */
static void codes(void **state)
{
    static const char *const forms[] = {"lut1", "lut2", "lut3", "lut4", "lut6", "lut8", "fp16"};
    enum { ROWS = 32, COLS = 64 };
    float w[ROWS * COLS], was[ROWS * COLS];
    rng r = {5};
    double last = INFINITY;
    imp_error err = {0};
    (void)state;
    for (int i = 0; i < ROWS * COLS; i++) was[i] = rng_f32(&r) * rng_f32(&r);
    imp_tensor t = {.dtype = IMP_F32, .n_dim = 2, .dim = {ROWS, COLS, 1, 1}, .data = was};
    for (size_t f = 0; f < IMP_COUNT(forms); f++) {
        imp_ml_coded c;
        imp_ml_code_job job = {.t = &t, .n_row = ROWS, .values = w};
        assert_true(imp_ml_packing_parse(forms[f], &job.how));
        memcpy(w, was, sizeof w);
        assert_int_equal(imp_ml_code(&job, &c, &err), IMP_OK);
        double e = 0;
        for (int i = 0; i < ROWS * COLS; i++) {
            e += ((double)w[i] - (double)was[i]) * ((double)w[i] - (double)was[i]);
            if (c.how.kind != IMP_ML_LUT) continue;
            uint64_t bit = (uint64_t)i * c.how.bits, code = 0;
            for (uint32_t b = 0; b < c.how.bits; b++)
                code |= (uint64_t)(c.code[(bit + b) / 8] >> (bit + b) % 8 & 1) << b;
            uint64_t palette = (uint64_t)i / COLS / c.how.group;
            assert_true(w[i] == imp_f16_to_f32(c.table[(palette << c.how.bits) + code]));
        }
        if (c.how.kind == IMP_ML_LUT) assert_true(fabs(e - c.err2) <= 1e-3 * e);
        if (!(e < 0.5 * last)) fail_msg("%s: error %g, the form before had %g", forms[f], e, last);
        last = e;
        imp_ml_coded_deinit(&c);
    }
}

typedef struct text_set {
    int32_t id[64][24];
    imp_ml_text text[64];
} text_set;

static void random_texts(text_set *s, uint32_t n_vocab)
{
    rng r = {77};
    for (uint32_t i = 0; i < 64; i++) {
        s->text[i] = (imp_ml_text){s->id[i], 8 + (uint32_t)rng_below(&r, 16)};
        for (uint32_t k = 0; k < s->text[i].n; k++) s->id[i][k] = (int32_t)rng_below(&r, n_vocab);
    }
}

static imp_ml_distance distance(const imp_graph *g, const text_set *s, const char *form, bool repair)
{
    imp_ml_packing *p = malloc((imp_graph_n(g) + 1) * sizeof *p);
    imp_ml_tuned *t;
    imp_error err = {0};
    for (imp_val v = 0; v <= imp_graph_n(g); v++) assert_true(imp_ml_packing_parse(form, &p[v]));
    imp_ml_tuning o = {.text = s->text, .n_text = 64, .n_held_out = 16, .form = p, .repair = repair};
    if (imp_ml_tune(g, &o, &t, &err) != IMP_OK) fail_msg("%s: %s", form, err.text);
    imp_ml_distance d = t->held_out;
    imp_ml_tuned_free(t);
    free(p);
    return d;
}

/* On texts that nothing was fitted to the repaired model is nearer to the source than the one that was only rounded. */
static void repairs(void **state)
{
    static const char *const models[] = {"minilm", "distilbert", "modernbert", "nomic-bert"};
    static text_set s;
    imp_error err = {0};
    (void)state;
    for (size_t i = 0; i < IMP_COUNT(models); i++) {
        char path[256];
        imp_net *net;
        snprintf(path, sizeof path, "tests/data/models/%s", models[i]);
        if (imp_net_open(path, 0, &net, &err) != IMP_OK) fail_msg("%s", err.text);
        random_texts(&s, net->cfg.n_vocab);
        imp_ml_distance plain = distance(net->embed, &s, "lut3", false),
                        fitted = distance(net->embed, &s, "lut3", true),
                        half = distance(net->embed, &s, "fp16", false);
        if (!(1 - fitted.mean_cosine < 0.85 * (1 - plain.mean_cosine)))
            fail_msg("%s: cosine %.6f fitted, %.6f rounded", models[i], fitted.mean_cosine,
                     plain.mean_cosine);
        assert_true(half.worst_cosine > 0.99999);
        assert_int_equal(half.n_text, 16);
        imp_net_close(net);
    }
}

/* A decoder: logits of the last tokens; more bits, less divergence. */
static void repairs_decoders(void **state)
{
    static text_set s;
    imp_net *net;
    imp_error err = {0};
    (void)state;
    if (imp_net_open("tests/data/models/llama", 0, &net, &err) != IMP_OK) fail_msg("%s", err.text);
    random_texts(&s, net->cfg.n_vocab);
    imp_ml_distance two = distance(net->generate, &s, "lut2", true),
                    six = distance(net->generate, &s, "lut6", true);
    assert_true(two.kl > 0 && six.kl >= 0 && six.kl < 0.2 * two.kl);
    assert_true(six.mean_cosine > two.mean_cosine && six.top1 >= two.top1);
    imp_net_close(net);
}

/* A few channels of an input are a hundred times as loud as the others, which count as much in the output: one int8 scale for
 * all would leave those a step or two. They are still told apart, and two readers of the input agree on it. */
static void smooths_loud_channels(void **state)
{
    enum { N_VOCAB = 60, WIDTH = 64, OUT = 32 };
    static float table[N_VOCAB * WIDTH], w[2][OUT * WIDTH];
    static text_set s;
    rng r = {5};
    imp_error err = {0};
    (void)state;
    for (int i = 0; i < N_VOCAB * WIDTH; i++) table[i] = rng_f32(&r) * (i % WIDTH % 21 == 3 ? 100.0f : 1.0f);
    for (int i = 0; i < 2 * OUT * WIDTH; i++)
        w[i / (OUT * WIDTH)][i % (OUT * WIDTH)] = rng_f32(&r) * (i % WIDTH % 21 == 3 ? 0.01f : 1.0f);
    const imp_tensor t = {.dtype = IMP_F32, .n_dim = 2, .dim = {N_VOCAB, WIDTH, 1, 1}, .data = table};
    imp_graph *g = imp_graph_new();
    imp_val x = imp_g_embed(g, imp_g_weight(g, "table", &t), IMP_BY_TOKEN, 0), y[2];
    for (int i = 0; i < 2; i++) {
        const imp_tensor m = {.dtype = IMP_F32, .n_dim = 2, .dim = {OUT, WIDTH, 1, 1}, .data = w[i]};
        y[i] = imp_g_linear(g, x, imp_g_weight(g, i == 0 ? "a" : "b", &m), 0);
    }
    imp_g_output(g, imp_g_pool(g, imp_g_add(g, y[0], y[1]), IMP_POOL_CLS));
    if (imp_graph_finish(g, &err) != IMP_OK) fail_msg("%s", err.text);
    random_texts(&s, N_VOCAB);
    imp_ml_distance d = distance(g, &s, "w8a8", true);
    if (!(d.worst_cosine > 0.9995)) fail_msg("cosine %.6f", d.worst_cosine);
    imp_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(inverts),
                                       cmocka_unit_test(feeds_errors_back),
                                       cmocka_unit_test(codes),
                                       cmocka_unit_test(repairs),
                                       cmocka_unit_test(repairs_decoders),
                                       cmocka_unit_test(smooths_loud_channels)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
