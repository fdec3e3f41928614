/* dev/cuda/stage.c - KV blocks from one GPU to another without the host's memory.
 *
 * Place:   ops.kv_stage, kv_staged; sched/push.c keeps the stage while a cache is on its way.
 * Idea:    the sender gathers its blocks into a stage in its own memory; the receiver fetches them over the link into its
 *          pages, one kernel for up to CU_KV_MOVE blocks with all their layers. The stage keeps the cache's own layout.
 * Threads: as ops.kv_export; a stage is freed by any. */
#include "dev/cuda/cuda.h"

static cuda_device *device_of(const imp_exec *x)
{
    return (cuda_device *)x->dev;
}

void *imp_cuda_kv_stage(imp_exec *base, imp_exec *to, uint64_t bytes)
{
    const cuda_exec *x = (const cuda_exec *)base, *y = (const cuda_exec *)to;
    cuda_device *d = device_of(base);
    imp_error ignored;
    cu_mem p = 0;
    size_t room = 0, total = 0;
    if (to->dev->ops != base->dev->ops || to->dev == base->dev || x->lim.kv_dtype != y->lim.kv_dtype)
        return NULL;
    imp_mutex_lock(device_of(to)->lock);
    imp_status s = imp_cuda_usable(device_of(to), &ignored);
    if (s == IMP_OK) s = imp_cuda_reach(device_of(to), d, &ignored);
    imp_mutex_unlock(device_of(to)->lock);
    imp_mutex_lock(d->lock);
    if (s == IMP_OK) s = imp_cuda_usable(d, &ignored);
    /* not the last memory there is: others still load models */
    if (s == IMP_OK && d->cu->mem_info(&room, &total) == CU_OK && bytes <= room / 2 &&
        d->cu->alloc(&p, bytes) != CU_OK)
        p = 0;
    imp_mutex_unlock(d->lock);
    return (void *)(uintptr_t)p;
}

void imp_cuda_kv_stage_free(imp_device *base, void *stage)
{
    cuda_device *d = (cuda_device *)base;
    imp_mutex_lock(d->lock);
    if (d->cu->ctx_set(d->ctx) == CU_OK) (void)d->cu->release((cu_mem)(uintptr_t)stage);
    imp_mutex_unlock(d->lock);
}

/* The table that kv_move reads, once. */
static cu_result put_pieces(cuda_device *d, cuda_exec *x)
{
    uint32_t n = 2 * imp_graph_n_kv_layer(x->graph);
    cu_kv_piece *p = imp_sys_malloc(x->piece_bytes);
    if (p == NULL) return CU_OUT_OF_MEMORY;
    uint64_t at = 0;
    for (uint32_t i = 0; i < n; at += p[i++].bytes) {
        p[i].at = imp_cuda_kv_at(x, i / 2, i % 2, 0, &p[i].bytes) - x->kv;
        p[i].in_block = at;
    }
    cu_result r = d->cu->to_device(x->scratch + x->piece_at, p, x->piece_bytes, d->stream);
    if (r == CU_OK) r = d->cu->stream_sync(d->stream);
    imp_sys_free(p);
    x->has_pieces = r == CU_OK;
    return r;
}

static cu_result move(cuda_device *d, const cuda_exec *x, const uint32_t *block, uint32_t n, cu_mem stage,
                      uint64_t block_bytes, bool out)
{
    cu_kv_move a = {.kv = x->kv,
                    .piece = x->scratch + x->piece_at,
                    .block_bytes = block_bytes,
                    .n_piece = 2 * imp_graph_n_kv_layer(x->graph),
                    .out = out};
    cu_result r = CU_OK;
    d->after_copy = true; /* of another GPU's, or of a step's end */
    for (uint32_t b = 0; b < n && r == CU_OK; b += a.n) {
        a.n = IMP_MIN(n - b, (uint32_t)CU_KV_MOVE);
        a.stage = stage + b * block_bytes;
        memcpy(a.block, block + b, a.n * sizeof *block);
        r = imp_cuda_launch(d, d->fn.kv_move, IMP_MIN(a.n * a.n_piece, 4 * d->n_sm), 1, 1, 512, 0, &a);
    }
    cu_result done = d->cu->stream_sync(d->stream);
    return r == CU_OK ? done : r;
}

imp_status imp_cuda_kv_staged(imp_exec *base, const uint32_t *block, uint32_t n, void *stage, bool out,
                              imp_error *err)
{
    cuda_exec *x = (cuda_exec *)base;
    cuda_device *d = device_of(base);
    for (uint32_t i = 0; i < n; i++)
        if (block[i] >= x->lim.n_kv_block)
            return imp_fail(err, IMP_INVALID, "there is no KV block %u", block[i]);
    uint64_t bytes = imp_dev_kv_block_bytes(x->graph, x->lim.kv_dtype);
    imp_mutex_lock(d->lock);
    imp_status s = imp_cuda_usable(d, err);
    cu_result r = s == IMP_OK && !x->has_pieces ? put_pieces(d, x) : CU_OK;
    if (s == IMP_OK && r == CU_OK) r = move(d, x, block, n, (cu_mem)(uintptr_t)stage, bytes, out);
    if (s == IMP_OK && r != CU_OK) s = imp_cuda_fail(d, r, "moving KV blocks", err);
    imp_mutex_unlock(d->lock);
    return s;
}
