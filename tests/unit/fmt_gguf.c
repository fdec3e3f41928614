/* The GGUF reader on files that others wrote: everything it finds equals what the gguf package's reader finds (dumps
 * by tools/gen/fmt_golden.py); the typed getters; files that are refused by name. */
#include "fmt_test.h"

#include "fmt/gguf.h"

static void add_array(imp_buf *b, const imp_gguf *g, const char *key)
{
    imp_gguf_type elem;
    uint64_t n, len;
    uint32_t crc = 0;
    assert_true(imp_gguf_array(g, key, &elem, &n));
    if (elem == IMP_GGUF_STRING) {
        for (uint64_t i = 0; i < n; i++) {
            imp_str s = imp_gguf_array_str(g, key, i);
            len = s.n;
            crc = crc32_add(crc, &len, 8);
            crc = crc32_add(crc, s.p, s.n);
        }
    } else if (elem == IMP_GGUF_F32 || elem == IMP_GGUF_F64) {
        float *v = malloc(n * sizeof *v);
        assert_true(imp_gguf_array_f32(g, key, v, n));
        crc = crc32_add(0, v, n * sizeof *v);
        free(v);
    } else {
        int64_t *v = malloc(n * sizeof *v);
        assert_true(imp_gguf_array_i64(g, key, v, n));
        crc = crc32_add(0, v, n * sizeof *v);
        free(v);
    }
    imp_buf_fmt(b, "%d %llu %08x", (int)elem, (unsigned long long)n, crc);
}

/* The same text as dump() of tools/gen/fmt_golden.py. */
static void dump(imp_buf *b, const imp_gguf *g, const uint8_t *base, bool with_data)
{
    for (uint64_t i = 0; i < imp_gguf_n_kv(g); i++) {
        imp_gguf_type type;
        imp_str name = imp_gguf_key(g, i, &type), s;
        char *key = strndup(name.p, name.n);
        int64_t v;
        uint64_t u;
        double d;
        bool yes;
        imp_buf_fmt(b, "kv %s %d ", key, (int)type);
        if (type == IMP_GGUF_ARRAY) {
            add_array(b, g, key);
        } else if (imp_gguf_str(g, key, &s)) {
            imp_buf_fmt(b, "%zu %08x", s.n, crc32_add(0, s.p, s.n));
        } else if (imp_gguf_i64(g, key, &v)) {
            imp_buf_fmt(b, "%lld", (long long)v);
        } else if (imp_gguf_u64(g, key, &u)) {
            imp_buf_fmt(b, "%llu", (unsigned long long)u);
        } else if (imp_gguf_bool(g, key, &yes)) {
            imp_buf_fmt(b, "%d", yes);
        } else {
            assert_true(imp_gguf_f64(g, key, &d));
            memcpy(&u, &d, 8);
            imp_buf_fmt(b, "%016llx", (unsigned long long)u);
        }
        imp_buf_str(b, "\n");
        free(key);
    }
    for (uint64_t i = 0; i < imp_gguf_n_tensor(g); i++) {
        imp_str name;
        const imp_tensor *t = imp_gguf_tensor_at(g, i, &name);
        imp_buf_fmt(b, "tensor %.*s %s ", (int)name.n, name.p, imp_dtype_get(t->dtype)->name);
        add_dims(b, t);
        imp_buf_fmt(b, " %llu ", (unsigned long long)((const uint8_t *)t->data - base));
        if (with_data)
            imp_buf_fmt(b, "%08x\n", tensor_crc(t));
        else
            imp_buf_str(b, "-\n");
    }
}

static void compare(const char *path, const char *want, uint64_t extra, bool with_data)
{
    imp_sys_file f = open_data(path);
    uint8_t *p = calloc(1, f.n + extra);
    memcpy(p, f.data, f.n);
    imp_gguf *g;
    imp_error err = {0};
    imp_buf b = {0};
    if (imp_gguf_parse(p, f.n + extra, &g, &err) != IMP_OK) fail_msg("%s: %s", path, err.text);
    assert_int_equal(imp_gguf_file_bytes(g), f.n + extra);
    dump(&b, g, p, with_data);
    expect_text(&b, want);
    imp_buf_deinit(&b);
    imp_gguf_close(g);
    free(p);
    imp_sys_file_close(&f);
}

static void equals_the_gguf_package(void **state)
{
    (void)state;
    compare("tests/data/fmt/writer.gguf", "tests/data/fmt/writer.gguf.dump", 0, true);
    compare("models/stories260K.gguf", "tests/data/fmt/stories260K.gguf.dump", 0, true);
    static const char *const vocab[] = {"bert-bge", "deepseek-llm", "falcon",
                                        "gpt-2",    "llama-spm",    "starcoder"};
    for (size_t i = 0; i < IMP_COUNT(vocab); i++) {
        char path[100], want[100];
        snprintf(path, sizeof path, "tests/data/vocab/%s.gguf", vocab[i]);
        snprintf(want, sizeof want, "tests/data/fmt/%s.gguf.dump", vocab[i]);
        compare(path, want, 0, true);
    }
}

/* Only the header of this one is checked in: the data section is made here, as large as the shapes say. */
static void header_of_a_generated_model(void **state)
{
    (void)state;
    uint64_t n = 4096 * 256 / 256 * 210 + 256 * 4; /* embedding q6_k, final norm f32 */
    n += 4 * (2 * 256 * 4 + (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 768) / 256 * 144);
    compare("tests/data/fmt/tiny.head", "tests/data/fmt/tiny.head.dump", n, false);
}

static void typed_getters(void **state)
{
    (void)state;
    imp_gguf *g;
    imp_error err = {0};
    if (imp_gguf_open("tests/data/fmt/writer.gguf", &g, &err) != IMP_OK) fail_msg("%s", err.text);
    uint64_t u;
    int64_t i, three[3];
    double d;
    bool b;
    float f[3];
    imp_str s;
    assert_true(imp_gguf_u64(g, "t.u64", &u) && u == UINT64_MAX);
    assert_false(imp_gguf_i64(g, "t.u64", &i)); /* out of range */
    assert_true(imp_gguf_f64(g, "t.u64", &d) && d == 0x1p64);
    assert_false(imp_gguf_u64(g, "t.i64", &u)); /* negative */
    assert_true(imp_gguf_i64(g, "t.i64", &i) && i == INT64_MIN);
    assert_true(imp_gguf_f64(g, "t.i8", &d) && d == -100);
    assert_false(imp_gguf_u64(g, "t.f32", &u));
    assert_true(imp_gguf_f64(g, "t.f32", &d) && d == (double)1.1f);
    assert_false(imp_gguf_bool(g, "t.u8", &b));
    assert_false(imp_gguf_u64(g, "t.yes", &u));
    assert_false(imp_gguf_str(g, "t.u8", &s));
    assert_true(imp_gguf_str(g, "t.str", &s) && s.n == 9 && memcmp(s.p, "k\xc3\xa4se\0nul", 9) == 0);
    assert_false(imp_gguf_has(g, "t.none"));
    assert_false(imp_gguf_u64(g, "t.none", &u));
    assert_true(imp_gguf_array_i64(g, "t.a_i32", three, 3) && three[2] == -3);
    assert_true(imp_gguf_array_i64(g, "t.a_bool", three, 3) && three[0] == 1 && three[1] == 0);
    assert_false(imp_gguf_array_i64(g, "t.a_i32", three, 2)); /* not its length */
    assert_false(imp_gguf_array_i64(g, "t.a_f32", three, 3));
    assert_true(imp_gguf_array_f32(g, "t.a_i32", f, 3) && f[0] == -1);
    assert_null(imp_gguf_array_str(g, "t.a_str", 4).p);
    assert_null(imp_gguf_array_str(g, "t.a_i32", 0).p);
    assert_null(imp_gguf_tensor(g, "none"));
    assert_int_equal(imp_gguf_tensor(g, "f32_4d")->dim[0], 2);
    imp_gguf_close(g);
}

/* The file with one 32-bit field changed. */
static imp_status parse_patched(const char *path, uint64_t at, uint32_t value, imp_error *err)
{
    imp_sys_file f = open_data(path);
    uint8_t *p = malloc(f.n);
    memcpy(p, f.data, f.n);
    memcpy(p + at, &value, 4);
    imp_gguf *g;
    *err = (imp_error){0};
    imp_status s = imp_gguf_parse(p, f.n, &g, err);
    imp_gguf_close(g);
    free(p);
    imp_sys_file_close(&f);
    return s;
}

static void versions(void **state)
{
    (void)state;
    static const char path[] = "tests/data/fmt/writer.gguf";
    imp_error err;
    assert_int_equal(parse_patched(path, 4, 2, &err), IMP_OK);
    assert_int_equal(parse_patched(path, 4, 3, &err), IMP_OK);
    static const uint32_t bad[] = {0, 1, 4, UINT32_MAX};
    for (size_t i = 0; i < IMP_COUNT(bad); i++) {
        assert_int_equal(parse_patched(path, 4, bad[i], &err), IMP_UNSUPPORTED);
        assert_non_null(strstr(err.text, "version"));
    }
    assert_int_equal(parse_patched(path, 4, 3u << 24, &err), IMP_UNSUPPORTED);
    assert_non_null(strstr(err.text, "big-endian"));
    assert_int_equal(parse_patched(path, 0, 0x46554746, &err), IMP_FORMAT);
}

/* Where the type of the file's first tensor stands: name f32_1d, one dimension. */
static uint64_t first_type(void)
{
    imp_sys_file f = open_data("tests/data/fmt/writer.gguf");
    uint64_t at = 0;
    for (uint64_t i = 0; i + 6 < f.n && at == 0; i++)
        if (memcmp(f.data + i, "f32_1d", 6) == 0) at = i + 6 + 4 + 8;
    imp_sys_file_close(&f);
    return at;
}

static void refused_types_are_named(void **state)
{
    (void)state;
    static const uint32_t id[] = {9, 15, 16, 17, 18, 19, 21, 22, 29, 34, 35, 40};
    imp_error err;
    for (size_t i = 0; i < IMP_COUNT(id); i++) {
        assert_int_equal(parse_patched("tests/data/fmt/writer.gguf", first_type(), id[i], &err),
                         IMP_UNSUPPORTED);
        assert_non_null(strstr(err.text, imp_dtype_gguf_name(id[i])));
        assert_non_null(strstr(err.text, "f32_1d"));
    }
    assert_int_equal(parse_patched("tests/data/fmt/writer.gguf", first_type(), 99, &err), IMP_FORMAT);
    assert_int_equal(parse_patched("tests/data/fmt/writer.gguf", first_type(), 12, &err),
                     IMP_FORMAT); /* rows of 7 */
    assert_non_null(strstr(err.text, "block"));
    assert_int_equal(err.position, first_type());
}

static void not_a_gguf_file(void **state)
{
    (void)state;
    imp_gguf *g;
    imp_error err = {0};
    assert_int_equal(imp_gguf_open("tests/data/fmt/none.gguf", &g, &err), IMP_NOT_FOUND);
    assert_null(g);
    assert_int_equal(imp_gguf_open("Makefile", &g, &err), IMP_FORMAT);
    assert_non_null(strstr(err.text, "Makefile"));
    assert_int_equal(imp_gguf_open("tests/data", &g, &err), IMP_IO);
    assert_int_equal(imp_gguf_open("Makefile", &g, NULL), IMP_FORMAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_gguf_package), cmocka_unit_test(header_of_a_generated_model),
        cmocka_unit_test(typed_getters),           cmocka_unit_test(versions),
        cmocka_unit_test(refused_types_are_named), cmocka_unit_test(not_a_gguf_file),
    };
    return cmocka_run_group_tests_name("fmt_gguf", tests, NULL, NULL);
}
