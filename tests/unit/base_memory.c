/* Arenas, buffers, maps, checked sizes, and what they do when memory runs out. */
#include "test.h"

#include "base/base.h"

static void checked_sizes(void **state)
{
    (void)state;
    static const uint64_t v[] = {
        0, 1, 2, 3, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 1ull << 63, UINT64_MAX - 1, UINT64_MAX};
    for (size_t i = 0; i < IMP_COUNT(v); i++)
        for (size_t k = 0; k < IMP_COUNT(v); k++) {
            unsigned __int128 sum = (unsigned __int128)v[i] + v[k], product = (unsigned __int128)v[i] * v[k];
            uint64_t out;
            assert_int_equal(imp_add_u64(v[i], v[k], &out), sum <= UINT64_MAX);
            if (sum <= UINT64_MAX) assert_true(out == (uint64_t)sum);
            assert_int_equal(imp_mul_u64(v[i], v[k], &out), product <= UINT64_MAX);
            if (product <= UINT64_MAX) assert_true(out == (uint64_t)product);
        }
    uint64_t out;
    assert_true(imp_align_u64(33, 32, &out) && out == 64);
    assert_true(imp_align_u64(64, 32, &out) && out == 64);
    assert_false(imp_align_u64(UINT64_MAX - 3, 32, &out));
}

static void arena_hands_out_disjoint_zeroed_memory(void **state)
{
    (void)state;
    enum { N = 300 };
    unsigned char *p[N];
    size_t size[N];
    rng r = {42};
    imp_arena *a = imp_arena_new(100);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < N; i++) {
            size[i] = rng_below(&r, 2000);
            p[i] = imp_arena_alloc(a, size[i]);
            assert_non_null(p[i]);
            assert_int_equal((uintptr_t)p[i] % 16, 0);
            for (size_t k = 0; k < size[i]; k++) assert_int_equal(p[i][k], 0);
            memset(p[i], i & 0xff, size[i]);
        }
        for (int i = 0; i < N; i++)
            for (size_t k = 0; k < size[i]; k++) assert_int_equal(p[i][k], i & 0xff);
        imp_arena_reset(a);
    }
    uint64_t before = imp_sys_n_alloc();
    for (int i = 0; i < 50; i++) assert_non_null(imp_arena_alloc(a, 1000));
    assert_int_equal(imp_sys_n_alloc(), before); /* the chunk was kept */
    assert_null(imp_arena_array(a, SIZE_MAX / 2, 4));
    assert_null(imp_arena_alloc(a, SIZE_MAX));
    imp_arena_free(a);
}

static void buffer_remembers_a_failed_append(void **state)
{
    (void)state;
    imp_buf b = {0};
    imp_buf_str(&b, "ab");
    imp_buf_fmt(&b, "%d-%s", 12, "c");
    assert_string_equal(b.data, "ab12-c");
    assert_int_equal(b.n, 6);
    for (int i = 0; i < 1000; i++) imp_buf_add(&b, "\0x", 2);
    assert_int_equal(b.n, 2006);
    imp_sys_fail_at(1);
    char big[5000] = {0};
    imp_buf_add(&b, big, sizeof big);
    imp_sys_fail_at(0);
    assert_true(b.failed);
    assert_null(imp_buf_take(&b));
    assert_null(b.data);
    char *empty = imp_buf_take(&b);
    assert_string_equal(empty, "");
    imp_free(empty);
}

static void map_finds_what_was_put(void **state)
{
    (void)state;
    enum { N = 20000 };
    static char key[N][12];
    imp_map *m = imp_map_new(3);
    for (uint32_t i = 0; i < N; i++) {
        int n = snprintf(key[i], sizeof key[i], "k%u", i * 7919u);
        assert_int_equal(imp_map_put(m, key[i], (size_t)n, i), IMP_OK);
    }
    assert_int_equal(imp_map_put(m, key[5], strlen(key[5]), 1), IMP_INVALID);
    assert_int_equal(imp_map_put(m, "", 0, 77), IMP_OK);
    uint32_t v;
    for (uint32_t i = 0; i < N; i++) {
        assert_true(imp_map_get(m, key[i], strlen(key[i]), &v));
        assert_int_equal(v, i);
    }
    assert_true(imp_map_get(m, NULL, 0, &v) && v == 77);
    assert_false(imp_map_get(m, "absent", 6, &v));
    assert_false(imp_map_get(m, key[0], strlen(key[0]) - 1, &v));
    imp_map_free(m);
}

static void map_survives_running_out_of_memory(void **state)
{
    (void)state;
    static const char *const key[] = {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"};
    imp_map *m = imp_map_new(1);
    size_t n = 0;
    imp_sys_fail_at(1); /* the first growth */
    while (n < IMP_COUNT(key) && imp_map_put(m, key[n], 1, (uint32_t)n) == IMP_OK) n++;
    imp_sys_fail_at(0);
    assert_in_range(n, 1, IMP_COUNT(key) - 1);
    for (size_t i = 0; i < IMP_COUNT(key); i++) {
        uint32_t v;
        assert_int_equal(imp_map_get(m, key[i], 1, &v), i < n);
    }
    imp_map_free(m);
}

static void errors_are_one_clean_line(void **state)
{
    (void)state;
    imp_error e;
    assert_int_equal(imp_fail_at(&e, IMP_FORMAT, 17, "bad \n name \x01%s", "x"), IMP_FORMAT);
    assert_string_equal(e.text, "bad ? name ?x");
    assert_int_equal(e.position, 17);
    char long_text[1000];
    memset(long_text, 'a', sizeof long_text);
    memcpy(long_text + sizeof e.text - 3, "\xe2\x82\xac", 3); /* a character that the end of the text cuts */
    long_text[999] = '\0';
    (void)imp_fail(&e, IMP_IO, "%s", long_text);
    assert_true(imp_utf8_valid(e.text, strlen(e.text)));
    assert_int_equal(imp_fail(NULL, IMP_IO, "x"), IMP_IO);
    assert_string_equal(imp_status_name(IMP_NO_FIT), "NO_FIT");
}

static void files_say_what_is_wrong(void **state)
{
    (void)state;
    imp_sys_file f;
    imp_error e;
    assert_int_equal(imp_sys_file_open("/nonexistent/x", true, &f, &e), IMP_NOT_FOUND);
    assert_non_null(strstr(e.text, "/nonexistent/x"));
    assert_int_equal(imp_sys_file_open("/tmp", true, &f, &e), IMP_IO);
    assert_non_null(strstr(e.text, "folder"));
    char path[] = "/tmp/impetus-test-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    for (int map = 0; map < 2; map++) {
        assert_int_equal(imp_sys_file_write(path, "hello", 5, &e), IMP_OK);
        assert_int_equal(imp_sys_file_open(path, map, &f, &e), IMP_OK);
        assert_int_equal(f.n, 5);
        assert_memory_equal(f.data, "hello", 5);
        imp_sys_file_close(&f);
    }
    for (uint64_t n = 1; n <= 3; n++) { /* a failed write leaves the old contents */
        imp_sys_fail_at(n);
        imp_status s = imp_sys_file_write(path, "other", 5, &e);
        imp_sys_fail_at(0);
        assert_int_not_equal(s, IMP_OK);
        assert_int_equal(imp_sys_file_open(path, false, &f, &e), IMP_OK);
        assert_memory_equal(f.data, "hello", 5);
        imp_sys_file_close(&f);
    }
    assert_int_equal(imp_sys_file_write(path, "", 0, &e), IMP_OK);
    assert_int_equal(imp_sys_file_open(path, true, &f, &e), IMP_OK);
    assert_int_equal(f.n, 0);
    imp_sys_file_close(&f);
    remove(path);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(checked_sizes),
        cmocka_unit_test(arena_hands_out_disjoint_zeroed_memory),
        cmocka_unit_test(buffer_remembers_a_failed_append),
        cmocka_unit_test(map_finds_what_was_put),
        cmocka_unit_test(map_survives_running_out_of_memory),
        cmocka_unit_test(errors_are_one_clean_line),
        cmocka_unit_test(files_say_what_is_wrong),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
