/* A calibration counts only for the machine it was made on: what a changed processor, system, hardware or driver is called,
 * and an engine that finds such a change measures in short, keeps that, and starts soon all the same. */
#include "test.h"

#include <stdlib.h>
#include <unistd.h>

#include "engine/engine_int.h"
#include "plan/calibrate.h"

static char g_db[64];

static int begin(void **state)
{
    (void)state;
    strcpy(g_db, "/tmp/imp_changed_XXXXXX");
    int fd = mkstemp(g_db);
    if (fd >= 0) close(fd);
    imp_log_set_level(IMP_LOG_ERROR);
    return fd < 0;
}
static int end(void **state)
{
    (void)state;
    char cmd[256];
    snprintf(cmd, sizeof cmd, "rm -f %s %s-wal %s-shm", g_db, g_db, g_db);
    return system(cmd);
}

static void put(imp_store *s, const char *print, double bw)
{
    imp_calibration c = {0};
    imp_error err;
    imp_machine_default(IMP_UNIT_CPU, "cpu0", &c.machine);
    c.machine.f[IMP_F_BW] = (imp_value){bw, bw, bw, IMP_MARK_MEASURED, "test"};
    snprintf(c.fingerprint, sizeof c.fingerprint, "%s", print);
    assert_int_equal(imp_store_put_calibration(s, "cpu0", &c, &err), IMP_OK);
}

static void names_the_change(void **state)
{
    (void)state;
    imp_store *s;
    imp_error err;
    imp_calibration c;
    char was[128], now[128];
    imp_store_machine m = {"x86_64", "6.1.0-13", "#1 SMP Debian 6.1.55-1", 77, "cuda0", "550.54"};
    assert_int_equal(imp_store_open(g_db, &s, &err), IMP_OK);
    imp_store_fingerprint_of(&m, was);
    assert_null(imp_store_changed(s, "cpu0", was)); /* never calibrated */
    put(s, was, 10);
    assert_null(imp_store_changed(s, "cpu0", was));
    static const char *const words[] = {"processor", "system", "system", "memory", "driver"};
    for (int i = 0; i < 5; i++) {
        imp_store_machine x = m;
        if (i == 0) x.arch = "aarch64";
        if (i == 1) x.release = "6.1.0-14";
        if (i == 2) x.build = "#1 SMP Debian 6.1.55-2";
        if (i == 3) x.hardware = 78;
        if (i == 4) x.driver = "560.10";
        imp_store_fingerprint_of(&x, now);
        const char *why = imp_store_changed(s, "cpu0", now);
        assert_non_null(why);
        assert_non_null(strstr(why, words[i]));
        assert_int_equal(imp_store_get_calibration(s, "cpu0", now, &c, &err), IMP_NOT_FOUND);
    }
    imp_store_close(s);
}

static void engine_measures_anew(void **state)
{
    (void)state;
    imp_store *s;
    imp_error err;
    imp_calibration c;
    char now[128], was[128];
    imp_engine *e;
    imp_store_fingerprint("cpu0", now);
    snprintf(was, sizeof was, "%s", now);
    strchr(was, '|')[1] ^= 1; /* another version of the system */
    assert_int_equal(imp_store_open(g_db, &s, &err), IMP_OK);
    put(s, was, 12345);
    imp_store_close(s);
    imp_engine_config cfg = {.device = "cpu", .n_thread = 1, .db_path = g_db, .quiet = true};
    imp_log_set_level(IMP_LOG_ERROR);
    uint64_t t0 = imp_now_ns();
    assert_int_equal(imp_engine_new(&cfg, &e, &err), IMP_OK);
    print_message("# started in %.2f s\n", (double)(imp_now_ns() - t0) * 1e-9);
    assert_true(e->unit[0]->learn.machine.f[IMP_F_BW].mark == IMP_MARK_MEASURED);
    assert_true(e->unit[0]->learn.machine.f[IMP_F_BW].v < 12345);
    imp_engine_free(e);
    assert_int_equal(imp_store_open(g_db, &s, &err), IMP_OK);
    assert_int_equal(imp_store_get_calibration(s, "cpu0", now, &c, &err), IMP_OK);
    assert_null(imp_store_changed(s, "cpu0", now)); /* once is enough */
    imp_store_close(s);
}

/* With its time used up it still measures reading, the first of all, and leaves the rest assumed; given time, it measures
 * everything. */
static void stops_in_time(void **state)
{
    (void)state;
    static const imp_field later[] = {IMP_F_F32, IMP_F_INT8, IMP_F_LAUNCH, IMP_F_SYNC, IMP_F_HAND_OUT};
    imp_error err;
    imp_engine *e;
    imp_engine_config cfg = {.device = "cpu", .n_thread = 1, .db_path = g_db, .quiet = true};
    assert_int_equal(imp_engine_new(&cfg, &e, &err), IMP_OK);
    for (int enough = 0; enough < 2; enough++) {
        imp_calibration c;
        bool cut = enough;
        uint64_t t0 = imp_now_ns();
        assert_int_equal(
            imp_calibrate_short(e->unit[0]->device, IMP_UNIT_CPU, 1, enough ? 600000 : 0, &c, &cut, &err),
            IMP_OK);
        print_message("# %s: %.2f s\n", enough ? "whole" : "cut", (double)(imp_now_ns() - t0) * 1e-9);
        assert_true(cut == !enough);
        assert_true(c.machine.f[IMP_F_BW].mark == IMP_MARK_MEASURED && c.machine.f[IMP_F_BW].v > 0);
        for (size_t i = 0; i < IMP_COUNT(later); i++)
            assert_true((c.machine.f[later[i]].mark == IMP_MARK_MEASURED) == enough);
    }
    imp_engine_free(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(names_the_change, begin, end),
                                       cmocka_unit_test_setup_teardown(engine_measures_anew, begin, end),
                                       cmocka_unit_test_setup_teardown(stops_in_time, begin, end)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
