/* engine/later.c - units that join a model while it serves already.
 *
 * Place:   model.c leaves units here whose compile takes long (imp_device_ops.slow_compile); a device that becomes
 *          ready for a model only later calls imp_instance_open_later itself.
 * Idea:    one thread opens them one after the other. A unit that is ready becomes a candidate of the next choice;
 *          one that fails says why in plan and explain, and nobody waited for it.
 * Always:  a model that waits here holds a reference of its own.
 * Threads: imp_instance_open_later from any; the opening on the one thread. */
#include "engine/engine_int.h"

static bool take(imp_engine *e, imp_later *out)
{
    imp_mutex_lock(e->lock);
    while (e->n_later == 0 && !e->quit) imp_cond_wait(e->later_work, e->lock);
    bool more = !e->quit;
    if (more) {
        *out = e->later[0];
        memmove(e->later, e->later + 1, --e->n_later * sizeof e->later[0]);
    }
    imp_mutex_unlock(e->lock);
    return more;
}

static void opener_main(void *arg)
{
    imp_engine *e = arg;
    imp_later l;
    while (take(e, &l)) {
        imp_error err;
        if (imp_instance_open(l.model, l.unit, &err) == IMP_OK)
            imp_log(IMP_LOG_INFO, "%s: %s has joined", l.model->id, l.unit->device->name);
        else
            imp_log(IMP_LOG_WARN, "%s goes on without %s: %s", l.model->id, l.unit->device->name, err.text);
        imp_model_release(l.model);
    }
}

imp_status imp_instance_open_later(imp_model *m, imp_unit *u)
{
    imp_engine *e = m->engine;
    imp_status s = IMP_OK;
    imp_mutex_lock(e->lock);
    if (m->leaving || e->quit) s = IMP_NOT_READY;
    if (s == IMP_OK && e->n_later == IMP_COUNT(e->later)) s = IMP_BUSY;
    if (s == IMP_OK && e->opener == NULL) s = imp_thread_start(opener_main, e, &e->opener);
    if (s == IMP_OK) {
        m->n_ref++;
        e->later[e->n_later++] = (imp_later){m, u};
        imp_cond_broadcast(e->later_work);
    }
    imp_mutex_unlock(e->lock);
    return s;
}

void imp_later_stop(imp_engine *e)
{
    if (e->opener != NULL) imp_thread_join(e->opener);
    e->opener = NULL;
    e->n_later = 0; /* their references end with the engine */
}
