/* dev/cpu/lower.c - a graph becomes the flat list of ops that run_*.c carries out.
 *
 * Idea:    nodes are taken in order; each emits one op or a few (attention stores keys and values first, a linear layer
 *          may need its input as int8, once for all layers that read it, experts take six). A slice is no op but a view.
 *          schedule() puts an op into the current phase when all it reads from this phase was cut the same way, so that
 *          each thread reads only what it wrote itself; otherwise a barrier starts a new phase.
 * Always:  a buffer is never read or written by two ops of one phase that are cut differently.
 * Threads: one caller. */
#include "dev/check.h"
#include "dev/cpu/cpu.h"

typedef struct lower {
    const cpu_device *d;
    cpu_exec *x;
    const imp_graph *g;
    imp_error *err;
    imp_status status;
    uint32_t phase, phase_op; /* the current phase and its first op */
    uint32_t cap_op, cap_buf;
    cpu_view *view;    /* [n node + 1] where an activation lies */
    cpu_view *q8;      /* [n node + 1] the same as int8; buf 0: not yet */
    uint32_t *n_use;   /* [n node + 1] references by nodes, one more for the output */
    imp_val *last_use; /* [n node + 1] the last node that reads it */
    cpu_view *table;   /* [n node + 1] angles of a ROPE node */
    cpu_view *lora;    /* [n node + 1] A x of the adapters of all that read the value; buf 0: not yet */
} lower;

static const imp_node *node(const lower *l, imp_val v)
{
    return imp_graph_node(l->g, v);
}

static void *array(lower *l, uint64_t n, size_t size)
{
    void *p = imp_arena_array(l->x->arena, n, size);
    if (p == NULL) l->status = imp_fail(l->err, IMP_NOMEM, "out of memory while compiling for the CPU");
    return p;
}

/* ---- buffers and ops --------------------------------------------------------------------------- */

/* A buffer of n_row rows of row_bytes each. */
static cpu_view new_buf(lower *l, uint64_t n_row, uint64_t row_bytes)
{
    uint64_t bytes;
    bool fits =
        imp_mul_u64(n_row, row_bytes, &bytes) && bytes < UINT64_MAX / 4 && imp_align_u64(bytes, 64, &bytes);
    if (!fits || l->x->n_buf == l->cap_buf) {
        if (l->status == IMP_OK) {
            l->status = imp_fail(l->err, IMP_TOO_LARGE, "the sizes of the graph overflow; lower the limits");
        }
        return (cpu_view){0};
    }
    uint32_t i = l->x->n_buf++;
    l->x->buf[i] = (cpu_buf){.bytes = bytes, .first = UINT32_MAX};
    return (cpu_view){.buf = i, .stride = row_bytes};
}

static uint64_t max_rows(const lower *l, const imp_node *n)
{
    return imp_dev_max_rows(&l->x->lim, n->rows);
}

/* The next op of the list, filled by the caller and then given to schedule(). */
static cpu_op *new_op(lower *l, const imp_node *n, cpu_split split)
{
    static cpu_op none;
    if (l->x->n_op == l->cap_op) {
        l->status = imp_fail(l->err, IMP_INTERNAL, "the op list of the CPU is too short");
        return &none;
    }
    cpu_op *op = &l->x->op[l->x->n_op++];
    *op = (cpu_op){
        .node = n, .split = split, .rows = n->rows, .row_mul = 1, .n = (uint32_t)n->width, .step = 32};
    return op;
}

static void add_in(cpu_op *op, cpu_view v)
{
    op->in[op->n_in++] = v;
}

/* a and b give each thread the same rows, or the same columns of all rows. */
static bool same_cut(const cpu_op *a, const cpu_op *b)
{
    if (a->split != b->split) return false;
    bool same_rows = a->rows == b->rows && a->row_mul == b->row_mul;
    bool same_cols = a->n == b->n && a->step == b->step;
    switch (a->split) {
    case CPU_ROWS: return same_rows;
    case CPU_COLS: return same_cols;
    case CPU_WIDE:
    case CPU_AUTO: return same_rows && same_cols;
    case CPU_OWN: break;
    }
    return false;
}

/* The last op of this phase that writes buffer b; NULL: none. */
static const cpu_op *writer(const lower *l, uint32_t b)
{
    for (uint32_t i = l->x->n_op - 1; i > l->phase_op; i--) {
        const cpu_op *op = &l->x->op[i - 1];
        if (op->out.buf == b || (op->q8.buf != 0 && op->q8.buf == b)) return op;
    }
    return NULL;
}

/* Take over the cut of the ops that made the inputs in this phase, when it suits: grain is the multiple of columns that
 * must stay together. */
static void adopt(lower *l, cpu_op *op, uint32_t grain)
{
    op->split = CPU_AUTO;
    op->step = grain == 1 ? 32 : grain;
    for (uint32_t i = 0; i < op->n_in; i++) {
        const cpu_op *w = writer(l, op->in[i].buf);
        if (w == NULL) continue;
        bool suits = w->split == CPU_ROWS || (w->split != CPU_OWN && w->n == op->n && w->step % grain == 0);
        if (!suits) return;
        op->split = w->split;
        if (w->split != CPU_ROWS) op->step = w->step;
        return;
    }
}

/* What op reads of this phase was written by ops of the same cut, so that each thread reads what it wrote itself. (A
 * slice cannot deceive: it has fewer columns than its buffer, unless it is the whole.) */
static bool fits_phase(const lower *l, const cpu_op *op)
{
    for (uint32_t i = 0; i < op->n_in; i++) {
        const cpu_op *w = writer(l, op->in[i].buf);
        if (w != NULL && (op->reads_all || !same_cut(w, op))) return false;
    }
    return true;
}

static void touch(lower *l, uint32_t buf)
{
    cpu_buf *b = &l->x->buf[buf];
    if (buf == 0) return;
    if (b->first == UINT32_MAX) b->first = l->phase;
    b->last = l->phase;
}

/* Decide the phase of the newest op, whose inputs are set. */
static void schedule(lower *l, cpu_op *op)
{
    if (!fits_phase(l, op)) {
        l->phase++;
        l->phase_op = l->x->n_op - 1;
        op->barrier = true;
    }
    for (uint32_t i = 0; i < op->n_in; i++) touch(l, op->in[i].buf);
}

static void set_out(lower *l, cpu_op *op, cpu_view out)
{
    op->out = out;
    touch(l, out.buf);
}

/* Input i of the op may be overwritten: nobody reads it later, and who reads it in this phase cuts the same way. */
static bool can_overwrite(const lower *l, const cpu_op *op, uint32_t i, uint64_t row_bytes)
{
    const cpu_view in = op->in[i];
    const cpu_buf *b = &l->x->buf[in.buf];
    uint32_t n_mine = 0;
    if (l->x->lim.keep) return false;
    for (uint32_t k = 0; k < op->n_in; k++) n_mine += op->in[k].buf == in.buf;
    if (b->n_pending > n_mine || in.off != 0 || in.stride != row_bytes || op->split == CPU_OWN) return false;
    for (uint32_t k = l->phase_op; k < l->x->n_op; k++) {
        const cpu_op *o = &l->x->op[k];
        for (uint32_t j = 0; j < o->n_in; j++) {
            if (o->in[j].buf == in.buf && (o->reads_all || !same_cut(o, op))) return false;
        }
    }
    return true;
}

/* The output of node v: over one of the op's first n_over inputs when possible, else a new buffer. */
static cpu_view place_out(lower *l, cpu_op *op, imp_val v, uint32_t n_over)
{
    const imp_node *n = node(l, v);
    for (uint32_t i = 0; i < n_over; i++) {
        bool same_rows = node(l, n->in[i])->rows == n->rows;
        if (same_rows && can_overwrite(l, op, i, n->width * sizeof(float))) return op->in[i];
    }
    return new_buf(l, max_rows(l, n), n->width * sizeof(float));
}

/* ---- simple ops --------------------------------------------------------------------------------- */

static void emit_elementwise(lower *l, imp_val v)
{
    static void (*const run[IMP_N_OP])(const cpu_step *, const cpu_op *, cpu_part, uint32_t) = {
        [IMP_OP_ADD] = imp_cpu_run_add,     [IMP_OP_MUL] = imp_cpu_run_mul,
        [IMP_OP_SCALE] = imp_cpu_run_scale, [IMP_OP_SOFTCAP] = imp_cpu_run_softcap,
        [IMP_OP_ACT] = imp_cpu_run_act,     [IMP_OP_GLU] = imp_cpu_run_glu,
    };
    const imp_node *n = node(l, v);
    cpu_op *op = new_op(l, n, CPU_AUTO);
    op->run = run[n->op];
    if (n->op == IMP_OP_ACT || n->op == IMP_OP_GLU) op->u.act = n->u.act.act;
    if (n->op == IMP_OP_SCALE || n->op == IMP_OP_SOFTCAP) op->u.c = n->u.scale.c;
    for (uint32_t i = 0; i < n->n_in; i++) add_in(op, l->view[n->in[i]]);
    adopt(l, op, 1);
    schedule(l, op);
    set_out(l, op, place_out(l, op, v, n->n_in));
    l->view[v] = op->out;
}

static void emit_norm(lower *l, imp_val v)
{
    const imp_node *n = node(l, v);
    cpu_op *op = new_op(l, n, CPU_ROWS);
    op->run = n->op == IMP_OP_RMS_NORM     ? imp_cpu_run_rms_norm
              : n->op == IMP_OP_LAYER_NORM ? imp_cpu_run_layer_norm
                                           : imp_cpu_run_l2_norm;
    op->u.norm.w = n->n_in > 1 ? n->in[1] : 0;
    op->u.norm.b = n->n_in > 2 ? n->in[2] : 0;
    add_in(op, l->view[n->in[0]]);
    if (n->u.norm.group != n->width) adopt(l, op, (uint32_t)n->u.norm.group);
    schedule(l, op);
    set_out(l, op, place_out(l, op, v, 1));
    l->view[v] = op->out;
}

/* INPUT, EMBED, GATHER, POOL: rows of another kind than the input's. */
static void emit_rows(lower *l, imp_val v)
{
    const imp_node *n = node(l, v);
    cpu_op *op = new_op(l, n, n->op == IMP_OP_POOL ? CPU_AUTO : CPU_ROWS);
    op->run = n->op == IMP_OP_INPUT    ? imp_cpu_run_input
              : n->op == IMP_OP_EMBED  ? imp_cpu_run_embed
              : n->op == IMP_OP_GATHER ? imp_cpu_run_gather
                                       : imp_cpu_run_pool;
    op->reads_all = true;
    if (n->op == IMP_OP_EMBED) op->u.embed.layer = v;
    if (n->op == IMP_OP_GATHER || n->op == IMP_OP_POOL) add_in(op, l->view[n->in[0]]);
    schedule(l, op);
    set_out(l, op, new_buf(l, max_rows(l, n), n->width * sizeof(float)));
    l->view[v] = op->out;
}

static void emit_slice(lower *l, imp_val v)
{
    const imp_node *n = node(l, v);
    l->view[v] = l->view[n->in[0]];
    l->view[v].off += n->u.slice.begin * sizeof(float);
    l->x->buf[l->view[v].buf].n_pending += l->n_use[v];
}

/* ---- linear ------------------------------------------------------------------------------------- */

static uint32_t lcm(uint32_t a, uint32_t b)
{
    uint32_t x = a, y = b;
    while (y != 0) {
        uint32_t r = x % y;
        x = y;
        y = r;
    }
    return a / x * b;
}

/* Columns that the only reader of v wants together: a head; 0: it does not matter. */
static uint32_t head_of_reader(const lower *l, imp_val v)
{
    if (l->n_use[v] != 1 || l->last_use[v] == 0) return 0;
    const imp_node *r = node(l, l->last_use[v]);
    if (r->op == IMP_OP_ROPE) return r->u.rope.head_dim;
    if (r->op == IMP_OP_RMS_NORM && r->u.norm.group != r->width) return (uint32_t)r->u.norm.group;
    if (r->op == IMP_OP_ATTN) return r->u.attn.head_dim;
    return 0;
}

/* In which multiples the n columns of a product are dealt out: whole heads where that spares a barrier and loses no
 * balance, else at least 32 so that int8 blocks stay whole, else what the kernel likes. */
static uint32_t column_step(const lower *l, const imp_matmul *mm, uint64_t n, uint32_t head)
{
    uint32_t step = IMP_MAX(mm->n_step, 1u), whole = lcm(step, 32);
    if (head != 0 && head % step == 0 && n % head == 0 && n / head % l->d->n_thread == 0) return head;
    return n / whole >= l->d->n_thread ? whole : step;
}

/* Value v as int8 rows; made once. */
static cpu_view quantised(lower *l, imp_val v)
{
    if (l->q8[v].buf != 0) return l->q8[v];
    const imp_node *n = node(l, v);
    cpu_op *op = new_op(l, n, CPU_AUTO);
    op->run = imp_cpu_run_quant;
    add_in(op, l->view[v]);
    adopt(l, op, 32);
    schedule(l, op);
    set_out(l, op, new_buf(l, max_rows(l, n), n->width / 32 * sizeof(imp_q8_block)));
    return l->q8[v] = op->out;
}

static void need_thread_bytes(lower *l, uint64_t n)
{
    l->x->thread_bytes = IMP_MAX(l->x->thread_bytes, n);
}

/* The matrix of value w, which n_use of its parts multiply each row of node n with. */
static const cpu_weight *use_weight(lower *l, const imp_node *n, imp_val w, uint32_t n_use)
{
    const cpu_weight *cw = &l->x->weight[w];
    l->x->row_work[n->rows] += cw->part->dim[0] * cw->part->dim[1] * n_use;
    if (cw->mm->scratch_bytes != NULL) need_thread_bytes(l, cw->mm->scratch_bytes(cw->part->dim[1]));
    return cw;
}

/* Scratch that the kernels of an adapter's two products need: its matrices may have any of these types. */
static void need_lora_scratch(lower *l, uint64_t k)
{
    static const imp_dtype type[] = {IMP_F32, IMP_F16, IMP_BF16};
    for (size_t i = 0; i < IMP_COUNT(type); i++) {
        const imp_matmul *mm = imp_matmul_select_f32(type[i], k);
        if (mm->scratch_bytes != NULL) need_thread_bytes(l, mm->scratch_bytes(k));
    }
}

/* A x of the adapters for every linear layer that reads the same x as layer v: one op, when the first of them comes. */
static cpu_view lora_down(lower *l, imp_val v, uint32_t *slot)
{
    const imp_node *n = node(l, v);
    imp_val x = n->in[0];
    uint32_t rank = l->x->lim.lora_rank, n_layer = 0, before = 0;
    for (imp_val r = x + 1; r <= l->last_use[x]; r++) {
        bool reads = node(l, r)->op == IMP_OP_LINEAR && node(l, r)->in[0] == x;
        n_layer += reads;
        before += reads && r < v;
    }
    *slot = before * rank;
    if (l->lora[x].buf != 0) return l->lora[x];
    imp_val *layer = array(l, n_layer, sizeof *layer);
    if (layer == NULL) return l->lora[x];
    for (imp_val r = x + 1, i = 0; r <= l->last_use[x]; r++)
        if (node(l, r)->op == IMP_OP_LINEAR && node(l, r)->in[0] == x) layer[i++] = r;
    need_lora_scratch(l, node(l, x)->width);
    cpu_op *op = new_op(l, n, CPU_AUTO);
    op->run = imp_cpu_run_lora_down;
    op->reads_all = true;
    op->n = n_layer * rank;
    op->step = 16;
    op->u.down.layer = layer;
    op->u.down.n = n_layer;
    add_in(op, l->view[x]);
    schedule(l, op);
    set_out(l, op, new_buf(l, max_rows(l, n), op->n * sizeof(float)));
    return l->lora[x] = op->out;
}

static void emit_linear(lower *l, imp_val v)
{
    const imp_node *n = node(l, v);
    const cpu_weight *w = use_weight(l, n, n->in[1], 1);
    cpu_view x = w->mm->x_form == IMP_X_Q8 ? quantised(l, n->in[0]) : l->view[n->in[0]], down = {0};
    uint32_t slot = 0;
    if (l->x->lim.lora_rank > 0) down = lora_down(l, v, &slot);
    cpu_op *op =
        new_op(l, n, imp_graph_n_kv_layer(l->g) == 0 && n->rows == IMP_ROWS_TOK ? CPU_WIDE : CPU_COLS);
    op->run = imp_cpu_run_linear;
    op->reads_all = true;
    op->step = column_step(l, w->mm, n->width, head_of_reader(l, v));
    op->u.mm.w = w;
    op->u.mm.bias = n->n_in > 2 ? n->in[2] : 0;
    op->u.mm.layer = v;
    op->u.mm.slot = slot;
    add_in(op, x);
    if (down.buf != 0) add_in(op, down);
    schedule(l, op);
    set_out(l, op, new_buf(l, max_rows(l, n), n->width * sizeof(float)));
    l->view[v] = op->out;
}

/* ---- attention ---------------------------------------------------------------------------------- */

/* An earlier ROPE node that turns by the same angles; 0: none. */
static imp_val same_angles(const lower *l, imp_val v)
{
    const imp_rope_attr *a = &node(l, v)->u.rope;
    for (imp_val o = 1; o < v; o++) {
        const imp_rope_attr *b = &node(l, o)->u.rope;
        if (node(l, o)->op == IMP_OP_ROPE && a->n_rot == b->n_rot && a->mscale == b->mscale &&
            memcmp(a->inv_freq, b->inv_freq, a->n_rot / 2 * sizeof(float)) == 0) {
            return o;
        }
    }
    return 0;
}

/* The tables come first, one for all layers that turn by the same angles. */
static void emit_rope_tables(lower *l)
{
    for (imp_val v = 1; v <= imp_graph_n(l->g) && l->status == IMP_OK; v++) {
        const imp_node *n = node(l, v);
        if (n->op != IMP_OP_ROPE) continue;
        imp_val o = same_angles(l, v);
        if (o != 0) {
            l->table[v] = l->table[o];
            continue;
        }
        cpu_op *op = new_op(l, n, CPU_ROWS);
        op->run = imp_cpu_run_rope_table;
        schedule(l, op);
        set_out(l, op, new_buf(l, max_rows(l, n), n->u.rope.n_rot * sizeof(float)));
        l->table[v] = op->out;
    }
}

static void emit_rope(lower *l, imp_val v)
{
    const imp_node *n = node(l, v);
    cpu_op *op = new_op(l, n, CPU_AUTO);
    op->run = imp_cpu_run_rope;
    add_in(op, l->view[n->in[0]]);
    add_in(op, l->table[v]);
    adopt(l, op, n->u.rope.head_dim);
    schedule(l, op);
    set_out(l, op, place_out(l, op, v, 1));
    l->view[v] = op->out;
}

/* Bytes from a block's start to the keys or values of a layer. */
static uint64_t kv_offset(const lower *l, int32_t layer, imp_kv_part part)
{
    imp_dtype t = l->x->lim.kv_dtype;
    uint64_t at = 0;
    for (int32_t i = 0; i <= layer; i++) {
        const imp_attn_attr *a = &imp_graph_kv_layer(l->g, (uint32_t)i)->u.attn;
        uint64_t keys = a->n_kv_head * imp_kv_tile_bytes(t, IMP_KV_KEY, a->head_dim);
        if (i == layer) return at + (part == IMP_KV_VALUE ? keys : 0);
        at += keys + a->n_kv_head * imp_kv_tile_bytes(t, IMP_KV_VALUE, a->head_dim);
    }
    return at;
}

/* Keys or values into the cache; `order` makes the attention wait for it. */
static void emit_kv_store(lower *l, imp_val v, imp_kv_part part, cpu_view order)
{
    const imp_node *n = node(l, v);
    const imp_attn_attr *a = &n->u.attn;
    cpu_op *op = new_op(l, n, CPU_AUTO);
    op->run = imp_cpu_run_kv_store;
    op->n = a->n_kv_head * a->head_dim;
    op->u.kv.head_dim = a->head_dim;
    op->u.kv.part = part;
    op->u.kv.at = kv_offset(l, a->kv_layer, part);
    add_in(op, l->view[n->in[1 + part]]);
    adopt(l, op, a->head_dim);
    schedule(l, op);
    set_out(l, op, order);
}

/* Some linear layer reads v as int8. */
static bool is_read_as_q8(const lower *l, imp_val v)
{
    for (imp_val r = v + 1; r <= l->last_use[v]; r++) {
        const imp_node *n = node(l, r);
        if (n->op == IMP_OP_LINEAR && n->in[0] == v && l->x->weight[n->in[1]].mm->x_form == IMP_X_Q8)
            return true;
    }
    return false;
}

/* Value v as whole rows of its own. Keys and values without a cache: the kernel walks both with one stride, so a view into wider rows (values of a fused
 * projection beside rotated keys) becomes a matrix of its own. */
static cpu_view own_rows(lower *l, imp_val v)
{
    const imp_node *n = node(l, v);
    if (l->view[v].stride == n->width * sizeof(float)) return l->view[v];
    cpu_op *op = new_op(l, n, CPU_AUTO);
    op->run = imp_cpu_run_copy;
    add_in(op, l->view[v]);
    adopt(l, op, 1);
    schedule(l, op);
    set_out(l, op, new_buf(l, max_rows(l, n), n->width * sizeof(float)));
    return op->out;
}

static void emit_allreduce(lower *l, imp_val v)
{
    const imp_node *n = node(l, v);
    cpu_view x = own_rows(l, n->in[0]);
    cpu_op *op = new_op(l, n, CPU_OWN);
    op->run = imp_cpu_run_allreduce;
    add_in(op, x);
    schedule(l, op);
    set_out(l, op, new_buf(l, max_rows(l, n), n->width * sizeof(float)));
    l->view[v] = op->out;
}

static void emit_outside(lower *l, imp_val v)
{
    const imp_node *n = node(l, v);
    cpu_op *op = new_op(l, n, CPU_OWN);
    op->run = imp_cpu_run_outside;
    add_in(op, l->view[n->in[0]]);
    add_in(op, l->view[n->in[1]]);
    schedule(l, op);
    set_out(l, op, new_buf(l, max_rows(l, n), n->width * sizeof(float)));
    l->view[v] = op->out;
}

static void emit_attn(lower *l, imp_val v)
{
    const imp_node *n = node(l, v);
    const imp_attn_attr *a = &n->u.attn;
    cpu_view order = {0}, k = {0}, val = {0};
    if (a->kv_layer < 0) {
        k = own_rows(l, n->in[1]);
        val = own_rows(l, n->in[2]);
    } else {
        k = val = order = new_buf(l, 0, 0);
        emit_kv_store(l, v, IMP_KV_KEY, order);
        emit_kv_store(l, v, IMP_KV_VALUE, order);
    }
    cpu_op *op = new_op(l, n, CPU_OWN);
    op->run = imp_cpu_run_attn;
    add_in(op, l->view[n->in[0]]);
    add_in(op, k);
    add_in(op, val);
    uint32_t n_group = a->n_head / a->n_kv_head;
    for (int part = 0; part < 2 && a->kv_layer >= 0; part++)
        op->u.attn.at[part] = kv_offset(l, a->kv_layer, (imp_kv_part)part);
    op->u.attn.sink = n->n_in > 3 ? n->in[3] : 0;
    op->u.attn.tile = IMP_MIN(64u, IMP_MAX(1u, (2 * l->d->attn->row_step + n_group - 1) / n_group));
    need_thread_bytes(l, imp_attn_scratch_bytes(op->u.attn.tile, n_group, a->head_dim));
    if (a->kv_layer >= 0 && l->x->lim.max_ctx > IMP_ATTN_CHUNK) {
        uint64_t n_chunk = ((uint64_t)l->x->lim.max_ctx + IMP_ATTN_CHUNK - 1) / IMP_ATTN_CHUNK;
        uint64_t bytes = n_chunk * imp_attn_part_floats(1, n_group, a->head_dim) * sizeof(float);
        l->x->slot_bytes = IMP_MAX(l->x->slot_bytes, bytes);
    }
    schedule(l, op);
    set_out(l, op, new_buf(l, max_rows(l, n), n->width * sizeof(float)));
    if (a->head_dim % 32 == 0 && is_read_as_q8(l, v)) {
        op->q8 = new_buf(l, max_rows(l, n), n->width / 32 * sizeof(imp_q8_block));
        touch(l, op->q8.buf);
        l->q8[v] = op->q8;
    }
    l->view[v] = op->out;
}

/* ---- experts ------------------------------------------------------------------------------------ */

/* An op over pairs (row, chosen expert) with n columns. */
static cpu_op *pair_op(lower *l, const imp_node *n, cpu_split split, uint64_t n_col)
{
    cpu_op *op = new_op(l, n, split);
    op->row_mul = n->u.moe.n_used;
    op->n = (uint32_t)n_col;
    return op;
}

static cpu_view pair_buf(lower *l, const imp_node *n, uint64_t row_bytes)
{
    return new_buf(l, max_rows(l, n) * n->u.moe.n_used, row_bytes);
}

static cpu_view emit_moe_linear(lower *l, const imp_node *n, imp_val weight, cpu_view x, cpu_view order,
                                uint32_t step)
{
    const cpu_weight *w = use_weight(l, n, weight, n->u.moe.n_used);
    uint64_t n_col = w->part->dim[0];
    cpu_op *op = pair_op(l, n, CPU_COLS, n_col);
    op->run = imp_cpu_run_moe_linear;
    op->reads_all = true;
    op->step = step;
    op->u.mm.w = w;
    add_in(op, x);
    add_in(op, order);
    schedule(l, op);
    set_out(l, op, pair_buf(l, n, n_col * sizeof(float)));
    return op->out;
}

/* Rows of the input sorted by expert, as f32 or int8. */
static cpu_view emit_moe_gather(lower *l, const imp_node *n, imp_x_form form, cpu_view order)
{
    imp_val x = n->in[0];
    uint64_t k = node(l, x)->width;
    cpu_view from = form == IMP_X_Q8 ? quantised(l, x) : l->view[x];
    cpu_op *op = pair_op(l, n, CPU_ROWS, k);
    op->run = imp_cpu_run_moe_gather;
    op->reads_all = true;
    add_in(op, from);
    add_in(op, order);
    schedule(l, op);
    set_out(l, op, pair_buf(l, n, form == IMP_X_Q8 ? k / 32 * sizeof(imp_q8_block) : k * sizeof(float)));
    return op->out;
}

/* act(gate) * up, as the down matrix wants it. */
static cpu_view emit_moe_glu(lower *l, const imp_node *n, cpu_view gate, cpu_view up, uint64_t n_ff,
                             imp_x_form form)
{
    cpu_op *op = pair_op(l, n, CPU_AUTO, n_ff);
    op->run = imp_cpu_run_glu;
    op->u.act = n->u.moe.act;
    add_in(op, gate);
    add_in(op, up);
    adopt(l, op, 1);
    schedule(l, op);
    set_out(l, op, gate);
    if (form != IMP_X_Q8) return op->out;
    cpu_op *q = pair_op(l, n, CPU_AUTO, n_ff);
    q->run = imp_cpu_run_quant;
    add_in(q, gate);
    adopt(l, q, 32);
    schedule(l, q);
    set_out(l, q, pair_buf(l, n, n_ff / 32 * sizeof(imp_q8_block)));
    return q->out;
}

static void emit_moe(lower *l, imp_val v)
{
    const imp_node *n = node(l, v);
    const imp_moe_attr *a = &n->u.moe;
    const imp_matmul *mm_gate = l->x->weight[n->in[2]].mm, *mm_down = l->x->weight[n->in[4]].mm;
    const imp_matmul *mm_up = l->x->weight[n->in[3]].mm;
    uint64_t n_ff = l->x->weight[n->in[2]].part->dim[0], n_pair = max_rows(l, n) * a->n_used;
    if (n_pair > UINT32_MAX / 4) {
        l->status =
            imp_fail(l->err, IMP_TOO_LARGE, "%s: too many rows and experts a step; lower max_tok", n->name);
        return;
    }
    need_thread_bytes(l, a->n_expert * (sizeof(float) + 1));
    cpu_op *route = new_op(l, n, CPU_ROWS);
    route->run = imp_cpu_run_moe_route;
    add_in(route, l->view[n->in[1]]);
    schedule(l, route);
    set_out(l, route, new_buf(l, max_rows(l, n), a->n_used * sizeof(cpu_route)));
    cpu_view routes = route->out;

    cpu_op *sort = new_op(l, n, CPU_OWN);
    sort->run = imp_cpu_run_moe_sort;
    add_in(sort, routes);
    schedule(l, sort);
    set_out(l, sort, new_buf(l, 1, (a->n_expert + 1 + 2 * n_pair) * sizeof(uint32_t)));
    cpu_view order = sort->out;

    cpu_view x = emit_moe_gather(l, n, mm_gate->x_form, order);
    cpu_view xu = mm_up->x_form == mm_gate->x_form ? x : emit_moe_gather(l, n, mm_up->x_form, order);
    uint32_t step = column_step(l, mm_gate, n_ff, 0);
    cpu_view gate = emit_moe_linear(l, n, n->in[2], x, order, step);
    cpu_view up = emit_moe_linear(l, n, n->in[3], xu, order, step);
    cpu_view h = emit_moe_glu(l, n, gate, up, n_ff, mm_down->x_form);
    step = column_step(l, mm_down, n->width, 0);
    cpu_view y = emit_moe_linear(l, n, n->in[4], h, order, step);

    cpu_op *sum = new_op(l, n, CPU_COLS);
    sum->run = imp_cpu_run_moe_combine;
    sum->step = step;
    add_in(sum, y);
    add_in(sum, order);
    add_in(sum, routes);
    schedule(l, sum);
    set_out(l, sum, new_buf(l, max_rows(l, n), n->width * sizeof(float)));
    l->view[v] = sum->out;
}

/* ---- the whole ---------------------------------------------------------------------------------- */

static void emit_node(lower *l, imp_val v)
{
    const imp_node *n = node(l, v);
    switch (n->op) {
    case IMP_OP_WEIGHT: return;
    case IMP_OP_INPUT:
    case IMP_OP_EMBED:
    case IMP_OP_GATHER:
    case IMP_OP_POOL: emit_rows(l, v); break;
    case IMP_OP_LINEAR: emit_linear(l, v); break;
    case IMP_OP_RMS_NORM:
    case IMP_OP_LAYER_NORM:
    case IMP_OP_L2_NORM: emit_norm(l, v); break;
    case IMP_OP_ADD:
    case IMP_OP_MUL:
    case IMP_OP_SCALE:
    case IMP_OP_SOFTCAP:
    case IMP_OP_ACT:
    case IMP_OP_GLU: emit_elementwise(l, v); break;
    case IMP_OP_SLICE: emit_slice(l, v); break;
    case IMP_OP_ROPE: emit_rope(l, v); break;
    case IMP_OP_ATTN: emit_attn(l, v); break;
    case IMP_OP_MOE: emit_moe(l, v); break;
    case IMP_OP_ALLREDUCE: emit_allreduce(l, v); break;
    case IMP_OP_OUTSIDE: emit_outside(l, v); break;
    case IMP_N_OP: return;
    }
    if (l->status != IMP_OK) return;
    /* an op that wrote over its input hands the input's buffer on, with the references of its own value */
    if (n->op != IMP_OP_SLICE) l->x->buf[l->view[v].buf].n_pending += l->n_use[v];
    for (uint32_t i = 0; i < n->n_in; i++) {
        if (node(l, n->in[i])->op != IMP_OP_WEIGHT) l->x->buf[l->view[n->in[i]].buf].n_pending--;
    }
}

/* The result must be whole rows that outlive the last phase. */
static void emit_output(lower *l)
{
    imp_val v = imp_graph_output(l->g);
    const imp_node *n = node(l, v);
    if (l->view[v].stride != n->width * sizeof(float)) {
        cpu_op *op = new_op(l, n, CPU_AUTO);
        op->run = imp_cpu_run_copy;
        add_in(op, l->view[v]);
        adopt(l, op, 1);
        schedule(l, op);
        set_out(l, op, new_buf(l, max_rows(l, n), n->width * sizeof(float)));
        l->view[v] = op->out;
    }
    touch(l, l->view[v].buf);
    l->x->out = l->view[v];
    if (l->x->lim.keep) l->x->value = l->view;
}

/* Upper bounds of ops and buffers, use counts, and arrays of that size. */
static void prepare(lower *l)
{
    uint32_t n_node = imp_graph_n(l->g);
    l->cap_op = 1;
    for (imp_val v = 1; v <= n_node; v++) {
        imp_op op = node(l, v)->op;
        l->cap_op += op == IMP_OP_WEIGHT                        ? 0
                     : op == IMP_OP_MOE                         ? 12
                     : op == IMP_OP_ATTN || op == IMP_OP_LINEAR ? 3
                                                                : 2;
    }
    l->cap_buf = 2 * l->cap_op + 2;
    l->x->op = array(l, l->cap_op, sizeof *l->x->op);
    l->x->buf = array(l, l->cap_buf, sizeof *l->x->buf);
    l->view = array(l, n_node + 1, sizeof *l->view);
    l->q8 = array(l, n_node + 1, sizeof *l->q8);
    l->n_use = array(l, n_node + 1, sizeof *l->n_use);
    l->last_use = array(l, n_node + 1, sizeof *l->last_use);
    l->table = array(l, n_node + 1, sizeof *l->table);
    l->lora = array(l, n_node + 1, sizeof *l->lora);
    l->x->n_buf = 1;
    if (l->status != IMP_OK) return;
    for (imp_val v = 1; v <= n_node; v++) {
        const imp_node *n = node(l, v);
        for (uint32_t i = 0; i < n->n_in; i++) {
            l->n_use[n->in[i]]++;
            l->last_use[n->in[i]] = v;
        }
    }
    l->n_use[imp_graph_output(l->g)]++;
}

/* Bytes of a KV block over all layers, and of all blocks. */
static void size_kv(lower *l)
{
    cpu_exec *x = l->x;
    x->kv_block_bytes = imp_dev_kv_block_bytes(l->g, x->lim.kv_dtype);
    if (!imp_mul_u64(x->kv_block_bytes, x->lim.n_kv_block, &x->kv_bytes))
        l->status = imp_fail(l->err, IMP_TOO_LARGE, "the size of the KV cache overflows; lower the context");
}

static void list_phases(lower *l)
{
    cpu_exec *x = l->x;
    uint32_t *first = array(l, x->n_op + 2, sizeof *first);
    if (first == NULL) return;
    x->phase_op = first;
    for (uint32_t i = 0; i < x->n_op; i++) {
        if (i == 0 || x->op[i].barrier) first[x->n_phase++] = i;
    }
    first[x->n_phase] = x->n_op;
}

/* What adapters need beside their ops: the rows that use them, scratch, and the phases that are left without them. */
static void prepare_lora(lower *l)
{
    cpu_exec *x = l->x;
    if (x->lim.lora_rank == 0) return;
    for (int kind = 0; kind < 3; kind++) {
        uint32_t n = imp_dev_max_rows(&x->lim, (imp_rows)kind);
        x->lora_run[kind] = array(l, n, sizeof *x->lora_run[kind]);
    }
    need_lora_scratch(l, x->lim.lora_rank);
    x->lora_at = (x->thread_bytes + 63) & ~63ull;
    x->thread_bytes = x->lora_at + imp_cpu_lora_bytes(x->lim.lora_rank);
    x->plain_phase = array(l, x->n_phase, sizeof *x->plain_phase);
    for (uint32_t i = 0; i < x->n_phase && x->plain_phase != NULL; i++) {
        bool plain = false;
        for (uint32_t k = x->phase_op[i]; k < x->phase_op[i + 1]; k++)
            plain = plain || x->op[k].run != imp_cpu_run_lora_down;
        if (plain) x->plain_phase[x->n_plain++] = i;
    }
}

imp_status imp_cpu_lower(const cpu_device *d, cpu_exec *x, imp_error *err)
{
    lower l = {.d = d, .x = x, .g = x->graph, .err = err, .status = IMP_OK};
    IMP_TRY(imp_cpu_choose_weights(d, x, err));
    prepare(&l);
    if (l.status == IMP_OK) size_kv(&l);
    if (l.status == IMP_OK) emit_rope_tables(&l);
    for (imp_val v = 1; v <= imp_graph_n(l.g) && l.status == IMP_OK; v++) emit_node(&l, v);
    if (l.status == IMP_OK) emit_output(&l);
    if (l.status == IMP_OK) list_phases(&l);
    if (l.status == IMP_OK) prepare_lora(&l);
    if (l.status != IMP_OK) return l.status;
    x->shared_bytes = imp_cpu_place(x);
    if (x->shared_bytes == UINT64_MAX)
        return imp_fail(err, IMP_NOMEM, "out of memory while compiling for the CPU");
    uint64_t own, parts, n_slot = (uint64_t)CPU_SPLIT_SLOTS * d->n_thread;
    bool fits = imp_align_u64(x->thread_bytes, 64, &x->thread_bytes) &&
                imp_mul_u64(x->thread_bytes, d->n_thread, &own) &&
                imp_add_u64(x->shared_bytes, own, &x->part_at) &&
                imp_mul_u64(x->slot_bytes, n_slot, &parts) && imp_add_u64(x->part_at, parts, &x->done_at) &&
                imp_add_u64(x->done_at, (n_slot * sizeof(uint32_t) + 63) / 64 * 64, &x->scratch_bytes);
    return fits ? IMP_OK
                : imp_fail(err, IMP_TOO_LARGE, "the size of the scratch memory overflows; lower the limits");
}
