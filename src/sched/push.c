/* sched/push.c - a KV cache on its way from the unit that prefills to the one that will decode.
 *
 * Idea:    host memory between two devices. The sender copies each block out as it fills and says so; the receiver
 *          copies it in between steps of its own, while the prefill still goes on. What is left when the first token is
 *          there is what the user waits for.
 * Threads: host[0..n_out-1] is written before n_out says so and never again; the rest as push.h says. */
#include "sched/push.h"

imp_push *imp_push_new(uint32_t n_block, uint64_t block_bytes)
{
    uint64_t bytes;
    imp_push *p = imp_mul_u64(n_block, block_bytes, &bytes) ? imp_sys_calloc(1, sizeof *p) : NULL;
    if (p == NULL) return NULL;
    atomic_init(&p->n_ref, 1);
    p->n_block = n_block;
    p->block_bytes = block_bytes;
    p->host = imp_sys_malloc(bytes);
    p->block = imp_sys_calloc(n_block, sizeof *p->block);
    if (p->host != NULL && p->block != NULL) return p;
    imp_push_unref(p);
    return NULL;
}

void imp_push_unref(imp_push *p)
{
    if (p == NULL || atomic_fetch_sub(&p->n_ref, 1) != 1) return;
    imp_sys_free(p->host);
    imp_sys_free(p->block);
    imp_sys_free(p);
}
