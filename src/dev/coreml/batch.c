/* dev/coreml/batch.c - nodes of a graph over many texts, in two streams. */
#include "dev/coreml/batch.h"

#include <math.h>

#include "kern/kern.h"

imp_status ml_batch_init(ml_batch *b, const imp_graph *g, const imp_ml_text *text, uint32_t n, imp_pool *pool,
                         imp_error *err)
{
    size_t n_val = imp_graph_n(g) + 1;
    *b = (ml_batch){.g = g, .pool = pool, .n_text = n};
    for (uint32_t i = 0; i < n; i++) b->n_tok += text[i].n;
    b->first = imp_sys_calloc(n + 1, sizeof *b->first);
    b->token = imp_sys_malloc((size_t)b->n_tok * sizeof *b->token + 1);
    b->val[0] = imp_sys_calloc(n_val, sizeof(float *));
    b->val[1] = imp_sys_calloc(n_val, sizeof(float *));
    b->last = imp_sys_calloc(n_val, sizeof *b->last);
    b->need = imp_sys_calloc(n_val, sizeof *b->need);
    if (b->first == NULL || b->token == NULL || b->val[0] == NULL || b->val[1] == NULL || b->last == NULL ||
        b->need == NULL) {
        ml_batch_deinit(b);
        return imp_fail(err, IMP_NOMEM, "out of memory while calibrating");
    }
    for (uint32_t i = 0; i < n; i++) {
        memcpy(b->token + b->first[i], text[i].id, text[i].n * sizeof *b->token);
        b->first[i + 1] = b->first[i] + text[i].n;
    }
    b->need[imp_graph_output(g)] = true;
    for (imp_val v = (imp_val)n_val - 1; v >= 1; v--)
        for (uint32_t i = 0; b->need[v] && i < imp_graph_node(g, v)->n_in; i++) {
            imp_val x = imp_graph_node(g, v)->in[i];
            if (x == 0) continue;
            b->need[x] = true;
            b->last[x] = b->last[x] > v ? b->last[x] : v;
        }
    return IMP_OK;
}

void ml_batch_deinit(ml_batch *b)
{
    for (int s = 0; s < 2 && b->val[s] != NULL; s++) {
        for (imp_val v = 1; v <= imp_graph_n(b->g); v++) imp_sys_free(b->val[s][v]);
        imp_sys_free(b->val[s]);
    }
    imp_sys_free(b->first);
    imp_sys_free(b->token);
    imp_sys_free(b->last);
    imp_sys_free(b->need);
    *b = (ml_batch){0};
}

uint64_t ml_batch_rows(const ml_batch *b, imp_val v)
{
    return imp_graph_node(b->g, v)->rows == IMP_ROWS_TOK ? b->n_tok : b->n_text;
}

float *ml_batch_make(ml_batch *b, int stream, imp_val v)
{
    float **p = &b->val[stream][v];
    if (*p == NULL)
        *p = imp_sys_malloc((size_t)(ml_batch_rows(b, v) * imp_graph_node(b->g, v)->width) * sizeof **p);
    if (*p == NULL) b->failed = true;
    return *p;
}

void ml_batch_drop(ml_batch *b, imp_val v)
{
    const imp_node *n = imp_graph_node(b->g, v);
    for (uint32_t i = 0; i < n->n_in; i++)
        for (int s = 0; s < 2 && n->in[i] != 0 && b->last[n->in[i]] == v; s++) {
            imp_sys_free(b->val[s][n->in[i]]);
            b->val[s][n->in[i]] = NULL;
        }
}

/* ---- rows ------------------------------------------------------------------------------------------------------ */

typedef struct step {
    const ml_batch *b;
    const imp_node *n;
    const imp_vec *k;
    uint64_t rows;
    const float *x, *y, *z; /* operands */
    float *out;
    const float *w, *bias; /* of norms */
    float *score;          /* [n_thread][longest], for attention */
    uint32_t longest;
} step;

static uint64_t width_of(const step *s, uint32_t i)
{
    return imp_graph_node(s->b->g, s->n->in[i])->width;
}

/* The text that row r belongs to, found from a guess. */
static uint32_t text_of(const ml_batch *b, uint64_t r)
{
    uint32_t lo = 0, hi = b->n_text - 1;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo + 1) / 2;
        if (b->first[mid] <= r)
            lo = mid;
        else
            hi = mid - 1;
    }
    return lo;
}

static void embed_row(const step *s, uint64_t r, float *out)
{
    const imp_tensor *t = &imp_graph_node(s->b->g, s->n->in[0])->u.weight.part[0];
    int64_t pos = (int64_t)(r - s->b->first[text_of(s->b, r)]);
    int64_t row = s->n->u.embed.by == IMP_BY_TOKEN      ? s->b->token[r]
                  : s->n->u.embed.by == IMP_BY_POSITION ? pos + s->n->u.embed.offset
                                                        : 0;
    imp_tensor_row_f32(t, (uint64_t)IMP_MIN(IMP_MAX(row, 0), (int64_t)t->dim[0] - 1), out);
}

static void norm_row(const step *s, uint64_t r, float *out)
{
    uint64_t width = s->n->width, group = s->n->op == IMP_OP_LAYER_NORM ? width : s->n->u.norm.group;
    const float *x = s->x + r * width;
    if (s->n->op == IMP_OP_LAYER_NORM) {
        s->k->layer_norm(out, x, s->w, s->bias, s->n->u.norm.eps, width);
        return;
    }
    for (uint64_t g = 0; g < width; g += group)
        s->k->rms_norm(out + g, x + g, s->w, s->n->u.norm.w_offset, s->n->u.norm.eps, group);
}

static void rope_row(const step *s, uint64_t r, float *out)
{
    const imp_rope_attr *a = &s->n->u.rope;
    float cs[512], sn[512];
    uint64_t pos = r - s->b->first[text_of(s->b, r)];
    for (uint32_t i = 0; i < a->n_rot / 2; i++) {
        double angle = (double)((float)pos * a->inv_freq[i]);
        cs[i] = (float)(cos(angle) * (double)a->mscale);
        sn[i] = (float)(sin(angle) * (double)a->mscale);
    }
    s->k->rope(out, s->x + r * s->n->width, cs, sn, (uint32_t)(s->n->width / a->head_dim), a->head_dim,
               a->n_rot, a->interleaved);
}

static bool sees(const imp_attn_attr *a, uint64_t i, uint64_t j)
{
    uint64_t far = i > j ? i - j : j - i;
    if (a->mask == IMP_MASK_CAUSAL) return j <= i && (a->window == 0 || far < a->window);
    return a->window == 0 || far <= a->window;
}

static void attention_row(const step *s, uint64_t r, float *out, float *score)
{
    const imp_attn_attr *a = &s->n->u.attn;
    const uint32_t *first = s->b->first + text_of(s->b, r), n = first[1] - first[0];
    uint64_t d = a->head_dim, qw = width_of(s, 0), kw = width_of(s, 1), i = r - first[0];
    memset(out, 0, s->n->width * sizeof *out);
    for (uint32_t h = 0; h < a->n_head; h++) {
        const float *q = s->x + r * qw + h * d;
        uint64_t g = h / (a->n_head / a->n_kv_head) * d;
        for (uint32_t j = 0; j < n; j++) {
            float x = s->k->dot(q, s->y + (first[0] + j) * kw + g, d) * a->scale;
            if (a->softcap > 0) x = a->softcap * tanhf(x / a->softcap);
            score[j] = sees(a, i, j) ? x : -INFINITY;
        }
        s->k->softmax(score, score, n);
        for (uint32_t j = 0; j < n; j++)
            if (score[j] > 0) s->k->axpy(out + h * d, score[j], s->z + (first[0] + j) * kw + g, d);
    }
}

static void pool_row(const step *s, uint64_t t, float *out)
{
    uint64_t width = s->n->width, from = s->b->first[t], n = s->b->first[t + 1] - from;
    if (s->n->u.pool.kind != IMP_POOL_MEAN) {
        uint64_t row = s->n->u.pool.kind == IMP_POOL_CLS ? from : from + n - 1;
        memcpy(out, s->x + row * width, (size_t)width * sizeof *out);
        return;
    }
    memset(out, 0, (size_t)width * sizeof *out);
    for (uint64_t i = 0; i < n; i++) s->k->axpy(out, 1 / (float)n, s->x + (from + i) * width, width);
}

static void one_row(const step *s, uint64_t r, float *score)
{
    const imp_node *n = s->n;
    uint64_t w = n->width;
    float *out = s->out + r * w;
    const float *x = s->x != NULL ? s->x + r * w : NULL, *y = s->y != NULL ? s->y + r * w : NULL;
    switch (n->op) {
    case IMP_OP_EMBED: embed_row(s, r, out); break;
    case IMP_OP_RMS_NORM:
    case IMP_OP_LAYER_NORM: norm_row(s, r, out); break;
    case IMP_OP_ADD: s->k->add(out, x, y, w); break;
    case IMP_OP_MUL: s->k->mul(out, x, y, w); break;
    case IMP_OP_SCALE: s->k->scale(out, x, n->u.scale.c, w); break;
    case IMP_OP_SOFTCAP: s->k->softcap(out, x, n->u.scale.c, w); break;
    case IMP_OP_ACT: s->k->act(out, x, (imp_kact)n->u.act.act, w); break;
    case IMP_OP_GLU: s->k->glu(out, x, y, (imp_kact)n->u.act.act, w); break;
    case IMP_OP_SLICE:
        memcpy(out, s->x + r * width_of(s, 0) + n->u.slice.begin, (size_t)w * sizeof *out);
        break;
    case IMP_OP_ROPE: rope_row(s, r, out); break;
    case IMP_OP_ATTN: attention_row(s, r, out, score); break;
    case IMP_OP_POOL: pool_row(s, r, out); break;
    case IMP_OP_GATHER: memcpy(out, s->x + (s->b->first[r + 1] - 1) * w, (size_t)w * sizeof *out); break;
    case IMP_OP_L2_NORM: s->k->l2_norm(out, x, 1e-12f, w); break;
    default: break;
    }
}

static void some_rows(void *ctx, uint32_t ith, uint32_t n_thread)
{
    const step *s = ctx;
    enum { RUN = 16 }; /* dealt out in turns: texts differ in length */
    for (uint64_t r0 = (uint64_t)ith * RUN; r0 < s->rows; r0 += (uint64_t)n_thread * RUN)
        for (uint64_t r = r0; r < IMP_MIN(r0 + RUN, s->rows); r++)
            one_row(s, r, s->score != NULL ? s->score + (uint64_t)ith * s->longest : NULL);
}

static const float *weight_row(const ml_batch *b, const imp_node *n, uint32_t i, float **own)
{
    if (i >= n->n_in || n->in[i] == 0) return NULL;
    const imp_tensor *t = &imp_graph_node(b->g, n->in[i])->u.weight.part[0];
    *own = imp_sys_malloc((size_t)imp_tensor_n_col(t) * sizeof **own);
    if (*own != NULL) imp_tensor_row_f32(t, 0, *own);
    return *own;
}

static const char *refuses(const imp_node *n)
{
    if (n->op == IMP_OP_MOE) return "mixtures of experts cannot be calibrated";
    if (n->op == IMP_OP_ATTN && n->n_in > 3 && n->in[3] != 0) return "attention sinks cannot be calibrated";
    return n->op == IMP_OP_ROPE && n->u.rope.n_rot > 1024 ? "too wide a rotation" : NULL;
}

imp_status ml_batch_step(ml_batch *b, imp_val v, imp_error *err)
{
    const imp_node *n = imp_graph_node(b->g, v);
    float *w = NULL, *bias = NULL;
    if (n->op == IMP_OP_WEIGHT) return IMP_OK;
    if (refuses(n) != NULL) return imp_fail(err, IMP_UNSUPPORTED, "%s: %s", n->name, refuses(n));
    step s = {.b = b, .n = n, .k = imp_vec_get(), .rows = ml_batch_rows(b, v)};
    bool is_norm = n->op == IMP_OP_LAYER_NORM || n->op == IMP_OP_RMS_NORM;
    if (is_norm) s.w = weight_row(b, n, 1, &w), s.bias = weight_row(b, n, 2, &bias);
    for (uint32_t i = 0; n->op == IMP_OP_ATTN && i < b->n_text; i++)
        s.longest = IMP_MAX(s.longest, b->first[i + 1] - b->first[i]);
    uint32_t n_thread = b->pool != NULL ? imp_pool_n_thread(b->pool) : 1;
    if (s.longest > 0 && (s.score = imp_sys_malloc((size_t)s.longest * n_thread * sizeof(float))) == NULL)
        b->failed = true;
    for (int k = 0; k < 2 && !b->failed; k++) {
        const float *in[3] = {0};
        for (uint32_t i = 0; i < 3 && i < n->n_in && n->op != IMP_OP_EMBED; i++)
            in[i] = n->in[i] != 0 ? b->val[k][n->in[i]] : NULL;
        s.x = in[0], s.y = is_norm ? NULL : in[1], s.z = is_norm ? NULL : in[2];
        if ((s.out = ml_batch_make(b, k, v)) == NULL) break;
        if (b->pool != NULL)
            imp_pool_run(b->pool, some_rows, &s);
        else
            some_rows(&s, 0, 1);
    }
    imp_sys_free(w);
    imp_sys_free(bias);
    imp_sys_free(s.score);
    return b->failed ? imp_fail(err, IMP_NOMEM, "out of memory while calibrating") : IMP_OK;
}
