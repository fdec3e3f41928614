/* dev/cpu/run_lora.c - adapters at work: what they add to the rows that use them.
 *
 * Idea:    a linear layer's share for an adapter is B (A x). The first product, of all layers that read the same x, is one
 *          op (down) that comes before them; each layer adds its part of the second one to the columns it has just made.
 *          Rows are taken in runs that use the same adapters, so that the products have many rows where they can.
 *          A step without adapters skips the phases that hold nothing but down.
 * Always:  the kernels' promise carries over: a row's bits depend on its x and its adapters alone.
 * Threads: all threads at once, on disjoint shares. */
#include "dev/check.h"
#include "dev/cpu/cpu.h"

enum { TILE_ROWS = 16, TILE_COLS = 512 }; /* of B h, which the kernel overwrites, before it is added */

uint64_t imp_cpu_lora_bytes(uint32_t lora_rank)
{
    return (TILE_ROWS * TILE_COLS + (uint64_t)lora_rank) * sizeof(float);
}

void imp_cpu_lora_runs(cpu_exec *x, cpu_step *s)
{
    for (uint32_t i = 0; i < s->b->n_seq && !s->lora; i++) s->lora = s->b->seq[i].n_use > 0;
    for (int kind = 0; kind < 3 && s->lora; kind++) {
        uint32_t n = 0;
        for (uint32_t r = 0; r < s->n_row[kind]; r++) {
            const imp_batch_seq *q = &s->b->seq[imp_dev_seq_of_row(s->b, (imp_rows)kind, r)];
            cpu_lora_run *last = n > 0 ? &x->lora_run[kind][n - 1] : NULL;
            if (q->n_use == 0) continue;
            if (last != NULL && last->r1 == r &&
                imp_adapter_same_uses(last->use, last->n_use, q->use, q->n_use))
                last->r1++;
            else
                x->lora_run[kind][n++] = (cpu_lora_run){r, r + 1, q->use, q->n_use};
        }
        s->n_lora_run[kind] = n;
    }
}

/* The run's rows that are in the part. false: none. */
static bool rows_of(const cpu_lora_run *run, cpu_part part, uint32_t *r0, uint32_t *r1)
{
    *r0 = IMP_MAX(run->r0, part.r0);
    *r1 = IMP_MIN(run->r1, part.r1);
    return *r0 < *r1;
}

/* Columns from..to-1 (of all that the uses have together) of A x for one layer, scaled. */
static void down(const cpu_step *s, const cpu_op *op, const cpu_lora_run *run, imp_val layer, uint32_t slot,
                 uint32_t r0, uint32_t r1, uint32_t from, uint32_t to, uint32_t ith)
{
    uint32_t at = 0;
    for (uint32_t u = 0; u < run->n_use; at += run->use[u++].adapter->rank) {
        const imp_adapter_part *p = imp_adapter_at(run->use[u].adapter, s->x->graph, layer);
        if (p == NULL) continue;
        uint32_t end = at + (uint32_t)p->a.dim[0];
        uint32_t c0 = IMP_MAX(from, at), c1 = IMP_MIN(to, end);
        if (c0 >= c1) continue;
        float *y = imp_cpu_row(op->out, r0) + slot + at;
        imp_matmul_args a = {.w = &p->a,
                             .wp = p->wp_a,
                             .x = imp_cpu_row(op->in[0], r0),
                             .x_stride = op->in[0].stride,
                             .y = y,
                             .y_stride = op->out.stride / sizeof(float),
                             .m = r1 - r0,
                             .n0 = c0 - at,
                             .n1 = c1 - at,
                             .scratch = imp_cpu_thread_scratch(s->x, ith)};
        p->mm_a->run(&a);
        float scale = p->scale * run->use[u].scale;
        for (uint32_t r = 0; r < a.m; r++) {
            float *h = y + r * a.y_stride + a.n0;
            s->vec->scale(h, h, scale, a.n1 - a.n0);
        }
    }
}

IMP_CPU_RUN(lora_down)
{
    uint32_t rank = s->x->lim.lora_rank;
    for (uint32_t i = 0; i < op->u.down.n; i++) {
        uint32_t slot = i * rank, c0 = IMP_MAX(part.c0, slot), c1 = IMP_MIN(part.c1, slot + rank), r0, r1;
        for (uint32_t k = 0; k < s->n_lora_run[op->rows] && c0 < c1; k++) {
            const cpu_lora_run *run = &s->x->lora_run[op->rows][k];
            if (rows_of(run, part, &r0, &r1))
                down(s, op, run, op->u.down.layer[i], slot, r0, r1, c0 - slot, c1 - slot, ith);
        }
    }
}

/* y[r0..r1-1][c0..c1-1] += h B^T */
static void add_up(const cpu_step *s, const cpu_op *op, const imp_adapter_part *p, const float *h,
                   uint64_t h_stride, uint32_t r0, cpu_part part, uint32_t ith)
{
    uint8_t *scratch = imp_cpu_thread_scratch(s->x, ith);
    float *tmp = (float *)(void *)(scratch + s->x->lora_at);
    for (uint32_t c = part.c0; c < part.c1; c += TILE_COLS) {
        uint32_t n = IMP_MIN(part.c1 - c, (uint32_t)TILE_COLS);
        for (uint32_t r = 0; r < part.r1 - part.r0; r += TILE_ROWS) {
            imp_matmul_args a = {.w = &p->b,
                                 .wp = p->wp_b,
                                 .x = h + r * h_stride,
                                 .x_stride = h_stride * sizeof(float),
                                 .y = tmp - c,
                                 .y_stride = TILE_COLS,
                                 .m = IMP_MIN(part.r1 - part.r0 - r, (uint32_t)TILE_ROWS),
                                 .n0 = c,
                                 .n1 = c + n,
                                 .scratch = scratch};
            p->mm_b->run(&a);
            for (uint32_t i = 0; i < a.m; i++) {
                float *y = imp_cpu_row(op->out, r0 + r + i) + c;
                s->vec->add(y, y, tmp + i * TILE_COLS, n);
            }
        }
    }
}

void imp_cpu_lora_up(const cpu_step *s, const cpu_op *op, cpu_part part, uint32_t ith)
{
    for (uint32_t k = 0; k < s->n_lora_run[op->rows]; k++) {
        const cpu_lora_run *run = &s->x->lora_run[op->rows][k];
        cpu_part rows = part;
        uint32_t at = 0;
        if (!rows_of(run, part, &rows.r0, &rows.r1)) continue;
        for (uint32_t u = 0; u < run->n_use; at += run->use[u++].adapter->rank) {
            const imp_adapter_part *p = imp_adapter_at(run->use[u].adapter, s->x->graph, op->u.mm.layer);
            const float *h = imp_cpu_row(op->in[1], rows.r0) + op->u.mm.slot + at;
            if (p != NULL) add_up(s, op, p, h, op->in[1].stride / sizeof(float), rows.r0, rows, ith);
        }
    }
}

void imp_cpu_lora_embed(const cpu_step *s, const cpu_op *op, cpu_part part, uint32_t ith)
{
    float *h = (float *)(void *)((uint8_t *)imp_cpu_thread_scratch(s->x, ith) + s->x->lora_at) +
               TILE_ROWS * TILE_COLS;
    for (uint32_t k = 0; k < s->n_lora_run[op->rows]; k++) {
        const cpu_lora_run *run = &s->x->lora_run[op->rows][k];
        cpu_part one = part;
        uint32_t r0, r1;
        bool any = rows_of(run, part, &r0, &r1);
        for (uint32_t u = 0; u < run->n_use && any; u++) {
            const imp_adapter_part *p = imp_adapter_at(run->use[u].adapter, s->x->graph, op->u.embed.layer);
            for (uint32_t r = r0; p != NULL && r < r1; r++) {
                size_t rank = imp_tensor_n_col(&p->b);
                imp_tensor_row_f32(&p->a, (uint64_t)imp_dev_embed_row(op->node, s->b, r), h);
                s->vec->scale(h, h, p->scale * run->use[u].scale, rank);
                one.r0 = r, one.r1 = r + 1;
                add_up(s, op, p, h, rank, r, one, ith);
            }
        }
    }
}
