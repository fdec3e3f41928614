/* base/machine: memory and processor limits of control groups, over copies of /proc and /sys that the test makes. */
#include "test.h"

#include <stdlib.h>
#include <sys/stat.h>

#include "base/base.h"

static char g_root[64];

static void put(const char *path, const char *text)
{
    char full[300];
    for (const char *p = strchr(path + 1, '/'); p != NULL; p = strchr(p + 1, '/')) {
        snprintf(full, sizeof full, "%s%.*s", g_root, (int)(p - path), path);
        (void)mkdir(full, 0700);
    }
    snprintf(full, sizeof full, "%s%s", g_root, path);
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static int begin(void **state)
{
    (void)state;
    strcpy(g_root, "/tmp/imp_machine_XXXXXX");
    if (mkdtemp(g_root) == NULL) return 1;
    imp_sys_set_root(g_root);
    put("/proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n");
    return 0;
}
static int end(void **state)
{
    (void)state;
    char cmd[128];
    imp_sys_set_root(NULL);
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", g_root);
    return system(cmd);
}

static void memory_is(uint64_t total, uint64_t available)
{
    uint64_t t, a;
    imp_sys_memory(&t, &a);
    assert_int_equal(t, total);
    assert_int_equal(a, available);
}

static void unified(void **state)
{
    (void)state;
    memory_is(16ull << 30, 8ull << 30); /* no groups at all */
    put("/proc/self/cgroup", "0::/slice/box\n");
    put("/sys/fs/cgroup/slice/box/memory.max", "max\n");
    put("/sys/fs/cgroup/slice/box/memory.current", "1073741824\n");
    memory_is(16ull << 30, 8ull << 30);
    put("/sys/fs/cgroup/slice/box/memory.max", "4294967296\n");
    memory_is(4ull << 30, 3ull << 30);
    put("/sys/fs/cgroup/slice/memory.max", "2147483648\n"); /* a parent's limit holds too */
    put("/sys/fs/cgroup/slice/memory.current", "2000000000\n");
    memory_is(2ull << 30, (2ull << 30) - 2000000000ull);
    put("/sys/fs/cgroup/slice/memory.current", "3000000000\n");
    memory_is(2ull << 30, 0);
    put("/proc/self/cgroup", "0::/\n"); /* a container sees its own group as the root */
    put("/sys/fs/cgroup/memory.max", "6442450944\n");
    put("/sys/fs/cgroup/memory.current", "0\n");
    memory_is(6ull << 30, 6ull << 30);
}

static void version_1(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "7:cpu,cpuacct:/docker/x\n6:memory:/docker/x\n1:name=systemd:/y\n");
    put("/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "9223372036854771712\n");
    memory_is(16ull << 30, 8ull << 30);
    put("/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "3221225472\n");
    put("/sys/fs/cgroup/memory/docker/x/memory.usage_in_bytes", "1073741824\n");
    memory_is(3ull << 30, 2ull << 30);
}

static void quotas(void **state)
{
    (void)state;
    uint32_t all = imp_sys_n_core();
    put("/proc/self/cgroup", "0::/box\n");
    put("/sys/fs/cgroup/box/cpu.max", "max 100000\n");
    assert_int_equal(imp_sys_n_core(), all);
    put("/sys/fs/cgroup/box/cpu.max", "50000 100000\n"); /* half a CPU is one thread */
    assert_int_equal(imp_sys_n_core(), 1);
    put("/sys/fs/cgroup/box/cpu.max", "150000 100000\n");
    assert_int_equal(imp_sys_n_core(), IMP_MIN(all, 2u));
    put("/sys/fs/cgroup/box/cpu.max", "rubbish\n");
    assert_int_equal(imp_sys_n_core(), all);
    put("/proc/self/cgroup", "7:cpu,cpuacct:/y\n");
    put("/sys/fs/cgroup/cpu/y/cpu.cfs_quota_us", "100000\n");
    put("/sys/fs/cgroup/cpu/y/cpu.cfs_period_us", "100000\n");
    assert_int_equal(imp_sys_n_core(), 1);
    put("/sys/fs/cgroup/cpu/y/cpu.cfs_quota_us", "-1\n");
    assert_int_equal(imp_sys_n_core(), all);
}

int main(void)
{
#ifdef __linux__
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(unified, begin, end),
                                       cmocka_unit_test_setup_teardown(version_1, begin, end),
                                       cmocka_unit_test_setup_teardown(quotas, begin, end)};
    return cmocka_run_group_tests(tests, NULL, NULL);
#else
    (void)unified, (void)version_1, (void)quotas, (void)begin, (void)end;
    return 0;
#endif
}
