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
/* One number from a small text file; false when it is absent or says "max". */
static bool read_u64(const char *path, uint64_t *out)
{
    FILE *f = fopen(path, "re");
    unsigned long long v;
    if (f == NULL) return false;
    bool ok = fscanf(f, "%llu", &v) == 1;
    fclose(f);
    if (ok) *out = v;
    return ok;
}

void imp_sys_memory(uint64_t *total, uint64_t *available)
{
    *total = *available = 0;
    FILE *f = fopen("/proc/meminfo", "re");
    char line[128];
    unsigned long long kib;
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        if (sscanf(line, "MemTotal: %llu kB", &kib) == 1) *total = (uint64_t)kib << 10;
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) *available = (uint64_t)kib << 10;
    }
    if (f != NULL) fclose(f);
    uint64_t limit, used; /* a container's limit is the real one */
    if (read_u64("/sys/fs/cgroup/memory.max", &limit) && read_u64("/sys/fs/cgroup/memory.current", &used)) {
        *total = IMP_MIN(*total, limit);
        *available = IMP_MIN(*available, limit > used ? limit - used : 0);
    }
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

/* Walk the cores of the affinity mask, each once though it may run two threads: the first CPU of core `want`, or
 * -1 when there are fewer; *n counts those seen. */
static int core_cpu(uint32_t want, uint32_t *n)
{
    cpu_set_t set, seen;
    CPU_ZERO(&seen);
    *n = 0;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return -1;
    for (int c = 0; c < CPU_SETSIZE; c++) {
        char path[96];
        uint64_t first = (uint64_t)c;
        if (!CPU_ISSET(c, &set)) continue;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", c);
        (void)read_u64(path, &first);
        if (first < CPU_SETSIZE && CPU_ISSET((int)first, &seen)) continue;
        if (first < CPU_SETSIZE) CPU_SET((int)first, &seen);
        if ((*n)++ == want) return c;
    }
    return -1;
}

uint32_t imp_sys_n_core(void)
{
    uint32_t n;
    (void)core_cpu(UINT32_MAX, &n);
    return n == 0 ? 1 : n;
}

void imp_sys_pin_thread(uint32_t core)
{
    uint32_t n;
    cpu_set_t one;
    int cpu = core_cpu(core, &n);
    if (cpu < 0) return;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    (void)pthread_setaffinity_np(pthread_self(), sizeof one, &one);
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
void imp_sys_pin_thread(uint32_t core)
{
    (void)core;
} /* no such call: the system places threads */
#endif

uint32_t imp_sys_max_files(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0) return 256; /* the least that systems of today give */
    return r.rlim_cur > UINT32_MAX ? UINT32_MAX : (uint32_t)r.rlim_cur;
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
