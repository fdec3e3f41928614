// dev/cuda/pack.cu - a file's rows to the packed layouts, and back to bf16 for large products.
//
// Layout: Q8: of every 64 columns, byte t*16 + j*4 + e is column 16j + 4t + e. Q4: of every 128 columns, word j/2 of the
//         16 bytes of lane t holds columns 16j + 4t + e of two neighbours j: e = 0, 1 in nibbles 2(j%2) and 2(j%2) + 4,
//         e = 2, 3 one nibble higher. So a lane's loads are 16 bytes and need no shuffle before mma.
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
    bool four = a.type == CU_Q4 || a.type == CU_Q4M;
    uint32_t per = four ? 32 : 16;
    if (i * per < a.kpad) {
        uint8_t out[16] = {0};
        for (uint32_t b = 0; b < per; b++) {
            // b: for Q8 byte j*4 + e; for Q4 subtile j = b/4, e = b%4
            uint32_t j = b >> 2, e = b & 3, t = i & 3, k = (i >> 2) * (four ? 128 : 64) + 16 * j + 4 * t + e;
            int q = k < a.k ? raw_at(raw, a.from, k).q : 0;
            if (!four) {
                out[b] = (uint8_t)(q + 128);
            } else {
                uint32_t nib = ((j & 1) * 2 + (e >> 1)) + (e & 1) * 4;
                out[(j >> 1) * 4 + nib / 2] |= (uint8_t)(q << (nib % 2 * 4));
            }
        }
        uint8_t *to = a.q + row * (four ? a.kpad / 2 : a.kpad) + (uint64_t)i * 16;
        for (int b = 0; b < 16; b++) to[b] = out[b];
    }
    uint32_t group = a.type == CU_Q8M ? 16 : 32, n_group = a.kpad / group;
    if (i >= n_group) return;
    quant g = {0, 0, 0};
    if (i * group < a.k) g = raw_at(raw, a.from, i * group);
    bool min = a.type == CU_Q8M || a.type == CU_Q4M;
    __half *s = (__half *)a.s + (row * n_group + i) * (min ? 2 : 1);
    s[0] = __float2half_rn(g.s);
    if (min) s[1] = __float2half_rn(g.m);
}

// One thread: four consecutive columns.
extern "C" __global__ void unpack(const __grid_constant__ cu_unpack a)
{
    pdl_next();
    uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x, per_row = a.kpad / 4;
    uint64_t r = i / per_row;
    uint32_t k = (uint32_t)(i % per_row) * 4;
    pdl_wait();
    if (r >= a.n) return;
    uint64_t row = a.r0 + r;
    float v[4];
    const __half *sc = (const __half *)a.s;
    if (a.type == CU_Q8 || a.type == CU_Q8M) {
        uint32_t c = k & 63;
        uint32_t w = *(const uint32_t *)(a.q + row * a.kpad + (k & ~63u) + (c >> 2 & 3) * 16 + (c >> 4) * 4);
        float s, m = 0;
        if (a.type == CU_Q8) {
            s = __half2float(sc[row * (a.kpad / 32) + k / 32]);
        } else {
            __half2 p = ((const __half2 *)sc)[row * (a.kpad / 16) + k / 16];
            s = __low2float(p), m = __high2float(p);
        }
        for (int e = 0; e < 4; e++) v[e] = (float)((int)(w >> (8 * e) & 255) - 128) * s - m;
    } else {
        uint32_t c = k & 127, j = c >> 4, t = c >> 2 & 3;
        uint32_t w = ((const uint32_t *)(a.q + row * (a.kpad / 2) + (k / 128) * 64 + t * 16))[j >> 1] >> ((j & 1) * 8);
        float s, m;
        if (a.type == CU_Q4) {
            s = __half2float(sc[row * (a.kpad / 32) + k / 32]), m = 8 * s;
        } else {
            __half2 p = ((const __half2 *)sc)[row * (a.kpad / 32) + k / 32];
            s = __low2float(p), m = __high2float(p);
        }
        v[0] = (float)(w & 15) * s - m;
        v[1] = (float)(w >> 16 & 15) * s - m;
        v[2] = (float)(w >> 4 & 15) * s - m;
        v[3] = (float)(w >> 20 & 15) * s - m;
    }
    __nv_bfloat162 lo = __floats2bfloat162_rn(v[0], v[1]), hi = __floats2bfloat162_rn(v[2], v[3]);
    uint2 out = {*(uint32_t *)&lo, *(uint32_t *)&hi};
    *(uint2 *)(a.out + r * a.kpad + k) = out;
}
