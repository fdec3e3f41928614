/* base/thread.c - pinned pool with a spin-then-sleep barrier; plain threads, mutexes, conditions.
 *
 * Idea:    workers wait for a new generation number: they spin SPIN times (a step's ops follow each other within
 *          microseconds), then sleep in the kernel (futex on Linux, a condition elsewhere), so that an idle pool
 *          costs nothing. The barrier is a counter plus a generation of the same kind.
 * Threads: run() has one caller at a time; the memory orders make everything written before run() or a barrier
 *          visible after it. */
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

enum { SPIN = 4000 };

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

/* ---- pool ------------------------------------------------------------------------------------- */
typedef struct worker {
    imp_pool *pool;
    pthread_t thread;
    uint32_t ith;
} worker;

struct imp_pool {
    uint32_t n_thread, n_started;
    bool oversubscribed; /* more threads than cores: spinning would only take time from the others */
    worker *worker;
    gate start, finish, barrier;
    _Atomic uint32_t n_running, n_arrived;
    imp_pool_fn fn;
    void *ctx;
    bool quit;
};

static void *work(void *arg)
{
    worker *w = arg;
    imp_pool *p = w->pool;
    if (!p->oversubscribed) imp_sys_pin_thread(w->ith);
    for (uint32_t generation = 0;; generation++) {
        gate_wait(&p->start, generation, !p->oversubscribed);
        if (p->quit) return NULL;
        p->fn(p->ctx, w->ith, p->n_thread);
        if (atomic_fetch_sub(&p->n_running, 1) == 1) gate_open(&p->finish);
    }
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
    p->worker = imp_sys_calloc(p->n_thread, sizeof *p->worker);
    imp_status s = p->worker == NULL ? IMP_NOMEM : IMP_OK;
    for (uint32_t i = 1; s == IMP_OK && i < p->n_thread; i++) {
        p->worker[i] = (worker){.pool = p, .ith = i};
        if (imp_sys_should_fail() || pthread_create(&p->worker[i].thread, NULL, work, &p->worker[i]) != 0)
            s = IMP_NOMEM;
        else
            p->n_started = i;
    }
    if (s != IMP_OK) {
        imp_pool_free(p);
        return s;
    }
    *out = p;
    return IMP_OK;
}

void imp_pool_free(imp_pool *p)
{
    if (p == NULL) return;
    p->quit = true;
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

void imp_pool_run(imp_pool *p, imp_pool_fn fn, void *ctx)
{
    if (p->n_thread == 1) {
        fn(ctx, 0, 1);
        return;
    }
    p->fn = fn;
    p->ctx = ctx;
    atomic_store(&p->n_running, p->n_thread - 1);
    uint32_t finished = atomic_load(&p->finish.value);
    gate_open(&p->start);
    fn(ctx, 0, p->n_thread);
    gate_wait(&p->finish, finished, !p->oversubscribed);
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
