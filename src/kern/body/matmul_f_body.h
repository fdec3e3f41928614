/* kern/body/matmul_f_body.h - matmul with f32 activations: weights f32, f16, bf16, or any type decoded to f32 rows.
 *
 * Place:   included once by matmul_f_<isa>.c after that instruction set's simd_*.h.
 * Idea:    tiles of rows of w by rows of x in registers; each element is W lanes of fused multiply-adds over k, then one
 *          tree, then the bias. The tile's size changes nothing about that order. Rows of w are taken in chunks that
 *          stay in the second-level cache while all rows of x pass by.
 * Accuracy: k/W + log2(W) + 2 roundings of the sum of absolute terms. */
#ifndef IMP_KERN_MATMUL_F_BODY_H
#define IMP_KERN_MATMUL_F_BODY_H

/* Rows of w for several rows of x (as many as registers hold), rows of x, rows of w for a single x. */
enum { F_NW = W == 8 ? 2 : 4, F_NX = 4, F_NW_VEC = 8 };

typedef vf (*load_fn)(const void *p);
typedef vf (*loadn_fn)(const void *p, size_t n);

IMP_INLINE vf load_w_f32(const void *p)
{
    return v_load(p);
}
IMP_INLINE vf loadn_w_f32(const void *p, size_t n)
{
    return v_loadn(p, n, 0);
}

/* What one call works on; every row of w is `w_stride` bytes. */
struct f_job {
    const uint8_t *w;
    size_t w_stride;
    const uint8_t *x;
    size_t x_stride;
    const float *bias;
    float *y;
    size_t y_stride;
    size_t k;
};

/* y[i][j] for i < nx, j < nw from the job's first row and column on. */
IMP_INLINE void f_tile(const struct f_job *b, uint32_t i0, uint32_t j0, uint32_t nx, uint32_t nw, size_t elem,
                       load_fn load, loadn_fn loadn)
{
    vf acc[F_NX][F_NW_VEC];
    const uint8_t *w[F_NW_VEC];
    const float *x[F_NX];
    IMP_UNROLL
    for (uint32_t j = 0; j < nw; j++) w[j] = b->w + (j0 + j) * b->w_stride;
    IMP_UNROLL
    for (uint32_t i = 0; i < nx; i++) {
        x[i] = (const float *)(const void *)(b->x + (i0 + i) * b->x_stride);
        IMP_UNROLL
        for (uint32_t j = 0; j < nw; j++) acc[i][j] = v_set1(0);
    }
    size_t c = 0;
    for (; c + W <= b->k; c += W) {
        vf xv[F_NX];
        IMP_UNROLL
        for (uint32_t i = 0; i < nx; i++) xv[i] = v_load(x[i] + c);
        IMP_UNROLL
        for (uint32_t j = 0; j < nw; j++) {
            vf wv = load(w[j] + c * elem);
            IMP_UNROLL
            for (uint32_t i = 0; i < nx; i++) acc[i][j] = v_fma(wv, xv[i], acc[i][j]);
        }
    }
    if (c < b->k) {
        IMP_UNROLL
        for (uint32_t j = 0; j < nw; j++) {
            vf wv = loadn(w[j] + c * elem, b->k - c);
            IMP_UNROLL
            for (uint32_t i = 0; i < nx; i++)
                acc[i][j] = v_fma(wv, v_loadn(x[i] + c, b->k - c, 0), acc[i][j]);
        }
    }
    IMP_UNROLL
    for (uint32_t i = 0; i < nx; i++) {
        IMP_UNROLL
        for (uint32_t j = 0; j < nw; j++)
            b->y[(i0 + i) * b->y_stride + j0 + j] = v_hsum(acc[i][j]) + (b->bias ? b->bias[j0 + j] : 0);
    }
}

/* nx rows of x against columns j0..j1-1. */
IMP_INLINE void f_rows(const struct f_job *b, uint32_t i0, uint32_t nx, uint32_t j0, uint32_t j1, size_t elem,
                       load_fn load, loadn_fn loadn)
{
    uint32_t j = j0, step = nx == 1 ? F_NW_VEC : F_NW;
    for (; j + step <= j1; j += step) f_tile(b, i0, j, nx, step, elem, load, loadn);
    for (; j < j1; j++) f_tile(b, i0, j, nx, 1, elem, load, loadn);
}

IMP_INLINE void f_run(const struct f_job *b, uint32_t m, uint32_t n0, uint32_t n1, size_t elem, load_fn load,
                      loadn_fn loadn)
{
    uint32_t chunk = n_chunk(b->w_stride);
    for (uint32_t j0 = n0; j0 < n1; j0 += chunk) {
        uint32_t j1 = n1 - j0 < chunk ? n1 : j0 + chunk, i = 0;
        for (; i + 4 <= m; i += 4) f_rows(b, i, 4, j0, j1, elem, load, loadn);
        if (i + 2 <= m) {
            f_rows(b, i, 2, j0, j1, elem, load, loadn);
            i += 2;
        }
        if (i < m) f_rows(b, i, 1, j0, j1, elem, load, loadn);
    }
}

IMP_INLINE struct f_job f_job_of(const imp_matmul_args *a)
{
    return (struct f_job){.w = a->w->data,
                          .w_stride = imp_tensor_row_bytes(a->w),
                          .x = a->x,
                          .x_stride = a->x_stride,
                          .bias = a->bias,
                          .y = a->y,
                          .y_stride = a->y_stride,
                          .k = imp_tensor_n_col(a->w)};
}

static void run_f32(const imp_matmul_args *a)
{
    struct f_job b = f_job_of(a);
    f_run(&b, a->m, a->n0, a->n1, 4, load_w_f32, loadn_w_f32);
}
static void run_f16(const imp_matmul_args *a)
{
    struct f_job b = f_job_of(a);
    f_run(&b, a->m, a->n0, a->n1, 2, v_load_f16, v_loadn_f16);
}
static void run_bf16(const imp_matmul_args *a)
{
    struct f_job b = f_job_of(a);
    f_run(&b, a->m, a->n0, a->n1, 2, v_load_bf16, v_loadn_bf16);
}

/* Any other type: F_NW_VEC rows decoded at a time, then as f32. */
static uint64_t any_scratch_bytes(uint64_t k)
{
    return F_NW_VEC * k * sizeof(float);
}
static void run_any(const imp_matmul_args *a)
{
    struct f_job b = f_job_of(a);
    float *rows = a->scratch;
    b.w = a->scratch;
    b.w_stride = b.k * sizeof(float);
    for (uint32_t j = a->n0; j < a->n1; j += F_NW_VEC) {
        uint32_t n = IMP_MIN(a->n1 - j, (uint32_t)F_NW_VEC);
        for (uint32_t r = 0; r < n; r++) imp_tensor_row_f32(a->w, j + r, rows + r * b.k);
        b.y = a->y + j;
        b.bias = a->bias ? a->bias + j : NULL;
        f_run(&b, a->m, 0, n, 4, load_w_f32, loadn_w_f32);
    }
}

#define MATMUL_F(type_name, isa_name, bits, type_id, run_fn, scratch_fn)                                     \
    {                                                                                                        \
        .name = type_name "_" isa_name, .isa = isa_name, .dtype = type_id, .x_form = IMP_X_F32, .cpu = bits, \
        .k_multiple = 1, .n_step = F_NW_VEC, .err_per_k = 1.0f / (float)W, .err_const = 8,                   \
        .scratch_bytes = scratch_fn, .run = run_fn                                                           \
    }

#endif
