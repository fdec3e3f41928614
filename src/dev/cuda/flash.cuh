// dev/cuda/flash.cuh - what the two kernels for attention of many rows share: a block's work, who sees whom, the way out.
#ifndef IMP_CUDA_FLASH_CUH
#define IMP_CUDA_FLASH_CUH

#include "attn.cuh"

__device__ __forceinline__ uint32_t half2_bits(float x, float y)
{
    __half2 h = __floats2half2_rn(x, y);
    return *(uint32_t *)&h;
}

__device__ __forceinline__ float two_to(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// What a block works on: ROWS rows, which are positions in the sequence's new tokens, and tiles kb0..kb1-1 of KEYS keys.
struct work {
    uint32_t h, kvh, past, len, n_tok, i0, first, kb0, kb1;
    const int32_t *table;
};
template <uint32_t ROWS, uint32_t KEYS> __device__ __forceinline__ work work_of(const cu_attn &a)
{
    work w;
    const uint32_t seq = blockIdx.z;
    w.h = blockIdx.y;
    w.kvh = w.h / (a.n_head / a.n_kv_head);
    w.past = a.seq_past[seq];
    w.len = a.seq_len[seq];
    w.n_tok = w.len - w.past;
    w.i0 = (gridDim.x - 1 - blockIdx.x) * ROWS; // the longest first
    w.first = a.seq_first[seq];
    w.table = a.table + (uint64_t)seq * a.table_stride;
    const uint32_t pos_lo = w.past + w.i0, pos_hi = w.past + min(w.i0 + ROWS, w.n_tok) - 1;
    uint32_t lo = 0, hi = a.full ? w.len : pos_hi + 1; // keys that any row sees
    if (a.window) {
        lo = a.full ? (pos_lo > a.window ? pos_lo - a.window : 0)
                    : (pos_lo + 1 > a.window ? pos_lo + 1 - a.window : 0);
        if (a.full) hi = min(hi, pos_hi + a.window + 1);
    }
    w.kb0 = lo / KEYS;
    w.kb1 = (hi + KEYS - 1) / KEYS;
    return w;
}

// Whether rows at positions pos0..pos1 see all of keys j0..j1.
__device__ __forceinline__ bool all_seen(const cu_attn &a, uint32_t len, uint32_t pos0, uint32_t pos1,
                                         uint32_t j0, uint32_t j1)
{
    return (a.full ? j1 < len : j1 <= pos0) &&
           (!a.window || (pos1 + (a.full ? 0 : 1) <= j0 + a.window && (!a.full || j1 <= pos0 + a.window)));
}
// Whether the row at position p sees key j.
__device__ __forceinline__ bool sees(const cu_attn &a, uint32_t len, uint32_t p, uint32_t j)
{
    const uint32_t dist = p > j ? p - j : j - p;
    return a.full ? j < len && (!a.window || dist <= a.window) : j <= p && (!a.window || dist < a.window);
}
// What a row's sums are multiplied by: maximum m (times log2 e), this lane's share l of the sum of powers of two.
__device__ __forceinline__ float flash_scale(const cu_attn &a, uint32_t h, float m, float l)
{
    l += __shfl_xor_sync(0xffffffffu, l, 1);
    l += __shfl_xor_sync(0xffffffffu, l, 2);
    if (!a.sink) return l > 0 ? 1 / l : 0;
    float sink = a.sink[h] * 1.4426950408889634f, top = fmaxf(m, sink),
          f = m == -INFINITY ? 0 : exp2f(m - top);
    return f / (l * f + exp2f(sink - top));
}
__device__ __forceinline__ void put_pair(const cu_attn &a, uint64_t row, uint32_t c, float v0, float v1)
{
    if (a.y) *(float2 *)(a.y + row * a.ldy + c) = make_float2(v0, v1);
    if (a.h)
        *(ushort2 *)(a.h + row * a.ldh + c) =
            make_ushort2(to_half_bits(v0, a.hkind), to_half_bits(v1, a.hkind));
}

#endif
