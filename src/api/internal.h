/* api/internal.h - what the files of src/api share.
 *
 * Place:   included by src/api only. */
#ifndef IMP_API_INTERNAL_H
#define IMP_API_INTERNAL_H

#include <jansson.h>
#include <stdatomic.h>

#include "api/api.h"
#include "base/base.h"
#include "base/thread.h"

/* ---- limits of what a request may hold -------------------------------------------------------- */
enum {
    IMP_JSON_MAX_DEPTH = 64,
    IMP_JSON_MAX_VALUES = 1 << 20,
    IMP_API_MAX_STOP = 16,
    IMP_API_MAX_STOP_BYTES = 1024,
    IMP_API_MAX_MESSAGES = 4096,
    IMP_API_MAX_INPUTS = 2048,
    IMP_API_MAX_CHOICES = 1024, /* prompts times n */
    IMP_API_MAX_BIAS = 4096
};

/* Whose API is spoken: the shapes of answers and errors. */
typedef enum imp_dialect { IMP_OPENAI, IMP_OLLAMA, IMP_ANTHROPIC } imp_dialect;

/* ---- endpoints with a JSON body, as bits of the field table ------------------------------------ */
typedef enum imp_endpoint {
    EP_CHAT = 1,
    EP_COMPLETION = 2,
    EP_EMBED = 4,              /* /v1/embeddings */
    EP_OLLAMA_EMBED = 8,       /* /api/embed */
    EP_OLLAMA_EMBEDDINGS = 16, /* /api/embeddings */
    EP_OLLAMA_CHAT = 32,       /* /api/chat */
    EP_OLLAMA_GENERATE = 64,   /* /api/generate */
    EP_MESSAGES = 128,         /* /v1/messages */
    EP_COUNT = 256,            /* /v1/messages/count_tokens */
    EP_SHOW = 512,             /* /api/show */
    EP_RESPONSES = 1 << 16,    /* /v1/responses */
    EP_PLAN = 1 << 20,         /* /api/plan, rerank and tokens, which have few fields of their own */
    EP_OPENAI = EP_CHAT | EP_COMPLETION,
    EP_OLLAMA_TEXT = EP_OLLAMA_CHAT | EP_OLLAMA_GENERATE,
    EP_ANTHROPIC = EP_MESSAGES | EP_COUNT,
    EP_GENERATE = EP_OPENAI | EP_OLLAMA_TEXT | EP_ANTHROPIC | EP_RESPONSES,
    EP_TOOLS = EP_CHAT | EP_OLLAMA_CHAT | EP_ANTHROPIC | EP_RESPONSES,
    EP_OLLAMA_VECTOR = EP_OLLAMA_EMBED | EP_OLLAMA_EMBEDDINGS,
    EP_OLLAMA = EP_OLLAMA_TEXT | EP_OLLAMA_VECTOR,
    EP_VECTOR = EP_EMBED | EP_OLLAMA_VECTOR
} imp_endpoint;

/* What a request wants of its tools. */
typedef enum imp_tool_want { TOOLS_OFF, TOOLS_NONE, TOOLS_AUTO, TOOLS_REQUIRED, TOOLS_NAMED } imp_tool_want;

/* A checked request. Strings point into root; everything else lives in the arena. */
typedef struct imp_api_params {
    imp_endpoint ep;
    imp_arena *arena; /* owned */
    json_t *root;     /* owned */
    const char *model;
    bool stream, include_usage, echo, ignore_eos, want_logprobs, truncate;
    int64_t n, best_of, max_tok, max_completion_tok, top_logprobs, logprobs, dimensions;
    int64_t seed, top_k, repeat_last_n, priority;
    double temperature, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty;
    double typical_p, dynatemp_range, dynatemp_exponent, xtc_probability, xtc_threshold, dry_multiplier,
        dry_base, mirostat_tau, mirostat_eta;
    int64_t dry_allowed_length, dry_last_n, mirostat;
    json_t *dry_breakers;
    const char **dry_breaker; /* [n_dry_breaker], when dry_breakers was given */
    size_t n_dry_breaker;
    const char *encoding;
    const char *system; /* Ollama's generate; Anthropic's is in system_blocks */
    json_t *system_blocks, *format, *think;
    bool raw;  /* Ollama's generate: no template */
    bool load; /* Ollama's, without a prompt: the model shall be loaded, nothing else */
    /* what the answer must be (constraint.c) */
    json_t *response_format, *structured_outputs, *grammar, *json_schema;
    json_t *guided_json, *guided_regex, *guided_choice, *guided_grammar;
    /* tools and thinking (tools.c) */
    json_t *tools, *tool_choice, *thinking, *template_kwargs;
    bool parallel;
    json_t *tool_list;      /* owned, goes with root: OpenAI's form of all of them; NULL: none */
    const char *tools_text; /* the same as JSON, in the arena */
    imp_tool_want tool_want;
    const char *tool_name; /* TOOLS_NAMED */
    int think_mode;        /* as in imp_chat */
    const char *effort;
    /* /v1/responses (responses.c) */
    json_t *text, *reasoning;
    json_t *items; /* owned, goes with root: the whole conversation */
    bool store;
    const char *previous, *items_text, *echo_text; /* the last two in the arena */
    json_t *messages, *prompt, *input, *stop, *logit_bias, *stream_options, *options, *keep_alive;
    imp_message *msg; /* [n_msg] */
    size_t n_msg;
    const char **stop_str; /* [n_stop] */
    size_t n_stop;
    imp_logit_bias *bias; /* [n_bias]; ids are checked against the vocabulary later */
    size_t n_bias;
    json_t *lora; /* OpenAI's: adapters (lora.c) */
    json_t *impetus;
    bool want_receipt;
    const char *require; /* in root */
    int64_t num_ctx;     /* Ollama options.num_ctx, 0: not given */
    double keep_s;       /* keep_alive in seconds, < 0: for ever; NAN: not given */
} imp_api_params;

#define IMP_UNSET INT64_MIN /* an integer field that was not given; numbers use NAN */

/* Parse and check a body. *out needs imp_api_params_deinit also after a failure. */
imp_status imp_api_parse(imp_endpoint ep, const char *body, size_t n, imp_api_params *out, imp_error *err);
void imp_api_params_deinit(imp_api_params *p);
void imp_api_params_drop_json(
    imp_api_params *p); /* what was parsed, on the thread that parsed it; msg goes, too */
/* json_in.c: bytes to a JSON object within the limits above. */
imp_status imp_api_json(const char *body, size_t n, json_t **out, imp_error *err);
/* Free the tree; on the thread that parsed it, before that parses another. NULL is allowed. */
void imp_api_json_release(json_t **root);
void *imp_api_json_alloc(size_t n); /* jansson's malloc and free */
void imp_api_json_free(void *p);
/* fields.c: every field against the table. */
imp_status imp_api_fields(imp_api_params *p, imp_error *err);
/* messages.c: what one line of a table cannot say. */
imp_status imp_api_messages(imp_api_params *p, imp_error *err);
/* Text as messages have it: a string, or parts of text, which are joined. */
imp_status imp_api_content(imp_api_params *p, const json_t *v, const char *name, const char **out,
                           imp_error *err);
/* tools.c: declarations and choice; thinking; the calls of a message; one call of those given parts. */
imp_status imp_api_tools(imp_api_params *p, imp_error *err);
imp_status imp_api_think(imp_api_params *p, imp_error *err);
imp_status imp_api_message_calls(imp_api_params *p, const json_t *list, size_t at, imp_message *m,
                                 imp_error *err);
imp_status imp_api_call_of(imp_api_params *p, const json_t *id, const json_t *fun_name, const json_t *args,
                           const char *name, imp_tool_call *out, imp_error *err);
/* The conversation for the engine; refuses thinking where the model has none. */
imp_status imp_api_chat(const imp_api_params *p, const imp_model *m, imp_chat *out, imp_error *err);
/* What the tools make of the answer; *out NULL: nothing. */
imp_status imp_api_tool_constraint(const imp_api_params *p, imp_model *m, bool in_thought,
                                   imp_constraint **out, imp_error *err);
/* responses.c: fields; then, when the model is known, the conversation. */
imp_status imp_api_responses_params(imp_api_params *p, imp_error *err);
imp_status imp_api_responses_input(imp_api *a, uint64_t client, imp_api_params *p, imp_error *err);
void imp_api_response_one(imp_api *a, const imp_api_request *rq, const char *id, const imp_api_sink *s);
imp_status imp_api_stop(imp_api_params *p, imp_error *err);
imp_status imp_api_bias(imp_api_params *p, imp_error *err);
imp_status imp_api_ollama_options(imp_api_params *p, imp_error *err);
/* A prompt or input: a string, strings, tokens or lists of tokens (tokens only when allowed). Only shapes. */
imp_status imp_api_check_input(const json_t *v, const char *field, bool tokens, imp_error *err);
size_t imp_api_n_input(const json_t *v);

/* ollama.c: options, format and keep_alive of its chat and generate; and what a prompt becomes. */
imp_status imp_api_ollama_params(imp_api_params *p, imp_error *err);
/* A request without a prompt only wants the model loaded: answered here; false: it is none. */
imp_status imp_api_ollama_prompt(imp_api_params *p, const imp_model *m, imp_error *err);
/* anthropic.c: messages whose content is blocks, and the field `system` before them. */
imp_status imp_api_anthropic_messages(imp_api_params *p, imp_error *err);
void imp_api_count_tokens(imp_api *a, const imp_api_request *rq, const imp_api_sink *s);
/* constraint.c: what the answer must be, compiled for the model; *out NULL: nothing was asked. imp_constraint_free it. */
imp_status imp_api_constraint(const imp_api_params *p, imp_model *m, imp_constraint **out, imp_error *err);

/* sampling.c: what fields and options say of sampling, over imp_sampling_default. */
imp_status imp_api_dry_breakers(imp_api_params *p, imp_error *err);
void imp_api_sampling(const imp_api_params *p, imp_sampling *s);

/* ---- JSON out ---------------------------------------------------------------------------------- */
void imp_json_str(imp_buf *b, const char *s, size_t n); /* with quotes; invalid UTF-8 becomes U+FFFD */
void imp_json_cstr(imp_buf *b, const char *s);
void imp_json_f32(imp_buf *b, float x); /* reads back as the same float; NaN and infinities become null */
void imp_json_base64(imp_buf *b, const void *p, size_t n); /* with quotes */

/* ---- the API object ---------------------------------------------------------------------------- */
enum { IMP_N_BUCKET = 14, IMP_N_ROUTE = 40 };
typedef struct imp_hist {
    _Atomic uint64_t bucket[IMP_N_BUCKET + 1];
    _Atomic uint64_t sum_us;
} imp_hist;
void imp_hist_add(imp_hist *h, double seconds);

struct imp_api {
    imp_api_config config;
    atomic_uint refs;
    atomic_bool draining;
    uint64_t start_ns;
    _Atomic uint64_t next_id;
    uint64_t id_seed;
    void (*http_stats)(void *user, imp_api_http_stats *out);
    void *http_user;
    struct imp_responses *responses;               /* owned */
    char *lora_dir;                                /* owned; as in config */
    _Atomic uint64_t n_answer[IMP_N_ROUTE + 1][6]; /* [route, last: unknown path][status / 100] */
    imp_hist duration[IMP_N_ROUTE + 1];
    imp_hist first_token, output_token, inter_token, request;
    _Atomic uint64_t n_finish[4]; /* requests by imp_finish */
};
void imp_api_time(char out[32], int64_t at); /* RFC 3339, from Unix seconds */
void imp_api_make_id(imp_api *a, const char *prefix, char out[48]);

/* ---- errors ------------------------------------------------------------------------------------ */
imp_dialect imp_api_dialect(const char *path); /* which shape errors have */
void imp_api_error(const imp_api_sink *s, imp_dialect dialect, int status, const char *param,
                   const char *code, const imp_api_header *headers, size_t n_header, const char *text);
/* The answer to a failed engine call or check: status, code and a text that is safe to show. */
void imp_api_fail(const imp_api_sink *s, imp_dialect dialect, const imp_error *err);
int imp_api_http_status(imp_status s);
void imp_api_error_json(imp_buf *b, imp_dialect dialect, int status, const char *param, const char *code,
                        const char *text);
void imp_api_fail_json(imp_buf *b, imp_dialect dialect,
                       const imp_error *err);                          /* the body alone, for streams */
void imp_api_answer(const imp_api_sink *s, int status, imp_buf *body); /* JSON, takes body's bytes */

/* ---- calls: one or more engine requests behind one HTTP request (call.c) ------------------------- */
typedef struct imp_call_slot {
    imp_api_call *call;
    size_t index;
    uint64_t id;      /* engine's */
    uint64_t last_ns; /* when its last token came; 0: none yet */
    bool submitted, done;
} imp_call_slot;

struct imp_api_call {
    imp_api *api;
    imp_api_sink sink;
    atomic_uint refs;
    imp_mutex *mu; /* guards all below, and what the kind of call adds */
    imp_call_slot *slot;
    size_t n_slot;
    size_t n_left;            /* requests that run, and one while they are being submitted */
    imp_api_reason reason;    /* 0: not cancelled */
    bool started;             /* all are submitted: events may reach the sink */
    imp_dialect dialect;      /* whose shapes the answer has */
    imp_api_who who;          /* as in imp_api_request */
    imp_error err;            /* the first failure; status OK: none */
    uint64_t t0_ns, first_ns; /* first_ns: of the first text; 0: none yet */
    imp_api_note note;        /* model and tokens so far */
    uint64_t waited_ns;       /* part of the time since t0_ns: for the model to be loaded */
    void (*on_event)(imp_api_call *c, imp_call_slot *slot,
                     const imp_event *ev); /* under mu; not DONE's last */
    void (*on_start)(imp_api_call *c);     /* under mu */
    void (*on_finish)(imp_api_call *c);    /* all done; must call sink.end in the end, then imp_call_unref */
    void (*on_cancel)(imp_api_call *c);    /* a call that waits for no engine request; NULL: nothing to do */
    void (*on_free)(imp_api_call *c);      /* frees what the kind added */
};
/* c: zeroed memory from imp_sys_calloc that starts with an imp_api_call; n_slot >= 1. On failure c is untouched. */
imp_status imp_call_init(imp_api_call *c, imp_api *a, const imp_api_sink *sink, imp_dialect dialect,
                         size_t n_slot);
void imp_call_waited(imp_api_call *c, uint64_t ns); /* it came that long before imp_call_init */
imp_status imp_call_submit(imp_api_call *c, size_t i, imp_model *m, imp_request *rq, imp_error *err);
/* After the last submit: err NULL lets the events through, else the submitted ones are cancelled and err answered. */
void imp_call_go(imp_api_call *c, const imp_error *err);
void imp_call_unref(imp_api_call *c);
/* The model of that name, which may do anything. NULL: err says that it is not here. */
imp_model *imp_api_model_named(imp_api *a, const char *id, imp_dialect dialect, imp_error *err);
/* The model a request means. NULL: err says why (NOT_FOUND, INVALID). */
imp_model *imp_api_model(imp_api *a, const char *id, bool embed, imp_dialect dialect, imp_error *err);

/* wait.c: what route.c does with a request whose handler is fn. */
typedef imp_api_call *(*imp_api_handler)(imp_api *a, const imp_api_request *rq, imp_endpoint ep,
                                         const imp_api_sink *s);
/* Hand the request to fn when the model that it names is loaded, and keep it loaded meanwhile. */
imp_api_call *imp_api_with_model(imp_api *a, const imp_api_request *rq, imp_endpoint ep, imp_api_handler fn,
                                 const imp_api_sink *s);
/* Ollama's keep_alive: a duration ("5m", "-1"), or seconds. IMP_OK and *s NAN: not given. */
imp_status imp_api_keep_alive(const json_t *v, double *s, imp_error *err);
/* ollama.c: the answer to a request whose `load` is set, which only loads its model, or unloads it. m NULL: it was not
 * loaded when it should be unloaded. */
void imp_api_load(const imp_api_params *p, imp_model *m, const imp_api_sink *s, uint64_t waited_ns);

/* ---- adapters: lora.c ------------------------------------------------------------------------------ */
enum { IMP_API_MAX_LORA = 8 };
typedef struct imp_api_lora {
    imp_adapter_use use[IMP_API_MAX_LORA]; /* references */
    size_t n;
    const char
        *name; /* borrowed: the request's own, when it named an adapter as its model; NULL: it did not */
} imp_api_lora;
/* What the names of a request for m mean. list: the field "lora", or NULL. INVALID, NOT_READY; release it when it is OK. */
imp_status imp_api_adapters(const char *model, const json_t *list, imp_model *m, imp_api_lora *out,
                            imp_error *err);
void imp_api_adapters_release(imp_api_lora *l);
void imp_api_adapter_models(imp_api *a, bool first, imp_buf *b);    /* lines of /v1/models */
bool imp_api_adapter_one(imp_api *a, const char *name, imp_buf *b); /* one of them; false: it is none */
void imp_api_adapter_list(imp_api *a, const imp_api_sink *s);       /* /lora-adapters */
void imp_api_adapter_metrics(imp_api *a, imp_buf *b);
imp_api_call *imp_api_adapter_change(imp_api *a, const imp_api_request *rq, bool load, const imp_api_sink *s);
void imp_api_label(imp_buf *b, const char *s); /* metrics.c: the value of a label, escaped */

/* ---- handlers ----------------------------------------------------------------------------------- */
imp_api_call *imp_api_generate(imp_api *a, const imp_api_request *rq, imp_endpoint ep, const imp_api_sink *s);
imp_api_call *imp_api_embed(imp_api *a, const imp_api_request *rq, imp_endpoint ep, const imp_api_sink *s);
imp_api_call *imp_api_rerank(imp_api *a, const imp_api_request *rq, const imp_api_sink *s);
/* tokens.c: /tokenize, and back: /detokenize */
void imp_api_tokens(imp_api *a, const imp_api_request *rq, bool back, const imp_api_sink *s);
/* receipts.c */
imp_status imp_api_impetus(imp_api_params *p, imp_error *err);  /* the object "impetus" of a request */
void imp_api_write_receipts(const imp_api_call *c, imp_buf *b); /* ,"impetus":{"receipt":...} */
void imp_api_receipt(imp_api *a, const char *id, const imp_api_sink *s);
void imp_api_explain(imp_api *a, const char *id, const imp_api_sink *s);
void imp_api_plan(imp_api *a, const imp_api_request *rq, const imp_api_sink *s);
void imp_api_models(imp_api *a, const imp_api_sink *s);
void imp_api_model_one(imp_api *a, const char *id, const imp_api_sink *s);
void imp_api_tags(imp_api *a, bool running, const imp_api_sink *s); /* /api/tags; running: /api/ps */
void imp_api_show(imp_api *a, const imp_api_request *rq, const imp_api_sink *s);
void imp_api_metrics(imp_api *a, const imp_api_sink *s);
size_t imp_api_list(imp_api *a, imp_model ***out); /* imp_api_list_free; NULL: out of memory */
void imp_api_list_free(imp_model **list, size_t n);
/* route.c: the index of a path in the route table, IMP_N_ROUTE when unknown; and its name for metrics. */
size_t imp_api_route_index(const char *path);
const char *imp_api_route_name(size_t i); /* NULL: no such route */

#endif
