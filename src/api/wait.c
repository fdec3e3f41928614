/* api/wait.c - requests whose model is not loaded yet.
 *
 * Place:   between route.c and the handlers of endpoints that name a model.
 * Idea:    the model's name is read from the body without parsing the rest. A loaded model is held while the handler runs,
 *          so that it cannot go in between. For another one that the engine knows the whole request is checked first, then
 *          copied and put aside; when the model is there it is answered as if it came then.
 * Always:  the sink is ended once: by the handler, or by this call when the load failed or was cancelled.
 * Threads: the load's end comes on the engine's thread for loading, a cancel from the HTTP side. */
#include "api/internal.h"

#include <ctype.h>
#include <math.h>

/* ---- the name ------------------------------------------------------------------------------------------- */

/* The end of the string whose quote is at s[i]; n: there is none. */
static size_t string_end(const char *s, size_t n, size_t i)
{
    for (i++; i < n && s[i] != '"'; i++)
        if (s[i] == '\\') i++;
    return IMP_MIN(i, n);
}

static size_t skip_space(const char *s, size_t n, size_t i)
{
    while (i < n && isspace((unsigned char)s[i])) i++;
    return i;
}

/* The value of "model" (or, for some, "name") in the outermost object. false: there is none that is plain text; the
 * handler will say what is wrong. */
static bool find_name(const char *s, size_t n, char *out, size_t cap)
{
    size_t depth = 0;
    for (size_t i = 0; i < n; i++) {
        depth += s[i] == '{' || s[i] == '[';
        depth -= (s[i] == '}' || s[i] == ']') && depth > 0;
        if (s[i] != '"') continue;
        size_t end = string_end(s, n, i), colon = skip_space(s, n, end + 1);
        bool ours = depth == 1 && colon < n && s[colon] == ':' &&
                    ((end - i == 6 && memcmp(s + i + 1, "model", 5) == 0) ||
                     (end - i == 5 && memcmp(s + i + 1, "name", 4) == 0));
        size_t v = skip_space(s, n, colon + 1);
        if (!ours || v >= n || s[v] != '"') {
            i = end;
            continue;
        }
        end = string_end(s, n, v);
        if (end >= n || end - v > cap || memchr(s + v, '\\', end - v) != NULL) return false;
        memcpy(out, s + v + 1, end - v - 1);
        out[end - v - 1] = '\0';
        return end - v > 1;
    }
    return false;
}

/* ---- a request put aside ----------------------------------------------------------------------------------- */

typedef struct wait_call {
    imp_api_call base; /* first */
    imp_api_request rq;
    char *method, *path, *body; /* copies for rq */
    imp_endpoint ep;
    imp_api_handler fn;
    imp_api_call *inner; /* what the handler made of it; base.mu */
} wait_call;

static void on_free(imp_api_call *base)
{
    wait_call *w = (wait_call *)base;
    imp_api_release(w->inner);
    imp_sys_free(w->method);
    imp_sys_free(w->path);
    imp_sys_free(w->body);
}

/* What went wrong with a load, for a client: no paths. */
static void say_failed(const imp_api_call *c, const imp_error *err)
{
    imp_error e = *err;
    bool plain =
        e.status == IMP_NO_FIT || e.status == IMP_NOMEM || e.status == IMP_CANCELLED || e.status == IMP_BUSY;
    if (!plain)
        (void)imp_fail_field(&e, IMP_FORMAT, "model",
                             "the model could not be loaded (%s): the server's log says why",
                             imp_status_text(err->status));
    imp_api_fail(&c->sink, c->dialect, &e);
}

static void on_ready(void *user, imp_model *m, const imp_error *err)
{
    wait_call *w = user;
    imp_api_call *c = &w->base, *inner = NULL;
    imp_mutex_lock(c->mu);
    imp_api_reason reason = c->reason;
    imp_mutex_unlock(c->mu);
    imp_error gone;
    (void)imp_fail(&gone, IMP_CANCELLED, "cancelled while its model was loaded");
    if (reason != 0 || m == NULL) {
        say_failed(c, reason != 0 ? &gone : err);
    } else {
        w->rq.waited_ns = imp_now_ns() - c->t0_ns;
        inner = w->fn(c->api, &w->rq, w->ep, &c->sink);
        imp_mutex_lock(c->mu);
        w->inner = inner;
        reason = c->reason;
        imp_mutex_unlock(c->mu);
        if (inner != NULL && reason != 0) imp_api_cancel(inner, reason);
    }
    imp_model_release(m);
    imp_call_unref(c);
}

static void on_cancel(imp_api_call *c)
{
    wait_call *w = (wait_call *)c;
    if (imp_engine_give_up(c->api->config.engine, on_ready, w)) {
        imp_error gone;
        (void)imp_fail(&gone, IMP_CANCELLED, "cancelled while its model was loaded");
        on_ready(w, NULL, &gone);
        return;
    }
    imp_mutex_lock(c->mu);
    imp_api_call *inner = w->inner;
    imp_mutex_unlock(c->mu);
    if (inner != NULL) imp_api_cancel(inner, c->reason);
}

static wait_call *put_aside(imp_api *a, const imp_api_request *rq, imp_endpoint ep, imp_api_handler fn,
                            const imp_api_sink *s)
{
    wait_call *w = imp_sys_calloc(1, sizeof *w);
    if (w == NULL) return NULL;
    w->method = imp_sys_strdup(rq->method);
    w->path = imp_sys_strdup(rq->path);
    w->body = imp_sys_malloc(rq->n_body);
    bool ok = w->method != NULL && w->path != NULL && w->body != NULL;
    if (!ok || imp_call_init(&w->base, a, s, imp_api_dialect(rq->path), 1) != IMP_OK) {
        imp_sys_free(w->method);
        imp_sys_free(w->path);
        imp_sys_free(w->body);
        imp_sys_free(w);
        return NULL;
    }
    memcpy(w->body, rq->body, rq->n_body);
    w->rq = *rq;
    w->rq.method = w->method;
    w->rq.path = w->path;
    w->rq.body = w->body;
    w->ep = ep;
    w->fn = fn;
    w->base.on_free = on_free;
    w->base.on_cancel = on_cancel;
    return w;
}

/* ---- the way in ---------------------------------------------------------------------------------------------- */

/* The engine's name for what a request calls `name`: Ollama's clients add the tag that means "no tag". */
static imp_status acquire(imp_api *a, imp_dialect dialect, char *name, imp_model **m, wait_call *w,
                          imp_error *err)
{
    imp_engine *e = a->config.engine;
    imp_status s = imp_engine_acquire(e, name, m, w != NULL ? on_ready : NULL, w, err);
    size_t n = strlen(name), tail = sizeof ":latest" - 1;
    if (s != IMP_NOT_FOUND || dialect != IMP_OLLAMA || n <= tail || strcmp(name + n - tail, ":latest") != 0)
        return s;
    name[n - tail] = '\0';
    return imp_engine_acquire(e, name, m, w != NULL ? on_ready : NULL, w, err);
}

/* Is there nothing to wait for? A request that will be refused loads nothing, and one that unloads is done already. */
static bool is_decided(const imp_api_request *rq, imp_endpoint ep, const imp_api_sink *s, bool *answered)
{
    imp_api_params p;
    imp_error err;
    *answered = false;
    if (ep == EP_PLAN)
        return false; /* not in the table of fields: its handler checks it when the model is there */
    bool refused = imp_api_parse(ep, rq->body, rq->n_body, &p, &err) != IMP_OK;
    *answered = !refused && p.load && p.keep_s == 0;
    if (*answered) imp_api_load(&p, NULL, s, 0);
    imp_api_params_deinit(&p);
    return refused || *answered;
}

imp_api_call *imp_api_with_model(imp_api *a, const imp_api_request *rq, imp_endpoint ep, imp_api_handler fn,
                                 const imp_api_sink *s)
{
    char name[260];
    imp_error err = {0};
    imp_model *m = NULL;
    bool answered = false;
    imp_dialect dialect = imp_api_dialect(rq->path);
    if (!find_name(rq->body, rq->n_body, name, sizeof name - 1)) return fn(a, rq, ep, s);
    imp_status st = acquire(a, dialect, name, &m, NULL, &err);
    if (st != IMP_NOT_READY || is_decided(rq, ep, s, &answered)) {
        imp_api_call *c = answered ? NULL : fn(a, rq, ep, s);
        imp_model_release(m);
        return c;
    }
    wait_call *w = put_aside(a, rq, ep, fn, s);
    if (w == NULL) {
        (void)imp_fail(&err, IMP_NOMEM, "out of memory");
        imp_api_fail(s, dialect, &err);
        return NULL;
    }
    st = acquire(a, dialect, name, &m, w, &err);
    if (st != IMP_OK)
        on_ready(w, NULL, &err);
    else if (m != NULL) /* it has come meanwhile */
        on_ready(w, m, NULL);
    return &w->base;
}

/* ---- keep_alive ------------------------------------------------------------------------------------------------ */

imp_status imp_api_keep_alive(const json_t *v, double *s, imp_error *err)
{
    *s = NAN;
    if (v == NULL) return IMP_OK;
    bool good = json_is_number(v) || (json_is_string(v) && imp_duration_parse(json_string_value(v), s));
    if (json_is_number(v)) *s = json_number_value(v);
    if (good) return IMP_OK;
    *s = NAN;
    return imp_fail_field(err, IMP_INVALID, "keep_alive",
                          "'keep_alive' must be seconds or a duration such as \"5m\", \"1h30m\", 0 or -1");
}
