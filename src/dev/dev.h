/* dev/dev.h - what a compute unit is to the rest of the program: the vtable every device implements.
 *
 * Place:   layer 4. sched and engine drive it; each folder beside it implements it.
 * Idea:    compile(graph, limits) allocates everything once (packed weights, KV blocks, scratch) and gives an
 *          executable; run(batch) computes one step over a ragged batch and cannot fail for lack of memory.
 *          plan() says what compile() will allocate, computed by the same code.
 * KV:      the device owns the memory, cut into n_kv_block blocks of IMP_KV_BLOCK tokens over all layers; the
 *          scheduler owns the numbering: each sequence of a batch brings its block table.
 * Threads: one caller at a time for a device's run; open, plan and info from any. */
#ifndef IMP_DEV_H
#define IMP_DEV_H

#include "graph/adapter.h"

enum { IMP_KV_BLOCK = 64 }; /* tokens */

typedef struct imp_limits {
    uint32_t max_tok;    /* tokens a step, over all sequences */
    uint32_t max_seq;    /* sequences a step */
    uint32_t max_out;    /* output rows a step */
    uint32_t max_ctx;    /* tokens a sequence may reach (encoders: longest input) */
    uint32_t n_kv_block; /* 0 for graphs without a cache */
    imp_dtype kv_dtype;  /* f32, f16, q8_0, or q4_0: rotated 4-bit keys with q8_0 values (kern/kv.h) */
    uint32_t lora_rank;  /* columns that the adapters of a row may have together; 0: there are no adapters */
    bool keep; /* every value of a step stays readable behind it (ops.value); takes far more scratch */
} imp_limits;

typedef struct imp_batch_seq {
    uint32_t first_tok, n_tok; /* its rows in this step */
    uint32_t n_past;           /* tokens already in the cache; position i of the sequence is n_past + i */
    const uint32_t
        *block; /* block table: ceil((n_past + n_tok) / IMP_KV_BLOCK) entries; NULL without a cache */
    const imp_adapter_use *use; /* [n_use] adapters of its rows (adapter.h) */
    uint32_t n_use;
} imp_batch_seq;

typedef struct imp_batch {
    uint32_t n_tok, n_seq, n_out;
    const int32_t *token;     /* [n_tok], each in 0..n_vocab-1 (checked by the caller) */
    const int32_t *pos;       /* [n_tok] */
    const int32_t *type;      /* [n_tok] token types, NULL: all 0 */
    const imp_batch_seq *seq; /* [n_seq], covering all tokens in order */
    const uint32_t *out_row;  /* [n_out] rows that GATHER picks; unused when the graph pools */
    const float *input;       /* [n_tok][width] rows of a graph with an INPUT */
    bool top;                 /* the rows stay on the device, which has ops.top: run gives none (*out NULL) */
} imp_batch;

/* The best columns of a row: what most samplers need of it. */
enum { IMP_DEV_TOP = 256 };
typedef struct imp_dev_top {
    uint32_t n; /* IMP_DEV_TOP, or fewer: then all columns that are numbers */
    double
        sum; /* of exp(value - the best one), within (columns + 64) * 2^-52 of itself; no number when the best is infinite */
    const imp_token_prob
        *best; /* [n] columns and their values (in logprob): best first, equal ones by column */
} imp_dev_top;

typedef struct imp_dev_memory {
    uint64_t
        weights; /* held by the device beside the model's own mapping; mapped weights used in place count in
                         `mapped` */
    uint64_t mapped, kv, scratch, other;
} imp_dev_memory;

struct imp_group; /* group.h */
/* Rows of an OUTSIDE node: out[n_row][ldo] from a[n_row][lda] and b[n_row][ldb], all in host memory. */
typedef imp_status (*imp_outside_fn)(void *ctx, uint32_t index, uint32_t n_row, const float *a, uint64_t lda,
                                     const float *b, uint64_t ldb, float *out, uint64_t ldo, imp_error *err);
typedef struct imp_outside {
    imp_outside_fn fn; /* NULL: the graph has no such nodes */
    void *ctx;
} imp_outside;
typedef struct imp_device imp_device;
typedef struct imp_exec imp_exec;

typedef struct imp_device_ops {
    const char *kind;  /* "cpu", "ref" */
    bool slow_compile; /* compile takes so long that models start on other devices and this one joins later */
    /* Of graphs with a cache it computes keys and values alone: a step's sequences begin at position 0, each in one piece, and
     * n_out is 0. Another device takes the cache over, computes the prompt's last token and generates. */
    bool prefill_only;
    bool adapters; /* it computes adapters where limits.lora_rank is not 0 */
    /* NULL: the device runs this node; else why not (a fixed string). */
    const char *(*refuses)(const imp_device *d, const imp_graph *g, imp_val v);
    imp_status (*plan)(imp_device *d, const imp_graph *g, const imp_limits *lim, imp_dev_memory *out,
                       imp_error *err);
    /* The graph and its weights stay borrowed until exec_free. */
    imp_status (*compile)(imp_device *d, const imp_graph *g, const imp_limits *lim, imp_exec **out,
                          imp_error *err);
    /* One step. *out: [n_out or n_seq][width] f32, the device's, valid until the next run. INVALID: beyond limits. */
    imp_status (*run)(imp_exec *x, const imp_batch *b, const float **out, imp_error *err);
    /* Copy block src to dst, all layers (a shared prefix block that is about to be written). */
    void (*kv_copy)(imp_exec *x, uint32_t dst, uint32_t src);
    void (*exec_free)(imp_exec *x);
    void (*close)(imp_device *d);

    /* What follows is optional; NULL: the device does not offer it. */
    /* One KV block between the device and host memory; complete on return. Host layout, the same for all devices:
     * [kv layer][k|v][n_kv_head][IMP_KV_BLOCK][head_dim] in the limits' kv_dtype (q8_0 and q4_0: the blocks of files,
     * 32 elements of a head each; 4-bit keys rotated, their values q8_0), imp_dev_kv_block_bytes in all;
     * positions that were never written hold anything. Called by the thread that calls run, between runs. */
    imp_status (*kv_export)(imp_exec *x, uint32_t block, void *host, imp_error *err);
    imp_status (*kv_import)(imp_exec *x, uint32_t block, const void *host, imp_error *err);
    /* A stage: memory of x's device through which KV blocks pass to `to`, on another device, without the host's; bytes of it,
     * or NULL: unlike devices or caches, out of each other's reach, no room. */
    void *(*kv_stage)(imp_exec *x, imp_exec *to, uint64_t bytes);
    void (*kv_stage_free)(imp_device *d, void *stage);
    /* n blocks between a cache and a place in a stage, one after another, imp_dev_kv_block_bytes each; out: from the cache.
     * Complete on return. As kv_export and kv_import, which know nothing of stages. */
    imp_status (*kv_staged)(imp_exec *x, const uint32_t *block, uint32_t n, void *stage, bool out,
                            imp_error *err);
    /* Nanoseconds the last run took by the device's own clock (a GPU's events, a virtual clock). NULL: the caller's
     * clock around run is right. */
    uint64_t (*last_ns)(const imp_exec *x);
    /* Row 0 of value v as the last run computed it, with limits.keep; row r is *stride floats further each. NULL: v is a
     * weight. */
    const float *(*value)(const imp_exec *x, imp_val v, uint64_t *stride);
    /* Behind a run with batch.top: the best columns of row `row` of its result, valid until the next call of top or run;
     * columns that mask does not have (bit i % 32 of word i / 32; NULL: it has all) count as -inf. Both or none. */
    imp_status (*top)(imp_exec *x, uint32_t row, const uint32_t *mask, imp_dev_top *out, imp_error *err);
    /* Behind a run with batch.top: the whole row, valid until the next run. */
    imp_status (*row)(imp_exec *x, uint32_t row, const float **out, imp_error *err);
    /* true: it failed for good, and refuses everything until it is opened anew; text: why. NULL: that does not happen. */
    bool (*lost)(const imp_device *d, char *text, size_t cap);
    /* Bytes of memory of its own that are free now; NULL: it uses the machine's. */
    uint64_t (*mem_free)(const imp_device *d);
    /* An executable that is made ready in the background, or may stop being so: OK, it can run; NOT_READY, it is being
     * prepared; else it never will again. text: what it does or why not. wait: until it is no longer being prepared. run
     * answers DEVICE at once while it is not ready. NULL: what compile gave is ready. */
    imp_status (*state)(imp_exec *x, bool wait, char *text, size_t cap);
    /* What the vendor's framework says of where the last run's work is done, for receipts; "": nothing is known. NULL: the
     * device is one unit. */
    void (*ran_on)(const imp_exec *x, char *text, size_t cap);
    /* Tokens that a sequence of n is computed as, where shapes are fixed; NULL: n. */
    uint32_t (*padded)(const imp_device *d, uint32_t n);
    /* In steps of up to this many rows a row's bits do not depend on what else is in the step, nor on how many rows its
     * sequence has there; 0: no such promise. */
    uint32_t same_rows;
    /* Tokens of the longest sequence it takes; NULL: any. */
    uint32_t (*max_ctx)(const imp_device *d);
    /* Who computes the graph's OUTSIDE nodes; before the first run, which fails with what fn answers. NULL: the device runs
     * no such graphs. */
    void (*outside)(imp_exec *x, const imp_outside *o);
    /* member[0..n-1] are executables of devices of this kind whose graphs are the members of one (imp_graph_shard); from now
     * on their ALLREDUCE sum over all of them, and their runs come together, each by a thread of its own, between
     * imp_group_start of one and the next. Called for every rank before any runs. A run that the group gave up answers
     * CANCELLED. NULL: the device cannot share a graph. */
    imp_status (*join)(imp_exec *const *member, uint32_t n, uint32_t rank, struct imp_group *g,
                       imp_error *err);
} imp_device_ops;

struct imp_device {
    const imp_device_ops *ops;
    char name[64]; /* "cpu0" */
};
struct imp_exec {
    imp_device *dev;
};

/* Bytes of one block in the host layout of kv_export; 0: the graph has no cache. */
uint64_t imp_dev_kv_block_bytes(const imp_graph *g, imp_dtype kv_dtype);

/* n_thread 0: one a physical core. */
IMP_MUST_USE imp_status imp_dev_cpu_open(uint32_t n_thread, imp_device **out, imp_error *err);
IMP_MUST_USE imp_status imp_dev_ref_open(imp_device **out, imp_error *err);
/* "cpu", "cuda1", or several with one model between them: "cuda0+cpu0", "cuda0/cuda1" (see dev.c). NOT_FOUND lists the kinds there are. */
IMP_MUST_USE imp_status imp_dev_open(const char *name, uint32_t n_thread, imp_device **out, imp_error *err);

#endif
