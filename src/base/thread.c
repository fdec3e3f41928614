/* base/thread.c - pinned pool, phases of claimed shares, a spin-then-sleep barrier; plain threads, mutexes, conditions.
 *
 * Idea:    a run opens a door; workers that come while it is open go in, and the caller closes it when its own part is
 *          done, waiting only for those inside. Shares of a phase are claimed: a thread that the system lets wait while
 *          another program has its core delays nobody, unless it holds a share. Who waits spins a few microseconds (ops
 *          follow each other closely), then sleeps in the kernel (futex on Linux, a condition elsewhere).
 *          Workers are pinned, the caller is not: when the system has put it on a worker's core, where both would wait for
 *          each other while another core has nothing to do, that worker moves to the core that was kept free for the caller.
 * Threads: run() has one caller at a time; the memory orders make everything written before run(), a phase's end or a
 *          barrier visible after it. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "base/thread.h"

enum {
    SPIN = 4000,       /* between runs and at barriers */
    SPIN_CLAIM = 50,   /* before another thread's shares are taken */
    SPIN_PHASE = 1000, /* while another thread finishes its share */
};

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* ---- a 32-bit word that threads wait on ------------------------------------------------------- */
typedef struct gate {
    _Atomic uint32_t value;
    _Atomic uint32_t n_sleep;
#ifndef __linux__
    pthread_mutex_t lock;
    pthread_cond_t cond;
#endif
} gate;

static void gate_init(gate *g)
{
    atomic_init(&g->value, 0);
    atomic_init(&g->n_sleep, 0);
#ifndef __linux__
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->cond, NULL);
#endif
}

static void gate_deinit(gate *g)
{
#ifndef __linux__
    pthread_mutex_destroy(&g->lock);
    pthread_cond_destroy(&g->cond);
#else
    (void)g;
#endif
}

/* Returns once the value is no longer `old`. */
static void gate_wait(gate *g, uint32_t old, bool spin)
{
    for (int i = 0; spin && i < SPIN; i++) {
        if (atomic_load_explicit(&g->value, memory_order_acquire) != old) return;
        cpu_relax();
    }
    atomic_fetch_add(&g->n_sleep, 1);
#ifdef __linux__
    while (atomic_load(&g->value) == old)
        syscall(SYS_futex, &g->value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
#else
    pthread_mutex_lock(&g->lock);
    while (atomic_load(&g->value) == old) pthread_cond_wait(&g->cond, &g->lock);
    pthread_mutex_unlock(&g->lock);
#endif
    atomic_fetch_sub(&g->n_sleep, 1);
}

static void gate_open(gate *g)
{
#ifdef __linux__
    atomic_fetch_add(&g->value, 1);
    if (atomic_load(&g->n_sleep) > 0)
        syscall(SYS_futex, &g->value, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
#else
    pthread_mutex_lock(&g->lock);
    atomic_fetch_add(&g->value, 1);
    pthread_cond_broadcast(&g->cond);
    pthread_mutex_unlock(&g->lock);
#endif
}

/* One more; who waits for `target` wakes up when it is reached. */
static void gate_count(gate *g, uint32_t target)
{
#ifdef __linux__
    if (atomic_fetch_add(&g->value, 1) + 1 == target && atomic_load(&g->n_sleep) > 0)
        syscall(SYS_futex, &g->value, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
#else
    (void)target;
    gate_open(g);
#endif
}

static bool gate_reached(gate *g, uint32_t target)
{
    return atomic_load_explicit(&g->value, memory_order_acquire) == target;
}

/* Returns once the value is `target`, which it stays until this thread goes on. */
static void gate_wait_for(gate *g, uint32_t target, int spin)
{
    for (int i = 0; i < spin; i++) {
        if (gate_reached(g, target)) return;
        cpu_relax();
    }
    for (uint32_t v; (v = atomic_load(&g->value)) != target;) gate_wait(g, v, false);
}

/* ---- pool ------------------------------------------------------------------------------------- */
typedef struct worker {
    imp_pool *pool;
    pthread_t thread;
    uint64_t id; /* written by itself before the pool is ready */
    uint32_t ith, core;
} worker;

/* The door: number of the run, whether it is closed, and how many workers are inside. */
static const uint64_t DOOR_RUN = 1ull << 32, DOOR_CLOSED = 1ull << 31;

struct imp_pool {
    uint32_t n_thread, n_started;
    bool follows;        /* workers have pinned themselves and make room for the caller */
    bool oversubscribed; /* more threads than cores: spinning would only take time from the others */
    worker *worker;      /* [n_thread]; of the caller, 0, only the core */
    gate start, finish, barrier;
    _Atomic uint64_t door;
    _Atomic uint32_t n_arrived;
    imp_pool_fn fn; /* these two belong to the run while its door is open or somebody is inside */
    void *ctx;
    _Atomic bool quit;
};

/* Through the door, unless it is closed or this is the run that the worker was in last. */
static bool enter(imp_pool *p, uint64_t *last_run)
{
    uint64_t d = atomic_load(&p->door);
    do {
        if ((d & DOOR_CLOSED) != 0 || d / DOOR_RUN == *last_run) return false;
    } while (!atomic_compare_exchange_weak(&p->door, &d, d + 1));
    *last_run = d / DOOR_RUN;
    return true;
}

static void *work(void *arg)
{
    worker *w = arg;
    imp_pool *p = w->pool;
    w->id = imp_sys_thread_id();
    if (!p->oversubscribed) imp_sys_pin_thread(0, w->core);
    for (uint64_t last_run = 0;;) {
        uint32_t seen = atomic_load(&p->start.value);
        if (atomic_load(&p->quit)) return NULL;
        if (!enter(p, &last_run)) {
            gate_wait(&p->start, seen, !p->oversubscribed);
            continue;
        }
        p->fn(p->ctx, w->ith, p->n_thread);
        if ((atomic_fetch_sub(&p->door, 1) - 1) % DOOR_RUN == DOOR_CLOSED) gate_open(&p->finish);
    }
}

static void nothing(void *ctx, uint32_t ith, uint32_t n_thread)
{
    (void)ctx, (void)ith, (void)n_thread;
}

imp_status imp_pool_new(uint32_t n_thread, imp_pool **out)
{
    *out = NULL;
    imp_pool *p = imp_sys_calloc(1, sizeof *p);
    if (p == NULL) return IMP_NOMEM;
    p->n_thread = n_thread < 1 ? 1 : n_thread;
    p->oversubscribed = p->n_thread > imp_sys_n_core();
    gate_init(&p->start);
    gate_init(&p->finish);
    gate_init(&p->barrier);
    atomic_init(&p->door, DOOR_CLOSED);
    p->worker = imp_sys_calloc(p->n_thread, sizeof *p->worker);
    imp_status s = p->worker == NULL ? IMP_NOMEM : IMP_OK;
    for (uint32_t i = 1; s == IMP_OK && i < p->n_thread; i++) {
        p->worker[i] = (worker){.pool = p, .ith = i, .core = i};
        if (imp_sys_should_fail() || pthread_create(&p->worker[i].thread, NULL, work, &p->worker[i]) != 0)
            s = IMP_NOMEM;
        else
            p->n_started = i;
    }
    if (s != IMP_OK) {
        imp_pool_free(p);
        return s;
    }
    imp_pool_run(p, nothing, NULL); /* all have pinned themselves */
    p->follows = !p->oversubscribed;
    *out = p;
    return IMP_OK;
}

void imp_pool_free(imp_pool *p)
{
    if (p == NULL) return;
    atomic_store(&p->quit, true);
    gate_open(&p->start);
    for (uint32_t i = 1; i <= p->n_started; i++) pthread_join(p->worker[i].thread, NULL);
    gate_deinit(&p->start);
    gate_deinit(&p->finish);
    gate_deinit(&p->barrier);
    imp_sys_free(p->worker);
    imp_sys_free(p);
}

uint32_t imp_pool_n_thread(const imp_pool *p)
{
    return p->n_thread;
}

/* The caller's core is for no worker. */
static void make_room(imp_pool *p)
{
    if (!p->follows) return;
    uint32_t core = imp_sys_this_core();
    if (core == p->worker[0].core) return;
    for (uint32_t i = 1; i < p->n_thread; i++) {
        worker *w = &p->worker[i];
        if (w->core != core) continue;
        w->core = p->worker[0].core;
        p->worker[0].core = core;
        imp_sys_pin_thread(w->id, w->core);
        return;
    }
}

void imp_pool_run_open(imp_pool *p, imp_pool_fn fn, void *ctx)
{
    if (p->n_thread == 1) {
        fn(ctx, 0, 1);
        return;
    }
    make_room(p);
    p->fn = fn;
    p->ctx = ctx;
    uint32_t finished = atomic_load(&p->finish.value);
    atomic_store(&p->door, (atomic_load(&p->door) / DOOR_RUN + 1) * DOOR_RUN);
    gate_open(&p->start);
    fn(ctx, 0, p->n_thread);
    if (atomic_fetch_or(&p->door, DOOR_CLOSED) % DOOR_CLOSED != 0)
        gate_wait(&p->finish, finished, !p->oversubscribed);
}

/* A run that all take part in: thread 0 stays until the others are done. */
typedef struct full_run {
    imp_pool_fn fn;
    void *ctx;
    gate done;
    bool spin;
} full_run;

static void run_full(void *ctx, uint32_t ith, uint32_t n_thread)
{
    full_run *r = ctx;
    r->fn(r->ctx, ith, n_thread);
    if (ith == 0) {
        gate_wait_for(&r->done, n_thread - 1, r->spin ? SPIN : 0);
    } else {
        gate_count(&r->done, n_thread - 1);
    }
}

void imp_pool_run(imp_pool *p, imp_pool_fn fn, void *ctx)
{
    full_run r = {.fn = fn, .ctx = ctx, .spin = !p->oversubscribed};
    gate_init(&r.done);
    imp_pool_run_open(p, run_full, &r);
    gate_deinit(&r.done);
}

void imp_pool_barrier(imp_pool *p)
{
    if (p->n_thread == 1) return;
    uint32_t generation = atomic_load(&p->barrier.value);
    if (atomic_fetch_add(&p->n_arrived, 1) + 1 == p->n_thread) {
        atomic_store(&p->n_arrived, 0);
        gate_open(&p->barrier);
    } else {
        gate_wait(&p->barrier, generation, !p->oversubscribed);
    }
}

/* ---- phases ----------------------------------------------------------------------------------- */
typedef struct phase {
    gate done;               /* shares done since the beginning of time */
    _Atomic uint32_t *claim; /* [max_share] the run in which a share was claimed last */
} phase;

struct imp_phases {
    uint32_t n_phase, max_share;
    phase *phase;
    uint8_t *claims; /* one piece of memory, a phase's at a distance that keeps cache lines apart */
    uint32_t claim_bytes;
    /* of this run */
    imp_pool *pool;
    uint32_t n_share, run, target; /* target: what `done` counts when a phase is complete */
    imp_share_fn fn;
    void *ctx;
};

imp_status imp_phases_new(uint32_t n_phase, uint32_t max_share, imp_phases **out)
{
    *out = NULL;
    imp_phases *f = imp_sys_calloc(1, sizeof *f);
    if (f == NULL) return IMP_NOMEM;
    *f = (imp_phases){.max_share = max_share, .claim_bytes = (max_share * 4 + 63) / 64 * 64};
    f->phase = imp_sys_calloc(n_phase + 1, sizeof *f->phase);
    f->claims = imp_sys_calloc(n_phase + 1, f->claim_bytes);
    if (f->phase == NULL || f->claims == NULL) {
        imp_phases_free(f);
        return IMP_NOMEM;
    }
    for (; f->n_phase < n_phase; f->n_phase++) {
        phase *h = &f->phase[f->n_phase];
        gate_init(&h->done);
        h->claim = (_Atomic uint32_t *)(void *)(f->claims + (size_t)f->n_phase * f->claim_bytes);
    }
    *out = f;
    return IMP_OK;
}

void imp_phases_free(imp_phases *f)
{
    if (f == NULL) return;
    for (uint32_t i = 0; i < f->n_phase; i++) gate_deinit(&f->phase[i].done);
    imp_sys_free(f->phase);
    imp_sys_free(f->claims);
    imp_sys_free(f);
}

static void try_share(imp_phases *f, uint32_t i, uint32_t share, uint32_t ith)
{
    phase *h = &f->phase[i];
    uint32_t c = atomic_load_explicit(&h->claim[share], memory_order_relaxed);
    if (c == f->run || !atomic_compare_exchange_strong(&h->claim[share], &c, f->run)) return;
    f->fn(f->ctx, i, share, ith);
    gate_count(&h->done, f->target);
}

/* Own shares, then, when their threads do not come, the others'; then until those who have them are done. */
static void do_phase(imp_phases *f, uint32_t i, uint32_t ith, uint32_t n_thread)
{
    gate *done = &f->phase[i].done;
    uint32_t first = (uint32_t)((uint64_t)f->n_share * ith / n_thread);
    uint32_t own = (uint32_t)((uint64_t)f->n_share * (ith + 1) / n_thread) - first;
    if (gate_reached(done, f->target)) return;
    for (uint32_t k = 0; k < own; k++) try_share(f, i, first + k, ith);
    for (int k = 0; k < SPIN_CLAIM && !gate_reached(done, f->target); k++) cpu_relax();
    /* backwards from the end, so that two meet in the middle of what an owner left */
    for (uint32_t k = f->n_share; k > own && !gate_reached(done, f->target); k--)
        try_share(f, i, (first + k - 1) % f->n_share, ith);
    gate_wait_for(done, f->target, f->pool->oversubscribed ? 0 : SPIN_PHASE);
}

static void do_phases(void *ctx, uint32_t ith, uint32_t n_thread)
{
    imp_phases *f = ctx;
    for (uint32_t i = 0; i < f->n_phase; i++) do_phase(f, i, ith, n_thread);
}

void imp_phases_run(imp_phases *f, imp_pool *p, uint32_t n_share, imp_share_fn fn, void *ctx)
{
    if (++f->run == 0) { /* after 2^32 runs: no share seems to be claimed */
        memset(f->claims, 0, (size_t)f->n_phase * f->claim_bytes);
        f->run = 1;
    }
    f->pool = p;
    f->n_share = n_share;
    f->target += n_share;
    f->fn = fn;
    f->ctx = ctx;
    imp_pool_run_open(p, do_phases, f);
}

/* ---- plain threads ---------------------------------------------------------------------------- */
struct imp_thread {
    pthread_t thread;
    void (*fn)(void *);
    void *arg;
};

static void *thread_main(void *arg)
{
    imp_thread *t = arg;
    t->fn(t->arg);
    return NULL;
}

imp_status imp_thread_start(void (*fn)(void *), void *arg, imp_thread **out)
{
    *out = NULL;
    imp_thread *t = imp_sys_calloc(1, sizeof *t);
    if (t == NULL) return IMP_NOMEM;
    t->fn = fn;
    t->arg = arg;
    if (imp_sys_should_fail() || pthread_create(&t->thread, NULL, thread_main, t) != 0) {
        imp_sys_free(t);
        return IMP_NOMEM;
    }
    *out = t;
    return IMP_OK;
}

void imp_thread_join(imp_thread *t)
{
    if (t == NULL) return;
    pthread_join(t->thread, NULL);
    imp_sys_free(t);
}

struct imp_mutex {
    pthread_mutex_t m;
};
imp_status imp_mutex_new(imp_mutex **out)
{
    *out = imp_sys_calloc(1, sizeof **out);
    if (*out == NULL) return IMP_NOMEM;
    pthread_mutex_init(&(*out)->m, NULL);
    return IMP_OK;
}
void imp_mutex_free(imp_mutex *m)
{
    if (m == NULL) return;
    pthread_mutex_destroy(&m->m);
    imp_sys_free(m);
}
void imp_mutex_lock(imp_mutex *m)
{
    pthread_mutex_lock(&m->m);
}
void imp_mutex_unlock(imp_mutex *m)
{
    pthread_mutex_unlock(&m->m);
}

static pthread_mutex_t global_lock = PTHREAD_MUTEX_INITIALIZER;

void imp_global_lock(void)
{
    pthread_mutex_lock(&global_lock);
}
void imp_global_unlock(void)
{
    pthread_mutex_unlock(&global_lock);
}

struct imp_cond {
    pthread_cond_t c;
};
imp_status imp_cond_new(imp_cond **out)
{
    *out = imp_sys_calloc(1, sizeof **out);
    if (*out == NULL) return IMP_NOMEM;
#ifdef __APPLE__
    pthread_cond_init(&(*out)->c, NULL);
#else
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&(*out)->c, &attr);
    pthread_condattr_destroy(&attr);
#endif
    return IMP_OK;
}
void imp_cond_free(imp_cond *c)
{
    if (c == NULL) return;
    pthread_cond_destroy(&c->c);
    imp_sys_free(c);
}
void imp_cond_wait(imp_cond *c, imp_mutex *m)
{
    pthread_cond_wait(&c->c, &m->m);
}
bool imp_cond_wait_ms(imp_cond *c, imp_mutex *m, uint32_t ms)
{
    struct timespec t;
#ifdef __APPLE__
    t = (struct timespec){.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    return pthread_cond_timedwait_relative_np(&c->c, &m->m, &t) != ETIMEDOUT;
#else
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += ms / 1000;
    t.tv_nsec += (long)(ms % 1000) * 1000000;
    if (t.tv_nsec >= 1000000000) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000;
    }
    return pthread_cond_timedwait(&c->c, &m->m, &t) != ETIMEDOUT;
#endif
}
void imp_cond_broadcast(imp_cond *c)
{
    pthread_cond_broadcast(&c->c);
}
