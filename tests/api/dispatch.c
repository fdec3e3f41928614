/* The dispatcher inside the real engine - its threads, schedulers, queues, hand-overs - in virtual time: three units that
 * compute nothing and take as long as a cost model with hidden true numbers says. Time goes on when every unit either
 * computes or sleeps, so nothing depends on this machine's speed. Closed-loop clients; automatic choice against every forced
 * one.   IMPETUS_DISPATCH=full: every model, length and number of clients (minutes); else a few of them. */
#include "test.h"

#include <math.h>
#include <unistd.h>

#include "base/thread.h"
#include "dev/sim/sim.h"
#include "engine/engine_int.h"
#include "plan_nets.h"

enum { N_UNIT = 3, N_VOCAB = 512, N_GEN = 64, MAX_CLIENT = 16, SKIP = 50 };

static const char *const NAME[N_UNIT] = {"cpu0", "sim-prefill", "sim-decode"};

typedef struct world world;

typedef struct vunit {
    world *w;
    int index;
    imp_machine truth;
    double slow;
    bool computing;
    double until, transfer_s; /* transfer: caches taken in since the last step */
} vunit;

typedef struct vclient {
    world *w;
    double t_submit;
    int32_t prompt[4096];
    char used[2][32];
} vclient;

struct world {
    imp_engine *e;
    imp_model *m;
    const imp_cost *cost;
    vunit unit[N_UNIT];
    imp_mutex *mu;
    imp_cond *go;
    double now;
    uint64_t noise;
    const char *require;
    uint32_t n_prompt, n_want, n_submitted, n_done, n_failed;
    double latency, latency_after; /* sums; after the first SKIP */
    uint32_t used_pre[N_UNIT], used_dec[N_UNIT];
    rng random;
    vclient client[MAX_CLIENT];
};

/* ---- virtual time ------------------------------------------------------------------------------------ */

/* Time goes on when nobody has anything left to do now. Any thread, without mu and engine.lock. */
static void advance(world *w)
{
    imp_mutex_lock(w->e->lock);
    imp_mutex_lock(w->mu);
    double next = INFINITY;
    bool quiet = true;
    for (int i = 0; i < N_UNIT && quiet; i++) {
        const imp_unit *u = w->e->unit[i];
        if (w->unit[i].computing) {
            next = fmin(next, w->unit[i].until);
            continue;
        }
        imp_sched *s = w->m->inst[i].sched;
        quiet = u->asleep && (s == NULL || !imp_sched_has_work(s));
    }
    if (quiet && isfinite(next)) {
        w->now = next;
        for (int i = 0; i < N_UNIT; i++)
            if (w->unit[i].computing && w->unit[i].until <= next) w->unit[i].computing = false;
        imp_cond_broadcast(w->go);
    }
    imp_mutex_unlock(w->mu);
    imp_mutex_unlock(w->e->lock);
}

static uint64_t step_ns(void *ctx, const imp_graph *g, const imp_batch *b)
{
    (void)g;
    vunit *u = ctx;
    world *w = u->w;
    imp_cost_shape sh = imp_cost_shape_of(b, true);
    imp_cost_time t;
    imp_cost_predict(w->cost, &u->truth, &sh, &t);
    imp_mutex_lock(w->mu);
    w->noise = w->noise * 6364136223846793005ull + 1442695040888963407ull;
    double dt = t.s * u->slow * (1 + 0.02 * ((double)(w->noise >> 11) / 9007199254740992.0 - 0.5));
    dt += u->transfer_s;
    u->transfer_s = 0;
    u->until = w->now + dt;
    u->computing = true;
    imp_mutex_unlock(w->mu);
    advance(w);
    imp_mutex_lock(w->mu);
    while (u->computing) imp_cond_wait(w->go, w->mu);
    imp_mutex_unlock(w->mu);
    return (uint64_t)(dt * 1e9) + 1;
}

/* ---- a device that computes nothing ------------------------------------------------------------------ */

typedef struct null_device {
    imp_device base;
    vunit *u;
} null_device;
typedef struct null_exec {
    imp_exec base;
    float logits[64 * N_VOCAB];
} null_exec;

static const char *null_refuses(const imp_device *d, const imp_graph *g, imp_val v)
{
    (void)d, (void)g, (void)v;
    return NULL;
}
static imp_status null_plan(imp_device *d, const imp_graph *g, const imp_limits *l, imp_dev_memory *out,
                            imp_error *e)
{
    (void)d, (void)g, (void)l, (void)e;
    *out = (imp_dev_memory){.other = sizeof(null_exec)};
    return IMP_OK;
}
static imp_status null_compile(imp_device *d, const imp_graph *g, const imp_limits *l, imp_exec **out,
                               imp_error *e)
{
    (void)g, (void)e;
    assert_true(l->max_out <= 64);
    null_exec *x = calloc(1, sizeof *x);
    x->base.dev = d;
    for (int i = 0; i < 64; i++) x->logits[i * N_VOCAB + 300] = 1;
    *out = &x->base;
    return IMP_OK;
}
static imp_status null_run(imp_exec *x, const imp_batch *b, const float **out, imp_error *e)
{
    (void)b, (void)e;
    *out = ((null_exec *)x)->logits;
    return IMP_OK;
}
static void null_copy(imp_exec *x, uint32_t dst, uint32_t src)
{
    (void)x, (void)dst, (void)src;
}
static imp_status null_export(imp_exec *x, uint32_t block, void *host, imp_error *e)
{
    (void)x, (void)block, (void)host, (void)e;
    return IMP_OK;
}
static imp_status null_import(imp_exec *x, uint32_t block, const void *host, imp_error *e)
{
    (void)block, (void)host, (void)e;
    vunit *u = ((null_device *)x->dev)->u;
    imp_mutex_lock(u->w->mu);
    u->transfer_s += u->w->cost->kv_bytes_tok * IMP_KV_BLOCK / (u->truth.f[IMP_F_LINK].v * 1e9);
    imp_mutex_unlock(u->w->mu);
    return IMP_OK;
}
static void null_exec_free(imp_exec *x)
{
    free(x);
}
static void null_close(imp_device *d)
{
    free(d);
}
static const imp_device_ops null_ops = {.kind = "null",
                                        .refuses = null_refuses,
                                        .plan = null_plan,
                                        .compile = null_compile,
                                        .run = null_run,
                                        .kv_copy = null_copy,
                                        .exec_free = null_exec_free,
                                        .close = null_close,
                                        .kv_export = null_export,
                                        .kv_import = null_import};

/* ---- the world ---------------------------------------------------------------------------------------- */

static void swap_device(world *w, int i)
{
    imp_unit *u = w->e->unit[i];
    null_device *inner = calloc(1, sizeof *inner);
    inner->base.ops = &null_ops;
    inner->u = &w->unit[i];
    imp_sim_clock clock = {.step_ns = step_ns, .ctx = &w->unit[i]};
    imp_error err;
    u->device->ops->close(u->device);
    assert_int_equal(imp_dev_sim_open(&inner->base, NAME[i], &clock, &u->device, &err), IMP_OK);
    imp_machine believed = w->unit[i].truth; /* off by 30 % and more */
    believed.f[IMP_F_BW].v *= i == 1 ? 1.5 : 0.7;
    believed.f[IMP_F_E_MM].v *= i == 2 ? 1.6 : 0.7;
    believed.simulated = true;
    imp_learn_init(&u->learn, &believed);
}

/* adds: on its units reading and computing add up, as on a CPU; else the greater of the two counts. */
static world *world_new(const imp_cost *c, bool adds)
{
    world *w = calloc(1, sizeof *w);
    imp_error err = {0};
    imp_engine_config conf = {.device = "cpu,cpu,cpu",
                              .n_thread = 1,
                              .n_ctx = 4608,
                              .n_parallel = 16,
                              .n_batch = 512,
                              .mem_bytes = 1ull << 40};
    w->cost = c;
    w->noise = 42;
    w->random.s = 7;
    assert_int_equal(imp_mutex_new(&w->mu), IMP_OK);
    assert_int_equal(imp_cond_new(&w->go), IMP_OK);
    if (imp_engine_new(&conf, &w->e, &err) != IMP_OK) fail_msg("%s", err.text);
    for (int i = 0; i < N_UNIT; i++) {
        vunit *u = &w->unit[i];
        *u = (vunit){.w = w, .index = i, .slow = 1};
        imp_machine_default(IMP_UNIT_CPU, NAME[i], &u->truth);
        u->truth.f[IMP_F_CACHE].v = 0;
        u->truth.f[IMP_F_WAITS].v = adds ? 1 : 0;
        imp_value *f = u->truth.f;
        if (i == 1) f[IMP_F_F32].v *= 3, f[IMP_F_INT8].v *= 3, f[IMP_F_BW].v *= 0.5;
        if (i == 2) f[IMP_F_F32].v *= 0.4, f[IMP_F_INT8].v *= 0.4, f[IMP_F_BW].v *= 3;
        swap_device(w, i);
    }
    if (imp_engine_load(w->e, "models/stories260K.gguf", "m", &w->m, &err) != IMP_OK)
        fail_msg("%s", err.text);
    w->m->cost_generate = *c;
    for (uint32_t i = 0; i < N_UNIT; i++)
        if (w->m->inst[i].sched == NULL)
            assert_int_equal(imp_instance_open(w->m, w->e->unit[i], &err), IMP_OK);
    return w;
}

static void world_free(world *w)
{
    imp_engine_free(w->e);
    imp_cond_free(w->go);
    imp_mutex_free(w->mu);
    free(w);
}

static void on_event(void *user, uint64_t id, const imp_event *ev);

static void submit(vclient *c)
{
    world *w = c->w;
    size_t n = w->n_prompt;
    for (size_t i = 0; i < n; i++)
        c->prompt[i] = (int32_t)(3 + rng_below(&w->random, N_VOCAB - 3)); /* nothing in common */
    imp_request q = {.kind = IMP_REQUEST_GENERATE,
                     .ids = c->prompt,
                     .n_ids = &n,
                     .n_input = 1,
                     .max_tok = N_GEN,
                     .ignore_eos = true,
                     .require = w->require,
                     .on_event = on_event,
                     .user = c};
    imp_sampling_default(&q.sampling);
    q.sampling.temperature = 0;
    imp_error err;
    uint64_t id;
    imp_mutex_lock(w->mu);
    c->t_submit = w->now;
    imp_mutex_unlock(w->mu);
    if (imp_submit(w->m, &q, &id, &err) != IMP_OK) fail_msg("%s", err.text);
}

static void note_devices(world *w, uint64_t id)
{
    char *text = imp_receipt_json(w->e, id);
    const char *p = strstr(text, "\"prefill\":{\"device\":\""),
               *d = strstr(text, "\"decode\":{\"device\":\"");
    imp_mutex_lock(w->mu);
    for (int i = 0; i < N_UNIT; i++) {
        w->used_pre[i] += strncmp(p + 21, NAME[i], strlen(NAME[i])) == 0;
        w->used_dec[i] += strncmp(d + 20, NAME[i], strlen(NAME[i])) == 0;
    }
    imp_mutex_unlock(w->mu);
    imp_free(text);
}

/* On the unit's thread: the next request of this client follows at once, as in a closed loop. */
static void on_event(void *user, uint64_t id, const imp_event *ev)
{
    vclient *c = user;
    world *w = c->w;
    if (ev->kind != IMP_EVENT_DONE) return;
    note_devices(w, id);
    imp_mutex_lock(w->mu);
    double lat = w->now - c->t_submit;
    if (w->n_done++ >= SKIP) w->latency_after += lat;
    w->latency += lat;
    w->n_failed += ev->finish != IMP_FINISH_LENGTH;
    bool more = w->n_submitted < w->n_want;
    w->n_submitted += more;
    imp_mutex_unlock(w->mu);
    if (more) submit(c);
}

static void run(world *w, uint32_t n_client, uint32_t n_prompt, uint32_t n)
{
    w->n_prompt = n_prompt;
    w->n_want = n;
    w->n_done = w->n_failed = 0;
    w->latency = w->latency_after = 0;
    memset(w->used_pre, 0, sizeof w->used_pre);
    memset(w->used_dec, 0, sizeof w->used_dec);
    w->n_submitted = IMP_MIN(n, n_client);
    for (uint32_t i = 0; i < IMP_MIN(n, n_client); i++) {
        w->client[i].w = w;
        submit(&w->client[i]);
    }
    for (bool done = false; !done;) {
        usleep(40); /* who falls asleep last tells nobody */
        advance(w);
        imp_mutex_lock(w->mu);
        done = w->n_done == n;
        imp_mutex_unlock(w->mu);
    }
}

static double measure(const imp_cost *c, bool adds, const char *require, uint32_t n_client, uint32_t n_prompt,
                      uint32_t n, char how[80])
{
    world *w = world_new(c, adds);
    w->require = require;
    run(w, n_client, n_prompt, n);
    assert_int_equal(w->n_failed, 0);
    double t = w->latency_after / (n - SKIP);
    snprintf(how, 80, "%u/%u/%u > %u/%u/%u", w->used_pre[0], w->used_pre[1], w->used_pre[2], w->used_dec[0],
             w->used_dec[1], w->used_dec[2]);
    world_free(w);
    return t;
}

static bool full(void)
{
    const char *s = getenv("IMPETUS_DISPATCH");
    return s != NULL && strcmp(s, "full") == 0;
}

static void auto_is_near_the_best(void **state)
{
    bool adds = *state != NULL;
    static const shape_of *const shape[] = {&QWEN2_15B, &QWEN3_06B, &LLAMA3_8B};
    static const char *const name[] = {"1.5B q4_0", "0.6B f16", "8B q4_0"};
    static const uint32_t prompt[] = {16, 128, 512, 4096}, clients[] = {1, 4, 16};
    double worst = 0;
    print_message("# mean latency in virtual s after %d requests: best forced choice, automatic, difference; "
                  "requests by unit; reading and computing %s\n",
                  SKIP, adds ? "add up" : "overlap");
    for (size_t m = 0; m < (full() ? 3 : 1); m++) {
        imp_graph *g = decoder(shape[m]);
        imp_cost c;
        imp_cost_build(g, IMP_F16, &c);
        for (size_t p = 0; p < 4; p++)
            for (size_t k = 0; k < 3; k++) {
                if (!full() && (p == 1 || p == 3 || k == 2)) continue;
                uint32_t n = SKIP + IMP_MAX(40u, 3 * clients[k]);
                double best = INFINITY;
                char best_name[64] = "", how[80];
                for (int a = 0; a < N_UNIT; a++)
                    for (int b = 0; b < N_UNIT; b++) {
                        char pair[64];
                        snprintf(pair, sizeof pair, "%s>%s", NAME[a], NAME[b]);
                        double t = measure(&c, adds, pair, clients[k], prompt[p], n, how);
                        if (t < best) best = t, memcpy(best_name, pair, sizeof pair);
                    }
                double t = measure(&c, adds, NULL, clients[k], prompt[p], n, how);
                print_message("# SIMULATED %-10s prompt %4u x %2u: %8.3f (%s) %8.3f %+5.1f %%  %s\n", name[m],
                              prompt[p], clients[k], best, best_name, t, 100 * (t / best - 1), how);
                worst = fmax(worst, t / best - 1);
            }
        imp_graph_free(g);
    }
    print_message("# worst regret %.1f %%\n", 100 * worst);
    assert_true(worst <= 0.03);
}

/* The unit in use becomes exactly three times slower, which makes it the worse one: within 20 requests traffic has moved. */
static void slow_unit_is_left(void **state)
{
    bool adds = *state != NULL;
    imp_graph *g = decoder(&QWEN2_15B);
    imp_cost c;
    imp_cost_build(g, IMP_F16, &c);
    world *w = world_new(&c, adds);
    imp_value *f = w->unit[2].truth.f, *base = w->unit[0].truth.f;
    for (imp_field k = IMP_F_BW; k <= IMP_F_INT8; k++)
        f[k].v = 2 * base[k].v; /* twice as fast as the CPU in everything */
    run(w, 1, 128, 50);
    assert_true(w->used_dec[2] > 40);
    w->unit[2].slow = 3; /* two thirds of the CPU's speed */
    run(w, 1, 128, 20);
    run(w, 1, 128, 20);
    assert_int_equal(w->used_dec[2] + w->used_pre[2], 0);
    world_free(w);
    imp_graph_free(g);
}

static void no_request_dies_with_a_unit(void **state)
{
    bool adds = *state != NULL;
    imp_graph *g = decoder(&QWEN2_15B);
    imp_cost c;
    imp_cost_build(g, IMP_F16, &c);
    for (uint32_t victim = 0; victim < N_UNIT; victim++) {
        world *w = world_new(&c, adds);
        run(w, 4, 128, 30);
        imp_dev_sim_kill(w->e->unit[victim]->device, true);
        run(w, 4, 128, 40);
        assert_int_equal(w->n_failed, 0);
        assert_int_equal(w->n_done, 40);
        world_free(w);
    }
    imp_graph_free(g);
}

#define ADDS(test)                                                                                           \
    {                                                                                                        \
#test ", times add up", test, NULL, NULL, ""                                                         \
    }

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(auto_is_near_the_best),
        cmocka_unit_test(slow_unit_is_left),
        cmocka_unit_test(no_request_dies_with_a_unit),
        ADDS(auto_is_near_the_best),
        ADDS(slow_unit_is_left),
        ADDS(no_request_dies_with_a_unit),
    };
    imp_log_set_level((imp_log_level)-1);
    return cmocka_run_group_tests(t, NULL, NULL);
}
