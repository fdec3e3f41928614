/* A stand-in for macOS's libIOReport and the little of CoreFoundation that plan/meter_apple.c calls: channels are what the
 * test puts, a sample copies them, a delta subtracts two. Built once more with -DNO_DELTA, without one of the functions. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CAP = 32 };
typedef enum kind { STRING = 0x51, CHANNELS, SUBSCRIPTION, SAMPLES } kind;
typedef struct object object;
typedef struct channel {
    char name[64], unit[64];
    int64_t value;
    object *name_object, *unit_object; /* the channel's, as Get promises */
} channel;
struct object {
    kind kind;
    char text[64];
    channel channel[CAP];
    int n;
};
typedef struct block {
    void *isa;
    int flags, reserved;
    int (*invoke)(struct block *, const channel *);
    struct {
        unsigned long reserved, size;
    } * desc;
} block;

void *_NSConcreteStackBlock[32];

static channel g_channel[CAP];
static int g_n, g_live;

/* ---- for the test */
void fake_ioreport_clear(void)
{
    g_n = 0;
}
void fake_ioreport_put(const char *name, const char *unit, int64_t value)
{
    int i = 0;
    while (i < g_n && strcmp(g_channel[i].name, name) != 0) i++;
    if (i == g_n) g_n++;
    snprintf(g_channel[i].name, sizeof g_channel[i].name, "%s", name);
    snprintf(g_channel[i].unit, sizeof g_channel[i].unit, "%s", unit);
    g_channel[i].value = value;
}
void fake_ioreport_remove(const char *name)
{
    int i = 0;
    while (i < g_n && strcmp(g_channel[i].name, name) != 0) i++;
    if (i == g_n) return;
    g_n--;
    memmove(&g_channel[i], &g_channel[i + 1], sizeof *g_channel * (size_t)(g_n - i));
}
int fake_ioreport_live(void)
{
    return g_live;
}

static object *object_new(kind k, const char *text)
{
    object *o = calloc(1, sizeof *o);
    if (o == NULL) abort();
    o->kind = k;
    snprintf(o->text, sizeof o->text, "%.63s", text);
    g_live++;
    return o;
}
static const object *check(const object *o, kind k)
{
    if (o == NULL || o->kind != k) abort();
    return o;
}

/* ---- CoreFoundation */
const object *CFStringCreateWithCString(const void *allocator, const char *s, uint32_t encoding)
{
    return allocator == NULL && encoding == 0x08000100 ? object_new(STRING, s) : NULL;
}
unsigned char CFStringGetCString(const object *s, char *out, long cap, uint32_t encoding)
{
    check(s, STRING);
    if (encoding != 0x08000100 || (long)strlen(s->text) >= cap) return 0;
    strcpy(out, s->text);
    return 1;
}
void CFRelease(object *o)
{
    for (int i = 0; i < o->n; i++) {
        CFRelease(o->channel[i].name_object);
        CFRelease(o->channel[i].unit_object);
    }
    o->kind = 0;
    g_live--;
    free(o);
}

/* ---- IOReport */
object *IOReportCopyChannelsInGroup(const object *group, const void *sub, uint64_t a, uint64_t b, uint64_t c)
{
    if (a != 0 || b != 0 || c != 0 || sub != NULL) abort();
    return strcmp(check(group, STRING)->text, "Energy Model") == 0 && g_n > 0 ? object_new(CHANNELS, "")
                                                                              : NULL;
}
object *IOReportCreateSubscription(void *a, object *channels, object **subscribed, uint64_t id, const void *b)
{
    static object list = {.kind = CHANNELS};
    check(channels, CHANNELS);
    *subscribed = &list;
    return a == NULL && b == NULL && id == 0 ? object_new(SUBSCRIPTION, "") : NULL;
}
static void add(object *o, const channel *c, int64_t value)
{
    channel *to = &o->channel[o->n++];
    *to = *c;
    to->value = value;
    to->name_object = object_new(STRING, c->name);
    to->unit_object = object_new(STRING, c->unit);
}
object *IOReportCreateSamples(const object *subscription, const object *subscribed, const void *a)
{
    check(subscription, SUBSCRIPTION);
    check(subscribed, CHANNELS);
    if (a != NULL || g_n == 0) return NULL;
    object *o = object_new(SAMPLES, "");
    for (int i = 0; i < g_n; i++) add(o, &g_channel[i], g_channel[i].value);
    return o;
}
#ifndef NO_DELTA
/* A channel that the first sample lacks counts from 0: the worst that the real one might do. */
object *IOReportCreateSamplesDelta(const object *was, const object *now, const void *a)
{
    check(was, SAMPLES);
    check(now, SAMPLES);
    if (a != NULL) return NULL;
    object *o = object_new(SAMPLES, "");
    for (int i = 0; i < now->n; i++) {
        int64_t before = 0;
        for (int k = 0; k < was->n; k++)
            if (strcmp(was->channel[k].name, now->channel[i].name) == 0) before = was->channel[k].value;
        add(o, &now->channel[i], now->channel[i].value - before);
    }
    return o;
}
#endif
void IOReportIterate(const object *samples, block *b)
{
    check(samples, SAMPLES);
    if (b->isa != _NSConcreteStackBlock || b->desc->size < sizeof *b) abort();
    for (int i = 0; i < samples->n; i++)
        if (b->invoke(b, &samples->channel[i]) != 0) return;
}
const object *IOReportChannelGetChannelName(const channel *c)
{
    return c->name_object;
}
const object *IOReportChannelGetUnitLabel(const channel *c)
{
    return c->unit_object;
}
int64_t IOReportSimpleGetIntegerValue(const channel *c, void *index)
{
    return index == NULL ? c->value : -1;
}
