/* plan/apple.c - sysctl and the IO registry; see apple.h. Not run here: written against Apple's documented interfaces and
 * compiled without their headers (-DIMP_CHECK_APPLE does that on any system, for its syntax).
 *
 * Idea:    IOKit and CoreFoundation are opened when asked for, with declarations of our own: nothing is linked. The GPU is
 *          the service that matches AGXAccelerator, its property gpu-core-count a number; the neural engine is there when
 *          a service matches H11ANEIn or H1xANELoadBalancer. */
#include "plan/apple.h"

#if defined(__APPLE__) || defined(IMP_CHECK_APPLE)
#include <dlfcn.h>
#include <stdio.h>

int sysctlbyname(const char *name, void *old, size_t *n_old, void *new_value, size_t n_new);

typedef const void *cf_ref;
typedef uint32_t io_object; /* a Mach port name; 0: none */
enum { CF_UTF8 = 0x08000100, CF_SINT64 = 4 };

typedef struct api {
    void *(*matching)(const char *name);
    io_object (*service)(io_object port, void *matching); /* takes matching */
    cf_ref (*property)(io_object entry, cf_ref key, cf_ref allocator, uint32_t options);
    int (*release)(io_object o);
    cf_ref (*string)(cf_ref allocator, const char *s, uint32_t encoding);
    unsigned char (*number)(cf_ref number, long type, void *out);
    unsigned long (*type_of)(cf_ref o);
    unsigned long (*number_type)(void);
    void (*let_go)(cf_ref o);
} api;

static bool symbol(void *lib, const char *name, void *at)
{
    void *p = dlsym(lib, name);
    memcpy(at, &p, sizeof p);
    return p != NULL;
}

static bool load(api *a)
{
    void *io = dlopen("/System/Library/Frameworks/IOKit.framework/IOKit", RTLD_LAZY);
    void *cf = dlopen("/System/Library/Frameworks/CoreFoundation.framework/CoreFoundation", RTLD_LAZY);
    return io != NULL && cf != NULL && symbol(io, "IOServiceMatching", &a->matching) &&
           symbol(io, "IOServiceGetMatchingService", &a->service) &&
           symbol(io, "IORegistryEntryCreateCFProperty", &a->property) &&
           symbol(io, "IOObjectRelease", &a->release) &&
           symbol(cf, "CFStringCreateWithCString", &a->string) &&
           symbol(cf, "CFNumberGetValue", &a->number) && symbol(cf, "CFGetTypeID", &a->type_of) &&
           symbol(cf, "CFNumberGetTypeID", &a->number_type) && symbol(cf, "CFRelease", &a->let_go);
}

static io_object find(const api *a, const char *class)
{
    void *m = a->matching(class);
    return m == NULL ? 0 : a->service(0, m);
}

static uint32_t gpu_cores(const api *a)
{
    int64_t n = 0;
    io_object gpu = find(a, "AGXAccelerator");
    if (gpu == 0) return 0;
    cf_ref key = a->string(NULL, "gpu-core-count", CF_UTF8);
    cf_ref v = key != NULL ? a->property(gpu, key, NULL, 0) : NULL;
    if (v != NULL && (a->type_of(v) != a->number_type() || !a->number(v, CF_SINT64, &n))) n = 0;
    if (v != NULL) a->let_go(v);
    if (key != NULL) a->let_go(key);
    (void)a->release(gpu);
    return n > 0 && n < 4096 ? (uint32_t)n : 0;
}

static bool has_ane(const api *a)
{
    static const char *const class[] = {"H11ANEIn", "H1xANELoadBalancer"};
    for (size_t i = 0; i < IMP_COUNT(class); i++) {
        io_object o = find(a, class[i]);
        if (o == 0) continue;
        (void)a->release(o);
        return true;
    }
    return false;
}

bool imp_apple_read(imp_apple *out)
{
    *out = (imp_apple){0};
    size_t n = sizeof out->chip - 1;
    if (sysctlbyname("machdep.cpu.brand_string", out->chip, &n, NULL, 0) != 0 ||
        strncmp(out->chip, "Apple", 5) != 0)
        return false;
    n = sizeof out->os - 1;
    if (sysctlbyname("kern.osproductversion", out->os, &n, NULL, 0) != 0) out->os[0] = '\0';
    n = sizeof out->mem_total;
    if (sysctlbyname("hw.memsize", &out->mem_total, &n, NULL, 0) != 0) out->mem_total = 0;
    api a = {0};
    if (load(&a)) {
        out->n_gpu_core = gpu_cores(&a);
        out->ane = has_ane(&a);
    }
    return true;
}
#else
bool imp_apple_read(imp_apple *out)
{
    *out = (imp_apple){0};
    return false;
}
#endif
