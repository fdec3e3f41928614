/* plan/meter: a powercap tree made by the test, with counters that go on and wrap around, are missing or may not be read;
 * the energy counter of a stand-in for NVIDIA's library; joules of steps against power that is known. */
#include "test.h"

#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plan/meter.h"

static char g_root[64];

static void put(const char *file, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", g_root, file);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void folder(const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", g_root, name);
    assert_int_equal(mkdir(path, 0700), 0);
}

static void package(const char *zone, const char *name, const char *uj, const char *range)
{
    char file[128];
    folder(zone);
    snprintf(file, sizeof file, "%s/name", zone);
    put(file, name);
    snprintf(file, sizeof file, "%s/energy_uj", zone);
    put(file, uj);
    snprintf(file, sizeof file, "%s/max_energy_range_uj", zone);
    put(file, range);
}

static int begin(void **state)
{
    (void)state;
    strcpy(g_root, "/tmp/imp_meter_XXXXXX");
    return mkdtemp(g_root) == NULL;
}
static int end(void **state)
{
    (void)state;
    char cmd[128];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", g_root);
    return system(cmd);
}

static void two_packages_and_wrap(void **state)
{
    (void)state;
    package("intel-rapl:0", "package-0\n", "1000000\n", "262143328850\n");
    package("intel-rapl:1", "package-1\n", "262143000000\n", "262143328850\n");
    package("intel-rapl:0:0", "core\n", "77\n", "262143328850\n"); /* a part of the package */
    package("intel-rapl:2", "psys\n", "5\n", "262143328850\n");    /* the whole machine, packages included */
    package("intel-rapl-mmio:0", "package-0\n", "9\n", "262143328850\n");
    imp_meter *m;
    imp_error err;
    double j;
    assert_int_equal(imp_meter_open_rapl(g_root, &m, &err), IMP_OK);
    assert_string_equal(imp_meter_name(m), "RAPL");
    assert_true(imp_meter_joules(m, &j) && j == 0);
    put("intel-rapl:0/energy_uj", "3500000\n");
    put("intel-rapl:0:0/energy_uj", "999999999\n");
    assert_true(imp_meter_joules(m, &j) && fabs(j - 2.5) < 1e-9);
    put("intel-rapl:1/energy_uj", "671150\n"); /* 328850 to the end, 671150 from the start */
    assert_true(imp_meter_joules(m, &j) && fabs(j - 3.5) < 1e-9);
    put("intel-rapl:1/energy_uj", "rubbish\n");
    assert_false(imp_meter_joules(m, &j));
    imp_meter_close(m);
}

static void says_why_not(void **state)
{
    (void)state;
    imp_meter *m;
    imp_error err;
    assert_int_equal(imp_meter_open_rapl("/nowhere/powercap", &m, &err), IMP_NOT_FOUND);
    assert_null(m);
    assert_non_null(strstr(err.text, "/nowhere/powercap"));
    assert_int_equal(imp_meter_open_rapl(g_root, &m, &err), IMP_NOT_FOUND); /* an empty tree */
    package("intel-rapl:0", "package-0\n", "", "10\n");
    assert_int_equal(imp_meter_open_rapl(g_root, &m, &err), IMP_IO); /* nothing to read in it */
    assert_null(m);
    if (geteuid() != 0) {
        char path[128];
        snprintf(path, sizeof path, "%s/intel-rapl:0/energy_uj", g_root);
        put("intel-rapl:0/energy_uj", "1\n");
        assert_int_equal(chmod(path, 0), 0);
        assert_int_equal(imp_meter_open_rapl(g_root, &m, &err), IMP_IO);
        assert_non_null(strstr(err.text, "root only"));
    }
    assert_int_equal(imp_meter_open_nvml("/nowhere/libnvidia-ml.so.1", 0, &m, &err), IMP_NOT_FOUND);
    assert_null(m);
    assert_int_equal(imp_meter_open(IMP_UNIT_NPU, "coreml", &m, &err), IMP_NOT_FOUND);
}

static void nvml_counter(void **state)
{
    (void)state;
    imp_meter *m;
    imp_error err;
    double a, b;
    assert_int_equal(imp_meter_open_nvml(FAKE_NVML, 0, &m, &err), IMP_OK);
    assert_string_equal(imp_meter_name(m), "NVML");
    assert_true(imp_meter_joules(m, &a) && fabs(a - 2.5) < 1e-9); /* each question adds 2500 mJ */
    assert_true(imp_meter_joules(m, &b) && fabs(b - 5.0) < 1e-9);
    imp_meter_close(m);
    assert_int_equal(imp_meter_open_nvml(FAKE_NVML, 1, &m, &err),
                     IMP_NOT_FOUND); /* that one counts nothing */
    assert_non_null(strstr(err.text, "does not count"));
    assert_int_equal(imp_meter_open_nvml(FAKE_NVML, 7, &m, &err), IMP_NOT_FOUND);
}

/* 40 W while busy, 5 W in between: a step's joules are those of its time at busy power, and idle stretches leave no trace. */
static void steps(void **state)
{
    (void)state;
    imp_meter *m;
    imp_error err;
    char uj[32];
    package("intel-rapl:0", "package-0\n", "0\n", "262143328850\n");
    assert_int_equal(imp_meter_open_rapl(g_root, &m, &err), IMP_OK);
    imp_power none = {0}, p = {.meter = m};
    assert_true(imp_power_step(&none, 1, 0.01) < 0);
    double energy = 0, sum = 0, busy = 0;
    uint64_t now = 1000000000;
    for (int k = 0; k < 200; k++) {
        if (k == 100) { /* idle for 2 s */
            now += 2000000000;
            energy += 2 * 5e6;
        }
        now += 10000000;
        energy += 0.01 * 40e6;
        snprintf(uj, sizeof uj, "%.0f\n", energy);
        put("intel-rapl:0/energy_uj", uj);
        double j = imp_power_step(&p, now, 0.0099);
        if (j < 0) continue;
        sum += j;
        busy += 0.0099;
    }
    assert_true(busy > 1.9);
    assert_true(fabs(sum / busy - 40) < 0.5);
    imp_meter_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(two_packages_and_wrap, begin, end),
        cmocka_unit_test_setup_teardown(says_why_not, begin, end),
        cmocka_unit_test(nvml_counter),
        cmocka_unit_test_setup_teardown(steps, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
