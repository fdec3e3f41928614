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

static imp_pci_unit *add_other(imp_host *h)
{
    return h->n_other == IMP_HOST_OTHERS ? NULL : &h->other[h->n_other++];
}

/* NVIDIA's own description, and of the PCI bus whatever that does not cover. */
static void read_accelerators(imp_host *h)
{
    imp_pci_unit pci[IMP_HOST_OTHERS];
    imp_nvml *nvml;
    imp_error why = {0};
    if (imp_nvml_open(NULL, &nvml, &why) == IMP_OK) {
        h->n_nvidia = imp_nvml_gpus(nvml, h->nvidia, IMP_NVIDIA_GPUS, h->nvidia_driver);
        imp_nvml_close(nvml);
    }
    (void)imp_apple_read(&h->apple);
    uint32_t n = imp_pci_read("/sys", pci, IMP_HOST_OTHERS);
    for (uint32_t i = 0; i < n; i++) {
        if (pci[i].vendor == 0x10de && h->n_nvidia > 0) continue;
        imp_pci_unit *x = add_other(h);
        if (x == NULL) return;
        *x = pci[i];
        if (x->vendor == 0x10de) (void)snprintf(x->reason, sizeof x->reason, "%.95s", why.text);
    }
}

/* Device nodes stand for what a container's PCI listing hides. */
static void read_nodes(imp_host *h)
{
    static const struct {
        const char *what, *kind, *pattern;
    } node[] = {{"NVIDIA GPU", "gpu", "/dev/nvidia%d"}, {"accelerator", "npu", "/dev/accel/accel%d"}};
    for (size_t i = 0; i < IMP_COUNT(node); i++) {
        bool known = i == 0 && h->n_nvidia > 0;
        for (uint32_t j = 0; j < h->n_other; j++)
            known =
                known || (i == 0 ? h->other[j].vendor == 0x10de : !strcmp(h->other[j].kind, node[i].kind));
        for (int n = 0; n < IMP_HOST_OTHERS && !known; n++) {
            char path[32];
            snprintf(path, sizeof path, node[i].pattern, n);
            if (access(path, F_OK)) continue;
            imp_pci_unit *x = add_other(h);
            if (!x) return;
            *x = (imp_pci_unit){.vendor = i == 0 ? 0x10de : 0};
            snprintf(x->name, sizeof x->name, "%s", node[i].what);
            snprintf(x->kind, sizeof x->kind, "%s", node[i].kind);
            snprintf(x->where, sizeof x->where, "%s", path);
            snprintf(x->reason, sizeof x->reason, "only its device file is seen, not the driver's libraries");
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
    hwloc_topology_destroy(t);
    read_accelerators(out);
    read_nodes(out);
    imp_sys_memory(&out->mem_total, &out->mem_available);
    out->isa = imp_cpu_features();
    return IMP_OK;
}
