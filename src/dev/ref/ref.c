/* dev/ref/ref.c - the reference device: memory and the walk over the nodes; the ops are in ops.c.
 *
 * Place:   opened by name ("ref"); tests hold every other device to it, and tiny models run on it.
 * Idea:    each value of the graph has its own f32 buffer; weights stay where they are and are decoded row by row.
 *          The KV cache holds f32, rounded first to what was asked for (kv.c).
 * Layout:  kv [layer][k|v][block][IMP_KV_BLOCK][n_kv_head * head_dim]
 * Threads: the caller's only. */
#include "dev/ref/ref.h"
#include "dev/check.h"
#include "dev/group.h"

/* Everything that compile allocates, in elements; plan prints it, compile takes it. */
typedef struct ref_sizes {
    uint64_t kv, kv_layer_at, row, score, hidden; /* elements of one array each */
    uint64_t values;                              /* elements of all value buffers */
    uint64_t mapped;                              /* bytes of weights */
} ref_sizes;

static imp_status too_large(imp_error *err)
{
    return imp_fail(err, IMP_TOO_LARGE, "the sizes of the graph overflow; lower the limits");
}

static uint64_t widest(const imp_graph *g, imp_op op)
{
    uint64_t w = 1;
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        const imp_node *n = imp_graph_node(g, v);
        if (n->op == op || op == IMP_N_OP) w = IMP_MAX(w, n->width);
    }
    return w;
}

static imp_status sizes_of(const imp_graph *g, const imp_limits *lim, ref_sizes *s, imp_error *err)
{
    *s = (ref_sizes){0};
    IMP_TRY(imp_dev_check_limits(g, lim, err));
    uint32_t n_expert = 0;
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        const imp_node *n = imp_graph_node(g, v);
        if (n->op == IMP_OP_WEIGHT) {
            for (uint32_t i = 0; i < n->u.weight.n_part; i++)
                s->mapped += imp_tensor_bytes(&n->u.weight.part[i]);
            continue;
        }
        uint64_t elem;
        if (!imp_mul_u64(imp_dev_max_rows(lim, n->rows), n->width, &elem) ||
            !imp_add_u64(s->values, elem, &s->values)) {
            return too_large(err);
        }
        if (n->op == IMP_OP_MOE) {
            n_expert = IMP_MAX(n_expert, n->u.moe.n_expert);
            s->hidden = IMP_MAX(s->hidden, imp_tensor_n_row(imp_graph_node(g, n->in[2])->u.weight.part));
        }
    }
    s->kv_layer_at = imp_graph_n_kv_layer(g);
    for (uint32_t i = 0; i < s->kv_layer_at; i++) {
        const imp_attn_attr *a = &imp_graph_kv_layer(g, i)->u.attn;
        uint64_t elem;
        if (!imp_mul_u64((uint64_t)a->n_kv_head * a->head_dim, 2 * IMP_KV_BLOCK, &elem) ||
            !imp_mul_u64(elem, lim->n_kv_block, &elem) || !imp_add_u64(s->kv, elem, &s->kv)) {
            return too_large(err);
        }
    }
    s->row = IMP_MAX(widest(g, IMP_N_OP), (uint64_t)lim->lora_rank);
    s->score = IMP_MAX((uint64_t)IMP_MAX(lim->max_ctx, lim->max_tok), n_expert + widest(g, IMP_OP_MOE));
    s->score = IMP_MAX(s->score, (uint64_t)lim->lora_rank);
    if (s->values > UINT64_MAX / 16 || s->kv > UINT64_MAX / 16 || s->row > UINT64_MAX / 64)
        return too_large(err);
    return IMP_OK;
}

static imp_status ref_plan(imp_device *d, const imp_graph *g, const imp_limits *lim, imp_dev_memory *out,
                           imp_error *err)
{
    (void)d;
    ref_sizes s;
    *out = (imp_dev_memory){0};
    IMP_TRY(sizes_of(g, lim, &s, err));
    out->mapped = s.mapped;
    out->kv = s.kv * sizeof(float);
    out->scratch = (s.values + 4 * s.row + s.hidden) * sizeof(float) + s.score * sizeof(double);
    out->other = sizeof(ref_exec) + (imp_graph_n(g) + 1) * sizeof(float *) + s.kv_layer_at * sizeof(uint64_t);
    return IMP_OK;
}

static void ref_exec_free(imp_exec *base)
{
    ref_exec *x = (ref_exec *)base;
    if (x == NULL) return;
    for (imp_val v = 1; x->value != NULL && v <= imp_graph_n(x->graph); v++) imp_sys_free(x->value[v]);
    for (int i = 0; i < 3; i++) imp_sys_free(x->row[i]);
    imp_sys_free(x->value);
    imp_sys_free(x->kv);
    imp_sys_free(x->kv_row);
    imp_sys_free(x->kv_layer_at);
    imp_sys_free(x->score);
    imp_sys_free(x->hidden);
    imp_sys_free(x);
}

static bool allocate(ref_exec *x, const ref_sizes *s)
{
    const imp_graph *g = x->graph;
    x->value = imp_sys_calloc(imp_graph_n(g) + 1, sizeof *x->value);
    x->kv = imp_sys_calloc(s->kv, sizeof *x->kv);
    x->kv_row = imp_sys_calloc(s->row, sizeof(float));
    x->kv_layer_at = imp_sys_calloc(s->kv_layer_at, sizeof *x->kv_layer_at);
    x->score = imp_sys_calloc(s->score, sizeof *x->score);
    x->hidden = imp_sys_calloc(s->hidden, sizeof *x->hidden);
    bool ok = x->value && x->kv && x->kv_row && x->kv_layer_at && x->score && x->hidden;
    for (int i = 0; i < 3; i++) ok = (x->row[i] = imp_sys_calloc(s->row, sizeof(float))) != NULL && ok;
    for (imp_val v = 1; ok && v <= imp_graph_n(g); v++) {
        const imp_node *n = imp_graph_node(g, v);
        if (n->op == IMP_OP_WEIGHT) continue;
        x->value[v] = imp_sys_calloc(imp_dev_max_rows(&x->lim, n->rows) * n->width, sizeof(float));
        ok = x->value[v] != NULL;
    }
    return ok;
}

static imp_status ref_compile(imp_device *d, const imp_graph *g, const imp_limits *lim, imp_exec **out,
                              imp_error *err)
{
    *out = NULL;
    ref_sizes s;
    IMP_TRY(sizes_of(g, lim, &s, err));
    ref_exec *x = imp_sys_calloc(1, sizeof *x);
    if (x == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while compiling for ref");
    x->base.dev = d;
    x->graph = g;
    x->lim = *lim;
    if (!allocate(x, &s)) {
        ref_exec_free(&x->base);
        return imp_fail(err, IMP_NOMEM, "out of memory while compiling for ref");
    }
    uint64_t at = 0;
    for (uint32_t i = 0; i < imp_graph_n_kv_layer(g); i++) {
        const imp_attn_attr *a = &imp_graph_kv_layer(g, i)->u.attn;
        x->kv_layer_at[i] = at;
        at += 2 * (uint64_t)lim->n_kv_block * IMP_KV_BLOCK * a->n_kv_head * a->head_dim;
    }
    *out = &x->base;
    return IMP_OK;
}

uint32_t imp_ref_n_row(const ref_step *s, imp_rows rows)
{
    return rows == IMP_ROWS_TOK ? s->b->n_tok : rows == IMP_ROWS_OUT ? s->b->n_out : s->b->n_seq;
}

static imp_status ref_run(imp_exec *base, const imp_batch *b, const float **out, imp_error *err)
{
    ref_exec *x = (ref_exec *)base;
    *out = NULL;
    IMP_TRY(imp_dev_check_batch(x->graph, &x->lim, b, err));
    ref_step s = {.x = x, .b = b};
    x->outside_status = IMP_OK;
    for (imp_val v = 1; v <= imp_graph_n(x->graph); v++) imp_ref_node(&s, v);
    if (x->outside_status != IMP_OK) {
        *err = x->outside_err;
        return x->outside_status;
    }
    if (x->group != NULL) IMP_TRY(imp_group_state(x->group, err));
    *out = x->value[imp_graph_output(x->graph)];
    return IMP_OK;
}

static void ref_kv_copy(imp_exec *base, uint32_t dst, uint32_t src)
{
    ref_exec *x = (ref_exec *)base;
    for (uint32_t i = 0; i < imp_graph_n_kv_layer(x->graph); i++) {
        const imp_attn_attr *a = &imp_graph_kv_layer(x->graph, i)->u.attn;
        uint64_t block_elem = (uint64_t)IMP_KV_BLOCK * a->n_kv_head * a->head_dim;
        for (int part = 0; part < 2; part++) {
            memmove(imp_ref_kv_at(x, a, part, &dst, 0), imp_ref_kv_at(x, a, part, &src, 0),
                    block_elem * sizeof(float));
        }
    }
}

/* Between the rows of the cache and the host layout [layer][k|v][head][position][head_dim]. */
static void move_block(ref_exec *x, uint32_t block, uint8_t *host, bool out)
{
    for (uint32_t i = 0; i < imp_graph_n_kv_layer(x->graph); i++) {
        const imp_attn_attr *a = &imp_graph_kv_layer(x->graph, i)->u.attn;
        for (int part = 0; part < 2; part++) {
            imp_dtype t = imp_ref_kv_type(x->lim.kv_dtype, part);
            const imp_dtype_info *info = imp_dtype_get(t);
            float *row = imp_ref_kv_at(x, a, part, &block, 0);
            for (uint32_t e = 0; e < a->n_kv_head * IMP_KV_BLOCK; e++) {
                float *v = row + (e % IMP_KV_BLOCK * a->n_kv_head + e / IMP_KV_BLOCK) * a->head_dim;
                if (out)
                    imp_ref_kv_encode(t, v, a->head_dim, host);
                else
                    info->to_f32(host, v, a->head_dim);
                host += a->head_dim / info->block_elem * info->block_bytes;
            }
        }
    }
}

static imp_status ref_kv_export(imp_exec *base, uint32_t block, void *host, imp_error *err)
{
    ref_exec *x = (ref_exec *)base;
    if (block >= x->lim.n_kv_block) return imp_fail(err, IMP_INVALID, "there is no KV block %u", block);
    move_block(x, block, host, true);
    return IMP_OK;
}

static imp_status ref_kv_import(imp_exec *base, uint32_t block, const void *host, imp_error *err)
{
    ref_exec *x = (ref_exec *)base;
    if (block >= x->lim.n_kv_block) return imp_fail(err, IMP_INVALID, "there is no KV block %u", block);
    move_block(x, block, (uint8_t *)(uintptr_t)host, false);
    return IMP_OK;
}

static const float *ref_value(const imp_exec *base, imp_val v, uint64_t *stride)
{
    const ref_exec *x = (const ref_exec *)base;
    *stride = imp_graph_node(x->graph, v)->width;
    return x->value[v];
}

static const char *ref_refuses(const imp_device *d, const imp_graph *g, imp_val v)
{
    (void)d, (void)g, (void)v;
    return NULL;
}

static void ref_close(imp_device *d)
{
    imp_sys_free(d);
}

static imp_status ref_join(imp_exec *const *member, uint32_t n, uint32_t rank, imp_group *g, imp_error *err)
{
    (void)n;
    ref_exec *x = (ref_exec *)member[rank];
    x->group = g;
    x->rank = rank;
    return imp_group_reserve(g, x->graph, &x->lim, err);
}

static void ref_outside(imp_exec *x, const imp_outside *o)
{
    ((ref_exec *)x)->outside = *o;
}

static const imp_device_ops REF_OPS = {
    .kind = "ref",
    .adapters = true,
    .refuses = ref_refuses,
    .plan = ref_plan,
    .compile = ref_compile,
    .run = ref_run,
    .kv_copy = ref_kv_copy,
    .exec_free = ref_exec_free,
    .close = ref_close,
    .kv_export = ref_kv_export,
    .kv_import = ref_kv_import,
    .value = ref_value,
    .join = ref_join,
    .outside = ref_outside,
    .same_rows = UINT32_MAX,
};

imp_status imp_dev_ref_open(imp_device **out, imp_error *err)
{
    *out = imp_sys_calloc(1, sizeof **out);
    if (*out == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while opening ref");
    (*out)->ops = &REF_OPS;
    memcpy((*out)->name, "ref0", 5);
    return IMP_OK;
}
