/* Encoders against other implementations: types of 32 a block byte for byte against the gguf package's numpy code, all
 * types' errors against ggml's quantisers (tools/gen/encode_golden.py), decoded by decoders that are tested elsewhere. */
#include "test.h"

#include <math.h>

#include "tensor/convert.h"

typedef struct golden {
    imp_sys_file f;
    uint32_t n_row, n_col;
    const float *x, *w;
    uint64_t records; /* where they begin */
} golden;

static golden open_golden(void)
{
    golden g;
    imp_error err = {0};
    if (imp_sys_file_open("tests/data/tensor/encode.bin", true, &g.f, &err) != IMP_OK)
        fail_msg("%s", err.text);
    memcpy(&g.n_row, g.f.data, 4);
    memcpy(&g.n_col, g.f.data + 4, 4);
    g.x = (const float *)(const void *)(g.f.data + 8);
    g.w = g.x + (size_t)g.n_row * g.n_col;
    g.records = 8 + ((uint64_t)g.n_row + 1) * g.n_col * 4;
    return g;
}

typedef struct record {
    imp_dtype type;
    uint32_t n;
    const uint8_t *bytes;
    double err, weighted;
} record;

static bool next_record(const golden *g, uint64_t *at, record *r)
{
    uint32_t head[2];
    if (*at >= g->f.n) return false;
    memcpy(head, g->f.data + *at, sizeof head);
    r->type = imp_dtype_from_gguf(head[0]);
    r->n = head[1];
    r->bytes = g->f.data + *at + 8;
    memcpy(&r->err, r->bytes + r->n, 8);
    memcpy(&r->weighted, r->bytes + r->n + 8, 8);
    *at += 8 + r->n + 16;
    return true;
}

/* Encode and decode; the squared error as a share of each row's squares, over the first n_row rows. Exactly sized and odd: sanitizers see every slip. */
static double error_of(const golden *g, imp_dtype t, const float *w, uint32_t n_row, uint8_t *keep)
{
    const imp_dtype_info *d = imp_dtype_get(t);
    uint64_t bytes;
    double all = 0;
    assert_int_equal(imp_dtype_bytes(t, g->n_col, &bytes), IMP_OK);
    uint8_t *raw = malloc(bytes + 1);
    float *back = malloc(g->n_col * sizeof *back);
    for (uint32_t r = 0; r < n_row; r++) {
        const float *x = g->x + (size_t)r * g->n_col;
        d->from_f32(x, w, raw + 1, g->n_col);
        if (keep) memcpy(keep + r * bytes, raw + 1, bytes);
        d->to_f32(raw + 1, back, g->n_col);
        double sum = 0, squares = 0;
        for (uint32_t i = 0; i < g->n_col; i++) {
            double e = (double)back[i] - (double)x[i];
            assert_true(isfinite(back[i]));
            sum += e * e * (w ? (double)w[i] : 1);
            squares += (double)x[i] * (double)x[i] * (w ? (double)w[i] : 1);
        }
        all += sum / squares;
    }
    free(raw);
    free(back);
    return all;
}

static void simple_types_equal_numpy(void **state)
{
    (void)state;
    golden g = open_golden();
    record r;
    int seen = 0;
    for (uint64_t at = g.records; next_record(&g, &at, &r);) {
        if (r.n == 0) continue;
        uint8_t *got = malloc(r.n);
        (void)error_of(&g, r.type, NULL, g.n_row, got);
        for (uint32_t i = 0; i < r.n; i++)
            if (got[i] != r.bytes[i])
                fail_msg("%s byte %u: %02x, numpy has %02x", imp_dtype_get(r.type)->name, i, got[i],
                         r.bytes[i]);
        free(got);
        seen++;
    }
    assert_int_equal(seen, 7);
    imp_sys_file_close(&g.f);
}

/* The last row holds extremes and is left out of the sums here. */
static void no_worse_than_ggml(void **state)
{
    (void)state;
    golden g = open_golden();
    record r;
    int seen = 0;
    for (uint64_t at = g.records; next_record(&g, &at, &r);) {
        if (r.err == 0) continue;
        const char *name = imp_dtype_get(r.type)->name;
        double plain = error_of(&g, r.type, NULL, g.n_row - 1, NULL);
        double weighted = error_of(&g, r.type, g.w, g.n_row - 1, NULL);
        print_message("%-5s error / ggml's %.3f, weighted %.3f\n", name, plain / r.err,
                      weighted / r.weighted);
        if (plain > r.err * 1.0001) fail_msg("%s: error %g, ggml %g", name, plain, r.err);
        if (weighted > r.weighted * 1.0001)
            fail_msg("%s: weighted error %g, ggml %g", name, weighted, r.weighted);
        seen++;
    }
    assert_int_equal(seen, 10);
    imp_sys_file_close(&g.f);
}

/* Weights move the error to where it counts less, and what is on the grid already stays there. */
static void weights_count(void **state)
{
    (void)state;
    static const imp_dtype type[] = {IMP_Q4_0, IMP_Q4_1, IMP_Q5_0, IMP_Q5_1, IMP_Q8_0,
                                     IMP_Q2_K, IMP_Q3_K, IMP_Q4_K, IMP_Q5_K, IMP_Q6_K};
    rng rand = {42};
    float x[256], w[256], a[256], b[256];
    uint8_t raw[1024];
    for (size_t t = 0; t < sizeof type / sizeof *type; t++) {
        const imp_dtype_info *d = imp_dtype_get(type[t]);
        double with = 0, without = 0;
        for (int k = 0; k < 50; k++) {
            for (int i = 0; i < 256; i++) x[i] = rng_f32(&rand), w[i] = i % 2 ? 1000.0f : 1;
            d->from_f32(x, w, raw, 256);
            d->to_f32(raw, a, 256);
            d->from_f32(x, NULL, raw, 256);
            d->to_f32(raw, b, 256);
            for (int i = 1; i < 256; i += 2) {
                with += pow((double)(a[i] - x[i]), 2);
                without += pow((double)(b[i] - x[i]), 2);
            }
        }
        if (!(with < without)) fail_msg("%s: error %g with weights, %g without", d->name, with, without);
    }
}

static void grid_is_found_again(void **state)
{
    (void)state;
    rng rand = {7};
    float x[256], y[256];
    uint8_t raw[144], again[144];
    const imp_dtype_info *d = imp_dtype_get(IMP_Q4_K);
    for (int k = 0; k < 20; k++) {
        for (size_t i = 0; i < sizeof raw; i++) raw[i] = (uint8_t)rng_u64(&rand);
        uint16_t unit = imp_f32_to_f16(0.01f), unit_min = imp_f32_to_f16(0.02f);
        memcpy(raw, &unit, 2);
        memcpy(raw + 2, &unit_min, 2);
        /* the largest scale and minimum use the whole range, and every run its whole grid, as a quantiser leaves it */
        raw[4] |= 63, raw[8] |= 63;
        for (int s = 0; s < 8; s++) {
            int shift = (s & 1) * 4;
            uint8_t *q = raw + 16 + (s >> 1) * 32;
            q[0] = (uint8_t)((q[0] & ~(15 << shift)));
            q[1] = (uint8_t)(q[1] | 15 << shift);
        }
        d->to_f32(raw, x, 256);
        d->from_f32(x, NULL, again, 256);
        d->to_f32(again, y, 256);
        double err = 0, sum = 0;
        for (int i = 0; i < 256; i++) err += pow((double)(x[i] - y[i]), 2), sum += pow((double)x[i], 2);
        if (err > 1e-5 * sum) fail_msg("a block on the grid moved by %g of its size", sqrt(err / sum));
    }
}

static void whole_tensors(void **state)
{
    (void)state;
    golden g = open_golden();
    imp_pool *pool;
    assert_int_equal(imp_pool_new(3, &pool), IMP_OK);
    imp_tensor t = {.dtype = IMP_F32, .n_dim = 2, .dim = {g.n_row, g.n_col, 1, 1}, .data = g.x};
    imp_tensor_range range;
    assert_int_equal(imp_tensor_scan(&t, pool, &range), IMP_OK);
    assert_true(range.max_abs == 60000 && range.n_odd == 0);
    uint64_t bytes;
    assert_int_equal(imp_dtype_bytes(IMP_Q5_K, (uint64_t)g.n_row * g.n_col, &bytes), IMP_OK);
    uint8_t *a = malloc(bytes), *b = malloc(bytes);
    imp_convert_error e = {0};
    (void)error_of(&g, IMP_Q5_K, g.w, g.n_row, b);
    assert_int_equal(imp_tensor_convert(&t, 0, 4, IMP_Q5_K, g.w, pool, a, &e), IMP_OK);
    assert_int_equal(imp_tensor_convert(&t, 4, g.n_row - 4, IMP_Q5_K, g.w, pool, a + bytes / g.n_row * 4, &e),
                     IMP_OK);
    assert_memory_equal(a, b, bytes);
    double err = 0, sum = 0;
    float row[1024];
    t.dtype = IMP_Q5_K;
    t.data = a;
    for (uint32_t r = 0; r < g.n_row; r++) {
        imp_tensor_row_f32(&t, r, row);
        for (uint32_t i = 0; i < g.n_col; i++) {
            double v = (double)g.x[(size_t)r * g.n_col + i], d = v - (double)row[i];
            err += (double)g.w[i] * d * d;
            sum += (double)g.w[i] * v * v;
        }
    }
    assert_true(fabs(e.weighted_err - err) < 1e-9 * err && fabs(e.weighted_sum - sum) < 1e-9 * sum);
    free(a);
    free(b);
    imp_pool_free(pool);
    imp_sys_file_close(&g.f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(simple_types_equal_numpy),
        cmocka_unit_test(no_worse_than_ggml),
        cmocka_unit_test(weights_count),
        cmocka_unit_test(grid_is_found_again),
        cmocka_unit_test(whole_tensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
