/* sched/kv_model.c - what the bytes of a model's cache depend on: weights, graph, program, device.
 *
 * Idea:    all of the weights' bytes are summed, 64 MiB at a time so that others get their turn; the sum is remembered
 *          beside the files' identity and times, so that the next start reads nothing. The program's own file is summed
 *          too: another build may compute other last bits, and then a restored cache would no longer give the very bytes
 *          that a computed one does. */
#include "sched/kv_model.h"

#include <stdio.h>

#include "plan/store.h"

enum { LAYOUT = 1, PIECE = 4 << 20, TURN = 64 << 20, MAX_FILES = 64 };
static const int64_t SETTLED_NS = 2000000000; /* a further change of a file shows in its times after that */
static const uint64_t MEMO_CHECK = 0x4b564d454d4f3031;

static void add(uint64_t sum[2], const void *p, size_t n)
{
    for (unsigned i = 0; i < 2; i++) sum[i] = imp_sum64(p, n, sum[i] + i);
}

static void add_attr(uint64_t sum[2], const imp_node *n)
{
    switch (n->op) {
    case IMP_OP_EMBED:
        add(sum, &n->u.embed.by, sizeof n->u.embed.by);
        add(sum, &n->u.embed.offset, sizeof n->u.embed.offset);
        break;
    case IMP_OP_RMS_NORM:
    case IMP_OP_LAYER_NORM:
    case IMP_OP_L2_NORM:
        add(sum, &n->u.norm.eps, sizeof n->u.norm.eps);
        add(sum, &n->u.norm.group, sizeof n->u.norm.group);
        add(sum, &n->u.norm.w_offset, sizeof n->u.norm.w_offset);
        break;
    case IMP_OP_SCALE:
    case IMP_OP_SOFTCAP: add(sum, &n->u.scale.c, sizeof n->u.scale.c); break;
    case IMP_OP_ACT:
    case IMP_OP_GLU: add(sum, &n->u.act.act, sizeof n->u.act.act); break;
    case IMP_OP_SLICE: add(sum, &n->u.slice.begin, sizeof n->u.slice.begin); break;
    case IMP_OP_ROPE: {
        const imp_rope_attr *a = &n->u.rope;
        uint32_t shape[3] = {a->head_dim, a->n_rot, a->interleaved};
        add(sum, shape, sizeof shape);
        add(sum, &a->mscale, sizeof a->mscale);
        add(sum, a->inv_freq, a->n_rot / 2 * sizeof *a->inv_freq);
        break;
    }
    case IMP_OP_ATTN: {
        const imp_attn_attr *a = &n->u.attn;
        uint32_t shape[6] = {a->n_head, a->n_kv_head, a->head_dim, a->window, (uint32_t)a->kv_layer, a->mask};
        float real[2] = {a->scale, a->softcap};
        add(sum, shape, sizeof shape);
        add(sum, real, sizeof real);
        break;
    }
    case IMP_OP_MOE: {
        uint32_t shape[4] = {n->u.moe.n_expert, n->u.moe.n_used, n->u.moe.act, n->u.moe.norm_topk};
        add(sum, shape, sizeof shape);
        break;
    }
    case IMP_OP_WEIGHT: {
        const imp_tensor *t = n->u.weight.part;
        uint64_t shape[6] = {n->u.weight.n_part, t->dtype, t->n_dim, t->bits, t->group, t->scale_dtype};
        add(sum, shape, sizeof shape);
        add(sum, t->dim, sizeof t->dim);
        break;
    }
    default: break;
    }
}

static void sum_graph(const imp_graph *g, uint64_t sum[2])
{
    for (imp_val v = 1; v <= imp_graph_n(g); v++) {
        const imp_node *n = imp_graph_node(g, v);
        uint64_t head[4] = {n->op, n->n_in, n->rows, n->width};
        add(sum, head, sizeof head);
        add(sum, n->in, n->n_in * sizeof n->in[0]);
        add_attr(sum, n);
    }
    imp_val out = imp_graph_output(g);
    add(sum, &out, sizeof out);
}

static void sum_program(const char *device, uint64_t sum[2])
{
    char path[1024], print[128] = "";
    imp_sys_file f;
    imp_error err;
    add(sum, IMPETUS_VERSION, sizeof IMPETUS_VERSION);
    if (imp_sys_program_path(path, sizeof path) && imp_sys_file_open(path, true, &f, &err) == IMP_OK) {
        add(sum, f.data, f.n);
        imp_sys_file_close(&f);
    }
    imp_store_fingerprint(device, print);
    add(sum, print, strlen(print));
}

/* ---- the weights ----------------------------------------------------------------------------------------- */

/* Its bytes in up to three places: the elements, and what they are scaled by. */
static uint32_t places(const imp_tensor *t, const uint8_t *p[3], uint64_t n[3])
{
    p[0] = t->data;
    n[0] = imp_tensor_n_row(t) * imp_tensor_row_bytes(t);
    if (t->dtype != IMP_AFFINE) return 1;
    p[1] = t->scales;
    p[2] = t->biases;
    n[1] = n[2] = (imp_tensor_bytes(t) - n[0]) / 2;
    return 3;
}

/* The name under which the sums are remembered: by the files' identity and times. "": not in files, or just changed. */
static void name_memo(imp_kv_finder *f)
{
    imp_sys_file_id id[MAX_FILES];
    uint32_t n_id = 0;
    const uint8_t *p[3];
    uint64_t n[3], sum[2] = {LAYOUT, MEMO_CHECK};
    f->memo[0] = '\0';
    for (imp_val v = 1; v <= imp_graph_n(f->graph); v++) {
        const imp_node *w = imp_graph_node(f->graph, v);
        for (uint32_t i = 0; w->op == IMP_OP_WEIGHT && i < w->u.weight.n_part; i++)
            for (uint32_t k = 0, n_place = places(&w->u.weight.part[i], p, n); k < n_place; k++) {
                imp_sys_file_id one;
                if (!imp_sys_file_id_of(p[k], n[k], &one)) return;
                uint32_t at = 0;
                while (at < n_id && memcmp(&id[at], &one, sizeof one) != 0) at++;
                if (at == MAX_FILES || imp_sys_clock_ns() - one.changed_ns < SETTLED_NS) return;
                if (at == n_id) id[n_id++] = one;
            }
    }
    add(sum, id, n_id * sizeof id[0]);
    add(sum, f->model.graph,
        sizeof f->model.graph); /* the same files, read as another graph, are summed in another order */
    (void)snprintf(f->memo, sizeof f->memo, "%016llx%016llx.sum", (unsigned long long)sum[0],
                   (unsigned long long)sum[1]);
}

static bool recall(imp_kv_finder *f, const imp_vault *v)
{
    uint64_t kept[3], got;
    imp_error err;
    if (f->memo[0] == '\0' || imp_vault_peek(v, f->memo, kept, sizeof kept, &got, &err) != IMP_OK ||
        got != sizeof kept || kept[2] != imp_sum64(kept, 16, MEMO_CHECK))
        return false;
    memcpy(f->model.content, kept, sizeof f->model.content);
    return true;
}

static void remember(const imp_kv_finder *f, const imp_vault *v)
{
    uint64_t kept[3] = {f->model.content[0], f->model.content[1]};
    imp_error err;
    kept[2] = imp_sum64(kept, 16, MEMO_CHECK);
    imp_vault_part part = {kept, sizeof kept};
    if (f->memo[0] != '\0' && imp_vault_write(v, f->memo, &part, 1, false, &err) != IMP_OK)
        imp_log(IMP_LOG_WARN, "%s", err.text);
}

/* All of a part when it is small, else up to *budget bytes of it. true: it is done. */
static bool sum_part(imp_kv_finder *f, const imp_tensor *t, uint64_t *budget)
{
    const uint8_t *p[3];
    uint64_t n[3], at = f->at;
    uint32_t n_place = places(t, p, n), k = 0;
    for (; k < n_place && at >= n[k]; k++) at -= n[k];
    while (k<n_place && * budget> 0) {
        uint64_t piece = IMP_MIN(n[k] - at, (uint64_t)PIECE);
        add(f->model.content, p[k] + at, piece);
        imp_sys_file_forget(p[k] + at, piece);
        f->at += piece;
        *budget -= IMP_MIN(*budget, piece);
        at += piece;
        if (at == n[k]) at = 0, k++;
    }
    return k == n_place;
}

static void begin(imp_kv_finder *f)
{
    imp_kv_model *m = &f->model;
    m->block_tok = IMP_KV_BLOCK;
    m->layout = LAYOUT;
    m->n_kv_layer = imp_graph_n_kv_layer(f->graph);
    m->block_bytes = imp_dev_kv_block_bytes(f->graph, (imp_dtype)m->kv_dtype);
    sum_graph(f->graph, m->graph);
    sum_program(f->device, m->program);
    name_memo(f);
    f->v = 1;
    f->begun = true;
}

bool imp_kv_finder_step(imp_kv_finder *f, const imp_vault *v)
{
    if (!f->begun) {
        begin(f);
        if (recall(f, v)) return true;
    }
    uint64_t budget = TURN;
    for (; f->v <= imp_graph_n(f->graph); f->v++, f->part = 0) {
        const imp_node *w = imp_graph_node(f->graph, f->v);
        for (; w->op == IMP_OP_WEIGHT && f->part < w->u.weight.n_part; f->part++, f->at = 0)
            if (!sum_part(f, &w->u.weight.part[f->part], &budget)) return false;
    }
    remember(f, v);
    return true;
}
