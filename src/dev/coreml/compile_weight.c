/* dev/coreml/compile_weight.c - weights and linear layers of a function: tables, packed matrices, 1x1 convolutions, the head.
 *
 * Always:  a weight lies in weight.bin once, however many functions read it. */
#include <math.h>
#include <stdio.h>

#include "dev/coreml/compile_int.h"

/* ---- weights -------------------------------------------------------------------------------------------------- */

/* An fp16 table in weight.bin; equal tables share one. */
ml_val ml_table(compiler *c, const char *name, const imp_mil_type *t, const uint16_t *data)
{
    ml_shared *sh = c->sh;
    uint64_t n = imp_mil_n_elem(t), hash = imp_hash(data, (size_t)n * 2, n);
    imp_mil_value v = {.type = *t, .blob = true};
    if (c->b.status != IMP_OK) return 0;
    for (uint32_t i = 0; i < sh->n_blob; i++)
        if (sh->blob[i].hash == hash && sh->blob[i].n == n) {
            v.offset = sh->blob[i].offset;
            return ml_const(&c->b, name, &v);
        }
    if (sh->n_blob == sh->cap_blob) {
        uint32_t cap = sh->cap_blob > 0 ? 2 * sh->cap_blob : 64;
        void *p = imp_arena_array(sh->arena, cap, sizeof *sh->blob);
        if (p == NULL) return ml_stop(c, IMP_NOMEM, "out of memory", name);
        if (sh->n_blob > 0) memcpy(p, sh->blob, sh->n_blob * sizeof *sh->blob);
        sh->blob = p;
        sh->cap_blob = cap;
    }
    c->b.status = imp_mlwriter_blob(sh->w, IMP_MIL_F16, n, &v.offset, c->b.err);
    if (c->b.status == IMP_OK) c->b.status = imp_mlwriter_data(sh->w, data, n * 2, c->b.err);
    if (c->b.status != IMP_OK) return 0;
    sh->blob[sh->n_blob++] = (struct ml_blob){hash, n, v.offset};
    sh->report->bytes += n * 2;
    return ml_const(&c->b, name, &v);
}

ml_val ml_vector(compiler *c, imp_val w, uint64_t first, float add, imp_mil_type t)
{
    const imp_node *n = ml_node(c, w);
    uint64_t k = imp_mil_n_elem(&t), all = imp_tensor_n_col(&n->u.weight.part[0]);
    float *x = imp_sys_malloc((size_t)all * sizeof *x);
    uint16_t *h = imp_sys_malloc((size_t)k * sizeof *h);
    ml_val v = 0;
    if (x == NULL || h == NULL) {
        ml_stop(c, IMP_NOMEM, "out of memory", n->name);
    } else {
        imp_tensor_row_f32(&n->u.weight.part[0], 0, x);
        for (uint64_t i = 0; i < k; i++)
            h[i] = imp_f32_to_f16(fmaxf(-65504, fminf(65504, x[first + i] + add)));
        v = ml_table(c, n->name, &t, h);
    }
    imp_sys_free(x);
    imp_sys_free(h);
    return v;
}

static imp_status report(ml_shared *sh, imp_val v, uint32_t part, const imp_ml_coded *c,
                         const imp_ml_packed *p)
{
    imp_ml_report *r = sh->report;
    const imp_node *n = imp_graph_node(sh->g, imp_graph_node(sh->g, v)->in[1]);
    imp_ml_weight_report *w = &r->weight[r->n_weight++];
    *w = (imp_ml_weight_report){.name = imp_arena_strndup(r->arena, n->name, strlen(n->name)),
                                .part = part,
                                .n = p->n,
                                .k = p->k,
                                .bytes = p->bytes,
                                .error = c->sum2 > 0 ? sqrt(c->err2 / c->sum2) : 0,
                                .output_error = c->out_var2 > 0 ? sqrt(c->out_err2 / c->out_var2) : -1,
                                .n_clamped = c->n_clamped};
    if (w->name == NULL) return IMP_NOMEM;
    imp_ml_packing_text(&p->how, w->how);
    r->bytes += p->bytes;
    r->half_bytes += p->n * p->k * 2;
    r->worst_error = fmax(r->worst_error, w->error);
    return IMP_OK;
}

/* Part `part` of linear layer v's matrix, its rows row0..row0+n_row-1, in weight.bin; *at remembers it. */
static imp_ml_packed *packed(compiler *c, imp_val v, uint32_t part, uint64_t row0, uint64_t n_row,
                             imp_ml_packed **at)
{
    ml_shared *sh = c->sh;
    imp_val w = ml_node(c, v)->in[1];
    const imp_node *n = ml_node(c, w);
    const imp_ml_tuned_linear *tuned = imp_ml_tuned_get(sh->opt->tuned, v);
    if (*at != NULL || c->b.status != IMP_OK) return *at;
    const imp_tensor *t = &n->u.weight.part[0];
    imp_ml_packed *p = imp_arena_alloc(sh->arena, sizeof *p);
    if (p == NULL) return ml_stop(c, IMP_NOMEM, "out of memory", n->name), NULL;
    if (sh->opt->progress != NULL) sh->opt->progress(sh->opt->user, n->name, sh->done, sh->total);
    imp_ml_coded own = {0};
    const imp_ml_coded *coded = tuned != NULL ? &tuned->part[part] : &own;
    if (tuned == NULL) {
        imp_ml_code_job job = {.t = t, .row0 = row0, .n_row = n_row, .pool = sh->opt->pool};
        job.how = sh->opt->form != NULL ? sh->opt->form[v] : sh->opt->pack;
        c->b.status = imp_ml_code(&job, &own, c->b.err);
    }
    if (c->b.status == IMP_OK) c->b.status = imp_ml_pack(sh->w, coded, sh->spec, p, c->b.err);
    if (c->b.status == IMP_OK) c->b.status = report(sh, v, part, coded, p);
    imp_ml_coded_deinit(&own);
    if (c->b.status != IMP_OK) return NULL;
    sh->done += imp_tensor_bytes(t) * n_row / imp_tensor_n_row(t);
    return *at = p;
}

/* The packed matrix as a value (n, k, 1, 1), unpacked by Core ML. */
static ml_val unpacked(compiler *c, const char *name, const imp_ml_packed *p)
{
    static const int8_t zero = 0;
    static const int32_t axis = 0;
    imp_mil_type t = ml_shape4(IMP_MIL_F16, p->n, p->k, 1, 1);
    if (p->how.kind == IMP_ML_HALF) return ml_const(&c->b, name, &p->part[0]);
    if (p->how.kind == IMP_ML_INT8) {
        imp_mil_attr a[4] = {{"quantized_data", p->part[0]},
                             {"zero_point", {.type = {.dtype = IMP_MIL_I8}, .data = &zero}},
                             {"scale", p->part[1]},
                             {"axis", {.type = {.dtype = IMP_MIL_I32}, .data = &axis}}};
        return c->sh->spec < 9 ? ml_op_attr(&c->b, "constexpr_affine_dequantize", name, a, 4, &t)
                               : ml_op_inline(&c->b, "constexpr_affine_dequantize", name, a, 4);
    }
    if (p->how.kind == IMP_ML_INT4) {
        imp_mil_attr a[2] = {{"data", p->part[0]}, {"scale", p->part[1]}};
        return ml_op_inline(&c->b, "constexpr_blockwise_shift_scale", name, a, 2);
    }
    imp_mil_attr a[3] = {{"indices", p->part[0]}, {"lut", p->part[1]}};
    if (c->sh->spec >= 9) return ml_op_inline(&c->b, "constexpr_lut_to_dense", name, a, 2);
    uint32_t *shape = imp_arena_array(c->sh->arena, 4, sizeof *shape);
    if (shape == NULL) return ml_stop(c, IMP_NOMEM, "out of memory", name);
    shape[0] = (uint32_t)p->n, shape[1] = (uint32_t)p->k, shape[2] = shape[3] = 1;
    a[2] = (imp_mil_attr){"shape", {.type = {.dtype = IMP_MIL_U32, .rank = 1, .dim = {4}}, .data = shape}};
    return ml_op_attr(&c->b, "constexpr_lut_to_dense", name, a, 3, &t);
}

/* x with its channels divided by powers of two; NULL: x itself. */
static ml_val smoothed(compiler *c, const char *name, ml_val x, const float *by, uint64_t n)
{
    bool any = false;
    for (uint64_t i = 0; by != NULL && i < n; i++) any = any || by[i] != 1;
    if (!any) return x;
    imp_mil_type t = ml_shape4(IMP_MIL_F16, 1, n, 1, 1);
    uint16_t *h = imp_sys_malloc((size_t)n * sizeof *h);
    if (h == NULL) return ml_stop(c, IMP_NOMEM, "out of memory", name);
    for (uint64_t i = 0; i < n; i++) h[i] = imp_f32_to_f16(1 / by[i]);
    ml_val f = ml_table(c, name, &t, h);
    imp_sys_free(h);
    return ml_two(c, "mul", name, x, f);
}

/* The input x of linear layer v, rounded to int8 and back with the scale that calibration found (W8A8). */
static ml_val input_of(compiler *c, imp_val v)
{
    ml_build *b = &c->b;
    imp_val x = ml_node(c, v)->in[0];
    const imp_ml_tuned_linear *t = imp_ml_tuned_get(c->sh->opt->tuned, v);
    if (t == NULL || !(t->scale > 0) || c->b.status != IMP_OK) return c->val[x];
    if (c->rounded[x] != 0) return c->rounded[x];
    const char *name = ml_node(c, v)->name;
    ml_val scale = ml_f16(b, t->scale);
    ml_val y = smoothed(c, name, c->val[x], t->smooth, ml_node(c, x)->width);
    ml_val q =
        ml_op(b, "quantize", name, "input", y, "scale", scale, "output_dtype", ml_text(b, "int8"), NULL);
    return c->rounded[x] = ml_op(b, "dequantize", name, "input", q, "scale", scale, NULL);
}

/* Its bias, rows first..first+rows-1: what calibration made of it, or the model's; 0: none. */
static ml_val bias_of(compiler *c, imp_val v, uint64_t first, uint64_t rows)
{
    const imp_node *n = ml_node(c, v);
    const imp_ml_tuned_linear *tuned = imp_ml_tuned_get(c->sh->opt->tuned, v);
    imp_mil_type t = {.dtype = IMP_MIL_F16, .rank = 1, .dim = {rows}};
    if (n->n_in < 3 || n->in[2] == 0) return 0;
    if (tuned == NULL || tuned->bias == NULL) return ml_vector(c, n->in[2], first, 0, t);
    uint16_t *h = imp_sys_malloc((size_t)rows * sizeof *h);
    if (h == NULL) return ml_stop(c, IMP_NOMEM, "out of memory", n->name);
    for (uint64_t i = 0; i < rows; i++)
        h[i] = imp_f32_to_f16(fmaxf(-65504, fminf(65504, tuned->bias[first + i])));
    ml_val b = ml_table(c, n->name, &t, h);
    imp_sys_free(h);
    return b;
}

static ml_val conv(compiler *c, const char *name, ml_val x, ml_val weight, ml_val bias)
{
    static const int32_t ones[2] = {1, 1}, zeros[4] = {0};
    ml_build *b = &c->b;
    return ml_op(b, "conv", name, "x", x, "weight", weight, "bias", bias, "strides", ml_i32s(b, ones, 2),
                 "pad_type", ml_text(b, "valid"), "pad", ml_i32s(b, zeros, 4), "dilations",
                 ml_i32s(b, ones, 2), "groups", ml_i32(b, 1), NULL);
}

ml_val ml_linear(compiler *c, imp_val v)
{
    const imp_node *n = ml_node(c, v);
    imp_val w = n->in[1];
    const imp_ml_packed *p = packed(c, v, 0, 0, n->width, &c->sh->packed[v]);
    if (p != NULL && c->weight[v] == 0) c->weight[v] = unpacked(c, ml_node(c, w)->name, p);
    return p != NULL ? conv(c, n->name, input_of(c, v), c->weight[v], bias_of(c, v, 0, n->width)) : 0;
}

/* ---- the head -------------------------------------------------------------------------------------------------- */

uint64_t ml_head_parts(uint64_t rows)
{
    enum { MOST = 16384 }; /* a dimension that the ANE is said to take */
    return (rows + MOST - 1) / MOST;
}

uint64_t ml_head_rows(uint64_t rows)
{
    uint64_t n = ml_head_parts(rows);
    return ((rows + n - 1) / n + 15) / 16 * 16;
}

/* The scalings between the head's linear layer and the graph's output, from the inside out. */
static ml_val scaled(compiler *c, imp_val v, imp_val linear, ml_val x)
{
    if (v == linear) return x;
    const imp_node *n = ml_node(c, v);
    x = scaled(c, n->in[0], linear, x);
    return n->op == IMP_OP_SCALE ? ml_two(c, "mul", n->name, x, ml_f16(&c->b, n->u.scale.c))
                                 : ml_softcap(c, n->name, x, n->u.scale.c);
}

imp_status ml_head(compiler *c)
{
    imp_val v = ml_head_linear(c->g);
    const imp_node *n = ml_node(c, v);
    uint64_t per = ml_head_rows(n->width);
    ml_val x = input_of(c, v);
    for (uint64_t i = 0, row = 0; row < n->width && c->b.status == IMP_OK; i++, row += per) {
        char name[32];
        uint64_t rows = IMP_MIN(per, n->width - row);
        snprintf(name, sizeof name, "logits_%u", (unsigned)i);
        const imp_ml_packed *p = packed(c, v, (uint32_t)i, row, rows, &c->sh->head[i]);
        if (p == NULL) break;
        ml_val y = conv(c, name, x, unpacked(c, name, p), bias_of(c, v, row, rows));
        ml_output(&c->b, scaled(c, imp_graph_output(c->g), v, y), name);
    }
    return c->b.status;
}
