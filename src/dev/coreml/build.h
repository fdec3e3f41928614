/* dev/coreml/build.h - making one function of an ML Program: values by number, types inferred as ops are added.
 *
 * Place:   private to dev/coreml; the compiler calls it.
 * Idea:    sticky errors: after the first bad call everything returns 0 and `status` and `err` say why. Small constants are
 *          made once a function.
 * Memory:  everything lives in the arena. */
#ifndef IMP_ML_BUILD_H
#define IMP_ML_BUILD_H

#include "fmt/mlpackage.h"

typedef uint32_t ml_val; /* variable number + 1; 0: none */

typedef struct ml_build {
    imp_arena *arena;
    imp_mil_func *f; /* var, op, in, out grow */
    int32_t spec;
    uint32_t cap_var, cap_op, cap_in, cap_out, n_name;
    ml_val *small; /* constants that were made, to be found again */
    uint32_t n_small, cap_small;
    imp_status status;
    imp_error *err;
} ml_build;

/* name and opset must outlive the arena's use. */
void ml_build_init(ml_build *b, imp_arena *arena, imp_mil_func *f, const char *name, int32_t spec,
                   imp_error *err);

ml_val ml_input(ml_build *b, const char *name, imp_mil_type t);
void ml_output(ml_build *b, ml_val v, const char *name);
const imp_mil_type *ml_type_of(const ml_build *b, ml_val v); /* v not 0 */

imp_mil_type ml_shape4(imp_mil_dtype t, uint64_t a, uint64_t b, uint64_t c, uint64_t d);

ml_val ml_f16(ml_build *b, float x);
ml_val ml_i32(ml_build *b, int32_t x);
ml_val ml_flag(ml_build *b, bool x);
ml_val ml_text(ml_build *b, const char *s);
ml_val ml_i32s(ml_build *b, const int32_t *x, uint32_t n);
/* A constant of any type: inline data (copied), or in weight.bin. */
ml_val ml_const(ml_build *b, const char *name, const imp_mil_value *v);

/* One op with one result; pairs of parameter and value end with NULL; a value of 0 leaves the parameter out. */
ml_val ml_op(ml_build *b, const char *type, const char *name, ...) __attribute__((sentinel));
/* The same with attributes in place of parameters (constexpr ops up to CoreML7). */
ml_val ml_op_attr(ml_build *b, const char *type, const char *name, const imp_mil_attr *attr, uint32_t n,
                  const imp_mil_type *t);
/* A constexpr op of CoreML8: parameters are inline values. */
ml_val ml_op_inline(ml_build *b, const char *type, const char *name, const imp_mil_attr *attr, uint32_t n);
ml_val ml_concat(ml_build *b, const char *name, const ml_val *v, uint32_t n, int32_t axis);
/* n equal parts of x. */
void ml_split(ml_build *b, const char *name, ml_val x, uint32_t n, int32_t axis, ml_val *out);
ml_val ml_reshape(ml_build *b, const char *name, ml_val x, uint64_t n1, uint64_t n2, uint64_t n3,
                  uint64_t n4);

#endif
