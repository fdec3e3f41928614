/* dev/cpu/pack.h - between pack.c (the weights region is made) and pack_cache.c (it is kept on disk).
 *
 * Idea:    a piece is what one thread packs at a time: some rows of one part of a weight, or all of it. Pieces have a fixed
 *          order, so that sums over them do not depend on who took which. */
#ifndef IMP_DEV_CPU_PACK_H
#define IMP_DEV_CPU_PACK_H

#include "dev/cpu/cpu.h"
#include "dev/cpu/pack_cache.h"

typedef struct cpu_piece {
    uint64_t index;
    const cpu_weight *w;
    uint32_t part;
    uint64_t from, rows;
} cpu_piece;
typedef void (*cpu_piece_fn)(void *ctx, const cpu_piece *p);
uint64_t imp_cpu_n_piece(const cpu_exec *x);
/* fn for every piece once, by the device's threads. */
void imp_cpu_each_piece(cpu_device *d, const cpu_exec *x, cpu_piece_fn fn, void *ctx);
/* The source's rows of a piece: what pack() is given. */
imp_tensor imp_cpu_piece_source(const cpu_piece *p);
uint64_t imp_cpu_piece_sum(const cpu_piece *p); /* of all source bytes of the piece */
/* One number for all source bytes, from the pieces' sums, imp_cpu_n_piece of them in their order. */
uint64_t imp_cpu_content(const cpu_exec *x, const uint64_t *piece_sum);

/* ---- on disk ----------------------------------------------------------------------------------------------- */
typedef struct cpu_kept {
    char path[1200];
    uint64_t key[2];
    uint64_t stamp; /* identity of the files that the weights lie in */
    bool fresh; /* one of them was changed so recently that a further change might not show in the stamp */
} cpu_kept;
/* Is the region of x to be kept on disk, and in which file? */
bool imp_cpu_kept_name(const cpu_exec *x, cpu_kept *out);
/* The region as it was kept, checked; *file is the caller's to close. NULL: it is not there, or no longer good. */
const uint8_t *imp_cpu_kept_map(cpu_device *d, const cpu_exec *x, const cpu_kept *k, imp_sys_file *file);

/* Writes the region in the background; it must stay until imp_cpu_keep_join. NULL: it is not written. */
typedef struct cpu_keep cpu_keep;
cpu_keep *imp_cpu_keep_start(const cpu_exec *x, const cpu_kept *k, const uint8_t *region, uint64_t content);
void imp_cpu_keep_join(cpu_keep *job); /* waits until it is written; NULL is allowed */

#endif
