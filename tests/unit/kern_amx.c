/* tests/unit/kern_amx.c - the AMX kernels on a tile unit in plain C (tests/kern/amx_soft.h), where AVX-512 VNNI is there.
 *
 * The same checks as checkkern's: values against decoded weights in f64, and that few rows by vectors give the same bits as
 * many by tiles (the checks' batches lie on both sides of that border). */
#include "kern/kern.h"

#if defined(IMP_KERN_X86)
#include "../kern/amx_soft.h"
#include "../kern/check_matmul.h"

#include "kern/x86/amx_bf16.h"
#include "kern/x86/amx_int8.h"

T_VARIANTS("amx_soft", amx_soft, IMP_CPU_AVX512VNNI)
B_VARIANT("amx_soft", amx_soft, IMP_CPU_AVX512BF16)

#include "test.h"

static void passes(const imp_matmul *v)
{
    if ((imp_cpu_features() & v->cpu) != v->cpu) skip();
    static struct check c;
    c = (struct check){.rng = 7};
    check_matmul(&c, v);
    assert_false(c.failed);
}
#define CHECK(type)                                                                                          \
    static void type(void **state)                                                                           \
    {                                                                                                        \
        (void)state;                                                                                         \
        passes(&imp_matmul_##type##_amx_soft);                                                               \
    }
CHECK(q4_0)
CHECK(q8_0)
CHECK(q5_k)
CHECK(q6_k)
CHECK(bf16)

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(q4_0), cmocka_unit_test(q8_0), cmocka_unit_test(q5_k),
                                       cmocka_unit_test(q6_k), cmocka_unit_test(bf16)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#else
int main(void)
{
    return 0; /* no such CPU */
}
#endif
