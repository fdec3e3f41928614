/* tests/fake/objc_coreml.c - an Objective-C runtime and the classes of Core ML that the worker uses, for tests on Linux.
 *
 * Idea:    a shared object with objc_msgSend and its kin. Reference counts and autorelease pools are kept, so that a missing
 *          or a second release shows; an unknown selector ends the process, as it would on a Mac. "Compiling" copies the
 *          package; predictions run it by our evaluator of ML Programs in half precision, inputs read and results laid out
 *          through strides. What it shows is that our C speaks to Core ML as documented; not what Core ML answers.
 * Control: the file named by FAKE_COREML holds words (see the calls of word()); FAKE_COREML + ".log" gets a line a call. */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dev/coreml/eval.h"
#include "tensor/tensor.h"

#define API __attribute__((visibility("default")))

/* ---- control ------------------------------------------------------------------------------------------------------ */

static const char *ctl_path(void)
{
    const char *p = getenv("FAKE_COREML");
    return p ? p : "/dev/null";
}

/* Whether the control file holds the word; *n: the number behind "word=". */
static bool word(const char *w, long *n)
{
    char text[2048] = " ";
    FILE *f = fopen(ctl_path(), "r");
    if (!f) return false;
    size_t k = fread(text + 1, 1, sizeof text - 3, f);
    fclose(f);
    text[k + 1] = ' ';
    text[k + 2] = 0;
    char key[64];
    snprintf(key, sizeof key, n ? " %s=" : " %s ", w);
    const char *at = strstr(text, key);
    if (at && n) *n = strtol(at + strlen(key), NULL, 10);
    return at != NULL;
}

__attribute__((format(printf, 1, 2))) static void note(const char *fmt, ...)
{
    char path[1200], line[400];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    snprintf(path, sizeof path, "%s.log", ctl_path());
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (fd < 0) return;
    if (write(fd, line, (size_t)n) != n) abort();
    close(fd);
}

static void nap(const char *what)
{
    long ms;
    if (word(what, &ms)) usleep((useconds_t)ms * 1000);
}

/* ---- objects ------------------------------------------------------------------------------------------------------- */

typedef struct obj {
    const char *isa; /* class name, interned; a class: "class" */
    atomic_int refs;
    const char *name; /* of a class */
    char *text;
    struct obj **item, **key; /* retained */
    size_t n;
    long long num;
    double dbl;
    struct obj *a, *b, *c; /* retained */
    void *mem;             /* borrowed, or own */
    void *own;
    size_t n_mem;
    imp_mlpackage *package;
    imp_ml_eval *eval;
    const imp_mil_func *func;
} obj;
typedef const char *sel;

static atomic_long n_live;

static void fatal(const char *what, const char *more)
{
    fprintf(stderr, "fake Objective-C: %s %s\n", what, more);
    abort();
}

static obj *make(const char *isa)
{
    obj *o = calloc(1, sizeof *o);
    if (!o) abort();
    o->isa = isa;
    atomic_init(&o->refs, 1);
    atomic_fetch_add(&n_live, 1);
    return o;
}

static obj *retain(obj *o)
{
    if (o && atomic_fetch_add(&o->refs, 1) < 1) fatal("retained after its end:", o->isa);
    return o;
}

static void release(obj *o)
{
    if (!o || !strcmp(o->isa, "class")) return;
    int left = atomic_fetch_sub(&o->refs, 1) - 1;
    if (left < 0) fatal("released once too often:", o->isa);
    if (left) return;
    for (size_t i = 0; i < o->n; i++) {
        if (o->item) release(o->item[i]);
        if (o->key) release(o->key[i]);
    }
    release(o->a), release(o->b), release(o->c);
    imp_ml_eval_free(o->eval);
    if (o->package) imp_mlpackage_close(o->package);
    free(o->item), free(o->key), free(o->text), free(o->own);
    free(o);
    atomic_fetch_sub(&n_live, 1);
}

enum { POOL = 1 << 16 };
static _Thread_local obj *pool[POOL];
static _Thread_local size_t n_pool, depth;

static obj *autorelease(obj *o)
{
    if (!o) return o;
    if (!depth) fatal("autoreleased without a pool:", o->isa);
    if (n_pool == POOL) fatal("a pool that is never emptied:", o->isa);
    pool[n_pool++] = o;
    return o;
}

API void *objc_autoreleasePoolPush(void);
API void *objc_autoreleasePoolPush(void)
{
    depth++;
    return (void *)(n_pool + 1);
}

API void objc_autoreleasePoolPop(void *p);
API void objc_autoreleasePoolPop(void *p)
{
    size_t to = (size_t)p - 1;
    if (!depth || to > n_pool) fatal("pools popped in the wrong order", "");
    depth--;
    while (n_pool > to) release(pool[--n_pool]);
}

API void *_NSConcreteStackBlock[32];
typedef struct block {
    void *isa;
    int flags, reserved;
    void (*invoke)(void);
    const struct {
        unsigned long reserved, size;
    } * desc;
} block;

/* ---- Foundation ------------------------------------------------------------------------------------------------------ */

static obj *text_obj(const char *isa, const char *s)
{
    obj *o = make(isa);
    o->text = strdup(s);
    return o;
}

static obj *string_with(obj *c, sel s, const char *utf8)
{
    (void)c, (void)s;
    return autorelease(text_obj("NSString", utf8));
}
static const char *utf8_string(obj *o, sel s)
{
    (void)s;
    return o->text;
}
static obj *url_with(obj *c, sel s, obj *path)
{
    (void)c, (void)s;
    return autorelease(text_obj("NSURL", path->text));
}
static obj *url_path(obj *o, sel s)
{
    (void)s;
    return autorelease(text_obj("NSString", o->text));
}

static obj **copy_items(obj *const *item, size_t n)
{
    obj **p = calloc(n + 1, sizeof(obj *));
    for (size_t i = 0; i < n; i++) {
        if (!item[i]) fatal("nil in a collection", "");
        p[i] = retain(item[i]);
    }
    return p;
}
static obj *array_with(obj *c, sel s, obj *const *item, unsigned long n)
{
    (void)c, (void)s;
    obj *o = make("NSArray");
    o->item = copy_items(item, n);
    o->n = n;
    return autorelease(o);
}
static long count(obj *o, sel s)
{
    (void)s;
    return (long)o->n;
}
static obj *object_at(obj *o, sel s, unsigned long i)
{
    (void)s;
    if (i >= o->n) fatal("index beyond bounds of", o->isa);
    return o->item[i];
}
static obj *number_with(obj *c, sel s, long long x)
{
    (void)c, (void)s;
    obj *o = make("NSNumber");
    o->num = x;
    return autorelease(o);
}
static long long long_long_value(obj *o, sel s)
{
    (void)s;
    return o->num;
}
static obj *dictionary_with(obj *c, sel s, obj *const *value, obj *const *key, unsigned long n)
{
    (void)c, (void)s;
    obj *o = make("NSDictionary");
    o->item = copy_items(value, n);
    o->key = copy_items(key, n);
    o->n = n;
    return autorelease(o);
}
static obj *object_for_key(obj *o, sel s, obj *key)
{
    (void)s;
    for (size_t i = 0; i < o->n; i++)
        if (!strcmp(o->key[i]->text, key->text)) return o->item[i];
    return NULL;
}
static obj *process_info(obj *c, sel s)
{
    (void)c, (void)s;
    return autorelease(make("NSProcessInfo"));
}
static obj *os_version(obj *o, sel s)
{
    (void)o, (void)s;
    return autorelease(
        text_obj("NSString", word("old", NULL) ? "Version 14.0 (Build 23A1)" : "Version 15.3 (Build 24D60)"));
}
static obj *file_manager(obj *c, sel s)
{
    (void)c, (void)s;
    return autorelease(make("NSFileManager"));
}

static void copy_file(const char *from, const char *to)
{
    char buf[65536];
    FILE *a = fopen(from, "rb"), *b = fopen(to, "wb");
    if (!a || !b) fatal("cannot copy", from);
    for (size_t n; (n = fread(buf, 1, sizeof buf, a)) > 0;)
        if (fwrite(buf, 1, n, b) != n) fatal("cannot write", to);
    fclose(a);
    fclose(b);
}
static bool copy_tree(const char *from, const char *to)
{
    DIR *d = opendir(from);
    if (!d || mkdir(to, 0700)) {
        if (d) closedir(d);
        return false;
    }
    for (struct dirent *e; (e = readdir(d));) {
        char a[4096], b[4096];
        if (e->d_name[0] == '.') continue;
        snprintf(a, sizeof a, "%s/%s", from, e->d_name);
        snprintf(b, sizeof b, "%s/%s", to, e->d_name);
        struct stat st;
        if (!stat(a, &st) && S_ISDIR(st.st_mode)) {
            if (!copy_tree(a, b)) return false;
        } else {
            copy_file(a, b);
        }
    }
    closedir(d);
    return true;
}

static bool fail_with(obj **out, const char *why)
{
    if (out) *out = autorelease(text_obj("NSError", why));
    return false;
}
static bool copy_item(obj *o, sel s, obj *from, obj *to, obj **why)
{
    (void)o, (void)s;
    note("copy\n");
    return copy_tree(from->text, to->text) || fail_with(why, "The file could not be copied.");
}
static obj *description(obj *o, sel s)
{
    (void)s;
    return autorelease(text_obj("NSString", o->text));
}

/* ---- arrays and providers ------------------------------------------------------------------------------------------------ */

enum { F16 = 65552, F32 = 65568, I32 = 131104 };

static obj *array_init(obj *o, sel s, void *data, obj *shape, long type, obj *strides, block *dealloc,
                       obj **why)
{
    (void)s, (void)why;
    if (dealloc || shape->n != strides->n) fatal("a multi-array of odd arguments", "");
    o->mem = data;
    o->num = type;
    o->a = retain(shape);
    o->b = retain(strides);
    o->n_mem = SIZE_MAX;
    return o;
}
static obj *array_shape(obj *o, sel s)
{
    (void)s;
    return o->a;
}
static obj *array_strides(obj *o, sel s)
{
    (void)s;
    return o->b;
}
static long array_type(obj *o, sel s)
{
    (void)s;
    return (long)o->num;
}
static void *array_pointer(obj *o, sel s)
{
    (void)s;
    return o->mem;
}
static void array_bytes(obj *o, sel s, block *b)
{
    (void)s;
    if (b->isa != _NSConcreteStackBlock) fatal("a block of an unknown kind", "");
    ((void (*)(block *, const void *, long))b->invoke)(b, o->mem, (long)o->n_mem);
}
static obj *value_with(obj *c, sel s, obj *array)
{
    (void)c, (void)s;
    obj *o = make("MLFeatureValue");
    o->a = retain(array);
    return autorelease(o);
}
static obj *value_array(obj *o, sel s)
{
    (void)s;
    return o->a;
}
static obj *provider_init(obj *o, sel s, obj *dict, obj **why)
{
    (void)s, (void)why;
    o->a = retain(dict);
    return o;
}
static obj *value_for(obj *o, sel s, obj *name)
{
    return object_for_key(o->a, s, name);
}
static obj *batch_init(obj *o, sel s, obj *array)
{
    (void)s;
    o->item = copy_items(array->item, array->n);
    o->n = array->n;
    return o;
}
static obj *features_at(obj *o, sel s, long i)
{
    return object_at(o, s, (unsigned long)i);
}

/* ---- models -------------------------------------------------------------------------------------------------------------- */

static obj *compile_model(obj *c, sel s, obj *url, obj **why)
{
    (void)c, (void)s;
    char dir[600], path[700];
    note("compile\n");
    nap("compile_ms");
    if (word("compile_fail", NULL)) return fail_with(why, "The model is not valid."), NULL;
    if (word("compile_die", NULL)) abort();
    snprintf(dir, sizeof dir, "%s-XXXXXX", word("exdev", NULL) ? "/dev/shm/fake-coreml" : ctl_path());
    if (!mkdtemp(dir)) fatal("no temporary folder", dir);
    snprintf(path, sizeof path, "%s/model.mlmodelc", dir);
    if (!copy_tree(url->text, path)) return fail_with(why, "There is no such package."), NULL;
    return autorelease(text_obj("NSURL", path));
}

static void set_units(obj *o, sel s, long units)
{
    (void)s;
    o->num = units;
}
static void set_function(obj *o, sel s, obj *name)
{
    (void)s;
    o->a = retain(name);
}

static obj *load_model(obj *c, sel s, obj *url, obj *config, obj **why)
{
    (void)c, (void)s;
    imp_error err = {0};
    obj *o = make("MLModel");
    note("load units=%lld function=%s\n", config->num, config->a ? config->a->text : "");
    nap("load_ms");
    if (word("load_die", NULL)) abort();
    if (word("load_fail", NULL) || imp_mlpackage_open(url->text, &o->package, &err) != IMP_OK) {
        release(o);
        return fail_with(why, err.text[0] ? err.text : "Error in building plan."), NULL;
    }
    o->func = imp_mlpackage_func(o->package, config->a ? config->a->text : "main");
    if (!o->func || imp_ml_eval_new(o->func, IMP_ML_F16, NULL, &o->eval, &err) != IMP_OK) {
        release(o);
        return fail_with(why, "There is no such function."), NULL;
    }
    return autorelease(o);
}

/* An input's elements in order, by its strides; NULL: not what the function takes. */
static float *read_input(const imp_mil_type *t, obj *array)
{
    uint64_t n = imp_mil_n_elem(t);
    if (array->num != F16 || array->a->n != t->rank) return NULL;
    for (uint32_t k = 0; k < t->rank; k++)
        if ((uint64_t)array->a->item[k]->num != t->dim[k]) return NULL;
    float *x = malloc((n + 1) * sizeof *x);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t rest = i, at = 0;
        for (uint32_t k = t->rank; k-- > 0;) {
            at += rest % t->dim[k] * (uint64_t)array->b->item[k]->num;
            rest /= t->dim[k];
        }
        x[i] = imp_f16_to_f32(((const uint16_t *)array->mem)[at]);
    }
    return x;
}

static obj *numbers(const long long *x, size_t n)
{
    obj *o = make("NSArray");
    o->item = calloc(n, sizeof(obj *));
    o->n = n;
    for (size_t i = 0; i < n; i++) {
        o->item[i] = make("NSNumber");
        o->item[i]->num = x[i];
    }
    return o;
}

/* The result as a multi-array of type t, laid out as the control file wants it: "pad" puts 31 elements between the numbers of
 * a vector, and up to 63 behind each row of a matrix. */
static obj *result_array(const float *v, const imp_mil_type *t)
{
    size_t n = (size_t)imp_mil_n_elem(t), cols = (size_t)t->dim[t->rank - 1], rows = n / cols;
    bool pad = word("pad", NULL), wide = word("f32", NULL), wrong = word("wrong_values", NULL);
    bool nan = word("nan", NULL);
    size_t step = pad && rows == 1 ? 32 : 1, row = pad && rows > 1 ? (cols + 63) / 32 * 32 : cols * step;
    obj *o = make("MLMultiArray");
    size_t n_elem = rows * row, size = wide ? 4 : 2;
    o->own = o->mem = malloc(n_elem * size);
    memset(o->mem, 0x7e, n_elem * size); /* NaNs where nobody may look */
    for (size_t i = 0; i < n; i++) {
        float x = v[wrong ? n - 1 - i : i];
        size_t at = i / cols * row + i % cols * step;
        if (wide)
            ((float *)o->mem)[at] = x;
        else
            ((uint16_t *)o->mem)[at] = nan ? 0x7e00 : imp_f32_to_f16(x);
    }
    o->n_mem = word("short", NULL) ? n_elem * size - row * size : n_elem * size;
    o->num = word("wrong_type", NULL) ? I32 : wide ? F32 : F16;
    long long shape[8], strides[8], at = (long long)row;
    for (uint32_t k = t->rank; k-- > 0;) {
        shape[k] = (long long)t->dim[k];
        strides[k] = k + 1 == t->rank ? (long long)step : at;
        if (k + 1 < t->rank) at *= shape[k];
    }
    if (word("wrong_shape", NULL)) shape[t->rank - 1]--;
    o->a = numbers(shape, t->rank);
    o->b = numbers(strides, t->rank);
    return o;
}

static obj *predict(obj *o, obj *in, obj **why)
{
    const float *x[8] = {0};
    imp_error err = {0};
    nap("predict_ms");
    if (word("die_once", NULL)) {
        unlink(ctl_path());
        abort();
    }
    if (word("predict_die", NULL)) abort();
    if (word("predict_hang", NULL)) pause();
    if (word("predict_fail", NULL)) return fail_with(why, "Unable to compute the prediction."), NULL;
    bool ok = o->func->n_in <= 8;
    for (uint32_t i = 0; ok && i < o->func->n_in; i++) {
        obj *name = text_obj("NSString", o->func->in[i].name);
        obj *v = value_for(in, "", name);
        release(name);
        x[i] = v ? read_input(&o->func->in[i].type, v->a) : NULL;
        ok = x[i] != NULL;
    }
    ok = ok && imp_ml_eval_run(o->eval, x, &err) == IMP_OK;
    for (uint32_t i = 0; i < 8; i++) free((void *)x[i]);
    if (!ok) return fail_with(why, err.text[0] ? err.text : "The inputs are not the model's."), NULL;
    obj *p = make("MLDictionaryFeatureProvider"), *d = make("NSDictionary");
    d->n = o->func->n_out;
    d->item = calloc(d->n, sizeof(obj *));
    d->key = calloc(d->n, sizeof(obj *));
    for (uint32_t i = 0; i < d->n; i++) {
        d->item[i] = make("MLFeatureValue");
        d->item[i]->a = result_array(imp_ml_eval_out(o->eval, i), &o->func->var[o->func->out[i].var].type);
        d->key[i] = text_obj("NSString", o->func->out[i].name);
    }
    p->a = d;
    return p;
}

static obj *predict_one(obj *o, sel s, obj *in, obj **why)
{
    (void)s;
    note("predict 1 live=%ld\n", atomic_load(&n_live));
    return autorelease(predict(o, in, why));
}
static obj *predict_batch(obj *o, sel s, obj *in, obj *options, obj **why)
{
    (void)s;
    if (!options) fatal("a batch without options", "");
    note("predict %zu live=%ld\n", in->n, atomic_load(&n_live));
    obj *out = make("MLArrayBatchProvider");
    out->item = calloc(in->n, sizeof(obj *));
    for (size_t i = 0; i < in->n; i++) {
        if (!(out->item[i] = predict(o, in->item[i], why))) {
            release(out);
            return NULL;
        }
        out->n++;
    }
    return autorelease(out);
}

/* ---- compute plans: every fourth op that computes is on the CPU, the rest on the Neural Engine ------------------------------ */

typedef struct planning {
    char path[1024], function[64];
    block *handler;
} planning;

static obj *one(const char *isa, obj *a)
{
    obj *o = make(isa);
    o->a = a;
    return o;
}

static void *plan_main(void *arg)
{
    planning *p = arg;
    imp_mlpackage *pkg;
    imp_error err;
    void *pl = objc_autoreleasePoolPush();
    obj *plan = NULL, *error = NULL;
    if (imp_mlpackage_open(p->path, &pkg, &err) == IMP_OK) {
        obj *dict = make("NSDictionary");
        dict->n = pkg->n_func;
        dict->item = calloc(dict->n, sizeof(obj *));
        dict->key = calloc(dict->n, sizeof(obj *));
        for (uint32_t f = 0; f < pkg->n_func; f++) {
            obj *ops = make("NSArray");
            ops->item = calloc(pkg->func[f].n_op, sizeof(obj *));
            for (uint32_t i = 0, k = 0; i < pkg->func[f].n_op; i++) {
                obj *op = ops->item[ops->n++] =
                    text_obj("MLModelStructureProgramOperation", pkg->func[f].op[i].type);
                op->num = !strcmp(pkg->func[f].op[i].type, "const") ? -1 : (long long)k++;
            }
            dict->item[f] = one("MLModelStructureProgramFunction", one("MLModelStructureProgramBlock", ops));
            dict->key[f] = text_obj("NSString", pkg->func[f].name);
        }
        plan = one("MLComputePlan", one("MLModelStructure", one("MLModelStructureProgram", dict)));
        imp_mlpackage_close(pkg);
    } else {
        error = text_obj("NSError", err.text);
    }
    ((void (*)(block *, obj *, obj *))p->handler->invoke)(p->handler, plan, error);
    release(plan);
    release(error);
    free(p->handler);
    free(p);
    objc_autoreleasePoolPop(pl);
    return NULL;
}

static void load_plan(obj *c, sel s, obj *url, obj *config, block *handler)
{
    (void)c, (void)s, (void)config;
    planning *p = calloc(1, sizeof *p);
    snprintf(p->path, sizeof p->path, "%s", url->text);
    p->handler = malloc(handler->desc->size); /* what Block_copy does with a block of plain captures */
    memcpy(p->handler, handler, handler->desc->size);
    pthread_t t;
    if (pthread_create(&t, NULL, plan_main, p)) abort();
    pthread_detach(t);
}
static obj *child(obj *o, sel s)
{
    (void)s;
    return o->a;
}
static obj *usage_for(obj *o, sel s, obj *op)
{
    (void)o, (void)s;
    if (op->num < 0) return NULL;
    return autorelease(one("MLComputePlanDeviceUsage",
                           make(op->num % 4 == 3 ? "MLCPUComputeDevice" : "MLNeuralEngineComputeDevice")));
}
static obj *cost_of(obj *o, sel s, obj *op)
{
    (void)o, (void)s;
    if (op->num < 0 || word("no_cost", NULL)) return NULL;
    obj *c = make("MLComputePlanCost");
    c->dbl = op->num % 4 == 3 ? 0.001 : 0.009; /* 27 parts on the Neural Engine for one on the CPU */
    return autorelease(c);
}
static double weight(obj *o, sel s)
{
    (void)s;
    return o->dbl;
}
static long cores(obj *o, sel s)
{
    (void)o, (void)s;
    return 16;
}

API obj *MLAllComputeDevices(void);
API obj *MLAllComputeDevices(void)
{
    obj *o = make("NSArray");
    o->item = calloc(2, sizeof(obj *));
    o->item[o->n++] = make("MLCPUComputeDevice");
    o->item[o->n++] = make("MLNeuralEngineComputeDevice");
    return autorelease(o);
}

/* ---- the runtime ------------------------------------------------------------------------------------------------------------- */

static obj *class_of(const char *name);
static void *find(const char *isa, bool is_class, sel s);

static obj *alloc(obj *c, sel s)
{
    (void)s;
    return make(c->name);
}
static obj *same(obj *o, sel s)
{
    (void)s;
    return o;
}
static obj *do_retain(obj *o, sel s)
{
    (void)s;
    return retain(o);
}
static void do_release(obj *o, sel s)
{
    (void)s;
    release(o);
}
static obj *do_autorelease(obj *o, sel s)
{
    (void)s;
    return autorelease(o);
}
static bool responds(obj *o, sel s, sel what)
{
    (void)s;
    bool is_class = !strcmp(o->isa, "class");
    return find(is_class ? o->name : o->isa, is_class, what) != NULL;
}
static bool is_kind(obj *o, sel s, obj *c)
{
    (void)s;
    return !strcmp(o->isa, c->name);
}

static const struct method {
    const char *isa, *selector;
    bool on_class;
    void *imp;
} METHOD[] = {
    {"NSObject", "alloc", true, alloc},
    {"NSObject", "init", false, same},
    {"NSObject", "retain", false, do_retain},
    {"NSObject", "release", false, do_release},
    {"NSObject", "autorelease", false, do_autorelease},
    {"NSObject", "respondsToSelector:", false, responds},
    {"NSObject", "respondsToSelector:", true, responds},
    {"NSObject", "isKindOfClass:", false, is_kind},
    {"NSString", "stringWithUTF8String:", true, string_with},
    {"NSString", "UTF8String", false, utf8_string},
    {"NSURL", "fileURLWithPath:", true, url_with},
    {"NSURL", "path", false, url_path},
    {"NSArray", "arrayWithObjects:count:", true, array_with},
    {"NSArray", "count", false, count},
    {"NSArray", "objectAtIndex:", false, object_at},
    {"NSNumber", "numberWithLongLong:", true, number_with},
    {"NSNumber", "longLongValue", false, long_long_value},
    {"NSDictionary", "dictionaryWithObjects:forKeys:count:", true, dictionary_with},
    {"NSDictionary", "objectForKey:", false, object_for_key},
    {"NSProcessInfo", "processInfo", true, process_info},
    {"NSProcessInfo", "operatingSystemVersionString", false, os_version},
    {"NSFileManager", "defaultManager", true, file_manager},
    {"NSFileManager", "copyItemAtPath:toPath:error:", false, copy_item},
    {"NSError", "localizedDescription", false, description},
    {"MLMultiArray", "initWithDataPointer:shape:dataType:strides:deallocator:error:", false, array_init},
    {"MLMultiArray", "shape", false, array_shape},
    {"MLMultiArray", "strides", false, array_strides},
    {"MLMultiArray", "dataType", false, array_type},
    {"MLMultiArray", "dataPointer", false, array_pointer},
    {"MLMultiArray", "getBytesWithHandler:", false, array_bytes},
    {"MLFeatureValue", "featureValueWithMultiArray:", true, value_with},
    {"MLFeatureValue", "multiArrayValue", false, value_array},
    {"MLDictionaryFeatureProvider", "initWithDictionary:error:", false, provider_init},
    {"MLDictionaryFeatureProvider", "featureValueForName:", false, value_for},
    {"MLArrayBatchProvider", "initWithFeatureProviderArray:", false, batch_init},
    {"MLArrayBatchProvider", "count", false, count},
    {"MLArrayBatchProvider", "featuresAtIndex:", false, features_at},
    {"MLPredictionOptions", "init", false, same},
    {"MLModelConfiguration", "setComputeUnits:", false, set_units},
    {"MLModelConfiguration", "setFunctionName:", false, set_function},
    {"MLModel", "compileModelAtURL:error:", true, compile_model},
    {"MLModel", "modelWithContentsOfURL:configuration:error:", true, load_model},
    {"MLModel", "predictionFromFeatures:error:", false, predict_one},
    {"MLModel", "predictionsFromBatch:options:error:", false, predict_batch},
    {"MLComputePlan", "loadContentsOfURL:configuration:completionHandler:", true, load_plan},
    {"MLComputePlan", "modelStructure", false, child},
    {"MLComputePlan", "computeDeviceUsageForMLProgramOperation:", false, usage_for},
    {"MLComputePlan", "estimatedCostOfMLProgramOperation:", false, cost_of},
    {"MLModelStructure", "program", false, child},
    {"MLModelStructureProgram", "functions", false, child},
    {"MLModelStructureProgramFunction", "block", false, child},
    {"MLModelStructureProgramBlock", "operations", false, child},
    {"MLModelStructureProgramOperation", "operatorName", false, description},
    {"MLComputePlanDeviceUsage", "preferredComputeDevice", false, child},
    {"MLComputePlanCost", "weight", false, weight},
    {"MLNeuralEngineComputeDevice", "totalCoreCount", false, cores},
    {"MLCPUComputeDevice", "init", false, same},
    {"MLGPUComputeDevice", "init", false, same},
};

/* What older systems do not have. */
static bool hidden(const struct method *m)
{
    if (!strcmp(m->selector, "setFunctionName:")) return word("old", NULL);
    if (!strcmp(m->selector, "getBytesWithHandler:")) return word("old", NULL);
    return !strcmp(m->isa, "MLComputePlan") && (word("old", NULL) || word("no_plan", NULL));
}

static void *find(const char *isa, bool is_class, sel s)
{
    for (size_t i = 0; i < IMP_COUNT(METHOD); i++) {
        const struct method *m = &METHOD[i];
        if (m->on_class != is_class || strcmp(m->selector, s)) continue;
        if ((!strcmp(m->isa, isa) || !strcmp(m->isa, "NSObject")) && !hidden(m)) return m->imp;
    }
    return NULL;
}

static obj *class_of(const char *name)
{
    static obj table[64];
    static size_t n;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    obj *c = NULL;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < n && !c; i++)
        if (!strcmp(table[i].name, name)) c = &table[i];
    for (size_t i = 0; i < IMP_COUNT(METHOD) && !c && n < 64; i++)
        if (!strcmp(METHOD[i].isa, name) && !hidden(&METHOD[i])) {
            c = &table[n++];
            c->isa = "class";
            c->name = METHOD[i].isa;
            atomic_init(&c->refs, 1);
        }
    pthread_mutex_unlock(&lock);
    return c;
}

API obj *objc_getClass(const char *name);
API obj *objc_getClass(const char *name)
{
    return class_of(name);
}

API sel sel_registerName(const char *name);
API sel sel_registerName(const char *name) /* selectors are compared by their text here */
{
    static const char *known[256];
    static size_t n;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    size_t i = 0;
    while (i < n && strcmp(known[i], name)) i++;
    if (i == n && n < 256) known[n++] = strdup(name);
    pthread_mutex_unlock(&lock);
    if (i == 256) fatal("too many selectors", name);
    return known[i];
}

static long nothing(void) /* what messages to nil give */
{
    return 0;
}

void *fake_lookup(obj *self, sel s);
__attribute__((used)) void *fake_lookup(obj *self, sel s)
{
    if (!self) return (void *)nothing;
    bool is_class = !strcmp(self->isa, "class");
    void *imp = find(is_class ? self->name : self->isa, is_class, s);
    if (!imp) fatal(is_class ? self->name : self->isa, s);
    return imp;
}

/* Find the method, keep every argument where it is, and go there. */
__asm__(
    ".text\n.globl objc_msgSend\n.type objc_msgSend,@function\nobjc_msgSend:\n"
    "  push %rbp\n  mov %rsp, %rbp\n  sub $192, %rsp\n"
    "  mov %rdi, 0(%rsp)\n  mov %rsi, 8(%rsp)\n  mov %rdx, 16(%rsp)\n  mov %rcx, 24(%rsp)\n"
    "  mov %r8, 32(%rsp)\n  mov %r9, 40(%rsp)\n"
    "  movups %xmm0, 48(%rsp)\n  movups %xmm1, 64(%rsp)\n  movups %xmm2, 80(%rsp)\n  movups %xmm3, 96(%rsp)\n"
    "  movups %xmm4, 112(%rsp)\n  movups %xmm5, 128(%rsp)\n  movups %xmm6, 144(%rsp)\n  movups %xmm7, "
    "160(%rsp)\n"
    "  call fake_lookup\n  mov %rax, %r11\n"
    "  mov 0(%rsp), %rdi\n  mov 8(%rsp), %rsi\n  mov 16(%rsp), %rdx\n  mov 24(%rsp), %rcx\n"
    "  mov 32(%rsp), %r8\n  mov 40(%rsp), %r9\n"
    "  movups 48(%rsp), %xmm0\n  movups 64(%rsp), %xmm1\n  movups 80(%rsp), %xmm2\n  movups 96(%rsp), %xmm3\n"
    "  movups 112(%rsp), %xmm4\n  movups 128(%rsp), %xmm5\n  movups 144(%rsp), %xmm6\n  movups 160(%rsp), "
    "%xmm7\n"
    "  leave\n  jmp *%r11\n.size objc_msgSend, .-objc_msgSend\n");
