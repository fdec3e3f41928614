/* dev/coreml/pack.c - matrices to palettes and whole numbers, and into weight.bin. */
#include "dev/coreml/pack.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "dev/coreml/feed.h"
#include "kern/kern.h"

enum { MIN_ELEM = 1024, /* smaller weights stay fp16 */ SLAB = 1 << 22 /* numbers decoded at a time */ };
#define DAMP 0.01f

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
    if (strcmp(s, "w8a8") == 0) return out->kind = IMP_ML_INT8, out->int8_inputs = true, true;
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
        snprintf(out, 16, p->int8_inputs ? "w8a8" : "int8");
    else if (p->kind == IMP_ML_INT4)
        snprintf(out, 16, p->block > 0 ? "int4b%u" : "int4", p->block);
    else
        snprintf(out, 16, p->group > 0 ? "lut%ug%u" : "lut%ut", p->bits, p->group);
}

int32_t imp_ml_packing_spec(const imp_ml_packing *p)
{
    if (p->int8_inputs) return 8;
    return p->kind == IMP_ML_INT4 || (p->kind == IMP_ML_LUT && p->group > 0) ? 9 : 7;
}

/* ---- coding ---------------------------------------------------------------------------------------------------- */

/* One matrix being coded, a slab of rows at a time. */
typedef struct coder {
    const imp_ml_code_job *job;
    imp_ml_coded *out;
    ml_feed feed; /* k 0: no feedback */
    ml_gemm_buf gemm;
    imp_ml_kmeans **km;   /* [n_thread], palettes only; owned */
    double (*sum)[3];     /* [n_thread]: w^2, (w - w')^2, clamped; owned */
    float *slab, *was;    /* [rows][k]: becomes what the code means; as it was (fed back only); owned */
    uint8_t *index;       /* [rows][k] codes of the slab, owned */
    float *center;        /* [2^bits] of each palette, or scales, of the whole matrix; owned */
    const float *col;     /* [k] what an error costs, NULL: all alike */
    uint64_t first, rows; /* of the slab */
    uint64_t next;        /* share to be claimed */
    uint64_t n_bit;       /* bits written */
} coder;

static uint32_t n_thread_of(const coder *c)
{
    return c->job->pool != NULL ? imp_pool_n_thread(c->job->pool) : 1;
}

static void on_all(coder *c, imp_pool_fn fn)
{
    c->next = 0;
    if (c->job->pool != NULL)
        imp_pool_run(c->job->pool, fn, c);
    else
        fn(c, 0, 1);
}

static uint64_t claim(coder *c)
{
    return __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED);
}

static uint32_t per_palette(const coder *c)
{
    return 1u << c->out->how.bits;
}

/* Rows of the slab that one palette serves. */
static uint64_t group_rows(const coder *c)
{
    return c->out->how.group > 0 ? c->out->how.group : c->rows;
}

static const float *palette_of(const coder *c, uint64_t row)
{
    uint64_t g = c->out->how.group > 0 ? (c->first + row) / c->out->how.group : 0;
    return c->center + g * per_palette(c);
}

/* What fp16 cannot hold is cut off and counted; the sum of squares. */
static double cut_off(float *x, uint64_t n, double *n_cut)
{
    double sum = 0;
    for (uint64_t i = 0; i < n; i++) {
        if (!(fabsf(x[i]) <= 65504)) {
            x[i] = isnan(x[i]) ? 0 : copysignf(65504, x[i]);
            ++*n_cut;
        }
        sum += (double)x[i] * (double)x[i];
    }
    return sum;
}

/* Decode rows; whatever fp16 cannot hold is cut off. */
static void decode_rows(void *ctx, uint32_t ith, uint32_t n_thread)
{
    coder *c = ctx;
    const imp_vec *v = imp_vec_get();
    uint64_t k = c->out->k;
    (void)n_thread;
    for (uint64_t r; (r = claim(c)) < c->rows;) {
        float *x = c->slab + r * k;
        if (c->job->values != NULL)
            memcpy(x, c->job->values + (c->first + r) * k, (size_t)k * sizeof *x);
        else
            imp_tensor_row_f32(c->job->t, c->job->row0 + c->first + r, x);
        double sum = (double)v->dot(x, x, (size_t)k);
        if (!(sum < 4e9)) sum = cut_off(x, k, &c->sum[ith][2]); /* else no number is beyond 65504 */
        c->sum[ith][0] += sum;
    }
}

static void learn_palettes(void *ctx, uint32_t ith, uint32_t n_thread)
{
    coder *c = ctx;
    uint64_t k = c->out->k, group = group_rows(c);
    (void)n_thread;
    for (uint64_t g; (g = claim(c)) < c->rows / group;) {
        imp_ml_kmeans_reset(c->km[ith]);
        for (uint64_t r = g * group; r < (g + 1) * group; r++)
            imp_ml_kmeans_add(c->km[ith], c->slab + r * k, c->col, k);
        (void)imp_ml_kmeans_solve(c->km[ith], per_palette(c), (float *)(uintptr_t)palette_of(c, g * group));
    }
}

static int top_of(const imp_ml_packing *p)
{
    return p->kind == IMP_ML_INT4 ? 7 : 127;
}

static float whole(float x, float scale, int top)
{
    return fmaxf((float)(-top - 1), fminf((float)top, nearbyintf(x / scale)));
}

/* The scale that loses least for n numbers: the largest magnitude over `top`, or less. */
static float best_scale(const float *x, const float *weight, uint64_t n, int top)
{
    enum { TRIES = 24 };
    float max = 0, best = 0;
    double least = INFINITY;
    for (uint64_t i = 0; i < n; i++) max = fmaxf(max, fabsf(x[i]));
    if (!(max > 0)) return 1;
    for (int t = 0; t < TRIES; t++) {
        float s = imp_f16_to_f32(imp_f32_to_f16(max * (1 - 0.02f * (float)t) / (float)top));
        double e = 0;
        if (!(s > 0)) s = 0x1p-24f;
        for (uint64_t i = 0; i < n; i++) {
            float d = x[i] - whole(x[i], s, top) * s;
            e += (double)(d * d * (weight != NULL ? weight[i] : 1));
        }
        if (e < least) least = e, best = s;
    }
    return best;
}

static uint64_t blocks_of(const imp_ml_coded *o)
{
    return o->how.block > 0 ? o->k / o->how.block : 1;
}

static void learn_scales(void *ctx, uint32_t ith, uint32_t n_thread)
{
    coder *c = ctx;
    uint64_t per = blocks_of(c->out), block = c->out->k / per;
    (void)ith, (void)n_thread;
    for (uint64_t r; (r = claim(c)) < c->rows;)
        for (uint64_t b = 0; b < per; b++)
            c->center[(c->first + r) * per + b] =
                best_scale(c->slab + r * c->out->k + b * block, c->col != NULL ? c->col + b * block : NULL,
                           block, top_of(&c->out->how));
}

/* The number that stands for t; its code goes to the slab's codes. */
static float nearest(void *ctx, uint64_t row, uint64_t col, float t)
{
    coder *c = ctx;
    const imp_ml_coded *o = c->out;
    uint8_t *code = &c->index[row * o->k + col];
    if (o->how.kind == IMP_ML_LUT) {
        const float *p = palette_of(c, row);
        *code = (uint8_t)imp_ml_nearest(p, per_palette(c), t);
        return p[*code];
    }
    uint64_t per = blocks_of(o);
    float s = c->center[(c->first + row) * per + col / (o->k / per)], q = whole(t, s, top_of(&o->how));
    *code = (uint8_t)(int8_t)q & (o->how.kind == IMP_ML_INT4 ? 15 : 255);
    return q * s;
}

static void round_plain(void *ctx, uint32_t ith, uint32_t n_thread)
{
    coder *c = ctx;
    uint64_t k = c->out->k;
    (void)n_thread;
    for (uint64_t r; (r = claim(c)) < c->rows;) {
        float *x = c->slab + r * k;
        double e = 0;
        for (uint64_t i = 0; i < k; i++) {
            float q = nearest(c, r, i, x[i]), d = x[i] - q;
            e += (double)(d * d);
            x[i] = q;
        }
        c->sum[ith][1] += e;
    }
}

static void round_half(void *ctx, uint32_t ith, uint32_t n_thread)
{
    coder *c = ctx;
    const imp_vec *v = imp_vec_get();
    uint64_t k = c->out->k;
    (void)ith, (void)n_thread;
    for (uint64_t r; (r = claim(c)) < c->rows;) {
        uint16_t *h = (uint16_t *)(void *)c->out->code + (c->first + r) * k;
        v->f32_to_f16(h, c->slab + r * k, k);
        if (c->job->values != NULL) v->f16_to_f32(c->slab + r * k, h, k);
    }
}

/* Round the slab; with feedback, note what that does to the output. */
static bool round_slab(coder *c)
{
    const imp_ml_input *in = c->job->input;
    uint64_t n = c->rows * c->out->k;
    double now;
    if (c->feed.k == 0) return on_all(c, round_plain), true;
    memcpy(c->was, c->slab, (size_t)n * sizeof *c->was);
    if (!ml_output_energy(in, &c->gemm, c->job->pool, c->was, c->rows, true, &now)) return false;
    c->out->out_var2 += now;
    if (!ml_feed_round(&c->feed, &c->gemm, c->job->pool, c->slab, c->rows, nearest, c)) return false;
    for (uint64_t i = 0; i < n; i++) {
        c->was[i] -= c->slab[i];
        c->sum[0][1] += (double)(c->was[i] * c->was[i]);
    }
    if (!ml_output_energy(in, &c->gemm, c->job->pool, c->was, c->rows, false, &now)) return false;
    c->out->out_err2 += now;
    return true;
}

/* The slab's codes behind those that are there. */
static void put_codes(coder *c)
{
    uint32_t width = c->out->how.kind == IMP_ML_INT4   ? 4
                     : c->out->how.kind == IMP_ML_INT8 ? 8
                                                       : c->out->how.bits;
    uint64_t n = c->rows * c->out->k;
    uint8_t *to = c->out->code + c->n_bit / 8;
    if (width == 8) {
        memcpy(to, c->index, (size_t)n);
    } else {
        uint64_t held = 0;
        uint32_t have = (uint32_t)(c->n_bit % 8);
        if (have > 0) held = *to;
        for (uint64_t i = 0; i < n; i++) {
            held |= (uint64_t)c->index[i] << have;
            for (have += width; have >= 8; have -= 8, held >>= 8) *to++ = (uint8_t)held;
        }
        if (have > 0) *to = (uint8_t)held;
    }
    c->n_bit += n * width;
}

static bool code_slab(coder *c)
{
    const imp_ml_packing *how = &c->out->how;
    const imp_tensor *t = c->job->t;
    uint64_t row = imp_tensor_row_bytes(t);
    on_all(c, decode_rows);
    if (c->job->values == NULL)
        imp_sys_file_forget((const uint8_t *)t->data + (c->job->row0 + c->first) * row,
                            (size_t)(c->rows * row));
    if (how->kind == IMP_ML_HALF) {
        on_all(c, round_half);
    } else {
        if (how->kind != IMP_ML_LUT)
            on_all(c, learn_scales);
        else if (how->group > 0)
            on_all(c, learn_palettes);
        if (!round_slab(c)) return false;
        put_codes(c);
    }
    if (c->job->values != NULL)
        memcpy(c->job->values + c->first * c->out->k, c->slab,
               (size_t)(c->rows * c->out->k) * sizeof *c->slab);
    return true;
}

/* One palette for the whole matrix: all of it is looked at first. */
static void learn_one_palette(coder *c, uint64_t step)
{
    imp_ml_kmeans_reset(c->km[0]);
    for (c->first = 0; c->first < c->out->n; c->first += c->rows) {
        c->rows = IMP_MIN(step, c->out->n - c->first);
        on_all(c, decode_rows);
        for (uint64_t r = 0; r < c->rows; r++)
            imp_ml_kmeans_add(c->km[0], c->slab + r * c->out->k, c->col, c->out->k);
    }
    (void)imp_ml_kmeans_solve(c->km[0], per_palette(c), c->center);
    for (uint32_t i = 0; i < n_thread_of(c); i++) memset(c->sum[i], 0, sizeof c->sum[i]);
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

static uint64_t table_size(const imp_ml_coded *o)
{
    if (o->how.kind == IMP_ML_HALF) return 0;
    if (o->how.kind == IMP_ML_LUT) return (o->how.group > 0 ? o->n / o->how.group : 1) << o->how.bits;
    return o->n * blocks_of(o);
}

static uint64_t code_bytes(const imp_ml_coded *o)
{
    uint64_t bits = o->how.kind == IMP_ML_HALF   ? 16
                    : o->how.kind == IMP_ML_INT8 ? 8
                    : o->how.kind == IMP_ML_INT4 ? 4
                                                 : o->how.bits;
    return (o->n * o->k * bits + 7) / 8;
}

/* Rows a slab: whole groups, and all rows when errors are fed back through them anyway. */
static uint64_t slab_rows(const imp_ml_coded *o)
{
    uint64_t group = o->how.kind == IMP_ML_LUT && o->how.group > 0 ? o->how.group : 1;
    uint64_t rows = IMP_MAX((uint64_t)SLAB / IMP_MAX(o->k, 1) / group * group, group);
    return IMP_MIN(rows, o->n);
}

static bool make_room(coder *c, uint64_t rows)
{
    imp_ml_coded *o = c->out;
    uint64_t n = rows * o->k;
    uint32_t n_thread = n_thread_of(c);
    bool lut = o->how.kind == IMP_ML_LUT, fed = c->feed.k > 0;
    o->n_code = code_bytes(o);
    o->n_table = table_size(o);
    o->code = imp_sys_malloc((size_t)o->n_code + 1);
    o->table = imp_sys_malloc((size_t)o->n_table * sizeof *o->table);
    c->center = imp_sys_malloc((size_t)o->n_table * sizeof *c->center);
    c->slab = imp_sys_malloc((size_t)n * sizeof *c->slab);
    c->was = fed ? imp_sys_malloc((size_t)n * sizeof *c->was) : NULL;
    c->index = imp_sys_malloc((size_t)n);
    c->sum = imp_sys_calloc(n_thread, sizeof *c->sum);
    c->km = imp_sys_calloc(n_thread, sizeof *c->km);
    bool ok = o->code != NULL && o->table != NULL && c->center != NULL && c->slab != NULL &&
              c->index != NULL && c->sum != NULL && c->km != NULL && (!fed || c->was != NULL);
    for (uint32_t i = 0; ok && lut && i < n_thread; i++) ok = (c->km[i] = imp_ml_kmeans_new()) != NULL;
    return ok;
}

static void close_coder(coder *c)
{
    for (uint32_t i = 0; c->km != NULL && i < n_thread_of(c); i++) imp_ml_kmeans_free(c->km[i]);
    ml_feed_deinit(&c->feed);
    ml_gemm_buf_deinit(&c->gemm);
    imp_sys_free(c->km);
    imp_sys_free(c->sum);
    imp_sys_free(c->slab);
    imp_sys_free(c->was);
    imp_sys_free(c->index);
    imp_sys_free(c->center);
}

imp_status imp_ml_code(const imp_ml_code_job *job, imp_ml_coded *o, imp_error *err)
{
    const imp_ml_input *in = job->input;
    *o = (imp_ml_coded){.n = job->n_row, .k = imp_tensor_n_col(job->t)};
    o->how = fitting(&job->how, o->n, o->k);
    coder c = {.job = job, .out = o, .col = in != NULL ? in->mean2 : NULL};
    uint64_t step = slab_rows(o);
    bool ok = true;
    if (in != NULL && in->moment != NULL && o->how.kind != IMP_ML_HALF) {
        ok = ml_feed_new(in, DAMP, &c.feed);
        c.col = c.feed.weight;
    }
    ok = ok && make_room(&c, step);
    if (ok && o->how.kind == IMP_ML_LUT && o->how.group == 0) learn_one_palette(&c, step);
    for (c.first = 0; ok && c.first < o->n; c.first += c.rows) {
        c.rows = IMP_MIN(step, o->n - c.first);
        ok = code_slab(&c);
    }
    for (uint32_t i = 0; ok && i < n_thread_of(&c); i++) {
        o->sum2 += c.sum[i][0];
        o->err2 += c.sum[i][1];
        o->n_clamped += (uint64_t)c.sum[i][2];
    }
    for (uint64_t i = 0; ok && i < o->n_table; i++) o->table[i] = imp_f32_to_f16(c.center[i]);
    close_coder(&c);
    if (!ok) imp_ml_coded_deinit(o);
    return ok ? IMP_OK : imp_fail(err, IMP_NOMEM, "out of memory while compressing a weight");
}

void imp_ml_coded_deinit(imp_ml_coded *c)
{
    imp_sys_free(c->code);
    imp_sys_free(c->table);
    *c = (imp_ml_coded){0};
}

/* ---- into weight.bin -------------------------------------------------------------------------------------------- */

static imp_status put(imp_mlwriter *w, imp_mil_type t, const void *data, imp_mil_value *v, imp_error *err)
{
    *v = (imp_mil_value){.type = t, .blob = true};
    IMP_TRY(imp_mlwriter_blob(w, t.dtype, imp_mil_n_elem(&t), &v->offset, err));
    return imp_mlwriter_data(w, data, imp_mil_bytes(&t), err);
}

static imp_mil_type vector_type(imp_mil_dtype t, uint64_t n)
{
    return (imp_mil_type){.dtype = t, .rank = 1, .dim = {n}};
}

imp_status imp_ml_pack(imp_mlwriter *w, const imp_ml_coded *c, int32_t spec, imp_ml_packed *p, imp_error *err)
{
    const imp_ml_packing *how = &c->how;
    imp_mil_type codes = {.rank = 4, .dim = {c->n, c->k, 1, 1}}, table = vector_type(IMP_MIL_F16, c->n_table);
    *p = (imp_ml_packed){.how = *how, .n = c->n, .k = c->k};
    switch (how->kind) {
    case IMP_ML_HALF: codes.dtype = IMP_MIL_F16; break;
    case IMP_ML_INT8: codes.dtype = IMP_MIL_I8; break;
    case IMP_ML_INT4:
        codes.dtype = IMP_MIL_I4;
        table = (imp_mil_type){.dtype = IMP_MIL_F16, .rank = 4, .dim = {c->n, blocks_of(c), 1, 1}};
        break;
    case IMP_ML_LUT:
        codes.dtype = index_type(how->bits);
        if (spec < 9) {
            codes = vector_type(IMP_MIL_U8, c->n_code);
            break;
        }
        table = (imp_mil_type){.dtype = IMP_MIL_F16, .rank = 6, .dim = {0, 1, 1, 1, 1ull << how->bits, 1}};
        table.dim[0] = c->n_table >> how->bits;
    }
    IMP_TRY(put(w, codes, c->code, &p->part[0], err));
    if (how->kind != IMP_ML_HALF) IMP_TRY(put(w, table, c->table, &p->part[1], err));
    p->bytes = c->n_code + c->n_table * sizeof *c->table;
    return IMP_OK;
}
