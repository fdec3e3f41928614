/* tensor/encode_k.c - f32 to super-blocks of 256.
 *
 * Place:   reached through imp_dtype_info.from_f32.
 * Idea:    all five types are one problem: runs of 16 or 32 numbers, each with a whole-number scale (and minimum) in units
 *          of the super-block's d (and dmin). Each run is fitted alone; its ideal scales are rounded to those units; then
 *          the runs choose among the neighbouring whole numbers and d and dmin are solved for again, while the error falls.
 *          How the numbers are packed is each type's own short function.
 * Layout:  stated in decode.c.
 * Always:  what is compared is the error after d and dmin were rounded to f16, as the decoder will see them.
 * Threads: pure functions. */
#include <math.h>

#include "tensor/encode.h"

typedef struct k_format {
    int n_run, len;
    imp_fit_range q;
    int scale_lo, scale_hi;
    bool has_min; /* minima 0..scale_hi in units of dmin; q starts at 0 */
} k_format;

typedef struct k_block {
    uint16_t d, dmin; /* f16 */
    int scale[16], min[16];
    float q[256];
    float err;
} k_block;

static const float *at(const float *w, int i)
{
    return w != NULL ? w + i : NULL;
}

/* The best whole numbers for run r near its ideal scale and minimum; returns the error. */
static float choose_run(const k_format *f, const float *x, const float *w, float scale, float min, k_block *b,
                        int r)
{
    float d = imp_f16_to_f32(b->d), dmin = imp_f16_to_f32(b->dmin), best = INFINITY, q[IMP_FIT_MAX];
    int m0 = dmin != 0 ? (int)lrintf(IMP_MIN(IMP_MAX(min / dmin, 0.0f), 127.0f)) : 0,
        spread = f->has_min ? 1 : 0;
    for (int dm = -spread; dm <= spread; dm++) {
        int m = IMP_MIN(IMP_MAX(m0 + dm, 0), f->scale_hi);
        if (m != m0 + dm && dm != 0) continue;
        /* a minimum that could not be met wants another scale */
        float ideal = f->has_min ? imp_fit_rescale(x, w, f->len, f->q, scale, -dmin * (float)m) : scale;
        int s0 = d != 0 ? (int)lrintf(IMP_MIN(IMP_MAX(ideal / d, -128.0f), 127.0f)) : 0;
        for (int ds = -1; ds <= 1; ds++) {
            int s = IMP_MIN(IMP_MAX(s0 + ds, f->scale_lo), f->scale_hi);
            if (s != s0 + ds && ds != 0) continue;
            float err = imp_fit_round(x, w, f->len, f->q, d * (float)s, -dmin * (float)m, q);
            if (err >= best) continue;
            best = err;
            b->scale[r] = s;
            b->min[r] = m;
            memcpy(b->q + r * f->len, q, (size_t)f->len * sizeof *q);
        }
    }
    return best;
}

/* All runs for the units that stand in b. */
static void choose_runs(const k_format *f, const float *x, const float *w, const float *scale,
                        const float *min, k_block *b)
{
    b->err = 0;
    for (int r = 0; r < f->n_run; r++)
        b->err += choose_run(f, x + r * f->len, at(w, r * f->len), scale[r], min[r], b, r);
}

/* d and dmin by least squares for the whole numbers of b: x ~ d * (scale q) - dmin * min. */
static void solve_units(const k_format *f, const float *x, const float *w, const k_block *b, float *d,
                        float *dmin)
{
    double aa = 0, am = 0, mm = 0, xa = 0, xm = 0;
    for (int i = 0; i < 256; i++) {
        int r = i / f->len;
        double wi = w != NULL ? (double)w[i] : 1, a = (double)b->scale[r] * (double)b->q[i];
        double m = f->has_min ? -(double)b->min[r] : 0;
        aa += wi * a * a;
        am += wi * a * m;
        mm += wi * m * m;
        xa += wi * (double)x[i] * a;
        xm += wi * (double)x[i] * m;
    }
    double det = aa * mm - am * am;
    *dmin = imp_f16_to_f32(b->dmin);
    if (det > 1e-9 * aa * mm && det > 0) {
        *d = (float)((xa * mm - xm * am) / det);
        *dmin = (float)((xm * aa - xa * am) / det);
    } else {
        *d = aa > 0 ? (float)((xa + (double)*dmin * -am) / aa) : imp_f16_to_f32(b->d);
    }
}

/* The unit that makes the extreme of v just fit lo..hi. */
static float unit_of(const float *v, int n, int lo, int hi)
{
    float most = 0;
    for (int r = 0; r < n; r++)
        if (fabsf(v[r]) > fabsf(most)) most = v[r];
    if (lo >= 0) return most / (float)hi;
    return most /
           (float)lo; /* the negative side reaches one further: the extreme takes it, whatever its sign */
}

/* Units d and dmin to begin with, bettered until nothing is gained; into *best when that is better. */
static void improve(const k_format *f, const float *x, const float *w, const float *scale, const float *min,
                    float d, float dmin, k_block *best)
{
    enum { ROUNDS = 4 };
    k_block b;
    for (int k = 0; k < ROUNDS; k++) {
        if (!(fabsf(d) <= 65504) || !(dmin >= 0) || !(dmin <= 65504)) return;
        b.d = imp_f32_to_f16(d);
        b.dmin = imp_f32_to_f16(dmin);
        choose_runs(f, x, w, scale, min, &b);
        if (k > 0 && !(b.err < best->err)) return;
        if (b.err < best->err) *best = b;
        if (b.err <= 0) return;
        solve_units(f, x, w, &b, &d, &dmin);
    }
}

static void fit_block(const k_format *f, const float *x, const float *w, k_block *best)
{
    float scale[16], min[16] = {0};
    for (int r = 0; r < f->n_run; r++) {
        const float *xr = x + r * f->len, *wr = at(w, r * f->len);
        if (f->has_min) {
            float off;
            scale[r] = imp_fit_affine(xr, wr, f->len, f->q.hi, 0, &off);
            min[r] = -off;
        } else {
            scale[r] = imp_fit_scale(xr, wr, f->len, f->q);
        }
    }
    float d = unit_of(scale, f->n_run, f->scale_lo, f->scale_hi),
          dmin = unit_of(min, f->n_run, 0, f->scale_hi);
    *best = (k_block){.err = INFINITY};
    improve(f, x, w, scale, min, d, dmin, best);
    if (f->scale_hi > 15) return;
    /* Coarse units: whether the extreme is met matters less than what the others fall on. */
    static const float other[][2] = {{1.08f, 1}, {1, 1.08f}, {0.93f, 1}, {1, 0.93f}};
    for (size_t i = 0; i < IMP_COUNT(other); i++)
        improve(f, x, w, scale, min, d * other[i][0], dmin * other[i][1], best);
}

/* ---- packing ---------------------------------------------------------------------------------- */

static void store_u16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

/* Two bits of every element, as q2_k and q3_k store them. */
static void store_2bit(uint8_t *p, const int *q)
{
    memset(p, 0, 64);
    for (int j = 0; j < 256; j++) {
        uint8_t *to = p + (j >> 7) * 32 + (j & 31);
        *to = (uint8_t)(*to | (q[j] & 3) << ((j >> 5 & 3) * 2));
    }
}

/* Nibbles of q4_k and q5_k: each 32 bytes hold 64 elements. */
static void store_k_nibbles(uint8_t *p, const int *q)
{
    for (int j = 0; j < 128; j++) {
        const int *from = q + (j >> 5) * 64 + (j & 31);
        p[j] = (uint8_t)((from[0] & 15) | (from[32] & 15) << 4);
    }
}

static void store_scale_min(uint8_t *p, const int *scale, const int *min)
{
    for (int s = 0; s < 4; s++) {
        p[s] = (uint8_t)(scale[s] | scale[s + 4] >> 4 << 6);
        p[s + 4] = (uint8_t)(min[s] | min[s + 4] >> 4 << 6);
        p[s + 8] = (uint8_t)((scale[s + 4] & 15) | (min[s + 4] & 15) << 4);
    }
}

static void pack_q2_k(const k_block *b, const int *q, uint8_t *p)
{
    for (int s = 0; s < 16; s++) p[s] = (uint8_t)(b->scale[s] | b->min[s] << 4);
    store_2bit(p + 16, q);
    store_u16(p + 80, b->d);
    store_u16(p + 82, b->dmin);
}

static void pack_q3_k(const k_block *b, const int *q, uint8_t *p)
{
    memset(p, 0, 32);
    int up[256];
    for (int j = 0; j < 256; j++) {
        up[j] = q[j] + 4;
        p[j & 31] = (uint8_t)(p[j & 31] | up[j] >> 2 << (j >> 5));
    }
    store_2bit(p + 32, up);
    memset(p + 96, 0, 12);
    for (int s = 0; s < 16; s++) {
        int v = b->scale[s] + 32;
        uint8_t *low = p + 96 + (s & 7), *high = p + 104 + (s & 3);
        *low = (uint8_t)(*low | (v & 15) << (s < 8 ? 0 : 4));
        *high = (uint8_t)(*high | v >> 4 << (2 * (s >> 2)));
    }
    store_u16(p + 108, b->d);
}

static void pack_q4_k(const k_block *b, const int *q, uint8_t *p)
{
    store_u16(p, b->d);
    store_u16(p + 2, b->dmin);
    store_scale_min(p + 4, b->scale, b->min);
    store_k_nibbles(p + 16, q);
}

static void pack_q5_k(const k_block *b, const int *q, uint8_t *p)
{
    store_u16(p, b->d);
    store_u16(p + 2, b->dmin);
    store_scale_min(p + 4, b->scale, b->min);
    memset(p + 16, 0, 32);
    for (int j = 0; j < 256; j++) p[16 + (j & 31)] = (uint8_t)(p[16 + (j & 31)] | q[j] >> 4 << (j >> 5));
    store_k_nibbles(p + 48, q);
}

static void pack_q6_k(const k_block *b, const int *q, uint8_t *p)
{
    memset(p, 0, 192);
    for (int j = 0; j < 256; j++) {
        int half = j >> 7, run = j >> 5 & 3, e = j & 31, v = q[j] + 32;
        uint8_t *low = p + half * 64 + (run & 1) * 32 + e, *high = p + 128 + half * 32 + e;
        *low = (uint8_t)(*low | (v & 15) << ((run >> 1) * 4));
        *high = (uint8_t)(*high | v >> 4 << (run * 2));
    }
    for (int s = 0; s < 16; s++) p[192 + s] = (uint8_t)(int8_t)b->scale[s];
    store_u16(p + 208, b->d);
}

static void encode(const k_format *f, void (*pack)(const k_block *b, const int *q, uint8_t *p),
                   uint32_t block_bytes, const float *src, const float *weight, uint8_t *dst, uint64_t n)
{
    for (uint64_t i = 0; i < n; i += 256, dst += block_bytes) {
        k_block b;
        int q[256];
        fit_block(f, src + i, weight != NULL ? weight + i : NULL, &b);
        for (int j = 0; j < 256; j++) q[j] = (int)b.q[j];
        pack(&b, q, dst);
    }
}

/*                 name  bytes   runs   q        scales   minima */
#define K_ENCODER(name, bytes, n_run, lo, hi, s_lo, s_hi, has_min)                                           \
    void imp_encode_##name(const float *src, const float *weight, void *dst, uint64_t n)                     \
    {                                                                                                        \
        static const k_format f = {n_run, 256 / (n_run), {lo, hi}, s_lo, s_hi, has_min};                     \
        encode(&f, pack_##name, bytes, src, weight, dst, n);                                                 \
    }
K_ENCODER(q2_k, 84, 16, 0, 3, 0, 15, true)
K_ENCODER(q3_k, 110, 16, -4, 3, -32, 31, false)
K_ENCODER(q4_k, 144, 8, 0, 15, 0, 63, true)
K_ENCODER(q5_k, 176, 8, 0, 31, 0, 63, true)
K_ENCODER(q6_k, 210, 16, -32, 31, -128, 127, false)
