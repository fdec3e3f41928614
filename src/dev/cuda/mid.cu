// dev/cuda/mid.cu - y[m][n] = x[m][k] W[n][k]^T for some 9 to 64 rows of x and quantised weights, which are read once.
//
// Idea:   W is the A operand of mma.m16n8k16, its integers turned into bf16 in registers (exactly: up to 8 bits fit), x the B
//         operand in bf16; what a group of columns comes to is multiplied by its scale in f32. A block works on 128 rows of
//         W by `kc` columns at a time, a unit: a warp has 32 rows and every second or fourth tile. The matrix is a list of
//         units, 128 rows after 128 rows, cut into equal pieces for the blocks, so that every shape fills the GPU. Where
//         several blocks have a part of the same rows each leaves its sums in memory, and the last to come adds them up in
//         the order of the blocks. A ring of stages, filled by cp.async.
// Layout: a stage: [8 strips][kc columns of tiles as in args.h], then x [8 NT][kc + 16] bf16.
//         part: [block][first, last piece of rows][8 NT columns][128 rows] f32; count: one a 128 rows, 0 between launches.
// Always: the order of every sum depends on n, k, kc and the number of blocks alone.
#include "common.cuh"

namespace
{

constexpr uint32_t ROWS = CU_MID_ROWS, STRIPS = ROWS / 16;

__device__ __forceinline__ void mma_first(float (&d)[4], const uint32_t (&a)[4], uint2 b) // d = a b
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%10,%10,%10,%10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "f"(0.f));
}
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint2 b) // d += a b
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}
__device__ __forceinline__ void copy16(uint32_t to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ float2 two(uint32_t v)
{
    return __half22float2(*(const __half2 *)&v);
}
__device__ __forceinline__ uint32_t minus(uint32_t a, uint32_t b) // two bf16
{
    __nv_bfloat162 d = __hsub2(*(const __nv_bfloat162 *)&a, *(const __nv_bfloat162 *)&b);
    return *(const uint32_t *)&d;
}
__device__ __forceinline__ uint32_t word(const uint4 &v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// The four bytes of v as integers in bf16: columns 0, 1 and 2, 3. A bf16 of 0x4300 is 128, its last bit worth 1.
__device__ __forceinline__ void from_int8(uint32_t v, uint32_t &p01, uint32_t &p23)
{
    const uint32_t a = __byte_perm(v, 0, 0x4140), b = __byte_perm(v, 0, 0x4342);
    p01 = minus((a & 0x007f007fu) | 0x43004300u, (a & 0x00800080u) | 0x43004300u); // low 7 bits, less 128 by the sign
    p23 = minus((b & 0x007f007fu) | 0x43004300u, (b & 0x00800080u) | 0x43004300u);
}
// The low nibbles of the four bytes: signed (Q4) or not (Q4M).
template <bool SIGNED> __device__ __forceinline__ void from_int4(uint32_t v, uint32_t &p01, uint32_t &p23)
{
    constexpr uint32_t FLIP = SIGNED ? 0x43084308u : 0x43004300u; // two's complement becomes 8 more
    const uint32_t a = __byte_perm(v, 0, 0x4140), b = __byte_perm(v, 0, 0x4342);
    p01 = minus((a & 0x000f000fu) ^ FLIP, FLIP);
    p23 = minus((b & 0x000f000fu) ^ FLIP, FLIP);
}

template <int T> struct kind {
    static constexpr bool FOUR = T == CU_Q4 || T == CU_Q4M;
    static constexpr uint32_t K = cu_tile_k(T), TILE = cu_tile_bytes(T);
};

// ---- a unit's way in ----------------------------------------------------------------------------------

struct shape {
    uint32_t n_chunk, n_strip, a_tile, pitch, x_at; // chunks of k, strips of W; tiles of a strip in a unit; bytes of a row of x
};

template <int T>
__device__ __forceinline__ void fetch_weights(const cu_mid &a, const shape &s, uint32_t unit, uint32_t to)
{
    typedef kind<T> U;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31; // every eighth warp has a strip
    const uint32_t strip = unit / s.n_chunk * STRIPS + warp % STRIPS, tile = unit % s.n_chunk * s.a_tile;
    const uint32_t all = a.kpad / U::K, step = blockDim.x / STRIPS * 16;
    if (strip >= s.n_strip) return;
    const uint8_t *from = a.q + ((uint64_t)strip * all + tile) * U::TILE;
    const uint32_t n = min(s.a_tile, all - tile) * U::TILE;
    to += warp % STRIPS * s.a_tile * U::TILE;
    for (uint32_t i = (warp / STRIPS * 32 + lane) * 16; i < n; i += step) copy16(to + i, from + i);
}
__device__ __forceinline__ void fetch_x(const cu_mid &a, const shape &s, uint32_t unit, uint32_t to)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31, k0 = unit % s.n_chunk * a.kc;
    const uint32_t n = min(a.kc, a.kpad - k0) * 2;
    for (uint32_t r = warp; r < a.m; r += blockDim.x / 32) {
        const uint8_t *from = (const uint8_t *)(a.x + (uint64_t)r * a.kpad + k0);
        for (uint32_t i = lane * 16; i < n; i += 512) copy16(to + s.x_at + r * s.pitch + i, from + i);
    }
}

// ---- the product of two strips' tiles --------------------------------------------------------------------

template <int NT> struct sums {
    float v[2][NT][4]; // [strip][8 rows of x][row g, g + 8 of the strip by columns 2t, 2t + 1]
};

__device__ __forceinline__ void add_scaled(float (&acc)[4], const float (&v)[4], float s0, float s1)
{
    acc[0] += s0 * v[0], acc[1] += s0 * v[1];
    acc[2] += s1 * v[2], acc[3] += s1 * v[3];
}

// tile: the first strip's, the second's `next` bytes behind; x: this lane's first piece of row g; xsum: sums of x over groups.
template <int T, int NT>
__device__ __forceinline__ void multiply_four(const uint8_t *tile, uint32_t next, const uint8_t *x, uint32_t pitch,
                                              const float *xsum, int lane, sums<NT> &acc)
{
    const int g = lane >> 2, t = lane & 3;
    uint4 w[2][2], sc[2][2];
#pragma unroll
    for (int s = 0; s < 2; s++) {
        const uint4 *p = (const uint4 *)(tile + s * next), *q = (const uint4 *)(tile + s * next + 1024);
        w[s][0] = p[lane], w[s][1] = p[lane + 32];
        sc[s][0] = T == CU_Q4M ? q[g * 2] : q[g];
        if (T == CU_Q4M) sc[s][1] = q[g * 2 + 1];
    }
#pragma unroll
    for (int gr = 0; gr < 4; gr++) {
        uint32_t f[2][2][4];
        float2 s0[2], s1[2]; // Q4M: scale and minimum; Q4: x alone counts
#pragma unroll
        for (int s = 0; s < 2; s++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                from_int4<T == CU_Q4>(word(w[s][0], gr) >> (4 * half), f[s][half][0], f[s][half][2]);
                from_int4<T == CU_Q4>(word(w[s][1], gr) >> (4 * half), f[s][half][1], f[s][half][3]);
            }
            if constexpr (T == CU_Q4M) {
                s0[s] = two(word(sc[s][0], gr)), s1[s] = two(word(sc[s][1], gr));
            } else {
                s0[s] = two(word(sc[s][0], gr >> 1)), s1[s] = two(word(sc[s][0], 2 + (gr >> 1)));
                if (gr & 1) s0[s].x = s0[s].y, s1[s].x = s1[s].y;
            }
        }
#pragma unroll
        for (int i = 0; i < NT; i++) {
            const uint8_t *b = x + i * 8 * pitch + gr * 64;
            const uint2 b0 = *(const uint2 *)b, b1 = *(const uint2 *)(b + 32);
#pragma unroll
            for (int s = 0; s < 2; s++) {
                float v[4];
                mma_first(v, f[s][0], b0);
                mma(v, f[s][1], b1);
                add_scaled(acc.v[s][i], v, s0[s].x, s1[s].x);
                if constexpr (T == CU_Q4M) {
                    const float2 sx = *(const float2 *)(xsum + gr * (8 * NT) + i * 8 + t * 2);
                    const float low[4] = {sx.x, sx.y, sx.x, sx.y};
                    add_scaled(acc.v[s][i], low, -s0[s].y, -s1[s].y);
                }
            }
        }
    }
}

template <int T, int NT>
__device__ __forceinline__ void multiply_eight(const uint8_t *tile, uint32_t next, const uint8_t *x, uint32_t pitch,
                                               int lane, sums<NT> &acc)
{
    const int g = lane >> 2;
    uint4 w[2][2];
    uint32_t sc[2][2][2]; // [strip][row g, g + 8][pairs of scales]
#pragma unroll
    for (int s = 0; s < 2; s++) {
        const uint8_t *p = tile + s * next;
        w[s][0] = ((const uint4 *)p)[lane], w[s][1] = ((const uint4 *)p)[lane + 32];
        if constexpr (T == CU_Q8F) {
            const uint4 v = ((const uint4 *)(p + 1024))[g];
            sc[s][0][0] = v.x, sc[s][0][1] = v.y, sc[s][1][0] = v.z, sc[s][1][1] = v.w;
        } else {
            const uint2 v = ((const uint2 *)(p + 1024))[g];
            sc[s][0][0] = v.x, sc[s][1][0] = v.y;
        }
    }
#pragma unroll
    for (int gr = 0; gr < 2; gr++) {
        uint32_t f[2][2][4];
#pragma unroll
        for (int s = 0; s < 2; s++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                from_int8(word(w[s][0], gr * 2 + half), f[s][half][0], f[s][half][2]);
                from_int8(word(w[s][1], gr * 2 + half), f[s][half][1], f[s][half][3]);
            }
#pragma unroll
        for (int i = 0; i < NT; i++) {
            const uint8_t *b = x + i * 8 * pitch + gr * 64;
            const uint2 b0 = *(const uint2 *)b, b1 = *(const uint2 *)(b + 32);
#pragma unroll
            for (int s = 0; s < 2; s++) {
                const float2 s0 = two(sc[s][0][T == CU_Q8F ? gr : 0]), s1 = two(sc[s][1][T == CU_Q8F ? gr : 0]);
                float v[4];
                mma_first(v, f[s][0], b0);
                if constexpr (T == CU_Q8F) { // a scale for 16 columns
                    add_scaled(acc.v[s][i], v, s0.x, s1.x);
                    mma_first(v, f[s][1], b1);
                    add_scaled(acc.v[s][i], v, s0.y, s1.y);
                } else {
                    mma(v, f[s][1], b1);
                    add_scaled(acc.v[s][i], v, gr ? s0.y : s0.x, gr ? s1.y : s1.x);
                }
            }
        }
    }
}

// Sums of x over each 32 columns of the stage: [group][8 NT].
template <int NT>
__device__ __forceinline__ void sum_x(const cu_mid &a, const uint8_t *x, uint32_t pitch, uint32_t n_col, float *to)
{
    for (uint32_t i = threadIdx.x; i < n_col / 32 * a.m; i += blockDim.x) {
        const uint32_t r = i % a.m, group = i / a.m;
        const uint4 *p = (const uint4 *)(x + r * pitch + group * 64);
        float sum = 0;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const uint4 v = p[k];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const uint32_t u = word(v, e);
                sum += __uint_as_float(u << 16) + __uint_as_float(u & 0xffff0000u);
            }
        }
        to[group * (8 * NT) + r] = sum;
    }
}

// ---- results ------------------------------------------------------------------------------------------------

__device__ __forceinline__ void put(const cu_mid &a, uint32_t r, uint32_t j, float v)
{
    if (r >= a.m || j >= a.n) return;
    if (a.res) v += a.res[(uint64_t)r * a.ldr + j];
    if (a.h)
        a.h[(uint64_t)r * a.ldy + j] = to_half_bits(v, 1);
    else
        a.y[(uint64_t)r * a.ldy + j] = v;
}

__device__ __forceinline__ uint32_t begin_of(uint32_t units, uint32_t block) // units * blocks: below 2^32
{
    return units * block / gridDim.x;
}

// What blocks b0 to b1 left of rows `blk` of W, in their order; by the whole block that came last. Only b0 may have begun in
// front of these rows, so that they are its last piece.
template <int NT>
__device__ __forceinline__ void add_up(const cu_mid &a, uint32_t blk, bool b0_before, uint32_t b0, uint32_t n_block)
{
    constexpr uint32_t PIECE = 8 * NT * ROWS;
    for (uint32_t i = threadIdx.x * 4; i < a.m * ROWS; i += blockDim.x * 4) {
        const float *p = a.part + (uint64_t)b0 * 2 * PIECE + i;
        float4 v = __ldcg((const float4 *)(p + (b0_before ? PIECE : 0)));
#pragma unroll 8
        for (uint32_t b = 1; b < n_block; b++) {
            const float4 o = __ldcg((const float4 *)(p + b * 2 * PIECE));
            v.x += o.x, v.y += o.y, v.z += o.z, v.w += o.w;
        }
        const uint32_t r = i / ROWS, j = blk * ROWS + i % ROWS;
        put(a, r, j, v.x), put(a, r, j + 1, v.y), put(a, r, j + 2, v.z), put(a, r, j + 3, v.w);
    }
}

// The block's sums of rows `blk`, units from..to: the warps that share rows add theirs up in turn, the first one writes.
template <int NT, int WK>
__device__ __forceinline__ void finish(const cu_mid &a, const shape &s, uint32_t units, uint32_t begin, uint32_t from,
                                       uint32_t to, float *red, sums<NT> &acc)
{
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, wn = threadIdx.x / 32 & 3, wk = threadIdx.x / 128;
    const uint32_t blk = from / s.n_chunk, first_unit = blk * s.n_chunk;
    const bool whole = to - from == s.n_chunk;
    float *hand = red + (wn * 32 + lane);
#pragma unroll
    for (int k = WK - 1; k > 0; k--) {
        if (wk == k) {
#pragma unroll
            for (int i = 0; i < 2 * NT * 4; i++) {
                const float v = acc.v[i / (NT * 4)][i / 4 % NT][i % 4];
                hand[i * 128] = k == WK - 1 ? v : v + hand[i * 128];
            }
        }
        __syncthreads();
    }
    if (wk == 0) {
        float *part = a.part + ((uint64_t)blockIdx.x * 2 + (begin >= first_unit ? 0 : 1)) * (8 * NT * ROWS);
#pragma unroll
        for (int st = 0; st < 2; st++)
#pragma unroll
            for (int i = 0; i < NT; i++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    const float v = acc.v[st][i][c] + hand[((st * NT + i) * 4 + c) * 128];
                    const uint32_t r = i * 8 + t * 2 + (c & 1), j = wn * 32 + st * 16 + g + (c >> 1) * 8;
                    if (whole)
                        put(a, r, blk * ROWS + j, v);
                    else if (r < a.m)
                        __stcg(part + r * ROWS + j, v);
                }
        if (!whole) __threadfence();
    }
    __syncthreads();
    if (whole) return;
    __shared__ uint32_t first_block, n_block, is_last;
    if (threadIdx.x == 0) {
        uint32_t b0 = first_unit * gridDim.x / units, n = 1;
        while (begin_of(units, b0 + 1) <= first_unit) b0++;
        while (begin_of(units, b0 + n) < first_unit + s.n_chunk) n++;
        is_last = atomicAdd(a.count + blk, 1u) == n - 1;
        first_block = b0, n_block = n;
        if (is_last) a.count[blk] = 0;
    }
    __syncthreads();
    if (is_last) {
        __threadfence();
        add_up<NT>(a, blk, begin_of(units, first_block) < first_unit, first_block, n_block);
    }
}

// ---- the kernel -----------------------------------------------------------------------------------------------

template <int T, int NT, int WK> __device__ __forceinline__ void mid(const cu_mid &a)
{
    typedef kind<T> U;
    extern __shared__ __align__(128) uint8_t smem[];
    pdl_next();
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const uint32_t wn = threadIdx.x / 32 & 3, wk = threadIdx.x / 128;
    shape s;
    s.n_chunk = (a.kpad + a.kc - 1) / a.kc;
    s.n_strip = (a.n + 15) / 16;
    s.a_tile = a.kc / U::K;
    s.pitch = cu_mid_pitch(a.kc);
    s.x_at = STRIPS * s.a_tile * U::TILE;
    const uint32_t stage_bytes = cu_mid_stage(T, NT * 8, a.kc), n_stage = a.stages;
    float *red = (float *)(smem + n_stage * stage_bytes), *xsum = red + cu_mid_red(NT * 8) / 4;
    const uint32_t smem_at = (uint32_t)__cvta_generic_to_shared(smem);
    const uint32_t units = (a.n + ROWS - 1) / ROWS * s.n_chunk;
    const uint32_t u0 = begin_of(units, blockIdx.x), u1 = begin_of(units, blockIdx.x + 1);
    for (uint32_t i = 0; i + 1 < n_stage && u0 + i < u1; i++)
        fetch_weights<T>(a, s, u0 + i, smem_at + i * stage_bytes);
    pdl_wait(); /* x, and what this kernel writes, is the kernel's in front until here */
    for (uint32_t i = 0; i + 1 < n_stage; i++) {
        if (u0 + i < u1) fetch_x(a, s, u0 + i, smem_at + i * stage_bytes);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    sums<NT> acc = {};
    uint32_t stage = 0, from = u0;
    for (uint32_t u = u0; u < u1; u++) {
        if (n_stage == 2)
            asm volatile("cp.async.wait_group 0;" ::: "memory");
        else
            asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        const uint32_t ahead = u + n_stage - 1, to = stage == 0 ? n_stage - 1 : stage - 1;
        if (ahead < u1) {
            fetch_weights<T>(a, s, ahead, smem_at + to * stage_bytes);
            fetch_x(a, s, ahead, smem_at + to * stage_bytes);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        const uint8_t *w = smem + stage * stage_bytes, *x = w + s.x_at;
        const uint32_t tile0 = u % s.n_chunk * s.a_tile, n_tile = min(s.a_tile, a.kpad / U::K - tile0);
        if constexpr (T == CU_Q4M) {
            sum_x<NT>(a, x, s.pitch, n_tile * U::K, xsum);
            __syncthreads();
        }
        for (uint32_t j = wk; j < n_tile; j += WK) {
            const uint8_t *tile = w + (wn * 2 * s.a_tile + j) * U::TILE;
            const uint8_t *xj = x + g * s.pitch + j * (U::K * 2) + t * 8;
            if constexpr (U::FOUR)
                multiply_four<T, NT>(tile, s.a_tile * U::TILE, xj, s.pitch, xsum + j * 4 * (8 * NT), lane, acc);
            else
                multiply_eight<T, NT>(tile, s.a_tile * U::TILE, xj, s.pitch, lane, acc);
        }
        if (u + 1 == u1 || (u + 1) % s.n_chunk == 0) {
            finish<NT, WK>(a, s, units, u0, from, u + 1, red, acc);
            from = u + 1;
            acc = {};
        }
        stage = stage + 1 == n_stage ? 0 : stage + 1;
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
}

} // namespace

#define MID(name, T, NT, WK)                                                                                 \
    extern "C" __global__ void __launch_bounds__(WK * 128, 1) name(const __grid_constant__ cu_mid a)         \
    {                                                                                                        \
        mid<T, NT, WK>(a);                                                                                   \
    }
#define MIDS(name, T)                                                                                        \
    MID(mid_##name##_16, T, 2, cu_mid_threads(16) / 128)                                                     \
    MID(mid_##name##_32, T, 4, cu_mid_threads(32) / 128)                                                     \
    MID(mid_##name##_64, T, 8, cu_mid_threads(64) / 128)
MIDS(q8, CU_Q8)
MIDS(q8f, CU_Q8F)
MIDS(q4, CU_Q4)
MIDS(q4m, CU_Q4M)
