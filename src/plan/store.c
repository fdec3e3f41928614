/* plan/store.c - the sqlite file of calibrations, corrections and explanations. */
#include "plan/store.h"

#include <math.h>
#include <sqlite3.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <time.h>

#include "kern/kern.h"
#include "plan/nvidia.h"

struct imp_store {
    sqlite3 *db;
    bool rebuilt;
};

static const char SCHEMA[] =
    "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=2000;"
    "PRAGMA cache_size=-128;" /* KiB: checking the file reads all of it once, rows are read one at a time */
    "CREATE TABLE IF NOT EXISTS calibration(unit TEXT PRIMARY KEY, fingerprint TEXT, at INTEGER, size "
    "INTEGER, data BLOB);"
    "CREATE TABLE IF NOT EXISTS learned(unit TEXT PRIMARY KEY, fingerprint TEXT, at INTEGER, size INTEGER, "
    "data BLOB);"
    "CREATE TABLE IF NOT EXISTS mix(key TEXT PRIMARY KEY, fingerprint TEXT, at INTEGER, size INTEGER, data "
    "BLOB);"
    "CREATE TABLE IF NOT EXISTS explanation(seq INTEGER PRIMARY KEY AUTOINCREMENT, id INTEGER, json TEXT);"
    "CREATE INDEX IF NOT EXISTS explanation_id ON explanation(id);";

static imp_status sql_fail(imp_store *s, imp_error *err, const char *what)
{
    return imp_fail(err, IMP_IO, "%s: %s", what, s->db != NULL ? sqlite3_errmsg(s->db) : "out of memory");
}

static void make_folders(const char *path)
{
    char part[1024];
    for (size_t i = 1; path[i] != '\0' && i < sizeof part; i++) {
        if (path[i] != '/') continue;
        memcpy(part, path, i);
        part[i] = '\0';
        (void)mkdir(part, 0700);
    }
}

/* true: open, whole, and with our tables. */
static bool open_whole(imp_store *s, const char *path)
{
    sqlite3_stmt *q = NULL;
    bool ok =
        sqlite3_open_v2(path, &s->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX,
                        NULL) == SQLITE_OK &&
        sqlite3_exec(s->db, SCHEMA, NULL, NULL, NULL) == SQLITE_OK &&
        sqlite3_prepare_v2(s->db, "PRAGMA quick_check(1)", -1, &q, NULL) == SQLITE_OK &&
        sqlite3_step(q) == SQLITE_ROW && strcmp((const char *)sqlite3_column_text(q, 0), "ok") == 0;
    sqlite3_finalize(q);
    return ok;
}

static bool damaged(const imp_store *s)
{
    int code = s->db != NULL ? sqlite3_errcode(s->db) : SQLITE_NOMEM;
    return code == SQLITE_NOTADB || code == SQLITE_CORRUPT || code == SQLITE_ROW || code == SQLITE_OK ||
           code == SQLITE_DONE || code == SQLITE_ERROR;
}

imp_status imp_store_open(const char *path, imp_store **out, imp_error *err)
{
    *out = NULL;
    imp_store *s = imp_sys_calloc(1, sizeof *s);
    if (s == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    make_folders(path);
    if (!open_whole(s, path) &&
        damaged(s)) { /* set it aside: nothing that can be measured again is worth a refusal */
        char aside[1100];
        (void)snprintf(aside, sizeof aside, "%s.damaged", path);
        sqlite3_close(s->db);
        s->db = NULL;
        (void)rename(path, aside);
        imp_log(IMP_LOG_WARN, "the calibration database %s was damaged: it is kept as %s and built anew",
                path, aside);
        s->rebuilt = true;
        if (!open_whole(s, path)) goto fail;
    } else if (sqlite3_errcode(s->db) != SQLITE_ROW && sqlite3_errcode(s->db) != SQLITE_OK &&
               sqlite3_errcode(s->db) != SQLITE_DONE) {
        goto fail;
    }
    *out = s;
    return IMP_OK;
fail:
    (void)imp_fail(err, IMP_IO, "the database %.300s cannot be opened: %s", path,
                   s->db != NULL ? sqlite3_errmsg(s->db) : "out of memory");
    imp_store_close(s);
    return IMP_IO;
}

void imp_store_close(imp_store *s)
{
    if (s == NULL) return;
    sqlite3_close(s->db);
    imp_sys_free(s);
}

bool imp_store_was_rebuilt(const imp_store *s)
{
    return s->rebuilt;
}

void imp_store_fingerprint_of(const imp_store_machine *m, char out[128])
{
    (void)snprintf(out, 128, "%.12s|%.36s %08x|%016llx|%.20s|%.24s", m->arch, m->release,
                   (unsigned)imp_hash(m->build, strlen(m->build), 0), (unsigned long long)m->hardware,
                   m->device, m->driver);
}

void imp_store_fingerprint(const char *device, char out[128])
{
    struct utsname u = {0};
    (void)uname(&u);
    uint64_t total, available, isa = imp_cpu_features();
    imp_sys_memory(&total, &available);
    char driver[80] = "";
    imp_nvml *nvml;
    if (strncmp(device, "cuda", 4) == 0 && imp_nvml_open(NULL, &nvml, NULL) == IMP_OK) {
        imp_nvidia_gpu g;
        (void)imp_nvml_gpus(nvml, &g, 1, driver);
        imp_nvml_close(nvml);
    }
    imp_store_machine m = {
        .arch = u.machine, .release = u.release, .build = u.version, .device = device, .driver = driver};
    total >>= 26; /* a system reserves a little more or less from start to start */
    m.hardware = imp_hash(&total, sizeof total, imp_hash(&isa, sizeof isa, imp_sys_n_core()));
    imp_store_fingerprint_of(&m, out);
}

/* The part between bars number n; its length. */
static size_t part_of(const char *s, int n, const char **at)
{
    for (; n > 0 && *s != '\0'; s++) n -= *s == '|';
    *at = s;
    return strcspn(s, "|");
}

const char *imp_store_changed(imp_store *s, const char *unit, const char *fingerprint)
{
    static const char *const what[] = {
        "the kind of processor has changed", "the operating system has changed",
        "cores, memory or instruction sets have changed", "the device has changed", "the driver has changed"};
    const char *why = NULL;
    sqlite3_stmt *q = NULL;
    bool there = sqlite3_prepare_v2(s->db, "SELECT fingerprint FROM calibration WHERE unit=?", -1, &q,
                                    NULL) == SQLITE_OK &&
                 sqlite3_bind_text(q, 1, unit, -1, SQLITE_TRANSIENT) == SQLITE_OK &&
                 sqlite3_step(q) == SQLITE_ROW && sqlite3_column_text(q, 0) != NULL;
    const char *old = there ? (const char *)sqlite3_column_text(q, 0) : fingerprint;
    for (int i = 0; i < (int)IMP_COUNT(what) && why == NULL; i++) {
        const char *a, *b;
        size_t n = part_of(old, i, &a), k = part_of(fingerprint, i, &b);
        if (n != k || memcmp(a, b, n) != 0) why = what[i];
    }
    sqlite3_finalize(q);
    return why;
}

/* ---- blobs by unit -------------------------------------------------------------------------------- */

static imp_status put_blob(imp_store *s, const char *sql, const char *unit, const char *fingerprint,
                           const void *data, size_t n, imp_error *err)
{
    sqlite3_stmt *q = NULL;
    bool ok = sqlite3_prepare_v2(s->db, sql, -1, &q, NULL) == SQLITE_OK &&
              sqlite3_bind_text(q, 1, unit, -1, SQLITE_TRANSIENT) == SQLITE_OK &&
              sqlite3_bind_text(q, 2, fingerprint, -1, SQLITE_TRANSIENT) == SQLITE_OK &&
              sqlite3_bind_int64(q, 3, (sqlite3_int64)time(NULL)) == SQLITE_OK &&
              sqlite3_bind_int64(q, 4, (sqlite3_int64)n) == SQLITE_OK &&
              sqlite3_bind_blob64(q, 5, data, n, SQLITE_TRANSIENT) == SQLITE_OK &&
              sqlite3_step(q) == SQLITE_DONE;
    imp_status st = ok ? IMP_OK : sql_fail(s, err, "the database could not be written");
    sqlite3_finalize(q);
    return st;
}

/* NOT_FOUND unless unit, fingerprint and size agree. */
static imp_status get_blob(imp_store *s, const char *sql, const char *unit, const char *fingerprint,
                           void *data, size_t n, int64_t *at, imp_error *err)
{
    sqlite3_stmt *q = NULL;
    bool ok = sqlite3_prepare_v2(s->db, sql, -1, &q, NULL) == SQLITE_OK &&
              sqlite3_bind_text(q, 1, unit, -1, SQLITE_TRANSIENT) == SQLITE_OK &&
              sqlite3_step(q) == SQLITE_ROW && sqlite3_column_text(q, 0) != NULL &&
              strcmp((const char *)sqlite3_column_text(q, 0), fingerprint) == 0 &&
              (size_t)sqlite3_column_bytes(q, 2) == n && sqlite3_column_blob(q, 2) != NULL;
    if (ok) {
        memcpy(data, sqlite3_column_blob(q, 2), n);
        if (at != NULL) *at = sqlite3_column_int64(q, 1);
    }
    sqlite3_finalize(q);
    return ok ? IMP_OK
              : imp_fail(err, IMP_NOT_FOUND, "%s has not been measured on this machine as it is now", unit);
}

/* The numbers alone: sources are text of the program and cannot be stored as pointers. */
typedef struct stored_machine {
    char name[64];
    int32_t kind;
    double v[IMP_N_FIELD], lo[IMP_N_FIELD], hi[IMP_N_FIELD];
    int32_t mark[IMP_N_FIELD];
} stored_machine;

imp_status imp_store_put_calibration(imp_store *s, const char *unit, const imp_calibration *c, imp_error *err)
{
    stored_machine m = {.kind = (int32_t)c->machine.kind};
    memcpy(m.name, c->machine.name, sizeof m.name);
    for (int i = 0; i < IMP_N_FIELD; i++) {
        const imp_value *f = &c->machine.f[i];
        m.v[i] = f->v, m.lo[i] = f->lo, m.hi[i] = f->hi, m.mark[i] = (int32_t)f->mark;
    }
    return put_blob(s, "INSERT OR REPLACE INTO calibration VALUES(?,?,?,?,?)", unit, c->fingerprint, &m,
                    sizeof m, err);
}

imp_status imp_store_get_calibration(imp_store *s, const char *unit, const char *fingerprint,
                                     imp_calibration *out, imp_error *err)
{
    stored_machine m;
    *out = (imp_calibration){0};
    IMP_TRY(get_blob(s, "SELECT fingerprint, at, data FROM calibration WHERE unit=?", unit, fingerprint, &m,
                     sizeof m, &out->at, err));
    imp_machine_default(m.kind >= 0 && m.kind <= IMP_UNIT_NPU ? (imp_unit_kind)m.kind : IMP_UNIT_CPU, unit,
                        &out->machine);
    for (int i = 0; i < IMP_N_FIELD; i++) {
        if (m.mark[i] != IMP_MARK_MEASURED || !(m.v[i] >= 0) || m.v[i] > 1e9) continue;
        out->machine.f[i] =
            (imp_value){m.v[i], m.lo[i], m.hi[i], IMP_MARK_MEASURED, "measured on this machine"};
    }
    (void)snprintf(out->fingerprint, sizeof out->fingerprint, "%s", fingerprint);
    return IMP_OK;
}

typedef struct stored_learned {
    uint32_t n_key, n_observed;
    struct {
        uint32_t key, n;
        double theta, var;
    } key[IMP_LEARN_KEYS];
    imp_cells cells;
} stored_learned;

imp_status imp_store_put_learned(imp_store *s, const char *unit, const char *fingerprint, const imp_learn *l,
                                 imp_error *err)
{
    stored_learned d = {.n_key = l->n_key, .n_observed = (uint32_t)l->n_observed};
    for (uint32_t i = 0; i < l->n_key; i++) {
        d.key[i].key = l->key[i].key;
        d.key[i].n = l->key[i].n;
        d.key[i].theta = l->key[i].theta;
        d.key[i].var = l->p[i][i];
    }
    d.cells = l->cells;
    return put_blob(s, "INSERT OR REPLACE INTO learned VALUES(?,?,?,?,?)", unit, fingerprint, &d, sizeof d,
                    err);
}

imp_status imp_store_get_learned(imp_store *s, const char *unit, const char *fingerprint, imp_learn *l,
                                 imp_error *err)
{
    stored_learned d;
    int64_t at;
    IMP_TRY(get_blob(s, "SELECT fingerprint, at, data FROM learned WHERE unit=?", unit, fingerprint, &d,
                     sizeof d, &at, err));
    if (d.n_key < 3 || d.n_key > IMP_LEARN_KEYS)
        return imp_fail(err, IMP_NOT_FOUND, "what was learned about %s is damaged", unit);
    for (int i = 0; i < IMP_LEARN_PHASES; i++)
        if (!(d.cells.noise[i] > 0 && d.cells.noise[i] < 10) || !(fabs(d.cells.pace[i]) < 6))
            return imp_fail(err, IMP_NOT_FOUND, "what was learned about %s is damaged", unit);
    for (uint32_t i = 0; i < d.n_key; i++)
        if (!(d.key[i].theta > -6 && d.key[i].theta < 6) || !(d.key[i].var > 0 && d.key[i].var < 10))
            return imp_fail(err, IMP_NOT_FOUND, "what was learned about %s is damaged", unit);
    for (uint32_t i = 0; i < IMP_CELLS; i++)
        if (!(fabs(d.cells.at[i].y) < 20) || d.cells.at[i].n_stretch > IMP_CELL_STRETCHES)
            return imp_fail(err, IMP_NOT_FOUND, "what was learned about %s is damaged", unit);
    l->n_key = d.n_key;
    l->n_observed = d.n_observed;
    l->at = d.n_observed > 0 ? at : 0;
    l->cells = d.cells;
    imp_cells_settle(&l->cells);
    memset(l->p, 0, sizeof l->p);
    for (uint32_t i = 0; i < d.n_key; i++) {
        l->key[i] = (imp_learn_key){.key = d.key[i].key, .n = d.key[i].n, .theta = d.key[i].theta};
        /* Another day, another load: a little less sure than when it was written. */
        l->p[i][i] = d.key[i].var + 1e-3;
    }
    imp_learn_reindex(l);
    return IMP_OK;
}

imp_status imp_store_put_mix(imp_store *s, const char *key, const void *data, size_t n, imp_error *err)
{
    return put_blob(s, "INSERT OR REPLACE INTO mix VALUES(?,?,?,?,?)", key, "", data, n, err);
}

imp_status imp_store_get_mix(imp_store *s, const char *key, void *data, size_t n, imp_error *err)
{
    return get_blob(s, "SELECT fingerprint, at, data FROM mix WHERE key=?", key, "", data, n, NULL, err);
}

/* ---- explanations --------------------------------------------------------------------------------- */

imp_status imp_store_put_explanation(imp_store *s, uint64_t id, const char *json, imp_error *err)
{
    sqlite3_stmt *q = NULL;
    bool ok =
        sqlite3_prepare_v2(s->db, "INSERT INTO explanation(id, json) VALUES(?,?)", -1, &q, NULL) ==
            SQLITE_OK &&
        sqlite3_bind_int64(q, 1, (sqlite3_int64)id) == SQLITE_OK &&
        sqlite3_bind_text(q, 2, json, -1, SQLITE_TRANSIENT) == SQLITE_OK && sqlite3_step(q) == SQLITE_DONE &&
        sqlite3_exec(s->db, "DELETE FROM explanation WHERE seq <= (SELECT max(seq) FROM explanation) - 1000",
                     NULL, NULL, NULL) == SQLITE_OK;
    imp_status st = ok ? IMP_OK : sql_fail(s, err, "the database could not be written");
    sqlite3_finalize(q);
    return st;
}

imp_status imp_store_get_explanation(imp_store *s, uint64_t id, char **json, imp_error *err)
{
    sqlite3_stmt *q = NULL;
    *json = NULL;
    const char *sql = id == 0 ? "SELECT json FROM explanation ORDER BY seq DESC LIMIT 1"
                              : "SELECT json FROM explanation WHERE id=? ORDER BY seq DESC LIMIT 1";
    bool ok = sqlite3_prepare_v2(s->db, sql, -1, &q, NULL) == SQLITE_OK &&
              (id == 0 || sqlite3_bind_int64(q, 1, (sqlite3_int64)id) == SQLITE_OK) &&
              sqlite3_step(q) == SQLITE_ROW && sqlite3_column_text(q, 0) != NULL;
    if (ok) *json = imp_sys_strdup((const char *)sqlite3_column_text(q, 0));
    sqlite3_finalize(q);
    if (*json != NULL) return IMP_OK;
    return imp_fail(err, IMP_NOT_FOUND,
                    id == 0 ? "no request has been remembered yet"
                            : "that request is not remembered; the last 1000 are");
}
