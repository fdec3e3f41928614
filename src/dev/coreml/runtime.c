/* dev/coreml/runtime.c - Core ML itself: packages compiled and kept, functions loaded, texts predicted, chunk after chunk.
 *
 * Place:   the worker's backend; nothing of it runs in the server's process.
 * Idea:    inputs are MLMultiArrays over the shared memory, so nothing is copied on the way in; results are read through
 *          their own strides, for Core ML pads rows as it likes, and written back without gaps.
 * Always:  every array that Core ML gives back is held against the expected type, shape and bytes before it is read.
 * Threads: the worker's main thread; completion handlers come on threads of Core ML's. */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "dev/coreml/objc.h"
#include "dev/coreml/runtime.h"
#include "dev/coreml/worker.h"
#include "tensor/tensor.h"

enum { TYPE_F16 = 65552, TYPE_F32 = 65568, TYPE_F64 = 65600 };

static imp_status not_there(imp_error *err, const char *what)
{
    return imp_fail(err, IMP_UNSUPPORTED, "this version of Core ML has no %s", what);
}

/* ---- who is there --------------------------------------------------------------------------------------------- */

static uint32_t count_ane_cores(const ml_objc *o)
{
    ml_id (*all)(void) = NULL;
    void *p = dlsym(o->core_ml, "MLAllComputeDevices"); /* macOS 14 */
    memcpy(&all, &p, sizeof p);
    ml_id list = all != NULL ? all() : NULL;
    for (uint64_t i = 0, n = ml_count(o, list); i < n; i++) {
        ml_id d = ml_at(o, list, i);
        if (!ml_is_kind(o, d, "MLNeuralEngineComputeDevice")) continue;
        long cores = ml_responds(o, d, "totalCoreCount") ? ML_GET(o, long, d, "totalCoreCount") : 1;
        return cores > 0 && cores < 4096 ? (uint32_t)cores : 1;
    }
    return 0;
}

static imp_status say_hello(void *ctx, const ml_hello *h, ml_welcome *out, imp_error *err)
{
    ml_runtime *r = ctx;
    const ml_objc *o = &r->objc;
    IMP_TRY(ml_objc_open(h->runtime, &r->objc, err));
    void *pool = o->pool_push();
    static const char *const need[] = {"NSString",
                                       "NSURL",
                                       "NSArray",
                                       "NSNumber",
                                       "NSDictionary",
                                       "NSProcessInfo",
                                       "MLModel",
                                       "MLModelConfiguration",
                                       "MLMultiArray",
                                       "MLFeatureValue",
                                       "MLDictionaryFeatureProvider",
                                       "MLArrayBatchProvider",
                                       "MLPredictionOptions"};
    imp_status s = IMP_OK;
    for (size_t i = 0; i < IMP_COUNT(need) && s == IMP_OK; i++)
        if (o->get_class(need[i]) == NULL) s = not_there(err, need[i]);
    if (s == IMP_OK) {
        ml_id info = ML_GET(o, ml_id, o->get_class("NSProcessInfo"), "processInfo");
        ml_utf8(o, ML_GET(o, ml_id, info, "operatingSystemVersionString"), out->os, sizeof out->os);
        ml_id config = ml_new(o, "MLModelConfiguration");
        out->functions = r->functions = ml_responds(o, config, "setFunctionName:");
        ml_release(o, config);
        out->plans = r->plans = o->get_class("MLComputePlan") != NULL;
        out->ane_cores = count_ane_cores(o);
    }
    o->pool_pop(pool);
    return s;
}

/* ---- compiling -------------------------------------------------------------------------------------------------- */

/* Put the folder that Core ML made in its place; another process may have been faster, which is as good. */
static imp_status keep_compiled(const ml_objc *o, const char *from, const char *to, imp_error *err)
{
    if (imp_sys_is_dir(to) || rename(from, to) == 0) return IMP_OK;
    int e = errno;
    if (imp_sys_is_dir(to)) return IMP_OK;
    ml_id files = o->get_class("NSFileManager");
    char near[ML_WIRE_PATH + 32];
    ml_id why = NULL;
    if (e != EXDEV || files == NULL)
        return imp_fail(err, IMP_IO, "the compiled package cannot be moved to %s: %s", to, strerror(e));
    (void)snprintf(near, sizeof near, "%s.%d", to,
                   (int)getpid()); /* on the same volume, to be renamed in one go */
    files = ML_GET(o, ml_id, files, "defaultManager");
    if (!ML_SEND(o, bool, (ml_id, ml_sel, ml_id, ml_id, ml_id *), files,
                 "copyItemAtPath:toPath:error:", ml_string(o, from), ml_string(o, near), &why))
        return ml_ns_error(o, err, "the compiled package cannot be copied", why);
    if (rename(near, to) == 0 || imp_sys_is_dir(to)) return IMP_OK;
    return imp_fail(err, IMP_IO, "the compiled package cannot be moved to %s: %s", to, strerror(errno));
}

static imp_status compile(const ml_objc *o, const char *package, const char *compiled, imp_error *err)
{
    ml_id why = NULL;
    char from[ML_WIRE_PATH];
    ml_id url = ML_SEND(o, ml_id, (ml_id, ml_sel, ml_id, ml_id *), o->get_class("MLModel"),
                        "compileModelAtURL:error:", ml_url(o, package), &why);
    if (url == NULL) return ml_ns_error(o, err, "Core ML does not compile the package", why);
    ml_utf8(o, ML_GET(o, ml_id, url, "path"), from, sizeof from);
    return keep_compiled(o, from, compiled, err);
}

/* ---- loading ---------------------------------------------------------------------------------------------------- */

/* A chunk's lengths are functions of one package. */
static bool is_joint(const ml_load *l)
{
    return l->n_package == l->n_chunk && l->shape.n_len > 1;
}

static ml_id configuration(const ml_runtime *r, uint32_t f)
{
    const ml_objc *o = &r->objc;
    ml_id c = ml_new(o, "MLModelConfiguration");
    if (c == NULL) return NULL;
    ML_SEND(o, void, (ml_id, ml_sel, long), c, "setComputeUnits:", (long)r->load.units);
    if (is_joint(&r->load))
        ML_SEND(o, void, (ml_id, ml_sel, ml_id), c,
                "setFunctionName:", ml_string(o, r->load.name[f % r->load.shape.n_len]));
    return c;
}

static imp_status load_function(ml_runtime *r, uint32_t f, ml_where *where, imp_error *err)
{
    const ml_objc *o = &r->objc;
    uint32_t n_len = r->load.shape.n_len;
    const char *path = r->load.compiled[r->load.n_package == r->load.n_chunk ? f / n_len : f];
    ml_id why = NULL, config = configuration(r, f);
    if (config == NULL) return not_there(err, "MLModelConfiguration");
    ml_id m = ML_SEND(o, ml_id, (ml_id, ml_sel, ml_id, ml_id, ml_id *), o->get_class("MLModel"),
                      "modelWithContentsOfURL:configuration:error:", ml_url(o, path), config, &why);
    imp_status s = m == NULL ? ml_ns_error(o, err, "Core ML does not load the package", why) : IMP_OK;
    if (s == IMP_OK) {
        r->model[f] = ml_retain(o, m);
        if (r->plans)
            ml_plan_read(r, path, is_joint(&r->load) ? r->load.name[f % n_len] : "main", config, where);
    }
    ml_release(o, config);
    return s;
}

/* Shapes and strides that every text of a length shares. */
static void make_shapes(ml_runtime *r, uint32_t len)
{
    const ml_objc *o = &r->objc;
    int64_t s = r->load.shape.s[len], w = r->load.shape.width;
    const int64_t hidden[4] = {1, w, 1, s}, hidden_step[4] = {w * s, s, s, 1};
    const int64_t row[4] = {1, 1, 1, s}, row_step[4] = {s, s, s, 1};
    r->len[len].shape[0] = ml_retain(o, ml_numbers(o, hidden, 4));
    r->len[len].step[0] = ml_retain(o, ml_numbers(o, hidden_step, 4));
    r->len[len].shape[1] = ml_retain(o, ml_numbers(o, row, 4));
    r->len[len].step[1] = ml_retain(o, ml_numbers(o, row_step, 4));
}

static imp_status load(void *ctx, const ml_load *l, void *shared, ml_loaded *out, imp_error *err)
{
    ml_runtime *r = ctx;
    const ml_objc *o = &r->objc;
    r->load = *l;
    r->shared = shared;
    if (!ml_slots_of(&l->shape, &r->slots))
        return imp_fail(err, IMP_INVALID, "the sizes of texts are out of range");
    if (is_joint(l) && !r->functions) return not_there(err, "packages with several functions");
    imp_status s = IMP_OK;
    void *pool = o->pool_push();
    uint64_t t0 = imp_now_ns();
    out->was_cached = 1;
    for (uint32_t i = 0; i < l->n_package && s == IMP_OK; i++) {
        if (imp_sys_is_dir(l->compiled[i])) continue;
        out->was_cached = 0;
        s = compile(o, l->package[i], l->compiled[i], err);
    }
    out->compile_ns = imp_now_ns() - t0;
    uint32_t n_len = l->shape.n_len;
    for (uint32_t f = 0; f < l->n_chunk * n_len && s == IMP_OK; f++)
        s = load_function(r, f, &out->where[f], err);
    for (uint32_t i = 0; i < n_len && s == IMP_OK; i++) make_shapes(r, i);
    /* An ANE program that does not compile may load and kill its process when it first runs: so it runs now. */
    memset(shared, 0, (size_t)r->slots.stride);
    for (uint32_t i = 0; i < n_len && s == IMP_OK; i++) {
        ml_ran ran;
        s = ml_runtime_run(r, &(ml_run){.len = i, .n = 1}, &ran, err);
    }
    out->load_ns = imp_now_ns() - t0 - out->compile_ns;
    o->pool_pop(pool);
    return s;
}

/* ---- predicting --------------------------------------------------------------------------------------------------- */

/* An array over memory of ours. NULL: Core ML does not want it; *why says so. */
static ml_id array_over(const ml_objc *o, void *data, ml_id shape, ml_id step, ml_id *why)
{
    ml_id a = ML_GET(o, ml_id, o->get_class("MLMultiArray"), "alloc");
    return ML_SEND(o, ml_id, (ml_id, ml_sel, void *, ml_id, long, ml_id, void *, ml_id *), a,
                   "initWithDataPointer:shape:dataType:strides:deallocator:error:", data, shape,
                   (long)TYPE_F16, step, NULL, why);
}

/* What is being predicted: a chunk in one length. */
typedef struct part {
    ml_runtime *r;
    uint32_t chunk, len;
    ml_id model;
} part;

static uint8_t *slot_at(const ml_runtime *r, uint32_t i)
{
    return (uint8_t *)r->shared + i * r->slots.stride;
}

/* The inputs of slot i as a feature provider, owned by the caller. */
static ml_id provider(const part *p, uint32_t i, ml_id *why)
{
    const ml_runtime *r = p->r;
    const ml_objc *o = &r->objc;
    uint8_t *slot = slot_at(r, i);
    static const char *const name[3] = {"hidden", "mask", "pool"};
    static const uint32_t bit[3] = {0, ML_TAKES_MASK, ML_TAKES_POOL};
    void *const at[3] = {slot, slot + r->slots.mask, slot + r->slots.pool};
    ml_id key[3], value[3];
    uint32_t n = 0;
    for (uint32_t k = 0; k < 3; k++) {
        if (k > 0 && (r->load.takes[p->chunk] & bit[k]) == 0) continue;
        ml_id a = array_over(o, at[k], r->len[p->len].shape[k > 0], r->len[p->len].step[k > 0], why);
        if (a == NULL) return NULL;
        key[n] = ml_string(o, name[k]);
        value[n++] = ML_SEND(o, ml_id, (ml_id, ml_sel, ml_id), o->get_class("MLFeatureValue"),
                             "featureValueWithMultiArray:", a);
        ml_release(o, a);
    }
    ml_id dict = ML_SEND(o, ml_id, (ml_id, ml_sel, const ml_id *, const ml_id *, unsigned long),
                         o->get_class("NSDictionary"), "dictionaryWithObjects:forKeys:count:", value, key,
                         (unsigned long)n);
    ml_id f = ML_GET(o, ml_id, o->get_class("MLDictionaryFeatureProvider"), "alloc");
    return ML_SEND(o, ml_id, (ml_id, ml_sel, ml_id, ml_id *), f, "initWithDictionary:error:", dict, why);
}

/* A result being read: where its numbers are, and where they go: f16 or f32, [rows][cols]. */
typedef struct reading {
    uint64_t rows, cols;
    int64_t row_step, step; /* elements from one row, and from one number, to the next */
    long type;
    uint64_t n_bytes; /* UINT64_MAX: not known */
    void *to;
    bool half;
    bool outside; /* the strides lead beyond the bytes */
} reading;

static float number(const uint8_t *p, long type)
{
    uint16_t h;
    float f = 0;
    double d;
    if (type == TYPE_F16) memcpy(&h, p, 2), f = imp_f16_to_f32(h);
    if (type == TYPE_F32) memcpy(&f, p, 4);
    if (type == TYPE_F64) memcpy(&d, p, 8), f = (float)d;
    return f;
}

static void read_numbers(const void *bytes, reading *g)
{
    uint64_t elem = g->type == TYPE_F16 ? 2 : g->type == TYPE_F32 ? 4 : 8;
    uint64_t last = (g->rows - 1) * (uint64_t)g->row_step + (g->cols - 1) * (uint64_t)g->step;
    g->outside = bytes == NULL || last + 1 > g->n_bytes / elem;
    for (uint64_t i = 0; i < g->rows && !g->outside; i++) {
        const uint8_t *p = (const uint8_t *)bytes + i * (uint64_t)g->row_step * elem;
        if (g->half && g->type == TYPE_F16 && g->step == 1) {
            memcpy((uint16_t *)g->to + i * g->cols, p, (size_t)g->cols * 2);
            continue;
        }
        for (uint64_t j = 0; j < g->cols; j++, p += (uint64_t)g->step * elem) {
            float x = number(p, g->type);
            if (g->half)
                ((uint16_t *)g->to)[i * g->cols + j] = imp_f32_to_f16(x);
            else
                ((float *)g->to)[i * g->cols + j] = x;
        }
    }
}

static void on_bytes(ml_block *b, const void *bytes, long size)
{
    reading *g = b->ctx;
    g->n_bytes = size > 0 ? (uint64_t)size : 0;
    read_numbers(bytes, g);
}

static int64_t number_at(const ml_objc *o, ml_id array, uint64_t i)
{
    return ML_GET(o, long long, ml_at(o, array, i), "longLongValue");
}

/* The array's dimensions, those of 1 left out, must be rows and cols. */
static imp_status read_layout(const ml_objc *o, ml_id a, reading *g, imp_error *err)
{
    ml_id shape = ML_GET(o, ml_id, a, "shape"), strides = ML_GET(o, ml_id, a, "strides");
    uint64_t rank = ml_count(o, shape), dim[2] = {1, 1}, n = 0;
    int64_t at[2] = {0, 0};
    if (rank == 0 || rank > 8 || ml_count(o, strides) != rank)
        return imp_fail(err, IMP_DEVICE, "Core ML's result has %llu dimensions", (unsigned long long)rank);
    for (uint64_t k = 0; k < rank; k++) {
        int64_t d = number_at(o, shape, k), step = number_at(o, strides, k);
        if (d < 1 || d > 1 << 24 || step < 0 || step > 1 << 28 || (d > 1 && n == 2))
            return imp_fail(err, IMP_DEVICE, "Core ML's result has another shape than the package says");
        if (d > 1) dim[n] = (uint64_t)d, at[n++] = step;
    }
    bool one_row = n < 2 && g->rows == 1;
    if (one_row) dim[1] = dim[0], dim[0] = 1, at[1] = at[0];
    if (dim[0] * dim[1] != g->rows * g->cols)
        return imp_fail(err, IMP_DEVICE, "Core ML's result has %llu numbers, not %llu",
                        (unsigned long long)(dim[0] * dim[1]), (unsigned long long)(g->rows * g->cols));
    if (dim[0] != g->rows)
        return imp_fail(err, IMP_DEVICE, "Core ML's result has another shape than the package says");
    g->row_step = at[0];
    g->step = at[1];
    return IMP_OK;
}

/* The result `name` of one text, [rows][cols], to `to`. */
static imp_status take(const ml_runtime *r, ml_id features, const char *name, uint64_t rows, uint64_t cols,
                       void *to, bool half, imp_error *err)
{
    const ml_objc *o = &r->objc;
    ml_id value = features == NULL ? NULL
                                   : ML_SEND(o, ml_id, (ml_id, ml_sel, ml_id), features,
                                             "featureValueForName:", ml_string(o, name));
    ml_id a = value == NULL ? NULL : ML_GET(o, ml_id, value, "multiArrayValue");
    if (a == NULL) return imp_fail(err, IMP_DEVICE, "Core ML's result has no \"%s\"", name);
    reading g = {.rows = rows, .cols = cols, .to = to, .half = half, .n_bytes = UINT64_MAX};
    g.type = ML_GET(o, long, a, "dataType");
    if (g.type != TYPE_F16 && g.type != TYPE_F32 && g.type != TYPE_F64)
        return imp_fail(err, IMP_DEVICE, "Core ML's result has elements of type %ld", g.type);
    IMP_TRY(read_layout(o, a, &g, err));
    if (ml_responds(o, a, "getBytesWithHandler:")) { /* macOS 12.3 */
        ml_block b = ml_block_of(o, (void (*)(void))on_bytes, &g);
        g.outside = true;
        ML_SEND(o, void, (ml_id, ml_sel, ml_block *), a, "getBytesWithHandler:", &b);
    } else {
        read_numbers(ML_GET(o, const void *, a, "dataPointer"), &g);
    }
    return g.outside ? imp_fail(err, IMP_DEVICE, "Core ML's result is shorter than its strides say") : IMP_OK;
}

/* What a chunk gave for one text into its slot: what goes on in place of what came in, keys and values, the vector. */
static imp_status take_results(const part *p, ml_id features, uint32_t i, imp_error *err)
{
    const ml_runtime *r = p->r;
    const ml_shape *sh = &r->load.shape;
    uint8_t *slot = slot_at(r, i);
    uint32_t s = sh->s[p->len];
    char name[16];
    for (uint32_t k = r->load.first_kv[p->chunk]; k < r->load.first_kv[p->chunk + 1]; k++)
        for (int v = 0; v < 2; v++) {
            (void)snprintf(name, sizeof name, "%c_%u", v == 0 ? 'k' : 'v', k);
            IMP_TRY(take(r, features, name, sh->kv_width[k], s, slot + ml_slot_kv(sh, &r->slots, k, v), true,
                         err));
        }
    if (p->chunk + 1 < r->load.n_chunk) return take(r, features, "hidden_out", sh->width, s, slot, true, err);
    return sh->dim > 0 ? take(r, features, "embedding", 1, sh->dim, slot + r->slots.out, false, err) : IMP_OK;
}

static imp_status predict_one(const part *p, imp_error *err)
{
    const ml_objc *o = &p->r->objc;
    ml_id why = NULL, in = provider(p, 0, &why);
    if (in == NULL) return ml_ns_error(o, err, "Core ML does not take the inputs", why);
    ml_id out = ML_SEND(o, ml_id, (ml_id, ml_sel, ml_id, ml_id *), p->model,
                        "predictionFromFeatures:error:", in, &why);
    ml_release(o, in);
    if (out == NULL) return ml_ns_error(o, err, "Core ML's prediction failed", why);
    return take_results(p, out, 0, err);
}

static imp_status predict_many(const part *p, uint32_t n, imp_error *err)
{
    const ml_objc *o = &p->r->objc;
    ml_id in[ML_WIRE_SLOTS], why = NULL;
    for (uint32_t i = 0; i < n; i++)
        if ((in[i] = provider(p, i, &why)) == NULL) {
            while (i > 0) ml_release(o, in[--i]);
            return ml_ns_error(o, err, "Core ML does not take the inputs", why);
        }
    ml_id batch = ML_GET(o, ml_id, o->get_class("MLArrayBatchProvider"), "alloc");
    batch =
        ML_SEND(o, ml_id, (ml_id, ml_sel, ml_id), batch, "initWithFeatureProviderArray:", ml_array(o, in, n));
    for (uint32_t i = 0; i < n; i++) ml_release(o, in[i]);
    ml_id options = ml_new(o, "MLPredictionOptions");
    ml_id out = ML_SEND(o, ml_id, (ml_id, ml_sel, ml_id, ml_id, ml_id *), p->model,
                        "predictionsFromBatch:options:error:", batch, options, &why);
    ml_release(o, options);
    ml_release(o, batch);
    if (out == NULL) return ml_ns_error(o, err, "Core ML's prediction failed", why);
    if (ML_GET(o, long, out, "count") != (long)n)
        return imp_fail(err, IMP_DEVICE, "Core ML gave %ld results for %u texts",
                        ML_GET(o, long, out, "count"), n);
    for (uint32_t i = 0; i < n; i++)
        IMP_TRY(take_results(p, ML_SEND(o, ml_id, (ml_id, ml_sel, long), out, "featuresAtIndex:", (long)i), i,
                             err));
    return IMP_OK;
}

imp_status ml_runtime_run(void *ctx, const ml_run *run, ml_ran *out, imp_error *err)
{
    ml_runtime *r = ctx;
    uint64_t t0 = imp_now_ns();
    imp_status s = IMP_OK;
    for (uint32_t c = 0; c < r->load.n_chunk && s == IMP_OK; c++) {
        part p = {r, c, run->len, r->model[c * r->load.shape.n_len + run->len]};
        void *pool = r->objc.pool_push(); /* a chunk's results go before the next one runs */
        s = run->n == 1 ? predict_one(&p, err) : predict_many(&p, run->n, err);
        r->objc.pool_pop(pool);
    }
    out->ns = imp_now_ns() - t0;
    return s;
}

/* ---- life ------------------------------------------------------------------------------------------------------------ */

ml_runtime *ml_runtime_new(void)
{
    return imp_sys_calloc(1, sizeof(ml_runtime));
}

void ml_runtime_free(ml_runtime *r)
{
    if (r == NULL) return;
    for (uint32_t f = 0; f < ML_WIRE_FUNCS; f++) ml_release(&r->objc, r->model[f]);
    for (uint32_t i = 0; i < ML_WIRE_LENS; i++)
        for (int k = 0; k < 2; k++) {
            ml_release(&r->objc, r->len[i].shape[k]);
            ml_release(&r->objc, r->len[i].step[k]);
        }
    imp_sys_free(r);
}

ml_backend ml_runtime_backend(ml_runtime *r)
{
    return (ml_backend){.hello = say_hello, .load = load, .run = ml_runtime_run, .ctx = r};
}
