/* plan/meter_apple.c - energy of Apple chips; see meter_apple.h. Not run here.
 *
 * Idea:    IOReport is an undocumented library of macOS that any user may ask; Apple's own powermetrics reads it. Its group
 *          "Energy Model" has hundreds of channels, most of them parts of others, so only the totals of a unit are taken,
 *          and of several ways to name the total only the first there is: what is left out is lost, what is counted twice
 *          is a lie. Its functions are declared by us and looked up one by one. Should a system lack one, or name a total
 *          or a unit of energy otherwise, there is no meter and a sentence says why.
 * Layout:  channels -> subscription -> samples (counters since boot) -> delta of two samples; samples and delta are lists
 *          of channels, each with name, unit label and one integer.
 * Always:  a delta counts only when both its samples have every channel that was there when the meter was opened.
 * Memory:  ours: what Create and Copy return. The list of subscribed channels, an out-parameter whose owner nobody tells,
 *          is never released: some bytes lost a meter, no use after free.
 * Source:  no documentation of Apple's; names, arguments and units as published tools use them (macmon, socpowerbud). */
#include "plan/meter_apple.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>

#include "dev/coreml/objc.h"

typedef const void *cf_ref;
enum { CF_UTF8 = 0x08000100 };

/* X(name here, symbol, result, arguments) */
#define IOREPORT_API(X)                                                                                      \
    X(group, IOReportCopyChannelsInGroup, cf_ref, (cf_ref, cf_ref, uint64_t, uint64_t, uint64_t))            \
    X(subscribe, IOReportCreateSubscription, cf_ref, (void *, cf_ref, cf_ref *, uint64_t, cf_ref))           \
    X(sample, IOReportCreateSamples, cf_ref, (cf_ref, cf_ref, cf_ref))                                       \
    X(delta, IOReportCreateSamplesDelta, cf_ref, (cf_ref, cf_ref, cf_ref))                                   \
    X(each, IOReportIterate, void, (cf_ref, ml_block *))                                                     \
    X(name, IOReportChannelGetChannelName, cf_ref, (cf_ref))                                                 \
    X(label, IOReportChannelGetUnitLabel, cf_ref, (cf_ref))                                                  \
    X(value, IOReportSimpleGetIntegerValue, int64_t, (cf_ref, void *))
#define CF_API(X)                                                                                            \
    X(string, CFStringCreateWithCString, cf_ref, (cf_ref, const char *, uint32_t))                           \
    X(utf8, CFStringGetCString, unsigned char, (cf_ref, char *, long, uint32_t))                             \
    X(let_go, CFRelease, void, (cf_ref))

struct imp_ioreport {
    void *lib, *cf;
    imp_unit_kind kind;
    cf_ref channels, subscription, last; /* owned */
    cf_ref subscribed;
    int rank;           /* of the channels that are read */
    uint32_t n_channel; /* as many as there were at first */
    double joules;
    ml_objc objc; /* its stack_block alone */
#define IMP_X(name, symbol, result, args) result(*name) args;
    IOREPORT_API(IMP_X) CF_API(IMP_X)
#undef IMP_X
};

/* Totals of a unit; '#' is a number. All of the first rank there is are added up. Ultras count each die. */
static const struct total {
    imp_unit_kind kind;
    int rank;
    const char *name;
} TOTAL[] = {{IMP_UNIT_CPU, 0, "CPU Energy"}, {IMP_UNIT_CPU, 1, "DIE_#_CPU Energy"},
             {IMP_UNIT_CPU, 2, "ECPU"}, /* the clusters; ECPU0, PCPU1, ... are their cores */
             {IMP_UNIT_CPU, 2, "PCPU"},       {IMP_UNIT_GPU, 0, "GPU Energy"},
             {IMP_UNIT_GPU, 1, "GPU"}, /* the same in coarser units */
             {IMP_UNIT_NPU, 0, "ANE"},        {IMP_UNIT_NPU, 1, "ANE#"},
             {IMP_UNIT_NPU, 2, "ANE#_#"}};
enum { CPU_CLUSTERS = 2 };

static bool is_named(const char *name, const char *pattern)
{
    for (; *pattern != '\0'; pattern++) {
        if (*pattern != '#') {
            if (*name++ != *pattern) return false;
            continue;
        }
        size_t n = strspn(name, "0123456789");
        if (n == 0) return false;
        name += n;
    }
    return *name == '\0';
}

/* What the channels of one rank say together. */
typedef struct tally {
    const imp_ioreport *r;
    int rank; /* INT_MAX: no channel of this unit */
    uint32_t n;
    double joules;
    bool negative;              /* a counter began anew, or the channel holds no plain number */
    char odd_name[64], odd[32]; /* a channel whose unit is not known, "": none */
} tally;

static void text(const imp_ioreport *r, cf_ref s, char *out, long cap)
{
    if (s == NULL || !r->utf8(s, out, cap, CF_UTF8)) out[0] = '\0';
    for (size_t n = strlen(out); n > 0 && out[n - 1] == ' '; n--) out[n - 1] = '\0'; /* labels are padded */
}

static double joules_in(const char *unit)
{
    static const struct {
        const char *label;
        double joules;
    } UNIT[] = {{"mJ", 1e-3}, {"uJ", 1e-6}, {"nJ", 1e-9}};
    for (size_t i = 0; i < IMP_COUNT(UNIT); i++)
        if (strcmp(unit, UNIT[i].label) == 0) return UNIT[i].joules;
    return 0;
}

/* A block's function: 0 goes on to the next channel. */
static int on_channel(ml_block *b, cf_ref channel)
{
    tally *t = b->ctx;
    const imp_ioreport *r = t->r;
    char name[64], unit[32];
    int rank = INT_MAX;
    text(r, r->name(channel), name, sizeof name);
    for (size_t i = 0; i < IMP_COUNT(TOTAL) && rank == INT_MAX; i++)
        if (TOTAL[i].kind == r->kind && is_named(name, TOTAL[i].name)) rank = TOTAL[i].rank;
    if (rank == INT_MAX || rank > t->rank) return 0;
    if (rank < t->rank) *t = (tally){.r = r, .rank = rank};
    text(r, r->label(channel), unit, sizeof unit);
    int64_t v = r->value(channel, NULL);
    t->n++;
    t->negative = t->negative || v < 0;
    t->joules += (double)v * joules_in(unit);
    if (joules_in(unit) == 0) {
        memcpy(t->odd_name, name, sizeof name);
        (void)snprintf(t->odd, sizeof t->odd, "%s", unit[0] != '\0' ? unit : "no unit");
    }
    return 0;
}

static tally count(const imp_ioreport *r, cf_ref samples)
{
    tally t = {.r = r, .rank = INT_MAX};
    ml_block b = ml_block_of(&r->objc, (void (*)(void))on_channel, &t);
    r->each(samples, &b);
    return t;
}

static bool is_whole(const imp_ioreport *r, const tally *t)
{
    return t->rank == r->rank && t->n == r->n_channel && !t->negative && t->odd[0] == '\0';
}

static void drop(imp_ioreport *r, cf_ref *o)
{
    if (*o != NULL) r->let_go(*o);
    *o = NULL;
}

void imp_ioreport_close(imp_ioreport *r)
{
    if (r == NULL) return;
    drop(r, &r->last);
    drop(r, &r->subscription);
    drop(r, &r->channels);
    if (r->cf != NULL) (void)dlclose(r->cf);
    if (r->lib != NULL) (void)dlclose(r->lib);
    imp_sys_free(r);
}

static bool find(void *lib, const char *name, void *at)
{
    void *p = dlsym(lib, name);
    if (p == NULL) p = dlsym(RTLD_DEFAULT, name); /* blocks are libSystem's */
    memcpy(at, &p, sizeof p);
    return p != NULL;
}

static imp_status load(imp_ioreport *r, const char *library, imp_error *err)
{
    static const char IOREPORT[] = "/usr/lib/libIOReport.dylib",
                      CF[] = "/System/Library/Frameworks/CoreFoundation.framework/CoreFoundation";
    r->lib = dlopen(library[0] != '\0' ? library : IOREPORT, RTLD_NOW | RTLD_LOCAL);
    r->cf = dlopen(library[0] != '\0' ? library : CF, RTLD_NOW | RTLD_LOCAL);
    if (r->lib == NULL || r->cf == NULL)
        return imp_fail(err, IMP_NOT_FOUND,
                        "%.50s, where macOS tells the energy of Apple's chips, cannot be opened",
                        library[0] != '\0' ? library : IOREPORT);
    const char *missing =
        find(r->lib, "_NSConcreteStackBlock", &r->objc.stack_block) ? NULL : "_NSConcreteStackBlock";
#define IMP_X(name, symbol, result, args)                                                                    \
    if (missing == NULL && !find(r->lib, #symbol, &r->name)) missing = #symbol;
    IOREPORT_API(IMP_X)
#undef IMP_X
#define IMP_X(name, symbol, result, args)                                                                    \
    if (missing == NULL && !find(r->cf, #symbol, &r->name)) missing = #symbol;
    CF_API(IMP_X)
#undef IMP_X
    if (missing == NULL) return IMP_OK;
    return imp_fail(err, IMP_UNSUPPORTED, "this system's IOReport has no %s, so its energy cannot be read",
                    missing);
}

/* The first sample, and which channels it has. */
static imp_status begin(imp_ioreport *r, imp_error *err)
{
    cf_ref energy = r->string(NULL, "Energy Model", CF_UTF8);
    if (energy != NULL) r->channels = r->group(energy, NULL, 0, 0, 0);
    drop(r, &energy);
    if (r->channels != NULL) r->subscription = r->subscribe(NULL, r->channels, &r->subscribed, 0, NULL);
    if (r->subscription != NULL) r->last = r->sample(r->subscription, r->subscribed, NULL);
    if (r->last == NULL) return imp_fail(err, IMP_DEVICE, "IOReport gives no samples of its energy model");
    tally t = count(r, r->last);
    r->rank = t.rank;
    r->n_channel = t.n;
    if (t.rank == INT_MAX || (r->kind == IMP_UNIT_CPU && t.rank == CPU_CLUSTERS && t.n < 2))
        return imp_fail(err, IMP_NOT_FOUND, "IOReport names no energy channel of the whole unit");
    if (t.odd[0] != '\0')
        return imp_fail(err, IMP_UNSUPPORTED, "IOReport counts \"%.40s\" in \"%.20s\", not in mJ, uJ or nJ",
                        t.odd_name, t.odd);
    return is_whole(r, &t)
               ? IMP_OK
               : imp_fail(err, IMP_UNSUPPORTED, "IOReport's energy channels hold no plain number");
}

imp_status imp_ioreport_open(const char *library, imp_unit_kind kind, imp_ioreport **out, imp_error *err)
{
    *out = NULL;
    imp_ioreport *r = imp_sys_calloc(1, sizeof *r);
    if (r == NULL) return imp_fail(err, IMP_NOMEM, "out of memory");
    r->kind = kind;
    imp_status s = load(r, library, err);
    if (s == IMP_OK) s = begin(r, err);
    if (s != IMP_OK)
        imp_ioreport_close(r);
    else
        *out = r;
    return s;
}

/* A sample that lacks a channel is no base for the next delta; the next whole one is, and only what follows it counts. */
bool imp_ioreport_joules(imp_ioreport *r, double *out)
{
    *out = r->joules;
    cf_ref now = r->sample(r->subscription, r->subscribed, NULL), used = NULL;
    tally t = {.negative = true};
    if (now != NULL) t = count(r, now);
    if (!is_whole(r, &t)) drop(r, &now);
    if (now != NULL && r->last != NULL) used = r->delta(r->last, now, NULL);
    drop(r, &r->last);
    r->last = now;
    if (used == NULL) return false;
    t = count(r, used);
    drop(r, &used);
    if (!is_whole(r, &t)) return false;
    r->joules += t.joules;
    *out = r->joules;
    return true;
}
