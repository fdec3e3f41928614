/* kern/x86/matmul_f_amx.c - matmul with f32 activations for AMX: bf16 weights. */
#include "kern/x86/amx_bf16.h"

B_VARIANT("amx", amx, IMP_CPU_AVX512BF16 | IMP_CPU_AMX_BF16)
