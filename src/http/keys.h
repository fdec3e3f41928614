/* http/keys.h - the API keys that are accepted, and whose they are. */
#ifndef IMP_HTTP_KEYS_H
#define IMP_HTTP_KEYS_H

#include "api/api.h"
#include "base/base.h"

enum { IMP_KEY_NAME = 64 };
typedef struct http_keys http_keys;

/* key, file: either may be NULL; with neither there are no keys. Copied. INVALID, NOT_FOUND, IO, NOMEM; err says what to
 * do. */
IMP_MUST_USE imp_status http_keys_new(const char *key, const char *file, http_keys **out, imp_error *err);
void http_keys_free(http_keys *k);       /* NULL is allowed */
void http_keys_warn(const http_keys *k); /* when others may read the file */
bool http_keys_any(const http_keys *k);
/* Whose key it is: *who and name are filled. false: nobody's. given: NULL is allowed. */
bool http_keys_find(http_keys *k, const char *given, imp_api_who *who, char name[IMP_KEY_NAME]);
/* Read the file again if it changed since, or in any case (now). When it is broken the old keys stay and the log says
 * why. */
void http_keys_refresh(http_keys *k, bool now);
bool http_keys_watched(const http_keys *k); /* there is a file to look after */

#endif
