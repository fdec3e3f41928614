/* dev/cpu/run_ops.c - the ops of the list at work, but for attention and experts.
 *
 * Always:  a function computes exactly the rows and columns of its part; rows are independent of each other.
 * Threads: all threads at once, on disjoint shares. */
#include "dev/check.h"
#include "dev/cpu/cpu.h"
#include "dev/group.h"

#include <math.h>

#define EACH_ROW(r) for (uint32_t r = part.r0; r < part.r1; r++)
/* Row r of a view from the part's first column on. */
#define AT(view, r) (imp_cpu_row(view, r) + part.c0)

IMP_CPU_RUN(input)
{
    (void)ith;
    EACH_ROW(r)
    memcpy(imp_cpu_row(op->out, r), s->b->input + r * (uint64_t)op->n, op->n * sizeof(float));
}

IMP_CPU_RUN(embed)
{
    const imp_tensor *t = imp_graph_node(s->x->graph, op->node->in[0])->u.weight.part;
    EACH_ROW(r)
    imp_tensor_row_f32(t, (uint64_t)imp_dev_embed_row(op->node, s->b, r), imp_cpu_row(op->out, r));
    if (s->lora) imp_cpu_lora_embed(s, op, part, ith);
}

/* in 0: x, f32 or int8 as the kernel wants it; in 1, where adapters are possible: their A x. */
IMP_CPU_RUN(linear)
{
    const cpu_weight *w = op->u.mm.w;
    if (part.r0 == part.r1 || part.c0 == part.c1) return;
    imp_matmul_args a = {
        .w = w->part,
        .wp = w->part_bytes != 0 ? s->x->weights + w->at : NULL,
        .x = op->in[0].p + part.r0 * op->in[0].stride,
        .x_stride = op->in[0].stride,
        .y = imp_cpu_row(op->out, part.r0),
        .y_stride = op->out.stride / sizeof(float),
        .bias = op->u.mm.bias != 0 ? s->x->vector[op->u.mm.bias] : NULL,
        .m = part.r1 - part.r0,
        .n0 = part.c0,
        .n1 = part.c1,
        .scratch = imp_cpu_thread_scratch(s->x, ith),
    };
    w->mm->run(&a);
    if (s->lora && op->n_in > 1) imp_cpu_lora_up(s, op, part, ith);
}

IMP_CPU_RUN(quant)
{
    (void)ith;
    if (part.c0 == part.c1) return;
    EACH_ROW(r)
    {
        imp_q8_block *to = (imp_q8_block *)(void *)(op->out.p + r * op->out.stride);
        s->vec->quant_q8(to + part.c0 / 32, AT(op->in[0], r), part.c1 - part.c0);
    }
}

IMP_CPU_RUN(rms_norm)
{
    (void)ith;
    const float *w = op->u.norm.w != 0 ? s->x->vector[op->u.norm.w] : NULL;
    uint32_t group = (uint32_t)op->node->u.norm.group;
    EACH_ROW(r)
    {
        for (uint32_t c = part.c0; c < part.c1; c += group) {
            s->vec->rms_norm(imp_cpu_row(op->out, r) + c, imp_cpu_row(op->in[0], r) + c, w,
                             op->node->u.norm.w_offset, op->node->u.norm.eps, group);
        }
    }
}

IMP_CPU_RUN(layer_norm)
{
    (void)ith;
    const float *w = op->u.norm.w != 0 ? s->x->vector[op->u.norm.w] : NULL;
    const float *b = op->u.norm.b != 0 ? s->x->vector[op->u.norm.b] : NULL;
    EACH_ROW(r)
    {
        s->vec->layer_norm(imp_cpu_row(op->out, r), imp_cpu_row(op->in[0], r), w, b, op->node->u.norm.eps,
                           op->n);
    }
}

IMP_CPU_RUN(l2_norm)
{
    (void)ith;
    EACH_ROW(r)
    s->vec->l2_norm(imp_cpu_row(op->out, r), imp_cpu_row(op->in[0], r), op->node->u.norm.eps, op->n);
}

/* ---- elementwise -------------------------------------------------------------------------------- */

#define ELEMENTWISE(name, call)                                                                              \
    IMP_CPU_RUN(name)                                                                                        \
    {                                                                                                        \
        (void)s, (void)ith;                                                                                  \
        const uint32_t n = part.c1 - part.c0;                                                                \
        if (n == 0) return;                                                                                  \
        EACH_ROW(r) call;                                                                                    \
    }
ELEMENTWISE(add, s->vec->add(AT(op->out, r), AT(op->in[0], r), AT(op->in[1], r), n))
ELEMENTWISE(mul, s->vec->mul(AT(op->out, r), AT(op->in[0], r), AT(op->in[1], r), n))
ELEMENTWISE(scale, s->vec->scale(AT(op->out, r), AT(op->in[0], r), op->u.c, n))
ELEMENTWISE(softcap, s->vec->softcap(AT(op->out, r), AT(op->in[0], r), op->u.c, n))
ELEMENTWISE(act, s->vec->act(AT(op->out, r), AT(op->in[0], r), (imp_kact)op->u.act, n))
ELEMENTWISE(glu, s->vec->glu(AT(op->out, r), AT(op->in[0], r), AT(op->in[1], r), (imp_kact)op->u.act, n))
ELEMENTWISE(copy, memcpy(AT(op->out, r), AT(op->in[0], r), n * sizeof(float)))

/* ---- rows --------------------------------------------------------------------------------------- */

IMP_CPU_RUN(gather)
{
    (void)ith;
    EACH_ROW(r)
    memcpy(imp_cpu_row(op->out, r), imp_cpu_row(op->in[0], s->b->out_row[r]), op->n * sizeof(float));
}

/* One share: what takes time is waiting for the other members. */
IMP_CPU_RUN(allreduce)
{
    (void)ith;
    if (part.share != 0) return;
    uint64_t n = (uint64_t)s->n_row[op->rows] * op->n;
    float *y = imp_cpu_row(op->out, 0);
    const float *x = imp_cpu_row(op->in[0], 0);
    if (s->x->group != NULL)
        (void)imp_group_sum(s->x->group, s->x->rank, x, y, n);
    else
        memcpy(y, x, n * sizeof *x);
}

/* in 0, in 1: a, b. One share, the others wait: another device works. */
IMP_CPU_RUN(outside)
{
    (void)ith;
    cpu_exec *x = s->x;
    if (part.share != 0 || x->outside_status != IMP_OK) return;
    const cpu_view *a = &op->in[0], *b = &op->in[1];
    x->outside_status =
        x->outside.fn == NULL
            ? imp_fail(&x->outside_err, IMP_INTERNAL, "nobody computes %s", op->node->name)
            : x->outside.fn(x->outside.ctx, op->node->u.outside.index, s->n_row[op->rows], imp_cpu_row(*a, 0),
                            a->stride / sizeof(float), imp_cpu_row(*b, 0), b->stride / sizeof(float),
                            imp_cpu_row(op->out, 0), op->out.stride / sizeof(float), &x->outside_err);
}

IMP_CPU_RUN(pool)
{
    (void)ith;
    uint32_t n = part.c1 - part.c0;
    if (n == 0) return;
    EACH_ROW(r)
    {
        const imp_batch_seq *q = &s->b->seq[r];
        bool last = op->node->u.pool.kind == IMP_POOL_LAST;
        float *y = AT(op->out, r);
        memcpy(y, AT(op->in[0], q->first_tok + (last ? q->n_tok - 1 : 0)), n * sizeof(float));
        if (op->node->u.pool.kind != IMP_POOL_MEAN) continue;
        for (uint32_t t = 1; t < q->n_tok; t++) s->vec->add(y, y, AT(op->in[0], q->first_tok + t), n);
        s->vec->scale(y, y, 1.0f / (float)q->n_tok, n);
    }
}

/* out: [tok][n_rot]: cosines of a position's angles, then sines, mscale in both. */
IMP_CPU_RUN(rope_table)
{
    (void)ith;
    const imp_rope_attr *a = &op->node->u.rope;
    uint32_t half = a->n_rot / 2;
    EACH_ROW(r)
    {
        float *cs = imp_cpu_row(op->out, r), *sn = cs + half;
        for (uint32_t i = 0; i < half; i++) {
            float angle = (float)s->b->pos[r] * a->inv_freq[i];
            cs[i] = (float)(cos((double)angle) * (double)a->mscale);
            sn[i] = (float)(sin((double)angle) * (double)a->mscale);
        }
    }
}

/* in 0: x, in 1: the table. */
IMP_CPU_RUN(rope)
{
    (void)ith;
    const imp_rope_attr *a = &op->node->u.rope;
    uint32_t n_head = (part.c1 - part.c0) / a->head_dim;
    if (n_head == 0) return;
    EACH_ROW(r)
    {
        const float *cs = imp_cpu_row(op->in[1], r);
        s->vec->rope(AT(op->out, r), AT(op->in[0], r), cs, cs + a->n_rot / 2, n_head, a->head_dim, a->n_rot,
                     a->interleaved);
    }
}
