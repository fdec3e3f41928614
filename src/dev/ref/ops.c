/* dev/ref/ops.c - what each op of the IR means, as plain loops.
 *
 * Place:   the truth that other devices are compared with; called by ref.c in node order.
 * Idea:    f32 in and out, every sum in f64, one short function an op, no cleverness, nothing shared with src/kern.
 * Source:  the formulas in graph.h. */
#include "dev/ref/ref.h"
#include "dev/check.h"
#include "dev/group.h"

#include <math.h>

static const imp_node *node(const ref_step *s, imp_val v)
{
    return imp_graph_node(s->x->graph, v);
}

/* Row r of value v. */
static float *row_of(const ref_step *s, imp_val v, uint64_t r)
{
    return s->x->value[v] + r * node(s, v)->width;
}

static const imp_tensor *weight(const ref_step *s, imp_val v)
{
    return &node(s, v)->u.weight.part[0];
}

/* A weight vector, decoded into one of the three spare rows; NULL when the input is absent. */
static const float *vector(const ref_step *s, const imp_node *n, uint32_t input, int spare)
{
    if (input >= n->n_in) return NULL;
    imp_tensor_row_f32(weight(s, n->in[input]), 0, s->x->row[spare]);
    return s->x->row[spare];
}

static double activate(imp_act act, double x)
{
    switch (act) {
    case IMP_ACT_SILU: return x / (1 + exp(-x));
    case IMP_ACT_GELU: return 0.5 * x * (1 + erf(x / sqrt(2.0)));
    case IMP_ACT_GELU_TANH:
        return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    case IMP_ACT_RELU: return x > 0 ? x : 0;
    case IMP_ACT_TANH: return tanh(x);
    case IMP_ACT_SIGMOID: return 1 / (1 + exp(-x));
    }
    return x;
}

static double dot(const float *a, const float *b, uint64_t n)
{
    double sum = 0;
    for (uint64_t i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

static void input(const ref_step *s, imp_val v, const imp_node *n)
{
    memcpy(row_of(s, v, 0), s->b->input, s->b->n_tok * n->width * sizeof(float));
}

/* What an adapter adds to row r of v: y += scale * B h, h from A and x, or A's row of the token. */
static void adapt_row(const ref_step *s, imp_val v, const imp_node *n, uint32_t r, const imp_adapter_use *use)
{
    const imp_adapter_part *p = imp_adapter_at(use->adapter, s->x->graph, v);
    if (p == NULL) return;
    uint64_t rank = imp_tensor_n_col(&p->b);
    double *h = s->x->score, scale = (double)p->scale * (double)use->scale;
    float *w = s->x->row[0], *y = row_of(s, v, r);
    if (n->op == IMP_OP_EMBED) {
        imp_tensor_row_f32(&p->a, (uint64_t)imp_dev_embed_row(n, s->b, r), w);
        for (uint64_t j = 0; j < rank; j++) h[j] = (double)w[j];
    }
    for (uint64_t j = 0; j < rank && n->op == IMP_OP_LINEAR; j++) {
        imp_tensor_row_f32(&p->a, j, w);
        h[j] = dot(w, row_of(s, n->in[0], r), node(s, n->in[0])->width);
    }
    for (uint64_t i = 0; i < n->width; i++) {
        double sum = 0;
        imp_tensor_row_f32(&p->b, i, w);
        for (uint64_t j = 0; j < rank; j++) sum += (double)w[j] * h[j];
        y[i] = (float)((double)y[i] + scale * sum);
    }
}

static void adapt(const ref_step *s, imp_val v, const imp_node *n)
{
    for (uint32_t r = 0; r < imp_ref_n_row(s, n->rows) && s->x->lim.lora_rank > 0; r++) {
        const imp_batch_seq *q = &s->b->seq[imp_dev_seq_of_row(s->b, n->rows, r)];
        for (uint32_t i = 0; i < q->n_use; i++) adapt_row(s, v, n, r, &q->use[i]);
    }
}

static void embed(const ref_step *s, imp_val v, const imp_node *n)
{
    for (uint32_t t = 0; t < s->b->n_tok; t++) {
        imp_tensor_row_f32(weight(s, n->in[0]), (uint64_t)imp_dev_embed_row(n, s->b, t), row_of(s, v, t));
    }
    adapt(s, v, n);
}

static void linear(const ref_step *s, imp_val v, const imp_node *n)
{
    uint64_t k = node(s, n->in[0])->width;
    const float *bias = vector(s, n, 2, 1);
    for (uint64_t j = 0; j < n->width; j++) {
        float *w = s->x->row[0];
        imp_tensor_row_f32(weight(s, n->in[1]), j, w);
        for (uint32_t r = 0; r < imp_ref_n_row(s, n->rows); r++) {
            double b = bias != NULL ? (double)bias[j] : 0;
            row_of(s, v, r)[j] = (float)(dot(row_of(s, n->in[0], r), w, k) + b);
        }
    }
    adapt(s, v, n);
}

static void rms_norm(const ref_step *s, imp_val v, const imp_node *n)
{
    const float *w = vector(s, n, 1, 0);
    uint64_t group = n->u.norm.group;
    for (uint32_t r = 0; r < imp_ref_n_row(s, n->rows); r++) {
        for (uint64_t at = 0; at < n->width; at += group) {
            const float *x = row_of(s, n->in[0], r) + at;
            float *y = row_of(s, v, r) + at;
            double inv = 1 / sqrt(dot(x, x, group) / (double)group + (double)n->u.norm.eps);
            for (uint64_t i = 0; i < group; i++) {
                double c = w != NULL ? (double)w[i] + (double)n->u.norm.w_offset : 1;
                y[i] = (float)((double)x[i] * inv * c);
            }
        }
    }
}

static void layer_norm(const ref_step *s, imp_val v, const imp_node *n)
{
    const float *w = vector(s, n, 1, 0), *b = vector(s, n, 2, 1);
    for (uint32_t r = 0; r < imp_ref_n_row(s, n->rows); r++) {
        const float *x = row_of(s, n->in[0], r);
        float *y = row_of(s, v, r);
        double mean = 0, var = 0;
        for (uint64_t i = 0; i < n->width; i++) mean += (double)x[i];
        mean /= (double)n->width;
        for (uint64_t i = 0; i < n->width; i++) var += ((double)x[i] - mean) * ((double)x[i] - mean);
        var /= (double)n->width;
        for (uint64_t i = 0; i < n->width; i++) {
            double z = ((double)x[i] - mean) / sqrt(var + (double)n->u.norm.eps);
            y[i] = (float)(z * (w != NULL ? (double)w[i] : 1) + (b != NULL ? (double)b[i] : 0));
        }
    }
}

static void l2_norm(const ref_step *s, imp_val v, const imp_node *n)
{
    for (uint32_t r = 0; r < imp_ref_n_row(s, n->rows); r++) {
        const float *x = row_of(s, n->in[0], r);
        float *y = row_of(s, v, r);
        double length = sqrt(dot(x, x, n->width));
        if (length < (double)n->u.norm.eps) length = (double)n->u.norm.eps;
        for (uint64_t i = 0; i < n->width; i++) y[i] = (float)((double)x[i] / length);
    }
}

/* ADD, MUL, SCALE, SOFTCAP, ACT, GLU: y[i] from a[i] and perhaps b[i]. */
static float one_element(const imp_node *n, double a, double b)
{
    double c = (double)n->u.scale.c;
    switch (n->op) {
    case IMP_OP_ADD: return (float)(a + b);
    case IMP_OP_MUL: return (float)(a * b);
    case IMP_OP_SCALE: return (float)(a * c);
    case IMP_OP_SOFTCAP: return (float)(c * tanh(a / c));
    case IMP_OP_ACT: return (float)activate(n->u.act.act, a);
    default: return (float)(activate(n->u.act.act, a) * b); /* GLU */
    }
}

static void elementwise(const ref_step *s, imp_val v, const imp_node *n)
{
    for (uint64_t i = 0; i < imp_ref_n_row(s, n->rows) * n->width; i++) {
        double b = n->n_in > 1 ? (double)s->x->value[n->in[1]][i] : 0;
        s->x->value[v][i] = one_element(n, (double)s->x->value[n->in[0]][i], b);
    }
}

static void slice(const ref_step *s, imp_val v, const imp_node *n)
{
    for (uint32_t r = 0; r < imp_ref_n_row(s, n->rows); r++) {
        memcpy(row_of(s, v, r), row_of(s, n->in[0], r) + n->u.slice.begin, n->width * sizeof(float));
    }
}

static void rope(const ref_step *s, imp_val v, const imp_node *n)
{
    const imp_rope_attr *a = &n->u.rope;
    uint32_t half = a->n_rot / 2;
    memcpy(s->x->value[v], s->x->value[n->in[0]], s->b->n_tok * n->width * sizeof(float));
    for (uint32_t t = 0; t < s->b->n_tok; t++) {
        for (uint64_t head = 0; head < n->width; head += a->head_dim) {
            float *y = row_of(s, v, t) + head;
            for (uint32_t i = 0; i < half; i++) {
                uint32_t p = a->interleaved ? 2 * i : i, q = a->interleaved ? 2 * i + 1 : i + half;
                float angle = (float)s->b->pos[t] * a->inv_freq[i];
                double c = cos((double)angle) * (double)a->mscale, d = sin((double)angle) * (double)a->mscale;
                double yp = (double)y[p], yq = (double)y[q];
                y[p] = (float)(yp * c - yq * d);
                y[q] = (float)(yp * d + yq * c);
            }
        }
    }
}

/* ---- attention --------------------------------------------------------------------------------- */

float *imp_ref_kv_at(const ref_exec *x, const imp_attn_attr *a, int part, const uint32_t *block, uint32_t pos)
{
    uint64_t width = (uint64_t)a->n_kv_head * a->head_dim;
    uint64_t slot = (uint64_t)block[pos / IMP_KV_BLOCK] * IMP_KV_BLOCK + pos % IMP_KV_BLOCK;
    uint64_t part_elem = (uint64_t)x->lim.n_kv_block * IMP_KV_BLOCK * width;
    return x->kv + x->kv_layer_at[a->kv_layer] + (uint64_t)part * part_elem + slot * width;
}

/* Keys (part 0) or values (part 1) of position j of a sequence: from the cache, or row j of the step. */
static const float *kv_row(const ref_step *s, const imp_node *n, const imp_batch_seq *q, int part, uint32_t j)
{
    if (n->u.attn.kv_layer < 0) return row_of(s, n->in[1 + part], q->first_tok + j);
    return imp_ref_kv_at(s->x, &n->u.attn, part, q->block, j);
}

/* What the cache's type leaves of keys and values; rotated keys stay rotated. */
static void store_kv(const ref_step *s, const imp_node *n, const imp_batch_seq *q)
{
    uint32_t hd = n->u.attn.head_dim;
    for (int part = 0; part < 2; part++) {
        imp_dtype t = imp_ref_kv_type(s->x->lim.kv_dtype, part);
        for (uint32_t i = 0; i < q->n_tok; i++) {
            float *to = imp_ref_kv_at(s->x, &n->u.attn, part, q->block, q->n_past + i);
            memcpy(to, row_of(s, n->in[1 + part], q->first_tok + i), node(s, n->in[1])->width * sizeof *to);
            for (uint32_t h = 0; h < n->u.attn.n_kv_head; h++, to += hd) {
                if (t == IMP_Q4_0) imp_ref_kv_rotate(to, hd);
                imp_ref_kv_encode(t, to, hd, s->x->kv_row);
                imp_dtype_get(t)->to_f32(s->x->kv_row, to, hd);
            }
        }
    }
}

static bool sees(const imp_attn_attr *a, uint32_t i, uint32_t j)
{
    uint32_t distance = i > j ? i - j : j - i;
    if (a->mask == IMP_MASK_CAUSAL) return j <= i && (a->window == 0 || distance < a->window);
    return a->window == 0 || distance <= a->window;
}

/* One query head at position i of a sequence with n_key keys. */
static void attend(const ref_step *s, const imp_node *n, const imp_batch_seq *q, uint32_t i, uint32_t n_key,
                   uint32_t head, const float *query, float *y)
{
    const imp_attn_attr *a = &n->u.attn;
    uint32_t at = head / (a->n_head / a->n_kv_head) * a->head_dim;
    const float *sink = vector(s, n, 3, 0);
    if (a->kv_layer >= 0 && s->x->lim.kv_dtype == IMP_Q4_0) {
        query = memcpy(s->x->row[1], query, a->head_dim * sizeof *query);
        imp_ref_kv_rotate(s->x->row[1], a->head_dim);
    }
    double max = sink != NULL ? (double)sink[head] : -INFINITY, sum = 0;
    for (uint32_t j = 0; j < n_key; j++) {
        double score = (double)a->scale * dot(query, kv_row(s, n, q, 0, j) + at, a->head_dim);
        if (a->softcap > 0) score = (double)a->softcap * tanh(score / (double)a->softcap);
        if (!sees(a, i, j)) score = -INFINITY;
        s->x->score[j] = score;
        if (score > max) max = score;
    }
    if (sink != NULL) sum += exp((double)sink[head] - max);
    for (uint32_t j = 0; j < n_key; j++) {
        s->x->score[j] = s->x->score[j] == -INFINITY ? 0 : exp(s->x->score[j] - max);
        sum += s->x->score[j];
    }
    for (uint32_t c = 0; c < a->head_dim; c++) {
        double out = 0;
        for (uint32_t j = 0; j < n_key; j++) {
            if (s->x->score[j] > 0) out += s->x->score[j] * (double)kv_row(s, n, q, 1, j)[at + c];
        }
        y[c] = sum > 0 ? (float)(out / sum) : 0;
    }
}

static void attn(const ref_step *s, imp_val v, const imp_node *n)
{
    const imp_attn_attr *a = &n->u.attn;
    for (uint32_t k = 0; k < s->b->n_seq; k++) {
        const imp_batch_seq *q = &s->b->seq[k];
        uint32_t past = a->kv_layer < 0 ? 0 : q->n_past;
        if (a->kv_layer >= 0) store_kv(s, n, q);
        for (uint32_t i = 0; i < q->n_tok; i++) {
            for (uint32_t head = 0; head < a->n_head; head++) {
                const float *query = row_of(s, n->in[0], q->first_tok + i) + (uint64_t)head * a->head_dim;
                float *y = row_of(s, v, q->first_tok + i) + (uint64_t)head * a->head_dim;
                attend(s, n, q, past + i, past + q->n_tok, head, query, y);
            }
        }
    }
}

/* ---- experts ----------------------------------------------------------------------------------- */

/* y += c * (down (act(gate x) * up x)) of one expert. */
static void one_expert(const ref_step *s, const imp_node *n, uint32_t e, const float *x, double c, double *y)
{
    const imp_tensor *gate = &node(s, n->in[2])->u.weight.part[e], *up = &node(s, n->in[3])->u.weight.part[e],
                     *down = &node(s, n->in[4])->u.weight.part[e];
    uint64_t k = imp_tensor_n_col(gate), n_ff = imp_tensor_n_row(gate);
    float *h = s->x->hidden, *w = s->x->row[0];
    for (uint64_t j = 0; j < n_ff; j++) {
        imp_tensor_row_f32(gate, j, w);
        double g = activate(n->u.moe.act, dot(x, w, k));
        imp_tensor_row_f32(up, j, w);
        h[j] = (float)(g * dot(x, w, k));
    }
    for (uint64_t j = 0; j < n->width; j++) {
        imp_tensor_row_f32(down, j, w);
        y[j] += c * dot(h, w, n_ff);
    }
}

static void moe(const ref_step *s, imp_val v, const imp_node *n)
{
    const imp_moe_attr *a = &n->u.moe;
    double *p = s->x->score, *y = p + a->n_expert;
    for (uint32_t r = 0; r < imp_ref_n_row(s, n->rows); r++) {
        const float *logit = row_of(s, n->in[1], r);
        double max = -INFINITY, sum = 0, kept = 0;
        for (uint32_t e = 0; e < a->n_expert; e++) max = fmax(max, (double)logit[e]);
        for (uint32_t e = 0; e < a->n_expert; e++) sum += p[e] = exp((double)logit[e] - max);
        /* An expert is chosen when fewer than n_used others are better; of equals the first is better. */
        for (int pass = 0; pass < 2; pass++) {
            if (pass == 1) memset(y, 0, n->width * sizeof *y);
            for (uint32_t e = 0; e < a->n_expert; e++) {
                uint32_t n_better = 0;
                for (uint32_t o = 0; o < a->n_expert; o++) n_better += p[o] > p[e] || (p[o] == p[e] && o < e);
                if (n_better >= a->n_used) continue;
                if (pass == 0) kept += p[e];
                if (pass == 1)
                    one_expert(s, n, e, row_of(s, n->in[0], r), p[e] / (a->norm_topk ? kept : sum), y);
            }
        }
        for (uint64_t i = 0; i < n->width; i++) row_of(s, v, r)[i] = (float)y[i];
    }
}

/* ---- rows -------------------------------------------------------------------------------------- */

static void gather(const ref_step *s, imp_val v, const imp_node *n)
{
    for (uint32_t i = 0; i < s->b->n_out; i++) {
        memcpy(row_of(s, v, i), row_of(s, n->in[0], s->b->out_row[i]), n->width * sizeof(float));
    }
}

static void pool(const ref_step *s, imp_val v, const imp_node *n)
{
    for (uint32_t k = 0; k < s->b->n_seq; k++) {
        const imp_batch_seq *q = &s->b->seq[k];
        uint32_t first = q->first_tok, last = q->first_tok + q->n_tok - 1;
        if (n->u.pool.kind == IMP_POOL_CLS) last = first;
        if (n->u.pool.kind == IMP_POOL_LAST) first = last;
        for (uint64_t c = 0; c < n->width; c++) {
            double sum = 0;
            for (uint32_t t = first; t <= last; t++) sum += (double)row_of(s, n->in[0], t)[c];
            row_of(s, v, k)[c] = (float)(sum / (last - first + 1));
        }
    }
}

static void allreduce(const ref_step *s, imp_val v, const imp_node *n)
{
    uint64_t total = imp_ref_n_row(s, n->rows) * n->width;
    const float *x = row_of(s, n->in[0], 0);
    if (s->x->group != NULL)
        (void)imp_group_sum(s->x->group, s->x->rank, x, row_of(s, v, 0), total);
    else
        memcpy(row_of(s, v, 0), x, total * sizeof(float));
}

static void outside(const ref_step *s, imp_val v, const imp_node *n)
{
    ref_exec *x = s->x;
    if (x->outside_status != IMP_OK) return;
    x->outside_status =
        x->outside.fn == NULL
            ? imp_fail(&x->outside_err, IMP_INTERNAL, "nobody computes %s", n->name)
            : x->outside.fn(x->outside.ctx, n->u.outside.index, imp_ref_n_row(s, n->rows),
                            row_of(s, n->in[0], 0), node(s, n->in[0])->width, row_of(s, n->in[1], 0),
                            node(s, n->in[1])->width, row_of(s, v, 0), n->width, &x->outside_err);
}

void imp_ref_node(const ref_step *s, imp_val v)
{
    static void (*const run[IMP_N_OP])(const ref_step *, imp_val, const imp_node *) = {
        [IMP_OP_INPUT] = input,
        [IMP_OP_EMBED] = embed,
        [IMP_OP_LINEAR] = linear,
        [IMP_OP_RMS_NORM] = rms_norm,
        [IMP_OP_LAYER_NORM] = layer_norm,
        [IMP_OP_ADD] = elementwise,
        [IMP_OP_MUL] = elementwise,
        [IMP_OP_SCALE] = elementwise,
        [IMP_OP_SOFTCAP] = elementwise,
        [IMP_OP_ACT] = elementwise,
        [IMP_OP_GLU] = elementwise,
        [IMP_OP_SLICE] = slice,
        [IMP_OP_ROPE] = rope,
        [IMP_OP_ATTN] = attn,
        [IMP_OP_MOE] = moe,
        [IMP_OP_GATHER] = gather,
        [IMP_OP_POOL] = pool,
        [IMP_OP_L2_NORM] = l2_norm,
        [IMP_OP_ALLREDUCE] = allreduce,
        [IMP_OP_OUTSIDE] = outside,
    };
    const imp_node *n = node(s, v);
    if (run[n->op] != NULL) run[n->op](s, v, n);
}
