// dev/cuda/reduce.cu - sums over the GPUs that compute one divided graph together, through each other's memory.
//
// Idea:    every GPU writes its addend into a slot of its own on every other GPU's board and adds up what lies on its own
//          board, in the members' order: one way over the link, no second pass, the same bits everywhere. Small sums carry
//          the number of the call in every 8 bytes, so that data are their own signal; large ones go as bf16, with a flag
//          behind each block's part.
// Layout:  a board: lines [2][member][CU_REDUCE_SMALL / 2] of {float, call, float, call}; bf16 [2][member][CU_REDUCE_PIECE];
//          flags u32 [member][CU_REDUCE_BLOCKS].
// Always:  calls alternate between two slots. A block that has seen all members' call i knows that they have read call
//          i - 1, because a kernel begins to read when the one before it has ended; so slot i + 1 may be overwritten.
//          A member that never comes is waited for 20 s, or until the host's word says that it will not.
#include "common.cuh"

__device__ __forceinline__ uint64_t now_ns()
{
    uint64_t t;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
    return t;
}

// Looked at while waiting: false, the step is given up.
struct patience {
    uint32_t looks = 0;
    uint64_t begin = 0;
    __device__ __forceinline__ bool go_on(volatile uint32_t *stop)
    {
        if (++looks % 4096 != 0) return true;
        if (begin == 0) begin = now_ns();
        if (now_ns() - begin > 20000000000ull) *stop = 2;
        return *stop == 0;
    }
};

// Elements e .. e+n-1 of dense rows kept with row length ld; n divides what wide rows allow, or they come one by one.
template <int N> __device__ __forceinline__ void load(float (&v)[N], const float *p, uint32_t e, uint32_t end, uint32_t width,
                                                      uint32_t ld, bool wide)
{
    if (wide) {
        const float *q = p + (uint64_t)(e / width) * ld + e % width;
#pragma unroll
        for (int i = 0; i < N; i += 4) *(float4 *)(v + i) = *(const float4 *)(q + i);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            v[i] = e + i < end ? p[(uint64_t)((e + i) / width) * ld + (e + i) % width] : 0;
    }
}
template <int N> __device__ __forceinline__ void store(const float (&v)[N], float *p, uint32_t e, uint32_t end, uint32_t width,
                                                       uint32_t ld, bool wide)
{
    if (wide) {
        float *q = p + (uint64_t)(e / width) * ld + e % width;
#pragma unroll
        for (int i = 0; i < N; i += 4) *(float4 *)(q + i) = *(const float4 *)(v + i);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (e + i < end) p[(uint64_t)((e + i) / width) * ld + (e + i) % width] = v[i];
    }
}

__device__ __forceinline__ void put_line(uint4 *p, float a, float b, uint32_t call)
{
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %2};" ::"l"(p), "r"(__float_as_uint(a)), "r"(call),
                 "r"(__float_as_uint(b))
                 : "memory");
}
__device__ __forceinline__ float2 get_line(const uint4 *p, uint32_t call, volatile uint32_t *stop)
{
    uint4 v;
    patience wait;
    do {
        asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                     : "l"(p)
                     : "memory");
    } while ((v.y != call || v.w != call) && wait.go_on(stop));
    return make_float2(__uint_as_float(v.x), __uint_as_float(v.z));
}

// The next call of this block; never 0, which fresh boards hold.
__device__ __forceinline__ uint32_t next_call(const uint32_t *count)
{
    uint32_t c = *count + 1;
    return c != 0 ? c : 2;
}

// Up to CU_REDUCE_SMALL elements; a thread has four.
extern "C" __global__ void __launch_bounds__(256) reduce_small(const __grid_constant__ cu_reduce a)
{
    pdl_next();
    pdl_wait();
    if (blockIdx.x * 1024 >= a.total) return;
    const uint32_t e = (blockIdx.x * 256 + threadIdx.x) * 4, call = next_call(a.count + blockIdx.x);
    const uint64_t slot = (uint64_t)(call & 1) * a.n * (CU_REDUCE_SMALL / 2), mine = slot + (uint64_t)a.rank * (CU_REDUCE_SMALL / 2);
    __syncthreads();
    if (e < a.total) {
        float x[4], sum[4], r[4] = {0, 0, 0, 0};
        load<4>(x, a.x, e, a.total, a.width, a.ldx, a.wide);
        for (uint32_t m = 0; m < a.n; m++) {
            if (m == a.rank) continue;
            uint4 *to = (uint4 *)a.board[m] + mine + e / 2;
            put_line(to, x[0], x[1], call);
            put_line(to + 1, x[2], x[3], call);
        }
        if (a.res) load<4>(r, a.res, e, a.total, a.width, a.ldr, a.wide);
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] = 0;
        for (uint32_t m = 0; m < a.n; m++) {
            float v[4] = {x[0], x[1], x[2], x[3]};
            if (m != a.rank) {
                const uint4 *from = (const uint4 *)a.board[a.rank] + slot + (uint64_t)m * (CU_REDUCE_SMALL / 2) + e / 2;
                float2 p = get_line(from, call, a.stop), q = get_line(from + 1, call, a.stop);
                v[0] = p.x, v[1] = p.y, v[2] = q.x, v[3] = q.y;
            }
#pragma unroll
            for (int i = 0; i < 4; i++) sum[i] += v[i];
        }
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] += r[i];
        store<4>(sum, a.y, e, a.total, a.width, a.ldy, a.wide);
    }
    if (threadIdx.x == 0) a.count[blockIdx.x] = call;
}

__device__ __forceinline__ uint4 to_bf16(const float (&v)[8])
{
    uint32_t w[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        w[i] = (uint32_t)to_half_bits(v[2 * i], 1) | (uint32_t)to_half_bits(v[2 * i + 1], 1) << 16;
    return make_uint4(w[0], w[1], w[2], w[3]);
}
__device__ __forceinline__ void add_bf16(float (&sum)[8], uint4 v)
{
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sum[2 * i] += __uint_as_float(w[i] << 16);
        sum[2 * i + 1] += __uint_as_float(w[i] & 0xffff0000u);
    }
}

// Elements first .. first+total-1, at most CU_REDUCE_PIECE, by CU_REDUCE_BLOCKS blocks.
extern "C" __global__ void __launch_bounds__(512) reduce_large(const __grid_constant__ cu_reduce a)
{
    pdl_next();
    pdl_wait();
    const uint32_t units = (a.total + 7) / 8, per = (units + gridDim.x - 1) / gridDim.x, u0 = blockIdx.x * per;
    const uint32_t u1 = min(units, u0 + per), end = a.first + a.total, call = next_call(a.count + blockIdx.x);
    const uint64_t lines = (uint64_t)2 * a.n * (CU_REDUCE_SMALL / 2), cap = CU_REDUCE_PIECE / 8;
    const uint64_t slot = lines + (call & 1) * a.n * cap, flags = lines + 2 * a.n * cap;
    for (uint32_t u = u0 + threadIdx.x; u < u1; u += blockDim.x) {
        float x[8];
        load<8>(x, a.x, a.first + u * 8, end, a.width, a.ldx, a.wide);
        const uint4 w = to_bf16(x);
        for (uint32_t m = 0; m < a.n; m++)
            if (m != a.rank) ((uint4 *)a.board[m])[slot + a.rank * cap + u] = w;
    }
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x < a.n && threadIdx.x != a.rank) {
        uint32_t *to = (uint32_t *)((uint4 *)a.board[threadIdx.x] + flags) + a.rank * CU_REDUCE_BLOCKS + blockIdx.x;
        const uint32_t *from =
            (const uint32_t *)((uint4 *)a.board[a.rank] + flags) + threadIdx.x * CU_REDUCE_BLOCKS + blockIdx.x;
        asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(call) : "memory");
        patience wait;
        uint32_t seen;
        do { // who is one call ahead has sent this one, too
            asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(seen) : "l"(from) : "memory");
        } while ((int32_t)(seen - call) < 0 && wait.go_on(a.stop));
    }
    __syncthreads();
    for (uint32_t u = u0 + threadIdx.x; u < u1; u += blockDim.x) {
        float x[8], sum[8] = {0, 0, 0, 0, 0, 0, 0, 0}, r[8];
        load<8>(x, a.x, a.first + u * 8, end, a.width, a.ldx, a.wide);
        for (uint32_t m = 0; m < a.n; m++)
            add_bf16(sum, m == a.rank ? to_bf16(x) : __ldcv((const uint4 *)a.board[a.rank] + slot + m * cap + u));
        if (a.res) {
            load<8>(r, a.res, a.first + u * 8, end, a.width, a.ldr, a.wide);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] += r[i];
        }
        store<8>(sum, a.y, a.first + u * 8, end, a.width, a.ldy, a.wide);
    }
    if (threadIdx.x == 0) a.count[blockIdx.x] = call;
}
