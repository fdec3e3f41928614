// dev/cuda/common.cuh - what the kernels share: activations, reductions, dependent launches.
#ifndef IMP_CUDA_COMMON_CUH
#define IMP_CUDA_COMMON_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "args.h"

// A launch may start while the kernel before it still runs; nothing of that kernel is read or overwritten before pdl_wait.
__device__ __forceinline__ void pdl_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void pdl_next()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ float activate(uint32_t act, float x)
{
    switch (act) {
    case 0: return x / (1 + expf(-x));
    case 1: return 0.5f * x * (1 + erff(x * 0.70710678118654752f));
    case 2: return 0.5f * x * (1 + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case 3: return x > 0 ? x : 0;
    case 4: return tanhf(x);
    default: return 1 / (1 + expf(-x));
    }
}

__device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) v += __shfl_xor_sync(0xffffffffu, v, i);
    return v;
}
__device__ __forceinline__ float warp_max(float v)
{
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, i));
    return v;
}
// Sum over the block; every thread gets it. tmp: 32 floats.
__device__ __forceinline__ float block_sum(float v, float *tmp)
{
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) tmp[threadIdx.x / 32] = v;
    __syncthreads();
    float s = threadIdx.x % 32 < blockDim.x / 32 ? tmp[threadIdx.x % 32] : 0;
    return warp_sum(s);
}

__device__ __forceinline__ uint16_t to_half_bits(float v, uint32_t kind)
{
    if (kind == 1) return __bfloat16_as_ushort(__float2bfloat16_rn(v));
    return __half_as_ushort(__float2half_rn(fminf(fmaxf(v, -65504.f), 65504.f)));
}

// The warp's 32 values as a block of a q8_0 cache, to the bit what kern/kv.c makes of them: this lane's integer, the scale.
__device__ __forceinline__ int8_t encode_q8(float x, __half &scale)
{
    const bool nan = __any_sync(0xffffffffu, isnan(x));
    scale = __float2half_rn(nan ? __int_as_float(0x7fffffff) : warp_max(fabsf(x)) / 127);
    const float d = __half2float(scale), f = x * (1 / d);
    if (d == 0 || !isfinite(d)) return 0;
    return (int8_t)(!(f > -127) ? -127 : f < 127 ? __float2int_rn(f) : 127);
}

__host__ __device__ __forceinline__ uint32_t split_begin(uint32_t s)
{
    const uint32_t near = CU_FAR / CU_SPLIT;
    return s < near ? s * CU_SPLIT : CU_FAR + (s - near) * CU_SPLIT_FAR;
}

// Of a quantised matrix: the 16 bytes with what lane t has of a row in a tile, and the scale (Q4M: scale and minimum) of a
// row's group. Layout in pack.cu.
__host__ __device__ __forceinline__ uint64_t tile_at(uint32_t type, uint32_t kpad, uint64_t row,
                                                     uint32_t tile)
{
    return (row / 16 * (kpad / cu_tile_k(type)) + tile) * cu_tile_bytes(type);
}
__host__ __device__ __forceinline__ uint64_t piece_at(uint32_t type, uint32_t kpad, uint64_t row,
                                                      uint32_t tile, uint32_t t)
{
    uint32_t r = (uint32_t)(row & 15);
    return tile_at(type, kpad, row, tile) + r / 8 * 512 + ((r & 7) * 4 + t) * 16;
}
__host__ __device__ __forceinline__ uint64_t scale_at(uint32_t type, uint32_t kpad, uint64_t row,
                                                      uint32_t group)
{
    uint32_t r = (uint32_t)(row & 15), a_tile = type == CU_Q8 ? 2 : 4, size = type == CU_Q4M ? 4 : 2;
    return tile_at(type, kpad, row, group / a_tile) + 1024 + ((r & 7) * 2 + r / 8) * (a_tile * size) +
           group % a_tile * size;
}

// Element (row, k) of a packed matrix.
__device__ __forceinline__ float packed_at(const uint8_t *q, uint32_t type, uint32_t kpad, uint64_t row,
                                           uint32_t k)
{
    uint64_t at = row * kpad + k;
    if (type == CU_F32) return ((const float *)q)[at];
    if (type == CU_BF16) return __bfloat162float(((const __nv_bfloat16 *)q)[at]);
    if (type == CU_F16) return __half2float(((const __half *)q)[at]);
    const uint32_t j = k >> 4, t = k >> 2 & 3, e = k & 3; // 16 columns, lane, place
    const __half *sc = (const __half *)(q + scale_at(type, kpad, row, type == CU_Q8F ? k / 16 : k / 32));
    if (type == CU_Q8 || type == CU_Q8F)
        return (float)(int8_t)q[piece_at(type, kpad, row, k / 64, t) + (j & 3) * 4 + e] * __half2float(sc[0]);
    const uint32_t v = q[piece_at(type, kpad, row, k / 128, t) + (j >> 1 & 3) * 4 + e] >> ((j & 1) * 4) & 15;
    return type == CU_Q4 ? (float)((int)(v ^ 8) - 8) * __half2float(sc[0])
                         : (float)v * __half2float(sc[0]) - __half2float(sc[1]);
}

#endif
