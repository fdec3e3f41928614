/* kern/x86/matmul_q_amx.c - int8 matmul for AMX, with AVX-512 VNNI for few rows. */
#include "kern/x86/amx_int8.h"

T_VARIANTS("amx", amx, IMP_CPU_AVX512VNNI | IMP_CPU_AMX_INT8)
