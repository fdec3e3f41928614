/* The safetensors reader: files written by the safetensors package and by mlx (tools/gen/fmt_golden.py), headers made
 * to hurt, every truncation, 10,000 mutations. */
#include "fmt_test.h"

#include "../../fuzz/safetensors.c"

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void compare(const char *path, const char *want, const char *key, const char *value)
{
    imp_safetensors *s;
    imp_error err = {0};
    imp_buf b = {0};
    if (imp_safetensors_open(path, &s, &err) != IMP_OK) fail_msg("%s", err.text);
    uint64_t n = imp_safetensors_n(s);
    const char **name = malloc(n * sizeof *name);
    for (uint64_t i = 0; i < n; i++) (void)imp_safetensors_at(s, i, &name[i]);
    qsort(name, n, sizeof *name, by_name);
    for (uint64_t i = 0; i < n; i++) {
        const imp_tensor *t = imp_safetensors_get(s, name[i]);
        assert_int_equal((uintptr_t)t->data % imp_dtype_get(t->dtype)->block_bytes, 0);
        imp_buf_fmt(&b, "%s ", name[i]);
        add_dims(&b, t);
        imp_buf_fmt(&b, " %08x\n", tensor_crc(t));
    }
    expect_text(&b, want);
    assert_string_equal(imp_safetensors_metadata(s, key), value);
    assert_null(imp_safetensors_metadata(s, "none"));
    assert_null(imp_safetensors_get(s, "none"));
    imp_buf_deinit(&b);
    free(name);
    imp_safetensors_close(s);
}

static void equals_other_writers(void **state)
{
    (void)state;
    compare("tests/data/fmt/numpy.safetensors", "tests/data/fmt/numpy.safetensors.dump", "note",
            "gr\xc3\xbcn");
    compare("tests/data/fmt/mlx.safetensors", "tests/data/fmt/mlx.safetensors.dump", "format", "mlx");
}

/* Parse header + n_data bytes (0, 1, 2, ...) from a block of exactly that size; NULL when it is refused. */
static imp_status parse(const char *header, size_t n_data, imp_error *err, imp_safetensors **out,
                        uint8_t **bytes)
{
    uint64_t n_header = strlen(header);
    size_t n = 8 + (size_t)n_header + n_data;
    uint8_t *p = malloc(n);
    memcpy(p, &n_header, 8);
    memcpy(p + 8, header, (size_t)n_header);
    for (size_t i = 0; i < n_data; i++) p[8 + n_header + i] = (uint8_t)i;
    *err = (imp_error){0};
    (void)LLVMFuzzerTestOneInput(p, n);
    imp_status s = imp_safetensors_parse(p, n, out, err);
    *bytes = p;
    return s;
}

static void refused(const char *header, size_t n_data, imp_status want, const char *why)
{
    imp_error err;
    imp_safetensors *s;
    uint8_t *p;
    imp_status got = parse(header, n_data, &err, &s, &p);
    if (got != want) fail_msg("%.100s: status %d (%s), expected %d", header, got, err.text, want);
    assert_null(s);
    if (strstr(err.text, why) == NULL) fail_msg("%.100s: '%s' does not say '%s'", header, err.text, why);
    free(p);
}

static void accepted(const char *header, size_t n_data, uint64_t n)
{
    imp_error err;
    imp_safetensors *s;
    uint8_t *p;
    if (parse(header, n_data, &err, &s, &p) != IMP_OK) fail_msg("%s: %s", header, err.text);
    assert_int_equal(imp_safetensors_n(s), n);
    imp_safetensors_close(s);
    free(p);
}

#define T(name, dtype, shape, from, to)                                                                      \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}"

static void headers(void **state)
{
    (void)state;
    accepted("{}", 0, 0);
    accepted("{}    ", 0, 0);
    accepted("{" T("a", "F32", "[2]", 0, 8) "}", 8, 1);
    accepted("{" T("b", "U8", "[2]", 8, 10) "," T("a", "F32", "[2]", 0, 8) "}", 10, 2); /* any order */
    accepted("{" T("a", "F32", "[0,9]", 0, 0) "," T("b", "U8", "[]", 0, 1) "}", 1, 2);
    accepted("{\"__metadata__\":{\"x\":\"y\"}," T("a", "F32", "[2]", 0, 8) "}", 8, 1);

    accepted("{\"__metadata__\":null}", 0, 0); /* as mlx writes it */

    refused("{}", 1, IMP_FORMAT, "1 bytes of data");
    refused("[]", 0, IMP_FORMAT, "'{'");
    refused(" {}", 0, IMP_FORMAT, "'{'");
    refused("{ ", 0, IMP_FORMAT, "JSON");
    refused("{}x", 0, IMP_FORMAT, "JSON");
    refused("{\"a\":1}", 0, IMP_FORMAT, "'a'");
    refused("{" T("a", "F32", "[2]", 0, 8) "," T("a", "F32", "[2]", 8, 16) "}", 16, IMP_FORMAT, "duplicate");
    refused("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
            IMP_FORMAT, "duplicate");
    refused("{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[2]", 4, 12) "}", 12, IMP_FORMAT, "overlap");
    refused("{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[2]", 0, 8) "}", 8, IMP_FORMAT, "overlap");
    refused("{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[2]", 12, 20) "}", 20, IMP_FORMAT, "hole");
    refused("{" T("a", "F32", "[2]", 4, 12) "}", 12, IMP_FORMAT, "hole");
    refused("{" T("a", "F32", "[2]", 0, 8) "}", 12, IMP_FORMAT, "tensors take 8");
    refused("{" T("a", "F32", "[2]", 0, 8) "}", 7, IMP_FORMAT, "outside");
    refused("{" T("a", "F32", "[2]", 8, 0) "}", 8, IMP_FORMAT, "outside");
    refused("{" T("a", "F32", "[3]", 0, 8) "}", 8, IMP_FORMAT, "need 12");
    refused("{" T("a", "F32", "[4611686018427387906]", 0, 8) "}", 8, IMP_FORMAT,
            "counted"); /* * 4 wraps to 8 */
    refused("{" T("a", "U8", "[4294967296,4294967296]", 0, 0) "}", 0, IMP_FORMAT, "counted");
    refused("{" T("a", "F32", "[-2]", 0, 8) "}", 8, IMP_FORMAT, "whole number");
    refused("{" T("a", "F32", "[2.0]", 0, 8) "}", 8, IMP_FORMAT, "whole number");
    refused("{" T("a", "F32", "[18446744073709551618]", 0, 8) "}", 8, IMP_FORMAT, "whole number");
    refused("{" T("a", "F32", "2", 0, 8) "}", 8, IMP_FORMAT, "shape");
    refused("{" T("a", "F32", "[1,1,1,1,2]", 0, 8) "}", 8, IMP_UNSUPPORTED, "5 dimensions");
    refused("{" T("a", "F8_E4M3", "[2]", 0, 2) "}", 2, IMP_UNSUPPORTED, "F8_E4M3");
    refused("{" T("a", "F32", "[2]", 0.5, 8) "}", 8, IMP_FORMAT, "data_offsets");
    refused("{" T("a", "F32", "[2]", -1, 8) "}", 8, IMP_FORMAT, "data_offsets");
    refused("{" T("", "F32", "[2]", 0, 8) "}", 8, IMP_FORMAT, "name");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, IMP_FORMAT, "exactly");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}}", 8, IMP_FORMAT,
            "exactly");
    refused("{\"a\":{\"dtype\":7,\"shape\":[2],\"data_offsets\":[0,8]}}", 8, IMP_FORMAT, "dtype");
    refused("{\"__metadata__\":{\"x\":1}}", 0, IMP_FORMAT, "__metadata__");
    refused("{\"__metadata__\":[]}", 0, IMP_FORMAT, "__metadata__");
    refused("{\"\\u0000\":1}", 0, IMP_FORMAT, "JSON");
    refused("{\"\xff\":1}", 0, IMP_FORMAT, "JSON");
}

static void header_lengths(void **state)
{
    (void)state;
    static const uint64_t v[] = {0,          1,          3,          100000000,  100000001,
                                 0x7fffffff, 0x80000000, 1ull << 32, 1ull << 63, UINT64_MAX};
    for (size_t i = 0; i < IMP_COUNT(v); i++) {
        uint8_t p[10] = {0, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
        memcpy(p, &v[i], 8);
        imp_safetensors *s;
        imp_error err = {0};
        imp_status want = v[i] > 100000000 ? IMP_TOO_LARGE : IMP_FORMAT;
        assert_int_equal(imp_safetensors_parse(p, sizeof p, &s, &err), want);
        assert_true(err.text[0] != 0);
    }
}

static char *repeat(const char *before, const char *what, size_t n, const char *after)
{
    imp_buf b = {0};
    imp_buf_str(&b, before);
    for (size_t i = 0; i < n; i++) imp_buf_str(&b, what);
    imp_buf_str(&b, after);
    assert_false(b.failed);
    return b.data;
}

static void bombs(void **state)
{
    (void)state;
    char *deep = repeat("{\"a\":", "[", 60000, ""), *wide = repeat("{\"a\":[", "{},", 2000000, "{}]}");
    char *many = repeat("{\"a\":[", "[],", 100000, "0]}"), *name = repeat("{\"", "x", 1000, "\":{}}");
    refused(deep, 0, IMP_TOO_LARGE, "deep");
    refused(wide, 0, IMP_TOO_LARGE, "values");
    refused(many, 0, IMP_FORMAT, "exactly");
    refused(name, 0, IMP_FORMAT, "1000 bytes");
    free(deep);
    free(wide);
    free(many);
    free(name);
}

/* The format lets data begin anywhere; what we hand out is aligned to its element and equal to the file's bytes. */
static void unaligned_data_is_copied(void **state)
{
    (void)state;
    for (int pad = 0; pad < 8; pad++) {
        char header[200];
        snprintf(header, sizeof header, "{%*s%s}", pad, "",
                 T("u", "U8", "[1]", 0, 1) "," T("f", "F64", "[2]", 1, 17));
        imp_error err;
        imp_safetensors *s;
        uint8_t *p, want[16];
        if (parse(header, 17, &err, &s, &p) != IMP_OK) fail_msg("%s", err.text);
        const imp_tensor *t = imp_safetensors_get(s, "f");
        for (int i = 0; i < 16; i++) want[i] = (uint8_t)(i + 1);
        assert_int_equal((uintptr_t)t->data % 8, 0);
        assert_memory_equal(t->data, want, 16);
        imp_safetensors_close(s);
        free(p);
    }
}

static void every_truncation(void **state)
{
    (void)state;
    imp_sys_file f = open_data("tests/data/fmt/numpy.safetensors");
    for (size_t n = 0; n < f.n; n++) {
        uint8_t *p = malloc(n > 0 ? n : 1);
        imp_safetensors *s;
        imp_error err = {0};
        memcpy(p, f.data, n);
        if (imp_safetensors_parse(p, n, &s, &err) == IMP_OK) fail_msg("%zu bytes open", n);
        assert_true(err.text[0] != 0);
        free(p);
    }
    imp_sys_file_close(&f);
}

static void mutations(void **state)
{
    (void)state;
    rng r = {20260729};
    imp_sys_file f = open_data("tests/data/fmt/numpy.safetensors"),
                 m = open_data("tests/data/fmt/mlx.safetensors");
    for (int i = 0; i < 10000; i++) {
        const imp_sys_file *from = i % 2 ? &f : &m;
        size_t n;
        uint8_t *p = mutate(&r, from->data, from->n, &n);
        (void)LLVMFuzzerTestOneInput(p, n);
        free(p);
    }
    imp_sys_file_close(&f);
    imp_sys_file_close(&m);
}

static void out_of_memory(void **state)
{
    (void)state;
    imp_safetensors *s = NULL;
    imp_sys_file f = open_data("tests/data/fmt/numpy.safetensors");
    uint8_t *p = malloc(f.n + 1);
    memcpy(p + 1, f.data, f.n); /* unaligned: the copies are allocations too */
    for (uint64_t n = 1;; n++) {
        imp_error err = {0};
        imp_sys_fail_at(n);
        imp_status st = imp_safetensors_parse(p + 1, f.n, &s, &err);
        imp_sys_fail_at(0);
        if (st == IMP_OK) {
            assert_true(n > 8);
            break;
        }
        assert_int_equal(st, IMP_NOMEM);
        assert_null(s);
    }
    imp_safetensors_close(s);
    free(p);
    imp_sys_file_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_other_writers),
        cmocka_unit_test(headers),
        cmocka_unit_test(header_lengths),
        cmocka_unit_test(bombs),
        cmocka_unit_test(unaligned_data_is_copied),
        cmocka_unit_test(every_truncation),
        cmocka_unit_test(mutations),
        cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests_name("fmt_safetensors", tests, NULL, NULL);
}
