/* The engine with several devices, over real arithmetic: simulated units compute on the CPU, so every route must give
 * the very bytes that one CPU gives. */
#include "test.h"

#include <unistd.h>

#include "base/thread.h"
#include "dev/sim/sim.h"
#include "engine/engine_int.h"

#define MODEL "models/stories260K.gguf"

typedef struct answer {
    imp_mutex *mu;
    imp_cond *cv;
    char text[8192];
    size_t n;
    int n_done;
    imp_finish finish;
    imp_usage usage;
    char why[500];
} answer;

static void on_event(void *user, uint64_t id, const imp_event *ev)
{
    (void)id;
    answer *a = user;
    imp_mutex_lock(a->mu);
    if (ev->kind == IMP_EVENT_TEXT && a->n + ev->n_text < sizeof a->text) {
        memcpy(a->text + a->n, ev->text, ev->n_text);
        a->n += ev->n_text;
    }
    if (ev->kind == IMP_EVENT_DONE) {
        a->n_done++;
        a->finish = ev->finish;
        a->usage = ev->usage;
        if (ev->error) snprintf(a->why, sizeof a->why, "%s", ev->error->text);
        imp_cond_broadcast(a->cv);
    }
    imp_mutex_unlock(a->mu);
}

static void answer_init(answer *a)
{
    memset(a, 0, sizeof *a);
    assert_int_equal(imp_mutex_new(&a->mu), IMP_OK);
    assert_int_equal(imp_cond_new(&a->cv), IMP_OK);
}

static void answer_wait(answer *a)
{
    imp_mutex_lock(a->mu);
    while (a->n_done == 0) imp_cond_wait(a->cv, a->mu);
    imp_mutex_unlock(a->mu);
    assert_int_equal(a->n_done, 1);
}

static void answer_deinit(answer *a)
{
    imp_mutex_free(a->mu);
    imp_cond_free(a->cv);
}

typedef struct rig {
    imp_engine *e;
    imp_model *m;
    int32_t *ids;
    size_t n_ids;
} rig;

static rig rig_of(const char *device, const char *db, uint32_t n_ctx)
{
    rig r = {0};
    imp_error err = {0};
    imp_engine_config c = {
        .device = device, .n_thread = 1, .n_ctx = n_ctx, .n_parallel = 8, .n_batch = 64, .db_path = db};
    if (imp_engine_new(&c, &r.e, &err) != IMP_OK) fail_msg("%s", err.text);
    if (imp_engine_load(r.e, MODEL, "m", &r.m, &err) != IMP_OK) fail_msg("%s", err.text);
    static const char text[] =
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park with her friends. One day, she saw a big tree and a small bird that could not fly. "
        "The bird was sad and wanted to go home to its mother, who lived in the forest far away.";
    assert_int_equal(imp_tokenize(r.m, text, sizeof text - 1, IMP_TOK_ADD_SPECIAL, &r.ids, &r.n_ids, &err),
                     IMP_OK);
    return r;
}

static rig rig_new(const char *device, const char *db)
{
    return rig_of(device, db, 512);
}

static void rig_free(rig *r)
{
    imp_free(r->ids);
    imp_engine_free(r->e);
}

static uint64_t ask(const rig *r, answer *a, const char *require, uint64_t seed, imp_status want)
{
    imp_error err = {0};
    imp_request q = {.kind = IMP_REQUEST_GENERATE,
                     .ids = r->ids,
                     .n_ids = &r->n_ids,
                     .n_input = 1,
                     .max_tok = 80,
                     .on_event = on_event,
                     .user = a,
                     .require = require};
    imp_sampling_default(&q.sampling);
    q.sampling.seed = seed;
    uint64_t id = 0;
    imp_status s = imp_submit(r->m, &q, &id, &err);
    if (s != want) fail_msg("submit: %s", err.text);
    if (s != IMP_OK) snprintf(a->why, sizeof a->why, "%s", err.text);
    return id;
}

/* Make sure that both units hold the model, whatever the prediction says of so small a one. */
static void load_everywhere(rig *r)
{
    imp_error err;
    for (uint32_t i = 0; i < r->e->n_unit; i++)
        if (r->m->inst[i].sched == NULL)
            assert_int_equal(imp_instance_open(r->m, r->e->unit[i], &err), IMP_OK);
}

/* Believe that unit `pre` is the one for prompts and `dec` for generating. */
static void believe(rig *r, uint32_t pre, uint32_t dec)
{
    imp_mutex_lock(r->e->place_lock);
    for (uint32_t i = 0; i < r->e->n_unit; i++) {
        imp_machine m = r->e->unit[i]->learn.machine;
        double fast = 1e3, slow = 1e-3;
        m.f[IMP_F_F32].v = m.f[IMP_F_F16].v = i == pre ? fast : slow;
        m.f[IMP_F_INT8].v = 0;
        m.f[IMP_F_BW].v = i == dec ? 1e5 : 0.5;
        m.f[IMP_F_CACHE].v = 0;
        m.f[IMP_F_LAUNCH].v = m.f[IMP_F_SYNC].v = 0.001;
        if (i == dec) m.f[IMP_F_F32].v = m.f[IMP_F_F16].v = 0.05;
        if (i == pre) m.f[IMP_F_BW].v = 5;
        m.f[IMP_F_LINK].v = 1000;
        bool sim = m.simulated;
        imp_learn_init(&r->e->unit[i]->learn, &m);
        r->e->unit[i]->learn.machine.simulated = sim;
    }
    imp_mutex_unlock(r->e->place_lock);
}

static const imp_device_ops *quick; /* what a slowed device really does */

static void split_gives_the_same_bytes(void **state)
{
    (void)state;
    rig one = rig_new("cpu", NULL);
    answer want[4];
    for (int k = 0; k < 4; k++) {
        answer_init(&want[k]);
        ask(&one, &want[k], NULL, 100 + k, IMP_OK);
        answer_wait(&want[k]);
        assert_true(want[k].n > 40);
    }
    rig two = rig_new("cpu,sim:apple-m3-max/gpu", NULL);
    load_everywhere(&two);
    int n_split = 0;
    for (uint32_t pre = 0; pre < 2; pre++) {
        for (int k = 0; k < 4; k++) {
            believe(&two, pre, 1 - pre);
            answer a;
            answer_init(&a);
            uint64_t id = ask(&two, &a, NULL, 100 + k, IMP_OK);
            answer_wait(&a);
            assert_int_equal(a.finish, want[k].finish);
            assert_string_equal(a.text, want[k].text);
            assert_int_equal(a.usage.n_generated, want[k].usage.n_generated);
            char *receipt = imp_receipt_json(two.e, id);
            assert_non_null(receipt);
            const char *p = strstr(receipt, "\"prefill\":{\"device\":\"cpu0\""),
                       *d = strstr(receipt, "\"decode\":{\"device\":\"cpu0\"");
            n_split += (p == NULL) != (d == NULL);
            assert_null(strstr(receipt, "fallback\":\""));
            assert_non_null(strstr(receipt, "SIMULATED"));
            imp_free(receipt);
            answer_deinit(&a);
        }
    }
    assert_int_equal(n_split, 8); /* both directions were really split */
    for (int k = 0; k < 4; k++) answer_deinit(&want[k]);
    rig_free(&two);
    rig_free(&one);
}

/* The unit that will decode takes blocks in while the other one still prefills, and the receipt says how much of the copying
 * nobody waited for. Each step of the first is made to take a while, so that the second has its chance. */
static imp_status run_slowly(imp_exec *x, const imp_batch *b, const float **out, imp_error *err)
{
    usleep(4000);
    return quick->run(x, b, out, err);
}

static void cache_moves_while_prefill_runs(void **state)
{
    (void)state;
    static imp_device_ops slow;
    rig one = rig_new("cpu", NULL), two = rig_new("cpu,sim:apple-m3-max/gpu", NULL);
    int32_t ids[400];
    for (int i = 0; i < 400; i++) ids[i] = i == 0 ? 1 : 3 + i * 7 % 500;
    imp_free(one.ids), imp_free(two.ids);
    one.ids = two.ids = ids, one.n_ids = two.n_ids = 400;
    answer want, a;
    answer_init(&want);
    ask(&one, &want, NULL, 9, IMP_OK);
    answer_wait(&want);
    load_everywhere(&two);
    quick = two.e->unit[0]->device->ops;
    slow = *quick;
    slow.run = run_slowly;
    two.e->unit[0]->device->ops = &slow;
    answer_init(&a);
    uint64_t id = ask(&two, &a, "cpu0>apple-m3-max/gpu", 9, IMP_OK);
    answer_wait(&a);
    assert_string_equal(a.text, want.text);
    char *receipt = imp_receipt_json(two.e, id);
    const char *p = strstr(receipt, "\"kv_moved\":{\"blocks\":7,");
    double bytes, early_ms, late_ms;
    int n_early;
    assert_non_null(p);
    assert_int_equal(sscanf(strstr(p, "\"bytes\""),
                            "\"bytes\":%lf,\"early_blocks\":%d,\"overlapped_ms\":%lf,\"exposed_ms\":%lf",
                            &bytes, &n_early, &early_ms, &late_ms),
                     4);
    assert_true(bytes == 7 * 40960 && early_ms > 0 && late_ms > 0);
    assert_in_range(n_early, 4, 6); /* of six that were there before the last step */
    imp_free(receipt);
    char *text = imp_explain_json(two.e, id);
    assert_non_null(strstr(text, "\"exposed_ms\":")); /* predicted, with the candidate, and measured */
    imp_free(text);
    answer_deinit(&a), answer_deinit(&want);
    one.ids = two.ids = NULL;
    rig_free(&two), rig_free(&one);
}

/* 24 at once over three units, one dies in between: every request ends well, with the bytes it has alone. */
static void a_dead_unit_fails_nothing(void **state)
{
    (void)state;
    rig one = rig_new("cpu", NULL);
    answer want;
    answer_init(&want);
    ask(&one, &want, NULL, 7, IMP_OK);
    answer_wait(&want);
    for (uint32_t victim = 0; victim < 3; victim++) {
        rig r = rig_new("sim:apple-m4", NULL); /* cpu, gpu, ane */
        load_everywhere(&r);
        assert_int_equal(r.e->n_unit, 3);
        believe(&r, victim, victim == 2 ? 1 : 2);
        enum { N = 24 };
        answer a[N];
        for (int i = 0; i < N; i++) answer_init(&a[i]), ask(&r, &a[i], NULL, 7, IMP_OK);
        usleep(3000 * (victim + 1));
        imp_dev_sim_kill(r.e->unit[victim]->device, true);
        for (int i = 0; i < N; i++) {
            answer_wait(&a[i]);
            assert_string_equal(a[i].why, "");
            assert_string_equal(a[i].text, want.text);
            answer_deinit(&a[i]);
        }
        answer b; /* and what comes later goes elsewhere at once */
        answer_init(&b);
        ask(&r, &b, NULL, 7, IMP_OK);
        answer_wait(&b);
        assert_string_equal(b.text, want.text);
        answer_deinit(&b);
        rig_free(&r);
    }
    answer_deinit(&want);
    rig_free(&one);
}

static void all_dead_is_an_error(void **state)
{
    (void)state;
    rig r = rig_new("sim:apple-m4", NULL);
    load_everywhere(&r);
    for (uint32_t i = 0; i < 3; i++) imp_dev_sim_kill(r.e->unit[i]->device, true);
    answer a;
    answer_init(&a);
    ask(&r, &a, NULL, 7, IMP_OK);
    answer_wait(&a);
    assert_int_equal(a.finish, IMP_FINISH_ERROR);
    answer_deinit(&a);
    rig_free(&r);
}

static void required_device(void **state)
{
    (void)state;
    rig r = rig_new("cpu,sim:apple-m3-max/ane", NULL);
    load_everywhere(&r);
    static const char *const name[] = {"cpu0", "apple-m3-max/ane"};
    for (int i = 0; i < 2; i++) {
        answer a;
        answer_init(&a);
        uint64_t id = ask(&r, &a, name[i], 1, IMP_OK);
        answer_wait(&a);
        char *receipt = imp_receipt_json(r.e, id), need[100];
        snprintf(need, sizeof need, "\"decode\":{\"device\":\"%s\"", name[i]);
        assert_non_null(strstr(receipt, need));
        imp_free(receipt);
        char *why = imp_explain_json(r.e, id);
        assert_non_null(strstr(why, "another device is asked for"));
        imp_free(why);
        answer_deinit(&a);
    }
    answer a;
    answer_init(&a);
    ask(&r, &a, "gpu7", 1, IMP_NOT_READY);
    assert_non_null(strstr(a.why, "no such device"));
    imp_dev_sim_kill(r.e->unit[1]->device, true);
    ask(&r, &a, name[1], 1, IMP_OK); /* not known yet to be dead: it moves */
    answer_wait(&a);
    ask(&r, &a, name[1], 1, IMP_NOT_READY);
    assert_non_null(strstr(a.why, "failed"));
    answer_deinit(&a);
    rig_free(&r);
}

/* The engine ends while every unit still computes: each request gets its one final event, and the unit that is done
 * first does not take the model away from the others. */
static void quitting_under_load(void **state)
{
    (void)state;
    enum { N = 24 };
    for (int round = 0; round < 15; round++) {
        rig r = rig_new("cpu,sim:apple-m3-max/gpu", NULL);
        static answer a[N];
        for (int i = 0; i < N; i++) {
            answer_init(&a[i]);
            ask(&r, &a[i], i % 3 == 0 ? "cpu0" : NULL, (uint64_t)i, IMP_OK);
        }
        rig_free(&r);
        for (int i = 0; i < N; i++) {
            assert_int_equal(a[i].n_done, 1);
            answer_deinit(&a[i]);
        }
    }
}

static void cancel_reaches_every_unit(void **state)
{
    (void)state;
    rig r = rig_new("sim:apple-m4", NULL);
    load_everywhere(&r);
    believe(&r, 0, 1);
    for (int k = 0; k < 20; k++) {
        answer a;
        answer_init(&a);
        uint64_t id = ask(&r, &a, NULL, 3, IMP_OK);
        usleep(k * 200);
        imp_cancel(r.e, id);
        answer_wait(&a); /* cancelled, or it was faster: one final event either way */
        answer_deinit(&a);
    }
    imp_model_unload(r.m);
    rig_free(&r);
}

/* Clients look a model up and submit while it is unloaded and loaded again: each gets its one answer or is refused. */
typedef struct unload_client {
    imp_engine *e;
    imp_thread *t;
    atomic_bool stop;
    int n_ok, n_refused;
} unload_client;

static void unload_client_main(void *arg)
{
    unload_client *c = arg;
    while (!atomic_load(&c->stop)) {
        imp_model *m = imp_engine_find(c->e, "m");
        if (m == NULL) continue;
        static const int32_t ids[] = {1, 403, 407, 261, 378};
        size_t n = IMP_COUNT(ids);
        answer a;
        answer_init(&a);
        imp_request q = {.kind = IMP_REQUEST_GENERATE,
                         .ids = ids,
                         .n_ids = &n,
                         .n_input = 1,
                         .max_tok = 20,
                         .on_event = on_event,
                         .user = &a};
        imp_sampling_default(&q.sampling);
        uint64_t id;
        imp_error err;
        if (imp_submit(m, &q, &id, &err) == IMP_OK) {
            answer_wait(&a);
            assert_true(a.finish != IMP_FINISH_ERROR);
            c->n_ok++;
        } else {
            c->n_refused++;
        }
        assert_int_equal(imp_model_get_info(m)->n_vocab, 512); /* whole until it is released */
        imp_model_release(m);
        answer_deinit(&a);
    }
}

static void unloading_under_load(void **state)
{
    (void)state;
    rig r = rig_new("cpu,sim:apple-m3-max/gpu", NULL);
    imp_error err;
    enum { N = 3 };
    unload_client c[N] = {{0}};
    for (int i = 0; i < N; i++) {
        c[i].e = r.e;
        assert_int_equal(imp_thread_start(unload_client_main, &c[i], &c[i].t), IMP_OK);
    }
    for (int round = 0; round < 12; round++) {
        usleep(2000 + 3000 * (round % 3));
        imp_model_unload(r.m);
        if (imp_engine_load(r.e, MODEL, "m", &r.m, &err) != IMP_OK) fail_msg("%s", err.text);
    }
    int n_ok = 0;
    for (int i = 0; i < N; i++) atomic_store(&c[i].stop, true), imp_thread_join(c[i].t), n_ok += c[i].n_ok;
    assert_true(n_ok > 0);
    rig_free(&r);
}

/* A unit that takes long to compile does not keep the model waiting: it joins later and then takes requests. */
static atomic_bool compile_may_end;

static imp_status compile_slowly(imp_device *d, const imp_graph *g, const imp_limits *lim, imp_exec **out,
                                 imp_error *err)
{
    while (!atomic_load(&compile_may_end)) usleep(500);
    return quick->compile(d, g, lim, out, err);
}

static void slow_unit_joins_later(void **state)
{
    (void)state;
    static imp_device_ops slow;
    imp_engine *e;
    imp_error err = {0};
    imp_engine_config c = {.device = "cpu,sim:apple-m3-max/gpu", .n_thread = 1, .n_ctx = 512};
    assert_int_equal(imp_engine_new(&c, &e, &err), IMP_OK);
    quick = e->unit[1]->device->ops;
    slow = *quick;
    slow.slow_compile = true;
    slow.compile = compile_slowly;
    e->unit[1]->device->ops = &slow;
    rig r = {.e = e};
    assert_int_equal(imp_engine_load(e, MODEL, "m", &r.m, &err), IMP_OK);
    int32_t one = 1;
    r.ids = &one;
    r.n_ids = 1;
    answer a, b;
    answer_init(&a);
    ask(&r, &a, "cpu0", 1, IMP_OK);
    answer_wait(&a);
    ask(&r, &a, "apple-m3-max/gpu", 1, IMP_NOT_READY);
    if (r.m->n_ref == 0) assert_int_equal(imp_instance_open_later(r.m, e->unit[1]), IMP_OK);
    atomic_store(&compile_may_end, true);
    for (bool there = false; !there; usleep(1000)) {
        imp_mutex_lock(e->lock);
        there = r.m->inst[1].sched != NULL;
        imp_mutex_unlock(e->lock);
    }
    answer_init(&b);
    ask(&r, &b, "apple-m3-max/gpu", 1, IMP_OK);
    answer_wait(&b);
    assert_string_equal(a.text, b.text);
    answer_deinit(&a);
    answer_deinit(&b);
    imp_engine_free(e);
}

/* What was learned and the explanations outlive the process; a damaged file is set aside. */
static void store_survives(void **state)
{
    (void)state;
    char db[] = "/tmp/impetus-test-XXXXXX", path[80], aside[100];
    assert_non_null(mkdtemp(db));
    snprintf(path, sizeof path, "%s/deep/impetus.db", db);
    rig r = rig_new("cpu", path);
    answer a;
    answer_init(&a);
    uint64_t id = ask(&r, &a, NULL, 3, IMP_OK);
    answer_wait(&a);
    answer_deinit(&a);
    uint64_t n_seen = r.e->unit[0]->learn.n_observed;
    assert_true(n_seen > 0);
    rig_free(&r);
    r = rig_new("cpu", path);
    assert_true(r.e->unit[0]->learn.n_observed >= n_seen);
    char *json;
    imp_error err;
    assert_int_equal(imp_store_get_explanation(r.e->store, 0, &json, &err), IMP_OK);
    char need[40];
    snprintf(need, sizeof need, "{\"id\":%llu,", (unsigned long long)id);
    assert_int_equal(strncmp(json, need, strlen(need)), 0);
    imp_free(json);
    rig_free(&r);
    FILE *f = fopen(path, "w");
    for (int i = 0; i < 5000; i++) fputs("not a database ", f);
    fclose(f);
    unlink(strcat(strcpy(aside, path), "-wal"));
    r = rig_new("cpu", path);
    assert_non_null(r.e->store);
    assert_true(imp_store_was_rebuilt(r.e->store));
    rig_free(&r);
    strcat(strcpy(aside, path), ".damaged");
    assert_int_equal(access(aside, F_OK), 0);
}

/* ---- the lane of embeddings ----------------------------------------------------------------------------- */

typedef struct lane {
    rig r;
    imp_model *vectors; /* on the same unit */
    _Atomic bool stop;
    _Atomic uint32_t n_embedded;
} lane;

typedef struct inputs {
    imp_mutex *mu;
    imp_cond *cv;
    bool done, good;
} inputs;

static void on_vector(void *user, uint64_t id, const imp_event *ev)
{
    (void)id;
    inputs *q = user;
    if (ev->kind != IMP_EVENT_DONE) return;
    imp_mutex_lock(q->mu);
    q->done = true;
    q->good = ev->finish == IMP_FINISH_STOP;
    imp_cond_broadcast(q->cv);
    imp_mutex_unlock(q->mu);
}

/* A client that always has an input waiting. */
static void embed_main(void *arg)
{
    lane *l = arg;
    enum { N = 1, LEN = 16 };
    static int32_t ids[N * LEN];
    size_t n_ids[N];
    inputs q = {0};
    assert_int_equal(imp_mutex_new(&q.mu), IMP_OK);
    assert_int_equal(imp_cond_new(&q.cv), IMP_OK);
    for (int i = 0; i < N * LEN; i++) ids[i] = 3 + i % 300;
    for (int i = 0; i < N; i++) n_ids[i] = LEN;
    while (!atomic_load(&l->stop)) {
        imp_error err;
        imp_request r = {.kind = IMP_REQUEST_EMBED,
                         .ids = ids,
                         .n_ids = n_ids,
                         .n_input = N,
                         .on_event = on_vector,
                         .user = &q};
        uint64_t id;
        q.done = false;
        if (imp_submit(l->vectors, &r, &id, &err) != IMP_OK) fail_msg("%s", err.text);
        imp_mutex_lock(q.mu);
        while (!q.done) imp_cond_wait(q.cv, q.mu);
        assert_true(q.good);
        imp_mutex_unlock(q.mu);
        atomic_fetch_add(&l->n_embedded, N);
    }
    imp_cond_free(q.cv);
    imp_mutex_free(q.mu);
}

/* With real threads and real time: embeddings that never end beside a sequence that generates. Neither stops the other: the
 * sequence ends although there is always an input waiting, and inputs are done meanwhile. Were inputs taken whenever there
 * are some, the sequence would wait for them all; were they to wait for the sequence, none would be done. */
static void embeddings_and_generation_both_go_on(void **state)
{
    (void)state;
    static lane l;
    memset(&l, 0, sizeof l);
    imp_error err = {0};
    l.r = rig_of("cpu", NULL, 256); /* as long as inputs may be */
    if (imp_engine_load(l.r.e, "models/impetus-nano-embed.gguf", "v", &l.vectors, &err) != IMP_OK)
        fail_msg("%s", err.text);
    imp_thread *t;
    assert_int_equal(imp_thread_start(embed_main, &l, &t), IMP_OK);
    while (atomic_load(&l.n_embedded) == 0) usleep(1000);
    uint32_t before = atomic_load(&l.n_embedded), during = 0;
    uint64_t n_token = 0;
    for (int k = 0; k < 200 && during == 0; k++) { /* one answer is soon over: as many as it takes */
        answer a;
        answer_init(&a);
        ask(&l.r, &a, NULL, 7, IMP_OK);
        answer_wait(&a);
        during = atomic_load(&l.n_embedded) - before;
        n_token += a.usage.n_generated;
        answer_deinit(&a);
    }
    atomic_store(&l.stop, true);
    imp_thread_join(t);
    assert_true(n_token > 20);
    assert_true(during > 0);
    rig_free(&l.r);
}

/* ---- settings ------------------------------------------------------------------------------------------ */

/* A vector on three simulated units: who made it, and the explanation. Free the text. */
static char *embed_with(imp_engine_config c, bool npu_is_slow, char device[64])
{
    rig r = {0};
    imp_error err = {0};
    c.device = c.device != NULL ? c.device : "sim:apple-m3-max";
    c.n_thread = 1;
    if (imp_engine_new(&c, &r.e, &err) != IMP_OK) fail_msg("%s", err.text);
    if (imp_engine_load(r.e, "models/impetus-nano-embed.gguf", "m", &r.m, &err) != IMP_OK)
        fail_msg("%s", err.text);
    load_everywhere(&r);
    for (uint32_t i = 0; i < r.e->n_unit;
         i++) { /* what was measured: the NPU is the best by far, or the worst */
        imp_machine *m = &r.e->unit[i]->learn.machine;
        bool good = (m->kind == IMP_UNIT_NPU) != npu_is_slow;
        m->f[IMP_F_SYNC].v = good ? 1 : 50000;
    }
    int32_t ids[] = {1, 20, 30, 2};
    size_t n = 4;
    answer a;
    answer_init(&a);
    imp_request q = {
        .kind = IMP_REQUEST_EMBED, .ids = ids, .n_ids = &n, .n_input = 1, .on_event = on_event, .user = &a};
    uint64_t id;
    if (imp_submit(r.m, &q, &id, &err) != IMP_OK) fail_msg("%s", err.text);
    answer_wait(&a);
    answer_deinit(&a);
    char *text = imp_explain_json(r.e, id), *units = imp_units_json(r.e);
    const char *at = strstr(text, "\"embed\":{\"device\":\"");
    assert_non_null(at);
    assert_int_equal(sscanf(at, "\"embed\":{\"device\":\"%63[^\"]", device), 1);
    assert_non_null(strstr(units, "\"settings\":{\"embeddings_on_npu\":"));
    char *plan = imp_candidates_json(r.e, r.m, 16, 0, 1);
    assert_non_null(strstr(plan, "\"settings\":{\"embeddings_on_npu\":"));
    imp_free(plan), imp_free(units);
    rig_free(&r);
    return text;
}

static void expect_embed(imp_engine_config c, bool npu_is_slow, bool npu, const char *said, const char *why)
{
    char device[64], *text = embed_with(c, npu_is_slow, device);
    assert_int_equal(strstr(device, "/ane") != NULL, npu);
    if (strstr(text, said) == NULL) fail_msg("%s is not in %s", said, text);
    assert_int_equal(strstr(text, "embeddings_on_npu is") != NULL ||
                         strstr(text, "larger than max_npu") != NULL,
                     why != NULL);
    if (why != NULL) assert_non_null(strstr(text, why));
    imp_free(text);
}

/* Unset, what was measured decides; set, it does not; and the explanation says which of the two it was. */
static void settings_rule_or_leave_it_to_measurement(void **state)
{
    (void)state;
    imp_engine_config c = {0};
    expect_embed(c, false, true, "\"embeddings_on_npu\":\"as measured\"", NULL);
    expect_embed(c, true, false, "\"embeddings_on_npu\":\"as measured\"", NULL);
    c.embeddings_on_npu = 1;
    expect_embed(c, true, true, "\"embeddings_on_npu\":\"on\"", "embeddings_on_npu is on");
    c.device = "cpu,sim:apple-m3-max/gpu"; /* no NPU here: the setting cannot be meant */
    expect_embed(c, false, false, "\"embeddings_on_npu\":\"on\"", NULL);
    c = (imp_engine_config){.embeddings_on_npu = -1};
    expect_embed(c, false, false, "\"embeddings_on_npu\":\"off\"", "embeddings_on_npu is off");
    c = (imp_engine_config){.max_npu_model_mb = 1};
    expect_embed(c, false, false, "\"max_npu_model_mb\":1", "larger than max_npu_model_mb allows");
    c.max_npu_model_mb = 100;
    expect_embed(c, false, true, "\"max_npu_model_mb\":100", NULL);
    for (int off = 0; off < 2;
         off++) { /* a profile's matrix units count until measured, unless they are ruled out */
        imp_engine *e;
        imp_error err;
        c = (imp_engine_config){.device = "sim:apple-m5/gpu", .n_thread = 1, .gpu_matrix_units = -off};
        assert_int_equal(imp_engine_new(&c, &e, &err), IMP_OK);
        const imp_value *f = e->unit[0]->learn.machine.f;
        assert_int_equal(f[IMP_F_F16].v > 2 * f[IMP_F_F32].v, !off);
        char *units = imp_units_json(e);
        assert_non_null(
            strstr(units, off ? "\"gpu_matrix_units\":\"off\"" : "\"gpu_matrix_units\":\"as measured\""));
        imp_free(units);
        imp_engine_free(e);
    }
}

/* ---- a model on several devices, layer by layer ------------------------------------------------------ */

static uint64_t own_room;
static uint64_t own_mem_free(const imp_device *d)
{
    (void)d;
    return own_room;
}

static void expect_layers(const rig *r, const answer *want, const char *where)
{
    answer a;
    answer_init(&a);
    uint64_t id = ask(r, &a, NULL, 7, IMP_OK);
    answer_wait(&a);
    assert_string_equal(a.text, want->text);
    char *receipt = imp_receipt_json(r->e, id);
    assert_non_null(receipt);
    if (strstr(receipt, where) == NULL) fail_msg("no \"%s\" in %s", where, receipt);
    imp_free(receipt);
    answer_deinit(&a);
}

static void layers_on_two_devices(void **state)
{
    (void)state;
    answer want;
    answer_init(&want);
    rig one = rig_new("cpu", NULL);
    (void)ask(&one, &want, NULL, 7, IMP_OK);
    answer_wait(&want);
    rig_free(&one);
    rig two = rig_new("cpu:2+cpu", NULL);
    expect_layers(&two, &want, "\"ran_on\":\"2 layers on cpu0, 3 layers on cpu0\"");
    rig_free(&two);
    answer_deinit(&want);
}

/* Together only when the one with memory of its own has no room for the whole. */
static void together_only_when_needed(void **state)
{
    (void)state;
    for (int fits = 0; fits < 2; fits++) {
        imp_error err = {0};
        imp_engine *e;
        imp_model *m;
        imp_engine_config c = {.device = "cpu,cpu:2+cpu,cpu", .n_thread = 1, .n_ctx = 512};
        assert_int_equal(imp_engine_new(&c, &e, &err), IMP_OK);
        imp_device_ops own = *e->unit[0]->device->ops;
        own.mem_free = own_mem_free;
        own_room = fits ? UINT64_MAX : 1000;
        e->unit[0]->device->ops = &own;
        e->unit[1]->only_large = true;
        if (imp_engine_load(e, MODEL, "m", &m, &err) != IMP_OK) fail_msg("%s", err.text);
        assert_int_equal(m->inst[0].sched != NULL, fits);
        assert_int_equal(m->inst[1].sched != NULL, !fits);
        if (!fits) assert_non_null(strstr(m->inst[0].why_not, "does not fit"));
        imp_engine_free(e);
    }
}

static void bad_devices(void **state)
{
    (void)state;
    static const char *const bad[] = {"gpu", "cpu,,cpu", "sim:", "sim:apple-m99", "cpu,ref,nothing", ","};
    for (size_t i = 0; i < IMP_COUNT(bad); i++) {
        imp_engine *e;
        imp_error err = {0};
        imp_engine_config c = {.device = bad[i], .n_thread = 1};
        assert_int_not_equal(imp_engine_new(&c, &e, &err), IMP_OK);
        assert_true(strlen(err.text) > 10);
        assert_null(e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(split_gives_the_same_bytes),
        cmocka_unit_test(cache_moves_while_prefill_runs),
        cmocka_unit_test(a_dead_unit_fails_nothing),
        cmocka_unit_test(all_dead_is_an_error),
        cmocka_unit_test(required_device),
        cmocka_unit_test(cancel_reaches_every_unit),
        cmocka_unit_test(quitting_under_load),
        cmocka_unit_test(unloading_under_load),
        cmocka_unit_test(slow_unit_joins_later),
        cmocka_unit_test(store_survives),
        cmocka_unit_test(embeddings_and_generation_both_go_on),
        cmocka_unit_test(settings_rule_or_leave_it_to_measurement),
        cmocka_unit_test(layers_on_two_devices),
        cmocka_unit_test(together_only_when_needed),
        cmocka_unit_test(bad_devices),
    };
    imp_log_set_level((imp_log_level)-1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
