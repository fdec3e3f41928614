/* plan/pci.h - GPUs and other accelerators on the PCI bus that this program has no driver for, by their ids.
 *
 * Place:   layer 5; host.c lists them. Reads Linux's sysfs; elsewhere it finds nothing.
 * Threads: any. */
#ifndef IMP_PCI_H
#define IMP_PCI_H

#include "base/base.h"

typedef struct imp_pci_unit {
    uint16_t vendor, device;
    char name[96];  /* "AMD XDNA NPU (1022:17f0)" */
    char where[32]; /* "0000:c5:00.1" */
    char kind[8];   /* "gpu" or "npu" */
    char reason[96];
} imp_pci_unit;

/* root: "/sys" or a test's copy. Display controllers, accelerators and known NPUs of vendors that make them, in the order
 * of their addresses; returns how many were written. */
uint32_t imp_pci_read(const char *root, imp_pci_unit *out, uint32_t cap);

#endif
