/* f16 and bf16 conversions: all 65536 patterns against the arithmetic definition of IEEE 754, every rounding border
 * between neighbours, and, where the CPU has them, against its own conversion instructions. */
#include "test.h"

#include <math.h>

#include "tensor/tensor.h"

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* The value of a pattern with e exponent and m mantissa bits, from the definition. */
static double value_of(uint32_t h, int e, int m)
{
    int sign = h >> (e + m) & 1, exp = h >> m & ((1 << e) - 1), bias = (1 << (e - 1)) - 1;
    double mant = (double)(h & ((1u << m) - 1));
    double v = exp == 0              ? ldexp(mant, 1 - bias - m)
               : exp == (1 << e) - 1 ? (mant != 0 ? NAN : INFINITY)
                                     : ldexp(mant + ldexp(1, m), exp - bias - m);
    return sign ? -v : v;
}

static void f16_to_f32_all(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float got = imp_f16_to_f32((uint16_t)h);
        double want = value_of(h, 5, 10);
        if (isnan(want)) {
            assert_true(isnan(got));
            assert_int_equal(signbit(got) != 0, h >> 15);
        } else {
            assert_int_equal(bits_of(got), bits_of((float)want));
            assert_int_equal(imp_f32_to_f16(got), h);
        }
    }
}

static void bf16_all(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float got = imp_bf16_to_f32((uint16_t)h);
        double want = value_of(h, 8, 7);
        if (isnan(want)) {
            assert_true(isnan(got));
            assert_true(isnan(imp_bf16_to_f32(imp_f32_to_bf16(got))));
        } else {
            assert_int_equal(bits_of(got), bits_of((float)want));
            assert_int_equal(imp_f32_to_bf16(got), h);
        }
    }
    /* A NaN whose payload stands only in the lower half must not become infinity. */
    assert_true(isnan(imp_bf16_to_f32(imp_f32_to_bf16(float_of(0x7f800001)))));
    assert_true(isnan(imp_bf16_to_f32(imp_f32_to_bf16(float_of(0xffffffff)))));
    assert_true(isnan(imp_f16_to_f32(imp_f32_to_f16(float_of(0x7f800001)))));
}

/* Between neighbours h and h + 1: below the midpoint gives h, above h + 1, the midpoint the even one. */
static void rounding_borders(uint32_t top, int e, int m, uint16_t (*to)(float))
{
    for (uint32_t h = 0; h < top; h++) {
        double lo = value_of(h, e, m);
        double hi =
            h + 1 == top ? ldexp(1, 1 << (e - 1)) : value_of(h + 1, e, m); /* where infinity would be */
        double mid = (lo + hi) / 2;
        float below = nextafterf((float)mid, -INFINITY), above = nextafterf((float)mid, INFINITY);
        if ((double)(float)mid != mid) continue; /* bf16: the midpoint of the smallest subnormals is no f32 */
        assert_int_equal(to((float)mid), h & 1 ? h + 1 : h);
        assert_int_equal(to(below), h);
        assert_int_equal(to(above), h + 1);
        assert_int_equal(to(-(float)mid), (h & 1 ? h + 1 : h) | 0x8000);
    }
    assert_int_equal(to(INFINITY), top);
    assert_int_equal(to(-INFINITY), top | 0x8000);
    assert_int_equal(to(3.4e38f), top); /* beyond the last midpoint of both */
}

static void f16_rounding(void **state)
{
    (void)state;
    rounding_borders(0x7c00, 5, 10, imp_f32_to_f16);
}
static void bf16_rounding(void **state)
{
    (void)state;
    rounding_borders(0x7f80, 8, 7, imp_f32_to_bf16);
}

#if defined(__x86_64__)
#include <immintrin.h>
__attribute__((target("f16c"))) static void compare_f16c(void)
{
    for (uint32_t h = 0; h < 65536; h++) {
        float hw = _cvtsh_ss((uint16_t)h), sw = imp_f16_to_f32((uint16_t)h);
        assert_true(bits_of(hw) == bits_of(sw) || (isnan(hw) && isnan(sw)));
    }
    for (uint64_t u = 0; u <= UINT32_MAX; u += 1021) { /* a prime stride: all mantissa ends come by */
        float f = float_of((uint32_t)u);
        uint16_t hw = (uint16_t)_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT), sw = imp_f32_to_f16(f);
        if (hw != sw) fail_msg("%a: %04x, the CPU says %04x", (double)f, sw, hw);
    }
}
#endif

static void f16_equals_the_cpu(void **state)
{
    (void)state;
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("avx2")) skip(); /* every CPU with AVX2 has F16C */
    compare_f16c();
#elif defined(__aarch64__)
    for (uint64_t u = 0; u <= UINT32_MAX; u += 1021) {
        __fp16 hw = (__fp16)float_of((uint32_t)u);
        uint16_t h;
        memcpy(&h, &hw, 2);
        if (!isnan(float_of((uint32_t)u))) assert_int_equal(imp_f32_to_f16(float_of((uint32_t)u)), h);
    }
#else
    skip();
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f16_to_f32_all),     cmocka_unit_test(bf16_all),
        cmocka_unit_test(f16_rounding),       cmocka_unit_test(bf16_rounding),
        cmocka_unit_test(f16_equals_the_cpu),
    };
    return cmocka_run_group_tests_name("tensor_half", tests, NULL, NULL);
}
