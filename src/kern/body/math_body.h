/* kern/body/math_body.h - exp, tanh and erf on vectors of f32.
 *
 * Place:   included after one of the simd_*.h headers.
 * Idea:    range reduction and minimax polynomials (own fits by weighted least squares on Chebyshev nodes, rounded to f32).
 * Accuracy: largest errors found over every seventh f32: exp 1.05 ulp (denormal results 0.75 of the smallest denormal), tanh
 *          1.33 ulp, erf 2.1 * 2^-24. checkkern holds the activations and softmax made of them to bounds on a grid.
 * Always:  exp(0) is exactly 1, exp(-inf) exactly 0, NaN gives NaN. */
#ifndef IMP_KERN_MATH_BODY_H
#define IMP_KERN_MATH_BODY_H

/* x = n ln2 + r; e^r = 1 + r + r^2 (c0 + c1 r + ...). 2^n is applied in two steps or by an instruction for it, so
 * that denormal results are rounded once and n = 128 does not overflow early. */
IMP_INLINE vf v_exp(vf x)
{
    x = v_min(v_set1(89.0f), x);
    x = v_max(v_set1(-105.0f), x);
    vf n = v_round(x * v_set1(0x1.715476p+0f));
    vf r = v_fnma(n, v_set1(0x1.62e430p-1f), x);
    r = v_fnma(n, v_set1(-0x1.05c610p-29f), r);
    vf p = v_set1(0x1.6dbc5ap-10f);
    p = v_fma(p, r, v_set1(0x1.12414ap-7f));
    p = v_fma(p, r, v_set1(0x1.555454p-5f));
    p = v_fma(p, r, v_set1(0x1.555486p-3f));
    p = v_fma(p, r, v_set1(0.5f));
    p = v_fma(p * r, r, r) + v_set1(1.0f);
#if defined(V_LDEXP)
    return v_ldexp(p, n);
#else
    vf n1 = v_round(n * v_set1(0.5f));
    return p * v_pow2(n1) * v_pow2(n - n1);
#endif
}

/* Below 0.625 an odd polynomial, above 1 - 2 / (e^(2|x|) + 1). */
IMP_INLINE vf v_tanh(vf x)
{
    vf a = v_abs(x), u = x * x;
    vf p = v_set1(-0x1.72fbb4p-8f);
    p = v_fma(p, u, v_set1(0x1.518af0p-6f));
    p = v_fma(p, u, v_set1(-0x1.b82656p-5f));
    p = v_fma(p, u, v_set1(0x1.11068ep-3f));
    p = v_fma(p, u, v_set1(-0x1.555530p-2f));
    vf small = v_fma(x * u, p, x);
    vf big = v_set1(1.0f) - v_set1(2.0f) / (v_exp(a + a) + v_set1(1.0f));
    return v_select_lt(a, v_set1(0.625f), small, v_copysign(big, x));
}

/* Below 1 an odd polynomial, above 1 - e^-Q(|x|); beyond 4.1 it is 1. */
IMP_INLINE vf v_erf(vf x)
{
    vf a = v_min(v_set1(4.1f), v_abs(x)), u = x * x;
    vf p = v_set1(0x1.4ae4aap-14f);
    p = v_fma(p, u, v_set1(-0x1.a485dep-11f));
    p = v_fma(p, u, v_set1(0x1.5419f4p-8f));
    p = v_fma(p, u, v_set1(-0x1.b7fbb4p-6f));
    p = v_fma(p, u, v_set1(0x1.ce2d20p-4f));
    p = v_fma(p, u, v_set1(-0x1.81273ep-2f));
    p = v_fma(p, u, v_set1(0x1.20dd74p+0f));
    vf q = v_set1(0x1.6bd95ap-16f);
    q = v_fma(q, a, v_set1(-0x1.cec722p-12f));
    q = v_fma(q, a, v_set1(0x1.138d1ap-8f));
    q = v_fma(q, a, v_set1(-0x1.9d0346p-6f));
    q = v_fma(q, a, v_set1(0x1.bc1532p-4f));
    q = v_fma(q, a, v_set1(0x1.443564p-1f));
    q = v_fma(q, a, v_set1(0x1.212c0ep+0f));
    q = v_fma(q, a, v_set1(-0x1.8a5d94p-13f));
    vf big = v_set1(1.0f) - v_exp(-q);
    return v_select_lt(a, v_set1(1.0f), x * p, v_copysign(big, x));
}

#endif
