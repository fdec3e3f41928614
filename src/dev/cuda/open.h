/* dev/cuda/open.h - the way in to the CUDA device. */
#ifndef IMP_DEV_CUDA_OPEN_H
#define IMP_DEV_CUDA_OPEN_H

#include "dev/dev.h"

/* The first NVIDIA GPU. NOT_FOUND: no driver or no GPU; UNSUPPORTED: too old, or built without kernels; DEVICE. */
IMP_MUST_USE imp_status imp_dev_cuda_open(imp_device **out, imp_error *err);

#endif
