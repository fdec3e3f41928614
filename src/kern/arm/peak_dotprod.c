/* kern/arm/peak_dotprod.c - ceilings of NEON with SDOT. */
#define PEAK_DOT(acc, x) vdotq_s32(acc, x, x)
#define PEAK_OPS         32
#include "kern/arm/peak_neon.h"

const imp_peak imp_peak_dotprod = {
    .isa = "dotprod", .cpu = IMP_CPU_DOTPROD, .read = read_all, .int8 = int8, .f32 = f32};
