/* plan/importance.c - mean squares of matrices' inputs.
 *
 * Idea:    the net's own graph runs in pieces of a window; after each piece the kept input rows of every LINEAR and MOE node
 *          are squared and added up under the weight's name. A weight that several nodes read adds them all.
 * Threads: the caller's. */
#include "plan/importance.h"

enum { PIECE = 64 }; /* tokens a step: kept values take memory */

typedef struct entry {
    const char *name; /* the graph's; copied */
    uint64_t n_col, n_row;
    double *sum; /* [n_col] */
    float *mean; /* [n_col], at the end */
} entry;

struct imp_importance {
    imp_arena *arena;
    entry *e;
    uint32_t n;
};

static entry *find(const imp_importance *m, const char *name)
{
    for (uint32_t i = 0; i < m->n; i++)
        if (!strcmp(m->e[i].name, name)) return &m->e[i];
    return NULL;
}

/* Room for weight w, whose input has n_col columns. false: no memory. */
static bool enter(imp_importance *m, const imp_node *w, uint64_t n_col)
{
    if (find(m, w->name) != NULL) return true;
    entry *e = &m->e[m->n];
    e->name = imp_arena_strndup(m->arena, w->name, strlen(w->name));
    e->n_col = n_col;
    e->sum = imp_arena_array(m->arena, n_col, sizeof *e->sum);
    e->mean = imp_arena_array(m->arena, n_col, sizeof *e->mean);
    if (e->name == NULL || e->sum == NULL || e->mean == NULL) return false;
    m->n++;
    return true;
}

/* The weights that read in[0] of a node: LINEAR's one, MOE's gate and up. */
static uint32_t readers(const imp_node *n, imp_val out[2])
{
    if (n->op == IMP_OP_LINEAR) return out[0] = n->in[1], 1;
    if (n->op == IMP_OP_MOE) return out[0] = n->in[2], out[1] = n->in[3], 2;
    return 0;
}

static imp_status list_weights(const imp_graph *g, imp_importance *m)
{
    m->e = imp_arena_array(m->arena, imp_graph_n(g), sizeof *m->e);
    if (m->e == NULL) return IMP_NOMEM;
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        const imp_node *n = imp_graph_node(g, v);
        imp_val w[2];
        for (uint32_t i = 0; i < readers(n, w); i++)
            if (!enter(m, imp_graph_node(g, w[i]), imp_graph_node(g, n->in[0])->width)) return IMP_NOMEM;
    }
    return IMP_OK;
}

static void add_rows(entry *e, const float *x, uint64_t stride, uint32_t n_row)
{
    for (uint32_t r = 0; r < n_row; r++, x += stride)
        for (uint64_t c = 0; c < e->n_col; c++) e->sum[c] += (double)x[c] * (double)x[c];
    e->n_row += n_row;
}

static void collect(imp_importance *m, const imp_graph *g, const imp_exec *x, const imp_batch *b)
{
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        const imp_node *n = imp_graph_node(g, v);
        imp_val w[2];
        uint64_t stride;
        uint32_t n_w = readers(n, w);
        if (n_w == 0) continue;
        const float *in = x->dev->ops->value(x, n->in[0], &stride);
        imp_rows rows = imp_graph_node(g, n->in[0])->rows;
        uint32_t n_row = rows == IMP_ROWS_TOK ? b->n_tok : rows == IMP_ROWS_OUT ? b->n_out : b->n_seq;
        for (uint32_t i = 0; i < n_w && in != NULL; i++)
            add_rows(find(m, imp_graph_node(g, w[i])->name), in, stride, n_row);
    }
}

/* The means; a column that was hardly used keeps some weight, because another text may use it. */
static void finish(imp_importance *m)
{
    for (uint32_t i = 0; i < m->n; i++) {
        entry *e = &m->e[i];
        double all = 0;
        for (uint64_t c = 0; c < e->n_col; c++) all += e->sum[c];
        double least = all / (double)e->n_col * 1e-3;
        for (uint64_t c = 0; c < e->n_col; c++)
            e->mean[c] = all > 0 ? (float)(IMP_MAX(e->sum[c], least) / (double)e->n_row) : 1;
    }
}

typedef struct run_room {
    int32_t pos[PIECE];
    uint32_t out_row[PIECE], *block;
} run_room;

static imp_status run_window(imp_exec *x, const imp_graph *g, const int32_t *ids, uint32_t n, run_room *r,
                             imp_importance *m, imp_error *err)
{
    for (uint32_t past = 0; past < n; past += PIECE) {
        uint32_t now = IMP_MIN((uint32_t)PIECE, n - past);
        for (uint32_t i = 0; i < now; i++) r->pos[i] = (int32_t)(past + i), r->out_row[i] = i;
        imp_batch_seq q = {.n_tok = now, .n_past = past, .block = r->block};
        imp_batch b = {.n_tok = now,
                       .n_seq = 1,
                       .n_out = now,
                       .token = ids + past,
                       .pos = r->pos,
                       .seq = &q,
                       .out_row = r->out_row};
        const float *out;
        IMP_TRY(x->dev->ops->run(x, &b, &out, err));
        collect(m, g, x, &b);
    }
    return IMP_OK;
}

imp_status imp_importance_collect(imp_device *d, const imp_net *net, const int32_t *ids, size_t n,
                                  uint32_t window, void (*on_window)(void *user), void *user,
                                  imp_importance **out, imp_error *err)
{
    const imp_graph *g = net->generate != NULL ? net->generate : net->embed;
    *out = NULL;
    if (d->ops->value == NULL)
        return imp_fail(err, IMP_UNSUPPORTED, "%s keeps no values to calibrate with; use the CPU", d->name);
    bool cached = imp_graph_n_kv_layer(g) > 0;
    if (!cached) window = IMP_MIN(window, (uint32_t)PIECE); /* no cache: a sequence comes whole */
    window = IMP_MAX(window, 1u);
    uint32_t n_block = (window + IMP_KV_BLOCK - 1) / IMP_KV_BLOCK;
    imp_limits lim = {.max_tok = PIECE,
                      .max_seq = 1,
                      .max_out = PIECE,
                      .max_ctx = window,
                      .n_kv_block = cached ? n_block : 0,
                      .kv_dtype = IMP_F16,
                      .keep = true};
    imp_exec *x = NULL;
    run_room r = {.block = imp_sys_malloc(n_block * sizeof *r.block)};
    imp_importance *m = imp_sys_calloc(1, sizeof *m);
    if (m != NULL) m->arena = imp_arena_new(1 << 16);
    bool ok = r.block != NULL && m != NULL && m->arena != NULL && list_weights(g, m) == IMP_OK;
    imp_status s = ok ? IMP_OK : imp_fail(err, IMP_NOMEM, "not enough memory to calibrate");
    for (uint32_t i = 0; ok && i < n_block; i++) r.block[i] = i;
    if (s == IMP_OK) s = d->ops->compile(d, g, &lim, &x, err);
    for (size_t at = 0; s == IMP_OK && at < n; at += window) {
        s = run_window(x, g, ids + at, (uint32_t)IMP_MIN((size_t)window, n - at), &r, m, err);
        if (on_window != NULL) on_window(user);
    }
    if (x != NULL) d->ops->exec_free(x);
    imp_sys_free(r.block);
    if (s == IMP_OK) {
        finish(m);
        *out = m;
    } else {
        imp_importance_free(m);
    }
    return s;
}

void imp_importance_free(imp_importance *m)
{
    if (m == NULL) return;
    imp_arena_free(m->arena);
    imp_sys_free(m);
}

const float *imp_importance_of(const imp_importance *m, const char *name, uint64_t n_col)
{
    const entry *e = find(m, name);
    return e != NULL && e->n_col == n_col && e->n_row > 0 ? e->mean : NULL;
}
