/* fmt/mil_types.c - dtypes, shapes and constants of ML Programs. */
#include "fmt/mlpackage_int.h"

#include <stdio.h>

#include "tensor/tensor.h"

typedef struct dtype_row {
    imp_mil_dtype t;
    uint32_t bits, blob;
    const char *name;
} dtype_row;

static const dtype_row rows[] = {
#define IMP_X(name, id, bits, blob, text) {IMP_MIL_##name, bits, blob, text},
    IMP_MIL_DTYPE_LIST(IMP_X)
#undef IMP_X
};

static const dtype_row *row_of(imp_mil_dtype t)
{
    for (size_t i = 0; i < IMP_COUNT(rows); i++)
        if (rows[i].t == t) return &rows[i];
    return NULL;
}

const char *imp_mil_dtype_name(imp_mil_dtype t)
{
    const dtype_row *r = row_of(t);
    return r != NULL ? r->name : NULL;
}

uint32_t imp_mil_dtype_bits(imp_mil_dtype t)
{
    const dtype_row *r = row_of(t);
    return r != NULL ? r->bits : 0;
}

uint32_t mlp_blob_id(imp_mil_dtype t)
{
    const dtype_row *r = row_of(t);
    return r != NULL ? r->blob : 0;
}

int32_t mlp_array_type(imp_mil_dtype t)
{
    return t == IMP_MIL_F16   ? MLP_ARRAY_F16
           : t == IMP_MIL_F32 ? MLP_ARRAY_F32
           : t == IMP_MIL_I8  ? MLP_ARRAY_I8
           : t == IMP_MIL_I32 ? MLP_ARRAY_I32
                              : 0;
}

imp_mil_dtype mlp_array_dtype(uint64_t id)
{
    static const imp_mil_dtype all[] = {IMP_MIL_F16, IMP_MIL_F32, IMP_MIL_I8, IMP_MIL_I32};
    for (size_t i = 0; i < IMP_COUNT(all); i++)
        if ((uint64_t)mlp_array_type(all[i]) == id) return all[i];
    return IMP_MIL_NONE;
}

bool mlp_identifier(const char *s)
{
    for (const char *p = s; *p; p++) {
        bool letter = (*p >= 'A' && *p <= 'Z') || (*p >= 'a' && *p <= 'z') || *p == '_';
        bool later = (*p >= '0' && *p <= '9') || *p == '@';
        if (!letter && !(later && p != s)) return false;
    }
    return *s != 0;
}

int32_t mlp_opset_spec(const char *opset)
{
    if (strncmp(opset, "CoreML", 6) != 0 || opset[6] < '5' || opset[6] > '9' || opset[7] != 0) return 0;
    return opset[6] - '0' + 1;
}

double imp_mil_element(imp_mil_dtype t, const void *data, uint64_t i)
{
    const uint8_t *p = data;
    uint32_t bits = imp_mil_dtype_bits(t);
    if (bits < 8) {
        uint64_t at = i * bits, byte = at / 8;
        uint32_t shift = (uint32_t)(at % 8), v = (uint32_t)p[byte] >> shift;
        if (shift + bits > 8) v |= (uint32_t)p[byte + 1] << (8 - shift);
        v &= (1u << bits) - 1;
        return t == IMP_MIL_I4 && v >= 8 ? (double)v - 16 : (double)v;
    }
    p += i * (bits / 8);
    switch (t) {
    case IMP_MIL_BOOL:
    case IMP_MIL_U8: return *p;
    case IMP_MIL_I8: return (int8_t)*p;
    case IMP_MIL_F16:
    case IMP_MIL_U16:
    case IMP_MIL_I16: {
        uint16_t v;
        memcpy(&v, p, 2);
        return t == IMP_MIL_F16 ? (double)imp_f16_to_f32(v) : t == IMP_MIL_U16 ? v : (double)(int16_t)v;
    }
    case IMP_MIL_F32: {
        float v;
        memcpy(&v, p, 4);
        return (double)v;
    }
    default: {
        uint32_t v;
        memcpy(&v, p, 4);
        return t == IMP_MIL_U32 ? (double)v : (double)(int32_t)v;
    }
    }
}

bool imp_mil_type_equal(const imp_mil_type *a, const imp_mil_type *b)
{
    return a->dtype == b->dtype && a->state == b->state && a->rank == b->rank &&
           memcmp(a->dim, b->dim, a->rank * sizeof a->dim[0]) == 0;
}

uint64_t imp_mil_n_elem(const imp_mil_type *t)
{
    uint64_t n = 1;
    for (uint32_t i = 0; i < t->rank; i++) n *= t->dim[i];
    return n;
}

uint64_t imp_mil_bytes(const imp_mil_type *t)
{
    return (imp_mil_n_elem(t) * imp_mil_dtype_bits(t->dtype) + 7) / 8;
}

const char *imp_mil_type_text(const imp_mil_type *t, char out[96])
{
    int n = snprintf(out, 96, "%s%s[", t->state ? "state " : "", imp_mil_dtype_name(t->dtype));
    for (uint32_t i = 0; i < t->rank && n > 0 && n < 80; i++)
        n += snprintf(out + n, 96 - (size_t)n, "%s%llu", i > 0 ? ", " : "", (unsigned long long)t->dim[i]);
    if (n > 0 && n < 95) memcpy(out + n, "]", 2);
    return out;
}

const imp_mil_arg *imp_mil_arg_get(const imp_mil_op *op, const char *param)
{
    for (uint32_t i = 0; i < op->n_arg; i++)
        if (strcmp(op->arg[i].param, param) == 0) return &op->arg[i];
    return NULL;
}

const imp_mil_value *imp_mil_const(const imp_mil_func *f, const imp_mil_op *op, const char *param)
{
    for (uint32_t i = 0; i < op->n_attr; i++)
        if (strcmp(op->attr[i].name, param) == 0) return &op->attr[i].value;
    const imp_mil_arg *a = imp_mil_arg_get(op, param);
    if (a == NULL || a->n != 1) return NULL;
    return a->bind[0].value != NULL ? a->bind[0].value : f->var[a->bind[0].var].value;
}

double imp_mil_number(const imp_mil_func *f, const imp_mil_op *op, const char *param, double def)
{
    const imp_mil_value *v = imp_mil_const(f, op, param);
    if (v == NULL || v->type.dtype == IMP_MIL_STRING || imp_mil_n_elem(&v->type) == 0) return def;
    return imp_mil_element(v->type.dtype, v->data, 0);
}

const char *imp_mil_word(const imp_mil_func *f, const imp_mil_op *op, const char *param, const char *def)
{
    const imp_mil_value *v = imp_mil_const(f, op, param);
    return v != NULL && v->type.dtype == IMP_MIL_STRING ? v->data : def;
}
