/* tests/fake_cuda.h - an NVIDIA driver for tests: memory and copies are real, kernels do nothing (logits stay zeros), and the
 * Nth call may fail. It takes the place of dev/cuda/driver.c, kernels.c and lt.c in the program that includes it. */
#ifndef TESTS_FAKE_CUDA_H
#define TESTS_FAKE_CUDA_H

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/cuda/args.h"
#include "dev/cuda/driver.h"

enum { FAKE_LAUNCH_FAILED = 719, FAKE_ILLEGAL_ADDRESS = 700 };

static struct {
    atomic_long n_call, fail_at; /* fail_at 0: none does */
    atomic_int fail_with;        /* CU_OUT_OF_MEMORY: that call alone; others: every call from then on */
    atomic_int sticky;
    atomic_long n_alloc; /* allocations, modules, streams, events and graphs that were not given back */
    atomic_long memory;  /* bytes a device allocation may have; 0: any */
    atomic_bool capturing;
} g_fake;

static inline void fake_reset(void)
{
    atomic_store(&g_fake.n_call, 0);
    atomic_store(&g_fake.fail_at, 0);
    atomic_store(&g_fake.sticky, 0);
    atomic_store(&g_fake.memory, 0);
}

static cu_result fake_call(void)
{
    int sticky = atomic_load(&g_fake.sticky), with = atomic_load(&g_fake.fail_with);
    if (sticky != 0) return sticky;
    if (atomic_fetch_add(&g_fake.n_call, 1) + 1 != atomic_load(&g_fake.fail_at)) return CU_OK;
    if (with != CU_OUT_OF_MEMORY) atomic_store(&g_fake.sticky, with);
    return with;
}
#define FAKE_TRY                                                                                             \
    do {                                                                                                     \
        cu_result r_ = fake_call();                                                                          \
        if (r_ != CU_OK) return r_;                                                                          \
    } while (0)

static cu_result fake_new(void **p, size_t n)
{
    FAKE_TRY;
    *p = calloc(1, n == 0 ? 1 : n);
    if (*p == NULL) return CU_OUT_OF_MEMORY;
    atomic_fetch_add(&g_fake.n_alloc, 1);
    return CU_OK;
}
static cu_result fake_free(void *p) /* also on a lost device: what a process gives back is gone */
{
    if (p == NULL) abort();
    free(p);
    atomic_fetch_sub(&g_fake.n_alloc, 1);
    return atomic_load(&g_fake.sticky);
}

static cu_result fake_init(unsigned flags)
{
    (void)flags;
    return CU_OK;
}
static cu_result fake_version(int *v)
{
    *v = 13000;
    return CU_OK;
}
static cu_result fake_count(int *n)
{
    FAKE_TRY;
    *n = 1;
    return CU_OK;
}
static cu_result fake_get(cu_devid *d, int i)
{
    FAKE_TRY;
    *d = i;
    return CU_OK;
}
static cu_result fake_name(char *t, int n, cu_devid d)
{
    (void)d;
    FAKE_TRY;
    snprintf(t, (size_t)n, "fake GPU");
    return CU_OK;
}
static cu_result fake_attr(int *v, int what, cu_devid d)
{
    (void)d;
    FAKE_TRY;
    *v = what == CU_ATTR_MAJOR ? 9 : what == CU_ATTR_SMS ? 4 : what == CU_ATTR_SMEM ? 232448 : 0;
    return CU_OK;
}
static cu_result fake_retain(cu_ctx *c, cu_devid d)
{
    (void)d;
    FAKE_TRY;
    *c = (cu_ctx)&g_fake;
    return CU_OK;
}
static cu_result fake_release_ctx(cu_devid d)
{
    (void)d;
    return CU_OK;
}
static cu_result fake_set(cu_ctx c)
{
    (void)c;
    return CU_OK;
}
static cu_result fake_info(size_t *f, size_t *t)
{
    *f = 1u << 30, *t = 1u << 30;
    return CU_OK;
}
static cu_result fake_alloc(cu_mem *p, size_t n)
{
    long most = atomic_load(&g_fake.memory);
    void *m = NULL;
    if (most > 0 && n > (size_t)most) return CU_OUT_OF_MEMORY;
    cu_result r = fake_new(&m, n);
    *p = (cu_mem)(uintptr_t)m;
    return r;
}
static cu_result fake_release(cu_mem p)
{
    return fake_free((void *)(uintptr_t)p);
}
static cu_result fake_host_alloc(void **p, size_t n, unsigned f)
{
    (void)f;
    return fake_new(p, n);
}
static cu_result fake_to_device(cu_mem to, const void *from, size_t n, cu_stream s)
{
    (void)s;
    FAKE_TRY;
    memcpy((void *)(uintptr_t)to, from, n);
    return CU_OK;
}
static cu_result fake_to_host(void *to, cu_mem from, size_t n, cu_stream s)
{
    (void)s;
    FAKE_TRY;
    memcpy(to, (void *)(uintptr_t)from, n);
    return CU_OK;
}
static cu_result fake_copy(cu_mem to, cu_mem from, size_t n, cu_stream s)
{
    (void)s;
    FAKE_TRY;
    memcpy((void *)(uintptr_t)to, (void *)(uintptr_t)from, n);
    return CU_OK;
}
static cu_result fake_set8(cu_mem to, unsigned char v, size_t n, cu_stream s)
{
    (void)s;
    FAKE_TRY;
    if (v != 0 || n < 1 << 20) memset((void *)(uintptr_t)to, v, n);
    return CU_OK;
} /* large ones are new, and zero */
static cu_result fake_stream_new(cu_stream *s, unsigned f)
{
    (void)f;
    return fake_new((void **)s, 1);
}
static cu_result fake_stream_free(cu_stream s)
{
    return fake_free(s);
}
static cu_result fake_sync(cu_stream s)
{
    (void)s;
    FAKE_TRY;
    return CU_OK;
}
static cu_result fake_begin(cu_stream s, int mode)
{
    (void)s;
    (void)mode;
    FAKE_TRY;
    return CU_OK;
}
static cu_result fake_end(cu_stream s, cu_graph *g)
{
    (void)s;
    return fake_new((void **)g, 1);
}
static cu_result fake_graph_make(cu_gexec *e, cu_graph g, unsigned long long f)
{
    (void)g;
    (void)f;
    return fake_new((void **)e, 1);
}
static cu_result fake_graph_free(cu_graph g)
{
    return fake_free(g);
}
static cu_result fake_graph_launch(cu_gexec e, cu_stream s)
{
    (void)e;
    (void)s;
    FAKE_TRY;
    return CU_OK;
}
static cu_result fake_gexec_free(cu_gexec e)
{
    return fake_free(e);
}
static cu_result fake_module_load(cu_module *m, const void *p)
{
    (void)p;
    return fake_new((void **)m, 1);
}
static cu_result fake_module_free(cu_module m)
{
    return fake_free(m);
}
static cu_result fake_func(cu_func *f, cu_module m, const char *name)
{
    static char top;
    (void)m;
    FAKE_TRY;
    *f = strcmp(name, "top") == 0 ? (cu_func)(void *)&top : (cu_func)(void *)&g_fake;
    return CU_OK;
}
static cu_result fake_func_attr(cu_func f, int what, int v)
{
    (void)f;
    (void)what;
    (void)v;
    FAKE_TRY;
    return CU_OK;
}
static cu_result fake_launch(const cu_launch_config *c, cu_func f, void **params, void **extra)
{
    (void)extra;
    FAKE_TRY;
    if ((void *)f == (void *)&g_fake) return CU_OK;
    const cu_top *a = params[0]; /* the best columns of rows of zeros: the first ones */
    for (uint32_t z = 0; z < c->gy; z++) {
        cu_top_row *t = (cu_top_row *)(uintptr_t)a->out + (a->masked != 0 ? a->masked - 1 : a->row0 + z);
        t->n = a->n < CU_TOP ? a->n : CU_TOP;
        t->sum = a->n;
        for (uint32_t i = 0; i < t->n; i++) t->best[i] = (cu_top_pick){(int32_t)i, 0};
    }
    return CU_OK;
}
static cu_result fake_event_new(cu_event *e, unsigned f)
{
    (void)f;
    return fake_new((void **)e, 1);
}
static cu_result fake_event_free(cu_event e)
{
    return fake_free(e);
}
static cu_result fake_record(cu_event e, cu_stream s)
{
    (void)e;
    (void)s;
    FAKE_TRY;
    return CU_OK;
}
static cu_result fake_ms(float *ms, cu_event a, cu_event b)
{
    (void)a;
    (void)b;
    *ms = 0.1f;
    return CU_OK;
}
static cu_result fake_text(cu_result r, const char **t)
{
    *t =
        r == FAKE_ILLEGAL_ADDRESS ? "an illegal memory access was encountered" : "unspecified launch failure";
    return CU_OK;
}

static cu_result fake_peer_can(int *can, cu_devid a, cu_devid b)
{
    (void)a, (void)b;
    FAKE_TRY;
    *can = 0;
    return CU_OK;
}
static cu_result fake_peer_enable(cu_ctx c, unsigned flags)
{
    (void)c, (void)flags;
    FAKE_TRY;
    return CU_OK;
}

const cu_driver *imp_cuda_driver(const char **why)
{
    static const cu_driver fake = {.init = fake_init,
                                   .driver_version = fake_version,
                                   .device_count = fake_count,
                                   .device_get = fake_get,
                                   .device_name = fake_name,
                                   .device_attr = fake_attr,
                                   .ctx_retain = fake_retain,
                                   .ctx_release = fake_release_ctx,
                                   .ctx_set = fake_set,
                                   .mem_info = fake_info,
                                   .alloc = fake_alloc,
                                   .release = fake_release,
                                   .host_alloc = fake_host_alloc,
                                   .host_free = fake_free,
                                   .to_device = fake_to_device,
                                   .to_host = fake_to_host,
                                   .copy = fake_copy,
                                   .set8 = fake_set8,
                                   .stream_new = fake_stream_new,
                                   .stream_free = fake_stream_free,
                                   .stream_sync = fake_sync,
                                   .capture_begin = fake_begin,
                                   .capture_end = fake_end,
                                   .graph_make = fake_graph_make,
                                   .graph_free = fake_graph_free,
                                   .graph_launch = fake_graph_launch,
                                   .gexec_free = fake_gexec_free,
                                   .module_load = fake_module_load,
                                   .module_free = fake_module_free,
                                   .module_func = fake_func,
                                   .func_attr = fake_func_attr,
                                   .launch = fake_launch,
                                   .event_new = fake_event_new,
                                   .event_free = fake_event_free,
                                   .event_record = fake_record,
                                   .event_ms = fake_ms,
                                   .peer_can = fake_peer_can,
                                   .peer_enable = fake_peer_enable,
                                   .error_text = fake_text};
    *why = NULL;
    return &fake;
}
const void *imp_cuda_kernels(int i)
{
    (void)i;
    return "kernels";
}
cu_lt *imp_cuda_lt_open(void)
{
    return NULL;
}
void imp_cuda_lt_close(cu_lt *lt)
{
    (void)lt;
}
bool imp_cuda_lt_matmul(cu_lt *lt, cu_stream s, cu_mem workspace, bool f16, bool y16, cu_mem x, uint64_t ldx,
                        cu_mem w, uint64_t ldw, cu_mem res, uint64_t ldr, cu_mem y, uint64_t ldy, uint64_t m,
                        uint64_t n, uint64_t k)
{
    (void)lt, (void)s, (void)workspace, (void)f16, (void)y16, (void)x, (void)ldx, (void)w, (void)ldw;
    (void)res, (void)ldr, (void)y, (void)ldy, (void)m, (void)n, (void)k;
    return false;
}

#endif
