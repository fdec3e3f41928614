/* kern/x86/amx_bf16.h - matmul of bf16 weights with f32 activations by tiles.
 *
 * Place:   included by matmul_f_amx.c.
 * Idea:    each x becomes the sum of two bf16, so that a product of tiles loses next to nothing: 16 rows of x are two tiles,
 *          32 columns of y two others, and their four products four sums, which stay in the tile unit for a block of k.
 *          k is cut into blocks of B_KC; their sums are added to y in order, bias last.
 * Layout:  packed: [ceil(n / 32)][ceil(k / 32)][2 halves of the columns][16 pairs of k][16 columns][2], zeros past n and k.
 *          scratch: [B_SLOT][B_KC / 32][2 parts][16 rows][32 of k] of x, then a tile's four sums.
 * Always:  an element's sums depend on its row of x and its row of w alone: one row or many go the same way.
 * Accuracy: each x is off by at most 2^-16 |x|; then as body/matmul_f_body.h. The tile unit takes denormals as zero.
 * Bound:   four products are 64 cycles for 16 x 32 x 32: eight times the rate of f32 vectors. */
#ifndef IMP_KERN_AMX_BF16_H
#define IMP_KERN_AMX_BF16_H

#include "kern/x86/amx.h"
#include "kern/x86/simd_avx512.h"

#include "kern/body/panel_body.h"

enum {
    B_KC = 512,               /* columns of k a block */
    B_SLOT = 16,              /* pieces of x in scratch: 16 rows by B_KC */
    B_TILE = 16 * 32,         /* bf16 of a tile */
    B_STEP = 2 * B_TILE,      /* of two: 32 of k */
    B_X = B_KC / 32 * B_STEP, /* of 16 rows of x */
};

/* 32 floats, or n and zeros, as sums of two bf16: the top 16 bits, and what they leave out, rounded. An infinity leaves
 * nothing out. */
IMP_INLINE void b_split(uint16_t *top, uint16_t *rest, const float *x, size_t n)
{
    __mmask32 m = n < 32 ? (1u << n) - 1 : UINT32_MAX;
    __m512i a = _mm512_maskz_loadu_epi32((__mmask16)m, x);
    __m512i b = _mm512_maskz_loadu_epi32((__mmask16)(m >> 16), x + 16);
    __m512i mask = _mm512_set1_epi32((int)0xffff0000u), ta = _mm512_and_si512(a, mask),
            tb = _mm512_and_si512(b, mask);
    __m512 fa = _mm512_castsi512_ps(a), fb = _mm512_castsi512_ps(b);
    enum { INFINITE = 0x18 };
    __m512 ra =
        _mm512_maskz_sub_ps((__mmask16)~_mm512_fpclass_ps_mask(fa, INFINITE), fa, _mm512_castsi512_ps(ta));
    __m512 rb =
        _mm512_maskz_sub_ps((__mmask16)~_mm512_fpclass_ps_mask(fb, INFINITE), fb, _mm512_castsi512_ps(tb));
    __m256i ha = _mm512_cvtepi32_epi16(_mm512_srli_epi32(a, 16)),
            hb = _mm512_cvtepi32_epi16(_mm512_srli_epi32(b, 16));
    _mm512_storeu_si512(top, _mm512_inserti64x4(_mm512_castsi256_si512(ha), hb, 1));
    _mm512_storeu_si512(rest, (__m512i)_mm512_cvtne2ps_pbh(rb, ra));
}

/* 16 rows of x from row i on, or as many as there are, columns c..c+kc-1. */
static void b_split_rows(const imp_matmul_args *a, uint32_t i, size_t c, size_t kc, uint16_t *to)
{
    for (uint32_t r = 0; r < 16 && i + r < a->m; r++, to += 32) {
        const float *x = (const float *)(const void *)((const uint8_t *)a->x + (i + r) * a->x_stride) + c;
        uint16_t *row = to;
        for (size_t k = 0; k < kc; k += 32, row += B_STEP) b_split(row, row + B_TILE, x + k, kc - k);
    }
}

static void b_configure(uint32_t rows)
{
    struct amx_shape s = {.palette = 1};
    for (uint32_t i = 0; i < 8; i++) { /* sums 0..3, x 4 and 5, w 6 and 7 */
        s.rows[i] = (uint8_t)(i < 6 ? rows : 16);
        s.row_bytes[i] = 64;
    }
    amx_configure(&s);
}

/* 16 rows of x, or fewer, by 32 columns of y by n of 32 of k. sums: [2 parts of x][2 halves of the columns][16][16]. */
static void b_tile(const uint16_t *x, const uint16_t *w, size_t n, bool few, float *sums)
{
    AMX_ZERO(0);
    AMX_ZERO(1);
    AMX_ZERO(2);
    AMX_ZERO(3);
    for (; n > 0; n--, x += B_STEP, w += B_STEP) {
        if (few) { /* the weights come from memory */
            for (int i = 0; i < B_STEP; i += 32) __builtin_prefetch(w + 4 * B_STEP + i);
        }
        AMX_LOAD(6, w, 64);
        AMX_LOAD(4, x, 64);
        AMX_DOT_BF16(0, 4, 6);
        AMX_LOAD(7, w + B_TILE, 64);
        AMX_DOT_BF16(1, 4, 7);
        AMX_LOAD(5, x + B_TILE, 64);
        AMX_DOT_BF16(2, 5, 6);
        AMX_DOT_BF16(3, 5, 7);
    }
    AMX_STORE(0, sums, 64);
    AMX_STORE(1, sums + 256, 64);
    AMX_STORE(2, sums + 512, 64);
    AMX_STORE(3, sums + 768, 64);
}

static uint64_t b_scratch_bytes(uint64_t k)
{
    (void)k;
    return B_SLOT * B_X * sizeof(uint16_t) + 4 * 256 * sizeof(float);
}

struct b_job {
    const imp_matmul_args *a;
    size_t k, n_step; /* columns, and how many times 32 they are */
    uint16_t *x;
    float *sums;
    uint32_t rows; /* of the tiles as configured */
};

/* One piece of x, rows i.. and columns c.., against the panel at column j. */
static void b_piece(struct b_job *b, const uint16_t *x, uint32_t i, size_t c, uint32_t j)
{
    const imp_matmul_args *a = b->a;
    size_t kc = IMP_MIN(b->k - c, (size_t)B_KC);
    uint32_t rows = IMP_MIN(a->m - i, 16u);
    if (rows != b->rows) b_configure(b->rows = rows);
    const uint16_t *w = (const uint16_t *)a->wp + (j / PANEL * b->n_step + c / 32) * B_STEP;
    b_tile(x, w, (kc + 31) / 32, a->m <= 16, b->sums);
    struct panel_out out = {.y = a->y + i * a->y_stride + j,
                            .y_stride = a->y_stride,
                            .bias = a->bias != NULL && c + kc == b->k ? a->bias + j : NULL,
                            .c0 = a->n0 > j ? a->n0 - j : 0,
                            .c1 = IMP_MIN(a->n1 - j, (uint32_t)PANEL),
                            .first = c == 0};
    for (uint32_t r = 0; r < rows; r++) {
        const float *s = b->sums + r * 16;
        panel_store(&out, r, v_load(s) + v_load(s + 512), v_load(s + 256) + v_load(s + 768));
    }
}

/* Pieces in scratch are of one block of k and many rows, so that a panel's block is read once for all of them; with few rows
 * of many blocks, so that the weights are read from memory in order. */
static void run_bf16(const imp_matmul_args *a)
{
    size_t k = imp_tensor_n_col(a->w), step_k = a->m <= 16 ? B_SLOT * B_KC : B_KC;
    uint32_t step_i = a->m <= 16 ? 16 : B_SLOT * 16;
    struct b_job b = {.a = a, .k = k, .n_step = (k + 31) / 32, .x = a->scratch};
    b.sums = (float *)(void *)(b.x + B_SLOT * B_X);
    for (size_t c0 = 0; c0 < k; c0 += step_k) {
        size_t c1 = IMP_MIN(k, c0 + step_k);
        for (uint32_t i0 = 0; i0 < a->m; i0 += step_i) {
            uint32_t i1 = IMP_MIN(a->m, i0 + step_i);
            uint16_t *x = b.x;
            for (size_t c = c0; c < c1; c += B_KC)
                for (uint32_t i = i0; i < i1; i += 16, x += B_X)
                    b_split_rows(a, i, c, IMP_MIN(k - c, (size_t)B_KC), x);
            for (uint32_t j = a->n0 / PANEL * PANEL; j < a->n1; j += PANEL) {
                x = b.x;
                for (size_t c = c0; c < c1; c += B_KC)
                    for (uint32_t i = i0; i < i1; i += 16, x += B_X) b_piece(&b, x, i, c, j);
            }
        }
    }
    amx_release();
}

static uint64_t b_packed_bytes(uint64_t n, uint64_t k)
{
    return (n + PANEL - 1) / PANEL * ((k + 31) / 32) * B_STEP * sizeof(uint16_t);
}
static void pack_bf16(const imp_tensor *w, void *out)
{
    size_t k = imp_tensor_n_col(w), n = imp_tensor_n_row(w), n_step = (k + 31) / 32;
    memset(out, 0, b_packed_bytes(n, k));
    for (size_t j = 0; j < n; j++) {
        const uint8_t *from = (const uint8_t *)w->data + j * k * 2;
        uint8_t *to =
            (uint8_t *)out + (j / PANEL * n_step * B_STEP + j % PANEL / 16 * B_TILE + j % 16 * 2) * 2;
        for (size_t c = 0; c < k; c++)
            memcpy(to + (c / 32 * B_STEP + c % 32 / 2 * 32 + c % 2) * 2, from + c * 2, 2);
    }
}

#define B_VARIANT(isa_name, isa_id, bits)                                                                    \
    const imp_matmul imp_matmul_bf16_##isa_id = {.name = "bf16_" isa_name,                                   \
                                                 .isa = isa_name,                                            \
                                                 .dtype = IMP_BF16,                                          \
                                                 .x_form = IMP_X_F32,                                        \
                                                 .cpu = bits,                                                \
                                                 .x_bits = 16,                                               \
                                                 .flushes = true,                                            \
                                                 .k_multiple = 1,                                            \
                                                 .n_step = PANEL,                                            \
                                                 .err_per_k = 0.5f,                                          \
                                                 .err_const = 4,                                             \
                                                 .packed_bytes = b_packed_bytes,                             \
                                                 .pack = pack_bf16,                                          \
                                                 .scratch_bytes = b_scratch_bytes,                           \
                                                 .run = run_bf16};

#endif
