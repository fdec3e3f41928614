/* The quantiser when the system fails it: every allocation, every write, one after the other. Nothing may be left behind,
 * and every refusal is one sentence. */
#include "test.h"

#include <unistd.h>

#include "engine/quantize.h"
#include "fmt/gguf.h"

static const char *const STORIES = "models/stories260K.gguf";
static char out_path[64], tmp_path[72];

static imp_status run(imp_pool *pool, imp_dtype type, imp_error *err, imp_quant_report *r)
{
    imp_quant_options opt = {.pool = pool};
    for (int g = 0; g < IMP_N_GROUP; g++) opt.type[g] = type;
    return imp_quantize(STORIES, out_path, &opt, r, err);
}

static void every_call_may_fail(void **state)
{
    (void)state;
    imp_pool *pool;
    assert_int_equal(imp_pool_new(2, &pool), IMP_OK);
    uint64_t n_failed = 0;
    bool reached = true;
    for (uint64_t n = 1; reached; n++) { /* until a run has fewer calls */
        imp_error err = {0};
        imp_quant_report r;
        uint64_t before = imp_sys_n_call();
        imp_sys_fail_at(n);
        imp_status s = run(pool, IMP_Q8_0, &err, &r);
        imp_sys_fail_at(0);
        imp_quant_report_deinit(&r);
        reached = imp_sys_n_call() - before >= n;
        if (s == IMP_OK) { /* a file that cannot be mapped is read */
            assert_int_equal(unlink(out_path), 0);
            continue;
        }
        n_failed++;
        assert_true(s == IMP_NOMEM || s == IMP_IO);
        assert_true(err.text[0] != '\0');
        if (access(out_path, F_OK) == 0 || access(tmp_path, F_OK) == 0)
            fail_msg("call %d leaves a file", (int)n);
    }
    print_message("%d calls\n", (int)n_failed);
    assert_true(n_failed > 50);
    imp_pool_free(pool);
}

/* What is written is what was read: keys, shapes, untouched tensors; values as near as the type allows. */
static void the_file_holds_the_model(void **state)
{
    (void)state;
    imp_pool *pool;
    imp_error err = {0};
    imp_quant_report r;
    imp_gguf *a, *b;
    assert_int_equal(imp_pool_new(1, &pool), IMP_OK);
    assert_int_equal(run(pool, IMP_Q8_0, &err, &r), IMP_OK);
    assert_int_equal(imp_gguf_open(STORIES, &a, &err), IMP_OK);
    assert_int_equal(imp_gguf_open(out_path, &b, &err), IMP_OK);
    assert_int_equal(imp_gguf_n_tensor(a), imp_gguf_n_tensor(b));
    assert_int_equal(r.n_tensor, imp_gguf_n_tensor(a));
    assert_int_equal(r.to_bytes, imp_gguf_file_bytes(b));
    for (uint64_t i = 0; i < imp_gguf_n_kv(a); i++) {
        imp_gguf_type type;
        imp_str key = imp_gguf_key(a, i, &type), bytes = imp_gguf_kv_bytes(a, i);
        bool found = false;
        for (uint64_t k = 0; k < imp_gguf_n_kv(b); k++) {
            imp_str other = imp_gguf_kv_bytes(b, k);
            found = found || (other.n == bytes.n && memcmp(other.p, bytes.p, bytes.n) == 0);
        }
        bool rewritten =
            key.n == strlen("general.file_type") && memcmp(key.p, "general.file_type", key.n) == 0;
        if (!found && !rewritten) fail_msg("key %.*s was not copied", (int)key.n, key.p);
    }
    uint64_t n_changed = 0, v;
    for (uint64_t i = 0; i < imp_gguf_n_tensor(a); i++) {
        imp_str na, nb;
        const imp_tensor *x = imp_gguf_tensor_at(a, i, &na), *y = imp_gguf_tensor_at(b, i, &nb);
        assert_true(na.n == nb.n && memcmp(na.p, nb.p, na.n) == 0 && x->n_dim == y->n_dim);
        if (x->dtype == y->dtype) {
            assert_memory_equal(x->data, y->data, imp_tensor_bytes(x));
            continue;
        }
        n_changed++;
        assert_int_equal(y->dtype, r.tensor[i].to);
        assert_true(r.tensor[i].error > 0 && r.tensor[i].error < 0.01);
        float p[512], q[512];
        for (uint64_t row = 0; row < imp_tensor_n_row(x); row++) {
            double err2 = 0, sum = 0;
            imp_tensor_row_f32(x, row, p);
            imp_tensor_row_f32(y, row, q);
            for (uint64_t c = 0; c < imp_tensor_n_col(x); c++) {
                err2 += (double)(p[c] - q[c]) * (double)(p[c] - q[c]);
                sum += (double)p[c] * (double)p[c];
            }
            assert_true(err2 <= 1e-4 * sum);
        }
    }
    assert_int_equal(n_changed, r.n_changed);
    assert_true(imp_gguf_u64(b, "general.file_type", &v) && v == 7);
    imp_gguf_close(a);
    imp_gguf_close(b);
    imp_quant_report_deinit(&r);
    imp_pool_free(pool);
    assert_int_equal(unlink(out_path), 0);
}

int main(void)
{
    snprintf(out_path, sizeof out_path, "/tmp/imp-quantize-%d.gguf", (int)getpid());
    snprintf(tmp_path, sizeof tmp_path, "%s.tmp", out_path);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_call_may_fail),
        cmocka_unit_test(the_file_holds_the_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
