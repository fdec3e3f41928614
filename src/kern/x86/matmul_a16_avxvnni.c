/* kern/x86/matmul_a16_avxvnni.c - 8-bit and 4-bit weights with 16-bit activations for AVXVNNI. */
#include "kern/x86/a16_256.h"

IMP_INLINE vi a16_dot(vi acc, vi a, vi b)
{
    /* the intrinsic makes gcc 12 copy every accumulator before and after */
    __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
    return acc;
}
#include "kern/body/matmul_a16_body.h"

const imp_matmul imp_matmul_q8_0_a16_avxvnni =
    MATMUL_A16("q8_0_a16", "avxvnni", IMP_CPU_AVXVNNI, IMP_Q8_0, pack_q8_0);
const imp_matmul imp_matmul_q4_0_a16_avxvnni =
    MATMUL_A16("q4_0_a16", "avxvnni", IMP_CPU_AVXVNNI, IMP_Q4_0, pack_q4_0);
