/* GGUF files made to hurt: every field at its borders, wrong alignments, overlaps, every truncation, 10,000 mutations.
 * Each must give a clean error or open to something that can be read to the last element: the body of fuzz/gguf.c. */
#include "fmt_test.h"

#include "../../fuzz/gguf.c"

/* Positions of the fields of the small file that build() makes. */
enum field {
    VERSION,
    N_TENSOR,
    N_KV,
    KEY_LEN,
    KEY_TYPE,
    STR_LEN,
    ALIGN_TYPE,
    ALIGN,
    ARRAY_TYPE,
    ARRAY_LEN,
    ARRAY_STR_LEN,
    INTS_KEY,
    INTS_TYPE,
    INTS_LEN,
    BOOL_VALUE,
    NAME_LEN,
    N_DIM,
    DIM_0,
    DIM_1,
    TYPE,
    OFFSET,
    NAME_2,
    DIM_2,
    OFFSET_2,
    N_FIELD
};

static const uint8_t field_bytes[N_FIELD] = {
    [VERSION] = 4,    [N_TENSOR] = 8, [N_KV] = 8,       [KEY_LEN] = 8,   [KEY_TYPE] = 4,      [STR_LEN] = 8,
    [ALIGN_TYPE] = 4, [ALIGN] = 4,    [ARRAY_TYPE] = 4, [ARRAY_LEN] = 8, [ARRAY_STR_LEN] = 8, [INTS_KEY] = 1,
    [INTS_TYPE] = 4,  [INTS_LEN] = 8, [BOOL_VALUE] = 1, [NAME_LEN] = 8,  [N_DIM] = 4,         [DIM_0] = 8,
    [DIM_1] = 8,      [TYPE] = 4,     [OFFSET] = 8,     [NAME_2] = 1,    [DIM_2] = 8,         [OFFSET_2] = 8,
};

typedef struct small {
    imp_buf b;
    size_t pos[N_FIELD];
    size_t header_bytes;
} small;

static void put(small *s, int field, uint64_t v, size_t bytes)
{
    if (field >= 0) s->pos[field] = s->b.n;
    imp_buf_add(&s->b, &v, bytes);
}

static void put_str(small *s, int len_field, const char *str)
{
    put(s, len_field, strlen(str), 8);
    imp_buf_str(&s->b, str);
}

/* align_text: general.alignment as this string instead of the number 32. */
static small build(const char *align_text)
{
    small s = {0};
    imp_buf_str(&s.b, "GGUF");
    put(&s, VERSION, 3, 4);
    put(&s, N_TENSOR, 2, 8);
    put(&s, N_KV, 5, 8);
    put_str(&s, KEY_LEN, "general.name");
    put(&s, KEY_TYPE, IMP_GGUF_STRING, 4);
    put_str(&s, STR_LEN, "small");
    put_str(&s, -1, "general.alignment");
    put(&s, ALIGN_TYPE, align_text != NULL ? IMP_GGUF_STRING : IMP_GGUF_U32, 4);
    if (align_text != NULL)
        put_str(&s, -1, align_text);
    else
        put(&s, ALIGN, 32, 4);
    put_str(&s, -1, "a");
    put(&s, -1, IMP_GGUF_ARRAY, 4);
    put(&s, ARRAY_TYPE, IMP_GGUF_STRING, 4);
    put(&s, ARRAY_LEN, 2, 8);
    put_str(&s, ARRAY_STR_LEN, "first");
    put_str(&s, -1, "second");
    put(&s, -1, 1, 8);
    put(&s, INTS_KEY, 'n', 1);
    put(&s, -1, IMP_GGUF_ARRAY, 4);
    put(&s, INTS_TYPE, IMP_GGUF_U64, 4);
    put(&s, INTS_LEN, 2, 8);
    put(&s, -1, 7, 8);
    put(&s, -1, 8, 8);
    put_str(&s, -1, "b");
    put(&s, -1, IMP_GGUF_BOOL, 4);
    put(&s, BOOL_VALUE, 1, 1);
    put_str(&s, NAME_LEN, "t0"); /* f32 [4][8], 128 bytes */
    put(&s, N_DIM, 2, 4);
    put(&s, DIM_0, 8, 8);
    put(&s, DIM_1, 4, 8);
    put(&s, TYPE, 0, 4);
    put(&s, OFFSET, 0, 8);
    put(&s, -1, 2, 8); /* q8_0 [2][32], 68 bytes */
    put(&s, -1, 't', 1);
    put(&s, NAME_2, '1', 1);
    put(&s, -1, 2, 4);
    put(&s, DIM_2, 32, 8);
    put(&s, -1, 2, 8);
    put(&s, -1, 8, 4);
    put(&s, OFFSET_2, 128, 8);
    s.header_bytes = s.b.n;
    while (s.b.n % 32 != 0) put(&s, -1, 0, 1);
    for (int i = 0; i < 128 + 68; i++) put(&s, -1, (uint64_t)i, 1);
    assert_false(s.b.failed);
    return s;
}

/* Parse a copy of exactly that size; the fuzz body first checks what any input must obey. */
static imp_status parse(const void *p, size_t n, imp_error *err)
{
    uint8_t *copy = malloc(n > 0 ? n : 1);
    memcpy(copy, p, n);
    (void)LLVMFuzzerTestOneInput(copy, n);
    imp_gguf *g;
    *err = (imp_error){0};
    imp_status s = imp_gguf_parse(copy, n, &g, err);
    imp_gguf_close(g);
    free(copy);
    return s;
}

static imp_status parse_with(int field, uint64_t v, imp_error *err)
{
    small s = build(NULL);
    memcpy(s.b.data + s.pos[field], &v, field_bytes[field]);
    imp_status st = parse(s.b.data, s.b.n, err);
    imp_buf_deinit(&s.b);
    return st;
}

static void the_small_file_opens(void **state)
{
    (void)state;
    small s = build(NULL);
    imp_error err;
    if (parse(s.b.data, s.b.n, &err) != IMP_OK) fail_msg("%s", err.text);
    imp_buf_deinit(&s.b);
}

static void every_field_at_its_borders(void **state)
{
    (void)state;
    static const uint64_t v[] = {0,          1,         0x7fffffff, 0x80000000,       0x80000001, 0xffffffff,
                                 1ull << 32, INT64_MAX, 1ull << 63, (1ull << 63) + 1, UINT64_MAX};
    imp_error err;
    for (int f = 0; f < N_FIELD; f++)
        for (size_t i = 0; i < IMP_COUNT(v); i++) {
            if (field_bytes[f] < 8 && v[i] >> (8 * field_bytes[f]) != 0) continue;
            imp_status s = parse_with(f, v[i], &err);
            if (v[i] > 1 && s == IMP_OK) fail_msg("field %d = %llu opens", f, (unsigned long long)v[i]);
        }
    assert_int_equal(parse_with(N_TENSOR, 0, &err), IMP_OK);
    assert_int_equal(parse_with(N_TENSOR, 1, &err), IMP_OK);
    assert_int_equal(parse_with(N_TENSOR, 3, &err), IMP_FORMAT);
    assert_int_equal(parse_with(DIM_0, 0, &err), IMP_FORMAT);
    assert_int_equal(parse_with(N_DIM, 0, &err), IMP_FORMAT);
    assert_int_equal(parse_with(N_DIM, 5, &err), IMP_FORMAT);
    assert_int_equal(parse_with(TYPE, 7777, &err), IMP_FORMAT);
    assert_int_equal(parse_with(KEY_TYPE, 13, &err), IMP_FORMAT);
    assert_int_equal(parse_with(KEY_LEN, 0, &err), IMP_FORMAT);
    assert_int_equal(parse_with(BOOL_VALUE, 2, &err), IMP_FORMAT);
    assert_int_equal(parse_with(INTS_TYPE, IMP_GGUF_ARRAY, &err), IMP_UNSUPPORTED); /* nested */
}

/* Products that wrap to something small: 2^32 * 2^32 elements, 2^61 elements of 8 bytes, 2^62 of 4. */
static void products_that_overflow(void **state)
{
    (void)state;
    imp_error err;
    small s = build(NULL);
    uint64_t big = 1ull << 32;
    memcpy(s.b.data + s.pos[DIM_0], &big, 8);
    memcpy(s.b.data + s.pos[DIM_1], &big, 8);
    assert_int_equal(parse(s.b.data, s.b.n, &err), IMP_FORMAT);
    assert_non_null(strstr(err.text, "counted"));
    imp_buf_deinit(&s.b);
    assert_int_equal(parse_with(INTS_LEN, 1ull << 61, &err), IMP_FORMAT);
    assert_int_equal(parse_with(ARRAY_LEN, 1ull << 61, &err), IMP_FORMAT);
    assert_int_equal(parse_with(DIM_1, 1ull << 59, &err), IMP_FORMAT);
    assert_int_equal(parse_with(DIM_1, 1ull << 60, &err), IMP_FORMAT);
    assert_int_equal(parse_with(OFFSET_2, UINT64_MAX - 31, &err), IMP_FORMAT); /* offset + bytes wraps */
}

static void alignments(void **state)
{
    (void)state;
    imp_error err;
    static const uint32_t bad[] = {0, 1, 3, 4, 24, 33, 1 << 21, 0x80000000, UINT32_MAX};
    for (size_t i = 0; i < IMP_COUNT(bad); i++) {
        assert_int_equal(parse_with(ALIGN, bad[i], &err), IMP_FORMAT);
        assert_non_null(strstr(err.text, "general.alignment"));
    }
    small s = build("32");
    assert_int_equal(parse(s.b.data, s.b.n, &err), IMP_FORMAT);
    assert_string_equal(err.field, "general.alignment");
    imp_buf_deinit(&s.b);
}

static void places_of_tensors(void **state)
{
    (void)state;
    imp_error err;
    assert_int_equal(parse_with(OFFSET_2, 144, &err), IMP_FORMAT);
    assert_non_null(strstr(err.text, "no multiple of the alignment"));
    assert_int_equal(parse_with(OFFSET_2, 96, &err), IMP_FORMAT); /* overlaps the first */
    assert_non_null(strstr(err.text, "overlap"));
    assert_int_equal(parse_with(OFFSET_2, 0, &err), IMP_FORMAT);
    assert_int_equal(parse_with(OFFSET_2, 160, &err), IMP_FORMAT); /* ends behind the file */
    assert_int_equal(parse_with(OFFSET, 128, &err), IMP_FORMAT);
    assert_int_equal(parse_with(DIM_2, 64, &err), IMP_FORMAT);
    assert_int_equal(parse_with(DIM_2, 33, &err), IMP_FORMAT); /* no whole blocks */
    assert_int_equal(parse_with(NAME_2, '0', &err), IMP_FORMAT);
    assert_non_null(strstr(err.text, "twice"));
    assert_int_equal(parse_with(INTS_KEY, 'a', &err), IMP_FORMAT);
    assert_non_null(strstr(err.text, "twice"));
}

static void every_truncation(void **state)
{
    (void)state;
    imp_error err;
    small s = build(NULL);
    for (size_t n = 0; n < s.b.n; n++) {
        if (parse(s.b.data, n, &err) == IMP_OK) fail_msg("%zu of %zu bytes open", n, s.b.n);
        assert_true(err.position <= s.b.n);
    }
    imp_buf_deinit(&s.b);
    imp_sys_file f = open_data("tests/data/fmt/writer.gguf");
    for (size_t n = 0; n < f.n - 48; n++) /* the last tensor is padded */
        if (parse(f.data, n, &err) == IMP_OK) fail_msg("%zu bytes of writer.gguf open", n);
    imp_sys_file_close(&f);
}

/* Names of a hostile file reach messages only in printable form. */
static void names_are_quoted(void **state)
{
    (void)state;
    imp_error err;
    assert_int_equal(parse_with(NAME_2, '\n', &err), IMP_OK);
    small s = build(NULL);
    s.b.data[s.pos[NAME_2]] = '\n';
    s.b.data[s.pos[OFFSET_2]] = 1;
    assert_int_equal(parse(s.b.data, s.b.n, &err), IMP_FORMAT);
    assert_null(strchr(err.text, '\n'));
    assert_non_null(strstr(err.text, "'t?'"));
    imp_buf_deinit(&s.b);
}

static void mutations(void **state)
{
    (void)state;
    rng r = {20260728};
    small s = build(NULL);
    imp_sys_file f = open_data("tests/data/fmt/writer.gguf");
    for (int i = 0; i < 10000; i++) {
        size_t n;
        uint8_t *p = i % 2 ? mutate(&r, f.data, f.n, &n) : mutate(&r, (const uint8_t *)s.b.data, s.b.n, &n);
        (void)LLVMFuzzerTestOneInput(p, n);
        free(p);
    }
    imp_sys_file_close(&f);
    imp_buf_deinit(&s.b);
}

/* Every allocation fails in turn: NOMEM, nothing leaks (seen by the sanitiser), nothing else changes. */
static void out_of_memory(void **state)
{
    (void)state;
    small s = build(NULL);
    imp_gguf *g = NULL;
    for (uint64_t n = 1;; n++) {
        imp_error err = {0};
        imp_sys_fail_at(n);
        imp_status st = imp_gguf_parse((const uint8_t *)s.b.data, s.b.n, &g, &err);
        imp_sys_fail_at(0);
        if (st == IMP_OK) {
            assert_true(n > 5);
            break;
        }
        assert_int_equal(st, IMP_NOMEM);
        assert_null(g);
        assert_true(err.text[0] != 0);
    }
    imp_gguf_close(g);
    imp_buf_deinit(&s.b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_small_file_opens),   cmocka_unit_test(every_field_at_its_borders),
        cmocka_unit_test(products_that_overflow), cmocka_unit_test(alignments),
        cmocka_unit_test(places_of_tensors),      cmocka_unit_test(every_truncation),
        cmocka_unit_test(names_are_quoted),       cmocka_unit_test(mutations),
        cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests_name("fmt_gguf_hostile", tests, NULL, NULL);
}
