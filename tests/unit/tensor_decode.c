/* Decoders against other implementations: random blocks decoded by the gguf package's numpy code (bit for bit) and by
 * mlx (within the rounding of the type mlx computes in). Data: tools/gen/tensor_golden.py. */
#include "test.h"

#include <math.h>

#include "tensor/tensor.h"

static imp_sys_file open_data(const char *path)
{
    imp_sys_file f;
    imp_error err = {0};
    if (imp_sys_file_open(path, false, &f, &err) != IMP_OK) fail_msg("%s", err.text);
    return f;
}

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static void gguf_types_equal_numpy(void **state)
{
    (void)state;
    imp_sys_file f = open_data("tests/data/tensor/gguf.bin");
    uint32_t seen = 0;
    for (uint64_t at = 0; at < f.n; seen++) {
        uint32_t head[4]; /* id, blocks, elements, bytes a block */
        memcpy(head, f.data + at, sizeof head);
        at += sizeof head;
        imp_dtype t = imp_dtype_from_gguf(head[0]);
        const imp_dtype_info *d = imp_dtype_get(t);
        assert_int_not_equal(t, IMP_DTYPE_NONE);
        assert_int_equal(d->block_elem, head[2]);
        assert_int_equal(d->block_bytes, head[3]);
        uint64_t n = (uint64_t)head[1] * head[2], bytes;
        assert_int_equal(imp_dtype_bytes(t, n, &bytes), IMP_OK);
        assert_int_equal(bytes, (uint64_t)head[1] * head[3]);
        float *got = malloc(n * 4), *want = malloc(n * 4);
        /* Exactly sized copies, one byte off: ASan sees any access outside, UBSan any that needs alignment. */
        uint8_t *raw = malloc(bytes + 1);
        memcpy(raw + 1, f.data + at, bytes);
        memcpy(want, f.data + at + bytes, n * 4);
        d->to_f32(raw + 1, got, n);
        for (uint64_t i = 0; i < n; i++)
            if (bits_of(got[i]) != bits_of(want[i]) && !(isnan(got[i]) && isnan(want[i])))
                fail_msg("%s element %llu: %a, expected %a", d->name, (unsigned long long)i, (double)got[i],
                         (double)want[i]);
        at += bytes + n * 4;
        free(raw);
        free(got);
        free(want);
    }
    assert_int_equal(seen, 15);
    imp_sys_file_close(&f);
}

/* |ours - mlx| where mlx rounds the product and the sum to a type with machine epsilon eps: half an ulp of each, and
 * as much again because its scale * q may be fused or not. */
static double affine_bound(double product, double sum, double eps)
{
    return eps * (fabs(product) + fabs(sum));
}

static void affine_matches_mlx(void **state)
{
    (void)state;
    static const imp_dtype kind[] = {IMP_F32, IMP_F16, IMP_BF16};
    static const double eps[] = {0x1p-23, 0x1p-10, 0x1p-7};
    imp_sys_file f = open_data("tests/data/tensor/affine.bin");
    uint32_t seen = 0;
    for (uint64_t at = 0; at < f.n; seen++) {
        uint32_t h[5]; /* bits, group, scale type, rows, cols */
        memcpy(h, f.data + at, sizeof h);
        at += sizeof h;
        imp_tensor t = {.dtype = IMP_AFFINE,
                        .n_dim = 2,
                        .dim = {h[3], h[4], 1, 1},
                        .bits = h[0],
                        .group = h[1],
                        .scale_dtype = kind[h[2]]};
        uint64_t w_bytes = (uint64_t)h[3] * h[4] * h[0] / 8;
        uint64_t s_bytes = (uint64_t)h[3] * (h[4] / h[1]) * imp_dtype_get(t.scale_dtype)->block_bytes;
        uint8_t *w = malloc(w_bytes), *s = malloc(s_bytes), *b = malloc(s_bytes);
        memcpy(w, f.data + at, w_bytes);
        memcpy(s, f.data + at + w_bytes, s_bytes);
        memcpy(b, f.data + at + w_bytes + s_bytes, s_bytes);
        at += w_bytes + 2 * s_bytes;
        t.data = w;
        t.scales = s;
        t.biases = b;
        assert_int_equal(imp_tensor_row_bytes(&t) * h[3], w_bytes);
        assert_int_equal(imp_tensor_bytes(&t), w_bytes + 2 * s_bytes);
        float got[256], bias[8];
        for (uint32_t r = 0; r < h[3]; r++) {
            imp_tensor_row_f32(&t, r, got);
            imp_dtype_get(t.scale_dtype)->to_f32(b + r * s_bytes / h[3], bias, h[4] / h[1]);
            for (uint32_t c = 0; c < h[4]; c++, at += 4) {
                float want;
                memcpy(&want, f.data + at, 4);
                double m = (double)bias[c / h[1]];
                if (fabs((double)got[c] - (double)want) >
                    affine_bound((double)got[c] - m, (double)want, eps[h[2]]))
                    fail_msg("bits %u group %u scales %s [%u][%u]: %a, expected %a", h[0], h[1],
                             imp_dtype_get(t.scale_dtype)->name, r, c, (double)got[c], (double)want);
            }
        }
        free(w);
        free(s);
        free(b);
    }
    assert_int_equal(seen, 6 * 3 * 3);
    imp_sys_file_close(&f);
}

static void plain_types_are_the_language_conversions(void **state)
{
    (void)state;
    static const int64_t v[] = {0,      1,        -1,        127,       -128,      32767,
                                -32768, 16777217, INT32_MIN, INT32_MAX, INT64_MIN, INT64_MAX};
    float got[IMP_COUNT(v)];
#define CHECK(dtype, type)                                                                                   \
    do {                                                                                                     \
        type x[IMP_COUNT(v)];                                                                                \
        for (size_t i = 0; i < IMP_COUNT(v); i++) x[i] = (type)v[i];                                         \
        imp_dtype_get(dtype)->to_f32(x, got, IMP_COUNT(v));                                                  \
        for (size_t i = 0; i < IMP_COUNT(v); i++) assert_true(got[i] == (float)x[i]);                        \
    } while (0)
    CHECK(IMP_I8, int8_t);
    CHECK(IMP_I16, int16_t);
    CHECK(IMP_I32, int32_t);
    CHECK(IMP_I64, int64_t);
    CHECK(IMP_U8, uint8_t);
    CHECK(IMP_U16, uint16_t);
    CHECK(IMP_U32, uint32_t);
    CHECK(IMP_U64, uint64_t);
    CHECK(IMP_F32, float);
    CHECK(IMP_F64, double);
#undef CHECK
    const uint8_t b[] = {0, 1, 2};
    imp_dtype_get(IMP_BOOL)->to_f32(b, got, 3);
    assert_true(got[0] == 0 && got[1] == 1 && got[2] == 1);
}

static void table_is_consistent(void **state)
{
    (void)state;
    for (int i = 1; i < IMP_N_DTYPE; i++) {
        const imp_dtype_info *d = imp_dtype_get((imp_dtype)i);
        assert_int_equal(imp_dtype_from_name(d->name), i);
        if (d->gguf_id >= 0) assert_int_equal(imp_dtype_from_gguf((uint32_t)d->gguf_id), i);
        if (d->gguf_id >= 0) assert_string_equal(imp_dtype_gguf_name((uint32_t)d->gguf_id), d->name);
        if (d->st_name != NULL) assert_int_equal(imp_dtype_from_st(d->st_name, strlen(d->st_name)), i);
    }
    static const uint32_t refused[] = {9, 15, 16, 17, 18, 19, 21, 22, 29, 34, 35, 40};
    static const char *const name[] = {"q8_1",  "q8_k",  "iq2_xxs", "iq2_xs", "iq3_xxs", "iq1_s",
                                       "iq3_s", "iq2_s", "iq1_m",   "tq1_0",  "tq2_0",   "nvfp4"};
    for (size_t i = 0; i < IMP_COUNT(refused); i++) {
        assert_int_equal(imp_dtype_from_gguf(refused[i]), IMP_DTYPE_NONE);
        assert_string_equal(imp_dtype_gguf_name(refused[i]), name[i]);
    }
    assert_null(imp_dtype_gguf_name(1000));
    assert_null(imp_dtype_gguf_name(UINT32_MAX));
    assert_int_equal(imp_dtype_from_st("BF1", 3), IMP_DTYPE_NONE);
    assert_int_equal(imp_dtype_from_name("q9_9"), IMP_DTYPE_NONE);
}

static void sizes_are_checked(void **state)
{
    (void)state;
    uint64_t out;
    assert_int_equal(imp_dtype_bytes(IMP_Q4_0, 33, &out), IMP_FORMAT);
    assert_int_equal(imp_dtype_bytes(IMP_Q4_K, 512, &out), IMP_OK);
    assert_int_equal(out, 288);
    assert_int_equal(imp_dtype_bytes(IMP_F32, UINT64_MAX / 4 + 1, &out), IMP_TOO_LARGE);
    assert_int_equal(imp_dtype_bytes(IMP_F32, UINT64_MAX / 4, &out), IMP_OK);
    assert_int_equal(imp_dtype_bytes(IMP_Q8_0, UINT64_MAX - 31, &out), IMP_TOO_LARGE);
    assert_int_equal(imp_dtype_bytes(IMP_AFFINE, 64, &out), IMP_INVALID);
    assert_int_equal(imp_dtype_bytes((imp_dtype)1000, 64, &out), IMP_INVALID);
}

static void views_of_stacked_weights(void **state)
{
    (void)state;
    float x[2 * 3 * 4], row[4];
    for (int i = 0; i < 24; i++) x[i] = (float)i;
    imp_tensor t = {.dtype = IMP_F32, .n_dim = 3, .dim = {2, 3, 4, 1}, .data = x};
    assert_int_equal(imp_tensor_n_elem(&t), 24);
    assert_int_equal(imp_tensor_n_row(&t), 6);
    assert_int_equal(imp_tensor_n_col(&t), 4);
    imp_tensor v = imp_tensor_index(&t, 1);
    assert_int_equal(v.n_dim, 2);
    assert_int_equal(v.dim[0], 3);
    assert_int_equal(v.dim[1], 4);
    imp_tensor_row_f32(&v, 2, row);
    assert_true(row[0] == 20 && row[3] == 23);
    v = imp_tensor_index(&v, 1);
    assert_int_equal(v.n_dim, 1);
    v = imp_tensor_index(&v, 3);
    assert_int_equal(v.n_dim, 0);
    imp_tensor_row_f32(&v, 0, row);
    assert_true(row[0] == 19);
    /* An affine one: experts [2][1][32], 8 bits, one group a row. */
    uint8_t q[64];
    float s[2] = {1, 10}, b[2] = {0, 1}, out[32];
    for (int i = 0; i < 64; i++) q[i] = (uint8_t)(i % 32);
    imp_tensor a = {.dtype = IMP_AFFINE,
                    .n_dim = 3,
                    .dim = {2, 1, 32, 1},
                    .data = q,
                    .bits = 8,
                    .group = 32,
                    .scale_dtype = IMP_F32,
                    .scales = s,
                    .biases = b};
    v = imp_tensor_index(&a, 1);
    imp_tensor_row_f32(&v, 0, out);
    for (int i = 0; i < 32; i++) assert_true(out[i] == (float)(10 * i + 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gguf_types_equal_numpy),
        cmocka_unit_test(affine_matches_mlx),
        cmocka_unit_test(plain_types_are_the_language_conversions),
        cmocka_unit_test(table_is_consistent),
        cmocka_unit_test(sizes_are_checked),
        cmocka_unit_test(views_of_stacked_weights),
    };
    return cmocka_run_group_tests_name("tensor_decode", tests, NULL, NULL);
}
