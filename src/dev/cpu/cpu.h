/* dev/cpu/cpu.h - the inside of the CPU device: buffers, ops, executable.
 *
 * Place:   lower.c (graph -> ops), place.c (phases, liveness, offsets), weights.c (packing), run_*.c (the ops at work),
 *          cpu.c (the vtable).
 * Idea:    an executable is a flat list of ops over one scratch region. Ops between two barriers form a phase, cut into
 *          shares that threads claim; a share does its part of each of the phase's ops in turn. Consecutive ops that cut
 *          their work the same way (same rows, or same columns) need no barrier between them: a share reads what it wrote
 *          itself.
 * Always:  a share says which elements are computed, never how, so that results do not depend on the number of threads or
 *          shares, on who does one, on the batch or on chunking. */
#ifndef IMP_DEV_CPU_H
#define IMP_DEV_CPU_H

#include "base/thread.h"
#include "dev/dev.h"
#include "kern/kern.h"
#include "kern/kv.h"

/* Rows that a share of a step of an encoder has at least when rows are dealt out: what it computes of them stays in its
 * second-level cache from op to op, and weights come from the cache that all share. */
enum { CPU_WIDE_ROWS = 64, CPU_MAX_SHARES = 16 }; /* shares a thread */

/* Heads of sequences, for each thread, whose keys may be cut into chunks of work. */
enum { CPU_SPLIT_SLOTS = 4 };

typedef struct cpu_exec cpu_exec;
typedef struct cpu_op cpu_op;

typedef struct cpu_device {
    imp_device base;
    imp_pool *pool;
    imp_mutex *lock; /* the pool has one caller at a time: run, or packing in compile */
    uint32_t n_thread;
    uint64_t alone_work; /* multiply-adds below which a step runs on the caller alone */
    const imp_vec *vec;
    const imp_attn *attn;
} cpu_device;

/* A piece of scratch that lives over some phases. */
typedef struct cpu_buf {
    uint64_t bytes;       /* 0: only orders ops (a layer of the KV cache) */
    uint32_t first, last; /* phases */
    uint64_t at;          /* offset in the shared scratch */
    uint32_t n_pending;   /* lowering: references by nodes that are still to come */
} cpu_buf;

/* Rows in a buffer: row r at p + r * stride. Byte sizes; p is set when the scratch is there. */
typedef struct cpu_view {
    uint32_t buf;
    uint64_t off, stride;
    uint8_t *p;
} cpu_view;

typedef enum cpu_split {
    CPU_ROWS, /* whole rows */
    CPU_COLS, /* all rows, columns in multiples of step */
    CPU_WIDE, /* columns; whole rows when every share has enough of them (encoders: few weights, many rows) */
    CPU_AUTO, /* whole rows when there is one for every share, else columns */
    CPU_OWN   /* the op's own business; always alone in its phase with what it reads and writes */
} cpu_split;

/* What one share does of an op. */
typedef struct cpu_part {
    uint32_t r0, r1;
    uint32_t c0, c1;
    uint32_t share; /* of s->n_share */
} cpu_part;

/* Consecutive rows that use the same adapters. */
typedef struct cpu_lora_run {
    uint32_t r0, r1;
    const imp_adapter_use *use;
    uint32_t n_use;
} cpu_lora_run;

typedef struct cpu_step {
    cpu_exec *x;
    const imp_batch *b;
    const imp_vec *vec;
    uint32_t n_row[3]; /* by imp_rows */
    uint32_t n_share;
    bool lora;              /* some sequence has an adapter */
    uint32_t n_lora_run[3]; /* in x->lora_run, by imp_rows */
} cpu_step;

/* A matrix, or one for each expert, as its kernel wants it. */
typedef struct cpu_weight {
    const imp_matmul *mm;   /* NULL: this value is not multiplied with */
    const imp_tensor *part; /* borrowed */
    uint32_t n_part;
    uint64_t at, part_bytes; /* place in the weights region; 0 bytes: used in place */
} cpu_weight;

struct cpu_op {
    void (*run)(const cpu_step *s, const cpu_op *op, cpu_part part, uint32_t ith);
    const imp_node *node;
    bool barrier;   /* before this op */
    bool reads_all; /* every share reads whole inputs, so that they must be complete before */
    cpu_split split;
    imp_rows rows;
    uint32_t row_mul; /* rows of the op = rows of the kind * row_mul (experts a row) */
    uint32_t n, step; /* columns, and the multiple in which they are dealt out */
    uint32_t n_in;
    cpu_view in[4];
    cpu_view out;
    cpu_view q8; /* ATTN: also as int8 when buf is not 0 */
    union {
        struct {
            const cpu_weight *w;
            imp_val bias;
            imp_val
                layer; /* the node's value; in 1, where adapters are possible: A x from column `slot` on */
            uint32_t slot;
        } mm; /* LINEAR, one matrix an expert in MOE */
        struct {
            const imp_val *layer; /* [n] LINEAR nodes that read in 0 */
            uint32_t n;
        } down; /* A x of adapters, lora_rank columns for each of them */
        struct {
            imp_val layer;
        } embed;
        struct {
            imp_val w, b;
        } norm;
        struct {
            uint64_t at; /* bytes from a block's start to this layer's keys or values */
            uint32_t head_dim;
            imp_kv_part part;
        } kv;
        struct {
            uint64_t at[2]; /* keys, values */
            imp_val sink;
            uint32_t tile;
        } attn;
        imp_act act;
        float c;
    } u;
};

struct cpu_exec {
    imp_exec base;
    const imp_graph *graph; /* borrowed */
    imp_limits lim;
    struct imp_group *group; /* borrowed; of a divided graph; NULL: alone */
    uint32_t rank;
    imp_outside outside;
    imp_status outside_status; /* of this run */
    imp_error outside_err;
    imp_arena *arena; /* ops, tables */
    cpu_op *op;       /* [n_op] */
    uint32_t n_op;
    uint32_t *phase_op; /* [n_phase + 1] first op of each phase */
    uint32_t n_phase;
    imp_phases *phases; /* made by compile */
    /* The phases of a step without adapters, and their own list; NULL: all of them */
    imp_phases *plain;
    uint32_t *plain_phase; /* [n_plain] */
    uint32_t n_plain;
    cpu_lora_run *lora_run[3]; /* by imp_rows; of the step that runs */
    uint64_t lora_at;          /* in a thread's own scratch */
    cpu_buf *buf;              /* [n_buf]; 0 is unused */
    uint32_t n_buf;
    cpu_view out;
    cpu_view *value;      /* [n node + 1] where each value lies; only with limits.keep */
    cpu_weight *weight;   /* [n node + 1] */
    const float **vector; /* [n node + 1] weights of one row as f32; NULL: not used so */
    uint64_t *vector_at;  /* [n node + 1] place in the weights region */
    uint64_t kv_block_bytes;
    uint64_t row_work[3]; /* multiply-adds of the weights a row of each kind meets */

    uint64_t weights_bytes, mapped_bytes, kv_bytes, shared_bytes, thread_bytes, scratch_bytes;
    struct cpu_pack *pack; /* the weights region, shared with other executables of the graph; one reference */
    uint8_t *weights, *kv,
        *scratch; /* weights: the pack's; the others owned pages; thread i's own part is at shared_bytes + i * thread_bytes */
    /* in the scratch, behind the threads: attention over long pasts cut into chunks, see run_attn.c */
    uint64_t part_at, slot_bytes; /* [n_slot] parts of all chunks of one sequence's KV head */
    uint64_t done_at;             /* u32 [n_slot]: chunks that are there; 0 between steps */
};

/* Fill everything of x but the three regions. The same code serves plan and compile. */
IMP_MUST_USE imp_status imp_cpu_lower(const cpu_device *d, cpu_exec *x, imp_error *err);
/* Sizes and places of weights; called by imp_cpu_lower. */
IMP_MUST_USE imp_status imp_cpu_choose_weights(const cpu_device *d, cpu_exec *x, imp_error *err);
/* x->weights: taken over from another executable of the same graph, of whatever device, or made; uses the pool. */
IMP_MUST_USE imp_status imp_cpu_pack_weights(cpu_device *d, cpu_exec *x);
void imp_cpu_pack_release(cpu_exec *x);
/* Is the graph's pack there already, so that one more executable costs no weights? */
bool imp_cpu_pack_exists(const imp_graph *g);
/* Offsets of all buffers; returns the bytes they need together. */
uint64_t imp_cpu_place(cpu_exec *x);
/* ---- adapters: run_lora.c ---- */
/* Bytes of a thread's own scratch for them. */
uint64_t imp_cpu_lora_bytes(uint32_t lora_rank);
/* Which rows of the step use which: fills x->lora_run, s->lora and s->n_lora_run. */
void imp_cpu_lora_runs(cpu_exec *x, cpu_step *s);
/* What the adapters of a LINEAR's or EMBED's rows add to the part that was just computed. */
void imp_cpu_lora_up(const cpu_step *s, const cpu_op *op, cpu_part part, uint32_t ith);
void imp_cpu_lora_embed(const cpu_step *s, const cpu_op *op, cpu_part part, uint32_t ith);
/* Which rows and columns a share is. */
cpu_part imp_cpu_part(const cpu_step *s, const cpu_op *op, uint32_t share);

/* The part of n units that is share i of n_share. */
static inline void imp_cpu_share(uint64_t n, uint32_t i, uint32_t n_share, uint64_t *from, uint64_t *to)
{
    *from = n * i / n_share;
    *to = n * (i + 1) / n_share;
}
static inline float *imp_cpu_row(cpu_view v, uint64_t r)
{
    return (float *)(void *)(v.p + r * v.stride);
}
static inline void *imp_cpu_thread_scratch(const cpu_exec *x, uint32_t ith)
{
    return x->scratch + x->shared_bytes + ith * x->thread_bytes;
}

typedef struct cpu_route {
    uint32_t expert;
    float weight;
} cpu_route;

/* Ops; in and out are named where lower.c emits them. ith: the thread at work, whose scratch it is. */
#define IMP_CPU_RUN(name)                                                                                    \
    void imp_cpu_run_##name(const cpu_step *s, const cpu_op *op, cpu_part part, uint32_t ith)
IMP_CPU_RUN(input);
IMP_CPU_RUN(embed);
IMP_CPU_RUN(linear);
IMP_CPU_RUN(lora_down);
IMP_CPU_RUN(quant);
IMP_CPU_RUN(rms_norm);
IMP_CPU_RUN(layer_norm);
IMP_CPU_RUN(l2_norm);
IMP_CPU_RUN(add);
IMP_CPU_RUN(mul);
IMP_CPU_RUN(scale);
IMP_CPU_RUN(softcap);
IMP_CPU_RUN(act);
IMP_CPU_RUN(glu);
IMP_CPU_RUN(copy);
IMP_CPU_RUN(gather);
IMP_CPU_RUN(allreduce);
IMP_CPU_RUN(outside);
IMP_CPU_RUN(pool);
IMP_CPU_RUN(rope_table);
IMP_CPU_RUN(rope);
IMP_CPU_RUN(kv_store);
IMP_CPU_RUN(attn);
IMP_CPU_RUN(moe_route);
IMP_CPU_RUN(moe_sort);
IMP_CPU_RUN(moe_gather);
IMP_CPU_RUN(moe_linear);
IMP_CPU_RUN(moe_combine);

#endif
