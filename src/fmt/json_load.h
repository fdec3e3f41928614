/* fmt/json_load.h - JSON from model files, with bounds; private to src/fmt. */
#ifndef IMP_FMT_JSON_LOAD_H
#define IMP_FMT_JSON_LOAD_H

#include <jansson.h>

#include "base/base.h"

/* Bytes to a JSON object. Refused (FORMAT, position filled): bytes that are no JSON object, duplicate keys; TOO_LARGE:
 * nesting deeper than 64, more than about a million values. what: names the input in messages ("the header").
 * *out: a new reference, NULL on failure. */
IMP_MUST_USE imp_status imp_json_load(const char *p, size_t n, const char *what, json_t **out,
                                      imp_error *err);
/* The same, for input whose root may also be an array. */
IMP_MUST_USE imp_status imp_json_load_any(const char *p, size_t n, const char *what, json_t **out,
                                          imp_error *err);

#endif
