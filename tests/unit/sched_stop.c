/* Stop strings: whatever the pieces in which a text arrives, what comes out is the text up to where a search of the
 * whole text finds the first stop string to be completed. */
#include "test.h"

#include "sched/stop.h"

/* Where the text ends by plain search: at the start of the stop string that is complete first. */
static bool search(const char *text, size_t n, const char *const *stop, size_t n_stop, size_t *end)
{
    for (size_t upto = 1; upto <= n; upto++) {
        size_t best = SIZE_MAX;
        for (size_t i = 0; i < n_stop; i++) {
            size_t len = strlen(stop[i]);
            if (len <= upto && memcmp(text + upto - len, stop[i], len) == 0) best = IMP_MIN(best, upto - len);
        }
        if (best != SIZE_MAX) {
            *end = best;
            return true;
        }
    }
    *end = n;
    return false;
}

static void byte_by_byte_equals_search(void **state)
{
    (void)state;
    static const char *const sets[][3] = {
        {"ab", NULL}, {"aab", "ba", NULL}, {"aaaa", NULL}, {"abcabd", "cab", NULL}, {"c", NULL}, {NULL}};
    rng r = {1};
    int n_stopped = 0;
    for (int round = 0; round < 20000; round++) {
        const char *const *stop = sets[rng_below(&r, IMP_COUNT(sets))];
        size_t n_stop = 0, end, given = 0, n = rng_below(&r, 20);
        while (stop[n_stop] != NULL) n_stop++;
        char text[20], out[32];
        for (size_t i = 0; i < n; i++) text[i] = (char)('a' + rng_below(&r, 4));
        bool want = search(text, n, stop, n_stop, &end), stopped = false;
        imp_stop s;
        imp_stop_init(&s, stop, n_stop);
        for (size_t i = 0; i < n && !stopped; i++) {
            size_t go;
            imp_buf_add(&s.held, text + i, 1);
            stopped = imp_stop_scan(&s, &go);
            memcpy(out + given, s.held.data, go);
            given += go;
            imp_stop_drop(&s, go);
        }
        if (!stopped && s.held.n > 0) {
            memcpy(out + given, s.held.data, s.held.n);
            given += s.held.n;
        }
        assert_int_equal(stopped, want);
        assert_int_equal(given, end);
        assert_memory_equal(out, text, end);
        n_stopped += stopped;
        imp_stop_deinit(&s);
    }
    assert_true(n_stopped > 5000);
}

static void pieces_never_give_text_of_a_stop_string(void **state)
{
    (void)state;
    static const char *const stop[] = {"</s>", "\n\nUser:"};
    static const char text[] = "one < two </ three\n\nUse it\n\nUser: four</s>";
    for (size_t piece = 1; piece < sizeof text; piece++) {
        imp_stop s;
        imp_stop_init(&s, stop, 2);
        imp_buf out = {0};
        bool stopped = false;
        for (size_t at = 0; at < sizeof text - 1 && !stopped; at += piece) {
            size_t go;
            imp_buf_add(&s.held, text + at, IMP_MIN(piece, sizeof text - 1 - at));
            stopped = imp_stop_scan(&s, &go);
            imp_buf_add(&out, s.held.data, go);
            imp_stop_drop(&s, go);
        }
        assert_true(stopped);
        assert_string_equal(out.data, "one < two </ three\n\nUse it");
        imp_buf_deinit(&out);
        imp_stop_deinit(&s);
    }
}

int main(void)
{
    const struct CMUnitTest t[] = {cmocka_unit_test(byte_by_byte_equals_search),
                                   cmocka_unit_test(pieces_never_give_text_of_a_stop_string)};
    return cmocka_run_group_tests(t, NULL, NULL);
}
