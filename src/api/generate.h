/* api/generate.h - what chat and completions share; included by generate.c, openai_chat.c, openai_completion.c. */
#ifndef IMP_API_GENERATE_H
#define IMP_API_GENERATE_H

#include "api/internal.h"

/* The answer to one engine request. */
typedef struct gen_choice {
    imp_buf text;      /* all text so far; not kept when streaming */
    imp_buf lp[4];     /* parts of the logprobs object, as the API's format wants them */
    uint32_t text_pos; /* characters before the next token (completions' text_offset) */
    size_t n_tok;      /* tokens in lp */
    bool done;
    imp_finish finish;
    imp_usage usage;
} gen_choice;

typedef struct gen_prompt {
    int32_t *ids; /* owned by imp_free when `engine`, else in the arena */
    size_t n;
    bool engine;
    const char *text; /* echo: in the arena */
    size_t n_text;
} gen_prompt;

typedef struct gen_call gen_call;

/* One API's words. All write to out. */
typedef struct gen_format {
    const char *id_prefix, *object, *chunk_object;
    /* The tokens of a TEXT event, appended to choice->lp. */
    void (*tokens)(gen_call *g, gen_choice *c, const imp_event *ev);
    void (*logprobs)(const gen_choice *c, imp_buf *out); /* "logprobs":... */
    /* The part of a chunk's choice before "logprobs": the text, or for chat's first chunk the role. */
    void (*delta)(imp_buf *out, const char *text, size_t n);
    const char *role_delta;                           /* first chunk of a choice; NULL: none */
    const char *last_delta;                           /* in the chunk that ends a choice */
    void (*whole)(imp_buf *out, const gen_choice *c); /* the same in a complete answer */
} gen_format;

struct gen_call {
    imp_api_call base; /* first */
    imp_api_params p;
    const gen_format *format;
    imp_model *model;     /* a reference, until the last event */
    const char *model_id; /* in the arena */
    char id[48];
    int64_t created;
    gen_choice *choice; /* [n_slot], in the arena */
    gen_prompt *prompt; /* [n_prompt], in the arena */
    size_t n_prompt;
    imp_constraint *constraint; /* until the requests are submitted */
    imp_buf head;               /* start of every chunk, up to "choices":[ */
    imp_buf out;                /* what the sink has not got yet */
    bool first_seen;
    uint64_t first_ns;
};

extern const gen_format imp_gen_chat, imp_gen_completion;

/* The text of one token for logprobs; appended to out. */
void imp_gen_token_text(const gen_call *g, int32_t id, imp_buf *out);

#endif
