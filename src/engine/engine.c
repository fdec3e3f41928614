/* engine/engine.c - the engine: its units, one scheduler thread each, the list of loaded models.
 *
 * Place:   implements impetus.h together with model.c (loading), route.c (who runs what), record.c (receipts) and text.c
 *          (tokens and chats).
 * Idea:    a unit's thread sleeps until one of its schedulers has work, then lets every model take a step in turn. The
 *          unit's device is locked for a step or a compile, so a model can be loaded while others serve.
 * Always:  an instance goes only on its unit's thread, between steps, when nobody holds it; the model goes with its last
 *          instance and reference.
 * Threads: public functions from any thread. */
#include <math.h>
#include <stdio.h>

#include "engine/engine_int.h"
#include "kern/kv.h"

/* What running requests adds to the program beside its models: pages of code, threads, buffers of a request. Measured on
 * Linux with bench/memory.py; the larger part is code. */
enum { SERVING_BYTES = 4 << 20 };
/* Seconds that giving caches to be saved may take, when a model leaves and others wait for the unit, and at the end. */
#define SAVE_AT_UNLOAD_S 1.0
#define SAVE_AT_END_S    20.0

typedef struct snapshot {
    imp_instance *inst[MAX_MODEL];
    size_t n;
} snapshot;

static void take_snapshot(imp_unit *u, snapshot *s)
{
    imp_engine *e = u->engine;
    imp_mutex_lock(e->lock);
    s->n = 0;
    for (size_t i = 0; i < e->n_model; i++)
        if (e->model[i]->inst[u->index].sched != NULL) s->inst[s->n++] = &e->model[i]->inst[u->index];
    imp_mutex_unlock(e->lock);
}

static bool instances_left(const imp_model *m)
{
    for (uint32_t i = 0; i < MAX_UNIT; i++)
        if (m->inst[i].sched != NULL) return true;
    return false;
}

/* Counters of schedulers that go stay counted; what is there no more is not. */
static void add_past(imp_engine *e, const imp_stats *s)
{
    imp_stats *p = &e->past;
    p->n_request += s->n_request;
    p->n_done += s->n_done;
    p->n_cancelled += s->n_cancelled + s->n_running + s->n_waiting; /* they end with it */
    p->n_failed += s->n_failed;
    p->n_refused += s->n_refused;
    p->n_prompt_tok += s->n_prompt_tok;
    p->n_generated_tok += s->n_generated_tok;
    p->n_embedded_tok += s->n_embedded_tok;
    p->n_step += s->n_step;
    p->step_s += s->step_s;
    p->prefill_s += s->prefill_s;
    p->decode_s += s->decode_s;
    p->n_cache_query_tok += s->n_cache_query_tok;
    p->n_cache_hit_tok += s->n_cache_hit_tok;
    p->n_preempted += s->n_preempted;
    p->n_restored_tok += s->n_restored_tok;
}

/* Take this unit's instances of leaving models out (of all models when quitting); who takes the last frees the model. */
static void let_go(imp_unit *u)
{
    imp_engine *e = u->engine;
    imp_instance gone[MAX_MODEL];
    imp_model *empty[MAX_MODEL];
    size_t n_gone = 0, n_empty = 0;
    imp_mutex_lock(e->lock);
    for (size_t i = 0; i < e->n_model; i++) {
        imp_model *m = e->model[i];
        imp_instance *x = &m->inst[u->index];
        if (!(m->leaving || e->quit) || x->sched == NULL || x->n_using > 0) continue;
        gone[n_gone++] = *x;
        m->n_going++;
        imp_mutex_lock(
            e->place_lock); /* who looks at the units' loads under it sees the scheduler or nothing */
        *x = (imp_instance){.unit = u, .model = m};
        imp_mutex_unlock(e->place_lock);
    }
    double save_s = e->quit ? SAVE_AT_END_S : SAVE_AT_UNLOAD_S;
    imp_mutex_unlock(e->lock);
    if (n_gone == 0) return;
    imp_stats past = {0};
    for (size_t i = 0; i < n_gone; i++) {
        imp_sched_add_stats(gone[i].sched, &past);
        (void)imp_sched_save(gone[i].sched, save_s);
        imp_instance_free(&gone[i]);
    }
    imp_mutex_lock(e->lock);
    add_past(e, &past);
    size_t kept = 0;
    for (size_t i = 0; i < e->n_model; i++) {
        imp_model *m = e->model[i];
        bool mine = false;
        for (size_t k = 0; k < n_gone; k++) mine = mine || gone[k].model == m;
        if (mine) m->n_going--;
        if (!mine || m->n_going > 0 || instances_left(m)) {
            e->model[kept++] = m;
        } else if (m->n_ref == 0) {
            empty[n_empty++] = m;
        } else {
            m->leaving = true;
            m->next = e->gone;
            e->gone = m;
        }
    }
    e->n_model = kept;
    imp_mutex_unlock(e->lock);
    for (size_t i = 0; i < n_empty; i++) imp_model_free(empty[i]);
    imp_mutex_lock(e->lock);
    imp_cond_broadcast(e->left);
    imp_mutex_unlock(e->lock);
}

static bool has_work(const imp_unit *u)
{
    const imp_engine *e = u->engine;
    bool busy = e->quit;
    for (size_t i = 0; i < e->n_model && !busy; i++) {
        const imp_instance *x = &e->model[i]->inst[u->index];
        busy = x->sched != NULL && (e->model[i]->leaving || imp_sched_can_step(x->sched));
    }
    return busy;
}

/* A cache is on its way to one of the unit's models. */
static bool expects(const imp_unit *u)
{
    const imp_engine *e = u->engine;
    bool any = false;
    for (size_t i = 0; i < e->n_model && !any; i++) {
        imp_sched *s = e->model[i]->inst[u->index].sched;
        any = s != NULL && imp_sched_expects(s);
    }
    return any;
}

/* Wait for something to do. false: the engine ends. */
static bool wait_for_work(imp_unit *u)
{
    imp_engine *e = u->engine;
    imp_mutex_lock(e->lock);
    u->asleep = true;
    while (!has_work(u)) {
        /* A cache on its way here that is given up wakes nobody: its request may end anywhere. */
        if (expects(u))
            (void)imp_cond_wait_ms(u->work, e->lock, 100);
        else
            imp_cond_wait(u->work, e->lock);
    }
    u->asleep = false;
    bool quit = e->quit;
    imp_mutex_unlock(e->lock);
    return !quit;
}

/* A step of every model, then embeddings. Beside sequences that generate these get IMP_EMBED_SHARE of the time that their
 * steps take; an input that alone takes longer waits until that much has come together. */
static void run_round(imp_unit *u, const snapshot *s)
{
    double generating = 0, t;
    bool pending = false;
    for (size_t i = 0; i < s->n; i++) {
        imp_mutex_lock(u->device_lock);
        (void)imp_sched_step_generate(s->inst[i]->sched, &t);
        imp_mutex_unlock(u->device_lock);
        generating += t;
    }
    u->lane_s += IMP_EMBED_SHARE * generating;
    for (size_t i = 0; i < s->n; i++) {
        bool more;
        imp_mutex_lock(u->device_lock);
        (void)imp_sched_step_embed(s->inst[i]->sched, generating > 0 ? u->lane_s : INFINITY, &t, &more);
        imp_mutex_unlock(u->device_lock);
        u->lane_s -= t;
        pending = pending || more;
    }
    if (generating == 0) u->lane_s = 0;
    if (!pending) u->lane_s = IMP_MIN(u->lane_s, IMP_EMBED_SHARE * generating);
}

static void scheduler_main(void *arg)
{
    imp_unit *u = arg;
    snapshot s;
    if (u->engine->n_unit == 1) imp_sys_pin_thread(0, 0);
    while (wait_for_work(u)) {
        let_go(u);
        take_snapshot(u, &s);
        run_round(u, &s);
    }
    do { /* whoever holds an instance lets it go soon */
        let_go(u);
        take_snapshot(u, &s);
    } while (s.n > 0);
}

static imp_status choose_kv_dtype(imp_engine *e, imp_error *err)
{
    const char *name = e->config.kv_dtype == NULL ? "f16" : e->config.kv_dtype;
    if (imp_kv_type_from_name(name, &e->kv_dtype)) return IMP_OK;
    return imp_fail_field(err, IMP_INVALID, "kv", "the KV cache can be f32, f16, q8_0 or q4, not \"%.20s\"",
                          name);
}

static imp_status choose_policy(imp_engine *e, imp_error *err)
{
    imp_placer *p = &e->placer;
    imp_placer_init(p);
    p->watt_cap = e->config.watt_cap;
    p->joule_cap = e->config.joule_cap;
    if (e->config.policy != NULL && !imp_policy_from_name(e->config.policy, &p->policy))
        return imp_fail_field(err, IMP_INVALID, "policy",
                              "the policy can be latency, throughput or energy, not \"%.20s\"",
                              e->config.policy);
    p->pace = p->policy == IMP_POLICY_LATENCY ? IMP_PACE : 0;
    return IMP_OK;
}

static imp_status start(imp_engine *e, imp_error *err)
{
    imp_status s = imp_mutex_new(&e->lock);
    if (s == IMP_OK) s = imp_mutex_new(&e->open_lock);
    if (s == IMP_OK) s = imp_mutex_new(&e->place_lock);
    if (s == IMP_OK) s = imp_mutex_new(&e->record_lock);
    if (s == IMP_OK) s = imp_cond_new(&e->left);
    if (s == IMP_OK) s = imp_cond_new(&e->later_work);
    if (s != IMP_OK) return imp_fail(err, s, "cannot start: %s", imp_status_text(s));
    IMP_TRY(imp_catalog_new(e, err));
    if (e->config.db_path != NULL) {
        imp_error why; /* without the store everything works, only nothing is remembered */
        if (imp_store_open(e->config.db_path, &e->store, &why) != IMP_OK)
            imp_log(IMP_LOG_WARN, "%s", why.text);
    }
    if (e->config.kv_dir != NULL && e->config.kv_disk_bytes > 0) {
        imp_error why; /* the same */
        if (imp_kv_store_open(e->config.kv_dir, e->config.kv_disk_bytes, &e->kv_store, &why) != IMP_OK)
            imp_log(IMP_LOG_WARN, "caches are not kept on disk: %s", why.text);
    }
    if (e->store != NULL) IMP_TRY(imp_records_start(e, err));
    IMP_TRY(imp_units_open(e, e->config.device, err));
    for (uint32_t i = 0; i < e->n_unit; i++) {
        s = imp_thread_start(scheduler_main, e->unit[i], &e->unit[i]->thread);
        if (s != IMP_OK) return imp_fail(err, s, "cannot start the scheduler: %s", imp_status_text(s));
    }
    return IMP_OK;
}

imp_status imp_engine_new(const imp_engine_config *config, imp_engine **out, imp_error *err)
{
    *out = NULL;
    imp_engine *e = imp_sys_calloc(1, sizeof *e);
    if (e == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory to start");
    if (config != NULL) e->config = *config;
    imp_status s = choose_kv_dtype(e, err);
    if (s == IMP_OK) s = choose_policy(e, err);
    if (s == IMP_OK) s = start(e, err);
    e->process_bytes = imp_sys_resident() + SERVING_BYTES;
    uint64_t total;
    imp_sys_memory(&total, &e->mem_at_start);
    e->config.kv_dtype = e->config.device = e->config.policy = e->config.db_path = e->config.kv_dir = NULL;
    if (s != IMP_OK) {
        imp_engine_free(e);
        return s;
    }
    *out = e;
    return IMP_OK;
}

void imp_unit_wake(imp_unit *u)
{
    imp_cond_broadcast(u->work);
}

void imp_engine_free(imp_engine *e)
{
    if (e == NULL) return;
    if (e->lock != NULL) {
        imp_mutex_lock(e->lock);
        e->quit = true;
        for (uint32_t i = 0; i < e->n_unit; i++)
            if (e->unit[i]->work != NULL) imp_unit_wake(e->unit[i]);
        if (e->later_work != NULL) imp_cond_broadcast(e->later_work);
        imp_mutex_unlock(e->lock);
    }
    imp_catalog_stop(e);
    imp_later_stop(e);
    for (uint32_t i = 0; i < e->n_unit; i++)
        if (e->unit[i]->thread != NULL) imp_thread_join(e->unit[i]->thread);
    while (e->gone != NULL) {
        imp_model *m = e->gone;
        e->gone = m->next;
        imp_model_free(m);
    }
    imp_kv_store_close(e->kv_store);
    imp_records_stop(e);
    imp_units_close(e);
    imp_records_free(e);
    imp_store_close(e->store);
    imp_catalog_free(e);
    imp_adapters_free(e);
    imp_cond_free(e->left);
    imp_cond_free(e->later_work);
    imp_mutex_free(e->lock);
    imp_mutex_free(e->open_lock);
    imp_mutex_free(e->place_lock);
    imp_mutex_free(e->record_lock);
    imp_sys_free(e);
}

size_t imp_engine_models(imp_engine *e, imp_model **out, size_t cap)
{
    imp_mutex_lock(e->lock);
    size_t n = 0;
    for (size_t i = 0; i < e->n_model; i++) {
        if (e->model[i]->leaving) continue;
        if (n < cap) {
            out[n] = e->model[i];
            out[n]->n_ref++;
        }
        n++;
    }
    imp_mutex_unlock(e->lock);
    return n;
}

imp_model *imp_engine_find(imp_engine *e, const char *id)
{
    imp_model *m = NULL;
    imp_mutex_lock(e->lock);
    id = imp_catalog_meaning(e, id);
    for (size_t i = 0; i < e->n_model && m == NULL; i++)
        if (strcmp(e->model[i]->id, id) == 0 && !e->model[i]->leaving) m = e->model[i];
    if (m != NULL) m->n_ref++;
    imp_mutex_unlock(e->lock);
    return m;
}

void imp_model_release(imp_model *m)
{
    if (m == NULL) return;
    imp_engine *e = m->engine;
    bool last = false;
    imp_mutex_lock(e->lock);
    m->n_ref--;
    imp_catalog_note(m);
    for (imp_model **at = &e->gone; *at != NULL && m->n_ref == 0 && !last; at = &(*at)->next) {
        if (*at != m) continue;
        *at = m->next;
        last = true;
        break;
    }
    imp_mutex_unlock(e->lock);
    if (last) imp_model_free(m);
}

imp_sched *imp_instance_hold(imp_model *m, uint32_t unit)
{
    imp_mutex_lock(m->engine->lock);
    imp_instance *x = &m->inst[unit];
    imp_sched *s = m->leaving || m->engine->quit ? NULL : x->sched;
    if (s != NULL) x->n_using++;
    imp_mutex_unlock(m->engine->lock);
    return s;
}

void imp_instance_unhold(imp_model *m, uint32_t unit, bool wake)
{
    imp_mutex_lock(m->engine->lock);
    imp_instance *x = &m->inst[unit];
    x->n_using--;
    if (wake || m->leaving || m->engine->quit) imp_unit_wake(x->unit);
    imp_mutex_unlock(m->engine->lock);
}

void imp_cancel(imp_engine *e, uint64_t id)
{
    imp_mutex_lock(e->lock);
    bool found = false;
    for (size_t i = 0; i < e->n_model && !found; i++)
        for (uint32_t k = 0; k < e->n_unit && !found; k++) {
            imp_sched *s = e->model[i]->inst[k].sched;
            found = s != NULL && imp_sched_cancel(s, id);
        }
    imp_mutex_unlock(e->lock);
}

void imp_engine_get_stats(imp_engine *e, imp_stats *out)
{
    imp_mutex_lock(e->lock);
    *out = e->past;
    for (size_t i = 0; i < e->n_model; i++)
        for (uint32_t k = 0; k < e->n_unit; k++)
            if (e->model[i]->inst[k].sched != NULL) imp_sched_add_stats(e->model[i]->inst[k].sched, out);
    imp_mutex_unlock(e->lock);
    if (e->kv_store == NULL) return;
    imp_kv_store_stats d;
    imp_kv_store_get_stats(e->kv_store, &d);
    out->n_kv_saved = d.n_saved;
    out->n_kv_loaded = d.n_loaded;
    out->n_kv_refused = d.n_refused;
    out->n_kv_evicted = d.n_evicted;
    out->kv_disk_bytes = d.bytes;
    out->kv_disk_files = d.n_file;
}

bool imp_engine_save_caches(imp_engine *e)
{
    if (e->kv_store == NULL) return false;
    imp_model *m[MAX_MODEL];
    size_t n = imp_engine_models(e, m, MAX_MODEL);
    for (size_t i = 0; i < n && i < MAX_MODEL; i++) {
        for (uint32_t k = 0; k < e->n_unit; k++) {
            imp_sched *s = imp_instance_hold(m[i], k);
            if (s == NULL) continue;
            imp_sched_want_save(s);
            imp_instance_unhold(m[i], k, true);
        }
        imp_model_release(m[i]);
    }
    return true;
}
