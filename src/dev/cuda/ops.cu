// dev/cuda/ops.cu - everything that works on rows: embedding, norms, elementwise, RoPE and the cache, pooling, experts'
// routing, conversion to 16 bit.
#include "common.cuh"

extern "C" __global__ void embed(const __grid_constant__ cu_embed a)
{
    pdl_next();
    pdl_wait();
    uint32_t r = blockIdx.y;
    int64_t row = a.zero ? 0 : (int64_t)a.row[r] + a.offset;
    for (uint32_t k = blockIdx.x * blockDim.x + threadIdx.x; k < a.k; k += gridDim.x * blockDim.x)
        a.y[(uint64_t)r * a.ldy + k] = packed_at(a.q, a.type, a.kpad, (uint64_t)row, k);
}

// Elementwise, one thread an element. op COPY takes rows a.row[r] when given, else r.
extern "C" __global__ void rows(const __grid_constant__ cu_rows a)
{
    pdl_next();
    pdl_wait();
    uint64_t n = (uint64_t)a.m * a.width;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x) {
        uint64_t r = i / a.width, c = i % a.width, from = a.row ? (uint64_t)a.row[r] : r;
        float x = a.a[from * a.lda + c], y = 0;
        switch (a.op) {
        case CU_ROW_ADD: y = x + a.b[r * a.ldb + c]; break;
        case CU_ROW_MUL: y = x * a.b[r * a.ldb + c]; break;
        case CU_ROW_SCALE: y = x * a.c; break;
        case CU_ROW_SOFTCAP: y = a.c * tanhf(x / a.c); break;
        case CU_ROW_ACT: y = activate(a.act, x); break;
        case CU_ROW_GLU: y = activate(a.act, x) * a.b[r * a.ldb + c]; break;
        case CU_ROW_BIAS: y = x + a.b[c]; break;
        default: y = x;
        }
        if (a.y) a.y[r * a.ldy + c] = y;
        if (a.h) a.h[r * a.ldh + c] = to_half_bits(y, a.hkind);
    }
}

// f32 rows to dense 16-bit rows of ldh columns, zeros behind width.
extern "C" __global__ void to16(const __grid_constant__ cu_rows a)
{
    pdl_next();
    pdl_wait();
    uint64_t per = a.ldh / 4, n = (uint64_t)a.m * per;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x) {
        uint64_t r = i / per, c = i % per * 4;
        ushort4 o;
        const float *x = a.a + r * a.lda + c;
        float v[4];
        for (int e = 0; e < 4; e++) v[e] = c + e < a.width ? x[e] : 0;
        o.x = to_half_bits(v[0], a.hkind), o.y = to_half_bits(v[1], a.hkind);
        o.z = to_half_bits(v[2], a.hkind), o.w = to_half_bits(v[3], a.hkind);
        *(ushort4 *)(a.h + r * a.ldh + c) = o;
    }
}

__device__ __forceinline__ float low_bf16(uint32_t v)
{
    return __uint_as_float(v << 16);
}
__device__ __forceinline__ float high_bf16(uint32_t v)
{
    return __uint_as_float(v & 0xffff0000u);
}
__device__ __forceinline__ uint32_t two_halves(float a, float b, uint32_t kind)
{
    return (uint32_t)to_half_bits(a, kind) | (uint32_t)to_half_bits(b, kind) << 16;
}
// act(g) * u on its way to 16 bits.
__device__ __forceinline__ float glu_fast(uint32_t act, float g, float u)
{
    return (act == 0 ? __fdividef(g, 1 + __expf(-g)) : activate(act, g)) * u;
}

// GLU over a bf16 product, up ldb columns behind gate, to a 16-bit row of ldh columns, zeros behind width (and f32 where
// wanted). A thread has 8 columns; grid.y: rows. lda, ldb and ldh are multiples of 8.
extern "C" __global__ void __launch_bounds__(256) glu16(const __grid_constant__ cu_rows a)
{
    pdl_next();
    pdl_wait();
    const uint32_t c = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (c >= a.ldh) return;
    for (uint32_t r = blockIdx.y; r < a.m; r += gridDim.y) {
        const uint16_t *x = (const uint16_t *)a.a + (uint64_t)r * a.lda + c;
        uint4 g4 = {0, 0, 0, 0}, u4 = {0, 0, 0, 0};
        if (c < a.width) g4 = *(const uint4 *)x, u4 = *(const uint4 *)(x + a.ldb);
        const uint32_t gw[4] = {g4.x, g4.y, g4.z, g4.w}, uw[4] = {u4.x, u4.y, u4.z, u4.w};
        float y[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float g = i & 1 ? high_bf16(gw[i / 2]) : low_bf16(gw[i / 2]);
            float u = i & 1 ? high_bf16(uw[i / 2]) : low_bf16(uw[i / 2]);
            const bool in = c + i < a.width;
            if (a.w && in) g += a.w[c + i], u += a.w[a.width + c + i];
            y[i] = in ? glu_fast(a.act, g, u) : 0;
            if (a.y && in) a.y[(uint64_t)r * a.ldy + c + i] = y[i];
        }
        *(uint4 *)(a.h + (uint64_t)r * a.ldh + c) =
            make_uint4(two_halves(y[0], y[1], a.hkind), two_halves(y[2], y[3], a.hkind),
                       two_halves(y[4], y[5], a.hkind), two_halves(y[6], y[7], a.hkind));
    }
}

// RMS norm over groups of columns; a block has one group of one row. h: 16-bit copy (whole rows only), zeros up to ldh.
// Rows whose place allows it are read once, 16 bytes a thread.
extern "C" __global__ void __launch_bounds__(256) rms_norm(const __grid_constant__ cu_rows a)
{
    __shared__ float tmp[32];
    constexpr int KEEP = 4;
    pdl_next();
    pdl_wait();
    const uint32_t r = blockIdx.x, at = blockIdx.y * a.group, step = blockDim.x * 4;
    const float *x = a.a + (uint64_t)r * a.lda + at;
    float *y = a.y ? a.y + (uint64_t)r * a.ldy + at : nullptr;
    const bool wide = a.group % 4 == 0 && a.group <= KEEP * step && ((uintptr_t)x & 15) == 0 && ((uintptr_t)y & 15) == 0;
    float s = 0;
    if (wide) {
        float4 v[KEEP];
#pragma unroll
        for (int i = 0; i < KEEP; i++) {
            const uint32_t c = i * step + threadIdx.x * 4;
            v[i] = c < a.group ? *(const float4 *)(x + c) : make_float4(0, 0, 0, 0);
            s += v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w;
        }
        const float inv = 1 / sqrtf(block_sum(s, tmp) / (float)a.group + a.eps);
#pragma unroll
        for (int i = 0; i < KEEP; i++) {
            const uint32_t c = i * step + threadIdx.x * 4;
            if (c >= a.group) continue;
            float4 w = {1, 1, 1, 1};
            if (a.w) {
                w = *(const float4 *)(a.w + c);
                w.x += a.w_offset, w.y += a.w_offset, w.z += a.w_offset, w.w += a.w_offset;
            }
            const float4 o = {v[i].x * inv * w.x, v[i].y * inv * w.y, v[i].z * inv * w.z, v[i].w * inv * w.w};
            if (y) *(float4 *)(y + c) = o;
            if (a.h)
                *(uint2 *)(a.h + (uint64_t)r * a.ldh + c) =
                    make_uint2(two_halves(o.x, o.y, a.hkind), two_halves(o.z, o.w, a.hkind));
        }
    } else {
        for (uint32_t i = threadIdx.x; i < a.group; i += blockDim.x) s += x[i] * x[i];
        const float inv = 1 / sqrtf(block_sum(s, tmp) / (float)a.group + a.eps);
        for (uint32_t i = threadIdx.x; i < a.group; i += blockDim.x) {
            const float o = x[i] * inv * (a.w ? a.w[i] + a.w_offset : 1);
            if (y) y[i] = o;
            if (a.h) a.h[(uint64_t)r * a.ldh + i] = to_half_bits(o, a.hkind);
        }
    }
    if (a.h)
        for (uint32_t i = a.group + threadIdx.x; i < a.ldh; i += blockDim.x) a.h[(uint64_t)r * a.ldh + i] = 0;
}

extern "C" __global__ void layer_norm(const __grid_constant__ cu_rows a)
{
    __shared__ float tmp[32];
    pdl_next();
    pdl_wait();
    const float *x = a.a + (uint64_t)blockIdx.x * a.lda;
    float s = 0, v = 0;
    for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x) s += x[i];
    float mean = block_sum(s, tmp) / (float)a.width;
    for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x) v += (x[i] - mean) * (x[i] - mean);
    float inv = 1 / sqrtf(block_sum(v, tmp) / (float)a.width + a.eps);
    for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x)
        a.y[(uint64_t)blockIdx.x * a.ldy + i] =
            (x[i] - mean) * inv * (a.w ? a.w[i] : 1) + (a.w2 ? a.w2[i] : 0);
}

extern "C" __global__ void l2_norm(const __grid_constant__ cu_rows a)
{
    __shared__ float tmp[32];
    pdl_next();
    pdl_wait();
    const float *x = a.a + (uint64_t)blockIdx.x * a.lda;
    float s = 0;
    for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x) s += x[i] * x[i];
    float len = fmaxf(sqrtf(block_sum(s, tmp)), a.eps);
    for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x)
        a.y[(uint64_t)blockIdx.x * a.ldy + i] = x[i] / len;
}

// One head of a row: pairs, then what is not rotated. cs: cosine and sine of the pairs' angles; put(index, value).
template <typename F>
__device__ __forceinline__ void head_rope(const float *x, uint32_t hd, uint32_t rot, bool inter, const float2 *cs, uint32_t lane,
                                          F put)
{
    for (uint32_t i = lane; i < rot / 2; i += 32) {
        const uint32_t p = inter ? 2 * i : i, q = inter ? 2 * i + 1 : i + rot / 2;
        const float a = x[p], b = x[q];
        put(p, a * cs[i].x - b * cs[i].y);
        put(q, a * cs[i].y + b * cs[i].x);
    }
    for (uint32_t i = rot + lane; i < hd; i += 32) put(i, x[i]);
}

// A row's heads of q (rotated), k (rotated) and v (to the cache), a warp each. grid: (row, share of the heads); 256 threads.
template <bool Q8> __device__ __forceinline__ void rope_all(const cu_kv &a)
{
    __shared__ float2 cs[2][256]; // q, k
    __shared__ float head[Q8 ? 8 : 1][Q8 ? 512 : 1];
    pdl_next();
    const uint32_t r = blockIdx.x, hd = a.head_dim, lane = threadIdx.x & 31;
    const float pos = (float)a.pos[r];
    for (uint32_t i = threadIdx.x; i < 512; i += 256) {
        const bool key = i >= 256;
        const float *freq = key ? a.k_freq : a.q_freq;
        if ((i & 255) >= (key ? a.k_rot : a.q_rot) / 2) continue;
        float s, c;
        sincosf(pos * freq[i & 255], &s, &c);
        const float by = key ? a.k_mscale : a.q_mscale;
        cs[key][i & 255] = make_float2(c * by, s * by);
    }
    __syncthreads();
    pdl_wait();
    const uint32_t n = a.n_head + 2 * a.n_kv_head;
    for (uint32_t h = blockIdx.y * 8 + (threadIdx.x >> 5); h < n; h += gridDim.y * 8) {
        if (h < a.n_head) {
            float *y = a.q_out + (uint64_t)r * a.ldqo + h * hd;
            if (a.q)
                head_rope(a.q + (uint64_t)r * a.ldq + h * hd, hd, a.q_rot, a.q_inter, cs[0], lane,
                          [=](uint32_t i, float v) { y[i] = v; });
            continue;
        }
        const bool value = h >= a.n_head + a.n_kv_head;
        const uint32_t kvh = h - a.n_head - (value ? a.n_kv_head : 0), slot = (uint32_t)a.slot[r];
        const uint64_t tile = (uint64_t)(slot / CU_KV_BLOCK) * a.n_kv_head + kvh, row = slot % CU_KV_BLOCK;
        void *c = value ? a.vc : a.kc;
        float *own = head[Q8 ? threadIdx.x >> 5 : 0];
        const bool half = a.kind == CU_KV_F16;
        const uint64_t at = (tile * CU_KV_BLOCK + row) * hd;
        auto put = [=](uint32_t i, float v) {
            if (Q8) own[i] = v;
            else if (half) ((__half *)c)[at + i] = __float2half_rn(v);
            else ((float *)c)[at + i] = v;
        };
        if (value) head_rope(a.v + (uint64_t)r * a.ldv + kvh * hd, hd, 0, false, cs[1], lane, put);
        else head_rope(a.k + (uint64_t)r * a.ldk + kvh * hd, hd, a.k_rot, a.k_inter, cs[1], lane, put);
        if (!Q8) continue;
        __syncwarp();
        int8_t *t = (int8_t *)c + tile * cu_kv_tile_bytes(CU_KV_Q8, hd);
        __half *scale = (__half *)(t + CU_KV_BLOCK * hd) + row * (hd / 32);
        for (uint32_t i = lane; i < hd; i += 32) {
            __half d;
            t[row * hd + i] = encode_q8(own[i], d);
            if (lane == 0) scale[i / 32] = d;
        }
        __syncwarp();
    }
}
extern "C" __global__ void __launch_bounds__(256) rope_kv(const __grid_constant__ cu_kv a)
{
    rope_all<false>(a);
}
extern "C" __global__ void __launch_bounds__(256) rope_kv_q8(const __grid_constant__ cu_kv a)
{
    rope_all<true>(a);
}

extern "C" __global__ void pool(const __grid_constant__ cu_pool a)
{
    pdl_next();
    pdl_wait();
    uint32_t s = blockIdx.y, c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= a.width) return;
    uint32_t first = a.first[s], last = first + a.n_tok[s] - 1;
    if (a.kind == 1) last = first;
    if (a.kind == 2) first = last;
    float sum = 0;
    for (uint32_t t = first; t <= last; t++) sum += a.x[(uint64_t)t * a.ldx + c];
    a.y[(uint64_t)s * a.ldy + c] = sum / (float)(last - first + 1);
}

// Which experts a row meets and with what weight, best first, of equals the lower number. One warp a row.
extern "C" __global__ void moe_route(const __grid_constant__ cu_route a)
{
    pdl_next();
    pdl_wait();
    uint32_t r = blockIdx.x, lane = threadIdx.x;
    const float *l = a.logits + (uint64_t)r * a.ldl;
    float max = -INFINITY, sum = 0, kept = 0;
    for (uint32_t e = lane; e < a.n_expert; e += 32) max = fmaxf(max, l[e]);
    max = warp_max(max);
    for (uint32_t e = lane; e < a.n_expert; e += 32) sum += expf(l[e] - max);
    sum = warp_sum(sum);
    float last = INFINITY;
    uint32_t last_e = 0;
    for (uint32_t i = 0; i < a.n_used; i++) {
        float best = -INFINITY;
        uint32_t best_e = 0xffffffffu;
        for (uint32_t e = lane; e < a.n_expert; e += 32) {
            bool after = i == 0 || l[e] < last || (l[e] == last && e > last_e);
            if (after && (l[e] > best || best_e == 0xffffffffu)) best = l[e], best_e = e;
        }
        for (int d = 16; d > 0; d >>= 1) {
            float o = __shfl_xor_sync(0xffffffffu, best, d);
            uint32_t oe = __shfl_xor_sync(0xffffffffu, best_e, d);
            if (oe != 0xffffffffu && (best_e == 0xffffffffu || o > best || (o == best && oe < best_e)))
                best = o, best_e = oe;
        }
        if (best_e == 0xffffffffu) best_e = 0, best = -INFINITY; /* logits that are no numbers */
        float p = expf(best - max);
        kept += p;
        if (lane == 0) {
            a.expert[r * a.n_used + i] = (int32_t)best_e;
            a.weight[r * a.n_used + i] = p;
        }
        last = best, last_e = best_e;
    }
    __syncwarp();
    for (uint32_t i = lane; i < a.n_used; i += 32) a.weight[r * a.n_used + i] /= a.norm_topk ? kept : sum;
}

extern "C" __global__ void moe_sum(const __grid_constant__ cu_route a)
{
    pdl_next();
    pdl_wait();
    uint32_t r = blockIdx.y, c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= a.width) return;
    float sum = 0;
    for (uint32_t i = 0; i < a.n_used; i++)
        sum += a.weight[r * a.n_used + i] * a.pair[((uint64_t)r * a.n_used + i) * a.width + c];
    a.y[(uint64_t)r * a.ldy + c] = sum;
}

// Reads n bytes as fast as memory gives them: the ceiling that benchmarks compare with.
extern "C" __global__ void read_all(const uint4 *p, uint64_t n, uint32_t *out)
{
    uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x, step = (uint64_t)gridDim.x * blockDim.x;
    uint32_t x = 0;
    for (; i + 3 * step < n; i += 4 * step) {
        uint4 a = p[i], b = p[i + step], c = p[i + 2 * step], d = p[i + 3 * step];
        x ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    if (x == 0x12345678u) *out = x;
}
