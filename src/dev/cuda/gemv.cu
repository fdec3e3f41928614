// dev/cuda/gemv.cu - y = W x for few rows of x, at the speed of memory.
//
// Idea:   one block an SM; each of its two groups of eight warps goes through strips of 16 weight rows and shares k. Each
//         warp copies its tiles ahead into a ring of shared memory (cp.async), across the borders of strips, and starts
//         before the kernel in front has ended: weights depend on nothing. x waits in shared memory in the order of B
//         fragments, staged once a block, two columns a row: for 16-bit weights two bf16 (x = hi + lo, exact to 2^-17), for
//         quantised ones two signed digits of a 16-bit integer with a scale for 128 columns (to 2^-16 of their largest), so
//         that 4-bit and 8-bit weights go into integer products almost as they are. A tile meets x in mma.m16n8k16 or k32,
//         the weights as the A operand; the order of k is permuted alike in A and B, so nothing is shuffled. RMS norm is
//         folded in: x is multiplied by the norm's weight on the way to shared memory, by the row's 1/rms at the end.
//         Epilogues: bias, residual, act(gate) * up.
// Layout: tiles as pack.cu writes them (args.h). x: of 128 columns and a row CU_X_WIDE or CU_X_DIGITS bytes: hi, then lo.
// Always: the order of every sum depends on n and k alone.
#include "common.cuh"

namespace
{

constexpr int WARPS = CU_GEMV_WARPS, GROUPS = CU_GEMV_GROUPS, THREADS = CU_GEMV_THREADS;

__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// A: signed bytes, or unsigned ones.
template <bool SIGNED>
__device__ __forceinline__ void imma(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    if constexpr (SIGNED)
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%10,%10,%10,%10};"
                     : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(0));
    else
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%10,%10,%10,%10};"
                     : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(0));
}
__device__ __forceinline__ uint32_t pack2(float x, float y)
{
    __nv_bfloat162 p = __floats2bfloat162_rn(x, y);
    return *(uint32_t *)&p;
}
__device__ __forceinline__ float2 unpack2(uint32_t v)
{
    return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
}
__device__ __forceinline__ uint32_t word(const uint4 &v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// K: columns of a tile; X: bytes of 128 columns of a row of x, X_LO: of those, where lo begins.
template <int T> struct kind {
    static constexpr bool WIDE = T == CU_BF16 || T == CU_F16, FOUR = T == CU_Q4 || T == CU_Q4M;
    static constexpr int K = cu_tile_k(T), TILE = cu_tile_bytes(T), DEPTH = cu_gemv_depth(T);
    static constexpr int X = WIDE ? CU_X_WIDE : CU_X_DIGITS, X_LO = WIDE ? CU_X_WIDE / 2 : 128;
};

// ---- weights on their way ---------------------------------------------------------------------------

__device__ __forceinline__ void copy16(uint32_t to, const uint8_t *from)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// One warp's tiles in the order it multiplies them: of each strip (and of its partner, for GLU) every WARPSth.
template <int T> struct feed {
    typedef kind<T> U;
    const uint8_t *q, *at, *at8; // at: this lane's piece of the next tile; at8: 8 rows further (WIDE)
    uint32_t strip, part, left;  // left: tiles of the strip for this warp
    __device__ __forceinline__ void seek(const cu_gemv &a, int warp, int lane)
    {
        const uint32_t n_unit = a.kpad / U::K;
        left = strip * 16 < a.n && (uint32_t)warp < n_unit ? (n_unit - warp + WARPS - 1) / WARPS : 0;
        if constexpr (U::WIDE) {
            const uint32_t r0 = min(strip * 16 + lane / 4, a.n - 1),
                           r8 = min(strip * 16 + lane / 4 + 8, a.n - 1);
            const uint32_t up = part ? a.up : 0, c = warp * 32 + lane % 4 * 8;
            at = q + ((uint64_t)(r0 + up) * a.kpad + c) * 2;
            at8 = q + ((uint64_t)(r8 + up) * a.kpad + c) * 2;
        } else {
            at = q + ((uint64_t)(strip + (part ? a.up / 16 : 0)) * n_unit + warp) * U::TILE + lane * 16;
        }
    }
    // The next tile to ring slot `to` (shared address); always one group of copies.
    __device__ __forceinline__ void fetch(const cu_gemv &a, uint32_t to, int warp, int lane)
    {
        if (left != 0) {
            to += lane * 16;
            copy16(to, at);
            if constexpr (U::WIDE) {
                copy16(to + 512, at8);
                at += WARPS * 64;
                at8 += WARPS * 64;
            } else {
                copy16(to + 512, at + 512);
                if (lane < (U::TILE - 1024) / 16) copy16(to + 1024, at + 1024);
                at += WARPS * U::TILE;
            }
            if (--left == 0) {
                if (!a.glu || part == 1) strip += gridDim.x * GROUPS;
                part = a.glu ? part ^ 1 : 0;
                seek(a, warp, lane);
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
};

// ---- the product of a tile --------------------------------------------------------------------------

__device__ __forceinline__ float2 two(uint32_t v)
{
    return __half22float2(*(const __half2 *)&v);
}

// x[i]: lane t's 16 bytes of n-tile i for these 32 columns.
template <int T, int NT>
__device__ __forceinline__ void multiply_wide(const uint4 *w, const uint4 *const (&x)[NT],
                                              float (&acc)[NT][4])
{
    const uint4 p = w[0], q = w[32];
    const uint32_t f[2][4] = {{p.x, q.x, p.y, q.y}, {p.z, q.z, p.w, q.w}};
    uint4 b[NT];
#pragma unroll
    for (int i = 0; i < NT; i++) b[i] = x[i][0];
#pragma unroll
    for (int j = 0; j < 2; j++) {
        if constexpr (T == CU_BF16) {
#pragma unroll
            for (int i = 0; i < NT; i++) mma(acc[i], f[j], j ? b[i].z : b[i].x, j ? b[i].w : b[i].y);
        } else {
            uint32_t hi[4], lo[4]; // an f16 is the sum of two bf16
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float2 v = two(f[j][e]);
                hi[e] = pack2(v.x, v.y);
                float2 h = unpack2(hi[e]);
                lo[e] = pack2(v.x - h.x, v.y - h.y);
            }
#pragma unroll
            for (int i = 0; i < NT; i++) {
                mma(acc[i], hi, j ? b[i].z : b[i].x, j ? b[i].w : b[i].y);
                mma(acc[i], lo, j ? b[i].z : b[i].x, j ? b[i].w : b[i].y);
            }
        }
    }
}

__device__ __forceinline__ void add_scaled(float (&acc)[4], const int (&v)[4], float s0, float s1)
{
    acc[0] += s0 * (float)v[0], acc[1] += s0 * (float)v[1];
    acc[2] += s1 * (float)v[2], acc[3] += s1 * (float)v[3];
}
// What of a tile came to stand for: times the scales of x of columns 2t and 2t + 1.
__device__ __forceinline__ void add_tile(float (&acc)[4], const float (&v)[4], float2 s)
{
    acc[0] += s.x * v[0], acc[1] += s.y * v[1];
    acc[2] += s.x * v[2], acc[3] += s.y * v[3];
}

// x[i]: lane t's 16 bytes of n-tile i for these 64 columns; sx + 4 i: scales of x.
template <int T, int NT>
__device__ __forceinline__ void multiply_q8(const uint4 *w, const uint8_t *scales,
                                            const uint4 *const (&x)[NT], const float *sx, int g,
                                            float (&acc)[NT][4])
{
    const uint4 p = w[0], q = w[32];
    uint32_t sc[2][2]; // of rows g and g + 8
    if constexpr (T == CU_Q8F) {
        const uint4 v = ((const uint4 *)scales)[g];
        sc[0][0] = v.x, sc[0][1] = v.y, sc[1][0] = v.z, sc[1][1] = v.w;
    } else {
        const uint2 v = ((const uint2 *)scales)[g];
        sc[0][0] = v.x, sc[1][0] = v.y;
    }
#pragma unroll
    for (int i = 0; i < NT; i++) {
        const uint4 b = x[i][0];
        const uint32_t bw[4] = {b.x, b.y, b.z, b.w};
        float tile[4] = {0, 0, 0, 0};
#pragma unroll
        for (int gr = 0; gr < 2; gr++) {
            const uint32_t f[4] = {word(p, gr * 2), word(q, gr * 2), word(p, gr * 2 + 1),
                                   word(q, gr * 2 + 1)};
            const float2 s0 = two(sc[0][T == CU_Q8F ? gr : 0]), s1 = two(sc[1][T == CU_Q8F ? gr : 0]);
            int v[4];
            if constexpr (T == CU_Q8F) { // a scale for 16 columns: the other 16 meet zeros
                imma<true>(v, f, bw[2 * gr], 0);
                add_scaled(tile, v, s0.x, s1.x);
                imma<true>(v, f, 0, bw[2 * gr + 1]);
                add_scaled(tile, v, s0.y, s1.y);
            } else {
                imma<true>(v, f, bw[2 * gr], bw[2 * gr + 1]);
                add_scaled(tile, v, gr ? s0.y : s0.x, gr ? s1.y : s1.x);
            }
        }
        add_tile(acc[i], tile, *(const float2 *)(sx + 4 * i));
    }
}

// x[i]: lane t's first 16 of 32 bytes of n-tile i for these 128 columns; sx + 4 i: scales of x; sum + 4 * (NT * group + i):
// sums of x. low[i]: what the minima take.
template <int T, int NT>
__device__ __forceinline__ void multiply_q4(const uint4 *w, const uint8_t *scales,
                                            const uint4 *const (&x)[NT], const float *sx, const float *sum,
                                            int g, float (&acc)[NT][4], float (&low)[NT][4])
{
    const uint4 p = w[0], q = w[32];
    uint4 sc[2];
    if constexpr (T == CU_Q4M) {
        sc[0] = ((const uint4 *)scales)[g * 2], sc[1] = ((const uint4 *)scales)[g * 2 + 1];
    } else {
        sc[0] = ((const uint4 *)scales)[g];
    }
    float tile[NT][4] = {};
#pragma unroll
    for (int gr = 0; gr < 4; gr++) {
        const uint32_t v0 = word(p, gr), v1 = word(q, gr), high = 0xf0f0f0f0u;
        const uint32_t f[4] = {v0 << 4 & high, v1 << 4 & high, v0 & high, v1 & high}; // 16 times the integers
        float2 s0, s1;
        if constexpr (T == CU_Q4M) {
            s0 = two(word(sc[0], gr)), s1 = two(word(sc[1], gr));
        } else {
            s0 = two(word(sc[0], gr >> 1)), s1 = two(word(sc[0], 2 + (gr >> 1)));
            if (gr & 1) s0.x = s0.y, s1.x = s1.y;
        }
#pragma unroll
        for (int i = 0; i < NT; i++) {
            const uint4 b = x[i][gr >> 1];
            int v[4];
            imma<T == CU_Q4>(v, f, gr & 1 ? b.z : b.x, gr & 1 ? b.w : b.y);
            add_scaled(tile[i], v, s0.x, s1.x);
            if constexpr (T == CU_Q4M) {
                const float2 xs = *(const float2 *)(sum + (gr * NT + i) * 4);
                low[i][0] += s0.y * xs.x, low[i][1] += s0.y * xs.y;
                low[i][2] += s1.y * xs.x, low[i][3] += s1.y * xs.y;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < NT; i++) add_tile(acc[i], tile[i], *(const float2 *)(sx + 4 * i));
}

// ---- x ------------------------------------------------------------------------------------------------

struct staged {
    uint8_t *x;
    float *scale, *sum; // [128 columns][4 NT], [32 columns][4 NT] (Q4M)
    float (*square)[8]; // [warp][row]
};

// Four values of a row of x, columns k to k + 3, to B fragments, as bf16 and what bf16 leaves of them.
template <int T>
__device__ __forceinline__ void put_wide(const staged &to, float4 v, uint32_t k, uint32_t r, uint32_t m)
{
    const uint2 hi = {pack2(v.x, v.y), pack2(v.z, v.w)};
    const float2 p = unpack2(hi.x), q = unpack2(hi.y);
    uint8_t *at = to.x + (k / 128 * m + r) * kind<T>::X + (k / 4 & 31) * 8; // a lane has 8 columns of 32
    *(uint2 *)at = hi;
    *(uint2 *)(at + kind<T>::X_LO) = make_uint2(pack2(v.x - p.x, v.y - p.y), pack2(v.z - q.x, v.w - q.y));
}

// The same as two digits: v = scale * (256 hi + lo). A warp has 128 columns and their largest.
template <int T, int NT>
__device__ __forceinline__ void put_digits(const staged &to, float4 v, uint32_t k, uint32_t r, uint32_t m)
{
    const float most = warp_max(fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
    const float scale = most * (1 / 32512.f), by = most > 0 ? 32512.f / most : 0;
    const int q[4] = {__float2int_rn(v.x * by), __float2int_rn(v.y * by), __float2int_rn(v.z * by),
                      __float2int_rn(v.w * by)};
    uint32_t hi = 0, lo = 0;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const int h = (q[e] + 128) >> 8;
        hi |= (uint32_t)(h & 255) << (8 * e);
        lo |= (uint32_t)(q[e] & 255) << (8 * e);
    }
    const uint32_t c = k & 127, lane = threadIdx.x & 31; // lane t has [group of 32][half of it]
    uint8_t *at = to.x + (k / 128 * m + r) * kind<T>::X + (c >> 2 & 3) * 32 + (c >> 4) * 4;
    *(uint32_t *)at = hi;
    *(uint32_t *)(at + kind<T>::X_LO) = lo;
    if (lane == 0) to.scale[k / 128 * (4 * NT) + r] = kind<T>::FOUR ? scale / 16 : scale;
    if constexpr (T == CU_Q4M) {
        int s = q[0] + q[1] + q[2] + q[3];
#pragma unroll
        for (int d = 1; d < 8; d *= 2) s += __shfl_xor_sync(0xffffffffu, s, d);
        if (lane % 8 == 0) to.sum[k / 32 * (4 * NT) + r] = scale * (float)s;
    }
}

// Columns k0..k1-1 of the m rows of x to shared memory: times the norm's weight. A warp has every 16th 128 columns of all
// rows, two of them at a time.
template <int T, int NT>
__device__ __forceinline__ void stage(const cu_gemv &a, const float *x, uint32_t k0, uint32_t k1, uint32_t m,
                                      const staged &to, bool squares)
{
    constexpr uint32_t N_WARP = THREADS / 32, AHEAD = 2;
    const uint32_t lane = threadIdx.x & 31, warp = threadIdx.x / 32, n_unit = (k1 - k0 + 127) / 128;
    const uint32_t n = warp < n_unit ? (n_unit - warp + N_WARP - 1) / N_WARP * m : 0; // pairs of unit and row
    for (uint32_t p0 = 0; p0 < n; p0 += AHEAD) {
        float4 v[AHEAD], w[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const uint32_t p = p0 + i, k = k0 + (p / m * N_WARP + warp) * 128 + lane * 4, r = p % m;
            const bool in = p < n && k < a.k;
            v[i] = in ? *(const float4 *)(x + (uint64_t)r * a.ldx + k) : make_float4(0, 0, 0, 0);
            w[i] = in && a.norm ? *(const float4 *)(a.norm + k) : make_float4(1, 1, 1, 1);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const uint32_t p = p0 + i, k = (p / m * N_WARP + warp) * 128 + lane * 4, r = p % m;
            if (p >= n) break;
            if (a.normed) {
                const float off = a.norm ? a.w_offset : 0;
                const float ss =
                    warp_sum(v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w);
                if (squares && lane == 0) to.square[warp][r] += ss;
                v[i].x *= w[i].x + off, v[i].y *= w[i].y + off;
                v[i].z *= w[i].z + off, v[i].w *= w[i].w + off;
            }
            if constexpr (kind<T>::WIDE)
                put_wide<T>(to, v[i], k, r, m);
            else
                put_digits<T, NT>(to, v[i], k, r, m);
        }
    }
}

// ---- results ------------------------------------------------------------------------------------------

// Sixteen rows of the strip by m, from what the group's warps have summed: red[warp][part][m][16].
__device__ __forceinline__ void finish(const cu_gemv &a, const float *red, uint32_t strip, uint32_t m,
                                       const float (*square)[8], int lane)
{
    for (uint32_t o = lane; o < 16 * m; o += 32) {
        const uint32_t r16 = o & 15, mc = o >> 4, j = strip * 16 + r16;
        if (j >= a.n) continue;
        const uint64_t r = a.expert ? blockIdx.y : mc;
        const float res = a.res ? a.res[r * a.ldr + j] : 0;
        float v[2] = {0, 0}, inv = 1;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            v[0] += red[(w * 2 * m + mc) * 16 + r16];
            if (a.glu) v[1] += red[((w * 2 + 1) * m + mc) * 16 + r16];
        }
        if (a.normed) {
            float sum = 0;
#pragma unroll
            for (int w = 0; w < THREADS / 32; w++) sum += square[w][mc];
            inv = 1 / sqrtf(sum / (float)a.k + a.eps);
        }
        float y = v[0] * inv;
        if (a.bias) y += a.bias[j];
        if (a.glu) {
            float up = v[1] * inv;
            if (a.bias) up += a.bias[a.n + j];
            y = activate(a.act, y) * up;
        }
        a.y[r * a.ldy + j] = y + res;
    }
}

// This warp's sums of rows g and g + 8 to red[part][m][16]: what hi and lo made, less the minima.
template <int T, int NT>
__device__ __forceinline__ void put_sums(float (&acc)[NT][4], const float (&low)[NT][4], float *red,
                                         uint32_t m, int g, int t)
{
#pragma unroll
    for (int i = 0; i < NT; i++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const float lo = __shfl_xor_sync(0xffffffffu, acc[i][c], 2);
            float v = (kind<T>::WIDE ? acc[i][c] : acc[i][c] * 256) + lo;
            if (T == CU_Q4M) v -= low[i][c];
            const uint32_t r = i * 4 + t * 2 + (c & 1);
            if (t < 2 && r < m) red[r * 16 + g + (c >> 1) * 8] = v;
        }
}

// The tile in the ring, u units of K columns behind the first that is staged.
template <int T, int NT>
__device__ __forceinline__ void multiply(const uint8_t *tile, const uint8_t *const (&x0)[NT],
                                         const staged &st, uint32_t u, uint32_t x_unit, int lane,
                                         float (&acc)[NT][4], float (&low)[NT][4])
{
    typedef kind<T> U;
    const int g = lane >> 2, t = lane & 3;
    const uint4 *w = (const uint4 *)tile + lane, *x[NT];
    constexpr int A_UNIT = 128 / U::K; // tiles of 128 columns
    const uint32_t unit = u / A_UNIT, part = u % A_UNIT;
#pragma unroll
    for (int i = 0; i < NT; i++) x[i] = (const uint4 *)(x0[i] + unit * x_unit + part * (U::WIDE ? 64 : 16));
    if constexpr (U::WIDE)
        multiply_wide<T, NT>(w, x, acc);
    else if constexpr (U::FOUR)
        multiply_q4<T, NT>(w, tile + 1024, x, st.scale + unit * (4 * NT) + (t & 1) * 2,
                           st.sum + unit * (16 * NT) + (t & 1) * 2, g, acc, low);
    else
        multiply_q8<T, NT>(w, tile + 1024, x, st.scale + unit * (4 * NT) + (t & 1) * 2, g, acc);
}

// Shared memory: ring, red, scales and sums of x, x: sizes in args.h.
template <int T, int NT> __device__ __forceinline__ void gemv(const cu_gemv &a)
{
    typedef kind<T> U;
    extern __shared__ __align__(128) uint8_t smem[];
    __shared__ float square[THREADS / 32][8];
    pdl_next();
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int group = threadIdx.x / (WARPS * 32), warp = threadIdx.x / 32 % WARPS;
    const uint32_t m = a.expert ? 1 : a.m, n_strip = (a.n + 15) / 16;
    const uint8_t *ring = smem + (threadIdx.x / 32) * (U::DEPTH * U::TILE);
    const uint32_t ring_at = (uint32_t)__cvta_generic_to_shared(ring);
    float *red = (float *)(smem + cu_gemv_ring(T)) + group * 2 * (WARPS * 2 * m * 16);
    float *scale = (float *)(smem + cu_gemv_ring(T) + cu_gemv_red(m));
    const staged st = {(uint8_t *)scale + cu_gemv_sums(T, m, a.chunk), scale,
                       scale + a.chunk / 128 * (4 * NT), square};
    const float *x0 = a.x;
    if (blockIdx.x >=
        n_strip) { // nothing to do; leaving early would make room for a second block of the next kernel
        pdl_wait();
        return;
    }
    feed<T> f = {a.q};
    if (a.expert) {
        pdl_wait();
        f.q += (uint64_t)a.expert[blockIdx.y] * a.q_part;
        x0 += (uint64_t)(blockIdx.y / a.x_div) * a.ldx;
    }
    f.strip = blockIdx.x + gridDim.x * group, f.part = 0;
    f.seek(a, warp, lane);
#pragma unroll
    for (int i = 0; i < U::DEPTH - 1; i++) f.fetch(a, ring_at + i * U::TILE, warp, lane);
    for (uint32_t i = threadIdx.x * 32; a.norm && i < a.k; i += THREADS * 32)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(a.norm + i));
    if (lane < 8) square[threadIdx.x / 32][lane] = 0;
    if (!a.expert) pdl_wait();

    const uint8_t *x[NT]; // this lane's column of n-tile i: of row min(4 i + g % 4, m - 1), hi for g < 4
#pragma unroll
    for (int i = 0; i < NT; i++)
        x[i] = st.x + min((uint32_t)(i * 4 + (g & 3)), m - 1) * U::X + (g >> 2) * U::X_LO +
               t * (U::WIDE ? 16 : 32);
    const bool whole = a.chunk >= a.kpad;
    if (whole) {
        __syncwarp();
        stage<T, NT>(a, x0, 0, a.kpad, m, st, true);
        __syncthreads();
    }
    uint32_t slot = 0, round = 0;
    for (uint32_t first = blockIdx.x; first < n_strip; first += gridDim.x * GROUPS, round++) {
        const uint32_t strip = first + gridDim.x * group;
        if (whole && strip >= n_strip) break; // the group's warps all leave
        float *to_red = red + (round & 1) * (WARPS * 2 * m * 16);
        for (uint32_t part = 0; part < (a.glu ? 2u : 1u); part++) {
            float acc[NT][4] = {}, low[NT][4] = {};
            uint32_t u = warp;
            for (uint32_t k0 = 0; k0 < a.kpad; k0 += a.chunk) {
                const uint32_t k1 = min(k0 + a.chunk, a.kpad), u0 = k0 / U::K, u1 = k1 / U::K;
                if (!whole) {
                    __syncthreads();
                    stage<T, NT>(a, x0, k0, k1, m, st, round == 0 && part == 0);
                    __syncthreads();
                    if (strip >= n_strip) continue;
                }
                for (; u < u1; u += WARPS) {
                    asm volatile("cp.async.wait_group %0;" ::"n"(U::DEPTH - 2) : "memory");
                    __syncwarp();
                    f.fetch(a, ring_at + (slot == 0 ? U::DEPTH - 1 : slot - 1) * U::TILE, warp, lane);
                    multiply<T, NT>(ring + slot * U::TILE, x, st, u - u0, m * U::X, lane, acc, low);
                    slot = slot + 1 == U::DEPTH ? 0 : slot + 1;
                }
            }
            put_sums<T, NT>(acc, low, to_red + (warp * 2 + part) * (m * 16), m, g, t);
        }
        if (strip >= n_strip) continue;
        asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(WARPS * 32) : "memory");
        if (warp == round % WARPS) finish(a, to_red, strip, m, square, lane);
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
}

} // namespace

#define GEMV(name, T, NT)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, NT == 1 ? 2 : 1)                                   \
        name(const __grid_constant__ cu_gemv a)                                                              \
    {                                                                                                        \
        gemv<T, NT>(a);                                                                                      \
    }
#define GEMVS(name, T)                                                                                       \
    GEMV(gemv_##name##_4, T, 1)                                                                              \
    GEMV(gemv_##name##_8, T, 2)
GEMVS(bf16, CU_BF16)
GEMVS(f16, CU_F16)
GEMVS(q8, CU_Q8)
GEMVS(q8f, CU_Q8F)
GEMVS(q4, CU_Q4)
GEMVS(q4m, CU_Q4M)

// f32 weights, any number of rows: a warp has one weight row (and its partner for GLU) and 8 rows of x; grid.y: eights.
extern "C" __global__ void __launch_bounds__(256) gemv_f32(const __grid_constant__ cu_gemv a)
{
    pdl_next();
    const int lane = threadIdx.x & 31;
    const uint32_t j = blockIdx.x * 8 + (threadIdx.x >> 5);
    pdl_wait();
    if (j >= a.n) return;
    uint64_t r0 = a.expert ? blockIdx.y : (uint64_t)blockIdx.y * 8, xr0 = a.expert ? r0 / a.x_div : r0;
    const uint32_t m = a.expert ? 1 : min(8u, a.m - (uint32_t)r0);
    const float *q = (const float *)(a.q + (a.expert ? (uint64_t)a.expert[blockIdx.y] * a.q_part : 0));
    float v[2][8] = {}, ss[8] = {};
    for (uint32_t k = lane; k < a.k; k += 32) {
        float w0 = q[(uint64_t)j * a.kpad + k], w1 = a.glu ? q[(uint64_t)(a.up + j) * a.kpad + k] : 0;
        float nw = a.normed && a.norm ? a.norm[k] + a.w_offset : 1;
#pragma unroll
        for (int r = 0; r < 8; r++) {
            if (r >= m) continue;
            float x = a.x[(xr0 + r) * a.ldx + k];
            ss[r] += x * x;
            x *= nw;
            v[0][r] += w0 * x;
            v[1][r] += w1 * x;
        }
    }
#pragma unroll
    for (int r = 0; r < 8; r++) {
        if (r >= m) continue;
        float y = warp_sum(v[0][r]), up = a.glu ? warp_sum(v[1][r]) : 0, inv = 1;
        if (a.normed) inv = 1 / sqrtf(warp_sum(ss[r]) / (float)a.k + a.eps);
        y *= inv;
        if (a.bias) y += a.bias[j];
        if (a.glu) y = activate(a.act, y) * (up * inv + (a.bias ? a.bias[a.n + j] : 0));
        if (a.res) y += a.res[(r0 + r) * a.ldr + j];
        if (lane == 0) a.y[(r0 + r) * a.ldy + j] = y;
    }
}
