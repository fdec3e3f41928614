/* plan/place.h - which unit prefills and which decodes a request: every unit, every ordered pair.
 *
 * Place:   layer 5; the engine asks it for each request, `plan` and `explain` print what it answers.
 * Idea:    price every candidate with what the units have learned and what is queued on them, leave out what cannot be,
 *          take the cheapest; keep to the last choice of the same class unless the gain is worth it; now and then try
 *          what is not known well, within a budget.
 *          The price of a candidate is the time this request takes plus the delay it causes to those already there.
 * Always:  no candidate is dropped without a reason; a decision allocates nothing.
 * Threads: none of its own; the caller locks. */
#ifndef IMP_PLACE_H
#define IMP_PLACE_H

#include "plan/learn.h"

enum {
    IMP_PLACE_UNITS = 8,
    IMP_PLACE_CAND = IMP_PLACE_UNITS * IMP_PLACE_UNITS,
    IMP_PLACE_CLASSES = 64,
    IMP_PLACE_SHADOW_GEN = 4
};

typedef enum imp_policy { IMP_POLICY_LATENCY, IMP_POLICY_THROUGHPUT, IMP_POLICY_ENERGY } imp_policy;
/* false: no such policy. */
bool imp_policy_from_name(const char *name, imp_policy *out);
const char *imp_policy_name(imp_policy p);

/* One unit as it stands now, for one model. */
typedef struct imp_place_unit {
    const char *name;
    imp_learn *learn;     /* borrowed */
    const char *excluded; /* NULL: it can take this model; else why not */
    uint32_t n_ctx;       /* what its instance of the model holds */
    double free_tok;      /* tokens its cache has room for */
    double queued_tok;    /* prompt tokens accepted and not computed yet */
    double queued_s;      /* what those take, as predicted when they came */
    double n_decode;      /* sequences that generate here, or will: */
    double n_coming;      /* those of them whose prompts are not computed yet, here or elsewhere */
    double n_prefill;     /* requests that wait for or are in their prefill */
    bool can_export, can_import;
    bool prefill_only; /* it reads prompts, of at most n_ctx - 1 tokens, but does not generate (dev.h) */
    double pad; /* embeddings, prefill_only: tokens it computes for each one, where shapes are fixed; 0: 1 */
    bool adapters; /* it runs them */
    bool loaded;   /* else the first request pays load_s */
    double load_s;
} imp_place_unit;

typedef struct imp_place_request {
    uint64_t model; /* any number that names the model */
    const imp_cost *cost;
    bool embed;
    uint32_t n_prompt, n_gen; /* n_gen: expected */
    uint32_t n_input;         /* texts of an embedding, 0: one */
    uint32_t n_need;          /* tokens the context must hold */
    uint32_t chunk;           /* prompt tokens a step */
    bool adapters;            /* it has some */
    const char *only;         /* every phase on this unit, or "a>b": prefill on a, decode on b; NULL: free */
} imp_place_request;

typedef struct imp_candidate {
    uint8_t prefill, decode;                /* units */
    const char *excluded;                   /* NULL: possible */
    double wait_s, ttft_s, tpot_s, total_s; /* total: with what it costs the others; by policy */
    double lo_s, hi_s;                      /* of ttft + n_gen * tpot */
    double joules;                          /* < 0: not known */
    bool metered;       /* joules follow from a power that was measured or, for a simulated unit, published */
    double bytes, flop; /* of the whole request */
    double kv_bytes, moved_s,
        exposed_s; /* hand-over of the cache: all of it, and what prefill does not hide */
    imp_bound prefill_bound, decode_bound;
    double reached
        [2]; /* of prefill and decode: share of the unit's bandwidth or peak, by what binds; 0: starting does */
    uint32_t n_sample;
    double age_s; /* since a unit of it was last taught, the longer; < 0: one never was */
    double sd;
} imp_candidate;

typedef struct imp_place_class {
    uint64_t key;
    uint8_t prefill, decode;
    uint64_t used; /* for eviction */
} imp_place_class;

typedef struct imp_placer {
    imp_policy policy;
    double watt_cap;  /* 0: none; ENERGY and others leave out units above it */
    double joule_cap; /* 0: none; what is known to take more for a request is left out */
    double pace; /* prompts may make a step that also generates this much longer (sched.h); 0: no limit */
    double hysteresis; /* gain that a change must bring, as a share */
    double explore;    /* share of predicted device time that may go to trying */
    double spent_s, explored_s;
    double prefill_s[IMP_PLACE_UNITS],
        service_s; /* of the last requests, smoothed: prefill by unit, and in all */
    imp_place_class last[IMP_PLACE_CLASSES];
    uint64_t n_choice;
} imp_placer;

typedef struct imp_choice {
    imp_candidate cand[IMP_PLACE_CAND];
    uint32_t n_cand;
    int chosen;    /* -1: nothing is possible */
    int runner_up; /* -1: none */
    double margin; /* runner-up's price over the chosen one's, minus 1 */
    int shadow; /* a unit worth trying on the side (idle and not known well), -1: none. The caller may run a copy of the
                   prompt's first chunk there, with IMP_PLACE_SHADOW_GEN tokens, and say so */
    double shadow_s; /* what that is predicted to take */
    bool kept;       /* the class's last choice was kept within the hysteresis */
} imp_choice;

/* Settings that rule units out whatever was measured; all 0: none does. */
typedef struct imp_place_rules {
    int embeddings_on_npu; /* 1: only there, -1: never */
    int gpu_matrix_units;  /* -1: expect only the plain f32 rate of a GPU that was not measured */
    uint32_t max_npu_model_mb;
} imp_place_rules;
/* Why a unit of this kind may not have the work; NULL: it may. has_npu: there is one among the units. */
const char *imp_place_ruled_out(const imp_place_rules *s, imp_unit_kind kind, bool has_npu, const imp_cost *c,
                                bool embed);
/* What gpu_matrix_units makes of a machine's numbers. */
void imp_place_rule_machine(const imp_place_rules *s, imp_machine *m);

/* Is this pair what `only` means? NULL: that phase may be anywhere. */
bool imp_place_meant(const char *only, const char *prefill, const char *decode);
void imp_placer_init(imp_placer *p);
void imp_place(imp_placer *p, const imp_place_request *r, const imp_place_unit *u, uint32_t n_unit,
               imp_choice *out);
/* The caller did run the copy. */
void imp_place_explored(imp_placer *p, double s);
/* Seconds of a prompt's prefill in chunks; cold: on a unit that stands idle. */
double imp_place_prefill_s(const imp_learn *l, const imp_cost *c, uint32_t n_prompt, uint32_t chunk,
                           bool cold, imp_cost_time *out);

#endif
