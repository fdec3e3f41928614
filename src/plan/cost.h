/* plan/cost.h - what a step of a graph costs on a unit, predicted from the graph itself.
 *
 * Place:   layer 5; used by place, plan, explain, calibrate and the simulated devices' clocks.
 * Idea:    t = launches * t_l + sync + sum over ops of (flop / (e_c * peak) with bytes / (e_b * bandwidth)) + rows. "With" is
 *          the greater of the two and a share of the lesser one: none on units that fetch ahead while they compute; a CPU's
 *          kernels wait for what comes from memory, so there it is all. "Rows" is what a product does beside multiplying, once for each number it
 *          takes in and puts out (rounding to int8, adding up lanes, storing). The graph is folded once into a short list of
 *          distinct ops with counts, so that a prediction takes microseconds. Corrections learned from real steps (learn.h)
 *          multiply each of these times. */
#ifndef IMP_COST_H
#define IMP_COST_H

#include "graph/graph.h"
#include "dev/dev.h"
#include "plan/machine.h"

enum { IMP_COST_ITEMS = 48 };

typedef struct imp_cost_item {
    imp_op op;
    imp_dtype dtype; /* of the weight, IMP_DTYPE_NONE without one */
    imp_rows rows;
    uint32_t count;                   /* nodes of this shape */
    uint64_t n, k;                    /* LINEAR and MOE: outputs and inputs; else n: width */
    double weight_bytes, weight_elem; /* of one node, all experts */
    uint32_t n_expert, n_used;
    uint32_t head_dim, n_head, n_kv_head, window; /* ATTN */
    bool cached;
} imp_cost_item;

typedef struct imp_cost {
    imp_cost_item item[IMP_COST_ITEMS];
    uint32_t n_item;
    uint32_t n_launch;    /* ops a step starts */
    double weight_bytes;  /* all weights that are multiplied with */
    double kv_bytes_tok;  /* cache bytes a token adds */
    double kv_elem_bytes; /* the mean of keys and values, scales included */
    bool vectors;         /* the graph ends in vectors: a CPU multiplies them with finer activations */
    uint32_t id;          /* hash of the ops: graphs of the same shapes and types share it; 0: no model's */
} imp_cost;

/* What a step computes. Sums over its tokens and sequences. */
typedef struct imp_cost_shape {
    double n_tok, n_out, n_seq;
    double keys;   /* sum over tokens of the keys each attends to */
    double kv_tok; /* sum over sequences of the cache length after the step */
    bool cold;     /* the unit stood idle before: threads asleep, weights gone from the caches */
    bool after;    /* one of the first IMP_COST_AFTER steps that generate behind a prompt */
} imp_cost_shape;

/* What a prompt has pushed out of the caches comes back over several steps. */
enum { IMP_COST_AFTER = 4 };

typedef enum imp_bound {
    IMP_BOUND_MEMORY,
    IMP_BOUND_COMPUTE,
    IMP_BOUND_LAUNCH,
    IMP_BOUND_TRANSFER
} imp_bound;
const char *imp_bound_name(imp_bound b);

typedef struct imp_cost_time {
    double s;  /* seconds */
    double sd; /* standard deviation of log(actual / s) */
    double flop, bytes;
    double memory_s, compute_s,
        launch_s;    /* parts of s: waiting for memory, computing, starting ops and the step */
    double wake_s;   /* part of launch_s: getting going after a pause */
    double in_cache; /* the share of the weights that lies in caches from step to step */
    imp_bound bound;
    uint32_t n_sample; /* least number of observations behind the large shares */
} imp_cost_time;

/* kv_dtype: a type of cache. Ops of unlike shape beyond the table's room are added to the nearest of their kind. */
void imp_cost_build(const imp_graph *g, imp_dtype kv_dtype, imp_cost *out);
imp_cost_shape imp_cost_shape_of(const imp_batch *b, bool cached);
/* One sequence's chunk of n_tok tokens behind n_past. */
imp_cost_shape imp_cost_shape_chunk(uint32_t n_tok, uint32_t n_past, uint32_t n_out);
/* n_input inputs of an embedding, n_tok tokens together, alike in length. */
imp_cost_shape imp_cost_shape_embed(double n_tok, double n_input);
/* n_seq sequences that each compute one token behind `past`. */
imp_cost_shape imp_cost_shape_decode(double n_seq, double past);
/* Seconds of one item (count included) without any correction. */
typedef struct imp_cost_terms {
    double compute_s, memory_s, row_s;
} imp_cost_terms;
/* What the two add up to: see the top. */
static inline double imp_cost_together(const imp_machine *m, double compute_s, double memory_s)
{
    return IMP_MAX(compute_s, memory_s) + m->f[IMP_F_WAITS].v * IMP_MIN(compute_s, memory_s);
}
imp_bound imp_cost_bound(const imp_cost_time *t);
/* Fills item[n_item] and of *out flop, bytes, in_cache, launch_s (launches and sync) and wake_s; the caller sums the times. */
void imp_cost_base(const imp_cost *c, const imp_machine *m, const imp_cost_shape *sh, imp_cost_terms *item,
                   imp_cost_time *out);
/* The sum, as the machine's numbers have it; sd is what their ranges imply. */
void imp_cost_predict(const imp_cost *c, const imp_machine *m, const imp_cost_shape *sh, imp_cost_time *out);

#endif
