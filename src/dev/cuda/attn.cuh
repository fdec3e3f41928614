// dev/cuda/attn.cuh - what the attention kernels share: fragments, tiles in shared memory, joining splits.
#ifndef IMP_CUDA_ATTN_CUH
#define IMP_CUDA_ATTN_CUH

#include "common.cuh"

__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void ldsm(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void ldsm_t(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
// Address of 16-byte piece c of row r in a tile of rows of HD halves; pieces are swapped so that eight rows of one piece
// lie in different banks.
template <int HD> __device__ __forceinline__ uint32_t kv_piece(uint32_t base, uint32_t r, uint32_t c)
{
    return base + r * (HD * 2) + ((c ^ (r & 7)) << 4);
}
// n bytes (16 or none) and zeros up to 16.
__device__ __forceinline__ void copy16(uint32_t to, const void *from, uint32_t n)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(n) : "memory");
}

// 16 int8 times a scale, as 16 halves. The bits of 0x6400 + u are the half 1024 + u.
__device__ __forceinline__ void decode16(const uint4 &q, __half scale, uint4 (&out)[2])
{
    const __half2 d = __half2half2(scale), zero = __half2half2(__ushort_as_half(0x6480)); // 1024 + 128
    const uint32_t w[4] = {q.x, q.y, q.z, q.w};
    uint32_t h[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint32_t bits = __byte_perm(w[i / 2] ^ 0x80808080u, 0x64646464u, i & 1 ? 0x4342 : 0x4140);
        const __half2 v = __hmul2(__hsub2(*(const __half2 *)&bits, zero), d);
        h[i] = *(const uint32_t *)&v;
    }
    out[0] = make_uint4(h[0], h[1], h[2], h[3]);
    out[1] = make_uint4(h[4], h[5], h[6], h[7]);
}
__device__ __forceinline__ void put16(uint32_t to, const uint4 &v)
{
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}

__device__ __forceinline__ void attn_put(const cu_attn &a, uint64_t row, uint32_t h, uint32_t d, float v)
{
    if (a.y) a.y[row * a.ldy + h * a.head_dim + d] = v;
    if (a.h) a.h[row * a.ldh + h * a.head_dim + d] = to_half_bits(v, a.hkind);
}
// What a head's sum of values is multiplied by: maximum m, sum l of exp(score - m), the head's sink.
__device__ __forceinline__ float attn_scale(const cu_attn &a, uint32_t h, float m, float l)
{
    if (!a.sink) return l > 0 ? 1 / l : 0;
    float s = a.sink[h], top = fmaxf(m, s), f = m == -INFINITY ? 0 : expf(m - top);
    return f / (l * f + expf(s - top));
}
// The last block of a row and a group of heads to come here joins what all splits left in part. z: the row's place in part;
// group: which of the n_group groups of heads.
__device__ __forceinline__ void attn_join(const cu_attn &a, uint32_t z, uint32_t row, uint32_t group,
                                          uint32_t n_group, uint32_t h0, uint32_t nh, bool *is_last)
{
    const uint32_t hd = a.head_dim, stride = hd + 2;
    __threadfence();
    __syncthreads();
    uint32_t *count = a.count + (uint64_t)z * n_group + group;
    if (threadIdx.x == 0) *is_last = atomicAdd(count, 1) == a.n_split - 1;
    __syncthreads();
    if (!*is_last) return;
    __threadfence();
    if (threadIdx.x == 0) *count = 0;
    for (uint32_t x = threadIdx.x; x < nh * hd; x += blockDim.x) {
        uint32_t g = x / hd, d = x % hd;
        const float *p = a.part + ((uint64_t)z * a.n_head + h0 + g) * a.n_split * stride;
        float m = -INFINITY, l = 0, o = 0;
#pragma unroll 4
        for (uint32_t s = 0; s < a.n_split; s++) m = fmaxf(m, __ldcg(p + s * stride + hd));
#pragma unroll 4
        for (uint32_t s = 0; s < a.n_split; s++) {
            float ms = __ldcg(p + s * stride + hd), ls = __ldcg(p + s * stride + hd + 1);
            float c = ms == -INFINITY ? 0 : expf(ms - m);
            l += c * ls;
            o += c * __ldcg(p + s * stride + d);
        }
        attn_put(a, row, h0 + g, d, o * attn_scale(a, h0 + g, m, l));
    }
}

#endif
