/* dev/coreml/eval_int.h - the inside of the evaluator: one run's values, and the ops. */
#ifndef IMP_ML_EVAL_INT_H
#define IMP_ML_EVAL_INT_H

#include "dev/coreml/eval.h"
#include "dev/coreml/gemm.h"

typedef struct ml_ctx ml_ctx;
typedef void (*ml_op_fn)(ml_ctx *c);

struct imp_ml_eval {
    const imp_mil_func *f; /* borrowed */
    imp_ml_mode mode;
    imp_pool *pool;    /* borrowed, may be NULL */
    float **value;     /* [n_var], owned; NULL when not alive */
    uint32_t *last;    /* [n_var] the op that reads it last; UINT32_MAX: lives to the end */
    bool *keep;        /* [n_var] a weight that stays unpacked between runs */
    imp_ml_peak *peak; /* [n_var] */
    ml_op_fn *fn;      /* [n_op] */
    float *spare[2];   /* owned; operands of a product laid out for it */
    uint64_t n_spare[2];
    ml_gemm_buf gemm;
};

/* One op being run. */
struct ml_ctx {
    imp_ml_eval *e;
    const imp_mil_op *op;
    float *out;             /* of the first result */
    const imp_mil_type *to; /* its type */
    bool failed;            /* out of memory */
};

/* Whether a reduction's dimensions lie side by side, as the evaluator wants them. */
bool ml_axes_are_neighbours(const imp_mil_func *f, const imp_mil_op *op);
ml_op_fn ml_op_find(const char *type); /* NULL: not evaluated */

/* A parameter's numbers and type; NULL: absent. */
const float *ml_in(const ml_ctx *c, const char *param);
const imp_mil_type *ml_type(const ml_ctx *c, const char *param);
double ml_number(const ml_ctx *c, const char *param, double def);
/* At least n floats that live until the next op. */
float *ml_spare(ml_ctx *c, int which, uint64_t n);

/* eval_shape.c: ops that move elements; eval_math.c: ops that compute. */
extern const struct ml_op_row {
    const char *type;
    ml_op_fn fn;
} ml_shape_ops[], ml_math_ops[];
extern const size_t ml_n_shape_op, ml_n_math_op;

#endif
