/* kern/arm/peak_neon.c - ceilings of NEON: int8 by widening multiplies (SMULL and SADALP, 8 at a time). */
#define PEAK_DOT(acc, x) vpadalq_s16(acc, vmull_s8(vget_low_s8(vreinterpretq_s8_s32(acc)), vget_low_s8(x)))
#define PEAK_OPS         16
#include "kern/arm/peak_neon.h"

const imp_peak imp_peak_neon = {
    .isa = "neon", .cpu = IMP_CPU_NEON, .read = read_all, .int8 = int8, .f32 = f32};
