/* dev/coreml/objc.h - the Objective-C runtime from plain C, by dlopen: classes, messages, blocks, texts and lists.
 *
 * Place:   private to dev/coreml; used in the worker process alone, but for blocks, which plan/meter_apple.c hands over too.
 * Idea:    a message is a call of objc_msgSend through a pointer of the method's exact prototype. The pointer is kept as a
 *          function without parameters, so that no call without such a cast compiles: on arm64 variadic arguments travel
 *          on the stack, methods expect registers, and a test on x86-64 would not notice.
 * Memory:  what a method returns is autoreleased unless its name says new, alloc, init or copy; callers hold a pool.
 * Source:  Apple's Objective-C runtime reference; the block ABI of clang (Block-ABI-Apple). */
#ifndef IMP_ML_OBJC_H
#define IMP_ML_OBJC_H

#include "base/base.h"

typedef struct objc_object *ml_id;
typedef struct objc_selector *ml_sel;

typedef struct ml_objc {
    void *core_ml; /* the library with Core ML's C functions */
    void (*send)(void);
    ml_id (*get_class)(const char *name);
    ml_sel (*selector)(const char *name);
    void *(*pool_push)(void);
    void (*pool_pop)(void *pool);
    void *stack_block; /* _NSConcreteStackBlock */
} ml_objc;

/* path "": the system's libraries; else one library that holds everything (tests). NOT_FOUND: this is no Mac. */
IMP_MUST_USE imp_status ml_objc_open(const char *path, ml_objc *out, imp_error *err);

/* ML_SEND(o, result type, (parameter types with receiver and selector), receiver, "selector:", arguments...) */
#define ML_SEND(o, ret, types, self, name, ...)                                                              \
    (((ret(*) types)(o)->send)((self), (o)->selector(name), ##__VA_ARGS__))
#define ML_GET(o, ret, self, name) ML_SEND(o, ret, (ml_id, ml_sel), self, name)

bool ml_responds(const ml_objc *o, ml_id self, const char *selector); /* nil: false */
bool ml_is_kind(const ml_objc *o, ml_id self, const char *class_name);
ml_id ml_retain(const ml_objc *o, ml_id x);
void ml_release(const ml_objc *o, ml_id x);             /* nil is allowed */
ml_id ml_new(const ml_objc *o, const char *class_name); /* [[C alloc] init]; NULL: no such class */

ml_id ml_string(const ml_objc *o, const char *utf8);
/* A copy in out, cut if need be. */
void ml_utf8(const ml_objc *o, ml_id string, char *out, size_t cap);
ml_id ml_url(const ml_objc *o, const char *path);
ml_id ml_numbers(const ml_objc *o, const int64_t *x, uint32_t n); /* NSArray of NSNumber, n <= 8 */
ml_id ml_array(const ml_objc *o, const ml_id *x, uint64_t n);
uint64_t ml_count(const ml_objc *o, ml_id array); /* of nil: 0 */
ml_id ml_at(const ml_objc *o, ml_id array, uint64_t i);
ml_id ml_for_key(const ml_objc *o, ml_id dictionary, const char *key);

/* "what: the NSError's own words", IMP_DEVICE. */
imp_status ml_ns_error(const ml_objc *o, imp_error *err, const char *what, ml_id ns_error);

/* A block without -fblocks: the literal, then what it captured (plain data). `invoke` gets the literal first. */
typedef struct ml_block {
    void *isa;
    int32_t flags, reserved;
    void (*invoke)(void);
    const struct ml_block_desc *desc;
    void *ctx; /* the capture */
} ml_block;
/* invoke: the function, its first parameter the ml_block *. */
ml_block ml_block_of(const ml_objc *o, void (*invoke)(void), void *ctx);

#endif
