/* kern/arm/matmul_f_bf16.c - matmul of bf16 weights with f32 activations for Arm with BFMMLA.
 *
 * Idea:    each x becomes the sum of two bf16, so that the products lose next to nothing. BFMMLA multiplies two rows of x by
 *          two rows of w, four of k at a time: four rows of x (two pairs, each in two parts) by eight columns of y are
 *          sixteen sums of four. k is cut into blocks of B_KC; their sums are added to y in order, bias last.
 * Layout:  packed: [ceil(n / 8)][ceil(k / 4)][8 rows of w][4 of k], zeros past n and k.
 *          scratch: [2 pairs][B_KC / 4][2 parts][2 rows of x][4 of k].
 * Always:  an element's sums depend on its row of x and its row of w alone: rows that are not there are zeros.
 * Accuracy: each x is off by at most 2^-16 |x|. BFMMLA rounds each sum to odd, an error of less than one unit in the last
 *          place, and takes denormals as zero.
 * Source:  Arm ARM, BFMMLA (without FEAT_EBF16). */
#include "kern/arm/simd_neon.h"

#include "kern/body/panel_body.h"

enum { B_KC = 512, B_STEP = 8 * 4, B_PAIR = B_KC / 4 * 16 };

struct b_job {
    const imp_matmul_args *a;
    size_t k, n_step;
    uint16_t *x;
};

/* Element c of a row, or zero: the top 16 bits, and what they leave out, rounded. An infinity leaves nothing out. */
static void b_split(uint16_t *top, uint16_t *rest, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, 4);
    uint32_t high = bits & 0xffff0000u;
    float t, r;
    memcpy(&t, &high, 4);
    r = (bits & 0x7fffffffu) == 0x7f800000u ? 0 : v - t;
    *top = (uint16_t)(bits >> 16);
    *rest = imp_f32_to_bf16(r);
}

/* Rows i.. (four, or as many as there are) of x, columns c..c+kc-1. */
static void b_split_rows(const struct b_job *b, uint32_t i, size_t c, size_t kc)
{
    memset(b->x, 0, 2 * B_PAIR * sizeof *b->x);
    for (uint32_t r = 0; r < 4 && i + r < b->a->m; r++) {
        const float *x =
            (const float *)(const void *)((const uint8_t *)b->a->x + (i + r) * b->a->x_stride) + c;
        uint16_t *to = b->x + r / 2 * (size_t)B_PAIR + r % 2 * 4;
        for (size_t k = 0; k < kc; k++) b_split(to + k / 4 * 16 + k % 4, to + k / 4 * 16 + k % 4 + 8, x[k]);
    }
}

IMP_INLINE bfloat16x8_t b_load(const uint16_t *p)
{
    return vreinterpretq_bf16_u16(vld1q_u16(p));
}

/* n times four of k, n_pair pairs of rows of x by eight columns. */
IMP_INLINE void b_tile(const uint16_t *x, const uint16_t *w, size_t n, uint32_t n_pair, struct panel_out *out,
                       uint32_t rows)
{
    float32x4_t sum[2][2][4]; /* [pair][part][two columns]: x0 by both, x1 by both */
    IMP_UNROLL
    for (uint32_t i = 0; i < n_pair * 8; i++) sum[i / 8][i / 4 % 2][i % 4] = vdupq_n_f32(0);
    for (; n > 0; n--, x += 16, w += B_STEP) {
        bfloat16x8_t v[4];
        IMP_UNROLL
        for (uint32_t c = 0; c < 4; c++) v[c] = b_load(w + 8 * c);
        IMP_UNROLL
        for (uint32_t p = 0; p < n_pair; p++) {
            bfloat16x8_t top = b_load(x + p * B_PAIR), rest = b_load(x + p * B_PAIR + 8);
            IMP_UNROLL
            for (uint32_t c = 0; c < 4; c++) {
                sum[p][0][c] = vbfmmlaq_f32(sum[p][0][c], top, v[c]);
                sum[p][1][c] = vbfmmlaq_f32(sum[p][1][c], rest, v[c]);
            }
        }
    }
    for (uint32_t r = 0; r < rows; r++) {
        vf s[4];
        for (uint32_t c = 0; c < 4; c++) s[c] = sum[r / 2][0][c] + sum[r / 2][1][c];
        vf lo[2] = {vcombine_f32(vget_low_f32(s[0]), vget_low_f32(s[1])),
                    vcombine_f32(vget_high_f32(s[0]), vget_high_f32(s[1]))};
        vf hi[2] = {vcombine_f32(vget_low_f32(s[2]), vget_low_f32(s[3])),
                    vcombine_f32(vget_high_f32(s[2]), vget_high_f32(s[3]))};
        panel_store(out, r, lo[r % 2], hi[r % 2]);
    }
}

static __attribute__((noinline)) void b_tile_1(const uint16_t *x, const uint16_t *w, size_t n,
                                               struct panel_out *out, uint32_t rows)
{
    b_tile(x, w, n, 1, out, rows);
}
static __attribute__((noinline)) void b_tile_2(const uint16_t *x, const uint16_t *w, size_t n,
                                               struct panel_out *out, uint32_t rows)
{
    b_tile(x, w, n, 2, out, rows);
}

static void run_bf16(const imp_matmul_args *a)
{
    size_t k = imp_tensor_n_col(a->w), n_step = (k + 3) / 4;
    struct b_job b = {a, k, n_step, a->scratch};
    for (size_t c = 0; c < k; c += B_KC) {
        size_t kc = IMP_MIN(k - c, (size_t)B_KC);
        for (uint32_t i = 0; i < a->m; i += 4) {
            uint32_t rows = IMP_MIN(a->m - i, 4u);
            b_split_rows(&b, i, c, kc);
            for (uint32_t j = a->n0 / PANEL * PANEL; j < a->n1; j += PANEL) {
                const uint16_t *w = (const uint16_t *)a->wp + (j / PANEL * n_step + c / 4) * B_STEP;
                struct panel_out out = {.y = a->y + i * a->y_stride + j,
                                        .y_stride = a->y_stride,
                                        .bias = a->bias != NULL && c + kc == k ? a->bias + j : NULL,
                                        .c0 = a->n0 > j ? a->n0 - j : 0,
                                        .c1 = IMP_MIN(a->n1 - j, (uint32_t)PANEL),
                                        .first = c == 0};
                (rows > 2 ? b_tile_2 : b_tile_1)(b.x, w, (kc + 3) / 4, &out, rows);
            }
        }
    }
}

static uint64_t b_scratch_bytes(uint64_t k)
{
    (void)k;
    return 2 * B_PAIR * sizeof(uint16_t);
}
static uint64_t b_packed_bytes(uint64_t n, uint64_t k)
{
    return (n + PANEL - 1) / PANEL * ((k + 3) / 4) * B_STEP * sizeof(uint16_t);
}
static void pack_bf16(const imp_tensor *w, void *out)
{
    size_t k = imp_tensor_n_col(w), n = imp_tensor_n_row(w), n_step = (k + 3) / 4;
    memset(out, 0, b_packed_bytes(n, k));
    for (size_t j = 0; j < n; j++) {
        const uint8_t *from = (const uint8_t *)w->data + j * k * 2;
        uint8_t *to = (uint8_t *)out + (j / PANEL * n_step * B_STEP + j % PANEL * 4) * 2;
        for (size_t c = 0; c < k; c++) memcpy(to + (c / 4 * B_STEP + c % 4) * 2, from + c * 2, 2);
    }
}

const imp_matmul imp_matmul_bf16_bf16 = {.name = "bf16_bf16",
                                         .isa = "bf16",
                                         .dtype = IMP_BF16,
                                         .x_form = IMP_X_F32,
                                         .cpu = IMP_CPU_BF16,
                                         .x_bits = 16,
                                         .flushes = true,
                                         .k_multiple = 1,
                                         .n_step = PANEL,
                                         .err_per_k = 0.75f,
                                         .err_const = 5,
                                         .packed_bytes = b_packed_bytes,
                                         .pack = pack_bf16,
                                         .scratch_bytes = b_scratch_bytes,
                                         .run = run_bf16};
