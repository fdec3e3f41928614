/* dev/coreml/objc.c - the Objective-C runtime from plain C; see objc.h. */
#include "dev/coreml/objc.h"

#include <dlfcn.h>
#include <stdio.h>

struct ml_block_desc {
    unsigned long reserved, size;
};

static void *library(const char *path, imp_error *err)
{
    void *lib = imp_sys_should_fail() ? NULL : dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (lib == NULL)
        (void)imp_fail(err, IMP_NOT_FOUND, "%s cannot be opened; Core ML is a part of macOS", path);
    return lib;
}

imp_status ml_objc_open(const char *path, ml_objc *out, imp_error *err)
{
    static const char *const SYSTEM[] = {"/usr/lib/libobjc.A.dylib",
                                         "/System/Library/Frameworks/Foundation.framework/Foundation",
                                         "/System/Library/Frameworks/CoreML.framework/CoreML"};
    void *lib[3];
    *out = (ml_objc){0};
    for (size_t i = 0; i < 3; i++)
        if ((lib[i] = library(path[0] != '\0' ? path : SYSTEM[i], err)) == NULL) return IMP_NOT_FOUND;
    out->core_ml = lib[2];
    const struct {
        const char *name;
        void *to;
    } want[] = {{"objc_msgSend", &out->send},
                {"objc_getClass", &out->get_class},
                {"sel_registerName", &out->selector},
                {"objc_autoreleasePoolPush", &out->pool_push},
                {"objc_autoreleasePoolPop", &out->pool_pop},
                {"_NSConcreteStackBlock", &out->stack_block}};
    for (size_t i = 0; i < IMP_COUNT(want); i++) {
        void *p = dlsym(lib[0], want[i].name); /* libobjc brings libSystem, where blocks live */
        if (p == NULL) p = dlsym(RTLD_DEFAULT, want[i].name);
        if (p == NULL)
            return imp_fail(err, IMP_UNSUPPORTED, "this system's Objective-C runtime has no %s",
                            want[i].name);
        memcpy(want[i].to, &p, sizeof p);
    }
    return IMP_OK;
}

bool ml_responds(const ml_objc *o, ml_id self, const char *selector)
{
    return self != NULL &&
           ML_SEND(o, bool, (ml_id, ml_sel, ml_sel), self, "respondsToSelector:", o->selector(selector));
}

bool ml_is_kind(const ml_objc *o, ml_id self, const char *class_name)
{
    ml_id c = o->get_class(class_name);
    return self != NULL && c != NULL && ML_SEND(o, bool, (ml_id, ml_sel, ml_id), self, "isKindOfClass:", c);
}

ml_id ml_retain(const ml_objc *o, ml_id x)
{
    return ML_GET(o, ml_id, x, "retain");
}

void ml_release(const ml_objc *o, ml_id x)
{
    if (x != NULL) ML_GET(o, void, x, "release");
}

ml_id ml_new(const ml_objc *o, const char *class_name)
{
    ml_id c = o->get_class(class_name);
    return c == NULL ? NULL : ML_GET(o, ml_id, ML_GET(o, ml_id, c, "alloc"), "init");
}

ml_id ml_string(const ml_objc *o, const char *utf8)
{
    return ML_SEND(o, ml_id, (ml_id, ml_sel, const char *), o->get_class("NSString"),
                   "stringWithUTF8String:", utf8);
}

void ml_utf8(const ml_objc *o, ml_id string, char *out, size_t cap)
{
    const char *s = string == NULL ? NULL : ML_GET(o, const char *, string, "UTF8String");
    (void)snprintf(out, cap, "%s", s == NULL ? "" : s);
}

ml_id ml_url(const ml_objc *o, const char *path)
{
    return ML_SEND(o, ml_id, (ml_id, ml_sel, ml_id), o->get_class("NSURL"),
                   "fileURLWithPath:", ml_string(o, path));
}

ml_id ml_array(const ml_objc *o, const ml_id *x, uint64_t n)
{
    return ML_SEND(o, ml_id, (ml_id, ml_sel, const ml_id *, unsigned long), o->get_class("NSArray"),
                   "arrayWithObjects:count:", x, (unsigned long)n);
}

ml_id ml_numbers(const ml_objc *o, const int64_t *x, uint32_t n)
{
    ml_id v[8];
    for (uint32_t i = 0; i < n; i++)
        v[i] = ML_SEND(o, ml_id, (ml_id, ml_sel, long long), o->get_class("NSNumber"),
                       "numberWithLongLong:", (long long)x[i]);
    return ml_array(o, v, n);
}

uint64_t ml_count(const ml_objc *o, ml_id array)
{
    return array == NULL ? 0 : ML_GET(o, unsigned long, array, "count");
}

ml_id ml_at(const ml_objc *o, ml_id array, uint64_t i)
{
    return ML_SEND(o, ml_id, (ml_id, ml_sel, unsigned long), array, "objectAtIndex:", (unsigned long)i);
}

ml_id ml_for_key(const ml_objc *o, ml_id dictionary, const char *key)
{
    if (dictionary == NULL) return NULL;
    return ML_SEND(o, ml_id, (ml_id, ml_sel, ml_id), dictionary, "objectForKey:", ml_string(o, key));
}

imp_status ml_ns_error(const ml_objc *o, imp_error *err, const char *what, ml_id ns_error)
{
    char text[256] = "no reason was given";
    if (ns_error != NULL) ml_utf8(o, ML_GET(o, ml_id, ns_error, "localizedDescription"), text, sizeof text);
    for (char *p = text; *p != '\0'; p++)
        if ((unsigned char)*p < 0x20) *p = ' ';
    text[strlen(text) - imp_utf8_incomplete_tail(text, strlen(text))] = '\0';
    return imp_fail(err, IMP_DEVICE, "%s: %s", what, text);
}

ml_block ml_block_of(const ml_objc *o, void (*invoke)(void), void *ctx)
{
    static const struct ml_block_desc desc = {0, sizeof(ml_block)};
    return (ml_block){.isa = o->stack_block, .invoke = invoke, .desc = &desc, .ctx = ctx};
}
