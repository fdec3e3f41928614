/* api/error.c - error answers, in the shape of the API that was asked.
 *
 * Place:   used by every handler, and by src/http through imp_api_refuse.
 * Idea:    the only place that maps imp_status to an HTTP status.
 * Always:  the engine's own sentence is shown only for failures of the request (it names counts and fields); failures
 *          of the server get a fixed sentence, since theirs may name files. */
#include "api/internal.h"

int imp_api_http_status(imp_status s)
{
    switch (s) {
    case IMP_OK: return 200;
    case IMP_INVALID:
    case IMP_UNSUPPORTED: return 400;
    case IMP_NOT_FOUND: return 404;
    case IMP_TOO_LARGE: return 413;
    case IMP_BUSY: return 429;
    case IMP_NOT_READY:
    case IMP_CANCELLED:
    case IMP_NOMEM: return 503;
    case IMP_NO_FIT: return 507;
    default: return 500;
    }
}

static const char *error_type(int status)
{
    switch (status) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 429: return "rate_limit_error";
    default: return status >= 500 ? "server_error" : "invalid_request_error";
    }
}

static const char *anthropic_type(int status)
{
    switch (status) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 404: return "not_found_error";
    case 413: return "request_too_large";
    case 429: return "rate_limit_error";
    case 503: return "overloaded_error";
    default: return status >= 500 ? "api_error" : "invalid_request_error";
    }
}

static const char *error_code(const imp_error *e)
{
    switch (e->status) {
    case IMP_NOT_FOUND: return "model_not_found";
    case IMP_TOO_LARGE: /* clients act on the first: they shorten what they send */
        return strstr(e->text, "context") != NULL ? "context_length_exceeded" : "too_large";
    case IMP_BUSY: return "queue_full";
    case IMP_NOT_READY: return "not_ready";
    case IMP_CANCELLED: return "cancelled";
    case IMP_NOMEM: return "out_of_memory";
    case IMP_NO_FIT: return "does_not_fit";
    default: return NULL;
    }
}

static const char *safe_text(const imp_error *e)
{
    switch (e->status) {
    case IMP_INVALID:
    case IMP_UNSUPPORTED:
    case IMP_NOT_FOUND:
    case IMP_TOO_LARGE:
    case IMP_NO_FIT: return e->text[0] ? e->text : imp_status_text(e->status);
    case IMP_BUSY: return "too many requests are waiting: try again in a moment";
    case IMP_NOT_READY: /* with a field it is about what the request asked for */
        return e->field[0] ? e->text : "the server is not ready: try again in a moment";
    case IMP_FORMAT: /* a model that could not be loaded */
        return e->field[0] ? e->text : "the server failed on this request: its log says more";
    case IMP_CANCELLED:
        return "the request was cancelled by the server: it is shutting down or the model was unloaded";
    case IMP_NOMEM: return "the server is out of memory: try again later or send a smaller request";
    case IMP_DEVICE: return "the device that runs the model failed: the server's log says more";
    default: return "the server failed on this request: its log says more";
    }
}

imp_dialect imp_api_dialect(const char *path)
{
    if (strncmp(path, "/v1/messages", 12) == 0) return IMP_ANTHROPIC;
    return strncmp(path, "/api/", 5) == 0 ? IMP_OLLAMA : IMP_OPENAI;
}

void imp_api_error_json(imp_buf *b, imp_dialect dialect, int status, const char *param, const char *code,
                        const char *text)
{
    if (dialect == IMP_OLLAMA) {
        imp_buf_str(b, "{\"error\":");
        imp_json_cstr(b, text);
        imp_buf_str(b, "}");
        return;
    }
    if (dialect == IMP_ANTHROPIC) {
        imp_buf_fmt(b, "{\"type\":\"error\",\"error\":{\"type\":\"%s\",\"message\":", anthropic_type(status));
        imp_json_cstr(b, text);
        imp_buf_str(b, "}}");
        return;
    }
    imp_buf_str(b, "{\"error\":{\"message\":");
    imp_json_cstr(b, text);
    imp_buf_fmt(b, ",\"type\":\"%s\",\"param\":", error_type(status));
    imp_json_cstr(b, param);
    imp_buf_str(b, ",\"code\":");
    imp_json_cstr(b, code);
    imp_buf_str(b, "}}");
}

void imp_api_fail_json(imp_buf *b, imp_dialect dialect, const imp_error *err)
{
    imp_api_error_json(b, dialect, imp_api_http_status(err->status), err->field[0] ? err->field : NULL,
                       error_code(err), safe_text(err));
}

static void answer_with(const imp_api_sink *s, int status, const imp_api_header *h, size_t n_h, imp_buf *body)
{
    static const char no_mem[] =
        "{\"error\":{\"message\":\"the server is out of memory\",\"type\":\"server_error\","
        "\"param\":null,\"code\":\"out_of_memory\"}}";
    bool bad = body->failed;
    s->begin(s->user, bad ? 503 : status, "application/json", h, n_h, false);
    if (bad)
        s->write(s->user, no_mem, sizeof no_mem - 1);
    else
        s->write(s->user, body->data, body->n);
    s->end(s->user);
    imp_buf_deinit(body);
}

void imp_api_answer(const imp_api_sink *s, int status, imp_buf *body)
{
    answer_with(s, status, NULL, 0, body);
}

void imp_api_error(const imp_api_sink *s, imp_dialect dialect, int status, const char *param,
                   const char *code, const imp_api_header *headers, size_t n_header, const char *text)
{
    imp_buf b = {0};
    imp_api_error_json(&b, dialect, status, param, code, text);
    answer_with(s, status, headers, n_header, &b);
}

void imp_api_fail(const imp_api_sink *s, imp_dialect dialect, const imp_error *err)
{
    int status = imp_api_http_status(err->status);
    if (status >= 500 && err->status != IMP_CANCELLED)
        imp_log(IMP_LOG_WARN, "request failed: %s: %s", imp_status_name(err->status), err->text);
    imp_api_header retry = {"Retry-After", "1"};
    imp_buf b = {0};
    imp_api_fail_json(&b, dialect, err);
    answer_with(s, status, &retry, status == 429 || status == 503, &b);
}

void imp_api_refuse(const char *path, const imp_api_sink *sink, int status, const char *param,
                    const char *code, const imp_api_header *headers, size_t n_header, const char *text)
{
    imp_api_error(sink, imp_api_dialect(path), status, param, code, headers, n_header, text);
}
