/* dev/cuda/driver.h - the CUDA driver and cuBLASLt, found when the program runs.
 *
 * Idea:    dlopen of libcuda.so.1 and a table of the functions that are used; nothing is linked, so the program starts on
 *          machines without a GPU. The types are those of the driver's binary interface.
 * Threads: imp_cuda_driver from any thread; the table is read-only then. */
#ifndef IMP_CUDA_DRIVER_H
#define IMP_CUDA_DRIVER_H

#include "base/base.h"

typedef int cu_result; /* 0: success */
typedef int cu_devid;
typedef uint64_t cu_mem;
typedef struct cu_ctx_s *cu_ctx;
typedef struct cu_mod_s *cu_module;
typedef struct cu_func_s *cu_func;
typedef struct cu_stream_s *cu_stream;
typedef struct cu_event_s *cu_event;
typedef struct cu_graph_s *cu_graph;
typedef struct cu_gexec_s *cu_gexec;

enum { CU_OK = 0, CU_OUT_OF_MEMORY = 2, CU_PEER_ENABLED_ALREADY = 704 };
enum {
    CU_ATTR_SMS = 16,
    CU_ATTR_MAJOR = 75,
    CU_ATTR_SMEM = 97,
    CU_ATTR_MINOR = 76,
    CU_FUNC_DYNAMIC_SMEM = 8,
    CU_FUNC_CARVEOUT = 9, /* share of an SM's memory that is shared memory, in percent */
    CU_LAUNCH_PROGRAMMATIC = 6
};

typedef struct cu_launch_attr {
    int id;
    char pad[4];
    union {
        char pad[64];
        int on;
    } value;
} cu_launch_attr;
typedef struct cu_launch_config {
    unsigned gx, gy, gz, bx, by, bz, smem;
    cu_stream stream;
    cu_launch_attr *attr;
    unsigned n_attr;
} cu_launch_config;

/* X(name here, symbol, arguments) */
#define IMP_CUDA_API(X)                                                                                      \
    X(init, cuInit, (unsigned))                                                                              \
    X(driver_version, cuDriverGetVersion, (int *))                                                           \
    X(device_count, cuDeviceGetCount, (int *))                                                               \
    X(device_get, cuDeviceGet, (cu_devid *, int))                                                            \
    X(device_name, cuDeviceGetName, (char *, int, cu_devid))                                                 \
    X(device_attr, cuDeviceGetAttribute, (int *, int, cu_devid))                                             \
    X(ctx_retain, cuDevicePrimaryCtxRetain, (cu_ctx *, cu_devid))                                            \
    X(ctx_release, cuDevicePrimaryCtxRelease_v2, (cu_devid))                                                 \
    X(ctx_set, cuCtxSetCurrent, (cu_ctx))                                                                    \
    X(peer_can, cuDeviceCanAccessPeer, (int *, cu_devid, cu_devid))                                          \
    X(peer_enable, cuCtxEnablePeerAccess, (cu_ctx, unsigned))                                                \
    X(mem_info, cuMemGetInfo_v2, (size_t *, size_t *))                                                       \
    X(alloc, cuMemAlloc_v2, (cu_mem *, size_t))                                                              \
    X(release, cuMemFree_v2, (cu_mem))                                                                       \
    X(host_alloc, cuMemHostAlloc, (void **, size_t, unsigned))                                               \
    X(host_free, cuMemFreeHost, (void *))                                                                    \
    X(to_device, cuMemcpyHtoDAsync_v2, (cu_mem, const void *, size_t, cu_stream))                            \
    X(to_host, cuMemcpyDtoHAsync_v2, (void *, cu_mem, size_t, cu_stream))                                    \
    X(copy, cuMemcpyDtoDAsync_v2, (cu_mem, cu_mem, size_t, cu_stream))                                       \
    X(set8, cuMemsetD8Async, (cu_mem, unsigned char, size_t, cu_stream))                                     \
    X(stream_new, cuStreamCreate, (cu_stream *, unsigned))                                                   \
    X(stream_free, cuStreamDestroy_v2, (cu_stream))                                                          \
    X(stream_sync, cuStreamSynchronize, (cu_stream))                                                         \
    X(capture_begin, cuStreamBeginCapture_v2, (cu_stream, int))                                              \
    X(capture_end, cuStreamEndCapture, (cu_stream, cu_graph *))                                              \
    X(graph_make, cuGraphInstantiateWithFlags, (cu_gexec *, cu_graph, unsigned long long))                   \
    X(graph_free, cuGraphDestroy, (cu_graph))                                                                \
    X(graph_launch, cuGraphLaunch, (cu_gexec, cu_stream))                                                    \
    X(gexec_free, cuGraphExecDestroy, (cu_gexec))                                                            \
    X(module_load, cuModuleLoadData, (cu_module *, const void *))                                            \
    X(module_free, cuModuleUnload, (cu_module))                                                              \
    X(module_func, cuModuleGetFunction, (cu_func *, cu_module, const char *))                                \
    X(func_attr, cuFuncSetAttribute, (cu_func, int, int))                                                    \
    X(launch, cuLaunchKernelEx, (const cu_launch_config *, cu_func, void **, void **))                       \
    X(event_new, cuEventCreate, (cu_event *, unsigned))                                                      \
    X(event_free, cuEventDestroy_v2, (cu_event))                                                             \
    X(event_record, cuEventRecord, (cu_event, cu_stream))                                                    \
    X(event_ms, cuEventElapsedTime, (float *, cu_event, cu_event))                                           \
    X(error_text, cuGetErrorString, (cu_result, const char **))

typedef struct cu_driver {
#define IMP_X(name, symbol, args) cu_result(*name) args;
    IMP_CUDA_API(IMP_X)
#undef IMP_X
} cu_driver;

/* NULL: no driver or one that is too old; *why says which. The driver stays loaded. */
const cu_driver *imp_cuda_driver(const char **why);

/* ---- cuBLASLt, optional ----------------------------------------------------------------------------- */

typedef struct cu_lt cu_lt;
/* NULL: the library is not there. The context must be current. */
cu_lt *imp_cuda_lt_open(void);
void imp_cuda_lt_close(cu_lt *lt);
enum { IMP_CUDA_LT_WORKSPACE = 32 << 20 };
/* y[m][n] = x[m][k] w[n][k]^T (+ res). x, w bf16 or f16; y f32, or bf16 (then without res). Rows of ldx, ldw, ldy, ldr
 * elements. false: cuBLASLt does not do this shape. */
bool imp_cuda_lt_matmul(cu_lt *lt, cu_stream s, cu_mem workspace, bool f16, bool y16, cu_mem x, uint64_t ldx,
                        cu_mem w, uint64_t ldw, cu_mem res, uint64_t ldr, cu_mem y, uint64_t ldy, uint64_t m,
                        uint64_t n, uint64_t k);

/* ---- kernels built into the program ------------------------------------------------------------------- */

/* Fatbin number i of IMP_CUDA_N_MODULE; NULL: built without nvcc. */
enum { IMP_CUDA_N_MODULE = 11 };
const void *imp_cuda_kernels(int i);

#endif
