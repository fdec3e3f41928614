/* dev/split/split.h - one model on several devices, layer by layer: what one of them cannot hold, the next one does.
 *
 * Idea:    a decoder's graph is cut between layers; each device compiles its piece and keeps the KV cache of its layers. A
 *          step goes through the pieces in turn, and between them one row of activations a token goes through host memory.
 *          Every device but the last takes as many layers as were asked for, else as many as its own memory holds. */
#ifndef IMP_DEV_SPLIT_H
#define IMP_DEV_SPLIT_H

#include "dev/dev.h"

enum { IMP_SPLIT_PARTS = 8 };

typedef struct imp_split_part {
    imp_device *device;
    bool owned;       /* closed with the split device, also when opening it fails; else it must outlive it */
    uint32_t n_layer; /* it takes; 0: as many as fit. The last device takes the rest. */
} imp_split_part;

/* Named after its parts, "cuda0+cpu0". Graphs without a KV cache run whole on the last device. INVALID: fewer than two parts
 * or too many, a device that compiles slowly or runs nothing by itself, or one without memory of its own in front of others
 * and no number of layers. */
IMP_MUST_USE imp_status imp_dev_split_open(const imp_split_part *part, uint32_t n_part, imp_device **out,
                                           imp_error *err);
/* The parts, *n of them, while the device is open; NULL: it is no split device. */
const imp_split_part *imp_dev_split_parts(const imp_device *d, uint32_t *n);

#endif
