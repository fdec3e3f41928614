/* engine/engine_int.h - the inside of engines and models, shared by engine.c, model.c and text.c. */
#ifndef IMP_ENGINE_INT_H
#define IMP_ENGINE_INT_H

#include <stdatomic.h>

#include "base/thread.h"
#include "dev/dev.h"
#include "model/net.h"
#include "plan/fit.h"
#include "sched/sched.h"
#include "text/chat.h"
#include "text/jinja.h"

enum { MAX_MODEL = 64 };

struct imp_model {
    imp_engine *engine;
    imp_model_info info; /* strings owned by id, path or net */
    char *id, *path;
    imp_net *net;
    imp_fit fit;
    imp_jinja *template;    /* the model's own chat template; NULL: none, or not understood */
    imp_error no_template;  /* why it is not understood; status OK: there is none */
    imp_chat_family chat;   /* for a model without a template: what its control tokens say */
    char template_id[32];   /* "chatml", "jinja"; "": chat is refused */
    imp_exec *generate, *embed;
    imp_sched *sched;
    bool leaving; /* to be taken out by the scheduler thread */
};

struct imp_engine {
    imp_engine_config config; /* strings: device_kind */
    char device_kind[32];
    imp_dtype kv_dtype;
    imp_device *device;
    imp_thread *thread;
    imp_mutex *lock;        /* guards model[], n_model, quit, gone */
    imp_cond *work;         /* a request came, a model leaves, or quit */
    imp_cond *left;         /* a model has left */
    imp_mutex *device_lock; /* one user of the device: a step or a compile */
    imp_model *model[MAX_MODEL];
    size_t n_model;
    bool quit;
    _Atomic uint64_t next_id;
    imp_stats past; /* of models that were unloaded */
};

/* Find out how chats are written for this model; NOMEM only. */
imp_status imp_model_init_chat(imp_model *m, imp_error *err);
/* What config and machine allow, for imp_fit_compute. */
imp_fit_want imp_engine_want(const imp_engine *e);
void imp_model_free(imp_model *m); /* not registered any more; scheduler thread or no thread left */

#endif
