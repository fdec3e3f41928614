/* app/request.c - one request from submit to its end, for commands that wait for it.
 *
 * Idea:    the engine's callback appends text to a buffer and wakes the main thread, which writes it out: a slow
 *          terminal never holds up the scheduler.
 * Threads: on_event runs on the scheduler's thread; everything else on the caller's. */
#include "app/app.h"
#include "base/thread.h"

typedef struct app_request {
    const app_sink *sink;
    imp_mutex *lock;
    imp_cond *changed;
    /* under lock */
    imp_buf text;
    bool done;
    imp_finish finish;
    imp_usage usage;
    imp_error err;
} app_request;

static void on_event(void *user, uint64_t id, const imp_event *ev)
{
    app_request *q = user;
    (void)id;
    if (ev->kind == IMP_EVENT_EMBEDDING || ev->kind == IMP_EVENT_LOGITS) {
        if (q->sink->vector) q->sink->vector(q->sink->user, ev->index, ev->vector, ev->n_vector);
        return;
    }
    imp_mutex_lock(q->lock);
    if (ev->kind == IMP_EVENT_TEXT) {
        imp_buf_add(&q->text, ev->text, ev->n_text);
    } else {
        q->done = true;
        q->finish = ev->finish;
        q->usage = ev->usage;
        if (ev->error) q->err = *ev->error;
    }
    imp_cond_broadcast(q->changed);
    imp_mutex_unlock(q->lock);
}

/* Wait for text or the end; take the text that has come. false: the end. */
static bool wait_text(app_request *q, imp_buf *out, bool *interrupted)
{
    imp_mutex_lock(q->lock);
    while (!q->done && q->text.n == 0 && !*interrupted) {
        (void)imp_cond_wait_ms(q->changed, q->lock, 100);
        *interrupted = app_signals_count() > 0;
    }
    out->n = 0;
    if (q->text.n) imp_buf_add(out, q->text.data, q->text.n);
    q->text.n = 0;
    bool more = !q->done;
    imp_mutex_unlock(q->lock);
    return more;
}

static void wait_end(app_request *q)
{
    imp_mutex_lock(q->lock);
    while (!q->done) imp_cond_wait(q->changed, q->lock);
    imp_mutex_unlock(q->lock);
}

/* Hand the text on until the request has ended, cancelling it when the user or the reader has had enough. */
static imp_status follow(app_request *q, imp_engine *e, uint64_t id, app_outcome *out, imp_error *err)
{
    imp_buf text = {0};
    bool cancelled = false, more = true;
    while (more) {
        bool interrupted = false;
        more = wait_text(q, &text, &interrupted);
        if (text.n && !cancelled && q->sink->text && !q->sink->text(q->sink->user, text.data, text.n))
            interrupted = true;
        else if (interrupted)
            out->interrupted = true;
        if (interrupted && !cancelled) {
            cancelled = true;
            imp_cancel(e, id);
            wait_end(q);
        }
    }
    bool failed = text.failed || q->text.failed;
    imp_buf_deinit(&text);
    out->finish = q->finish;
    out->usage = q->usage;
    if (failed) return imp_fail(err, IMP_NOMEM, "no memory for the answer");
    if (q->finish == IMP_FINISH_ERROR) {
        *err = q->err;
        return q->err.status ? q->err.status : IMP_INTERNAL;
    }
    return IMP_OK;
}

imp_status app_request_run(imp_engine *e, imp_model *m, imp_request *r, const app_sink *sink,
                           app_outcome *out, imp_error *err)
{
    app_request q = {.sink = sink};
    uint64_t id;
    *out = (app_outcome){0};
    imp_status s = imp_mutex_new(&q.lock);
    if (s == IMP_OK) s = imp_cond_new(&q.changed);
    if (s != IMP_OK) (void)imp_fail(err, s, "no memory for a request");
    if (s == IMP_OK) {
        r->on_event = on_event;
        r->user = &q;
        s = imp_submit(m, r, &id, err);
    }
    if (s == IMP_OK) s = follow(&q, e, id, out, err);
    imp_buf_deinit(&q.text);
    if (q.changed) imp_cond_free(q.changed);
    if (q.lock) imp_mutex_free(q.lock);
    return s;
}
