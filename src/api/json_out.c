/* api/json_out.c - JSON text into a buffer.
 *
 * Place:   used by every answer. No tree is built: answers are written once, front to back.
 * Always:  what comes out is valid UTF-8 and valid JSON, whatever the bytes that went in. */
#include "api/internal.h"

#include <math.h>
#include <stdio.h>

void imp_json_str(imp_buf *b, const char *s, size_t n)
{
    imp_buf_add(b, "\"", 1);
    size_t i = 0, from = 0;
    while (i < n) {
        unsigned char c = (unsigned char)s[i];
        if (c >= 0x20 && c < 0x7f && c != '"' && c != '\\') {
            i++;
            continue;
        }
        if (c >= 0x80) {
            int32_t cp;
            size_t len = imp_utf8_decode(s + i, n - i, &cp);
            if (cp >= 0) {
                i += len;
                continue;
            }
        }
        imp_buf_add(b, s + from, i - from);
        switch (c) {
        case '"': imp_buf_add(b, "\\\"", 2); break;
        case '\\': imp_buf_add(b, "\\\\", 2); break;
        case '\n': imp_buf_add(b, "\\n", 2); break;
        case '\r': imp_buf_add(b, "\\r", 2); break;
        case '\t': imp_buf_add(b, "\\t", 2); break;
        default:
            if (c >= 0x80)
                imp_buf_str(b, "\\ufffd");
            else
                imp_buf_fmt(b, "\\u%04x", c);
        }
        from = ++i;
    }
    imp_buf_add(b, s + from, n - from);
    imp_buf_add(b, "\"", 1);
}

void imp_json_cstr(imp_buf *b, const char *s)
{
    if (s)
        imp_json_str(b, s, strlen(s));
    else
        imp_buf_str(b, "null");
}

/* Nine significant digits identify every float. In the range that vectors live in they come from one exact scaling by
 * a power of ten in double precision, an order of magnitude faster than printf. */
void imp_json_f32(imp_buf *b, float x)
{
    static const double pow10[] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13};
    if (isnan(x) || isinf(x)) {
        imp_buf_str(b, "null");
        return;
    }
    double a = fabs((double)x);
    if (!(a >= 1e-5 && a < 1e5)) {
        char tmp[40];
        int k = snprintf(tmp, sizeof tmp, "%.9g", (double)x);
        imp_buf_add(b, x == 0 ? "0" : tmp, x == 0 ? 1 : (size_t)k);
        return;
    }
    int e = -5; /* 10^e <= a */
    while (e < 4 && a >= (e + 1 >= 0 ? pow10[e + 1] : 1 / pow10[-e - 1])) e++;
    uint64_t m = (uint64_t)(a * pow10[8 - e] + 0.5);
    if (m >= 1000000000u) {
        m /= 10;
        e++;
    }
    char d[10], out[24];
    for (int i = 8; i >= 0; i--, m /= 10) d[i] = (char)('0' + m % 10);
    int n = 9, k = 0;
    while (n > 1 && d[n - 1] == '0') n--;
    if (x < 0) out[k++] = '-';
    if (e < 0) {
        out[k++] = '0';
        out[k++] = '.';
        for (int i = -1; i > e; i--) out[k++] = '0';
        for (int i = 0; i < n; i++) out[k++] = d[i];
    } else {
        for (int i = 0; i <= e; i++) out[k++] = i < n ? d[i] : '0';
        if (n > e + 1) {
            out[k++] = '.';
            for (int i = e + 1; i < n; i++) out[k++] = d[i];
        }
    }
    imp_buf_add(b, out, (size_t)k);
}

void imp_json_base64(imp_buf *b, const void *p, size_t n)
{
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *s = p;
    imp_buf_add(b, "\"", 1);
    for (size_t i = 0; i < n; i += 3) {
        uint32_t v =
            (uint32_t)s[i] << 16 | (i + 1 < n ? (uint32_t)s[i + 1] << 8 : 0) | (i + 2 < n ? s[i + 2] : 0);
        char q[4] = {digit[v >> 18], digit[v >> 12 & 63], i + 1 < n ? digit[v >> 6 & 63] : '=',
                     i + 2 < n ? digit[v & 63] : '='};
        imp_buf_add(b, q, 4);
    }
    imp_buf_add(b, "\"", 1);
}
