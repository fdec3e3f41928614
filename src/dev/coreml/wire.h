/* dev/coreml/wire.h - what the device and its worker process say to each other, and the memory that they share.
 *
 * Place:   private to dev/coreml; device side in client.c, worker side in worker.c.
 * Idea:    a head and a body of a size that its kind fixes; one request, one answer. Tensors never go through the socket:
 *          they lie in shared memory, cut into slots of one text each. Both sides compute the slots with ml_slots_of.
 * Always:  a message is checked completely when it arrives (magic, version, kind, size, ranges, every text ended), on both
 *          sides; who breaks a rule is not spoken to any more.
 * Layout:  both ends are the same program on the same machine: native byte order and alignment. */
#ifndef IMP_ML_WIRE_H
#define IMP_ML_WIRE_H

#include "base/base.h"

enum {
    ML_WIRE_MAGIC = 0x504d4943, /* "CIMP" */
    ML_WIRE_VERSION = 2,
    ML_WIRE_LENS = 16,
    ML_WIRE_CHUNKS = 16,
    ML_WIRE_PACKAGES = 16,
    ML_WIRE_FUNCS = 64, /* of all chunks and lengths */
    ML_WIRE_KV = 256,   /* layers */
    ML_WIRE_SLOTS = 64,
    ML_WIRE_TEXT = 400,
    ML_WIRE_PATH = 1024
};

typedef enum ml_kind {
    ML_HELLO = 1, /* -> what runtime to open */
    ML_WELCOME,   /* <- what it is */
    ML_LOAD,      /* -> a package */
    ML_LOADED,    /* <- and what Core ML plans for it */
    ML_RUN,       /* -> texts are in the slots */
    ML_RAN,       /* <- vectors are in the slots */
    ML_FAILED,    /* <- instead of any answer */
    ML_N_KIND
} ml_kind;

typedef struct ml_head {
    uint32_t magic;
    uint16_t version, kind;
    uint32_t n_bytes; /* of the body */
} ml_head;

typedef struct ml_hello {
    char runtime[ML_WIRE_PATH]; /* "": the system's own */
} ml_hello;

typedef struct ml_welcome {
    char os[128];       /* "Version 15.3 (Build 24D60)" */
    uint32_t functions; /* 1: a package may have several (macOS 15) */
    uint32_t plans;     /* 1: MLComputePlan is there (macOS 14.4) */
    uint32_t ane_cores; /* 0: none, or not known */
} ml_welcome;

typedef enum ml_units { ML_CPU_ONLY = 0, ML_CPU_GPU = 1, ML_ALL = 2, ML_CPU_ANE = 3 } ml_units;

/* What a text is: its lengths, what goes in and what comes out. */
typedef struct ml_shape {
    uint32_t n_len;
    uint32_t s[ML_WIRE_LENS];      /* tokens of each length, ascending */
    uint32_t width;                /* of "hidden" */
    uint32_t dim;                  /* of "embedding"; 0: keys and values come out */
    uint32_t n_kv;                 /* their layers */
    uint32_t kv_width[ML_WIRE_KV]; /* [n_kv] of "k_I", and as much of "v_I" */
    uint32_t n_slot;               /* texts at once */
} ml_shape;

enum { ML_TAKES_MASK = 1, ML_TAKES_POOL = 2 };

/* A model: chunks that follow each other, each with a function for every length; function chunk * n_len + length. */
typedef struct ml_load {
    ml_shape shape;
    char package[ML_WIRE_PACKAGES]
                [ML_WIRE_PATH]; /* [n_package] X.mlpackage; empty: a compiled one is there */
    char compiled[ML_WIRE_PACKAGES][ML_WIRE_PATH]; /* [n_package] where X.mlmodelc is, or is to be put */
    uint32_t n_package;                            /* one a chunk, with all its lengths; or one a function */
    uint32_t n_chunk;
    char name[ML_WIRE_LENS][32];    /* of a length's function in the package of every chunk */
    uint32_t takes[ML_WIRE_CHUNKS]; /* beside "hidden": ML_TAKES_ bits */
    uint32_t first_kv[ML_WIRE_CHUNKS +
                      1]; /* chunk i gives the keys and values of layers first_kv[i]..first_kv[i + 1] - 1 */
    uint32_t units;       /* ml_units */
} ml_load;

/* Where the ops of a function go, as Core ML plans it: [0] Neural Engine, [1] GPU, [2] CPU. */
typedef struct ml_where {
    uint32_t known; /* 0: Core ML does not say, 1: numbers of ops, 2: shares of its estimated cost too */
    uint32_t n_op[3];
    double cost[3];
} ml_where;

typedef struct ml_loaded {
    uint32_t was_cached;
    uint64_t compile_ns, load_ns;
    ml_where where[ML_WIRE_FUNCS];
} ml_loaded;

typedef struct ml_run {
    uint32_t len, n; /* a length, slots 0..n-1 */
} ml_run;

typedef struct ml_ran {
    uint64_t ns;
} ml_ran;

typedef struct ml_failed {
    uint32_t status; /* imp_status, not OK */
    char text[ML_WIRE_TEXT];
} ml_failed;

typedef union ml_body {
    ml_hello hello;
    ml_welcome welcome;
    ml_load load;
    ml_loaded loaded;
    ml_run run;
    ml_ran ran;
    ml_failed failed;
} ml_body;

/* One text's memory: hidden [width][s], mask [s], pool [s] in f16; then embedding [dim] in f32, or keys and values of every
 * layer, k [kv_width][s] and v, in f16. The places are for the longest s. */
typedef struct ml_slots {
    uint64_t mask, pool, out; /* offsets in a slot */
    uint64_t stride, total;
} ml_slots;
/* false: the sizes overflow or are beyond what is served (4 GB). */
bool ml_slots_of(const ml_shape *sh, ml_slots *out);
/* Where in a slot the keys (part 0) or values (1) of a layer are. */
uint64_t ml_slot_kv(const ml_shape *sh, const ml_slots *sl, uint32_t layer, int part);

/* FORMAT: not a head of this version, or a body of the wrong size. */
IMP_MUST_USE imp_status ml_wire_head(const ml_head *h, imp_error *err);
/* The body of a message whose head was accepted. FORMAT says which rule it breaks. */
IMP_MUST_USE imp_status ml_wire_body(ml_kind kind, const ml_body *b, imp_error *err);
/* Whether run is for what load made. */
IMP_MUST_USE imp_status ml_wire_run_fits(const ml_run *r, const ml_load *l, imp_error *err);
uint32_t ml_wire_size(ml_kind kind);

/* Bytes in and out, over a socket (wire.c) or from memory (fuzz). */
typedef struct ml_port {
    imp_status (*recv)(void *ctx, void *p, size_t n, imp_error *err);
    imp_status (*send)(void *ctx, const void *p, size_t n, imp_error *err);
    void *ctx;
} ml_port;
IMP_MUST_USE imp_status ml_wire_recv(const ml_port *p, ml_kind *kind, ml_body *b, imp_error *err);
IMP_MUST_USE imp_status ml_wire_send(const ml_port *p, ml_kind kind, const void *body, imp_error *err);

#endif
