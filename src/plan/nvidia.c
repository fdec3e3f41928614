/* plan/nvidia.c - NVML by dlopen; see nvidia.h.
 *
 * Idea:    a table of the few functions that are used. Only what starts and counts is required; a question that an older
 *          library cannot answer stays unanswered.
 * Source:  the binary interface of NVML (version 11 and later). */
#include "plan/nvidia.h"

#include <dlfcn.h>
#include <stdio.h>

typedef int nv_result; /* 0: success */
typedef struct nv_dev_s *nv_dev;
typedef struct nv_memory {
    unsigned long long total, free, used;
} nv_memory;
typedef struct nv_pci {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} nv_pci;

/* X(name here, symbol, arguments, required) */
#define NVML_API(X)                                                                                          \
    X(init, nvmlInit_v2, (void), 1)                                                                          \
    X(shutdown, nvmlShutdown, (void), 1)                                                                     \
    X(count, nvmlDeviceGetCount_v2, (unsigned *), 1)                                                         \
    X(get, nvmlDeviceGetHandleByIndex_v2, (unsigned, nv_dev *), 1)                                           \
    X(name, nvmlDeviceGetName, (nv_dev, char *, unsigned), 1)                                                \
    X(driver, nvmlSystemGetDriverVersion, (char *, unsigned), 0)                                             \
    X(memory, nvmlDeviceGetMemoryInfo, (nv_dev, nv_memory *), 0)                                             \
    X(capability, nvmlDeviceGetCudaComputeCapability, (nv_dev, int *, int *), 0)                             \
    X(pci, nvmlDeviceGetPciInfo_v3, (nv_dev, nv_pci *), 0)                                                   \
    X(gen, nvmlDeviceGetCurrPcieLinkGeneration, (nv_dev, unsigned *), 0)                                     \
    X(width, nvmlDeviceGetCurrPcieLinkWidth, (nv_dev, unsigned *), 0)                                        \
    X(gen_max, nvmlDeviceGetMaxPcieLinkGeneration, (nv_dev, unsigned *), 0)                                  \
    X(width_max, nvmlDeviceGetMaxPcieLinkWidth, (nv_dev, unsigned *), 0)                                     \
    X(limit, nvmlDeviceGetPowerManagementLimit, (nv_dev, unsigned *), 0)                                     \
    X(mig, nvmlDeviceGetMigMode, (nv_dev, unsigned *, unsigned *), 0)                                        \
    X(energy, nvmlDeviceGetTotalEnergyConsumption, (nv_dev, unsigned long long *), 0)

struct imp_nvml {
    void *lib;
    bool started;
#define IMP_X(name, symbol, args, required) nv_result(*name) args;
    NVML_API(IMP_X)
#undef IMP_X
};

void imp_nvml_close(imp_nvml *v)
{
    if (v == NULL) return;
    if (v->started) (void)v->shutdown();
    if (v->lib != NULL) (void)dlclose(v->lib);
    imp_sys_free(v);
}

static const char *load(imp_nvml *v)
{
#define IMP_X(name, symbol, args, required)                                                                  \
    {                                                                                                        \
        void *p = dlsym(v->lib, #symbol);                                                                    \
        if (p == NULL && required) return "it has no " #symbol;                                              \
        memcpy(&v->name, &p, sizeof p);                                                                      \
    }
    NVML_API(IMP_X)
#undef IMP_X
    return NULL;
}

imp_status imp_nvml_open(const char *library, imp_nvml **out, imp_error *err)
{
    *out = NULL;
    imp_nvml *v = imp_sys_calloc(1, sizeof *v);
    if (v == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    imp_status s = IMP_OK;
    v->lib = dlopen(library != NULL ? library : "libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (v->lib == NULL) {
        s = imp_fail(err, IMP_NOT_FOUND, "NVIDIA's management library (libnvidia-ml.so.1) is not here");
    } else {
        const char *why = load(v);
        if (why != NULL) s = imp_fail(err, IMP_DEVICE, "NVIDIA's management library cannot be used: %s", why);
    }
    if (s == IMP_OK) {
        nv_result r = v->init();
        if (r != 0)
            s = imp_fail(err, IMP_DEVICE,
                         "NVIDIA's management library does not start (error %d): is the driver loaded?", r);
        v->started = r == 0;
    }
    if (s != IMP_OK)
        imp_nvml_close(v);
    else
        *out = v;
    return s;
}

static void describe(const imp_nvml *v, nv_dev d, imp_nvidia_gpu *g)
{
    nv_memory mem;
    nv_pci pci;
    unsigned n, pending;
    *g = (imp_nvidia_gpu){0};
    if (v->name(d, g->name, sizeof g->name) != 0) (void)snprintf(g->name, sizeof g->name, "NVIDIA GPU");
    g->name[sizeof g->name - 1] = '\0';
    if (v->memory != NULL && v->memory(d, &mem) == 0) g->mem_total = mem.total, g->mem_free = mem.free;
    if (v->capability != NULL && v->capability(d, &g->major, &g->minor) != 0) g->major = g->minor = 0;
    if (v->pci != NULL && v->pci(d, &pci) == 0)
        (void)snprintf(g->pci, sizeof g->pci, "%04x:%02x:%02x.0", pci.domain & 0xffff, pci.bus & 0xff,
                       pci.device & 0xff);
    if (v->gen != NULL && v->gen(d, &n) == 0) g->pcie_gen = n;
    if (v->width != NULL && v->width(d, &n) == 0) g->pcie_width = n;
    if (v->gen_max != NULL && v->gen_max(d, &n) == 0) g->pcie_gen_max = n;
    if (v->width_max != NULL && v->width_max(d, &n) == 0) g->width_max = n;
    if (v->limit != NULL && v->limit(d, &n) == 0) g->watt_limit = n * 1e-3;
    if (v->mig != NULL && v->mig(d, &n, &pending) == 0) g->mig = n != 0;
}

uint32_t imp_nvml_gpus(imp_nvml *v, imp_nvidia_gpu *gpu, uint32_t cap, char driver[80])
{
    unsigned n = 0;
    uint32_t found = 0;
    driver[0] = '\0';
    if (v->driver != NULL && v->driver(driver, 80) != 0) driver[0] = '\0';
    driver[79] = '\0';
    if (v->count(&n) != 0) return 0;
    for (unsigned i = 0; i < n && found < cap; i++) {
        nv_dev d;
        if (v->get(i, &d) == 0) describe(v, d, &gpu[found++]);
    }
    return found;
}

bool imp_nvml_joules(imp_nvml *v, uint32_t gpu, double *out)
{
    nv_dev d;
    unsigned long long mj;
    *out = 0;
    if (v->energy == NULL || v->get(gpu, &d) != 0 || v->energy(d, &mj) != 0) return false;
    *out = (double)mj * 1e-3;
    return true;
}
