/* fmt/mil_ops.c - the ops of ML Programs that are read and written: parameters, shapes, the version that brought them.
 *
 * Place:   the checker compares what an op declares with what is inferred here; the converter takes its shapes from here.
 * Idea:    one line an op. A signature lists parameters: "?p" may be missing, "p!" must be constant, "p*" is a list.
 *          What an op leaves out of its signature is refused, not ignored.
 * Source:  the op set's documentation; conv is 1x1 only, because nothing else is emitted or evaluated. */
#include "fmt/mlpackage_int.h"

#include "fmt/quote.h"

typedef struct infer {
    const imp_mil_func *f;
    const imp_mil_op *op;
    int32_t opset;
    imp_mil_type *out;
    uint32_t *n_out;
    imp_error *err;
} infer;

#define BAD(i, ...)    imp_fail((i)->err, IMP_FORMAT, __VA_ARGS__)
#define REFUSE(i, ...) imp_fail((i)->err, IMP_UNSUPPORTED, __VA_ARGS__)

static const imp_mil_type *bind_type(const imp_mil_func *f, const imp_mil_bind *b)
{
    return b->value != NULL ? &b->value->type : &f->var[b->var].type;
}

/* The type of a parameter that the signature requires, or of one that may be missing: NULL then. */
static const imp_mil_type *type_of(const infer *i, const char *param)
{
    const imp_mil_arg *a = imp_mil_arg_get(i->op, param);
    if (a != NULL) return bind_type(i->f, &a->bind[0]);
    const imp_mil_value *v = imp_mil_const(i->f, i->op, param);
    return v != NULL ? &v->type : NULL;
}

static bool is_float(imp_mil_dtype t)
{
    return t == IMP_MIL_F16 || t == IMP_MIL_F32;
}

static imp_status give(const infer *i, const imp_mil_type *t)
{
    i->out[0] = *t;
    *i->n_out = 1;
    return IMP_OK;
}

/* A constant axis, counted from the end when negative. */
static imp_status axis_of(const infer *i, const char *param, double def, uint32_t rank, uint32_t *out)
{
    double a = imp_mil_number(i->f, i->op, param, def);
    if (a < 0) a += rank;
    if (a < 0 || a >= rank) return BAD(i, "%s is outside the %u dimensions", param, rank);
    *out = (uint32_t)a;
    return IMP_OK;
}

/* A constant list of axes as a bit mask; absent: all. */
static imp_status axes_of(const infer *i, const char *param, uint32_t rank, uint32_t *mask)
{
    const imp_mil_value *v = imp_mil_const(i->f, i->op, param);
    *mask = v == NULL ? (1u << rank) - 1 : 0;
    if (v == NULL) return IMP_OK;
    if (v->type.dtype != IMP_MIL_I32 || v->type.rank > 1) return BAD(i, "%s is no list of int32", param);
    for (uint64_t k = 0; k < imp_mil_n_elem(&v->type); k++) {
        double a = imp_mil_element(IMP_MIL_I32, v->data, k);
        if (a < 0) a += rank;
        if (a < 0 || a >= rank || *mask & 1u << (uint32_t)a)
            return BAD(i, "%s names a dimension twice or one that is not there", param);
        *mask |= 1u << (uint32_t)a;
    }
    return IMP_OK;
}

/* ---- elementwise ----------------------------------------------------------------------------------------- */

static imp_status unary(infer *i)
{
    const imp_mil_type *x = type_of(i, "x");
    if (!is_float(x->dtype)) return BAD(i, "x must be fp16 or fp32");
    return give(i, x);
}

static imp_status any_unary(infer *i)
{
    return give(i, type_of(i, "x"));
}

static imp_status broadcast(const infer *i, const imp_mil_type *a, const imp_mil_type *b, imp_mil_type *out)
{
    *out = (imp_mil_type){.dtype = a->dtype, .rank = IMP_MAX(a->rank, b->rank)};
    for (uint32_t k = 0; k < out->rank; k++) {
        uint64_t p = k + a->rank >= out->rank ? a->dim[k + a->rank - out->rank] : 1;
        uint64_t q = k + b->rank >= out->rank ? b->dim[k + b->rank - out->rank] : 1;
        if (p != q && p != 1 && q != 1) {
            char s[96], t[96];
            return BAD(i, "%s and %s do not broadcast", imp_mil_type_text(a, s), imp_mil_type_text(b, t));
        }
        out->dim[k] = IMP_MAX(p, q);
    }
    return IMP_OK;
}

static imp_status binary(infer *i)
{
    const imp_mil_type *x = type_of(i, "x"), *y = type_of(i, "y");
    imp_mil_type t;
    if (x->dtype != y->dtype)
        return BAD(i, "x is %s and y is %s", imp_mil_dtype_name(x->dtype), imp_mil_dtype_name(y->dtype));
    IMP_TRY(broadcast(i, x, y, &t));
    return give(i, &t);
}

static imp_status select_(infer *i)
{
    const imp_mil_type *c = type_of(i, "cond"), *a = type_of(i, "a"), *b = type_of(i, "b");
    imp_mil_type t, u;
    if (c->dtype != IMP_MIL_BOOL || a->dtype != b->dtype)
        return BAD(i, "cond must be bool, a and b of one type");
    IMP_TRY(broadcast(i, a, b, &t));
    u = *c;
    u.dtype = t.dtype;
    if (c->rank > 0 && !imp_mil_type_equal(&t, &u)) return REFUSE(i, "cond must have the shape of a and b");
    return give(i, &t);
}

static imp_status clip(infer *i)
{
    const imp_mil_type *x = type_of(i, "x");
    if (!is_float(x->dtype) || type_of(i, "alpha")->dtype != x->dtype ||
        type_of(i, "beta")->dtype != x->dtype)
        return BAD(i, "alpha and beta must have x's type");
    return give(i, x);
}

static imp_status gelu(infer *i)
{
    const char *m = imp_mil_word(i->f, i->op, "mode", "EXACT");
    if (strcmp(m, "EXACT") != 0 && strcmp(m, "TANH_APPROXIMATION") != 0 &&
        strcmp(m, "SIGMOID_APPROXIMATION") != 0)
        return BAD(i, "%s is no mode of gelu", imp_quote_z(m).s);
    return unary(i);
}

static imp_status cast(infer *i)
{
    imp_mil_type t = *type_of(i, "x");
    const char *to = imp_mil_word(i->f, i->op, "dtype", "");
    static const imp_mil_dtype all[] = {IMP_MIL_F16, IMP_MIL_F32, IMP_MIL_I8,  IMP_MIL_I16,
                                        IMP_MIL_I32, IMP_MIL_U8,  IMP_MIL_U16, IMP_MIL_BOOL};
    for (size_t k = 0; k < IMP_COUNT(all); k++)
        if (strcmp(imp_mil_dtype_name(all[k]), to) == 0) {
            t.dtype = all[k];
            return give(i, &t);
        }
    return BAD(i, "%s is no type to cast to", imp_quote_z(to).s);
}

/* ---- reductions, norms --------------------------------------------------------------------------------------- */

static imp_status reduce(infer *i)
{
    const imp_mil_type *x = type_of(i, "x");
    uint32_t mask;
    imp_mil_type t = {.dtype = x->dtype};
    IMP_TRY(axes_of(i, "axes", x->rank, &mask));
    bool keep = imp_mil_number(i->f, i->op, "keep_dims", 0) != 0;
    for (uint32_t k = 0; k < x->rank; k++) {
        if (mask >> k & 1 && !keep) continue;
        t.dim[t.rank++] = mask >> k & 1 ? 1 : x->dim[k];
    }
    return give(i, &t);
}

static imp_status softmax(infer *i)
{
    uint32_t axis;
    IMP_TRY(axis_of(i, "axis", -1, type_of(i, "x")->rank, &axis));
    return unary(i);
}

static imp_status layer_norm(infer *i)
{
    const imp_mil_type *x = type_of(i, "x");
    uint32_t mask;
    imp_mil_type t = {.dtype = x->dtype};
    IMP_TRY(axes_of(i, "axes", x->rank, &mask));
    for (uint32_t k = 0; k < x->rank; k++)
        if (mask >> k & 1) t.dim[t.rank++] = x->dim[k];
    const imp_mil_type *g = type_of(i, "gamma"), *b = type_of(i, "beta");
    if ((g != NULL && !imp_mil_type_equal(g, &t)) || (b != NULL && !imp_mil_type_equal(b, &t)))
        return BAD(i, "gamma and beta must have the shape of the normalised dimensions");
    return unary(i);
}

/* ---- products --------------------------------------------------------------------------------------------------- */

static imp_status matmul(infer *i)
{
    const imp_mil_type *x = type_of(i, "x"), *y = type_of(i, "y");
    bool tx = imp_mil_number(i->f, i->op, "transpose_x", 0) != 0;
    bool ty = imp_mil_number(i->f, i->op, "transpose_y", 0) != 0;
    if (x->rank < 2 || y->rank < 2) return REFUSE(i, "matmul of vectors is not read");
    if (x->dtype != y->dtype) return BAD(i, "x and y have different types");
    imp_mil_type a = *x, b = *y, t;
    a.rank -= 2, b.rank -= 2;
    uint64_t m = x->dim[a.rank + tx], kx = x->dim[a.rank + !tx];
    uint64_t n = y->dim[b.rank + !ty], ky = y->dim[b.rank + ty];
    if (kx != ky)
        return BAD(i, "the inner sizes %llu and %llu differ", (unsigned long long)kx, (unsigned long long)ky);
    IMP_TRY(broadcast(i, &a, &b, &t));
    t.dim[t.rank] = m;
    t.dim[t.rank + 1] = n;
    t.rank += 2;
    return give(i, &t);
}

static imp_status linear(infer *i)
{
    const imp_mil_type *x = type_of(i, "x"), *w = type_of(i, "weight"), *b = type_of(i, "bias");
    imp_mil_type t = *x;
    if (x->rank < 1 || w->rank != 2 || w->dtype != x->dtype || w->dim[1] != x->dim[x->rank - 1])
        return BAD(i, "the weight does not fit x");
    if (b != NULL && (b->rank != 1 || b->dim[0] != w->dim[0] || b->dtype != x->dtype))
        return BAD(i, "the bias does not fit the weight");
    t.dim[t.rank - 1] = w->dim[0];
    return give(i, &t);
}

static bool all_are(const infer *i, const char *param, double want)
{
    const imp_mil_value *v = imp_mil_const(i->f, i->op, param);
    if (v == NULL) return true;
    for (uint64_t k = 0; k < imp_mil_n_elem(&v->type); k++)
        if (imp_mil_element(v->type.dtype, v->data, k) != want) return false;
    return true;
}

static imp_status conv(infer *i)
{
    const imp_mil_type *x = type_of(i, "x"), *w = type_of(i, "weight"), *b = type_of(i, "bias");
    if (x->rank != 4 || w->rank != 4 || w->dim[2] != 1 || w->dim[3] != 1)
        return REFUSE(i, "only 1x1 convolutions over 4 dimensions are read");
    if (!all_are(i, "strides", 1) || !all_are(i, "dilations", 1) || !all_are(i, "pad", 0) ||
        !all_are(i, "groups", 1))
        return REFUSE(i, "only convolutions without stride, padding, dilation and groups are read");
    const char *pad = imp_mil_word(i->f, i->op, "pad_type", "valid");
    if (strcmp(pad, "valid") != 0 && strcmp(pad, "custom") != 0 && strcmp(pad, "same") != 0)
        return BAD(i, "%s is no pad_type", imp_quote_z(pad).s);
    if (!is_float(x->dtype) || w->dtype != x->dtype || w->dim[1] != x->dim[1])
        return BAD(i, "the weight does not fit x");
    if (b != NULL && (b->rank != 1 || b->dim[0] != w->dim[0] || b->dtype != x->dtype))
        return BAD(i, "the bias does not fit the weight");
    imp_mil_type t = *x;
    t.dim[1] = w->dim[0];
    return give(i, &t);
}

static imp_status attention(infer *i)
{
    const imp_mil_type *q = type_of(i, "query"), *k = type_of(i, "key"), *v = type_of(i, "value");
    const imp_mil_type *m = type_of(i, "attn_mask");
    if (q->rank < 3 || k->rank != q->rank || v->rank != q->rank || q->dtype != k->dtype ||
        q->dtype != v->dtype)
        return BAD(i, "query, key and value must have one type and rank, at least 3");
    uint32_t s = q->rank - 2;
    if (memcmp(q->dim, k->dim, s * sizeof q->dim[0]) != 0 ||
        memcmp(q->dim, v->dim, s * sizeof q->dim[0]) != 0 || k->dim[s] != v->dim[s] ||
        q->dim[s + 1] != k->dim[s + 1])
        return BAD(i, "query, key and value do not fit");
    if (m != NULL) {
        imp_mil_type scores = *q, both;
        scores.dim[s + 1] = k->dim[s];
        IMP_TRY(broadcast(i, &scores, m, &both));
        if (!imp_mil_type_equal(&scores, &both) || (m->dtype != q->dtype && m->dtype != IMP_MIL_BOOL))
            return BAD(i, "the mask does not fit");
    }
    imp_mil_type t = *q;
    t.dim[s + 1] = v->dim[s + 1];
    return give(i, &t);
}

/* ---- shapes ------------------------------------------------------------------------------------------------------ */

static imp_status reshape(infer *i)
{
    const imp_mil_type *x = type_of(i, "x");
    const imp_mil_value *v = imp_mil_const(i->f, i->op, "shape");
    imp_mil_type t = {.dtype = x->dtype};
    uint64_t n = imp_mil_n_elem(&v->type), known = 1, all = imp_mil_n_elem(x);
    int open = -1;
    if (v->type.dtype != IMP_MIL_I32 || v->type.rank > 1 || n > IMP_MIL_MAX_RANK)
        return BAD(i, "shape is no list of int32");
    for (t.rank = 0; t.rank < n; t.rank++) {
        double d = imp_mil_element(IMP_MIL_I32, v->data, t.rank);
        if (d == 0 && t.rank < x->rank) d = (double)x->dim[t.rank];
        if (d == -1 && open < 0) {
            open = (int)t.rank;
            continue;
        }
        if (d < 1) return BAD(i, "shape has a size out of range");
        t.dim[t.rank] = (uint64_t)d;
        if (!imp_mul_u64(known, t.dim[t.rank], &known)) return BAD(i, "shape is too large");
    }
    if (open >= 0) {
        t.dim[open] = all / known;
        known *= t.dim[open];
    }
    if (known != all) {
        char a[96];
        return BAD(i, "%s has not the elements of the new shape", imp_mil_type_text(x, a));
    }
    return give(i, &t);
}

static imp_status transpose(infer *i)
{
    const imp_mil_type *x = type_of(i, "x");
    const imp_mil_value *v = imp_mil_const(i->f, i->op, "perm");
    imp_mil_type t = *x;
    uint32_t seen;
    if (imp_mil_n_elem(&v->type) != x->rank) return BAD(i, "perm must name every dimension");
    IMP_TRY(axes_of(i, "perm", x->rank, &seen));
    for (uint32_t k = 0; k < x->rank; k++) {
        double a = imp_mil_element(IMP_MIL_I32, v->data, k);
        t.dim[k] = x->dim[(uint32_t)(a < 0 ? a + x->rank : a)];
    }
    return give(i, &t);
}

static imp_status expand_dims(infer *i)
{
    const imp_mil_type *x = type_of(i, "x");
    const imp_mil_value *v = imp_mil_const(i->f, i->op, "axes");
    uint64_t n = imp_mil_n_elem(&v->type);
    uint32_t mask, from = 0;
    if (n + x->rank > IMP_MIL_MAX_RANK) return BAD(i, "too many dimensions");
    imp_mil_type t = {.dtype = x->dtype, .rank = x->rank + (uint32_t)n};
    IMP_TRY(axes_of(i, "axes", t.rank, &mask));
    for (uint32_t k = 0; k < t.rank; k++) t.dim[k] = mask >> k & 1 ? 1 : x->dim[from++];
    return give(i, &t);
}

static imp_status squeeze(infer *i)
{
    const imp_mil_type *x = type_of(i, "x");
    imp_mil_type t = {.dtype = x->dtype};
    uint32_t mask;
    bool given = imp_mil_const(i->f, i->op, "axes") != NULL;
    IMP_TRY(axes_of(i, "axes", x->rank, &mask));
    for (uint32_t k = 0; k < x->rank; k++) {
        if (mask >> k & 1 && x->dim[k] == 1) continue;
        if (mask >> k & 1 && given) return BAD(i, "dimension %u is not 1", k);
        t.dim[t.rank++] = x->dim[k];
    }
    return give(i, &t);
}

static imp_status concat(infer *i)
{
    const imp_mil_arg *a = imp_mil_arg_get(i->op, "values");
    imp_mil_type t = *bind_type(i->f, &a->bind[0]);
    uint32_t axis;
    IMP_TRY(axis_of(i, "axis", 0, t.rank, &axis));
    if (imp_mil_number(i->f, i->op, "interleave", 0) != 0) return REFUSE(i, "interleaved concat is not read");
    for (uint32_t k = 1; k < a->n; k++) {
        imp_mil_type u = *bind_type(i->f, &a->bind[k]);
        uint64_t n = u.rank == t.rank ? u.dim[axis] : 0;
        u.dim[axis] = t.dim[axis];
        if (!imp_mil_type_equal(&t, &u)) return BAD(i, "value %u has another shape or type", k);
        t.dim[axis] += n;
    }
    return give(i, &t);
}

static imp_status split(infer *i)
{
    imp_mil_type t = *type_of(i, "x");
    const imp_mil_value *sizes = imp_mil_const(i->f, i->op, "split_sizes");
    uint32_t axis;
    IMP_TRY(axis_of(i, "axis", 0, t.rank, &axis));
    double n =
        sizes != NULL ? (double)imp_mil_n_elem(&sizes->type) : imp_mil_number(i->f, i->op, "num_splits", 0);
    if (n < 1 || n > IMP_MIL_MAX_OUT) return BAD(i, "the number of parts is out of range");
    uint64_t all = t.dim[axis], part = all / (uint64_t)n, sum = 0;
    for (uint32_t k = 0; k < (uint32_t)n; k++) {
        double size = sizes != NULL ? imp_mil_element(sizes->type.dtype, sizes->data, k) : (double)part;
        if (size < 1 || size > (double)all) return BAD(i, "part %u is out of range", k);
        t.dim[axis] = (uint64_t)size;
        sum += t.dim[axis];
        i->out[k] = t;
    }
    *i->n_out = (uint32_t)n;
    return sum == all ? IMP_OK : BAD(i, "the parts do not sum up to %llu", (unsigned long long)all);
}

static bool mask_at(const imp_mil_func *f, const imp_mil_op *op, const char *param, uint32_t k)
{
    const imp_mil_value *v = imp_mil_const(f, op, param);
    return v != NULL && v->type.dtype == IMP_MIL_BOOL && k < imp_mil_n_elem(&v->type) &&
           imp_mil_element(IMP_MIL_BOOL, v->data, k) != 0;
}

imp_status imp_mil_slice_range(const imp_mil_func *f, const imp_mil_op *op, const imp_mil_type *x,
                               int64_t *begin, int64_t *step, uint64_t *count, imp_error *err)
{
    const imp_mil_value *b = imp_mil_const(f, op, "begin"), *e = imp_mil_const(f, op, "end");
    const imp_mil_value *s = imp_mil_const(f, op, "stride");
    if (b == NULL || e == NULL) return imp_fail(err, IMP_UNSUPPORTED, "begin and end must be constants");
    if (b->type.dtype != IMP_MIL_I32 || e->type.dtype != IMP_MIL_I32 || imp_mil_n_elem(&b->type) != x->rank ||
        imp_mil_n_elem(&e->type) != x->rank || (s != NULL && imp_mil_n_elem(&s->type) != x->rank))
        return imp_fail(err, IMP_FORMAT, "begin, end and stride must name every dimension");
    for (uint32_t k = 0; k < x->rank; k++) {
        int64_t n = (int64_t)x->dim[k], from = (int64_t)imp_mil_element(IMP_MIL_I32, b->data, k);
        int64_t to = (int64_t)imp_mil_element(IMP_MIL_I32, e->data, k);
        step[k] = s != NULL ? (int64_t)imp_mil_element(s->type.dtype, s->data, k) : 1;
        if (step[k] < 1) return imp_fail(err, IMP_UNSUPPORTED, "a stride below 1 is not read");
        if (from < 0) from += n;
        if (to < 0) to += n;
        if (mask_at(f, op, "begin_mask", k)) from = 0;
        if (mask_at(f, op, "end_mask", k)) to = n;
        if (mask_at(f, op, "squeeze_mask", k)) to = from + 1;
        to = IMP_MIN(to, n);
        if (from < 0 || from >= to) return imp_fail(err, IMP_FORMAT, "the slice of dimension %u is empty", k);
        begin[k] = from;
        count[k] = (uint64_t)((to - from + step[k] - 1) / step[k]);
    }
    return IMP_OK;
}

static imp_status slice_by_index(infer *i)
{
    const imp_mil_type *x = type_of(i, "x");
    int64_t begin[IMP_MIL_MAX_RANK], step[IMP_MIL_MAX_RANK];
    uint64_t count[IMP_MIL_MAX_RANK];
    imp_mil_type t = {.dtype = x->dtype};
    IMP_TRY(imp_mil_slice_range(i->f, i->op, x, begin, step, count, i->err));
    for (uint32_t k = 0; k < x->rank; k++)
        if (!mask_at(i->f, i->op, "squeeze_mask", k)) t.dim[t.rank++] = count[k];
    return give(i, &t);
}

static imp_status slice_update(infer *i)
{
    const imp_mil_type *x = type_of(i, "x"), *u = type_of(i, "update");
    int64_t begin[IMP_MIL_MAX_RANK], step[IMP_MIL_MAX_RANK];
    uint64_t count[IMP_MIL_MAX_RANK];
    IMP_TRY(imp_mil_slice_range(i->f, i->op, x, begin, step, count, i->err));
    if (u->rank != x->rank || u->dtype != x->dtype || memcmp(u->dim, count, x->rank * sizeof count[0]) != 0)
        return BAD(i, "update has not the shape of the slice");
    return give(i, x);
}

static imp_status gather(infer *i)
{
    const imp_mil_type *x = type_of(i, "x"), *n = type_of(i, "indices");
    uint32_t axis;
    imp_mil_type t = {.dtype = x->dtype};
    IMP_TRY(axis_of(i, "axis", 0, x->rank, &axis));
    if (imp_mil_number(i->f, i->op, "batch_dims", 0) != 0)
        return REFUSE(i, "gather with batch_dims is not read");
    if (n->dtype != IMP_MIL_I32 && n->dtype != IMP_MIL_I16 && n->dtype != IMP_MIL_U16)
        return BAD(i, "indices must be whole numbers");
    if (x->rank - 1 + n->rank > IMP_MIL_MAX_RANK) return BAD(i, "too many dimensions");
    for (uint32_t k = 0; k < axis; k++) t.dim[t.rank++] = x->dim[k];
    for (uint32_t k = 0; k < n->rank; k++) t.dim[t.rank++] = n->dim[k];
    for (uint32_t k = axis + 1; k < x->rank; k++) t.dim[t.rank++] = x->dim[k];
    return give(i, &t);
}

/* ---- compressed weights ---------------------------------------------------------------------------------------------- */

static imp_status affine(infer *i)
{
    const imp_mil_type *q = type_of(i, "quantized_data"), *z = type_of(i, "zero_point"),
                       *s = type_of(i, "scale");
    uint32_t axis;
    imp_mil_type t = *q;
    IMP_TRY(axis_of(i, "axis", 0, q->rank, &axis));
    if ((q->dtype != IMP_MIL_I8 && q->dtype != IMP_MIL_U8) || z->dtype != q->dtype || !is_float(s->dtype) ||
        s->rank > 1 || z->rank > 1 || (s->rank == 1 && s->dim[0] != q->dim[axis]) ||
        (z->rank == 1 && z->dim[0] != q->dim[axis]))
        return BAD(i, "scale and zero_point do not fit the data");
    t.dtype = s->dtype;
    return give(i, &t);
}

/* quantize and dequantize of activations: one scale, or one for each place along axis. */
static imp_status scale_fits(const infer *i, const imp_mil_type *x, imp_mil_dtype whole)
{
    const imp_mil_type *s = type_of(i, "scale"), *z = type_of(i, "zero_point");
    uint32_t axis = 0;
    bool has_axis = imp_mil_const(i->f, i->op, "axis") != NULL;
    if (s->rank > 1 || (s->rank == 1) != has_axis) return BAD(i, "one scale has no axis, several have one");
    if (has_axis) IMP_TRY(axis_of(i, "axis", 0, x->rank, &axis));
    if (has_axis && s->dim[0] != x->dim[axis])
        return BAD(i, "there is no scale for each place along the axis");
    if (z != NULL && (z->dtype != whole || z->rank != s->rank || (z->rank == 1 && z->dim[0] != s->dim[0])))
        return BAD(i, "zero_point does not fit scale and the data");
    return is_float(s->dtype) ? IMP_OK : BAD(i, "scale must be fp16 or fp32");
}

static imp_status quantize(infer *i)
{
    const imp_mil_type *x = type_of(i, "input");
    const char *to = imp_mil_word(i->f, i->op, "output_dtype", "");
    imp_mil_type t = *x;
    t.dtype = strcmp(to, "int8") == 0 ? IMP_MIL_I8 : IMP_MIL_U8;
    if (t.dtype == IMP_MIL_U8 && strcmp(to, "uint8") != 0)
        return BAD(i, "%s is no output_dtype", imp_quote_z(to).s);
    if (!is_float(x->dtype) || x->state || type_of(i, "scale")->dtype != x->dtype)
        return BAD(i, "scale must have input's type");
    IMP_TRY(scale_fits(i, x, t.dtype));
    return give(i, &t);
}

static imp_status dequantize(infer *i)
{
    const imp_mil_type *x = type_of(i, "input");
    imp_mil_type t = *x;
    if (x->dtype != IMP_MIL_I8 && x->dtype != IMP_MIL_U8) return BAD(i, "input must be int8 or uint8");
    IMP_TRY(scale_fits(i, x, x->dtype));
    t.dtype = type_of(i, "scale")->dtype;
    return give(i, &t);
}

static uint32_t log2_of(uint64_t n)
{
    uint32_t b = 0;
    while (b < 16 && 1ull << b < n) b++;
    return 1ull << b == n ? b : 99;
}

static imp_status lut_flat(infer *i)
{
    const imp_mil_type *n = type_of(i, "indices"), *l = type_of(i, "lut");
    const imp_mil_value *s = imp_mil_const(i->f, i->op, "shape");
    imp_mil_type t = {.dtype = l->dtype};
    uint32_t bits = log2_of(l->dim[0]);
    if (n->dtype != IMP_MIL_U8 || n->rank != 1 || !is_float(l->dtype) || l->rank != 1 || bits < 1 ||
        bits > 8 || s->type.dtype != IMP_MIL_U32 || s->type.rank != 1 || s->type.dim[0] > IMP_MIL_MAX_RANK)
        return BAD(i, "indices, lut and shape do not fit");
    uint64_t elem = 1;
    for (; t.rank < s->type.dim[0]; t.rank++) {
        t.dim[t.rank] = (uint64_t)imp_mil_element(IMP_MIL_U32, s->data, t.rank);
        if (t.dim[t.rank] == 0 || !imp_mul_u64(elem, t.dim[t.rank], &elem) || elem > 1ull << 40)
            return BAD(i, "shape is out of range");
    }
    if ((elem * bits + 7) / 8 != n->dim[0])
        return BAD(i, "indices have not the size of shape at %u bits", bits);
    return give(i, &t);
}

static imp_status lut(infer *i)
{
    if (i->opset < 9) return lut_flat(i);
    const imp_mil_type *n = type_of(i, "indices"), *l = type_of(i, "lut");
    uint32_t bits = imp_mil_dtype_bits(n->dtype);
    bool unsigned_ = n->dtype == IMP_MIL_U1 || n->dtype == IMP_MIL_U2 || n->dtype == IMP_MIL_U3 ||
                     n->dtype == IMP_MIL_U4 || n->dtype == IMP_MIL_U6 || n->dtype == IMP_MIL_U8;
    if (imp_mil_const(i->f, i->op, "vector_axis") != NULL) return REFUSE(i, "vector palettes are not read");
    if (!unsigned_ || l->rank != n->rank + 2 || l->dim[l->rank - 1] != 1 ||
        log2_of(l->dim[l->rank - 2]) != bits)
        return BAD(i, "the palette does not fit its indices");
    imp_mil_type t = *n;
    t.dtype = l->dtype;
    for (uint32_t k = 0; k < n->rank; k++)
        if (n->dim[k] % l->dim[k] != 0) return BAD(i, "dimension %u is no multiple of its groups", k);
    return give(i, &t);
}

static imp_status blockwise(infer *i)
{
    const imp_mil_type *d = type_of(i, "data"), *s = type_of(i, "scale"), *o = type_of(i, "offset");
    if (d->dtype != IMP_MIL_I4 && d->dtype != IMP_MIL_U4 && d->dtype != IMP_MIL_I8 && d->dtype != IMP_MIL_U8)
        return BAD(i, "data must have 4 or 8 bits");
    if (!is_float(s->dtype) || s->rank != d->rank ||
        (o != NULL && (o->dtype != d->dtype || o->rank != d->rank)))
        return BAD(i, "scale and offset must have the dimensions of data");
    imp_mil_type t = *d;
    t.dtype = s->dtype;
    for (uint32_t k = 0; k < d->rank; k++)
        if (d->dim[k] % s->dim[k] != 0 || (o != NULL && o->dim[k] != s->dim[k]))
            return BAD(i, "dimension %u is no multiple of its blocks", k);
    return give(i, &t);
}

/* ---- states ------------------------------------------------------------------------------------------------------------ */

static imp_status read_state(infer *i)
{
    imp_mil_type t = *type_of(i, "input");
    if (!t.state) return BAD(i, "input is no state");
    t.state = false;
    return give(i, &t);
}

static imp_status write_state(infer *i)
{
    const imp_mil_type *t = type_of(i, "input");
    imp_mil_type d = *type_of(i, "data");
    d.state = true;
    if (!imp_mil_type_equal(t, &d)) return BAD(i, "data has not the type of the state");
    *i->n_out = 0;
    return IMP_OK;
}

/* ---- the table ----------------------------------------------------------------------------------------------------------- */

typedef struct mil_op {
    const char *name;
    int32_t spec;
    const char *sig;
    imp_status (*infer)(infer *i);
} mil_op;

static const mil_op ops[] = {
    {"conv", 6, "x weight ?bias ?strides! ?pad_type! ?pad! ?dilations! ?groups!", conv},
    {"linear", 6, "x weight! ?bias!", linear},
    {"matmul", 6, "x y ?transpose_x! ?transpose_y!", matmul},
    {"scaled_dot_product_attention", 9, "query key value ?attn_mask", attention},
    {"add", 6, "x y", binary},
    {"sub", 6, "x y", binary},
    {"mul", 6, "x y", binary},
    {"real_div", 6, "x y", binary},
    {"maximum", 6, "x y", binary},
    {"minimum", 6, "x y", binary},
    {"pow", 6, "x y", binary},
    {"abs", 6, "x", unary},
    {"silu", 6, "x", unary},
    {"sigmoid", 6, "x", unary},
    {"tanh", 6, "x", unary},
    {"relu", 6, "x", unary},
    {"exp", 6, "x", unary},
    {"erf", 6, "x", unary},
    {"sqrt", 6, "x", unary},
    {"square", 6, "x", unary},
    {"rsqrt", 6, "x ?epsilon!", unary},
    {"inverse", 6, "x ?epsilon!", unary},
    {"gelu", 6, "x ?mode!", gelu},
    {"clip", 6, "x alpha! beta!", clip},
    {"identity", 6, "x", any_unary},
    {"cast", 6, "x dtype!", cast},
    {"select", 6, "cond a b", select_},
    {"softmax", 6, "x ?axis!", softmax},
    {"layer_norm", 6, "x ?axes! ?gamma! ?beta! ?epsilon!", layer_norm},
    {"reduce_mean", 6, "x ?axes! ?keep_dims!", reduce},
    {"reduce_sum", 6, "x ?axes! ?keep_dims!", reduce},
    {"reduce_max", 6, "x ?axes! ?keep_dims!", reduce},
    {"reshape", 6, "x shape!", reshape},
    {"transpose", 6, "x perm!", transpose},
    {"expand_dims", 6, "x axes!", expand_dims},
    {"squeeze", 6, "x ?axes!", squeeze},
    {"concat", 6, "values* axis! ?interleave!", concat},
    {"split", 6, "x ?num_splits! ?split_sizes! axis!", split},
    {"slice_by_index", 6, "x begin end ?stride! ?begin_mask! ?end_mask! ?squeeze_mask!", slice_by_index},
    {"slice_update", 9, "x update begin end ?stride! ?begin_mask! ?end_mask! ?squeeze_mask!", slice_update},
    {"gather", 6, "x indices ?axis! ?batch_dims! ?validate_indices!", gather},
    {"constexpr_affine_dequantize", 7, "quantized_data! zero_point! scale! axis!", affine},
    {"constexpr_lut_to_dense", 7, "indices! lut! ?shape! ?vector_axis!", lut},
    {"constexpr_blockwise_shift_scale", 9, "data! scale! ?offset!", blockwise},
    {"quantize", 8, "input scale! output_dtype! ?zero_point! ?axis!", quantize},
    {"dequantize", 8, "input scale! ?zero_point! ?axis!", dequantize},
    {"read_state", 9, "input", read_state},
    {"write_state", 9, "input data", write_state},
};

static const mil_op *find(const char *name)
{
    for (size_t i = 0; i < IMP_COUNT(ops); i++)
        if (strcmp(ops[i].name, name) == 0) return &ops[i];
    return NULL;
}

int32_t imp_mil_op_spec(const imp_mil_func *f, const imp_mil_op *op)
{
    const mil_op *o = find(op->type);
    (void)f;
    if (strcmp(op->type, "const") == 0) return IMP_MIL_SPEC_MIN;
    if (o == NULL) return 0;
    /* a palette with shaped indices is the form of version 9 */
    if (o->infer == lut && imp_mil_arg_get(op, "indices") != NULL) return 9;
    return o->spec;
}

/* One word of a signature. */
typedef struct param {
    const char *name;
    size_t n;
    bool optional, constant, list;
} param;

static bool next_param(const char **sig, param *p)
{
    while (**sig == ' ') ++*sig;
    if (**sig == 0) return false;
    *p = (param){.optional = **sig == '?'};
    *sig += p->optional;
    p->name = *sig;
    p->n = strcspn(*sig, " !*");
    *sig += p->n;
    p->constant = **sig == '!';
    p->list = **sig == '*';
    *sig += p->constant || p->list;
    return true;
}

static bool is_named(const param *p, const char *name)
{
    return strlen(name) == p->n && memcmp(name, p->name, p->n) == 0;
}

static bool made_by_constexpr(const imp_mil_func *f, const imp_mil_bind *b)
{
    const imp_mil_var *v = &f->var[b->var];
    return v->op != UINT32_MAX && strncmp(f->op[v->op].type, "constexpr_", 10) == 0;
}

static imp_status check_arg(infer *i, const param *p, const imp_mil_arg *a)
{
    if (a->n != 1 && !p->list) return BAD(i, "parameter %s is bound to %u values", a->param, a->n);
    for (uint32_t k = 0; k < a->n; k++) {
        const imp_mil_bind *b = &a->bind[k];
        bool constant = b->value != NULL || i->f->var[b->var].value != NULL;
        bool weight = is_named(p, "weight") || is_named(p, "bias");
        if (p->constant && !constant && !(weight && made_by_constexpr(i->f, b)))
            return BAD(i, "parameter %s must be a constant", a->param);
        const imp_mil_type *t = bind_type(i->f, b);
        if (t->state && strcmp(a->param, "input") != 0) return BAD(i, "%s is a state", a->param);
        if (t->dtype == IMP_MIL_STRING && !p->constant) return BAD(i, "%s is a text", a->param);
    }
    return IMP_OK;
}

static imp_status check_params(infer *i, const mil_op *o)
{
    const char *sig = o->sig;
    uint32_t n_arg = 0, n_attr = 0;
    param p;
    bool early = strncmp(o->name, "constexpr_", 10) == 0 && i->opset < 9;
    while (next_param(&sig, &p)) {
        uint32_t seen = 0;
        for (uint32_t k = 0; k < i->op->n_arg; k++) {
            if (!is_named(&p, i->op->arg[k].param)) continue;
            IMP_TRY(check_arg(i, &p, &i->op->arg[k]));
            seen++, n_arg++;
        }
        for (uint32_t k = 0; k < i->op->n_attr && early; k++)
            if (is_named(&p, i->op->attr[k].name)) seen++, n_attr++;
        if (seen > 1) return BAD(i, "parameter %.*s is given twice", (int)p.n, p.name);
        if (seen == 0 && !p.optional) return BAD(i, "parameter %.*s is missing", (int)p.n, p.name);
    }
    if (early && i->op->n_arg > 0) return BAD(i, "before CoreML8 the parameters of this op are attributes");
    if (n_arg != i->op->n_arg || n_attr != i->op->n_attr)
        return BAD(i, "it has a parameter that %s does not know", o->name);
    return IMP_OK;
}

imp_status imp_mil_infer(const imp_mil_func *f, const imp_mil_op *op, int32_t opset, imp_mil_type *out,
                         uint32_t *n_out, imp_error *err)
{
    infer i = {f, op, opset, out, n_out, err};
    const mil_op *o = find(op->type);
    if (o == NULL) return imp_fail(err, IMP_UNSUPPORTED, "there is no op %s here", imp_quote_z(op->type).s);
    if (imp_mil_op_spec(f, op) > opset)
        return BAD(&i, "it needs the opset CoreML%d, the function has CoreML%d", imp_mil_op_spec(f, op) - 1,
                   opset - 1);
    IMP_TRY(check_params(&i, o));
    if (o->infer == lut && opset < 9 && imp_mil_const(f, op, "shape") == NULL)
        return BAD(&i, "parameter shape is missing");
    return o->infer(&i);
}
