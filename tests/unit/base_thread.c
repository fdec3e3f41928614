/* The pool: everybody runs, nobody passes a barrier early, a failed start leaves nothing behind. Phases: each share is
 * done once, after all of the phase before; a thread that does not come delays nobody. */
#include "test.h"

#include <stdatomic.h>
#include <time.h>

#include "base/thread.h"

typedef struct shared {
    imp_pool *pool;
    _Atomic uint64_t ran;
    uint32_t value[8]; /* plain memory: the barrier must order it */
    _Atomic uint32_t wrong;
} shared;

static void body(void *ctx, uint32_t ith, uint32_t n)
{
    shared *s = ctx;
    atomic_fetch_or(&s->ran, 1ull << ith);
    for (uint32_t round = 1; round <= 500; round++) {
        s->value[ith] = round;
        imp_pool_barrier(s->pool);
        for (uint32_t i = 0; i < n; i++)
            if (s->value[i] != round) atomic_fetch_add(&s->wrong, 1);
        imp_pool_barrier(s->pool);
    }
}

static void barrier_orders_all_threads(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 5; n++) { /* also more threads than cores */
        shared s = {0};
        assert_int_equal(imp_pool_new(n, &s.pool), IMP_OK);
        assert_int_equal(imp_pool_n_thread(s.pool), n);
        for (int run = 0; run < 20; run++) {
            atomic_store(&s.ran, 0);
            imp_pool_run(s.pool, body, &s);
            assert_int_equal(atomic_load(&s.ran), (1u << n) - 1);
        }
        assert_int_equal(atomic_load(&s.wrong), 0);
        imp_pool_free(s.pool);
    }
}

static void sleeping_pool_wakes(void **state)
{
    (void)state;
    shared s = {0};
    assert_int_equal(imp_pool_new(2, &s.pool), IMP_OK);
    for (int i = 0; i < 5; i++) {
        imp_mutex *m;
        imp_cond *c;
        assert_int_equal(imp_mutex_new(&m), IMP_OK);
        assert_int_equal(imp_cond_new(&c), IMP_OK);
        imp_mutex_lock(m);
        assert_false(imp_cond_wait_ms(c, m, 20)); /* long enough for the worker to sleep in the kernel */
        imp_mutex_unlock(m);
        imp_cond_free(c);
        imp_mutex_free(m);
        imp_pool_run(s.pool, body, &s);
    }
    assert_int_equal(atomic_load(&s.wrong), 0);
    imp_pool_free(s.pool);
}

static void note_core(void *ctx, uint32_t ith, uint32_t n)
{
    (void)n;
    ((uint32_t *)ctx)[ith] = imp_sys_this_core();
}

/* Wherever the caller is, no worker is pinned to its core. */
static void workers_leave_the_callers_core(void **state)
{
    (void)state;
    uint32_t n = imp_sys_n_core();
    if (n < 2 || imp_sys_this_core() == UINT32_MAX) skip();
    imp_pool *pool;
    assert_int_equal(imp_pool_new(2, &pool), IMP_OK);
    for (uint32_t i = 0; i < 6; i++) {
        uint32_t core[2], at = i % n;
        imp_sys_pin_thread(0, at);
        imp_pool_run(pool, note_core, core);
        assert_int_equal(core[0], at);
        assert_int_not_equal(core[1], at);
        assert_in_range(core[1], 0, 1);
    }
    imp_pool_free(pool);
}

enum { N_PHASE = 40, MAX_SHARE = 12 };
typedef struct phase_work {
    uint32_t n_share, n_done[N_PHASE][MAX_SHARE],
        value[N_PHASE][MAX_SHARE]; /* plain memory: phases must order it */
    _Atomic uint32_t wrong, n_late;
    bool late; /* every thread but the caller loses its core in its first share */
} phase_work;

static void one_share(void *ctx, uint32_t phase, uint32_t share, uint32_t ith)
{
    phase_work *w = ctx;
    uint32_t sum = 1;
    for (uint32_t i = 0; phase > 0 && i < w->n_share; i++) {
        sum += w->value[phase - 1][i];
        if (w->n_done[phase - 1][i] != w->n_done[0][0]) atomic_fetch_add(&w->wrong, 1);
    }
    if (w->late && ith != 0 && atomic_fetch_add(&w->n_late, 1) == 0)
        nanosleep(&(struct timespec){0, 3000000}, NULL);
    w->n_done[phase][share]++;
    w->value[phase][share] = sum % 1000003;
}

static void phases_are_done_in_order(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 5; n++) { /* also more threads than cores */
        imp_pool *p;
        imp_phases *f;
        assert_int_equal(imp_pool_new(n, &p), IMP_OK);
        assert_int_equal(imp_phases_new(N_PHASE, MAX_SHARE, &f), IMP_OK);
        for (uint32_t run = 0; run < 60; run++) {
            phase_work w = {.n_share = run % MAX_SHARE + 1, .late = run % 16 == 15};
            uint32_t expect = 1;
            for (int again = 0; again < 3; again++) imp_phases_run(f, p, w.n_share, one_share, &w);
            assert_int_equal(atomic_load(&w.wrong), 0);
            for (uint32_t i = 0; i < N_PHASE; i++) {
                for (uint32_t k = 0; k < w.n_share; k++) {
                    assert_int_equal(w.n_done[i][k], 3);
                    assert_int_equal(w.value[i][k], expect);
                }
                expect = (1 + w.n_share * expect) % 1000003;
            }
            imp_pool_run(p, (imp_pool_fn)body,
                         &(shared){.pool = p}); /* in turn with runs that wait for all */
        }
        imp_phases_free(f);
        imp_pool_free(p);
    }
}

typedef struct held {
    imp_phases *f;
    _Atomic uint32_t n_share_done, inside;
} held;

/* The worker stays in its first share until the caller has done all others of that phase. */
static void hold_share(void *ctx, uint32_t phase, uint32_t share, uint32_t ith)
{
    held *h = ctx;
    (void)phase, (void)share;
    if (ith != 0 && atomic_exchange(&h->inside, 1) == 0) {
        while (atomic_load(&h->n_share_done) < 7) nanosleep(&(struct timespec){0, 100000}, NULL);
    }
    atomic_fetch_add(&h->n_share_done, 1);
}

static void others_take_the_shares_of_a_late_thread(void **state)
{
    (void)state;
    imp_pool *p;
    held h = {0};
    assert_int_equal(imp_pool_new(2, &p), IMP_OK);
    assert_int_equal(imp_phases_new(1, 8, &h.f), IMP_OK);
    for (int i = 0; i < 20; i++) {
        atomic_store(&h.n_share_done, 0);
        atomic_store(&h.inside, 0);
        imp_phases_run(h.f, p, 8, hold_share, &h);
        assert_int_equal(atomic_load(&h.n_share_done), 8);
    }
    imp_phases_free(h.f);
    imp_pool_free(p);
}

static void every_failed_start_is_clean(void **state)
{
    (void)state;
    for (uint64_t n = 1;; n++) {
        imp_pool *p;
        imp_sys_fail_at(n);
        imp_status s = imp_pool_new(4, &p);
        imp_phases *f = NULL;
        if (s == IMP_OK) s = imp_phases_new(3, 4, &f);
        imp_sys_fail_at(0);
        if (s != IMP_OK && p != NULL) {
            imp_pool_free(p);
            assert_null(f);
            continue;
        }
        imp_phases_free(f);
        if (s == IMP_OK) {
            imp_pool_free(p);
            assert_true(n > 3);
            return;
        }
        assert_null(p);
    }
}

int main(void)
{
    const struct CMUnitTest t[] = {cmocka_unit_test(barrier_orders_all_threads),
                                   cmocka_unit_test(sleeping_pool_wakes),
                                   cmocka_unit_test(phases_are_done_in_order),
                                   cmocka_unit_test(others_take_the_shares_of_a_late_thread),
                                   cmocka_unit_test(every_failed_start_is_clean),
                                   cmocka_unit_test(workers_leave_the_callers_core)};
    return cmocka_run_group_tests(t, NULL, NULL);
}
