/* dev/coreml/eval_shape.c - ops of ML Programs that move elements or unpack weights. */
#include "dev/coreml/eval_int.h"

#include <math.h>

/* Product of dims from..to-1. */
static uint64_t span(const imp_mil_type *t, uint32_t from, uint32_t to)
{
    uint64_t n = 1;
    for (uint32_t i = from; i < to; i++) n *= t->dim[i];
    return n;
}

static uint32_t axis_of(const ml_ctx *c, const char *param, uint32_t rank, double def)
{
    double a = ml_number(c, param, def);
    return (uint32_t)(a < 0 ? a + rank : a);
}

/* Walk all elements of shape t in order, keeping a source index by per-dimension strides. */
static void strided_copy(float *to, const float *from, const imp_mil_type *t, const int64_t *stride)
{
    uint64_t at[IMP_MIL_MAX_RANK] = {0}, n = imp_mil_n_elem(t);
    int64_t s = 0;
    for (uint64_t i = 0; i < n; i++) {
        to[i] = from[s];
        for (uint32_t k = t->rank; k-- > 0;) {
            s += stride[k];
            if (++at[k] < t->dim[k]) break;
            s -= stride[k] * (int64_t)t->dim[k];
            at[k] = 0;
        }
    }
}

static void strides_of(const imp_mil_type *t, int64_t *stride)
{
    int64_t s = 1;
    for (uint32_t k = t->rank; k-- > 0;) {
        stride[k] = s;
        s *= (int64_t)t->dim[k];
    }
}

/* reshape, expand_dims, squeeze, identity, read_state */
static void copy(ml_ctx *c)
{
    const char *name = imp_mil_arg_get(c->op, "x") != NULL ? "x" : "input";
    memcpy(c->out, ml_in(c, name), (size_t)imp_mil_n_elem(c->to) * sizeof(float));
}

static void write_state(ml_ctx *c)
{
    float *to = c->e->value[imp_mil_arg_get(c->op, "input")->bind[0].var];
    memcpy(to, ml_in(c, "data"), (size_t)imp_mil_n_elem(ml_type(c, "data")) * sizeof(float));
}

static void transpose(ml_ctx *c)
{
    const imp_mil_value *perm = imp_mil_const(c->e->f, c->op, "perm");
    int64_t from[IMP_MIL_MAX_RANK], stride[IMP_MIL_MAX_RANK];
    strides_of(ml_type(c, "x"), from);
    for (uint32_t k = 0; k < c->to->rank; k++) {
        double p = imp_mil_element(IMP_MIL_I32, perm->data, k);
        stride[k] = from[(uint32_t)(p < 0 ? p + c->to->rank : p)];
    }
    strided_copy(c->out, ml_in(c, "x"), c->to, stride);
}

static void concat(ml_ctx *c)
{
    const imp_mil_arg *a = imp_mil_arg_get(c->op, "values");
    uint32_t axis = axis_of(c, "axis", c->to->rank, 0);
    uint64_t outer = span(c->to, 0, axis), row = span(c->to, axis, c->to->rank), at = 0;
    for (uint32_t k = 0; k < a->n; k++) {
        const imp_mil_type *t = &c->e->f->var[a->bind[k].var].type;
        uint64_t n = span(t, axis, t->rank);
        for (uint64_t o = 0; o < outer; o++)
            memcpy(c->out + o * row + at, c->e->value[a->bind[k].var] + o * n, (size_t)n * sizeof(float));
        at += n;
    }
}

static void split(ml_ctx *c)
{
    const imp_mil_type *x = ml_type(c, "x");
    uint32_t axis = axis_of(c, "axis", x->rank, 0);
    uint64_t outer = span(x, 0, axis), row = span(x, axis, x->rank), at = 0;
    for (uint32_t k = 0; k < c->op->n_out; k++) {
        uint64_t n = span(&c->op->out[k].type, axis, x->rank);
        float *to = c->e->value[c->op->out[k].var];
        for (uint64_t o = 0; o < outer; o++)
            memcpy(to + o * n, ml_in(c, "x") + o * row + at, (size_t)n * sizeof(float));
        at += n;
    }
}

/* Source index of the slice's first element, strides of its dimensions, and its shape with all dimensions. */
static int64_t slice_of(const ml_ctx *c, imp_mil_type *shape, int64_t *stride)
{
    const imp_mil_type *x = ml_type(c, "x");
    int64_t begin[IMP_MIL_MAX_RANK], step[IMP_MIL_MAX_RANK], full[IMP_MIL_MAX_RANK], first = 0;
    uint64_t count[IMP_MIL_MAX_RANK];
    *shape = *x;
    if (imp_mil_slice_range(c->e->f, c->op, x, begin, step, count, NULL) != IMP_OK)
        return 0; /* checked by the reader */
    strides_of(x, full);
    for (uint32_t k = 0; k < x->rank; k++) {
        first += begin[k] * full[k];
        stride[k] = step[k] * full[k];
        shape->dim[k] = count[k];
    }
    return first;
}

static void slice_by_index(ml_ctx *c)
{
    imp_mil_type shape;
    int64_t stride[IMP_MIL_MAX_RANK], first = slice_of(c, &shape, stride);
    strided_copy(c->out, ml_in(c, "x") + first, &shape, stride);
}

static void slice_update(ml_ctx *c)
{
    imp_mil_type shape;
    int64_t stride[IMP_MIL_MAX_RANK], s = slice_of(c, &shape, stride);
    const float *u = ml_in(c, "update");
    uint64_t at[IMP_MIL_MAX_RANK] = {0}, n = imp_mil_n_elem(&shape);
    memcpy(c->out, ml_in(c, "x"), (size_t)imp_mil_n_elem(c->to) * sizeof(float));
    for (uint64_t i = 0; i < n; i++) {
        c->out[s] = u[i];
        for (uint32_t k = shape.rank; k-- > 0;) {
            s += stride[k];
            if (++at[k] < shape.dim[k]) break;
            s -= stride[k] * (int64_t)shape.dim[k];
            at[k] = 0;
        }
    }
}

static void gather(ml_ctx *c)
{
    const imp_mil_type *x = ml_type(c, "x");
    uint32_t axis = axis_of(c, "axis", x->rank, 0);
    uint64_t outer = span(x, 0, axis), n = x->dim[axis], inner = span(x, axis + 1, x->rank);
    uint64_t m = imp_mil_n_elem(ml_type(c, "indices"));
    const float *index = ml_in(c, "indices"), *from = ml_in(c, "x");
    for (uint64_t o = 0; o < outer; o++)
        for (uint64_t i = 0; i < m; i++) {
            double k = (double)index[i] < 0 ? (double)index[i] + (double)n : (double)index[i];
            uint64_t row =
                k < 0 ? 0 : IMP_MIN((uint64_t)k, n - 1); /* Core ML leaves what is outside undefined */
            memcpy(c->out + (o * m + i) * inner, from + (o * n + row) * inner, (size_t)inner * sizeof(float));
        }
}

/* ---- compressed weights ----------------------------------------------------------------------------------- */

/* Parameters of these ops may be attributes, inline values or constants. */
static const imp_mil_value *stored(const ml_ctx *c, const char *param)
{
    return imp_mil_const(c->e->f, c->op, param);
}

static void affine(ml_ctx *c)
{
    const imp_mil_value *q = stored(c, "quantized_data"), *z = stored(c, "zero_point"),
                        *s = stored(c, "scale");
    uint32_t axis = axis_of(c, "axis", q->type.rank, 0);
    uint64_t inner = span(&q->type, axis + 1, q->type.rank), n = imp_mil_n_elem(&q->type);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t k = i / inner % q->type.dim[axis];
        double zero = imp_mil_element(z->type.dtype, z->data, z->type.rank > 0 ? k : 0);
        double scale = imp_mil_element(s->type.dtype, s->data, s->type.rank > 0 ? k : 0);
        c->out[i] = (float)((imp_mil_element(q->type.dtype, q->data, i) - zero) * scale);
    }
}

/* The index in a small table of blocks that element i of the large one belongs to. */
static uint64_t block_of(uint64_t i, const imp_mil_type *large, const imp_mil_type *small)
{
    uint64_t at = 0, stride = 1;
    for (uint32_t k = large->rank; k-- > 0;) {
        uint64_t d = i % large->dim[k];
        i /= large->dim[k];
        at += d / (large->dim[k] / small->dim[k]) * stride;
        stride *= small->dim[k];
    }
    return at;
}

static void lut(ml_ctx *c)
{
    const imp_mil_value *n = stored(c, "indices"), *l = stored(c, "lut");
    uint64_t n_elem = imp_mil_n_elem(c->to);
    if (stored(c, "shape") != NULL) { /* the early form: flat, packed bytes, one palette */
        uint32_t bits = 0;
        while (1ull << bits < l->type.dim[0]) bits++;
        static const imp_mil_dtype packed[9] = {[1] = IMP_MIL_U1, [2] = IMP_MIL_U2, [3] = IMP_MIL_U3,
                                                [4] = IMP_MIL_U4, [6] = IMP_MIL_U6, [8] = IMP_MIL_U8};
        for (uint64_t i = 0; i < n_elem; i++)
            c->out[i] = (float)imp_mil_element(l->type.dtype, l->data,
                                               (uint64_t)imp_mil_element(packed[bits], n->data, i));
        return;
    }
    uint64_t per = l->type.dim[l->type.rank - 2], groups = imp_mil_n_elem(&l->type) / per;
    bool rows = l->type.dim[0] == groups; /* one palette for each group of rows: the usual case */
    float *palette = ml_spare(c, 0, groups * per);
    if (palette == NULL) return;
    imp_ml_decode(l, palette);
    for (uint64_t i = 0; i < n_elem; i++) {
        uint64_t g = rows ? i / (n_elem / groups) : block_of(i, &n->type, &l->type);
        c->out[i] = palette[g * per + (uint64_t)imp_mil_element(n->type.dtype, n->data, i)];
    }
}

/* The scale and zero point at element i of an activation. */
static void affine_at(const ml_ctx *c, const imp_mil_type *x, uint64_t i, double *scale, double *zero)
{
    const imp_mil_value *s = stored(c, "scale"), *z = stored(c, "zero_point");
    uint64_t k = 0;
    if (s->type.rank == 1) {
        uint32_t axis = axis_of(c, "axis", x->rank, 0);
        k = i / span(x, axis + 1, x->rank) % x->dim[axis];
    }
    *scale = imp_mil_element(s->type.dtype, s->data, k);
    *zero = z != NULL ? imp_mil_element(z->type.dtype, z->data, k) : 0;
}

static void quantize(ml_ctx *c)
{
    const float *x = ml_in(c, "input");
    double lo = c->to->dtype == IMP_MIL_I8 ? -128 : 0, hi = lo + 255, scale, zero;
    for (uint64_t i = 0, n = imp_mil_n_elem(c->to); i < n; i++) {
        affine_at(c, c->to, i, &scale, &zero);
        double q = nearbyint((double)x[i] / scale) + zero;
        c->out[i] = (float)(q < lo ? lo : q > hi ? hi : q);
    }
}

static void dequantize(ml_ctx *c)
{
    const float *x = ml_in(c, "input");
    double scale, zero;
    for (uint64_t i = 0, n = imp_mil_n_elem(c->to); i < n; i++) {
        affine_at(c, c->to, i, &scale, &zero);
        c->out[i] = (float)(((double)x[i] - zero) * scale);
    }
}

static void blockwise(ml_ctx *c)
{
    const imp_mil_value *d = stored(c, "data"), *s = stored(c, "scale"), *o = stored(c, "offset");
    uint64_t n = imp_mil_n_elem(&d->type);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t b = block_of(i, &d->type, &s->type);
        double offset = o != NULL ? imp_mil_element(o->type.dtype, o->data, b) : 0;
        c->out[i] = (float)(imp_mil_element(s->type.dtype, s->data, b) *
                            (imp_mil_element(d->type.dtype, d->data, i) - offset));
    }
}

const struct ml_op_row ml_shape_ops[] = {
    {"reshape", copy},
    {"expand_dims", copy},
    {"squeeze", copy},
    {"identity", copy},
    {"read_state", copy},
    {"write_state", write_state},
    {"quantize", quantize},
    {"dequantize", dequantize},
    {"transpose", transpose},
    {"concat", concat},
    {"split", split},
    {"slice_by_index", slice_by_index},
    {"slice_update", slice_update},
    {"gather", gather},
    {"constexpr_affine_dequantize", affine},
    {"constexpr_lut_to_dense", lut},
    {"constexpr_blockwise_shift_scale", blockwise},
};
const size_t ml_n_shape_op = IMP_COUNT(ml_shape_ops);
