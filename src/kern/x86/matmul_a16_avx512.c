/* kern/x86/matmul_a16_avx512.c - 8-bit and 4-bit weights with 16-bit activations for AVX512. */
#include "kern/x86/a16_512.h"

IMP_INLINE vi a16_dot(vi acc, vi a, vi b)
{
    return acc + (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}
#include "kern/body/matmul_a16_body.h"

const imp_matmul imp_matmul_q8_0_a16_avx512 =
    MATMUL_A16("q8_0_a16", "avx512", IMP_CPU_AVX512, IMP_Q8_0, pack_q8_0);
const imp_matmul imp_matmul_q4_0_a16_avx512 =
    MATMUL_A16("q4_0_a16", "avx512", IMP_CPU_AVX512, IMP_Q4_0, pack_q4_0);
