/* plan/host.c - the machine's description, from hwloc.
 *
 * Idea:    hwloc knows packages, cores, caches and PCI devices of every system we build for; only what it reports is
 *          repeated, and a compute unit nobody here drives is listed with that reason instead of being passed over.
 * Threads: any. */
#include "plan/host.h"

#include <hwloc.h>
#include <stdio.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "kern/kern.h"

static uint32_t count_of(hwloc_topology_t t, hwloc_obj_type_t type)
{
    int n = hwloc_get_nbobjs_by_type(t, type);
    return n > 0 ? (uint32_t)n : 0;
}

static void read_names(hwloc_topology_t t, imp_host *h)
{
    struct utsname u;
    const char *model = NULL;
    hwloc_obj_t package = hwloc_get_obj_by_type(t, HWLOC_OBJ_PACKAGE, 0);
    if (package) model = hwloc_obj_get_info_by_name(package, "CPUModel");
    if (!model) model = hwloc_obj_get_info_by_name(hwloc_get_root_obj(t), "CPUModel");
    snprintf(h->cpu, sizeof h->cpu, "%s", model ? model : "CPU of unknown name");
    if (uname(&u) == 0) {
        snprintf(h->os, sizeof h->os, "%.20s %.40s", u.sysname, u.release);
        snprintf(h->arch, sizeof h->arch, "%.31s", u.machine);
    }
}

static void read_caches(hwloc_topology_t t, imp_host *h)
{
    static const hwloc_obj_type_t types[] = {HWLOC_OBJ_L1CACHE, HWLOC_OBJ_L1ICACHE, HWLOC_OBJ_L2CACHE,
                                             HWLOC_OBJ_L3CACHE, HWLOC_OBJ_L4CACHE};
    for (size_t i = 0; i < IMP_COUNT(types) && h->n_cache < IMP_HOST_CACHES; i++) {
        hwloc_obj_t o = NULL;
        while ((o = hwloc_get_next_obj_by_type(t, types[i], o)) != NULL) {
            imp_host_cache c = {.level = o->attr->cache.depth,
                                .bytes = o->attr->cache.size,
                                .line_bytes = o->attr->cache.linesize,
                                .n = 1,
                                .n_pu = (uint32_t)IMP_MAX(1, hwloc_bitmap_weight(o->cpuset))};
            c.kind = o->attr->cache.type == HWLOC_OBJ_CACHE_INSTRUCTION ? 'i'
                     : o->attr->cache.type == HWLOC_OBJ_CACHE_DATA      ? 'd'
                                                                        : 'u';
            imp_host_cache *last = h->n_cache ? &h->cache[h->n_cache - 1] : NULL;
            if (last && last->level == c.level && last->kind == c.kind && last->bytes == c.bytes &&
                last->n_pu == c.n_pu)
                last->n++;
            else if (h->n_cache < IMP_HOST_CACHES)
                h->cache[h->n_cache++] = c;
        }
    }
    uint32_t top = 0;
    for (uint32_t i = 0; i < h->n_cache; i++) top = IMP_MAX(top, h->cache[i].level);
    for (uint32_t i = 0; i < h->n_cache; i++)
        if (h->cache[i].level == top && h->cache[i].kind != 'i')
            h->llc_bytes += h->cache[i].bytes * h->cache[i].n;
}

static void read_kinds(hwloc_topology_t t, imp_host *h)
{
    int n = hwloc_cpukinds_get_nr(t, 0);
    hwloc_bitmap_t set = hwloc_bitmap_alloc();
    for (int i = 0; set && i < n && h->n_kind < IMP_HOST_KINDS; i++) {
        imp_host_kind *k = &h->kind[h->n_kind];
        struct hwloc_info_s *info = NULL;
        unsigned n_info = 0;
        if (hwloc_cpukinds_get_info(t, (unsigned)i, set, &k->efficiency, &n_info, &info, 0)) continue;
        for (unsigned j = 0; j < n_info; j++)
            if (!strcmp(info[j].name, "CoreType")) snprintf(k->name, sizeof k->name, "%s", info[j].value);
        int cores = hwloc_get_nbobjs_inside_cpuset_by_type(t, set, HWLOC_OBJ_CORE);
        if (cores <= 0) continue;
        k->n_core = (uint32_t)cores;
        h->n_kind++;
    }
    hwloc_bitmap_free(set);
    if (h->n_kind == 0) h->kind[h->n_kind++] = (imp_host_kind){.n_core = h->n_core, .efficiency = -1};
}

static const char *vendor_name(unsigned id)
{
    switch (id) {
    case 0x10de: return "NVIDIA";
    case 0x1002: return "AMD";
    case 0x8086: return "Intel";
    case 0x106b: return "Apple";
    case 0x1da3: return "Habana";
    default: return NULL;
    }
}

static imp_host_other *add_other(imp_host *h)
{
    if (h->n_other == IMP_HOST_OTHERS) return NULL;
    imp_host_other *o = &h->other[h->n_other++];
    snprintf(o->reason, sizeof o->reason, "no driver for it in this build");
    return o;
}

/* PCI classes 03 (display, also GPUs without a screen) and 12 (processing accelerators) of vendors that make them. */
static void read_pci(hwloc_topology_t t, imp_host *h)
{
    hwloc_obj_t o = NULL;
    while ((o = hwloc_get_next_pcidev(t, o)) != NULL) {
        const struct hwloc_pcidev_attr_s *p = &o->attr->pcidev;
        const char *vendor = vendor_name(p->vendor_id), *model = hwloc_obj_get_info_by_name(o, "PCIDevice");
        if ((p->class_id >> 8) != 0x03 && (p->class_id >> 8) != 0x12) continue;
        if (!vendor) continue; /* a server's or virtual machine's display adapter computes nothing */
        imp_host_other *x = add_other(h);
        if (!x) return;
        if (model)
            snprintf(x->name, sizeof x->name, "%s %.80s", vendor, model);
        else
            snprintf(x->name, sizeof x->name, "%s device %04x:%04x", vendor, p->vendor_id, p->device_id);
        snprintf(x->where, sizeof x->where, "%04x:%02x:%02x.%x", p->domain, p->bus, p->dev, p->func);
    }
}

/* Device nodes stand for what a container's PCI listing hides. */
static void read_nodes(imp_host *h)
{
    static const struct {
        const char *vendor, *what, *pattern;
    } node[] = {{"NVIDIA", "NVIDIA GPU", "/dev/nvidia%d"}, {"", "accelerator", "/dev/accel/accel%d"}};
    for (size_t i = 0; i < IMP_COUNT(node); i++) {
        bool known = false;
        for (uint32_t j = 0; j < h->n_other; j++)
            known = known ||
                    (*node[i].vendor && !strncmp(h->other[j].name, node[i].vendor, strlen(node[i].vendor)));
        for (int n = 0; n < IMP_HOST_OTHERS && !known; n++) {
            char path[32];
            snprintf(path, sizeof path, node[i].pattern, n);
            if (access(path, F_OK)) continue;
            imp_host_other *x = add_other(h);
            if (!x) return;
            snprintf(x->name, sizeof x->name, "%s", node[i].what);
            snprintf(x->where, sizeof x->where, "%s", path);
        }
    }
}

/* hwloc's add-ons load the libraries of GPU makers, which is slow and not needed to see what PCI devices there are. */
static void leave_out_plugins(hwloc_topology_t t)
{
    static const char *const name[] = {"opencl", "gl", "cuda", "nvml", "rsmi", "levelzero", "pci"};
    for (size_t i = 0; i < IMP_COUNT(name); i++)
        (void)hwloc_topology_set_components(t, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, name[i]);
}

imp_status imp_host_read(imp_host *out, imp_error *err)
{
    hwloc_topology_t t;
    *out = (imp_host){0};
    if (hwloc_topology_init(&t)) return imp_fail(err, IMP_DEVICE, "the machine's topology could not be read");
    leave_out_plugins(t);
    hwloc_topology_set_io_types_filter(t, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
    hwloc_topology_set_type_filter(t, HWLOC_OBJ_L1ICACHE, HWLOC_TYPE_FILTER_KEEP_ALL);
    if (hwloc_topology_load(t)) {
        hwloc_topology_destroy(t);
        return imp_fail(err, IMP_DEVICE, "the machine's topology could not be read");
    }
    read_names(t, out);
    out->n_package = count_of(t, HWLOC_OBJ_PACKAGE);
    out->n_numa = count_of(t, HWLOC_OBJ_NUMANODE);
    out->n_core = count_of(t, HWLOC_OBJ_CORE);
    out->n_pu = count_of(t, HWLOC_OBJ_PU);
    if (out->n_core == 0) out->n_core = imp_sys_n_core();
    read_caches(t, out);
    read_kinds(t, out);
    read_pci(t, out);
    hwloc_topology_destroy(t);
    read_nodes(out);
    imp_sys_memory(&out->mem_total, &out->mem_available);
    out->isa = imp_cpu_features();
    return IMP_OK;
}
