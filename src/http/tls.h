/* http/tls.h - the server's certificate and key, and what libmicrohttpd needs to know of them. */
#ifndef IMP_HTTP_TLS_H
#define IMP_HTTP_TLS_H

#include <microhttpd.h>

#include "base/base.h"

typedef struct http_tls http_tls;

enum { HTTP_TLS_OPTIONS = 3 };

/* cert: PEM, the server's own certificate first, then those that vouch for it; key: PEM, not encrypted. UNSUPPORTED: this
 * build has no TLS; INVALID, NOT_FOUND, IO, NOMEM; err says which file and what to do. */
IMP_MUST_USE imp_status http_tls_new(const char *cert, const char *key, http_tls **out, imp_error *err);
void http_tls_free(http_tls *t);       /* after the daemon; NULL is allowed */
void http_tls_warn(const http_tls *t); /* when others may read the key, or the certificate has expired */
/* Read the files again if they changed, or in any case (now). New connections get the new certificate; when the files are
 * broken the old one stays and the log says why. Any thread. */
void http_tls_refresh(http_tls *t, bool now);
/* For MHD_OPTION_ARRAY: TLS 1.2 and later, certificates from here. The flag MHD_USE_TLS is the caller's. */
void http_tls_options(http_tls *t, struct MHD_OptionItem out[HTTP_TLS_OPTIONS]);
/* A connection has come, nothing was read from it yet. */
void http_tls_connected(http_tls *t, struct MHD_Connection *conn);

#endif
