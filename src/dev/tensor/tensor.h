/* dev/tensor/tensor.h - one model on several equal devices that compute every layer together (tensor parallel).
 *
 * Idea:    each device has some of the attention heads, with their KV cache, and a part of each feed-forward's width
 *          (graph/shard.c); twice a layer their sums are added up (ALLREDUCE). All of them read their weights at the same
 *          time, so that a step takes about an n-th of the time, and each holds an n-th of the model. */
#ifndef IMP_DEV_TENSOR_H
#define IMP_DEV_TENSOR_H

#include "dev/dev.h"

/* Named after its members, "cuda0/cuda1". owned: it takes them, also when it fails; else they must outlive it. Graphs without a KV cache run whole on the first.
 * INVALID: fewer than two or more than IMP_SHARD_MAX, of different kinds, or of a kind that cannot share a graph. */
IMP_MUST_USE imp_status imp_dev_tensor_open(imp_device *const *member, uint32_t n, bool owned,
                                            imp_device **out, imp_error *err);
/* The members, *n of them, while the device is open; NULL: it is no such device. */
imp_device *const *imp_dev_tensor_members(const imp_device *d, uint32_t *n);

#endif
