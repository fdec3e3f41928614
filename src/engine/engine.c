/* engine/engine.c - the engine: one device, one scheduler thread, the list of loaded models.
 *
 * Place:   implements impetus.h together with model.c (loading) and text.c (tokens and chats).
 * Idea:    the thread sleeps until a request comes, then lets every model take a step in turn. The device is locked for
 *          a step or a compile, so a model can be loaded while others serve.
 * Always:  a model leaves the list only on the scheduler thread, between steps; so a step needs no lock on it.
 * Threads: public functions from any thread. */
#include <stdio.h>

#include "engine/engine_int.h"

static size_t snapshot(imp_engine *e, imp_model **list)
{
    imp_mutex_lock(e->lock);
    size_t n = e->n_model;
    memcpy(list, e->model, n * sizeof *list);
    imp_mutex_unlock(e->lock);
    return n;
}

/* Take leaving models out (all of them when quitting) and free them. */
static void let_go(imp_engine *e)
{
    imp_model *gone[MAX_MODEL];
    size_t n_gone = 0, kept = 0;
    imp_mutex_lock(e->lock);
    for (size_t i = 0; i < e->n_model; i++) {
        if (e->model[i]->leaving || e->quit)
            gone[n_gone++] = e->model[i];
        else
            e->model[kept++] = e->model[i];
    }
    e->n_model = kept;
    imp_mutex_unlock(e->lock);
    for (size_t i = 0; i < n_gone; i++) imp_model_free(gone[i]);
    if (n_gone == 0) return;
    imp_mutex_lock(e->lock);
    imp_cond_broadcast(e->left);
    imp_mutex_unlock(e->lock);
}

/* Wait for something to do. false: the engine ends. */
static bool wait_for_work(imp_engine *e)
{
    imp_mutex_lock(e->lock);
    for (;;) {
        bool busy = e->quit;
        for (size_t i = 0; i < e->n_model && !busy; i++)
            busy = e->model[i]->leaving || imp_sched_has_work(e->model[i]->sched);
        if (busy) break;
        imp_cond_wait(e->work, e->lock);
    }
    bool quit = e->quit;
    imp_mutex_unlock(e->lock);
    return !quit;
}

static void scheduler_main(void *arg)
{
    imp_engine *e = arg;
    imp_model *list[MAX_MODEL];
    imp_sys_pin_thread(0);
    while (wait_for_work(e)) {
        let_go(e);
        size_t n = snapshot(e, list);
        for (size_t i = 0; i < n; i++) {
            imp_mutex_lock(e->device_lock);
            (void)imp_sched_step(list[i]->sched);
            imp_mutex_unlock(e->device_lock);
        }
    }
    let_go(e);
}

static imp_status choose_kv_dtype(imp_engine *e, imp_error *err)
{
    const char *name = e->config.kv_dtype == NULL ? "f16" : e->config.kv_dtype;
    e->kv_dtype = imp_dtype_from_name(name);
    if (e->kv_dtype == IMP_F16 || e->kv_dtype == IMP_F32) return IMP_OK;
    return imp_fail_field(err, IMP_INVALID, "kv", "the KV cache can be f16 or f32, not \"%.20s\"", name);
}

imp_status imp_engine_new(const imp_engine_config *config, imp_engine **out, imp_error *err)
{
    *out = NULL;
    imp_engine *e = imp_sys_calloc(1, sizeof *e);
    if (e == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory to start");
    if (config != NULL) e->config = *config;
    const char *kind =
        e->config.device == NULL || strcmp(e->config.device, "auto") == 0 ? "cpu" : e->config.device;
    (void)snprintf(e->device_kind, sizeof e->device_kind, "%s", kind);
    e->config.device = e->device_kind;
    imp_status s = choose_kv_dtype(e, err);
    e->config.kv_dtype = NULL;
    if (s == IMP_OK) s = imp_dev_open(e->device_kind, e->config.n_thread, &e->device, err);
    if (s == IMP_OK) {
        s = imp_mutex_new(&e->lock);
        if (s == IMP_OK) s = imp_mutex_new(&e->device_lock);
        if (s == IMP_OK) s = imp_cond_new(&e->work);
        if (s == IMP_OK) s = imp_cond_new(&e->left);
        if (s == IMP_OK) s = imp_thread_start(scheduler_main, e, &e->thread);
        if (s != IMP_OK) (void)imp_fail(err, s, "cannot start the scheduler: %s", imp_status_text(s));
    }
    if (s != IMP_OK) {
        imp_engine_free(e);
        return s;
    }
    *out = e;
    return IMP_OK;
}

void imp_engine_free(imp_engine *e)
{
    if (e == NULL) return;
    if (e->thread != NULL) {
        imp_mutex_lock(e->lock);
        e->quit = true;
        imp_cond_broadcast(e->work);
        imp_mutex_unlock(e->lock);
        imp_thread_join(e->thread);
    }
    if (e->device != NULL) e->device->ops->close(e->device);
    imp_cond_free(e->work);
    imp_cond_free(e->left);
    imp_mutex_free(e->lock);
    imp_mutex_free(e->device_lock);
    imp_sys_free(e);
}

size_t imp_engine_models(imp_engine *e, imp_model **out, size_t cap)
{
    imp_mutex_lock(e->lock);
    for (size_t i = 0; i < e->n_model && i < cap; i++) out[i] = e->model[i];
    size_t n = e->n_model;
    imp_mutex_unlock(e->lock);
    return n;
}

imp_model *imp_engine_find(imp_engine *e, const char *id)
{
    imp_model *m = NULL;
    imp_mutex_lock(e->lock);
    for (size_t i = 0; i < e->n_model && m == NULL; i++)
        if (strcmp(e->model[i]->id, id) == 0 && !e->model[i]->leaving) m = e->model[i];
    imp_mutex_unlock(e->lock);
    return m;
}

imp_status imp_submit(imp_model *m, const imp_request *r, uint64_t *out_id, imp_error *err)
{
    imp_engine *e = m->engine;
    uint64_t id = atomic_fetch_add(&e->next_id, 1) + 1;
    *out_id = id;
    IMP_TRY(imp_sched_submit(m->sched, r, id, err));
    imp_mutex_lock(e->lock);
    imp_cond_broadcast(e->work);
    imp_mutex_unlock(e->lock);
    return IMP_OK;
}

void imp_cancel(imp_engine *e, uint64_t id)
{
    imp_mutex_lock(e->lock);
    for (size_t i = 0; i < e->n_model; i++)
        if (imp_sched_cancel(e->model[i]->sched, id)) break;
    imp_mutex_unlock(e->lock);
}

void imp_engine_get_stats(imp_engine *e, imp_stats *out)
{
    imp_mutex_lock(e->lock);
    *out = e->past;
    for (size_t i = 0; i < e->n_model; i++) imp_sched_add_stats(e->model[i]->sched, out);
    imp_mutex_unlock(e->lock);
}
