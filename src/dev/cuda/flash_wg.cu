// dev/cuda/flash_wg.cu - attention of many rows on Hopper, f16 cache: products by whole warp groups (wgmma).
//
// Idea:   a block has 128 rows of one head, two of its warp groups 64 each: q stays in registers as the A operand. The third
//         group brings keys and values in tiles of 128 (two KV blocks) through three stages of shared memory. A group asks
//         for the next tile's scores and this tile's sums of values at once and makes the maximum and the powers of the next
//         tile while the latter runs; the groups take turns, so that one computes powers while the other's products run.
// Layout: cache of a layer: [block][kv head][64][HD], keys and values apart. A tile in shared memory: [HD / 64][128][64]
//         halves, the 16-byte pieces of a row swapped as 128-byte swizzling wants it.
// Source: Shah et al. 2024 (FlashAttention-3) for the overlap; the PTX manual for operands in shared memory.
#include "flash.cuh"

namespace
{

constexpr int ROWS = 128, GROUP = 128, KEYS = CU_FLASH_WG_KEYS, STAGES = CU_FLASH_WG_STAGES;
#if defined __CUDA_ARCH_FEAT_SM90_ALL

// ---- products of a warp group ---------------------------------------------------------------------------

// Shared memory as a B operand: 128-byte swizzling; lead: bytes to the next 64 columns (transposed only), stride: to the next
// eight rows.
__device__ __forceinline__ uint64_t operand(uint32_t at, uint32_t lead, uint32_t stride)
{
    return (uint64_t)((at & 0x3ffffu) >> 4) | (uint64_t)(lead >> 4) << 16 | (uint64_t)(stride >> 4) << 32 |
           1ull << 62;
}
// d (+)= a b for 64 rows of a in registers, 16 columns of a and 8 * sizeof d / 4 columns of b; TRANSPOSED: rows of b are k.
#define FOUR(i)    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIXTEEN(i) FOUR(i), FOUR(i + 4), FOUR(i + 8), FOUR(i + 12)
template <int TRANSPOSED>
__device__ __forceinline__ void times(float (&d)[64], const uint32_t (&a)[4], uint64_t b, int add)
{
    asm volatile("{.reg .pred p; setp.ne.b32 p, %69, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63 "
                 "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;}"
                 : SIXTEEN(0), SIXTEEN(16), SIXTEEN(32), SIXTEEN(48)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TRANSPOSED));
}
template <int TRANSPOSED>
__device__ __forceinline__ void times(float (&d)[32], const uint32_t (&a)[4], uint64_t b, int add)
{
    asm volatile("{.reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31 "
                 "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;}"
                 : SIXTEEN(0), SIXTEEN(16)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TRANSPOSED));
}
__device__ __forceinline__ void products_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void products_end()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> __device__ __forceinline__ void products_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// Registers that a product writes behind the compiler's back.
template <int N> __device__ __forceinline__ void hold(float (&d)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// ---- a tile ---------------------------------------------------------------------------------------------

// Keys and values of block kb to `to`, by one warp group; rows that were never written read as zeros.
template <int HD>
__device__ __forceinline__ void fetch(const cu_attn &a, const work &w, uint32_t kb, uint32_t to, uint32_t i0)
{
    constexpr uint32_t TILE = KEYS * HD * 2;
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        const uint32_t b = kb * 2 + half, r0 = half * CU_KV_BLOCK;
        const bool there = b * CU_KV_BLOCK < w.len;
        const uint64_t off = ((uint64_t)(there ? w.table[b] : 0) * a.n_kv_head + w.kvh) * CU_KV_BLOCK * HD;
        const __half *ks = (const __half *)a.kc + off, *vs = (const __half *)a.vc + off;
#pragma unroll
        for (uint32_t i = 0; i < CU_KV_BLOCK * HD / 8 / GROUP; i++) {
            const uint32_t x = i * GROUP + i0, r = x / (HD / 8), c = x % (HD / 8);
            const uint32_t n = b * CU_KV_BLOCK + r < w.len ? 16 : 0;
            const uint32_t at = to + c / 8 * (KEYS * 128) + (r0 + r) * 128 + (((c & 7) ^ (r & 7)) << 4);
            copy16(at, ks + x * 8, n);
            copy16(at + TILE, vs + x * 8, n);
        }
    }
}

// ---- who waits for whom -----------------------------------------------------------------------------------

__device__ __forceinline__ void bar_init(uint32_t b, uint32_t n)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(b), "r"(n) : "memory");
}
__device__ __forceinline__ void bar_arrive(uint32_t b)
{
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(b) : "memory");
}
__device__ __forceinline__ void bar_wait(uint32_t b, uint32_t parity)
{
    uint32_t ok;
    do {
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                     : "=r"(ok)
                     : "r"(b), "r"(parity)
                     : "memory");
    } while (!ok);
}
// The two groups take turns at the tensor cores: 0 waits for its turn at barrier 1, group 1 at barrier 2.
__device__ __forceinline__ void turn_wait(int group)
{
    asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory");
}
__device__ __forceinline__ void turn_pass(int group)
{
    asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory");
}

// This lane's rows g and g + 8 of q, times scale, as fragments of A.
template <int HD>
__device__ __forceinline__ void take_q(const cu_attn &a, const work &w, float scale, uint32_t r0, int lane,
                                       uint32_t (&q)[HD / 16][4])
{
    const uint32_t g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float *x =
            a.q + (uint64_t)(w.first + min(r0 + g + r * 8, w.n_tok - 1)) * a.ldq + w.h * HD + 2 * t;
#pragma unroll
        for (int k = 0; k < HD / 16; k++) {
            const float2 v0 = *(const float2 *)(x + k * 16), v1 = *(const float2 *)(x + k * 16 + 8);
            q[k][r] = half2_bits(v0.x * scale, v0.y * scale);
            q[k][2 + r] = half2_bits(v1.x * scale, v1.y * scale);
        }
    }
}

template <int HD>
__device__ __forceinline__ void scores(const uint32_t (&q)[HD / 16][4], uint32_t ks, float (&s)[KEYS / 2])
{
#pragma unroll
    for (int k = 0; k < HD / 16; k++)
        times<0>(s, q[k], operand(ks + k / 4 * (KEYS * 128) + k % 4 * 32, 16, 1024), k > 0);
}
template <int HD>
__device__ __forceinline__ void values(const uint32_t (&p)[KEYS / 16][4], uint32_t vs, float (&o)[HD / 2])
{
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) times<1>(o, p[k], operand(vs + k * 2048, KEYS * 128, 1024), 1);
}

// -inf where a row does not see a key. pos0: position of the warp's first row, j0: the first key.
__device__ __forceinline__ void mask(const cu_attn &a, uint32_t len, uint32_t pos0, uint32_t j0, int lane,
                                     float (&s)[KEYS / 2])
{
    if (all_seen(a, len, pos0, pos0 + 15, j0, j0 + KEYS - 1)) return;
    const int g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const uint32_t j = j0 + n * 8 + 2 * t + (c & 1), p = pos0 + g + (c >> 1) * 8;
            if (!sees(a, len, p, j)) s[n * 4 + c] = -INFINITY;
        }
}

// What a lane knows of its two rows.
struct rows {
    float m[2], l[2], fade[2];
};

// Scores (times log2 e) to probabilities.
__device__ __forceinline__ void soften(float (&s)[KEYS / 2], rows &w)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = w.m[r];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) top = fmaxf(top, fmaxf(s[n * 4 + 2 * r], s[n * 4 + 2 * r + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        w.fade[r] = w.m[r] == top ? 1 : two_to(w.m[r] - top);
        w.m[r] = top;
        const float from = top == -INFINITY ? 0 : top; // nothing seen yet: exp2(-inf)
        float l = 0;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
            s[n * 4 + 2 * r] = two_to(s[n * 4 + 2 * r] - from);
            s[n * 4 + 2 * r + 1] = two_to(s[n * 4 + 2 * r + 1] - from);
            l += s[n * 4 + 2 * r] + s[n * 4 + 2 * r + 1];
        }
        w.l[r] = w.l[r] * w.fade[r] + l;
    }
}

// Probabilities as fragments of A.
__device__ __forceinline__ void to_operand(const float (&s)[KEYS / 2], uint32_t (&p)[KEYS / 16][4])
{
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int r = 0; r < 2; r++)
            p[n / 2][r + (n & 1) * 2] = half2_bits(s[n * 4 + 2 * r], s[n * 4 + 2 * r + 1]);
}

template <int HD>
__device__ __forceinline__ void put(const cu_attn &a, const work &k, uint32_t r0, int lane, const rows &w,
                                    const float (&o)[HD / 2])
{
    const int g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float scale = flash_scale(a, k.h, w.m[r], w.l[r]);
        const uint32_t i = r0 + g + r * 8;
        if (i >= k.n_tok) continue;
#pragma unroll
        for (int d = 0; d < HD / 8; d++) {
            put_pair(a, k.first + i, k.h * HD + d * 8 + 2 * t, o[d * 4 + 2 * r] * scale,
                     o[d * 4 + 2 * r + 1] * scale);
        }
    }
}

// ---- the loop ---------------------------------------------------------------------------------------------

// Scores of tile kb, which are there, to probabilities.
template <int HD>
__device__ __forceinline__ void soft_tile(const cu_attn &a, const work &k, uint32_t kb, uint32_t pos0,
                                          int lane, float (&s)[KEYS / 2], rows &w)
{
    if (a.softcap > 0) {
#pragma unroll
        for (int x = 0; x < KEYS / 2; x++) s[x] = a.softcap * 1.4426950408889634f * tanhf(s[x] / a.softcap);
    }
    mask(a, k.len, pos0, kb * KEYS, lane, s);
    soften(s, w);
}

// One warp group brings tiles: full[n % STAGES] when tile n is there, empty[] when both others are done with it.
template <int HD>
__device__ __forceinline__ void bring(const cu_attn &a, const work &k, uint32_t kv, uint32_t full,
                                      uint32_t empty)
{
    constexpr uint32_t AHEAD =
        STAGES - 2; // the tile before the last one goes on its way before room for another is waited for
    const uint32_t i0 = threadIdx.x % GROUP, n = k.kb1 - k.kb0;
    for (uint32_t i = 0; i < n + AHEAD; i++) {
        if (i < n) {
            if (i >= STAGES) bar_wait(empty + i % STAGES * 8, (i / STAGES + 1) & 1);
            fetch<HD>(a, k, k.kb0 + i, kv + i % STAGES * (4 * KEYS * HD), i0);
        }
        asm volatile("cp.async.commit_group;\ncp.async.wait_group %0;\nfence.proxy.async;" ::"n"(AHEAD)
                     : "memory");
        if (i >= AHEAD) bar_arrive(full + (i - AHEAD) % STAGES * 8);
    }
}

// grid: (tile of 128 rows, head, sequence). Shared memory: four tiles of keys and values.
template <int HD> __device__ __forceinline__ void flash(const cu_attn &a)
{
    extern __shared__ __align__(1024) uint8_t sm[];
    __shared__ __align__(8) uint64_t bars[2][STAGES];
    constexpr uint32_t TILE = KEYS * HD * 2;
    pdl_next();
    const uint32_t full = (uint32_t)__cvta_generic_to_shared(bars[0]), empty = full + STAGES * 8;
    if (threadIdx.x < STAGES) bar_init(full + threadIdx.x * 8, GROUP), bar_init(empty + threadIdx.x * 8, 2);
    __syncthreads();
    pdl_wait();
    const work k = work_of<ROWS, KEYS>(a);
    if (k.i0 >= k.n_tok) return;
    const int lane = threadIdx.x & 31, group = threadIdx.x / GROUP;
    const uint32_t kv = (uint32_t)__cvta_generic_to_shared(sm), n = k.kb1 - k.kb0;
    if (group == 2) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        bring<HD>(a, k, kv, full, empty);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const uint32_t r0 = k.i0 + threadIdx.x / 32 * 16, pos0 = k.past + r0;
    uint32_t q[HD / 16][4], p[KEYS / 16][4];
    take_q<HD>(a, k, a.softcap > 0 ? a.scale : a.scale * 1.4426950408889634f, r0, lane, q);
    rows w = {{-INFINITY, -INFINITY}, {0, 0}, {1, 1}};
    float o[HD / 2], s[KEYS / 2];
#pragma unroll
    for (int i = 0; i < HD / 2; i++) o[i] = 0;
    if (group == 1) turn_pass(1);
    bar_wait(full, 0);
    turn_wait(group);
    products_begin();
    scores<HD>(q, kv, s);
    products_end();
    turn_pass(group);
    products_wait<0>();
    hold(s);
    soft_tile<HD>(a, k, k.kb0, pos0, lane, s, w);
    to_operand(s, p);
    for (uint32_t i = 0; i + 1 < n; i++) {
        const uint32_t at = kv + i % STAGES * (2 * TILE), next = kv + (i + 1) % STAGES * (2 * TILE);
        bar_wait(full + (i + 1) % STAGES * 8, (i + 1) / STAGES & 1);
        turn_wait(group);
        products_begin();
        scores<HD>(q, next, s);
        products_end();
        values<HD>(p, at + TILE, o);
        products_end();
        turn_pass(group);
        products_wait<1>();
        hold(s);
        soft_tile<HD>(a, k, k.kb0 + i + 1, pos0, lane, s, w);
        products_wait<0>();
        hold(o);
        hold(s);
        if (threadIdx.x % GROUP == 0) bar_arrive(empty + i % STAGES * 8);
#pragma unroll
        for (int d = 0; d < HD / 8; d++) {
            o[d * 4] *= w.fade[0], o[d * 4 + 1] *= w.fade[0];
            o[d * 4 + 2] *= w.fade[1], o[d * 4 + 3] *= w.fade[1];
        }
        to_operand(s, p);
    }
    if (group == 0) turn_wait(0); // the turn that group 1 passed last
    products_begin();
    values<HD>(p, kv + (n - 1) % STAGES * (2 * TILE) + TILE, o);
    products_end();
    products_wait<0>();
    hold(o);
    put<HD>(a, k, r0, lane, w, o);
}
#else
template <int HD> __device__ __forceinline__ void flash(const cu_attn &) {}
#endif

} // namespace

extern "C" __global__ void __launch_bounds__(CU_FLASH_WG_THREADS, 1)
    flash_wg_64(const __grid_constant__ cu_attn a)
{
    flash<64>(a);
}
extern "C" __global__ void __launch_bounds__(CU_FLASH_WG_THREADS, 1)
    flash_wg_128(const __grid_constant__ cu_attn a)
{
    flash<128>(a);
}
