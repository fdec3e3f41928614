/* dev/cpu/place.c - where each buffer lies in the shared scratch, and who does which part of an op.
 *
 * Idea:    a buffer lives from the phase that first writes it to the phase that last reads it. Buffers are placed from
 *          the largest down, each at the lowest offset that is free during all its phases.
 * Source:  the greedy-by-size rule of Pisarchyk and Lee 2020, "Efficient memory management for deep neural net
 *          inference". */
#include "dev/cpu/cpu.h"

static bool meet(const cpu_buf *a, const cpu_buf *b)
{
    return a->first <= b->last && b->first <= a->last;
}

/* The lowest offset for b beside those placed before it. */
static uint64_t lowest(const cpu_exec *x, const bool *placed, const cpu_buf *b)
{
    uint64_t at = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (uint32_t i = 1; i < x->n_buf; i++) {
            const cpu_buf *o = &x->buf[i];
            if (!placed[i] || o->bytes == 0 || !meet(o, b)) continue;
            if (at < o->at + o->bytes && o->at < at + b->bytes) {
                at = o->at + o->bytes;
                moved = true;
            }
        }
    }
    return at;
}

uint64_t imp_cpu_place(cpu_exec *x)
{
    bool *placed = imp_arena_array(x->arena, x->n_buf, sizeof *placed);
    if (placed == NULL) return UINT64_MAX;
    uint64_t total = 0;
    if (x->lim.keep) { /* nothing shares a place */
        for (uint32_t i = 1; i < x->n_buf; i++) {
            x->buf[i].at = total;
            total += x->buf[i].bytes;
        }
        return total;
    }
    for (;;) {
        uint32_t big = 0;
        for (uint32_t i = 1; i < x->n_buf; i++) {
            if (!placed[i] && (big == 0 || x->buf[i].bytes > x->buf[big].bytes)) big = i;
        }
        if (big == 0) return total;
        cpu_buf *b = &x->buf[big];
        b->at = lowest(x, placed, b);
        placed[big] = true;
        total = IMP_MAX(total, b->at + b->bytes);
    }
}

cpu_part imp_cpu_part(const cpu_step *s, const cpu_op *op, uint32_t share)
{
    uint32_t n_row = s->n_row[op->rows] * op->row_mul;
    cpu_part p = {0, n_row, 0, op->n, share};
    uint64_t from, to;
    if (op->split == CPU_ROWS || (op->split == CPU_AUTO && n_row >= s->n_share) ||
        (op->split == CPU_WIDE && n_row >= (uint64_t)s->n_share * (CPU_WIDE_ROWS / 2))) {
        imp_cpu_share(n_row, share, s->n_share, &from, &to);
        p.r0 = (uint32_t)from;
        p.r1 = (uint32_t)to;
    } else if (op->split != CPU_OWN) {
        imp_cpu_share(((uint64_t)op->n + op->step - 1) / op->step, share, s->n_share, &from, &to);
        p.c0 = (uint32_t)IMP_MIN(from * op->step, op->n);
        p.c1 = (uint32_t)IMP_MIN(to * op->step, op->n);
    }
    return p;
}
