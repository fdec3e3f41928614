/* plan/calibrate for a device that is no CPU: the CPU's own device, asked as if it were one. Its products cannot read faster
 * than memory is read (plan/ceilings, which has loops of its own), nor multiply faster than f32 arithmetic goes. */
#include "test.h"

#include "base/thread.h"
#include "dev/dev.h"
#include "plan/calibrate.h"
#include "plan/ceilings.h"

static void products_give_the_rates(void **state)
{
    (void)state;
    imp_error err = {0};
    imp_device *d;
    imp_pool *pool;
    imp_ceilings c;
    imp_calibration out;
    imp_learn *l = test_malloc(sizeof *l);
    assert_int_equal(imp_dev_open("cpu", 0, &d, &err), IMP_OK);
    assert_int_equal(imp_pool_new(imp_sys_n_core(), &pool), IMP_OK);
    assert_int_equal(imp_ceilings_measure(pool, 32u << 20, 100, UINT64_MAX, &c, &err), IMP_OK);
    imp_pool_free(pool);
    assert_int_equal(imp_calibrate(d, IMP_UNIT_GPU, 0, true, NULL, NULL, l, &out, &err), IMP_OK);
    const imp_value *f = out.machine.f;
    print_message("# read %.1f GB/s, products read %.1f; f32 %.3f TFLOP/s, products in f16 %.3f\n",
                  c.read_bytes_s * 1e-9, f[IMP_F_BW].v, c.f32_flop_s * 1e-12, f[IMP_F_F16].v);
    assert_int_equal(f[IMP_F_BW].mark, IMP_MARK_MEASURED);
    assert_int_equal(f[IMP_F_F16].mark, IMP_MARK_MEASURED);
    /* wide bounds: the two are measured at different moments of a machine that others use */
    assert_true(f[IMP_F_BW].v > 0.1 * c.read_bytes_s * 1e-9 && f[IMP_F_BW].v < 3 * c.read_bytes_s * 1e-9);
    assert_true(f[IMP_F_F16].v > 0.05 * c.f32_flop_s * 1e-12);
    d->ops->close(d);
    test_free(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(products_give_the_rates)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
