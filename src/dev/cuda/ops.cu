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
        a.y[(uint64_t)r * a.ldy + k] = packed_at(a.q, a.s, a.type, a.kpad, (uint64_t)row, k);
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

// GLU over a bf16 product [m][2 * width] to a 16-bit row of ldh columns (and f32 where wanted).
extern "C" __global__ void glu16(const __grid_constant__ cu_rows a)
{
    pdl_next();
    pdl_wait();
    const uint16_t *x = (const uint16_t *)a.a;
    uint64_t per = a.ldh / 2, n = (uint64_t)a.m * per;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x) {
        uint64_t r = i / per, c = i % per * 2;
        uint16_t o[2] = {0, 0};
        for (int e = 0; e < 2; e++) {
            if (c + e >= a.width) continue;
            float g = __uint_as_float((uint32_t)x[r * a.lda + c + e] << 16);
            float u = __uint_as_float((uint32_t)x[r * a.lda + a.width + c + e] << 16);
            if (a.w) g += a.w[c + e], u += a.w[a.width + c + e];
            float y = activate(a.act, g) * u;
            o[e] = to_half_bits(y, a.hkind);
            if (a.y) a.y[r * a.ldy + c + e] = y;
        }
        *(ushort2 *)(a.h + r * a.ldh + c) = make_ushort2(o[0], o[1]);
    }
}

// RMS norm over groups of columns; a block has one group of one row. h: 16-bit copy (whole rows only), zeros up to ldh.
extern "C" __global__ void rms_norm(const __grid_constant__ cu_rows a)
{
    __shared__ float tmp[32];
    pdl_next();
    pdl_wait();
    uint32_t r = blockIdx.x, at = blockIdx.y * a.group;
    const float *x = a.a + (uint64_t)r * a.lda + at;
    float s = 0;
    for (uint32_t i = threadIdx.x; i < a.group; i += blockDim.x) s += x[i] * x[i];
    float inv = 1 / sqrtf(block_sum(s, tmp) / (float)a.group + a.eps);
    for (uint32_t i = threadIdx.x; i < a.group; i += blockDim.x) {
        float y = x[i] * inv * (a.w ? a.w[i] + a.w_offset : 1);
        if (a.y) a.y[(uint64_t)r * a.ldy + at + i] = y;
        if (a.h) a.h[(uint64_t)r * a.ldh + i] = to_half_bits(y, a.hkind);
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

__device__ __forceinline__ void rotate(float &p, float &q, float pos, float freq, float mscale)
{
    float s, c;
    sincosf(pos * freq, &s, &c);
    s *= mscale, c *= mscale;
    float a = p * c - q * s;
    q = p * s + q * c;
    p = a;
}

// One head of a row: pairs, then what is not rotated. put(index, value).
template <typename F>
__device__ void head_rope(const float *x, uint32_t hd, uint32_t rot, bool inter, const float *freq, float mscale, float pos,
                          F put)
{
    for (uint32_t i = threadIdx.x; i < rot / 2; i += blockDim.x) {
        uint32_t p = inter ? 2 * i : i, q = inter ? 2 * i + 1 : i + rot / 2;
        float a = x[p], b = x[q];
        rotate(a, b, pos, freq[i], mscale);
        put(p, a);
        put(q, b);
    }
    for (uint32_t i = rot + threadIdx.x; i < hd; i += blockDim.x) put(i, x[i]);
}

// A row's heads of q (rotated in place or copied), k and v (to the cache). grid: (row, head); 64 threads.
extern "C" __global__ void rope_kv(const __grid_constant__ cu_kv a)
{
    pdl_next();
    pdl_wait();
    uint32_t r = blockIdx.x, h = blockIdx.y, hd = a.head_dim;
    float pos = (float)a.pos[r];
    if (h < a.n_head) {
        if (!a.q) return;
        const float *x = a.q + (uint64_t)r * a.ldq + h * hd;
        float *y = a.q_out + (uint64_t)r * a.ldqo + h * hd;
        head_rope(x, hd, a.q_rot, a.q_inter, a.q_freq, a.q_mscale, pos, [=](uint32_t i, float v) { y[i] = v; });
        return;
    }
    h -= a.n_head;
    bool value = h >= a.n_kv_head;
    if (value) h -= a.n_kv_head;
    uint32_t slot = (uint32_t)a.slot[r];
    uint64_t at = (((uint64_t)(slot / CU_KV_BLOCK) * a.n_kv_head + h) * CU_KV_BLOCK + slot % CU_KV_BLOCK) * hd;
    const float *x = value ? a.v + (uint64_t)r * a.ldv + h * hd : a.k + (uint64_t)r * a.ldk + h * hd;
    void *c = value ? a.vc : a.kc;
    bool half = a.half;
    auto put = [=](uint32_t i, float v) {
        if (half) ((__half *)c)[at + i] = __float2half_rn(v);
        else ((float *)c)[at + i] = v;
    };
    if (value) head_rope(x, hd, 0, false, nullptr, 1, 0, put);
    else head_rope(x, hd, a.k_rot, a.k_inter, a.k_freq, a.k_mscale, pos, put);
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
