/* tests/fmt_test.h - what the tests of src/fmt share: whole files, CRC-32 as zlib computes it, comparing dumps. */
#ifndef IMP_FMT_TEST_H
#define IMP_FMT_TEST_H

#include "test.h"

#include "tensor/tensor.h"

static inline imp_sys_file open_data(const char *path)
{
    imp_sys_file f;
    imp_error err = {0};
    if (imp_sys_file_open(path, false, &f, &err) != IMP_OK) fail_msg("%s", err.text);
    return f;
}

static inline uint32_t crc32_add(uint32_t crc, const void *p, size_t n)
{
    const uint8_t *s = p;
    crc = ~crc;
    for (size_t i = 0; i < n; i++) {
        crc ^= s[i];
        for (int k = 0; k < 8; k++) crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

/* CRC-32 of all elements as f32. */
static inline uint32_t tensor_crc(const imp_tensor *t)
{
    if (imp_tensor_n_elem(t) == 0) return 0;
    uint32_t crc = 0;
    uint64_t n = imp_tensor_n_col(t);
    float *row = malloc(n * sizeof *row);
    for (uint64_t r = 0; r < imp_tensor_n_row(t); r++) {
        imp_tensor_row_f32(t, r, row);
        crc = crc32_add(crc, row, n * sizeof *row);
    }
    free(row);
    return crc;
}

static inline void add_dims(imp_buf *b, const imp_tensor *t)
{
    for (uint32_t i = 0; i < t->n_dim; i++)
        imp_buf_fmt(b, "%s%llu", i > 0 ? "x" : "", (unsigned long long)t->dim[i]);
    if (t->n_dim == 0) imp_buf_str(b, "-");
}

/* Fails with the first line that differs. */
static inline void expect_text(const imp_buf *got, const char *path)
{
    imp_sys_file want = open_data(path);
    const char *a = got->data, *b = (const char *)want.data;
    size_t i = 0, line = 0;
    while (i < got->n && i < want.n && a[i] == b[i]) {
        if (a[i] == '\n') line = i + 1;
        i++;
    }
    if (i < got->n || i < want.n)
        fail_msg("%s: got '%.*s', expected '%.*s'", path, (int)strcspn(a + line, "\n"), a + line,
                 (int)IMP_MIN(want.n - line, 200), b + line);
    imp_sys_file_close(&want);
}

/* One to four random edits of n bytes: a new block (free it) of exactly *out_n bytes. */
static inline uint8_t *mutate(rng *r, const uint8_t *p, size_t n, size_t *out_n)
{
    static const uint64_t edge[] = {0,          1,          0x7f,       0x80,       0xff,      0x7fffffff,
                                    0x80000000, 0xffffffff, 1ull << 32, 1ull << 63, INT64_MAX, UINT64_MAX};
    uint8_t *q = malloc(2 * n + 16);
    memcpy(q, p, n);
    for (uint32_t k = 1 + rng_below(r, 4); k > 0 && n > 0; k--) {
        size_t at = rng_below(r, (uint32_t)n), len = 1 + rng_below(r, 16);
        uint64_t v = edge[rng_below(r, IMP_COUNT(edge))];
        switch (rng_below(r, 7)) {
        case 0: q[at] ^= (uint8_t)(1u << rng_below(r, 8)); break;
        case 1: q[at] = (uint8_t)rng_u64(r); break;
        case 2: memcpy(q + at, &v, IMP_MIN(n - at, 8)); break;
        case 3: memcpy(q + at, &v, IMP_MIN(n - at, 4)); break;
        case 4: n = at; break; /* cut */
        case 5:                /* remove some bytes */
            len = IMP_MIN(len, n - at);
            memmove(q + at, q + at + len, n - at - len);
            n -= len;
            break;
        default: /* copy some bytes to somewhere else */
            len = IMP_MIN(len, n - at);
            memmove(q + rng_below(r, (uint32_t)(n - len + 1)), q + at, len);
        }
    }
    *out_n = n;
    uint8_t *exact = malloc(n > 0 ? n : 1);
    memcpy(exact, q, n);
    free(q);
    return exact;
}

#endif
