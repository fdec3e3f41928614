/* engine/quantize.c - GGUF in, GGUF out, with other types.
 *
 * Place:   called by the command; uses tensor/convert.c for the numbers and fmt/gguf_write.c for the file.
 * Idea:    first every tensor that will change is looked at (all values must be numbers) and gets its type, so that the
 *          whole directory is known; then the tensors stream through a buffer of a few MB.
 * Always:  `out` appears only when it is complete; a tensor that does not get what was asked for says why.
 * Threads: the caller's and the pool's. */
#include "engine/quantize.h"

#include <math.h>

#include "fmt/gguf.h"
#include "tensor/convert.h"

enum { SLAB_BYTES = 8 << 20 };

typedef struct work {
    const imp_quant_options *opt;
    imp_quant_report *report;
    imp_gguf *in;
    imp_gguf_writer *out;
    uint8_t *slab; /* SLAB_BYTES, or one row when that is more */
    uint64_t slab_bytes, done, total;
    imp_error *err;
} work;

void imp_quant_report_deinit(imp_quant_report *r)
{
    imp_arena_free(r->arena);
    *r = (imp_quant_report){0};
}

/* llama.cpp's number for "what the file mostly holds" (general.file_type). */
static uint32_t file_type(imp_dtype t)
{
    static const uint8_t number[IMP_N_DTYPE] = {
        [IMP_F16] = 1,   [IMP_Q4_0] = 2,  [IMP_Q4_1] = 3,  [IMP_Q8_0] = 7,  [IMP_Q5_0] = 8,  [IMP_Q5_1] = 9,
        [IMP_Q2_K] = 10, [IMP_Q3_K] = 11, [IMP_Q4_K] = 14, [IMP_Q5_K] = 16, [IMP_Q6_K] = 18, [IMP_BF16] = 32,
    };
    return number[t];
}

static uint32_t n_layer_of(const imp_gguf *g)
{
    imp_str arch;
    char key[160];
    uint64_t n = 0;
    if (!imp_gguf_str(g, "general.architecture", &arch) || arch.n > 100) return 0;
    (void)snprintf(key, sizeof key, "%.*s.block_count", (int)arch.n, arch.p);
    return imp_gguf_u64(g, key, &n) && n < 65536 ? (uint32_t)n : 0;
}

/* Which type the tensor gets, and why when it is not the one that was asked for. */
static imp_status choose(work *w, const imp_tensor *t, uint32_t n_layer, imp_quant_tensor *q)
{
    int group = t->n_dim >= 2 ? imp_group_of(q->name, n_layer) : -1;
    q->to = t->dtype;
    if (group < 0) return IMP_OK;
    imp_dtype want = w->opt->type[group];
    if (want == IMP_DTYPE_NONE) return IMP_OK;
    imp_dtype to = imp_type_for_row(want, imp_tensor_n_col(t));
    if (to == t->dtype && to == want) return IMP_OK; /* already so: copied as it is */
    imp_tensor_range range;
    if (imp_tensor_scan(t, w->opt->pool, &range) != IMP_OK)
        return imp_fail(w->err, IMP_NOMEM, "not enough memory for a row of %s", q->name);
    if (range.n_odd > 0)
        return imp_fail(
            w->err, IMP_FORMAT,
            "tensor %s holds %llu values that are no numbers; the model is damaged, 'impetus check' "
            "tells more",
            q->name, (unsigned long long)range.n_odd);
    if (range.max_abs > 65504 && to != IMP_F32 && to != IMP_BF16) {
        to = t->dtype;
        q->why = "its values go beyond 65504, the largest number of f16 scales";
    } else if (to != want) {
        q->why = "its rows are no whole blocks of the type asked for";
    }
    q->to = to;
    return IMP_OK;
}

static imp_status choose_all(work *w)
{
    imp_quant_report *r = w->report;
    uint32_t n_layer = n_layer_of(w->in);
    uint64_t bytes_of[IMP_N_DTYPE] = {0};
    r->arena = imp_arena_new(1 << 16);
    if (r->arena != NULL) r->tensor = imp_arena_array(r->arena, imp_gguf_n_tensor(w->in), sizeof *r->tensor);
    if (r->tensor == NULL) return imp_fail(w->err, IMP_NOMEM, "not enough memory for the file's directory");
    for (uint64_t i = 0; i < imp_gguf_n_tensor(w->in); i++) {
        imp_str name;
        const imp_tensor *t = imp_gguf_tensor_at(w->in, i, &name);
        imp_quant_tensor *q = &r->tensor[i];
        *q = (imp_quant_tensor){.name = imp_arena_strndup(r->arena, name.p, name.n), .from = t->dtype};
        if (q->name == NULL) return imp_fail(w->err, IMP_NOMEM, "not enough memory for the file's directory");
        IMP_TRY(choose(w, t, n_layer, q));
        imp_tensor as = *t;
        as.dtype = q->to;
        q->from_bytes = imp_tensor_bytes(t);
        q->to_bytes = imp_tensor_bytes(&as);
        r->n_tensor = i + 1;
        r->n_changed += q->to != q->from;
        r->n_fallback += q->why != NULL;
        if (t->n_dim >= 2) bytes_of[q->to] += q->to_bytes;
        w->total += q->from_bytes;
        imp_gguf_write_tensor(w->out, q->name, q->to, t->n_dim, t->dim, q->to_bytes);
    }
    imp_dtype most = IMP_F32;
    for (int t = 0; t < IMP_N_DTYPE; t++)
        if (bytes_of[t] > bytes_of[most]) most = (imp_dtype)t;
    imp_gguf_write_u32(w->out, "general.file_type", file_type(most));
    imp_gguf_write_u32(w->out, "general.quantization_version", 2);
    return IMP_OK;
}

static bool is_key(imp_str key, const char *name)
{
    return key.n == strlen(name) && memcmp(key.p, name, key.n) == 0;
}

/* All keys but those that are written anew. */
static void copy_keys(work *w)
{
    for (uint64_t i = 0; i < imp_gguf_n_kv(w->in); i++) {
        imp_gguf_type type;
        imp_str key = imp_gguf_key(w->in, i, &type);
        if (!is_key(key, "general.file_type") && !is_key(key, "general.quantization_version") &&
            !is_key(key, "general.alignment"))
            imp_gguf_write_kv(w->out, imp_gguf_kv_bytes(w->in, i));
    }
}

static void progress(work *w, const imp_quant_tensor *q, uint64_t bytes)
{
    w->done += bytes;
    if (w->opt->progress != NULL) w->opt->progress(w->opt->user, q->name, w->done, w->total);
}

static imp_status copy_tensor(work *w, const imp_tensor *t, imp_quant_tensor *q)
{
    for (uint64_t at = 0; at < q->to_bytes;) {
        uint64_t n = IMP_MIN(q->to_bytes - at, (uint64_t)SLAB_BYTES);
        IMP_TRY(imp_gguf_write_data(w->out, (const uint8_t *)t->data + at, n, w->err));
        progress(w, q, n);
        at += n;
    }
    return IMP_OK;
}

static double relative(double err, double sum)
{
    return sum > 0 ? sqrt(err / sum) : 0;
}

static imp_status convert_tensor(work *w, const imp_tensor *t, imp_quant_tensor *q)
{
    uint64_t n_row = imp_tensor_n_row(t), row_bytes = q->to_bytes / n_row;
    const float *weight = w->opt->importance != NULL
                              ? imp_importance_of(w->opt->importance, q->name, imp_tensor_n_col(t))
                              : NULL;
    imp_convert_error e = {0};
    q->weighted = weight != NULL;
    if (row_bytes > w->slab_bytes) {
        imp_sys_free(w->slab);
        w->slab = imp_sys_malloc(row_bytes);
        w->slab_bytes = row_bytes;
        if (w->slab == NULL) return imp_fail(w->err, IMP_NOMEM, "not enough memory for a row of %s", q->name);
    }
    uint64_t rows_a_turn = w->slab_bytes / row_bytes;
    for (uint64_t row = 0; row < n_row; row += rows_a_turn) {
        uint64_t n = IMP_MIN(rows_a_turn, n_row - row);
        imp_status s = imp_tensor_convert(t, row, n, q->to, weight, w->opt->pool, w->slab, &e);
        if (s != IMP_OK) return imp_fail(w->err, s, "not enough memory to convert %s", q->name);
        IMP_TRY(imp_gguf_write_data(w->out, w->slab, n * row_bytes, w->err));
        progress(w, q, n * (q->from_bytes / n_row));
    }
    q->error = relative(e.err, e.sum);
    q->weighted_error = relative(e.weighted_err, e.weighted_sum);
    return IMP_OK;
}

static imp_status write_all(work *w, const char *path)
{
    copy_keys(w);
    IMP_TRY(choose_all(w));
    IMP_TRY(imp_gguf_write_begin(w->out, path, w->err));
    w->slab = imp_sys_malloc(SLAB_BYTES);
    w->slab_bytes = SLAB_BYTES;
    if (w->slab == NULL) return imp_fail(w->err, IMP_NOMEM, "not enough memory to quantise");
    for (uint64_t i = 0; i < w->report->n_tensor; i++) {
        const imp_tensor *t = imp_gguf_tensor_at(w->in, i, NULL);
        imp_quant_tensor *q = &w->report->tensor[i];
        IMP_TRY(q->to == q->from ? copy_tensor(w, t, q) : convert_tensor(w, t, q));
    }
    return IMP_OK;
}

imp_status imp_quantize(const char *in, const char *out, const imp_quant_options *opt,
                        imp_quant_report *report, imp_error *err)
{
    work w = {.opt = opt, .report = report, .err = err};
    *report = (imp_quant_report){0};
    if (imp_sys_same_file(in, out))
        return imp_fail(err, IMP_INVALID, "%s and %s are the same file; give another name to write to", in,
                        out);
    if (imp_sys_is_dir(out))
        return imp_fail(err, IMP_INVALID, "%s is a folder; give the name of a file", out);
    IMP_TRY(imp_gguf_open(in, &w.in, err));
    report->from_bytes = imp_gguf_file_bytes(w.in);
    w.out = imp_gguf_writer_new();
    imp_status s =
        w.out == NULL ? imp_fail(err, IMP_NOMEM, "not enough memory to quantise") : write_all(&w, out);
    imp_status closed = imp_gguf_writer_close(w.out, s == IMP_OK, &report->to_bytes, err);
    imp_sys_free(w.slab);
    imp_gguf_close(w.in);
    return s != IMP_OK ? s : closed;
}
