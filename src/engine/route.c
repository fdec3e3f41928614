/* engine/route.c - who runs what: the choice for a request, hand-over between units, what is learned from steps.
 *
 * Idea:    imp_submit asks plan/place with how the units stand now and submits to the unit that prefills; when another
 *          one decodes, the job moves there with its cache after the first token. When a device fails, everything on it
 *          moves to the others and is computed again. A request never ends because one of several units did.
 * Threads: submit from any; hooks on the scheduler thread of the instance's unit. */
#include <stdio.h>

#include "engine/engine_int.h"

enum { FAIL_REST_S = 30 };
static const double COLD_S = 0.0005; /* a pause after which threads sleep and caches hold other things */

/* ---- how the units stand -------------------------------------------------------------------------- */

static bool has_npu(const imp_engine *e)
{
    bool any = false;
    for (uint32_t i = 0; i < e->n_unit; i++) any = any || e->unit[i]->learn.machine.kind == IMP_UNIT_NPU;
    return any;
}

/* What the settings rule out, whatever was measured. */
static const char *ruled_out(const imp_unit *u, const imp_cost *c, bool embed)
{
    imp_place_rules rules = imp_unit_rules(u->engine);
    return imp_place_ruled_out(&rules, u->learn.machine.kind, has_npu(u->engine), c, embed);
}

bool imp_unit_lost(const imp_unit *u)
{
    char text[160];
    return u->failed_ns != 0 && u->device->ops->lost != NULL &&
           u->device->ops->lost(u->device, text, sizeof text);
}

/* place_lock held. */
static void note_failure(imp_unit *u, const imp_error *err)
{
    if (u->failed_ns == 0) u->n_fail++;
    u->failed_ns = imp_now_ns();
    (void)snprintf(u->why_failed, sizeof u->why_failed, "%.159s", err->text);
}

static void on_failed(void *user, const imp_error *err)
{
    imp_instance *x = user;
    imp_mutex_lock(x->unit->engine->place_lock);
    note_failure(x->unit, err);
    imp_mutex_unlock(x->unit->engine->place_lock);
}

/* Whether the device can run the model now; text: what it does meanwhile. The instance does not go meanwhile. */
static bool is_ready(const imp_instance *x, bool embed, char *text, size_t cap)
{
    imp_exec *run = embed ? x->embed : x->generate;
    const imp_device_ops *ops = x->unit->device->ops;
    return ops->state == NULL || run == NULL || ops->state(run, false, text, cap) == IMP_OK;
}

/* place_lock held. NULL: the unit may be used. */
static const char *why_not(const imp_unit *u, imp_instance *x, const imp_place_request *r)
{
    const char *require = r->only, *rule = ruled_out(u, r->cost, r->embed);
    if (rule != NULL && u->engine->n_unit > 1) return rule;
    bool asked = require != NULL && (imp_place_meant(require, u->device->name, NULL) ||
                                     imp_place_meant(require, NULL, u->device->name));
    if (u->failed_ns != 0 && u->engine->n_unit > 1 && u->device->ops->state == NULL) {
        uint64_t rest = (uint64_t)FAIL_REST_S * 1000000000u << IMP_MIN(u->n_fail, 6u);
        if (imp_unit_lost(u)) return "it failed for good: restart to use it again";
        if (imp_now_ns() - u->failed_ns < rest) return "it failed a moment ago";
    }
    if (u->only_forced && !asked && u->engine->n_unit > 1)
        return "the slow reference is used only when asked for";
    if (x->sched == NULL)
        return x->why_not[0] != '\0' ? x->why_not
               : u->only_large       ? "a single device holds the whole model"
                                     : "the model is not loaded there: it would not win";
    if (u->engine->n_unit > 1 && !is_ready(x, r->embed, x->not_ready, sizeof x->not_ready))
        return x->not_ready;
    return NULL;
}

void imp_route_units(imp_model *m, const imp_place_request *r, imp_place_unit *out)
{
    const imp_engine *e = m->engine;
    for (uint32_t i = 0; i < e->n_unit; i++) {
        imp_unit *u = e->unit[i];
        imp_instance *x = &m->inst[i];
        const imp_device_ops *ops = u->device->ops;
        out[i] = (imp_place_unit){.name = u->device->name,
                                  .learn = &u->learn,
                                  .excluded = why_not(u, x, r),
                                  .n_ctx = x->fit.n_ctx,
                                  .can_export = ops->kv_export != NULL,
                                  .can_import = ops->kv_import != NULL,
                                  .prefill_only = ops->prefill_only,
                                  .adapters =
                                      ops->adapters && x->fit.generate.lora_rank + x->fit.embed.lora_rank > 0,
                                  .loaded = x->sched != NULL};
        if ((r->embed || ops->prefill_only) && ops->padded != NULL && r->n_input > 0)
            out[i].pad = (double)ops->padded(u->device, (r->n_prompt + r->n_input - 1) / r->n_input) *
                         r->n_input / r->n_prompt;
        if (x->sched == NULL || e->n_unit == 1) continue;
        imp_sched_load l = {0};
        imp_sched_get_load(x->sched, &l);
        out[i].queued_tok = l.queued_tok;
        out[i].n_prefill = l.n_prefill;
        out[i].n_coming = l.n_coming + m->n_coming[i];
        out[i].n_decode = l.n_decode + m->n_coming[i];
        if (l.queued_tok > 0 && out[i].excluded == NULL) {
            imp_cost_time t;
            uint32_t chunk = IMP_MAX(r->chunk, 1u);
            out[i].queued_s =
                imp_place_prefill_s(&u->learn, r->cost, chunk, chunk, false, &t) * l.queued_tok / chunk;
        }
    }
}

/* place_lock held. Instances may go meanwhile only for a model that is being unloaded. */
void imp_route_choose(imp_model *m, const imp_place_request *r, imp_choice *out)
{
    imp_place_unit u[MAX_UNIT];
    imp_route_units(m, r, u);
    imp_place(&m->engine->placer, r, u, m->engine->n_unit, out);
}

uint32_t imp_route_worth(imp_model *m)
{
    static const uint32_t prompt[] = {16, 128, 1024, 8192}, busy[] = {0, 4};
    imp_engine *e = m->engine;
    imp_placer p;
    imp_place_unit u[MAX_UNIT];
    uint32_t worth = 0;
    imp_mutex_lock(e->place_lock);
    imp_placer_init(&p);
    p.policy = e->placer.policy;
    p.watt_cap = e->placer.watt_cap;
    for (uint32_t i = 0; i < e->n_unit; i++) {
        const imp_device_ops *ops = e->unit[i]->device->ops;
        u[i] = (imp_place_unit){.name = e->unit[i]->device->name,
                                .learn = &e->unit[i]->learn,
                                .excluded = e->unit[i]->only_forced  ? "only when asked for"
                                            : e->unit[i]->only_large ? "only for larger models"
                                                                     : NULL,
                                .n_ctx = ops->max_ctx != NULL ? ops->max_ctx(e->unit[i]->device) : UINT32_MAX,
                                .can_export = ops->kv_export != NULL,
                                .can_import = ops->kv_import != NULL,
                                .prefill_only = ops->prefill_only,
                                .loaded = true};
    }
    for (size_t i = 0; i < IMP_COUNT(prompt) * IMP_COUNT(busy) * 2; i++) {
        bool embed = i & 1;
        if ((embed ? m->net->embed : m->net->generate) == NULL) continue;
        imp_choice c;
        imp_place_request r = {.cost = embed ? &m->cost_embed : &m->cost_generate,
                               .embed = embed,
                               .n_prompt = prompt[i / 2 % IMP_COUNT(prompt)],
                               .n_gen = 128,
                               .chunk = 512};
        imp_place(&p, &r, u, e->n_unit, &c);
        if (c.chosen < 0) continue;
        uint32_t a = c.cand[c.chosen].prefill, b = c.cand[c.chosen].decode;
        worth |= 1u << a | 1u << b;
        /* busy: the next request finds these taken */
        u[a].n_decode += busy[i / 8 % IMP_COUNT(busy)];
    }
    imp_mutex_unlock(e->place_lock);
    return worth;
}

/* ---- submitting ----------------------------------------------------------------------------------- */

static imp_place_request describe(const imp_model *m, const imp_request *r)
{
    bool embed = r->kind == IMP_REQUEST_EMBED;
    imp_place_request p = {.model = (uint64_t)(uintptr_t)m,
                           .cost = embed ? &m->cost_embed : &m->cost_generate,
                           .embed = embed,
                           .chunk = m->inst[m->home].fit.generate.max_tok,
                           .adapters = r->n_lora > 0,
                           .only = r->require};
    uint64_t n = 0, most = 0;
    for (size_t i = 0; i < r->n_input; i++) {
        n += r->n_ids[i];
        most = IMP_MAX(most, (uint64_t)r->n_ids[i]);
    }
    p.n_prompt = (uint32_t)IMP_MIN(IMP_MAX(n, 1u), (uint64_t)UINT32_MAX / 2);
    p.n_input = (uint32_t)IMP_MIN(r->n_input, (size_t)p.n_prompt);
    p.n_need = (uint32_t)IMP_MIN(most, (uint64_t)UINT32_MAX / 2);
    if (r->kind != IMP_REQUEST_GENERATE) return p;
    p.n_gen = (uint32_t)IMP_MAX(m->mean_gen, 1);
    if (r->max_tok != 0 && (r->ignore_eos || r->max_tok < p.n_gen)) p.n_gen = r->max_tok;
    p.n_need += r->max_tok != 0 ? IMP_MIN(r->max_tok, UINT32_MAX / 4) : 1;
    return p;
}

/* place_lock held. The request will generate on rec->device[1], or it is there, or it ends. */
static void set_coming(imp_model *m, imp_record *rec, bool coming)
{
    if (rec->coming == coming) return;
    if (coming)
        m->n_coming[rec->device[1]]++;
    else
        m->n_coming[rec->device[1]]--;
    rec->coming = coming;
}

/* What a required device says no with. */
static imp_status refuse(const imp_model *m, const imp_request *r, const imp_choice *c, imp_error *err)
{
    const char *why = "there is no such device here";
    imp_engine *e = m->engine;
    for (uint32_t i = 0; i < c->n_cand; i++) {
        const imp_candidate *x = &c->cand[i];
        if (imp_place_meant(r->require, e->unit[x->prefill]->device->name, e->unit[x->decode]->device->name))
            why = x->excluded;
    }
    return imp_fail_field(err, IMP_NOT_READY, "impetus.require", "\"%.60s\" cannot run this request: %s",
                          r->require, why);
}

static void nothing(void *user, uint64_t id, const imp_event *ev)
{
    (void)user, (void)id, (void)ev;
}

/* A copy of the request's beginning on an idle unit that is not known well; nobody waits for it. */
static void run_shadow(imp_model *m, const imp_request *r, const imp_choice *c)
{
    uint32_t unit = (uint32_t)c->shadow;
    imp_engine *e = m->engine;
    bool can = r->kind == IMP_REQUEST_GENERATE && !e->unit[unit]->device->ops->prefill_only;
    imp_sched *sched = can ? imp_instance_hold(m, unit) : NULL;
    if (sched == NULL) return;
    size_t n = IMP_MIN(r->n_ids[0], (size_t)m->inst[unit].fit.generate.max_tok);
    imp_request q = {.kind = IMP_REQUEST_GENERATE,
                     .ids = r->ids,
                     .n_ids = &n,
                     .n_input = 1,
                     .max_tok = IMP_PLACE_SHADOW_GEN,
                     .ignore_eos = true,
                     .on_event = nothing};
    imp_sampling_default(&q.sampling);
    q.sampling.temperature = 0;
    imp_error ignored;
    uint64_t id = atomic_fetch_add(&e->next_id, 1) + 1;
    bool taken = imp_sched_submit(sched, &q, id, &ignored) == IMP_OK;
    imp_instance_unhold(m, unit, taken);
    if (!taken) return;
    imp_mutex_lock(e->place_lock);
    imp_place_explored(&e->placer, c->shadow_s);
    imp_mutex_unlock(e->place_lock);
}

/* Of a request that was not accepted. */
static void drop_record(imp_model *m, imp_record *rec)
{
    imp_mutex_lock(m->engine->place_lock);
    set_coming(m, rec, false);
    imp_mutex_unlock(m->engine->place_lock);
    imp_sys_free(rec);
}

static imp_status submit(imp_model *m, const imp_request *r, uint64_t *out_id, imp_error *err)
{
    imp_engine *e = m->engine;
    uint64_t id = atomic_fetch_add(&e->next_id, 1) + 1, t0 = imp_now_ns();
    *out_id = id;
    imp_choice c = {.chosen = -1, .shadow = -1};
    imp_mutex_lock(e->place_lock);
    imp_place_request p = describe(m, r);
    imp_route_choose(m, &p, &c);
    bool refused = c.chosen < 0 && r->require != NULL;
    imp_status s =
        refused ? refuse(m, r, &c, err) : IMP_OK; /* while no reason changes, as for the record's copies */
    imp_record *rec = refused ? NULL : imp_record_new(m, r, id, &c);
    bool split = c.chosen >= 0 && c.cand[c.chosen].prefill != c.cand[c.chosen].decode;
    if (rec != NULL && split) set_coming(m, rec, true);
    uint32_t there = split ? m->inst[c.cand[c.chosen].decode].fit.n_ctx : 0;
    imp_mutex_unlock(e->place_lock);
    if (refused) return s;
    uint32_t unit = c.chosen < 0 ? m->home : c.cand[c.chosen].prefill;
    if (rec == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory for the request");
    imp_sched *sched = imp_instance_hold(m, unit);
    if (sched == NULL) {
        drop_record(m, rec);
        return imp_fail(err, IMP_NOT_READY, "the model is being unloaded");
    }
    rec->decide_ns = imp_now_ns() - t0;
    s = imp_sched_submit_tagged(sched, r, id, rec, split ? there : 0, err);
    imp_instance_unhold(m, unit, s == IMP_OK);
    if (s != IMP_OK) {
        drop_record(m, rec);
        return s;
    }
    if (c.shadow >= 0) run_shadow(m, r, &c);
    return IMP_OK;
}

imp_status imp_submit(imp_model *m, const imp_request *r, uint64_t *out_id, imp_error *err)
{
    imp_adapter_use use[IMP_MAX_ADAPTER];
    imp_request with = *r;
    size_t n = 0;
    if (r->n_lora == 0 && !r->no_lora) n = imp_adapters_always(m, use);
    if (n > 0) {
        with.lora = use;
        with.n_lora = n;
    }
    imp_status s = submit(m, &with, out_id, err);
    for (size_t i = 0; i < n; i++) imp_adapter_unref(use[i].adapter);
    return s;
}

/* ---- hooks ---------------------------------------------------------------------------------------- */

/* The step as the device computes it: with fixed shapes, its texts at their padded lengths. */
static imp_cost_shape shape_of(const imp_unit *u, const imp_batch *b, bool embed)
{
    imp_cost_shape sh = imp_cost_shape_of(b, !embed);
    if ((!embed && !u->device->ops->prefill_only) || u->device->ops->padded == NULL) return sh;
    sh.n_tok = sh.keys = sh.kv_tok = 0;
    for (uint32_t i = 0; i < b->n_seq; i++) {
        double n = u->device->ops->padded(u->device, b->seq[i].n_tok);
        sh.n_tok += n;
        sh.keys += n * n;
        sh.kv_tok += n;
    }
    return sh;
}

static double on_step(void *user, const imp_batch *b, bool embed, double s, double *joules)
{
    imp_instance *x = user;
    imp_unit *u = x->unit;
    uint64_t now = imp_now_ns();
    *joules = imp_power_step(&u->power, now, s);
    /* sequences that generate, with or without guesses */
    int phase = !embed && b->n_out == b->n_tok && b->n_tok <= b->n_seq * (1 + IMP_SPEC_MAX);
    const imp_cost *c = embed ? &x->model->cost_embed : &x->model->cost_generate;
    imp_cost_shape sh = shape_of(u, b, embed);
    sh.cold = u->device->ops->last_ns == NULL && (double)(now - u->last_step_ns) * 1e-9 - s > COLD_S;
    u->last_step_ns = now;
    sh.after = phase == 1 && x->after_left > 0;
    x->after_left = phase == 1 ? x->after_left - sh.after : IMP_COST_AFTER;
    imp_lesson due[2];
    /* the first step also touches memory for the first time */
    int n = x->ran[embed] ? imp_lessons_add(&x->lessons, c, &sh, s, due) : 0;
    x->ran[embed] = true;
    if (n == 0 && u->bytes[phase] > 0) return u->bytes[phase];
    imp_cost_time t;
    imp_mutex_lock(u->engine->place_lock);
    for (int i = 0; i < n; i++) imp_learn_observe(&u->learn, due[i].cost, &due[i].shape, due[i].s);
    double watt = u->power.watt;
    if (watt > 0)
        u->learn.machine.f[IMP_F_WATT] =
            (imp_value){watt, 0.9 * watt, 1.1 * watt, IMP_MARK_MEASURED, "energy meter of this machine"};
    imp_learn_predict(&u->learn, c, &sh, false, &t);
    u->failed_ns = 0;
    u->n_fail = 0;
    imp_mutex_unlock(u->engine->place_lock);
    u->n_learned += (uint32_t)n;
    u->bytes[phase] = t.bytes;
    return t.bytes;
}

/* Move j to unit `to` when it can take it. */
static bool move(imp_instance *from, uint32_t to, struct job *j)
{
    imp_model *m = from->model;
    imp_engine *e = m->engine;
    imp_sched_job_info i;
    imp_sched_job_get(j, &i);
    imp_mutex_lock(e->lock);
    imp_instance *x = &m->inst[to];
    bool ok = !m->leaving && !e->quit && x->sched != NULL && from->sched != NULL && x != from &&
              IMP_MAX(i.cap, i.n_prompt) <= x->fit.n_ctx &&
              imp_sched_move(from->sched, x->sched, j) == IMP_OK;
    if (ok) imp_unit_wake(x->unit);
    imp_mutex_unlock(e->lock);
    return ok;
}

static double predict(void *user, const imp_cost_shape *sh, bool embed)
{
    const imp_instance *x = user;
    imp_cost_time t;
    imp_mutex_lock(x->unit->engine->place_lock);
    imp_learn_predict(&x->unit->learn, embed ? &x->model->cost_embed : &x->model->cost_generate, sh, false,
                      &t);
    imp_mutex_unlock(x->unit->engine->place_lock);
    return t.s;
}

static imp_exec *receiver(void *user, struct job *j)
{
    imp_instance *x = user;
    imp_sched_job_info i;
    imp_sched_job_get(j, &i);
    const imp_record *rec = i.tag;
    if (rec == NULL || rec->device[1] == x->unit->index) return NULL;
    imp_mutex_lock(x->unit->engine->lock);
    imp_exec *to = x->model->inst[rec->device[1]].generate;
    imp_mutex_unlock(x->unit->engine->lock);
    return to;
}

/* The unit that will decode takes in what is there of the cache. */
static void on_pushed(void *user, struct job *j)
{
    imp_instance *x = user;
    imp_sched_job_info i;
    imp_sched_job_get(j, &i);
    const imp_record *rec = i.tag;
    if (rec == NULL || rec->device[1] == x->unit->index) return;
    imp_mutex_lock(x->unit->engine->lock);
    imp_instance *to = &x->model->inst[rec->device[1]];
    if (to->sched != NULL) {
        imp_sched_land(to->sched, j);
        imp_unit_wake(to->unit);
    }
    imp_mutex_unlock(x->unit->engine->lock);
}

static bool on_prefilled(void *user, struct job *j)
{
    imp_instance *x = user;
    imp_sched_job_info i;
    imp_sched_job_get(j, &i);
    imp_record *rec = i.tag;
    if (rec == NULL || rec->device[1] == x->unit->index) return false;
    uint32_t to = rec->device[1];
    imp_mutex_lock(x->model->engine->place_lock);
    set_coming(x->model, rec, false);
    bool failed = x->model->engine->unit[to]->failed_ns != 0;
    imp_mutex_unlock(x->model->engine->place_lock);
    if (x->unit->device->ops->ran_on != NULL) /* before the job goes, and its record with it */
        x->unit->device->ops->ran_on(x->generate, rec->ran_on, sizeof rec->ran_on);
    if (!failed && move(x, to, j)) return true;
    rec->ran_on[0] = '\0';
    (void)snprintf(rec->fallback, sizeof rec->fallback, "%.60s could not take the decode over",
                   rec->unit[to]);
    rec->device[1] = x->unit->index;
    return false;
}

/* Compile the model for unit `to`, from inside a step of x's unit, whose device has failed and computes nothing now: its
 * lock is let go meanwhile, for the other unit may be opening an instance here. */
static bool open_there(imp_instance *x, uint32_t to)
{
    if (x->model->inst[to].why_not[0] != '\0') return false;
    imp_mutex_unlock(x->unit->device_lock);
    imp_status s = imp_instance_open(x->model, x->model->engine->unit[to], NULL);
    imp_mutex_lock(x->unit->device_lock);
    return s == IMP_OK;
}

/* The device has failed under a job: where to now? Tries the choice again without it, then any unit at all. */
static bool on_stranded(void *user, struct job *j, const imp_error *err)
{
    imp_instance *x = user;
    imp_model *m = x->model;
    imp_engine *e = m->engine;
    imp_sched_job_info i;
    imp_sched_job_get(j, &i);
    imp_record *rec = i.tag;
    imp_mutex_lock(e->place_lock);
    if (rec != NULL) set_coming(m, rec, false);
    note_failure(x->unit, err);
    imp_place_request p = {.model = (uint64_t)(uintptr_t)m,
                           .cost = i.kind == IMP_REQUEST_EMBED ? &m->cost_embed : &m->cost_generate,
                           .embed = i.kind == IMP_REQUEST_EMBED,
                           .n_prompt = i.n_prompt + i.n_generated,
                           .n_gen = 64,
                           .adapters = i.adapters,
                           .chunk = m->inst[m->home].fit.generate.max_tok};
    imp_choice c;
    imp_route_choose(m, &p, &c);
    bool failed[MAX_UNIT] = {false};
    for (uint32_t k = 0; k < e->n_unit; k++) failed[k] = e->unit[k]->failed_ns != 0;
    imp_mutex_unlock(e->place_lock);
    if (rec == NULL || e->quit || m->leaving) return false;
    uint32_t order[MAX_UNIT + 1], n = 0;
    if (c.chosen >= 0) order[n++] = c.cand[c.chosen].prefill;
    for (uint32_t k = 0; k < e->n_unit; k++)
        if (!failed[k] && !e->unit[k]->only_forced) order[n++] = k;
    for (uint32_t k = 0; k < n; k++) {
        uint32_t to = order[k];
        char text[160];
        if (to == x->unit->index) continue;
        if (i.kind != IMP_REQUEST_EMBED && e->unit[to]->device->ops->prefill_only) continue;
        if (i.adapters && !e->unit[to]->device->ops->adapters) continue;
        if (!is_ready(&m->inst[to], i.kind == IMP_REQUEST_EMBED, text, sizeof text)) continue;
        if (m->inst[to].sched == NULL && !open_there(x, to)) continue;
        (void)snprintf(rec->fallback, sizeof rec->fallback, "%.40s failed: %.90s", x->unit->device->name,
                       err->text);
        uint32_t before[2] = {rec->device[0], rec->device[1]};
        if (i.n_generated == 0) rec->device[0] = to;
        rec->device[1] = to;
        if (move(x, to, j)) return true;
        rec->device[0] = before[0], rec->device[1] = before[1];
    }
    return false;
}

static void on_end(void *user, struct job *j, imp_finish finish)
{
    imp_instance *x = user;
    imp_engine *e = x->unit->engine;
    imp_sched_job_info i;
    imp_sched_job_get(j, &i);
    imp_mutex_lock(e->lock);
    x->model->used_ns = imp_now_ns();
    imp_catalog_note(x->model);
    imp_mutex_unlock(e->lock);
    imp_record *rec = i.tag;
    if (rec == NULL) return;
    imp_mutex_lock(e->place_lock);
    set_coming(x->model, rec, false);
    imp_mutex_unlock(e->place_lock);
    rec->phase[0] = i.phase[0];
    rec->phase[1] = i.phase[1];
    rec->queue_ms = i.queue_ms;
    rec->handover = i.handover;
    rec->n_cached = i.n_cached;
    rec->n_restored = i.n_restored;
    rec->restore_ms = i.restore_ms;
    rec->n_drafted = i.n_drafted;
    rec->n_accepted = i.n_accepted;
    rec->finish = finish;
    imp_exec *ran = i.kind == IMP_REQUEST_EMBED ? x->embed : x->generate;
    if (x->unit->device->ops->ran_on != NULL && i.phase[0].n_tok > 0 && rec->device[0] == x->unit->index)
        x->unit->device->ops->ran_on(ran, rec->ran_on, sizeof rec->ran_on);
    if (i.kind == IMP_REQUEST_GENERATE && (finish == IMP_FINISH_STOP || finish == IMP_FINISH_LENGTH)) {
        imp_mutex_lock(e->place_lock);
        x->model->mean_gen += 0.1 * (i.n_generated - x->model->mean_gen);
        imp_mutex_unlock(e->place_lock);
    }
    imp_record_keep(e, rec);
}

static void wake(void *user)
{
    imp_instance *x = user;
    imp_engine *e = x->unit->engine;
    imp_mutex_lock(e->lock);
    imp_unit_wake(x->unit);
    imp_mutex_unlock(e->lock);
}

void imp_route_hooks(imp_instance *x, imp_sched_hooks *out)
{
    *out = (imp_sched_hooks){.user = &x->model->inst[x->unit->index],
                             .on_step = on_step,
                             .predict = predict,
                             .wake = wake,
                             .on_end = on_end,
                             .on_failed = on_failed};
    if (x->unit->engine->n_unit == 1) return;
    out->on_prefilled = on_prefilled;
    out->on_pushed = on_pushed;
    out->receiver = receiver;
    out->on_stranded = on_stranded;
}
