/* http/keys.c - the API keys that are accepted, and whose they are.
 *
 * Place:   guard.c asks for each request, the watcher (server.c) looks once a second whether the file changed.
 * Idea:    only keyed hashes of the keys are kept. A given key is hashed and compared with every one of them in full, so
 *          the time says neither which key was nearly right nor how far.
 * Layout:  a line is `KEY [NAME] [priority=N] [cache=GROUP]`; empty lines and lines that begin with '#' are skipped.
 *          NAME is what logs say and what the scheduler takes turns by: two keys of one name are one client, so a key can
 *          be replaced without a gap. Without a name the key is a client by itself. Beginnings of prompts are shared
 *          within a GROUP; without one, within a name.
 * Always:  a file is taken whole or not at all; no log holds a key.
 * Threads: all functions from any thread. */
#include "http/keys.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/thread.h"

enum { MIN_KEY = 8, MAX_KEY = 512, MAX_FILE = 1 << 20, MAX_KEYS = 4096, MAX_PRIORITY = 1000 };

typedef struct entry {
    uint64_t digest[2];
    imp_api_who who;
    char name[IMP_KEY_NAME];
    uint32_t line;
} entry;

typedef struct table {
    entry *e; /* [n] owned */
    size_t n;
} table;

struct http_keys {
    char *file; /* NULL: none */
    uint8_t secret[16];
    bool any;
    imp_mutex *mu; /* guards all below */
    table t;
    imp_sys_stamp taken, seen; /* of the version in use or refused; of the last look */
};

/* ---- one line ------------------------------------------------------------------------------------------- */

static void digest_of(const http_keys *k, const char *p, size_t n, uint64_t out[2])
{
    imp_siphash(k->secret, p, n, out);
}

/* The number of a name: the same in every run, never 0. The top bit is for what has none (engine: such beginnings are
 * not kept on disk). */
static uint64_t number_of(const char *name, size_t n)
{
    return (imp_hash(name, n, 0x6e616d65) & UINT64_MAX >> 1) | 1;
}

static bool name_ok(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char c = p[i];
        bool ok = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  (c && strchr("._-@", c));
        if (!ok) return false;
    }
    return n > 0 && n < IMP_KEY_NAME;
}

static imp_status check_key(const char *p, size_t n, imp_error *err)
{
    bool ok = n >= MIN_KEY && n <= MAX_KEY;
    for (size_t i = 0; i < n; i++) ok = ok && p[i] > ' ' && p[i] <= '~';
    if (ok) return IMP_OK;
    return imp_fail_field(err, IMP_INVALID, "api_key",
                          "an API key must have %d to %d printable characters without blanks", MIN_KEY,
                          MAX_KEY);
}

static imp_status priority_of(const char *p, size_t n, int32_t *out, imp_error *err)
{
    char text[16], *end = text;
    long v = MAX_PRIORITY + 1;
    if (n > 0 && n < sizeof text) {
        memcpy(text, p, n);
        text[n] = '\0';
        v = strtol(text, &end, 10);
    }
    if (end == text || *end || v < -MAX_PRIORITY || v > MAX_PRIORITY)
        return imp_fail(err, IMP_INVALID, "priority=%.*s is no number from %d to %d", (int)IMP_MIN(n, 20u), p,
                        -MAX_PRIORITY, MAX_PRIORITY);
    *out = (int32_t)v;
    return IMP_OK;
}

static imp_status one_word(entry *e, const char *p, size_t n, uint64_t *group, imp_error *err)
{
    static const char prio[] = "priority=", cache[] = "cache=";
    enum { N_PRIO = sizeof prio - 1, N_CACHE = sizeof cache - 1 };
    if (n > N_PRIO && memcmp(p, prio, N_PRIO) == 0)
        return priority_of(p + N_PRIO, n - N_PRIO, &e->who.priority, err);
    bool is_cache = n > N_CACHE && memcmp(p, cache, N_CACHE) == 0;
    const char *name = is_cache ? p + N_CACHE : p;
    size_t n_name = is_cache ? n - N_CACHE : n;
    if (!name_ok(name, n_name) || (!is_cache && e->name[0]))
        return imp_fail(err, IMP_INVALID,
                        "'%.*s' is not understood; after the key come a name of letters, digits and ._-@, "
                        "priority=N and cache=GROUP",
                        (int)IMP_MIN(n, 40u), p);
    if (is_cache) {
        *group = number_of(name, n_name);
    } else {
        memcpy(e->name, name, n_name);
        e->name[n_name] = '\0';
    }
    return IMP_OK;
}

static size_t blanks(const char *p, const char *end)
{
    size_t n = 0;
    while (p + n < end && (p[n] == ' ' || p[n] == '\t' || p[n] == '\r')) n++;
    return n;
}

static size_t word(const char *p, const char *end)
{
    size_t n = 0;
    while (p + n < end && p[n] != ' ' && p[n] != '\t' && p[n] != '\r') n++;
    return n;
}

/* p[0..] is a key and what follows it. */
static imp_status one_key(const http_keys *k, const char *p, const char *end, uint32_t line, entry *e,
                          imp_error *err)
{
    size_t n = word(p, end);
    uint64_t group = 0;
    *e = (entry){.line = line, .who = {.limited = true}};
    IMP_TRY(check_key(p, n, err));
    digest_of(k, p, n, e->digest);
    for (p += n, p += blanks(p, end); p < end; p += n, p += blanks(p, end)) {
        n = word(p, end);
        IMP_TRY(one_word(e, p, n, &group, err));
    }
    bool named = e->name[0] != '\0';
    e->who.client = named ? number_of(e->name, strlen(e->name)) : e->digest[0] | 1ull << 63;
    e->who.cache_scope = group ? group : e->who.client;
    if (!named) (void)snprintf(e->name, sizeof e->name, "line %u", line);
    return IMP_OK;
}

/* ---- the table -------------------------------------------------------------------------------------------- */

static imp_status add(table *t, const entry *e, imp_error *err)
{
    if (t->n == MAX_KEYS) return imp_fail(err, IMP_TOO_LARGE, "there are more than %d keys", MAX_KEYS);
    for (size_t i = 0; i < t->n; i++)
        if (memcmp(t->e[i].digest, e->digest, sizeof e->digest) == 0)
            return imp_fail(err, IMP_INVALID, "the key is the one of line %u once more", t->e[i].line);
    if ((t->n & (t->n - 1)) == 0) { /* a power of two: it is full */
        entry *more = imp_sys_realloc(t->e, IMP_MAX(2 * t->n, (size_t)1) * sizeof *more);
        if (!more) return imp_fail(err, IMP_NOMEM, "out of memory");
        t->e = more;
    }
    t->e[t->n++] = *e;
    return IMP_OK;
}

static imp_status parse(const http_keys *k, const char *p, size_t n, table *t, imp_error *err)
{
    const char *end = p + n;
    for (uint32_t line = 1; p < end; line++) {
        const char *nl = memchr(p, '\n', (size_t)(end - p)), *stop = nl ? nl : end;
        const char *at = p + blanks(p, stop);
        p = nl ? nl + 1 : end;
        if (at == stop || *at == '#') continue;
        entry e;
        imp_error why;
        imp_status st = one_key(k, at, stop, line, &e, &why);
        if (st == IMP_OK) st = add(t, &e, &why);
        if (st != IMP_OK)
            return imp_fail_field(err, st, "api_key", "the key file '%.160s', line %u: %.250s", k->file, line,
                                  why.text);
    }
    if (t->n > 0) return IMP_OK;
    return imp_fail_field(
        err, IMP_INVALID, "api_key",
        "the key file '%.200s' holds no key; put one of %d to %d characters in it, one a line", k->file,
        MIN_KEY, MAX_KEY);
}

static imp_status read_file(const http_keys *k, table *t, imp_error *err)
{
    imp_sys_file f;
    *t = (table){0};
    IMP_TRY(imp_sys_file_open(k->file, false, &f, err));
    imp_status st;
    if (f.n > MAX_FILE)
        st = imp_fail_field(err, IMP_TOO_LARGE, "api_key", "the key file '%.200s' has more than %d bytes",
                            k->file, MAX_FILE);
    else
        st = parse(k, f.data ? (const char *)f.data : "", (size_t)f.n, t, err);
    imp_sys_file_close(&f);
    if (st == IMP_OK) return IMP_OK;
    imp_sys_free(t->e);
    *t = (table){0};
    return st;
}

static imp_status load(http_keys *k, const char *key, imp_error *err)
{
    if (key) {
        entry e;
        IMP_TRY(check_key(key, strlen(key), err));
        IMP_TRY(one_key(k, key, key + strlen(key), 0, &e, err));
        (void)snprintf(e.name, sizeof e.name, "key");
        return add(&k->t, &e, err);
    }
    if (!k->file) return IMP_OK;
    k->taken = k->seen = imp_sys_file_stamp(k->file);
    return read_file(k, &k->t, err);
}

imp_status http_keys_new(const char *key, const char *file, http_keys **out, imp_error *err)
{
    *out = NULL;
    http_keys *k = imp_sys_calloc(1, sizeof *k);
    imp_status st = k ? imp_mutex_new(&k->mu) : IMP_NOMEM;
    if (st == IMP_OK && file && !(k->file = imp_sys_strdup(file))) st = IMP_NOMEM;
    if (st != IMP_OK)
        (void)imp_fail(err, st, "out of memory");
    else if ((st = imp_sys_random(k->secret, sizeof k->secret)) != IMP_OK)
        (void)imp_fail(err, st, "the system gives no random numbers");
    else
        st = load(k, key && key[0] ? key : NULL, err);
    if (st != IMP_OK) {
        http_keys_free(k);
        return st;
    }
    k->any = k->t.n > 0; /* for good: a file without keys is refused */
    *out = k;
    return IMP_OK;
}

void http_keys_free(http_keys *k)
{
    if (!k) return;
    imp_sys_free(k->t.e);
    imp_sys_free(k->file);
    if (k->mu) imp_mutex_free(k->mu);
    imp_sys_free(k);
}

void http_keys_warn(const http_keys *k)
{
    if (k->file && imp_sys_file_stamp(k->file).others)
        imp_log(IMP_LOG_WARN, "the key file %s may be read by others than its owner: chmod 600 it", k->file);
}

bool http_keys_any(const http_keys *k)
{
    return k->any;
}

bool http_keys_watched(const http_keys *k)
{
    return k->file != NULL;
}

bool http_keys_find(http_keys *k, const char *given, imp_api_who *who, char name[IMP_KEY_NAME])
{
    uint64_t d[2];
    if (!given) return false;
    digest_of(k, given, strlen(given), d);
    imp_mutex_lock(k->mu);
    size_t at = k->t.n;
    for (size_t i = 0; i < k->t.n; i++) { /* to the end, whatever was found */
        uint64_t diff = (k->t.e[i].digest[0] ^ d[0]) | (k->t.e[i].digest[1] ^ d[1]);
        at = diff == 0 ? i : at;
    }
    bool found = at < k->t.n;
    if (found) {
        *who = k->t.e[at].who;
        memcpy(name, k->t.e[at].name, IMP_KEY_NAME);
    }
    imp_mutex_unlock(k->mu);
    return found;
}

void http_keys_refresh(http_keys *k, bool now)
{
    if (!k->file) return;
    imp_sys_stamp s = imp_sys_file_stamp(k->file);
    imp_mutex_lock(k->mu);
    /* A file that is just being written is looked at again: it must have been the same for two looks. */
    bool changed = !imp_sys_same_stamp(&s, &k->taken), still = imp_sys_same_stamp(&s, &k->seen);
    k->seen = s;
    bool take = now || (changed && still);
    if (take) k->taken = s;
    imp_mutex_unlock(k->mu);
    if (!take) return;
    table t;
    imp_error err;
    if (read_file(k, &t, &err) != IMP_OK) {
        imp_log(IMP_LOG_ERROR, "the API keys stay as they were: %s", err.text);
        return;
    }
    http_keys_warn(k);
    imp_mutex_lock(k->mu);
    table old = k->t;
    k->t = t;
    imp_mutex_unlock(k->mu);
    imp_log(IMP_LOG_INFO, "%zu API keys are accepted from now on", t.n);
    imp_sys_free(old.e);
}
