/* kern/x86/matmul_q_avx512vnni.c - int8 matmul for AVX-512 VNNI. */
#include "kern/x86/packed_512.h"

#include "kern/body/matmul_p_body.h"

P_VARIANTS("avx512vnni", avx512vnni, IMP_CPU_AVX512VNNI)
