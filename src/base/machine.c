/* base/machine.c - what the operating system says of memory and cores. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>
#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif
#ifdef __APPLE__
#include <mach-o/dyld.h>
#include <mach/mach.h>
#include <sys/sysctl.h>
#endif

#include "base/base.h"

#ifdef __linux__
static const char *g_root = ""; /* in front of /proc and /sys: a test's copy */

void imp_sys_set_root(const char *root)
{
    g_root = root == NULL ? "" : root;
}

static FILE *open_below(const char *root, const char *path)
{
    char full[700];
    int n = snprintf(full, sizeof full, "%s%s", root, path);
    return n < 0 || (size_t)n >= sizeof full ? NULL : fopen(full, "re");
}

/* One number from a small text file; false when it is absent or says "max". */
static bool read_u64(const char *path, uint64_t *out)
{
    FILE *f = open_below(g_root, path);
    unsigned long long v;
    if (f == NULL) return false;
    bool ok = fscanf(f, "%llu", &v) == 1;
    fclose(f);
    if (ok) *out = v;
    return ok;
}

/* This process's control group of a hierarchy: controller "" for the unified one (v2), "memory" or "cpu" for v1. */
static bool own_group(const char *controller, char out[400])
{
    char line[512];
    bool found = false;
    FILE *f = open_below(g_root, "/proc/self/cgroup");
    while (f != NULL && !found && fgets(line, sizeof line, f) != NULL) { /* "4:cpu,cpuacct:/a/b", "0::/a/b" */
        char *list = strchr(line, ':'), *path = list != NULL ? strchr(list + 1, ':') : NULL;
        if (path == NULL) continue;
        *path++ = '\0';
        path[strcspn(path, "\n")] = '\0';
        list++;
        for (char *name = list; !found; name = strchr(name, ',') + 1) {
            size_t n = strcspn(name, ",");
            found = n == strlen(controller) && memcmp(name, controller, n) == 0;
            if (strchr(name, ',') == NULL) break;
        }
        if (found) (void)snprintf(out, 400, "%.399s", strcmp(path, "/") == 0 ? "" : path);
    }
    if (f != NULL) fclose(f);
    return found;
}

/* Each limit on the way from the process's own group up to the root holds. In a container the root is its own group. */
static void walk_group(const char *base, char *group, void (*at)(const char *folder, void *out), void *out)
{
    char folder[600];
    for (;;) {
        (void)snprintf(folder, sizeof folder, "%s%s", base, group);
        at(folder, out);
        char *slash = strrchr(group, '/');
        if (slash == NULL) return;
        *slash = '\0';
    }
}

typedef struct room {
    uint64_t total, available;
} room;

static void narrow(room *r, const char *folder, const char *limit_file, const char *used_file)
{
    char a[700], b[700];
    uint64_t limit, used = 0;
    (void)snprintf(a, sizeof a, "%s/%s", folder, limit_file);
    (void)snprintf(b, sizeof b, "%s/%s", folder, used_file);
    if (!read_u64(a, &limit) || limit >= r->total) return; /* v1 writes a huge number for "none" */
    (void)read_u64(b, &used);
    r->total = limit;
    r->available = IMP_MIN(r->available, limit > used ? limit - used : 0);
}
static void memory_v2(const char *folder, void *out)
{
    narrow(out, folder, "memory.max", "memory.current");
}
static void memory_v1(const char *folder, void *out)
{
    narrow(out, folder, "memory.limit_in_bytes", "memory.usage_in_bytes");
}

void imp_sys_memory(uint64_t *total, uint64_t *available)
{
    room r = {0};
    FILE *f = open_below(g_root, "/proc/meminfo");
    char line[128], group[400];
    unsigned long long kib;
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        if (sscanf(line, "MemTotal: %llu kB", &kib) == 1) r.total = (uint64_t)kib << 10;
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) r.available = (uint64_t)kib << 10;
    }
    if (f != NULL) fclose(f);
    if (!own_group("", group)) group[0] = '\0';
    walk_group("/sys/fs/cgroup", group, memory_v2, &r);
    if (own_group("memory", group)) walk_group("/sys/fs/cgroup/memory", group, memory_v1, &r);
    *total = r.total;
    *available = r.available;
}

/* A quota of processor time as whole CPUs, rounded up. */
static void narrow_cpus(uint32_t *n, double quota, double period)
{
    if (quota <= 0 || period <= 0) return;
    double cpus = quota / period;
    uint32_t whole = (uint32_t)IMP_MIN(cpus, 1e6);
    *n = IMP_MIN(*n, IMP_MAX(whole + (cpus > whole ? 1u : 0u), 1u));
}
static void cpu_v2(const char *folder, void *out)
{
    char path[700];
    double quota, period;
    (void)snprintf(path, sizeof path, "%s/cpu.max", folder); /* "200000 100000", "max 100000" */
    FILE *f = open_below(g_root, path);
    if (f == NULL) return;
    if (fscanf(f, "%lf %lf", &quota, &period) == 2) narrow_cpus(out, quota, period);
    fclose(f);
}
static void cpu_v1(const char *folder, void *out)
{
    char path[700];
    uint64_t quota, period;
    (void)snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder); /* -1: none */
    bool some = read_u64(path, &quota) && quota < 1000000000u;
    (void)snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
    if (some && read_u64(path, &period)) narrow_cpus(out, (double)quota, (double)period);
}

/* CPUs' worth of time that the control groups allow. */
static uint32_t cpu_quota(void)
{
    uint32_t n = UINT32_MAX;
    char group[400];
    if (!own_group("", group)) group[0] = '\0';
    walk_group("/sys/fs/cgroup", group, cpu_v2, &n);
    if (own_group("cpu", group)) walk_group("/sys/fs/cgroup/cpu", group, cpu_v1, &n);
    return n;
}

uint64_t imp_sys_resident(void)
{
    unsigned long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f == NULL) return 0;
    bool ok = fscanf(f, "%*u %llu", &pages) == 1;
    fclose(f);
    return ok ? (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

/* The cores of the affinity mask in the order of their first CPUs, each once though it may run two threads: core[c] is 1 +
 * the number of CPU c's core, 0 for CPUs that this process may not use. Returns how many there are. */
static uint32_t list_cores(uint16_t core[CPU_SETSIZE])
{
    cpu_set_t set;
    uint16_t of_first[CPU_SETSIZE] = {0}, n = 0;
    memset(core, 0, CPU_SETSIZE * sizeof *core);
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 0;
    for (int c = 0; c < CPU_SETSIZE; c++) {
        char path[96];
        uint64_t first = (uint64_t)c;
        if (!CPU_ISSET(c, &set)) continue;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", c);
        (void)read_u64(path, &first);
        if (first >= CPU_SETSIZE) first = (uint64_t)c;
        if (of_first[first] == 0) of_first[first] = ++n;
        core[c] = of_first[first];
    }
    return n;
}

uint32_t imp_sys_n_core(void)
{
    uint16_t core[CPU_SETSIZE];
    return IMP_MAX(IMP_MIN(list_cores(core), cpu_quota()), 1u);
}

/* As of the first call, which is one of a thread that may still use them all. */
static uint16_t g_core[CPU_SETSIZE];
static pthread_once_t g_core_once = PTHREAD_ONCE_INIT;

static void find_cores(void)
{
    (void)list_cores(g_core);
}

uint32_t imp_sys_this_core(void)
{
    (void)pthread_once(&g_core_once, find_cores);
    int cpu = sched_getcpu();
    return cpu < 0 || cpu >= CPU_SETSIZE ? UINT32_MAX : g_core[cpu] - 1u;
}

uint64_t imp_sys_thread_id(void)
{
    return (uint64_t)gettid();
}

void imp_sys_pin_thread(uint64_t thread, uint32_t core)
{
    cpu_set_t one;
    (void)pthread_once(&g_core_once, find_cores);
    CPU_ZERO(&one);
    for (int c = 0; c < CPU_SETSIZE && CPU_COUNT(&one) == 0; c++)
        if (g_core[c] == core + 1) CPU_SET(c, &one);
    if (CPU_COUNT(&one) > 0) (void)sched_setaffinity((pid_t)thread, sizeof one, &one);
}
#elif defined(__APPLE__)
void imp_sys_memory(uint64_t *total, uint64_t *available)
{
    size_t n = sizeof *total;
    *total = *available = 0;
    if (sysctlbyname("hw.memsize", total, &n, NULL, 0) != 0) return;
    vm_statistics64_data_t vm;
    mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
    if (host_statistics64(mach_host_self(), HOST_VM_INFO64, (host_info64_t)&vm, &count) != KERN_SUCCESS)
        return;
    uint64_t pages = (uint64_t)vm.free_count + vm.inactive_count + vm.purgeable_count;
    *available = pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

uint64_t imp_sys_resident(void)
{
    mach_task_basic_info_data_t info;
    mach_msg_type_number_t n = MACH_TASK_BASIC_INFO_COUNT;
    kern_return_t r = task_info(mach_task_self(), MACH_TASK_BASIC_INFO, (task_info_t)&info, &n);
    return r == KERN_SUCCESS ? info.resident_size : 0;
}

uint32_t imp_sys_n_core(void)
{
    int v = 0;
    size_t n = sizeof v;
    if (sysctlbyname("hw.perflevel0.physicalcpu", &v, &n, NULL, 0) == 0 && v > 0) return (uint32_t)v;
    n = sizeof v;
    return sysctlbyname("hw.physicalcpu", &v, &n, NULL, 0) == 0 && v > 0 ? (uint32_t)v : 1;
}
#else
void imp_sys_memory(uint64_t *total, uint64_t *available)
{
    *total = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    *available = *total / 2;
}
uint64_t imp_sys_resident(void)
{
    return 0;
}
uint32_t imp_sys_n_core(void)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (uint32_t)n : 1;
}
#endif

#ifndef __linux__
void imp_sys_set_root(const char *root)
{
    (void)root;
}

/* No such calls: the system places threads. */
uint32_t imp_sys_this_core(void)
{
    return UINT32_MAX;
}
uint64_t imp_sys_thread_id(void)
{
    return 0;
}
void imp_sys_pin_thread(uint64_t thread, uint32_t core)
{
    (void)thread, (void)core;
}
#endif

uint32_t imp_sys_max_files(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0) return 256; /* the least that systems of today give */
    return r.rlim_cur > UINT32_MAX ? UINT32_MAX : (uint32_t)r.rlim_cur;
}

void imp_sys_raise_max_files(void)
{
#ifdef __APPLE__
    enum { MOST = 10240 }; /* setrlimit refuses more, whatever the hard limit says */
#else
    enum { MOST = 65536 };
#endif
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0) return;
    rlim_t want = IMP_MIN(r.rlim_max, (rlim_t)MOST);
    if (want <= r.rlim_cur) return;
    r.rlim_cur = want;
    (void)setrlimit(RLIMIT_NOFILE, &r);
}

bool imp_sys_program_path(char *out, size_t cap)
{
    char link[4096];
    const char *path = "/proc/self/exe";
#ifdef __APPLE__
    uint32_t n = sizeof link;
    if (_NSGetExecutablePath(link, &n) != 0) return false;
    path = link;
#endif
    char *real = realpath(path, NULL);
    (void)link;
    if (real == NULL) return false;
    size_t len = strlen(real);
    bool ok = len < cap;
    if (ok) memcpy(out, real, len + 1);
    free(real);
    return ok;
}

bool imp_sys_program_dir(char *out, size_t cap)
{
    char path[4096];
    if (!imp_sys_program_path(path, sizeof path)) return false;
    char *slash = strrchr(path, '/');
    if (slash == NULL || slash == path || (size_t)(slash - path) >= cap) return false;
    *slash = '\0';
    memcpy(out, path, strlen(path) + 1);
    return true;
}
