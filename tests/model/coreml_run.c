/* The Core ML device against ref: the worker process, the Objective-C calls and what is done when they fail, driven through
 * tests/fake/objc_coreml.c, which runs packages by the evaluator. Nothing here has seen Apple's Core ML. */
#include "test.h"

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/thread.h"
#include "dev/coreml/coreml.h"
#include "dev/coreml/worker.h"
#include "model/net.h"

enum { N_SEQ = 24, MAX_LEN = 32, MAX_TOK = N_SEQ * MAX_LEN };

/* ---- a device over the stand-in ---------------------------------------------------------------------------------- */

typedef struct rig {
    char dir[64], ctl[80];
    imp_net *net;
    imp_device *ref, *dev;
    imp_exec *x, *want;
    int32_t token[MAX_TOK], pos[MAX_TOK];
    imp_batch_seq seq[N_SEQ];
    imp_batch b;
} rig;

static char g_fake[4200];

/* What the stand-in is to do from now on. */
static void control(const rig *r, const char *words)
{
    char tmp[100];
    snprintf(tmp, sizeof tmp, "%s.new", r->ctl);
    FILE *f = fopen(tmp, "w");
    fputs(words, f);
    fclose(f);
    rename(tmp, r->ctl);
}

/* Lines of the stand-in's log that begin with `what`; *live: the last "live=" among them. */
static int logged(const rig *r, const char *what, long *live)
{
    char path[100], line[300];
    int n = 0;
    snprintf(path, sizeof path, "%s.log", r->ctl);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, what, strlen(what))) {
            n++;
            if (live && strstr(line, "live=")) *live = strtol(strstr(line, "live=") + 5, NULL, 10);
        }
    if (f) fclose(f);
    return n;
}

static imp_limits limits(uint32_t max_ctx)
{
    return (imp_limits){
        .max_tok = MAX_TOK, .max_seq = N_SEQ, .max_out = 1, .max_ctx = max_ctx, .kv_dtype = IMP_F32};
}

static void rig_open(rig *r, const char *model, const char *words)
{
    char path[200];
    imp_error err = {0};
    memset(r, 0, sizeof *r);
    strcpy(r->dir, "/tmp/imp-coreml-XXXXXX");
    assert_non_null(mkdtemp(r->dir));
    snprintf(r->ctl, sizeof r->ctl, "%s/control", r->dir);
    setenv("FAKE_COREML", r->ctl, 1);
    control(r, words);
    snprintf(path, sizeof path, "tests/data/models/%s", model);
    if (imp_net_open(path, 0, &r->net, &err) != IMP_OK) fail_msg("%s", err.text);
    rng g = {77};
    uint32_t at = 0;
    for (uint32_t i = 0; i < N_SEQ; i++) {
        uint32_t n = i < 2 ? 16 + i : 1 + rng_below(&g, MAX_LEN); /* also both sides of a length's end */
        r->seq[i] = (imp_batch_seq){.first_tok = at, .n_tok = n};
        for (uint32_t k = 0; k < n; k++, at++) {
            r->token[at] = (int32_t)rng_below(&g, r->net->cfg.n_vocab);
            r->pos[at] = (int32_t)k;
        }
    }
    r->b = (imp_batch){.n_tok = at, .n_seq = N_SEQ, .token = r->token, .pos = r->pos, .seq = r->seq};
    imp_limits lim = limits(MAX_LEN);
    assert_int_equal(imp_dev_ref_open(&r->ref, &err), IMP_OK);
    assert_int_equal(r->ref->ops->compile(r->ref, r->net->embed, &lim, &r->want, &err), IMP_OK);
}

static void rig_configure(rig *r)
{
    imp_error err = {0};
    imp_coreml_config c = {.cache_dir = r->dir,
                           .runtime = g_fake,
                           .n_bucket = 2,
                           .bucket = {16, 32},
                           .load_ms = 60000,
                           .run_ms = 20000,
                           .retry_ms = 10,
                           .max_fail = 3};
    assert_int_equal(imp_coreml_configure(&c, &err), IMP_OK);
}

static void rig_compile(rig *r)
{
    imp_error err = {0};
    imp_limits lim = limits(MAX_LEN);
    if (r->dev == NULL && imp_dev_open("coreml", 0, &r->dev, &err) != IMP_OK) fail_msg("%s", err.text);
    if (r->dev->ops->compile(r->dev, r->net->embed, &lim, &r->x, &err) != IMP_OK) fail_msg("%s", err.text);
}

static void rig_close(rig *r)
{
    if (r->x) r->dev->ops->exec_free(r->x);
    if (r->dev) r->dev->ops->close(r->dev);
    r->want->dev->ops->exec_free(r->want);
    r->ref->ops->close(r->ref);
    imp_net_close(r->net);
    imp_sys_remove_tree(r->dir);
}

static imp_status settled(rig *r, char text[300])
{
    return r->dev->ops->state(r->x, true, text, 300);
}

static double cosine(const float *a, const float *b, size_t n)
{
    double ab = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < n; i++)
        ab += (double)a[i] * b[i], aa += (double)a[i] * a[i], bb += (double)b[i] * b[i];
    return ab / sqrt(aa * bb);
}

/* Every text's vector against ref's. */
static void check_run(rig *r, const char *what)
{
    const float *got, *want;
    imp_error err = {0};
    size_t dim = r->net->cfg.embed_dim;
    if (r->dev->ops->run(r->x, &r->b, &got, &err) != IMP_OK) fail_msg("%s: %s", what, err.text);
    assert_int_equal(r->ref->ops->run(r->want, &r->b, &want, &err), IMP_OK);
    for (uint32_t i = 0; i < N_SEQ; i++) {
        double c = cosine(got + i * dim, want + i * dim, dim);
        if (!(c >= 0.9998)) fail_msg("%s, text %u of %u tokens: cosine %.6f", what, i, r->seq[i].n_tok, c);
    }
}

static void expect_down(rig *r, const char *part)
{
    const float *got;
    imp_error err = {0};
    assert_int_equal(r->dev->ops->run(r->x, &r->b, &got, &err), IMP_DEVICE);
    if (!strstr(err.text, part)) fail_msg("\"%s\" does not say \"%s\"", err.text, part);
    assert_null(got);
}

static void expect_ready(rig *r)
{
    char text[300];
    if (settled(r, text) != IMP_OK) fail_msg("%s", text);
}

/* ---- tests ----------------------------------------------------------------------------------------------------------- */

static void vectors_as_ref(void **state)
{
    (void)state;
    static const char *const model[] = {"bert",        "minilm",     "distilbert", "roberta",
                                        "xlm-roberta", "nomic-bert", "modernbert", "qwen3-embedding"};
    for (size_t i = 0; i < IMP_COUNT(model); i++) {
        rig r;
        char text[300];
        rig_open(&r, model[i], "");
        rig_configure(&r);
        rig_compile(&r);
        expect_ready(&r);
        check_run(&r, model[i]);
        r.dev->ops->ran_on(r.x, text, sizeof text);
        assert_non_null(strstr(text, "planned by Core ML: ane 9")); /* 27 parts of 28 in the long run */
        assert_int_equal(logged(&r, "compile", NULL), 1);
        assert_int_equal(logged(&r, "load units=3 function=embed_16", NULL), 1);
        assert_int_equal(logged(&r, "load units=3 function=embed_32", NULL), 1);
        rig_close(&r);
    }
}

/* Another executable of the same model takes the compiled package; objects do not pile up. */
static void compiled_once(void **state)
{
    (void)state;
    rig r;
    long live[2] = {0};
    rig_open(&r, "minilm", "");
    rig_configure(&r);
    for (int k = 0; k < 3; k++) {
        rig_compile(&r);
        expect_ready(&r);
        check_run(&r, "kept");
        if (k < 2) r.dev->ops->exec_free(r.x);
    }
    assert_int_equal(logged(&r, "compile", NULL), 1);
    (void)logged(&r, "predict", &live[0]);
    for (int k = 0; k < 40; k++) check_run(&r, "again");
    (void)logged(&r, "predict", &live[1]);
    assert_int_equal(live[0], live[1]);
    char path[200];
    snprintf(path, sizeof path, "ls %s | grep -c new-", r.dir);
    FILE *p = popen(path, "r");
    assert_int_equal(fgetc(p), '0'); /* nothing half-made is left */
    pclose(p);
    rig_close(&r);
}

/* Layouts and versions that give the same vectors. */
static void other_systems(void **state)
{
    (void)state;
    static const struct {
        const char *words, *ran_on;
        int n_compile;
    } sys[] = {{"pad", "of the cost", 1},    {"f32", "of the cost", 1}, {"pad f32", "of the cost", 1},
               {"no_cost", "of the ops", 1}, {"no_plan", "", 1},        {"old", "", 2},
               {"exdev", "of the cost", 1}};
    for (size_t i = 0; i < IMP_COUNT(sys); i++) {
        rig r;
        char text[300];
        rig_open(&r, "bert", sys[i].words);
        rig_configure(&r);
        rig_compile(&r);
        expect_ready(&r);
        check_run(&r, sys[i].words);
        r.dev->ops->ran_on(r.x, text, sizeof text);
        if (sys[i].ran_on[0] ? !strstr(text, sys[i].ran_on) : text[0])
            fail_msg("%s: \"%s\"", sys[i].words, text);
        assert_int_equal(logged(&r, "compile", NULL), sys[i].n_compile);
        if (!strcmp(sys[i].words, "exdev")) assert_int_equal(logged(&r, "copy", NULL), 1);
        rig_close(&r);
    }
}

/* What Core ML refuses or gets wrong: never ready, with the reason. */
static void given_up(void **state)
{
    (void)state;
    static const struct {
        const char *words, *why;
    } bad[] = {
        {"compile_fail", "does not compile the package: The model is not valid."},
        {"load_fail", "does not load the package: Error in building plan."},
        {"predict_fail", "Unable to compute the prediction"},
        {"wrong_shape", "numbers, not"},
        {"wrong_type", "elements of type 131104"},
        {"short", "shorter than its strides"},
        {"wrong_values", "gives other vectors than the model"},
        {"compile_die", "given up after 3 failures; the last: the Core ML worker was killed by signal 6"},
        {"load_die", "given up after 3 failures"},
        {"predict_die", "given up after 3 failures"}};
    for (size_t i = 0; i < IMP_COUNT(bad); i++) {
        rig r;
        char text[300];
        rig_open(&r, "minilm", bad[i].words);
        rig_configure(&r);
        rig_compile(&r);
        assert_int_equal(settled(&r, text), IMP_DEVICE);
        if (!strstr(text, bad[i].why)) fail_msg("%s: \"%s\"", bad[i].words, text);
        expect_down(&r, "is not ready");
        rig_close(&r);
    }
}

static void a_worker_that_dies(void **state)
{
    (void)state;
    rig r;
    char text[300];
    rig_open(&r, "minilm", "");
    rig_configure(&r);
    rig_compile(&r);
    expect_ready(&r);
    for (int k = 0; k < 2; k++) { /* in a prediction: the step says so, and the next one works */
        control(&r, "die_once");
        expect_down(&r, "the Core ML worker was killed by signal 6");
        assert_int_not_equal(r.dev->ops->state(r.x, false, text, sizeof text), IMP_DEVICE);
        expect_ready(&r);
        check_run(&r, "after a death");
    }
    rig_close(&r);
    rig_open(&r, "minilm", "");
    rig_configure(&r);
    rig_compile(&r);
    expect_ready(&r);
    int pid = imp_dev_coreml_pid(r.x);
    assert_true(pid > 0);
    kill(pid, SIGKILL); /* while idle: noticed without any step */
    for (int k = 0; k < 200 && imp_dev_coreml_pid(r.x) == pid; k++) usleep(20000);
    expect_ready(&r);
    assert_int_not_equal(imp_dev_coreml_pid(r.x), pid);
    check_run(&r, "after a kill");
    rig_close(&r);
}

static void a_worker_that_hangs(void **state)
{
    (void)state;
    rig r;
    imp_error err;
    rig_open(&r, "minilm", "");
    rig_configure(&r);
    imp_coreml_config c = {
        .cache_dir = r.dir, .runtime = g_fake, .n_bucket = 1, .bucket = {32}, .run_ms = 3000, .retry_ms = 10};
    assert_int_equal(imp_coreml_configure(&c, &err), IMP_OK);
    rig_compile(&r);
    expect_ready(&r);
    control(&r, "predict_hang");
    expect_down(&r, "did not answer within 3000 ms");
    control(&r, "");
    expect_ready(&r);
    check_run(&r, "after a hang");
    rig_close(&r);
}

static void slow_first_compile(void **state)
{
    (void)state;
    rig r;
    char text[300];
    rig_open(&r, "minilm", "compile_ms=4000");
    rig_configure(&r);
    uint64_t t0 = imp_now_ns();
    rig_compile(&r);
    assert_int_equal(r.dev->ops->state(r.x, false, text, sizeof text), IMP_NOT_READY);
    expect_down(&r, "is not ready");
    for (int k = 0; k < 500 && logged(&r, "compile", NULL) == 0; k++) usleep(10000);
    assert_int_equal(r.dev->ops->state(r.x, false, text, sizeof text), IMP_NOT_READY);
    assert_non_null(strstr(text, "Core ML compiles"));
    expect_down(&r, "Core ML compiles");
    assert_true(imp_now_ns() - t0 < 4000000000u || logged(&r, "load", NULL) == 0);
    r.dev->ops->exec_free(r.x); /* the way out does not wait for Core ML */
    r.x = NULL;
    assert_int_equal(logged(&r, "load", NULL), 0);
    imp_coreml_config c = {.cache_dir = r.dir,
                           .runtime = g_fake,
                           .n_bucket = 1,
                           .bucket = {32},
                           .load_ms = 1000,
                           .retry_ms = 10};
    imp_error err;
    assert_int_equal(imp_coreml_configure(&c, &err), IMP_OK);
    r.dev->ops->close(r.dev);
    r.dev = NULL;
    rig_compile(&r);
    assert_int_equal(settled(&r, text), IMP_DEVICE);
    assert_non_null(strstr(text, "did not load the model within 1 s"));
    rig_close(&r);
}

static void bad_workers(void **state)
{
    (void)state;
    static const struct {
        const char *program, *speak;
        imp_status status;
    } bad[] = {{"/nowhere/impetus", "", IMP_NOT_FOUND},
               {"/bin/false", "", IMP_DEVICE},
               {"/bin/true", "", IMP_IO},
               {NULL, "garbage", IMP_FORMAT},
               {NULL, "version", IMP_FORMAT},
               {NULL, "size", IMP_FORMAT},
               {NULL, "kind", IMP_FORMAT},
               {NULL, "text", IMP_FORMAT}};
    for (size_t i = 0; i < IMP_COUNT(bad); i++) {
        imp_device *d;
        imp_error err = {0};
        imp_coreml_config c = {.cache_dir = "/tmp", .runtime = g_fake, .program = bad[i].program};
        setenv("FAKE_WORKER", bad[i].speak, 1);
        assert_int_equal(imp_coreml_configure(&c, &err), IMP_OK);
        imp_status s = imp_dev_coreml_open(&d, &err);
        if (s != bad[i].status) fail_msg("%s %s: %d %s", bad[i].program, bad[i].speak, s, err.text);
        assert_true(strlen(err.text) > 10);
        assert_null(d);
    }
    unsetenv("FAKE_WORKER");
    imp_device *d;
    imp_error err = {0};
    imp_coreml_config c = {.cache_dir = "/tmp", .runtime = "/nowhere/objc.so"};
    assert_int_equal(imp_coreml_configure(&c, &err), IMP_OK);
    assert_int_not_equal(imp_dev_coreml_open(&d, &err), IMP_OK);
    assert_non_null(strstr(err.text, "cannot be opened"));
    c = (imp_coreml_config){0};
    assert_int_equal(imp_coreml_configure(&c, &err), IMP_OK);
    assert_int_equal(imp_dev_coreml_open(&d, &err), IMP_NOT_FOUND);
    c.n_bucket = 2, c.bucket[0] = c.bucket[1] = 64;
    assert_int_equal(imp_coreml_configure(&c, &err), IMP_INVALID);
}

static void plans_and_refuses(void **state)
{
    (void)state;
    rig r;
    imp_error err = {0};
    imp_dev_memory mem;
    char path[300], text[300];
    rig_open(&r, "minilm", "");
    rig_configure(&r);
    rig_compile(&r);
    expect_ready(&r);
    imp_limits lim = limits(MAX_LEN);
    assert_int_equal(r.dev->ops->plan(r.dev, r.net->embed, &lim, &mem, &err), IMP_OK);
    snprintf(path, sizeof path, "wc -c < $(find %s -name weight.bin | head -1)", r.dir);
    FILE *p = popen(path, "r");
    assert_non_null(fgets(text, sizeof text, p));
    pclose(p);
    double file = strtod(text, NULL); /* blobs have heads, and tables of norms and masks lie there too */
    if (!(mem.weights > 0.5 * file && mem.weights < 1.05 * file))
        fail_msg("%llu of %s", (unsigned long long)mem.weights, text);
    assert_true(mem.mapped > 0 && mem.scratch > 0 && mem.kv == 0);
    lim.max_ctx = 33;
    assert_int_equal(r.dev->ops->plan(r.dev, r.net->embed, &lim, &mem, &err), IMP_TOO_LARGE);
    assert_int_equal(r.dev->ops->padded(r.dev, 3), 16);
    assert_int_equal(r.dev->ops->padded(r.dev, 17), 32);
    int32_t keep = r.token[0];
    const float *out;
    r.token[0] = 1 << 30; /* a bad batch is the caller's fault: the worker lives on */
    assert_int_equal(r.dev->ops->run(r.x, &r.b, &out, &err), IMP_INVALID);
    r.token[0] = keep;
    check_run(&r, "after a bad batch");
    rig_close(&r);
}

/* The nth system call of the server's side fails: an error or a given-up model, never a crash, and nothing hangs. */
static void faults(void **state)
{
    (void)state;
    rig r;
    rig_open(&r, "minilm", "");
    rig_configure(&r);
    int n_ok = 0, n_failed = 0;
    for (uint64_t n = 1; n < 1500; n = n < 30 ? n + 1 : n + n / 6) {
        imp_error err = {0};
        imp_limits lim = limits(MAX_LEN);
        char text[300];
        imp_sys_fail_at(n);
        imp_status s = imp_dev_coreml_open(&r.dev, &err);
        if (s == IMP_OK) s = r.dev->ops->compile(r.dev, r.net->embed, &lim, &r.x, &err);
        if (s == IMP_OK) s = settled(&r, text);
        if (s == IMP_OK) {
            const float *out;
            s = r.dev->ops->run(r.x, &r.b, &out, &err);
        }
        imp_sys_fail_at(0);
        n_ok += s == IMP_OK;
        n_failed += s != IMP_OK;
        if (r.x) r.dev->ops->exec_free(r.x);
        if (r.dev) r.dev->ops->close(r.dev);
        r.x = NULL;
        r.dev = NULL;
    }
    assert_true(n_failed > 20 && n_ok > 0);
    rig_close(&r);
}

/* What a broken worker might say to a hello. */
static int speak(const char *how)
{
    ml_head h = {.magic = ML_WIRE_MAGIC,
                 .version = ML_WIRE_VERSION,
                 .kind = ML_WELCOME,
                 .n_bytes = ml_wire_size(ML_WELCOME)};
    ml_welcome w = {.functions = 1};
    if (!strcmp(how, "garbage")) h.magic = 0x12345678;
    if (!strcmp(how, "version")) h.version++;
    if (!strcmp(how, "size")) h.n_bytes = 1u << 31;
    if (!strcmp(how, "kind")) h.kind = 77;
    if (!strcmp(how, "text")) memset(w.os, 'x', sizeof w.os);
    ssize_t n = write(3, &h, sizeof h) + write(3, &w, sizeof w);
    usleep(300000);
    return n > 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], IMP_COREML_WORKER_ARG)) {
        const char *how = getenv("FAKE_WORKER");
        return how && *how ? speak(how) : imp_coreml_worker_main();
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vectors_as_ref),     cmocka_unit_test(compiled_once),
        cmocka_unit_test(other_systems),      cmocka_unit_test(given_up),
        cmocka_unit_test(a_worker_that_dies), cmocka_unit_test(a_worker_that_hangs),
        cmocka_unit_test(slow_first_compile), cmocka_unit_test(bad_workers),
        cmocka_unit_test(plans_and_refuses),  cmocka_unit_test(faults)};
    char dir[4096];
    if (!imp_sys_program_dir(dir, sizeof dir)) return 1;
    snprintf(g_fake, sizeof g_fake, "%s/../fake/objc_coreml.so", dir);
    if (access(g_fake, R_OK) != 0) {
        puts("1..1\nok 1 - coreml_run # SKIP the stand-in for Core ML is built on x86-64 only");
        return 0;
    }
    imp_log_set_level((imp_log_level)-1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
