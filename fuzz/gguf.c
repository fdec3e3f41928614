/* fuzz/gguf.c - any bytes as a GGUF file: it opens or it gives a reason; what opens can be read to its last element.
 *
 * Run by `make fuzz`; its corpus is replayed by `make test`, and tests/unit/fmt_hostile.c feeds it mutations. */
#include <stdlib.h>

#include "fmt/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint64_t sink; /* what was read goes here, so that it is read */

static void require(bool ok)
{
    if (!ok) abort();
}

/* A key as the C string that the getters take. */
static char *key_of(imp_str s)
{
    char *z = malloc(s.n + 1);
    require(z != NULL);
    memcpy(z, s.p, s.n);
    z[s.n] = 0;
    return z;
}

static uint64_t sum_bytes(imp_str s)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < s.n; i++) sum += (unsigned char)s.p[i];
    return sum;
}

static uint64_t read_array(const imp_gguf *g, const char *key)
{
    imp_gguf_type elem;
    uint64_t n, sum = 0;
    if (!imp_gguf_array(g, key, &elem, &n)) return 0;
    int64_t *ints = malloc(n * sizeof *ints + 1);
    float *floats = malloc(n * sizeof *floats + 1);
    imp_str *strs = malloc(n * sizeof *strs + 1);
    require(ints != NULL && floats != NULL && strs != NULL);
    bool is_int = imp_gguf_array_i64(g, key, ints, n), is_float = imp_gguf_array_f32(g, key, floats, n);
    bool is_str = imp_gguf_array_strs(g, key, strs, n);
    require(is_str == (elem == IMP_GGUF_STRING));
    for (uint64_t i = 0; is_str && i < n; i++) {
        imp_str one = imp_gguf_array_str(g, key, i);
        require(one.p == strs[i].p && one.n == strs[i].n);
        sum += sum_bytes(one);
    }
    require(imp_gguf_array_str(g, key, n).p == NULL);
    sum += n > 0 && is_int ? (uint64_t)ints[n - 1] : 0;
    sum += n > 0 && is_float && floats[n - 1] > 0;
    free(ints);
    free(floats);
    free(strs);
    return sum;
}

static uint64_t read_keys(const imp_gguf *g)
{
    uint64_t sum = 0, u;
    int64_t s;
    double d;
    bool b;
    imp_str str;
    imp_gguf_type type;
    for (uint64_t i = 0; i < imp_gguf_n_kv(g); i++) {
        imp_str name = imp_gguf_key(g, i, &type);
        char *key = key_of(name);
        if (strlen(key) == name.n) {
            require(imp_gguf_has(g, key));
            sum += imp_gguf_u64(g, key, &u) && u == 1;
            sum += imp_gguf_i64(g, key, &s) && s == 1;
            sum += imp_gguf_f64(g, key, &d) && d > 1;
            sum += imp_gguf_bool(g, key, &b) && b;
            require(imp_gguf_str(g, key, &str) == (type == IMP_GGUF_STRING));
            if (type == IMP_GGUF_STRING) sum += sum_bytes(str);
            sum += read_array(g, key);
        }
        free(key);
    }
    return sum;
}

static uint64_t read_tensors(const imp_gguf *g)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < imp_gguf_n_tensor(g); i++) {
        imp_str name;
        const imp_tensor *t = imp_gguf_tensor_at(g, i, &name);
        uint64_t n_col = imp_tensor_n_col(t), n_row = imp_tensor_n_row(t);
        require(imp_tensor_bytes(t) <= imp_gguf_file_bytes(g));
        float *row = malloc(n_col * sizeof *row);
        require(row != NULL);
        for (uint64_t r = 0; r < n_row; r++) {
            imp_tensor_row_f32(t, r, row);
            sum += row[n_col - 1] > 0;
        }
        free(row);
    }
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    imp_gguf *g = NULL;
    imp_error err = {0};
    imp_status s = imp_gguf_parse(data, size, &g, &err);
    require((s == IMP_OK) == (g != NULL));
    if (s != IMP_OK) {
        require(err.status == s && err.text[0] != 0 && strchr(err.text, '\n') == NULL);
        return 0;
    }
    sink = read_keys(g) + read_tensors(g);
    imp_gguf_close(g);
    return 0;
}
