/* sched/push.c - a KV cache on its way from the unit that prefills to the one that will decode.
 *
 * Idea:    memory between two devices: the host's, or a stage of the sender's where they reach each other. The sender copies each block out as it fills and says so; the receiver
 *          copies it in between steps of its own, while the prefill still goes on. What is left when the first token is
 *          there is what the user waits for.
 * Threads: host[0..n_out-1] is written before n_out says so and never again; the rest as push.h says. */
#include "sched/push.h"

imp_push *imp_push_new(uint32_t n_block, uint64_t block_bytes, imp_exec *from, imp_exec *to)
{
    uint64_t bytes;
    imp_push *p = imp_mul_u64(n_block, block_bytes, &bytes) ? imp_sys_calloc(1, sizeof *p) : NULL;
    if (p == NULL) return NULL;
    atomic_init(&p->n_ref, 1);
    p->n_block = n_block;
    p->block_bytes = block_bytes;
    if (to != NULL && from->dev->ops->kv_stage != NULL) p->host = from->dev->ops->kv_stage(from, to, bytes);
    p->stage_of = p->host != NULL ? from->dev : NULL;
    p->stage_to = to;
    if (p->host == NULL) p->host = imp_sys_malloc(bytes);
    p->block = imp_sys_calloc(n_block, sizeof *p->block);
    if (p->host != NULL && p->block != NULL) return p;
    imp_push_unref(p);
    return NULL;
}

void imp_push_unref(imp_push *p)
{
    if (p == NULL || atomic_fetch_sub(&p->n_ref, 1) != 1) return;
    if (p->stage_of != NULL)
        p->stage_of->ops->kv_stage_free(p->stage_of, p->host);
    else
        imp_sys_free(p->host);
    imp_sys_free(p->block);
    imp_sys_free(p);
}

imp_status imp_push_move(const imp_push *p, imp_exec *x, const uint32_t *block, uint32_t first, uint32_t n,
                         bool out, imp_error *err)
{
    const imp_device_ops *ops = x->dev->ops;
    uint8_t *at = p->host + first * p->block_bytes;
    if (n == 0) return IMP_OK;
    if (p->stage_of != NULL) return ops->kv_staged(x, block, n, at, out, err);
    for (uint32_t i = 0; i < n; i++, at += p->block_bytes)
        IMP_TRY(out ? ops->kv_export(x, block[i], at, err) : ops->kv_import(x, block[i], at, err));
    return IMP_OK;
}

bool imp_push_fits(const imp_push *p, const imp_exec *x, uint64_t block_bytes)
{
    return p->block_bytes == block_bytes && x->dev->ops->kv_import != NULL &&
           (p->stage_of == NULL || p->stage_to == x);
}
