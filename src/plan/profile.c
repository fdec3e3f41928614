/* plan/profile.c - published profiles of compute units, and the names of their fields.
 *
 * Idea:    the numbers are data (profiles.inc), one line a unit; nothing here knows a chip. */
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
