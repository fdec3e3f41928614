// dev/cuda/pack.cu - a file's rows to the packed layouts, and back to bf16 for large products.
//
// Layout: a tile is 512 bytes for rows 0-7, 16 for each lane 4g + t of a warp (row g), 512 for rows 8-15. Q8 (64 columns):
//         byte 4j + e of lane t is column 16j + 4t + e, signed. Q4 (128 columns): byte 4j + e holds columns 32j + 4t + e
//         (low) and 32j + 16 + 4t + e; Q4 as two's complement of q - 8, Q4M as q. Then the scales: f16 [g][row g, row g + 8]
//         [group]. So a lane's loads are 16 bytes and need no shuffle before mma, and a tile is one stretch of memory.
#include "common.cuh"

__device__ __forceinline__ float f16_at(const uint8_t *p)
{
    return __half2float(__ushort_as_half((uint16_t)(p[0] | p[1] << 8)));
}
__device__ void k_scale_min(const uint8_t *p, int s, int *scale, int *min)
{
    if (s < 4) {
        *scale = p[s] & 63;
        *min = p[s + 4] & 63;
    } else {
        *scale = (p[s + 4] & 15) | (p[s - 4] >> 6) << 4;
        *min = (p[s + 4] >> 4) | (p[s] >> 6) << 4;
    }
}

// The integer of column k, and its group's scale and minimum.
struct quant {
    int q;
    float s, m;
};
__device__ quant raw_at(const uint8_t *row, uint32_t from, uint32_t k)
{
    quant r = {0, 0, 0};
    if (from == CU_FROM_Q8_0) {
        const uint8_t *b = row + (uint64_t)(k / 32) * 34;
        r.q = (int8_t)b[2 + k % 32];
        r.s = f16_at(b);
    } else if (from == CU_FROM_Q4_0 || from == CU_FROM_Q4_1) {
        uint32_t size = from == CU_FROM_Q4_0 ? 18 : 20, e = k % 32;
        const uint8_t *b = row + (uint64_t)(k / 32) * size;
        r.q = b[size - 16 + e % 16] >> (e / 16 * 4) & 15;
        r.s = f16_at(b);
        if (from == CU_FROM_Q4_1) r.m = -f16_at(b + 2);
    } else if (from == CU_FROM_Q4_K) {
        const uint8_t *b = row + (uint64_t)(k / 256) * 144;
        int g = (int)(k % 256 / 32), scale, min;
        k_scale_min(b + 4, g, &scale, &min);
        r.q = b[16 + (g >> 1) * 32 + k % 32] >> ((g & 1) * 4) & 15;
        r.s = f16_at(b) * (float)scale;
        r.m = f16_at(b + 2) * (float)min;
    } else { // Q6_K
        const uint8_t *b = row + (uint64_t)(k / 256) * 210;
        int j = (int)(k % 256), half = j >> 7, run = j >> 5 & 3, e = j & 31;
        int low = b[half * 64 + (run & 1) * 32 + e] >> ((run >> 1) * 4) & 15;
        int high = b[128 + half * 32 + e] >> (run * 2) & 3;
        r.q = (low | high << 4) - 32;
        r.s = f16_at(b + 208) * (float)(int8_t)b[192 + (j >> 4)];
    }
    return r;
}

// One thread: 16 bytes of packed output. grid.y: rows.
extern "C" __global__ void pack(const __grid_constant__ cu_pack a)
{
    pdl_wait();
    uint32_t r = blockIdx.y, i = blockIdx.x * blockDim.x + threadIdx.x;
    const uint8_t *raw = a.raw + (uint64_t)r * a.raw_row;
    uint64_t row = a.r0 + r;
    if (a.type == CU_F32 || a.type == CU_BF16 || a.type == CU_F16) {
        for (uint32_t k = i; k < a.kpad; k += gridDim.x * blockDim.x) {
            float v = 0;
            uint16_t bits = 0;
            if (k < a.k && a.from == CU_FROM_F32) v = ((const float *)raw)[k];
            if (k < a.k && a.from != CU_FROM_F32) {
                bits = ((const uint16_t *)raw)[k];
                v = a.from == CU_FROM_F16 ? __half2float(__ushort_as_half(bits)) : __uint_as_float((uint32_t)bits << 16);
            }
            if (a.type == CU_F32) ((float *)a.q)[row * a.kpad + k] = v;
            else if (a.type == CU_BF16) ((__nv_bfloat16 *)a.q)[row * a.kpad + k] = __float2bfloat16_rn(v);
            else ((__half *)a.q)[row * a.kpad + k] = __float2half_rn(v);
        }
        return;
    }
    const bool four = a.type == CU_Q4 || a.type == CU_Q4M;
    const uint32_t per = four ? 32 : 16;
    if (i * per < a.kpad) {
        uint8_t out[16] = {0};
        const uint32_t t = i & 3, tile = i >> 2;
        for (uint32_t b = 0; b < per; b++) { // 16 columns b / 4, place b % 4
            const uint32_t j = b >> 2, e = b & 3, k = tile * (per * 4) + 16 * j + 4 * t + e;
            const int q = k < a.k ? raw_at(raw, a.from, k).q : a.type == CU_Q4 ? 8 : 0;
            if (four) out[(j >> 1) * 4 + e] |= (uint8_t)((a.type == CU_Q4 ? q ^ 8 : q) << ((j & 1) * 4));
            else out[b] = (uint8_t)q;
        }
        uint8_t *to = a.q + piece_at(a.type, a.kpad, row, tile, t);
        for (int b = 0; b < 16; b++) to[b] = out[b];
    }
    const uint32_t group = a.type == CU_Q8F ? 16 : 32;
    if (i >= a.kpad / group) return;
    quant g = {0, 0, 0};
    if (i * group < a.k) g = raw_at(raw, a.from, i * group);
    __half *s = (__half *)(a.q + scale_at(a.type, a.kpad, row, i));
    s[0] = __float2half_rn(g.s);
    if (a.type == CU_Q4M) s[1] = __float2half_rn(g.m);
}

__device__ __forceinline__ uint2 four_bf16(float a, float b, float c, float d)
{
    __nv_bfloat162 lo = __floats2bfloat162_rn(a, b), hi = __floats2bfloat162_rn(c, d);
    return make_uint2(*(uint32_t *)&lo, *(uint32_t *)&hi);
}

// One thread: the 16 bytes of a lane in a tile, four neighbouring columns of every 16. grid.y: rows.
extern "C" __global__ void __launch_bounds__(128) unpack(const __grid_constant__ cu_unpack a)
{
    pdl_next();
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, tile = i >> 2, t = i & 3, tile_k = cu_tile_k(a.type);
    const bool four = a.type == CU_Q4 || a.type == CU_Q4M;
    pdl_wait();
    if (tile * tile_k >= a.kpad) return;
    for (uint32_t r = blockIdx.y; r < a.n; r += gridDim.y) {
        const uint64_t row = a.r0 + r;
        const uint4 w4 = __ldg((const uint4 *)(a.q + piece_at(a.type, a.kpad, row, tile, t)));
        const uint32_t w[4] = {w4.x, w4.y, w4.z, w4.w};
        const uint8_t *sc = a.q + scale_at(a.type, a.kpad, row, tile * (a.type == CU_Q8 ? 2 : 4));
        uint16_t *out = a.out + (uint64_t)r * a.kpad + tile * tile_k + t * 4;
#pragma unroll
        for (int j = 0; j < 4; j++) { // Q8: 16 columns; Q4: 32
            if (!four) {
                const float s = __half2float(((const __half *)sc)[a.type == CU_Q8 ? j / 2 : j]);
                float v[4];
                for (int e = 0; e < 4; e++) v[e] = (float)(int8_t)(w[j] >> (8 * e)) * s;
                *(uint2 *)(out + 16 * j) = four_bf16(v[0], v[1], v[2], v[3]);
                continue;
            }
            const float s = __half2float(((const __half *)sc)[a.type == CU_Q4 ? j : 2 * j]);
            const float m = a.type == CU_Q4 ? 8 * s : __half2float(((const __half *)sc)[2 * j + 1]);
            const uint32_t all = a.type == CU_Q4 ? w[j] ^ 0x88888888u : w[j];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const uint32_t q = all >> (4 * h);
                *(uint2 *)(out + 32 * j + 16 * h) =
                    four_bf16((float)(q & 15) * s - m, (float)(q >> 8 & 15) * s - m, (float)(q >> 16 & 15) * s - m,
                              (float)(q >> 24 & 15) * s - m);
            }
        }
    }
}

// Blocks of the cache to a stage or from it, on this GPU or another; sizes are multiples of 16 bytes.
extern "C" __global__ void __launch_bounds__(512) kv_move(const __grid_constant__ cu_kv_move a)
{
    pdl_next();
    pdl_wait();
    constexpr int DEEP = 4;
    for (uint32_t i = blockIdx.x; i < a.n * a.n_piece; i += gridDim.x) {
        const cu_kv_piece p = a.piece[i % a.n_piece];
        const uint32_t b = i / a.n_piece;
        uint4 *cache = (uint4 *)(a.kv + p.at + a.block[b] * p.bytes);
        uint4 *stage = (uint4 *)(a.stage + b * a.block_bytes + p.in_block);
        const uint4 *from = a.out ? cache : stage;
        uint4 *to = a.out ? stage : cache;
        const uint32_t n = (uint32_t)(p.bytes / 16);
        for (uint32_t k = threadIdx.x; k < n; k += DEEP * blockDim.x) {
            uint4 v[DEEP];
#pragma unroll
            for (int j = 0; j < DEEP; j++)
                if (k + j * blockDim.x < n) v[j] = __ldcv(from + k + j * blockDim.x);
#pragma unroll
            for (int j = 0; j < DEEP; j++)
                if (k + j * blockDim.x < n) to[k + j * blockDim.x] = v[j];
        }
    }
}
