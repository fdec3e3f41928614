/* dev/cpu/run_moe.c - mixture of experts: choose, sort rows by expert, multiply, add up.
 *
 * Idea:    each (row, chosen expert) is a pair; pairs are sorted by expert, then row, so that an expert multiplies all
 *          its rows at once. A row's experts are added in rising order of their number, whatever else is in the batch.
 * Layout:  order buffer, u32: start[n_expert + 1], row[n_pair], place[n_row][n_used] (where a row's pairs went). */
#include "dev/cpu/cpu.h"

/* in 0: logits; out: cpu_route [row][n_used], experts rising. */
IMP_CPU_RUN(moe_route)
{
    const imp_moe_attr *a = &op->node->u.moe;
    float *p = imp_cpu_thread_scratch(s->x, ith);
    uint8_t *chosen = (uint8_t *)(p + a->n_expert);
    for (uint32_t r = part.r0; r < part.r1; r++) {
        s->vec->softmax(p, imp_cpu_row(op->in[0], r), a->n_expert);
        memset(chosen, 0, a->n_expert);
        for (uint32_t k = 0; k < a->n_used; k++) {
            uint32_t best = UINT32_MAX;
            for (uint32_t e = 0; e < a->n_expert; e++) {
                if (!chosen[e] && (best == UINT32_MAX || p[e] > p[best])) best = e;
            }
            chosen[best] = 1;
        }
        float kept = 0;
        for (uint32_t e = 0; e < a->n_expert; e++) kept += chosen[e] ? p[e] : 0;
        cpu_route *to = (cpu_route *)(void *)(op->out.p + r * op->out.stride);
        for (uint32_t e = 0; e < a->n_expert; e++) {
            if (chosen[e]) *to++ = (cpu_route){e, a->norm_topk ? p[e] / kept : p[e]};
        }
    }
}

/* in 0: routes; out: the order. One share. */
IMP_CPU_RUN(moe_sort)
{
    (void)ith;
    if (part.share != 0) return;
    const imp_moe_attr *a = &op->node->u.moe;
    uint32_t n_row = s->n_row[op->rows];
    uint32_t *start = (uint32_t *)(void *)op->out.p, *row = start + a->n_expert + 1,
             *place = row + n_row * a->n_used;
    const cpu_route *route = (const cpu_route *)(const void *)op->in[0].p;
    memset(start, 0, (a->n_expert + 1) * sizeof *start);
    for (uint32_t i = 0; i < n_row * a->n_used; i++) start[route[i].expert]++;
    uint32_t sum = 0;
    for (uint32_t e = 0; e <= a->n_expert; e++) {
        uint32_t n = start[e];
        start[e] = sum;
        sum += n;
    }
    for (uint32_t i = 0; i < n_row * a->n_used; i++) {
        place[i] = start[route[i].expert]++;
        row[place[i]] = i / a->n_used;
    }
    /* start[e] is now where e ends, which is where e + 1 starts */
    for (uint32_t e = a->n_expert; e > 0; e--) start[e] = start[e - 1];
    start[0] = 0;
}

/* in 0: x as the kernel wants it, in 1: the order; out: x of each pair. */
IMP_CPU_RUN(moe_gather)
{
    (void)s, (void)ith;
    const uint32_t *row = (const uint32_t *)(const void *)op->in[1].p + op->node->u.moe.n_expert + 1;
    for (uint32_t i = part.r0; i < part.r1; i++) {
        memcpy(op->out.p + i * op->out.stride, op->in[0].p + row[i] * op->in[0].stride, op->out.stride);
    }
}

/* in 0: rows by pair, in 1: the order; out: by pair. */
IMP_CPU_RUN(moe_linear)
{
    const cpu_weight *w = op->u.mm.w;
    const uint32_t *start = (const uint32_t *)(const void *)op->in[1].p;
    if (part.c0 == part.c1) return;
    for (uint32_t e = 0; e < w->n_part; e++) {
        uint32_t m = start[e + 1] - start[e];
        if (m == 0) continue;
        imp_matmul_args a = {
            .w = &w->part[e],
            .wp = w->part_bytes != 0 ? s->x->weights + w->at + e * w->part_bytes : NULL,
            .x = op->in[0].p + start[e] * op->in[0].stride,
            .x_stride = op->in[0].stride,
            .y = imp_cpu_row(op->out, start[e]),
            .y_stride = op->out.stride / sizeof(float),
            .m = m,
            .n0 = part.c0,
            .n1 = part.c1,
            .scratch = imp_cpu_thread_scratch(s->x, ith),
        };
        w->mm->run(&a);
    }
}

/* in 0: by pair, in 1: the order, in 2: routes; out: by row. */
IMP_CPU_RUN(moe_combine)
{
    (void)ith;
    const imp_moe_attr *a = &op->node->u.moe;
    uint32_t n = part.c1 - part.c0, n_row = s->n_row[op->rows];
    const uint32_t *place = (const uint32_t *)(const void *)op->in[1].p + a->n_expert + 1 + n_row * a->n_used;
    const cpu_route *route = (const cpu_route *)(const void *)op->in[2].p;
    for (uint32_t r = part.r0; r < part.r1 && n > 0; r++) {
        float *y = imp_cpu_row(op->out, r) + part.c0;
        for (uint32_t k = 0; k < a->n_used; k++) {
            uint32_t i = r * a->n_used + k;
            const float *x = imp_cpu_row(op->in[0], place[i]) + part.c0;
            if (k == 0) {
                s->vec->scale(y, x, route[i].weight, n);
            } else {
                s->vec->axpy(y, route[i].weight, x, n);
            }
        }
    }
}
