/* dev/cuda/weights.c - which layout each weight gets, and filling the weights region.
 *
 * Idea:    a file's rows go to the device as they are and are rearranged there (pack.cu). Types without a layout of their
 *          own are decoded here and become f16 (MXFP4, whose range f16 has not: bf16, which is exact for it). */
#include "dev/cuda/cuda.h"

enum { STAGING = 64 << 20 };

const char *imp_cuda_weight_refusal(const imp_tensor *t)
{
    if (t->dtype == IMP_AFFINE) return NULL;
    const imp_dtype_info *i = imp_dtype_get(t->dtype);
    if (i->to_f32 == NULL) return "no CUDA kernel multiplies weights of this type";
    return NULL;
}

uint32_t imp_cuda_type(const imp_tensor *t)
{
    uint32_t block = imp_dtype_get(t->dtype)->block_elem;
    if (block > 1 && imp_tensor_n_col(t) % block != 0) return CU_F16; /* rows end inside a block */
    switch (t->dtype) {
    case IMP_F32:
    case IMP_F64: return CU_F32;
    case IMP_BF16:
    case IMP_MXFP4: return CU_BF16;
    case IMP_Q8_0: return CU_Q8;
    case IMP_Q6_K: return CU_Q8F;
    case IMP_Q4_0: return CU_Q4;
    case IMP_Q4_1:
    case IMP_Q4_K: return CU_Q4M;
    default: return CU_F16;
    }
}

/* What pack.cu reads: the file's own rows, or rows decoded here. */
static uint32_t from_of(const imp_tensor *t, uint32_t type)
{
    switch (t->dtype) {
    case IMP_F16: return CU_FROM_F16;
    case IMP_BF16: return CU_FROM_BF16;
    case IMP_Q8_0: return type == CU_Q8 ? CU_FROM_Q8_0 : CU_FROM_F32;
    case IMP_Q4_0: return type == CU_Q4 ? CU_FROM_Q4_0 : CU_FROM_F32;
    case IMP_Q4_1: return type == CU_Q4M ? CU_FROM_Q4_1 : CU_FROM_F32;
    case IMP_Q4_K: return type == CU_Q4M ? CU_FROM_Q4_K : CU_FROM_F32;
    case IMP_Q6_K: return type == CU_Q8F ? CU_FROM_Q6_K : CU_FROM_F32;
    default: return CU_FROM_F32;
    }
}

static bool is_tiled(uint32_t type)
{
    return type != CU_F32 && type != CU_BF16 && type != CU_F16;
}

uint32_t imp_cuda_add_mat(cuda_exec *x, uint32_t type, uint64_t n, uint64_t k, uint32_t n_part)
{
    uint64_t kpad = imp_cuda_up(k, type == CU_F32 ? 4 : type == CU_BF16 || type == CU_F16 ? 64 : 128);
    cuda_mat *m = &x->mat[++x->n_mat];
    *m = (cuda_mat){
        .type = type, .n = (uint32_t)n, .k = (uint32_t)k, .kpad = (uint32_t)kpad, .n_part = n_part};
    m->q_part = is_tiled(type) ? (n + 15) / 16 * (kpad / cu_tile_k(type)) * cu_tile_bytes(type)
                               : n * kpad * (type == CU_F32 ? 4 : 2);
    m->q_part = imp_cuda_up(m->q_part, 256);
    m->q_at = x->weights_bytes;
    x->weights_bytes = m->q_at + m->q_part * n_part;
    return x->n_mat;
}

/* Rows r0..r0+n-1 of a tensor to its matrix by way of `stage`. */
static cu_result put_rows(cuda_device *d, cuda_exec *x, const cuda_fill *f, uint32_t r0, uint32_t n,
                          const void *raw, uint64_t raw_row, uint32_t from, cu_mem stage)
{
    const cuda_mat *m = &x->mat[f->mat];
    cu_pack a = {.raw = stage,
                 .q = x->weights + m->q_at + m->q_part * f->part,
                 .raw_row = raw_row,
                 .r0 = f->row + r0,
                 .n = n,
                 .k = m->k,
                 .kpad = m->kpad,
                 .type = m->type,
                 .from = from};
    cu_result r = d->cu->to_device(stage, raw, n * raw_row, d->stream);
    d->after_copy = true;
    if (r == CU_OK) r = imp_cuda_launch(d, d->fn.pack, m->kpad / 16 / 128 + 1, n, 1, 128, 0, &a);
    return r;
}

static cu_result put_tensor(cuda_device *d, cuda_exec *x, const cuda_fill *f, cu_mem stage, float *rows)
{
    const cuda_mat *m = &x->mat[f->mat];
    uint32_t from = from_of(f->t, m->type), n_row = (uint32_t)imp_tensor_n_row(f->t);
    bool decode = from == CU_FROM_F32 && f->t->dtype != IMP_F32;
    uint64_t raw_row = decode || f->t->dtype == IMP_F32 ? m->k * 4ull : imp_tensor_row_bytes(f->t);
    uint64_t fit = (decode ? STAGING / 4 : STAGING) / raw_row;
    uint32_t step = (uint32_t)IMP_MAX(1, IMP_MIN(fit, 32768));
    cu_result r = CU_OK;
    for (uint32_t r0 = 0; r0 < n_row && r == CU_OK; r0 += step) {
        uint32_t n = IMP_MIN(step, n_row - r0);
        const void *raw = (const uint8_t *)f->t->data + r0 * raw_row;
        for (uint32_t i = 0; decode && i < n; i++)
            imp_tensor_row_f32(f->t, r0 + i, rows + (uint64_t)i * m->k);
        if (decode) raw = rows;
        r = put_rows(d, x, f, r0, n, raw, raw_row, from, stage);
        if (r == CU_OK && decode) r = d->cu->stream_sync(d->stream); /* `rows` is written again */
    }
    return r;
}

static uint64_t widest_row(const cuda_exec *x)
{
    uint64_t k = 1;
    for (uint32_t i = 1; i <= x->n_mat; i++) k = IMP_MAX(k, (uint64_t)x->mat[i].k);
    for (uint32_t i = 0; i < x->n_vec; i++) k = IMP_MAX(k, (uint64_t)x->vec[i].n);
    return k;
}

imp_status imp_cuda_fill_weights(cuda_device *d, cuda_exec *x, imp_error *err)
{
    const cu_driver *cu = d->cu;
    cu_mem stage = 0;
    uint64_t row_bytes = widest_row(x) * 4, stage_bytes = IMP_MAX((uint64_t)STAGING, row_bytes);
    float *rows =
        imp_sys_malloc(IMP_MAX((uint64_t)STAGING / 4, row_bytes) + 1024); /* a last block may reach over */
    if (rows == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while loading weights");
    cu_result r = cu->alloc(&stage, stage_bytes);
    if (r == CU_OK) r = cu->set8(x->weights, 0, x->weights_bytes, d->stream);
    for (uint32_t i = 0; i < x->n_fill && r == CU_OK; i++) r = put_tensor(d, x, &x->fill[i], stage, rows);
    for (uint32_t i = 0; i < x->n_vec && r == CU_OK; i++) {
        const cuda_vec *v = &x->vec[i];
        if (v->t == NULL && v->data == NULL) continue;
        if (v->t != NULL) imp_tensor_row_f32(v->t, 0, rows);
        r = cu->to_device(x->weights + v->at, v->t != NULL ? rows : v->data, v->n * 4ull, d->stream);
        if (r == CU_OK) r = cu->stream_sync(d->stream);
    }
    if (r == CU_OK) r = cu->stream_sync(d->stream);
    if (stage != 0) (void)cu->release(stage);
    imp_sys_free(rows);
    return r == CU_OK ? IMP_OK : imp_cuda_fail(d, r, "loading the weights", err);
}
