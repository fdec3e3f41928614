// dev/cuda/gemv.cu - y = W x for few rows of x, at the speed of memory.
//
// Idea:   a warp multiplies two strips of 16 weight rows with 8 columns by mma.m16n8k16: the weights are the A operand,
//         straight from 16-byte loads; the order of k inside a tile is permuted alike in A and B, so nothing is shuffled.
//         x is split into two bf16 (x = hi + lo), which fill 8 columns with 4 rows: products are exact to 2^-17 of x.
//         Quantised weights enter as integers, exact in bf16; a group's sum is scaled in f32.
//         Eight warps of a block share k; x waits in shared memory, split already. RMS norm is folded in: x is multiplied by
//         the norm's weight on the way there, by the row's 1/rms at the end. Epilogues: bias, residual, act(gate) * up.
// Always: the order of every sum depends on n and k alone.
#include "common.cuh"

namespace
{

constexpr int WARPS = 8;

__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ uint32_t pack2(float x, float y)
{
    __nv_bfloat162 p = __floats2bfloat162_rn(x, y);
    return *(uint32_t *)&p;
}
__device__ __forceinline__ uint4 load16(const void *p)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

// Columns of x that wait in shared memory, in the order of B fragments: of a k16 tile and a column, 8 bytes a lane t.
struct columns {
    const uint2 *x;
    uint32_t n;     // columns there are
    uint32_t tile0; // the first k16 tile
    __device__ __forceinline__ uint2 get(uint32_t tile, uint32_t col, int t) const
    {
        return col < n ? x[((tile - tile0) * n + col) * 4 + t] : make_uint2(0, 0);
    }
};
// Which column holds what lane group g of n-tile i multiplies: of split rows hi and lo lie side by side.
template <bool HL> __device__ __forceinline__ uint32_t column_of(int i, int g)
{
    return HL ? (i * 4 + (g & 3)) * 2 + (g >> 2) : i * 8 + g;
}

// ---- weights of one unit of k, as loaded ----------------------------------------------------------

template <int T> struct unit;
template <> struct unit<CU_BF16> {
    static constexpr int K = 64, GROUP = 0;
    uint4 w[2][4];
    __device__ void load(const cu_gemv &a, const uint8_t *q, const uint8_t *, const uint32_t (&row)[4],
                         uint32_t u, int t)
    {
#pragma unroll
        for (int c = 0; c < 2; c++)
#pragma unroll
            for (int r = 0; r < 4; r++)
                w[c][r] = load16(q + ((uint64_t)row[r] * a.kpad + u * 64 + c * 32 + t * 8) * 2);
    }
};
template <> struct unit<CU_F16> : unit<CU_BF16> {
};
template <> struct unit<CU_Q8> {
    static constexpr int K = 128, GROUP = 32;
    uint4 w[2][4];
    uint2 s[4];
    __device__ void load(const cu_gemv &a, const uint8_t *q, const uint8_t *sc, const uint32_t (&row)[4],
                         uint32_t u, int t)
    {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            w[0][r] = load16(q + (uint64_t)row[r] * a.kpad + u * 128 + t * 16);
            w[1][r] = load16(q + (uint64_t)row[r] * a.kpad + u * 128 + 64 + t * 16);
            s[r] = __ldg((const uint2 *)(sc + ((uint64_t)row[r] * (a.kpad / 32) + u * 4) * 2));
        }
    }
};
template <> struct unit<CU_Q8M> {
    static constexpr int K = 128, GROUP = 16;
    uint4 w[2][4], s[2][4];
    __device__ void load(const cu_gemv &a, const uint8_t *q, const uint8_t *sc, const uint32_t (&row)[4],
                         uint32_t u, int t)
    {
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                w[c][r] = load16(q + (uint64_t)row[r] * a.kpad + u * 128 + c * 64 + t * 16);
                s[c][r] = __ldg((const uint4 *)(sc + ((uint64_t)row[r] * (a.kpad / 16) + u * 8 + c * 4) * 4));
            }
    }
};
template <> struct unit<CU_Q4> {
    static constexpr int K = 128, GROUP = 32;
    uint4 w[4];
    uint2 s[4];
    __device__ void load(const cu_gemv &a, const uint8_t *q, const uint8_t *sc, const uint32_t (&row)[4],
                         uint32_t u, int t)
    {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            w[r] = load16(q + (uint64_t)row[r] * (a.kpad / 2) + u * 64 + t * 16);
            s[r] = __ldg((const uint2 *)(sc + ((uint64_t)row[r] * (a.kpad / 32) + u * 4) * 2));
        }
    }
};
template <> struct unit<CU_Q4M> {
    static constexpr int K = 128, GROUP = 32;
    uint4 w[4], s[4];
    __device__ void load(const cu_gemv &a, const uint8_t *q, const uint8_t *sc, const uint32_t (&row)[4],
                         uint32_t u, int t)
    {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            w[r] = load16(q + (uint64_t)row[r] * (a.kpad / 2) + u * 64 + t * 16);
            s[r] = __ldg((const uint4 *)(sc + ((uint64_t)row[r] * (a.kpad / 32) + u * 4) * 4));
        }
    }
};

__device__ __forceinline__ uint32_t word(const uint4 &v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Two registers of A (one row's four columns of subtile j) of integers.
template <int T>
__device__ __forceinline__ void ints(const unit<T> &u, int r, int j, uint32_t &a0, uint32_t &a1)
{
    if constexpr (T == CU_Q8 || T == CU_Q8M) {
        uint32_t v = word(u.w[j >> 2][r], j & 3);
        float f0 = __uint_as_float(__byte_perm(v, 0x4b000000u, 0x7540)) - 8388736.f;
        float f1 = __uint_as_float(__byte_perm(v, 0x4b000000u, 0x7541)) - 8388736.f;
        float f2 = __uint_as_float(__byte_perm(v, 0x4b000000u, 0x7542)) - 8388736.f;
        float f3 = __uint_as_float(__byte_perm(v, 0x4b000000u, 0x7543)) - 8388736.f;
        a0 = __byte_perm(__float_as_uint(f0), __float_as_uint(f1), 0x7632);
        a1 = __byte_perm(__float_as_uint(f2), __float_as_uint(f3), 0x7632);
    } else {
        uint32_t v = word(u.w[r], j >> 1) >> ((j & 1) * 8);
        a0 = (v & 0x000f000fu) | 0x43004300u; // bf16 of 128 + q: the 128 goes with the minimum
        a1 = (v >> 4 & 0x000f000fu) | 0x43004300u;
    }
}
// Scale (and minimum) of row r for group i of the unit.
template <int T> __device__ __forceinline__ float2 scale_of(const unit<T> &u, int r, int i)
{
    if constexpr (T == CU_Q8 || T == CU_Q4) {
        uint32_t v = i < 2 ? u.s[r].x : u.s[r].y;
        __half2 h = *(__half2 *)&v;
        float d = i & 1 ? __high2float(h) : __low2float(h);
        return make_float2(d, T == CU_Q4 ? 136 * d : 0);
    } else if constexpr (T == CU_Q4M) {
        uint32_t v = word(u.s[r], i);
        float2 c = __half22float2(*(__half2 *)&v);
        return make_float2(c.x, 128 * c.x + c.y);
    } else {
        uint32_t v = word(u.s[i >> 2][r], i & 3);
        return __half22float2(*(__half2 *)&v);
    }
}

template <int NT> struct state {
    float acc[2][NT][4];
};

// ---- the product of a unit ----------------------------------------------------------------------------

template <int T, int NT, bool HL>
__device__ __forceinline__ void multiply(const unit<T> &u, const columns &x, uint32_t tile, int g, int t,
                                         state<NT> &st)
{
    constexpr int NJ = unit<T>::K / 16;
    if constexpr (T == CU_BF16 || T == CU_F16) {
#pragma unroll
        for (int j = 0; j < NJ; j++) {
            uint32_t b[NT][2];
#pragma unroll
            for (int i = 0; i < NT; i++) {
                uint2 v = x.get(tile + j, column_of<HL>(i, g), t);
                b[i][0] = v.x, b[i][1] = v.y;
            }
#pragma unroll
            for (int s = 0; s < 2; s++) {
                const uint4 &p = u.w[j >> 1][2 * s], &q = u.w[j >> 1][2 * s + 1];
                uint32_t f[4] = {j & 1 ? p.z : p.x, j & 1 ? q.z : q.x, j & 1 ? p.w : p.y, j & 1 ? q.w : q.y};
                if constexpr (T == CU_BF16) {
#pragma unroll
                    for (int i = 0; i < NT; i++) mma(st.acc[s][i], f, b[i][0], b[i][1]);
                } else {
                    uint32_t hi[4], low[4]; // an f16 is the sum of two bf16
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        float2 v = __half22float2(*(__half2 *)&f[c]);
                        hi[c] = pack2(v.x, v.y);
                        float2 h = __bfloat1622float2(*(__nv_bfloat162 *)&hi[c]);
                        low[c] = pack2(v.x - h.x, v.y - h.y);
                    }
#pragma unroll
                    for (int i = 0; i < NT; i++) {
                        mma(st.acc[s][i], hi, b[i][0], b[i][1]);
                        mma(st.acc[s][i], low, b[i][0], b[i][1]);
                    }
                }
            }
        }
    } else {
        constexpr int PER = unit<T>::GROUP / 16; // subtiles a group; xs: sums of x, for minima
        constexpr bool MIN = T != CU_Q8;
        const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
#pragma unroll
        for (int gr = 0; gr < NJ / PER; gr++) {
            float tmp[2][NT][4] = {}, xs[NT][4] = {};
#pragma unroll
            for (int jj = 0; jj < PER; jj++) {
                int j = gr * PER + jj;
                uint32_t b[NT][2];
#pragma unroll
                for (int i = 0; i < NT; i++) {
                    uint2 v = x.get(tile + j, column_of<HL>(i, g), t);
                    b[i][0] = v.x, b[i][1] = v.y;
                    if (MIN) mma(xs[i], ones, b[i][0], b[i][1]);
                }
#pragma unroll
                for (int s = 0; s < 2; s++) {
                    uint32_t f[4];
                    ints<T>(u, 2 * s, j, f[0], f[2]);
                    ints<T>(u, 2 * s + 1, j, f[1], f[3]);
#pragma unroll
                    for (int i = 0; i < NT; i++) mma(tmp[s][i], f, b[i][0], b[i][1]);
                }
            }
#pragma unroll
            for (int s = 0; s < 2; s++) {
                float2 c0 = scale_of<T>(u, 2 * s, gr), c1 = scale_of<T>(u, 2 * s + 1, gr);
#pragma unroll
                for (int i = 0; i < NT; i++) {
                    st.acc[s][i][0] += c0.x * tmp[s][i][0];
                    st.acc[s][i][1] += c0.x * tmp[s][i][1];
                    st.acc[s][i][2] += c1.x * tmp[s][i][2];
                    st.acc[s][i][3] += c1.x * tmp[s][i][3];
                    if (MIN) {
                        st.acc[s][i][0] -= c0.y * xs[i][0];
                        st.acc[s][i][1] -= c0.y * xs[i][1];
                        st.acc[s][i][2] -= c1.y * xs[i][2];
                        st.acc[s][i][3] -= c1.y * xs[i][3];
                    }
                }
            }
        }
    }
}

// Columns k0..k1-1 of all rows of x to shared memory: times the norm's weight, as bf16 (and what bf16 leaves of it).
// sums[warp][row] grows by the squares.
template <int T, bool HL>
__device__ __forceinline__ void stage(const cu_gemv &a, const float *x, uint32_t k0, uint32_t k1,
                                      uint32_t n_col, uint2 *to, float (*sums)[32])
{
    constexpr bool WIDE = T == CU_BF16 || T == CU_F16;
    const uint32_t tid = threadIdx.x, m = HL ? n_col / 2 : n_col;
    for (uint32_t r = 0; r < m; r++) {
        for (uint32_t base = k0; base < k1; base += 4096) {
            float4 v[4], w[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t k = base + i * 1024 + tid * 4;
                v[i] = k < k1 && k < a.k ? *(const float4 *)(x + (uint64_t)r * a.ldx + k)
                                         : make_float4(0, 0, 0, 0);
            }
            if (a.normed) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    uint32_t k = base + i * 1024 + tid * 4;
                    w[i] =
                        a.norm && k < k1 && k < a.k ? *(const float4 *)(a.norm + k) : make_float4(1, 1, 1, 1);
                }
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float ss =
                        warp_sum(v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w);
                    if (tid % 32 == 0) sums[tid / 32][r] += ss;
                    float off = a.norm ? a.w_offset : 0;
                    v[i].x *= w[i].x + off, v[i].y *= w[i].y + off;
                    v[i].z *= w[i].z + off, v[i].w *= w[i].w + off;
                }
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t k = base + i * 1024 + tid * 4;
                if (k >= k1) continue;
                uint32_t tile = WIDE ? (k - k0) / 32 * 2 + (k / 4 & 1) : (k - k0) / 16,
                         t = WIDE ? k / 8 & 3 : k / 4 & 3;
                uint2 hi = {pack2(v[i].x, v[i].y), pack2(v[i].z, v[i].w)};
                to[(tile * n_col + (HL ? 2 * r : r)) * 4 + t] = hi;
                if (HL) {
                    float2 p = __bfloat1622float2(*(__nv_bfloat162 *)&hi.x),
                           q = __bfloat1622float2(*(__nv_bfloat162 *)&hi.y);
                    to[(tile * n_col + 2 * r + 1) * 4 + t] =
                        make_uint2(pack2(v[i].x - p.x, v[i].y - p.y), pack2(v[i].z - q.x, v[i].w - q.y));
                }
            }
        }
    }
}

template <int T, int NT, bool HL> __device__ __forceinline__ void gemv_body(const cu_gemv &a)
{
    constexpr int ROWS = HL ? 4 : 8; // rows of x an n-tile holds
    __shared__ float red[WARPS][2 * NT * 4][32];
    __shared__ float sums[WARPS][32];
    extern __shared__ __align__(16) uint2 xs[];
    pdl_next();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const uint8_t *q = a.q, *sc = a.s;
    const uint32_t row0 = blockIdx.x * (a.glu ? 16 : 32), n_row = a.glu ? 2 * a.n : a.n;
    uint32_t row[4];
#pragma unroll
    for (int r = 0; r < 4; r++) {
        uint32_t i = a.glu ? row0 + g + 8 * (r & 1) : row0 + 16 * (r >> 1) + g + 8 * (r & 1);
        row[r] = min(i, a.n - 1) + (a.glu && r >= 2 ? a.n : 0);
        row[r] = min(row[r], n_row - 1);
    }
    const float *x0 = a.x;
    if (a.expert) {
        pdl_wait();
        uint64_t e = (uint64_t)a.expert[blockIdx.y];
        q += e * a.q_part;
        sc += e * a.s_part;
        x0 += (uint64_t)(blockIdx.y / a.x_div) * a.ldx;
    }
    const uint32_t n_unit = a.kpad / unit<T>::K;
    constexpr bool DEEP = T == CU_Q4 || T == CU_Q4M; // small units: two more on their way
    unit<T> cur, next, far;
    if ((uint32_t)warp < n_unit) cur.load(a, q, sc, row, warp, t);
    if (DEEP && (uint32_t)warp + WARPS < n_unit) next.load(a, q, sc, row, warp + WARPS, t);
    sums[warp][lane] = 0;
    if (!a.expert) pdl_wait();
    const uint32_t n_x = a.expert ? 1 : a.m, n_col = HL ? 2 * n_x : n_x;
    state<NT> st = {};
    uint32_t u = warp;
    for (uint32_t k0 = 0; k0 < a.kpad; k0 += a.chunk) {
        const uint32_t k1 = min(k0 + a.chunk, a.kpad);
        __syncthreads();
        stage<T, HL>(a, x0, k0, k1, n_col, xs, sums);
        __syncthreads();
        const columns x = {xs, n_col, k0 / 16};
        for (; u * unit<T>::K < k1; u += WARPS) {
            if constexpr (DEEP) {
                if (u + 2 * WARPS < n_unit) far.load(a, q, sc, row, u + 2 * WARPS, t);
            } else {
                if (u + WARPS < n_unit) next.load(a, q, sc, row, u + WARPS, t);
            }
            multiply<T, NT, HL>(cur, x, u * (unit<T>::K / 16), g, t, st);
            cur = next;
            if constexpr (DEEP) next = far;
        }
    }
#pragma unroll
    for (int s = 0; s < 2; s++)
#pragma unroll
        for (int i = 0; i < NT; i++)
#pragma unroll
            for (int c = 0; c < 4; c++) red[warp][(s * NT + i) * 4 + c][lane] = st.acc[s][i][c];
    __syncthreads();
    const uint32_t m = a.expert ? 1 : a.m, n_out = 16 * m * (a.glu ? 1 : 2);
    for (uint32_t o = threadIdx.x; o < n_out; o += WARPS * 32) {
        uint32_t r16 = o & 15, s0 = a.glu ? 0 : o >> 4 & 1, mc = a.glu ? o >> 4 : o >> 5;
        uint32_t tile = mc / ROWS, col = mc % ROWS, at = (r16 & 7) * 4 + col / 2,
                 c = (r16 >> 3) * 2 + (col & 1);
        float v[2] = {0, 0}, inv = 1;
        for (uint32_t s = 0; s < (a.glu ? 2u : 1u); s++) {
            uint32_t idx = ((s0 + s) * NT + tile) * 4 + c;
            for (int w = 0; w < WARPS; w++) {
                v[s] += red[w][idx][at];
                if (HL) v[s] += red[w][idx][at + 2];
            }
        }
        if (a.normed) {
            float sum = 0;
            for (int w = 0; w < WARPS; w++) sum += sums[w][mc];
            inv = 1 / sqrtf(sum / (float)a.k + a.eps);
        }
        uint32_t j = row0 + s0 * 16 + r16;
        if (j >= a.n) continue;
        float y = v[0] * inv;
        if (a.bias) y += a.bias[j];
        if (a.glu) {
            float up = v[1] * inv;
            if (a.bias) up += a.bias[a.n + j];
            y = activate(a.act, y) * up;
        }
        uint64_t r = a.expert ? blockIdx.y : mc;
        if (a.res) y += a.res[r * a.ldr + j];
        a.y[r * a.ldy + j] = y;
    }
}

} // namespace

#define GEMV(name, T, NT, HL)                                                                                \
    extern "C" __global__ void __launch_bounds__(256, NT == 1 ? 2 : 1)                                       \
        name(const __grid_constant__ cu_gemv a)                                                              \
    {                                                                                                        \
        gemv_body<T, NT, HL>(a);                                                                             \
    }
#define GEMVS(name, T)                                                                                       \
    GEMV(gemv_##name##_4, T, 1, true)                                                                        \
    GEMV(gemv_##name##_8, T, 2, true)                                                                        \
    GEMV(gemv_##name##_16, T, 4, true)                                                                       \
    GEMV(gemv_##name##_32, T, 4, false)
GEMVS(bf16, CU_BF16)
GEMVS(f16, CU_F16)
GEMVS(q8, CU_Q8)
GEMVS(q8m, CU_Q8M)
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
        float w0 = q[(uint64_t)j * a.kpad + k], w1 = a.glu ? q[(uint64_t)(a.n + j) * a.kpad + k] : 0;
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
