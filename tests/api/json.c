/* tests/api/json.c - what the server writes reads back: floats bit for bit, strings, base64; what it reads takes one
 * allocation. */
#include "test.h"
#include "api/internal.h"

#include <math.h>

static char *f32_text(float x)
{
    static char out[64];
    imp_buf b = {0};
    imp_json_f32(&b, x);
    assert_true(b.n < sizeof out);
    memcpy(out, b.data, b.n + 1);
    imp_buf_deinit(&b);
    return out;
}

static void check_f32(float x)
{
    const char *s = f32_text(x);
    char *e;
    float y = strtof(s, &e);
    if (*e || memcmp(&x, &y, sizeof x) != 0) {
        if (x == 0 && y == 0) return; /* -0 becomes 0 */
        print_error("%a -> %s -> %a\n", (double)x, s, (double)y);
        fail();
    }
    json_t *o = json_loads(s, JSON_DECODE_ANY, NULL);
    assert_non_null(o);
    assert_true((float)json_number_value(o) == x);
    json_decref(o);
}

static void floats_read_back(void **state)
{
    (void)state;
    rng r = {42};
    for (int i = 0; i < 200000; i++) { /* any bit pattern, and the range of embeddings */
        uint32_t u = (uint32_t)rng_u64(&r);
        float x;
        memcpy(&x, &u, 4);
        if (isfinite(x)) check_f32(x);
        check_f32(rng_f32(&r));
        check_f32(rng_f32(&r) * 1e-3f);
    }
    for (int e = -45; e <= 38; e++) { /* around every power of ten */
        float p = powf(10, (float)e);
        float x = p;
        for (int k = 0; k < 20; k++, x = nextafterf(x, INFINITY)) check_f32(x);
        x = p;
        for (int k = 0; k < 20; k++, x = nextafterf(x, -INFINITY)) check_f32(-x);
    }
    assert_string_equal(f32_text(0.5f), "0.5");
    assert_string_equal(f32_text(-1), "-1");
    assert_string_equal(f32_text(0), "0");
    assert_string_equal(f32_text(12345), "12345");
    assert_string_equal(f32_text(100), "100");
    assert_string_equal(f32_text(0.00123f), "0.00123000005");
    assert_string_equal(f32_text(NAN), "null");
    assert_string_equal(f32_text(-INFINITY), "null");
}

static void strings_read_back(void **state)
{
    (void)state;
    rng r = {7};
    for (int i = 0; i < 20000; i++) {
        char in[64];
        size_t n = rng_below(&r, sizeof in);
        for (size_t k = 0; k < n; k++) in[k] = (char)(i & 1 ? rng_below(&r, 128) : rng_u64(&r));
        imp_buf b = {0};
        imp_json_str(&b, in, n);
        json_t *o = json_loadb(b.data, b.n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        assert_non_null(o); /* valid JSON and UTF-8 whatever came in */
        if (i & 1) {
            assert_int_equal(json_string_length(o), n);
            assert_memory_equal(json_string_value(o), in, n);
        }
        json_decref(o);
        imp_buf_deinit(&b);
    }
    imp_buf b = {0};
    imp_json_str(&b, "a\"\\\n\xff\x01\xe2\x82\xac", 9);
    assert_string_equal(b.data, "\"a\\\"\\\\\\n\\ufffd\\u0001\xe2\x82\xac\"");
    imp_buf_deinit(&b);
}

/* RFC 4648, section 10. */
static void base64_vectors(void **state)
{
    (void)state;
    static const char *const v[][2] = {{"", ""},
                                       {"f", "Zg=="},
                                       {"fo", "Zm8="},
                                       {"foo", "Zm9v"},
                                       {"foob", "Zm9vYg=="},
                                       {"fooba", "Zm9vYmE="},
                                       {"foobar", "Zm9vYmFy"}};
    for (size_t i = 0; i < IMP_COUNT(v); i++) {
        imp_buf b = {0};
        imp_json_base64(&b, v[i][0], strlen(v[i][0]));
        assert_int_equal(b.n, strlen(v[i][1]) + 2);
        assert_memory_equal(b.data + 1, v[i][1], b.n - 2);
        imp_buf_deinit(&b);
    }
}

/* jansson does not survive a failed allocation, so the reserve made before the parse must hold every tree. */
static void parsing_allocates_once(void **state)
{
    (void)state;
    static const char *const item[] = {
        "{}",          "[]",         "1",
        "\"\"",        "\"k%d\":{}", "\"%d\":1",
        "\"k%d\":[]",  "1.5",        "[{}]",
        "{\"a\":{}}",  "null",       "\"\\u00e9\\n\"",
        "\"%d\":\"\"", "[[[[]]]]",   "\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx%d\":{\"a\":1}"};
    json_set_alloc_funcs(imp_api_json_alloc, imp_api_json_free);
    for (size_t i = 0; i < IMP_COUNT(item); i++) {
        bool object = strchr(item[i], ':') && item[i][0] == '"';
        for (int n = 1; n <= 65537; n = n * 4 + (n & 1)) {
            imp_buf b = {0};
            imp_buf_str(&b, object ? "{" : "{\"a\":[");
            for (int k = 0; k < n; k++) {
                char one[96];
                snprintf(one, sizeof one, item[i], k);
                imp_buf_str(&b, k ? "," : "");
                imp_buf_str(&b, one);
            }
            imp_buf_str(&b, object ? "}" : "]}");
            json_t *o;
            uint64_t before = imp_sys_n_alloc();
            assert_int_equal(imp_api_json(b.data, b.n, &o, NULL), IMP_OK);
            if (imp_sys_n_alloc() - before != 1) print_error("%d times %s\n", n, item[i]);
            assert_int_equal(imp_sys_n_alloc() - before, 1);
            imp_api_json_release(&o);
            imp_buf_deinit(&b);
        }
    }
    for (size_t n = 1; n <= 4 << 20; n *= 3) { /* one long string, one long key */
        for (int key = 0; key < 2; key++) {
            imp_buf b = {0};
            imp_buf_str(&b, key ? "{\"" : "{\"a\":\"");
            for (size_t k = 0; k < n; k++) imp_buf_add(&b, "x", 1);
            imp_buf_str(&b, key ? "\":1}" : "\"}");
            json_t *o;
            uint64_t before = imp_sys_n_alloc();
            assert_int_equal(imp_api_json(b.data, b.n, &o, NULL), IMP_OK);
            assert_int_equal(imp_sys_n_alloc() - before, 1);
            imp_api_json_release(&o);
            imp_buf_deinit(&b);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(floats_read_back),
        cmocka_unit_test(strings_read_back),
        cmocka_unit_test(base64_vectors),
        cmocka_unit_test(parsing_allocates_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
