// dev/cuda/gemm.cu - y[m][n] = x[m][k] w[n][k]^T on tensor cores, both in 16 bit: what runs where cuBLASLt is not.
//
// Idea:  tiles of 128 rows by 128 columns, k in steps of 32 through a ring of 4 stages filled by cp.async; 8 warps of
//        64 x 32. k is a multiple of 32 (rows are padded with zeros), m and n are any.
#include "common.cuh"

namespace {

constexpr int BM = 128, BN = 128, BK = 32, STAGES = 4;

template <bool F16> __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    if constexpr (F16)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void ldsm(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}
// 16-byte piece c (0..3) of row r: rows are 64 bytes, pieces swapped by row so that 8 rows fill all banks.
__device__ __forceinline__ uint32_t piece(uint32_t base, uint32_t r, uint32_t c)
{
    return base + r * 64 + ((c ^ (r >> 1 & 3)) << 4);
}

template <bool F16> __device__ void gemm(const cu_gemm &a)
{
    extern __shared__ __align__(128) uint8_t sm[];
    constexpr uint32_t STAGE = (BM + BN) * BK * 2;
    pdl_next();
    pdl_wait();
    const uint32_t base = (uint32_t)__cvta_generic_to_shared(sm), tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const uint32_t m0 = blockIdx.x * BM, n0 = blockIdx.y * BN, wm = (warp >> 2) * 64, wn = (warp & 3) * 32;
    const uint32_t n_step = a.k / BK;
    auto fetch = [&](uint32_t step) {
        uint32_t at = base + (step % STAGES) * STAGE;
        if (step < n_step) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t x = tid + i * 256, r = x >> 2 & 127, c = x & 3;
                bool is_w = x >= 512;
                uint32_t row = (is_w ? n0 : m0) + r, last = is_w ? a.n : a.m, ok = row < last ? 16 : 0;
                const uint16_t *from = is_w ? a.w + (uint64_t)min(row, last - 1) * a.ldw : a.x + (uint64_t)min(row, last - 1) * a.ldx;
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(piece(at + (is_w ? BM * 64 : 0), r, c)),
                             "l"(from + step * BK + c * 8), "r"(ok));
            }
        }
        asm volatile("cp.async.commit_group;");
    };
    for (int s = 0; s < STAGES - 1; s++) fetch(s);
    float acc[4][4][4] = {};
    for (uint32_t step = 0; step < n_step; step++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
        __syncthreads();
        fetch(step + STAGES - 1);
        uint32_t xs = base + (step % STAGES) * STAGE, ws = xs + BM * 64;
#pragma unroll
        for (int kk = 0; kk < 2; kk++) {
            uint32_t af[4][4], bf[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                ldsm(af[i], piece(xs, wm + i * 16 + (lane & 15), kk * 2 + (lane >> 4)));
#pragma unroll
            for (int j = 0; j < 2; j++)
                ldsm(bf[j], piece(ws, wn + j * 16 + (lane & 7) + (lane >> 4) * 8, kk * 2 + (lane >> 3 & 1)));
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) mma<F16>(acc[i][j], af[i], bf[j >> 1][(j & 1) * 2], bf[j >> 1][(j & 1) * 2 + 1]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                uint32_t r = m0 + wm + i * 16 + (lane >> 2) + (c >> 1) * 8, n = n0 + wn + j * 8 + (lane & 3) * 2 + (c & 1);
                if (r >= a.m || n >= a.n) continue;
                float v = acc[i][j][c];
                if (a.res) v += a.res[(uint64_t)r * a.ldr + n];
                if (a.y) a.y[(uint64_t)r * a.ldy + n] = v;
                else a.h[(uint64_t)r * a.ldy + n] = to_half_bits(v, 1);
            }
}

} // namespace

extern "C" __global__ void __launch_bounds__(256) gemm_bf16(const __grid_constant__ cu_gemm a) { gemm<false>(a); }
extern "C" __global__ void __launch_bounds__(256) gemm_f16(const __grid_constant__ cu_gemm a) { gemm<true>(a); }
