/* engine/catalog.c - the models that requests may name, and the thread that loads and unloads them.
 *
 * Place:   impetus.h's "models by name"; over model.c, which loads one, and room.c, which finds memory for it.
 * Idea:    a known model is a line of a list. Who wants one that is not loaded joins its waiters, and the line joins the
 *          queue; the one thread takes the line that has waited longest, makes room, loads, and hands every waiter a
 *          reference. In between it unloads what was not used for long enough and reads what files say of models.
 * Always:  a model goes only when it is idle (no references, no requests), decided and marked under engine.lock, so that no
 *          request ends by an unload; a waiter is called exactly once, or given up before.
 * Threads: public functions from any; callbacks of waiters on the catalog's thread, without locks. */
#include <stdio.h>
#include <stdlib.h>

#include "engine/engine_int.h"

enum { SCAN_MS = 1000, CHECK_MS = 250, SLEEP_MS = 10000, ALIAS_STEPS = 4 };

typedef struct waiter {
    struct waiter *next;
    imp_ready_fn fn;
    void *user;
} waiter;

typedef struct imp_known { /* all under engine.lock, but for id and path, which do not change */
    struct imp_known *next;
    char *id, *path;
    bool pinned;
    bool found; /* in a folder: it goes from the list when its file goes */
    bool
        retiring; /* others need its room: no new requests until it was unloaded, or is not needed any more */
    bool stale;   /* its file has changed since it was loaded */
    bool busy;    /* the thread works on it */
    double keep_s;
    imp_model *model;    /* loaded; NULL */
    imp_sys_stamp stamp; /* of its file, when it was loaded */
    imp_sys_stamp disk;  /* when it was looked at last */
    uint64_t checked_ns;
    uint64_t turn; /* its place in the queue; 0: nobody waits */
    uint64_t scan; /* the last one that found it */
    waiter *first, *last;
    uint32_t n_waiter;
    imp_net_config brief; /* arch "": not read yet */
    imp_sys_stamp brief_of;
} imp_known;

typedef struct alias {
    struct alias *next;
    char *name, *id;
} alias;

typedef struct folder {
    struct folder *next;
    char *path;
    double keep_s;
} folder;

typedef struct imp_catalog {
    imp_known *known;
    alias *aliases;
    folder *folders;
    imp_thread *thread;
    imp_cond *wake;
    uint64_t turn, scan, scan_ns;
    uint32_t n_waiter;
    bool hungry; /* a load waits for others to become idle */
    bool scanning;
} imp_catalog;

/* ---- the list ---------------------------------------------------------------------------------------- */

static imp_known *known_of(const imp_catalog *c, const char *id)
{
    imp_known *k = c->known;
    while (k != NULL && strcmp(k->id, id) != 0) k = k->next;
    return k;
}

/* What the name means, itself when it is no alias. */
static const char *meant(const imp_catalog *c, const char *id)
{
    for (int step = 0; step < ALIAS_STEPS; step++) {
        const alias *a = c->aliases;
        while (a != NULL && strcmp(a->name, id) != 0) a = a->next;
        if (a == NULL) break;
        id = a->id;
    }
    return id;
}

const char *imp_catalog_meaning(const imp_engine *e, const char *name)
{
    return meant(e->catalog, name);
}

static void alias_free(alias *a)
{
    if (a == NULL) return;
    imp_sys_free(a->name);
    imp_sys_free(a->id);
    imp_sys_free(a);
}

static void known_free(imp_known *k)
{
    if (k == NULL) return;
    imp_sys_free(k->id);
    imp_sys_free(k->path);
    imp_sys_free(k);
}

static imp_known *known_new(const char *id, const char *path, bool pinned, double keep_s)
{
    imp_known *k = imp_sys_calloc(1, sizeof *k);
    if (k == NULL) return NULL;
    k->id = id != NULL ? imp_sys_strdup(id) : imp_model_default_id(path);
    k->path = imp_sys_strdup(path);
    k->pinned = pinned;
    k->keep_s = keep_s;
    if (k->id != NULL && k->path != NULL) return k;
    known_free(k);
    return NULL;
}

size_t imp_catalog_n(const imp_engine *e)
{
    size_t n = 0;
    for (const imp_known *k = e->catalog->known; k != NULL; k = k->next) n++;
    return n;
}

void imp_catalog_settings(const imp_known *k, bool *pinned, double *keep_s)
{
    *pinned = k->pinned; /* neither changes */
    *keep_s = k->keep_s;
}

void imp_catalog_forget(imp_model *m)
{
    m->known->model = NULL;
    m->known->retiring = m->known->stale = false;
}

bool imp_catalog_is_wanted(const imp_known *k)
{
    return k->first != NULL;
}

void imp_catalog_note(imp_model *m)
{
    imp_catalog *c = m->engine->catalog;
    if (m->known == NULL) return;
    if (c->hungry || m->keep_s == 0 || m->known->stale) imp_cond_broadcast(c->wake);
}

bool imp_model_idle(const imp_model *m)
{
    if (m->n_ref > 0) return false;
    for (uint32_t i = 0; i < MAX_UNIT; i++) {
        const imp_instance *x = &m->inst[i];
        if (x->n_using > 0 || (x->sched != NULL && imp_sched_has_work(x->sched))) return false;
    }
    return true;
}

/* ---- folders ------------------------------------------------------------------------------------------ */

typedef struct scan {
    imp_known *list;
    double keep_s;
    bool failed;
} scan;

static void on_found(void *user, const char *id, const char *path)
{
    scan *s = user;
    imp_known *k = known_new(id, path, false, s->keep_s);
    if (k == NULL) {
        s->failed = true;
        return;
    }
    k->found = true;
    (void)imp_sys_stamp_of(path, &k->disk);
    k->next = s->list;
    s->list = k;
}

/* engine.lock held. What was found joins the list or is there already; what is not found any more leaves it. */
static void merge(imp_catalog *c, imp_known *list, bool complete)
{
    c->scan++;
    while (list != NULL) {
        imp_known *k = list, *old = known_of(c, k->id);
        list = k->next;
        if (old == NULL) {
            k->scan = c->scan;
            k->next = c->known;
            c->known = k;
            continue;
        }
        if (strcmp(old->path, k->path) == 0) {
            old->scan = c->scan;
            old->disk = k->disk;
        }
        known_free(k);
    }
    for (imp_known **at = &c->known; *at != NULL && complete;) {
        imp_known *k = *at;
        bool gone = k->found && k->scan != c->scan;
        if (!gone || k->model != NULL || k->first != NULL || k->busy) {
            at = &k->next;
            continue;
        }
        *at = k->next;
        known_free(k);
    }
}

/* engine.lock held, let go while folders are read. */
static void scan_folders(imp_engine *e, bool now)
{
    imp_catalog *c = e->catalog;
    uint64_t t = imp_now_ns();
    if (c->folders == NULL || c->scanning || (!now && t - c->scan_ns < SCAN_MS * 1000000ull)) return;
    c->scanning = true;
    c->scan_ns = t;
    scan s = {0};
    for (const folder *f = c->folders; f != NULL; f = f->next) { /* folders only join, at the end */
        imp_mutex_unlock(e->lock);
        s.keep_s = f->keep_s;
        imp_error err = {0};
        if (imp_folder_models(f->path, on_found, &s, &err) != IMP_OK && err.status != IMP_NOT_FOUND) {
            imp_log(IMP_LOG_WARN, "%s", err.text);
            s.failed = true;
        }
        imp_mutex_lock(e->lock);
    }
    /* on_found puts the latest first: of two models with one name the first folder's counts */
    imp_known *in_order = NULL;
    while (s.list != NULL) {
        imp_known *k = s.list;
        s.list = k->next;
        k->next = in_order;
        in_order = k;
    }
    merge(c, in_order, !s.failed);
    c->scanning = false;
    imp_cond_broadcast(c->wake);
}

/* ---- who waits ------------------------------------------------------------------------------------------ */

/* engine.lock held. The list is empty afterwards; its waiters are the caller's. */
static waiter *take_waiters(imp_catalog *c, imp_known *k)
{
    waiter *w = k->first;
    c->n_waiter -= k->n_waiter;
    k->first = k->last = NULL;
    k->n_waiter = 0;
    k->turn = 0;
    return w;
}

/* engine.lock held, let go for the calls. m NULL: err. */
static void answer(imp_engine *e, imp_known *k, imp_model *m, const imp_error *err)
{
    uint32_t n = k->n_waiter;
    waiter *w = take_waiters(e->catalog, k);
    if (m != NULL) {
        m->n_ref += n;
        m->used_ns = imp_now_ns();
    }
    imp_mutex_unlock(e->lock);
    while (w != NULL) {
        waiter *next = w->next;
        w->fn(w->user, m, err);
        imp_sys_free(w);
        w = next;
    }
    imp_mutex_lock(e->lock);
}

/* engine.lock held. */
static void enqueue(imp_catalog *c, imp_known *k, waiter *w)
{
    if (k->last != NULL)
        k->last->next = w;
    else
        k->first = w;
    k->last = w;
    k->n_waiter++;
    c->n_waiter++;
    if (k->turn == 0) k->turn = ++c->turn;
    imp_cond_broadcast(c->wake);
}

bool imp_engine_give_up(imp_engine *e, imp_ready_fn fn, void *user)
{
    waiter *found = NULL;
    imp_catalog *c = e->catalog;
    imp_mutex_lock(e->lock);
    for (imp_known *k = c->known; k != NULL && found == NULL; k = k->next) {
        waiter *before = NULL;
        for (waiter *w = k->first; w != NULL && found == NULL; before = w, w = w->next) {
            if (w->fn != fn || w->user != user) continue;
            found = w;
            if (before != NULL)
                before->next = w->next;
            else
                k->first = w->next;
            if (k->last == w) k->last = before;
            k->n_waiter--;
            c->n_waiter--;
            if (k->first == NULL) k->turn = 0;
        }
    }
    if (found != NULL) imp_cond_broadcast(c->wake);
    imp_mutex_unlock(e->lock);
    imp_sys_free(found);
    return found != NULL;
}

/* engine.lock held, let go while the file is looked at. Is it still the one that was loaded? */
static void check_file(imp_engine *e, const char *id)
{
    imp_known *k = known_of(e->catalog, id);
    uint64_t now = imp_now_ns();
    if (k == NULL || k->model == NULL || k->stale || now - k->checked_ns < CHECK_MS * 1000000ull) return;
    k->checked_ns = now;
    char *path = imp_sys_strdup(k->path);
    if (path == NULL) return;
    imp_sys_stamp stamp;
    imp_mutex_unlock(e->lock);
    bool there = imp_sys_stamp_of(path, &stamp);
    imp_sys_free(path);
    imp_mutex_lock(e->lock);
    k = known_of(e->catalog, id);
    if (k == NULL || k->model == NULL || k->stale || (there && imp_sys_same_stamp(&stamp, &k->stamp))) return;
    imp_log(IMP_LOG_WARN,
            "%s: its file %s since it was loaded; it is loaded again when its requests are done", k->id,
            there ? "has changed" : "is gone");
    k->stale = true;
}

imp_status imp_engine_acquire(imp_engine *e, const char *name, imp_model **now, imp_ready_fn fn, void *user,
                              imp_error *err)
{
    imp_catalog *c = e->catalog;
    waiter *w = fn != NULL ? imp_sys_calloc(1, sizeof *w) : NULL;
    *now = NULL;
    if (fn != NULL && w == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    imp_status s = IMP_OK;
    imp_mutex_lock(e->lock);
    const char *id = meant(c, name);
    check_file(e, id);
    imp_known *k = known_of(c, id);
    imp_model *m = k != NULL ? k->model : NULL;
    for (size_t i = 0; k == NULL && m == NULL && i < e->n_model; i++)
        if (strcmp(e->model[i]->id, id) == 0 && !e->model[i]->leaving) m = e->model[i];
    if (k == NULL && m == NULL) {
        scan_folders(e, false);
        k = known_of(c, id);
    }
    if (m != NULL && (k == NULL || (!k->retiring && !k->stale))) {
        m->n_ref++;
        m->used_ns = imp_now_ns();
        *now = m;
    } else if (k == NULL) {
        s = imp_fail_field(err, IMP_NOT_FOUND, "model", "there is no model '%.200s' here", name);
    } else if (e->quit || fn == NULL) {
        s = imp_fail(err, IMP_NOT_READY, "the model '%.200s' is not loaded", name);
    } else if (c->n_waiter >= (e->config.n_queue != 0 ? e->config.n_queue : 1024u)) {
        s = imp_fail(err, IMP_BUSY, "%u requests wait for models; try again later", c->n_waiter);
    } else {
        *w = (waiter){.fn = fn, .user = user};
        enqueue(c, k, w);
        w = NULL;
    }
    imp_mutex_unlock(e->lock);
    imp_sys_free(w);
    return s;
}

/* ---- imp_engine_open: somebody who has the time ----------------------------------------------------------- */

typedef struct patience {
    imp_mutex *mu;
    imp_cond *cv;
    bool done;
    imp_model *model;
    imp_error err;
} patience;

static void on_ready(void *user, imp_model *m, const imp_error *err)
{
    patience *p = user;
    imp_mutex_lock(p->mu);
    p->model = m;
    if (m == NULL) p->err = *err;
    p->done = true;
    imp_cond_broadcast(p->cv);
    imp_mutex_unlock(p->mu);
}

imp_status imp_engine_open(imp_engine *e, const char *id, imp_model **out, imp_error *err)
{
    patience p = {0};
    *out = NULL;
    imp_status s = imp_mutex_new(&p.mu);
    if (s == IMP_OK) s = imp_cond_new(&p.cv);
    if (s != IMP_OK) {
        imp_mutex_free(p.mu);
        return imp_fail(err, s, "not enough memory to load a model");
    }
    s = imp_engine_acquire(e, id, out, on_ready, &p, err);
    if (s == IMP_OK && *out == NULL) {
        imp_mutex_lock(p.mu);
        while (!p.done) imp_cond_wait(p.cv, p.mu);
        imp_mutex_unlock(p.mu);
        *out = p.model;
        s = p.model != NULL ? IMP_OK : p.err.status;
        if (s != IMP_OK && err != NULL) *err = p.err;
    }
    imp_cond_free(p.cv);
    imp_mutex_free(p.mu);
    return s;
}

/* ---- the thread: loading and unloading, engine.lock held -------------------------------------------------- */

imp_model *imp_catalog_victim(imp_engine *e, const imp_unit *u, bool idle)
{
    imp_model *worst = NULL;
    bool own = u->device->ops->mem_free != NULL;
    for (const imp_known *k = e->catalog->known; k != NULL; k = k->next) {
        imp_model *m = k->model;
        if (m == NULL || k->pinned || (idle && !imp_model_idle(m))) continue;
        if (k->retiring) return m; /* has been chosen before */
        bool here = false;         /* does it hold memory that u could use? */
        for (uint32_t i = 0; i < e->n_unit; i++)
            here = here || (m->inst[i].sched != NULL &&
                            (own ? i == u->index : e->unit[i]->device->ops->mem_free == NULL));
        if (here && (worst == NULL || m->used_ns < worst->used_ns)) worst = m;
    }
    return worst;
}

void imp_catalog_retire(imp_model *m)
{
    m->known->retiring = true;
}

void imp_catalog_wait(imp_engine *e, uint32_t ms)
{
    e->catalog->hungry = true;
    (void)imp_cond_wait_ms(e->catalog->wake, e->lock, ms);
    e->catalog->hungry = false;
}

void imp_catalog_evict(imp_model *m, const char *why)
{
    imp_engine *e = m->engine;
    imp_known *k = m->known;
    uint64_t bytes = m->inst[m->home].fit.memory.total;
    imp_catalog_forget(m);
    imp_log(IMP_LOG_INFO, "unloading %s (%.1f MB): %s", k->id, (double)bytes / 1e6, why);
    bool was = k->busy;
    k->busy = true; /* its line must not go meanwhile */
    imp_model_unload_locked(m);
    k->busy = was;
    imp_mutex_unlock(e->lock);
    imp_sys_trim();
    imp_mutex_lock(e->lock);
}

static void load(imp_engine *e, imp_known *k)
{
    imp_model *m = NULL;
    imp_error err = {0};
    imp_sys_stamp stamp;
    uint64_t t0 = imp_now_ns();
    imp_mutex_unlock(e->lock);
    bool there = imp_sys_stamp_of(k->path, &stamp);
    imp_status s = IMP_OK;
    if (there) {
        imp_log(IMP_LOG_INFO, "loading %s (%.1f MB)", k->id, (double)stamp.n / 1e6);
        s = imp_model_load(e, k->path, k->id, k, &m, &err);
    } else {
        s = imp_fail(&err, IMP_NOT_FOUND, "%.400s is not there any more", k->path);
    }
    double sec = (double)(imp_now_ns() - t0) * 1e-9;
    if (s == IMP_OK)
        imp_log(IMP_LOG_INFO, "%s is loaded: %.1f MB, context %u, on %s, after %.2f s", k->id,
                (double)m->inst[m->home].fit.memory.total / 1e6, m->info.n_ctx, m->info.device, sec);
    else if (s != IMP_CANCELLED)
        imp_log(IMP_LOG_WARN, "%s cannot be loaded: %s", k->id, err.text);
    if (s != IMP_OK) imp_sys_trim();
    imp_mutex_lock(e->lock);
    for (imp_known *o = e->catalog->known; o != NULL; o = o->next)
        o->retiring = false; /* no room is needed now */
    if (s == IMP_OK) {
        k->model = m;
        k->stamp = k->disk = stamp;
        k->checked_ns = 0;
        k->stale = false;
        m->used_ns = imp_now_ns();
    }
    /* Nobody waited any more, but somebody does again: it stays in the queue. */
    if (s != IMP_CANCELLED || e->quit) answer(e, k, m, &err);
    imp_mutex_unlock(e->lock);
    imp_model_release(m);
    imp_mutex_lock(e->lock);
}

/* The model that is wanted longest: load it, or hand it out if it is there. */
static void serve(imp_engine *e, imp_known *k)
{
    k->busy = true;
    while (k->model != NULL && k->stale && k->first != NULL && !e->quit) {
        if (imp_model_idle(k->model))
            imp_catalog_evict(k->model, "its file has changed");
        else
            imp_catalog_wait(e, 1000);
    }
    k->retiring = false;
    if (k->first != NULL && !e->quit) {
        if (k->model != NULL)
            answer(e, k, k->model, NULL);
        else
            load(e, k);
    }
    k->busy = false;
}

static imp_known *next_in_line(const imp_catalog *c)
{
    imp_known *best = NULL;
    for (imp_known *k = c->known; k != NULL; k = k->next)
        if (k->turn != 0 && (best == NULL || k->turn < best->turn)) best = k;
    return best;
}

/* Seconds until it is unloaded for want of use; < 0: it is not. */
static double expires_s(const imp_known *k)
{
    const imp_model *m = k->model;
    if (m == NULL || k->pinned || m->keep_s < 0) return -1;
    if (!imp_model_idle(m)) return m->keep_s;
    double left = m->keep_s - (double)(imp_now_ns() - m->used_ns) * 1e-9;
    return left > 0 ? left : 0;
}

/* Unload one that has not been used for long enough; else *ms: how long nothing is to be done. */
static bool expire(imp_engine *e, uint32_t *ms)
{
    *ms = SLEEP_MS;
    for (imp_known *k = e->catalog->known; k != NULL; k = k->next) {
        double s = expires_s(k);
        if (s < 0) continue;
        if (s == 0 && imp_model_idle(k->model)) {
            imp_catalog_evict(k->model, "nobody uses it");
            return true;
        }
        *ms = IMP_MIN(*ms, (uint32_t)(IMP_MIN(s, 10.0) * 1e3) + 1);
    }
    return false;
}

/* Read what one file says of its model. */
static bool peek(imp_engine *e)
{
    imp_known *k = e->catalog->known;
    while (k != NULL && imp_sys_same_stamp(&k->brief_of, &k->disk)) k = k->next;
    if (k == NULL) return false;
    k->busy = true;
    imp_sys_stamp of = k->disk;
    imp_mutex_unlock(e->lock);
    imp_net_config c;
    imp_error err;
    if (imp_net_peek(k->path, &c, &err) != IMP_OK) {
        imp_log(IMP_LOG_INFO, "%s: %s", k->id, err.text);
        c = (imp_net_config){.arch = "unknown"};
    }
    imp_mutex_lock(e->lock);
    k->brief = c;
    k->brief_of = of;
    k->busy = false;
    return true;
}

static void catalog_main(void *arg)
{
    imp_engine *e = arg;
    imp_catalog *c = e->catalog;
    uint32_t ms;
    imp_mutex_lock(e->lock);
    while (!e->quit) {
        imp_known *k = next_in_line(c);
        if (k != NULL)
            serve(e, k);
        else if (!expire(e, &ms) && !peek(e))
            (void)imp_cond_wait_ms(c->wake, e->lock, ms);
    }
    imp_error err;
    (void)imp_fail(&err, IMP_CANCELLED, "the server is stopping");
    for (imp_known *k = next_in_line(c); k != NULL; k = next_in_line(c)) answer(e, k, NULL, &err);
    imp_mutex_unlock(e->lock);
}

/* ---- adding ------------------------------------------------------------------------------------------------ */

/* engine.lock held. */
static imp_status start_thread(imp_engine *e, imp_error *err)
{
    imp_catalog *c = e->catalog;
    if (c->thread == NULL && imp_thread_start(catalog_main, e, &c->thread) != IMP_OK)
        return imp_fail(err, IMP_NOMEM, "cannot start the thread that loads models");
    return IMP_OK;
}

imp_status imp_engine_add(imp_engine *e, const imp_model_source *s, imp_error *err)
{
    imp_catalog *c = e->catalog;
    imp_known *k = known_new(s->id, s->path, s->pinned, s->keep_s);
    if (k == NULL) return imp_fail(err, IMP_NOMEM, "not enough memory for another model");
    (void)imp_sys_stamp_of(s->path, &k->disk);
    imp_status st = IMP_OK;
    imp_mutex_lock(e->lock);
    bool taken = known_of(c, k->id) != NULL || meant(c, k->id) != k->id;
    for (size_t i = 0; i < e->n_model && !taken; i++) taken = strcmp(e->model[i]->id, k->id) == 0;
    if (taken)
        st = imp_fail(err, IMP_INVALID,
                      "a model named \"%.100s\" is known already; give this one another name (NAME=PATH)",
                      k->id);
    if (st == IMP_OK) st = start_thread(e, err);
    if (st == IMP_OK) {
        imp_known **at = &c->known; /* in the order of -m */
        while (*at != NULL && !(*at)->found) at = &(*at)->next;
        k->next = *at;
        *at = k;
        imp_cond_broadcast(c->wake);
    }
    imp_mutex_unlock(e->lock);
    if (st != IMP_OK) known_free(k);
    return st;
}

imp_status imp_engine_add_folder(imp_engine *e, const char *path, double keep_s, imp_error *err)
{
    imp_catalog *c = e->catalog;
    folder *f = imp_sys_calloc(1, sizeof *f);
    if (f != NULL) *f = (folder){.path = imp_sys_strdup(path), .keep_s = keep_s};
    if (f == NULL || f->path == NULL) {
        imp_sys_free(f);
        return imp_fail(err, IMP_NOMEM, "not enough memory for another folder of models");
    }
    imp_mutex_lock(e->lock);
    imp_status s = start_thread(e, err);
    if (s == IMP_OK) {
        folder **at = &c->folders;
        while (*at != NULL) at = &(*at)->next;
        *at = f;
        scan_folders(e, true);
    }
    imp_mutex_unlock(e->lock);
    if (s == IMP_OK) return s;
    imp_sys_free(f->path);
    imp_sys_free(f);
    return s;
}

imp_status imp_engine_add_alias(imp_engine *e, const char *name, const char *id, imp_error *err)
{
    imp_mutex_lock(e->lock);
    bool ok = imp_catalog_name(e, name, id);
    imp_mutex_unlock(e->lock);
    return ok ? IMP_OK
              : imp_fail(err, IMP_INVALID, "the alias \"%.100s\" is a model's name or an alias already",
                         name);
}

bool imp_catalog_name(imp_engine *e, const char *name, const char *id)
{
    imp_catalog *c = e->catalog;
    alias *a = imp_sys_calloc(1, sizeof *a);
    if (a != NULL) *a = (alias){.name = imp_sys_strdup(name), .id = imp_sys_strdup(id)};
    bool ok = a != NULL && a->name != NULL && a->id != NULL && known_of(c, name) == NULL &&
              meant(c, name) == name && strcmp(name, id) != 0;
    for (size_t i = 0; i < e->n_model && ok; i++) ok = strcmp(e->model[i]->id, name) != 0;
    if (ok) {
        a->next = c->aliases;
        c->aliases = a;
    } else {
        alias_free(a);
    }
    return ok;
}

void imp_catalog_unname(imp_engine *e, const char *name)
{
    for (alias **at = &e->catalog->aliases; *at != NULL; at = &(*at)->next) {
        alias *a = *at;
        if (strcmp(a->name, name) != 0) continue;
        *at = a->next;
        alias_free(a);
        return;
    }
}

bool imp_model_keep(imp_model *m, double keep_s)
{
    imp_mutex_lock(m->engine->lock);
    bool can = m->known != NULL && !m->pinned;
    if (can) {
        m->keep_s = keep_s;
        imp_cond_broadcast(m->engine->catalog->wake);
    }
    imp_mutex_unlock(m->engine->lock);
    return can;
}

/* ---- looking ----------------------------------------------------------------------------------------------- */

static void fill(imp_known_model *o, const imp_net_config *c)
{
    memcpy(o->arch, c->arch, sizeof o->arch);
    memcpy(o->type, c->type, sizeof o->type);
    o->n_param = c->n_param;
    o->n_vocab = c->n_vocab;
    o->n_layer = c->n_layer;
    o->n_embd = c->n_embd;
    o->n_head = c->n_head;
    o->n_kv_head = c->n_kv_head;
    o->n_ctx_train = c->n_ctx_train;
    o->can_generate = c->can_generate;
    o->can_embed = c->can_embed;
}

static void describe(imp_known_model *o, const char *id, const char *path, const imp_model *m)
{
    *o = (imp_known_model){.pinned = true, .expires_s = -1};
    (void)snprintf(o->id, sizeof o->id, "%s", id);
    (void)snprintf(o->path, sizeof o->path, "%s", path);
    if (m == NULL) return;
    fill(o, &m->net->cfg);
    o->file_bytes = m->net->cfg.file_bytes;
    o->modified = m->info.created;
    o->state = IMP_MODEL_LOADED;
}

static int by_state(const void *a, const void *b)
{
    const imp_known_model *x = a, *y = b;
    bool lx = x->state == IMP_MODEL_LOADED, ly = y->state == IMP_MODEL_LOADED;
    return lx != ly ? (lx ? -1 : 1) : strcmp(x->id, y->id);
}

imp_status imp_engine_known(imp_engine *e, imp_known_model **out, size_t *n)
{
    *out = NULL;
    *n = 0;
    imp_mutex_lock(e->lock);
    scan_folders(e, false);
    imp_known_model *list = imp_sys_calloc(imp_catalog_n(e) + e->n_model, sizeof *list);
    size_t k = 0;
    for (size_t i = 0; i < e->n_model && list != NULL; i++)
        if (e->model[i]->known == NULL && !e->model[i]->leaving)
            describe(&list[k++], e->model[i]->id, e->model[i]->path, e->model[i]);
    for (const imp_known *x = e->catalog->known; x != NULL && list != NULL; x = x->next) {
        imp_known_model *o = &list[k++];
        describe(o, x->id, x->path, x->model);
        if (x->model == NULL) fill(o, &x->brief);
        o->pinned = x->pinned;
        o->expires_s = expires_s(x);
        o->n_waiting = x->n_waiter;
        o->file_bytes = x->disk.n;
        o->modified = (int64_t)(x->disk.mtime_ns / 1000000000);
        if (x->model == NULL) o->state = x->turn != 0 ? IMP_MODEL_LOADING : IMP_MODEL_ABSENT;
    }
    imp_mutex_unlock(e->lock);
    if (list == NULL) return IMP_NOMEM;
    qsort(list, k, sizeof *list, by_state);
    *out = list;
    *n = k;
    return IMP_OK;
}

/* ---- begin and end ------------------------------------------------------------------------------------------ */

imp_status imp_catalog_new(imp_engine *e, imp_error *err)
{
    e->catalog = imp_sys_calloc(1, sizeof *e->catalog);
    if (e->catalog == NULL || imp_cond_new(&e->catalog->wake) != IMP_OK)
        return imp_fail(err, IMP_NOMEM, "not enough memory to start");
    return IMP_OK;
}

void imp_catalog_stop(imp_engine *e)
{
    imp_catalog *c = e->catalog;
    if (c == NULL || c->thread == NULL) return;
    imp_mutex_lock(e->lock);
    imp_cond_broadcast(c->wake);
    imp_mutex_unlock(e->lock);
    imp_thread_join(c->thread);
    c->thread = NULL;
}

void imp_catalog_free(imp_engine *e)
{
    imp_catalog *c = e->catalog;
    if (c == NULL) return;
    for (imp_known *k; (k = c->known) != NULL;) {
        c->known = k->next;
        known_free(k);
    }
    for (alias *a; (a = c->aliases) != NULL;) {
        c->aliases = a->next;
        alias_free(a);
    }
    for (folder *f; (f = c->folders) != NULL;) {
        c->folders = f->next;
        imp_sys_free(f->path);
        imp_sys_free(f);
    }
    imp_cond_free(c->wake);
    imp_sys_free(c);
    e->catalog = NULL;
}
