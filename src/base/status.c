/* base/status.c - status names and texts, and filling of imp_error. */
#include <stdio.h>

#include "base/base.h"

const char *imp_status_name(imp_status s)
{
    switch (s) {
#define IMP_X(name, code, text)                                                                              \
    case IMP_##name: return #name;
        IMP_STATUS_LIST(IMP_X)
#undef IMP_X
    }
    return "UNKNOWN";
}

const char *imp_status_text(imp_status s)
{
    switch (s) {
#define IMP_X(name, code, text)                                                                              \
    case IMP_##name: return text;
        IMP_STATUS_LIST(IMP_X)
#undef IMP_X
    }
    return "unknown status";
}

static void fill(imp_error *err, imp_status status, uint64_t pos, const char *field, const char *fmt,
                 va_list ap)
{
    if (err == NULL) return;
    memset(err, 0, sizeof *err);
    err->status = status;
    err->position = pos;
    (void)vsnprintf(err->text, sizeof err->text, fmt, ap);
    if (field != NULL) (void)snprintf(err->field, sizeof err->field, "%s", field);
    /* Text that came from a file must not break the one line, nor end inside a character. */
    for (char *p = err->text; *p != '\0'; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = '?';
    size_t n = strlen(err->text);
    err->text[n - imp_utf8_incomplete_tail(err->text, n)] = '\0';
}

imp_status imp_fail(imp_error *err, imp_status status, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fill(err, status, 0, NULL, fmt, ap);
    va_end(ap);
    return status;
}

imp_status imp_fail_at(imp_error *err, imp_status status, uint64_t pos, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fill(err, status, pos, NULL, fmt, ap);
    va_end(ap);
    return status;
}

imp_status imp_fail_field(imp_error *err, imp_status status, const char *field, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fill(err, status, 0, field, fmt, ap);
    va_end(ap);
    return status;
}
