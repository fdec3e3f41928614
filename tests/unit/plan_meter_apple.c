/* plan/meter_apple against a stand-in for IOReport: units of energy, which channels count and which are parts of others,
 * channels that vanish and come back, counters that begin anew, a library without a function, and none at all. What a Mac's
 * own library does was not run here. */
#include "test.h"

#include <dlfcn.h>
#include <math.h>

#include "plan/meter.h"

static void (*put)(const char *name, const char *unit, int64_t value);
static void (*take_away)(const char *name);
static void (*clear)(void);
static int (*live)(void);

static int begin(void **state)
{
    (void)state;
    void *lib = dlopen(FAKE_IOREPORT, RTLD_NOW | RTLD_LOCAL);
    assert_non_null(lib);
    *(void **)&put = dlsym(lib, "fake_ioreport_put");
    *(void **)&take_away = dlsym(lib, "fake_ioreport_remove");
    *(void **)&clear = dlsym(lib, "fake_ioreport_clear");
    *(void **)&live = dlsym(lib, "fake_ioreport_live");
    return put == NULL || take_away == NULL || clear == NULL || live == NULL;
}

static imp_meter *open_meter(imp_unit_kind kind)
{
    imp_meter *m;
    imp_error err;
    assert_int_equal(imp_meter_open_ioreport(FAKE_IOREPORT, kind, &m, &err), IMP_OK);
    assert_string_equal(imp_meter_name(m), "IOReport");
    return m;
}

static void close_meter(imp_meter *m)
{
    imp_meter_close(m);
    assert_int_equal(live(), 0);
    clear();
}

static void is(imp_meter *m, double joules)
{
    double j = -1;
    assert_true(imp_meter_joules(m, &j));
    assert_true(fabs(j - joules) < 1e-9);
}

static void reads_units(void **state)
{
    (void)state;
    static const struct {
        const char *label;
        int64_t in_1_j;
    } unit[] = {{"mJ", 1000}, {"uJ", 1000000}, {"nJ", 1000000000}, {"mJ      ", 1000}};
    for (size_t i = 0; i < IMP_COUNT(unit); i++) {
        put("GPU Energy", unit[i].label, 7 * unit[i].in_1_j);
        imp_meter *m = open_meter(IMP_UNIT_GPU);
        is(m, 0); /* what was used before it was opened is not in it */
        put("GPU Energy", unit[i].label, 9 * unit[i].in_1_j + unit[i].in_1_j / 2);
        is(m, 2.5);
        is(m, 2.5);
        put("GPU Energy", unit[i].label, 10 * unit[i].in_1_j);
        is(m, 3);
        close_meter(m);
    }
}

/* Every channel goes on by 2 to the power of its place, so a sum tells which were in it. */
static void go_on(const char *const *name, int n)
{
    for (int i = 0; i < n; i++) put(name[i], "mJ", 1000 + 1000 * (1 << i));
}

static void totals_not_their_parts(void **state)
{
    (void)state;
    static const char *const base[] = {"ECPU0", "PCPU",     "PCPU1",       "CPU Energy",
                                       "ECPU",  "GPU SRAM", "GPU",         "GPU Energy",
                                       "ANE",   "DRAM",     "PCPU Energy", "AMCC"};
    static const char *const ultra[] = {"DIE_0_CPU Energy", "DIE_0_CPU",        "ANE0_0",    "ANE0_1",
                                        "DIE_1_CPU Energy", "DIE_1_GPU Energy", "ANE0_SRAM", "GPU0"};
    static const char *const old[] = {"PCPU", "PCPU0", "ECPU", "ECPM", "GPU", "ANE0", "ANE0_1"};
    const struct {
        const char *const *name;
        int n;
        double cpu, gpu, npu; /* < 0: it has none */
    } chip[] = {{base, 12, 8, 128, 256}, {ultra, 8, 1 + 16, -1, 4 + 8}, {old, 7, 1 + 4, 16, 32}};
    for (size_t i = 0; i < IMP_COUNT(chip); i++) {
        const double want[] = {chip[i].cpu, chip[i].gpu, chip[i].npu};
        const imp_unit_kind kind[] = {IMP_UNIT_CPU, IMP_UNIT_GPU, IMP_UNIT_NPU};
        for (int k = 0; k < 3; k++) {
            imp_meter *m;
            imp_error err;
            for (int c = 0; c < chip[i].n; c++) put(chip[i].name[c], "mJ", 1000);
            if (want[k] < 0) {
                assert_int_equal(imp_meter_open_ioreport(FAKE_IOREPORT, kind[k], &m, &err), IMP_NOT_FOUND);
                assert_null(m);
                clear();
                continue;
            }
            m = open_meter(kind[k]);
            go_on(chip[i].name, chip[i].n);
            is(m, want[k]);
            close_meter(m);
        }
    }
}

static void a_channel_vanishes(void **state)
{
    (void)state;
    double j;
    put("DIE_0_CPU Energy", "mJ", 1000);
    put("DIE_1_CPU Energy", "mJ", 50000);
    imp_meter *m = open_meter(IMP_UNIT_CPU);
    put("DIE_0_CPU Energy", "mJ", 3000);
    is(m, 2);
    take_away("DIE_1_CPU Energy");
    put("DIE_0_CPU Energy", "mJ", 4000);
    assert_false(imp_meter_joules(m, &j)); /* half a chip is no measurement */
    assert_true(j == 2);
    assert_false(imp_meter_joules(m, &j));
    put("DIE_1_CPU Energy", "mJ", 60000);
    assert_false(imp_meter_joules(m, &j)); /* a base again, of nothing yet */
    put("DIE_1_CPU Energy", "mJ", 60500);
    is(m, 2.5);
    put("DIE_0_CPU Energy", "mJ", 10); /* began anew */
    assert_false(imp_meter_joules(m, &j));
    put("DIE_0_CPU Energy", "mJ", 1010);
    is(m, 3.5);
    put("CPU Energy", "mJ", 1); /* named otherwise from now on: not the sum that was begun */
    assert_false(imp_meter_joules(m, &j));
    take_away("CPU Energy");
    assert_false(imp_meter_joules(m, &j));
    put("DIE_0_CPU Energy", "J", 2000);
    assert_false(imp_meter_joules(m, &j));
    clear();
    assert_false(imp_meter_joules(m, &j));
    close_meter(m);
}

/* A reading that failed leaves no trace in the power of the steps that follow. */
static void steps_go_on(void **state)
{
    (void)state;
    put("GPU Energy", "uJ", 0);
    imp_meter *m = open_meter(IMP_UNIT_GPU);
    imp_power p = {.meter = m};
    uint64_t now = 1000000000;
    for (int k = 1; k <= 40; k++) {
        now += 25000000; /* 25 ms at 20 W */
        put("GPU Energy", "uJ", 500000 * k);
        if (k == 20) take_away("GPU Energy"), put("CPU Energy", "mJ", 1);
        double j = imp_power_step(&p, now, 0.025);
        if (k == 1 || k == 20 || k == 21)
            assert_true(j < 0);
        else
            assert_true(fabs(j - 0.5) < 1e-6);
    }
    close_meter(m);
}

static void refused(const char *library, imp_unit_kind kind, imp_status status, const char *word)
{
    imp_meter *m;
    imp_error err;
    assert_int_equal(imp_meter_open_ioreport(library, kind, &m, &err), status);
    assert_null(m);
    assert_non_null(strstr(err.text, word));
    assert_true(strlen(err.text) < 127); /* /api/hardware shows it whole */
    assert_int_equal(live(), 0);
}

static void says_why_not(void **state)
{
    (void)state;
    refused(FAKE_IOREPORT, IMP_UNIT_CPU, IMP_DEVICE, "no samples"); /* an empty group */
    put("CPU Energy", "mJ", 5);
    refused(FAKE_IOREPORT_CUT, IMP_UNIT_CPU, IMP_UNSUPPORTED, "no IOReportCreateSamplesDelta");
    refused("/nowhere/libIOReport.dylib", IMP_UNIT_CPU, IMP_NOT_FOUND, "/nowhere/libIOReport.dylib");
    refused(FAKE_IOREPORT, IMP_UNIT_NPU, IMP_NOT_FOUND, "no energy channel");
    put("CPU Energy", "kWh", 5);
    refused(FAKE_IOREPORT, IMP_UNIT_CPU, IMP_UNSUPPORTED, "\"CPU Energy\" in \"kWh\"");
    put("CPU Energy", "", 5);
    refused(FAKE_IOREPORT, IMP_UNIT_CPU, IMP_UNSUPPORTED, "no unit");
    put("CPU Energy", "mJ", INT64_MIN); /* what the library answers where there is no plain number */
    refused(FAKE_IOREPORT, IMP_UNIT_CPU, IMP_UNSUPPORTED, "plain number");
    clear();
    put("PCPU", "mJ", 5); /* one cluster of two */
    refused(FAKE_IOREPORT, IMP_UNIT_CPU, IMP_NOT_FOUND, "whole unit");
    clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_units), cmocka_unit_test(totals_not_their_parts),
        cmocka_unit_test(a_channel_vanishes), cmocka_unit_test(steps_go_on), cmocka_unit_test(says_why_not)};
    return cmocka_run_group_tests(tests, begin, NULL);
}
