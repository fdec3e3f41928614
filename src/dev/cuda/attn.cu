// dev/cuda/attn.cu - attention over the paged cache for any shape, one query row at a time.
//
// Idea:   a block has one split of the keys, one KV head and up to 8 of its query heads; the last block of a row joins the
//         splits. Head sizes and caches that attn_step.cu and flash.cu are not made for come here.
// Layout: cache of a layer: [block][kv head] tiles (args.h), keys and values apart. part: [row][head][split][head_dim + 2].
// Always: where splits begin depends on the position alone.
#include "attn.cuh"

namespace
{

constexpr int THREADS = 128, WARPS = THREADS / 32;

// A position's key or value.
template <typename KV> struct kv_row {
    const KV *p;
    __device__ __forceinline__ kv_row(const void *cache, uint64_t tile, uint32_t slot, uint32_t hd)
        : p((const KV *)cache + (tile * CU_KV_BLOCK + slot) * hd)
    {
    }
    __device__ __forceinline__ float one(uint32_t d) const
    {
        return (float)p[d];
    }
    __device__ __forceinline__ float4 four(uint32_t d) const; // aligned
};
template <> __device__ __forceinline__ float4 kv_row<float>::four(uint32_t d) const
{
    return *(const float4 *)(p + d);
}
template <> __device__ __forceinline__ float4 kv_row<__half>::four(uint32_t d) const
{
    uint2 v = *(const uint2 *)(p + d);
    float2 a = __half22float2(*(__half2 *)&v.x), b = __half22float2(*(__half2 *)&v.y);
    return make_float4(a.x, a.y, b.x, b.y);
}
template <> struct kv_row<int8_t> {
    const int8_t *p;
    const __half *scale;
    __device__ __forceinline__ kv_row(const void *cache, uint64_t tile, uint32_t slot, uint32_t hd)
    {
        const int8_t *t = (const int8_t *)cache + tile * cu_kv_tile_bytes(CU_KV_Q8, hd);
        p = t + slot * hd;
        scale = (const __half *)(t + CU_KV_BLOCK * hd) + slot * (hd / 32);
    }
    __device__ __forceinline__ float one(uint32_t d) const
    {
        return (float)p[d] * __half2float(scale[d / 32]);
    }
    __device__ __forceinline__ float4 four(uint32_t d) const
    {
        const char4 q = *(const char4 *)(p + d);
        const float s = __half2float(scale[d / 32]);
        return make_float4((float)q.x * s, (float)q.y * s, (float)q.z * s, (float)q.w * s);
    }
};

// Keys b0..b0+n-1 of a sequence's KV head.
template <typename KV> struct keys {
    const void *kc, *vc;
    const int32_t *table;
    uint32_t b0, n, kvh, n_kv_head, hd;
    bool vec;
    __device__ __forceinline__ kv_row<KV> row(const void *cache, uint32_t i) const
    {
        const uint32_t j = b0 + i;
        return kv_row<KV>(cache, (uint64_t)table[j / CU_KV_BLOCK] * n_kv_head + kvh, j % CU_KV_BLOCK, hd);
    }
};
template <typename KV>
__device__ __forceinline__ keys<KV> keys_of(const cu_attn &a, uint32_t row, uint32_t split, uint32_t kvh)
{
    const uint32_t seq = a.tseq[row], i = a.kvpos[row], len = a.seq_len[seq];
    uint32_t lo = 0, hi = a.full ? len : i + 1; // keys lo..hi-1 are seen
    if (a.window) {
        if (a.full) {
            lo = i > a.window ? i - a.window : 0;
            hi = min(hi, i + a.window + 1);
        } else {
            lo = i + 1 > a.window ? i + 1 - a.window : 0;
        }
    }
    const uint32_t b0 = max(split_begin(split), lo), b1 = min(split_begin(split + 1), hi);
    return {a.kc,
            a.vc,
            a.table + (uint64_t)seq * a.table_stride,
            b0,
            b1 > b0 ? b1 - b0 : 0,
            kvh,
            a.n_kv_head,
            a.head_dim,
            a.vec != 0};
}

// sc[g][j] = softcap(scale * q[g] . k[j]): one key a thread.
template <typename KV, int G>
__device__ __forceinline__ void scores(const cu_attn &a, const keys<KV> &k, const float *qs, float *sc)
{
    for (uint32_t j = threadIdx.x; j < k.n; j += THREADS) {
        float s[G] = {};
        const kv_row<KV> key = k.row(k.kc, j);
        if (k.vec) {
#pragma unroll 4
            for (uint32_t d = 0; d < k.hd; d += 4) {
                const float4 k0 = key.four(d);
#pragma unroll
                for (int g = 0; g < G; g++) {
                    const float4 q0 = *(const float4 *)(qs + g * k.hd + d);
                    s[g] += k0.x * q0.x + k0.y * q0.y + k0.z * q0.z + k0.w * q0.w;
                }
            }
        } else {
            for (uint32_t d = 0; d < k.hd; d++) {
                const float v = key.one(d);
#pragma unroll
                for (int g = 0; g < G; g++) s[g] += v * qs[g * k.hd + d];
            }
        }
#pragma unroll
        for (int g = 0; g < G; g++) {
            const float v = s[g] * a.scale;
            sc[g * CU_SPLIT_FAR + j] = a.softcap > 0 ? a.softcap * tanhf(v / a.softcap) : v;
        }
    }
}

// sc to exp(sc - maximum); ml[g]: the maximum and the sum.
template <int G>
__device__ __forceinline__ void soften(float *sc, uint32_t n, float (*ml)[2], int warp, int lane)
{
    for (uint32_t g = warp; g < G; g += WARPS) {
        float m = -INFINITY, l = 0;
        for (uint32_t j = lane; j < n; j += 32) m = fmaxf(m, sc[g * CU_SPLIT_FAR + j]);
        m = warp_max(m);
        for (uint32_t j = lane; j < n; j += 32) {
            const float p = expf(sc[g * CU_SPLIT_FAR + j] - m);
            sc[g * CU_SPLIT_FAR + j] = p;
            l += p;
        }
        l = warp_sum(l);
        if (lane == 0) ml[g][0] = m, ml[g][1] = l;
    }
}

// os[warp][g][d]: each warp sums every fourth value, four columns a lane.
template <typename KV, int G>
__device__ __forceinline__ void values(const keys<KV> &k, const float *sc, float *os, int warp, int lane)
{
    for (uint32_t d = lane * 4; d < k.hd; d += 128) {
        float o[G][4] = {};
#pragma unroll 8
        for (uint32_t j = warp; j < k.n; j += WARPS) {
            const kv_row<KV> value = k.row(k.vc, j);
            float4 v = {0, 0, 0, 0};
            if (k.vec) {
                v = value.four(d);
            } else {
                v.x = value.one(d);
                if (d + 1 < k.hd) v.y = value.one(d + 1);
                if (d + 2 < k.hd) v.z = value.one(d + 2);
                if (d + 3 < k.hd) v.w = value.one(d + 3);
            }
#pragma unroll
            for (int g = 0; g < G; g++) {
                const float w = sc[g * CU_SPLIT_FAR + j];
                o[g][0] += w * v.x, o[g][1] += w * v.y, o[g][2] += w * v.z, o[g][3] += w * v.w;
            }
        }
#pragma unroll
        for (int g = 0; g < G; g++)
            for (int e = 0; e < 4; e++)
                if (d + e < k.hd) os[(warp * G + g) * k.hd + d + e] = o[g][e];
    }
}

template <typename KV, int G> __device__ __forceinline__ void attend(const cu_attn &a)
{
    extern __shared__ float smem[];
    const uint32_t hd = a.head_dim, per = a.n_head / a.n_kv_head, n_chunk = (per + G - 1) / G;
    float *qs = smem, *sc = qs + (G * hd + 3) / 4 * 4, *os = sc + G * CU_SPLIT_FAR; // q, scores, output of 4 warps
    __shared__ float ml[G][2];
    __shared__ bool is_last;
    pdl_next();
    pdl_wait();
    const uint32_t split = blockIdx.x, kvh = blockIdx.y / n_chunk, h0 = kvh * per + blockIdx.y % n_chunk * G;
    const uint32_t nh = min((uint32_t)G, (kvh + 1) * per - h0), row = a.t0 + blockIdx.z;
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const keys<KV> k = keys_of<KV>(a, row, split, kvh);
    for (uint32_t x = tid; x < G * hd; x += THREADS)
        qs[x] = x / hd < nh ? a.q[(uint64_t)row * a.ldq + (h0 + x / hd) * hd + x % hd] : 0;
    __syncthreads();
    scores<KV, G>(a, k, qs, sc);
    __syncthreads();
    soften<G>(sc, k.n, ml, warp, lane);
    __syncthreads();
    values<KV, G>(k, sc, os, warp, lane);
    __syncthreads();
    for (uint32_t x = tid; x < nh * hd; x += THREADS) {
        const uint32_t g = x / hd, d = x % hd;
        float v = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) v += os[(w * G + g) * hd + d];
        if (a.n_split == 1) {
            attn_put(a, row, h0 + g, d, v * attn_scale(a, h0 + g, ml[g][0], ml[g][1]));
        } else {
            float *p = a.part + (((uint64_t)blockIdx.z * a.n_head + h0 + g) * a.n_split + split) * (hd + 2);
            p[d] = v;
            if (d == 0) p[hd] = ml[g][0], p[hd + 1] = ml[g][1];
        }
    }
    if (a.n_split > 1) attn_join(a, blockIdx.z, row, blockIdx.y, gridDim.y, h0, nh, &is_last);
}

} // namespace

#define ATTN(name, KV, G)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ cu_attn a)            \
    {                                                                                                        \
        attend<KV, G>(a);                                                                                    \
    }
ATTN(attn_f16_1, __half, 1)
ATTN(attn_f16_4, __half, 4)
ATTN(attn_f16_8, __half, 8)
ATTN(attn_q8_1, int8_t, 1)
ATTN(attn_q8_4, int8_t, 4)
ATTN(attn_q8_8, int8_t, 8)
ATTN(attn_f32_1, float, 1)
ATTN(attn_f32_4, float, 4)
ATTN(attn_f32_8, float, 8)
