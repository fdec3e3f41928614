// dev/cuda/attn.cu - attention over the paged cache.
//
// Idea:   attn_*: any shape, one query row at a time: a block has one split of the keys, one KV head and up to 8 of its
//         query heads; the last block of a row joins the splits. flash_*: f16 cache, head size 64 or 128, many rows:
//         tiles of 64 rows by 64 keys (one KV block, contiguous) on tensor cores with the running maximum.
// Layout: cache of a layer: [block][kv head][64][head_dim], keys and values apart. part: [row][head][split][head_dim + 2].
// Always: where splits begin depends on the position alone.
#include "common.cuh"

namespace {

template <typename KV> __device__ __forceinline__ float kv_at(const KV *p, uint64_t i);
template <> __device__ __forceinline__ float kv_at(const float *p, uint64_t i) { return p[i]; }
template <> __device__ __forceinline__ float kv_at(const __half *p, uint64_t i) { return __half2float(p[i]); }

// Four elements, aligned.
__device__ __forceinline__ float4 kv4(const float *p, uint64_t i) { return *(const float4 *)(p + i); }
__device__ __forceinline__ float4 kv4(const __half *p, uint64_t i)
{
    uint2 v = *(const uint2 *)(p + i);
    float2 a = __half22float2(*(__half2 *)&v.x), b = __half22float2(*(__half2 *)&v.y);
    return make_float4(a.x, a.y, b.x, b.y);
}
template <typename KV, int G> __device__ void attend(const cu_attn &a)
{
    extern __shared__ float smem[];
    const uint32_t hd = a.head_dim, per = a.n_head / a.n_kv_head, n_chunk = (per + G - 1) / G;
    float *qs = smem, *sc = qs + G * hd, *os = sc + G * CU_SPLIT_FAR; // q, scores, output of 4 warps
    __shared__ float ml[G][2];
    __shared__ bool is_last;
    pdl_next();
    pdl_wait();
    const uint32_t split = blockIdx.x, kvh = blockIdx.y / n_chunk, h0 = kvh * per + blockIdx.y % n_chunk * G;
    const uint32_t nh = min((uint32_t)G, (kvh + 1) * per - h0), row = a.t0 + blockIdx.z;
    const uint32_t tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const uint32_t seq = a.tseq[row], i = a.kvpos[row], len = a.seq_len[seq];
    uint32_t lo = 0, hi = a.full ? len : i + 1; // keys lo..hi-1 are seen
    if (a.window) {
        if (a.full) {
            lo = i > a.window ? i - a.window : 0;
            hi = min(hi, i + a.window + 1);
        } else {
            lo = i + 1 > a.window ? i + 1 - a.window : 0;
        }
    }
    uint32_t j0 = split_begin(split), j1 = split_begin(split + 1);
    const uint32_t b0 = max(j0, lo), b1 = min(j1, hi), n = b1 > b0 ? b1 - b0 : 0;
    const int32_t *table = a.table + (uint64_t)seq * a.table_stride;
    const KV *kc = (const KV *)a.kc, *vc = (const KV *)a.vc;
    auto at = [&](uint32_t j) {
        return (((uint64_t)table[j / CU_KV_BLOCK] * a.n_kv_head + kvh) * CU_KV_BLOCK + j % CU_KV_BLOCK) * hd;
    };
    for (uint32_t x = tid; x < G * hd; x += 128)
        qs[x] = x / hd < nh ? a.q[(uint64_t)row * a.ldq + (h0 + x / hd) * hd + x % hd] : 0;
    __syncthreads();
    for (uint32_t j = tid; j < n; j += 128) {
        float s[G] = {};
        uint64_t p = at(b0 + j);
        if (a.vec) {
#pragma unroll 4
            for (uint32_t d = 0; d < hd; d += 8) {
                float4 k0 = kv4(kc, p + d), k1 = kv4(kc, p + d + 4);
#pragma unroll
                for (int g = 0; g < G; g++) {
                    const float4 q0 = *(const float4 *)(qs + g * hd + d), q1 = *(const float4 *)(qs + g * hd + d + 4);
                    s[g] += k0.x * q0.x + k0.y * q0.y + k0.z * q0.z + k0.w * q0.w + k1.x * q1.x + k1.y * q1.y +
                            k1.z * q1.z + k1.w * q1.w;
                }
            }
        } else {
            for (uint32_t d = 0; d < hd; d++) {
                float k = kv_at(kc, p + d);
#pragma unroll
                for (int g = 0; g < G; g++) s[g] += k * qs[g * hd + d];
            }
        }
#pragma unroll
        for (int g = 0; g < G; g++) {
            float v = s[g] * a.scale;
            if (a.softcap > 0) v = a.softcap * tanhf(v / a.softcap);
            sc[g * CU_SPLIT_FAR + j] = v;
        }
    }
    __syncthreads();
    for (uint32_t g = warp; g < G; g += 4) {
        float m = -INFINITY, l = 0;
        for (uint32_t j = lane; j < n; j += 32) m = fmaxf(m, sc[g * CU_SPLIT_FAR + j]);
        m = warp_max(m);
        for (uint32_t j = lane; j < n; j += 32) {
            float p = expf(sc[g * CU_SPLIT_FAR + j] - m);
            sc[g * CU_SPLIT_FAR + j] = p;
            l += p;
        }
        l = warp_sum(l);
        if (lane == 0) ml[g][0] = m, ml[g][1] = l;
    }
    __syncthreads();
    for (uint32_t d0 = 0; d0 < hd; d0 += 128) {
        float o[G][4] = {};
        uint32_t d = d0 + lane * 4;
        if (d < hd) {
#pragma unroll 8
            for (uint32_t j = warp; j < n; j += 4) {
                uint64_t p = at(b0 + j) + d;
                float4 v = {0, 0, 0, 0};
                if (a.vec) {
                    v = kv4(vc, p);
                } else {
                    v.x = kv_at(vc, p);
                    if (d + 1 < hd) v.y = kv_at(vc, p + 1);
                    if (d + 2 < hd) v.z = kv_at(vc, p + 2);
                    if (d + 3 < hd) v.w = kv_at(vc, p + 3);
                }
#pragma unroll
                for (int g = 0; g < G; g++) {
                    float w = sc[g * CU_SPLIT_FAR + j];
                    o[g][0] += w * v.x, o[g][1] += w * v.y, o[g][2] += w * v.z, o[g][3] += w * v.w;
                }
            }
#pragma unroll
            for (int g = 0; g < G; g++)
                for (int e = 0; e < 4; e++)
                    if (d + e < hd) os[(warp * G + g) * hd + d + e] = o[g][e];
        }
    }
    __syncthreads();
    const uint32_t stride = hd + 2;
    auto put = [&](uint32_t h, uint32_t d, float v) {
        if (a.y) a.y[(uint64_t)row * a.ldy + h * hd + d] = v;
        if (a.h) a.h[(uint64_t)row * a.ldh + h * hd + d] = to_half_bits(v, a.hkind);
    };
    auto finish = [&](uint32_t h, float m, float l, float &scale) { // join with the sink
        if (a.sink) {
            float s = a.sink[h], top = fmaxf(m, s);
            l = l * (m == -INFINITY ? 0 : expf(m - top)) + expf(s - top);
            scale = (m == -INFINITY ? 0 : expf(m - top)) / l;
        } else {
            scale = l > 0 ? 1 / l : 0;
        }
    };
    for (uint32_t x = tid; x < nh * hd; x += 128) {
        uint32_t g = x / hd, d = x % hd;
        float v = os[g * hd + d] + os[(G + g) * hd + d] + os[(2 * G + g) * hd + d] + os[(3 * G + g) * hd + d];
        if (a.n_split == 1) {
            float scale;
            finish(h0 + g, ml[g][0], ml[g][1], scale);
            put(h0 + g, d, v * scale);
        } else {
            float *p = a.part + (((uint64_t)blockIdx.z * a.n_head + h0 + g) * a.n_split + split) * stride;
            p[d] = v;
            if (d == 0) p[hd] = ml[g][0], p[hd + 1] = ml[g][1];
        }
    }
    if (a.n_split == 1) return;
    __threadfence();
    __syncthreads();
    uint32_t *count = a.count + (uint64_t)blockIdx.z * gridDim.y + blockIdx.y;
    if (tid == 0) is_last = atomicAdd(count, 1) == a.n_split - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    if (tid == 0) *count = 0;
    for (uint32_t x = tid; x < nh * hd; x += 128) {
        uint32_t g = x / hd, d = x % hd;
        const float *p = a.part + ((uint64_t)blockIdx.z * a.n_head + h0 + g) * a.n_split * stride;
        float m = -INFINITY, l = 0, o = 0, scale;
#pragma unroll 4
        for (uint32_t s = 0; s < a.n_split; s++) m = fmaxf(m, __ldcg(p + s * stride + hd));
#pragma unroll 4
        for (uint32_t s = 0; s < a.n_split; s++) {
            float ms = __ldcg(p + s * stride + hd), ls = __ldcg(p + s * stride + hd + 1);
            float c = ms == -INFINITY ? 0 : expf(ms - m);
            l += c * ls;
            o += c * __ldcg(p + s * stride + d);
        }
        finish(h0 + g, m, l, scale);
        put(h0 + g, d, o * scale);
    }
}

// ---- tensor cores -----------------------------------------------------------------------------------------

__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void ldsm(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}
__device__ __forceinline__ void ldsm_t(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}
__device__ __forceinline__ uint32_t half2_bits(float x, float y)
{
    __half2 h = __floats2half2_rn(x, y);
    return *(uint32_t *)&h;
}

// Address of 16-byte piece c of row r in a tile of 64 rows of HD halves; pieces are swapped so that eight rows of one
// piece lie in different banks.
template <int HD> __device__ __forceinline__ uint32_t tile_at(uint32_t base, uint32_t r, uint32_t c)
{
    return base + r * (HD * 2) + ((c ^ (r & 7)) << 4);
}

// grid: (tile of 64 rows, head, sequence); 4 warps of 16 rows.
template <int HD> __device__ void flash(const cu_attn &a)
{
    extern __shared__ __align__(128) uint8_t sm[];
    constexpr uint32_t TILE = 64 * HD * 2;
    pdl_next();
    pdl_wait();
    const uint32_t seq = blockIdx.z, h = blockIdx.y, kvh = h / (a.n_head / a.n_kv_head);
    const uint32_t past = a.seq_past[seq], len = a.seq_len[seq], n_tok = len - past, tile = gridDim.x - 1 - blockIdx.x;
    const uint32_t i0 = tile * 64;
    if (i0 >= n_tok) return;
    const uint32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const uint32_t first = a.seq_first[seq];
    const int32_t *table = a.table + (uint64_t)seq * a.table_stride;
    const uint32_t base = (uint32_t)__cvta_generic_to_shared(sm);
    // keys that any row of the tile sees
    uint32_t pos_lo = past + i0, pos_hi = past + min(i0 + 64, n_tok) - 1;
    uint32_t lo = 0, hi = a.full ? len : pos_hi + 1;
    if (a.window) {
        lo = a.full ? (pos_lo > a.window ? pos_lo - a.window : 0) : (pos_lo + 1 > a.window ? pos_lo + 1 - a.window : 0);
        if (a.full) hi = min(hi, pos_hi + a.window + 1);
    }
    const uint32_t kb0 = lo / 64, kb1 = (hi + 63) / 64;
    auto fetch = [&](uint32_t kb, uint32_t stage) {
        uint64_t off = ((uint64_t)table[kb] * a.n_kv_head + kvh) * 64 * HD;
        const __half *ks = (const __half *)a.kc + off, *vs = (const __half *)a.vc + off;
        for (uint32_t x = threadIdx.x; x < 64 * HD / 8; x += 128) {
            uint32_t r = x / (HD / 8), c = x % (HD / 8);
            uint32_t n_byte = kb * 64 + r < len ? 16 : 0; // rows that were never written read as zeros
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                             tile_at<HD>(base + stage * 2 * TILE, r, c)),
                         "l"(ks + x * 8), "r"(n_byte));
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                             tile_at<HD>(base + stage * 2 * TILE + TILE, r, c)),
                         "l"(vs + x * 8), "r"(n_byte));
        }
        asm volatile("cp.async.commit_group;");
    };
    fetch(kb0, 0);
    // q as A fragments
    uint32_t qf[HD / 16][4];
    const uint32_t r0 = i0 + warp * 16 + g, r1 = r0 + 8;
    const float *q0 = a.q + (uint64_t)(first + min(r0, n_tok - 1)) * a.ldq + h * HD;
    const float *q1 = a.q + (uint64_t)(first + min(r1, n_tok - 1)) * a.ldq + h * HD;
#pragma unroll
    for (int k = 0; k < HD / 16; k++) {
        uint32_t c = k * 16 + 2 * t;
        qf[k][0] = half2_bits(q0[c], q0[c + 1]);
        qf[k][1] = half2_bits(q1[c], q1[c + 1]);
        qf[k][2] = half2_bits(q0[c + 8], q0[c + 9]);
        qf[k][3] = half2_bits(q1[c + 8], q1[c + 9]);
    }
    float o[HD / 8][4] = {}, m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0};
    const float log2e = 1.4426950408889634f;
    for (uint32_t kb = kb0; kb < kb1; kb++) {
        uint32_t stage = (kb - kb0) & 1;
        if (kb + 1 < kb1) {
            fetch(kb + 1, stage ^ 1);
            asm volatile("cp.async.wait_group 1;");
        } else {
            asm volatile("cp.async.wait_group 0;");
        }
        __syncthreads();
        const uint32_t ks = base + stage * 2 * TILE, vs = ks + TILE;
        float s[8][4] = {};
#pragma unroll
        for (int k = 0; k < HD / 16; k++) {
#pragma unroll
            for (int nb = 0; nb < 4; nb++) { // 16 keys
                uint32_t b[4];
                ldsm(b, tile_at<HD>(ks, nb * 16 + (lane & 7) + (lane >> 4) * 8, k * 2 + (lane >> 3 & 1)));
                mma_f16(s[2 * nb], qf[k], b[0], b[1]);
                mma_f16(s[2 * nb + 1], qf[k], b[2], b[3]);
            }
        }
        const uint32_t p0 = past + r0, p1 = past + r1;
        float top[2] = {m[0], m[1]};
#pragma unroll
        for (int nb = 0; nb < 8; nb++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                uint32_t j = kb * 64 + nb * 8 + 2 * t + (c & 1), p = c < 2 ? p0 : p1;
                float v = s[nb][c] * a.scale;
                if (a.softcap > 0) v = a.softcap * tanhf(v / a.softcap);
                uint32_t dist = p > j ? p - j : j - p;
                bool sees = a.full ? j < len && (!a.window || dist <= a.window)
                                   : j <= p && (!a.window || dist < a.window);
                v = sees ? v * log2e : -INFINITY;
                s[nb][c] = v;
                top[c >> 1] = fmaxf(top[c >> 1], v);
            }
        }
        float fade[2];
#pragma unroll
        for (int x = 0; x < 2; x++) {
            top[x] = fmaxf(top[x], __shfl_xor_sync(0xffffffffu, top[x], 1));
            top[x] = fmaxf(top[x], __shfl_xor_sync(0xffffffffu, top[x], 2));
            fade[x] = m[x] == -INFINITY ? 0 : exp2f(m[x] - top[x]);
            m[x] = top[x];
            l[x] *= fade[x];
        }
#pragma unroll
        for (int nb = 0; nb < 8; nb++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                float p = s[nb][c] == -INFINITY ? 0 : exp2f(s[nb][c] - m[c >> 1]);
                s[nb][c] = p;
                l[c >> 1] += p;
            }
#pragma unroll
        for (int d = 0; d < HD / 8; d++) {
            o[d][0] *= fade[0], o[d][1] *= fade[0];
            o[d][2] *= fade[1], o[d][3] *= fade[1];
        }
#pragma unroll
        for (int kk = 0; kk < 4; kk++) { // 16 keys
            uint32_t p[4] = {half2_bits(s[2 * kk][0], s[2 * kk][1]), half2_bits(s[2 * kk][2], s[2 * kk][3]),
                             half2_bits(s[2 * kk + 1][0], s[2 * kk + 1][1]),
                             half2_bits(s[2 * kk + 1][2], s[2 * kk + 1][3])};
#pragma unroll
            for (int d = 0; d < HD / 16; d++) {
                uint32_t b[4];
                ldsm_t(b, tile_at<HD>(vs, kk * 16 + (lane & 7) + (lane >> 3 & 1) * 8, d * 2 + (lane >> 4)));
                mma_f16(o[2 * d], p, b[0], b[1]);
                mma_f16(o[2 * d + 1], p, b[2], b[3]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int x = 0; x < 2; x++) {
        l[x] += __shfl_xor_sync(0xffffffffu, l[x], 1);
        l[x] += __shfl_xor_sync(0xffffffffu, l[x], 2);
        float scale = l[x] > 0 ? 1 / l[x] : 0;
        if (a.sink) {
            float sk = a.sink[h] * log2e, top = fmaxf(m[x], sk), f = m[x] == -INFINITY ? 0 : exp2f(m[x] - top);
            scale = f / (l[x] * f + exp2f(sk - top));
        }
        uint32_t r = x == 0 ? r0 : r1;
        if (r >= n_tok) continue;
        uint64_t row = first + r;
#pragma unroll
        for (int d = 0; d < HD / 8; d++) {
            float v0 = o[d][2 * x] * scale, v1 = o[d][2 * x + 1] * scale;
            uint32_t c = h * HD + d * 8 + 2 * t;
            if (a.y) a.y[row * a.ldy + c] = v0, a.y[row * a.ldy + c + 1] = v1;
            if (a.h) {
                a.h[row * a.ldh + c] = to_half_bits(v0, a.hkind);
                a.h[row * a.ldh + c + 1] = to_half_bits(v1, a.hkind);
            }
        }
    }
}

} // namespace

#define ATTN(name, KV, G)                                                                                              \
    extern "C" __global__ void __launch_bounds__(128) name(const __grid_constant__ cu_attn a) { attend<KV, G>(a); }
ATTN(attn_f16_1, __half, 1)
ATTN(attn_f16_4, __half, 4)
ATTN(attn_f16_8, __half, 8)
ATTN(attn_f32_1, float, 1)
ATTN(attn_f32_4, float, 4)
ATTN(attn_f32_8, float, 8)
extern "C" __global__ void __launch_bounds__(128) flash_64(const __grid_constant__ cu_attn a) { flash<64>(a); }
extern "C" __global__ void __launch_bounds__(128) flash_128(const __grid_constant__ cu_attn a) { flash<128>(a); }
