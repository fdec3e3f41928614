/* dev/dev.c - open a device by the name of its kind. */
#include "dev/dev.h"
#include "dev/coreml/coreml.h"
#include "dev/cuda/open.h"

imp_status imp_dev_open(const char *kind, uint32_t n_thread, imp_device **out, imp_error *err)
{
    *out = NULL;
    if (strcmp(kind, "cpu") == 0) return imp_dev_cpu_open(n_thread, out, err);
    if (strcmp(kind, "ref") == 0) return imp_dev_ref_open(out, err);
    if (strcmp(kind, "cuda") == 0) return imp_dev_cuda_open(out, err);
    if (strcmp(kind, "coreml") == 0) return imp_dev_coreml_open(out, err);
    return imp_fail(err, IMP_NOT_FOUND, "there is no device kind \"%s\"; there are: cpu, ref, cuda, coreml",
                    kind);
}
