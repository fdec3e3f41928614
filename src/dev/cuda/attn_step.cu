// dev/cuda/attn_step.cu - attention of steps with one token a sequence: RoPE, the write to the cache and the product in one.
//
// Idea:   a block has one split of the keys (128, far back 512), one KV head and up to 8 of its query heads. The keys that
//         earlier steps wrote go to shared memory while the kernel in front still runs; then q and the new key are rotated.
//         Scores are K q^T on tensor cores: 16 keys a warp, the heads are the 8 columns, q as two f16 (q = hi + lo);
//         the result is V^T p, 16 of the head's columns a warp, p as two f16. The last block of a row joins the splits.
//         A q8_0 cache comes to shared memory as it is and becomes f16 there, in its place.
// Layout: cache of a layer: [block][kv head] tiles (args.h), f16 or q8_0, keys and values apart; tiles in shared memory [128][HD] with
//         swapped pieces. part: [row][head][split][HD + 2].
// Always: where splits begin depends on the position alone.
#include "attn.cuh"

namespace
{

constexpr int TILE = 128, HEADS = 8, THREADS = 256;

template <int HD> struct shared {
    __half k[TILE * HD], v[TILE * HD];
    __half q[2][HEADS][HD + 8]; // hi, lo
    __half p[2][HEADS][TILE + 8];
    float most[HEADS][8], total[HEADS][8];
    bool is_last;
};

static_assert(sizeof(shared<64>) <= CU_STEP_SMEM_64 && sizeof(shared<128>) <= CU_STEP_SMEM_128, "args.h");

__device__ __forceinline__ void split_half(float v, __half &hi, __half &lo)
{
    hi = __float2half_rn(fminf(fmaxf(v, -65504.f), 65504.f));
    lo = __float2half_rn(v - __half2float(hi));
}

// Which keys a block has, and where they are.
struct span {
    uint32_t split, group, n_group, z, kvh, h0, nh, row, pos, b0, b1, j0;
    const int32_t *table;
    uint32_t n_kv_head;
    __device__ __forceinline__ uint64_t at(uint32_t j) const // of key j, in heads
    {
        return ((uint64_t)table[j / CU_KV_BLOCK] * n_kv_head + kvh) * CU_KV_BLOCK + j % CU_KV_BLOCK;
    }
};
__device__ __forceinline__ span span_of(const cu_attn &a)
{
    const uint32_t per = a.n_head / a.n_kv_head, n_chunk = (per + HEADS - 1) / HEADS;
    span s;
    s.n_group = a.n_kv_head * n_chunk;
    s.split = blockIdx.x % a.n_split;
    s.group = blockIdx.x / a.n_split % s.n_group;
    s.z = blockIdx.x / a.n_split / s.n_group;
    s.kvh = s.group / n_chunk;
    s.h0 = s.kvh * per + s.group % n_chunk * HEADS;
    s.nh = min((uint32_t)HEADS, (s.kvh + 1) * per - s.h0);
    s.row = a.t0 + s.z;
    s.pos = (uint32_t)a.kvpos[s.row];
    s.j0 = split_begin(s.split);
    const uint32_t lo = a.window && s.pos + 1 > a.window ? s.pos + 1 - a.window : 0;
    s.b0 = max(s.j0, lo);
    s.b1 = max(s.b0, min(split_begin(s.split + 1), s.pos + 1));
    s.table = a.table + (uint64_t)a.tseq[s.row] * a.table_stride;
    s.n_kv_head = a.n_kv_head;
    return s;
}

// Keys and values t0..t0+127, but for the new one; zeros for those that are not seen.
template <int HD>
__device__ __forceinline__ void fetch(const cu_attn &a, const span &s, uint32_t t0, shared<HD> &sm)
{
    constexpr int PIECES = HD / 8;
    const uint32_t ks = (uint32_t)__cvta_generic_to_shared(sm.k),
                   vs = (uint32_t)__cvta_generic_to_shared(sm.v);
#pragma unroll 4
    for (uint32_t x = threadIdx.x; x < TILE * PIECES; x += THREADS) {
        const uint32_t r = x / PIECES, c = x % PIECES, j = t0 + r;
        if (j == s.pos) continue;
        const bool seen = j >= s.b0 && j < s.b1;
        const uint64_t from = seen ? s.at(j) * HD + c * 8 : 0;
        const uint32_t n = seen ? 16 : 0;
        copy16(kv_piece<HD>(ks, r, c), (const __half *)a.kc + from, n);
        copy16(kv_piece<HD>(vs, r, c), (const __half *)a.vc + from, n);
    }
}

// The same from a q8_0 cache, as it is: a tile's integers, then its scales, lie where its halves will be.
template <int HD>
__device__ __forceinline__ void fetch_q8(const cu_attn &a, const span &s, uint32_t t0, shared<HD> &sm)
{
    constexpr uint32_t INTS = CU_KV_BLOCK * HD, BYTES = cu_kv_tile_bytes(CU_KV_Q8, HD), PIECES = BYTES / 16;
    for (uint32_t x = threadIdx.x; x < 4 * PIECES; x += THREADS) {
        const uint32_t c = x % PIECES, block = x / PIECES & 1, j = t0 + block * CU_KV_BLOCK;
        if (j >= s.b1 || j + CU_KV_BLOCK <= s.b0) continue;
        if (c < INTS / 16 && (j + c * 16 / HD < s.b0 || j + c * 16 / HD >= s.b1)) continue;
        const bool value = x >= 2 * PIECES;
        const uint8_t *from = (const uint8_t *)(value ? a.vc : a.kc) +
                              ((uint64_t)s.table[j / CU_KV_BLOCK] * s.n_kv_head + s.kvh) * BYTES;
        copy16((uint32_t)__cvta_generic_to_shared(value ? sm.v : sm.k) + block * BYTES + c * 16, from + c * 16,
               16);
    }
}
// What fetch_q8 brought, as halves in their places. All threads; ends with what other warps wrote still unseen.
template <int HD> __device__ __forceinline__ void decode(const span &s, uint32_t t0, shared<HD> &sm)
{
    constexpr uint32_t BYTES = cu_kv_tile_bytes(CU_KV_Q8, HD), ROW = HD / 16, N = TILE * ROW / THREADS;
    uint4 q[2][N];
    __half d[2][N];
#pragma unroll
    for (int part = 0; part < 2; part++)
#pragma unroll
        for (uint32_t i = 0; i < N; i++) {
            const uint32_t x = i * THREADS + threadIdx.x, r = x / ROW, c = x % ROW;
            const uint8_t *tile = (const uint8_t *)(part ? sm.v : sm.k) + r / CU_KV_BLOCK * BYTES;
            q[part][i] = *(const uint4 *)(tile + r % CU_KV_BLOCK * HD + c * 16);
            d[part][i] = ((const __half *)(tile + CU_KV_BLOCK * HD))[r % CU_KV_BLOCK * (HD / 32) + c / 2];
        }
    __syncthreads();
#pragma unroll
    for (int part = 0; part < 2; part++)
#pragma unroll
        for (uint32_t i = 0; i < N; i++) {
            const uint32_t x = i * THREADS + threadIdx.x, r = x / ROW, c = x % ROW, j = t0 + r;
            const uint32_t to = (uint32_t)__cvta_generic_to_shared(part ? sm.v : sm.k);
            uint4 h[2] = {};
            if (j == s.pos) continue; // take_new's
            if (j >= s.b0 && j < s.b1) decode16(q[part][i], d[part][i], h);
            put16(kv_piece<HD>(to, r, 2 * c), h[0]);
            put16(kv_piece<HD>(to, r, 2 * c + 1), h[1]);
        }
}

// Rotates a head's HD values of x; this lane's pairs have the angles' cosine and sine already.
template <int HD, typename F>
__device__ __forceinline__ void rope(const float *x, uint32_t rot, bool inter, const float2 (&cs)[HD / 64],
                                     int lane, F put)
{
#pragma unroll
    for (int n = 0; n < HD / 64; n++) {
        const uint32_t i = n * 32 + lane;
        if (i < rot / 2) {
            const uint32_t p = inter ? 2 * i : i, q = inter ? 2 * i + 1 : i + rot / 2;
            const float a = x[p], b = x[q];
            put(p, a * cs[n].x - b * cs[n].y);
            put(q, a * cs[n].y + b * cs[n].x);
        }
    }
    for (uint32_t i = rot + lane; i < HD; i += 32) put(i, x[i]);
}
template <int HD>
__device__ __forceinline__ void angles(const float *freq, uint32_t rot, float mscale, float pos, int lane,
                                       float2 (&cs)[HD / 64])
{
#pragma unroll
    for (int n = 0; n < HD / 64; n++) {
        cs[n] = make_float2(1, 0);
        if (n * 32 + lane < rot / 2) sincosf(pos * freq[n * 32 + lane], &cs[n].y, &cs[n].x);
        cs[n].x *= mscale, cs[n].y *= mscale;
    }
}

// q of the block's heads to shared memory.
template <int HD>
__device__ __forceinline__ void take_q(const cu_step_attn &p, const span &s, shared<HD> &sm,
                                       const float2 (&cs)[HD / 64], int warp, int lane)
{
    for (uint32_t g = warp; g < HEADS; g += THREADS / 32) {
        auto put = [&](uint32_t i, float v) { split_half(v, sm.q[0][g][i], sm.q[1][g][i]); };
        const float *x = p.at.q + (uint64_t)s.row * p.at.ldq + (s.h0 + g) * HD;
        if (g < s.nh) {
            rope<HD>(x, p.kv.q_rot, p.kv.q_inter, cs, lane, put);
        } else {
            for (uint32_t i = lane; i < HD; i += 32) put(i, 0);
        }
    }
}

// The new key and value to their row of the tile and to the cache, by warps that have no head where there are such.
template <int HD, bool Q8>
__device__ __forceinline__ void take_new(const cu_step_attn &p, const span &s, shared<HD> &sm,
                                         const float2 (&cs)[HD / 64], int warp, int lane)
{
    const cu_kv &kv = p.kv;
    const bool writes = s.group % (s.n_group / s.n_kv_head) == 0;
    const uint32_t r = (s.pos - s.j0) % TILE;
    const uint32_t which = (warp + HEADS - s.nh) % HEADS;
    if (which > 1) return;
    __half *tile = which == 0 ? sm.k : sm.v;
    void *all = which == 0 ? kv.kc : kv.vc;
    __half *cache = (__half *)all + s.at(s.pos) * HD;
    float *own = (float *)sm.p + which * HD; // nobody reads p now
    auto keep = [&](uint32_t i, __half h) { tile[r * HD + (((i >> 3) ^ (r & 7)) << 3) + (i & 7)] = h; };
    auto put = [&](uint32_t i, float v) {
        if (Q8) {
            own[i] = v;
            return;
        }
        __half h = __float2half_rn(v);
        keep(i, h);
        if (writes) cache[i] = h;
    };
    if (which == 0) {
        rope<HD>(kv.k + (uint64_t)s.row * kv.ldk + s.kvh * HD, kv.k_rot, kv.k_inter, cs, lane, put);
    } else {
        for (uint32_t i = lane; i < HD; i += 32) put(i, kv.v[(uint64_t)s.row * kv.ldv + s.kvh * HD + i]);
    }
    if (!Q8) return;
    __syncwarp();
    const uint32_t slot = s.pos % CU_KV_BLOCK;
    int8_t *to = (int8_t *)all + s.at(s.pos) / CU_KV_BLOCK * cu_kv_tile_bytes(CU_KV_Q8, HD);
    __half *scale = (__half *)(to + CU_KV_BLOCK * HD) + slot * (HD / 32);
    for (uint32_t i = lane; i < HD; i += 32) {
        __half d;
        const int8_t q = encode_q8(own[i], d);
        keep(i, __hmul(__int2half_rn(q), d));
        if (!writes) continue;
        to[slot * HD + i] = q;
        if (lane == 0) scale[i / 32] = d;
    }
}

// Scores of this warp's 16 keys: c[0], c[1]: key g, heads 2t and 2t + 1; c[2], c[3]: key g + 8. Not seen: -inf.
template <int HD>
__device__ __forceinline__ void scores(const cu_attn &a, const span &s, uint32_t t0, shared<HD> &sm, int warp,
                                       int lane, float (&c)[4])
{
    const int g = lane >> 2, t = lane & 3;
    const uint32_t ks = (uint32_t)__cvta_generic_to_shared(sm.k);
    float lo[4] = {};
    c[0] = c[1] = c[2] = c[3] = 0;
#pragma unroll
    for (int kk = 0; kk < HD / 16; kk++) {
        uint32_t f[4];
        ldsm(f, kv_piece<HD>(ks, warp * 16 + (lane & 15), kk * 2 + (lane >> 4)));
        const uint32_t *q0 = (const uint32_t *)&sm.q[0][g][kk * 16 + 2 * t];
        const uint32_t *q1 = (const uint32_t *)&sm.q[1][g][kk * 16 + 2 * t];
        mma_f16(c, f, q0[0], q0[4]);
        mma_f16(lo, f, q1[0], q1[4]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t j = t0 + warp * 16 + g + (i >> 1) * 8;
        float v = (c[i] + lo[i]) * a.scale;
        if (a.softcap > 0) v = a.softcap * tanhf(v / a.softcap);
        c[i] = j >= s.b0 && j < s.b1 ? v : -INFINITY;
    }
}

// What a thread knows of heads 2t and 2t + 1: the maximum so far, what it made of earlier sums, its share of the sum.
struct heads {
    float top[2], fade[2], total[2];
};

// The running maximum, p to shared memory, this thread's share of the sums.
template <int HD>
__device__ __forceinline__ void soften(shared<HD> &sm, const float (&c)[4], heads &w, int warp, int lane)
{
    const int g = lane >> 2, t = lane & 3;
    float most[2] = {fmaxf(c[0], c[2]), fmaxf(c[1], c[3])};
#pragma unroll
    for (int d = 4; d < 32; d *= 2)
        for (int h = 0; h < 2; h++) most[h] = fmaxf(most[h], __shfl_xor_sync(0xffffffffu, most[h], d));
    if (g == 0) sm.most[2 * t][warp] = most[0], sm.most[2 * t + 1][warp] = most[1];
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float4 m0 = *(const float4 *)&sm.most[2 * t + h][0],
                     m1 = *(const float4 *)&sm.most[2 * t + h][4];
        const float old = w.top[h];
        w.top[h] = fmaxf(old, fmaxf(fmaxf(fmaxf(m0.x, m0.y), fmaxf(m0.z, m0.w)),
                                    fmaxf(fmaxf(m1.x, m1.y), fmaxf(m1.z, m1.w))));
        w.fade[h] = old == -INFINITY ? 0 : expf(old - w.top[h]);
        w.total[h] *= w.fade[h];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float v = c[r * 2 + h], p = v == -INFINITY ? 0 : expf(v - w.top[h]);
            const uint32_t key = warp * 16 + g + r * 8;
            split_half(p, sm.p[0][2 * t + h][key], sm.p[1][2 * t + h][key]);
            w.total[h] += p;
        }
    }
    __syncthreads();
}

// o += V^T p for columns 16 * warp + g (+ 8) and heads 2t, 2t + 1.
template <int HD>
__device__ __forceinline__ void values(shared<HD> &sm, const heads &w, int warp, int lane, float (&o)[4])
{
    const int g = lane >> 2, t = lane & 3;
    if (warp >= HD / 16) return;
    const uint32_t vs = (uint32_t)__cvta_generic_to_shared(sm.v);
    float lo[4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) o[i] *= w.fade[i & 1];
#pragma unroll
    for (int kk = 0; kk < TILE / 16; kk++) {
        uint32_t f[4];
        ldsm_t(f, kv_piece<HD>(vs, kk * 16 + (lane & 7) + (lane >> 4) * 8, warp * 2 + (lane >> 3 & 1)));
        const uint32_t *p0 = (const uint32_t *)&sm.p[0][g][kk * 16 + 2 * t];
        const uint32_t *p1 = (const uint32_t *)&sm.p[1][g][kk * 16 + 2 * t];
        mma_f16(o, f, p0[0], p0[4]);
        mma_f16(lo, f, p1[0], p1[4]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) o[i] += lo[i];
}

template <int HD, bool Q8> __device__ __forceinline__ void step(const cu_step_attn &p)
{
    extern __shared__ __align__(128) uint8_t raw[];
    shared<HD> &sm = *(shared<HD> *)raw;
    const cu_attn &a = p.at;
    pdl_next();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    if (blockIdx.x >= p.n_block) { // only here to keep the next kernel's blocks one on each SM
        pdl_wait();
        return;
    }
    const span s = span_of(a);
    const uint32_t first =
        s.b1 > s.b0 ? s.j0 + (s.b0 - s.j0) / TILE * TILE : s.b1; // the first tile that is seen
    auto bring = [&](uint32_t t0) {
        if (Q8)
            fetch_q8<HD>(a, s, t0, sm);
        else
            fetch<HD>(a, s, t0, sm);
    };
    if (first < s.b1) bring(first);
    float2 cq[HD / 64], ck[HD / 64];
    const float pos = (float)p.kv.pos[s.row];
    angles<HD>(p.kv.q_freq, p.kv.q_rot, p.kv.q_mscale, pos, lane, cq);
    angles<HD>(p.kv.k_freq, p.kv.k_rot, p.kv.k_mscale, pos, lane, ck);
    pdl_wait();
    take_q<HD>(p, s, sm, cq, warp, lane);
    float o[4] = {};
    heads w = {{-INFINITY, -INFINITY}, {0, 0}, {0, 0}};
    for (uint32_t t0 = first; t0 < s.b1; t0 += TILE) {
        if (t0 > first) bring(t0);
        if (Q8) {
            asm volatile("cp.async.wait_all;" ::: "memory");
            __syncthreads();
            decode<HD>(s, t0, sm);
        }
        if (s.pos >= t0 && s.pos < t0 + TILE) take_new<HD, Q8>(p, s, sm, ck, warp, lane);
        asm volatile("cp.async.wait_all;" ::: "memory");
        __syncthreads();
        float c[4];
        scores<HD>(a, s, t0, sm, warp, lane, c);
        soften<HD>(sm, c, w, warp, lane);
        values<HD>(sm, w, warp, lane, o);
        __syncthreads();
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int d = 4; d < 32; d *= 2) w.total[h] += __shfl_xor_sync(0xffffffffu, w.total[h], d);
        if (g == 0) sm.total[2 * t + h][warp] = w.total[h];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t h = 2 * t + (i & 1), d = warp * 16 + g + (i >> 1) * 8;
        if (h >= s.nh || warp >= HD / 16) continue;
        float l = 0;
#pragma unroll
        for (int n = 0; n < 8; n++) l += sm.total[h][n];
        if (a.n_split == 1) {
            attn_put(a, s.row, s.h0 + h, d, o[i] * attn_scale(a, s.h0 + h, w.top[i & 1], l));
        } else {
            float *part = a.part + (((uint64_t)s.z * a.n_head + s.h0 + h) * a.n_split + s.split) * (HD + 2);
            part[d] = o[i];
            if (d == 0) part[HD] = w.top[i & 1], part[HD + 1] = l;
        }
    }
    if (a.n_split > 1) attn_join(a, s.z, s.row, s.group, s.n_group, s.h0, s.nh, &sm.is_last);
}

} // namespace

#define STEP(name, HD, Q8)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ cu_step_attn a)       \
    {                                                                                                        \
        step<HD, Q8>(a);                                                                                     \
    }
STEP(attn_step_64, 64, false)
STEP(attn_step_128, 128, false)
STEP(attn_step_q8_64, 64, true)
STEP(attn_step_q8_128, 128, true)
