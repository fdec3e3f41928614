/* dev/cpu/pack.c - the weights region: packed from the model or mapped from the cache, once for all executables of a graph.
 *
 * Layout:  packed matrices and decoded vectors in node order, each at a multiple of 64 bytes (weights.c).
 * Threads: packing takes the device's pool; executables of one graph wait for who fills its region. */
#include "dev/cpu/pack.h"

#include <stdatomic.h>

enum { PACK_BYTES = 4 << 20 }; /* packed by one thread at a time */

/* ---- pieces ------------------------------------------------------------------------------------------------- */

/* Rows of a piece: a multiple of the kernel's panel. */
static uint64_t piece_rows(const cpu_weight *w)
{
    uint64_t n = imp_tensor_n_row(&w->part[0]), panel = IMP_MAX(w->mm->n_step, 1u);
    uint64_t rows = PACK_BYTES / (w->part_bytes / n + 1) / panel * panel;
    return w->part[0].dtype == IMP_AFFINE ? n : IMP_MIN(n, IMP_MAX(rows, panel));
}

uint64_t imp_cpu_n_piece(const cpu_exec *x)
{
    uint64_t n = 0;
    for (imp_val v = 1; v <= imp_graph_n(x->graph); v++) {
        const cpu_weight *w = &x->weight[v];
        if (w->part_bytes == 0) continue;
        uint64_t rows = piece_rows(w);
        n += (imp_tensor_n_row(&w->part[0]) + rows - 1) / rows * w->n_part;
    }
    return n;
}

imp_tensor imp_cpu_piece_source(const cpu_piece *p)
{
    imp_tensor t = p->w->part[p->part];
    uint64_t k = imp_tensor_n_col(&t);
    if (p->rows == imp_tensor_n_row(&t)) return t;
    t.data = (const uint8_t *)t.data + p->from * imp_tensor_row_bytes(&t);
    t.n_dim = 2;
    t.dim[0] = p->rows;
    t.dim[1] = k;
    return t;
}

uint64_t imp_cpu_piece_sum(const cpu_piece *p)
{
    imp_tensor t = imp_cpu_piece_source(p);
    uint64_t n = imp_tensor_n_row(&t), bytes = n * imp_tensor_row_bytes(&t);
    uint64_t sum = imp_sum64(t.data, bytes, p->from);
    if (t.dtype != IMP_AFFINE) return sum;
    uint64_t half = (imp_tensor_bytes(&t) - bytes) / 2; /* scales, then biases */
    return imp_sum64(t.biases, half, imp_sum64(t.scales, half, sum));
}

typedef struct piece_run {
    const cpu_exec *x;
    cpu_piece_fn fn;
    void *ctx;
    _Atomic uint64_t next; /* piece that nobody has taken */
} piece_run;

static void some_pieces(void *ctx, uint32_t ith, uint32_t n_thread)
{
    piece_run *j = ctx;
    uint64_t index = 0, mine = atomic_fetch_add(&j->next, 1);
    (void)ith, (void)n_thread;
    for (imp_val v = 1; v <= imp_graph_n(j->x->graph); v++) {
        const cpu_weight *w = &j->x->weight[v];
        if (w->part_bytes == 0) continue;
        uint64_t n = imp_tensor_n_row(&w->part[0]), rows = piece_rows(w);
        for (uint32_t i = 0; i < w->n_part; i++) {
            for (uint64_t from = 0; from < n; from += rows, index++) {
                if (index != mine) continue;
                j->fn(j->ctx, &(cpu_piece){index, w, i, from, IMP_MIN(rows, n - from)});
                mine = atomic_fetch_add(&j->next, 1);
            }
        }
    }
}

void imp_cpu_each_piece(cpu_device *d, const cpu_exec *x, cpu_piece_fn fn, void *ctx)
{
    piece_run job = {.x = x, .fn = fn, .ctx = ctx};
    imp_mutex_lock(d->lock);
    imp_pool_run_open(d->pool, some_pieces, &job);
    imp_mutex_unlock(d->lock);
}

uint64_t imp_cpu_content(const cpu_exec *x, const uint64_t *piece_sum)
{
    uint64_t sum = imp_sum64(piece_sum, imp_cpu_n_piece(x) * sizeof *piece_sum, 0);
    for (imp_val v = 1; v <= imp_graph_n(x->graph); v++) {
        if (x->vector_at[v] == UINT64_MAX) continue;
        const imp_tensor *t = imp_graph_node(x->graph, v)->u.weight.part;
        sum = imp_sum64(t->data, imp_tensor_row_bytes(t), sum);
    }
    return sum;
}

/* ---- packing ------------------------------------------------------------------------------------------------- */

typedef struct fill_job {
    const cpu_exec *x;
    uint64_t *sum; /* [pieces]; NULL: not wanted */
} fill_job;

static void fill_piece(void *ctx, const cpu_piece *p)
{
    fill_job *j = ctx;
    imp_tensor t = imp_cpu_piece_source(p);
    uint8_t *to = j->x->weights + p->w->at + p->part * p->w->part_bytes;
    /* first, so that a file overwritten just now is found to differ from what was packed */
    if (j->sum != NULL) j->sum[p->index] = imp_cpu_piece_sum(p);
    p->w->mm->pack(&t, p->from == 0 ? to : to + p->w->mm->packed_bytes(p->from, imp_tensor_n_col(&t)));
    imp_sys_file_forget(t.data, imp_tensor_row_bytes(&t) *
                                    imp_tensor_n_row(&t)); /* else the model is resident twice */
}

/* sum: [pieces] of the source, or NULL. */
static void fill(cpu_device *d, cpu_exec *x, uint64_t *sum)
{
    imp_cpu_each_piece(d, x, fill_piece, &(fill_job){x, sum});
    for (imp_val v = 1; v <= imp_graph_n(x->graph); v++) {
        const cpu_weight *w = &x->weight[v];
        for (uint32_t i = 0; w->part_bytes != 0 && i < w->n_part;
             i++) /* what reading ahead has brought back */
            imp_sys_file_forget(w->part[i].data, imp_tensor_bytes(&w->part[i]));
        if (x->vector_at[v] == UINT64_MAX) continue;
        float *to = (float *)(void *)(x->weights + x->vector_at[v]);
        imp_tensor_row_f32(imp_graph_node(x->graph, v)->u.weight.part, 0, to);
    }
}

/* ---- one pack for all executables of a graph ------------------------------------------------------------- */

/* The same graph gives the same kernels and places, whichever CPU device (or simulated one over it) compiles it; a graph
 * stays where it is while an executable of it lives. */
typedef struct cpu_pack {
    const imp_graph *graph;
    uint64_t bytes;
    uint8_t *data;      /* the region: owned pages, or in file; NULL: there was no memory for it */
    imp_sys_file file;  /* from the cache, or empty */
    cpu_keep *keep;     /* the region on its way to the cache, or NULL */
    uint32_t n_ref;     /* global lock */
    imp_mutex *filling; /* held by who fills it, until it is filled */
    struct cpu_pack *next;
} cpu_pack;

static cpu_pack *packs; /* global lock */

static cpu_pack *find_pack(const imp_graph *g)
{
    cpu_pack *p = packs;
    while (p != NULL && p->graph != g) p = p->next;
    return p;
}

bool imp_cpu_pack_exists(const imp_graph *g)
{
    imp_global_lock();
    bool there = find_pack(g) != NULL;
    imp_global_unlock();
    return there;
}

static void free_pack(cpu_pack *p)
{
    if (p == NULL) return;
    imp_cpu_keep_join(p->keep);
    if (p->file.data != NULL)
        imp_sys_file_close(&p->file);
    else
        imp_sys_pages_free(p->data, p->bytes);
    imp_mutex_free(p->filling);
    imp_sys_free(p);
}

static void release(cpu_pack *p)
{
    imp_global_lock();
    bool last = --p->n_ref == 0;
    for (cpu_pack **at = &packs; last && *at != NULL; at = &(*at)->next)
        if (*at == p) {
            *at = p->next;
            break;
        }
    imp_global_unlock();
    if (last) free_pack(p);
}

/* p's region, from the cache when it is there and good, else packed now. */
static void make_region(cpu_device *d, cpu_exec *x, cpu_pack *p)
{
    cpu_kept k;
    bool keeps = imp_cpu_kept_name(x, &k);
    if (keeps) p->data = (uint8_t *)(uintptr_t)imp_cpu_kept_map(d, x, &k, &p->file); /* never written to */
    if (p->data != NULL) return;
    p->data = imp_sys_pages(p->bytes);
    if (p->data == NULL) return;
    x->weights = p->data;
    uint64_t *sum = keeps ? imp_sys_calloc(imp_cpu_n_piece(x) + 1, sizeof *sum) : NULL;
    fill(d, x, sum);
    if (sum != NULL) p->keep = imp_cpu_keep_start(x, &k, p->data, imp_cpu_content(x, sum));
    imp_sys_free(sum);
}

/* The graph's pack, with one reference for the caller; made here unless it is there. */
static cpu_pack *take_pack(cpu_device *d, cpu_exec *x)
{
    imp_global_lock();
    cpu_pack *p = find_pack(x->graph);
    if (p != NULL) p->n_ref++;
    imp_global_unlock();
    if (p != NULL) return p;
    cpu_pack *mine = imp_sys_calloc(1, sizeof *mine);
    if (mine == NULL) return NULL;
    *mine = (cpu_pack){.graph = x->graph, .bytes = x->weights_bytes, .n_ref = 1};
    if (imp_mutex_new(&mine->filling) != IMP_OK) {
        imp_sys_free(mine);
        return NULL;
    }
    imp_mutex_lock(mine->filling);
    imp_global_lock();
    p = find_pack(x->graph); /* somebody may have been faster */
    if (p != NULL)
        p->n_ref++;
    else
        mine->next = packs, packs = mine;
    imp_global_unlock();
    if (p == NULL && mine->bytes > 0) make_region(d, x, mine);
    imp_mutex_unlock(mine->filling);
    if (p == NULL) return mine;
    free_pack(mine);
    return p;
}

imp_status imp_cpu_pack_weights(cpu_device *d, cpu_exec *x)
{
    cpu_pack *p = take_pack(d, x);
    if (p == NULL) return IMP_NOMEM;
    imp_mutex_lock(p->filling);
    imp_mutex_unlock(p->filling);
    if (p->bytes > 0 && p->data == NULL) {
        release(p);
        return IMP_NOMEM;
    }
    x->pack = p;
    x->weights = p->data;
    for (imp_val v = 1; v <= imp_graph_n(x->graph); v++)
        if (x->vector_at[v] != UINT64_MAX)
            x->vector[v] = (const float *)(const void *)(x->weights + x->vector_at[v]);
    return IMP_OK;
}

void imp_cpu_pack_release(cpu_exec *x)
{
    if (x->pack != NULL) release(x->pack);
    x->pack = NULL;
}
