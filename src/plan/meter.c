/* plan/meter.c - reading RAPL and NVML, and IOReport by meter_apple.c; see meter.h.
 *
 * Layout:  powercap: intel-rapl:N/{name, energy_uj, max_energy_range_uj}, one a package (AMD's too); the counter is in
 *          microjoules and starts again at 0 behind its range.
 * Source:  Documentation/power/powercap of Linux. */
#include "plan/meter.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "plan/meter_apple.h"
#include "plan/nvidia.h"

enum { MAX_ZONE = 16 };
static const double READ_EVERY_S = 0.02, FORGET_AFTER_S = 60, BUSY_SHARE = 0.5;

typedef struct zone {
    int fd; /* energy_uj, open for good: reading it costs microseconds */
    uint64_t last, range;
} zone;

struct imp_meter {
    zone zone[MAX_ZONE];
    uint32_t n_zone;
    double joules; /* of the zones since opened */
    imp_nvml *nvml;
    uint32_t gpu;
    double first_j;
    imp_ioreport *apple;
};

static bool read_number(int fd, uint64_t *out)
{
    char text[32];
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    if (n <= 0) return false;
    text[n] = '\0';
    char *end;
    *out = strtoull(text, &end, 10);
    return end != text;
}

static bool read_file(const char *folder, const char *file, char *out, size_t cap)
{
    char path[512];
    (void)snprintf(path, sizeof path, "%s/%s", folder, file);
    FILE *f = fopen(path, "re");
    if (f == NULL) return false;
    bool ok = fgets(out, (int)cap, f) != NULL;
    fclose(f);
    return ok;
}

/* 0, or an errno that says why the zone cannot be read. */
static int open_zone(const char *folder, zone *z)
{
    char path[512], text[32];
    (void)snprintf(path, sizeof path, "%s/energy_uj", folder);
    z->range = read_file(folder, "max_energy_range_uj", text, sizeof text) ? strtoull(text, NULL, 10) : 0;
    z->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (z->fd < 0) return errno;
    if (read_number(z->fd, &z->last)) return 0;
    (void)close(z->fd);
    return EIO;
}

void imp_meter_close(imp_meter *m)
{
    if (m == NULL) return;
    for (uint32_t i = 0; i < m->n_zone; i++) (void)close(m->zone[i].fd);
    imp_nvml_close(m->nvml);
    imp_ioreport_close(m->apple);
    imp_sys_free(m);
}

imp_status imp_meter_open_rapl(const char *root, imp_meter **out, imp_error *err)
{
    if (root == NULL) root = "/sys/class/powercap";
    *out = NULL;
    DIR *d = opendir(root);
    if (d == NULL)
        return imp_fail(err, IMP_NOT_FOUND, "this system shows no RAPL counters (%.100s is not there)", root);
    imp_meter *m = imp_sys_calloc(1, sizeof *m);
    int denied = 0;
    for (struct dirent *e; m != NULL && m->n_zone < MAX_ZONE && (e = readdir(d)) != NULL;) {
        char folder[400], name[64];
        if (strncmp(e->d_name, "intel-rapl:", 11) != 0 || strchr(e->d_name + 11, ':') != NULL) continue;
        (void)snprintf(folder, sizeof folder, "%.100s/%.255s", root, e->d_name);
        if (!read_file(folder, "name", name, sizeof name) || strncmp(name, "package", 7) != 0) continue;
        int why = open_zone(folder, &m->zone[m->n_zone]);
        if (why == 0)
            m->n_zone++;
        else
            denied = why;
    }
    (void)closedir(d);
    if (m != NULL && m->n_zone > 0 && denied == 0) {
        *out = m;
        return IMP_OK;
    }
    imp_status s = m == NULL ? imp_fail(err, IMP_NOMEM, "out of memory") : IMP_OK;
    if (s == IMP_OK && denied == EACCES)
        s = imp_fail(
            err, IMP_IO,
            "RAPL may be read by root only here; 'chmod a+r %.100s/intel-rapl:*/energy_uj' allows it", root);
    if (s == IMP_OK && denied != 0) s = imp_fail(err, IMP_IO, "RAPL cannot be read: %s", strerror(denied));
    if (s == IMP_OK) s = imp_fail(err, IMP_NOT_FOUND, "this CPU has no RAPL package counters");
    imp_meter_close(m); /* a part of the packages is no measurement */
    return s;
}

imp_status imp_meter_open_nvml(const char *library, uint32_t gpu, imp_meter **out, imp_error *err)
{
    *out = NULL;
    imp_meter *m = imp_sys_calloc(1, sizeof *m);
    if (m == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    m->gpu = gpu;
    imp_status s = imp_nvml_open(library, &m->nvml, err);
    if (s == IMP_OK && !imp_nvml_joules(m->nvml, gpu, &m->first_j))
        s = imp_fail(err, IMP_NOT_FOUND, "GPU %u does not count its energy", gpu);
    if (s != IMP_OK)
        imp_meter_close(m);
    else
        *out = m;
    return s;
}

imp_status imp_meter_open_ioreport(const char *library, imp_unit_kind kind, imp_meter **out, imp_error *err)
{
    *out = NULL;
    imp_meter *m = imp_sys_calloc(1, sizeof *m);
    if (m == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    imp_status s = imp_ioreport_open(library != NULL ? library : "", kind, &m->apple, err);
    if (s != IMP_OK)
        imp_meter_close(m);
    else
        *out = m;
    return s;
}

#ifdef __APPLE__
enum { ON_MAC = 1 };
#else
enum { ON_MAC = 0 };
#endif
static const char *g_rapl_root;

void imp_meter_set_rapl_root(const char *root)
{
    g_rapl_root = root;
}

imp_status imp_meter_open(imp_unit_kind kind, const char *driver, imp_meter **out, imp_error *err)
{
    *out = NULL;
    if (strcmp(driver, "cuda") == 0) return imp_meter_open_nvml(NULL, 0, out, err);
    if (strcmp(driver, "coreml") == 0 || strcmp(driver, "mlx") == 0 || (ON_MAC && kind == IMP_UNIT_CPU))
        return imp_meter_open_ioreport(NULL, kind, out, err);
    if (kind == IMP_UNIT_CPU) return imp_meter_open_rapl(g_rapl_root, out, err);
    return imp_fail(err, IMP_NOT_FOUND, "no energy meter of this unit is read");
}

const char *imp_meter_name(const imp_meter *m)
{
    return m->apple != NULL ? "IOReport" : m->nvml != NULL ? "NVML" : "RAPL";
}

bool imp_meter_joules(imp_meter *m, double *out)
{
    if (m->apple != NULL) return imp_ioreport_joules(m->apple, out);
    *out = m->joules;
    if (m->nvml != NULL) {
        bool ok = imp_nvml_joules(m->nvml, m->gpu, out);
        *out -= m->first_j;
        return ok;
    }
    for (uint32_t i = 0; i < m->n_zone; i++) {
        zone *z = &m->zone[i];
        uint64_t now;
        if (!read_number(z->fd, &now)) return false;
        if (now < z->last && z->range < z->last) return false; /* neither counted on nor wrapped */
        uint64_t used = now >= z->last ? now - z->last : z->range - z->last + now;
        z->last = now;
        m->joules += (double)used * 1e-6;
    }
    *out = m->joules;
    return true;
}

double imp_power_step(imp_power *p, uint64_t now_ns, double s)
{
    double j, dt = (double)(now_ns - p->last_ns) * 1e-9;
    if (p->meter == NULL) return -1;
    p->busy_s += s;
    if (p->last_ns == 0 || dt >= READ_EVERY_S) {
        bool ok = imp_meter_joules(p->meter, &j);
        bool fair = p->last_ns != 0 && dt < FORGET_AFTER_S && p->busy_s > BUSY_SHARE * dt;
        if (ok && fair && j >= p->last_j) p->watt = (j - p->last_j) / dt;
        if (!ok) p->watt = 0;
        p->last_ns = now_ns;
        p->last_j = j;
        p->busy_s = 0;
    }
    return p->watt > 0 ? p->watt * s : -1;
}
