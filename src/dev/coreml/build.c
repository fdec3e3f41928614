/* dev/coreml/build.c - making one function of an ML Program. */
#include "dev/coreml/build.h"

#include <stdio.h>

#include "tensor/tensor.h"

static bool bad(ml_build *b, imp_status s, const char *what)
{
    if (b->status == IMP_OK) b->status = imp_fail(b->err, s, "%s", what);
    return false;
}

static void *take(ml_build *b, size_t n, size_t size)
{
    void *p = b->status == IMP_OK ? imp_arena_array(b->arena, n > 0 ? n : 1, size) : NULL;
    if (p == NULL) bad(b, IMP_NOMEM, "out of memory while compiling for Core ML");
    return p;
}

/* Room for one more element of *p, which holds n. */
static bool grow(ml_build *b, void *p, uint32_t n, uint32_t *cap, size_t size)
{
    void **at = p;
    if (n < *cap) return true;
    uint32_t more = *cap == 0 ? 64 : *cap * 2;
    void *q = take(b, more, size);
    if (q == NULL) return false;
    if (n > 0) memcpy(q, *at, n * size);
    *at = q;
    *cap = more;
    return true;
}

void ml_build_init(ml_build *b, imp_arena *arena, imp_mil_func *f, const char *name, int32_t spec,
                   imp_error *err)
{
    char opset[24];
    *b = (ml_build){.arena = arena, .f = f, .spec = spec, .status = IMP_OK, .err = err};
    snprintf(opset, sizeof opset, "CoreML%d", spec - 1);
    *f = (imp_mil_func){.name = imp_arena_strndup(arena, name, strlen(name)),
                        .opset = imp_arena_strndup(arena, opset, strlen(opset))};
    if (f->name == NULL || f->opset == NULL) bad(b, IMP_NOMEM, "out of memory while compiling for Core ML");
}

const imp_mil_type *ml_type_of(const ml_build *b, ml_val v)
{
    return &b->f->var[v - 1].type;
}

imp_mil_type ml_shape4(imp_mil_dtype t, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    return (imp_mil_type){.dtype = t, .rank = 4, .dim = {a, b, c, d}};
}

/* An identifier that is new in the function, made from any text. */
static const char *fresh(ml_build *b, const char *name)
{
    char s[128];
    size_t n = 0;
    if (!((*name >= 'A' && *name <= 'Z') || (*name >= 'a' && *name <= 'z') || *name == '_')) s[n++] = '_';
    for (const char *p = name; *p && n < 100; p++) {
        bool ok = (*p >= '0' && *p <= '9') || (*p >= 'A' && *p <= 'Z') || (*p >= 'a' && *p <= 'z');
        s[n++] = ok ? *p : '_';
    }
    snprintf(s + n, sizeof s - n, "_%u", b->n_name++);
    const char *copy = imp_arena_strndup(b->arena, s, strlen(s));
    if (copy == NULL) bad(b, IMP_NOMEM, "out of memory while compiling for Core ML");
    return copy;
}

static ml_val add_var(ml_build *b, const char *name, const imp_mil_type *t, const imp_mil_value *value,
                      uint32_t op)
{
    if (!grow(b, &b->f->var, b->f->n_var, &b->cap_var, sizeof *b->f->var)) return 0;
    b->f->var[b->f->n_var++] = (imp_mil_var){name, *t, value, op};
    return b->f->n_var;
}

static imp_mil_op *add_op(ml_build *b, const char *type, const char *name)
{
    if (b->status != IMP_OK || !grow(b, &b->f->op, b->f->n_op, &b->cap_op, sizeof *b->f->op)) return NULL;
    imp_mil_op *op = &b->f->op[b->f->n_op];
    *op = (imp_mil_op){.type = type, .name = fresh(b, name)};
    return b->status == IMP_OK ? op : NULL;
}

/* The op's results have these types: it becomes part of the function. First result. */
static ml_val finish(ml_build *b, imp_mil_op *op, const imp_mil_type *t, uint32_t n)
{
    ml_val first = 0;
    op->out = take(b, n, sizeof *op->out);
    if (op->out == NULL) return 0;
    op->n_out = n;
    for (uint32_t i = 0; i < n; i++) {
        char s[160];
        const char *name = op->name;
        if (n > 1) {
            snprintf(s, sizeof s, "%s_%u", op->name, i);
            name = imp_arena_strndup(b->arena, s, strlen(s));
            if (name == NULL) return bad(b, IMP_NOMEM, "out of memory while compiling for Core ML"), 0;
        }
        ml_val v = add_var(b, name, &t[i], NULL, b->f->n_op);
        if (v == 0) return 0;
        op->out[i] = (imp_mil_out){name, t[i], v - 1};
        if (i == 0) first = v;
    }
    b->f->n_op++;
    return first;
}

ml_val ml_input(ml_build *b, const char *name, imp_mil_type t)
{
    if (b->status != IMP_OK || !grow(b, &b->f->in, b->f->n_in, &b->cap_in, sizeof *b->f->in)) return 0;
    const char *copy = imp_arena_strndup(b->arena, name, strlen(name));
    ml_val v = copy != NULL ? add_var(b, copy, &t, NULL, UINT32_MAX) : 0;
    if (v == 0) return bad(b, IMP_NOMEM, "out of memory while compiling for Core ML"), 0;
    b->f->in[b->f->n_in++] = (imp_mil_out){copy, t, v - 1};
    return v;
}

/* The value gets a name of its own by an identity, so that outputs are called what callers expect. */
void ml_output(ml_build *b, ml_val v, const char *name)
{
    ml_val o = ml_op(b, "identity", name, "x", v, NULL);
    if (o == 0 || !grow(b, &b->f->out, b->f->n_out, &b->cap_out, sizeof *b->f->out)) return;
    const char *copy = imp_arena_strndup(b->arena, name, strlen(name));
    if (copy == NULL) {
        bad(b, IMP_NOMEM, "out of memory while compiling for Core ML");
        return;
    }
    b->f->var[o - 1].name = copy;
    b->f->op[b->f->n_op - 1].out[0].name = copy;
    b->f->out[b->f->n_out++] = (imp_mil_bind){.name = copy, .var = o - 1};
}

/* ---- constants ------------------------------------------------------------------------------------------------ */

ml_val ml_const(ml_build *b, const char *name, const imp_mil_value *v)
{
    imp_mil_op *op = add_op(b, "const", name);
    if (op == NULL) return 0;
    op->attr = take(b, 1, sizeof *op->attr);
    if (op->attr == NULL) return 0;
    op->attr[0] = (imp_mil_attr){"val", *v};
    op->n_attr = 1;
    ml_val out = finish(b, op, &v->type, 1);
    if (out != 0) b->f->var[out - 1].value = &b->f->op[b->f->n_op - 1].attr[0].value;
    return out;
}

/* A small inline constant, found again when it was made before. */
static ml_val small(ml_build *b, imp_mil_type t, const void *data, size_t n)
{
    if (b->status != IMP_OK) return 0;
    for (uint32_t i = 0; i < b->n_small; i++) {
        const imp_mil_value *v = b->f->var[b->small[i] - 1].value;
        if (imp_mil_type_equal(&v->type, &t) &&
            (t.dtype == IMP_MIL_STRING ? strcmp(v->data, data) == 0 : memcmp(v->data, data, n) == 0))
            return b->small[i];
    }
    void *copy = take(b, n, 1);
    if (copy == NULL || !grow(b, &b->small, b->n_small, &b->cap_small, sizeof *b->small)) return 0;
    memcpy(copy, data, n);
    ml_val c = ml_const(b, "c", &(imp_mil_value){.type = t, .data = copy});
    if (c != 0) b->small[b->n_small++] = c;
    return c;
}

ml_val ml_f16(ml_build *b, float x)
{
    uint16_t h = imp_f32_to_f16(x);
    return small(b, (imp_mil_type){.dtype = IMP_MIL_F16}, &h, sizeof h);
}

ml_val ml_i32(ml_build *b, int32_t x)
{
    return small(b, (imp_mil_type){.dtype = IMP_MIL_I32}, &x, sizeof x);
}

ml_val ml_flag(ml_build *b, bool x)
{
    uint8_t v = x;
    return small(b, (imp_mil_type){.dtype = IMP_MIL_BOOL}, &v, 1);
}

ml_val ml_text(ml_build *b, const char *s)
{
    return small(b, (imp_mil_type){.dtype = IMP_MIL_STRING}, s, strlen(s) + 1);
}

ml_val ml_i32s(ml_build *b, const int32_t *x, uint32_t n)
{
    return small(b, (imp_mil_type){.dtype = IMP_MIL_I32, .rank = 1, .dim = {n}}, x, n * sizeof *x);
}

/* ---- ops ---------------------------------------------------------------------------------------------------------- */

static ml_val infer(ml_build *b, imp_mil_op *op)
{
    imp_mil_type t[IMP_MIL_MAX_OUT];
    uint32_t n = 0;
    imp_error err = {0};
    imp_status s = imp_mil_infer(b->f, op, b->spec, t, &n, &err);
    if (s != IMP_OK) {
        if (b->status == IMP_OK)
            b->status = imp_fail(b->err, s, "%s (%s): %.300s", op->name, op->type, err.text);
        return 0;
    }
    return finish(b, op, t, n);
}

static bool bind(ml_build *b, imp_mil_op *op, const char *param, const ml_val *v, uint32_t n)
{
    imp_mil_bind *bind = take(b, n, sizeof *bind);
    if (bind == NULL) return false;
    for (uint32_t i = 0; i < n; i++) {
        if (v[i] == 0) return bad(b, IMP_INTERNAL, "an operand is missing");
        bind[i] = (imp_mil_bind){.name = b->f->var[v[i] - 1].name, .var = v[i] - 1};
    }
    op->arg[op->n_arg++] = (imp_mil_arg){param, n, bind};
    return true;
}

ml_val ml_op(ml_build *b, const char *type, const char *name, ...)
{
    enum { MAX_ARG = 10 };
    imp_mil_op *op = add_op(b, type, name);
    if (op == NULL || (op->arg = take(b, MAX_ARG, sizeof *op->arg)) == NULL) return 0;
    va_list ap;
    va_start(ap, name);
    bool ok = true;
    for (const char *p; ok && (p = va_arg(ap, const char *)) != NULL;) {
        ml_val v = va_arg(ap, ml_val);
        if (v != 0) ok = bind(b, op, p, &v, 1);
    }
    va_end(ap);
    return ok && b->status == IMP_OK ? infer(b, op) : 0;
}

ml_val ml_op_attr(ml_build *b, const char *type, const char *name, const imp_mil_attr *attr, uint32_t n,
                  const imp_mil_type *t)
{
    imp_mil_op *op = add_op(b, type, name);
    if (op == NULL || (op->attr = take(b, n, sizeof *op->attr)) == NULL) return 0;
    memcpy(op->attr, attr, n * sizeof *attr);
    op->n_attr = n;
    return finish(b, op, t, 1);
}

ml_val ml_op_inline(ml_build *b, const char *type, const char *name, const imp_mil_attr *attr, uint32_t n)
{
    imp_mil_op *op = add_op(b, type, name);
    if (op == NULL || (op->arg = take(b, n, sizeof *op->arg)) == NULL) return 0;
    for (uint32_t i = 0; i < n; i++) {
        imp_mil_bind *bind = take(b, 1, sizeof *bind);
        imp_mil_value *v = take(b, 1, sizeof *v);
        if (bind == NULL || v == NULL) return 0;
        *v = attr[i].value;
        bind->value = v;
        op->arg[op->n_arg++] = (imp_mil_arg){attr[i].name, 1, bind};
    }
    return infer(b, op);
}

ml_val ml_concat(ml_build *b, const char *name, const ml_val *v, uint32_t n, int32_t axis)
{
    ml_val a = ml_i32(b, axis), inter = ml_flag(b, false);
    imp_mil_op *op = add_op(b, "concat", name);
    if (op == NULL || (op->arg = take(b, 3, sizeof *op->arg)) == NULL) return 0;
    if (!bind(b, op, "values", v, n) || !bind(b, op, "axis", &a, 1) || !bind(b, op, "interleave", &inter, 1))
        return 0;
    return infer(b, op);
}

void ml_split(ml_build *b, const char *name, ml_val x, uint32_t n, int32_t axis, ml_val *out)
{
    ml_val count = ml_i32(b, (int32_t)n);
    ml_val first = ml_op(b, "split", name, "x", x, "num_splits", count, "axis", ml_i32(b, axis), NULL);
    for (uint32_t i = 0; i < n; i++) out[i] = first != 0 ? first + i : 0;
}

ml_val ml_reshape(ml_build *b, const char *name, ml_val x, uint64_t n1, uint64_t n2, uint64_t n3, uint64_t n4)
{
    const int32_t shape[4] = {(int32_t)n1, (int32_t)n2, (int32_t)n3, (int32_t)n4};
    return ml_op(b, "reshape", name, "x", x, "shape", ml_i32s(b, shape, 4), NULL);
}
