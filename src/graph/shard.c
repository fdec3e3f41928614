/* graph/shard.c - one member's part of a graph that equal devices compute together, layer by layer (tensor parallel).
 *
 * Place:   dev/tensor takes one for each of its devices.
 * Idea:    a region runs from products that read whole rows to the product that closes it: q, k, v and attention up to the
 *          output projection, gate and up to down. Inside, a member has some of the columns: whole groups of heads, a part of
 *          the feed-forward's width. The closing product takes those columns of its weight, so that its result is a part of a
 *          sum, and ALLREDUCE makes the sum. The bias of a closing product is member 0's. Experts are a region of one node.
 *          The output's product is cut by rows; whoever runs the members puts their columns together.
 * Always:  where to cut depends on the graph and the number of members alone, and cut columns of weights are whole blocks.
 * Source:  Shoeybi et al. 2019 (Megatron-LM), section 3. */
#include "graph/graph_int.h"

typedef struct span {
    uint64_t from, to;
} span;

typedef struct shard {
    const imp_graph *g;
    imp_shard *out;
    imp_graph *to;
    uint32_t n, rank;
    bool copy;
    uint32_t *n_use; /* [node + 1]; the output: one more */
    span *cut;       /* [node + 1] columns the member has; to 0: all */
    imp_val *at;     /* [node + 1] the value in the member's graph */
    span *closes;    /* [node + 1] LINEAR: columns of its weight; MOE: of the experts' width; to 0: none */
} shard;

static const imp_node *node(const shard *s, imp_val v)
{
    return s->g->node[v - 1];
}
static const imp_tensor *tensor(const shard *s, imp_val v)
{
    return &node(s, v)->u.weight.part[0];
}
static bool is(const shard *s, imp_val v, imp_op op)
{
    return node(s, v)->op == op;
}

/* ---- how a width is divided ------------------------------------------------------------------------------ */

static uint64_t block_of(const imp_tensor *t)
{
    return t->dtype == IMP_AFFINE ? t->group : imp_dtype_get(t->dtype)->block_elem;
}

/* Units of `unit` columns dealt out as evenly as they go. */
static bool deal(uint64_t width, uint64_t unit, uint32_t n, uint32_t rank, span *out)
{
    uint64_t n_unit = width / unit;
    if (width % unit != 0 || n_unit < n) return false;
    *out = (span){unit * (n_unit * rank / n), unit * (n_unit * (rank + 1) / n)};
    return true;
}

/* Columns of a feed-forward: whole blocks of the closing weight; large and equal shares where there are such. */
static bool ffn_span(uint64_t width, uint64_t block, uint32_t n, uint32_t rank, span *out)
{
    for (int even = 1; even >= 0; even--)
        for (uint64_t unit = 256; unit >= 1; unit /= 2) {
            if (unit % block != 0 || width % unit != 0 || (even && width / unit % n != 0)) continue;
            if (deal(width, unit, n, rank, out)) return true;
        }
    return width % block == 0 && deal(width, block, n, rank, out);
}

/* Query and KV heads: whole groups, as many as make whole blocks of columns; with fewer KV heads than members several members
 * have the same one. */
static bool head_span(const imp_attn_attr *a, uint64_t block, uint32_t n, uint32_t rank, span *q, span *kv)
{
    uint64_t per = a->n_head / a->n_kv_head, unit = 1;
    if (a->n_head % a->n_kv_head != 0) return false;
    while (unit < a->n_kv_head && unit * per * a->head_dim % block != 0) unit++;
    if (unit * per * a->head_dim % block == 0 && deal(a->n_kv_head, unit, n, rank, kv)) {
        *q = (span){kv->from * per, kv->to * per};
        return true;
    }
    uint32_t share = n / a->n_kv_head;
    if (n % a->n_kv_head != 0 || per % share != 0 || per / share * a->head_dim % block != 0) return false;
    *kv = (span){rank / share, rank / share + 1};
    q->from = kv->from * per + rank % share * (per / share);
    q->to = q->from + per / share;
    return true;
}

/* ---- regions ------------------------------------------------------------------------------------------------- */

/* A product of whole rows, or columns of one, that this region alone reads: it can be cut by rows of its weight. */
static bool opens(const shard *s, imp_val v)
{
    if (s->n_use[v] != 1) return false;
    if (is(s, v, IMP_OP_SLICE)) v = node(s, v)->in[0];
    if (!is(s, v, IMP_OP_LINEAR) || s->cut[node(s, v)->in[0]].to != 0) return false;
    return node(s, v)->n_in < 3 || block_of(tensor(s, node(s, v)->in[2])) == 1;
}

/* From an input of attention back to the product that makes it: through rotation and norms of single heads. */
static bool opens_heads(const shard *s, imp_val v, uint32_t head_dim)
{
    while (s->n_use[v] == 1 && (is(s, v, IMP_OP_ROPE) || is(s, v, IMP_OP_RMS_NORM))) {
        const imp_node *n = node(s, v);
        if (n->op == IMP_OP_RMS_NORM && head_dim % n->u.norm.group != 0) return false;
        v = n->in[0];
    }
    return opens(s, v);
}

static void cut_back(shard *s, imp_val v, span c)
{
    for (;; v = node(s, v)->in[0]) {
        s->cut[v] = c;
        if (is(s, v, IMP_OP_LINEAR) || is(s, v, IMP_OP_SLICE)) return;
    }
}

static bool cut_attention(shard *s, imp_val v, imp_val close)
{
    const imp_node *n = node(s, v);
    const imp_attn_attr *a = &n->u.attn;
    span q, kv;
    if (!head_span(a, block_of(tensor(s, node(s, close)->in[1])), s->n, s->rank, &q, &kv)) return false;
    if (n->in[0] == n->in[1] || n->in[1] == n->in[2]) return false;
    for (uint32_t i = 0; i < 3; i++)
        if (!opens_heads(s, n->in[i], a->head_dim)) return false;
    if (n->n_in > 3 && block_of(tensor(s, n->in[3])) != 1) return false;
    span q_col = {q.from * a->head_dim, q.to * a->head_dim},
         kv_col = {kv.from * a->head_dim, kv.to * a->head_dim};
    cut_back(s, n->in[0], q_col);
    cut_back(s, n->in[1], kv_col);
    cut_back(s, n->in[2], kv_col);
    s->cut[v] = s->closes[close] = q_col;
    if (a->kv_layer >= 0) s->out->heads[a->kv_layer] = (imp_shard_heads){(uint32_t)kv.from, (uint32_t)kv.to};
    return true;
}

static bool cut_ffn(shard *s, imp_val v, imp_val close)
{
    const imp_node *n = node(s, v);
    span c;
    for (uint32_t i = 0; i < n->n_in; i++)
        if (!opens(s, n->in[i])) return false;
    if ((n->n_in > 1 && n->in[0] == n->in[1]) ||
        !ffn_span(n->width, block_of(tensor(s, node(s, close)->in[1])), s->n, s->rank, &c))
        return false;
    for (uint32_t i = 0; i < n->n_in; i++) s->cut[n->in[i]] = c;
    s->cut[v] = s->closes[close] = c;
    return true;
}

/* The region that product v closes; *is_region: it closes one at all. */
static bool cut_region(shard *s, imp_val v, bool *is_region)
{
    imp_val u = node(s, v)->in[0];
    bool alone = true;
    while (is(s, u, IMP_OP_GATHER)) {
        alone = alone && s->n_use[u] == 1;
        u = node(s, u)->in[0];
    }
    alone = alone && s->n_use[u] == 1;
    imp_op op = node(s, u)->op;
    *is_region = op == IMP_OP_ATTN || op == IMP_OP_GLU || op == IMP_OP_ACT || op == IMP_OP_MUL;
    if (!*is_region || !alone) return false;
    if (!(op == IMP_OP_ATTN ? cut_attention(s, u, v) : cut_ffn(s, u, v))) return false;
    for (imp_val w = node(s, v)->in[0]; w != u; w = node(s, w)->in[0]) s->cut[w] = s->cut[u];
    return true;
}

static bool cut_experts(shard *s, imp_val v)
{
    const imp_node *n = node(s, v);
    const imp_tensor *down = tensor(s, n->in[4]);
    return ffn_span(imp_tensor_n_col(down), block_of(down), s->n, s->rank, &s->closes[v]);
}

/* The columns of the result, where a product makes it. */
static void cut_output(shard *s)
{
    imp_val v = s->g->output;
    while ((is(s, v, IMP_OP_SOFTCAP) || is(s, v, IMP_OP_SCALE)) && s->n_use[v] == 1) v = node(s, v)->in[0];
    if (!is(s, v, IMP_OP_LINEAR) || s->n_use[v] != 1 || s->closes[v].to != 0 || s->cut[v].to != 0) return;
    uint64_t width = node(s, v)->width, unit = 64;
    while (unit > 1 && (width % unit != 0 || width / unit < 8ull * s->n)) unit /= 2;
    span c;
    if (!deal(width, unit, s->n, s->rank, &c)) return;
    for (imp_val u = s->g->output;; u = node(s, u)->in[0]) {
        s->cut[u] = c;
        if (u == v) break;
    }
    s->out->out_from = c.from;
}

static void find_regions(shard *s)
{
    for (uint32_t i = 0; i < s->g->n_kv_layer; i++)
        s->out->heads[i] = (imp_shard_heads){0, node(s, s->g->kv_layer[i])->u.attn.n_kv_head};
    for (imp_val v = 1; v <= s->g->n; v++) {
        bool region = is(s, v, IMP_OP_MOE), done = false;
        if (region)
            done = cut_experts(s, v);
        else if (is(s, v, IMP_OP_LINEAR))
            done = cut_region(s, v, &region);
        s->out->n_cut += done;
        s->out->n_whole += region && !done;
    }
    cut_output(s);
}

/* ---- weights --------------------------------------------------------------------------------------------------- */

static const uint8_t *scale_at(const imp_tensor *t, const void *p, uint64_t row, uint64_t col)
{
    return (const uint8_t *)p +
           (row * (t->dim[1] / t->group) + col / t->group) * imp_dtype_get(t->scale_dtype)->block_bytes;
}

/* Rows [c.from, c.to) of a matrix, elements of a vector: a view. */
static imp_tensor rows_of(const imp_tensor *t, span c)
{
    imp_tensor v = *t;
    uint64_t bytes = t->n_dim == 1 ? imp_dtype_get(t->dtype)->block_bytes : imp_tensor_row_bytes(t);
    v.dim[0] = c.to - c.from;
    v.data = (const uint8_t *)t->data + c.from * bytes;
    if (t->dtype == IMP_AFFINE) {
        v.scales = scale_at(t, t->scales, c.from, 0);
        v.biases = scale_at(t, t->biases, c.from, 0);
    }
    return v;
}

static uint64_t col_bytes(const imp_tensor *t, uint64_t n)
{
    return t->dtype == IMP_AFFINE
               ? n * t->bits / 8
               : n / imp_dtype_get(t->dtype)->block_elem * imp_dtype_get(t->dtype)->block_bytes;
}

static void *copy_rows(shard *s, const uint8_t *from, uint64_t n_row, uint64_t stride, uint64_t n)
{
    imp_shard *o = s->out;
    o->slice_bytes += n_row * n;
    if (!s->copy) return (void *)(uintptr_t)from;
    if (o->n_slice == o->cap_slice) {
        uint32_t cap = o->cap_slice == 0 ? 64 : o->cap_slice * 2;
        void **grown = imp_sys_realloc(o->slice, cap * sizeof *grown);
        if (grown != NULL) o->slice = grown, o->cap_slice = cap;
    }
    uint8_t *p = o->n_slice < o->cap_slice ? imp_sys_malloc(n_row * n) : NULL;
    if (p == NULL) {
        imp_graph_fail(s->to, IMP_NOMEM, "out of memory while dividing the weights");
        return NULL;
    }
    o->slice[o->n_slice++] = p;
    for (uint64_t r = 0; r < n_row; r++) memcpy(p + r * n, from + r * stride, n);
    return p;
}

/* Columns [c.from, c.to): a copy. */
static imp_tensor cols_of(shard *s, const imp_tensor *t, span c)
{
    imp_tensor v = *t;
    uint64_t n_row = t->dim[0], stride = imp_tensor_row_bytes(t), n = c.to - c.from;
    v.dim[1] = n;
    v.data = copy_rows(s, (const uint8_t *)t->data + col_bytes(t, c.from), n_row, stride, col_bytes(t, n));
    if (t->dtype == IMP_AFFINE) {
        uint64_t size = imp_dtype_get(t->scale_dtype)->block_bytes;
        v.scales = copy_rows(s, scale_at(t, t->scales, 0, c.from), n_row, t->dim[1] / t->group * size,
                             n / t->group * size);
        v.biases = copy_rows(s, scale_at(t, t->biases, 0, c.from), n_row, t->dim[1] / t->group * size,
                             n / t->group * size);
    }
    return v;
}

static imp_val rows_weight(shard *s, imp_val w, span c)
{
    imp_tensor t = rows_of(tensor(s, w), c);
    return imp_g_weight(s->to, node(s, w)->name, &t);
}

static imp_val expert_weight(shard *s, imp_val w, span c, bool cols)
{
    const imp_node *n = node(s, w);
    imp_tensor *part = imp_sys_calloc(n->u.weight.n_part, sizeof *part);
    if (part == NULL) {
        imp_graph_fail(s->to, IMP_NOMEM, "out of memory while dividing the weights");
        return 0;
    }
    for (uint32_t i = 0; i < n->u.weight.n_part; i++)
        part[i] = cols ? cols_of(s, &n->u.weight.part[i], c) : rows_of(&n->u.weight.part[i], c);
    imp_val v = imp_g_weight_parts(s->to, n->name, part, n->u.weight.n_part);
    imp_sys_free(part);
    return v;
}

/* ---- the member's graph ------------------------------------------------------------------------------------------- */

static imp_val in(shard *s, imp_val v)
{
    return imp_graph_value_in(s->to, s->g, v, s->at);
}

/* A product whose columns c the member has; begin: where c counts from in the weight's rows. */
static imp_val emit_opening(shard *s, const imp_node *n, uint64_t begin, span c)
{
    span r = {begin + c.from, begin + c.to};
    imp_val x = in(s, n->in[0]), w = rows_weight(s, n->in[1], r);
    return imp_g_linear(s->to, x, w, n->n_in > 2 ? rows_weight(s, n->in[2], r) : 0);
}

static imp_val emit_closing(shard *s, const imp_node *n, span c)
{
    imp_tensor t = cols_of(s, tensor(s, n->in[1]), c);
    imp_val w = imp_g_weight(s->to, node(s, n->in[1])->name, &t);
    imp_val bias = n->n_in > 2 && s->rank == 0 ? in(s, n->in[2]) : 0;
    return imp_g_allreduce(s->to, imp_g_linear(s->to, s->at[n->in[0]], w, bias), s->n);
}

static imp_val emit_experts(shard *s, const imp_node *n, span c)
{
    imp_val x = in(s, n->in[0]), logits = in(s, n->in[1]), gate = expert_weight(s, n->in[2], c, false);
    imp_val up = expert_weight(s, n->in[3], c, false), down = expert_weight(s, n->in[4], c, true);
    return imp_g_allreduce(s->to, imp_g_moe(s->to, x, logits, gate, up, down, &n->u.moe), s->n);
}

static imp_val emit_attention(shard *s, const imp_node *n)
{
    imp_attn_attr a = n->u.attn;
    imp_val sink = 0;
    const imp_node *q = s->to->node[s->at[n->in[0]] - 1], *k = s->to->node[s->at[n->in[1]] - 1];
    a.n_head = (uint32_t)(q->width / a.head_dim);
    a.n_kv_head = (uint32_t)(k->width / a.head_dim);
    if (n->n_in > 3) {
        uint64_t from = s->cut[n->in[0]].from / a.head_dim;
        sink = rows_weight(s, n->in[3], (span){from, from + a.n_head});
    }
    return imp_g_attn(s->to, s->at[n->in[0]], s->at[n->in[1]], s->at[n->in[2]], sink, &a);
}

/* A node inside a region: the same op on fewer columns. */
static imp_val emit_cut(shard *s, const imp_node *n, span c)
{
    imp_graph *g = s->to;
    imp_val x = n->op == IMP_OP_LINEAR || n->op == IMP_OP_SLICE ? 0 : s->at[n->in[0]];
    switch (n->op) {
    case IMP_OP_LINEAR: return emit_opening(s, n, 0, c);
    case IMP_OP_SLICE: return emit_opening(s, node(s, n->in[0]), n->u.slice.begin, c);
    case IMP_OP_ROPE: return imp_g_rope(g, x, &n->u.rope);
    case IMP_OP_RMS_NORM:
        return imp_g_rms_norm(g, x, n->n_in > 1 ? in(s, n->in[1]) : 0, n->u.norm.eps, n->u.norm.group,
                              n->u.norm.w_offset);
    case IMP_OP_ATTN: return emit_attention(s, n);
    case IMP_OP_GLU: return imp_g_glu(g, x, s->at[n->in[1]], n->u.act.act);
    case IMP_OP_MUL: return imp_g_mul(g, x, s->at[n->in[1]]);
    case IMP_OP_ACT: return imp_g_act(g, x, n->u.act.act);
    case IMP_OP_SOFTCAP: return imp_g_softcap(g, x, n->u.scale.c);
    case IMP_OP_SCALE: return imp_g_scale(g, x, n->u.scale.c);
    case IMP_OP_GATHER: return imp_g_gather(g, x);
    default: imp_graph_fail(g, IMP_INTERNAL, "%s cannot be divided", imp_op_name(n->op)); return 0;
    }
}

/* A product that cut slices alone read is made by them. */
static bool is_left_out(const shard *s, imp_val v)
{
    if (!is(s, v, IMP_OP_LINEAR) || s->n_use[v] == 0) return false;
    uint32_t n_slice = 0;
    for (imp_val u = v + 1; u <= s->g->n; u++)
        n_slice += is(s, u, IMP_OP_SLICE) && node(s, u)->in[0] == v && s->cut[u].to != 0;
    return n_slice == s->n_use[v];
}

static void emit(shard *s)
{
    for (imp_val v = 1; v <= s->g->n && s->to->err.status == IMP_OK; v++) {
        const imp_node *n = node(s, v);
        if (n->op == IMP_OP_WEIGHT || is_left_out(s, v)) continue;
        imp_graph_scope(s->to, "%s", n->name);
        if (s->cut[v].to != 0)
            s->at[v] = emit_cut(s, n, s->cut[v]);
        else if (s->closes[v].to == 0)
            (void)imp_graph_copy_node(s->to, s->g, v, s->at);
        else
            s->at[v] =
                n->op == IMP_OP_MOE ? emit_experts(s, n, s->closes[v]) : emit_closing(s, n, s->closes[v]);
    }
    if (s->to->err.status == IMP_OK) imp_g_output(s->to, s->at[s->g->output]);
}

static imp_status divide(shard *s, imp_error *err)
{
    for (imp_val v = 1; v <= s->g->n; v++)
        for (uint32_t i = 0; i < node(s, v)->n_in; i++) s->n_use[node(s, v)->in[i]]++;
    s->n_use[s->g->output]++;
    find_regions(s);
    if (s->out->n_cut == 0)
        return imp_fail(err, IMP_UNSUPPORTED,
                        "no layer of this model divides between %u devices (heads, or blocks of its weights)",
                        s->n);
    emit(s);
    return imp_graph_finish(s->to, err);
}

imp_status imp_graph_shard(const imp_graph *g, uint32_t n, uint32_t rank, bool copy, imp_shard *out,
                           imp_error *err)
{
    *out = (imp_shard){.graph = imp_graph_new()};
    shard s = {.g = g, .out = out, .to = out->graph, .n = n, .rank = rank, .copy = copy};
    s.n_use = imp_sys_calloc(g->n + 1, sizeof *s.n_use);
    s.cut = imp_sys_calloc(g->n + 1, sizeof *s.cut);
    s.at = imp_sys_calloc(g->n + 1, sizeof *s.at);
    s.closes = imp_sys_calloc(g->n + 1, sizeof *s.closes);
    out->heads = imp_sys_calloc(g->n_kv_layer + 1, sizeof *out->heads);
    imp_status st = IMP_OK;
    if (n < 2 || n > IMP_SHARD_MAX || rank >= n)
        st = imp_fail(err, IMP_INVALID, "a model is divided between 2 to %d devices", IMP_SHARD_MAX);
    else if (s.to == NULL || s.n_use == NULL || s.cut == NULL || s.at == NULL || s.closes == NULL ||
             out->heads == NULL)
        st = imp_fail(err, IMP_NOMEM, "out of memory while dividing the graph");
    if (st == IMP_OK) st = divide(&s, err);
    imp_sys_free(s.n_use);
    imp_sys_free(s.cut);
    imp_sys_free(s.at);
    imp_sys_free(s.closes);
    if (st != IMP_OK) imp_shard_deinit(out);
    return st;
}

void imp_shard_drop_slices(imp_shard *s)
{
    for (uint32_t i = 0; i < s->n_slice; i++) imp_sys_free(s->slice[i]);
    s->n_slice = 0;
}

void imp_shard_deinit(imp_shard *s)
{
    imp_shard_drop_slices(s);
    imp_sys_free(s->slice);
    imp_sys_free(s->heads);
    imp_graph_free(s->graph);
    *s = (imp_shard){0};
}
