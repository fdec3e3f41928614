/* app/io.c - standard input and output, JSON and number text.
 *
 * Always:  what could not be written is an error of the command ("No space left on device"), found at the latest by
 *          app_out_finish. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "app/app.h"

enum { MAX_STDIN = 1 << 30 };

app_result app_usage(app *a, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(a->err.text, sizeof a->err.text, fmt, ap);
    va_end(ap);
    a->err.status = IMP_INVALID;
    return APP_USAGE;
}

app_result app_failed(app *a, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(a->err.text, sizeof a->err.text, fmt, ap);
    va_end(ap);
    return APP_FAILED;
}

imp_status app_read_stdin(imp_buf *buf, imp_error *err)
{
    char chunk[16384];
    size_t n;
    while ((n = fread(chunk, 1, sizeof chunk, stdin)) > 0) {
        if (buf->n + n > MAX_STDIN)
            return imp_fail(err, IMP_TOO_LARGE, "standard input holds more than 1 GB");
        imp_buf_add(buf, chunk, n);
    }
    if (ferror(stdin)) return imp_fail(err, IMP_IO, "cannot read standard input: %s", strerror(errno));
    if (buf->failed) return imp_fail(err, IMP_NOMEM, "no memory for standard input");
    return IMP_OK;
}

bool app_read_line(FILE *f, imp_buf *line)
{
    int c;
    line->n = 0;
    while ((c = getc(f)) != EOF && c != '\n') {
        char b = (char)c;
        imp_buf_add(line, &b, 1);
    }
    if (c == EOF && line->n == 0) return false;
    if (line->n && line->data[line->n - 1] == '\r') line->data[--line->n] = 0;
    return true;
}

imp_status app_out_flush(imp_error *err)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) return IMP_OK;
    return imp_fail(err, IMP_IO, "cannot write the output: %s", strerror(errno ? errno : EIO));
}

imp_status app_out_finish(imp_error *err)
{
    errno = 0;
    imp_status s = app_out_flush(err);
    if (s != IMP_OK) return s;
    /* Some file systems report a full disk only when the file is closed. */
    if (fclose(stdout) && errno != EBADF)
        return imp_fail(err, IMP_IO, "cannot write the output: %s", strerror(errno));
    return IMP_OK;
}

app_result app_print_json(app *a, json_t *doc)
{
    if (!doc) return app_failed(a, "out of memory");
    json_dumpf(doc, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    json_decref(doc);
    putchar('\n');
    return APP_OK;
}

json_t *app_json_text(const char *s, size_t n)
{
    if (imp_utf8_valid(s, n)) return json_stringn(s, n);
    imp_buf b = {0};
    for (size_t i = 0; i < n;) {
        int32_t cp;
        size_t len = imp_utf8_decode(s + i, n - i, &cp);
        if (cp < 0)
            imp_buf_str(&b, "\xEF\xBF\xBD");
        else
            imp_buf_add(&b, s + i, len);
        i += len;
    }
    json_t *j = b.failed ? NULL : json_stringn(b.data ? b.data : "", b.n);
    imp_buf_deinit(&b);
    return j;
}

json_t *app_json_round(double v, int digits)
{
    char text[64];
    if (!isfinite(v)) return json_null();
    snprintf(text, sizeof text, "%.*g", digits, v);
    return json_real(strtod(text, NULL));
}

void app_print_float(FILE *f, float v)
{
    char text[32];
    if (!isfinite(v)) {
        fputs("null", f);
        return;
    }
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)v);
        if (strtof(text, NULL) == v) break;
    }
    fputs(text, f);
}

static const char *scaled_text(double v, const char *unit, char out[32])
{
    static const char *const prefix[] = {"", "k", "M", "G", "T", "P"};
    size_t i = 0;
    while (v >= 999.5 && i + 1 < IMP_COUNT(prefix)) v /= 1000, i++;
    snprintf(out, 32,
             v < 9.995 && i   ? "%.2f %s%s"
             : v < 99.95 && i ? "%.1f %s%s"
                              : "%.0f %s%s",
             v, prefix[i], unit);
    return out;
}

const char *app_size_text(uint64_t bytes, char out[32])
{
    return scaled_text((double)bytes, "B", out);
}

const char *app_count_text(uint64_t count, char out[32])
{
    double v = (double)count;
    if (v >= 1e9)
        snprintf(out, 32, "%.2f billion", v / 1e9);
    else if (v >= 1e6)
        snprintf(out, 32, "%.1f million", v / 1e6);
    else
        snprintf(out, 32, "%llu", (unsigned long long)count);
    return out;
}
