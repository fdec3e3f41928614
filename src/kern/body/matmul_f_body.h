/* kern/body/matmul_f_body.h - matmul with f32 activations: weights f32, f16, bf16, or any type decoded to f32.
 *
 * Place:   included once by matmul_f_<isa>.c after that instruction set's simd_*.h.
 * Idea:    panel_body.h says how the work is cut. The weights keep their type and are widened as they are loaded: once
 *          for all rows of a tile.
 * Layout:  packed: [ceil(n / PANEL)][k][PANEL] elements of the weight's own type, zeros past n.
 * Accuracy: KC + k / KC + 1 roundings of the sum of absolute terms. */
#ifndef IMP_KERN_MATMUL_F_BODY_H
#define IMP_KERN_MATMUL_F_BODY_H

#include "kern/body/panel_body.h"

typedef vf (*load_fn)(const void *p);

IMP_INLINE vf load_w_f32(const void *p)
{
    return v_load(p);
}

struct f_tile {
    const float *x; /* rows XS apart */
    const uint8_t *w;
    size_t kc;
    struct panel_out out;
};
typedef void (*f_tile_fn)(const struct f_tile *t, uint32_t nx);

IMP_INLINE void f_tile_of(const struct f_tile *t, uint32_t nx, size_t elem, load_fn load)
{
    vf acc[MR][2];
    IMP_UNROLL
    for (uint32_t i = 0; i < nx; i++) acc[i][0] = acc[i][1] = v_set1(0);
    const float *x = t->x, *end = x + t->kc;
    const uint8_t *w = t->w;
    for (; x < end; x++, w += PANEL * elem) {
        vf w0 = load(w), w1 = load(w + W * elem);
        if (nx == 1) __builtin_prefetch(w + 4096);
        IMP_UNROLL
        for (uint32_t i = 0; i < nx; i++) {
            vf xv = v_set1(x[i * XS]);
            acc[i][0] = v_fma(w0, xv, acc[i][0]);
            acc[i][1] = v_fma(w1, xv, acc[i][1]);
        }
    }
    IMP_UNROLL
    for (uint32_t i = 0; i < nx; i++) panel_store(&t->out, i, acc[i][0], acc[i][1]);
}

#define F_TILES(type, elem, load)                                                                            \
    static __attribute__((noinline)) void tile_##type(const struct f_tile *t, uint32_t nx)                   \
    {                                                                                                        \
        switch (nx) {                                                                                        \
        case 12: f_tile_of(t, MR == 12 ? 12 : 1, elem, load); break;                                         \
        case 8: f_tile_of(t, MR == 12 ? 8 : 1, elem, load); break;                                           \
        case 6: f_tile_of(t, 6, elem, load); break;                                                          \
        case 4: f_tile_of(t, 4, elem, load); break;                                                          \
        case 2: f_tile_of(t, 2, elem, load); break;                                                          \
        default: f_tile_of(t, 1, elem, load); break;                                                         \
        }                                                                                                    \
    }
F_TILES(f32, 4, load_w_f32)
F_TILES(f16, 2, v_load_f16)
F_TILES(bf16, 2, v_load_bf16)

/* The panels that lie at w, of which the first begins at column j0 of y; columns n0..n1-1 are asked for. */
struct f_job {
    const imp_matmul_args *a;
    const uint8_t *w;
    size_t k, elem;
    uint32_t j0, n0, n1;
    f_tile_fn tile;
    float *x; /* scratch: XR rows, XS apart */
};

/* nx rows from row i on, of which x has the columns c..c+kc-1, against the panel at column j. */
IMP_INLINE void f_panel(const struct f_job *b, uint32_t j, size_t c, size_t kc, uint32_t i, const float *x,
                        uint32_t nx)
{
    const imp_matmul_args *a = b->a;
    struct f_tile t = {x,
                       b->w + ((size_t)(j - b->j0) * b->k + c * PANEL) * b->elem,
                       kc,
                       {.y = a->y + i * a->y_stride + j,
                        .y_stride = a->y_stride,
                        .bias = a->bias != NULL && c + kc == b->k ? a->bias + j : NULL,
                        .c0 = b->n0 > j ? b->n0 - j : 0,
                        .c1 = IMP_MIN(b->n1 - j, (uint32_t)PANEL),
                        .first = c == 0}};
    b->tile(&t, nx);
}

IMP_INLINE const float *f_x_row(const imp_matmul_args *a, uint32_t i)
{
    return (const float *)(const void *)((const uint8_t *)a->x + i * a->x_stride);
}

static void f_run(const struct f_job *b)
{
    const imp_matmul_args *a = b->a;
    if (a->m == 1) {
        for (uint32_t j = b->j0; j < b->n1; j += PANEL)
            for (size_t c = 0; c < b->k; c += KC)
                f_panel(b, j, c, IMP_MIN(b->k - c, (size_t)KC), 0, f_x_row(a, 0) + c, 1);
        return;
    }
    for (size_t c = 0; c < b->k; c += KC) {
        size_t kc = IMP_MIN(b->k - c, (size_t)KC);
        for (uint32_t i0 = 0; i0 < a->m; i0 += XR) {
            uint32_t n_row = IMP_MIN(a->m - i0, (uint32_t)XR);
            for (uint32_t i = 0; i < n_row; i++)
                memcpy(b->x + i * XS, f_x_row(a, i0 + i) + c, kc * sizeof(float));
            for (uint32_t j = b->j0; j < b->n1; j += PANEL) {
                for (uint32_t i = 0, nx; i < n_row; i += nx) {
                    nx = panel_rows(n_row - i);
                    f_panel(b, j, c, kc, i0 + i, b->x + i * XS, nx);
                }
            }
        }
    }
}

static uint64_t x_scratch_bytes(uint64_t k)
{
    (void)k;
    return XR * XS * sizeof(float);
}

/* Columns n0..n1-1 of packed weights. */
static void f_run_packed(const imp_matmul_args *a, size_t elem, f_tile_fn tile)
{
    size_t k = imp_tensor_n_col(a->w);
    uint32_t j0 = a->n0 / PANEL * PANEL;
    struct f_job b = {a, (const uint8_t *)a->wp + j0 * k * elem, k, elem, j0, a->n0, a->n1, tile, a->scratch};
    f_run(&b);
}
static void run_f32(const imp_matmul_args *a)
{
    f_run_packed(a, 4, tile_f32);
}
static void run_f16(const imp_matmul_args *a)
{
    f_run_packed(a, 2, tile_f16);
}
static void run_bf16(const imp_matmul_args *a)
{
    f_run_packed(a, 2, tile_bf16);
}

static uint64_t f_packed_bytes(uint64_t n, uint64_t k, uint64_t elem)
{
    return (n + PANEL - 1) / PANEL * PANEL * k * elem;
}
static uint64_t packed_bytes_32(uint64_t n, uint64_t k)
{
    return f_packed_bytes(n, k, 4);
}
static uint64_t packed_bytes_16(uint64_t n, uint64_t k)
{
    return f_packed_bytes(n, k, 2);
}

/* Rows of a panel become columns; 32 columns of k at a time, so that what is written stays in the cache. */
IMP_INLINE void f_pack(const imp_tensor *w, uint8_t *out, size_t elem)
{
    size_t k = imp_tensor_n_col(w), n = imp_tensor_n_row(w);
    const uint8_t *from = w->data;
    for (size_t j0 = 0; j0 < n; j0 += PANEL, out += PANEL * k * elem) {
        size_t n_row = IMP_MIN(n - j0, (size_t)PANEL);
        if (n_row < PANEL) memset(out, 0, PANEL * k * elem);
        for (size_t c0 = 0; c0 < k; c0 += 32) {
            size_t c1 = IMP_MIN(c0 + 32, k);
            for (size_t r = 0; r < n_row; r++) {
                const uint8_t *row = from + (j0 + r) * k * elem;
                for (size_t c = c0; c < c1; c++) memcpy(out + (c * PANEL + r) * elem, row + c * elem, elem);
            }
        }
    }
}
static void pack_32(const imp_tensor *w, void *out)
{
    f_pack(w, out, 4);
}
static void pack_16(const imp_tensor *w, void *out)
{
    f_pack(w, out, 2);
}

/* Any other type: one panel at a time is decoded to f32. Scratch: rows of x, the panel, one row. */
static uint64_t any_scratch_bytes(uint64_t k)
{
    return x_scratch_bytes(k) + (PANEL + 1) * k * sizeof(float);
}
static void run_any(const imp_matmul_args *a)
{
    size_t k = imp_tensor_n_col(a->w);
    float *panel = (float *)a->scratch + XR * XS, *row = panel + PANEL * k;
    for (uint32_t j0 = a->n0 / PANEL * PANEL; j0 < a->n1; j0 += PANEL) {
        uint32_t from = IMP_MAX(a->n0, j0), to = IMP_MIN(a->n1, j0 + PANEL);
        if (to - from < PANEL) memset(panel, 0, PANEL * k * sizeof(float));
        for (uint32_t j = from; j < to; j++) {
            imp_tensor_row_f32(a->w, j, row);
            for (size_t c = 0; c < k; c++) panel[c * PANEL + j - j0] = row[c];
        }
        struct f_job b = {a, (const uint8_t *)panel, k, 4, j0, from, to, tile_f32, a->scratch};
        f_run(&b);
    }
}

#define MATMUL_F(type_name, isa_name, bits, type_id, run_fn, scratch_fn, packed_fn, pack_fn)                 \
    {                                                                                                        \
        .name = type_name "_" isa_name, .isa = isa_name, .dtype = type_id, .x_form = IMP_X_F32, .cpu = bits, \
        .k_multiple = 1, .n_step = PANEL, .err_per_k = 0.5f, .err_const = 3, .scratch_bytes = scratch_fn,    \
        .packed_bytes = packed_fn, .pack = pack_fn, .run = run_fn                                            \
    }
#define MATMUL_F_ANY(isa_name, bits)                                                                         \
    MATMUL_F("any", isa_name, bits, IMP_DTYPE_NONE, run_any, any_scratch_bytes, NULL, NULL)
#define MATMUL_F_32(isa_name, bits)                                                                          \
    MATMUL_F("f32", isa_name, bits, IMP_F32, run_f32, x_scratch_bytes, packed_bytes_32, pack_32)
#define MATMUL_F_16(type_name, isa_name, bits, type_id, run_fn)                                              \
    MATMUL_F(type_name, isa_name, bits, type_id, run_fn, x_scratch_bytes, packed_bytes_16, pack_16)

#endif
