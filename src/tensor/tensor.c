/* tensor/tensor.c - the dtype table and views of tensors.
 *
 * Place:   the functions of tensor.h; decoders are in decode.c, encoders in encode.c and
 *          encode_k.c, half precision in half.c.
 * Idea:    dtype_list.inc expands into the table; sizes are computed in imp_dtype_bytes alone. A view that a parser
 *          has checked has sizes that cannot overflow, so the functions on views need no error path.
 * Threads: read-only tables, pure functions. */
#include "tensor/decode.h"
#include "tensor/encode.h"

static const imp_dtype_info dtype_table[] = {
#define X(id, name, elem, bytes, gguf, st, decode, encode)                                                   \
    [id] = {name, elem, bytes, gguf, st, decode, encode},
#include "tensor/dtype_list.inc"
#undef X
};
_Static_assert(IMP_COUNT(dtype_table) == IMP_N_DTYPE, "dtype_list.inc has a row for every dtype");

/* Types GGUF knows and we refuse; numbers that were withdrawn from the format included. */
static const struct {
    uint32_t id;
    const char *name;
} gguf_refused[] = {
    {4, "q4_2"},    {5, "q4_3"},        {9, "q8_1"},        {15, "q8_k"},       {16, "iq2_xxs"},
    {17, "iq2_xs"}, {18, "iq3_xxs"},    {19, "iq1_s"},      {21, "iq3_s"},      {22, "iq2_s"},
    {29, "iq1_m"},  {31, "q4_0_4_4"},   {32, "q4_0_4_8"},   {33, "q4_0_8_8"},   {34, "tq1_0"},
    {35, "tq2_0"},  {36, "iq4_nl_4_4"}, {37, "iq4_nl_4_8"}, {38, "iq4_nl_8_8"}, {40, "nvfp4"},
    {41, "q1_0"},
};

const imp_dtype_info *imp_dtype_get(imp_dtype t)
{
    return &dtype_table[(unsigned)t < IMP_N_DTYPE ? t : IMP_DTYPE_NONE];
}

imp_dtype imp_dtype_from_gguf(uint32_t id)
{
    for (int t = 0; t < IMP_N_DTYPE; t++)
        if (dtype_table[t].gguf_id >= 0 && (uint32_t)dtype_table[t].gguf_id == id) return (imp_dtype)t;
    return IMP_DTYPE_NONE;
}

const char *imp_dtype_gguf_name(uint32_t id)
{
    imp_dtype t = imp_dtype_from_gguf(id);
    if (t != IMP_DTYPE_NONE) return dtype_table[t].name;
    for (size_t i = 0; i < IMP_COUNT(gguf_refused); i++)
        if (gguf_refused[i].id == id) return gguf_refused[i].name;
    return NULL;
}

imp_dtype imp_dtype_from_st(const char *name, size_t n)
{
    for (int t = 0; t < IMP_N_DTYPE; t++) {
        const char *s = dtype_table[t].st_name;
        if (s != NULL && strlen(s) == n && memcmp(s, name, n) == 0) return (imp_dtype)t;
    }
    return IMP_DTYPE_NONE;
}

imp_dtype imp_dtype_from_name(const char *name)
{
    for (int t = 0; t < IMP_N_DTYPE; t++)
        if (strcmp(dtype_table[t].name, name) == 0) return (imp_dtype)t;
    return IMP_DTYPE_NONE;
}

imp_status imp_dtype_bytes(imp_dtype t, uint64_t n, uint64_t *out)
{
    const imp_dtype_info *d = imp_dtype_get(t);
    *out = 0;
    if (d->block_elem == 0) return IMP_INVALID;
    if (n % d->block_elem != 0) return IMP_FORMAT;
    return imp_mul_u64(n / d->block_elem, d->block_bytes, out) ? IMP_OK : IMP_TOO_LARGE;
}

uint64_t imp_tensor_n_elem(const imp_tensor *t)
{
    uint64_t n = 1;
    for (uint32_t i = 0; i < t->n_dim; i++) n *= t->dim[i];
    return n;
}

uint64_t imp_tensor_n_row(const imp_tensor *t)
{
    uint64_t n = 1;
    for (uint32_t i = 0; i + 1 < t->n_dim; i++) n *= t->dim[i];
    return n;
}

uint64_t imp_tensor_n_col(const imp_tensor *t)
{
    return t->n_dim == 0 ? 1 : t->dim[t->n_dim - 1];
}

uint64_t imp_tensor_row_bytes(const imp_tensor *t)
{
    const imp_dtype_info *d = imp_dtype_get(t->dtype);
    uint64_t n = imp_tensor_n_col(t);
    if (t->dtype == IMP_AFFINE) return n * t->bits / 8;
    return d->block_elem == 0 ? 0 : n / d->block_elem * d->block_bytes;
}

/* Bytes of one row of scales (the biases take as many). */
static uint64_t scale_row_bytes(const imp_tensor *t)
{
    if (t->dtype != IMP_AFFINE || t->group == 0) return 0;
    return imp_tensor_n_col(t) / t->group * imp_dtype_get(t->scale_dtype)->block_bytes;
}

uint64_t imp_tensor_bytes(const imp_tensor *t)
{
    return imp_tensor_n_row(t) * (imp_tensor_row_bytes(t) + 2 * scale_row_bytes(t));
}

void imp_tensor_row_f32(const imp_tensor *t, uint64_t row, float *out)
{
    const uint8_t *p = (const uint8_t *)t->data + row * imp_tensor_row_bytes(t);
    const imp_dtype_info *d = imp_dtype_get(t->dtype);
    if (t->dtype == IMP_AFFINE) {
        uint64_t skip = row * scale_row_bytes(t);
        imp_decode_affine(p, t->bits, t->group, (const uint8_t *)t->scales + skip,
                          (const uint8_t *)t->biases + skip, t->scale_dtype, out, imp_tensor_n_col(t));
    } else if (d->to_f32 != NULL) {
        d->to_f32(p, out, imp_tensor_n_col(t));
    }
}

imp_tensor imp_tensor_index(const imp_tensor *t, uint64_t i)
{
    imp_tensor v = *t;
    v.n_dim = t->n_dim - 1;
    for (uint32_t k = 0; k < v.n_dim; k++) v.dim[k] = t->dim[k + 1];
    v.dim[v.n_dim] = 1;
    uint64_t row = i * imp_tensor_n_row(&v);
    v.data = (const uint8_t *)t->data + row * imp_tensor_row_bytes(&v);
    if (t->dtype == IMP_AFFINE) {
        v.scales = (const uint8_t *)t->scales + row * scale_row_bytes(t);
        v.biases = (const uint8_t *)t->biases + row * scale_row_bytes(t);
    }
    return v;
}
