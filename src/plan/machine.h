/* plan/machine.h - a compute unit as the cost model sees it: a few numbers, each with a range.
 *
 * Place:   layer 5; filled by calibration (calibrate.c) or from a published profile (profile.c), read by cost.c.
 * Idea:    bandwidth, peaks, the cost of a launch and of a step, and what share of them real work reaches before anything
 *          was measured. The shares are only the start: learn.c corrects them with every step that really ran. */
#ifndef IMP_MACHINE_H
#define IMP_MACHINE_H

#include "base/base.h"

typedef enum imp_unit_kind { IMP_UNIT_CPU, IMP_UNIT_GPU, IMP_UNIT_NPU } imp_unit_kind;
typedef enum imp_mark {
    IMP_MARK_NONE,
    IMP_MARK_SPEC,
    IMP_MARK_LITERATURE,
    IMP_MARK_MEASURED,
    IMP_MARK_ASSUMED
} imp_mark;

/* X(NAME, "key", "unit", "meaning") */
#define IMP_MACHINE_FIELDS(X)                                                                                \
    X(BW, "bandwidth", "GB/s", "memory this unit can read")                                                  \
    X(F32, "f32", "TFLOP/s", "matrix products in f32")                                                       \
    X(F16, "f16", "TFLOP/s", "matrix products in f16; 0: done in f32")                                       \
    X(INT8, "int8", "TOP/s", "int8 products for quantised weights; 0: they are widened to f16")              \
    X(LAUNCH, "launch", "us", "starting one op")                                                             \
    X(SYNC, "sync", "us", "starting a step (each program of it) and waiting for its end")                    \
    X(WAKE, "wake", "us", "the first step after a pause")                                                    \
    X(LINK, "link", "GB/s", "handing a KV cache over, where its parts are not measured")                     \
    X(HAND_OUT, "hand_out", "GB/s", "giving blocks of a KV cache away")                                      \
    X(HAND_IN, "hand_in", "GB/s", "taking them in")                                                          \
    X(HAND_US, "hand_block", "us", "of either for a block, whatever its size")                               \
    X(MEM, "memory", "GB", "memory of its own; 0: the machine's")                                            \
    X(PROGRAM, "program", "MB", "weights one program may hold; 0: no limit")                                 \
    X(CACHE, "cache", "MB", "weights that stay in its caches between steps")                                 \
    X(CACHE_BW, "cache_bandwidth", "GB/s", "reading those; 0: as memory")                                    \
    X(WAITS, "waits", "", "share of the reading that computing does not hide; 0: all of it hides")           \
    X(E_BW, "e_bandwidth", "", "share of the bandwidth reached")                                             \
    X(E_MM, "e_matrix", "", "share of the peak reached by wide matrix products")                             \
    X(K_HALF, "k_half", "", "inner width at which half of that share is reached")                            \
    X(E_ATTN, "e_attention", "", "share of the peak reached by attention, up to 4K keys")                    \
    X(E_FAR, "e_attention_far", "", "the same from 32K keys on")                                             \
    X(WATT, "power", "W", "while busy")

typedef enum imp_field {
#define IMP_X(name, ...) IMP_F_##name,
    IMP_MACHINE_FIELDS(IMP_X)
#undef IMP_X
        IMP_N_FIELD
} imp_field;

typedef struct imp_value {
    double v, lo, hi;
    imp_mark mark;
    const char *source; /* static text */
} imp_value;

typedef struct imp_machine {
    char name[64];
    imp_unit_kind kind;
    bool simulated;
    imp_value f[IMP_N_FIELD];
} imp_machine;

/* Seconds that n_block blocks of `bytes` together take from one unit to another, and whether that was measured on both. */
double imp_machine_transfer_s(const imp_machine *from, const imp_machine *to, double bytes, double n_block,
                              bool *measured);

const char *imp_field_key(imp_field f);
const char *imp_field_unit(imp_field f);
const char *imp_mark_name(imp_mark m);           /* "spec" */
const char *imp_unit_kind_name(imp_unit_kind k); /* "cpu", "gpu", "npu" */

/* ---- published profiles ------------------------------------------------------------------------ */

typedef struct imp_profile {
    const char *system; /* "apple-m3-max" */
    const char *unit;   /* "gpu" */
    const char *title;
    imp_unit_kind kind;
    imp_value f[IMP_N_FIELD];
} imp_profile;

size_t imp_profile_count(void);
const imp_profile *imp_profile_at(size_t i);
/* name: "apple-m3-max" (all its units) or "apple-m3-max/gpu". Returns how many match; fills up to cap machines. */
size_t imp_profile_machines(const char *name, imp_machine *out, size_t cap);
/* A machine about which nothing is known but its kind. */
void imp_machine_default(imp_unit_kind kind, const char *name, imp_machine *out);
/* n equal units that compute every layer together: their rates added up, less what sums between them cost. Marked assumed. */
void imp_machine_divide(const imp_machine *member, uint32_t n, const char *name, imp_machine *out);
/* Several units with equal shares of a model's layers between them, one after the other. A first guess, marked assumed. */
void imp_machine_join(const imp_machine *part, uint32_t n_part, const char *name, imp_machine *out);

#endif
