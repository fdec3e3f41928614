// dev/cuda/flash.cu - attention of many rows: f16 cache, head size 64 or 128, on tensor cores with the running maximum.
//
// Idea:   a block has 128 rows of one head, a warp 32 of them, so that each fragment of keys and values from shared memory
//         serves two products. Keys come in tiles of 64 (one KV block, contiguous), the next tile while this one is used;
//         scores are made for 32 keys at a time, which with the result fill the registers.
//         A q8_0 tile is brought as it is while the one before is used, and becomes f16 in shared memory.
// Layout: cache of a layer: [block][kv head] tiles (args.h), f16 or q8_0, keys and values apart.
// Source: Dao 2023 (FlashAttention-2) for the order of the loops.
#include "flash.cuh"

namespace
{

constexpr int ROWS = 128, KEYS = 64, HALF = 32, THREADS = 128;

// Keys and values of block kb to `to`; rows that were never written read as zeros.
template <int HD>
__device__ __forceinline__ void fetch(const cu_attn &a, const work &w, uint32_t kb, uint32_t to)
{
    constexpr uint32_t TILE = KEYS * HD * 2;
    const uint64_t off = ((uint64_t)w.table[kb] * a.n_kv_head + w.kvh) * KEYS * HD;
    const __half *ks = (const __half *)a.kc + off, *vs = (const __half *)a.vc + off;
#pragma unroll
    for (uint32_t i = 0; i < KEYS * HD / 8 / THREADS; i++) {
        const uint32_t x = i * THREADS + threadIdx.x, r = x / (HD / 8), c = x % (HD / 8);
        const uint32_t n = kb * KEYS + r < w.len ? 16 : 0;
        copy16(kv_piece<HD>(to, r, c), ks + x * 8, n);
        copy16(kv_piece<HD>(to + TILE, r, c), vs + x * 8, n);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// A block of a q8_0 cache, keys then values, as it is.
template <int HD>
__device__ __forceinline__ void fetch_q8(const cu_attn &a, const work &w, uint32_t kb, uint32_t to)
{
    constexpr uint32_t BYTES = cu_kv_tile_bytes(CU_KV_Q8, HD);
    const uint64_t off = ((uint64_t)w.table[kb] * a.n_kv_head + w.kvh) * BYTES;
    for (uint32_t x = threadIdx.x; x < BYTES / 16; x += THREADS) {
        copy16(to + x * 16, (const uint8_t *)a.kc + off + x * 16, 16);
        copy16(to + BYTES + x * 16, (const uint8_t *)a.vc + off + x * 16, 16);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// From there to f16 tiles as fetch makes them.
template <int HD>
__device__ __forceinline__ void decode(const work &w, uint32_t kb, const uint8_t *from, uint32_t to)
{
    constexpr uint32_t BYTES = cu_kv_tile_bytes(CU_KV_Q8, HD), ROW = HD / 16;
#pragma unroll
    for (uint32_t i = 0; i < 2 * KEYS * ROW / THREADS; i++) {
        const uint32_t x = i * THREADS + threadIdx.x, part = x / (KEYS * ROW), r = x / ROW % KEYS,
                       c = x % ROW;
        const uint8_t *tile = from + part * BYTES;
        uint4 h[2] = {};
        if (kb * KEYS + r < w.len)
            decode16(*(const uint4 *)(tile + r * HD + c * 16),
                     ((const __half *)(tile + KEYS * HD))[r * (HD / 32) + c / 2], h);
        put16(kv_piece<HD>(to + part * KEYS * HD * 2, r, 2 * c), h[0]);
        put16(kv_piece<HD>(to + part * KEYS * HD * 2, r, 2 * c + 1), h[1]);
    }
}

// The block's rows of q, times scale, as f16.
template <int HD>
__device__ __forceinline__ void take_q(const cu_attn &a, const work &w, float scale, uint32_t to)
{
#pragma unroll 4
    for (uint32_t x = threadIdx.x; x < ROWS * HD / 8; x += THREADS) {
        const uint32_t r = x / (HD / 8), c = x % (HD / 8);
        const float *q = a.q + (uint64_t)(w.first + min(w.i0 + r, w.n_tok - 1)) * a.ldq + w.h * HD + c * 8;
        const float4 v0 = *(const float4 *)q, v1 = *(const float4 *)(q + 4);
        asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(kv_piece<HD>(to, r, c)),
                     "r"(half2_bits(v0.x * scale, v0.y * scale)), "r"(half2_bits(v0.z * scale, v0.w * scale)),
                     "r"(half2_bits(v1.x * scale, v1.y * scale)), "r"(half2_bits(v1.z * scale, v1.w * scale))
                     : "memory");
    }
}

// One warp's 32 rows: two sets of 16, of which a lane has rows g and g + 8.
template <int HD> struct rows {
    float o[2][HD / 8][4], m[2][2], l[2][2];
};

template <int HD>
__device__ __forceinline__ void scores(uint32_t qs, uint32_t ks, uint32_t row0, uint32_t key0, int lane,
                                       float (&s)[2][4][4])
{
#pragma unroll
    for (int x = 0; x < 2; x++)
#pragma unroll
        for (int n = 0; n < 4; n++) s[x][n][0] = s[x][n][1] = s[x][n][2] = s[x][n][3] = 0;
#pragma unroll
    for (int k = 0; k < HD / 16; k++) {
        uint32_t q[2][4], b[2][4];
#pragma unroll
        for (int x = 0; x < 2; x++)
            ldsm(q[x], kv_piece<HD>(qs, row0 + x * 16 + (lane & 15), k * 2 + (lane >> 4)));
#pragma unroll
        for (int n = 0; n < 2; n++)
            ldsm(b[n],
                 kv_piece<HD>(ks, key0 + n * 16 + (lane & 7) + (lane >> 4) * 8, k * 2 + (lane >> 3 & 1)));
#pragma unroll
        for (int x = 0; x < 2; x++)
#pragma unroll
            for (int n = 0; n < 4; n++)
                mma_f16(s[x][n], q[x], b[n >> 1][(n & 1) * 2], b[n >> 1][(n & 1) * 2 + 1]);
    }
}

// -inf where a row does not see a key. pos0: position of row 0 of the warp, j0: the first key.
__device__ __forceinline__ void mask(const cu_attn &a, uint32_t len, uint32_t pos0, uint32_t j0, int lane,
                                     float (&s)[2][4][4])
{
    if (all_seen(a, len, pos0, pos0 + 31, j0, j0 + HALF - 1)) return;
    const int g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int x = 0; x < 2; x++)
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const uint32_t j = j0 + n * 8 + 2 * t + (c & 1), p = pos0 + x * 16 + g + (c >> 1) * 8;
                if (!sees(a, len, p, j)) s[x][n][c] = -INFINITY;
            }
}

// Scores (times log2 e) to probabilities; o and l fade where the maximum grows.
template <int HD> __device__ __forceinline__ void soften(float (&s)[2][4][4], rows<HD> &w)
{
#pragma unroll
    for (int x = 0; x < 2; x++) {
        float fade[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float top = w.m[x][r];
#pragma unroll
            for (int n = 0; n < 4; n++) top = fmaxf(top, fmaxf(s[x][n][2 * r], s[x][n][2 * r + 1]));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            fade[r] = w.m[x][r] == top ? 1 : two_to(w.m[x][r] - top);
            w.m[x][r] = top;
            const float from = top == -INFINITY ? 0 : top; // nothing seen yet: exp2(-inf)
            float l = 0;
#pragma unroll
            for (int n = 0; n < 4; n++) {
                s[x][n][2 * r] = two_to(s[x][n][2 * r] - from);
                s[x][n][2 * r + 1] = two_to(s[x][n][2 * r + 1] - from);
                l += s[x][n][2 * r] + s[x][n][2 * r + 1];
            }
            w.l[x][r] = w.l[x][r] * fade[r] + l;
        }
        if (__any_sync(0xffffffffu, fade[0] != 1 || fade[1] != 1)) {
#pragma unroll
            for (int d = 0; d < HD / 8; d++) {
                w.o[x][d][0] *= fade[0], w.o[x][d][1] *= fade[0];
                w.o[x][d][2] *= fade[1], w.o[x][d][3] *= fade[1];
            }
        }
    }
}

template <int HD>
__device__ __forceinline__ void values(uint32_t vs, uint32_t key0, int lane, const float (&s)[2][4][4],
                                       rows<HD> &w)
{
#pragma unroll
    for (int kk = 0; kk < 2; kk++) { // 16 keys
        uint32_t p[2][4];
#pragma unroll
        for (int x = 0; x < 2; x++) {
            p[x][0] = half2_bits(s[x][2 * kk][0], s[x][2 * kk][1]);
            p[x][1] = half2_bits(s[x][2 * kk][2], s[x][2 * kk][3]);
            p[x][2] = half2_bits(s[x][2 * kk + 1][0], s[x][2 * kk + 1][1]);
            p[x][3] = half2_bits(s[x][2 * kk + 1][2], s[x][2 * kk + 1][3]);
        }
#pragma unroll
        for (int d = 0; d < HD / 16; d++) {
            uint32_t b[4];
            ldsm_t(b,
                   kv_piece<HD>(vs, key0 + kk * 16 + (lane & 7) + (lane >> 3 & 1) * 8, d * 2 + (lane >> 4)));
#pragma unroll
            for (int x = 0; x < 2; x++) {
                mma_f16(w.o[x][2 * d], p[x], b[0], b[1]);
                mma_f16(w.o[x][2 * d + 1], p[x], b[2], b[3]);
            }
        }
    }
}

template <int HD>
__device__ __forceinline__ void put(const cu_attn &a, const work &k, uint32_t r0, int lane, rows<HD> &w)
{
    const int g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int x = 0; x < 2; x++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float scale = flash_scale(a, k.h, w.m[x][r], w.l[x][r]);
            const uint32_t i = r0 + x * 16 + g + r * 8;
            if (i >= k.n_tok) continue;
#pragma unroll
            for (int d = 0; d < HD / 8; d++) {
                put_pair(a, k.first + i, k.h * HD + d * 8 + 2 * t, w.o[x][d][2 * r] * scale,
                         w.o[x][d][2 * r + 1] * scale);
            }
        }
}

// grid: (tile of 128 rows, head, sequence). Shared memory: q, then two tiles of keys and values; q8_0: one, then the next one
// as it is in the cache.
template <int HD, bool Q8> __device__ __forceinline__ void flash(const cu_attn &a)
{
    extern __shared__ __align__(128) uint8_t sm[];
    constexpr uint32_t TILE = KEYS * HD * 2;
    pdl_next();
    pdl_wait();
    const work k = work_of<ROWS, KEYS>(a);
    if (k.i0 >= k.n_tok) return;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const uint32_t qs = (uint32_t)__cvta_generic_to_shared(sm), kv = qs + ROWS * HD * 2;
    if (Q8)
        fetch_q8<HD>(a, k, k.kb0, kv + 2 * TILE);
    else
        fetch<HD>(a, k, k.kb0, kv);
    take_q<HD>(a, k, a.softcap > 0 ? a.scale : a.scale * 1.4426950408889634f, qs);
    rows<HD> w;
#pragma unroll
    for (int x = 0; x < 2; x++) {
        w.m[x][0] = w.m[x][1] = -INFINITY;
        w.l[x][0] = w.l[x][1] = 0;
#pragma unroll
        for (int d = 0; d < HD / 8; d++) w.o[x][d][0] = w.o[x][d][1] = w.o[x][d][2] = w.o[x][d][3] = 0;
    }
    const uint32_t pos0 = k.past + k.i0 + warp * 32;
    for (uint32_t kb = k.kb0; kb < k.kb1; kb++) {
        const uint32_t ks = Q8 ? kv : kv + ((kb - k.kb0) & 1) * 2 * TILE;
        if (Q8) {
            asm volatile("cp.async.wait_group 0;" ::: "memory");
            __syncthreads();
            decode<HD>(k, kb, sm + ROWS * HD * 2 + 2 * TILE, kv);
            __syncthreads();
            if (kb + 1 < k.kb1) fetch_q8<HD>(a, k, kb + 1, kv + 2 * TILE);
        } else if (kb + 1 < k.kb1) {
            fetch<HD>(a, k, kb + 1, kv + ((kb + 1 - k.kb0) & 1) * 2 * TILE);
            asm volatile("cp.async.wait_group 1;" ::: "memory");
        } else {
            asm volatile("cp.async.wait_group 0;" ::: "memory");
        }
        if (!Q8) __syncthreads();
#pragma unroll 1
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t j0 = kb * KEYS + half * HALF;
            if (!a.full && j0 > pos0 + 31) break;
            float s[2][4][4];
            scores<HD>(qs, ks, warp * 32, half * HALF, lane, s);
            if (a.softcap > 0) {
#pragma unroll
                for (int x = 0; x < 32; x++) {
                    float &v = s[x >> 4][x >> 2 & 3][x & 3];
                    v = a.softcap * 1.4426950408889634f * tanhf(v / a.softcap);
                }
            }
            mask(a, k.len, pos0, j0, lane, s);
            soften<HD>(s, w);
            values<HD>(ks + TILE, half * HALF, lane, s, w);
        }
        if (!Q8) __syncthreads();
    }
    put<HD>(a, k, k.i0 + warp * 32, lane, w);
}

} // namespace

#define FLASH(name, HD, Q8)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) name(const __grid_constant__ cu_attn a)         \
    {                                                                                                        \
        flash<HD, Q8>(a);                                                                                    \
    }
FLASH(flash_64, 64, false)
FLASH(flash_128, 128, false)
FLASH(flash_q8_64, 64, true)
FLASH(flash_q8_128, 128, true)
