/* UTF-8 against iconv, which we did not write: every code point and random bytes. */
#include "test.h"

#include <iconv.h>

#include "base/base.h"

static bool iconv_valid(iconv_t cd, const char *s, size_t n)
{
    uint32_t out[64];
    char *in = (char *)(uintptr_t)s, *to = (char *)out;
    size_t left = n, room = sizeof out;
    iconv(cd, NULL, NULL, NULL, NULL);
    return iconv(cd, &in, &left, &to, &room) != (size_t)-1 && left == 0;
}

static void every_code_point_round_trips(void **state)
{
    (void)state;
    iconv_t cd = iconv_open("UTF-8", "UTF-32LE");
    for (int32_t cp = 0; cp <= 0x10ffff; cp++) {
        if (cp >= 0xd800 && cp <= 0xdfff) continue;
        char ours[4], theirs[8], *in = (char *)&cp, *to = theirs;
        size_t left = 4, room = sizeof theirs, n = imp_utf8_encode(cp, ours);
        iconv(cd, &in, &left, &to, &room);
        assert_int_equal(n, sizeof theirs - room);
        assert_memory_equal(ours, theirs, n);
        int32_t back;
        assert_int_equal(imp_utf8_decode(ours, n, &back), n);
        assert_int_equal(back, cp);
        for (size_t k = 1; k < n; k++) { /* cut short: malformed, and known to be unfinished */
            assert_int_equal(imp_utf8_decode(ours, k, &back), 1);
            assert_int_equal(back, -1);
            assert_int_equal(imp_utf8_incomplete_tail(ours, k), k);
        }
        assert_int_equal(imp_utf8_incomplete_tail(ours, n), 0);
    }
    iconv_close(cd);
}

static void random_bytes_are_judged_as_iconv_does(void **state)
{
    (void)state;
    static const unsigned char likely[] = {0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1,
                                           0xc2, 0xdf, 0xe0, 0xed, 0xef, 0xf0, 0xf1, 0xf4, 0xf5, 0xff};
    iconv_t cd = iconv_open("UTF-32LE", "UTF-8");
    rng r = {7};
    size_t n_valid = 0;
    for (int i = 0; i < 200000; i++) {
        char s[6];
        size_t n = 1 + rng_below(&r, 6);
        for (size_t k = 0; k < n; k++) s[k] = (char)likely[rng_below(&r, sizeof likely)];
        bool valid = imp_utf8_valid(s, n);
        assert_int_equal(valid, iconv_valid(cd, s, n));
        n_valid += valid;
    }
    assert_true(n_valid > 1000);
    iconv_close(cd);
}

int main(void)
{
    const struct CMUnitTest t[] = {cmocka_unit_test(every_code_point_round_trips),
                                   cmocka_unit_test(random_bytes_are_judged_as_iconv_does)};
    return cmocka_run_group_tests(t, NULL, NULL);
}
