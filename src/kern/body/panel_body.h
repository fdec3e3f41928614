/* kern/body/panel_body.h - what the matmuls with f32 activations share: panels of weights, blocks of k, stores.
 *
 * Place:   included by matmul_f_body.h and matmul_a16_body.h after an instruction set's simd_*.h.
 * Idea:    PANEL columns of y (rows of w) are one panel, k the outer order inside it, so that a tile of y is MR rows by
 *          two vectors of columns, and an element lives in one lane: no sums across lanes. k is cut into blocks of KC:
 *          inside a block one chain of fused multiply-adds, the blocks' sums are added to y in order, bias last.
 * Layout:  rows of x of a block are copied to a scratch with rows XS apart, where rows of 2^n bytes do not fight for the
 *          same lines of the first-level cache; XR rows of x at a time, which stay in the second-level cache.
 * Always:  an element's bits depend on its row of x and its row of w alone.
 * Source:  Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication". */
#ifndef IMP_KERN_PANEL_BODY_H
#define IMP_KERN_PANEL_BODY_H

enum { PANEL = 2 * W, KC = 256, XS = KC + 16, XR = 192, MR = W == 8 ? 6 : 12 };

/* Where a tile's sums go. */
struct panel_out {
    float *y; /* row 0, the panel's column 0 */
    size_t y_stride;
    const float *bias; /* of the panel's column 0; NULL: none, or not the last block of k */
    uint32_t c0, c1;   /* columns of the panel that are asked for */
    bool first;        /* y is overwritten, else added to */
};

/* Row i of the tile: two vectors of sums. */
IMP_INLINE void panel_store(const struct panel_out *o, uint32_t i, vf a, vf b)
{
    float *y = o->y + i * o->y_stride;
    if (o->c0 == 0 && o->c1 == PANEL) {
        if (!o->first) {
            a = v_load(y) + a;
            b = v_load(y + W) + b;
        }
        if (o->bias != NULL) {
            a = a + v_load(o->bias);
            b = b + v_load(o->bias + W);
        }
        v_store(y, a);
        v_store(y + W, b);
        return;
    }
    float t[PANEL];
    v_store(t, a);
    v_store(t + W, b);
    for (uint32_t c = o->c0; c < o->c1; c++) {
        float s = o->first ? t[c] : y[c] + t[c];
        y[c] = o->bias != NULL ? s + o->bias[c] : s;
    }
}

/* Rows of the next tile when `left` are to come: full tiles, and a rest that is not a single row if it can be two
 * tiles of middle size. */
IMP_INLINE uint32_t panel_rows(uint32_t left)
{
    if (MR == 12) {
        if (left >= 12 && left != 13 && left != 14 && left != 16) return 12;
        if (left >= 8) return 8;
        if (left >= 6) return 6;
    } else {
        if (left >= 6 && left != 7 && left != 8) return 6;
    }
    return left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

#endif
