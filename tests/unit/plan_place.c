/* Placement in virtual time: three units whose true speeds the placer does not know, closed-loop clients, continuous
 * batching on each unit. Automatic choice is held against every forced one. Nothing here depends on the clock. */
#include "test.h"

#include <math.h>

#include "plan/place.h"
#include "plan_nets.h"

enum { N_UNIT = 3, MAX_SEQ = 64, CHUNK = 512, SLOTS = 16 };

typedef struct seq {
    bool used, prefilled;
    int pre, dec; /* units */
    uint32_t n_prompt, done, n_gen, made;
    double t_submit, t_ready; /* virtual time from which its next phase may run */
    double queued_s;
} seq;

typedef struct world {
    const imp_cost *cost;
    imp_machine truth[N_UNIT];
    double slow[N_UNIT];
    bool dead[N_UNIT];
    const char *excluded[N_UNIT];
    imp_learn *learn; /* [N_UNIT] */
    imp_placer placer;
    double t_free[N_UNIT];
    seq s[MAX_SEQ];
    int force_pre, force_dec; /* -1: automatic */
    uint64_t noise;
    uint32_t used_pre[N_UNIT], used_dec[N_UNIT];
    uint32_t n_failed;
} world;

static const char *const NAME[] = {"cpu0", "sim-prefill", "sim-decode"};

static double jitter(world *w)
{
    w->noise = w->noise * 6364136223846793005ull + 1442695040888963407ull;
    return 1 + 0.02 * ((double)(w->noise >> 11) / 9007199254740992.0 - 0.5);
}

/* adds: on its units reading and computing add up, as on a CPU; else the greater of the two counts. */
static void world_init(world *w, const imp_cost *c, bool adds)
{
    memset(w, 0, sizeof *w);
    w->cost = c;
    w->learn = malloc(N_UNIT * sizeof *w->learn);
    imp_placer_init(&w->placer);
    w->noise = 42;
    w->force_pre = w->force_dec = -1;
    for (int i = 0; i < N_UNIT; i++) {
        imp_machine *m = &w->truth[i];
        imp_machine_default(IMP_UNIT_CPU, NAME[i], m);
        m->f[IMP_F_CACHE].v = 0;
        m->f[IMP_F_WAITS].v = adds ? 1 : 0;
        w->slow[i] = 1;
    }
    w->truth[1].f[IMP_F_F32].v *= 3, w->truth[1].f[IMP_F_INT8].v *= 3, w->truth[1].f[IMP_F_BW].v *= 0.5;
    w->truth[2].f[IMP_F_F32].v *= 0.4, w->truth[2].f[IMP_F_INT8].v *= 0.4, w->truth[2].f[IMP_F_BW].v *= 3;
    for (int i = 0; i < N_UNIT; i++) { /* what the placer believes at first is off by 30 % and more */
        imp_machine believed = w->truth[i];
        believed.f[IMP_F_BW].v *= i == 1 ? 1.5 : 0.7;
        believed.f[IMP_F_E_MM].v *= i == 2 ? 1.6 : 0.7;
        imp_learn_init(&w->learn[i], &believed);
    }
}

static void views(const world *w, imp_place_unit *u)
{
    for (int i = 0; i < N_UNIT; i++) {
        u[i] = (imp_place_unit){.name = NAME[i],
                                .learn = &w->learn[i],
                                .excluded = w->excluded[i],
                                .n_ctx = 16384,
                                .free_tok = 1e9,
                                .can_export = true,
                                .can_import = true,
                                .loaded = true};
    }
    for (int k = 0; k < MAX_SEQ; k++) {
        const seq *s = &w->s[k];
        if (!s->used) continue;
        if (!s->prefilled) {
            u[s->pre].queued_s += s->queued_s * (1 - (double)s->done / s->n_prompt);
            u[s->pre].queued_tok += s->n_prompt - s->done;
            u[s->pre].n_prefill++;
        }
        u[s->dec].n_decode++;
        u[s->dec].n_coming += !s->prefilled;
    }
}

static void submit(world *w, seq *s, uint32_t n_prompt, uint32_t n_gen, double now)
{
    imp_place_unit u[N_UNIT];
    static imp_choice ch;
    views(w, u);
    imp_place_request r = {.model = 1,
                           .cost = w->cost,
                           .n_prompt = n_prompt,
                           .n_gen = n_gen,
                           .n_need = n_prompt + n_gen,
                           .chunk = CHUNK};
    imp_place(&w->placer, &r, u, N_UNIT, &ch);
    assert_true(ch.chosen >= 0);
    *s = (seq){.used = true, .n_prompt = n_prompt, .n_gen = n_gen, .t_submit = now, .t_ready = now};
    s->pre = w->force_pre >= 0 ? w->force_pre : ch.cand[ch.chosen].prefill;
    s->dec = w->force_dec >= 0 ? w->force_dec : ch.cand[ch.chosen].decode;
    imp_cost_time t;
    const imp_candidate *cand = &ch.cand[s->pre * N_UNIT + s->dec];
    s->queued_s = cand->ttft_s - cand->wait_s;
    w->used_pre[s->pre]++;
    w->used_dec[s->dec]++;
    if (w->force_pre < 0 && ch.shadow >= 0) { /* a copy on an idle unit: it learns, nobody waits for it */
        int x = ch.shadow;
        imp_cost_shape sh = imp_cost_shape_chunk(IMP_MIN(n_prompt, (uint32_t)CHUNK), 0, 1);
        imp_cost_predict(w->cost, &w->truth[x], &sh, &t);
        imp_learn_observe(&w->learn[x], w->cost, &sh, t.s * w->slow[x] * jitter(w));
        double spent = t.s;
        sh = imp_cost_shape_decode(1, n_prompt);
        imp_cost_predict(w->cost, &w->truth[x], &sh, &t);
        for (int i = 0; i < 4; i++)
            imp_learn_observe(&w->learn[x], w->cost, &sh, t.s * w->slow[x] * jitter(w));
        imp_place_explored(&w->placer, spent + 4 * t.s);
    }
}

static void replace_all(world *w, int unit, double now)
{
    w->excluded[unit] = "it failed";
    for (int k = 0; k < MAX_SEQ; k++) {
        seq *s = &w->s[k];
        if (!s->used || (s->pre != unit && s->dec != unit) || (s->prefilled && s->dec != unit)) continue;
        double t0 = s->t_submit;
        submit(w, s, s->n_prompt + s->made, s->n_gen - s->made, now);
        s->t_submit = t0;
    }
}

/* One step of unit i from time `now`; returns when it ends, or INFINITY when there is nothing to do. */
static double step(world *w, int i, double now, double *latency, uint32_t *n_done)
{
    imp_cost_shape sh = {0};
    int in[MAX_SEQ], n_in = 0;
    uint32_t take[MAX_SEQ];
    for (int k = 0; k < MAX_SEQ && n_in < SLOTS; k++) {
        seq *s = &w->s[k];
        if (!s->used || !s->prefilled || s->dec != i || s->t_ready > now) continue;
        double past = s->n_prompt + s->made;
        sh.n_tok++, sh.n_out++, sh.n_seq++, sh.keys += past + 1, sh.kv_tok += past + 1;
        take[n_in] = 1, in[n_in++] = k;
    }
    uint32_t room = CHUNK - (uint32_t)sh.n_tok;
    for (;;) { /* prompts, oldest first */
        int best = -1;
        for (int k = 0; k < MAX_SEQ; k++) {
            seq *s = &w->s[k];
            bool taken = false;
            for (int j = 0; j < n_in; j++) taken = taken || in[j] == k;
            if (!s->used || s->prefilled || taken || s->pre != i || s->t_ready > now) continue;
            if (best < 0 || s->t_submit < w->s[best].t_submit) best = k;
        }
        if (best < 0 || room == 0 || n_in == SLOTS) break;
        seq *s = &w->s[best];
        uint32_t n = IMP_MIN(room, s->n_prompt - s->done);
        imp_cost_shape c = imp_cost_shape_chunk(n, s->done, s->done + n == s->n_prompt);
        sh.n_tok += c.n_tok, sh.n_out += c.n_out, sh.n_seq++, sh.keys += c.keys, sh.kv_tok += c.kv_tok;
        take[n_in] = n, in[n_in++] = best, room -= n;
    }
    if (n_in == 0) return INFINITY;
    if (w->dead[i]) {
        replace_all(w, i, now);
        return now;
    }
    imp_cost_time t;
    imp_cost_predict(w->cost, &w->truth[i], &sh, &t);
    double dt = t.s * w->slow[i] * jitter(w), end = now + dt;
    imp_learn_observe(&w->learn[i], w->cost, &sh, dt);
    for (int j = 0; j < n_in; j++) {
        seq *s = &w->s[in[j]];
        bool last = false;
        if (s->prefilled) {
            last = ++s->made == s->n_gen;
        } else if ((s->done += take[j]) == s->n_prompt) {
            s->prefilled = true;
            s->made = 1;
            last = s->n_gen == 1;
            s->t_ready = end;
            if (s->dec != s->pre)
                s->t_ready += w->cost->kv_bytes_tok * take[j] / (w->truth[i].f[IMP_F_LINK].v * 1e9);
        }
        if (last) {
            *latency += end - s->t_submit;
            ++*n_done;
            s->used = false;
        }
    }
    return end;
}

/* n requests from `clients` closed-loop clients; mean latency of those that end in steps after the first `skip`. */
static double run(world *w, uint32_t clients, uint32_t n_prompt, uint32_t n_gen, uint32_t n, uint32_t skip,
                  double *t_now)
{
    double total = 0, after = 0, now = *t_now;
    uint32_t done = 0, submitted = 0, n_after = 0;
    for (int i = 0; i < N_UNIT; i++) w->t_free[i] = now;
    while (done < n) {
        uint32_t live = 0;
        for (int k = 0; k < MAX_SEQ; k++) live += w->s[k].used;
        for (int k = 0; k < MAX_SEQ && live < clients && submitted < n; k++)
            if (!w->s[k].used) submit(w, &w->s[k], n_prompt, n_gen, now), live++, submitted++;
        double next = INFINITY;
        for (int i = 0; i < N_UNIT; i++) {
            if (w->t_free[i] <= now) {
                double lat = 0;
                uint32_t was = done;
                double end = step(w, i, now, &lat, &done);
                if (was >= skip) after += lat, n_after += done - was;
                w->t_free[i] = isfinite(end) ? end : now;
                if (!isfinite(end)) continue;
            }
            if (w->t_free[i] > now) next = fmin(next, w->t_free[i]);
        }
        if (!isfinite(next)) { /* all idle: until the next hand-over arrives, or at once */
            next = INFINITY;
            for (int k = 0; k < MAX_SEQ; k++)
                if (w->s[k].used && w->s[k].t_ready > now) next = fmin(next, w->s[k].t_ready);
            if (!isfinite(next)) next = now;
        }
        total++;
        assert_true(total < 1e7);
        now = next;
    }
    *t_now = now;
    return after / n_after;
}

/* As the others down to dead_unit_loses_nothing for both kinds of units: with a state for those whose times add up. */
static void auto_is_near_the_best(void **state)
{
    bool adds = *state != NULL;
    static const shape_of *const shape[] = {&QWEN3_06B, &QWEN2_15B, &LLAMA3_8B};
    static const char *const name[] = {"0.6B f16", "1.5B q4_0", "8B q4_0"};
    static const uint32_t prompt[] = {16, 128, 512, 4096}, clients[] = {1, 4, 16};
    double worst = 0;
    print_message(
        "# mean latency in virtual s after 50 requests: best forced pair, automatic, difference; reading and "
        "computing %s\n",
        adds ? "add up" : "overlap");
    for (size_t m = 0; m < IMP_COUNT(shape); m++) {
        imp_graph *g = decoder(shape[m]);
        imp_cost c;
        imp_cost_build(g, IMP_F16, &c);
        for (size_t p = 0; p < IMP_COUNT(prompt); p++)
            for (size_t k = 0; k < IMP_COUNT(clients); k++) {
                static world w;
                double best = INFINITY, now;
                int best_pre = 0, best_dec = 0;
                uint32_t n = 50 + IMP_MAX(40u, 3 * clients[k]);
                for (int a = 0; a < N_UNIT; a++)
                    for (int b = 0; b < N_UNIT; b++) {
                        world_init(&w, &c, adds);
                        w.force_pre = a, w.force_dec = b;
                        now = 0;
                        double t = run(&w, clients[k], prompt[p], 64, n, 50, &now);
                        free(w.learn);
                        if (t < best) best = t, best_pre = a, best_dec = b;
                    }
                world_init(&w, &c, adds);
                now = 0;
                double t = run(&w, clients[k], prompt[p], 64, n, 50, &now);
                free(w.learn);
                print_message("# SIMULATED %-10s prompt %4u x %2u: %8.3f (%s > %s) %8.3f %+5.1f %%\n",
                              name[m], prompt[p], clients[k], best, NAME[best_pre], NAME[best_dec], t,
                              100 * (t / best - 1));
                worst = fmax(worst, t / best - 1);
            }
        imp_graph_free(g);
    }
    print_message("# worst regret %.1f %%\n", 100 * worst);
    assert_true(worst <= 0.03);
}

/* Slow the unit that decodes three times: within 20 requests traffic has moved; back to normal: it may return. */
static void slow_unit_is_left(void **state)
{
    bool adds = *state != NULL;
    static world w;
    imp_graph *g = decoder(&QWEN2_15B);
    imp_cost c;
    imp_cost_build(g, IMP_F16, &c);
    world_init(&w, &c, adds);
    double now = 0;
    (void)run(&w, 1, 128, 64, 50, 0, &now);
    assert_true(w.used_dec[2] > 40);
    w.slow[2] = 9; /* from three times the CPU's speed to a third of it */
    (void)run(&w, 1, 128, 64, 20, 0, &now);
    memset(w.used_dec, 0, sizeof w.used_dec);
    (void)run(&w, 1, 128, 64, 20, 0, &now);
    assert_int_equal(w.used_dec[2], 0);
    free(w.learn);
    imp_graph_free(g);
}

static void prefill_unit_slowed(void **state)
{
    bool adds = *state != NULL;
    static world w;
    imp_graph *g = decoder(&QWEN2_15B);
    imp_cost c;
    imp_cost_build(g, IMP_F16, &c);
    world_init(&w, &c, adds);
    double now = 0;
    (void)run(&w, 1, 512, 64, 50, 0, &now);
    assert_true(w.used_pre[1] > 40);
    w.slow[1] = 5;
    (void)run(&w, 1, 512, 64, 20, 0, &now);
    memset(w.used_pre, 0, sizeof w.used_pre);
    (void)run(&w, 1, 512, 64, 20, 0, &now);
    assert_int_equal(w.used_pre[1], 0);
    free(w.learn);
    imp_graph_free(g);
}

static void dead_unit_loses_nothing(void **state)
{
    bool adds = *state != NULL;
    static world w;
    imp_graph *g = decoder(&QWEN2_15B);
    imp_cost c;
    imp_cost_build(g, IMP_F16, &c);
    for (int u = 0; u < N_UNIT; u++) {
        world_init(&w, &c, adds);
        double now = 0;
        (void)run(&w, 4, 128, 64, 30, 0, &now);
        w.dead[u] = true;
        (void)run(&w, 4, 128, 64, 60, 0, &now); /* returns only when all 60 have ended */
        assert_int_equal(w.n_failed, 0);
        free(w.learn);
    }
    imp_graph_free(g);
}

/* ---- the rules ---------------------------------------------------------------------------------------- */

static void rules(void **state)
{
    (void)state;
    static world w;
    imp_graph *g = decoder(&QWEN2_15B);
    imp_cost c;
    imp_cost_build(g, IMP_F16, &c);
    world_init(&w, &c, false);
    imp_place_unit u[N_UNIT];
    static imp_choice ch;
    views(&w, u);
    imp_place_request r = {
        .model = 1, .cost = &c, .n_prompt = 512, .n_gen = 64, .n_need = 576, .chunk = CHUNK};
    r.only = "cpu0";
    imp_place(&w.placer, &r, u, N_UNIT, &ch);
    assert_int_equal(ch.n_cand, 9);
    assert_true(ch.cand[ch.chosen].prefill == 0 && ch.cand[ch.chosen].decode == 0);
    for (uint32_t i = 0; i < ch.n_cand; i++) assert_true((int)i == ch.chosen || ch.cand[i].excluded != NULL);
    r.only = "gpu7";
    imp_place(&w.placer, &r, u, N_UNIT, &ch);
    assert_int_equal(ch.chosen, -1);
    r.only = NULL;
    r.n_need = 1u << 20; /* fits nowhere */
    imp_place(&w.placer, &r, u, N_UNIT, &ch);
    assert_int_equal(ch.chosen, -1);
    assert_non_null(strstr(ch.cand[0].excluded, "context"));
    r.n_need = 576;
    u[1].can_export = false;
    imp_place(&w.placer, &r, u, N_UNIT, &ch);
    assert_false(ch.cand[ch.chosen].prefill == 1 && ch.cand[ch.chosen].decode != 1);
    u[1].can_export = true;
    r.embed = true; /* never split */
    imp_place(&w.placer, &r, u, N_UNIT, &ch);
    assert_true(ch.cand[ch.chosen].prefill == ch.cand[ch.chosen].decode);
    r.embed = false;
    w.placer.policy = IMP_POLICY_ENERGY; /* a unit that draws a hundredth wins on energy */
    w.learn[0].machine.f[IMP_F_WATT].v = 0.2;
    w.learn[1].machine.f[IMP_F_WATT].v = w.learn[2].machine.f[IMP_F_WATT].v = 50;
    imp_place(&w.placer, &r, u, N_UNIT, &ch);
    assert_true(ch.cand[ch.chosen].prefill == 0 && ch.cand[ch.chosen].decode == 0);
    w.placer.policy = IMP_POLICY_LATENCY;
    w.placer.watt_cap = 10;
    imp_place(&w.placer, &r, u, N_UNIT, &ch);
    assert_true(ch.cand[ch.chosen].prefill == 0);
    assert_non_null(strstr(ch.cand[8].excluded, "power"));
    for (int i = 0; i < N_UNIT; i++) w.learn[i].machine.f[IMP_F_WATT].mark = IMP_MARK_MEASURED;
    w.placer.watt_cap = 0; /* a cap between what the two cheapest take leaves one; a lower one none */
    imp_place(&w.placer, &r, u, N_UNIT, &ch);
    double least = INFINITY, second = INFINITY;
    for (uint32_t i = 0; i < ch.n_cand; i++) {
        double j = ch.cand[i].joules;
        assert_true(j > 0);
        if (j < least)
            second = least, least = j;
        else
            second = fmin(second, j);
    }
    w.placer.joule_cap = (least + second) / 2;
    imp_place(&w.placer, &r, u, N_UNIT, &ch);
    assert_true(ch.chosen >= 0 && ch.cand[ch.chosen].joules == least && ch.runner_up == -1);
    assert_non_null(strstr(ch.cand[8].excluded, "energy"));
    w.placer.joule_cap = least / 2;
    imp_place(&w.placer, &r, u, N_UNIT, &ch);
    assert_int_equal(ch.chosen, -1);
    free(w.learn);
    imp_graph_free(g);
}

/* What was measured of handing caches over is the pair's price: rates out and in, and so much a block; and it decides. */
static void hand_over_is_priced(void **state)
{
    (void)state;
    static world w;
    imp_graph *g = decoder(&QWEN2_15B);
    imp_cost c;
    imp_cost_build(g, IMP_F16, &c);
    world_init(&w, &c, false);
    imp_place_unit u[N_UNIT];
    static imp_choice ch;
    views(&w, u);
    imp_place_request r = {
        .model = 1, .cost = &c, .n_prompt = 1000, .n_gen = 64, .n_need = 1064, .chunk = CHUNK};
    imp_value *out = &w.learn[1].machine.f[IMP_F_HAND_OUT], *in = &w.learn[2].machine.f[IMP_F_HAND_IN];
    imp_value *out_us = &w.learn[1].machine.f[IMP_F_HAND_US], *in_us = &w.learn[2].machine.f[IMP_F_HAND_US];
    out->v = 5, in->v = 2, out_us->v = 30, in_us->v = 20;
    imp_place(&w.placer, &r, u, N_UNIT, &ch);
    const imp_candidate *pair = &ch.cand[1 * N_UNIT + 2];
    double bytes = 1000 * c.kv_bytes_tok, fast = bytes / 5e9 + bytes / 2e9 + 16 * 50e-6;
    assert_true(fabs(pair->kv_bytes / bytes - 1) < 1e-9 && fabs(pair->moved_s / fast - 1) < 1e-9);
    assert_true(pair->exposed_s < pair->moved_s &&
                pair->exposed_s > 0.4 * pair->moved_s); /* the last chunk */
    assert_true(ch.cand[ch.chosen].prefill == 1 && ch.cand[ch.chosen].decode == 2);
    double total = pair->total_s, exposed = pair->exposed_s;
    out_us->v =
        1e6; /* a second a block: what the prefill does not hide is waited for, and the pair is left */
    imp_place(&w.placer, &r, u, N_UNIT, &ch);
    double slow = bytes / 5e9 + bytes / 2e9 + 16 * 1.00002;
    assert_true(fabs(pair->moved_s / slow - 1) < 1e-9);
    assert_true(fabs(pair->total_s - total - (pair->exposed_s - exposed)) < 1e-6);
    assert_false(ch.cand[ch.chosen].prefill == 1 && ch.cand[ch.chosen].decode == 2);
    out_us->v = 30, out->v = 0.01; /* 10 MB/s */
    imp_place(&w.placer, &r, u, N_UNIT, &ch);
    assert_true(fabs(pair->moved_s / (bytes / 1e7 + bytes / 2e9 + 16 * 50e-6) - 1) < 1e-9);
    assert_false(ch.cand[ch.chosen].prefill == 1 && ch.cand[ch.chosen].decode == 2);
    free(w.learn);
    imp_graph_free(g);
}

/* A unit that only reads prompts is never asked to generate, and its context counts for the prompt alone. */
static void reads_prompts_only(void **state)
{
    (void)state;
    static world w;
    imp_graph *g = decoder(&QWEN2_15B);
    imp_cost c;
    imp_cost_build(g, IMP_F16, &c);
    world_init(&w, &c, false);
    imp_place_unit u[N_UNIT];
    static imp_choice ch;
    views(&w, u);
    u[1].prefill_only = true;
    u[1].n_ctx = 512;
    u[1].pad = 2;
    imp_place_request r = {
        .model = 1, .cost = &c, .n_prompt = 300, .n_gen = 1, .n_need = 4000, .chunk = CHUNK};
    r.only = "sim-prefill>cpu0"; /* there is always the prompt's last token to compute elsewhere */
    imp_place(&w.placer, &r, u, N_UNIT, &ch);
    assert_true(ch.chosen >= 0 && ch.cand[ch.chosen].prefill == 1 && ch.cand[ch.chosen].decode == 0);
    double padded = ch.cand[ch.chosen].ttft_s;
    u[1].pad = 1;
    imp_place(&w.placer, &r, u, N_UNIT, &ch);
    assert_true(ch.cand[ch.chosen].ttft_s < padded);
    r.only = NULL;
    for (uint32_t n = 1; n <= 512; n = n == 1 ? 2 : n == 2 ? 511 : n + 1) {
        r.n_prompt = n;
        imp_place(&w.placer, &r, u, N_UNIT, &ch);
        for (uint32_t i = 0; i < ch.n_cand; i++) {
            const imp_candidate *x = &ch.cand[i];
            if (x->decode == 1) assert_non_null(x->excluded);
            if (x->prefill == 1 && x->decode != 1) assert_true((x->excluded == NULL) == (n > 1 && n < 512));
        }
    }
    r.n_prompt = 300, r.n_gen = 0; /* scoring */
    imp_place(&w.placer, &r, u, N_UNIT, &ch);
    assert_non_null(ch.cand[1 * N_UNIT + 0].excluded);
    r.embed = true;
    r.n_need = 100;
    imp_place(&w.placer, &r, u, N_UNIT, &ch);
    assert_null(ch.cand[1 * N_UNIT + 1].excluded);
    free(w.learn);
    imp_graph_free(g);
}

/* Printed, not asserted: what a decision and an observation cost on this machine. */
static void overhead(void **state)
{
    (void)state;
    static world w;
    imp_graph *g = decoder(&QWEN2_15B);
    imp_cost c;
    imp_cost_build(g, IMP_F16, &c);
    world_init(&w, &c, false);
    double now = 0;
    (void)run(&w, 4, 300, 64, 30, 0, &now);
    imp_place_unit u[N_UNIT];
    static imp_choice ch;
    views(&w, u);
    imp_place_request r = {
        .model = 1, .cost = &c, .n_prompt = 700, .n_gen = 64, .n_need = 800, .chunk = CHUNK};
    enum { N = 2000 };
    uint64_t t0 = imp_now_ns();
    for (int i = 0; i < N; i++) imp_place(&w.placer, &r, u, N_UNIT, &ch);
    double place = (double)(imp_now_ns() - t0) / N;
    imp_cost_shape sh = imp_cost_shape_decode(1, 300);
    t0 = imp_now_ns();
    for (int i = 0; i < N; i++) imp_learn_observe(&w.learn[0], &c, &sh, 0.01);
    print_message("# a decision over 3 units: %.1f us; an observation: %.1f us (%u corrections)\n",
                  place * 1e-3, (double)(imp_now_ns() - t0) / N * 1e-3, w.learn[0].n_key);
    free(w.learn);
    imp_graph_free(g);
}

#define ADDS(test)                                                                                           \
    {                                                                                                        \
#test ", times add up", test, NULL, NULL, ""                                                         \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules),
        cmocka_unit_test(reads_prompts_only),
        cmocka_unit_test(hand_over_is_priced),
        cmocka_unit_test(auto_is_near_the_best),
        cmocka_unit_test(slow_unit_is_left),
        cmocka_unit_test(prefill_unit_slowed),
        cmocka_unit_test(dead_unit_loses_nothing),
        ADDS(auto_is_near_the_best),
        ADDS(slow_unit_is_left),
        ADDS(prefill_unit_slowed),
        ADDS(dead_unit_loses_nothing),
        cmocka_unit_test(overhead),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
