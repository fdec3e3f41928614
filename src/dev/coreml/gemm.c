/* dev/coreml/gemm.c - the f32 product of the evaluator and of the packer. */
#include "dev/coreml/gemm.h"

#include "kern/kern.h"

typedef struct product {
    const imp_matmul *kern;
    imp_tensor w;
    const float *a, *bias;
    float *c;
    const uint8_t *panel;
    uint8_t *scratch; /* [n_thread] of per bytes */
    uint64_t ldc, m, k, n, per;
} product;

void ml_gemm_buf_deinit(ml_gemm_buf *g)
{
    imp_sys_free(g->panel);
    imp_sys_free(g->scratch);
    imp_sys_free(g->flip);
    *g = (ml_gemm_buf){0};
}

/* At least n bytes at *p, 64-byte aligned inside; old contents are gone. */
static uint8_t *room(uint8_t **p, uint64_t *have, uint64_t n)
{
    if (*have < n + 64) {
        imp_sys_free(*p);
        *p = imp_sys_malloc((size_t)n + 64);
        *have = *p != NULL ? n + 64 : 0;
    }
    return *p != NULL ? *p + (64 - (uintptr_t)*p % 64) % 64 : NULL;
}

void ml_flip(float *to, const float *from, uint64_t rows, uint64_t cols)
{
    enum { TILE = 16 };
    for (uint64_t r0 = 0; r0 < rows; r0 += TILE)
        for (uint64_t c0 = 0; c0 < cols; c0 += TILE)
            for (uint64_t c = c0; c < IMP_MIN(c0 + TILE, cols); c++)
                for (uint64_t r = r0; r < IMP_MIN(r0 + TILE, rows); r++)
                    to[c * rows + r] = from[r * cols + c];
}

static void rows_of(void *ctx, uint32_t ith, uint32_t n_thread)
{
    const product *p = ctx;
    enum { STEP = 48 };
    uint64_t shares = (p->m + STEP - 1) / STEP, from = shares * ith / n_thread * STEP,
             to = IMP_MIN(shares * (ith + 1) / n_thread * STEP, p->m);
    if (from >= to) return;
    imp_matmul_args a = {.w = &p->w,
                         .wp = p->panel,
                         .x = p->a + from * p->k,
                         .x_stride = p->k * sizeof(float),
                         .y = p->c + from * p->ldc,
                         .y_stride = p->ldc,
                         .m = (uint32_t)(to - from),
                         .n1 = (uint32_t)p->n,
                         .scratch = p->scratch + ith * p->per};
    p->kern->run(&a);
    for (uint64_t i = from; p->bias != NULL && i < to; i++)
        for (uint64_t j = 0; j < p->n; j++) p->c[i * p->ldc + j] += p->bias[i];
}

bool ml_gemm_nt(ml_gemm_buf *g, imp_pool *pool, const float *a, const float *bt, const float *bias, float *c,
                uint64_t ldc, uint64_t m, uint64_t k, uint64_t n)
{
    bool many = pool != NULL && m * k * n >= 1 << 17;
    uint32_t n_thread = many ? imp_pool_n_thread(pool) : 1;
    product p = {.kern = imp_matmul_select_f32(IMP_F32, k), .a = a, .bias = bias, .c = c, .ldc = ldc};
    p.w = (imp_tensor){.dtype = IMP_F32, .n_dim = 2, .dim = {n, k, 1, 1}, .data = bt};
    p.m = m, p.k = k, p.n = n;
    if (p.kern->scratch_bytes != NULL) {
        p.per = (p.kern->scratch_bytes(k) + 63) / 64 * 64;
        if ((p.scratch = room(&g->scratch, &g->n_scratch, p.per * n_thread)) == NULL) return false;
    }
    if (p.kern->pack != NULL) {
        uint8_t *panel = room(&g->panel, &g->n_panel, p.kern->packed_bytes(n, k));
        if (panel == NULL) return false;
        p.kern->pack(&p.w, panel);
        p.panel = panel;
    }
    if (many)
        imp_pool_run(pool, rows_of, &p);
    else
        rows_of(&p, 0, 1);
    return true;
}

bool ml_gemm(ml_gemm_buf *g, imp_pool *pool, const float *a, const float *b, const float *bias, float *c,
             uint64_t m, uint64_t k, uint64_t n)
{
    if (g->n_flip < n * k) {
        imp_sys_free(g->flip);
        g->flip = imp_sys_malloc((size_t)(n * k) * sizeof *g->flip);
        g->n_flip = g->flip != NULL ? n * k : 0;
    }
    if (g->flip == NULL) return false;
    ml_flip(g->flip, b, k, n);
    return ml_gemm_nt(g, pool, a, g->flip, bias, c, n, m, k, n);
}
