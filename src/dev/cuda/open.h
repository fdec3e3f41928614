/* dev/cuda/open.h - the way in to the CUDA device. */
#ifndef IMP_DEV_CUDA_OPEN_H
#define IMP_DEV_CUDA_OPEN_H

#include "dev/dev.h"

/* NVIDIA GPU number n, from 0, as "cudaN". NOT_FOUND: no driver or no such GPU; UNSUPPORTED: too old, or built without kernels;
 * DEVICE. */
IMP_MUST_USE imp_status imp_dev_cuda_open(uint32_t n, imp_device **out, imp_error *err);

#endif
