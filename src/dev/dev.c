/* dev/dev.c - open a device by its name: a kind and a number, or several of them that share a model.
 *
 * Layout:  "cuda1" is the second GPU, "cpu" the same as "cpu0"; "cuda0+cpu0" fills the first and gives the rest to the
 *          second, "cuda0:20+cpu0" gives the first 20 layers to the one; "cuda0/cuda1" divides every layer between
 *          the two, and such a pair may stand wherever one device may;
 *          "cuda0+cpu0:experts" leaves the experts of a mixture to the second. */
#include "dev/dev.h"
#include "dev/coreml/coreml.h"
#include "dev/cuda/open.h"
#include "dev/experts/experts.h"
#include "dev/split/split.h"
#include "dev/tensor/tensor.h"

#include <stdio.h>
#include <stdlib.h>

enum { MAX_NAME = 64 };

static imp_status open_one(const char *name, uint32_t n_thread, imp_device **out, imp_error *err)
{
    char kind[MAX_NAME];
    size_t n = strcspn(name, "0123456789");
    char *end;
    unsigned long number = strtoul(name + n, &end, 10);
    bool known = n < sizeof kind && *end == '\0' && strlen(name + n) <= 3;
    (void)snprintf(kind, sizeof kind, "%.*s", (int)IMP_MIN(n, sizeof kind - 1), name);
    if (known && strcmp(kind, "cuda") == 0) return imp_dev_cuda_open((uint32_t)number, out, err);
    if (known && number == 0) {
        if (strcmp(kind, "cpu") == 0) return imp_dev_cpu_open(n_thread, out, err);
        if (strcmp(kind, "ref") == 0) return imp_dev_ref_open(out, err);
        if (strcmp(kind, "coreml") == 0) return imp_dev_coreml_open(out, err);
    }
    return imp_fail(err, IMP_NOT_FOUND, "there is no device \"%.60s\"; the kinds are: cpu, ref, cuda, coreml",
                    name);
}

/* "cuda0/cuda1", or a single name. */
static imp_status open_divided(const char *name, uint32_t n_thread, imp_device **out, imp_error *err)
{
    imp_device *member[IMP_SHARD_MAX];
    uint32_t n_member = 0;
    imp_status s = IMP_OK;
    if (strchr(name, '/') == NULL) return open_one(name, n_thread, out, err);
    for (bool more = true; more && s == IMP_OK;) {
        char one[MAX_NAME];
        size_t n = strcspn(name, "/");
        if (n_member == IMP_SHARD_MAX) {
            s = imp_fail(err, IMP_INVALID, "a model is divided between at most %d devices", IMP_SHARD_MAX);
            break;
        }
        (void)snprintf(one, sizeof one, "%.*s", (int)IMP_MIN(n, sizeof one - 1), name);
        s = open_one(one, n_thread, &member[n_member], err);
        n_member += s == IMP_OK;
        more = name[n] == '/';
        name += n + more;
    }
    if (s == IMP_OK) return imp_dev_tensor_open(member, n_member, true, out, err);
    for (uint32_t i = 0; i < n_member; i++) member[i]->ops->close(member[i]);
    return s;
}

/* "cuda0:20": the device, and how many layers it takes (0: as many as fit). */
static imp_status open_part(const char *text, size_t n, uint32_t n_thread, imp_split_part *p, imp_error *err)
{
    char name[MAX_NAME];
    const char *colon = memchr(text, ':', n);
    *p = (imp_split_part){.owned = true};
    if (colon != NULL) {
        char *end;
        unsigned long layers = strtoul(colon + 1, &end, 10);
        if (end != text + n || layers == 0 || layers > 10000)
            return imp_fail(err, IMP_INVALID, "\"%.*s\": behind the colon stands a number of layers", (int)n,
                            text);
        p->n_layer = (uint32_t)layers;
        n = (size_t)(colon - text);
    }
    if (n >= sizeof name) return imp_fail(err, IMP_INVALID, "\"%.60s\" names no device", text);
    memcpy(name, text, n);
    name[n] = '\0';
    return open_divided(name, n_thread, &p->device, err);
}

static imp_status open_split(const char *spec, uint32_t n_thread, imp_device **out, imp_error *err)
{
    imp_split_part part[IMP_SPLIT_PARTS];
    uint32_t n_part = 0;
    imp_status s = IMP_OK;
    for (bool more = true; more && s == IMP_OK;) {
        size_t n = strcspn(spec, "+");
        if (n_part == IMP_SPLIT_PARTS) {
            s = imp_fail(err, IMP_INVALID, "a model is split over at most %d devices", IMP_SPLIT_PARTS);
            break;
        }
        s = open_part(spec, n, n_thread, &part[n_part], err);
        n_part += s == IMP_OK;
        more = spec[n] == '+';
        spec += n + more;
    }
    if (s == IMP_OK) return imp_dev_split_open(part, n_part, out, err);
    for (uint32_t i = 0; i < n_part; i++) part[i].device->ops->close(part[i].device);
    return s;
}

/* "cuda0+cpu0:experts" */
static bool is_experts(const char *spec)
{
    static const char tail[] = ":experts";
    size_t n = strlen(spec);
    return n > sizeof tail - 1 && strcmp(spec + n - (sizeof tail - 1), tail) == 0;
}

static imp_status open_experts(const char *spec, uint32_t n_thread, imp_device **out, imp_error *err)
{
    char name[2][MAX_NAME];
    imp_device *d[2];
    const char *plus = strchr(spec, '+');
    size_t n = (size_t)(plus - spec), rest = strlen(plus + 1) - strlen(":experts");
    if (strchr(plus + 1, '+') != NULL || n >= MAX_NAME || rest >= MAX_NAME)
        return imp_fail(err, IMP_INVALID,
                        "\"%.60s\": experts lie on the second of two devices, as in cuda0+cpu0:experts",
                        spec);
    (void)snprintf(name[0], MAX_NAME, "%.*s", (int)n, spec);
    (void)snprintf(name[1], MAX_NAME, "%.*s", (int)rest, plus + 1);
    IMP_TRY(open_one(name[0], n_thread, &d[0], err));
    imp_status s = open_one(name[1], n_thread, &d[1], err);
    if (s == IMP_OK) return imp_dev_experts_open(d[0], d[1], out, err);
    d[0]->ops->close(d[0]);
    return s;
}

imp_status imp_dev_open(const char *name, uint32_t n_thread, imp_device **out, imp_error *err)
{
    *out = NULL;
    if (is_experts(name) && strchr(name, '+') != NULL) return open_experts(name, n_thread, out, err);
    return strchr(name, '+') != NULL ? open_split(name, n_thread, out, err)
                                     : open_divided(name, n_thread, out, err);
}
