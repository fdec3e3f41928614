/* plan/profile.c - published profiles of compute units, and the names of their fields.
 *
 * Idea:    the numbers are data (profiles.inc), one line a unit; nothing here knows a chip. */
#include <math.h>
#include <stdio.h>

#include "plan/machine.h"

#define S(field, v, lo, hi, source)          [IMP_F_##field] = {v, lo, hi, IMP_MARK_SPEC, source},
#define L(field, v, lo, hi, source)          [IMP_F_##field] = {v, lo, hi, IMP_MARK_LITERATURE, source},
#define M(field, v, lo, hi, source)          [IMP_F_##field] = {v, lo, hi, IMP_MARK_MEASURED, source},
#define A(field, v, lo, hi, source)          [IMP_F_##field] = {v, lo, hi, IMP_MARK_ASSUMED, source},
#define UNIT(system, unit, kind, title, ...) {system, unit, title, IMP_UNIT_##kind, {__VA_ARGS__}},

static const imp_profile g_profile[] = {
#include "plan/profiles.inc"
};

static const struct {
    const char *key, *unit;
} g_field[IMP_N_FIELD] = {
#define IMP_X(name, key, unit, text) {key, unit},
    IMP_MACHINE_FIELDS(IMP_X)
#undef IMP_X
};

const char *imp_field_key(imp_field f)
{
    return g_field[f].key;
}
const char *imp_field_unit(imp_field f)
{
    return g_field[f].unit;
}

/* A hand-over goes through the host: out of the one, then into the other, block by block. Published numbers know one rate
 * for all of it, and the slower of the two holds. */
double imp_machine_transfer_s(const imp_machine *from, const imp_machine *to, double bytes, double n_block,
                              bool *measured)
{
    double out = from->f[IMP_F_HAND_OUT].v, in = to->f[IMP_F_HAND_IN].v;
    double link = IMP_MIN(from->f[IMP_F_LINK].v, to->f[IMP_F_LINK].v);
    *measured = out > 0 && in > 0;
    if (!*measured) return link > 0 ? bytes / (link * 1e9) : 1e9;
    double each = (from->f[IMP_F_HAND_US].v + to->f[IMP_F_HAND_US].v) * 1e-6;
    return bytes / (out * 1e9) + bytes / (in * 1e9) + n_block * each;
}

const char *imp_mark_name(imp_mark m)
{
    static const char *const name[] = {"none", "spec", "literature", "measured", "assumed"};
    return name[m];
}

const char *imp_unit_kind_name(imp_unit_kind k)
{
    static const char *const name[] = {"cpu", "gpu", "npu"};
    return name[k];
}

size_t imp_profile_count(void)
{
    return IMP_COUNT(g_profile);
}
const imp_profile *imp_profile_at(size_t i)
{
    return &g_profile[i];
}

size_t imp_profile_machines(const char *name, imp_machine *out, size_t cap)
{
    const char *slash = strchr(name, '/');
    size_t n_system = slash != NULL ? (size_t)(slash - name) : strlen(name), n = 0;
    for (size_t i = 0; i < IMP_COUNT(g_profile); i++) {
        const imp_profile *p = &g_profile[i];
        if (strncmp(p->system, name, n_system) != 0 || p->system[n_system] != '\0') continue;
        if (slash != NULL && strcmp(slash + 1, p->unit) != 0) continue;
        if (n < cap) {
            out[n] = (imp_machine){.kind = p->kind, .simulated = true};
            (void)snprintf(out[n].name, sizeof out[n].name, "%s/%s", p->system, p->unit);
            memcpy(out[n].f, p->f, sizeof p->f);
        }
        n++;
    }
    return n;
}

void imp_machine_default(imp_unit_kind kind, const char *name, imp_machine *out)
{
    static const char *const like[] = {"generic/cpu", "generic/gpu", "generic/npu"};
    (void)imp_profile_machines(like[kind], out, 1);
    out->simulated = false;
    (void)snprintf(out->name, sizeof out->name, "%s", name);
}

void imp_machine_divide(const imp_machine *member, uint32_t n, const char *name, imp_machine *out)
{
    static const imp_field rate[] = {IMP_F_BW, IMP_F_F32, IMP_F_F16, IMP_F_INT8};
    *out = *member;
    (void)snprintf(out->name, sizeof out->name, "%s", name);
    for (size_t k = 0; k < IMP_COUNT(rate); k++) {
        imp_value *v = &out->f[rate[k]];
        *v = (imp_value){0.9 * n * v->v, v->lo, n * v->hi,
                         v->mark != IMP_MARK_NONE ? IMP_MARK_ASSUMED : IMP_MARK_NONE,
                         "every layer divided between equal units"};
    }
}

/* Times add up: a rate is the harmonic mean of the parts' rates. What a step and its ops cost before they compute, the parts
 * pay in turn; shares and limits are those of the slowest reader, which most of the time goes to. */
void imp_machine_join(const imp_machine *part, uint32_t n_part, const char *name, imp_machine *out)
{
    static const imp_field rate[] = {IMP_F_BW, IMP_F_F32, IMP_F_F16, IMP_F_INT8};
    uint32_t slow = 0;
    for (uint32_t i = 1; i < n_part; i++)
        if (part[i].f[IMP_F_BW].v < part[slow].f[IMP_F_BW].v) slow = i;
    *out = part[slow];
    (void)snprintf(out->name, sizeof out->name, "%s", name);
    for (size_t k = 0; k < IMP_COUNT(rate); k++) {
        double lo = INFINITY, hi = 0, time = 0;
        for (uint32_t i = 0; i < n_part; i++) {
            const imp_value *v = &part[i].f[rate[k]];
            double r = v->v > 0 ? v->v : part[i].f[IMP_F_F32].v; /* not done natively: widened */
            lo = fmin(lo, v->v > 0 ? v->lo : r);
            hi = fmax(hi, v->v > 0 ? v->hi : r);
            time += 1 / (r * n_part);
        }
        out->f[rate[k]] = (imp_value){1 / time, lo, hi, IMP_MARK_ASSUMED, "half the layers on each part"};
    }
    imp_value *sync = &out->f[IMP_F_SYNC];
    for (uint32_t i = 0; i < n_part; i++) {
        if (i == slow) continue;
        sync->v += part[i].f[IMP_F_SYNC].v;
        sync->hi += part[i].f[IMP_F_SYNC].hi;
        if (part[i].kind == IMP_UNIT_GPU) out->kind = IMP_UNIT_GPU;
    }
    sync->mark = IMP_MARK_ASSUMED;
}
