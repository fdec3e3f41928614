/* dev/coreml/pack.c - weights into weight.bin in the form that was asked for. */
#include "dev/coreml/pack.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MIN_ELEM = 1024 }; /* smaller weights stay fp16 */

static const struct {
    uint32_t bits;
    imp_mil_dtype t;
} index_types[] = {{1, IMP_MIL_U1}, {2, IMP_MIL_U2}, {3, IMP_MIL_U3},
                   {4, IMP_MIL_U4}, {6, IMP_MIL_U6}, {8, IMP_MIL_U8}};

static imp_mil_dtype index_type(uint32_t bits)
{
    for (size_t i = 0; i < IMP_COUNT(index_types); i++)
        if (index_types[i].bits == bits) return index_types[i].t;
    return IMP_MIL_NONE;
}

bool imp_ml_packing_parse(const char *s, imp_ml_packing *out)
{
    char *end;
    *out = (imp_ml_packing){.kind = IMP_ML_HALF};
    if (strcmp(s, "fp16") == 0) return true;
    if (strcmp(s, "int8") == 0) return out->kind = IMP_ML_INT8, true;
    if (strncmp(s, "int4", 4) == 0) {
        out->kind = IMP_ML_INT4;
        if (s[4] == 0) return true;
        out->block = s[4] == 'b' ? (uint32_t)strtoul(s + 5, &end, 10) : 0;
        return s[4] == 'b' && *end == 0 && out->block >= 8 && out->block <= 1024;
    }
    if (strncmp(s, "lut", 3) != 0 || s[3] < '1' || s[3] > '8') return false;
    out->kind = IMP_ML_LUT;
    out->bits = (uint32_t)(s[3] - '0');
    out->group = 16;
    if (index_type(out->bits) == IMP_MIL_NONE) return false;
    if (s[4] == 0) return true;
    if (strcmp(s + 4, "t") == 0) return out->group = 0, true;
    out->group = s[4] == 'g' ? (uint32_t)strtoul(s + 5, &end, 10) : 0;
    return s[4] == 'g' && *end == 0 && out->group >= 1 && out->group <= 4096;
}

void imp_ml_packing_text(const imp_ml_packing *p, char out[16])
{
    if (p->kind == IMP_ML_HALF)
        snprintf(out, 16, "fp16");
    else if (p->kind == IMP_ML_INT8)
        snprintf(out, 16, "int8");
    else if (p->kind == IMP_ML_INT4)
        snprintf(out, 16, p->block > 0 ? "int4b%u" : "int4", p->block);
    else
        snprintf(out, 16, p->group > 0 ? "lut%ug%u" : "lut%ut", p->bits, p->group);
}

int32_t imp_ml_packing_spec(const imp_ml_packing *p)
{
    return p->kind == IMP_ML_INT4 || (p->kind == IMP_ML_LUT && p->group > 0) ? 9 : 7;
}

/* ---- a stream of small numbers ------------------------------------------------------------------------------- */

typedef struct bits {
    imp_mlwriter *w;
    uint32_t width, n; /* bits an element; bits waiting */
    uint32_t held;
    uint8_t out[4096];
    size_t n_out;
} bits;

static imp_status bits_flush(bits *b, imp_error *err)
{
    imp_status s = imp_mlwriter_data(b->w, b->out, b->n_out, err);
    b->n_out = 0;
    return s;
}

static imp_status bits_put(bits *b, uint32_t v, imp_error *err)
{
    b->held |= v << b->n;
    for (b->n += b->width; b->n >= 8; b->n -= 8) {
        b->out[b->n_out++] = (uint8_t)b->held;
        b->held >>= 8;
        if (b->n_out == sizeof b->out) IMP_TRY(bits_flush(b, err));
    }
    return IMP_OK;
}

static imp_status bits_end(bits *b, imp_error *err)
{
    if (b->n > 0) b->out[b->n_out++] = (uint8_t)b->held;
    b->n = 0;
    return bits_flush(b, err);
}

/* ---- one weight -------------------------------------------------------------------------------------------------- */

typedef struct job {
    imp_mlwriter *w;
    const imp_tensor *t;
    const float *col_weight;
    imp_ml_packed *p;
    imp_ml_kmeans *km;
    float *rows;   /* [group][k], owned */
    uint16_t *out; /* palettes or scales, owned */
    bits bits;
    imp_error *err;
} job;

static void row(job *j, uint64_t r, float *to)
{
    imp_tensor_row_f32(j->t, r, to);
    for (uint64_t c = 0; c < j->p->k; c++) {
        if (!(fabsf(to[c]) <= 65504)) {
            to[c] = isnan(to[c]) ? 0 : copysignf(65504, to[c]);
            j->p->n_clamped++;
        }
        j->p->sum2 += (double)to[c] * (double)to[c];
    }
}

static void note(job *j, float was, float is)
{
    double d = (double)was - (double)is;
    j->p->err2 += d * d;
}

static imp_status pack_half(job *j)
{
    imp_ml_packed *p = j->p;
    p->part[0] =
        (imp_mil_value){.type = {.dtype = IMP_MIL_F16, .rank = 4, .dim = {p->n, p->k, 1, 1}}, .blob = true};
    IMP_TRY(imp_mlwriter_blob(j->w, IMP_MIL_F16, p->n * p->k, &p->part[0].offset, j->err));
    for (uint64_t r = 0; r < p->n; r++) {
        row(j, r, j->rows);
        for (uint64_t c = 0; c < p->k; c++) {
            j->out[c] = imp_f32_to_f16(j->rows[c]);
            note(j, j->rows[c], imp_f16_to_f32(j->out[c]));
        }
        IMP_TRY(imp_mlwriter_data(j->w, j->out, p->k * 2, j->err));
    }
    return IMP_OK;
}

/* Decode `count` rows from `first` and find their palette; the rows are in j->rows when `hold`. */
static void learn(job *j, uint64_t first, uint64_t count, bool hold, float *center)
{
    imp_ml_kmeans_reset(j->km);
    for (uint64_t r = 0; r < count; r++) {
        float *to = j->rows + (hold ? r * j->p->k : 0);
        row(j, first + r, to);
        imp_ml_kmeans_add(j->km, to, j->col_weight, j->p->k);
    }
    (void)imp_ml_kmeans_solve(j->km, 1u << j->p->how.bits, center);
}

static imp_status put_row(job *j, const float *x, const float *center)
{
    for (uint64_t c = 0; c < j->p->k; c++) {
        uint32_t i = imp_ml_nearest(center, 1u << j->p->how.bits, x[c]);
        note(j, x[c], center[i]);
        IMP_TRY(bits_put(&j->bits, i, j->err));
    }
    return IMP_OK;
}

static imp_status pack_lut(job *j, int32_t spec)
{
    imp_ml_packed *p = j->p;
    uint64_t group = p->how.group > 0 ? p->how.group : p->n, n_group = p->n / group,
             per = 1ull << p->how.bits;
    float center[256];
    imp_mil_dtype t = index_type(p->how.bits);
    j->bits.width = p->how.bits;
    IMP_TRY(imp_mlwriter_blob(j->w, spec >= 9 ? t : IMP_MIL_U8,
                              spec >= 9 ? p->n * p->k : (p->n * p->k * p->how.bits + 7) / 8,
                              &p->part[0].offset, j->err));
    for (uint64_t g = 0; g < n_group; g++) {
        bool hold = p->how.group > 0;
        learn(j, g * group, group, hold, center);
        for (uint64_t i = 0; i < per; i++) j->out[g * per + i] = imp_f32_to_f16(center[i]);
        for (uint64_t r = 0; r < group; r++) {
            if (!hold) imp_tensor_row_f32(j->t, r, j->rows);
            IMP_TRY(put_row(j, j->rows + (hold ? r * p->k : 0), center));
        }
    }
    IMP_TRY(bits_end(&j->bits, j->err));
    IMP_TRY(imp_mlwriter_blob(j->w, IMP_MIL_F16, n_group * per, &p->part[1].offset, j->err));
    IMP_TRY(imp_mlwriter_data(j->w, j->out, n_group * per * 2, j->err));
    p->part[0].blob = p->part[1].blob = true;
    if (spec >= 9) {
        p->part[0].type = (imp_mil_type){.dtype = t, .rank = 4, .dim = {p->n, p->k, 1, 1}};
        p->part[1].type = (imp_mil_type){.dtype = IMP_MIL_F16, .rank = 6, .dim = {n_group, 1, 1, 1, per, 1}};
    } else {
        p->part[0].type =
            (imp_mil_type){.dtype = IMP_MIL_U8, .rank = 1, .dim = {(p->n * p->k * p->how.bits + 7) / 8}};
        p->part[1].type = (imp_mil_type){.dtype = IMP_MIL_F16, .rank = 1, .dim = {per}};
    }
    return IMP_OK;
}

/* The scale that loses least for one block: the largest magnitude over `top`, or somewhat less. */
static float best_scale(const float *x, uint64_t n, int top)
{
    float max = 0, best = 0;
    double least = INFINITY;
    for (uint64_t i = 0; i < n; i++) max = fmaxf(max, fabsf(x[i]));
    if (!(max > 0)) return 1;
    for (int shrink = 0; shrink < 8; shrink++) {
        float s = imp_f16_to_f32(imp_f32_to_f16(max * (1 - 0.05f * (float)shrink) / (float)top));
        double e = 0;
        if (!(s > 0)) s = 0x1p-24f;
        for (uint64_t i = 0; i < n; i++) {
            double q = fmax(-top - 1, fmin(top, nearbyint((double)x[i] / (double)s))),
                   d = (double)x[i] - q * (double)s;
            e += d * d;
        }
        if (e < least) least = e, best = s;
    }
    return best;
}

static imp_status pack_int(job *j, int top)
{
    imp_ml_packed *p = j->p;
    uint64_t block = p->how.block > 0 ? p->how.block : p->k, per_row = p->k / block;
    imp_mil_dtype t = top == 7 ? IMP_MIL_I4 : IMP_MIL_I8;
    uint32_t mask = top == 7 ? 15 : 255;
    j->bits.width = top == 7 ? 4 : 8;
    IMP_TRY(imp_mlwriter_blob(j->w, t, p->n * p->k, &p->part[0].offset, j->err));
    for (uint64_t r = 0; r < p->n; r++) {
        row(j, r, j->rows);
        for (uint64_t g = 0; g < per_row; g++) {
            float s = best_scale(j->rows + g * block, block, top);
            j->out[r * per_row + g] = imp_f32_to_f16(s);
            for (uint64_t c = g * block; c < (g + 1) * block; c++) {
                double q = fmax(-top - 1, fmin(top, nearbyint((double)j->rows[c] / (double)s)));
                note(j, j->rows[c], (float)(q * (double)s));
                IMP_TRY(bits_put(&j->bits, (uint32_t)(int32_t)q & mask, j->err));
            }
        }
    }
    IMP_TRY(bits_end(&j->bits, j->err));
    IMP_TRY(imp_mlwriter_blob(j->w, IMP_MIL_F16, p->n * per_row, &p->part[1].offset, j->err));
    IMP_TRY(imp_mlwriter_data(j->w, j->out, p->n * per_row * 2, j->err));
    p->part[0] = (imp_mil_value){.type = {.dtype = t, .rank = 4, .dim = {p->n, p->k, 1, 1}},
                                 .blob = true,
                                 .offset = p->part[0].offset};
    p->part[1].blob = true;
    p->part[1].type = top == 7 ? (imp_mil_type){.dtype = IMP_MIL_F16, .rank = 4, .dim = {p->n, per_row, 1, 1}}
                               : (imp_mil_type){.dtype = IMP_MIL_F16, .rank = 1, .dim = {p->n}};
    return IMP_OK;
}

/* What the weight's size allows of what was asked for. */
static imp_ml_packing fitting(const imp_ml_packing *how, uint64_t n, uint64_t k)
{
    imp_ml_packing p = *how;
    if (n * k < MIN_ELEM) return (imp_ml_packing){.kind = IMP_ML_HALF};
    while (p.kind == IMP_ML_LUT && p.group > 1 && n % p.group != 0) p.group--;
    if (p.kind == IMP_ML_INT4 && p.block > 0 && k % p.block != 0) p.block = 0;
    return p;
}

imp_status imp_ml_pack(imp_mlwriter *w, const imp_tensor *t, const imp_ml_packing *how, int32_t spec,
                       const float *col_weight, imp_ml_packed *out, imp_error *err)
{
    *out = (imp_ml_packed){.n = imp_tensor_n_row(t), .k = imp_tensor_n_col(t)};
    out->how = fitting(how, out->n, out->k);
    uint64_t rows = out->how.kind == IMP_ML_LUT && out->how.group > 0 ? out->how.group : 1;
    uint64_t n_group = out->how.kind == IMP_ML_LUT && out->how.group > 0 ? out->n / out->how.group : 1;
    uint64_t scales = out->how.block > 0 ? out->n * (out->k / out->how.block) : out->n;
    uint64_t n_out = IMP_MAX(IMP_MAX(out->k, scales), n_group << out->how.bits);
    job j = {.w = w, .t = t, .col_weight = col_weight, .p = out, .bits = {.w = w}, .err = err};
    j.rows = imp_sys_malloc((size_t)(rows * out->k) * sizeof *j.rows);
    j.out = imp_sys_malloc((size_t)n_out * sizeof *j.out);
    j.km = out->how.kind == IMP_ML_LUT ? imp_ml_kmeans_new() : NULL;
    imp_status s = j.rows != NULL && j.out != NULL && (j.km != NULL || out->how.kind != IMP_ML_LUT)
                       ? IMP_OK
                       : imp_fail(err, IMP_NOMEM, "out of memory while packing a weight");
    if (s == IMP_OK) {
        switch (out->how.kind) {
        case IMP_ML_HALF: s = pack_half(&j); break;
        case IMP_ML_LUT: s = pack_lut(&j, spec); break;
        case IMP_ML_INT8: s = pack_int(&j, 127); break;
        case IMP_ML_INT4: s = pack_int(&j, 7); break;
        }
    }
    imp_sys_free(j.rows);
    imp_sys_free(j.out);
    imp_ml_kmeans_free(j.km);
    for (int i = 0; i < 2 && s == IMP_OK; i++)
        if (out->part[i].blob) out->bytes += imp_mil_bytes(&out->part[i].type);
    return s;
}
