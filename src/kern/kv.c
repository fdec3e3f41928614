/* kern/kv.c - the KV cache's tiles: what a KV head keeps of 64 positions, in each type.
 *
 * Place:   baseline code; dev/cpu writes and moves tiles with it, the attention kernels read them.
 * Idea:    keys lie dimension by dimension so that a vector lane is a key and a score needs no sum across lanes; values
 *          lie key by key. Four int8 dimensions of a key are one 32-bit word, as the dot product instructions want them.
 *          4-bit keys are rotated first (a normalised Hadamard transform, which queries get too: q . k stays), so that a
 *          few large channels do not take the 16 steps from the others.
 * Layout:  keys   f32, f16  [head_dim][64]
 *                 q8_0      u8 [head_dim/4][64][4], k + 128; f16 scale [head_dim/32][64]
 *                 q4_0      u8 [head_dim/8][64][4]: dimension 8g + t low, 8g + 4 + t high, k + 8; f16 [head_dim/32][64]
 *          values f32, f16  [64][head_dim]
 *                 q8_0      i8 [64][head_dim]; f16 scale [64][head_dim/32]
 *          Each takes the bytes of the same rows in a file's blocks.
 * Source:  the rotation: Ashkboos et al. 2024 (QuaRot). */
#include "kern/kv.h"

#include <math.h>

enum { T = IMP_ATTN_TILE, ROW_MAX = 256 }; /* a row is encoded in pieces of at most ROW_MAX */

bool imp_kv_type_from_name(const char *name, imp_dtype *kv)
{
    *kv = strcmp(name, "q4") == 0 ? IMP_Q4_0 : imp_dtype_from_name(name);
    return imp_kv_fits(*kv, 32) && strcmp(name, "q4_0") != 0;
}

imp_dtype imp_kv_part_type(imp_dtype kv, imp_kv_part part)
{
    return kv == IMP_Q4_0 && part == IMP_KV_VALUE ? IMP_Q8_0 : kv;
}

bool imp_kv_fits(imp_dtype kv, uint32_t head_dim)
{
    return kv == IMP_F32 || kv == IMP_F16 || ((kv == IMP_Q8_0 || kv == IMP_Q4_0) && head_dim % 32 == 0);
}

uint64_t imp_kv_tile_bytes(imp_dtype kv, imp_kv_part part, uint32_t head_dim)
{
    const imp_dtype_info *t = imp_dtype_get(imp_kv_part_type(kv, part));
    return (uint64_t)T * head_dim / t->block_elem * t->block_bytes;
}

/* Dimensions that are rotated together: the largest power of two that divides head_dim, at most ROW_MAX. */
static uint32_t rotated_together(uint32_t head_dim)
{
    uint32_t n = head_dim & ~(head_dim - 1);
    return n > ROW_MAX ? ROW_MAX : n;
}

void imp_kv_rotate(float *y, const float *x, uint32_t head_dim)
{
    uint32_t n = rotated_together(head_dim);
    float norm = 1.0f / sqrtf((float)n);
    memmove(y, x, head_dim * sizeof *y);
    for (float *p = y; p < y + head_dim; p += n) {
        for (uint32_t h = 1; h < n; h *= 2) {
            for (uint32_t i = 0; i < n; i += 2 * h) {
                for (uint32_t k = i; k < i + h; k++) {
                    float a = p[k], b = p[k + h];
                    p[k] = a + b;
                    p[k + h] = a - b;
                }
            }
        }
        for (uint32_t i = 0; i < n; i++) p[i] *= norm;
    }
}

/* ---- a block of 32 ------------------------------------------------------------------------------ */

/* The element of largest magnitude, with its sign; NaN when there is one. */
static float peak_of(const float *x)
{
    float peak = 0;
    for (int i = 0; i < 32; i++) {
        if (isnan(x[i])) return x[i];
        if (fabsf(x[i]) > fabsf(peak)) peak = x[i];
    }
    return peak;
}

/* Nearest whole number (ties to even) of x * inv within lo..hi; lo when it is none. */
static int to_step(float x, float inv, int lo, int hi)
{
    float f = x * inv;
    if (!(f > (float)lo)) return lo;
    return f < (float)hi ? (int)lrintf(f) : hi;
}

/* The scale that puts `peak` at step `at`, as f16; *inv: its inverse, 0 where all steps are 0. */
static uint16_t scale_of(float peak, float at, float *inv)
{
    uint16_t h = imp_f32_to_f16(peak / at);
    float d = imp_f16_to_f32(h);
    *inv = d == 0 || !isfinite(d) ? 0 : 1.0f / d;
    return h;
}

/* x ~ d * q, q in -127..127. */
static uint16_t block_q8(int8_t *q, const float *x)
{
    float inv;
    uint16_t d = scale_of(fabsf(peak_of(x)), 127, &inv);
    for (int i = 0; i < 32; i++) q[i] = (int8_t)(inv == 0 ? 0 : to_step(x[i], inv, -127, 127));
    return d;
}

/* x ~ d * (q - 8), q in 0..15: the largest element becomes -8, whatever its sign. */
static uint16_t block_q4(uint8_t *q, const float *x)
{
    float inv;
    uint16_t d = scale_of(peak_of(x), -8, &inv);
    for (int i = 0; i < 32; i++) q[i] = (uint8_t)(8 + (inv == 0 ? 0 : to_step(x[i], inv, -8, 7)));
    return d;
}

/* ---- writing ------------------------------------------------------------------------------------- */

static void put_f32(float *tile, const float *x, uint32_t head_dim, uint32_t slot)
{
    for (uint32_t i = 0; i < head_dim; i++) tile[(size_t)i * T + slot] = x[i];
}

static void put_f16(const imp_vec *vec, uint16_t *tile, const float *x, uint32_t head_dim, uint32_t slot)
{
    uint16_t h[ROW_MAX];
    for (uint32_t at = 0; at < head_dim; at += ROW_MAX) {
        uint32_t n = IMP_MIN(head_dim - at, (uint32_t)ROW_MAX);
        vec->f32_to_f16(h, x + at, n);
        for (uint32_t i = 0; i < n; i++) tile[(size_t)(at + i) * T + slot] = h[i];
    }
}

/* Words of four bytes, from word `at` of the key on. */
static void put_words(uint8_t *tile, const uint8_t *b, uint32_t n_word, uint32_t at, uint32_t slot)
{
    for (uint32_t i = 0; i < n_word; i++) memcpy(tile + ((size_t)(at + i) * T + slot) * 4, b + 4 * i, 4);
}

static void set_q8_key(uint8_t *tile, uint32_t head_dim, uint32_t slot, uint32_t b, const int8_t *q,
                       uint16_t d)
{
    uint8_t u[32];
    for (int i = 0; i < 32; i++) u[i] = (uint8_t)(q[i] + 128);
    put_words(tile, u, 8, 8 * b, slot);
    memcpy(tile + (size_t)T * head_dim + ((size_t)b * T + slot) * 2, &d, 2);
}

static void set_q4_key(uint8_t *tile, uint32_t head_dim, uint32_t slot, uint32_t b, const uint8_t *q,
                       uint16_t d)
{
    uint8_t u[16];
    for (int i = 0; i < 16; i++) u[i] = (uint8_t)(q[i / 4 * 8 + i % 4] | q[i / 4 * 8 + 4 + i % 4] << 4);
    put_words(tile, u, 4, 4 * b, slot);
    memcpy(tile + (size_t)T * head_dim / 2 + ((size_t)b * T + slot) * 2, &d, 2);
}

static void set_q8_value(uint8_t *tile, uint32_t head_dim, uint32_t slot, uint32_t b, const int8_t *q,
                         uint16_t d)
{
    memcpy(tile + (size_t)slot * head_dim + 32 * b, q, 32);
    memcpy(tile + (size_t)T * head_dim + ((size_t)slot * (head_dim / 32) + b) * 2, &d, 2);
}

static void put_q4_key(uint8_t *tile, const float *x, uint32_t head_dim, uint32_t slot)
{
    uint32_t n = rotated_together(head_dim);
    float y[ROW_MAX];
    uint8_t q[32];
    for (uint32_t at = 0; at < head_dim; at += n) {
        imp_kv_rotate(y, x + at, n);
        for (uint32_t i = 0; i < n; i += 32) {
            uint16_t d = block_q4(q, y + i);
            set_q4_key(tile, head_dim, slot, (at + i) / 32, q, d);
        }
    }
}

static void put_q8(uint8_t *tile, imp_kv_part part, const float *x, uint32_t head_dim, uint32_t slot)
{
    int8_t q[32];
    for (uint32_t b = 0; b < head_dim / 32; b++) {
        uint16_t d = block_q8(q, x + 32 * b);
        (part == IMP_KV_KEY ? set_q8_key : set_q8_value)(tile, head_dim, slot, b, q, d);
    }
}

void imp_kv_put(const imp_vec *vec, imp_dtype kv, imp_kv_part part, void *tile, uint32_t head_dim,
                uint32_t slot, const float *x)
{
    size_t at = (size_t)slot * head_dim;
    switch (imp_kv_part_type(kv, part)) {
    case IMP_Q4_0: put_q4_key(tile, x, head_dim, slot); break;
    case IMP_Q8_0: put_q8(tile, part, x, head_dim, slot); break;
    case IMP_F16:
        if (part == IMP_KV_KEY)
            put_f16(vec, tile, x, head_dim, slot);
        else
            vec->f32_to_f16((uint16_t *)tile + at, x, head_dim);
        break;
    default:
        if (part == IMP_KV_KEY)
            put_f32(tile, x, head_dim, slot);
        else
            memcpy((float *)tile + at, x, head_dim * sizeof *x);
    }
}

/* ---- rows: the layout that all devices share ----------------------------------------------------- */

/* Plain keys: [64][head_dim] rows against the tile's [head_dim][64]. */
static void turn_plain(uint8_t *to, const uint8_t *from, uint32_t n_row, uint32_t n_col, uint32_t bytes)
{
    for (uint32_t r = 0; r < n_row; r++)
        for (uint32_t c = 0; c < n_col; c++)
            memcpy(to + ((size_t)c * n_row + r) * bytes, from + ((size_t)r * n_col + c) * bytes, bytes);
}

float imp_kv_element(imp_dtype kv, imp_kv_part part, uint32_t head_dim, const void *tile, uint32_t slot,
                     uint32_t d)
{
    imp_dtype t = imp_kv_part_type(kv, part);
    bool key = part == IMP_KV_KEY;
    size_t at = key ? (size_t)d * T + slot : (size_t)slot * head_dim + d;
    if (t == IMP_F32) return ((const float *)tile)[at];
    if (t == IMP_F16) return imp_f16_to_f32(((const uint16_t *)tile)[at]);
    const uint8_t *u = tile;
    uint16_t h;
    size_t block = key ? (size_t)(d / 32) * T + slot : (size_t)slot * (head_dim / 32) + d / 32;
    memcpy(&h, u + (size_t)T * head_dim / (t == IMP_Q4_0 ? 2 : 1) + 2 * block, 2);
    int q;
    if (t == IMP_Q4_0) {
        int two = u[((size_t)(d / 8) * T + slot) * 4 + d % 4];
        q = (d % 8 < 4 ? two & 15 : two >> 4) - 8;
    } else if (key) {
        q = u[((size_t)(d / 4) * T + slot) * 4 + d % 4] - 128;
    } else {
        q = (int8_t)u[at];
    }
    return imp_f16_to_f32(h) * (float)q;
}

/* One block of a row as the file formats have it: f16 scale, then 32 int8 or 16 bytes of two nibbles (i and i + 16). */
static void block_out(const uint8_t *tile, imp_dtype t, imp_kv_part part, uint32_t head_dim, uint32_t slot,
                      uint32_t b, uint8_t *to)
{
    if (t == IMP_Q4_0) {
        memcpy(to, tile + (size_t)T * head_dim / 2 + ((size_t)b * T + slot) * 2, 2);
        uint8_t q[32];
        for (uint32_t i = 0; i < 32; i++) {
            uint8_t u = tile[((size_t)(4 * b + i / 8) * T + slot) * 4 + i % 4];
            q[i] = i % 8 < 4 ? u & 15 : u >> 4;
        }
        for (int i = 0; i < 16; i++) to[2 + i] = (uint8_t)(q[i] | q[i + 16] << 4);
    } else if (part == IMP_KV_KEY) {
        memcpy(to, tile + (size_t)T * head_dim + ((size_t)b * T + slot) * 2, 2);
        for (uint32_t i = 0; i < 32; i++)
            to[2 + i] = tile[((size_t)(8 * b + i / 4) * T + slot) * 4 + i % 4] ^ 0x80;
    } else {
        memcpy(to, tile + (size_t)T * head_dim + ((size_t)slot * (head_dim / 32) + b) * 2, 2);
        memcpy(to + 2, tile + (size_t)slot * head_dim + 32 * b, 32);
    }
}

static void block_in(uint8_t *tile, imp_dtype t, imp_kv_part part, uint32_t head_dim, uint32_t slot,
                     uint32_t b, const uint8_t *from)
{
    uint16_t d;
    memcpy(&d, from, 2);
    if (t == IMP_Q4_0) {
        uint8_t q[32];
        for (int i = 0; i < 16; i++) {
            q[i] = from[2 + i] & 15;
            q[i + 16] = from[2 + i] >> 4;
        }
        set_q4_key(tile, head_dim, slot, b, q, d);
    } else {
        int8_t q[32];
        memcpy(q, from + 2, 32);
        (part == IMP_KV_KEY ? set_q8_key : set_q8_value)(tile, head_dim, slot, b, q, d);
    }
}

/* Tile to rows (out) or back. */
static void move_tile(imp_dtype kv, imp_kv_part part, uint32_t head_dim, uint8_t *tile, uint8_t *rows,
                      bool out)
{
    imp_dtype t = imp_kv_part_type(kv, part);
    const imp_dtype_info *info = imp_dtype_get(t);
    uint64_t bytes = imp_kv_tile_bytes(kv, part, head_dim);
    if (info->block_elem == 1 && part == IMP_KV_VALUE) {
        memcpy(out ? rows : tile, out ? tile : rows, bytes);
    } else if (info->block_elem == 1) {
        if (out)
            turn_plain(rows, tile, head_dim, T, info->block_bytes);
        else
            turn_plain(tile, rows, T, head_dim, info->block_bytes);
    } else {
        for (uint32_t slot = 0; slot < T; slot++) {
            for (uint32_t b = 0; b < head_dim / 32; b++, rows += info->block_bytes) {
                if (out)
                    block_out(tile, t, part, head_dim, slot, b, rows);
                else
                    block_in(tile, t, part, head_dim, slot, b, rows);
            }
        }
    }
}

void imp_kv_to_rows(imp_dtype kv, imp_kv_part part, uint32_t head_dim, const void *tile, void *rows)
{
    move_tile(kv, part, head_dim, (uint8_t *)(uintptr_t)tile, rows, true);
}

void imp_kv_from_rows(imp_dtype kv, imp_kv_part part, uint32_t head_dim, void *tile, const void *rows)
{
    move_tile(kv, part, head_dim, tile, (uint8_t *)(uintptr_t)rows, false);
}
