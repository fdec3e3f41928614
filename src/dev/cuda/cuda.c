/* dev/cuda/cuda.c - the CUDA device: open, plan, compile, run, memory.
 *
 * Place:   behind dev.h; see cuda.h for the parts.
 * Always:  out of memory is a status of compile, with the numbers; a failed kernel makes the device lost: every later call
 *          says so, nothing crashes.
 * Threads: any; a lock lets one caller at a time reach the context. */
#include "dev/cuda/cuda.h"
#include "dev/check.h"
#include "dev/cuda/open.h"
#include "kern/kv.h"

#include <stdio.h>

static cuda_device *device_of(imp_exec *x)
{
    return (cuda_device *)x->dev;
}

imp_status imp_cuda_fail(cuda_device *d, cu_result r, const char *doing, imp_error *err)
{
    const char *text = NULL;
    if (d->cu->error_text(r, &text) != CU_OK || text == NULL) text = "unknown error";
    if (r == CU_OUT_OF_MEMORY)
        return imp_fail(err, IMP_NOMEM, "%s ran out of GPU memory in %s; lower the context or the batch",
                        d->base.name, doing);
    d->lost = true;
    (void)snprintf(d->lost_why, sizeof d->lost_why, "%s (error %d in %s)", text, r, doing);
    return imp_fail(err, IMP_DEVICE, "%s failed: %s; restart to use it again", d->base.name, d->lost_why);
}

imp_status imp_cuda_usable(cuda_device *d, imp_error *err)
{
    if (d->lost)
        return imp_fail(err, IMP_DEVICE, "%s was lost: %s; restart to use it again", d->base.name,
                        d->lost_why);
    cu_result r = d->cu->ctx_set(d->ctx);
    return r == CU_OK ? IMP_OK : imp_cuda_fail(d, r, "taking the GPU", err);
}

cu_result imp_cuda_launch(cuda_device *d, cu_func f, uint64_t gx, uint64_t gy, uint64_t gz, uint32_t threads,
                          uint32_t smem, const void *args)
{
    cu_launch_attr attr = {.id = CU_LAUNCH_PROGRAMMATIC, .value.on = 1};
    cu_launch_config c = {.gx = (unsigned)gx,
                          .gy = (unsigned)gy,
                          .gz = (unsigned)gz,
                          .bx = threads,
                          .by = 1,
                          .bz = 1,
                          .smem = smem,
                          .stream = d->stream,
                          .attr = &attr,
                          .n_attr = d->pdl && !d->after_copy ? 1 : 0};
    d->after_copy = false;
    void *params[1] = {(void *)(uintptr_t)args};
    return d->cu->launch(&c, f, params, NULL);
}

/* ---- what is refused --------------------------------------------------------------------------------------- */

static const char *cuda_refuses(const imp_device *d, const imp_graph *g, imp_val v)
{
    (void)d;
    const imp_node *n = imp_graph_node(g, v);
    if (n->width > 1u << 30) return "rows are wider than 2^30 columns";
    if (n->op == IMP_OP_WEIGHT) return imp_cuda_weight_refusal(n->u.weight.part);
    if (n->op == IMP_OP_MOE &&
        (imp_graph_node(g, n->in[2])->width % 4 != 0 || imp_graph_node(g, n->in[4])->width % 4 != 0))
        return "the experts' widths are no multiples of 4";
    if (n->op == IMP_OP_ATTN && n->u.attn.head_dim > 512) return "heads are larger than 512";
    return NULL;
}

/* ---- plan and compile ---------------------------------------------------------------------------------------- */

static void free_exec(cuda_device *d, cuda_exec *x)
{
    if (x == NULL) return;
    const cu_driver *cu = d->cu;
    (void)cu->ctx_set(d->ctx);
    for (int i = 0; i < CUDA_N_GRAPH; i++)
        if (x->captured[i].exec != NULL) (void)cu->gexec_free(x->captured[i].exec);
    if (x->begin != NULL) (void)cu->event_free(x->begin);
    if (x->end != NULL) (void)cu->event_free(x->end);
    if (x->weights != 0) (void)cu->release(x->weights);
    if (x->kv != 0) (void)cu->release(x->kv);
    if (x->scratch != 0) (void)cu->release(x->scratch);
    if (x->meta != NULL) (void)cu->host_free(x->meta);
    if (x->result != NULL) (void)cu->host_free(x->result);
    if (x->top != NULL) (void)cu->host_free(x->top);
    if (x->input != NULL) (void)cu->host_free(x->input);
    if (x->stop != NULL) (void)cu->host_free(x->stop);
    if (x->outside_rows != NULL) (void)cu->host_free(x->outside_rows);
    imp_arena_free(x->arena);
    imp_sys_free(x);
}

static imp_status lower(cuda_device *d, const imp_graph *g, const imp_limits *lim, cuda_exec **out,
                        imp_error *err)
{
    *out = NULL;
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        const char *why = cuda_refuses(&d->base, g, v);
        if (why != NULL) return imp_fail(err, IMP_UNSUPPORTED, "%s: %s", imp_graph_node(g, v)->name, why);
    }
    cuda_exec *x = imp_sys_calloc(1, sizeof *x);
    if (x == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while compiling for the GPU");
    x->base.dev = &d->base;
    x->graph = g;
    x->lim = *lim;
    x->arena = imp_arena_new(1 << 16);
    imp_status s = x->arena == NULL ? imp_fail(err, IMP_NOMEM, "out of memory while compiling for the GPU")
                                    : imp_cuda_lower(x, err);
    if (s != IMP_OK) {
        imp_arena_free(x->arena);
        imp_sys_free(x);
        return s;
    }
    *out = x;
    return IMP_OK;
}

static imp_status cuda_plan(imp_device *base, const imp_graph *g, const imp_limits *lim, imp_dev_memory *out,
                            imp_error *err)
{
    cuda_exec *x;
    *out = (imp_dev_memory){0};
    IMP_TRY(lower((cuda_device *)base, g, lim, &x, err));
    *out = (imp_dev_memory){.weights = x->weights_bytes,
                            .kv = x->kv_bytes,
                            .scratch = x->scratch_bytes,
                            .other = sizeof *x + imp_arena_bytes(x->arena) + x->meta_bytes + x->out_bytes +
                                     x->input_bytes + x->top_out_bytes + x->outside_bytes};
    imp_arena_free(x->arena);
    imp_sys_free(x);
    return IMP_OK;
}

static cu_result allocate(cuda_device *d, cuda_exec *x)
{
    const cu_driver *cu = d->cu;
    cu_result r = cu->alloc(&x->scratch, x->scratch_bytes);
    if (r == CU_OK && x->weights_bytes > 0) r = cu->alloc(&x->weights, x->weights_bytes);
    if (r == CU_OK && x->kv_bytes > 0) r = cu->alloc(&x->kv, x->kv_bytes);
    if (r == CU_OK) r = cu->host_alloc((void **)&x->meta, x->meta_bytes, 0);
    if (r == CU_OK) r = cu->host_alloc((void **)&x->result, IMP_MAX(x->out_bytes, 16), 0);
    if (r == CU_OK && x->top_out_bytes > 0) r = cu->host_alloc((void **)&x->top, x->top_out_bytes, 0);
    if (r == CU_OK && x->input_bytes > 0) r = cu->host_alloc((void **)&x->input, x->input_bytes, 0);
    if (r == CU_OK && x->outside_bytes > 0)
        r = cu->host_alloc((void **)&x->outside_rows, x->outside_bytes, 0);
    if (r == CU_OK && x->n_member > 0) r = cu->host_alloc((void **)&x->stop, 16, 1 /* every context's */);
    if (r == CU_OK) r = cu->event_new(&x->begin, 0);
    if (r == CU_OK) r = cu->event_new(&x->end, 0);
    /* Blocks that are not full are read as whole tiles: what was never written must be a number. */
    if (r == CU_OK && x->kv_bytes > 0) r = cu->set8(x->kv, 0, x->kv_bytes, d->stream);
    if (r == CU_OK) r = cu->set8(x->scratch, 0, x->scratch_bytes, d->stream);
    return r;
}

static imp_status compile_locked(cuda_device *d, cuda_exec *x, imp_error *err)
{
    IMP_TRY(imp_cuda_usable(d, err));
    cu_result r = allocate(d, x);
    if (r == CU_OUT_OF_MEMORY) {
        size_t free_bytes = 0, total = 0;
        (void)d->cu->mem_info(&free_bytes, &total);
        return imp_fail(
            err, IMP_NOMEM, "%s has no %llu MiB for this model (%llu MiB are free); lower the context",
            d->base.name, (unsigned long long)(x->weights_bytes + x->kv_bytes + x->scratch_bytes) >> 20,
            (unsigned long long)free_bytes >> 20);
    }
    if (r != CU_OK) return imp_cuda_fail(d, r, "taking memory", err);
    return imp_cuda_fill_weights(d, x, err);
}

static imp_status cuda_compile(imp_device *base, const imp_graph *g, const imp_limits *lim, imp_exec **out,
                               imp_error *err)
{
    cuda_device *d = (cuda_device *)base;
    cuda_exec *x;
    *out = NULL;
    IMP_TRY(lower(d, g, lim, &x, err));
    imp_mutex_lock(d->lock);
    imp_status s = compile_locked(d, x, err);
    if (s != IMP_OK) free_exec(d, x);
    imp_mutex_unlock(d->lock);
    if (s == IMP_OK) *out = &x->base;
    return s;
}

/* ---- run --------------------------------------------------------------------------------------------------------- */

static imp_status cuda_run(imp_exec *base, const imp_batch *b, const float **out, imp_error *err)
{
    cuda_exec *x = (cuda_exec *)base;
    cuda_device *d = device_of(base);
    *out = NULL;
    IMP_TRY(imp_dev_check_batch(x->graph, &x->lim, b, err));
    if (b->top && x->top_out_bytes == 0)
        return imp_fail(err, IMP_INVALID, "this graph's result has no best columns");
    imp_mutex_lock(d->lock);
    imp_status s = imp_cuda_usable(d, err);
    if (s == IMP_OK) s = imp_cuda_step(d, x, b, err);
    imp_mutex_unlock(d->lock);
    x->top_n_row = s == IMP_OK && b->top ? b->n_out : 0;
    if (s == IMP_OK && !b->top) *out = x->result;
    return s;
}

static imp_status has_row(const cuda_exec *x, uint32_t row, imp_error *err)
{
    if (row < x->top_n_row) return IMP_OK;
    return imp_fail(err, IMP_INVALID, "the last run left no row %u on the device", row);
}

static imp_status cuda_top(imp_exec *base, uint32_t row, const uint32_t *mask, imp_dev_top *out,
                           imp_error *err)
{
    cuda_exec *x = (cuda_exec *)base;
    cuda_device *d = device_of(base);
    _Static_assert(sizeof(cu_top_pick) == sizeof(imp_token_prob) && (int)CU_TOP == (int)IMP_DEV_TOP,
                   "one layout");
    *out = (imp_dev_top){0};
    IMP_TRY(has_row(x, row, err));
    const cu_top_row *t = &x->top[row];
    imp_status s = IMP_OK;
    if (mask != NULL) {
        t = &x->top[x->lim.max_out];
        imp_mutex_lock(d->lock);
        s = imp_cuda_usable(d, err);
        cu_result r = s == IMP_OK ? imp_cuda_top_masked(d, x, row, mask) : CU_OK;
        if (r != CU_OK) s = imp_cuda_fail(d, r, "choosing from a row", err);
        imp_mutex_unlock(d->lock);
    }
    if (s == IMP_OK) *out = (imp_dev_top){t->n, t->sum, (const imp_token_prob *)(const void *)t->best};
    return s;
}

static imp_status cuda_row(imp_exec *base, uint32_t row, const float **out, imp_error *err)
{
    cuda_exec *x = (cuda_exec *)base;
    cuda_device *d = device_of(base);
    *out = NULL;
    IMP_TRY(has_row(x, row, err));
    imp_mutex_lock(d->lock);
    imp_status s = imp_cuda_usable(d, err);
    cu_result r = s == IMP_OK ? imp_cuda_row(d, x, row) : CU_OK;
    if (r != CU_OK) s = imp_cuda_fail(d, r, "bringing a row", err);
    imp_mutex_unlock(d->lock);
    if (s == IMP_OK) *out = x->result + row * imp_graph_node(x->graph, imp_graph_output(x->graph))->width;
    return s;
}

/* Keys (part 0) or values of a block in a layer: n_kv_head tiles in one piece. */
cu_mem imp_cuda_kv_at(const cuda_exec *x, uint32_t layer, uint32_t part, uint32_t block, uint64_t *bytes)
{
    const imp_attn_attr *a = &imp_graph_kv_layer(x->graph, layer)->u.attn;
    *bytes = (uint64_t)a->n_kv_head * cu_kv_tile_bytes(x->kv_kind, a->head_dim);
    return x->kv + x->kv_at[layer] + (part * (uint64_t)x->lim.n_kv_block + block) * *bytes;
}

/* q8_0: a layer's tiles to the rows of dev.h or back; a tile is laid out as the CPU's values are. */
static void turn_block(cuda_exec *x, uint32_t layer, uint8_t *tiles, uint8_t *rows, bool out)
{
    const imp_attn_attr *a = &imp_graph_kv_layer(x->graph, layer)->u.attn;
    uint64_t bytes = cu_kv_tile_bytes(CU_KV_Q8, a->head_dim);
    for (uint32_t h = 0; h < a->n_kv_head; h++, tiles += bytes, rows += bytes) {
        if (out)
            imp_kv_to_rows(IMP_Q8_0, IMP_KV_VALUE, a->head_dim, tiles, rows);
        else
            imp_kv_from_rows(IMP_Q8_0, IMP_KV_VALUE, a->head_dim, tiles, rows);
    }
}

typedef enum cuda_move { MOVE_COPY, MOVE_OUT, MOVE_IN } cuda_move;

static imp_status move_block(cuda_exec *x, cuda_move how, uint32_t block, uint32_t src, uint8_t *host,
                             imp_error *err)
{
    cuda_device *d = device_of(&x->base);
    const cu_driver *cu = d->cu;
    imp_mutex_lock(d->lock);
    imp_status s = imp_cuda_usable(d, err);
    cu_result r = CU_OK;
    uint32_t n = 2 * imp_graph_n_kv_layer(x->graph);
    uint8_t *at = host;
    for (uint32_t i = 0; s == IMP_OK && r == CU_OK && i < n; i++) {
        uint64_t bytes;
        cu_mem p = imp_cuda_kv_at(x, i / 2, i % 2, block, &bytes);
        if (how == MOVE_COPY) r = cu->copy(p, imp_cuda_kv_at(x, i / 2, i % 2, src, &bytes), bytes, d->stream);
        bool turned = how == MOVE_IN && x->kv_host != NULL;
        if (turned) turn_block(x, i / 2, x->kv_host, at, false);
        if (how == MOVE_OUT) r = cu->to_host(at, p, bytes, d->stream);
        if (how == MOVE_IN) r = cu->to_device(p, turned ? x->kv_host : at, bytes, d->stream);
        if (turned && r == CU_OK) r = cu->stream_sync(d->stream); /* kv_host is used again */
        if (host != NULL) at += bytes;
    }
    if (s == IMP_OK && r == CU_OK && how != MOVE_COPY) r = cu->stream_sync(d->stream);
    at = host;
    for (uint32_t i = 0; s == IMP_OK && r == CU_OK && how == MOVE_OUT && x->kv_host != NULL && i < n; i++) {
        uint64_t bytes;
        (void)imp_cuda_kv_at(x, i / 2, i % 2, block, &bytes);
        memcpy(x->kv_host, at, bytes);
        turn_block(x, i / 2, x->kv_host, at, true);
        at += bytes;
    }
    if (s == IMP_OK && r != CU_OK) s = imp_cuda_fail(d, r, "moving a KV block", err);
    imp_mutex_unlock(d->lock);
    return s;
}

static void cuda_kv_copy(imp_exec *x, uint32_t dst, uint32_t src)
{
    imp_error err = {0}; /* a failure makes the device lost; the next run says so */
    (void)move_block((cuda_exec *)x, MOVE_COPY, dst, src, NULL, &err);
}

static imp_status cuda_kv_export(imp_exec *base, uint32_t block, void *host, imp_error *err)
{
    cuda_exec *x = (cuda_exec *)base;
    if (block >= x->lim.n_kv_block) return imp_fail(err, IMP_INVALID, "there is no KV block %u", block);
    return move_block(x, MOVE_OUT, block, 0, host, err);
}
static imp_status cuda_kv_import(imp_exec *base, uint32_t block, const void *host, imp_error *err)
{
    cuda_exec *x = (cuda_exec *)base;
    if (block >= x->lim.n_kv_block) return imp_fail(err, IMP_INVALID, "there is no KV block %u", block);
    return move_block(x, MOVE_IN, block, 0, (uint8_t *)(uintptr_t)host, err);
}

static uint64_t cuda_last_ns(const imp_exec *x)
{
    return ((const cuda_exec *)x)->last_ns;
}

static uint64_t cuda_mem_free(const imp_device *base)
{
    const cuda_device *d = (const cuda_device *)base;
    size_t free_bytes = 0, total = 0;
    imp_mutex_lock(d->lock);
    bool ok = !d->lost && d->cu->ctx_set(d->ctx) == CU_OK && d->cu->mem_info(&free_bytes, &total) == CU_OK;
    imp_mutex_unlock(d->lock);
    return ok ? free_bytes : 0;
}

static bool cuda_lost(const imp_device *base, char *text, size_t cap)
{
    const cuda_device *d = (const cuda_device *)base;
    imp_mutex_lock(d->lock);
    bool lost = d->lost;
    (void)snprintf(text, cap, "%s", d->lost_why);
    imp_mutex_unlock(d->lock);
    return lost;
}

static void cuda_exec_free(imp_exec *base)
{
    if (base == NULL) return;
    cuda_device *d = device_of(base);
    imp_mutex_lock(d->lock);
    free_exec(d, (cuda_exec *)base);
    imp_mutex_unlock(d->lock);
}

/* ---- open and close ------------------------------------------------------------------------------------------------ */

static void cuda_close(imp_device *base)
{
    cuda_device *d = (cuda_device *)base;
    if (d == NULL) return;
    if (d->ctx != NULL) {
        (void)d->cu->ctx_set(d->ctx);
        imp_cuda_lt_close(d->lt);
        for (int i = 0; i < IMP_CUDA_N_MODULE; i++)
            if (d->module[i] != NULL) (void)d->cu->module_free(d->module[i]);
        if (d->stream != NULL) (void)d->cu->stream_free(d->stream);
        (void)d->cu->ctx_release(d->id);
    }
    imp_mutex_free(d->lock);
    imp_sys_free(d);
}

static void cuda_outside(imp_exec *x, const imp_outside *o)
{
    ((cuda_exec *)x)->outside = *o;
}

static const imp_device_ops CUDA_OPS = {
    .kind = "cuda",
    .refuses = cuda_refuses,
    .plan = cuda_plan,
    .compile = cuda_compile,
    .run = cuda_run,
    .kv_copy = cuda_kv_copy,
    .exec_free = cuda_exec_free,
    .close = cuda_close,
    .kv_export = cuda_kv_export,
    .kv_import = cuda_kv_import,
    .last_ns = cuda_last_ns,
    .top = cuda_top,
    .row = cuda_row,
    .lost = cuda_lost,
    .mem_free = cuda_mem_free,
    .join = imp_cuda_join,
    .outside = cuda_outside,
    .kv_stage = imp_cuda_kv_stage,
    .kv_stage_free = imp_cuda_kv_stage_free,
    .kv_staged = imp_cuda_kv_staged,
};

static cu_result find_gemv(cuda_device *d)
{
    static const char *const type[CU_N_TYPE] = {NULL, "bf16", "f16", "q8", "q8f", "q4", "q4m"};
    cu_result r = CU_OK;
    for (int t = 1; t < CU_N_TYPE; t++) {
        for (int i = 0; i < 2 && r == CU_OK; i++) {
            char name[32];
            (void)snprintf(name, sizeof name, "gemv_%s_%d", type[t], 4 << i);
            r = d->cu->module_func(&d->fn.gemv[t][i], d->module[1], name);
            if (r == CU_OK) r = d->cu->func_attr(d->fn.gemv[t][i], CU_FUNC_DYNAMIC_SMEM, (int)d->smem);
            if (r == CU_OK) r = d->cu->func_attr(d->fn.gemv[t][i], CU_FUNC_CARVEOUT, 100);
        }
    }
    return r;
}

static cu_result find_mid(cuda_device *d)
{
    static const char *const type[CU_N_TYPE] = {
        [CU_Q8] = "q8", [CU_Q8F] = "q8f", [CU_Q4] = "q4", [CU_Q4M] = "q4m"};
    cu_result r = CU_OK;
    for (int t = CU_Q8; t < CU_N_TYPE; t++)
        for (int i = 0; i < 3 && r == CU_OK; i++) {
            char name[32];
            (void)snprintf(name, sizeof name, "mid_%s_%d", type[t], 16 << i);
            r = d->cu->module_func(&d->fn.mid[t][i], d->module[7], name);
            if (r == CU_OK) r = d->cu->func_attr(d->fn.mid[t][i], CU_FUNC_DYNAMIC_SMEM, (int)d->smem);
            if (r == CU_OK) r = d->cu->func_attr(d->fn.mid[t][i], CU_FUNC_CARVEOUT, 100);
        }
    return r;
}

/* All kernels want the same division of an SM's memory: blocks of two kernels share an SM in a decode step, and an SM whose
 * memory is divided otherwise takes none until it is empty, which would put two blocks of a kernel on another SM. */
static cu_result load_kernels(cuda_device *d)
{
    const cu_driver *cu = d->cu;
    cu_result r = CU_OK;
    for (int i = 0; i < IMP_CUDA_N_MODULE && r == CU_OK; i++)
        r = cu->module_load(&d->module[i], imp_cuda_kernels(i));
#define IMP_X(field, module_number, symbol)                                                                  \
    if (r == CU_OK) r = cu->module_func(&d->fn.field, d->module[module_number], symbol);                     \
    if (r == CU_OK) r = cu->func_attr(d->fn.field, CU_FUNC_CARVEOUT, 100);
    IMP_CUDA_KERNELS(IMP_X)
#undef IMP_X
    if (r == CU_OK) r = cu->func_attr(d->fn.read_all, CU_FUNC_CARVEOUT, -1); /* a ceiling: as it likes */
    if (r == CU_OK) r = find_gemv(d);
    if (r == CU_OK) r = find_mid(d);
    const struct {
        cu_func f;
        int bytes;
    } large[] = {{d->fn.gemm_bf16, 65536},
                 {d->fn.gemm_f16, 65536},
                 {d->fn.flash_64, 49152},
                 {d->fn.flash_128, 98304},
                 {d->fn.flash_wg_64, cu_flash_wg_smem(64)},
                 {d->fn.flash_wg_128, cu_flash_wg_smem(128)},
                 {d->fn.flash_q8_64, 49152},
                 {d->fn.flash_q8_128, 98304},
                 {d->fn.attn_step_64, CU_STEP_SMEM_64},
                 {d->fn.attn_step_128, CU_STEP_SMEM_128},
                 {d->fn.attn_step_q8_64, CU_STEP_SMEM_64},
                 {d->fn.attn_step_q8_128, CU_STEP_SMEM_128},
                 {d->fn.attn_q8_8, 98304},
                 {d->fn.attn_q8_4, 65536},
                 {d->fn.attn_f16_8, 98304},
                 {d->fn.attn_f32_8, 98304},
                 {d->fn.attn_f16_4, 65536},
                 {d->fn.attn_f32_4, 65536}};
    for (size_t i = 0; i < IMP_COUNT(large) && r == CU_OK; i++)
        r = cu->func_attr(large[i].f, CU_FUNC_DYNAMIC_SMEM, large[i].bytes);
    return r;
}

static imp_status start(cuda_device *d, uint32_t number, imp_error *err)
{
    const cu_driver *cu = d->cu;
    int n = 0, major = 0, n_sm = 0, smem = 0;
    char name[64] = "GPU";
    if (cu->device_count(&n) != CU_OK || n == 0)
        return imp_fail(err, IMP_NOT_FOUND, "this machine has an NVIDIA driver but no GPU that it can use");
    if (number >= (uint32_t)n)
        return imp_fail(err, IMP_NOT_FOUND, "there is no GPU %u here; they go from 0 to %d", number, n - 1);
    cu_result r = cu->device_get(&d->id, (int)number);
    if (r == CU_OK) r = cu->device_attr(&major, CU_ATTR_MAJOR, d->id);
    if (r == CU_OK) r = cu->device_attr(&n_sm, CU_ATTR_SMS, d->id);
    if (r == CU_OK) r = cu->device_attr(&smem, CU_ATTR_SMEM, d->id);
    d->n_sm = (uint32_t)n_sm;
    d->smem = (uint32_t)smem - 1024; /* what kernels take besides */
    if (r == CU_OK) r = cu->device_name(name, sizeof name, d->id);
    if (r == CU_OK && major < 8)
        return imp_fail(err, IMP_UNSUPPORTED, "%s has compute capability %d; 8.0 or newer is needed", name,
                        major);
    if (r == CU_OK) r = cu->ctx_retain(&d->ctx, d->id);
    if (r == CU_OK) r = cu->ctx_set(d->ctx);
    if (r == CU_OK) r = cu->stream_new(&d->stream, 1 /* not ordered with the default stream */);
    if (r == CU_OK) r = load_kernels(d);
    if (r != CU_OK) return imp_cuda_fail(d, r, "starting", err);
    d->pdl = major >= 9;
    d->groups = major == 9;
    d->lt = imp_cuda_lt_open();
    imp_log(IMP_LOG_INFO, "%s: %s, products by %s", d->base.name, name,
            d->lt != NULL ? "cuBLASLt" : "own kernels");
    return IMP_OK;
}

imp_status imp_dev_cuda_open(uint32_t n, imp_device **out, imp_error *err)
{
    *out = NULL;
    const char *why = NULL;
    if (imp_cuda_kernels(0) == NULL)
        return imp_fail(err, IMP_UNSUPPORTED,
                        "this program was built without CUDA kernels; build it where nvcc is");
    const cu_driver *cu = imp_cuda_driver(&why);
    if (cu == NULL) return imp_fail(err, IMP_NOT_FOUND, "%s", why);
    cuda_device *d = imp_sys_calloc(1, sizeof *d);
    if (d == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while opening the GPU");
    d->base.ops = &CUDA_OPS;
    d->cu = cu;
    (void)snprintf(d->base.name, sizeof d->base.name, "cuda%u", n);
    imp_status s = imp_mutex_new(&d->lock);
    if (s == IMP_OK) s = start(d, n, err);
    if (s != IMP_OK) {
        cuda_close(&d->base);
        return s;
    }
    *out = &d->base;
    return IMP_OK;
}
