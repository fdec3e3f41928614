/* api/access.c - the line that the access log has for a request.
 *
 * Idea:    one JSON object a line; what is not known is null. Never a prompt, an answer, a key or a query string.
 * Errors:  out of memory marks the buffer as failed. */
#include <stdio.h>
#include <time.h>

#include "api/internal.h"

enum { MAX_PATH_BYTES = 200 };

static void write_time(imp_buf *b)
{
    struct timespec now;
    struct tm tm;
    char text[40];
    (void)clock_gettime(CLOCK_REALTIME, &now);
    (void)gmtime_r(&now.tv_sec, &tm);
    (void)strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
    imp_buf_fmt(b, "{\"time\":\"%s.%03ldZ\"", text, now.tv_nsec / 1000000);
}

static void text_field(imp_buf *b, const char *name, const char *text)
{
    imp_buf_fmt(b, ",\"%s\":", name);
    if (text && text[0])
        imp_json_str(b, text, IMP_MIN(strlen(text), (size_t)MAX_PATH_BYTES));
    else
        imp_buf_str(b, "null");
}

static void write_note(imp_buf *b, const imp_api_note *n)
{
    if (!n || !n->finish) {
        imp_buf_str(b, ",\"model\":null");
        return;
    }
    text_field(b, "model", n->model);
    imp_buf_fmt(b, ",\"prompt_tokens\":%llu,\"cached_tokens\":%llu,\"completion_tokens\":%llu,\"ttft_ms\":",
                (unsigned long long)n->n_prompt, (unsigned long long)n->n_cached,
                (unsigned long long)n->n_generated);
    if (n->ttft_ms >= 0)
        imp_buf_fmt(b, "%.3f", n->ttft_ms);
    else
        imp_buf_str(b, "null");
    text_field(b, "device", n->device);
    text_field(b, "finish", n->finish);
    imp_buf_fmt(b, ",\"receipt\":%llu", (unsigned long long)n->id);
}

void imp_api_access_line(const imp_api_access *a, imp_buf *b)
{
    write_time(b);
    text_field(b, "id", a->id);
    text_field(b, "client", a->client);
    text_field(b, "remote", a->remote);
    text_field(b, "method", a->method);
    text_field(b, "path", a->path);
    imp_buf_fmt(b, ",\"status\":%d,\"bytes_in\":%llu,\"bytes_out\":%llu,\"total_ms\":%.3f", a->status,
                (unsigned long long)a->n_in, (unsigned long long)a->n_out, a->total_ms);
    write_note(b, a->note);
    imp_buf_str(b, "}\n");
}
