/* dev/split/split.c - the split device: where to cut, the pieces' memory, and a step through them.
 *
 * Always:  plan and compile of the same graph and limits cut at the same places: what plan chose last is remembered, because
 *          the memory that is free may be another a moment later.
 * Threads: plan and compile under the lock; run as for any device. */
#include "dev/split/split.h"
#include "base/thread.h"

#include <stdio.h>

enum { SPARE_MIB = 256 }; /* of a device's own memory, left to others and to what its driver takes */

/* How many layers each part takes of a graph; 0: none, and no piece. */
typedef struct split_choice {
    const imp_graph *graph; /* NULL: nothing was chosen yet */
    imp_limits lim;
    uint32_t n_layer[IMP_SPLIT_PARTS];
} split_choice;

typedef struct split_device {
    imp_device base;
    imp_split_part part[IMP_SPLIT_PARTS];
    uint32_t n_part;
    imp_mutex *lock;
    split_choice last; /* by plan */
} split_device;

typedef struct split_piece {
    imp_graph *graph; /* owned */
    imp_exec *exec;
    uint32_t part, n_layer;
    uint64_t kv_block_bytes; /* in the host layout */
} split_piece;

typedef struct split_exec {
    imp_exec base;
    imp_limits lim;
    uint32_t *all_rows;     /* [max_tok]: 0, 1, .. */
    imp_batch_seq *no_past; /* [max_seq]: the step's sequences for a piece without a cache */
    uint32_t n_piece;
    split_piece piece[IMP_SPLIT_PARTS];
} split_exec;

/* ---- where to cut --------------------------------------------------------------------------------------- */

/* Layers [from, to) as a graph; behind the last one comes the output. */
static imp_status piece_graph(const imp_graph *g, uint32_t from, uint32_t to, bool last, imp_graph **out,
                              imp_error *err)
{
    imp_val a = from > 0 ? imp_graph_cut(g, from) : 0, b = last ? 0 : imp_graph_cut(g, to);
    if ((from > 0 && a == 0) || (!last && b == 0))
        return imp_fail(err, IMP_UNSUPPORTED, "this model cannot be cut behind layer %u",
                        a == 0 && from > 0 ? from : to);
    return imp_graph_piece(g, a, b, out, err);
}

/* A piece that is not the last gives all its rows out. */
static imp_limits piece_limits(const imp_limits *lim, bool last)
{
    imp_limits l = *lim;
    if (!last) l.max_out = l.max_tok;
    return l;
}

static imp_status plan_piece(const split_device *d, uint32_t part, const imp_graph *g, const imp_limits *lim,
                             uint32_t from, uint32_t to, bool last, imp_dev_memory *m, imp_error *err)
{
    imp_device *dev = d->part[part].device;
    imp_graph *piece = NULL;
    *m = (imp_dev_memory){0};
    IMP_TRY(piece_graph(g, from, to, last, &piece, err));
    imp_limits l = piece_limits(lim, last);
    imp_status s = dev->ops->plan(dev, piece, &l, m, err);
    m->other += imp_graph_bytes(piece);
    imp_graph_free(piece);
    return s;
}

/* The most layers from `from` on whose piece fits into the part's own memory: bisection, memory grows with every layer. */
static imp_status most_layers(const split_device *d, uint32_t part, const imp_graph *g, const imp_limits *lim,
                              uint32_t from, uint32_t *n, imp_error *err)
{
    imp_device *dev = d->part[part].device;
    uint64_t room = dev->ops->mem_free(dev), spare = (uint64_t)SPARE_MIB << 20;
    uint32_t lo = 0, hi = imp_graph_n_kv_layer(g) - from;
    room = room > spare ? room - spare : 0;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo + 1) / 2;
        imp_dev_memory m;
        IMP_TRY(plan_piece(d, part, g, lim, from, from + mid, false, &m, err));
        if (m.weights + m.mapped + m.kv + m.scratch <= room)
            lo = mid;
        else
            hi = mid - 1;
    }
    *n = lo;
    return IMP_OK;
}

static imp_status choose(const split_device *d, const imp_graph *g, const imp_limits *lim, split_choice *c,
                         imp_error *err)
{
    uint32_t from = 0, n_layer = imp_graph_n_kv_layer(g);
    *c = (split_choice){.graph = g, .lim = *lim};
    for (uint32_t i = 0; i + 1 < d->n_part && from < n_layer; i++) {
        uint32_t n = d->part[i].n_layer;
        if (n == 0) IMP_TRY(most_layers(d, i, g, lim, from, &n, err));
        n = IMP_MIN(n, n_layer - from);
        c->n_layer[i] = n;
        from += n;
    }
    c->n_layer[d->n_part - 1] = n_layer - from;
    return IMP_OK;
}

/* ---- plan and compile ------------------------------------------------------------------------------------ */

static const char *split_refuses(const imp_device *base, const imp_graph *g, imp_val v)
{
    const split_device *d = (const split_device *)base;
    const char *why = NULL;
    for (uint32_t i = 0; i < d->n_part && why == NULL; i++)
        why = d->part[i].device->ops->refuses(d->part[i].device, g, v);
    return why;
}

/* What the pieces take: of a device with memory of its own only what it holds in the machine's, but for the last one. */
static imp_status split_plan(imp_device *base, const imp_graph *g, const imp_limits *lim, imp_dev_memory *out,
                             imp_error *err)
{
    split_device *d = (split_device *)base;
    uint32_t from = 0;
    *out = (imp_dev_memory){.other = sizeof(split_exec) + lim->max_tok * sizeof(uint32_t) +
                                     lim->max_seq * sizeof(imp_batch_seq)};
    imp_mutex_lock(d->lock);
    imp_status s = choose(d, g, lim, &d->last, err);
    if (s != IMP_OK) d->last.graph = NULL;
    for (uint32_t i = 0; s == IMP_OK && i < d->n_part; i++) {
        bool last = i + 1 == d->n_part;
        uint32_t n = d->last.n_layer[i];
        imp_dev_memory m;
        if (n == 0 && !last) continue;
        s = plan_piece(d, i, g, lim, from, from + n, last, &m, err);
        from += n;
        out->other += m.other;
        if (!last && d->part[i].device->ops->mem_free != NULL) continue;
        out->weights += m.weights;
        out->mapped += m.mapped;
        out->kv += m.kv;
        out->scratch += m.scratch;
    }
    imp_mutex_unlock(d->lock);
    return s;
}

static void split_exec_free(imp_exec *base)
{
    split_exec *x = (split_exec *)base;
    if (x == NULL) return;
    for (uint32_t i = 0; i < IMP_SPLIT_PARTS; i++) {
        if (x->piece[i].exec != NULL) x->piece[i].exec->dev->ops->exec_free(x->piece[i].exec);
        imp_graph_free(x->piece[i].graph);
    }
    imp_sys_free(x->all_rows);
    imp_sys_free(x->no_past);
    imp_sys_free(x);
}

static imp_status add_piece(split_exec *x, uint32_t part, const imp_graph *g, uint32_t from, uint32_t n,
                            imp_error *err)
{
    const split_device *d = (const split_device *)x->base.dev;
    imp_device *dev = d->part[part].device;
    bool last = part + 1 == d->n_part;
    split_piece *p = &x->piece[x->n_piece++];
    imp_limits l = piece_limits(&x->lim, last);
    p->part = part;
    p->n_layer = n;
    IMP_TRY(piece_graph(g, from, from + n, last, &p->graph, err));
    p->kv_block_bytes = imp_dev_kv_block_bytes(p->graph, l.kv_dtype);
    return dev->ops->compile(dev, p->graph, &l, &p->exec, err);
}

static bool same_limits(const imp_limits *a, const imp_limits *b)
{
    return a->max_tok == b->max_tok && a->max_seq == b->max_seq && a->max_out == b->max_out &&
           a->max_ctx == b->max_ctx && a->n_kv_block == b->n_kv_block && a->kv_dtype == b->kv_dtype;
}

static imp_status compile_pieces(split_device *d, split_exec *x, const imp_graph *g, imp_error *err)
{
    split_choice c = d->last;
    uint32_t from = 0;
    if (c.graph != g || !same_limits(&c.lim, &x->lim)) IMP_TRY(choose(d, g, &x->lim, &c, err));
    for (uint32_t i = 0; i < d->n_part; i++) {
        if (c.n_layer[i] == 0 && i + 1 < d->n_part) continue;
        IMP_TRY(add_piece(x, i, g, from, c.n_layer[i], err));
        from += c.n_layer[i];
    }
    return IMP_OK;
}

static void split_ran_on(const imp_exec *base, char *text, size_t cap)
{
    const split_exec *x = (const split_exec *)base;
    const split_device *d = (const split_device *)base->dev;
    size_t n = 0;
    if (cap > 0) text[0] = '\0';
    for (uint32_t i = 0; i < x->n_piece && n < cap; i++)
        n += (size_t)snprintf(text + n, cap - n, "%s%u layer%s on %s", i > 0 ? ", " : "", x->piece[i].n_layer,
                              x->piece[i].n_layer == 1 ? "" : "s", d->part[x->piece[i].part].device->name);
}

static imp_status split_compile(imp_device *base, const imp_graph *g, const imp_limits *lim, imp_exec **out,
                                imp_error *err)
{
    split_device *d = (split_device *)base;
    *out = NULL;
    split_exec *x = imp_sys_calloc(1, sizeof *x);
    if (x == NULL) return imp_fail(err, IMP_NOMEM, "out of memory while compiling for %s", base->name);
    x->base.dev = base;
    x->lim = *lim;
    x->all_rows = imp_sys_calloc(lim->max_tok, sizeof *x->all_rows);
    x->no_past = imp_sys_calloc(lim->max_seq, sizeof *x->no_past);
    imp_status s = IMP_OK;
    if (x->all_rows == NULL || x->no_past == NULL)
        s = imp_fail(err, IMP_NOMEM, "out of memory while compiling for %s", base->name);
    for (uint32_t i = 0; s == IMP_OK && i < lim->max_tok; i++) x->all_rows[i] = i;
    imp_mutex_lock(d->lock);
    if (s == IMP_OK) s = compile_pieces(d, x, g, err);
    imp_mutex_unlock(d->lock);
    if (s != IMP_OK) {
        split_exec_free(&x->base);
        return s;
    }
    char text[256];
    split_ran_on(&x->base, text, sizeof text);
    if (imp_graph_n_kv_layer(g) > 0) imp_log(IMP_LOG_INFO, "%s: %s", base->name, text);
    *out = &x->base;
    return IMP_OK;
}

/* ---- run ---------------------------------------------------------------------------------------------------- */

static imp_status split_run(imp_exec *base, const imp_batch *b, const float **out, imp_error *err)
{
    const split_exec *x = (const split_exec *)base;
    const float *rows = NULL;
    *out = NULL;
    if (b->n_tok > x->lim.max_tok || b->n_seq > x->lim.max_seq)
        return imp_fail(err, IMP_INVALID,
                        "the batch has %u tokens of %u sequences, at most %u of %u may come", b->n_tok,
                        b->n_seq, x->lim.max_tok, x->lim.max_seq);
    for (uint32_t i = 0; i < b->n_seq; i++)
        x->no_past[i] = (imp_batch_seq){.first_tok = b->seq[i].first_tok, .n_tok = b->seq[i].n_tok};
    for (uint32_t i = 0; i < x->n_piece; i++) {
        imp_batch part = *b;
        part.input = rows;
        if (x->piece[i].kv_block_bytes == 0) part.seq = x->no_past;
        if (i + 1 < x->n_piece) {
            part.n_out = b->n_tok;
            part.out_row = x->all_rows;
        }
        IMP_TRY(x->piece[i].exec->dev->ops->run(x->piece[i].exec, &part, &rows, err));
    }
    *out = rows;
    return IMP_OK;
}

static void split_kv_copy(imp_exec *base, uint32_t dst, uint32_t src)
{
    split_exec *x = (split_exec *)base;
    for (uint32_t i = 0; i < x->n_piece; i++) x->piece[i].exec->dev->ops->kv_copy(x->piece[i].exec, dst, src);
}

/* The host layout goes layer by layer: the pieces' blocks follow each other. */
static imp_status split_kv_export(imp_exec *base, uint32_t block, void *host, imp_error *err)
{
    split_exec *x = (split_exec *)base;
    uint8_t *at = host;
    for (uint32_t i = 0; i < x->n_piece; at += x->piece[i++].kv_block_bytes)
        if (x->piece[i].kv_block_bytes > 0)
            IMP_TRY(x->piece[i].exec->dev->ops->kv_export(x->piece[i].exec, block, at, err));
    return IMP_OK;
}

static imp_status split_kv_import(imp_exec *base, uint32_t block, const void *host, imp_error *err)
{
    split_exec *x = (split_exec *)base;
    const uint8_t *at = host;
    for (uint32_t i = 0; i < x->n_piece; at += x->piece[i++].kv_block_bytes)
        if (x->piece[i].kv_block_bytes > 0)
            IMP_TRY(x->piece[i].exec->dev->ops->kv_import(x->piece[i].exec, block, at, err));
    return IMP_OK;
}

static uint64_t split_mem_free(const imp_device *base)
{
    const split_device *d = (const split_device *)base;
    const imp_device *last = d->part[d->n_part - 1].device;
    return last->ops->mem_free(last);
}

/* ---- open and close ------------------------------------------------------------------------------------------- */

static void close_parts(const imp_split_part *part, uint32_t n_part)
{
    for (uint32_t i = 0; i < n_part; i++)
        if (part[i].owned) part[i].device->ops->close(part[i].device);
}

static void split_close(imp_device *base)
{
    split_device *d = (split_device *)base;
    if (d == NULL) return;
    close_parts(d->part, d->n_part);
    imp_mutex_free(d->lock);
    imp_sys_free(d);
}

#define SPLIT_COMMON                                                                                         \
    .kind = "split", .refuses = split_refuses, .plan = split_plan, .compile = split_compile,                 \
    .run = split_run, .kv_copy = split_kv_copy, .exec_free = split_exec_free, .close = split_close,          \
    .kv_export = split_kv_export, .kv_import = split_kv_import, .ran_on = split_ran_on
static const imp_device_ops SPLIT_OPS = {SPLIT_COMMON};
/* The last device has memory of its own. */
static const imp_device_ops SPLIT_OWN_OPS = {SPLIT_COMMON, .mem_free = split_mem_free};

static imp_status check_parts(const imp_split_part *part, uint32_t n_part, imp_error *err)
{
    if (n_part < 2 || n_part > IMP_SPLIT_PARTS)
        return imp_fail(err, IMP_INVALID, "a model is split over 2 to %d devices", IMP_SPLIT_PARTS);
    for (uint32_t i = 0; i < n_part; i++) {
        const imp_device_ops *ops = part[i].device->ops;
        if (ops->state != NULL || ops->kv_export == NULL || ops->kv_import == NULL)
            return imp_fail(err, IMP_INVALID, "%s cannot take layers of a model that is split",
                            part[i].device->name);
        if (i + 1 < n_part && part[i].n_layer == 0 && ops->mem_free == NULL)
            return imp_fail(err, IMP_INVALID,
                            "say how many layers %s takes (%s:N+..): it has no memory of its own to fill",
                            part[i].device->name, part[i].device->name);
    }
    return IMP_OK;
}

imp_status imp_dev_split_open(const imp_split_part *part, uint32_t n_part, imp_device **out, imp_error *err)
{
    *out = NULL;
    imp_status s = check_parts(part, n_part, err);
    split_device *d = s == IMP_OK ? imp_sys_calloc(1, sizeof *d) : NULL;
    if (s == IMP_OK && (d == NULL || imp_mutex_new(&d->lock) != IMP_OK))
        s = imp_fail(err, IMP_NOMEM, "out of memory while opening a split device");
    if (s != IMP_OK) {
        close_parts(part, n_part);
        imp_sys_free(d);
        return s;
    }
    d->n_part = n_part;
    memcpy(d->part, part, n_part * sizeof *part);
    d->base.ops = part[n_part - 1].device->ops->mem_free != NULL ? &SPLIT_OWN_OPS : &SPLIT_OPS;
    for (uint32_t i = 0, n = 0; i < n_part && n < sizeof d->base.name; i++)
        n += (uint32_t)snprintf(d->base.name + n, sizeof d->base.name - n, "%s%s", i > 0 ? "+" : "",
                                part[i].device->name);
    *out = &d->base;
    return IMP_OK;
}

const imp_split_part *imp_dev_split_parts(const imp_device *base, uint32_t *n)
{
    const split_device *d = (const split_device *)base;
    *n = 0;
    if (base->ops != &SPLIT_OPS && base->ops != &SPLIT_OWN_OPS) return NULL;
    *n = d->n_part;
    return d->part;
}
