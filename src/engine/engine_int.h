/* engine/engine_int.h - the inside of engines and models, shared by the files of this folder.
 *
 * Idea:    an engine has units (a device, its scheduler thread, what it learned); a model has an instance on each unit
 *          that may serve it (compiled graphs and a scheduler). One unit is the common case and takes no decisions.
 * Threads: engine.lock guards the lists, instances' existence and moves of jobs; place_lock the placer and what was
 *          learned and, with engine.lock, changes of instances; a unit's device_lock its device. Order: open_lock,
 *          device_lock, lock, place_lock or a scheduler's own. */
#ifndef IMP_ENGINE_INT_H
#define IMP_ENGINE_INT_H

#include <stdatomic.h>

#include "base/thread.h"
#include "dev/dev.h"
#include "engine/folder.h"
#include "model/net.h"
#include "plan/fit.h"
#include "plan/meter.h"
#include "plan/place.h"
#include "plan/store.h"
#include "sched/sched.h"
#include "text/chat.h"
#include "text/jinja.h"
#include "text/toolcall.h"

/* Beside a prompt a step that generates may take this much longer, and embeddings may take this share of its time. */
#define IMP_PACE        1.4
#define IMP_EMBED_SHARE 0.25

enum { IMP_MAX_ADAPTER = 64 }; /* known at once */

enum { MAX_MODEL = 64, MAX_UNIT = IMP_PLACE_UNITS, MAX_RECORD = 256 };

typedef struct imp_unit {
    imp_engine *engine;
    uint32_t index;
    imp_device *device; /* owned */
    imp_thread *thread;
    imp_mutex *device_lock; /* one user of the device: a step or a compile */
    imp_cond *work;         /* a request came, a model leaves, or quit; with engine.lock */
    imp_learn learn;        /* place_lock */
    bool asleep;            /* its thread waits for work; engine.lock */
    bool only_forced;       /* the slow reference */
    bool only_large;        /* for models that no single device takes */
    uint64_t last_step_ns;  /* its thread only, as the next one: when the last step ended */
    double bytes[2];        /* of a step, by phase */
    double lane_s;    /* its thread only: time that embeddings may take beside sequences that generate */
    imp_power power;  /* its thread only */
    imp_meter *meter; /* owned; NULL: why_unmetered */
    char why_unmetered[128];
    uint64_t failed_ns; /* place_lock; when it last failed; 0: never */
    uint32_t n_fail;
    char why_failed[160]; /* place_lock; the last time */
    uint32_t n_learned;   /* lessons since the store was written */
} imp_unit;

/* It has failed, and its device says that this is for good. place_lock held. */
bool imp_unit_lost(const imp_unit *u);

typedef struct imp_instance {
    imp_unit *unit;
    imp_model *model;
    imp_fit fit;
    imp_exec *generate, *embed;
    imp_sched *sched;    /* NULL: the model is not on this unit */
    imp_lessons lessons; /* the unit's thread only, as the next one */
    bool ran[2]; /* a step that generates or reads prompts, one that embeds: the first teaches nothing */
    uint32_t after_left; /* steps that generate and still follow its last prompt closely (cost.h) */
    uint32_t n_using;    /* calls that hold it to submit; engine.lock */
    char why_not[160];
    char not_ready[160]; /* what the device does before it can run the model; place_lock */
} imp_instance;

struct imp_model {
    imp_engine *engine;
    imp_model_info info; /* strings owned by id, path or net */
    char *id, *path;
    imp_net *net;
    struct imp_constraints *constraints;
    imp_jinja *template;   /* the model's own chat template; NULL: none, or not understood */
    imp_toolfmt *toolfmt;  /* how it writes calls and thoughts; NULL: no template */
    imp_error no_template; /* why it is not understood; status OK: there is none */
    imp_chat_family chat;  /* for a model without a template: what its control tokens say */
    char template_id[32];  /* "chatml", "jinja"; "": chat is refused */
    imp_instance inst[MAX_UNIT];
    bool join[MAX_UNIT]; /* opened later, when the model is registered */
    uint32_t home;       /* the unit whose instance gives info and memory */
    imp_cost cost_generate, cost_embed;
    uint32_t
        n_coming[MAX_UNIT];  /* requests that will generate on the unit and prefill elsewhere; place_lock */
    double mean_gen;         /* tokens an answer has, smoothed; place_lock */
    bool leaving;            /* to be taken out by the scheduler threads */
    uint32_t n_going;        /* instances taken out that are not freed yet; engine.lock */
    uint32_t n_ref;          /* given out, and instances being opened; engine.lock */
    struct imp_known *known; /* NULL: loaded without the catalog */
    bool pinned;             /* engine.lock, like the next two */
    double keep_s;
    uint64_t used_ns;
    imp_adapter *adapter
        [IMP_MAX_ADAPTER]; /* owned references by number; NULL: not its, or gone; engine.lock once it is
                                              registered */
    uint32_t lora_rank;    /* room for them; 0: it has none */
    uint64_t mem_cap;      /* of the memory there is, this much for it; 0: all */
    imp_model *next;       /* in engine.gone */
};

/* What is remembered of a request: the choice and what came of it. */
typedef struct imp_record {
    const imp_engine *engine; /* borrowed */
    uint64_t id;
    char model[64];
    imp_request_kind kind;
    uint32_t n_prompt, n_gen; /* expected */
    int64_t at;               /* Unix seconds */
    uint32_t n_unit, n_cand;
    char unit[MAX_UNIT][64];
    uint8_t simulated;     /* bit per unit */
    int chosen, runner_up; /* -1: there was no choice */
    double margin, queue_ms;
    bool kept;
    uint64_t decide_ns;
    uint32_t device[2];    /* units that ran prefill and decode */
    double predicted_s[2]; /* prefill, one decode step */
    imp_sched_phase phase[2];
    double watt[2];
    bool coming; /* counted in the model's n_coming; place_lock */
    imp_sched_handover handover;
    uint32_t n_cached, n_restored, n_drafted, n_accepted;
    double restore_ms;
    char fallback[160]; /* "": it ran as chosen */
    char ran_on[96];    /* what the device's framework says of where it works; "": one unit */
    bool stored;
    char why[MAX_UNIT][96]; /* copies of reasons that belong to the model */
    imp_finish finish;
    imp_candidate cand[]; /* [n_cand] */
} imp_record;

/* A unit that will join a model. */
typedef struct imp_later {
    imp_model *model;
    imp_unit *unit;
} imp_later;

struct imp_engine {
    imp_engine_config config; /* strings: not kept, but for the copies below */
    imp_dtype kv_dtype;
    imp_unit *unit[MAX_UNIT]; /* owned */
    uint32_t n_unit;
    imp_mutex *lock;
    imp_cond *left; /* a model has left */
    struct imp_catalog *catalog;
    struct imp_known_adapter *adapters[IMP_MAX_ADAPTER]; /* by number, owned; NULL: free; engine.lock */
    uint64_t mem_at_start;                               /* what the machine had available before any model */
    imp_model *model[MAX_MODEL];
    size_t n_model;
    imp_model *gone; /* unloaded, but references are left */
    bool quit;
    _Atomic uint64_t next_id;
    imp_stats past;       /* of models that were unloaded */
    imp_mutex *open_lock; /* one instance is opened at a time */
    imp_thread *opener;   /* NULL: nothing had to be opened later yet; engine.lock */
    imp_cond *later_work; /* with engine.lock */
    imp_later later[MAX_MODEL];
    size_t n_later;
    imp_mutex *place_lock;
    imp_placer placer;
    imp_mutex *record_lock;
    imp_record *record[MAX_RECORD]; /* ring, owned */
    uint64_t n_record;
    imp_thread *clerk;      /* writes records to the store; NULL: there is none */
    imp_cond *to_store;     /* a record was kept, or no more come; with record_lock */
    bool last_is_kept;      /* no more come; record_lock */
    imp_store *store;       /* NULL: nothing is kept */
    imp_kv_store *kv_store; /* caches on disk; NULL: none */
    uint64_t process_bytes; /* resident before any model, and what requests add */
};

/* Find out how chats are written for this model; NOMEM only. */
imp_status imp_model_init_chat(imp_model *m, imp_error *err);
/* What config and machine allow, for imp_fit_compute. */
imp_fit_want imp_engine_want(imp_engine *e);
/* The same for m, with its adapters. */
imp_fit_want imp_model_want(const imp_model *m);

/* ---- adapters.c ---- */
/* Load the known adapters of m, whose net is open and which nobody else sees yet. */
IMP_MUST_USE imp_status imp_adapters_load(imp_model *m, imp_error *err);
void imp_adapters_drop(imp_model *m); /* before its net is closed */
void imp_adapters_free(imp_engine *e);
/* References to those that every request of m gets; how many. */
size_t imp_adapters_always(imp_model *m, imp_adapter_use use[IMP_MAX_ADAPTER]);

/* ---- units.c ---- */
IMP_MUST_USE imp_status imp_units_open(imp_engine *e, const char *spec, imp_error *err);
void imp_units_close(imp_engine *e);
imp_unit *imp_unit_find(const imp_engine *e, const char *name);
imp_place_rules imp_unit_rules(const imp_engine *e);

/* Hold a model's scheduler on a unit so that it does not go meanwhile; NULL: it is not there or goes. */
imp_sched *imp_instance_hold(imp_model *m, uint32_t unit);
void imp_instance_unhold(imp_model *m, uint32_t unit, bool wake);

/* ---- model.c ---- */
void imp_instance_free(imp_instance *x); /* its unit's thread, or none left */
void imp_model_free(imp_model *m);       /* not registered any more, no instance left running */
/* Compile the model for a unit. Its error is kept in why_not. */
imp_status imp_instance_open(imp_model *m, imp_unit *u, imp_error *err);

/* Has it no requests and no references? engine.lock held. */
bool imp_model_idle(const imp_model *m);
/* Open, fit, compile and register; known: its line of the catalog, or NULL. With a line *out is a reference. */
IMP_MUST_USE imp_status imp_model_load(imp_engine *e, const char *path, const char *id,
                                       struct imp_known *known, imp_model **out, imp_error *err);
/* The model goes; engine.lock held, let go while waiting for its threads. */
void imp_model_unload_locked(imp_model *m);

/* ---- room.c ---- */
/* What m may take on u beside all that the others hold. */
uint64_t imp_room(const imp_model *m, const imp_unit *u);
/* Before m is placed: unload others until it fits. NO_FIT when it does not fit alone either. */
IMP_MUST_USE imp_status imp_room_make(imp_model *m, imp_error *err);

/* ---- catalog.c ---- */
IMP_MUST_USE imp_status imp_catalog_new(imp_engine *e, imp_error *err);
void imp_catalog_stop(imp_engine *e); /* engine.quit is set: who waits is told, its thread ends */
void imp_catalog_free(imp_engine *e);
void imp_catalog_note(imp_model *m); /* engine.lock held: a request or reference ended, it may be idle now */
/* For room.c, all with engine.lock held. The least recently used model on u that may go: an idle one, or any. */
imp_model *imp_catalog_victim(imp_engine *e, const imp_unit *u, bool idle);
void imp_catalog_retire(imp_model *m); /* no new requests, so that it becomes idle */
void imp_catalog_wait(imp_engine *e, uint32_t ms);
bool imp_catalog_is_wanted(const struct imp_known *k); /* somebody still waits for it */
void imp_catalog_evict(imp_model *m, const char *why);
void imp_catalog_forget(imp_model *m); /* it is unloaded by somebody else */
size_t imp_catalog_n(const imp_engine *e);
/* Another name for a model comes or goes; engine.lock held. false: the name is taken, or no memory. */
bool imp_catalog_name(imp_engine *e, const char *name, const char *id);
void imp_catalog_unname(imp_engine *e, const char *name);
const char *imp_catalog_meaning(const imp_engine *e, const char *name); /* the model of an alias, or name */
void imp_catalog_settings(const struct imp_known *k, bool *pinned, double *keep_s);

/* ---- constraint.c ---- */
IMP_MUST_USE imp_status imp_constraints_new(struct imp_constraints **out);
void imp_constraints_free(struct imp_constraints *c); /* NULL is allowed */

/* ---- later.c ---- */
/* The same on a thread of its own, while the model serves with what it has. BUSY: too many wait. */
IMP_MUST_USE imp_status imp_instance_open_later(imp_model *m, imp_unit *u);
void imp_later_stop(imp_engine *e); /* engine.quit is set */

/* ---- route.c ---- */
void imp_route_hooks(imp_instance *x, imp_sched_hooks *out);
/* Which units a model should be compiled for, as bits, by predicted wins. */
uint32_t imp_route_worth(imp_model *m);
void imp_unit_wake(imp_unit *u); /* engine.lock held */
/* Candidates for a request; place_lock held. */
void imp_route_choose(imp_model *m, const imp_place_request *r, imp_choice *out);
void imp_route_units(imp_model *m, const imp_place_request *r, imp_place_unit *out);

/* ---- record.c ---- */
/* The settings that would rule units out, as JSON: what was set, or that measurement decides. */
void imp_settings_write(imp_buf *b, const imp_engine *e);
imp_record *imp_record_new(const imp_model *m, const imp_request *r, uint64_t id, const imp_choice *c);
void imp_record_keep(imp_engine *e, imp_record *r); /* takes it */
/* In quotes, as JSON; for our own sentences and names. */
void imp_text_write(imp_buf *b, const char *s);
void imp_records_free(imp_engine *e);
/* A thread that writes new records to the store: a disk may take long, and no request waits for that. */
IMP_MUST_USE imp_status imp_records_start(imp_engine *e, imp_error *err);
void imp_records_stop(imp_engine *e); /* what is left is written first */
void imp_candidates_write(imp_buf *b, const imp_candidate *c, uint32_t n, const char (*unit)[64],
                          uint8_t simulated);

#endif
