/* The pool: everybody runs, nobody passes a barrier early, a failed start leaves nothing behind. */
#include "test.h"

#include <stdatomic.h>

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

static void every_failed_start_is_clean(void **state)
{
    (void)state;
    for (uint64_t n = 1;; n++) {
        imp_pool *p;
        imp_sys_fail_at(n);
        imp_status s = imp_pool_new(4, &p);
        imp_sys_fail_at(0);
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
                                   cmocka_unit_test(every_failed_start_is_clean)};
    return cmocka_run_group_tests(t, NULL, NULL);
}
