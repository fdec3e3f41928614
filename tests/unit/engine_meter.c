/* Joules of a request: an engine over a powercap tree whose counter the test drives at 40 W; the receipt must say 40 J for
 * every second of device time, split among requests that share steps, and null without a tree. */
#include "test.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/thread.h"
#include "plan/meter.h"

static char g_root[64], g_file[160];
static atomic_bool g_stop;
static atomic_int g_done;

static void write_counter(double joules)
{
    FILE *f = fopen(g_file, "r+"); /* one write of a fixed width: a reader sees the old or the new number */
    if (f == NULL) return;
    fprintf(f, "%018.0f\n", joules * 1e6);
    fclose(f);
}

static void *tick(void *arg)
{
    (void)arg;
    uint64_t t0 = imp_now_ns();
    while (!atomic_load(&g_stop)) {
        write_counter(40e-9 * (double)(imp_now_ns() - t0));
        usleep(200);
    }
    return NULL;
}

static int begin(void **state)
{
    (void)state;
    char path[128];
    strcpy(g_root, "/tmp/imp_emeter_XXXXXX");
    if (mkdtemp(g_root) == NULL) return 1;
    snprintf(path, sizeof path, "%s/intel-rapl:0", g_root);
    if (mkdir(path, 0700) != 0) return 1;
    const char *file[] = {"name", "max_energy_range_uj", "energy_uj"},
               *text[] = {"package-0\n", "262143328850\n", "000000000000000000\n"};
    for (int i = 0; i < 3; i++) {
        snprintf(g_file, sizeof g_file, "%s/%s", path, file[i]);
        FILE *f = fopen(g_file, "w");
        if (f == NULL) return 1;
        fputs(text[i], f);
        fclose(f);
    }
    return 0;
}

static int end(void **state)
{
    (void)state;
    char cmd[128];
    imp_meter_set_rapl_root(NULL);
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", g_root);
    return system(cmd);
}

static void on_event(void *user, uint64_t id, const imp_event *ev)
{
    (void)user, (void)id;
    if (ev->kind == IMP_EVENT_DONE) atomic_fetch_add(&g_done, 1);
}

static double number(const char *json, const char *phase, const char *key)
{
    char words[64];
    const char *p = strstr(json, phase);
    assert_non_null(p);
    snprintf(words, sizeof words, "\"%s\":", key);
    p = strstr(p, words);
    assert_non_null(p);
    p += strlen(words);
    return strncmp(p, "null", 4) == 0 ? -1 : atof(p);
}

static void run(imp_engine *e, imp_model *m, int n, uint64_t *id)
{
    static int32_t ids[40];
    size_t n_ids = 40;
    imp_error err;
    for (int i = 0; i < 40; i++) ids[i] = 5 + i;
    atomic_store(&g_done, 0);
    for (int i = 0; i < n; i++) {
        imp_request r = {.kind = IMP_REQUEST_GENERATE,
                         .ids = ids,
                         .n_ids = &n_ids,
                         .n_input = 1,
                         .max_tok = 400,
                         .ignore_eos = true,
                         .on_event = on_event};
        imp_sampling_default(&r.sampling);
        assert_int_equal(imp_submit(m, &r, &id[i], &err), IMP_OK);
    }
    while (atomic_load(&g_done) < n) usleep(1000);
    (void)e;
}

static void receipts(void **state)
{
    (void)state;
    imp_engine_config c = {.device = "cpu", .n_thread = 1, .n_ctx = 512, .n_parallel = 4, .quiet = true};
    imp_engine *e;
    imp_model *m;
    imp_error err;
    uint64_t id[4];
    pthread_t t;
    imp_meter_set_rapl_root(g_root);
    atomic_store(&g_stop, false);
    assert_int_equal(pthread_create(&t, NULL, tick, NULL), 0);
    assert_int_equal(imp_engine_new(&c, &e, &err), IMP_OK);
    assert_int_equal(imp_engine_load(e, "models/stories260K.gguf", NULL, &m, &err), IMP_OK);
    run(e, m, 1, id);
    double watt = 0, shares = 0;
    for (int k = 0; k < 20 && watt == 0;
         k++) { /* a busy machine may need a few requests before a fair reading */
        run(e, m, 1, id);
        char *r = imp_receipt_json(e, id[0]);
        assert_non_null(r);
        if (number(r, "\"decode\"", "joules") >= 0) {
            watt = number(r, "\"decode\"", "joules") / number(r, "\"decode\"", "ms") * 1e3;
            assert_non_null(strstr(r, "\"joules_from\":\"meter\""));
        }
        imp_free(r);
    }
    assert_true(fabs(watt - 40) < 8);
    run(e, m, 4, id);
    for (int i = 0; i < 4; i++) {
        char *r = imp_receipt_json(e, id[i]);
        shares += number(r, "\"decode\"", "joules") / number(r, "\"decode\"", "ms") * 1e3;
        imp_free(r);
    }
    assert_true(shares > 25 && shares < 60); /* four that share steps use no more than one would */
    char *units = imp_units_json(e);
    assert_non_null(strstr(units, "\"meter\":\"RAPL\""));
    assert_non_null(strstr(units, "energy meter of this machine"));
    imp_free(units);
    imp_engine_free(e);
    atomic_store(&g_stop, true);
    pthread_join(t, NULL);

    imp_meter_set_rapl_root("/nowhere/powercap");
    assert_int_equal(imp_engine_new(&c, &e, &err), IMP_OK);
    assert_int_equal(imp_engine_load(e, "models/stories260K.gguf", NULL, &m, &err), IMP_OK);
    run(e, m, 1, id);
    char *r = imp_receipt_json(e, id[0]);
    assert_true(number(r, "\"decode\"", "joules") < 0);
    imp_free(r);
    units = imp_units_json(e);
    assert_non_null(strstr(units, "/nowhere/powercap is not there"));
    imp_free(units);
    imp_engine_free(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(receipts, begin, end)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
