/* dev/cuda/kernels.c - the compiled kernels, taken into the program when it was built with nvcc (mk/cuda.mk). */
#include "dev/cuda/driver.h"

#ifdef IMP_CUDA_FATBIN
#define FATBIN(n, name)                                                                                      \
    __asm__(".pushsection .rodata\n.balign 64\nimp_cuda_fatbin_" #n ":\n.incbin \"" IMP_CUDA_FATBIN "/" name \
            ".fatbin\"\n.popsection\n");                                                                     \
    extern const char imp_cuda_fatbin_##n[];
FATBIN(0, "ops")
FATBIN(1, "gemv")
FATBIN(2, "gemm")
FATBIN(3, "attn")
FATBIN(4, "pack")
FATBIN(5, "flash")
FATBIN(6, "attn_step")
FATBIN(7, "mid")
FATBIN(8, "reduce")
FATBIN(9, "top")
FATBIN(10, "flash_wg")

const void *imp_cuda_kernels(int i)
{
    const void *const all[IMP_CUDA_N_MODULE] = {imp_cuda_fatbin_0, imp_cuda_fatbin_1, imp_cuda_fatbin_2,
                                                imp_cuda_fatbin_3, imp_cuda_fatbin_4, imp_cuda_fatbin_5,
                                                imp_cuda_fatbin_6, imp_cuda_fatbin_7, imp_cuda_fatbin_8,
                                                imp_cuda_fatbin_9, imp_cuda_fatbin_10};
    return all[i];
}
#else
const void *imp_cuda_kernels(int i)
{
    (void)i;
    return NULL;
}
#endif
