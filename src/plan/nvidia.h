/* plan/nvidia.h - what NVIDIA's management library (NVML) says of the GPUs here, without a context on any of them.
 *
 * Place:   layer 5; host.c lists what it finds, meter.c reads energy. Needs no CUDA kernels in the program, so a GPU that
 *          this build cannot drive is described all the same.
 * Threads: imp_nvml_open and close from one thread; reading from any. */
#ifndef IMP_NVIDIA_H
#define IMP_NVIDIA_H

#include "base/base.h"

enum { IMP_NVIDIA_GPUS = 16 };

typedef struct imp_nvidia_gpu {
    char name[96], pci[32];           /* "NVIDIA H200", "00000000:18:00.0" */
    int major, minor;                 /* compute capability; 0.0: not told */
    uint64_t mem_total, mem_free;     /* bytes */
    uint32_t pcie_gen, pcie_width;    /* of the link as it runs now; 0: not told */
    uint32_t pcie_gen_max, width_max; /* of card and slot */
    double watt_limit;                /* 0: not told */
    bool mig;                         /* cut into instances */
} imp_nvidia_gpu;

typedef struct imp_nvml imp_nvml;

/* library NULL: the system's. NOT_FOUND: there is none; DEVICE: it does not start. *n GPUs in gpu[cap]; driver[80] gets the
 * driver's version. */
IMP_MUST_USE imp_status imp_nvml_open(const char *library, imp_nvml **out, imp_error *err);
void imp_nvml_close(imp_nvml *v); /* NULL is allowed */
uint32_t imp_nvml_gpus(imp_nvml *v, imp_nvidia_gpu *gpu, uint32_t cap, char driver[80]);
/* Joules since the driver was loaded; false: this GPU does not count them. */
bool imp_nvml_joules(imp_nvml *v, uint32_t gpu, double *out);

#endif
