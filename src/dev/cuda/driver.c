/* dev/cuda/driver.c - the CUDA driver's functions, by dlopen; see driver.h. */
#include "dev/cuda/driver.h"

#include <dlfcn.h>
#include <stdatomic.h>

static const char *load(cu_driver *d)
{
    void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (lib == NULL) return "there is no NVIDIA driver on this machine (libcuda.so.1 was not found)";
#define IMP_X(name, symbol, args)                                                                            \
    {                                                                                                        \
        void *p = dlsym(lib, #symbol);                                                                       \
        if (p == NULL) return "the NVIDIA driver is too old: it has no " #symbol;                            \
        memcpy(&d->name, &p, sizeof p);                                                                      \
    }
    IMP_CUDA_API(IMP_X)
#undef IMP_X
    if (d->init(0) != CU_OK)
        return "the NVIDIA driver does not start (no GPU, or one that is in a bad state)";
    return NULL;
}

const cu_driver *imp_cuda_driver(const char **why)
{
    static cu_driver driver;
    static const char *reason;
    static atomic_int state; /* 0 new, 1 being loaded, 2 done */
    int expected = 0;
    if (atomic_compare_exchange_strong(&state, &expected, 1)) {
        reason = load(&driver);
        atomic_store(&state, 2);
    }
    while (atomic_load(&state) != 2) continue;
    *why = reason;
    return reason == NULL ? &driver : NULL;
}
