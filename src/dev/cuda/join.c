/* dev/cuda/join.c - GPUs that compute one divided graph together: each other's memory, and keeping step.
 *
 * Place:   cuda.c offers join; run.c calls the rest around and inside a step.
 * Idea:    every member has a board that all others write to (reduce.cu). The sums of a step wait for each other on the GPUs;
 *          the hosts meet only before a step's first launch and, outside captured steps, behind each sum's.
 * Threads: a member's own; join before any. */
#include "dev/cuda/cuda.h"
#include "dev/group.h"

static cuda_exec *exec_of(imp_exec *x)
{
    return (cuda_exec *)x;
}

imp_status imp_cuda_reach(cuda_device *d, cuda_device *other, imp_error *err)
{
    const cu_driver *cu = d->cu;
    int can = 0;
    cu_result r = cu->peer_can(&can, d->id, other->id);
    if (r == CU_OK && can == 0)
        return imp_fail(
            err, IMP_UNSUPPORTED,
            "%s cannot reach the memory of %s, which dividing layers needs (NVLink, or PCIe with peer "
            "access); %s+%s gives each whole layers",
            d->base.name, other->base.name, d->base.name, other->base.name);
    if (r == CU_OK) r = cu->ctx_set(d->ctx);
    if (r == CU_OK) r = cu->peer_enable(other->ctx, 0);
    return r == CU_OK || r == CU_PEER_ENABLED_ALREADY
               ? IMP_OK
               : imp_cuda_fail(d, r, "reaching another GPU's memory", err);
}

imp_status imp_cuda_join(imp_exec *const *member, uint32_t n, uint32_t rank, imp_group *g, imp_error *err)
{
    cuda_exec *x = exec_of(member[rank]);
    cuda_device *d = (cuda_device *)x->base.dev;
    if (n != x->n_member)
        return imp_fail(err, IMP_INTERNAL, "a graph of %u members for %u devices", x->n_member, n);
    imp_mutex_lock(d->lock);
    imp_status s = IMP_OK;
    for (uint32_t i = 0; i < n && s == IMP_OK; i++) {
        cuda_exec *o = exec_of(member[i]);
        if (i != rank) s = imp_cuda_reach(d, (cuda_device *)o->base.dev, err);
        x->board[i] = o->scratch + o->board_at;
    }
    imp_mutex_unlock(d->lock);
    x->group = g;
    x->rank = rank;
    *x->stop = 0;
    imp_group_watch(g, rank, x->stop);
    return s;
}

static imp_status released(const cuda_exec *x, imp_error *err)
{
    imp_status s = imp_group_state(x->group, err);
    return s != IMP_OK ? s : imp_fail(err, IMP_CANCELLED, "the step was given up");
}

imp_status imp_cuda_member_begin(cuda_device *d, cuda_exec *x, imp_error *err)
{
    uint32_t epoch = imp_group_epoch(x->group);
    if (epoch != x->epoch) { /* the members stopped at different sums: count anew */
        cu_result r = d->cu->set8(x->scratch + x->board_at, 0, x->board_bytes, d->stream);
        if (r == CU_OK) r = d->cu->set8(x->scratch + x->calls_at, 0, x->calls_bytes, d->stream);
        if (r == CU_OK) r = d->cu->stream_sync(d->stream);
        if (r != CU_OK) return imp_cuda_fail(d, r, "starting again", err);
        x->epoch = epoch;
    }
    return imp_group_meet(x->group) ? IMP_OK : released(x, err);
}

bool imp_cuda_member_sent(cuda_exec *x)
{
    return imp_group_meet(x->group);
}

imp_status imp_cuda_member_end(cuda_device *d, cuda_exec *x, imp_error *err)
{
    if (imp_group_gave_up(x->group)) return released(x, err);
    return *(volatile uint32_t *)x->stop == 0
               ? IMP_OK
               : imp_fail(err, IMP_DEVICE, "%s waited 20 s for another GPU of this model", d->base.name);
}
