/* impetus.h - the one public header: status codes, engine, model, request.
 *
 * Place:   implemented by src/engine; everything a program that embeds Impetus needs.
 * Idea:    an engine owns the compute units and one scheduler thread; models are loaded into it;
 *          a request is submitted with a callback and ends with exactly one final event.
 * Threads: every function may be called from any thread; callbacks run on the scheduler's
 *          thread, must not block and must not call back into imp_engine_free or imp_model_unload.
 * Memory:  pointers passed in are borrowed for the duration of the call only (imp_submit copies);
 *          pointers in an event are valid only inside the callback. */
#ifndef IMPETUS_H
#define IMPETUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define IMPETUS_VERSION "0.1.0"

/* X(name, code, text). Codes are stable: they cross process borders. */
#define IMP_STATUS_LIST(X)                                                                                   \
    X(OK, 0, "ok")                                                                                           \
    X(NOMEM, 1, "out of memory")                                                                             \
    X(IO, 2, "input or output failed")                                                                       \
    X(NOT_FOUND, 3, "not found")                                                                             \
    X(FORMAT, 4, "malformed file")                                                                           \
    X(UNSUPPORTED, 5, "not supported")                                                                       \
    X(INVALID, 6, "invalid argument")                                                                        \
    X(TOO_LARGE, 7, "too large")                                                                             \
    X(NO_FIT, 8, "does not fit in memory")                                                                   \
    X(BUSY, 9, "queue is full")                                                                              \
    X(NOT_READY, 10, "not ready")                                                                            \
    X(CANCELLED, 11, "cancelled")                                                                            \
    X(DEVICE, 12, "device failed")                                                                           \
    X(INTERNAL, 13, "internal error")

typedef enum imp_status {
#define IMP_X(name, code, text) IMP_##name = code,
    IMP_STATUS_LIST(IMP_X)
#undef IMP_X
} imp_status;

#if defined(__GNUC__) || defined(__clang__)
#define IMP_MUST_USE     __attribute__((warn_unused_result))
#define IMP_PRINTF(a, b) __attribute__((format(printf, a, b)))
#else
#define IMP_MUST_USE
#define IMP_PRINTF(a, b)
#endif

/* What went wrong, for a person. Filled by functions that take an imp_error *; may be NULL there. */
typedef struct imp_error {
    imp_status status;
    char text[480];    /* one sentence: what is wrong and what to do; no newline */
    char field[64];    /* request field or file part at fault; "" when none */
    uint64_t position; /* byte offset in the input, when the input is text or a file */
} imp_error;

const char *imp_status_name(imp_status s); /* "NOT_FOUND" */
const char *imp_status_text(imp_status s); /* "not found" */

/* ---- engine ------------------------------------------------------------------------------- */

typedef struct imp_engine imp_engine;
typedef struct imp_model imp_model;

typedef struct imp_engine_config {
    const char
        *device; /* devices to use, with commas: "cpu", "ref", "sim:PROFILE"; NULL or "auto": all there are */
    uint32_t n_thread;    /* 0: one a physical core */
    uint32_t n_ctx;       /* tokens a sequence may hold; 0: the model's own limit, as far as memory allows */
    uint32_t n_parallel;  /* sequences that generate at once; 0: 8 */
    uint32_t n_queue;     /* requests that may wait; 0: 1024 */
    uint32_t n_batch;     /* tokens a step may process; 0: 512 */
    uint64_t mem_bytes;   /* memory limit; 0: what the machine has available */
    const char *kv_dtype; /* "f16" (default), "f32", "q8_0", "q4" (4-bit keys, 8-bit values) */
    bool quiet;           /* no progress on stderr */
    const char *policy;   /* "latency" (default), "throughput", "energy" */
    double watt_cap;      /* units that draw more are left out; 0: none */
    double joule_cap; /* choices that take more for a request are left out, where that is known; 0: none */
    int embeddings_on_npu;     /* 1: only there, -1: never, 0: as measured */
    int gpu_matrix_units;      /* -1: expect only the plain f32 rate of a GPU that was not measured */
    uint32_t max_npu_model_mb; /* larger models never go to an NPU; 0: as measured */
    int speculate; /* guess tokens ahead: 0: where that changes no answer, 1: also elsewhere, -1: never */
    uint32_t
        max_lora_rank; /* room for adapters that come while a model is loaded; 0: as those that are known need */
    const char *db_path; /* calibration, what was learned, explanations; NULL: nothing is kept */
    /* Folder where computed beginnings of prompts are kept for the next start, and how much at most; NULL or 0: nowhere. The
     * folder holds what prompts said. */
    const char *kv_dir;
    uint64_t kv_disk_bytes;
} imp_engine_config;

IMP_MUST_USE imp_status imp_engine_new(const imp_engine_config *config, imp_engine **out, imp_error *err);
void imp_engine_free(
    imp_engine *e); /* cancels what runs; every accepted request gets its final event first */

typedef struct imp_model_info {
    const char *id;          /* the name requests use */
    const char *path;        /* as given to imp_engine_load */
    const char *arch;        /* "llama", "bert", ... */
    const char *type;        /* weight type of most bytes: "q4_0", "f32" */
    const char *device;      /* where it runs */
    const char *template_id; /* chat template family, NULL: chat is refused */
    uint64_t n_param;
    uint64_t file_bytes;
    uint32_t n_vocab, n_layer, n_embd, n_head, n_kv_head;
    uint32_t n_ctx_train; /* the model's own limit */
    uint32_t n_ctx;       /* what this engine serves */
    bool can_generate, can_embed;
    uint32_t embed_dim; /* 0 when it cannot embed */
    bool matryoshka;    /* the model says that shortened embeddings keep their meaning */
    int64_t created;    /* Unix seconds */
} imp_model_info;

/* Load from a GGUF file, or a folder or file of safetensors. id NULL: the file's own name without suffix. */
IMP_MUST_USE imp_status imp_engine_load(imp_engine *e, const char *path, const char *id, imp_model **out,
                                        imp_error *err);
/* Waits for its requests, which end CANCELLED; later submits are refused. Its memory goes with the last reference that
 * imp_engine_find or imp_engine_models gave. */
void imp_model_unload(imp_model *m);
/* Both give references: each model stays whole until imp_model_release, which must come before imp_engine_free. The
 * pointer from imp_engine_load is no reference: it is good until the model is unloaded. */
size_t imp_engine_models(imp_engine *e, imp_model **out,
                         size_t cap);                      /* fills up to cap; returns how many there are */
imp_model *imp_engine_find(imp_engine *e, const char *id); /* NULL: unknown */
void imp_model_release(imp_model *m);                      /* NULL is allowed */
const imp_model_info *imp_model_get_info(const imp_model *m);

/* ---- models by name, loaded when they are wanted --------------------------------------------- */

typedef struct imp_model_source {
    const char *path;
    const char *id; /* NULL: the file's own name without suffix */
    bool pinned;    /* once loaded it stays, whatever comes */
    double keep_s;  /* seconds it stays loaded after its last request; < 0: until others need the room */
} imp_model_source;
/* Make a model known without loading it. INVALID: the name is taken. */
IMP_MUST_USE imp_status imp_engine_add(imp_engine *e, const imp_model_source *s, imp_error *err);
/* The same for all models that are found in a folder, now and later: NAME.gguf, and folders with a config.json. A name
 * that is known already stays what it is; a folder that is not there has no models. */
IMP_MUST_USE imp_status imp_engine_add_folder(imp_engine *e, const char *path, double keep_s, imp_error *err);
/* Another name for a model; it need not be known yet. */
IMP_MUST_USE imp_status imp_engine_add_alias(imp_engine *e, const char *alias, const char *id,
                                             imp_error *err);

/* m: a reference for the one who waited; NULL: err says why there is none. */
typedef void (*imp_ready_fn)(void *user, imp_model *m, const imp_error *err);
/* A model by name or alias, loaded first if it is not. OK with *now: a reference. OK without: fn comes later, once, from
 * another thread. NOT_FOUND; BUSY: too many wait. fn NULL: NOT_READY instead of waiting. Models are loaded one at a
 * time; to make room the least recently used one goes that has no requests and is not pinned. When all have requests,
 * new ones for the least recently used wait until the load is done, and what runs there ends first. A model whose file
 * has changed since it was loaded is loaded again in the same way. */
IMP_MUST_USE imp_status imp_engine_acquire(imp_engine *e, const char *id, imp_model **now, imp_ready_fn fn,
                                           void *user, imp_error *err);
/* fn will not be called for user any more; false: it was, or is being called. */
bool imp_engine_give_up(imp_engine *e, imp_ready_fn fn, void *user);
/* imp_engine_acquire that blocks. */
IMP_MUST_USE imp_status imp_engine_open(imp_engine *e, const char *id, imp_model **out, imp_error *err);
/* Seconds it stays loaded after its last request from now on, as in imp_model_source; 0: unload it when nothing runs. false:
 * it is pinned, and stays. */
bool imp_model_keep(imp_model *m, double keep_s);

typedef enum imp_model_state { IMP_MODEL_ABSENT, IMP_MODEL_LOADING, IMP_MODEL_LOADED } imp_model_state;
/* A model that requests may name. What files say of it is read in the background: arch "" until then. */
typedef struct imp_known_model {
    char id[256], path[1024], arch[32], type[24];
    uint64_t n_param, file_bytes;
    uint32_t n_vocab, n_layer, n_embd, n_head, n_kv_head, n_ctx_train;
    bool can_generate, can_embed, pinned;
    int64_t modified; /* Unix seconds, of its file */
    imp_model_state state;
    double expires_s;   /* until it is unloaded; < 0: it is not, for want of use */
    uint32_t n_waiting; /* requests that wait for it */
} imp_known_model;
/* All of them, loaded ones first, then by name; imp_free *out. NOMEM. */
IMP_MUST_USE imp_status imp_engine_known(imp_engine *e, imp_known_model **out, size_t *n);

/* Memory of a model, from the same code that allocates it. Bytes. */
typedef struct imp_memory {
    uint64_t weights, kv, scratch, other, total;
    uint64_t process;     /* what the program itself holds in memory: measured before any model, and 2 MiB for
                             serving; not in total */
    uint64_t available;   /* what the limit was when this was computed */
    uint32_t largest_ctx; /* the largest n_ctx that fits, 0: not even the smallest */
    bool fits;
} imp_memory;
/* Plan without loading: path, context and parallel sequences as imp_engine_load would take them. */
IMP_MUST_USE imp_status imp_engine_plan(imp_engine *e, const char *path, imp_memory *out, imp_error *err);
/* The same on every device of the engine, each as if it were the only one. */
typedef struct imp_device_plan {
    char device[64];
    imp_memory memory;
    char why[200];   /* "": it fits; else what is in the way */
    bool own_memory; /* it has its own; else it shares the machine's */
    bool
        only_large; /* several devices together, used when one with memory of its own does not hold the model */
} imp_device_plan;
/* *n: devices there are; at most cap are filled in. */
IMP_MUST_USE imp_status imp_engine_plan_devices(imp_engine *e, const char *path, imp_device_plan *out,
                                                size_t cap, size_t *n, imp_error *err);
void imp_model_get_memory(const imp_model *m, imp_memory *out); /* as allocated */
/* What a loaded model would take with another context, if it took the place of this one: NO_FIT says what fits. */
IMP_MUST_USE imp_status imp_model_plan(imp_model *m, uint32_t n_ctx, imp_memory *out, imp_error *err);

/* ---- text --------------------------------------------------------------------------------- */

enum { IMP_TOK_ADD_SPECIAL = 1, IMP_TOK_PARSE_SPECIAL = 2 };

/* ids: *out_ids is malloc'd, the caller frees it with imp_free. text need not end in NUL. */
IMP_MUST_USE imp_status imp_tokenize(const imp_model *m, const char *text, size_t n_text, unsigned flags,
                                     int32_t **out_ids, size_t *out_n, imp_error *err);
/* text: *out_text is malloc'd and NUL-terminated (n_out does not count the NUL); imp_free it. */
IMP_MUST_USE imp_status imp_detokenize(const imp_model *m, const int32_t *ids, size_t n, bool special,
                                       char **out_text, size_t *out_n, imp_error *err);
/* The bytes of one token as the vocabulary spells it; borrowed from the model; NULL when id is out of range. */
const char *imp_token_piece(const imp_model *m, int32_t id, size_t *n_out);

/* A call of a tool, as it stands in a conversation. */
typedef struct imp_tool_call {
    const char *id; /* NULL: none */
    const char *name;
    const char *arguments; /* a JSON object */
} imp_tool_call;

typedef struct imp_message {
    const char *role; /* "system", "user", "assistant", "tool" */
    const char *content;
    const char *thought;        /* assistant: what it thought before it answered; NULL: nothing */
    const imp_tool_call *calls; /* [n_calls] assistant: the calls it ends with */
    size_t n_calls;
    const char *call_id; /* tool: the call whose result this is; NULL: not said */
    const char *name;    /* tool: the called tool; NULL: not said */
} imp_message;

/* A conversation, for the model's template. */
typedef struct imp_chat {
    const imp_message *msg;
    size_t n_msg;
    const char *
        tools; /* JSON: [{"type":"function","function":{"name","description","parameters"}}, ...]; NULL: none */
    int think;          /* 1: the model shall think first, 0: it shall not, -1: as its template does it */
    const char *effort; /* how much: "low", "medium", "high"; NULL: not said */
} imp_chat;
/* The prompt text a chat becomes, ending where the assistant's answer starts; tokenise it with
 * IMP_TOK_PARSE_SPECIAL. UNSUPPORTED when the model's template is not known, or the chat has calls or tools and the model
 * cannot be given any. imp_free *out_text. */
IMP_MUST_USE imp_status imp_chat_prompt(const imp_model *m, const imp_chat *chat, char **out_text,
                                        imp_error *err);
/* The same for messages alone. */
IMP_MUST_USE imp_status imp_chat_render(const imp_model *m, const imp_message *msgs, size_t n_msgs,
                                        char **out_text, imp_error *err);

/* How a model writes calls and thoughts. */
typedef struct imp_toolfmt imp_toolfmt;
const imp_toolfmt *imp_model_toolfmt(const imp_model *m); /* the model's; NULL: it has no chat template */
const char *imp_toolfmt_name(const imp_toolfmt *f); /* "hermes", "mistral", ...; NULL: it calls no tools */
bool imp_toolfmt_thinks(const imp_toolfmt *f);
void imp_free(void *p);

/* ---- requests ----------------------------------------------------------------------------- */

typedef struct imp_logit_bias {
    int32_t id;
    float bias; /* added to the logit; -100 or less bans the token */
} imp_logit_bias;

typedef struct imp_sampling {
    float temperature;       /* 0: greedy */
    int32_t top_k;           /* 0: off */
    float top_p;             /* 1: off */
    float min_p;             /* 0: off */
    float repeat_penalty;    /* 1: off */
    int32_t repeat_last_n;   /* window of the three penalties; -1: whole sequence, 0: off */
    float presence_penalty;  /* 0: off */
    float frequency_penalty; /* 0: off */
    uint64_t seed;           /* UINT64_MAX: random */
    const imp_logit_bias *bias;
    size_t n_bias;
    float typical_p;      /* locally typical; 0 or 1: off */
    float dynatemp_range; /* temperature +- this, by the entropy of what is left; 0: off */
    float dynatemp_exponent;
    float xtc_probability; /* how often the likeliest are left out; 0: off */
    float xtc_threshold;   /* all but the last of those at least this likely; above 0.5: off */
    float dry_multiplier;  /* against repeated sequences; 0: off */
    float dry_base;
    int32_t dry_allowed_length;     /* longer repeats cost multiplier * base ^ (length - this) */
    int32_t dry_last_n;             /* window in tokens; -1: whole sequence, 0: off */
    const char *const *dry_breaker; /* strings across which nothing counts as repeated */
    size_t n_dry_breaker;
    int32_t mirostat; /* 1, 2: in place of top_k, typical_p, top_p, min_p and xtc; 0: off */
    float mirostat_tau, mirostat_eta;
} imp_sampling;
/* temperature 0.8, top_k 40, top_p 0.95, min_p 0.05, rest off with the values that are usual when switched on:
 * dynatemp_exponent 1, xtc_threshold 0.1, dry base 1.75, length 2, window -1, breakers newline : " *, mirostat tau 5, eta 0.1 */
void imp_sampling_default(imp_sampling *s);

/* What an answer must be. Compiled once (any thread), usable by many requests of the model; the last few are kept and
 * found again by their text. */
typedef struct imp_masker imp_constraint;
typedef enum imp_constraint_kind {
    IMP_CONSTRAINT_JSON,   /* any JSON object; no text */
    IMP_CONSTRAINT_SCHEMA, /* JSON that validates against this JSON schema */
    IMP_CONSTRAINT_GBNF,   /* what this grammar's `root` gives */
    IMP_CONSTRAINT_REGEX,  /* the whole answer matches */
    IMP_CONSTRAINT_CHOICE, /* one of these: a JSON list of strings */
    IMP_CONSTRAINT_TOOLS /* text and calls of tools as the model writes them: text/toolcall.h says how they are told */
} imp_constraint_kind;
/* INVALID, UNSUPPORTED (names what is not kept to), TOO_LARGE. imp_constraint_free before the model is released. */
IMP_MUST_USE imp_status imp_constraint_new(imp_model *m, imp_constraint_kind kind, const char *text, size_t n,
                                           imp_constraint **out, imp_error *err);
void imp_constraint_free(imp_constraint *c); /* requests that use it go on; NULL is allowed */

/* ---- adapters: low-rank additions to a model (LoRA), chosen by each request ------------------- */

typedef struct imp_adapter imp_adapter;
typedef struct imp_adapter_use {
    imp_adapter *adapter;
    float scale;
} imp_adapter_use;

typedef struct imp_adapter_source {
    const char *name; /* what requests call it; no model may be called so */
    const char *path; /* GGUF file, folder with adapter_config.json, or a .safetensors file in it */
    const char *base; /* the model's name; NULL: each model that is loaded */
    float scale;      /* for requests that do not say; 1 is usual */
    bool always;      /* for every request that names no adapter */
} imp_adapter_source;
/* Make an adapter known. It is loaded with its model, or at once when that is loaded already: FORMAT or UNSUPPORTED say why
 * the file cannot be used or does not belong to the model, NO_FIT that memory is short. INVALID: the name is taken. */
IMP_MUST_USE imp_status imp_engine_add_adapter(imp_engine *e, const imp_adapter_source *s, imp_error *err);
/* Not given to new requests any more; those that use it go on. NOT_FOUND. */
IMP_MUST_USE imp_status imp_engine_remove_adapter(imp_engine *e, const char *name, imp_error *err);

typedef struct imp_adapter_info {
    char name[128], base[256]; /* base "": each model */
    uint32_t id;               /* its number; stays while it is known */
    float scale;
    uint32_t rank;  /* 0: not loaded */
    uint64_t bytes; /* of memory */
    uint32_t n_waiting, n_running;
    int64_t created; /* Unix seconds */
} imp_adapter_info;
/* Those that are known, in the order in which they came; imp_free *out. NOMEM. */
IMP_MUST_USE imp_status imp_engine_adapters(imp_engine *e, imp_adapter_info **out, size_t *n);
/* An adapter of m by name, or by number when name is NULL, with its own scale; the reference goes with imp_adapter_unref.
 * NOT_FOUND: no adapter is called so; NOT_READY: it is not loaded for m. */
IMP_MUST_USE imp_status imp_model_adapter(imp_model *m, const char *name, uint32_t id, imp_adapter_use *out);
void imp_adapter_unref(imp_adapter *a); /* NULL is allowed */

typedef enum imp_request_kind {
    IMP_REQUEST_GENERATE, /* tokens in, text out */
    IMP_REQUEST_EMBED,    /* n_input texts in, one vector each out */
    IMP_REQUEST_SCORE     /* tokens in, logits of every position out */
} imp_request_kind;

typedef enum imp_finish {
    IMP_FINISH_STOP,
    IMP_FINISH_LENGTH,
    IMP_FINISH_CANCELLED,
    IMP_FINISH_ERROR
} imp_finish;

typedef struct imp_token_prob {
    int32_t id;
    float logprob;
} imp_token_prob;

typedef enum imp_event_kind {
    IMP_EVENT_TEXT,      /* more text; whole UTF-8 characters only, no part of a stop string */
    IMP_EVENT_EMBEDDING, /* the vector of input `index` */
    IMP_EVENT_LOGITS,    /* the logits after input position `index` */
    IMP_EVENT_DONE       /* final: exactly one an accepted request */
} imp_event_kind;

typedef struct imp_usage {
    uint32_t n_prompt, n_generated; /* tokens */
    uint32_t n_cached;              /* prompt tokens not computed again */
    double queue_ms, prefill_ms, decode_ms;
} imp_usage;

typedef struct imp_event {
    imp_event_kind kind;
    /* TEXT: n_text bytes, may be 0 when a token's bytes are still held back */
    const char *text;
    size_t n_text;
    /* TEXT, when n_logprobs > 0 was asked: the tokens whose text this is, their probabilities and each one's
     * n_top best alternatives (top[i * n_top + j], best first) */
    const imp_token_prob *tokens;
    size_t n_tokens;
    const imp_token_prob *top;
    size_t n_top;
    /* EMBEDDING, LOGITS */
    size_t index;
    const float *vector;
    size_t n_vector;
    /* DONE */
    imp_finish finish;
    imp_usage usage;
    const char *stop;       /* the stop string that ended it; NULL: none did */
    const imp_error *error; /* ERROR and CANCELLED */
} imp_event;

typedef void (*imp_event_fn)(void *user, uint64_t id, const imp_event *ev);

typedef struct imp_request {
    imp_request_kind kind;
    const int32_t *ids;  /* all inputs' tokens, one after the other */
    const size_t *n_ids; /* tokens of each input */
    size_t n_input;      /* 1 for GENERATE and SCORE */
    uint32_t max_tok;    /* GENERATE: at most this many; 0: until the context is full */
    imp_sampling sampling;
    const char *const *stop;
    size_t n_stop;
    bool ignore_eos;
    bool
        fresh_text; /* GENERATE: the answer stands by itself (a chat's), so a vocabulary's leading space is no part
                               of it; false: it continues the prompt's text */
    uint32_t n_logprobs; /* alternatives a token; with want_logprobs */
    bool want_logprobs;
    bool raw_embedding;  /* EMBED: true leaves out the model's normalisation */
    uint32_t dimensions; /* EMBED: 0: all; else cut to this many and normalise again */
    imp_event_fn on_event;
    void *user;
    imp_constraint *constraint; /* GENERATE: what the answer must be; NULL: free */
    const char *
        require; /* every phase on this device, or NOT_READY with the reason; "a>b": prefill on a, decode on b;
                            NULL: free */
    int32_t priority; /* less is served first; 0 is usual */
    uint64_t client;  /* whose request it is (a number for each API key): clients take turns; 0: nobody's */
    uint64_t
        cache_scope; /* beginnings of prompts are shared only with requests of the same scope; 0 is one of them */
    const imp_adapter_use *lora; /* [n_lora] adapters of this model, added up; borrowed as all else is */
    size_t n_lora;
    bool no_lora; /* also none of those that are always used */
} imp_request;

/* INVALID / TOO_LARGE (the prompt does not fit the context; err names the counts) / BUSY / UNSUPPORTED: refused,
 * no callback. OK: *out_id names the request for imp_cancel. The callback may come before this returns. */
IMP_MUST_USE imp_status imp_submit(imp_model *m, const imp_request *r, uint64_t *out_id, imp_error *err);
void imp_cancel(imp_engine *e, uint64_t id); /* unknown or finished ids are ignored */

/* ---- what ran where ------------------------------------------------------------------------ */

/* JSON text, imp_free; NULL: the request is not known (any more). id 0: the last one that ended.
 * receipt: per phase device, tokens, ms, predicted_ms, bytes, joules, fallback. */
char *imp_receipt_json(imp_engine *e, uint64_t id);
/* Only what ran it: "cpu0", or "cuda0 > cpu0" for prefill and decode. */
char *imp_receipt_device(imp_engine *e, uint64_t id);
/* Every candidate of the choice: predicted, bounds, exclusions with reasons, runner-up, margin; and what came of it. */
char *imp_explain_json(imp_engine *e, uint64_t id);
/* The candidates for a request of this shape to a loaded model, without submitting one; for an encoder n_batch texts of
 * n_prompt tokens each. */
char *imp_candidates_json(imp_engine *e, imp_model *m, uint32_t n_prompt, uint32_t n_gen, uint32_t n_batch);
/* The engine's devices: kind, state, measured and learned numbers. */
char *imp_units_json(imp_engine *e);
/* Those that do not work now: [{"device","state","reason"}]; state "failed": tried again later, "lost": not before the
 * program starts anew. "[]": all work. */
char *imp_failed_units_json(imp_engine *e);

/* ---- counters ----------------------------------------------------------------------------- */

typedef struct imp_stats {
    uint64_t n_request, n_done, n_cancelled, n_failed, n_refused;
    uint64_t n_prompt_tok, n_generated_tok, n_embedded_tok;
    uint64_t n_step;
    double step_s, prefill_s, decode_s;
    uint32_t n_running, n_waiting;
    uint32_t kv_block_used, kv_block_total;      /* used: by requests that run */
    uint32_t kv_block_cached;                    /* held only because a later prompt may begin the same way */
    uint64_t n_cache_query_tok, n_cache_hit_tok; /* prompt tokens looked up, and found */
    uint64_t n_preempted;
    uint64_t n_drafted_tok, n_accepted_tok; /* guessed tokens that were computed, and were right */
    uint64_t n_restored_tok;                /* of n_cache_hit_tok: read from disk (kv_dir) for a request */
    uint64_t n_kv_saved, n_kv_loaded;       /* blocks written there, and read */
    uint64_t n_kv_refused,
        n_kv_evicted; /* files that were damaged or not what their names say; gone for room */
    uint64_t kv_disk_bytes, kv_disk_files; /* blocks there */
} imp_stats;
void imp_engine_get_stats(imp_engine *e, imp_stats *out);
/* Begin to write what the prefix caches hold to kv_dir, beside what else goes on. false: there is no kv_dir. */
bool imp_engine_save_caches(imp_engine *e);

#ifdef __cplusplus
}
#endif
#endif
