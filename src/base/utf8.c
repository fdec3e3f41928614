/* base/utf8.c - UTF-8 as RFC 3629 defines it: no overlong forms, no surrogates, nothing past U+10FFFF. */
#include "base/base.h"

size_t imp_utf8_decode(const char *s, size_t n, int32_t *cp)
{
    const unsigned char *p = (const unsigned char *)s;
    unsigned c = p[0];
    *cp = -1;
    if (c < 0x80) {
        *cp = (int32_t)c;
        return 1;
    }
    size_t len = c >= 0xf0 && c <= 0xf4 ? 4 : c >= 0xe0 && c < 0xf0 ? 3 : c >= 0xc2 && c < 0xe0 ? 2 : 0;
    if (len == 0 || len > n) return 1;
    int32_t v = (int32_t)(c & (0xffu >> (len + 1)));
    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80) return 1;
        v = v << 6 | (p[i] & 0x3f);
    }
    bool overlong = (len == 3 && v < 0x800) || (len == 4 && v < 0x10000);
    if (overlong || v > 0x10ffff || (v >= 0xd800 && v <= 0xdfff)) return 1;
    *cp = v;
    return len;
}

size_t imp_utf8_encode(int32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    size_t len = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (size_t i = len - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (cp & 0x3f));
        cp >>= 6;
    }
    out[0] = (char)((0xf00 >> len & 0xff) | cp);
    return len;
}

bool imp_utf8_valid(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        int32_t cp;
        i += imp_utf8_decode(s + i, n - i, &cp);
        if (cp < 0) return false;
    }
    return true;
}

size_t imp_utf8_incomplete_tail(const char *s, size_t n)
{
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        unsigned c = (unsigned char)s[n - back];
        if ((c & 0xc0) == 0x80) continue; /* a continuation byte: look further back */
        size_t len = c >= 0xf0 && c <= 0xf4 ? 4 : c >= 0xe0 && c < 0xf0 ? 3 : c >= 0xc2 && c < 0xe0 ? 2 : 1;
        if (len <= back) return 0;
        /* Only a prefix that can still become a valid character waits for more. */
        unsigned second = back >= 2 ? (unsigned char)s[n - back + 1] : 0x80;
        if (back >= 2 && ((c == 0xe0 && second < 0xa0) || (c == 0xed && second > 0x9f) ||
                          (c == 0xf0 && second < 0x90) || (c == 0xf4 && second > 0x8f)))
            return 0;
        return back;
    }
    return 0;
}
