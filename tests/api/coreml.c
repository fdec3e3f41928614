/* The Core ML device in service, through HTTP, over the stand-in of tests/fake: requests are answered by the CPU while the
 * model is converted and compiled, move when it is ready, and none fails when the worker is killed under them. */
#include "client.h"

#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/thread.h"
#include "dev/coreml/coreml.h"
#include "dev/coreml/worker.h"
#include "engine/engine_int.h"
#include "http/http.h"

enum { N_CLIENT = 4, N_TEXT = 3, DIM_MAX = 128 };

static char g_fake[4200];

typedef struct rig {
    char dir[64], ctl[80];
    imp_engine *e;
    imp_model *m;
    imp_http *http;
    uint16_t port;
    uint32_t coreml, cpu; /* units */
} rig;

static void control(const rig *r, const char *words)
{
    char tmp[100];
    snprintf(tmp, sizeof tmp, "%s.new", r->ctl);
    FILE *f = fopen(tmp, "w");
    fputs(words, f);
    fclose(f);
    rename(tmp, r->ctl);
}

/* Believe that unit `best` is by far the fastest. */
static void believe(rig *r, uint32_t best)
{
    imp_mutex_lock(r->e->place_lock);
    for (uint32_t i = 0; i < r->e->n_unit; i++) {
        imp_machine m = r->e->unit[i]->learn.machine;
        m.f[IMP_F_F32].v = m.f[IMP_F_F16].v = i == best ? 1e3 : 1e-3;
        m.f[IMP_F_INT8].v = 0;
        m.f[IMP_F_BW].v = i == best ? 1e4 : 1;
        m.f[IMP_F_LAUNCH].v = m.f[IMP_F_SYNC].v = 0.001;
        imp_learn_init(&r->e->unit[i]->learn, &m);
    }
    imp_mutex_unlock(r->e->place_lock);
}

static void start_with(rig *r, const char *device, const char *words, const char *model, uint32_t n_ctx)
{
    imp_error err = {0};
    memset(r, 0, sizeof *r);
    strcpy(r->dir, "/tmp/imp-coreml-XXXXXX");
    assert_non_null(mkdtemp(r->dir));
    snprintf(r->ctl, sizeof r->ctl, "%s/control", r->dir);
    setenv("FAKE_COREML", r->ctl, 1);
    control(r, words);
    imp_coreml_config c = {.cache_dir = r->dir,
                           .runtime = g_fake,
                           .n_bucket = n_ctx > 64 ? 3 : 2,
                           .bucket = {16, 64, 192},
                           .run_ms = 20000,
                           .retry_ms = 20,
                           .max_fail = 100};
    imp_engine_config ec = {.device = device, .n_thread = 1, .n_ctx = n_ctx};
    imp_http_config h = {.port = 0};
    if (imp_coreml_configure(&c, &err) != IMP_OK || imp_engine_new(&ec, &r->e, &err) != IMP_OK)
        fail_msg("%s", err.text);
    for (uint32_t i = 0; i < r->e->n_unit; i++)
        *(strcmp(r->e->unit[i]->device->ops->kind, "coreml") == 0 ? &r->coreml : &r->cpu) = i;
    believe(r, r->coreml);
    if (imp_engine_load(r->e, model, "m", &r->m, &err) != IMP_OK ||
        imp_http_start(r->e, &h, &r->http, &err) != IMP_OK)
        fail_msg("%s", err.text);
    r->port = imp_http_port(r->http);
}

static void start(rig *r, const char *device, const char *words)
{
    start_with(r, device, words, "tests/data/models/minilm", 64);
}

static void stop(rig *r)
{
    imp_http_stop(r->http, 1000);
    imp_engine_free(r->e);
    imp_sys_remove_tree(r->dir);
}

static int worker_pid(rig *r)
{
    int pid = 0;
    imp_mutex_lock(r->e->lock);
    imp_instance *i = &r->m->inst[r->coreml];
    imp_exec *x = i->embed != NULL ? i->embed : i->generate;
    if (x != NULL) pid = imp_dev_coreml_pid(x);
    imp_mutex_unlock(r->e->lock);
    return pid;
}

/* ---- what an answer says ------------------------------------------------------------------------------------------- */

typedef struct said {
    char device[64], fallback[300], ran_on[120];
    float v[N_TEXT][DIM_MAX];
    size_t dim;
} said;

static const char BODY[] =
    "{\"model\":\"m\",\"input\":[\"a cat\",\"the quick brown fox jumps over the lazy dog and runs "
    "away from all of them at once\",\"x\"],\"impetus\":{\"receipt\":true}}";

/* false: the request failed. */
static bool read_answer(const answer *a, said *out)
{
    memset(out, 0, sizeof *out);
    json_t *o = a->status == 200 ? json_loads(a->body, 0, NULL) : NULL, *d;
    size_t i, k;
    if (!o) return false;
    json_array_foreach(json_object_get(o, "data"), i, d)
    {
        json_t *v = json_object_get(d, "embedding"), *x;
        out->dim = json_array_size(v);
        json_array_foreach(v, k, x) out->v[i % N_TEXT][k % DIM_MAX] = (float)json_number_value(x);
    }
    json_t *r = json_object_get(json_object_get(o, "impetus"), "receipt");
    if (json_is_array(r)) r = json_array_get(r, 0);
    json_t *p = json_object_get(r, "embed");
    const char *dev = json_string_value(json_object_get(p, "device")),
               *fb = json_string_value(json_object_get(p, "fallback")),
               *ran = json_string_value(json_object_get(p, "ran_on"));
    snprintf(out->device, sizeof out->device, "%s", dev ? dev : "");
    snprintf(out->fallback, sizeof out->fallback, "%s", fb ? fb : "");
    snprintf(out->ran_on, sizeof out->ran_on, "%s", ran ? ran : "");
    json_decref(o);
    return i == N_TEXT && out->dim > 0 && out->dim <= DIM_MAX;
}

static double cosine(const float *a, const float *b, size_t n)
{
    double ab = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < n; i++)
        ab += (double)a[i] * b[i], aa += (double)a[i] * a[i], bb += (double)b[i] * b[i];
    return ab / sqrt(aa * bb);
}

/* ---- load ---------------------------------------------------------------------------------------------------------------- */

typedef struct load {
    rig *r;
    said want;
    atomic_bool done;
    atomic_int n_ok, n_bad, n_cpu, n_coreml, n_fallback;
    imp_mutex *lock;
    char why[300], fallback[300], ran_on[120];
} load;

static void client_main(void *arg)
{
    load *l = arg;
    while (!atomic_load(&l->done)) {
        said s;
        answer a = post(l->r->port, "/v1/embeddings", BODY);
        bool ok = read_answer(&a, &s);
        for (int i = 0; ok && i < N_TEXT; i++) ok = cosine(s.v[i], l->want.v[i], s.dim) > 0.9998;
        atomic_fetch_add(ok ? &l->n_ok : &l->n_bad, 1);
        atomic_fetch_add(strcmp(s.device, "coreml0") == 0 ? &l->n_coreml : &l->n_cpu, 1);
        imp_mutex_lock(l->lock);
        if (!ok) snprintf(l->why, sizeof l->why, "%d: %.250s", a.status, a.body ? a.body : "");
        if (s.fallback[0]) {
            atomic_fetch_add(&l->n_fallback, 1);
            strcpy(l->fallback, s.fallback);
        }
        if (s.ran_on[0]) strcpy(l->ran_on, s.ran_on);
        imp_mutex_unlock(l->lock);
        free(a.body);
    }
}

/* Until the counter has grown by n; 30 s at most. */
static void grow(atomic_int *c, int n, const char *what)
{
    int from = atomic_load(c);
    for (int i = 0; i < 6000 && atomic_load(c) < from + n; i++) usleep(5000);
    if (atomic_load(c) < from + n) fail_msg("no %s", what);
}

static bool hardware_says(rig *r, const char *what)
{
    char *units = imp_units_json(r->e);
    bool yes = units && strstr(units, what);
    imp_free(units);
    return yes;
}

static void joins_under_load_and_dies(void **state)
{
    (void)state;
    rig r;
    start(&r, "coreml,cpu", "compile_ms=1500 predict_ms=3");
    assert_string_equal(imp_model_get_info(r.m)->device, "cpu0"); /* the slow one is nobody's home */
    load l = {.r = &r};
    assert_int_equal(imp_mutex_new(&l.lock), IMP_OK);
    answer a = post(r.port, "/v1/embeddings", BODY);
    if (!read_answer(&a, &l.want)) fail_msg("%d %s", a.status, a.body);
    assert_string_equal(l.want.device, "cpu0");
    free(a.body);
    imp_thread *t[N_CLIENT];
    for (int i = 0; i < N_CLIENT; i++) assert_int_equal(imp_thread_start(client_main, &l, &t[i]), IMP_OK);
    grow(&l.n_cpu, 5, "answers of the CPU while the package is made");
    assert_true(hardware_says(&r, "\"state\":\"preparing\""));
    grow(&l.n_coreml, 20, "answers of Core ML");
    assert_true(hardware_says(&r, "{\"model\":\"m\",\"state\":\"ready\",\"doing\":\"ready\"}"));
    for (int k = 0; k < 4; k++) {
        int pid = 0, before = atomic_load(&l.n_fallback);
        for (int i = 0; i < 2000 && (pid = worker_pid(&r)) == 0; i++) usleep(5000);
        assert_true(pid > 0);
        kill(pid, SIGKILL);
        for (int i = 0; i < 2000 && worker_pid(&r) == pid; i++) usleep(2000);
        grow(&l.n_coreml, 10, "answers of Core ML after its worker was killed");
        if (k == 0) assert_true(atomic_load(&l.n_fallback) >= before);
    }
    atomic_store(&l.done, true);
    for (int i = 0; i < N_CLIENT; i++) imp_thread_join(t[i]);
    if (atomic_load(&l.n_bad) != 0)
        fail_msg("%d requests failed, the last: %s", atomic_load(&l.n_bad), l.why);
    assert_true(atomic_load(&l.n_fallback) >= 1);
    if (!strstr(l.fallback, "coreml0 failed: ") ||
        !strstr(l.fallback, "the Core ML worker was killed by signal 9"))
        fail_msg("the receipt says: %s", l.fallback);
    assert_non_null(strstr(l.ran_on, "planned by Core ML: ane 9"));
    imp_mutex_free(l.lock);
    stop(&r);
}

/* A model that Core ML does not take is served all the same, and plan and /api/hardware say why. */
static void goes_on_without(void **state)
{
    (void)state;
    rig r;
    said s;
    start(&r, "coreml,cpu", "load_fail");
    for (int i = 0; i < 2000 && !hardware_says(&r, "\"state\":\"given up\""); i++) usleep(5000);
    assert_true(hardware_says(&r, "Core ML does not load the package: Error in building plan."));
    answer a = post(r.port, "/v1/embeddings", BODY);
    if (!read_answer(&a, &s)) fail_msg("%d %s", a.status, a.body);
    assert_string_equal(s.device, "cpu0");
    free(a.body);
    char *why = imp_explain_json(r.e, 0);
    assert_non_null(strstr(why, "Core ML does not load the package"));
    imp_free(why);
    stop(&r);
}

/* Alone, loading waits for it, and a failure is the load's failure. */
static void alone(void **state)
{
    (void)state;
    rig r;
    said s;
    imp_error err = {0};
    start(&r, "coreml", "compile_ms=300");
    answer a = post(r.port, "/v1/embeddings", BODY);
    if (!read_answer(&a, &s)) fail_msg("%d %s", a.status, a.body);
    assert_string_equal(s.device, "coreml0");
    free(a.body);
    imp_model_unload(r.m);
    control(&r, "load_fail");
    imp_model *m;
    assert_int_not_equal(imp_engine_load(r.e, "tests/data/models/bert", "b", &m, &err), IMP_OK);
    assert_non_null(strstr(err.text, "does not load the package"));
    assert_int_not_equal(imp_engine_load(r.e, "models/stories260K.gguf", "s", &m, &err), IMP_OK);
    assert_non_null(strstr(err.text, "only reads prompts"));
    stop(&r);
}

/* The model leaves while Core ML still compiles it. */
static void unload_while_preparing(void **state)
{
    (void)state;
    rig r;
    start(&r, "coreml,cpu", "compile_ms=20000");
    for (int i = 0; i < 2000 && !hardware_says(&r, "Core ML compiles"); i++) usleep(5000);
    uint64_t t0 = imp_now_ns();
    imp_model_unload(r.m);
    stop(&r);
    assert_true(imp_now_ns() - t0 < 15000000000u);
}

/* ---- prompts read by Core ML, answers by the CPU ---------------------------------------------------------------------- */

typedef struct told {
    int status;
    char text[800], prefill[64], decode[64], fallback[300], ran_on[120];
    int n_prefill, n_decode, n_block;
} told;

static void take_text(json_t *o, const char *key, char *out, size_t cap)
{
    const char *s = json_string_value(json_object_get(o, key));
    snprintf(out, cap, "%s", s ? s : "");
}

/* A greedy answer of n tokens and what its receipt says; more: further keys of the request. */
static void tell(rig *r, const char *prompt, int n, const char *more, told *out)
{
    char body[2000];
    memset(out, 0, sizeof *out);
    snprintf(body, sizeof body,
             "{\"model\":\"m\",\"prompt\":\"%s\",\"max_tokens\":%d,\"temperature\":0,"
             "\"impetus\":{\"receipt\":true%s}}",
             prompt, n, more);
    answer a = post(r->port, "/v1/completions", body);
    out->status = a.status;
    json_t *o = json_loads(a.body ? a.body : "", 0, NULL);
    if (a.status != 200 || !o) {
        snprintf(out->text, sizeof out->text, "%.790s", a.body ? a.body : "");
    } else {
        take_text(json_array_get(json_object_get(o, "choices"), 0), "text", out->text, sizeof out->text);
        json_t *rec = json_object_get(json_object_get(o, "impetus"), "receipt");
        json_t *p = json_object_get(rec, "prefill"), *d = json_object_get(rec, "decode");
        take_text(p, "device", out->prefill, sizeof out->prefill);
        take_text(p, "fallback", out->fallback, sizeof out->fallback);
        take_text(p, "ran_on", out->ran_on, sizeof out->ran_on);
        take_text(d, "device", out->decode, sizeof out->decode);
        out->n_prefill = (int)json_integer_value(json_object_get(p, "tokens"));
        out->n_decode = (int)json_integer_value(json_object_get(d, "tokens"));
        out->n_block = (int)json_integer_value(json_object_get(json_object_get(rec, "kv_moved"), "blocks"));
    }
    json_decref(o);
    free(a.body);
}

static const char *const PROMPT[] = {
    "Once upon a time, there was a little girl named Lily. She loved to play in the park with her friends.",
    "Tom had a big red ball", "One day",
    "The sun was warm. A dog and a cat sat by the door and looked at the birds. The dog wanted to run and "
    "the cat "
    "wanted to sleep. Then a boy came with a bone and a small fish. He was very happy and said"};

static void wait_until(rig *r, const char *state)
{
    for (int i = 0; i < 4000 && !hardware_says(r, state); i++) usleep(5000);
    assert_true(hardware_says(r, state));
}

static void reads_prompts(void **state)
{
    (void)state;
    rig r;
    told alone, t;
    start_with(&r, "coreml,cpu", "compile_ms=3000", "models/stories260K.gguf", 512);
    assert_string_equal(imp_model_get_info(r.m)->device, "cpu0");
    wait_until(&r, "Core ML compiles");
    tell(&r, PROMPT[1], 8, "", &t); /* while the package is made */
    assert_int_equal(t.status, 200);
    assert_string_equal(t.prefill, "cpu0");
    char *why = imp_explain_json(r.e, 0);
    assert_non_null(strstr(why, "Core ML compiles"));
    imp_free(why);
    wait_until(&r, "\"model\":\"m\",\"state\":\"ready\"");
    for (size_t i = 0; i < IMP_COUNT(PROMPT); i++) {
        tell(&r, PROMPT[i], 60, ",\"require\":\"cpu0\"", &alone);
        assert_int_equal(alone.status, 200);
        believe(&r, r.coreml); /* it has learned meanwhile that such a model is as fast anywhere */
        /* of three tokens so little is won that the dispatcher may keep its last choice */
        tell(&r, PROMPT[i], 60, i == 2 ? ",\"require\":\"coreml0>cpu0\"" : "", &t);
        if (t.status != 200 || strcmp(t.prefill, "coreml0") || strcmp(t.decode, "cpu0") || t.fallback[0])
            fail_msg("%d, %s, %s, %s: %s\n%s", t.status, t.prefill, t.decode, t.fallback, t.text,
                     imp_explain_json(r.e, 0));
        assert_string_equal(t.text, alone.text);
        assert_non_null(strstr(t.ran_on, "planned by Core ML: ane"));
        assert_int_equal(t.n_decode, 60); /* the first of them from the prompt's last token */
        assert_int_equal(t.n_block, (t.n_prefill + 63) / 64);
    }
    why = imp_explain_json(r.e, 0);
    assert_non_null(strstr(why, "it only reads prompts, another device has to generate"));
    imp_free(why);
    char long_one[2000] = "";
    for (int i = 0; i < 30; i++)
        strcat(long_one, "the dog ran to the park and "); /* longer than 192 tokens */
    believe(&r, r.coreml);
    tell(&r, long_one, 8, "", &t);
    assert_int_equal(t.status, 200);
    assert_string_equal(t.prefill, "cpu0");
    why = imp_explain_json(r.e, 0);
    assert_non_null(strstr(why, "the prompt is longer than it reads in one piece"));
    imp_free(why);
    tell(&r, long_one, 8, ",\"require\":\"coreml0>cpu0\"", &t);
    assert_int_equal(t.status, 503);
    assert_non_null(strstr(t.text, "longer than it reads"));
    tell(&r, PROMPT[0], 400, "",
         &t); /* the answer outgrows what Core ML's context holds: it is the CPU's that counts */
    assert_string_equal(t.prefill, "coreml0");
    tell(&r, PROMPT[0], 400, ",\"require\":\"cpu0\"", &alone);
    assert_string_equal(t.text, alone.text);
    assert_true(alone.n_decode > 192);
    stop(&r);
}

static atomic_bool g_done;

static void killer_main(void *arg)
{
    rig *r = arg;
    for (int n = 0; !atomic_load(&g_done); n++) {
        int pid = worker_pid(r);
        if (pid > 0) kill(pid, SIGKILL);
        usleep(60000);
    }
}

typedef struct teller {
    rig *r;
    const char *want[IMP_COUNT(PROMPT)];
    atomic_int n_ok, n_coreml, n_fallback;
    char why[300];
} teller;

static void teller_main(void *arg)
{
    teller *l = arg;
    for (size_t k = 0; !atomic_load(&g_done); k++) {
        told t;
        believe(l->r, l->r->coreml);
        size_t i = k % IMP_COUNT(PROMPT);
        tell(l->r, PROMPT[i], 20, "", &t);
        if (t.status != 200 || strcmp(t.text, l->want[i]) != 0) {
            snprintf(l->why, sizeof l->why, "%d: %.250s", t.status, t.text);
            return;
        }
        atomic_fetch_add(&l->n_ok, 1);
        if (strcmp(t.prefill, "coreml0") == 0) atomic_fetch_add(&l->n_coreml, 1);
        if (strstr(t.fallback, "coreml0 failed: ")) atomic_fetch_add(&l->n_fallback, 1);
    }
}

/* Workers die under prompts of several clients: every answer is the same all the same. */
static void prompts_survive(void **state)
{
    (void)state;
    rig r;
    teller l = {.r = &r};
    told want[IMP_COUNT(PROMPT)];
    imp_thread *t[N_CLIENT], *killer;
    start_with(&r, "coreml,cpu", "predict_ms=15", "models/stories260K.gguf", 512);
    wait_until(&r, "\"model\":\"m\",\"state\":\"ready\"");
    for (size_t i = 0; i < IMP_COUNT(PROMPT); i++) {
        tell(&r, PROMPT[i], 20, ",\"require\":\"cpu0\"", &want[i]);
        l.want[i] = want[i].text;
    }
    atomic_store(&g_done, false);
    for (int i = 0; i < N_CLIENT; i++) assert_int_equal(imp_thread_start(teller_main, &l, &t[i]), IMP_OK);
    grow(&l.n_coreml, 4, "prompts read by Core ML");
    assert_int_equal(imp_thread_start(killer_main, &r, &killer), IMP_OK);
    grow(&l.n_fallback, 2, "prompts that were read again elsewhere");
    atomic_store(&g_done, true);
    imp_thread_join(killer);
    for (int i = 0; i < N_CLIENT; i++) imp_thread_join(t[i]);
    if (l.why[0]) fail_msg("%s", l.why);
    stop(&r);
    start_with(&r, "coreml,cpu", "load_fail", "models/stories260K.gguf", 512);
    wait_until(&r, "\"state\":\"given up\"");
    told one;
    tell(&r, PROMPT[0], 20, "", &one);
    assert_string_equal(one.text, want[0].text);
    assert_string_equal(one.prefill, "cpu0");
    tell(&r, PROMPT[0], 20, ",\"require\":\"coreml0>cpu0\"", &one);
    assert_int_equal(one.status, 503);
    assert_non_null(strstr(one.text, "does not load the package"));
    stop(&r);
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], IMP_COREML_WORKER_ARG)) return imp_coreml_worker_main();
    const struct CMUnitTest t[] = {cmocka_unit_test(joins_under_load_and_dies),
                                   cmocka_unit_test(goes_on_without),
                                   cmocka_unit_test(alone),
                                   cmocka_unit_test(unload_while_preparing),
                                   cmocka_unit_test(reads_prompts),
                                   cmocka_unit_test(prompts_survive)};
    char dir[4096];
    if (!imp_sys_program_dir(dir, sizeof dir)) return 1;
    snprintf(g_fake, sizeof g_fake, "%s/../fake/objc_coreml.so", dir);
    if (access(g_fake, R_OK) != 0) {
        puts("1..1\nok 1 - coreml # SKIP the stand-in for Core ML is built on x86-64 only");
        return 0;
    }
    imp_log_set_level((imp_log_level)-1);
    return cmocka_run_group_tests(t, NULL, NULL);
}
