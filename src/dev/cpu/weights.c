/* dev/cpu/weights.c - which kernel multiplies each weight, and the weights region.
 *
 * Idea:    a matrix whose kernel has no pack() stays in the model's file; the others are packed into one region, once for
 *          all executables of a graph in this process.
 *          Vectors (norms, biases, sinks) are read as f32: in place when they are, else decoded into the region.
 * Layout:  region: packed matrices and decoded vectors in node order, each at a multiple of 64 bytes. */
#include "dev/cpu/cpu.h"

#include <stdatomic.h>

static imp_status too_large(imp_error *err)
{
    return imp_fail(err, IMP_TOO_LARGE, "the sizes of the model's weights overflow");
}

/* n bytes more in the region, at *at. */
static bool reserve(cpu_exec *x, uint64_t n, uint64_t *at)
{
    *at = x->weights_bytes;
    return imp_align_u64(n, 64, &n) && imp_add_u64(x->weights_bytes, n, &x->weights_bytes);
}

/* Products of which attention's queries, keys and values are made, by the node of the product: an embedding is used as it
 * is, not drawn from, and rounding x to int8 hurts it most there. (All-MiniLM-L6-v2 in q8_0, 200 sentences, smallest cosine
 * with the original: int8 everywhere 0.9988, everywhere but here 0.9993, nowhere 0.9995.) */
static void find_sharp(const imp_graph *g, bool *sharp)
{
    bool vectors = imp_graph_node(g, imp_graph_output(g))->rows == IMP_ROWS_SEQ;
    for (imp_val v = imp_graph_n(g); v >= 1 && vectors; v--) {
        const imp_node *n = imp_graph_node(g, v);
        bool passes = n->op == IMP_OP_SLICE || n->op == IMP_OP_ROPE || n->op == IMP_OP_RMS_NORM;
        if (n->op == IMP_OP_ATTN) {
            for (uint32_t i = 0; i < 3; i++) sharp[n->in[i]] = true;
        } else if (sharp[v] && passes) {
            sharp[n->in[0]] = true;
        }
    }
}

/* sharp: x is not to be rounded to int8. */
static imp_status choose_matrix(cpu_exec *x, imp_val v, bool sharp, imp_error *err)
{
    cpu_weight *w = &x->weight[v];
    if (w->mm != NULL) return IMP_OK;
    const imp_node *n = imp_graph_node(x->graph, v);
    w->part = n->u.weight.part;
    w->n_part = n->u.weight.n_part;
    w->mm = (sharp ? imp_matmul_select_f32 : imp_matmul_select)(w->part->dtype, n->width);
    if (w->mm == NULL) {
        return imp_fail(err, IMP_UNSUPPORTED, "no CPU kernel multiplies weights of the type of %s", n->name);
    }
    if (w->mm->packed_bytes == NULL) return IMP_OK;
    w->part_bytes = w->mm->packed_bytes(w->part->dim[0], w->part->dim[1]);
    uint64_t bytes;
    if (!imp_align_u64(w->part_bytes, 64, &w->part_bytes) || !imp_mul_u64(w->part_bytes, w->n_part, &bytes) ||
        !reserve(x, bytes, &w->at)) {
        return too_large(err);
    }
    return IMP_OK;
}

static bool is_plain_f32(const imp_tensor *t)
{
    return t->dtype == IMP_F32 && (uintptr_t)t->data % sizeof(float) == 0;
}

static imp_status choose_vector(cpu_exec *x, imp_val v, imp_error *err)
{
    const imp_node *n = imp_graph_node(x->graph, v);
    if (x->vector_at[v] != UINT64_MAX || x->vector[v] != NULL) return IMP_OK;
    if (is_plain_f32(n->u.weight.part)) {
        x->vector[v] = n->u.weight.part->data;
        return IMP_OK;
    }
    return reserve(x, n->width * sizeof(float), &x->vector_at[v]) ? IMP_OK : too_large(err);
}

/* Bytes of the model's own that are read while running, each tensor once. */
static uint64_t mapped_bytes(const cpu_exec *x, const bool *in_place)
{
    uint64_t sum = 0;
    for (imp_val v = 1; v <= imp_graph_n(x->graph); v++) {
        if (!in_place[v]) continue;
        const imp_node *n = imp_graph_node(x->graph, v);
        bool seen = false;
        for (imp_val o = 1; o < v && !seen; o++) {
            seen = in_place[o] && imp_graph_node(x->graph, o)->u.weight.part->data == n->u.weight.part->data;
        }
        for (uint32_t i = 0; i < n->u.weight.n_part && !seen; i++)
            sum += imp_tensor_bytes(&n->u.weight.part[i]);
    }
    return sum;
}

static bool is_matrix_input(const imp_node *n, uint32_t i)
{
    return (n->op == IMP_OP_LINEAR && i == 1) || n->op == IMP_OP_MOE;
}

imp_status imp_cpu_choose_weights(const cpu_device *d, cpu_exec *x, imp_error *err)
{
    (void)d;
    uint32_t n_node = imp_graph_n(x->graph);
    x->weight = imp_arena_array(x->arena, n_node + 1, sizeof *x->weight);
    x->vector = imp_arena_array(x->arena, n_node + 1, sizeof *x->vector);
    x->vector_at = imp_arena_array(x->arena, n_node + 1, sizeof *x->vector_at);
    bool *in_place = imp_arena_array(x->arena, n_node + 1, sizeof *in_place);
    bool *sharp = imp_arena_array(x->arena, n_node + 1, sizeof *sharp);
    if (x->weight == NULL || x->vector == NULL || x->vector_at == NULL || in_place == NULL || sharp == NULL) {
        return imp_fail(err, IMP_NOMEM, "out of memory while compiling for the CPU");
    }
    for (imp_val v = 0; v <= n_node; v++) x->vector_at[v] = UINT64_MAX;
    find_sharp(x->graph, sharp);
    for (imp_val v = 1; v <= n_node; v++) {
        const imp_node *n = imp_graph_node(x->graph, v);
        for (uint32_t i = 0; i < n->n_in; i++) {
            imp_val w = n->in[i];
            if (imp_graph_node(x->graph, w)->op != IMP_OP_WEIGHT) continue;
            if (is_matrix_input(n, i)) {
                IMP_TRY(choose_matrix(x, w, sharp[v], err));
                if (x->weight[w].part_bytes == 0) in_place[w] = true;
            } else if (n->op == IMP_OP_EMBED) {
                in_place[w] = true;
            } else {
                IMP_TRY(choose_vector(x, w, err));
                if (x->vector[w] != NULL) in_place[w] = true;
            }
        }
    }
    x->mapped_bytes = mapped_bytes(x, in_place);
    return IMP_OK;
}

enum { PACK_BYTES = 4 << 20 }; /* packed by one thread at a time */

typedef struct pack_job {
    cpu_exec *x;
    _Atomic uint64_t next; /* piece that nobody has taken */
} pack_job;

/* Rows of a piece: a multiple of the kernel's panel. */
static uint64_t piece_rows(const cpu_weight *w)
{
    uint64_t n = imp_tensor_n_row(&w->part[0]), panel = IMP_MAX(w->mm->n_step, 1u);
    uint64_t rows = PACK_BYTES / (w->part_bytes / n + 1) / panel * panel;
    return w->part[0].dtype == IMP_AFFINE ? n : IMP_MIN(n, IMP_MAX(rows, panel));
}

static void pack_rows(const cpu_exec *x, const cpu_weight *w, uint32_t part, uint64_t from, uint64_t rows)
{
    imp_tensor t = w->part[part];
    uint64_t n = imp_tensor_n_row(&t), k = imp_tensor_n_col(&t);
    t.data = (const uint8_t *)t.data + from * imp_tensor_row_bytes(&t);
    if (rows < n) {
        t.n_dim = 2;
        t.dim[0] = IMP_MIN(rows, n - from);
        t.dim[1] = k;
    }
    uint8_t *to = x->weights + w->at + part * w->part_bytes;
    w->mm->pack(&t, from == 0 ? to : to + w->mm->packed_bytes(from, k));
    imp_sys_file_forget(t.data, imp_tensor_row_bytes(&t) *
                                    imp_tensor_n_row(&t)); /* else the model is resident twice */
}

static void pack_some(void *ctx, uint32_t ith, uint32_t n_thread)
{
    pack_job *j = ctx;
    uint64_t piece = 0, mine = atomic_fetch_add(&j->next, 1);
    (void)ith, (void)n_thread;
    for (imp_val v = 1; v <= imp_graph_n(j->x->graph); v++) {
        const cpu_weight *w = &j->x->weight[v];
        if (w->part_bytes == 0) continue;
        uint64_t n = imp_tensor_n_row(&w->part[0]), rows = piece_rows(w);
        for (uint32_t i = 0; i < w->n_part; i++) {
            for (uint64_t from = 0; from < n; from += rows, piece++) {
                if (piece != mine) continue;
                pack_rows(j->x, w, i, from, rows);
                mine = atomic_fetch_add(&j->next, 1);
            }
        }
    }
}

static void fill(cpu_device *d, cpu_exec *x)
{
    pack_job job = {.x = x};
    imp_mutex_lock(d->lock);
    imp_pool_run_open(d->pool, pack_some, &job);
    imp_mutex_unlock(d->lock);
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
    uint8_t *data;      /* owned pages */
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
    imp_sys_pages_free(p->data, p->bytes);
    imp_mutex_free(p->filling);
    imp_sys_free(p);
}

static cpu_pack *new_pack(const cpu_exec *x)
{
    cpu_pack *p = imp_sys_calloc(1, sizeof *p);
    if (p == NULL) return NULL;
    *p = (cpu_pack){.graph = x->graph, .bytes = x->weights_bytes, .n_ref = 1};
    if (p->bytes > 0) p->data = imp_sys_pages(p->bytes);
    if ((p->bytes == 0 || p->data != NULL) && imp_mutex_new(&p->filling) == IMP_OK) return p;
    free_pack(p);
    return NULL;
}

imp_status imp_cpu_pack_weights(cpu_device *d, cpu_exec *x)
{
    imp_global_lock();
    cpu_pack *p = find_pack(x->graph);
    if (p != NULL) p->n_ref++;
    imp_global_unlock();
    if (p == NULL) {
        cpu_pack *mine = new_pack(x);
        if (mine == NULL) return IMP_NOMEM;
        imp_mutex_lock(mine->filling);
        imp_global_lock();
        p = find_pack(x->graph); /* somebody may have been faster */
        if (p != NULL)
            p->n_ref++;
        else
            mine->next = packs, packs = mine;
        imp_global_unlock();
        if (p == NULL) {
            x->weights = mine->data;
            fill(d, x);
        }
        imp_mutex_unlock(mine->filling);
        if (p != NULL)
            free_pack(mine);
        else
            p = mine;
    }
    imp_mutex_lock(p->filling);
    imp_mutex_unlock(p->filling);
    x->pack = p;
    x->weights = p->data;
    for (imp_val v = 1; v <= imp_graph_n(x->graph); v++)
        if (x->vector_at[v] != UINT64_MAX)
            x->vector[v] = (const float *)(const void *)(x->weights + x->vector_at[v]);
    return IMP_OK;
}

void imp_cpu_pack_release(cpu_exec *x)
{
    cpu_pack *p = x->pack;
    if (p == NULL) return;
    imp_global_lock();
    bool last = --p->n_ref == 0;
    for (cpu_pack **at = &packs; last && *at != NULL; at = &(*at)->next)
        if (*at == p) {
            *at = p->next;
            break;
        }
    imp_global_unlock();
    if (last) free_pack(p);
    x->pack = NULL;
}
