/* plan/pci.c - reading /sys/bus/pci/devices.
 *
 * Idea:    a unit counts when its class says display (03) or processing accelerator (12), or when its id is that of an NPU
 *          that hides behind another class; its vendor must be one whose parts compute, since a server's or a virtual
 *          machine's display adapter does not. */
#include "plan/pci.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct known {
    uint16_t vendor, device; /* device 0: any */
    const char *kind, *name, *reason;
} known;

/* Ids first, then vendors. */
static const known KNOWN[] = {
    {0x1022, 0x1502, "npu", "AMD XDNA NPU", "there is no XDNA driver in this program"},
    {0x1022, 0x17f0, "npu", "AMD XDNA 2 NPU", "there is no XDNA driver in this program"},
    {0x8086, 0x7d1d, "npu", "Intel NPU (Meteor Lake)", "there is no driver for Intel NPUs in this program"},
    {0x8086, 0xad1d, "npu", "Intel NPU (Arrow Lake)", "there is no driver for Intel NPUs in this program"},
    {0x8086, 0x643e, "npu", "Intel NPU (Lunar Lake)", "there is no driver for Intel NPUs in this program"},
    {0x8086, 0xb03e, "npu", "Intel NPU (Panther Lake)", "there is no driver for Intel NPUs in this program"},
    {0x10de, 0, "gpu", "NVIDIA GPU", "its driver's libraries are not installed"},
    {0x1002, 0, "gpu", "AMD GPU", "there is no ROCm or Vulkan driver in this program"},
    {0x8086, 0, "gpu", "Intel GPU", "there is no Level Zero or Vulkan driver in this program"},
    {0x1da3, 0, "npu", "Habana accelerator", "there is no Gaudi driver in this program"},
    {0x1e60, 0, "npu", "Hailo accelerator", "there is no Hailo driver in this program"},
    {0x1ac1, 0, "npu", "Google Edge TPU", "it runs int8 vision models, not language models"},
    {0x1d0f, 0, "npu", "AWS Neuron accelerator", "there is no Neuron driver in this program"},
    {0x1e52, 0, "npu", "Tenstorrent accelerator", "there is no Tenstorrent driver in this program"},
};

static bool read_hex(const char *folder, const char *file, uint32_t *out)
{
    char path[512], text[32];
    (void)snprintf(path, sizeof path, "%s/%s", folder, file);
    FILE *f = fopen(path, "re");
    if (f == NULL) return false;
    bool ok = fgets(text, sizeof text, f) != NULL;
    fclose(f);
    char *end = text;
    unsigned long v = ok ? strtoul(text, &end, 16) : 0;
    *out = (uint32_t)v;
    return ok && end != text && v <= UINT32_MAX;
}

static const known *find(uint32_t vendor, uint32_t device, uint32_t class)
{
    uint32_t kind = class >> 16;
    for (size_t i = 0; i < IMP_COUNT(KNOWN); i++) {
        const known *k = &KNOWN[i];
        if (k->vendor != vendor) continue;
        if (k->device != 0 ? k->device == device : kind == 0x03 || kind == 0x12) return k;
    }
    return NULL;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const imp_pci_unit *)a)->where, ((const imp_pci_unit *)b)->where);
}

uint32_t imp_pci_read(const char *root, imp_pci_unit *out, uint32_t cap)
{
    char path[300], one[600];
    uint32_t n = 0, vendor, device, class;
    (void)snprintf(path, sizeof path, "%.200s/bus/pci/devices", root);
    DIR *d = opendir(path);
    if (d == NULL) return 0;
    for (struct dirent *e; n < cap && (e = readdir(d)) != NULL;) {
        if (e->d_name[0] == '.') continue;
        (void)snprintf(one, sizeof one, "%s/%s", path, e->d_name);
        if (!read_hex(one, "vendor", &vendor) || !read_hex(one, "device", &device) ||
            !read_hex(one, "class", &class))
            continue;
        const known *k = find(vendor, device, class);
        if (k == NULL) continue;
        imp_pci_unit *u = &out[n++];
        *u = (imp_pci_unit){.vendor = (uint16_t)vendor, .device = (uint16_t)device};
        (void)snprintf(u->name, sizeof u->name, "%s (%04x:%04x)", k->name, vendor & 0xffff, device & 0xffff);
        (void)snprintf(u->where, sizeof u->where, "%.31s", e->d_name);
        (void)snprintf(u->kind, sizeof u->kind, "%s", k->kind);
        (void)snprintf(u->reason, sizeof u->reason, "%s", k->reason);
    }
    (void)closedir(d);
    qsort(out, n, sizeof *out, by_name);
    return n;
}
