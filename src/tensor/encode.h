/* tensor/encode.h - the encoders that dtype_list.inc names, and the fits they share; private to src/tensor.
 *
 * All encoders have one shape: n elements (whole blocks) of src to dst, which needs no alignment. weight: how much the
 * squared error of each element counts, [n], >= 0; NULL: all alike. src is finite and of magnitude <= 65504 (what f16
 * scales can span), so that they cannot fail. */
#ifndef IMP_ENCODE_H
#define IMP_ENCODE_H

#include "tensor/tensor.h"

/* clang-format off */
#define IMP_ENCODERS(X) \
    X(f32) X(f16) X(bf16) X(q4_0) X(q4_1) X(q5_0) X(q5_1) X(q8_0) X(q2_k) X(q3_k) X(q4_k) X(q5_k) X(q6_k)
/* clang-format on */
#define IMP_X(name) void imp_encode_##name(const float *src, const float *weight, void *dst, uint64_t n);
IMP_ENCODERS(IMP_X)
#undef IMP_X

enum { IMP_FIT_MAX = 32 };

/* A run of n numbers, n a multiple of 4 and <= IMP_FIT_MAX, as whole numbers lo..hi times a scale, minus a minimum. */
typedef struct imp_fit_range {
    float lo, hi;
} imp_fit_range;

/* The scale for which sum w (x - scale * q)^2 is least among those tried; 0: all x are (nearly) 0. w: NULL or [n]. */
float imp_fit_scale(const float *x, const float *w, int n, imp_fit_range r);
/* The same for scale * q + *off with q in 0..hi; max_off: the largest *off allowed (0 or infinity). */
float imp_fit_affine(const float *x, const float *w, int n, float hi, float max_off, float *off);
/* The least-squares scale for a given offset, from the rounding that `scale` gives. */
float imp_fit_rescale(const float *x, const float *w, int n, imp_fit_range r, float scale, float off);
/* q[j] = the whole number in r nearest to (x[j] - off) / scale (0 for scale 0); returns the weighted squared error. */
float imp_fit_round(const float *x, const float *w, int n, imp_fit_range r, float scale, float off, float *q);

#endif
