/* dev/cuda/args.h - what the host hands to a kernel: one struct a kernel family, read by C and by CUDA C.
 *
 * Layout:  a packed matrix has n rows of kpad columns (zeros behind k): F32, BF16, F16 row-major; quantised types in tiles
 *          of 16 rows by cu_tile_k columns, [n/16][kpad/cu_tile_k][cu_tile_bytes]: integers in the order the tensor cores want, then
 *          the tile's scales (pack.cu). */
#ifndef IMP_CUDA_ARGS_H
#define IMP_CUDA_ARGS_H

#include <stdint.h>

#ifdef __CUDACC__
#define CU_PTR(T) T *
#else
#define CU_PTR(T) uint64_t
#endif

enum { CU_F32, CU_BF16, CU_F16, CU_Q8, CU_Q8F, CU_Q4, CU_Q4M, CU_N_TYPE };
enum { CU_KV_BLOCK = 64, CU_SPLIT = 128, CU_FAR = 2048, CU_SPLIT_FAR = 512 };

#ifdef __CUDACC__
#define CU_FN static constexpr __host__ __device__
#else
#define CU_FN static inline
#endif

/* A cache's keys or values: [block][kv head] tiles of 64 positions. F32, F16: [64][head_dim]; Q8: int8 [64][head_dim], then
 * f16 scales [64][head_dim / 32], those of a row in a file's blocks. */
enum { CU_KV_F32, CU_KV_F16, CU_KV_Q8, CU_N_KV };
CU_FN uint32_t cu_kv_tile_bytes(uint32_t kind, uint32_t head_dim)
{
    return CU_KV_BLOCK * head_dim *
               (kind == CU_KV_F32   ? 4
                : kind == CU_KV_F16 ? 2
                                    : 1) +
           (kind == CU_KV_Q8 ? CU_KV_BLOCK / 16 * head_dim : 0);
}

/* Columns of a tile. */
CU_FN uint32_t cu_tile_k(uint32_t type)
{
    return type == CU_Q4 || type == CU_Q4M ? 128 : type == CU_Q8 || type == CU_Q8F ? 64 : 32;
}
/* Q8, Q4: a scale for 32 columns, Q8F: for 16; Q4M: a minimum, too. BF16 and F16: as if there were tiles. */
CU_FN uint32_t cu_tile_bytes(uint32_t type)
{
    return type == CU_Q4 ? 1152 : type == CU_Q4M ? 1280 : type == CU_Q8 ? 1088 : type == CU_Q8F ? 1152 : 1024;
}

/* gemv.cu: groups of warps that work on a strip each, warps of a group; bytes that 128 columns of a row of x take in shared
 * memory: for quantised weights two digits, for 16-bit weights two bf16 (each with what keeps rows in different banks). */
enum {
    CU_GEMV_GROUPS = 2,
    CU_GEMV_WARPS = 8,
    CU_GEMV_THREADS = CU_GEMV_GROUPS * CU_GEMV_WARPS * 32,
    CU_X_DIGITS = 272,
    CU_X_WIDE = 576
};
/* Tiles a warp's ring holds. */
CU_FN uint32_t cu_gemv_depth(uint32_t type)
{
    return type == CU_BF16 || type == CU_F16 ? 5 : 4;
}
CU_FN uint32_t cu_gemv_ring(uint32_t type)
{
    return CU_GEMV_GROUPS * CU_GEMV_WARPS * cu_gemv_depth(type) * cu_tile_bytes(type);
}
/* Sums of a strip: [group][of two in turn][warp][gate, up][m][16]. */
CU_FN uint32_t cu_gemv_red(uint32_t m)
{
    return CU_GEMV_GROUPS * 2 * CU_GEMV_WARPS * 2 * m * 16 * 4;
}
/* Scales of x [128 columns][4 or 8 rows] and, for minima, its sums [32 columns][4 or 8 rows]. */
CU_FN uint32_t cu_gemv_sums(uint32_t type, uint32_t m, uint32_t chunk)
{
    return type == CU_BF16 || type == CU_F16 ? 0
                                             : chunk / 128 * (type == CU_Q4M ? 5 : 1) * (m <= 4 ? 4 : 8) * 4;
}
CU_FN uint32_t cu_gemv_smem(uint32_t type, uint32_t m, uint32_t chunk)
{
    return cu_gemv_ring(type) + cu_gemv_red(m) + cu_gemv_sums(type, m, chunk) +
           chunk / 128 * m * (type == CU_BF16 || type == CU_F16 ? CU_X_WIDE : CU_X_DIGITS);
}

/* mid.cu: rows of a matrix that a block works on, most rows of x; bytes of a row of x in shared memory (what keeps rows in
 * different banks included), of a stage, of what warps hand to each other, of all; m: 16, 32 or 64. */
enum { CU_MID_ROWS = 128, CU_MID_X = 64 };
CU_FN uint32_t cu_mid_threads(uint32_t m)
{
    return m <= 32 ? 512 : 256; /* more warps hide more, as long as their sums fit the registers */
}
CU_FN uint32_t cu_mid_pitch(uint32_t kc)
{
    return kc * 2 + 32;
}
CU_FN uint32_t cu_mid_stage(uint32_t type, uint32_t m, uint32_t kc)
{
    return CU_MID_ROWS / 16 * (kc / cu_tile_k(type)) * cu_tile_bytes(type) + m * cu_mid_pitch(kc);
}
CU_FN uint32_t cu_mid_red(uint32_t m)
{
    return CU_MID_ROWS * m * 4;
}
CU_FN uint32_t cu_mid_smem(uint32_t type, uint32_t m, uint32_t kc, uint32_t stages)
{
    return stages * cu_mid_stage(type, m, kc) + cu_mid_red(m) + (type == CU_Q4M ? kc / 32 * m * 4 : 0);
}

/* y (f32, + res) or h (bf16) [m][n] = x[m][kpad] W[n][kpad]^T, W of a quantised type. */
typedef struct cu_mid {
    CU_PTR(const uint8_t) q;
    CU_PTR(const uint16_t) x;
    CU_PTR(const float) res;
    CU_PTR(float) y;
    CU_PTR(uint16_t) h;
    CU_PTR(float) part;
    CU_PTR(uint32_t) count;
    uint32_t ldr, ldy, m, n, kpad;
    uint32_t kc, stages; /* columns of a stage: two tiles at least; 2 or 3 of them */
} cu_mid;

/* y[r] = W x[r]: up to 8 rows. */
typedef struct cu_gemv {
    CU_PTR(const uint8_t) q;
    CU_PTR(const float) x;
    CU_PTR(const float) norm;
    CU_PTR(const float) bias;
    CU_PTR(const float) res;
    CU_PTR(float) y;
    CU_PTR(const int32_t) expert; /* one a grid row, or NULL */
    uint64_t q_part;              /* bytes between two experts */
    uint32_t ldx, ldr, ldy, n, k, kpad, m, x_div;
    uint32_t glu, act, normed, up; /* up: the first row of the second half, for glu */
    uint32_t chunk;                /* columns of x staged at a time, a multiple of 1024 */
    float eps, w_offset;
} cu_gemv;

/* Rows: elementwise, norms, copies. Each view is a pointer and the elements between rows. */
typedef struct cu_rows {
    CU_PTR(const float) a;
    CU_PTR(const float) b;
    CU_PTR(const float) w;
    CU_PTR(const float) w2;
    CU_PTR(float) y;
    CU_PTR(uint16_t) h; /* y as bf16 (kind 1) or f16 (kind 2), dense with row length ldh; may be NULL */
    CU_PTR(const int32_t) row;
    uint32_t lda, ldb, ldy, ldh, hkind, m, width, group, op, act;
    float c, eps, w_offset;
} cu_rows;
enum {
    CU_ROW_ADD,
    CU_ROW_MUL,
    CU_ROW_SCALE,
    CU_ROW_SOFTCAP,
    CU_ROW_ACT,
    CU_ROW_GLU,
    CU_ROW_COPY,
    CU_ROW_BIAS
};

typedef struct cu_embed {
    CU_PTR(const uint8_t) q;
    CU_PTR(const int32_t) row;
    CU_PTR(float) y;
    uint32_t ldy, n, k, kpad, m, type;
    int32_t offset, zero;
} cu_embed;

/* RoPE of q in place, of k on its way to the cache, v to the cache. */
typedef struct cu_kv {
    CU_PTR(const float) q;
    CU_PTR(float) q_out;
    CU_PTR(const float) k;
    CU_PTR(const float) v;
    CU_PTR(const float) q_freq;
    CU_PTR(const float) k_freq;
    CU_PTR(void) kc; /* one layer's keys, values */
    CU_PTR(void) vc;
    CU_PTR(const int32_t) pos;
    CU_PTR(const int32_t) slot;
    uint32_t ldq, ldqo, ldk, ldv, m, n_head, n_kv_head, head_dim, kind;
    uint32_t q_rot, q_inter, k_rot, k_inter;
    float q_mscale, k_mscale;
} cu_kv;

typedef struct cu_attn {
    CU_PTR(const float) q;
    CU_PTR(float) y;
    CU_PTR(uint16_t) h;
    CU_PTR(const void) kc;
    CU_PTR(const void) vc;
    CU_PTR(const float) sink;
    CU_PTR(float) part;
    CU_PTR(uint32_t) count;
    CU_PTR(const int32_t) tseq;
    CU_PTR(const int32_t) kvpos;
    CU_PTR(const int32_t) seq_len; /* past and new tokens of a sequence */
    CU_PTR(const int32_t) table;
    CU_PTR(const int32_t) seq_first; /* first row of a sequence */
    CU_PTR(const int32_t) seq_past;
    uint32_t ldq, ldy, ldh, hkind, t0, m, n_seq, table_stride;
    uint32_t n_head, n_kv_head, head_dim, window, full, n_split, vec;
    float scale, softcap;
} cu_attn;

/* flash_wg.cu: keys of a tile, tiles of keys and values in shared memory. */
enum { CU_FLASH_WG_KEYS = 128, CU_FLASH_WG_STAGES = 3, CU_FLASH_WG_THREADS = 384 };
CU_FN uint32_t cu_flash_wg_smem(uint32_t head_dim)
{
    return CU_FLASH_WG_STAGES * 2 * CU_FLASH_WG_KEYS * head_dim * 2;
}

/* One token a sequence: at.q is not rotated yet, kv says how. */
typedef struct cu_step_attn {
    cu_attn at;
    cu_kv kv;
    uint32_t n_block; /* n_split * groups of heads * rows */
} cu_step_attn;
/* Keys and values of 128 tokens, q and p of 8 heads in two halves, what the heads share. No less than a third of an SM's
 * memory: with it and one block of gemv.cu an SM is full. */
enum {
    CU_STEP_SMEM_64 = 2 * 128 * 128 * 2,
    CU_STEP_SMEM_128 = 2 * 128 * 128 * 2 + 2 * 8 * 136 * 2 + 2 * 8 * 136 * 2 + 8 * 18 * 4 + 128
};

typedef struct cu_pool {
    CU_PTR(const float) x;
    CU_PTR(float) y;
    CU_PTR(const int32_t) first;
    CU_PTR(const int32_t) n_tok;
    uint32_t ldx, ldy, width, kind, n_seq;
} cu_pool;

/* top.cu: columns of a chunk, of the best that are kept, rows a launch takes. */
enum { CU_TOP_CHUNK = 8192, CU_TOP = 256, CU_TOP_ROWS = 64 };
typedef struct cu_top_pick {
    int32_t id;
    float logit;
} cu_top_pick;
typedef struct cu_top_row {
    uint32_t n, pad;
    double sum;
    cu_top_pick best[CU_TOP];
} cu_top_row;
typedef struct cu_top_stat {
    double sum;
    float most, pad;
} cu_top_stat;
typedef struct cu_top {
    CU_PTR(const float) x;
    CU_PTR(const uint32_t) mask; /* bit i % 32 of word i / 32: column i counts; NULL: all do */
    CU_PTR(uint64_t) part;       /* [row][n_chunk][CU_TOP] */
    CU_PTR(cu_top_stat) stat;    /* [row][n_chunk] */
    CU_PTR(uint32_t) count;      /* [row], zero between launches */
    CU_PTR(cu_top_row) out;
    uint32_t ldx, n, n_chunk, row0; /* rows from row0 on; their place in part, stat and count is from 0 on */
    uint32_t masked;                /* not 0: the result goes to out[masked - 1] */
} cu_top;

typedef struct cu_route {
    CU_PTR(const float) logits;
    CU_PTR(int32_t) expert; /* [m][n_used] */
    CU_PTR(float) weight;
    CU_PTR(const float) pair; /* combine: [m * n_used][width] */
    CU_PTR(float) y;
    uint32_t ldl, ldy, m, n_expert, n_used, norm_topk, width;
} cu_route;

/* y = the sum of all members' x (+ res), elements first .. first+total-1 of [rows][width] (reduce.cu). */
enum {
    CU_MEMBERS = 8,
    CU_REDUCE_SMALL = 65536,   /* elements up to which a sum goes in f32, each line its own signal */
    CU_REDUCE_PIECE = 4 << 20, /* elements a launch of the other kind */
    CU_REDUCE_BLOCKS = 128,    /* of it */
    CU_REDUCE_COUNT =
        CU_REDUCE_SMALL / 1024 + CU_REDUCE_BLOCKS /* counts of calls: a block's of either kind */
};
typedef struct cu_reduce {
    CU_PTR(const float) x;
    CU_PTR(const float) res;
    CU_PTR(float) y;
    CU_PTR(uint32_t) count;         /* calls of each block of this kind */
    CU_PTR(volatile uint32_t) stop; /* the host's: 1, given up; 2, by the kernel: a member did not come */
    CU_PTR(uint8_t) board[CU_MEMBERS];
    uint32_t first, total, width, ldx, ldr, ldy, n, rank;
    uint32_t wide; /* all rows and places are multiples of 8 elements */
} cu_reduce;
CU_FN uint64_t cu_board_bytes(uint32_t n)
{
    return (uint64_t)n * (2ull * CU_REDUCE_SMALL * 8 + 2ull * CU_REDUCE_PIECE * 2 + CU_REDUCE_BLOCKS * 4);
}

/* KV blocks between a cache and a stage (pack.cu): pieces are the layers' keys and values of a block. */
typedef struct cu_kv_piece {
    uint64_t at, bytes,
        in_block; /* where the cache keeps them for block 0; of a block; where a staged block has them */
} cu_kv_piece;
enum { CU_KV_MOVE = 64 }; /* blocks a launch */
typedef struct cu_kv_move {
    CU_PTR(uint8_t) kv;
    CU_PTR(uint8_t) stage;
    CU_PTR(const cu_kv_piece) piece;
    uint64_t block_bytes;
    uint32_t n_piece, n, out;
    uint32_t block[CU_KV_MOVE];
} cu_kv_move;

/* Raw rows of a file's type to a packed matrix; rows r0..r0+n-1 of the matrix. */
typedef struct cu_pack {
    CU_PTR(const uint8_t) raw;
    CU_PTR(uint8_t) q;
    uint64_t raw_row; /* bytes */
    uint32_t r0, n, k, kpad, type, from;
} cu_pack;
enum {
    CU_FROM_F32,
    CU_FROM_F16,
    CU_FROM_BF16,
    CU_FROM_Q8_0,
    CU_FROM_Q4_0,
    CU_FROM_Q4_1,
    CU_FROM_Q4_K,
    CU_FROM_Q6_K
};

typedef struct cu_unpack {
    CU_PTR(const uint8_t) q;
    CU_PTR(uint16_t) out; /* bf16 [n][kpad] */
    uint32_t r0, n, kpad, type;
} cu_unpack;

/* y[m][n] (f32 + res, or 16 bit) = x[m][k] w[n][k]^T, both 16 bit of one kind */
typedef struct cu_gemm {
    CU_PTR(const uint16_t) x;
    CU_PTR(const uint16_t) w;
    CU_PTR(const float) res;
    CU_PTR(float) y;
    CU_PTR(uint16_t) h;
    uint32_t ldx, ldw, ldr, ldy, m, n, k, f16;
} cu_gemm;

#endif
