// dev/cuda/top.cu - the best columns of a row of logits in order, and the sum of its exponentials: what a sampler needs of it.
//
// Idea:   a block has a chunk of a row. Its K best are found by histograms of their bits from the top down, until as many lie
//         in the rest as are wanted; the last block of a row does the same with what all have found, then sorts that.
// Layout: a column's key: its value so that larger is larger, then the column's complement, so that all keys differ and equal
//         values are in order of columns; 0: no number. out: cu_top_row, a row each.
// Always: the sum is made in one order. The result depends on no timing: who comes last does not matter.
#include "common.cuh"

namespace
{

constexpr uint32_t THREADS = 1024, WARPS = THREADS / 32, K = CU_TOP, BINS = 2048;

struct shared {
    uint32_t bin[BINS], warp[WARPS], n, above, digit, inside;
    unsigned long long best[K];
    double sum[WARPS];
    float most[WARPS];
    bool is_last;
};

__device__ __forceinline__ unsigned long long key_of(float v, uint32_t column)
{
    if (isnan(v)) return 0;
    const uint32_t u = __float_as_uint(v == 0 ? 0.0f : v);
    return (unsigned long long)(u & 0x80000000u ? ~u : u | 0x80000000u) << 32 | (0xffffffffu - column);
}
__device__ __forceinline__ float value_of(unsigned long long key)
{
    const uint32_t u = (uint32_t)(key >> 32);
    return __uint_as_float(u & 0x80000000u ? u & 0x7fffffffu : ~u);
}

// Column i as it counts: what the mask does not have is -inf.
__device__ __forceinline__ float column(const cu_top &a, const float *x, uint32_t i)
{
    const float v = x[i];
    return a.mask && !(a.mask[i / 32] >> (i % 32) & 1) && !isnan(v) ? -INFINITY : v;
}

// The digit in which the want-th largest of what was counted lies: sm.digit, how many are in larger ones and in it.
__device__ __forceinline__ void find_digit(shared &sm, uint32_t want)
{
    const uint32_t tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const uint32_t hi = BINS - 1 - 2 * tid, c0 = sm.bin[hi], c1 = sm.bin[hi - 1]; // from the largest down
    uint32_t sum = c0 + c1;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const uint32_t o = __shfl_up_sync(0xffffffffu, sum, d);
        if (lane >= d) sum += o;
    }
    if (lane == 31) sm.warp[warp] = sum;
    __syncthreads();
    uint32_t before = sum - c0 - c1;
    for (uint32_t w = 0; w < warp; w++) before += sm.warp[w];
    if (before < want && want <= before + c0) sm.digit = hi, sm.above = before, sm.inside = c0;
    if (before + c0 < want && want <= before + c0 + c1)
        sm.digit = hi - 1, sm.above = before + c0, sm.inside = c1;
    __syncthreads();
}

// The K largest keys of load(0..n-1), or all there are, to sm.best in any order, zeros behind.
template <typename F> __device__ __forceinline__ void select(shared &sm, uint32_t n, F load)
{
    const uint32_t tid = threadIdx.x;
    unsigned long long prefix = 0, known = 0;
    uint32_t want = K;
    if (tid == 0) sm.n = 0;
    __syncthreads();
    uint32_t own = 0;
    for (uint32_t i = tid; i < n; i += THREADS) own += load(i) != 0;
    if (own > 0) atomicAdd(&sm.n, own);
    __syncthreads();
    const bool all = sm.n <= K;
    for (int shift = 53; !all && shift >= 0; shift = shift > 11 ? shift - 11 : shift > 0 ? 0 : -1) {
        for (uint32_t b = tid; b < BINS; b += THREADS) sm.bin[b] = 0;
        __syncthreads();
        for (uint32_t i = tid; i < n; i += THREADS) {
            const unsigned long long k = load(i);
            if (k != 0 && (k & known) == prefix) atomicAdd(&sm.bin[k >> shift & (BINS - 1)], 1);
        }
        __syncthreads();
        find_digit(sm, want);
        prefix |= (unsigned long long)sm.digit << shift;
        known |= (unsigned long long)(BINS - 1) << shift;
        want -= sm.above;
        if (sm.inside == want) break; // all of them
        __syncthreads();
    }
    __syncthreads();
    if (tid == 0) sm.n = 0;
    for (uint32_t i = tid; i < K; i += THREADS) sm.best[i] = 0;
    __syncthreads();
    for (uint32_t i = tid; i < n; i += THREADS) {
        const unsigned long long k = load(i);
        if (k != 0 && k >= prefix) sm.best[atomicAdd(&sm.n, 1)] = k;
    }
    __syncthreads();
}

// sm.best, the largest first.
__device__ __forceinline__ void sort(shared &sm)
{
    const uint32_t i = threadIdx.x;
    for (uint32_t size = 2; size <= K; size *= 2)
        for (uint32_t d = size / 2; d > 0; d /= 2) {
            const uint32_t o = i ^ d;
            if (i < K && o > i) {
                const unsigned long long x = sm.best[i], y = sm.best[o];
                if ((x < y) == ((i & size) == 0)) sm.best[i] = y, sm.best[o] = x;
            }
            __syncthreads();
        }
}

__device__ __forceinline__ double warp_sum64(double v)
{
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) v += __shfl_xor_sync(0xffffffffu, v, i);
    return v;
}

// The largest of columns c0..c1-1 and the sum of exp(column - that).
__device__ __forceinline__ void stats(const cu_top &a, shared &sm, const float *x, uint32_t c0, uint32_t c1, float &most,
                                      double &sum)
{
    const uint32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    most = -INFINITY, sum = 0;
    for (uint32_t i = c0 + threadIdx.x; i < c1; i += THREADS) most = fmaxf(most, column(a, x, i));
    most = warp_max(most);
    if (lane == 0) sm.most[warp] = most;
    __syncthreads();
    most = warp_max(sm.most[lane]);
    if (most > -INFINITY)
        for (uint32_t i = c0 + threadIdx.x; i < c1; i += THREADS) {
            const float v = column(a, x, i);
            if (!isnan(v)) sum += exp((double)v - (double)most);
        }
    sum = warp_sum64(sum);
    if (lane == 0) sm.sum[warp] = sum;
    __syncthreads();
    sum = warp_sum64(sm.sum[lane]);
}

// What the chunks of a row found, to its place in out.
__device__ __forceinline__ void join(const cu_top &a, shared &sm, uint32_t z, uint32_t row)
{
    const unsigned long long *part = (const unsigned long long *)a.part + (uint64_t)z * a.n_chunk * K;
    select(sm, a.n_chunk * K, [=](uint32_t i) { return __ldcg(part + i); });
    sort(sm);
    cu_top_row *to = a.out + row;
    const uint32_t n = min(sm.n, K);
    for (uint32_t i = threadIdx.x; i < n; i += THREADS)
        to->best[i] = {(int32_t)(0xffffffffu - (uint32_t)sm.best[i]), value_of(sm.best[i])};
    if (threadIdx.x >= 32) return;
    const cu_top_stat *stat = a.stat + (uint64_t)z * a.n_chunk;
    float most = -INFINITY;
    for (uint32_t c = threadIdx.x; c < a.n_chunk; c += 32) most = fmaxf(most, __ldcg(&stat[c].most));
    most = warp_max(most);
    double sum = 0;
    for (uint32_t c = threadIdx.x; c < a.n_chunk; c += 32) {
        const float m = __ldcg(&stat[c].most);
        if (m > -INFINITY) sum += __ldcg(&stat[c].sum) * exp((double)m - (double)most);
    }
    sum = warp_sum64(sum);
    if (threadIdx.x == 0) to->n = n, to->sum = sum;
}

} // namespace

// grid: (chunks, rows)
extern "C" __global__ void __launch_bounds__(THREADS) top(const __grid_constant__ cu_top a)
{
    __shared__ shared sm;
    pdl_next();
    pdl_wait();
    const uint32_t chunk = blockIdx.x, z = blockIdx.y, row = a.row0 + z;
    const uint32_t c0 = chunk * CU_TOP_CHUNK, c1 = min(c0 + CU_TOP_CHUNK, a.n);
    const float *x = a.x + (uint64_t)row * a.ldx;
    float most;
    double sum;
    stats(a, sm, x, c0, c1, most, sum);
    select(sm, c1 - c0, [=](uint32_t i) { return key_of(column(a, x, c0 + i), c0 + i); });
    const uint64_t at = (uint64_t)z * a.n_chunk + chunk;
    for (uint32_t i = threadIdx.x; i < K; i += THREADS) a.part[at * K + i] = sm.best[i];
    if (threadIdx.x == 0) a.stat[at] = {sum, most, 0};
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) sm.is_last = atomicAdd(a.count + z, 1) == a.n_chunk - 1;
    __syncthreads();
    if (!sm.is_last) return;
    __threadfence();
    if (threadIdx.x == 0) a.count[z] = 0;
    join(a, sm, z, a.masked ? a.masked - 1 : row);
}
