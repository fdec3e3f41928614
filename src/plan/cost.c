/* plan/cost.c - folding a graph into priced ops, and the price of a step.
 *
 * Always:  flops count a multiply-add as two; bytes are what must cross the memory once: weights, cache, and a quarter of
 *          the activations (the rest stays in caches).
 * Source:  the roofline model (Williams et al. 2009), one op at a time. */
#include "plan/cost.h"
#include "kern/kv.h"

#include <math.h>

static const imp_tensor *weight_of(const imp_graph *g, imp_val v)
{
    return imp_graph_node(g, v)->u.weight.part;
}

static double bytes_of(const imp_graph *g, imp_val v)
{
    const imp_node *w = imp_graph_node(g, v);
    double b = 0;
    for (uint32_t i = 0; i < w->u.weight.n_part; i++) b += (double)imp_tensor_bytes(&w->u.weight.part[i]);
    return b;
}

static double elem_of(const imp_graph *g, imp_val v)
{
    const imp_node *w = imp_graph_node(g, v);
    double n = 0;
    for (uint32_t i = 0; i < w->u.weight.n_part; i++) n += (double)imp_tensor_n_elem(&w->u.weight.part[i]);
    return n;
}

/* false: the node is free. */
static bool describe(const imp_graph *g, const imp_node *n, imp_cost_item *it)
{
    *it = (imp_cost_item){.op = n->op, .rows = n->rows, .count = 1, .n = n->width};
    switch (n->op) {
    case IMP_OP_WEIGHT:
    case IMP_OP_INPUT:
    case IMP_OP_ALLREDUCE:
    case IMP_OP_OUTSIDE:
    case IMP_OP_SLICE: return false;
    case IMP_OP_EMBED: it->dtype = weight_of(g, n->in[0])->dtype; break;
    case IMP_OP_LINEAR:
        it->dtype = weight_of(g, n->in[1])->dtype;
        it->k = imp_tensor_n_col(weight_of(g, n->in[1]));
        it->weight_bytes = bytes_of(g, n->in[1]);
        it->weight_elem = elem_of(g, n->in[1]);
        break;
    case IMP_OP_MOE:
        it->dtype = weight_of(g, n->in[2])->dtype;
        it->k = imp_tensor_n_col(weight_of(g, n->in[2]));
        for (uint32_t i = 2; i < 5; i++) {
            it->weight_bytes += bytes_of(g, n->in[i]);
            it->weight_elem += elem_of(g, n->in[i]);
        }
        it->n_expert = n->u.moe.n_expert;
        it->n_used = n->u.moe.n_used;
        break;
    case IMP_OP_ATTN:
        it->head_dim = n->u.attn.head_dim;
        it->n_head = n->u.attn.n_head;
        it->n_kv_head = n->u.attn.n_kv_head;
        it->window = n->u.attn.window;
        it->cached = n->u.attn.kv_layer >= 0;
        break;
    default: break;
    }
    return true;
}

static bool alike(const imp_cost_item *a, const imp_cost_item *b)
{
    return a->op == b->op && a->dtype == b->dtype && a->rows == b->rows && a->n == b->n && a->k == b->k &&
           a->weight_bytes == b->weight_bytes && a->head_dim == b->head_dim && a->n_head == b->n_head &&
           a->n_kv_head == b->n_kv_head && a->window == b->window && a->cached == b->cached;
}

static void fold(imp_cost *c, const imp_cost_item *it)
{
    uint32_t same_op = UINT32_MAX;
    for (uint32_t i = 0; i < c->n_item; i++) {
        if (alike(&c->item[i], it)) {
            c->item[i].count++;
            return;
        }
        if (c->item[i].op == it->op && c->item[i].rows == it->rows) same_op = i;
    }
    if (c->n_item < IMP_COST_ITEMS) {
        c->item[c->n_item++] = *it;
    } else if (same_op != UINT32_MAX) { /* no room: average with a relative */
        imp_cost_item *r = &c->item[same_op];
        double n = r->count + 1.0;
        r->weight_bytes += (it->weight_bytes - r->weight_bytes) / n;
        r->weight_elem += (it->weight_elem - r->weight_elem) / n;
        r->count++;
    }
}

static uint32_t id_of(const imp_cost *c)
{
    uint64_t h = c->vectors;
    for (uint32_t i = 0; i < c->n_item; i++) {
        const imp_cost_item *it = &c->item[i];
        uint64_t w[] = {it->op,       it->dtype,
                        it->rows,     it->count,
                        it->n,        it->k,
                        it->n_expert, it->n_used,
                        it->n_head,   it->n_kv_head,
                        it->head_dim, it->window,
                        it->cached,   (uint64_t)it->weight_bytes};
        h = imp_hash(w, sizeof w, h);
    }
    return (uint32_t)h | 1; /* 0 means none */
}

void imp_cost_build(const imp_graph *g, imp_dtype kv_dtype, imp_cost *out)
{
    double elem = 2.0 * IMP_ATTN_TILE * 32; /* keys and values of a tile in heads of 32 */
    *out = (imp_cost){.kv_elem_bytes = (double)(imp_kv_tile_bytes(kv_dtype, IMP_KV_KEY, 32) +
                                                imp_kv_tile_bytes(kv_dtype, IMP_KV_VALUE, 32)) /
                                       elem,
                      .vectors = imp_graph_node(g, imp_graph_output(g))->rows == IMP_ROWS_SEQ};
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        imp_cost_item it;
        if (!describe(g, imp_graph_node(g, v), &it)) continue;
        fold(out, &it);
        out->n_launch++;
        out->weight_bytes += it.weight_bytes;
        if (it.op == IMP_OP_ATTN && it.cached)
            out->kv_bytes_tok += 2.0 * it.n_kv_head * it.head_dim * out->kv_elem_bytes;
    }
    out->id = id_of(out);
}

/* ---- shapes ---------------------------------------------------------------------------------------- */

imp_cost_shape imp_cost_shape_chunk(uint32_t n_tok, uint32_t n_past, uint32_t n_out)
{
    double n = n_tok, past = n_past;
    return (imp_cost_shape){
        .n_tok = n, .n_out = n_out, .n_seq = 1, .keys = n * past + n * (n + 1) / 2, .kv_tok = past + n};
}

imp_cost_shape imp_cost_shape_decode(double n_seq, double past)
{
    return (imp_cost_shape){.n_tok = n_seq,
                            .n_out = n_seq,
                            .n_seq = n_seq,
                            .keys = n_seq * (past + 1),
                            .kv_tok = n_seq * (past + 1)};
}

imp_cost_shape imp_cost_shape_embed(double n_tok, double n_input)
{
    return (imp_cost_shape){
        .n_tok = n_tok, .n_out = 0, .n_seq = n_input, .keys = n_tok * n_tok / n_input, .kv_tok = n_tok};
}

imp_cost_shape imp_cost_shape_of(const imp_batch *b, bool cached)
{
    imp_cost_shape s = {.n_tok = b->n_tok, .n_out = b->n_out, .n_seq = b->n_seq};
    for (uint32_t i = 0; i < b->n_seq; i++) {
        double n = b->seq[i].n_tok, past = b->seq[i].n_past;
        s.keys += cached ? n * past + n * (n + 1) / 2 : n * n;
        s.kv_tok += past + n;
    }
    return s;
}

/* ---- prices ---------------------------------------------------------------------------------------- */

static double rate(const imp_machine *m, imp_dtype t, bool vectors)
{
    const imp_value *f = m->f;
    bool quantised = t != IMP_F32 && t != IMP_F16 && t != IMP_BF16 && t != IMP_DTYPE_NONE;
    double r = 0;
    if (quantised && !vectors) r = f[IMP_F_INT8].v;
    if (r <= 0 && t != IMP_F32 && t != IMP_DTYPE_NONE) r = f[IMP_F_F16].v;
    if (r <= 0) r = f[IMP_F_F32].v;
    if (r <= 0) r = f[IMP_F_F16].v;
    return IMP_MAX(r, 1e-6) * 1e12;
}

/* The share of the peak attention reaches with this many keys a token: between near and far on a logarithmic scale. */
static double attention_share(const imp_machine *m, double keys)
{
    double near = m->f[IMP_F_E_ATTN].v, far = m->f[IMP_F_E_FAR].v;
    double at = log2(IMP_MAX(keys, 1) / 4096) / 3; /* 0 at 4K, 1 at 32K */
    at = IMP_MIN(IMP_MAX(at, 0), 1);
    return IMP_MAX(near + (far - near) * at, 1e-3);
}

enum {
    EXP_FLOP = 16, /* an exponential, as many operations */
    ROW_FLOP = 48  /* of a CPU's product beside multiplying, for each number in and out */
};

typedef struct price {
    double flop, bytes, peak; /* peak: with the share reached */
    double row_s;
} price;

static price price_of(const imp_cost *c, const imp_cost_item *it, const imp_machine *m,
                      const imp_cost_shape *sh)
{
    double rows = it->rows == IMP_ROWS_TOK ? sh->n_tok : it->rows == IMP_ROWS_OUT ? sh->n_out : sh->n_seq;
    double width = (double)it->n, k = (double)it->k;
    price p = {.bytes = rows * width, .flop = 4 * rows * width, .peak = rate(m, IMP_F32, false) * .25};
    double e_mm = m->f[IMP_F_E_MM].v;
    if (it->op == IMP_OP_LINEAR || it->op == IMP_OP_MOE) {
        p.peak =
            rate(m, it->dtype, c->vectors && m->kind == IMP_UNIT_CPU) * e_mm * k / (k + m->f[IMP_F_K_HALF].v);
        double used = 1, touched = 1;
        if (it->n_expert > 0) {
            used = (double)it->n_used / it->n_expert;
            touched = 1 - pow(1 - used, rows);
        }
        p.flop = 2 * rows * it->weight_elem * used;
        p.bytes = rows > 0 ? it->weight_bytes * touched + rows * (k + width) : 0;
        if (m->kind == IMP_UNIT_CPU)
            p.row_s = rows * IMP_MAX(it->n_used, 1u) * (k + width) * ROW_FLOP / rate(m, IMP_F32, false);
    } else if (it->op == IMP_OP_ATTN) {
        double keys = sh->keys, kv = sh->kv_tok;
        if (it->window > 0) {
            keys = IMP_MIN(keys, sh->n_tok * it->window);
            kv = IMP_MIN(kv, sh->n_seq * (it->window + sh->n_tok / IMP_MAX(sh->n_seq, 1)));
        }
        double hd = it->head_dim;
        p.flop = keys * it->n_head * (4 * hd + EXP_FLOP);
        p.bytes += kv * 2 * it->n_kv_head * hd * (it->cached ? c->kv_elem_bytes : 4);
        p.peak =
            rate(m, IMP_F16, false) * attention_share(m, keys / IMP_MAX(sh->n_tok, 1)) * hd * 1.5 / (hd + 64);
    }
    return p;
}

/* *share: the part of the weights that lies in caches when the unit has been at work. */
static double bandwidth(const imp_cost *c, const imp_machine *m, double *share)
{
    double bw = IMP_MAX(m->f[IMP_F_BW].v * m->f[IMP_F_E_BW].v, 1e-3);
    double cache = m->f[IMP_F_CACHE].v * 1e6, fast = m->f[IMP_F_CACHE_BW].v;
    *share = 0;
    if (fast <= 0 || cache <= 0) return bw * 1e9;
    /* Weights that fill less than the cache stay there from step to step; those that overflow it by half are gone when
     * they are needed again. */
    double in = *share = IMP_MIN(IMP_MAX((1.5 - c->weight_bytes / cache) / 0.75, 0), 1);
    return 1e9 / (in / fast + (1 - in) / bw);
}

/* After a pause: threads are woken, and weights that lay in caches are read from memory again. */
static double wake_s(const imp_cost *c, const imp_machine *m, double in_cache, double bw)
{
    double slow = IMP_MAX(m->f[IMP_F_BW].v * m->f[IMP_F_E_BW].v, 1e-3) * 1e9;
    double again = in_cache > 0 ? c->weight_bytes * (1 / slow - 1 / bw) : 0;
    return m->f[IMP_F_WAKE].v * 1e-6 + IMP_MAX(again, 0);
}

void imp_cost_base(const imp_cost *c, const imp_machine *m, const imp_cost_shape *sh, imp_cost_terms *item,
                   imp_cost_time *out)
{
    double bw = bandwidth(c, m, &out->in_cache);
    out->flop = out->bytes = 0;
    for (uint32_t i = 0; i < c->n_item; i++) {
        const imp_cost_item *it = &c->item[i];
        price p = price_of(c, it, m, sh);
        item[i] =
            (imp_cost_terms){p.flop / p.peak * it->count, p.bytes / bw * it->count, p.row_s * it->count};
        out->flop += p.flop * it->count;
        out->bytes += p.bytes * it->count;
    }
    double program = m->f[IMP_F_PROGRAM].v * 1e6;
    double n_program = program > 0 ? ceil(IMP_MAX(c->weight_bytes, 1) / program) : 1;
    out->wake_s = sh->cold ? wake_s(c, m, out->in_cache, bw) : 0;
    out->launch_s = (c->n_launch * m->f[IMP_F_LAUNCH].v + n_program * m->f[IMP_F_SYNC].v) * 1e-6;
}

imp_bound imp_cost_bound(const imp_cost_time *t)
{
    if (t->launch_s > t->memory_s && t->launch_s > t->compute_s) return IMP_BOUND_LAUNCH;
    return t->compute_s > t->memory_s ? IMP_BOUND_COMPUTE : IMP_BOUND_MEMORY;
}

/* What a field's range says about log(value), as one standard deviation (the range is taken as 90 %). */
static double spread(const imp_value *v)
{
    return v->lo > 0 && v->hi > v->lo ? log(v->hi / v->lo) / 3.3 : 0;
}

static double hypot3(double a, double b, double c)
{
    return sqrt(a * a + b * b + c * c);
}

void imp_cost_predict(const imp_cost *c, const imp_machine *m, const imp_cost_shape *sh, imp_cost_time *out)
{
    imp_cost_terms item[IMP_COST_ITEMS];
    imp_cost_base(c, m, sh, item, out);
    out->launch_s += out->wake_s;
    out->s = out->launch_s;
    out->compute_s = out->memory_s = 0;
    for (uint32_t i = 0; i < c->n_item; i++) {
        const imp_cost_terms *t = &item[i];
        double s = imp_cost_together(m, t->compute_s, t->memory_s);
        *(t->compute_s > t->memory_s ? &out->compute_s : &out->memory_s) += s;
        out->compute_s += t->row_s;
        out->s += s + t->row_s;
    }
    out->bound = imp_cost_bound(out);
    out->n_sample = 0;
    double inv = out->s > 0 ? 1 / out->s : 0;
    const imp_value *f = m->f;
    double mem = hypot3(spread(&f[IMP_F_BW]), spread(&f[IMP_F_E_BW]), 0);
    double peak = IMP_MAX(spread(&f[IMP_F_F16]), spread(&f[IMP_F_F32]));
    double mm = hypot3(peak, spread(&f[IMP_F_E_MM]), 0);
    double start = IMP_MAX(spread(&f[IMP_F_LAUNCH]), spread(&f[IMP_F_SYNC]));
    out->sd = hypot3(mem * out->memory_s * inv, mm * out->compute_s * inv, start * out->launch_s * inv);
}

const char *imp_bound_name(imp_bound b)
{
    static const char *const name[] = {"memory", "compute", "launch", "transfer"};
    return name[b];
}
