/* api/call.c - one HTTP request that waits for one or more engine requests.
 *
 * Place:   under generate.c and embeddings.c; over imp_submit and imp_cancel.
 * Idea:    n_left counts the running engine requests, and one more while they are being submitted, so that events
 *          that come before the last submit are only collected. Who brings it to 0 finishes the call.
 * Always:  every accepted engine request is waited for, also after an error or a cancel; finish runs exactly once.
 * Threads: events come from the scheduler's thread, cancel from the HTTP side. imp_submit and imp_cancel are called
 *          without the call's mutex, because an event may hold the engine's own locks while it waits for ours. */
#include "api/internal.h"

#include <stdio.h>

imp_status imp_call_init(imp_api_call *c, imp_api *a, const imp_api_sink *sink, imp_dialect dialect,
                         size_t n_slot)
{
    imp_mutex *mu;
    IMP_TRY(imp_mutex_new(&mu));
    imp_call_slot *slot = imp_sys_calloc(n_slot, sizeof *slot);
    if (!slot) {
        imp_mutex_free(mu);
        return IMP_NOMEM;
    }
    c->api = a;
    c->sink = *sink;
    c->mu = mu;
    c->slot = slot;
    c->n_slot = n_slot;
    c->n_left = 1;
    c->dialect = dialect;
    c->t0_ns = imp_now_ns();
    atomic_init(&c->refs, 2); /* one until the final event, one for the caller */
    atomic_fetch_add(&a->refs, 1);
    for (size_t i = 0; i < n_slot; i++) slot[i] = (imp_call_slot){.call = c, .index = i};
    return IMP_OK;
}

void imp_call_waited(imp_api_call *c, uint64_t ns)
{
    c->waited_ns = ns;
    c->t0_ns -= ns;
}

void imp_call_unref(imp_api_call *c)
{
    if (atomic_fetch_sub(&c->refs, 1) != 1) return;
    imp_api *a = c->api;
    if (c->on_free) c->on_free(c);
    imp_sys_free(c->slot);
    imp_mutex_free(c->mu);
    imp_sys_free(c);
    imp_api_unref(a);
}

void imp_api_release(imp_api_call *c)
{
    if (c) imp_call_unref(c);
}

/* Times of tokens, for the histograms and the log. */
static void note_text(imp_api_call *c, imp_call_slot *s)
{
    uint64_t now = imp_now_ns();
    if (!c->first_ns) {
        c->first_ns = now;
        imp_hist_add(&c->api->first_token, (double)(now - c->t0_ns) * 1e-9);
    }
    if (s->last_ns) imp_hist_add(&c->api->inter_token, (double)(now - s->last_ns) * 1e-9);
    s->last_ns = now;
}

static void note_done(imp_api_call *c, const imp_event *ev)
{
    static const char *const name[] = {"stop", "length", "cancelled", "error"};
    c->note.n_prompt += ev->usage.n_prompt;
    c->note.n_cached += ev->usage.n_cached;
    c->note.n_generated += ev->usage.n_generated;
    c->note.finish = name[ev->finish];
    atomic_fetch_add(&c->api->n_finish[ev->finish], 1);
}

/* All is done: last words to the log, then to the client. */
static void finish(imp_api_call *c)
{
    if (c->note.finish) imp_hist_add(&c->api->request, (double)(imp_now_ns() - c->t0_ns) * 1e-9);
    if (c->sink.note && c->note.model[0]) {
        char *device = imp_receipt_device(c->api->config.engine, c->slot[0].id);
        c->note.id = c->slot[0].id;
        c->note.ttft_ms = c->first_ns ? (double)(c->first_ns - c->t0_ns) * 1e-6 : -1;
        (void)snprintf(c->note.device, sizeof c->note.device, "%s", device ? device : "");
        imp_free(device);
        c->sink.note(c->sink.user, &c->note);
    }
    c->on_finish(c);
}

static void on_event(void *user, uint64_t id, const imp_event *ev)
{
    imp_call_slot *s = user;
    imp_api_call *c = s->call;
    imp_mutex_lock(c->mu);
    s->id = id;
    bool last = false;
    if (ev->kind == IMP_EVENT_TEXT && ev->n_text > 0) note_text(c, s);
    if (ev->kind == IMP_EVENT_DONE) {
        s->done = true;
        last = --c->n_left == 0;
        note_done(c, ev);
        bool failed = ev->finish == IMP_FINISH_ERROR || ev->finish == IMP_FINISH_CANCELLED;
        if (failed && c->err.status == IMP_OK) {
            if (ev->error) c->err = *ev->error;
            if (c->err.status == IMP_OK)
                imp_fail(&c->err, ev->finish == IMP_FINISH_ERROR ? IMP_INTERNAL : IMP_CANCELLED,
                         "request ended early");
        }
    }
    c->on_event(c, s, ev);
    imp_mutex_unlock(c->mu);
    if (last) finish(c);
}

imp_status imp_call_submit(imp_api_call *c, size_t i, imp_model *m, imp_request *rq, imp_error *err)
{
    imp_call_slot *s = &c->slot[i];
    rq->on_event = on_event;
    rq->user = s;
    rq->client = c->who.client;
    rq->cache_scope = c->who.cache_scope;
    if (c->who.limited) rq->priority = c->who.priority + IMP_MAX(rq->priority, 0);
    const char *id_model = imp_model_get_info(m)->id;
    imp_mutex_lock(c->mu);
    if (!c->note.model[0]) {
        size_t n = IMP_MIN(strlen(id_model), sizeof c->note.model - 1);
        memcpy(c->note.model, id_model, n);
        c->note.model[n - imp_utf8_incomplete_tail(id_model, n)] = '\0';
    }
    c->n_left++;
    imp_mutex_unlock(c->mu);
    uint64_t id = 0;
    imp_status st = imp_submit(m, rq, &id, err);
    imp_mutex_lock(c->mu);
    if (st != IMP_OK) {
        c->n_left--; /* never the last: the submitting phase holds one */
    } else {
        s->id = id;
        s->submitted = true;
    }
    imp_mutex_unlock(c->mu);
    return st;
}

static void cancel_all(imp_api_call *c)
{
    for (size_t i = 0; i < c->n_slot; i++) {
        imp_mutex_lock(c->mu);
        bool running = c->slot[i].submitted && !c->slot[i].done;
        uint64_t id = c->slot[i].id;
        imp_mutex_unlock(c->mu);
        if (running) imp_cancel(c->api->config.engine, id);
    }
}

void imp_call_go(imp_api_call *c, const imp_error *err)
{
    imp_mutex_lock(c->mu);
    if (err)
        c->err = *err;
    else
        c->started = true;
    bool cancel = err || c->reason != 0;
    if (c->started && c->on_start) c->on_start(c);
    imp_mutex_unlock(c->mu);
    if (cancel) cancel_all(c);
    imp_mutex_lock(c->mu);
    bool last = --c->n_left == 0;
    imp_mutex_unlock(c->mu);
    if (last) finish(c);
}

void imp_api_cancel(imp_api_call *c, imp_api_reason reason)
{
    imp_mutex_lock(c->mu);
    bool first = c->reason == 0;
    if (first) c->reason = reason;
    imp_mutex_unlock(c->mu);
    if (first) cancel_all(c);
    if (first && c->on_cancel) c->on_cancel(c);
}

static bool suits(const imp_model_info *info, bool embed)
{
    return embed ? info->can_embed : info->can_generate;
}

static imp_model *find(imp_api *a, const char *id, imp_dialect dialect)
{
    imp_model *m = imp_engine_find(a->config.engine, id);
    size_t n = strlen(id), tail = sizeof ":latest" - 1;
    if (m || dialect != IMP_OLLAMA || n <= tail || strcmp(id + n - tail, ":latest") != 0) return m;
    char name[256]; /* clients of Ollama add the tag that means "no tag" */
    if (n - tail >= sizeof name) return NULL;
    memcpy(name, id, n - tail);
    name[n - tail] = '\0';
    return imp_engine_find(a->config.engine, name);
}

imp_model *imp_api_model_named(imp_api *a, const char *id, imp_dialect dialect, imp_error *err)
{
    imp_model *m = find(a, id, dialect);
    if (!m)
        (void)imp_fail_field(err, IMP_NOT_FOUND, "model",
                             "the model '%.200s' is not known here; the list of models says which are", id);
    return m;
}

imp_model *imp_api_model(imp_api *a, const char *id, bool embed, imp_dialect dialect, imp_error *err)
{
    const char *what = embed ? "make embeddings" : "generate text";
    if (id) {
        imp_model *m = imp_api_model_named(a, id, dialect, err);
        if (!m) return NULL;
        if (suits(imp_model_get_info(m), embed)) return m;
        imp_model_release(m);
        (void)imp_fail_field(err, IMP_INVALID, "model", "the model '%.200s' cannot %s", id, what);
        return NULL;
    }
    imp_model **list, *found = NULL;
    size_t n = imp_api_list(a, &list), n_fit = 0;
    if (!list) {
        (void)imp_fail(err, IMP_NOMEM, "out of memory");
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        if (!suits(imp_model_get_info(list[i]), embed)) continue;
        if (n_fit++ > 0) continue;
        found = list[i];
        list[i] = NULL; /* its reference is kept */
    }
    imp_api_list_free(list, n);
    if (n_fit == 1) return found;
    imp_model_release(found);
    if (n_fit == 0)
        (void)imp_fail_field(err, IMP_NOT_FOUND, "model", "no loaded model can %s", what);
    else
        (void)imp_fail_field(err, IMP_INVALID, "model",
                             "'model' is missing, and %zu loaded models can %s: name one", n_fit, what);
    return NULL;
}
