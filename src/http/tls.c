/* http/tls.c - the server's certificate and key, and what libmicrohttpd needs to know of them.
 *
 * Place:   server.c starts the daemon with its options, handler.c tells of new connections, the watcher of changed files.
 * Idea:    libmicrohttpd asks for the certificate at each handshake, so a renewed one is used without a restart. The files
 *          are read and matched here, because a daemon that does not start gives no reason.
 * Always:  certificate and key are taken together or not at all. What a handshake was given lives until the server ends
 *          (GnuTLS copies nothing; a renewal is a few kilobytes).
 * Threads: all functions from any thread; the callback on libmicrohttpd's. */
#include "http/tls.h"

#include <stdio.h>
#include <time.h>

#include "base/thread.h"

#ifdef IMP_GNUTLS
#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

enum { MAX_FILE = 1 << 20, MAX_CHAIN = 16 };

typedef struct credential {
    struct credential *next; /* an older one */
    gnutls_pcert_st chain[MAX_CHAIN];
    unsigned n_chain;
    gnutls_privkey_t key;
    time_t expires;
} credential;

struct http_tls {
    char *cert, *key; /* paths */
    imp_mutex *mu;    /* guards all below */
    credential *current;
    imp_sys_stamp taken[2], seen[2]; /* as in keys.c */
};

static void credential_free(credential *c)
{
    if (!c) return;
    for (unsigned i = 0; i < c->n_chain; i++) gnutls_pcert_deinit(&c->chain[i]);
    if (c->key) gnutls_privkey_deinit(c->key);
    imp_sys_free(c);
}

/* Does the key belong to the first certificate? */
static bool belong(const credential *c)
{
    uint8_t a[64], b[64];
    size_t n_a = sizeof a, n_b = sizeof b;
    gnutls_pubkey_t pub;
    if (gnutls_pubkey_init(&pub) < 0) return false;
    bool ok = gnutls_pubkey_import_privkey(pub, c->key, 0, 0) >= 0 &&
              gnutls_pubkey_get_key_id(pub, GNUTLS_KEYID_USE_SHA256, a, &n_a) >= 0 &&
              gnutls_pubkey_get_key_id(c->chain[0].pubkey, GNUTLS_KEYID_USE_SHA256, b, &n_b) >= 0 &&
              n_a == n_b && memcmp(a, b, n_a) == 0;
    gnutls_pubkey_deinit(pub);
    return ok;
}

static imp_status take_chain(const http_tls *t, const imp_sys_file *f, credential *c, imp_error *err)
{
    gnutls_datum_t d = {(unsigned char *)(uintptr_t)f->data, (unsigned)f->n};
    gnutls_x509_crt_t crt[MAX_CHAIN];
    unsigned n = MAX_CHAIN;
    int rc = f->n ? gnutls_x509_crt_list_import(crt, &n, &d, GNUTLS_X509_FMT_PEM, 0)
                  : GNUTLS_E_NO_CERTIFICATE_FOUND;
    if (rc == GNUTLS_E_SHORT_MEMORY_BUFFER)
        return imp_fail_field(err, IMP_INVALID, "tls_cert", "the file '%.200s' has more than %d certificates",
                              t->cert, MAX_CHAIN);
    if (rc <= 0)
        return imp_fail_field(
            err, IMP_INVALID, "tls_cert",
            "the file '%.200s' holds no certificate in PEM form (-----BEGIN CERTIFICATE-----): %s", t->cert,
            gnutls_strerror(rc));
    n = (unsigned)rc;
    c->expires = gnutls_x509_crt_get_expiration_time(crt[0]);
    rc = gnutls_pcert_import_x509_list(c->chain, crt, &n, GNUTLS_X509_CRT_LIST_SORT);
    if (rc >= 0) c->n_chain = n;
    for (unsigned i = 0; i < n; i++) gnutls_x509_crt_deinit(crt[i]);
    if (rc < 0)
        return imp_fail_field(err, IMP_INVALID, "tls_cert",
                              "the certificates in '%.200s' are not a chain: %s", t->cert,
                              gnutls_strerror(rc));
    return IMP_OK;
}

static imp_status take_key(const http_tls *t, const imp_sys_file *f, credential *c, imp_error *err)
{
    gnutls_datum_t d = {(unsigned char *)(uintptr_t)f->data, (unsigned)f->n};
    int rc = gnutls_privkey_init(&c->key);
    if (rc >= 0) rc = gnutls_privkey_import_x509_raw(c->key, &d, GNUTLS_X509_FMT_PEM, NULL, 0);
    if (rc < 0)
        return imp_fail_field(err, IMP_INVALID, "tls_key",
                              "the file '%.200s' holds no private key in PEM form without a password: %s",
                              t->key, gnutls_strerror(rc));
    if (!belong(c))
        return imp_fail_field(err, IMP_INVALID, "tls_key",
                              "the key in '%.150s' does not belong to the certificate in '%.150s'", t->key,
                              t->cert);
    return IMP_OK;
}

static imp_status read_pem(const char *path, imp_sys_file *f, imp_error *err)
{
    IMP_TRY(imp_sys_file_open(path, false, f, err));
    if (f->n <= MAX_FILE) return IMP_OK;
    imp_sys_file_close(f);
    return imp_fail(err, IMP_TOO_LARGE, "'%.200s' has more than %d bytes: it is no certificate and no key",
                    path, MAX_FILE);
}

static imp_status load(const http_tls *t, credential **out, imp_error *err)
{
    imp_sys_file cert, key;
    *out = NULL;
    IMP_TRY(read_pem(t->cert, &cert, err));
    imp_status st = read_pem(t->key, &key, err);
    if (st != IMP_OK) {
        imp_sys_file_close(&cert);
        return st;
    }
    credential *c = imp_sys_calloc(1, sizeof *c);
    st = c ? take_chain(t, &cert, c, err) : imp_fail(err, IMP_NOMEM, "out of memory");
    if (st == IMP_OK) st = take_key(t, &key, c, err);
    imp_sys_file_close(&cert);
    imp_sys_file_close(&key);
    if (st == IMP_OK)
        *out = c;
    else
        credential_free(c);
    return st;
}

imp_status http_tls_new(const char *cert, const char *key, http_tls **out, imp_error *err)
{
    *out = NULL;
    if (MHD_is_feature_supported(MHD_FEATURE_TLS) != MHD_YES ||
        MHD_is_feature_supported(MHD_FEATURE_HTTPS_CERT_CALLBACK) != MHD_YES)
        return imp_fail_field(
            err, IMP_UNSUPPORTED, "tls_cert",
            "this machine's libmicrohttpd was built without TLS: install one with it, or put a proxy "
            "in front");
    if (!cert || !key)
        return imp_fail_field(err, IMP_INVALID, "tls_cert",
                              "TLS needs both a certificate and its key: --tls-%s is "
                              "missing",
                              cert ? "key" : "cert");
    http_tls *t = imp_sys_calloc(1, sizeof *t);
    imp_status st = t ? imp_mutex_new(&t->mu) : IMP_NOMEM;
    if (st == IMP_OK && (!(t->cert = imp_sys_strdup(cert)) || !(t->key = imp_sys_strdup(key))))
        st = IMP_NOMEM;
    if (st != IMP_OK) {
        (void)imp_fail(err, st, "out of memory");
    } else {
        t->taken[0] = t->seen[0] = imp_sys_file_stamp(cert);
        t->taken[1] = t->seen[1] = imp_sys_file_stamp(key);
        st = load(t, &t->current, err);
    }
    if (st == IMP_OK)
        *out = t;
    else
        http_tls_free(t);
    return st;
}

void http_tls_free(http_tls *t)
{
    if (!t) return;
    for (credential *c = t->current, *next; c; c = next) {
        next = c->next;
        credential_free(c);
    }
    imp_sys_free(t->cert);
    imp_sys_free(t->key);
    if (t->mu) imp_mutex_free(t->mu);
    imp_sys_free(t);
}

void http_tls_warn(const http_tls *t)
{
    imp_mutex_lock(t->mu);
    time_t expires = t->current->expires;
    imp_mutex_unlock(t->mu);
    if (imp_sys_file_stamp(t->key).others)
        imp_log(IMP_LOG_WARN, "the private key %s may be read by others than its owner: chmod 600 it",
                t->key);
    if (expires != (time_t)-1 && expires < time(NULL))
        imp_log(IMP_LOG_WARN, "the certificate %s has expired: clients will refuse it", t->cert);
}

void http_tls_refresh(http_tls *t, bool now)
{
    imp_sys_stamp s[2] = {imp_sys_file_stamp(t->cert), imp_sys_file_stamp(t->key)};
    imp_mutex_lock(t->mu);
    bool changed = false, still = true;
    for (int i = 0; i < 2; i++) {
        changed |= !imp_sys_same_stamp(&s[i], &t->taken[i]);
        still &= imp_sys_same_stamp(&s[i], &t->seen[i]);
        t->seen[i] = s[i];
    }
    bool take = now || (changed && still);
    if (take) memcpy(t->taken, s, sizeof s);
    imp_mutex_unlock(t->mu);
    if (!take) return;
    credential *c;
    imp_error err;
    if (load(t, &c, &err) != IMP_OK) {
        imp_log(IMP_LOG_ERROR, "the certificate stays as it was: %s", err.text);
        return;
    }
    imp_mutex_lock(t->mu);
    c->next = t->current;
    t->current = c;
    imp_mutex_unlock(t->mu);
    http_tls_warn(t);
}

static int give_certificate(gnutls_session_t session, const gnutls_datum_t *ca, int n_ca,
                            const gnutls_pk_algorithm_t *algo, int n_algo, gnutls_pcert_st **chain,
                            unsigned *n_chain, gnutls_privkey_t *key)
{
    (void)ca, (void)n_ca, (void)algo, (void)n_algo;
    http_tls *t = gnutls_session_get_ptr(session);
    if (!t) return -1;
    imp_mutex_lock(t->mu);
    *chain = t->current->chain;
    *n_chain = t->current->n_chain;
    *key = t->current->key;
    imp_mutex_unlock(t->mu);
    return 0;
}

void http_tls_options(http_tls *t, struct MHD_OptionItem out[HTTP_TLS_OPTIONS])
{
    static char priorities[] = "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2";
    (void)t;
    union {
        gnutls_certificate_retrieve_function2 *fn;
        void *p;
    } cb = {.fn = give_certificate};
    out[0] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_PRIORITIES, 0, priorities};
    out[1] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_CERT_CALLBACK, 0, cb.p};
    out[2] = (struct MHD_OptionItem){MHD_OPTION_END, 0, NULL};
}

void http_tls_connected(http_tls *t, struct MHD_Connection *conn)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(conn, MHD_CONNECTION_INFO_GNUTLS_SESSION);
    if (info && info->tls_session) gnutls_session_set_ptr(info->tls_session, t);
}

#else /* built without GnuTLS: nothing but the refusal is ever called */

imp_status http_tls_new(const char *cert, const char *key, http_tls **out, imp_error *err)
{
    (void)cert, (void)key;
    *out = NULL;
    return imp_fail_field(
        err, IMP_UNSUPPORTED, "tls_cert",
        "this program was built without TLS: build it where GnuTLS is (Debian: libgnutls28-dev), or put "
        "a proxy in front");
}

void http_tls_free(http_tls *t)
{
    (void)t;
}

void http_tls_warn(const http_tls *t)
{
    (void)t;
}

void http_tls_refresh(http_tls *t, bool now)
{
    (void)t, (void)now;
}

void http_tls_options(http_tls *t, struct MHD_OptionItem out[HTTP_TLS_OPTIONS])
{
    (void)t;
    out[0] = (struct MHD_OptionItem){MHD_OPTION_END, 0, NULL};
}

void http_tls_connected(http_tls *t, struct MHD_Connection *conn)
{
    (void)t, (void)conn;
}

#endif
