/* The evaluator of ML Programs against coremltools: packages written by it (tools/gen/mlpackage_golden.py), with the
 * results of its own value inference, which computes in numpy's half precision. */
#include "fmt_test.h"

#include <math.h>

#include "dev/coreml/eval.h"

/* The named array of a X.bin file. */
static const float *values(const imp_sys_file *f, const char *name, uint32_t *n)
{
    for (uint64_t at = 0; at + 8 < f->n;) {
        uint32_t len;
        memcpy(&len, f->data + at, 4);
        bool found = strlen(name) == len && memcmp(f->data + at + 4, name, len) == 0;
        memcpy(n, f->data + at + 4 + len, 4);
        const uint8_t *p = f->data + at + 8 + len;
        if (found) {
            float *copy = malloc(*n * sizeof *copy);
            memcpy(copy, p, *n * sizeof *copy);
            return copy;
        }
        at += 8 + len + 4ull * *n;
    }
    fail_msg("%s is not there", name);
    return NULL;
}

static void compare(const char *stem, imp_ml_mode mode, imp_pool *pool, double bound)
{
    char path[256];
    imp_mlpackage *p;
    imp_ml_eval *e;
    imp_error err = {0};
    const float *in[8];
    uint32_t n;
    snprintf(path, sizeof path, "tests/data/mlpackage/%s.bin", stem);
    imp_sys_file f = open_data(path);
    snprintf(path, sizeof path, "tests/data/mlpackage/%s.mlpackage", stem);
    if (imp_mlpackage_open(path, &p, &err) != IMP_OK) fail_msg("%s", err.text);
    const imp_mil_func *fn = &p->func[0];
    for (uint32_t i = 0; i < fn->n_in; i++) in[i] = values(&f, fn->in[i].name, &n);
    if (imp_ml_eval_new(fn, mode, pool, &e, &err) != IMP_OK) fail_msg("%s", err.text);
    for (int run = 0; run < 2; run++) { /* the second from weights that were kept */
        assert_int_equal(imp_ml_eval_run(e, in, &err), IMP_OK);
        for (uint32_t i = 0; i < fn->n_out; i++) {
            const float *want = values(&f, fn->out[i].name, &n), *got = imp_ml_eval_out(e, i);
            assert_int_equal(n, imp_mil_n_elem(&fn->var[fn->out[i].var].type));
            for (uint32_t k = 0; k < n; k++) {
                double d = fabs((double)got[k] - (double)want[k]) / fmax(1, fabs((double)want[k]));
                /* g lies behind two norms and a linear layer */
                if (!(d <= (strcmp(fn->out[i].name, "g") == 0 ? 6 * bound : bound)))
                    fail_msg("%s %s[%u]: %g, expected %g", stem, fn->out[i].name, k, (double)got[k],
                             (double)want[k]);
            }
            free((void *)want);
        }
    }
    for (uint32_t i = 0; i < fn->n_in; i++) free((void *)in[i]);
    imp_ml_eval_free(e);
    imp_mlpackage_close(p);
    imp_sys_file_close(&f);
}

static void computes_as_coremltools(void **state)
{
    imp_pool *pool;
    (void)state;
    assert_int_equal(imp_pool_new(2, &pool), IMP_OK);
    compare("ios16", IMP_ML_F16, pool, 0.002);
    compare("ios18", IMP_ML_F16, pool, 0.002);
    compare("ios16", IMP_ML_F32, NULL, 0.003);
    compare("ios18", IMP_ML_F32, NULL, 0.003);
    imp_pool_free(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(computes_as_coremltools)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
