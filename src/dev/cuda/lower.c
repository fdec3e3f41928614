/* dev/cuda/lower.c - a graph to the list of ops the device runs, and every size of memory.
 *
 * Idea:    walk the nodes in order. Linears that read the same value and have one layout become one matrix (q|k|v,
 *          gate|up); an RMS norm read by products alone moves into them; act(gate) * up and x + linear become epilogues;
 *          RoPE moves into the kernel that writes the cache; slices are views.
 * Always:  what plan prints is what compile allocates: both read the sizes made here. */
#include "dev/check.h"
#include "dev/cuda/cuda.h"

typedef struct lower {
    cuda_exec *x;
    const imp_graph *g;
    imp_error *err;
    imp_status status;
    uint32_t *n_use;
    cuda_loc *loc;    /* [node]; buf 0: not computed (yet) */
    uint32_t *mat_of; /* [node] matrix of a weight that stands alone */
    imp_val *user;    /* [node] the last node that reads it */
    imp_val *fold;    /* [linear] the GLU or ADD that becomes its epilogue, or 0 */
    imp_val *lazy;    /* [norm] itself when it moves into its readers */
    bool *done;       /* [node] computed by an op that came earlier */
} lower;

static const imp_node *node(const lower *l, imp_val v)
{
    return imp_graph_node(l->g, v);
}
static const imp_tensor *tensor(const lower *l, imp_val v)
{
    return &node(l, v)->u.weight.part[0];
}
static bool is(const lower *l, imp_val v, imp_op op)
{
    return v != 0 && node(l, v)->op == op;
}

/* ---- buffers ---------------------------------------------------------------------------------------- */

static uint32_t new_buf(lower *l, uint64_t bytes)
{
    uint32_t b = ++l->x->n_buf;
    l->x->buf[b] =
        (cuda_buf){.bytes = imp_cuda_up(IMP_MAX(bytes, 16), 256), .first = l->x->n_op, .last = l->x->n_op};
    return b;
}
static cuda_loc new_rows(lower *l, imp_rows rows, uint64_t width)
{
    uint64_t elem;
    if (!imp_mul_u64(imp_dev_max_rows(&l->x->lim, rows), width, &elem) || elem > UINT64_MAX / 64) {
        l->status = imp_fail(l->err, IMP_TOO_LARGE, "the sizes of the graph overflow; lower the limits");
        elem = 1;
    }
    return (cuda_loc){.buf = new_buf(l, elem * 4), .ld = (uint32_t)width};
}
static cuda_loc use(lower *l, imp_val v)
{
    cuda_loc p = l->loc[v];
    cuda_buf *b = &l->x->buf[p.buf];
    b->last = IMP_MAX(b->last, l->x->n_op);
    return p;
}
static cuda_op *new_op(lower *l, cuda_kind kind, imp_val v)
{
    cuda_op *op = &l->x->op[l->x->n_op];
    const imp_node *n = node(l, v);
    *op = (cuda_op){.kind = kind, .rows = n->rows, .node = n, .width = (uint32_t)n->width, .out_val = v};
    op->vec[0] = op->vec[1] = CUDA_NONE;
    return op;
}
static void make(lower *l, cuda_op *op, imp_val v)
{
    l->loc[v] = op->out = new_rows(l, node(l, v)->rows, node(l, v)->width);
}

/* Offsets: each buffer at the lowest place that no buffer alive at the same time takes. */
static void place(cuda_exec *x)
{
    for (uint32_t i = 1; i <= x->n_buf; i++) {
        cuda_buf *b = &x->buf[i];
        b->at = 0;
        for (bool moved = true; moved;) {
            moved = false;
            for (uint32_t k = 1; k < i; k++) {
                const cuda_buf *o = &x->buf[k];
                bool together = o->first <= b->last && b->first <= o->last;
                if (together && b->at < o->at + o->bytes && o->at < b->at + b->bytes) {
                    b->at = o->at + o->bytes;
                    moved = true;
                }
            }
        }
        x->values_bytes = IMP_MAX(x->values_bytes, b->at + b->bytes);
    }
}

/* ---- weights ------------------------------------------------------------------------------------------ */

static uint64_t add_vec(lower *l, const imp_tensor *t, const float *data, uint64_t n)
{
    cuda_exec *x = l->x;
    x->vec[x->n_vec++] = (cuda_vec){.t = t, .data = data, .n = (uint32_t)n, .at = x->weights_bytes};
    x->weights_bytes += n * 4;
    return x->vec[x->n_vec - 1].at;
}
static uint64_t start_vec(lower *l)
{
    l->x->weights_bytes = imp_cuda_up(l->x->weights_bytes, 256);
    return l->x->weights_bytes;
}
static uint64_t vector(lower *l, const imp_node *n, uint32_t input)
{
    if (input >= n->n_in || n->in[input] == 0) return CUDA_NONE;
    (void)start_vec(l);
    return add_vec(l, tensor(l, n->in[input]), NULL, node(l, n->in[input])->width);
}
static void fill(lower *l, uint32_t mat, uint32_t part, uint32_t row, const imp_tensor *t)
{
    l->x->fill[l->x->n_fill++] = (cuda_fill){.t = t, .mat = mat, .part = part, .row = row};
}
static uint32_t new_mat(lower *l, uint32_t type, uint64_t n, uint64_t k, uint32_t n_part)
{
    l->x->weights_bytes = imp_cuda_up(l->x->weights_bytes, 256);
    return imp_cuda_add_mat(l->x, type, n, k, n_part);
}
/* The matrix of one weight by itself (embedding tables, tied outputs). */
static uint32_t matrix(lower *l, imp_val w)
{
    if (l->mat_of[w] == 0) {
        const imp_tensor *t = tensor(l, w);
        l->mat_of[w] = new_mat(l, imp_cuda_type(t), imp_tensor_n_row(t), imp_tensor_n_col(t), 1);
        fill(l, l->mat_of[w], 0, 0, t);
    }
    return l->mat_of[w];
}

/* ---- what folds into what ------------------------------------------------------------------------------- */

/* A linear whose weight no other node reads. */
static bool free_linear(const lower *l, imp_val v)
{
    return is(l, v, IMP_OP_LINEAR) && l->n_use[node(l, v)->in[1]] == 1;
}

static void find_folds(lower *l)
{
    for (imp_val v = 1; v <= imp_graph_n(l->g); v++) {
        const imp_node *n = node(l, v);
        if (n->op == IMP_OP_GLU) {
            imp_val a = n->in[0], b = n->in[1];
            if (a != b && free_linear(l, a) && free_linear(l, b) && l->n_use[a] == 1 && l->n_use[b] == 1 &&
                node(l, a)->in[0] == node(l, b)->in[0] && node(l, a)->width == node(l, b)->width &&
                imp_cuda_type(tensor(l, node(l, a)->in[1])) == imp_cuda_type(tensor(l, node(l, b)->in[1]))) {
                l->fold[a] = l->fold[b] = v;
            } else if (is(l, a, IMP_OP_SLICE) && is(l, b, IMP_OP_SLICE)) {
                imp_val s = node(l, a)->in[0];
                if (free_linear(l, s) && node(l, b)->in[0] == s && l->n_use[s] == 2 && l->n_use[a] == 1 &&
                    l->n_use[b] == 1 && node(l, a)->u.slice.begin == 0 &&
                    node(l, b)->u.slice.begin == n->width && node(l, s)->width == 2 * n->width &&
                    imp_cuda_half(n->width) == n->width)
                    l->fold[s] = v;
            }
        } else if (n->op == IMP_OP_ADD) {
            for (int i = 1; i >= 0; i--) {
                imp_val a = n->in[i], other = n->in[1 - i];
                if ((is(l, a, IMP_OP_LINEAR) || is(l, a, IMP_OP_ALLREDUCE)) && l->n_use[a] == 1 &&
                    other < a && l->fold[a] == 0) {
                    l->fold[a] = v;
                    break;
                }
            }
        } else if (n->op == IMP_OP_RMS_NORM && n->u.norm.group == n->width) {
            bool lazy = imp_graph_output(l->g) != v;
            for (imp_val u = v + 1; u <= imp_graph_n(l->g) && lazy; u++) {
                for (uint32_t i = 0; i < node(l, u)->n_in; i++)
                    if (node(l, u)->in[i] == v) lazy = lazy && node(l, u)->op == IMP_OP_LINEAR && i == 0;
            }
            l->lazy[v] = lazy ? v : 0;
        }
    }
}

/* ---- linears -------------------------------------------------------------------------------------------- */

enum { MAX_GROUP = 4 };

/* Linears that read what v reads, in one layout: at most MAX_GROUP, v first. Those that fold alone stay alone. */
static uint32_t group_of(lower *l, imp_val v, imp_val *out)
{
    uint32_t n = 0;
    const imp_node *first = node(l, v);
    out[n++] = v;
    if (l->fold[v] != 0 && is(l, l->fold[v], IMP_OP_GLU)) {
        const imp_node *glu = node(l, l->fold[v]);
        if (is(l, glu->in[0], IMP_OP_LINEAR)) out[0] = glu->in[0], out[n++] = glu->in[1];
        return n;
    }
    if (l->fold[v] != 0 || !free_linear(l, v)) return n;
    uint32_t type = imp_cuda_type(tensor(l, first->in[1]));
    for (imp_val u = v + 1; u <= imp_graph_n(l->g) && n < MAX_GROUP; u++) {
        const imp_node *o = node(l, u);
        if (o->op == IMP_OP_LINEAR && o->in[0] == first->in[0] && !l->done[u] && l->fold[u] == 0 &&
            free_linear(l, u) && imp_cuda_type(tensor(l, o->in[1])) == type)
            out[n++] = u;
    }
    return n;
}

static uint64_t group_bias(lower *l, const imp_val *v, uint32_t n)
{
    bool any = false;
    for (uint32_t i = 0; i < n; i++) any = any || (node(l, v[i])->n_in > 2 && node(l, v[i])->in[2] != 0);
    if (!any) return CUDA_NONE;
    uint64_t at = start_vec(l);
    for (uint32_t i = 0; i < n; i++) {
        const imp_node *o = node(l, v[i]);
        bool has = o->n_in > 2 && o->in[2] != 0;
        (void)add_vec(l, has ? tensor(l, o->in[2]) : NULL, NULL, o->width);
    }
    return at;
}

static void emit_linear(lower *l, imp_val v)
{
    imp_val in[MAX_GROUP];
    uint32_t n = group_of(l, v, in);
    const imp_node *first = node(l, v);
    cuda_op *op = new_op(l, CUDA_LINEAR, v);
    imp_val fold = l->fold[v];
    bool glu = fold != 0 && is(l, fold, IMP_OP_GLU);
    uint64_t width = 0, k = node(l, first->in[1])->width;
    for (uint32_t i = 0; i < n; i++) width += node(l, in[i])->width;
    if (n == 1) {
        op->mat = matrix(l, first->in[1]);
    } else {
        uint32_t type = imp_cuda_type(tensor(l, first->in[1])), half = imp_cuda_half(width / 2);
        op->mat = new_mat(l, type, glu ? 2ull * half : width, k, 1);
        for (uint32_t i = 0, row = 0; i < n; row += glu ? half : (uint32_t)node(l, in[i])->width, i++)
            fill(l, op->mat, 0, row, tensor(l, node(l, in[i])->in[1]));
    }
    op->vec[1] = group_bias(l, in, n);
    op->x_val = first->in[0];
    imp_val norm = l->lazy[op->x_val];
    if (norm != 0) {
        const imp_node *nn = node(l, norm);
        op->normed = true;
        op->vec[0] = vector(l, nn, 1);
        op->eps = nn->u.norm.eps;
        op->w_offset = nn->u.norm.w_offset;
        op->a = use(l, nn->in[0]);
    } else {
        op->a = use(l, op->x_val);
    }
    if (glu) {
        op->glu = true;
        op->act = node(l, fold)->u.act.act;
        width /= 2;
    } else if (fold != 0) {
        op->has_res = true;
        op->b = use(l, node(l, fold)->in[0] == v ? node(l, fold)->in[1] : node(l, fold)->in[0]);
    }
    op->width = (uint32_t)width;
    op->out = new_rows(l, first->rows, width);
    uint64_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        l->done[in[i]] = true;
        l->loc[in[i]] = op->out;
        l->loc[in[i]].off = at;
        at += node(l, in[i])->width;
    }
    if (fold != 0) {
        l->loc[fold] = op->out;
        l->done[fold] = true;
        op->out_val = fold;
    }
    l->x->n_op++;
}

/* ---- the other ops ---------------------------------------------------------------------------------------- */

static void emit_rows(lower *l, imp_val v, uint32_t row_op)
{
    const imp_node *n = node(l, v);
    cuda_op *op = new_op(l, CUDA_ROWS, v);
    op->row_op = row_op;
    op->a = use(l, n->in[0]);
    if (n->n_in > 1) op->b = use(l, n->in[1]);
    op->c0 = n->u.scale.c;
    if (n->op == IMP_OP_ACT || n->op == IMP_OP_GLU) op->act = n->u.act.act;
    make(l, op, v);
    l->x->n_op++;
}

static void emit_norm(lower *l, imp_val v, cuda_kind kind)
{
    const imp_node *n = node(l, v);
    if (l->lazy[v] != 0) { /* keep what it reads until its last reader */
        l->done[v] = true;
        return;
    }
    cuda_op *op = new_op(l, kind, v);
    op->a = use(l, n->in[0]);
    op->vec[0] = vector(l, n, 1);
    op->vec[1] = vector(l, n, 2);
    op->eps = n->u.norm.eps;
    op->w_offset = n->u.norm.w_offset;
    make(l, op, v);
    l->x->n_op++;
}

static uint64_t freq(lower *l, const imp_rope_attr *a)
{
    (void)start_vec(l);
    return add_vec(l, NULL, a->inv_freq, a->n_rot / 2);
}

/* RoPE alone: the kernel of the cache with nothing for the cache. */
static void emit_rope(lower *l, imp_val v)
{
    const imp_node *n = node(l, v);
    imp_val u = l->user[v];
    if (l->n_use[v] == 1 && is(l, u, IMP_OP_ATTN) && (node(l, u)->in[0] == v || node(l, u)->in[1] == v))
        return;
    cuda_op *op = new_op(l, CUDA_ROPE_KV, v);
    op->rope_q = &n->u.rope;
    op->vec[0] = freq(l, op->rope_q);
    op->a = use(l, n->in[0]);
    make(l, op, v);
    l->x->n_op++;
}

static void emit_attn(lower *l, imp_val v)
{
    const imp_node *n = node(l, v);
    const imp_attn_attr *a = &n->u.attn;
    cuda_exec *x = l->x;
    uint64_t part = 0;
    imp_val q = n->in[0], k = n->in[1];
    cuda_op *kv = new_op(l, CUDA_ROPE_KV, v);
    if (l->loc[q].buf == 0) {
        kv->rope_q = &node(l, q)->u.rope;
        kv->vec[0] = freq(l, kv->rope_q);
        kv->a = use(l, node(l, q)->in[0]);
        kv->out = l->loc[q] = new_rows(l, n->rows, node(l, q)->width);
    }
    if (l->loc[k].buf == 0) {
        kv->rope_k = &node(l, k)->u.rope;
        kv->vec[1] = freq(l, kv->rope_k);
        k = node(l, k)->in[0];
    }
    kv->b = use(l, k);
    kv->c = use(l, n->in[2]);
    if (a->kv_layer >= 0) {
        part = (uint64_t)x->lim.n_kv_block * a->n_kv_head * cu_kv_tile_bytes(x->kv_kind, a->head_dim);
        kv->kc = x->kv_at[a->kv_layer];
        x->has_cached = true;
    } else {
        uint64_t n_block = x->lim.max_tok / CU_KV_BLOCK + (uint64_t)x->lim.max_seq;
        part = imp_cuda_up(n_block * a->n_kv_head * cu_kv_tile_bytes(imp_cuda_kv_kind(x, true), a->head_dim),
                           256);
        kv->tmp = new_buf(l, 2 * part);
        x->has_uncached = true;
    }
    kv->vc = kv->kc + part;
    x->n_op++;
    cuda_op *op = new_op(l, CUDA_ATTN, v);
    op->a = use(l, q);
    op->kc = kv->kc;
    op->vc = kv->vc;
    op->tmp = kv->tmp;
    if (op->tmp != 0) x->buf[op->tmp].last = x->n_op;
    op->vec[0] = vector(l, n, 3);
    make(l, op, v);
    x->n_op++;
}

static void emit_moe(lower *l, imp_val v)
{
    const imp_node *n = node(l, v), *gate = node(l, n->in[2]), *up = node(l, n->in[3]),
                   *down = node(l, n->in[4]);
    const imp_moe_attr *a = &n->u.moe;
    cuda_op *op = new_op(l, CUDA_MOE, v);
    uint32_t type = imp_cuda_type(gate->u.weight.part),
             rows = IMP_MIN(l->x->lim.max_tok, (uint32_t)CUDA_MOE_ROWS);
    if (type != imp_cuda_type(up->u.weight.part)) type = CU_F16;
    uint64_t n_ff = imp_tensor_n_row(gate->u.weight.part), n_pair = (uint64_t)rows * a->n_used;
    uint32_t half = imp_cuda_half(n_ff);
    op->mat = new_mat(l, type, 2ull * half, gate->width, a->n_expert);
    op->mat2 = new_mat(l, imp_cuda_type(down->u.weight.part), n->width, down->width, a->n_expert);
    for (uint32_t e = 0; e < a->n_expert; e++) {
        fill(l, op->mat, e, 0, &gate->u.weight.part[e]);
        fill(l, op->mat, e, half, &up->u.weight.part[e]);
        fill(l, op->mat2, e, 0, &down->u.weight.part[e]);
    }
    op->a = use(l, n->in[0]);
    op->b = use(l, n->in[1]);
    op->act = a->act;
    op->moe_buf[0] = new_buf(l, n_pair * 4);
    op->moe_buf[1] = new_buf(l, n_pair * 4);
    op->moe_buf[2] = new_buf(l, n_pair * n_ff * 4);
    op->moe_buf[3] = new_buf(l, n_pair * n->width * 4);
    make(l, op, v);
    l->x->n_op++;
}

static void emit_simple(lower *l, imp_val v, cuda_kind kind)
{
    cuda_op *op = new_op(l, kind, v);
    if (kind == CUDA_EMBED)
        op->mat = matrix(l, node(l, v)->in[0]);
    else
        op->a = use(l, node(l, v)->in[0]);
    make(l, op, v);
    l->x->n_op++;
}

static void emit_input(lower *l, imp_val v)
{
    cuda_op *op = new_op(l, CUDA_INPUT, v);
    l->x->input_bytes = (uint64_t)l->x->lim.max_tok * op->width * 4;
    make(l, op, v);
    l->x->n_op++;
}

static void emit_outside(lower *l, imp_val v)
{
    const imp_node *n = node(l, v);
    uint64_t rows = imp_dev_max_rows(&l->x->lim, n->rows), width = n->width;
    cuda_op *op = new_op(l, CUDA_OUTSIDE, v);
    for (uint32_t i = 0; i < 2; i++) width += node(l, n->in[i])->width;
    l->x->outside_bytes = IMP_MAX(l->x->outside_bytes, rows * width * sizeof(float));
    op->a = use(l, n->in[0]);
    op->b = use(l, n->in[1]);
    make(l, op, v);
    l->x->n_op++;
}

static void emit_reduce(lower *l, imp_val v)
{
    const imp_node *n = node(l, v);
    cuda_op *op = new_op(l, CUDA_REDUCE, v);
    imp_val fold = l->fold[v];
    uint64_t elem = imp_dev_max_rows(&l->x->lim, n->rows) * n->width;
    if (elem > UINT32_MAX - CU_REDUCE_PIECE || n->u.reduce.n > CU_MEMBERS) {
        l->status =
            imp_fail(l->err, IMP_TOO_LARGE, "the sums of a divided graph are too large; lower max_tok");
        return;
    }
    l->x->n_member = n->u.reduce.n;
    op->a = use(l, n->in[0]);
    if (fold != 0) {
        op->has_res = true;
        op->b = use(l, node(l, fold)->in[0] == v ? node(l, fold)->in[1] : node(l, fold)->in[0]);
    }
    make(l, op, v);
    if (fold != 0) {
        l->loc[fold] = op->out;
        l->done[fold] = true;
        op->out_val = fold;
    }
    l->x->n_op++;
}

static void emit(lower *l, imp_val v)
{
    const imp_node *n = node(l, v);
    if (l->done[v]) return;
    switch (n->op) {
    case IMP_OP_INPUT: emit_input(l, v); break;
    case IMP_OP_EMBED: emit_simple(l, v, CUDA_EMBED); break;
    case IMP_OP_LINEAR: emit_linear(l, v); break;
    case IMP_OP_RMS_NORM: emit_norm(l, v, CUDA_RMS); break;
    case IMP_OP_LAYER_NORM: emit_norm(l, v, CUDA_LAYER_NORM); break;
    case IMP_OP_L2_NORM: emit_norm(l, v, CUDA_L2); break;
    case IMP_OP_ADD: emit_rows(l, v, CU_ROW_ADD); break;
    case IMP_OP_MUL: emit_rows(l, v, CU_ROW_MUL); break;
    case IMP_OP_SCALE: emit_rows(l, v, CU_ROW_SCALE); break;
    case IMP_OP_SOFTCAP: emit_rows(l, v, CU_ROW_SOFTCAP); break;
    case IMP_OP_ACT: emit_rows(l, v, CU_ROW_ACT); break;
    case IMP_OP_GLU: emit_rows(l, v, CU_ROW_GLU); break;
    case IMP_OP_SLICE:
        l->loc[v] = l->loc[n->in[0]];
        l->loc[v].off += n->u.slice.begin;
        break;
    case IMP_OP_ROPE: emit_rope(l, v); break;
    case IMP_OP_ATTN: emit_attn(l, v); break;
    case IMP_OP_MOE: emit_moe(l, v); break;
    case IMP_OP_ALLREDUCE: emit_reduce(l, v); break;
    case IMP_OP_OUTSIDE: emit_outside(l, v); break;
    case IMP_OP_GATHER: emit_simple(l, v, CUDA_GATHER); break;
    case IMP_OP_POOL: emit_simple(l, v, CUDA_POOL); break;
    default: break;
    }
}

/* ---- sizes -------------------------------------------------------------------------------------------------- */

static void *array(lower *l, uint64_t n, size_t size)
{
    void *p = imp_arena_array(l->x->arena, n, size);
    if (p == NULL && l->status == IMP_OK)
        l->status = imp_fail(l->err, IMP_NOMEM, "out of memory while compiling for the GPU");
    return p;
}

static void size_kv(lower *l)
{
    cuda_exec *x = l->x;
    bool fits = true;
    uint64_t largest = 0;
    for (uint32_t i = 0; i < imp_graph_n_kv_layer(l->g); i++) {
        const imp_attn_attr *a = &imp_graph_kv_layer(l->g, i)->u.attn;
        uint64_t bytes = (uint64_t)a->n_kv_head * cu_kv_tile_bytes(x->kv_kind, a->head_dim);
        x->kv_at[i] = x->kv_bytes;
        largest = IMP_MAX(largest, bytes);
        fits = fits && imp_mul_u64(2 * bytes, x->lim.n_kv_block, &bytes) &&
               imp_add_u64(x->kv_bytes, bytes, &x->kv_bytes);
    }
    if (x->kv_kind == CU_KV_Q8 && largest > 0) x->kv_host = array(l, largest, 1);
    if (!fits)
        l->status = imp_fail(l->err, IMP_TOO_LARGE, "the size of the KV cache overflows; lower the context");
}

/* Everything of scratch that is no value. */
static void size_scratch(lower *l)
{
    enum { W16 = 256 << 20, PART = 64 << 20 };
    cuda_exec *x = l->x;
    uint64_t per_row = 0, groups = 1;
    x->max_split = imp_cuda_n_split(x->lim.max_ctx);
    for (uint32_t i = 0; i < x->n_op; i++) {
        const cuda_op *op = &x->op[i];
        uint64_t rows = imp_dev_max_rows(&x->lim, op->rows);
        if (op->kind == CUDA_ATTN) {
            const imp_attn_attr *a = &op->node->u.attn;
            per_row = IMP_MAX(per_row, (uint64_t)a->n_head * x->max_split * (a->head_dim + 2) * 4);
            groups = IMP_MAX(groups, (uint64_t)a->n_head);
        }
        if (op->kind != CUDA_LINEAR || x->mat[op->mat].type == CU_F32) continue;
        const cuda_mat *m = &x->mat[op->mat];
        x->x32_bytes = IMP_MAX(x->x32_bytes, IMP_MIN(rows, (uint64_t)CUDA_FEW) * imp_cuda_up(m->k, 4) * 4);
        if (rows <= CUDA_FEW) continue;
        if (m->type >= CU_Q8) {
            const cuda_device *d = (const cuda_device *)x->base.dev;
            x->mid_part_bytes = 2ull * d->n_sm * CU_MID_X * CU_MID_ROWS * 4;
            x->mid_count_bytes = IMP_MAX(x->mid_count_bytes, (m->n / CU_MID_ROWS + 1) * 4ull);
        }
        x->h_bytes = IMP_MAX(x->h_bytes, rows * imp_cuda_up(IMP_MAX(m->kpad, op->width), 128) * 2);
        if (op->glu) x->t16_bytes = IMP_MAX(x->t16_bytes, rows * m->n * 2);
        if (m->type != CU_BF16 && m->type != CU_F16)
            x->w16_bytes = IMP_MAX(x->w16_bytes, IMP_MIN((uint64_t)W16, (uint64_t)m->n * m->kpad * 2));
        x->w16_bytes = IMP_MAX(x->w16_bytes, m->type == CU_F32 ? 0 : (uint64_t)m->kpad * 2);
    }
    x->attn_rows = per_row == 0 ? 1 : (uint32_t)IMP_MAX(1, IMP_MIN(PART / per_row, (uint64_t)x->lim.max_tok));
    x->attn_rows = IMP_MIN(x->attn_rows, 65535u);
    x->part_bytes = x->attn_rows * per_row;
    x->count_bytes = x->attn_rows * groups * 4;
    uint64_t table = (uint64_t)x->lim.max_seq * (imp_cuda_up(x->lim.max_ctx, CU_SPLIT_FAR) / CU_KV_BLOCK + 8);
    const imp_node *out = node(l, imp_graph_output(l->g));
    if (out->rows == IMP_ROWS_OUT) {
        uint64_t rows = IMP_MIN(x->lim.max_out, (uint32_t)CU_TOP_ROWS),
                 n_chunk = (out->width + CU_TOP_CHUNK - 1) / CU_TOP_CHUNK;
        x->top_part_bytes = rows * n_chunk * CU_TOP * 8;
        x->top_stat_bytes = rows * n_chunk * sizeof(cu_top_stat);
        x->top_count_bytes = rows * 4;
        x->top_out_bytes = (x->lim.max_out + 1ull) * sizeof(cu_top_row);
        x->top_mask_bytes = (out->width / 32 + 1) * 4;
    }
    x->meta_bytes = (7ull * x->lim.max_tok + x->lim.max_out + 6ull * x->lim.max_seq + 2 * table + 64) * 4;
    x->piece_bytes = 2ull * imp_graph_n_kv_layer(l->g) * sizeof(cu_kv_piece);
    if (x->n_member > 0) {
        x->board_bytes = cu_board_bytes(x->n_member);
        x->calls_bytes = CU_REDUCE_COUNT * 4;
    }
    uint64_t at = imp_cuda_up(x->values_bytes, 256);
    struct {
        uint64_t *at, bytes;
    } part[] = {{&x->h_at[0], x->h_bytes},
                {&x->h_at[1], x->h_bytes},
                {&x->t16_at, x->t16_bytes},
                {&x->w16_at, x->w16_bytes},
                {&x->part_at, x->part_bytes},
                {&x->count_at, x->count_bytes},
                {&x->meta_at, x->meta_bytes},
                {&x->x32_at, x->x32_bytes},
                {&x->mid_part_at, x->mid_part_bytes},
                {&x->mid_count_at, x->mid_count_bytes},
                {&x->board_at, x->board_bytes},
                {&x->piece_at, x->piece_bytes},
                {&x->calls_at, x->calls_bytes},
                {&x->top_part_at, x->top_part_bytes},
                {&x->top_stat_at, x->top_stat_bytes},
                {&x->top_count_at, x->top_count_bytes},
                {&x->top_out_at, x->top_out_bytes},
                {&x->top_mask_at, x->top_mask_bytes},
                {&x->lt_at, x->h_bytes > 0 ? IMP_CUDA_LT_WORKSPACE : 0}};
    for (size_t i = 0; i < IMP_COUNT(part); i++) {
        *part[i].at = at;
        at = imp_cuda_up(at + part[i].bytes, 256);
    }
    x->scratch_bytes = at;
    x->out_bytes = imp_dev_max_rows(&x->lim, out->rows) * out->width * 4;
}

static void prepare(lower *l)
{
    uint64_t n = imp_graph_n(l->g) + 2ull, n_part = 0, n_buf = 2;
    for (imp_val v = 1; v < n - 1; v++) {
        const imp_node *o = node(l, v);
        for (uint32_t i = 0; i < o->n_in; i++)
            if (is(l, o->in[i], IMP_OP_WEIGHT)) n_part += node(l, o->in[i])->u.weight.n_part;
        n_buf += o->op == IMP_OP_MOE ? 6 : 3;
    }
    l->n_use = array(l, n, sizeof *l->n_use);
    l->loc = array(l, n, sizeof *l->loc);
    l->mat_of = array(l, n, sizeof *l->mat_of);
    l->user = array(l, n, sizeof *l->user);
    l->fold = array(l, n, sizeof *l->fold);
    l->lazy = array(l, n, sizeof *l->lazy);
    l->done = array(l, n, sizeof *l->done);
    l->x->mat = array(l, n, sizeof *l->x->mat);
    l->x->fill = array(l, n_part + 1, sizeof *l->x->fill);
    l->x->vec = array(l, 3 * n, sizeof *l->x->vec);
    l->x->buf = array(l, n_buf, sizeof *l->x->buf);
    l->x->op = array(l, 2 * n, sizeof *l->x->op);
    l->x->kv_at = array(l, imp_graph_n_kv_layer(l->g) + 1ull, sizeof *l->x->kv_at);
    if (l->status != IMP_OK) return;
    for (imp_val v = 1; v <= imp_graph_n(l->g); v++) {
        for (uint32_t i = 0; i < node(l, v)->n_in; i++) {
            l->n_use[node(l, v)->in[i]]++;
            l->user[node(l, v)->in[i]] = v;
        }
    }
    l->n_use[imp_graph_output(l->g)]++;
}

/* A value whose one reader is the product that follows needs no f32 form in large steps. */
static void find_only_next(lower *l)
{
    for (uint32_t i = 0; i + 1 < l->x->n_op; i++) {
        cuda_op *op = &l->x->op[i], *next = op + 1;
        bool can = (op->kind == CUDA_LINEAR && op->glu) || op->kind == CUDA_ATTN;
        op->only_next = can && next->kind == CUDA_LINEAR && !next->normed && next->x_val == op->out_val &&
                        next->rows == op->rows && l->n_use[op->out_val] == 1 &&
                        l->x->mat[next->mat].type != CU_F32 && next->a.off == op->out.off;
    }
}

imp_status imp_cuda_lower(cuda_exec *x, imp_error *err)
{
    lower l = {.x = x, .g = x->graph, .err = err, .status = IMP_OK};
    IMP_TRY(imp_dev_check_limits(x->graph, &x->lim, err));
    imp_dtype kv = x->lim.kv_dtype;
    if (imp_graph_n_kv_layer(x->graph) > 0 && kv != IMP_Q8_0 && kv != IMP_F16 && kv != IMP_F32)
        return imp_fail(err, IMP_UNSUPPORTED,
                        "the GPU keeps its KV cache in f32, f16 or q8_0; set the type to q8_0");
    x->kv_kind = kv == IMP_F32 ? CU_KV_F32 : kv == IMP_Q8_0 ? CU_KV_Q8 : CU_KV_F16;
    prepare(&l);
    if (l.status == IMP_OK) size_kv(&l);
    if (l.status == IMP_OK) find_folds(&l);
    for (imp_val v = 1; v <= imp_graph_n(l.g) && l.status == IMP_OK; v++) emit(&l, v);
    if (l.status != IMP_OK) return l.status;
    imp_val y = imp_graph_output(l.g);
    if (l.loc[y].off != 0 || l.loc[y].ld != imp_graph_node(l.g, y)->width) { /* the result must be dense */
        cuda_op *op = new_op(&l, CUDA_ROWS, y);
        op->row_op = CU_ROW_COPY;
        op->a = use(&l, y);
        make(&l, op, y);
        x->n_op++;
    }
    x->out = use(&l, y);
    if (l.status != IMP_OK) return l.status;
    place(x);
    find_only_next(&l);
    size_scratch(&l);
    return IMP_OK;
}
