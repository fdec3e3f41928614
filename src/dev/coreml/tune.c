/* dev/coreml/tune.c - compressing matrices one after the other by a calibration text. */
#include "dev/coreml/tune.h"

#include <math.h>
#include <stdlib.h>

#include "dev/coreml/compile.h"
#include "dev/coreml/solve.h"
#include "kern/kern.h"

enum { STEP = 2048 /* rows that sums are taken over at once */ };

typedef struct tuner {
    const imp_graph *g;
    const imp_ml_tuning *o;
    imp_ml_tuned *out;
    ml_batch b;
    ml_gemm_buf gemm;
    uint64_t n_fit; /* rows that are fitted to: those of the first texts */
    imp_val head;
    imp_error *err;
} tuner;

/* One matrix: x in the two streams, what it gives, and what is found out about it. */
typedef struct layer {
    imp_val v;
    const imp_node *n;
    const imp_tensor *w;
    uint64_t rows, fit, k, width;
    const float *x0;
    float *x1, *y0, *y1; /* x1: owned when it was rounded */
    bool own_x1;
    const float *smooth;          /* [k] what x1 was divided by; NULL: nothing */
    float *weight;                /* [fit] what a row counts, owned; NULL: all alike */
    float *moment, *mean2, *mean; /* owned */
    imp_ml_packing form;
} layer;

static imp_status no_memory(const tuner *t)
{
    return imp_fail(t->err, IMP_NOMEM, "out of memory while compressing by a calibration text");
}

/* ---- sums over rows ---------------------------------------------------------------------------------------------- */

/* to[c][r] = from[r][c] * weight[r] */
static void flip_rows(float *to, const float *from, const float *weight, uint64_t rows, uint64_t cols)
{
    ml_flip(to, from, rows, cols);
    for (uint64_t c = 0; weight != NULL && c < cols; c++)
        for (uint64_t r = 0; r < rows; r++) to[c * rows + r] *= weight[r];
}

/* sum[n][k] = the mean over rows of a[rows][n]^T b[rows][k], rows weighted. */
static bool mean_product(tuner *t, const float *a, const float *b, const float *weight, uint64_t rows,
                         uint64_t n, uint64_t k, float *sum)
{
    float *at = imp_sys_malloc((size_t)(n * STEP) * sizeof *at),
          *bt = imp_sys_malloc((size_t)(k * STEP) * sizeof *bt);
    float *part = imp_sys_malloc((size_t)(n * k) * sizeof *part);
    const imp_vec *v = imp_vec_get();
    bool ok = at != NULL && bt != NULL && part != NULL;
    memset(sum, 0, (size_t)(n * k) * sizeof *sum);
    for (uint64_t r = 0; ok && r < rows; r += STEP) {
        uint64_t m = IMP_MIN(rows - r, (uint64_t)STEP);
        flip_rows(at, a + r * n, weight != NULL ? weight + r : NULL, m, n);
        ml_flip(bt, b + r * k, m, k);
        ok = ml_gemm_nt(&t->gemm, t->o->pool, at, bt, NULL, part, k, n, m, k);
        if (ok) v->axpy(sum, 1 / (float)rows, part, (size_t)(n * k));
    }
    imp_sys_free(at);
    imp_sys_free(bt);
    imp_sys_free(part);
    return ok;
}

static void mean_of(const float *x, const float *weight, uint64_t rows, uint64_t k, float *mean)
{
    const imp_vec *v = imp_vec_get();
    memset(mean, 0, (size_t)k * sizeof *mean);
    for (uint64_t r = 0; r < rows; r++)
        v->axpy(mean, (weight != NULL ? weight[r] : 1) / (float)rows, x + r * k, (size_t)k);
}

static float *decode(const imp_tensor *t, uint64_t row0, uint64_t n)
{
    uint64_t k = imp_tensor_n_col(t);
    float *w = imp_sys_malloc((size_t)(n * k) * sizeof *w);
    for (uint64_t r = 0; w != NULL && r < n; r++) imp_tensor_row_f32(t, row0 + r, w + r * k);
    return w;
}

/* ---- int8 inputs ---------------------------------------------------------------------------------------------------
 *
 * One scale serves a whole input, so that a few loud channels would leave the others few steps. They are divided by powers of
 * two, which is exact, and the matrix's columns take them up. How far is a matter of what the rounding of x and that of the
 * rows of W are predicted to do to the output, over a sample.
 * Source: Xiao et al. 2023, "SmoothQuant", section 4; scales by least output error. */

enum { N_SHARE = 5, N_CLIP = 40, SAMPLE = 60000 };

/* What is looked at: every step-th row of x, the columns' loudness and what they weigh in the output. */
typedef struct sample {
    const float *x;
    uint64_t rows, step, k, n;
    const float *w;      /* [n][k] */
    float *loud, *mean2; /* [k] */
    float *smooth,
        *price; /* [k]: of the share that is tried; price: squared length of W's column times smooth^2 */
} sample;

static float rounded(float x, float scale)
{
    return fmaxf(-128, fminf(127, nearbyintf(x / scale))) * scale;
}

/* The loudest channels are divided by (loudness / typical loudness)^share. */
static void set_share(sample *z, float share)
{
    double mean = 0, n = 0;
    for (uint64_t j = 0; j < z->k; j++)
        if (z->loud[j] > 0) mean += log2((double)z->loud[j]), n++;
    for (uint64_t j = 0; j < z->k; j++) {
        double by = z->loud[j] > 0 ? (double)share * (log2((double)z->loud[j]) - mean / n) : 0;
        z->smooth[j] = exp2f((float)fmax(-8, fmin(8, nearbyint(by))));
        z->price[j] = 0;
    }
    for (uint64_t i = 0; i < z->n; i++)
        for (uint64_t j = 0; j < z->k; j++) z->price[j] += z->w[i * z->k + j] * z->w[i * z->k + j];
    for (uint64_t j = 0; j < z->k; j++) z->price[j] *= z->smooth[j] * z->smooth[j];
}

/* The scale whose rounding and cutting off do least to the output; *error: how much. */
static float input_scale(const sample *z, double *error)
{
    float max = 0, best = 1;
    uint64_t n_row = 0;
    *error = INFINITY;
    for (uint64_t j = 0; j < z->k; j++) max = fmaxf(max, z->loud[j] / z->smooth[j]);
    for (uint64_t r = 0; r < z->rows; r += z->step) n_row++;
    for (int t = 0; t < N_CLIP && max > 0; t++) {
        float s = imp_f16_to_f32(imp_f32_to_f16(max * (1 - 0.022f * (float)t) / 127));
        double e = 0;
        if (!(s > 0)) s = 0x1p-24f;
        for (uint64_t r = 0; r < z->rows; r += z->step) {
            float sum = 0;
            for (uint64_t j = 0; j < z->k; j++) {
                float x = z->x[r * z->k + j] / z->smooth[j], d = x - rounded(x, s);
                sum += d * d * z->price[j];
            }
            e += (double)sum;
        }
        e /= (double)n_row;
        if (e < *error) *error = e, best = s;
    }
    return best;
}

/* What rounding the rows of W to int8 is thought to do to the output. */
static double rows_error(const sample *z)
{
    double energy = 0, e = 0;
    for (uint64_t j = 0; j < z->k; j++) energy += (double)(z->mean2[j] / (z->smooth[j] * z->smooth[j]));
    for (uint64_t i = 0; i < z->n; i++) {
        float max = 0;
        for (uint64_t j = 0; j < z->k; j++) max = fmaxf(max, fabsf(z->w[i * z->k + j] * z->smooth[j]));
        e += (double)(max / 127) * (double)(max / 127) / 12;
    }
    return e * energy;
}

/* smooth and *scale for the rows that are fitted to. */
static void choose_smoothing(sample *z, float *smooth, float *scale)
{
    double least = INFINITY, error;
    for (uint64_t r = 0; r < z->rows; r++)
        for (uint64_t j = 0; j < z->k; j++) {
            float x = z->x[r * z->k + j];
            z->loud[j] = fmaxf(z->loud[j], fabsf(x));
            z->mean2[j] += x * x / (float)z->rows;
        }
    for (int t = 0; t < N_SHARE; t++) {
        set_share(z, (float)t / (N_SHARE - 1));
        float s = input_scale(z, &error);
        error += rows_error(z);
        if (t > 0 && !(error < least)) continue;
        least = error;
        *scale = s;
        memcpy(smooth, z->smooth, (size_t)z->k * sizeof *smooth);
    }
}

static bool find_smoothing(tuner *t, const layer *l, imp_ml_tuned_linear *to)
{
    float *w = decode(l->w, 0, l->width), *tmp = imp_sys_calloc((size_t)l->k, 4 * sizeof *tmp);
    sample z = {.x = l->x1, .rows = l->fit, .k = l->k, .n = l->width, .w = w};
    to->smooth = imp_arena_array(t->out->arena, (size_t)l->k, sizeof *to->smooth);
    bool ok = w != NULL && tmp != NULL && to->smooth != NULL;
    if (ok) {
        z.step = l->fit * l->k / SAMPLE + 1;
        z.loud = tmp, z.mean2 = tmp + l->k, z.smooth = tmp + 2 * l->k, z.price = tmp + 3 * l->k;
        choose_smoothing(&z, to->smooth, &to->scale);
    }
    imp_sys_free(w);
    imp_sys_free(tmp);
    return ok;
}

/* x1 becomes what the int8 numbers mean, still divided by `smooth`. */
static bool round_inputs(tuner *t, layer *l, imp_ml_tuned_linear *to)
{
    imp_val in = l->n->in[0];
    for (imp_val v = 1; v < l->v; v++) { /* another reader's choice is this one's, too */
        const imp_ml_tuned_linear *o = imp_ml_tuned_get(t->out, v);
        if (o == NULL || o->smooth == NULL || imp_graph_node(t->g, v)->in[0] != in) continue;
        to->smooth = o->smooth;
        to->scale = o->scale;
        break;
    }
    if (to->smooth == NULL && !find_smoothing(t, l, to)) return false;
    float *x = imp_sys_malloc((size_t)(l->rows * l->k) * sizeof *x);
    if (x == NULL) return false;
    for (uint64_t r = 0; r < l->rows; r++)
        for (uint64_t j = 0; j < l->k; j++)
            x[r * l->k + j] = rounded(l->x1[r * l->k + j] / to->smooth[j], to->scale);
    l->x1 = x;
    l->own_x1 = true;
    l->smooth = to->smooth;
    return true;
}

/* The columns of w[n][k] take up what the input was divided by. */
static void scale_columns(const layer *l, float *w, uint64_t n)
{
    for (uint64_t i = 0; l->smooth != NULL && i < n; i++)
        for (uint64_t j = 0; j < l->k; j++) w[i * l->k + j] *= l->smooth[j];
}

/* ---- what a layer adds to -------------------------------------------------------------------------------------------- */

/* The only reader of v, when that adds v to another value: *other. 0: not so. */
static imp_val added_to(const tuner *t, imp_val v, imp_val *other)
{
    imp_val reader = 0;
    for (imp_val u = v + 1; u <= imp_graph_n(t->g); u++)
        for (uint32_t i = 0; t->b.need[u] && i < imp_graph_node(t->g, u)->n_in; i++) {
            if (imp_graph_node(t->g, u)->in[i] != v) continue;
            if (reader != 0) return 0;
            reader = u;
        }
    const imp_node *n = reader != 0 ? imp_graph_node(t->g, reader) : NULL;
    if (n == NULL || n->op != IMP_OP_ADD) return 0;
    *other = n->in[0] == v ? n->in[1] : n->in[0];
    return t->b.val[0][*other] != NULL && t->b.val[1][*other] != NULL ? reader : 0;
}

/* Rows count by one over the variance that a layer norm right behind the sum divides them by. */
static bool weigh_rows(tuner *t, layer *l, imp_val sum, imp_val other)
{
    bool normed = false;
    for (imp_val u = sum + 1; u <= imp_graph_n(t->g) && !normed; u++)
        normed = imp_graph_node(t->g, u)->op == IMP_OP_LAYER_NORM && imp_graph_node(t->g, u)->in[0] == sum;
    if (!normed) return true;
    if ((l->weight = imp_sys_malloc((size_t)l->fit * sizeof *l->weight)) == NULL) return false;
    double all = 0;
    for (uint64_t r = 0; r < l->fit; r++) {
        const float *y = l->y0 + r * l->width, *z = t->b.val[0][other] + r * l->width;
        double s = 0, s2 = 0;
        for (uint64_t i = 0; i < l->width; i++) {
            double x = (double)y[i] + (double)z[i];
            s += x, s2 += x * x;
        }
        double var = s2 / (double)l->width - s / (double)l->width * s / (double)l->width;
        l->weight[r] = (float)(1 / fmax(var, 1e-12));
        all += (double)l->weight[r];
    }
    for (uint64_t r = 0; r < l->fit; r++) l->weight[r] *= (float)((double)l->fit / all);
    return true;
}

/* ---- one matrix -------------------------------------------------------------------------------------------------------- */

static void close_layer(layer *l)
{
    if (l->own_x1) imp_sys_free(l->x1);
    imp_sys_free(l->weight);
    imp_sys_free(l->moment);
    imp_sys_free(l->mean2);
    imp_sys_free(l->mean);
}

static bool measure_inputs(tuner *t, layer *l)
{
    enum { MAX_K = 4096 }; /* wider inputs: the diagonal alone */
    l->mean = imp_sys_malloc((size_t)l->k * sizeof *l->mean);
    l->mean2 = imp_sys_calloc((size_t)l->k, sizeof *l->mean2);
    if (l->mean == NULL || l->mean2 == NULL) return false;
    mean_of(l->x1, l->weight, l->fit, l->k, l->mean);
    if (l->k <= MAX_K) {
        l->moment = imp_sys_malloc((size_t)(l->k * l->k) * sizeof *l->moment);
        if (l->moment == NULL || !mean_product(t, l->x1, l->x1, l->weight, l->fit, l->k, l->k, l->moment))
            return false;
        for (uint64_t i = 0; i < l->k; i++) l->mean2[i] = l->moment[i * l->k + i];
        return true;
    }
    for (uint64_t r = 0; r < l->fit; r++)
        for (uint64_t i = 0; i < l->k; i++)
            l->mean2[i] += l->x1[r * l->k + i] * l->x1[r * l->k + i] *
                           (l->weight != NULL ? l->weight[r] : 1) / (float)l->fit;
    return true;
}

/* w += what takes the second stream's inputs nearest to what is missing, d[fit][n] (least squares, kept near w). */
static bool repair(tuner *t, const layer *l, const float *d, uint64_t n, float *w)
{
    uint64_t k = l->k;
    float *a = imp_sys_malloc((size_t)(n * k) * sizeof *a),
          *step = imp_sys_malloc((size_t)(n * k) * sizeof *step);
    float *inv = imp_sys_malloc((size_t)(k * k) * sizeof *inv);
    bool ok =
        a != NULL && step != NULL && inv != NULL && mean_product(t, d, l->x1, l->weight, l->fit, n, k, a);
    double mean = 0;
    for (uint64_t i = 0; i < k; i++) mean += (double)l->mean2[i] / (double)k;
    float keep = (float)(mean * (0.02 + 0.25 * (double)k / (double)l->fit));
    ok = ok && ml_inverse(&t->gemm, t->o->pool, l->moment, k, keep, inv) &&
         ml_gemm_nt(&t->gemm, t->o->pool, a, inv, NULL, step, k, n, k, k);
    if (ok) imp_vec_get()->axpy(w, 1, step, (size_t)(n * k));
    imp_sys_free(a);
    imp_sys_free(step);
    imp_sys_free(inv);
    return ok;
}

/* y1 = what is missing: the first stream's y0 (and its residual stream), less what the matrix makes of x1. */
static void missing(const tuner *t, const layer *l, imp_val other)
{
    uint64_t n = l->rows * l->width;
    for (uint64_t i = 0; i < n; i++) l->y1[i] = l->y0[i] - l->y1[i];
    for (uint64_t i = 0; other != 0 && i < n; i++) l->y1[i] += t->b.val[0][other][i] - t->b.val[1][other][i];
}

/* bias += the mean of d + (w - q) mean(x): what the rounded matrix leaves. */
static void repair_bias(const layer *l, const float *d_mean, const float *w, const float *q, float *bias)
{
    const imp_vec *v = imp_vec_get();
    for (uint64_t i = 0; i < l->width; i++)
        bias[i] += d_mean[i] + v->dot(w + i * l->k, l->mean, (size_t)l->k) -
                   v->dot(q + i * l->k, l->mean, (size_t)l->k);
}

static void add_bias(float *y, const float *bias, uint64_t rows, uint64_t n)
{
    for (uint64_t r = 0; bias != NULL && r < rows; r++)
        imp_vec_get()->add(y + r * n, y + r * n, bias, (size_t)n);
}

/* A whole matrix with fitting; w: its numbers, become what the code means. */
static imp_status fit_layer(tuner *t, layer *l, float *w, imp_ml_tuned_linear *to, imp_ml_input *in)
{
    imp_val other = 0, sum = added_to(t, l->v, &other);
    imp_pool *pool = t->o->pool;
    const imp_tensor *bt =
        l->n->n_in > 2 && l->n->in[2] != 0 ? &imp_graph_node(t->g, l->n->in[2])->u.weight.part[0] : NULL;
    float *bias = bt != NULL ? decode(bt, 0, 1) : NULL,
          *d_mean = imp_sys_calloc((size_t)l->width, sizeof *d_mean);
    float *was = decode(l->w, 0, l->width);
    bool ok = d_mean != NULL && was != NULL && (bias != NULL || bt == NULL);
    ok = ok && ml_gemm_nt(&t->gemm, pool, l->x0, w, NULL, l->y0, l->width, l->rows, l->k, l->width);
    if (ok) scale_columns(l, w, l->width), scale_columns(l, was, l->width);
    ok = ok && (sum == 0 || weigh_rows(t, l, sum, other)) && measure_inputs(t, l);
    if (ok && l->moment != NULL) {
        ok = ml_gemm_nt(&t->gemm, pool, l->x1, w, NULL, l->y1, l->width, l->rows, l->k, l->width);
        if (ok) {
            missing(t, l, sum != 0 ? other : 0);
            mean_of(l->y1, l->weight, l->fit, l->width, d_mean);
            ok = repair(t, l, l->y1, l->width, w);
        }
    }
    add_bias(l->y0, ok ? bias : NULL, l->rows, l->width);
    if (!ok) {
        imp_sys_free(bias), imp_sys_free(d_mean), imp_sys_free(was);
        return no_memory(t);
    }
    *in = (imp_ml_input){.k = l->k, .moment = l->moment, .mean2 = l->mean2, .mean = l->mean};
    imp_ml_code_job job = {
        .t = l->w, .n_row = l->width, .values = w, .how = l->form, .input = in, .pool = pool};
    imp_status s = imp_ml_code(&job, &to->part[0], t->err);
    if (s == IMP_OK && bias != NULL) {
        repair_bias(l, d_mean, was, w, bias);
        to->bias = imp_arena_array(t->out->arena, (size_t)l->width, sizeof *bias);
        if (to->bias == NULL) s = no_memory(t);
        if (s == IMP_OK) memcpy(to->bias, bias, (size_t)l->width * sizeof *bias);
    }
    if (s == IMP_OK && !ml_gemm_nt(&t->gemm, pool, l->x1, w, NULL, l->y1, l->width, l->rows, l->k, l->width))
        s = no_memory(t);
    add_bias(l->y1, s == IMP_OK ? bias : NULL, l->rows, l->width);
    imp_sys_free(bias), imp_sys_free(d_mean), imp_sys_free(was);
    return s;
}

/* A matrix that is rounded as it is, part by part: the head, or all when nothing is fitted. */
static imp_status round_parts(tuner *t, layer *l, imp_ml_tuned_linear *to)
{
    uint64_t per = to->n_part > 1 ? ml_head_rows(l->width) : l->width;
    const imp_tensor *bt =
        l->n->n_in > 2 && l->n->in[2] != 0 ? &imp_graph_node(t->g, l->n->in[2])->u.weight.part[0] : NULL;
    for (uint32_t i = 0; i < to->n_part; i++) {
        uint64_t row = i * per, n = IMP_MIN(per, l->width - row);
        float *w = decode(l->w, row, n);
        bool ok = w != NULL &&
                  ml_gemm_nt(&t->gemm, t->o->pool, l->x0, w, NULL, l->y0 + row, l->width, l->rows, l->k, n);
        if (!ok) {
            imp_sys_free(w);
            return no_memory(t);
        }
        scale_columns(l, w, n);
        imp_ml_code_job job = {
            .t = l->w, .row0 = row, .n_row = n, .values = w, .how = l->form, .pool = t->o->pool};
        imp_status s = imp_ml_code(&job, &to->part[i], t->err);
        if (s == IMP_OK) {
            ok = ml_gemm_nt(&t->gemm, t->o->pool, l->x1, w, NULL, l->y1 + row, l->width, l->rows, l->k, n);
        }
        imp_sys_free(w);
        if (!t->o->repair) imp_ml_coded_deinit(&to->part[i]);
        if (s != IMP_OK) return s;
        if (!ok) return no_memory(t);
    }
    float *bias = bt != NULL ? decode(bt, 0, 1) : NULL;
    if (bt != NULL && bias == NULL) return no_memory(t);
    add_bias(l->y0, bias, l->rows, l->width);
    add_bias(l->y1, bias, l->rows, l->width);
    imp_sys_free(bias);
    return IMP_OK;
}

static imp_status tune_linear(tuner *t, imp_val v)
{
    const imp_node *n = imp_graph_node(t->g, v);
    layer l = {.v = v, .n = n, .w = &imp_graph_node(t->g, n->in[1])->u.weight.part[0], .form = t->o->form[v]};
    l.rows = ml_batch_rows(&t->b, v), l.k = imp_graph_node(t->g, n->in[0])->width, l.width = n->width;
    l.fit = n->rows == IMP_ROWS_TOK ? t->n_fit : t->o->n_text - t->o->n_held_out;
    l.x0 = t->b.val[0][n->in[0]], l.x1 = t->b.val[1][n->in[0]];
    l.y0 = ml_batch_make(&t->b, 0, v), l.y1 = ml_batch_make(&t->b, 1, v);
    imp_ml_tuned_linear *to = imp_arena_alloc(t->out->arena, sizeof *to);
    bool head = v == t->head;
    uint32_t n_part = head ? (uint32_t)ml_head_parts(l.width) : 1;
    if (to != NULL) *to = (imp_ml_tuned_linear){.n_part = n_part};
    if (to != NULL) to->part = imp_arena_array(t->out->arena, n_part, sizeof *to->part);
    if (to == NULL || to->part == NULL || l.y0 == NULL || l.y1 == NULL) return no_memory(t);
    t->out->linear[v] = to;
    if (t->o->progress != NULL) t->o->progress(t->o->user, n->name);
    imp_status s = IMP_OK;
    if (l.form.int8_inputs && !round_inputs(t, &l, to)) s = no_memory(t);
    if (s == IMP_OK && (head || !t->o->repair)) {
        s = round_parts(t, &l, to);
    } else if (s == IMP_OK) {
        imp_ml_input in;
        float *w = decode(l.w, 0, l.width);
        s = w != NULL ? fit_layer(t, &l, w, to, &in) : no_memory(t);
        imp_sys_free(w);
    }
    close_layer(&l);
    return s;
}

/* ---- how far apart --------------------------------------------------------------------------------------------------------- */

double imp_ml_cosine(const float *a, const float *b, uint64_t n)
{
    double ab = 0, aa = 0, bb = 0;
    for (uint64_t i = 0; i < n; i++) {
        ab += (double)a[i] * (double)b[i];
        aa += (double)a[i] * (double)a[i];
        bb += (double)b[i] * (double)b[i];
    }
    return aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : 0;
}

typedef struct ranked {
    double similarity;
    uint32_t row;
} ranked;

static int by_similarity(const void *a, const void *b)
{
    double x = ((const ranked *)a)->similarity, y = ((const ranked *)b)->similarity;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Every row's place when all are ordered by similarity to row q. */
static void places(const float *v, uint32_t n, uint64_t dim, uint32_t q, ranked *tmp, double *place)
{
    for (uint32_t i = 0; i < n; i++) tmp[i] = (ranked){imp_ml_cosine(v + q * dim, v + i * dim, dim), i};
    qsort(tmp, n, sizeof *tmp, by_similarity);
    for (uint32_t i = 0; i < n; i++) place[tmp[i].row] = i;
}

bool imp_ml_order_loss(const float *a, const float *b, uint32_t n, uint64_t dim, double *loss)
{
    ranked *tmp = imp_sys_malloc(n * sizeof *tmp);
    double *p = imp_sys_malloc(2 * (size_t)n * sizeof *p), sum = 0;
    bool ok = tmp != NULL && p != NULL;
    for (uint32_t q = 0; ok && q < n; q++) {
        double d2 = 0;
        places(a, n, dim, q, tmp, p);
        places(b, n, dim, q, tmp, p + n);
        for (uint32_t i = 0; i < n; i++) d2 += (p[i] - p[n + i]) * (p[i] - p[n + i]);
        sum += 1 - 6 * d2 / ((double)n * ((double)n * n - 1)); /* Spearman */
    }
    *loss = 1 - sum / n;
    imp_sys_free(tmp);
    imp_sys_free(p);
    return ok;
}

/* KL divergence of softmax(b) from softmax(a). */
static double kl_of(const float *a, const float *b, uint64_t n, bool *same_top)
{
    double ma = -INFINITY, mb = -INFINITY, sa = 0, sb = 0, kl = 0;
    uint64_t ta = 0, tb = 0;
    for (uint64_t i = 0; i < n; i++) {
        if ((double)a[i] > ma) ma = (double)a[i], ta = i;
        if ((double)b[i] > mb) mb = (double)b[i], tb = i;
    }
    for (uint64_t i = 0; i < n; i++) sa += exp((double)a[i] - ma), sb += exp((double)b[i] - mb);
    for (uint64_t i = 0; i < n; i++)
        kl += exp((double)a[i] - ma) / sa * (((double)a[i] - ma - log(sa)) - ((double)b[i] - mb - log(sb)));
    *same_top = ta == tb;
    return kl;
}

static imp_status measure(tuner *t)
{
    imp_val v = imp_graph_output(t->g);
    const imp_node *n = imp_graph_node(t->g, v);
    uint32_t from = t->o->n_text - t->o->n_held_out;
    imp_ml_distance *d = &t->out->held_out;
    if (n->rows == IMP_ROWS_TOK || t->o->n_held_out == 0) return IMP_OK;
    const float *a = t->b.val[0][v] + from * n->width, *b = t->b.val[1][v] + from * n->width;
    *d = (imp_ml_distance){.n_text = t->o->n_held_out, .worst_cosine = 1};
    for (uint32_t i = 0; i < d->n_text; i++) {
        double c = imp_ml_cosine(a + i * n->width, b + i * n->width, n->width);
        bool same = false;
        d->worst_cosine = fmin(d->worst_cosine, c);
        d->mean_cosine += c / d->n_text;
        if (n->rows == IMP_ROWS_OUT)
            d->kl += kl_of(a + i * n->width, b + i * n->width, n->width, &same) / d->n_text;
        d->top1 += (double)same / d->n_text;
    }
    if (n->rows == IMP_ROWS_SEQ && d->n_text > 2 && !imp_ml_order_loss(a, b, d->n_text, n->width, &d->loss))
        return no_memory(t);
    return IMP_OK;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------ */

static imp_status run(tuner *t)
{
    imp_val out = imp_graph_output(t->g);
    for (uint32_t i = 0; i < t->o->n_text - t->o->n_held_out; i++) t->n_fit += t->o->text[i].n;
    t->out->n_tok = t->n_fit;
    t->head = imp_graph_n_kv_layer(t->g) > 0 ? ml_head_linear(t->g) : 0;
    for (imp_val v = 1; v <= out; v++) {
        const imp_node *n = imp_graph_node(t->g, v);
        if (!t->b.need[v] || n->op == IMP_OP_WEIGHT) continue;
        if (n->op == IMP_OP_LINEAR)
            IMP_TRY(tune_linear(t, v));
        else
            IMP_TRY(ml_batch_step(&t->b, v, t->err));
        ml_batch_drop(&t->b, v);
    }
    return measure(t);
}

imp_status imp_ml_tune(const imp_graph *g, const imp_ml_tuning *o, imp_ml_tuned **out, imp_error *err)
{
    tuner t = {.g = g, .o = o, .err = err};
    *out = NULL;
    if (o->n_text <= o->n_held_out)
        return imp_fail(err, IMP_INVALID, "there are too few texts to calibrate with");
    t.out = imp_sys_calloc(1, sizeof *t.out);
    if (t.out == NULL) return no_memory(&t);
    t.out->arena = imp_arena_new(1 << 16);
    t.out->n_val = imp_graph_n(g);
    if (t.out->arena != NULL)
        t.out->linear = imp_arena_array(t.out->arena, imp_graph_n(g) + 1, sizeof *t.out->linear);
    imp_status s =
        t.out->linear != NULL ? ml_batch_init(&t.b, g, o->text, o->n_text, o->pool, err) : no_memory(&t);
    if (s == IMP_OK) {
        s = run(&t);
        ml_batch_deinit(&t.b);
    }
    ml_gemm_buf_deinit(&t.gemm);
    if (s != IMP_OK) {
        imp_ml_tuned_free(t.out);
        return s;
    }
    *out = t.out;
    return IMP_OK;
}

void imp_ml_tuned_free(imp_ml_tuned *t)
{
    if (t == NULL) return;
    for (imp_val v = 1; t->linear != NULL && v <= t->n_val; v++)
        for (uint32_t i = 0; t->linear[v] != NULL && i < t->linear[v]->n_part; i++)
            imp_ml_coded_deinit(&t->linear[v]->part[i]);
    imp_arena_free(t->arena);
    imp_sys_free(t);
}

const imp_ml_tuned_linear *imp_ml_tuned_get(const imp_ml_tuned *t, imp_val v)
{
    return t != NULL && v <= t->n_val ? t->linear[v] : NULL;
}
