/* dev/cuda/lt.c - cuBLASLt as the first path of large products, when the library is on the machine.
 *
 * Idea:    our rows are its columns: D (n x m) = W^T x. The algorithm of a shape is asked for once and kept.
 * Source:  the cuBLASLt interface as NVIDIA documents it; constants are its binary interface's. */
#include "dev/cuda/driver.h"

#include <dlfcn.h>

enum {
    R_32F = 0,
    R_16F = 2,
    R_16BF = 14,
    COMPUTE_32F = 68,
    DESC_TRANSA = 3,
    PREF_WORKSPACE = 1,
    N_SHAPE = 512
};

typedef struct lt_algo {
    uint64_t data[8];
} lt_algo;
typedef struct lt_found {
    lt_algo algo;
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
} lt_found;

#define LT_API(X)                                                                                            \
    X(create, cublasLtCreate, (void **))                                                                     \
    X(destroy, cublasLtDestroy, (void *))                                                                    \
    X(desc_new, cublasLtMatmulDescCreate, (void **, int, int))                                               \
    X(desc_free, cublasLtMatmulDescDestroy, (void *))                                                        \
    X(desc_set, cublasLtMatmulDescSetAttribute, (void *, int, const void *, size_t))                         \
    X(layout_new, cublasLtMatrixLayoutCreate, (void **, int, uint64_t, uint64_t, int64_t))                   \
    X(layout_free, cublasLtMatrixLayoutDestroy, (void *))                                                    \
    X(pref_new, cublasLtMatmulPreferenceCreate, (void **))                                                   \
    X(pref_free, cublasLtMatmulPreferenceDestroy, (void *))                                                  \
    X(pref_set, cublasLtMatmulPreferenceSetAttribute, (void *, int, const void *, size_t))                   \
    X(heuristic, cublasLtMatmulAlgoGetHeuristic,                                                             \
      (void *, void *, void *, void *, void *, void *, void *, int, lt_found *, int *))                      \
    X(matmul, cublasLtMatmul,                                                                                \
      (void *, void *, const void *, const void *, void *, const void *, void *, const void *, const void *, \
       void *, void *, void *, const lt_algo *, void *, size_t, cu_stream))

typedef struct lt_shape {
    uint64_t m, n, k, ldx, ldw, ldr, ldy;
    bool f16, y16, res, ok;
    void *a, *b, *c, *d;
    lt_algo algo;
} lt_shape;

struct cu_lt {
    void *lib, *handle, *desc, *pref;
#define IMP_X(name, symbol, args) int(*name) args;
    LT_API(IMP_X)
#undef IMP_X
    lt_shape shape[N_SHAPE];
    uint32_t n_shape;
};

static bool bind(cu_lt *lt)
{
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
    for (size_t i = 0; i < IMP_COUNT(names) && lt->lib == NULL; i++)
        lt->lib = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (lt->lib == NULL) return false;
#define IMP_X(name, symbol, args)                                                                            \
    {                                                                                                        \
        void *p = dlsym(lt->lib, #symbol);                                                                   \
        if (p == NULL) return false;                                                                         \
        memcpy(&lt->name, &p, sizeof p);                                                                     \
    }
    LT_API(IMP_X)
#undef IMP_X
    return true;
}

cu_lt *imp_cuda_lt_open(void)
{
    cu_lt *lt = imp_sys_calloc(1, sizeof *lt);
    if (lt == NULL) return NULL;
    int transpose = 1;
    size_t workspace = IMP_CUDA_LT_WORKSPACE;
    if (bind(lt) && lt->create(&lt->handle) == 0 && lt->desc_new(&lt->desc, COMPUTE_32F, R_32F) == 0 &&
        lt->desc_set(lt->desc, DESC_TRANSA, &transpose, sizeof transpose) == 0 &&
        lt->pref_new(&lt->pref) == 0 &&
        lt->pref_set(lt->pref, PREF_WORKSPACE, &workspace, sizeof workspace) == 0) {
        return lt;
    }
    imp_cuda_lt_close(lt);
    return NULL;
}

static void drop_layouts(cu_lt *lt, lt_shape *s)
{
    if (s->a != NULL) (void)lt->layout_free(s->a);
    if (s->b != NULL) (void)lt->layout_free(s->b);
    if (s->c != NULL) (void)lt->layout_free(s->c);
    if (s->d != NULL) (void)lt->layout_free(s->d);
    s->a = s->b = s->c = s->d = NULL;
}

void imp_cuda_lt_close(cu_lt *lt)
{
    if (lt == NULL) return;
    for (uint32_t i = 0; i < lt->n_shape; i++) drop_layouts(lt, &lt->shape[i]);
    if (lt->pref != NULL) (void)lt->pref_free(lt->pref);
    if (lt->desc != NULL) (void)lt->desc_free(lt->desc);
    if (lt->handle != NULL) (void)lt->destroy(lt->handle);
    if (lt->lib != NULL) dlclose(lt->lib);
    imp_sys_free(lt);
}

static bool prepare(cu_lt *lt, lt_shape *s)
{
    int in = s->f16 ? R_16F : R_16BF, out = s->y16 ? R_16BF : R_32F, n_found = 0;
    lt_found found = {0};
    if (lt->layout_new(&s->a, in, s->k, s->n, (int64_t)s->ldw) != 0 ||
        lt->layout_new(&s->b, in, s->k, s->m, (int64_t)s->ldx) != 0 ||
        lt->layout_new(&s->c, out, s->n, s->m, (int64_t)(s->res ? s->ldr : s->ldy)) != 0 ||
        lt->layout_new(&s->d, out, s->n, s->m, (int64_t)s->ldy) != 0)
        return false;
    if (lt->heuristic(lt->handle, lt->desc, s->a, s->b, s->c, s->d, lt->pref, 1, &found, &n_found) != 0 ||
        n_found == 0 || found.status != 0)
        return false;
    s->algo = found.algo;
    return true;
}

static lt_shape *find(cu_lt *lt, const lt_shape *want)
{
    for (uint32_t i = 0; i < lt->n_shape; i++) {
        lt_shape *s = &lt->shape[i];
        if (s->m == want->m && s->n == want->n && s->k == want->k && s->ldx == want->ldx &&
            s->ldw == want->ldw && s->ldr == want->ldr && s->ldy == want->ldy && s->f16 == want->f16 &&
            s->y16 == want->y16 && s->res == want->res)
            return s;
    }
    if (lt->n_shape == N_SHAPE) { /* rare: start over */
        for (uint32_t i = 0; i < N_SHAPE; i++) drop_layouts(lt, &lt->shape[i]);
        lt->n_shape = 0;
    }
    lt_shape *s = &lt->shape[lt->n_shape++];
    *s = *want;
    s->ok = prepare(lt, s);
    return s;
}

static void *address(cu_mem p)
{
    return (void *)(uintptr_t)p;
}

bool imp_cuda_lt_matmul(cu_lt *lt, cu_stream st, cu_mem workspace, bool f16, bool y16, cu_mem x, uint64_t ldx,
                        cu_mem w, uint64_t ldw, cu_mem res, uint64_t ldr, cu_mem y, uint64_t ldy, uint64_t m,
                        uint64_t n, uint64_t k)
{
    if ((x | w | y | res) % 16 != 0) return false;
    lt_shape want = {.m = m,
                     .n = n,
                     .k = k,
                     .ldx = ldx,
                     .ldw = ldw,
                     .ldr = res != 0 ? ldr : 0,
                     .ldy = ldy,
                     .f16 = f16,
                     .y16 = y16,
                     .res = res != 0};
    lt_shape *s = find(lt, &want);
    float one = 1, beta = res != 0 ? 1 : 0;
    return s->ok && lt->matmul(lt->handle, lt->desc, &one, address(w), s->a, address(x), s->b, &beta,
                               address(res != 0 ? res : y), s->c, address(y), s->d, &s->algo,
                               address(workspace), IMP_CUDA_LT_WORKSPACE, st) == 0;
}
