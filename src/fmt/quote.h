/* fmt/quote.h - names from files made fit for an error message; private to src/fmt. */
#ifndef IMP_FMT_QUOTE_H
#define IMP_FMT_QUOTE_H

#include "base/base.h"

typedef struct imp_quoted {
    char s[96];
} imp_quoted;

/* The bytes in single quotes: what is not printable ASCII becomes '?', long names end in "...". Used in place, as in
 * imp_fail(err, IMP_FORMAT, "tensor %s ...", imp_quote(p, n).s). */
imp_quoted imp_quote(const char *p, size_t n);
imp_quoted imp_quote_z(const char *s);

/* Put "path: " before an error's text, so that a parser of bytes need not know where they come from. Returns status. */
imp_status imp_fail_in(imp_error *err, imp_status status, const char *path);

#endif
